// SPDX-License-Identifier: GPL-2.0
/*
 * Loses objects in different ways, and prints which function loses each:
 *
 *	lost: WAY 0xADDRESS FUNCTION
 *
 * Objects that are held are printed as "held: WAY 0xADDRESS". The function
 * is the one that overwrites the last reference or frees what contains it,
 * or for an object that is never stored, the last one that has its address.
 */
#include <linux/hashtable.h>
#include <linux/idr.h>
#include <linux/kernel.h>
#include <linux/kthread.h>
#include <linux/list.h>
#include <linux/llist.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/percpu.h>
#include <linux/radix-tree.h>
#include <linux/rbtree.h>
#include <linux/rcupdate.h>
#include <linux/refcount.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/timer.h>
#include <linux/vmalloc.h>
#include <linux/workqueue.h>
#include <linux/xarray.h>

struct thing {
	char payload[64];
	void *member;
	struct list_head list;
	struct hlist_node hash;
	struct llist_node lock_less;
	struct rb_node node;
	struct rcu_head rcu;
	refcount_t count;
};

static void *global;
static void *slots[8];
static struct thing *holder;
static struct thing *held;
static LIST_HEAD(things);
static HLIST_HEAD(chain);
static LLIST_HEAD(stack_of_things);
static struct rb_root tree = RB_ROOT;
static DEFINE_XARRAY(array);
static DEFINE_IDR(numbers);
static RADIX_TREE(radix, GFP_KERNEL);
static DEFINE_PER_CPU(void *, of_cpu);
static DEFINE_MUTEX(lock);
static struct timer_list timer;
static char *text;

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

/* Makes the compiler believe that somebody reads it. */
static __always_inline void use(void *p)
{
	asm volatile("" : : "r" (p) : "memory");
}

static noinline void tell(const char *way, const void *p, const char *function)
{
	pr_info("lost: %s 0x%px %s\n", way, p, function);
}

/* Ends a function: its last call is no jump, and no other function is the same. */
#define END asm volatile("" : : "i" (__LINE__) : "memory")

/* Allocates in a function of its own: the site is never that of the loss. */
static noinline struct thing *make_thing(void)
{
	struct thing *t = kzalloc(sizeof(*t), GFP_KERNEL);

	if (t)
		INIT_LIST_HEAD(&t->list);
	return t;
}

/* Says that the object will be lost while it is still referred to. */
#define ABOUT(way, p, function) tell(way, p, #function)

static noinline void set_global(void)
{
	WRITE_ONCE(global, make_thing());
	ABOUT("global", global, lose_global);
	END;
}

static noinline void lose_global(void)
{
	WRITE_ONCE(global, NULL);
	END;
}

static noinline void set_global_again(void)
{
	WRITE_ONCE(global, make_thing());
	ABOUT("global-replaced", global, lose_by_replacing);
	END;
}

static noinline void lose_by_replacing(void)
{
	WRITE_ONCE(global, &things);
	END;
}

static noinline void set_exchanged(void)
{
	WRITE_ONCE(global, make_thing());
	ABOUT("exchanged", global, lose_by_exchange);
	END;
}

static noinline void lose_by_exchange(void)
{
	use(xchg(&global, NULL));
	END;
}

static noinline void set_compared(void)
{
	WRITE_ONCE(global, make_thing());
	ABOUT("compared", global, lose_by_cmpxchg);
	END;
}

static noinline void lose_by_cmpxchg(void)
{
	void *old = READ_ONCE(global);

	/* The first one fails. */
	use(cmpxchg(&global, NULL, old));
	use(cmpxchg(&global, old, NULL));
	END;
}

static noinline void set_slot(void)
{
	WRITE_ONCE(slots[3], make_thing());
	ABOUT("slot", slots[3], lose_slot);
	END;
}

static noinline void lose_slot(void)
{
	WRITE_ONCE(slots[3], NULL);
	END;
}

static noinline void set_slots(void)
{
	WRITE_ONCE(slots[5], make_thing());
	ABOUT("memset", slots[5], lose_by_memset);
	END;
}

static noinline void lose_by_memset(void)
{
	memset(slots, 0, sizeof(slots));
	END;
}

static noinline void set_member(void)
{
	WRITE_ONCE(holder, make_thing());
	WRITE_ONCE(holder->member, make_thing());
	ABOUT("member", holder->member, lose_member);
	END;
}

