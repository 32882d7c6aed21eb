/*
 * shared.c
 *		The shared memory of saga: who is there, what is to be looked at, and who
 *		looks at it just now.
 *
 * The segment holds tables of fixed size:
 *
 * - databases: those in which something is unfinished or was not looked at
 *	 since the start.  Each has the places of its services: coordinator and
 *	 courier.
 * - pools: one per (database, role) that has, or lately had, something to do.
 *	 Each has lanes of wake-ups, two small rings of sagas that run in a batch
 *	 of one (by themselves, or because they are suspect), and the flag "scan":
 *	 somebody has to look into the tables.
 * - executors: processes that advance sagas of a pool; the first
 *	 SAGA_MAX_WORKERS places are the launcher's to give to background workers,
 *	 the others are taken by backends in the foreground.
 * - operations that were lost with their process, and waiters.
 *
 * Lanes are what makes definitions fair to each other.  A lane is of one
 * definition as long as it has entries; who takes a batch takes one entry of
 * each lane, then another, and the next batch goes on at the next lane.  So a
 * saga that is first in its lane waits for no more than the batch at hand and
 * one round of the lanes.  A lane has some entries of its own, so that it has
 * room whatever the others hold; beyond these it takes from a stock that all
 * share.  Known limits: with more definitions than lanes at a time some share
 * one, and wait for each other there.  What found no room, and what falls due
 * (retries, timers), is found by scans in the order of time, at first behind
 * a backlog of another definition; saga_engine_find_due() looks beyond that
 * now and then.
 *
 * A table that is full loses no saga: what finds no room in a lane sets "scan";
 * what finds no pool makes its database want a sweep; what finds no place for
 * its database makes the launcher read pg_database again.  Entries that hold
 * nothing are reused.
 *
 * Locks, in the order in which they are taken:
 *
 *		directory	which databases, pools and executors there are: shared to
 *					find one, exclusive to make, give or free one.  An entry
 *					stays where it is while the lock is held, or while one is
 *					a member of the pool.
 *		pool		one each: its lanes, rings, flags and members, and what those
 *					hold.
 *		lost		the list of lost operations.
 *		waiters		taken alone.
 *
 * Some functions run in the commit callback: they must not throw or allocate.
 * None does, except saga_shared_init().
 *
 * No wake-up is lost:  who wakes has committed, then takes the lock of the
 * pool and either finds the saga held (its dirty bit is set) or puts it into
 * its lane.  Who holds it has committed when it gives it back under the same
 * lock, and sees the bit.  A worker goes to sleep or leaves under that lock
 * too, after it found lanes and rings empty; who puts then finds it idle and sets
 * its latch, or finds none and sets the launcher's.
 *
 * A process that ends, however it does short of a crash of the whole server,
 * gives back its place in an on_shmem_exit callback: after its transaction was
 * rolled back, so that whoever takes its sagas finds their rows unlocked.
 */
#include "postgres.h"

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include "access/xact.h"
#include "miscadmin.h"
#include "port/atomics.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lwlock.h"
#include "storage/pmsignal.h"
#include "storage/shmem.h"
#include "tcop/tcopprot.h"
#include "utils/backend_status.h"
#include "utils/builtins.h"
#include "utils/pidfile.h"
#include "utils/timestamp.h"

#include "guc.h"
#include "inflight.h"
#include "shared.h"

#define NLANES			16
/* So many entries each lane has for itself: all notes of a transaction. */
#define LANE_OWN		64
/* So many more they share ... */
#define STOCK_SIZE		1024
/* ... half of them for what a scan finds. */
#define STOCK_RESERVE	512
#define NENTRIES		(NLANES * LANE_OWN + STOCK_SIZE)
#define SIDE_RING_SIZE	64
#define NEXECUTORS		(SAGA_MAX_WORKERS + SAGA_MAX_FOREGROUND)
#define NLOST			128
#define NWAITERS		256

/* The tranche: directory, waiters, lost, and one lock per pool. */
#define NLOCKS			(3 + SAGA_MAX_POOLS)

/* Notes of a transaction; see saga_wake_at_commit(). */
#define NNOTES			64
#define NNOTED_ROLES	8

/* How long a scan waits at most while there is something in the lanes. */
#define SCAN_PATIENCE	(100 * INT64CONST(1000))

/* How long a database is left alone between two looks at it as a whole. */
#define SWEEP_INTERVAL	(60 * USECS_PER_SEC)

/* How long queues whose tasks wait are not announced again: a little less than
 * that, so that each look that is made for nothing else may do so. */
#define REMIND_PAUSE	(50 * USECS_PER_SEC)

/* A service that fails after so long is no failure in a row. */
#define LONG_LIFE		(60 * USECS_PER_SEC)

/* How long a courier that is busy keeps its place while others wait for one. */
#define COURIER_TURN	(2 * USECS_PER_SEC)

#define NOBODY			(-1)

/* A ring of wake-ups; the array is elsewhere. */
typedef struct RingHead
{
	int			first;
	int			count;
} RingHead;

/* A list of entries of a pool, first in, first out. */
typedef struct Lane
{
	int32		definition;		/* whose it is; free while it is empty */
	int16		first;			/* entries; of no meaning while it is empty */
	int16		last;
	int16		count;
} Lane;

typedef struct Executor
{
	/* The directory lock, exclusive, guards these. */
	uint32		generation;		/* of this use of the place */
	SagaProcessKind kind;
	Oid			database;
	Oid			role;
	int			pool;			/* index */
	int			pid;			/* 0 until the process has come to life */
	Latch	   *latch;			/* its own; NULL until then */
	TimestampTz started_at;

	/* Set by anyone who holds the directory lock, read by the executor. */
	volatile bool stop_requested;	/* to go, once nothing is in hand */
	volatile bool terminated;	/* we have sent it SIGTERM */

	/* The lock of the pool guards these. */
	SagaProcessState state;
	TimestampTz since;			/* in this state */
	bool		progress;		/* has given a saga back after a commit */
	int			turn;			/* which of lanes, alone and suspects comes first
								 * at the next take */
	int			nheld;
	int			nsuspects;		/* of those */
	SagaRef		held[SAGA_MAX_BATCH];	/* in flight */
	bool		dirty[SAGA_MAX_BATCH];	/* and woken since */

	/* Written by the executor alone, read by anyone, with no lock: what it
	 * does.  saga_id is written last and cleared first. */
	SagaOperationRef doing;
	TimestampTz doing_since;
} Executor;

typedef struct Pool
{
	/* The directory lock, exclusive, guards these.  InvalidOid: unused. */
	Oid			database;
	Oid			role;
	int			db;				/* index of its database */

	/* The lock of the pool guards the rest. */
	int			nmembers;
	int16		members[NEXECUTORS];	/* indexes of executors */
	bool		scan;			/* the tables hold due sagas not in a lane */
	bool		scan_goes_on;	/* the last scan did not reach the end */
	int			scanner;		/* executor that scans, or NOBODY */
	int			last_scanner;	/* executor whose scan goes on, or NOBODY */
	TimestampTz scanned_at;		/* when the last one began */
	bool		more_suspects;	/* than their ring holds: scan when it is empty */
	TimestampTz next_due;		/* then "scan" is set */
	TimestampTz alarm;			/* the launcher looks by itself then; DT_NOEND
								 * if not */
	bool		told;			/* the launcher knows that there is work */
	TimestampTz waiting_since;	/* with told */
	SagaBlocked blocked;		/* why there is no worker */
	int			failures;		/* to start one, or of one, in a row */
	TimestampTz retry_at;		/* start none before */
	Lane		lanes[NLANES];
	int			lane_turn;		/* which lane comes first at the next take */
	int			nqueued;		/* entries in all lanes */
	int			stock_used;		/* of them, beyond the lanes' own */
	int16		free_entry;		/* the first of those unused, or NOBODY */
	RingHead	alone;
	RingHead	suspects;
	SagaRef		entries[NENTRIES];
	int16		next_entry[NENTRIES];	/* in the lane, or of the unused ones */
	SagaRef		alone_refs[SIDE_RING_SIZE];
	SagaRef		suspect_refs[SIDE_RING_SIZE];
} Pool;

/* A process of which a database has one at most. */
typedef struct Service
{
	/* The directory lock, exclusive, guards these. */
	SagaProcessState state;		/* FREE, STARTING or BUSY */
	uint32		generation;		/* of this use of the place */
	int			pid;			/* 0 until the process has come to life */
	Latch	   *latch;			/* its own; NULL until then */
	TimestampTz started_at;
	TimestampTz waiting_since;	/* it is wanted, and there is none; 0: not */
	SagaBlocked blocked;		/* why there is none */
	int			failures;		/* to start one, or of one, in a row */
	TimestampTz retry_at;		/* start none before */

	/* Set by anyone who holds the directory lock, read by the process. */
	volatile bool stop_requested;

	/* Atomic; anyone who holds the directory lock. */
	pg_atomic_uint32 wants;		/* SAGA_WANT_*, or SAGA_COURIER_* */
	pg_atomic_uint64 deadline;	/* a TimestampTz: when it is to be there though
								 * nothing is wanted */
} Service;

typedef struct Database
{
	/* The directory lock, exclusive, guards these.  InvalidOid: unused. */
	Oid			oid;
	SagaDatabaseState state;
	int			closers;		/* how many keep it closed */

	/* By the kind of process; see there. */
	Service		services[SAGA_NSERVICES];

	/* Atomic; anyone who holds the directory lock. */
	pg_atomic_uint32 prepared;	/* sagas begun in prepared transactions */
	pg_atomic_uint64 duties[SAGA_NDUTIES];	/* a TimestampTz: when else the
											 * coordinator has something to do */
	pg_atomic_uint64 ended_at;	/* when a task ended last; 0: not known */
	pg_atomic_uint64 reminded_at;	/* when queues whose tasks wait were announced
									 * again; 0: never */
} Database;

typedef struct Waiter
{
	Oid			database;		/* InvalidOid: unused */
	int64		saga_id;
	Latch	   *latch;
} Waiter;

typedef struct Shared
{
	/* Written by the launcher alone. */
	Latch	   *volatile launcher;	/* NULL while there is none */
	int			launcher_pid;
	TimestampTz launcher_since;

	pg_atomic_uint32 databases_changed;
	pg_atomic_uint32 roles_changed;
	pg_atomic_uint32 slot_wanted;	/* one service is to give way */
	pg_atomic_uint32 nwaiting[SAGA_NSERVICES];	/* databases that wait for a
												 * place of that kind; written by
												 * the launcher alone */
	pg_atomic_uint32 nlost;
	pg_atomic_uint32 nwaiters;

	Database	databases[SAGA_MAX_DATABASES];
	Executor	executors[NEXECUTORS];
	SagaLost	lost[NLOST];	/* lock "lost" */
	Waiter		waiters[NWAITERS];	/* lock "waiters" */
	Pool		pools[SAGA_MAX_POOLS];
} Shared;

static Shared *shared = NULL;
static LWLockPadded *locks = NULL;

#define DIRECTORY_LOCK	(&locks[0].lock)
#define WAITERS_LOCK	(&locks[1].lock)
#define LOST_LOCK		(&locks[2].lock)
#define POOL_LOCK(pool)	(&locks[3 + ((pool) - shared->pools)].lock)

/* Who I am. */
static int	my_executor = NOBODY;
static int	my_database = NOBODY;	/* of which I am a service: its index, */
static SagaProcessKind my_service;	/* and which one */
static int	my_waiter = NOBODY;
static bool am_launcher = false;
static bool exit_registered = false;

/* Databases that I keep closed. */
static Oid	my_closed[4];
static int	my_nclosed = 0;

/* What the current transaction wants once it has committed. */
typedef struct WakeNote
{
	Oid			role;
	SagaRef		ref;
	bool		message;
} WakeNote;

typedef struct DueNote
{
	Oid			role;
	TimestampTz when;
} DueNote;

static struct
{
	bool		any;			/* is there anything in here? */
	bool		all;			/* too many roles: sweep */
	bool		messages;		/* not all messages are noted */
	uint32		wants;			/* SAGA_WANT_* */
	int			nnotes;
	int			nroles;
	int			ndues;
	Oid			roles[NNOTED_ROLES];	/* look at all of theirs */
	DueNote		dues[NNOTED_ROLES];
	WakeNote	notes[NNOTES];
}			pending;

static shmem_request_hook_type prev_shmem_request_hook = NULL;
static shmem_startup_hook_type prev_shmem_startup_hook = NULL;

/* ---- finding and making entries --------------------------------------- */

