/*
 * farparent.h
 *		Sagas here whose parent is a saga of another database: which saga that
 *		is, and what they report to it.
 *
 * Any backend, in a transaction; for the parent's calls as the role that has
 * called.  Results are in CurrentMemoryContext.
 */
#ifndef SAGA_FARPARENT_H
#define SAGA_FARPARENT_H

#include "barrier.h"

/* A child of this database, by its step. */
typedef struct SagaFarChild
{
	int64		id;
	int			attempt;		/* of the step's action, that waits for it */
} SagaFarChild;

/* The child that was begun last for this element of the step, whatever the
 * operation; false if there is none. */
extern bool saga_far_parent_find(const SagaBarrierCall *call,
								 SagaFarChild *child);

/*
 * Hold off saga_far_parent_let_go() until the end of the transaction, in which a
 * child is begun.  Raises SG040 if it was called before.
 */
extern void saga_far_parent_require(const SagaBarrierCall *call);

/* It was begun just now, by the current user; "parent_id" is the parent's there,
 * for people. */
extern void saga_far_parent_add(const SagaBarrierCall *call,
								const SagaFarChild *child, int64 parent_id);

/* From now on that attempt waits for it, in the database whose call it is. */
extern void saga_far_parent_move(const SagaBarrierCall *call,
								 const SagaFarChild *child);

/* The child says this to its parent, if that wants to know: see child.h.  Who
 * waits for it is woken by the commit. */
extern void saga_far_parent_report(int64 saga_id, Jsonb *report);

/* The result of a child that has completed, whose saga is not loaded any more;
 * NULL if there is none. */
extern Jsonb *saga_far_parent_result(int64 saga_id);

/* So many children are let go by one call; as long as it is so many there may be
 * more. */
#define SAGA_MAX_LET_GO		1000

/*
 * The saga has ended: nobody cares about its children any more, and none is
 * begun.  Puts the ids of those that were not let go before into "ids", and
 * returns how many.  The second does so for all sagas that
 * saga_barrier_forget() means, and forgets children that have ended.
 */
extern int	saga_far_parent_let_go(const SagaBarrierCall *call, int64 *ids);
extern int	saga_far_parent_forget(const pg_uuid_t *coordinator,
								   TimestampTz before, Datum kept, int64 *ids);

/*
 * What was reported to sagas of that database and the current user, the oldest
 * first, as much as goes into one answer: an array, NULL if there is nothing.
 */
extern Jsonb *saga_far_parent_read_reports(const pg_uuid_t *coordinator);

/* These have been taken; "ids" is a bigint[]. */
extern void saga_far_parent_acknowledge(const pg_uuid_t *coordinator,
										Datum ids);

/* Who waits for reports waits as for a saga with this id: see
 * saga_waiter_register(). */
#define SAGA_FAR_REPORTS	INT64CONST(-1)

#endif							/* SAGA_FARPARENT_H */
