/*
 * define.c
 *		Owns the SQL-callable functions about definitions.
 *
 * They run with the rights of their caller: functions.c looks functions up as
 * it, catalog.c asks whether it may, and switches to the owner of the tables
 * only around its own statements.
 *
 * Any backend; all of it is in the caller's transaction.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "nodes/pg_list.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/jsonb.h"
#include "utils/timestamp.h"

#include "catalog.h"
#include "compat.h"
#include "defcheck.h"
#include "define.h"
#include "definition.h"
#include "defserver.h"
#include "json.h"
#include "queue.h"
#include "shared.h"

PG_FUNCTION_INFO_V1(saga_retry_policy);
PG_FUNCTION_INFO_V1(saga_step);
PG_FUNCTION_INFO_V1(saga_timer_step);
PG_FUNCTION_INFO_V1(saga_signal_step);
PG_FUNCTION_INFO_V1(saga_child_step);
PG_FUNCTION_INFO_V1(saga_external_step);
PG_FUNCTION_INFO_V1(saga_remote_step);
PG_FUNCTION_INFO_V1(saga_define);
PG_FUNCTION_INFO_V1(saga_configure);
PG_FUNCTION_INFO_V1(saga_drop_definition);
PG_FUNCTION_INFO_V1(saga_grant_begin);
PG_FUNCTION_INFO_V1(saga_revoke_begin);


/* ---- arguments -------------------------------------------------------- */

static char *
text_argument(FunctionCallInfo fcinfo, int n)
{
	return PG_ARGISNULL(n) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(n));
}

static void
put_interval(SagaJsonWriter *writer, FunctionCallInfo fcinfo, int n,
			 const char *field, const char *where)
{
	if (!PG_ARGISNULL(n))
		saga_json_put_seconds(writer, field,
							  saga_definition_microseconds(PG_GETARG_INTERVAL_P(n),
														   field, where));
}

static void
put_double(SagaJsonWriter *writer, FunctionCallInfo fcinfo, int n,
		   const char *field)
{
	if (!PG_ARGISNULL(n))
		saga_json_put_double(writer, field, PG_GETARG_FLOAT8(n));
}

static void
put_int(SagaJsonWriter *writer, FunctionCallInfo fcinfo, int n,
		const char *field)
{
	if (!PG_ARGISNULL(n))
		saga_json_put_int(writer, field, PG_GETARG_INT32(n));
}

static void
put_text(SagaJsonWriter *writer, FunctionCallInfo fcinfo, int n,
		 const char *field)
{
	saga_json_put_string(writer, field, text_argument(fcinfo, n));
}

static void
put_texts(SagaJsonWriter *writer, FunctionCallInfo fcinfo, int n,
		  const char *field, const char *where)
{
	Datum	   *values;
	bool	   *nulls;
	int			count;

	if (PG_ARGISNULL(n))
		return;
	deconstruct_array(PG_GETARG_ARRAYTYPE_P(n), TEXTOID, -1, false,
					  TYPALIGN_INT, &values, &nulls, &count);
	saga_json_key(writer, field);
	saga_json_begin_array(writer);
	for (int i = 0; i < count; i++)
	{
		if (nulls[i])
			ereport(ERROR,
					errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					errmsg("invalid %s in %s", field, where),
					errdetail("It must not contain nulls."));
		saga_json_add_string(writer, TextDatumGetCString(values[i]));
	}
	saga_json_end_array(writer);
}

static void
put_true(SagaJsonWriter *writer, FunctionCallInfo fcinfo, int n,
		 const char *field)
{
	if (!PG_ARGISNULL(n) && PG_GETARG_BOOL(n))
		saga_json_put_bool(writer, field, true);
}

static void
put_jsonb(SagaJsonWriter *writer, FunctionCallInfo fcinfo, int n,
		  const char *field)
{
	if (!PG_ARGISNULL(n))
		saga_json_put_jsonb(writer, field, PG_GETARG_JSONB_P(n));
}

