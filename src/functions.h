/*
 * functions.h
 *		The functions that steps name, as PostgreSQL has them.
 *
 * Any backend.
 */
#ifndef SAGA_FUNCTIONS_H
#define SAGA_FUNCTIONS_H

#include "access/htup.h"

/*
 * The form that a function of a step has to have, beside what all need: a
 * condition returns boolean, a timer's timestamptz or interval.
 */
typedef enum SagaFunctionUse
{
	SAGA_FUNCTION_OPERATION,	/* returns anything, or nothing */
	SAGA_FUNCTION_CONDITION,
	SAGA_FUNCTION_TIME
} SagaFunctionUse;

/*
 * The function that a definer gave, as the current user, who must have the
 * right to call it.  Raises on anything that is wrong, naming the "field" that
 * gave it and "where" that stands.
 */
extern Oid	saga_functions_resolve(const char *given, const char *field,
								   const char *where, SagaFunctionUse use);

/*
 * The function of a stored signature, checked again (it may have been dropped
 * or replaced since): returns its OID.  Raises 42883 or 42P13, and 42501 when
 * the current user has no USAGE on its schema.
 */
extern Oid	saga_definition_function(const char *signature,
									 SagaFunctionUse use);

/* Is the context all that this function, a row of pg_proc, takes? */
extern bool saga_functions_take_context(HeapTuple tuple);

#endif							/* SAGA_FUNCTIONS_H */
