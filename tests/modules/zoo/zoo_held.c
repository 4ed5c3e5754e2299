// SPDX-License-Identifier: GPL-2.0
/*
 * What is held, each specimen in one way only. Everything that holds hangs from
 * the module's own data, from a stack, or from the kernel's queues.
 */
#include "zoo.h"

#include <linux/completion.h>
#include <linux/idr.h>
#include <linux/kernel.h>
#include <linux/kthread.h>
#include <linux/list_bl.h>
#if __has_include(<linux/maple_tree.h>)
#include <linux/maple_tree.h>
#endif
#include <linux/mempool.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/percpu-refcount.h>
#include <linux/percpu.h>
#include <linux/radix-tree.h>
#include <linux/rbtree.h>
#include <linux/rhashtable.h>
#include <linux/skbuff.h>
#include <linux/slab.h>
#include <linux/srcu.h>
#include <linux/string.h>
#include <linux/timer.h>
#include <linux/vmalloc.h>
#include <linux/workqueue.h>
#include <linux/xarray.h>

#define FAR_AWAY (3600 * HZ)

/* A pointer that the compiler must keep, although nobody reads it. */
typedef void *volatile holder_t;

/* A new specimen. Where its only pointer goes is the caller's business. */
static noinline void *specimen(const char *kind, size_t size)
{
	void *p = kzalloc(size, GFP_KERNEL);

	zoo_held(kind, p, ksize(p));
	return p;
}

static holder_t in_data = (void *)&in_data;
static holder_t in_bss;
static holder_t in_ro_after_init __ro_after_init;
static holder_t middle, low_bits, last_byte;

static void hold_in_data(void)
{
	in_data = specimen("data", 88);
	in_bss = specimen("bss", 88);
	in_ro_after_init = specimen("ro-after-init", 88);
}

static void forget_in_data(void)
{
	in_data = NULL;
	in_bss = NULL;
}

static void hold_by_odd_pointers(void)
{
	void *p = specimen("middle", 2000);

	if (p)
		middle = p + 1000;
	p = specimen("low-bits", 64);
	if (p)
		low_bits = (void *)((unsigned long)p | 3);
	p = specimen("last-byte", 512);
	if (p)
		last_byte = p + 511;
}

static void forget_odd_pointers(void)
{
	middle = NULL;
	low_bits = NULL;
	last_byte = NULL;
}

/* Blocks that are no slab objects. */
static holder_t large, large_middle, vmalloced, vmalloced_middle;
static void __percpu *volatile percpu_block;

static void hold_large(void)
{
	large = kmalloc(30000, GFP_KERNEL);
	zoo_held("kmalloc-large", large, 30000);
	large_middle = kmalloc(30000, GFP_KERNEL);
	zoo_held("kmalloc-large-middle", large_middle, 30000);
	if (large_middle)
		large_middle += 20000;
}

static void hold_vmalloc(void)
{
	vmalloced = vmalloc(2 * PAGE_SIZE);
	zoo_held("vmalloc", vmalloced, 2 * PAGE_SIZE);
	vmalloced_middle = vmalloc(4 * PAGE_SIZE);
	zoo_held("vmalloc-middle", vmalloced_middle, 4 * PAGE_SIZE);
	if (vmalloced_middle)
		vmalloced_middle += 3 * PAGE_SIZE + 10;
}

static void hold_percpu(void)
{
	percpu_block = __alloc_percpu(72, 8);
	zoo_held("percpu", (__force void *)percpu_block, 72);
}

static void forget_blocks(void)
{
	large = NULL;
	large_middle = NULL;
	vmalloced = NULL;
	vmalloced_middle = NULL;
	percpu_block = NULL;
}

struct zoo_entry {
	u64 before[2];
	union {
		struct list_head list;
		struct hlist_bl_node bl;
		struct rb_node rb;
		struct {
			struct rhash_head hash;
			u32 key;
		};
		struct rcu_head rcu;
	};
	u64 after[5];
};

static LIST_HEAD(list);

static void hold_by_list(void)
{
	struct zoo_entry *entry;
	int i;

	for (i = 0; i < 3; i++) {
		entry = specimen("list", sizeof(*entry));
		if (entry)
			list_add_tail(&entry->list, &list);
	}
}

static void forget_list(void)
{
	INIT_LIST_HEAD(&list);
}

static struct hlist_bl_head bl;

