// SPDX-License-Identifier: GPL-2.0
/* What is lost. */
#include "zoo.h"

#include <linux/completion.h>
#include <linux/interrupt.h>
#include <linux/irq_work.h>
#include <linux/kernel.h>
#include <linux/kthread.h>
#include <linux/list.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/percpu.h>
#include <linux/sched/task.h>
#include <linux/sched/task_stack.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/timer.h>
#include <linux/vmalloc.h>
#include <linux/workqueue.h>
#include <linux/xarray.h>

/* Asks for the largest object of a size class, and of a bit less. */
static noinline void leak_size_class(size_t size)
{
	char kind[24];
	void *p = kmalloc(size, GFP_KERNEL);

	snprintf(kind, sizeof(kind), "kmalloc-%zu", size);
	zoo_leak(kind, p, ksize(p));
}

static void leak_size_classes(void)
{
	static const size_t sizes[] = {
		8, 16, 32, 64, 96, 128, 192, 256, 512, 1024, 2048, 4096, 8192,
		/* In between. */
		1, 100, 5000,
	};
	size_t i;

	for (i = 0; i < ARRAY_SIZE(sizes); i++) {
		leak_size_class(sizes[i]);
		zoo_scrub(6);
	}
}

/* The compiler chooses the cache when it knows the size. */
static void leak_constant_size(void)
{
	void *p = kmalloc(72, GFP_KERNEL);

	zoo_leak("kmalloc-constant", p, ksize(p));
}

static void leak_kzalloc(void)
{
	void *p = kzalloc(300, GFP_KERNEL);

	zoo_leak("kzalloc", p, ksize(p));
}

static void leak_array(void)
{
	void *p = kcalloc(5, 56, GFP_KERNEL);

	zoo_leak("kcalloc", p, ksize(p));
}

static void leak_accounted(void)
{
	void *p = kmalloc(200, GFP_KERNEL_ACCOUNT);

	zoo_leak("kmalloc-account", p, ksize(p));
}

static void leak_dma(void)
{
	void *p = kmalloc(64, GFP_KERNEL | GFP_DMA);

	zoo_leak("kmalloc-dma", p, ksize(p));
}

static void leak_on_node(void)
{
	void *p = kmalloc_node(120, GFP_KERNEL, 0);

	zoo_leak("kmalloc-node", p, ksize(p));
}

static noinline void leak_large_of(size_t size)
{
	void *p = kmalloc(size, GFP_KERNEL);

	zoo_leak("kmalloc-large", p, size);
}

static void leak_large(void)
{
	leak_large_of(20000);
	zoo_scrub(6);
	leak_large_of(1 << 20);
}

/* Of its own constructor's making, so that the cache is merged with no other. */
struct zoo_animal {
	u64 word[25];
};

static void construct(void *object)
{
	memset(object, 0, sizeof(struct zoo_animal));
}

static struct kmem_cache *plain_cache, *constructed_cache, *rcu_cache;

static noinline void *leak_from(struct kmem_cache *cache)
{
	return cache ? kmem_cache_alloc(cache, GFP_KERNEL) : NULL;
}

static void leak_from_plain_cache(void)
{
	/* The kernel may merge it with another cache, whose objects are larger. */
	plain_cache = kmem_cache_create("zoo_plain", sizeof(struct zoo_animal), 0, 0, NULL);
	zoo_leak("cache", leak_from(plain_cache), kmem_cache_size(plain_cache));
}

static void leak_from_constructed_cache(void)
{
	constructed_cache = kmem_cache_create("zoo_constructed", sizeof(struct zoo_animal),
					      0, 0, construct);
	zoo_leak("cache-constructed", leak_from(constructed_cache),
		 kmem_cache_size(constructed_cache));
}

static void leak_from_rcu_cache(void)
{
	rcu_cache = kmem_cache_create("zoo_rcu", sizeof(struct zoo_animal), 0,
				      SLAB_TYPESAFE_BY_RCU, construct);
	zoo_leak("cache-typesafe-by-rcu", leak_from(rcu_cache), kmem_cache_size(rcu_cache));
}

static void leak_zeroed_from_cache(void)
{
	zoo_leak("cache-zalloc", kmem_cache_zalloc(plain_cache, GFP_KERNEL),
		 kmem_cache_size(plain_cache));
}

