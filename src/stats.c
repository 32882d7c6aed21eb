/*
 * stats.c
 *		The shared memory of statistics.
 *
 * The segment holds
 *
 * - databases: how far their gauges are to be trusted, see below;
 * - gauges: how many sagas there are that are not final, by status and by what
 *	 they wait for, one entry for each definition of which there are some.
 *	 Known limit: NGAUGES definitions; those that there is no room for are
 *	 counted together, as of no definition, until the next count;
 * - entries: what has happened to the sagas of a definition, and to the
 *	 operations of each of its steps: a series each (series.h).  When
 *	 saga.statistics_memory is full, one that was not used for longest gives
 *	 way, unless it was used within the last minute.  They are saved when the
 *	 server shuts down, and lost when it crashes, as the server's own are;
 * - prepared transactions that have begun sagas.
 *
 * All is under one lock.  Who writes rows takes it once, when the transaction
 * has committed (statnotes.c); who reads, shared, for one entry at a time.
 *
 * Gauges are exact while everything changes.  They are what a count of the rows
 * has found, plus what was changed since.  What belongs to which is a matter of
 * snapshots:
 *
 * - A count takes its snapshot with the lock held, and publishes it.  What was
 *	 added before was committed before: the count sees it.
 * - From then on the changes of transactions that the snapshot does not see are
 *	 added up beside ("since"), those that it sees are not: they had committed,
 *	 but had not come here yet.
 * - When the count is done, what it has found plus "since" is what there is.
 *	 The snapshot stays: somebody it sees may still be on his way here.
 *
 * The rows of a transaction that rolled back count for nobody.  Those of a
 * prepared one wait here under its name for COMMIT PREPARED, which runs no
 * callback: hooks.c tells.  When it is not known what a prepared transaction has
 * done (the server was restarted, or there was no room), its commit makes the
 * database want another count; so does whatever writes rows by other means.
 *
 * Killed at any line: the server restarts, and counts anew.
 */
#include "postgres.h"

#include <sys/stat.h>
#include <unistd.h>

#include "access/transam.h"
#include "access/twophase.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_control.h"
#include "common/controldata_utils.h"
#include "common/hashfn.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "port/pg_crc32c.h"
#include "storage/fd.h"
#include "storage/ipc.h"
#include "storage/lwlock.h"
#include "storage/proc.h"
#include "storage/procarray.h"
#include "storage/shmem.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "guc.h"
#include "shared.h"
#include "statnotes.h"
#include "stats.h"

#define NDATABASES		SAGA_MAX_DATABASES
#define NGAUGES			1024
#define NGAUGE_HEADS	1024
#define NPREPARED		128

/* Definitions that one prepared transaction may have begun sagas of. */
#define NPREPARED_DEFINITIONS	4

/* One that was used so lately is not moved to the front again; and does not give
 * way. */
#define USED_LATELY		(10 * USECS_PER_SEC)
#define IN_USE			(60 * USECS_PER_SEC)

#define NONE			(-1)

/* Where statistics are while the server is down. */
#define STATS_FILE		PGSTAT_STAT_PERMANENT_DIRECTORY "/saga.stat"
#define STATS_MAGIC		0x53414741

typedef struct Database
{
	Oid			database;		/* InvalidOid: unused */
	bool		known;			/* the gauges are right */
	bool		wanted;			/* to be counted */
	bool		together;		/* some definitions have no entry: what is not
								 * found has none either */
	int			counter;		/* pid of who counts; 0 = nobody */
	uint32		count;			/* number of the present or the last one */
	TimestampTz since;			/* statistics are from then on */
	TimestampTz lost_before;	/* of transactions that were prepared before
								 * nothing is known; 0 = there are none */

	/* the snapshot of that count; xmax = 0: there is none */
	uint64		xmin;			/* FullTransactionIds */
	uint64		xmax;
	int			nxip;			/* ids of its transactions are in snapshot_xids */

	/* of definitions without an entry */
	int64		now[SAGA_NGAUGES];
	int64		since_count[SAGA_NGAUGES];
} Database;

typedef struct Gauges
{
	Oid			database;		/* InvalidOid: unused */
	int			next;			/* of the same head, or unused */
	char		definition[NAMEDATALEN];
	int64		now[SAGA_NGAUGES];
	int64		since_count[SAGA_NGAUGES];	/* while there is a count: what it
											 * does not see */
} Gauges;

typedef struct Entry
{
	Oid			database;		/* InvalidOid: unused */
	uint32		hash;
	int			next;			/* of the same head, or unused */
	int			newer;			/* in the order of their use */
	int			older;
	TimestampTz used_at;		/* last; may be a little earlier than it was */
	SagaStatistics what;
} Entry;

typedef struct Prepared
{
	Oid			database;		/* InvalidOid: unused */
	uint64		xid;
	char		gid[SAGA_MAX_GID];
	int			n;
	struct
	{
		char		definition[NAMEDATALEN];
		int32		gauges[SAGA_NGAUGES];
		uint32		begun;
	}			of[NPREPARED_DEFINITIONS];
} Prepared;