/* Its head's low bit is a lock, which is taken here for ever. */
static void hold_by_hlist_bl(void)
{
	struct zoo_entry *entry;
	int i;

	for (i = 0; i < 3; i++) {
		entry = specimen("hlist-bl", sizeof(*entry));
		if (!entry)
			return;
		entry->bl.next = bl.first;
		if (bl.first)
			bl.first->pprev = &entry->bl.next;
		entry->bl.pprev = &bl.first;
		bl.first = &entry->bl;
	}
	bl.first = (void *)((unsigned long)bl.first | 1);
}

static void forget_hlist_bl(void)
{
	bl.first = NULL;
}

static struct rb_root rb = RB_ROOT;

static void hold_by_rbtree(void)
{
	struct rb_node **link, *parent;
	struct zoo_entry *entry;
	int i;

	for (i = 0; i < 7; i++) {
		entry = specimen("rbtree", sizeof(*entry));
		if (!entry)
			return;
		/* Each is larger than all before. */
		parent = NULL;
		for (link = &rb.rb_node; *link; link = &(*link)->rb_right)
			parent = *link;
		rb_link_node(&entry->rb, parent, link);
		rb_insert_color(&entry->rb, &rb);
	}
}

static void forget_rbtree(void)
{
	rb = RB_ROOT;
}

static DEFINE_XARRAY(xarray_of_one);
static DEFINE_XARRAY(xarray);

static void hold_by_xarray(void)
{
	int i;

	/* This one has no nodes. */
	xa_store(&xarray_of_one, 0, specimen("xarray-one", 56), GFP_KERNEL);
	for (i = 0; i < 4; i++) {
		xa_store(&xarray, i * 1000, specimen(i & 1 ? "xarray" : "xarray-marked", 56),
			 GFP_KERNEL);
		if (!(i & 1))
			xa_set_mark(&xarray, i * 1000, XA_MARK_1);
	}
}

static void forget_xarray(void)
{
	xa_init(&xarray_of_one);
	xa_init(&xarray);
}

/* Since 6.1. */
#if __has_include(<linux/maple_tree.h>)
static DEFINE_MTREE(maple);
static DEFINE_MTREE(maple_of_one);

static void hold_by_maple_tree(void)
{
	int i;

	mtree_store_range(&maple_of_one, 0, 0, specimen("maple-one", 104), GFP_KERNEL);
	/* More than one level of nodes. */
	for (i = 0; i < 24; i++)
		mtree_store_range(&maple, i * 100, i * 100 + 50, specimen("maple", 104),
				  GFP_KERNEL);
}

static void forget_maple_tree(void)
{
	mt_init(&maple);
	mt_init(&maple_of_one);
}
#else
static void hold_by_maple_tree(void)
{
}

static void forget_maple_tree(void)
{
}
#endif

static DEFINE_IDR(idr);

static void hold_by_idr(void)
{
	int i;

	for (i = 0; i < 3; i++)
		if (idr_alloc(&idr, specimen("idr", 24), i * 500, 0, GFP_KERNEL) < 0)
			zoo_failed("idr");
}

static void forget_idr(void)
{
	idr_init(&idr);
}

static RADIX_TREE(radix, GFP_KERNEL);

static void hold_by_radix_tree(void)
{
	int i;

	for (i = 0; i < 3; i++)
		if (radix_tree_insert(&radix, 7 + i * 5000, specimen("radix-tree", 40)))
			zoo_failed("radix-tree");
}

static void forget_radix_tree(void)
{
	INIT_RADIX_TREE(&radix, GFP_KERNEL);
}

static const struct rhashtable_params hash_params = {
	.head_offset = offsetof(struct zoo_entry, hash),
	.key_offset = offsetof(struct zoo_entry, key),
	.key_len = sizeof(u32),
};
static struct rhashtable hash;

static void hold_by_rhashtable(void)
{
	struct zoo_entry *entry;
	int i;

	if (rhashtable_init(&hash, &hash_params))
		return zoo_failed("rhashtable");
	for (i = 0; i < 5; i++) {
		entry = specimen("rhashtable", sizeof(*entry));
		if (!entry)
			return;
		entry->key = i;
		if (rhashtable_insert_fast(&hash, &entry->hash, hash_params))
			zoo_failed("rhashtable");
	}
}

static void forget_rhashtable(void)
{
	memset(&hash, 0, sizeof(hash));
}

/* One CPU's copy of a variable, and of an allocated block. */
static DEFINE_PER_CPU(holder_t, variable);
static void *__percpu *volatile copies;

