/*
 * definition.c
 *		Owns what a definition is: the checks that saga.define() makes, the form
 *		in which its steps are stored, and the making of SagaDefinition from it.
 *
 * Functions are looked up here and nowhere else: by what the definer wrote, as
 * the current user under its search_path, when a definition is made; by the
 * stored signature, which depends on no setting, when a step is to run.
 *
 * Runs in any backend, and reads system catalogs only: nothing is left behind
 * when it is killed.
 */
#include "postgres.h"

#include <math.h>

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "common/int.h"
#include "funcapi.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "parser/scansup.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/catcache.h"
#include "utils/lsyscache.h"
#include "utils/regproc.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"
#include "utils/varlena.h"

#include "compat.h"
#include "definition.h"
#include "json.h"

/* Bounds of what a step may say; longer is taken for a slip of the pen. */
#define MIN_TIMEOUT		INT64CONST(1000)
#define MAX_TIMEOUT		(365 * USECS_PER_DAY)
#define MAX_DELAY		(365 * USECS_PER_DAY)
#define MAX_MULTIPLIER	1000.0
#define MAX_INTERVAL_DAYS	36525

/* How many functions or definitions a hint names. */
#define MAX_SIMILAR		3

#define STEP_FIELDS \
	"name, kind, action, compensation, pivot, timeout, retry, compensation_timeout, compensation_retry, isolation and durable"
#define POLICY_FIELDS \
	"max_attempts, initial_delay, max_delay, multiplier, jitter, retry_on and fail_on"

/* One element of what saga.define() was given. */
typedef struct StepInput
{
	const char *where;			/* step "charge"; step 3 if it has no name */
	const char *name;
	const char *function[SAGA_NOPERATION];	/* as given */
	Oid			oid[SAGA_NOPERATION];
	int64		timeout[SAGA_NOPERATION];	/* 0 = none */
	bool		has_retry[SAGA_NOPERATION];
	SagaRetryPolicy retry[SAGA_NOPERATION];
	const char *isolation;
	bool		pivot;
	bool		durable;
} StepInput;

/* A function that was asked for, and what messages say of it. */
typedef struct FunctionUse
{
	const char *given;
	const char *operation;
	const char *where;
} FunctionUse;

static const struct
{
	const char *name;
	int			level;
}			isolation_levels[] =
{
	{"read committed", XACT_READ_COMMITTED},
	{"repeatable read", XACT_REPEATABLE_READ},
	{"serializable", XACT_SERIALIZABLE}
};


/* ---- values ----------------------------------------------------------- */

static void
invalid_value(const char *field, const char *where, const char *detail)
{
	ereport(ERROR,
			errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			errmsg("invalid %s in %s", field, where),
			errdetail_internal("%s", detail));
}

