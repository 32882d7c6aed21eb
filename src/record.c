/*
 * record.c
 *		Owns how events and outcomes get into a saga in memory.
 *
 * Every change of a SagaState goes through here, so that what the machine has
 * changed and what is beside it (times, results, errors, attempts) are always
 * stored together, by the same transaction.
 */
#include "postgres.h"

#include "common/pg_prng.h"
#include "utils/timestamp.h"

#include "errcodes.h"
#include "json.h"
#include "record.h"
#include "stats.h"

SagaEvent
saga_record_make_event(SagaEventKind kind, const SagaTask *task)
{
	SagaEvent	event = {
		.kind = kind,
		.step = task == NULL ? -1 : task->step,
		.element = task == NULL ? -1 : task->element,
		.operation = task == NULL ? SAGA_OPERATION_ACTION : task->operation,
		.now = GetCurrentTimestamp(),
		.delay = -1,
		.due_at = SAGA_TIME_NEVER,
		.random = pg_prng_double(&pg_global_prng_state)
	};

	return event;
}

SagaVerdict
saga_record_event(Saga *saga, const SagaEvent *event)
{
	SagaVerdict verdict;

	Assert(saga->branch == NULL);
	verdict = saga_machine_apply(&saga->definition->rules, &saga->state,
								 event);
	if (verdict == SAGA_VERDICT_APPLIED)
		saga->changed = true;
	return verdict;
}

void
saga_record_op_event(Saga *saga, SagaEventKind kind, const SagaTask *task,
					 TimestampTz due_at)
{
	SagaEvent	event = saga_record_make_event(kind, task);

	event.due_at = due_at == DT_NOEND ? SAGA_TIME_NEVER : due_at;
	if (saga_record_event(saga, &event) != SAGA_VERDICT_APPLIED)
		elog(ERROR, "the machine refused event \"%s\" of step %d of saga %lld",
			 saga_event_name(kind), task->step, (long long) saga->ref.id);
}

SagaOpRow *
saga_record_row(const Saga *saga, const SagaTask *task)
{
	return &saga->ops[task->step][task->element][task->operation];
}

SagaOpState *
saga_record_op(const Saga *saga, const SagaTask *task)
{
	return &saga->state.steps[task->step].elements[task->element].op[task->operation];
}

SagaCallRequest
saga_record_request(const Saga *saga, const SagaTask *task)
{
	const SagaTask action = {.step = task->step,.element = task->element};
	SagaCallRequest request = {
		.definition = saga->definition,
		.step = task->step,
		.element = task->element,
		.round = saga_machine_round(&saga->definition->rules, &saga->state,
									task->step),
		.operation = task->operation,
		.attempt = task->attempt,
		.saga_id = saga->ref.id,
		.token = &saga->token,
		.key = saga->key,
		.traceparent = saga->traceparent,
		.input = saga->input,
		.results = (const Jsonb *const *) saga->results,
		.element_value = saga_store_element(saga, task->step, task->element)
	};

	if (task->operation != SAGA_OPERATION_ACTION)
		request.own_result = saga_record_row(saga, &action)->result;
	request.outcome_unknown =
		task->operation == SAGA_OPERATION_COMPENSATION &&
		saga_record_op(saga, &action)->unknown;
	return request;
}

void
saga_record_mark(Saga *saga, const SagaTask *task)
{
	saga_record_row(saga, task)->changed = true;
	saga->state.steps[task->step].changed = true;
	saga->changed = true;
}

SagaError
saga_record_make_error(int sqlstate, const char *message, const char *detail)
{
	SagaError	error = {.message = message, .detail = detail};

	strlcpy(error.sqlstate, unpack_sql_state(sqlstate), sizeof(error.sqlstate));
	return error;
}

/* An error as it is stored; of a saga, with the operation that it was in. */
static Jsonb *
error_to_jsonb(const Saga *saga, const SagaTask *task, const SagaError *error)
{
	SagaJsonWriter writer = NULL;

	saga_json_begin_object(&writer);
	if (task != NULL)
	{
		const SagaStep *step = &saga->definition->steps[task->step];

		saga_json_put_string(&writer, "step", step->name);
		if (step->foreach.text != NULL)
			saga_json_put_int(&writer, "element", task->element);
		saga_json_put_string(&writer, "operation",
							 saga_operation_name(task->operation));
	}
	saga_json_put_string(&writer, "sqlstate", error->sqlstate);
	saga_json_put_string(&writer, "message", error->message);
	saga_json_put_string(&writer, "detail", error->detail);
	saga_json_put_string(&writer, "hint", error->hint);
	saga_json_put_string(&writer, "context", error->context);
	return saga_json_finish_object(&writer);
}

