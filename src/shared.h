/*
 * shared.h
 *		The shared memory of saga: databases, pools of workers, the lanes and
 *		rings of wake-ups of each pool, sagas in flight, and the crash record.
 *
 * Only shared.c knows the segment's layout.  Everything here is a hint that
 * may be lost: the tables are the truth, and one sweep at start finds all.
 * The exception is the crash record, a mapped file that outlives the segment.
 *
 * Each function says who may call it.  All of them take and release their
 * lock themselves; none throws.  Without a segment (not preloaded) those of
 * "any backend" and of an executor do nothing and hold nothing back: _claim()
 * returns what it was given.
 */
#ifndef SAGA_SHARED_H
#define SAGA_SHARED_H

#include "datatype/timestamp.h"

#include "machine.h"

/* The most sagas in one batch: see saga.batch_size. */
#define SAGA_MAX_BATCH		60

/* The most background workers of ours: upper bound of saga.max_workers. */
#define SAGA_MAX_WORKERS	64

/* Where a saga, or a branch of one, is: enough to find its row. */
typedef struct SagaRef
{
	int64		id;
	int16		slot;			/* its leaf, 0 to 7; SAGA_BRANCH_SLOT: a branch */
	bool		alone;			/* to be run in a batch of one */
	bool		suspect;		/* its last attempt timed out or was killed: runs
								 * alone, and never on all workers of a role */
	int32		definition;		/* id of its version, so that it takes turns with
								 * sagas of others; 0: not known, as if it were
								 * one more */
} SagaRef;

/* What a process is doing just now, as saga.workers shows it. */
typedef struct SagaOperationRef
{
	int64		saga_id;		/* 0 = nothing */
	int64		branch;			/* done as this branch of it; 0 = none */
	int16		slot;
	int16		step;
	int			element;
	int			operation;		/* a SagaOperation */
	int			attempt;
	int			turn;			/* of the saga's row before this operation */
} SagaOperationRef;

/* An operation during which its process ended: see saga_shared_next_lost. */
typedef struct SagaLost
{
	Oid			database;
	Oid			role;
	SagaOperationRef what;
} SagaLost;

/* ---- any backend ------------------------------------------------------ */

/* Was the library preloaded, so that there is a segment and a launcher? */
extern bool saga_shared_available(void);

/*
 * Note that this saga of this role is to be looked at once the current
 * transaction has committed; forgotten if it aborts.  Allocates nothing:
 * beyond a fixed number of notes "look at all" is remembered instead.
 * "definition" is as in a SagaRef.  "message" is true when the saga is older
 * than this transaction, and may be in flight: then its holder is told to look
 * again.
 */
extern void saga_wake_at_commit(Oid role, int64 id, int16 slot,
								int32 definition, bool message);

/* The same, now: the caller has committed what there is to see. */
extern void saga_wake_now(Oid role, const SagaRef *ref, bool message);

/* Something of this role falls due at that time: a worker will look then.
 * Never forgets an earlier time.  In a transaction: once it has committed. */
extern void saga_due_at(Oid role, TimestampTz when);

/* The coordinator of this database has something to send (an alert).  In a
 * transaction: once it has committed. */
extern void saga_wake_coordinator(void);

/* Look at the whole database: after adopt().  In a transaction: once it has
 * committed. */
extern void saga_wake_database(void);

/* What a courier is wanted for. */
#define SAGA_COURIER_CALLS	0x01	/* queues of servers are marked: see qstate.h */
#define SAGA_COURIER_ALL	0x02	/* look at all queues of servers: what is to be
									 * done is not known */

/* The courier of this database is to do that; it is started if there is none.
 * At once, in a transaction or not, also in a callback at the end of one. */
extern void saga_courier_want(uint32 what);

/* A saga is overdue so long after its deadline. */
#define SAGA_OVERDUE_GRACE	(3 * USECS_PER_SEC)