static void
expect_type(const JsonbValue *value, enum jbvType type, const char *field,
			const char *where)
{
	if (value->type == type)
		return;
	switch (type)
	{
		case jbvString:
			invalid_value(field, where, "It must be a string.");
			break;
		case jbvNumeric:
			invalid_value(field, where, "It must be a number.");
			break;
		case jbvBool:
			invalid_value(field, where, "It must be true or false.");
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
		invalid_value(field, where, detail);
	return (int64) microseconds;
}

int64
saga_definition_microseconds(const Interval *interval, const char *field,
							 const char *where)
{
	int64		result;

	if (!saga_interval_is_finite(interval))
		invalid_value(field, where, "It must not be infinite.");
	if (interval->month != 0)
		invalid_value(field, where,
					  "Months and years have no fixed length: use days.");
	if (interval->day > MAX_INTERVAL_DAYS || interval->day < -MAX_INTERVAL_DAYS)
		invalid_value(field, where, "It must not be longer than 100 years.");
	if (pg_add_s64_overflow(interval->day * USECS_PER_DAY, interval->time,
							&result) ||
		result > MAX_INTERVAL_DAYS * USECS_PER_DAY ||
		result < -MAX_INTERVAL_DAYS * USECS_PER_DAY)
		invalid_value(field, where, "It must not be longer than 100 years.");
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


/* ---- retry policies --------------------------------------------------- */

void
saga_definition_default_policy(SagaOperation operation,
							   SagaRetryPolicy *policy)
{
	memset(policy, 0, sizeof(*policy));
	policy->max_attempts = operation == SAGA_OPERATION_ACTION ? 5 : 20;
	policy->initial_delay = USECS_PER_SEC;
	policy->max_delay = 5 * USECS_PER_MINUTE;
	policy->multiplier = 2;
	policy->jitter = 0.2;
}

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
		invalid_value(field, where, "It must be an array of strings.");
	text = saga_json_string(value);
	if ((strlen(text) != 2 && strlen(text) != SAGA_SQLSTATE_LENGTH) ||
		strspn(text, "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ") != strlen(text))
		invalid_value(field, where,
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
		invalid_value(field, where, "It must be an array of strings.");
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
		invalid_value(field, where,
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
			invalid_value(field, where, "It must be from 1 to 1000.");
	}
	else if (strcmp(field, "jitter") == 0)
	{
		policy->jitter = number_field(value, field, where);
		if (!(policy->jitter >= 0 && policy->jitter <= 1))
			invalid_value(field, where, "It must be from 0 to 1.");
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

/* Fill "policy", which has the defaults, with the fields of an object. */
static void
read_policy(JsonbContainer *object, const char *where, SagaRetryPolicy *policy)
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
		invalid_value("max_delay", where,
					  "It must not be less than initial_delay.");
	if (policy->max_attempts == 0 && policy->initial_delay == 0)
		invalid_value("initial_delay", where,
					  "It must be greater than zero when there is no limit of attempts.");
}

static void
write_patterns(SagaJsonWriter *writer, const char *key,
			   const SagaSqlStatePattern *patterns, int n)
{
	saga_json_key(writer, key);
	saga_json_begin_array(writer);
	for (int i = 0; i < n; i++)
		saga_json_add_string(writer, patterns[i].text);
	saga_json_end_array(writer);
}

/* The fields of an object that has begun. */
static void
write_policy(SagaJsonWriter *writer, const SagaRetryPolicy *policy)
{
	saga_json_put_int(writer, "max_attempts", policy->max_attempts);
	saga_json_put_seconds(writer, "initial_delay", policy->initial_delay);
	saga_json_put_seconds(writer, "max_delay", policy->max_delay);
	saga_json_put_double(writer, "multiplier", policy->multiplier);
	saga_json_put_double(writer, "jitter", policy->jitter);
	write_patterns(writer, "retry_on", policy->retry_on, policy->nretry_on);
	write_patterns(writer, "fail_on", policy->fail_on, policy->nfail_on);
}

Jsonb *
saga_definition_check_policy(Jsonb *json, const char *where)
{
	SagaRetryPolicy policy;
	SagaJsonWriter writer = NULL;

	if (!JB_ROOT_IS_OBJECT(json))
		ereport(ERROR,
				errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				errmsg("%s is not an object", where));
	saga_definition_default_policy(SAGA_OPERATION_ACTION, &policy);
	read_policy(&json->root, where, &policy);
	saga_json_begin_object(&writer);
	write_policy(&writer, &policy);
	return saga_json_finish_object(&writer);
}


/* ---- functions -------------------------------------------------------- */

/*
 * "shop"."charge"(...) in its parts, "types" being what follows the opening
 * parenthesis, or NULL; false if it is no such thing.
 */
static bool
split_name(const char *given, char **schema, char **name, char **types)
{
	char	   *copy = pstrdup(given);
	bool		quoted = false;
	List	   *parts;
	char	   *p;

	for (p = copy; *p != '\0'; p++)
	{
		if (*p == '"')
			quoted = !quoted;
		else if (*p == '(' && !quoted)
			break;
	}
	*types = *p == '(' ? p + 1 : NULL;
	*p = '\0';
	if (!SplitIdentifierString(copy, '.', &parts))
		return false;
	*schema = NULL;
	if (list_length(parts) == 1)
		*name = linitial(parts);
	else if (list_length(parts) == 2)
	{
		*schema = linitial(parts);
		*name = lsecond(parts);
	}
	else
		return false;
	return true;
}

/* The end of a type's name, at a comma that is not part of it or at the end. */
static char *
end_of_type(char *p)
{
	bool		quoted = false;
	int			depth = 0;

	for (; *p != '\0'; p++)
	{
		if (*p == '"')
			quoted = !quoted;
		else if (quoted)
			continue;
		else if (*p == '(')
			depth++;
		else if (*p == ')')
			depth--;
		else if (*p == ',' && depth == 0)
			break;
	}
	return p;
}

/* "integer, numeric(3,2))" in its parts; false if it is no such thing. */
static bool
split_types(const char *given, List **types)
{
	char	   *copy = pstrdup(given);
	char	   *p = copy + strlen(copy);

	*types = NIL;
	while (p > copy && scanner_isspace(p[-1]))
		p--;
	if (p == copy || p[-1] != ')')
		return false;
	p[-1] = '\0';
	if (copy[strspn(copy, " \t\n\r\f")] == '\0')
		return true;
	for (p = copy;; p++)
	{
		char	   *end = end_of_type(p);
		bool		last = *end == '\0';

		*end = '\0';
		p += strspn(p, " \t\n\r\f");
		if (*p == '\0')
			return false;
		*types = lappend(*types, p);
		if (last)
			return list_length(*types) <= FUNC_MAX_ARGS;
		p = end;
	}
}

static List *
make_names(const char *schema, const char *name)
{
	List	   *names = list_make1(makeString(pstrdup(name)));

	return schema == NULL ? names : lcons(makeString(pstrdup(schema)), names);
}

/*
 * The function with parameters of exactly these types, or InvalidOid; that
 * too, with its name in "missing", if one of the types does not exist.
 */
static Oid
find_by_types(const char *schema, const char *name, List *types,
			  const char **missing)
{
	Oid			oids[FUNC_MAX_ARGS];
	int			n = 0;
	ListCell   *cell;
	FuncCandidateList candidates;

	*missing = NULL;
	foreach(cell, types)
	{
		oids[n] = saga_parse_type(lfirst(cell));
		if (!OidIsValid(oids[n]))
		{
			*missing = lfirst(cell);
			return InvalidOid;
		}
		n++;
	}
	candidates = FuncnameGetCandidates(make_names(schema, name), n, NIL,
									   false, false, false, true);
	for (; candidates != NULL; candidates = candidates->next)
	{
		if (memcmp(candidates->args, oids, n * sizeof(Oid)) == 0)
			return candidates->oid;
	}
	return InvalidOid;
}

static bool
takes_context(HeapTuple tuple)
{
	Form_pg_proc form = (Form_pg_proc) GETSTRUCT(tuple);

	return form->pronargs == 1 && form->proargtypes.values[0] == JSONBOID;
}

static const char *
parameter_fault(HeapTuple tuple)
{
	Oid		   *types;
	char	  **names;
	char	   *modes;
	int			n = get_func_arg_info(tuple, &types, &names, &modes);

	for (int i = 0; i < n; i++)
	{
		if (modes != NULL && modes[i] != PROARGMODE_IN)
			return "It has an OUT, INOUT, TABLE or VARIADIC parameter.";
	}
	if (takes_context(tuple))
		return NULL;
	for (int i = 0; i < n; i++)
	{
		if (names == NULL || names[i][0] == '\0')
			return psprintf("Its parameter %d has no name.", i + 1);
		if (get_typtype(types[i]) == TYPTYPE_PSEUDO)
			return psprintf("Its parameter \"%s\" has the pseudo-type %s.",
							names[i], format_type_be(types[i]));
		if (!get_typisdefined(types[i]))
			return psprintf("The type %s of its parameter \"%s\" is only a shell.",
							format_type_be(types[i]), names[i]);
	}
	return NULL;
}

/* Why this function cannot be an operation of a step, or NULL. */
static const char *
function_fault(HeapTuple tuple)
{
	Form_pg_proc form = (Form_pg_proc) GETSTRUCT(tuple);

	if (form->prokind == PROKIND_PROCEDURE)
		return "It is a procedure.";
	if (form->prokind == PROKIND_AGGREGATE)
		return "It is an aggregate function.";
	if (form->prokind == PROKIND_WINDOW)
		return "It is a window function.";
	if (isAnyTempNamespace(form->pronamespace))
		return "It is temporary.";
	if (form->proretset)
		return "It returns a set.";
	if (get_typtype(form->prorettype) == TYPTYPE_PSEUDO &&
		form->prorettype != VOIDOID && form->prorettype != RECORDOID)
		return psprintf("It returns the pseudo-type %s.",
						format_type_be(form->prorettype));
	return parameter_fault(tuple);
}

#define FUNCTION_HINT \
	"The function of a step has named parameters, or one of type jsonb, the context, and returns one value or nothing."

static Oid
find_stored(const char *signature, const char *schema, const char *name)
{
	Oid			namespace = get_namespace_oid(schema, true);
	Oid			found = InvalidOid;
	CatCList   *list;

	if (!OidIsValid(namespace))
		return InvalidOid;
	list = SearchSysCacheList1(PROCNAMEARGSNSP, CStringGetDatum(name));
	for (int i = 0; i < list->n_members && !OidIsValid(found); i++)
	{
		Form_pg_proc form = (Form_pg_proc) GETSTRUCT(&list->members[i]->tuple);
		char	   *candidate;

		if (form->pronamespace != namespace)
			continue;
		candidate = format_procedure_qualified(form->oid);
		if (strcmp(candidate, signature) == 0)
			found = form->oid;
		pfree(candidate);
	}
	ReleaseSysCacheList(list);
	return found;
}

Oid
saga_definition_function(const char *signature)
{
	char	   *schema;
	char	   *name;
	char	   *text;
	List	   *types;
	const char *missing;
	Oid			function;
	HeapTuple	tuple;
	Oid			namespace;
	const char *fault;

	if (!split_name(signature, &schema, &name, &text) ||
		schema == NULL || text == NULL || !split_types(text, &types))
		ereport(ERROR,
				errcode(ERRCODE_DATA_CORRUPTED),
				errmsg("invalid function signature in a saga definition: \"%s\"",
					   signature));

	/*
	 * As a rule the text is what this server would write, and needs no
	 * parsing, which would ask for USAGE of the schemas of the types.  After
	 * an upgrade it may be another spelling of the same.
	 */
	function = find_stored(signature, schema, name);
	if (!OidIsValid(function))
		function = find_by_types(schema, name, types, &missing);
	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(function));
	if (!HeapTupleIsValid(tuple))
		ereport(ERROR,
				errcode(ERRCODE_UNDEFINED_FUNCTION),
				errmsg("function %s does not exist", signature));

	namespace = ((Form_pg_proc) GETSTRUCT(tuple))->pronamespace;
	if (saga_schema_aclcheck(namespace, GetUserId()) != ACLCHECK_OK)
		ereport(ERROR,
				errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				errmsg("permission denied for schema %s", schema));
	fault = function_fault(tuple);
	if (fault != NULL)
		ereport(ERROR,
				errcode(ERRCODE_INVALID_FUNCTION_DEFINITION),
				errmsg("function %s cannot be used in a saga", signature),
				errdetail_internal("%s", fault),
				errhint(FUNCTION_HINT));
	ReleaseSysCache(tuple);
	return function;
}


/* ---- functions, as saga.define() finds them --------------------------- */

/* A function that the user may have meant: the smaller the score the likelier. */
typedef struct Similar
{
	int			score;
	char	   *text;
} Similar;

static void
add_similar(Similar *similar, int *n, int score, char *text)
{
	int			i = *n;

	while (i > 0 && (similar[i - 1].score > score ||
					 (similar[i - 1].score == score &&
					  strcmp(similar[i - 1].text, text) > 0)))
		i--;
	if (i == MAX_SIMILAR)
		return;
	if (*n < MAX_SIMILAR)
		(*n)++;
	memmove(&similar[i + 1], &similar[i], (*n - 1 - i) * sizeof(Similar));
	similar[i].score = score;
	similar[i].text = text;
}

/* How far the function's name is from the one given, or -1 for too far. */
static int
score_function(Form_pg_proc form, Oid namespace, List *path, const char *name)
{
	int			length = strlen(name);
	int			limit = Min(Min(length / 3 + 1, 4), length - 1);
	bool		at_home = OidIsValid(namespace) ?
		form->pronamespace == namespace :
		list_member_oid(path, form->pronamespace);
	int			distance;

	if (form->prokind != PROKIND_FUNCTION ||
		isAnyTempNamespace(form->pronamespace))
		return -1;
	if (!at_home)
	{
		/* elsewhere only the very same name is worth a word */
		if (form->pronamespace == PG_CATALOG_NAMESPACE ||
			strcmp(NameStr(form->proname), name) != 0)
			return -1;
		return limit;
	}
	if (form->pronamespace == PG_CATALOG_NAMESPACE && !OidIsValid(namespace))
		return -1;
	distance = varstr_levenshtein_less_equal(NameStr(form->proname),
											 strlen(NameStr(form->proname)),
											 name, length, 1, 1, 1,
											 limit, true);
	return distance > limit ? -1 : distance;
}

/* Up to three functions with a name like that one, or NULL. */
static char *
similar_functions(Oid namespace, const char *name)
{
	Similar		similar[MAX_SIMILAR + 1];
	int			n = 0;
	List	   *path = fetch_search_path(false);
	Relation	rel = table_open(ProcedureRelationId, AccessShareLock);
	SysScanDesc scan = systable_beginscan(rel, InvalidOid, false, NULL, 0, NULL);
	HeapTuple	tuple;
	StringInfoData buf;

	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Form_pg_proc form = (Form_pg_proc) GETSTRUCT(tuple);
		int			score = score_function(form, namespace, path, name);

		if (score >= 0 &&
			saga_schema_aclcheck(form->pronamespace, GetUserId()) == ACLCHECK_OK)
			add_similar(similar, &n, score, format_procedure(form->oid));
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	if (n == 0)
		return NULL;

	initStringInfo(&buf);
	for (int i = 0; i < n; i++)
		appendStringInfo(&buf, "%s%s", i > 0 ? ", " : "", similar[i].text);
	return buf.data;
}

static void
report_undefined(const FunctionUse *use, Oid namespace, const char *schema,
				 const char *name)
{
	char	   *similar = similar_functions(namespace, name);

	ereport(ERROR,
			errcode(ERRCODE_UNDEFINED_FUNCTION),
			errmsg("function \"%s\" (%s of %s) does not exist",
				   use->given, use->operation, use->where),
			schema != NULL && !OidIsValid(namespace) ?
			errdetail("There is no schema \"%s\".", schema) : 0,
			similar != NULL ?
			errhint("Similar functions: %s.", similar) :
			schema == NULL ?
			errhint("A function that is not on the search_path is given with its schema.") : 0);
}

static int
compare_texts(const ListCell *a, const ListCell *b)
{
	return strcmp(lfirst(a), lfirst(b));
}

static void
report_ambiguous(const FunctionUse *use, List *candidates)
{
	List	   *texts = NIL;
	ListCell   *cell;
	StringInfoData buf;

	foreach(cell, candidates)
		texts = lappend(texts, format_procedure(lfirst_oid(cell)));
	list_sort(texts, compare_texts);
	initStringInfo(&buf);
	foreach(cell, texts)
		appendStringInfo(&buf, "%s%s", buf.len > 0 ? ", " : "",
						 (char *) lfirst(cell));
	ereport(ERROR,
			errcode(ERRCODE_AMBIGUOUS_FUNCTION),
			errmsg("function \"%s\" (%s of %s) is not unique",
				   use->given, use->operation, use->where),
			errdetail("Candidates: %s.", buf.data),
			errhint("Give the types of its parameters too: '%s'.",
					(char *) linitial(texts)));
}

/* The context of errors that PostgreSQL's own parser raises. */
static void
describe_use(void *arg)
{
	const FunctionUse *use = arg;

	errcontext("function \"%s\" (%s of %s)", use->given, use->operation,
			   use->where);
}

static void
report_malformed(const FunctionUse *use)
{
	ereport(ERROR,
			errcode(ERRCODE_INVALID_NAME),
			errmsg("invalid name of a function: \"%s\" (%s of %s)",
				   use->given, use->operation, use->where),
			errhint("Use 'name', 'schema.name' or 'schema.name(type, ...)'."));
}

static Oid
find_with_types(FunctionUse *use, const char *schema, const char *name,
				const char *text)
{
	ErrorContextCallback callback;
	List	   *types;
	const char *missing;
	Oid			function;

	if (!split_types(text, &types))
		report_malformed(use);
	callback.callback = describe_use;
	callback.arg = use;
	callback.previous = error_context_stack;
	error_context_stack = &callback;
	function = find_by_types(schema, name, types, &missing);
	error_context_stack = callback.previous;
	if (missing != NULL)
		ereport(ERROR,
				errcode(ERRCODE_UNDEFINED_OBJECT),
				errmsg("type \"%s\" of function \"%s\" (%s of %s) does not exist",
					   missing, use->given, use->operation, use->where));
	return function;
}

static bool
is_usable(Oid function)
{
	HeapTuple	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(function));
	bool		usable;

	if (!HeapTupleIsValid(tuple))
		return false;
	usable = function_fault(tuple) == NULL;
	ReleaseSysCache(tuple);
	return usable;
}

/*
 * The only function of that name, or the only one that a saga can use: the
 * name may also be one of PostgreSQL's own, most of which it cannot.
 */
static Oid
find_by_name(const FunctionUse *use, const char *schema, const char *name)
{
	FuncCandidateList candidates;
	List	   *usable = NIL;

	candidates = FuncnameGetCandidates(make_names(schema, name), -1, NIL,
									   false, false, false, true);
	if (candidates == NULL)
		return InvalidOid;
	if (candidates->next == NULL)
		return candidates->oid;
	for (FuncCandidateList c = candidates; c != NULL; c = c->next)
	{
		if (is_usable(c->oid))
			usable = lappend_oid(usable, c->oid);
	}
	if (list_length(usable) == 1)
		return linitial_oid(usable);
	if (usable == NIL)
	{
		for (FuncCandidateList c = candidates; c != NULL; c = c->next)
			usable = lappend_oid(usable, c->oid);
	}
	report_ambiguous(use, usable);
	return InvalidOid;			/* not reached */
}

static void
check_schema(const FunctionUse *use, Oid namespace, const char *schema)
{
	if (saga_schema_aclcheck(namespace, GetUserId()) != ACLCHECK_OK)
		ereport(ERROR,
				errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				errmsg("permission denied for schema \"%s\" of function \"%s\" (%s of %s)",
					   schema, use->given, use->operation, use->where));
}

static void
report_unusable(const FunctionUse *use, const char *fault)
{
	ereport(ERROR,
			errcode(ERRCODE_INVALID_FUNCTION_DEFINITION),
			errmsg("function \"%s\" (%s of %s) cannot be used in a saga",
				   use->given, use->operation, use->where),
			errdetail_internal("%s", fault),
			errhint(FUNCTION_HINT));
}

/* May it be called, and can it be? */
static void
check_function(const FunctionUse *use, Oid function)
{
	HeapTuple	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(function));
	const char *fault;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for function %u", function);
	fault = function_fault(tuple);
	if (fault != NULL)
		report_unusable(use, fault);
	ReleaseSysCache(tuple);
	if (saga_function_aclcheck(function, GetUserId()) != ACLCHECK_OK)
		ereport(ERROR,
				errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				errmsg("permission denied for function \"%s\" (%s of %s)",
					   use->given, use->operation, use->where));
}

