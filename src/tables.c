/*
 * tables.c
 *		Owns how rows of saga's tables are found and written without a plan.
 *
 * The engine's hot path goes through the table and index access methods, as
 * the catalogs and logical replication do: no plan, no search path, no
 * privileges, nothing of the role's settings in it.  Leaves are opened by
 * name, so no other partition is locked.  What the names stand for is looked
 * up once, and again when owner.c says so.
 *
 * Every process that advances or looks at sagas runs this.  It keeps nothing
 * but the names, so there is nothing to make good when one is killed here.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/relscan.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/index.h"
#include "catalog/namespace.h"
#include "catalog/pg_enum.h"
#include "catalog/pg_type.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#include "compat.h"
#include "owner.h"
#include "tables.h"

#define HAS_LEAVES(kind)	((kind) < SAGA_TABLE_MESSAGE)

static const char *const table_names[SAGA_NTABLES] = {
	"saga", "step", "attempt", "history", "message", "branch", "task", "barrier",
	"barrier_horizon"
};

/* What was looked up, until owner.c's generation changes. */
static SagaNames names;
static uint32 known_generation;
static bool valid = false;


/* ---- names ------------------------------------------------------------ */

static Oid
find_table(Oid namespace, const char *name)
{
	Oid			oid = get_relname_relid(name, namespace);

	if (!OidIsValid(oid))
		ereport(ERROR,
				errcode(ERRCODE_UNDEFINED_TABLE),
				errmsg("table \"saga.%s\" does not exist", name),
				errhint("Drop and create the extension \"saga\" again, or restore it from a dump."));
	return oid;
}

static Oid
find_label(Oid type, const char *label)
{
	HeapTuple	tuple = SearchSysCache2(ENUMTYPOIDNAME, ObjectIdGetDatum(type),
										CStringGetDatum(label));
	Oid			oid;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "enum label \"%s\" is missing", label);
	oid = ((Form_pg_enum) GETSTRUCT(tuple))->oid;
	ReleaseSysCache(tuple);
	return oid;
}

static Oid
find_enum(Oid namespace, const char *name)
{
	return GetSysCacheOid2(TYPENAMENSP, Anum_pg_type_oid,
						   CStringGetDatum(name), ObjectIdGetDatum(namespace));
}

/* The one row of saga.coordinator.  Scanned without a plan: begin needs it
 * under any isolation level and any settings. */
static void
read_coordinator(Oid table)
{
	Relation	rel = table_open(table, AccessShareLock);
	TupleTableSlot *slot = table_slot_create(rel, NULL);
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	TableScanDesc scan = table_beginscan(rel, snapshot, 0, NULL);
	bool		isnull;

	if (!table_scan_getnextslot(scan, ForwardScanDirection, slot))
		ereport(ERROR,
				errcode(ERRCODE_DATA_CORRUPTED),
				errmsg("table \"saga.coordinator\" is empty"),
				errhint("CALL saga.adopt() makes a new identity."));
	names.coordinator = *DatumGetUUIDP(slot_getattr(slot, 2, &isnull));
	names.coordinator_database = DatumGetObjectId(slot_getattr(slot, 3, &isnull));
	names.slot = DatumGetInt16(slot_getattr(slot, 4, &isnull));
	table_endscan(scan);
	UnregisterSnapshot(snapshot);
	ExecDropSingleTupleTableSlot(slot);
	table_close(rel, NoLock);
}

const SagaNames *
saga_tables_names(void)
{
	uint32		generation = saga_owner_generation();
	Oid			namespace;
	Oid			type;

	if (valid && known_generation == generation)
		return &names;
	valid = false;
	namespace = get_namespace_oid("saga", false);
	for (int kind = 0; kind < SAGA_NTABLES; kind++)
	{
		if (!HAS_LEAVES(kind))
			names.tables[kind][0] = find_table(namespace, table_names[kind]);
		else
			for (int slot = 0; slot < SAGA_NSLOTS; slot++)
				names.tables[kind][slot] =
					find_table(namespace,
							   psprintf("%s_%d", table_names[kind], slot));
	}
	names.id_sequence = find_table(namespace, "saga_id_seq");
	names.history_sequence = find_table(namespace, "history_id_seq");
	names.task_sequence = find_table(namespace, "task_id_seq");
	type = find_enum(namespace, "saga_status");
	for (int i = 0; i < SAGA_NSTATUS; i++)
		names.status[i] = find_label(type, saga_status_name(i));
	type = find_enum(namespace, "operation");
	for (int i = 0; i < SAGA_NOPERATION; i++)
		names.operation[i] = find_label(type, saga_operation_name(i));
	type = find_enum(namespace, "operation_status");
	for (int i = 0; i < SAGA_NOP_STATUS; i++)
		names.op_status[i] = find_label(type, saga_op_status_name(i));
	read_coordinator(find_table(namespace, "coordinator"));
	known_generation = generation;
	valid = true;
	return &names;
}

