/*
 * stepinput.c
 *		Owns the reading of what saga.define() is given: one step at a time, field
 *		by field, each with the kinds of steps that it belongs to.
 *
 * Runs in any backend, and reads system catalogs only.
 */
#include "postgres.h"

#include <math.h>

#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "functions.h"
#include "json.h"
#include "queue.h"
#include "remotename.h"
#include "stepinput.h"

/* Bounds of what a step may say; longer is taken for a slip of the pen. */
#define MIN_TIMEOUT		INT64CONST(1000)
#define MAX_TIMEOUT		(365 * USECS_PER_DAY)
#define MAX_DELAY		(365 * USECS_PER_DAY)
#define MAX_WAIT		(36525 * USECS_PER_DAY)
#define MAX_MULTIPLIER	1000.0
#define MAX_RECOVERIES	1000

#define POLICY_FIELDS \
	"max_attempts, initial_delay, max_delay, multiplier, jitter, retry_on and fail_on"


/* ---- values ----------------------------------------------------------- */

static void
expect_type(const JsonbValue *value, enum jbvType type, const char *field,
			const char *where)
{
	if (value->type == type)
		return;
	switch (type)
	{
		case jbvString:
			saga_definition_invalid(field, where, "It must be a string.");
			break;
		case jbvNumeric:
			saga_definition_invalid(field, where, "It must be a number.");
			break;
		case jbvBool:
			saga_definition_invalid(field, where, "It must be true or false.");
			break;
		default:
			elog(ERROR, "unexpected jsonb type %d", (int) type);
	}
}

static char *
string_field(const JsonbValue *value, const char *field, const char *where)
{
	expect_type(value, jbvString, field, where);
	return saga_json_string(value);
}

static bool
bool_field(const JsonbValue *value, const char *field, const char *where)
{
	expect_type(value, jbvBool, field, where);
	return value->val.boolean;
}

static double
number_field(const JsonbValue *value, const char *field, const char *where)
{
	expect_type(value, jbvNumeric, field, where);
	return saga_json_double(value);
}

/* A number of seconds, in microseconds. */
static int64
seconds_field(const JsonbValue *value, const char *field, const char *where,
			  int64 min, int64 max, const char *detail)
{
	double		microseconds = rint(number_field(value, field, where) *
									USECS_PER_SEC);

	/* written so that NaN fails it */
	if (!(microseconds >= (double) min && microseconds <= (double) max))
		saga_definition_invalid(field, where, detail);
	return (int64) microseconds;
}

/* A whole number from 1 to "max". */
static int
count_field(const JsonbValue *value, const char *field, const char *where,
			int max)
{
	double		number = number_field(value, field, where);

	if (!(number >= 1 && number <= max) || number != rint(number))
		saga_definition_invalid(field, where,
								psprintf("It must be a whole number from 1 to %d.",
										 max));
	return (int) number;
}


/* ---- retry policies --------------------------------------------------- */

static int
compare_patterns(const void *a, const void *b)
{
	return strcmp(((const SagaSqlStatePattern *) a)->text,
				  ((const SagaSqlStatePattern *) b)->text);
}

/* One SQLSTATE or class of SQLSTATEs. */
static void
read_pattern(const JsonbValue *value, const char *field, const char *where,
			 SagaSqlStatePattern *pattern)
{
	char	   *text;

	if (value->type != jbvString)
		saga_definition_invalid(field, where, "It must be an array of strings.");
	text = saga_json_string(value);
	if ((strlen(text) != 2 && strlen(text) != SAGA_SQLSTATE_LENGTH) ||
		strspn(text, "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ") != strlen(text))
		saga_definition_invalid(field, where,
					  psprintf("\"%s\" is neither a SQLSTATE of five digits and capital letters nor a class of two.",
							   text));
	strlcpy(pattern->text, text, sizeof(pattern->text));
}

