/*
 * retention.c
 *		Owns the removal of sagas that ended long ago.
 *
 * Rows that vacuum has to follow would cost as much as the sagas did.  So
 * nothing is deleted row by row: the leaves of saga.saga, step, attempt and
 * history are emptied by TRUNCATE, all four of a slot at once.
 *
 * Slots 0 to 5 are a ring.  New sagas go to one of them, the current one; when
 * it is old enough the next that is empty becomes current (rotate()).  What is
 * to be kept of a slot that is emptied, its survivors, is moved to slot 6 or 7
 * first: one of the two is open, and when half of what is in it may go, the
 * other is opened and the first emptied into it.  It is a copying collector.
 *
 *	current		new sagas go there		-> closed, when it is old enough and
 *										   there is an empty one
 *	closed		nobody begins there		-> emptying, when it is worth it
 *	emptying	survivors leave			-> empty, by TRUNCATE
 *	empty								-> current, or opened for survivors
 *
 * When (look(), from a sample of each leaf):
 * - A saga has expired when it is final and ended longer ago than its
 *	 definition's retention; the default counts for those whose definition is
 *	 dropped.  What a restored or copied database has of another coordinator
 *	 counts from saga.adopt() on; before, nothing of it is touched.  So long as
 *	 somebody may come back to it a saga has not expired: while its parent or
 *	 the root of its tree has not ended, here or elsewhere, while there is a
 *	 message for it, a branch of it, or something to be said to children in
 *	 other databases.
 * - The current slot is closed a fifth of R after it was opened, R being the
 *	 median retention of the sagas in it.  So the ring comes round when the
 *	 oldest have expired, and none is kept much longer than 6/5 of R.
 * - A closed slot is emptied when half of its sagas have expired, and fewer
 *	 than half of the others will within a tenth of R: else it is worth while to
 *	 wait.  So what is kept takes up twice its space at most, for long.
 *
 * How one is emptied (Job).  Each step is a transaction of its own, some 50 ms
 * long, under one object lock (lock_retention()) that two who do this, and
 * saga.adopt(), exclude each other with:
 *
 * 1. START.  The transactions that may have written in saga_n, which their locks
 *	 tell, are noted, and waited for: without a lock, by asking again later.
 * 2. SCAN.  All rows are gone through.  Survivors are moved: their row is
 *	 locked, or they are left for later; then it and the rows of step, attempt
 *	 and history are inserted in the other leaves and deleted here.  Business
 *	 keys of expired sagas are deleted.
 * 3. FINISH.  Rows that are not final, by index, and those that became final
 *	 since (1), by saga_finished, are moved likewise until there is none.
 * 4. TRUNCATE.  With all four leaves locked ACCESS EXCLUSIVE, (3) is asked
 *	 again; if the answer is still nothing, they are truncated.
 *
 * What must hold, and why it does:
 *
 * - Nothing that is to be kept is truncated.  A row that (2) has not seen was
 *	 written by a transaction that came after (1).  Then it is not final, or ended
 *	 after (1): (4) sees it, with a snapshot taken after the locks were had, and
 *	 under them nobody writes.  That goes for a begin that was open for long, for
 *	 one that took the slot from its cache, for a prepared one: each has a lock on
 *	 saga_n until it has committed.  A pass counts only for the generation of the
 *	 slot and the settings of retention that it began with.  Known limit: a clock
 *	 that is set back by more than CLOCK_MARGIN during a pass may cost a saga that
 *	 has ended; never one that has not.
 * - A saga is in one leaf, whole, for every snapshot.  It is moved in one
 *	 transaction by who has its row locked, as an executor has, so no other
 *	 writes any of it meanwhile.  TRUNCATE is not MVCC-safe: an older snapshot
 *	 would see it in neither leaf.  So it waits until no snapshot is left that
 *	 does not see the last move: saga.slot.moved_xid.  Expired sagas do vanish
 *	 from older snapshots.
 * - Nobody loses it.  The row is deleted and inserted, never updated across
 *	 partitions: who would lock it finds it deleted, and skips it.  So the move
 *	 is followed by a wake-up of those that are due or have something to take.
 *	 Should we die before it, the sweep finds them.  What names the slot of a
 *	 saga beside its own rows (messages, branches, tasks, locks, keys, wake-ups,
 *	 the crash record, the memory of executors) names where it was once: who
 *	 does not find it there looks in the other leaves.  These rows do not follow:
 *	 they have other writers, for whom we would have to wait, and they for us.
 * - Nobody waits.  Rows and tables are locked if that can be done at once.
 *	 After FIRM_AFTER refusals the first of the four locks is waited for, for
 *	 LOCK_PATIENCE ms; nothing else is held then, so there is no circle.  The
 *	 four are held for as long as two index scans and the TRUNCATE take; the
 *	 commit does not wait for standbys.
 * - It may die anywhere.  A move is all or nothing.  What is remembered of a
 *	 pass is this process's memory: the next begins another.
 * - On a hot standby the locks of (4) are replayed: queries that are in these
 *	 leaves are waited for, or cancelled, as its settings say.  Without
 *	 hot_standby_feedback a transaction there that is older than a move may miss
 *	 a saga that was moved.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/transam.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
#include "storage/procarray.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/xid8.h"

#include "compat.h"
#include "guc.h"
#include "owner.h"
#include "retention.h"
#include "store.h"
#include "tables.h"

/* So many slots are the ring; two more are for survivors. */
#define RING			6
#define FIRST_KEPT		RING
#define SECOND_KEPT		(RING + 1)

/* Of one transaction: rows that are read and the blocks they are in, survivors
 * that are moved. */
#define SCAN_ROWS		2000
#define SCAN_BLOCKS		128
#define MOVE_MAX		100

/* A sample of a leaf has about so many blocks. */
#define SAMPLE_BLOCKS	64

/* With more sagas that ended lately (4) would take too long. */
#define RECENT_MAX		10000

/* So far a clock may be set back. */
#define CLOCK_MARGIN	(30 * USECS_PER_SEC)

/* How long a lock is waited for, in ms, and after how many refusals at all. */
#define LOCK_PATIENCE	"100"
#define FIRM_AFTER		3

/* (4) may take so long, unless that was tried so often. */
#define CHECK_TIME		(100 * INT64CONST(1000))
#define CHECK_TRIES		10

/* Pauses before the next try of what could not be done. */
#define RETRY_MIN		(100 * INT64CONST(1000))
#define RETRY_MAX		(60 * USECS_PER_SEC)

/* Between two looks, at least; the most is saga.retention_interval. */
#define LOOK_MIN		USECS_PER_MINUTE

typedef enum JobState
{
	JOB_NONE,
	JOB_START,
	JOB_WAIT,					/* for the writers of (1) */
	JOB_SCAN,
	JOB_FINISH,
	JOB_TRUNCATE
} JobState;

