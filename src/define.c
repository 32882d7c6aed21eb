/*
 * define.c
 *		Owns the SQL-callable functions about definitions.
 *
 * They run with the rights of their caller: definition.c looks functions up as
 * it, catalog.c asks whether it may, and switches to the owner of the tables
 * only around its own statements.
 *
 * Any backend; all of it is in the caller's transaction.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/jsonb.h"
#include "utils/timestamp.h"

#include "catalog.h"
#include "compat.h"
#include "definition.h"
#include "json.h"
#include "shared.h"

PG_FUNCTION_INFO_V1(saga_retry_policy);
PG_FUNCTION_INFO_V1(saga_step);
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
	if (!PG_ARGISNULL(0))
		saga_json_put_int(&writer, "max_attempts", PG_GETARG_INT32(0));
	put_interval(&writer, fcinfo, 1, "initial_delay", where);
	put_interval(&writer, fcinfo, 2, "max_delay", where);
	put_double(&writer, fcinfo, 3, "multiplier");
	put_double(&writer, fcinfo, 4, "jitter");
	put_texts(&writer, fcinfo, 5, "retry_on", where);
	put_texts(&writer, fcinfo, 6, "fail_on", where);
	PG_RETURN_JSONB_P(saga_definition_check_policy(saga_json_finish_object(&writer),
												   where));
}

/* Checks little: saga.define() does, and hand-made steps need it anyway. */
Datum
saga_step(PG_FUNCTION_ARGS)
{
	char	   *name = text_argument(fcinfo, 0);
	const char *where = name == NULL ? "step" : psprintf("step \"%s\"", name);
	SagaJsonWriter writer = NULL;

	saga_json_begin_object(&writer);
	saga_json_put_string(&writer, "kind", "local");
	saga_json_put_string(&writer, "name", name);
	saga_json_put_string(&writer, "action", text_argument(fcinfo, 1));
	saga_json_put_string(&writer, "compensation", text_argument(fcinfo, 2));
	put_true(&writer, fcinfo, 3, "pivot");
	put_interval(&writer, fcinfo, 4, "timeout", where);
	put_jsonb(&writer, fcinfo, 5, "retry");
	put_interval(&writer, fcinfo, 6, "compensation_timeout", where);
	put_jsonb(&writer, fcinfo, 7, "compensation_retry");
	saga_json_put_string(&writer, "isolation", text_argument(fcinfo, 8));
	put_true(&writer, fcinfo, 9, "durable");
	PG_RETURN_JSONB_P(saga_json_finish_object(&writer));
}


/* ---- definitions ------------------------------------------------------ */

Datum
saga_define(PG_FUNCTION_ARGS)
{
	char	   *name = definition_argument(fcinfo);
	ArrayType  *steps;

	refuse_if_restricted("saga.define()");
	steps = PG_ARGISNULL(1) ? construct_empty_array(JSONBOID) :
		PG_GETARG_ARRAYTYPE_P(1);
	PG_RETURN_INT32(saga_catalog_define(name,
										saga_definition_check(name, steps)));
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
