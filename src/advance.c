/*
 * advance.c
 *		Owns what a saga does within one transaction: events, tasks, calls.
 *
 * saga_advance() asks the machine again and again what there is to do.  What
 * needs no user code (timers, signals, children, elements, going back) is done
 * at once, up to a bound.  Then those local operations are called that were
 * ready when the transaction came to them: one after another, each in a
 * subtransaction, until the batch's time is over; what they make ready waits
 * for the next transaction, so that each step commits before the next begins.
 *
 * Where the saga goes several ways at once and the role may have more than one
 * worker, operations are handed out: rows of saga.branch, which workers take
 * like sagas, and whose outcomes come back as messages.  So nobody has the
 * saga's row locked while one branch is busy, and the others go on.  Of the
 * elements of one step only a part is handed out; to call some here costs
 * less.  The transaction that hands out calls nothing itself, since others see
 * the branches only once it has committed.
 *
 * Locks and places are wishes until all members of the batch are through: then
 * they are asked for together, in one order, and answered.
 */
#include "postgres.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/plancache.h"
#include "utils/timestamp.h"

#include "advance.h"
#include "call.h"
#include "errcodes.h"
#include "guc.h"
#include "kinds.h"
#include "migrate.h"
#include "record.h"
#include "task.h"

/* So many tasks are looked at at a time. */
#define MAX_TASKS		64

/* So much is done for one saga in one transaction without calling anything. */
#define MAX_QUIET		1000

/* So many branches of one saga are out at once for each other worker. */
#define MAX_BRANCHES	32

/* Commit a batch before the shared cache of subtransactions (64) is full:
 * when another operation like the last one might fill it. */
#define MAX_SUBXIDS		62

/* So often an operation that waits for a lock is tried again in a batch. */
#define MAX_COLLISIONS	3

/* A step that cannot share a transaction, as this process has learned. */
typedef struct AloneKey
{
	int32		version_id;
	int32		step;
	int32		operation;
} AloneKey;

static HTAB *alone_steps = NULL;


/* ---- what this process has learned ------------------------------------- */

static AloneKey
make_alone_key(const Saga *saga, const SagaTask *task)
{
	AloneKey	key = {saga->definition->id, task->step, task->operation};

	return key;
}

static void
remember_alone(const Saga *saga, const SagaTask *task)
{
	AloneKey	key = make_alone_key(saga, task);
	HASHCTL		control = {.keysize = sizeof(AloneKey),
	.entrysize = sizeof(AloneKey)};

	if (alone_steps != NULL && hash_get_num_entries(alone_steps) > 4096)
	{
		hash_destroy(alone_steps);
		alone_steps = NULL;
	}
	if (alone_steps == NULL)
		alone_steps = hash_create("saga steps that run alone", 64, &control,
								  HASH_ELEM | HASH_BLOBS);
	(void) hash_search(alone_steps, &key, HASH_ENTER, NULL);
}

static bool
is_known_alone(const Saga *saga, const SagaTask *task)
{
	AloneKey	key = make_alone_key(saga, task);

	return alone_steps != NULL &&
		hash_search(alone_steps, &key, HASH_FIND, NULL) != NULL;
}


/* ---- waiting ---------------------------------------------------------------- */

/* Does this operation wait because of saga.lock()? */
static bool
waits_for_called_lock(const Saga *saga, const SagaTask *task)
{
	const SagaOpRow *row = saga_record_row(saga, task);
	JsonbValue	value;
	char	   *sqlstate;

	if (saga_record_op(saga, task)->status != SAGA_OP_WAITING ||
		row->error == NULL || !JB_ROOT_IS_OBJECT(row->error))
		return false;
	if (getKeyJsonValueFromContainer(&row->error->root, "sqlstate",
									 strlen("sqlstate"), &value) == NULL ||
		value.type != jbvString)
		return false;
	sqlstate = pnstrdup(value.val.string.val, value.val.string.len);
	return strcmp(sqlstate, unpack_sql_state(ERRCODE_SAGA_LOCK)) == 0;
}

static const char *
outcome_text(const Saga *saga, const SagaTodo *todo)
{
	switch (saga->definition->steps[todo->step].kind)
	{
		case SAGA_KIND_TIMER:
			return "timer";
		case SAGA_KIND_SIGNAL:
			return "signal";
		case SAGA_KIND_CHILD:
			return "child saga";
		case SAGA_KIND_EXTERNAL:
			return "participant";
		case SAGA_KIND_REMOTE:
			return "remote database";
		case SAGA_KIND_LOCAL:
			break;
	}
	return "branch";
}

static const char *
wait_text(const Saga *saga, const SagaTodo *todo)
{
	SagaTask	operation = {.step = todo->step,.element = todo->element,
	.operation = todo->operation};

	switch (todo->wait)
	{
		case SAGA_WAIT_NOTHING:
			break;
		case SAGA_WAIT_START:
			return "start time";
		case SAGA_WAIT_RETRY:
			return waits_for_called_lock(saga, &operation) ?
				"lock" : "next attempt";
		case SAGA_WAIT_OUTCOME:
			return todo->step >= 0 ? outcome_text(saga, todo) : "outcome";
		case SAGA_WAIT_LOCK:
			return saga_record_row(saga, &operation)->lacks_place ?
				"place in step" : "lock";
		case SAGA_WAIT_PARENT:
			return "parent";
		case SAGA_WAIT_PERSON_STUCK:
			return "retry, skip or abandon";
		case SAGA_WAIT_PERSON_PAUSED:
			return "resume";
	}
	return NULL;
}

static bool
same_text(const char *a, const char *b)
{
	return a == b || (a != NULL && b != NULL && strcmp(a, b) == 0);
}

/* Set when the row is looked at next, and why; writes only what differs. */
static void
set_wait(Saga *saga, TimestampTz due_at, const char *waiting_for)
{
	if (saga->due_at != due_at || !same_text(saga->waiting_for, waiting_for))
		saga->changed = true;
	saga->due_at = due_at;
	saga->waiting_for = waiting_for;
}

/* There is more to do: due_at stays in the past, so that the update is HOT. */
static void
set_ready(Saga *saga)
{
	TimestampTz now = GetCurrentTimestamp();

	set_wait(saga, saga->due_at > now ? now : saga->due_at, NULL);
}

/* Nothing to do now: final, or it waits. */
static void
settle(const SagaRun *run, SagaMember *member, const SagaTodo *todo)
{
	Saga	   *saga = member->saga;

	/* not before the locks that it waits for have been asked for again, and the
	 * answer is there */
	member->active = member->asks_again || (member->asks && !run->answering);
	if (todo->step >= 0)
		saga->step = todo->step;
	set_wait(saga, todo->due_at == SAGA_TIME_NEVER ? DT_NOEND : todo->due_at,
			 wait_text(saga, todo));
}

