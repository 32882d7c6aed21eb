/*
 * locks.c
 *		Semantic locks and places: who has them, who stands in line, who is next.
 *
 * This file owns saga.lock.  A row is one thing that a saga holds (granted) or
 * waits for; the rows of one lock_key are one lock, or the places of one
 * definition or of one of its steps, and its waiting rows by position are the
 * line.
 *
 * - A lock belongs to one tree of sagas at a time.  Each saga of the tree that
 *	 asked for it has a row of its own, so that it is kept for as long as any of
 *	 them needs it; and one row for each step with whose end it is given back.
 *	 When the head of the line gets it, so do all that wait of the same tree.
 * - A place belongs to one saga; a definition has max_running of them.
 * - So does a place in a step, whatever elements the step has.  How many there
 *	 are, each row says for itself: sagas of different versions may see it
 *	 differently.  The head of the line gets one when fewer are held than its own
 *	 version allows.  The key has the step's name, which it has in every version.
 * - Whoever gives something back grants it to the next in line, in the same
 *	 transaction: nothing that is free has somebody waiting for it, but for
 *	 what is said at saga_locks_regrant().  Who has waited too long (expires_at)
 *	 is passed over, and takes his row away himself.
 *
 * All of this is serialized per lock_key by a heavyweight lock on an object of
 * table saga.lock (nobody but its owner can get at that, unlike an advisory
 * lock): the hash of the key, subid 0 for places, 1 for places in steps and 2
 * for locks.  It is held until the end of the transaction, and statements take
 * their snapshots after it.  Several are taken in one order, (subid, hash), by saga_locks_announce().
 * Keys of equal hash share one, which costs time and nothing else.
 *
 * A process that dies has changed nothing that was not committed; of a saga
 * that ended in one transaction and did not get to give back in the next, the
 * sweep forgets the rows.  If it had left a step under a snapshot of its own,
 * and died before it gave back the place in the next transaction, it does that
 * when it moves on.
 *
 * Deadlocks: a circle of trees that wait for each other can only be closed by
 * a row that begins to wait.  The executor that committed one looks, in a
 * transaction of its own, for circles through its tree.  If two close a circle
 * at once, at least the one that commits last sees all of it.  Known limits,
 * with their consequence:
 *
 * - A lock that is given back with the end of a step counts as held to the
 *	 saga's end: a saga with parallel branches may be sent back although its
 *	 other branch would have given the lock back in time.
 * - Places count only where there is one, max_running or concurrency 1: sagas
 *	 that wait for one of several places, all of whose holders wait for them,
 *	 wait until somebody cancels one or a wait for a lock expires.  Nor is it
 *	 found that all places are held by the waiting saga's own ancestors.
 *
 * And one of time: as long as some old snapshot keeps VACUUM off, whoever
 * looks for the head of a line passes over all that have left it since.
 */
#include "postgres.h"

#include "access/table.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "executor/spi.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/hsearch.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/numeric.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "alert.h"
#include "json.h"
#include "locks.h"
#include "log.h"
#include "owner.h"
#include "shared.h"
#include "statement.h"

#define PLACE_PREFIX	"definition "
#define STEP_PREFIX		"step "
#define LOCK_PREFIX		"lock "

/* What is left of a longer name: so many bytes, and a hash. */
#define NAME_PREFIX		120

/* Subids of the heavyweight locks. */
#define SUBID_PLACE		0
#define SUBID_STEP		1
#define SUBID_LOCK		2
#define SUBID_CIRCLES	3		/* one circle is broken by one process */

/* The sweep takes at most so many keys at a time. */
#define MAX_SWEEP_KEYS	500

/* So many trees are looked at for circles through one. */
#define MAX_SEARCH		10000

/* ... and at most so many circles through it are broken in one go. */
#define MAX_CIRCLES		100

/* So many heavyweight locks stand for all the keys: a transaction that touches
 * thousands of keys must not fill the lock table of the server. */
#define LOCK_BUCKETS	256

typedef enum KeyKind
{
	KEY_PLACE,
	KEY_STEP,
	KEY_LOCK
} KeyKind;

/* What of saga.lock one saga has. */
typedef struct LockRow
{
	int64		saga_id;
	int64		position;
	const char *lock_key;
	bool		granted;
	int			step;			/* -1: before the start */
	int			until_step;		/* -1: to the end */
	TimestampTz expires_at;
} LockRow;


/* ---- keys ---------------------------------------------------------------- */

char *
saga_locks_name(const JsonbValue *value)
{
	switch (value->type)
	{
		case jbvString:
			return pnstrdup(value->val.string.val, value->val.string.len);
		case jbvNumeric:
			return numeric_normalize(value->val.numeric);	/* 1.0 is 1 */
		case jbvBool:
			return pstrdup(value->val.boolean ? "true" : "false");
		default:
			return NULL;
	}
}

/* A name of any length, in at most SAGA_MAX_LOCK_NAME bytes. */
static const char *
shorten_name(const char *name)
{
	int			length = (int) strlen(name);
	bytea	   *digest;
	char		hex[2 * 32 + 1];

	if (length <= SAGA_MAX_LOCK_NAME)
		return name;
	/* a text is a bytea to the hash */
	digest = DatumGetByteaPP(DirectFunctionCall1(sha256_bytea,
												 CStringGetTextDatum(name)));
	Assert(VARSIZE_ANY_EXHDR(digest) == 32);
	hex_encode(VARDATA_ANY(digest), 32, hex);
	hex[2 * 32] = '\0';
	return psprintf("%.*s~%s", pg_mbcliplen(name, length, NAME_PREFIX), name,
					hex);
}

static char *
make_lock_key(const SagaDefinition *definition, const char *name)
{
	return psprintf(LOCK_PREFIX "%u %s", definition->owner, shorten_name(name));
}

/* Versions of a definition that was dropped have nothing in common any more. */
static char *
make_step_key(const SagaDefinition *definition, int step)
{
	return psprintf(STEP_PREFIX "%d %s",
					definition->definition_id != 0 ?
					definition->definition_id : -definition->id,
					definition->steps[step].name);
}

/* Asks it for the place of its definition? */
static bool
wants_definition_place(const SagaLockRequest *request)
{
	return request->name == NULL && request->places == 0;
}

/* All that it asks for. */
static List *
add_request_keys(List *keys, const SagaLockRequest *request)
{
	const SagaDefinition *definition = request->saga->definition;

	if (wants_definition_place(request))
		keys = lappend(keys, psprintf(PLACE_PREFIX "%d",
									  definition->definition_id));
	if (request->name != NULL)
		keys = lappend(keys, make_lock_key(definition, request->name));
	if (request->places > 0)
		keys = lappend(keys, make_step_key(definition, request->step));
	return keys;
}

static KeyKind
kind_of_key(const char *lock_key)
{
	if (strncmp(lock_key, PLACE_PREFIX, strlen(PLACE_PREFIX)) == 0)
		return KEY_PLACE;
	if (strncmp(lock_key, STEP_PREFIX, strlen(STEP_PREFIX)) == 0)
		return KEY_STEP;
	return KEY_LOCK;
}

/* Of a place. */
static int32
definition_of_key(const char *lock_key)
{
	return atoi(strchr(lock_key, ' ') + 1);
}

/* Of a place in a step, or of a lock: what comes after the number. */
static const char *
name_in_key(const char *lock_key)
{
	const char *name = strchr(strchr(lock_key, ' ') + 1, ' ');

	return name == NULL ? lock_key : name + 1;
}

static uint32
hash_key(const char *lock_key)
{
	return hash_bytes((const unsigned char *) lock_key,
					  (int) strlen(lock_key)) % LOCK_BUCKETS;
}

