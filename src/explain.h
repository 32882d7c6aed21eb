/*
 * explain.h
 *		What the functions behind the views have in common.
 *
 * Any backend, in a transaction.
 */
#ifndef SAGA_EXPLAIN_H
#define SAGA_EXPLAIN_H

#include "fmgr.h"

/* saga.rounds_raw(definition_id, recoveries); NULL only of a version that does
 * not exist. */
extern PGDLLEXPORT Datum saga_rounds_raw(PG_FUNCTION_ARGS);

#endif							/* SAGA_EXPLAIN_H */
