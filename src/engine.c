/*
 * engine.c
 *		The one engine: loads sagas, asks the machine, does it, records it.
 *
 * A run takes up to SAGA_MAX_BATCH sagas of one role.  Each transaction of the
 * run locks those that have something to do, calls at most one operation of
 * each in a subtransaction of its own (call.c), and writes what came of all of
 * them at the end, in the top transaction; then the next transaction goes on
 * with those that have another step.
 *
 * How it stays right when killed at any line: an operation's effect and its
 * record commit together or not at all (P2).  Nothing that memory knows of a
 * saga counts unless the row, locked again, has the same turn.  After the
 * commit only hints are given to shared memory; the row's due_at makes the
 * sweep find whatever a lost hint stood for.
 *
 * How a saga does not harm its neighbours (P8): what fails rolls back its
 * subtransaction.  What cannot share a transaction (it waits for a lock, runs
 * longer than saga.batch_time, used temporary tables, wants another isolation
 * level ...) goes back to the ring to be run alone, uncounted.  When a commit
 * fails the batch is done again one saga at a time; alone, a failed commit is
 * that saga's attempt.
 */
#include "postgres.h"

#include "access/xact.h"
#include "common/pg_prng.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "utils/guc.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/plancache.h"
#include "utils/timestamp.h"

#include "call.h"
#include "catalog.h"
#include "compat.h"
#include "engine.h"
#include "errcodes.h"
#include "guc.h"
#include "json.h"
#include "owner.h"
#include "store.h"

/* So many transactions a saga may have before others get their turn. */
#define MAX_ROUNDS		16

/* Commit a batch before the shared cache of subtransactions (64) is full:
 * when another operation like the last one might fill it. */
#define MAX_SUBXIDS		62

/* So often an operation that waits for a lock is tried again in a batch. */
#define MAX_COLLISIONS	3

/* So often a transaction of one saga that met a conflict is done again. */
#define MAX_CONFLICTS	3

/* One saga of a run. */
typedef struct Member
{
	SagaRef		ref;
	Saga	   *saga;			/* NULL = not loaded, or not to be had */
	int			isolation;		/* of its next transaction */
	bool		active;			/* has, or may have, something to do */
	bool		alone;			/* not in a transaction with others */
	bool		misplaced;		/* a suspect that was not taken as one */
	bool		replanned;		/* plans were thrown away for it */
	int			collisions;		/* how often its operation met another batch's
								 * locks, or another batch met its */

	/* within one transaction */
	bool		operated;		/* an operation was called */
	bool		wants_place;
	bool		got_stuck;
	SagaOperationRef operation;	/* the one that was called */
	TimestampTz operation_started_at;
} Member;

/* A run. */
typedef struct Run
{
	const SagaDriver *driver;
	SagaRunResult *result;
	MemoryContext memory;
	Oid			role;			/* InvalidOid: whose ever, without operations */
	Member	   *members;
	int			nmembers;
	SagaError  *commit_error;	/* record this instead of calling anything */
	const SagaLost *lost;		/* record that the process ended during this */
	bool		interrupted;	/* in the foreground: the user cancelled */
	bool		out_of_time;	/* ... or rather, statement_timeout passed */
	bool		soiled;			/* an operation may have left something in the
								 * session */

	/* within one transaction */
	int			isolation;
	bool		in_batch;
	bool		stop;			/* call nothing more in this one */
	bool		flush;			/* commit as the role's synchronous_commit says */
	bool		force;			/* commit synchronously, whatever that says */
	bool		any_final;		/* a saga has ended */
	TimestampTz batch_end;
} Run;

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
make_alone_key(const Saga *saga, const SagaTodo *todo)
{
	AloneKey	key = {saga->definition->id, todo->step, todo->operation};

	return key;
}