static uint16
subid_of_key(const char *lock_key)
{
	switch (kind_of_key(lock_key))
	{
		case KEY_PLACE:
			return SUBID_PLACE;
		case KEY_STEP:
			return SUBID_STEP;
		case KEY_LOCK:
			break;
	}
	return SUBID_LOCK;
}

static Oid
lock_table(void)
{
	Oid			oid = get_relname_relid("lock",
										get_namespace_oid("saga", false));

	if (!OidIsValid(oid))
		ereport(ERROR,
				errcode(ERRCODE_UNDEFINED_TABLE),
				errmsg("table \"saga.%s\" does not exist", "lock"),
				errhint("Drop and create the extension \"saga\" again, or restore it from a dump."));
	return oid;
}

/* The one order in which keys are locked. */
static int
compare_keys(const ListCell *a, const ListCell *b)
{
	const char *left = lfirst(a);
	const char *right = lfirst(b);
	uint16		left_subid = subid_of_key(left);
	uint16		right_subid = subid_of_key(right);
	uint32		left_hash = hash_key(left);
	uint32		right_hash = hash_key(right);

	if (left_subid != right_subid)
		return left_subid < right_subid ? -1 : 1;
	if (left_hash != right_hash)
		return left_hash < right_hash ? -1 : 1;
	return strcmp(left, right);
}

/* Sort the keys and take out duplicates. */
static List *
settle_keys(List *keys)
{
	List	   *settled = NIL;
	ListCell   *cell;

	list_sort(keys, compare_keys);
	foreach(cell, keys)
		if (settled == NIL || strcmp(llast(settled), lfirst(cell)) != 0)
			settled = lappend(settled, lfirst(cell));
	list_free(keys);
	return settled;
}

/* Serialize what is done to these keys, settled, until the transaction ends. */
static void
lock_keys(const List *keys)
{
	Oid			table = lock_table();
	ListCell   *cell;

	foreach(cell, keys)
		LockDatabaseObject(table, hash_key(lfirst(cell)),
						   subid_of_key(lfirst(cell)), ExclusiveLock);
}


/* ---- statements -------------------------------------------------------------- */

/*
 * The key, where a saga or a tree is looked for: the primary key, which has
 * the whole line, cannot be used then.  Left to the planner it would be, as
 * long as the table is small, and that plan is kept.  Index lock_root has it.
 */
#define KEY_OF(row) " (" row ".lock_key || '')"

#define STILL_WAITS(row) \
	" NOT " row ".granted AND (" row ".expires_at IS NULL" \
	"  OR " row ".expires_at > pg_catalog.clock_timestamp())"

/*
 * Add a row, granted if that is possible, unless the saga has one that says
 * as much.  Returns granted, expires_at, and whether nothing but the line
 * stands in the way.
 */
static SagaStatement enter_lock = {
	"WITH own AS ("
	"  SELECT l.granted, l.expires_at FROM saga.lock l"
	"  WHERE l.saga_id = $2 AND" KEY_OF("l") " = $1"
	"   AND CASE WHEN l.granted"
	"        THEN l.until_step IS NULL OR l.until_step = $7"
	"        ELSE l.until_step IS NOT DISTINCT FROM $7"
	"         AND l.step IS NOT DISTINCT FROM $6 END"
	"  ORDER BY l.granted DESC, l.position LIMIT 1"
	" ), held AS ("
	"  SELECT l.root_id FROM saga.lock l"
	"  WHERE l.lock_key = $1 AND l.granted LIMIT 1"
	" ), may AS ("
	"  SELECT EXISTS (SELECT FROM held WHERE held.root_id = $3)"
	"   OR NOT EXISTS (SELECT FROM held)"
	"    AND NOT EXISTS (SELECT FROM saga.lock l"
	"     WHERE l.lock_key = $1 AND l.root_id <> $3 AND" STILL_WAITS("l") ") AS have"
	" ), added AS ("
	"  INSERT INTO saga.lock (lock_key, position, saga_id, root_id, role, slot,"
	"                         step, until_step, expires_at, granted)"
	"  SELECT $1, pg_catalog.nextval('saga.lock_position_seq'), $2, $3, $4, $5,"
	"   $6, $7, CASE WHEN may.have THEN NULL ELSE $8 END, may.have"
	"  FROM may WHERE NOT EXISTS (SELECT FROM own)"
	"  RETURNING granted, expires_at)"
	" SELECT o.granted, o.expires_at, NOT EXISTS (SELECT FROM held)"
	" FROM (SELECT * FROM own UNION ALL SELECT * FROM added) o",
	8, {TEXTOID, INT8OID, INT8OID, OIDOID, INT2OID, INT2OID, INT2OID,
	TIMESTAMPTZOID}, NULL
};
static SagaStatement enter_place = {
	"WITH own AS ("
	"  SELECT l.granted, l.expires_at FROM saga.lock l"
	"  WHERE l.saga_id = $2 AND" KEY_OF("l") " = $1 LIMIT 1"
	" ), room AS ("
	"  SELECT (SELECT pg_catalog.count(*) FROM saga.lock l"
	"          WHERE l.lock_key = $1 AND l.granted)"
	"   < COALESCE((SELECT d.max_running FROM saga.definition d"
	"               WHERE d.id = $7), 2147483647) AS free"
	" ), may AS ("
	"  SELECT room.free AND NOT EXISTS (SELECT FROM saga.lock l"
	"   WHERE l.lock_key = $1 AND" STILL_WAITS("l") ") AS have FROM room"
	" ), added AS ("
	"  INSERT INTO saga.lock (lock_key, position, saga_id, root_id, role, slot,"
	"                         expires_at, granted)"
	"  SELECT $1, pg_catalog.nextval('saga.lock_position_seq'), $2, $3, $4, $5,"
	"   CASE WHEN may.have THEN NULL ELSE $6 END, may.have"
	"  FROM may WHERE NOT EXISTS (SELECT FROM own)"
	"  RETURNING granted, expires_at)"
	" SELECT o.granted, o.expires_at, room.free"
	" FROM (SELECT * FROM own UNION ALL SELECT * FROM added) o, room",
	7, {TEXTOID, INT8OID, INT8OID, OIDOID, INT2OID, TIMESTAMPTZOID, INT4OID},
	NULL
};

static SagaStatement enter_step = {
	"WITH own AS ("
	"  SELECT l.granted, l.expires_at FROM saga.lock l"
	"  WHERE l.saga_id = $2 AND" KEY_OF("l") " = $1 LIMIT 1"
	" ), room AS ("
	"  SELECT (SELECT pg_catalog.count(*) FROM saga.lock l"
	"          WHERE l.lock_key = $1 AND l.granted) < $7 AS free"
	" ), may AS ("
	"  SELECT room.free AND NOT EXISTS (SELECT FROM saga.lock l"
	"   WHERE l.lock_key = $1 AND" STILL_WAITS("l") ") AS have FROM room"
	" ), added AS ("
	"  INSERT INTO saga.lock (lock_key, position, saga_id, root_id, role, slot,"
	"                         step, until_step, granted, places)"
	"  SELECT $1, pg_catalog.nextval('saga.lock_position_seq'), $2, $3, $4, $5,"
	"   $6, $6, may.have, $7"
	"  FROM may WHERE NOT EXISTS (SELECT FROM own)"
	"  RETURNING granted, expires_at)"
	" SELECT o.granted, o.expires_at, room.free"
	" FROM (SELECT * FROM own UNION ALL SELECT * FROM added) o, room",
	7, {TEXTOID, INT8OID, INT8OID, OIDOID, INT2OID, INT2OID, INT4OID}, NULL
};

