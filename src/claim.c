/*
 * claim.c
 *		Owns how participants get tasks.
 *
 * Rows are locked as the index of the queue gives them, those that somebody has
 * are skipped; then each saga is asked, as it is committed, whether it wants
 * its task to be claimed now: an executor that could not lock the row to
 * withdraw it has marked the operation.  The payload is made of the saga's
 * rows, so that its data are stored once.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/timestamp.h"

#include "bind.h"
#include "child.h"
#include "claim.h"
#include "compat.h"
#include "guc.h"
#include "json.h"
#include "record.h"
#include "server.h"
#include "store.h"
#include "task.h"
#include "taskrow.h"
#include "trace.h"

/* A claim that finds its first task only after so long begins the next time
 * where it ended: microseconds, ... */
#define SLOW_SCAN		500

/* ... for so long, since tasks that come back stand before that place. */
#define HINT_LIFETIME	USECS_PER_SEC

/* So many rows are passed over in one claim because their saga does not want them
 * to be claimed just now; so long it is remembered how far that went. */
#define MAX_UNWANTED	1000
#define PASSING_LIFETIME	(5 * USECS_PER_MINUTE)

/*
 * Where this session's last claim ended, if the way there was long: index
 * entries of tasks that were claimed, which a snapshot of somebody else's keeps
 * from being removed, are not to be read each time.  Nor are many tasks that
 * are not to be had now: a claim passes over a part of them, and the next one
 * goes on there.
 */
static struct
{
	int32		queue;
	TimestampTz at;
	TimestampTz good_until;		/* 0 = there is none */
	bool		passing;		/* there are tasks that were passed over */
}			hint;

/* What one claim works with. */
typedef struct Claiming
{
	SagaTaskTable tasks;
	const SagaQueue *queue;
	int64		lease;
	const char *participant;
	bool		takes_over;
	SagaTables	sagas;			/* the tables that the sagas are read from */
	MemoryContext memory;		/* of the call, ... */
	MemoryContext saga_memory;	/* of the saga that was read last, ... */
	MemoryContext task_memory;	/* ... and of one of its tasks */
	int64		saga_id;		/* that saga's; 0 = none */
	Saga	   *saga;			/* NULL = there is none */
	SagaClaimCallback each;
	void	   *arg;
	TimestampTz first_end;		/* of the leases that were given */
} Claiming;

/* Does the saga want the task to be claimed? */
typedef enum Wanted
{
	WANTED,
	NOT_NOW,
	NEVER
} Wanted;

static Relation
find_queue_index(const SagaTable *table)
{
	for (int i = 0; i < table->nindexes; i++)
	{
		Form_pg_index index = table->indexes[i]->rd_index;

		if (index->indnkeyatts == 4 &&
			index->indkey.values[0] == TASK_QUEUE_ID + 1)
			return table->indexes[i];
	}
	ereport(ERROR,
			errcode(ERRCODE_UNDEFINED_OBJECT),
			errmsg("index \"saga.task_queue\" does not exist"),
			errhint("Drop and create the extension \"saga\" again, or restore it from a dump."));
	return NULL;				/* keep the compiler quiet */
}

/* Lock a row that the scan has found, unless somebody else has it. */
static bool
lock_found(SagaTaskTable *tasks, bool claimed, SagaTaskRow *row)
{
	if (!saga_taskrow_lock_found(tasks))
		return false;
	saga_taskrow_read(tasks->table->slot, row);
	return saga_taskrow_is_open(row) &&
		saga_taskrow_is_claimed(row) == claimed;
}

/*
 * Lock up to "max" ready tasks (or claimed ones, to take over) from that place
 * of the queue on, the oldest first; returns how many.  *slow is set when the
 * first was far.
 */
