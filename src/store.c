/*
 * store.c
 *		The tables of sagas.
 *
 * This file owns every access to saga.saga, step, attempt, message, history,
 * key, lock and alert.  Two kinds of access stand side by side:
 *
 * - The hot path (begin, lock, load, save) goes through the table and index
 *	 access methods directly, as the catalogs and logical replication do: no
 *	 plan, no search path, no privileges, nothing of the role's settings in
 *	 it.  Leaves are opened by name, so no other partition is locked.
 * - Everything else is SQL, run as the owner (owner.c), prepared once.
 *
 * How a batch stays right: saga_store_lock() first locks the saga rows, each
 * in its newest version, and then, with a newer snapshot, reads what hangs on
 * them.  Under one snapshot a row that another executor has just moved on
 * would be seen new beside its old steps, and a step would be run twice.
 * What a caller remembers of a saga counts only when the row has the same
 * turn.  The primary keys of step and attempt are the backstop.
 *
 * A process that dies anywhere here has changed nothing that was not
 * committed, and holds nothing but its transaction's locks.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/amapi.h"
#include "access/detoast.h"
#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/relscan.h"
#include "access/sysattr.h"
#include "access/tableam.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/index.h"
#include "catalog/namespace.h"
#include "catalog/pg_enum.h"
#include "catalog/pg_type.h"
#include "commands/sequence.h"
#include "executor/executor.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "storage/proc.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#include "catalog.h"
#include "compat.h"
#include "owner.h"
#include "store.h"

/* So many bytes of input are loaded for one batch. */
#define MAX_BATCH_INPUT		(64 * 1024 * 1024)

/* The tables that the hot path uses, and how many leaves they have. */
typedef enum TableKind
{
	TABLE_SAGA,
	TABLE_STEP,
	TABLE_ATTEMPT,
	TABLE_HISTORY,
	TABLE_MESSAGE
} TableKind;

#define NTABLES		(TABLE_MESSAGE + 1)

static const char *const table_names[NTABLES] = {
	"saga", "step", "attempt", "history", "message"
};

/* Columns, in the order of the script. */
enum
{
	SAGA_ID, SAGA_DUE_AT, SAGA_CREATED_AT, SAGA_START_AT, SAGA_STARTED_AT,
	SAGA_FINISHED_AT, SAGA_DEADLINE, SAGA_TOKEN, SAGA_COORDINATOR, SAGA_ROLE, SAGA_DEFINITION_ID,
	SAGA_TURN, SAGA_STATUS, SAGA_SLOT, SAGA_STEP, SAGA_BACKWARD, SAGA_SUSPECT,
	SAGA_ROLE_NAME, SAGA_KEY, SAGA_WAITING_FOR, SAGA_TRACEPARENT, SAGA_INPUT,
	SAGA_ERROR, SAGA_NCOLUMNS
};

enum
{
	STEP_SAGA_ID, STEP_DUE_AT, STEP_STARTED_AT, STEP_FINISHED_AT, STEP_ELEMENT,
	STEP_ATTEMPTS, STEP_FAILURES, STEP_CRASHES, STEP_OPERATION, STEP_STATUS,
	STEP_SLOT, STEP_STEP, STEP_UNKNOWN, STEP_RESULT, STEP_ERROR, STEP_NCOLUMNS
};

enum
{
	ATTEMPT_SAGA_ID, ATTEMPT_STARTED_AT, ATTEMPT_FINISHED_AT, ATTEMPT_ELEMENT,
	ATTEMPT_ATTEMPT, ATTEMPT_OPERATION, ATTEMPT_SLOT, ATTEMPT_STEP,
	ATTEMPT_PASSING, ATTEMPT_OUTCOME, ATTEMPT_SQLSTATE, ATTEMPT_MESSAGE,
	ATTEMPT_DETAIL, ATTEMPT_HINT, ATTEMPT_CONTEXT, ATTEMPT_NCOLUMNS
};

enum
{
	HISTORY_ID, HISTORY_SAGA_ID, HISTORY_REQUESTED_AT, HISTORY_APPLIED_AT,
	HISTORY_SLOT, HISTORY_VERB, HISTORY_STEP, HISTORY_REASON,
	HISTORY_ROLE_NAME, HISTORY_OUTCOME, HISTORY_NCOLUMNS
};

enum
{
	MESSAGE_ID, MESSAGE_SAGA_ID, MESSAGE_SLOT, MESSAGE_ROLE, MESSAGE_KIND,
	MESSAGE_STEP, MESSAGE_REASON, MESSAGE_REQUESTED_BY, MESSAGE_CREATED_AT,
	MESSAGE_NCOLUMNS
};

/* What was looked up by name, until owner.c's generation changes. */
static struct
{
	uint32		generation;
	bool		valid;
	Oid			tables[NTABLES][SAGA_NSLOTS];	/* message: [0] only */
	Oid			status[SAGA_NSTATUS];
	Oid			operation[SAGA_NOPERATION];
	Oid			op_status[SAGA_NOP_STATUS];
	Oid			id_sequence;
	Oid			history_sequence;
	pg_uuid_t	coordinator;
	Oid			coordinator_database;
	int16		slot;			/* new sagas go there */
} names;

/* A table that is open with its indexes. */
typedef struct Table
{
	Relation	rel;
	int			nindexes;
	Relation   *indexes;
	IndexInfo **infos;
	Relation	pkey;
	int			needed;			/* the partial indexes of ours hold only rows
								 * whose column of this number is not null; -1
								 * if there is none */
	TupleTableSlot *slot;		/* as the table has it */
	EState	   *estate;			/* for indexes that somebody else has added */
} Table;

/* The tables of one transaction's work, opened as they are needed. */
typedef struct Tables
{
	Table	   *open[NTABLES][SAGA_NSLOTS];
	LOCKMODE	lockmode;
} Tables;

/* A statement that is prepared once per backend. */
typedef struct Statement
{
	const char *sql;
	int			nargs;
	Oid			types[6];
	SPIPlanPtr	plan;
} Statement;


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

static void
look_up_names(void)
{
	uint32		generation = saga_owner_generation();
	Oid			namespace;
	Oid			type;

	if (names.valid && names.generation == generation)
		return;
	names.valid = false;
	namespace = get_namespace_oid("saga", false);
	for (int kind = 0; kind < NTABLES; kind++)
	{
		if (kind == TABLE_MESSAGE)
			names.tables[kind][0] = find_table(namespace, table_names[kind]);
		else
			for (int slot = 0; slot < SAGA_NSLOTS; slot++)
				names.tables[kind][slot] =
					find_table(namespace,
							   psprintf("%s_%d", table_names[kind], slot));
	}
	names.id_sequence = find_table(namespace, "saga_id_seq");
	names.history_sequence = find_table(namespace, "history_id_seq");
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
	names.generation = generation;
	names.valid = true;
}

/* Position of an enum's label among those of ours. */
static int
label_position(const Oid *labels, int n, Datum value)
{
	for (int i = 0; i < n; i++)
		if (labels[i] == DatumGetObjectId(value))
			return i;
	elog(ERROR, "unrecognized enum value %u", DatumGetObjectId(value));
	return 0;					/* keep the compiler quiet */
}

/* Was this database made by a copy of the files of another one? */
static bool
is_copied_database(void)
{
	return names.coordinator_database != MyDatabaseId;
}


/* ---- tables ------------------------------------------------------------ */

