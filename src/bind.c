/*
 * bind.c
 *		Owns how an operation's arguments are made of a saga's data.
 *
 * A function takes one jsonb, the context, or parameters by their names.  Of a
 * step with "foreach" a name is looked for in the element first, so that what
 * an element says of itself goes before what the saga says; then among the
 * steps that this one comes after, then in the input.
 *
 * Runs in an executor, as call.h says.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/tupdesc.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "funcapi.h"
#include "nodes/execnodes.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/numeric.h"
#include "utils/syscache.h"

#include "bind.h"
#include "errcodes.h"

/* How a parameter's value becomes a Datum. */
typedef enum Conversion
{
	CONVERSION_JSONB,			/* as it is */
	CONVERSION_TEXT,			/* strings as they are, others by their text */
	CONVERSION_INPUT,			/* by the type's input function */
	CONVERSION_RECORD			/* by jsonb_to_record(): domains, composite
								 * types, arrays, json */
} Conversion;

/* Where a parameter's value comes from. */
typedef enum Source
{
	SOURCE_INPUT,				/* the field of its name */
	SOURCE_STEP,				/* an earlier step's result */
	SOURCE_OWN,					/* what the action returned that is undone or
								 * confirmed */
	SOURCE_ELEMENT,				/* foreach: the element ... */
	SOURCE_INDEX				/* ... and its position */
} Source;

/* A parameter of a function that takes its arguments by name. */
typedef struct SagaParameter
{
	const char *name;
	int			namelen;
	Oid			type;
	bool		has_default;
	Source		source;			/* unless a field of the element has its name */
	int			step;			/* SOURCE_STEP: its position */
	Conversion	conversion;
	FmgrInfo	function;		/* the input function, or jsonb_to_record() */
	Oid			ioparam;
	FunctionCallInfo fcinfo;	/* RECORD only, as are the next two */
	TupleDesc	desc;			/* of one column, the parameter */
	ReturnSetInfo rsinfo;
} SagaParameter;

static bool
is_foreach(const SagaCallRequest *request)
{
	return request->definition->rules.steps[request->step].foreach;
}

static const char *
step_name(const SagaCallRequest *request)
{
	return request->definition->steps[request->step].name;
}

/* ---- preparing -------------------------------------------------------- */

/* Choose how values of this parameter are converted. */
static void
prepare_conversion(SagaParameter *param)
{
	char		typtype = get_typtype(param->type);
	Oid			input;

	getTypeInputInfo(param->type, &input, &param->ioparam);
	if (param->type == JSONBOID)
		param->conversion = CONVERSION_JSONB;
	else if (typtype == TYPTYPE_DOMAIN || typtype == TYPTYPE_COMPOSITE ||
			 param->type == RECORDOID || param->type == JSONOID ||
			 OidIsValid(get_element_type(param->type)))
	{
		param->conversion = CONVERSION_RECORD;
		fmgr_info_cxt(F_JSONB_TO_RECORD, &param->function,
					  CurrentMemoryContext);
		param->desc = CreateTemplateTupleDesc(1);
		TupleDescInitEntry(param->desc, 1, param->name, param->type, -1, 0);
		param->desc = BlessTupleDesc(param->desc);
		param->rsinfo.type = T_ReturnSetInfo;
		param->rsinfo.expectedDesc = param->desc;
		param->fcinfo = palloc0(SizeForFunctionCallInfo(1));
		InitFunctionCallInfoData(*param->fcinfo, &param->function, 1,
								 InvalidOid, NULL, (Node *) &param->rsinfo);
	}
	else
	{
		param->conversion =
			param->type == TEXTOID ? CONVERSION_TEXT : CONVERSION_INPUT;
		fmgr_info_cxt(input, &param->function, CurrentMemoryContext);
	}
}