/* What this process remembers of a slot that is being emptied. */
typedef struct Job
{
	JobState	state;
	Oid			relid;			/* of saga_n: the extension may be made anew */
	int			generation;
	int64		settings;
	TimestampTz started_at;		/* of (1) */
	VirtualTransactionId *writers;	/* that it waits for, in TopMemoryContext */
	int			nwriters;
	ItemPointerData scanned_to; /* the last row that was looked at */
	BlockNumber nblocks;		/* as large it was when the scan came to the end */
	bool		incomplete;		/* a row that it saw could not be dealt with,
								 * and (3) does not find it */
	bool		summarized;		/* saga_finished knows all of it */
	int64		nexpired;
	int			slow_checks;	/* so often (3) took too long */
	int			locks_refused;	/* those of (4) */
	int			refusals;		/* so often it was put off */
	TimestampTz retry_at;
	const char *waits_for;		/* why it is not done */
	const char *noted;			/* as that stands in the table */
} Job;

static Job	jobs[SAGA_NSLOTS];

/* When the leaves are to be looked at again; 0: at once. */
static TimestampTz next_look = 0;

/* A slot was emptied since the last look, which may be what another one waits
 * for: look again, but for that alone. */
static bool was_emptied = false;

/* What the tables say about all slots. */
typedef struct Situation
{
	int			current;
	int			kept;			/* the one of the last two that is open */
	int64		settings;		/* a hash of all retentions */
	int			generation[SAGA_NSLOTS];
	TimestampTz opened_at[SAGA_NSLOTS]; /* 0 = not known */
	uint64		moved_xid[SAGA_NSLOTS]; /* 0 = none */
} Situation;

/* A saga that was found and is not to be kept where it is. */
typedef struct Found
{
	int			nsurvivors;
	int64		survivors[MOVE_MAX];
	bool		ended[MOVE_MAX];	/* of each: it is final */
	int			nkeys;			/* of those that have expired */
	Datum	   *definitions;
	Datum	   *keys;
	Datum	   *ids;
	int64		nexpired;
	bool		foreign;		/* there are some of another coordinator */
	bool		full;			/* there was no room for more */
	ItemPointerData last;		/* the last one that was looked at */
} Found;

/* An unfinished saga that was moved. */
typedef struct Moved
{
	SagaRef		ref;
	Oid			role;
	TimestampTz due_at;
	bool		asks;			/* a task of it is out: there may be an answer */
} Moved;

/* One call. */
typedef struct Run
{
	const SagaDriver *driver;
	SagaRetained *done;
	MemoryContext memory;		/* reset with each transaction */
	Situation	now;
	bool		busy;			/* somebody else does it */
	int			nmoved;
	Moved		moved[MOVE_MAX];
} Run;

static const char *const waits_for_lock = "somebody to let go of its tables";
static const char *const waits_for_snapshot = "old snapshots";
static const char *const waits_for_sagas = "sagas in work";
static const char *const waits_for_vacuum = "VACUUM";


/* ---- statements ------------------------------------------------------------ */

/* "s" is a saga, "c" this coordinator; the script has the default too. */
#define DEFAULT_RETENTION "'30 days'::pg_catalog.interval"
#define JOIN_RETENTION \
	" CROSS JOIN saga.coordinator c" \
	" LEFT JOIN saga.definition_version v ON v.id = s.definition_id" \
	" LEFT JOIN saga.definition d ON d.name = v.name"
#define RETENTION "COALESCE(d.retention, " DEFAULT_RETENTION ")"
#define EXPIRES \
	"(CASE WHEN s.coordinator = c.id THEN s.finished_at" \
	"  ELSE GREATEST(s.finished_at, c.adopted_at) END + " RETENTION ")"
#define IS_FOREIGN "(s.coordinator <> c.id AND c.adopted_at IS NULL)"

/* May somebody come back to it? */
#define IS_REFERRED_TO \
	"(EXISTS (SELECT FROM saga.saga p WHERE p.id = s.parent_id" \
	"         AND p.due_at IS NOT NULL)" \
	" OR EXISTS (SELECT FROM saga.saga p WHERE p.id = s.root_id" \
	"            AND p.due_at IS NOT NULL)" \
	" OR EXISTS (SELECT FROM saga.remote_parent p" \
	"            WHERE p.saga_id = s.id AND NOT p.let_go)" \
	" OR EXISTS (SELECT FROM saga.message m WHERE m.saga_id = s.id)" \
	" OR EXISTS (SELECT FROM saga.branch b WHERE b.saga_id = s.id)" \
	" OR s.id = ANY (ARRAY(SELECT t.saga_id FROM saga.task t" \
	"                      WHERE t.queue_id < 0 AND t.at IS NOT NULL" \
	"                      AND t.attempt = 0)))"

/* What is to be known of rows; $1 is the present time. */
#define SELECT_ROWS \
	"SELECT s.id, s.ctid, s.definition_id, s.key," \
	" s.due_at IS NULL AND COALESCE(" EXPIRES " <= $1, false)" \
	"  AND NOT " IS_REFERRED_TO "," \
	" s.key IS NOT NULL AND EXISTS (SELECT FROM saga.key k" \
	"  WHERE k.definition = v.name AND k.key = s.key AND k.saga_id = s.id)," \
	" " IS_FOREIGN ", s.due_at IS NULL" \
	" FROM saga.saga_%d s" JOIN_RETENTION


/* In their order: where the scan goes on depends on it. */
static const char *const scan_rows =
	SELECT_ROWS " WHERE s.ctid > $2 AND s.ctid < $3 ORDER BY s.ctid";
static const char *const find_unfinished =
	SELECT_ROWS " WHERE s.due_at IS NOT NULL";
static const char *const find_recent =
	SELECT_ROWS " WHERE s.finished_at > $2";

static const char *const add_slots =
	"INSERT INTO saga.slot (slot, opened_at)"
	" SELECT n, CASE WHEN n = c.slot OR n = 6 THEN pg_catalog.now() END"
	" FROM pg_catalog.generate_series(0, 7) n, saga.coordinator c"
	" ON CONFLICT DO NOTHING";
static const char *const read_slots =
	"SELECT c.slot, l.slot, l.generation, l.opened_at, l.closed_at, l.moved_xid,"
	" (SELECT pg_catalog.hashtextextended(pg_catalog.string_agg("
	"   d.name || ' ' || d.retention::pg_catalog.text, ',' ORDER BY d.name), 0)"
	"  FROM saga.definition d)"
	" FROM saga.slot l, saga.coordinator c ORDER BY l.slot";

/* Of a sample, by $1 the present time, $2 the percentage, and $3 when the slot
 * was opened. */
static const char *const sample_leaf =
	"WITH e AS MATERIALIZED ("
	" SELECT " RETENTION " AS retention, " IS_FOREIGN " AS is_foreign,"
	"  s.created_at, CASE WHEN s.due_at IS NULL THEN " EXPIRES
	"   ELSE 'infinity' END AS expires"
	"  FROM saga.saga_%d s TABLESAMPLE SYSTEM ($2)" JOIN_RETENTION "), r AS ("
	" SELECT pg_catalog.percentile_disc(0.5) WITHIN GROUP (ORDER BY e.retention)"
	"  AS median FROM e)"
	" SELECT pg_catalog.count(*),"
	"  pg_catalog.count(*) FILTER (WHERE e.is_foreign),"
	"  pg_catalog.count(*) FILTER (WHERE e.expires <= $1),"
	"  pg_catalog.count(*) FILTER (WHERE e.expires <= $1 + r.median / 10),"
	"  COALESCE($3, pg_catalog.min(e.created_at)) + r.median / 5,"
	"  pg_catalog.percentile_disc(0.5) WITHIN GROUP (ORDER BY e.expires),"
	"  pg_catalog.max(e.expires) FILTER (WHERE e.expires <= $1 + r.median / 10)"
	" FROM e, r GROUP BY r.median";

