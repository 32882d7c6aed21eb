/*
 * kinds.c
 *		Owns what timers, signals, child sagas and external steps do.
 *
 * An operation of theirs is begun by making it RUNNING: until a time, until a
 * message, until the child has ended.  The intent and whatever it sends (the
 * child's row, a message to it) are written in one transaction, so that either
 * both are there after a crash or neither is.
 *
 * Parents and children.  A child's row is written by its parent's transaction.
 * From then on they tell each other by messages, each written in the
 * transaction that makes it true:
 *	child:	the child is held, has ended, or cannot go back (to the parent)
 *	recall:	go back (to the child)
 *	release: the parent has been decided or has ended: complete when you are
 *			done (to the child)
 * Each may be repeated: the machine takes only what it expects, and a child
 * that has ended answers again.  A parent never ends before it has told each
 * child that may still run.
 *
 * External steps.  The operation is RUNNING from the offer of its task until an
 * outcome comes: the participant's, which advance.c takes from the task, or a
 * message of the coordinator when a lease is over.  Its time in between is when
 * the task is to be looked at: it has waited too long to be claimed, the action
 * as a whole has taken too long, or its row was locked by a participant when it
 * was to be withdrawn.
 *
 * Remote steps are the same, with the courier as the participant: the queue is
 * that of the server and the role.  So are child steps at a server: the courier
 * begins the child, and answers when that is held or has ended; what a parent
 * would send to a child goes through the same queue.
 */
#include "postgres.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/timestamp.h"

#include "catalog.h"
#include "child.h"
#include "errcodes.h"
#include "farparent.h"
#include "json.h"
#include "kinds.h"
#include "owner.h"
#include "queue.h"
#include "record.h"
#include "server.h"
#include "task.h"
#include "trace.h"

/* How long the answer of a call is waited for that is cancelled. */
#define CANCEL_GRACE	(10 * USECS_PER_SEC)

/* A task whose row somebody has locked is looked at again after so long. */
#define TAKEN_PAUSE		USECS_PER_SEC

/* So many children of a saga that nobody remembers are let go at its end. */
#define MAX_FORGOTTEN	4096

static const SagaStep *
step_of(const Saga *saga, const SagaTask *task)
{
	return &saga->definition->steps[task->step];
}

/* It is handed out from now on. */
static void
start(Saga *saga, const SagaTask *task, TimestampTz due_at)
{
	SagaOpRow  *row = saga_record_row(saga, task);
	TimestampTz now = GetCurrentTimestamp();

	saga_record_op_event(saga, SAGA_EVENT_STARTED, task, due_at);
	if (row->started_at == 0)
		row->started_at = now;
	if (saga->started_at == 0)
		saga->started_at = now;
	saga->suspect = false;
	saga_record_mark(saga, task);
}

static TimestampTz
after(int64 duration)
{
	return duration == 0 ? DT_NOEND : GetCurrentTimestamp() + duration;
}


/* ---- children: what the parent does ------------------------------------ */

static void
record_failure(Saga *saga, const SagaTask *task, bool is_final, int sqlstate,
			   const char *message, const char *detail, const char *hint)
{
	SagaOutcome outcome = {.kind = SAGA_OUTCOME_FAILED,.is_final = is_final};

	outcome.error = saga_record_make_error(sqlstate, message, detail);
	outcome.error.hint = hint;
	outcome.started_at = outcome.finished_at = GetCurrentTimestamp();
	if (!saga_record_outcome(saga, task, &outcome))
		elog(ERROR, "the machine refused a failure of step %d of saga %lld",
			 task->step, (long long) saga->ref.id);
}

/* It has failed: the policy decides whether for good, as of a function's
 * error.  Behind the pivot it does so never. */
static void
fail(Saga *saga, const SagaTask *task, int sqlstate, const char *message,
	 const char *detail, const char *hint)
{
	record_failure(saga, task, false, sqlstate, message, detail, hint);
}

/* It has failed, and would again. */
static void
fail_for_good(Saga *saga, const SagaTask *task, int sqlstate,
			  const char *message, const char *detail, const char *hint)
{
	record_failure(saga, task, true, sqlstate, message, detail, hint);
}

/* Likewise, it has succeeded. */
static void
succeed(Saga *saga, const SagaTask *task, Jsonb *result)
{
	if (!saga_record_success(saga, task, result))
		elog(ERROR, "the machine refused a success of step %d of saga %lld",
			 task->step, (long long) saga->ref.id);
}

/*
 * The definition of a child, checked for its role and input; NULL with the
 * error in *error.  In a subtransaction: what is wrong with it is this step's
 * trouble, not the batch's.
 */
static const SagaDefinition *
find_child_definition(const Saga *saga, const char *name, Jsonb *input,
					  ErrorData **error)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	const SagaDefinition *volatile definition = NULL;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		const SagaDefinition *newest = saga_catalog_newest(name);

		/* who trusted the parent's definition trusts its owner, nobody else */
		definition = saga_catalog_for_begin(name, newest != NULL &&
											newest->owner ==
											saga->definition->owner,
											false);
		saga_definition_check_input(definition, input);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		*error = CopyErrorData();
		FlushErrorState();
		saga_owner_abandon();
		RollbackAndReleaseCurrentSubTransaction();
		definition = NULL;
	}
	PG_END_TRY();
	CurrentResourceOwner = owner;
	MemoryContextSwitchTo(context);
	return definition;
}