/* The list without repetitions, in order: it is a set. */
static const SagaSqlStatePattern *
read_patterns(const JsonbValue *value, const char *field, const char *where,
			  int *count)
{
	SagaSqlStatePattern *patterns;
	JsonbContainer *array;
	int			n;
	int			kept = 0;

	if (!saga_json_is_array(value))
		saga_definition_invalid(field, where, "It must be an array of strings.");
	array = value->val.binary.data;
	n = JsonContainerSize(array);
	patterns = palloc0(Max(n, 1) * sizeof(SagaSqlStatePattern));
	for (int i = 0; i < n; i++)
		read_pattern(getIthJsonbValueFromContainer(array, i), field, where,
					 &patterns[i]);
	qsort(patterns, n, sizeof(SagaSqlStatePattern), compare_patterns);
	for (int i = 0; i < n; i++)
	{
		if (kept == 0 || strcmp(patterns[kept - 1].text, patterns[i].text) != 0)
			patterns[kept++] = patterns[i];
	}
	*count = kept;
	return patterns;
}

static int
attempts_field(const JsonbValue *value, const char *field, const char *where)
{
	double		number = number_field(value, field, where);

	if (!(number >= 0 && number <= PG_INT32_MAX) || number != rint(number))
		saga_definition_invalid(field, where,
					  "It must be a whole number, at least 1, or 0 for no limit.");
	return (int) number;
}

static void
read_policy_field(const char *field, const JsonbValue *value,
				  const char *where, SagaRetryPolicy *policy)
{
	const char *delay_range = "It must be from 0 to 365 days.";

	if (strcmp(field, "max_attempts") == 0)
		policy->max_attempts = attempts_field(value, field, where);
	else if (strcmp(field, "initial_delay") == 0)
		policy->initial_delay = seconds_field(value, field, where, 0,
											  MAX_DELAY, delay_range);
	else if (strcmp(field, "max_delay") == 0)
		policy->max_delay = seconds_field(value, field, where, 0,
										  MAX_DELAY, delay_range);
	else if (strcmp(field, "multiplier") == 0)
	{
		policy->multiplier = number_field(value, field, where);
		if (!(policy->multiplier >= 1 && policy->multiplier <= MAX_MULTIPLIER))
			saga_definition_invalid(field, where, "It must be from 1 to 1000.");
	}
	else if (strcmp(field, "jitter") == 0)
	{
		policy->jitter = number_field(value, field, where);
		if (!(policy->jitter >= 0 && policy->jitter <= 1))
			saga_definition_invalid(field, where, "It must be from 0 to 1.");
	}
	else if (strcmp(field, "retry_on") == 0)
		policy->retry_on = read_patterns(value, field, where,
										 &policy->nretry_on);
	else if (strcmp(field, "fail_on") == 0)
		policy->fail_on = read_patterns(value, field, where,
										&policy->nfail_on);
	else
		ereport(ERROR,
				errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				errmsg("unrecognized field \"%s\" in %s", field, where),
				errhint("The fields are %s: see saga.retry_policy().",
						POLICY_FIELDS));
}

void
saga_stepinput_read_policy(JsonbContainer *object, const char *where,
						   SagaRetryPolicy *policy)
{
	JsonbIterator *iterator = JsonbIteratorInit(object);
	JsonbValue	item;
	JsonbValue	value;

	(void) JsonbIteratorNext(&iterator, &item, true);
	while (JsonbIteratorNext(&iterator, &item, true) == WJB_KEY)
	{
		(void) JsonbIteratorNext(&iterator, &value, true);
		if (value.type != jbvNull)
			read_policy_field(saga_json_string(&item), &value, where, policy);
	}
	if (policy->max_delay < policy->initial_delay)
		saga_definition_invalid("max_delay", where,
					  "It must not be less than initial_delay.");
	if (policy->max_attempts == 0 && policy->initial_delay == 0)
		saga_definition_invalid("initial_delay", where,
					  "It must be greater than zero when there is no limit of attempts.");
}