static const char *const summarize =
	"SELECT pg_catalog.brin_summarize_new_values(i.indexrelid)"
	" FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid"
	" JOIN pg_catalog.pg_am a ON a.oid = x.relam"
	" WHERE i.indrelid = 'saga.saga_%d'::pg_catalog.regclass"
	" AND a.amname = 'brin'";

static const char *const note_look =
	"UPDATE saga.slot SET looked_at = $2, sagas = $3, expired = $4,"
	" waits_for = CASE WHEN $5 THEN 'saga.adopt()'"
	"  ELSE NULLIF(waits_for, 'saga.adopt()') END WHERE slot = $1";
static const char *const note_wait =
	"UPDATE saga.slot SET waits_for = $2"
	" WHERE slot = $1 AND waits_for IS DISTINCT FROM $2";
static const char *const note_move =
	"UPDATE saga.slot SET moved_xid = pg_catalog.pg_current_xact_id()"
	" WHERE slot = $1";
static const char *const open_slot =
	"UPDATE saga.slot SET opened_at = $2, closed_at = NULL,"
	" generation = generation + 1 WHERE slot = $1";
static const char *const close_slot =
	"UPDATE saga.slot SET closed_at = $2, generation = generation + 1"
	" WHERE slot = $1";
static const char *const note_empty =
	"UPDATE saga.slot SET opened_at = NULL, closed_at = NULL, emptied_at = $2,"
	" looked_at = $2, sagas = 0, expired = 0, moved_xid = NULL,"
	" waits_for = NULL, generation = generation + 1 WHERE slot = $1";
static const char *const set_current =
	"UPDATE saga.coordinator SET slot = $1";

/* Who is about to give such a key to a new saga keeps it. */
static const char *const delete_keys =
	"DELETE FROM saga.key WHERE ctid = ANY (ARRAY("
	" SELECT k.ctid FROM ROWS FROM (pg_catalog.unnest($1), pg_catalog.unnest($2),"
	"   pg_catalog.unnest($3)) u(definition_id, key, id)"
	"  JOIN saga.definition_version v ON v.id = u.definition_id"
	"  JOIN saga.key k ON k.definition = v.name AND k.key = u.key"
	"   AND k.saga_id = u.id"
	"  FOR UPDATE OF k SKIP LOCKED))";

/* What came for a saga when that was about to go. */
static const char *const delete_orphans[] = {
	"DELETE FROM saga.message m WHERE m.created_at < $1"
	" AND NOT EXISTS (SELECT FROM saga.saga s WHERE s.id = m.saga_id)",
	"DELETE FROM saga.branch b WHERE b.created_at < $1"
	" AND NOT EXISTS (SELECT FROM saga.saga s WHERE s.id = b.saga_id)"
};


/* ---- transactions -------------------------------------------------------- */

/* Whatever else is waited for: not for long. */
static void
set_option(const char *name, const char *value, GucAction action)
{
	(void) set_config_option(name, value, PGC_USERSET, PGC_S_SESSION, action,
							 true, 0, false);
}

static void
enter_owner(SagaOwnerSwitch *owner)
{
	saga_owner_enter(owner);
	set_option("lock_timeout", LOCK_PATIENCE, GUC_ACTION_SAVE);
	set_option("enable_tidscan", "on", GUC_ACTION_SAVE);
}

/* Run a statement, with the number of a leaf where it has "%d"; returns how
 * many rows. */
static uint64
execute(const char *sql, int leaf, int nargs, Oid *types, Datum *values,
		const char *nulls, long limit)
{
	char	   *text = psprintf(sql, leaf);
	int			result = SPI_execute_with_args(text, nargs, types, values, nulls,
											   false, limit);

	if (result < 0)
		elog(ERROR, "could not execute \"%s\": %s", text,
			 SPI_result_code_string(result));
	return SPI_processed;
}

static Datum
column(uint64 row, int number, bool *isnull)
{
	return SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, number,
						 isnull);
}

static int64
int64_at(uint64 row, int number)
{
	bool		isnull;
	Datum		value = column(row, number, &isnull);

	return isnull ? 0 : DatumGetInt64(value);
}

static bool
bool_at(uint64 row, int number)
{
	bool		isnull;
	Datum		value = column(row, number, &isnull);

	return !isnull && DatumGetBool(value);
}

static TimestampTz
time_at(uint64 row, int number)
{
	bool		isnull;
	Datum		value = column(row, number, &isnull);

	return isnull ? 0 : DatumGetTimestampTz(value);
}

/* A change of one slot's row, with the time if the statement wants one. */
static void
change_slot(const char *sql, int slot, TimestampTz time)
{
	Oid			types[2] = {INT2OID, TIMESTAMPTZOID};
	Datum		values[2] = {Int16GetDatum(slot), TimestampTzGetDatum(time)};

	(void) execute(sql, 0, time == 0 ? 1 : 2, types, values, NULL, 0);
}

static Oid
slot_table(void)
{
	return get_relname_relid("slot", get_namespace_oid("saga", false));
}

static bool
lock_retention(void)
{
	return ConditionalLockDatabaseObject(slot_table(), InvalidOid, 1,
										 ExclusiveLock);
}

void
saga_retention_keep_off(void)
{
	LockDatabaseObject(slot_table(), InvalidOid, 1, ExclusiveLock);
}

static void
begin_transaction(Run *run)
{
	run->driver->begin();
	XactIsoLevel = XACT_READ_COMMITTED;
	XactReadOnly = false;
	XactDeferrable = false;
	saga_disable_transaction_timeout();
	set_option("lock_timeout", LOCK_PATIENCE, GUC_ACTION_LOCAL);
	/* what is lost in a crash is done again */
	saga_engine_commit_lazily();
	MemoryContextSwitchTo(run->memory);
}

static void
commit_transaction(Run *run)
{
	Assert(!saga_owner_is_current());
	run->driver->commit();
	MemoryContextSwitchTo(run->memory);
	MemoryContextReset(run->memory);
}

