// SPDX-License-Identifier: GPL-2.0
/*
 * Leaks one of each kind of allocation when it is loaded, and says so:
 *
 *	leaky: leak KIND 0xADDRESS REQUESTED SIZE
 *
 * SIZE is what the allocator keeps for the object: a slab object's ksize(),
 * whole pages for vmalloc, and the requested size where there is no other.
 * KIND list-member marks objects which only a lost object points to.
 *
 * No pointer may survive in static data, in a register or on a stack, or the
 * object would not be lost: each leak happens in a function of its own, and
 * the stack is overwritten after it.
 */
#include <linux/kernel.h>
#include <linux/list.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/percpu.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/vmalloc.h>

#ifndef SLAB_NO_MERGE
#define SLAB_NO_MERGE 0
#endif

struct leaky_object {
	char payload[200];
};

/* 96 bytes: the kmalloc-96 size class. */
struct leaky_node {
	struct list_head list;
	char payload[80];
};

static struct kmem_cache *leaky_cache;

/* A cache with a constructor is never merged, also before SLAB_NO_MERGE. */
static void leaky_construct(void *object)
{
	memset(object, 0, sizeof(struct leaky_object));
}

static noinline void tell(const char *kind, const void *p, size_t wanted, size_t size)
{
	pr_info("leaky: leak %s 0x%px %zu %zu\n", kind, p, wanted, size);
}

/*
 * Overwrites what the last leak left below the caller's stack frame. Printing
 * goes deep, and every function on the way may have saved a register: hence
 * several frames of this one.
 */
static noinline void scrub(int frames)
{
	char room[1024];

	memset(room, 0x5a, sizeof(room));
	/* Makes the compiler believe that somebody reads it. */
	asm volatile("" : : "r" (room) : "memory");
	if (frames > 1)
		scrub(frames - 1);
	/* Nor may the call above become a jump that reuses this frame. */
	asm volatile("" : : "r" (room) : "memory");
}

static noinline void leak_kmalloc(size_t size, const char *kind)
{
	void *p = kmalloc(size, GFP_KERNEL);

	if (p)
		tell(kind, p, size, ksize(p));
}

static noinline void leak_cache_object(void)
{
	void *p = kmem_cache_alloc(leaky_cache, GFP_KERNEL);

	if (p)
		tell("kmem-cache", p, sizeof(struct leaky_object),
		     kmem_cache_size(leaky_cache));
}

static noinline void leak_vmalloc(size_t size)
{
	void *p = vmalloc(size);

	if (p) {
		/* Pages of an untouched area may look like anything. */
		memset(p, 0, size);
		tell("vmalloc", p, size, PAGE_ALIGN(size));
	}
}

static noinline void leak_percpu(size_t size)
{
	void __percpu *p = __alloc_percpu(size, 8);

	/* The cookie, as the per-CPU allocator hands it out. */
	if (p)
		tell("percpu", (__force void *)p, size, size);
}

/*
 * A list without an anchor, as if it had been freed with its entries still
 * linked: the first node is lost, and the others hang from it only. It does
 * not close to a ring, for then every node would have a pointer to it.
 */
static noinline void leak_list(void)
{
	struct leaky_node *node[3];
	int i;

	for (i = 0; i < 3; i++) {
		node[i] = kzalloc(sizeof(*node[i]), GFP_KERNEL);
		if (!node[i])
			goto fail;
	}
	for (i = 0; i < 2; i++)
		node[i]->list.next = &node[i + 1]->list;
	for (i = 0; i < 3; i++)
		tell(i ? "list-member" : "list-head", node[i],
		     sizeof(*node[i]), ksize(node[i]));
	return;
fail:
	while (i--)
		kfree(node[i]);
}

static int __init leaky_init(void)
{
	leaky_cache = kmem_cache_create("leaky_object", sizeof(struct leaky_object),
					0, SLAB_NO_MERGE, leaky_construct);
	if (!leaky_cache)
		return -ENOMEM;
	leak_kmalloc(100, "kmalloc");
	scrub(4);
	leak_cache_object();
	scrub(4);
	leak_kmalloc(20000, "kmalloc-large");
	scrub(4);
	leak_vmalloc(3 * PAGE_SIZE);
	scrub(4);
	leak_percpu(64);
	scrub(4);
	leak_list();
	scrub(4);
	pr_info("leaky: done\n");
	return 0;
}

/* Unloading would complain about the cache's lost object; there is no exit. */
module_init(leaky_init);

MODULE_DESCRIPTION("Leaks one of each kind of allocation");
MODULE_LICENSE("GPL");
