/*
 * test_series.c
 *		Proves that what happens is counted in the windows that cover its time
 *		and in no other, whatever the clock does, and that percentiles are within
 *		a class of what sorting the durations gives.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "series.h"
#include "tap.h"

#define MS		INT64_C(1000)
#define S		(1000 * MS)
#define MINUTE	(60 * S)
#define HOUR	(60 * MINUTE)
#define DAY		(24 * HOUR)

#define lengthof(array) ((int) (sizeof(array) / sizeof((array)[0])))

/* A Monday morning, at the beginning of a part of each window. */
#define START	(INT64_C(9000) * DAY)

static uint64_t seed = 42;

static uint64_t
random_below(uint64_t n)
{
	seed = seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
	return (seed >> 33) % n;
}

static void
add(SagaSeries *series, int count, int64_t duration, int64_t now)
{
	SagaTally	tally = {0};

	tally.counts[count]++;
	if (duration >= 0)
		saga_tally_duration(&tally, duration);
	saga_series_add(series, &tally, now);
}

static double
count_of(const SagaSeries *series, SagaWindow window, int count, int64_t now)
{
	SagaReading reading;

	saga_series_read(series, window, 0, now, &reading);
	return reading.counts[count];
}


/* ---- classes of durations ---------------------------------------------- */

static void
test_classes(void)
{
	bool		rises = true;
	bool		holds = true;

	for (int i = 1; i <= SAGA_NDURATIONS; i++)
		rises = rises &&
			saga_series_class_start(i) > saga_series_class_start(i - 1);
	tap_ok(rises, "each class begins after the one before");
	tap_ok(saga_series_class_start(1) == 100 &&
		   saga_series_class_start(3) == 200 &&
		   fabs(saga_series_class_start(2) - 141.4213562) < 1e-6,
		   "they begin at 100, 141, 200 microseconds ...");
	tap_ok(saga_series_class_start(SAGA_NDURATIONS - 1) > (double) (30 * DAY),
		   "the last one is beyond a month");
	for (int64_t d = 0; d < 100000; d++)
	{
		int			class = saga_series_class(d);

		holds = holds && (double) d >= saga_series_class_start(class) &&
			(double) d < saga_series_class_start(class + 1);
	}
	for (int i = 1; i < SAGA_NDURATIONS; i++)
		for (int64_t d = (int64_t) saga_series_class_start(i) - 1;
			 d <= (int64_t) saga_series_class_start(i) + 1; d++)
		{
			int			class = saga_series_class(d);

			holds = holds && (double) d >= saga_series_class_start(class) &&
				(class == SAGA_NDURATIONS - 1 ||
				 (double) d < saga_series_class_start(class + 1));
		}
	tap_ok(holds, "a duration is in the class whose bounds it is between");
	tap_ok(saga_series_class(-5) == 0 && saga_series_class(INT64_MIN) == 0,
		   "a negative duration is a short one");
	tap_ok(saga_series_class(INT64_MAX) == SAGA_NDURATIONS - 1,
		   "the longest there is is in the last class");
}


/* ---- percentiles -------------------------------------------------------- */

static int
compare(const void *a, const void *b)
{
	int64_t		x = *(const int64_t *) a;
	int64_t		y = *(const int64_t *) b;

	return (x > y) - (x < y);
}

/* No further from the truth than the bounds of its class. */
static void
test_percentiles(const char *what, int64_t *values, int n)
{
	static const double parts[] = {0, 0.01, 0.5, 0.95, 0.99, 1};
	uint64_t	durations[SAGA_NDURATIONS] = {0};
	bool		close = true;
	double		last = -1;

	for (int i = 0; i < n; i++)
		durations[saga_series_class(values[i])]++;
	qsort(values, n, sizeof(int64_t), compare);
	for (int i = 0; i < lengthof(parts); i++)
	{
		int			rank = (int) ceil(parts[i] * n);
		int64_t		exact = values[rank > 0 ? rank - 1 : 0];
		double		estimate = saga_series_percentile(durations, parts[i]);
		int			class = saga_series_class(exact);

		close = close && estimate >= saga_series_class_start(class) - 1e-6 &&
			estimate <= saga_series_class_start(class + 1) + 1e-6;
		close = close && estimate >= last;
		last = estimate;
	}
	tap_ok(close, "percentiles of %s are within the class of the exact ones", what);
}

static void
test_all_percentiles(void)
{
	static int64_t values[10000];
	uint64_t	none[SAGA_NDURATIONS] = {0};

	tap_ok(saga_series_percentile(none, 0.5) == 0, "of nothing there is none");
	for (int i = 0; i < lengthof(values); i++)
		values[i] = (int64_t) random_below(1000 * S);
	test_percentiles("evenly spread durations", values, lengthof(values));
	for (int i = 0; i < lengthof(values); i++)
		values[i] = (int64_t) exp((double) random_below(20000) / 1000);
	test_percentiles("durations over all classes", values, lengthof(values));
	for (int i = 0; i < lengthof(values); i++)
		values[i] = 5 * MS;
	test_percentiles("equal durations", values, lengthof(values));
	values[0] = 3 * MS;
	test_percentiles("one duration", values, 1);
	for (int i = 0; i < 100; i++)
		values[i] = i < 98 ? MS : HOUR;
	test_percentiles("a few that are far out", values, 100);
}


/* ---- windows ------------------------------------------------------------- */