/* The name of a definition, which is always the first argument. */
static char *
definition_argument(FunctionCallInfo fcinfo)
{
	if (PG_ARGISNULL(0))
		ereport(ERROR,
				errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				errmsg("the name of a saga definition must not be null"));
	return text_to_cstring(PG_GETARG_TEXT_PP(0));
}

static char *
role_argument(FunctionCallInfo fcinfo)
{
	if (PG_ARGISNULL(1))
		ereport(ERROR,
				errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				errmsg("the role must not be null"));
	return NameStr(*PG_GETARG_NAME(1));
}

/* An index expression or the like must not act for who happens to run it. */
static void
refuse_if_restricted(const char *function)
{
	if (InSecurityRestrictedOperation())
		ereport(ERROR,
				errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				errmsg("cannot execute %s within a security-restricted operation",
					   function));
}


/* ---- what goes into saga.define() ------------------------------------- */

Datum
saga_retry_policy(PG_FUNCTION_ARGS)
{
	const char *where = "retry policy";
	SagaJsonWriter writer = NULL;

	saga_json_begin_object(&writer);
	put_int(&writer, fcinfo, 0, "max_attempts");
	put_interval(&writer, fcinfo, 1, "initial_delay", where);
	put_interval(&writer, fcinfo, 2, "max_delay", where);
	put_double(&writer, fcinfo, 3, "multiplier");
	put_double(&writer, fcinfo, 4, "jitter");
	put_texts(&writer, fcinfo, 5, "retry_on", where);
	put_texts(&writer, fcinfo, 6, "fail_on", where);
	PG_RETURN_JSONB_P(saga_definition_check_policy(saga_json_finish_object(&writer),
												   where));
}

/*
 * The functions that make steps check little: saga.define() does, and
 * hand-made steps need it anyway.
 */
static const char *
begin_step(SagaJsonWriter *writer, FunctionCallInfo fcinfo, SagaStepKind kind)
{
	char	   *name = text_argument(fcinfo, 0);

	saga_json_begin_object(writer);
	saga_json_put_string(writer, "kind", saga_step_kind_name(kind));
	saga_json_put_string(writer, "name", name);
	return name == NULL ? "step" : psprintf("step \"%s\"", name);
}

/* Three parameters, of which the first is number "n". */
static void
put_savepoint(SagaJsonWriter *writer, FunctionCallInfo fcinfo, int n)
{
	put_true(writer, fcinfo, n, "savepoint");
	put_text(writer, fcinfo, n + 1, "and_then");
	put_int(writer, fcinfo, n + 2, "recoveries");
}

/* Likewise. */
static void
put_loop(SagaJsonWriter *writer, FunctionCallInfo fcinfo, int n)
{
	put_text(writer, fcinfo, n, "foreach");
	put_int(writer, fcinfo, n + 1, "parallel");
	put_int(writer, fcinfo, n + 2, "quorum");
}

/* Four. */
static void
put_lock(SagaJsonWriter *writer, FunctionCallInfo fcinfo, int n,
		 const char *where)
{
	put_text(writer, fcinfo, n, "exclusive");
	put_text(writer, fcinfo, n + 1, "exclusive_until");
	put_interval(writer, fcinfo, n + 2, "exclusive_timeout", where);
	put_int(writer, fcinfo, n + 3, "concurrency");
}

/* Two of them. */
static void
put_conditions(SagaJsonWriter *writer, FunctionCallInfo fcinfo, int n,
			   const char *where)
{
	put_texts(writer, fcinfo, n, "after", where);
	put_text(writer, fcinfo, n + 1, "only_if");
}

