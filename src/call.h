/*
 * call.h
 *		A local function as an operation of a step: called in a subtransaction
 *		of its own, with the rights and settings of the role, under a timeout
 *		that user code can neither see nor swallow.
 *
 * An executor, inside a transaction that the engine started, as the saga's
 * role (never inside the owner's switch).
 */
#ifndef SAGA_CALL_H
#define SAGA_CALL_H

#include "datatype/timestamp.h"
#include "utils/jsonb.h"
#include "utils/uuid.h"

#include "definition.h"

/* An error of an attempt, as the table of attempts keeps it. */
typedef struct SagaError
{
	char		sqlstate[6];
	const char *message;		/* never NULL when there is an error */
	const char *detail;			/* the rest may be NULL */
	const char *hint;
	const char *context;
} SagaError;

typedef struct SagaCallRequest
{
	const SagaDefinition *definition;
	int			step;
	int			element;		/* 0 if the step is not foreach */
	int			round;			/* saga_machine_round() */
	SagaOperation operation;
	int			attempt;
	int64		saga_id;
	const pg_uuid_t *token;
	const char *key;			/* may be NULL */
	const char *traceparent;	/* that the saga was begun with; may be NULL */
	const Jsonb *input;
	const Jsonb *const *results;	/* of the actions, by position; NULL = none.
									 * Only those before the step are used */
	const Jsonb *element_value; /* foreach: the element; else NULL */
	const Jsonb *own_result;	/* compensation, confirmation: the action's, of
								 * this element; may be NULL */
	bool		outcome_unknown;	/* compensation: the action may have had its
									 * effect, or not */
	bool		in_worker;		/* a saga worker: nothing in the session is
								 * anybody else's */
	bool		in_batch;		/* others share the transaction */
	TimestampTz batch_end;		/* in_batch: when the batch's time is over */

	/* Has the saga, or its tree, this lock?  Asked by saga.lock(), within the
	 * operation and as its user: it switches to the owner by itself.  NULL =
	 * it has none */
	bool		(*holds_lock) (const struct SagaCallRequest *request,
							   const char *name);
} SagaCallRequest;

typedef enum SagaCallOutcome
{
	SAGA_CALL_SUCCEEDED,
	SAGA_CALL_FAILED,
	SAGA_CALL_LATER,			/* saga.retry_later() */
	SAGA_CALL_NOT_TAKEN,		/* an action: its condition is false or null */
	SAGA_CALL_LOCK,				/* saga.lock(): rolled back, uncounted; to be
								 * called again when the saga has that lock */
	SAGA_CALL_ALONE				/* rolled back, uncounted: to be run alone */
} SagaCallOutcome;

typedef struct SagaCallReport
{
	SagaCallOutcome outcome;
	Jsonb	   *result;			/* SUCCEEDED: may be NULL */
	TimestampTz time;			/* SUCCEEDED, of a timer: when it is to fire, at
								 * the earliest now */
	const char *lock;			/* LOCK: its name, ... */
	int64		lock_timeout;	/* ... and how long to wait; microseconds, 0 = no
								 * limit */
	SagaError	error;			/* FAILED, LATER, LOCK, ALONE: why */
	bool		by_fail;		/* FAILED by saga.fail(): final whatever the policy */
	bool		timed_out;		/* FAILED by the step's timeout: a suspect */
	bool		canceled;		/* somebody canceled it, or the statement_timeout
								 * of the command that drives us has passed: in
								 * the foreground, record this and stop */
	int64		delay;			/* LATER: microseconds */
	bool		alone_from_now;	/* used what belongs to a transaction: commit now,
								 * and run this step alone from now on */
	bool		flush;			/* NOTIFY or the like: commit synchronously */
	TimestampTz started_at;
	TimestampTz finished_at;
} SagaCallReport;

/*
 * Run one operation.  For an action with a condition that is called first, in
 * the same subtransaction and under the same timeout; where the step has no
 * function for the operation (a signal, a timer of fixed length, a child with
 * its parent's input) that is all: SUCCEEDED with a NULL result.
 *
 * Everything in the report is in CurrentMemoryContext.
 * An error of the operation is reported, not raised; what is raised ends the
 * transaction (FATAL, or an error outside the operation's subtransaction).
 * The transaction is the engine's own, of the isolation level that the step
 * wants, and not inside a query: the operation's deferred triggers are fired
 * here.
 */
extern void saga_call_run(const SagaCallRequest *request,
						  SagaCallReport *report);

/* Forget prepared calls.  The end of the transaction does so too, an error of
 * an operation forgets that operation's. */
extern void saga_call_reset(void);

/*
 * Undo what operations left in a worker's session, between batches: prepared
 * statements, temporary tables, sequence caches.  Not in a transaction; it
 * runs one of its own if there are temporary tables, and may raise then.
 */
extern void saga_call_clean_session(void);

/* The key under which participants know an operation: the same for all its
 * attempts.  Allocated in CurrentMemoryContext. */
extern char *saga_call_idempotency_key(const pg_uuid_t *token,
									   const char *step, int element,
									   int round, SagaOperation operation);

/* Has this operation nothing to call: no function and, of an action, no
 * condition?  Then it needs no saga_call_run(). */
extern bool saga_call_is_trivial(const SagaStep *step,
								 SagaOperation operation);

/* Is an operation running in this backend? */
extern bool saga_call_is_running(void);

/*
 * Call something for a saga of another database, in the caller's transaction,
 * as the current user.  What it leaves of settings and roles is undone.  Raises
 * what it raises; but when it has called saga.fail() or saga.retry_later() the
 * error is theirs, even if it swallowed that, and its constraint name says so:
 * the second has the delay in microseconds behind it.
 */
#define SAGA_CALL_FAIL_FIELD	"saga_fail"
#define SAGA_CALL_LATER_FIELD	"saga_retry_later_"

extern void saga_call_guest(void (*function) (void *arg), void *arg);

/* Raises if an operation, or what saga_call_guest() has called, is running. */
extern void saga_call_refuse_within(const char *function);

/* A hook saw a command during an operation; nothing happens outside one. */
extern void saga_call_saw_transactional(void);	/* SET CONSTRAINTS, DECLARE,
												 * PREPARE, LISTEN, DDL */
extern void saga_call_saw_notify(void);

/* In how many subtransactions has this transaction written?  A batch commits
 * before the shared cache of them (64) overflows. */
extern int	saga_call_subxids(bool *overflowed);

#endif							/* SAGA_CALL_H */
