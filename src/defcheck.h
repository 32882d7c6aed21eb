/*
 * defcheck.h
 *		The checks that saga.define() makes, and the form in which what has
 *		passed them is stored.
 *
 * Any backend.  No SQL on saga's tables here: catalog.c has that.
 */
#ifndef SAGA_DEFCHECK_H
#define SAGA_DEFCHECK_H

#include "utils/array.h"
#include "utils/jsonb.h"

/*
 * Check what saga.define() was given and return it in the form that is stored:
 * a jsonb array of objects in topological order, functions resolved (as the
 * current user, under its search_path) and written as qualified signatures,
 * defaults filled in, so that equal definitions are equal jsonb.  Raises on
 * anything that is wrong, naming the step, with a hint.  What has to do with
 * other definitions, those of children, is not looked at.
 */
extern Jsonb *saga_definition_check(const char *name, ArrayType *steps);

/* A retry policy, checked and with its defaults filled in; "where" names it in
 * errors. */
extern Jsonb *saga_definition_check_policy(Jsonb *policy, const char *where);

#endif							/* SAGA_DEFCHECK_H */