static void
wake_launcher(void)
{
	Latch	   *latch = shared->launcher;

	if (latch != NULL)
		SetLatch(latch);
}

static Database *
find_database(Oid oid)
{
	for (int i = 0; i < SAGA_MAX_DATABASES; i++)
		if (shared->databases[i].oid == oid)
			return &shared->databases[i];
	return NULL;
}

static Pool *
find_pool(Oid database, Oid role)
{
	static int	last = 0;
	Pool	   *pool = &shared->pools[last];

	if (pool->role == role && pool->database == database)
		return pool;
	for (int i = 0; i < SAGA_MAX_POOLS; i++)
	{
		pool = &shared->pools[i];
		if (pool->role == role && pool->database == database)
		{
			last = i;
			return pool;
		}
	}
	return NULL;
}

/* Is a look into the tables asked for, or not at its end? */
static bool
needs_scan(const Pool *pool)
{
	return pool->scan || pool->scan_goes_on;
}

/* Has a pool nothing that somebody must remember?  The directory lock is held
 * exclusively, so that nobody has the lock of the pool who is no member. */
static bool
pool_is_empty(const Pool *pool)
{
	return pool->nmembers == 0 && !needs_scan(pool) &&
		pool->nqueued == 0 && pool->alone.count == 0 &&
		pool->suspects.count == 0 && pool->next_due == DT_NOEND;
}

/* Forget what waits in a pool. */
static void
clear_queues(Pool *pool)
{
	for (int i = 0; i < NLANES; i++)
		pool->lanes[i].count = 0;
	pool->lane_turn = 0;
	pool->nqueued = 0;
	pool->stock_used = 0;
	for (int i = 0; i < NENTRIES; i++)
		pool->next_entry[i] = i + 1 < NENTRIES ? i + 1 : NOBODY;
	pool->free_entry = 0;
	pool->alone.first = pool->alone.count = 0;
	pool->suspects.first = pool->suspects.count = 0;
	pool->more_suspects = false;
}

static void
free_pool(Pool *pool)
{
	pool->database = InvalidOid;
	pool->role = InvalidOid;
}

/* Make sure that a time is no later than that; false if it was not. */
static bool
lower_time(pg_atomic_uint64 *time, TimestampTz when)
{
	uint64		old = pg_atomic_read_u64(time);

	while (when < (TimestampTz) old)
		if (pg_atomic_compare_exchange_u64(time, &old, (uint64) when))
			return true;
	return false;
}

static TimestampTz
read_time(pg_atomic_uint64 *time)
{
	return (TimestampTz) pg_atomic_read_u64(time);
}

static Service *
coordinator_of(Database *db)
{
	return &db->services[SAGA_PROCESS_COORDINATOR];
}

static Service *
courier_of(Database *db)
{
	return &db->services[SAGA_PROCESS_COURIER];
}

/* Make sure that the database is looked at no later than that. */
static void
lower_deadline(Database *db, TimestampTz when)
{
	(void) lower_time(&coordinator_of(db)->deadline, when);
}

/* Nothing is known that its services would have to do, now or at any time. */
static void
clear_wants(Database *db)
{
	for (int i = 0; i < SAGA_NSERVICES; i++)
	{
		pg_atomic_write_u32(&db->services[i].wants, 0);
		pg_atomic_write_u64(&db->services[i].deadline, (uint64) DT_NOEND);
	}
	pg_atomic_write_u32(&db->prepared, 0);
	for (int i = 0; i < SAGA_NDUTIES; i++)
		pg_atomic_write_u64(&db->duties[i], (uint64) DT_NOEND);
	pg_atomic_write_u64(&db->ended_at, 0);
	pg_atomic_write_u64(&db->reminded_at, 0);
}

/* Remember that something may be unfinished here. */
static void
note_unfinished(Database *db)
{
	if (read_time(&coordinator_of(db)->deadline) == DT_NOEND)
		lower_deadline(db, GetCurrentTimestamp() + SWEEP_INTERVAL);
}

/* Has a service nothing to do, as far as is known, and is it not there? */
static bool
service_is_empty(Service *service)
{
	return service->state == SAGA_PROCESS_FREE &&
		pg_atomic_read_u32(&service->wants) == 0 &&
		read_time(&service->deadline) == DT_NOEND;
}

/* Has a database nothing that somebody must remember?  Frees its pools if so.
 * That there are tasks to be deleted is seen at the next one. */
static bool
reclaim_database(Database *db)
{
	int			n = db - shared->databases;

	if (db->closers > 0 ||
		!service_is_empty(coordinator_of(db)) ||
		!service_is_empty(courier_of(db)) ||
		pg_atomic_read_u32(&db->prepared) != 0 ||
		read_time(&db->duties[SAGA_DUTY_ANNOUNCE]) != DT_NOEND ||
		read_time(&db->duties[SAGA_DUTY_LOOK]) != DT_NOEND ||
		read_time(&db->duties[SAGA_DUTY_LEASES]) != DT_NOEND)
		return false;
	for (int i = 0; i < SAGA_MAX_POOLS; i++)
		if (OidIsValid(shared->pools[i].database) &&
			shared->pools[i].db == n && !pool_is_empty(&shared->pools[i]))
			return false;

	for (int i = 0; i < SAGA_MAX_POOLS; i++)
		if (OidIsValid(shared->pools[i].database) && shared->pools[i].db == n)
			free_pool(&shared->pools[i]);
	db->oid = InvalidOid;
	return true;
}

/* The entry of a database, made if there is none; NULL when the table is
 * full.  The directory lock is held exclusively. */
static Database *
make_database(Oid oid)
{
	Database   *db = find_database(oid);

	if (db != NULL)
		return db;
	db = find_database(InvalidOid);
	for (int i = 0; db == NULL && i < SAGA_MAX_DATABASES; i++)
		if (reclaim_database(&shared->databases[i]))
			db = &shared->databases[i];
	if (db == NULL)
	{
		/* the launcher tries again by itself, after a pause */
		if (!am_launcher)
		{
			pg_atomic_fetch_or_u32(&shared->databases_changed,
								   SAGA_DATABASES_ALL);
			wake_launcher();
		}
		return NULL;
	}

	db->oid = oid;
	db->state = SAGA_DATABASE_UNKNOWN;
	db->closers = 0;
	for (int i = 0; i < SAGA_NSERVICES; i++)
	{
		Service    *service = &db->services[i];

		/* the generation goes on: of an earlier use there may be a late one */
		service->state = SAGA_PROCESS_FREE;
		service->pid = 0;
		service->latch = NULL;
		service->waiting_since = 0;
		service->blocked = SAGA_BLOCKED_NOT;
		service->failures = 0;
		service->retry_at = 0;
		service->stop_requested = false;
	}
	clear_wants(db);
	return db;
}

/* Wake a service, or whoever starts it. */
static void
wake_service(Service *service)
{
	if (service->latch != NULL)
		SetLatch(service->latch);
	else
		wake_launcher();
}

static void
want_of(Service *service, uint32 what)
{
	pg_atomic_fetch_or_u32(&service->wants, what);
	wake_service(service);
}

/* Tell the coordinator of a database that it is wanted. */
static void
want(Database *db, uint32 what)
{
	want_of(coordinator_of(db), what);
}

/*
 * An unused pool; if need be one that only waits for a time, which its
 * database then remembers, or one that can have no worker.  NULL when all are
 * in use.  The directory lock is held exclusively.
 */
static Pool *
reclaim_pool(void)
{
	Pool	   *candidate = NULL;

	for (int i = 0; i < SAGA_MAX_POOLS; i++)
	{
		Pool	   *pool = &shared->pools[i];

		if (!OidIsValid(pool->database) || pool_is_empty(pool))
			return pool;
		if (pool->nmembers > 0)
			continue;
		if ((pool->nqueued == 0 && pool->alone.count == 0 &&
			 pool->suspects.count == 0 && !needs_scan(pool)) ||
			(pool->blocked != SAGA_BLOCKED_NOT &&
			 pool->blocked < SAGA_BLOCKED_VERSION))
			candidate = pool;
	}
	if (candidate != NULL)
	{
		Database   *db = &shared->databases[candidate->db];

		note_unfinished(db);
		lower_deadline(db, candidate->next_due);
	}
	return candidate;
}

static Pool *
make_pool(Oid database, Oid role)
{
	Database   *db;
	Pool	   *pool = find_pool(database, role);

	if (pool != NULL)
		return pool;
	db = make_database(database);
	if (db == NULL)
		return NULL;
	pool = reclaim_pool();
	if (pool == NULL)
	{
		/* try again in a while: by then some pool has been drained */
		note_unfinished(db);
		return NULL;
	}

	pool->database = database;
	pool->role = role;
	pool->db = db - shared->databases;
	pool->nmembers = 0;
	pool->scan = false;
	pool->scan_goes_on = false;
	pool->scanner = NOBODY;
	pool->last_scanner = NOBODY;
	pool->scanned_at = 0;
	pool->next_due = DT_NOEND;
	pool->alarm = DT_NOEND;
	pool->told = false;
	pool->waiting_since = 0;
	pool->blocked = SAGA_BLOCKED_NOT;
	pool->failures = 0;
	pool->retry_at = 0;
	clear_queues(pool);
	return pool;
}

/* Lock a pool, and the directory; NULL, with nothing locked, if there is none
 * and none can be made. */
static Pool *
lock_pool(Oid database, Oid role, bool make)
{
	Pool	   *pool;

	LWLockAcquire(DIRECTORY_LOCK, LW_SHARED);
	pool = find_pool(database, role);
	if (pool == NULL && make)
	{
		LWLockRelease(DIRECTORY_LOCK);
		LWLockAcquire(DIRECTORY_LOCK, LW_EXCLUSIVE);
		pool = make_pool(database, role);
	}
	if (pool == NULL)
	{
		LWLockRelease(DIRECTORY_LOCK);
		return NULL;
	}
	LWLockAcquire(POOL_LOCK(pool), LW_EXCLUSIVE);
	return pool;
}

static void
unlock_pool(Pool *pool)
{
	LWLockRelease(POOL_LOCK(pool));
	LWLockRelease(DIRECTORY_LOCK);
}

/* ---- lanes and rings: the lock of the pool is held -------------------- */

/* The lane of a definition: its own, a free one, or one that it shares. */
static Lane *
find_lane(Pool *pool, int32 definition)
{
	Lane	   *unused = NULL;

	for (int i = 0; i < NLANES; i++)
	{
		Lane	   *lane = &pool->lanes[i];

		if (lane->count == 0)
			unused = unused ? unused : lane;
		else if (lane->definition == definition)
			return lane;
	}
	if (unused == NULL)
		return &pool->lanes[(uint32) definition % NLANES];
	unused->definition = definition;
	return unused;
}

/* Append to its lane; "reserve" is what must stay of the common stock.  Since
 * each lane has its own, there is always an entry for who may have one. */
static bool
lane_push(Pool *pool, const SagaRef *ref, int reserve)
{
	Lane	   *lane = find_lane(pool, ref->definition);
	int16		entry = pool->free_entry;

	if (lane->count >= LANE_OWN)
	{
		if (pool->stock_used >= STOCK_SIZE - reserve)
			return false;
		pool->stock_used++;
	}
	Assert(entry != NOBODY);
	pool->free_entry = pool->next_entry[entry];
	pool->entries[entry] = *ref;
	if (lane->count == 0)
		lane->first = entry;
	else
		pool->next_entry[lane->last] = entry;
	lane->last = entry;
	lane->count++;
	pool->nqueued++;
	return true;
}

/* Take the first of the lane whose turn it is. */
static bool
lane_pop(Pool *pool, SagaRef *ref)
{
	Lane	   *lane;
	int16		entry;

	if (pool->nqueued == 0)
		return false;
	while (pool->lanes[pool->lane_turn].count == 0)
		pool->lane_turn = (pool->lane_turn + 1) % NLANES;
	lane = &pool->lanes[pool->lane_turn];
	pool->lane_turn = (pool->lane_turn + 1) % NLANES;

	entry = lane->first;
	*ref = pool->entries[entry];
	lane->first = pool->next_entry[entry];
	pool->next_entry[entry] = pool->free_entry;
	pool->free_entry = entry;
	if (lane->count > LANE_OWN)
		pool->stock_used--;
	lane->count--;
	pool->nqueued--;
	return true;
}

/* In any lane: it may have been put there before its definition was known. */
static bool
lanes_have(const Pool *pool, int64 id)
{
	for (int i = 0; i < NLANES; i++)
	{
		int16		entry = pool->lanes[i].first;

		for (int n = pool->lanes[i].count; n > 0; n--)
		{
			if (pool->entries[entry].id == id)
				return true;
			entry = pool->next_entry[entry];
		}
	}
	return false;
}