static void leak_bulk(void)
{
	void *p[8];
	int i;

	if (!kmem_cache_alloc_bulk(plain_cache, GFP_KERNEL, ARRAY_SIZE(p), p))
		return zoo_failed("bulk");
	for (i = 0; i < ARRAY_SIZE(p); i++)
		zoo_leak("bulk", p[i], kmem_cache_size(plain_cache));
}

static noinline void *resized(size_t from, size_t to)
{
	void *p = kmalloc(from, GFP_KERNEL);

	return p ? krealloc(p, to, GFP_KERNEL) : NULL;
}

static void leak_grown(void)
{
	void *p = resized(64, 600);

	zoo_leak("krealloc-grown", p, ksize(p));
}

static void leak_grown_to_large(void)
{
	zoo_leak("krealloc-large", resized(4000, 30000), 30000);
}

static void leak_shrunk(void)
{
	void *p = resized(500, 40);

	zoo_leak("krealloc-shrunk", p, ksize(p));
}

/* p = krealloc(p, ...): when there is no memory, what p pointed to is lost. */
static void leak_by_failed_krealloc(void)
{
	void *p = kmalloc(40, GFP_KERNEL);

	zoo_leak("krealloc-failed", p, ksize(p));
	p = krealloc(p, 64 << 20, GFP_KERNEL | __GFP_NOWARN);
	if (p) {
		kfree(p);
		zoo_failed("krealloc-failed");
	}
}

static noinline void leak_kvmalloc_of(const char *kind, size_t size)
{
	void *p = kvmalloc(size, GFP_KERNEL);

	zoo_leak(kind, p, is_vmalloc_addr(p) ? PAGE_ALIGN(size) : ksize(p));
}

static void leak_kvmalloc(void)
{
	leak_kvmalloc_of("kvmalloc-small", 700);
	zoo_scrub(6);
	/* More than kmalloc has, and whole huge pages. */
	leak_kvmalloc_of("kvmalloc-large", 6 << 20);
}

static void leak_duplicate(void)
{
	static const char original[44] = "a rhinoceros";
	void *p = kmemdup(original, sizeof(original), GFP_KERNEL);

	zoo_leak("kmemdup", p, ksize(p));
}

static void leak_string(void)
{
	char *p = kstrdup("a hippopotamus and an elephant", GFP_KERNEL);

	zoo_leak("kstrdup", p, ksize(p));
}

static void leak_printed_string(void)
{
	char *p = kasprintf(GFP_KERNEL, "%d bears and %s", 3, "a wolf");

	zoo_leak("kasprintf", p, ksize(p));
}

static void leak_vmalloc(void)
{
	zoo_leak("vmalloc", vmalloc(3 * PAGE_SIZE), 3 * PAGE_SIZE);
	zoo_scrub(6);
	zoo_leak("vzalloc", vzalloc(100), PAGE_SIZE);
}

/* A pointer to what lies after it is no pointer to it; a guard page lies there. */
static noinline void *end_of_block(void)
{
	void *p = vmalloc(PAGE_SIZE);

	zoo_leak("vmalloc-past-end", p, PAGE_SIZE);
	return p ? p + PAGE_SIZE : NULL;
}

static void *volatile past_end;

static void leak_past_end(void)
{
	past_end = end_of_block();
}

static void leak_percpu(void)
{
	void __percpu *p = __alloc_percpu(64, 8);

	/* The __percpu pointer, as the allocator hands it out. */
	zoo_leak("percpu", (__force void *)p, 64);
}

static void leak_odd_percpu(void)
{
	zoo_leak("percpu-odd", (__force void *)__alloc_percpu(30, 2), 32);
}

struct zoo_node {
	u64 before[3];
	struct zoo_node *next[2];
	u64 after[7];
};

/* Chains, rings and trees are made of nodes that only lost ones refer to. */
static noinline bool make_nodes(const char *kind, struct zoo_node **node, int n)
{
	int i;

	for (i = 0; i < n; i++) {
		node[i] = kzalloc(sizeof(*node[i]), GFP_KERNEL);
		if (!node[i]) {
			zoo_failed(kind);
			return false;
		}
		zoo_leak(kind, node[i], ksize(node[i]));
	}
	return true;
}

