/*
 * serverapi.c
 *		Owns the SQL-callable functions about remote databases, that behind the
 *		view included, and saga.reset_breaker(), which is also about queues.
 *
 * They run with the rights of their caller.  Settings of a server are for its
 * owner, that is, the foreign server's, and for operators; how the calls of a
 * role do is for those who have its privileges, and for monitors.
 *
 * saga.check_server() connects in the caller's backend, as the current user, and
 * waits for that; all else is in the caller's transaction alone.  What it finds is
 * not noted: the courier would have to wait for that transaction.
 *
 * Any backend.  What is behind the view also works in recovery, and so does
 * saga.check_server().
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "foreign/foreign.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "arguments.h"
#include "definition.h"
#include "foreign.h"
#include "guc.h"
#include "owner.h"
#include "remote.h"
#include "role.h"
#include "server.h"
#include "shared.h"
#include "sstate.h"
#include "statement.h"

PG_FUNCTION_INFO_V1(saga_check_server);
PG_FUNCTION_INFO_V1(saga_configure_server);
PG_FUNCTION_INFO_V1(saga_reset_breaker);
PG_FUNCTION_INFO_V1(saga_servers_raw);


/* ---- settings --------------------------------------------------------- */

/* A server that the current user may change the settings of. */
static void
check_owner(const char *name)
{
	ForeignServer *server = GetForeignServerByName(name, true);

	if (server == NULL)
		ereport(ERROR,
				errcode(ERRCODE_UNDEFINED_OBJECT),
				errmsg("server \"%s\" does not exist", name));
	if (!has_privs_of_role(GetUserId(), server->owner) &&
		!saga_owner_has_granted("operator_privilege"))
		ereport(ERROR,
				errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				errmsg("permission denied for server \"%s\"", name),
				errdetail("Only its owner and operators may do this."));
}

/* NULL leaves a setting as it is. */
static SagaStatement write_settings = {
	"INSERT INTO saga.server AS s"
	" (name, breaker_failures, breaker_pause, breaker_max_pause, paused)"
	" SELECT $1, COALESCE($2, d.breaker_failures),"
	"  COALESCE($3, d.breaker_pause), COALESCE($4, d.breaker_max_pause),"
	"  COALESCE($5, false)"
	" FROM (VALUES (5, '1 s'::pg_catalog.interval, '1 min'::pg_catalog.interval))"
	"  AS d (breaker_failures, breaker_pause, breaker_max_pause)"
	" ON CONFLICT (name) DO UPDATE SET"
	"  breaker_failures = COALESCE($2, s.breaker_failures),"
	"  breaker_pause = COALESCE($3, s.breaker_pause),"
	"  breaker_max_pause = COALESCE($4, s.breaker_max_pause),"
	"  paused = COALESCE($5, s.paused)"
	" RETURNING breaker_pause > breaker_max_pause",
	5, {TEXTOID, INT4OID, INTERVALOID, INTERVALOID, BOOLOID}, NULL
};

static void
check_failures(FunctionCallInfo fcinfo, int n, const char *where)
{
	if (!PG_ARGISNULL(n) && PG_GETARG_INT32(n) < 0)
		saga_definition_invalid("breaker_failures", where,
								"It must be at least 1, or zero for never.");
}

static void
check_pause(FunctionCallInfo fcinfo, int n, const char *field,
			const char *where)
{
	if (!PG_ARGISNULL(n) &&
		saga_definition_microseconds(PG_GETARG_INTERVAL_P(n), field,
									 where) < 1000)
		saga_definition_invalid(field, where, "It must be at least 1 ms.");
}

Datum
saga_configure_server(PG_FUNCTION_ARGS)
{
	char	   *name;
	const char *where;
	SagaOwnerSwitch owner;
	Datum		values[5];
	char		nulls[] = "     ";
	bool		isnull;

	saga_argument_require(fcinfo, 0, "server");
	name = saga_argument_text(fcinfo, 0);
	where = psprintf("server \"%s\"", name);
	saga_check_may_write("saga.configure_server()");
	check_owner(name);
	check_failures(fcinfo, 1, where);
	check_pause(fcinfo, 2, "breaker_pause", where);
	check_pause(fcinfo, 3, "breaker_max_pause", where);
	for (int i = 0; i < (int) lengthof(values); i++)
	{
		values[i] = PG_GETARG_DATUM(i);
		nulls[i] = PG_ARGISNULL(i) ? 'n' : ' ';
	}

	saga_owner_enter(&owner);
	saga_statement_run(&write_settings, values, nulls, false, 0);
	if (DatumGetBool(saga_statement_datum(0, 1, &isnull)))
		saga_definition_invalid("breaker_max_pause", where,
								"It must not be shorter than breaker_pause.");
	saga_server_changed();
	saga_owner_leave(&owner);
	saga_server_wake(name);
	PG_RETURN_VOID();
}


