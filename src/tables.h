/*
 * tables.h
 *		Rows of saga's tables, found and written without a plan.
 *
 * Any backend, inside a transaction.  Privileges are not asked for: they are
 * the caller's matter.  The columns stand here in the order of the script.
 */
#ifndef SAGA_TABLES_H
#define SAGA_TABLES_H

#include "access/htup.h"
#include "access/skey.h"
#include "executor/tuptable.h"
#include "nodes/execnodes.h"
#include "storage/itemptr.h"
#include "storage/lockdefs.h"
#include "utils/relcache.h"
#include "utils/snapshot.h"
#include "utils/uuid.h"

#include "machine.h"

/* Into so many leaves, by "slot", those tables are split that have any. */
#define SAGA_NSLOTS		8

/* The tables that are accessed so; the first four have leaves. */
typedef enum SagaTableKind
{
	SAGA_TABLE_SAGA,
	SAGA_TABLE_STEP,
	SAGA_TABLE_ATTEMPT,
	SAGA_TABLE_HISTORY,
	SAGA_TABLE_MESSAGE,
	SAGA_TABLE_BRANCH,
	SAGA_TABLE_TASK,
	SAGA_TABLE_BARRIER,
	SAGA_TABLE_BARRIER_HORIZON
} SagaTableKind;

#define SAGA_NTABLES		(SAGA_TABLE_BARRIER_HORIZON + 1)

/* Columns, in the order of the script. */
enum
{
	SAGA_ID, SAGA_DUE_AT, SAGA_CREATED_AT, SAGA_START_AT, SAGA_STARTED_AT,
	SAGA_FINISHED_AT, SAGA_DEADLINE, SAGA_TOKEN, SAGA_COORDINATOR, SAGA_ROLE,
	SAGA_PARENT_ID, SAGA_ROOT_ID, SAGA_DEFINITION_ID, SAGA_TURN, SAGA_STATUS,
	SAGA_PARENT_ELEMENT, SAGA_SLOT, SAGA_STEP, SAGA_GOAL, SAGA_PARENT_STEP,
	SAGA_DEPTH, SAGA_BACKWARD, SAGA_SUSPECT, SAGA_RELEASED, SAGA_RECOVERIES,
	SAGA_ROLE_NAME, SAGA_KEY, SAGA_WAITING_FOR, SAGA_TRACEPARENT, SAGA_INPUT,
	SAGA_ERROR, SAGA_NCOLUMNS
};

enum
{
	STEP_SAGA_ID, STEP_DUE_AT, STEP_STARTED_AT, STEP_FINISHED_AT, STEP_ELEMENT,
	STEP_ATTEMPTS, STEP_FAILURES, STEP_CRASHES, STEP_OPERATION, STEP_STATUS,
	STEP_CHILD_ID, STEP_TASK_ID, STEP_SLOT, STEP_STEP, STEP_ROUND, STEP_UNKNOWN,
	STEP_CANCELLED, STEP_SURPLUS, STEP_SIGNALLED, STEP_RESULT, STEP_ERROR,
	STEP_NCOLUMNS
};

/* The columns of the primary key of step, but for the slot. */
#define STEP_NKEYS		5

enum
{
	ATTEMPT_SAGA_ID, ATTEMPT_STARTED_AT, ATTEMPT_FINISHED_AT, ATTEMPT_ELEMENT,
	ATTEMPT_ATTEMPT, ATTEMPT_OPERATION, ATTEMPT_SLOT, ATTEMPT_STEP,
	ATTEMPT_ROUND, ATTEMPT_PASSING, ATTEMPT_OUTCOME, ATTEMPT_SQLSTATE,
	ATTEMPT_MESSAGE, ATTEMPT_DETAIL, ATTEMPT_HINT, ATTEMPT_CONTEXT,
	ATTEMPT_NCOLUMNS
};

enum
{
	HISTORY_ID, HISTORY_SAGA_ID, HISTORY_REQUESTED_AT, HISTORY_APPLIED_AT,
	HISTORY_ELEMENT, HISTORY_SLOT, HISTORY_VERB, HISTORY_STEP, HISTORY_REASON,
	HISTORY_ROLE_NAME, HISTORY_OUTCOME, HISTORY_NCOLUMNS
};

enum
{
	MESSAGE_ID, MESSAGE_SAGA_ID, MESSAGE_SLOT, MESSAGE_ROLE, MESSAGE_KIND,
	MESSAGE_STEP, MESSAGE_ELEMENT, MESSAGE_REASON, MESSAGE_PAYLOAD,
	MESSAGE_REQUESTED_BY, MESSAGE_CREATED_AT, MESSAGE_NCOLUMNS
};

enum
{
	BRANCH_ID, BRANCH_SAGA_ID, BRANCH_CREATED_AT, BRANCH_ROLE, BRANCH_ELEMENT,
	BRANCH_ATTEMPT, BRANCH_OPERATION, BRANCH_SLOT, BRANCH_STEP, BRANCH_ROUND,
	BRANCH_NCOLUMNS
};

