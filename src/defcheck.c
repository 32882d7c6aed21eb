/*
 * defcheck.c
 *		Owns the form in which definitions are stored, and brings what
 *		saga.define() was given into it.
 *
 * The reading of the steps is stepinput.c's, their order stepgraph.c's; what
 * is stored is read again by definition.c.
 *
 * Runs in any backend, and reads system catalogs only: nothing is left behind
 * when it is killed.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/regproc.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#include "defcheck.h"
#include "functions.h"
#include "json.h"
#include "stepgraph.h"
#include "stepinput.h"


/* ---- retry policies --------------------------------------------------- */

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
	saga_stepinput_read_policy(&json->root, where, &policy);
	saga_json_begin_object(&writer);
	write_policy(&writer, &policy);
	return saga_json_finish_object(&writer);
}


/* ---- functions -------------------------------------------------------- */

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
	for (int i = 0; i < n && !saga_functions_take_context(tuple); i++)
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

/* Into an object that has begun. */
static void
write_function(SagaJsonWriter *writer, Oid function)
{
	HeapTuple	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(function));

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for function %u", function);
	saga_json_put_string(writer, "function",
						 format_procedure_qualified(function));
	saga_json_put_bool(writer, "context", saga_functions_take_context(tuple));
	write_arguments(writer, tuple);
	ReleaseSysCache(tuple);
}

/* Every step has an action, if only to say when it is attempted again. */
static void
write_operation(SagaJsonWriter *writer, const SagaStepInput *step,
				SagaOperation operation)
{
	if (step->function[operation] == NULL &&
		operation != SAGA_OPERATION_ACTION)
		return;
	saga_json_key(writer, saga_operation_name(operation));
	saga_json_begin_object(writer);
	if (OidIsValid(step->oid[operation]))
		write_function(writer, step->oid[operation]);
	else
		saga_json_put_string(writer, "task", step->function[operation]);
	if (step->timeout[operation] != 0)
		saga_json_put_seconds(writer, "timeout", step->timeout[operation]);
	saga_json_key(writer, "retry");
	saga_json_begin_object(writer);
	write_policy(writer, &step->retry[operation]);
	saga_json_end_object(writer);
	saga_json_end_object(writer);
}


/* ---- steps ------------------------------------------------------------ */

static void
write_after(SagaJsonWriter *writer, const SagaStepInput *steps,
			const SagaStepInput *step)
{
	saga_json_key(writer, "after");
	saga_json_begin_array(writer);
	for (int i = 0; i < step->npreds; i++)
		saga_json_add_string(writer, steps[step->preds[i]].name);
	saga_json_end_array(writer);
}

/* What only steps of one kind have. */
static void
write_kind(SagaJsonWriter *writer, const SagaStepInput *step)
{
	switch (step->kind)
	{
		case SAGA_KIND_LOCAL:
			saga_json_put_bool(writer, "durable", step->durable);
			break;
		case SAGA_KIND_TIMER:
			if (step->delay >= 0)
				saga_json_put_seconds(writer, "delay", step->delay);
			break;
		case SAGA_KIND_SIGNAL:
			if (step->signal_timeout > 0)
				saga_json_put_seconds(writer, "timeout",
									  step->signal_timeout);
			saga_json_put_jsonb(writer, "otherwise", step->otherwise);
			break;
		case SAGA_KIND_CHILD:
			saga_json_put_string(writer, "definition", step->child);
			saga_json_put_string(writer, "server", step->server);
			break;
		case SAGA_KIND_EXTERNAL:
			saga_json_put_string(writer, "queue", step->queue);
			if (step->claim_timeout != 0)
				saga_json_put_seconds(writer, "claim_timeout",
									  step->claim_timeout);
			if (step->total_timeout != 0)
				saga_json_put_seconds(writer, "total_timeout",
									  step->total_timeout);
			break;
		case SAGA_KIND_REMOTE:
			saga_json_put_string(writer, "server", step->server);
			if (step->total_timeout != 0)
				saga_json_put_seconds(writer, "total_timeout",
									  step->total_timeout);
			break;
	}
}

static void
write_savepoint(SagaJsonWriter *writer, const SagaStepInput *step)
{
	if (!step->savepoint)
		return;
	saga_json_put_bool(writer, "savepoint", true);
	if (step->and_then != NULL &&
		strcmp(step->and_then, SAGA_AND_THEN_RETRY) != 0)
		saga_json_put_string(writer, "and_then", step->and_then);
	if (step->recoveries > 1)
		saga_json_put_int(writer, "recoveries", step->recoveries);
}

