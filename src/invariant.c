/*
 * invariant.c
 *		Owns the tables saga.invariant and saga.violation.
 *
 * An invariant is a query that finds what must not be.  checker.c runs it, in a
 * process that is a session of its owner; what comes here is what was found.
 *
 * Violations.  A row is the same violation as one that was found before if it
 * has the same values in the columns of the key, or in all if there is no key.
 * It holds until a check does not find it any more; one that found more rows
 * than it may return ends none.
 *
 * Sagas.  Between the last check that did not find a violation and the first
 * that did, somebody made it so.  Looked for are sagas of the definition that
 * did something in that time, and of these the ones whose input or results have
 * a field with the name and the value of a column of the row.  Of the sagas of
 * roles whose privileges the owner has, for who sees the violation sees their
 * ids.  It is a help for people, so it is bounded rather than complete.
 *
 * Locks.  A check holds an object lock on (saga.invariant, id) from before it
 * reads the invariant until its outcome is recorded: see checker.c.  The row is
 * locked for writing only.
 *
 * Killed at any line: what was found counts when its transaction has committed.
 * That the sagas of a definition are still to be paused stands in the row, and
 * the next check does it.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "storage/latch.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#include "alert.h"
#include "arguments.h"
#include "catalog.h"
#include "checker.h"
#include "compat.h"
#include "invariant.h"
#include "json.h"
#include "log.h"
#include "owner.h"
#include "shared.h"
#include "statement.h"
#include "tables.h"

PG_FUNCTION_INFO_V1(saga_add_invariant);
PG_FUNCTION_INFO_V1(saga_drop_invariant);

/* The most bytes of a name, and of a query. */
#define MAX_NAME		63
#define MAX_QUERY		(100 * 1024)
#define MAX_KEY			32

/* The most bytes that are kept of each text of an error. */
#define MAX_ERROR_TEXT	10000

#define MAX_TIMEOUT		USECS_PER_DAY

/* For so long those are waited for who are beginning sagas of a definition that
 * is paused. */
#define BEGIN_PATIENCE	(30 * USECS_PER_SEC)

#define INVARIANT_COLUMNS \
	"i.id, i.revision, i.checks, i.name, i.query, i.search_path, i.time_zone," \
	" i.definition, i.owner, i.owner_name, i.key, i.timeout, i.max_rows, i.pause," \
	" i.to_pause, i.coordinator <> (SELECT c.id FROM saga.coordinator c)," \
	" i.violations, i.checked_at, i.error, i.xmin"

static SagaStatement read_invariant = {
	"SELECT " INVARIANT_COLUMNS " FROM saga.invariant i WHERE i.id = $1",
	1, {INT4OID}, NULL
};
static SagaStatement lock_invariant = {
	"SELECT i.revision, i.to_pause FROM saga.invariant i WHERE i.id = $1"
	" FOR NO KEY UPDATE",
	1, {INT4OID}, NULL
};
static SagaStatement lock_by_name = {
	"SELECT i.id, i.owner, i.owner_name FROM saga.invariant i WHERE i.name = $1"
	" FOR UPDATE",
	1, {TEXTOID}, NULL
};
static SagaStatement insert_invariant = {
	"INSERT INTO saga.invariant (name, owner, owner_name, coordinator, query,"
	"  search_path, time_zone, timeout, max_rows, pause)"
	" SELECT $1, $2, $3, c.id, '', '', '', '0', 0, false FROM saga.coordinator c"
	" ON CONFLICT (name) DO NOTHING",
	3, {TEXTOID, OIDOID, TEXTOID}, NULL
};

/* What was found by another query, or is about other sagas, was not found by
 * this one. */
static SagaStatement set_invariant = {
	"UPDATE saga.invariant i SET revision = i.revision + 1, to_pause = false,"
	" query = $2, search_path = $3, time_zone = $4, definition = $5, pause = $6,"
	" timeout = $7, max_rows = $8, every = $9, key = $10,"
	" created_at = pg_catalog.now(), tried_at = NULL,"
	" checked_at = CASE WHEN i.query = $2 THEN i.checked_at END"
	" WHERE i.id = $1",
	10, {INT4OID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, BOOLOID, INTERVALOID,
	INT4OID, INTERVALOID, TEXTARRAYOID}, NULL
};
static SagaStatement set_owner = {
	"UPDATE saga.invariant i SET owner = $2, owner_name = $3,"
	" coordinator = (SELECT c.id FROM saga.coordinator c) WHERE i.id = $1",
	3, {INT4OID, OIDOID, TEXTOID}, NULL
};
static SagaStatement delete_violations = {
	"DELETE FROM saga.violation v WHERE v.invariant_id = $1",
	1, {INT4OID}, NULL
};
static SagaStatement delete_invariant = {
	"DELETE FROM saga.invariant i WHERE i.id = $1",
	1, {INT4OID}, NULL
};

/* One statement, so that all of it is by one snapshot.  Two hashes are taken for
 * one of 128 bits: MD5 is not to be had everywhere. */
