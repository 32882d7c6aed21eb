/*
 * coordinator.c
 *		The saga coordinator of a database: looks after what no worker does.
 *
 * It finds out whether the database has the extension; records operations
 * whose process ended; looks at the database as a whole, at first, when
 * something falls due and at most once a minute, and has workers started for
 * the roles that have something to do; acts on messages for roles that can
 * have no worker; notices what somebody should see to, and sends alerts; announces queues of tasks, ends leases that are
 * over, deletes tasks that ended long ago, and removes sagas whose retention is
 * over.
 *
 * It is a superuser's session and runs no user code, ever.  Whatever ALTER
 * DATABASE or ALTER ROLE ... SET says, its settings are its own.
 *
 * It leaves soon after it has nothing to do; the time at which the database is
 * to be looked at next stays in shared memory, and the launcher starts it
 * again.  Killed at any line: what it was wanted for is wanted again.
 */
#include "postgres.h"

#include "access/twophase.h"
#include "commands/extension.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "tcop/tcopprot.h"
#include "utils/backend_status.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "engine.h"
#include "guc.h"
#include "owner.h"
#include "process.h"
#include "qstate.h"
#include "retention.h"
#include "session.h"
#include "shared.h"
#include "sstate.h"
#include "stats.h"

/* How long it stays when there is nothing to do. */
#define LINGER			(5 * USECS_PER_SEC)

/* Between two looks at the whole database: at least, and at most while
 * something is unfinished. */
#define SWEEP_PAUSE		(200 * INT64CONST(1000))
#define SWEEP_INTERVAL	(60 * USECS_PER_SEC)

/* For what comes so soon it stays. */
#define SOON			USECS_PER_SEC

/* Between two looks for tasks that wait, for leases that are over, and for tasks
 * that ended long ago: that one unless the last found a whole batch of them. */
#define LOOK_PAUSE		(100 * INT64CONST(1000))
#define LEASE_PAUSE		(50 * INT64CONST(1000))
#define PURGE_PAUSE		(60 * USECS_PER_SEC)
#define PURGE_BATCH		1000

/* Between two looks at what somebody should see to. */
#define WATCH_PAUSE		USECS_PER_SEC

/* Between two counts of sagas: at least so long, and so many times as long as
 * the last one took. */
#define COUNT_PAUSE		(500 * INT64CONST(1000))
#define COUNT_SHARE		20

/* Between two looks whether it is time to note what servers may forget. */
#define MARK_PAUSE		USECS_PER_HOUR

/* Removing sagas takes so long at a time, and then the others get as much. */
#define RETAIN_TIME		(200 * INT64CONST(1000))

/* An answer that its saga has not taken for so long is taken for forgotten. */
#define ANSWER_PATIENCE	(2 * USECS_PER_SEC)

static TimestampTz last_sweep = 0;
static TimestampTz last_look = 0;
static TimestampTz last_marks = 0;
static TimestampTz last_count = 0;
static int64 count_time = 0;	/* that the last one took */
static TimestampTz last_watch = 0;

static const SagaDriver coordinator_driver = {
	.begin = saga_session_begin,
	.commit = saga_session_commit,
	.abort = saga_session_abort,
	.worker = false
};

/* Has the database the extension, and of our version?  Tells shared memory. */
static bool
probe(void)
{
	bool		ready;
	bool		there;

	saga_database_probing();
	saga_session_begin();
	ready = saga_extension_ready();
	there = OidIsValid(get_extension_oid("saga", true));
	saga_session_commit();

	if (!saga_database_set_state(ready ? SAGA_DATABASE_READY :
								 SAGA_DATABASE_ABSENT))
		return false;
	if (!ready)
	{
		saga_qstate_forget_database(MyDatabaseId);
		saga_sstate_forget_database(MyDatabaseId);
		saga_stats_forget_database(MyDatabaseId);
	}
	if (!there)
		saga_blocked_set(SAGA_PROCESS_COORDINATOR, MyDatabaseId, InvalidOid,
						 SAGA_BLOCKED_NOT);
	else if (!ready &&
			 saga_blocked_set(SAGA_PROCESS_COORDINATOR, MyDatabaseId,
							  InvalidOid, SAGA_BLOCKED_VERSION))
		ereport(LOG,
				errmsg("extension \"saga\" and its library are of different versions"),
				errdetail("The sagas of this database wait."),
				errhint("Run ALTER EXTENSION saga UPDATE, and restart the server if the library was replaced."));
	return ready;
}