static int
lock_oldest(Claiming *claiming, TimestampTz from, int64 after, SagaTaskRow *rows,
			int max, bool *slow)
{
	SagaTaskTable *tasks = &claiming->tasks;
	Relation	index = find_queue_index(tasks->table);
	ScanKeyData keys[3];
	IndexScanDesc scan;
	TimestampTz begun = GetCurrentTimestamp();
	int			n = 0;

	ScanKeyInit(&keys[0], 1, BTEqualStrategyNumber, F_INT4EQ,
				Int32GetDatum(claiming->queue->id));
	ScanKeyInit(&keys[1], 2, BTEqualStrategyNumber, F_BOOLEQ,
				BoolGetDatum(claiming->takes_over));
	ScanKeyInit(&keys[2], 3, BTGreaterEqualStrategyNumber, F_TIMESTAMPTZ_GE,
				TimestampTzGetDatum(from));
	scan = saga_index_beginscan(tasks->table->rel, index, tasks->snapshot, 3);
	index_rescan(scan, keys, 3, NULL, 0);
	while (n < max &&
		   index_getnext_slot(scan, ForwardScanDirection, tasks->table->slot))
	{
		TimestampTz at;
		bool		isnull;

		CHECK_FOR_INTERRUPTS();
		at = DatumGetTimestampTz(slot_getattr(tasks->table->slot, TASK_AT + 1,
											  &isnull));
		if (at == from &&
			DatumGetInt64(slot_getattr(tasks->table->slot, TASK_ID + 1,
									   &isnull)) <= after)
			continue;			/* this call has seen it */
		if (!lock_found(tasks, claiming->takes_over, &rows[n]))
			continue;
		if (n++ == 0)
			*slow = GetCurrentTimestamp() - begun > SLOW_SCAN;
	}
	index_endscan(scan);
	return n;
}

/* The saga of a task as it is committed, remembered for its next one. */
static Saga *
saga_of_task(Claiming *claiming, const SagaTaskRow *row)
{
	int64		id = DatumGetInt64(row->values[TASK_SAGA_ID]);
	int16		slot = DatumGetInt16(row->values[TASK_SLOT]);
	SagaTable  *table;
	MemoryContext old;

	if (claiming->saga_id == id)
		return claiming->saga;
	MemoryContextReset(claiming->saga_memory);
	/* the tables outlive the saga */
	old = MemoryContextSwitchTo(claiming->memory);
	table = saga_store_locate(&claiming->sagas, claiming->tasks.snapshot, id,
							  slot);
	if (table != NULL)
		slot = DatumGetInt16(table->slot->tts_values[SAGA_SLOT]);
	(void) saga_tables_get(&claiming->sagas, SAGA_TABLE_STEP, slot);
	MemoryContextSwitchTo(claiming->saga_memory);
	claiming->saga = saga_store_peek_at(&claiming->sagas,
										claiming->tasks.snapshot, id, slot);
	claiming->saga_id = id;
	MemoryContextSwitchTo(old);
	return claiming->saga;
}

/* Which operation of the saga, in "task"; false if it has no such step. */
static bool
find_operation(const Saga *saga, const SagaTaskRow *row, SagaTask *task)
{
	task->kind = SAGA_TASK_OPERATE;
	task->step = saga_definition_step(saga->definition,
									  saga_taskrow_text(row, TASK_STEP));
	task->element = DatumGetInt32(row->values[TASK_ELEMENT]);
	task->operation = saga_tables_label(saga_tables_names()->operation,
										SAGA_NOPERATION,
										row->values[TASK_OPERATION]);
	task->attempt = DatumGetInt32(row->values[TASK_ATTEMPT]);
	return task->step >= 0 &&
		saga_step_has_tasks(&saga->definition->steps[task->step]) &&
		task->element >= 0 &&
		task->element < saga->state.steps[task->step].nelements;
}

/* What was made for a child; NULL if there is nothing. */
static const Jsonb *
input_of(const SagaTaskRow *row)
{
	return row->nulls[TASK_INPUT] ? NULL :
		DatumGetJsonbP(row->values[TASK_INPUT]);
}