static noinline void lose_member(void)
{
	WRITE_ONCE(holder->member, NULL);
	END;
}

static noinline void set_freed(void)
{
	WRITE_ONCE(holder->member, make_thing());
	ABOUT("holder-freed", holder->member, lose_with_holder);
	END;
}

static noinline void lose_with_holder(void)
{
	kfree(holder);
	WRITE_ONCE(holder, NULL);
	END;
}

static noinline void set_freed_rcu(void)
{
	WRITE_ONCE(holder, make_thing());
	WRITE_ONCE(holder->member, make_thing());
	ABOUT("holder-freed-rcu", holder->member, lose_with_rcu);
	END;
}

static noinline void lose_with_rcu(void)
{
	struct thing *old = holder;

	WRITE_ONCE(holder, NULL);
	kfree_rcu(old, rcu);
	END;
}

static noinline void set_two_deep(void)
{
	WRITE_ONCE(holder, make_thing());
	WRITE_ONCE(holder->member, make_thing());
	WRITE_ONCE(((struct thing *)holder->member)->member, make_thing());
	ABOUT("holder-of-holder-freed", ((struct thing *)holder->member)->member, lose_two_deep);
	END;
}

static noinline void lose_two_deep(void)
{
	kfree(holder->member);
	WRITE_ONCE(holder->member, NULL);
	kfree(holder);
	WRITE_ONCE(holder, NULL);
	END;
}

static noinline void set_list(void)
{
	struct thing *t = make_thing();

	list_add(&t->list, &things);
	ABOUT("list", t, lose_list);
	END;
}

static noinline void lose_list(void)
{
	list_del(&list_first_entry(&things, struct thing, list)->list);
	END;
}

static noinline void set_list_again(void)
{
	struct thing *t = make_thing();

	list_add(&t->list, &things);
	ABOUT("list-init", t, lose_list_init);
	END;
}

static noinline void lose_list_init(void)
{
	list_del_init(&list_first_entry(&things, struct thing, list)->list);
	END;
}

static noinline void set_head(void)
{
	struct thing *t = make_thing();

	list_add(&t->list, &things);
	ABOUT("list-head", t, lose_list_head);
	END;
}

/* The head forgets its list. */
static noinline void lose_list_head(void)
{
	INIT_LIST_HEAD(&things);
	END;
}

static noinline void set_hash(void)
{
	struct thing *t = make_thing();

	hlist_add_head(&t->hash, &chain);
	ABOUT("hlist", t, lose_hash);
	END;
}

static noinline void lose_hash(void)
{
	hlist_del_init(chain.first);
	END;
}

static noinline void set_llist(void)
{
	struct thing *t = make_thing();

	llist_add(&t->lock_less, &stack_of_things);
	ABOUT("llist", t, lose_llist);
	END;
}

static noinline void lose_llist(void)
{
	use(llist_del_all(&stack_of_things));
	END;
}

static noinline void set_tree(void)
{
	struct thing *t = make_thing();

	rb_link_node(&t->node, NULL, &tree.rb_node);
	rb_insert_color(&t->node, &tree);
	ABOUT("rbtree", t, lose_tree);
	END;
}

static noinline void lose_tree(void)
{
	rb_erase(tree.rb_node, &tree);
	END;
}

static noinline void set_xarray(void)
{
	struct thing *t = make_thing();

	xa_store(&array, 1, t, GFP_KERNEL);
	ABOUT("xarray", t, lose_xarray);
	END;
}

static noinline void lose_xarray(void)
{
	use(xa_erase(&array, 1));
	END;
}

static noinline void set_xarrays(void)
{
	struct thing *t = make_thing();

	xa_store(&array, 100, t, GFP_KERNEL);
	ABOUT("xarray-destroyed", t, lose_xarrays);
	END;
}

static noinline void lose_xarrays(void)
{
	xa_destroy(&array);
	END;
}

static noinline void set_idr(void)
{
	struct thing *t = make_thing();

	idr_alloc(&numbers, t, 5, 6, GFP_KERNEL);
	ABOUT("idr", t, lose_idr);
	END;
}

static noinline void lose_idr(void)
{
	use(idr_remove(&numbers, 5));
	idr_destroy(&numbers);
	END;
}

static noinline void set_radix(void)
{
	struct thing *t = make_thing();

	radix_tree_insert(&radix, 77, t);
	ABOUT("radix-tree", t, lose_radix);
	END;
}

