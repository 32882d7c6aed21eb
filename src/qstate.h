/*
 * qstate.h
 *		What shared memory knows of the queues of tasks: which have some to be
 *		announced, how their participants do, and whether a breaker is open.
 *
 * All of it is a hint: lost with the server, when a breaker closes and rates
 * begin anew.  The tables say which tasks there are.  Without a segment (not
 * preloaded) nothing is noted, and nothing held back.
 *
 * A queue is known by the id of its row in the current database.  One with a
 * negative id is of calls of a server (server.h): it is not announced but marked
 * for the courier, and its name is of no use here.
 */
#ifndef SAGA_QSTATE_H
#define SAGA_QSTATE_H

#include "datatype/timestamp.h"

/* The most bytes in the name of a queue: "saga_" and it are a channel. */
#define SAGA_MAX_QUEUE_NAME	58

/* So many participants of a queue are remembered. */
#define SAGA_QUEUE_PARTICIPANTS	16

/* The most bytes that are remembered of a participant's name, with the zero. */
#define SAGA_PARTICIPANT_NAME	64

/* When a queue is paused for its failures: see saga.queue. */
typedef struct SagaBreaker
{
	int			failures;		/* in a row; 0 = never */
	int64		pause;			/* microseconds, at first ... */
	int64		max_pause;		/* ... and at most */
} SagaBreaker;

/* ---- any backend, in a transaction: counts once that has committed ------ */

/* Tasks were offered: announce them (NOTIFY saga_<queue>), or have the courier
 * call.  With 0 those that are there are announced. */
extern void saga_qstate_offered(int32 queue, const char *name, int ntasks);

/* "participant" has claimed tasks; also with none, when it only looked. */
extern void saga_qstate_claimed(int32 queue, const char *name,
								const char *participant, int ntasks);

/* What became of tasks: answered as done, answered as failed, their lease is
 * over.  A success closes the breaker, failures in a row open it. */
extern void saga_qstate_answered(int32 queue, const char *name,
								 const SagaBreaker *breaker, int ncompleted,
								 int nfailed, int nexpired);

/* A task has ended otherwise: so that it will be deleted. */
extern void saga_qstate_ended(void);

/* A lease ends then: the coordinator looks at that time, unless it knows of an
 * earlier one. */
extern void saga_qstate_lease(TimestampTz until);

/* ---- any backend, at once ------------------------------------------------ */

/*
 * How many tasks may be claimed now: "max"; 0 while the breaker is open; 1
 * when its pause is over, once for each pause, until that task was answered.
 */
extern int	saga_qstate_allowance(int32 queue, const SagaBreaker *breaker,
								  int max);

/* The queue is gone, or a person closes its breaker. */
extern void saga_qstate_forget(int32 queue);
extern void saga_qstate_forget_database(Oid database);
extern void saga_qstate_close_breaker(int32 queue);

/* ---- the coordinator: see SAGA_DUTY_ANNOUNCE in shared.h -------------------- */

/*
 * The next queue of this database that is to be announced now; false if there
 * is none.  A queue is announced at once when it was not in the last few
 * milliseconds, else when these are over.  "name" has room for
 * SAGA_MAX_QUEUE_NAME + 1.  Without a segment: the next queue to which this
 * backend itself has offered tasks.
 */
extern bool saga_qstate_next_announcement(char *name);

/* The next queue to which the current transaction has offered tasks, while
 * there is no room to remember it: to be announced in this transaction.  False
 * if there is none. */
extern bool saga_qstate_next_unplaced(char *name);

/* When there is something to announce, or a breaker's pause is over, which is
 * announced too; DT_NOEND if nothing is. */
extern TimestampTz saga_qstate_announce_at(void);

/* ---- the courier: see SAGA_COURIER_CALLS in shared.h -------------------------- */

/* Take the mark of the next queue of a server that has one; false if there is
 * none.  Until its breaker's pause is over it is not found. */
extern bool saga_qstate_next_call(int32 *queue);

/* When the first mark is found: a breaker's pause is over then.  DT_NOEND if
 * there is none. */
extern TimestampTz saga_qstate_call_at(void);

/* ---- views ----------------------------------------------------------------- */

typedef struct SagaQueueParticipant
{
	char		name[SAGA_PARTICIPANT_NAME];
	TimestampTz last_seen;		/* 0 = no entry */
	int64		nclaimed;		/* since it is remembered */
} SagaQueueParticipant;

typedef enum SagaBreakerState
{
	SAGA_BREAKER_CLOSED,
	SAGA_BREAKER_OPEN,
	SAGA_BREAKER_HALF_OPEN		/* one task is tried */
} SagaBreakerState;

/* "closed", "open", "half open" */
extern const char *saga_breaker_state_name(SagaBreakerState state);

typedef struct SagaQueueInfo
{
	int64		noffered;		/* these since the server's start */
	int64		nclaimed;
	int64		ncompleted;
	int64		nfailed;
	int64		nexpired;
	double		rate;			/* completed per second, over the last minute */
	int			failures;		/* in a row */
	SagaBreakerState breaker;
	TimestampTz breaker_until;	/* OPEN: until then; else 0 */
	SagaQueueParticipant participants[SAGA_QUEUE_PARTICIPANTS];
} SagaQueueInfo;

/* False if nothing is known of it. */
extern bool saga_qstate_info(int32 queue, SagaQueueInfo *info);

/* ---- the module ------------------------------------------------------------- */

/* Ask for the segment; from _PG_init() in the postmaster. */
extern void saga_qstate_init(void);

#endif							/* SAGA_QSTATE_H */