/* What a child without a function for it is given. */
static Jsonb *
default_input(const Saga *saga, const SagaTask *task)
{
	Jsonb	   *element = saga_store_element(saga, task->step, task->element);

	return element != NULL ? element : saga->input;
}

static void
report_definition_error(Saga *saga, const SagaTask *task,
						const ErrorData *error)
{
	SagaOutcome outcome = {.kind = SAGA_OUTCOME_FAILED};

	/* the policy decides: a lock that was not to be had may be next time */
	outcome.error = saga_record_make_error(error->sqlerrcode, error->message,
										   error->detail);
	outcome.error.hint = error->hint;
	outcome.started_at = outcome.finished_at = GetCurrentTimestamp();
	(void) saga_record_outcome(saga, task, &outcome);
}

/* May it have to be compensated, once it is done? */
static bool
is_undoable(const Saga *saga, const SagaTask *task)
{
	return saga->definition->rules.steps[task->step].has_compensation;
}

static void
begin_child(Saga *saga, const SagaTask *task, Jsonb *input)
{
	const SagaStep *step = step_of(saga, task);
	const SagaDefinition *definition;
	SagaCallRequest request;
	ErrorData  *data = NULL;
	SagaError	error;
	int64		id;

	definition = find_child_definition(saga, step->child, input, &data);
	if (definition == NULL)
	{
		report_definition_error(saga, task, data);
		return;
	}
	if (!saga_child_may_be(definition, saga->depth, is_undoable(saga, task),
						   &error))
	{
		(void) saga_record_final_failure(saga, task, &error);
		return;
	}
	request = saga_record_request(saga, task);
	id = saga_store_begin_child(saga, task->step, task->element, definition,
								input,
								saga_definition_deadline(definition, 0),
								saga_trace_of_operation(&request));
	start(saga, task, DT_NOEND);
	saga_record_row(saga, task)->child_id = id;
}

/* The child that was begun for this element. */
static int64
child_of(const Saga *saga, const SagaTask *task)
{
	return saga->ops[task->step][task->element][SAGA_OPERATION_ACTION].child_id;
}

static void
operate_child(Saga *saga, const SagaTask *task, const SagaOutcome *outcome)
{
	int64		child = child_of(saga, task);
	SagaGlance	glance;

	switch (task->operation)
	{
		case SAGA_OPERATION_ACTION:
			begin_child(saga, task, outcome != NULL && outcome->result != NULL ?
						outcome->result : default_input(saga, task));
			break;
		case SAGA_OPERATION_COMPENSATION:
			if (saga_store_post_to(child, "recall", NULL, -1, NULL))
				start(saga, task, DT_NOEND);
			else if (saga_store_glance(child, &glance) &&
					 glance.status == SAGA_STATUS_COMPENSATED)
				succeed(saga, task, NULL);
			else
				fail_for_good(saga, task, ERRCODE_SAGA_CHILD_FAILED,
							  psprintf("child saga %lld has ended without its parent",
									   (long long) child),
							  "It can no longer be compensated.",
							  "Undo it by hand, then use saga.skip().");
			break;
		case SAGA_OPERATION_CONFIRMATION:
			if (saga_store_post_to(child, "release", NULL, -1, NULL))
				start(saga, task, DT_NOEND);
			else
				succeed(saga, task, NULL);
			break;
	}
}


/* ---- steps with tasks -------------------------------------------------------- */

/* The moment at which the action as a whole has taken too long. */
static TimestampTz
total_end(const Saga *saga, const SagaTask *task)
{
	int64		total = step_of(saga, task)->total_timeout;

	if (task->operation != SAGA_OPERATION_ACTION || total == 0)
		return DT_NOEND;
	return saga_record_row(saga, task)->started_at + total;
}

/* The moment at which it has waited too long to be claimed. */
static TimestampTz
claim_end(const Saga *saga, const SagaTask *task, TimestampTz offered_at)
{
	int64		claim = step_of(saga, task)->claim_timeout;

	if (task->operation != SAGA_OPERATION_ACTION || claim == 0)
		return DT_NOEND;
	return offered_at + claim;
}

/*
 * The deadline of a saga counts until its pivot succeeds, but one that is out
 * holds it up: so a pivot that nobody has claimed is taken back then.  Once: if
 * the saga does not turn back all the same it is offered again, without end.
 */
static TimestampTz
pivot_end(const Saga *saga, const SagaTask *task, TimestampTz offered_at)
{
	if (task->operation != SAGA_OPERATION_ACTION || saga->state.backward ||
		!saga->definition->rules.steps[task->step].pivot ||
		saga_record_op(saga, task)->unknown ||
		saga->state.deadline <= offered_at ||
		saga->state.deadline == SAGA_TIME_NEVER)
		return DT_NOEND;
	return saga->state.deadline;
}

