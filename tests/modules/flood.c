// SPDX-License-Identifier: GPL-2.0
/*
 * Loses as many objects as the parameter says, all from one place, when it is
 * loaded, and says so:
 *
 *	flood: lost COUNT
 */
#include <linux/kernel.h>
#include <linux/module.h>
#include <linux/slab.h>

static unsigned int count = 100000;
module_param(count, uint, 0);

static int __init flood_init(void)
{
	unsigned int i;

	for (i = 0; i < count; i++) {
		void *p = kzalloc(32, GFP_KERNEL);

		if (!p)
			return -ENOMEM;
		/* Makes the compiler believe that somebody reads it. */
		asm volatile("" : : "r" (p) : "memory");
		if (i % 1024 == 0)
			cond_resched();
	}
	pr_info("flood: lost %u\n", count);
	return 0;
}

static void __exit flood_exit(void)
{
}

module_init(flood_init);
module_exit(flood_exit);

MODULE_DESCRIPTION("Leaks many objects from one place");
MODULE_LICENSE("GPL");
