/*
 * advance.h
 *		One saga, or one branch of one, within one transaction of a run: what it
 *		has to do is done, or noted for the end of the transaction.
 *
 * engine.c, in a transaction that it has started, on sagas that it has locked.
 */
#ifndef SAGA_ADVANCE_H
#define SAGA_ADVANCE_H

#include "engine.h"
#include "locks.h"
#include "outcome.h"
#include "store.h"

/* One saga of a run, or one branch. */
typedef struct SagaMember
{
	SagaRef		ref;
	Saga	   *saga;			/* NULL = not loaded, or not to be had */
	int			isolation;		/* of its next transaction */
	bool		active;			/* has, or may have, something to do */
	bool		alone;			/* not in a transaction with others */
	bool		single;			/* one operation a transaction: a commit of
								 * several has failed */
	bool		misplaced;		/* a suspect that was not taken as one */
	bool		replanned;		/* plans were thrown away for it */
	int			collisions;		/* how often its operation met another batch's
								 * locks, or another batch met its */

	bool		asks_again;		/* for the locks that it stands in line for */
	const char *lock;			/* an operation wants it, and nobody was asked
								 * yet: NULL = none */
	int64		lock_timeout;	/* of that, as is the next */
	SagaTask	lock_task;

	/* within one transaction */
	SagaStatus	status_before;
	bool		backward_before;
	int			noperations;	/* that were called */
	int			nquiet;			/* things done without calling anything */
	bool		has_called;		/* no more in this transaction */
	bool		asks;			/* it has wishes */
	bool		leaves;			/* it may have something to give back */
	bool		stands_in_line;	/* for a lock, since this transaction */
	bool		overdue;		/* its deadline has passed */
	bool		got_stuck;		/* also once more, after a retry */
	SagaOperationRef operation; /* the last one that was called */
	TimestampTz operation_started_at;

	/* of a transaction that was rolled back: what is known, for the log.  NULL =
	 * it was not loaded */
	const Saga *failed;
} SagaMember;

/* What a saga asks for at the end of the transaction: see locks.h. */
typedef enum SagaWishKind
{
	SAGA_WISH_PLACE,			/* of its definition's max_running */
	SAGA_WISH_START,			/* the lock of configure(exclusive) */
	SAGA_WISH_STEP,				/* that of an exclusive step, a place in it */
	SAGA_WISH_CALL				/* saga.lock() */
} SagaWishKind;

typedef struct SagaWish
{
	SagaMember *member;
	SagaWishKind kind;
	SagaTask	task;			/* STEP, CALL */
	SagaLockRequest request;
} SagaWish;

/* A run. */
typedef struct SagaRun
{
	const SagaDriver *driver;
	SagaRunResult *result;
	MemoryContext memory;
	Oid			role;			/* InvalidOid: whose ever, without operations */
	SagaMember *members;
	int			nmembers;
	SagaError  *commit_error;	/* record this instead of calling anything */
	const SagaLost *lost;		/* record that the process ended during this */
	bool		told_lost;		/* the log has it */
	bool		interrupted;	/* in the foreground: the user cancelled */
	bool		out_of_time;	/* ... or rather, statement_timeout passed */
	bool		soiled;			/* an operation may have left something in the
								 * session */

	/* within one transaction */
	int			isolation;
	bool		in_batch;
	bool		stop;			/* call nothing more in this one */
	bool		flush;			/* commit as the role's synchronous_commit says */
	bool		force;			/* commit synchronously, whatever that says */
	bool		answering;		/* wishes have been answered: no further ones */
	List	   *wishes;			/* of SagaWish */
	TimestampTz batch_end;
} SagaRun;

/* Do what this member has to do in this transaction. */
extern void saga_advance(SagaRun *run, SagaMember *member);

/*
 * The end of the transaction, once all members are through: what came of a
 * wish, then go on as far as that goes without calling anything.
 */
extern void saga_advance_answer(const SagaWish *wish);
extern void saga_advance_after_answers(SagaRun *run, SagaMember *member);

/* Tell those who have to know what became of it. */
extern void saga_advance_finish(SagaRun *run, SagaMember *member);

#endif							/* SAGA_ADVANCE_H */