/* Choose where the value of this parameter comes from. */
static void
prepare_source(SagaParameter *param, const SagaCallRequest *request)
{
	param->source = SOURCE_INPUT;
	param->step = saga_definition_earlier_step(request->definition,
											   param->name, request->step);
	if (is_foreach(request) && strcmp(param->name, "element") == 0)
		param->source = SOURCE_ELEMENT;
	else if (is_foreach(request) && strcmp(param->name, "index") == 0)
		param->source = SOURCE_INDEX;
	else if (param->step >= 0)
		param->source = SOURCE_STEP;
	else if (request->operation != SAGA_OPERATION_ACTION &&
			 strcmp(param->name, step_name(request)) == 0)
		param->source = SOURCE_OWN;
}

static void
prepare_parameters(SagaBinding *binding, const SagaCallRequest *request,
				   Form_pg_proc form, char **names)
{
	binding->params = palloc0(sizeof(SagaParameter) * Max(binding->nparams, 1));
	for (int i = 0; i < binding->nparams; i++)
	{
		SagaParameter *param = &binding->params[i];

		param->name = names[i];
		param->namelen = (int) strlen(param->name);
		param->type = form->proargtypes.values[i];
		param->has_default = i >= form->pronargs - form->pronargdefaults;
		prepare_source(param, request);
		prepare_conversion(param);
	}
}

/* In a foreach step this name is that of the element, not of the context. */
static bool
is_element(const SagaCallRequest *request, const char *name)
{
	return name != NULL && strcmp(name, "element") == 0 &&
		request->definition->steps[request->step].foreach.text != NULL;
}

void
saga_binding_prepare(SagaBinding *binding, Oid function,
					 const SagaCallRequest *request)
{
	HeapTuple	tuple;
	Form_pg_proc form;
	Oid		   *types;
	char	  **names;
	char	   *modes;

	memset(binding, 0, sizeof(*binding));
	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(function));
	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for function %u", function);

	/* IN parameters, each with a name, or the context alone. */
	form = (Form_pg_proc) GETSTRUCT(tuple);
	(void) get_func_arg_info(tuple, &types, &names, &modes);
	binding->function = function;
	binding->nparams = form->pronargs;
	binding->takes_context = form->pronargs == 1 && types[0] == JSONBOID &&
		!is_element(request, names == NULL ? NULL : names[0]);
	if (!binding->takes_context)
		prepare_parameters(binding, request, form, names);
	binding->values = makeParamList(binding->nparams);
	for (int i = 0; i < binding->nparams; i++)
		binding->values->params[i].ptype = types[i];
	ReleaseSysCache(tuple);
}

const char *
saga_binding_name(const SagaBinding *binding, int i)
{
	return binding->params[i].name;
}

/* ---- the context ------------------------------------------------------ */

static void
push_key(JsonbParseState **state, const char *key)
{
	JsonbValue	value;

	value.type = jbvString;
	value.val.string.val = unconstify(char *, key);
	value.val.string.len = (int) strlen(key);
	pushJsonbValue(state, WJB_KEY, &value);
}

static void
push_text(JsonbParseState **state, const char *key, const char *text)
{
	JsonbValue	value;

	push_key(state, key);
	value.type = jbvNull;
	if (text != NULL)
	{
		value.type = jbvString;
		value.val.string.val = unconstify(char *, text);
		value.val.string.len = (int) strlen(text);
	}
	pushJsonbValue(state, WJB_VALUE, &value);
}

static void
push_integer(JsonbParseState **state, const char *key, int64 integer)
{
	JsonbValue	value;

	push_key(state, key);
	value.type = jbvNumeric;
	value.val.numeric = int64_to_numeric(integer);
	pushJsonbValue(state, WJB_VALUE, &value);
}

/* A whole jsonb as a value; NULL counts as JSON's null. */
static void
value_of_jsonb(const Jsonb *jsonb, JsonbValue *value)
{
	JsonbContainer *root;

	if (jsonb == NULL)
	{
		value->type = jbvNull;
		return;
	}
	root = &unconstify(Jsonb *, jsonb)->root;
	if (JB_ROOT_IS_SCALAR(jsonb))
		JsonbExtractScalar(root, value);
	else
	{
		value->type = jbvBinary;
		value->val.binary.data = root;
		value->val.binary.len = VARSIZE(jsonb) - VARHDRSZ;
	}
}