void
saga_tables_forget_names(void)
{
	valid = false;
}

int
saga_tables_label(const Oid *labels, int n, Datum value)
{
	for (int i = 0; i < n; i++)
		if (labels[i] == DatumGetObjectId(value))
			return i;
	elog(ERROR, "unrecognized enum value %u", DatumGetObjectId(value));
	return 0;					/* keep the compiler quiet */
}

bool
saga_tables_is_copy(void)
{
	if (saga_tables_names()->coordinator_database == MyDatabaseId)
		return false;

	/*
	 * saga.adopt() wakes others before its invalidations are sent: who finds a
	 * copy looks again.
	 */
	valid = false;
	return saga_tables_names()->coordinator_database != MyDatabaseId;
}

bool
saga_tables_is_empty(const char *name)
{
	Oid			oid = find_table(get_namespace_oid("saga", false), name);
	Relation	rel = table_open(oid, AccessShareLock);
	bool		empty = RelationGetNumberOfBlocks(rel) == 0;

	table_close(rel, NoLock);
	return empty;
}


/* ---- tables ------------------------------------------------------------ */

SagaTable *
saga_table_open(SagaTableKind kind, int slot, LOCKMODE lockmode)
{
	Oid			oid = names.tables[kind][HAS_LEAVES(kind) ? slot : 0];
	SagaTable  *table = palloc0(sizeof(SagaTable));
	List	   *oids;
	ListCell   *cell;

	table->rel = table_open(oid, lockmode);
	table->slot = table_slot_create(table->rel, NULL);
	oids = RelationGetIndexList(table->rel);
	table->indexes = palloc(list_length(oids) * sizeof(Relation));
	table->infos = palloc0(list_length(oids) * sizeof(IndexInfo *));
	foreach(cell, oids)
	{
		Relation	index = index_open(lfirst_oid(cell), lockmode);

		table->indexes[table->nindexes++] = index;
		if (index->rd_index->indisprimary)
			table->pkey = index;
	}
	list_free(oids);
	if (table->pkey == NULL)
		elog(ERROR, "table \"%s\" has no primary key",
			 RelationGetRelationName(table->rel));
	return table;
}

void
saga_table_close(SagaTable *table)
{
	for (int i = 0; i < table->nindexes; i++)
		index_close(table->indexes[i], NoLock);
	ExecDropSingleTupleTableSlot(table->slot);
	if (table->estate != NULL)
		FreeExecutorState(table->estate);
	table_close(table->rel, NoLock);
}

SagaTable *
saga_tables_get(SagaTables *tables, SagaTableKind kind, int slot)
{
	int			leaf = HAS_LEAVES(kind) ? slot : 0;
	SagaTable **table = &tables->open[kind][leaf];

	if (*table == NULL)
		*table = saga_table_open(kind, slot, tables->lockmode);
	return *table;
}

void
saga_tables_close(SagaTables *tables)
{
	for (int kind = 0; kind < SAGA_NTABLES; kind++)
		for (int slot = 0; slot < SAGA_NSLOTS; slot++)
			if (tables->open[kind][slot] != NULL)
				saga_table_close(tables->open[kind][slot]);
}

/*
 * The number of the column that has to be not null for a row to have an entry
 * in this partial index, as with all of the script's; 0 if its condition is
 * another.
 */
