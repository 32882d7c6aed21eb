/*
 * api.c
 *		The SQL-callable functions about sagas: begin, the verbs of people,
 *		waiting, the drivers in the foreground, adopt.
 *
 * Runs in any backend.  begin and the verbs write one row each in the caller's
 * transaction, and note whom to wake after its commit.  The procedures commit;
 * so they are refused where that is not possible.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "common/int.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "pgstat.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "tcop/pquery.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/jsonb.h"
#include "utils/portal.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "catalog.h"
#include "compat.h"
#include "engine.h"
#include "owner.h"
#include "store.h"

/* A waiter looks again this often even if nobody wakes it. */
#define WAIT_RECHECK_MS			5000
/* ... and this often when it could not be registered. */
#define WAIT_POLL_MS			200
/* The longest that saga.wait_within() may hold its caller's snapshot. */
#define WAIT_WITHIN_MAX_US		(60 * USECS_PER_SEC)

PG_FUNCTION_INFO_V1(saga_begin);
PG_FUNCTION_INFO_V1(saga_cancel);
PG_FUNCTION_INFO_V1(saga_pause);
PG_FUNCTION_INFO_V1(saga_resume);
PG_FUNCTION_INFO_V1(saga_retry);
PG_FUNCTION_INFO_V1(saga_skip);
PG_FUNCTION_INFO_V1(saga_abandon);
PG_FUNCTION_INFO_V1(saga_wait);
PG_FUNCTION_INFO_V1(saga_wait_within);
PG_FUNCTION_INFO_V1(saga_run);
PG_FUNCTION_INFO_V1(saga_recover);
PG_FUNCTION_INFO_V1(saga_adopt);


/* ---- arguments ----------------------------------------------------------- */

static void
require_argument(FunctionCallInfo fcinfo, int n, const char *name)
{
	if (PG_ARGISNULL(n))
		ereport(ERROR,
				errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				errmsg("%s must not be null", name));
}

static char *
text_argument(FunctionCallInfo fcinfo, int n)
{
	return PG_ARGISNULL(n) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(n));
}

