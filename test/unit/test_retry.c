/*
 * test_retry.c
 *		Proves that pauses between attempts grow as the policy says, stay within
 *		its bounds whatever the numbers are, and that SQLSTATEs are judged by
 *		policy first and nature second.
 */
#include <limits.h>
#include <math.h>
#include <stddef.h>

#include "retry.h"
#include "tap.h"

#define MS		INT64_C(1000)
#define S		(1000 * MS)
#define HOUR	(3600 * S)

#define lengthof(array) ((int) (sizeof(array) / sizeof((array)[0])))

typedef struct DelayRow
{
	const char *what;
	int64_t		initial;
	int64_t		max;
	double		multiplier;
	double		jitter;
	int			failures;
	double		random;
	int64_t		expected;
} DelayRow;

static const DelayRow delay_rows[] = {
	{"first pause", 1 * S, HOUR, 2, 0, 1, 0, 1 * S},
	{"second pause", 1 * S, HOUR, 2, 0, 2, 0, 2 * S},
	{"fifth pause", 1 * S, HOUR, 2, 0, 5, 0, 16 * S},
	{"the last below the cap", 1 * S, HOUR, 2, 0, 12, 0, 2048 * S},
	{"capped", 1 * S, HOUR, 2, 0, 13, 0, HOUR},
	{"a million failures", 1 * S, HOUR, 2, 0, 1000000, 0, HOUR},
	{"all failures there are", 1 * S, HOUR, 2, 0, INT_MAX, 0, HOUR},
	{"before any failure", 1 * S, HOUR, 2, 0, 0, 0, 1 * S},
	{"a negative count", 1 * S, HOUR, 2, 0, INT_MIN, 0, 1 * S},
	{"constant", 5 * S, HOUR, 1, 0, INT_MAX, 0, 5 * S},
	{"multiplier 1.5", 2 * S, HOUR, 1.5, 0, 3, 0, 4500 * MS},
	{"shrinking", 8 * S, HOUR, 0.5, 0, 4, 0, 1 * S},
	{"shrunk to nothing", 8 * S, HOUR, 0.5, 0, INT_MAX, 0, 0},
	{"multiplier 0", 8 * S, HOUR, 0, 0, 2, 0, 0},
	{"initial above the cap", 2 * HOUR, HOUR, 2, 0, 1, 0, HOUR},
	{"no initial pause", 0, HOUR, 2, 0, INT_MAX, 0, 0},
	{"negative initial pause", -5, HOUR, 2, 0, 3, 0, 0},
	{"no pause allowed", 1 * S, 0, 2, 0, 3, 0, 0},
	{"negative cap", 1 * S, -1, 2, 0, 3, 0, 0},
	{"jitter unused", 8 * S, HOUR, 2, 0.5, 1, 0, 8 * S},
	{"half of the jitter", 8 * S, HOUR, 2, 0.5, 1, 0.5, 6 * S},
	{"full jitter, half", 8 * S, HOUR, 2, 1, 1, 0.5, 4 * S},
	{"jitter after the cap", 1 * S, HOUR, 2, 0.5, 30, 0.5, HOUR / 4 * 3},
	{"everything cut", 8 * S, HOUR, 2, 1, 1, 1, 0},
	{"random too large", 8 * S, HOUR, 2, 0.5, 1, 7, 4 * S},
	{"random negative", 8 * S, HOUR, 2, 0.5, 1, -7, 8 * S},
	{"jitter too large", 8 * S, HOUR, 2, 9, 1, 0.5, 4 * S},
	{"jitter negative", 8 * S, HOUR, 2, -1, 1, 0.5, 8 * S},
	{"jitter NaN", 8 * S, HOUR, 2, NAN, 1, 0.5, 8 * S},
	{"multiplier NaN", 8 * S, HOUR, NAN, 0, 2, 0, HOUR},
	{"multiplier infinite", 8 * S, HOUR, INFINITY, 0, 2, 0, HOUR},
	{"negative multiplier", 8 * S, HOUR, -2, 0, 2, 0, 0},
	{"no cap", INT64_MAX, INT64_MAX, 2, 0, 9, 0, INT64_MAX},
	{"no cap, overflowing", 1 * S, INT64_MAX, 10, 0, 400, 0, INT64_MAX},
	{"no cap, all cut", INT64_MAX, INT64_MAX, 2, 1, 9, 1, 0}
};

static void
test_delays(void)
{
	int			i;

	for (i = 0; i < lengthof(delay_rows); i++)
	{
		const DelayRow *row = &delay_rows[i];
		SagaRetryPolicy policy = {0};
		int64_t		got;

		policy.initial_delay = row->initial;
		policy.max_delay = row->max;
		policy.multiplier = row->multiplier;
		policy.jitter = row->jitter;
		got = saga_retry_delay(&policy, row->failures, row->random);
		if (!tap_ok(got == row->expected, "delay: %s", row->what))
			tap_note("got %lld, expected %lld", (long long) got,
					 (long long) row->expected);
	}
}