static void hold_in_percpu(void)
{
	int last = cpumask_last(cpu_possible_mask);

	per_cpu(variable, last) = specimen("percpu-variable", 136);
	copies = alloc_percpu(void *);
	if (!copies)
		return zoo_failed("percpu-copy");
	zoo_held("percpu-pointers", (__force void *)copies, sizeof(void *));
	*per_cpu_ptr(copies, last) = specimen("percpu-copy", 136);
}

static void forget_in_percpu(void)
{
	per_cpu(variable, cpumask_last(cpu_possible_mask)) = NULL;
	copies = NULL;
}

/* The low bits of its __percpu pointer are flags, all of which are set here. */
static struct percpu_ref *volatile ref;

static void ignore_ref(struct percpu_ref *unused)
{
}

static void hold_by_percpu_ref(void)
{
	ref = specimen("percpu-ref", sizeof(*ref));
	if (!ref || percpu_ref_init(ref, ignore_ref, PERCPU_REF_ALLOW_REINIT, GFP_KERNEL))
		return zoo_failed("percpu-ref-count");
	zoo_held("percpu-ref-count", (void *)(ref->percpu_count_ptr & ~3UL),
		 sizeof(unsigned long));
	zoo_held("percpu-ref-data", ref->data, ksize(ref->data));
	percpu_ref_get(ref);
	percpu_ref_kill(ref);
}

static void forget_percpu_ref(void)
{
	ref = NULL;
}

static void **volatile vmalloc_holder, **volatile page_holder, **volatile block_holder;
static struct page *volatile private_page;

static void hold_in_pages(void)
{
	vmalloc_holder = vzalloc(2 * PAGE_SIZE);
	page_holder = (void **)get_zeroed_page(GFP_KERNEL);
	/* Not a compound page: the descriptors of its further pages look like those of free ones. */
	block_holder = (void **)__get_free_pages(GFP_KERNEL | __GFP_ZERO, 2);
	private_page = alloc_page(GFP_KERNEL);
	if (!vmalloc_holder || !page_holder || !block_holder || !private_page)
		return zoo_failed("pages");
	vmalloc_holder[700] = specimen("in-vmalloc", 232);
	page_holder[511] = specimen("in-page", 232);
	block_holder[3 * 512 + 5] = specimen("in-block-of-pages", 232);
	set_page_private(private_page, (unsigned long)specimen("page-private", 232));
}

static void forget_in_pages(void)
{
	vmalloc_holder = NULL;
	page_holder[511] = NULL;
	block_holder[3 * 512 + 5] = NULL;
	set_page_private(private_page, 0);
}

/*
 * What only the kernel's queues hold. To forget such a specimen, it must be
 * found again: hence an address that is no reference, only while forgetting.
 */
struct zoo_late {
	u64 before[6];
	struct timer_list timer;
	struct delayed_work work;
};

static unsigned long hidden_timer, hidden_work;

static void ignore_timer(struct timer_list *unused)
{
}

static void ignore_work(struct work_struct *unused)
{
}

static void hold_by_timer(void)
{
	struct zoo_late *late = specimen("timer", sizeof(*late));

	if (!late)
		return;
	timer_setup(&late->timer, ignore_timer, 0);
	mod_timer(&late->timer, jiffies + FAR_AWAY);
	hidden_timer = ~(unsigned long)late;
}

static void hold_by_delayed_work(void)
{
	struct zoo_late *late = specimen("delayed-work", sizeof(*late));

	if (!late)
		return;
	INIT_DELAYED_WORK(&late->work, ignore_work);
	schedule_delayed_work(&late->work, FAR_AWAY);
	hidden_work = ~(unsigned long)late;
}

static void forget_late(void)
{
	struct zoo_late *late = (void *)~hidden_timer;

	mod_timer(&late->timer, jiffies);
	late = (void *)~hidden_work;
	cancel_delayed_work(&late->work);
}

/* A reader that never ends keeps the callback waiting. */
DEFINE_STATIC_SRCU(srcu);
static int srcu_reader;

static void ignore_rcu(struct rcu_head *unused)
{
}

static void hold_by_srcu(void)
{
	struct zoo_entry *entry = specimen("srcu-callback", sizeof(*entry));

	srcu_reader = srcu_read_lock(&srcu);
	if (entry)
		call_srcu(&srcu, &entry->rcu, ignore_rcu);
}

static void forget_srcu(void)
{
	srcu_read_unlock(&srcu, srcu_reader);
	srcu_barrier(&srcu);
}

static struct sk_buff_head queue;