/* An interval in microseconds; "name" is for the message. */
static int64
interval_argument(FunctionCallInfo fcinfo, int n, const char *name)
{
	Interval   *interval;

	require_argument(fcinfo, n, name);
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

/* What writes a row: not where PostgreSQL runs code on its own behalf, and
 * with PostgreSQL's own words in a read-only transaction and on a standby. */
static void
check_may_write(const char *function)
{
	PreventCommandIfReadOnly(function);
	PreventCommandIfParallelMode(function);
	if (InSecurityRestrictedOperation())
		ereport(ERROR,
				errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				errmsg("cannot execute %s within security-restricted operation",
					   function));
}


/* ---- begin ---------------------------------------------------------------- */

static SagaOnDuplicate
parse_on_duplicate(const char *word)
{
	if (strcmp(word, "return") == 0)
		return SAGA_DUPLICATE_RETURN;
	if (strcmp(word, "error") == 0)
		return SAGA_DUPLICATE_ERROR;
	if (strcmp(word, "new") == 0)
		return SAGA_DUPLICATE_NEW;
	ereport(ERROR,
			errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			errmsg("unrecognized value for on_duplicate: \"%s\"", word),
			errhint("Valid values are \"return\", \"error\" and \"new\"."));
}

/* What the steps need and nothing provides is an error now, not in an hour. */
static void
check_input(const SagaDefinition *definition, Jsonb *input)
{
	if (!JB_ROOT_IS_OBJECT(input))
		ereport(ERROR,
				errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				errmsg("input of a saga must be a JSON object"));
	for (int i = 0; i < definition->nrequired; i++)
	{
		const char *name = definition->required[i];
		JsonbValue	value;

		if (getKeyJsonValueFromContainer(&input->root, name, strlen(name),
										 &value) == NULL)
			ereport(ERROR,
					errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					errmsg("input of saga definition \"%s\" lacks \"%s\"",
						   definition->name, name),
					errdetail("A step function has a parameter of this name, without a default, and no earlier step is named so."));
	}
}

static TimestampTz
time_argument(FunctionCallInfo fcinfo, int n, const char *name)
{
	TimestampTz time;

	if (PG_ARGISNULL(n))
		return 0;
	time = PG_GETARG_TIMESTAMPTZ(n);
	if (TIMESTAMP_NOT_FINITE(time))
		ereport(ERROR,
				errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				errmsg("%s must not be infinite", name));
	return time;
}

static void
check_key(const char *key)
{
	size_t		length = strlen(key);

	if (length == 0 || length > 1000)
		ereport(ERROR,
				errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				errmsg("key of a saga must have 1 to 1000 bytes"),
				errdetail("This one has %zu.", length));
}

/* W3C trace context: version, trace id, parent id, flags. */
static void
check_traceparent(const char *traceparent)
{
	static const char form[] = "hh-hhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhh-hhhhhhhhhhhhhhhh-hh";
	bool		good = strlen(traceparent) == strlen(form);

	for (int i = 0; good && form[i] != '\0'; i++)
		good = form[i] == '-' ? traceparent[i] == '-' :
			strchr("0123456789abcdef", traceparent[i]) != NULL;
	if (!good)
		ereport(ERROR,
				errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				errmsg("invalid traceparent: \"%s\"", traceparent),
				errhint("It looks like 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01."));
}

/* What the definition says, counted from the start; 0 if it says nothing. */
static TimestampTz
default_deadline(const SagaDefinition *definition, TimestampTz start_at)
{
	TimestampTz deadline;

	if (definition->deadline == 0)
		return 0;
	if (pg_add_s64_overflow(Max(start_at, GetCurrentTimestamp()),
							definition->deadline, &deadline) ||
		!IS_VALID_TIMESTAMP(deadline))
		ereport(ERROR,
				errcode(ERRCODE_DATETIME_VALUE_OUT_OF_RANGE),
				errmsg("deadline of the saga is out of range"),
				errdetail("Saga definition \"%s\" sets it relative to the start.",
						  definition->name));
	return deadline;
}

/*
 * saga.begin(definition, input, key, start_at, deadline, traceparent,
 *			  on_duplicate, trust_definition) returns the id of the saga.
 */
Datum
saga_begin(PG_FUNCTION_ARGS)
{
	const SagaDefinition *definition;
	Jsonb	   *input;
	char	   *key = text_argument(fcinfo, 2);
	char	   *traceparent = text_argument(fcinfo, 5);
	TimestampTz start_at = time_argument(fcinfo, 3, "start_at");
	TimestampTz deadline = time_argument(fcinfo, 4, "deadline");

	check_may_write("saga.begin()");
	require_argument(fcinfo, 0, "definition");
	require_argument(fcinfo, 1, "input");
	require_argument(fcinfo, 6, "on_duplicate");
	saga_catalog_forget_old();
	definition = saga_catalog_for_begin(text_argument(fcinfo, 0),
										!PG_ARGISNULL(7) && PG_GETARG_BOOL(7));
	input = PG_GETARG_JSONB_P(1);
	check_input(definition, input);
	if (key != NULL)
		check_key(key);
	if (traceparent != NULL)
		check_traceparent(traceparent);
	if (PG_ARGISNULL(4))
		deadline = default_deadline(definition, start_at);
	else if (deadline <= Max(start_at, GetCurrentTimestamp()))
		ereport(ERROR,
				errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				errmsg("deadline must be later than the start of the saga"));
	PG_RETURN_INT64(saga_store_begin(definition, input, key, start_at, deadline,
									 traceparent,
									 parse_on_duplicate(text_argument(fcinfo, 6))));
}


/* ---- people ---------------------------------------------------------------- */

/* May the current user use the verbs on sagas of any role? */
static bool
is_operator(void)
{
	return saga_owner_has_granted("operator_privilege");
}

static Saga *
find_saga(int64 id)
{
	Saga	   *saga = saga_store_peek(id);

	if (saga == NULL)
		ereport(ERROR,
				errcode(ERRCODE_UNDEFINED_OBJECT),
				errmsg("saga %lld does not exist", (long long) id));
	if (!has_privs_of_role(GetUserId(), saga->role) && !is_operator())
		ereport(ERROR,
				errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				errmsg("permission denied for saga %lld", (long long) id));
	if (saga->foreign)
		ereport(ERROR,
				errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				errmsg("saga %lld belongs to another coordinator",
					   (long long) id),
				errdetail("This database is a copy, and does not run the sagas of the original."),
				errhint("CALL saga.adopt() makes them this database's own."));
	return saga;
}

/* Why a verb is refused, as DETAIL; the hint says what to do instead. */
static void
refuse(const char *verb, const Saga *saga, SagaVerdict verdict)
{
	const char *status = saga_status_name(saga->state.status);
	const char *detail = NULL;
	const char *hint = NULL;

	switch (verdict)
	{
		case SAGA_VERDICT_APPLIED:
			return;
		case SAGA_VERDICT_FINAL:
			detail = psprintf("The saga has already ended with status \"%s\".",
							  status);
			break;
		case SAGA_VERDICT_PIVOT:
			detail = "Its pivot has succeeded: it can only go forward.";
			hint = "Use retry, skip or abandon if it is stuck.";
			break;
		case SAGA_VERDICT_BACKWARD:
			detail = "It is compensating already.";
			break;
		case SAGA_VERDICT_NOT_PAUSED:
			detail = psprintf("The saga has status \"%s\", not \"paused\".",
							  status);
			break;
		case SAGA_VERDICT_PAUSED:
			detail = "The saga is paused.";
			hint = "Use saga.resume() first.";
			break;
		case SAGA_VERDICT_STUCK:
			detail = "The saga is stuck.";
			hint = "Use retry, skip or abandon.";
			break;
		case SAGA_VERDICT_NOTHING:
			detail = "No such operation of it is stuck or waits for its next attempt.";
			break;
		case SAGA_VERDICT_STALE:
			detail = "It is not the operation to do.";
			break;
	}
	ereport(ERROR,
			errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			errmsg("cannot %s saga %lld", verb, (long long) saga->ref.id),
			detail ? errdetail("%s", detail) : 0,
			hint ? errhint("%s", hint) : 0);
}

/*
 * Would the saga, as it stands and after what others have asked of it, accept
 * this?  It is asked again when the engine acts on it.
 */
static void
check_verb(Saga *saga, const char *verb, SagaEventKind kind, int step)
{
	SagaEvent	event = {.kind = kind, .step = step,
	.now = GetCurrentTimestamp(), .delay = -1};
	ListCell   *cell;

	if (saga->broken != NULL)
	{
		if (kind == SAGA_EVENT_ABANDON &&
			!saga_status_is_final(saga->state.status))
			return;
		ereport(ERROR,
				errcode(ERRCODE_DATA_CORRUPTED),
				errmsg("cannot %s saga %lld", verb, (long long) saga->ref.id),
				errdetail("Its rows are not consistent: %s.", saga->broken),
				errhint("Use saga.abandon()."));
	}
	foreach(cell, saga->messages)
	{
		SagaMessage *message = lfirst(cell);
		SagaEvent	earlier = event;

		if (!saga_event_parse(message->kind, &earlier.kind))
			continue;
		earlier.step = message->step == NULL ? -1 :
			saga_definition_step(saga->definition, message->step);
		(void) saga_machine_apply(&saga->definition->rules, &saga->state,
								  &earlier);
	}
	refuse(verb, saga, saga_machine_apply(&saga->definition->rules,
										  &saga->state, &event));
}

static Datum
ask(FunctionCallInfo fcinfo, SagaEventKind kind, bool takes_step)
{
	const char *verb = saga_event_name(kind);
	char	   *step = takes_step ? text_argument(fcinfo, 2) : NULL;
	char	   *reason = text_argument(fcinfo, 1);
	Saga	   *saga;
	int			position = -1;

	if (PG_ARGISNULL(0))
		PG_RETURN_NULL();
	check_may_write(psprintf("saga.%s()", verb));
	saga_catalog_forget_old();
	saga = find_saga(PG_GETARG_INT64(0));
	if (step != NULL && saga->definition != NULL)
	{
		position = saga_definition_step(saga->definition, step);
		if (position < 0)
			ereport(ERROR,
					errcode(ERRCODE_UNDEFINED_OBJECT),
					errmsg("saga definition \"%s\" has no step \"%s\"",
						   saga->definition->name, step));
	}
	check_verb(saga, verb, kind, position);
	saga_store_post(saga, verb, step, reason);
	PG_RETURN_INT64(saga->ref.id);
}

Datum
saga_cancel(PG_FUNCTION_ARGS)
{
	return ask(fcinfo, SAGA_EVENT_CANCEL, false);
}

Datum
saga_pause(PG_FUNCTION_ARGS)
{
	return ask(fcinfo, SAGA_EVENT_PAUSE, false);
}

Datum
saga_resume(PG_FUNCTION_ARGS)
{
	return ask(fcinfo, SAGA_EVENT_RESUME, false);
}

Datum
saga_retry(PG_FUNCTION_ARGS)
{
	return ask(fcinfo, SAGA_EVENT_RETRY, true);
}

Datum
saga_skip(PG_FUNCTION_ARGS)
{
	return ask(fcinfo, SAGA_EVENT_SKIP, true);
}

Datum
saga_abandon(PG_FUNCTION_ARGS)
{
	return ask(fcinfo, SAGA_EVENT_ABANDON, false);
}


/* The INOUT arguments of a procedure: as many values as it has of them. */
static Datum
make_row(FunctionCallInfo fcinfo, Datum *values)
{
	TupleDesc	desc;
	bool		nulls[4] = {false};

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	return HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls));
}