typedef struct Shared
{
	TimestampTz started_at;		/* this segment was made */
	TimestampTz since;			/* statistics are from then on */
	bool		given_way;		/* entries were, for want of room */
	int			unused_gauges;	/* first of them */
	int			unused_entries;
	int			newest;
	int			oldest;
	Database	databases[NDATABASES];
	Prepared	prepared[NPREPARED];
	int			gauge_heads[NGAUGE_HEADS];
	Gauges		gauges[NGAUGES];
} Shared;

/* What stands before the entries in the file; the oldest come first. */
typedef struct FileHeader
{
	uint32		magic;
	uint32		version;		/* of the server */
	uint32		entry_size;
	uint32		nentries;
	TimestampTz since;
	XLogRecPtr	checkpoint;		/* that of the shutdown */
} FileHeader;

static Shared *shared = NULL;
static LWLock *lock = NULL;
static TransactionId *snapshot_xids;	/* max_xids() for each database */
static int *entry_heads;		/* as many as entries */
static Entry *entries;
static int	nentries;			/* set in the postmaster */
static int	nxids;				/* likewise, for one snapshot */

/* Where this backend's database was found last. */
static int	my_database = 0;

static shmem_request_hook_type prev_shmem_request_hook = NULL;
static shmem_startup_hook_type prev_shmem_startup_hook = NULL;

static const char *const reason_names[SAGA_NREASONS] = {
	"worker", "next attempt", "start time", "timer", "signal", "child",
	"participant", "server", "lock", "place", "parent", "resume", "person",
	"adopt", "other"
};

/* What advance.c and store.c write that is not the name of a reason. */
static const struct
{
	const char *text;
	SagaReason	reason;
}			other_texts[] =
{
	{"branch", SAGA_REASON_WORKER},
	{"child saga", SAGA_REASON_CHILD},
	{"remote database", SAGA_REASON_SERVER},
	{"place in step", SAGA_REASON_PLACE},
	{"retry, skip or abandon", SAGA_REASON_PERSON},
	{"abandon", SAGA_REASON_PERSON}
};

SagaReason
saga_stats_reason(const char *waiting_for)
{
	if (waiting_for == NULL)
		return SAGA_REASON_WORKER;
	for (int i = 0; i < SAGA_NREASONS; i++)
		if (strcmp(waiting_for, reason_names[i]) == 0)
			return (SagaReason) i;
	for (size_t i = 0; i < lengthof(other_texts); i++)
		if (strcmp(waiting_for, other_texts[i].text) == 0)
			return other_texts[i].reason;
	return SAGA_REASON_OTHER;
}

const char *
saga_stats_reason_name(SagaReason reason)
{
	return reason_names[reason];
}

bool
saga_stats_available(void)
{
	return shared != NULL;
}


/* ---- databases: the lock is held ------------------------------------------- */

static Database *
find_database(Oid oid)
{
	if (shared->databases[my_database].database == oid)
		return &shared->databases[my_database];
	for (int i = 0; i < NDATABASES; i++)
		if (shared->databases[i].database == oid)
		{
			if (oid == MyDatabaseId)
				my_database = i;
			return &shared->databases[i];
		}
	return NULL;
}

static bool
all_zero(const int64 *gauges)
{
	for (int i = 0; i < SAGA_NGAUGES; i++)
		if (gauges[i] != 0)
			return false;
	return true;
}

/* Is there nothing that would be lost with its entry? */
static bool
can_be_spared(const Database *db)
{
	if (db->counter != 0 || !all_zero(db->now))
		return false;
	for (int i = 0; i < NGAUGES; i++)
		if (shared->gauges[i].database == db->database &&
			!all_zero(shared->gauges[i].now))
			return false;
	return true;
}

static void free_gauges_of(Oid database);

/* Exclusively.  NULL if there is no room: of so many databases gauges are not
 * known. */
static Database *
make_database(Oid oid)
{
	Database   *db = find_database(oid);

	if (db != NULL)
		return db;
	db = find_database(InvalidOid);
	for (int i = 0; i < NDATABASES && db == NULL; i++)
		if (can_be_spared(&shared->databases[i]))
			db = &shared->databases[i];
	if (db == NULL)
		return NULL;
	if (OidIsValid(db->database))
		free_gauges_of(db->database);
	memset(db, 0, sizeof(Database));
	db->database = oid;
	db->since = shared->since;
	db->lost_before = max_prepared_xacts > 0 ? shared->started_at : 0;
	return db;
}

static TransactionId *
xids_of(const Database *db)
{
	return &snapshot_xids[(db - shared->databases) * nxids];
}

/* Does the snapshot of the last count see that transaction? */
static bool
is_seen(const Database *db, uint64 xid)
{
	const TransactionId *xids = xids_of(db);

	if (xid < db->xmin)
		return true;
	if (xid >= db->xmax)
		return false;
	for (int i = 0; i < db->nxip; i++)
		if (xids[i] == (TransactionId) xid)
			return false;
	return true;
}