/* When a task that nobody has claimed is to be looked at. */
static TimestampTz
ready_end(const Saga *saga, const SagaTask *task, TimestampTz offered_at)
{
	TimestampTz end = total_end(saga, task);
	TimestampTz claim = claim_end(saga, task, offered_at);
	TimestampTz pivot = pivot_end(saga, task, offered_at);

	return Min(end, Min(claim, pivot));
}

/*
 * Whose word it is that tasks are offered: the owner's of the definition, or, if
 * that was dropped, of whoever made the version.  InvalidOid if he is gone.
 */
static Oid
definer_of(const Saga *saga)
{
	const SagaDefinition *definition = saga->definition;

	return definition->definition_id != 0 ? definition->owner :
		get_role_oid(definition->created_by, true);
}

/* What has been done must be undoable, so only actions ask.  Whether a role may
 * use a server is found out by who connects. */
static bool
may_offer(const Saga *saga, const SagaTask *task, const SagaQueue *queue)
{
	return task->operation != SAGA_OPERATION_ACTION ||
		saga_queue_is_servers(queue->id) ||
		saga_queue_may_offer(queue, definer_of(saga));
}

/* Where the operations of the step are offered; NULL if there is no such queue.
 * A server has one for each role. */
static const SagaQueue *
find_queue(const Saga *saga, const SagaTask *task)
{
	const SagaStep *step = step_of(saga, task);

	if (step->server != NULL)
		return &saga_server_queue(step->server, saga->role)->queue;
	return saga_queue_find(step->queue);
}

static void
offer(Saga *saga, const SagaTask *task, const Jsonb *input)
{
	const SagaStep *step = step_of(saga, task);
	const SagaQueue *queue = find_queue(saga, task);
	SagaOpRow  *row = saga_record_row(saga, task);
	TimestampTz now = GetCurrentTimestamp();

	if (queue == NULL)
	{
		fail(saga, task, ERRCODE_UNDEFINED_OBJECT,
			 psprintf("queue \"%s\" does not exist", step->queue), NULL,
			 "Create it with saga.create_queue(), then use saga.retry().");
		return;
	}
	if (!may_offer(saga, task, queue))
	{
		fail(saga, task, ERRCODE_INSUFFICIENT_PRIVILEGE,
			 psprintf("permission denied for queue \"%s\"", step->queue),
			 "Whoever owns the saga's definition may not offer tasks to it.",
			 "Its owner can allow it with saga.grant_offer(); then use saga.retry().");
		return;
	}
	if (row->started_at == 0)
		row->started_at = now;
	if (total_end(saga, task) <= now)
	{
		fail_for_good(saga, task, ERRCODE_SAGA_TASK_TIMEOUT,
					  psprintf("step \"%s\" was not done in time", step->name),
					  NULL, NULL);
		return;
	}
	if (saga_task_is_too_large(saga, task, input))
	{
		fail_for_good(saga, task, ERRCODE_SAGA_BAD_DATA,
					  psprintf("the data for the task of step \"%s\" are too large",
							   step->name),
					  "The saga's input and the results of the steps before it are its payload, which has at most 100 MB.",
					  "Keep large data in a table, and pass their key.");
		return;
	}
	row->task_id = saga_task_offer(saga, task, queue, input);
	start(saga, task, ready_end(saga, task, now));
}

/* What is not to be attempted again before its time is over fails then. */
static void
limit_wait(Saga *saga, const SagaTask *task)
{
	SagaOpState *op = saga_record_op(saga, task);
	TimestampTz end = total_end(saga, task);

	if (op->status != SAGA_OP_WAITING || op->due_at <= end)
		return;
	op->due_at = end;
	saga_record_mark(saga, task);
	saga_machine_loaded(&saga->definition->rules, &saga->state);
}

/* Look at it again then. */
static void
look_again(Saga *saga, const SagaTask *task, TimestampTz when)
{
	saga_record_op(saga, task)->due_at =
		when == DT_NOEND ? SAGA_TIME_NEVER : when;
	saga_record_mark(saga, task);
	saga_machine_loaded(&saga->definition->rules, &saga->state);
}

static void
give_up(Saga *saga, const SagaTask *task)
{
	SagaOutcome revoked = {.kind = SAGA_OUTCOME_REVOKED};

	if (!saga_record_outcome(saga, task, &revoked))
		elog(ERROR, "the machine refused to give up step %d of saga %lld",
			 task->step, (long long) saga->ref.id);
}

/* Take back a task that nobody has claimed. */
static void
withdraw(Saga *saga, const SagaTask *task)
{
	saga_task_withdraw(saga_record_row(saga, task)->task_id);
	give_up(saga, task);
}

