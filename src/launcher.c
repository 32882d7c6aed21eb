/*
 * launcher.c
 *		The saga launcher: one per cluster, connected to no database; starts and
 *		stops the coordinators, couriers and workers.
 *
 * At each turn it looks at the tables in shared memory, decides who is to be
 * started, and sleeps until something there falls due or somebody sets its
 * latch.  It runs no query; of the catalogs it reads the shared ones: the list
 * of databases when it starts and when one was created, and one row each of
 * pg_database and pg_authid before it starts a process, so that one that could
 * not connect is not started in vain.
 *
 * Who gets a place:
 * - Coordinators have places of their own, one for each four workers, and so
 *	 have couriers.  First come, first served; when others wait, those that are
 *	 there are told, and give way.
 * - Workers share saga.max_workers places.  A pool that has none comes before
 *	 one that has some; those wait a moment, in which a worker that is there may
 *	 do the work, and leave the last place to others.
 * - When a pool that has none finds no place, or a coordinator or courier no
 *	 slot, an idle worker is asked to go, else one of a pool that has several,
 *	 else one that had its time.
 *
 * Killed at any line: the postmaster starts another.  It finds the processes
 * that are there in shared memory; they give back their places themselves.
 * Only of those just being started it does not know whether they will come to
 * life, and waits a minute for them.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/relation.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_database.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "tcop/tcopprot.h"
#include "utils/acl.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/relcache.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "guc.h"
#include "log.h"
#include "process.h"
#include "qstate.h"
#include "shared.h"
#include "sstate.h"

/* How long a worker that is there may take for what waits in its ring. */
#define GRACE			(50 * INT64CONST(1000))

/* How long a worker runs before it has to go for a role that has none. */
#define TIME_SLICE		USECS_PER_SEC

/* How long a process that an earlier launcher started may take to appear. */
#define START_PATIENCE	(60 * USECS_PER_SEC)

/* When the table of databases is full: how long until the next try. */
#define PROBE_PAUSE		(60 * USECS_PER_SEC)

/* A process that I have started. */
typedef struct Child
{
	BackgroundWorkerHandle *handle; /* NULL: none */
	uint32		generation;
	Oid			database;
	Oid			role;
} Child;

static Child workers[SAGA_MAX_WORKERS];
static Child services[SAGA_NSERVICES][SAGA_MAX_DATABASES];

/* What is there, as of this turn. */
static SagaPoolInfo pools[SAGA_MAX_POOLS];
static SagaServiceInfo wanted[SAGA_MAX_SERVICES];
static SagaProcessInfo processes[SAGA_MAX_PROCESSES];
static int	npools;
static int	nwanted;
static int	nprocesses;

/* Databases that were not looked at yet, and those that were; both in
 * TopMemoryContext. */
static List *to_probe = NIL;
static List *probed = NIL;
static TimestampTz probe_at = 0;

/* Was there no slot for one of ours, last time? */
static bool out_of_slots = false;

/* How many services wait for a slot, as of this turn? */
static int	nslotless;

/* Has a process of ours ended since the last turn, so that there may be one? */
static bool slot_freed;

/* When the next turn has to be, at the latest. */
static TimestampTz next_turn;

static void
look_again_at(TimestampTz when)
{
	next_turn = Min(next_turn, when);
}

/* ---- catalogs: in a transaction of their own -------------------------- */

static void
begin_reading(void)
{
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	(void) GetTransactionSnapshot();
}

static bool
database_may_be_probed(Form_pg_database form)
{
	return form->datallowconn && !form->datistemplate &&
		form->datconnlimit != DATCONNLIMIT_INVALID_DB;
}