/* ---- gauges: the lock is held, exclusively to change them ----------------------- */

static uint32
hash_name(Oid database, const char *name)
{
	return hash_combine(hash_bytes((const unsigned char *) name, strlen(name)),
						(uint32) database);
}

static int *
gauge_head(Oid database, const char *definition)
{
	return &shared->gauge_heads[hash_name(database, definition) % NGAUGE_HEADS];
}

static Gauges *
find_gauges(Oid database, const char *definition)
{
	for (int i = *gauge_head(database, definition); i != NONE;
		 i = shared->gauges[i].next)
	{
		Gauges	   *gauges = &shared->gauges[i];

		if (gauges->database == database &&
			strcmp(gauges->definition, definition) == 0)
			return gauges;
	}
	return NULL;
}

static void
free_gauges(Gauges *gauges)
{
	int			index = gauges - shared->gauges;
	int		   *link = gauge_head(gauges->database, gauges->definition);

	while (*link != index)
		link = &shared->gauges[*link].next;
	*link = gauges->next;
	gauges->database = InvalidOid;
	gauges->next = shared->unused_gauges;
	shared->unused_gauges = index;
}

static void
free_gauges_of(Oid database)
{
	for (int i = 0; i < NGAUGES; i++)
		if (shared->gauges[i].database == database)
			free_gauges(&shared->gauges[i]);
}

/* All that say nothing. */
static void
free_empty_gauges(void)
{
	for (int i = 0; i < NGAUGES; i++)
		if (OidIsValid(shared->gauges[i].database) &&
			all_zero(shared->gauges[i].now) &&
			all_zero(shared->gauges[i].since_count))
			free_gauges(&shared->gauges[i]);
}

/*
 * NULL if there is no room.  A definition that was counted with others goes on
 * so until the next count: else what comes and what goes would be put down in
 * different places.
 */
static Gauges *
make_gauges(Database *db, const char *definition)
{
	Gauges	   *gauges = find_gauges(db->database, definition);
	int		   *head;

	if (gauges != NULL || db->together)
		return gauges;
	if (shared->unused_gauges == NONE)
		free_empty_gauges();
	if (shared->unused_gauges == NONE)
	{
		db->together = true;
		return NULL;
	}
	gauges = &shared->gauges[shared->unused_gauges];
	shared->unused_gauges = gauges->next;
	memset(gauges, 0, sizeof(Gauges));
	gauges->database = db->database;
	strlcpy(gauges->definition, definition, sizeof(gauges->definition));
	head = gauge_head(db->database, definition);
	gauges->next = *head;
	*head = gauges - shared->gauges;
	return gauges;
}

/* So many more, by a transaction that has committed. */
static void
change_gauges(Database *db, const char *definition, const int32 *change,
			  uint64 xid)
{
	bool		seen = is_seen(db, xid);
	Gauges	   *gauges;
	int64	   *now;
	int64	   *since_count;

	/* while a count goes on, what was there before it is not known exactly */
	if (seen && db->counter == 0)
		return;
	gauges = make_gauges(db, definition);
	now = gauges ? gauges->now : db->now;
	since_count = gauges ? gauges->since_count : db->since_count;
	for (int i = 0; i < SAGA_NGAUGES; i++)
		now[i] += change[i];
	if (!seen && db->counter != 0)
		for (int i = 0; i < SAGA_NGAUGES; i++)
			since_count[i] += change[i];
}

static bool
any_negative(const int64 *gauges)
{
	for (int i = 0; i < SAGA_NGAUGES; i++)
		if (gauges[i] < 0)
			return true;
	return false;
}


/* ---- entries: the lock is held, exclusively to change them ---------------------- */

static uint32
hash_entry(Oid database, const char *definition, const char *step,
		   int operation)
{
	uint32		hash = hash_name(database, definition);

	if (step[0] == '\0')
		return hash;
	return hash_combine(hash, hash_name((Oid) operation, step));
}

static Entry *
find_entry(Oid database, uint32 hash, const char *definition, const char *step,
		   int operation)
{
	for (int i = entry_heads[hash % nentries]; i != NONE; i = entries[i].next)
	{
		Entry	   *entry = &entries[i];

		if (entry->hash == hash && entry->database == database &&
			entry->what.operation == operation &&
			strcmp(entry->what.definition, definition) == 0 &&
			strcmp(entry->what.step, step) == 0)
			return entry;
	}
	return NULL;
}

static void
unlink_use(Entry *entry)
{
	*(entry->newer == NONE ? &shared->newest : &entries[entry->newer].older) =
		entry->older;
	*(entry->older == NONE ? &shared->oldest : &entries[entry->older].newer) =
		entry->newer;
}

static void
link_newest(Entry *entry)
{
	int			index = entry - entries;

	entry->newer = NONE;
	entry->older = shared->newest;
	*(shared->newest == NONE ? &shared->oldest :
	  &entries[shared->newest].newer) = index;
	shared->newest = index;
}

