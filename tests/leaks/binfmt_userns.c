// SPDX-License-Identifier: GPL-2.0
/*
 * A process opens a context for binfmt_misc in a user namespace of its own. A process outside
 * creates the superblock, and is refused. The reference to the user namespace that bm_get_tree()
 * took is lost.
 */
#define _GNU_SOURCE
#include "leaks.h"
#include <sched.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#define FSCONFIG_CREATE 6

int main(void)
{
	for (int i = 0; i < TIMES; i++) {
		int status, context;
		/* As fork(), with one table of open files. */
		pid_t child = must(syscall(SYS_clone, CLONE_FILES | SIGCHLD, NULL, NULL, NULL, 0));

		if (child == 0) {
			must(unshare(CLONE_NEWUSER | CLONE_NEWNS));
			_exit(must(syscall(SYS_fsopen, "binfmt_misc", 0)));
		}
		must(waitpid(child, &status, 0));
		context = WEXITSTATUS(status);
		must_fail(syscall(SYS_fsconfig, context, FSCONFIG_CREATE, NULL, NULL, 0), EINVAL);
		close(context);
	}
	return triggered("binfmt_userns");
}
