/*
 * catalog.c
 *		Owns the tables saga.definition, definition_version and
 *		definition_grant, and each backend's cache of them.
 *
 * A version never changes, but the settings and grants that are cached with it
 * do.  Every change therefore sends a relation cache invalidation for
 * saga.definition, and each backend counts those: an entry made before the
 * last one is loaded again when it is asked for.  The messages of a
 * transaction that aborts are processed by its own backend, so what it defined
 * does not stay cached; those of one that commits reach the others.  Entries
 * are loaded with the newest snapshot, never with the transaction's: what an
 * old snapshot shows must not outlive its transaction.
 *
 * Locks: a change of a definition locks its row, so changes of one definition
 * follow each other; two definers of a new name meet at its unique index.
 * saga.begin() takes an object lock on (saga.definition, id) in share mode
 * until its transaction ends, and saga.drop_definition(), after the row, the
 * same in exclusive mode: what it counts then are all sagas there are.
 *
 * Runs in any backend.  Killed at any line, it leaves what its transaction
 * leaves: all or nothing.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/varlena.h"

#include "catalog.h"
#include "owner.h"
#include "role.h"
#include "statement.h"

/* A cached version; the definition comes first, and stands for all of it. */
typedef struct CachedVersion
{
	SagaDefinition definition;
	MemoryContext context;		/* that it is in */
	uint32		stamp;			/* number of invalidations when it was loaded */
	int			ngrants;
	SagaRoleRef *grants;
	struct CachedVersion *next; /* among the old ones */
} CachedVersion;

typedef struct VersionEntry
{
	int32		id;				/* key */
	CachedVersion *version;
} VersionEntry;

typedef struct NameEntry
{
	char		name[NAMEDATALEN];	/* key */
	int32		newest;			/* id of the version */
	uint32		stamp;
} NameEntry;

/* What is locked for a change. */
typedef struct DefinitionRow
{
	int32		id;
	SagaRoleRef owner;
} DefinitionRow;

static HTAB *versions = NULL;
static HTAB *names = NULL;
static CachedVersion *old_versions = NULL;
static uint32 invalidations = 0;
static int	users = 0;			/* runs of the engine: they forget nothing */
static uint32 swept = 0;		/* of them, when stale entries were last freed */
static Oid	definition_relation = InvalidOid;

#define VERSION_COLUMNS \
	"v.id, d.id, v.name, v.version, d.owner, d.owner_name, d.enabled, " \
	"d.max_running, d.deadline, v.steps, d.exclusive, d.exclusive_until, " \
	"d.exclusive_timeout, v.created_by, d.disabled_by "


/* ---- rows ------------------------------------------------------------- */

static bool
row_is_null(int row, int column)
{
	bool		isnull;

	(void) SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc,
						 column, &isnull);
	return isnull;
}

static Datum
row_datum(int row, int column)
{
	bool		isnull;
	Datum		value = SPI_getbinval(SPI_tuptable->vals[row],
									  SPI_tuptable->tupdesc, column, &isnull);

	return isnull ? (Datum) 0 : value;
}

/* NULL if it is null. */
static char *
row_text(int row, int column)
{
	return row_is_null(row, column) ? NULL :
		TextDatumGetCString(row_datum(row, column));
}

/* Read with the newest snapshot, this transaction's own changes included. */
static void
read_latest(const char *sql, int nargs, Oid *types, Datum *values)
{
	SPIPlanPtr	plan = SPI_prepare(sql, nargs, types);
	int			rc;

	if (plan == NULL)
		elog(ERROR, "could not prepare \"%s\": %s", sql,
			 SPI_result_code_string(SPI_result));
	CommandCounterIncrement();
	rc = SPI_execute_snapshot(plan, values, NULL, GetLatestSnapshot(),
							  InvalidSnapshot, true, false, 0);
	if (rc != SPI_OK_SELECT)
		elog(ERROR, "could not execute \"%s\": %s", sql,
			 SPI_result_code_string(rc));
}

static void
write_rows(const char *sql, int nargs, Oid *types, Datum *values,
		   const char *nulls)
{
	int			rc = SPI_execute_with_args(sql, nargs, types, values, nulls,
										   false, 0);

	if (rc < 0)
		elog(ERROR, "could not execute \"%s\": %s", sql,
			 SPI_result_code_string(rc));
}


/* ---- roles ------------------------------------------------------------ */

static bool
is_granted(Oid user, const SagaRoleRef *grantee)
{
	if (!OidIsValid(grantee->oid))
		return strcmp(grantee->name, "public") == 0;
	return saga_role_is_there(grantee) && has_privs_of_role(user, grantee->oid);
}

