/*
 * outcome.c
 *		Owns the form in which the outcome of an operation travels.
 *
 * It is an object: what happened in "outcome", and the fields of SagaOutcome
 * that have something to say, times in microseconds of PostgreSQL's epoch.
 */
#include "postgres.h"

#include "json.h"
#include "outcome.h"

static const char *const outcome_names[] = {
	"succeeded", "failed", "later", "not taken", "lock", "revoked", "lost"
};

StaticAssertDecl(lengthof(outcome_names) == SAGA_NOUTCOME, "a word each");

void
saga_outcome_of_call(const SagaCallReport *report, SagaOutcome *outcome)
{
	memset(outcome, 0, sizeof(*outcome));
	switch (report->outcome)
	{
		case SAGA_CALL_SUCCEEDED:
			outcome->kind = SAGA_OUTCOME_SUCCEEDED;
			break;
		case SAGA_CALL_FAILED:
			outcome->kind = SAGA_OUTCOME_FAILED;
			break;
		case SAGA_CALL_LATER:
			outcome->kind = SAGA_OUTCOME_LATER;
			break;
		case SAGA_CALL_NOT_TAKEN:
			outcome->kind = SAGA_OUTCOME_NOT_TAKEN;
			break;
		case SAGA_CALL_LOCK:
			outcome->kind = SAGA_OUTCOME_LOCK;
			break;
		case SAGA_CALL_ALONE:
			outcome->kind = SAGA_OUTCOME_REVOKED;
			break;
	}
	outcome->result = report->result;
	outcome->error = report->error;
	outcome->is_final = report->by_fail;
	outcome->timed_out = report->timed_out;
	outcome->delay = report->delay;
	outcome->lock = report->lock;
	outcome->lock_timeout = report->lock_timeout;
	outcome->started_at = report->started_at;
	outcome->finished_at = report->finished_at;
}

/*
 * The fields stand in the order in which jsonb keeps keys, by length and then by
 * their bytes: so they need not be sorted, and one of these is written for each
 * operation that somebody else does.
 */
Jsonb *
saga_outcome_write(const SagaOutcome *outcome, const SagaTask *task, int round)
{
	const SagaError *error = &outcome->error;
	SagaJsonWriter writer = NULL;

	saga_json_begin_object(&writer);
	if (error->message != NULL)
		saga_json_put_string(&writer, "hint", error->hint);
	saga_json_put_string(&writer, "lock", outcome->lock);
	if (outcome->delay != 0)
		saga_json_put_int(&writer, "delay", outcome->delay);
	if (round != 0)
		saga_json_put_int(&writer, "round", round);
	if (error->message != NULL)
		saga_json_put_string(&writer, "detail", error->detail);
	saga_json_put_jsonb(&writer, "result", outcome->result);
	saga_json_put_int(&writer, "attempt", task->attempt);
	if (error->message != NULL)
	{
		saga_json_put_string(&writer, "context", error->context);
		saga_json_put_string(&writer, "message", error->message);
	}
	saga_json_put_string(&writer, "outcome", outcome_names[outcome->kind]);
	if (outcome->unknown)
		saga_json_put_bool(&writer, "unknown", true);
	if (outcome->is_final)
		saga_json_put_bool(&writer, "is_final", true);
	if (error->message != NULL)
		saga_json_put_string(&writer, "sqlstate", error->sqlstate);
	saga_json_put_string(&writer, "operation",
						 saga_operation_name(task->operation));
	if (outcome->timed_out)
		saga_json_put_bool(&writer, "timed_out", true);
	if (outcome->is_passing)
		saga_json_put_bool(&writer, "is_passing", true);
	saga_json_put_int(&writer, "started_at", outcome->started_at);
	saga_json_put_int(&writer, "finished_at", outcome->finished_at);
	if (outcome->lock_timeout != 0)
		saga_json_put_int(&writer, "lock_timeout", outcome->lock_timeout);
	return saga_json_finish_object(&writer);
}

/* The text of a field, or NULL. */
static const char *
read_string(JsonbContainer *object, const char *key)
{
	JsonbValue	value;

	if (!saga_json_get(object, key, &value) || value.type != jbvString)
		return NULL;
	return saga_json_string(&value);
}

static int64
read_int(JsonbContainer *object, const char *key)
{
	JsonbValue	value;

	if (!saga_json_get(object, key, &value) || value.type != jbvNumeric)
		return 0;
	return saga_json_int(&value);
}

static bool
read_bool(JsonbContainer *object, const char *key)
{
	JsonbValue	value;

	return saga_json_get(object, key, &value) && value.type == jbvBool &&
		value.val.boolean;
}

static bool
read_kind(JsonbContainer *object, SagaOutcomeKind *kind)
{
	const char *name = read_string(object, "outcome");

	for (int i = 0; name != NULL && i < SAGA_NOUTCOME; i++)
	{
		if (strcmp(name, outcome_names[i]) != 0)
			continue;
		*kind = (SagaOutcomeKind) i;
		return true;
	}
	return false;
}

static void
read_error(JsonbContainer *object, SagaError *error)
{
	const char *sqlstate = read_string(object, "sqlstate");

	if (sqlstate != NULL)
		strlcpy(error->sqlstate, sqlstate, sizeof(error->sqlstate));
	error->message = read_string(object, "message");
	error->detail = read_string(object, "detail");
	error->hint = read_string(object, "hint");
	error->context = read_string(object, "context");
}

/* A field that may be null in itself, which is a result too. */
static Jsonb *
read_result(JsonbContainer *object)
{
	JsonbValue *value = getKeyJsonValueFromContainer(object, "result",
													 strlen("result"), NULL);

	return value == NULL ? NULL : JsonbValueToJsonb(value);
}

bool
saga_outcome_read(Jsonb *payload, SagaOutcome *outcome, SagaTask *task,
				  int *round)
{
	JsonbContainer *object;
	const char *operation;

	memset(outcome, 0, sizeof(*outcome));
	if (payload == NULL || !JB_ROOT_IS_OBJECT(payload))
		return false;
	object = &payload->root;
	operation = read_string(object, "operation");
	if (!read_kind(object, &outcome->kind) || operation == NULL ||
		!saga_operation_parse(operation, &task->operation))
		return false;
	task->kind = SAGA_TASK_OPERATE;
	task->attempt = (int) read_int(object, "attempt");
	*round = (int) read_int(object, "round");
	outcome->result = read_result(object);
	read_error(object, &outcome->error);
	if (outcome->error.message == NULL &&
		(outcome->kind == SAGA_OUTCOME_FAILED ||
		 outcome->kind == SAGA_OUTCOME_LATER ||
		 outcome->kind == SAGA_OUTCOME_LOST))
		return false;
	outcome->is_final = read_bool(object, "is_final");
	outcome->is_passing = read_bool(object, "is_passing");
	outcome->unknown = read_bool(object, "unknown");
	outcome->timed_out = read_bool(object, "timed_out");
	outcome->delay = read_int(object, "delay");
	outcome->lock = read_string(object, "lock");
	outcome->lock_timeout = read_int(object, "lock_timeout");
	outcome->started_at = read_int(object, "started_at");
	outcome->finished_at = read_int(object, "finished_at");
	return true;
}
