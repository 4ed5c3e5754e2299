// SPDX-License-Identifier: GPL-2.0
/*
 * A list of notes, each with a name of its own. It has one leak, which docs/tutorial.md finds and
 * mends.
 *
 *	echo NAME >/sys/module/notes/parameters/add	adds a note; EEXIST if there is one
 */
#include <linux/list.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/slab.h>
#include <linux/string.h>

struct note {
	struct list_head list;
	char *name;
};

static LIST_HEAD(notes);
static DEFINE_MUTEX(notes_lock);

static struct note *note_find(const char *name)
{
	struct note *note;

	list_for_each_entry(note, &notes, list)
		if (!strcmp(note->name, name))
			return note;
	return NULL;
}

static noinline int note_add(const char *name, const struct kernel_param *param)
{
	struct note *note = kzalloc(sizeof(*note), GFP_KERNEL);
	int err = 0;

	if (!note)
		return -ENOMEM;
	note->name = kstrdup(name, GFP_KERNEL);
	if (!note->name) {
		kfree(note);
		return -ENOMEM;
	}
	mutex_lock(&notes_lock);
	if (note_find(name))
		err = -EEXIST;
	else
		list_add(&note->list, &notes);
	mutex_unlock(&notes_lock);
	return err;
}

static const struct kernel_param_ops add_ops = { .set = note_add };
module_param_cb(add, &add_ops, NULL, 0200);

static int __init notes_init(void)
{
	return 0;
}

static void __exit notes_exit(void)
{
	struct note *note, *next;

	list_for_each_entry_safe(note, next, &notes, list) {
		kfree(note->name);
		kfree(note);
	}
}

module_init(notes_init);
module_exit(notes_exit);

MODULE_DESCRIPTION("Notes with names");
MODULE_LICENSE("GPL");
