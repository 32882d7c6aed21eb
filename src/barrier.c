/*
 * barrier.c
 *		Owns what was done here for sagas of other databases: the rows of
 *		saga.barrier and saga.barrier_horizon.
 *
 * An operation is known by the token of its saga, step, element, round, and
 * which one it is.  Its row is written in the transaction that does it, so it is
 * there if and only if that has committed, whatever dies when; and it has the
 * answer, for whoever asks again.
 *
 * Lock.  All that is done for one element of a step in one round is serialized
 * by an object lock on its hash, until the transaction ends; the rows are looked
 * for after it was taken, with a newer snapshot.  So a copy of a call waits for
 * the first one, and finds its row or, if that was rolled back, none.  A
 * compensation waits for its action, and an action that comes late for its
 * compensation: one lock, so these never wait in a circle.  Two elements may
 * have one hash; then they wait for each other without need.  Because of the
 * lock the row can be written when all is known, once, with the answer; the
 * primary key is the second line of defence.  (INSERT ... ON CONFLICT would
 * have to write it before, and again with the answer.)  Known limit: a
 * transaction holds a lock for each call that it makes.
 *
 * Void.  A compensation whose action has no row writes that row, void: an action
 * that was on its way, or is sent again by mistake, is refused.
 *
 * Roles.  What one role has had done is not repeated, undone or answered for
 * another: the row says whose it is.
 *
 * Horizon.  A coordinator says from time to time which sagas have ended long
 * ago: all that were begun before some time, but for a list of those kept.  What
 * it says is remembered, for each coordinator and role, before rows are deleted:
 * a call that comes late is refused where its row may be gone.  That only goes
 * forward, whatever order such news comes in, and whatever a coordinator that
 * was restored from a backup has forgotten about what it said: who was not
 * listed once is never kept again.  Since nobody knows when a listed saga began,
 * each has a time with it: it counts for calls of sagas begun since.  That is
 *		- -infinity, for all in the first list;
 *		- as it was, for those that the list before had;
 *		- else the "before" of that: a saga begun before then was not kept.
 * News with an earlier "before" changes nothing.  Rows are deleted by what is
 * remembered, never by what was said, so nothing is that would not be refused.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "barrier.h"
#include "errcodes.h"
#include "owner.h"
#include "statement.h"

/* What there is of an element of a step. */
typedef struct Found
{
	const SagaBarrierCall *call;
	bool		there[SAGA_NOPERATION];
	bool		is_void;		/* the action */
	const char *role_name;
	Jsonb	   *answer;			/* of the operation that was asked for */
} Found;

/* Remember how far things may be forgotten. */
static SagaStatement move_horizon = {
	"INSERT INTO saga.barrier_horizon AS h"
	" (coordinator, role_name, before, kept, kept_since)"
	" SELECT $1, $2, $3, n.kept, pg_catalog.array_fill("
	"  '-infinity'::pg_catalog.timestamptz, ARRAY[pg_catalog.cardinality(n.kept)])"
	" FROM (SELECT ARRAY(SELECT DISTINCT k.token"
	"   FROM pg_catalog.unnest($4) AS k(token) ORDER BY k.token) AS kept) n"
	" ON CONFLICT (coordinator, role_name) DO UPDATE"
	" SET before = excluded.before, kept = excluded.kept,"
	"  kept_since = ARRAY(SELECT coalesce(o.since, h.before)"
	"   FROM pg_catalog.unnest(excluded.kept) WITH ORDINALITY AS k(token, n)"
	"   LEFT JOIN ROWS FROM (pg_catalog.unnest(h.kept),"
	"    pg_catalog.unnest(h.kept_since)) AS o(token, since)"
	"   ON o.token = k.token ORDER BY k.n)"
	" WHERE h.before < excluded.before"
	"  OR (h.before = excluded.before AND h.kept <> excluded.kept)",
	4, {UUIDOID, TEXTOID, TIMESTAMPTZOID, UUIDARRAYOID}, NULL
};

static SagaStatement forget = {
	"WITH h AS MATERIALIZED (SELECT h.before, h.kept, h.kept_since"
	"   FROM saga.barrier_horizon h"
	"   WHERE h.coordinator = $1 AND h.role_name = $2),"
	"  k AS MATERIALIZED (SELECT k.token, k.since FROM h,"
	"   ROWS FROM (pg_catalog.unnest(h.kept), pg_catalog.unnest(h.kept_since))"
	"    AS k(token, since))"
	" DELETE FROM saga.barrier WHERE ctid = ANY (ARRAY("
	"  SELECT b.ctid FROM h, saga.barrier b"
	"  WHERE b.coordinator = $1 AND b.role_name = $2 AND b.begun_at < h.before"
	"   AND NOT EXISTS (SELECT FROM k"
	"    WHERE k.token = b.token AND k.since <= b.begun_at)"
	"  LIMIT $3))",
	3, {UUIDOID, TEXTOID, INT8OID}, NULL
};


/* ---- what is there ------------------------------------------------------- */

