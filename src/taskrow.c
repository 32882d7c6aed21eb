/*
 * taskrow.c
 *		Owns the rows of saga.task.
 *
 * A task is one attempt of an operation of an external step, or of one that is
 * done in another database: then the courier is who claims and answers it.  Its
 * row is written by the saga's executor, in the transaction that makes the operation
 * RUNNING; from then on it belongs to whoever has locked it:
 *
 *		ready		a participant claims it: it gets a lease token and a time,
 *					which stands in "at"
 *		claimed		who has the token answers, extends or releases it; when the
 *					time is over, the coordinator ends it
 *		answered	the answer stands in the row, and "at" as it was, so that the
 *					update touches no index.  The saga's executor takes it, or,
 *					where that was not woken, the coordinator, who makes a
 *					message of it
 *		ended		"at" is NULL: the answer was taken, the lease has expired, or
 *					the executor has withdrawn it.  The row stays for a while, so
 *					that an answer that is sent again is known
 *
 * Whoever ends a task tells the saga in the same transaction, by taking the
 * answer or by a message: either both are there after a crash or neither is.
 * A claim is flushed before anybody outside can act on it, and so is the offer.
 *
 * A task aside is no attempt: nobody waits for it.  It asks a child saga in
 * another database to go back that its saga does not need any more, or lets all
 * of them go that are there, since their parent has ended.  Who claims it ends
 * it when that is done, and gives it back when it could not be.
 */
#include "postgres.h"

#include "access/tableam.h"
#include "access/xact.h"
#include "utils/builtins.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "qstate.h"
#include "server.h"
#include "store.h"
#include "taskrow.h"

void
saga_taskrow_open(SagaTaskTable *tasks)
{
	(void) saga_tables_names();
	CommandCounterIncrement();
	memset(tasks, 0, sizeof(*tasks));
	tasks->tables.lockmode = RowExclusiveLock;
	tasks->table = saga_tables_get(&tasks->tables, SAGA_TABLE_TASK, 0);
	tasks->snapshot = saga_tables_push_snapshot();
}

void
saga_taskrow_close(SagaTaskTable *tasks)
{
	saga_tables_close(&tasks->tables);
	PopActiveSnapshot();
}

void
saga_taskrow_read(TupleTableSlot *slot, SagaTaskRow *row)
{
	row->tuple = ExecCopySlotHeapTuple(slot);
	heap_deform_tuple(row->tuple, slot->tts_tupleDescriptor, row->values,
					  row->nulls);
}

bool
saga_taskrow_lock(SagaTaskTable *tasks, int64 id, bool wait, SagaTaskRow *row)
{
	bool		locked = wait ?
		saga_table_lock_waiting(tasks->table, tasks->snapshot, id) :
		saga_table_lock(tasks->table, tasks->snapshot, id);

	if (locked)
		saga_taskrow_read(tasks->table->slot, row);
	return locked;
}

bool
saga_taskrow_lock_found(SagaTaskTable *tasks)
{
	SagaTable  *table = tasks->table;
	ItemPointerData tid = table->slot->tts_tid;
	TM_FailureData failure;

	return table_tuple_lock(table->rel, &tid, tasks->snapshot, table->slot,
							GetCurrentCommandId(false),
							LockTupleNoKeyExclusive, LockWaitSkip, 0,
							&failure) == TM_Ok;
}

void
saga_taskrow_write(SagaTaskTable *tasks, SagaTaskRow *row)
{
	HeapTuple	tuple = heap_form_tuple(RelationGetDescr(tasks->table->rel),
										row->values, row->nulls);
	ItemPointerData tid = row->tuple->t_self;

	saga_table_update(tasks->table, &tid, tuple);
}

bool
saga_taskrow_is_open(const SagaTaskRow *row)
{
	return row->nulls[TASK_OUTCOME];
}

bool
saga_taskrow_is_aside(const SagaTaskRow *row)
{
	return DatumGetInt32(row->values[TASK_ATTEMPT]) == SAGA_TASKROW_ASIDE;
}

bool
saga_taskrow_has_answer(const SagaTaskRow *row)
{
	return !row->nulls[TASK_ANSWER];
}

bool
saga_taskrow_is_claimed(const SagaTaskRow *row)
{
	return saga_taskrow_is_open(row) && DatumGetBool(row->values[TASK_CLAIMED]);
}

const char *
saga_taskrow_text(const SagaTaskRow *row, int column)
{
	return row->nulls[column] ? NULL : TextDatumGetCString(row->values[column]);
}

TimestampTz
saga_taskrow_time(const SagaTaskRow *row, int column)
{
	return row->nulls[column] ? 0 : DatumGetTimestampTz(row->values[column]);
}