static void hold_by_skb_queue(void)
{
	struct sk_buff *skb;
	int i;

	skb_queue_head_init(&queue);
	for (i = 0; i < 2; i++) {
		skb = alloc_skb(i ? 100 : 3000, GFP_KERNEL);
		if (!skb)
			return zoo_failed("skb");
		zoo_held("skb", skb, sizeof(*skb));
		zoo_held("skb-data", skb->head, ksize(skb->head));
		skb_queue_tail(&queue, skb);
	}
}

static void forget_skb_queue(void)
{
	__skb_queue_head_init(&queue);
}

static mempool_t *volatile pool;

static void hold_by_mempool(void)
{
	/* To CONFIG_KASAN an element in reserve is free, so it must not be asked for its size. */
	void *like = kmalloc(160, GFP_KERNEL);
	size_t size = ksize(like);
	int i;

	kfree(like);
	pool = mempool_create_kmalloc_pool(4, 160);
	if (!pool)
		return zoo_failed("mempool");
	zoo_held("mempool", pool, ksize(pool));
	for (i = 0; i < 4; i++)
		zoo_held("mempool-element", pool->elements[i], size);
}

static void forget_mempool(void)
{
	pool = NULL;
}

/* What only a sleeping thread holds, on its stack or in a register. */
static struct task_struct *stack_task, *register_task;
static DECLARE_COMPLETION(ready);

static noinline void *thread_specimen(void)
{
	void *p = kzalloc(176, GFP_KERNEL);

	zoo_hand_over(p);
	return p;
}

static noinline void store_specimen(void **where)
{
	*where = thread_specimen();
}

/* Comes back to the caller often, which holds on to its pointer. */
static noinline bool sleep_once(void)
{
	bool stop;

	set_current_state(TASK_IDLE);
	stop = kthread_should_stop();
	if (!stop)
		schedule();
	__set_current_state(TASK_RUNNING);
	return !stop;
}

static int stack_thread(void *unused)
{
	void *kept[4] = {};

	store_specimen(&kept[2]);
	zoo_scrub(6);
	complete(&ready);
	do
		/* Somebody may look at it at any time. */
		asm volatile("" : : "r" (kept) : "memory");
	while (sleep_once());
	return 0;
}

static int register_thread(void *unused)
{
	/* Called functions preserve it. */
	register void *kept asm("r12") = thread_specimen();

	zoo_scrub(6);
	complete(&ready);
	do
		asm volatile("" : "+r" (kept));
	while (sleep_once());
	return 0;
}

static struct task_struct *hold_by_thread(int (*thread)(void *), const char *kind)
{
	struct task_struct *task = kthread_run(thread, NULL, "zoo_held");
	void *p;

	if (IS_ERR(task)) {
		zoo_failed(kind);
		return NULL;
	}
	wait_for_completion(&ready);
	p = zoo_take_over();
	zoo_held(kind, p, ksize(p));
	return task;
}

static void hold_by_threads(void)
{
	stack_task = hold_by_thread(stack_thread, "stack");
	register_task = hold_by_thread(register_thread, "register");
}

static void forget_threads(void)
{
	kthread_stop(stack_task);
	kthread_stop(register_task);
}

static void (*const holders[])(void) = {
	hold_in_data,
	hold_by_odd_pointers,
	hold_large,
	hold_vmalloc,
	hold_percpu,
	hold_by_list,
	hold_by_hlist_bl,
	hold_by_rbtree,
	hold_by_xarray,
	hold_by_maple_tree,
	hold_by_idr,
	hold_by_radix_tree,
	hold_by_rhashtable,
	hold_in_percpu,
	hold_by_percpu_ref,
	hold_in_pages,
	hold_by_timer,
	hold_by_delayed_work,
	hold_by_srcu,
	hold_by_skb_queue,
	hold_by_mempool,
	hold_by_threads,
};

static void (*const forgetters[])(void) = {
	forget_in_data,
	forget_odd_pointers,
	forget_blocks,
	forget_list,
	forget_hlist_bl,
	forget_rbtree,
	forget_xarray,
	forget_maple_tree,
	forget_idr,
	forget_radix_tree,
	forget_rhashtable,
	forget_in_percpu,
	forget_percpu_ref,
	forget_in_pages,
	forget_late,
	forget_srcu,
	forget_skb_queue,
	forget_mempool,
	forget_threads,
};

void zoo_make_held(void)
{
	zoo_each(holders, ARRAY_SIZE(holders));
}

void zoo_forget_held(void)
{
	zoo_each(forgetters, ARRAY_SIZE(forgetters));
}
