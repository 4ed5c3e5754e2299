// How far one CPU comes with its work while the other asks for scans as fast as it can, in percent of how far it comes
// alone. Not a kernel module: a static program for the guest.

#define _GNU_SOURCE
#include "../../scripts/fuzz/libleak.h"
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>
#include <x86intrin.h>

#define SECONDS 3

static void pin(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	if (sched_setaffinity(0, sizeof(set), &set))
		exit(1);
}

int main(void)
{
	volatile unsigned long *count = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	unsigned long alone, beside, scans = 0;
	// Of the machine's own counter: the kernel's clock may lag behind when all CPUs stand still.
	unsigned long long start, ticks;
	pid_t child;

	if (count == MAP_FAILED)
		return 1;
	child = fork();
	if (child == 0) {
		pin(1);
		for (;;)
			++*count;
	}
	pin(0);
	sleep(1);
	// It is never set back: the child may be about to write what it has read.
	alone = *count;
	start = __rdtsc();
	sleep(SECONDS);
	ticks = __rdtsc() - start;
	alone = *count - alone;
	beside = *count;
	for (start = __rdtsc(); __rdtsc() - start < ticks; scans++)
		libleak(LIBLEAK_SCAN, NULL);
	beside = *count - beside;
	kill(child, SIGKILL);
	printf("busy: %lu scans, %lu percent\n", scans, alone ? 100 * beside / alone : 0);
	return 0;
}
