/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the parts of the zoo share.
 *
 * No pointer to a specimen may survive where it does not belong: not in static
 * data, not in a register, not on a stack. So every specimen is made in a
 * function of its own, and the stack is overwritten after it.
 */
#ifndef ZOO_H
#define ZOO_H

#include <linux/types.h>

/*
 * Says what became of a specimen, or that there was no memory for it. SIZE is
 * what kmemleak would say: the cache's object size for what lies in a slab, the
 * size asked for of larger kmalloc blocks, whole pages for vmalloc, and the
 * size asked for, rounded up to 4, for per-CPU blocks.
 */
void zoo_leak(const char *kind, const void *p, size_t size);
void zoo_held(const char *kind, const void *p, size_t size);
void zoo_failed(const char *kind);

/* Overwrites that many KiB of the stack, below the caller's frame. */
void zoo_scrub(int kib);

/*
 * Carries one pointer from another context to the one that prints, in a form
 * that is no reference.
 */
void zoo_hand_over(const void *p);
void *zoo_take_over(void);

/* Calls each function, and cleans the stack after it. */
void zoo_each(void (*const *functions)(void), size_t n);

void zoo_make_leaks(void);
void zoo_make_held(void);
/* Takes every held specimen from what holds it. */
void zoo_forget_held(void);
void zoo_make_freed(void);
/* Lost ones that the kernel's debug options watch. */
void zoo_make_watched(void);
/* Lost and held ones in semaphores, and how to let go of the held. */
void zoo_make_locks(void);
void zoo_forget_locks(void);
/* The same, of pages. */
void zoo_make_pages(void);
void zoo_forget_pages(void);

#endif