/* ---- fields of a step ------------------------------------------------- */

static void
read_name(SagaStepInput *step, const char *field, const JsonbValue *value)
{
	step->name = string_field(value, field, step->where);
}

/* The kind has been read before all others. */
static void
read_kind(SagaStepInput *step, const char *field, const JsonbValue *value)
{
	(void) step;
	(void) field;
	(void) value;
}

static void
read_action(SagaStepInput *step, const char *field, const JsonbValue *value)
{
	step->function[SAGA_OPERATION_ACTION] =
		string_field(value, field, step->where);
}

static void
read_compensation(SagaStepInput *step, const char *field,
				  const JsonbValue *value)
{
	step->function[SAGA_OPERATION_COMPENSATION] =
		string_field(value, field, step->where);
}

static void
read_confirmation(SagaStepInput *step, const char *field,
				  const JsonbValue *value)
{
	step->function[SAGA_OPERATION_CONFIRMATION] =
		string_field(value, field, step->where);
}

static int64
timeout_field(const JsonbValue *value, const char *field, const char *where)
{
	return seconds_field(value, field, where, MIN_TIMEOUT, MAX_TIMEOUT,
						 "It must be from 1 ms to 365 days.");
}

static int64
wait_field(const JsonbValue *value, const char *field, const char *where)
{
	return seconds_field(value, field, where, MIN_TIMEOUT, MAX_WAIT,
						 "It must be from 1 ms to 100 years.");
}

static void
read_timeout(SagaStepInput *step, const char *field, const JsonbValue *value)
{
	step->timeout[SAGA_OPERATION_ACTION] =
		timeout_field(value, field, step->where);
}

static void
read_compensation_timeout(SagaStepInput *step, const char *field,
						  const JsonbValue *value)
{
	step->timeout[SAGA_OPERATION_COMPENSATION] =
		timeout_field(value, field, step->where);
}

static void
read_confirmation_timeout(SagaStepInput *step, const char *field,
						  const JsonbValue *value)
{
	step->timeout[SAGA_OPERATION_CONFIRMATION] =
		timeout_field(value, field, step->where);
}

static void
retry_field(SagaStepInput *step, SagaOperation operation, const char *field,
			const JsonbValue *value)
{
	if (!saga_json_is_object(value))
		saga_definition_invalid(field, step->where,
								"It must be what saga.retry_policy() returns.");
	saga_stepinput_read_policy(value->val.binary.data,
							   psprintf("%s of %s", field, step->where),
							   &step->retry[operation]);
	step->has_retry[operation] = true;
}

static void
read_retry(SagaStepInput *step, const char *field, const JsonbValue *value)
{
	retry_field(step, SAGA_OPERATION_ACTION, field, value);
}

static void
read_compensation_retry(SagaStepInput *step, const char *field,
						const JsonbValue *value)
{
	retry_field(step, SAGA_OPERATION_COMPENSATION, field, value);
}

static void
read_confirmation_retry(SagaStepInput *step, const char *field,
						const JsonbValue *value)
{
	retry_field(step, SAGA_OPERATION_CONFIRMATION, field, value);
}

static void
read_isolation(SagaStepInput *step, const char *field, const JsonbValue *value)
{
	char	   *text = string_field(value, field, step->where);

	for (int i = 0; saga_isolation_levels[i].name != NULL; i++)
	{
		if (pg_strcasecmp(saga_isolation_levels[i].name, text) == 0)
		{
			step->isolation = saga_isolation_levels[i].name;
			return;
		}
	}
	saga_definition_invalid(field, step->where,
							"It must be \"read committed\", \"repeatable read\" or \"serializable\".");
}

static void
read_pivot(SagaStepInput *step, const char *field, const JsonbValue *value)
{
	step->pivot = bool_field(value, field, step->where);
}

static void
read_durable(SagaStepInput *step, const char *field, const JsonbValue *value)
{
	step->durable = bool_field(value, field, step->where);
}