static void
push_jsonb(JsonbParseState **state, const char *key, const Jsonb *jsonb)
{
	JsonbValue	value;

	push_key(state, key);
	value_of_jsonb(jsonb, &value);
	pushJsonbValue(state, WJB_VALUE, &value);
}

/* What the steps that this one comes after have returned. */
static void
push_results(JsonbParseState **state, const SagaCallRequest *request)
{
	const SagaDefinition *definition = request->definition;

	push_key(state, "results");
	pushJsonbValue(state, WJB_BEGIN_OBJECT, NULL);
	for (int i = 0; i < request->step; i++)
	{
		if (request->results[i] != NULL &&
			saga_rules_is_before(&definition->rules, i, request->step))
			push_jsonb(state, definition->steps[i].name, request->results[i]);
	}
	if (request->operation != SAGA_OPERATION_ACTION &&
		request->own_result != NULL)
		push_jsonb(state, step_name(request), request->own_result);
	pushJsonbValue(state, WJB_END_OBJECT, NULL);
}

/* In the order in which jsonb keeps keys, so that they need not be sorted. */
Jsonb *
saga_binding_context(const SagaCallRequest *request,
					 const char *idempotency_key, const char *traceparent)
{
	JsonbParseState *state = NULL;
	JsonbValue *object;

	pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	push_text(&state, "key", request->key);
	push_text(&state, "step", step_name(request));
	if (is_foreach(request))
		push_integer(&state, "index", request->element);
	push_jsonb(&state, "input", request->input);
	if (request->round > 0)
		push_integer(&state, "round", request->round);
	push_integer(&state, "attempt", request->attempt);
	if (is_foreach(request))
		push_jsonb(&state, "element", request->element_value);
	push_results(&state, request);
	push_integer(&state, "saga_id", request->saga_id);
	push_text(&state, "operation", saga_operation_name(request->operation));
	push_text(&state, "definition", request->definition->name);
	push_text(&state, "traceparent", traceparent);
	push_text(&state, "idempotency_key", idempotency_key);
	if (request->outcome_unknown)
	{
		JsonbValue	value = {.type = jbvBool,.val.boolean = true};

		push_key(&state, "outcome_unknown");
		pushJsonbValue(&state, WJB_VALUE, &value);
	}
	object = pushJsonbValue(&state, WJB_END_OBJECT, NULL);
	return JsonbValueToJsonb(object);
}

void
saga_binding_give_context(SagaBinding *binding, const SagaCallRequest *request,
						  const char *idempotency_key,
						  const char *traceparent)
{
	Jsonb	   *context = saga_binding_context(request, idempotency_key,
											   traceparent);

	Assert(binding->takes_context);
	binding->values->params[0].value = JsonbPGetDatum(context);
	binding->values->params[0].isnull = false;
}

/* ---- values of parameters --------------------------------------------- */

/* The text of a value, as jsonb_to_record() gives it to input functions. */
static char *
text_of_value(JsonbValue *value)
{
	switch (value->type)
	{
		case jbvString:
			return pnstrdup(value->val.string.val, value->val.string.len);
		case jbvBool:
			return pstrdup(value->val.boolean ? "true" : "false");
		case jbvNumeric:
			return DatumGetCString(DirectFunctionCall1(numeric_out,
													   NumericGetDatum(value->val.numeric)));
		case jbvBinary:
			return JsonbToCString(NULL, value->val.binary.data,
								  value->val.binary.len);
		default:
			elog(ERROR, "unrecognized jsonb type: %d", (int) value->type);
	}
	return NULL;				/* keep compiler quiet */
}

