/*
 * statsapi.c
 *		Owns the SQL-callable functions about statistics: those behind the views
 *		saga.health and saga.step_health, and saga.reset_statistics().
 *
 * Any backend.  Who may use the views may call the functions behind them too, so
 * these show a definition only to those who have the privileges of its owner,
 * and to monitors.
 */
#include "postgres.h"

#include "access/xlog.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "catalog.h"
#include "json.h"
#include "owner.h"
#include "role.h"
#include "stats.h"
#include "store.h"

PG_FUNCTION_INFO_V1(saga_health);
PG_FUNCTION_INFO_V1(saga_step_health);
PG_FUNCTION_INFO_V1(saga_reset_statistics);

/* Columns of saga.health_raw(); the last ones come once for each window. */
enum
{
	HEALTH_DEFINITION,
	HEALTH_STATUSES,			/* in the order of the type */
	HEALTH_WAITING = HEALTH_STATUSES + SAGA_NUNFINISHED,
	HEALTH_COUNTS,				/* begun, completed, compensated, abandoned */
	HEALTH_SECONDS = HEALTH_COUNTS + SAGA_NCOUNTS,
	HEALTH_SINCE,
	HEALTH_WINDOWS
};

#define WINDOW_COUNTS		0
#define WINDOW_RATIO		SAGA_NCOUNTS
#define WINDOW_PERCENTILES	(WINDOW_RATIO + 1)
#define WINDOW_NCOLS		(WINDOW_PERCENTILES + 3)
#define HEALTH_NCOLS		(HEALTH_WINDOWS + SAGA_NWINDOWS * WINDOW_NCOLS)

/* Columns of saga.step_health_raw(), likewise. */
enum
{
	STEP_DEFINITION,
	STEP_NAME,
	STEP_OPERATION_NAME,
	STEP_COUNTS,				/* succeeded, failed */
	STEP_SECONDS = STEP_COUNTS + 2,
	STEP_SINCE,
	STEP_WINDOWS
};

#define STEP_WINDOW_NCOLS	(2 + 3)
#define STEP_HEALTH_NCOLS	(STEP_WINDOWS + SAGA_NWINDOWS * STEP_WINDOW_NCOLS)

/* May the current user see the statistics of this definition? */
static bool
may_see(const char *name, bool sees_all)
{
	const SagaDefinition *definition;
	SagaRoleRef owner;

	if (sees_all)
		return true;
	definition = saga_catalog_newest(name);
	if (definition == NULL || definition->definition_id == 0)
		return false;
	owner = (SagaRoleRef) {definition->owner, definition->owner_name};
	return saga_role_has_privileges(GetUserId(), &owner);
}

/* Microseconds; NULL if there is nothing to tell them from. */
static void
put_percentiles(Datum *values, bool *nulls, const SagaReading *reading)
{
	for (int i = 0; i < 3; i++)
	{
		Interval   *interval = palloc0(sizeof(Interval));

		interval->time = (TimeOffset) reading->percentiles[i];
		values[i] = IntervalPGetDatum(interval);
		nulls[i] = reading->ndurations == 0;
	}
}

/* So many a minute, of the first "n" counts. */
static void
put_rates(Datum *values, const SagaReading *reading, int n)
{
	for (int i = 0; i < n; i++)
		values[i] = Float8GetDatum(reading->minutes > 0 ?
								   reading->counts[i] / reading->minutes : 0);
}


/* ---- definitions ------------------------------------------------------------ */

/* What sagas wait for, with how many do; only reasons that there are. */
static Datum
waiting_to_jsonb(const int64 *reasons)
{
	SagaJsonWriter writer = NULL;

	saga_json_begin_object(&writer);
	for (int i = 0; i < SAGA_NREASONS; i++)
		if (reasons[i] != 0)
			saga_json_put_int(&writer, saga_stats_reason_name(i), reasons[i]);
	return JsonbPGetDatum(saga_json_finish_object(&writer));
}

static void
put_gauges(Datum *values, const int64 *gauges)
{
	for (int i = 0; i < SAGA_NUNFINISHED; i++)
		values[HEALTH_STATUSES + i] = Int64GetDatum(gauges[i]);
	values[HEALTH_WAITING] = waiting_to_jsonb(gauges + SAGA_NUNFINISHED);
}