static Oid
resolve_function(FunctionUse *use)
{
	char	   *schema;
	char	   *name;
	char	   *types;
	Oid			namespace = InvalidOid;
	Oid			function;

	if (!split_name(use->given, &schema, &name, &types))
		report_malformed(use);
	if (schema != NULL)
	{
		if (strcmp(schema, "pg_temp") == 0)
			report_unusable(use, "It is temporary.");
		namespace = get_namespace_oid(schema, true);
		if (!OidIsValid(namespace))
			report_undefined(use, namespace, schema, name);
		check_schema(use, namespace, schema);
	}
	function = types != NULL ? find_with_types(use, schema, name, types) :
		find_by_name(use, schema, name);
	if (!OidIsValid(function))
		report_undefined(use, namespace, schema, name);
	check_function(use, function);
	return function;
}


/* ---- saga.define(): reading ------------------------------------------- */

static int64
timeout_field(const JsonbValue *value, const char *field, const char *where)
{
	return seconds_field(value, field, where, MIN_TIMEOUT, MAX_TIMEOUT,
						 "It must be from 1 ms to 365 days.");
}

static void
retry_field(StepInput *step, SagaOperation operation, const char *field,
			const JsonbValue *value)
{
	if (!saga_json_is_object(value))
		invalid_value(field, step->where,
					  "It must be what saga.retry_policy() returns.");
	read_policy(value->val.binary.data,
				psprintf("%s of %s", field, step->where),
				&step->retry[operation]);
	step->has_retry[operation] = true;
}