/* It stands in line before its start, and has a deadline all the same. */
static void
stand_in_line(SagaMember *member, TimestampTz until, const char *waiting_for)
{
	Saga	   *saga = member->saga;

	if (saga->state.deadline != SAGA_TIME_NEVER && saga->state.deadline < until)
		until = saga->state.deadline;
	member->active = false;
	set_wait(saga, until, waiting_for);
}


/* ---- wishes ------------------------------------------------------------------ */

static void
wish(SagaRun *run, SagaMember *member, SagaWishKind kind, const SagaTask *task,
	 const char *name, int until_step, int64 timeout)
{
	MemoryContext old = MemoryContextSwitchTo(run->memory);
	SagaWish   *wish = palloc0(sizeof(SagaWish));

	wish->member = member;
	wish->kind = kind;
	if (task != NULL)
		wish->task = *task;
	wish->request.saga = member->saga;
	wish->request.name = name;
	wish->request.step = task == NULL ? -1 : task->step;
	if (kind == SAGA_WISH_STEP)
		wish->request.places =
			member->saga->definition->steps[task->step].concurrency;
	wish->request.until_step = until_step;
	wish->request.timeout = timeout;
	run->wishes = lappend(run->wishes, wish);
	member->asks = true;
	MemoryContextSwitchTo(old);
}

/*
 * What is asked for under a snapshot of the transaction would be answered with
 * what that shows: so it is asked for in the next one.
 */
static bool
may_wish(SagaRun *run, SagaMember *member)
{
	member->isolation = XACT_READ_COMMITTED;
	return run->isolation == XACT_READ_COMMITTED && !run->answering;
}

static bool
is_before_start(const Saga *saga)
{
	return saga->started_at == 0 && !saga->state.backward &&
		saga->state.status == SAGA_STATUS_RUNNING;
}

/*
 * Needs this saga a lock or a place before it may start?  Then it asks for
 * it, the lock first: who waits for one takes no place from others.
 */
static bool
asks_before_start(SagaRun *run, SagaMember *member)
{
	Saga	   *saga = member->saga;
	const SagaDefinition *definition = saga->definition;
	JsonbValue	value;
	const char *name;

	if (!is_before_start(saga))
		return false;
	if (definition->exclusive.text != NULL && !saga->has_start_lock)
	{
		name = saga_path_find(&definition->exclusive, saga->input, NULL, NULL,
							  &value) ? saga_locks_name(&value) : NULL;
		if (name != NULL)
		{
			if (may_wish(run, member))
				wish(run, member, SAGA_WISH_START, NULL, name,
					 definition->exclusive_until,
					 definition->exclusive_timeout);
			return true;
		}
		/* begun before anybody said so: it goes without */
		saga->has_start_lock = true;
	}
	if (definition->max_running > 0 && !saga->has_place)
	{
		if (may_wish(run, member))
			wish(run, member, SAGA_WISH_PLACE, NULL, NULL, -1, 0);
		return true;
	}
	return false;
}

/* The lock of an exclusive step, and a place in it if there are only so many. */
static void
ask_for_step(SagaRun *run, SagaMember *member, const SagaTask *task)
{
	Saga	   *saga = member->saga;
	const SagaStep *step = &saga->definition->steps[task->step];
	JsonbValue	value;
	const char *name;
	SagaError	error;

	if (step->exclusive.text == NULL)
	{
		if (may_wish(run, member))
			wish(run, member, SAGA_WISH_STEP, task, NULL, -1, 0);
		return;
	}
	name = saga_path_find(&step->exclusive, saga->input,
						  (const Jsonb *const *) saga->results,
						  saga_store_element(saga, task->step, task->element),
						  &value) ? saga_locks_name(&value) : NULL;
	if (name != NULL)
	{
		if (may_wish(run, member))
			wish(run, member, SAGA_WISH_STEP, task, name,
				 step->exclusive_until, step->exclusive_timeout);
		return;
	}
	error = saga_record_make_error(ERRCODE_SAGA_BAD_DATA,
								   psprintf("there is no lock \"%s\" for step \"%s\"",
											step->exclusive.text, step->name),
								   "The data of the saga have no string, number or boolean there.");
	saga_record_op_event(saga, SAGA_EVENT_QUEUED, task, DT_NOEND);
	(void) saga_record_final_failure(saga, task, &error);
}

/*
 * What an operation wanted by saga.lock(): asked for now, or in the member's
 * next transaction; until then nothing of the saga is called.
 */
static void
ask_for_called_lock(SagaRun *run, SagaMember *member)
{
	if (member->lock == NULL || !may_wish(run, member))
		return;
	wish(run, member, SAGA_WISH_CALL, &member->lock_task, member->lock, -1,
		 member->lock_timeout);
	member->lock = NULL;
}

static void
note_called_lock(SagaRun *run, SagaMember *member, const SagaTask *task,
				 const SagaOutcome *outcome)
{
	member->lock = outcome->lock;
	member->lock_timeout = outcome->lock_timeout;
	member->lock_task = *task;
	ask_for_called_lock(run, member);
}

/* It did not come in time: the operation, or the saga before its start, fails. */
static SagaError
lock_timeout_error(const SagaWish *wish)
{
	SagaError	error = saga_record_make_error(ERRCODE_SAGA_LOCK_TIMEOUT,
											   psprintf("lock \"%s\" did not come in time",
														wish->request.name),
											   NULL);

	error.hint = "View saga.locks shows who has it.";
	return error;
}

static void
answer_before_start(const SagaWish *wish)
{
	SagaMember *member = wish->member;
	Saga	   *saga = member->saga;
	const SagaLockRequest *request = &wish->request;

	if (request->granted)
	{
		if (wish->kind == SAGA_WISH_PLACE)
			saga->has_place = true;
		else
			saga->has_start_lock = true;
		set_ready(saga);
	}
	else if (request->expires_at <= GetCurrentTimestamp())
	{
		SagaEvent	event = saga_record_make_event(SAGA_EVENT_CANCEL, NULL);
		SagaError	error = lock_timeout_error(wish);

		(void) saga_record_event(saga, &event);
		saga_record_cause(saga, NULL, &error);
		member->leaves = true;
	}
	else
	{
		member->stands_in_line = true;
		stand_in_line(member, request->expires_at,
					  wish->kind == SAGA_WISH_PLACE ? "place" : "lock");
	}
}

static void
answer_step(const SagaWish *wish)
{
	Saga	   *saga = wish->member->saga;
	SagaEvent	event;

	event = saga_record_make_event(wish->request.granted ?
								   SAGA_EVENT_GRANTED : SAGA_EVENT_QUEUED,
								   &wish->task);
	event.due_at = wish->request.granted ? 0 : wish->request.expires_at;
	if (event.due_at == DT_NOEND)
		event.due_at = SAGA_TIME_NEVER;
	if (saga_record_event(saga, &event) != SAGA_VERDICT_APPLIED)
	{
		/* another operation has turned the saga back since it asked */
		wish->member->leaves = true;
		return;
	}
	if (!wish->request.granted)
	{
		saga_record_row(saga, &wish->task)->lacks_place =
			wish->request.lacks_place;
		wish->member->stands_in_line = true;
		wish->member->leaves |=
			wish->request.expires_at <= GetCurrentTimestamp();
	}
}

