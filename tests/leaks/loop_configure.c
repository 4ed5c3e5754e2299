// SPDX-License-Identifier: GPL-2.0
/*
 * LOOP_CONFIGURE gets a file that cannot be read, such as a folder. loop_configure() keeps its
 * reference to the file.
 */
#include "leaks.h"
#include <linux/loop.h>
#include <sys/ioctl.h>

int main(void)
{
	int loop = must(open("/dev/loop0", O_RDWR | O_CLOEXEC));

	for (int i = 0; i < TIMES; i++) {
		struct loop_config config = { .fd = must(open("/", O_RDONLY | O_DIRECTORY)) };

		must_fail(ioctl(loop, LOOP_CONFIGURE, &config), EINVAL);
		close(config.fd);
	}
	close(loop);
	return triggered("loop_configure");
}
