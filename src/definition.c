/*
 * definition.c
 *		Owns what a definition is to the engine: the making of SagaDefinition
 *		from the form that is stored, and the questions that are asked of it.
 *
 * The form itself is described in defcheck.c, which writes it.
 *
 * Runs in any backend, on memory only.
 */
#include "postgres.h"

#include <math.h>

#include "access/xact.h"
#include "common/int.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "definition.h"
#include "json.h"
#include "remotename.h"

/* No interval in a definition is longer. */
#define MAX_INTERVAL_DAYS	36525

const SagaIsolationLevel saga_isolation_levels[] =
{
	{"read committed", XACT_READ_COMMITTED},
	{"repeatable read", XACT_REPEATABLE_READ},
	{"serializable", XACT_SERIALIZABLE},
	{NULL, 0}
};

static const char *const kind_names[SAGA_NKIND] =
{
	[SAGA_KIND_LOCAL] = "local",
	[SAGA_KIND_TIMER] = "timer",
	[SAGA_KIND_SIGNAL] = "signal",
	[SAGA_KIND_CHILD] = "child",
	[SAGA_KIND_EXTERNAL] = "external",
	[SAGA_KIND_REMOTE] = "remote"
};

const char *
saga_step_kind_name(SagaStepKind kind)
{
	Assert(kind < SAGA_NKIND);
	return kind_names[kind];
}

bool
saga_step_kind_parse(const char *name, SagaStepKind *kind)
{
	for (int i = 0; i < SAGA_NKIND; i++)
	{
		if (strcmp(kind_names[i], name) == 0)
		{
			*kind = (SagaStepKind) i;
			return true;
		}
	}
	return false;
}


/* ---- what users give -------------------------------------------------- */

void
saga_definition_invalid(const char *field, const char *where,
						const char *detail)
{
	ereport(ERROR,
			errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			errmsg("invalid %s in %s", field, where),
			errdetail_internal("%s", detail));
}

int64
saga_definition_microseconds(const Interval *interval, const char *field,
							 const char *where)
{
	int64		result;

	if (!saga_interval_is_finite(interval))
		saga_definition_invalid(field, where, "It must not be infinite.");
	if (interval->month != 0)
		saga_definition_invalid(field, where,
								"Months and years have no fixed length: use days.");
	if (interval->day > MAX_INTERVAL_DAYS || interval->day < -MAX_INTERVAL_DAYS)
		saga_definition_invalid(field, where, "It must not be longer than 100 years.");
	if (pg_add_s64_overflow(interval->day * USECS_PER_DAY, interval->time,
							&result) ||
		result > MAX_INTERVAL_DAYS * USECS_PER_DAY ||
		result < -MAX_INTERVAL_DAYS * USECS_PER_DAY)
		saga_definition_invalid(field, where, "It must not be longer than 100 years.");
	return result;
}

void
saga_definition_check_name(const char *name, const char *kind)
{
	size_t		length = strlen(name);

	if (length == 0 || length > SAGA_MAX_NAME)
		ereport(ERROR,
				errcode(ERRCODE_INVALID_NAME),
				errmsg("invalid name for a %s: \"%s\"", kind,
					   pnstrdup(name, pg_mbcliplen(name, length,
												   SAGA_MAX_NAME))),
				errdetail("A name has 1 to %d bytes.", SAGA_MAX_NAME));
	for (size_t i = 0; i < length; i++)
	{
		unsigned char c = name[i];

		if (c < 0x20 || c == 0x7f)
			ereport(ERROR,
					errcode(ERRCODE_INVALID_NAME),
					errmsg("invalid name for a %s", kind),
					errdetail("A name must not contain control characters."));
	}
	if (name[0] == ' ' || name[length - 1] == ' ')
		ereport(ERROR,
				errcode(ERRCODE_INVALID_NAME),
				errmsg("invalid name for a %s: \"%s\"", kind, name),
				errdetail("A name must not begin or end with a space."));
}

void
saga_definition_default_policy(SagaOperation operation,
							   SagaRetryPolicy *policy)
{
	memset(policy, 0, sizeof(*policy));
	/* what was promised is done, however long it takes: 0 is no limit */
	policy->max_attempts = operation == SAGA_OPERATION_ACTION ? 5 :
		operation == SAGA_OPERATION_COMPENSATION ? 20 : 0;
	policy->initial_delay = USECS_PER_SEC;
	policy->max_delay = 5 * USECS_PER_MINUTE;
	policy->multiplier = 2;
	policy->jitter = 0.2;
}