/*
 * saga.lock(): the operation was rolled back.  It is attempted again at once
 * when the lock was free, else when it was granted or the wait is over.
 */
static void
answer_call(const SagaWish *wish)
{
	Saga	   *saga = wish->member->saga;
	SagaOutcome outcome = {.kind = SAGA_OUTCOME_LATER};
	TimestampTz now = GetCurrentTimestamp();

	if (wish->request.granted)
		return;
	outcome.started_at = outcome.finished_at = now;
	if (wish->request.expires_at <= now)
	{
		outcome.kind = SAGA_OUTCOME_FAILED;
		outcome.error = lock_timeout_error(wish);
		wish->member->leaves = true;
	}
	else
	{
		outcome.delay = wish->request.expires_at == DT_NOEND ?
			SAGA_TIME_NEVER : wish->request.expires_at - now;
		outcome.error = saga_record_make_error(ERRCODE_SAGA_LOCK,
											   psprintf("waits for lock \"%s\"",
														wish->request.name),
											   NULL);
		wish->member->stands_in_line = true;
	}
	(void) saga_record_outcome(saga, &wish->task, &outcome);
}

void
saga_advance_answer(const SagaWish *wish)
{
	switch (wish->kind)
	{
		case SAGA_WISH_PLACE:
		case SAGA_WISH_START:
			answer_before_start(wish);
			break;
		case SAGA_WISH_STEP:
			answer_step(wish);
			break;
		case SAGA_WISH_CALL:
			answer_call(wish);
			break;
	}
}

/* saga.lock() is called again: at once. */
static void
repeat_called_locks(Saga *saga)
{
	TimestampTz now = GetCurrentTimestamp();
	bool		any = false;

	for (int step = 0; step < saga->state.nsteps; step++)
		for (int i = 0; i < saga->state.steps[step].nelements; i++)
			for (int op = 0; op < SAGA_NOPERATION; op++)
			{
				SagaTask	task = {.step = step,.element = i,.operation = op};

				if (!waits_for_called_lock(saga, &task))
					continue;
				saga_record_op(saga, &task)->due_at = now;
				saga_record_mark(saga, &task);
				any = true;
			}
	if (any)
		saga_machine_loaded(&saga->definition->rules, &saga->state);
}

/* The steps that stand in line ask again. */
static void
repeat_step_locks(SagaRun *run, SagaMember *member)
{
	Saga	   *saga = member->saga;

	for (int step = 0; step < saga->state.nsteps; step++)
	{
		if (!saga->definition->rules.steps[step].exclusive)
			continue;
		for (int i = 0; i < saga->state.steps[step].nelements; i++)
		{
			SagaTask	task = {.step = step,.element = i};

			if (saga_record_op(saga, &task)->gate == SAGA_GATE_QUEUED)
				ask_for_step(run, member, &task);
		}
	}
}

/*
 * A lock or place was granted: all that waits for one asks again.  The row of
 * saga.lock says what was granted, so this may come too often.
 */
static void
ask_again(SagaRun *run, SagaMember *member)
{
	if (!member->asks_again || !may_wish(run, member))
		return;
	member->asks_again = false;
	repeat_called_locks(member->saga);
	repeat_step_locks(run, member);
}


/* ---- messages ------------------------------------------------------------- */

static const char *
verdict_text(SagaVerdict verdict)
{
	switch (verdict)
	{
		case SAGA_VERDICT_APPLIED:
			return "done";
		case SAGA_VERDICT_FINAL:
			return "refused: the saga had ended";
		case SAGA_VERDICT_PIVOT:
			return "refused: it could only go forward";
		case SAGA_VERDICT_BACKWARD:
			return "refused: it was compensating already";
		case SAGA_VERDICT_HELD:
			return "refused: it was done, and waited for its parent";
		case SAGA_VERDICT_NOT_PAUSED:
			return "refused: it was not paused";
		case SAGA_VERDICT_PAUSED:
			return "refused: it was paused";
		case SAGA_VERDICT_STUCK:
			return "refused: it was stuck";
		case SAGA_VERDICT_NOTHING:
			return "refused: no such operation was waiting or stuck";
		case SAGA_VERDICT_STALE:
			break;
	}
	return "refused: it was not the operation to do";
}

static void
cause_of_message(Saga *saga, const SagaMessage *message)
{
	SagaError	error;

	error = saga_record_make_error(ERRCODE_SAGA_CANCELLED,
								   psprintf("%s asked to %s it",
											message->requested_by,
											message->kind),
								   message->reason);
	saga_record_cause(saga, NULL, &error);
}

/* What a person asks. */
static const char *
apply_request(Saga *saga, const SagaMessage *message)
{
	SagaEvent	event = saga_record_make_event(SAGA_EVENT_CANCEL, NULL);
	SagaVerdict verdict;

	if (!saga_event_parse(message->kind, &event.kind) ||
		event.kind < SAGA_EVENT_CANCEL)
		return "refused: unrecognized message";
	if (message->step != NULL)
	{
		event.step = saga_definition_step(saga->definition, message->step);
		event.element = message->element;
		if (event.step < 0)
			return "refused: the definition has no such step";
	}
	if (event.kind == SAGA_EVENT_CANCEL)
		saga_kind_turning_back(saga);
	verdict = saga_record_event(saga, &event);
	if (verdict == SAGA_VERDICT_APPLIED &&
		(event.kind == SAGA_EVENT_CANCEL || event.kind == SAGA_EVENT_ABANDON))
		cause_of_message(saga, message);
	if (verdict == SAGA_VERDICT_APPLIED && event.kind == SAGA_EVENT_PAUSE)
		saga_kind_pausing(saga);
	if (verdict == SAGA_VERDICT_APPLIED && event.kind == SAGA_EVENT_RETRY)
		saga_kind_retrying(saga);
	if (verdict == SAGA_VERDICT_APPLIED && event.kind == SAGA_EVENT_RESUME)
		saga_kind_resuming(saga);
	saga_store_settle_results(saga);
	return verdict_text(verdict);
}