static void leak_chain(void)
{
	struct zoo_node *node[3];

	if (!make_nodes("chain", node, 3))
		return;
	node[0]->next[0] = node[1];
	node[1]->next[0] = node[2];
}

static void leak_ring(void)
{
	struct zoo_node *node[2];

	if (!make_nodes("ring", node, 2))
		return;
	node[0]->next[0] = node[1];
	node[1]->next[0] = node[0];
}

static void leak_tree(void)
{
	struct zoo_node *node[7];
	int i;

	if (!make_nodes("tree", node, 7))
		return;
	for (i = 0; i < 3; i++) {
		node[i]->next[0] = node[2 * i + 1];
		node[i]->next[1] = node[2 * i + 2];
	}
}

static noinline int prepare(int broken)
{
	struct zoo_node *a, *b;

	a = kzalloc(sizeof(*a), GFP_KERNEL);
	b = kzalloc(sizeof(*b), GFP_KERNEL);
	zoo_leak("error-path", a, ksize(a));
	if (broken) {
		/* Should free the other one as well. */
		kfree(b);
		return -EINVAL;
	}
	kfree(b);
	kfree(a);
	return 0;
}

static void leak_on_error_path(void)
{
	prepare(1);
}

/* What held it is gone, but memory that was freed is not overwritten. */
static void leak_in_freed_slab_object(void)
{
	struct zoo_node *holder = kzalloc(sizeof(*holder), GFP_KERNEL);
	void *p = kzalloc(24, GFP_KERNEL);

	zoo_leak("holder-freed", p, ksize(p));
	if (holder)
		holder->next[1] = p;
	barrier();
	kfree(holder);
}

static void leak_in_freed_page(void)
{
	void **holder = (void **)__get_free_page(GFP_KERNEL);
	void *p = kzalloc(24, GFP_KERNEL);

	zoo_leak("holder-page-freed", p, ksize(p));
	if (!holder)
		return zoo_failed("holder-page-freed");
	WRITE_ONCE(holder[300], p);
	free_page((unsigned long)holder);
}

static void leak_in_freed_vmalloc(void)
{
	void **holder = vmalloc(2 * PAGE_SIZE);
	void *p = kzalloc(24, GFP_KERNEL);

	zoo_leak("holder-vmalloc-freed", p, ksize(p));
	if (!holder)
		return zoo_failed("holder-vmalloc-freed");
	WRITE_ONCE(holder[700], p);
	vfree(holder);
}

static void leak_in_freed_percpu(void)
{
	void *__percpu *holder = alloc_percpu(void *);
	void *p = kzalloc(24, GFP_KERNEL);

	zoo_leak("holder-percpu-freed", p, ksize(p));
	if (!holder)
		return zoo_failed("holder-percpu-freed");
	WRITE_ONCE(*per_cpu_ptr(holder, 0), p);
	free_percpu(holder);
}

static DEFINE_XARRAY(erased_from);

static void leak_erased(void)
{
	void *p = kzalloc(48, GFP_KERNEL);
	int i;

	zoo_leak("xarray-erased", p, ksize(p));
	for (i = 0; i < 3; i++)
		xa_store(&erased_from, 100 + i, p, GFP_KERNEL);
	for (i = 0; i < 3; i++)
		xa_erase(&erased_from, 100 + i);
}

static LIST_HEAD(deleted_from);

static void leak_deleted(void)
{
	struct list_head *p = kzalloc(80, GFP_KERNEL);

	zoo_leak("list-deleted", p, ksize(p));
	if (!p)
		return;
	list_add(p, &deleted_from);
	list_del(p);
}

/* In other contexts: what is leaked there is printed here. */
static DECLARE_COMPLETION(leaked);

static noinline void leak_elsewhere(gfp_t gfp)
{
	zoo_hand_over(kmalloc(150, gfp));
}

static void leak_and_complete(gfp_t gfp)
{
	leak_elsewhere(gfp);
	/* The stacks of interrupts are as large, but for the page that is used already. */
	zoo_scrub(4);
	complete(&leaked);
}

static noinline void printed_elsewhere(const char *kind)
{
	void *p;

	wait_for_completion(&leaked);
	p = zoo_take_over();
	zoo_leak(kind, p, ksize(p));
}