/* What the tables say; false if this is no time to act. */
static bool
read_situation(Run *run)
{
	Situation  *now = &run->now;
	SagaOwnerSwitch owner;
	bool		second_is_open = false;
	uint64		n;

	memset(now, 0, sizeof(*now));
	(void) saga_tables_names();
	if (saga_tables_is_copy())
		return false;
	if (!lock_retention())
	{
		run->busy = true;
		return false;
	}
	enter_owner(&owner);
	n = execute(read_slots, 0, 0, NULL, NULL, NULL, 0);
	if (n < SAGA_NSLOTS)
	{
		(void) execute(add_slots, 0, 0, NULL, NULL, NULL, 0);
		n = execute(read_slots, 0, 0, NULL, NULL, NULL, 0);
	}
	for (uint64 i = 0; i < n; i++)
	{
		bool		isnull;
		int			slot = DatumGetInt16(column(i, 2, &isnull));
		Datum		xid;

		if (slot < 0 || slot >= SAGA_NSLOTS)
			continue;
		now->current = DatumGetInt16(column(i, 1, &isnull));
		now->generation[slot] = DatumGetInt32(column(i, 3, &isnull));
		now->opened_at[slot] = time_at(i, 4);
		if (slot == SECOND_KEPT)
			second_is_open = time_at(i, 4) != 0 && time_at(i, 5) == 0;
		xid = column(i, 6, &isnull);
		if (!isnull)
			now->moved_xid[slot] =
				U64FromFullTransactionId(DatumGetFullTransactionId(xid));
		now->settings = int64_at(i, 7);
	}
	now->kept = second_is_open ? SECOND_KEPT : FIRST_KEPT;
	saga_owner_leave(&owner);
	return true;
}

static BlockNumber
count_blocks(int slot)
{
	Relation	rel = table_open(saga_tables_names()->tables[SAGA_TABLE_SAGA][slot],
								 AccessShareLock);
	BlockNumber n = RelationGetNumberOfBlocks(rel);

	table_close(rel, NoLock);
	return n;
}


/* ---- looking ---------------------------------------------------------------- */

/* What a sample says of a leaf. */
typedef struct Sample
{
	BlockNumber nblocks;
	int64		n;				/* sagas in it */
	int64		nforeign;		/* of which of another coordinator */
	int64		nexpired;
	int64		nsoon;			/* have expired, or will soon */
	TimestampTz close_at;		/* of the current one */
	TimestampTz half_at;		/* when half will have expired */
	TimestampTz soon_at;		/* when those of nsoon will have */
} Sample;

static void
take_sample(const Situation *now, int slot, TimestampTz time, Sample *sample)
{
	Oid			types[3] = {TIMESTAMPTZOID, FLOAT4OID, TIMESTAMPTZOID};
	Datum		values[3];
	char		nulls[3] = {' ', ' ', ' '};
	SagaOwnerSwitch owner;
	double		share;

	memset(sample, 0, sizeof(*sample));
	sample->nblocks = count_blocks(slot);
	if (sample->nblocks == 0)
		return;
	share = Min(1.0, (double) SAMPLE_BLOCKS / sample->nblocks);
	values[0] = TimestampTzGetDatum(time);
	values[1] = Float4GetDatum((float4) (100.0 * share));
	values[2] = TimestampTzGetDatum(now->opened_at[slot]);
	if (now->opened_at[slot] == 0)
		nulls[2] = 'n';
	enter_owner(&owner);
	if (execute(sample_leaf, slot, 3, types, values, nulls, 0) > 0)
	{
		sample->n = int64_at(0, 1);
		sample->nforeign = int64_at(0, 2);
		sample->nexpired = int64_at(0, 3);
		sample->nsoon = int64_at(0, 4);
		sample->close_at = time_at(0, 5);
		sample->half_at = time_at(0, 6);
		sample->soon_at = time_at(0, 7);
	}
	{
		Oid			note_types[5] = {INT2OID, TIMESTAMPTZOID, INT8OID, INT8OID,
		BOOLOID};
		Datum		note[5] = {
			Int16GetDatum(slot), TimestampTzGetDatum(time),
			Int64GetDatum((int64) (sample->n / share)),
			Int64GetDatum((int64) (sample->nexpired / share)),
			BoolGetDatum(sample->nforeign > 0)
		};

		(void) execute(note_look, 0, 5, note_types, note, NULL, 0);
	}
	saga_owner_leave(&owner);
}

/* Is it worth while to empty this leaf now?  Lowers *next to when it may be. */
static bool
is_worth_it(const Sample *sample, TimestampTz *next)
{
	if (sample->nforeign > 0)
		return false;
	if (2 * sample->nexpired < sample->n)
	{
		*next = Min(*next, sample->half_at);
		return false;
	}
	if (sample->nsoon > sample->nexpired &&
		2 * (sample->nsoon - sample->nexpired) >= sample->n - sample->nexpired)
	{
		*next = Min(*next, sample->soon_at);
		return false;
	}
	return true;
}

/* New sagas go to the next slot of the ring that is empty, if there is one. */
static void
rotate(Run *run, const Sample *samples, TimestampTz time)
{
	int			current = run->now.current;
	Oid			types[1] = {INT2OID};
	Datum		values[1];
	SagaOwnerSwitch owner;
	int			next = -1;

	for (int i = 1; i < RING && next < 0; i++)
		if (samples[(current + i) % RING].nblocks == 0)
			next = (current + i) % RING;
	if (next < 0)
		return;
	values[0] = Int16GetDatum(next);
	/* everybody has the slot in memory */
	saga_owner_invalidate();
	enter_owner(&owner);
	(void) execute(set_current, 0, 1, types, values, NULL, 0);
	change_slot(close_slot, current, time);
	change_slot(open_slot, next, time);
	saga_owner_leave(&owner);
	saga_tables_forget_names();
	run->now.current = next;
	run->now.generation[current]++;
	run->now.generation[next]++;
	jobs[next].state = JOB_NONE;
}

/* Survivors go to the other slot from now on; false if that is not empty. */
static bool
exchange_kept(Run *run, const Sample *samples, TimestampTz time)
{
	int			kept = run->now.kept;
	int			other = kept == FIRST_KEPT ? SECOND_KEPT : FIRST_KEPT;
	SagaOwnerSwitch owner;

	if (samples[other].nblocks != 0)
		return false;
	enter_owner(&owner);
	change_slot(close_slot, kept, time);
	change_slot(open_slot, other, time);
	saga_owner_leave(&owner);
	run->now.kept = other;
	run->now.generation[kept]++;
	run->now.generation[other]++;
	return true;
}

static void
forget_writers(Job *job)
{
	if (job->writers != NULL)
		pfree(job->writers);
	job->writers = NULL;
	job->nwriters = 0;
}

static void
start_job(const Situation *now, int slot)
{
	Job		   *job = &jobs[slot];
	const char *noted = job->noted;

	forget_writers(job);
	memset(job, 0, sizeof(*job));
	job->state = JOB_START;
	job->relid = saga_tables_names()->tables[SAGA_TABLE_SAGA][slot];
	job->generation = now->generation[slot];
	job->settings = now->settings;
	job->noted = noted;
	ItemPointerSet(&job->scanned_to, 0, 0);
}

/* Is what is remembered of it still about this slot? */
static bool
job_counts(const Situation *now, int slot)
{
	const Job  *job = &jobs[slot];

	return job->state != JOB_NONE && slot != now->current &&
		slot != now->kept && job->generation == now->generation[slot] &&
		job->relid == saga_tables_names()->tables[SAGA_TABLE_SAGA][slot];
}

/*
 * Look at all leaves: close and open slots, start jobs; "again" closes none.
 * Returns when there may be something new to do; DT_NOEND if there is nothing at
 * all.
 */
