/*
 * saga.c
 *		The entry of the library: what happens when it is loaded.
 *
 * In shared_preload_libraries, the postmaster loads it once, and every process
 * inherits settings, hooks and callbacks.  Loaded by a session, since the
 * server does not preload it, there are neither shared memory nor processes:
 * sagas advance in the foreground.
 */
#include "postgres.h"

#include "fmgr.h"
#include "miscadmin.h"

#include "guc.h"
#include "hooks.h"
#include "process.h"
#include "qstate.h"
#include "saga.h"
#include "shared.h"
#include "sstate.h"
#include "stats.h"

PG_MODULE_MAGIC;

void
_PG_init(void)
{
	saga_guc_define();
	saga_hooks_install(process_shared_preload_libraries_in_progress);
	if (!process_shared_preload_libraries_in_progress)
		return;

	saga_shared_init();
	saga_qstate_init();
	saga_sstate_init();
	saga_stats_init();
	/* nothing of ours may write while pg_upgrade copies the cluster */
	if (!IsBinaryUpgrade)
		saga_launcher_register();
}
