/*
 * stepinput.h
 *		What saga.define() is given, read and checked step by step.
 *
 * Any backend.  Results are in CurrentMemoryContext.
 */
#ifndef SAGA_STEPINPUT_H
#define SAGA_STEPINPUT_H

#include "utils/jsonb.h"

#include "definition.h"

/* and_then of a savepoint from which the same steps are done again. */
#define SAGA_AND_THEN_RETRY		"retry"

/* One step as it was given.  What it says of other steps is not checked yet. */
typedef struct SagaStepInput
{
	const char *where;			/* step "charge"; step 3 if it has no name */
	const char *name;
	SagaStepKind kind;
	const char *function[SAGA_NOPERATION];	/* as given; NULL = none.  Of an
											 * external step the names that
											 * the participant is told, of a
											 * remote one of functions there */
	Oid			oid[SAGA_NOPERATION];	/* of the functions */
	const char *condition;		/* only_if, likewise */
	Oid			condition_oid;
	int64		timeout[SAGA_NOPERATION];	/* 0 = none */
	bool		has_retry[SAGA_NOPERATION];
	SagaRetryPolicy retry[SAGA_NOPERATION];
	const char *isolation;
	bool		pivot;
	bool		durable;

	bool		has_after;		/* else it comes after the one before it */
	int			nafter;
	const char **after;
	const char *foreach;
	int			parallel;		/* 0 = not given; so the next two */
	int			quorum;
	int			recoveries;
	bool		savepoint;
	const char *and_then;
	const char *exclusive;
	const char *exclusive_until;
	int			concurrency;	/* 0 = not given */
	int64		exclusive_timeout;	/* -1 = not given; so the next two */
	int64		delay;			/* of a timer */
	int64		signal_timeout;
	const Jsonb *otherwise;
	const char *child;			/* name of the definition */
	const char *server;			/* of a remote step; of a child, NULL = here */
	const char *queue;			/* of an external step */
	int64		claim_timeout;	/* likewise; 0 = none; so the next one */
	int64		total_timeout;	/* of a remote step too */

	/* set by stepgraph.c */
	int			npreds;
	const int16 *preds;			/* positions */
} SagaStepInput;

/*
 * Read the step at this position, from 0, into "step", and look its functions
 * up.  Raises on anything that is wrong with it.
 */
extern void saga_stepinput_read(SagaStepInput *step, int position,
								Jsonb *json);

/* Fill "policy", which has the defaults, with the fields of an object. */
extern void saga_stepinput_read_policy(JsonbContainer *object,
									   const char *where,
									   SagaRetryPolicy *policy);

#endif							/* SAGA_STEPINPUT_H */