static Table *
open_table(Oid oid, LOCKMODE lockmode, int needed)
{
	Table	   *table = palloc0(sizeof(Table));
	List	   *oids;
	ListCell   *cell;

	table->rel = table_open(oid, lockmode);
	table->needed = needed;
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

/* The locks are kept until the end of the transaction. */
static void
close_table(Table *table)
{
	for (int i = 0; i < table->nindexes; i++)
		index_close(table->indexes[i], NoLock);
	ExecDropSingleTupleTableSlot(table->slot);
	if (table->estate != NULL)
		FreeExecutorState(table->estate);
	table_close(table->rel, NoLock);
}

static Table *
get_table(Tables *tables, TableKind kind, int slot)
{
	int			leaf = kind == TABLE_MESSAGE ? 0 : slot;
	Table	  **table = &tables->open[kind][leaf];

	if (*table == NULL)
		*table = open_table(names.tables[kind][leaf], tables->lockmode,
							kind == TABLE_SAGA ? SAGA_DUE_AT : -1);
	return *table;
}

static void
close_tables(Tables *tables)
{
	for (int kind = 0; kind < NTABLES; kind++)
		for (int slot = 0; slot < SAGA_NSLOTS; slot++)
			if (tables->open[kind][slot] != NULL)
				close_table(tables->open[kind][slot]);
}

/* Is this the script's partial index, on rows whose column is not null? */
static bool
is_needed_index(const Table *table, const IndexInfo *info)
{
	NullTest   *test;

	if (table->needed < 0 || list_length(info->ii_Predicate) != 1)
		return false;
	test = (NullTest *) linitial(info->ii_Predicate);
	return IsA(test, NullTest) && test->nulltesttype == IS_NOT_NULL &&
		IsA(test->arg, Var) &&
		((Var *) test->arg)->varattno == table->needed + 1;
}

/* Has this index, which is none of the script's, an entry for the row? */
static bool
predicate_holds(Table *table, IndexInfo *info)
{
	if (info->ii_PredicateState == NULL)
		info->ii_PredicateState = ExecPrepareQual(info->ii_Predicate,
												  table->estate);
	return ExecQual(info->ii_PredicateState,
					GetPerTupleExprContext(table->estate));
}

static void
insert_index_entries(Table *table, TupleTableSlot *slot, bool summarizing_only)
{
	Datum		values[INDEX_MAX_KEYS];
	bool		nulls[INDEX_MAX_KEYS];

	for (int i = 0; i < table->nindexes; i++)
	{
		Relation	index = table->indexes[i];
		IndexInfo  *info = table->infos[i];

		if (!index->rd_index->indisready ||
			(summarizing_only && !saga_index_is_summarizing(index)))
			continue;
		if (info == NULL)
			info = table->infos[i] = BuildIndexInfo(index);
		if (info->ii_Predicate != NIL && is_needed_index(table, info))
		{
			if (slot_attisnull(slot, table->needed + 1))
				continue;
		}
		else if (info->ii_Expressions != NIL || info->ii_Predicate != NIL)
		{
			if (table->estate == NULL)
				table->estate = CreateExecutorState();
			GetPerTupleExprContext(table->estate)->ecxt_scantuple = slot;
			if (info->ii_Predicate != NIL && !predicate_holds(table, info))
				continue;
		}
		FormIndexDatum(info, slot, table->estate, values, nulls);
		index_insert(index, values, nulls, &slot->tts_tid, table->rel,
					 index->rd_index->indisunique ?
					 UNIQUE_CHECK_YES : UNIQUE_CHECK_NO, false, info);
		saga_index_insert_cleanup(index, info);
	}
}

static void
insert_row(Table *table, const Datum *values, const bool *nulls)
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

/* Replace the row at "tid", which this transaction has locked. */
static void
update_row(Table *table, ItemPointer tid, HeapTuple tuple)
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

static void
delete_row(Table *table, ItemPointer tid)
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

/* Call "each" for every visible row whose first key column is "id". */
typedef void (*RowCallback) (TupleTableSlot *slot, void *arg);

static void
scan_rows(Table *table, Snapshot snapshot, int64 id, RowCallback each, void *arg)
{
	IndexScanDesc scan;
	ScanKeyData key;

	ScanKeyInit(&key, 1, BTEqualStrategyNumber, F_INT8EQ, Int64GetDatum(id));
	scan = saga_index_beginscan(table->rel, table->pkey, snapshot, 1);
	index_rescan(scan, &key, 1, NULL, 0);
	while (index_getnext_slot(scan, ForwardScanDirection, table->slot))
	{
		slot_getallattrs(table->slot);
		each(table->slot, arg);
	}
	index_endscan(scan);
}

/* The snapshot for reading what is committed now, in the active stack. */
static Snapshot
push_new_snapshot(void)
{
	/* above read committed there is but one, and a conflict is an error */
	if (IsolationUsesXactSnapshot())
		PushActiveSnapshot(GetTransactionSnapshot());
	else
		PushActiveSnapshot(GetLatestSnapshot());
	return GetActiveSnapshot();
}


/* ---- values ------------------------------------------------------------ */

static void
put_text(Datum *values, bool *nulls, int column, const char *text)
{
	nulls[column] = text == NULL;
	if (text != NULL)
		values[column] = CStringGetTextDatum(text);
}

static void
put_time(Datum *values, bool *nulls, int column, TimestampTz time)
{
	nulls[column] = time == 0;
	values[column] = TimestampTzGetDatum(time);
}

static void
put_jsonb(Datum *values, bool *nulls, int column, const Jsonb *jsonb)
{
	nulls[column] = jsonb == NULL;
	values[column] = PointerGetDatum(jsonb);
}

static char *
get_text(TupleTableSlot *slot, int column)
{
	return slot->tts_isnull[column] ? NULL :
		TextDatumGetCString(slot->tts_values[column]);
}

static TimestampTz
get_time(TupleTableSlot *slot, int column)
{
	return slot->tts_isnull[column] ? 0 :
		DatumGetTimestampTz(slot->tts_values[column]);
}

static Jsonb *
get_jsonb(TupleTableSlot *slot, int column)
{
	return slot->tts_isnull[column] ? NULL :
		DatumGetJsonbPCopy(slot->tts_values[column]);
}

/* NULL stands for "never" where the machine has a number. */
static SagaTime
time_or_never(TupleTableSlot *slot, int column)
{
	return slot->tts_isnull[column] ? SAGA_TIME_NEVER :
		DatumGetTimestampTz(slot->tts_values[column]);
}


/* ---- begin ------------------------------------------------------------ */

static Statement claim_key = {
	"INSERT INTO saga.key (definition, key, saga_id, slot)"
	" VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING",
	4, {TEXTOID, TEXTOID, INT8OID, INT2OID}, NULL
};
static Statement read_key = {
	"SELECT k.saga_id, s.due_at IS NULL FROM saga.key k"
	" LEFT JOIN saga.saga s ON s.id = k.saga_id AND s.slot = k.slot"
	" WHERE k.definition = $1 AND k.key = $2",
	2, {TEXTOID, TEXTOID}, NULL
};
static Statement take_key = {
	"UPDATE saga.key SET saga_id = $3, slot = $4"
	" WHERE definition = $1 AND key = $2 AND saga_id = $5",
	5, {TEXTOID, TEXTOID, INT8OID, INT2OID, INT8OID}, NULL
};

/* Between saga_owner_enter and _leave.  Returns the number of rows. */
static uint64
run_statement(Statement *statement, Datum *values, const char *nulls,
			  bool read_only, long limit)
{
	int			result;

	if (statement->plan == NULL)
	{
		SPIPlanPtr	plan = SPI_prepare(statement->sql, statement->nargs,
									   statement->types);

		if (plan == NULL)
			elog(ERROR, "could not prepare \"%s\": %s", statement->sql,
				 SPI_result_code_string(SPI_result));
		SPI_keepplan(plan);
		statement->plan = plan;
	}
	result = SPI_execute_plan(statement->plan, values, nulls, read_only, limit);
	if (result < 0)
		elog(ERROR, "could not execute \"%s\": %s", statement->sql,
			 SPI_result_code_string(result));
	return SPI_processed;
}

static Datum
result_datum(uint64 row, int column, bool *isnull)
{
	return SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc,
						 column, isnull);
}

static void
report_duplicate_key(const SagaDefinition *definition, const char *key,
					 int64 existing)
{
	ereport(ERROR,
			errcode(ERRCODE_UNIQUE_VIOLATION),
			errmsg("saga definition \"%s\" already has a saga with key \"%s\"",
				   definition->name, key),
			errdetail("It is saga %lld.", (long long) existing));
}

/*
 * Give the key to saga "id".  Returns 0, or the id of the saga that keeps it.
 * Another session that is about to take the same key is waited for: by the
 * insertion, which sees the conflict in the unique index.  What it left is
 * read by a second statement, with a newer snapshot.
 */
