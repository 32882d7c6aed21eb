/*
 * series.c
 *		Owns how counts and durations become those of the last minute, hour and
 *		day, and durations percentiles.
 *
 * A window is a ring of parts: six of ten seconds, six of ten minutes, eight of
 * three hours, and one more that is being filled.  A part carries the number of
 * its time, so that nobody has to empty it when that is over: who adds to a
 * part of another number takes it over, and who reads leaves it out.
 *
 * So a window covers between its length and one part more.  What it has counted
 * is divided by just the time that it covers.
 *
 * Known limit: a part counts up to 2^32.
 */
#include <math.h>
#include <string.h>

#include "series.h"

#define SECOND		INT64_C(1000000)

static const struct
{
	int			first;			/* among all parts */
	int			nparts;
	int64_t		length;			/* of a part, microseconds */
}			windows[SAGA_NWINDOWS] =
{
	{0, 7, 10 * SECOND},
	{7, 7, 600 * SECOND},
	{14, 9, 3 * 3600 * SECOND}
};

/* Where the first class ends, in microseconds. */
#define FIRST_CLASS_END	100


/* ---- durations ----------------------------------------------------------- */

/* In multiples of 100 us: class 1 begins at 1, 2 at 1.414, 3 at 2 ... */
int
saga_series_class(int64_t duration)
{
	int			doublings = 0;
	int			class;
	int64_t		start;

	if (duration < FIRST_CLASS_END)
		return 0;
	for (start = duration / FIRST_CLASS_END; start > 1; start >>= 1)
		doublings++;
	if (doublings >= SAGA_NDURATIONS / 2)
		return SAGA_NDURATIONS - 1;
	class = 2 * doublings + 1;
	if (class + 1 < SAGA_NDURATIONS &&
		(double) duration >= saga_series_class_start(class + 1))
		class++;
	return class;
}

double
saga_series_class_start(int class)
{
	static const double root = 1.41421356237309504880;
	double		start = FIRST_CLASS_END;

	if (class <= 0)
		return 0;
	start = ldexp(start, (class - 1) / 2);
	return (class - 1) % 2 == 0 ? start : start * root;
}

double
saga_series_percentile(const uint64_t *durations, double part)
{
	uint64_t	total = 0;
	double		rank;
	double		before = 0;

	for (int i = 0; i < SAGA_NDURATIONS; i++)
		total += durations[i];
	rank = part * (double) total;
	for (int i = 0; i < SAGA_NDURATIONS; i++)
	{
		double		start;

		if (durations[i] == 0)
			continue;
		if (before + (double) durations[i] < rank)
		{
			before += (double) durations[i];
			continue;
		}
		start = saga_series_class_start(i);
		return start + (saga_series_class_start(i + 1) - start) *
			(rank - before) / (double) durations[i];
	}
	return 0;
}

void
saga_tally_duration(SagaTally *tally, int64_t duration)
{
	int			class = saga_series_class(duration);

	if (duration > 0)
		tally->time += (uint64_t) duration;
	tally->durations[class]++;
	if (class >= tally->end)
		tally->end = class + 1;
}

void
saga_tally_merge(SagaTally *into, const SagaTally *from)
{
	for (int i = 0; i < SAGA_NCOUNTS; i++)
		into->counts[i] += from->counts[i];
	into->time += from->time;
	for (int i = 0; i < from->end; i++)
		into->durations[i] += from->durations[i];
	if (from->end > into->end)
		into->end = from->end;
}


/* ---- windows ------------------------------------------------------------- */

/* Rounded down, also before the epoch. */
static int64_t
number_of(int64_t time, int64_t length)
{
	return time >= 0 ? time / length : -((length - 1 - time) / length);
}

static int
place_of(SagaWindow window, int64_t number)
{
	int64_t		n = windows[window].nparts;

	return windows[window].first + (int) (((number % n) + n) % n);
}

void
saga_series_add(SagaSeries *series, const SagaTally *tally, int64_t now)
{
	for (int i = 0; i < SAGA_NCOUNTS; i++)
		series->counts[i] += tally->counts[i];
	series->time += tally->time;
	for (int window = 0; window < SAGA_NWINDOWS; window++)
	{
		int64_t		number = number_of(now, windows[window].length);
		SagaPart   *part = &series->parts[place_of(window, number)];

		if (part->number != number)
		{
			memset(part, 0, sizeof(SagaPart));
			part->number = number;
		}
		for (int i = 0; i < SAGA_NCOUNTS; i++)
			part->counts[i] += tally->counts[i];
		for (int i = 0; i < tally->end; i++)
			part->durations[i] += tally->durations[i];
	}
}

void
saga_series_read(const SagaSeries *series, SagaWindow window, int64_t since,
				 int64_t now, SagaReading *reading)
{
	static const double parts[] = {0.5, 0.95, 0.99};
	int64_t		length = windows[window].length;
	int64_t		present = number_of(now, length);
	int64_t		start = (present - windows[window].nparts + 1) * length;
	uint64_t	durations[SAGA_NDURATIONS] = {0};

	memset(reading, 0, sizeof(*reading));
	if (since > start)
		start = since < now ? since : now;
	reading->minutes = (double) (now - start) / (60 * SECOND);
	for (int64_t number = present - windows[window].nparts + 1;
		 number <= present; number++)
	{
		const SagaPart *part = &series->parts[place_of(window, number)];

		if (part->number != number)
			continue;
		for (int i = 0; i < SAGA_NCOUNTS; i++)
			reading->counts[i] += part->counts[i];
		for (int i = 0; i < SAGA_NDURATIONS; i++)
		{
			durations[i] += part->durations[i];
			reading->ndurations += part->durations[i];
		}
	}
	for (int i = 0; i < 3 && reading->ndurations > 0; i++)
		reading->percentiles[i] = saga_series_percentile(durations, parts[i]);
}
