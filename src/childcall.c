/*
 * childcall.c
 *		Owns the functions by which another database has sagas here that are
 *		children of its own: participate_child and follow_children.
 *
 * A child is begun once for each attempt of its parent's step: the barrier says
 * whether that was done (barrier.c), and farparent.c which saga it is.  What is
 * asked of it afterwards is a message to it, as from a parent of this database,
 * and may be asked any number of times.  Whoever asks again for something that
 * the child has done already is told again: so an answer that was lost on any
 * way comes by asking.
 *
 * They run as the current user, whose the children are, and need nothing of the
 * server but this library; a child is advanced by whoever advances sagas here.
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/latch.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "arguments.h"
#include "call.h"
#include "catalog.h"
#include "child.h"
#include "errcodes.h"
#include "farparent.h"
#include "json.h"
#include "participate.h"
#include "shared.h"
#include "store.h"
#include "trace.h"

PG_FUNCTION_INFO_V1(saga_participate_child);
PG_FUNCTION_INFO_V1(saga_follow_children);

/* Who follows looks again this often even if nobody wakes it. */
#define FOLLOW_RECHECK_MS	60000
/* ... and this often when it could not be registered. */
#define FOLLOW_POLL_MS		1000

/* The arguments of saga.participate_child(), those of this file. */
enum
{
	CALL_OPERATION = 3, CALL_DEFINITION = 4, CALL_CONTEXT = 5
};

/* What the parent says with its call. */
typedef struct ChildContext
{
	Jsonb	   *input;
	int64		parent_id;		/* 0 = not said */
	int			attempt;
	int			depth;			/* so many sagas are above the parent */
	bool		undoable;		/* the step may have to be compensated */
	const char *traceparent;	/* of the step; NULL = it is a trace of its own */
} ChildContext;

typedef struct ChildCall
{
	SagaBarrierCall call;
	const char *operation;		/* also what is none to the barrier */
	const char *definition;
	ChildContext context;
} ChildCall;


/* ---- what the parent says ---------------------------------------------------- */

static int64
number_field(JsonbContainer *object, const char *key, int64 otherwise,
			 int64 least, int64 most)
{
	JsonbValue	value;
	int64		number;

	if (!saga_json_get(object, key, &value))
		return otherwise;
	number = value.type == jbvNumeric ? saga_json_int(&value) : least - 1;
	if (number < least || number > most)
		ereport(ERROR,
				errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				errmsg("invalid \"%s\" in the context of a child saga", key));
	return number;
}

static void
read_context(Jsonb *json, ChildContext *context)
{
	JsonbContainer *object = &json->root;
	JsonbValue	value;
	JsonbValue *input;

	if (!JB_ROOT_IS_OBJECT(json))
		ereport(ERROR,
				errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				errmsg("the context of a child saga must be an object"));
	input = getKeyJsonValueFromContainer(object, "input", strlen("input"), NULL);
	if (input != NULL)
		context->input = JsonbValueToJsonb(input);
	else
		context->input = DatumGetJsonbP(DirectFunctionCall1(jsonb_in,
															CStringGetDatum("{}")));
	context->parent_id = number_field(object, "saga_id", 0, 1, PG_INT64_MAX);
	context->attempt = (int) number_field(object, "attempt", 1, 1, PG_INT32_MAX);
	context->depth = (int) number_field(object, "depth", 0, 0, PG_INT16_MAX - 1);
	context->undoable = !saga_json_get(object, "undoable", &value) ||
		value.type != jbvBool || value.val.boolean;
	context->traceparent = NULL;
	if (saga_json_get(object, "traceparent", &value) && value.type == jbvString &&
		saga_trace_is_valid(saga_json_string(&value)))
		context->traceparent = saga_json_string(&value);
}


/* ---- children ------------------------------------------------------------------ */

static int64
begin_child(const ChildCall *child)
{
	const ChildContext *context = &child->context;
	const SagaDefinition *definition;
	SagaError	error;

	saga_catalog_forget_old();
	definition = saga_catalog_for_begin(child->definition, false, true);
	saga_definition_check_input(definition, context->input);
	if (!saga_child_may_be(definition, context->depth, context->undoable,
						   &error))
		ereport(ERROR,
				errcode(MAKE_SQLSTATE(error.sqlstate[0], error.sqlstate[1],
									  error.sqlstate[2], error.sqlstate[3],
									  error.sqlstate[4])),
				errmsg_internal("%s", error.message),
				errdetail_internal("%s", error.detail),
				errhint("%s", error.hint));
	return saga_store_begin_far_child(definition, context->input,
									  saga_definition_deadline(definition, 0),
									  context->traceparent, context->depth + 1);
}