static int64
settle_key(const SagaDefinition *definition, const char *key, int64 id,
		   SagaOnDuplicate on_duplicate)
{
	Datum		values[5];
	SagaOwnerSwitch owner;
	int64		existing = 0;
	bool		ended = false;
	char	   *patience = psprintf("%d", LockTimeout);

	values[0] = CStringGetTextDatum(definition->name);
	values[1] = CStringGetTextDatum(key);
	values[2] = Int64GetDatum(id);
	values[3] = Int16GetDatum(names.slot);
	saga_owner_enter(&owner);
	/* who is waited for may take long: the caller's patience counts */
	(void) set_config_option("lock_timeout", patience, PGC_USERSET,
							 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	for (;;)
	{
		bool		isnull;

		CHECK_FOR_INTERRUPTS();
		if (run_statement(&claim_key, values, NULL, false, 0) == 1)
		{
			existing = 0;
			break;
		}
		if (run_statement(&read_key, values, NULL, false, 1) == 0)
			continue;			/* deleted meanwhile */
		existing = DatumGetInt64(result_datum(0, 1, &isnull));
		ended = DatumGetBool(result_datum(0, 2, &isnull));
		if (on_duplicate != SAGA_DUPLICATE_NEW || !ended)
			break;
		values[4] = Int64GetDatum(existing);
		if (run_statement(&take_key, values, NULL, false, 0) == 1)
		{
			existing = 0;
			break;
		}
	}
	saga_owner_leave(&owner);
	if (existing != 0 && on_duplicate == SAGA_DUPLICATE_ERROR)
		report_duplicate_key(definition, key, existing);
	return existing;
}

static void
make_token(pg_uuid_t *token)
{
	if (!pg_strong_random(token->data, UUID_LEN))
		ereport(ERROR,
				errcode(ERRCODE_INTERNAL_ERROR),
				errmsg("could not generate random values"));
}

int64
saga_store_begin(const SagaDefinition *definition, Jsonb *input,
				 const char *key, TimestampTz start_at, TimestampTz deadline,
				 const char *traceparent, SagaOnDuplicate on_duplicate)
{
	TimestampTz now = GetCurrentTimestamp();
	Datum		values[SAGA_NCOLUMNS];
	bool		nulls[SAGA_NCOLUMNS] = {false};
	pg_uuid_t	token;
	Table	   *table;
	int64		id;
	int64		existing;
	bool		later = start_at > now;

	look_up_names();
	if (is_copied_database())
		ereport(ERROR,
				errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				errmsg("cannot begin a saga in a copy of a database"),
				errdetail("This database was made from the files of another one, whose sagas it must not run."),
				errhint("CALL saga.adopt() makes it a coordinator of its own."));
	id = nextval_internal(names.id_sequence, false);
	if (key != NULL)
	{
		existing = settle_key(definition, key, id, on_duplicate);
		if (existing != 0)
			return existing;
	}

	make_token(&token);
	values[SAGA_ID] = Int64GetDatum(id);
	values[SAGA_DUE_AT] = TimestampTzGetDatum(later ? start_at : now);
	values[SAGA_CREATED_AT] = TimestampTzGetDatum(now);
	put_time(values, nulls, SAGA_START_AT, start_at);
	nulls[SAGA_STARTED_AT] = true;
	nulls[SAGA_FINISHED_AT] = true;
	put_time(values, nulls, SAGA_DEADLINE, deadline);
	values[SAGA_TOKEN] = UUIDPGetDatum(&token);
	values[SAGA_COORDINATOR] = UUIDPGetDatum(&names.coordinator);
	values[SAGA_ROLE] = ObjectIdGetDatum(GetUserId());
	values[SAGA_DEFINITION_ID] = Int32GetDatum(definition->id);
	values[SAGA_TURN] = Int32GetDatum(0);
	values[SAGA_STATUS] =
		ObjectIdGetDatum(names.status[later ? SAGA_STATUS_SCHEDULED :
									  SAGA_STATUS_RUNNING]);
	values[SAGA_SLOT] = Int16GetDatum(names.slot);
	values[SAGA_STEP] = Int16GetDatum(0);
	values[SAGA_BACKWARD] = BoolGetDatum(false);
	values[SAGA_SUSPECT] = BoolGetDatum(false);
	put_text(values, nulls, SAGA_ROLE_NAME, GetUserNameFromId(GetUserId(), false));
	put_text(values, nulls, SAGA_KEY, key);
	put_text(values, nulls, SAGA_WAITING_FOR, later ? "start time" : NULL);
	put_text(values, nulls, SAGA_TRACEPARENT, traceparent);
	put_jsonb(values, nulls, SAGA_INPUT, input);
	nulls[SAGA_ERROR] = true;

	table = open_table(names.tables[TABLE_SAGA][names.slot], RowExclusiveLock,
					   SAGA_DUE_AT);
	insert_row(table, values, nulls);
	close_table(table);

	{
		SagaRef		ref = {.id = id, .slot = names.slot};

		saga_wake_at_commit(GetUserId(), ref.id, ref.slot, false);
	}
	return id;
}


/* ---- lock and load ---------------------------------------------------- */

static int
compare_by_id(const void *a, const void *b, void *arg)
{
	const SagaRef *refs = arg;
	int64		left = refs[*(const int *) a].id;
	int64		right = refs[*(const int *) b].id;

	return left < right ? -1 : left > right;
}

/*
 * Lock the row of one saga in its newest version, unless it is taken.  True
 * leaves the version that was locked in the table's slot.
 */
static bool
lock_row(Table *table, Snapshot snapshot, int64 id)
{
	IndexScanDesc scan;
	ScanKeyData key;
	TM_FailureData failure;
	TM_Result	result = TM_Invisible;

	ScanKeyInit(&key, 1, BTEqualStrategyNumber, F_INT8EQ, Int64GetDatum(id));
	scan = saga_index_beginscan(table->rel, table->pkey, snapshot, 1);
	index_rescan(scan, &key, 1, NULL, 0);
	if (index_getnext_slot(scan, ForwardScanDirection, table->slot))
	{
		ItemPointerData tid = table->slot->tts_tid;

		result = table_tuple_lock(table->rel, &tid, snapshot, table->slot,
								  GetCurrentCommandId(false),
								  LockTupleNoKeyExclusive, LockWaitSkip,
								  IsolationUsesXactSnapshot() ? 0 :
								  TUPLE_LOCK_FLAG_FIND_LAST_VERSION,
								  &failure);
	}
	index_endscan(scan);
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

/* Is the locked row one that this executor may work on? */
static bool
row_is_ours(TupleTableSlot *slot, Oid role, const char *role_name)
{
	if (memcmp(DatumGetUUIDP(slot->tts_values[SAGA_COORDINATOR]),
			   &names.coordinator, UUID_LEN) != 0)
		return false;			/* of another coordinator: see saga.adopt() */
	if (!OidIsValid(role))
		return true;
	return role == DatumGetObjectId(slot->tts_values[SAGA_ROLE]) &&
		strcmp(role_name, get_text(slot, SAGA_ROLE_NAME)) == 0;
}

static void
prepare_memory(Saga *saga)
{
	int			nsteps = saga->definition->rules.nsteps;

	saga->state.nsteps = nsteps;
	saga->state.steps = palloc0(nsteps * sizeof(SagaStepState));
	saga->ops = palloc0(nsteps * sizeof(*saga->ops));
	saga->results = palloc0(nsteps * sizeof(Jsonb *));
}

/* Make a Saga of the row in "slot"; its steps come with load_steps(). */
static Saga *
read_saga(TupleTableSlot *slot)
{
	Saga	   *saga = palloc0(sizeof(Saga));
	Datum	   *values = slot->tts_values;

	saga->ref.id = DatumGetInt64(values[SAGA_ID]);
	saga->ref.slot = DatumGetInt16(values[SAGA_SLOT]);
	saga->ref.suspect = DatumGetBool(values[SAGA_SUSPECT]);
	saga->suspect = saga->ref.suspect;
	saga->turn = DatumGetInt32(values[SAGA_TURN]);
	saga->definition_id = DatumGetInt32(values[SAGA_DEFINITION_ID]);
	saga->state.status = label_position(names.status, SAGA_NSTATUS,
										values[SAGA_STATUS]);
	saga->state.backward = DatumGetBool(values[SAGA_BACKWARD]);
	saga->state.deadline = time_or_never(slot, SAGA_DEADLINE);
	saga->due_at = get_time(slot, SAGA_DUE_AT);
	saga->state.start_at = slot->tts_isnull[SAGA_START_AT] ?
		DatumGetTimestampTz(values[SAGA_CREATED_AT]) :
		DatumGetTimestampTz(values[SAGA_START_AT]);
	saga->token = *DatumGetUUIDP(values[SAGA_TOKEN]);
	saga->role = DatumGetObjectId(values[SAGA_ROLE]);
	saga->key = get_text(slot, SAGA_KEY);
	saga->traceparent = get_text(slot, SAGA_TRACEPARENT);
	saga->waiting_for = get_text(slot, SAGA_WAITING_FOR);
	saga->input = get_jsonb(slot, SAGA_INPUT);
	saga->has_error = !slot->tts_isnull[SAGA_ERROR];
	saga->created_at = get_time(slot, SAGA_CREATED_AT);
	saga->started_at = get_time(slot, SAGA_STARTED_AT);
	saga->step = DatumGetInt16(values[SAGA_STEP]);
	saga->tuple = ExecCopySlotHeapTuple(slot);
	saga->foreign = is_copied_database() ||
		memcmp(DatumGetUUIDP(values[SAGA_COORDINATOR]), &names.coordinator,
			   UUID_LEN) != 0;
	return saga;
}

static void
read_step(TupleTableSlot *slot, void *arg)
{
	Saga	   *saga = arg;
	Datum	   *values = slot->tts_values;
	int			step = DatumGetInt16(values[STEP_STEP]);
	int			operation;
	SagaOpState *op;
	SagaOpRow  *row;

	if (step < 0 || step >= saga->state.nsteps)
	{
		saga->broken = "a step is not one of its definition";
		return;
	}
	operation = label_position(names.operation, SAGA_NOPERATION,
							   values[STEP_OPERATION]);
	op = &saga->state.steps[step].op[operation];
	op->status = label_position(names.op_status, SAGA_NOP_STATUS,
								values[STEP_STATUS]);
	op->unknown = DatumGetBool(values[STEP_UNKNOWN]);
	op->attempts = DatumGetInt32(values[STEP_ATTEMPTS]);
	op->failures = DatumGetInt32(values[STEP_FAILURES]);
	op->crashes = DatumGetInt32(values[STEP_CRASHES]);
	op->due_at = get_time(slot, STEP_DUE_AT);

	row = &saga->ops[step][operation];
	row->tuple = ExecCopySlotHeapTuple(slot);
	row->started_at = get_time(slot, STEP_STARTED_AT);
	row->finished_at = get_time(slot, STEP_FINISHED_AT);
	row->result = get_jsonb(slot, STEP_RESULT);
	row->error = get_jsonb(slot, STEP_ERROR);
	if (operation == SAGA_OPERATION_ACTION && op->status == SAGA_OP_SUCCEEDED)
		saga->results[step] = row->result;
}

static void
read_message(TupleTableSlot *slot, void *arg)
{
	Saga	   *saga = arg;
	SagaMessage *message = palloc0(sizeof(SagaMessage));

	message->tid = slot->tts_tid;
	message->id = DatumGetInt64(slot->tts_values[MESSAGE_ID]);
	message->kind = get_text(slot, MESSAGE_KIND);
	message->step = get_text(slot, MESSAGE_STEP);
	message->reason = get_text(slot, MESSAGE_REASON);
	message->requested_by = get_text(slot, MESSAGE_REQUESTED_BY);
	message->created_at = get_time(slot, MESSAGE_CREATED_AT);
	saga->messages = lappend(saga->messages, message);
}

/*
 * The definition of a saga.  One that cannot be read is that saga's trouble,
 * not its batch's: so a first look is taken in a subtransaction.
 */
static const SagaDefinition *
load_definition(Saga *saga)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	const SagaDefinition *volatile definition = NULL;

	if (saga_catalog_has_version(saga->definition_id))
		return saga_catalog_version(saga->definition_id);
	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		definition = saga_catalog_version(saga->definition_id);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		saga_owner_abandon();
		RollbackAndReleaseCurrentSubTransaction();
		CurrentResourceOwner = owner;
		MemoryContextSwitchTo(context);
		if (error->sqlerrcode != ERRCODE_DATA_CORRUPTED)
			ReThrowError(error);
		saga->broken = error->message;
	}
	PG_END_TRY();
	CurrentResourceOwner = owner;
	MemoryContextSwitchTo(context);
	if (definition == NULL && saga->broken == NULL)
		saga->broken = "the version of its definition does not exist";
	return definition;
}