static void
check_owner(const char *name, const SagaRoleRef *owner, Oid user)
{
	if (saga_role_has_privileges(user, owner))
		return;
	ereport(ERROR,
			errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			errmsg("permission denied for saga definition \"%s\"", name),
			saga_role_is_there(owner) ? 0 :
			errdetail("Its owner, role \"%s\", is gone or has another name now.",
					  owner->name));
}

/*
 * Of the definitions that "user" may begin, the one with the name most like
 * this; NULL if there is none like it.  Between enter and leave.
 */
static char *
similar_definition(const char *name, Oid user)
{
	int			length = strlen(name);
	int			limit = Min(Min(length / 3 + 1, 4), length - 1);
	char	   *best = NULL;

	read_latest("SELECT d.name, d.owner, d.owner_name "
				"FROM saga.definition d "
				"UNION ALL "
				"SELECT d.name, g.role, g.role_name "
				"FROM saga.definition d "
				"JOIN saga.definition_grant g ON g.definition_id = d.id "
				"ORDER BY 1 LIMIT 1000", 0, NULL, NULL);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		char	   *candidate = row_text(i, 1);
		SagaRoleRef role = {DatumGetObjectId(row_datum(i, 2)), row_text(i, 3)};
		int			distance;

		if (length > SAGA_MAX_NAME ||
			!(superuser_arg(user) || is_granted(user, &role)))
			continue;
		distance = varstr_levenshtein_less_equal(candidate, strlen(candidate),
												 name, length, 1, 1, 1,
												 limit, true);
		if (distance <= limit)
		{
			best = candidate;
			limit = distance - 1;
		}
		if (limit < 0)
			break;
	}
	return best;
}

static void
report_undefined(const char *name, Oid user)
{
	char	   *similar = similar_definition(name, user);

	ereport(ERROR,
			errcode(ERRCODE_UNDEFINED_OBJECT),
			errmsg("saga definition \"%s\" does not exist", name),
			similar != NULL ?
			errhint("Perhaps you meant \"%s\".", similar) :
			errhint("Make it with saga.define()."));
}


/* ---- the cache -------------------------------------------------------- */

static void
count_invalidation(Datum arg, Oid relid)
{
	(void) arg;
	if (relid == InvalidOid || relid == definition_relation)
		invalidations++;
}

static void
make_cache(void)
{
	HASHCTL		control;

	if (versions != NULL)
		return;
	CacheRegisterRelcacheCallback(count_invalidation, (Datum) 0);
	memset(&control, 0, sizeof(control));
	control.keysize = NAMEDATALEN;
	control.entrysize = sizeof(NameEntry);
	names = hash_create("saga definition names", 64, &control,
						HASH_ELEM | HASH_STRINGS);
	control.keysize = sizeof(int32);
	control.entrysize = sizeof(VersionEntry);
	versions = hash_create("saga definition versions", 64, &control,
						   HASH_ELEM | HASH_BLOBS);
}

/* The table whose changes are changes of definitions. */
static Oid
find_relation(void)
{
	definition_relation =
		get_relname_relid("definition", get_namespace_oid("saga", false));
	return definition_relation;
}

static void
load_grants(CachedVersion *version)
{
	Oid			types[] = {INT4OID};
	Datum		values[] = {Int32GetDatum(version->definition.definition_id)};

	read_latest("SELECT g.role, g.role_name FROM saga.definition_grant g "
				"WHERE g.definition_id = $1", 1, types, values);
	version->ngrants = (int) SPI_processed;
	version->grants = MemoryContextAlloc(version->context,
										 Max(SPI_processed, 1) * sizeof(SagaRoleRef));
	for (int i = 0; i < version->ngrants; i++)
	{
		version->grants[i].oid = DatumGetObjectId(row_datum(i, 1));
		version->grants[i].name = MemoryContextStrdup(version->context,
													  row_text(i, 2));
	}
}

static int64
interval_microseconds(const Interval *interval)
{
	return interval->day * USECS_PER_DAY + interval->time;
}

/* The lock of whole sagas, of the row that was read.  Its step is kept by name,
 * and this version may have no such step. */
static void
set_exclusive(SagaDefinition *def, MemoryContext context)
{
	MemoryContext old = MemoryContextSwitchTo(context);
	char	   *path = row_text(0, 11);
	char	   *until = row_text(0, 12);

	def->exclusive_until = -1;
	if (path != NULL)
	{
		saga_definition_input_path(path, "exclusive", def->name,
								   &def->exclusive);
		if (until != NULL)
			def->exclusive_until = saga_definition_step(def, until);
		def->exclusive_timeout = row_is_null(0, 13) ? SAGA_EXCLUSIVE_TIMEOUT :
			interval_microseconds(DatumGetIntervalP(row_datum(0, 13)));
	}
	MemoryContextSwitchTo(old);
}

