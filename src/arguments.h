/*
 * arguments.h
 *		What SQL-callable functions are given, read and checked.
 *
 * Any backend.  Results are in CurrentMemoryContext; messages name the argument
 * as SQL does.
 */
#ifndef SAGA_ARGUMENTS_H
#define SAGA_ARGUMENTS_H

#include "fmgr.h"

/* Raises 22004 if argument "n", from 0, is null. */
extern void saga_argument_require(FunctionCallInfo fcinfo, int n,
								  const char *name);

/* A text; NULL if it is null. */
extern char *saga_argument_text(FunctionCallInfo fcinfo, int n);

/* An interval in microseconds, a month as 30 days; not null, not negative, not
 * longer than a year. */
extern int64 saga_argument_interval(FunctionCallInfo fcinfo, int n,
									const char *name);

/*
 * For what writes a row, "saga.begin()": raises where PostgreSQL runs code on
 * its own behalf, and with PostgreSQL's own words in a read-only transaction
 * and on a standby.
 */
extern void saga_check_may_write(const char *function);

/* For a procedure, "saga.wait()": raises, with that hint, where it must not
 * commit. */
extern void saga_require_may_commit(FunctionCallInfo fcinfo,
									const char *procedure, const char *hint);

/* The OUT arguments of a function or procedure that has several: "nulls" NULL =
 * none is. */
extern Datum saga_make_row(FunctionCallInfo fcinfo, Datum *values,
						   const bool *nulls);

#endif							/* SAGA_ARGUMENTS_H */