static Wanted
is_wanted(const Claiming *claiming, const Saga *saga, const SagaTaskRow *row,
		  SagaTask *task)
{
	const SagaOpState *op;

	if (saga == NULL)
		return NEVER;
	/* the calls of a server's queue are one role's */
	if (saga_queue_is_servers(claiming->queue->id) &&
		saga->role != claiming->queue->owner)
		return NOT_NOW;
	if (saga_taskrow_is_aside(row))
		return saga->foreign ? NOT_NOW : WANTED;
	if (saga->ended)
		return NEVER;
	if (saga->foreign || saga->broken != NULL ||
		(saga->state.status == SAGA_STATUS_PAUSED && !claiming->takes_over))
		return NOT_NOW;
	if (!find_operation(saga, row, task))
		return NEVER;
	if (saga_task_is_too_large(saga, task, input_of(row)))
		return NOT_NOW;			/* it was not when it was offered */
	op = saga_record_op(saga, task);
	if (op->status != SAGA_OP_RUNNING ||
		saga_record_row(saga, task)->task_id != saga_taskrow_id(row))
		return NEVER;
	/* what may have been done has to be found out all the same */
	return op->cancelled && !claiming->takes_over ? NOT_NOW : WANTED;
}

/* How long an attempt may take from its claim; 0 = no limit.  That of a child is
 * to begin it, or to send it word. */
static int64
attempt_timeout(const SagaStep *step, SagaOperation operation)
{
	if (step->kind == SAGA_KIND_CHILD)
		return saga_step_timeout * INT64CONST(1000);
	if (step->timeout[operation] == 0 && step->kind != SAGA_KIND_EXTERNAL)
		return saga_step_timeout * INT64CONST(1000);
	return step->timeout[operation];
}

/* Give the row to the participant until then, and tell it. */
static void
give(Claiming *claiming, SagaTaskRow *row, SagaClaim *claim, TimestampTz now,
	 TimestampTz until, TimestampTz end)
{
	saga_taskrow_set(row, TASK_EXPIRES_AT, TimestampTzGetDatum(end));
	row->nulls[TASK_EXPIRES_AT] = end == DT_NOEND;
	saga_store_make_token(&claim->lease_token);
	saga_taskrow_set(row, TASK_AT, TimestampTzGetDatum(until));
	saga_taskrow_set(row, TASK_CLAIMED, BoolGetDatum(true));
	saga_taskrow_set(row, TASK_CLAIMED_AT, TimestampTzGetDatum(now));
	saga_taskrow_set(row, TASK_LEASE_TOKEN,
					 UUIDPGetDatum(&claim->lease_token));
	saga_taskrow_set(row, TASK_PARTICIPANT,
					 CStringGetTextDatum(claiming->participant));
	row->nulls[TASK_PROGRESS] = true;
	saga_taskrow_write(&claiming->tasks, row);

	claim->id = saga_taskrow_id(row);
	claim->lease_until = until;
	claiming->first_end = Min(claiming->first_end, until);
	claiming->each(claim, claiming->arg);
}

/* What its doer is told of the saga. */
static void
make_payload(const Saga *saga, const SagaTask *task, const SagaTaskRow *row,
			 SagaClaim *claim)
{
	SagaCallRequest request = saga_record_request(saga, task);

	claim->round = request.round;
	claim->idempotency_key = saga_call_idempotency_key(&saga->token,
													   claim->step,
													   task->element,
													   request.round,
													   task->operation);
	claim->traceparent = saga_trace_of_operation(&request);
	claim->payload = claim->definition_step->kind == SAGA_KIND_CHILD ?
		saga_child_make_context(saga, task, input_of(row),
								claim->traceparent) :
		saga_binding_context(&request, claim->idempotency_key,
							 claim->traceparent);
}

