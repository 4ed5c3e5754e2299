// SPDX-License-Identifier: GPL-2.0
/*
 * A process asks a message queue for notification. It ends while another process shares its table
 * of open files. The other process closes the queue, which goes away. mqueue_evict_inode() forgets
 * the struct pid of the process that asked.
 */
#define _GNU_SOURCE
#include "leaks.h"
#include <mqueue.h>
#include <sched.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>

int main(void)
{
	for (int i = 0; i < TIMES; i++) {
		struct sigevent event = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1 };
		int status;
		mqd_t queue = must(syscall(SYS_mq_open, "leaks", O_RDWR | O_CREAT, 0600, NULL));
		pid_t child = must(syscall(SYS_clone, CLONE_FILES | SIGCHLD, NULL, NULL, NULL, 0));

		if (child == 0)
			_exit(syscall(SYS_mq_notify, queue, &event) != 0);
		must(waitpid(child, &status, 0));
		if (status)
			fail("mq_notify");
		close(queue);
		must(syscall(SYS_mq_unlink, "leaks"));
	}
	return triggered("mqueue_notify");
}
