/*
 * hooks.h
 *		What saga notices of the commands of others.
 *
 * From _PG_init() only.
 */
#ifndef SAGA_HOOKS_H
#define SAGA_HOOKS_H

/* Install them.  "preloaded": there are processes and shared memory. */
extern void saga_hooks_install(bool preloaded);

#endif							/* SAGA_HOOKS_H */