static AttrNumber
needed_column(const IndexInfo *info)
{
	NullTest   *test;

	if (list_length(info->ii_Predicate) != 1)
		return 0;
	test = (NullTest *) linitial(info->ii_Predicate);
	if (!IsA(test, NullTest) || test->nulltesttype != IS_NOT_NULL ||
		!IsA(test->arg, Var))
		return 0;
	return ((Var *) test->arg)->varattno;
}

/* Has this index, which is none of the script's, an entry for the row? */
static bool
predicate_holds(SagaTable *table, IndexInfo *info)
{
	if (info->ii_PredicateState == NULL)
		info->ii_PredicateState = ExecPrepareQual(info->ii_Predicate,
												  table->estate);
	return ExecQual(info->ii_PredicateState,
					GetPerTupleExprContext(table->estate));
}

/* What is kept with the table lives as long as that. */
static IndexInfo *
build_info(SagaTable *table, Relation index)
{
	MemoryContext old = MemoryContextSwitchTo(GetMemoryChunkContext(table));
	IndexInfo  *info = BuildIndexInfo(index);

	MemoryContextSwitchTo(old);
	return info;
}

static EState *
build_estate(SagaTable *table)
{
	MemoryContext old = MemoryContextSwitchTo(GetMemoryChunkContext(table));
	EState	   *estate = CreateExecutorState();

	MemoryContextSwitchTo(old);
	return estate;
}

static void
insert_index_entries(SagaTable *table, TupleTableSlot *slot,
					 bool summarizing_only)
{
	Datum		values[INDEX_MAX_KEYS];
	bool		nulls[INDEX_MAX_KEYS];

	for (int i = 0; i < table->nindexes; i++)
	{
		Relation	index = table->indexes[i];
		IndexInfo  *info = table->infos[i];
		AttrNumber	column;

		if (!index->rd_index->indisready ||
			(summarizing_only && !saga_index_is_summarizing(index)))
			continue;
		if (info == NULL)
			info = table->infos[i] = build_info(table, index);
		column = needed_column(info);
		if (column > 0 && slot_attisnull(slot, column))
			continue;
		if (info->ii_Expressions != NIL ||
			(info->ii_Predicate != NIL && column <= 0))
		{
			if (table->estate == NULL)
				table->estate = build_estate(table);
			GetPerTupleExprContext(table->estate)->ecxt_scantuple = slot;
			if (column <= 0 && info->ii_Predicate != NIL &&
				!predicate_holds(table, info))
				continue;
		}
		FormIndexDatum(info, slot, table->estate, values, nulls);
		index_insert(index, values, nulls, &slot->tts_tid, table->rel,
					 index->rd_index->indisunique ?
					 UNIQUE_CHECK_YES : UNIQUE_CHECK_NO, false, info);
		saga_index_insert_cleanup(index, info);
	}
}

void
saga_table_insert(SagaTable *table, const Datum *values, const bool *nulls)
{
	TupleTableSlot *slot = table->slot;
	int			natts = slot->tts_tupleDescriptor->natts;

	ExecClearTuple(slot);
	memcpy(slot->tts_values, values, natts * sizeof(Datum));
	memcpy(slot->tts_isnull, nulls, natts * sizeof(bool));
	ExecStoreVirtualTuple(slot);
	table_tuple_insert(table->rel, slot, GetCurrentCommandId(true), 0, NULL);
	insert_index_entries(table, slot, false);
}

void
saga_table_update(SagaTable *table, ItemPointer tid, HeapTuple tuple)
{
	TupleTableSlot *slot = MakeSingleTupleTableSlot(RelationGetDescr(table->rel),
													&TTSOpsHeapTuple);
	TM_FailureData failure;
	LockTupleMode lockmode;
	SagaUpdateIndexes update_indexes;
	TM_Result	result;

	ExecStoreHeapTuple(tuple, slot, false);
	slot->tts_tableOid = RelationGetRelid(table->rel);
	result = table_tuple_update(table->rel, tid, slot,
								GetCurrentCommandId(true), GetActiveSnapshot(),
								InvalidSnapshot, true, &failure, &lockmode,
								&update_indexes);
	if (result != TM_Ok)
		ereport(ERROR,
				errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				errmsg("could not update a locked row of table \"%s\"",
					   RelationGetRelationName(table->rel)));
	tuple->t_self = slot->tts_tid;
	if (saga_update_needs_indexes(update_indexes))
		insert_index_entries(table, slot,
							 saga_update_is_summarizing(update_indexes));
	ExecDropSingleTupleTableSlot(slot);
}