static void
fail_unclaimed(Saga *saga, const SagaTask *task, bool is_final)
{
	SagaOutcome outcome = {
		.kind = SAGA_OUTCOME_FAILED,
		.is_final = is_final,
		.is_passing = !is_final,
		.timed_out = true
	};
	const SagaStep *step = step_of(saga, task);

	saga_task_withdraw(saga_record_row(saga, task)->task_id);
	outcome.error =
		saga_record_make_error(ERRCODE_SAGA_TASK_TIMEOUT,
							   is_final ?
							   psprintf("step \"%s\" was not done in time", step->name) :
							   psprintf("nobody claimed the task of step \"%s\" in time",
										step->name),
							   step->server != NULL ?
							   psprintf("It is to be done on server \"%s\".",
										step->server) :
							   psprintf("It was offered in queue \"%s\".",
										step->queue));
	outcome.error.hint = step->server != NULL ?
		"View saga.servers shows whether it can be reached." :
		"View saga.queues shows who takes tasks of it.";
	outcome.started_at = outcome.finished_at = GetCurrentTimestamp();
	(void) saga_record_outcome(saga, task, &outcome);
	limit_wait(saga, task);
}

/* Is a child of it in another database? */
static bool
has_far_child(const SagaStep *step)
{
	return step->kind == SAGA_KIND_CHILD && step->server != NULL;
}

/* Tell who has claimed it that nobody needs it; a child that it has begun is
 * asked to go back. */
static void
cancel_task(Saga *saga, const SagaTask *task)
{
	saga_task_cancel(saga_record_row(saga, task)->task_id);
	if (has_far_child(step_of(saga, task)) &&
		task->operation == SAGA_OPERATION_ACTION)
		saga_task_offer_recall(saga, task, find_queue(saga, task));
}

/* A task that is claimed, and is not to be answered any more. */
static void
fail_claimed(Saga *saga, const SagaTask *task, const SagaTaskInfo *info,
			 bool is_final)
{
	const SagaQueue *queue = find_queue(saga, task);
	SagaOutcome outcome;

	saga_task_expire(saga_record_row(saga, task)->task_id);
	if (queue != NULL)
		saga_qstate_answered(queue->id, queue->name, &queue->breaker, 0, 0, 1);
	saga_task_lease_outcome(info->participant, &outcome);
	if (is_final)
	{
		outcome.error =
			saga_record_make_error(ERRCODE_SAGA_TASK_TIMEOUT,
								   psprintf("step \"%s\" was not done in time",
											step_of(saga, task)->name),
								   psprintf("Participant \"%s\" had claimed it, so the outcome is not known.",
											info->participant));
		outcome.is_final = true;
	}
	outcome.started_at = info->claimed_at;
	outcome.finished_at = GetCurrentTimestamp();
	(void) saga_record_outcome(saga, task, &outcome);
	limit_wait(saga, task);
}

static void
look_at_ready(Saga *saga, const SagaTask *task, const SagaTaskInfo *info)
{
	TimestampTz now = GetCurrentTimestamp();

	if (saga_record_op(saga, task)->cancelled ||
		pivot_end(saga, task, info->offered_at) <= now)
		withdraw(saga, task);
	else if (total_end(saga, task) <= now)
		fail_unclaimed(saga, task, true);
	else if (claim_end(saga, task, info->offered_at) <= now)
		fail_unclaimed(saga, task, false);
	else
		look_again(saga, task, ready_end(saga, task, info->offered_at));
}

/*
 * The same of one that is claimed.  A call is cancelled over there by then: its
 * answer is waited for, since what is done there after the saga has gone on
 * without it nobody undoes.
 */
static TimestampTz
claimed_end(const Saga *saga, const SagaTask *task)
{
	TimestampTz end = total_end(saga, task);

	return step_of(saga, task)->server == NULL || end == DT_NOEND ? end :
		end + CANCEL_GRACE;
}

static void
look_at_claimed(Saga *saga, const SagaTask *task, const SagaTaskInfo *info)
{
	TimestampTz now = GetCurrentTimestamp();

	if (claimed_end(saga, task) <= now)
		fail_claimed(saga, task, info, true);
	else if (info->lease_until <= now)
		fail_claimed(saga, task, info, false);
	else
	{
		TimestampTz again = claimed_end(saga, task);

		if (saga_record_op(saga, task)->cancelled && !info->cancelled)
			cancel_task(saga, task);
		look_again(saga, task, again);
	}
}

/* The task's row is not there: somebody has deleted it. */
static void
fail_gone(Saga *saga, const SagaTask *task)
{
	SagaOutcome outcome = {
		.kind = SAGA_OUTCOME_FAILED,.is_passing = true,.unknown = true
	};

	outcome.error =
		saga_record_make_error(ERRCODE_DATA_CORRUPTED,
							   psprintf("task %lld is gone",
										(long long) saga_record_row(saga, task)->task_id),
							   "The outcome of the attempt is not known.");
	outcome.started_at = outcome.finished_at = GetCurrentTimestamp();
	(void) saga_record_outcome(saga, task, &outcome);
}