static bool
ring_push(RingHead *head, SagaRef *refs, int size, const SagaRef *ref)
{
	if (head->count >= size)
		return false;
	refs[(head->first + head->count) % size] = *ref;
	head->count++;
	return true;
}

static bool
ring_pop(RingHead *head, SagaRef *refs, int size, SagaRef *ref)
{
	if (head->count == 0)
		return false;
	*ref = refs[head->first];
	head->first = (head->first + 1) % size;
	head->count--;
	return true;
}

static bool
ring_has(const RingHead *head, const SagaRef *refs, int size, int64 id)
{
	for (int i = 0; i < head->count; i++)
		if (refs[(head->first + i) % size].id == id)
			return true;
	return false;
}

/* Put a saga where it belongs; without room for it the tables are scanned.
 * "reserve": see lane_push(). */
static bool
put_ref(Pool *pool, const SagaRef *ref, int reserve)
{
	bool		done;

	if (ref->suspect)
	{
		done = ring_push(&pool->suspects, pool->suspect_refs,
						 SIDE_RING_SIZE, ref);
		/* a worker that may take none would scan again and again until then */
		if (!done)
			pool->more_suspects = true;
		return done;
	}
	if (ref->alone)
		done = ring_push(&pool->alone, pool->alone_refs, SIDE_RING_SIZE, ref);
	else
		done = lane_push(pool, ref, reserve);
	if (!done)
		pool->scan = true;
	return done;
}

static bool
has_ref(const Pool *pool, const SagaRef *ref)
{
	/* who found it in a table does not know why it waits in a side ring */
	if (pool->suspects.count > 0 &&
		ring_has(&pool->suspects, pool->suspect_refs, SIDE_RING_SIZE, ref->id))
		return true;
	if (pool->alone.count > 0 &&
		ring_has(&pool->alone, pool->alone_refs, SIDE_RING_SIZE, ref->id))
		return true;
	if (ref->suspect || ref->alone)
		return false;
	return lanes_have(pool, ref->id);
}

/* The executor that holds this saga, and where in its list; or NULL. */
static Executor *
find_holder(Pool *pool, int64 id, int *position)
{
	for (int m = 0; m < pool->nmembers; m++)
	{
		Executor   *executor = &shared->executors[pool->members[m]];

		for (int i = 0; i < executor->nheld; i++)
			if (executor->held[i].id == id)
			{
				*position = i;
				return executor;
			}
	}
	return NULL;
}

/* How many workers a role can have at most: one place is kept for others. */
static int
pool_limit(void)
{
	return Min(saga_workers_per_role, Max(1, saga_max_workers - 1));
}

/*
 * While others wait: is every worker of the pool but one busy with a saga that
 * runs by itself, and so perhaps with one that hangs for the first time?
 */
static bool
one_is_left_for_batches(const Pool *pool)
{
	int			limit = pool_limit();
	int			n = 0;

	if (limit == 1 || pool->nqueued == 0)
		return false;
	for (int m = 0; m < pool->nmembers; m++)
	{
		Executor   *executor = &shared->executors[pool->members[m]];

		if (executor->kind == SAGA_PROCESS_WORKER && executor->nheld > 0 &&
			(executor->held[0].alone || executor->held[0].suspect))
			n++;
	}
	return n >= limit - 1;
}

/* On how many workers of a pool do suspects run? */
static int
count_suspect_workers(const Pool *pool)
{
	int			n = 0;

	for (int m = 0; m < pool->nmembers; m++)
	{
		Executor   *executor = &shared->executors[pool->members[m]];

		if (executor->kind == SAGA_PROCESS_WORKER && executor->nsuspects > 0)
			n++;
	}
	return n;
}

/*
 * May a worker take a suspect?  One worker of the pool stays free of them; if
 * there is one only, they come after everything else.
 */
static bool
suspects_allowed(const Pool *pool)
{
	int			limit = pool_limit();

	if (pool->suspects.count == 0 || one_is_left_for_batches(pool))
		return false;
	if (limit > 1)
		return count_suspect_workers(pool) < limit - 1;
	return pool->nqueued == 0 && pool->alone.count == 0 && !needs_scan(pool) &&
		count_suspect_workers(pool) == 0;
}

static bool
scan_is_wanted(const Pool *pool, TimestampTz now)
{
	return (needs_scan(pool) || pool->next_due <= now) && pool->scanner == NOBODY;
}

static bool
pool_has_work(const Pool *pool, TimestampTz now)
{
	return pool->nqueued > 0 || pool->alone.count > 0 ||
		scan_is_wanted(pool, now) || suspects_allowed(pool);
}

static void
set_state(Executor *executor, SagaProcessState state)
{
	if (executor->state == state)
		return;
	executor->state = state;
	/* the time a worker was woken is of no interest, and this path is hot */
	if (state == SAGA_PROCESS_IDLE)
		executor->since = GetCurrentTimestamp();
}

/*
 * There is work: returns the latch of the one to be told, if any: an idle
 * worker, unless one that was just woken can do it all, or the launcher.
 */
static Latch *
wake_pool(Pool *pool)
{
	Executor   *idle = NULL;
	bool		coming = false;
	int			nworkers = 0;

	for (int m = 0; m < pool->nmembers; m++)
	{
		Executor   *executor = &shared->executors[pool->members[m]];

		if (executor->kind != SAGA_PROCESS_WORKER)
			continue;
		nworkers++;
		if (executor->stop_requested)
			continue;
		if (executor->state == SAGA_PROCESS_WOKEN ||
			executor->state == SAGA_PROCESS_STARTING)
			coming = true;
		else if (executor->state == SAGA_PROCESS_IDLE && idle == NULL)
			idle = executor;
	}
	if (coming && pool->nqueued < saga_batch_size)
		return NULL;
	if (idle != NULL)
	{
		idle->state = SAGA_PROCESS_WOKEN;
		return idle->latch;
	}
	if (pool->told || nworkers >= saga_workers_per_role)
		return NULL;
	pool->told = true;
	return shared->launcher;
}

static void
unlock_and_wake(Pool *pool)
{
	Latch	   *latch = wake_pool(pool);

	unlock_pool(pool);
	if (latch != NULL)
		SetLatch(latch);
}

/*
 * Something falls due at a time of which the launcher does not know: returns
 * its latch.  A worker of the pool that is idle sets an alarm itself, but may
 * be busy when the time comes.
 */
static Latch *
set_alarm(Pool *pool)
{
	if (pool->next_due >= pool->alarm)
		return NULL;
	pool->alarm = pool->next_due;
	return shared->launcher;
}

/* Can the pool have no worker because of its role? */
static bool
role_is_blocked(SagaBlocked blocked)
{
	return blocked == SAGA_BLOCKED_NO_ROLE ||
		blocked == SAGA_BLOCKED_NO_LOGIN ||
		blocked == SAGA_BLOCKED_NO_CONNECT;
}

/* ---- any backend ------------------------------------------------------ */

bool
saga_shared_available(void)
{
	return shared != NULL;
}

/* One wake-up, under the lock of the pool. */
static void
wake_saga(Pool *pool, const SagaRef *ref, bool message)
{
	Database   *db = &shared->databases[pool->db];
	Executor   *holder;
	int			i;

	note_unfinished(db);
	if (message)
	{
		holder = find_holder(pool, ref->id, &i);
		if (holder != NULL)
		{
			holder->dirty[i] = true;
			return;
		}
		if (role_is_blocked(pool->blocked))
		{
			want(db, SAGA_WANT_MESSAGES);
			return;
		}
	}
	/* without room those of its lane that wait longer get their turn */
	put_ref(pool, ref, STOCK_RESERVE);
}

void
saga_wake_now(Oid role, const SagaRef *ref, bool message)
{
	Pool	   *pool;

	if (shared == NULL)
		return;
	pool = lock_pool(MyDatabaseId, role, true);
	if (pool == NULL)
		return;
	wake_saga(pool, ref, message);
	unlock_and_wake(pool);
}

void
saga_wake_at_commit(Oid role, int64 id, int16 slot, int32 definition,
					bool message)
{
	WakeNote   *note;

	if (shared == NULL)
		return;
	pending.any = true;
	if (pending.nnotes < NNOTES)
	{
		note = &pending.notes[pending.nnotes++];
		note->role = role;
		note->ref.id = id;
		note->ref.slot = slot;
		note->ref.alone = false;
		note->ref.suspect = false;
		note->ref.definition = definition;
		note->message = message;
		return;
	}

	pending.messages |= message;
	for (int i = 0; i < pending.nroles; i++)
		if (pending.roles[i] == role)
			return;
	if (pending.nroles < NNOTED_ROLES)
		pending.roles[pending.nroles++] = role;
	else
		pending.all = true;
}

void
saga_pool_want_at(Oid role, TimestampTz when)
{
	Pool	   *pool;
	Latch	   *latch = NULL;
	Latch	   *launcher = NULL;

	if (shared == NULL || when == DT_NOEND)
		return;
	pool = lock_pool(MyDatabaseId, role, true);
	if (pool == NULL)
		return;
	note_unfinished(&shared->databases[pool->db]);
	if (when < pool->next_due)
	{
		pool->next_due = when;
		launcher = set_alarm(pool);
		/* who sleeps has to set his alarm anew */
		for (int m = 0; m < pool->nmembers; m++)
		{
			Executor   *executor = &shared->executors[pool->members[m]];

			if (executor->kind == SAGA_PROCESS_WORKER &&
				executor->state == SAGA_PROCESS_IDLE &&
				!executor->stop_requested)
			{
				latch = executor->latch;
				break;
			}
		}
	}
	unlock_pool(pool);
	if (latch != NULL)
		SetLatch(latch);
	if (launcher != NULL)
		SetLatch(launcher);
}

void
saga_due_at(Oid role, TimestampTz when)
{
	if (shared == NULL || when == DT_NOEND)
		return;
	if (!IsTransactionState())
	{
		saga_pool_want_at(role, when);
		return;
	}
	pending.any = true;
	for (int i = 0; i < pending.ndues; i++)
		if (pending.dues[i].role == role)
		{
			pending.dues[i].when = Min(pending.dues[i].when, when);
			return;
		}
	if (pending.ndues < NNOTED_ROLES)
	{
		pending.dues[pending.ndues].role = role;
		pending.dues[pending.ndues++].when = when;
	}
	else
		pending.wants |= SAGA_WANT_SWEEP;
}

/* This database, made if there is none, or NULL; and lock the directory. */
static Database *
lock_directory(void)
{
	Database   *db;

	LWLockAcquire(DIRECTORY_LOCK, LW_SHARED);
	db = find_database(MyDatabaseId);
	if (db == NULL)
	{
		LWLockRelease(DIRECTORY_LOCK);
		LWLockAcquire(DIRECTORY_LOCK, LW_EXCLUSIVE);
		db = make_database(MyDatabaseId);
	}
	return db;
}

static void
want_coordinator(uint32 what)
{
	Database   *db = lock_directory();

	if (db != NULL)
		want(db, what);
	LWLockRelease(DIRECTORY_LOCK);
}

static void
want_at_commit(uint32 what)
{
	if (shared == NULL)
		return;
	if (IsTransactionState())
	{
		pending.any = true;
		pending.wants |= what;
	}
	else
		want_coordinator(what);
}

void
saga_wake_coordinator(void)
{
	want_at_commit(SAGA_WANT_ALERTS);
}

void
saga_wake_database(void)
{
	want_at_commit(SAGA_WANT_SWEEP);
}

/* ---- what is to be done for tasks --------------------------------------- */

/* Whoever sleeps until the next time that is known of has to know of this one:
 * the coordinator, or who starts it. */
static void
lower_duty(Database *db, SagaDuty duty, TimestampTz when)
{
	bool		mine = my_service == SAGA_PROCESS_COORDINATOR &&
		db - shared->databases == my_database;

	if (lower_time(&db->duties[duty], when) && !mine)
		wake_service(coordinator_of(db));
}

void
saga_duty_at(SagaDuty duty, TimestampTz when)
{
	Database   *db;

	if (shared == NULL || when == DT_NOEND)
		return;
	db = lock_directory();
	if (db != NULL)
		lower_duty(db, duty, when);
	LWLockRelease(DIRECTORY_LOCK);
}