/* Note all databases that are to be probed: those not probed yet, or all. */
static void
read_databases(bool all)
{
	List	   *found = NIL;
	Relation	rel;
	TableScanDesc scan;
	HeapTuple	tuple;

	begin_reading();
	rel = table_open(DatabaseRelationId, AccessShareLock);
	scan = table_beginscan_catalog(rel, 0, NULL);
	while ((tuple = heap_getnext(scan, ForwardScanDirection)) != NULL)
	{
		Form_pg_database form = (Form_pg_database) GETSTRUCT(tuple);

		if (database_may_be_probed(form))
		{
			MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);

			found = lappend_oid(found, form->oid);
			MemoryContextSwitchTo(old);
		}
	}
	table_endscan(scan);
	table_close(rel, AccessShareLock);
	CommitTransactionCommand();

	/* forget those that are gone, and what was waiting: it is found again */
	MemoryContextSwitchTo(TopMemoryContext);
	list_free(to_probe);
	to_probe = NIL;
	if (all)
	{
		list_free(probed);
		probed = NIL;
	}
	else
	{
		List	   *old = probed;
		ListCell   *cell;

		probed = NIL;
		foreach(cell, old)
		{
			if (list_member_oid(found, lfirst_oid(cell)))
				probed = lappend_oid(probed, lfirst_oid(cell));
		}
		list_free(old);
	}
	to_probe = list_difference_oid(found, probed);
	list_free(found);
	/* with "all" the table was full, and still may be */
	if (!all)
		probe_at = 0;
}

/* What a start needs to know. */
typedef struct Subject
{
	NameData	database;
	NameData	role;
	bool		gone;			/* the database does not exist */
} Subject;

/* May the role connect?  An ACL that is stored out of line cannot be read
 * without a database; then the start itself will tell. */
static bool
role_may_connect(Relation rel, HeapTuple tuple, Oid role)
{
	Form_pg_database form = (Form_pg_database) GETSTRUCT(tuple);
	Datum		datum;
	bool		isnull;
	Acl		   *acl;

	if (superuser_arg(role))
		return true;
	datum = heap_getattr(tuple, Anum_pg_database_datacl,
						 RelationGetDescr(rel), &isnull);
	if (isnull)
		acl = acldefault(OBJECT_DATABASE, form->datdba);
	else if (VARATT_IS_EXTERNAL(DatumGetPointer(datum)))
		return true;
	else
		acl = DatumGetAclP(datum);
	return aclmask(acl, role, form->datdba, ACL_CONNECT, ACLMASK_ANY) != 0;
}

static SagaBlocked
check_role(Relation rel, HeapTuple database, Oid role, Subject *subject)
{
	HeapTuple	tuple;
	Form_pg_authid form;
	SagaBlocked blocked = SAGA_BLOCKED_NOT;

	tuple = SearchSysCache1(AUTHOID, ObjectIdGetDatum(role));
	if (!HeapTupleIsValid(tuple))
	{
		snprintf(NameStr(subject->role), NAMEDATALEN, "%u", role);
		return SAGA_BLOCKED_NO_ROLE;
	}
	form = (Form_pg_authid) GETSTRUCT(tuple);
	subject->role = form->rolname;
	if (!form->rolcanlogin && !SAGA_NOLOGIN_ROLES_RUN)
		blocked = SAGA_BLOCKED_NO_LOGIN;
	else if (!role_may_connect(rel, database, role))
		blocked = SAGA_BLOCKED_NO_CONNECT;
	ReleaseSysCache(tuple);
	return blocked;
}