/* Are there prepared transactions in this database?  If not, it is forgotten
 * that there may be. */
static bool
has_prepared(void)
{
	bool		found = false;

	if (!saga_database_has_prepared())
		return false;
	/* before the look: one that is prepared during it sets it again */
	saga_database_set_prepared(false);
	if (max_prepared_xacts > 0)
	{
		Oid			types[1] = {OIDOID};
		Datum		values[1] = {ObjectIdGetDatum(MyDatabaseId)};

		saga_session_begin();
		SPI_connect();
		PushActiveSnapshot(GetTransactionSnapshot());
		if (SPI_execute_with_args("SELECT 1 FROM pg_catalog.pg_prepared_xact() AS p"
								  " WHERE p.dbid OPERATOR(pg_catalog.=) $1",
								  1, types, values, NULL, true, 1) == SPI_OK_SELECT)
			found = SPI_processed > 0;
		PopActiveSnapshot();
		SPI_finish();
		saga_session_commit();
	}
	if (found)
		saga_database_set_prepared(true);
	return found;
}

/* Announce queues; those that were lately come later. */
static void
announce(void)
{
	pgstat_report_activity(STATE_RUNNING, "announcing tasks");
	saga_engine_announce(&coordinator_driver);
	saga_duty_at(SAGA_DUTY_ANNOUNCE, saga_qstate_announce_at());
}

static void
expire_leases(TimestampTz answered_before)
{
	TimestampTz next;

	pgstat_report_activity(STATE_RUNNING, "ending leases that are over");
	next = saga_engine_expire_leases(&coordinator_driver,
									 answered_before, NULL);
	saga_duty_at(SAGA_DUTY_LEASES,
				 Max(next, GetCurrentTimestamp() + LEASE_PAUSE));
}

/*
 * Delete tasks that ended long ago.  When the next of them is to be deleted
 * nobody knows, only when the last one is: as long as there are some each time
 * the looks follow each other, else the next one is at that time.
 */
static void
purge_tasks(void)
{
	TimestampTz now = GetCurrentTimestamp();
	int64		retention = saga_answer_retention * USECS_PER_SEC;
	TimestampTz last = Min(saga_coordinator_task_ended(), now) + retention;
	int64		n;

	pgstat_report_activity(STATE_RUNNING, "deleting tasks that ended long ago");
	n = saga_engine_purge_tasks(&coordinator_driver);
	if (n >= PURGE_BATCH)
		saga_duty_at(SAGA_DUTY_PURGE, now);
	else if (n >= 0 && now < last)
		saga_duty_at(SAGA_DUTY_PURGE,
					 n > 0 ? now + PURGE_PAUSE : Max(last, now + PURGE_PAUSE));
}

/*
 * Look for tasks of which memory may not know, since the server or a process
 * ended, or a table was full.  "remind" tells to announce all queues in which
 * tasks wait; else it is done once in a while, in case somebody did not listen.
 */
static void
look_for_tasks(bool remind)
{
	TimestampTz now = GetCurrentTimestamp();

	expire_leases(now - ANSWER_PATIENCE);
	if (saga_coordinator_may_remind(now) || remind)
	{
		pgstat_report_activity(STATE_RUNNING, "looking for tasks that wait");
		saga_engine_look_for_tasks(&coordinator_driver);
		last_look = now;
	}
	if (now - last_marks >= MARK_PAUSE || last_marks > now)
	{
		saga_engine_take_marks(&coordinator_driver);
		last_marks = now;
	}
	if (saga_coordinator_task_ended() == 0)
	{
		saga_task_has_ended(now);
		saga_duty_at(SAGA_DUTY_PURGE, now);
	}
	else
		saga_duty_at(SAGA_DUTY_PURGE,
					 now + saga_answer_retention * USECS_PER_SEC);
}

/* Count the sagas, for the statistics, if these want it; "look" also for signs
 * that they are wrong. */
static void
count_sagas(bool look)
{
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz next = last_count + Max(COUNT_PAUSE, COUNT_SHARE * count_time);

	if (!saga_stats_wants_count(look))
		return;
	if (last_count <= now && now < next)
	{
		saga_duty_at(SAGA_DUTY_COUNT, next);
		return;
	}
	pgstat_report_activity(STATE_RUNNING, "counting sagas");
	saga_engine_count_sagas(&coordinator_driver);
	last_count = GetCurrentTimestamp();
	count_time = last_count - now;
	/* by others, or once more */
	if (saga_stats_wants_count(false))
		saga_duty_at(SAGA_DUTY_COUNT, last_count + COUNT_PAUSE);
}

