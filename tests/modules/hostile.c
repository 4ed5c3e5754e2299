// SPDX-License-Identifier: GPL-2.0
/*
 * A kernel that corrupts its own memory, or calls its allocators as no compiler
 * would:
 *
 *	echo ATTACK >/sys/module/hostile/parameters/attack
 *
 * Attacks on memory stop all processors, overwrite what they attack, have
 * libleak scan by its instruction, and put back what was there, so that many
 * can be made in one boot. The scan is told the attack's name as that of a test.
 * Before each, one object of 1500 bytes is lost:
 *
 *	hostile: lost ATTACK 0xADDRESS
 *	hostile: done ATTACK
 *
 * or "hostile: without ATTACK", where this kernel has nothing to attack.
 * Attack "scan" overwrites nothing. "die-NAME" makes the attack NAME without
 * putting anything back, and panics.
 *
 * Parameter "lose" keeps or loses many objects: "keep COUNT", "lose COUNT".
 */
#include <linux/kdebug.h>
#include <linux/kernel.h>
#include <linux/kprobes.h>
#include <linux/list.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/objtool.h>
#include <linux/random.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/stop_machine.h>
#include <linux/string.h>
#include <linux/uaccess.h>
#include <linux/vmalloc.h>
#include <asm/processor-flags.h>

#define LEAF 0x6c65616bUL
enum { SCAN = 1, TEST = 4 };

/* As scripts/fuzz/libleak.h: the jump ends the block, and then libleak acts. */
static noinline void libleak(unsigned long command, const char *name)
{
	unsigned long a = LEAF, b, c = command, d = (unsigned long)name;

	asm volatile("cpuid\n\tjmp 1f\n1:" : "+a" (a), "=b" (b), "+c" (c), "+d" (d) : : "memory");
}

static unsigned long (*lookup)(const char *name);

static void *find(const char *name)
{
	return (void *)lookup(name);
}

/* What is to be overwritten, and with what. */
struct patch {
	void *at;
	size_t len;
	void *with, *before;
};

static struct patch patches[64];
static unsigned int patch_count;

static void patch(void *at, const void *with, size_t len)
{
	struct patch *p = &patches[patch_count];

	if (!at || patch_count == ARRAY_SIZE(patches))
		return;
	*p = (struct patch) { at, len, kvmalloc(len, GFP_KERNEL), kvmalloc(len, GFP_KERNEL) };
	if (!p->with || !p->before) {
		kvfree(p->with);
		kvfree(p->before);
		return;
	}
	if (with)
		memcpy(p->with, with, len);
	else
		get_random_bytes(p->with, len);
	patch_count++;
}

static void patch_word(void *at, unsigned long with)
{
	patch(at, &with, sizeof(with));
}

static void patch_int(void *at, unsigned int with)
{
	patch(at, &with, sizeof(with));
}

static void patch_random(const char *name, size_t len)
{
	patch(find(name), NULL, len);
}

static bool dies;
/* Something that is to be done while all is overwritten. */
static void (*meanwhile)(void);