enum
{
	TASK_ID, TASK_SAGA_ID, TASK_AT, TASK_OFFERED_AT, TASK_CLAIMED_AT,
	TASK_EXPIRES_AT, TASK_ENDED_AT, TASK_LEASE_TOKEN, TASK_ANSWER_HASH, TASK_ROLE,
	TASK_QUEUE_ID, TASK_DEFINITION_ID, TASK_ELEMENT, TASK_ATTEMPT,
	TASK_EXTENSIONS, TASK_OPERATION, TASK_ROUND, TASK_SLOT, TASK_CLAIMED,
	TASK_CANCELLED, TASK_STEP, TASK_PARTICIPANT, TASK_OUTCOME, TASK_PROGRESS,
	TASK_ANSWER, TASK_INPUT, TASK_NCOLUMNS
};

enum
{
	BARRIER_TOKEN, BARRIER_ELEMENT, BARRIER_ROUND, BARRIER_OPERATION,
	BARRIER_VOID, BARRIER_BEGUN_AT, BARRIER_DONE_AT, BARRIER_COORDINATOR,
	BARRIER_STEP, BARRIER_ROLE_NAME, BARRIER_ANSWER, BARRIER_NCOLUMNS
};

enum
{
	HORIZON_COORDINATOR, HORIZON_ROLE_NAME, HORIZON_BEFORE, HORIZON_KEPT,
	HORIZON_KEPT_SINCE, HORIZON_NCOLUMNS
};

/* What is known by name, until the extension is made anew. */
typedef struct SagaNames
{
	Oid			tables[SAGA_NTABLES][SAGA_NSLOTS];	/* [0] where it has no leaves */
	Oid			status[SAGA_NSTATUS];
	Oid			operation[SAGA_NOPERATION];
	Oid			op_status[SAGA_NOP_STATUS];
	Oid			id_sequence;
	Oid			history_sequence;
	Oid			task_sequence;
	pg_uuid_t	coordinator;
	Oid			coordinator_database;
	int16		slot;			/* new sagas go there */
} SagaNames;

/*
 * Look all of it up, if it is not known yet; every function below wants this
 * to have been called in the same transaction.  The result is static.
 */
extern const SagaNames *saga_tables_names(void);

/* Look it up again next time: the identity has changed. */
extern void saga_tables_forget_names(void);

/* Position of an enum's value among n labels of ours. */
extern int	saga_tables_label(const Oid *labels, int n, Datum value);

/* Was this database made by a copy of the files of another one? */
extern bool saga_tables_is_copy(void);

/* Has this table, one without leaves, no block at all?  Costs next to nothing;
 * false does not mean that there is a row. */
extern bool saga_tables_is_empty(const char *name);

/* A table that is open with its indexes. */
typedef struct SagaTable
{
	Relation	rel;
	int			nindexes;
	Relation   *indexes;
	IndexInfo **infos;
	Relation	pkey;
	TupleTableSlot *slot;		/* as the table has it */
	EState	   *estate;			/* for indexes that somebody else has added */
} SagaTable;

/* The tables of one transaction's work, opened as they are needed. */
typedef struct SagaTables
{
	SagaTable  *open[SAGA_NTABLES][SAGA_NSLOTS];
	LOCKMODE	lockmode;
} SagaTables;

/* The locks are kept until the end of the transaction. */
extern SagaTable *saga_table_open(SagaTableKind kind, int slot,
								  LOCKMODE lockmode);
extern void saga_table_close(SagaTable *table);
extern SagaTable *saga_tables_get(SagaTables *tables, SagaTableKind kind,
								  int slot);
extern void saga_tables_close(SagaTables *tables);

/* Push a snapshot of what is committed now; the caller pops it. */
extern Snapshot saga_tables_push_snapshot(void);

extern void saga_table_insert(SagaTable *table, const Datum *values,
							  const bool *nulls);

/* Replace or delete the row at "tid", which this transaction has locked, or
 * which belongs to one that it has locked.  They raise 40001 if it is not
 * there.  "tuple" gets the new position.  With an active snapshot. */
extern void saga_table_update(SagaTable *table, ItemPointer tid,
							  HeapTuple tuple);
extern void saga_table_delete(SagaTable *table, ItemPointer tid);

/* Leave the visible row of this primary key, or of the beginning of one, in
 * the table's slot; false if there is none. */
extern bool saga_table_fetch(SagaTable *table, Snapshot snapshot,
							 ScanKey keys, int nkeys);
extern bool saga_table_fetch_id(SagaTable *table, Snapshot snapshot, int64 id);

/*
 * Lock one row, by its id, in its newest version, unless it is taken.  True
 * leaves the version that was locked in the table's slot.
 */
extern bool saga_table_lock(SagaTable *table, Snapshot snapshot, int64 id);

/* Likewise, and wait for who has it. */
extern bool saga_table_lock_waiting(SagaTable *table, Snapshot snapshot,
									int64 id);

/* Call "each" for every visible row of this primary key, or of the beginning
 * of one; the second for all whose first key column is "id". */
typedef void (*SagaRowCallback) (TupleTableSlot *slot, void *arg);

extern void saga_table_scan_keys(SagaTable *table, Snapshot snapshot,
								 ScanKey keys, int nkeys,
								 SagaRowCallback each, void *arg);
extern void saga_table_scan(SagaTable *table, Snapshot snapshot, int64 id,
							SagaRowCallback each, void *arg);

#endif							/* SAGA_TABLES_H */