static const char *
isolation_field(const JsonbValue *value, const char *field, const char *where)
{
	char	   *text = string_field(value, field, where);

	for (size_t i = 0; i < lengthof(isolation_levels); i++)
	{
		if (pg_strcasecmp(isolation_levels[i].name, text) == 0)
			return isolation_levels[i].name;
	}
	invalid_value(field, where,
				  "It must be \"read committed\", \"repeatable read\" or \"serializable\".");
	return NULL;
}

static void
kind_field(const JsonbValue *value, const char *where)
{
	char	   *kind = string_field(value, "kind", where);

	if (strcmp(kind, "local") != 0)
		invalid_value("kind", where,
					  psprintf("There is no kind \"%s\".", kind));
}

static void
read_step_field(StepInput *step, const char *field, const JsonbValue *value)
{
	const char *where = step->where;

	if (strcmp(field, "name") == 0)
		step->name = string_field(value, field, where);
	else if (strcmp(field, "kind") == 0)
		kind_field(value, where);
	else if (strcmp(field, "action") == 0)
		step->function[SAGA_OPERATION_ACTION] =
			string_field(value, field, where);
	else if (strcmp(field, "compensation") == 0)
		step->function[SAGA_OPERATION_COMPENSATION] =
			string_field(value, field, where);
	else if (strcmp(field, "timeout") == 0)
		step->timeout[SAGA_OPERATION_ACTION] =
			timeout_field(value, field, where);
	else if (strcmp(field, "compensation_timeout") == 0)
		step->timeout[SAGA_OPERATION_COMPENSATION] =
			timeout_field(value, field, where);
	else if (strcmp(field, "retry") == 0)
		retry_field(step, SAGA_OPERATION_ACTION, field, value);
	else if (strcmp(field, "compensation_retry") == 0)
		retry_field(step, SAGA_OPERATION_COMPENSATION, field, value);
	else if (strcmp(field, "isolation") == 0)
		step->isolation = isolation_field(value, field, where);
	else if (strcmp(field, "pivot") == 0)
		step->pivot = bool_field(value, field, where);
	else if (strcmp(field, "durable") == 0)
		step->durable = bool_field(value, field, where);
	else
		ereport(ERROR,
				errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				errmsg("unrecognized field \"%s\" in %s", field, where),
				errhint("The fields of a step are %s: see saga.step().",
						STEP_FIELDS));
}