/* Everything of a saga that stands in other tables than its own. */
static void
load_rest(Tables *tables, Snapshot snapshot, Saga *saga, bool reload)
{
	if (reload)
	{
		saga->definition = load_definition(saga);
		if (saga->definition != NULL)
		{
			prepare_memory(saga);
			if (saga->turn > 0)
				scan_rows(get_table(tables, TABLE_STEP, saga->ref.slot),
						  snapshot, saga->ref.id, read_step, saga);
			if (saga->broken == NULL)
				saga->broken = saga_machine_check(&saga->definition->rules,
												  &saga->state);
		}
	}
	saga->messages = NIL;
	scan_rows(get_table(tables, TABLE_MESSAGE, 0), snapshot, saga->ref.id,
			  read_message, saga);
}

/* Would the input of one more saga be too much?  Never for the first. */
static bool
is_too_large(TupleTableSlot *slot, Size *size)
{
	Size		more = toast_raw_datum_size(slot->tts_values[SAGA_INPUT]);

	if (*size > 0 && *size + more > MAX_BATCH_INPUT)
		return true;
	*size += more;
	return false;
}

void
saga_store_lock(Saga **sagas, const SagaRef *refs, int n, Oid role,
				bool *put_off)
{
	Tables		tables = {.lockmode = RowExclusiveLock};
	const char *role_name = NULL;
	int		   *order = palloc(n * sizeof(int));
	bool	   *reload = palloc0(n * sizeof(bool));
	Size		size = 0;
	Snapshot	snapshot;

	look_up_names();
	if (OidIsValid(role))
		role_name = GetUserNameFromId(role, false);
	for (int i = 0; i < n; i++)
		order[i] = i;
	qsort_arg(order, n, sizeof(int), compare_by_id, unconstify(SagaRef *, refs));

	/* first statement: the rows themselves, in their newest version */
	snapshot = push_new_snapshot();
	for (int i = 0; i < n; i++)
	{
		Saga	  **saga = &sagas[order[i]];
		const SagaRef *ref = &refs[order[i]];
		Table	   *table = get_table(&tables, TABLE_SAGA, ref->slot);

		if (is_copied_database() || !lock_row(table, snapshot, ref->id) ||
			!row_is_ours(table->slot, role, role_name))
			*saga = NULL;
		else if (*saga != NULL &&
				 (*saga)->turn == DatumGetInt32(table->slot->tts_values[SAGA_TURN]))
		{
			heap_freetuple((*saga)->tuple);
			(*saga)->tuple = ExecCopySlotHeapTuple(table->slot);
		}
		else if (is_too_large(table->slot, &size))
		{
			*saga = NULL;
			put_off[order[i]] = true;
		}
		else
		{
			*saga = read_saga(table->slot);
			reload[order[i]] = true;
		}
		if (*saga != NULL)
		{
			(*saga)->ended = table->slot->tts_isnull[SAGA_DUE_AT];
			reload[order[i]] &= !(*saga)->ended;
		}
	}
	PopActiveSnapshot();

	/* second statement, newer snapshot: what hangs on them */
	snapshot = push_new_snapshot();
	for (int i = 0; i < n; i++)
	{
		if (sagas[i] == NULL)
			continue;
		load_rest(&tables, snapshot, sagas[i], reload[i]);
		if (sagas[i]->ended && sagas[i]->messages == NIL)
			sagas[i] = NULL;
	}
	PopActiveSnapshot();
	close_tables(&tables);
	pfree(order);
	pfree(reload);
}

/*
 * Look in all leaves for the row of a saga, the newest leaf first: most that
 * are asked for are young.  Returns the table, with the row in its slot, or
 * NULL.
 */
static Table *
find_row(Tables *tables, Snapshot snapshot, int64 id)
{
	for (int i = 0; i < SAGA_NSLOTS; i++)
	{
		int			leaf = (names.slot + SAGA_NSLOTS - i) % SAGA_NSLOTS;
		Table	   *table = get_table(tables, TABLE_SAGA, leaf);
		IndexScanDesc scan;
		ScanKeyData key;
		bool		found;

		ScanKeyInit(&key, 1, BTEqualStrategyNumber, F_INT8EQ, Int64GetDatum(id));
		scan = saga_index_beginscan(table->rel, table->pkey, snapshot, 1);
		index_rescan(scan, &key, 1, NULL, 0);
		found = index_getnext_slot(scan, ForwardScanDirection, table->slot);
		index_endscan(scan);
		if (!found)
			continue;
		slot_getallattrs(table->slot);
		return table;
	}
	return NULL;
}