/* ---- waiting ---------------------------------------------------------------- */

/* Is the procedure called where it may commit? */
static bool
may_commit(FunctionCallInfo fcinfo)
{
	return fcinfo->context != NULL && IsA(fcinfo->context, CallContext) &&
		!castNode(CallContext, fcinfo->context)->atomic;
}

static void
require_may_commit(FunctionCallInfo fcinfo, const char *procedure,
				   const char *hint)
{
	if (!may_commit(fcinfo))
		ereport(ERROR,
				errcode(ERRCODE_INVALID_TRANSACTION_TERMINATION),
				errmsg("%s cannot be called inside a transaction block or a function",
					   procedure),
				errdetail("It commits and begins transactions of its own."),
				errhint("%s", hint));
}

/* The saga as it is now; raises when there is none or it is not the caller's. */
static SagaStatus
look_at(int64 id)
{
	SagaGlance	glance;

	if (!saga_store_glance(id, &glance))
		ereport(ERROR,
				errcode(ERRCODE_UNDEFINED_OBJECT),
				errmsg("saga %lld does not exist", (long long) id));
	if (!has_privs_of_role(GetUserId(), glance.role) &&
		!saga_owner_has_granted("monitor_privilege"))
		ereport(ERROR,
				errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				errmsg("permission denied for saga %lld", (long long) id));
	if (glance.own)
		ereport(ERROR,
				errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				errmsg("cannot wait for saga %lld in the transaction that wrote it",
					   (long long) id),
				errdetail("It exists for others, and is run, only after the commit."));
	return glance.status;
}

