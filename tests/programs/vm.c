// SPDX-License-Identifier: GPL-2.0
/*
 * Runs a guest of its own under KVM, whose kernel mode calls the addresses that the outer kernel's kfree() and kmalloc() have,
 * where this guest has code of its own: nothing of it is the outer kernel's.
 */
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#define MEMORY (2 << 20)
#define TABLES 0x1000
#define MAIN 0x80000
#define CODE 0x100000
#define CALLS 1000
#define TABLE_FLAGS 3

static uint8_t *memory;
static uint64_t next_table = TABLES + 0x1000;
static uint64_t next_code = CODE;

static void fail(const char *what)
{
	printf("vm: %s: %m\n", what);
	exit(1);
}

/* Maps the page of a virtual address to one of this guest's memory, and gives its number. */
static void map(uint64_t at, uint64_t to)
{
	uint64_t table = TABLES;

	for (int shift = 39; shift > 12; shift -= 9) {
		uint64_t *entry = (uint64_t *)(memory + table) + ((at >> shift) & 511);

		if (!*entry) {
			*entry = next_table | TABLE_FLAGS;
			next_table += 0x1000;
		}
		table = *entry & ~0xfffULL;
	}
	((uint64_t *)(memory + table))[(at >> 12) & 511] = to | TABLE_FLAGS;
}

static uint64_t symbol(const char *wanted)
{
	FILE *f = fopen("/proc/kallsyms", "r");
	unsigned long long at;
	char kind, name[512], line[1024];

	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "%llx %c %511s", &at, &kind, name) == 3 && !strcmp(name, wanted)) {
			fclose(f);
			return at;
		}
	return 0;
}

static uint8_t *emit(uint8_t *p, const void *bytes, size_t n)
{
	memcpy(p, bytes, n);
	return p + n;
}

int main(void)
{
	static const char *names[] = { "kfree", "__kmalloc", "__kmalloc_noprof", "__kmalloc_cache_noprof", "vfree" };
	uint64_t object = 0xffff888000123400ULL;
	struct kvm_sregs sregs;
	struct kvm_regs regs = { .rip = MAIN, .rsp = MAIN, .rflags = 2 };
	struct kvm_run *run;
	int kvm = open("/dev/kvm", O_RDWR), vm, vcpu, functions = 0;
	uint8_t *p, *loop;

	memory = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (kvm < 0 || memory == MAP_FAILED)
		fail("/dev/kvm");
	vm = ioctl(kvm, KVM_CREATE_VM, 0);
	struct kvm_userspace_memory_region region = { .memory_size = MEMORY, .userspace_addr = (uint64_t)memory };
	if (vm < 0 || ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region) < 0)
		fail("the machine");

	map(MAIN, MAIN);
	map(MAIN - 0x1000, MAIN - 0x1000);
	/* rbx = CALLS, and then call each of them so often. */
	p = memory + MAIN;
	p = emit(p, "\x48\xc7\xc3", 3);
	p = emit(p, &(uint32_t){ CALLS }, 4);
	loop = p;
	for (unsigned int i = 0; i < sizeof(names) / sizeof(*names); i++) {
		uint64_t at = symbol(names[i]);

		if (!at)
			continue;
		/* Two may be in one page. */
		map(at, next_code);
		memset(memory + next_code, 0xc3, 0x1000);
		next_code += 0x1000;
		p = emit(p, "\x48\xbf", 2); /* mov rdi, object */
		p = emit(p, &object, 8);
		p = emit(p, "\x48\xb8", 2); /* mov rax, at; call rax */
		p = emit(p, &at, 8);
		p = emit(p, "\xff\xd0", 2);
		functions++;
	}
	p = emit(p, "\x48\xff\xcb\x0f\x85", 5); /* dec rbx; jnz loop */
	p = emit(p, &(int32_t){ loop - (p + 4) }, 4);
	p = emit(p, "\xe6\x10", 2); /* out 0x10, al */

	vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
	run = mmap(NULL, ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
	if (vcpu < 0 || run == MAP_FAILED || ioctl(vcpu, KVM_GET_SREGS, &sregs) < 0)
		fail("the processor");
	sregs.cr0 = 0x80000001; /* PG, PE */
	sregs.cr4 = 0x20; /* PAE */
	sregs.efer = 0x500; /* LMA, LME */
	sregs.cr3 = TABLES;
	sregs.cs = (struct kvm_segment){ .selector = 8, .type = 11, .present = 1, .s = 1, .l = 1, .g = 1, .limit = ~0 };
	sregs.ss = sregs.ds = sregs.es = (struct kvm_segment){ .selector = 16, .type = 3, .present = 1, .s = 1, .db = 1, .g = 1,
							       .limit = ~0 };
	if (ioctl(vcpu, KVM_SET_SREGS, &sregs) < 0 || ioctl(vcpu, KVM_SET_REGS, &regs) < 0)
		fail("its registers");
	do {
		if (ioctl(vcpu, KVM_RUN, 0) < 0)
			fail("running");
	} while (run->exit_reason == KVM_EXIT_INTR);
	if (run->exit_reason != KVM_EXIT_IO) {
		ioctl(vcpu, KVM_GET_REGS, &regs);
		printf("vm: ended by %d at %llx\n", run->exit_reason, regs.rip);
		return 1;
	}
	printf("vm: called %d functions %d times\n", functions, CALLS);
	return 0;
}