/* Whoever has children here compares it with what it was: another one tells that
 * what this database has confirmed may be gone. */
static char *
name_history(void)
{
	Datum		id = UUIDPGetDatum(&saga_tables_names()->coordinator);

	return psprintf("%s/%u", DatumGetCString(DirectFunctionCall1(uuid_out, id)),
					GetWALInsertionTimeLine());
}

static Jsonb *
describe(const SagaFarChild *child)
{
	SagaJsonWriter writer = NULL;

	saga_json_begin_object(&writer);
	saga_json_put_int(&writer, "saga_id", child->id);
	saga_json_put_string(&writer, "history", name_history());
	return saga_json_finish_object(&writer);
}

/* Is there nothing more that it would do by itself?  Then what it has to say it
 * has said before, to somebody who may not have heard it. */
static bool
is_at_rest(SagaStatus status)
{
	return status == SAGA_STATUS_HELD || saga_status_is_final(status);
}

/* It says again what has become of it, if that is known. */
static void
report_again(const SagaFarChild *child)
{
	Saga	   *saga = saga_store_peek(child->id);
	Jsonb	   *result = NULL;

	if (saga == NULL || !is_at_rest(saga->state.status))
		return;
	if (saga->state.status == SAGA_STATUS_COMPLETED)
		result = saga_far_parent_result(child->id);
	saga_far_parent_report(child->id,
						   saga_child_make_report(saga, false, result));
}

/* Has it ended, with nothing done? */
static bool
was_undone(const SagaFarChild *child)
{
	SagaGlance	glance;

	return !saga_store_glance(child->id, &glance) ||
		glance.status == SAGA_STATUS_COMPENSATED ||
		glance.status == SAGA_STATUS_ABANDONED;
}

/* Its action was done, but there is no child. */
static void
report_forgotten(const ChildCall *call)
{
	ereport(ERROR,
			errcode(ERRCODE_SAGA_FORGOTTEN),
			errmsg("cannot tell which child saga was begun for step \"%s\" of this saga",
				   call->call.step),
			errdetail("The saga has ended, and what was done for it has been forgotten."));
}

/* The child of this attempt, which is begun if it is another one than before. */
static SagaFarChild
begin_or_find(const ChildCall *call, SagaBarrierVerdict verdict, bool *begun)
{
	SagaFarChild child;
	bool		found = saga_far_parent_find(&call->call, &child);

	if (!found && verdict == SAGA_BARRIER_REPEATED)
		report_forgotten(call);
	*begun = !found ||
		(child.attempt < call->context.attempt && was_undone(&child));
	if (*begun)
	{
		saga_far_parent_require(&call->call);
		child.id = begin_child(call);
		child.attempt = call->context.attempt;
		saga_far_parent_add(&call->call, &child, call->context.parent_id);
		return child;
	}
	child.attempt = Max(child.attempt, call->context.attempt);
	saga_far_parent_move(&call->call, &child);
	return child;
}

static Datum
act(const ChildCall *call)
{
	SagaBarrierVerdict verdict;
	SagaBarrier barrier;
	SagaFarChild child;
	bool		begun;

	verdict = saga_barrier_enter(&barrier, &call->call);
	child = begin_or_find(call, verdict, &begun);
	if (verdict == SAGA_BARRIER_TO_DO)
		saga_barrier_done(&barrier, NULL);
	if (!begun)
		report_again(&child);
	return saga_participate_result(begun ? SAGA_BARRIER_TO_DO :
								   SAGA_BARRIER_REPEATED, describe(&child));
}

/* Ask the child for something; NULL if there is none. */
static Jsonb *
tell_child(const ChildCall *call, const char *message)
{
	SagaFarChild child;

	if (!saga_far_parent_find(&call->call, &child))
		return NULL;
	/* its attempt is that of the action, which this is not */
	saga_far_parent_move(&call->call, &child);
	if (!saga_store_post_to(child.id, message, NULL, -1, NULL))
		report_again(&child);
	return describe(&child);
}