/* ---- paths ------------------------------------------------------------ */

/* The names between the dots, or NULL if one is empty. */
static const char **
split_path(const char *text, int *n)
{
	char	   *copy = pstrdup(text);
	const char **names;
	char	   *p;

	*n = 1;
	for (p = copy; *p != '\0'; p++)
		*n += *p == '.' ? 1 : 0;
	names = palloc(*n * sizeof(char *));
	p = copy;
	for (int i = 0; i < *n; i++)
	{
		char	   *end = p + strcspn(p, ".");

		*end = '\0';
		if (end == p)
			return NULL;
		names[i] = p;
		p = end + 1;
	}
	return names;
}

void
saga_definition_input_path(const char *text, const char *field,
						   const char *where, SagaPath *path)
{
	path->text = pstrdup(text);
	path->step = -1;
	path->fields = split_path(text, &path->nfields);
	if (path->fields == NULL)
		ereport(ERROR,
				errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				errmsg("invalid %s in %s", field, where),
				errdetail("\"%s\" is not a path.", text),
				errhint("A path is the name of a field, or several with dots between them: 'order.items'. Names that contain dots cannot be part of one."));
}

/* Go from an object to the value of a field of it. */
static bool
enter_field(JsonbValue *value, const char *field)
{
	JsonbValue	object = *value;

	return saga_json_is_object(&object) &&
		saga_json_get(object.val.binary.data, field, value);
}

static void
take_whole(const Jsonb *json, JsonbValue *value)
{
	JsonbContainer *root = &((Jsonb *) json)->root;

	if (JsonContainerIsScalar(root))
	{
		(void) JsonbExtractScalar(root, value);
		return;
	}
	value->type = jbvBinary;
	value->val.binary.data = root;
	value->val.binary.len = VARSIZE(json) - VARHDRSZ;
}

/*
 * What the path starts from; *first is the number of its fields that have been
 * gone then.  False if there is nothing.
 */
static bool
find_start(const SagaPath *path, const Jsonb *input,
		   const Jsonb *const *results, const Jsonb *element,
		   JsonbValue *value, int *first)
{
	JsonbValue	ignored;

	*first = 0;
	if (path->step >= 0)
	{
		if (results == NULL || results[path->step] == NULL)
			return false;
		take_whole(results[path->step], value);
		return true;
	}
	if (element != NULL)
	{
		JsonbContainer *root = &((Jsonb *) element)->root;

		take_whole(element, value);
		/* a field of it that is null counts too */
		if (JsonContainerIsObject(root) &&
			getKeyJsonValueFromContainer(root, path->fields[0],
										 strlen(path->fields[0]), &ignored))
			return true;
		*first = 1;
		if (strcmp(path->fields[0], "element") == 0)
			return true;
		*first = 0;
	}
	if (input == NULL)
		return false;
	take_whole(input, value);
	return true;
}

bool
saga_path_find(const SagaPath *path, const Jsonb *input,
			   const Jsonb *const *results, const Jsonb *element,
			   JsonbValue *value)
{
	int			first;

	Assert(path->text != NULL);
	if (!find_start(path, input, results, element, value, &first))
		return false;
	for (int i = first; i < path->nfields; i++)
	{
		if (!enter_field(value, path->fields[i]))
			return false;
	}
	return value->type != jbvNull;
}


/* ---- from what is stored: values -------------------------------------- */

static void
corrupted(const char *field)
{
	ereport(ERROR,
			errcode(ERRCODE_DATA_CORRUPTED),
			errmsg("invalid stored saga definition"),
			errdetail("Field \"%s\" is missing or has the wrong type.", field));
}

static void
load_field(JsonbContainer *object, const char *field, enum jbvType type,
		   JsonbValue *value)
{
	if (!saga_json_get(object, field, value) || value->type != type)
		corrupted(field);
}

static char *
load_string(JsonbContainer *object, const char *field)
{
	JsonbValue	value;

	load_field(object, field, jbvString, &value);
	return saga_json_string(&value);
}