static void
read_after(SagaStepInput *step, const char *field, const JsonbValue *value)
{
	JsonbContainer *array;

	if (!saga_json_is_array(value))
		saga_definition_invalid(field, step->where,
								"It must be an array of strings, the names of steps.");
	array = value->val.binary.data;
	step->has_after = true;
	step->nafter = JsonContainerSize(array);
	step->after = palloc(Max(step->nafter, 1) * sizeof(char *));
	for (int i = 0; i < step->nafter; i++)
	{
		JsonbValue *item = getIthJsonbValueFromContainer(array, i);

		if (item->type != jbvString)
			saga_definition_invalid(field, step->where,
									"It must be an array of strings, the names of steps.");
		step->after[i] = saga_json_string(item);
	}
}

static void
read_only_if(SagaStepInput *step, const char *field, const JsonbValue *value)
{
	step->condition = string_field(value, field, step->where);
}

/* What is in it is looked at when it is known which steps come before. */
static const char *
path_field(const JsonbValue *value, const char *field, const char *where)
{
	char	   *text = string_field(value, field, where);
	SagaPath	path;

	saga_definition_input_path(text, field, where, &path);
	return text;
}

static void
read_foreach(SagaStepInput *step, const char *field, const JsonbValue *value)
{
	step->foreach = path_field(value, field, step->where);
}

static void
read_parallel(SagaStepInput *step, const char *field, const JsonbValue *value)
{
	step->parallel = count_field(value, field, step->where,
								 SAGA_MAX_ELEMENTS);
}

static void
read_quorum(SagaStepInput *step, const char *field, const JsonbValue *value)
{
	step->quorum = count_field(value, field, step->where, SAGA_MAX_ELEMENTS);
}

static void
read_savepoint(SagaStepInput *step, const char *field, const JsonbValue *value)
{
	step->savepoint = bool_field(value, field, step->where);
}

static void
read_and_then(SagaStepInput *step, const char *field, const JsonbValue *value)
{
	step->and_then = string_field(value, field, step->where);
}

static void
read_recoveries(SagaStepInput *step, const char *field,
				const JsonbValue *value)
{
	step->recoveries = count_field(value, field, step->where, MAX_RECOVERIES);
}

static void
read_exclusive(SagaStepInput *step, const char *field, const JsonbValue *value)
{
	step->exclusive = path_field(value, field, step->where);
}

static void
read_exclusive_until(SagaStepInput *step, const char *field,
					 const JsonbValue *value)
{
	step->exclusive_until = string_field(value, field, step->where);
}

static void
read_concurrency(SagaStepInput *step, const char *field,
				 const JsonbValue *value)
{
	step->concurrency = count_field(value, field, step->where, INT32_MAX);
}

static void
read_exclusive_timeout(SagaStepInput *step, const char *field,
					   const JsonbValue *value)
{
	step->exclusive_timeout = seconds_field(value, field, step->where,
											0, MAX_WAIT,
											"It must be from 0, which is no limit, to 100 years.");
}

static void
read_delay(SagaStepInput *step, const char *field, const JsonbValue *value)
{
	step->delay = seconds_field(value, field, step->where, 0, MAX_WAIT,
								"It must be from 0 to 100 years.");
}

static void
read_signal_timeout(SagaStepInput *step, const char *field,
					const JsonbValue *value)
{
	step->signal_timeout = wait_field(value, field, step->where);
}

static void
read_otherwise(SagaStepInput *step, const char *field, const JsonbValue *value)
{
	JsonbValue	copy = *value;

	(void) field;
	step->otherwise = JsonbValueToJsonb(&copy);
}

static void
read_definition(SagaStepInput *step, const char *field,
				const JsonbValue *value)
{
	step->child = string_field(value, field, step->where);
}

static void
read_server(SagaStepInput *step, const char *field, const JsonbValue *value)
{
	step->server = string_field(value, field, step->where);
}