static Datum
follow_up(const ChildCall *call, const char *message)
{
	SagaBarrierVerdict verdict;
	SagaBarrier barrier;
	Jsonb	   *answer = NULL;

	verdict = saga_barrier_enter(&barrier, &call->call);
	if (verdict != SAGA_BARRIER_SKIPPED)
		answer = tell_child(call, message);
	if (verdict == SAGA_BARRIER_TO_DO)
		saga_barrier_done(&barrier, NULL);
	return saga_participate_result(verdict, answer);
}

/*
 * The action is not wanted any more.  If it has not come it is never to be done;
 * else its child goes back, and the action ends with that: its compensation has
 * not been asked for.
 */
static Datum
recall(ChildCall *call)
{
	SagaBarrierVerdict verdict;
	SagaBarrier barrier;
	Jsonb	   *answer = NULL;

	call->call.operation = SAGA_OPERATION_COMPENSATION;
	verdict = saga_barrier_enter(&barrier, &call->call);
	if (verdict != SAGA_BARRIER_SKIPPED)
		answer = tell_child(call, "recall");
	if (verdict == SAGA_BARRIER_TO_DO)
		saga_barrier_leave(&barrier);
	return saga_participate_result(verdict, answer);
}

/* They are told to complete when they are done. */
static void
release_children(const int64 *ids, int n)
{
	for (int i = 0; i < n; i++)
		(void) saga_store_post_to(ids[i], "release", NULL, -1, NULL);
}

/* The parent has ended. */
static Datum
release(const ChildCall *call)
{
	int64	   *ids = palloc(SAGA_MAX_LET_GO * sizeof(int64));
	int			n;

	do
	{
		n = saga_far_parent_let_go(&call->call, ids);
		release_children(ids, n);
	} while (n == SAGA_MAX_LET_GO);
	return saga_participate_result(SAGA_BARRIER_TO_DO, NULL);
}

void
saga_child_forget(const pg_uuid_t *coordinator, TimestampTz before, Datum kept)
{
	int64	   *ids = palloc(SAGA_MAX_LET_GO * sizeof(int64));

	release_children(ids, saga_far_parent_forget(coordinator, before, kept,
												 ids));
	pfree(ids);
}

static Datum
carry_out(ChildCall *call)
{
	if (strcmp(call->operation, "action") == 0)
		return act(call);
	if (strcmp(call->operation, "recall") == 0)
		return recall(call);
	if (strcmp(call->operation, "release") == 0)
		return release(call);
	if (strcmp(call->operation, "compensation") == 0)
	{
		call->call.operation = SAGA_OPERATION_COMPENSATION;
		return follow_up(call, "recall");
	}
	if (strcmp(call->operation, "confirmation") == 0)
	{
		call->call.operation = SAGA_OPERATION_CONFIRMATION;
		return follow_up(call, "release");
	}
	ereport(ERROR,
			errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			errmsg("unrecognized operation: \"%s\"", call->operation),
			errhint("Operations are \"action\", \"compensation\", \"confirmation\", \"recall\" and \"release\"."));
	return 0;					/* keep the compiler quiet */
}

/* As errors of saga.participate() do. */
static void
name_call(void *arg)
{
	const ChildCall *call = arg;
	Datum		token = UUIDPGetDatum(&call->call.token);
	char		mark[SAGA_CALL_MARK_LENGTH];

	saga_participate_mark(mark,
						  DatumGetCString(DirectFunctionCall1(uuid_out, token)),
						  call->call.step, call->call.element,
						  call->call.round, call->operation);
	errcontext("%s of child step \"%s\", %s", call->operation,
			   call->call.step, mark);
}

/*
 * saga.participate_child(coordinator, saga, step, operation, definition,
 * context, element, round, begun_at): as saga.participate(), with a saga of this
 * database in place of a function.
 */
Datum
saga_participate_child(PG_FUNCTION_ARGS)
{
	ChildCall	call;
	ErrorContextCallback context = {.callback = name_call,.arg = &call};
	Datum		result;

	saga_call_refuse_within("saga.participate_child()");
	saga_check_may_write("saga.participate_child()");
	saga_participate_require_read_committed("saga.participate_child()");
	saga_participate_read_call(fcinfo, "definition", &call.call);
	call.operation = saga_argument_text(fcinfo, CALL_OPERATION);
	context.previous = error_context_stack;
	error_context_stack = &context;
	call.definition = saga_argument_text(fcinfo, CALL_DEFINITION);
	read_context(PG_GETARG_JSONB_P(CALL_CONTEXT), &call.context);
	result = carry_out(&call);
	error_context_stack = context.previous;
	return result;
}