void
saga_task_has_ended(TimestampTz now)
{
	Database   *db;

	if (shared == NULL)
		return;
	db = lock_directory();
	if (db != NULL)
	{
		pg_atomic_write_u64(&db->ended_at, (uint64) now);
		lower_duty(db, SAGA_DUTY_PURGE,
				   now + saga_answer_retention * USECS_PER_SEC);
	}
	LWLockRelease(DIRECTORY_LOCK);
}

/* ---- what is to be done for calls --------------------------------------- */

void
saga_courier_want(uint32 what)
{
	Database   *db;

	if (shared == NULL)
		return;
	db = lock_directory();
	if (db != NULL)
		want_of(courier_of(db), what);
	LWLockRelease(DIRECTORY_LOCK);
}

/* ---- at the end of a transaction ---------------------------------------- */

/* The transaction was prepared: nothing of ours is told when it commits. */
static void
note_prepared(void)
{
	Database   *db;

	LWLockAcquire(DIRECTORY_LOCK, LW_EXCLUSIVE);
	db = make_database(MyDatabaseId);
	if (db != NULL)
	{
		pg_atomic_write_u32(&db->prepared, 1);
		note_unfinished(db);
	}
	LWLockRelease(DIRECTORY_LOCK);
}

/* Some sagas of this role have messages: have the tables looked at, and those
 * in flight looked at again. */
static void
want_messages(Oid role)
{
	Pool	   *pool = lock_pool(MyDatabaseId, role, true);

	if (pool == NULL)
		return;
	note_unfinished(&shared->databases[pool->db]);
	for (int m = 0; m < pool->nmembers; m++)
	{
		Executor   *executor = &shared->executors[pool->members[m]];

		memset(executor->dirty, true, executor->nheld * sizeof(bool));
	}
	if (role_is_blocked(pool->blocked))
		want(&shared->databases[pool->db], SAGA_WANT_MESSAGES);
	pool->scan = true;
	unlock_and_wake(pool);
}

static void
act_on_commit(void)
{
	Pool	   *pool = NULL;

	for (int i = 0; i < pending.nnotes; i++)
	{
		const WakeNote *note = &pending.notes[i];

		if (pool != NULL && pool->role != note->role)
		{
			unlock_and_wake(pool);
			pool = NULL;
		}
		if (pool == NULL)
			pool = lock_pool(MyDatabaseId, note->role, true);
		if (pool == NULL)
			pending.wants |= SAGA_WANT_SWEEP;
		else
			wake_saga(pool, &note->ref, note->message);
	}
	if (pool != NULL)
		unlock_and_wake(pool);

	for (int i = 0; i < pending.nroles; i++)
	{
		if (pending.messages)
			want_messages(pending.roles[i]);
		else
			saga_pool_want(pending.roles[i]);
	}
	for (int i = 0; i < pending.ndues; i++)
		saga_pool_want_at(pending.dues[i].role, pending.dues[i].when);
	if (pending.all)
		pending.wants |= SAGA_WANT_SWEEP;
	if (pending.wants != 0)
		want_coordinator(pending.wants);
}

/* Interrupts are held here; nothing may throw or allocate. */
static void
at_transaction_end(XactEvent event, void *arg)
{
	(void) arg;
	switch (event)
	{
		case XACT_EVENT_COMMIT:
			if (pending.any)
				act_on_commit();
			break;
		case XACT_EVENT_PREPARE:
			if (pending.any)
				note_prepared();
			break;
		case XACT_EVENT_ABORT:
			if (my_waiter != NOBODY)
				saga_waiter_forget();
			break;
		default:
			return;
	}
	if (pending.any)
	{
		pending.any = false;
		pending.all = false;
		pending.messages = false;
		pending.wants = 0;
		pending.nnotes = 0;
		pending.nroles = 0;
		pending.ndues = 0;
	}
}

/* ---- waiters ---------------------------------------------------------- */

static void register_exit(void);

bool
saga_waiter_register(int64 id)
{
	if (shared == NULL)
		return false;
	register_exit();
	LWLockAcquire(WAITERS_LOCK, LW_EXCLUSIVE);
	for (int i = 0; my_waiter == NOBODY && i < NWAITERS; i++)
		if (!OidIsValid(shared->waiters[i].database))
		{
			my_waiter = i;
			pg_atomic_fetch_add_u32(&shared->nwaiters, 1);
		}
	if (my_waiter != NOBODY)
	{
		shared->waiters[my_waiter].database = MyDatabaseId;
		shared->waiters[my_waiter].saga_id = id;
		shared->waiters[my_waiter].latch = MyLatch;
	}
	LWLockRelease(WAITERS_LOCK);
	return my_waiter != NOBODY;
}

void
saga_waiter_forget(void)
{
	if (my_waiter == NOBODY)
		return;
	LWLockAcquire(WAITERS_LOCK, LW_EXCLUSIVE);
	shared->waiters[my_waiter].database = InvalidOid;
	pg_atomic_fetch_sub_u32(&shared->nwaiters, 1);
	LWLockRelease(WAITERS_LOCK);
	my_waiter = NOBODY;
}

void
saga_waiters_notify(const int64 *ids, int n)
{
	if (shared == NULL || n == 0)
		return;
	/* who registered before it looked, and did not see our commit, is seen */
	pg_memory_barrier();
	if (pg_atomic_read_u32(&shared->nwaiters) == 0)
		return;

	LWLockAcquire(WAITERS_LOCK, LW_SHARED);
	for (int i = 0; i < NWAITERS; i++)
	{
		const Waiter *waiter = &shared->waiters[i];

		if (waiter->database != MyDatabaseId)
			continue;
		for (int k = 0; k < n; k++)
			if (ids[k] == waiter->saga_id)
			{
				SetLatch(waiter->latch);
				break;
			}
	}
	LWLockRelease(WAITERS_LOCK);
}

/* ---- operations lost with their process ------------------------------- */

static void
add_lost(const Executor *executor)
{
	Database   *db;
	SagaLost   *lost;
	uint32		n;

	LWLockAcquire(LOST_LOCK, LW_EXCLUSIVE);
	n = pg_atomic_read_u32(&shared->nlost);
	if (n < NLOST)
	{
		lost = &shared->lost[n];
		lost->database = executor->database;
		lost->role = executor->role;
		lost->what = executor->doing;
		pg_atomic_write_u32(&shared->nlost, n + 1);
	}
	LWLockRelease(LOST_LOCK);

	db = find_database(executor->database);
	if (n < NLOST && db != NULL)
		want(db, SAGA_WANT_LOST);
}

/* Is this saga, or branch, to be left alone until the loss has been recorded? */
static bool
is_lost(Oid database, int64 id)
{
	bool		found = false;

	if (pg_atomic_read_u32(&shared->nlost) == 0)
		return false;
	LWLockAcquire(LOST_LOCK, LW_SHARED);
	for (uint32 i = 0; i < pg_atomic_read_u32(&shared->nlost); i++)
	{
		const SagaOperationRef *what = &shared->lost[i].what;

		if (shared->lost[i].database == database &&
			(what->branch != 0 ? what->branch : what->saga_id) == id)
			found = true;
	}
	LWLockRelease(LOST_LOCK);
	return found;
}

bool
saga_shared_next_lost(SagaLost *lost)
{
	bool		found = false;

	if (pg_atomic_read_u32(&shared->nlost) == 0)
		return false;
	LWLockAcquire(LOST_LOCK, LW_SHARED);
	for (uint32 i = 0; !found && i < pg_atomic_read_u32(&shared->nlost); i++)
		if (shared->lost[i].database == MyDatabaseId)
		{
			*lost = shared->lost[i];
			found = true;
		}
	LWLockRelease(LOST_LOCK);
	return found;
}

/* Forget the losses of a database, or one of them. */
static void
forget_lost(Oid database, const SagaOperationRef *what)
{
	uint32		n;
	uint32		kept = 0;

	LWLockAcquire(LOST_LOCK, LW_EXCLUSIVE);
	n = pg_atomic_read_u32(&shared->nlost);
	for (uint32 i = 0; i < n; i++)
	{
		SagaLost   *lost = &shared->lost[i];

		if (lost->database == database &&
			(what == NULL ||
			 (lost->what.saga_id == what->saga_id &&
			  lost->what.branch == what->branch &&
			  lost->what.step == what->step &&
			  lost->what.element == what->element &&
			  lost->what.operation == what->operation &&
			  lost->what.turn == what->turn)))
			continue;
		shared->lost[kept++] = *lost;
	}
	pg_atomic_write_u32(&shared->nlost, kept);
	LWLockRelease(LOST_LOCK);
}

void
saga_shared_lost_done(const SagaLost *lost)
{
	forget_lost(lost->database, &lost->what);
	saga_pool_want(lost->role);
}

/*
 * Does the server shut down, or is it gone?  An operation that ends with it is
 * not to blame.  Nothing in shared memory says so, but the postmaster writes
 * it to its pid file before it signals anybody.
 */
static bool
server_stops(void)
{
	char		buf[1024];
	int			fd;
	int			len;

	if (!PostmasterIsAlive())
		return true;
	fd = open("postmaster.pid", O_RDONLY | PG_BINARY, 0);
	if (fd < 0)
		return errno == ENOENT;
	len = read(fd, buf, sizeof(buf) - 1);
	close(fd);
	if (len < 0)
		return false;
	buf[len] = '\0';
	return strstr(buf, "\n" PM_STATUS_STOPPING) != NULL;
}

/* ---- executors -------------------------------------------------------- */

/* The pause after so many failures in a row: one second to one minute. */
static TimestampTz
pause_until(int failures)
{
	int			seconds = failures > 6 ? 60 : 1 << Max(0, failures - 1);

	return GetCurrentTimestamp() + seconds * USECS_PER_SEC;
}

static void
join_pool(Pool *pool, int index)
{
	Executor   *executor = &shared->executors[index];

	executor->pool = pool - shared->pools;
	executor->database = pool->database;
	executor->role = pool->role;
	executor->stop_requested = false;
	executor->terminated = false;
	executor->progress = false;
	executor->turn = 0;
	executor->nheld = 0;
	executor->nsuspects = 0;
	executor->doing.saga_id = 0;
	executor->started_at = executor->since = GetCurrentTimestamp();
	pool->members[pool->nmembers++] = index;
}

/* The place is free again.  Both locks are held, the directory exclusively. */
static void
leave_pool(Pool *pool, int index)
{
	Executor   *executor = &shared->executors[index];

	for (int m = 0; m < pool->nmembers; m++)
		if (pool->members[m] == index)
		{
			pool->members[m] = pool->members[--pool->nmembers];
			break;
		}
	if (executor->nheld > 0)
		pool->scan = true;
	if (pool->scanner == index)
	{
		pool->scanner = NOBODY;
		pool->scan = true;
	}
	if (pool->last_scanner == index)
		pool->last_scanner = NOBODY;
	executor->nheld = 0;
	executor->nsuspects = 0;
	executor->pid = 0;
	executor->latch = NULL;
	executor->state = SAGA_PROCESS_FREE;
}

/* Leave, or be found to have ended ("failed"). */
static void
leave(bool failed)
{
	Executor   *executor = &shared->executors[my_executor];
	Pool	   *pool = &shared->pools[executor->pool];
	bool		in_operation = executor->doing.saga_id != 0;
	bool		to_blame;
	Latch	   *latch;

	/* read the file before the lock is taken */
	to_blame = failed && in_operation && !executor->terminated &&
		!server_stops();

	LWLockAcquire(DIRECTORY_LOCK, LW_EXCLUSIVE);
	LWLockAcquire(POOL_LOCK(pool), LW_EXCLUSIVE);

	/* on record first: nobody is to take its saga before that was counted */
	if (to_blame)
		add_lost(executor);
	executor->doing.saga_id = 0;
	saga_inflight_clear(my_executor);

	if (executor->kind == SAGA_PROCESS_WORKER)
	{
		/* the failure of an operation is counted by itself */
		if (failed && !in_operation && !executor->stop_requested)
		{
			pool->blocked = SAGA_BLOCKED_FAILED;
			pool->failures = executor->progress ? 1 : pool->failures + 1;
			pool->retry_at = pause_until(pool->failures);
		}
		else
		{
			pool->failures = 0;
			pool->retry_at = 0;
		}
	}
	if (failed)
		pool->scan = true;
	leave_pool(pool, my_executor);
	latch = pool_has_work(pool, GetCurrentTimestamp()) ? wake_pool(pool) : NULL;
	unlock_pool(pool);

	if (latch != NULL)
		SetLatch(latch);
	if (my_executor < SAGA_MAX_WORKERS)
		wake_launcher();
	my_executor = NOBODY;
}

