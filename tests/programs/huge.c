// SPDX-License-Identifier: GPL-2.0
/*
 * Has the addresses of what the module `leaky` lost in user memory, and nowhere else: in a page of hugetlb that it keeps, in one that it
 * gives back to the pool, and in transparent huge pages. Goes on in the background when it is done.
 *
 *	huge [SHIFT]	the size of the pages of hugetlb is 1 << SHIFT bytes (21)
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef MAP_HUGE_SHIFT
#define MAP_HUGE_SHIFT 26
#endif
#define MANY 64
#define TRANSPARENT (16UL << 20)

static unsigned long lost[MANY];
static int losses;

/* Each record of the kernel's log is read by itself. */
static void read_log(void)
{
	char line[1024], *at;
	int log = open("/dev/kmsg", O_RDONLY | O_NONBLOCK);
	ssize_t got;

	while (log >= 0 && (got = read(log, line, sizeof(line) - 1)) > 0) {
		line[got] = 0;
		at = strstr(line, "leaky: leak ");
		at = at ? strstr(at, " 0x") : NULL;
		if (at && losses < MANY)
			lost[losses++] = strtoul(at, NULL, 16);
	}
	if (log >= 0)
		close(log);
	memset(line, 0, sizeof(line));
}

/* The addresses in every page of 4 KiB, or with a large step only here and there. */
static void fill(unsigned long *memory, size_t size, size_t step)
{
	for (size_t at = 0; at < size; at += step)
		memcpy((char *)memory + at, lost, sizeof(lost));
}

static unsigned long *map(size_t size, int flags)
{
	unsigned long *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);

	if (at == MAP_FAILED) {
		perror("huge: mmap");
		exit(1);
	}
	return at;
}

int main(int argc, char **argv)
{
	int shift = argc > 1 ? atoi(argv[1]) : 21;
	size_t size = 1UL << shift, step = size >> 21 > 8 ? size / 64 : 4096;
	unsigned long *kept, *freed, *transparent;

	read_log();
	/* A pool hands out what it got back last, so both are there at once. */
	kept = map(size, MAP_HUGETLB | shift << MAP_HUGE_SHIFT);
	fill(kept, size, step);
	freed = map(size, MAP_HUGETLB | shift << MAP_HUGE_SHIFT);
	fill(freed, size, step);
	munmap(freed, size);
	transparent = map(TRANSPARENT, 0);
	madvise(transparent, TRANSPARENT, MADV_HUGEPAGE);
	fill(transparent, TRANSPARENT, 4096);
	printf("huge: %d addresses\n", losses);
	fflush(stdout);
	if (fork() > 0)
		_exit(0);
	pause();
	return 0;
}