/* Grant to those whose turn it is, and tell all but the sagas of $2. */
#define TELL_GRANTED \
	" ), told AS (" \
	"  INSERT INTO saga.message (id, saga_id, slot, role, kind, requested_by)" \
	"  SELECT pg_catalog.nextval('saga.history_id_seq'), t.saga_id, t.slot," \
	"   t.role, 'place', ''" \
	"  FROM (SELECT DISTINCT g.saga_id, g.slot, g.role FROM granted g) t" \
	"  WHERE t.saga_id <> ALL ($2))" \
	" SELECT g.saga_id, g.slot, g.role FROM granted g"

static SagaStatement grant_lock = {
	"WITH head AS ("
	"  SELECT l.root_id FROM saga.lock l"
	"  WHERE l.lock_key = $1 AND" STILL_WAITS("l")
	"   AND NOT EXISTS (SELECT FROM saga.lock h"
	"                   WHERE h.lock_key = $1 AND h.granted)"
	"  ORDER BY l.position LIMIT 1"
	" ), granted AS ("
	"  UPDATE saga.lock l SET granted = true, expires_at = NULL,"
	"   since = pg_catalog.clock_timestamp()"
	"  FROM head WHERE l.root_id = head.root_id AND" KEY_OF("l") " = $1"
	"   AND" STILL_WAITS("l")
	"  RETURNING l.saga_id, l.slot, l.role"
	TELL_GRANTED,
	2, {TEXTOID, INT8ARRAYOID}, NULL
};
static SagaStatement grant_places = {
	"WITH granted AS ("
	"  UPDATE saga.lock SET granted = true, expires_at = NULL,"
	"   since = pg_catalog.clock_timestamp()"
	"  WHERE lock_key = $1 AND NOT granted AND position IN ("
	"   SELECT l.position FROM saga.lock l"
	"   WHERE l.lock_key = $1 AND" STILL_WAITS("l")
	"   ORDER BY l.position LIMIT GREATEST(0,"
	"    COALESCE((SELECT d.max_running FROM saga.definition d WHERE d.id = $3),"
	"             2147483647)"
	"    - (SELECT pg_catalog.count(*) FROM saga.lock h"
	"       WHERE h.lock_key = $1 AND h.granted)))"
	"  RETURNING saga_id, slot, role"
	TELL_GRANTED,
	3, {TEXTOID, INT8ARRAYOID, INT4OID}, NULL
};

/* ... to one: the next may allow for more, or for less. */
static SagaStatement grant_step = {
	"WITH head AS ("
	"  SELECT l.position, l.places FROM saga.lock l"
	"  WHERE l.lock_key = $1 AND" STILL_WAITS("l")
	"  ORDER BY l.position LIMIT 1"
	" ), granted AS ("
	"  UPDATE saga.lock l SET granted = true, expires_at = NULL,"
	"   since = pg_catalog.clock_timestamp()"
	"  FROM head WHERE l.lock_key = $1 AND NOT l.granted"
	"   AND l.position = head.position AND head.places >"
	"    (SELECT pg_catalog.count(*) FROM saga.lock h"
	"     WHERE h.lock_key = $1 AND h.granted)"
	"  RETURNING l.saga_id, l.slot, l.role"
	TELL_GRANTED,
	2, {TEXTOID, INT8ARRAYOID}, NULL
};

static SagaStatement find_keys = {
	"SELECT DISTINCT lock_key FROM saga.lock WHERE saga_id = ANY ($1)",
	1, {INT8ARRAYOID}, NULL
};

/* ... of sagas that nobody has moved on since (their turn). */
static SagaStatement find_rows = {
	"SELECT l.saga_id, l.position, l.lock_key, l.granted, l.step, l.until_step,"
	"  l.expires_at"
	" FROM ROWS FROM (pg_catalog.unnest($1), pg_catalog.unnest($2)) u(id, turn)"
	" CROSS JOIN LATERAL"
	"  (SELECT k.* FROM saga.lock k WHERE k.saga_id = u.id OFFSET 0) l"
	" WHERE " SAGA_OF("l", "s.turn") " = u.turn",
	2, {INT8ARRAYOID, INT8ARRAYOID}, NULL
};
static SagaStatement delete_all = {
	"DELETE FROM saga.lock WHERE saga_id = ANY ($1)"
	" RETURNING lock_key, granted",
	1, {INT8ARRAYOID}, NULL
};
static SagaStatement delete_some = {
	"DELETE FROM saga.lock WHERE saga_id = ANY ($1) AND position = ANY ($2)"
	" RETURNING lock_key, granted",
	2, {INT8ARRAYOID, INT8ARRAYOID}, NULL
};
static SagaStatement find_own = {
	"SELECT FROM saga.lock WHERE lock_key = $1 AND granted AND saga_id = $2"
	" AND until_step IS NULL",
	2, {TEXTOID, INT8OID}, NULL
};