/* ---- following ------------------------------------------------------------------ */

/* Clear what has been taken.  If that is lost it is only told again, so it is
 * not flushed. */
static void
acknowledge(const pg_uuid_t *coordinator, ArrayType *ids)
{
	(void) set_config_option("synchronous_commit", "off", PGC_USERSET,
							 PGC_S_SESSION, GUC_ACTION_LOCAL, true, 0, false);
	saga_far_parent_acknowledge(coordinator, PointerGetDatum(ids));
}

/* Sleep until somebody reports something, or for a while. */
static void
sleep_for_reports(bool registered, TimestampTz until)
{
	long		timeout = TimestampDifferenceMilliseconds(GetCurrentTimestamp(),
														  until);

	timeout = Min(timeout, registered ? FOLLOW_RECHECK_MS : FOLLOW_POLL_MS);
	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
					 timeout, PG_WAIT_EXTENSION);
	ResetLatch(MyLatch);
	CHECK_FOR_INTERRUPTS();
}

/* The transaction ends after each look, so that nothing is held while it sleeps. */
static Jsonb *
wait_for_reports(const pg_uuid_t *coordinator, TimestampTz until,
				 MemoryContext memory)
{
	bool		registered = saga_waiter_register(SAGA_FAR_REPORTS);
	Jsonb	   *volatile reports = NULL;

	PG_TRY();
	{
		for (;;)
		{
			MemoryContext old = MemoryContextSwitchTo(memory);

			reports = saga_far_parent_read_reports(coordinator);
			MemoryContextSwitchTo(old);
			if (reports != NULL || GetCurrentTimestamp() >= until)
				break;
			SPI_commit();
			InvalidateCatalogSnapshotConditionally();
			sleep_for_reports(registered, until);
		}
	}
	PG_FINALLY();
	{
		saga_waiter_forget();
	}
	PG_END_TRY();
	return reports;
}

/*
 * CALL saga.follow_children(coordinator, acknowledged, timeout, INOUT reports,
 * INOUT history, INOUT echo): wait for what children report, holding no
 * snapshot, no lock and no transaction id meanwhile.  Who knows another history
 * is not kept waiting.
 */
Datum
saga_follow_children(PG_FUNCTION_ARGS)
{
	MemoryContext memory = CurrentMemoryContext;
	char	   *known = saga_argument_text(fcinfo, 4);
	char	   *echo = saga_argument_text(fcinfo, 5);
	char	   *history;
	pg_uuid_t	coordinator;
	TimestampTz until;
	Jsonb	   *reports;
	Datum		values[3] = {0};
	bool		nulls[3] = {false};

	saga_argument_require(fcinfo, 0, "coordinator");
	coordinator = *PG_GETARG_UUID_P(0);
	until = GetCurrentTimestamp() + saga_argument_interval(fcinfo, 2, "timeout");
	saga_require_may_commit(fcinfo, "saga.follow_children()",
							"Call it with CALL, outside of BEGIN and COMMIT.");
	saga_call_refuse_within("saga.follow_children()");
	saga_check_may_write("saga.follow_children()");
	history = name_history();
	if (known != NULL && strcmp(known, history) != 0)
		until = 0;
	if (SPI_connect_ext(SPI_OPT_NONATOMIC) != SPI_OK_CONNECT)
		elog(ERROR, "could not connect to SPI");
	if (!PG_ARGISNULL(1))
	{
		acknowledge(&coordinator, PG_GETARG_ARRAYTYPE_P(1));
		SPI_commit();
	}
	reports = wait_for_reports(&coordinator, until, memory);
	SPI_finish();
	values[0] = PointerGetDatum(reports);
	nulls[0] = reports == NULL;
	values[1] = CStringGetTextDatum(history);
	if (echo != NULL)
		values[2] = CStringGetTextDatum(echo);
	nulls[2] = echo == NULL;
	return saga_make_row(fcinfo, values, nulls);
}
