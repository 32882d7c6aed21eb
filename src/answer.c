/*
 * answer.c
 *		Owns what participants do with the tasks that they have claimed: answer
 *		them, keep them, give them back.
 *
 * The lease token decides whose a task is.  It is looked at before the row is
 * locked, and again afterwards.
 */
#include "postgres.h"

#include "access/xact.h"
#include "common/hashfn.h"
#include "miscadmin.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "answer.h"
#include "claim.h"
#include "errcodes.h"
#include "taskrow.h"

static bool
has_token(const SagaTaskRow *row, const pg_uuid_t *token)
{
	return !row->nulls[TASK_LEASE_TOKEN] &&
		memcmp(DatumGetUUIDP(row->values[TASK_LEASE_TOKEN]), token,
			   UUID_LEN) == 0;
}

/* Why the lease is not the participant's; "row" is NULL if the token is not that
 * of the task. */
static const char *
describe_loss(const SagaTaskRow *row)
{
	if (row == NULL)
		return "No task has this id and this lease token: it was given back, or has ended long ago.";
	if (saga_taskrow_has_outcome(row, SAGA_TASKROW_EXPIRED))
		return psprintf("The lease ended without an answer; that was noted at %s.",
						timestamptz_to_str(saga_taskrow_time(row, TASK_ENDED_AT)));
	if (saga_taskrow_has_outcome(row, SAGA_TASKROW_WITHDRAWN))
		return "It was withdrawn: its saga does not need it any more.";
	return psprintf("It was answered at %s.",
					timestamptz_to_str(saga_taskrow_time(row, TASK_ENDED_AT)));
}

static void
report_loss(int64 id, const SagaTaskRow *row)
{
	ereport(ERROR,
			errcode(ERRCODE_SAGA_LEASE_LOST),
			errmsg("the lease of task %lld was lost", (long long) id),
			errdetail_internal("%s", describe_loss(row)),
			errhint("The task is no longer this participant's: roll back what was done for it, and forget it."));
}

static uint64
hash_text(const char *text, uint64 seed)
{
	if (text == NULL)
		return hash_combine64(seed, 0);
	return hash_bytes_extended((const unsigned char *) text, strlen(text), seed);
}

/* Whether an answer is the same as one before is told by this. */
static int64
hash_answer(const SagaOutcome *outcome)
{
	uint64		hash = (uint64) outcome->kind << 3 |
		(uint64) outcome->is_final << 2 | (uint64) outcome->unknown << 1 |
		(uint64) (outcome->result != NULL);

	hash = hash_combine64(hash, (uint64) outcome->delay);
	if (outcome->result != NULL)
		hash = hash_bytes_extended((const unsigned char *) VARDATA_ANY(outcome->result),
								   VARSIZE_ANY_EXHDR(outcome->result), hash);
	if (outcome->error.message != NULL)
	{
		hash = hash_text(outcome->error.message, hash);
		hash = hash_text(outcome->error.detail, hash);
		hash = hash_text(outcome->error.sqlstate, hash);
	}
	return (int64) hash;
}

static void
answer_row(SagaTaskTable *tasks, SagaTaskRow *row, const SagaQueue *queue,
		   const SagaTaskRequest *request)
{
	static const SagaOutcome revoked = {.kind = SAGA_OUTCOME_REVOKED};
	const SagaOutcome *answer = request->outcome;
	bool		failed = answer->kind == SAGA_OUTCOME_FAILED &&
		!request->was_reached;

	saga_qstate_answered(queue->id, queue->name, &queue->breaker, !failed,
						 failed, 0);
	saga_taskrow_set_outcome(row, SAGA_TASKROW_ANSWERED);
	if (saga_taskrow_is_aside(row))
	{
		saga_taskrow_end(tasks, row);
		return;
	}
	if (request->gives_up && DatumGetBool(row->values[TASK_CANCELLED]))
		answer = &revoked;
	saga_taskrow_set(row, TASK_ANSWER_HASH, Int64GetDatum(hash_answer(answer)));
	saga_taskrow_set(row, TASK_ANSWER,
					 JsonbPGetDatum(saga_taskrow_make_answer(row, answer)));
	row->nulls[TASK_PROGRESS] = true;
	saga_taskrow_write(tasks, row);
	saga_taskrow_wake(row);
}

/* The answer was there already: it may come again, but not another one. */
static void
accept_again(const SagaTaskRow *row, const SagaOutcome *answer)
{
	if (DatumGetInt64(row->values[TASK_ANSWER_HASH]) == hash_answer(answer))
		return;
	ereport(ERROR,
			errcode(ERRCODE_SAGA_TASK_ANSWERED),
			errmsg("task %lld was answered already",
				   (long long) saga_taskrow_id(row)),
			errdetail("The answer at %s was another one.",
					  timestamptz_to_str(saga_taskrow_time(row, TASK_ENDED_AT))));
}

static void
extend_row(SagaTaskTable *tasks, SagaTaskRow *row, const SagaQueue *queue,
		   SagaTaskRequest *request)
{
	TimestampTz until = request->lease == SAGA_TASK_NO_END ? DT_NOEND :
		GetCurrentTimestamp() + request->lease;

	if (!row->nulls[TASK_EXPIRES_AT])
		until = Min(until, saga_taskrow_time(row, TASK_EXPIRES_AT));
	saga_taskrow_set(row, TASK_AT, TimestampTzGetDatum(until));
	saga_taskrow_set(row, TASK_EXTENSIONS,
			  Int32GetDatum(DatumGetInt32(row->values[TASK_EXTENSIONS]) + 1));
	if (request->progress != NULL)
		saga_taskrow_set(row, TASK_PROGRESS, JsonbPGetDatum(request->progress));
	saga_taskrow_write(tasks, row);
	request->lease_until = until;
	request->cancelled = DatumGetBool(row->values[TASK_CANCELLED]);
	saga_qstate_lease(until);
	/* a server that has begun a child is well, however long that takes */
	if (saga_queue_is_servers(queue->id))
		saga_qstate_answered(queue->id, queue->name, &queue->breaker, 1, 0, 0);
}

