/* SPDX-License-Identifier: GPL-2.0-or-later OR MIT */
/*
 * Markers for libleak in one instruction, for programs such as fuzzers' executors, and for kernel
 * code: CPUID with a leaf that no processor has. Without libleak nothing comes of it. No privilege
 * is needed.
 *
 *	libleak(LIBLEAK_TEST, "name");	what follows belongs to the test "name"
 *	libleak(LIBLEAK_SCAN, 0);	reports what is new; done when the call returns
 *	libleak(LIBLEAK_TEST, 0);	the test is over
 *
 *	libleak_ask(LIBLEAK_SCAN, 0, answer, bytes)	the same as a scan, with an answer
 */
#ifndef LIBLEAK_H
#define LIBLEAK_H

#define LIBLEAK_SCAN 1u  /* report what is unreferenced and new */
#define LIBLEAK_MARK 2u  /* from now on report only what is allocated later */
#define LIBLEAK_CLEAR 3u /* never report what is unreferenced now */
#define LIBLEAK_TEST 4u  /* begin the test "name", or with 0 end it */
#define LIBLEAK_HELLO 0u /* for libleak_ask() alone: is libleak here? */

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

/* What libleak_answer.state says. */
enum libleak_state {
	LIBLEAK_NONE,	    /* no libleak is here, or it has guest-markers=off */
	LIBLEAK_DONE,	    /* done */
	LIBLEAK_FAILED,	    /* not done; the text says why */
	LIBLEAK_UNRELIABLE, /* done; the report is marked unreliable, and its text says why */
};

/* An answer. libleak writes it into a buffer of the calling process. */
struct libleak_answer {
	unsigned int state;
	unsigned int objects;	   /* how many were reported or cleared */
	unsigned long long length; /* bytes of the text; more than fit if it was cut */
	char text[];		   /* not ended by a NUL */
};

/*
 * As libleak(), and returns the answer's state. The answer has room for `bytes` in all, of which
 * 4 MiB are used at most.
 */
static inline enum libleak_state libleak_ask(unsigned int command, const char *name,
					     struct libleak_answer *answer, unsigned long bytes)
{
	unsigned long a = 0x6c65616b, b, c = command | 0x100, d = (unsigned long)name;
	unsigned long to = (unsigned long)answer, len = bytes;
	volatile char *into = (volatile char *)answer;
	const volatile char *p = name;

	while (p && *p)
		p++;
	/* libleak writes to pages that this process has written to, and to no others. */
	for (unsigned long at = 0; at < bytes; at += 4096)
		into[at] = 0;
	if (bytes)
		into[bytes - 1] = 0;
	answer->state = LIBLEAK_NONE;
	__asm__ volatile("cpuid\n\tjmp 1f\n1:"
			 : "+a"(a), "=b"(b), "+c"(c), "+d"(d), "+S"(to), "+D"(len)
			 :
			 : "memory");
	return *(volatile unsigned int *)&answer->state;
}

#endif
