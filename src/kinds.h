/*
 * kinds.h
 *		The steps that are no functions: timers, signals, child sagas, external
 *		ones.  What begins, ends and takes back an operation of theirs, and what
 *		parents and children tell each other.
 *
 * Executors, on a saga that is locked in the current transaction, at its top
 * level, as the saga's role.
 */
#ifndef SAGA_KINDS_H
#define SAGA_KINDS_H

#include "outcome.h"
#include "store.h"

/*
 * An operation whose functions, if it has any, have been called and have
 * succeeded: what remains to be done for it.  Of a plain step it is recorded.
 * "outcome" is NULL where there was nothing to call.  "time" is a timer's.
 */
extern void saga_kind_succeeded(Saga *saga, const SagaTask *task,
								const SagaOutcome *outcome, TimestampTz time);

/* A RUNNING operation is over, or a wait for a lock. */
extern void saga_kind_expire(Saga *saga, const SagaTask *task);

/* Nobody needs this RUNNING operation any more. */
extern void saga_kind_revoke(Saga *saga, const SagaTask *task);

/* An outcome of an operation that was out has been recorded. */
extern void saga_kind_answered(Saga *saga, const SagaTask *task);

/* Nobody has the task of a RUNNING operation, maybe because it was given back.
 * It may end the operation. */
extern void saga_kind_given_back(Saga *saga, const SagaTask *task,
								 TimestampTz offered_at);

/* A person has asked for what failed to be attempted again. */
extern void saga_kind_retrying(Saga *saga);

/*
 * The saga has been paused, goes on, or is about to be asked to go back: tasks
 * that nobody has claimed are taken back (before it goes back, those of pivots,
 * which would hold it up), or announced.
 */
extern void saga_kind_pausing(Saga *saga);
extern void saga_kind_resuming(Saga *saga);
extern void saga_kind_turning_back(Saga *saga);

/* The same in memory alone, for who asks whether it could turn back. */
extern void saga_kind_imagine_turning_back(Saga *saga);

/*
 * Messages: "signal", "child" (how a child ended), "recall" and "release"
 * (what a parent wants).  Each returns what came of it, as the history says
 * it; NULL of a signal that is to be kept until the saga goes forward again.
 */
extern const char *saga_kind_signal(Saga *saga, const SagaMessage *message);
extern const char *saga_kind_child_ended(Saga *saga,
										 const SagaMessage *message);
extern const char *saga_kind_recall(Saga *saga);
extern const char *saga_kind_release(Saga *saga);

/* The saga has ended, and yet its parent wants something of it. */
extern void saga_kind_answer_parent(Saga *saga);

/* The status of the saga has changed in this transaction: tell its parent, and
 * let its children go if it is final. */
extern void saga_kind_status_changed(Saga *saga);

#endif							/* SAGA_KINDS_H */