static bool
load_bool(JsonbContainer *object, const char *field)
{
	JsonbValue	value;

	load_field(object, field, jbvBool, &value);
	return value.val.boolean;
}

static double
load_number(JsonbContainer *object, const char *field)
{
	JsonbValue	value;

	load_field(object, field, jbvNumeric, &value);
	return saga_json_double(&value);
}

static int64
load_seconds(JsonbContainer *object, const char *field)
{
	double		microseconds = rint(load_number(object, field) * USECS_PER_SEC);

	if (!(fabs(microseconds) < 1e18))
		corrupted(field);
	return (int64) microseconds;
}

/* NULL if there is none. */
static JsonbContainer *
load_object(JsonbContainer *object, const char *field)
{
	JsonbValue	value;

	if (!saga_json_get(object, field, &value))
		return NULL;
	if (!saga_json_is_object(&value))
		corrupted(field);
	return value.val.binary.data;
}

static JsonbContainer *
load_array(JsonbContainer *object, const char *field)
{
	JsonbValue	value;

	if (!saga_json_get(object, field, &value) || !saga_json_is_array(&value))
		corrupted(field);
	return value.val.binary.data;
}

static const SagaSqlStatePattern *
load_patterns(JsonbContainer *policy, const char *field, int *n)
{
	JsonbContainer *array = load_array(policy, field);
	SagaSqlStatePattern *patterns;

	*n = JsonContainerSize(array);
	if (*n == 0)
		return NULL;
	patterns = palloc0(*n * sizeof(SagaSqlStatePattern));
	for (int i = 0; i < *n; i++)
	{
		JsonbValue *value = getIthJsonbValueFromContainer(array, i);

		if (value->type != jbvString ||
			value->val.string.len > SAGA_SQLSTATE_LENGTH)
			corrupted(field);
		memcpy(patterns[i].text, value->val.string.val, value->val.string.len);
	}
	return patterns;
}

static void
load_policy(JsonbContainer *object, SagaRetryPolicy *policy)
{
	double		attempts = load_number(object, "max_attempts");

	if (!(attempts >= 0 && attempts <= PG_INT32_MAX))
		corrupted("max_attempts");
	policy->max_attempts = (int) attempts;
	policy->initial_delay = load_seconds(object, "initial_delay");
	policy->max_delay = load_seconds(object, "max_delay");
	policy->multiplier = load_number(object, "multiplier");
	policy->jitter = load_number(object, "jitter");
	policy->retry_on = load_patterns(object, "retry_on", &policy->nretry_on);
	policy->fail_on = load_patterns(object, "fail_on", &policy->nfail_on);
}

/* At least 1 and whole; "absent" if there is none. */
static int
load_count(JsonbContainer *object, const char *field, int absent)
{
	JsonbValue	value;
	double		number;

	if (!saga_json_get(object, field, &value))
		return absent;
	number = load_number(object, field);
	if (!(number >= 1 && number <= PG_INT32_MAX) || number != rint(number))
		corrupted(field);
	return (int) number;
}

/* NULL if there is none. */
static char *
load_text(JsonbContainer *object, const char *field)
{
	JsonbValue	value;

	return saga_json_get(object, field, &value) ?
		load_string(object, field) : NULL;
}

/* Not negative; "absent" if there is none. */
static int64
load_duration(JsonbContainer *object, const char *field, int64 absent)
{
	JsonbValue	value;
	int64		result;

	if (!saga_json_get(object, field, &value))
		return absent;
	result = load_seconds(object, field);
	if (result < 0)
		corrupted(field);
	return result;
}

static int
load_isolation(JsonbContainer *object)
{
	char	   *text = load_text(object, "isolation");

	if (text == NULL)
		return SAGA_ISOLATION_DEFAULT;
	for (int i = 0; saga_isolation_levels[i].name != NULL; i++)
	{
		if (strcmp(saga_isolation_levels[i].name, text) == 0)
			return saga_isolation_levels[i].level;
	}
	corrupted("isolation");
	return SAGA_ISOLATION_DEFAULT;
}


/* ---- from what is stored: a step by itself ---------------------------- */

