/*
 * server.c
 *		Owns the tables saga.server and saga.server_role, and each backend's cache
 *		of them.
 *
 * A row of saga.server_role is made by the first executor that offers a call of
 * its role to the server, in the saga's transaction: another one of that role
 * waits for that transaction, once.  The role is known by its OID: one of the
 * same name that is made later has a row of its own, and nothing of the other's.
 * saga.adopt() gives the rows of a dump the OIDs of here.  A row of saga.server is there only if somebody has
 * changed a setting.
 *
 * As in queue.c every change sends a relation cache invalidation, for
 * saga.server_role, and each backend forgets all that it has cached with the
 * next lookup after one.
 *
 * Runs in any backend.  Killed at any line, it leaves what its transaction
 * leaves: all or nothing.
 */
#include "postgres.h"

#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "owner.h"
#include "server.h"
#include "statement.h"

/* Two names of a server and a role; zeros behind them. */
typedef struct QueueKey
{
	NameData	server;
	Oid			role;
} QueueKey;

typedef struct KeyEntry
{
	QueueKey	key;
	SagaServerQueue *queue;
} KeyEntry;

typedef struct IdEntry
{
	int32		id;				/* key */
	SagaServerQueue *queue;
} IdEntry;

static MemoryContext cache = NULL;	/* all of the next two is in it */
static HTAB *by_key;
static HTAB *by_id;
static uint32 cached_at;		/* number of invalidations when it was made */
static uint32 invalidations = 0;
static Oid	role_relation = InvalidOid;

/* saga.configure_server() admits no months. */
#define MICROSECONDS(interval) \
	"(EXTRACT(epoch FROM " interval ") * 1000000)::pg_catalog.int8"

/* Intervals as numbers: those of a server without a row are the columns'
 * defaults. */
#define QUEUE_COLUMNS \
	"r.id, r.server, r.role, r.role_name," \
	" COALESCE(s.paused, false), COALESCE(s.breaker_failures, 5)," \
	" COALESCE(" MICROSECONDS("s.breaker_pause") ", 1000000)," \
	" COALESCE(" MICROSECONDS("s.breaker_max_pause") ", 60000000)," \
	" CASE WHEN r.once THEN 1 WHEN NOT r.once THEN 0 ELSE -1 END "
#define QUEUE_TABLES \
	"FROM saga.server_role r LEFT JOIN saga.server s ON s.name = r.server "

static SagaStatement read_by_key = {
	"SELECT " QUEUE_COLUMNS QUEUE_TABLES
	"WHERE r.server = $1 AND r.role = $2 AND r.role_name = $3",
	3, {TEXTOID, OIDOID, TEXTOID}, NULL
};
static SagaStatement read_by_id = {
	"SELECT " QUEUE_COLUMNS QUEUE_TABLES "WHERE r.id = $1",
	1, {INT4OID}, NULL
};
static SagaStatement read_ids = {
	"SELECT r.id FROM saga.server_role r ORDER BY r.id DESC", 0, {0}, NULL
};
static SagaStatement read_once = {
	"SELECT pg_catalog.bool_and(r.once) FROM saga.server_role r WHERE r.server = $1",
	1, {TEXTOID}, NULL
};
static SagaStatement insert_row = {
	"INSERT INTO saga.server_role (server, role, role_name) VALUES ($1, $2, $3)"
	" ON CONFLICT (server, role) DO UPDATE SET role_name = excluded.role_name"
	" WHERE server_role.role_name <> excluded.role_name",
	3, {TEXTOID, OIDOID, TEXTOID}, NULL
};
static SagaStatement note_row = {
	"UPDATE saga.server_role SET once = $2, saga_version = $3 WHERE id = $1"
	" AND (once, saga_version) IS DISTINCT FROM ($2, $3)",
	3, {INT4OID, BOOLOID, TEXTOID}, NULL
};


/* ---- the cache ---------------------------------------------------------- */