static void
lock_element(const SagaBarrierCall *call)
{
	uint64		hash;

	hash = hash_bytes_extended((const unsigned char *) call->step,
							   strlen(call->step),
							   ((uint64) call->element << 16) | (uint16) call->round);
	hash = hash_bytes_extended(call->token.data, UUID_LEN, hash);
	LockDatabaseObject(saga_tables_names()->tables[SAGA_TABLE_BARRIER][0],
					   (Oid) hash, (uint16) (hash >> 32), ExclusiveLock);
}

static void
look_at_row(TupleTableSlot *slot, void *arg)
{
	Found	   *found = arg;
	SagaOperation operation;

	operation = saga_tables_label(saga_tables_names()->operation,
								  SAGA_NOPERATION,
								  slot->tts_values[BARRIER_OPERATION]);
	found->there[operation] = true;
	found->role_name = TextDatumGetCString(slot->tts_values[BARRIER_ROLE_NAME]);
	if (operation == SAGA_OPERATION_ACTION)
		found->is_void = DatumGetBool(slot->tts_values[BARRIER_VOID]);
	if (operation == found->call->operation && !slot->tts_isnull[BARRIER_ANSWER])
		found->answer = DatumGetJsonbPCopy(slot->tts_values[BARRIER_ANSWER]);
}

static void
find_rows(SagaBarrier *barrier, Snapshot snapshot, Found *found)
{
	const SagaBarrierCall *call = barrier->call;
	ScanKeyData keys[4];

	memset(found, 0, sizeof(*found));
	found->call = call;
	ScanKeyInit(&keys[0], 1, BTEqualStrategyNumber, F_UUID_EQ,
				UUIDPGetDatum(&call->token));
	ScanKeyInit(&keys[1], 2, BTEqualStrategyNumber, F_TEXTEQ,
				CStringGetTextDatum(call->step));
	ScanKeyInit(&keys[2], 3, BTEqualStrategyNumber, F_INT4EQ,
				Int32GetDatum(call->element));
	ScanKeyInit(&keys[3], 4, BTEqualStrategyNumber, F_INT2EQ,
				Int16GetDatum(call->round));
	saga_table_scan_keys(barrier->table, snapshot, keys, lengthof(keys),
						 look_at_row, found);
}

static void
check_role(const SagaBarrierCall *call, const Found *found)
{
	const char *me = GetUserNameFromId(GetUserId(), false);

	if (found->role_name != NULL && strcmp(found->role_name, me) != 0)
		ereport(ERROR,
				errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				errmsg("permission denied for step \"%s\" of this saga",
					   call->step),
				errdetail("It was called by role \"%s\" before, and now by role \"%s\".",
						  found->role_name, me));
}


/* ---- the horizon --------------------------------------------------------- */

/* Was this saga kept, when the horizon in the slot was set? */
static bool
is_kept(const SagaBarrierCall *call, TupleTableSlot *slot)
{
	Datum	   *tokens;
	Datum	   *since;
	int			n;
	int			nsince;

	deconstruct_array(DatumGetArrayTypeP(slot->tts_values[HORIZON_KEPT]),
					  UUIDOID, UUID_LEN, false, TYPALIGN_CHAR, &tokens, NULL, &n);
	deconstruct_array(DatumGetArrayTypeP(slot->tts_values[HORIZON_KEPT_SINCE]),
					  TIMESTAMPTZOID, sizeof(TimestampTz), FLOAT8PASSBYVAL,
					  TYPALIGN_DOUBLE, &since, NULL, &nsince);
	if (n != nsince)
		elog(ERROR, "horizon has %d tokens and %d times", n, nsince);
	for (int i = 0; i < n; i++)
		if (memcmp(DatumGetUUIDP(tokens[i])->data, call->token.data,
				   UUID_LEN) == 0)
			return call->begun_at >= DatumGetTimestampTz(since[i]);
	return false;
}

/* Nothing was found: may it be that it was forgotten? */
static void
check_horizon(SagaBarrier *barrier, Snapshot snapshot)
{
	const SagaBarrierCall *call = barrier->call;
	SagaTable  *table = saga_tables_get(&barrier->tables,
										SAGA_TABLE_BARRIER_HORIZON, 0);
	ScanKeyData keys[2];
	TimestampTz before;

	ScanKeyInit(&keys[0], 1, BTEqualStrategyNumber, F_UUID_EQ,
				UUIDPGetDatum(&call->coordinator));
	ScanKeyInit(&keys[1], 2, BTEqualStrategyNumber, F_TEXTEQ,
				CStringGetTextDatum(GetUserNameFromId(GetUserId(), false)));
	if (!saga_table_fetch(table, snapshot, keys, lengthof(keys)))
		return;
	before = DatumGetTimestampTz(table->slot->tts_values[HORIZON_BEFORE]);
	if (call->begun_at >= before || is_kept(call, table->slot))
		return;
	ereport(ERROR,
			errcode(ERRCODE_SAGA_FORGOTTEN),
			errmsg("cannot tell whether step \"%s\" of this saga was done",
				   call->step),
			errdetail("The saga began before %s, and what was done for such sagas has been forgotten, since they had ended.",
					  timestamptz_to_str(before)));
}


