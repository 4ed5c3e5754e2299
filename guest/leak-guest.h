/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef LEAK_GUEST_H
#define LEAK_GUEST_H

#include "../scripts/fuzz/libleak.h"

/* Asks libleak. The answer is valid until the next call. Its text ends with a NUL. */
struct libleak_answer *ask(unsigned int command, const char *name);

/*
 * Mounts a debugfs with the file kmemleak over the folder `debugfs`, and serves it in a process of
 * its own. Returns a status for exit().
 */
int mount_kmemleak(const char *debugfs);

#endif