static TimestampTz
look(Run *run, bool again)
{
	Sample		samples[SAGA_NSLOTS];
	TimestampTz time = GetCurrentTimestamp();
	TimestampTz next = DT_NOEND;
	bool		any = false;

	begin_transaction(run);
	if (!read_situation(run))
	{
		commit_transaction(run);
		return run->busy ? time + RETRY_MIN : DT_NOEND;
	}
	for (int slot = 0; slot < SAGA_NSLOTS; slot++)
	{
		take_sample(&run->now, slot, time, &samples[slot]);
		any |= samples[slot].nblocks > 0;
	}
	if (samples[run->now.current].n > 0)
	{
		if (samples[run->now.current].close_at <= time && !again)
			rotate(run, samples, time);
		else
			next = Min(next, samples[run->now.current].close_at);
	}
	for (int slot = 0; slot < SAGA_NSLOTS; slot++)
	{
		if (samples[slot].nblocks == 0)
		{
			jobs[slot].state = JOB_NONE;
			continue;
		}
		if (slot == run->now.current)
			continue;
		if (job_counts(&run->now, slot) ||
			!is_worth_it(&samples[slot], &next) ||
			(slot == run->now.kept && !exchange_kept(run, samples, time)))
			continue;
		start_job(&run->now, slot);
	}
	commit_transaction(run);
	if (!any || saga_retention_interval == 0)
		return any ? time + USECS_PER_HOUR : DT_NOEND;
	next = Min(next, time + saga_retention_interval * USECS_PER_SEC);
	return Max(next, time + Min(LOOK_MIN,
								saga_retention_interval * USECS_PER_SEC));
}


/* ---- moving ------------------------------------------------------------------ */

/* Rows of one table, on their way. */
typedef struct Move
{
	SagaTable  *from;
	SagaTable  *to;
	int			column;			/* that has the slot */
	int			slot;
	MemoryContext memory;		/* reset with each row */
	bool		is_step;
	bool	   *asks;
} Move;

static void
insert_moved(Move *move, Datum *values, bool *nulls)
{
	MemoryContext old = MemoryContextSwitchTo(move->memory);

	values[move->column] = Int16GetDatum(move->slot);
	saga_table_insert(move->to, values, nulls);
	ExecClearTuple(move->to->slot);
	MemoryContextSwitchTo(old);
	MemoryContextReset(move->memory);
}

static void
move_row(TupleTableSlot *slot, void *arg)
{
	Move	   *move = arg;
	Datum		values[STEP_NCOLUMNS];
	bool		nulls[STEP_NCOLUMNS];
	int			n = slot->tts_tupleDescriptor->natts;
	ItemPointerData tid = slot->tts_tid;

	Assert(n <= (int) lengthof(values));
	CHECK_FOR_INTERRUPTS();
	memcpy(values, slot->tts_values, n * sizeof(Datum));
	memcpy(nulls, slot->tts_isnull, n * sizeof(bool));
	if (move->is_step && !nulls[STEP_TASK_ID] &&
		saga_tables_label(saga_tables_names()->op_status, SAGA_NOP_STATUS,
						  values[STEP_STATUS]) == SAGA_OP_RUNNING)
		*move->asks = true;
	insert_moved(move, values, nulls);
	saga_table_delete(move->from, &tid);
}

/* All that belongs to a saga whose row is locked; true if a task of it is out. */
static bool
move_saga(SagaTables *tables, Snapshot snapshot, HeapTuple tuple, int64 id,
		  int from, int to, MemoryContext memory)
{
	static const struct
	{
		SagaTableKind kind;
		int			column;
	}			parts[] = {
		{SAGA_TABLE_STEP, STEP_SLOT},
		{SAGA_TABLE_ATTEMPT, ATTEMPT_SLOT},
		{SAGA_TABLE_HISTORY, HISTORY_SLOT}
	};
	bool		asks = false;
	Move		move = {.slot = to,.memory = memory,.asks = &asks};
	Datum		values[SAGA_NCOLUMNS];
	bool		nulls[SAGA_NCOLUMNS];
	ItemPointerData tid = tuple->t_self;

	for (int i = 0; i < (int) lengthof(parts); i++)
	{
		move.from = saga_tables_get(tables, parts[i].kind, from);
		move.to = saga_tables_get(tables, parts[i].kind, to);
		move.column = parts[i].column;
		move.is_step = parts[i].kind == SAGA_TABLE_STEP;
		saga_table_scan(move.from, snapshot, id, move_row, &move);
	}
	move.from = saga_tables_get(tables, SAGA_TABLE_SAGA, from);
	move.to = saga_tables_get(tables, SAGA_TABLE_SAGA, to);
	move.column = SAGA_SLOT;
	heap_deform_tuple(tuple, RelationGetDescr(move.from->rel), values, nulls);
	insert_moved(&move, values, nulls);
	saga_table_delete(move.from, &tid);
	return asks;
}

static void
note_moved(Run *run, Relation rel, HeapTuple tuple, int slot, bool asks)
{
	TupleDesc	desc = RelationGetDescr(rel);
	Moved	   *moved = &run->moved[run->nmoved];
	bool		isnull;
	Datum		due_at = heap_getattr(tuple, SAGA_DUE_AT + 1, desc, &isnull);

	if (isnull)
		return;
	moved->due_at = DatumGetTimestampTz(due_at);
	moved->role = DatumGetObjectId(heap_getattr(tuple, SAGA_ROLE + 1, desc,
												&isnull));
	moved->ref = (SagaRef)
	{
		.id = DatumGetInt64(heap_getattr(tuple, SAGA_ID + 1, desc, &isnull)),
		.slot = slot,
		.definition = DatumGetInt32(heap_getattr(tuple, SAGA_DEFINITION_ID + 1,
												 desc, &isnull)),
		.suspect = DatumGetBool(heap_getattr(tuple, SAGA_SUSPECT + 1, desc,
											 &isnull))
	};
	moved->asks = asks;
	run->nmoved++;
}

/*
 * Move the survivors that are free; returns how many were not moved, and in
 * *nended how many of these are final.  First all are locked, each in its newest
 * version; what hangs on them is read with a newer snapshot, as executors do.
 */
static int
move_survivors(Run *run, int slot, const Found *found, int *nended)
{
	SagaTables	tables = {.lockmode = RowExclusiveLock};
	HeapTuple  *tuples = palloc0(found->nsurvivors * sizeof(HeapTuple));
	MemoryContext memory = AllocSetContextCreate(run->memory, "saga row",
												 ALLOCSET_DEFAULT_SIZES);
	SagaTable  *table;
	Snapshot	snapshot;
	int			nmoved = 0;

	(void) saga_tables_names();
	snapshot = saga_tables_push_snapshot();
	table = saga_tables_get(&tables, SAGA_TABLE_SAGA, slot);
	for (int i = 0; i < found->nsurvivors; i++)
		if (saga_table_lock(table, snapshot, found->survivors[i]))
			tuples[i] = ExecCopySlotHeapTuple(table->slot);
	PopActiveSnapshot();

	snapshot = saga_tables_push_snapshot();
	for (int i = 0; i < found->nsurvivors; i++)
	{
		bool		asks;

		if (tuples[i] == NULL)
		{
			*nended += found->ended[i];
			continue;
		}
		asks = move_saga(&tables, snapshot, tuples[i], found->survivors[i], slot,
						 run->now.kept, memory);
		note_moved(run, table->rel, tuples[i], run->now.kept, asks);
		nmoved++;
	}
	PopActiveSnapshot();
	saga_tables_close(&tables);
	if (nmoved > 0)
	{
		SagaOwnerSwitch owner;

		enter_owner(&owner);
		change_slot(note_move, slot, 0);
		saga_owner_leave(&owner);
	}
	run->done->moved += nmoved;
	return found->nsurvivors - nmoved;
}