static void
read_queue(SagaStepInput *step, const char *field, const JsonbValue *value)
{
	step->queue = string_field(value, field, step->where);
}

static void
read_claim_timeout(SagaStepInput *step, const char *field,
				   const JsonbValue *value)
{
	step->claim_timeout = wait_field(value, field, step->where);
}

static void
read_total_timeout(SagaStepInput *step, const char *field,
				   const JsonbValue *value)
{
	step->total_timeout = wait_field(value, field, step->where);
}


/* ---- which step has which fields -------------------------------------- */

#define LOCAL		(1 << SAGA_KIND_LOCAL)
#define TIMER		(1 << SAGA_KIND_TIMER)
#define SIGNAL		(1 << SAGA_KIND_SIGNAL)
#define CHILD		(1 << SAGA_KIND_CHILD)
#define EXTERNAL	(1 << SAGA_KIND_EXTERNAL)
#define REMOTE		(1 << SAGA_KIND_REMOTE)
#define TASKS		(EXTERNAL | REMOTE)
#define ANY			(LOCAL | TIMER | SIGNAL | CHILD | TASKS)

/* In the order of the parameters of the functions that make steps. */
static const struct
{
	const char *name;
	int			kinds;			/* that have it */
	void		(*read) (SagaStepInput *step, const char *field,
						 const JsonbValue *value);
}			step_fields[] =
{
	{"name", ANY, read_name},
	{"kind", ANY, read_kind},
	{"queue", EXTERNAL, read_queue},
	{"server", REMOTE, read_server},
	{"action", LOCAL | TASKS, read_action},
	{"delay", TIMER, read_delay},
	{"until", TIMER, read_action},
	{"definition", CHILD, read_definition},
	{"input", CHILD, read_action},
	{"compensation", LOCAL | TASKS, read_compensation},
	{"confirmation", TASKS, read_confirmation},
	{"pivot", LOCAL | TIMER | CHILD | TASKS, read_pivot},
	{"timeout", LOCAL | TIMER | CHILD | TASKS, read_timeout},
	{"claim_timeout", EXTERNAL, read_claim_timeout},
	{"total_timeout", TASKS, read_total_timeout},
	{"timeout", SIGNAL, read_signal_timeout},
	{"otherwise", SIGNAL, read_otherwise},
	{"pivot", SIGNAL, read_pivot},
	{"retry", LOCAL | TIMER | CHILD | TASKS, read_retry},
	{"compensation_timeout", LOCAL | TASKS, read_compensation_timeout},
	{"compensation_retry", LOCAL | TASKS, read_compensation_retry},
	{"confirmation_timeout", TASKS, read_confirmation_timeout},
	{"confirmation_retry", TASKS, read_confirmation_retry},
	{"isolation", LOCAL, read_isolation},
	{"durable", LOCAL, read_durable},
	{"after", ANY, read_after},
	{"only_if", ANY, read_only_if},
	{"foreach", LOCAL | CHILD | TASKS, read_foreach},
	{"parallel", LOCAL | CHILD | TASKS, read_parallel},
	{"quorum", LOCAL | CHILD | TASKS, read_quorum},
	{"confirmation", LOCAL, read_confirmation},
	{"confirmation_timeout", LOCAL, read_confirmation_timeout},
	{"confirmation_retry", LOCAL, read_confirmation_retry},
	{"savepoint", ANY, read_savepoint},
	{"and_then", ANY, read_and_then},
	{"recoveries", ANY, read_recoveries},
	{"exclusive", LOCAL | CHILD | TASKS, read_exclusive},
	{"exclusive_until", LOCAL | CHILD | TASKS, read_exclusive_until},
	{"exclusive_timeout", LOCAL | CHILD | TASKS, read_exclusive_timeout},
	{"concurrency", LOCAL | CHILD | TASKS, read_concurrency},
	{"server", CHILD, read_server}
};