static void
read_step_fields(StepInput *step, JsonbContainer *object)
{
	JsonbIterator *iterator = JsonbIteratorInit(object);
	JsonbValue	item;
	JsonbValue	value;

	(void) JsonbIteratorNext(&iterator, &item, true);
	while (JsonbIteratorNext(&iterator, &item, true) == WJB_KEY)
	{
		(void) JsonbIteratorNext(&iterator, &value, true);
		if (value.type != jbvNull)
			read_step_field(step, saga_json_string(&item), &value);
	}
}

static void
check_step(const StepInput *step)
{
	if (step->name == NULL)
		ereport(ERROR,
				errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				errmsg("%s has no name", step->where));
	saga_definition_check_name(step->name, "step");
	if (step->function[SAGA_OPERATION_ACTION] == NULL)
		ereport(ERROR,
				errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				errmsg("%s has no action", step->where));
	if (step->function[SAGA_OPERATION_COMPENSATION] == NULL &&
		(step->timeout[SAGA_OPERATION_COMPENSATION] != 0 ||
		 step->has_retry[SAGA_OPERATION_COMPENSATION]))
		ereport(ERROR,
				errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				errmsg("%s has no compensation", step->where),
				errdetail("Without one, compensation_timeout and compensation_retry have no meaning."));
}