Saga *
saga_store_peek(int64 id)
{
	Tables		tables = {.lockmode = AccessShareLock};
	Saga	   *saga = NULL;
	Snapshot	snapshot;
	Table	   *table;

	look_up_names();
	CommandCounterIncrement();	/* the caller's own messages count */
	snapshot = push_new_snapshot();
	table = find_row(&tables, snapshot, id);
	if (table != NULL)
	{
		saga = read_saga(table->slot);
		load_rest(&tables, snapshot, saga, true);
	}
	PopActiveSnapshot();
	close_tables(&tables);
	return saga;
}

/* Without a plan: somebody waits for the answer. */
bool
saga_store_glance(int64 id, SagaGlance *glance)
{
	Tables		tables = {.lockmode = AccessShareLock};
	Table	   *table;
	bool		found;

	look_up_names();
	table = find_row(&tables, push_new_snapshot(), id);
	found = table != NULL;
	if (found)
	{
		TupleTableSlot *slot = table->slot;
		bool		isnull;
		Datum		xmin = slot_getsysattr(slot, MinTransactionIdAttributeNumber,
										   &isnull);

		glance->status = label_position(names.status, SAGA_NSTATUS,
										slot->tts_values[SAGA_STATUS]);
		glance->role = DatumGetObjectId(slot->tts_values[SAGA_ROLE]);
		glance->own =
			TransactionIdIsCurrentTransactionId(DatumGetTransactionId(xmin));
	}
	PopActiveSnapshot();
	close_tables(&tables);
	return found;
}


/* ---- save -------------------------------------------------------------- */

/* Where the row of an operation is now: for scan_rows(). */
typedef struct FindOperation
{
	int			step;
	Oid			operation;
	ItemPointerData tid;
	bool		found;
} FindOperation;

static void
find_operation(TupleTableSlot *slot, void *arg)
{
	FindOperation *find = arg;

	if (DatumGetInt16(slot->tts_values[STEP_STEP]) != find->step ||
		DatumGetObjectId(slot->tts_values[STEP_OPERATION]) != find->operation)
		return;
	find->tid = slot->tts_tid;
	find->found = true;
}

/*
 * Update the row of an operation.  It is looked for again: what was read in
 * an earlier transaction may have been moved since, by VACUUM FULL say.
 */
static void
update_operation(Table *table, const Saga *saga, int step, int operation,
				 HeapTuple tuple)
{
	FindOperation find = {.step = step, .operation = names.operation[operation]};

	scan_rows(table, GetActiveSnapshot(), saga->ref.id, find_operation, &find);
	if (!find.found)
		ereport(ERROR,
				errcode(ERRCODE_DATA_CORRUPTED),
				errmsg("a row of saga %lld in table \"%s\" is gone",
					   (long long) saga->ref.id,
					   RelationGetRelationName(table->rel)));
	update_row(table, &find.tid, tuple);
}

static void
save_operation(Tables *tables, const Saga *saga, int step, int operation)
{
	const SagaOpState *op = &saga->state.steps[step].op[operation];
	SagaOpRow  *row = &saga->ops[step][operation];
	Table	   *table = get_table(tables, TABLE_STEP, saga->ref.slot);
	Datum		values[STEP_NCOLUMNS];
	bool		nulls[STEP_NCOLUMNS] = {false};

	values[STEP_SAGA_ID] = Int64GetDatum(saga->ref.id);
	values[STEP_DUE_AT] = TimestampTzGetDatum(op->due_at);
	nulls[STEP_DUE_AT] = op->status != SAGA_OP_WAITING;
	put_time(values, nulls, STEP_STARTED_AT, row->started_at);
	put_time(values, nulls, STEP_FINISHED_AT, row->finished_at);
	values[STEP_ELEMENT] = Int32GetDatum(0);
	values[STEP_ATTEMPTS] = Int32GetDatum(op->attempts);
	values[STEP_FAILURES] = Int32GetDatum(op->failures);
	values[STEP_CRASHES] = Int32GetDatum(op->crashes);
	values[STEP_OPERATION] = ObjectIdGetDatum(names.operation[operation]);
	values[STEP_STATUS] = ObjectIdGetDatum(names.op_status[op->status]);
	values[STEP_SLOT] = Int16GetDatum(saga->ref.slot);
	values[STEP_STEP] = Int16GetDatum(step);
	values[STEP_UNKNOWN] = BoolGetDatum(op->unknown);
	put_jsonb(values, nulls, STEP_RESULT, row->result);
	put_jsonb(values, nulls, STEP_ERROR, row->error);
	row->changed = false;

	if (row->tuple == NULL)
	{
		insert_row(table, values, nulls);
		row->tuple = ExecCopySlotHeapTuple(table->slot);
	}
	else
	{
		HeapTuple	tuple = heap_form_tuple(RelationGetDescr(table->rel),
											values, nulls);

		update_operation(table, saga, step, operation, tuple);
		row->tuple = tuple;
	}
}

static void
save_attempt(Tables *tables, const Saga *saga, const SagaAttempt *attempt)
{
	Datum		values[ATTEMPT_NCOLUMNS];
	bool		nulls[ATTEMPT_NCOLUMNS] = {false};
	const SagaError *error = attempt->error;

	values[ATTEMPT_SAGA_ID] = Int64GetDatum(saga->ref.id);
	values[ATTEMPT_STARTED_AT] = TimestampTzGetDatum(attempt->started_at);
	values[ATTEMPT_FINISHED_AT] = TimestampTzGetDatum(attempt->finished_at);
	values[ATTEMPT_ELEMENT] = Int32GetDatum(0);
	values[ATTEMPT_ATTEMPT] = Int32GetDatum(attempt->attempt);
	values[ATTEMPT_OPERATION] =
		ObjectIdGetDatum(names.operation[attempt->operation]);
	values[ATTEMPT_SLOT] = Int16GetDatum(saga->ref.slot);
	values[ATTEMPT_STEP] = Int16GetDatum(attempt->step);
	values[ATTEMPT_PASSING] = BoolGetDatum(attempt->passing);
	put_text(values, nulls, ATTEMPT_OUTCOME, attempt->outcome);
	put_text(values, nulls, ATTEMPT_SQLSTATE, error->sqlstate);
	put_text(values, nulls, ATTEMPT_MESSAGE, error->message);
	put_text(values, nulls, ATTEMPT_DETAIL, error->detail);
	put_text(values, nulls, ATTEMPT_HINT, error->hint);
	put_text(values, nulls, ATTEMPT_CONTEXT, error->context);
	insert_row(get_table(tables, TABLE_ATTEMPT, saga->ref.slot), values, nulls);
}

/* A message that was acted on leaves its table; what people asked for goes
 * to the history. */
static void
save_message(Tables *tables, const Saga *saga, SagaMessage *message,
			 TimestampTz now)
{
	Datum		values[HISTORY_NCOLUMNS];
	bool		nulls[HISTORY_NCOLUMNS] = {false};

	delete_row(get_table(tables, TABLE_MESSAGE, 0), &message->tid);
	if (strcmp(message->kind, "place") == 0)
		return;
	values[HISTORY_ID] = Int64GetDatum(message->id);
	values[HISTORY_SAGA_ID] = Int64GetDatum(saga->ref.id);
	values[HISTORY_REQUESTED_AT] = TimestampTzGetDatum(message->created_at);
	values[HISTORY_APPLIED_AT] = TimestampTzGetDatum(now);
	values[HISTORY_SLOT] = Int16GetDatum(saga->ref.slot);
	put_text(values, nulls, HISTORY_VERB, message->kind);
	put_text(values, nulls, HISTORY_STEP, message->step);
	put_text(values, nulls, HISTORY_REASON, message->reason);
	put_text(values, nulls, HISTORY_ROLE_NAME, message->requested_by);
	put_text(values, nulls, HISTORY_OUTCOME, message->outcome);
	insert_row(get_table(tables, TABLE_HISTORY, saga->ref.slot), values, nulls);
}

/*
 * Update the row of a saga.  While it goes on due_at stays as it is, so that
 * no indexed column changes and the update is HOT.
 */
