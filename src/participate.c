/*
 * participate.c
 *		Owns the functions that another database calls here for its sagas:
 *		participate, settle and forget_barriers.
 *
 * They run in a transaction of whoever has connected, as the current user, and
 * need nothing of the server but this library: no shared memory, no process.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "access/xlog_internal.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "replication/syncrep.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/guc.h"
#include "utils/timeout.h"
#include "utils/timestamp.h"

#include "arguments.h"
#include "barrier.h"
#include "call.h"
#include "definition.h"
#include "guest.h"
#include "participate.h"

PG_FUNCTION_INFO_V1(saga_participate);
PG_FUNCTION_INFO_V1(saga_settle);
PG_FUNCTION_INFO_V1(saga_forget_barriers);

/* The arguments of saga.participate(). */
enum
{
	CALL_COORDINATOR, CALL_SAGA, CALL_STEP, CALL_OPERATION, CALL_FUNCTION,
	CALL_CONTEXT, CALL_ELEMENT, CALL_ROUND, CALL_BEGUN_AT
};

static const char *const verdicts[] = {
	[SAGA_BARRIER_TO_DO] = "done",
	[SAGA_BARRIER_REPEATED] = "repeated",
	[SAGA_BARRIER_SKIPPED] = "skipped"
};


/* ---- participate ------------------------------------------------------------ */

void
saga_participate_require_read_committed(const char *function)
{
	if (!IsolationUsesXactSnapshot())
		return;
	ereport(ERROR,
			errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			errmsg("%s cannot be called under isolation level \"%s\"", function,
				   GetConfigOption("transaction_isolation", false, false)),
			errdetail("The transaction would not see what is done while it waits."),
			errhint("Begin it with BEGIN ISOLATION LEVEL READ COMMITTED, or set \"default_transaction_isolation\"."));
}

static SagaOperation
operation_argument(FunctionCallInfo fcinfo)
{
	const char *name = saga_argument_text(fcinfo, CALL_OPERATION);

	for (int i = 0; i < SAGA_NOPERATION; i++)
		if (strcmp(name, saga_operation_name(i)) == 0)
			return i;
	ereport(ERROR,
			errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			errmsg("unrecognized operation: \"%s\"", name),
			errhint("Operations are \"action\", \"compensation\" and \"confirmation\"."));
	return 0;					/* keep the compiler quiet */
}

static TimestampTz
begun_at_argument(FunctionCallInfo fcinfo)
{
	TimestampTz begun_at;

	if (PG_ARGISNULL(CALL_BEGUN_AT))
		return GetCurrentTransactionStartTimestamp();
	begun_at = PG_GETARG_TIMESTAMPTZ(CALL_BEGUN_AT);
	if (TIMESTAMP_NOT_FINITE(begun_at))
		ereport(ERROR,
				errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				errmsg("begun_at must be finite"));
	return begun_at;
}

void
saga_participate_read_call(FunctionCallInfo fcinfo, const char *name,
						   SagaBarrierCall *call)
{
	const char *const names[] = {
		"coordinator", "saga", "step", "operation", name, "context",
		"element", "round"
	};
	int32		round;

	for (int i = 0; i < (int) lengthof(names); i++)
		saga_argument_require(fcinfo, i, names[i]);
	call->coordinator = *PG_GETARG_UUID_P(CALL_COORDINATOR);
	call->token = *PG_GETARG_UUID_P(CALL_SAGA);
	call->step = saga_argument_text(fcinfo, CALL_STEP);
	saga_definition_check_name(call->step, "step");
	call->operation = SAGA_OPERATION_ACTION;
	call->element = PG_GETARG_INT32(CALL_ELEMENT);
	if (call->element < -1)
		ereport(ERROR,
				errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				errmsg("element must not be less than -1"));
	round = PG_GETARG_INT32(CALL_ROUND);
	if (round < 0 || round > PG_INT16_MAX)
		ereport(ERROR,
				errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				errmsg("round must be between 0 and %d", PG_INT16_MAX));
	call->round = round;
	call->begun_at = begun_at_argument(fcinfo);
}

/* The type of the result is made once per session: looking it up in the catalogs
 * would take longer than the rest of a call that is repeated. */
Datum
saga_participate_result(SagaBarrierVerdict verdict, const Jsonb *answer)
{
	static TupleDesc desc = NULL;
	Datum		values[2];
	bool		nulls[2] = {false};

	if (desc == NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);
		TupleDesc	fresh = CreateTemplateTupleDesc(2);

		TupleDescInitEntry(fresh, 1, "outcome", TEXTOID, -1, 0);
		TupleDescInitEntry(fresh, 2, "result", JSONBOID, -1, 0);
		desc = BlessTupleDesc(fresh);
		MemoryContextSwitchTo(old);
	}
	values[0] = CStringGetTextDatum(verdicts[verdict]);
	values[1] = PointerGetDatum(answer);
	nulls[1] = answer == NULL;
	return HeapTupleGetDatum(heap_form_tuple(desc, values, nulls));
}

static uint64
add_to_hash(uint64 hash, const char *text)
{
	/* the zero at its end too, so that no two texts are taken for one */
	do
		hash = (hash ^ (unsigned char) *text) * UINT64CONST(0x100000001b3);
	while (*text++ != '\0');
	return hash;
}

