/*
 * retry.c
 *		When a failed attempt is made again.
 *
 * This file owns the arithmetic of pauses and the judgement of errors.  It
 * keeps nothing between calls, so that it cannot be left in a bad state; a
 * policy that define() would refuse (a negative delay, a NaN) gives a pause of
 * some sane length here rather than undefined behaviour.
 */
#include <stddef.h>
#include <string.h>

#include "retry.h"

/* The number of characters of a class, the first part of an SQLSTATE. */
#define SQLSTATE_CLASS_LENGTH	2

/*
 * What passes by itself, for whoever has no policy: connections (08), conflicts
 * with other transactions (40), full resources (53), people and shutdowns (57),
 * the system below (58), and a lock that could not be had.
 */
static const SagaSqlStatePattern passing_by_nature[] = {
	{"08"}, {"40"}, {"53"}, {"57"}, {"58"}, {"55P03"}
};

#define NPASSING_BY_NATURE \
	((int) (sizeof(passing_by_nature) / sizeof(passing_by_nature[0])))

/* By squaring: "exponent" may be two thousand millions.  May give infinity. */
static double
raise_to(double base, int exponent)
{
	double		result = 1.0;

	while (exponent > 0)
	{
		if (exponent & 1)
			result *= base;
		base *= base;
		exponent >>= 1;
	}
	return result;
}

/* Also brings a NaN to 0. */
static double
clamp_to_unit(double value)
{
	if (!(value > 0.0))
		return 0.0;
	return value < 1.0 ? value : 1.0;
}

static int64_t
grow_delay(const SagaRetryPolicy *policy, int failures)
{
	int			steps = failures > 1 ? failures - 1 : 0;
	double		base;

	base = (double) policy->initial_delay *
		raise_to(policy->multiplier, steps);

	/* negated, so that infinity and NaN get the upper bound too */
	if (!(base < (double) policy->max_delay))
		return policy->max_delay;
	return base > 0.0 ? (int64_t) base : 0;
}

int64_t
saga_retry_delay(const SagaRetryPolicy *policy, int failures, double random)
{
	int64_t		pause;
	double		cut;

	if (policy->initial_delay <= 0 || policy->max_delay <= 0)
		return 0;
	pause = grow_delay(policy, failures);
	cut = (double) pause * clamp_to_unit(policy->jitter) *
		clamp_to_unit(random);

	/* compared before the conversion: a double of 2^63 has no int64 */
	if (cut >= (double) pause)
		return 0;
	return pause - (int64_t) cut;
}

/* An empty pattern, or one of another length, matches nothing. */
static bool
matches(const SagaSqlStatePattern *pattern, const char *sqlstate)
{
	size_t		length = strlen(pattern->text);

	if (length != SQLSTATE_CLASS_LENGTH && length != SAGA_SQLSTATE_LENGTH)
		return false;
	return strncmp(pattern->text, sqlstate, length) == 0;
}

static bool
matches_any(const SagaSqlStatePattern *patterns, int npatterns,
			const char *sqlstate)
{
	int			i;

	for (i = 0; i < npatterns; i++)
	{
		if (matches(&patterns[i], sqlstate))
			return true;
	}
	return false;
}

bool
saga_retry_is_passing(const SagaRetryPolicy *policy, const char *sqlstate,
					  bool any)
{
	if (sqlstate == NULL)
		sqlstate = "";
	if (matches_any(policy->fail_on, policy->nfail_on, sqlstate))
		return false;
	if (any)
		return true;
	return matches_any(policy->retry_on, policy->nretry_on, sqlstate) ||
		matches_any(passing_by_nature, NPASSING_BY_NATURE, sqlstate);
}