Datum
saga_step(PG_FUNCTION_ARGS)
{
	SagaJsonWriter writer = NULL;
	const char *where = begin_step(&writer, fcinfo, SAGA_KIND_LOCAL);

	put_text(&writer, fcinfo, 1, "action");
	put_text(&writer, fcinfo, 2, "compensation");
	put_true(&writer, fcinfo, 3, "pivot");
	put_interval(&writer, fcinfo, 4, "timeout", where);
	put_jsonb(&writer, fcinfo, 5, "retry");
	put_interval(&writer, fcinfo, 6, "compensation_timeout", where);
	put_jsonb(&writer, fcinfo, 7, "compensation_retry");
	put_text(&writer, fcinfo, 8, "isolation");
	put_true(&writer, fcinfo, 9, "durable");
	put_conditions(&writer, fcinfo, 10, where);
	put_loop(&writer, fcinfo, 12);
	put_text(&writer, fcinfo, 15, "confirmation");
	put_interval(&writer, fcinfo, 16, "confirmation_timeout", where);
	put_jsonb(&writer, fcinfo, 17, "confirmation_retry");
	put_savepoint(&writer, fcinfo, 18);
	put_lock(&writer, fcinfo, 21, where);
	PG_RETURN_JSONB_P(saga_json_finish_object(&writer));
}

Datum
saga_timer_step(PG_FUNCTION_ARGS)
{
	SagaJsonWriter writer = NULL;
	const char *where = begin_step(&writer, fcinfo, SAGA_KIND_TIMER);

	put_interval(&writer, fcinfo, 1, "delay", where);
	put_text(&writer, fcinfo, 2, "until");
	put_true(&writer, fcinfo, 3, "pivot");
	put_interval(&writer, fcinfo, 4, "timeout", where);
	put_jsonb(&writer, fcinfo, 5, "retry");
	put_conditions(&writer, fcinfo, 6, where);
	put_savepoint(&writer, fcinfo, 8);
	PG_RETURN_JSONB_P(saga_json_finish_object(&writer));
}

Datum
saga_signal_step(PG_FUNCTION_ARGS)
{
	SagaJsonWriter writer = NULL;
	const char *where = begin_step(&writer, fcinfo, SAGA_KIND_SIGNAL);

	put_interval(&writer, fcinfo, 1, "timeout", where);
	put_jsonb(&writer, fcinfo, 2, "otherwise");
	put_true(&writer, fcinfo, 3, "pivot");
	put_conditions(&writer, fcinfo, 4, where);
	put_savepoint(&writer, fcinfo, 6);
	PG_RETURN_JSONB_P(saga_json_finish_object(&writer));
}

Datum
saga_child_step(PG_FUNCTION_ARGS)
{
	SagaJsonWriter writer = NULL;
	const char *where = begin_step(&writer, fcinfo, SAGA_KIND_CHILD);

	put_text(&writer, fcinfo, 1, "definition");
	put_text(&writer, fcinfo, 2, "input");
	put_true(&writer, fcinfo, 3, "pivot");
	put_interval(&writer, fcinfo, 4, "timeout", where);
	put_jsonb(&writer, fcinfo, 5, "retry");
	put_conditions(&writer, fcinfo, 6, where);
	put_loop(&writer, fcinfo, 8);
	put_savepoint(&writer, fcinfo, 11);
	put_lock(&writer, fcinfo, 14, where);
	put_text(&writer, fcinfo, 18, "server");
	PG_RETURN_JSONB_P(saga_json_finish_object(&writer));
}