/* The time has come to look at the task of a RUNNING operation. */
static void
look_at_task(Saga *saga, const SagaTask *task)
{
	SagaTaskInfo info;

	switch (saga_task_look(saga_record_row(saga, task)->task_id, &info))
	{
		case SAGA_TASK_TAKEN:
			look_again(saga, task, GetCurrentTimestamp() + TAKEN_PAUSE);
			break;
		case SAGA_TASK_READY:
			look_at_ready(saga, task, &info);
			break;
		case SAGA_TASK_CLAIMED:
			look_at_claimed(saga, task, &info);
			break;
		case SAGA_TASK_ANSWERED:
			/* since this transaction began: whoever did that wakes the saga */
			look_again(saga, task, DT_NOEND);
			break;
		case SAGA_TASK_WITHDRAWN:
			give_up(saga, task);
			break;
		case SAGA_TASK_GONE:
			fail_gone(saga, task);
			break;
	}
}

/* Nobody needs it any more: at once if nobody has claimed it. */
static void
revoke_task(Saga *saga, const SagaTask *task)
{
	TimestampTz again = total_end(saga, task);
	SagaTaskInfo info;

	switch (saga_task_look(saga_record_row(saga, task)->task_id, &info))
	{
		case SAGA_TASK_READY:
			withdraw(saga, task);
			return;
		case SAGA_TASK_WITHDRAWN:
			give_up(saga, task);
			return;
		case SAGA_TASK_CLAIMED:
			if (!info.cancelled)
				cancel_task(saga, task);
			break;
		case SAGA_TASK_ANSWERED:
			break;
		case SAGA_TASK_TAKEN:
		case SAGA_TASK_GONE:
			again = GetCurrentTimestamp() + TAKEN_PAUSE;
			break;
	}
	saga_record_op_event(saga, SAGA_EVENT_CANCELLED, task, DT_NOEND);
	look_again(saga, task, again);
}

/* Call "each" for the external operations that are out; it may end them. */
static void
for_tasks_out(Saga *saga, void (*each) (Saga *saga, const SagaTask *task))
{
	for (int step = 0; step < saga->state.nsteps; step++)
	{
		if (!saga_step_has_tasks(&saga->definition->steps[step]))
			continue;
		for (int i = 0; i < saga->state.steps[step].nelements; i++)
			for (int op = 0; op < SAGA_NOPERATION; op++)
			{
				SagaTask	task = {.step = step,.element = i,.operation = op};

				if (saga_record_op(saga, &task)->status == SAGA_OP_RUNNING)
					each(saga, &task);
			}
	}
}

static void
withdraw_if_ready(Saga *saga, const SagaTask *task)
{
	SagaTaskInfo info;

	if (saga_task_look(saga_record_row(saga, task)->task_id,
					   &info) == SAGA_TASK_READY)
		withdraw(saga, task);
}

static void
withdraw_pivot(Saga *saga, const SagaTask *task)
{
	if (saga->definition->rules.steps[task->step].pivot &&
		task->operation == SAGA_OPERATION_ACTION)
		withdraw_if_ready(saga, task);
}

/* The saga has ended all the same: its operations stay as they are. */
static void
withdraw_at_end(Saga *saga, const SagaTask *task)
{
	int64		id = saga_record_row(saga, task)->task_id;
	SagaTaskInfo info;

	switch (saga_task_look(id, &info))
	{
		case SAGA_TASK_READY:
			saga_task_withdraw(id);
			break;
		case SAGA_TASK_CLAIMED:
			/* one that follows a child does not end by itself */
			if (has_far_child(step_of(saga, task)))
				saga_task_withdraw(id);
			else if (!info.cancelled)
				saga_task_cancel(id);
			break;
		default:
			break;
	}
}

void
saga_kind_answered(Saga *saga, const SagaTask *task)
{
	if (saga_step_has_tasks(step_of(saga, task)))
		limit_wait(saga, task);
}

void
saga_kind_given_back(Saga *saga, const SagaTask *task, TimestampTz offered_at)
{
	TimestampTz when = ready_end(saga, task, offered_at);
	SagaTime	due_at = when == DT_NOEND ? SAGA_TIME_NEVER : when;
	const SagaOpState *op = saga_record_op(saga, task);

	if (op->cancelled)
		look_again(saga, task, GetCurrentTimestamp());
	else if (saga->state.status == SAGA_STATUS_PAUSED)
		withdraw_if_ready(saga, task);
	else if (op->due_at != due_at)
		look_again(saga, task, when);
}

/* From now on: what is retried has all of its time again. */
static void
renew_total(Saga *saga, const SagaTask *task)
{
	SagaOpState *op = saga_record_op(saga, task);

	if (op->status != SAGA_OP_WAITING || op->failures > 0)
		return;
	saga_record_row(saga, task)->started_at = GetCurrentTimestamp();
	saga_record_mark(saga, task);
}

void
saga_kind_retrying(Saga *saga)
{
	for (int step = 0; step < saga->state.nsteps; step++)
	{
		if (saga->definition->steps[step].total_timeout == 0)
			continue;
		for (int i = 0; i < saga->state.steps[step].nelements; i++)
		{
			SagaTask	task = {.step = step,.element = i};

			renew_total(saga, &task);
		}
	}
}

void
saga_kind_pausing(Saga *saga)
{
	for_tasks_out(saga, withdraw_if_ready);
}