static int stopped(void *unused)
{
	unsigned long cr0, flags;
	unsigned int i;

	local_irq_save(flags);
	asm volatile("mov %%cr0, %0" : "=r" (cr0));
	asm volatile("mov %0, %%cr0" : : "r" (cr0 & ~X86_CR0_WP) : "memory");
	for (i = 0; i < patch_count; i++) {
		memcpy(patches[i].before, patches[i].at, patches[i].len);
		memcpy(patches[i].at, patches[i].with, patches[i].len);
	}
	barrier();
	if (meanwhile)
		meanwhile();
	libleak(SCAN, NULL);
	/* What overlaps is put back in the other order. */
	for (i = patch_count; !dies && i-- > 0;)
		memcpy(patches[i].at, patches[i].before, patches[i].len);
	asm volatile("mov %0, %%cr0" : : "r" (cr0) : "memory");
	local_irq_restore(flags);
	if (dies)
		panic("hostile: this is the end");
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

static noinline void lose(const char *what)
{
	pr_info("hostile: lost %s 0x%px\n", what, kzalloc(1500, GFP_KERNEL));
}

/* What attacks are made on, besides what every kernel has. */
static struct kmem_cache *cache;
static void *object, *freed;
static void *area;
static struct page *page;

#define OBJECT_SIZE 520

/* A cache with a constructor is no other one, and has its freelist's pointers behind its objects. */
static void construct(void *p)
{
	memset(p, 0, OBJECT_SIZE);
}

/* Where in a kmem_cache: mm/slab.h, 5.10 to 7.3. */
#define CACHE_SIZE 24
#define CACHE_OBJECT_SIZE 28

/* The member of a kmem_cache that points to its name, before its list. */
static void *cache_name_at(void)
{
	unsigned int at;
	char name[8];

	for (at = 48; at < 160; at += 8) {
		void *p = *(void **)((char *)cache + at);

		if (!copy_from_kernel_nofault(name, p, sizeof(name)) && !strncmp(name, "hostile", 7))
			return (char *)cache + at;
	}
	return NULL;
}

static void *cache_list_at(void)
{
	return cache_name_at() ? (char *)cache_name_at() + 8 : NULL;
}

static struct vmap_area *own_area(void)
{
	struct vmap_area *(*find_vmap_area)(unsigned long) = find("find_vmap_area");

	return find_vmap_area ? find_vmap_area((unsigned long)area) : NULL;
}

static pte_t *own_pte(void)
{
	pte_t *(*lookup_address)(unsigned long, unsigned int *) = find("lookup_address");
	unsigned int level;

	return lookup_address ? lookup_address((unsigned long)area, &level) : NULL;
}

static void kallsyms(void)
{
	patch_random("kallsyms_names", 65536);
	patch_random("kallsyms_token_table", 512);
	patch_random("kallsyms_token_index", 512);
	patch_random("kallsyms_offsets", 65536);
	patch_random("kallsyms_markers", 64);
	patch_random("kallsyms_num_syms", 4);
}

static void types(void)
{
	patch_random("__start_BTF", 65536);
}

static void orc(void)
{
	patch_random("__start_orc_unwind", 65536);
	patch_random("__start_orc_unwind_ip", 65536);
	patch_random("orc_lookup", 4096);
	patch(THIS_MODULE->arch.orc_unwind, NULL, 6 * min(THIS_MODULE->arch.num_orcs, 512u));
	patch(THIS_MODULE->arch.orc_unwind_ip, NULL, 4 * min(THIS_MODULE->arch.num_orcs, 512u));
}

static void banner(void)
{
	patch_random("linux_banner", 64);
	patch_random("init_uts_ns", 390);
}

static void read_only_data(void)
{
	patch_random("__start_rodata", 4096);
}

static void modules(void)
{
	patch_word(&THIS_MODULE->list.next, (unsigned long)&THIS_MODULE->list);
	patch(THIS_MODULE->name, "\033[2J\377\n", 7);
	patch_random("modules", 16);
}

static void percpu_offsets(void)
{
	patch_random("__per_cpu_offset", 16);
}

static void cpus(void)
{
	patch_int(find("nr_cpu_ids"), 8192);
}

static void many_cpus(void)
{
	static unsigned long all[128];

	memset(all, 0xff, sizeof(all));
	patch_int(find("nr_cpu_ids"), 8192);
	patch(find("__cpu_possible_mask"), all, sizeof(all));
}

static void chunks(void)
{
	void **lists = find("pcpu_chunk_lists");

	if (lists)
		patch(*lists, NULL, 256);
}

static void chunk_circle(void)
{
	static struct list_head head;
	void **lists = find("pcpu_chunk_lists");

	head.next = &head;
	if (lists)
		patch_word(*lists, (unsigned long)&head);
}

static void direct_map(void)
{
	patch_random("page_offset_base", 8);
}

static void direct_map_near(void)
{
	unsigned long *base = find("page_offset_base");

	if (base)
		patch_word(base, *base + (1UL << 30));
}

static void descriptors_base(void)
{
	patch_random("vmemmap_base", 8);
}

static void descriptors_near(void)
{
	unsigned long *base = find("vmemmap_base");

	if (base)
		patch_word(base, *base + 64 * 4096);
}

static void vmalloc_base_(void)
{
	patch_random("vmalloc_base", 8);
}

static void area_circle(void)
{
	struct vmap_area *va = own_area();

	if (va)
		patch_word(&va->rb_node.rb_left, (unsigned long)&va->rb_node);
}

static void area_wild(void)
{
	struct vmap_area *va = own_area();

	if (va)
		patch_word(&va->rb_node.rb_right, 0xdead000000000100);
}

static void area_bounds(void)
{
	struct vmap_area *va = own_area();

	if (va)
		patch_word(&va->va_end, ~0UL);
}

static void no_pte(void)
{
	patch_word(own_pte(), 0);
}

static void far_pte(void)
{
	/* Present, and nowhere. */
	patch_word(own_pte(), 0x000ffffffffff063);
}

/* Entries of the kernel's table that are not in use: to the table itself, and with all that is reserved. */
static void tables(void)
{
	unsigned long *top = find("init_top_pgt"), to = 0;
	unsigned int i, n = 0;

	if (!top)
		return;
	to = __pa_symbol((unsigned long)top);
	for (i = 256; i < 512 && n < 16; i++) {
		if (!top[i])
			patch_word(&top[i], n++ % 2 ? ~0UL : to | 0x63);
	}
}

static void descriptors(void)
{
	patch(virt_to_page(object) - 256, NULL, 512 * sizeof(struct page));
}

static void descriptor_of_slab(void)
{
	/* A further page of it may stay one with random bytes, and nothing is wrong then. */
	patch(virt_to_head_page(object), NULL, sizeof(struct page));
}

static void slab_flags(void)
{
	struct page *p = virt_to_head_page(object);

	patch_word(p, 0);
	patch_word((char *)p + 0x30, 0xffffffff);
}

static void free_page_circle(void)
{
	patch_word((char *)page + 8, (unsigned long)page + 8);
}

static void free_page_wild(void)
{
	patch_word((char *)page + 8, 0xdead000000000100);
}

static void freelist_wild(void)
{
	patch(freed, NULL, OBJECT_SIZE + 8);
}

static void freelist_same(void)
{
	static char same[OBJECT_SIZE + 8];

	memset(same, 0x5a, sizeof(same));
	patch(freed, same, sizeof(same));
}

static void cache_size_zero(void)
{
	patch_int((char *)cache + CACHE_SIZE, 0);
}

static void cache_size_huge(void)
{
	patch_int((char *)cache + CACHE_SIZE, 0xfffffff8);
	patch_int((char *)cache + CACHE_OBJECT_SIZE, 0xfffffff0);
}

static void cache_object_size(void)
{
	patch_int((char *)cache + CACHE_OBJECT_SIZE, 8);
}

static void cache_name(void)
{
	patch_word(cache_name_at(), 0xdead000000000100);
}

static void cache_circle(void)
{
	void *list = cache_list_at();

	if (list)
		patch_word(list, (unsigned long)list);
}

static void cache_wild(void)
{
	if (cache_list_at())
		patch_word(cache_list_at(), 0xdead000000000100);
}

static void cache_all(void)
{
	patch(cache, NULL, 160);
}

static void task_circle(void)
{
	patch_word(&current->tasks.next, (unsigned long)&current->tasks);
}

static void task_wild(void)
{
	patch_word(&current->tasks.next, 0xdead000000000100);
}

static void task_threads(void)
{
	patch_word(&current->signal->thread_head.next, (unsigned long)&current->thread_node + 8);
}

static void task_stacks(void)
{
	patch_word(&pid_task(find_vpid(1), PIDTYPE_PID)->stack, 0xdead000000000000);
	patch_word(&pid_task(find_vpid(2), PIDTYPE_PID)->thread.sp, ~0UL - 20);
}

static void list_circle(void)
{
	static struct list_head node;

	node.next = &node;
	patch_word(find("padata_free_works"), (unsigned long)&node);
}

/* What is on no stack and in no structure but this is lost while it is overwritten. */
static void *kept[4];

static void allocate(void)
{
	kept[0] = kmalloc(64, GFP_ATOMIC);
}

static void jiffies_ahead(void)
{
	meanwhile = allocate;
	patch_word(find("jiffies_64"), ~0UL - 5);
}

/* ---- calls that no compiler makes ---- */

static char *other_stack;

/* Calls a function of two arguments on another stack. */
static noinline __noclone void *on_stack(void *f, unsigned long one, unsigned long two, void *top)
{
	unsigned long result;

	asm volatile("mov %%rsp, %%r12\n\tmov %[top], %%rsp\n\tcall *%[f]\n\tmov %%r12, %%rsp"
		     : "=a" (result), "+D" (one), "+S" (two)
		     : [f] "r" (f), [top] "r" (top)
		     : "r12", "rcx", "rdx", "r8", "r9", "r10", "r11", "memory", "cc");
	return (void *)result;
}
STACK_FRAME_NON_STANDARD(on_stack);

/* Jumps to a function with a return address where no call is. */
static noinline __noclone void *forged_return(void *f, unsigned long one, unsigned long two)
{
	unsigned long result;
	void *r10;

	asm volatile("lea 1f(%%rip), %%r10\n\tpush %%r10\n\tjmp *%[f]\n\tud2\n\tnop\n1:"
		     : "=a" (result), "+D" (one), "+S" (two), "=r" (r10)
		     : [f] "r" (f)
		     : "rcx", "rdx", "r8", "r9", "r10", "r11", "memory", "cc");
	return (void *)result;
}
STACK_FRAME_NON_STANDARD(forged_return);

/* An allocator of two arguments, size and flags, in all kernels. */
static void *allocator(void)
{
	void *f = find("__kmalloc_noprof");

	return f ? f : find("__kmalloc");
}

static void tell_lost(const char *what, void *p)
{
	pr_info("hostile: lost %s 0x%px\n", what, p);
}

static noinline void pivot(void)
{
	unsigned long flags;
	void *p;

	local_irq_save(flags);
	p = on_stack(allocator(), 1500, GFP_ATOMIC | __GFP_ZERO, other_stack + 16384 - 64);
	local_irq_restore(flags);
	tell_lost("pivot", p);
	memset(other_stack, 0x5a, 16384);
}

static noinline void forge(void)
{
	unsigned long flags;
	void *p;

	local_irq_save(flags);
	p = forged_return(allocator(), 1500, GFP_ATOMIC | __GFP_ZERO);
	local_irq_restore(flags);
	tell_lost("forge", p);
}

/* Behind the first instruction, which does nothing: no call that libleak can see. */
static noinline void middle(void)
{
	static const u8 endbr64[4] = { 0xf3, 0x0f, 0x1e, 0xfa };
	char *f = allocator();
	void *p = NULL;

	if (!memcmp(f, endbr64, 4))
		p = ((void *(*)(size_t, gfp_t))(f + 4))(1500, GFP_KERNEL | __GFP_ZERO);
	pr_info("hostile: not seen 0x%px\n", p);
}

/* Where to go on after the first instruction of what. */
static unsigned long step_ip, step_sp, step_of;

static int on_step(struct notifier_block *block, unsigned long why, void *data)
{
	struct die_args *args = data;

	if (why != DIE_DEBUG || !step_ip)
		return NOTIFY_DONE;
	/* The first step is the jump. */
	if (args->regs->ip == step_of)
		return NOTIFY_STOP;
	args->regs->ip = step_ip;
	args->regs->sp = step_sp;
	args->regs->flags &= ~X86_EFLAGS_TF;
	step_ip = 0;
	return NOTIFY_STOP;
}

static struct notifier_block stepper = { .notifier_call = on_step };

/* Enters a function, and leaves it after its first instruction for ever. */
static noinline __noclone void abandon(void *f, void *sp, unsigned long a, unsigned long b, unsigned long c, unsigned long d)
{
	register unsigned long r8 asm("r8") = (unsigned long)sp;

	asm volatile("lea 1f(%%rip), %%r10\n\tmov %%r10, %[ip]\n\tmov %%rsp, %[save]\n\t"
		     "mov %[f], %%r11\n\tmov %%r8, %%rsp\n\tpush %%r10\n\t"
		     "pushf\n\torq $0x100, (%%rsp)\n\tpopf\n\tjmp *%%r11\n1:"
		     : [ip] "=m" (step_ip), [save] "=m" (step_sp), "+D" (a), "+S" (b), "+d" (c), "+c" (d), "+r" (r8)
		     : [f] "r" (f)
		     : "rax", "r9", "r10", "r11", "memory", "cc");
}
STACK_FRAME_NON_STANDARD(abandon);

static void abandon_many(void *f, unsigned int count, unsigned long a, unsigned long b, unsigned long c, unsigned long d)
{
	char *room = vmalloc(8 * (unsigned long)count + 65536);
	unsigned int i;

	if (!room)
		return;
	step_of = (unsigned long)f;
	register_die_notifier(&stepper);
	for (i = 0; i < count; i++) {
		unsigned long flags;

		local_irq_save(flags);
		abandon(f, room + 65536 + 8 * (unsigned long)i, a, b, c, d);
		local_irq_restore(flags);
		if (i % 1024 == 0)
			cond_resched();
	}
	unregister_die_notifier(&stepper);
	vfree(room);
}

static void abandoned(void)
{
	abandon_many(allocator(), 100000, 64, GFP_KERNEL, 0, 0);
}

static void absurd(void)
{
	void *bulk = find("kmem_cache_alloc_bulk_noprof"), *array = find("__vmalloc_node_range_noprof");

	bulk = bulk ? bulk : find("kmem_cache_alloc_bulk");
	array = array ? array : find("__vmalloc_node_range");
	abandon_many(bulk, 16, (unsigned long)cache, GFP_KERNEL, ~0UL, 0x1000);
	abandon_many(find("kmem_cache_free_bulk"), 16, (unsigned long)cache, ~0UL, 0xdead000000000000, 0);
	abandon_many(array, 16, ~0UL, 1, 0, ~0UL);
	kfree(kmalloc(~0UL - 8, GFP_KERNEL | __GFP_NOWARN));
	vfree(__vmalloc(~0UL - 8192, GFP_KERNEL | __GFP_NOWARN));
}

static void names(void)
{
	char before[TASK_COMM_LEN];

	memcpy(before, current->comm, sizeof(before));
	memcpy(current->comm, "\033[2J\377\nleak:scan", 15);
	lose("names");
	memcpy(current->comm, before, sizeof(before));
}

static void lines(void)
{
	unsigned int i;

	for (i = 0; i < 20000; i++)
		printk(KERN_DEBUG "%*sok %u \033[2J%u # SKIP\n", 4 * (i % 8), "", i, i);
}

static void markers(void)
{
	unsigned long random;
	unsigned int i;

	for (i = 0; i < 20000; i++) {
		get_random_bytes(&random, sizeof(random));
		libleak(i % 2 ? TEST : random | 8, (void *)random);
	}
	libleak(TEST, NULL);
}

static const struct attack {
	const char *name;
	/* Says what to overwrite, or does by itself what it does. */
	void (*prepare)(void);
	bool by_itself;
} attacks[] = {
	{ "scan" },
	{ "kallsyms", kallsyms },
	{ "btf", types },
	{ "orc", orc },
	{ "banner", banner },
	{ "read-only-data", read_only_data },
	{ "modules", modules },
	{ "percpu-offsets", percpu_offsets },
	{ "cpus", cpus },
	{ "many-cpus", many_cpus },
	{ "chunks", chunks },
	{ "chunk-circle", chunk_circle },
	{ "direct-map", direct_map },
	{ "direct-map-near", direct_map_near },
	{ "vmemmap", descriptors_base },
	{ "vmemmap-near", descriptors_near },
	{ "vmalloc-base", vmalloc_base_ },
	{ "area-circle", area_circle },
	{ "area-wild", area_wild },
	{ "area-bounds", area_bounds },
	{ "pte-none", no_pte },
	{ "pte-beyond", far_pte },
	{ "tables", tables },
	{ "descriptors", descriptors },
	{ "descriptor-of-slab", descriptor_of_slab },
	{ "slab-flags", slab_flags },
	{ "free-page-circle", free_page_circle },
	{ "free-page-wild", free_page_wild },
	{ "freelist-wild", freelist_wild },
	{ "freelist-same", freelist_same },
	{ "cache-size-zero", cache_size_zero },
	{ "cache-size-huge", cache_size_huge },
	{ "cache-object-size", cache_object_size },
	{ "cache-name", cache_name },
	{ "cache-circle", cache_circle },
	{ "cache-wild", cache_wild },
	{ "cache-all", cache_all },
	{ "task-circle", task_circle },
	{ "task-wild", task_wild },
	{ "task-threads", task_threads },
	{ "task-stacks", task_stacks },
	{ "list-circle", list_circle },
	{ "jiffies-ahead", jiffies_ahead },
	{ "pivot", pivot, true },
	{ "forge", forge, true },
	{ "middle", middle, true },
	{ "abandoned", abandoned, true },
	{ "absurd", absurd, true },
	{ "names", names, true },
	{ "lines", lines, true },
	{ "markers", markers, true },
};

static void clear_patches(void)
{
	while (patch_count) {
		struct patch *p = &patches[--patch_count];

		kvfree(p->with);
		kvfree(p->before);
		*p = (struct patch) { };
	}
	meanwhile = NULL;
}

/* A page, and an object, that were given back, and are the next to be given out. */
static bool give_back(void)
{
	page = alloc_page(GFP_KERNEL);
	freed = kmem_cache_alloc(cache, GFP_KERNEL);
	if (!page || !freed)
		return false;
	kmem_cache_free(cache, freed);
	__free_page(page);
	return true;
}

static int attack(const char *text, const struct kernel_param *param)
{
	char name[64];
	const char *what = name;
	unsigned int i;

	if (strscpy(name, text, sizeof(name)) < 0)
		return -EINVAL;
	what = strim(name);
	dies = !strncmp(what, "die-", 4);
	what += dies ? 4 : 0;
	for (i = 0; i < ARRAY_SIZE(attacks); i++) {
		if (!strcmp(attacks[i].name, what))
			break;
	}
	if (i == ARRAY_SIZE(attacks))
		return -EINVAL;
	libleak(TEST, attacks[i].name);
	if (attacks[i].by_itself) {
		attacks[i].prepare();
		scrub(4);
		libleak(SCAN, NULL);
	} else {
		lose(what);
		scrub(4);
		if (attacks[i].prepare && give_back())
			attacks[i].prepare();
		if (attacks[i].prepare && !patch_count) {
			pr_info("hostile: without %s\n", what);
			libleak(TEST, NULL);
			return 0;
		}
		stop_machine(stopped, NULL, NULL);
		clear_patches();
	}
	libleak(TEST, NULL);
	pr_info("hostile: done %s\n", what);
	return 0;
}

/* So many that they have no place but in each other. */
struct link {
	struct link *next;
};

static struct link *links;

static int many(const char *text, const struct kernel_param *param)
{
	unsigned int i, count;
	char what[8];

	if (sscanf(text, "%7s %u", what, &count) != 2)
		return -EINVAL;
	for (i = 0; i < count; i++) {
		struct link *link = kmalloc(8 << i % 3, GFP_KERNEL);

		if (!link)
			return -ENOMEM;
		link->next = NULL;
		if (!strcmp(what, "keep")) {
			link->next = links;
			links = link;
		}
		if (i % 1024 == 0)
			cond_resched();
	}
	pr_info("hostile: %s %u\n", what, count);
	return 0;
}

static const struct kernel_param_ops attack_ops = { .set = attack };
static const struct kernel_param_ops many_ops = { .set = many };
module_param_cb(attack, &attack_ops, NULL, 0200);
module_param_cb(many, &many_ops, NULL, 0200);

static int __init hostile_init(void)
{
	struct kprobe probe = { .symbol_name = "kallsyms_lookup_name" };
	int error = register_kprobe(&probe);

	if (error)
		return error;
	lookup = (void *)probe.addr;
	unregister_kprobe(&probe);
	cache = kmem_cache_create("hostile", OBJECT_SIZE, 0, SLAB_HWCACHE_ALIGN | SLAB_PANIC, construct);
	object = kmem_cache_alloc(cache, GFP_KERNEL);
	area = vmalloc(8 * PAGE_SIZE);
	other_stack = kmalloc(16384, GFP_KERNEL);
	return object && area && other_stack ? 0 : -ENOMEM;
}

static void __exit hostile_exit(void)
{
}

module_init(hostile_init);
module_exit(hostile_exit);

MODULE_DESCRIPTION("Corrupts its kernel's memory");
MODULE_LICENSE("GPL");
