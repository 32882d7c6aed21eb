/*
 * task.c
 *		Owns what a saga's executor does with its tasks: it offers them, takes
 *		the answers, and takes back what nobody needs any more.
 *
 * It never waits for a row: one that a participant has locked is looked at
 * again soon.  How a task comes and goes stands in taskrow.c.
 */
#include "postgres.h"

#include "access/xact.h"
#include "commands/sequence.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "errcodes.h"
#include "record.h"
#include "task.h"
#include "taskrow.h"

/* No payload is made of more data than this: a jsonb has at most 256 MB, and the
 * driver's protocol at most a gigabyte of text. */
#define MAX_PAYLOAD		((Size) 100 * 1024 * 1024)

bool
saga_task_is_too_large(const Saga *saga, const SagaTask *task,
					   const Jsonb *input)
{
	const SagaRules *rules = &saga->definition->rules;
	Size		size = VARSIZE_ANY(input != NULL ? input : saga->input);

	if (saga->definition->steps[task->step].kind == SAGA_KIND_CHILD)
		return size > MAX_PAYLOAD;
	for (int i = 0; i <= task->step; i++)
		if (saga->results[i] != NULL &&
			(i == task->step || saga_rules_is_before(rules, i, task->step)))
			size += VARSIZE_ANY(saga->results[i]);
	return size > MAX_PAYLOAD;
}

/* What the row of a task says; returns its id. */
static int64
add_row(const Saga *saga, const SagaQueue *queue, const char *step, int element,
		int round, SagaOperation operation, int attempt, const Jsonb *input)
{
	const SagaNames *names = saga_tables_names();
	TimestampTz now = GetCurrentTimestamp();
	int64		id = nextval_internal(names->task_sequence, false);
	SagaTable  *table;
	SagaTaskRow row;

	Assert(GetCurrentTransactionNestLevel() == 1 && saga->branch == NULL);
	memset(row.nulls, true, sizeof(row.nulls));
	saga_taskrow_set(&row, TASK_ID, Int64GetDatum(id));
	saga_taskrow_set(&row, TASK_SAGA_ID, Int64GetDatum(saga->ref.id));
	saga_taskrow_set(&row, TASK_AT, TimestampTzGetDatum(now));
	saga_taskrow_set(&row, TASK_OFFERED_AT, TimestampTzGetDatum(now));
	saga_taskrow_set(&row, TASK_ROLE, ObjectIdGetDatum(saga->role));
	saga_taskrow_set(&row, TASK_QUEUE_ID, Int32GetDatum(queue->id));
	saga_taskrow_set(&row, TASK_DEFINITION_ID,
					 Int32GetDatum(saga->definition_id));
	saga_taskrow_set(&row, TASK_ELEMENT, Int32GetDatum(element));
	saga_taskrow_set(&row, TASK_ATTEMPT, Int32GetDatum(attempt));
	saga_taskrow_set(&row, TASK_EXTENSIONS, Int32GetDatum(0));
	saga_taskrow_set(&row, TASK_OPERATION,
			  ObjectIdGetDatum(names->operation[operation]));
	saga_taskrow_set(&row, TASK_ROUND, Int16GetDatum(round));
	saga_taskrow_set(&row, TASK_SLOT, Int16GetDatum(saga->ref.slot));
	saga_taskrow_set(&row, TASK_CLAIMED, BoolGetDatum(false));
	saga_taskrow_set(&row, TASK_CANCELLED, BoolGetDatum(false));
	saga_taskrow_set(&row, TASK_STEP, CStringGetTextDatum(step));
	if (input != NULL)
		saga_taskrow_set(&row, TASK_INPUT, PointerGetDatum(input));
	table = saga_table_open(SAGA_TABLE_TASK, 0, RowExclusiveLock);
	saga_table_insert(table, row.values, row.nulls);
	saga_table_close(table);
	ForceSyncCommit();
	saga_qstate_offered(queue->id, queue->name, 1);
	return id;
}

static int
round_of(const Saga *saga, const SagaTask *task)
{
	return saga_machine_round(&saga->definition->rules, &saga->state,
							  task->step);
}

int64
saga_task_offer(const Saga *saga, const SagaTask *task, const SagaQueue *queue,
				const Jsonb *input)
{
	return add_row(saga, queue, saga->definition->steps[task->step].name,
				   task->element, round_of(saga, task), task->operation,
				   task->attempt, input);
}

/* Its element is as it is named there: -1 if the step is not foreach. */
void
saga_task_offer_recall(const Saga *saga, const SagaTask *task,
					   const SagaQueue *queue)
{
	const SagaStep *step = &saga->definition->steps[task->step];

	(void) add_row(saga, queue, step->name,
				   step->foreach.text == NULL ? -1 : task->element,
				   round_of(saga, task), SAGA_OPERATION_COMPENSATION,
				   SAGA_TASKROW_ASIDE, NULL);
}

void
saga_task_offer_release(const Saga *saga, const char *step,
						const SagaQueue *queue)
{
	(void) add_row(saga, queue, step, -1, 0, SAGA_OPERATION_CONFIRMATION,
				   SAGA_TASKROW_ASIDE, NULL);
}