Datum
saga_external_step(PG_FUNCTION_ARGS)
{
	SagaJsonWriter writer = NULL;
	const char *where = begin_step(&writer, fcinfo, SAGA_KIND_EXTERNAL);

	put_text(&writer, fcinfo, 1, "queue");
	put_text(&writer, fcinfo, 2, "action");
	put_text(&writer, fcinfo, 3, "compensation");
	put_text(&writer, fcinfo, 4, "confirmation");
	put_true(&writer, fcinfo, 5, "pivot");
	put_interval(&writer, fcinfo, 6, "timeout", where);
	put_interval(&writer, fcinfo, 7, "claim_timeout", where);
	put_interval(&writer, fcinfo, 8, "total_timeout", where);
	put_jsonb(&writer, fcinfo, 9, "retry");
	put_interval(&writer, fcinfo, 10, "compensation_timeout", where);
	put_jsonb(&writer, fcinfo, 11, "compensation_retry");
	put_interval(&writer, fcinfo, 12, "confirmation_timeout", where);
	put_jsonb(&writer, fcinfo, 13, "confirmation_retry");
	put_conditions(&writer, fcinfo, 14, where);
	put_loop(&writer, fcinfo, 16);
	put_savepoint(&writer, fcinfo, 19);
	put_lock(&writer, fcinfo, 22, where);
	PG_RETURN_JSONB_P(saga_json_finish_object(&writer));
}

Datum
saga_remote_step(PG_FUNCTION_ARGS)
{
	SagaJsonWriter writer = NULL;
	const char *where = begin_step(&writer, fcinfo, SAGA_KIND_REMOTE);

	put_text(&writer, fcinfo, 1, "server");
	put_text(&writer, fcinfo, 2, "action");
	put_text(&writer, fcinfo, 3, "compensation");
	put_text(&writer, fcinfo, 4, "confirmation");
	put_true(&writer, fcinfo, 5, "pivot");
	put_interval(&writer, fcinfo, 6, "timeout", where);
	put_interval(&writer, fcinfo, 7, "total_timeout", where);
	put_jsonb(&writer, fcinfo, 8, "retry");
	put_interval(&writer, fcinfo, 9, "compensation_timeout", where);
	put_jsonb(&writer, fcinfo, 10, "compensation_retry");
	put_interval(&writer, fcinfo, 11, "confirmation_timeout", where);
	put_jsonb(&writer, fcinfo, 12, "confirmation_retry");
	put_conditions(&writer, fcinfo, 13, where);
	put_loop(&writer, fcinfo, 15);
	put_savepoint(&writer, fcinfo, 18);
	put_lock(&writer, fcinfo, 21, where);
	PG_RETURN_JSONB_P(saga_json_finish_object(&writer));
}


/* ---- queues of external steps ----------------------------------------- */

static void
describe_step(void *arg)
{
	errcontext("step \"%s\"", ((const SagaStep *) arg)->name);
}

/* An error names the step. */
static void
use_queue(const SagaStep *step)
{
	ErrorContextCallback callback = {
		.previous = error_context_stack,
		.callback = describe_step,
		.arg = (void *) step
	};

	error_context_stack = &callback;
	saga_queue_use_in_definition(step->queue);
	error_context_stack = callback.previous;
}

static int
compare_queues(const ListCell *a, const ListCell *b)
{
	const SagaStep *first = lfirst(a);
	const SagaStep *second = lfirst(b);
	int			order = strcmp(first->queue, second->queue);

	return order != 0 ? order : first < second ? -1 : 1;
}

/*
 * Of each queue the first step that names it, in the order of the names: so do
 * all who define, and do not wait for each other crosswise.
 */
static List *
find_queues(const SagaDefinition *def)
{
	List	   *external = NIL;
	List	   *queues = NIL;
	ListCell   *cell;

	for (int i = 0; i < def->rules.nsteps; i++)
	{
		if (def->steps[i].kind == SAGA_KIND_EXTERNAL)
			external = lappend(external, (void *) &def->steps[i]);
	}
	list_sort(external, compare_queues);
	foreach(cell, external)
	{
		SagaStep   *step = lfirst(cell);

		if (queues == NIL ||
			strcmp(((SagaStep *) llast(queues))->queue, step->queue) != 0)
			queues = lappend(queues, step);
	}
	return queues;
}

/* The user's right on those that are there; returns those that are not. */
static List *
check_queues(List *queues)
{
	List	   *missing = NIL;
	ListCell   *cell;

	foreach(cell, queues)
	{
		SagaStep   *step = lfirst(cell);

		if (saga_queue_find(step->queue) != NULL)
			use_queue(step);
		else
			missing = lappend(missing, step);
	}
	return missing;
}