/* What a coordinator does, each at a time of its own; most of it for tasks. */
typedef enum SagaDuty
{
	SAGA_DUTY_ANNOUNCE,			/* queues */
	SAGA_DUTY_LOOK,				/* which queues have tasks that wait: what is to be
								 * announced is not known */
	SAGA_DUTY_LEASES,			/* end those that are over */
	SAGA_DUTY_CONDITIONS,		/* look at what somebody should see to: alert.h */
	SAGA_DUTY_PURGE,			/* delete tasks that ended long ago */
	SAGA_DUTY_COUNT,			/* count sagas: see stats.h */
	SAGA_DUTY_RETAIN			/* remove sagas whose retention is over */
} SagaDuty;

#define SAGA_NDUTIES	(SAGA_DUTY_RETAIN + 1)

/* The coordinator of this database does that no later than then; never forgets
 * an earlier time.  At once, in a transaction or not. */
extern void saga_duty_at(SagaDuty duty, TimestampTz when);

/* A task has ended just now, so that it is to be deleted at some time.  At
 * once, too. */
extern void saga_task_has_ended(TimestampTz now);

/* Wait for a saga: a waiter's latch is set when that saga becomes final.
 * Registration returns false when all places are taken (then poll). */
extern bool saga_waiter_register(int64 id);
extern void saga_waiter_forget(void);
extern void saga_waiters_notify(const int64 *ids, int n);

/* ---- an executor: a worker, or a backend that drives sagas in the foreground */

/*
 * Take a place among the executors; it is given back at process exit or by
 * saga_executor_leave().  Workers pass the place that the launcher gave them.
 * Returns false when all places are taken: then the caller runs unseen, and
 * what it skips is found by the sweep.
 */
extern bool saga_executor_enter(Oid role, int worker_index, uint32 generation);
extern void saga_executor_leave(void);

/*
 * Move up to "max" sagas of my role to my list of those in flight, and return
 * how many: of each definition that has some in the lanes one, then another.
 * Alone and suspect ones come one at a time.  Those that another executor
 * holds are left to it, with its dirty bit set.
 */
extern int	saga_executor_take(SagaRef *refs, int max);

/* Claim these (found by a query) the same way; returns how many are mine,
 * moved to the front of "refs". */
extern int	saga_executor_claim(SagaRef *refs, int n);

/*
 * Give one back, after the commit.  Returns true when somebody woke it
 * meanwhile: then the caller still holds it, and has to look again.
 */
extern bool saga_executor_release(int64 id);

/* Give back all that I hold; the dirty ones go to the ring, and for others the
 * tables are scanned. */
extern void saga_executor_release_all(void);

/* Put into lane or ring: yielded sagas, those to run alone, those found by a
 * scan.  Returns how many there was room for; sets the scan flag if not for
 * all. */
extern int	saga_ring_put(Oid role, const SagaRef *refs, int n);

/* What I am doing, for the view and for the crash record.  NULL = nothing. */
extern void saga_executor_doing(const SagaOperationRef *what);

/* The same, with the names of definition and step for pg_stat_activity; costs
 * less than a microsecond. */
extern void saga_executor_doing_step(const SagaOperationRef *what,
									 const char *definition,
									 const char *step);

/* An error that belongs to no saga ended my turn: give back what I hold, and
 * have the tables looked at again. */
extern void saga_executor_abandon(void);

/*
 * Is a scan of the due sagas of my role wanted?  True at most for one executor
 * at a time, which must call saga_scan_done() (or exit).  "next_due" is when
 * the first saga after those found falls due, DT_NOEND if none; "complete" is
 * false when there are more due ones than the scan took.  With "overdue" only
 * if it has waited for so long that it comes before what is in the lanes, or
 * these, never empty under load, would keep it waiting for ever.  "goes_on"
 * tells whether it is to go on where my last one ended.
 */
extern bool saga_scan_begin(bool overdue, bool *goes_on);
extern void saga_scan_done(TimestampTz next_due, bool complete);

/* ---- a worker --------------------------------------------------------- */

/* When my pool must look again at the latest; DT_NOEND if never. */
extern TimestampTz saga_pool_next_due(void);

/* May I go?  False when something came in meanwhile; true = I have left. */
extern bool saga_worker_try_leave(void);

