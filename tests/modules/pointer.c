// SPDX-License-Identifier: GPL-2.0
// One place that calls by a pointer, first functions that are no allocators, then one that ends in a jump to one: where the
// allocator returns to was translated before, and could have been the return of anything.

#include <linux/module.h>
#include <linux/slab.h>

static noinline void *no_allocator(size_t size, gfp_t flags)
{
	barrier();
	return NULL;
}

static noinline void *allocator(size_t size, gfp_t flags)
{
	return kmalloc(size, flags);
}

static noinline void *call(void *(*volatile function)(size_t, gfp_t), size_t size)
{
	void *object = function(size, GFP_KERNEL);

	// No jump in place of the call.
	barrier();
	return object;
}

static int __init pointer_init(void)
{
	int i;

	for (i = 0; i < 20; i++)
		kfree(call(i < 10 ? no_allocator : allocator, 100 + i));
	pr_info("pointer: done\n");
	return 0;
}

static void __exit pointer_exit(void)
{
}

module_init(pointer_init);
module_exit(pointer_exit);
MODULE_DESCRIPTION("An allocator that is called by a pointer");
MODULE_LICENSE("GPL");