/* Sleep until somebody says that the saga has ended, or for a while. */
static void
sleep_for_saga(bool registered, TimestampTz until)
{
	long		timeout = TimestampDifferenceMilliseconds(GetCurrentTimestamp(),
														  until);

	timeout = Min(timeout, registered ? WAIT_RECHECK_MS : WAIT_POLL_MS);
	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
					 timeout, PG_WAIT_EXTENSION);
	ResetLatch(MyLatch);
	CHECK_FOR_INTERRUPTS();
}

/*
 * Look at a saga until it is final or the time is over.  "commits" ends the
 * transaction after each look, so that nothing is held while it sleeps.
 */
static SagaStatus
wait_until_final(int64 id, TimestampTz until, bool commits)
{
	volatile SagaStatus status = SAGA_STATUS_RUNNING;
	bool		registered = saga_waiter_register(id);

	PG_TRY();
	{
		for (;;)
		{
			status = look_at(id);
			if (saga_status_is_final(status) || GetCurrentTimestamp() >= until)
				break;
			if (commits)
			{
				SPI_commit();
				InvalidateCatalogSnapshotConditionally();
			}
			sleep_for_saga(registered, until);
		}
	}
	PG_FINALLY();
	{
		saga_waiter_forget();
	}
	PG_END_TRY();
	return status;
}

/*
 * CALL saga.wait(saga_id, timeout, INOUT status): wait until the saga is
 * final, holding no snapshot, no lock and no transaction id meanwhile.
 */
