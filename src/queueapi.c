/*
 * queueapi.c
 *		Owns the SQL-callable functions about queues, those behind the views
 *		included; those of participants are in participant.c, and
 *		saga.reset_breaker() in serverapi.c.
 *
 * They run with the rights of their caller: queue.c asks whether it may.  Who
 * may use the views may call the functions behind them too, so these show a
 * queue only to those who may see it.
 *
 * Any backend; all of it is in the caller's transaction.  The functions behind
 * the views also work in recovery.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "arguments.h"
#include "definition.h"
#include "queue.h"

PG_FUNCTION_INFO_V1(saga_create_queue);
PG_FUNCTION_INFO_V1(saga_drop_queue);
PG_FUNCTION_INFO_V1(saga_configure_queue);
PG_FUNCTION_INFO_V1(saga_grant_participant);
PG_FUNCTION_INFO_V1(saga_revoke_participant);
PG_FUNCTION_INFO_V1(saga_grant_offer);
PG_FUNCTION_INFO_V1(saga_revoke_offer);
PG_FUNCTION_INFO_V1(saga_queues_raw);
PG_FUNCTION_INFO_V1(saga_participants_raw);

/* A participant that has not looked for longer is not counted: milliseconds. */
#define SEEN_LATELY		(5 * 60 * 1000)


/* ---- arguments -------------------------------------------------------- */

static char *
queue_argument(FunctionCallInfo fcinfo, int n)
{
	saga_argument_require(fcinfo, n, "queue");
	return saga_argument_text(fcinfo, n);
}

static char *
role_argument(FunctionCallInfo fcinfo, int n)
{
	saga_argument_require(fcinfo, n, "role");
	return NameStr(*PG_GETARG_NAME(n));
}


/* ---- queues ----------------------------------------------------------- */

Datum
saga_create_queue(PG_FUNCTION_ARGS)
{
	char	   *name = queue_argument(fcinfo, 0);
	Oid			owner = GetUserId();

	saga_check_may_write("saga.create_queue()");
	if (!PG_ARGISNULL(1))
		owner = get_role_oid(NameStr(*PG_GETARG_NAME(1)), false);
	saga_queue_create(name, owner);
	PG_RETURN_VOID();
}

Datum
saga_drop_queue(PG_FUNCTION_ARGS)
{
	char	   *name = queue_argument(fcinfo, 0);

	saga_check_may_write("saga.drop_queue()");
	saga_queue_drop(name);
	PG_RETURN_VOID();
}

/* NULL if the argument is. */
static const Interval *
pause_argument(FunctionCallInfo fcinfo, int n, const char *field,
			   const char *where)
{
	const Interval *pause;

	if (PG_ARGISNULL(n))
		return NULL;
	pause = PG_GETARG_INTERVAL_P(n);
	if (saga_definition_microseconds(pause, field, where) < 1000)
		saga_definition_invalid(field, where, "It must be at least 1 ms.");
	return pause;
}

Datum
saga_configure_queue(PG_FUNCTION_ARGS)
{
	char	   *name = queue_argument(fcinfo, 0);
	const char *where = psprintf("queue \"%s\"", name);
	SagaQueueSettings settings = {0};
	int			failures;
	bool		paused;

	saga_check_may_write("saga.configure_queue()");
	if (!PG_ARGISNULL(1))
	{
		failures = PG_GETARG_INT32(1);
		if (failures < 0)
			saga_definition_invalid("breaker_failures", where,
									"It must be at least 1, or zero for never.");
		settings.breaker_failures = &failures;
	}
	settings.breaker_pause = pause_argument(fcinfo, 2, "breaker_pause", where);
	settings.breaker_max_pause = pause_argument(fcinfo, 3, "breaker_max_pause",
												where);
	if (!PG_ARGISNULL(4))
	{
		paused = PG_GETARG_BOOL(4);
		settings.paused = &paused;
	}
	if (!PG_ARGISNULL(5))
		settings.owner = get_role_oid(NameStr(*PG_GETARG_NAME(5)), false);
	saga_queue_configure(name, &settings);
	PG_RETURN_VOID();
}


/* ---- grants ----------------------------------------------------------- */

Datum
saga_grant_participant(PG_FUNCTION_ARGS)
{
	char	   *role_name = role_argument(fcinfo, 0);
	char	   *name = queue_argument(fcinfo, 1);

	saga_check_may_write("saga.grant_participant()");
	saga_queue_grant(name, SAGA_QUEUE_PARTICIPATE,
					 get_role_oid(role_name, false));
	PG_RETURN_VOID();
}

Datum
saga_grant_offer(PG_FUNCTION_ARGS)
{
	char	   *name = queue_argument(fcinfo, 0);
	char	   *role_name = role_argument(fcinfo, 1);

	saga_check_may_write("saga.grant_offer()");
	saga_queue_grant(name, SAGA_QUEUE_OFFER, get_role_oid(role_name, false));
	PG_RETURN_VOID();
}