/* ---- a call ---------------------------------------------------------------- */

static void
write_row(SagaBarrier *barrier, SagaOperation operation, bool is_void,
		  const Jsonb *answer)
{
	const SagaBarrierCall *call = barrier->call;
	Datum		values[BARRIER_NCOLUMNS];
	bool		nulls[BARRIER_NCOLUMNS] = {false};

	values[BARRIER_TOKEN] = UUIDPGetDatum(&call->token);
	values[BARRIER_ELEMENT] = Int32GetDatum(call->element);
	values[BARRIER_ROUND] = Int16GetDatum(call->round);
	values[BARRIER_OPERATION] =
		ObjectIdGetDatum(saga_tables_names()->operation[operation]);
	values[BARRIER_VOID] = BoolGetDatum(is_void);
	values[BARRIER_BEGUN_AT] = TimestampTzGetDatum(call->begun_at);
	values[BARRIER_DONE_AT] = TimestampTzGetDatum(GetCurrentTimestamp());
	values[BARRIER_COORDINATOR] = UUIDPGetDatum(&call->coordinator);
	values[BARRIER_STEP] = CStringGetTextDatum(call->step);
	values[BARRIER_ROLE_NAME] =
		CStringGetTextDatum(GetUserNameFromId(GetUserId(), false));
	values[BARRIER_ANSWER] = PointerGetDatum(answer);
	nulls[BARRIER_ANSWER] = answer == NULL;
	saga_table_insert(barrier->table, values, nulls);
}

static void
report_void(const SagaBarrierCall *call)
{
	ereport(ERROR,
			errcode(ERRCODE_SAGA_VOID),
			errmsg("%s of step \"%s\" came after its compensation",
				   saga_operation_name(call->operation), call->step),
			errdetail("It is never to be done, since nothing would undo it."));
}

/* What is there is known: what follows? */
static SagaBarrierVerdict
judge(const SagaBarrierCall *call, const Found *found)
{
	bool		was_undone = found->is_void ||
		found->there[SAGA_OPERATION_COMPENSATION];

	/* even if it was done: whoever asks does not know what has become of it */
	if (call->operation != SAGA_OPERATION_COMPENSATION && was_undone)
		report_void(call);
	if (found->there[call->operation])
		return SAGA_BARRIER_REPEATED;
	if (call->operation == SAGA_OPERATION_COMPENSATION &&
		(found->is_void || !found->there[SAGA_OPERATION_ACTION]))
		return SAGA_BARRIER_SKIPPED;
	return SAGA_BARRIER_TO_DO;
}

SagaBarrierVerdict
saga_barrier_enter(SagaBarrier *barrier, const SagaBarrierCall *call)
{
	SagaBarrierVerdict verdict;
	Snapshot	snapshot;
	Found		found;

	memset(barrier, 0, sizeof(*barrier));
	barrier->call = call;
	barrier->tables.lockmode = RowExclusiveLock;
	lock_element(call);
	barrier->table = saga_tables_get(&barrier->tables, SAGA_TABLE_BARRIER, 0);

	/* what this transaction has done before counts, too */
	CommandCounterIncrement();
	snapshot = saga_tables_push_snapshot();
	find_rows(barrier, snapshot, &found);
	check_role(call, &found);
	verdict = judge(call, &found);
	if (verdict != SAGA_BARRIER_REPEATED)
		check_horizon(barrier, snapshot);
	PopActiveSnapshot();

	if (verdict == SAGA_BARRIER_SKIPPED)
	{
		if (!found.there[SAGA_OPERATION_ACTION])
			write_row(barrier, SAGA_OPERATION_ACTION, true, NULL);
		write_row(barrier, SAGA_OPERATION_COMPENSATION, false, NULL);
	}
	barrier->answer = found.answer;
	if (verdict != SAGA_BARRIER_TO_DO)
		saga_tables_close(&barrier->tables);
	return verdict;
}

void
saga_barrier_done(SagaBarrier *barrier, const Jsonb *answer)
{
	write_row(barrier, barrier->call->operation, false, answer);
	saga_tables_close(&barrier->tables);
}

void
saga_barrier_leave(SagaBarrier *barrier)
{
	saga_tables_close(&barrier->tables);
}


/* ---- forgetting ------------------------------------------------------------ */

int64
saga_barrier_forget(const pg_uuid_t *coordinator, TimestampTz before,
					Datum kept)
{
	const char *me = GetUserNameFromId(GetUserId(), false);
	SagaOwnerSwitch owner;
	Datum		values[4];
	int64		n;

	values[0] = UUIDPGetDatum(coordinator);
	values[1] = CStringGetTextDatum(me);
	values[2] = TimestampTzGetDatum(before);
	values[3] = kept;
	saga_owner_enter(&owner);
	/* others who say something of the same sagas wait here */
	(void) saga_statement_run(&move_horizon, values, NULL, false, 0);
	values[2] = Int64GetDatum(SAGA_BARRIER_BATCH);
	n = saga_statement_run(&forget, values, NULL, false, 0);
	saga_owner_leave(&owner);
	return n;
}
