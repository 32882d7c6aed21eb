/*
 * claim.h
 *		Tasks are claimed.
 *
 * Any backend, for a participant, in its transaction; the caller has checked
 * that it may.
 */
#ifndef SAGA_CLAIM_H
#define SAGA_CLAIM_H

#include "utils/jsonb.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "definition.h"
#include "queue.h"

/* The most tasks in one claim. */
#define SAGA_MAX_TASKS		1000

/* The longest lease: a day, in microseconds. */
#define SAGA_MAX_LEASE		USECS_PER_DAY

/* What a participant gets. */
typedef struct SagaClaim
{
	int64		id;
	pg_uuid_t	lease_token;
	int64		saga_id;
	const char *definition;
	const char *step;
	int			element;		/* -1 = the step is not foreach */
	SagaOperation operation;
	const char *task;
	Jsonb	   *payload;
	int			attempt;
	const char *idempotency_key;
	const char *traceparent;	/* of the operation; NULL with "aside" */
	TimestampTz lease_until;

	/* for the courier */
	const SagaStep *definition_step;
	const pg_uuid_t *token;
	int			round;
	TimestampTz begun_at;		/* when the saga was begun */
	int64		timeout;		/* of the attempt, microseconds; 0 = no limit */
	bool		cancelled;		/* nobody needs it any more */
	bool		aside;			/* it is no attempt: see taskrow.c.  There is no
								 * "definition_step" */
} SagaClaim;

typedef void (*SagaClaimCallback) (const SagaClaim *claim, void *arg);

/*
 * Claim at most "max" tasks of a queue, the oldest first, for "lease"
 * microseconds, and give each to "each" (in memory that is gone afterwards).
 * Returns how many.  Waits for nobody.  The commit will be flushed.
 */
extern int	saga_claim_take(const SagaQueue *queue, int max, int64 lease,
							const char *participant, SagaClaimCallback each,
							void *arg);

/*
 * Likewise those that somebody else, who is no more, has claimed and not
 * answered: they may have been done.  All of them whose lease ends then or later,
 * each with a new lease.
 */
extern int	saga_claim_take_over(const SagaQueue *queue, int64 lease,
								 TimestampTz from, const char *participant,
								 SagaClaimCallback each, void *arg);

/* Tasks have come back to this session: its next claim begins at the beginning. */
extern void saga_claim_forget_place(void);

#endif							/* SAGA_CLAIM_H */
