// SPDX-License-Identifier: GPL-2.0
/*
 * A list that is only ever added to: nothing in it is unreferenced, and it grows.
 * Each write of COUNT to /sys/module/grower/parameters/add adds as many objects of
 * 200 bytes, and is answered on the console:
 *
 *	grower: added COUNT
 *
 * Writing COUNT to .../lose loses as many objects of 100 bytes:
 *
 *	grower: lost COUNT
 *
 * Writing anything to .../drop takes all objects off the list and frees none, and says of each
 *
 *	grower: dropped 0xADDRESS
 */
#include <linux/kernel.h>
#include <linux/list.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/slab.h>
#include <linux/string.h>

struct grown {
	struct list_head list;
	char rest[200 - sizeof(struct list_head)];
};

static LIST_HEAD(all);
static DEFINE_MUTEX(lock);

static noinline struct grown *grower_add(void)
{
	struct grown *new = kzalloc(sizeof(*new), GFP_KERNEL);

	if (new)
		list_add(&new->list, &all);
	return new;
}

static noinline void *grower_lose(void)
{
	void *p = kzalloc(100, GFP_KERNEL);

	/* Makes the compiler believe that somebody reads it. */
	asm volatile("" : : "r" (p) : "memory");
	return p ? (void *)1 : NULL;
}

static int add_set(const char *text, const struct kernel_param *param)
{
	unsigned int count, i;
	int err = kstrtouint(text, 0, &count);

	if (err)
		return err;
	mutex_lock(&lock);
	for (i = 0; i < count && grower_add(); i++)
		;
	mutex_unlock(&lock);
	pr_info("grower: added %u\n", i);
	return 0;
}

static int lose_set(const char *text, const struct kernel_param *param)
{
	unsigned int count, i;
	int err = kstrtouint(text, 0, &count);

	if (err)
		return err;
	for (i = 0; i < count && grower_lose(); i++)
		;
	pr_info("grower: lost %u\n", i);
	return 0;
}

/* Overwrites what was left below the caller's stack frame; see leaky.c. */
static noinline void scrub(int frames)
{
	char room[1024];

	memset(room, 0x5a, sizeof(room));
	asm volatile("" : : "r" (room) : "memory");
	if (frames > 1)
		scrub(frames - 1);
	asm volatile("" : : "r" (room) : "memory");
}

static noinline void grower_drop(void)
{
	struct grown *g, *next;

	list_for_each_entry_safe(g, next, &all, list) {
		list_del(&g->list);
		pr_info("grower: dropped 0x%px\n", g);
	}
}

static int drop_set(const char *text, const struct kernel_param *param)
{
	mutex_lock(&lock);
	grower_drop();
	mutex_unlock(&lock);
	scrub(4);
	return 0;
}

static const struct kernel_param_ops add_ops = { .set = add_set };
static const struct kernel_param_ops lose_ops = { .set = lose_set };
module_param_cb(add, &add_ops, NULL, 0200);
static const struct kernel_param_ops drop_ops = { .set = drop_set };
module_param_cb(lose, &lose_ops, NULL, 0200);
module_param_cb(drop, &drop_ops, NULL, 0200);

static int __init grower_init(void)
{
	return 0;
}

static void __exit grower_exit(void)
{
	struct grown *g, *next;

	list_for_each_entry_safe(g, next, &all, list)
		kfree(g);
}

module_init(grower_init);
module_exit(grower_exit);

MODULE_DESCRIPTION("Grows a list, or loses objects, when it is told to");
MODULE_LICENSE("GPL");
