// SPDX-License-Identifier: GPL-2.0
/*
 * Takes objects from caches on top of the slab allocator, which others have filled, and loses them. Says of each
 * "caches: leak KIND 0xADDRESS FUNCTION", FUNCTION being the one that took it. The caches are filled by caches_fill(), or by
 * the kernel, and never by these functions.
 */
#include <linux/kernel.h>
#include <linux/mempool.h>
#include <linux/module.h>
#include <linux/skbuff.h>
#include <linux/slab.h>

#define SKBS 40
#define ELEMENTS 40
#define INNER 8
/* Elements that stay in a pool's reserve. */
#define RESERVED 5

static struct kmem_cache *cache;
/* One pool is an object, and one is a part of something else. Neither is ever destroyed. */
static mempool_t *pool;
static mempool_t inner_pool;
/* Room for skb heads, which are not lost. */
static char *heads;
/* Fails at will: the pool gives its reserved elements then. */
static bool failing;
static struct sk_buff *kept[SKBS];

static void *element_alloc(gfp_t gfp, void *data)
{
	return failing ? NULL : kmem_cache_alloc(data, gfp);
}

static void element_free(void *element, void *data)
{
	kmem_cache_free(data, element);
}

/* Puts skbs where napi_build_skb() takes them from. The cache of a CPU holds 64. */
static noinline void caches_fill(void)
{
	int i;

	for (i = 0; i < SKBS; i++)
		kept[i] = alloc_skb(0, GFP_ATOMIC);
	for (i = 0; i < SKBS; i++)
		if (kept[i])
			napi_consume_skb(kept[i], 1);
	memset(kept, 0, sizeof(kept));
}

static noinline void lose_skb(int i)
{
	struct sk_buff *skb = napi_build_skb(heads + i * 1024, 1024);

	pr_info("caches: leak skb 0x%px lose_skb\n", skb);
}

static noinline void lose_element(mempool_t *from)
{
	void *element = mempool_alloc(from, GFP_NOWAIT);

	pr_info("caches: leak element 0x%px lose_element\n", element);
}

static int __init caches_init(void)
{
	int i;

	cache = kmem_cache_create("caches_element", 200, 0, 0, NULL);
	heads = kzalloc(SKBS * 1024, GFP_KERNEL);
	if (!cache || !heads)
		return -ENOMEM;
	pool = mempool_create(ELEMENTS + RESERVED, element_alloc, element_free, cache);
	if (!pool || mempool_init(&inner_pool, INNER + RESERVED, element_alloc, element_free, cache))
		return -ENOMEM;
	local_bh_disable();
	caches_fill();
	for (i = 0; i < SKBS; i++)
		lose_skb(i);
	local_bh_enable();
	failing = true;
	/* The arrays of the pools keep the pointers to the elements that were given out. */
	for (i = 0; i < ELEMENTS; i++)
		lose_element(pool);
	for (i = 0; i < INNER; i++)
		lose_element(&inner_pool);
	pr_info("caches: done\n");
	return 0;
}

module_init(caches_init);
MODULE_DESCRIPTION("Loses what it takes from caches");
MODULE_LICENSE("GPL");