static void
remember_alone(const Saga *saga, const SagaTodo *todo)
{
	AloneKey	key = make_alone_key(saga, todo);
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
is_known_alone(const Saga *saga, const SagaTodo *todo)
{
	AloneKey	key = make_alone_key(saga, todo);

	return alone_steps != NULL &&
		hash_search(alone_steps, &key, HASH_FIND, NULL) != NULL;
}


/* ---- events -------------------------------------------------------------- */

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
			return "refused: its pivot had succeeded";
		case SAGA_VERDICT_BACKWARD:
			return "refused: it was compensating already";
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

/*
 * Tell the machine, and mark every operation that it changed: other steps'
 * too, as when a saga turns back.
 */
static SagaVerdict
apply_event(Member *member, SagaEvent *event)
{
	Saga	   *saga = member->saga;
	SagaState  *state = &saga->state;
	Size		size = state->nsteps * sizeof(SagaStepState);
	SagaStepState *before = palloc(size);
	SagaVerdict verdict;

	memcpy(before, state->steps, size);
	verdict = saga_machine_apply(&saga->definition->rules, state, event);
	if (verdict == SAGA_VERDICT_APPLIED)
	{
		saga->changed = true;
		for (int step = 0; step < state->nsteps; step++)
			for (int operation = 0; operation < SAGA_NOPERATION; operation++)
				if (memcmp(&before[step].op[operation],
						   &state->steps[step].op[operation],
						   sizeof(SagaOpState)) != 0)
					saga->ops[step][operation].changed = true;
	}
	pfree(before);
	return verdict;
}

static SagaEvent
make_event(SagaEventKind kind, int step, SagaOperation operation)
{
	SagaEvent	event = {
		.kind = kind,
		.step = step,
		.operation = operation,
		.now = GetCurrentTimestamp(),
		.delay = -1,
		.random = pg_prng_double(&pg_global_prng_state)
	};

	return event;
}

static Jsonb *
error_to_jsonb(const char *step, const char *operation, const SagaError *error)
{
	SagaJsonWriter writer = NULL;

	saga_json_begin_object(&writer);
	saga_json_put_string(&writer, "step", step);
	saga_json_put_string(&writer, "operation", operation);
	saga_json_put_string(&writer, "sqlstate", error->sqlstate);
	saga_json_put_string(&writer, "message", error->message);
	saga_json_put_string(&writer, "detail", error->detail);
	saga_json_put_string(&writer, "hint", error->hint);
	saga_json_put_string(&writer, "context", error->context);
	return saga_json_finish_object(&writer);
}

/* The first cause stays: what comes later is in the steps' own rows. */
static void
set_cause(Saga *saga, int step, int operation, const SagaError *error)
{
	if (saga->has_error)
		return;
	saga->error = error_to_jsonb(step < 0 ? NULL :
								  saga->definition->steps[step].name,
								  step < 0 ? NULL :
								  saga_operation_name(operation), error);
	saga->has_error = true;
}

static SagaError
make_error(int sqlstate, const char *message, const char *detail)
{
	SagaError	error = {.message = message, .detail = detail};

	strlcpy(error.sqlstate, unpack_sql_state(sqlstate), sizeof(error.sqlstate));
	return error;
}

static void
add_attempt(Saga *saga, const SagaTodo *todo, bool passing, const char *outcome,
			const SagaError *error, TimestampTz started_at,
			TimestampTz finished_at)
{
	SagaAttempt *attempt = palloc0(sizeof(SagaAttempt));
	SagaError  *copy = palloc(sizeof(SagaError));

	*copy = *error;
	attempt->step = todo->step;
	attempt->operation = todo->operation;
	attempt->attempt = todo->attempt;
	attempt->passing = passing;
	attempt->outcome = outcome;
	attempt->error = copy;
	attempt->started_at = started_at;
	attempt->finished_at = finished_at;
	saga->attempts = lappend(saga->attempts, attempt);
}

/* Apply a failure of the operation in "todo" and keep its whole error. */
static void
record_failure(Run *run, Member *member, const SagaTodo *todo,
			   SagaEventKind kind, bool passing, const char *outcome,
			   const SagaError *error, TimestampTz started_at,
			   TimestampTz finished_at)
{
	Saga	   *saga = member->saga;
	SagaOpRow  *row = &saga->ops[todo->step][todo->operation];
	SagaEvent	event = make_event(kind, todo->step, todo->operation);
	bool		was_backward = saga->state.backward;

	event.passing = passing;
	if (apply_event(member, &event) != SAGA_VERDICT_APPLIED)
		elog(ERROR, "the machine refused a failure of step %d of saga %lld",
			 todo->step, (long long) saga->ref.id);
	if (row->started_at == 0)
		row->started_at = started_at;
	row->finished_at = finished_at;
	row->error = error_to_jsonb(NULL, NULL, error);
	row->changed = true;
	add_attempt(saga, todo, passing, outcome, error, started_at, finished_at);
	if (saga->started_at == 0)
		saga->started_at = started_at;
	if (saga->state.backward != was_backward ||
		saga->state.status == SAGA_STATUS_STUCK)
		set_cause(saga, todo->step, todo->operation, error);
	run->result->failed++;
}

static void
record_success(Member *member, const SagaTodo *todo,
			   const SagaCallReport *report)
{
	Saga	   *saga = member->saga;
	SagaOpRow  *row = &saga->ops[todo->step][todo->operation];
	SagaEvent	event = make_event(SAGA_EVENT_SUCCEEDED, todo->step,
								   todo->operation);

	if (apply_event(member, &event) != SAGA_VERDICT_APPLIED)
		elog(ERROR, "the machine refused a success of step %d of saga %lld",
			 todo->step, (long long) saga->ref.id);
	if (row->started_at == 0)
		row->started_at = report->started_at;
	row->finished_at = report->finished_at;
	row->result = report->result;
	row->changed = true;
	if (todo->operation == SAGA_OPERATION_ACTION)
		saga->results[todo->step] = report->result;
	if (saga->started_at == 0)
		saga->started_at = report->started_at;
	saga->suspect = false;
	member->collisions = 0;
}

static void
record_later(Member *member, const SagaTodo *todo,
			 const SagaCallReport *report)
{
	Saga	   *saga = member->saga;
	SagaOpRow  *row = &saga->ops[todo->step][todo->operation];
	SagaEvent	event = make_event(SAGA_EVENT_LATER, todo->step,
								   todo->operation);

	event.delay = report->delay;
	if (apply_event(member, &event) != SAGA_VERDICT_APPLIED)
		elog(ERROR, "the machine refused a delay of step %d of saga %lld",
			 todo->step, (long long) saga->ref.id);
	if (row->started_at == 0)
		row->started_at = report->started_at;
	row->error = error_to_jsonb(NULL, NULL, &report->error);
	row->changed = true;
	if (saga->started_at == 0)
		saga->started_at = report->started_at;
	saga->suspect = false;
}

/*
 * Is it an error that a function's plan may have from before somebody altered
 * a table?  Then it is called once more, uncounted, with nothing cached.
 */
static bool
may_be_stale(const SagaError *error)
{
	return strcmp(error->sqlstate, "0A000") == 0 ||
		strcmp(error->sqlstate, "42804") == 0;
}

/*
 * The operation could not share the transaction.  Where it only met a lock,
 * the other side is most often a batch of the same steps, soon over: it may
 * try among others again, in the next transaction, a few times.
 */
static void
take_out(Member *member, const SagaError *error)
{
	if (strcmp(error->sqlstate, "55P03") == 0 &&
		++member->collisions <= MAX_COLLISIONS)
		return;
	member->alone = true;
}

static void
record_report(Run *run, Member *member, const SagaTodo *todo,
			  const SagaCallReport *report)
{
	Saga	   *saga = member->saga;
	const SagaRules *rules = &saga->definition->rules;
	bool		passing;

	switch (report->outcome)
	{
		case SAGA_CALL_SUCCEEDED:
			record_success(member, todo, report);
			break;
		case SAGA_CALL_LATER:
			record_later(member, todo, report);
			break;
		case SAGA_CALL_FAILED:
			if (may_be_stale(&report->error) && !member->replanned)
			{
				member->replanned = member->alone = true;
				ResetPlanCache();
				break;
			}
			passing = !report->by_fail &&
				saga_retry_is_passing(&rules->steps[todo->step].retry[todo->operation],
									  report->error.sqlstate,
									  saga_machine_any_passing(rules, &saga->state,
															   todo->step,
															   todo->operation));
			saga->suspect = report->timed_out;
			record_failure(run, member, todo, SAGA_EVENT_FAILED, passing,
						   report->timed_out ? "timeout" : "failed",
						   &report->error, report->started_at,
						   report->finished_at);
			break;
		case SAGA_CALL_ALONE:
			take_out(member, &report->error);
			break;
	}
}


/* ---- messages ------------------------------------------------------------- */

static void
cause_of_message(Saga *saga, const SagaMessage *message)
{
	SagaError	error;

	error = make_error(ERRCODE_SAGA_CANCELLED,
					   psprintf("%s asked to %s it", message->requested_by,
								message->kind),
					   message->reason);
	set_cause(saga, -1, 0, &error);
}

/* Act on one message; its outcome goes to the history. */
static void
apply_message(Member *member, SagaMessage *message)
{
	Saga	   *saga = member->saga;
	SagaEvent	event;
	SagaEventKind kind;
	SagaVerdict verdict;
	int			step = -1;

	saga->changed = true;		/* to take the message away */
	message->outcome = "done";
	if (strcmp(message->kind, "place") == 0)
		return;					/* that the saga was woken is all of it */
	if (!saga_event_parse(message->kind, &kind) || kind < SAGA_EVENT_CANCEL)
	{
		message->outcome = "refused: unrecognized message";
		return;
	}
	if (message->step != NULL)
	{
		step = saga_definition_step(saga->definition, message->step);
		if (step < 0)
		{
			message->outcome = "refused: the definition has no such step";
			return;
		}
	}
	event = make_event(kind, step, SAGA_OPERATION_ACTION);
	verdict = apply_event(member, &event);
	message->outcome = verdict_text(verdict);
	if (verdict == SAGA_VERDICT_APPLIED &&
		(kind == SAGA_EVENT_CANCEL || kind == SAGA_EVENT_ABANDON))
		cause_of_message(saga, message);
}

static void
apply_messages(Member *member)
{
	ListCell   *cell;

	foreach(cell, member->saga->messages)
		apply_message(member, lfirst(cell));
}


/* The saga had ended before they were written, or while they were. */
static void
refuse_messages(Member *member)
{
	ListCell   *cell;

	foreach(cell, member->saga->messages)
	{
		SagaMessage *message = lfirst(cell);

		message->outcome = verdict_text(SAGA_VERDICT_FINAL);
	}
	member->saga->changed = true;
	member->active = false;
}


/* ---- one saga within a transaction ---------------------------------------- */

static const char *
wait_text(SagaWait wait)
{
	switch (wait)
	{
		case SAGA_WAIT_NOTHING:
			break;
		case SAGA_WAIT_START:
			return "start time";
		case SAGA_WAIT_RETRY:
			return "next attempt";
		case SAGA_WAIT_OUTCOME:
			return "outcome";
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
settle(Member *member, const SagaTodo *todo)
{
	Saga	   *saga = member->saga;

	member->active = false;
	if (todo->step >= 0)
		saga->step = todo->step;
	set_wait(saga, todo->due_at == SAGA_TIME_NEVER ? DT_NOEND : todo->due_at,
			 wait_text(todo->wait));
}

/* Of a saga whose rows make no sense a person can ask but one thing. */
static void
apply_messages_broken(Member *member)
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
set_broken(Member *member)
{
	Saga	   *saga = member->saga;
	SagaError	error;

	member->active = false;
	apply_messages_broken(member);
	if (saga->state.status == SAGA_STATUS_STUCK ||
		saga_status_is_final(saga->state.status))
		return;
	error = make_error(ERRCODE_DATA_CORRUPTED,
					   "the saga's rows are not consistent", saga->broken);
	saga->error = error_to_jsonb(NULL, NULL, &error);
	saga->state.status = SAGA_STATUS_STUCK;
	set_wait(saga, DT_NOEND, "abandon");
	saga->changed = true;
	member->got_stuck = true;
}

static int
isolation_of(const Saga *saga, const SagaTodo *todo)
{
	int			isolation = saga->definition->steps[todo->step].isolation;

	if (isolation == SAGA_ISOLATION_DEFAULT)
		isolation = DefaultXactIsoLevel;
	return isolation < XACT_READ_COMMITTED ? XACT_READ_COMMITTED : isolation;
}

/* Needs this saga one of a limited number of places before it may start? */
static bool
needs_place(const Member *member)
{
	const Saga *saga = member->saga;

	return saga->definition->max_running > 0 && saga->started_at == 0 &&
		!saga->state.backward && !saga->has_place;
}

/*
 * May the operation be called in this transaction?  If not the member says
 * what has to be different.
 */
static bool
may_operate(Run *run, Member *member, const SagaTodo *todo)
{
	const Saga *saga = member->saga;

	if (member->operated || run->stop || run->commit_error != NULL ||
		!OidIsValid(run->role))
		return false;
	if (needs_place(member))
	{
		/* asked for at read committed, whatever the step wants */
		member->wants_place = run->isolation == XACT_READ_COMMITTED;
		member->isolation = XACT_READ_COMMITTED;
		return false;
	}
	if (saga->suspect && !member->ref.suspect && run->driver->worker)
	{
		/* the ring did not know, and so did not count who runs suspects */
		member->misplaced = member->alone = true;
		return false;
	}
	member->isolation = isolation_of(saga, todo);
	if (member->isolation != run->isolation)
	{
		member->alone = true;
		return false;
	}
	if (run->in_batch && (saga->suspect || is_known_alone(saga, todo)))
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

static void
call_operation(Run *run, Member *member, const SagaTodo *todo)
{
	Saga	   *saga = member->saga;
	SagaCallReport report;
	SagaCallRequest request = {
		.definition = saga->definition,
		.step = todo->step,
		.operation = todo->operation,
		.attempt = todo->attempt,
		.saga_id = saga->ref.id,
		.token = &saga->token,
		.key = saga->key,
		.traceparent = saga->traceparent,
		.input = saga->input,
		.results = (const Jsonb *const *) saga->results,
		.in_worker = run->driver->worker,
		.in_batch = run->in_batch,
		.batch_end = run->batch_end
	};
	bool		overflowed;
	int			subxids = saga_call_subxids(&overflowed);
	int			more;

	member->operation = (SagaOperationRef)
	{
		.saga_id = saga->ref.id,
		.slot = saga->ref.slot,
		.step = todo->step,
		.operation = todo->operation,
		.attempt = todo->attempt,
		.turn = saga->turn
	};
	member->operation_started_at = GetCurrentTimestamp();
	saga_executor_doing_step(&member->operation, saga->definition->name,
							 saga->definition->steps[todo->step].name);
	saga_call_run(&request, &report);
	saga_executor_doing(NULL);

	member->operated = true;
	run->result->operations++;
	saga->step = todo->step;
	if (report.alone_from_now)
	{
		remember_alone(saga, todo);
		run->stop = true;
		run->soiled = true;
	}
	if (report.flush)
		run->flush = true;
	if (saga->definition->steps[todo->step].durable)
		run->force = run->stop = true;
	more = saga_call_subxids(&overflowed);
	if (overflowed || more + (more - subxids) > MAX_SUBXIDS)
		run->stop = true;
	if (report.canceled && !run->driver->worker)
	{
		run->interrupted = run->stop = true;
		run->out_of_time = report.timed_out ||
			report.outcome != SAGA_CALL_FAILED;
	}
	record_report(run, member, todo, &report);
}

/* Is the operation to do the one whose commit has failed? */
static bool
is_operation(const Member *member, const SagaTodo *todo)
{
	return !member->operated && member->operation.step == todo->step &&
		member->operation.operation == (int) todo->operation &&
		member->operation.attempt == todo->attempt;
}

/* Instead of calling the operation: its commit has failed, alone. */
static void
record_commit_error(Run *run, Member *member, const SagaTodo *todo)
{
	const SagaRules *rules = &member->saga->definition->rules;
	bool		passing;

	member->operated = true;
	passing = saga_retry_is_passing(&rules->steps[todo->step].retry[todo->operation],
									run->commit_error->sqlstate,
									saga_machine_any_passing(rules,
															 &member->saga->state,
															 todo->step,
															 todo->operation));
	record_failure(run, member, todo, SAGA_EVENT_FAILED, passing, "failed",
				   run->commit_error, member->operation_started_at,
				   GetCurrentTimestamp());
}

/*
 * The process ended during an operation of this saga.  Its effect went with
 * the transaction, so if the row has not moved on since, the attempt is known
 * to have done nothing, and to be suspect.
 */
static void
record_lost(Run *run, Member *member)
{
	const SagaOperationRef *what = &run->lost->what;
	Saga	   *saga = member->saga;
	SagaTodo	todo = {.step = what->step, .operation = what->operation,
	.attempt = what->attempt};
	SagaError	error = make_error(ERRCODE_SAGA_PROCESS_ENDED,
								   "the process ended during the attempt",
								   NULL);
	TimestampTz now = GetCurrentTimestamp();
	SagaTodo	next;

	if (saga->turn != what->turn || what->step >= saga->state.nsteps)
		return;
	saga_machine_next(&saga->definition->rules, &saga->state, now, &next);
	if (!next.operate || next.step != todo.step ||
		next.operation != todo.operation || next.attempt != todo.attempt)
		return;
	error.hint = "Look for a crash or a termination in the server's log.";
	record_failure(run, member, &todo, SAGA_EVENT_LOST, true, "lost", &error,
				   now, now);
	saga->step = todo.step;
	saga->suspect = true;
}

static void
pass_deadline(Member *member)
{
	SagaEvent	event = make_event(SAGA_EVENT_DEADLINE, -1, 0);
	SagaError	error = make_error(ERRCODE_SAGA_DEADLINE,
								   "the saga's deadline has passed", NULL);

	if (apply_event(member, &event) != SAGA_VERDICT_APPLIED)
		elog(ERROR, "the machine refused the deadline of saga %lld",
			 (long long) member->ref.id);
	set_cause(member->saga, -1, 0, &error);
}

static void
pass_start(Member *member)
{
	SagaEvent	event = make_event(SAGA_EVENT_START, -1, 0);

	if (apply_event(member, &event) != SAGA_VERDICT_APPLIED)
		elog(ERROR, "the machine refused the start of saga %lld",
			 (long long) member->ref.id);
}

/* Do what this saga has to do in this transaction. */
static void
advance(Run *run, Member *member)
{
	Saga	   *saga = member->saga;
	bool		was_stuck = saga->state.status == SAGA_STATUS_STUCK;

	if (saga->ended)
	{
		refuse_messages(member);
		return;
	}
	if (saga->broken == NULL)
	{
		if (run->lost != NULL)
			record_lost(run, member);
		apply_messages(member);
	}
	for (;;)
	{
		SagaTodo	todo;

		if (saga->broken != NULL)
		{
			set_broken(member);
			break;
		}
		saga_machine_next(&saga->definition->rules, &saga->state,
						  GetCurrentTimestamp(), &todo);
		if (todo.deadline)
			pass_deadline(member);
		else if (todo.start)
			pass_start(member);
		else if (!todo.operate)
		{
			settle(member, &todo);
			break;
		}
		else if (run->commit_error != NULL && is_operation(member, &todo))
			record_commit_error(run, member, &todo);
		else if (!may_operate(run, member, &todo))
		{
			if (!member->wants_place)
				set_ready(saga);
			break;
		}
		else
		{
			call_operation(run, member, &todo);
			if (member->alone && !saga->changed)
				break;			/* rolled back: as if nothing had been */
		}
	}
	if (!was_stuck && saga->state.status == SAGA_STATUS_STUCK)
		member->got_stuck = true;
}


/* ---- a transaction --------------------------------------------------------- */

static void
ask_for_place(Member *member)
{
	Saga	   *saga = member->saga;

	if (saga_store_place_request(saga))
		saga->has_place = true;
	else
	{
		member->active = false;
		set_wait(saga, saga->state.deadline == SAGA_TIME_NEVER ?
				 DT_NOEND : saga->state.deadline, "place");
	}
	if (saga->has_place)
		set_ready(saga);
}

static void
begin_transaction(Run *run, int isolation, bool in_batch)
{
	run->driver->begin();
	XactIsoLevel = isolation;
	XactReadOnly = false;
	XactDeferrable = false;
	saga_disable_transaction_timeout();
	run->isolation = isolation;
	run->in_batch = in_batch;
	run->stop = false;
	run->flush = false;
	run->force = false;
	run->batch_end = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
												 saga_batch_time);
}

/*
 * The commits between local steps may be asynchronous if the role says so: no
 * later durable commit survives a crash without them.
 */
static void
commit_transaction(Run *run)
{
	Assert(!saga_owner_is_current());
	if (run->force)
		ForceSyncCommit();
	else if (saga_local_commit == SAGA_LOCAL_COMMIT_ASYNC && !run->flush)
		(void) set_config_option("synchronous_commit", "off",
								 PGC_USERSET, PGC_S_SESSION,
								 GUC_ACTION_LOCAL, true, 0, false);
	saga_call_reset();
	run->driver->commit();
	run->result->transactions++;
}

/*
 * The definitions whose places this transaction asks for or gives back: they
 * are locked all at once, in the order of their ids.
 */
static void
lock_places(const Run *run, Member **members, int n)
{
	List	   *ids = NIL;

	if (run->isolation != XACT_READ_COMMITTED)
		return;
	for (int i = 0; i < n; i++)
	{
		const Saga *saga = members[i]->saga;

		if (saga == NULL || saga->ended || saga->definition == NULL ||
			saga->definition->max_running == 0)
			continue;
		if (members[i]->wants_place || saga_status_is_final(saga->state.status))
			ids = list_append_unique_int(ids, saga->definition->definition_id);
	}
	if (ids != NIL)
		saga_store_places_lock(ids);
}

static const char *
stuck_reason(const Saga *saga)
{
	if (saga->broken != NULL)
		return saga->broken;
	return saga->state.backward ?
		"a compensation is out of attempts" : "a step is out of attempts";
}

/* All that is written, after the last operation of the transaction. */
static void
write_all(Run *run, Member **members, int n)
{
	Saga	   *sagas[SAGA_MAX_BATCH];

	lock_places(run, members, n);
	run->any_final = false;
	for (int i = 0; i < n; i++)
	{
		Saga	   *saga = members[i]->saga;

		sagas[i] = saga;
		if (saga == NULL)
			continue;
		if (members[i]->wants_place)
			ask_for_place(members[i]);
		if (saga_status_is_final(saga->state.status) && !saga->ended)
			run->any_final = run->flush = true;
		if (members[i]->got_stuck)
			saga_store_alert(saga, "stuck", stuck_reason(saga));
	}
	saga_store_save(sagas, n);
	if (run->any_final && run->isolation == XACT_READ_COMMITTED)
		saga_store_place_release(sagas, n);
}

/*
 * Under a snapshot of its own the transaction could not see who waits for a
 * place: so that is done in another one.  Should we die before, the sweep
 * finds the place of a saga that has ended.
 */
static void
release_places_later(Run *run, Member **members, int n)
{
	Saga	   *sagas[SAGA_MAX_BATCH];

	if (!run->any_final || run->isolation == XACT_READ_COMMITTED)
		return;
	for (int i = 0; i < n; i++)
		sagas[i] = members[i]->saga;
	begin_transaction(run, XACT_READ_COMMITTED, false);
	saga_store_place_release(sagas, n);
	commit_transaction(run);
	MemoryContextSwitchTo(run->memory);
}

/* Hints to shared memory: who waits for these, when to look again. */
static void
tell_others(Run *run, Member **members, int n)
{
	int64		finished[SAGA_MAX_BATCH];
	int			nfinished = 0;
	bool		stuck = false;

	for (int i = 0; i < n; i++)
	{
		Saga	   *saga = members[i]->saga;

		if (saga == NULL)
			continue;
		if (saga->ended)
			continue;
		if (saga_status_is_final(saga->state.status))
			finished[nfinished++] = saga->ref.id;
		else if (!members[i]->active && saga->due_at != DT_NOEND)
			saga_due_at(saga->role, saga->due_at);
		stuck |= members[i]->got_stuck;
	}
	run->result->finished += nfinished;
	if (nfinished > 0)
		saga_waiters_notify(finished, nfinished);
	if (stuck)
		saga_wake_coordinator();
}

static void
run_transaction(Run *run, Member **members, int n)
{
	Saga	   *sagas[SAGA_MAX_BATCH];
	SagaRef		refs[SAGA_MAX_BATCH];
	bool		put_off[SAGA_MAX_BATCH] = {false};

	begin_transaction(run, members[0]->isolation, n > 1);
	MemoryContextSwitchTo(run->memory);
	for (int i = 0; i < n; i++)
	{
		sagas[i] = members[i]->saga;
		refs[i] = members[i]->ref;
	}
	saga_store_lock(sagas, refs, n, run->role, put_off);
	for (int i = 0; i < n; i++)
	{
		Member	   *member = members[i];

		member->saga = sagas[i];
		member->operated = member->wants_place = member->got_stuck = false;
		if (member->saga != NULL)
			advance(run, member);
		else
			member->active = put_off[i];
	}
	write_all(run, members, n);
	commit_transaction(run);
	MemoryContextSwitchTo(run->memory);
	tell_others(run, members, n);
	release_places_later(run, members, n);
}

/* Forget what is known of sagas whose transaction was rolled back. */
static void
forget(Member **members, int n)
{
	for (int i = 0; i < n; i++)
	{
		members[i]->saga = NULL;
		members[i]->active = true;
		members[i]->alone = false;
	}
}

/*
 * Run a transaction; an error comes back as data, with the transaction rolled
 * back, NULL if there was none.
 */
static ErrorData *
try_transaction(Run *run, Member **members, int n)
{
	ErrorData  *volatile error = NULL;

	PG_TRY();
	{
		run_transaction(run, members, n);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(run->memory);
		error = CopyErrorData();
		FlushErrorState();
		saga_executor_doing(NULL);
		saga_owner_abandon();
		saga_call_reset();
		run->driver->abort();
		MemoryContextSwitchTo(run->memory);
		forget(members, n);
	}
	PG_END_TRY();
	return error;
}

/* An error that is not about the saga at hand: the run is over. */
static bool
ends_the_run(const Run *run, const ErrorData *error)
{
	switch (ERRCODE_TO_CATEGORY(error->sqlerrcode))
	{
		case ERRCODE_INSUFFICIENT_RESOURCES:
		case ERRCODE_OPERATOR_INTERVENTION:
			return true;
		default:
			return error->sqlerrcode == ERRCODE_UNDEFINED_OBJECT ||
				error->sqlerrcode == ERRCODE_UNDEFINED_TABLE ||
				!run->driver->worker;
	}
}

/* Nothing was called, and yet it failed: leave this saga, its row stays due,
 * and go on with the others. */
static void
leave_alone(Run *run, Member *member, ErrorData *error)
{
	if (ends_the_run(run, error))
		ReThrowError(error);
	ereport(LOG,
			errcode(error->sqlerrcode),
			errmsg("could not advance saga %lld: %s",
				   (long long) member->ref.id, error->message),
			error->detail ? errdetail_internal("%s", error->detail) : 0);
	member->active = false;
}

/*
 * One saga, alone: an error after its operation was called is a failure of
 * that operation, recorded in a transaction of its own.  A conflict with
 * others (class 40) is first tried again, uncounted.
 */
static void
run_one(Run *run, Member *member)
{
	ErrorData  *error;
	SagaError	commit_error;

	for (int conflicts = 0;; conflicts++)
	{
		member->operated = false;
		error = try_transaction(run, &member, 1);
		if (error == NULL)
			return;
		if (conflicts >= MAX_CONFLICTS ||
			ERRCODE_TO_CATEGORY(error->sqlerrcode) != ERRCODE_TRANSACTION_ROLLBACK)
			break;
	}
	if (!member->operated || !OidIsValid(run->role))
	{
		leave_alone(run, member, error);
		return;
	}
	commit_error = make_error(error->sqlerrcode, error->message, error->detail);
	commit_error.hint = error->hint;
	commit_error.context = error->context;
	run->commit_error = &commit_error;
	member->isolation = XACT_READ_COMMITTED;
	error = try_transaction(run, &member, 1);
	run->commit_error = NULL;
	if (error != NULL)
		leave_alone(run, member, error);
}

static void
run_group(Run *run, Member **members, int n)
{
	ErrorData  *error;

	if (n == 1)
	{
		run_one(run, members[0]);
		return;
	}
	error = try_transaction(run, members, n);
	if (error == NULL)
		return;
	ereport(DEBUG1,
			errmsg("a batch of %d sagas is done again one at a time: %s",
				   n, error->message));
	FreeErrorData(error);
	for (int i = 0; i < n; i++)
		run_one(run, members[i]);
}


/* ---- a run ------------------------------------------------------------------ */

/* Give a saga back: it is final, it waits, or somebody else has it.  When it
 * was woken meanwhile it is looked at again. */
static void
give_back(Member *member)
{
	if (saga_executor_release(member->ref.id))
		member->active = true;
}

/* Give back one that has more to do, for any worker of the role. */
static void
hand_on(Run *run, Member *member)
{
	SagaRef		ref = member->ref;

	ref.alone = member->alone;
	if (member->saga != NULL)
		ref.suspect = member->saga->suspect;
	member->active = false;
	while (saga_executor_release(member->ref.id))
		;
	(void) saga_ring_put(run->role, &ref, 1);
}

/* The members that can share the next transaction. */
static int
choose_group(const Run *run, Member **group)
{
	int			n = 0;

	for (int i = 0; i < run->nmembers; i++)
	{
		Member	   *member = &run->members[i];

		if (!member->active)
			continue;
		if (member->alone || member->isolation != XACT_READ_COMMITTED)
		{
			if (n == 0)
			{
				group[0] = member;
				return 1;
			}
			continue;
		}
		group[n++] = member;
	}
	return n;
}

static void
run_rounds(Run *run)
{
	Member	   *group[SAGA_MAX_BATCH];
	int			rounds = 0;
	int			n;

	while ((n = choose_group(run, group)) > 0)
	{
		CHECK_FOR_INTERRUPTS();
		run_group(run, group, n);
		if (run->soiled && run->driver->worker)
		{
			/* before the next saga's step finds it */
			run->soiled = false;
			saga_call_clean_session();
			MemoryContextSwitchTo(run->memory);
		}
		for (int i = 0; i < n; i++)
		{
			if (!group[i]->active)
				give_back(group[i]);
			else if (run->driver->worker &&
					 (group[i]->misplaced || (group[i]->alone && n > 1)))
				hand_on(run, group[i]);
		}
		if (run->interrupted)
			ereport(ERROR,
					errcode(ERRCODE_QUERY_CANCELED),
					errmsg(run->out_of_time ?
						   "canceling statement due to statement timeout" :
						   "canceling statement due to user request"));
		if (++rounds < MAX_ROUNDS || !run->driver->worker)
			continue;
		for (int i = 0; i < run->nmembers; i++)
			if (run->members[i].active)
				hand_on(run, &run->members[i]);
	}
}

static void
start_run(Run *run, const SagaDriver *driver, Oid role, const SagaRef *refs,
		  int n, SagaRunResult *result)
{
	memset(run, 0, sizeof(Run));
	run->driver = driver;
	run->result = result;
	run->role = role;
	run->memory = AllocSetContextCreate(TopMemoryContext, "saga batch",
										ALLOCSET_DEFAULT_SIZES);
	run->nmembers = n;
	run->members = MemoryContextAllocZero(run->memory, n * sizeof(Member));
	for (int i = 0; i < n; i++)
	{
		run->members[i].ref = refs[i];
		run->members[i].active = true;
		run->members[i].isolation = XACT_READ_COMMITTED;
	}
	saga_catalog_forget_old();
	saga_catalog_use(true);
}

static void
end_run(Run *run)
{
	saga_catalog_use(false);
	MemoryContextDelete(run->memory);
}

void
saga_engine_run(const SagaDriver *driver, SagaRef *refs, int n,
				SagaRunResult *result)
{
	MemoryContext caller = CurrentMemoryContext;
	Run			run;

	Assert(n > 0 && n <= SAGA_MAX_BATCH);
	start_run(&run, driver, GetUserId(), refs, n, result);
	PG_TRY();
	{
		run_rounds(&run);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(caller);
		saga_executor_abandon();
		end_run(&run);
		PG_RE_THROW();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(caller);
	saga_executor_release_all();
	end_run(&run);
	if (driver->worker)
		saga_call_clean_session();
}


/* ---- looking ------------------------------------------------------------------ */

static SagaDuePosition due_position = {DT_NOBEGIN, 0};
static int64 message_position = 0;	/* id of a saga; 0 = from the start */

void
saga_engine_find_from_start(void)
{
	due_position.due_at = DT_NOBEGIN;
	due_position.id = 0;
	message_position = 0;
}

/* Of the "more" behind the first n, keep those that are not among these. */
static int
add_new(SagaRef *refs, int n, int more)
{
	int			found = n;

	for (int i = n; i < n + more; i++)
	{
		bool		known = false;

		for (int k = 0; k < n && !known; k++)
			known = refs[k].id == refs[i].id;
		if (!known)
			refs[found++] = refs[i];
	}
	return found;
}

int
saga_engine_find_due(const SagaDriver *driver, SagaRef *refs, int max,
					 bool *complete, TimestampTz *next_due)
{
	int			n;

	driver->begin();
	n = saga_store_find_due(&due_position, refs, max, complete, next_due);
	if (*complete && n < max)
	{
		int			more = saga_store_find_messages(GetUserId(),
													message_position,
													refs + n, max - n);

		*complete = more < max - n;
		message_position = *complete ? 0 : refs[max - 1].id;
		n = add_new(refs, n, more);
	}
	driver->commit();
	return n;
}

/* For the sweep's callback, which has no argument of its own. */
static TimestampTz sweep_next_due;

static void
note_role(Oid role, bool due, bool message, TimestampTz next_due)
{
	if (due || message)
		saga_pool_want(role);
	if (next_due != DT_NOEND)
		saga_pool_want_at(role, next_due);
	if (next_due < sweep_next_due)
		sweep_next_due = next_due;
}

TimestampTz
saga_engine_sweep(const SagaDriver *driver, bool *unfinished)
{
	sweep_next_due = DT_NOEND;
	driver->begin();
	*unfinished = saga_store_look(note_role);
	saga_store_places_regrant();
	driver->commit();
	return sweep_next_due;
}

/* Change sagas without calling anything: the coordinator's way. */
static void
change_quietly(const SagaDriver *driver, const SagaRef *refs, int n,
			   const SagaLost *lost)
{
	MemoryContext caller = CurrentMemoryContext;
	SagaRunResult result = {0};
	Run			run;

	start_run(&run, driver, InvalidOid, refs, n, &result);
	PG_TRY();
	{
		for (int i = 0; i < n; i++)
		{
			run.lost = lost;
			run_one(&run, &run.members[i]);
		}
	}
	PG_FINALLY();
	{
		MemoryContextSwitchTo(caller);
		end_run(&run);
	}
	PG_END_TRY();
}

void
saga_engine_record_lost(const SagaDriver *driver, const SagaLost *lost)
{
	SagaRef		ref = {.id = lost->what.saga_id, .slot = lost->what.slot};

	change_quietly(driver, &ref, 1, lost);
}

void
saga_engine_apply_messages(const SagaDriver *driver, Oid role)
{
	SagaRef		refs[SAGA_MAX_BATCH];
	int64		after = 0;
	int			n;

	do
	{
		CHECK_FOR_INTERRUPTS();
		driver->begin();
		n = saga_store_find_messages(role, after, refs, SAGA_MAX_BATCH);
		driver->commit();
		if (n > 0)
		{
			after = refs[n - 1].id;
			change_quietly(driver, refs, n, NULL);
		}
	} while (n == SAGA_MAX_BATCH);
}

void
saga_engine_send_alerts(const SagaDriver *driver)
{
	driver->begin();
	(void) saga_store_send_alerts();
	driver->commit();
}