/* "step" is zero. */
static void
read_step(StepInput *step, int position, Jsonb *json)
{
	JsonbValue	value;

	step->where = psprintf("step %d", position + 1);
	if (!JB_ROOT_IS_OBJECT(json))
		ereport(ERROR,
				errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				errmsg("%s is not an object", step->where),
				errhint("Make the steps with saga.step()."));
	if (saga_json_get(&json->root, "name", &value) && value.type == jbvString)
		step->where = psprintf("step \"%s\"", saga_json_string(&value));
	for (int op = 0; op < SAGA_NOPERATION; op++)
		saga_definition_default_policy((SagaOperation) op, &step->retry[op]);

	read_step_fields(step, &json->root);
	check_step(step);
	for (int op = 0; op < SAGA_NOPERATION; op++)
	{
		FunctionUse use;

		if (step->function[op] == NULL)
			continue;
		use.given = step->function[op];
		use.operation = saga_operation_name((SagaOperation) op);
		use.where = step->where;
		step->oid[op] = resolve_function(&use);
	}
}

static int
compare_inputs(const void *a, const void *b)
{
	return strcmp((*(StepInput *const *) a)->name,
				  (*(StepInput *const *) b)->name);
}

static void
check_names_unique(StepInput *steps, int n)
{
	StepInput **sorted = palloc(n * sizeof(StepInput *));

	for (int i = 0; i < n; i++)
		sorted[i] = &steps[i];
	qsort(sorted, n, sizeof(StepInput *), compare_inputs);
	for (int i = 1; i < n; i++)
	{
		if (strcmp(sorted[i - 1]->name, sorted[i]->name) == 0)
			ereport(ERROR,
					errcode(ERRCODE_DUPLICATE_OBJECT),
					errmsg("step \"%s\" is defined more than once",
						   sorted[i]->name));
	}
	pfree(sorted);
}

/* What comes before the pivot can be undone, what comes after only repeated. */
static void
check_pivot(const StepInput *steps, int n)
{
	const StepInput *pivot = NULL;

	for (int i = 0; i < n; i++)
	{
		const StepInput *step = &steps[i];

		if (step->pivot && pivot != NULL)
			ereport(ERROR,
					errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					errmsg("step \"%s\" cannot be a pivot", step->name),
					errdetail("A saga has one pivot at most, and step \"%s\" is one already.",
							  pivot->name));
		if (step->pivot)
			pivot = step;
		if (pivot != NULL && step->function[SAGA_OPERATION_COMPENSATION] != NULL)
			ereport(ERROR,
					errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					errmsg("step \"%s\" cannot have a compensation",
						   step->name),
					pivot == step ?
					errdetail("It is the pivot: once it has succeeded, nothing is undone.") :
					errdetail("It comes after the pivot, step \"%s\": once that has succeeded, nothing is undone.",
							  pivot->name),
					errhint("Put what may have to be undone before the pivot."));
	}
}