/* Returns how many are still there. */
static int
delete_found_keys(const Found *found)
{
	Oid			types[3] = {INT4ARRAYOID, TEXTARRAYOID, INT8ARRAYOID};
	Datum		values[3];
	SagaOwnerSwitch owner;
	int			n = found->nkeys;

	if (n == 0)
		return 0;
	values[0] = PointerGetDatum(construct_array(found->definitions, n, INT4OID,
												sizeof(int32), true,
												TYPALIGN_INT));
	values[1] = PointerGetDatum(construct_array(found->keys, n, TEXTOID, -1,
												false, TYPALIGN_INT));
	values[2] = PointerGetDatum(construct_array(found->ids, n, INT8OID,
												sizeof(int64),
												FLOAT8PASSBYVAL,
												TYPALIGN_DOUBLE));
	enter_owner(&owner);
	n -= (int) execute(delete_keys, 0, 3, types, values, NULL, 0);
	saga_owner_leave(&owner);
	return n;
}

/* Those that were moved and may have missed a wake-up, because who was to act
 * on it found us at the row. */
static void
wake_moved(Run *run)
{
	TimestampTz now = GetCurrentTimestamp();
	SagaTable  *messages;
	Snapshot	snapshot;

	if (run->nmoved == 0)
		return;
	begin_transaction(run);
	(void) saga_tables_names();
	snapshot = saga_tables_push_snapshot();
	messages = saga_table_open(SAGA_TABLE_MESSAGE, 0, AccessShareLock);
	for (int i = 0; i < run->nmoved; i++)
	{
		Moved	   *moved = &run->moved[i];

		if (moved->due_at <= now || moved->asks ||
			saga_table_fetch_id(messages, snapshot, moved->ref.id))
			saga_wake_now(moved->role, &moved->ref, true);
	}
	saga_table_close(messages);
	PopActiveSnapshot();
	run->nmoved = 0;
	commit_transaction(run);
}


/* ---- emptying ------------------------------------------------------------------ */

/* Come back to the job later: what it waits for is not to be had now. */
static void
put_off(Job *job, const char *waits_for, TimestampTz pause)
{
	job->refusals++;
	job->waits_for = waits_for;
	if (pause == 0)
		pause = Min(RETRY_MAX, RETRY_MIN << Min(job->refusals / 4, 10));
	job->retry_at = GetCurrentTimestamp() + pause;
}

static void
start_again(Job *job, const char *waits_for, TimestampTz pause)
{
	job->state = JOB_START;
	put_off(job, waits_for, pause);
}

/* A saga that ends between two statements is found by both. */
static bool
is_known(const Found *found, int64 id)
{
	for (int i = 0; i < found->nsurvivors; i++)
		if (found->survivors[i] == id)
			return true;
	return false;
}

/* Add the rows that a statement has returned. */
static void
add_found(Found *found, uint64 n, MemoryContext memory)
{
	for (uint64 i = 0; i < n; i++)
	{
		bool		isnull;
		bool		expired = bool_at(i, 5);
		MemoryContext old;

		found->foreign |= bool_at(i, 7);
		if (is_known(found, int64_at(i, 1)))
			continue;
		if (!expired && found->nsurvivors == MOVE_MAX)
		{
			found->full = true;
			return;
		}
		found->last = *(ItemPointer) DatumGetPointer(column(i, 2, &isnull));
		if (!expired)
		{
			found->ended[found->nsurvivors] = bool_at(i, 8);
			found->survivors[found->nsurvivors++] = int64_at(i, 1);
			continue;
		}
		found->nexpired++;
		if (!bool_at(i, 6))
			continue;
		old = MemoryContextSwitchTo(memory);
		found->definitions[found->nkeys] = column(i, 3, &isnull);
		found->ids[found->nkeys] = Int64GetDatum(int64_at(i, 1));
		found->keys[found->nkeys++] =
			CStringGetTextDatum(TextDatumGetCString(column(i, 4, &isnull)));
		MemoryContextSwitchTo(old);
	}
}

static Found *
make_found(int room)
{
	Found	   *found = palloc0(sizeof(Found));

	found->definitions = palloc(room * sizeof(Datum));
	found->keys = palloc(room * sizeof(Datum));
	found->ids = palloc(room * sizeof(Datum));
	return found;
}

/* Deal with what was found; returns how many could not be, and in *nended how
 * many of these are final. */
static int
deal_with(Run *run, int slot, const Found *found, int *nended)
{
	int			left = 0;
	int			nkeys;

	*nended = 0;
	if (found->nsurvivors > 0)
		left += move_survivors(run, slot, found, nended);
	nkeys = delete_found_keys(found);
	*nended += nkeys;
	return left + nkeys;
}

/* Note who may have written in the leaf and has not committed. */
static void
do_start(Job *job)
{
	VirtualTransactionId *writers;
	LOCKTAG		tag;

	forget_writers(job);
	job->started_at = GetCurrentTimestamp();
	SET_LOCKTAG_RELATION(tag, MyDatabaseId, job->relid);
	writers = GetLockConflicts(&tag, ShareLock, &job->nwriters);
	if (job->nwriters > 0)
	{
		Size		size = job->nwriters * sizeof(VirtualTransactionId);

		job->writers = MemoryContextAlloc(TopMemoryContext, size);
		memcpy(job->writers, writers, size);
	}
	job->incomplete = false;
	job->nexpired = 0;
	ItemPointerSet(&job->scanned_to, 0, 0);
	job->state = JOB_WAIT;
}

static void
do_wait(Job *job)
{
	while (job->nwriters > 0)
	{
		if (!VirtualXactLock(job->writers[job->nwriters - 1], false))
		{
			put_off(job, waits_for_lock, 0);
			return;
		}
		job->nwriters--;
	}
	forget_writers(job);
	job->refusals = 0;
	job->state = JOB_SCAN;
}

