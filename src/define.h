/*
 * define.h
 *		What saga.define() does before it stores anything.
 *
 * Any backend, with the rights of the caller.
 */
#ifndef SAGA_DEFINE_H
#define SAGA_DEFINE_H

#include "utils/array.h"
#include "utils/jsonb.h"

/*
 * All checks of saga.define(), those of children too; returns what would be
 * stored.  NULL is no steps.  Raises on anything that is wrong.
 */
extern Jsonb *saga_define_check(const char *name, ArrayType *steps);

#endif							/* SAGA_DEFINE_H */
