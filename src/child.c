/*
 * child.c
 *		Owns what holds of a child saga and the step that it is, wherever the
 *		two are.
 *
 * Where both are in one database kinds.c has them tell each other; if they are
 * in two, farparent.c and childcall.c do, with the parent's courier between.
 */
#include "postgres.h"

#include "utils/timestamp.h"

#include "child.h"
#include "errcodes.h"
#include "json.h"
#include "record.h"

/* A tree of sagas that is deeper than this is taken for one without end. */
#define MAX_DEPTH		1000

bool
saga_child_may_be(const SagaDefinition *definition, int depth, bool undoable,
				  SagaError *error)
{
	if (depth >= MAX_DEPTH)
	{
		*error = saga_record_make_error(ERRCODE_SAGA_BAD_DATA,
										psprintf("child sagas are nested more than %d deep",
												 MAX_DEPTH),
										"A definition that begins itself, perhaps through others, must come to an end.");
		error->hint = "Give the child step a condition: only_if.";
		return false;
	}
	if (definition->has_pivot && undoable)
	{
		*error = saga_record_make_error(ERRCODE_SAGA_BAD_DATA,
										psprintf("child saga definition \"%s\" has a pivot",
												 definition->name),
										"A child that has passed its pivot cannot be undone, and its parent may still have to.");
		error->hint = "Make the child step the pivot, or put it behind the pivot.";
		return false;
	}
	return true;
}

Jsonb *
saga_child_make_context(const Saga *parent, const SagaTask *task,
						const Jsonb *input, const char *traceparent)
{
	SagaJsonWriter writer = NULL;

	if (input == NULL)
		input = saga_store_element(parent, task->step, task->element);
	saga_json_begin_object(&writer);
	saga_json_put_jsonb(&writer, "input", input != NULL ? input : parent->input);
	saga_json_put_int(&writer, "saga_id", parent->ref.id);
	saga_json_put_int(&writer, "attempt", task->attempt);
	saga_json_put_int(&writer, "depth", parent->depth);
	saga_json_put_bool(&writer, "undoable",
					   parent->definition->rules.steps[task->step].has_compensation);
	saga_json_put_string(&writer, "traceparent", traceparent);
	return saga_json_finish_object(&writer);
}


/* ---- reports --------------------------------------------------------------- */

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

Jsonb *
saga_child_make_report(const Saga *child, bool refused, Jsonb *result)
{
	SagaJsonWriter writer = NULL;

	saga_json_begin_object(&writer);
	saga_json_put_int(&writer, "saga_id", child->ref.id);
	saga_json_put_int(&writer, "step", child->parent_step);
	saga_json_put_string(&writer, "status",
						 saga_status_name(child->state.status));
	if (refused)
		saga_json_put_bool(&writer, "refused", true);
	if (child->definition != NULL && child->results != NULL)
		result = result_of(child);
	if (child->state.status == SAGA_STATUS_HELD ||
		child->state.status == SAGA_STATUS_COMPLETED)
		saga_json_put_jsonb(&writer, "result", result);
	saga_json_put_jsonb(&writer, "cause", child->cause);
	return saga_json_finish_object(&writer);
}

static char *
describe_cause(JsonbContainer *cause)
{
	JsonbValue	message;
	JsonbValue	sqlstate;

	if (!saga_json_get(cause, "message", &message) ||
		message.type != jbvString ||
		!saga_json_get(cause, "sqlstate", &sqlstate) ||
		sqlstate.type != jbvString)
		return NULL;
	return psprintf("%s (%s)", saga_json_string(&message),
					saga_json_string(&sqlstate));
}

