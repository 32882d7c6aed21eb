/*
 * session.c
 *		Owns what the sessions of our background processes have in common: their
 *		settings and transactions.
 */
#include "postgres.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/ipc.h"
#include "utils/guc.h"

#include "compat.h"
#include "owner.h"
#include "session.h"
#include "shared.h"

void
saga_session_pin(void)
{
	static const char *const settings[][2] = {
		{"role", "none"},
		{"search_path", "pg_catalog, pg_temp"},
		{"session_replication_role", "origin"},
		{"default_transaction_isolation", "read committed"},
		{"default_transaction_read_only", "off"},
		{"default_transaction_deferrable", "off"},
		{"statement_timeout", "0"},
		{"lock_timeout", "0"},
		{"idle_in_transaction_session_timeout", "0"},
		SAGA_TRANSACTION_TIMEOUT_OFF
		{"row_security", "on"},
		{"synchronous_commit", "on"},
		{"plan_cache_mode", "auto"},
		{"max_parallel_workers_per_gather", "0"},
		{"jit", "off"},
		{"DateStyle", "ISO, YMD"},
		{"IntervalStyle", "postgres"},
		{"TimeZone", "UTC"},
	};

	for (int i = 0; i < (int) lengthof(settings); i++)
		SetConfigOption(settings[i][0], settings[i][1],
						PGC_SUSET, PGC_S_OVERRIDE);
}

void
saga_session_begin(void)
{
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
}

void
saga_session_commit(void)
{
	CommitTransactionCommand();
	pgstat_report_stat(false);
}

void
saga_session_abort(void)
{
	AbortCurrentTransaction();
	pgstat_report_stat(false);
}

void
saga_session_require_extension(void)
{
	bool		ready;

	saga_session_begin();
	ready = saga_extension_ready();
	saga_session_commit();
	if (ready)
		return;
	/* as a failure: until a coordinator has looked, the launcher must not start
	 * one of us after the other */
	saga_database_probe(MyDatabaseId);
	proc_exit(1);
}
