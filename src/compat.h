/*
 * compat.h
 *		Differences between the versions of PostgreSQL, 15 to 18: the only place
 *		that knows them.  Include it after PostgreSQL's own headers.
 */
#ifndef SAGA_COMPAT_H
#define SAGA_COMPAT_H

#include "access/tableam.h"
#include "catalog/pg_database.h"
#include "catalog/pg_foreign_server.h"
#include "catalog/pg_namespace.h"
#include "catalog/pg_proc.h"
#include "utils/acl.h"
#include "utils/timestamp.h"

/* 16 has one function for the privileges of all kinds of objects. */
#if PG_VERSION_NUM >= 160000
#define saga_function_aclcheck(function, role) \
	object_aclcheck(ProcedureRelationId, (function), (role), ACL_EXECUTE)
#define saga_schema_aclcheck(schema, role) \
	object_aclcheck(NamespaceRelationId, (schema), (role), ACL_USAGE)
#define saga_server_aclcheck(server, role) \
	object_aclcheck(ForeignServerRelationId, (server), (role), ACL_USAGE)
#define saga_database_connectcheck(database, role) \
	object_aclcheck(DatabaseRelationId, (database), (role), ACL_CONNECT)
#else
#define saga_function_aclcheck(function, role) \
	pg_proc_aclcheck((function), (role), ACL_EXECUTE)
#define saga_schema_aclcheck(schema, role) \
	pg_namespace_aclcheck((schema), (role), ACL_USAGE)
#define saga_server_aclcheck(server, role) \
	pg_foreign_server_aclcheck((server), (role), ACL_USAGE)
#define saga_database_connectcheck(database, role) \
	pg_database_aclcheck((database), (role), ACL_CONNECT)
#endif

/* 16 has VARDATA_ANY() and the like in a header of their own. */
#if PG_VERSION_NUM >= 160000
#include "varatt.h"
#endif

/* 16 reports a missing type softly; before, by a flag. */
#if PG_VERSION_NUM >= 160000
#include "nodes/miscnodes.h"
#endif
#include "parser/parse_type.h"

/* The type of that name, or InvalidOid; raises if it is no name at all. */
static inline Oid
saga_parse_type(const char *text)
{
	Oid			type = InvalidOid;
	int32		typmod;

#if PG_VERSION_NUM >= 160000
	ErrorSaveContext context = {.type = T_ErrorSaveContext};

	if (!parseTypeString(text, &type, &typmod, (Node *) &context))
		return InvalidOid;
#else
	parseTypeString(text, &type, &typmod, true);
#endif
	return type;
}

/* 17 has infinite intervals. */
#if PG_VERSION_NUM >= 170000
#define saga_interval_is_finite(interval) (!INTERVAL_NOT_FINITE(interval))
#else
#define saga_interval_is_finite(interval) (true)
#endif

/* 16: which indexes an update has to maintain is an enum. */
#if PG_VERSION_NUM >= 160000
typedef TU_UpdateIndexes SagaUpdateIndexes;
#define saga_update_needs_indexes(update) ((update) != TU_None)
#define saga_update_is_summarizing(update) ((update) == TU_Summarizing)
#define saga_index_is_summarizing(index) ((index)->rd_indam->amsummarizing)
#else
typedef bool SagaUpdateIndexes;
#define saga_update_needs_indexes(update) (update)
#define saga_update_is_summarizing(update) (false)
#define saga_index_is_summarizing(index) (true)
#endif

/* 17: what an access method keeps between insertions is given back. */
#if PG_VERSION_NUM >= 170000
#define saga_index_insert_cleanup(index, info) \
	index_insert_cleanup((index), (info))
#else
#define saga_index_insert_cleanup(index, info)	((void) 0)
#endif

/* 18: index scans can be instrumented. */
#if PG_VERSION_NUM >= 180000
#define saga_index_beginscan(heap, index, snapshot, nkeys) \
	index_beginscan((heap), (index), (snapshot), NULL, (nkeys), 0)
#else
#define saga_index_beginscan(heap, index, snapshot, nkeys) \
	index_beginscan((heap), (index), (snapshot), (nkeys), 0)
#endif

/* 17: a timeout of whole transactions, which ends the process. */
#if PG_VERSION_NUM >= 170000
#include "storage/proc.h"
#include "utils/timeout.h"
#define saga_disable_transaction_timeout() \
	do { \
		if (get_timeout_active(TRANSACTION_TIMEOUT)) \
			disable_timeout(TRANSACTION_TIMEOUT, false); \
	} while (0)
#else
#define saga_disable_transaction_timeout()	((void) 0)
#endif

/* 16: likewise for ownership. */
#if PG_VERSION_NUM >= 160000
#define saga_database_ownercheck(database, role) \
	object_ownercheck(DatabaseRelationId, (database), (role))
#define saga_extension_ownercheck(extension, role) \
	object_ownercheck(ExtensionRelationId, (extension), (role))
#else
#define saga_database_ownercheck(database, role) \
	pg_database_ownercheck((database), (role))
#define saga_extension_ownercheck(extension, role) \
	pg_extension_ownercheck((extension), (role))
#endif

/* 17: background workers of roles that may not log in. */
#ifdef BGWORKER_BYPASS_ROLELOGINCHECK
#define SAGA_WORKER_CONNECT_FLAGS	BGWORKER_BYPASS_ROLELOGINCHECK
#define SAGA_NOLOGIN_ROLES_RUN		true
#else
#define SAGA_WORKER_CONNECT_FLAGS	0
#define SAGA_NOLOGIN_ROLES_RUN		false
#endif

/* Databases whose DROP was interrupted: since the minor releases of 2023. */
#ifndef DATCONNLIMIT_INVALID_DB
#define DATCONNLIMIT_INVALID_DB	(-2)
#endif

/* 17: an entry of a table of settings and their values. */
#if PG_VERSION_NUM >= 170000
#define SAGA_TRANSACTION_TIMEOUT_OFF	{"transaction_timeout", "0"},
#else
#define SAGA_TRANSACTION_TIMEOUT_OFF
#endif

/* 17: a set of events belongs to a resource owner; ours to none. */
#include "storage/latch.h"
#if PG_VERSION_NUM >= 170000
#define saga_create_wait_event_set(context, n)	CreateWaitEventSet(NULL, (n))
#else
#define saga_create_wait_event_set(context, n)	CreateWaitEventSet((context), (n))
#endif

#endif							/* SAGA_COMPAT_H */