Datum
saga_wait(PG_FUNCTION_ARGS)
{
	int64		id;
	TimestampTz until;
	SagaStatus	status;
	Datum		values[1];

	require_argument(fcinfo, 0, "saga_id");
	id = PG_GETARG_INT64(0);
	until = GetCurrentTimestamp() + interval_argument(fcinfo, 1, "timeout");
	require_may_commit(fcinfo, "saga.wait()",
					   "saga.wait_within() waits in a function, for a minute at most.");
	if (SPI_connect_ext(SPI_OPT_NONATOMIC) != SPI_OK_CONNECT)
		elog(ERROR, "could not connect to SPI");
	status = wait_until_final(id, until, true);
	SPI_finish();
	values[0] = CStringGetTextDatum(saga_status_name(status));
	return make_row(fcinfo, values);
}

/*
 * saga.wait_within(saga_id, timeout) returns the status: for callers that
 * cannot CALL.  Holds its caller's snapshot, so it is capped at a minute.
 */
Datum
saga_wait_within(PG_FUNCTION_ARGS)
{
	int64		id;
	int64		timeout;
	TimestampTz until;
	SagaStatus	status;

	require_argument(fcinfo, 0, "saga_id");
	id = PG_GETARG_INT64(0);
	timeout = interval_argument(fcinfo, 1, "timeout");
	if (timeout > WAIT_WITHIN_MAX_US)
		ereport(ERROR,
				errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				errmsg("timeout of saga.wait_within() must not be longer than one minute"),
				errdetail("It holds the snapshot of its caller while it waits."),
				errhint("Use CALL saga.wait()."));
	if (IsolationUsesXactSnapshot())
		ereport(ERROR,
				errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				errmsg("cannot wait for a saga under isolation level \"%s\"",
					   GetConfigOption("transaction_isolation", false, false)),
				errdetail("The transaction would not see what happens to it."));
	until = GetCurrentTimestamp() + timeout;
	status = wait_until_final(id, until, false);
	PG_RETURN_TEXT_P(cstring_to_text(saga_status_name(status)));
}


/* ---- drivers in the foreground ---------------------------------------------- */

/* In a procedure a transaction is always open: each commit begins the next. */
static void
foreground_begin(void)
{
}

static void
foreground_commit(void)
{
	SPI_commit();
}

static void
foreground_abort(void)
{
	/* SPI accepts no active snapshot but the portal's: the error left others */
	while (ActiveSnapshotSet() &&
		   (ActivePortal == NULL ||
			GetActiveSnapshot() != ActivePortal->portalSnapshot))
		PopActiveSnapshot();
	SPI_rollback();
}

static const SagaDriver foreground_driver = {
	.begin = foreground_begin,
	.commit = foreground_commit,
	.abort = foreground_abort,
	.worker = false
};

/*
 * A step must find nothing in the session that its role has not (P7): with
 * another session user behind it RESET ROLE would give it more.
 */
static void
check_session_is_own(const char *procedure)
{
	if (GetUserId() != GetSessionUserId() ||
		GetUserId() != GetAuthenticatedUserId() || InLocalUserIdChange())
		ereport(ERROR,
				errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				errmsg("%s must be called by the role that is logged in",
					   procedure),
				errdetail("A step could return from role \"%s\" to \"%s\".",
						  GetUserNameFromId(GetUserId(), false),
						  GetUserNameFromId(GetAuthenticatedUserId(), false)),
				errhint("Log in as the role whose sagas are to be run."));
}

static void
enter_foreground(FunctionCallInfo fcinfo, const char *procedure)
{
	require_may_commit(fcinfo, procedure,
					   "Call it with CALL, outside of BEGIN and COMMIT.");
	if (saga_call_is_running())
		ereport(ERROR,
				errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				errmsg("%s cannot be called from a step", procedure));
	check_session_is_own(procedure);
	PreventCommandIfReadOnly(procedure);
	if (SPI_connect_ext(SPI_OPT_NONATOMIC) != SPI_OK_CONNECT)
		elog(ERROR, "could not connect to SPI");
	SPI_commit();				/* the engine starts from a clean transaction */
	(void) saga_executor_enter(GetUserId(), -1, 0);
}

static void
leave_foreground(void)
{
	saga_executor_leave();
	SPI_finish();
}

/*
 * CALL saga.run(saga_id, INOUT status): advance one saga of the caller's own
 * until it is final or waits.
 */