void
saga_participate_mark(char *mark, const char *token, const char *step,
					  int element, int round, const char *operation)
{
	char		numbers[32];
	uint64		hash = UINT64CONST(0xcbf29ce484222325);

	snprintf(numbers, sizeof(numbers), "%d/%d", element, round);
	hash = add_to_hash(hash, token);
	hash = add_to_hash(hash, step);
	hash = add_to_hash(hash, numbers);
	hash = add_to_hash(hash, operation);
	snprintf(mark, SAGA_CALL_MARK_LENGTH, "saga call %08x%08x",
			 (uint32) (hash >> 32), (uint32) hash);
}

/* Errors say which operation they are of: the log here, and the caller, who
 * knows by that whose answer it is. */
static void
name_call(void *arg)
{
	const SagaBarrierCall *call = arg;

	char		mark[SAGA_CALL_MARK_LENGTH];

	saga_participate_mark(mark,
						  DatumGetCString(DirectFunctionCall1(uuid_out,
															  UUIDPGetDatum(&call->token))),
						  call->step, call->element, call->round,
						  saga_operation_name(call->operation));
	errcontext("%s of step \"%s\", %s", saga_operation_name(call->operation),
			   call->step, mark);
}

/* The end of the last record.  At the begin of a page the place of the next one is
 * behind the page's header, which is not written yet. */
static XLogRecPtr
end_of_wal(void)
{
	XLogRecPtr	end = GetXLogInsertRecPtr();
	uint32		in_page = end % XLOG_BLCKSZ;

	if (in_page == SizeOfXLogShortPHD ||
		(in_page == SizeOfXLogLongPHD &&
		 XLogSegmentOffset(end, wal_segment_size) == in_page))
		end -= in_page;
	return end;
}

/* Whatever has been committed here until now is as durable as the role wants its
 * own commits to be. */
static void
settle(void)
{
	XLogRecPtr	end;

	if (synchronous_commit == SYNCHRONOUS_COMMIT_OFF)
		return;
	end = end_of_wal();
	XLogFlush(end);
	/* no commit is bounded by statement_timeout either; the time of a wait that
	 * was cancelled would count as success */
	disable_timeout(STATEMENT_TIMEOUT, false);
	HOLD_INTERRUPTS();
	SyncRepWaitForLSN(end, true);
	RESUME_INTERRUPTS();
}

/*
 * saga.settle(pid): who has called saga.participate() with asynchronous commit, in
 * this session, hears that it is durable.  pid: which session that was.
 */
Datum
saga_settle(PG_FUNCTION_ARGS)
{
	saga_check_may_write("saga.settle()");
	saga_argument_require(fcinfo, 0, "pid");
	if (PG_GETARG_INT32(0) != MyProcPid)
		ereport(ERROR,
				errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				errmsg("this is another session than that of process %d",
					   PG_GETARG_INT32(0)));
	settle();
	PG_RETURN_VOID();
}

/*
 * saga.participate(coordinator, saga, step, operation, function, context,
 * element, round, begun_at): the function is called, unless that was done or is
 * not to be done; see barrier.h.
 */
Datum
saga_participate(PG_FUNCTION_ARGS)
{
	SagaBarrierCall call;
	SagaBarrierVerdict verdict;
	SagaBarrier barrier;
	SagaGuest  *guest;
	Jsonb	   *answer;
	ErrorContextCallback context = {.callback = name_call,.arg = &call};

	saga_call_refuse_within("saga.participate()");
	saga_check_may_write("saga.participate()");
	saga_participate_require_read_committed("saga.participate()");
	saga_participate_read_call(fcinfo, "function", &call);
	call.operation = operation_argument(fcinfo);
	context.previous = error_context_stack;
	error_context_stack = &context;
	guest = saga_guest_find(saga_argument_text(fcinfo, CALL_FUNCTION));
	verdict = saga_barrier_enter(&barrier, &call);
	answer = barrier.answer;
	if (verdict == SAGA_BARRIER_TO_DO)
	{
		answer = saga_guest_call(guest, PG_GETARG_JSONB_P(CALL_CONTEXT));
		saga_barrier_done(&barrier, answer);
	}
	else if (verdict == SAGA_BARRIER_REPEATED)
		settle();				/* who did it may not have come to that */
	error_context_stack = context.previous;
	PG_RETURN_DATUM(saga_participate_result(verdict, answer));
}


/* ---- forget_barriers --------------------------------------------------------- */

/* saga.forget_barriers(coordinator, before, kept) */
Datum
saga_forget_barriers(PG_FUNCTION_ARGS)
{
	TimestampTz before;
	ArrayType  *kept;

	saga_check_may_write("saga.forget_barriers()");
	saga_argument_require(fcinfo, 0, "coordinator");
	saga_argument_require(fcinfo, 1, "before");
	saga_argument_require(fcinfo, 2, "kept");
	before = PG_GETARG_TIMESTAMPTZ(1);
	if (TIMESTAMP_NOT_FINITE(before))
		ereport(ERROR,
				errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				errmsg("before must be finite"));
	kept = PG_GETARG_ARRAYTYPE_P(2);
	if (array_contains_nulls(kept))
		ereport(ERROR,
				errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				errmsg("kept must not contain nulls"));
	saga_child_forget(PG_GETARG_UUID_P(0), before, PointerGetDatum(kept));
	PG_RETURN_INT64(saga_barrier_forget(PG_GETARG_UUID_P(0), before,
										PointerGetDatum(kept)));
}