/* Give the row to the participant, and tell it what is to be done. */
static void
claim_row(Claiming *claiming, const Saga *saga, const SagaTask *task,
		  SagaTaskRow *row)
{
	const SagaStep *step = &saga->definition->steps[task->step];
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz until = now + claiming->lease;
	TimestampTz end = DT_NOEND;
	SagaClaim	claim = {
		.saga_id = saga->ref.id,
		.definition = saga->definition->name,
		.step = step->name,
		.element = step->foreach.text == NULL ? -1 : task->element,
		.operation = task->operation,
		.task = step->kind == SAGA_KIND_CHILD ? step->child :
		step->task[task->operation],
		.attempt = task->attempt,
		.definition_step = step,
		.token = &saga->token,
		.begun_at = saga->created_at,
		.timeout = attempt_timeout(step, task->operation),
		.cancelled = saga_record_op(saga, task)->cancelled
	};

	/* a courier, who sees to the time of each call, has others before this one */
	if (saga_queue_is_servers(claiming->queue->id))
		until += 2 * claim.timeout;
	else if (claim.timeout > 0)
		end = now + claim.timeout;
	if (task->operation == SAGA_OPERATION_ACTION && step->total_timeout > 0)
	{
		TimestampTz total = step->total_timeout +
			saga_record_row(saga, task)->started_at;

		end = Min(end, total);
		/* what goes on over there when nobody waits for it cannot be undone */
		claim.timeout = Max(1000, claim.timeout == 0 ? total - now :
							Min(claim.timeout, total - now));
	}
	make_payload(saga, task, row, &claim);
	give(claiming, row, &claim, now, Min(until, end), end);
}

/* Likewise of a task that is no attempt; nothing is known of the saga but its
 * row. */
static void
claim_aside(Claiming *claiming, const Saga *saga, SagaTaskRow *row)
{
	int64		timeout = saga_step_timeout * INT64CONST(1000);
	SagaClaim	claim = {
		.aside = true,
		.saga_id = saga->ref.id,
		.step = saga_taskrow_text(row, TASK_STEP),
		.element = DatumGetInt32(row->values[TASK_ELEMENT]),
		.operation = saga_tables_label(saga_tables_names()->operation,
									   SAGA_NOPERATION,
									   row->values[TASK_OPERATION]),
		.task = "",
		.round = DatumGetInt16(row->values[TASK_ROUND]),
		.token = &saga->token,
		.begun_at = saga->created_at,
		.timeout = timeout
	};
	SagaJsonWriter writer = NULL;
	TimestampTz now = GetCurrentTimestamp();

	saga_json_begin_object(&writer);
	claim.payload = saga_json_finish_object(&writer);
	give(claiming, row, &claim, now, now + claiming->lease + 2 * timeout,
		 DT_NOEND);
}

/* Claim those of the locked rows that are wanted; returns how many. */
static int
claim_locked(Claiming *claiming, SagaTaskRow *rows, int n)
{
	int			claimed = 0;

	for (int i = 0; i < n; i++)
	{
		MemoryContext old = MemoryContextSwitchTo(claiming->task_memory);
		Saga	   *saga = saga_of_task(claiming, &rows[i]);
		SagaTask	task;

		switch (is_wanted(claiming, saga, &rows[i], &task))
		{
			case WANTED:
				if (saga_taskrow_is_aside(&rows[i]))
					claim_aside(claiming, saga, &rows[i]);
				else
					claim_row(claiming, saga, &task, &rows[i]);
				claimed++;
				break;
			case NEVER:
				/* its saga has gone on without it, or is no more */
				saga_taskrow_withdraw(&claiming->tasks, &rows[i]);
				break;
			case NOT_NOW:
				break;
		}
		MemoryContextSwitchTo(old);
		MemoryContextReset(claiming->task_memory);
		heap_freetuple(rows[i].tuple);
	}
	return claimed;
}

/* Claim "max" tasks, from a place of the queue on; keeps that for later. */
static int
claim_from(Claiming *claiming, TimestampTz from, SagaTaskRow *rows, int max)
{
	int64		after = 0;
	int			claimed = 0;
	int			unwanted = 0;

	while (claimed < max && unwanted < MAX_UNWANTED)
	{
		bool		slow = false;
		int			n = lock_oldest(claiming, from, after, rows,
									max - claimed, &slow);
		int			mine;

		if (n == 0)
			break;
		from = saga_taskrow_time(&rows[n - 1], TASK_AT);
		after = saga_taskrow_id(&rows[n - 1]);
		mine = claim_locked(claiming, rows, n);
		claimed += mine;
		unwanted += n - mine;
		if (slow)
			hint.good_until = GetCurrentTimestamp() + HINT_LIFETIME;
		hint.queue = claiming->queue->id;
		hint.at = from;
	}
	hint.passing = unwanted >= MAX_UNWANTED;
	if (hint.passing)
		hint.good_until = GetCurrentTimestamp() + PASSING_LIFETIME;
	return claimed;
}

