/*
 * worker.c
 *		A saga worker: advances the sagas of one role in one database, as that
 *		role, in a session of its own.
 *
 * It runs user code: so it is never more than the role is, and nothing that it
 * keeps for the engine may be reached from there.  The session has the role's
 * and the database's settings; the engine sets its own around its statements.
 *
 * It ends when it was idle for saga.worker_idle_timeout, when it was told to
 * go, when the row of its role in pg_authid changes (it may have become a
 * superuser, or have ceased to be), and after an hour at most (settings of the
 * role, memory of libraries).  With an error that belongs to no saga it exits,
 * and the launcher paces the next one.
 *
 * Killed at any line: what was not committed never happened, and the on_shmem_
 * exit callback of shared.c gives back what it held; after SIGKILL or a crash
 * the crash record tells which operation it was in (inflight.c).
 */
#include "postgres.h"

#include <signal.h>
#include <unistd.h>

#include "libpq/pqsignal.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/pmsignal.h"
#include "tcop/tcopprot.h"
#include "utils/backend_status.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "engine.h"
#include "guc.h"
#include "process.h"
#include "session.h"
#include "shared.h"

/* How many sagas one look into the tables brings at most. */
#define SCAN_SIZE		512

#define LIFETIME		(60 * SECS_PER_MINUTE * USECS_PER_SEC)

static Oid	my_role;
static uint32 my_role_hash;

/* Has pg_authid's row of my role changed? */
static bool role_changed = false;

static const SagaDriver worker_driver = {
	.begin = saga_session_begin,
	.commit = saga_session_commit,
	.abort = saga_session_abort,
	.worker = true
};

/* The server ends us because of another process: say so, and die as any. */
static void
handle_quit(SIGNAL_ARGS)
{
	(void) postgres_signal_arg;
	saga_executor_is_bystander();
	_exit(2);
}

static void
note_role_change(Datum arg, int cacheid, uint32 hash)
{
	(void) arg;
	(void) cacheid;
	if (hash == 0 || hash == my_role_hash)
		role_changed = true;
}

/*
 * Make the session the role's: ALTER DATABASE ... SET role may have put
 * another one in its place, which the steps would run as.
 */
static void
become_role(void)
{
	saga_session_begin();
	SetConfigOption("role", "none", PGC_USERSET, PGC_S_OVERRIDE);
	if (GetUserId() != my_role)
		elog(FATAL, "session of a saga worker has another role");
	my_role_hash = GetSysCacheHashValue1(AUTHOID, ObjectIdGetDatum(my_role));
	CacheRegisterSyscacheCallback(AUTHOID, note_role_change, (Datum) 0);
	saga_session_commit();
}

/* Look into the tables for what no ring holds, if that is wanted. */
static bool
scan(SagaRef *refs, bool overdue)
{
	bool		goes_on;
	bool		complete;
	TimestampTz next_due;
	int			n;

	if (!saga_scan_begin(overdue, &goes_on))
		return false;
	if (!goes_on)
		saga_engine_find_from_start();
	n = saga_engine_find_due(&worker_driver, refs, SCAN_SIZE, &complete,
							 &next_due);
	saga_ring_put(my_role, refs, n);
	saga_scan_done(next_due, complete);
	return true;
}

/* Sleep until there may be something to do, "idle_end" at the latest. */
static void
rest(TimestampTz idle_end)
{
	TimestampTz now;
	TimestampTz until = Min(idle_end, saga_pool_next_due());
	long		timeout;

	pgstat_report_stat(true);
	pgstat_report_activity(STATE_IDLE, NULL);

	now = GetCurrentTimestamp();
	timeout = TimestampDifferenceMilliseconds(now, until);
	/* rounded up, or it would be too early */
	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
					 until > now ? timeout + 1 : 0, PG_WAIT_EXTENSION);
}

/* The work, until it is time to go. */
static void
work(MemoryContext turn_context)
{
	SagaRef    *refs = MemoryContextAlloc(TopMemoryContext,
										  (SCAN_SIZE + SAGA_SCAN_BEYOND) *
										  sizeof(SagaRef));
	TimestampTz end_of_life = GetCurrentTimestamp() + LIFETIME;
	TimestampTz idle_since = 0;

	for (;;)
	{
		SagaRunResult result;
		TimestampTz now;
		TimestampTz idle_end;
		int			n;

		ResetLatch(MyLatch);
		/* with work to do there is no wait that would notice */
		if (!PostmasterIsAlive())
			proc_exit(1);
		/* here nothing is in hand: go without an error */
		if (ProcDiePending || saga_worker_should_stop())
			return;
		/* a cancel that came too late for its operation */
		QueryCancelPending = false;
		CHECK_FOR_INTERRUPTS();
		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			ProcessConfigFile(PGC_SIGHUP);
		}
		MemoryContextReset(turn_context);
		MemoryContextSwitchTo(turn_context);

		if (role_changed || GetCurrentTimestamp() >= end_of_life)
			return;

		if (scan(refs, true))
			MemoryContextSwitchTo(turn_context);
		n = saga_executor_take(refs, saga_batch_size);
		/* who begins a saga after a change of the role means the role as it is:
		 * a session that began as a superuser's may still become anybody */
		AcceptInvalidationMessages();
		if (role_changed)
		{
			saga_executor_release_all();
			return;
		}
		if (n > 0)
		{
			idle_since = 0;
			saga_engine_run(&worker_driver, refs, n, &result);
			saga_executor_doing(NULL);
			saga_executor_release_all();
			continue;
		}
		if (scan(refs, false))
			continue;

		now = GetCurrentTimestamp();
		if (idle_since == 0)
			idle_since = now;
		idle_end = TimestampTzPlusMilliseconds(idle_since,
											   saga_worker_idle_timeout);
		if (now >= idle_end && saga_worker_try_leave())
			return;
		rest(now >= idle_end ? now + USECS_PER_SEC : idle_end);
	}
}

/* The main function of a worker. */
void
saga_worker_main(Datum arg)
{
	SagaStartArgs args;
	MemoryContext turn_context;

	memcpy(&args, MyBgworkerEntry->bgw_extra, sizeof(args));
	my_role = args.role;

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	pqsignal(SIGQUIT, handle_quit);

	/* before anything that can fail: the place is given back at exit */
	if (!saga_executor_enter(my_role, DatumGetInt32(arg), args.generation))
		proc_exit(0);
	BackgroundWorkerUnblockSignals();

	BackgroundWorkerInitializeConnectionByOid(args.database, my_role,
											  SAGA_WORKER_CONNECT_FLAGS);
	become_role();

	turn_context = AllocSetContextCreate(TopMemoryContext, "saga worker turn",
										 ALLOCSET_DEFAULT_SIZES);
	ereport(DEBUG1, errmsg_internal("saga worker started"));

	saga_session_require_extension();
	work(turn_context);

	pgstat_report_stat(true);
	saga_executor_leave();
	proc_exit(0);
}
