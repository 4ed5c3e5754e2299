// SPDX-License-Identifier: GPL-2.0
/*
 * Loses objects and prints lines whenever it is told to:
 *
 *	echo SIZE >/sys/module/loser/parameters/lose	loses LOSSES objects of that many bytes
 *	echo TEXT >/sys/module/loser/parameters/say	prints it as KUnit prints its lines
 */
#include <linux/kernel.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/string.h>

#define LOSSES 4

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

static noinline void lose_one(size_t size)
{
	void *p = kzalloc(size, GFP_KERNEL);

	/* Makes the compiler believe that somebody reads it. */
	asm volatile("" : : "r" (p) : "memory");
}

static int lose(const char *text, const struct kernel_param *param)
{
	unsigned int size, i;
	int error = kstrtouint(text, 10, &size);

	if (error)
		return error;
	for (i = 0; i < LOSSES; i++)
		lose_one(size);
	scrub(4);
	return 0;
}

static int say(const char *text, const struct kernel_param *param)
{
	/* Without the name of the module, and with the end of the line that the text has. */
	printk(KERN_INFO "%s", text);
	return 0;
}

static const struct kernel_param_ops lose_ops = { .set = lose };
static const struct kernel_param_ops say_ops = { .set = say };
module_param_cb(lose, &lose_ops, NULL, 0200);
module_param_cb(say, &say_ops, NULL, 0200);

static int __init loser_init(void)
{
	return 0;
}

static void __exit loser_exit(void)
{
}

module_init(loser_init);
module_exit(loser_exit);

MODULE_DESCRIPTION("Loses objects when it is told to");
MODULE_LICENSE("GPL");
