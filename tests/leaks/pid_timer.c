// SPDX-License-Identifier: GPL-2.0
/*
 * clock_nanosleep() on the processor time of a process that ends meanwhile, interrupted by a signal: do_cpu_nanosleep() keeps its
 * reference to the struct pid, since the timer cannot be disarmed any more.
 */
#include "leaks.h"
#include <signal.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>

static void on_alarm(int signal)
{
	(void)signal;
}

int main(void)
{
	struct itimerval soon = { .it_value.tv_usec = 60000 };
	struct sigaction action = { .sa_handler = on_alarm };
	struct timespec time = { .tv_sec = 1000 };

	/* Children end without a signal and without a wait. */
	signal(SIGCHLD, SIG_IGN);
	must(sigaction(SIGALRM, &action, NULL));
	for (int i = 0; i < TIMES; i++) {
		pid_t child = must(fork());
		int error;

		if (child == 0) {
			usleep(20000);
			_exit(0);
		}
		must(setitimer(ITIMER_REAL, &soon, NULL));
		/* The clock of a process: see clock_getcpuclockid(3). */
		error = clock_nanosleep((clockid_t)(~(unsigned int)child << 3 | 2), 0, &time, NULL);
		if (error != EINTR && error != 0) {
			errno = error;
			fail("clock_nanosleep");
		}
		if (kill(child, 0) == 0)
			fail("the child has not ended before the signal");
	}
	return triggered("pid_timer");
}
