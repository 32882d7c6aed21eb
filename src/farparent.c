/*
 * farparent.c
 *		Owns what is known here of parents in other databases: the rows of
 *		saga.remote_parent and saga.child_report.
 *
 * The row of a child is written in the transaction that begins it, and a report
 * in the one that makes it true, so it is there if and only if it is.  It stays
 * until the parent's courier says that it has taken it; one that comes again
 * does no harm.  A report is a row of its own: who writes one never waits for
 * who takes another.
 *
 * An attempt of the step has one child.  If that was undone the next attempt
 * begins another; else, when the answer to the first was lost, it gets the same
 * one.  So of an element of a step one child at most may still do something.
 *
 * A parent that has ended lets its children go.  That is remembered, as a row
 * without a child, so that a child that is begun late is refused: nobody would
 * ever tell it to complete.  Both take a lock on the parent's token first.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

#include "errcodes.h"
#include "farparent.h"
#include "json.h"
#include "owner.h"
#include "shared.h"
#include "statement.h"

/* So many reports, and so many bytes of them, go into one answer; a report that
 * is larger as text than the last leaves its result out. */
#define MAX_REPORTS		500
#define MAX_REPORTS_SIZE	((Size) 4 * 1024 * 1024)
#define MAX_REPORT_TEXT	((Size) 32 * 1024 * 1024)

#define OF_ELEMENT \
	"p.token = $1 AND p.step = $2 AND p.element = $3 AND p.round = $4"

static SagaStatement find_child = {
	"SELECT p.saga_id, p.attempt FROM saga.remote_parent p"
	" WHERE " OF_ELEMENT " ORDER BY p.attempt DESC LIMIT 1",
	4, {UUIDOID, TEXTOID, INT4OID, INT2OID}, NULL
};
static SagaStatement find_end = {
	"SELECT FROM saga.remote_parent p"
	" WHERE p.token = $1 AND p.step = '' AND p.saga_id IS NULL",
	1, {UUIDOID}, NULL
};
static SagaStatement add_child = {
	"INSERT INTO saga.remote_parent (token, step, element, round, coordinator,"
	" role_name, begun_at, attempt, saga_id, parent_id)"
	" VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
	10, {UUIDOID, TEXTOID, INT4OID, INT2OID, UUIDOID, TEXTOID, TIMESTAMPTZOID,
	INT4OID, INT8OID, INT8OID}, NULL
};
/* What was said to the parent's database under another identity is nobody's. */
static SagaStatement move_child = {
	"WITH m AS (UPDATE saga.remote_parent SET attempt = $2, coordinator = $3"
	"  WHERE saga_id = $1 AND (attempt <> $2 OR coordinator <> $3)"
	"  RETURNING saga_id)"
	" DELETE FROM saga.child_report r USING m"
	" WHERE r.saga_id = m.saga_id AND r.coordinator <> $3",
	3, {INT8OID, INT4OID, UUIDOID}, NULL
};
static SagaStatement add_report = {
	"INSERT INTO saga.child_report (saga_id, coordinator, role_name, report)"
	" SELECT p.saga_id, p.coordinator, p.role_name, $2"
	" FROM saga.remote_parent p WHERE p.saga_id = $1 AND NOT p.let_go",
	2, {INT8OID, JSONBOID}, NULL
};
static SagaStatement add_end = {
	"INSERT INTO saga.remote_parent (token, step, element, round, coordinator,"
	" role_name, begun_at, attempt, let_go)"
	" VALUES ($1, '', -1, 0, $2, $3, $4, 0, true) ON CONFLICT DO NOTHING",
	4, {UUIDOID, UUIDOID, TEXTOID, TIMESTAMPTZOID}, NULL
};
static SagaStatement let_go = {
	"WITH g AS (UPDATE saga.remote_parent SET let_go = true"
	"  WHERE saga_id = ANY (ARRAY(SELECT p.saga_id FROM saga.remote_parent p"
	"   WHERE p.token = $1 AND p.role_name = $2 AND NOT p.let_go LIMIT $3))"
	"  RETURNING saga_id),"
	" d AS (DELETE FROM saga.child_report r USING g WHERE r.saga_id = g.saga_id)"
	" SELECT g.saga_id FROM g",
	3, {UUIDOID, TEXTOID, INT8OID}, NULL
};
static SagaStatement let_go_before = {
	"WITH g AS (UPDATE saga.remote_parent SET let_go = true"
	"  WHERE saga_id = ANY (ARRAY(SELECT p.saga_id FROM saga.remote_parent p"
	"   WHERE p.coordinator = $1 AND p.role_name = $2 AND p.begun_at < $3"
	"    AND p.token <> ALL ($4) AND NOT p.let_go"
	"    AND EXISTS (SELECT FROM saga.saga s"
	"     WHERE s.id = p.saga_id AND s.due_at IS NOT NULL) LIMIT $5))"
	"  RETURNING saga_id),"
	" d AS (DELETE FROM saga.child_report r USING g WHERE r.saga_id = g.saga_id)"
	" SELECT g.saga_id FROM g",
	5, {UUIDOID, TEXTOID, TIMESTAMPTZOID, UUIDARRAYOID, INT8OID}, NULL
};
static SagaStatement forget = {
	"WITH g AS (DELETE FROM saga.remote_parent WHERE ctid = ANY (ARRAY("
	"   SELECT p.ctid FROM saga.remote_parent p"
	"   WHERE p.coordinator = $1 AND p.role_name = $2 AND p.begun_at < $3"
	"    AND p.token <> ALL ($4)"
	"    AND NOT EXISTS (SELECT FROM saga.saga s"
	"     WHERE s.id = p.saga_id AND s.due_at IS NOT NULL) LIMIT $5))"
	"  RETURNING saga_id)"
	" DELETE FROM saga.child_report r USING g WHERE r.saga_id = g.saga_id",
	5, {UUIDOID, TEXTOID, TIMESTAMPTZOID, UUIDARRAYOID, INT8OID}, NULL
};
static SagaStatement find_result = {
	"SELECT s.result FROM saga.sagas s WHERE s.saga_id = $1",
	1, {INT8OID}, NULL
};
static SagaStatement read_reports = {
	"SELECT r.id, p.token::pg_catalog.text, p.step, p.element, p.round, p.attempt,"
	" r.report"
	" FROM saga.child_report r JOIN saga.remote_parent p ON p.saga_id = r.saga_id"
	" WHERE r.coordinator = $1 AND r.role_name = $2 ORDER BY r.id",
	2, {UUIDOID, TEXTOID}, NULL
};
static SagaStatement acknowledge = {
	"DELETE FROM saga.child_report r WHERE r.id = ANY ($3)"
	" AND r.coordinator = $1 AND r.role_name = $2",
	3, {UUIDOID, TEXTOID, INT8ARRAYOID}, NULL
};

