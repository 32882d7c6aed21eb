/*
 * stepgraph.h
 *		The order of the steps that saga.define() is given, and what they may
 *		say of each other.
 *
 * Any backend.  Results are in CurrentMemoryContext.
 */
#ifndef SAGA_STEPGRAPH_H
#define SAGA_STEPGRAPH_H

#include "stepinput.h"

/*
 * Put the steps into topological order, as near to the one they have as can
 * be, and set what each comes after.  Raises on names that are given twice or
 * do not exist, on cycles, and on graphs that are too large.  Returns whether
 * each step just follows the one before it.
 */
extern bool saga_stepgraph_sort(const char *definition, SagaStepInput *steps,
								int n);

/*
 * Check, on every path through steps that have been sorted so, that what may
 * have to be undone comes before the pivot; and what savepoints and locks say
 * of other steps.
 */
extern void saga_stepgraph_check(const char *definition,
								 const SagaStepInput *steps, int n,
								 bool linear);

#endif							/* SAGA_STEPGRAPH_H */
