// How far one CPU comes with its work while the other asks for scans as fast as it can, in percent of how far it comes
// alone. Not a kernel module: a static program for the guest.

#define _GNU_SOURCE
#include "../../scripts/fuzz/libleak.h"
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define SECONDS 3

static void pin(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	if (sched_setaffinity(0, sizeof(set), &set))
		exit(1);
}

static time_t seconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec;
}

int main(void)
{
	volatile unsigned long *count = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	unsigned long alone, beside, scans = 0;
	pid_t child;
	time_t end;

	if (count == MAP_FAILED)
		return 1;
	child = fork();
	if (child == 0) {
		pin(1);
		for (;;)
			++*count;
	}
	pin(0);
	*count = 0;
	sleep(SECONDS);
	alone = *count;
	*count = 0;
	for (end = seconds() + SECONDS; seconds() < end; scans++)
		libleak(LIBLEAK_SCAN, NULL);
	beside = *count;
	kill(child, SIGKILL);
	printf("busy: %lu scans, %lu percent\n", scans, alone ? 100 * beside / alone : 0);
	return 0;
}