/* Was I told to go (database closed, pool to give way, disabled)? */
extern bool saga_worker_should_stop(void);

/* From the handler of SIGQUIT: the server ends me because of another process,
 * so that what I am doing is not to blame. */
extern void saga_executor_is_bystander(void);

/* ---- the coordinator -------------------------------------------------- */

extern bool saga_coordinator_enter(int index, uint32 generation);

/* May I go?  False when there is something to do; true = I have left. */
extern bool saga_coordinator_try_leave(void);

/* I go, whatever there is to do. */
extern void saga_coordinator_leave(void);

extern bool saga_coordinator_should_stop(void);

/* Does somebody else wait for my place, or my slot? */
extern bool saga_coordinator_is_wanted_elsewhere(void);

/* What a coordinator is wanted for. */
#define SAGA_WANT_PROBE		0x01	/* has the database the extension? */
#define SAGA_WANT_SWEEP		0x02	/* look at the whole database */
#define SAGA_WANT_ALERTS	0x04
#define SAGA_WANT_LOST		0x08	/* operations whose process ended */
#define SAGA_WANT_MESSAGES	0x10	/* for roles that can have no worker */
#define SAGA_WANT_ALL		0x1f

/* Take what is wanted; who takes it does it, or exits with an error: then all
 * of it is wanted again. */
extern uint32 saga_coordinator_take_wants(void);

/* Found by a look at the tables: this role has sagas that are due, or has at
 * that time.  At once, in a transaction or not. */
extern void saga_pool_want(Oid role);
extern void saga_pool_want_at(Oid role, TimestampTz when);

/* Why can this role have no worker?  NULL if it can, as far as is known.
 * Any backend; static text. */
extern const char *saga_pool_blocked(Oid role);

/* The roles of this database that can have no worker, at most "max". */
extern int	saga_pools_blocked(Oid *roles, int max);

/* The next operation of this database whose process ended; false if none.
 * It stays on record until saga_shared_lost_done(); until then nobody is given
 * its saga. */
extern bool saga_shared_next_lost(SagaLost *lost);
extern void saga_shared_lost_done(const SagaLost *lost);

/* When this database is looked at as a whole again; DT_NOEND if nothing is
 * unfinished.  The launcher starts a coordinator then. */
extern TimestampTz saga_coordinator_deadline(void);
extern void saga_coordinator_set_deadline(TimestampTz when);

/* When the first duty is, DT_NOEND if none is known of.  Who takes one sees to it,
 * and says when it is next; taken are those only that are due. */
extern TimestampTz saga_coordinator_next_duty(void);
extern bool saga_coordinator_take_duty(SagaDuty duty, TimestampTz now);

/* When this one is, DT_NOEND if it is not known of. */
extern TimestampTz saga_coordinator_duty(SagaDuty duty);

/* When a task ended last; 0: none since the server's start. */
extern TimestampTz saga_coordinator_task_ended(void);

/* Is it time to announce the queues whose tasks wait once more?  Once true, it
 * is not for some while. */
extern bool saga_coordinator_may_remind(TimestampTz now);

/* The earliest time any pool of this database knows of; DT_NOEND if none. */
extern TimestampTz saga_pools_next_due(void);

/* Were sagas begun in transactions that may still be prepared? */
extern bool saga_database_has_prepared(void);
extern void saga_database_set_prepared(bool prepared);

/* The extension is (not) in this database. */
typedef enum SagaDatabaseState
{
	SAGA_DATABASE_UNKNOWN,		/* not looked at since the start */
	SAGA_DATABASE_ABSENT,		/* has no extension, or at another version */
	SAGA_DATABASE_READY
} SagaDatabaseState;

/* Before the look, and after it.  set_state returns false, having done nothing,
 * when it is absent but another look was asked for since: it may just have been
 * created. */
extern void saga_database_probing(void);
extern bool saga_database_set_state(SagaDatabaseState state);

/* ---- the courier ------------------------------------------------------ */

/* Take the place that the launcher gave; it is given back at exit, at the
 * latest.  False: not welcome any more, exit. */