static void
load_operation(JsonbContainer *object, SagaOperation operation,
			   SagaStep *step, SagaStepRule *rule)
{
	JsonbContainer *op = load_object(object, saga_operation_name(operation));
	JsonbContainer *policy;

	saga_definition_default_policy(operation, &rule->retry[operation]);
	if (op == NULL)
		return;
	step->function[operation] = load_text(op, "function");
	step->task[operation] = load_text(op, "task");
	step->timeout[operation] = load_duration(op, "timeout", 0);
	policy = load_object(op, "retry");
	if (policy == NULL)
		corrupted("retry");
	load_policy(policy, &rule->retry[operation]);
}

/* What is stored is made for people. */
static void
load_remote_functions(SagaStep *step)
{
	if (step->task[SAGA_OPERATION_ACTION] == NULL)
		corrupted("action");
	for (int op = 0; op < SAGA_NOPERATION; op++)
	{
		SagaRemoteName name;

		if (step->task[op] == NULL)
			continue;
		if (saga_remote_name_parse(step->task[op], &name) != NULL)
			corrupted("task");
		step->task[op] = saga_remote_name_quoted(&name);
	}
}

/* What only steps of one kind have. */
static void
load_kind(JsonbContainer *object, SagaStep *step)
{
	bool		has_action = step->function[SAGA_OPERATION_ACTION] != NULL;
	JsonbValue	value;

	switch (step->kind)
	{
		case SAGA_KIND_LOCAL:
			step->durable = load_bool(object, "durable");
			if (!has_action)
				corrupted("action");
			break;
		case SAGA_KIND_TIMER:
			if (!has_action)
			{
				step->duration = load_duration(object, "delay", -1);
				if (step->duration < 0)
					corrupted("delay");
			}
			break;
		case SAGA_KIND_SIGNAL:
			step->duration = load_duration(object, "timeout", 0);
			/* null is as good as any */
			if (getKeyJsonValueFromContainer(object, "otherwise",
											 strlen("otherwise"), &value))
				step->fallback = JsonbValueToJsonb(&value);
			break;
		case SAGA_KIND_CHILD:
			step->child = load_string(object, "definition");
			step->server = load_text(object, "server");
			break;
		case SAGA_KIND_EXTERNAL:
			step->queue = load_string(object, "queue");
			step->claim_timeout = load_duration(object, "claim_timeout", 0);
			step->total_timeout = load_duration(object, "total_timeout", 0);
			if (step->task[SAGA_OPERATION_ACTION] == NULL)
				corrupted("action");
			break;
		case SAGA_KIND_REMOTE:
			step->server = load_string(object, "server");
			step->total_timeout = load_duration(object, "total_timeout", 0);
			load_remote_functions(step);
			break;
	}
}

static bool
has_operation(const SagaStep *step, SagaOperation operation)
{
	return step->function[operation] != NULL || step->task[operation] != NULL;
}

static void
load_step(JsonbContainer *object, SagaStep *step, SagaStepRule *rule)
{
	char	   *kind = load_string(object, "kind");
	JsonbContainer *condition = load_object(object, "only_if");
	JsonbValue	value;

	step->name = load_string(object, "name");
	if (!saga_step_kind_parse(kind, &step->kind))
		corrupted("kind");
	pfree(kind);
	step->isolation = load_isolation(object);
	rule->pivot = load_bool(object, "pivot");
	if (condition != NULL)
		step->condition = load_string(condition, "function");
	for (int op = 0; op < SAGA_NOPERATION; op++)
		load_operation(object, (SagaOperation) op, step, rule);
	load_kind(object, step);

	rule->has_compensation = has_operation(step, SAGA_OPERATION_COMPENSATION);
	rule->has_confirmation = has_operation(step, SAGA_OPERATION_CONFIRMATION);
	rule->parallel = load_count(object, "parallel", 0);
	rule->quorum = load_count(object, "quorum", 0);
	rule->savepoint = saga_json_get(object, "savepoint", &value) &&
		load_bool(object, "savepoint");
	rule->recoveries = rule->savepoint ?
		load_count(object, "recoveries", 1) : 0;
	rule->alternative = -1;
	step->exclusive_until = -1;
	step->exclusive_timeout = load_duration(object, "exclusive_timeout",
											SAGA_EXCLUSIVE_TIMEOUT);
	step->concurrency = load_count(object, "concurrency", 0);
}


/* ---- from what is stored: how steps hang together --------------------- */