/* What makes steps of this kind. */
static const char *
maker(SagaStepKind kind)
{
	return kind == SAGA_KIND_LOCAL ? "saga.step()" :
		psprintf("saga.%s_step()", saga_step_kind_name(kind));
}

/* "name, kind, ... and recoveries" */
static char *
list_fields(SagaStepKind kind)
{
	StringInfoData buf;
	const char *last = NULL;

	initStringInfo(&buf);
	for (size_t i = 0; i < lengthof(step_fields); i++)
	{
		if ((step_fields[i].kinds & (1 << kind)) == 0)
			continue;
		if (last != NULL)
			appendStringInfo(&buf, "%s%s", buf.len > 0 ? ", " : "", last);
		last = step_fields[i].name;
	}
	appendStringInfo(&buf, " and %s", last);
	return buf.data;
}

static void
report_unknown_field(const SagaStepInput *step, const char *field, bool known)
{
	const char *kind = saga_step_kind_name(step->kind);

	ereport(ERROR,
			errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			errmsg("unrecognized field \"%s\" in %s", field, step->where),
			known ?
			errdetail("Steps of kind \"%s\" do not have it.", kind) : 0,
			errhint("The fields of %s %s step are %s: see %s.",
					step->kind == SAGA_KIND_EXTERNAL ? "an" : "a", kind,
					list_fields(step->kind), maker(step->kind)));
}

static void
read_field(SagaStepInput *step, const char *field, const JsonbValue *value)
{
	bool		known = false;

	for (size_t i = 0; i < lengthof(step_fields); i++)
	{
		if (strcmp(step_fields[i].name, field) != 0)
			continue;
		known = true;
		if ((step_fields[i].kinds & (1 << step->kind)) != 0)
		{
			step_fields[i].read(step, field, value);
			return;
		}
	}
	report_unknown_field(step, field, known);
}

/* A field that is null is not there; but the payload of a signal may be. */
static void
read_fields(SagaStepInput *step, JsonbContainer *object)
{
	JsonbIterator *iterator = JsonbIteratorInit(object);
	JsonbValue	item;
	JsonbValue	value;

	(void) JsonbIteratorNext(&iterator, &item, true);
	while (JsonbIteratorNext(&iterator, &item, true) == WJB_KEY)
	{
		char	   *field = saga_json_string(&item);

		(void) JsonbIteratorNext(&iterator, &value, true);
		if (value.type != jbvNull || strcmp(field, "otherwise") == 0)
			read_field(step, field, &value);
	}
}

/* What comes first, since the rest depends on it, and errors name it. */
static void
read_heading(SagaStepInput *step, JsonbContainer *object)
{
	JsonbValue	value;
	char	   *kind;

	if (saga_json_get(object, "name", &value) && value.type == jbvString)
		step->where = psprintf("step \"%s\"", saga_json_string(&value));
	if (!saga_json_get(object, "kind", &value))
		return;
	kind = string_field(&value, "kind", step->where);
	if (!saga_step_kind_parse(kind, &step->kind))
		ereport(ERROR,
				errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				errmsg("invalid kind in %s", step->where),
				errdetail("There is no kind \"%s\".", kind),
				errhint("The kinds are local, timer, signal, child, external and remote."));
}


/* ---- checks ----------------------------------------------------------- */

/* Raises that "fields" have no meaning without "missing". */
static void
report_meaningless(const SagaStepInput *step, const char *missing,
				   const char *fields)
{
	ereport(ERROR,
			errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			errmsg("%s has no %s", step->where, missing),
			errdetail("Without one, %s no meaning.", fields));
}

