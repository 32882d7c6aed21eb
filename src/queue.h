/*
 * queue.h
 *		Queues of tasks: whose they are, who may offer and take tasks, and their
 *		settings.
 *
 * Any backend, in a transaction.  What is found is remembered per backend until
 * something of it changes.  Results are in CurrentMemoryContext.
 */
#ifndef SAGA_QUEUE_H
#define SAGA_QUEUE_H

#include "datatype/timestamp.h"

#include "qstate.h"

typedef struct SagaQueue
{
	int32		id;
	const char *name;
	Oid			owner;			/* InvalidOid if that role is gone */
	bool		paused;			/* by a person: nobody gets tasks */
	SagaBreaker breaker;
} SagaQueue;

/* Is this the id of a queue of calls of a server?  See server.h; the functions
 * here know nothing of those but where it is said. */
#define saga_queue_is_servers(id)	((id) < 0)

/* NULL if there is none. */
extern SagaQueue *saga_queue_find(const char *name);
extern SagaQueue *saga_queue_find_by_id(int32 id);

/* Raises 22023 unless it can be the name of a queue; "where" is 'step "x"', or
 * NULL. */
extern void saga_queue_check_name(const char *name, const char *where);

/*
 * A step that offers tasks to this queue is being defined by the current user:
 * make the queue if there is none, its owner's; else raise 42501 unless the
 * user has the privileges of its owner, or was granted "offer".
 */
extern void saga_queue_use_in_definition(const char *name);

/*
 * May steps that this role has defined offer tasks to the queue, now?  Asked for
 * each task, since the queue of that name may be another one by then, or the
 * right gone.
 */
extern bool saga_queue_may_offer(const SagaQueue *queue, Oid role);

/* Raise 42501 unless the current user may take tasks of the queue: has the
 * privileges of its owner, or was granted "participate".  Of a server only the
 * courier, or another superuser, may. */
extern void saga_queue_check_participant(const SagaQueue *queue);

/* May the current user see how a queue does: as its owner, by any grant, or as
 * a monitor?  False if there is none. */
extern bool saga_queue_is_visible(int32 id);

/* The open tasks of a queue, as the active snapshot shows them. */
typedef struct SagaQueueDepth
{
	int64		nready;
	TimestampTz oldest_ready;	/* when it was offered; 0 = there is none */
	int64		nclaimed;
	TimestampTz oldest_claimed; /* when it was claimed; likewise */
	TimestampTz next_end;		/* of a lease; likewise */
} SagaQueueDepth;

/* Counts no further than "most" of either: the oldest of those counted come
 * first, but claims are counted by the ends of their leases. */
extern void saga_queue_look(int32 id, int64 most, SagaQueueDepth *depth);

/* ---- changes: each checks that the current user may make it ------------- */

/* Raises if there is one of that name. */
extern void saga_queue_create(const char *name, Oid owner);

/* Raises while a task is open, or a step of a definition or of a saga that has
 * not ended names it. */
extern void saga_queue_drop(const char *name);

/* What saga.configure_queue() was given; NULL = leave it as it is. */
typedef struct SagaQueueSettings
{
	const int  *breaker_failures;	/* 0 = never */
	const Interval *breaker_pause;
	const Interval *breaker_max_pause;
	const bool *paused;
	Oid			owner;			/* InvalidOid = leave it */
} SagaQueueSettings;

extern void saga_queue_configure(const char *name,
								 const SagaQueueSettings *settings);

/* Close its breaker now. */
extern void saga_queue_reset_breaker(const char *name);

typedef enum SagaQueuePrivilege
{
	SAGA_QUEUE_OFFER,			/* name it in a definition */
	SAGA_QUEUE_PARTICIPATE		/* take its tasks */
} SagaQueuePrivilege;

/*
 * PARTICIPATE comes with the privileges that a participant needs on functions
 * and views of ours; the first one that a superuser gives makes the queue.
 */
extern void saga_queue_grant(const char *name, SagaQueuePrivilege privilege,
							 Oid role);

/* Returns false if there was nothing to take back.  With a role's last
 * PARTICIPATE those privileges go, unless it has them for another reason. */
extern bool saga_queue_revoke(const char *name, SagaQueuePrivilege privilege,
							  const char *role_name);

/* For saga.adopt(): as saga_catalog_adopt(). */
extern void saga_queue_adopt(void);

#endif							/* SAGA_QUEUE_H */