/* What comes later than the first cause is in the steps' own rows. */
void
saga_record_cause(Saga *saga, const SagaTask *task, const SagaError *error)
{
	if (saga->has_error)
		return;
	saga->error = saga->cause = error_to_jsonb(saga, task, error);
	saga->has_error = true;
	saga->changed = true;
}

static void
note_times(Saga *saga, const SagaTask *task, const SagaOutcome *outcome)
{
	SagaOpRow  *row = saga_record_row(saga, task);

	if (row->started_at == 0)
		row->started_at = outcome->started_at;
	if (saga->started_at == 0)
		saga->started_at = outcome->started_at;
}

static void
add_attempt(Saga *saga, const SagaTask *task, int round, bool passing,
			const SagaOutcome *outcome)
{
	SagaAttempt *attempt = palloc0(sizeof(SagaAttempt));
	SagaError  *error = palloc(sizeof(SagaError));

	*error = outcome->error;
	attempt->step = task->step;
	attempt->element = task->element;
	attempt->round = round;
	attempt->operation = task->operation;
	attempt->attempt = saga_record_op(saga, task)->attempts;
	attempt->passing = passing;
	attempt->outcome = outcome->kind == SAGA_OUTCOME_LOST ? "lost" :
		outcome->timed_out ? "timeout" : "failed";
	attempt->error = error;
	attempt->started_at = outcome->started_at;
	attempt->finished_at = outcome->finished_at;
	saga->attempts = lappend(saga->attempts, attempt);
}

static bool
is_passing(const Saga *saga, const SagaTask *task, const SagaOutcome *outcome)
{
	const SagaRules *rules = &saga->definition->rules;

	if (outcome->kind == SAGA_OUTCOME_LOST)
		return true;
	return !outcome->is_final &&
		saga_retry_is_passing(&rules->steps[task->step].retry[task->operation],
							  outcome->error.sqlstate,
							  outcome->is_passing ||
							  saga_machine_any_passing(rules, &saga->state,
													   task->step,
													   task->element,
													   task->operation));
}

/* It has ended as "succeeded" says.  One that nobody carried out, but was waited
 * for, has no times of its own: it took as long as the wait. */
static void
count_attempt(const Saga *saga, const SagaTask *task,
			  const SagaOutcome *outcome, bool succeeded)
{
	const SagaStep *step = &saga->definition->steps[task->step];
	TimestampTz since = outcome->started_at;

	if (since == outcome->finished_at && step->kind != SAGA_KIND_LOCAL)
		since = saga_record_row(saga, task)->started_at;
	saga_stats_attempt(saga->definition->name, saga->definition->id,
					   step->name, task->step, task->operation, succeeded,
					   outcome->finished_at - since);
}

/* The attempt is kept with its whole error. */
static void
keep_failure(Saga *saga, const SagaTask *task, int round, bool passing,
			 const SagaOutcome *outcome)
{
	SagaOpRow  *row = saga_record_row(saga, task);

	note_times(saga, task, outcome);
	row->finished_at = outcome->finished_at;
	row->error = error_to_jsonb(NULL, NULL, &outcome->error);
	saga_record_mark(saga, task);
	count_attempt(saga, task, outcome, false);
	add_attempt(saga, task, round, passing, outcome);
	if (saga->state.backward || saga->state.status == SAGA_STATUS_STUCK)
		saga_record_cause(saga, task, &outcome->error);
	saga->nfailed++;
}

/* FAILED or LOST. */
static bool
record_failure(Saga *saga, const SagaTask *task, const SagaOutcome *outcome)
{
	SagaOpState *op = saga_record_op(saga, task);
	SagaEvent	event = saga_record_make_event(outcome->kind == SAGA_OUTCOME_LOST ?
											   SAGA_EVENT_LOST : SAGA_EVENT_FAILED,
											   task);
	int			round = saga_machine_round(&saga->definition->rules,
										   &saga->state, task->step);

	event.passing = is_passing(saga, task, outcome);
	if (outcome->delay > 0)
		event.delay = outcome->delay;
	/* what an earlier attempt may have done stays as it was */
	if (outcome->unknown && op->status == SAGA_OP_RUNNING)
		op->unknown = true;
	if (saga_record_event(saga, &event) != SAGA_VERDICT_APPLIED)
		return false;
	keep_failure(saga, task, round, event.passing, outcome);
	/* what others do, in their own processes, says nothing about ours */
	if (!saga_step_has_tasks(&saga->definition->steps[task->step]))
		saga->suspect = outcome->timed_out ||
			outcome->kind == SAGA_OUTCOME_LOST;
	return true;
}

