// SPDX-License-Identifier: GPL-2.0-or-later OR MIT
// Sends one marker: marker scan, marker mark [NAME], marker clear, marker test [NAME].
// Build it with: cc -O2 -static -o marker marker.c

#include "libleak.h"
#include <stdio.h>
#include <string.h>

int main(int argc, char **argv)
{
	static const char *const commands[] = { "scan", "mark", "clear", "test" };

	for (unsigned int i = 0; argc >= 2 && i < sizeof(commands) / sizeof(*commands); i++) {
		if (strcmp(argv[1], commands[i]) == 0) {
			libleak(LIBLEAK_SCAN + i, argc > 2 ? argv[2] : 0);
			return 0;
		}
	}
	fprintf(stderr, "usage: marker scan|mark|clear|test [NAME]\n");
	return 2;
}