static noinline void lose_radix(void)
{
	use(radix_tree_delete(&radix, 77));
	END;
}

static noinline void set_percpu(void)
{
	struct thing *t = make_thing();

	per_cpu(of_cpu, 0) = t;
	ABOUT("percpu", t, lose_percpu);
	END;
}

static noinline void lose_percpu(void)
{
	per_cpu(of_cpu, 0) = NULL;
	END;
}

static noinline void lose_in_frame(void)
{
	struct thing *t = make_thing();

	ABOUT("frame", t, lose_in_frame);
	END;
}

static noinline void lose_on_stack(void)
{
	struct thing *volatile on_stack = make_thing();

	ABOUT("stack", on_stack, lose_on_stack);
	END;
}

static noinline int fails(void *p)
{
	use(p);
	mutex_lock(&lock);
	mutex_unlock(&lock);
	return -EINVAL;
}

/* The way out after an error forgets to free. */
static noinline int lose_after_error(void)
{
	struct thing *t = make_thing();

	if (!t)
		return -ENOMEM;
	ABOUT("error-path", t, lose_after_error);
	if (fails(t) < 0)
		return -EINVAL;
	WRITE_ONCE(global, t);
	return 0;
}

static noinline void set_popped(void)
{
	struct thing *t = make_thing();

	list_add(&t->list, &things);
	ABOUT("popped", t, lose_popped);
	END;
}

static noinline struct thing *pop(void)
{
	struct thing *t = list_first_entry(&things, struct thing, list);

	list_del(&t->list);
	return t;
}

/* What it took from the list is not freed. */
static noinline void lose_popped(void)
{
	struct thing *t = pop();

	mutex_lock(&lock);
	use(t);
	mutex_unlock(&lock);
	END;
}

static noinline void set_moved(void)
{
	WRITE_ONCE(text, kzalloc(64, GFP_KERNEL));
	WRITE_ONCE(*(void **)text, make_thing());
	ABOUT("moved", *(void **)text, lose_moved);
	END;
}

static noinline void grow(void)
{
	WRITE_ONCE(text, krealloc(text, 4000, GFP_KERNEL));
	END;
}

static noinline void lose_moved(void)
{
	kfree(text);
	WRITE_ONCE(text, NULL);
	END;
}

static noinline void set_copied(void)
{
	WRITE_ONCE(slots[0], make_thing());
	ABOUT("memmove", slots[0], lose_copied);
	memmove(&slots[1], &slots[0], sizeof(slots[0]));
	barrier();
	WRITE_ONCE(slots[0], NULL);
	END;
}

static noinline void lose_copied(void)
{
	memmove(&slots[1], &slots[2], sizeof(slots[0]));
	END;
}

static noinline void get(struct thing *t)
{
	refcount_inc(&t->count);
}

static noinline void put(struct thing *t)
{
	if (refcount_dec_and_test(&t->count))
		kfree(t);
}

static noinline void set_counted(void)
{
	struct thing *t = make_thing();

	refcount_set(&t->count, 1);
	WRITE_ONCE(global, t);
	get(t);
	ABOUT("refcount", t, lose_counted);
	END;
}

/* One reference too few is given back. */
static noinline void lose_counted(void)
{
	struct thing *t = global;

	WRITE_ONCE(global, NULL);
	put(t);
	END;
}

static void on_timer(struct timer_list *unused)
{
}

static noinline void set_timer(void)
{
	WRITE_ONCE(holder, make_thing());
	timer_setup(&timer, on_timer, 0);
	WRITE_ONCE(*(void **)&timer.entry.next, make_thing());
	ABOUT("timer", *(void **)&timer.entry.next, lose_timer);
	END;
}

static noinline void lose_timer(void)
{
	memset(&timer, 0, sizeof(timer));
	barrier();
	kfree(holder);
	WRITE_ONCE(holder, NULL);
	END;
}

static noinline void set_tagged(void)
{
	WRITE_ONCE(global, (char *)make_thing() + 1);
	ABOUT("tagged", (char *)global - 1, lose_tagged);
	END;
}

static noinline void lose_tagged(void)
{
	WRITE_ONCE(global, NULL);
	END;
}

static noinline void set_vmalloc(void)
{
	WRITE_ONCE(text, vzalloc(PAGE_SIZE));
	WRITE_ONCE(*(void **)(text + 128), make_thing());
	ABOUT("vmalloc-overwritten", *(void **)(text + 128), lose_in_vmalloc);
	END;
}

