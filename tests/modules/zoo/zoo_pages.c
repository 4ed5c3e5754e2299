// SPDX-License-Identifier: GPL-2.0
/* Pages from the page allocator, which kmemleak does not know: lost and held. */
#include "zoo.h"

#include <linux/gfp.h>
#include <linux/list.h>
#include <linux/mm.h>
#include <linux/scatterlist.h>
#include <linux/vmalloc.h>
#include <linux/xarray.h>

static noinline void leak_page(void)
{
	struct page *page = alloc_page(GFP_KERNEL);

	zoo_leak("page", page ? page_address(page) : NULL, PAGE_SIZE);
}

static noinline void leak_zeroed_page(void)
{
	zoo_leak("zeroed-page", (void *)get_zeroed_page(GFP_KERNEL), PAGE_SIZE);
}

static noinline void leak_block(void)
{
	zoo_leak("block-of-pages", (void *)__get_free_pages(GFP_KERNEL, 2), 4 * PAGE_SIZE);
}

static noinline void leak_compound(void)
{
	struct page *page = alloc_pages(GFP_KERNEL | __GFP_COMP, 3);

	zoo_leak("compound-page", page ? page_address(page) : NULL, 8 * PAGE_SIZE);
}

/* Of four pages the last is given back. */
static noinline void leak_exact(void)
{
	zoo_leak("exact-pages", alloc_pages_exact(3 * PAGE_SIZE, GFP_KERNEL), 3 * PAGE_SIZE);
}

/* One that is lost refers to another, by its descriptor. */
static noinline void leak_chain(void)
{
	struct page **first = (struct page **)get_zeroed_page(GFP_KERNEL);
	struct page *second = alloc_page(GFP_KERNEL);

	if (!first || !second)
		return zoo_failed("page-chain");
	first[17] = second;
	zoo_leak("page-chain", first, PAGE_SIZE);
	zoo_leak("page-chain", page_address(second), PAGE_SIZE);
}

static noinline struct page *specimen(const char *kind, gfp_t flags, int order)
{
	struct page *page = alloc_pages(GFP_KERNEL | __GFP_ZERO | flags, order);

	zoo_held(kind, page ? page_address(page) : NULL, PAGE_SIZE << order);
	return page;
}

static struct page *volatile by_descriptor;
static void *volatile by_address;
static LIST_HEAD(by_list);
static struct scatterlist by_scatterlist[2];
static DEFINE_XARRAY(by_xarray);
static void *volatile window;

static noinline void hold_simply(void)
{
	struct page *page;

	by_descriptor = specimen("page-by-descriptor", 0, 0);
	page = specimen("page-by-address", 0, 2);
	by_address = page ? page_address(page) + 3 * PAGE_SIZE + 40 : NULL;
}

static noinline void hold_in_list(void)
{
	int i;

	for (i = 0; i < 3; i++) {
		struct page *page = specimen("page-in-list", i == 1 ? __GFP_COMP : 0, i);

		if (page)
			list_add(&page->lru, &by_list);
	}
}

static noinline void hold_in_scatterlist(void)
{
	sg_init_table(by_scatterlist, 2);
	sg_set_page(&by_scatterlist[0], specimen("page-in-scatterlist", 0, 0), PAGE_SIZE, 0);
	sg_set_page(&by_scatterlist[1], specimen("page-in-scatterlist", __GFP_COMP, 1), PAGE_SIZE, 0);
}

static noinline void hold_in_xarray(void)
{
	xa_store(&by_xarray, 77, specimen("page-in-xarray", 0, 0), GFP_KERNEL);
}

/* By the kernel's page tables alone. */
static noinline void hold_in_window(void)
{
	struct page *pages[2] = {
		specimen("page-in-window", 0, 0),
		specimen("page-in-window", 0, 0),
	};

	if (pages[0] && pages[1])
		window = vmap(pages, 2, VM_MAP, PAGE_KERNEL);
	if (!window)
		zoo_failed("page-in-window");
}

void zoo_make_pages(void)
{
	static void (*const functions[])(void) = {
		leak_page, leak_zeroed_page, leak_block, leak_compound, leak_exact, leak_chain,
		hold_simply, hold_in_list, hold_in_scatterlist, hold_in_xarray, hold_in_window,
	};

	zoo_each(functions, ARRAY_SIZE(functions));
}

void zoo_forget_pages(void)
{
	by_descriptor = NULL;
	by_address = NULL;
	INIT_LIST_HEAD(&by_list);
	sg_init_table(by_scatterlist, 2);
	xa_erase(&by_xarray, 77);
	/* What it maps stays allocated. */
	vunmap((void *)window);
	window = NULL;
}