/* It was given back meanwhile, maybe, when nobody could have it. */
static void
announce_again(Saga *saga, const SagaTask *task)
{
	const SagaQueue *queue = find_queue(saga, task);

	if (queue != NULL)
		saga_qstate_offered(queue->id, queue->name, 0);
}

void
saga_kind_resuming(Saga *saga)
{
	for_tasks_out(saga, announce_again);
}

static void
imagine_withdrawn(Saga *saga, const SagaTask *task)
{
	SagaEvent	event = saga_record_make_event(SAGA_EVENT_REVOKED, task);

	if (saga->definition->rules.steps[task->step].pivot &&
		task->operation == SAGA_OPERATION_ACTION &&
		saga_task_is_ready(saga_record_row(saga, task)->task_id))
		(void) saga_record_event(saga, &event);
}

void
saga_kind_imagine_turning_back(Saga *saga)
{
	if (saga->definition->has_pivot && !saga->state.backward)
		for_tasks_out(saga, imagine_withdrawn);
}

void
saga_kind_turning_back(Saga *saga)
{
	if (saga->definition->has_pivot && !saga->state.backward)
		for_tasks_out(saga, withdraw_pivot);
}


/* ---- operations ---------------------------------------------------------- */

/* When it began, if that is not known yet; before its end is computed, so that
 * it never seems to have taken less than it was to take. */
static void
note_beginning(Saga *saga, const SagaTask *task, TimestampTz when)
{
	SagaOpRow  *row = saga_record_row(saga, task);

	if (row->started_at == 0)
		row->started_at = when;
}

/* "outcome" and "time" are what the function has said that was called for it. */
static void
start_timer(Saga *saga, const SagaTask *task, const SagaOutcome *outcome,
			TimestampTz time)
{
	TimestampTz now = GetCurrentTimestamp();

	note_beginning(saga, task, outcome != NULL ? outcome->started_at : now);
	start(saga, task, time != 0 ? time : now + step_of(saga, task)->duration);
}

static void
start_signal(Saga *saga, const SagaTask *task)
{
	SagaOpRow  *row = saga_record_row(saga, task);

	if (saga_record_op(saga, task)->signalled)
	{
		succeed(saga, task, row->result);
		return;
	}
	note_beginning(saga, task, GetCurrentTimestamp());
	start(saga, task, after(step_of(saga, task)->duration));
}

void
saga_kind_succeeded(Saga *saga, const SagaTask *task,
					const SagaOutcome *outcome, TimestampTz time)
{
	SagaStepKind kind = step_of(saga, task)->kind;

	if (saga_step_has_tasks(step_of(saga, task)))
		offer(saga, task, outcome != NULL ? outcome->result : NULL);
	else if (kind == SAGA_KIND_CHILD)
		operate_child(saga, task, outcome);
	else if (kind == SAGA_KIND_TIMER &&
			 task->operation == SAGA_OPERATION_ACTION)
		start_timer(saga, task, outcome, time);
	else if (kind == SAGA_KIND_SIGNAL &&
			 task->operation == SAGA_OPERATION_ACTION)
		start_signal(saga, task);
	else if (outcome != NULL)
	{
		/* its effect must not commit without its record */
		if (!saga_record_outcome(saga, task, outcome))
			elog(ERROR, "the machine refused a success of step %d of saga %lld",
				 task->step, (long long) saga->ref.id);
	}
	else
		succeed(saga, task, NULL);
}

static void
expire_signal(Saga *saga, const SagaTask *task)
{
	const SagaStep *step = step_of(saga, task);

	if (step->fallback != NULL)
		succeed(saga, task, step->fallback);
	else
		fail(saga, task, ERRCODE_SAGA_SIGNAL_TIMEOUT,
					  psprintf("no signal \"%s\" came in time", step->name),
					  NULL, NULL);
}

void
saga_kind_expire(Saga *saga, const SagaTask *task)
{
	const SagaOpState *op = saga_record_op(saga, task);

	if (op->status != SAGA_OP_RUNNING)
		fail(saga, task, ERRCODE_SAGA_LOCK_TIMEOUT,
					  "the saga's lock did not come in time",
					  psprintf("Step \"%s\" waited for it.",
							   step_of(saga, task)->name),
					  "View saga.locks shows who has it.");
	else if (step_of(saga, task)->kind == SAGA_KIND_SIGNAL)
		expire_signal(saga, task);
	else if (saga_step_has_tasks(step_of(saga, task)))
		look_at_task(saga, task);
	else
		succeed(saga, task, NULL);
}

void
saga_kind_revoke(Saga *saga, const SagaTask *task)
{
	SagaOutcome revoked = {.kind = SAGA_OUTCOME_REVOKED};

	if (saga_step_has_tasks(step_of(saga, task)))
	{
		revoke_task(saga, task);
		return;
	}
	switch (step_of(saga, task)->kind)
	{
		case SAGA_KIND_TIMER:
		case SAGA_KIND_SIGNAL:
			(void) saga_record_outcome(saga, task, &revoked);
			return;
		case SAGA_KIND_CHILD:
			/* one that has ended has already sent word */
			(void) saga_store_post_to(child_of(saga, task), "recall", NULL, -1,
									  NULL);
			break;
		case SAGA_KIND_EXTERNAL:
		case SAGA_KIND_REMOTE:
		case SAGA_KIND_LOCAL:
			break;				/* who takes the branch sees the mark */
	}
	saga_record_op_event(saga, SAGA_EVENT_CANCELLED, task, DT_NOEND);
	saga_record_mark(saga, task);
}