/* Make a cached version of the row of VERSION_COLUMNS that was read. */
static CachedVersion *
make_version(uint32 stamp)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext,
												  "saga definition",
												  ALLOCSET_SMALL_SIZES);
	CachedVersion *version = MemoryContextAllocZero(context, sizeof(*version));
	SagaDefinition *def = &version->definition;

	version->context = context;
	version->stamp = stamp;
	def->id = DatumGetInt32(row_datum(0, 1));
	def->definition_id = DatumGetInt32(row_datum(0, 2));
	def->name = MemoryContextStrdup(context, row_text(0, 3));
	def->version = DatumGetInt32(row_datum(0, 4));
	def->created_by = MemoryContextStrdup(context, row_text(0, 14));
	if (def->definition_id != 0)
	{
		def->owner = DatumGetObjectId(row_datum(0, 5));
		def->owner_name = MemoryContextStrdup(context, row_text(0, 6));
		def->enabled = DatumGetBool(row_datum(0, 7));
		if (!row_is_null(0, 15))
			def->disabled_by = MemoryContextStrdup(context, row_text(0, 15));
		def->max_running = DatumGetInt32(row_datum(0, 8));
		if (!row_is_null(0, 9))
			def->deadline =
				interval_microseconds(DatumGetIntervalP(row_datum(0, 9)));
	}
	saga_definition_build(def, DatumGetJsonbP(row_datum(0, 10)), context);
	set_exclusive(def, context);
	load_grants(version);
	return version;
}

/* Put it where lookups find it; what was there stays until forget_old(). */
static void
enter_version(CachedVersion *version)
{
	VersionEntry *entry;
	bool		found;

	entry = hash_search(versions, &version->definition.id, HASH_ENTER, &found);
	if (found && entry->version != NULL)
	{
		entry->version->next = old_versions;
		old_versions = entry->version;
	}
	entry->version = version;
	MemoryContextSetParent(version->context, CacheMemoryContext);
}

static CachedVersion *
load_version(const char *sql, Oid type, Datum key)
{
	SagaOwnerSwitch owner;
	CachedVersion *version = NULL;
	uint32		stamp;

	make_cache();
	saga_owner_enter(&owner);
	(void) find_relation();
	/* an invalidation that comes while we read makes the entry stale */
	stamp = invalidations;
	read_latest(sql, 1, &type, &key);
	if (SPI_processed > 0)
	{
		version = make_version(stamp);
		enter_version(version);
	}
	saga_owner_leave(&owner);
	return version;
}

/* The cached one if it is still true, else NULL. */
static CachedVersion *
cached_version(int32 id)
{
	VersionEntry *entry;

	if (versions == NULL)
		return NULL;
	entry = hash_search(versions, &id, HASH_FIND, NULL);
	if (entry == NULL || entry->version->stamp != invalidations)
		return NULL;
	return entry->version;
}

const SagaDefinition *
saga_catalog_version(int32 id)
{
	CachedVersion *version = cached_version(id);

	if (version == NULL)
		version = load_version("SELECT " VERSION_COLUMNS
							   "FROM saga.definition_version v "
							   "LEFT JOIN saga.definition d ON d.name = v.name "
							   "WHERE v.id = $1",
							   INT4OID, Int32GetDatum(id));
	return version != NULL ? &version->definition : NULL;
}

bool
saga_catalog_has_version(int32 id)
{
	return cached_version(id) != NULL;
}

const SagaDefinition *
saga_catalog_newest(const char *name)
{
	CachedVersion *version = NULL;
	NameEntry  *entry;

	if (strlen(name) > SAGA_MAX_NAME)
		return NULL;
	make_cache();
	entry = hash_search(names, name, HASH_FIND, NULL);
	if (entry != NULL && entry->stamp == invalidations)
		version = cached_version(entry->newest);
	if (version != NULL)
		return &version->definition;

	version = load_version("SELECT " VERSION_COLUMNS
						   "FROM saga.definition d "
						   "JOIN saga.definition_version v ON v.name = d.name "
						   "WHERE d.name = $1 ORDER BY v.version DESC LIMIT 1",
						   TEXTOID, CStringGetTextDatum(name));
	if (version == NULL)
		return NULL;
	entry = hash_search(names, name, HASH_ENTER, NULL);
	entry->newest = version->definition.id;
	entry->stamp = version->stamp;
	return &version->definition;
}