static void
free_entry(Entry *entry)
{
	int			index = entry - entries;
	int		   *link = &entry_heads[entry->hash % nentries];

	while (*link != index)
		link = &entries[*link].next;
	*link = entry->next;
	unlink_use(entry);
	entry->database = InvalidOid;
	entry->next = shared->unused_entries;
	shared->unused_entries = index;
}

static Entry *
add_entry(Oid database, const char *definition, const char *step,
		  int operation, TimestampTz now)
{
	uint32		hash = hash_entry(database, definition, step, operation);
	Entry	   *entry = &entries[shared->unused_entries];
	int		   *head = &entry_heads[hash % nentries];

	shared->unused_entries = entry->next;
	memset(entry, 0, sizeof(Entry));
	entry->database = database;
	entry->hash = hash;
	entry->used_at = now;
	strlcpy(entry->what.definition, definition, sizeof(entry->what.definition));
	strlcpy(entry->what.step, step, sizeof(entry->what.step));
	entry->what.operation = operation;
	entry->next = *head;
	*head = entry - entries;
	link_newest(entry);
	return entry;
}

/* Since when are events of one counted that has no entry yet? */
static TimestampTz
new_since(const Database *db, const char *definition, TimestampTz now)
{
	Entry	   *whole;

	/* it may have had one that gave way */
	if (shared->given_way || db == NULL)
		return now;
	whole = find_entry(db->database, hash_name(db->database, definition),
					   definition, "", -1);
	return whole != NULL ? Max(whole->what.since, db->since) : db->since;
}

/* NULL if there is no room for it. */
static Entry *
make_entry(const Database *db, const char *definition, const char *step,
		   int operation, TimestampTz now)
{
	uint32		hash = hash_entry(MyDatabaseId, definition, step, operation);
	Entry	   *entry = find_entry(MyDatabaseId, hash, definition, step,
								   operation);
	TimestampTz since;

	if (entry != NULL)
	{
		if (now - entry->used_at > USED_LATELY || entry->used_at > now)
		{
			entry->used_at = now;
			unlink_use(entry);
			link_newest(entry);
		}
		return entry;
	}
	if (shared->unused_entries == NONE)
	{
		Entry	   *oldest = &entries[shared->oldest];

		if (now - oldest->used_at < IN_USE && oldest->used_at <= now)
			return NULL;
		free_entry(oldest);
		shared->given_way = true;
	}
	since = new_since(db, definition, now);
	entry = add_entry(MyDatabaseId, definition, step, operation, now);
	entry->what.since = since;
	return entry;
}


/* ---- what a transaction did: at its end ---------------------------------------- */

static bool
has_events(const SagaTally *tally)
{
	for (int i = 0; i < SAGA_NCOUNTS; i++)
		if (tally->counts[i] != 0)
			return true;
	return false;
}

/* The gauges may be wrong until the next count. */
static void
want_count(Database *db)
{
	if (db != NULL)
	{
		db->wanted = true;
		db->known = false;
	}
}

void
saga_stats_apply(const SagaStatsNote *notes, int n, uint64 xid,
				 bool uncertain)
{
	TimestampTz now = GetCurrentTimestamp();
	Database   *db;

	LWLockAcquire(lock, LW_EXCLUSIVE);
	db = make_database(MyDatabaseId);
	for (int i = 0; i < n; i++)
	{
		const SagaStatsNote *note = &notes[i];
		Entry	   *entry;

		if (note->moves && db != NULL)
			change_gauges(db, note->definition, note->gauges, xid);
		if (!has_events(&note->tally))
			continue;
		entry = make_entry(db, note->definition, note->step, note->operation,
						   now);
		if (entry != NULL)
			saga_series_add(&entry->what.series, &note->tally, now);
	}
	if (uncertain)
		want_count(db);
	LWLockRelease(lock);
	if (uncertain)
		saga_duty_at(SAGA_DUTY_COUNT, now);
}

/* Can the notes be kept in one of these? */
static bool
fit_prepared(const SagaStatsNote *notes, int n)
{
	if (n > NPREPARED_DEFINITIONS)
		return false;
	for (int i = 0; i < n; i++)
		if (notes[i].position >= 0 || notes[i].tally.end > 0)
			return false;
	return true;
}

static Prepared *
find_prepared(const char *gid)
{
	for (int i = 0; i < NPREPARED; i++)
		if (OidIsValid(shared->prepared[i].database) &&
			strcmp(shared->prepared[i].gid, gid) == 0)
			return &shared->prepared[i];
	return NULL;
}

static Prepared *
unused_prepared(void)
{
	for (int i = 0; i < NPREPARED; i++)
		if (!OidIsValid(shared->prepared[i].database))
			return &shared->prepared[i];
	return NULL;
}