/* ---- signals --------------------------------------------------------------- */

const char *
saga_kind_signal(Saga *saga, const SagaMessage *message)
{
	SagaTask	task = {.operation = SAGA_OPERATION_ACTION};
	SagaEvent	event;

	task.step = message->step == NULL ? -1 :
		saga_definition_step(saga->definition, message->step);
	if (task.step < 0 || step_of(saga, &task)->kind != SAGA_KIND_SIGNAL)
		return "refused: the definition has no such signal step";
	if (saga->state.backward && saga->state.goal >= 0 &&
		saga_rules_is_before(&saga->definition->rules, saga->state.goal,
							 task.step))
		return NULL;
	if (saga_record_op(saga, &task)->status == SAGA_OP_RUNNING)
	{
		succeed(saga, &task, message->payload);
		return "done";
	}
	event = saga_record_make_event(SAGA_EVENT_SIGNALLED, &task);
	if (saga_record_event(saga, &event) != SAGA_VERDICT_APPLIED)
		return saga->state.backward ?
			"refused: it was compensating already" :
			"refused: it had come already, or its time was over";
	saga_record_row(saga, &task)->result = message->payload;
	saga_record_mark(saga, &task);
	return "done";
}


/* ---- children: messages ------------------------------------------------------ */

/* A child and the place in its parent where it was begun. */
typedef struct ChildReport
{
	SagaTask	task;			/* of the parent: step and element */
	SagaChildReport said;
} ChildReport;

static void
tell_parent(const Saga *saga, bool refused)
{
	Jsonb	   *report = saga_child_make_report(saga, refused, NULL);

	if (saga->parent_id == SAGA_FAR_PARENT)
		saga_far_parent_report(saga->ref.id, report);
	else
		(void) saga_store_post_to(saga->parent_id, "child", NULL,
								  saga->parent_element, report);
}

/* Is this where the child was begun? */
static bool
is_child_of(const Saga *saga, const SagaTask *task, int64 child)
{
	return task->step >= 0 && task->step < saga->state.nsteps &&
		task->element >= 0 &&
		task->element < saga->state.steps[task->step].nelements &&
		child_of(saga, task) == child;
}

/* Where the child was begun; the position that it knows is from before its
 * parent moved to another version. */
static bool
find_child_step(const Saga *saga, SagaTask *task, int64 child)
{
	if (is_child_of(saga, task, child))
		return true;
	for (task->step = 0; task->step < saga->state.nsteps; task->step++)
		if (saga->definition->steps[task->step].kind == SAGA_KIND_CHILD &&
			is_child_of(saga, task, child))
			return true;
	return false;
}

/* False if it is not what tell_parent() makes, or of no step of this saga. */
static bool
read_report(const Saga *saga, const SagaMessage *message, ChildReport *report)
{
	JsonbContainer *object;
	JsonbValue	value;

	if (message->payload == NULL || !JB_ROOT_IS_OBJECT(message->payload))
		return false;
	object = &message->payload->root;
	memset(&report->task, 0, sizeof(report->task));
	if (!saga_child_read_report(object, &report->said) ||
		!saga_json_get(object, "step", &value) || value.type != jbvNumeric)
		return false;
	report->task.step = (int) saga_json_int(&value);
	report->task.element = message->element;
	return find_child_step(saga, &report->task, report->said.id);
}

/* What the child says, to the operation that waits for it. */
static void
take_report(Saga *saga, const ChildReport *report)
{
	const SagaTask *task = &report->task;
	SagaOutcome outcome;

	if (saga_child_outcome(&report->said, task->operation,
						   saga_record_op(saga, task)->cancelled, NULL,
						   &outcome) &&
		!saga_record_outcome(saga, task, &outcome))
		elog(ERROR, "the machine refused what child saga %lld of saga %lld reports",
			 (long long) report->said.id, (long long) saga->ref.id);
}

const char *
saga_kind_child_ended(Saga *saga, const SagaMessage *message)
{
	ChildReport report;

	/* what was asked before may just have ended it; it tells its children */
	if (saga_status_is_final(saga->state.status))
		return "refused: the saga had ended";
	if (!read_report(saga, message, &report))
		return "refused: it is about no child of this saga";
	for (int i = 0; i < SAGA_NOPERATION; i++)
	{
		report.task.operation = (SagaOperation) i;
		if (saga_record_op(saga, &report.task)->status == SAGA_OP_RUNNING)
		{
			take_report(saga, &report);
			break;
		}
	}
	return "done";
}