static int
compare_positions(const void *a, const void *b, void *steps)
{
	return strcmp(((const SagaStep *) steps)[*(const int16 *) a].name,
				  ((const SagaStep *) steps)[*(const int16 *) b].name);
}

/* Of a step that is named by another one. */
static int
load_position(const SagaDefinition *def, JsonbContainer *object,
			  const char *field)
{
	char	   *name = load_text(object, field);
	int			position = -1;

	if (name != NULL)
	{
		position = saga_definition_step(def, name);
		if (position < 0)
			corrupted(field);
		pfree(name);
	}
	return position;
}

/* The "after" of the step at this position. */
static void
load_after(const SagaDefinition *def, JsonbContainer *object, int position,
		   SagaStepRule *rule)
{
	JsonbContainer *array = load_array(object, "after");
	int16	   *preds;

	rule->npreds = JsonContainerSize(array);
	preds = palloc(Max(rule->npreds, 1) * sizeof(int16));
	for (int i = 0; i < rule->npreds; i++)
	{
		JsonbValue *value = getIthJsonbValueFromContainer(array, i);
		int			pred;

		if (value->type != jbvString)
			corrupted("after");
		pred = saga_definition_step(def, saga_json_string(value));
		if (pred < 0 || pred >= position)
			corrupted("after");
		preds[i] = pred;
	}
	rule->preds = preds;
}

/* Each step follows the one before it. */
static void
make_linear(SagaStepRule *rules, int n)
{
	int16	   *positions = palloc(n * sizeof(int16));

	for (int i = 0; i < n; i++)
	{
		positions[i] = i;
		rules[i].npreds = i > 0 ? 1 : 0;
		rules[i].preds = i > 0 ? &positions[i - 1] : NULL;
	}
}

static JsonbContainer *
stored_step(JsonbContainer *array, int i)
{
	JsonbValue *value = getIthJsonbValueFromContainer(array, i);
	JsonbContainer *step;

	if (!saga_json_is_object(value))
		corrupted("steps");
	step = value->val.binary.data;
	pfree(value);
	return step;
}

/* The first step says whether the steps say what they come after. */
static void
load_graph(SagaDefinition *def, SagaStepRule *rules, JsonbContainer *array)
{
	JsonbValue	value;
	int			n = def->rules.nsteps;

	if (!saga_json_get(stored_step(array, 0), "after", &value))
	{
		make_linear(rules, n);
		return;
	}
	if (n > SAGA_MAX_GRAPH)
		corrupted("after");
	for (int i = 0; i < n; i++)
		load_after(def, stored_step(array, i), i, &rules[i]);
	saga_rules_close(&def->rules, palloc(saga_rules_closure_size(n)));
}

/* The path of a field of the step at this position; text is NULL if none. */
static void
load_path(const SagaDefinition *def, JsonbContainer *object,
		  const char *field, int position, SagaPath *path)
{
	path->text = load_text(object, field);
	path->step = -1;
	if (path->text == NULL)
		return;
	path->fields = split_path(path->text, &path->nfields);
	if (path->fields == NULL)
		corrupted(field);
	path->step = saga_definition_earlier_step(def, path->fields[0], position);
	if (path->step >= 0)
	{
		path->nfields--;
		path->fields++;
	}
}

/* What a step says of others. */
static void
load_references(SagaDefinition *def, SagaStep *step, SagaStepRule *rule,
				JsonbContainer *object, int position)
{
	load_path(def, object, "foreach", position, &step->foreach);
	load_path(def, object, "exclusive", position, &step->exclusive);
	step->exclusive_until = load_position(def, object, "exclusive_until");
	rule->foreach = step->foreach.text != NULL;
	rule->exclusive = step->exclusive.text != NULL || step->concurrency > 0;
	rule->alternative = load_position(def, object, "and_then");
	if (rule->alternative >= 0 &&
		(!rule->savepoint ||
		 !saga_rules_is_before(&def->rules, position, rule->alternative)))
		corrupted("and_then");
	def->has_pivot |= rule->pivot;
	def->has_exclusive |= rule->exclusive;
	def->has_concurrency |= step->concurrency > 0;
	def->has_children |= step->kind == SAGA_KIND_CHILD;
	def->has_remote |= step->server != NULL;
	def->has_tasks |= saga_step_has_tasks(step);
	def->rules.has_savepoints |= rule->savepoint;
}

