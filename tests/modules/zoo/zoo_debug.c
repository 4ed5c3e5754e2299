// SPDX-License-Identifier: GPL-2.0
/*
 * What is lost, and what the kernel's debug options go on watching: their records
 * have its address, and own nothing. Without these options it is only lost.
 */
#include "zoo.h"

#include <linux/kernel.h>
#include <linux/lockdep.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/timer.h>
#include <linux/workqueue.h>

struct watched {
	char pad[48];
	spinlock_t lock;
	struct lock_class_key key;
	struct timer_list timer;
	struct work_struct work;
};

static void nothing_to_do(struct timer_list *timer) { }
static void no_work(struct work_struct *work) { }

/* CONFIG_LOCKDEP has a list of such keys, and a class for each that was used. */
static void leak_registered_key(void)
{
	struct watched *p = kzalloc(sizeof(*p), GFP_KERNEL);

	if (!p)
		return zoo_failed("registered-lock-key");
	lockdep_register_key(&p->key);
	spin_lock_init(&p->lock);
	lockdep_set_class(&p->lock, &p->key);
	spin_lock(&p->lock);
	spin_unlock(&p->lock);
	zoo_leak("registered-lock-key", p, ksize(p));
}

/* CONFIG_DEBUG_OBJECTS_TIMERS has a record of it. */
static void leak_watched_timer(void)
{
	struct watched *p = kzalloc(sizeof(*p), GFP_KERNEL);

	if (!p)
		return zoo_failed("watched-timer");
	timer_setup(&p->timer, nothing_to_do, 0);
	zoo_leak("watched-timer", p, ksize(p));
}

/* CONFIG_DEBUG_OBJECTS_WORK has one of this. */
static void leak_watched_work(void)
{
	struct watched *p = kzalloc(sizeof(*p), GFP_KERNEL);

	if (!p)
		return zoo_failed("watched-work");
	INIT_WORK(&p->work, no_work);
	zoo_leak("watched-work", p, ksize(p));
}

static void (*const makers[])(void) = { leak_registered_key, leak_watched_timer, leak_watched_work };

void zoo_make_watched(void)
{
	zoo_each(makers, ARRAY_SIZE(makers));
}