void
saga_stats_keep(const SagaStatsNote *notes, int n, uint64 xid,
				const char *gid)
{
	Database   *db;
	Prepared   *prepared = NULL;

	LWLockAcquire(lock, LW_EXCLUSIVE);
	if (gid[0] != '\0' && fit_prepared(notes, n))
		prepared = unused_prepared();
	if (prepared != NULL)
	{
		memset(prepared, 0, sizeof(Prepared));
		prepared->database = MyDatabaseId;
		prepared->xid = xid;
		strlcpy(prepared->gid, gid, sizeof(prepared->gid));
		prepared->n = n;
		for (int i = 0; i < n; i++)
		{
			strlcpy(prepared->of[i].definition, notes[i].definition,
					sizeof(prepared->of[i].definition));
			memcpy(prepared->of[i].gauges, notes[i].gauges,
				   sizeof(prepared->of[i].gauges));
			prepared->of[i].begun = notes[i].tally.counts[SAGA_COUNT_BEGUN];
		}
	}
	else if ((db = make_database(MyDatabaseId)) != NULL)
		db->lost_before = GetCurrentTimestamp() + 1;
	LWLockRelease(lock);
}

static void
apply_prepared(Database *db, const Prepared *prepared, TimestampTz now)
{
	for (int i = 0; i < prepared->n; i++)
	{
		const char *definition = prepared->of[i].definition;
		Entry	   *entry = make_entry(db, definition, "", -1, now);
		SagaTally	tally;

		if (db != NULL)
			change_gauges(db, definition, prepared->of[i].gauges,
						  prepared->xid);
		memset(&tally, 0, sizeof(tally));
		tally.counts[SAGA_COUNT_BEGUN] = prepared->of[i].begun;
		if (entry != NULL)
			saga_series_add(&entry->what.series, &tally, now);
	}
}

void
saga_stats_prepared_ended(const char *gid, bool committed)
{
	TimestampTz now = GetCurrentTimestamp();
	Database   *db;
	Prepared   *prepared;
	bool		lost = false;

	if (shared == NULL)
		return;
	LWLockAcquire(lock, LW_EXCLUSIVE);
	db = make_database(MyDatabaseId);
	prepared = find_prepared(gid);
	if (prepared != NULL)
	{
		if (committed)
			apply_prepared(db, prepared, now);
		prepared->database = InvalidOid;
	}
	else if (committed && db != NULL && db->lost_before != 0)
	{
		lost = true;
		want_count(db);
	}
	LWLockRelease(lock);
	if (lost)
		saga_duty_at(SAGA_DUTY_COUNT, now);
}

/*
 * Prepared transactions that ended without our hooks, as those that logical
 * replication applies.  Returns whether there were any.
 */
static bool
forget_ended_prepared(void)
{
	bool		any = false;

	for (int i = 0; i < NPREPARED; i++)
	{
		Prepared   *prepared = &shared->prepared[i];

		if (prepared->database != MyDatabaseId ||
			TransactionIdIsInProgress((TransactionId) prepared->xid))
			continue;
		prepared->database = InvalidOid;
		any = true;
	}
	return any;
}

void
saga_stats_forget_database(Oid database)
{
	Database   *db;

	if (shared == NULL)
		return;
	LWLockAcquire(lock, LW_EXCLUSIVE);
	free_gauges_of(database);
	for (int i = 0; i < nentries; i++)
		if (entries[i].database == database)
			free_entry(&entries[i]);
	for (int i = 0; i < NPREPARED; i++)
		if (shared->prepared[i].database == database)
			shared->prepared[i].database = InvalidOid;
	db = find_database(database);
	if (db != NULL)
		db->database = InvalidOid;
	LWLockRelease(lock);
}


/* ---- counting --------------------------------------------------------------------- */

/* Have they come to be less than nothing? */
static bool
look_wrong(const Database *db)
{
	if (any_negative(db->now))
		return true;
	for (int i = 0; i < NGAUGES; i++)
		if (shared->gauges[i].database == db->database &&
			any_negative(shared->gauges[i].now))
			return true;
	return false;
}

bool
saga_stats_wants_count(bool look)
{
	Database   *db;
	bool		wants = false;

	if (shared == NULL)
		return false;
	LWLockAcquire(lock, LW_EXCLUSIVE);
	db = make_database(MyDatabaseId);
	if (db != NULL)
	{
		if (look && forget_ended_prepared())
			want_count(db);
		wants = !db->known || db->wanted ||
			(look && (db->together || look_wrong(db)));
	}
	LWLockRelease(lock);
	return wants;
}

TimestampTz
saga_stats_lost_before(void)
{
	Database   *db;
	TimestampTz before = 0;

	if (shared == NULL)
		return 0;
	LWLockAcquire(lock, LW_SHARED);
	db = find_database(MyDatabaseId);
	if (db != NULL)
		before = db->lost_before;
	LWLockRelease(lock);
	return before;
}

void
saga_stats_none_lost(TimestampTz before)
{
	Database   *db;

	LWLockAcquire(lock, LW_EXCLUSIVE);
	db = find_database(MyDatabaseId);
	if (db != NULL && db->lost_before == before)
		db->lost_before = 0;
	LWLockRelease(lock);
}