static SagaStatement note_rows = {
	"WITH seen AS ("
	" SELECT DISTINCT ON (h.hash) h.hash, r.data"
	" FROM pg_catalog.unnest($2) WITH ORDINALITY r(data, n)"
	" CROSS JOIN LATERAL (SELECT CASE WHEN $3 IS NULL THEN r.data ELSE"
	"   (SELECT pg_catalog.jsonb_object_agg(k.name, r.data -> k.name)"
	"    FROM pg_catalog.unnest($3) k(name)) END::pg_catalog.text AS key) x"
	" CROSS JOIN LATERAL (SELECT pg_catalog.hashtextextended(x.key, 0) || '/'"
	"   || pg_catalog.hashtextextended(x.key, 1) AS hash) h"
	" ORDER BY h.hash, r.n),"
	" known AS ("
	" UPDATE saga.violation v SET last_seen = $4, \"row\" = s.data FROM seen s"
	" WHERE v.invariant_id = $1 AND v.hash = s.hash AND v.ended_at IS NULL),"
	" ended AS ("
	" UPDATE saga.violation v SET ended_at = $4"
	" WHERE v.invariant_id = $1 AND v.ended_at IS NULL AND NOT $6"
	" AND NOT EXISTS (SELECT FROM seen s WHERE s.hash = v.hash))"
	" INSERT INTO saga.violation"
	"  (invariant_id, since, first_seen, last_seen, hash, \"row\")"
	" SELECT $1, $5, $4, $4, s.hash, s.data FROM seen s"
	" WHERE NOT EXISTS (SELECT FROM saga.violation v"
	"  WHERE v.invariant_id = $1 AND v.hash = s.hash AND v.ended_at IS NULL)"
	/* of more rows than are read others may come each time: not more of them are
	 * kept than one check reads */
	" LIMIT CASE WHEN $6 THEN (SELECT GREATEST($7 - pg_catalog.count(*), 0)"
	"  FROM saga.violation v WHERE v.invariant_id = $1 AND v.ended_at IS NULL) END",
	7, {INT4OID, JSONBARRAYOID, TEXTARRAYOID, TIMESTAMPTZOID, TIMESTAMPTZOID,
	BOOLOID, INT4OID}, NULL
};
static SagaStatement note_success = {
	"UPDATE saga.invariant i SET checks = i.checks + 1, tried_at = $2,"
	" checked_at = $2, duration = pg_catalog.make_interval(secs => $3),"
	" truncated = $4, error = NULL, error_since = NULL,"
	" to_pause = i.to_pause OR $5,"
	" violations = (SELECT pg_catalog.count(*) FROM saga.violation v"
	"  WHERE v.invariant_id = i.id AND v.ended_at IS NULL)"
	" WHERE i.id = $1 RETURNING i.violations",
	5, {INT4OID, TIMESTAMPTZOID, FLOAT8OID, BOOLOID, BOOLOID}, NULL
};
static SagaStatement note_failure = {
	"UPDATE saga.invariant i SET checks = i.checks + 1, tried_at = $2,"
	" duration = pg_catalog.make_interval(secs => $3), error = $4,"
	" error_since = COALESCE(i.error_since, $2) WHERE i.id = $1",
	4, {INT4OID, TIMESTAMPTZOID, FLOAT8OID, JSONBOID}, NULL
};
static SagaStatement note_error = {
	"UPDATE saga.invariant i SET error = $2,"
	" error_since = COALESCE(i.error_since, i.tried_at) WHERE i.id = $1",
	2, {INT4OID, JSONBOID}, NULL
};
static SagaStatement note_paused = {
	"UPDATE saga.invariant i SET to_pause = false WHERE i.id = $1",
	1, {INT4OID}, NULL
};
static SagaStatement forget_ended = {
	"DELETE FROM saga.violation v WHERE v.invariant_id = $1"
	" AND v.ended_at < $2 - '90 days'::pg_catalog.interval",
	2, {INT4OID, TIMESTAMPTZOID}, NULL
};

/* Those that may be paused, and were not asked to yet. */
static SagaStatement pause_sagas = {
	"INSERT INTO saga.message (id, saga_id, slot, role, kind, reason, requested_by)"
	" SELECT pg_catalog.nextval('saga.history_id_seq'::pg_catalog.regclass),"
	"  s.id, s.slot, s.role, 'pause', $2, $3"
	" FROM saga.saga s WHERE s.definition_id = ANY (ARRAY("
	"  SELECT v.id FROM saga.definition_version v WHERE v.name = $1))"
	" AND s.due_at IS NOT NULL AND s.status IN ('scheduled', 'running', 'compensating')"
	" AND s.coordinator = (SELECT c.id FROM saga.coordinator c)"
	" AND ($5 OR pg_catalog.pg_has_role($4, s.role, 'USAGE'))"
	" AND NOT EXISTS (SELECT FROM saga.message m"
	"  WHERE m.saga_id = s.id AND m.kind = 'pause')"
	" RETURNING saga_id, slot, role",
	5, {TEXTOID, TEXTOID, TEXTOID, OIDOID, BOOLOID}, NULL
};

/*
 * The sagas that were at work: those that have ended since then, and those that
 * have not, unless they did nothing since.  The latest ones, if there are very
 * many, and those of a day, if it is not known since when; a large input or
 * result is not looked at.
 */
