/*
 * functions.c
 *		Owns the looking up of the functions that steps name.
 *
 * By what the definer wrote, as the current user under its search_path, when a
 * definition is made; by the stored signature, which depends on no setting,
 * when a step is to run.
 *
 * Runs in any backend, and reads system catalogs only: nothing is left behind
 * when it is killed.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/namespace.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "parser/scansup.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/catcache.h"
#include "utils/lsyscache.h"
#include "utils/regproc.h"
#include "utils/syscache.h"
#include "utils/varlena.h"

#include "compat.h"
#include "functions.h"

/* How many functions a hint names. */
#define MAX_SIMILAR		3

/* A function that was asked for, and what messages say of it. */
typedef struct Request
{
	const char *given;
	const char *field;
	const char *where;
	SagaFunctionUse use;
} Request;


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

bool
saga_functions_take_context(HeapTuple tuple)
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
	if (saga_functions_take_context(tuple))
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

/* Why what it returns is of no use, or NULL. */
static const char *
result_fault(Form_pg_proc form, SagaFunctionUse use)
{
	Oid			type = form->prorettype;

	if (form->proretset)
		return "It returns a set.";
	if (use == SAGA_FUNCTION_CONDITION && type != BOOLOID)
		return psprintf("It returns %s, not boolean.", format_type_be(type));
	if (use == SAGA_FUNCTION_TIME &&
		type != TIMESTAMPTZOID && type != INTERVALOID)
		return psprintf("It returns %s, neither timestamp with time zone nor interval.",
						format_type_be(type));
	if (get_typtype(type) == TYPTYPE_PSEUDO &&
		type != VOIDOID && type != RECORDOID)
		return psprintf("It returns the pseudo-type %s.", format_type_be(type));
	return NULL;
}

/* Why this function cannot be one of a step, or NULL. */
static const char *
function_fault(HeapTuple tuple, SagaFunctionUse use)
{
	Form_pg_proc form = (Form_pg_proc) GETSTRUCT(tuple);
	const char *fault;

	if (form->prokind == PROKIND_PROCEDURE)
		return "It is a procedure.";
	if (form->prokind == PROKIND_AGGREGATE)
		return "It is an aggregate function.";
	if (form->prokind == PROKIND_WINDOW)
		return "It is a window function.";
	if (isAnyTempNamespace(form->pronamespace))
		return "It is temporary.";
	fault = result_fault(form, use);
	return fault != NULL ? fault : parameter_fault(tuple);
}

/* For errhint(): what kind of function is wanted. */
static int
hint_at_form(SagaFunctionUse use)
{
	switch (use)
	{
		case SAGA_FUNCTION_CONDITION:
			return errhint("A condition has named parameters, or one of type jsonb, the context, and returns boolean.");
		case SAGA_FUNCTION_TIME:
			return errhint("The function of a timer has named parameters, or one of type jsonb, the context, and returns timestamptz or interval.");
		case SAGA_FUNCTION_OPERATION:
			break;
	}
	return errhint("The function of a step has named parameters, or one of type jsonb, the context, and returns one value or nothing.");
}

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
saga_definition_function(const char *signature, SagaFunctionUse use)
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
	fault = function_fault(tuple, use);
	if (fault != NULL)
		ereport(ERROR,
				errcode(ERRCODE_INVALID_FUNCTION_DEFINITION),
				errmsg("function %s cannot be used in a saga", signature),
				errdetail_internal("%s", fault),
				hint_at_form(use));
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
report_undefined(const Request *request, Oid namespace, const char *schema,
				 const char *name)
{
	char	   *similar = similar_functions(namespace, name);

	ereport(ERROR,
			errcode(ERRCODE_UNDEFINED_FUNCTION),
			errmsg("function \"%s\" (%s of %s) does not exist",
				   request->given, request->field, request->where),
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
report_ambiguous(const Request *request, List *candidates)
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
				   request->given, request->field, request->where),
			errdetail("Candidates: %s.", buf.data),
			errhint("Give the types of its parameters too: '%s'.",
					(char *) linitial(texts)));
}

/* The context of errors that PostgreSQL's own parser raises. */
static void
describe_request(void *arg)
{
	const Request *request = arg;

	errcontext("function \"%s\" (%s of %s)", request->given, request->field,
			   request->where);
}

