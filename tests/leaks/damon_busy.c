// SPDX-License-Identifier: GPL-2.0
/*
 * Starts DAMON for a process while DAMON_RECLAIM runs, which excludes others.
 * damon_sysfs_turn_damon_on() fails. It keeps its reference to the struct pid.
 */
#include "leaks.h"
#include <signal.h>
#include <sys/wait.h>

#define DAMON "/sys/kernel/mm/damon/admin/kdamonds/"
#define CONTEXTS DAMON "0/contexts/"
#define TARGETS CONTEXTS "0/targets/"

int main(void)
{
	must(put("/sys/module/damon_reclaim/parameters/enabled", "Y"));
	must(put(DAMON "nr_kdamonds", "1"));
	must(put(CONTEXTS "nr_contexts", "1"));
	must(put(CONTEXTS "0/operations", "vaddr"));
	must(put(TARGETS "nr_targets", "1"));
	for (int i = 0; i < TIMES; i++) {
		char number[20];
		pid_t child = must(fork());

		if (child == 0) {
			pause();
			_exit(0);
		}
		snprintf(number, sizeof(number), "%d", child);
		must(put(TARGETS "0/pid_target", number));
		must_fail(put(DAMON "0/state", "on"), EBUSY);
		kill(child, SIGKILL);
		must(waitpid(child, NULL, 0));
	}
	must(put(DAMON "nr_kdamonds", "0"));
	must(put("/sys/module/damon_reclaim/parameters/enabled", "N"));
	return triggered("damon_busy");
}