/* It is the youngest of sagas that wait for each other. */
static const char *
apply_deadlock(Saga *saga, const SagaMessage *message)
{
	SagaEvent	event = saga_record_make_event(SAGA_EVENT_CANCEL, NULL);
	SagaVerdict verdict = saga_record_event(saga, &event);
	SagaError	error;

	if (verdict != SAGA_VERDICT_APPLIED)
		return verdict_text(verdict);
	error = saga_record_make_error(ERRCODE_SAGA_DEADLOCK,
								   "sagas waited for each other's locks, and this one was the youngest that could go back",
								   message->payload == NULL ? NULL :
								   JsonbToCString(NULL, &message->payload->root,
												  VARSIZE(message->payload)));
	saga_record_cause(saga, NULL, &error);
	return "done";
}

/* Is the outcome about the attempt that is out? */
static bool
is_expected(const Saga *saga, const SagaTask *task, int round)
{
	if (task->step < 0 || task->element < 0 ||
		task->element >= saga->state.steps[task->step].nelements)
		return false;
	return round == saga_machine_round(&saga->definition->rules, &saga->state,
									   task->step) &&
		saga_record_op(saga, task)->status == SAGA_OP_RUNNING &&
		saga_record_op(saga, task)->attempts + 1 == task->attempt;
}

/* An operation that was handed out has ended: a branch, a task. */
static const char *
apply_answer(SagaRun *run, SagaMember *member, int step, int element,
			 Jsonb *answer)
{
	Saga	   *saga = member->saga;
	SagaOutcome outcome;
	SagaTask	task = {.step = step,.element = element};
	int			round;

	if (!saga_outcome_read(answer, &outcome, &task, &round))
		return "refused: it is no outcome";
	if (!is_expected(saga, &task, round))
		return "refused: it was not the operation to do";
	if (outcome.kind == SAGA_OUTCOME_LOCK)
	{
		SagaOutcome revoked = {.kind = SAGA_OUTCOME_REVOKED};

		(void) saga_record_outcome(saga, &task, &revoked);
		note_called_lock(run, member, &task, &outcome);
	}
	else
	{
		(void) saga_record_outcome(saga, &task, &outcome);
		saga_kind_answered(saga, &task);
	}
	return "done";
}

static const char *
apply_outcome(SagaRun *run, SagaMember *member, const SagaMessage *message)
{
	const SagaDefinition *definition = member->saga->definition;
	int			step = message->step == NULL ? -1 :
		saga_definition_step(definition, message->step);

	return apply_answer(run, member, step, message->element, message->payload);
}

/* Act on one message; its outcome goes to the history. */
static void
apply_message(SagaRun *run, SagaMember *member, SagaMessage *message)
{
	Saga	   *saga = member->saga;
	const char *kind = message->kind;

	saga->changed = true;		/* to take the message away */
	member->nquiet++;
	if (strcmp(kind, "place") == 0)
	{
		/* where nobody can be asked it stays, for the next transaction */
		member->asks_again = true;
		message->outcome = run->isolation == XACT_READ_COMMITTED ? "done" : NULL;
	}
	else if (strcmp(kind, "outcome") == 0)
		message->outcome = apply_outcome(run, member, message);
	else if (strcmp(kind, "signal") == 0)
		message->outcome = saga_kind_signal(saga, message);
	else if (strcmp(kind, "child") == 0)
		message->outcome = saga_kind_child_ended(saga, message);
	else if (strcmp(kind, "recall") == 0)
		message->outcome = saga_kind_recall(saga);
	else if (strcmp(kind, "release") == 0)
		message->outcome = saga_kind_release(saga);
	else if (strcmp(kind, "deadlock") == 0)
		message->outcome = apply_deadlock(saga, message);
	else
		message->outcome = apply_request(saga, message);
}

static void
apply_messages(SagaRun *run, SagaMember *member)
{
	ListCell   *cell;

	foreach(cell, member->saga->messages)
	{
		SagaMessage *message = lfirst(cell);

		if (strcmp(message->kind, "migrate") == 0)
			break;				/* that and what came later have their own */
		apply_message(run, member, message);
	}
	ask_again(run, member);
}

/* The answers of participants, to the operations of one step. */
static void
take_answers_to(SagaRun *run, SagaMember *member, SagaTaskTable *tasks,
				int step)
{
	Saga	   *saga = member->saga;

	for (int i = 0; i < saga->state.steps[step].nelements; i++)
		for (int op = 0; op < SAGA_NOPERATION; op++)
		{
			SagaTask	task = {.step = step,.element = i,.operation = op};
			TimestampTz ready_since;
			Jsonb	   *answer;

			if (saga_record_op(saga, &task)->status != SAGA_OP_RUNNING)
				continue;
			answer = saga_task_take_answer(tasks,
										   saga_record_row(saga, &task)->task_id,
										   &ready_since);
			if (ready_since != 0)
				saga_kind_given_back(saga, &task, ready_since);
			if (answer == NULL)
				continue;
			(void) apply_answer(run, member, step, i, answer);
			saga->changed = true;
			member->nquiet++;
		}
}

static void
take_answers(SagaRun *run, SagaMember *member)
{
	Saga	   *saga = member->saga;
	SagaTaskTable *tasks = NULL;

	if (!saga->definition->has_tasks)
		return;
	for (int step = 0; step < saga->state.nsteps; step++)
	{
		const SagaStepState *state = &saga->state.steps[step];
		int			running = 0;

		for (int op = 0; op < SAGA_NOPERATION; op++)
			running += state->count[op][SAGA_OP_RUNNING];
		if (running == 0 ||
			!saga_step_has_tasks(&saga->definition->steps[step]))
			continue;
		if (tasks == NULL)
			tasks = saga_task_begin_taking();
		take_answers_to(run, member, tasks, step);
	}
	if (tasks != NULL)
		saga_task_end_taking(tasks);
}

/* The request to move to another version that is next; NULL if there is none. */
static SagaMessage *
find_migration(const Saga *saga)
{
	ListCell   *cell;

	foreach(cell, saga->messages)
	{
		SagaMessage *message = lfirst(cell);

		if (strcmp(message->kind, "migrate") == 0 && message->outcome == NULL)
			return message;
	}
	return NULL;
}

/* Act on what was asked before it; false if there is nothing. */
static bool
apply_messages_before(SagaRun *run, SagaMember *member,
					  const SagaMessage *migration)
{
	bool		any = false;
	ListCell   *cell;

	foreach(cell, member->saga->messages)
	{
		SagaMessage *message = lfirst(cell);

		if (message == migration)
			break;
		if (strcmp(message->kind, "place") == 0)
			continue;			/* it comes after any time */
		apply_message(run, member, message);
		any |= message->outcome != NULL;
	}
	return any;
}

/*
 * Move the saga to another version, if that was asked.  What was asked before
 * is done in one transaction, the move, alone, in the next, and all else after
 * that, with the saga loaded anew.  False if there is nothing of this to do, or
 * it has to wait for something of the version that the saga has.
 */
