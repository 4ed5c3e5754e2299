// SPDX-License-Identifier: GPL-2.0
/*
 * A zoo of allocations: those that are lost, in every way that is likely to
 * matter, and those that are not, although they are hard to find. It says which
 * is which:
 *
 *	zoo: leak KIND 0xADDRESS SIZE
 *	zoo: held KIND 0xADDRESS SIZE
 *	zoo: done LEAKS HELD
 *
 * Whatever else it allocates is freed again, or held by its own data.
 *
 * With the parameter "forget", what holds the held ones lets go of them, so that
 * they are all lost: this shows that nothing else held them.
 *
 * It is never unloaded: there is no exit.
 */
#define pr_fmt(fmt) "zoo: " fmt

#include "zoo.h"

#include <linux/kernel.h>
#include <linux/module.h>
#include <linux/string.h>

static bool forget;
module_param(forget, bool, 0);
MODULE_PARM_DESC(forget, "let go of what is held, so that it is lost");

static bool pages;
module_param(pages, bool, 0);
MODULE_PARM_DESC(pages, "pages of the page allocator too");

static int leaks, held;
static unsigned long message;

noinline void zoo_leak(const char *kind, const void *p, size_t size)
{
	if (!p)
		return zoo_failed(kind);
	leaks++;
	pr_info("leak %s 0x%px %zu\n", kind, p, size);
}

noinline void zoo_held(const char *kind, const void *p, size_t size)
{
	if (!p)
		return zoo_failed(kind);
	held++;
	pr_info("held %s 0x%px %zu\n", kind, p, size);
}

noinline void zoo_failed(const char *kind)
{
	pr_info("failed %s\n", kind);
}

noinline void zoo_scrub(int kib)
{
	char room[1024];

	memset(room, 0x5a, sizeof(room));
	/* Makes the compiler believe that somebody reads it. */
	asm volatile("" : : "r" (room) : "memory");
	if (kib > 1)
		zoo_scrub(kib - 1);
	/* Nor may the call above become a jump that reuses this frame. */
	asm volatile("" : : "r" (room) : "memory");
}

noinline void zoo_hand_over(const void *p)
{
	WRITE_ONCE(message, ~(unsigned long)p);
}

noinline void *zoo_take_over(void)
{
	unsigned long p = ~READ_ONCE(message);

	/* The next one finds NULL if nobody hands anything over. */
	WRITE_ONCE(message, ~0UL);
	return (void *)p;
}

noinline void zoo_each(void (*const *functions)(void), size_t n)
{
	size_t i;

	for (i = 0; i < n; i++) {
		functions[i]();
		/* Printing goes deep. */
		zoo_scrub(6);
	}
}

static int __init zoo_init(void)
{
	zoo_take_over();
	zoo_make_leaks();
	zoo_make_held();
	zoo_make_freed();
	zoo_make_locks();
	zoo_make_watched();
	if (pages)
		zoo_make_pages();
	if (forget) {
		zoo_forget_held();
		zoo_forget_locks();
	}
	if (forget && pages)
		zoo_forget_pages();
	zoo_scrub(6);
	pr_info("done %d %d\n", leaks, held);
	return 0;
}

module_init(zoo_init);

MODULE_DESCRIPTION("Lost and held allocations of every kind");
MODULE_LICENSE("GPL");