/*
 * A child completes when it is let, which is its confirmation; it can be told
 * to go back instead as long as the saga may have to.
 */
static void
set_child_rules(const SagaStep *steps, SagaStepRule *rules, int n)
{
	bool	   *no_way_back = palloc0(n * sizeof(bool));

	for (int i = 0; i < n; i++)
	{
		no_way_back[i] = rules[i].pivot;
		for (int p = 0; p < rules[i].npreds && !no_way_back[i]; p++)
			no_way_back[i] = no_way_back[rules[i].preds[p]];
		if (steps[i].kind == SAGA_KIND_CHILD)
		{
			rules[i].has_confirmation = true;
			rules[i].has_compensation = !no_way_back[i];
		}
	}
	pfree(no_way_back);
}


/* ---- from what is stored: what the input must have -------------------- */

static int
compare_strings(const void *a, const void *b)
{
	return strcmp(*(char *const *) a, *(char *const *) b);
}

/*
 * Add the parameters of a function that no step before this one provides, nor
 * this one itself if its action has been done when the function is called.
 */
static void
collect_required(const SagaDefinition *def, JsonbContainer *function,
				 int position, bool has_own, List **names)
{
	JsonbValue	value;
	JsonbContainer *arguments;

	/* there may be a policy alone */
	if (function == NULL || !saga_json_get(function, "function", &value))
		return;
	arguments = load_array(function, "arguments");
	for (uint32 i = 0; i < JsonContainerSize(arguments); i++)
	{
		JsonbValue *argument = getIthJsonbValueFromContainer(arguments, i);
		char	   *name;
		bool		provided;

		if (!saga_json_is_object(argument))
			corrupted("arguments");
		name = load_string(argument->val.binary.data, "name");
		provided = load_bool(argument->val.binary.data, "optional") ||
			saga_definition_earlier_step(def, name, position) >= 0 ||
			(has_own && strcmp(def->steps[position].name, name) == 0);
		if (provided)
			pfree(name);
		else
			*names = lappend(*names, name);
		pfree(argument);
	}
}

static List *
collect_names(const SagaDefinition *def, JsonbContainer *array)
{
	List	   *names = NIL;

	for (int i = 0; i < def->rules.nsteps; i++)
	{
		JsonbContainer *step = stored_step(array, i);

		if (def->rules.steps[i].foreach)
			continue;
		collect_required(def, load_object(step, "only_if"), i, false, &names);
		for (int op = 0; op < SAGA_NOPERATION; op++)
			collect_required(def,
							 load_object(step,
										 saga_operation_name((SagaOperation) op)),
							 i, op != SAGA_OPERATION_ACTION, &names);
	}
	return names;
}

static void
load_required(SagaDefinition *def, JsonbContainer *array)
{
	List	   *names = collect_names(def, array);
	int			n = list_length(names);
	const char **required = palloc(Max(n, 1) * sizeof(char *));
	int			kept = 0;

	for (int i = 0; i < n; i++)
		required[i] = list_nth(names, i);
	qsort(required, n, sizeof(char *), compare_strings);
	for (int i = 0; i < n; i++)
	{
		if (kept == 0 || strcmp(required[kept - 1], required[i]) != 0)
			required[kept++] = required[i];
	}
	list_free(names);
	def->nrequired = kept;
	def->required = required;
}


/* ---- from what is stored: the whole ----------------------------------- */

/* The steps by themselves, and the index of their names. */
static void
load_steps(SagaDefinition *def, JsonbContainer *array, SagaStep *steps,
		   SagaStepRule *rules)
{
	int			n = def->rules.nsteps;
	int16	   *by_name = palloc(n * sizeof(int16));

	for (int i = 0; i < n; i++)
	{
		CHECK_FOR_INTERRUPTS();
		load_step(stored_step(array, i), &steps[i], &rules[i]);
		by_name[i] = i;
	}
	qsort_arg(by_name, n, sizeof(int16), compare_positions, steps);
	def->by_name = by_name;
}

