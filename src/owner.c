/*
 * owner.c
 *		The switch to the extension's owner, and the OIDs of what it owns.
 *
 * The engine's SQL runs as the owner of table saga.saga, so that nothing needs
 * to be granted on the tables to anyone.  That is safe only as long as no code
 * of a user runs meanwhile: the statements name every object with its schema,
 * the search path is pinned with pg_temp last, and what is passed in is ready
 * to be stored.  SECURITY_RESTRICTED_OPERATION is the second line of defence.
 *
 * Runs in any backend.  A process that dies here loses nothing: user and
 * settings are its own, and an error restores both with its (sub)transaction.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/dependency.h"
#include "catalog/indexing.h"
#include "catalog/namespace.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_class.h"
#include "catalog/pg_extension.h"
#include "catalog/pg_proc.h"
#include "commands/dbcommands.h"
#include "commands/extension.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "storage/proc.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#include "compat.h"
#include "owner.h"

/* Settings of the engine's own statements: what a role may have set for its
 * own code must not bend ours. */
static const struct
{
	const char *name;
	const char *value;
}			engine_settings[] =
{
	{"search_path", "pg_catalog, pg_temp"},
	{"session_replication_role", "origin"},
	{"lock_timeout", "0"},
	{"plan_cache_mode", "auto"},
	{"max_parallel_workers_per_gather", "0"},
	{"jit", "off"},
	{"enable_indexscan", "on"},
	/* a plan made while a table was empty must not scan it when it is full */
	{"enable_seqscan", "off"},
	{"enable_bitmapscan", "off"},
	{"row_security", "on"}
};

static bool switched = false;
static Oid	saga_relation = InvalidOid;
static Oid	owner_role = InvalidOid;
static bool callback_registered = false;
static uint32 generation = 0;

static void
forget_owner(Datum arg, Oid relid)
{
	(void) arg;
	if (relid == InvalidOid || relid == saga_relation)
	{
		owner_role = InvalidOid;
		generation++;
	}
}

uint32
saga_owner_generation(void)
{
	(void) saga_owner_role();
	return generation;
}

/*
 * Once the extension is gone anybody may give these names to a schema and a
 * table of his own, and put functions into the table's indexes.
 */
static bool
belongs_to_extension(Oid relation)
{
	Oid			extension = get_extension_oid("saga", true);

	return OidIsValid(extension) &&
		getExtensionOfObject(RelationRelationId, relation) == extension;
}

void
saga_owner_invalidate(void)
{
	(void) saga_owner_role();
	CacheInvalidateRelcacheByRelid(saga_relation);
}

Oid
saga_owner_role(void)
{
	HeapTuple	tuple;
	Oid			namespace;

	if (OidIsValid(owner_role))
		return owner_role;
	if (!callback_registered)
	{
		CacheRegisterRelcacheCallback(forget_owner, (Datum) 0);
		callback_registered = true;
	}

	namespace = get_namespace_oid("saga", true);
	saga_relation = OidIsValid(namespace) ?
		get_relname_relid("saga", namespace) : InvalidOid;
	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(saga_relation));
	if (!HeapTupleIsValid(tuple) || !belongs_to_extension(saga_relation))
		ereport(ERROR,
				errcode(ERRCODE_UNDEFINED_OBJECT),
				errmsg("extension \"saga\" is not installed in database \"%s\"",
					   get_database_name(MyDatabaseId)),
				errhint("Use CREATE EXTENSION saga."));
	owner_role = ((Form_pg_class) GETSTRUCT(tuple))->relowner;
	ReleaseSysCache(tuple);
	return owner_role;
}

void
saga_owner_enter(SagaOwnerSwitch *state)
{
	Oid			owner = saga_owner_role();

	GetUserIdAndSecContext(&state->saved_user, &state->saved_context);
	SetUserIdAndSecContext(owner, state->saved_context |
						   SECURITY_LOCAL_USERID_CHANGE |
						   SECURITY_RESTRICTED_OPERATION);
	state->guc_level = NewGUCNestLevel();
	for (size_t i = 0; i < lengthof(engine_settings); i++)
		(void) set_config_option(engine_settings[i].name,
								 engine_settings[i].value,
								 PGC_SUSET, PGC_S_SESSION,
								 GUC_ACTION_SAVE, true, 0, false);
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "could not connect to SPI");
	/* SPI wants one below its own; a background worker has no portal's */
	state->pushed_snapshot = !ActiveSnapshotSet();
	if (state->pushed_snapshot)
		PushActiveSnapshot(GetTransactionSnapshot());
	switched = true;
}

void
saga_owner_enter_patiently(SagaOwnerSwitch *state)
{
	char	   *patience = psprintf("%d", LockTimeout);

	saga_owner_enter(state);
	(void) set_config_option("lock_timeout", patience, PGC_USERSET,
							 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
}

void
saga_owner_leave(SagaOwnerSwitch *state)
{
	if (state->pushed_snapshot)
		PopActiveSnapshot();
	if (SPI_finish() != SPI_OK_FINISH)
		elog(ERROR, "could not disconnect from SPI");
	AtEOXact_GUC(false, state->guc_level);
	SetUserIdAndSecContext(state->saved_user, state->saved_context);
	switched = false;
}

void
saga_owner_abandon(void)
{
	/* the error of a step that was caught leaves no connection behind */
	if (!saga_owner_is_current())
		return;
	switched = false;
	if (SPI_finish() != SPI_OK_FINISH)
		elog(ERROR, "could not disconnect from SPI");
}

bool
saga_owner_is_current(void)
{
	/* an error may have thrown us out of the block */
	if (switched && !InSecurityRestrictedOperation())
		switched = false;
	return switched;
}

bool
saga_owner_has_granted(const char *function)
{
	oidvector  *arguments = buildoidvector(NULL, 0);
	Oid			namespace = get_namespace_oid("saga", true);
	Oid			oid;

	oid = GetSysCacheOid3(PROCNAMEARGSNSP, Anum_pg_proc_oid,
						  CStringGetDatum(function),
						  PointerGetDatum(arguments),
						  ObjectIdGetDatum(namespace));
	pfree(arguments);
	return OidIsValid(oid) &&
		saga_function_aclcheck(oid, GetUserId()) == ACLCHECK_OK;
}

bool
saga_owner_sees_health(void)
{
	return saga_owner_has_granted("monitor_privilege") ||
		has_privs_of_role(GetUserId(), ROLE_PG_MONITOR);
}

bool
saga_extension_ready(void)
{
	Relation	rel;
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;
	bool		ready = false;

	ScanKeyInit(&key, Anum_pg_extension_extname, BTEqualStrategyNumber,
				F_NAMEEQ, CStringGetDatum("saga"));
	rel = table_open(ExtensionRelationId, AccessShareLock);
	scan = systable_beginscan(rel, ExtensionNameIndexId, true, NULL, 1, &key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
	{
		bool		isnull;
		Datum		version = heap_getattr(tuple, Anum_pg_extension_extversion,
										   RelationGetDescr(rel), &isnull);

		ready = !isnull &&
			strcmp(TextDatumGetCString(version), SAGA_VERSION) == 0;
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return ready;
}
