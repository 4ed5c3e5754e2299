// SPDX-License-Identifier: GPL-2.0-or-later
// Asks libleak from inside the guest, and prints its answer. Build it with:
//
//	cc -O2 -static -o leak-guest guest/*.c
//
// It uses markers (docs/testing-kernels.md), so it needs no device and no network.

#include "leak-guest.h"
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

/* Statuses, as those of leak scan. */
#define LEAKS 23
#define NO_ANSWER 24

static const char usage[] =
	"usage: leak-guest scan          prints what leaked; the status is 23 if there is any\n"
	"       leak-guest clear         ignores what is unreferenced now\n"
	"       leak-guest mark [NAME]   ignores what was allocated before\n"
	"       leak-guest test [NAME]   begins a test, or ends it\n"
	"       leak-guest hello         is libleak here?\n"
	"       leak-guest mount [DIR]   makes /sys/kernel/debug/kmemleak; DIR is another debugfs\n"
	"The status is 24 if libleak does not answer, or if its answer is an error.\n";

struct libleak_answer *ask(unsigned int command, const char *name)
{
	static _Alignas(4096) char buffer[4 << 20];
	struct libleak_answer *answer = (struct libleak_answer *)buffer;
	unsigned long room = sizeof(buffer) - sizeof(*answer) - 1;

	/* A page that is swapped out cannot be written. */
	mlock(buffer, sizeof(buffer));
	libleak_ask(command, name, answer, sizeof(buffer) - 1);
	if (answer->state == LIBLEAK_NONE)
		answer->objects = answer->length = 0;
	answer->text[answer->length < room ? answer->length : room] = 0;
	return answer;
}

/* Prints the answer, and returns the status. */
static int told(const struct libleak_answer *answer)
{
	switch (answer->state) {
	case LIBLEAK_NONE:
		fputs("leak-guest: no answer: this guest is not under libleak, libleak tracks nothing, "
		      "or it has guest-markers=off\n", stderr);
		return NO_ANSWER;
	case LIBLEAK_FAILED:
		fprintf(stderr, "leak-guest: %s", answer->text);
		return NO_ANSWER;
	}
	fputs(answer->text, stdout);
	if (strlen(answer->text) < answer->length)
		fprintf(stderr, "leak-guest: %llu bytes in all; the host has the whole report\n",
			answer->length);
	return answer->state == LIBLEAK_UNRELIABLE ? NO_ANSWER : 0;
}

int main(int argc, char **argv)
{
	static const char *const commands[] = { "hello", "scan", "mark", "clear", "test" };
	const char *word = argc > 1 ? argv[1] : "", *name = argc > 2 ? argv[2] : NULL;

	if (strcmp(word, "mount") == 0 && argc <= 3)
		return mount_kmemleak(name ? name : "/sys/kernel/debug");
	for (unsigned int i = 0; i < sizeof(commands) / sizeof(*commands); i++) {
		struct libleak_answer *answer;
		int status;

		if (strcmp(word, commands[i]) != 0 || argc > 3)
			continue;
		if (name && i != LIBLEAK_MARK && i != LIBLEAK_TEST)
			break;
		answer = ask(i, name);
		status = told(answer);
		return status == 0 && i == LIBLEAK_SCAN && answer->objects ? LEAKS : status;
	}
	fputs(usage, stderr);
	return 2;
}