static bool
migrate(SagaRun *run, SagaMember *member)
{
	Saga	   *saga = member->saga;
	SagaMessage *migration = find_migration(saga);

	if (migration == NULL || run->lost != NULL || run->commit_error != NULL ||
		member->lock != NULL)
		return false;
	if (run->in_batch || run->isolation != XACT_READ_COMMITTED)
	{
		member->alone = true;
		member->isolation = XACT_READ_COMMITTED;
		return true;
	}
	if (!apply_messages_before(run, member, migration))
	{
		migration->outcome = saga_migrate_apply(saga, migration);
		saga->changed = true;
		member->alone = false;
	}
	set_ready(saga);
	return true;
}

/* What waits for the saga's move keeps it from being put aside. */
static void
stay_for_migration(SagaMember *member)
{
	if (member->saga->branch == NULL && find_migration(member->saga) != NULL)
		member->active = true;
}

/* The saga had ended before they were written, or while they were. */
static void
refuse_messages(SagaMember *member)
{
	bool		answers = false;
	ListCell   *cell;

	foreach(cell, member->saga->messages)
	{
		SagaMessage *message = lfirst(cell);

		message->outcome = verdict_text(SAGA_VERDICT_FINAL);
		answers |= strcmp(message->kind, "recall") == 0 ||
			strcmp(message->kind, "release") == 0;
	}
	if (answers)
		saga_kind_answer_parent(member->saga);
	member->saga->changed = true;
	member->active = false;
}

/* Of a saga whose rows make no sense a person can ask but one thing. */
static void
apply_messages_broken(SagaMember *member)
{
	Saga	   *saga = member->saga;
	ListCell   *cell;

	foreach(cell, saga->messages)
	{
		SagaMessage *message = lfirst(cell);

		saga->changed = true;
		message->outcome = "refused: its rows are not consistent";
		if (strcmp(message->kind, "abandon") != 0)
			continue;
		message->outcome = "done";
		saga->state.status = SAGA_STATUS_ABANDONED;
		saga->waiting_for = NULL;
		cause_of_message(saga, message);
	}
}

/* Rows that make no sense are a person's to look at; nothing else is touched
 * but the status. */
static void
set_broken(SagaMember *member)
{
	Saga	   *saga = member->saga;
	SagaError	error;

	member->active = false;
	apply_messages_broken(member);
	if (saga->state.status == SAGA_STATUS_STUCK ||
		saga_status_is_final(saga->state.status))
		return;
	error = saga_record_make_error(ERRCODE_DATA_CORRUPTED,
								   "the saga's rows are not consistent",
								   saga->broken);
	saga->has_error = false;	/* whatever it was, this is what counts now */
	saga_record_cause(saga, NULL, &error);
	saga->state.status = SAGA_STATUS_STUCK;
	set_wait(saga, DT_NOEND, "abandon");
	saga->changed = true;
}


/* ---- the clock, savepoints, elements ---------------------------------------- */

static void
pass_event(Saga *saga, SagaEventKind kind)
{
	SagaEvent	event = saga_record_make_event(kind, NULL);

	if (saga_record_event(saga, &event) != SAGA_VERDICT_APPLIED)
		elog(ERROR, "the machine refused event \"%s\" of saga %lld",
			 saga_event_name(kind), (long long) saga->ref.id);
}

static void
pass_deadline(SagaMember *member)
{
	Saga	   *saga = member->saga;
	SagaError	error = saga_record_make_error(ERRCODE_SAGA_DEADLINE,
											   "the saga's deadline has passed",
											   NULL);

	pass_event(saga, SAGA_EVENT_DEADLINE);
	saga_record_cause(saga, NULL, &error);
	member->overdue = true;
}

/*
 * What it held in steps that it went back through has to be given back first,
 * at the end of the transaction: in its next round it stands in line again.
 */
static bool
may_turn_forward(const Saga *saga)
{
	return !saga->definition->has_concurrency || !saga->changed;
}

/* The way back has come to a savepoint: what was is history now, and signals
 * that were kept for the next round have their turn. */
static void
turn_forward(SagaRun *run, SagaMember *member)
{
	Saga	   *saga = member->saga;
	ListCell   *cell;

	saga_store_save_operations(saga);
	pass_event(saga, SAGA_EVENT_FORWARD);
	saga_store_forget_round(saga);
	foreach(cell, saga->messages)
	{
		SagaMessage *message = lfirst(cell);

		if (message->outcome == NULL && strcmp(message->kind, "signal") == 0)
			apply_message(run, member, message);
	}
}

/*
 * Find the elements of a foreach step.  Where that is not possible it has one,
 * which fails.
 */
static void
expand(Saga *saga, const SagaTask *task)
{
	const SagaStep *step = &saga->definition->steps[task->step];
	SagaEvent	event = saga_record_make_event(SAGA_EVENT_EXPANDED, task);
	SagaTask	first = {.step = task->step,.attempt = 1};
	const char *wrong = NULL;
	SagaError	error;

	event.nelements = saga_store_expand(saga, task->step, &wrong,
										&event.elements);
	if (wrong != NULL)
		event.nelements = 1;
	if (saga_record_event(saga, &event) != SAGA_VERDICT_APPLIED)
		elog(ERROR, "the machine refused the elements of step %d of saga %lld",
			 task->step, (long long) saga->ref.id);
	if (wrong != NULL)
	{
		error = saga_record_make_error(ERRCODE_SAGA_BAD_DATA,
									   psprintf("invalid elements \"%s\" for step \"%s\"",
												step->foreach.text, step->name),
									   wrong);
		if (saga->definition->rules.steps[task->step].exclusive)
			saga_record_op_event(saga, SAGA_EVENT_QUEUED, &first, DT_NOEND);
		(void) saga_record_final_failure(saga, &first, &error);
	}
	saga_store_settle_results(saga);
}


/* ---- calling ------------------------------------------------------------------ */

/*
 * Is it an error that a function's plan may have from before somebody altered
 * a table?  Then it is called once more, uncounted, with nothing cached.
 */
static bool
may_be_stale(const SagaCallReport *report)
{
	return report->outcome == SAGA_CALL_FAILED &&
		(strcmp(report->error.sqlstate, "0A000") == 0 ||
		 strcmp(report->error.sqlstate, "42804") == 0);
}

/*
 * The operation could not share the transaction.  Where it only met a lock,
 * the other side is most often a batch of the same steps, soon over: it may
 * try among others again, in the next transaction, a few times.
 */
static void
take_out(SagaMember *member, const SagaError *error)
{
	if (strcmp(error->sqlstate, "55P03") == 0 &&
		++member->collisions <= MAX_COLLISIONS)
		return;
	member->alone = true;
}

static int
isolation_of(const Saga *saga, const SagaTask *task)
{
	int			isolation = saga->definition->steps[task->step].isolation;

	if (isolation == SAGA_ISOLATION_DEFAULT)
		isolation = DefaultXactIsoLevel;
	return isolation < XACT_READ_COMMITTED ? XACT_READ_COMMITTED : isolation;
}