static void
save_row(Tables *tables, Saga *saga, TimestampTz now)
{
	Table	   *table = get_table(tables, TABLE_SAGA, saga->ref.slot);
	bool		final = saga_status_is_final(saga->state.status);
	Datum		values[SAGA_NCOLUMNS];
	bool		nulls[SAGA_NCOLUMNS] = {false};
	bool		replace[SAGA_NCOLUMNS] = {false};
	HeapTuple	tuple;

	values[SAGA_DUE_AT] = TimestampTzGetDatum(saga->due_at);
	nulls[SAGA_DUE_AT] = final;
	replace[SAGA_DUE_AT] = true;
	put_time(values, nulls, SAGA_STARTED_AT, saga->started_at);
	replace[SAGA_STARTED_AT] = true;
	values[SAGA_FINISHED_AT] = TimestampTzGetDatum(now);
	replace[SAGA_FINISHED_AT] = final;
	values[SAGA_TURN] = Int32GetDatum(saga->turn + 1);
	replace[SAGA_TURN] = true;
	values[SAGA_STATUS] = ObjectIdGetDatum(names.status[saga->state.status]);
	replace[SAGA_STATUS] = true;
	values[SAGA_STEP] = Int16GetDatum(saga->step);
	replace[SAGA_STEP] = true;
	values[SAGA_BACKWARD] = BoolGetDatum(saga->state.backward);
	replace[SAGA_BACKWARD] = true;
	values[SAGA_SUSPECT] = BoolGetDatum(saga->suspect);
	replace[SAGA_SUSPECT] = true;
	put_text(values, nulls, SAGA_WAITING_FOR, saga->waiting_for);
	replace[SAGA_WAITING_FOR] = true;
	put_jsonb(values, nulls, SAGA_ERROR, saga->error);
	replace[SAGA_ERROR] = saga->error != NULL;

	tuple = heap_modify_tuple(saga->tuple, RelationGetDescr(table->rel),
							  values, nulls, replace);
	update_row(table, &saga->tuple->t_self, tuple);
	heap_freetuple(saga->tuple);
	saga->tuple = tuple;
	saga->turn++;
	if (saga->error != NULL)
		saga->has_error = true;
	saga->error = NULL;
	saga->changed = false;
}

void
saga_store_save(Saga **sagas, int n)
{
	Tables		tables = {.lockmode = RowExclusiveLock};
	TimestampTz now = GetCurrentTimestamp();

	Assert(GetCurrentTransactionNestLevel() == 1);
	look_up_names();
	(void) push_new_snapshot();
	for (int i = 0; i < n; i++)
	{
		Saga	   *saga = sagas[i];
		ListCell   *cell;

		if (saga == NULL || !saga->changed)
			continue;
		if (saga->ended)
		{
			/* final is final: only what was asked too late is put away */
			foreach(cell, saga->messages)
				save_message(&tables, saga, lfirst(cell), now);
			saga->messages = NIL;
			saga->changed = false;
			continue;
		}
		for (int step = 0; step < saga->state.nsteps; step++)
			for (int operation = 0; operation < SAGA_NOPERATION; operation++)
				if (saga->ops[step][operation].changed)
					save_operation(&tables, saga, step, operation);
		foreach(cell, saga->attempts)
			save_attempt(&tables, saga, lfirst(cell));
		foreach(cell, saga->messages)
			if (((SagaMessage *) lfirst(cell))->outcome != NULL)
				save_message(&tables, saga, lfirst(cell), now);
		saga->attempts = NIL;
		saga->messages = NIL;
		save_row(&tables, saga, now);
	}
	PopActiveSnapshot();
	close_tables(&tables);
}


/* ---- messages ---------------------------------------------------------- */

void
saga_store_post(const Saga *saga, const char *kind, const char *step,
				const char *reason)
{
	Table	   *table;
	Datum		values[MESSAGE_NCOLUMNS];
	bool		nulls[MESSAGE_NCOLUMNS] = {false};

	look_up_names();
	values[MESSAGE_ID] =
		Int64GetDatum(nextval_internal(names.history_sequence, false));
	values[MESSAGE_SAGA_ID] = Int64GetDatum(saga->ref.id);
	values[MESSAGE_SLOT] = Int16GetDatum(saga->ref.slot);
	values[MESSAGE_ROLE] = ObjectIdGetDatum(saga->role);
	put_text(values, nulls, MESSAGE_KIND, kind);
	put_text(values, nulls, MESSAGE_STEP, step);
	put_text(values, nulls, MESSAGE_REASON, reason);
	put_text(values, nulls, MESSAGE_REQUESTED_BY,
			 GetUserNameFromId(GetUserId(), false));
	values[MESSAGE_CREATED_AT] = TimestampTzGetDatum(GetCurrentTimestamp());
	table = open_table(names.tables[TABLE_MESSAGE][0], RowExclusiveLock, -1);
	insert_row(table, values, nulls);
	close_table(table);
	saga_wake_at_commit(saga->role, saga->ref.id, saga->ref.slot, true);
}


/* ---- what is due -------------------------------------------------------- */

static Statement find_due = {
	"SELECT s.id, s.slot, s.suspect, s.due_at FROM saga.saga s"
	" WHERE s.role = $1 AND s.due_at <= $2 AND (s.due_at, s.id) > ($3, $4)"
	" AND s.coordinator = $5 AND s.role_name = $6"
	" ORDER BY s.due_at, s.id LIMIT 4096",
	6, {OIDOID, TIMESTAMPTZOID, TIMESTAMPTZOID, INT8OID, UUIDOID, TEXTOID}, NULL
};
static Statement find_next_due = {
	"SELECT s.due_at FROM saga.saga s"
	" WHERE s.role = $1 AND s.due_at > $2 AND s.due_at < 'infinity'"
	" AND s.coordinator = $3 ORDER BY s.due_at LIMIT 1",
	3, {OIDOID, TIMESTAMPTZOID, UUIDOID}, NULL
};
static Statement find_messages = {
	"SELECT DISTINCT m.saga_id, m.slot FROM saga.message m"
	" JOIN saga.saga s ON s.id = m.saga_id AND s.slot = m.slot"
	" WHERE m.role = $1 AND s.coordinator = $2 AND m.saga_id > $3"
	" ORDER BY m.saga_id",
	3, {OIDOID, UUIDOID, INT8OID}, NULL
};
/* the distinct roles by a loose scan of the index: one probe for each; and
 * those of messages, whose saga may be final by now */
static Statement look_at_roles = {
	"WITH RECURSIVE r(role) AS ("
	" (SELECT s.role FROM saga.saga s WHERE s.due_at IS NOT NULL"
	"  ORDER BY s.role LIMIT 1)"
	" UNION ALL"
	" SELECT (SELECT s.role FROM saga.saga s WHERE s.due_at IS NOT NULL"
	"         AND s.role > r.role ORDER BY s.role LIMIT 1)"
	" FROM r WHERE r.role IS NOT NULL), m(role) AS MATERIALIZED ("
	" SELECT DISTINCT m.role FROM saga.message m"
	" JOIN saga.saga s ON s.id = m.saga_id AND s.slot = m.slot"
	" WHERE s.coordinator = $2)"
	" SELECT r.role,"
	" EXISTS (SELECT FROM saga.saga s WHERE s.role = r.role"
	"         AND s.due_at <= $1 AND s.coordinator = $2),"
	" EXISTS (SELECT FROM m WHERE m.role = r.role),"
	" (SELECT s.due_at FROM saga.saga s WHERE s.role = r.role"
	"  AND s.due_at > $1 AND s.due_at < 'infinity' AND s.coordinator = $2"
	"  ORDER BY s.due_at LIMIT 1)"
	" FROM (SELECT r.role FROM r WHERE r.role IS NOT NULL"
	"       UNION SELECT m.role FROM m) r",
	2, {TIMESTAMPTZOID, UUIDOID}, NULL
};

static TimestampTz
next_due_of_role(Oid role, TimestampTz now)
{
	Datum		values[3] = {
		ObjectIdGetDatum(role), TimestampTzGetDatum(now),
		UUIDPGetDatum(&names.coordinator)
	};
	bool		isnull;

	if (run_statement(&find_next_due, values, NULL, false, 1) == 0)
		return DT_NOEND;
	return DatumGetTimestampTz(result_datum(0, 1, &isnull));
}