/* The id with the epoch that it has now: it is of a snapshot. */
static uint64
full_xid(TransactionId xid, FullTransactionId next)
{
	uint64		epoch = EpochFromFullTransactionId(next);

	if (xid > XidFromFullTransactionId(next))
		epoch--;
	return epoch << 32 | xid;
}

uint32
saga_stats_count_begin(Snapshot *snapshot)
{
	Database   *db;
	FullTransactionId next;
	uint32		number = 0;

	/* its own rows would be seen, whatever becomes of them */
	if (shared == NULL || RecoveryInProgress() ||
		TransactionIdIsValid(GetTopTransactionIdIfAny()))
		return 0;
	/* the first in a transaction may allocate */
	(void) GetTransactionSnapshot();
	LWLockAcquire(lock, LW_EXCLUSIVE);
	db = make_database(MyDatabaseId);
	if (db != NULL &&
		(db->counter == 0 || db->counter == MyProcPid ||
		 BackendPidGetProc(db->counter) == NULL))
	{
		*snapshot = GetLatestSnapshot();
		next = ReadNextFullTransactionId();
		Assert((*snapshot)->xcnt <= (uint32) nxids);
		db->xmin = full_xid((*snapshot)->xmin, next);
		db->xmax = full_xid((*snapshot)->xmax, next);
		db->nxip = Min((int) (*snapshot)->xcnt, nxids);
		memcpy(xids_of(db), (*snapshot)->xip, db->nxip * sizeof(TransactionId));
		db->counter = MyProcPid;
		db->wanted = false;
		if (++db->count == 0)
			db->count = 1;
		number = db->count;
		memset(db->since_count, 0, sizeof(db->since_count));
		for (int i = 0; i < NGAUGES; i++)
			if (shared->gauges[i].database == MyDatabaseId)
				memset(shared->gauges[i].since_count, 0,
					   sizeof(shared->gauges[i].since_count));
	}
	LWLockRelease(lock);
	return number;
}

/* What has changed since the count began, and nothing else. */
static void
start_from_changes(Database *db)
{
	memcpy(db->now, db->since_count, sizeof(db->now));
	memset(db->since_count, 0, sizeof(db->since_count));
	for (int i = 0; i < NGAUGES; i++)
	{
		Gauges	   *gauges = &shared->gauges[i];

		if (gauges->database != db->database)
			continue;
		memcpy(gauges->now, gauges->since_count, sizeof(gauges->now));
		memset(gauges->since_count, 0, sizeof(gauges->since_count));
	}
}

void
saga_stats_count_done(uint32 number, const SagaCount *counts, int ncounts)
{
	Database   *db;

	LWLockAcquire(lock, LW_EXCLUSIVE);
	db = find_database(MyDatabaseId);
	if (db != NULL && db->counter == MyProcPid && db->count == number)
	{
		bool		mixed = !all_zero(db->since_count);

		start_from_changes(db);
		free_empty_gauges();
		db->together = false;
		for (int i = 0; i < ncounts; i++)
		{
			Gauges	   *gauges = counts[i].definition == NULL ? NULL :
				make_gauges(db, counts[i].definition);
			int64	   *now = gauges ? gauges->now : db->now;

			for (int k = 0; k < SAGA_NGAUGES; k++)
				now[k] += counts[i].n[k];
		}
		/* unless something has come in between */
		db->known = !db->wanted;
		db->counter = 0;
		/* changes of definitions that were counted together, and no more are */
		if (mixed && !db->together)
			db->wanted = true;
	}
	LWLockRelease(lock);
}

void
saga_stats_count_failed(uint32 number)
{
	Database   *db;

	LWLockAcquire(lock, LW_EXCLUSIVE);
	db = find_database(MyDatabaseId);
	if (db != NULL && db->counter == MyProcPid && db->count == number)
	{
		db->counter = 0;
		db->wanted = true;
	}
	LWLockRelease(lock);
}


/* ---- who looks --------------------------------------------------------------------- */

bool
saga_stats_next(int *position, bool steps, SagaStatistics *entry)
{
	bool		found = false;

	if (shared == NULL)
		return false;
	LWLockAcquire(lock, LW_SHARED);
	for (; *position < nentries && !found; (*position)++)
	{
		const Entry *candidate = &entries[*position];

		if (candidate->database != MyDatabaseId ||
			(candidate->what.step[0] != '\0') != steps)
			continue;
		*entry = candidate->what;
		found = true;
	}
	LWLockRelease(lock);
	return found;
}

bool
saga_stats_has_definition(const char *definition)
{
	bool		found;

	LWLockAcquire(lock, LW_SHARED);
	found = find_entry(MyDatabaseId, hash_name(MyDatabaseId, definition),
					   definition, "", -1) != NULL;
	LWLockRelease(lock);
	return found;
}

/* Are the gauges of this database known?  With the lock held. */
static Database *
find_known(void)
{
	Database   *db = find_database(MyDatabaseId);

	return db != NULL && db->known ? db : NULL;
}

