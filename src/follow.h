/*
 * follow.h
 *		Child sagas in another database, as the courier has to do with them: what
 *		it waits for, and what their reports are to its tasks.
 *
 * The courier.  Nothing here reads a table, needs a transaction, or waits.
 */
#ifndef SAGA_FOLLOW_H
#define SAGA_FOLLOW_H

#include "answer.h"
#include "route.h"

/* The children behind one route. */
typedef struct SagaFollow SagaFollow;

/* "owner" is for the calls that are made here: see SagaCall. */
extern SagaFollow *saga_follow_open(SagaRoute *route, void *owner,
									MemoryContext parent);

/*
 * A call of kind SAGA_CALL_CHILD is about to be sent: a report may come before
 * its answer does.  One that has all children of a saga let go ends it that we
 * wait for them.
 */
extern void saga_follow_expect(SagaFollow *follow, SagaCall *call);

/*
 * Its answer has come: what is to be done with its task, in "request", of which
 * id and lease are set; false: nothing, since it has been answered otherwise, or
 * nobody waits for it.  "result" is that of a call that has succeeded, or NULL.
 */
extern bool saga_follow_settle(SagaFollow *follow, SagaCall *call,
							   Jsonb *result, SagaTaskRequest *request);

/*
 * An answer of kind SAGA_CALL_FOLLOW: for each report that is one to a task a
 * call of kind SAGA_CALL_REPORT is added to "reports", whose outcome is the
 * task's answer.  "result" is as above.
 */
extern void saga_follow_read(SagaFollow *follow, SagaCall *call, Jsonb *result,
							 dlist_head *reports);

/* What saga_follow_settle() or a report has asked for was written, or found out
 * of date, unless that has failed. */
extern void saga_follow_written(SagaFollow *follow, SagaCall *call,
								const SagaTaskRequest *request);

/* Is anything waited for? */
extern bool saga_follow_is_active(const SagaFollow *follow);

/* The database there has lost something: its children are to be asked for
 * again.  Said once. */
extern bool saga_follow_take_loss(SagaFollow *follow);

/* Send the next call that waits for reports, if it is time and can be done. */
extern void saga_follow_work(SagaFollow *follow, TimestampTz now);

/* When there is something to do though nothing happens. */
extern TimestampTz saga_follow_wakes_at(const SagaFollow *follow,
										TimestampTz now);

/* The clock was set back. */
extern void saga_follow_mend_times(SagaFollow *follow);

#endif							/* SAGA_FOLLOW_H */