/*
 * May the operation be called in this transaction?  If not the member says
 * what has to be different.
 */
static bool
may_operate(SagaRun *run, SagaMember *member, const SagaTask *task)
{
	const Saga *saga = member->saga;
	bool		suspect = saga->suspect || member->ref.suspect;

	if (run->stop || !OidIsValid(run->role))
		return false;
	if (suspect && !member->ref.suspect && run->driver->worker)
	{
		/* the ring did not know, and so did not count who runs suspects */
		member->misplaced = member->alone = true;
		return false;
	}
	member->isolation = isolation_of(saga, task);
	if (member->isolation != run->isolation)
	{
		member->alone = true;
		return false;
	}
	if (run->in_batch && (suspect || is_known_alone(saga, task)))
	{
		member->alone = true;
		return false;
	}
	if (run->in_batch && GetCurrentTimestamp() >= run->batch_end)
	{
		run->stop = true;
		return false;
	}
	return true;
}

/* Does the saga hold this lock?  For saga.lock(). */
static bool
holds_lock(const SagaCallRequest *request, const char *name)
{
	return saga_locks_is_held(request->definition, request->saga_id, name);
}

static SagaCallRequest
make_request(const SagaRun *run, const SagaMember *member,
			 const SagaTask *task)
{
	SagaCallRequest request = saga_record_request(member->saga, task);

	request.holds_lock = holds_lock;
	request.in_worker = run->driver->worker;
	request.in_batch = run->in_batch || member->noperations > 0;
	request.batch_end = run->batch_end;
	return request;
}

/* What the call means for the transaction, whatever came of it. */
static void
heed_report(SagaRun *run, SagaMember *member, const SagaTask *task,
			const SagaCallReport *report, int subxids)
{
	const Saga *saga = member->saga;
	bool		overflowed;
	int			more = saga_call_subxids(&overflowed);

	if (report->alone_from_now)
	{
		remember_alone(saga, task);
		run->stop = true;
		run->soiled = true;
	}
	if (report->flush)
		run->flush = true;
	if (saga->definition->steps[task->step].durable)
		run->force = run->stop = true;
	if (overflowed || more + (more - subxids) > MAX_SUBXIDS)
		run->stop = true;
	if (report->canceled && !run->driver->worker)
	{
		run->interrupted = run->stop = true;
		run->out_of_time = report->timed_out ||
			report->outcome != SAGA_CALL_FAILED;
	}
}

static void
call_operation(SagaRun *run, SagaMember *member, const SagaTask *task,
			   SagaCallReport *report)
{
	Saga	   *saga = member->saga;
	SagaCallRequest request = make_request(run, member, task);
	bool		overflowed;
	int			subxids = saga_call_subxids(&overflowed);

	member->operation = (SagaOperationRef)
	{
		.saga_id = saga->ref.id,
		.branch = saga->branch == NULL ? 0 : saga->branch->id,
		.slot = saga->ref.slot,
		.step = task->step,
		.element = task->element,
		.operation = task->operation,
		.attempt = task->attempt,
		.turn = saga->turn
	};
	member->operation_started_at = GetCurrentTimestamp();
	saga_executor_doing_step(&member->operation, saga->definition->name,
							 saga->definition->steps[task->step].name);
	saga_call_run(&request, report);
	saga_executor_doing(NULL);

	member->noperations++;
	heed_report(run, member, task, report, subxids);
}

/*
 * Was it rolled back, as if it had not been called, to be called in another
 * way?
 */
static bool
is_to_be_repeated(SagaMember *member, const SagaCallReport *report)
{
	if (report->outcome == SAGA_CALL_ALONE)
	{
		take_out(member, &report->error);
		return true;
	}
	if (may_be_stale(report) && !member->replanned)
	{
		member->replanned = member->alone = true;
		ResetPlanCache();
		return true;
	}
	return false;
}

static void
record_report(SagaRun *run, SagaMember *member, const SagaTask *task,
			  const SagaCallReport *report)
{
	Saga	   *saga = member->saga;
	SagaOutcome outcome;

	saga_outcome_of_call(report, &outcome);
	if (outcome.kind == SAGA_OUTCOME_LOCK)
	{
		note_called_lock(run, member, task, &outcome);
		return;
	}
	if (outcome.kind == SAGA_OUTCOME_SUCCEEDED)
	{
		saga_kind_succeeded(saga, task, &outcome, report->time);
		member->collisions = 0;
	}
	else if (!saga_record_outcome(saga, task, &outcome))
		elog(ERROR, "the machine refused the outcome of step %d of saga %lld",
			 task->step, (long long) saga->ref.id);
	saga->step = task->step;
}

/* Is this operation the one whose commit has failed? */
static bool
is_failed_commit(const SagaMember *member, const SagaTask *task)
{
	return member->operation.step == task->step &&
		member->operation.element == task->element &&
		member->operation.operation == (int) task->operation &&
		member->operation.attempt == task->attempt;
}

static SagaOutcome
commit_failure(const SagaRun *run, const SagaMember *member)
{
	SagaOutcome outcome = {
		.kind = SAGA_OUTCOME_FAILED,
		.error = *run->commit_error,
		.started_at = member->operation_started_at
	};

	outcome.finished_at = GetCurrentTimestamp();
	return outcome;
}

/* Instead of calling operations: the commit of one has failed, alone. */
static bool
record_commit_error(SagaRun *run, SagaMember *member, const SagaTask *ready,
					int n)
{
	for (int i = 0; i < n; i++)
	{
		SagaOutcome outcome = commit_failure(run, member);

		if (!is_failed_commit(member, &ready[i]))
			continue;
		member->has_called = true;
		return saga_record_outcome(member->saga, &ready[i], &outcome);
	}
	return false;
}


/* ---- several at a time ---------------------------------------------------------- */

/* How many branches of this saga are out? */
static int
count_branches(const Saga *saga)
{
	int			n = 0;

	for (int step = 0; step < saga->state.nsteps; step++)
	{
		if (saga->definition->steps[step].kind != SAGA_KIND_LOCAL)
			continue;
		for (int op = 0; op < SAGA_NOPERATION; op++)
			n += saga->state.steps[step].count[op][SAGA_OP_RUNNING];
	}
	return n;
}

/* Is anything of this step out, or about to be attempted again? */
static bool
is_under_way(const SagaStepState *step)
{
	for (int op = 0; op < SAGA_NOPERATION; op++)
		if (step->count[op][SAGA_OP_RUNNING] > 0 ||
			step->count[op][SAGA_OP_WAITING] > 0)
			return true;
	return false;
}

/*
 * Does the saga go several ways at once?  Then what this process called itself
 * would keep the others from going on: it has the saga's row locked meanwhile.
 */
