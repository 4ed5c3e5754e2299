// SPDX-License-Identifier: GPL-2.0
/*
 * Loses objects that KFENCE guards. Prints each as "kfence_leak: leak KIND 0xADDRESS SIZE":
 *
 *   in-pool                lies in KFENCE's pool, at the start or at the end of a page
 *   holder-in-pool-freed   a slab object; its only holder lay in the pool and was freed
 *   zombie                 lies in the pool; its cache was destroyed while it was allocated
 *
 * The last line is "kfence_leak: done N", with the number of lost objects.
 */
#include <linux/delay.h>
#include <linux/kernel.h>
#include <linux/kfence.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/string.h>

#define WANTED 16
#define TRIES 60000

/* Since 6.5. */
#ifndef SLAB_NO_MERGE
#define SLAB_NO_MERGE 0
#endif

static noinline void wipe(int depth)
{
	char room[900];

	memset(room, 0x5a, sizeof(room));
	asm volatile("" : : "r" (room) : "memory");
	if (depth > 1)
		wipe(depth - 1);
	asm volatile("" : : "r" (room) : "memory");
}

/* True if the object came from the pool, and is lost then. */
static noinline bool lose_if_guarded(size_t size)
{
	void *p = kzalloc(size, GFP_KERNEL);

	if (!is_kfence_address(p)) {
		kfree(p);
		return false;
	}
	pr_info("kfence_leak: leak in-pool 0x%px %zu\n", p, ksize(p));
	return true;
}

static noinline bool lose_held_by_guarded(size_t size)
{
	void **holder = kzalloc(size, GFP_KERNEL);
	void *p;

	if (!is_kfence_address(holder)) {
		kfree(holder);
		return false;
	}
	p = kzalloc(72, GFP_KERNEL);
	if (is_kfence_address(p)) {
		kfree(p);
		kfree(holder);
		return false;
	}
	pr_info("kfence_leak: leak holder-in-pool-freed 0x%px %zu\n", p, ksize(p));
	WRITE_ONCE(holder[2], p);
	kfree(holder);
	return true;
}

/* KFENCE objects do not keep a cache from being destroyed (kfence_shutdown_cache()). */
static noinline bool lose_zombie(void)
{
	struct kmem_cache *cache = kmem_cache_create("kfence_leak", 328, 0, SLAB_NO_MERGE, NULL);
	void *p;
	int i;

	if (!cache)
		return false;
	for (i = 0; i < TRIES; i++) {
		p = kmem_cache_zalloc(cache, GFP_KERNEL);
		if (is_kfence_address(p))
			break;
		kmem_cache_free(cache, p);
		if (i % 16 == 0)
			usleep_range(300, 600);
	}
	if (i < TRIES)
		pr_info("kfence_leak: leak zombie 0x%px %zu\n", p, ksize(p));
	kmem_cache_destroy(cache);
	return i < TRIES;
}

static int __init kfence_leak_init(void)
{
	static const size_t sizes[] = { 40, 96, 200, 700, 1500 };
	int lost = 0, held = 0, zombies, i;

	for (i = 0; i < TRIES && (lost < WANTED || held < WANTED); i++) {
		size_t size = sizes[i % ARRAY_SIZE(sizes)];

		if (lost <= held)
			lost += lose_if_guarded(size);
		else
			held += lose_held_by_guarded(size);
		if (i % 16 == 0)
			usleep_range(300, 600);
	}
	zombies = lose_zombie();
	wipe(6);
	pr_info("kfence_leak: done %d\n", lost + held + zombies);
	return 0;
}

static void __exit kfence_leak_exit(void)
{
}

module_init(kfence_leak_init);
module_exit(kfence_leak_exit);
MODULE_DESCRIPTION("Loses objects that KFENCE guards");
MODULE_LICENSE("GPL");