static void
forget_stale(void)
{
	HASH_SEQ_STATUS status;
	VersionEntry *entry;
	NameEntry  *name;

	hash_seq_init(&status, versions);
	while ((entry = hash_seq_search(&status)) != NULL)
	{
		CachedVersion *version = entry->version;

		if (version->stamp == invalidations)
			continue;
		(void) hash_search(versions, &entry->id, HASH_REMOVE, NULL);
		MemoryContextDelete(version->context);
	}
	hash_seq_init(&status, names);
	while ((name = hash_seq_search(&status)) != NULL)
	{
		if (name->stamp != invalidations)
			(void) hash_search(names, name->name, HASH_REMOVE, NULL);
	}
}

void
saga_catalog_use(bool begins)
{
	users += begins ? 1 : -1;
	Assert(users >= 0);
}

void
saga_catalog_forget_old(void)
{
	if (users > 0)
		return;
	while (old_versions != NULL)
	{
		CachedVersion *version = old_versions;

		old_versions = version->next;
		MemoryContextDelete(version->context);
	}
	if (versions != NULL && swept != invalidations)
	{
		swept = invalidations;
		forget_stale();
	}
}


/* ---- begin ------------------------------------------------------------ */

static bool
may_begin(const CachedVersion *version, Oid user)
{
	SagaRoleRef owner = {version->definition.owner,
	version->definition.owner_name};

	if (saga_role_has_privileges(user, &owner))
		return true;
	for (int i = 0; i < version->ngrants; i++)
	{
		if (is_granted(user, &version->grants[i]))
			return true;
	}
	return false;
}

static void
check_may_begin(const CachedVersion *version)
{
	if (!may_begin(version, GetUserId()))
		ereport(ERROR,
				errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				errmsg("permission denied for saga definition \"%s\"",
					   version->definition.name),
				errhint("Its owner can allow it with saga.grant_begin()."));
}

static void
check_begin(const CachedVersion *version, bool trust_definition)
{
	const SagaDefinition *def = &version->definition;
	SagaRoleRef owner = {def->owner, def->owner_name};
	Oid			user = GetUserId();

	check_may_begin(version);
	if (!trust_definition && superuser_arg(user) &&
		!(saga_role_is_there(&owner) && superuser_arg(owner.oid)))
		ereport(ERROR,
				errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				errmsg("superusers do not begin saga definition \"%s\" unasked",
					   def->name),
				errdetail("Role \"%s\", which is not a superuser, chooses the functions that would run with a superuser's privileges.",
						  def->owner_name),
				errhint("Begin it as another role, or use trust_definition => true."));
	if (!def->enabled)
		ereport(ERROR,
				errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				errmsg("saga definition \"%s\" is disabled", def->name),
				def->disabled_by == NULL ? 0 :
				errdetail("It was paused when invariant \"%s\" was violated.",
						  def->disabled_by),
				errhint("Use saga.configure() with enabled => true."));
}

static void
raise_undefined(const char *name)
{
	SagaOwnerSwitch owner;
	Oid			user = GetUserId();

	saga_owner_enter(&owner);
	report_undefined(name, user);
}

const SagaDefinition *
saga_catalog_for_begin(const char *name, bool trust_definition, bool wait)
{
	int32		locked = 0;

	for (;;)
	{
		const SagaDefinition *def = saga_catalog_newest(name);

		if (def == NULL)
			raise_undefined(name);
		if (def->definition_id == locked)
		{
			check_begin((const CachedVersion *) def, trust_definition);
			return def;
		}

		/*
		 * The lock also takes in the invalidations sent so far.  If it was
		 * dropped, and perhaps made anew, while we waited, then what we
		 * locked is not it.
		 */
		locked = def->definition_id;
		if (wait)
			LockDatabaseObject(definition_relation, locked, 0,
							   AccessShareLock);
		else if (!ConditionalLockDatabaseObject(definition_relation, locked, 0,
												AccessShareLock))
			ereport(ERROR,
					errcode(ERRCODE_LOCK_NOT_AVAILABLE),
					errmsg("could not obtain lock on saga definition \"%s\"",
						   name),
					errdetail("It is about to be dropped."));
	}
}

const SagaDefinition *
saga_catalog_for_child(const char *name)
{
	const SagaDefinition *def = saga_catalog_newest(name);

	if (def == NULL)
		raise_undefined(name);
	check_may_begin((const CachedVersion *) def);
	return def;
}