static SagaStatement find_sagas = {
	"WITH wrong AS MATERIALIZED ("
	" SELECT v.id, v.\"row\" FROM saga.violation v"
	" WHERE v.invariant_id = $1 AND v.ended_at IS NULL AND v.sagas IS NULL),"
	" versions AS MATERIALIZED (SELECT ARRAY("
	"  SELECT d.id FROM saga.definition_version d WHERE d.name = $2) AS ids),"
	" candidate AS MATERIALIZED ("
	"(SELECT s.id, s.slot, s.input FROM saga.saga s"
	" WHERE s.due_at IS NOT NULL"
	" AND ($2 IS NULL OR s.definition_id = ANY ((SELECT ids FROM versions)::pg_catalog.int4[]))"
	" AND ($4 OR pg_catalog.pg_has_role($3, s.role, 'USAGE'))"
	" AND ($5 IS NULL OR s.created_at >= $5 OR s.started_at >= $5 OR EXISTS ("
	"  SELECT FROM saga.step t WHERE t.saga_id = s.id AND t.slot = s.slot"
	"  AND COALESCE(t.finished_at, t.started_at) >= $5))"
	" ORDER BY s.id DESC LIMIT 5000)"
	" UNION ALL "
	"(SELECT s.id, s.slot, s.input FROM saga.saga s"
	" WHERE s.due_at IS NULL AND s.finished_at >= COALESCE($5,"
	"  pg_catalog.now() - '1 day'::pg_catalog.interval)"
	" AND ($2 IS NULL OR s.definition_id = ANY ((SELECT ids FROM versions)::pg_catalog.int4[]))"
	" AND ($4 OR pg_catalog.pg_has_role($3, s.role, 'USAGE'))"
	" ORDER BY s.id DESC LIMIT 5000)),"
	" known AS MATERIALIZED ("
	" SELECT c.id, e.key, e.value #>> '{}' AS value FROM candidate c"
	" CROSS JOIN LATERAL pg_catalog.jsonb_each(CASE"
	"  WHEN pg_catalog.pg_column_size(c.input) > 65536 THEN '{}'"
	"  WHEN pg_catalog.jsonb_typeof(c.input) = 'object' THEN c.input ELSE '{}' END) e"
	" UNION SELECT c.id, e.key, e.value #>> '{}' FROM candidate c"
	" JOIN saga.step t ON t.saga_id = c.id AND t.slot = c.slot"
	" CROSS JOIN LATERAL pg_catalog.jsonb_each(CASE"
	"  WHEN pg_catalog.pg_column_size(t.result) > 65536 THEN '{}'"
	"  WHEN pg_catalog.jsonb_typeof(t.result) = 'object' THEN t.result ELSE '{}' END) e),"
	" asked AS MATERIALIZED ("
	" SELECT w.id, e.key, e.value #>> '{}' AS value FROM wrong w"
	" CROSS JOIN LATERAL pg_catalog.jsonb_each(w.\"row\") e"
	" WHERE pg_catalog.jsonb_typeof(e.value) IN ('string', 'number')"
	" AND ($6 IS NULL OR e.key = ANY ($6))),"
	" agreeing AS MATERIALIZED ("
	" SELECT a.id AS violation, k.id AS saga, pg_catalog.count(DISTINCT a.key) AS n"
	" FROM asked a JOIN known k ON k.key = a.key AND k.value = a.value"
	" GROUP BY 1, 2),"
	" best AS MATERIALIZED ("
	" SELECT g.violation, g.saga, pg_catalog.row_number() OVER ("
	"   PARTITION BY g.violation ORDER BY g.saga DESC) AS place FROM ("
	"  SELECT a.*, pg_catalog.max(a.n) OVER (PARTITION BY a.violation) AS most"
	"  FROM agreeing a) g"
	/* with a key it is known which columns matter */
	" WHERE $6 IS NULL OR g.n = g.most),"
	" everybody AS MATERIALIZED ("
	" SELECT c.id AS saga, pg_catalog.row_number() OVER (ORDER BY c.id DESC) AS place"
	" FROM candidate c WHERE $5 IS NOT NULL AND $2 IS NOT NULL)"
	" UPDATE saga.violation v SET sagas = f.sagas, more_sagas = f.more"
	" FROM wrong w CROSS JOIN LATERAL ("
	"  SELECT ARRAY[(w.\"row\" ->> 'saga_id')::pg_catalog.int8] AS sagas, false AS more"
	"  WHERE pg_catalog.jsonb_typeof(w.\"row\" -> 'saga_id') = 'number'"
	"  AND w.\"row\" ->> 'saga_id' ~ '^[0-9]{1,18}$'"
	"  UNION ALL"
	"  SELECT COALESCE(pg_catalog.array_agg(b.saga ORDER BY b.saga)"
	"    FILTER (WHERE b.place <= 100), '{}'), pg_catalog.count(*) > 100"
	"  FROM (SELECT b.saga, b.place FROM best b WHERE b.violation = w.id"
	"   UNION ALL SELECT y.saga, y.place FROM everybody y"
	"   WHERE y.place <= 101 AND NOT EXISTS ("
	"    SELECT FROM best b WHERE b.violation = w.id)) b"
	"  LIMIT 1) f"
	" WHERE v.id = w.id",
	6, {INT4OID, TEXTOID, OIDOID, BOOLOID, TIMESTAMPTZOID, TEXTARRAYOID}, NULL
};