/* ---- saga.define(): writing ------------------------------------------- */

static void
write_arguments(SagaJsonWriter *writer, HeapTuple tuple)
{
	Form_pg_proc form = (Form_pg_proc) GETSTRUCT(tuple);
	Oid		   *types;
	char	  **names;
	char	   *modes;
	int			n = get_func_arg_info(tuple, &types, &names, &modes);

	saga_json_key(writer, "arguments");
	saga_json_begin_array(writer);
	for (int i = 0; i < n && !takes_context(tuple); i++)
	{
		saga_json_begin_object(writer);
		saga_json_put_string(writer, "name", names[i]);
		saga_json_put_string(writer, "type", format_type_be_qualified(types[i]));
		saga_json_put_bool(writer, "optional",
						   i >= n - form->pronargdefaults);
		saga_json_end_object(writer);
	}
	saga_json_end_array(writer);
}

static void
write_operation(SagaJsonWriter *writer, const StepInput *step,
				SagaOperation operation)
{
	Oid			function = step->oid[operation];
	HeapTuple	tuple;

	if (!OidIsValid(function))
		return;
	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(function));
	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for function %u", function);
	saga_json_key(writer, saga_operation_name(operation));
	saga_json_begin_object(writer);
	saga_json_put_string(writer, "function",
						 format_procedure_qualified(function));
	saga_json_put_bool(writer, "context", takes_context(tuple));
	write_arguments(writer, tuple);
	if (step->timeout[operation] != 0)
		saga_json_put_seconds(writer, "timeout", step->timeout[operation]);
	saga_json_key(writer, "retry");
	saga_json_begin_object(writer);
	write_policy(writer, &step->retry[operation]);
	saga_json_end_object(writer);
	saga_json_end_object(writer);
	ReleaseSysCache(tuple);
}

static void
write_step(SagaJsonWriter *writer, const StepInput *step)
{
	saga_json_begin_object(writer);
	saga_json_put_string(writer, "name", step->name);
	saga_json_put_string(writer, "kind", "local");
	saga_json_put_bool(writer, "pivot", step->pivot);
	saga_json_put_bool(writer, "durable", step->durable);
	saga_json_put_string(writer, "isolation", step->isolation);
	for (int op = 0; op < SAGA_NOPERATION; op++)
		write_operation(writer, step, (SagaOperation) op);
	saga_json_end_object(writer);
}

static void
deconstruct_steps(ArrayType *array, Datum **values, int *n)
{
	bool	   *nulls;

	deconstruct_array(array, JSONBOID, -1, false, TYPALIGN_INT,
					  values, &nulls, n);
	for (int i = 0; i < *n; i++)
	{
		if (nulls[i])
			ereport(ERROR,
					errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					errmsg("step %d is null", i + 1));
	}
}

/*
 * What is stored, in saga.definition_version.steps, is an array with an object
 * for each step, in their order:
 *
 *	{
 *	  "name": "charge", "kind": "local", "pivot": false, "durable": false,
 *	  "isolation": "serializable",		only if the step says so
 *	  "action": {
 *		"function": "shop.charge(pg_catalog.jsonb)",
 *		"context": true,				it takes the context; else false, and
 *		"arguments": [{"name": "sku", "type": "text", "optional": false}, ...],
 *		"timeout": 30,					seconds; only if the step says so
 *		"retry": {"max_attempts": 5, "initial_delay": 1, "max_delay": 300,
 *				  "multiplier": 2, "jitter": 0.2,
 *				  "retry_on": ["22"], "fail_on": []}	delays in seconds
 *	  },
 *	  "compensation": {...}				the same, only if there is one
 *	}
 *
 * Further kinds and fields come with later versions; what is stored is never
 * changed.
 */
Jsonb *
saga_definition_check(const char *name, ArrayType *array)
{
	Datum	   *values;
	int			n;
	StepInput  *steps;
	SagaJsonWriter writer = NULL;

	saga_definition_check_name(name, "saga definition");
	deconstruct_steps(array, &values, &n);
	if (n == 0 || n > SAGA_MAX_STEPS)
		ereport(ERROR,
				errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				errmsg("saga definition \"%s\" has %d steps", name, n),
				errdetail("It must have 1 to %d.", SAGA_MAX_STEPS));
	steps = palloc0(n * sizeof(StepInput));
	for (int i = 0; i < n; i++)
	{
		CHECK_FOR_INTERRUPTS();
		read_step(&steps[i], i, DatumGetJsonbP(values[i]));
	}
	check_names_unique(steps, n);
	check_pivot(steps, n);

	saga_json_begin_array(&writer);
	for (int i = 0; i < n; i++)
		write_step(&writer, &steps[i]);
	return saga_json_finish_array(&writer);
}


/* ---- from what is stored ---------------------------------------------- */

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

static int
load_isolation(JsonbContainer *object)
{
	JsonbValue	value;
	char	   *text;

	if (!saga_json_get(object, "isolation", &value))
		return SAGA_ISOLATION_DEFAULT;
	text = load_string(object, "isolation");
	for (size_t i = 0; i < lengthof(isolation_levels); i++)
	{
		if (strcmp(isolation_levels[i].name, text) == 0)
			return isolation_levels[i].level;
	}
	corrupted("isolation");
	return SAGA_ISOLATION_DEFAULT;
}