const SagaDefinition *
saga_catalog_numbered(const char *name, int version)
{
	Oid			types[] = {TEXTOID, INT4OID};
	Datum		values[] = {CStringGetTextDatum(name), Int32GetDatum(version)};
	SagaOwnerSwitch owner;
	int32		id = 0;

	saga_owner_enter(&owner);
	read_latest("SELECT v.id FROM saga.definition_version v "
				"WHERE v.name = $1 AND v.version = $2", 2, types, values);
	if (SPI_processed > 0)
		id = DatumGetInt32(row_datum(0, 1));
	saga_owner_leave(&owner);
	return id == 0 ? NULL : saga_catalog_version(id);
}

bool
saga_catalog_may_run(const SagaDefinition *definition, Oid role,
					 const char **why)
{
	SagaRoleRef owner = {definition->owner, definition->owner_name};

	*why = NULL;
	if (definition->definition_id == 0)
		*why = "The definition was dropped.";
	else if (!may_begin((const CachedVersion *) definition, role))
		*why = psprintf("Role \"%s\" may not begin sagas of the definition.",
						GetUserNameFromId(role, false));
	else if (superuser_arg(role) &&
			 !(saga_role_is_there(&owner) && superuser_arg(owner.oid)))
		/* whoever asks for it cannot say that the superuser trusts the owner */
		*why = psprintf("Role \"%s\", which is not a superuser, chooses the functions that would run with a superuser's privileges.",
						definition->owner_name);
	return *why == NULL;
}


/* ---- changes ---------------------------------------------------------- */

/* Tell every cache, this one included. */
static void
changed(void)
{
	CacheInvalidateRelcacheByRelid(find_relation());
}

/* Lock the row of a definition; false if there is none. */
static bool
lock_row(const char *name, bool for_drop, DefinitionRow *row)
{
	Oid			types[] = {TEXTOID};
	Datum		values[] = {CStringGetTextDatum(name)};

	write_rows(for_drop ?
			   "SELECT d.id, d.owner, d.owner_name FROM saga.definition d "
			   "WHERE d.name = $1 FOR UPDATE" :
			   "SELECT d.id, d.owner, d.owner_name FROM saga.definition d "
			   "WHERE d.name = $1 FOR NO KEY UPDATE",
			   1, types, values, NULL);
	if (SPI_processed == 0)
		return false;
	row->id = DatumGetInt32(row_datum(0, 1));
	row->owner.oid = DatumGetObjectId(row_datum(0, 2));
	row->owner.name = row_text(0, 3);
	return true;
}

/* Lock it for a change by "user", or raise. */
static void
lock_for_change(const char *name, bool for_drop, Oid user, DefinitionRow *row)
{
	if (!lock_row(name, for_drop, row))
		report_undefined(name, user);
	check_owner(name, &row->owner, user);
}

/* The number of the newest version, 0 if there is none; is it this one? */
static int
newest_version(const char *name, Jsonb *steps, bool *same)
{
	Oid			types[] = {TEXTOID, JSONBOID};
	Datum		values[] = {CStringGetTextDatum(name), JsonbPGetDatum(steps)};

	*same = false;
	read_latest("SELECT v.version, v.steps = $2 "
				"FROM saga.definition_version v "
				"WHERE v.name = $1 ORDER BY v.version DESC LIMIT 1",
				2, types, values);
	if (SPI_processed == 0)
		return 0;
	*same = DatumGetBool(row_datum(0, 2));
	return DatumGetInt32(row_datum(0, 1));
}

/* Is there a definition of this name?  Raises if it is not the user's. */
static bool
is_defined(const char *name, Oid user)
{
	Oid			types[] = {TEXTOID};
	Datum		values[] = {CStringGetTextDatum(name)};
	SagaRoleRef owner;

	read_latest("SELECT d.owner, d.owner_name FROM saga.definition d "
				"WHERE d.name = $1", 1, types, values);
	if (SPI_processed == 0)
		return false;
	owner.oid = DatumGetObjectId(row_datum(0, 1));
	owner.name = row_text(0, 2);
	check_owner(name, &owner, user);
	return true;
}

Jsonb *
saga_catalog_newest_steps(const char *name, bool sees_all)
{
	Oid			types[] = {TEXTOID};
	Datum		values[] = {CStringGetTextDatum(name)};
	MemoryContext caller = CurrentMemoryContext;
	SagaOwnerSwitch owner;
	Oid			user = GetUserId();
	Jsonb	   *steps = NULL;

	saga_owner_enter(&owner);
	if (sees_all || is_defined(name, user))
	{
		read_latest("SELECT v.steps FROM saga.definition d "
					"JOIN saga.definition_version v ON v.name = d.name "
					"WHERE d.name = $1 ORDER BY v.version DESC LIMIT 1",
					1, types, values);
		if (SPI_processed > 0)
		{
			MemoryContext old = MemoryContextSwitchTo(caller);

			steps = DatumGetJsonbPCopy(row_datum(0, 1));
			MemoryContextSwitchTo(old);
		}
	}
	saga_owner_leave(&owner);
	return steps;
}