/* This transaction has reported something. */
static bool has_reported = false;

static Datum
user_name(void)
{
	return CStringGetTextDatum(GetUserNameFromId(GetUserId(), false));
}

static int64
int64_at(uint64 row, int column)
{
	bool		isnull;
	Datum		value = saga_statement_datum(row, column, &isnull);

	return isnull ? 0 : DatumGetInt64(value);
}

static int
int32_at(uint64 row, int column)
{
	bool		isnull;

	return DatumGetInt32(saga_statement_datum(row, column, &isnull));
}

static char *
text_at(uint64 row, int column)
{
	bool		isnull;

	return TextDatumGetCString(saga_statement_datum(row, column, &isnull));
}


/* ---- children ---------------------------------------------------------------- */

static void
set_element(const SagaBarrierCall *call, Datum *values)
{
	values[0] = UUIDPGetDatum(&call->token);
	values[1] = CStringGetTextDatum(call->step);
	values[2] = Int32GetDatum(call->element);
	values[3] = Int16GetDatum(call->round);
}

bool
saga_far_parent_find(const SagaBarrierCall *call, SagaFarChild *child)
{
	SagaOwnerSwitch owner;
	Datum		values[4];
	bool		found;

	set_element(call, values);
	saga_owner_enter(&owner);
	found = saga_statement_run(&find_child, values, NULL, false, 1) > 0;
	if (found)
	{
		child->id = int64_at(0, 1);
		child->attempt = int32_at(0, 2);
	}
	saga_owner_leave(&owner);
	return found;
}

/* Children are begun and let go one after the other. */
static void
lock_parent(const SagaBarrierCall *call, LOCKMODE mode)
{
	uint64		hash = hash_bytes_extended(call->token.data, UUID_LEN, 1);

	LockDatabaseObject(saga_tables_names()->tables[SAGA_TABLE_BARRIER][0],
					   (Oid) hash, (uint16) (hash >> 32), mode);
}

