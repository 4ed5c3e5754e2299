// A guest that means harm, or that is broken: two processes send markers as fast as they can, with text of all kinds and
// lengths, while they allocate and free. Not a kernel module: a static program for the guest.

#define _GNU_SOURCE
#include "../../scripts/fuzz/libleak.h"
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#define ROUNDS 600
#define SCANS 5
#define LONG 65536

static int put(const char *path, const void *text, size_t len)
{
	int fd = open(path, O_WRONLY);

	if (fd < 0)
		return -1;
	if (write(fd, text, len) < 0 || fd < 0)
		; // Too long for /dev/kmsg: it has been looked at by then.
	close(fd);
	return 0;
}

// A page of text that is not in memory until the kernel reads it.
static char *fresh(const char *text)
{
	int fd = open("/tmp/text", O_RDWR | O_CREAT | O_TRUNC, 0600);
	char *page;

	if (fd < 0 || write(fd, text, strlen(text)) < 0 || ftruncate(fd, 4096))
		return NULL;
	page = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, fd, 0);
	close(fd);
	return page == MAP_FAILED ? NULL : page;
}

static int harass(int cpu)
{
	static char text[LONG];
	cpu_set_t set;
	unsigned int random = 12345 + cpu;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	sched_setaffinity(0, sizeof(set), &set);
	for (int i = 0; i < ROUNDS; i++) {
		int ends[2];
		size_t len = i % 64 == 0 ? LONG : 11 + i % 300;

		if (pipe(ends))
			return 1;
		memcpy(text, "leak:test ", 10);
		for (size_t at = 10; at < len; at++)
			text[at] = random = random * 1103515245 + 12345, text[at] ^= random >> 16;
		put("/proc/self/comm", text, len);
		put("/dev/kmsg", text, len);
		libleak(LIBLEAK_TEST, (const char *)(unsigned long)(i % 2 ? 0 : &text[len - 11 > 200 ? 200 : 0]));
		libleak(1000 + i, 0);
		if (i % (ROUNDS / SCANS) == 0) {
			libleak(LIBLEAK_SCAN, 0);
			put("/proc/self/comm", "leak:scan", 9);
			put("/dev/kmsg", "libleak: clear\n", 15);
		}
		if (i % 256 == 0)
			printf("ok %d %.*s\n", i, 64, text);
		close(ends[0]);
		close(ends[1]);
	}
	return 0;
}

// What the marker's text is in, and how it is written, is the process's own business.
static int odd(void)
{
	char *page = fresh("leak:test fresh");
	struct iovec parts[3] = { { "libleak", 7 }, { ": te", 4 }, { "st parts\n", 9 } };
	int fd = open("/dev/kmsg", O_WRONLY);

	if (!page || put("/proc/self/comm", page, strlen("leak:test fresh")))
		return 1;
	munmap(page, 4096);
	page = fresh("libleak: test fresh line");
	if (!page || put("/dev/kmsg", page, strlen("libleak: test fresh line")))
		return 1;
	if (fd < 0 || writev(fd, parts, 3) != 20)
		return 1;
	close(fd);
	// Nothing is there.
	put("/proc/self/comm", (void *)8, 15);
	put("/proc/self/comm", "fine", 4);
	libleak(LIBLEAK_TEST, 0);
	return 0;
}

int main(void)
{
	int failed = odd(), status;

	for (int cpu = 0; cpu < 2; cpu++)
		if (fork() == 0)
			exit(harass(cpu));
	for (int cpu = 0; cpu < 2; cpu++)
		if (wait(&status) < 0 || status != 0)
			failed = 1;
	libleak(LIBLEAK_TEST, 0);
	return failed;
}