/* Where to begin: see "hint". */
static TimestampTz
choose_start(int32 queue)
{
	TimestampTz now = GetCurrentTimestamp();

	if (hint.good_until != 0 && hint.queue == queue && now < hint.good_until &&
		hint.good_until - now <= PASSING_LIFETIME)
		return hint.at;
	hint.good_until = 0;
	hint.passing = false;
	return DT_NOBEGIN;
}

static void
begin_claiming(Claiming *claiming, const SagaQueue *queue, int64 lease,
			   const char *participant, SagaClaimCallback each, void *arg)
{
	memset(claiming, 0, sizeof(*claiming));
	claiming->queue = queue;
	claiming->lease = lease;
	claiming->participant = participant;
	claiming->sagas.lockmode = AccessShareLock;
	claiming->memory = CurrentMemoryContext;
	claiming->each = each;
	claiming->arg = arg;
	claiming->first_end = DT_NOEND;
	claiming->saga_memory = AllocSetContextCreate(CurrentMemoryContext,
												  "saga of a task",
												  ALLOCSET_DEFAULT_SIZES);
	claiming->task_memory = AllocSetContextCreate(CurrentMemoryContext,
												  "saga task",
												  ALLOCSET_DEFAULT_SIZES);
	saga_taskrow_open(&claiming->tasks);
}

/* "n" have been claimed: they are flushed, and somebody sees to their leases. */
static void
end_claiming(Claiming *claiming, int n)
{
	saga_tables_close(&claiming->sagas);
	saga_taskrow_close(&claiming->tasks);
	MemoryContextDelete(claiming->task_memory);
	MemoryContextDelete(claiming->saga_memory);
	if (n == 0)
		return;
	ForceSyncCommit();
	saga_qstate_lease(claiming->first_end);
}

int
saga_claim_take(const SagaQueue *queue, int max, int64 lease,
				const char *participant, SagaClaimCallback each, void *arg)
{
	Claiming	claiming;
	TimestampTz from = choose_start(queue->id);
	SagaTaskRow *rows = palloc(max * sizeof(SagaTaskRow));
	int			n = 0;

	(void) saga_tables_names();
	if (!saga_tables_is_copy())
	{
		bool		passed = hint.passing;

		begin_claiming(&claiming, queue, lease, participant, each, arg);
		n = claim_from(&claiming, from, rows, max);
		if (n < max && from != DT_NOBEGIN && !hint.passing)
		{
			/* it was the end: from the beginning, or next time */
			hint.good_until = 0;
			if (!passed)
				n += claim_from(&claiming, DT_NOBEGIN, rows, max - n);
		}
		end_claiming(&claiming, n);
	}
	pfree(rows);
	saga_qstate_claimed(queue->id, queue->name, participant, n);
	return n;
}

int
saga_claim_take_over(const SagaQueue *queue, int64 lease, TimestampTz from,
					 const char *participant, SagaClaimCallback each,
					 void *arg)
{
	Claiming	claiming;
	SagaTaskRow *rows = palloc(SAGA_MAX_TASKS * sizeof(SagaTaskRow));
	int64		after = 0;
	int			claimed = 0;
	int			n = 0;

	(void) saga_tables_names();
	if (!saga_tables_is_copy())
	{
		begin_claiming(&claiming, queue, lease, participant, each, arg);
		claiming.takes_over = true;
		do
		{
			bool		slow;

			/* the snapshot shows none of the rows that are written here */
			n = lock_oldest(&claiming, from, after, rows, SAGA_MAX_TASKS,
							&slow);
			if (n > 0)
			{
				from = saga_taskrow_time(&rows[n - 1], TASK_AT);
				after = saga_taskrow_id(&rows[n - 1]);
				claimed += claim_locked(&claiming, rows, n);
			}
		} while (n == SAGA_MAX_TASKS);
		end_claiming(&claiming, claimed);
	}
	pfree(rows);
	return claimed;
}

void
saga_claim_forget_place(void)
{
	hint.good_until = 0;
}
