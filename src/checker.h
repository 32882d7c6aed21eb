/*
 * checker.h
 *		Runs the queries of invariants, each in a process of its own.
 *
 * Any backend, in a transaction, but for the entry point.
 */
#ifndef SAGA_CHECKER_H
#define SAGA_CHECKER_H

#include "utils/array.h"

/*
 * The query as it is kept; raises if it is not one SELECT that the current user
 * could prepare, or lacks a column that "key" names (text[], may be NULL).
 */
extern char *saga_checker_parse(const char *query, ArrayType *key);

extern PGDLLEXPORT void saga_checker_main(Datum arg);

#endif							/* SAGA_CHECKER_H */