static SagaStatement adopt_statements[] = {
	{
		"UPDATE saga.invariant i SET owner_name = r.rolname"
		" FROM saga.coordinator c, pg_catalog.pg_authid r"
		" WHERE i.coordinator = c.id AND r.oid = i.owner"
		" AND r.rolname <> i.owner_name",
		0, {0}, NULL
	},
	{
		"UPDATE saga.invariant i SET owner = r.oid FROM pg_catalog.pg_authid r"
		" WHERE r.rolname = i.owner_name AND r.oid <> i.owner",
		0, {0}, NULL
	},
	{
		"UPDATE saga.invariant i SET coordinator = c.id"
		" FROM saga.coordinator c WHERE i.coordinator <> c.id",
		0, {0}, NULL
	}
};


/* ---- rows ----------------------------------------------------------------- */

/* In the memory context "memory"; NULL if it is null. */
static char *
row_text(int column, MemoryContext memory)
{
	bool		isnull;
	Datum		value = saga_statement_datum(0, column, &isnull);
	MemoryContext old;
	char	   *string;

	if (isnull)
		return NULL;
	old = MemoryContextSwitchTo(memory);
	string = TextDatumGetCString(value);
	MemoryContextSwitchTo(old);
	return string;
}

static Datum
row_datum(int column)
{
	bool		isnull;
	Datum		value = saga_statement_datum(0, column, &isnull);

	return isnull ? (Datum) 0 : value;
}

static void *
row_copy(int column, MemoryContext memory)
{
	bool		isnull;
	Datum		value = saga_statement_datum(0, column, &isnull);
	MemoryContext old;
	void	   *copy;

	if (isnull)
		return NULL;
	old = MemoryContextSwitchTo(memory);
	copy = PG_DETOAST_DATUM_COPY(value);
	MemoryContextSwitchTo(old);
	return copy;
}

/* saga.add_invariant() admits no months. */
static int64
row_microseconds(int column)
{
	Interval   *interval = DatumGetIntervalP(row_datum(column));

	return interval->day * USECS_PER_DAY + interval->time;
}

SagaInvariant *
saga_invariant_read(int32 id)
{
	MemoryContext caller = CurrentMemoryContext;
	Datum		value = Int32GetDatum(id);
	SagaInvariant *inv = NULL;
	SagaOwnerSwitch owner;

	saga_owner_enter(&owner);
	if (saga_statement_read_latest(&read_invariant, &value) > 0)
	{
		inv = MemoryContextAllocZero(caller, sizeof(SagaInvariant));
		inv->id = id;
		inv->revision = DatumGetInt32(row_datum(2));
		inv->checks = DatumGetInt64(row_datum(3));
		inv->name = row_text(4, caller);
		inv->query = row_text(5, caller);
		inv->search_path = row_text(6, caller);
		inv->time_zone = row_text(7, caller);
		inv->definition = row_text(8, caller);
		inv->owner.oid = DatumGetObjectId(row_datum(9));
		inv->owner.name = row_text(10, caller);
		inv->key = row_copy(11, caller);
		inv->timeout = row_microseconds(12);
		inv->max_rows = DatumGetInt32(row_datum(13));
		inv->pause = DatumGetBool(row_datum(14));
		inv->to_pause = DatumGetBool(row_datum(15));
		inv->foreign = DatumGetBool(row_datum(16));
		inv->violations = DatumGetInt32(row_datum(17));
		inv->checked_at = DatumGetTimestampTz(row_datum(18));
		inv->error = row_copy(19, caller);
		inv->own = TransactionIdIsCurrentTransactionId(DatumGetTransactionId(row_datum(20)));
	}
	saga_owner_leave(&owner);
	return inv;
}


/* ---- what was found --------------------------------------------------------- */

static char *
keep_text(const char *string)
{
	int			length;
	char	   *copy;

	if (string == NULL)
		return NULL;
	length = (int) strnlen(string, MAX_ERROR_TEXT + 1);
	if (length > MAX_ERROR_TEXT)
		length = pg_mbcliplen(string, length, MAX_ERROR_TEXT);
	copy = pnstrdup(string, length);
	/* messages of the system may be in any encoding */
	return pg_verifymbstr(copy, length, true) ? copy :
		pstrdup("(text in another encoding)");
}

Jsonb *
saga_invariant_error(int sqlstate, const char *message, const char *detail,
					 const char *hint, const char *context)
{
	SagaJsonWriter writer = NULL;

	saga_json_begin_object(&writer);
	saga_json_put_string(&writer, "sqlstate", unpack_sql_state(sqlstate));
	saga_json_put_string(&writer, "message",
						 message ? keep_text(message) : "missing error text");
	saga_json_put_string(&writer, "detail", keep_text(detail));
	saga_json_put_string(&writer, "hint", keep_text(hint));
	saga_json_put_string(&writer, "context", keep_text(context));
	return saga_json_finish_object(&writer);
}

