/*
 * hooks.c
 *		What saga notices of the commands of others.
 *
 * - DROP DATABASE, ALTER DATABASE ... RENAME or SET TABLESPACE, and CREATE
 *	 DATABASE ... TEMPLATE fail while anybody is connected to the database.  Our
 *	 processes let go: the database is closed to them before the command and
 *	 opened again at the end of its transaction, whatever came of it.  Only for those who may run the
 *	 command: others would get a way to stop sagas.
 * - Likewise DROP EXTENSION saga, until the end of its transaction.
 * - A new database, a new or a dropped extension: at commit a coordinator is
 *	 sent to look.  Changed roles and privileges: what they kept from running is
 *	 tried again.
 * - COMMIT PREPARED runs no callback in the session that commits: the
 *	 coordinator is sent to look for sagas that were begun in it, and the
 *	 statistics are told.  Likewise of rows that COPY and TRUNCATE write and
 *	 take away.
 * - What an operation of a saga does to the transaction that it shares with
 *	 others: call.c is told.
 *
 * Any backend.  The notes of a transaction are static and forgotten when it
 * aborts; a command that a subtransaction took back only costs a look.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/dependency.h"
#include "catalog/namespace.h"
#include "catalog/objectaccess.h"
#include "catalog/pg_auth_members.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_database.h"
#include "catalog/pg_extension.h"
#include "commands/dbcommands.h"
#include "commands/defrem.h"
#include "commands/extension.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "nodes/value.h"
#include "storage/latch.h"
#include "tcop/utility.h"
#include "utils/acl.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#include "call.h"
#include "compat.h"
#include "hooks.h"
#include "qstate.h"
#include "shared.h"
#include "sstate.h"
#include "stats.h"

/* How long our processes are waited for; then the command says what it says. */
#define CLOSE_PATIENCE_MS	5000

/* What the current transaction did. */
static struct
{
	bool		databases;		/* made or changed one */
	bool		roles;			/* changed roles or privileges */
	bool		extension;		/* made, altered or dropped an extension */
	bool		closed;			/* dropped ours: the database is closed */
	Oid			closed_other;	/* another one that is closed, or InvalidOid */
	bool		dropped_other;	/* to be dropped */
}			noted;

static ProcessUtility_hook_type prev_process_utility = NULL;
static object_access_hook_type prev_object_access = NULL;

/* ---- closing a database ----------------------------------------------- */

