/*
 * retain.c
 *		Owns CALL saga.retain(), for pg_cron and for servers where the library is
 *		not preloaded: the coordinator does the same by itself.
 */
#include "postgres.h"

#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/latch.h"
#include "tcop/pquery.h"
#include "tcop/utility.h"
#include "utils/builtins.h"
#include "utils/portal.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "arguments.h"
#include "call.h"
#include "retention.h"

PG_FUNCTION_INFO_V1(saga_retain);

/* In a procedure a transaction is always open: each commit begins the next. */
static void
retain_begin(void)
{
}

static void
retain_commit(void)
{
	SPI_commit();
}

static void
retain_abort(void)
{
	/* SPI accepts no active snapshot but the portal's: the error left others */
	while (ActiveSnapshotSet() &&
		   (ActivePortal == NULL ||
			GetActiveSnapshot() != ActivePortal->portalSnapshot))
		PopActiveSnapshot();
	SPI_rollback();
}

static const SagaDriver retain_driver = {
	.begin = retain_begin,
	.commit = retain_commit,
	.abort = retain_abort,
	.worker = false
};

/* With nothing held. */
static void
sleep_until(TimestampTz when)
{
	SPI_commit();
	InvalidateCatalogSnapshotConditionally();
	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
					 TimestampDifferenceMilliseconds(GetCurrentTimestamp(), when),
					 PG_WAIT_EXTENSION);
	ResetLatch(MyLatch);
	CHECK_FOR_INTERRUPTS();
}

/*
 * CALL saga.retain(time_budget, INOUT removed, INOUT moved, INOUT waits_for):
 * remove the sagas of this database whose retention is over.  What somebody
 * keeps it from is tried again until the time is over.
 */
Datum
saga_retain(PG_FUNCTION_ARGS)
{
	SagaRetained done = {0};
	TimestampTz until;
	Datum		values[3];
	bool		nulls[3] = {false};

	until = GetCurrentTimestamp() + saga_argument_interval(fcinfo, 0, "time_budget");
	saga_require_may_commit(fcinfo, "saga.retain()",
							"Call it with CALL, outside of BEGIN and COMMIT.");
	saga_call_refuse_within("saga.retain()");
	PreventCommandIfReadOnly("saga.retain()");
	if (SPI_connect_ext(SPI_OPT_NONATOMIC) != SPI_OK_CONNECT)
		elog(ERROR, "could not connect to SPI");
	SPI_commit();				/* start from a clean transaction */
	saga_retention_look_now();
	for (;;)
	{
		TimestampTz next = saga_retention_run(&retain_driver, until, true, &done);

		if ((next > GetCurrentTimestamp() && done.waits_for == NULL) ||
			Max(next, GetCurrentTimestamp()) >= until)
			break;
		sleep_until(next);
	}
	SPI_finish();
	values[0] = Int64GetDatum(done.removed);
	values[1] = Int64GetDatum(done.moved);
	nulls[2] = done.waits_for == NULL;
	if (done.waits_for != NULL)
		values[2] = CStringGetTextDatum(done.waits_for);
	return saga_make_row(fcinfo, values, nulls);
}