static void
put_window(Datum *values, bool *nulls, const SagaReading *reading)
{
	double		ended = reading->counts[SAGA_COUNT_COMPLETED] +
		reading->counts[SAGA_COUNT_COMPENSATED] +
		reading->counts[SAGA_COUNT_ABANDONED];

	put_rates(values + WINDOW_COUNTS, reading, SAGA_NCOUNTS);
	nulls[WINDOW_RATIO] = ended == 0;
	if (ended > 0)
		values[WINDOW_RATIO] =
			Float8GetDatum(reading->counts[SAGA_COUNT_COMPENSATED] / ended);
	put_percentiles(values + WINDOW_PERCENTILES, nulls + WINDOW_PERCENTILES,
					reading);
}

/* "statistics" has no series if nothing is known of it but the gauges. */
static void
put_definition(ReturnSetInfo *result, const char *definition,
			   const int64 *gauges, const SagaStatistics *statistics)
{
	Datum		values[HEALTH_NCOLS] = {0};
	bool		nulls[HEALTH_NCOLS] = {false};
	TimestampTz now = GetCurrentTimestamp();

	nulls[HEALTH_DEFINITION] = definition == NULL;
	if (definition != NULL)
		values[HEALTH_DEFINITION] = CStringGetTextDatum(definition);
	put_gauges(values, gauges);
	for (int i = 0; i < SAGA_NCOUNTS; i++)
		values[HEALTH_COUNTS + i] =
			Int64GetDatum((int64) statistics->series.counts[i]);
	values[HEALTH_SECONDS] =
		Float8GetDatum((double) statistics->series.time / USECS_PER_SEC);
	values[HEALTH_SINCE] = TimestampTzGetDatum(statistics->since);
	nulls[HEALTH_SINCE] = statistics->since == 0;
	for (int window = 0; window < SAGA_NWINDOWS; window++)
	{
		int			first = HEALTH_WINDOWS + window * WINDOW_NCOLS;
		SagaReading reading;

		saga_series_read(&statistics->series, window, statistics->since, now,
						 &reading);
		put_window(values + first, nulls + first, &reading);
	}
	tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
}

/* How many there are: what shared memory says; while it does not know, what was
 * counted for this query. */
typedef struct GaugeSource
{
	SagaCount  *counts;			/* NULL: shared memory */
	int			ncounts;
} GaugeSource;

/* Of a definition; NULL: those that belong to none. */
static void
get_gauges(const GaugeSource *source, const char *definition, int64 *gauges)
{
	if (source->counts == NULL)
	{
		(void) saga_stats_gauges(definition, gauges);
		return;
	}
	memset(gauges, 0, SAGA_NGAUGES * sizeof(int64));
	for (int i = 0; i < source->ncounts; i++)
	{
		const SagaCount *count = &source->counts[i];

		if (definition == NULL ? count->definition == NULL :
			count->definition != NULL &&
			strcmp(count->definition, definition) == 0)
			memcpy(gauges, count->n, sizeof(count->n));
	}
}

/* The next definition of which there are some, as saga_stats_next_gauges(). */
static bool
next_gauges(const GaugeSource *source, int *position, char *definition,
			int64 *gauges)
{
	if (source->counts == NULL)
		return saga_stats_next_gauges(position, definition, gauges);
	for (; *position < source->ncounts; (*position)++)
	{
		const SagaCount *count = &source->counts[*position];

		if (count->definition == NULL)
			continue;
		strlcpy(definition, count->definition, NAMEDATALEN);
		memcpy(gauges, count->n, sizeof(count->n));
		(*position)++;
		return true;
	}
	return false;
}

/* Those of which something has happened. */
static void
put_definitions(ReturnSetInfo *result, const GaugeSource *source,
				bool sees_all)
{
	SagaStatistics *statistics = palloc(sizeof(SagaStatistics));
	int			position = 0;

	while (saga_stats_next(&position, false, statistics))
	{
		int64		gauges[SAGA_NGAUGES];

		if (!may_see(statistics->definition, sees_all))
			continue;
		get_gauges(source, statistics->definition, gauges);
		put_definition(result, statistics->definition, gauges, statistics);
	}
	pfree(statistics);
}