extern bool saga_courier_enter(int index, uint32 generation);

/* May I go?  False when something is wanted; true = I have left. */
extern bool saga_courier_try_leave(void);

/* I go, whatever is wanted: it stays so.  What I have taken and not done I have
 * asked for again.  Who ends otherwise, or was told to, need not: then all is
 * looked at by the next one. */
extern void saga_courier_leave(void);

extern bool saga_courier_should_stop(void);

/* Take what is wanted (SAGA_COURIER_*); before the queues are looked at. */
extern uint32 saga_courier_take_wants(void);

/* When a courier is to be there again though nothing is wanted, DT_NOEND if
 * never: the launcher starts one then.  For who runs it is just a time. */
extern TimestampTz saga_courier_deadline(void);
extern void saga_courier_set_deadline(TimestampTz when);

/* Does somebody else wait for my place, or a slot?  To be asked when there is
 * nothing to do: of all who ask, one is told of the slot. */
extern bool saga_courier_is_wanted_elsewhere(void);

/*
 * The same for one that is busy: does somebody wait, and have I had my place for
 * a while?  Then claim nothing more, and when what is in flight is back ask for
 * what is left, and leave.
 */
extern bool saga_courier_has_had_its_turn(void);

/* ---- hooks: any backend ----------------------------------------------- */

/*
 * Close a database to our processes and tell those in it to go; they are gone
 * when saga_database_processes() returns 0.  Each close needs an open; a
 * process that exits opens what it has closed.  The launcher and coordinators
 * start nothing in a closed database.  close returns false when there is no
 * room to remember it.
 */
extern bool saga_database_close(Oid database, bool terminate);
extern void saga_database_open(Oid database);
extern int	saga_database_processes(Oid database);

/* COMMIT PREPARED: sagas may have been begun in that transaction. */
extern void saga_prepared_committed(void);

/* Look whether it has the extension: after CREATE or DROP EXTENSION. */
extern bool saga_database_probe(Oid database);

/* The launcher has to read pg_database; or roles and privileges changed. */
extern void saga_databases_changed(void);
extern void saga_roles_changed(void);

/* ---- the launcher ----------------------------------------------------- */

/* Why a pool or a database has no process. */
typedef enum SagaBlocked
{
	SAGA_BLOCKED_NOT,
	SAGA_BLOCKED_NO_ROLE,
	SAGA_BLOCKED_NO_LOGIN,
	SAGA_BLOCKED_NO_CONNECT,
	SAGA_BLOCKED_CONNECTIONS,	/* the database allows none */
	SAGA_BLOCKED_TEMPLATE,		/* the database is a template */
	SAGA_BLOCKED_VERSION,		/* the extension is of another version */
	SAGA_BLOCKED_FAILED,		/* the last process ended with an error */
	SAGA_BLOCKED_SLOTS,			/* max_worker_processes */
	SAGA_BLOCKED_WORKERS,		/* saga.max_workers */
	SAGA_BLOCKED_PLACES			/* coordinators, or couriers, of other databases */
} SagaBlocked;

/* As an operator reads it; NULL for SAGA_BLOCKED_NOT. */
extern const char *saga_blocked_text(SagaBlocked blocked);

/* The launcher's own entry in the view: who it is, since when. */
extern void saga_launcher_enter(void);
extern int	saga_launcher_pid(TimestampTz *since);

typedef enum SagaProcessKind
{
	SAGA_PROCESS_COORDINATOR,
	SAGA_PROCESS_COURIER,
	SAGA_PROCESS_WORKER,
	SAGA_PROCESS_FOREGROUND
} SagaProcessKind;

/* The first two are services: of each a database has one at most. */
#define SAGA_NSERVICES	(SAGA_PROCESS_COURIER + 1)
#define saga_process_is_service(kind)	((kind) < SAGA_NSERVICES)

typedef enum SagaProcessState
{
	SAGA_PROCESS_FREE,
	SAGA_PROCESS_STARTING,
	SAGA_PROCESS_IDLE,
	SAGA_PROCESS_WOKEN,			/* idle, and its latch has been set */
	SAGA_PROCESS_BUSY
} SagaProcessState;