static void
check_operations(const SagaStepInput *step)
{
	if ((step->kind == SAGA_KIND_LOCAL || step->kind == SAGA_KIND_REMOTE) &&
		step->function[SAGA_OPERATION_ACTION] == NULL)
		ereport(ERROR,
				errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				errmsg("%s has no action", step->where));
	for (int op = SAGA_OPERATION_COMPENSATION; op < SAGA_NOPERATION; op++)
	{
		const char *name = saga_operation_name((SagaOperation) op);

		if (step->function[op] == NULL &&
			(step->timeout[op] != 0 || step->has_retry[op]))
			report_meaningless(step, name,
							   psprintf("%s_timeout and %s_retry have",
										name, name));
	}
	if (step->function[SAGA_OPERATION_CONFIRMATION] != NULL &&
		step->function[SAGA_OPERATION_COMPENSATION] == NULL)
		ereport(ERROR,
				errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				errmsg("%s cannot have a confirmation", step->where),
				errdetail("It has no compensation, so what its action tries could not be cancelled."),
				errhint("Give it a compensation too, which cancels what has been tried."));
}

static void
check_timer(const SagaStepInput *step)
{
	bool		has_until = step->function[SAGA_OPERATION_ACTION] != NULL;

	if (has_until == (step->delay >= 0))
		ereport(ERROR,
				errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				has_until ?
				errmsg("%s has both a delay and an until", step->where) :
				errmsg("%s has neither a delay nor an until", step->where),
				errhint("A timer waits for a fixed time, its delay, or until the time that a function returns."));
	if (!has_until && step->condition == NULL &&
		(step->timeout[SAGA_OPERATION_ACTION] != 0 ||
		 step->has_retry[SAGA_OPERATION_ACTION]))
		ereport(ERROR,
				errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				errmsg("%s calls no function", step->where),
				errdetail("Without until or only_if, timeout and retry have no meaning."));
}

static void
check_signal(const SagaStepInput *step)
{
	if (step->otherwise != NULL && step->signal_timeout < 0)
		report_meaningless(step, "timeout", "otherwise has");
}

/* It is taken as it is, like the argument of dblink_connect(). */
static void
check_server(const SagaStepInput *step)
{
	size_t		length = strlen(step->server);

	if (length == 0 || length > NAMEDATALEN - 1)
		saga_definition_invalid("server", step->where,
								psprintf("The name of a foreign server has 1 to %d bytes.",
										 NAMEDATALEN - 1));
}

static void
check_child(const SagaStepInput *step)
{
	if (step->child == NULL)
		ereport(ERROR,
				errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				errmsg("%s has no definition", step->where),
				errhint("A child step says of which definition its saga is."));
	if (step->server == NULL)
		return;
	check_server(step);
	/* nobody here knows it, so this is all that can be said of it */
	saga_definition_check_name(step->child,
							   psprintf("saga definition (definition of %s)",
										step->where));
}

/* The names of the functions, brought into the form that is stored. */
static void
check_remote(SagaStepInput *step)
{
	if (step->server == NULL)
		ereport(ERROR,
				errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				errmsg("%s has no server", step->where),
				errhint("A remote step says at which foreign server its functions are: see CREATE SERVER."));
	check_server(step);
	for (int op = 0; op < SAGA_NOPERATION; op++)
	{
		SagaRemoteName name;
		const char *wrong;

		if (step->function[op] == NULL)
			continue;
		wrong = saga_remote_name_parse(step->function[op], &name);
		if (wrong != NULL)
			ereport(ERROR,
					errcode(ERRCODE_INVALID_NAME),
					errmsg("invalid %s in %s",
						   saga_operation_name((SagaOperation) op),
						   step->where),
					errdetail_internal("%s", wrong),
					errhint("Write it as in SQL, with or without its schema, but without arguments: 'wh.ship' or '\"Wh\".\"Ship\"'."));
		step->function[op] = saga_remote_name_text(&name);
	}
}

static void
check_external(const SagaStepInput *step)
{
	if (step->queue == NULL)
		ereport(ERROR,
				errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				errmsg("%s has no queue", step->where),
				errhint("An external step says in which queue its tasks are offered."));
	saga_queue_check_name(step->queue, step->where);
	for (int op = 0; op < SAGA_NOPERATION; op++)
	{
		if (step->function[op] != NULL)
			saga_definition_check_name(step->function[op],
									   psprintf("task (%s of %s)",
												saga_operation_name((SagaOperation) op),
												step->where));
	}
}