static bool
goes_several_ways(const Saga *saga, const SagaTask *ready, int n)
{
	for (int i = 1; i < n; i++)
		if (ready[i].step != ready[0].step)
			return true;
	if (saga->definition->rules.before == NULL)
		return false;
	for (int step = 0; step < saga->state.nsteps; step++)
		if (step != ready[0].step && is_under_way(&saga->state.steps[step]))
			return true;
	return false;
}

/* How many of those that are ready are to be handed out, from the last on. */
static int
choose_share(const SagaRun *run, const SagaMember *member,
			 const SagaTask *ready, int n)
{
	const Saga *saga = member->saga;
	int			others = saga_workers_per_role - 1;
	int			most = others * MAX_BRANCHES;
	int			out;

	if (others < 1 || !run->driver->worker || saga->suspect ||
		member->single || !saga_shared_available())
		return 0;
	if (goes_several_ways(saga, ready, n))
		return n;
	if (n < 2)
		return 0;
	/* the elements of one step: others get their part of the work */
	out = count_branches(saga);
	if (out > most / 2)
		return 0;
	return Min(n * others / (others + 1), most - out);
}

/*
 * Hand out operations to other workers.  Only those of plain steps: the others
 * write rows of the engine when their functions are through.
 */
static bool
hand_out(SagaRun *run, SagaMember *member, const SagaTask *ready, int n)
{
	Saga	   *saga = member->saga;
	int			share = choose_share(run, member, ready, n);
	int			handed = 0;

	for (int i = n - 1; i >= 0 && handed < share; i--)
	{
		if (saga->definition->steps[ready[i].step].kind != SAGA_KIND_LOCAL)
			continue;
		saga_store_hand_out(saga, &ready[i], false);
		saga_record_op_event(saga, SAGA_EVENT_STARTED, &ready[i], DT_NOEND);
		saga_record_mark(saga, &ready[i]);
		handed++;
	}
	if (handed > 0 && saga->started_at == 0)
		saga->started_at = GetCurrentTimestamp();
	return handed > 0;
}

/* Is what was ready before others were called still to be called? */
static bool
is_still_ready(const Saga *saga, const SagaTask *task, bool backward)
{
	const SagaOpState *op;

	if (saga->state.backward != backward ||
		(saga->state.status != SAGA_STATUS_RUNNING &&
		 saga->state.status != SAGA_STATUS_COMPENSATING) ||
		task->element >= saga->state.steps[task->step].nelements)
		return false;
	op = saga_record_op(saga, task);
	return op->status == SAGA_OP_PENDING || op->status == SAGA_OP_WAITING;
}

/*
 * Call what is ready, one after the other, as long as nothing speaks against
 * sharing the transaction.  Returns whether anything has changed.
 */
static bool
call_ready(SagaRun *run, SagaMember *member, const SagaTask *ready, int n)
{
	Saga	   *saga = member->saga;
	bool		backward = saga->state.backward;
	bool		changed = false;

	if (member->has_called || run->answering || member->lock != NULL)
		return false;
	if (saga->suspect && member->nquiet > 0)
		return false;			/* see apply_loss_and_messages() */
	if (run->commit_error != NULL)
		return record_commit_error(run, member, ready, n);
	if (hand_out(run, member, ready, n))
	{
		member->has_called = true;
		return true;
	}
	for (int i = 0; i < n; i++)
	{
		SagaCallReport report;

		if (i > 0 && (member->alone || member->single || saga->suspect ||
					  !is_still_ready(saga, &ready[i], backward) ||
					  GetCurrentTimestamp() >= run->batch_end))
			break;
		if (!may_operate(run, member, &ready[i]))
			break;
		member->has_called = true;
		call_operation(run, member, &ready[i], &report);
		if (is_to_be_repeated(member, &report))
			break;
		run->result->operations++;
		record_report(run, member, &ready[i], &report);
		changed = true;
	}
	return changed;
}


/* ---- tasks -------------------------------------------------------------------- */

/*
 * Needs it no user code?  Of an action that somebody else has had already
 * the condition is not asked again: it may have had its effect.
 */
static bool
is_trivial(const Saga *saga, const SagaTask *task)
{
	const SagaStep *step = &saga->definition->steps[task->step];

	return saga_call_is_trivial(step, task->operation) ||
		(saga_step_has_tasks(step) &&
		 saga_record_op(saga, task)->attempts > 0);
}

/* Do one thing that needs no user code; false if it is none. */
static bool
do_quietly(Saga *saga, const SagaTask *task)
{
	switch (task->kind)
	{
		case SAGA_TASK_EXPAND:
			expand(saga, task);
			return true;
		case SAGA_TASK_EXPIRE:
			saga_kind_expire(saga, task);
			return true;
		case SAGA_TASK_REVOKE:
			saga_kind_revoke(saga, task);
			return true;
		case SAGA_TASK_OPERATE:
			if (!is_trivial(saga, task))
				return false;
			saga_kind_succeeded(saga, task, NULL, 0);
			return true;
		case SAGA_TASK_ACQUIRE:
			break;
	}
	return false;
}

/* Is a task that was named before others were done still one? */
static bool
is_still_task(const Saga *saga, const SagaTask *task)
{
	const SagaOpState *op;

	if (task->kind == SAGA_TASK_EXPAND)
		return saga->state.steps[task->step].nelements < 0;
	if (task->element >= saga->state.steps[task->step].nelements)
		return false;
	op = saga_record_op(saga, task);
	switch (task->kind)
	{
		case SAGA_TASK_EXPIRE:
			return op->status == SAGA_OP_RUNNING ||
				op->gate == SAGA_GATE_QUEUED;
		case SAGA_TASK_REVOKE:
			return op->status == SAGA_OP_RUNNING && !op->cancelled;
		default:
			return op->status == SAGA_OP_PENDING ||
				op->status == SAGA_OP_WAITING;
	}
}

/*
 * Do what the machine has named.  Returns true if something has changed, so
 * that it is to be asked again.
 */
static bool
do_tasks(SagaRun *run, SagaMember *member, const SagaTask *tasks, int n)
{
	Saga	   *saga = member->saga;
	SagaStatus	status = saga->state.status;
	bool		backward = saga->state.backward;
	SagaTask	ready[MAX_TASKS];
	int			nready = 0;
	bool		changed = false;
	bool		asked = member->asks;

	if (!OidIsValid(run->role) || asks_before_start(run, member))
		return false;
	for (int i = 0; i < n; i++)
	{
		const SagaTask *task = &tasks[i];

		/* what one thing brings about may have overtaken the others */
		if (changed && (saga->state.status != status ||
						saga->state.backward != backward))
			return true;
		if (changed && !is_still_task(saga, task))
			continue;
		if (task->kind == SAGA_TASK_ACQUIRE)
		{
			if (!asked)
				ask_for_step(run, member, task);
			continue;
		}
		/* a signal may have come while an operation was called: it is read
		 * first in the next transaction */
		if (task->kind == SAGA_TASK_EXPIRE && member->has_called)
			continue;
		if (member->nquiet >= MAX_QUIET ||
			(member->nquiet > 0 && GetCurrentTimestamp() >= run->batch_end))
			continue;
		if (do_quietly(saga, task))
		{
			member->nquiet++;
			changed = true;
		}
		else if (task->kind == SAGA_TASK_OPERATE)
			ready[nready++] = *task;
	}
	if (changed)
		return true;
	return nready > 0 && call_ready(run, member, ready, nready);
}