/* The grant of a role that is gone can be taken back too. */
static void
take_back(const char *name, SagaQueuePrivilege privilege, const char *role_name)
{
	if (!saga_queue_revoke(name, privilege, role_name))
		(void) get_role_oid(role_name, false);
}

Datum
saga_revoke_participant(PG_FUNCTION_ARGS)
{
	char	   *role_name = role_argument(fcinfo, 0);
	char	   *name = queue_argument(fcinfo, 1);

	saga_check_may_write("saga.revoke_participant()");
	take_back(name, SAGA_QUEUE_PARTICIPATE, role_name);
	PG_RETURN_VOID();
}

Datum
saga_revoke_offer(PG_FUNCTION_ARGS)
{
	char	   *name = queue_argument(fcinfo, 0);
	char	   *role_name = role_argument(fcinfo, 1);

	saga_check_may_write("saga.revoke_offer()");
	take_back(name, SAGA_QUEUE_OFFER, role_name);
	PG_RETURN_VOID();
}


/* ---- views ------------------------------------------------------------ */

static int
count_seen_lately(const SagaQueueInfo *info)
{
	TimestampTz now = GetCurrentTimestamp();
	int			n = 0;

	for (int i = 0; i < SAGA_QUEUE_PARTICIPANTS; i++)
	{
		TimestampTz seen = info->participants[i].last_seen;

		if (seen != 0 && !TimestampDifferenceExceeds(seen, now, SEEN_LATELY))
			n++;
	}
	return n;
}

/* The columns of saga.queues_raw(). */
enum
{
	COL_READY, COL_OLDEST_READY, COL_CLAIMED, COL_OLDEST_CLAIMED, COL_NEXT_END,
	COL_OFFERED, COL_COMPLETED, COL_FAILED, COL_EXPIRED, COL_RATE,
	COL_FAILURES, COL_BREAKER, COL_BREAKER_UNTIL, COL_PARTICIPANTS, NCOLS
};

/* 0 is null. */
static void
set_time(Datum *values, bool *nulls, int column, TimestampTz time)
{
	values[column] = TimestampTzGetDatum(time);
	nulls[column] = time == 0;
}

static void
set_depth(Datum *values, bool *nulls, int32 id, int64 most)
{
	SagaQueueDepth depth;

	saga_queue_look(id, most, &depth);
	values[COL_READY] = Int64GetDatum(depth.nready);
	set_time(values, nulls, COL_OLDEST_READY, depth.oldest_ready);
	values[COL_CLAIMED] = Int64GetDatum(depth.nclaimed);
	set_time(values, nulls, COL_OLDEST_CLAIMED, depth.oldest_claimed);
	set_time(values, nulls, COL_NEXT_END, depth.next_end);
}

static void
set_info(Datum *values, bool *nulls, int32 id)
{
	SagaQueueInfo info;

	if (!saga_qstate_info(id, &info))
		memset(&info, 0, sizeof(info));
	values[COL_OFFERED] = Int64GetDatum(info.noffered);
	values[COL_COMPLETED] = Int64GetDatum(info.ncompleted);
	values[COL_FAILED] = Int64GetDatum(info.nfailed);
	values[COL_EXPIRED] = Int64GetDatum(info.nexpired);
	values[COL_RATE] = Float8GetDatum(info.rate);
	values[COL_FAILURES] = Int32GetDatum(info.failures);
	values[COL_BREAKER] = CStringGetTextDatum(saga_breaker_state_name(info.breaker));
	set_time(values, nulls, COL_BREAKER_UNTIL, info.breaker_until);
	values[COL_PARTICIPANTS] = Int32GetDatum(count_seen_lately(&info));
}

Datum
saga_queues_raw(PG_FUNCTION_ARGS)
{
	int32		id = PG_GETARG_INT32(0);
	TupleDesc	tupdesc;
	Datum		values[NCOLS];
	bool		nulls[NCOLS] = {false};

	if (!saga_queue_is_visible(id))
		PG_RETURN_NULL();
	if (get_call_result_type(fcinfo, NULL, &tupdesc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	set_depth(values, nulls, id, PG_GETARG_INT64(1));
	set_info(values, nulls, id);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(tupdesc),
													  values, nulls)));
}

Datum
saga_participants_raw(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	int32		id = PG_GETARG_INT32(0);
	SagaQueueInfo info;

	InitMaterializedSRF(fcinfo, 0);
	if (!saga_queue_is_visible(id) || !saga_qstate_info(id, &info))
		return (Datum) 0;
	for (int i = 0; i < SAGA_QUEUE_PARTICIPANTS; i++)
	{
		const SagaQueueParticipant *participant = &info.participants[i];
		Datum		values[3];
		bool		nulls[3] = {false};

		if (participant->last_seen == 0)
			continue;
		values[0] = CStringGetTextDatum(participant->name);
		values[1] = TimestampTzGetDatum(participant->last_seen);
		values[2] = Int64GetDatum(participant->nclaimed);
		tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
	}
	return (Datum) 0;
}
