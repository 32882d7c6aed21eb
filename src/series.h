/*
 * series.h
 *		Counts and durations of the last minute, hour and day.
 *
 * A series is of something that happens now and then and may take a while:
 * sagas of a definition, attempts of a step.  Pure: no memory, no clock, no
 * server headers; time is an argument, microseconds of any epoch.
 */
#ifndef SAGA_SERIES_H
#define SAGA_SERIES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Things that are counted in one series, numbered by who uses it. */
#define SAGA_NCOUNTS		4

/* Durations are counted in so many classes: up to 100 us, and then each ends at
 * the square root of 2 times the one before. */
#define SAGA_NDURATIONS		72

typedef enum SagaWindow
{
	SAGA_WINDOW_MINUTE,
	SAGA_WINDOW_HOUR,
	SAGA_WINDOW_DAY
} SagaWindow;

#define SAGA_NWINDOWS	(SAGA_WINDOW_DAY + 1)

/* Parts of all windows: the whole ones of each, and the one that is filled. */
#define SAGA_NPARTS		((6 + 1) + (6 + 1) + (8 + 1))

/* Part of a window. */
typedef struct SagaPart
{
	int64_t		number;			/* its time, in lengths of a part */
	uint32_t	counts[SAGA_NCOUNTS];
	uint32_t	durations[SAGA_NDURATIONS];
} SagaPart;

typedef struct SagaSeries
{
	uint64_t	counts[SAGA_NCOUNTS];
	uint64_t	time;			/* sum of the durations, microseconds */
	SagaPart	parts[SAGA_NPARTS];
} SagaSeries;

/* What is to be added to a series; all zero: nothing. */
typedef struct SagaTally
{
	uint32_t	counts[SAGA_NCOUNTS];
	uint64_t	time;
	int			end;			/* behind the last class that is not zero */
	uint32_t	durations[SAGA_NDURATIONS];
} SagaTally;

/* The class of a duration in microseconds, and where it begins. */
extern int	saga_series_class(int64_t duration);
extern double saga_series_class_start(int class);

extern void saga_tally_duration(SagaTally *tally, int64_t duration);

/* Add one to the other. */
extern void saga_tally_merge(SagaTally *into, const SagaTally *from);

extern void saga_series_add(SagaSeries *series, const SagaTally *tally,
							int64_t now);

/* What a window says. */
typedef struct SagaReading
{
	double		minutes;		/* so many it covers */
	double		counts[SAGA_NCOUNTS];	/* in all of them */
	uint64_t	ndurations;
	double		percentiles[3]; /* 50, 95, 99; microseconds.  Of no meaning
								 * without durations */
} SagaReading;

/*
 * Read a window: its whole parts and the present one, but nothing from before
 * "since", when counting began.  Parts that lie in the future, since the clock
 * was set back, are left out.
 */
extern void saga_series_read(const SagaSeries *series, SagaWindow window,
							 int64_t since, int64_t now,
							 SagaReading *reading);

/* The duration below which that part (0 to 1) of these lie, in microseconds:
 * interpolated within its class; 0 if there are none. */
extern double saga_series_percentile(const uint64_t *durations, double part);

#endif							/* SAGA_SERIES_H */