/* Fields that go with others. */
static void
check_companions(const SagaStepInput *step)
{
	if (step->foreach == NULL && (step->parallel != 0 || step->quorum != 0))
		report_meaningless(step, "foreach", "parallel and quorum have");
	if (!step->savepoint && (step->and_then != NULL || step->recoveries != 0))
		ereport(ERROR,
				errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				errmsg("%s is no savepoint", step->where),
				errdetail("Without savepoint, and_then and recoveries have no meaning."));
	if (step->exclusive == NULL &&
		(step->exclusive_until != NULL || step->exclusive_timeout >= 0))
		report_meaningless(step, "exclusive",
						   "exclusive_until and exclusive_timeout have");
}

static void
check_step(SagaStepInput *step)
{
	if (step->name == NULL)
		ereport(ERROR,
				errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				errmsg("%s has no name", step->where));
	saga_definition_check_name(step->name, "step");
	check_operations(step);
	if (step->kind == SAGA_KIND_TIMER)
		check_timer(step);
	if (step->kind == SAGA_KIND_SIGNAL)
		check_signal(step);
	if (step->kind == SAGA_KIND_CHILD)
		check_child(step);
	if (step->kind == SAGA_KIND_EXTERNAL)
		check_external(step);
	if (step->kind == SAGA_KIND_REMOTE)
		check_remote(step);
	check_companions(step);
}


/* ---- functions -------------------------------------------------------- */

/* The name of the field that gives the function of the action. */
static const char *
action_field(SagaStepKind kind)
{
	switch (kind)
	{
		case SAGA_KIND_TIMER:
			return "until";
		case SAGA_KIND_CHILD:
			return "input";
		case SAGA_KIND_LOCAL:
		case SAGA_KIND_SIGNAL:
		case SAGA_KIND_EXTERNAL:
		case SAGA_KIND_REMOTE:
			break;
	}
	return "action";
}

static void
resolve_functions(SagaStepInput *step)
{
	for (int i = 0; i < SAGA_NOPERATION; i++)
	{
		SagaOperation op = (SagaOperation) i;
		bool		is_action = op == SAGA_OPERATION_ACTION;

		if (step->function[op] != NULL &&
			step->kind != SAGA_KIND_EXTERNAL &&
			step->kind != SAGA_KIND_REMOTE)
			step->oid[op] =
				saga_functions_resolve(step->function[op],
									   is_action ? action_field(step->kind) :
									   saga_operation_name(op),
									   step->where,
									   is_action && step->kind == SAGA_KIND_TIMER ?
									   SAGA_FUNCTION_TIME :
									   SAGA_FUNCTION_OPERATION);
	}
	if (step->condition != NULL)
		step->condition_oid =
			saga_functions_resolve(step->condition, "only_if", step->where,
								   SAGA_FUNCTION_CONDITION);
}

void
saga_stepinput_read(SagaStepInput *step, int position, Jsonb *json)
{
	memset(step, 0, sizeof(*step));
	step->where = psprintf("step %d", position + 1);
	step->exclusive_timeout = step->delay = step->signal_timeout = -1;
	for (int op = 0; op < SAGA_NOPERATION; op++)
		saga_definition_default_policy((SagaOperation) op, &step->retry[op]);
	if (!JB_ROOT_IS_OBJECT(json))
		ereport(ERROR,
				errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				errmsg("%s is not an object", step->where),
				errhint("Make the steps with saga.step()."));

	read_heading(step, &json->root);
	read_fields(step, &json->root);
	if (step->kind == SAGA_KIND_EXTERNAL &&
		step->function[SAGA_OPERATION_ACTION] == NULL)
		step->function[SAGA_OPERATION_ACTION] = step->name;
	check_step(step);
	resolve_functions(step);
}
