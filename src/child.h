/*
 * child.h
 *		What holds of a child saga and the step that it is, in one database or
 *		in two: what may be begun, what the child reports, and what that is to
 *		the step.
 *
 * Any backend.  No tables here.  Results are in CurrentMemoryContext.
 */
#ifndef SAGA_CHILD_H
#define SAGA_CHILD_H

#include "utils/jsonb.h"

#include "outcome.h"
#include "store.h"

/*
 * May a saga of this definition be the child of one with so many sagas above
 * it?  "undoable": its step may have to be compensated.  If not *error says
 * why.
 */
extern bool saga_child_may_be(const SagaDefinition *definition, int depth,
							  bool undoable, SagaError *error);

/* What the parent says of itself, and for the child, when the two are in two
 * databases; "input" NULL = as it is without a function for it.  "traceparent"
 * is the operation's. */
extern Jsonb *saga_child_make_context(const Saga *parent,
									  const SagaTask *task,
									  const Jsonb *input,
									  const char *traceparent);

/* What a child says of itself. */
typedef struct SagaChildReport
{
	int64		id;
	SagaStatus	status;
	bool		refused;		/* it cannot go back */
	bool		too_large;		/* its result is, for the way to its parent */
	Jsonb	   *result;			/* may be NULL */
	const char *cause;			/* why it went back; may be NULL */
} SagaChildReport;

/* "result" counts if the saga's own are not loaded; it may be NULL. */
extern Jsonb *saga_child_make_report(const Saga *child, bool refused,
									 Jsonb *result);

/* False if it is not what saga_child_make_report() makes. */
extern bool saga_child_read_report(JsonbContainer *object,
								   SagaChildReport *report);

/*
 * What it is to this operation of the step; false: nothing, for now.
 * "cancelled": the action was asked to give up.  "server" is where the child
 * is, NULL = here.
 */
extern bool saga_child_outcome(const SagaChildReport *report,
							   SagaOperation operation, bool cancelled,
							   const char *server, SagaOutcome *outcome);

#endif							/* SAGA_CHILD_H */