/* Wait until our processes have left a database that was closed. */
static void
wait_for_processes(Oid database)
{
	TimestampTz start = GetCurrentTimestamp();

	while (saga_database_processes(database) > 0 &&
		   !TimestampDifferenceExceeds(start, GetCurrentTimestamp(),
									   CLOSE_PATIENCE_MS))
	{
		(void) WaitLatch(MyLatch,
						 WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 10, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
}

static bool
may_create_databases(void)
{
	bool		result = false;
	HeapTuple	tuple;

	if (superuser())
		return true;
	tuple = SearchSysCache1(AUTHOID, ObjectIdGetDatum(GetUserId()));
	if (HeapTupleIsValid(tuple))
	{
		result = ((Form_pg_authid) GETSTRUCT(tuple))->rolcreatedb;
		ReleaseSysCache(tuple);
	}
	return result;
}

static bool
owns_database(Oid database)
{
	return saga_database_ownercheck(database, GetUserId());
}

static bool
is_template(Oid database)
{
	bool		result = false;
	HeapTuple	tuple;

	tuple = SearchSysCache1(DATABASEOID, ObjectIdGetDatum(database));
	if (HeapTupleIsValid(tuple))
	{
		result = ((Form_pg_database) GETSTRUCT(tuple))->datistemplate;
		ReleaseSysCache(tuple);
	}
	return result;
}

/* The value of an option that is a string, or NULL. */
static const char *
get_option(List *options, const char *name)
{
	ListCell   *cell;

	foreach(cell, options)
	{
		DefElem    *option = lfirst_node(DefElem, cell);

		if (strcmp(option->defname, name) == 0 && option->arg != NULL &&
			IsA(option->arg, String))
			return defGetString(option);
	}
	return NULL;
}

/*
 * Which database does the command need for itself?  InvalidOid if none, or if
 * the command will be refused anyway.
 */
static Oid
database_to_close(Node *stmt)
{
	const char *name = NULL;
	bool		createdb = false;
	bool		copy = false;
	Oid			database;

	switch (nodeTag(stmt))
	{
		case T_DropdbStmt:
			name = ((DropdbStmt *) stmt)->dbname;
			break;
		case T_RenameStmt:
			if (((RenameStmt *) stmt)->renameType == OBJECT_DATABASE)
				name = ((RenameStmt *) stmt)->subname;
			createdb = true;
			break;
		case T_AlterDatabaseStmt:
			if (get_option(((AlterDatabaseStmt *) stmt)->options,
						   "tablespace") != NULL)
				name = ((AlterDatabaseStmt *) stmt)->dbname;
			break;
		case T_CreatedbStmt:
			name = get_option(((CreatedbStmt *) stmt)->options, "template");
			if (name == NULL)
				name = "template1";
			createdb = true;
			copy = true;
			break;
		default:
			break;
	}
	if (name == NULL)
		return InvalidOid;
	database = get_database_oid(name, true);
	/* one can copy the database one is in, but not drop or rename it */
	if (!OidIsValid(database) || (database == MyDatabaseId && !copy))
		return InvalidOid;
	if (createdb && !may_create_databases())
		return InvalidOid;
	if (!owns_database(database) && !(copy && is_template(database)))
		return InvalidOid;
	return database;
}

/* Is it DROP EXTENSION of ours, or of its schema, by somebody who may? */
static bool
drops_saga(Node *stmt)
{
	DropStmt   *drop = (DropStmt *) stmt;
	ListCell   *cell;

	if (!IsA(stmt, DropStmt) ||
		!(drop->removeType == OBJECT_EXTENSION ||
		  (drop->removeType == OBJECT_SCHEMA &&
		   drop->behavior == DROP_CASCADE)))
		return false;
	foreach(cell, drop->objects)
	{
		Oid			extension;

		if (strcmp(strVal(lfirst(cell)), "saga") != 0)
			continue;
		extension = get_extension_oid("saga", true);
		return OidIsValid(extension) &&
			saga_extension_ownercheck(extension, GetUserId());
	}
	return false;
}

/* Close this database until the end of the transaction. */
static void
close_for_drop(bool wait)
{
	if (!noted.closed)
		noted.closed = saga_database_close(MyDatabaseId, true);
	if (noted.closed && wait)
		wait_for_processes(MyDatabaseId);
}

/* ---- commands --------------------------------------------------------- */

/* Does the command do something to the transaction as a whole? */
static bool
is_transactional(Node *stmt)
{
	switch (nodeTag(stmt))
	{
		case T_ConstraintsSetStmt:
		case T_DeclareCursorStmt:
		case T_PrepareStmt:
		case T_ListenStmt:
		case T_UnlistenStmt:
		case T_DiscardStmt:
			return true;
		case T_NotifyStmt:
			return false;
		default:
			return GetCommandLogLevel(stmt) == LOGSTMT_DDL;
	}
}

/* Note what has to be looked at when the transaction has committed. */
static void
note_command(Node *stmt)
{
	switch (nodeTag(stmt))
	{
		case T_CreateRoleStmt:
		case T_AlterRoleStmt:
		case T_GrantRoleStmt:
			noted.roles = true;
			break;
		case T_GrantStmt:
			if (((GrantStmt *) stmt)->objtype == OBJECT_DATABASE)
				noted.roles = true;
			break;
		case T_AlterDatabaseStmt:
			noted.roles = true;
			noted.databases = true;
			break;
		case T_AlterOwnerStmt:
			if (((AlterOwnerStmt *) stmt)->objectType == OBJECT_DATABASE)
				noted.roles = true;
			break;
		default:
			break;
	}
}

/* A prepared transaction that a command ends. */
typedef struct EndedPrepared
{
	char		gid[SAGA_MAX_GID];	/* "": none is */
	bool		committed;
} EndedPrepared;

/* Is one to be prepared, or does one end? */
static void
note_prepared(Node *stmt, EndedPrepared *ended)
{
	TransactionStmt *transaction = (TransactionStmt *) stmt;

	if (!IsA(stmt, TransactionStmt))
		return;
	ended->committed = transaction->kind == TRANS_STMT_COMMIT_PREPARED;
	if (transaction->kind == TRANS_STMT_PREPARE)
		saga_stats_preparing(transaction->gid);
	else if (ended->committed ||
			 transaction->kind == TRANS_STMT_ROLLBACK_PREPARED)
		strlcpy(ended->gid, transaction->gid, sizeof(ended->gid));
}

/* It has; the present transaction does not matter. */
static void
prepared_ended(const EndedPrepared *ended)
{
	saga_stats_prepared_ended(ended->gid, ended->committed);
	if (ended->committed)
		saga_prepared_committed();
}

/* Are rows of our tables written by it, or taken away? */
static bool
writes_saga(Node *stmt)
{
	List	   *relations = NIL;
	ListCell   *cell;

	if (IsA(stmt, TruncateStmt))
		relations = ((TruncateStmt *) stmt)->relations;
	else if (IsA(stmt, CopyStmt) && ((CopyStmt *) stmt)->is_from &&
			 ((CopyStmt *) stmt)->relation != NULL)
		relations = list_make1(((CopyStmt *) stmt)->relation);
	foreach(cell, relations)
	{
		Oid			relation = RangeVarGetRelid(lfirst(cell), NoLock, true);

		if (OidIsValid(relation) &&
			get_rel_namespace(relation) == get_namespace_oid("saga", true))
			return true;
	}
	return false;
}

/* Tell call.c what an operation of a saga does to its transaction. */
static void
tell_call(Node *stmt)
{
	if (IsA(stmt, NotifyStmt))
		saga_call_saw_notify();
	else if (is_transactional(stmt))
		saga_call_saw_transactional();
}

static void
process_utility(PlannedStmt *pstmt, const char *queryString, bool readOnlyTree,
				ProcessUtilityContext context, ParamListInfo params,
				QueryEnvironment *queryEnv, DestReceiver *dest,
				QueryCompletion *qc)
{
	Node	   *stmt = pstmt->utilityStmt;
	Oid			database = InvalidOid;
	EndedPrepared ended = {.committed = false};
	bool		writes = false;

	if (saga_call_is_running())
		tell_call(stmt);

	/* with an aborted transaction only ROLLBACK is possible */
	if (saga_shared_available() && IsTransactionState())
	{
		note_command(stmt);
		/* these commands refuse to run in a transaction block */
		if (context == PROCESS_UTILITY_TOPLEVEL && !IsTransactionBlock())
			database = database_to_close(stmt);
		if (drops_saga(stmt))
			close_for_drop(true);
		note_prepared(stmt, &ended);
		writes = writes_saga(stmt);
	}

	/* opened at the end of the transaction: only then others see what became
	 * of the database */
	if (OidIsValid(database) && saga_database_close(database, true))
	{
		noted.closed_other = database;
		noted.dropped_other = IsA(stmt, DropdbStmt);
		wait_for_processes(database);
	}

	if (prev_process_utility)
		prev_process_utility(pstmt, queryString, readOnlyTree, context, params,
							 queryEnv, dest, qc);
	else
		standard_ProcessUtility(pstmt, queryString, readOnlyTree, context,
								params, queryEnv, dest, qc);

	/* from here on the statement may be gone, with what a ROLLBACK has freed */
	if (ended.gid[0] != '\0')
		prepared_ended(&ended);
	if (writes)
		saga_stats_uncertain();
}

static void
object_access(ObjectAccessType access, Oid class, Oid object, int subid,
			  void *arg)
{
	if (prev_object_access)
		prev_object_access(access, class, object, subid, arg);

	if (class == DatabaseRelationId)
	{
		if (access == OAT_POST_CREATE || access == OAT_POST_ALTER)
			noted.databases = true;
	}
	else if (class == ExtensionRelationId && subid == 0)
	{
		/* which one it is cannot be asked yet when it has just been made */
		if (access == OAT_POST_CREATE || access == OAT_POST_ALTER)
			noted.extension = true;
		else if (access == OAT_DROP)
		{
			char	   *name = get_extension_name(object);

			if (name != NULL && strcmp(name, "saga") == 0)
			{
				noted.extension = true;
				/* DROP ... CASCADE of something else: locks are held, so
				 * nobody is waited for */
				close_for_drop(false);
			}
		}
	}
}

/* Interrupts are held here; nothing may throw or allocate. */
static void
at_transaction_end(XactEvent event, void *arg)
{
	(void) arg;
	switch (event)
	{
		case XACT_EVENT_COMMIT:
		case XACT_EVENT_PREPARE:
		case XACT_EVENT_ABORT:
			break;
		default:
			return;
	}
	if (event != XACT_EVENT_ABORT)
	{
		if (noted.databases)
			saga_databases_changed();
		if (noted.roles)
			saga_roles_changed();
		/* made, dropped, or both: who looks will see */
		if (noted.extension)
			saga_database_probe(MyDatabaseId);
		/* the ids of queues may come again */
		if (noted.closed)
		{
			saga_qstate_forget_database(MyDatabaseId);
			saga_sstate_forget_database(MyDatabaseId);
			saga_stats_forget_database(MyDatabaseId);
		}
	}
	if (noted.closed)
		saga_database_open(MyDatabaseId);
	if (OidIsValid(noted.closed_other))
	{
		saga_database_open(noted.closed_other);
		if (noted.dropped_other && event == XACT_EVENT_COMMIT)
		{
			saga_qstate_forget_database(noted.closed_other);
			saga_sstate_forget_database(noted.closed_other);
			saga_stats_forget_database(noted.closed_other);
			saga_database_forget(noted.closed_other);
		}
	}
	memset(&noted, 0, sizeof(noted));
}

void
saga_hooks_install(bool preloaded)
{
	prev_process_utility = ProcessUtility_hook;
	ProcessUtility_hook = process_utility;
	if (!preloaded)
		return;
	prev_object_access = object_access_hook;
	object_access_hook = object_access;
	RegisterXactCallback(at_transaction_end, NULL);
}
