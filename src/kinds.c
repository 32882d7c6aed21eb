/*
 * kinds.c
 *		Owns what timers, signals and child sagas do.
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
 */
#include "postgres.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/timestamp.h"

#include "catalog.h"
#include "errcodes.h"
#include "json.h"
#include "kinds.h"
#include "owner.h"
#include "record.h"

/* A tree of sagas that is deeper than this is taken for one without end. */
#define MAX_DEPTH		1000

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

static void
begin_child(Saga *saga, const SagaTask *task, Jsonb *input)
{
	const SagaStep *step = step_of(saga, task);
	const SagaDefinition *definition;
	ErrorData  *error = NULL;
	int64		id;

	if (saga->depth >= MAX_DEPTH)
	{
		fail_for_good(saga, task, ERRCODE_SAGA_BAD_DATA,
					  psprintf("child sagas are nested more than %d deep",
							   MAX_DEPTH),
					  "A definition that begins itself, perhaps through others, must come to an end.",
					  "Give the child step a condition: only_if.");
		return;
	}
	definition = find_child_definition(saga, step->child, input, &error);
	if (definition == NULL)
	{
		report_definition_error(saga, task, error);
		return;
	}
	if (definition->has_pivot &&
		saga->definition->rules.steps[task->step].has_compensation)
	{
		fail_for_good(saga, task, ERRCODE_SAGA_BAD_DATA,
					  psprintf("child saga definition \"%s\" has a pivot",
							   step->child),
					  "A child that has passed its pivot cannot be undone, and its parent may still have to.",
					  "Make the child step the pivot, or put it behind the pivot.");
		return;
	}
	id = saga_store_begin_child(saga, task->step, task->element, definition,
								input,
								saga_definition_deadline(definition, 0));
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


/* ---- operations ---------------------------------------------------------- */

static void
start_timer(Saga *saga, const SagaTask *task, TimestampTz time)
{
	int64		duration = step_of(saga, task)->duration;

	/* "time" is 0 where no function was called for it */
	start(saga, task, time != 0 ? time : GetCurrentTimestamp() + duration);
}

static void
start_signal(Saga *saga, const SagaTask *task)
{
	SagaOpRow  *row = saga_record_row(saga, task);

	if (saga_record_op(saga, task)->signalled)
		succeed(saga, task, row->result);
	else
		start(saga, task, after(step_of(saga, task)->duration));
}

void
saga_kind_succeeded(Saga *saga, const SagaTask *task,
					const SagaOutcome *outcome, TimestampTz time)
{
	SagaStepKind kind = step_of(saga, task)->kind;

	if (kind == SAGA_KIND_CHILD)
		operate_child(saga, task, outcome);
	else if (kind == SAGA_KIND_TIMER &&
			 task->operation == SAGA_OPERATION_ACTION)
		start_timer(saga, task, time);
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
	else
		succeed(saga, task, NULL);
}

void
saga_kind_revoke(Saga *saga, const SagaTask *task)
{
	SagaOutcome revoked = {.kind = SAGA_OUTCOME_REVOKED};

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

/* What a child says of itself. */
typedef struct ChildReport
{
	int64		id;
	SagaTask	task;			/* of the parent: step and element */
	SagaStatus	status;
	bool		refused;		/* it cannot go back */
	Jsonb	   *result;
	const char *cause;			/* why it went back; may be NULL */
} ChildReport;

/* The result of a saga is that of its last step that has succeeded; so says
 * view saga.sagas. */
static Jsonb *
result_of(const Saga *saga)
{
	for (int i = saga->state.nsteps - 1; i >= 0; i--)
		if (saga->state.steps[i].count[SAGA_OPERATION_ACTION][SAGA_OP_SUCCEEDED] > 0)
			return saga->results[i];
	return NULL;
}

static void
tell_parent(const Saga *saga, bool refused)
{
	SagaJsonWriter writer = NULL;

	saga_json_begin_object(&writer);
	saga_json_put_int(&writer, "saga_id", saga->ref.id);
	saga_json_put_int(&writer, "step", saga->parent_step);
	saga_json_put_string(&writer, "status",
						 saga_status_name(saga->state.status));
	if (refused)
		saga_json_put_bool(&writer, "refused", true);
	if (saga->definition != NULL && saga->results != NULL)
		saga_json_put_jsonb(&writer, "result", result_of(saga));
	saga_json_put_jsonb(&writer, "cause", saga->cause);
	(void) saga_store_post_to(saga->parent_id, "child", NULL,
							  saga->parent_element,
							  saga_json_finish_object(&writer));
}

static char *
describe_cause(JsonbContainer *cause)
{
	JsonbValue	message;
	JsonbValue	sqlstate;

	if (!saga_json_get(cause, "message", &message) ||
		!saga_json_get(cause, "sqlstate", &sqlstate))
		return NULL;
	return psprintf("%s (%s)", saga_json_string(&message),
					saga_json_string(&sqlstate));
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
	JsonbValue *result;

	memset(report, 0, sizeof(*report));
	if (message->payload == NULL || !JB_ROOT_IS_OBJECT(message->payload))
		return false;
	object = &message->payload->root;
	if (!saga_json_get(object, "saga_id", &value) || value.type != jbvNumeric)
		return false;
	report->id = saga_json_int(&value);
	if (!saga_json_get(object, "step", &value) || value.type != jbvNumeric)
		return false;
	report->task.step = (int) saga_json_int(&value);
	report->task.element = message->element;
	if (!saga_json_get(object, "status", &value) || value.type != jbvString ||
		!saga_status_parse(saga_json_string(&value), &report->status))
		return false;
	report->refused = saga_json_get(object, "refused", &value);
	result = getKeyJsonValueFromContainer(object, "result", strlen("result"),
										  NULL);
	if (result != NULL)
		report->result = JsonbValueToJsonb(result);
	if (saga_json_get(object, "cause", &value) && saga_json_is_object(&value))
		report->cause = describe_cause(value.val.binary.data);
	return find_child_step(saga, &report->task, report->id);
}

static void
action_has_ended(Saga *saga, const ChildReport *report)
{
	SagaOutcome revoked = {.kind = SAGA_OUTCOME_REVOKED};

	if (report->refused)
		return;					/* it goes on, and reports again */
	if (report->status == SAGA_STATUS_HELD ||
		report->status == SAGA_STATUS_COMPLETED)
		succeed(saga, &report->task, report->result);
	else if (report->status == SAGA_STATUS_COMPENSATED &&
			 saga_record_op(saga, &report->task)->cancelled)
		(void) saga_record_outcome(saga, &report->task, &revoked);
	else
		fail(saga, &report->task, ERRCODE_SAGA_CHILD_FAILED,
					  psprintf("child saga %lld was %s",
							   (long long) report->id,
							   saga_status_name(report->status)),
					  report->cause, NULL);
}

static void
compensation_has_ended(Saga *saga, const ChildReport *report)
{
	if (report->status == SAGA_STATUS_COMPENSATED)
		succeed(saga, &report->task, NULL);
	else if (report->refused || saga_status_is_final(report->status))
		fail_for_good(saga, &report->task, ERRCODE_SAGA_CHILD_FAILED,
					  report->refused ?
					  psprintf("child saga %lld cannot go back",
							   (long long) report->id) :
					  psprintf("child saga %lld was %s",
							   (long long) report->id,
							   saga_status_name(report->status)),
					  report->refused ? "Its pivot has succeeded." : NULL,
					  "Undo it by hand, then use saga.skip().");
}

const char *
saga_kind_child_ended(Saga *saga, const SagaMessage *message)
{
	ChildReport report;

	if (!read_report(saga, message, &report))
		return "refused: it is about no child of this saga";
	for (int i = 0; i < SAGA_NOPERATION; i++)
	{
		report.task.operation = (SagaOperation) i;
		if (saga_record_op(saga, &report.task)->status != SAGA_OP_RUNNING)
			continue;
		if (i == SAGA_OPERATION_ACTION)
			action_has_ended(saga, &report);
		else if (i == SAGA_OPERATION_COMPENSATION)
			compensation_has_ended(saga, &report);
		else if (saga_status_is_final(report.status))
			succeed(saga, &report.task, NULL);
		break;
	}
	return "done";
}

const char *
saga_kind_recall(Saga *saga)
{
	SagaEvent	event = saga_record_make_event(SAGA_EVENT_RECALL, NULL);
	SagaError	error;

	switch (saga_record_event(saga, &event))
	{
		case SAGA_VERDICT_APPLIED:
			error = saga_record_make_error(ERRCODE_SAGA_CANCELLED,
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

	if (saga->ops[step][element][SAGA_OPERATION_ACTION].child_id == 0)
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
		if (saga->definition->steps[step].kind != SAGA_KIND_CHILD)
			continue;
		for (int i = 0; i < saga->state.steps[step].nelements; i++)
			if (may_need_release(saga, step, i))
				(void) saga_store_post_to(saga->ops[step][i][SAGA_OPERATION_ACTION].child_id,
										  "release", NULL, -1, NULL);
	}
}

void
saga_kind_status_changed(Saga *saga)
{
	SagaStatus	status = saga->state.status;

	if (saga_status_is_final(status))
		release_children(saga);
	if (saga->parent_id != 0 &&
		(status == SAGA_STATUS_HELD || saga_status_is_final(status)))
		tell_parent(saga, false);
}
