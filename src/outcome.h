/*
 * outcome.h
 *		What came of an attempt, whoever made it, and the form in which that
 *		travels from one who was handed the operation to its saga.
 *
 * Any backend.  No tables here.
 */
#ifndef SAGA_OUTCOME_H
#define SAGA_OUTCOME_H

#include "datatype/timestamp.h"
#include "utils/jsonb.h"

#include "call.h"
#include "machine.h"

typedef enum SagaOutcomeKind
{
	SAGA_OUTCOME_SUCCEEDED,
	SAGA_OUTCOME_FAILED,
	SAGA_OUTCOME_LATER,			/* asks for another attempt after "delay" */
	SAGA_OUTCOME_NOT_TAKEN,		/* its condition is false */
	SAGA_OUTCOME_LOCK,			/* asks for another attempt once it has "lock" */
	SAGA_OUTCOME_REVOKED,		/* given up with no effect, uncounted */
	SAGA_OUTCOME_LOST			/* its process ended: no effect */
} SagaOutcomeKind;

#define SAGA_NOUTCOME	(SAGA_OUTCOME_LOST + 1)

typedef struct SagaOutcome
{
	SagaOutcomeKind kind;
	Jsonb	   *result;			/* SUCCEEDED: may be NULL */
	SagaError	error;			/* FAILED, LATER, LOCK, LOST */
	bool		is_final;		/* FAILED: whatever the policy says */
	bool		is_passing;		/* FAILED: worth another attempt, unless the
								 * policy's fail_on names it */
	bool		timed_out;		/* FAILED */
	bool		unknown;		/* FAILED: it may have had its effect */
	int64		delay;			/* LATER, FAILED: microseconds; of the second 0 =
								 * as the policy says */
	const char *lock;			/* LOCK */
	int64		lock_timeout;	/* LOCK: microseconds, 0 = no limit */
	TimestampTz started_at;
	TimestampTz finished_at;
} SagaOutcome;

/* Of a call; all that it points to is the report's. */
extern void saga_outcome_of_call(const SagaCallReport *report,
								 SagaOutcome *outcome);

/*
 * As the payload of a message, and back.  "round" and task.attempt say which
 * try of the operation it is about.  Reading returns false if it is not what
 * writing makes.
 */
extern Jsonb *saga_outcome_write(const SagaOutcome *outcome,
								 const SagaTask *task, int round);
extern bool saga_outcome_read(Jsonb *payload, SagaOutcome *outcome,
							  SagaTask *task, int *round);

#endif							/* SAGA_OUTCOME_H */