bool
saga_stats_gauges(const char *definition, int64 *n)
{
	Database   *db;
	const Gauges *gauges;
	bool		known;

	memset(n, 0, SAGA_NGAUGES * sizeof(int64));
	if (shared == NULL)
		return false;
	LWLockAcquire(lock, LW_SHARED);
	db = find_known();
	known = db != NULL;
	if (known && definition == NULL)
		memcpy(n, db->now, sizeof(db->now));
	else if (known)
	{
		gauges = find_gauges(MyDatabaseId, definition);
		if (gauges != NULL)
			memcpy(n, gauges->now, sizeof(gauges->now));
	}
	LWLockRelease(lock);
	return known;
}

bool
saga_stats_next_gauges(int *position, char *definition, int64 *n)
{
	bool		found = false;

	if (shared == NULL)
		return false;
	LWLockAcquire(lock, LW_SHARED);
	for (; find_known() != NULL && *position < NGAUGES && !found; (*position)++)
	{
		const Gauges *gauges = &shared->gauges[*position];

		if (gauges->database != MyDatabaseId || all_zero(gauges->now))
			continue;
		strlcpy(definition, gauges->definition, NAMEDATALEN);
		memcpy(n, gauges->now, sizeof(gauges->now));
		found = true;
	}
	LWLockRelease(lock);
	return found;
}

void
saga_stats_reset(const char *definition)
{
	TimestampTz now = GetCurrentTimestamp();
	Database   *db;

	if (shared == NULL)
		return;
	LWLockAcquire(lock, LW_EXCLUSIVE);
	db = make_database(MyDatabaseId);
	if (db != NULL && definition == NULL)
		db->since = now;
	for (int i = 0; i < nentries; i++)
	{
		Entry	   *entry = &entries[i];

		if (entry->database != MyDatabaseId ||
			(definition != NULL &&
			 strcmp(entry->what.definition, definition) != 0))
			continue;
		memset(&entry->what.series, 0, sizeof(SagaSeries));
		entry->what.since = now;
	}
	LWLockRelease(lock);
}


/* ---- the file ------------------------------------------------------------------- */

static pg_crc32c
crc_of(const FileHeader *header, const Entry *of, pg_crc32c crc)
{
	if (of == NULL)
	{
		INIT_CRC32C(crc);
		COMP_CRC32C(crc, header, sizeof(FileHeader));
	}
	else
		COMP_CRC32C(crc, of, sizeof(Entry));
	return crc;
}

/* The checkpoint of a clean shutdown; InvalidXLogRecPtr if the last one was none.
 * After an immediate shutdown the server recovers as from a crash; somebody may
 * have been stopped in the middle of a change here. */
static XLogRecPtr
shutdown_checkpoint(void)
{
	bool		crc_ok;
	ControlFileData *control = get_controlfile(DataDir, &crc_ok);

	return crc_ok && (control->state == DB_SHUTDOWNED ||
					  control->state == DB_SHUTDOWNED_IN_RECOVERY) ?
		control->checkPoint : InvalidXLogRecPtr;
}

/* In the postmaster, which is the last: nobody else is there any more. */
static void
write_file(int code, Datum arg)
{
	const char *temporary = STATS_FILE ".tmp";
	FileHeader	header;
	pg_crc32c	crc;
	FILE	   *file;
	bool		good = true;

	(void) arg;
	if (code != 0 || shared == NULL)
		return;
	memset(&header, 0, sizeof(header));
	header.checkpoint = shutdown_checkpoint();
	if (header.checkpoint == InvalidXLogRecPtr)
		return;
	header.magic = STATS_MAGIC;
	header.version = PG_VERSION_NUM / 10000;
	header.entry_size = sizeof(Entry);
	header.since = shared->since;
	for (int i = shared->oldest; i != NONE; i = entries[i].newer)
		header.nentries++;
	crc = crc_of(&header, NULL, 0);

	file = AllocateFile(temporary, PG_BINARY_W);
	if (file != NULL)
	{
		good = fwrite(&header, sizeof(header), 1, file) == 1;
		for (int i = shared->oldest; i != NONE && good; i = entries[i].newer)
		{
			crc = crc_of(NULL, &entries[i], crc);
			good = fwrite(&entries[i], sizeof(Entry), 1, file) == 1;
		}
		FIN_CRC32C(crc);
		good = good && fwrite(&crc, sizeof(crc), 1, file) == 1;
		good = FreeFile(file) == 0 && good;
	}
	if (file == NULL || !good)
	{
		ereport(LOG,
				errcode_for_file_access(),
				errmsg("could not write file \"%s\": %m", temporary));
		(void) unlink(temporary);
		return;
	}
	(void) durable_rename(temporary, STATS_FILE, LOG);
}