static char *
error_message(const Jsonb *error)
{
	JsonbValue	value;

	return saga_json_get(&unconstify(Jsonb *, error)->root, "message", &value) ?
		saga_json_string(&value) : pstrdup("");
}

static char *
subject_of(const char *name)
{
	return psprintf("invariant %s", name);
}

/* Returns whether it is new. */
static bool
note_condition(const SagaInvariant *inv, const char *kind, const char *message)
{
	SagaJsonWriter writer = NULL;
	SagaCondition condition = {
		.kind = kind,
		.subject = subject_of(inv->name),
		.role = inv->owner.oid,
		.role_name = inv->owner.name,
		.definition = inv->definition,
		.message = message
	};

	saga_json_begin_object(&writer);
	saga_json_put_string(&writer, "invariant", inv->name);
	saga_json_put_string(&writer, "definition", inv->definition);
	condition.fields = saga_json_finish_object(&writer);
	return saga_alert_on(&condition);
}

static void
note_failed(const SagaInvariant *inv, const char *message,
			SagaInvariantChange *change)
{
	if (note_condition(inv, SAGA_ALERT_INVARIANT_FAILED, message))
		change->failed = message;
}

/* Between enter and leave: is it still the one that was read? */
static bool
lock_row(const SagaInvariant *inv, bool *to_pause)
{
	Datum		value = Int32GetDatum(inv->id);

	if (saga_statement_run(&lock_invariant, &value, NULL, false, 1) == 0)
		return false;
	*to_pause = DatumGetBool(row_datum(2));
	return DatumGetInt32(row_datum(1)) == inv->revision;
}

static bool
record_failure(const SagaInvariant *inv, const SagaFinding *finding,
			   SagaInvariantChange *change)
{
	Datum		values[4];
	SagaOwnerSwitch owner;
	bool		to_pause;
	bool		same;

	values[0] = Int32GetDatum(inv->id);
	values[1] = TimestampTzGetDatum(finding->at);
	values[2] = Float8GetDatum(finding->duration / 1e6);
	values[3] = JsonbPGetDatum(finding->error);
	saga_owner_enter(&owner);
	same = lock_row(inv, &to_pause);
	if (same)
		saga_statement_run(&note_failure, values, NULL, false, 0);
	saga_owner_leave(&owner);
	if (same)
		note_failed(inv, error_message(finding->error), change);
	return same;
}

/* The violations; returns how many are new. */
static uint64
write_rows(const SagaInvariant *inv, const SagaFinding *finding)
{
	Datum		values[7];
	char		nulls[] = "       ";

	values[0] = Int32GetDatum(inv->id);
	values[1] = PointerGetDatum(finding->rows);
	values[2] = PointerGetDatum(inv->key);
	nulls[2] = inv->key == NULL ? 'n' : ' ';
	values[3] = TimestampTzGetDatum(finding->at);
	values[4] = TimestampTzGetDatum(inv->checked_at);
	nulls[4] = inv->checked_at == 0 ? 'n' : ' ';
	values[5] = BoolGetDatum(finding->truncated);
	values[6] = Int32GetDatum(inv->max_rows);
	return saga_statement_run(&note_rows, values, nulls, false, 0);
}

/* Its row; returns how many violations hold. */
static int
write_success(const SagaInvariant *inv, const SagaFinding *finding, bool pauses)
{
	Datum		values[5];

	values[0] = Int32GetDatum(inv->id);
	values[1] = TimestampTzGetDatum(finding->at);
	values[2] = Float8GetDatum(finding->duration / 1e6);
	values[3] = BoolGetDatum(finding->truncated);
	values[4] = BoolGetDatum(pauses);
	(void) saga_statement_run(&note_success, values, NULL, false, 0);
	return DatumGetInt32(row_datum(1));
}

/* The definition is not to be paused by this one: that is an error that is kept
 * beside what was found. */
static void
record_refusal(const SagaInvariant *inv, const char *why,
			   SagaInvariantChange *change)
{
	const char *message = psprintf("could not pause saga definition \"%s\"",
								   inv->definition);
	Datum		values[2];
	SagaOwnerSwitch owner;

	values[0] = Int32GetDatum(inv->id);
	values[1] = JsonbPGetDatum(saga_invariant_error(ERRCODE_INSUFFICIENT_PRIVILEGE,
													message, why, NULL, NULL));
	saga_owner_enter(&owner);
	saga_statement_run(&note_error, values, NULL, false, 0);
	saga_owner_leave(&owner);
	note_failed(inv, message, change);
}

static void
note_violated(const SagaInvariant *inv, int violations, bool truncated,
			  SagaInvariantChange *change)
{
	if (violations == 0)
		change->good = saga_alert_off(SAGA_ALERT_INVARIANT,
									  subject_of(inv->name), NULL);
	else if (truncated)
		change->violated =
			note_condition(inv, SAGA_ALERT_INVARIANT,
						   psprintf("it has more than %d violations",
									inv->max_rows));
	else
		change->violated =
			note_condition(inv, SAGA_ALERT_INVARIANT, violations == 1 ?
						   "it has 1 violation" :
						   psprintf("it has %d violations", violations));
}