/* ---- definitions ------------------------------------------------------ */

/*
 * The definition of a child: there, open to the current user, and without a
 * pivot as long as the child may have to go back.  Its later versions can
 * break that; the step fails then.
 */
static void
check_child(const SagaDefinition *def, int position)
{
	const SagaStep *step = &def->steps[position];
	const SagaDefinition *child;
	ErrorContextCallback callback = {
		.previous = error_context_stack,
		.callback = describe_step,
		.arg = (void *) step
	};

	/* it may be its own child */
	error_context_stack = &callback;
	child = strcmp(step->child, def->name) == 0 ? def :
		saga_catalog_for_child(step->child);
	error_context_stack = callback.previous;
	if (child->has_pivot && def->rules.steps[position].has_compensation)
		ereport(ERROR,
				errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				errmsg("step \"%s\" cannot be a saga of definition \"%s\"",
					   step->name, step->child),
				errdetail("That has a pivot, so its saga could not be undone when this one goes back."),
				errhint("Make the step the pivot of this definition, or put it after the pivot."));
}

/* Also makes "def", of what is returned. */
static Jsonb *
check_steps(const char *name, ArrayType *array, SagaDefinition *def)
{
	Jsonb	   *steps;

	if (array == NULL)
		array = construct_empty_array(JSONBOID);
	steps = saga_definition_check(name, array);
	def->name = name;
	saga_definition_build(def, steps, CurrentMemoryContext);
	for (int i = 0; i < def->rules.nsteps; i++)
	{
		CHECK_FOR_INTERRUPTS();
		if (def->steps[i].kind == SAGA_KIND_CHILD &&
			def->steps[i].server == NULL)
			check_child(def, i);
	}
	return steps;
}

Jsonb *
saga_define_check(const char *name, ArrayType *array)
{
	SagaDefinition def = {0};

	return check_steps(name, array, &def);
}

Datum
saga_define(PG_FUNCTION_ARGS)
{
	char	   *name = definition_argument(fcinfo);
	SagaDefinition def = {0};
	ArrayType  *array;
	Jsonb	   *steps;
	List	   *missing;
	ListCell   *cell;
	int			version;
	bool		stored;

	refuse_if_restricted("saga.define()");
	array = PG_ARGISNULL(1) ? NULL : PG_GETARG_ARRAYTYPE_P(1);
	steps = check_steps(name, array, &def);
	saga_defserver_check(&def);
	missing = check_queues(find_queues(&def));
	version = saga_catalog_define(name, steps, &stored);
	if (stored)
	{
		foreach(cell, missing)
			use_queue(lfirst(cell));
		saga_defserver_tell(&def);
	}
	PG_RETURN_INT32(version);
}

static void
check_deadline(const Interval *deadline, const char *where)
{
	int64		microseconds = saga_definition_microseconds(deadline,
															"deadline", where);

	if (microseconds < 0 || (microseconds > 0 && microseconds < 1000))
		ereport(ERROR,
				errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				errmsg("invalid deadline in %s", where),
				errdetail("It must be at least 1 ms, or zero for none."));
}

/* It is subtracted from a timestamp, so months are welcome. */
static void
check_retention(const Interval *retention, const char *where)
{
	Interval	zero = {0, 0, 0};
	Interval	longest = {0, 0, 1000 * MONTHS_PER_YEAR};

	if (!saga_interval_is_finite(retention) ||
		DatumGetBool(DirectFunctionCall2(interval_lt,
										 IntervalPGetDatum(retention),
										 IntervalPGetDatum(&zero))) ||
		DatumGetBool(DirectFunctionCall2(interval_gt,
										 IntervalPGetDatum(retention),
										 IntervalPGetDatum(&longest))))
		ereport(ERROR,
				errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				errmsg("invalid retention in %s", where),
				errdetail("It must be from 0 to 1000 years."));
}