static void
do_scan(Run *run, Job *job, int slot)
{
	Oid			types[3] = {TIMESTAMPTZOID, TIDOID, TIDOID};
	ItemPointerData from = job->scanned_to;
	ItemPointerData to;
	BlockNumber nblocks = count_blocks(slot);
	Found	   *found = make_found(SCAN_ROWS);
	SagaOwnerSwitch owner;
	Datum		values[3];
	BlockNumber end;
	int			nended;
	uint64		n;

	end = Min(ItemPointerGetBlockNumberNoCheck(&from) + SCAN_BLOCKS, nblocks);
	ItemPointerSet(&to, end, 0);
	values[0] = TimestampTzGetDatum(GetCurrentTimestamp());
	values[1] = PointerGetDatum(&from);
	values[2] = PointerGetDatum(&to);
	enter_owner(&owner);
	n = execute(scan_rows, slot, 3, types, values, NULL, SCAN_ROWS);
	add_found(found, n, run->memory);
	saga_owner_leave(&owner);
	if (found->foreign)
	{
		job->state = JOB_NONE;
		return;
	}
	(void) deal_with(run, slot, found, &nended);
	job->incomplete |= nended > 0;
	job->nexpired += found->nexpired;
	if (found->full || n == SCAN_ROWS)
		job->scanned_to = found->last;
	else
		job->scanned_to = to;
	if (!found->full && n < SCAN_ROWS && end == nblocks)
	{
		job->nblocks = nblocks;
		job->state = JOB_FINISH;
	}
}

/* Those that are not final, and those that have ended since the start. */
static Found *
find_rest(Run *run, const Job *job, int slot, uint64 *nrecent)
{
	Oid			types[2] = {TIMESTAMPTZOID, TIMESTAMPTZOID};
	Datum		values[2];
	Found	   *found = make_found(RECENT_MAX);
	SagaOwnerSwitch owner;

	values[0] = TimestampTzGetDatum(GetCurrentTimestamp());
	values[1] = TimestampTzGetDatum(job->started_at - CLOCK_MARGIN);
	enter_owner(&owner);
	add_found(found, execute(find_unfinished, slot, 1, types, values, NULL,
							 MOVE_MAX), run->memory);
	set_option("enable_bitmapscan", "on", GUC_ACTION_SAVE);
	*nrecent = execute(find_recent, slot, 2, types, values, NULL, RECENT_MAX);
	if (*nrecent < RECENT_MAX)
		add_found(found, *nrecent, run->memory);
	saga_owner_leave(&owner);
	return found;
}

/* Does every snapshot see what was moved where it is now? */
static bool
moves_are_old(const Situation *now, int slot)
{
	uint64		moved = now->moved_xid[slot];
	uint64		next = U64FromFullTransactionId(ReadNextFullTransactionId());
	TransactionId oldest;
	Relation	rel;

	if (moved == 0 || next - moved > PG_INT32_MAX)
		return true;
	rel = table_open(saga_tables_names()->tables[SAGA_TABLE_SAGA][slot],
					 AccessShareLock);
	oldest = GetOldestNonRemovableTransactionId(rel);
	table_close(rel, NoLock);
	return TransactionIdPrecedes((TransactionId) moved, oldest);
}

static void
do_finish(Run *run, Job *job, int slot)
{
	TimestampTz begun;
	uint64		nrecent;
	Found	   *found;
	int			nended;
	int			left;

	if (count_blocks(slot) > job->nblocks)
	{
		job->state = JOB_SCAN;
		return;
	}
	if (!job->summarized)
	{
		SagaOwnerSwitch owner;

		enter_owner(&owner);
		(void) execute(summarize, slot, 0, NULL, NULL, NULL, 0);
		saga_owner_leave(&owner);
		job->summarized = true;
	}
	begun = GetCurrentTimestamp();
	found = find_rest(run, job, slot, &nrecent);
	if (found->foreign)
	{
		job->state = JOB_NONE;
		return;
	}
	if (nrecent == RECENT_MAX)
	{
		start_again(job, waits_for_sagas, CLOCK_MARGIN);
		return;
	}
	left = deal_with(run, slot, found, &nended);
	if (left > 0)
		put_off(job, waits_for_sagas, 0);
	else if (job->incomplete)
		start_again(job, waits_for_sagas, 0);
	else if (found->nsurvivors == 0 && found->nkeys == 0)
	{
		if (!moves_are_old(&run->now, slot))
			put_off(job, waits_for_snapshot, 0);
		else if (GetCurrentTimestamp() - begun > CHECK_TIME &&
				 job->slow_checks++ < CHECK_TRIES)
			put_off(job, waits_for_vacuum, USECS_PER_SEC);
		else
			job->state = JOB_TRUNCATE;
	}
}

/*
 * Lock the four leaves and what their values are stored in, which autovacuum
 * locks by itself.  Once in a while the first lock is waited for, with nothing
 * held: where there is always somebody it would never be had else.
 */
static bool
lock_leaves(const Job *job, int slot)
{
	const SagaNames *names = saga_tables_names();

	if (job->locks_refused >= FIRM_AFTER)
		LockRelationOid(job->relid, AccessExclusiveLock);
	for (int kind = SAGA_TABLE_SAGA; kind <= SAGA_TABLE_HISTORY; kind++)
	{
		Oid			relid = names->tables[kind][slot];
		Relation	rel;
		Oid			toast;

		if (!ConditionalLockRelationOid(relid, AccessExclusiveLock))
			return false;
		rel = table_open(relid, NoLock);
		toast = rel->rd_rel->reltoastrelid;
		table_close(rel, NoLock);
		if (OidIsValid(toast) &&
			!ConditionalLockRelationOid(toast, AccessExclusiveLock))
			return false;
	}
	return true;
}

static void
truncate_leaves(int slot)
{
	SagaOwnerSwitch owner;
	int			result;

	enter_owner(&owner);
	result = SPI_execute(psprintf("TRUNCATE saga.saga_%d, saga.step_%d,"
								  " saga.attempt_%d, saga.history_%d",
								  slot, slot, slot, slot), false, 0);
	if (result != SPI_OK_UTILITY)
		elog(ERROR, "could not truncate slot %d: %s", slot,
			 SPI_result_code_string(result));
	change_slot(note_empty, slot, GetCurrentTimestamp());
	saga_owner_leave(&owner);
}

static void
do_truncate(Run *run, Job *job, int slot)
{
	uint64		nrecent;
	Found	   *found;

	/* the locks must not wait for a standby */
	set_option("synchronous_commit", "local", GUC_ACTION_LOCAL);
	if (!lock_leaves(job, slot))
	{
		job->locks_refused++;
		put_off(job, waits_for_lock, 0);
		job->state = JOB_FINISH;
		return;
	}
	found = find_rest(run, job, slot, &nrecent);
	if (found->foreign || nrecent == RECENT_MAX || found->nsurvivors > 0 ||
		found->nkeys > 0 || count_blocks(slot) > job->nblocks ||
		!moves_are_old(&run->now, slot))
	{
		job->state = JOB_FINISH;
		return;
	}
	truncate_leaves(slot);
	run->done->removed += job->nexpired;
	run->done->leaves++;
	was_emptied = true;
	job->state = JOB_NONE;
}

