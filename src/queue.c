/*
 * queue.c
 *		Owns the tables saga.queue and saga.queue_grant, and each backend's cache
 *		of them.
 *
 * Every change sends a relation cache invalidation for saga.queue, and each
 * backend counts those: with the next lookup after one it forgets all that it
 * has cached.  As in catalog.c, entries are loaded with the newest snapshot, and
 * the messages of a transaction that aborts undo what it had cached itself.
 * What a lookup returns is a copy, so forgetting takes nothing from anybody.
 *
 * Locks: a change of a queue locks its row; see also lock_access().  A
 * definition that names it takes an object lock on (saga.queue, id) in share
 * mode until its transaction ends, and saga.drop_queue(), after the row, the
 * same in exclusive mode; then that of saga.drop_definition() on each definition
 * with a version that names it: the definitions and sagas that it finds are then
 * all there are.
 *
 * Runs in any backend.  Killed at any line, it leaves what its transaction
 * leaves: all or nothing.
 */
#include "postgres.h"

#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "owner.h"
#include "queue.h"
#include "role.h"
#include "statement.h"

/* So many definitions that use a queue are named in an error. */
#define MAX_NAMED	5

typedef struct Grant
{
	SagaRoleRef role;
	bool		participates;	/* else it may offer */
} Grant;

typedef struct CachedQueue
{
	SagaQueue	queue;			/* its owner as stored, whoever that is now */
	const char *owner_name;
	int			ngrants;
	Grant	   *grants;
} CachedQueue;

typedef struct NameEntry
{
	char		name[NAMEDATALEN];	/* key */
	CachedQueue *queue;
} NameEntry;

typedef struct IdEntry
{
	int32		id;				/* key */
	CachedQueue *queue;
} IdEntry;

/* What is locked for a change. */
typedef struct QueueRow
{
	int32		id;
	SagaRoleRef owner;
} QueueRow;

static MemoryContext cache = NULL;	/* all of the next two is in it */
static HTAB *by_name;
static HTAB *by_id;
static uint32 cached_at;		/* number of invalidations when it was made */
static uint32 invalidations = 0;
static Oid	queue_relation = InvalidOid;

#define QUEUE_COLUMNS \
	"q.id, q.name, q.owner, q.owner_name, q.paused, q.breaker_failures, " \
	"q.breaker_pause, q.breaker_max_pause "

static SagaStatement read_by_name = {
	"SELECT " QUEUE_COLUMNS "FROM saga.queue q WHERE q.name = $1",
	1, {TEXTOID}, NULL
};
static SagaStatement read_by_id = {
	"SELECT " QUEUE_COLUMNS "FROM saga.queue q WHERE q.id = $1",
	1, {INT4OID}, NULL
};
static SagaStatement read_grants = {
	"SELECT g.role, g.role_name, g.privilege = 'participate'"
	" FROM saga.queue_grant g WHERE g.queue_id = $1",
	1, {INT4OID}, NULL
};


/* ---- rows --------------------------------------------------------------- */

static Datum
row_datum(uint64 row, int column)
{
	bool		isnull;
	Datum		value = saga_statement_datum(row, column, &isnull);

	return isnull ? (Datum) 0 : value;
}

/* Of a column that is not null. */
static char *
row_text(uint64 row, int column)
{
	return TextDatumGetCString(row_datum(row, column));
}

/* saga.configure_queue() admits no months. */
static int64
row_microseconds(uint64 row, int column)
{
	Interval   *interval = DatumGetIntervalP(row_datum(row, column));

	return interval->day * USECS_PER_DAY + interval->time;
}


/* ---- the cache ---------------------------------------------------------- */

static void
count_invalidation(Datum arg, Oid relid)
{
	(void) arg;
	if (relid == InvalidOid || relid == queue_relation)
		invalidations++;
}