void
saga_far_parent_require(const SagaBarrierCall *call)
{
	SagaOwnerSwitch owner;
	Datum		value = UUIDPGetDatum(&call->token);
	bool		has_ended;

	lock_parent(call, ShareLock);
	saga_owner_enter(&owner);
	has_ended = saga_statement_run(&find_end, &value, NULL, false, 1) > 0;
	saga_owner_leave(&owner);
	if (has_ended)
		ereport(ERROR,
				errcode(ERRCODE_SAGA_VOID),
				errmsg("the child saga of step \"%s\" came after the end of its parent",
					   call->step),
				errdetail("It is never to be begun, since nobody would let it complete."));
}

void
saga_far_parent_add(const SagaBarrierCall *call, const SagaFarChild *child,
					int64 parent_id)
{
	SagaOwnerSwitch owner;
	Datum		values[10];
	char		nulls[10];

	set_element(call, values);
	values[4] = UUIDPGetDatum(&call->coordinator);
	values[5] = user_name();
	values[6] = TimestampTzGetDatum(call->begun_at);
	values[7] = Int32GetDatum(child->attempt);
	values[8] = Int64GetDatum(child->id);
	values[9] = Int64GetDatum(parent_id);
	memset(nulls, ' ', sizeof(nulls));
	if (parent_id == 0)
		nulls[9] = 'n';
	saga_owner_enter(&owner);
	(void) saga_statement_run(&add_child, values, nulls, false, 0);
	saga_owner_leave(&owner);
}

void
saga_far_parent_move(const SagaBarrierCall *call, const SagaFarChild *child)
{
	SagaOwnerSwitch owner;
	Datum		values[3];

	values[0] = Int64GetDatum(child->id);
	values[1] = Int32GetDatum(child->attempt);
	values[2] = UUIDPGetDatum(&call->coordinator);
	saga_owner_enter(&owner);
	(void) saga_statement_run(&move_child, values, NULL, false, 0);
	saga_owner_leave(&owner);
}

/* The ids that the last statement has returned. */
static int
take_ids(uint64 n, int64 *ids)
{
	for (uint64 i = 0; i < n; i++)
		ids[i] = int64_at(i, 1);
	return (int) n;
}

int
saga_far_parent_let_go(const SagaBarrierCall *call, int64 *ids)
{
	SagaOwnerSwitch owner;
	Datum		values[4];
	int			n;

	lock_parent(call, ExclusiveLock);
	values[0] = UUIDPGetDatum(&call->token);
	values[1] = UUIDPGetDatum(&call->coordinator);
	values[2] = user_name();
	values[3] = TimestampTzGetDatum(call->begun_at);
	saga_owner_enter(&owner);
	(void) saga_statement_run(&add_end, values, NULL, false, 0);
	values[1] = values[2];
	values[2] = Int64GetDatum(SAGA_MAX_LET_GO);
	n = take_ids(saga_statement_run(&let_go, values, NULL, false, 0), ids);
	saga_owner_leave(&owner);
	return n;
}

int
saga_far_parent_forget(const pg_uuid_t *coordinator, TimestampTz before,
					   Datum kept, int64 *ids)
{
	SagaOwnerSwitch owner;
	Datum		values[5];
	int			n;

	values[0] = UUIDPGetDatum(coordinator);
	values[1] = user_name();
	values[2] = TimestampTzGetDatum(before);
	values[3] = kept;
	values[4] = Int64GetDatum(SAGA_MAX_LET_GO);
	saga_owner_enter(&owner);
	n = take_ids(saga_statement_run(&let_go_before, values, NULL, false, 0),
				 ids);
	values[4] = Int64GetDatum(SAGA_BARRIER_BATCH);
	(void) saga_statement_run(&forget, values, NULL, false, 0);
	saga_owner_leave(&owner);
	return n;
}


/* ---- reports ------------------------------------------------------------------ */

static void
wake_followers(XactEvent event, void *arg)
{
	static const int64 id = SAGA_FAR_REPORTS;

	(void) arg;
	if (!has_reported)
		return;
	if (event == XACT_EVENT_COMMIT)
		saga_waiters_notify(&id, 1);
	if (event == XACT_EVENT_COMMIT || event == XACT_EVENT_ABORT ||
		event == XACT_EVENT_PREPARE)
		has_reported = false;
}