/* What a service had taken it may not have done: the next one is to see. */
static void
want_again(Database *db)
{
	if (my_service == SAGA_PROCESS_COURIER)
	{
		pg_atomic_fetch_or_u32(&courier_of(db)->wants, SAGA_COURIER_ALL);
		return;
	}
	pg_atomic_fetch_or_u32(&coordinator_of(db)->wants, SAGA_WANT_ALL);
	pg_atomic_write_u32(&db->prepared, 1);
	(void) lower_time(&db->duties[SAGA_DUTY_LOOK], GetCurrentTimestamp());
}

static void
leave_service(bool failed)
{
	Database   *db = &shared->databases[my_database];
	Service    *service = &db->services[my_service];
	TimestampTz now = GetCurrentTimestamp();
	bool		told;

	LWLockAcquire(DIRECTORY_LOCK, LW_EXCLUSIVE);
	told = service->stop_requested || ProcDiePending;
	/* without the extension there is nothing to do for a courier, and it was
	 * not to blame: see clear_database() */
	if (my_service == SAGA_PROCESS_COURIER &&
		db->state == SAGA_DATABASE_ABSENT)
		failed = false;
	else if (failed || told)
		want_again(db);

	if (failed && !told)
	{
		service->blocked = SAGA_BLOCKED_FAILED;
		if (now - service->started_at >= LONG_LIFE)
			service->failures = 0;
		service->retry_at = pause_until(++service->failures);
	}
	else
	{
		if (service->blocked >= SAGA_BLOCKED_FAILED)
			service->blocked = SAGA_BLOCKED_NOT;
		service->failures = 0;
		service->retry_at = 0;
	}
	service->state = SAGA_PROCESS_FREE;
	service->pid = 0;
	service->latch = NULL;
	service->waiting_since = 0;
	LWLockRelease(DIRECTORY_LOCK);
	my_database = NOBODY;
	wake_launcher();
}

static void
at_exit(int code, Datum arg)
{
	(void) code;
	(void) arg;
	if (my_executor != NOBODY)
		leave(true);
	if (my_database != NOBODY)
		leave_service(true);
	if (am_launcher)
	{
		shared->launcher = NULL;
		shared->launcher_pid = 0;
	}
	saga_waiter_forget();
	while (my_nclosed > 0)
		saga_database_open(my_closed[my_nclosed - 1]);
}

static void
register_exit(void)
{
	if (exit_registered)
		return;
	on_shmem_exit(at_exit, (Datum) 0);
	exit_registered = true;
}

static bool
enter_worker(Oid role, int index, uint32 generation)
{
	Executor   *executor = &shared->executors[index];
	Pool	   *pool;
	Database   *db;
	bool		welcome;

	LWLockAcquire(DIRECTORY_LOCK, LW_EXCLUSIVE);
	if (executor->state != SAGA_PROCESS_STARTING ||
		executor->generation != generation || executor->role != role)
	{
		LWLockRelease(DIRECTORY_LOCK);
		return false;
	}
	pool = &shared->pools[executor->pool];
	db = &shared->databases[pool->db];
	LWLockAcquire(POOL_LOCK(pool), LW_EXCLUSIVE);
	welcome = !executor->stop_requested && db->closers == 0;
	if (welcome)
	{
		executor->pid = MyProcPid;
		executor->latch = MyLatch;
		executor->state = SAGA_PROCESS_BUSY;
		executor->since = GetCurrentTimestamp();
		if (pool->blocked != SAGA_BLOCKED_NOT)
			lower_duty(db, SAGA_DUTY_CONDITIONS, executor->since);
		pool->blocked = SAGA_BLOCKED_NOT;
		my_executor = index;
	}
	else
		leave_pool(pool, index);
	unlock_pool(pool);
	if (!welcome)
		wake_launcher();
	return welcome;
}

/* As handle_quit() of a worker: the server ends a session that drives sagas. */
static void
handle_quit(SIGNAL_ARGS)
{
	saga_executor_is_bystander();
	quickdie(postgres_signal_arg);
}

static bool
enter_foreground(Oid role)
{
	Pool	   *pool;

	LWLockAcquire(DIRECTORY_LOCK, LW_EXCLUSIVE);
	pool = make_pool(MyDatabaseId, role);
	for (int i = SAGA_MAX_WORKERS; pool != NULL && i < NEXECUTORS; i++)
	{
		Executor   *executor = &shared->executors[i];

		if (executor->state != SAGA_PROCESS_FREE)
			continue;
		LWLockAcquire(POOL_LOCK(pool), LW_EXCLUSIVE);
		executor->generation++;
		executor->kind = SAGA_PROCESS_FOREGROUND;
		executor->pid = MyProcPid;
		executor->latch = MyLatch;
		executor->state = SAGA_PROCESS_BUSY;
		join_pool(pool, i);
		LWLockRelease(POOL_LOCK(pool));
		my_executor = i;
		break;
	}
	LWLockRelease(DIRECTORY_LOCK);
	if (my_executor != NOBODY && IsUnderPostmaster)
		pqsignal(SIGQUIT, handle_quit);
	return my_executor != NOBODY;
}

bool
saga_executor_enter(Oid role, int worker_index, uint32 generation)
{
	if (shared == NULL)
		return false;
	register_exit();
	if (my_executor != NOBODY)
		saga_executor_leave();	/* an error did not let it come to that */
	if (worker_index >= 0)
		return enter_worker(role, worker_index, generation);
	return enter_foreground(role);
}

void
saga_executor_leave(void)
{
	if (my_executor != NOBODY)
		leave(false);
}

/* Add to what I hold, unless another holds it: then it has to look again; or
 * its process ended, and that has not been recorded yet. */
static bool
hold(Pool *pool, Executor *executor, const SagaRef *ref)
{
	Executor   *holder;
	int			i;

	if (executor->nheld >= SAGA_MAX_BATCH)
		return false;
	/* without processes nobody will record it */
	if ((executor->kind == SAGA_PROCESS_WORKER || saga_enabled) &&
		is_lost(pool->database, ref->id))
		return false;
	holder = find_holder(pool, ref->id, &i);
	if (holder == executor)
		return false;			/* it was put in twice */
	if (holder != NULL)
	{
		holder->dirty[i] = true;
		return false;
	}
	executor->held[executor->nheld] = *ref;
	executor->dirty[executor->nheld] = false;
	executor->nheld++;
	if (ref->suspect)
		executor->nsuspects++;
	return true;
}

/* Move from the lanes, or from one ring; which = 0: lanes, 1: alone, 2:
 * suspects. */
static int
take_from(Pool *pool, Executor *executor, int which, SagaRef *refs, int max)
{
	RingHead   *head;
	SagaRef    *ring;
	int			n = 0;

	if (which == 0)
	{
		while (n < max && lane_pop(pool, &refs[n]))
			if (hold(pool, executor, &refs[n]))
				n++;
		return n;
	}
	if (which == 1)
	{
		if (executor->kind == SAGA_PROCESS_WORKER &&
			one_is_left_for_batches(pool))
			return 0;
		head = &pool->alone;
		ring = pool->alone_refs;
		max = 1;
	}
	else
	{
		if (executor->kind == SAGA_PROCESS_WORKER && !suspects_allowed(pool))
			return 0;
		head = &pool->suspects;
		ring = pool->suspect_refs;
		max = 1;
	}
	while (n < max && ring_pop(head, ring, SIDE_RING_SIZE, &refs[n]))
		if (hold(pool, executor, &refs[n]))
			n++;
	if (pool->more_suspects && pool->suspects.count == 0)
	{
		pool->more_suspects = false;
		pool->scan = true;
	}
	return n;
}

int
saga_executor_take(SagaRef *refs, int max)
{
	Executor   *executor;
	Pool	   *pool;
	Latch	   *latch = NULL;
	int			n = 0;

	if (my_executor == NOBODY)
		return 0;
	executor = &shared->executors[my_executor];
	pool = &shared->pools[executor->pool];
	max = Min(max, SAGA_MAX_BATCH - executor->nheld);

	LWLockAcquire(POOL_LOCK(pool), LW_EXCLUSIVE);
	/* lanes and rings by turns, so that none waits for the others */
	for (int i = 0; n == 0 && i < 3; i++)
	{
		int			which = (executor->turn + i) % 3;

		n = take_from(pool, executor, which, refs, max);
		if (n > 0)
			executor->turn = (which + 1) % 3;
	}
	if (n > 0)
	{
		set_state(executor, SAGA_PROCESS_BUSY);
		/* what is left may be for somebody who sleeps */
		if (pool->nqueued > 0 || pool->alone.count > 0 ||
			suspects_allowed(pool))
			latch = wake_pool(pool);
	}
	else if (executor->kind == SAGA_PROCESS_WORKER)
		set_state(executor, SAGA_PROCESS_IDLE);
	LWLockRelease(POOL_LOCK(pool));

	if (latch != NULL)
		SetLatch(latch);
	return n;
}

int
saga_executor_claim(SagaRef *refs, int n)
{
	Executor   *executor;
	Pool	   *pool;
	int			mine = 0;

	if (my_executor == NOBODY)
		return n;
	executor = &shared->executors[my_executor];
	pool = &shared->pools[executor->pool];

	LWLockAcquire(POOL_LOCK(pool), LW_EXCLUSIVE);
	for (int i = 0; i < n; i++)
		if (hold(pool, executor, &refs[i]))
			refs[mine++] = refs[i];
	LWLockRelease(POOL_LOCK(pool));
	return mine;
}

static void
drop_held(Executor *executor, int i)
{
	if (executor->held[i].suspect)
		executor->nsuspects--;
	executor->nheld--;
	executor->held[i] = executor->held[executor->nheld];
	executor->dirty[i] = executor->dirty[executor->nheld];
}

bool
saga_executor_release(int64 id)
{
	Executor   *executor;
	Pool	   *pool;
	bool		dirty = false;

	if (my_executor == NOBODY)
		return false;
	executor = &shared->executors[my_executor];
	pool = &shared->pools[executor->pool];

	LWLockAcquire(POOL_LOCK(pool), LW_EXCLUSIVE);
	for (int i = 0; i < executor->nheld; i++)
		if (executor->held[i].id == id)
		{
			dirty = executor->dirty[i];
			if (dirty)
				executor->dirty[i] = false;
			else
				drop_held(executor, i);
			break;
		}
	executor->progress = true;
	pool->failures = 0;
	LWLockRelease(POOL_LOCK(pool));
	return dirty;
}

/* Give back what I hold; with "scan" the tables are to be looked at.  So they
 * are when I hold anything that was not given back by itself: an error did not
 * let it come to that. */
static void
give_back(bool scan)
{
	Executor   *executor;
	Pool	   *pool;
	bool		some = scan;

	if (my_executor == NOBODY)
		return;
	executor = &shared->executors[my_executor];
	pool = &shared->pools[executor->pool];

	LWLockAcquire(DIRECTORY_LOCK, LW_SHARED);
	LWLockAcquire(POOL_LOCK(pool), LW_EXCLUSIVE);
	while (executor->nheld > 0)
	{
		if (executor->dirty[0])
		{
			put_ref(pool, &executor->held[0], 0);
			some = true;
		}
		else
			scan = some = true;
		drop_held(executor, 0);
	}
	if (scan)
	{
		pool->scan = true;
		if (pool->scanner == my_executor)
			pool->scanner = NOBODY;
	}
	if (some)
		unlock_and_wake(pool);
	else
		unlock_pool(pool);
}

void
saga_executor_release_all(void)
{
	give_back(false);
}

void
saga_executor_abandon(void)
{
	saga_executor_doing(NULL);
	give_back(true);
}

int
saga_ring_put(Oid role, const SagaRef *refs, int n)
{
	Pool	   *pool;
	Executor   *me = NULL;
	int			done = 0;

	if (shared == NULL || n == 0)
		return 0;
	pool = lock_pool(MyDatabaseId, role, true);
	if (pool == NULL)
		return 0;
	if (my_executor != NOBODY)
		me = &shared->executors[my_executor];
	note_unfinished(&shared->databases[pool->db]);
	for (int i = 0; i < n; i++)
	{
		Executor   *holder;
		int			k;

		/* in flight elsewhere: it is being looked at; mine is yielded */
		holder = find_holder(pool, refs[i].id, &k);
		if ((holder != NULL && holder != me) ||
			has_ref(pool, &refs[i]) || put_ref(pool, &refs[i], 0))
			done++;
	}
	unlock_and_wake(pool);
	return done;
}

/* Append a number to a text; returns its new end. */
static char *
append_number(char *p, int64 number)
{
	return p + pg_lltoa(number, p);
}

