// SPDX-License-Identifier: GPL-2.0
/*
 * Leaks one object in each context in which kernel code runs, each of a size
 * and from a function of its own, and says what and from where:
 *
 *	contexts: leak KIND 0xADDRESS SIZE
 *	contexts: frame KIND FUNCTION+0xOFFSET/0xSIZE [MODULE]
 *
 * with a line for each frame, innermost first, as the kernel's own unwinder
 * sees them in the leaking function just after the allocation. The innermost
 * is the function that called kmalloc(); its offset is that of another call.
 *
 * KIND process is leaked when somebody writes to /proc/contexts, all others
 * when the module is loaded. Parameters:
 *
 *	loop=N     leaks N objects of 64 bytes from one place
 *	inlined=1  leaks through an inlined function, and says where it stands:
 *	           contexts: line KIND FILE LINE
 *
 * The module can be unloaded; what it leaked stays.
 *
 * As in leaky.c, no pointer to what is lost may survive: the addresses are
 * kept in a form that is no reference, and stacks are overwritten.
 */
#include <linux/completion.h>
#include <linux/interrupt.h>
#include <linux/irq_work.h>
#include <linux/kernel.h>
#include <linux/kthread.h>
#include <linux/module.h>
#include <linux/proc_fs.h>
#include <linux/sched.h>
#include <linux/slab.h>
#include <linux/smp.h>
#include <linux/stacktrace.h>
#include <linux/string.h>
#include <linux/timer.h>
#include <linux/version.h>
#include <linux/workqueue.h>

static unsigned int loop;
module_param(loop, uint, 0444);
static bool inline_one;
module_param_named(inlined, inline_one, bool, 0444);

#define MAX_FRAMES 32

/* One leak, from where it happens to where it is printed. */
static unsigned long frames[MAX_FRAMES];
static unsigned int frame_count;
static unsigned long hidden;
static DECLARE_COMPLETION(leaked);

/* Keeps the address, and the frames from the caller on. */
static noinline void note(const void *p)
{
	hidden = ~(unsigned long)p;
	/* Without this function itself. */
	frame_count = stack_trace_save(frames, MAX_FRAMES, 1);
	barrier();
}

static noinline void tell(const char *kind, size_t size)
{
	unsigned int i;

	if (hidden == ~0UL) {
		pr_info("contexts: failed %s\n", kind);
		return;
	}
	pr_info("contexts: leak %s 0x%lx %zu\n", kind, ~hidden, size);
	for (i = 0; i < frame_count; i++)
		pr_info("contexts: frame %s %pS\n", kind, (void *)frames[i]);
	hidden = ~0UL;
}

/* Overwrites what a leak left below the caller's stack frame; see leaky.c. */
static noinline void scrub(int depth)
{
	char room[1024];

	memset(room, 0x5a, sizeof(room));
	asm volatile("" : : "r" (room) : "memory");
	if (depth > 1)
		scrub(depth - 1);
	asm volatile("" : : "r" (room) : "memory");
}

/*
 * A leaking function for each kind: nothing may be inlined into another, and
 * no call may become a jump, or the frames would not be these.
 */
#define LEAK(name, size, gfp)				\
	static noinline void leak_##name(void)		\
	{						\
		note(kmalloc(size, gfp));		\
		barrier();				\
	}						\
	static const size_t size_##name = size

LEAK(init, 24, GFP_KERNEL);
/* A size that hardly anybody asks for: no stack has the dead address of what lay there before. */
LEAK(process, 6000, GFP_KERNEL);
LEAK(tasklet, 120, GFP_ATOMIC);
LEAK(softirq, 250, GFP_ATOMIC);
LEAK(hardirq, 500, GFP_ATOMIC);
LEAK(ipi, 700, GFP_ATOMIC);
LEAK(workqueue, 1500, GFP_KERNEL);
LEAK(kthread, 3000, GFP_KERNEL);

/* A leak that happens elsewhere and will be complete. */
static noinline void tell_later(const char *kind, size_t size)
{
	wait_for_completion(&leaked);
	tell(kind, size);
	scrub(4);
}

static void in_tasklet(struct tasklet_struct *unused)
{
	leak_tasklet();
	complete(&leaked);
}

static DECLARE_TASKLET(leaking_tasklet, in_tasklet);

static void in_timer(struct timer_list *unused)
{
	leak_softirq();
	complete(&leaked);
}