int64
saga_taskrow_id(const SagaTaskRow *row)
{
	return DatumGetInt64(row->values[TASK_ID]);
}

void
saga_taskrow_set(SagaTaskRow *row, int column, Datum value)
{
	row->values[column] = value;
	row->nulls[column] = false;
}

void
saga_taskrow_set_outcome(SagaTaskRow *row, const char *outcome)
{
	saga_taskrow_set(row, TASK_ENDED_AT,
					 TimestampTzGetDatum(GetCurrentTimestamp()));
	saga_taskrow_set(row, TASK_OUTCOME, CStringGetTextDatum(outcome));
}

void
saga_taskrow_end(SagaTaskTable *tasks, SagaTaskRow *row)
{
	row->nulls[TASK_AT] = true;
	row->nulls[TASK_ANSWER] = true;
	row->nulls[TASK_PROGRESS] = true;
	row->nulls[TASK_INPUT] = true;
	saga_taskrow_write(tasks, row);
	saga_qstate_ended();
}

const SagaQueue *
saga_taskrow_queue(const SagaTaskRow *row)
{
	int32		id = DatumGetInt32(row->values[TASK_QUEUE_ID]);
	SagaServerQueue *server;

	if (!saga_queue_is_servers(id))
		return saga_queue_find_by_id(id);
	server = saga_server_queue_by_id(id);
	return server == NULL ? NULL : &server->queue;
}

Jsonb *
saga_taskrow_make_answer(const SagaTaskRow *row, const SagaOutcome *outcome)
{
	const SagaNames *names = saga_tables_names();
	SagaOutcome timed = *outcome;
	SagaTask	task = {.kind = SAGA_TASK_OPERATE};

	task.operation = saga_tables_label(names->operation, SAGA_NOPERATION,
									   row->values[TASK_OPERATION]);
	task.attempt = DatumGetInt32(row->values[TASK_ATTEMPT]);
	timed.started_at = saga_taskrow_time(row, TASK_CLAIMED_AT);
	timed.finished_at = GetCurrentTimestamp();
	return saga_outcome_write(&timed, &task,
							  DatumGetInt16(row->values[TASK_ROUND]));
}

SagaRef
saga_taskrow_saga(const SagaTaskRow *row)
{
	SagaRef		ref = {
		.id = DatumGetInt64(row->values[TASK_SAGA_ID]),
		.slot = DatumGetInt16(row->values[TASK_SLOT]),
		.definition = DatumGetInt32(row->values[TASK_DEFINITION_ID])
	};

	return ref;
}

void
saga_taskrow_send(SagaTaskTable *tasks, const SagaTaskRow *row, Jsonb *answer)
{
	SagaRef		ref = saga_taskrow_saga(row);

	saga_store_post_outcome(&tasks->tables, &ref,
							DatumGetObjectId(row->values[TASK_ROLE]),
							saga_taskrow_text(row, TASK_STEP),
							DatumGetInt32(row->values[TASK_ELEMENT]), answer);
}


void
saga_taskrow_withdraw(SagaTaskTable *tasks, SagaTaskRow *row)
{
	saga_taskrow_set_outcome(row, SAGA_TASKROW_WITHDRAWN);
	saga_taskrow_end(tasks, row);
}

void
saga_taskrow_expire(SagaTaskTable *tasks, SagaTaskRow *row)
{
	saga_taskrow_set_outcome(row, SAGA_TASKROW_EXPIRED);
	saga_taskrow_end(tasks, row);
}

void
saga_taskrow_give_back(SagaTaskTable *tasks, SagaTaskRow *row)
{
	/* what is tried without end stands behind the others */
	saga_taskrow_set(row, TASK_AT, saga_taskrow_is_aside(row) ?
					 TimestampTzGetDatum(GetCurrentTimestamp()) :
					 row->values[TASK_OFFERED_AT]);
	saga_taskrow_set(row, TASK_CLAIMED, BoolGetDatum(false));
	row->nulls[TASK_LEASE_TOKEN] = true;
	row->nulls[TASK_CLAIMED_AT] = true;
	row->nulls[TASK_EXPIRES_AT] = true;
	row->nulls[TASK_PARTICIPANT] = true;
	row->nulls[TASK_PROGRESS] = true;
	saga_taskrow_write(tasks, row);
}

void
saga_taskrow_wake(const SagaTaskRow *row)
{
	SagaRef		ref = saga_taskrow_saga(row);

	saga_wake_at_commit(DatumGetObjectId(row->values[TASK_ROLE]), ref.id,
						ref.slot, ref.definition, true);
}

bool
saga_taskrow_has_outcome(const SagaTaskRow *row, const char *outcome)
{
	const char *mine = saga_taskrow_text(row, TASK_OUTCOME);

	return mine != NULL && strcmp(mine, outcome) == 0;
}