static char *
append_text(char *p, const char *end, const char *text)
{
	while (*text != '\0' && p < end)
		*p++ = *text++;
	return p;
}

/* Tell pg_stat_activity.  Hot: no sprintf. */
static void
report_activity(const SagaOperationRef *what, const char *definition,
				const char *step)
{
	char		text[256];
	char	   *p = text;
	const char *end = text + 170;

	p = append_text(p, end, "saga ");
	p = append_number(p, what->saga_id);
	if (definition != NULL)
	{
		p = append_text(p, end, " of ");
		p = append_text(p, end, definition);
	}
	p = append_text(p, end, ", step ");
	if (step != NULL)
		p = append_text(p, end, step);
	else
		p = append_number(p, what->step + 1);
	p = append_text(p, text + 220, ", ");
	p = append_text(p, text + 220,
					saga_operation_name((SagaOperation) what->operation));
	p = append_text(p, text + 230, ", attempt ");
	p = append_number(p, what->attempt);
	*p = '\0';
	pgstat_report_activity(STATE_RUNNING, text);
}

void
saga_executor_doing_step(const SagaOperationRef *what, const char *definition,
						 const char *step)
{
	Executor   *executor;

	if (my_executor == NOBODY)
		return;
	executor = &shared->executors[my_executor];

	executor->doing.saga_id = 0;
	if (what == NULL || what->saga_id == 0)
	{
		saga_inflight_clear(my_executor);
		return;
	}
	pg_write_barrier();
	executor->doing.branch = what->branch;
	executor->doing.slot = what->slot;
	executor->doing.step = what->step;
	executor->doing.element = what->element;
	executor->doing.operation = what->operation;
	executor->doing.attempt = what->attempt;
	executor->doing.turn = what->turn;
	executor->doing_since = GetCurrentTimestamp();
	pg_write_barrier();
	executor->doing.saga_id = what->saga_id;
	saga_inflight_set(my_executor, executor->database, executor->role, what);

	/* in the foreground the user's own query stands there */
	if (executor->kind == SAGA_PROCESS_WORKER && pgstat_track_activities)
		report_activity(what, definition, step);
}

void
saga_executor_doing(const SagaOperationRef *what)
{
	saga_executor_doing_step(what, NULL, NULL);
}

void
saga_executor_is_bystander(void)
{
	if (my_executor != NOBODY)
		saga_inflight_excuse(my_executor);
}

bool
saga_scan_begin(bool overdue, bool *goes_on)
{
	Executor   *executor;
	Pool	   *pool;
	TimestampTz now = GetCurrentTimestamp();
	bool		mine;

	if (my_executor == NOBODY)
		return false;
	executor = &shared->executors[my_executor];
	pool = &shared->pools[executor->pool];

	LWLockAcquire(POOL_LOCK(pool), LW_EXCLUSIVE);
	/* a scan that goes on is better left to who knows where it is */
	mine = scan_is_wanted(pool, now) &&
		(!overdue || (now - pool->scanned_at >= SCAN_PATIENCE &&
					  pool->stock_used <= STOCK_SIZE - STOCK_RESERVE)) &&
		(pool->last_scanner == NOBODY || pool->last_scanner == my_executor ||
		 pool->nqueued == 0 ||
		 now - pool->scanned_at >= 10 * SCAN_PATIENCE);
	*goes_on = pool->scan_goes_on && pool->last_scanner == my_executor;
	if (mine)
	{
		pool->scanner = my_executor;
		pool->scanned_at = now;
		/* What is asked for from now on is kept.  One that goes on may have
		 * passed what found no room meanwhile: then there is another. */
		if (!*goes_on)
		{
			pool->scan = false;
			pool->next_due = DT_NOEND;
		}
		set_state(executor, SAGA_PROCESS_BUSY);
	}
	LWLockRelease(POOL_LOCK(pool));
	return mine;
}

void
saga_scan_done(TimestampTz next_due, bool complete)
{
	Executor   *executor;
	Pool	   *pool;
	Latch	   *launcher = NULL;

	if (my_executor == NOBODY)
		return;
	executor = &shared->executors[my_executor];
	pool = &shared->pools[executor->pool];

	LWLockAcquire(POOL_LOCK(pool), LW_EXCLUSIVE);
	if (pool->scanner == my_executor)
		pool->scanner = NOBODY;
	pool->scan_goes_on = !complete;
	if (complete)
	{
		pool->last_scanner = NOBODY;
		pool->next_due = Min(pool->next_due, next_due);
		launcher = set_alarm(pool);
	}
	else
		pool->last_scanner = my_executor;
	LWLockRelease(POOL_LOCK(pool));
	if (launcher != NULL)
		SetLatch(launcher);
}

/* ---- a worker --------------------------------------------------------- */

TimestampTz
saga_pool_next_due(void)
{
	Pool	   *pool;
	TimestampTz when;

	if (my_executor == NOBODY)
		return DT_NOEND;
	pool = &shared->pools[shared->executors[my_executor].pool];
	LWLockAcquire(POOL_LOCK(pool), LW_SHARED);
	/* who scans just now does it */
	when = pool->scanner == NOBODY ? pool->next_due : DT_NOEND;
	LWLockRelease(POOL_LOCK(pool));
	return when;
}

bool
saga_worker_try_leave(void)
{
	Executor   *executor = &shared->executors[my_executor];
	Pool	   *pool = &shared->pools[executor->pool];
	TimestampTz soon = GetCurrentTimestamp() + USECS_PER_SEC;
	bool		stay;

	LWLockAcquire(DIRECTORY_LOCK, LW_EXCLUSIVE);
	LWLockAcquire(POOL_LOCK(pool), LW_EXCLUSIVE);
	stay = pool_has_work(pool, soon) || executor->nheld > 0;
	if (!stay)
		leave_pool(pool, my_executor);
	unlock_pool(pool);
	if (stay)
		return false;
	my_executor = NOBODY;
	wake_launcher();
	return true;
}

bool
saga_worker_should_stop(void)
{
	return my_executor == NOBODY ||
		shared->executors[my_executor].stop_requested;
}

/* ---- services ---------------------------------------------------------- */

static Service *
own_service(void)
{
	return &shared->databases[my_database].services[my_service];
}

static bool
enter_service(SagaProcessKind kind, int index, uint32 generation)
{
	Database   *db = &shared->databases[index];
	Service    *service = &db->services[kind];
	bool		welcome = false;

	register_exit();
	LWLockAcquire(DIRECTORY_LOCK, LW_EXCLUSIVE);
	if (service->state == SAGA_PROCESS_STARTING &&
		service->generation == generation)
	{
		welcome = !service->stop_requested && db->closers == 0;
		if (welcome)
		{
			service->state = SAGA_PROCESS_BUSY;
			service->pid = MyProcPid;
			service->latch = MyLatch;
			my_database = index;
			my_service = kind;
		}
		else
			service->state = SAGA_PROCESS_FREE;
	}
	LWLockRelease(DIRECTORY_LOCK);
	return welcome;
}

static bool
service_should_stop(void)
{
	return my_database == NOBODY || own_service()->stop_requested;
}

static bool
try_leave_service(void)
{
	/*
	 * What is wanted from here on finds us here, with our latch, or gone: then
	 * it stays on record, and the launcher is woken below.
	 */
	if (pg_atomic_read_u32(&own_service()->wants) != 0)
		return false;
	leave_service(false);
	return true;
}

/* Does another database wait for a place of the same kind? */
static bool
place_is_wanted(void)
{
	return pg_atomic_read_u32(&shared->nwaiting[my_service]) > 0;
}

static bool
service_is_wanted_elsewhere(void)
{
	return pg_atomic_exchange_u32(&shared->slot_wanted, 0) != 0 ||
		place_is_wanted();
}

/* ---- the courier -------------------------------------------------------- */

bool
saga_courier_enter(int index, uint32 generation)
{
	return enter_service(SAGA_PROCESS_COURIER, index, generation);
}

bool
saga_courier_try_leave(void)
{
	return try_leave_service();
}

void
saga_courier_leave(void)
{
	if (my_database != NOBODY)
		leave_service(false);
}

bool
saga_courier_should_stop(void)
{
	return service_should_stop();
}

uint32
saga_courier_take_wants(void)
{
	return pg_atomic_exchange_u32(&own_service()->wants, 0);
}

TimestampTz
saga_courier_deadline(void)
{
	return read_time(&own_service()->deadline);
}

void
saga_courier_set_deadline(TimestampTz when)
{
	pg_atomic_write_u64(&own_service()->deadline, (uint64) when);
}

bool
saga_courier_is_wanted_elsewhere(void)
{
	return service_is_wanted_elsewhere();
}

bool
saga_courier_has_had_its_turn(void)
{
	return GetCurrentTimestamp() - own_service()->started_at >= COURIER_TURN &&
		service_is_wanted_elsewhere();
}

/* ---- the coordinator -------------------------------------------------- */

bool
saga_coordinator_enter(int index, uint32 generation)
{
	return enter_service(SAGA_PROCESS_COORDINATOR, index, generation);
}

bool
saga_coordinator_try_leave(void)
{
	return try_leave_service();
}

void
saga_coordinator_leave(void)
{
	if (my_database != NOBODY)
		leave_service(false);
}

bool
saga_coordinator_should_stop(void)
{
	return service_should_stop();
}

uint32
saga_coordinator_take_wants(void)
{
	return pg_atomic_exchange_u32(&own_service()->wants, 0);
}

bool
saga_coordinator_is_wanted_elsewhere(void)
{
	return service_is_wanted_elsewhere();
}

void
saga_pool_want(Oid role)
{
	Pool	   *pool;

	if (shared == NULL)
		return;
	pool = lock_pool(MyDatabaseId, role, true);
	if (pool == NULL)
		return;
	note_unfinished(&shared->databases[pool->db]);
	pool->scan = true;
	unlock_and_wake(pool);
}

const char *
saga_blocked_text(SagaBlocked blocked)
{
	switch (blocked)
	{
		case SAGA_BLOCKED_NOT:
			return NULL;
		case SAGA_BLOCKED_NO_ROLE:
			return "role does not exist";
		case SAGA_BLOCKED_NO_LOGIN:
			return "role may not log in";
		case SAGA_BLOCKED_NO_CONNECT:
			return "role has no CONNECT privilege on the database";
		case SAGA_BLOCKED_CONNECTIONS:
			return "database does not accept connections";
		case SAGA_BLOCKED_TEMPLATE:
			return "database is a template";
		case SAGA_BLOCKED_VERSION:
			return "extension and library are of different versions";
		case SAGA_BLOCKED_FAILED:
			return "the last process ended with an error";
		case SAGA_BLOCKED_SLOTS:
			return "out of background worker slots (max_worker_processes)";
		case SAGA_BLOCKED_WORKERS:
			return "out of saga workers (saga.max_workers)";
		case SAGA_BLOCKED_PLACES:
			return "other databases come first (saga.max_workers)";
	}
	return NULL;
}

const char *
saga_pool_blocked(Oid role)
{
	Pool	   *pool;
	Database   *db;
	SagaBlocked blocked = SAGA_BLOCKED_NOT;
	bool		closed = false;

	if (shared == NULL)
		return "saga is not loaded via shared_preload_libraries";
	if (!saga_enabled)
		return "saga.enabled is off";

	LWLockAcquire(DIRECTORY_LOCK, LW_SHARED);
	db = find_database(MyDatabaseId);
	if (db != NULL)
	{
		SagaBlocked reason = coordinator_of(db)->blocked;

		closed = db->closers > 0;
		if (reason == SAGA_BLOCKED_CONNECTIONS ||
			reason == SAGA_BLOCKED_TEMPLATE ||
			reason == SAGA_BLOCKED_VERSION)
			blocked = reason;
	}
	pool = find_pool(MyDatabaseId, role);
	if (pool != NULL)
	{
		LWLockAcquire(POOL_LOCK(pool), LW_SHARED);
		if (pool->blocked != SAGA_BLOCKED_NOT)
			blocked = pool->blocked;
		LWLockRelease(POOL_LOCK(pool));
	}
	LWLockRelease(DIRECTORY_LOCK);
	return closed ? "database is being dropped, renamed, moved or copied" :
		saga_blocked_text(blocked);
}