Datum
saga_run(PG_FUNCTION_ARGS)
{
	SagaRunResult result = {0};
	SagaGlance	glance;
	Datum		values[1];
	Saga	   *saga;
	SagaRef		ref;

	require_argument(fcinfo, 0, "saga_id");
	ref.id = PG_GETARG_INT64(0);
	enter_foreground(fcinfo, "saga.run()");
	PG_TRY();
	{
		saga = find_saga(ref.id);
		if (saga->role != GetUserId())
			ereport(ERROR,
					errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
					errmsg("cannot run saga %lld of role \"%s\" as role \"%s\"",
						   (long long) ref.id,
						   GetUserNameFromId(saga->role, true),
						   GetUserNameFromId(GetUserId(), false)),
					errdetail("A step runs in a session of the role that began the saga."));
		ref = saga->ref;
		SPI_commit();
		if (saga_executor_claim(&ref, 1) == 1)
			saga_engine_run(&foreground_driver, &ref, 1, &result);
		if (!saga_store_glance(ref.id, &glance))
			glance.status = SAGA_STATUS_ABANDONED;
	}
	PG_CATCH();
	{
		saga_executor_leave();
		PG_RE_THROW();
	}
	PG_END_TRY();
	leave_foreground();
	values[0] = CStringGetTextDatum(saga_status_name(glance.status));
	return make_row(fcinfo, values);
}

/*
 * Run what is due of the current role, up to "max" sagas and until "until".
 * Looks again as long as that brought something about: the end of one saga may
 * have given its place to another.
 */
static void
recover_due(int64 max, TimestampTz until, SagaRunResult *result, int64 *looked)
{
	bool		complete = false;
	int64		done = 0;
	TimestampTz next_due;
	SagaRef		refs[SAGA_MAX_BATCH];

	*looked = 0;
	while (*looked < max && GetCurrentTimestamp() < until)
	{
		int			mine;
		int			n;

		if (complete && result->operations + result->finished == done)
			break;
		if (complete)
			done = result->operations + result->finished;
		n = saga_engine_find_due(&foreground_driver, refs,
								 Min(max - *looked, SAGA_MAX_BATCH),
								 &complete, &next_due);
		CHECK_FOR_INTERRUPTS();
		*looked += n;
		mine = n > 0 ? saga_executor_claim(refs, n) : 0;
		if (mine > 0)
			saga_engine_run(&foreground_driver, refs, mine, result);
		if (next_due != DT_NOEND)
			saga_due_at(GetUserId(), next_due);
	}
}

/*
 * CALL saga.recover(max, time_budget, INOUT operations, INOUT finished):
 * advance the caller's own sagas that are due, in the foreground.
 */
Datum
saga_recover(PG_FUNCTION_ARGS)
{
	SagaRunResult result = {0};
	int64		looked = 0;
	int64		max;
	TimestampTz until;
	Datum		values[2];

	require_argument(fcinfo, 0, "max");
	max = PG_GETARG_INT64(0);
	if (max < 1)
		ereport(ERROR,
				errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				errmsg("max must be greater than zero"));
	until = GetCurrentTimestamp() + interval_argument(fcinfo, 1, "time_budget");
	enter_foreground(fcinfo, "saga.recover()");
	PG_TRY();
	{
		recover_due(max, until, &result, &looked);
		saga_engine_send_alerts(&foreground_driver);
	}
	PG_CATCH();
	{
		saga_executor_leave();
		PG_RE_THROW();
	}
	PG_END_TRY();
	leave_foreground();
	values[0] = Int64GetDatum(result.operations);
	values[1] = Int64GetDatum(result.finished);
	return make_row(fcinfo, values);
}


/* ---- adopt --------------------------------------------------------------------- */

/*
 * CALL saga.adopt(INOUT adopted, INOUT unbound): make the sagas of a copied or
 * restored database this one's own, with their roles bound by name.
 */
Datum
saga_adopt(PG_FUNCTION_ARGS)
{
	List	   *unbound;
	Datum	   *names;
	Datum		values[2];
	int			n = 0;
	ListCell   *cell;

	check_may_write("saga.adopt()");
	values[0] = Int64GetDatum(saga_store_adopt(&unbound));
	saga_catalog_adopt();
	names = palloc((list_length(unbound) + 1) * sizeof(Datum));
	foreach(cell, unbound)
		names[n++] = CStringGetTextDatum(lfirst(cell));
	values[1] = PointerGetDatum(construct_array(names, n, TEXTOID, -1, false,
												TYPALIGN_INT));
	saga_wake_database();
	return make_row(fcinfo, values);
}