/* ---- breakers --------------------------------------------------------- */

static void
reset_server(const char *name)
{
	int32	   *ids;
	int			n;

	check_owner(name);
	n = saga_server_list(&ids);
	for (int i = 0; i < n; i++)
	{
		SagaServerQueue *queue = saga_server_queue_by_id(ids[i]);

		if (queue != NULL && strcmp(queue->queue.name, name) == 0)
			saga_qstate_close_breaker(ids[i]);
	}
	saga_server_wake(name);
	/* a pause before the next try to connect is over too */
	saga_courier_want(SAGA_COURIER_ALL);
}

/* Of a queue, or of a server for all roles. */
Datum
saga_reset_breaker(PG_FUNCTION_ARGS)
{
	char	   *queue = saga_argument_text(fcinfo, 0);
	char	   *server = saga_argument_text(fcinfo, 1);

	saga_check_may_write("saga.reset_breaker()");
	if (queue == NULL && server == NULL)
		saga_argument_require(fcinfo, 0, "queue");
	if (queue != NULL && server != NULL)
		ereport(ERROR,
				errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				errmsg("queue and server must not both be given"));
	if (queue != NULL)
		saga_queue_reset_breaker(queue);
	else
		reset_server(server);
	PG_RETURN_VOID();
}


/* ---- rows ------------------------------------------------------------- */

static Datum
make_row(FunctionCallInfo fcinfo, Datum *values, bool *nulls)
{
	TupleDesc	tupdesc;

	if (get_call_result_type(fcinfo, NULL, &tupdesc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	return HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(tupdesc), values,
											 nulls));
}

static void
set_text(Datum *values, bool *nulls, int column, const char *text)
{
	nulls[column] = text == NULL;
	values[column] = text == NULL ? (Datum) 0 : CStringGetTextDatum(text);
}

/* 0 is null. */
static void
set_time(Datum *values, bool *nulls, int column, TimestampTz time)
{
	values[column] = TimestampTzGetDatum(time);
	nulls[column] = time == 0;
}

/* Microseconds; 0 is null. */
static void
set_interval(Datum *values, bool *nulls, int column, int64 time)
{
	Interval   *interval = palloc0(sizeof(Interval));

	interval->time = time;
	values[column] = IntervalPGetDatum(interval);
	nulls[column] = time == 0;
}


/* ---- saga.check_server() ------------------------------------------------ */

enum
{
	CHECK_SERVER, CHECK_ROLE, CHECK_REACHABLE, CHECK_ONCE, CHECK_SAGA_VERSION,
	CHECK_SERVER_VERSION, CHECK_IN_RECOVERY, CHECK_ROUND_TRIP, CHECK_ERROR,
	CHECK_NCOLS
};

/* As SHOW server_version_num says it, for people. */
static char *
version_text(int version)
{
	return psprintf("%d.%d", version / 10000, version % 10000);
}

static char *
error_text(const SagaError *error)
{
	char	   *text = psprintf("%s: %s", error->sqlstate, error->message);

	if (error->detail != NULL)
		text = psprintf("%s: %s", text, error->detail);
	if (error->hint != NULL)
		text = psprintf("%s (%s)", text, error->hint);
	return text;
}