static Datum
make_array(const int64 *ids, int n)
{
	Datum	   *values = palloc(Max(n, 1) * sizeof(Datum));

	for (int i = 0; i < n; i++)
		values[i] = Int64GetDatum(ids[i]);
	return PointerGetDatum(construct_array(values, n, INT8OID, sizeof(int64),
										   FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
}

/* A text column, in that memory: the current one is SPI's. */
static char *
text_column(uint64 row, int column, MemoryContext memory)
{
	bool		isnull;
	Datum		value = saga_statement_datum(row, column, &isnull);
	MemoryContext old = MemoryContextSwitchTo(memory);
	char	   *string = isnull ? NULL : TextDatumGetCString(value);

	MemoryContextSwitchTo(old);
	return string;
}

static TimestampTz
time_column(uint64 row, int column)
{
	bool		isnull;
	Datum		value = saga_statement_datum(row, column, &isnull);

	return isnull ? DT_NOEND : DatumGetTimestampTz(value);
}

static int
position_column(uint64 row, int column)
{
	bool		isnull;
	Datum		value = saga_statement_datum(row, column, &isnull);

	return isnull ? -1 : DatumGetInt16(value);
}

static List *
append_in(MemoryContext memory, List *list, void *item)
{
	MemoryContext old = MemoryContextSwitchTo(memory);

	list = lappend(list, item);
	MemoryContextSwitchTo(old);
	return list;
}

static SagaStatement *
granting_statement(const char *lock_key)
{
	switch (kind_of_key(lock_key))
	{
		case KEY_PLACE:
			return &grant_places;
		case KEY_STEP:
			return &grant_step;
		case KEY_LOCK:
			break;
	}
	return &grant_lock;
}

/* Wake those to whom the last statement granted something; see below. */
static void
wake_granted(uint64 granted, int64 *askers, int n)
{
	for (uint64 row = 0; row < granted; row++)
	{
		bool		isnull;
		int64		id = DatumGetInt64(saga_statement_datum(row, 1, &isnull));
		bool		asker = false;

		for (int i = 0; i < n; i++)
			if (askers[i] == id)
			{
				asker = true;
				askers[i] = 0;
			}
		if (!asker)
			saga_wake_at_commit(DatumGetObjectId(saga_statement_datum(row, 3, &isnull)),
								id,
								DatumGetInt16(saga_statement_datum(row, 2, &isnull)),
								0, true);
	}
	SPI_freetuptable(SPI_tuptable);
}

/*
 * Grant what is free of this key, which is locked, to the head of the line.
 * All but the sagas of "askers" get a message; those of them that were granted
 * something are set to 0.  Within the owner's switch.
 */
static void
grant_key(const char *lock_key, int64 *askers, int n)
{
	SagaStatement *statement = granting_statement(lock_key);
	Datum		values[3] = {
		CStringGetTextDatum(lock_key), make_array(askers, n)
	};
	uint64		granted;

	if (statement == &grant_places)
		values[2] = Int32GetDatum(definition_of_key(lock_key));
	do
	{
		granted = saga_statement_run(statement, values, NULL, false, 0);
		wake_granted(granted, askers, n);
	} while (granted > 0 && statement == &grant_step);
}


/* ---- asking ------------------------------------------------------------------ */

/* A request, and one of its keys. */
typedef struct Asking
{
	SagaLockRequest *request;
	char	   *lock_key;
} Asking;

/* By key, then by age of the saga. */
static int
compare_askings(const void *a, const void *b)
{
	const Asking *left = a;
	const Asking *right = b;
	int			order = strcmp(left->lock_key, right->lock_key);

	if (order != 0)
		return order;
	if (left->request->saga->ref.id != right->request->saga->ref.id)
		return left->request->saga->ref.id < right->request->saga->ref.id ? -1 : 1;
	return (left->request->step > right->request->step) -
		(left->request->step < right->request->step);
}

/* DT_NOEND if it has no limit, or one beyond all times. */
static TimestampTz
add_timeout(TimestampTz now, int64 timeout)
{
	if (timeout <= 0 || timeout >= DT_NOEND - now)
		return DT_NOEND;
	return now + timeout;
}

/*
 * With the end of which step is it given back?  One that has ended already,
 * or is not on the saga's way, would be none at all: then with the saga's.
 */
static int
until_of_request(const SagaLockRequest *request)
{
	const Saga *saga = request->saga;

	if (request->until_step < 0 ||
		saga_machine_step_is_done(&saga->definition->rules, &saga->state,
								  request->until_step))
		return -1;
	return request->until_step;
}

/* Stand in line, or get it at once.  Returns whether it might be granted now
 * all the same, to whomever. */
static bool
enter_line(const Asking *asking, TimestampTz now)
{
	SagaLockRequest *request = asking->request;
	const Saga *saga = request->saga;
	TimestampTz expires_at = add_timeout(now, request->timeout);
	int			until = until_of_request(request);
	Datum		values[8] = {
		CStringGetTextDatum(asking->lock_key), Int64GetDatum(saga->ref.id),
		Int64GetDatum(saga->root_id), ObjectIdGetDatum(saga->role),
		Int16GetDatum(saga->ref.slot)
	};
	char		nulls[] = "        ";
	bool		isnull;
	bool		free;

	if (wants_definition_place(request))
	{
		values[5] = TimestampTzGetDatum(expires_at);
		nulls[5] = expires_at == DT_NOEND ? 'n' : ' ';
		values[6] = Int32GetDatum(saga->definition->definition_id);
		saga_statement_run(&enter_place, values, nulls, false, 0);
	}
	else if (kind_of_key(asking->lock_key) == KEY_STEP)
	{
		values[5] = Int16GetDatum(request->step);
		values[6] = Int32GetDatum(request->places);
		saga_statement_run(&enter_step, values, nulls, false, 0);
	}
	else
	{
		values[5] = Int16GetDatum(request->step);
		nulls[5] = request->step < 0 ? 'n' : ' ';
		values[6] = Int16GetDatum(until);
		nulls[6] = until < 0 ? 'n' : ' ';
		values[7] = TimestampTzGetDatum(expires_at);
		nulls[7] = expires_at == DT_NOEND ? 'n' : ' ';
		saga_statement_run(&enter_lock, values, nulls, false, 0);
	}
	if (SPI_processed != 1)
		elog(ERROR, "saga %lld has no row for \"%s\" in saga.lock",
			 (long long) saga->ref.id, asking->lock_key);
	request->granted = DatumGetBool(saga_statement_datum(0, 1, &isnull));
	request->expires_at = time_column(0, 2);
	free = DatumGetBool(saga_statement_datum(0, 3, &isnull));
	SPI_freetuptable(SPI_tuptable);
	return free && !request->granted;
}

/* Do both stand for the same row?  So it is with the elements of a step that
 * ask for its place. */
static bool
is_same_place(const Asking *a, const Asking *b)
{
	return a->request->saga == b->request->saga &&
		kind_of_key(a->lock_key) == KEY_STEP;
}

/* All who ask for one key. */
static void
ask_for_key(Asking *askings, int n, TimestampTz now)
{
	int64	   *askers;
	bool		free = false;

	for (int i = 0; i < n; i++)
		if (i > 0 && is_same_place(&askings[i - 1], &askings[i]))
		{
			askings[i].request->granted = askings[i - 1].request->granted;
			askings[i].request->expires_at = askings[i - 1].request->expires_at;
		}
		else
			free |= enter_line(&askings[i], now);
	if (!free)
		return;
	/* a limit was raised, or whoever stood before has waited too long */
	askers = palloc(n * sizeof(int64));
	for (int i = 0; i < n; i++)
		askers[i] = askings[i].request->saga->ref.id;
	grant_key(askings[0].lock_key, askers, n);
	for (int i = 0; i < n; i++)
		if (askers[i] == 0 &&
			(askings[i].request->granted || askings[i].request->expires_at > now))
		{
			askings[i].request->granted = true;
			askings[i].request->expires_at = DT_NOEND;
		}
}

/* Key by key.  Within the owner's switch. */
static void
ask_for_keys(Asking *askings, int n, TimestampTz now)
{
	int			end;

	if (n > 1)
		qsort(askings, n, sizeof(Asking), compare_askings);
	for (int start = 0; start < n; start = end)
	{
		for (end = start + 1; end < n; end++)
			if (strcmp(askings[end].lock_key, askings[start].lock_key) != 0)
				break;
		ask_for_key(askings + start, end - start, now);
	}
}

/* Locks, and places of definitions. */
static int
list_first_askings(SagaLockRequest *requests, int n, Asking *askings)
{
	int			k = 0;

	for (int i = 0; i < n; i++)
	{
		SagaLockRequest *request = &requests[i];

		request->lacks_place = false;
		if (request->name == NULL && request->places > 0)
			continue;
		askings[k].request = request;
		askings[k++].lock_key = linitial(add_request_keys(NIL, request));
	}
	return k;
}

/* Places in steps, for those who have the lock, if they need one: who stands
 * in line for that takes no place from others. */
static int
list_step_askings(SagaLockRequest *requests, int n, Asking *askings)
{
	int			k = 0;

	for (int i = 0; i < n; i++)
	{
		SagaLockRequest *request = &requests[i];

		if (request->places == 0 ||
			(request->name != NULL && !request->granted))
			continue;
		request->lacks_place = true;
		askings[k].request = request;
		askings[k++].lock_key = llast(add_request_keys(NIL, request));
	}
	return k;
}

void
saga_locks_request(SagaLockRequest *requests, int n)
{
	Asking	   *askings = palloc(n * sizeof(Asking));
	List	   *keys = NIL;
	TimestampTz now;
	SagaOwnerSwitch owner;
	int			nasked;

	if (n == 0)
		return;
	for (int i = 0; i < n; i++)
		keys = add_request_keys(keys, &requests[i]);
	lock_keys(settle_keys(keys));
	now = GetCurrentTimestamp();
	saga_owner_enter(&owner);
	nasked = list_first_askings(requests, n, askings);
	ask_for_keys(askings, nasked, now);
	nasked = list_step_askings(requests, n, askings);
	ask_for_keys(askings, nasked, now);
	saga_owner_leave(&owner);
}


/* ---- giving back ----------------------------------------------------------- */

/*
 * Has an operation of this step, that is none of its actions, to be attempted
 * again?  Then it may be that one that waits for the lock: by saga.lock().
 */
static bool
may_wait_otherwise(const SagaState *state, int step)
{
	const int	(*count)[SAGA_NOP_STATUS] = state->steps[step].count;

	return count[SAGA_OPERATION_COMPENSATION][SAGA_OP_WAITING] > 0 ||
		count[SAGA_OPERATION_CONFIRMATION][SAGA_OP_WAITING] > 0;
}

/* Does nobody need what this step stands in line for? */
static bool
waits_in_vain(const Saga *saga, int step)
{
	const SagaRules *rules = &saga->definition->rules;
	const SagaState *state = &saga->state;

	if (step < 0 || step >= rules->nsteps)
		return state->backward;
	if (may_wait_otherwise(state, step))
		return false;
	if (!state->backward)
		return saga_machine_step_is_done(rules, state, step);
	/* on the way back to a savepoint, what comes after that is undone */
	return state->goal < 0 || saga_rules_is_before(rules, state->goal, step);
}

/*
 * Has it left the step, or will it not come into it?  Its actions are not
 * attempted any more, and none is out: not even one that a quorum does not
 * need.
 */
static bool
is_out_of_step(const Saga *saga, const char *name)
{
	const SagaRules *rules = &saga->definition->rules;
	const SagaState *state = &saga->state;
	int			step = saga_definition_step(saga->definition, name);

	if (step < 0)
		return true;
	if (state->steps[step].count[SAGA_OPERATION_ACTION][SAGA_OP_RUNNING] > 0)
		return false;
	if (saga_machine_step_is_done(rules, state, step))
		return true;
	return state->backward &&
		(state->goal < 0 || saga_rules_is_before(rules, state->goal, step));
}

/* Does its saga, which has not ended, give this row back? */
static bool
gives_back(const Saga *saga, const LockRow *row, TimestampTz now)
{
	const SagaState *state = &saga->state;
	int			until = row->until_step;

	if (kind_of_key(row->lock_key) == KEY_STEP)
		return is_out_of_step(saga, name_in_key(row->lock_key));
	if (!row->granted)
		return row->expires_at <= now || waits_in_vain(saga, row->step);
	if (kind_of_key(row->lock_key) == KEY_PLACE)
		return state->status == SAGA_STATUS_HELD;	/* it does not run */
	return !state->backward && until >= 0 && until < state->nsteps &&
		saga_machine_step_is_done(&saga->definition->rules, state, until);
}

/* Has this saga, which may be NULL, anything to do with what is given back? */
static bool
is_leaving(const Saga *saga)
{
	return saga != NULL && saga->branch == NULL && !saga->ended &&
		(saga_status_is_final(saga->state.status) ||
		 (saga->definition != NULL && saga->broken == NULL));
}

/* The rows that those of these sagas that have not ended give back.  Within
 * the owner's switch. */
static List *
find_leaving_rows(Saga **sagas, int n, MemoryContext memory)
{
	int64	   *ids = palloc(n * sizeof(int64));
	int64	   *turns = palloc(n * sizeof(int64));
	TimestampTz now = GetCurrentTimestamp();
	List	   *rows = NIL;
	int			nids = 0;
	Datum		values[2];
	uint64		found;

	for (int i = 0; i < n; i++)
		if (is_leaving(sagas[i]) &&
			!saga_status_is_final(sagas[i]->state.status))
		{
			ids[nids] = sagas[i]->ref.id;
			turns[nids++] = sagas[i]->turn;
		}
	if (nids == 0)
		return NIL;
	values[0] = make_array(ids, nids);
	values[1] = make_array(turns, nids);
	found = saga_statement_run(&find_rows, values, NULL, false, 0);
	for (uint64 i = 0; i < found; i++)
	{
		LockRow    *row = MemoryContextAlloc(memory, sizeof(LockRow));
		bool		isnull;

		row->saga_id = DatumGetInt64(saga_statement_datum(i, 1, &isnull));
		row->position = DatumGetInt64(saga_statement_datum(i, 2, &isnull));
		row->lock_key = text_column(i, 3, memory);
		row->granted = DatumGetBool(saga_statement_datum(i, 4, &isnull));
		row->step = position_column(i, 5);
		row->until_step = position_column(i, 6);
		row->expires_at = time_column(i, 7);
		for (int k = 0; k < n; k++)
			if (is_leaving(sagas[k]) && sagas[k]->ref.id == row->saga_id &&
				gives_back(sagas[k], row, now))
				rows = append_in(memory, rows, row);
	}
	SPI_freetuptable(SPI_tuptable);
	return rows;
}

/*
 * All keys of these sagas: what the answers to requests make of them is not
 * known yet.
 */
static List *
add_keys_of_sagas(List *keys, Saga **sagas, int n)
{
	MemoryContext caller = CurrentMemoryContext;
	int64	   *ids = palloc(n * sizeof(int64));
	int			nids = 0;
	SagaOwnerSwitch owner;
	Datum		value;
	uint64		found;

	for (int i = 0; i < n; i++)
		if (is_leaving(sagas[i]))
			ids[nids++] = sagas[i]->ref.id;
	if (nids == 0)
		return keys;
	saga_owner_enter(&owner);
	value = make_array(ids, nids);
	found = saga_statement_run(&find_keys, &value, NULL, false, 0);
	for (uint64 row = 0; row < found; row++)
		keys = append_in(caller, keys, text_column(row, 1, caller));
	saga_owner_leave(&owner);
	MemoryContextSwitchTo(caller);
	return keys;
}

void
saga_locks_announce(const SagaLockRequest *requests, int n,
					Saga **leaving, int nleaving)
{
	List	   *keys = NIL;

	for (int i = 0; i < n; i++)
		keys = add_request_keys(keys, &requests[i]);
	if (nleaving > 0 && saga_locks_in_use())
		keys = add_keys_of_sagas(keys, leaving, nleaving);
	if (keys != NIL)
		lock_keys(settle_keys(keys));
}

/* The keys of which the last statement deleted a granted row. */
static List *
collect_freed(List *freed, uint64 deleted, MemoryContext memory)
{
	for (uint64 row = 0; row < deleted; row++)
	{
		bool		isnull;

		if (DatumGetBool(saga_statement_datum(row, 2, &isnull)))
			freed = append_in(memory, freed, text_column(row, 1, memory));
	}
	SPI_freetuptable(SPI_tuptable);
	return freed;
}

static List *
delete_final(Saga **sagas, int n, List *freed, MemoryContext memory)
{
	int64	   *ids = palloc(n * sizeof(int64));
	int			nids = 0;
	Datum		value;

	for (int i = 0; i < n; i++)
		if (is_leaving(sagas[i]) &&
			saga_status_is_final(sagas[i]->state.status))
			ids[nids++] = sagas[i]->ref.id;
	if (nids == 0)
		return freed;
	value = make_array(ids, nids);
	return collect_freed(freed,
						 saga_statement_run(&delete_all, &value, NULL, false, 0),
						 memory);
}

static List *
delete_rows(const List *rows, List *freed, MemoryContext memory)
{
	int			n = list_length(rows);
	int64	   *ids = palloc(Max(n, 1) * sizeof(int64));
	int64	   *positions = palloc(Max(n, 1) * sizeof(int64));
	Datum		values[2];
	ListCell   *cell;

	if (n == 0)
		return freed;
	foreach(cell, rows)
	{
		const LockRow *row = lfirst(cell);

		ids[foreach_current_index(cell)] = row->saga_id;
		positions[foreach_current_index(cell)] = row->position;
	}
	values[0] = make_array(ids, n);
	values[1] = make_array(positions, n);
	return collect_freed(freed,
						 saga_statement_run(&delete_some, values, NULL, false, 0),
						 memory);
}

void
saga_locks_give_back(Saga **sagas, int n)
{
	MemoryContext caller = CurrentMemoryContext;
	List	   *freed = NIL;
	List	   *rows;
	ListCell   *cell;
	SagaOwnerSwitch owner;

	if (n == 0 || !saga_locks_in_use())
		return;					/* the common case: nobody limits anything */
	saga_owner_enter(&owner);
	freed = delete_final(sagas, n, freed, caller);
	rows = find_leaving_rows(sagas, n, caller);
	freed = delete_rows(rows, freed, caller);
	if (freed != NIL)
	{
		/* announced, so held already.  Who got a key in between has seen these
		 * rows as they were, and stands in line for them: so look after it */
		freed = settle_keys(freed);
		lock_keys(freed);
		foreach(cell, freed)
			grant_key(lfirst(cell), NULL, 0);
	}
	saga_owner_leave(&owner);
	MemoryContextSwitchTo(caller);
}

bool
saga_locks_in_use(void)
{
	Relation	rel = table_open(lock_table(), AccessShareLock);
	bool		in_use = RelationGetNumberOfBlocks(rel) > 0;

	table_close(rel, NoLock);
	return in_use;
}

bool
saga_locks_is_held(const SagaDefinition *definition, int64 saga_id,
				   const char *name)
{
	Datum		values[2] = {
		CStringGetTextDatum(make_lock_key(definition, name)),
		Int64GetDatum(saga_id)
	};
	SagaOwnerSwitch owner;
	bool		held;

	if (!saga_locks_in_use())
		return false;
	saga_owner_enter(&owner);
	held = saga_statement_run(&find_own, values, NULL, true, 1) > 0;
	saga_owner_leave(&owner);
	return held;
}


/* ---- circles ------------------------------------------------------------- */

/*
 * Those of the trees $1 (NULL: of all) through which a circle may go: they
 * wait, and somebody waits for what they hold, or they wait for two things.  A
 * tree that is waited for only by those behind it in the same line may be left
 * out of any circle: these wait for whatever is before it, too.
 *
 * OFFSET 0 keeps them what they are, a few probes of an index for each tree,
 * whatever the planner thinks of the size of the table.
 */
#define MAY_BE_IN_CIRCLE \
	" EXISTS (SELECT FROM saga.lock w WHERE w.root_id = r.id" \
	"         AND" STILL_WAITS("w") " OFFSET 0)" \
	" AND (EXISTS (SELECT FROM saga.lock h WHERE h.root_id = r.id AND h.granted" \
	"              AND EXISTS (SELECT FROM saga.lock w" \
	"                          WHERE w.lock_key = h.lock_key AND NOT w.granted" \
	"                           AND w.root_id <> r.id OFFSET 0) OFFSET 0)" \
	"      OR (SELECT pg_catalog.min(w.lock_key) < pg_catalog.max(w.lock_key)" \
	"          FROM saga.lock w WHERE w.root_id = r.id AND NOT w.granted))"

static SagaStatement find_candidates = {
	"SELECT r.id FROM (SELECT DISTINCT u.id FROM pg_catalog.unnest($1) u(id)) r"
	" WHERE" MAY_BE_IN_CIRCLE " ORDER BY r.id",
	1, {INT8ARRAYOID}, NULL
};
static SagaStatement find_all_candidates = {
	"SELECT r.id FROM (SELECT DISTINCT l.root_id AS id FROM saga.lock l"
	"                  WHERE NOT l.granted) r"
	" WHERE" MAY_BE_IN_CIRCLE " ORDER BY r.id",
	0, {0}, NULL
};
static SagaStatement find_waits = {
	"SELECT l.lock_key, pg_catalog.min(l.position), pg_catalog.max(l.places)"
	" FROM saga.lock l WHERE l.root_id = $1 AND" STILL_WAITS("l")
	" GROUP BY l.lock_key ORDER BY l.lock_key",
	1, {INT8OID}, NULL
};

/* Who has this key, or stands in line for it before $3: of other trees that
 * wait for something else themselves. */
static SagaStatement find_blockers = {
	"SELECT DISTINCT o.root_id FROM ("
	"  SELECT l.root_id FROM saga.lock l WHERE l.lock_key = $1 AND l.granted"
	"  UNION ALL"
	"  SELECT l.root_id FROM saga.lock l"
	"  WHERE l.lock_key = $1 AND l.position < $3 AND" STILL_WAITS("l") ") o"
	" WHERE o.root_id <> $2 AND EXISTS (SELECT FROM saga.lock w"
	"  WHERE w.root_id = o.root_id AND w.lock_key <> $1"
	"   AND" STILL_WAITS("w") " OFFSET 0)"
	" ORDER BY o.root_id",
	3, {TEXTOID, INT8OID, INT8OID}, NULL
};
static SagaStatement find_limit = {
	"SELECT name FROM saga.definition WHERE id = $1 AND max_running = 1",
	1, {INT4OID}, NULL
};
static SagaStatement find_alert = {
	"SELECT FROM saga.condition c WHERE c.kind = 'deadlock' AND c.saga_id = $1",
	1, {INT8OID}, NULL
};

/* One tree that was reached, and how. */
typedef struct Tree
{
	int64		root;			/* hash key */
	int64		from;			/* the tree that waits for it; 0 = the first */
	const char *lock;			/* ... and for what */
} Tree;

/* One tree of a circle, and for what it waits: the next one, or the first, has
 * it or stands before it in line. */
typedef struct Member
{
	int64		root;
	const char *lock;
	Saga	   *saga;			/* for one that only looks; may be NULL */
} Member;

typedef struct Wait
{
	char	   *lock_key;
	int64		position;
	int			places;			/* in a step; else 0 */
} Wait;

typedef struct Search
{
	MemoryContext memory;
	int64		start;
	HTAB	   *trees;
	List	   *queue;			/* of Tree, those whose waits are to be seen */
} Search;

static List *
append_id(MemoryContext memory, List *ids, int64 id)
{
	int64	   *copy = MemoryContextAlloc(memory, sizeof(int64));

	*copy = id;
	return append_in(memory, ids, copy);
}

static bool
has_id(const List *ids, int64 id)
{
	ListCell   *cell;

	foreach(cell, ids)
		if (*(const int64 *) lfirst(cell) == id)
			return true;
	return false;
}

/* The ids that the last statement returned in its first column. */
static List *
collect_ids(uint64 n, MemoryContext memory)
{
	List	   *ids = NIL;

	for (uint64 row = 0; row < n; row++)
	{
		bool		isnull;

		ids = append_id(memory, ids,
						DatumGetInt64(saga_statement_datum(row, 1, &isnull)));
	}
	SPI_freetuptable(SPI_tuptable);
	return ids;
}

static List *
read_waits(int64 root, MemoryContext memory)
{
	Datum		value = Int64GetDatum(root);
	uint64		n = saga_statement_run(&find_waits, &value, NULL, true, 0);
	List	   *waits = NIL;

	for (uint64 row = 0; row < n; row++)
	{
		Wait	   *wait = MemoryContextAlloc(memory, sizeof(Wait));
		bool		isnull;

		wait->lock_key = text_column(row, 1, memory);
		wait->position = DatumGetInt64(saga_statement_datum(row, 2, &isnull));
		wait->places = DatumGetInt32(saga_statement_datum(row, 3, &isnull));
		if (isnull)
			wait->places = 0;
		waits = append_in(memory, waits, wait);
	}
	SPI_freetuptable(SPI_tuptable);
	return waits;
}

/* What people call what is waited for; NULL if that does not count. */
static const char *
name_of_wait(const Wait *wait, MemoryContext memory)
{
	const char *name = NULL;
	Datum		value;

	switch (kind_of_key(wait->lock_key))
	{
		case KEY_LOCK:
			return name_in_key(wait->lock_key);
		case KEY_STEP:
			if (wait->places != 1)
				return NULL;
			return MemoryContextStrdup(memory,
									   psprintf("place in step %s",
												name_in_key(wait->lock_key)));
		case KEY_PLACE:
			break;
	}
	value = Int32GetDatum(definition_of_key(wait->lock_key));
	if (saga_statement_run(&find_limit, &value, NULL, true, 1) > 0)
	{
		MemoryContext old = MemoryContextSwitchTo(memory);

		name = psprintf("place of %s", text_column(0, 1, memory));
		MemoryContextSwitchTo(old);
	}
	SPI_freetuptable(SPI_tuptable);
	return name;
}

/* The way from the start to the last tree, and back by "lock". */
static List *
trace_circle(Search *search, const Tree *last, const char *lock)
{
	List	   *circle = NIL;
	MemoryContext old = MemoryContextSwitchTo(search->memory);

	for (const Tree *tree = last; tree != NULL;)
	{
		Member	   *member = palloc0(sizeof(Member));

		member->root = tree->root;
		member->lock = lock;
		circle = lcons(member, circle);
		lock = tree->lock;
		tree = tree->from == 0 ? NULL :
			hash_search(search->trees, &tree->from, HASH_FIND, NULL);
	}
	MemoryContextSwitchTo(old);
	return circle;
}

/* Look at what one tree waits for.  Returns a circle, if that closes one. */
static List *
follow_waits(Search *search, const Tree *tree, const List *left_out)
{
	List	   *waits = read_waits(tree->root, search->memory);
	ListCell   *cell;

	foreach(cell, waits)
	{
		const Wait *wait = lfirst(cell);
		const char *lock = name_of_wait(wait, search->memory);
		Datum		values[3] = {
			CStringGetTextDatum(wait->lock_key), Int64GetDatum(tree->root),
			Int64GetDatum(wait->position)
		};
		List	   *blockers;
		ListCell   *inner;

		if (lock == NULL)
			continue;
		blockers = collect_ids(saga_statement_run(&find_blockers, values, NULL,
												  true, 0),
							   search->memory);
		foreach(inner, blockers)
		{
			int64		root = *(int64 *) lfirst(inner);
			Tree	   *next;
			bool		known;

			if (root == search->start)
				return trace_circle(search, tree, lock);
			if (has_id(left_out, root))
				continue;
			next = hash_search(search->trees, &root, HASH_ENTER, &known);
			if (known)
				continue;
			next->from = tree->root;
			next->lock = lock;
			search->queue = append_in(search->memory, search->queue, next);
		}
	}
	return NIL;
}

/*
 * A shortest circle through this tree, as a list of Member that begins with
 * it, in "memory"; NIL if there is none.  "left_out" are trees that are taken
 * for gone.
 */
static List *
find_circle(int64 start, const List *left_out, MemoryContext memory)
{
	Search		search = {.memory = memory, .start = start};
	HASHCTL		control = {
		.keysize = sizeof(int64), .entrysize = sizeof(Tree), .hcxt = memory
	};
	List	   *circle = NIL;
	SagaOwnerSwitch owner;
	Tree	   *first;
	bool		known;

	search.trees = hash_create("trees of sagas", 64, &control,
							   HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	first = hash_search(search.trees, &start, HASH_ENTER, &known);
	first->from = 0;
	first->lock = NULL;
	search.queue = append_in(memory, NIL, first);
	saga_owner_enter(&owner);
	/* all of it as it was at one moment, or there would be circles that never
	 * were */
	PushActiveSnapshot(GetLatestSnapshot());
	for (int i = 0; circle == NIL && i < list_length(search.queue) &&
		 i < MAX_SEARCH; i++)
	{
		CHECK_FOR_INTERRUPTS();
		circle = follow_waits(&search, list_nth(search.queue, i), left_out);
	}
	PopActiveSnapshot();
	saga_owner_leave(&owner);
	return circle;
}

/* Is it on its way back, or told to go? */
static bool
is_leaving_circle(const Saga *saga)
{
	ListCell   *cell;

	if (saga->state.backward && saga->state.goal < 0)
		return true;
	foreach(cell, saga->messages)
		if (strcmp(((SagaMessage *) lfirst(cell))->kind, "deadlock") == 0)
			return true;
	return false;
}

/* Changes the saga, which is a copy. */
static bool
can_go_back(Saga *saga)
{
	SagaEvent	event = {
		.kind = SAGA_EVENT_CANCEL, .step = -1, .element = -1,
		.now = GetCurrentTimestamp()
	};

	if (saga->definition == NULL || saga->broken != NULL || saga->foreign ||
		saga_status_is_final(saga->state.status))
		return false;
	return saga_machine_apply(&saga->definition->rules, &saga->state,
							  &event) == SAGA_VERDICT_APPLIED;
}

/* The youngest first. */
static int
compare_members(const ListCell *a, const ListCell *b)
{
	const Member *left = lfirst(a);
	const Member *right = lfirst(b);

	return left->root < right->root ? 1 : left->root > right->root ? -1 : 0;
}

/* {"locks": [...], "sagas": [...]}, beginning with the one that is to go back:
 * each waits for the lock at the same place, which the next one has. */
static Jsonb *
describe_circle(const List *circle, int64 root)
{
	int			n = list_length(circle);
	int			first = 0;
	JsonbParseState *writer = NULL;

	for (int i = 0; i < n; i++)
		if (((Member *) list_nth(circle, i))->root == root)
			first = i;
	saga_json_begin_object(&writer);
	saga_json_key(&writer, "locks");
	saga_json_begin_array(&writer);
	for (int i = 0; i < n; i++)
		saga_json_add_string(&writer,
							 ((Member *) list_nth(circle, (first + i) % n))->lock);
	saga_json_end_array(&writer);
	saga_json_key(&writer, "sagas");
	saga_json_begin_array(&writer);
	for (int i = 0; i < n; i++)
	{
		const Member *member = list_nth(circle, (first + i) % n);
		JsonbValue	value = {.type = jbvNumeric};

		value.val.numeric = int64_to_numeric(member->root);
		(void) pushJsonbValue(&writer, WJB_ELEM, &value);
	}
	saga_json_end_array(&writer);
	return saga_json_finish_object(&writer);
}

static char *
list_sagas(const List *circle)
{
	StringInfoData ids;
	ListCell   *cell;

	initStringInfo(&ids);
	foreach(cell, circle)
		appendStringInfo(&ids, "%s%lld", ids.len > 0 ? ", " : "",
						 (long long) ((Member *) lfirst(cell))->root);
	return ids.data;
}

static char *
list_locks(const List *circle)
{
	StringInfoData locks;
	ListCell   *cell;

	initStringInfo(&locks);
	foreach(cell, circle)
		appendStringInfo(&locks, "%s\"%s\"", locks.len > 0 ? ", " : "",
						 ((Member *) lfirst(cell))->lock);
	return locks.data;
}

/* None of them can go back: that is for a person, unless he was told. */
static void
send_alert(const List *circle, const Saga *youngest)
{
	Datum		id = Int64GetDatum(youngest->ref.id);
	SagaOwnerSwitch owner;
	char	   *message;
	bool		told;

	saga_owner_enter(&owner);
	told = saga_statement_run(&find_alert, &id, NULL, false, 1) > 0;
	saga_owner_leave(&owner);
	if (told)
		return;
	message = psprintf("sagas %s wait for each other, and none of them can go back: %s",
					   list_sagas(circle), list_locks(circle));
	saga_alert_saga_on(youngest, SAGA_ALERT_DEADLOCK, message);
	ereport(LOG,
			errmsg_internal("%s", message),
			errhint("Use saga.abandon() for one of them."),
			errcontext("%s", saga_log_describe(youngest, NULL)));
}

static void
log_broken_circle(const List *circle, const Saga *saga)
{
	ereport(LOG,
			errmsg("saga %lld goes back, since sagas wait for each other's locks",
				   (long long) saga->ref.id),
			errdetail("They are sagas %s, and wait for %s.",
					  list_sagas(circle), list_locks(circle)),
			errcontext("%s", saga_log_describe(saga, NULL)));
}

/*
 * Have the youngest that can go back do so, unless one of them is going.
 * Returns which tree is taken for gone after that, in *gone; true if that one
 * was sent a message.
 */
static bool
break_circle(const List *circle, int64 *gone)
{
	List	   *members = list_copy(circle);
	const Saga *youngest = NULL;
	ListCell   *cell;

	list_sort(members, compare_members);
	*gone = ((Member *) linitial(members))->root;
	foreach(cell, members)
	{
		Member	   *member = lfirst(cell);

		member->saga = saga_store_peek(member->root);
		if (member->saga == NULL)
			continue;
		if (youngest == NULL)
			youngest = member->saga;
		if (is_leaving_circle(member->saga))
		{
			*gone = member->root;
			return false;
		}
	}
	foreach(cell, members)
	{
		Member	   *member = lfirst(cell);

		if (member->saga != NULL && can_go_back(member->saga) &&
			saga_store_post_to(member->root, "deadlock", NULL, -1,
							   describe_circle(circle, member->root)))
		{
			log_broken_circle(circle, member->saga);
			*gone = member->root;
			return true;
		}
	}
	if (youngest != NULL)
		send_alert(circle, youngest);
	return false;
}

/*
 * One circle is broken by one process, which has seen what the one before it
 * has done.  "wait" is false for one that must not wait for others.
 */
static bool
lock_circles(bool wait)
{
	if (!wait)
		return ConditionalLockDatabaseObject(lock_table(), InvalidOid,
											 SUBID_CIRCLES, ExclusiveLock);
	LockDatabaseObject(lock_table(), InvalidOid, SUBID_CIRCLES, ExclusiveLock);
	return true;
}

/* Returns how many messages were sent. */
static int
break_circles(const List *candidates, bool wait)
{
	List	   *left_out = NIL;
	bool		locked = false;
	int			sent = 0;
	ListCell   *cell;

	foreach(cell, candidates)
	{
		int64		start = *(int64 *) lfirst(cell);

		for (int i = 0; i < MAX_CIRCLES && !has_id(left_out, start); i++)
		{
			List	   *circle = find_circle(start, left_out,
											 CurrentMemoryContext);
			int64		gone;

			if (circle == NIL)
				break;
			if (!locked)
			{
				if (!lock_circles(wait))
					return sent;
				locked = true;
				continue;		/* look again: it may be broken already */
			}
			sent += break_circle(circle, &gone);
			left_out = append_id(CurrentMemoryContext, left_out, gone);
		}
	}
	return sent;
}

/* roots NULL: all. */
static int
look_for_circles(const int64 *roots, int n, bool wait)
{
	MemoryContext caller = CurrentMemoryContext;
	MemoryContext memory = AllocSetContextCreate(caller, "saga circles",
												 ALLOCSET_DEFAULT_SIZES);
	SagaOwnerSwitch owner;
	List	   *candidates;
	uint64		found;
	int			sent = 0;

	saga_owner_enter(&owner);
	if (roots == NULL)
		found = saga_statement_run(&find_all_candidates, NULL, NULL, false, 0);
	else
	{
		Datum		value = make_array(roots, n);

		found = saga_statement_run(&find_candidates, &value, NULL, false, 0);
	}
	candidates = collect_ids(found, memory);
	saga_owner_leave(&owner);
	if (candidates != NIL)
	{
		MemoryContextSwitchTo(memory);
		sent = break_circles(candidates, wait);
		MemoryContextSwitchTo(caller);
	}
	MemoryContextDelete(memory);
	return sent;
}

int
saga_locks_break_circles(const int64 *roots, int n)
{
	if (!saga_locks_in_use())
		return 0;
	return look_for_circles(n == 0 ? NULL : roots, n, n > 0);
}


/* ---- the sweep --------------------------------------------------------------- */

#define IS_GONE \
	" " SAGA_OF("l", "s.due_at") " IS NULL"

/* None in a copy of another database's files, whose sagas are not ours. */
static SagaStatement find_neglected = {
	"WITH line AS MATERIALIZED ("
	"  SELECT DISTINCT l.lock_key FROM saga.lock l WHERE NOT l.granted)"
	" SELECT k.lock_key FROM ("
	"  SELECT l.lock_key FROM line l"
	"  WHERE l.lock_key LIKE 'lock %' AND NOT EXISTS"
	"   (SELECT FROM saga.lock h WHERE h.lock_key = l.lock_key AND h.granted)"
	"  UNION"
	"  SELECT l.lock_key FROM line l"
	"  LEFT JOIN saga.definition d ON l.lock_key = 'definition ' || d.id"
	"  WHERE l.lock_key LIKE 'definition %' AND"
	"   (SELECT pg_catalog.count(*) FROM saga.lock h"
	"    WHERE h.lock_key = l.lock_key AND h.granted)"
	"   < COALESCE(d.max_running, 2147483647)"
	"  UNION"
	"  SELECT l.lock_key FROM line l CROSS JOIN LATERAL"
	"   (SELECT w.places FROM saga.lock w"
	"    WHERE w.lock_key = l.lock_key AND" STILL_WAITS("w")
	"    ORDER BY w.position LIMIT 1) head"
	"  WHERE l.lock_key LIKE 'step %' AND head.places >"
	"   (SELECT pg_catalog.count(*) FROM saga.lock h"
	"    WHERE h.lock_key = l.lock_key AND h.granted)"
	"  UNION"
	"  SELECT l.lock_key FROM saga.lock l WHERE" IS_GONE ") k"
	" WHERE EXISTS (SELECT FROM saga.coordinator c"
	"  JOIN pg_catalog.pg_database d ON d.oid = c.database"
	"  WHERE d.datname = pg_catalog.current_database())",
	0, {0}, NULL
};
static SagaStatement forget_gone = {
	"DELETE FROM saga.lock l WHERE l.lock_key = $1 AND" IS_GONE,
	1, {TEXTOID}, NULL
};

void
saga_locks_regrant(void)
{
	MemoryContext caller = CurrentMemoryContext;
	List	   *keys = NIL;
	ListCell   *cell;
	SagaOwnerSwitch owner;
	Oid			table;
	uint64		n;

	if (!saga_locks_in_use())
		return;
	table = lock_table();
	saga_owner_enter(&owner);
	n = saga_statement_run(&find_neglected, NULL, NULL, false, MAX_SWEEP_KEYS);
	for (uint64 row = 0; row < n; row++)
		keys = append_in(caller, keys, text_column(row, 1, caller));
	SPI_freetuptable(SPI_tuptable);
	foreach(cell, keys)
	{
		Datum		value = CStringGetTextDatum(lfirst(cell));

		/* whoever has it grants what is free himself; a coordinator does not
		 * wait for a role's commit */
		if (!ConditionalLockDatabaseObject(table, hash_key(lfirst(cell)),
										   subid_of_key(lfirst(cell)),
										   ExclusiveLock))
			continue;
		saga_statement_run(&forget_gone, &value, NULL, false, 0);
		grant_key(lfirst(cell), NULL, 0);
	}
	saga_owner_leave(&owner);
	MemoryContextSwitchTo(caller);
	(void) look_for_circles(NULL, 0, false);
}


/* ---- adopting ---------------------------------------------------------------- */

static SagaStatement follow_owners = {
	"UPDATE saga.lock l SET lock_key = 'lock ' || d.owner || ' '"
	"  || pg_catalog.regexp_replace(l.lock_key, '^lock [0-9]+ ', '')"
	" FROM saga.saga s"
	" JOIN saga.definition_version v ON v.id = s.definition_id"
	" JOIN saga.definition d ON d.name = v.name"
	" WHERE s.id = l.saga_id AND l.lock_key LIKE 'lock %'"
	"  AND pg_catalog.split_part(l.lock_key, ' ', 2) <> d.owner::pg_catalog.text",
	0, {0}, NULL
};

void
saga_locks_adopt(void)
{
	SagaOwnerSwitch owner;

	if (!saga_locks_in_use())
		return;
	saga_owner_enter(&owner);
	saga_statement_run(&follow_owners, NULL, NULL, false, 0);
	saga_owner_leave(&owner);
}
