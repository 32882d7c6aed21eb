/*
 * workers.c
 *		The function behind view saga.workers: our processes, what they do, and
 *		why there is none where one is wanted.
 *
 * Any backend.  Who may use the view may call the function too, so what is of
 * a role is shown here to those only who have its privileges, and to who sees
 * the health of all.
 */
#include "postgres.h"

#include "access/xlog.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "guc.h"
#include "owner.h"
#include "shared.h"

PG_FUNCTION_INFO_V1(saga_workers);

/* Columns of the function. */
enum
{
	COL_PID,
	COL_PROCESS,
	COL_DATABASE,
	COL_ROLE,
	COL_STATE,
	COL_SAGA,
	COL_STEP,
	COL_OPERATION,
	COL_ATTEMPT,
	COL_SINCE,
	COL_REASON,
	NCOLS
};

typedef struct Row
{
	Datum		values[NCOLS];
	bool		nulls[NCOLS];
} Row;

static void
clear_row(Row *row)
{
	memset(row->values, 0, sizeof(row->values));
	memset(row->nulls, true, sizeof(row->nulls));
}

static void
set_column(Row *row, int column, Datum value)
{
	row->values[column] = value;
	row->nulls[column] = false;
}

static void
set_text(Row *row, int column, const char *text)
{
	set_column(row, column, CStringGetTextDatum(text));
}

static void
put_row(ReturnSetInfo *result, Row *row)
{
	tuplestore_putvalues(result->setResult, result->setDesc,
						 row->values, row->nulls);
}

static bool
may_see(Oid role)
{
	return !OidIsValid(role) || has_privs_of_role(GetUserId(), role) ||
		saga_owner_sees_health();
}

static void
put_launcher(ReturnSetInfo *result)
{
	Row			row;
	TimestampTz since;
	int			pid = 0;

	clear_row(&row);
	set_text(&row, COL_PROCESS, "launcher");
	if (saga_shared_available())
		pid = saga_launcher_pid(&since);
	if (pid != 0)
	{
		set_column(&row, COL_PID, Int32GetDatum(pid));
		set_text(&row, COL_STATE, "running");
		set_column(&row, COL_SINCE, TimestampTzGetDatum(since));
	}
	else
		set_text(&row, COL_STATE, "absent");
	if (!saga_shared_available())
		set_text(&row, COL_REASON,
				 "saga is not loaded via shared_preload_libraries");
	else if (!saga_enabled)
		set_text(&row, COL_REASON, "saga.enabled is off");
	else if (pid == 0 && RecoveryInProgress())
		set_text(&row, COL_REASON, "recovery is in progress");
	put_row(result, &row);
}

static const char *
process_state(const SagaProcessInfo *process)
{
	if (process->stopping)
		return "stopping";
	switch (process->state)
	{
		case SAGA_PROCESS_STARTING:
			return "starting";
		case SAGA_PROCESS_IDLE:
			return "idle";
		default:
			return "running";
	}
}

static const char *
process_name(SagaProcessKind kind)
{
	switch (kind)
	{
		case SAGA_PROCESS_COORDINATOR:
			return "coordinator";
		case SAGA_PROCESS_COURIER:
			return "courier";
		case SAGA_PROCESS_WORKER:
			return "worker";
		case SAGA_PROCESS_FOREGROUND:
			return "foreground";
	}
	return NULL;
}

static void
put_process(ReturnSetInfo *result, const SagaProcessInfo *process)
{
	Row			row;

	clear_row(&row);
	set_text(&row, COL_PROCESS, process_name(process->kind));
	if (process->pid != 0)
		set_column(&row, COL_PID, Int32GetDatum(process->pid));
	set_column(&row, COL_DATABASE, ObjectIdGetDatum(process->database));
	if (OidIsValid(process->role))
		set_column(&row, COL_ROLE, ObjectIdGetDatum(process->role));
	set_text(&row, COL_STATE, process_state(process));
	if (process->doing.saga_id != 0)
	{
		set_column(&row, COL_SAGA, Int64GetDatum(process->doing.saga_id));
		set_column(&row, COL_STEP, Int32GetDatum(process->doing.step));
		set_text(&row, COL_OPERATION,
				 saga_operation_name((SagaOperation) process->doing.operation));
		set_column(&row, COL_ATTEMPT, Int32GetDatum(process->doing.attempt));
	}
	set_column(&row, COL_SINCE, TimestampTzGetDatum(process->since));
	put_row(result, &row);
}

/* A pool or a database that has no process though it could use one. */
static void
put_waiting(ReturnSetInfo *result, const char *process, Oid database,
			Oid role, TimestampTz since, const char *reason)
{
	Row			row;

	clear_row(&row);
	set_text(&row, COL_PROCESS, process);
	set_column(&row, COL_DATABASE, ObjectIdGetDatum(database));
	if (OidIsValid(role))
		set_column(&row, COL_ROLE, ObjectIdGetDatum(role));
	set_text(&row, COL_STATE, "absent");
	if (since != 0)
		set_column(&row, COL_SINCE, TimestampTzGetDatum(since));
	if (reason != NULL)
		set_text(&row, COL_REASON, reason);
	put_row(result, &row);
}

/* Why no process; NULL if there is no reason but that it has not come yet. */
static const char *
reason_of(bool closed, SagaBlocked blocked)
{
	if (!saga_enabled)
		return "saga.enabled is off";
	if (closed)
		return "database is being dropped, renamed, moved or copied";
	return saga_blocked_text(blocked);
}

static void
put_waiting_pools(ReturnSetInfo *result)
{
	SagaPoolInfo *pools = palloc(SAGA_MAX_POOLS * sizeof(SagaPoolInfo));
	int			n = saga_shared_pools(pools, false);

	for (int i = 0; i < n; i++)
	{
		SagaPoolInfo *pool = &pools[i];

		if (pool->nworkers == 0 && may_see(pool->role) &&
			(pool->waits || pool->blocked != SAGA_BLOCKED_NOT))
			put_waiting(result, "worker", pool->database, pool->role,
						pool->waiting_since,
						reason_of(pool->closed, pool->blocked));
	}
	pfree(pools);
}

/* Is one wanted, or would it be?  Of a database that is closed the coordinator
 * says so. */
static bool
is_missing(const SagaServiceInfo *service)
{
	return !service->running &&
		(service->waits || service->blocked != SAGA_BLOCKED_NOT ||
		 (service->closed && service->kind == SAGA_PROCESS_COORDINATOR));
}

static void
put_waiting_services(ReturnSetInfo *result)
{
	SagaServiceInfo *services = palloc(SAGA_MAX_SERVICES *
									   sizeof(SagaServiceInfo));
	int			n = saga_shared_services(services, false);

	for (int i = 0; i < n; i++)
	{
		SagaServiceInfo *service = &services[i];

		if (is_missing(service))
			put_waiting(result, process_name(service->kind), service->database,
						InvalidOid, service->waiting_since,
						reason_of(service->closed, service->blocked));
	}
	pfree(services);
}

Datum
saga_workers(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	SagaProcessInfo *processes;
	int			n;

	InitMaterializedSRF(fcinfo, 0);
	put_launcher(result);
	if (!saga_shared_available())
		return (Datum) 0;

	processes = palloc(SAGA_MAX_PROCESSES * sizeof(SagaProcessInfo));
	n = saga_shared_processes(processes);
	for (int i = 0; i < n; i++)
		if (may_see(processes[i].role))
			put_process(result, &processes[i]);
	pfree(processes);
	put_waiting_services(result);
	put_waiting_pools(result);
	return (Datum) 0;
}
