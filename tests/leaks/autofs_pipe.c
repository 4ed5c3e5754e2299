// SPDX-License-Identifier: GPL-2.0
/*
 * Mounts autofs with a pipe and with a process group that does not exist. The superblock is still
 * catatonic when the mount fails. autofs_kill_sb() then leaves the pipe open.
 */
#include "leaks.h"
#include <sys/mount.h>
#include <sys/stat.h>

int main(void)
{
	must(mkdir("/tmp/autofs", 0755));
	for (int i = 0; i < TIMES; i++) {
		char options[100];
		int ends[2];

		must(pipe(ends));
		snprintf(options, sizeof(options), "fd=%d,pgrp=4194303,minproto=5,maxproto=5", ends[1]);
		must_fail(mount("leaks", "/tmp/autofs", "autofs", 0, options), EINVAL);
		close(ends[0]);
		close(ends[1]);
	}
	rmdir("/tmp/autofs");
	return triggered("autofs_pipe");
}
