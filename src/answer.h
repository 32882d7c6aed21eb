/*
 * answer.h
 *		Tasks that a participant has claimed are answered, kept, given back.
 *
 * Any backend, for a participant, in its transaction.
 */
#ifndef SAGA_ANSWER_H
#define SAGA_ANSWER_H

#include "utils/uuid.h"

#include "outcome.h"

/* What a participant wants to do with a task that it has claimed. */
typedef enum SagaTaskAct
{
	SAGA_TASK_ANSWER,
	SAGA_TASK_EXTEND,
	SAGA_TASK_RELEASE
} SagaTaskAct;

/* A lease that lasts until there is an answer. */
#define SAGA_TASK_NO_END	PG_INT64_MAX

typedef struct SagaTaskRequest
{
	SagaTaskAct act;
	int64		id;
	const pg_uuid_t *lease_token;
	const SagaOutcome *outcome; /* ANSWER: SUCCEEDED or FAILED, without times */
	bool		was_reached;	/* ANSWER: though it failed, whoever was to do it
								 * is well: for the breaker a success */
	bool		gives_up;		/* ANSWER: nothing of it remains; if nobody needs it
								 * any more it counts as not begun */
	bool		dont_wait;		/* leave it if somebody has its row */
	int64		lease;			/* EXTEND: microseconds from now, or
								 * SAGA_TASK_NO_END */
	Jsonb	   *progress;		/* EXTEND: NULL = as it was */

	/* what came of it */
	bool		done;			/* false: the lease was lost */
	bool		busy;			/* dont_wait: somebody has; ask again */
	bool		repeated;		/* ANSWER: the same one was there already */
	TimestampTz lease_until;	/* EXTEND, as is the next */
	bool		cancelled;
} SagaTaskRequest;

/*
 * Do what is asked of tasks, no two of them the same, in this order; waits for
 * who has their rows, unless "dont_wait".  Raises 42501 unless the current user may take tasks of
 * the queue, SG031 for an answer that is another than the first one, and SG030
 * for a lease that was lost, unless "lost_ok".
 */
extern void saga_answer_act(SagaTaskRequest *const *requests, int n,
							bool lost_ok);

#endif							/* SAGA_ANSWER_H */