/* Those of which there are sagas, but no more is known. */
static void
put_gauges_alone(ReturnSetInfo *result, const GaugeSource *source,
				 bool sees_all)
{
	SagaStatistics *none = palloc0(sizeof(SagaStatistics));
	char		definition[NAMEDATALEN];
	int64		gauges[SAGA_NGAUGES];
	int			position = 0;

	while (next_gauges(source, &position, definition, gauges))
		if (!saga_stats_has_definition(definition) &&
			may_see(definition, sees_all))
			put_definition(result, definition, gauges, none);
	if (sees_all)
	{
		get_gauges(source, NULL, gauges);
		for (int i = 0; i < SAGA_NGAUGES; i++)
			if (gauges[i] != 0)
			{
				put_definition(result, NULL, gauges, none);
				break;
			}
	}
	pfree(none);
}

Datum
saga_health(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	bool		sees_all = saga_owner_sees_health();
	GaugeSource source = {NULL, 0};
	int64		gauges[SAGA_NGAUGES];

	InitMaterializedSRF(fcinfo, 0);
	if (!saga_stats_available())
		PG_RETURN_VOID();
	/* the coordinator does, but perhaps not just now, or not at all */
	if (!RecoveryInProgress() && saga_stats_wants_count(false))
		saga_store_count_unfinished();
	/* in recovery, or in a transaction that has written something */
	if (!saga_stats_gauges(NULL, gauges))
		source.counts = saga_store_count_seen(&source.ncounts);
	put_definitions(result, &source, sees_all);
	put_gauges_alone(result, &source, sees_all);
	PG_RETURN_VOID();
}


/* ---- steps ------------------------------------------------------------------ */

static void
put_step(ReturnSetInfo *result, const SagaStatistics *statistics)
{
	const SagaNames *names = saga_tables_names();
	Datum		values[STEP_HEALTH_NCOLS] = {0};
	bool		nulls[STEP_HEALTH_NCOLS] = {false};
	TimestampTz now = GetCurrentTimestamp();

	values[STEP_DEFINITION] = CStringGetTextDatum(statistics->definition);
	values[STEP_NAME] = CStringGetTextDatum(statistics->step);
	values[STEP_OPERATION_NAME] =
		ObjectIdGetDatum(names->operation[statistics->operation]);
	for (int i = 0; i < 2; i++)
		values[STEP_COUNTS + i] =
			Int64GetDatum((int64) statistics->series.counts[i]);
	values[STEP_SECONDS] =
		Float8GetDatum((double) statistics->series.time / USECS_PER_SEC);
	values[STEP_SINCE] = TimestampTzGetDatum(statistics->since);
	for (int window = 0; window < SAGA_NWINDOWS; window++)
	{
		int			first = STEP_WINDOWS + window * STEP_WINDOW_NCOLS;
		SagaReading reading;

		saga_series_read(&statistics->series, window, statistics->since, now,
						 &reading);
		put_rates(values + first, &reading, 2);
		put_percentiles(values + first + 2, nulls + first + 2, &reading);
	}
	tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
}

Datum
saga_step_health(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	bool		sees_all = saga_owner_sees_health();
	SagaStatistics *statistics = palloc(sizeof(SagaStatistics));
	int			position = 0;

	InitMaterializedSRF(fcinfo, 0);
	while (saga_stats_next(&position, true, statistics))
		if (may_see(statistics->definition, sees_all))
			put_step(result, statistics);
	pfree(statistics);
	PG_RETURN_VOID();
}


/* ---- reset ------------------------------------------------------------------ */

Datum
saga_reset_statistics(PG_FUNCTION_ARGS)
{
	if (!saga_owner_has_granted("operator_privilege"))
		ereport(ERROR,
				errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				errmsg("permission denied to reset statistics"),
				errdetail("Only roles with saga.grant_operator() may reset them."));
	if (PG_ARGISNULL(0))
		saga_stats_reset(NULL);
	else
		saga_stats_reset(text_to_cstring(PG_GETARG_TEXT_PP(0)));
	PG_RETURN_VOID();
}
