/*
 * definition.h
 *		What a definition is: its steps as the engine uses them, made from the
 *		jsonb that the table stores, and the checks that saga.define() makes.
 *
 * Any backend.  No SQL on saga's tables here: catalog.c has that.
 */
#ifndef SAGA_DEFINITION_H
#define SAGA_DEFINITION_H

#include "datatype/timestamp.h"
#include "utils/array.h"
#include "utils/jsonb.h"
#include "utils/palloc.h"

#include "machine.h"

/* SagaStep.isolation when the role's default is to be used. */
#define SAGA_ISOLATION_DEFAULT	(-1)

typedef struct SagaStep
{
	const char *name;
	const char *kind;			/* "local"; others come with their own files */
	const char *function[SAGA_NOPERATION];	/* "schema"."name"(types), or NULL */
	int64		timeout[SAGA_NOPERATION];	/* of an attempt, microseconds; 0 =
											 * saga.step_timeout */
	int			isolation;		/* XACT_..., or SAGA_ISOLATION_DEFAULT */
	bool		durable;		/* effects outside: commit at once, flushed */
} SagaStep;

/* One version of a definition, with the settings of the whole. */
typedef struct SagaDefinition
{
	int32		id;				/* of the version: saga.definition_version.id */
	int32		definition_id;	/* of the whole: saga.definition.id; 0 = dropped */
	const char *name;
	int			version;
	Oid			owner;
	const char *owner_name;
	bool		enabled;
	int			max_running;	/* 0 = no limit */
	int64		deadline;		/* microseconds after begin; 0 = none */
	SagaRules	rules;			/* nsteps, and what the machine needs of each */
	const SagaStep *steps;		/* rules.nsteps of them */
	const int16 *by_name;		/* positions of the steps, by their names */

	/* names of parameters without a default, of actions and compensations,
	 * that no step provides: the input of a saga must have a field of each */
	int			nrequired;
	const char *const *required;
} SagaDefinition;

/* The most bytes in the name of a definition or of a step. */
#define SAGA_MAX_NAME	(NAMEDATALEN - 1)

/*
 * Check what saga.define() was given and return it in the form that is stored:
 * a jsonb array of objects, functions resolved (as the current user, under its
 * search_path) and written as qualified signatures, defaults filled in, so
 * that equal definitions are equal jsonb.  Raises on anything that is wrong,
 * naming the step, with a hint.
 */
extern Jsonb *saga_definition_check(const char *name, ArrayType *steps);

/*
 * Make the steps and rules of "def" from the stored form, in "context".  The
 * other fields are the caller's.  Raises XX001 (data corrupted) if it is not
 * what saga_definition_check() returns.
 */
extern void saga_definition_build(SagaDefinition *def, Jsonb *stored,
								  MemoryContext context);

/*
 * The default of "retry" and of "compensation_retry", and a policy given as
 * jsonb, checked and with its defaults filled in; "where" names it in errors.
 */
extern void saga_definition_default_policy(SagaOperation operation,
										   SagaRetryPolicy *policy);
extern Jsonb *saga_definition_check_policy(Jsonb *policy, const char *where);

/* Microseconds of an interval without months; raises on others, naming the
 * field and where it stands. */
extern int64 saga_definition_microseconds(const Interval *interval,
										  const char *field,
										  const char *where);

/* Raises unless it can be the name of a definition ("saga definition") or of
 * whatever "kind" says. */
extern void saga_definition_check_name(const char *name, const char *kind);

/* Position of the step of this name, or -1. */
extern int	saga_definition_step(const SagaDefinition *def, const char *name);

/*
 * The function of a stored signature, checked again (it may have been dropped
 * or replaced since): returns its OID.  Raises 42883 or 42P13, and 42501 when
 * the current user has no USAGE on its schema.
 */
extern Oid	saga_definition_function(const char *signature);

#endif							/* SAGA_DEFINITION_H */
