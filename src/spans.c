/*
 * spans.c
 *		The functions behind view saga.spans: ids of traces and spans.
 *
 * Any backend.  They only compute: whoever has a token may know what is made of
 * it, and without one they tell nothing.
 */
#include "postgres.h"

#include "fmgr.h"
#include "utils/builtins.h"

#include "arguments.h"
#include "trace.h"

PG_FUNCTION_INFO_V1(saga_trace_raw);
PG_FUNCTION_INFO_V1(saga_span_raw);

/*
 * saga.trace_raw(token, traceparent, OUT trace_id, OUT span_id,
 * OUT parent_span_id, OUT sampled): of a saga.
 */
Datum
saga_trace_raw(PG_FUNCTION_ARGS)
{
	char	   *traceparent = saga_argument_text(fcinfo, 1);
	Datum		values[4] = {0};
	bool		nulls[4] = {false};
	SagaTrace	trace;

	saga_argument_require(fcinfo, 0, "token");
	saga_trace_of_saga(PG_GETARG_UUID_P(0), traceparent, &trace);
	values[0] = CStringGetTextDatum(trace.trace_id);
	values[1] = CStringGetTextDatum(trace.span_id);
	if (trace.parent_id[0] != '\0')
		values[2] = CStringGetTextDatum(trace.parent_id);
	else
		nulls[2] = true;
	values[3] = BoolGetDatum((trace.flags & SAGA_TRACE_SAMPLED) != 0);
	return saga_make_row(fcinfo, values, nulls);
}

static SagaOperation
read_operation(const char *name)
{
	for (int i = 0; i < SAGA_NOPERATION; i++)
		if (strcmp(name, saga_operation_name((SagaOperation) i)) == 0)
			return (SagaOperation) i;
	ereport(ERROR,
			errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			errmsg("unrecognized operation: \"%s\"", name));
	return SAGA_OPERATION_ACTION;	/* keep the compiler quiet */
}

/*
 * saga.span_raw(token, step, operation, element, round): the id of the span of
 * an operation.  Strict.
 */
Datum
saga_span_raw(PG_FUNCTION_ARGS)
{
	char	   *step = text_to_cstring(PG_GETARG_TEXT_PP(1));
	char	   *name = text_to_cstring(PG_GETARG_TEXT_PP(2));
	SagaOperation operation = read_operation(name);

	PG_RETURN_TEXT_P(cstring_to_text(saga_trace_span_id(PG_GETARG_UUID_P(0),
														step,
														PG_GETARG_INT32(3),
														PG_GETARG_INT32(4),
														operation)));
}