void
saga_far_parent_report(int64 saga_id, Jsonb *report)
{
	static bool registered = false;
	SagaOwnerSwitch owner;
	Datum		values[2];

	values[0] = Int64GetDatum(saga_id);
	values[1] = JsonbPGetDatum(report);
	saga_owner_enter(&owner);
	(void) saga_statement_run(&add_report, values, NULL, false, 0);
	saga_owner_leave(&owner);
	if (!registered)
		RegisterXactCallback(wake_followers, NULL);
	registered = true;
	has_reported = true;
}

Jsonb *
saga_far_parent_result(int64 saga_id)
{
	MemoryContext caller = CurrentMemoryContext;
	Datum		value = Int64GetDatum(saga_id);
	SagaOwnerSwitch owner;
	Jsonb	   *result = NULL;
	bool		isnull = true;

	saga_owner_enter(&owner);
	if (saga_statement_run(&find_result, &value, NULL, false, 1) > 0)
		value = saga_statement_datum(0, 1, &isnull);
	if (!isnull)
	{
		MemoryContext own = MemoryContextSwitchTo(caller);

		result = DatumGetJsonbPCopy(value);
		MemoryContextSwitchTo(own);
	}
	saga_owner_leave(&owner);
	return result;
}

/* The report without its result, if that makes it too large for the way. */
static Jsonb *
shorten(Jsonb *report)
{
	Datum		object;

	if (VARSIZE(report) <= MAX_REPORTS_SIZE ||
		strlen(JsonbToCString(NULL, &report->root, VARSIZE(report))) <=
		MAX_REPORT_TEXT)
		return report;
	object = DirectFunctionCall2(jsonb_delete, JsonbPGetDatum(report),
								 CStringGetTextDatum("result"));
	return DatumGetJsonbP(DirectFunctionCall2(jsonb_concat, object,
											  DirectFunctionCall1(jsonb_in,
																  CStringGetDatum("{\"too_large\": true}"))));
}

/* Returns how large it is. */
static Size
put_report(SagaJsonWriter *writer, uint64 row)
{
	bool		isnull;
	Jsonb	   *report = DatumGetJsonbP(saga_statement_datum(row, 7, &isnull));

	report = shorten(report);
	saga_json_begin_object(writer);
	saga_json_put_int(writer, "id", int64_at(row, 1));
	saga_json_put_string(writer, "token", text_at(row, 2));
	saga_json_put_string(writer, "step", text_at(row, 3));
	saga_json_put_int(writer, "element", int32_at(row, 4));
	saga_json_put_int(writer, "round",
					  DatumGetInt16(saga_statement_datum(row, 5, &isnull)));
	saga_json_put_int(writer, "attempt", int32_at(row, 6));
	saga_json_put_jsonb(writer, "report", report);
	saga_json_end_object(writer);
	return VARSIZE(report);
}

Jsonb *
saga_far_parent_read_reports(const pg_uuid_t *coordinator)
{
	MemoryContext caller = CurrentMemoryContext;
	SagaJsonWriter writer = NULL;
	Jsonb	   *reports = NULL;
	MemoryContext own;
	SagaOwnerSwitch owner;
	Datum		values[2];
	Size		size = 0;
	uint64		n;

	values[0] = UUIDPGetDatum(coordinator);
	values[1] = user_name();
	saga_owner_enter(&owner);
	n = saga_statement_run(&read_reports, values, NULL, false, MAX_REPORTS);
	if (n > 0)
	{
		saga_json_begin_array(&writer);
		for (uint64 i = 0; i < n && size <= MAX_REPORTS_SIZE; i++)
			size += put_report(&writer, i);
		own = MemoryContextSwitchTo(caller);
		reports = saga_json_finish_array(&writer);
		MemoryContextSwitchTo(own);
	}
	saga_owner_leave(&owner);
	return reports;
}

void
saga_far_parent_acknowledge(const pg_uuid_t *coordinator, Datum ids)
{
	SagaOwnerSwitch owner;
	Datum		values[3];

	values[0] = UUIDPGetDatum(coordinator);
	values[1] = user_name();
	values[2] = ids;
	saga_owner_enter(&owner);
	(void) saga_statement_run(&acknowledge, values, NULL, false, 0);
	saga_owner_leave(&owner);
}