const char *
saga_kind_recall(Saga *saga)
{
	SagaEvent	event = saga_record_make_event(SAGA_EVENT_RECALL, NULL);
	SagaError	error;

	saga_kind_turning_back(saga);
	switch (saga_record_event(saga, &event))
	{
		case SAGA_VERDICT_APPLIED:
			error = saga_record_make_error(ERRCODE_SAGA_CANCELLED,
										   saga->parent_id == SAGA_FAR_PARENT ?
										   "its parent, a saga of another database, goes back" :
										   psprintf("its parent, saga %lld, goes back",
													(long long) saga->parent_id),
										   NULL);
			saga_record_cause(saga, NULL, &error);
			break;
		case SAGA_VERDICT_PIVOT:
			tell_parent(saga, true);
			break;
		default:
			break;				/* it goes back already */
	}
	return "done";
}

const char *
saga_kind_release(Saga *saga)
{
	SagaEvent	event = saga_record_make_event(SAGA_EVENT_RELEASE, NULL);

	(void) saga_record_event(saga, &event);
	return "done";
}

void
saga_kind_answer_parent(Saga *saga)
{
	if (saga->parent_id != 0)
		tell_parent(saga, false);
}

/* May the child of this element still run, or be held? */
static bool
may_need_release(const Saga *saga, int step, int element)
{
	const SagaElementState *state = &saga->state.steps[step].elements[element];
	const SagaOpState *action = &state->op[SAGA_OPERATION_ACTION];

	if (saga->definition->steps[step].server != NULL)
	{
		/* which one it is, is known there */
		if (action->status != SAGA_OP_RUNNING &&
			action->status != SAGA_OP_SUCCEEDED && !action->unknown)
			return false;
	}
	else if (saga->ops[step][element][SAGA_OPERATION_ACTION].child_id == 0)
		return false;
	return state->op[SAGA_OPERATION_COMPENSATION].status != SAGA_OP_SUCCEEDED &&
		state->op[SAGA_OPERATION_CONFIRMATION].status != SAGA_OP_SUCCEEDED;
}

/* Of children that memory does not know: of earlier rounds, or because the
 * saga could not be loaded. */
static void
release_forgotten(const Saga *saga)
{
	SagaRef    *refs = palloc(MAX_FORGOTTEN * sizeof(SagaRef));
	int			n = saga_store_find_children(saga->ref.id, refs, MAX_FORGOTTEN);

	for (int i = 0; i < n; i++)
		(void) saga_store_post_to(refs[i].id, "release", NULL, -1, NULL);
	pfree(refs);
}

/* The saga is final: nobody decides about its children any more. */
static void
release_children(const Saga *saga)
{
	if (saga->definition == NULL || saga->broken != NULL)
	{
		release_forgotten(saga);
		return;
	}
	if (saga->definition->rules.has_savepoints &&
		saga->definition->has_children)
		release_forgotten(saga);
	for (int step = 0; step < saga->state.nsteps; step++)
	{
		if (saga->definition->steps[step].kind != SAGA_KIND_CHILD ||
			saga->definition->steps[step].server != NULL)
			continue;
		for (int i = 0; i < saga->state.steps[step].nelements; i++)
			if (may_need_release(saga, step, i))
				(void) saga_store_post_to(saga->ops[step][i][SAGA_OPERATION_ACTION].child_id,
										  "release", NULL, -1, NULL);
	}
}

/* Was there a round before the present one, which memory does not know? */
static bool
has_earlier_rounds(const Saga *saga)
{
	if (!saga->definition->rules.has_savepoints)
		return false;
	for (int step = 0; step < saga->state.nsteps; step++)
		if (saga->state.recoveries[step] > 0)
			return true;
	return false;
}

/* Are there, maybe, children of this step that are to be let go? */
static bool
step_may_need_release(const Saga *saga, int step)
{
	if (saga->broken != NULL || has_earlier_rounds(saga))
		return true;
	for (int i = 0; i < saga->state.steps[step].nelements; i++)
		if (may_need_release(saga, step, i))
			return true;
	return false;
}

/* Likewise of children in other databases: once for each server, since all of
 * them are known there. */
static void
release_far_children(const Saga *saga)
{
	const SagaDefinition *definition = saga->definition;
	List	   *servers = NIL;

	if (definition == NULL || !definition->has_remote)
		return;
	for (int step = 0; step < definition->rules.nsteps; step++)
	{
		const SagaQueue *queue;

		if (!has_far_child(&definition->steps[step]) ||
			!step_may_need_release(saga, step))
			continue;
		queue = &saga_server_queue(definition->steps[step].server,
								   saga->role)->queue;
		if (list_member_int(servers, queue->id))
			continue;
		servers = lappend_int(servers, queue->id);
		saga_task_offer_release(saga, definition->steps[step].name, queue);
	}
	list_free(servers);
}

void
saga_kind_status_changed(Saga *saga)
{
	SagaStatus	status = saga->state.status;

	if (saga_status_is_final(status))
	{
		release_children(saga);
		release_far_children(saga);
		if (saga->definition != NULL && saga->broken == NULL)
			for_tasks_out(saga, withdraw_at_end);
	}
	if (saga->parent_id != 0 &&
		(status == SAGA_STATUS_HELD || saga_status_is_final(status)))
		tell_parent(saga, false);
}
