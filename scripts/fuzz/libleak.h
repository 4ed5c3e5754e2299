/* SPDX-License-Identifier: GPL-2.0-or-later OR MIT */
/*
 * Markers for libleak in one instruction, for programs such as fuzzers' executors, and for kernel code: CPUID with a leaf
 * that no processor has. Without libleak nothing comes of it. No privilege is needed.
 *
 *	libleak(LIBLEAK_TEST, "name");	what follows belongs to the test "name"
 *	libleak(LIBLEAK_SCAN, 0);	reports what is new; done when the call returns
 *	libleak(LIBLEAK_TEST, 0);	the test is over
 */
#ifndef LIBLEAK_H
#define LIBLEAK_H

#define LIBLEAK_SCAN 1u  /* report what is unreferenced and new */
#define LIBLEAK_MARK 2u  /* from now on report only what is allocated later */
#define LIBLEAK_CLEAR 3u /* never report what is unreferenced now */
#define LIBLEAK_TEST 4u  /* begin the test "name", or with 0 end it */

static inline void libleak(unsigned int command, const char *name)
{
	unsigned long a = 0x6c65616b, b, c = command, d = (unsigned long)name;
	const volatile char *p = name;

	/* Brings the name into memory, from where it is read. */
	while (p && *p)
		p++;
	/* The jump ends QEMU's block of code, and what was asked for is done at its end. */
	__asm__ volatile("cpuid\n\tjmp 1f\n1:" : "+a"(a), "=b"(b), "+c"(c), "+d"(d) : : "memory");
}

#endif
