/*
 * definition.h
 *		What a definition is: its steps as the engine uses them, made from the
 *		jsonb that the table stores.
 *
 * Any backend.  No SQL on saga's tables here: catalog.c has that.
 */
#ifndef SAGA_DEFINITION_H
#define SAGA_DEFINITION_H

#include "datatype/timestamp.h"
#include "utils/array.h"
#include "utils/jsonb.h"
#include "utils/palloc.h"

#include "functions.h"			/* callers look those of the steps up */
#include "machine.h"

/* SagaStep.isolation when the role's default is to be used. */
#define SAGA_ISOLATION_DEFAULT	(-1)

/* exclusive_timeout of those that do not say, in microseconds. */
#define SAGA_EXCLUSIVE_TIMEOUT	USECS_PER_HOUR

/* Who carries a step out; in SQL the same word in small letters. */
typedef enum SagaStepKind
{
	SAGA_KIND_LOCAL,			/* functions of this database */
	SAGA_KIND_TIMER,			/* waits for a time */
	SAGA_KIND_SIGNAL,			/* waits for saga.signal() */
	SAGA_KIND_CHILD,			/* another saga */
	SAGA_KIND_EXTERNAL,			/* programs outside, by tasks of a queue */
	SAGA_KIND_REMOTE			/* functions of another database */
} SagaStepKind;

#define SAGA_NKIND	(SAGA_KIND_REMOTE + 1)

/* "local", "timer" ...; never NULL. */
extern const char *saga_step_kind_name(SagaStepKind kind);

/* The other way; false for a word that is none of theirs. */
extern bool saga_step_kind_parse(const char *name, SagaStepKind *kind);

/*
 * Where in the data of a saga a value is: "items" or "order.items" is in its
 * input, "plan.parcels" in the result of step "plan" if the step that says so
 * comes after a step of that name.  In a foreach step, outside its own
 * "foreach", the first field is looked for in the element before; "element"
 * is the element itself if it has no such field.  Names that contain dots are
 * out of reach, and so are the elements of arrays.
 */
typedef struct SagaPath
{
	const char *text;			/* as given; NULL = there is none */
	int			step;			/* position, or -1: the input */
	int			nfields;		/* after the step's name; may be 0 then */
	const char *const *fields;
} SagaPath;

typedef struct SagaStep
{
	const char *name;
	SagaStepKind kind;

	/* "schema"."name"(types), or NULL.  Of a timer the action returns the
	 * time (timestamptz or interval), of a child the input; NULL: see below */
	const char *function[SAGA_NOPERATION];
	const char *condition;		/* only_if, returns boolean; NULL = always */
	int64		timeout[SAGA_NOPERATION];	/* of an attempt, microseconds; 0 =
											 * saga.step_timeout */
	int			isolation;		/* XACT_..., or SAGA_ISOLATION_DEFAULT */
	bool		durable;		/* effects outside: commit at once, flushed */
	SagaPath	foreach;
	SagaPath	exclusive;		/* the value is the name of the lock */
	int			exclusive_until;	/* position of the step with whose end the
									 * lock is given back; -1 = with the saga's */
	int64		exclusive_timeout;	/* microseconds; 0 = no limit */
	int			concurrency;	/* so many sagas may be in it; 0 = no limit */
	int64		duration;		/* TIMER without action: how long; SIGNAL: how
								 * long at most; microseconds, 0 = no limit */
	Jsonb	   *fallback;		/* SIGNAL: the result when the time is over; NULL
								 * = it fails then */
	const char *child;			/* CHILD: name of the definition.  Without an
								 * action the child's input is the parent's, or
								 * the element */
	const char *server;			/* REMOTE: the foreign server; CHILD: likewise,
								 * NULL = this database */
	const char *queue;			/* EXTERNAL: where its tasks are offered */
	const char *task[SAGA_NOPERATION];	/* EXTERNAL: what the participant is told
										 * to do; REMOTE: the function there, as
										 * SQL writes it: "wh"."ship", always in
										 * quotes.  NULL = no such operation */
	int64		claim_timeout;	/* EXTERNAL: how long its action waits to be
								 * claimed; microseconds, 0 = no limit */
	int64		total_timeout;	/* EXTERNAL, REMOTE: how long its action may take,
								 * with all attempts; likewise.  "timeout" of an
								 * EXTERNAL step is from the claim of an attempt,
								 * 0 = no limit; of a REMOTE one it is as of local
								 * steps */
} SagaStep;