typedef struct SagaProcessInfo
{
	SagaProcessKind kind;
	SagaProcessState state;
	int			index;
	uint32		generation;
	int			pid;			/* 0 while starting */
	Oid			database;
	Oid			role;			/* InvalidOid for a service */
	bool		stopping;
	TimestampTz started_at;
	TimestampTz since;			/* in this state, or doing this */
	SagaOperationRef doing;
} SagaProcessInfo;

typedef struct SagaPoolInfo
{
	Oid			database;
	Oid			role;
	bool		closed;			/* the database is */
	bool		waits;			/* there is work */
	int			nworkers;		/* also those that are starting */
	int			nready;			/* of them, idle, just woken or starting */
	TimestampTz waiting_since;	/* with waits */
	TimestampTz next_due;
	SagaBlocked blocked;
	TimestampTz retry_at;		/* start none before */
} SagaPoolInfo;

typedef struct SagaServiceInfo
{
	SagaProcessKind kind;
	Oid			database;
	bool		closed;			/* the database is */
	bool		waits;			/* one is wanted, and there is none */
	bool		running;		/* there is one, or it is starting */
	TimestampTz waiting_since;
	TimestampTz deadline;		/* one is to be there then */
	SagaBlocked blocked;
	TimestampTz retry_at;
} SagaServiceInfo;

#define SAGA_MAX_POOLS		128
#define SAGA_MAX_DATABASES	64
#define SAGA_MAX_FOREGROUND	32
#define SAGA_MAX_SERVICES	(SAGA_NSERVICES * SAGA_MAX_DATABASES)
#define SAGA_MAX_PROCESSES	(SAGA_MAX_WORKERS + SAGA_MAX_FOREGROUND + \
							 SAGA_MAX_SERVICES)

/* Copy what there is into arrays of that size; return how many.  With "plan"
 * only the launcher: work that it has seen is not announced to it again. */
extern int	saga_shared_pools(SagaPoolInfo *infos, bool plan);
extern int	saga_shared_services(SagaServiceInfo *infos, bool plan);
extern int	saga_shared_processes(SagaProcessInfo *infos);

/* Take a place for a process that is to be started; false if it is no longer
 * wanted or there is none. */
extern bool saga_worker_reserve(Oid database, Oid role, int *index,
								uint32 *generation);
extern bool saga_service_reserve(SagaProcessKind kind, Oid database, int *index,
								 uint32 *generation);

/* Give it back, if it has not come to life; returns whether that was so. */
extern bool saga_process_unreserve(SagaProcessKind kind, int index,
								   uint32 generation);

/* Tell one to go, once it has nothing in hand. */
extern void saga_process_stop(SagaProcessKind kind, int index,
							  uint32 generation);

/* So many databases wait for a service of that kind: have those that are there
 * look whether they are to give way. */
extern void saga_services_waiting(SagaProcessKind kind, int n);

/* A process of ours finds no slot: have one of the services that are idle give
 * way. */
extern void saga_slot_wanted(void);

/* Remember why a pool (or, with InvalidOid, that service of a database) has no
 * process; it is tried again after a pause that grows.  Returns true if the
 * reason is new. */
extern bool saga_blocked_set(SagaProcessKind kind, Oid database, Oid role,
							 SagaBlocked blocked);

/* Try all that are blocked again at once. */
extern void saga_blocked_retry_all(void);

/* The database is gone. */
extern void saga_database_forget(Oid database);

/* Since the last call: are there new databases, or is the one or other to be
 * looked at again?  Did roles change? */
#define SAGA_DATABASES_NEW	0x01
#define SAGA_DATABASES_ALL	0x02

extern uint32 saga_launcher_take_databases_changed(void);
extern bool saga_launcher_take_roles_changed(void);

/* ---- the module ------------------------------------------------------- */

/* Ask for the segment; from _PG_init() in the postmaster. */
extern void saga_shared_init(void);

#endif							/* SAGA_SHARED_H */