/* By jsonb_to_record('{"name": value}') AS (name type). */
static Datum
convert_by_record(SagaParameter *param, JsonbValue *value, bool *isnull)
{
	JsonbParseState *state = NULL;
	JsonbValue *object;
	HeapTupleHeader header;
	HeapTupleData tuple;
	Datum		record;

	pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	push_key(&state, param->name);
	pushJsonbValue(&state, WJB_VALUE, value);
	object = pushJsonbValue(&state, WJB_END_OBJECT, NULL);

	/*
	 * What it remembers of the type may be older than the type: an attribute
	 * that another session alters is no change of the type's own row.
	 */
	param->function.fn_extra = NULL;
	param->function.fn_mcxt = CurrentMemoryContext;
	param->fcinfo->args[0].value = JsonbPGetDatum(JsonbValueToJsonb(object));
	param->fcinfo->args[0].isnull = false;
	param->fcinfo->isnull = false;
	record = FunctionCallInvoke(param->fcinfo);
	if (param->fcinfo->isnull)
		elog(ERROR, "jsonb_to_record returned NULL");

	header = DatumGetHeapTupleHeader(record);
	tuple.t_len = HeapTupleHeaderGetDatumLength(header);
	ItemPointerSetInvalid(&tuple.t_self);
	tuple.t_tableOid = InvalidOid;
	tuple.t_data = header;
	return heap_getattr(&tuple, 1, param->desc, isnull);
}

static Datum
convert_value(SagaParameter *param, JsonbValue *value, bool *isnull)
{
	*isnull = value->type == jbvNull;
	/* A domain may refuse NULL. */
	if (param->conversion == CONVERSION_RECORD)
		return convert_by_record(param, value, isnull);
	if (*isnull)
		return (Datum) 0;
	if (param->conversion == CONVERSION_JSONB)
		return JsonbPGetDatum(JsonbValueToJsonb(value));
	if (param->conversion == CONVERSION_TEXT && value->type == jbvString)
		return PointerGetDatum(cstring_to_text_with_len(value->val.string.val,
														value->val.string.len));
	return InputFunctionCall(&param->function, text_of_value(value),
							 param->ioparam, -1);
}

/* The field of a parameter's name; false if there is none. */
static bool
find_field(const Jsonb *object, const SagaParameter *param, JsonbValue *value)
{
	return object != NULL && JB_ROOT_IS_OBJECT(object) &&
		getKeyJsonValueFromContainer(&unconstify(Jsonb *, object)->root,
									 param->name, param->namelen,
									 value) != NULL;
}

/* The value of a parameter; false if there is none. */
static bool
find_value(const SagaCallRequest *request, const SagaParameter *param,
		   JsonbValue *value)
{
	if (param->source == SOURCE_ELEMENT)
		value_of_jsonb(request->element_value, value);
	else if (param->source == SOURCE_INDEX)
	{
		value->type = jbvNumeric;
		value->val.numeric = int64_to_numeric(request->element);
	}
	else if (find_field(request->element_value, param, value))
		return true;			/* before results and input */
	else if (param->source == SOURCE_STEP)
		value_of_jsonb(request->results[param->step], value);
	else if (param->source == SOURCE_OWN)
		value_of_jsonb(request->own_result, value);
	else
		return find_field(request->input, param, value);
	return true;
}

static void
refuse_missing(const SagaCallRequest *request, const SagaBinding *binding,
			   const SagaParameter *param)
{
	ereport(ERROR,
			errcode(ERRCODE_SAGA_MISSING_ARGUMENT),
			errmsg("no value for parameter \"%s\" of function %s",
				   param->name,
				   quote_identifier(get_func_name(binding->function))),
			is_foreach(request) ?
			errdetail("Neither have the element and the saga's input a field nor has the definition an earlier step of this name, and the parameter has no default.") :
			errdetail("Neither has the saga's input a field nor has the definition an earlier step of this name, and the parameter has no default."));
}

void
saga_binding_evaluate(SagaBinding *binding, const SagaCallRequest *request,
					  SagaOmitted *omitted)
{
	Assert(!binding->takes_context);
	memset(omitted, 0, sizeof(*omitted));
	for (int i = 0; i < binding->nparams; i++)
	{
		SagaParameter *param = &binding->params[i];
		ParamExternData *slot = &binding->values->params[i];
		JsonbValue	value;

		if (find_value(request, param, &value))
		{
			binding->converting = param->name;
			slot->value = convert_value(param, &value, &slot->isnull);
			binding->converting = NULL;
		}
		else if (param->has_default)
			omitted->bits[i / 64] |= UINT64CONST(1) << (i % 64);
		else
			refuse_missing(request, binding, param);
	}
}
