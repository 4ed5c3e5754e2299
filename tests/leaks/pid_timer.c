// SPDX-License-Identifier: GPL-2.0
/*
 * Sleeps on the processor time of a process, which ends meanwhile. A signal then interrupts the
 * sleep. do_cpu_nanosleep() keeps its reference to the struct pid, since the timer of a dead
 * process cannot be disarmed.
 */
#include "leaks.h"
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

static void on_alarm(int signal)
{
	(void)signal;
}

/* Waits until a process waits in clock_nanosleep(). */
static void wait_for_sleep(pid_t process)
{
	char path[40], text[20];

	snprintf(path, sizeof(path), "/proc/%d/syscall", process);
	do {
		int file = must(open(path, O_RDONLY));
		ssize_t size = must(read(file, text, sizeof(text) - 1));

		text[size] = 0;
		close(file);
	} while (atoi(text) != SYS_clock_nanosleep);
}

int main(void)
{
	struct sigaction action = { .sa_handler = on_alarm };
	struct timespec time = { .tv_sec = 1000 };
	pid_t self = getpid();

	/* Children end without a signal and without a wait. */
	signal(SIGCHLD, SIG_IGN);
	must(sigaction(SIGALRM, &action, NULL));
	for (int i = 0; i < TIMES; i++) {
		pid_t child = must(fork());
		int error;

		if (child == 0) {
			wait_for_sleep(self);
			_exit(0);
		}
		if (must(fork()) == 0) {
			while (kill(child, 0) == 0)
				usleep(1000);
			kill(self, SIGALRM);
			_exit(0);
		}
		/* The clock of a process: see clock_getcpuclockid(3). */
		error = clock_nanosleep((clockid_t)(~(unsigned int)child << 3 | 2), 0, &time, NULL);
		if (error != EINTR && error != 0) {
			errno = error;
			fail("clock_nanosleep");
		}
	}
	return triggered("pid_timer");
}