int
saga_pools_blocked(Oid *roles, int max)
{
	int			n = 0;

	LWLockAcquire(DIRECTORY_LOCK, LW_SHARED);
	for (int i = 0; n < max && i < SAGA_MAX_POOLS; i++)
	{
		Pool	   *pool = &shared->pools[i];

		if (pool->database != MyDatabaseId)
			continue;
		LWLockAcquire(POOL_LOCK(pool), LW_SHARED);
		if (role_is_blocked(pool->blocked))
			roles[n++] = pool->role;
		LWLockRelease(POOL_LOCK(pool));
	}
	LWLockRelease(DIRECTORY_LOCK);
	return n;
}

TimestampTz
saga_coordinator_deadline(void)
{
	return read_time(&own_service()->deadline);
}

void
saga_coordinator_set_deadline(TimestampTz when)
{
	pg_atomic_write_u64(&own_service()->deadline, (uint64) when);
}

static TimestampTz
next_duty(Database *db)
{
	TimestampTz next = DT_NOEND;

	for (int i = 0; i < SAGA_NDUTIES; i++)
		next = Min(next, read_time(&db->duties[i]));
	return next;
}

TimestampTz
saga_coordinator_next_duty(void)
{
	return next_duty(&shared->databases[my_database]);
}

TimestampTz
saga_coordinator_duty(SagaDuty duty)
{
	return read_time(&shared->databases[my_database].duties[duty]);
}

bool
saga_coordinator_take_duty(SagaDuty duty, TimestampTz now)
{
	Database   *db = &shared->databases[my_database];

	if (read_time(&db->duties[duty]) > now)
		return false;
	/* before it is done: what comes in from now on lowers it again */
	pg_atomic_write_u64(&db->duties[duty], (uint64) DT_NOEND);
	pg_memory_barrier();
	return true;
}

TimestampTz
saga_coordinator_task_ended(void)
{
	return read_time(&shared->databases[my_database].ended_at);
}

bool
saga_coordinator_may_remind(TimestampTz now)
{
	Database   *db = &shared->databases[my_database];
	TimestampTz last = read_time(&db->reminded_at);

	if (last <= now && now < last + REMIND_PAUSE)
		return false;
	pg_atomic_write_u64(&db->reminded_at, (uint64) now);
	return true;
}

TimestampTz
saga_pools_next_due(void)
{
	TimestampTz when = DT_NOEND;

	LWLockAcquire(DIRECTORY_LOCK, LW_SHARED);
	for (int i = 0; i < SAGA_MAX_POOLS; i++)
	{
		Pool	   *pool = &shared->pools[i];

		if (pool->database != MyDatabaseId)
			continue;
		LWLockAcquire(POOL_LOCK(pool), LW_SHARED);
		when = Min(when, pool->next_due);
		LWLockRelease(POOL_LOCK(pool));
	}
	LWLockRelease(DIRECTORY_LOCK);
	return when;
}

bool
saga_database_has_prepared(void)
{
	return pg_atomic_read_u32(&shared->databases[my_database].prepared) != 0;
}

void
saga_database_set_prepared(bool prepared)
{
	pg_atomic_write_u32(&shared->databases[my_database].prepared, prepared);
}

/* Nothing is to be done in this database any more. */
static void
clear_database(Database *db)
{
	int			n = db - shared->databases;

	for (int i = 0; i < SAGA_MAX_POOLS; i++)
	{
		Pool	   *pool = &shared->pools[i];

		if (!OidIsValid(pool->database) || pool->db != n)
			continue;
		LWLockAcquire(POOL_LOCK(pool), LW_EXCLUSIVE);
		clear_queues(pool);
		pool->scan = pool->scan_goes_on = false;
		pool->next_due = DT_NOEND;
		pool->blocked = SAGA_BLOCKED_NOT;
		LWLockRelease(POOL_LOCK(pool));
	}
	clear_wants(db);
	/* of the coordinator it is known by now: see saga_database_set_state() */
	courier_of(db)->blocked = SAGA_BLOCKED_NOT;
	courier_of(db)->failures = 0;
	courier_of(db)->retry_at = 0;
	forget_lost(db->oid, NULL);
}

void
saga_database_probing(void)
{
	pg_atomic_fetch_and_u32(&own_service()->wants, ~(uint32) SAGA_WANT_PROBE);
}

bool
saga_database_set_state(SagaDatabaseState state)
{
	Database   *db = &shared->databases[my_database];
	Service    *service = own_service();
	bool		done = true;

	LWLockAcquire(DIRECTORY_LOCK, LW_EXCLUSIVE);
	if (state != SAGA_DATABASE_ABSENT)
		service->blocked = SAGA_BLOCKED_NOT;
	else if ((pg_atomic_read_u32(&service->wants) & SAGA_WANT_PROBE) == 0)
		clear_database(db);
	else
		done = false;
	if (done)
		db->state = state;
	LWLockRelease(DIRECTORY_LOCK);
	return done;
}

/* ---- hooks ------------------------------------------------------------ */

bool
saga_database_close(Oid database, bool terminate)
{
	Database   *db;

	if (shared == NULL || my_nclosed >= (int) lengthof(my_closed))
		return false;
	register_exit();
	LWLockAcquire(DIRECTORY_LOCK, LW_EXCLUSIVE);
	db = make_database(database);
	if (db == NULL)
	{
		LWLockRelease(DIRECTORY_LOCK);
		return false;
	}
	db->closers++;
	my_closed[my_nclosed++] = database;

	for (int i = 0; terminate && i < SAGA_MAX_WORKERS; i++)
	{
		Executor   *executor = &shared->executors[i];

		if (executor->state == SAGA_PROCESS_FREE ||
			executor->database != database)
			continue;
		executor->stop_requested = true;
		executor->terminated = true;
		/* a place is freed before its process is gone: the pid is its own */
		if (executor->pid != 0)
			kill(executor->pid, SIGTERM);
	}
	for (int i = 0; terminate && i < SAGA_NSERVICES; i++)
	{
		Service    *service = &db->services[i];

		if (service->state == SAGA_PROCESS_FREE)
			continue;
		service->stop_requested = true;
		if (service->pid != 0)
			kill(service->pid, SIGTERM);
	}
	LWLockRelease(DIRECTORY_LOCK);
	return true;
}

void
saga_database_open(Oid database)
{
	Database   *db;

	for (int i = 0; i < my_nclosed; i++)
		if (my_closed[i] == database)
		{
			my_closed[i] = my_closed[--my_nclosed];
			LWLockAcquire(DIRECTORY_LOCK, LW_EXCLUSIVE);
			db = find_database(database);
			if (db != NULL && db->closers > 0)
				db->closers--;
			LWLockRelease(DIRECTORY_LOCK);
			wake_launcher();
			return;
		}
}

int
saga_database_processes(Oid database)
{
	Database   *db;
	int			n = 0;

	LWLockAcquire(DIRECTORY_LOCK, LW_SHARED);
	for (int i = 0; i < SAGA_MAX_WORKERS; i++)
		if (shared->executors[i].state != SAGA_PROCESS_FREE &&
			shared->executors[i].database == database)
			n++;
	db = find_database(database);
	for (int i = 0; db != NULL && i < SAGA_NSERVICES; i++)
		if (db->services[i].state != SAGA_PROCESS_FREE)
			n++;
	LWLockRelease(DIRECTORY_LOCK);
	return n;
}

bool
saga_database_probe(Oid database)
{
	Database   *db;

	if (shared == NULL)
		return true;
	LWLockAcquire(DIRECTORY_LOCK, LW_EXCLUSIVE);
	db = make_database(database);
	if (db != NULL)
	{
		db->state = SAGA_DATABASE_UNKNOWN;
		/* who looks will see whether there are any */
		pg_atomic_write_u32(&db->prepared, 1);
		want(db, SAGA_WANT_PROBE | SAGA_WANT_SWEEP);
		wake_launcher();
	}
	LWLockRelease(DIRECTORY_LOCK);
	return db != NULL;
}

void
saga_prepared_committed(void)
{
	Database   *db;

	LWLockAcquire(DIRECTORY_LOCK, LW_SHARED);
	db = find_database(MyDatabaseId);
	if (db != NULL && pg_atomic_read_u32(&db->prepared) != 0)
		want(db, SAGA_WANT_SWEEP);
	LWLockRelease(DIRECTORY_LOCK);
}

void
saga_databases_changed(void)
{
	if (shared == NULL)
		return;
	pg_atomic_fetch_or_u32(&shared->databases_changed, SAGA_DATABASES_NEW);
	wake_launcher();
}

void
saga_roles_changed(void)
{
	if (shared == NULL)
		return;
	pg_atomic_write_u32(&shared->roles_changed, 1);
	wake_launcher();
}

/* ---- the launcher ----------------------------------------------------- */

void
saga_launcher_enter(void)
{
	register_exit();
	am_launcher = true;
	shared->launcher_pid = MyProcPid;
	shared->launcher_since = GetCurrentTimestamp();
	shared->launcher = MyLatch;
}

int
saga_launcher_pid(TimestampTz *since)
{
	*since = shared->launcher_since;
	return shared->launcher_pid;
}

uint32
saga_launcher_take_databases_changed(void)
{
	return pg_atomic_exchange_u32(&shared->databases_changed, 0);
}

bool
saga_launcher_take_roles_changed(void)
{
	return pg_atomic_exchange_u32(&shared->roles_changed, 0) != 0;
}

int
saga_shared_pools(SagaPoolInfo *infos, bool plan)
{
	TimestampTz now = GetCurrentTimestamp();
	int			n = 0;

	LWLockAcquire(DIRECTORY_LOCK, LW_SHARED);
	for (int i = 0; i < SAGA_MAX_POOLS; i++)
	{
		Pool	   *pool = &shared->pools[i];
		SagaPoolInfo *info = &infos[n];

		if (!OidIsValid(pool->database))
			continue;
		LWLockAcquire(POOL_LOCK(pool), plan ? LW_EXCLUSIVE : LW_SHARED);
		info->database = pool->database;
		info->role = pool->role;
		info->closed = shared->databases[pool->db].closers > 0;
		info->waits = pool_has_work(pool, now);
		info->next_due = pool->next_due;
		info->nworkers = 0;
		info->nready = 0;
		for (int m = 0; m < pool->nmembers; m++)
		{
			Executor   *executor = &shared->executors[pool->members[m]];

			if (executor->kind != SAGA_PROCESS_WORKER)
				continue;
			info->nworkers++;
			if (executor->state != SAGA_PROCESS_BUSY &&
				!executor->stop_requested)
				info->nready++;
		}
		if (plan)
		{
			pool->told = info->waits;
			pool->alarm = pool->next_due > now ? pool->next_due : DT_NOEND;
			if (!info->waits)
				pool->waiting_since = 0;
			else if (pool->waiting_since == 0)
				pool->waiting_since = now;
			if (!info->waits && pool->blocked >= SAGA_BLOCKED_SLOTS)
				pool->blocked = SAGA_BLOCKED_NOT;
		}
		info->waiting_since = pool->waiting_since;
		info->blocked = pool->blocked;
		info->retry_at = pool->retry_at;
		LWLockRelease(POOL_LOCK(pool));
		n++;
	}
	LWLockRelease(DIRECTORY_LOCK);
	return n;
}

/* When a service is to be there though nothing is wanted. */
static TimestampTz
service_deadline(Database *db, SagaProcessKind kind)
{
	TimestampTz deadline = read_time(&db->services[kind].deadline);

	return kind == SAGA_PROCESS_COORDINATOR ?
		Min(deadline, next_duty(db)) : deadline;
}

static void
look_at_service(Database *db, SagaProcessKind kind, SagaServiceInfo *info,
				bool plan, TimestampTz now)
{
	Service    *service = &db->services[kind];

	info->kind = kind;
	info->database = db->oid;
	info->closed = db->closers > 0;
	info->running = service->state != SAGA_PROCESS_FREE;
	info->deadline = service_deadline(db, kind);
	info->waits = !info->running &&
		(pg_atomic_read_u32(&service->wants) != 0 || info->deadline <= now);
	if (plan)
	{
		if (!info->waits)
			service->waiting_since = 0;
		else if (service->waiting_since == 0)
			service->waiting_since = now;
		if (!info->waits && service->blocked >= SAGA_BLOCKED_SLOTS)
			service->blocked = SAGA_BLOCKED_NOT;
	}
	info->waiting_since = service->waiting_since;
	info->blocked = service->blocked;
	info->retry_at = service->retry_at;
}

int
saga_shared_services(SagaServiceInfo *infos, bool plan)
{
	TimestampTz now = GetCurrentTimestamp();
	int			n = 0;

	LWLockAcquire(DIRECTORY_LOCK, plan ? LW_EXCLUSIVE : LW_SHARED);
	for (int i = 0; i < SAGA_MAX_DATABASES; i++)
		for (int kind = 0; kind < SAGA_NSERVICES; kind++)
			if (OidIsValid(shared->databases[i].oid))
				look_at_service(&shared->databases[i], kind, &infos[n++], plan,
								now);
	LWLockRelease(DIRECTORY_LOCK);
	return n;
}