static void
write_lock(SagaJsonWriter *writer, const SagaStepInput *step)
{
	saga_json_put_string(writer, "exclusive", step->exclusive);
	saga_json_put_string(writer, "exclusive_until", step->exclusive_until);
	if (step->exclusive_timeout >= 0 &&
		step->exclusive_timeout != SAGA_EXCLUSIVE_TIMEOUT)
		saga_json_put_seconds(writer, "exclusive_timeout",
							  step->exclusive_timeout);
	if (step->concurrency != 0)
		saga_json_put_int(writer, "concurrency", step->concurrency);
}

static void
write_step(SagaJsonWriter *writer, const SagaStepInput *steps,
		   const SagaStepInput *step, bool linear)
{
	saga_json_begin_object(writer);
	saga_json_put_string(writer, "name", step->name);
	saga_json_put_string(writer, "kind", saga_step_kind_name(step->kind));
	saga_json_put_bool(writer, "pivot", step->pivot);
	saga_json_put_string(writer, "isolation", step->isolation);
	write_kind(writer, step);
	if (!linear)
		write_after(writer, steps, step);
	if (OidIsValid(step->condition_oid))
	{
		saga_json_key(writer, "only_if");
		saga_json_begin_object(writer);
		write_function(writer, step->condition_oid);
		saga_json_end_object(writer);
	}
	saga_json_put_string(writer, "foreach", step->foreach);
	if (step->parallel != 0)
		saga_json_put_int(writer, "parallel", step->parallel);
	if (step->quorum != 0)
		saga_json_put_int(writer, "quorum", step->quorum);
	write_savepoint(writer, step);
	write_lock(writer, step);
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
 * for each step, in topological order:
 *
 *	{
 *	  "name": "charge", "kind": "local", "pivot": false,
 *	  "durable": false,					of kind "local"
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
 *	  "compensation": {...},			the same, only if there is one
 *	  "confirmation": {...},			likewise
 *
 * and, each only where it differs from the default:
 *
 *	  "after": ["reserve"],				the steps that it comes after; absent
 *										from all steps if each just follows the
 *										one before it
 *	  "only_if": {"function": ..., "context": ..., "arguments": ...},
 *	  "foreach": "order.items", "parallel": 4, "quorum": 2,
 *	  "savepoint": true, "and_then": "pay_later", "recoveries": 3,
 *										absent: no; the same steps; 1
 *	  "exclusive": "sku", "exclusive_until": "ship",
 *	  "exclusive_timeout": 60,			seconds; absent: 3600; 0: no limit
 *	  "concurrency": 10					absent: no limit
 *	}
 *
 * A step of another kind has "action" too, but without "function", "context"
 * and "arguments" if it calls none:
 *
 *	  "kind": "timer", "delay": 86400		seconds; absent if "action" has a
 *										function, which says until when
 *	  "kind": "signal", "timeout": 60, "otherwise": {...}
 *										seconds, absent: no limit; any value,
 *										null too, absent: it fails then
 *	  "kind": "child", "definition": "shipping"
 *										"action" has the function that makes its
 *										input, if there is one; "server" only if
 *										the definition is one of another database
 *	  "kind": "external", "queue": "payments",
 *	  "claim_timeout": 60, "total_timeout": 3600
 *										seconds, absent: no limit.  "action",
 *										"compensation" and "confirmation" have
 *										"task": "charge" in place of "function",
 *										"context" and "arguments"
 *	  "kind": "remote", "server": "warehouse", "total_timeout": 3600
 *										likewise, with "task": "wh.ship", the
 *										function there (remotename.c)
 *
 * Further kinds and fields come with later versions; what is stored is never
 * changed.
 */
Jsonb *
saga_definition_check(const char *name, ArrayType *array)
{
	Datum	   *values;
	int			n;
	SagaStepInput *steps;
	bool		linear;
	SagaJsonWriter writer = NULL;

	saga_definition_check_name(name, "saga definition");
	deconstruct_steps(array, &values, &n);
	if (n == 0 || n > SAGA_MAX_STEPS)
		ereport(ERROR,
				errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				errmsg("saga definition \"%s\" has %d steps", name, n),
				errdetail("It must have 1 to %d.", SAGA_MAX_STEPS));
	steps = palloc_extended(n * sizeof(SagaStepInput), MCXT_ALLOC_HUGE);
	for (int i = 0; i < n; i++)
	{
		CHECK_FOR_INTERRUPTS();
		saga_stepinput_read(&steps[i], i, DatumGetJsonbP(values[i]));
	}
	linear = saga_stepgraph_sort(name, steps, n);
	saga_stepgraph_check(name, steps, n, linear);

	saga_json_begin_array(&writer);
	for (int i = 0; i < n; i++)
		write_step(&writer, steps, &steps[i], linear);
	return saga_json_finish_array(&writer);
}