static DEFINE_TIMER(leaking_timer, in_timer);

static noinline void stop_timer(void)
{
	/* The callback may still be on its way out. */
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 2, 0)
	timer_delete_sync(&leaking_timer);
#else
	del_timer_sync(&leaking_timer);
#endif
}

static void in_irq_work(struct irq_work *unused)
{
	leak_hardirq();
	complete(&leaked);
}

static struct irq_work leaking_irq_work;

static void in_ipi(void *unused)
{
	leak_ipi();
	complete(&leaked);
}

/* An interrupt on another processor, if there is one. */
static noinline void send_ipi(void)
{
	int cpu = cpumask_any_but(cpu_online_mask, get_cpu());

	if (cpu >= nr_cpu_ids)
		cpu = smp_processor_id();
	smp_call_function_single(cpu, in_ipi, NULL, 1);
	put_cpu();
}

static void in_work(struct work_struct *unused)
{
	leak_workqueue();
	complete(&leaked);
}

static DECLARE_WORK(leaking_work, in_work);

static int in_kthread(void *unused)
{
	leak_kthread();
	complete(&leaked);
	/* So that kthread_stop() finds it. */
	while (!kthread_should_stop())
		schedule_timeout_interruptible(1);
	return 0;
}

static int __init leak_elsewhere(void)
{
	struct task_struct *task;

	tasklet_schedule(&leaking_tasklet);
	tell_later("tasklet", size_tasklet);
	tasklet_kill(&leaking_tasklet);

	mod_timer(&leaking_timer, jiffies + 2);
	tell_later("softirq", size_softirq);
	stop_timer();

	init_irq_work(&leaking_irq_work, in_irq_work);
	irq_work_queue(&leaking_irq_work);
	tell_later("hardirq", size_hardirq);
	irq_work_sync(&leaking_irq_work);

	send_ipi();
	tell_later("ipi", size_ipi);

	schedule_work(&leaking_work);
	tell_later("workqueue", size_workqueue);
	flush_work(&leaking_work);

	task = kthread_run(in_kthread, NULL, "contexts");
	if (IS_ERR(task))
		return PTR_ERR(task);
	tell_later("kthread", size_kthread);
	kthread_stop(task);
	return 0;
}

static ssize_t contexts_write(struct file *file, const char __user *text, size_t n, loff_t *at)
{
	leak_process();
	tell("process", size_process);
	scrub(4);
	return n;
}

static const struct proc_ops contexts_ops = {
	.proc_write = contexts_write,
};

static noinline void leak_loop(void)
{
	unsigned int i, lost = 0;

	for (i = 0; i < loop; i++) {
		if (kmalloc(64, GFP_KERNEL))
			lost++;
		cond_resched();
	}
	pr_info("contexts: loop %u 64\n", lost);
}

static unsigned int inlined_line, inlining_line;

/* kmalloc() is inlined itself; the innermost place is in a header then. */
static __always_inline void *inlined_helper(size_t size)
{
	void *p;

	inlined_line = __LINE__; p = kmalloc(size, GFP_KERNEL);
	return p;
}

static noinline void leak_inlined(void)
{
	void *p;

	inlining_line = __LINE__; p = inlined_helper(1000);
	note(p);
	barrier();
}

static void __init leak_inline(void)
{
	leak_inlined();
	tell("inlined", 1000);
	pr_info("contexts: line inlined %s %u\n", kbasename(__FILE__), inlined_line);
	pr_info("contexts: line inlining %s %u\n", kbasename(__FILE__), inlining_line);
	scrub(4);
}

static int __init contexts_init(void)
{
	int error;

	hidden = ~0UL;
	if (!proc_create("contexts", 0200, NULL, &contexts_ops))
		return -ENOMEM;
	leak_init();
	tell("init", size_init);
	scrub(4);
	error = leak_elsewhere();
	if (error) {
		remove_proc_entry("contexts", NULL);
		return error;
	}
	if (loop)
		leak_loop();
	if (inline_one)
		leak_inline();
	scrub(4);
	pr_info("contexts: done\n");
	return 0;
}

static void __exit contexts_exit(void)
{
	remove_proc_entry("contexts", NULL);
}

module_init(contexts_init);
module_exit(contexts_exit);

MODULE_DESCRIPTION("Leaks in every context");
MODULE_LICENSE("GPL");