static void
load_operation(JsonbContainer *object, SagaOperation operation,
			   SagaStep *step, SagaStepRule *rule)
{
	JsonbContainer *op = load_object(object, saga_operation_name(operation));
	JsonbContainer *policy;
	JsonbValue	value;

	saga_definition_default_policy(operation, &rule->retry[operation]);
	if (op == NULL)
		return;
	step->function[operation] = load_string(op, "function");
	if (saga_json_get(op, "timeout", &value))
		step->timeout[operation] = load_seconds(op, "timeout");
	policy = load_object(op, "retry");
	if (policy == NULL)
		corrupted("retry");
	load_policy(policy, &rule->retry[operation]);
}

static void
load_step(JsonbContainer *object, SagaStep *step, SagaStepRule *rule)
{
	step->name = load_string(object, "name");
	step->kind = load_string(object, "kind");
	step->isolation = load_isolation(object);
	step->durable = load_bool(object, "durable");
	rule->pivot = load_bool(object, "pivot");
	for (int op = 0; op < SAGA_NOPERATION; op++)
		load_operation(object, (SagaOperation) op, step, rule);
	if (step->function[SAGA_OPERATION_ACTION] == NULL)
		corrupted("action");
	rule->has_compensation =
		step->function[SAGA_OPERATION_COMPENSATION] != NULL;
}

static int
compare_positions(const void *a, const void *b, void *steps)
{
	return strcmp(((const SagaStep *) steps)[*(const int16 *) a].name,
				  ((const SagaStep *) steps)[*(const int16 *) b].name);
}

static int
compare_strings(const void *a, const void *b)
{
	return strcmp(*(char *const *) a, *(char *const *) b);
}

/* Add the parameters of an operation that steps before "end" do not provide. */
static void
collect_required(const SagaDefinition *def, JsonbContainer *operation, int end,
				 List **names)
{
	JsonbContainer *arguments;

	if (operation == NULL)
		return;
	arguments = load_array(operation, "arguments");
	for (uint32 i = 0; i < JsonContainerSize(arguments); i++)
	{
		JsonbValue *value = getIthJsonbValueFromContainer(arguments, i);
		char	   *name;
		int			position;

		if (!saga_json_is_object(value))
			corrupted("arguments");
		name = load_string(value->val.binary.data, "name");
		position = saga_definition_step(def, name);
		if (!load_bool(value->val.binary.data, "optional") &&
			(position < 0 || position >= end))
			*names = lappend(*names, name);
		else
			pfree(name);
		pfree(value);
	}
}

/* A compensation may use the result of its own action. */
static void
load_required(SagaDefinition *def, JsonbContainer *array)
{
	List	   *names = NIL;
	const char **required;
	int			n = 0;

	for (int i = 0; i < def->rules.nsteps; i++)
	{
		JsonbValue *value = getIthJsonbValueFromContainer(array, i);
		JsonbContainer *step = value->val.binary.data;

		collect_required(def, load_object(step, "action"), i, &names);
		collect_required(def, load_object(step, "compensation"), i + 1, &names);
		pfree(value);
	}
	required = palloc(Max(list_length(names), 1) * sizeof(char *));
	for (int i = 0; i < list_length(names); i++)
		required[i] = list_nth(names, i);
	qsort(required, list_length(names), sizeof(char *), compare_strings);
	for (int i = 0; i < list_length(names); i++)
	{
		if (n == 0 || strcmp(required[n - 1], required[i]) != 0)
			required[n++] = required[i];
	}
	list_free(names);
	def->nrequired = n;
	def->required = required;
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
	int16	   *positions;
	int16	   *by_name;

	if (!JB_ROOT_IS_ARRAY(stored) || JB_ROOT_IS_SCALAR(stored) ||
		JB_ROOT_COUNT(stored) == 0 || JB_ROOT_COUNT(stored) > SAGA_MAX_STEPS)
		corrupted("steps");
	n = JB_ROOT_COUNT(stored);
	steps = MemoryContextAllocHuge(context, n * sizeof(SagaStep));
	memset(steps, 0, n * sizeof(SagaStep));
	rules = MemoryContextAllocHuge(context, n * sizeof(SagaStepRule));
	memset(rules, 0, n * sizeof(SagaStepRule));
	positions = palloc(n * sizeof(int16));
	by_name = palloc(n * sizeof(int16));
	for (int i = 0; i < n; i++)
	{
		JsonbValue *value = getIthJsonbValueFromContainer(array, i);

		if (!saga_json_is_object(value))
			corrupted("steps");
		load_step(value->val.binary.data, &steps[i], &rules[i]);
		pfree(value);
		positions[i] = by_name[i] = i;
		/* each follows the one before */
		rules[i].npreds = i > 0 ? 1 : 0;
		rules[i].preds = i > 0 ? &positions[i - 1] : NULL;
	}
	qsort_arg(by_name, n, sizeof(int16), compare_positions, steps);

	def->rules.nsteps = n;
	def->rules.steps = rules;
	def->steps = steps;
	def->by_name = by_name;
	load_required(def, array);
	MemoryContextSwitchTo(old);
}

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