/* Remove sagas whose retention is over, for a while. */
static void
retain(void)
{
	SagaRetained done = {0};
	TimestampTz next;

	if (saga_retention_interval == 0)
		return;
	pgstat_report_activity(STATE_RUNNING, "removing sagas that ended long ago");
	next = saga_retention_run(&coordinator_driver,
							  GetCurrentTimestamp() + RETAIN_TIME, false, &done);
	if (next != DT_NOEND)
		saga_duty_at(SAGA_DUTY_RETAIN,
					 Max(next, GetCurrentTimestamp() + RETAIN_TIME));
	if (done.leaves > 0)
		ereport(DEBUG1,
				errmsg_internal("removed %lld sagas that ended long ago",
								(long long) done.removed));
}

/*
 * Look at the database as a whole, and set the time of the next look.  What
 * falls due earlier is left to the pools that know of it.
 */
static void
sweep(void)
{
	TimestampTz due;
	TimestampTz known;
	TimestampTz next = DT_NOEND;
	bool		prepared;
	bool		unfinished;
	bool		tasks;

	pgstat_report_activity(STATE_RUNNING, "looking for sagas that are due");
	/* asked before the look: who commits in between is seen by it, or asks for
	 * another one */
	saga_coordinator_set_deadline(DT_NOEND);
	prepared = has_prepared();
	due = saga_engine_sweep(&coordinator_driver, &unfinished, &tasks);
	last_sweep = GetCurrentTimestamp();

	if (unfinished || prepared)
		next = last_sweep + SWEEP_INTERVAL;
	known = saga_pools_next_due();
	if (due < known)
		next = Min(next, Max(due, last_sweep + SWEEP_PAUSE));
	if (next < saga_coordinator_deadline())
		saga_coordinator_set_deadline(next);
	if (tasks)
		look_for_tasks(false);
	/* nobody waits for that */
	count_sagas(true);
	/* nobody knows whether there is something to be removed some day */
	if (saga_coordinator_duty(SAGA_DUTY_RETAIN) == DT_NOEND)
		saga_duty_at(SAGA_DUTY_RETAIN, last_sweep);
}

/* Look at what somebody should see to; not too often, since each look reads what
 * is there. */
static void
watch(TimestampTz now)
{
	if (last_watch <= now && now - last_watch < WATCH_PAUSE)
	{
		saga_duty_at(SAGA_DUTY_CONDITIONS, last_watch + WATCH_PAUSE);
		return;
	}
	pgstat_report_activity(STATE_RUNNING, "looking at deadlines and breakers");
	saga_duty_at(SAGA_DUTY_CONDITIONS, saga_engine_watch(&coordinator_driver));
	last_watch = GetCurrentTimestamp();
}

/* Act on what people asked of sagas whose role can have no worker. */
static void
serve_blocked_roles(void)
{
	Oid			roles[SAGA_MAX_POOLS];
	int			n = saga_pools_blocked(roles, SAGA_MAX_POOLS);

	for (int i = 0; i < n; i++)
	{
		pgstat_report_activity(STATE_RUNNING,
							   "acting on messages for a role without workers");
		saga_engine_apply_messages(&coordinator_driver, roles[i]);
	}
}

/* Record what was lost with its process; before anybody is given its saga. */
static void
record_lost(void)
{
	SagaLost	lost;

	while (saga_shared_next_lost(&lost))
	{
		CHECK_FOR_INTERRUPTS();
		pgstat_report_activity(STATE_RUNNING,
							   "recording operations whose process ended");
		saga_engine_record_lost(&coordinator_driver, &lost);
		saga_shared_lost_done(&lost);
	}
}

/* Do what is to be done for tasks by now; returns whether there was anything. */
static bool
do_duties(TimestampTz now)
{
	bool		any = false;

	if (saga_coordinator_take_duty(SAGA_DUTY_ANNOUNCE, now))
	{
		announce();
		any = true;
	}
	if (saga_coordinator_take_duty(SAGA_DUTY_LOOK, now))
	{
		if (last_look <= now && now - last_look < LOOK_PAUSE)
			saga_duty_at(SAGA_DUTY_LOOK, last_look + LOOK_PAUSE);
		else
		{
			look_for_tasks(true);
			any = true;
		}
	}
	if (saga_coordinator_take_duty(SAGA_DUTY_LEASES, now))
	{
		expire_leases(DT_NOBEGIN);
		any = true;
	}
	if (saga_coordinator_take_duty(SAGA_DUTY_PURGE, now))
	{
		purge_tasks();
		any = true;
	}
	if (saga_coordinator_take_duty(SAGA_DUTY_RETAIN, now))
	{
		retain();
		any = true;
	}
	if (saga_coordinator_take_duty(SAGA_DUTY_COUNT, now))
	{
		count_sagas(false);
		any = true;
	}
	if (saga_coordinator_take_duty(SAGA_DUTY_CONDITIONS, now))
	{
		watch(now);
		any = true;
	}
	return any;
}

