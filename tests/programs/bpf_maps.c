// A BPF program that makes a BPF map, run once: what the map is made of is allocated below the program's own frame. Not a
// kernel module: a static program for the guest. The map lives as long as the program's file descriptor to it, so it
// stays when that is kept open, and so does its backtrace.

#include <linux/bpf.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define INSN(op, d, s, o, i) { .code = (op), .dst_reg = (d), .src_reg = (s), .off = (o), .imm = (i) }
#define ATTR 72

static int bpf(int command, union bpf_attr *attr)
{
	return syscall(SYS_bpf, command, attr, sizeof(*attr));
}

int main(void)
{
	struct bpf_insn code[32];
	int n = 0;
	union bpf_attr attr;
	int program, result;

	// An attr of zeroes on the program's stack, and in it: type, key size, value size, entries.
	for (int at = -ATTR; at < 0; at += 8)
		code[n++] = (struct bpf_insn)INSN(BPF_ST | BPF_MEM | BPF_DW, BPF_REG_10, 0, at, 0);
	code[n++] = (struct bpf_insn)INSN(BPF_ST | BPF_MEM | BPF_W, BPF_REG_10, 0, -ATTR, BPF_MAP_TYPE_ARRAY);
	code[n++] = (struct bpf_insn)INSN(BPF_ST | BPF_MEM | BPF_W, BPF_REG_10, 0, -ATTR + 4, 4);
	code[n++] = (struct bpf_insn)INSN(BPF_ST | BPF_MEM | BPF_W, BPF_REG_10, 0, -ATTR + 8, 8);
	code[n++] = (struct bpf_insn)INSN(BPF_ST | BPF_MEM | BPF_W, BPF_REG_10, 0, -ATTR + 12, 16);
	code[n++] = (struct bpf_insn)INSN(BPF_ALU64 | BPF_MOV | BPF_K, BPF_REG_1, 0, 0, BPF_MAP_CREATE);
	code[n++] = (struct bpf_insn)INSN(BPF_ALU64 | BPF_MOV | BPF_X, BPF_REG_2, BPF_REG_10, 0, 0);
	code[n++] = (struct bpf_insn)INSN(BPF_ALU64 | BPF_ADD | BPF_K, BPF_REG_2, 0, 0, -ATTR);
	code[n++] = (struct bpf_insn)INSN(BPF_ALU64 | BPF_MOV | BPF_K, BPF_REG_3, 0, 0, ATTR);
	code[n++] = (struct bpf_insn)INSN(BPF_JMP | BPF_CALL, 0, 0, 0, BPF_FUNC_sys_bpf);
	code[n++] = (struct bpf_insn)INSN(BPF_JMP | BPF_EXIT, 0, 0, 0, 0);

	memset(&attr, 0, sizeof(attr));
	attr.prog_type = BPF_PROG_TYPE_SYSCALL;
	attr.prog_flags = BPF_F_SLEEPABLE;
	attr.insns = (unsigned long)code;
	attr.insn_cnt = n;
	attr.license = (unsigned long)"GPL";
	strcpy(attr.prog_name, "make_a_map");
	program = bpf(BPF_PROG_LOAD, &attr);
	if (program < 0) {
		perror("bpf_maps: load");
		return 1;
	}
	memset(&attr, 0, sizeof(attr));
	attr.test.prog_fd = program;
	result = bpf(BPF_PROG_TEST_RUN, &attr);
	printf("bpf_maps: run %d, map %d\n", result, (int)attr.test.retval);
	fflush(stdout);
	pause();
	return 0;
}