static void
insert_definition(const char *name, Oid user, const char *user_name)
{
	Oid			types[] = {TEXTOID, OIDOID, TEXTOID};
	Datum		values[] = {CStringGetTextDatum(name), ObjectIdGetDatum(user),
	CStringGetTextDatum(user_name)};

	write_rows("INSERT INTO saga.definition (name, owner, owner_name, coordinator) "
			   "SELECT $1, $2, $3, c.id FROM saga.coordinator c "
			   "ON CONFLICT (name) DO NOTHING",
			   3, types, values, NULL);
}

static void
insert_version(const char *name, int version, Jsonb *steps,
			   const char *user_name)
{
	Oid			types[] = {TEXTOID, INT4OID, JSONBOID, TEXTOID};
	Datum		values[] = {CStringGetTextDatum(name), Int32GetDatum(version),
	JsonbPGetDatum(steps), CStringGetTextDatum(user_name)};

	write_rows("INSERT INTO saga.definition_version "
			   "(name, version, steps, created_by) VALUES ($1, $2, $3, $4)",
			   4, types, values, NULL);
}

/* Between enter and leave: the definition is not as wanted, or there is none. */
static int
add_version(const char *name, Jsonb *steps, Oid user, bool *stored)
{
	char	   *user_name = GetUserNameFromId(user, false);
	DefinitionRow row;
	int			version;
	bool		same;

	/* again if somebody drops what we waited for */
	do
	{
		CHECK_FOR_INTERRUPTS();
		insert_definition(name, user, user_name);
	} while (!lock_row(name, false, &row));
	check_owner(name, &row.owner, user);

	version = newest_version(name, steps, &same);
	if (!same)
	{
		version++;
		insert_version(name, version, steps, user_name);
	}
	*stored = !same;
	return version;
}

int
saga_catalog_define(const char *name, Jsonb *steps, bool *stored)
{
	SagaOwnerSwitch owner;
	Oid			user = GetUserId();
	int			version;
	bool		same = false;

	*stored = false;
	saga_owner_enter(&owner);
	version = is_defined(name, user) ? newest_version(name, steps, &same) : 0;
	if (!same)
	{
		PreventCommandIfReadOnly("saga.define()");
		version = add_version(name, steps, user, stored);
		changed();
	}
	saga_owner_leave(&owner);
	return version;
}

/* What is there of the lock of whole sagas, or is given with it. */
static void
check_exclusive(const char *name, int32 id,
				const SagaCatalogSettings *settings,
				const SagaDefinition *newest)
{
	Oid			types[] = {INT4OID};
	Datum		values[] = {Int32GetDatum(id)};
	const char *until = settings->exclusive_until;

	if (until == NULL && settings->exclusive_timeout == NULL)
		return;
	if (settings->exclusive == NULL)
	{
		read_latest("SELECT d.exclusive FROM saga.definition d "
					"WHERE d.id = $1", 1, types, values);
		if (row_is_null(0, 1))
			ereport(ERROR,
					errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					errmsg("saga definition \"%s\" has no exclusive", name),
					errdetail("Without it, exclusive_until and exclusive_timeout have no meaning."));
	}
	if (until != NULL && until[0] != '\0' && newest != NULL &&
		saga_definition_step(newest, until) < 0)
		ereport(ERROR,
				errcode(ERRCODE_UNDEFINED_OBJECT),
				errmsg("saga definition \"%s\" has no step \"%s\"",
					   name, until),
				errhint("exclusive_until names the step of its newest version with whose end the lock is given back."));
}

static Datum
interval_or_null(const Interval *interval, char *null)
{
	*null = interval == NULL ? 'n' : ' ';
	return IntervalPGetDatum(interval);
}