static void tasklet(struct tasklet_struct *unused)
{
	leak_and_complete(GFP_ATOMIC);
}

static DECLARE_TASKLET(leaking_tasklet, tasklet);

static void leak_in_softirq(void)
{
	tasklet_schedule(&leaking_tasklet);
	printed_elsewhere("softirq");
}

static void timer(struct timer_list *unused)
{
	leak_and_complete(GFP_ATOMIC);
}

static DEFINE_TIMER(leaking_timer, timer);

static void leak_in_timer(void)
{
	mod_timer(&leaking_timer, jiffies + 2);
	printed_elsewhere("timer");
}

static void hardirq(struct irq_work *unused)
{
	leak_and_complete(GFP_ATOMIC);
}

static struct irq_work leaking_irq_work;

static void leak_in_hardirq(void)
{
	init_irq_work(&leaking_irq_work, hardirq);
	irq_work_queue(&leaking_irq_work);
	printed_elsewhere("hardirq");
}

static void work(struct work_struct *unused)
{
	leak_and_complete(GFP_KERNEL);
}

static DECLARE_WORK(leaking_work, work);

static void leak_in_workqueue(void)
{
	schedule_work(&leaking_work);
	printed_elsewhere("workqueue");
	flush_work(&leaking_work);
}

static noinline void until_stopped(void)
{
	for (;;) {
		set_current_state(TASK_IDLE);
		if (kthread_should_stop())
			break;
		schedule();
	}
	__set_current_state(TASK_RUNNING);
}

static int kthread(void *unused)
{
	leak_and_complete(GFP_KERNEL);
	until_stopped();
	return 0;
}

static void leak_in_kthread(void)
{
	struct task_struct *task = kthread_run(kthread, NULL, "zoo_leak");

	if (IS_ERR(task))
		return zoo_failed("kthread");
	printed_elsewhere("kthread");
	kthread_stop(task);
}

/* It is on the stack until the task ends, and then nobody's. */
static int stack_holder(void *unused)
{
	void *volatile kept = kmalloc(150, GFP_KERNEL);

	zoo_hand_over(kept);
	complete(&leaked);
	until_stopped();
	return kept ? 0 : -ENOMEM;
}

static void leak_on_dead_stack(void)
{
	struct task_struct *task = kthread_run(stack_holder, NULL, "zoo_dead");

	if (IS_ERR(task))
		return zoo_failed("dead-stack");
	printed_elsewhere("dead-stack");
	kthread_stop(task);
}

/* A word on the part of the first idle task's stack that is not in use. */
static noinline void leak_below_idle_stack(void)
{
	void *volatile *stack = task_stack_page(&init_task);
	void *p = kmalloc(150, GFP_KERNEL);

	zoo_leak("below-idle-stack", p, ksize(p));
	/* The end of the stack has a magic number. */
	stack[32] = p;
}

static void (*const leaks[])(void) = {
	leak_size_classes,
	leak_constant_size,
	leak_kzalloc,
	leak_array,
	leak_accounted,
	leak_dma,
	leak_on_node,
	leak_large,
	leak_from_plain_cache,
	leak_from_constructed_cache,
	leak_from_rcu_cache,
	leak_zeroed_from_cache,
	leak_bulk,
	leak_grown,
	leak_grown_to_large,
	leak_shrunk,
	leak_by_failed_krealloc,
	leak_kvmalloc,
	leak_duplicate,
	leak_string,
	leak_printed_string,
	leak_vmalloc,
	leak_past_end,
	leak_percpu,
	leak_odd_percpu,
	leak_chain,
	leak_ring,
	leak_tree,
	leak_on_error_path,
	leak_in_freed_slab_object,
	leak_in_freed_page,
	leak_in_freed_vmalloc,
	leak_in_freed_percpu,
	leak_erased,
	leak_deleted,
	leak_in_softirq,
	leak_in_timer,
	leak_in_hardirq,
	leak_in_workqueue,
	leak_in_kthread,
	leak_on_dead_stack,
	leak_below_idle_stack,
};

void zoo_make_leaks(void)
{
	zoo_each(leaks, ARRAY_SIZE(leaks));
}
