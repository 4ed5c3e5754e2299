// SPDX-License-Identifier: GPL-2.0
/* What is allocated and freed again, in every way: a missed free would be reported as a leak. */
#include "zoo.h"

#include <linux/kernel.h>
#include <linux/mempool.h>
#include <linux/mm.h>
#include <linux/percpu.h>
#include <linux/rcupdate.h>
#include <linux/slab.h>
#include <linux/vmalloc.h>

struct zoo_rcu {
	u64 payload[6];
	struct rcu_head rcu;
};

static void free_kmalloc(void)
{
	kfree(kmalloc(70, GFP_KERNEL));
	kfree(kmalloc(40000, GFP_KERNEL));
	kfree_sensitive(kzalloc(400, GFP_KERNEL));
	kvfree(kvmalloc(500, GFP_KERNEL));
	kvfree(kvmalloc(6 << 20, GFP_KERNEL));
	kfree_const(kstrdup_const("an owl", GFP_KERNEL));
}

static void free_vmalloc(void)
{
	vfree(vmalloc(5 * PAGE_SIZE));
}

static void free_per_cpu(void)
{
	free_percpu(__alloc_percpu(40, 8));
}

static void free_by_rcu(void)
{
	struct zoo_rcu *p = kzalloc(sizeof(*p), GFP_KERNEL);

	if (p)
		kfree_rcu(p, rcu);
	p = kvmalloc(6 << 20, GFP_KERNEL);
	if (p)
		kvfree_rcu(p, rcu);
}

static void free_bulk(void)
{
	void *p[8];
	struct kmem_cache *cache = kmem_cache_create("zoo_freed", 136, 0, 0, NULL);

	if (!cache)
		return zoo_failed("free-bulk");
	if (kmem_cache_alloc_bulk(cache, GFP_KERNEL, ARRAY_SIZE(p), p))
		kmem_cache_free_bulk(cache, ARRAY_SIZE(p), p);
	p[0] = kmem_cache_alloc(cache, GFP_KERNEL);
	if (p[0])
		kmem_cache_free(cache, p[0]);
	kmem_cache_destroy(cache);
	p[0] = kmalloc(33, GFP_KERNEL);
	p[1] = kmalloc(333, GFP_KERNEL);
	if (p[0] && p[1])
		kfree_bulk(2, p);
}

static void free_mempool(void)
{
	mempool_t *pool = mempool_create_kmalloc_pool(4, 300);
	void *p;

	if (!pool)
		return zoo_failed("free-mempool");
	p = mempool_alloc(pool, GFP_KERNEL);
	if (p)
		mempool_free(p, pool);
	mempool_destroy(pool);
}

static void free_resized(void)
{
	void *p = krealloc(NULL, 50, GFP_KERNEL);

	if (p)
		p = krealloc(p, 0, GFP_KERNEL);
	/* Of no bytes: not a block. */
	kfree(p);
}

static void (*const freed[])(void) = {
	free_kmalloc, free_vmalloc, free_per_cpu, free_by_rcu, free_bulk, free_mempool, free_resized,
};

void zoo_make_freed(void)
{
	zoo_each(freed, ARRAY_SIZE(freed));
	rcu_barrier();
}