static void
report_malformed(const Request *request)
{
	ereport(ERROR,
			errcode(ERRCODE_INVALID_NAME),
			errmsg("invalid name of a function: \"%s\" (%s of %s)",
				   request->given, request->field, request->where),
			errhint("Use 'name', 'schema.name' or 'schema.name(type, ...)'."));
}

static Oid
find_with_types(const Request *request, const char *schema, const char *name,
				const char *text)
{
	ErrorContextCallback callback;
	List	   *types;
	const char *missing;
	Oid			function;

	if (!split_types(text, &types))
		report_malformed(request);
	callback.callback = describe_request;
	callback.arg = (void *) request;
	callback.previous = error_context_stack;
	error_context_stack = &callback;
	function = find_by_types(schema, name, types, &missing);
	error_context_stack = callback.previous;
	if (missing != NULL)
		ereport(ERROR,
				errcode(ERRCODE_UNDEFINED_OBJECT),
				errmsg("type \"%s\" of function \"%s\" (%s of %s) does not exist",
					   missing, request->given, request->field, request->where));
	return function;
}

static bool
is_usable(Oid function, SagaFunctionUse use)
{
	HeapTuple	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(function));
	bool		usable;

	if (!HeapTupleIsValid(tuple))
		return false;
	usable = function_fault(tuple, use) == NULL;
	ReleaseSysCache(tuple);
	return usable;
}

/*
 * The only function of that name, or the only one that a saga can use: the
 * name may also be one of PostgreSQL's own, most of which it cannot.
 */
static Oid
find_by_name(const Request *request, const char *schema, const char *name)
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
		if (is_usable(c->oid, request->use))
			usable = lappend_oid(usable, c->oid);
	}
	if (list_length(usable) == 1)
		return linitial_oid(usable);
	if (usable == NIL)
	{
		for (FuncCandidateList c = candidates; c != NULL; c = c->next)
			usable = lappend_oid(usable, c->oid);
	}
	report_ambiguous(request, usable);
	return InvalidOid;			/* not reached */
}

static void
check_schema(const Request *request, Oid namespace, const char *schema)
{
	if (saga_schema_aclcheck(namespace, GetUserId()) != ACLCHECK_OK)
		ereport(ERROR,
				errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				errmsg("permission denied for schema \"%s\" of function \"%s\" (%s of %s)",
					   schema, request->given, request->field, request->where));
}

static void
report_unusable(const Request *request, const char *fault)
{
	ereport(ERROR,
			errcode(ERRCODE_INVALID_FUNCTION_DEFINITION),
			errmsg("function \"%s\" (%s of %s) cannot be used in a saga",
				   request->given, request->field, request->where),
			errdetail_internal("%s", fault),
			hint_at_form(request->use));
}

/* May it be called, and can it be? */
static void
check_function(const Request *request, Oid function)
{
	HeapTuple	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(function));
	const char *fault;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for function %u", function);
	fault = function_fault(tuple, request->use);
	if (fault != NULL)
		report_unusable(request, fault);
	ReleaseSysCache(tuple);
	if (saga_function_aclcheck(function, GetUserId()) != ACLCHECK_OK)
		ereport(ERROR,
				errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				errmsg("permission denied for function \"%s\" (%s of %s)",
					   request->given, request->field, request->where));
}

static Oid
resolve(const Request *request)
{
	char	   *schema;
	char	   *name;
	char	   *types;
	Oid			namespace = InvalidOid;
	Oid			function;

	if (!split_name(request->given, &schema, &name, &types))
		report_malformed(request);
	if (schema != NULL)
	{
		if (strcmp(schema, "pg_temp") == 0)
			report_unusable(request, "It is temporary.");
		namespace = get_namespace_oid(schema, true);
		if (!OidIsValid(namespace))
			report_undefined(request, namespace, schema, name);
		check_schema(request, namespace, schema);
	}
	function = types != NULL ? find_with_types(request, schema, name, types) :
		find_by_name(request, schema, name);
	if (!OidIsValid(function))
		report_undefined(request, namespace, schema, name);
	check_function(request, function);
	return function;
}

Oid
saga_functions_resolve(const char *given, const char *field,
					   const char *where, SagaFunctionUse use)
{
	Request		request = {given, field, where, use};

	return resolve(&request);
}