bool
saga_child_read_report(JsonbContainer *object, SagaChildReport *report)
{
	JsonbValue	value;
	JsonbValue *result;

	memset(report, 0, sizeof(*report));
	if (!saga_json_get(object, "saga_id", &value) || value.type != jbvNumeric)
		return false;
	report->id = saga_json_int(&value);
	if (!saga_json_get(object, "status", &value) || value.type != jbvString ||
		!saga_status_parse(saga_json_string(&value), &report->status))
		return false;
	report->refused = saga_json_get(object, "refused", &value);
	report->too_large = saga_json_get(object, "too_large", &value);
	result = getKeyJsonValueFromContainer(object, "result", strlen("result"),
										  NULL);
	if (result != NULL)
		report->result = JsonbValueToJsonb(result);
	if (saga_json_get(object, "cause", &value) && saga_json_is_object(&value))
		report->cause = describe_cause(value.val.binary.data);
	return true;
}


/* ---- what they are to the step --------------------------------------------- */

/* "child saga 5", with the server if it is elsewhere. */
static const char *
name_child(const SagaChildReport *report, const char *server)
{
	return server == NULL ?
		psprintf("child saga %lld", (long long) report->id) :
		psprintf("child saga %lld at server \"%s\"", (long long) report->id,
				 server);
}

static void
set_failure(SagaOutcome *outcome, bool is_final, int sqlstate,
			const char *message, const char *detail, const char *hint)
{
	outcome->kind = SAGA_OUTCOME_FAILED;
	outcome->is_final = is_final;
	outcome->error = saga_record_make_error(sqlstate, message, detail);
	outcome->error.hint = hint;
}

static bool
action_has_ended(const SagaChildReport *report, bool cancelled,
				 const char *server, SagaOutcome *outcome)
{
	if (report->refused)
		return false;			/* it goes on, and reports again */
	if (report->too_large)
	{
		set_failure(outcome, true, ERRCODE_PROGRAM_LIMIT_EXCEEDED,
					psprintf("the result of %s is too large",
							 name_child(report, server)),
					NULL, "Keep large data in a table, and pass their key.");
		outcome->unknown = true;
	}
	else if (report->status == SAGA_STATUS_HELD ||
			 report->status == SAGA_STATUS_COMPLETED)
	{
		outcome->kind = SAGA_OUTCOME_SUCCEEDED;
		outcome->result = report->result;
	}
	else if (report->status == SAGA_STATUS_COMPENSATED && cancelled)
		outcome->kind = SAGA_OUTCOME_REVOKED;
	else
		/* the policy decides whether another one is begun */
		set_failure(outcome, false, ERRCODE_SAGA_CHILD_FAILED,
					psprintf("%s was %s", name_child(report, server),
							 saga_status_name(report->status)),
					report->cause, NULL);
	return true;
}

static bool
compensation_has_ended(const SagaChildReport *report, const char *server,
					   SagaOutcome *outcome)
{
	if (report->status == SAGA_STATUS_COMPENSATED)
		outcome->kind = SAGA_OUTCOME_SUCCEEDED;
	else if (report->refused)
		set_failure(outcome, true, ERRCODE_SAGA_CHILD_FAILED,
					psprintf("%s cannot go back", name_child(report, server)),
					"Its pivot has succeeded.",
					"Undo it by hand, then use saga.skip().");
	else if (saga_status_is_final(report->status))
		set_failure(outcome, true, ERRCODE_SAGA_CHILD_FAILED,
					psprintf("%s was %s", name_child(report, server),
							 saga_status_name(report->status)),
					NULL, "Undo it by hand, then use saga.skip().");
	else
		return false;
	return true;
}

bool
saga_child_outcome(const SagaChildReport *report, SagaOperation operation,
				   bool cancelled, const char *server, SagaOutcome *outcome)
{
	memset(outcome, 0, sizeof(*outcome));
	outcome->started_at = outcome->finished_at = GetCurrentTimestamp();
	switch (operation)
	{
		case SAGA_OPERATION_ACTION:
			return action_has_ended(report, cancelled, server, outcome);
		case SAGA_OPERATION_COMPENSATION:
			return compensation_has_ended(report, server, outcome);
		case SAGA_OPERATION_CONFIRMATION:
			outcome->kind = SAGA_OUTCOME_SUCCEEDED;
			return saga_status_is_final(report->status);
	}
	return false;				/* keep the compiler quiet */
}
