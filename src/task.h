/*
 * task.h
 *		Tasks, as the executor of a saga has to do with them: operations of
 *		external steps that are offered to programs outside.
 *
 * Executors, on a saga that is locked in the current transaction; but for what
 * says otherwise.  All of it needs no privileges: those are the caller's matter.
 *
 * Locks: rows of saga.task come after those of sagas.  Executors never wait for
 * one; participants, who lock nothing else of ours, wait for each other, in the
 * order of the ids.
 */
#ifndef SAGA_TASK_H
#define SAGA_TASK_H

#include "outcome.h"
#include "queue.h"
#include "store.h"

/* Is there too much data for a participant to be given?  "input" is as below. */
extern bool saga_task_is_too_large(const Saga *saga, const SagaTask *task,
								   const Jsonb *input);

/* Offer an operation; returns the task's id.  "input" is for a child, NULL = as
 * it is without a function for it.  The commit will be flushed. */
extern int64 saga_task_offer(const Saga *saga, const SagaTask *task,
							 const SagaQueue *queue, const Jsonb *input);

/*
 * Offer a task aside, for child sagas in another database (see taskrow.c): to
 * ask the child that this action has begun to go back, or to let all of them go,
 * that step's and others', since the saga has ended.  The second looks at
 * nothing of the saga but its row.
 */
extern void saga_task_offer_recall(const Saga *saga, const SagaTask *task,
								   const SagaQueue *queue);
extern void saga_task_offer_release(const Saga *saga, const char *step,
									const SagaQueue *queue);

/* What is the matter with a task. */
typedef enum SagaTaskState
{
	SAGA_TASK_TAKEN,			/* a participant's transaction has its row: look
								 * again soon */
	SAGA_TASK_READY,			/* nobody has claimed it */
	SAGA_TASK_CLAIMED,
	SAGA_TASK_ANSWERED,			/* or its lease is over, and the message that says
								 * so is there */
	SAGA_TASK_WITHDRAWN,		/* nobody has claimed it, nobody can any more */
	SAGA_TASK_GONE				/* there is no such row */
} SagaTaskState;

typedef struct SagaTaskInfo
{
	TimestampTz offered_at;
	TimestampTz claimed_at;		/* CLAIMED, as are the next */
	TimestampTz lease_until;
	bool		cancelled;		/* the participant was told */
	const char *participant;
} SagaTaskInfo;

/* Look at a task, and lock its row: all but TAKEN and GONE. */
extern SagaTaskState saga_task_look(int64 id, SagaTaskInfo *info);

/* Has nobody claimed it, as far as is committed?  Any backend; locks nothing. */
extern bool saga_task_is_ready(int64 id);

/* Of one that was looked at: take it back if it is READY, end its lease if it
 * is CLAIMED; and tell who has claimed it that nobody needs it. */
extern void saga_task_withdraw(int64 id);
extern void saga_task_expire(int64 id);
extern void saga_task_cancel(int64 id);

/*
 * Answers that have come.  Between begin and end nothing else is done with the
 * tables; take returns the answer as saga_outcome_read() reads it, in
 * CurrentMemoryContext, or NULL if there is none (yet).  "ready_since" is when
 * it was offered, if nobody has it (any more); else 0.
 */
typedef struct SagaTaskTable SagaTaskTable;

extern SagaTaskTable *saga_task_begin_taking(void);
extern Jsonb *saga_task_take_answer(SagaTaskTable *table, int64 id,
									TimestampTz *ready_since);
extern void saga_task_end_taking(SagaTaskTable *table);

/* What a lease that ended without an answer is to the saga. */
extern void saga_task_lease_outcome(const char *participant,
									SagaOutcome *outcome);

#endif							/* SAGA_TASK_H */