static void
check_max_running(int max_running, const char *where)
{
	if (max_running < 0)
		ereport(ERROR,
				errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				errmsg("invalid max_running in %s", where),
				errdetail("It must be at least 1, or zero for no limit."));
}

static void
check_exclusive_timeout(const Interval *timeout, const char *where)
{
	if (saga_definition_microseconds(timeout, "exclusive_timeout", where) < 0)
		saga_definition_invalid("exclusive_timeout", where,
								"It must be from 0, which is no limit, to 100 years.");
}

/* The lock of whole sagas: arguments 5 to 7. */
static void
read_exclusive(FunctionCallInfo fcinfo, const char *where,
			   SagaCatalogSettings *settings)
{
	SagaPath	path;

	settings->exclusive = text_argument(fcinfo, 5);
	settings->exclusive_until = text_argument(fcinfo, 6);
	if (!PG_ARGISNULL(7))
	{
		settings->exclusive_timeout = PG_GETARG_INTERVAL_P(7);
		check_exclusive_timeout(settings->exclusive_timeout, where);
	}
	if (settings->exclusive == NULL)
		return;
	if (settings->exclusive[0] != '\0')
		saga_definition_input_path(settings->exclusive, "exclusive", where,
								   &path);
	else if (settings->exclusive_until != NULL ||
			 settings->exclusive_timeout != NULL)
		ereport(ERROR,
				errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				errmsg("exclusive of %s is removed", where),
				errdetail("Without it, exclusive_until and exclusive_timeout have no meaning."));
}

Datum
saga_configure(PG_FUNCTION_ARGS)
{
	char	   *name = definition_argument(fcinfo);
	const char *where = psprintf("saga definition \"%s\"", name);
	SagaCatalogSettings settings = {0};
	int			max_running;
	bool		enabled;

	refuse_if_restricted("saga.configure()");
	if (!PG_ARGISNULL(1))
	{
		settings.deadline = PG_GETARG_INTERVAL_P(1);
		check_deadline(settings.deadline, where);
	}
	if (!PG_ARGISNULL(2))
	{
		settings.retention = PG_GETARG_INTERVAL_P(2);
		check_retention(settings.retention, where);
	}
	if (!PG_ARGISNULL(3))
	{
		max_running = PG_GETARG_INT32(3);
		check_max_running(max_running, where);
		settings.max_running = &max_running;
	}
	if (!PG_ARGISNULL(4))
	{
		enabled = PG_GETARG_BOOL(4);
		settings.enabled = &enabled;
	}
	read_exclusive(fcinfo, where, &settings);
	saga_catalog_configure(name, &settings);
	if (settings.max_running != NULL)
		saga_wake_database();	/* those in line may have a place now */
	PG_RETURN_VOID();
}

Datum
saga_drop_definition(PG_FUNCTION_ARGS)
{
	char	   *name = definition_argument(fcinfo);
	bool		force = !PG_ARGISNULL(1) && PG_GETARG_BOOL(1);

	refuse_if_restricted("saga.drop_definition()");
	saga_catalog_drop(name, force);
	PG_RETURN_VOID();
}

Datum
saga_grant_begin(PG_FUNCTION_ARGS)
{
	char	   *name = definition_argument(fcinfo);
	char	   *role_name = role_argument(fcinfo);

	refuse_if_restricted("saga.grant_begin()");
	saga_catalog_grant(name, get_role_oid_or_public(role_name), role_name);
	PG_RETURN_VOID();
}

Datum
saga_revoke_begin(PG_FUNCTION_ARGS)
{
	char	   *name = definition_argument(fcinfo);
	char	   *role_name = role_argument(fcinfo);

	refuse_if_restricted("saga.revoke_begin()");
	/* the grant of a role that is gone can be taken back too */
	if (!saga_catalog_revoke(name, role_name))
		(void) get_role_oid_or_public(role_name);
	PG_RETURN_VOID();
}