/* Is it as it was written?  Leaves the file behind the header. */
static bool
check_file(FILE *file, FileHeader *header)
{
	pg_crc32c	crc;
	pg_crc32c	stored;
	Entry	   *entry = palloc(sizeof(Entry));
	bool		good;

	good = fread(header, sizeof(FileHeader), 1, file) == 1 &&
		header->magic == STATS_MAGIC &&
		header->version == PG_VERSION_NUM / 10000 &&
		header->entry_size == sizeof(Entry);
	if (good)
		crc = crc_of(header, NULL, 0);
	for (uint32 i = 0; good && i < header->nentries; i++)
	{
		good = fread(entry, sizeof(Entry), 1, file) == 1;
		crc = crc_of(NULL, entry, crc);
	}
	pfree(entry);
	if (!good)
		return false;
	FIN_CRC32C(crc);
	return fread(&stored, sizeof(stored), 1, file) == 1 &&
		EQ_CRC32C(crc, stored) && fgetc(file) == EOF &&
		fseek(file, sizeof(FileHeader), SEEK_SET) == 0;
}

/* Take the statistics of before the shutdown; the file goes, since it is out of
 * date as soon as something happens. */
static void
read_file(void)
{
	FileHeader	header;
	FILE	   *file = AllocateFile(STATS_FILE, PG_BINARY_R);
	Entry	   *entry;

	if (file == NULL)
	{
		if (errno != ENOENT)
			ereport(LOG,
					errcode_for_file_access(),
					errmsg("could not read file \"%s\": %m", STATS_FILE));
		return;
	}
	if (!check_file(file, &header))
		ereport(LOG,
				errcode(ERRCODE_DATA_CORRUPTED),
				errmsg("ignoring invalid data in file \"%s\"", STATS_FILE),
				errdetail("The statistics of sagas begin anew."));
	else if (header.checkpoint != shutdown_checkpoint())
		ereport(LOG,
				errmsg("ignoring file \"%s\" of an earlier shutdown", STATS_FILE),
				errdetail("The server was started without saga in the meantime. The statistics of sagas begin anew."));
	else
	{
		shared->since = header.since;
		entry = palloc(sizeof(Entry));
		for (uint32 i = 0; i < header.nentries; i++)
		{
			Entry	   *place;

			if (fread(entry, sizeof(Entry), 1, file) != 1)
				break;
			/* the memory may have become smaller: the oldest give way */
			if (header.nentries - i > (uint32) nentries)
			{
				shared->given_way = true;
				continue;
			}
			place = add_entry(entry->database, entry->what.definition,
							  entry->what.step, entry->what.operation,
							  entry->used_at);
			place->what = entry->what;
		}
		pfree(entry);
	}
	FreeFile(file);
	(void) unlink(STATS_FILE);
}


/* ---- the segment ------------------------------------------------------------------ */

static Size
size_of_segment(void)
{
	Size		size = MAXALIGN(sizeof(Shared));

	size = add_size(size, MAXALIGN(mul_size(NDATABASES * sizeof(TransactionId),
											nxids)));
	size = add_size(size, MAXALIGN(mul_size(sizeof(int), nentries)));
	return add_size(size, mul_size(sizeof(Entry), nentries));
}

static void
request_segment(void)
{
	if (prev_shmem_request_hook)
		prev_shmem_request_hook();
	nxids = MaxBackends + max_prepared_xacts + NUM_AUXILIARY_PROCS;
	nentries = Max((int) ((Size) saga_statistics_memory * 1024 / sizeof(Entry)),
				   1);
	RequestAddinShmemSpace(size_of_segment());
	RequestNamedLWLockTranche("saga_statistics", 1);
}

static void
make_lists(void)
{
	for (int i = 0; i < NGAUGE_HEADS; i++)
		shared->gauge_heads[i] = NONE;
	for (int i = 0; i < NGAUGES; i++)
		shared->gauges[i].next = i + 1 < NGAUGES ? i + 1 : NONE;
	for (int i = 0; i < nentries; i++)
	{
		entry_heads[i] = NONE;
		entries[i].next = i + 1 < nentries ? i + 1 : NONE;
	}
	shared->newest = shared->oldest = NONE;
}

static void
startup_segment(void)
{
	bool		found;
	char	   *place;

	if (prev_shmem_startup_hook)
		prev_shmem_startup_hook();

	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	shared = ShmemInitStruct("saga statistics", size_of_segment(), &found);
	lock = &GetNamedLWLockTranche("saga_statistics")->lock;
	place = (char *) shared + MAXALIGN(sizeof(Shared));
	snapshot_xids = (TransactionId *) place;
	place += MAXALIGN(NDATABASES * sizeof(TransactionId) * nxids);
	entry_heads = (int *) place;
	place += MAXALIGN(sizeof(int) * nentries);
	entries = (Entry *) place;
	if (!found)
	{
		memset(shared, 0, size_of_segment());
		shared->started_at = shared->since = GetCurrentTimestamp();
		make_lists();
		read_file();
	}
	LWLockRelease(AddinShmemInitLock);
	if (!found && !IsUnderPostmaster)
		on_shmem_exit(write_file, (Datum) 0);
}

void
saga_stats_init(void)
{
	prev_shmem_request_hook = shmem_request_hook;
	shmem_request_hook = request_segment;
	prev_shmem_startup_hook = shmem_startup_hook;
	shmem_startup_hook = startup_segment;
}