static void
make_cache(void)
{
	static bool registered = false;
	MemoryContext context;
	HASHCTL		control = {0};

	if (cache != NULL && cached_at == invalidations)
		return;
	if (!registered)
	{
		CacheRegisterRelcacheCallback(count_invalidation, (Datum) 0);
		registered = true;
	}
	if (cache != NULL)
	{
		context = cache;
		cache = NULL;
		MemoryContextDelete(context);
	}
	context = AllocSetContextCreate(CacheMemoryContext, "saga queues",
									ALLOCSET_DEFAULT_SIZES);
	control.hcxt = context;
	control.keysize = NAMEDATALEN;
	control.entrysize = sizeof(NameEntry);
	by_name = hash_create("saga queues by name", 16, &control,
						  HASH_ELEM | HASH_STRINGS | HASH_CONTEXT);
	control.keysize = sizeof(int32);
	control.entrysize = sizeof(IdEntry);
	by_id = hash_create("saga queues by id", 16, &control,
						HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	cached_at = invalidations;
	cache = context;
}

/* The table whose changes are changes of queues. */
static Oid
find_relation(void)
{
	queue_relation =
		get_relname_relid("queue", get_namespace_oid("saga", false));
	return queue_relation;
}

/* Tell every cache, this one included. */
static void
changed(void)
{
	CacheInvalidateRelcacheByRelid(find_relation());
}

/* Of the queue that was read. */
static CachedQueue *
make_queue(void)
{
	CachedQueue *cached = MemoryContextAllocZero(cache, sizeof(CachedQueue));
	SagaQueue  *queue = &cached->queue;
	Datum		id = row_datum(0, 1);

	queue->id = DatumGetInt32(id);
	queue->name = MemoryContextStrdup(cache, row_text(0, 2));
	queue->owner = DatumGetObjectId(row_datum(0, 3));
	cached->owner_name = MemoryContextStrdup(cache, row_text(0, 4));
	queue->paused = DatumGetBool(row_datum(0, 5));
	queue->breaker.failures = DatumGetInt32(row_datum(0, 6));
	queue->breaker.pause = row_microseconds(0, 7);
	queue->breaker.max_pause = row_microseconds(0, 8);

	cached->ngrants = (int) saga_statement_read_latest(&read_grants, &id);
	cached->grants = MemoryContextAlloc(cache,
										Max(cached->ngrants, 1) * sizeof(Grant));
	for (int i = 0; i < cached->ngrants; i++)
	{
		Grant	   *grant = &cached->grants[i];

		grant->role.oid = DatumGetObjectId(row_datum(i, 1));
		grant->role.name = MemoryContextStrdup(cache, row_text(i, 2));
		grant->participates = DatumGetBool(row_datum(i, 3));
	}
	return cached;
}

/* NULL if there is none.  The cache is there, and stays: an invalidation that
 * comes while we read has it forgotten with the next lookup. */
static CachedQueue *
load_queue(SagaStatement *statement, Datum key)
{
	SagaOwnerSwitch owner;
	CachedQueue *cached = NULL;

	saga_owner_enter(&owner);
	(void) find_relation();
	if (saga_statement_read_latest(statement, &key) > 0)
		cached = make_queue();
	saga_owner_leave(&owner);
	if (cached != NULL)
	{
		NameEntry  *name = hash_search(by_name, cached->queue.name, HASH_ENTER,
									   NULL);
		IdEntry    *id = hash_search(by_id, &cached->queue.id, HASH_ENTER, NULL);

		name->queue = cached;
		id->queue = cached;
	}
	return cached;
}

/* What these two return counts until the next lookup. */
static CachedQueue *
look_up_name(const char *name)
{
	NameEntry  *entry;

	if (strlen(name) > SAGA_MAX_QUEUE_NAME)
		return NULL;
	make_cache();
	entry = hash_search(by_name, name, HASH_FIND, NULL);
	return entry != NULL ? entry->queue :
		load_queue(&read_by_name, CStringGetTextDatum(name));
}

static CachedQueue *
look_up_id(int32 id)
{
	IdEntry    *entry;

	make_cache();
	entry = hash_search(by_id, &id, HASH_FIND, NULL);
	return entry != NULL ? entry->queue :
		load_queue(&read_by_id, Int32GetDatum(id));
}

static SagaQueue *
copy_queue(const CachedQueue *cached)
{
	SagaRoleRef owner;
	SagaQueue  *copy;

	if (cached == NULL)
		return NULL;
	copy = palloc(sizeof(SagaQueue));
	*copy = cached->queue;
	copy->name = pstrdup(cached->queue.name);
	owner.oid = cached->queue.owner;
	owner.name = cached->owner_name;
	if (!saga_role_is_there(&owner))
		copy->owner = InvalidOid;
	return copy;
}

SagaQueue *
saga_queue_find(const char *name)
{
	return copy_queue(look_up_name(name));
}

SagaQueue *
saga_queue_find_by_id(int32 id)
{
	return copy_queue(look_up_id(id));
}


/* ---- who may what ------------------------------------------------------- */

static const char *
privilege_name(SagaQueuePrivilege privilege)
{
	return privilege == SAGA_QUEUE_PARTICIPATE ? "participate" : "offer";
}

static bool
is_owner(const CachedQueue *cached, Oid user)
{
	SagaRoleRef owner = {cached->queue.owner, cached->owner_name};

	return saga_role_has_privileges(user, &owner);
}

static bool
is_granted(const CachedQueue *cached, Oid user, bool participates)
{
	for (int i = 0; i < cached->ngrants; i++)
	{
		const Grant *grant = &cached->grants[i];

		if (grant->participates == participates &&
			saga_role_is_there(&grant->role) &&
			has_privs_of_role(user, grant->role.oid))
			return true;
	}
	return false;
}

bool
saga_queue_may_offer(const SagaQueue *queue, Oid role)
{
	const CachedQueue *cached = look_up_id(queue->id);

	return cached != NULL && OidIsValid(role) &&
		(is_owner(cached, role) || is_granted(cached, role, false));
}

static void
report_undefined(const char *name)
{
	ereport(ERROR,
			errcode(ERRCODE_UNDEFINED_OBJECT),
			errmsg("queue \"%s\" does not exist", name),
			errhint("Make it with saga.create_queue()."));
}

void
saga_queue_check_participant(const SagaQueue *queue)
{
	Oid			user = GetUserId();
	const CachedQueue *cached;

	Assert(!saga_owner_is_current());
	if (saga_queue_is_servers(queue->id))
	{
		if (superuser_arg(user))
			return;
		ereport(ERROR,
				errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				errmsg("permission denied for calls of server \"%s\"",
					   queue->name));
	}
	cached = look_up_id(queue->id);
	if (cached == NULL)
		report_undefined(queue->name);
	if (!is_owner(cached, user) && !is_granted(cached, user, true))
		ereport(ERROR,
				errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				errmsg("permission denied for queue \"%s\"", queue->name),
				errhint("Its owner can allow it with saga.grant_participant()."));
}

bool
saga_queue_is_visible(int32 id)
{
	const CachedQueue *cached = look_up_id(id);
	Oid			user = GetUserId();

	return cached != NULL &&
		(is_owner(cached, user) || is_granted(cached, user, true) ||
		 is_granted(cached, user, false) ||
		 saga_owner_sees_health());
}

/* By its index: what has ended is not read. */
static SagaStatement look_at_ready = {
	"SELECT pg_catalog.count(*), pg_catalog.min(r.at)"
	" FROM (SELECT t.at FROM saga.task t"
	"       WHERE t.queue_id = $1 AND NOT t.claimed AND t.at IS NOT NULL"
	"       ORDER BY t.at LIMIT $2) r",
	2, {INT4OID, INT8OID}, NULL
};

/* One that was answered is there until its saga has taken the answer. */
static SagaStatement look_at_claimed = {
	"SELECT pg_catalog.count(*), pg_catalog.min(c.claimed_at),"
	"  pg_catalog.min(c.at)"
	" FROM (SELECT t.claimed_at, t.at FROM saga.task t"
	"       WHERE t.queue_id = $1 AND t.claimed AND t.at IS NOT NULL"
	"        AND t.outcome IS NULL ORDER BY t.at LIMIT $2) c",
	2, {INT4OID, INT8OID}, NULL
};

void
saga_queue_look(int32 id, int64 most, SagaQueueDepth *depth)
{
	Datum		values[] = {Int32GetDatum(id), Int64GetDatum(most)};
	SagaOwnerSwitch owner;

	saga_owner_enter(&owner);
	saga_statement_run(&look_at_ready, values, NULL, true, 0);
	depth->nready = DatumGetInt64(row_datum(0, 1));
	depth->oldest_ready = DatumGetTimestampTz(row_datum(0, 2));
	saga_statement_run(&look_at_claimed, values, NULL, true, 0);
	depth->nclaimed = DatumGetInt64(row_datum(0, 1));
	depth->oldest_claimed = DatumGetTimestampTz(row_datum(0, 2));
	depth->next_end = DatumGetTimestampTz(row_datum(0, 3));
	saga_owner_leave(&owner);
}

static void
check_owner(const char *name, const SagaRoleRef *owner, Oid user)
{
	if (saga_role_has_privileges(user, owner))
		return;
	ereport(ERROR,
			errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			errmsg("permission denied for queue \"%s\"", name),
			saga_role_is_there(owner) ? 0 :
			errdetail("Its owner, role \"%s\", is gone or has another name now.",
					  owner->name));
}

/* Raise unless "user" may make this role the owner of a queue. */
static void
check_new_owner(Oid owner, Oid user)
{
	if (!has_privs_of_role(user, owner))
		ereport(ERROR,
				errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				errmsg("permission denied to make role \"%s\" the owner of a queue",
					   GetUserNameFromId(owner, false)),
				errdetail("Role \"%s\" does not have its privileges.",
						  GetUserNameFromId(user, false)));
}


/* ---- names -------------------------------------------------------------- */

static void
invalid_name(const char *name, const char *where, const char *detail)
{
	ereport(ERROR,
			errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			where != NULL ? errmsg("invalid queue in %s", where) :
			name != NULL ? errmsg("invalid name for a queue: \"%s\"", name) :
			errmsg("invalid name for a queue"),
			errdetail_internal("%s", detail));
}

void
saga_queue_check_name(const char *name, const char *where)
{
	size_t		length = strlen(name);

	for (size_t i = 0; i < length; i++)
	{
		unsigned char c = name[i];

		if (c < 0x20 || c == 0x7f)
			invalid_name(NULL, where,
						 "Its name must not contain control characters.");
	}
	if (length == 0 || length > SAGA_MAX_QUEUE_NAME)
		invalid_name(pnstrdup(name, pg_mbcliplen(name, length,
												 SAGA_MAX_QUEUE_NAME)), where,
					 psprintf("Its name has 1 to %d bytes.",
							  SAGA_MAX_QUEUE_NAME));
	if (name[0] == ' ' || name[length - 1] == ' ')
		invalid_name(name, where, "Its name must not begin or end with a space.");
	if (strcmp(name, "alert") == 0)
		invalid_name(name, where,
					 "Its channel would be saga_alert, which is that of alerts.");
}


/* ---- rows that are changed ---------------------------------------------- */

static SagaStatement insert_row = {
	"INSERT INTO saga.queue (name, owner, owner_name, coordinator)"
	" SELECT $1, $2, $3, c.id FROM saga.coordinator c"
	" ON CONFLICT (name) DO NOTHING",
	3, {TEXTOID, OIDOID, TEXTOID}, NULL
};

/* False if there is one of that name, perhaps just now. */
static bool
insert_queue(const char *name, Oid owner)
{
	Datum		values[] = {
		CStringGetTextDatum(name), ObjectIdGetDatum(owner),
		CStringGetTextDatum(GetUserNameFromId(owner, false))
	};

	if (saga_statement_run(&insert_row, values, NULL, false, 0) == 0)
		return false;
	changed();
	return true;
}

static SagaStatement lock_to_change = {
	"SELECT q.id, q.owner, q.owner_name FROM saga.queue q"
	" WHERE q.name = $1 FOR NO KEY UPDATE",
	1, {TEXTOID}, NULL
};
static SagaStatement lock_to_drop = {
	"SELECT q.id, q.owner, q.owner_name FROM saga.queue q"
	" WHERE q.name = $1 FOR UPDATE",
	1, {TEXTOID}, NULL
};

/* False if there is none. */
static bool
lock_row(SagaStatement *lock, const char *name, QueueRow *row)
{
	Datum		value = CStringGetTextDatum(name);

	if (saga_statement_run(lock, &value, NULL, false, 0) == 0)
		return false;
	row->id = DatumGetInt32(row_datum(0, 1));
	row->owner.oid = DatumGetObjectId(row_datum(0, 2));
	row->owner.name = row_text(0, 3);
	return true;
}

/* Lock it for its owner, or raise. */
static void
lock_own(SagaStatement *lock, const char *name, Oid user, QueueRow *row)
{
	if (!lock_row(lock, name, row))
		report_undefined(name);
	check_owner(name, &row->owner, user);
}


/* ---- definitions -------------------------------------------------------- */

void
saga_queue_use_in_definition(const char *name)
{
	const CachedQueue *cached;
	Oid			user = GetUserId();
	int32		locked = 0;

	/* again if somebody drops it before we have the lock, which is kept: ids
	 * are not given twice */
	while ((cached = look_up_name(name)) == NULL || cached->queue.id != locked)
	{
		CHECK_FOR_INTERRUPTS();
		if (cached == NULL)
		{
			SagaOwnerSwitch owner;

			PreventCommandIfReadOnly("saga.define()");
			saga_owner_enter(&owner);
			(void) insert_queue(name, user);
			saga_owner_leave(&owner);
		}
		else
		{
			locked = cached->queue.id;
			LockDatabaseObject(queue_relation, locked, 0, AccessShareLock);
		}
	}
	if (!is_owner(cached, user) && !is_granted(cached, user, false))
		ereport(ERROR,
				errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				errmsg("permission denied for queue \"%s\"", name),
				errhint("Its owner can allow it with saga.grant_offer()."));
}


/* ---- making and dropping ------------------------------------------------ */

void
saga_queue_create(const char *name, Oid owner_role)
{
	SagaOwnerSwitch owner;
	bool		made;

	saga_queue_check_name(name, NULL);
	check_new_owner(owner_role, GetUserId());
	saga_owner_enter(&owner);
	made = insert_queue(name, owner_role);
	saga_owner_leave(&owner);
	if (!made)
		ereport(ERROR,
				errcode(ERRCODE_DUPLICATE_OBJECT),
				errmsg("queue \"%s\" already exists", name));
}

static SagaStatement find_definitions = {
	"SELECT DISTINCT d.id FROM saga.definition_version v"
	" JOIN saga.definition d ON d.name = v.name"
	" WHERE v.steps @> pg_catalog.jsonb_build_array("
	"  pg_catalog.jsonb_build_object('kind', 'external', 'queue', $1))"
	" ORDER BY d.id",
	1, {TEXTOID}, NULL
};

/* After this, whoever has begun a saga of one has committed, or is us. */
static void
lock_definitions(const char *name)
{
	Oid			relation = get_relname_relid("definition",
											 get_namespace_oid("saga", false));
	Datum		value = CStringGetTextDatum(name);
	uint64		n = saga_statement_read_latest(&find_definitions, &value);

	for (uint64 i = 0; i < n; i++)
		LockDatabaseObject(relation, DatumGetInt32(row_datum(i, 1)), 0,
						   AccessExclusiveLock);
}

static int
errmsg_in_use(const char *name)
{
	return errmsg("cannot drop queue \"%s\" because it is in use", name);
}

static SagaStatement count_open = {
	"SELECT pg_catalog.count(*) FROM saga.task t"
	" WHERE t.queue_id = $1 AND t.at IS NOT NULL",
	1, {INT4OID}, NULL
};

static void
check_no_tasks(const char *name, int32 id)
{
	Datum		value = Int32GetDatum(id);
	int64		n;

	saga_statement_read_latest(&count_open, &value);
	n = DatumGetInt64(row_datum(0, 1));
	if (n > 0)
		ereport(ERROR,
				errcode(ERRCODE_OBJECT_IN_USE),
				errmsg_in_use(name),
				errdetail_plural("It has %lld open task.",
								 "It has %lld open tasks.",
								 (unsigned long) n, (long long) n),
				errhint("Wait for the answers, or cancel the sagas."));
}

static SagaStatement find_users = {
	"SELECT d.name FROM saga.definition d"
	" CROSS JOIN LATERAL ("
	"  SELECT w.steps FROM saga.definition_version w WHERE w.name = d.name"
	"  ORDER BY w.version DESC LIMIT 1) v"
	" WHERE v.steps @> pg_catalog.jsonb_build_array("
	"  pg_catalog.jsonb_build_object('kind', 'external', 'queue', $1))"
	" ORDER BY d.name",
	1, {TEXTOID}, NULL
};

static void
check_no_definitions(const char *name)
{
	Datum		value = CStringGetTextDatum(name);
	uint64		n = saga_statement_read_latest(&find_users, &value);
	StringInfoData list;

	if (n == 0)
		return;
	initStringInfo(&list);
	for (uint64 i = 0; i < Min(n, MAX_NAMED); i++)
		appendStringInfo(&list, "%s\"%s\"", i > 0 ? ", " : "", row_text(i, 1));
	if (n > MAX_NAMED)
		appendStringInfo(&list, " and %llu more",
						 (unsigned long long) (n - MAX_NAMED));
	ereport(ERROR,
			errcode(ERRCODE_OBJECT_IN_USE),
			errmsg_in_use(name),
			errdetail_plural("Steps of saga definition %s name it.",
							 "Steps of saga definitions %s name it.",
							 (unsigned long) n, list.data),
			errhint("Define them anew without it, or drop them."));
}

static SagaStatement count_unfinished = {
	"SELECT pg_catalog.count(*) FROM saga.saga s"
	" WHERE s.due_at IS NOT NULL AND s.definition_id = ANY (ARRAY("
	"  SELECT v.id FROM saga.definition_version v"
	"  WHERE v.steps @> pg_catalog.jsonb_build_array("
	"   pg_catalog.jsonb_build_object('kind', 'external', 'queue', $1))))",
	1, {TEXTOID}, NULL
};

static void
check_no_sagas(const char *name)
{
	Datum		value = CStringGetTextDatum(name);
	int64		n;

	saga_statement_read_latest(&count_unfinished, &value);
	n = DatumGetInt64(row_datum(0, 1));
	if (n > 0)
		ereport(ERROR,
				errcode(ERRCODE_OBJECT_IN_USE),
				errmsg_in_use(name),
				errdetail_plural("%lld saga of an earlier version, which names it, has not ended.",
								 "%lld sagas of earlier versions, which name it, have not ended.",
								 (unsigned long) n, (long long) n),
				errhint("Wait for the end, or use saga.migrate() to go on with the newest version."));
}

static SagaStatement delete_grants = {
	"DELETE FROM saga.queue_grant WHERE queue_id = $1",
	1, {INT4OID}, NULL
};
static SagaStatement delete_row = {
	"DELETE FROM saga.queue WHERE id = $1",
	1, {INT4OID}, NULL
};

static void
delete_queue(int32 id)
{
	Datum		value = Int32GetDatum(id);

	saga_statement_run(&delete_grants, &value, NULL, false, 0);
	saga_statement_run(&delete_row, &value, NULL, false, 0);
}

void
saga_queue_drop(const char *name)
{
	SagaOwnerSwitch owner;
	Oid			user = GetUserId();
	QueueRow	row;

	saga_owner_enter(&owner);
	lock_own(&lock_to_drop, name, user, &row);
	LockDatabaseObject(find_relation(), row.id, 0, AccessExclusiveLock);
	lock_definitions(name);
	check_no_tasks(name, row.id);
	check_no_definitions(name);
	check_no_sagas(name);
	delete_queue(row.id);
	changed();
	saga_owner_leave(&owner);
	saga_qstate_forget(row.id);
}


/* ---- settings ----------------------------------------------------------- */

static SagaStatement update_row = {
	"UPDATE saga.queue SET breaker_failures = COALESCE($2, breaker_failures),"
	" breaker_pause = COALESCE($3, breaker_pause),"
	" breaker_max_pause = COALESCE($4, breaker_max_pause),"
	" paused = COALESCE($5, paused), owner = COALESCE($6, owner),"
	" owner_name = COALESCE($7, owner_name) WHERE id = $1"
	" RETURNING breaker_pause > breaker_max_pause",
	7, {INT4OID, INT4OID, INTERVALOID, INTERVALOID, BOOLOID, OIDOID, TEXTOID},
	NULL
};

static void
update_queue(const char *name, int32 id, const SagaQueueSettings *settings)
{
	Datum		values[7] = {Int32GetDatum(id)};
	char		nulls[] = " nnnnnn";

	if (settings->breaker_failures != NULL)
	{
		values[1] = Int32GetDatum(*settings->breaker_failures);
		nulls[1] = ' ';
	}
	if (settings->breaker_pause != NULL)
	{
		values[2] = IntervalPGetDatum(settings->breaker_pause);
		nulls[2] = ' ';
	}
	if (settings->breaker_max_pause != NULL)
	{
		values[3] = IntervalPGetDatum(settings->breaker_max_pause);
		nulls[3] = ' ';
	}
	if (settings->paused != NULL)
	{
		values[4] = BoolGetDatum(*settings->paused);
		nulls[4] = ' ';
	}
	if (OidIsValid(settings->owner))
	{
		values[5] = ObjectIdGetDatum(settings->owner);
		values[6] = CStringGetTextDatum(GetUserNameFromId(settings->owner,
														  false));
		nulls[5] = nulls[6] = ' ';
	}
	saga_statement_run(&update_row, values, nulls, false, 0);
	if (DatumGetBool(row_datum(0, 1)))
		ereport(ERROR,
				errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				errmsg("invalid breaker_max_pause in queue \"%s\"", name),
				errdetail("It must not be shorter than breaker_pause."));
}

/* Lock it for its owner or an operator. */
static void
lock_as_operator(const char *name, Oid user, bool is_operator, QueueRow *row)
{
	if (!lock_row(&lock_to_change, name, row))
		report_undefined(name);
	if (!is_operator)
		check_owner(name, &row->owner, user);
}

void
saga_queue_configure(const char *name, const SagaQueueSettings *settings)
{
	SagaOwnerSwitch owner;
	Oid			user = GetUserId();
	bool		for_operators = settings->breaker_failures == NULL &&
		settings->breaker_pause == NULL &&
		settings->breaker_max_pause == NULL && !OidIsValid(settings->owner);
	bool		is_operator = for_operators &&
		saga_owner_has_granted("operator_privilege");
	QueueRow	row;

	saga_owner_enter(&owner);
	lock_as_operator(name, user, is_operator, &row);
	if (OidIsValid(settings->owner))
		check_new_owner(settings->owner, user);
	update_queue(name, row.id, settings);
	changed();
	saga_owner_leave(&owner);
	/* what was offered meanwhile is claimed by those who listen */
	if (settings->paused != NULL && !*settings->paused)
		saga_qstate_offered(row.id, name, 0);
}

void
saga_queue_reset_breaker(const char *name)
{
	SagaOwnerSwitch owner;
	Oid			user = GetUserId();
	bool		is_operator = saga_owner_has_granted("operator_privilege");
	QueueRow	row;

	saga_owner_enter(&owner);
	lock_as_operator(name, user, is_operator, &row);
	saga_owner_leave(&owner);
	saga_qstate_close_breaker(row.id);
	saga_qstate_offered(row.id, name, 0);
}


/* ---- grants ------------------------------------------------------------- */

/*
 * What a participant may do but for its queues: each of these functions and
 * views looks at the grants itself.  So they are not taken away again: the role
 * may have them from somebody else, or need them for a queue of its own.
 */
static const char *const participant_rights[] =
{
	"USAGE ON SCHEMA saga",
	"USAGE ON TYPE saga.operation",
	"EXECUTE ON ROUTINE saga.claim_tasks, saga.complete_task,"
	" saga.complete_tasks, saga.fail_task, saga.fail_tasks,"
	" saga.extend_lease, saga.extend_leases, saga.release_task,"
	" saga.release_tasks, saga.sees_all, saga.sees_health, saga.queues_raw,"
	" saga.participants_raw",
	"SELECT ON saga.queues, saga.tasks, saga.participants"
};

/* Before a queue is locked: two GRANTs at once of one object would fail. */
static void
lock_access(void)
{
	LockDatabaseObject(find_relation(), 0, 0, ExclusiveLock);
}

/* As the owner of the extension. */
static void
give_access(const char *role_name)
{
	for (size_t i = 0; i < lengthof(participant_rights); i++)
	{
		char	   *command = psprintf("GRANT %s TO %s", participant_rights[i],
									   quote_identifier(role_name));
		int			result = SPI_execute(command, false, 0);

		if (result < 0)
			elog(ERROR, "could not execute \"%s\": %s", command,
				 SPI_result_code_string(result));
	}
}

static SagaStatement insert_grant = {
	"INSERT INTO saga.queue_grant (queue_id, role, role_name, privilege, granted_by)"
	" VALUES ($1, $2, $3, $4, $5)"
	" ON CONFLICT (queue_id, privilege, role_name) DO UPDATE"
	"  SET role = excluded.role, granted_by = excluded.granted_by,"
	"   granted_at = excluded.granted_at",
	5, {INT4OID, OIDOID, TEXTOID, TEXTOID, TEXTOID}, NULL
};

/* Lock it for its owner; a superuser makes it, if it is for participants. */
static void
lock_for_grant(const char *name, Oid user, bool may_make, QueueRow *row)
{
	while (!lock_row(&lock_to_change, name, row))
	{
		CHECK_FOR_INTERRUPTS();
		if (!may_make)
			report_undefined(name);
		(void) insert_queue(name, user);
	}
	check_owner(name, &row->owner, user);
}

void
saga_queue_grant(const char *name, SagaQueuePrivilege privilege, Oid role)
{
	SagaOwnerSwitch owner;
	Oid			user = GetUserId();
	bool		may_make = privilege == SAGA_QUEUE_PARTICIPATE &&
		superuser_arg(user);
	char	   *role_name = GetUserNameFromId(role, false);
	QueueRow	row;
	Datum		values[5];

	if (may_make)
		saga_queue_check_name(name, NULL);
	saga_owner_enter(&owner);
	if (privilege == SAGA_QUEUE_PARTICIPATE)
		lock_access();
	lock_for_grant(name, user, may_make, &row);
	values[0] = Int32GetDatum(row.id);
	values[1] = ObjectIdGetDatum(role);
	values[2] = CStringGetTextDatum(role_name);
	values[3] = CStringGetTextDatum(privilege_name(privilege));
	values[4] = CStringGetTextDatum(GetUserNameFromId(user, false));
	saga_statement_run(&insert_grant, values, NULL, false, 0);
	changed();
	if (privilege == SAGA_QUEUE_PARTICIPATE)
		give_access(role_name);
	saga_owner_leave(&owner);
}

static SagaStatement delete_grant = {
	"DELETE FROM saga.queue_grant"
	" WHERE queue_id = $1 AND role_name = $2 AND privilege = $3",
	3, {INT4OID, TEXTOID, TEXTOID}, NULL
};

bool
saga_queue_revoke(const char *name, SagaQueuePrivilege privilege,
				  const char *role_name)
{
	SagaOwnerSwitch owner;
	Oid			user = GetUserId();
	QueueRow	row;
	Datum		values[3];
	bool		found;

	saga_owner_enter(&owner);
	lock_own(&lock_to_change, name, user, &row);
	values[0] = Int32GetDatum(row.id);
	values[1] = CStringGetTextDatum(role_name);
	values[2] = CStringGetTextDatum(privilege_name(privilege));
	found = saga_statement_run(&delete_grant, values, NULL, false, 0) > 0;
	changed();
	saga_owner_leave(&owner);
	return found;
}


/* ---- adopting ----------------------------------------------------------- */

/* As those of catalog.c: first those made here, whose role may have been
 * renamed since; then those of another coordinator. */
static SagaStatement adopt_statements[] = {
	{
		"UPDATE saga.queue_grant g SET role_name = r.rolname"
		" FROM saga.queue q, saga.coordinator c, pg_catalog.pg_authid r"
		" WHERE q.id = g.queue_id AND q.coordinator = c.id"
		"  AND r.oid = g.role AND r.rolname <> g.role_name",
		0, {0}, NULL
	},
	{
		"UPDATE saga.queue q SET owner_name = r.rolname"
		" FROM saga.coordinator c, pg_catalog.pg_authid r"
		" WHERE q.coordinator = c.id AND r.oid = q.owner"
		"  AND r.rolname <> q.owner_name",
		0, {0}, NULL
	},
	{
		"UPDATE saga.queue_grant g SET role = r.oid"
		" FROM pg_catalog.pg_authid r"
		" WHERE r.rolname = g.role_name AND r.oid <> g.role",
		0, {0}, NULL
	},
	{
		"UPDATE saga.queue q SET owner = r.oid"
		" FROM pg_catalog.pg_authid r"
		" WHERE r.rolname = q.owner_name AND r.oid <> q.owner",
		0, {0}, NULL
	},
	{
		"UPDATE saga.queue q SET coordinator = c.id"
		" FROM saga.coordinator c WHERE q.coordinator <> c.id",
		0, {0}, NULL
	}
};

void
saga_queue_adopt(void)
{
	SagaOwnerSwitch owner;

	saga_owner_enter(&owner);
	for (size_t i = 0; i < lengthof(adopt_statements); i++)
		saga_statement_run(&adopt_statements[i], NULL, NULL, false, 0);
	changed();
	saga_owner_leave(&owner);
}