void
saga_catalog_configure(const char *name, const SagaCatalogSettings *settings)
{
	Interval	zero = {0, 0, 0};
	Interval	hour = {SAGA_EXCLUSIVE_TIMEOUT, 0, 0};
	Oid			types[] = {INT4OID, BOOLOID, INT4OID, INTERVALOID, INTERVALOID,
	INTERVALOID, TEXTOID, TEXTOID, INTERVALOID, INTERVALOID};
	Datum		values[10];
	char		nulls[] = "          ";
	const SagaDefinition *newest = saga_catalog_newest(name);
	SagaOwnerSwitch owner;
	Oid			user = GetUserId();
	DefinitionRow row;

	PreventCommandIfReadOnly("saga.configure()");
	saga_owner_enter(&owner);
	lock_for_change(name, false, user, &row);
	check_exclusive(name, row.id, settings, newest);
	values[0] = Int32GetDatum(row.id);
	values[1] = BoolGetDatum(settings->enabled != NULL && *settings->enabled);
	nulls[1] = settings->enabled == NULL ? 'n' : ' ';
	values[2] = Int32GetDatum(settings->max_running != NULL ?
							  *settings->max_running : 0);
	nulls[2] = settings->max_running == NULL ? 'n' : ' ';
	values[3] = interval_or_null(settings->deadline, &nulls[3]);
	values[4] = interval_or_null(settings->retention, &nulls[4]);
	values[5] = IntervalPGetDatum(&zero);
	values[6] = saga_statement_text(settings->exclusive, &nulls[6]);
	values[7] = saga_statement_text(settings->exclusive_until, &nulls[7]);
	values[8] = interval_or_null(settings->exclusive_timeout, &nulls[8]);
	values[9] = IntervalPGetDatum(&hour);
	write_rows("UPDATE saga.definition SET "
			   "enabled = COALESCE($2, enabled), "
			   "disabled_by = CASE WHEN $2 IS NULL THEN disabled_by END, "
			   "max_running = CASE WHEN $3 IS NULL THEN max_running "
			   "ELSE NULLIF($3, 0) END, "
			   "deadline = CASE WHEN $4 IS NULL THEN deadline "
			   "ELSE NULLIF($4, $6) END, "
			   "retention = COALESCE($5, retention), "
			   "exclusive = NULLIF(COALESCE($7, exclusive), ''), "
			   "exclusive_until = CASE WHEN $7 = '' THEN NULL "
			   "ELSE NULLIF(COALESCE($8, exclusive_until), '') END, "
			   "exclusive_timeout = CASE "
			   "WHEN COALESCE($7, exclusive, '') = '' THEN NULL "
			   "ELSE COALESCE($9, exclusive_timeout, $10) END "
			   "WHERE id = $1", 10, types, values, nulls);
	changed();
	saga_owner_leave(&owner);
}

bool
saga_catalog_disable(const char *name, const char *invariant, const char **why)
{
	Oid			types[] = {INT4OID, TEXTOID};
	Datum		values[2];
	bool		is_operator = saga_owner_has_granted("operator_privilege");
	Oid			user = GetUserId();
	SagaOwnerSwitch owner;
	DefinitionRow row;

	*why = NULL;
	saga_owner_enter(&owner);
	if (!lock_row(name, false, &row))
		*why = "The definition does not exist.";
	else if (!is_operator && !saga_role_has_privileges(user, &row.owner))
		*why = "The owner of the invariant is neither the definition's owner nor an operator.";
	else
	{
		values[0] = Int32GetDatum(row.id);
		values[1] = CStringGetTextDatum(invariant);
		write_rows("UPDATE saga.definition SET enabled = false, disabled_by = $2 "
				   "WHERE id = $1 AND enabled", 2, types, values, NULL);
		if (SPI_processed > 0)
			changed();
	}
	saga_owner_leave(&owner);
	return *why == NULL;
}

static int64
count_unfinished(const char *name)
{
	Oid			types[] = {TEXTOID};
	Datum		values[] = {CStringGetTextDatum(name)};

	read_latest("SELECT count(*) FROM saga.saga s "
				"WHERE s.due_at IS NOT NULL AND s.definition_id = ANY "
				"(ARRAY(SELECT v.id FROM saga.definition_version v "
				"WHERE v.name = $1))", 1, types, values);
	return DatumGetInt64(row_datum(0, 1));
}

static void
delete_definition(const char *name, int32 id)
{
	Oid			id_type[] = {INT4OID};
	Datum		id_value[] = {Int32GetDatum(id)};
	Oid			name_type[] = {TEXTOID};
	Datum		name_value[] = {CStringGetTextDatum(name)};

	write_rows("DELETE FROM saga.definition_grant WHERE definition_id = $1",
			   1, id_type, id_value, NULL);
	write_rows("DELETE FROM saga.key WHERE definition = $1",
			   1, name_type, name_value, NULL);
	write_rows("DELETE FROM saga.definition WHERE id = $1",
			   1, id_type, id_value, NULL);
}

