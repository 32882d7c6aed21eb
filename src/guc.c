/*
 * guc.c
 *		The settings, all of them under "saga.".
 *
 * Each process reads its own copy; a reload reaches the launcher, coordinators,
 * couriers and workers at their next turn.
 */
#include "postgres.h"

#include <limits.h>

#include "miscadmin.h"
#include "utils/guc.h"

#include "guc.h"
#include "shared.h"

bool		saga_enabled = true;
int			saga_max_workers = 4;
int			saga_workers_per_role = 2;
int			saga_batch_size = 50;
int			saga_batch_time = 200;
int			saga_step_timeout = 60 * 1000;
int			saga_worker_idle_timeout = 10 * 1000;
int			saga_answer_retention = 60 * 60;
int			saga_retention_interval = 60 * 60;
int			saga_local_commit = SAGA_LOCAL_COMMIT_DURABLE;
int			saga_remote_connections = 8;
int			saga_remote_connect_timeout = 10 * 1000;
int			saga_remote_idle_timeout = 60 * 1000;
int			saga_statistics_memory = 8 * 1024;

static const struct config_enum_entry local_commit_options[] = {
	{"durable", SAGA_LOCAL_COMMIT_DURABLE, false},
	{"async", SAGA_LOCAL_COMMIT_ASYNC, false},
	{NULL, 0, false}
};

/* Define all settings and reserve the prefix; once per process. */
void
saga_guc_define(void)
{
	DefineCustomBoolVariable("saga.enabled",
							 "Lets background workers advance sagas.",
							 "While off, sagas can be begun and wait; CALL saga.run() and CALL saga.recover() still advance them.",
							 &saga_enabled,
							 true,
							 PGC_SIGHUP,
							 0,
							 NULL, NULL, NULL);

	DefineCustomIntVariable("saga.max_workers",
							"Sets the maximum number of saga workers running at once, in all databases.",
							"They are taken from max_worker_processes, as are the launcher and one coordinator and one courier for every four of them.",
							&saga_max_workers,
							4, 1, SAGA_MAX_WORKERS,
							PGC_SIGHUP,
							0,
							NULL, NULL, NULL);

	DefineCustomIntVariable("saga.workers_per_role",
							"Sets the maximum number of saga workers of one role in one database.",
							NULL,
							&saga_workers_per_role,
							2, 1, SAGA_MAX_WORKERS,
							PGC_SIGHUP,
							0,
							NULL, NULL, NULL);

	DefineCustomIntVariable("saga.batch_size",
							"Sets the maximum number of sagas that a worker advances in one transaction.",
							NULL,
							&saga_batch_size,
							50, 1, SAGA_MAX_BATCH,
							PGC_SIGHUP,
							0,
							NULL, NULL, NULL);

	DefineCustomIntVariable("saga.batch_time",
							"Sets the time after which a batch is committed and the operation still running is run alone.",
							NULL,
							&saga_batch_time,
							200, 1, 60 * 1000,
							PGC_SIGHUP,
							GUC_UNIT_MS,
							NULL, NULL, NULL);

	DefineCustomIntVariable("saga.step_timeout",
							"Sets the maximum duration of an attempt of a step that has no timeout of its own.",
							NULL,
							&saga_step_timeout,
							60 * 1000, 1, 24 * 60 * 60 * 1000,
							PGC_SIGHUP,
							GUC_UNIT_MS,
							NULL, NULL, NULL);

	DefineCustomIntVariable("saga.worker_idle_timeout",
							"Sets how long a saga worker waits for work before it ends.",
							NULL,
							&saga_worker_idle_timeout,
							10 * 1000, 0, 60 * 60 * 1000,
							PGC_SIGHUP,
							GUC_UNIT_MS,
							NULL, NULL, NULL);

	DefineCustomIntVariable("saga.answer_retention",
							"Sets how long a task is kept after it has ended.",
							"For so long the same answer is accepted again.",
							&saga_answer_retention,
							60 * 60, 60, 30 * 24 * 60 * 60,
							PGC_SIGHUP,
							GUC_UNIT_S,
							NULL, NULL, NULL);

	DefineCustomIntVariable("saga.retention_interval",
							"Sets the longest time between two looks for sagas whose retention is over.",
							"0 leaves their removal to CALL saga.retain().",
							&saga_retention_interval,
							60 * 60, 0, 24 * 60 * 60,
							PGC_SIGHUP,
							GUC_UNIT_S,
							NULL, NULL, NULL);

	DefineCustomEnumVariable("saga.local_commit",
							 "Sets whether commits between local steps wait for their WAL to be flushed.",
							 "\"durable\" follows synchronous_commit of the role; \"async\" is for sagas whose steps have no effect outside the database.",
							 &saga_local_commit,
							 SAGA_LOCAL_COMMIT_DURABLE,
							 local_commit_options,
							 PGC_USERSET,
							 0,
							 NULL, NULL, NULL);

	DefineCustomIntVariable("saga.remote_connections_per_server",
							"Sets the maximum number of connections to one remote database.",
							"The sagas of all roles of a database share them.",
							&saga_remote_connections,
							8, 1, SAGA_MAX_REMOTE_CONNECTIONS,
							PGC_SIGHUP,
							0,
							NULL, NULL, NULL);

	DefineCustomIntVariable("saga.remote_connect_timeout",
							"Sets how long an attempt to connect to a remote database may take.",
							NULL,
							&saga_remote_connect_timeout,
							10 * 1000, 100, 10 * 60 * 1000,
							PGC_SIGHUP,
							GUC_UNIT_MS,
							NULL, NULL, NULL);

	DefineCustomIntVariable("saga.remote_idle_timeout",
							"Sets how long a connection to a remote database is kept when there is nothing to do.",
							NULL,
							&saga_remote_idle_timeout,
							60 * 1000, 0, 24 * 60 * 60 * 1000,
							PGC_SIGHUP,
							GUC_UNIT_MS,
							NULL, NULL, NULL);

	/*
	 * Where the server does not preload us there is none, and what the file
	 * says of it is of no meaning: but a session may not define it so.
	 */
	DefineCustomIntVariable("saga.statistics_memory",
							"Sets the amount of shared memory for counts and durations of definitions and their steps.",
							"When it is full, those of which nothing has happened for longest are forgotten.",
							&saga_statistics_memory,
							8 * 1024, 128, 1024 * 1024,
							process_shared_preload_libraries_in_progress ?
							PGC_POSTMASTER : PGC_SIGHUP,
							GUC_UNIT_KB,
							NULL, NULL, NULL);

	MarkGUCPrefixReserved("saga");
}
