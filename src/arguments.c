/*
 * arguments.c
 *		Owns how SQL-callable functions read their arguments and return several
 *		values.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "arguments.h"
#include "compat.h"

void
saga_argument_require(FunctionCallInfo fcinfo, int n, const char *name)
{
	if (PG_ARGISNULL(n))
		ereport(ERROR,
				errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				errmsg("%s must not be null", name));
}

char *
saga_argument_text(FunctionCallInfo fcinfo, int n)
{
	return PG_ARGISNULL(n) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(n));
}

int64
saga_argument_interval(FunctionCallInfo fcinfo, int n, const char *name)
{
	Interval   *interval;

	saga_argument_require(fcinfo, n, name);
	interval = PG_GETARG_INTERVAL_P(n);
	if (!saga_interval_is_finite(interval) || interval->time < 0 ||
		interval->day < 0 || interval->month < 0)
		ereport(ERROR,
				errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				errmsg("%s must not be negative or infinite", name));
	if (interval->month > 12 || interval->day > 400 ||
		interval->time > 400 * USECS_PER_DAY)
		ereport(ERROR,
				errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				errmsg("%s must not be longer than a year", name));
	return interval->time + (interval->day + interval->month * INT64CONST(30)) *
		USECS_PER_DAY;
}

void
saga_check_may_write(const char *function)
{
	PreventCommandIfReadOnly(function);
	PreventCommandIfParallelMode(function);
	if (InSecurityRestrictedOperation())
		ereport(ERROR,
				errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				errmsg("cannot execute %s within security-restricted operation",
					   function));
}

void
saga_require_may_commit(FunctionCallInfo fcinfo, const char *procedure,
						const char *hint)
{
	if (fcinfo->context == NULL || !IsA(fcinfo->context, CallContext) ||
		castNode(CallContext, fcinfo->context)->atomic)
		ereport(ERROR,
				errcode(ERRCODE_INVALID_TRANSACTION_TERMINATION),
				errmsg("%s cannot be called inside a transaction block or a function",
					   procedure),
				errdetail("It commits and begins transactions of its own."),
				errhint("%s", hint));
}

Datum
saga_make_row(FunctionCallInfo fcinfo, Datum *values, const bool *nulls)
{
	static const bool none[8] = {false};
	TupleDesc	desc;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	Assert(nulls != NULL || desc->natts <= (int) lengthof(none));
	return HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values,
											 (bool *) (nulls != NULL ? nulls : none)));
}
