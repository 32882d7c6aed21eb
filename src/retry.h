/*
 * retry.h
 *		When a failed attempt is made again: which errors are passing, how often,
 *		how long to pause.
 *
 * PURE: no server headers, no clock, no random source.  Anyone may call.
 */
#ifndef SAGA_RETRY_H
#define SAGA_RETRY_H

#include <stdbool.h>
#include <stdint.h>

/* A pattern matches a whole SQLSTATE ("40001") or a class ("40"). */
#define SAGA_SQLSTATE_LENGTH	5

typedef struct SagaSqlStatePattern
{
	char		text[SAGA_SQLSTATE_LENGTH + 1];
} SagaSqlStatePattern;

typedef struct SagaRetryPolicy
{
	int			max_attempts;	/* counted attempts, at least 1; 0 = no limit */
	int64_t		initial_delay;	/* pause after the first failure, microseconds */
	int64_t		max_delay;		/* upper bound of every pause, microseconds */
	double		multiplier;		/* each pause is so many times the one before */
	double		jitter;			/* 0 to 1: the part of the pause that is random */
	int			nretry_on;		/* further SQLSTATEs that are passing ... */
	const SagaSqlStatePattern *retry_on;
	int			nfail_on;		/* ... and those that are final; these win */
	const SagaSqlStatePattern *fail_on;
} SagaRetryPolicy;

/*
 * The pause before the next attempt, in microseconds, after "failures" counted
 * failures (1 after the first).  "random" in [0, 1) comes from the caller.
 *
 * Exponential backoff with bounded ("equal") jitter: the pause is
 * base * (1 - jitter * random), base = initial * multiplier ^ (failures - 1),
 * capped at max_delay before the jitter.  Never negative, never overflows.
 */
extern int64_t saga_retry_delay(const SagaRetryPolicy *policy, int failures,
								double random);

/*
 * Is an error with this SQLSTATE passing (worth another attempt)?  Classes 08,
 * 40, 53, 57, 58 and 55P03 are, then the policy's own lists; "any" makes every
 * error passing that fail_on does not name: compensations, confirmations and
 * steps after the pivot.
 */
extern bool saga_retry_is_passing(const SagaRetryPolicy *policy,
								  const char *sqlstate, bool any);

#endif							/* SAGA_RETRY_H */