void
saga_catalog_drop(const char *name, bool force)
{
	SagaOwnerSwitch owner;
	Oid			user = GetUserId();
	DefinitionRow row;
	int64		unfinished;

	PreventCommandIfReadOnly("saga.drop_definition()");
	saga_owner_enter(&owner);
	lock_for_change(name, true, user, &row);
	/* after this, whoever has begun one has committed, or is this transaction */
	LockDatabaseObject(find_relation(), row.id, 0, AccessExclusiveLock);
	unfinished = force ? 0 : count_unfinished(name);
	if (unfinished > 0)
		ereport(ERROR,
				errcode(ERRCODE_OBJECT_IN_USE),
				errmsg("cannot drop saga definition \"%s\" because it is in use",
					   name),
				errdetail_plural("%lld saga of it is not final.",
								 "%lld sagas of it are not final.",
								 (unsigned long) unfinished,
								 (long long) unfinished),
				errhint("Wait for them, or use force => true: then they go on with the version they began with."));
	delete_definition(name, row.id);
	changed();
	saga_owner_leave(&owner);
}

void
saga_catalog_grant(const char *name, Oid role, const char *role_name)
{
	SagaOwnerSwitch owner;
	Oid			user = GetUserId();
	DefinitionRow row;
	Oid			types[] = {INT4OID, OIDOID, TEXTOID, TEXTOID};
	Datum		values[4];

	PreventCommandIfReadOnly("saga.grant_begin()");
	saga_owner_enter(&owner);
	lock_for_change(name, false, user, &row);
	values[0] = Int32GetDatum(row.id);
	values[1] = ObjectIdGetDatum(role);
	values[2] = CStringGetTextDatum(role_name);
	values[3] = CStringGetTextDatum(GetUserNameFromId(user, false));
	write_rows("INSERT INTO saga.definition_grant "
			   "(definition_id, role, role_name, granted_by) "
			   "VALUES ($1, $2, $3, $4) "
			   "ON CONFLICT (definition_id, role_name) DO UPDATE "
			   "SET role = excluded.role, granted_by = excluded.granted_by, "
			   "granted_at = excluded.granted_at", 4, types, values, NULL);
	changed();
	saga_owner_leave(&owner);
}

bool
saga_catalog_revoke(const char *name, const char *role_name)
{
	SagaOwnerSwitch owner;
	Oid			user = GetUserId();
	DefinitionRow row;
	Oid			types[] = {INT4OID, TEXTOID};
	Datum		values[2];
	bool		found;

	PreventCommandIfReadOnly("saga.revoke_begin()");
	saga_owner_enter(&owner);
	lock_for_change(name, false, user, &row);
	values[0] = Int32GetDatum(row.id);
	values[1] = CStringGetTextDatum(role_name);
	write_rows("DELETE FROM saga.definition_grant "
			   "WHERE definition_id = $1 AND role_name = $2",
			   2, types, values, NULL);
	found = SPI_processed > 0;
	changed();
	saga_owner_leave(&owner);
	return found;
}

void
saga_catalog_adopt(void)
{
	/* those made here: the role may have been renamed since; then those of
	 * another coordinator, whose OIDs mean nothing here */
	static const char *const statements[] = {
		("UPDATE saga.definition_grant g SET role_name = r.rolname "
		 "FROM saga.definition d, saga.coordinator c, pg_catalog.pg_authid r "
		 "WHERE d.id = g.definition_id AND d.coordinator = c.id "
		 "AND r.oid = g.role AND r.rolname <> g.role_name"),
		("UPDATE saga.definition d SET owner_name = r.rolname "
		 "FROM saga.coordinator c, pg_catalog.pg_authid r "
		 "WHERE d.coordinator = c.id AND r.oid = d.owner "
		 "AND r.rolname <> d.owner_name"),
		("UPDATE saga.definition_grant g SET role = r.oid "
		 "FROM pg_catalog.pg_authid r "
		 "WHERE r.rolname = g.role_name AND r.oid <> g.role"),
		("UPDATE saga.definition d SET owner = r.oid "
		 "FROM pg_catalog.pg_authid r "
		 "WHERE r.rolname = d.owner_name AND r.oid <> d.owner"),
		("UPDATE saga.definition d SET coordinator = c.id "
		 "FROM saga.coordinator c WHERE d.coordinator <> c.id")
	};
	SagaOwnerSwitch owner;

	saga_owner_enter(&owner);
	for (size_t i = 0; i < lengthof(statements); i++)
		write_rows(statements[i], 0, NULL, NULL, NULL);
	changed();
	saga_owner_leave(&owner);
}