Datum
saga_check_server(PG_FUNCTION_ARGS)
{
	Datum		values[CHECK_NCOLS];
	bool		nulls[CHECK_NCOLS];
	char	   *name;
	SagaTarget	target;
	SagaRemoteInfo info;
	SagaError	error;
	bool		reachable;

	saga_argument_require(fcinfo, 0, "server");
	name = saga_argument_text(fcinfo, 0);
	saga_foreign_find(name, GetUserId(), CurrentMemoryContext, &target);
	reachable = saga_remote_probe(&target,
								  saga_remote_connect_timeout * INT64CONST(1000),
								  &info, &error);

	memset(nulls, true, sizeof(nulls));
	set_text(values, nulls, CHECK_SERVER, name);
	set_text(values, nulls, CHECK_ROLE, target.role_name);
	values[CHECK_REACHABLE] = BoolGetDatum(reachable);
	nulls[CHECK_REACHABLE] = false;
	if (reachable)
	{
		values[CHECK_ONCE] = BoolGetDatum(info.saga_version != NULL);
		values[CHECK_IN_RECOVERY] = BoolGetDatum(info.in_recovery);
		nulls[CHECK_ONCE] = nulls[CHECK_IN_RECOVERY] = false;
		set_text(values, nulls, CHECK_SAGA_VERSION, info.saga_version);
		set_text(values, nulls, CHECK_SERVER_VERSION,
				 version_text(info.server_version));
		set_interval(values, nulls, CHECK_ROUND_TRIP, Max(info.round_trip, 1));
	}
	else
		set_text(values, nulls, CHECK_ERROR, error_text(&error));
	PG_RETURN_DATUM(make_row(fcinfo, values, nulls));
}


/* ---- view saga.servers -------------------------------------------------- */

enum
{
	COL_STATE, COL_CONNECTIONS, COL_IN_FLIGHT, COL_READY, COL_OLDEST_READY,
	COL_RETRY_AT, COL_CALLS, COL_FAILED, COL_LOST, COL_UNREACHABLE, COL_P50,
	COL_P99, COL_BREAKER, COL_BREAKER_UNTIL, COL_LAST_CALL, COL_LAST_ERROR,
	COL_LAST_ERROR_AT, NCOLS
};

static bool
is_visible(const SagaServerQueue *queue)
{
	SagaRoleRef role = {queue->role, queue->role_name};

	return saga_role_has_privileges(GetUserId(), &role) ||
		saga_owner_sees_health();
}

static void
set_state(Datum *values, bool *nulls, const SagaServerQueue *queue)
{
	SagaServerInfo info;

	if (!saga_sstate_info(queue->queue.id, &info))
		memset(&info, 0, sizeof(info));
	set_text(values, nulls, COL_STATE, queue->queue.paused ? "paused" :
			 saga_server_state_name(info.state));
	values[COL_CONNECTIONS] = Int32GetDatum(info.connections);
	values[COL_IN_FLIGHT] = Int32GetDatum(info.in_flight);
	values[COL_CALLS] = Int64GetDatum(info.ncalls);
	values[COL_FAILED] = Int64GetDatum(info.nfailed);
	values[COL_LOST] = Int64GetDatum(info.nlost);
	values[COL_UNREACHABLE] = Int64GetDatum(info.nunreachable);
	set_time(values, nulls, COL_RETRY_AT, info.retry_at);
	set_interval(values, nulls, COL_P50, (int64) (info.p50 * USECS_PER_SEC));
	set_interval(values, nulls, COL_P99, (int64) (info.p99 * USECS_PER_SEC));
	set_time(values, nulls, COL_LAST_CALL, info.last_call);
	set_text(values, nulls, COL_LAST_ERROR,
			 info.last_error_at == 0 ? NULL : info.last_error);
	set_time(values, nulls, COL_LAST_ERROR_AT, info.last_error_at);
}

static void
set_queue(Datum *values, bool *nulls, int32 id, int64 most)
{
	SagaQueueDepth depth;
	SagaQueueInfo info;

	saga_queue_look(id, most, &depth);
	values[COL_READY] = Int64GetDatum(depth.nready);
	set_time(values, nulls, COL_OLDEST_READY, depth.oldest_ready);
	if (!saga_qstate_info(id, &info))
		memset(&info, 0, sizeof(info));
	set_text(values, nulls, COL_BREAKER, saga_breaker_state_name(info.breaker));
	set_time(values, nulls, COL_BREAKER_UNTIL, info.breaker_until);
}

Datum
saga_servers_raw(PG_FUNCTION_ARGS)
{
	int32		id = PG_GETARG_INT32(0);
	SagaServerQueue *queue = saga_server_queue_by_id(id);
	Datum		values[NCOLS];
	bool		nulls[NCOLS] = {false};

	if (queue == NULL || !is_visible(queue))
		PG_RETURN_NULL();
	set_state(values, nulls, queue);
	set_queue(values, nulls, id, PG_GETARG_INT64(1));
	PG_RETURN_DATUM(make_row(fcinfo, values, nulls));
}