static noinline void lose_in_vmalloc(void)
{
	WRITE_ONCE(*(void **)(text + 128), NULL);
	vfree(text);
	WRITE_ONCE(text, NULL);
	END;
}

static noinline void set_large(void)
{
	WRITE_ONCE(text, kzalloc(32768, GFP_KERNEL));
	WRITE_ONCE(*(void **)(text + 20000), make_thing());
	ABOUT("large-freed", *(void **)(text + 20000), lose_with_large);
	END;
}

static noinline void lose_with_large(void)
{
	kfree(text);
	WRITE_ONCE(text, NULL);
	END;
}

static noinline void set_large_object(void)
{
	WRITE_ONCE(global, kzalloc(40000, GFP_KERNEL));
	ABOUT("large", global, lose_large);
	END;
}

static noinline void lose_large(void)
{
	WRITE_ONCE(global, NULL);
	END;
}

static struct thing *of_thread;

static int thread(void *unused);

static noinline void lose_in_thread(void)
{
	WRITE_ONCE(of_thread, NULL);
	END;
}

static int thread(void *unused)
{
	lose_in_thread();
	return 0;
}

static noinline void set_thread(void)
{
	WRITE_ONCE(of_thread, make_thing());
	ABOUT("thread", of_thread, lose_in_thread);
	kthread_run(thread, NULL, "loser");
	END;
}

static struct work_struct work;

static noinline void lose_in_work(struct work_struct *unused)
{
	WRITE_ONCE(global, NULL);
	END;
}

static noinline void set_work(void)
{
	WRITE_ONCE(global, make_thing());
	ABOUT("work", global, lose_in_work);
	INIT_WORK(&work, lose_in_work);
	schedule_work(&work);
	flush_work(&work);
	END;
}

static noinline void hold(void)
{
	WRITE_ONCE(held, make_thing());
	WRITE_ONCE(held->member, make_thing());
	list_add(&held->list, &things);
	pr_info("held: global 0x%px\n", held);
	pr_info("held: member 0x%px\n", held->member);
	END;
}

/* Each set and lost by calls of their own, with other calls in between. */
#define LOSE(set, lose) do { set(); scrub(4); lose(); scrub(4); } while (0)

static int __init lost_init(void)
{
	LOSE(set_global, lose_global);
	LOSE(set_global_again, lose_by_replacing);
	WRITE_ONCE(global, NULL);
	LOSE(set_exchanged, lose_by_exchange);
	LOSE(set_compared, lose_by_cmpxchg);
	LOSE(set_slot, lose_slot);
	LOSE(set_slots, lose_by_memset);
	LOSE(set_member, lose_member);
	LOSE(set_freed, lose_with_holder);
	LOSE(set_freed_rcu, lose_with_rcu);
	LOSE(set_two_deep, lose_two_deep);
	LOSE(set_list, lose_list);
	LOSE(set_list_again, lose_list_init);
	LOSE(set_head, lose_list_head);
	LOSE(set_hash, lose_hash);
	LOSE(set_llist, lose_llist);
	LOSE(set_tree, lose_tree);
	LOSE(set_xarray, lose_xarray);
	LOSE(set_xarrays, lose_xarrays);
	LOSE(set_idr, lose_idr);
	LOSE(set_radix, lose_radix);
	LOSE(set_percpu, lose_percpu);
	LOSE(set_popped, lose_popped);
	LOSE(set_copied, lose_copied);
	LOSE(set_counted, lose_counted);
	LOSE(set_timer, lose_timer);
	LOSE(set_tagged, lose_tagged);
	LOSE(set_vmalloc, lose_in_vmalloc);
	LOSE(set_large, lose_with_large);
	LOSE(set_large_object, lose_large);
	set_moved();
	scrub(4);
	grow();
	scrub(4);
	lose_moved();
	scrub(4);
	lose_in_frame();
	scrub(4);
	lose_on_stack();
	scrub(4);
	lose_after_error();
	scrub(4);
	set_thread();
	scrub(4);
	set_work();
	scrub(4);
	hold();
	scrub(4);
	pr_info("lost: done\n");
	return 0;
}

static void __exit lost_exit(void)
{
}

module_init(lost_init);
module_exit(lost_exit);

MODULE_DESCRIPTION("Loses objects in different ways");
MODULE_LICENSE("GPL");