static bool
record_success(Saga *saga, const SagaTask *task, const SagaOutcome *outcome)
{
	SagaEvent	event = saga_record_make_event(SAGA_EVENT_SUCCEEDED, task);
	SagaOpRow  *row = saga_record_row(saga, task);

	if (saga_record_event(saga, &event) != SAGA_VERDICT_APPLIED)
		return false;
	note_times(saga, task, outcome);
	row->finished_at = outcome->finished_at;
	row->result = outcome->result;
	saga_record_mark(saga, task);
	count_attempt(saga, task, outcome, true);
	if (task->operation == SAGA_OPERATION_ACTION &&
		saga->definition->steps[task->step].foreach.text == NULL)
		saga->results[task->step] = outcome->result;
	saga_store_settle_results(saga);
	saga->suspect = false;
	return true;
}

/* It asks for another attempt, which is no failure. */
static bool
record_later(Saga *saga, const SagaTask *task, const SagaOutcome *outcome)
{
	SagaEvent	event = saga_record_make_event(SAGA_EVENT_LATER, task);

	event.delay = outcome->delay;
	if (saga_record_event(saga, &event) != SAGA_VERDICT_APPLIED)
		return false;
	note_times(saga, task, outcome);
	saga_record_row(saga, task)->error = error_to_jsonb(NULL, NULL,
														&outcome->error);
	saga_record_mark(saga, task);
	saga->suspect = false;
	return true;
}

/*
 * Its condition is false.  Where the quorum of the step cannot be reached
 * without it the machine takes that for a failure.
 */
static bool
record_not_taken(Saga *saga, const SagaTask *task, const SagaOutcome *outcome)
{
	SagaEvent	event = saga_record_make_event(SAGA_EVENT_NOT_TAKEN, task);
	int			round = saga_machine_round(&saga->definition->rules,
										   &saga->state, task->step);

	if (saga_record_event(saga, &event) != SAGA_VERDICT_APPLIED)
		return false;
	if (saga_record_op(saga, task)->status == SAGA_OP_FAILED)
	{
		SagaOutcome failure = *outcome;

		failure.error =
			saga_record_make_error(ERRCODE_SAGA_BAD_DATA,
								   psprintf("step \"%s\" cannot reach its quorum",
											saga->definition->steps[task->step].name),
								   "Its condition is false for too many elements.");
		keep_failure(saga, task, round, false, &failure);
		return true;
	}
	note_times(saga, task, outcome);
	saga_record_row(saga, task)->finished_at = outcome->finished_at;
	saga_record_mark(saga, task);
	saga_store_settle_results(saga);
	saga->suspect = false;
	return true;
}

static bool
record_revoked(Saga *saga, const SagaTask *task)
{
	SagaEvent	event = saga_record_make_event(SAGA_EVENT_REVOKED, task);

	if (saga_record_event(saga, &event) != SAGA_VERDICT_APPLIED)
		return false;
	saga_record_mark(saga, task);
	return true;
}

bool
saga_record_outcome(Saga *saga, const SagaTask *task,
					const SagaOutcome *outcome)
{
	switch (outcome->kind)
	{
		case SAGA_OUTCOME_SUCCEEDED:
			return record_success(saga, task, outcome);
		case SAGA_OUTCOME_FAILED:
		case SAGA_OUTCOME_LOST:
			return record_failure(saga, task, outcome);
		case SAGA_OUTCOME_LATER:
			return record_later(saga, task, outcome);
		case SAGA_OUTCOME_NOT_TAKEN:
			return record_not_taken(saga, task, outcome);
		case SAGA_OUTCOME_REVOKED:
			return record_revoked(saga, task);
		case SAGA_OUTCOME_LOCK:
			break;
	}
	elog(ERROR, "unexpected outcome %d", (int) outcome->kind);
	return false;				/* keep the compiler quiet */
}

bool
saga_record_success(Saga *saga, const SagaTask *task, Jsonb *result)
{
	SagaOutcome outcome = {.kind = SAGA_OUTCOME_SUCCEEDED, .result = result};

	outcome.started_at = outcome.finished_at = GetCurrentTimestamp();
	return saga_record_outcome(saga, task, &outcome);
}

bool
saga_record_final_failure(Saga *saga, const SagaTask *task,
						  const SagaError *error)
{
	SagaOutcome outcome = {
		.kind = SAGA_OUTCOME_FAILED, .error = *error, .is_final = true
	};

	outcome.started_at = outcome.finished_at = GetCurrentTimestamp();
	return saga_record_outcome(saga, task, &outcome);
}