/* Whatever the numbers are, 0 <= pause <= max_delay. */
static void
test_bounds(void)
{
	static const int64_t delays[] = {
		INT64_MIN, -1, 0, 1, 7, S, HOUR, INT64_MAX - 1, INT64_MAX
	};
	static const double numbers[] = {
		-INFINITY, -1, 0, 1e-300, 0.5, 0.999999999999, 1, 1.0000001, 2, 1e300,
		INFINITY, NAN
	};
	static const int counts[] = {INT_MIN, -1, 0, 1, 2, 3, 64, 65, INT_MAX};
	const int	total = lengthof(delays) * lengthof(delays) *
		lengthof(numbers) * lengthof(numbers) * lengthof(numbers) *
		lengthof(counts);
	int			outside = 0;
	int			n;

	for (n = 0; n < total; n++)
	{
		SagaRetryPolicy policy = {0};
		int			rest = n;
		double		random;
		int64_t		upper;
		int64_t		got;

		policy.initial_delay = delays[rest % lengthof(delays)];
		rest /= lengthof(delays);
		policy.max_delay = delays[rest % lengthof(delays)];
		rest /= lengthof(delays);
		policy.multiplier = numbers[rest % lengthof(numbers)];
		rest /= lengthof(numbers);
		policy.jitter = numbers[rest % lengthof(numbers)];
		rest /= lengthof(numbers);
		random = numbers[rest % lengthof(numbers)];
		rest /= lengthof(numbers);
		got = saga_retry_delay(&policy, counts[rest], random);
		upper = policy.max_delay > 0 ? policy.max_delay : 0;
		if (got < 0 || got > upper)
			outside++;
	}
	tap_ok(outside == 0, "no pause of %d combinations is out of bounds", total);
}

/* A year of a policy: a minute doubled up to six hours, tried in no time. */
static void
test_year(void)
{
	SagaRetryPolicy policy = {0};
	int64_t		clock = 0;
	int			failures = 0;

	policy.initial_delay = 60 * S;
	policy.max_delay = 6 * HOUR;
	policy.multiplier = 2;
	while (clock < 365 * 24 * HOUR)
		clock += saga_retry_delay(&policy, ++failures, 0);

	/* nine that double, 511 minutes, and then six hours each */
	tap_ok(failures == 9 + 1459, "attempts in a year: %d", failures);
}

typedef struct PassingRow
{
	const char *sqlstate;
	bool		any;
	bool		expected;
	const char *what;
} PassingRow;

/* The policy retries on 22012 and class P0, fails on 40002 and class 57. */
static const PassingRow passing_rows[] = {
	{"08006", false, true, "a lost connection"},
	{"40001", false, true, "a serialization failure"},
	{"40P01", false, true, "a deadlock"},
	{"53200", false, true, "out of memory"},
	{"58030", false, true, "an I/O error"},
	{"55P03", false, true, "a lock not available"},
	{"55000", false, false, "the class of that lock"},
	{"55006", false, false, "another one of that class"},
	{"23505", false, false, "a unique violation"},
	{"22003", false, false, "number out of range"},
	{"22012", false, true, "a code that the policy names"},
	{"22011", false, false, "the code beside it"},
	{"P0001", false, true, "a class that the policy names"},
	{"P0", false, true, "that class as such"},
	{"0P000", false, false, "a class with the letters turned round"},
	{"40002", false, false, "passing by nature, but not in this policy"},
	{"57014", false, false, "a class likewise"},
	{"08P01", false, true, "a code with a letter"},
	{"p0001", false, false, "lower case"},
	{"", false, false, "no code"},
	{NULL, false, false, "not even an empty one"},
	{"4", false, false, "half a class"},
	{"23505", true, true, "any: a unique violation"},
	{"", true, true, "any: no code"},
	{NULL, true, true, "any: not even an empty one"},
	{"40001", true, true, "any: a serialization failure"},
	{"40002", true, false, "any: a code on which the policy fails"},
	{"57014", true, false, "any: a class on which the policy fails"}
};

static void
test_passing(void)
{
	static const SagaSqlStatePattern retry_on[] = {
		{"22012"}, {"P0"}, {"40002"}, {"5"}, {""}, {"230"}
	};
	static const SagaSqlStatePattern fail_on[] = {{"40002"}, {"57"}};
	SagaRetryPolicy policy = {0};
	SagaRetryPolicy empty = {0};
	int			i;

	policy.nretry_on = lengthof(retry_on);
	policy.retry_on = retry_on;
	policy.nfail_on = lengthof(fail_on);
	policy.fail_on = fail_on;
	for (i = 0; i < lengthof(passing_rows); i++)
	{
		const PassingRow *row = &passing_rows[i];

		tap_ok(saga_retry_is_passing(&policy, row->sqlstate, row->any) ==
			   row->expected, "passing: %s is%s", row->what,
			   row->expected ? "" : " not");
	}
	tap_ok(saga_retry_is_passing(&empty, "57014", false),
		   "without lists: nature decides");
	tap_ok(!saga_retry_is_passing(&empty, "22012", false),
		   "without lists: nature decides against");
}

int
main(void)
{
	test_delays();
	test_bounds();
	test_year();
	test_passing();
	return tap_done();
}