/* Could a process connect to the database, as the role if there is one? */
static SagaBlocked
check_start(Oid database, Oid role, Subject *subject)
{
	Relation	rel;
	SysScanDesc scan;
	ScanKeyData key;
	HeapTuple	tuple;
	SagaBlocked blocked = SAGA_BLOCKED_NOT;

	memset(subject, 0, sizeof(*subject));
	begin_reading();
	rel = table_open(DatabaseRelationId, AccessShareLock);
	ScanKeyInit(&key, Anum_pg_database_oid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(database));
	scan = systable_beginscan(rel, DatabaseOidIndexId,
							  criticalSharedRelcachesBuilt, NULL, 1, &key);
	tuple = systable_getnext(scan);
	if (!HeapTupleIsValid(tuple))
		subject->gone = true;
	else
	{
		Form_pg_database form = (Form_pg_database) GETSTRUCT(tuple);

		subject->database = form->datname;
		if (form->datistemplate)
			blocked = SAGA_BLOCKED_TEMPLATE;
		else if (!database_may_be_probed(form))
			blocked = SAGA_BLOCKED_CONNECTIONS;
		else if (OidIsValid(role))
			blocked = check_role(rel, tuple, role, subject);
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	CommitTransactionCommand();
	return blocked;
}

/* ---- starting --------------------------------------------------------- */

/*
 * Say once why a pool or a database has no process.  What is of the database as
 * a whole is said of its coordinator.
 */
static void
set_blocked(SagaProcessKind kind, Oid database, Oid role, SagaBlocked blocked,
			const Subject *subject)
{
	bool		changed = saga_blocked_set(kind, database, role, blocked);

	if (kind != SAGA_PROCESS_COORDINATOR &&
		(blocked == SAGA_BLOCKED_CONNECTIONS ||
		 blocked == SAGA_BLOCKED_TEMPLATE))
	{
		kind = SAGA_PROCESS_COORDINATOR;
		changed = saga_blocked_set(kind, database, InvalidOid, blocked);
	}
	if (!changed)
		return;
	if (kind == SAGA_PROCESS_WORKER)
		ereport(LOG,
				errmsg("cannot start saga worker for role \"%s\" in database \"%s\": %s",
					   NameStr(subject->role), NameStr(subject->database),
					   saga_blocked_text(blocked)),
				errdetail("The sagas of this role wait."),
				errcontext("%s",
						   saga_log_describe_names("role", NameStr(subject->role),
												   "database",
												   NameStr(subject->database),
												   NULL)));
	else
		ereport(LOG,
				errmsg("cannot start saga processes in database \"%s\": %s",
					   NameStr(subject->database),
					   saga_blocked_text(blocked)),
				errcontext("%s",
						   saga_log_describe_names("database",
												   NameStr(subject->database),
												   NULL)));
}

/* Say once that there is no slot left. */
static void
set_out_of_slots(SagaProcessKind kind, Oid database, Oid role)
{
	saga_blocked_set(kind, database, role, SAGA_BLOCKED_SLOTS);
	if (out_of_slots)
		return;
	out_of_slots = true;
	ereport(LOG,
			errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
			errmsg("out of background worker slots"),
			errdetail("Some saga processes could not be started."),
			errhint("You might need to increase %s.",
					"max_worker_processes"));
}

/* What the postmaster is told of a process. */
static void
describe_process(BackgroundWorker *worker, SagaProcessKind kind,
				 const Subject *subject)
{
	static const char *const programs[][2] = {
		[SAGA_PROCESS_COORDINATOR] = {"saga coordinator", "saga_coordinator_main"},
		[SAGA_PROCESS_COURIER] = {"saga courier", "saga_courier_main"},
		[SAGA_PROCESS_WORKER] = {"saga worker", "saga_worker_main"},
	};

	strlcpy(worker->bgw_type, programs[kind][0], BGW_MAXLEN);
	strlcpy(worker->bgw_function_name, programs[kind][1], BGW_MAXLEN);
	if (kind == SAGA_PROCESS_WORKER)
		snprintf(worker->bgw_name, BGW_MAXLEN, "%s for %s in %s",
				 worker->bgw_type, NameStr(subject->role),
				 NameStr(subject->database));
	else
		snprintf(worker->bgw_name, BGW_MAXLEN, "%s in %s", worker->bgw_type,
				 NameStr(subject->database));
}

/* Start a process for a place; false if there is no slot for it. */
static bool
start_process(Child *child, SagaProcessKind kind, int index, Oid database,
			  Oid role, uint32 generation, const Subject *subject)
{
	BackgroundWorker worker;
	SagaStartArgs args;
	MemoryContext old;
	bool		done;

	memset(&worker, 0, sizeof(worker));
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS |
		BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = BGW_NEVER_RESTART;
	worker.bgw_notify_pid = MyProcPid;
	strlcpy(worker.bgw_library_name, "saga", sizeof(worker.bgw_library_name));
	describe_process(&worker, kind, subject);
	worker.bgw_main_arg = Int32GetDatum(index);
	args.database = database;
	args.role = role;
	args.generation = generation;
	memcpy(worker.bgw_extra, &args, sizeof(args));

	if (child->handle != NULL)
		pfree(child->handle);
	child->handle = NULL;
	child->generation = generation;
	child->database = database;
	child->role = role;
	old = MemoryContextSwitchTo(TopMemoryContext);
	done = RegisterDynamicBackgroundWorker(&worker, &child->handle);
	MemoryContextSwitchTo(old);
	return done;
}

static void
forget_database(Oid database)
{
	saga_qstate_forget_database(database);
	saga_sstate_forget_database(database);
	saga_database_forget(database);
}

/* Returns whether a place was taken. */
static bool
start_service(SagaProcessKind kind, Oid database)
{
	Subject		subject;
	SagaBlocked blocked = check_start(database, InvalidOid, &subject);
	int			index;
	uint32		generation;

	if (subject.gone)
	{
		forget_database(database);
		return false;
	}
	if (blocked != SAGA_BLOCKED_NOT)
	{
		set_blocked(kind, database, InvalidOid, blocked, &subject);
		return false;
	}
	if (!saga_service_reserve(kind, database, &index, &generation))
		return false;
	if (!start_process(&services[kind][index], kind, index, database,
					   InvalidOid, generation, &subject))
	{
		saga_process_unreserve(kind, index, generation);
		set_out_of_slots(kind, database, InvalidOid);
		nslotless++;
		return false;
	}
	return true;
}

/* Returns whether a place was taken. */
static bool
start_worker(Oid database, Oid role)
{
	Subject		subject;
	SagaBlocked blocked = check_start(database, role, &subject);
	int			index;
	uint32		generation;

	if (subject.gone)
	{
		forget_database(database);
		return false;
	}
	if (blocked != SAGA_BLOCKED_NOT)
	{
		set_blocked(SAGA_PROCESS_WORKER, database, role, blocked, &subject);
		return false;
	}
	if (!saga_worker_reserve(database, role, &index, &generation))
		return false;
	if (!start_process(&workers[index], SAGA_PROCESS_WORKER, index, database,
					   role, generation, &subject))
	{
		saga_process_unreserve(SAGA_PROCESS_WORKER, index, generation);
		set_out_of_slots(SAGA_PROCESS_WORKER, database, role);
		return false;
	}
	out_of_slots = false;
	return true;
}

/* A child that the postmaster does not know any more has given back its place,
 * unless it never came to life. */
static void
reap_one(SagaProcessKind kind, int index, Child *child)
{
	pid_t		pid;

	if (child->handle == NULL ||
		GetBackgroundWorkerPid(child->handle, &pid) != BGWH_STOPPED)
		return;
	pfree(child->handle);
	child->handle = NULL;
	slot_freed = true;
	if (saga_process_unreserve(kind, index, child->generation))
		saga_blocked_set(kind, child->database, child->role,
						 SAGA_BLOCKED_FAILED);
}

static Child *
child_of(SagaProcessKind kind, int index)
{
	return saga_process_is_service(kind) ? &services[kind][index] :
		&workers[index];
}

static void
reap(void)
{
	TimestampTz now = GetCurrentTimestamp();

	slot_freed = false;
	for (int i = 0; i < SAGA_MAX_WORKERS; i++)
		reap_one(SAGA_PROCESS_WORKER, i, &workers[i]);
	for (int kind = 0; kind < SAGA_NSERVICES; kind++)
		for (int i = 0; i < SAGA_MAX_DATABASES; i++)
			reap_one(kind, i, &services[kind][i]);

	/* those that an earlier launcher started */
	nprocesses = saga_shared_processes(processes);
	for (int i = 0; i < nprocesses; i++)
	{
		SagaProcessInfo *process = &processes[i];
		Child	   *child;

		if (process->state != SAGA_PROCESS_STARTING)
			continue;
		child = child_of(process->kind, process->index);
		if (child->handle != NULL && child->generation == process->generation)
			continue;
		if (now < process->started_at + START_PATIENCE)
			look_again_at(process->started_at + START_PATIENCE);
		else
			saga_process_unreserve(process->kind, process->index,
								   process->generation);
	}
}

/* ---- deciding --------------------------------------------------------- */

static void
stop_process(SagaProcessInfo *process)
{
	if (process->stopping)
		return;
	process->stopping = true;
	saga_process_stop(process->kind, process->index, process->generation);
}

static void
stop_all(void)
{
	for (int i = 0; i < nprocesses; i++)
		if (processes[i].kind != SAGA_PROCESS_FOREGROUND)
			stop_process(&processes[i]);
}

static int
count_processes(SagaProcessKind kind)
{
	int			n = 0;

	for (int i = 0; i < nprocesses; i++)
		if (processes[i].kind == kind)
			n++;
	return n;
}

static SagaPoolInfo *
pool_of(const SagaProcessInfo *process)
{
	for (int i = 0; i < npools; i++)
		if (pools[i].database == process->database &&
			pools[i].role == process->role)
			return &pools[i];
	return NULL;
}

/* Is it in one operation for so long that it may not go soon, if asked? */
static bool
is_held_up(const SagaProcessInfo *process, TimestampTz now)
{
	return process->doing.saga_id != 0 && now - process->since >= TIME_SLICE;
}

/* How many workers were asked to go, and can be expected to? */
static int
count_leaving(TimestampTz now)
{
	int			n = 0;

	for (int i = 0; i < nprocesses; i++)
	{
		const SagaProcessInfo *process = &processes[i];

		if (process->kind != SAGA_PROCESS_WORKER || !process->stopping ||
			is_held_up(process, now))
			continue;
		if (process->doing.saga_id != 0)
			look_again_at(process->since + TIME_SLICE);
		n++;
	}
	return n;
}

/* Which worker can best be spared?  NULL if none can yet. */
static SagaProcessInfo *
find_victim(TimestampTz now)
{
	SagaProcessInfo *victim = NULL;
	int			best = 0;

	for (int i = 0; i < nprocesses; i++)
	{
		SagaProcessInfo *process = &processes[i];
		SagaPoolInfo *pool = pool_of(process);
		int			merit;

		if (process->kind != SAGA_PROCESS_WORKER || process->stopping)
			continue;
		if (process->state == SAGA_PROCESS_IDLE)
			merit = 4;
		else if (process->state == SAGA_PROCESS_STARTING)
		{
			look_again_at(now + GRACE);
			continue;
		}
		else if (is_held_up(process, now))
			merit = 1;
		else if (pool != NULL && pool->nworkers > 1)
			merit = 3;
		else if (now - process->started_at >= TIME_SLICE)
			merit = 2;
		else
		{
			look_again_at(process->started_at + TIME_SLICE);
			continue;
		}
		if (merit > best ||
			(merit == best && process->started_at < victim->started_at))
		{
			victim = process;
			best = merit;
		}
	}
	return victim;
}

/* Ask so many workers to go, and with them those that may take their time. */
static void
make_room(int n, TimestampTz now)
{
	SagaProcessInfo *victim;

	while (n > 0 && (victim = find_victim(now)) != NULL)
	{
		SagaPoolInfo *pool = pool_of(victim);

		if (!is_held_up(victim, now))
			n--;
		if (pool != NULL)
			pool->nworkers--;
		stop_process(victim);
	}
}

static int
compare_pools(const void *a, const void *b)
{
	const SagaPoolInfo *x = a;
	const SagaPoolInfo *y = b;

	/* those that have no worker first, then by the time they wait */
	if ((x->nworkers > 0) != (y->nworkers > 0))
		return x->nworkers > 0 ? 1 : -1;
	if (x->waiting_since != y->waiting_since)
		return x->waiting_since < y->waiting_since ? -1 : 1;
	return 0;
}

/* Is it too early for another try? */
static bool
pauses(SagaBlocked blocked, TimestampTz retry_at, TimestampTz now)
{
	if (retry_at <= now || (blocked == SAGA_BLOCKED_SLOTS && slot_freed))
		return false;
	look_again_at(retry_at);
	return true;
}

/* Is this pool to get a worker now, if there is a place? */
static bool
wants_worker(const SagaPoolInfo *pool, TimestampTz now)
{
	if (pool->closed)
		return false;
	/* a worker of its own knows by itself, but may be busy then */
	if (pool->next_due > now)
		look_again_at(pool->next_due);
	if (!pool->waits)
		return false;
	if (pauses(pool->blocked, pool->retry_at, now))
		return false;
	if (pool->nworkers == 0)
		return true;
	if (pool->nworkers >= saga_workers_per_role)
		return false;
	if (pool->nready > 0 || now - pool->waiting_since < GRACE)
	{
		look_again_at(now + GRACE);
		return false;
	}
	return true;
}

static void
plan_workers(TimestampTz now)
{
	int			total = count_processes(SAGA_PROCESS_WORKER);
	int			leaving = count_leaving(now);
	int			kept = saga_max_workers > 1 ? 1 : 0;
	int			waiting = nslotless;

	npools = saga_shared_pools(pools, true);
	qsort(pools, npools, sizeof(SagaPoolInfo), compare_pools);
	for (int i = 0; i < npools; i++)
	{
		SagaPoolInfo *pool = &pools[i];

		if (!wants_worker(pool, now))
		{
			if (pool->waits && pool->nworkers == 0 &&
				pool->blocked == SAGA_BLOCKED_SLOTS)
				waiting++;
			continue;
		}
		if (total < saga_max_workers - (pool->nworkers > 0 ? kept : 0))
		{
			if (start_worker(pool->database, pool->role))
				total++;
			else if (out_of_slots && pool->nworkers == 0)
				waiting++;
			/* another one, if need be, after a while */
			look_again_at(now + GRACE);
		}
		else if (pool->nworkers == 0)
		{
			waiting++;
			if (pool->blocked == SAGA_BLOCKED_NOT)
				saga_blocked_set(SAGA_PROCESS_WORKER, pool->database,
								 pool->role, SAGA_BLOCKED_WORKERS);
		}
	}

	/* a slot of a service that only lingers is as good */
	if (out_of_slots && waiting > 0)
		saga_slot_wanted();
	/* also after saga.max_workers was lowered */
	make_room(Max(waiting, total - saga_max_workers) - leaving, now);
}

static int
compare_services(const void *a, const void *b)
{
	const SagaServiceInfo *x = a;
	const SagaServiceInfo *y = b;

	if (x->waiting_since != y->waiting_since)
		return x->waiting_since < y->waiting_since ? -1 : 1;
	return 0;
}

/* Start those of one kind; returns how many databases find no place. */
static int
plan_kind(SagaProcessKind kind, TimestampTz now)
{
	int			places = Max(1, saga_max_workers / 4);
	int			taken = count_processes(kind);
	int			waiting = 0;

	for (int i = 0; i < nwanted; i++)
	{
		SagaServiceInfo *service = &wanted[i];

		if (service->kind != kind || service->closed || service->running)
			continue;
		if (!service->waits)
			look_again_at(service->deadline);
		else if (pauses(service->blocked, service->retry_at, now))
		{
			if (service->blocked == SAGA_BLOCKED_SLOTS)
				nslotless++;
		}
		else if (taken < places)
		{
			if (start_service(kind, service->database))
				taken++;
			else
				look_again_at(now + GRACE);
		}
		else
		{
			waiting++;
			if (service->blocked == SAGA_BLOCKED_NOT)
				saga_blocked_set(kind, service->database, InvalidOid,
								 SAGA_BLOCKED_PLACES);
		}
	}
	saga_services_waiting(kind, waiting);
	return waiting;
}

/* Have databases that nobody has looked at yet looked at, one after the
 * other. */
static void
plan_probe(TimestampTz now)
{
	if (to_probe == NIL)
		return;
	if (now < probe_at)
		look_again_at(probe_at);
	else if (saga_database_probe(linitial_oid(to_probe)))
	{
		probed = lappend_oid(probed, linitial_oid(to_probe));
		to_probe = list_delete_first(to_probe);
	}
	else
	{
		probe_at = now + PROBE_PAUSE;
		look_again_at(probe_at);
	}
}

static void
plan_services(TimestampTz now)
{
	nslotless = 0;
	nwanted = saga_shared_services(wanted, true);
	qsort(wanted, nwanted, sizeof(SagaServiceInfo), compare_services);
	if (plan_kind(SAGA_PROCESS_COORDINATOR, now) == 0)
		plan_probe(now);
	(void) plan_kind(SAGA_PROCESS_COURIER, now);
}

/* One turn. */
static void
take_turn(void)
{
	uint32		changed = saga_launcher_take_databases_changed();
	TimestampTz now;

	next_turn = DT_NOEND;
	reap();
	if (saga_launcher_take_roles_changed())
		saga_blocked_retry_all();
	if (changed != 0)
		read_databases((changed & SAGA_DATABASES_ALL) != 0);
	if (!saga_enabled)
	{
		stop_all();
		return;
	}
	now = GetCurrentTimestamp();
	plan_services(now);
	plan_workers(now);
}

/* The main function of the launcher. */
void
saga_launcher_main(Datum arg)
{
	(void) arg;
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();

	BackgroundWorkerInitializeConnection(NULL, NULL, 0);
	SetConfigOption("default_transaction_isolation", "read committed",
					PGC_SUSET, PGC_S_OVERRIDE);
	SetConfigOption("lock_timeout", "0", PGC_SUSET, PGC_S_OVERRIDE);
	SetConfigOption("statement_timeout", "0", PGC_SUSET, PGC_S_OVERRIDE);

	/* without a database nobody did: memberships of roles would be remembered
	 * for ever */
	StartTransactionCommand();
	initialize_acl();
	CommitTransactionCommand();

	saga_launcher_enter();
	ereport(DEBUG1, errmsg_internal("saga launcher started"));
	read_databases(true);

	for (;;)
	{
		long		timeout = -1;
		int			events = WL_LATCH_SET | WL_EXIT_ON_PM_DEATH;

		ResetLatch(MyLatch);
		/* not by an error: the server shuts down, or starts another */
		if (ProcDiePending)
			proc_exit(1);
		CHECK_FOR_INTERRUPTS();
		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			ProcessConfigFile(PGC_SIGHUP);
		}

		take_turn();

		if (next_turn != DT_NOEND)
		{
			timeout = TimestampDifferenceMilliseconds(GetCurrentTimestamp(),
													  next_turn);
			events |= WL_TIMEOUT;
			/* rounded up, or it would be too early */
			timeout = Min(timeout + 1, 24 * 60 * 60 * 1000);
		}
		(void) WaitLatch(MyLatch, events, timeout, PG_WAIT_EXTENSION);
	}
}

/* Have the postmaster start the launcher; from _PG_init(). */
void
saga_launcher_register(void)
{
	BackgroundWorker worker;

	memset(&worker, 0, sizeof(worker));
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS |
		BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = 1;
	strlcpy(worker.bgw_library_name, "saga", sizeof(worker.bgw_library_name));
	strlcpy(worker.bgw_function_name, "saga_launcher_main", BGW_MAXLEN);
	strlcpy(worker.bgw_name, "saga launcher", BGW_MAXLEN);
	strlcpy(worker.bgw_type, "saga launcher", BGW_MAXLEN);
	RegisterBackgroundWorker(&worker);
}