static void
fill_info(const SagaTaskRow *row, SagaTaskInfo *info)
{
	info->offered_at = saga_taskrow_time(row, TASK_OFFERED_AT);
	info->claimed_at = saga_taskrow_time(row, TASK_CLAIMED_AT);
	info->lease_until = saga_taskrow_time(row, TASK_AT);
	info->cancelled = DatumGetBool(row->values[TASK_CANCELLED]);
	info->participant = saga_taskrow_text(row, TASK_PARTICIPANT);
}

SagaTaskState
saga_task_look(int64 id, SagaTaskInfo *info)
{
	SagaTaskState state;
	SagaTaskTable tasks;
	SagaTaskRow row;

	saga_taskrow_open(&tasks);
	if (saga_taskrow_lock(&tasks, id, false, &row))
	{
		fill_info(&row, info);
		if (saga_taskrow_is_claimed(&row))
			state = SAGA_TASK_CLAIMED;
		else if (saga_taskrow_is_open(&row))
			state = SAGA_TASK_READY;
		else if (saga_taskrow_has_answer(&row))
			state = SAGA_TASK_ANSWERED;
		else if (saga_taskrow_has_outcome(&row, SAGA_TASKROW_WITHDRAWN))
			state = SAGA_TASK_WITHDRAWN;
		else
			state = SAGA_TASK_ANSWERED;
	}
	else
		state = saga_table_fetch_id(tasks.table, tasks.snapshot, id) ?
			SAGA_TASK_TAKEN : SAGA_TASK_GONE;
	saga_taskrow_close(&tasks);
	return state;
}

bool
saga_task_is_ready(int64 id)
{
	SagaTaskTable tasks;
	bool		ready;

	saga_taskrow_open(&tasks);
	ready = saga_table_fetch_id(tasks.table, tasks.snapshot, id) &&
		!tasks.table->slot->tts_isnull[TASK_AT] &&
		!DatumGetBool(tasks.table->slot->tts_values[TASK_CLAIMED]);
	saga_taskrow_close(&tasks);
	return ready;
}

/*
 * Without a lock at first: most often there is none, and an executor whose
 * transaction has but one snapshot must not meet who has answered since.
 */
Jsonb *
saga_task_take_answer(SagaTaskTable *tasks, int64 id, TimestampTz *ready_since)
{
	TupleTableSlot *slot = tasks->table->slot;
	Jsonb	   *answer;
	SagaTaskRow row;

	*ready_since = 0;
	if (!saga_table_fetch_id(tasks->table, tasks->snapshot, id))
		return NULL;
	if (!slot->tts_isnull[TASK_AT] &&
		!DatumGetBool(slot->tts_values[TASK_CLAIMED]))
		*ready_since = DatumGetTimestampTz(slot->tts_values[TASK_OFFERED_AT]);
	if (slot->tts_isnull[TASK_ANSWER] ||
		!saga_taskrow_lock(tasks, id, false, &row) ||
		!saga_taskrow_has_answer(&row))
		return NULL;
	answer = DatumGetJsonbPCopy(row.values[TASK_ANSWER]);
	saga_taskrow_end(tasks, &row);
	return answer;
}

SagaTaskTable *
saga_task_begin_taking(void)
{
	SagaTaskTable *tasks = palloc(sizeof(SagaTaskTable));

	saga_taskrow_open(tasks);
	return tasks;
}

void
saga_task_end_taking(SagaTaskTable *tasks)
{
	saga_taskrow_close(tasks);
	pfree(tasks);
}

/* Change a row that this transaction has locked. */
static void
change_locked(int64 id, void (*change) (SagaTaskTable *tasks, SagaTaskRow *row))
{
	SagaTaskTable tasks;
	SagaTaskRow row;

	saga_taskrow_open(&tasks);
	if (!saga_taskrow_lock(&tasks, id, false, &row))
		elog(ERROR, "task %lld is not locked", (long long) id);
	change(&tasks, &row);
	saga_taskrow_close(&tasks);
}

static void
cancel_row(SagaTaskTable *tasks, SagaTaskRow *row)
{
	saga_taskrow_set(row, TASK_CANCELLED, BoolGetDatum(true));
	saga_taskrow_write(tasks, row);
}

void
saga_task_withdraw(int64 id)
{
	change_locked(id, saga_taskrow_withdraw);
}

void
saga_task_expire(int64 id)
{
	change_locked(id, saga_taskrow_expire);
}

void
saga_task_cancel(int64 id)
{
	change_locked(id, cancel_row);
}

void
saga_task_lease_outcome(const char *participant, SagaOutcome *outcome)
{
	memset(outcome, 0, sizeof(*outcome));
	outcome->kind = SAGA_OUTCOME_FAILED;
	outcome->is_passing = true;
	outcome->timed_out = true;
	outcome->unknown = true;
	outcome->error =
		saga_record_make_error(ERRCODE_SAGA_LEASE_EXPIRED,
							   psprintf("participant \"%s\" let its lease expire",
										participant == NULL ? "" : participant),
							   "No answer came, so the outcome of the attempt is not known.");
}
