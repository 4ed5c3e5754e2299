// SPDX-License-Identifier: GPL-2.0
/*
 * In a semaphore for readers and writers the last reader's address stays, with a
 * flag, when nobody holds it any more. Here it is a specimen's.
 */
#include "zoo.h"

#include <linux/fs.h>
#include <linux/kernel.h>
#include <linux/namei.h>
#include <linux/rwsem.h>
#include <linux/slab.h>

#ifndef CONFIG_PREEMPT_RT

/* RWSEM_READER_OWNED, kernel/locking/rwsem.c */
#define READER 1UL

/* Files that nobody has opened: of nothing else it is known in all kernels what they are. */
static struct inode *idle, *held;
/* What looks like an idle semaphore from 7.x on, and is a pointer with a flag. */
static unsigned long *flagged;

static struct inode *make_inode(void)
{
	struct inode *inode = NULL;
	struct path root;

	if (kern_path("/", LOOKUP_FOLLOW, &root))
		return NULL;
	inode = new_inode(root.dentry->d_sb);
	path_put(&root);
	return inode;
}

static void leak_by_idle(void)
{
	void *p;

	idle = make_inode();
	p = kzalloc(72, GFP_KERNEL);
	zoo_leak("rwsem-last-reader", p, ksize(p));
	if (!idle)
		return zoo_failed("rwsem-last-reader");
	atomic_long_set(&idle->i_rwsem.owner, (long)p | READER);
}

static void hold_by_held(void)
{
	void *p;

	held = make_inode();
	p = kzalloc(72, GFP_KERNEL);
	zoo_held("rwsem-reader", p, ksize(p));
	if (!held)
		return zoo_failed("rwsem-reader");
	down_read(&held->i_rwsem);
	atomic_long_set(&held->i_rwsem.owner, (long)p | READER);
}

static void hold_by_flagged(void)
{
	void *p;

	flagged = kzalloc(48, GFP_KERNEL);
	p = kzalloc(72, GFP_KERNEL);
	zoo_held("flagged-pointer", p, ksize(p));
	if (!flagged)
		return zoo_failed("flagged-pointer");
	flagged[1] = (unsigned long)p | READER;
}

static void (*const makers[])(void) = { leak_by_idle, hold_by_held, hold_by_flagged };

void zoo_make_locks(void)
{
	zoo_each(makers, ARRAY_SIZE(makers));
}

void zoo_forget_locks(void)
{
	if (held)
		atomic_long_set(&held->i_rwsem.owner, READER);
	if (flagged)
		flagged[1] = 0;
}

#else

void zoo_make_locks(void) { }
void zoo_forget_locks(void) { }

#endif