void
saga_table_delete(SagaTable *table, ItemPointer tid)
{
	TM_FailureData failure;
	TM_Result	result;

	result = table_tuple_delete(table->rel, tid, GetCurrentCommandId(true),
								GetActiveSnapshot(), InvalidSnapshot, true,
								&failure, false);
	if (result != TM_Ok)
		ereport(ERROR,
				errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				errmsg("could not delete a row of table \"%s\"",
					   RelationGetRelationName(table->rel)));
}

bool
saga_table_fetch(SagaTable *table, Snapshot snapshot, ScanKey keys, int nkeys)
{
	IndexScanDesc scan;
	bool		found;

	scan = saga_index_beginscan(table->rel, table->pkey, snapshot, nkeys);
	index_rescan(scan, keys, nkeys, NULL, 0);
	found = index_getnext_slot(scan, ForwardScanDirection, table->slot);
	index_endscan(scan);
	if (found)
		slot_getallattrs(table->slot);
	return found;
}

bool
saga_table_fetch_id(SagaTable *table, Snapshot snapshot, int64 id)
{
	ScanKeyData key;

	ScanKeyInit(&key, 1, BTEqualStrategyNumber, F_INT8EQ, Int64GetDatum(id));
	return saga_table_fetch(table, snapshot, &key, 1);
}

void
saga_table_scan_keys(SagaTable *table, Snapshot snapshot, ScanKey keys,
					 int nkeys, SagaRowCallback each, void *arg)
{
	IndexScanDesc scan;

	scan = saga_index_beginscan(table->rel, table->pkey, snapshot, nkeys);
	index_rescan(scan, keys, nkeys, NULL, 0);
	while (index_getnext_slot(scan, ForwardScanDirection, table->slot))
	{
		slot_getallattrs(table->slot);
		each(table->slot, arg);
	}
	index_endscan(scan);
}

void
saga_table_scan(SagaTable *table, Snapshot snapshot, int64 id,
				SagaRowCallback each, void *arg)
{
	ScanKeyData key;

	ScanKeyInit(&key, 1, BTEqualStrategyNumber, F_INT8EQ, Int64GetDatum(id));
	saga_table_scan_keys(table, snapshot, &key, 1, each, arg);
}

static bool
lock_row(SagaTable *table, Snapshot snapshot, int64 id,
		 LockWaitPolicy wait_policy)
{
	ItemPointerData tid;
	TM_FailureData failure;
	TM_Result	result;

	if (!saga_table_fetch_id(table, snapshot, id))
		return false;
	tid = table->slot->tts_tid;
	result = table_tuple_lock(table->rel, &tid, snapshot, table->slot,
							  GetCurrentCommandId(false),
							  LockTupleNoKeyExclusive, wait_policy,
							  IsolationUsesXactSnapshot() ? 0 :
							  TUPLE_LOCK_FLAG_FIND_LAST_VERSION,
							  &failure);
	if (result == TM_Updated || result == TM_Deleted)
	{
		if (IsolationUsesXactSnapshot())
			ereport(ERROR,
					errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
					errmsg("could not serialize access due to concurrent update"));
		return false;
	}
	if (result == TM_Ok)
		slot_getallattrs(table->slot);
	return result == TM_Ok;
}

bool
saga_table_lock(SagaTable *table, Snapshot snapshot, int64 id)
{
	return lock_row(table, snapshot, id, LockWaitSkip);
}

bool
saga_table_lock_waiting(SagaTable *table, Snapshot snapshot, int64 id)
{
	return lock_row(table, snapshot, id, LockWaitBlock);
}

Snapshot
saga_tables_push_snapshot(void)
{
	/* above read committed there is but one, and a conflict is an error */
	if (IsolationUsesXactSnapshot())
		PushActiveSnapshot(GetTransactionSnapshot());
	else
		PushActiveSnapshot(GetLatestSnapshot());
	return GetActiveSnapshot();
}
