/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the programs in this folder share. Each triggers one leak of an older kernel TIMES times. It
 * runs as root in a test guest and needs nothing but the kernel.
 */
#ifndef LEAKS_H
#define LEAKS_H

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define TIMES 40

/* Ends the program: the leak was not triggered. */
#define fail(what) \
	do { \
		fprintf(stderr, "leaks: %s:%d: %s: %s\n", __FILE__, __LINE__, what, strerror(errno)); \
		exit(1); \
	} while (0)

/* Evaluates a call that must not return a negative value. */
#define must(call) \
	({ \
		long value_ = (call); \
		if (value_ < 0) \
			fail(#call); \
		value_; \
	})

/* Evaluates a call that must fail with this error. */
#define must_fail(call, error) \
	do { \
		errno = 0; \
		if ((call) >= 0 || errno != (error)) \
			fail(#call); \
	} while (0)

/* Tells the test that everything was triggered. */
static inline int triggered(const char *name)
{
	printf("leaks: %s %d\n", name, TIMES);
	return 0;
}

/* Writes a string to a file of /proc, /sys or alike. Returns -1 with errno if it cannot. */
static inline int put(const char *path, const char *text)
{
	int file = open(path, O_WRONLY | O_CLOEXEC), error;
	ssize_t put;

	if (file < 0)
		return -1;
	put = write(file, text, strlen(text));
	error = errno;
	close(file);
	errno = error;
	return put < 0 ? -1 : 0;
}

#endif