bool
saga_invariant_record(const SagaInvariant *inv, const SagaFinding *finding,
					  SagaInvariantChange *change)
{
	const char *why = NULL;
	bool		pauses = false;
	bool		to_pause;
	uint64		nnew;
	int			violations;
	Datum		values[2];
	SagaOwnerSwitch owner;

	memset(change, 0, sizeof(*change));
	if (finding->error != NULL)
		return record_failure(inv, finding, change);
	saga_owner_enter(&owner);
	if (!lock_row(inv, &to_pause))
	{
		saga_owner_leave(&owner);
		return false;
	}
	nnew = write_rows(inv, finding);
	values[0] = Int32GetDatum(inv->id);
	values[1] = TimestampTzGetDatum(finding->at);
	saga_statement_run(&forget_ended, values, NULL, false, 0);
	saga_owner_leave(&owner);

	/* one that a person has enabled again is paused by what is new only */
	if (nnew > 0 && inv->pause && inv->definition != NULL)
		pauses = saga_catalog_disable(inv->definition, inv->name, &why);

	saga_owner_enter(&owner);
	violations = write_success(inv, finding, pauses);
	saga_owner_leave(&owner);
	note_violated(inv, violations, finding->truncated, change);
	if (pauses)
		change->pauses = inv->definition;
	if (why != NULL)
		record_refusal(inv, why, change);
	else
		(void) saga_alert_off(SAGA_ALERT_INVARIANT_FAILED,
							  subject_of(inv->name), NULL);
	return true;
}

void
saga_invariant_log(const SagaInvariant *inv, const SagaInvariantChange *change)
{
	const char *context = saga_log_describe_names("definition", inv->definition,
												  "invariant", inv->name, NULL);

	if (change->violated || change->pauses != NULL)
		ereport(LOG,
				errmsg("invariant \"%s\" is violated", inv->name),
				change->pauses == NULL ? 0 :
				errdetail("Definition \"%s\" is paused.", change->pauses),
				errhint("View saga.violations has what was found."),
				errcontext("%s", context));
	if (change->good)
		ereport(LOG,
				errmsg("invariant \"%s\" is not violated any more", inv->name),
				errcontext("%s", context));
	if (change->failed != NULL)
		ereport(LOG,
				errmsg("could not check invariant \"%s\": %s", inv->name,
					   change->failed),
				errcontext("%s", context));
}


/* ---- pausing ---------------------------------------------------------------- */

/*
 * Who was beginning a saga of the definition when it was disabled may not have
 * committed yet: returns whether there is nobody, having waited for those until
 * then.
 */
