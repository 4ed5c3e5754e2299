// SPDX-License-Identifier: GPL-2.0
/*
 * Takes memory in pages that compress to a third or a half and are all different, and keeps it: where there is less RAM, most of
 * it goes to swap. Goes on in the background when it is done.
 *
 *	hog [MIB]	how much (600)
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	size_t pages = (size_t)(argc > 1 ? atoi(argv[1]) : 600) << 8, i, k;
	unsigned long x = 88172645463325252UL;
	unsigned char *at = mmap(NULL, pages << 12, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (at == MAP_FAILED) {
		perror("mmap");
		return 1;
	}
	for (i = 0; i < pages; i++) {
		/* 600 to 2500 bytes that do not compress: size classes of one to four pages a zspage. */
		unsigned long *page = (unsigned long *)(at + (i << 12));
		size_t words = 75 + i % 240;

		for (k = 0; k < words; k++) {
			x ^= x << 13;
			x ^= x >> 7;
			x ^= x << 17;
			page[k] = x;
		}
	}
	printf("hog: %zu pages\n", pages);
	fflush(stdout);
	if (fork() > 0)
		_exit(0);
	pause();
	return 0;
}