int
saga_store_find_due(SagaDuePosition *position, SagaRef *refs, int max,
					bool *complete, TimestampTz *next_due)
{
	Oid			role = GetUserId();
	TimestampTz now = GetCurrentTimestamp();
	Datum		values[6];
	SagaOwnerSwitch owner;
	int			n;

	look_up_names();
	*complete = true;
	*next_due = DT_NOEND;
	if (is_copied_database())
		return 0;
	values[0] = ObjectIdGetDatum(role);
	values[1] = TimestampTzGetDatum(now);
	values[2] = TimestampTzGetDatum(position->due_at);
	values[3] = Int64GetDatum(position->id);
	values[4] = UUIDPGetDatum(&names.coordinator);
	values[5] = CStringGetTextDatum(GetUserNameFromId(role, false));
	saga_owner_enter(&owner);
	n = (int) run_statement(&find_due, values, NULL, false, max);
	for (int i = 0; i < n; i++)
	{
		bool		isnull;

		refs[i] = (SagaRef)
		{
			.id = DatumGetInt64(result_datum(i, 1, &isnull)),
			.slot = DatumGetInt16(result_datum(i, 2, &isnull)),
			.suspect = DatumGetBool(result_datum(i, 3, &isnull))
		};
		position->due_at = DatumGetTimestampTz(result_datum(i, 4, &isnull));
		position->id = refs[i].id;
	}
	*complete = n < max && n < 4096;
	if (*complete)
	{
		position->due_at = DT_NOBEGIN;
		position->id = 0;
		*next_due = next_due_of_role(role, now);
	}
	saga_owner_leave(&owner);
	return n;
}

int
saga_store_find_messages(Oid role, int64 after, SagaRef *refs, int max)
{
	Datum		values[3];
	SagaOwnerSwitch owner;
	int			n;

	look_up_names();
	if (is_copied_database())
		return 0;
	values[0] = ObjectIdGetDatum(role);
	values[1] = UUIDPGetDatum(&names.coordinator);
	values[2] = Int64GetDatum(after);
	saga_owner_enter(&owner);
	n = (int) run_statement(&find_messages, values, NULL, false, max);
	for (int i = 0; i < n; i++)
	{
		bool		isnull;

		refs[i] = (SagaRef)
		{
			.id = DatumGetInt64(result_datum(i, 1, &isnull)),
			.slot = DatumGetInt16(result_datum(i, 2, &isnull))
		};
	}
	saga_owner_leave(&owner);
	return n;
}

bool
saga_store_look(SagaRoleCallback callback)
{
	Datum		values[2];
	SagaOwnerSwitch owner;
	uint64		n;

	look_up_names();
	if (is_copied_database())
		return false;
	values[0] = TimestampTzGetDatum(GetCurrentTimestamp());
	values[1] = UUIDPGetDatum(&names.coordinator);
	saga_owner_enter(&owner);
	n = run_statement(&look_at_roles, values, NULL, false, 0);
	for (uint64 i = 0; i < n; i++)
	{
		bool		isnull;
		Oid			role = DatumGetObjectId(result_datum(i, 1, &isnull));
		bool		due = DatumGetBool(result_datum(i, 2, &isnull));
		bool		message = DatumGetBool(result_datum(i, 3, &isnull));
		Datum		next_due = result_datum(i, 4, &isnull);

		callback(role, due, message,
				 isnull ? DT_NOEND : DatumGetTimestampTz(next_due));
	}
	saga_owner_leave(&owner);
	return n > 0;
}


/* ---- places ------------------------------------------------------------- */

static Statement place_enter = {
	"INSERT INTO saga.lock (lock_key, position, saga_id, slot, role, granted)"
	" SELECT $1, pg_catalog.nextval('saga.lock_position_seq'), $2, $3, $4, false"
	" WHERE NOT EXISTS (SELECT FROM saga.lock l"
	"                   WHERE l.lock_key = $1 AND l.saga_id = $2)",
	4, {TEXTOID, INT8OID, INT2OID, OIDOID}, NULL
};
static Statement place_grant = {
	"UPDATE saga.lock SET granted = true"
	" WHERE lock_key = $1 AND NOT granted AND position IN ("
	"  SELECT l.position FROM saga.lock l WHERE l.lock_key = $1 AND NOT l.granted"
	"  ORDER BY l.position LIMIT GREATEST(0,"
	"   COALESCE((SELECT d.max_running FROM saga.definition d WHERE d.id = $2),"
	"            2147483647)"
	"   - (SELECT pg_catalog.count(*) FROM saga.lock g"
	"      WHERE g.lock_key = $1 AND g.granted)))"
	" RETURNING saga_id, slot, role",
	2, {TEXTOID, INT4OID}, NULL
};
static Statement place_is_granted = {
	"SELECT FROM saga.lock WHERE lock_key = $1 AND granted AND saga_id = $2",
	2, {TEXTOID, INT8OID}, NULL
};
static Statement place_leave = {
	"DELETE FROM saga.lock WHERE saga_id = $1 RETURNING lock_key",
	1, {INT8OID}, NULL
};
/* what a process that died before it gave them back has left */
static Statement places_forget = {
	"DELETE FROM saga.lock l WHERE NOT EXISTS"
	" (SELECT FROM saga.saga s WHERE s.id = l.saga_id AND s.slot = l.slot"
	"  AND s.due_at IS NOT NULL)",
	0, {0}, NULL
};
static Statement places_with_line = {
	"SELECT DISTINCT lock_key FROM saga.lock WHERE NOT granted",
	0, {0}, NULL
};
static Statement post_place = {
	"INSERT INTO saga.message (id, saga_id, slot, role, kind, requested_by)"
	" VALUES (pg_catalog.nextval('saga.history_id_seq'), $1, $2, $3, 'place', '')",
	3, {INT8OID, INT2OID, OIDOID}, NULL
};

#define PLACE_PREFIX	"definition "

/*
 * Serialize what is done to the places of one definition, until the end of
 * the transaction.  Not an advisory lock: anybody could hold that.
 */
static void
lock_places(int32 definition_id)
{
	LockDatabaseObject(names.tables[TABLE_MESSAGE][0], definition_id, 0,
					   ExclusiveLock);
}

void
saga_store_places_lock(List *definition_ids)
{
	ListCell   *cell;

	look_up_names();
	list_sort(definition_ids, list_int_cmp);
	foreach(cell, definition_ids)
		lock_places(lfirst_int(cell));
}

/* Give free places to those at the head of the line.  Within the owner's
 * switch, with the places locked.  All but "requester" get a message. */
static void
grant_places(const char *lock_key, int32 definition_id, int64 requester)
{
	Datum		values[2] = {
		CStringGetTextDatum(lock_key), Int32GetDatum(definition_id)
	};
	uint64		n = run_statement(&place_grant, values, NULL, false, 0);
	SPITupleTable *granted = SPI_tuptable;

	for (uint64 i = 0; i < n; i++)
	{
		HeapTuple	tuple = granted->vals[i];
		bool		isnull;
		Datum		post[3];

		for (int column = 0; column < 3; column++)
			post[column] = SPI_getbinval(tuple, granted->tupdesc, column + 1,
										 &isnull);
		if (DatumGetInt64(post[0]) == requester)
			continue;
		run_statement(&post_place, post, NULL, false, 0);
		saga_wake_at_commit(DatumGetObjectId(post[2]), DatumGetInt64(post[0]),
							DatumGetInt16(post[1]), true);
	}
}

bool
saga_store_place_request(const Saga *saga)
{
	int32		definition_id = saga->definition->definition_id;
	char	   *lock_key = psprintf(PLACE_PREFIX "%d", definition_id);
	Datum		values[4] = {
		CStringGetTextDatum(lock_key), Int64GetDatum(saga->ref.id),
		Int16GetDatum(saga->ref.slot), ObjectIdGetDatum(saga->role)
	};
	SagaOwnerSwitch owner;
	bool		granted;

	look_up_names();
	lock_places(definition_id);
	saga_owner_enter(&owner);
	run_statement(&place_enter, values, NULL, false, 0);
	grant_places(lock_key, definition_id, saga->ref.id);
	granted = run_statement(&place_is_granted, values, NULL, false, 1) > 0;
	saga_owner_leave(&owner);
	return granted;
}

static bool
table_is_empty(const char *name)
{
	Oid			oid = find_table(get_namespace_oid("saga", false), name);
	Relation	rel = table_open(oid, AccessShareLock);
	bool		empty = RelationGetNumberOfBlocks(rel) == 0;

	table_close(rel, NoLock);
	return empty;
}

