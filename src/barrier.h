/*
 * barrier.h
 *		What was done here for sagas of other databases, so that each operation is
 *		done once, however often it is asked for.
 *
 * Any backend, inside a transaction of the caller's at read committed, as the
 * role that has called; privileges were asked for before.
 */
#ifndef SAGA_BARRIER_H
#define SAGA_BARRIER_H

#include "datatype/timestamp.h"
#include "utils/jsonb.h"
#include "utils/uuid.h"

#include "machine.h"
#include "tables.h"

/* A call: everything that tells it from another one, and where it is from. */
typedef struct SagaBarrierCall
{
	pg_uuid_t	coordinator;	/* identity of the database of the saga */
	pg_uuid_t	token;			/* of the saga */
	const char *step;
	int32		element;
	int16		round;
	SagaOperation operation;
	TimestampTz begun_at;		/* the saga, by the clock there */
} SagaBarrierCall;

typedef enum SagaBarrierVerdict
{
	SAGA_BARRIER_TO_DO,			/* do it, then saga_barrier_done() */
	SAGA_BARRIER_REPEATED,		/* it was done: there is the answer */
	SAGA_BARRIER_SKIPPED		/* a compensation of what was not done: nor will
								 * it be any more */
} SagaBarrierVerdict;

/* A call that is being looked at. */
typedef struct SagaBarrier
{
	const SagaBarrierCall *call;
	SagaTables	tables;
	SagaTable  *table;
	Jsonb	   *answer;			/* REPEATED: may be NULL; in CurrentMemoryContext */
} SagaBarrier;

/*
 * Wait until nobody else has to do with this element of the step, and say what
 * there is to do; that holds until the end of the (sub)transaction.  Followed by
 * saga_barrier_done(), _leave() or an error if that is SAGA_BARRIER_TO_DO.
 * Raises
 *		SG040	an action or confirmation that comes after its compensation
 *		SG041	it may have been done, and forgotten
 *		42501	another role has to do with it
 */
extern SagaBarrierVerdict saga_barrier_enter(SagaBarrier *barrier,
											 const SagaBarrierCall *call);

/* It was done, and has this answer, or none. */
extern void saga_barrier_done(SagaBarrier *barrier, const Jsonb *answer);

/* Nothing was done after all: as if it had not been asked for. */
extern void saga_barrier_leave(SagaBarrier *barrier);

/* One call of saga_barrier_forget() forgets so many rows at most. */
#define SAGA_BARRIER_BATCH	10000

/*
 * Nobody asks any more for what sagas of that database have had done by the
 * current user, if they were begun before then and are not among those kept.
 * Returns how many rows that was; as long as it is SAGA_BARRIER_BATCH there may
 * be more.  "kept" is a uuid[] without nulls.
 */
extern int64 saga_barrier_forget(const pg_uuid_t *coordinator,
								 TimestampTz before, Datum kept);

#endif							/* SAGA_BARRIER_H */