/* Do what is wanted; returns whether there was anything. */
static bool
take_turn(bool *ready)
{
	uint32		wants = saga_coordinator_take_wants();
	TimestampTz now = GetCurrentTimestamp();

	if ((wants & SAGA_WANT_PROBE) != 0)
	{
		*ready = probe();
		if (!*ready)
			return false;
	}
	if ((wants & SAGA_WANT_LOST) != 0)
		record_lost();
	if ((wants & SAGA_WANT_SWEEP) != 0 || saga_coordinator_deadline() <= now)
	{
		if (now - last_sweep < SWEEP_PAUSE)
			saga_coordinator_set_deadline(last_sweep + SWEEP_PAUSE);
		else
		{
			sweep();
			/* those of before a crash nobody announces */
			wants |= SAGA_WANT_MESSAGES | SAGA_WANT_ALERTS;
			saga_duty_at(SAGA_DUTY_CONDITIONS, now);
		}
	}
	if ((wants & SAGA_WANT_MESSAGES) != 0)
		serve_blocked_roles();
	if ((wants & SAGA_WANT_ALERTS) != 0)
	{
		pgstat_report_activity(STATE_RUNNING, "sending alerts");
		saga_engine_send_alerts(&coordinator_driver);
	}
	return do_duties(now) || wants != 0;
}

/* The work, until there is none or it is told to stop. */
static void
work(MemoryContext turn_context)
{
	bool		ready = true;
	TimestampTz idle_since = GetCurrentTimestamp();

	for (;;)
	{
		TimestampTz now;
		TimestampTz leave_at;
		TimestampTz next;

		ResetLatch(MyLatch);
		if (ProcDiePending || saga_coordinator_should_stop())
			return;
		QueryCancelPending = false;
		CHECK_FOR_INTERRUPTS();
		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			ProcessConfigFile(PGC_SIGHUP);
		}
		MemoryContextReset(turn_context);
		MemoryContextSwitchTo(turn_context);

		if (take_turn(&ready))
		{
			idle_since = GetCurrentTimestamp();
			continue;
		}

		now = GetCurrentTimestamp();
		leave_at = idle_since + LINGER;
		next = Min(saga_coordinator_deadline(), saga_coordinator_next_duty());
		if (!ready || (now >= leave_at && next - SOON > now) ||
			saga_coordinator_is_wanted_elsewhere())
		{
			if (!ready || saga_coordinator_try_leave())
				return;
			continue;
		}
		if (next - SOON > now)
			next = Min(next, leave_at);
		if (next <= now)
			continue;

		pgstat_report_stat(true);
		pgstat_report_activity(STATE_IDLE, NULL);
		(void) WaitLatch(MyLatch,
						 WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 TimestampDifferenceMilliseconds(now, next),
						 PG_WAIT_EXTENSION);
	}
}

/* The main function of a coordinator. */
void
saga_coordinator_main(Datum arg)
{
	SagaStartArgs args;
	MemoryContext turn_context;

	memcpy(&args, MyBgworkerEntry->bgw_extra, sizeof(args));

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);

	/* before anything that can fail: the place is given back at exit */
	if (!saga_coordinator_enter(DatumGetInt32(arg), args.generation))
		proc_exit(0);
	BackgroundWorkerUnblockSignals();

	BackgroundWorkerInitializeConnectionByOid(args.database, InvalidOid, 0);
	saga_session_pin();

	turn_context = AllocSetContextCreate(TopMemoryContext,
										 "saga coordinator turn",
										 ALLOCSET_DEFAULT_SIZES);
	ereport(DEBUG1, errmsg_internal("saga coordinator started"));

	/* the extension may have gone since the last one */
	if (probe())
		work(turn_context);

	pgstat_report_stat(true);
	saga_coordinator_leave();
	proc_exit(0);
}