/* Are its operations rows of saga.task, which somebody else carries out? */
static inline bool
saga_step_has_tasks(const SagaStep *step)
{
	return step->kind == SAGA_KIND_EXTERNAL ||
		step->kind == SAGA_KIND_REMOTE ||
		(step->kind == SAGA_KIND_CHILD && step->server != NULL);
}

/* One version of a definition, with the settings of the whole. */
typedef struct SagaDefinition
{
	int32		id;				/* of the version: saga.definition_version.id */
	int32		definition_id;	/* of the whole: saga.definition.id; 0 = dropped */
	const char *name;
	int			version;
	Oid			owner;
	const char *owner_name;
	const char *created_by;		/* the role that defined this version */
	bool		enabled;
	const char *disabled_by;	/* the invariant that has disabled it; or NULL */
	int			max_running;	/* 0 = no limit */
	int64		deadline;		/* microseconds after begin; 0 = none */
	SagaPath	exclusive;		/* of saga.configure(): in the input */
	int			exclusive_until;	/* position in this version, or -1 */
	int64		exclusive_timeout;	/* microseconds; 0 = no limit */
	SagaRules	rules;			/* nsteps, and what the machine needs of each */
	const SagaStep *steps;		/* rules.nsteps of them */
	const int16 *by_name;		/* positions of the steps, by their names */
	bool		has_pivot;
	bool		has_exclusive;	/* a step has, or has concurrency */
	bool		has_concurrency;	/* a step has */
	bool		has_children;	/* a step is one */
	bool		has_remote;		/* a step is REMOTE, or a CHILD elsewhere */
	bool		has_tasks;		/* saga_step_has_tasks() of one */

	/* names of parameters without a default, of actions and compensations,
	 * that no step before provides: the input of a saga must have a field of
	 * each.  Those of foreach steps are not among them: the elements may
	 * provide them */
	int			nrequired;
	const char *const *required;
} SagaDefinition;

/*
 * The names of isolation levels that a step may say, in the order of their
 * strength; the end has NULL.
 */
typedef struct SagaIsolationLevel
{
	const char *name;
	int			level;			/* XACT_... */
} SagaIsolationLevel;

extern const SagaIsolationLevel saga_isolation_levels[];

/* The most bytes in the name of a definition or of a step. */
#define SAGA_MAX_NAME	(NAMEDATALEN - 1)

/*
 * Make the steps and rules of "def" from the stored form, in "context".  The
 * other fields are the caller's.  Raises XX001 (data corrupted) if it is not
 * what saga_definition_check() returns.
 */
extern void saga_definition_build(SagaDefinition *def, Jsonb *stored,
								  MemoryContext context);

/* The default of "retry", "compensation_retry" and "confirmation_retry". */
extern void saga_definition_default_policy(SagaOperation operation,
										   SagaRetryPolicy *policy);

/* Raises: this field, which stands there, cannot be so. */
extern _Noreturn void saga_definition_invalid(const char *field,
											  const char *where,
											  const char *detail);

/* Microseconds of an interval without months; raises on others, naming the
 * field and where it stands. */
extern int64 saga_definition_microseconds(const Interval *interval,
										  const char *field,
										  const char *where);

/* Raises unless it can be the name of a definition ("saga definition") or of
 * whatever "kind" says. */
extern void saga_definition_check_name(const char *name, const char *kind);

/*
 * Raises unless the input can be that of a saga of this definition: it is an
 * object with the fields that steps need and nothing else provides, and a
 * scalar where "exclusive" wants one.
 */
extern void saga_definition_check_input(const SagaDefinition *def,
										Jsonb *input);

/* The deadline of a saga that starts then (0: now), 0 if it has none. */
extern TimestampTz saga_definition_deadline(const SagaDefinition *def,
											TimestampTz start_at);

/* Position of the step of this name, or -1. */
extern int	saga_definition_step(const SagaDefinition *def, const char *name);

/* Likewise, but only if step "before" depends on it: whose result that step
 * can use.  -1 also for "before" itself. */
extern int	saga_definition_earlier_step(const SagaDefinition *def,
										 const char *name, int before);

/*
 * Make a path of what saga.configure(exclusive => ...) was given: in the
 * input, for all versions.  In CurrentMemoryContext.  Raises if it is not one.
 */
extern void saga_definition_input_path(const char *text, const char *field,
									   const char *where, SagaPath *path);

/*
 * The value at a path; false if there is none, or it is null.  "element" is
 * that of a foreach step, or NULL; "results" are by position of the step.
 */
extern bool saga_path_find(const SagaPath *path, const Jsonb *input,
						   const Jsonb *const *results, const Jsonb *element,
						   JsonbValue *value);

#endif							/* SAGA_DEFINITION_H */