void
saga_store_place_release(Saga **sagas, int n)
{
	SagaOwnerSwitch owner;
	List	   *freed = NIL;
	ListCell   *cell;

	if (table_is_empty("lock"))
		return;					/* the common case: nobody limits anything */
	saga_owner_enter(&owner);
	for (int i = 0; i < n; i++)
	{
		Datum		value;
		uint64		left;

		if (sagas[i] == NULL || !saga_status_is_final(sagas[i]->state.status))
			continue;
		value = Int64GetDatum(sagas[i]->ref.id);
		left = run_statement(&place_leave, &value, NULL, false, 0);
		for (uint64 row = 0; row < left; row++)
		{
			bool		isnull;
			char	   *lock_key = TextDatumGetCString(result_datum(row, 1, &isnull));

			if (strncmp(lock_key, PLACE_PREFIX, strlen(PLACE_PREFIX)) == 0)
				freed = list_append_unique_int(freed,
											   atoi(lock_key + strlen(PLACE_PREFIX)));
		}
	}
	list_sort(freed, list_int_cmp);
	foreach(cell, freed)
	{
		/* the switch is left for no more than a lock: no user code can run */
		lock_places(lfirst_int(cell));
		grant_places(psprintf(PLACE_PREFIX "%d", lfirst_int(cell)),
					 lfirst_int(cell), 0);
	}
	saga_owner_leave(&owner);
}

void
saga_store_places_regrant(void)
{
	SagaOwnerSwitch owner;
	List	   *ids = NIL;
	ListCell   *cell;
	uint64		n;

	look_up_names();
	if (is_copied_database() || table_is_empty("lock"))
		return;
	saga_owner_enter(&owner);
	run_statement(&places_forget, NULL, NULL, false, 0);
	n = run_statement(&places_with_line, NULL, NULL, false, 0);
	for (uint64 i = 0; i < n; i++)
	{
		bool		isnull;
		char	   *lock_key = TextDatumGetCString(result_datum(i, 1, &isnull));

		ids = lappend_int(ids, atoi(lock_key + strlen(PLACE_PREFIX)));
	}
	list_sort(ids, list_int_cmp);
	foreach(cell, ids)
	{
		/* whoever has it grants the places itself; a coordinator does not wait
		 * for a role's commit */
		if (!ConditionalLockDatabaseObject(names.tables[TABLE_MESSAGE][0],
										   lfirst_int(cell), 0, ExclusiveLock))
			continue;
		grant_places(psprintf(PLACE_PREFIX "%d", lfirst_int(cell)),
					 lfirst_int(cell), 0);
	}
	saga_owner_leave(&owner);
}


/* ---- alerts -------------------------------------------------------------- */

static Statement add_alert = {
	"INSERT INTO saga.alert (kind, saga_id, payload)"
	" VALUES ($1, $2, pg_catalog.jsonb_build_object('alert', $1, 'saga_id', $2,"
	"  'definition', $3, 'step', $4, 'message', pg_catalog.left($5, 500)))",
	5, {TEXTOID, INT8OID, TEXTOID, TEXTOID, TEXTOID}, NULL
};
static Statement send_alerts = {
	"WITH gone AS (DELETE FROM saga.alert RETURNING id, payload)"
	" SELECT pg_catalog.pg_notify('saga_alert', (s.payload"
	"  || pg_catalog.jsonb_build_object('id', s.id))::pg_catalog.text)"
	" FROM (SELECT id, payload FROM gone ORDER BY id) s",
	0, {0}, NULL
};

void
saga_store_alert(const Saga *saga, const char *kind, const char *message)
{
	Datum		values[5];
	SagaOwnerSwitch owner;

	values[0] = CStringGetTextDatum(kind);
	values[1] = Int64GetDatum(saga->ref.id);
	values[2] = CStringGetTextDatum(saga->definition ?
									saga->definition->name : "");
	values[3] = CStringGetTextDatum(saga->definition &&
									saga->step < saga->state.nsteps ?
									saga->definition->steps[saga->step].name : "");
	values[4] = CStringGetTextDatum(message);
	saga_owner_enter(&owner);
	run_statement(&add_alert, values, NULL, false, 0);
	saga_owner_leave(&owner);
}

int
saga_store_send_alerts(void)
{
	SagaOwnerSwitch owner;
	int			n;

	if (table_is_empty("alert"))
		return 0;
	saga_owner_enter(&owner);
	n = (int) run_statement(&send_alerts, NULL, NULL, false, 0);
	saga_owner_leave(&owner);
	return n;
}


/* ---- adopting ------------------------------------------------ */

/* A new identity, for a copy made of files or when the row is gone. */
static const char *const renew_identity =
	"WITH o AS (SELECT d.oid FROM pg_catalog.pg_database d"
	"           WHERE d.datname = pg_catalog.current_database())"
	" INSERT INTO saga.coordinator (database) SELECT o.oid FROM o"
	" ON CONFLICT (singleton) DO UPDATE"
	"  SET id = pg_catalog.gen_random_uuid(), database = EXCLUDED.database,"
	"      created_at = pg_catalog.now()"
	"  WHERE coordinator.database <> EXCLUDED.database";

/* Roles of this coordinator's own sagas may have been renamed since. */
static const char *const follow_renames =
	"UPDATE saga.saga s SET role_name = r.rolname, turn = s.turn + 1"
	" FROM saga.coordinator c, pg_catalog.pg_roles r"
	" WHERE s.due_at IS NOT NULL AND s.coordinator = c.id"
	" AND s.role = r.oid AND s.role_name <> r.rolname";

/* What refers to sagas follows their roles. */
static const char *const adopt_statements[] = {
	"UPDATE saga.message m SET role = r.oid"
	" FROM saga.saga s, pg_catalog.pg_roles r"
	" WHERE s.id = m.saga_id AND r.rolname = s.role_name AND r.oid <> m.role",
	"UPDATE saga.lock l SET role = r.oid"
	" FROM saga.saga s, pg_catalog.pg_roles r"
	" WHERE s.id = l.saga_id AND r.rolname = s.role_name AND r.oid <> l.role"
};
static const char *const adopt_sagas =
	"UPDATE saga.saga s SET role = r.oid, turn = s.turn + 1,"
	"  coordinator = (SELECT c.id FROM saga.coordinator c)"
	" FROM pg_catalog.pg_roles r"
	" WHERE s.due_at IS NOT NULL AND r.rolname = s.role_name"
	" AND (r.oid <> s.role"
	"      OR s.coordinator <> (SELECT c.id FROM saga.coordinator c))";
static const char *const list_unbound =
	"SELECT DISTINCT s.role_name FROM saga.saga s"
	" WHERE s.due_at IS NOT NULL AND NOT EXISTS"
	"  (SELECT FROM pg_catalog.pg_roles r WHERE r.rolname = s.role_name)"
	" ORDER BY 1";

static uint64
execute(const char *sql)
{
	int			result = SPI_execute(sql, false, 0);

	if (result < 0)
		elog(ERROR, "could not execute \"%s\": %s", sql,
			 SPI_result_code_string(result));
	return SPI_processed;
}

int64
saga_store_adopt(List **unbound)
{
	MemoryContext caller = CurrentMemoryContext;
	SagaOwnerSwitch owner;
	int64		adopted;
	uint64		n;

	*unbound = NIL;
	/* every backend remembers who this coordinator is */
	saga_owner_invalidate();
	saga_owner_enter(&owner);
	execute(renew_identity);
	adopted = (int64) execute(follow_renames);
	adopted += (int64) execute(adopt_sagas);
	for (size_t i = 0; i < lengthof(adopt_statements); i++)
		execute(adopt_statements[i]);
	/* everybody has the identity and the slot in memory */
	CacheInvalidateRelcacheByRelid(get_relname_relid("saga",
													 get_namespace_oid("saga", false)));
	names.valid = false;
	n = execute(list_unbound);
	for (uint64 i = 0; i < n; i++)
	{
		bool		isnull;
		char	   *name = TextDatumGetCString(result_datum(i, 1, &isnull));
		MemoryContext old = MemoryContextSwitchTo(caller);

		*unbound = lappend(*unbound, pstrdup(name));
		MemoryContextSwitchTo(old);
	}
	saga_owner_leave(&owner);
	return adopted;
}