/* The services of a database that are there; returns how many. */
static int
list_services(Database *db, SagaProcessInfo *infos)
{
	int			n = 0;

	for (int kind = 0; kind < SAGA_NSERVICES; kind++)
	{
		Service    *service = &db->services[kind];
		SagaProcessInfo *info = &infos[n];

		if (service->state == SAGA_PROCESS_FREE)
			continue;
		memset(info, 0, sizeof(*info));
		info->kind = kind;
		info->state = service->state;
		info->index = db - shared->databases;
		info->generation = service->generation;
		info->pid = service->pid;
		info->database = db->oid;
		info->stopping = service->stop_requested;
		info->started_at = info->since = service->started_at;
		n++;
	}
	return n;
}

int
saga_shared_processes(SagaProcessInfo *infos)
{
	int			n = 0;

	LWLockAcquire(DIRECTORY_LOCK, LW_SHARED);
	for (int i = 0; i < SAGA_MAX_DATABASES; i++)
		if (OidIsValid(shared->databases[i].oid))
			n += list_services(&shared->databases[i], &infos[n]);
	for (int i = 0; i < NEXECUTORS; i++)
	{
		Executor   *executor = &shared->executors[i];
		SagaProcessInfo *info = &infos[n];
		Pool	   *pool;

		if (executor->state == SAGA_PROCESS_FREE)
			continue;
		pool = &shared->pools[executor->pool];
		memset(info, 0, sizeof(*info));
		LWLockAcquire(POOL_LOCK(pool), LW_SHARED);
		info->kind = executor->kind;
		info->state = executor->state;
		info->index = i;
		info->generation = executor->generation;
		info->pid = executor->pid;
		info->database = executor->database;
		info->role = executor->role;
		info->stopping = executor->stop_requested;
		info->started_at = executor->started_at;
		info->since = executor->since;
		info->doing = executor->doing;
		if (info->doing.saga_id != 0)
			info->since = executor->doing_since;
		LWLockRelease(POOL_LOCK(pool));
		n++;
	}
	LWLockRelease(DIRECTORY_LOCK);
	return n;
}

bool
saga_worker_reserve(Oid database, Oid role, int *index, uint32 *generation)
{
	Pool	   *pool;
	bool		done = false;

	LWLockAcquire(DIRECTORY_LOCK, LW_EXCLUSIVE);
	pool = find_pool(database, role);
	if (pool != NULL && shared->databases[pool->db].closers == 0)
	{
		LWLockAcquire(POOL_LOCK(pool), LW_EXCLUSIVE);
		for (int i = 0; i < SAGA_MAX_WORKERS; i++)
		{
			Executor   *executor = &shared->executors[i];

			if (executor->state != SAGA_PROCESS_FREE)
				continue;
			executor->generation++;
			executor->kind = SAGA_PROCESS_WORKER;
			executor->pid = 0;
			executor->latch = NULL;
			executor->state = SAGA_PROCESS_STARTING;
			join_pool(pool, i);
			/* its turn has come: from now on it is behind the others */
			if (pool->waiting_since != 0)
				pool->waiting_since = GetCurrentTimestamp();
			*index = i;
			*generation = executor->generation;
			done = true;
			break;
		}
		LWLockRelease(POOL_LOCK(pool));
	}
	LWLockRelease(DIRECTORY_LOCK);
	return done;
}

bool
saga_service_reserve(SagaProcessKind kind, Oid database, int *index,
					 uint32 *generation)
{
	Database   *db;
	bool		done;

	LWLockAcquire(DIRECTORY_LOCK, LW_EXCLUSIVE);
	db = find_database(database);
	done = db != NULL && db->closers == 0 &&
		db->services[kind].state == SAGA_PROCESS_FREE;
	if (done)
	{
		Service    *service = &db->services[kind];

		service->state = SAGA_PROCESS_STARTING;
		service->pid = 0;
		service->latch = NULL;
		service->stop_requested = false;
		service->started_at = GetCurrentTimestamp();
		*index = db - shared->databases;
		*generation = ++service->generation;
	}
	LWLockRelease(DIRECTORY_LOCK);
	return done;
}

bool
saga_process_unreserve(SagaProcessKind kind, int index, uint32 generation)
{
	bool		done = false;

	LWLockAcquire(DIRECTORY_LOCK, LW_EXCLUSIVE);
	if (saga_process_is_service(kind))
	{
		Service    *service = &shared->databases[index].services[kind];

		done = service->state == SAGA_PROCESS_STARTING &&
			service->generation == generation;
		if (done)
			service->state = SAGA_PROCESS_FREE;
	}
	else
	{
		Executor   *executor = &shared->executors[index];

		done = executor->state == SAGA_PROCESS_STARTING &&
			executor->generation == generation;
		if (done)
		{
			Pool	   *pool = &shared->pools[executor->pool];

			LWLockAcquire(POOL_LOCK(pool), LW_EXCLUSIVE);
			leave_pool(pool, index);
			LWLockRelease(POOL_LOCK(pool));
		}
	}
	LWLockRelease(DIRECTORY_LOCK);
	return done;
}

void
saga_process_stop(SagaProcessKind kind, int index, uint32 generation)
{
	Latch	   *latch = NULL;

	LWLockAcquire(DIRECTORY_LOCK, LW_SHARED);
	if (saga_process_is_service(kind))
	{
		Service    *service = &shared->databases[index].services[kind];

		if (service->state != SAGA_PROCESS_FREE &&
			service->generation == generation)
		{
			service->stop_requested = true;
			latch = service->latch;
		}
	}
	else
	{
		Executor   *executor = &shared->executors[index];

		if (executor->state != SAGA_PROCESS_FREE &&
			executor->generation == generation)
		{
			executor->stop_requested = true;
			latch = executor->latch;
		}
	}
	LWLockRelease(DIRECTORY_LOCK);
	if (latch != NULL)
		SetLatch(latch);
}

/* Have the services of that kind look whether they are to give way. */
static void
nudge_services(SagaProcessKind kind)
{
	LWLockAcquire(DIRECTORY_LOCK, LW_SHARED);
	for (int i = 0; i < SAGA_MAX_DATABASES; i++)
	{
		Latch	   *latch = shared->databases[i].services[kind].latch;

		if (latch != NULL)
			SetLatch(latch);
	}
	LWLockRelease(DIRECTORY_LOCK);
}

void
saga_services_waiting(SagaProcessKind kind, int n)
{
	pg_atomic_write_u32(&shared->nwaiting[kind], n);
	if (n > 0)
		nudge_services(kind);
}

void
saga_slot_wanted(void)
{
	pg_atomic_write_u32(&shared->slot_wanted, 1);
	for (int kind = 0; kind < SAGA_NSERVICES; kind++)
		nudge_services(kind);
}

bool
saga_blocked_set(SagaProcessKind kind, Oid database, Oid role,
				 SagaBlocked blocked)
{
	bool		changed = false;

	/* waiting for one's turn is no failure */
	bool		fails = blocked != SAGA_BLOCKED_NOT &&
		blocked != SAGA_BLOCKED_WORKERS && blocked != SAGA_BLOCKED_PLACES;

	if (OidIsValid(role))
	{
		Pool	   *pool = lock_pool(database, role, false);

		if (pool == NULL)
			return false;
		changed = pool->blocked != blocked;
		pool->blocked = blocked;
		if (fails)
			pool->retry_at = pause_until(++pool->failures);
		if (role_is_blocked(blocked))
		{
			/* what waits is found again when the role is able */
			clear_queues(pool);
			pool->scan = true;
			if (changed)
				want(&shared->databases[pool->db], SAGA_WANT_MESSAGES);
		}
		if (changed)
			lower_duty(&shared->databases[pool->db], SAGA_DUTY_CONDITIONS,
					   GetCurrentTimestamp());
		unlock_pool(pool);
	}
	else
	{
		Database   *db;

		LWLockAcquire(DIRECTORY_LOCK, LW_EXCLUSIVE);
		db = find_database(database);
		if (db != NULL)
		{
			Service    *service = &db->services[kind];

			changed = service->blocked != blocked;
			service->blocked = blocked;
			if (fails)
				service->retry_at = pause_until(++service->failures);
		}
		LWLockRelease(DIRECTORY_LOCK);
	}
	return changed;
}

void
saga_blocked_retry_all(void)
{
	LWLockAcquire(DIRECTORY_LOCK, LW_EXCLUSIVE);
	for (int i = 0; i < SAGA_MAX_DATABASES; i++)
		for (int kind = 0; kind < SAGA_NSERVICES; kind++)
			shared->databases[i].services[kind].retry_at = 0;
	for (int i = 0; i < SAGA_MAX_POOLS; i++)
	{
		Pool	   *pool = &shared->pools[i];

		if (!OidIsValid(pool->database))
			continue;
		LWLockAcquire(POOL_LOCK(pool), LW_EXCLUSIVE);
		pool->retry_at = 0;
		LWLockRelease(POOL_LOCK(pool));
	}
	LWLockRelease(DIRECTORY_LOCK);
}

void
saga_database_forget(Oid database)
{
	Database   *db;

	LWLockAcquire(DIRECTORY_LOCK, LW_EXCLUSIVE);
	db = find_database(database);
	if (db != NULL)
	{
		clear_database(db);
		(void) reclaim_database(db);
	}
	LWLockRelease(DIRECTORY_LOCK);
}

/* ---- the segment ------------------------------------------------------ */

static void
request_shared(void)
{
	if (prev_shmem_request_hook)
		prev_shmem_request_hook();
	RequestAddinShmemSpace(MAXALIGN(sizeof(Shared)));
	RequestNamedLWLockTranche("saga", NLOCKS);
}

/* Operations that a crash ended, from the file that has survived it. */
static void
take_crash_record(void)
{
	uint32		n = 0;

	if (!saga_inflight_open(NEXECUTORS))
		return;
	for (int i = 0; i < NEXECUTORS; i++)
	{
		Database   *db;

		if (n >= NLOST || !saga_inflight_take(i, &shared->lost[n]))
			continue;
		db = make_database(shared->lost[n].database);
		if (db == NULL)
			continue;
		pg_atomic_write_u32(&coordinator_of(db)->wants,
							SAGA_WANT_PROBE | SAGA_WANT_SWEEP | SAGA_WANT_LOST);
		n++;
	}
	pg_atomic_write_u32(&shared->nlost, n);
}

static void
startup_shared(void)
{
	bool		found;

	if (prev_shmem_startup_hook)
		prev_shmem_startup_hook();

	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	shared = ShmemInitStruct("saga", sizeof(Shared), &found);
	locks = GetNamedLWLockTranche("saga");
	if (!found)
	{
		memset(shared, 0, sizeof(Shared));
		pg_atomic_init_u32(&shared->databases_changed, 0);
		pg_atomic_init_u32(&shared->roles_changed, 0);
		pg_atomic_init_u32(&shared->slot_wanted, 0);
		for (int i = 0; i < SAGA_NSERVICES; i++)
			pg_atomic_init_u32(&shared->nwaiting[i], 0);
		pg_atomic_init_u32(&shared->nlost, 0);
		pg_atomic_init_u32(&shared->nwaiters, 0);
		for (int i = 0; i < SAGA_MAX_DATABASES; i++)
		{
			Database   *db = &shared->databases[i];

			for (int k = 0; k < SAGA_NSERVICES; k++)
			{
				pg_atomic_init_u32(&db->services[k].wants, 0);
				pg_atomic_init_u64(&db->services[k].deadline,
								   (uint64) DT_NOEND);
			}
			pg_atomic_init_u32(&db->prepared, 0);
			for (int k = 0; k < SAGA_NDUTIES; k++)
				pg_atomic_init_u64(&db->duties[k], (uint64) DT_NOEND);
			pg_atomic_init_u64(&db->ended_at, 0);
			pg_atomic_init_u64(&db->reminded_at, 0);
		}
		take_crash_record();
	}
	LWLockRelease(AddinShmemInitLock);
}

void
saga_shared_init(void)
{
	prev_shmem_request_hook = shmem_request_hook;
	shmem_request_hook = request_shared;
	prev_shmem_startup_hook = shmem_startup_hook;
	shmem_startup_hook = startup_shared;
	RegisterXactCallback(at_transaction_end, NULL);
}
