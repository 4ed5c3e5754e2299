// SPDX-License-Identifier: GPL-2.0
/*
 * io_uring opens a file into a slot and with O_CLOEXEC, which is refused. __io_openat_prep()
 * forgets the copy of the file's name.
 */
#include "leaks.h"
#include <linux/io_uring.h>
#include <sys/mman.h>
#include <sys/syscall.h>

int main(void)
{
	struct io_uring_params params = { 0 };
	int ring = must(syscall(SYS_io_uring_setup, 4, &params));
	size_t size = params.sq_off.array + params.sq_entries * sizeof(unsigned int);
	char *queue = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring, IORING_OFF_SQ_RING);
	struct io_uring_sqe *entries = mmap(NULL, params.sq_entries * sizeof(struct io_uring_sqe), PROT_READ | PROT_WRITE,
					    MAP_SHARED | MAP_POPULATE, ring, IORING_OFF_SQES);
	unsigned int *tail = (unsigned int *)(queue + params.sq_off.tail), *array = (unsigned int *)(queue + params.sq_off.array);

	if (queue == MAP_FAILED || entries == MAP_FAILED)
		fail("mmap");
	for (int i = 0; i < TIMES; i++) {
		unsigned int at = *tail & (params.sq_entries - 1);

		memset(&entries[at], 0, sizeof(entries[at]));
		entries[at].opcode = IORING_OP_OPENAT;
		entries[at].fd = AT_FDCWD;
		entries[at].addr = (uintptr_t)"/";
		entries[at].open_flags = O_RDONLY | O_CLOEXEC;
		entries[at].file_index = 1;
		array[at] = at;
		__atomic_store_n(tail, *tail + 1, __ATOMIC_RELEASE);
		must(syscall(SYS_io_uring_enter, ring, 1, 0, 0, NULL, 0));
	}
	close(ring);
	return triggered("uring_openat");
}
