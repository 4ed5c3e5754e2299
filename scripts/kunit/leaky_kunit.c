// SPDX-License-Identifier: GPL-2.0-only
/*
 * A suite of which one test loses what it allocated, and all pass: what KUnit itself does not see.
 */

#include <kunit/test.h>
#include <linux/slab.h>

static void leaky_frees(struct kunit *test)
{
	void *block = kmalloc(100, GFP_KERNEL);

	KUNIT_EXPECT_NOT_NULL(test, block);
	kfree(block);
}

static noinline void leaky_lose(struct kunit *test)
{
	void *block = kmalloc(200, GFP_KERNEL);

	KUNIT_EXPECT_NOT_NULL(test, block);
	OPTIMIZER_HIDE_VAR(block);
}

static void leaky_loses(struct kunit *test)
{
	leaky_lose(test);
}

static void leaky_does_nothing(struct kunit *test)
{
	KUNIT_SUCCEED(test);
}

static struct kunit_case leaky_cases[] = {
	KUNIT_CASE(leaky_frees),
	KUNIT_CASE(leaky_loses),
	KUNIT_CASE(leaky_does_nothing),
	{}
};

static struct kunit_suite leaky_suite = {
	.name = "leaky",
	.test_cases = leaky_cases,
};
kunit_test_suite(leaky_suite);

MODULE_DESCRIPTION("A suite that leaks");
MODULE_LICENSE("GPL");