static bool
wait_for_beginners(const char *name, TimestampTz until)
{
	Oid			relation = get_relname_relid("definition",
											 get_namespace_oid("saga", false));
	const SagaDefinition *definition;

	saga_catalog_forget_old();
	definition = saga_catalog_newest(name);
	if (definition == NULL || definition->definition_id == 0)
		return true;
	/* only tried: nobody is kept waiting behind us */
	while (!ConditionalLockDatabaseObject(relation, definition->definition_id,
										  0, AccessExclusiveLock))
	{
		if (GetCurrentTimestamp() >= until)
			return false;
		(void) WaitLatch(MyLatch,
						 WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, 20,
						 PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
	return true;
}

bool
saga_invariant_pause_sagas(const SagaInvariant *inv, bool wait)
{
	bool		is_operator = saga_owner_has_granted("operator_privilege");
	Oid			user = GetUserId();
	Datum		values[5];
	SagaOwnerSwitch owner;
	bool		to_pause;
	bool		alone;
	uint64		n;

	if (inv->definition == NULL)
		return true;
	alone = wait_for_beginners(inv->definition, wait ?
							   GetCurrentTimestamp() + BEGIN_PATIENCE : 0);
	saga_owner_enter(&owner);
	if (!lock_row(inv, &to_pause) || !to_pause)
	{
		saga_owner_leave(&owner);
		return true;
	}
	values[0] = CStringGetTextDatum(inv->definition);
	values[1] = CStringGetTextDatum(psprintf("invariant \"%s\" is violated",
											 inv->name));
	values[2] = CStringGetTextDatum(inv->owner.name);
	values[3] = ObjectIdGetDatum(user);
	values[4] = BoolGetDatum(is_operator);
	n = saga_statement_run(&pause_sagas, values, NULL, false, 0);
	for (uint64 i = 0; i < n; i++)
	{
		bool		isnull;
		int64		id = DatumGetInt64(saga_statement_datum(i, 1, &isnull));
		int16		slot = DatumGetInt16(saga_statement_datum(i, 2, &isnull));
		Oid			role = DatumGetObjectId(saga_statement_datum(i, 3, &isnull));

		saga_wake_at_commit(role, id, slot, 0, true);
	}
	values[0] = Int32GetDatum(inv->id);
	if (alone || wait)
		saga_statement_run(&note_paused, values, NULL, false, 0);
	saga_owner_leave(&owner);
	return alone || wait;
}


/* ---- who may have made it so ------------------------------------------------- */

void
saga_invariant_find_sagas(const SagaInvariant *inv)
{
	Datum		values[6];
	char		nulls[] = "      ";
	SagaOwnerSwitch owner;

	values[0] = Int32GetDatum(inv->id);
	values[1] = saga_statement_text(inv->definition, &nulls[1]);
	values[2] = ObjectIdGetDatum(GetUserId());
	values[3] = BoolGetDatum(saga_owner_has_granted("monitor_privilege"));
	values[4] = TimestampTzGetDatum(inv->checked_at);
	nulls[4] = inv->checked_at == 0 ? 'n' : ' ';
	values[5] = PointerGetDatum(inv->key);
	nulls[5] = inv->key == NULL ? 'n' : ' ';
	saga_owner_enter(&owner);
	/* the index by the time when sagas ended has no other way */
	(void) set_config_option("enable_bitmapscan", "on", PGC_USERSET,
							 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	(void) set_config_option("plan_cache_mode", "force_custom_plan", PGC_USERSET,
							 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	saga_statement_run(&find_sagas, values, nulls, false, 0);
	saga_owner_leave(&owner);
}

void
saga_invariant_adopt(void)
{
	SagaOwnerSwitch owner;

	saga_owner_enter(&owner);
	for (size_t i = 0; i < lengthof(adopt_statements); i++)
		saga_statement_run(&adopt_statements[i], NULL, NULL, false, 0);
	saga_owner_leave(&owner);
}


/* ---- saga.add_invariant(), saga.drop_invariant() ------------------------------ */

static void
check_name(const char *name)
{
	size_t		length = strlen(name);
	bool		good = length > 0 && length <= MAX_NAME && name[0] != ' ' &&
		name[length - 1] != ' ';

	for (size_t i = 0; good && i < length; i++)
		good = (unsigned char) name[i] >= 0x20 && name[i] != 0x7f;
	if (!good)
		ereport(ERROR,
				errcode(ERRCODE_INVALID_NAME),
				errmsg("invalid name for an invariant: \"%s\"",
					   pnstrdup(name, pg_mbcliplen(name, length, MAX_NAME))),
				errdetail("A name has 1 to %d bytes, no control characters, and no space at either end.",
						  MAX_NAME));
}

/* May the current user change it, and see its errors?  Raises if not. */
static void
check_owner(const char *name, const SagaRoleRef *owner, Oid user)
{
	if (!saga_role_has_privileges(user, owner))
		ereport(ERROR,
				errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				errmsg("permission denied for invariant \"%s\"", name),
				saga_role_is_there(owner) ?
				errdetail("It belongs to role \"%s\".", owner->name) :
				errdetail("Its owner, role \"%s\", is gone or has another name now.",
						  owner->name));
}

/* Between enter and leave. */
static bool
lock_name(const char *name, int32 *id, SagaRoleRef *owner)
{
	Datum		value = CStringGetTextDatum(name);

	if (saga_statement_run(&lock_by_name, &value, NULL, false, 1) == 0)
		return false;
	*id = DatumGetInt32(row_datum(1));
	owner->oid = DatumGetObjectId(row_datum(2));
	owner->name = row_text(3, CurrentMemoryContext);
	return true;
}

/* The definition is there, and its sagas are this user's business. */
static void
check_definition(const char *name, bool pause)
{
	const SagaDefinition *definition;
	SagaRoleRef owner;

	saga_catalog_forget_old();
	definition = saga_catalog_newest(name);
	if (definition != NULL)
	{
		owner.oid = definition->owner;
		owner.name = definition->owner_name;
		if (saga_role_has_privileges(GetUserId(), &owner) ||
			saga_owner_has_granted("operator_privilege") ||
			(!pause && saga_owner_has_granted("monitor_privilege")))
			return;
	}
	/* says that there is none, or that it may not be begun */
	(void) saga_catalog_for_child(name);
	if (pause)
		ereport(ERROR,
				errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				errmsg("permission denied for saga definition \"%s\"", name),
				errdetail("Its owner and operators may have it paused."));
}

static void
check_key(ArrayType *key)
{
	if (ARR_NDIM(key) > 1 || array_contains_nulls(key) ||
		ArrayGetNItems(ARR_NDIM(key), ARR_DIMS(key)) == 0 ||
		ArrayGetNItems(ARR_NDIM(key), ARR_DIMS(key)) > MAX_KEY)
		ereport(ERROR,
				errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				errmsg("key must be an array of 1 to %d names of columns",
					   MAX_KEY));
}

/* As PostgreSQL keeps it, with what is first otherwise at the end. */
static char *
present_search_path(void)
{
	const char *path = GetConfigOption("search_path", false, false);

	return path[0] == '\0' ? pstrdup("pg_temp") : psprintf("%s, pg_temp", path);
}

static Interval *
interval_of(int64 microseconds)
{
	Interval   *interval = palloc0(sizeof(Interval));

	interval->day = (int32) (microseconds / USECS_PER_DAY);
	interval->time = microseconds % USECS_PER_DAY;
	return interval;
}

/* Make it, or lock the one of that name; returns its id. */
static int32
make_invariant(const char *name, Oid user)
{
	char	   *user_name = GetUserNameFromId(user, false);
	Datum		values[3];
	SagaRoleRef owner;
	int32		id;

	values[0] = CStringGetTextDatum(name);
	values[1] = ObjectIdGetDatum(user);
	values[2] = CStringGetTextDatum(user_name);
	/* again if somebody drops what we waited for */
	do
	{
		CHECK_FOR_INTERRUPTS();
		saga_statement_run(&insert_invariant, values, NULL, false, 0);
	} while (!lock_name(name, &id, &owner));
	check_owner(name, &owner, user);
	if (!saga_role_is_there(&owner))
	{
		values[0] = Int32GetDatum(id);
		saga_statement_run(&set_owner, values, NULL, false, 0);
	}
	return id;
}

/*
 * saga.add_invariant(name, query, definition, pause, timeout, max_rows, every,
 * key)
 */
Datum
saga_add_invariant(PG_FUNCTION_ARGS)
{
	char	   *name = saga_argument_text(fcinfo, 0);
	char	   *query = saga_argument_text(fcinfo, 1);
	char	   *definition = saga_argument_text(fcinfo, 2);
	ArrayType  *key = PG_ARGISNULL(7) ? NULL : PG_GETARG_ARRAYTYPE_P_COPY(7);
	Oid			user = GetUserId();
	Datum		values[10];
	char		nulls[] = "          ";
	int64		timeout;
	int			max_rows;
	bool		pause;
	SagaOwnerSwitch owner;

	saga_check_may_write("saga.add_invariant()");
	saga_argument_require(fcinfo, 0, "name");
	saga_argument_require(fcinfo, 1, "query");
	saga_argument_require(fcinfo, 3, "pause");
	saga_argument_require(fcinfo, 5, "max_rows");
	pause = PG_GETARG_BOOL(3);
	timeout = saga_argument_interval(fcinfo, 4, "timeout");
	max_rows = PG_GETARG_INT32(5);
	check_name(name);
	if (timeout <= 0 || timeout > MAX_TIMEOUT)
		ereport(ERROR,
				errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				errmsg("timeout must be greater than zero, and not longer than a day"));
	if (max_rows < 1 || max_rows > SAGA_INVARIANT_MAX_ROWS)
		ereport(ERROR,
				errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				errmsg("max_rows must be between 1 and %d",
					   SAGA_INVARIANT_MAX_ROWS));
	if (pause && definition == NULL)
		ereport(ERROR,
				errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				errmsg("pause needs a definition"),
				errhint("Name the definition that a violation is to pause."));
	if (strlen(query) > MAX_QUERY)
		ereport(ERROR,
				errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				errmsg("query of an invariant must not be longer than %d bytes",
					   MAX_QUERY));
	if (key != NULL)
		check_key(key);
	if (definition != NULL)
		check_definition(definition, pause);
	query = saga_checker_parse(query, key);

	values[1] = CStringGetTextDatum(query);
	values[2] = CStringGetTextDatum(present_search_path());
	values[3] = CStringGetTextDatum(GetConfigOption("TimeZone", false, false));
	values[4] = saga_statement_text(definition, &nulls[4]);
	values[5] = BoolGetDatum(pause);
	values[6] = IntervalPGetDatum(interval_of(timeout));
	values[7] = Int32GetDatum(max_rows);
	nulls[8] = PG_ARGISNULL(6) ? 'n' : ' ';
	values[8] = PG_ARGISNULL(6) ? (Datum) 0 :
		IntervalPGetDatum(interval_of(saga_argument_interval(fcinfo, 6, "every")));
	nulls[9] = key == NULL ? 'n' : ' ';
	values[9] = PointerGetDatum(key);
	saga_owner_enter_patiently(&owner);
	values[0] = Int32GetDatum(make_invariant(name, user));
	saga_statement_run(&set_invariant, values, nulls, false, 0);
	saga_owner_leave(&owner);
	PG_RETURN_VOID();
}

/* saga.drop_invariant(name) */
Datum
saga_drop_invariant(PG_FUNCTION_ARGS)
{
	char	   *name = saga_argument_text(fcinfo, 0);
	Oid			user = GetUserId();
	SagaOwnerSwitch owner;
	SagaRoleRef role;
	Datum		value;
	int32		id;

	saga_check_may_write("saga.drop_invariant()");
	saga_argument_require(fcinfo, 0, "name");
	saga_owner_enter_patiently(&owner);
	if (!lock_name(name, &id, &role))
		ereport(ERROR,
				errcode(ERRCODE_UNDEFINED_OBJECT),
				errmsg("invariant \"%s\" does not exist", name));
	check_owner(name, &role, user);
	value = Int32GetDatum(id);
	saga_statement_run(&delete_violations, &value, NULL, false, 0);
	saga_statement_run(&delete_invariant, &value, NULL, false, 0);
	saga_owner_leave(&owner);
	(void) saga_alert_off(SAGA_ALERT_INVARIANT, subject_of(name), "dropped");
	(void) saga_alert_off(SAGA_ALERT_INVARIANT_FAILED, subject_of(name),
						  "dropped");
	PG_RETURN_VOID();
}