static void
count_invalidation(Datum arg, Oid relid)
{
	(void) arg;
	if (relid == InvalidOid || relid == role_relation)
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
	context = AllocSetContextCreate(CacheMemoryContext, "saga servers",
									ALLOCSET_DEFAULT_SIZES);
	control.hcxt = context;
	control.keysize = sizeof(QueueKey);
	control.entrysize = sizeof(KeyEntry);
	by_key = hash_create("saga servers by name and role", 16, &control,
						 HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	control.keysize = sizeof(int32);
	control.entrysize = sizeof(IdEntry);
	by_id = hash_create("saga servers by id", 16, &control,
						HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	cached_at = invalidations;
	cache = context;
}

/* The table whose changes are changes of servers. */
static Oid
find_relation(void)
{
	role_relation =
		get_relname_relid("server_role", get_namespace_oid("saga", false));
	return role_relation;
}

void
saga_server_changed(void)
{
	CacheInvalidateRelcacheByRelid(find_relation());
}

static Datum
row_datum(int column)
{
	bool		isnull;

	return saga_statement_datum(0, column, &isnull);
}

/* Of the row that was read. */
static SagaServerQueue *
make_queue(void)
{
	SagaServerQueue *made = MemoryContextAllocZero(cache,
												   sizeof(SagaServerQueue));
	SagaQueue  *queue = &made->queue;

	queue->id = DatumGetInt32(row_datum(1));
	queue->name = MemoryContextStrdup(cache, TextDatumGetCString(row_datum(2)));
	made->role = DatumGetObjectId(row_datum(3));
	made->role_name = MemoryContextStrdup(cache,
										  TextDatumGetCString(row_datum(4)));
	queue->owner = made->role;
	queue->paused = DatumGetBool(row_datum(5));
	queue->breaker.failures = DatumGetInt32(row_datum(6));
	queue->breaker.pause = DatumGetInt64(row_datum(7));
	queue->breaker.max_pause = DatumGetInt64(row_datum(8));
	made->once = DatumGetInt32(row_datum(9));
	return made;
}

static QueueKey
make_key(const char *server, Oid role)
{
	QueueKey	key;

	memset(&key, 0, sizeof(key));
	strlcpy(NameStr(key.server), server, NAMEDATALEN);
	key.role = role;
	return key;
}

static SagaServerQueue *
remember(void)
{
	SagaServerQueue *queue = make_queue();
	QueueKey	key = make_key(queue->queue.name, queue->role);
	KeyEntry   *named = hash_search(by_key, &key, HASH_ENTER, NULL);
	IdEntry    *numbered = hash_search(by_id, &queue->queue.id, HASH_ENTER,
									   NULL);

	named->queue = numbered->queue = queue;
	return queue;
}

/* NULL if there is none.  With the owner's switch on. */
static SagaServerQueue *
load(SagaStatement *statement, Datum *values)
{
	(void) find_relation();
	return saga_statement_read_latest(statement, values) > 0 ?
		remember() : NULL;
}

static SagaServerQueue *
copy_queue(const SagaServerQueue *cached)
{
	SagaServerQueue *copy;

	if (cached == NULL)
		return NULL;
	copy = palloc(sizeof(SagaServerQueue));
	*copy = *cached;
	copy->queue.name = pstrdup(cached->queue.name);
	copy->role_name = pstrdup(cached->role_name);
	return copy;
}


/* ---- lookups ------------------------------------------------------------ */

static SagaServerQueue *
find_or_make(const char *server, Oid role, bool make)
{
	QueueKey	key = make_key(server, role);
	SagaServerQueue *found = NULL;
	KeyEntry   *entry;
	char	   *role_name;

	if (strlen(server) >= NAMEDATALEN)
		return NULL;
	make_cache();
	entry = hash_search(by_key, &key, HASH_FIND, NULL);
	if (entry != NULL)
		return copy_queue(entry->queue);
	role_name = GetUserNameFromId(role, true);
	if (role_name != NULL)
	{
		SagaOwnerSwitch owner;
		Datum		values[3];

		values[0] = CStringGetTextDatum(server);
		values[1] = ObjectIdGetDatum(role);
		values[2] = CStringGetTextDatum(role_name);
		saga_owner_enter(&owner);
		found = load(&read_by_key, values);
		if (found == NULL && make)
		{
			if (saga_statement_run(&insert_row, values, NULL, false, 0) > 0)
				saga_server_changed();
			found = load(&read_by_key, values);
		}
		saga_owner_leave(&owner);
	}
	return copy_queue(found);
}

SagaServerQueue *
saga_server_queue(const char *server, Oid role)
{
	SagaServerQueue *queue = find_or_make(server, role, true);

	if (queue == NULL)
		ereport(ERROR,
				errcode(ERRCODE_UNDEFINED_OBJECT),
				errmsg("role with OID %u, or server \"%s\", does not exist",
					   role, server));
	return queue;
}

SagaServerQueue *
saga_server_find(const char *server, Oid role)
{
	return find_or_make(server, role, false);
}

SagaServerQueue *
saga_server_queue_by_id(int32 id)
{
	SagaServerQueue *found;
	SagaOwnerSwitch owner;
	IdEntry    *entry;
	Datum		value = Int32GetDatum(id);

	make_cache();
	entry = hash_search(by_id, &id, HASH_FIND, NULL);
	if (entry != NULL)
		return copy_queue(entry->queue);
	saga_owner_enter(&owner);
	found = load(&read_by_id, &value);
	saga_owner_leave(&owner);
	return copy_queue(found);
}

int
saga_server_once(const char *server)
{
	Datum		value = CStringGetTextDatum(server);
	SagaOwnerSwitch owner;
	bool		isnull;
	int			once;

	saga_owner_enter(&owner);
	(void) saga_statement_read_latest(&read_once, &value);
	once = DatumGetBool(saga_statement_datum(0, 1, &isnull)) ? 1 : 0;
	saga_owner_leave(&owner);
	return isnull ? -1 : once;
}

int
saga_server_list(int32 **ids)
{
	MemoryContext caller = CurrentMemoryContext;
	SagaOwnerSwitch owner;
	int			n;

	saga_owner_enter(&owner);
	n = (int) saga_statement_read_latest(&read_ids, NULL);
	*ids = MemoryContextAlloc(caller, Max(n, 1) * sizeof(int32));
	for (int i = 0; i < n; i++)
	{
		bool		isnull;

		(*ids)[i] = DatumGetInt32(saga_statement_datum(i, 1, &isnull));
	}
	saga_owner_leave(&owner);
	return n;
}


/* ---- changes ------------------------------------------------------------ */

void
saga_server_note(int32 id, bool once, const char *version)
{
	SagaOwnerSwitch owner;
	Datum		values[3];

	values[0] = Int32GetDatum(id);
	values[1] = BoolGetDatum(once);
	values[2] = version == NULL ? (Datum) 0 : CStringGetTextDatum(version);
	saga_owner_enter(&owner);
	if (saga_statement_run(&note_row, values, version == NULL ? "  n" : NULL,
						   false, 0) > 0)
		saga_server_changed();
	saga_owner_leave(&owner);
}

void
saga_server_wake(const char *server)
{
	int32	   *ids;
	int			n = saga_server_list(&ids);

	for (int i = 0; i < n; i++)
	{
		SagaServerQueue *queue = saga_server_queue_by_id(ids[i]);

		if (queue != NULL && strcmp(queue->queue.name, server) == 0)
			saga_qstate_offered(ids[i], queue->queue.name, 0);
	}
}

/* ---- what servers may forget -------------------------------------------- */

/*
 * So many sagas that are not final are kept by name; with more of them in the
 * way less is forgotten.  A saga is seen a day after it was begun: its
 * transaction may not have ended before.  Of all roles: over there several may
 * be the same.
 */
static SagaStatement take_marks = {
	"INSERT INTO saga.server_mark (taken_at, before, kept)"
	" SELECT pg_catalog.now(), m.before, m.kept"
	" FROM (SELECT WHERE NOT EXISTS (SELECT FROM saga.server_mark m"
	"   WHERE m.taken_at > pg_catalog.now() - '1 day'::pg_catalog.interval)"
	"  AND EXISTS (SELECT FROM saga.server_role r WHERE r.once)) due"
	" CROSS JOIN LATERAL (SELECT"
	"  LEAST(pg_catalog.now() - '1 day'::pg_catalog.interval,"
	"        pg_catalog.min(u.created_at) FILTER (WHERE u.n > 1000)) AS before,"
	"  COALESCE(pg_catalog.array_agg(u.token) FILTER (WHERE u.n <= 1000), '{}')"
	"   AS kept"
	"  FROM (SELECT s.created_at, s.token,"
	"    pg_catalog.row_number() OVER (ORDER BY s.id) AS n"
	"   FROM saga.saga s WHERE s.due_at IS NOT NULL"
	"   AND s.role IN (SELECT r.role FROM saga.server_role r)"
	"   ORDER BY s.id LIMIT 1001) u OFFSET 0) m",
	0, {0}, NULL
};

#define LONGEST_RETENTION \
	"(SELECT COALESCE(pg_catalog.max(d.retention), '30 days'::pg_catalog.interval)" \
	" FROM saga.definition d)"

/* The newest mark that is old enough. */
#define OLD_MARK \
	"(SELECT m.taken_at, m.before, m.kept FROM saga.server_mark m" \
	"  WHERE m.taken_at < pg_catalog.now() - " LONGEST_RETENTION \
	"  ORDER BY m.taken_at DESC LIMIT 1) m"

static SagaStatement drop_marks = {
	"DELETE FROM saga.server_mark o USING " OLD_MARK
	" WHERE o.taken_at < m.taken_at",
	0, {0}, NULL
};
static SagaStatement read_forgets = {
	"SELECT r.id, m.before::pg_catalog.text, m.kept::pg_catalog.text"
	" FROM saga.server_role r CROSS JOIN " OLD_MARK
	" WHERE r.once AND (r.purged_at IS NULL"
	"  OR r.purged_at < pg_catalog.now() - '1 day'::pg_catalog.interval)",
	0, {0}, NULL
};
static SagaStatement note_forgotten = {
	"UPDATE saga.server_role SET purged_at = pg_catalog.now() WHERE id = $1",
	1, {INT4OID}, NULL
};

void
saga_server_take_marks(void)
{
	SagaOwnerSwitch owner;

	saga_owner_enter(&owner);
	if (saga_statement_run(&take_marks, NULL, NULL, false, 0) > 0)
		(void) saga_statement_run(&drop_marks, NULL, NULL, false, 0);
	saga_owner_leave(&owner);
}

int
saga_server_forgets(SagaServerForget **forgets)
{
	MemoryContext caller = CurrentMemoryContext;
	SagaOwnerSwitch owner;
	int			n;

	saga_owner_enter(&owner);
	n = (int) saga_statement_run(&read_forgets, NULL, NULL, true, 0);
	*forgets = MemoryContextAlloc(caller, Max(n, 1) * sizeof(SagaServerForget));
	for (int i = 0; i < n; i++)
	{
		bool		isnull;
		SagaServerForget *forget = &(*forgets)[i];

		forget->id = DatumGetInt32(saga_statement_datum(i, 1, &isnull));
		forget->before =
			MemoryContextStrdup(caller,
								TextDatumGetCString(saga_statement_datum(i, 2, &isnull)));
		forget->kept =
			MemoryContextStrdup(caller,
								TextDatumGetCString(saga_statement_datum(i, 3, &isnull)));
	}
	saga_owner_leave(&owner);
	return n;
}

void
saga_server_forgotten(int32 id)
{
	Datum		value = Int32GetDatum(id);
	SagaOwnerSwitch owner;

	saga_owner_enter(&owner);
	(void) saga_statement_run(&note_forgotten, &value, NULL, false, 0);
	saga_owner_leave(&owner);
}

static SagaStatement adopt_roles = {
	"UPDATE saga.server_role s SET role = r.oid"
	" FROM pg_catalog.pg_authid r"
	" WHERE r.rolname = s.role_name AND r.oid <> s.role",
	0, {0}, NULL
};

/* What a courier follows, of the original: its next attempt finds the child. */
static SagaStatement end_following = {
	"UPDATE saga.task SET at = pg_catalog.clock_timestamp()"
	" WHERE queue_id < 0 AND claimed AND at = 'infinity'",
	0, {0}, NULL
};

void
saga_server_adopt(void)
{
	SagaOwnerSwitch owner;

	saga_owner_enter(&owner);
	(void) saga_statement_run(&adopt_roles, NULL, NULL, false, 0);
	if (saga_statement_run(&end_following, NULL, NULL, false, 0) > 0)
		saga_qstate_lease(GetCurrentTimestamp());
	saga_server_changed();
	saga_owner_leave(&owner);
}