void
saga_definition_build(SagaDefinition *def, Jsonb *stored,
					  MemoryContext context)
{
	MemoryContext old = MemoryContextSwitchTo(context);
	JsonbContainer *array = &stored->root;
	int			n;
	SagaStep   *steps;
	SagaStepRule *rules;

	if (!JB_ROOT_IS_ARRAY(stored) || JB_ROOT_IS_SCALAR(stored) ||
		JB_ROOT_COUNT(stored) == 0 || JB_ROOT_COUNT(stored) > SAGA_MAX_STEPS)
		corrupted("steps");
	n = JB_ROOT_COUNT(stored);
	steps = MemoryContextAllocHuge(context, n * sizeof(SagaStep));
	memset(steps, 0, n * sizeof(SagaStep));
	rules = MemoryContextAllocHuge(context, n * sizeof(SagaStepRule));
	memset(rules, 0, n * sizeof(SagaStepRule));
	memset(&def->rules, 0, sizeof(def->rules));
	def->rules.nsteps = n;
	def->rules.steps = rules;
	def->steps = steps;
	def->has_pivot = def->has_exclusive = def->has_concurrency = false;

	load_steps(def, array, steps, rules);
	load_graph(def, rules, array);
	for (int i = 0; i < n; i++)
		load_references(def, &steps[i], &rules[i], stored_step(array, i), i);
	set_child_rules(steps, rules, n);
	load_required(def, array);
	MemoryContextSwitchTo(old);
}


/* ---- questions -------------------------------------------------------- */

int
saga_definition_step(const SagaDefinition *def, const char *name)
{
	int			low = 0;
	int			high = def->rules.nsteps - 1;

	while (low <= high)
	{
		int			middle = (low + high) / 2;
		int			position = def->by_name[middle];
		int			order = strcmp(name, def->steps[position].name);

		if (order == 0)
			return position;
		if (order < 0)
			high = middle - 1;
		else
			low = middle + 1;
	}
	return -1;
}

int
saga_definition_earlier_step(const SagaDefinition *def, const char *name,
							 int before)
{
	int			step = saga_definition_step(def, name);

	return step >= 0 && saga_rules_is_before(&def->rules, step, before) ?
		step : -1;
}

/* Sagas of a definition that take turns need the value by which they do. */
static void
check_exclusive(const SagaDefinition *def, Jsonb *input)
{
	const SagaPath *path = &def->exclusive;
	JsonbValue	value;

	if (path->text == NULL)
		return;
	if (!saga_path_find(path, input, NULL, NULL, &value))
		ereport(ERROR,
				errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				errmsg("input of saga definition \"%s\" lacks \"%s\"",
					   def->name, path->text),
				errdetail("Its sagas take turns by this value."),
				errhint("saga.configure(..., exclusive => '') lets them run side by side."));
	if (!IsAJsonbScalar(&value))
		ereport(ERROR,
				errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				errmsg("value of \"%s\" in the input of saga definition \"%s\" is not a scalar",
					   path->text, def->name),
				errdetail("Its sagas take turns by this value: a string, a number, true or false."));
}

void
saga_definition_check_input(const SagaDefinition *def, Jsonb *input)
{
	if (!JB_ROOT_IS_OBJECT(input))
		ereport(ERROR,
				errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				errmsg("input of a saga must be a JSON object"));
	for (int i = 0; i < def->nrequired; i++)
	{
		const char *name = def->required[i];
		JsonbValue	value;

		if (getKeyJsonValueFromContainer(&input->root, name, strlen(name),
										 &value) == NULL)
			ereport(ERROR,
					errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					errmsg("input of saga definition \"%s\" lacks \"%s\"",
						   def->name, name),
					errdetail("A step function has a parameter of this name, without a default, and no earlier step is named so."));
	}
	check_exclusive(def, input);
}

TimestampTz
saga_definition_deadline(const SagaDefinition *def, TimestampTz start_at)
{
	TimestampTz deadline;

	if (def->deadline == 0)
		return 0;
	if (pg_add_s64_overflow(Max(start_at, GetCurrentTimestamp()),
							def->deadline, &deadline) ||
		!IS_VALID_TIMESTAMP(deadline))
		ereport(ERROR,
				errcode(ERRCODE_DATETIME_VALUE_OUT_OF_RANGE),
				errmsg("deadline of the saga is out of range"),
				errdetail("Saga definition \"%s\" sets it relative to the start.",
						  def->name));
	return deadline;
}