/* What came for sagas that are gone. */
static void
remove_orphans(Run *run)
{
	Oid			types[1] = {TIMESTAMPTZOID};
	Datum		values[1];
	SagaOwnerSwitch owner;

	begin_transaction(run);
	if (read_situation(run))
	{
		values[0] = TimestampTzGetDatum(GetCurrentTimestamp() - USECS_PER_DAY);
		enter_owner(&owner);
		for (int i = 0; i < (int) lengthof(delete_orphans); i++)
			(void) execute(delete_orphans[i], 0, 1, types, values, NULL, 0);
		saga_owner_leave(&owner);
	}
	commit_transaction(run);
}

/* One transaction of a job. */
static void
advance_job(Run *run, int slot)
{
	Job		   *job = &jobs[slot];
	bool		truncates = job->state == JOB_TRUNCATE;

	begin_transaction(run);
	if (!read_situation(run))
		put_off(job, NULL, 0);
	else if (!job_counts(&run->now, slot))
		job->state = JOB_NONE;
	else
	{
		if (job->settings != run->now.settings)
		{
			/* perhaps it is not worth it any more */
			job->state = JOB_NONE;
			next_look = 0;
		}
		switch (job->state)
		{
			case JOB_NONE:
				break;
			case JOB_START:
				do_start(job);
				break;
			case JOB_WAIT:
				do_wait(job);
				break;
			case JOB_SCAN:
				do_scan(run, job, slot);
				break;
			case JOB_FINISH:
				do_finish(run, job, slot);
				break;
			case JOB_TRUNCATE:
				do_truncate(run, job, slot);
				break;
		}
	}
	commit_transaction(run);
	wake_moved(run);
	if (truncates && job->state == JOB_NONE)
		remove_orphans(run);
}


/* ---- a run ---------------------------------------------------------------------- */

/* Let the view say what a job waits for. */
static void
note_waits(Run *run)
{
	Oid			types[2] = {INT2OID, TEXTOID};
	bool		any = false;

	for (int slot = 0; slot < SAGA_NSLOTS; slot++)
	{
		if (jobs[slot].state == JOB_NONE)
			jobs[slot].noted = jobs[slot].waits_for = NULL;
		else
			any |= jobs[slot].noted != jobs[slot].waits_for;
	}
	if (!any)
		return;
	begin_transaction(run);
	if (read_situation(run))
	{
		SagaOwnerSwitch owner;

		enter_owner(&owner);
		for (int slot = 0; slot < SAGA_NSLOTS; slot++)
		{
			Job		   *job = &jobs[slot];
			Datum		values[2] = {Int16GetDatum(slot), (Datum) 0};

			if (job->noted == job->waits_for)
				continue;
			if (job->waits_for != NULL)
				values[1] = CStringGetTextDatum(job->waits_for);
			(void) execute(note_wait, 0, 2, types, values,
						   job->waits_for == NULL ? " n" : NULL, 0);
			job->noted = job->waits_for;
		}
		saga_owner_leave(&owner);
	}
	commit_transaction(run);
}

/* An error that says no more than that it is to be tried again. */
static bool
is_passing(const ErrorData *error)
{
	return error->sqlerrcode == ERRCODE_LOCK_NOT_AVAILABLE ||
		ERRCODE_TO_CATEGORY(error->sqlerrcode) == ERRCODE_TRANSACTION_ROLLBACK;
}

/* One step of whatever is to be done: of the job of that slot, or a look.  An
 * error comes back as data, with the transaction rolled back. */
static ErrorData *
try_step(Run *run, int slot)
{
	ErrorData  *volatile error = NULL;

	PG_TRY();
	{
		if (slot >= 0)
			advance_job(run, slot);
		else
		{
			bool		again = next_look > GetCurrentTimestamp();

			was_emptied = false;
			next_look = look(run, again);
		}
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(run->memory);
		error = CopyErrorData();
		FlushErrorState();
		saga_owner_abandon();
		run->driver->abort();
		saga_tables_forget_names();
		run->nmoved = 0;
		MemoryContextSwitchTo(run->memory);
	}
	PG_END_TRY();
	return error;
}

/* After an error: later. */
static void
report(Run *run, int slot, ErrorData *error, bool raise)
{
	if (!is_passing(error))
	{
		if (raise || ERRCODE_TO_CATEGORY(error->sqlerrcode) ==
			ERRCODE_OPERATOR_INTERVENTION)
			ReThrowError(error);
		ereport(LOG,
				errcode(error->sqlerrcode),
				errmsg("could not remove sagas that ended long ago: %s",
					   error->message),
				error->detail ? errdetail_internal("%s", error->detail) : 0);
	}
	if (slot >= 0 && !is_passing(error))
		start_again(&jobs[slot], NULL, USECS_PER_HOUR);
	else if (slot >= 0)
	{
		if (jobs[slot].state == JOB_TRUNCATE)
			jobs[slot].state = JOB_FINISH;
		put_off(&jobs[slot], waits_for_lock, 0);
	}
	else
		next_look = GetCurrentTimestamp() +
			(is_passing(error) ? USECS_PER_SEC : USECS_PER_HOUR);
	FreeErrorData(error);
	MemoryContextReset(run->memory);
}

/* The job that is to go on; -1 = none.  *next: when the first of the others is. */
static int
choose_job(TimestampTz now, TimestampTz *next)
{
	int			chosen = -1;

	*next = DT_NOEND;
	for (int slot = 0; slot < SAGA_NSLOTS; slot++)
	{
		if (jobs[slot].state == JOB_NONE)
			continue;
		if (jobs[slot].retry_at <= now && chosen < 0)
			chosen = slot;
		else
			*next = Min(*next, jobs[slot].retry_at);
	}
	return chosen;
}

void
saga_retention_look_now(void)
{
	next_look = 0;
	for (int slot = 0; slot < SAGA_NSLOTS; slot++)
		jobs[slot].retry_at = 0;
}

TimestampTz
saga_retention_run(const SagaDriver *driver, TimestampTz until, bool raise,
				   SagaRetained *done)
{
	MemoryContext caller = CurrentMemoryContext;
	Run			run = {.driver = driver,.done = done};
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz next = DT_NOEND;
	int			slot;

	run.memory = AllocSetContextCreate(TopMemoryContext, "saga retention",
									   ALLOCSET_DEFAULT_SIZES);
	/* there was nothing at all: who asks again knows that there may be now */
	if (next_look == DT_NOEND)
		next_look = 0;
	PG_TRY();
	{
		do
		{
			ErrorData  *error = NULL;

			CHECK_FOR_INTERRUPTS();
			slot = choose_job(now, &next);
			if (slot < 0 && next_look > now && !was_emptied)
				break;
			error = try_step(&run, slot);
			if (error != NULL)
				report(&run, slot, error, raise);
			now = GetCurrentTimestamp();
		} while (now < until);
		note_waits(&run);
	}
	PG_FINALLY();
	{
		MemoryContextSwitchTo(caller);
		MemoryContextDelete(run.memory);
	}
	PG_END_TRY();
	done->waits_for = NULL;
	for (slot = 0; slot < SAGA_NSLOTS; slot++)
		if (jobs[slot].state != JOB_NONE && jobs[slot].waits_for != NULL)
			done->waits_for = jobs[slot].waits_for;
	if (choose_job(now, &next) >= 0 || was_emptied)
		return now;
	return Min(next, next_look);
}