/* Nobody needs it any more: the saga is told that it was not begun. */
static void
release_cancelled(SagaTaskTable *tasks, SagaTaskRow *row)
{
	SagaOutcome revoked = {.kind = SAGA_OUTCOME_REVOKED};

	saga_taskrow_set_outcome(row, SAGA_TASKROW_WITHDRAWN);
	saga_taskrow_set(row, TASK_ANSWER,
					 JsonbPGetDatum(saga_taskrow_make_answer(row, &revoked)));
	saga_taskrow_write(tasks, row);
	saga_taskrow_wake(row);
}

/* As if it had not been claimed; the saga sees to it that it does not wait to be
 * claimed for too long. */
static void
release_row(SagaTaskTable *tasks, SagaTaskRow *row, const SagaQueue *queue)
{
	if (DatumGetBool(row->values[TASK_CANCELLED]))
	{
		release_cancelled(tasks, row);
		return;
	}
	saga_taskrow_give_back(tasks, row);
	saga_claim_forget_place();
	if (!saga_taskrow_is_aside(row))
		saga_taskrow_wake(row);
	saga_qstate_offered(queue->id, queue->name, 0);
}

static void
act_on_row(SagaTaskTable *tasks, SagaTaskRow *row, const SagaQueue *queue,
		   SagaTaskRequest *request)
{
	switch (request->act)
	{
		case SAGA_TASK_ANSWER:
			answer_row(tasks, row, queue, request);
			break;
		case SAGA_TASK_EXTEND:
			extend_row(tasks, row, queue, request);
			break;
		case SAGA_TASK_RELEASE:
			release_row(tasks, row, queue);
			break;
	}
}

/*
 * Is the token the row's, as it is committed now?  Asked before the row is
 * locked: who does not know it keeps nobody from the task, and learns nothing
 * of it.
 */
static bool
knows_token(SagaTaskTable *tasks, const SagaTaskRequest *request)
{
	Snapshot	latest = RegisterSnapshot(GetLatestSnapshot());
	TupleTableSlot *slot = tasks->table->slot;
	bool		known;

	known = saga_table_fetch_id(tasks->table, latest, request->id) &&
		!slot->tts_isnull[TASK_LEASE_TOKEN] &&
		memcmp(DatumGetUUIDP(slot->tts_values[TASK_LEASE_TOKEN]),
			   request->lease_token, UUID_LEN) == 0;
	UnregisterSnapshot(latest);
	return known;
}

/* Lock the row, if the token is its; above read committed it may be newer than
 * what this transaction may see. */
static bool
lock_known(SagaTaskTable *tasks, SagaTaskRequest *request, SagaTaskRow *row)
{
	if (!knows_token(tasks, request))
		return false;
	if (saga_taskrow_lock(tasks, request->id, !request->dont_wait, row))
		return true;
	request->busy = request->dont_wait;
	if (IsolationUsesXactSnapshot())
		ereport(ERROR,
				errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				errmsg("could not serialize access due to concurrent update"));
	return false;
}

/* The queue of a task, whose tasks the user may take, in "memory"; NULL if it
 * is gone. */
static const SagaQueue *
find_queue(const SagaTaskRow *row, const SagaQueue *last, MemoryContext memory)
{
	int32		id = DatumGetInt32(row->values[TASK_QUEUE_ID]);
	MemoryContext old;

	if (last != NULL && last->id == id)
		return last;
	old = MemoryContextSwitchTo(memory);
	last = saga_taskrow_queue(row);
	MemoryContextSwitchTo(old);
	if (last != NULL)
		saga_queue_check_participant(last);
	return last;
}

/* Act on a row that is locked; false if the lease is not the participant's. */
static bool
act_if_held(SagaTaskTable *tasks, SagaTaskRow *row, const SagaQueue *queue,
			SagaTaskRequest *request)
{
	if (!has_token(row, request->lease_token))
		return false;
	if (saga_taskrow_is_claimed(row))
		act_on_row(tasks, row, queue, request);
	else if (request->act == SAGA_TASK_ANSWER &&
			 saga_taskrow_has_outcome(row, SAGA_TASKROW_ANSWERED))
	{
		accept_again(row, request->outcome);
		request->repeated = true;
	}
	else
		return false;
	return true;
}

void
saga_answer_act(SagaTaskRequest *const *requests, int n, bool lost_ok)
{
	MemoryContext caller = CurrentMemoryContext;
	MemoryContext memory = AllocSetContextCreate(caller, "saga task",
												 ALLOCSET_DEFAULT_SIZES);
	const SagaQueue *queue = NULL;
	SagaTaskTable tasks;

	saga_taskrow_open(&tasks);
	for (int i = 0; i < n; i++)
	{
		SagaTaskRequest *request = requests[i];
		SagaTaskRow row;
		bool		found;

		CHECK_FOR_INTERRUPTS();
		MemoryContextSwitchTo(memory);
		found = lock_known(&tasks, request, &row);
		if (found)
			queue = find_queue(&row, queue, caller);
		request->done = found && queue != NULL &&
			act_if_held(&tasks, &row, queue, request);
		if (!request->done && !request->busy && !lost_ok)
			report_loss(request->id, found && queue != NULL ? &row : NULL);
		MemoryContextSwitchTo(caller);
		MemoryContextReset(memory);
	}
	saga_taskrow_close(&tasks);
	MemoryContextDelete(memory);
}