typedef struct WindowRow
{
	SagaWindow	window;
	const char *name;
	int64_t		part;
	int64_t		length;
} WindowRow;

static const WindowRow rows[SAGA_NWINDOWS] = {
	{SAGA_WINDOW_MINUTE, "minute", 10 * S, MINUTE},
	{SAGA_WINDOW_HOUR, "hour", 10 * MINUTE, HOUR},
	{SAGA_WINDOW_DAY, "day", 3 * HOUR, DAY}
};

static void
test_window(const WindowRow *row)
{
	SagaSeries	series = {0};
	SagaReading reading;
	int64_t		then = START + row->part / 2;

	add(&series, 0, MS, then);
	tap_ok(count_of(&series, row->window, 0, then) == 1,
		   "%s: at once", row->name);
	tap_ok(count_of(&series, row->window, 0, then + row->length) == 1,
		   "%s: at its end", row->name);
	tap_ok(count_of(&series, row->window, 0, START + row->length + row->part - 1) == 1,
		   "%s: until the last part is over", row->name);
	tap_ok(count_of(&series, row->window, 0, START + row->length + row->part) == 0,
		   "%s: not after it", row->name);
	tap_ok(count_of(&series, row->window, 0, then - row->part) == 0,
		   "%s: not before it, should the clock be set back", row->name);

	/* the place of a part is used again */
	add(&series, 1, MS, then + row->length + row->part);
	tap_ok(count_of(&series, row->window, 0, then + row->length + row->part) == 0 &&
		   count_of(&series, row->window, 1, then + row->length + row->part) == 1,
		   "%s: what is long ago gives way", row->name);
	tap_ok(series.counts[0] == 1 && series.counts[1] == 1 &&
		   series.time == 2 * MS,
		   "%s: the totals have both", row->name);

	saga_series_read(&series, row->window, 0, START + 7 * row->part + 1, &reading);
	tap_ok(reading.minutes * MINUTE >= (double) row->length &&
		   reading.minutes * MINUTE <= (double) (row->length + row->part),
		   "%s: it covers its length and at most a part", row->name);
	saga_series_read(&series, row->window, then, then + 5 * S, &reading);
	tap_ok(fabs(reading.minutes * 60 - 5) < 1e-9,
		   "%s: but nothing from before counting began", row->name);
	saga_series_read(&series, row->window, then + 9 * S, then, &reading);
	tap_ok(reading.minutes == 0, "%s: never less than nothing", row->name);
}

/* Whatever happens when: as a list of it says. */
static void
test_random(const WindowRow *row)
{
	static int64_t times[3000];
	static int64_t taken[3000];
	SagaSeries	series = {0};
	bool		counts = true;
	bool		middle = true;
	int64_t		now = START;

	for (int i = 0; i < lengthof(times); i++)
	{
		SagaReading reading;
		int64_t		present;
		int64_t		from;
		int64_t		inside[lengthof(times)];
		int			n = 0;

		now += (int64_t) random_below((uint64_t) (row->part / (random_below(40) + 1)));
		if (random_below(200) == 0)
			now += 2 * row->length;
		times[i] = now;
		taken[i] = (int64_t) exp((double) random_below(20000) / 1000);
		add(&series, i % SAGA_NCOUNTS, taken[i], now);

		present = now / row->part;
		from = (present - row->length / row->part) * row->part;
		for (int k = i; k >= 0 && times[k] >= from; k--)
			inside[n++] = taken[k];
		saga_series_read(&series, row->window, 0, now, &reading);
		counts = counts && reading.ndurations == (uint64_t) n &&
			reading.counts[0] + reading.counts[1] + reading.counts[2] +
			reading.counts[3] == n;
		if (i % 50 == 0)
		{
			int			class;

			qsort(inside, n, sizeof(int64_t), compare);
			class = saga_series_class(inside[(n + 1) / 2 - 1]);
			middle = middle &&
				reading.percentiles[0] >= saga_series_class_start(class) - 1e-6 &&
				reading.percentiles[0] <= saga_series_class_start(class + 1) + 1e-6;
		}
	}
	tap_ok(counts, "%s: random events are counted while they are in it", row->name);
	tap_ok(middle, "%s: and its median is theirs", row->name);
}

static void
test_before_epoch(void)
{
	SagaSeries	series = {0};

	add(&series, 2, -1, -5 * S);
	tap_ok(count_of(&series, SAGA_WINDOW_MINUTE, 2, 1 * S) == 1 &&
		   count_of(&series, SAGA_WINDOW_DAY, 2, 1 * S) == 1,
		   "time may be negative");
}

static void
test_tally(void)
{
	SagaSeries	one = {0};
	SagaSeries	many = {0};
	SagaTally	tally = {0};

	for (int i = 0; i < 1000; i++)
	{
		int64_t		duration = (int64_t) random_below(HOUR);

		tally.counts[i % SAGA_NCOUNTS]++;
		saga_tally_duration(&tally, duration);
		add(&one, i % SAGA_NCOUNTS, duration, START);
	}
	saga_series_add(&many, &tally, START);
	tap_ok(memcmp(&one, &many, sizeof(one)) == 0,
		   "a thousand at once are the same as one after the other");
}

int
main(void)
{
	test_classes();
	test_all_percentiles();
	for (int i = 0; i < lengthof(rows); i++)
	{
		test_window(&rows[i]);
		test_random(&rows[i]);
	}
	test_before_epoch();
	test_tally();
	return tap_done();
}