/* Ask the machine and do what it says, until that is for another transaction. */
static void
go_on(SagaRun *run, SagaMember *member)
{
	Saga	   *saga = member->saga;
	SagaTodo	todo;
	SagaTask	tasks[MAX_TASKS];

	while (saga->broken == NULL)
	{
		saga_machine_next(&saga->definition->rules, &saga->state,
						  GetCurrentTimestamp(), &todo, tasks, MAX_TASKS);
		if (todo.deadline)
			pass_deadline(member);
		else if (todo.start)
			pass_event(saga, SAGA_EVENT_START);
		else if (todo.forward && !may_turn_forward(saga))
		{
			set_ready(saga);
			return;
		}
		else if (todo.forward)
			turn_forward(run, member);
		else if (todo.ntasks == 0)
		{
			settle(run, member, &todo);
			return;
		}
		else if (!do_tasks(run, member, tasks, todo.ntasks))
		{
			/* rolled back, to be called alone: as if nothing had been */
			if (run->answering ||
				(!member->asks && (!member->alone || saga->changed)))
				set_ready(saga);
			return;
		}
	}
	set_broken(member);
}

/*
 * The process ended during an operation of this saga.  Its effect went with
 * the transaction, so if the row has not moved on since, the attempt is known
 * to have done nothing, and to be suspect.
 */
static SagaOutcome
lost_outcome(void)
{
	SagaOutcome outcome = {.kind = SAGA_OUTCOME_LOST};

	outcome.error = saga_record_make_error(ERRCODE_SAGA_PROCESS_ENDED,
										   "the process ended during the attempt",
										   NULL);
	outcome.error.hint = "Look for a crash or a termination in the server's log.";
	outcome.started_at = outcome.finished_at = GetCurrentTimestamp();
	return outcome;
}

static bool
record_lost(SagaRun *run, SagaMember *member)
{
	const SagaOperationRef *what = &run->lost->what;
	Saga	   *saga = member->saga;
	SagaTask	task = {.step = what->step,.element = what->element,
	.operation = what->operation,.attempt = what->attempt};
	SagaOutcome outcome = lost_outcome();

	if (what->step < 0 || what->step >= saga->state.nsteps ||
		what->element < 0 ||
		what->element >= saga->state.steps[what->step].nelements ||
		saga_record_op(saga, &task)->attempts + 1 != task.attempt ||
		saga_record_op(saga, &task)->status == SAGA_OP_RUNNING ||
		!saga_record_outcome(saga, &task, &outcome))
		return false;
	saga->step = task.step;
	return true;
}

/*
 * What made the operation ready may have gone with the transaction too: the
 * messages, which are applied first then; or something else, and then the
 * saga is a suspect all the same.  As such its operations are called in
 * transactions of their own, so that the next loss can be counted.
 */
static void
apply_loss_and_messages(SagaRun *run, SagaMember *member)
{
	Saga	   *saga = member->saga;
	bool		recorded = saga->turn != run->lost->what.turn ||
		record_lost(run, member);

	apply_messages(run, member);
	if (recorded || record_lost(run, member))
		return;
	saga->suspect = true;
	saga->changed = true;
}


/* ---- branches ------------------------------------------------------------------- */

/* A branch ends with a message to its saga, in the transaction of its effect. */
static void
end_branch(SagaMember *member, const SagaOutcome *outcome)
{
	Saga	   *saga = member->saga;

	saga_store_end_branch(saga, saga_outcome_write(outcome,
												   &saga->branch->task,
												   saga->branch->round));
	member->active = false;
}

static void
call_branch(SagaRun *run, SagaMember *member)
{
	const SagaTask *task = &member->saga->branch->task;
	SagaCallReport report;
	SagaOutcome outcome;

	if (!may_operate(run, member, task))
		return;
	call_operation(run, member, task, &report);
	if (is_to_be_repeated(member, &report))
		return;
	run->result->operations++;
	saga_outcome_of_call(&report, &outcome);
	end_branch(member, &outcome);
}

static void
advance_branch(SagaRun *run, SagaMember *member)
{
	SagaOutcome outcome = {.kind = SAGA_OUTCOME_REVOKED};

	if (run->lost != NULL)
		outcome = lost_outcome();
	else if (member->saga->branch->moot || member->saga->broken != NULL)
		;						/* nobody waits for it any more */
	else if (run->commit_error != NULL)
		outcome = commit_failure(run, member);
	else
	{
		call_branch(run, member);
		return;
	}
	end_branch(member, &outcome);
}


/* ---- one member ------------------------------------------------------------------- */

void
saga_advance(SagaRun *run, SagaMember *member)
{
	Saga	   *saga = member->saga;

	member->status_before = saga->state.status;
	member->backward_before = saga->state.backward;
	if (saga->branch != NULL)
		advance_branch(run, member);
	else if (saga->ended)
		refuse_messages(member);
	else
	{
		if (saga->broken == NULL)
		{
			if (migrate(run, member))
				return;
			ask_for_called_lock(run, member);
			take_answers(run, member);
			if (run->lost != NULL)
				apply_loss_and_messages(run, member);
			else
				apply_messages(run, member);
		}
		go_on(run, member);
		stay_for_migration(member);
	}
}

void
saga_advance_after_answers(SagaRun *run, SagaMember *member)
{
	/* who stands in line before the start has said so already */
	if (member->asks && member->active)
	{
		go_on(run, member);
		stay_for_migration(member);
	}
}

/* Has a step ended with which a lock may be given back? */
static bool
may_give_back(const Saga *saga)
{
	return saga->definition != NULL && saga->changed &&
		(saga->definition->has_exclusive ||
		 saga->definition->exclusive_until >= 0);
}

void
saga_advance_finish(SagaRun *run, SagaMember *member)
{
	Saga	   *saga = member->saga;

	run->result->failed += saga->nfailed;
	saga->nfailed = 0;
	if (saga->branch != NULL || saga->ended)
		return;
	if (saga_status_is_final(saga->state.status))
		run->flush = true;
	if (saga_status_is_final(saga->state.status) ||
		saga->state.status == SAGA_STATUS_HELD)
		member->leaves = true;
	if ((saga->state.backward && !member->backward_before) ||
		may_give_back(saga))
		member->leaves = true;
	if (saga->state.status != member->status_before)
		saga_kind_status_changed(saga);
}
