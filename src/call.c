/*
 * call.c
 *		A local function as an operation of a step.
 *
 * This file owns the boundary between the engine and user code: each operation
 * runs in a subtransaction of its own, as the saga's role, and nothing of it
 * but its writes and its result gets out.
 *
 * The call.  An operation is an expression, to_jsonb(function($1, $2, ...)),
 * planned and initialized as the executor would do it for a query of the role:
 * so privileges, STRICT, defaults, SET clauses and SECURITY DEFINER are as in
 * a query.  It is prepared once per transaction and operation of a definition
 * and thrown away after an error, or when what it was made of was changed.  The
 * condition of an action is such an expression too, and evaluated first; a
 * condition and the function of a timer are called without to_jsonb().
 * Whatever may run user code (looking up the function, planning, defaults,
 * converting arguments and result, deferred triggers, closing cursors) happens
 * inside the subtransaction, under the timeout, within a nest level of settings.
 *
 * The timeout.  A timer of our own sets a flag and cancels the query.  The flag
 * decides, whatever the function made of the error: user code may swallow a
 * cancel, but then the subtransaction is rolled back all the same.  In a batch
 * the timer ticks, to see the end of the batch's time and waits for locks.  It
 * is disarmed, and a cancel of ours that nobody took is cleared, before the
 * subtransaction ends: the engine's statements and the commit never see one.
 * saga.fail(), saga.retry_later() and saga.lock() set a flag in the same way.
 * Of two flags the first one counts.
 *
 * A guest is a function that is called for a saga of another database, in a
 * transaction of its caller.  It has the flags and the nest level of settings;
 * the rest of an operation is the other side's: what it raises, its timeout, and
 * what the session is left with.
 *
 * Nothing here outlives the process, so nothing needs to survive its death:
 * what the operation did is gone with the transaction.
 */
#include "postgres.h"

#include <math.h>

#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "commands/prepare.h"
#include "commands/sequence.h"
#include "commands/trigger.h"
#include "common/int.h"
#include "executor/executor.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "parser/parse_collate.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lock.h"
#include "storage/proc.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/portal.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/timeout.h"
#include "utils/timestamp.h"

#include "bind.h"
#include "call.h"
#include "errcodes.h"
#include "guc.h"
#include "log.h"
#include "owner.h"
#include "trace.h"

/* In a batch the timer looks around so often, in milliseconds, ... */
#define BATCH_TICK	2
/* ... and a wait for a lock may last so long, in microseconds. */
#define BATCH_LOCK_WAIT	2000

/* A cancel that was swallowed is repeated so often, in milliseconds. */
#define CANCEL_AGAIN	50

/* A worker whose step swallows cancels for so long, in microseconds, ends. */
#define SWALLOW_GRACE	(5 * USECS_PER_SEC)
/* ... and where others wait for it in its batch, for so long. */
#define BATCH_SWALLOW_GRACE	(200 * INT64CONST(1000))

/* The most bytes that are kept of each text of an error. */
#define MAX_ERROR_TEXT	10000

/* The longest pause that saga.retry_later() may ask for: ten years. */
#define MAX_LATER_DAYS	3653

/* The longest wait that saga.lock() may ask for. */
#define MAX_LOCK_DAYS	400

/* The longest interval that the function of a timer may return: 100 years. */
#define MAX_TIMER_DAYS	36525

/* The most bytes in the name of a lock. */
#define MAX_LOCK_NAME	200

/* What saga.lock() raises. */
#define LOCK_MESSAGE	"has to wait for lock \"%s\""

#define CALL_BUCKETS	64

/* The expression for one choice of parameters that are left to defaults. */
typedef struct Variant
{
	struct Variant *next;
	SagaOmitted omitted;
	ExprState  *state;
} Variant;

/* An operation of a definition, or the condition of one, prepared for this
 * transaction. */
typedef struct PreparedCall
{
	struct PreparedCall *next;	/* in its bucket */
	int32		definition;
	int			step;
	SagaOperation operation;
	SagaFunctionUse use;		/* which of its functions */
	Oid			role;
	MemoryContext context;		/* all of it is here */
	Oid			result_type;
	SagaBinding binding;		/* the function and its parameters */
	EState	   *estate;
	ExprContext *econtext;
	Variant    *variants;		/* nearly always one */
} PreparedCall;

/* What the operation said of itself. */
typedef enum Control
{
	CONTROL_NONE,
	CONTROL_FAIL,
	CONTROL_LATER,
	CONTROL_LOCK
} Control;

/* What the timer said of the operation. */
typedef enum TimerVerdict
{
	TIMER_QUIET,
	TIMER_STEP,					/* the step's timeout */
	TIMER_BATCH,				/* the batch's time is over */
	TIMER_LOCK					/* waits for a lock, in a batch */
} TimerVerdict;

/* The operation, or the guest, that is running; they do not nest. */
typedef struct RunningOperation
{
	const SagaCallRequest *request; /* NULL = none */
	bool		guest;
	MemoryContext report_context;
	PreparedCall *call;
	bool		in_condition;
	bool		transactional;
	bool		notify;
	Control		control;
	const char *reason;			/* of "control", in report_context; LOCK: the
								 * lock's name */
	const char *detail;
	int64		delay;			/* LATER, LOCK: how long to wait */
	int64		limit;			/* in force, microseconds; 0 = none */
	bool		limit_is_role;	/* it is the role's statement_timeout */
} RunningOperation;

/* What the signal handler knows. */
typedef struct CallTimer
{
	TimeoutId	id;				/* registered if not 0 */
	bool		armed;
	bool		in_batch;
	bool		may_die;		/* in a worker of ours */
	TimestampTz step_end;
	TimestampTz batch_end;
	TimestampTz swallowed_at;	/* when a cancel was first seen to be; or 0 */
	TimerVerdict verdict;
} CallTimer;

/* What has to be the same after the operation. */
typedef struct SessionState
{
	MemoryContext memory;
	ResourceOwner owner;
	int			level;			/* of transactions */
	int			xact_flags;
	int			isolation;
	Oid			user;
	int			security_context;
	Oid			outer_user;
	Oid			session_user;
	TimestampTz statement_timeout_at;	/* the caller's; 0 = not active */
} SessionState;

static RunningOperation running;
static volatile CallTimer timer;

/* Prepared calls, in a context that goes with the transaction. */
static MemoryContext calls_context = NULL;
static PreparedCall *calls[CALL_BUCKETS];
static volatile bool calls_stale = false;

/* Did an operation use temporary objects since the session was cleaned? */
static bool temporary_used = false;

PG_FUNCTION_INFO_V1(saga_fail);
PG_FUNCTION_INFO_V1(saga_fail_jsonb);
PG_FUNCTION_INFO_V1(saga_retry_later);
PG_FUNCTION_INFO_V1(saga_lock);

/* ---- the timer -------------------------------------------------------- */

/* In the signal handler: does the operation wait for a lock of somebody? */
static bool
waits_for_lock(TimestampTz now)
{
	LOCK	   *lock = MyProc->waitLock;
	TimestampTz since;

	/* Extending a table is no business of other transactions. */
	if (lock == NULL || lock->tag.locktag_type == LOCKTAG_RELATION_EXTEND)
		return false;
	since = (TimestampTz) pg_atomic_read_u64(&MyProc->waitStart);
	return since != 0 && now - since >= BATCH_LOCK_WAIT;
}

/* In the signal handler: what is there to say of the operation now? */
static TimerVerdict
judge_time(TimestampTz now)
{
	if (now >= timer.step_end &&
		(!timer.in_batch || timer.step_end <= timer.batch_end))
		return TIMER_STEP;
	if (!timer.in_batch)
		return TIMER_QUIET;
	if (now >= timer.batch_end)
		return TIMER_BATCH;
	return waits_for_lock(now) ? TIMER_LOCK : TIMER_QUIET;
}

/* The timer's handler, called in a signal handler. */
static void
handle_timer(void)
{
	TimestampTz now = GetCurrentTimestamp();

	/* nobody disarms it when the process ends in the operation */
	if (!timer.armed || proc_exit_inprogress)
		return;
	if (timer.verdict == TIMER_QUIET)
	{
		timer.verdict = judge_time(now);
		if (timer.verdict == TIMER_QUIET)
			return;
	}
	else if (!QueryCancelPending)
	{
		/*
		 * The cancel was taken, and still the operation runs: user code
		 * swallows it.  Code that does not look at interrupts is not meant:
		 * ending the process would not stop it either.
		 */
		if (timer.swallowed_at == 0)
			timer.swallowed_at = now;
		else if (timer.may_die && now - timer.swallowed_at >=
				 (timer.in_batch ? BATCH_SWALLOW_GRACE : SWALLOW_GRACE))
			ProcDiePending = true;
	}
	QueryCancelPending = true;
	InterruptPending = true;
	SetLatch(MyLatch);
}

/* How long may this attempt take?  In microseconds; 0 = for ever. */
static int64
attempt_limit(const SagaCallRequest *request, bool *is_role)
{
	const SagaStep *step = &request->definition->steps[request->step];
	int64		limit = 0;
	int64		role_limit = (int64) StatementTimeout * 1000;

	/* that of an external step is its participant's */
	if (step->kind != SAGA_KIND_EXTERNAL && step->kind != SAGA_KIND_REMOTE)
		limit = step->timeout[request->operation];
	if (limit <= 0)
		limit = (int64) saga_step_timeout * 1000;
	*is_role = role_limit > 0 && (limit <= 0 || role_limit < limit);
	return *is_role ? role_limit : Max(limit, 0);
}

static void
arm_timer(const SagaCallRequest *request, TimestampTz now)
{
	TimestampTz end;

	running.limit = attempt_limit(request, &running.limit_is_role);
	if (running.limit == 0 || pg_add_s64_overflow(now, running.limit, &end))
		end = DT_NOEND;
	timer.verdict = TIMER_QUIET;
	timer.swallowed_at = 0;
	timer.in_batch = request->in_batch;
	timer.may_die = request->in_worker;
	timer.step_end = end;
	timer.batch_end = request->in_batch ? request->batch_end : DT_NOEND;
	if (end == DT_NOEND && !request->in_batch)
		return;

	if (timer.id == 0)
		timer.id = RegisterTimeout(USER_TIMEOUT, handle_timer);
	timer.armed = true;
	if (request->in_batch)
	{
		end = Min(end, timer.batch_end);
		end = Min(end, now + BATCH_TICK * INT64CONST(1000));
		enable_timeout_every(timer.id, end, BATCH_TICK);
	}
	else
		enable_timeout_every(timer.id, end, CANCEL_AGAIN);
}

static void
disarm_timer(void)
{
	if (!timer.armed)
		return;
	disable_timeout(timer.id, false);
	timer.armed = false;
}

/* ---- the session ------------------------------------------------------ */

static void
save_session(SessionState *state)
{
	state->memory = CurrentMemoryContext;
	state->owner = CurrentResourceOwner;
	state->level = GetCurrentTransactionNestLevel();
	state->isolation = XactIsoLevel;
	GetUserIdAndSecContext(&state->user, &state->security_context);
	state->outer_user = GetOuterUserId();
	state->session_user = GetSessionUserId();

	/* To see whether this operation uses temporary tables. */
	state->xact_flags = MyXactFlags;
	MyXactFlags &= ~XACT_FLAGS_ACCESSEDTEMPNAMESPACE;

	/* The timeout of the command that drives us is not the operation's. */
	state->statement_timeout_at = 0;
	if (get_timeout_active(STATEMENT_TIMEOUT))
	{
		state->statement_timeout_at = get_timeout_finish_time(STATEMENT_TIMEOUT);
		disable_timeout(STATEMENT_TIMEOUT, false);
	}
}

/*
 * After the subtransaction has ended, whichever way: everything is as before,
 * or this process must not go on.
 */
static void
restore_session(const SessionState *state, const SagaCallRequest *request,
				SagaCallReport *report)
{
	MemoryContextSwitchTo(state->memory);
	CurrentResourceOwner = state->owner;
	SetUserIdAndSecContext(state->user, state->security_context);
	if (GetCurrentTransactionNestLevel() != state->level ||
		GetOuterUserId() != state->outer_user ||
		GetSessionUserId() != state->session_user ||
		XactIsoLevel != state->isolation)
		elog(FATAL, "an operation changed its session's user or transaction");

	if (MyXactFlags & XACT_FLAGS_ACCESSEDTEMPNAMESPACE)
	{
		report->alone_from_now = true;
		temporary_used = true;
	}
	MyXactFlags |= state->xact_flags & XACT_FLAGS_ACCESSEDTEMPNAMESPACE;

	/* Advisory locks of the session: nobody else's are in a worker. */
	if (request->in_worker)
		LockReleaseSession(USER_LOCKMETHOD);

	if (state->statement_timeout_at != 0)
	{
		/* Let the engine record this attempt before it stops. */
		if (state->statement_timeout_at <= report->finished_at)
			report->canceled = true;
		else
			enable_timeout_at(STATEMENT_TIMEOUT, state->statement_timeout_at);
	}
}

/*
 * Close the cursors that the operation opened and left, in a session that has
 * others, of which only a query can list the names.
 */
static void
close_portals_opened_here(void)
{
	static SPIPlanPtr plan = NULL;
	SubTransactionId here = GetCurrentSubTransactionId();

	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "could not connect to SPI");
	if (plan == NULL)
	{
		SPIPlanPtr	fresh;

		fresh = SPI_prepare("SELECT c.name FROM pg_catalog.pg_cursor() AS c",
							0, NULL);
		if (fresh == NULL || SPI_keepplan(fresh) != 0)
			elog(ERROR, "could not prepare to list cursors");
		plan = fresh;
	}
	if (SPI_execute_plan(plan, NULL, NULL, false, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not list cursors");
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		Portal		portal;

		portal = GetPortalByName(SPI_getvalue(SPI_tuptable->vals[i],
											  SPI_tuptable->tupdesc, 1));
		if (PortalIsValid(portal) && portal->createSubid == here &&
			portal->status != PORTAL_ACTIVE)
			PortalDrop(portal, false);
	}
	if (SPI_finish() != SPI_OK_FINISH)
		elog(ERROR, "could not disconnect from SPI");
}

/* As the role, in the subtransaction: closing may run code of the user. */
static void
close_portals(const SagaCallRequest *request)
{
	if (request->in_worker)
		PortalHashTableDeleteAll();
	else
		close_portals_opened_here();
}

/* ---- preparing a call ------------------------------------------------- */

/* The transaction has ended, or saga_call_reset(). */
static void
forget_calls(void *arg pg_attribute_unused())
{
	calls_context = NULL;
	memset(calls, 0, sizeof(calls));
}

/* A function, type, schema or role has changed. */
static void
calls_changed(Datum arg pg_attribute_unused(),
			  int cacheid pg_attribute_unused(),
			  uint32 hashvalue pg_attribute_unused())
{
	calls_stale = true;
}

static void
create_calls_context(void)
{
	static bool registered = false;
	MemoryContextCallback *callback;

	if (!registered)
	{
		CacheRegisterSyscacheCallback(PROCOID, calls_changed, (Datum) 0);
		CacheRegisterSyscacheCallback(TYPEOID, calls_changed, (Datum) 0);
		CacheRegisterSyscacheCallback(NAMESPACEOID, calls_changed, (Datum) 0);
		CacheRegisterSyscacheCallback(AUTHMEMROLEMEM, calls_changed, (Datum) 0);
		registered = true;
	}
	calls_context = AllocSetContextCreate(TopTransactionContext,
										  "saga prepared calls",
										  ALLOCSET_SMALL_SIZES);
	callback = MemoryContextAlloc(calls_context, sizeof(*callback));
	callback->func = forget_calls;
	callback->arg = NULL;
	MemoryContextRegisterResetCallback(calls_context, callback);
}

static const SagaStep *
step_of(const SagaCallRequest *request)
{
	return &request->definition->steps[request->step];
}

static bool
is_action(const SagaCallRequest *request)
{
	return request->operation == SAGA_OPERATION_ACTION;
}

static PreparedCall **
call_bucket(const SagaCallRequest *request, SagaFunctionUse use)
{
	uint32		hash;

	hash = (uint32) request->definition->id * 31 +
		(uint32) request->step * SAGA_NOPERATION + request->operation;
	hash = hash * 31 + use;
	return &calls[hash % CALL_BUCKETS];
}

static void
forget_call(PreparedCall *call)
{
	for (int i = 0; i < CALL_BUCKETS; i++)
	{
		for (PreparedCall **link = &calls[i]; *link; link = &(*link)->next)
		{
			if (*link != call)
				continue;
			*link = call->next;
			MemoryContextDelete(call->context);
			return;
		}
	}
}

/* What is asked of the function of the operation itself. */
static SagaFunctionUse
use_of_operation(const SagaCallRequest *request)
{
	return is_action(request) && step_of(request)->kind == SAGA_KIND_TIMER ?
		SAGA_FUNCTION_TIME : SAGA_FUNCTION_OPERATION;
}

/*
 * In the call's context: look the function up and learn its parameters.  It is
 * checked again, since it may have been replaced.
 */
static void
prepare_function(PreparedCall *call, const SagaCallRequest *request)
{
	const char *signature;
	Oid			function;

	signature = call->use == SAGA_FUNCTION_CONDITION ?
		step_of(request)->condition :
		step_of(request)->function[request->operation];
	function = saga_definition_function(signature, call->use);
	call->result_type = get_func_rettype(function);
	saga_binding_prepare(&call->binding, function, request);
}

/* As the role, in the subtransaction. */
static PreparedCall *
prepare_call(const SagaCallRequest *request, SagaFunctionUse use)
{
	PreparedCall **bucket = call_bucket(request, use);
	PreparedCall *call;
	MemoryContext context;
	MemoryContext old;

	context = AllocSetContextCreate(CurrentMemoryContext, "saga prepared call",
									ALLOCSET_SMALL_SIZES);
	old = MemoryContextSwitchTo(context);
	call = palloc0(sizeof(PreparedCall));
	call->definition = request->definition->id;
	call->step = request->step;
	call->operation = request->operation;
	call->use = use;
	call->role = GetUserId();
	call->context = context;
	prepare_function(call, request);
	call->estate = CreateExecutorState();
	call->econtext = GetPerTupleExprContext(call->estate);
	call->econtext->ecxt_param_list_info = call->binding.values;
	MemoryContextSwitchTo(old);

	/* Nothing has failed: keep it. */
	MemoryContextSetParent(context, calls_context);
	call->next = *bucket;
	*bucket = call;
	return call;
}

static PreparedCall *
find_call(const SagaCallRequest *request, SagaFunctionUse use)
{
	PreparedCall *call;

	if (calls_stale)
	{
		calls_stale = false;
		saga_call_reset();
	}
	if (calls_context == NULL)
		create_calls_context();
	for (call = *call_bucket(request, use); call; call = call->next)
	{
		if (call->definition == request->definition->id &&
			call->step == request->step &&
			call->operation == request->operation &&
			call->use == use &&
			call->role == GetUserId())
			return call;
	}
	return prepare_call(request, use);
}

/* The call as an expression; parameters that are left out get defaults. */
static Expr *
build_expression(PreparedCall *call, const SagaOmitted *omitted,
				 bool any_omitted)
{
	const SagaBinding *binding = &call->binding;
	List	   *args = NIL;
	Expr	   *expression;

	for (int i = 0; i < binding->nparams; i++)
	{
		Param	   *param;

		if (omitted->bits[i / 64] & (UINT64CONST(1) << (i % 64)))
			continue;
		param = makeNode(Param);
		param->paramkind = PARAM_EXTERN;
		param->paramid = i + 1;
		param->paramtype = binding->values->params[i].ptype;
		param->paramtypmod = -1;
		param->paramcollid = get_typcollation(param->paramtype);
		param->location = -1;
		if (any_omitted)
		{
			NamedArgExpr *named = makeNode(NamedArgExpr);

			named->arg = (Expr *) param;
			named->name = pstrdup(saga_binding_name(binding, i));
			named->argnumber = i;
			named->location = -1;
			args = lappend(args, named);
		}
		else
			args = lappend(args, param);
	}
	expression = (Expr *) makeFuncExpr(binding->function, call->result_type,
									   args, InvalidOid, InvalidOid,
									   COERCE_EXPLICIT_CALL);
	if (call->use == SAGA_FUNCTION_OPERATION &&
		call->result_type != VOIDOID && call->result_type != JSONBOID)
		expression = (Expr *) makeFuncExpr(F_TO_JSONB, JSONBOID,
										   list_make1(expression), InvalidOid,
										   InvalidOid, COERCE_EXPLICIT_CALL);
	assign_expr_collations(NULL, (Node *) expression);
	return expression;
}

static ExprState *
find_variant(PreparedCall *call, const SagaOmitted *omitted)
{
	Variant    *variant;
	MemoryContext old;
	bool		any_omitted = false;

	for (variant = call->variants; variant; variant = variant->next)
	{
		if (memcmp(&variant->omitted, omitted, sizeof(*omitted)) == 0)
			return variant->state;
	}

	for (int i = 0; i < (int) lengthof(omitted->bits); i++)
		any_omitted |= omitted->bits[i] != 0;
	old = MemoryContextSwitchTo(call->context);
	variant = palloc0(sizeof(Variant));
	variant->omitted = *omitted;
	variant->state = ExecPrepareExpr(build_expression(call, omitted, any_omitted),
									 call->estate);
	variant->next = call->variants;
	call->variants = variant;
	MemoryContextSwitchTo(old);
	return variant->state;
}

/* ---- running one ------------------------------------------------------ */

/* Raise if one of our flags is set, although the operation did not. */
static void
obey_flags(void)
{
	if (running.control != CONTROL_NONE || timer.verdict != TIMER_QUIET)
		ereport(ERROR,
				errcode(ERRCODE_QUERY_CANCELED),
				errmsg_internal("operation did not let itself be ended"));
}

static void
bind_arguments(SagaBinding *binding, const SagaCallRequest *request,
			   SagaOmitted *omitted)
{
	if (!binding->takes_context)
	{
		saga_binding_evaluate(binding, request, omitted);
		return;
	}
	memset(omitted, 0, sizeof(*omitted));
	saga_binding_give_context(binding, request,
							  saga_call_idempotency_key(request->token,
														step_of(request)->name,
														request->element,
														request->round,
														request->operation),
							  saga_trace_of_operation(request));
}

/*
 * Arguments and function, with a snapshot of their own, so that what ran before
 * is seen.  The value lives until finish_evaluation().
 */
static Datum
evaluate(const SagaCallRequest *request, SagaFunctionUse use, bool *isnull)
{
	SagaOmitted omitted;
	PreparedCall *call;
	ExprState  *state;
	MemoryContext old;
	Datum		value;

	CommandCounterIncrement();
	PushActiveSnapshot(GetTransactionSnapshot());
	call = find_call(request, use);
	running.call = call;
	old = MemoryContextSwitchTo(call->econtext->ecxt_per_tuple_memory);
	bind_arguments(&call->binding, request, &omitted);
	state = find_variant(call, &omitted);
	value = ExecEvalExpr(state, call->econtext, isnull);
	MemoryContextSwitchTo(old);
	return value;
}

static void
finish_evaluation(void)
{
	ReScanExprContext(running.call->econtext);
	running.call = NULL;
	PopActiveSnapshot();
}

/* Is the action to be taken? */
static bool
evaluate_condition(const SagaCallRequest *request)
{
	bool		isnull;
	Datum		value;
	bool		taken;

	running.in_condition = true;
	value = evaluate(request, SAGA_FUNCTION_CONDITION, &isnull);
	taken = !isnull && DatumGetBool(value);
	finish_evaluation();
	obey_flags();
	running.in_condition = false;
	return taken;
}

/* What a function returned is of no use to the step. */
static void
refuse_value(const char *message, const char *detail)
{
	ereport(ERROR,
			errcode(ERRCODE_SAGA_BAD_DATA),
			errmsg_internal("%s", message),
			errdetail_internal("Function %s %s.",
							   quote_identifier(get_func_name(running.call->binding.function)),
							   detail));
}

/* From now, not from the beginning of the transaction. */
static TimestampTz
time_after(Interval *interval)
{
	double		days;

	/* Of each field: they might cancel each other out only in the end. */
	days = fabs((double) interval->month) * DAYS_PER_YEAR / MONTHS_PER_YEAR +
		fabs((double) interval->day) +
		fabs((double) interval->time) / USECS_PER_DAY;
	if (days > MAX_TIMER_DAYS)
		refuse_value("invalid time for a timer",
					 "returned an interval of more than 100 years");
	return DatumGetTimestampTz(DirectFunctionCall2(timestamptz_pl_interval,
												   TimestampTzGetDatum(GetCurrentTimestamp()),
												   IntervalPGetDatum(interval)));
}

/* When a timer is to fire. */
static TimestampTz
time_of_value(Datum value, bool isnull)
{
	TimestampTz time;

	if (isnull)
		refuse_value("invalid time for a timer", "returned null");
	if (getBaseType(running.call->result_type) == INTERVALOID)
		time = time_after(DatumGetIntervalP(value));
	else
		time = DatumGetTimestampTz(value);
	if (TIMESTAMP_NOT_FINITE(time))
		refuse_value("invalid time for a timer", "returned infinity");
	return Max(time, GetCurrentTimestamp());
}

static void
check_child_input(const Jsonb *input)
{
	if (input == NULL)
		refuse_value("invalid input for a child saga", "returned null");
	if (!JB_ROOT_IS_OBJECT(input))
		refuse_value("invalid input for a child saga",
					 "returned something that is no JSON object");
}

/* The function of the operation; what it returns goes into the report. */
static void
evaluate_operation(const SagaCallRequest *request, MemoryContext result_context,
				   SagaCallReport *report)
{
	SagaFunctionUse use = use_of_operation(request);
	bool		isnull;
	Datum		value;

	value = evaluate(request, use, &isnull);
	if (use == SAGA_FUNCTION_TIME)
		report->time = time_of_value(value, isnull);
	else if (!isnull && running.call->result_type != VOIDOID)
	{
		MemoryContext old = MemoryContextSwitchTo(result_context);

		report->result = DatumGetJsonbPCopy(value);
		MemoryContextSwitchTo(old);
	}
	if (is_action(request) && step_of(request)->kind == SAGA_KIND_CHILD)
		check_child_input(report->result);
	finish_evaluation();
}

/*
 * All of the operation, in its subtransaction: raises if it failed, else
 * SUCCEEDED or NOT_TAKEN.
 */
static SagaCallOutcome
run_operation(const SagaCallRequest *request, const SessionState *session,
			  SagaCallReport *report)
{
	const SagaStep *step = step_of(request);
	bool		taken = true;
	int			guc_level = NewGUCNestLevel();

	XactReadOnly = DefaultXactReadOnly;
	arm_timer(request, GetCurrentStatementStartTimestamp());
	if (is_action(request) && step->condition != NULL)
		taken = evaluate_condition(request);
	if (taken && step->function[request->operation] != NULL)
		evaluate_operation(request, session->memory, report);
	MemoryContextSwitchTo(session->memory);
	if (taken)
	{
		CommandCounterIncrement();
		AfterTriggerFireDeferred();
		close_portals(request);
	}
	disarm_timer();
	CHECK_FOR_INTERRUPTS();
	obey_flags();
	if (GetCurrentTransactionNestLevel() != session->level + 1)
		elog(ERROR, "operation left a subtransaction open");
	AtEOXact_GUC(false, guc_level);
	return taken ? SAGA_CALL_SUCCEEDED : SAGA_CALL_NOT_TAKEN;
}

/* ---- what became of it ------------------------------------------------ */

/* A text of an error, fit to be stored, in CurrentMemoryContext. */
static const char *
keep_text(const char *text)
{
	int			length;
	char	   *copy;

	if (text == NULL)
		return NULL;
	length = (int) strnlen(text, MAX_ERROR_TEXT + 1);
	if (length > MAX_ERROR_TEXT)
		length = pg_mbcliplen(text, length, MAX_ERROR_TEXT);
	copy = pnstrdup(text, length);

	/* Messages of the system or of another server may be in any encoding. */
	if (!pg_verifymbstr(copy, length, true))
	{
		for (char *c = copy; *c; c++)
		{
			if (IS_HIGHBIT_SET(*c))
				*c = '?';
		}
	}
	return copy;
}

static void
fill_error(SagaError *error, int sqlstate, const char *message,
		   const char *detail, const char *hint)
{
	strlcpy(error->sqlstate, unpack_sql_state(sqlstate), sizeof(error->sqlstate));
	error->message = message ? keep_text(message) : "missing error text";
	error->detail = keep_text(detail);
	error->hint = keep_text(hint);
}

/* May an error in a batch be due to what else is in the transaction? */
static bool
is_of_batch(int sqlstate)
{
	switch (ERRCODE_TO_CATEGORY(sqlstate))
	{
		case ERRCODE_INVALID_TRANSACTION_STATE:
		case ERRCODE_TRANSACTION_ROLLBACK:
		case ERRCODE_INSUFFICIENT_RESOURCES:
		case ERRCODE_PROGRAM_LIMIT_EXCEEDED:
			return true;
	}
	return sqlstate == ERRCODE_DUPLICATE_CURSOR ||
		sqlstate == ERRCODE_DUPLICATE_PSTATEMENT ||
		sqlstate == ERRCODE_DUPLICATE_TABLE ||
		sqlstate == ERRCODE_LOCK_NOT_AVAILABLE;
}

static void
report_control(SagaCallReport *report)
{
	bool		fail = running.control == CONTROL_FAIL;

	if (running.control == CONTROL_LOCK)
	{
		report->outcome = SAGA_CALL_LOCK;
		report->lock = running.reason;
		report->lock_timeout = running.delay;
		fill_error(&report->error, ERRCODE_SAGA_LOCK,
				   psprintf(LOCK_MESSAGE, running.reason), NULL, NULL);
		return;
	}
	report->outcome = fail ? SAGA_CALL_FAILED : SAGA_CALL_LATER;
	report->by_fail = fail;
	report->delay = running.delay;
	fill_error(&report->error,
			   fail ? ERRCODE_SAGA_FAIL : ERRCODE_SAGA_RETRY_LATER,
			   running.reason, running.detail, NULL);
}

static void
report_timer(SagaCallReport *report)
{
	SagaError  *error = &report->error;

	if (timer.verdict == TIMER_STEP)
	{
		report->outcome = SAGA_CALL_FAILED;
		report->timed_out = true;
		fill_error(error, ERRCODE_QUERY_CANCELED,
				   psprintf("timed out after %lld ms",
							(long long) (running.limit / 1000)),
				   running.limit_is_role ?
				   "This is the role's \"statement_timeout\", which is shorter than the step's timeout." : NULL,
				   NULL);
		return;
	}
	report->outcome = SAGA_CALL_ALONE;
	if (timer.verdict == TIMER_LOCK)
		fill_error(error, ERRCODE_LOCK_NOT_AVAILABLE,
				   "had to wait for a lock while others were in its batch",
				   NULL, NULL);
	else
		fill_error(error, ERRCODE_QUERY_CANCELED,
				   "was still running when the time of its batch was over",
				   NULL, NULL);
}

/* In the caller's memory context; the subtransaction is gone. */
static void
report_failure(const SagaCallRequest *request, const ErrorData *edata,
			   SagaCallReport *report)
{
	if (running.control != CONTROL_NONE)
		report_control(report);
	else if (timer.verdict != TIMER_QUIET)
		report_timer(report);
	else
	{
		report->outcome = request->in_batch && is_of_batch(edata->sqlerrcode) ?
			SAGA_CALL_ALONE : SAGA_CALL_FAILED;
		report->canceled = edata->sqlerrcode == ERRCODE_QUERY_CANCELED;
		fill_error(&report->error, edata->sqlerrcode, edata->message,
				   edata->detail, edata->hint);
	}
	if (edata->internalquery)
		report->error.context =
			keep_text(psprintf("SQL statement \"%s\"\n%s", edata->internalquery,
							   edata->context ? edata->context : ""));
	else
		report->error.context = keep_text(edata->context);
}

/* The operation has raised: roll back, and say what became of it. */
static void
end_failed(const SagaCallRequest *request, const SessionState *session,
		   SagaCallReport *report)
{
	ErrorData  *edata;

	disarm_timer();
	if (timer.verdict != TIMER_QUIET)
		QueryCancelPending = false;
	MemoryContextSwitchTo(session->memory);
	edata = CopyErrorData();
	FlushErrorState();

	if (GetCurrentTransactionNestLevel() <= session->level)
		elog(FATAL, "an operation ended a transaction that is not its own");
	while (GetCurrentTransactionNestLevel() > session->level)
		RollbackAndReleaseCurrentSubTransaction();
	MemoryContextSwitchTo(session->memory);
	if (running.call != NULL)
		forget_call(running.call);
	report_failure(request, edata, report);
	FreeErrorData(edata);
}

/* Is it a message of the operation, not an error?  Its class says so. */
static bool
is_message(int sqlstate)
{
	int			category = ERRCODE_TO_CATEGORY(sqlstate);

	return category == ERRCODE_SUCCESSFUL_COMPLETION ||
		category == ERRCODE_WARNING;
}

/* Names the operation in every error beneath; in what goes to the log only, in
 * the form of our own lines there. */
static void
add_context(void *arg pg_attribute_unused())
{
	const SagaCallRequest *request = running.request;

	if (request == NULL)
		return;
	if (is_message(geterrcode()))
	{
		errcontext("%s", saga_log_describe_call(request));
		return;
	}
	if (running.call != NULL && running.call->binding.converting != NULL)
		errcontext("parameter \"%s\"", running.call->binding.converting);
	if (running.in_condition)
		errcontext("condition");
	if (request->definition->rules.steps[request->step].foreach)
		errcontext("step \"%s\" (%s, element %d, attempt %d) of saga %lld",
				   step_of(request)->name,
				   saga_operation_name(request->operation), request->element,
				   request->attempt, (long long) request->saga_id);
	else
		errcontext("step \"%s\" (%s, attempt %d) of saga %lld",
				   step_of(request)->name,
				   saga_operation_name(request->operation),
				   request->attempt, (long long) request->saga_id);
}

static void
start_running(void)
{
	Assert(!saga_owner_is_current());
	if (running.request != NULL || running.guest)
		ereport(ERROR,
				errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				errmsg("cannot run an operation inside another"));
	memset(&running, 0, sizeof(running));
	running.report_context = CurrentMemoryContext;
	timer.verdict = TIMER_QUIET;
}

void
saga_call_run(const SagaCallRequest *request, SagaCallReport *report)
{
	SessionState session;
	ErrorContextCallback callback;
	ErrorContextCallback *previous = error_context_stack;

	/* What the caller of a CALL was told to stop for is not the operation's. */
	if (!request->in_worker)
		CHECK_FOR_INTERRUPTS();
	memset(report, 0, sizeof(*report));
	start_running();
	save_session(&session);
	BeginInternalSubTransaction(NULL);
	SetCurrentStatementStartTimestamp();
	report->started_at = GetCurrentStatementStartTimestamp();

	PG_TRY();
	{
		/* The context of errors is the operation's, not its driver's. */
		callback.callback = add_context;
		callback.arg = NULL;
		callback.previous = NULL;
		error_context_stack = &callback;
		running.request = request;
		report->outcome = run_operation(request, &session, report);

		/*
		 * A condition that says no has no effects: the step is skipped, and
		 * there will be nothing to compensate.  What one that says yes wrote
		 * is part of the attempt.
		 */
		if (report->outcome == SAGA_CALL_NOT_TAKEN)
			RollbackAndReleaseCurrentSubTransaction();
		else
			ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		running.request = NULL;
		report->result = NULL;
		report->time = 0;
		end_failed(request, &session, report);
	}
	PG_END_TRY();

	running.request = NULL;
	error_context_stack = previous;
	report->finished_at = GetCurrentTimestamp();
	report->alone_from_now = running.transactional;
	report->flush = running.notify;
	restore_session(&session, request, report);
}

/* ---- guests ------------------------------------------------------------ */

/*
 * A guest has raised, or has not let itself be ended.  What it said of itself
 * goes up in place of the error, in a form that its caller can read: the delay
 * of saga.retry_later() is in the name of a constraint, the only field that
 * reaches a client and is of no use here.
 */
static void
rethrow_for_guest(MemoryContext memory)
{
	ErrorData  *edata;
	bool		fail = running.control == CONTROL_FAIL;

	MemoryContextSwitchTo(memory);
	edata = CopyErrorData();
	FlushErrorState();
	edata->sqlerrcode = fail ? ERRCODE_SAGA_FAIL : ERRCODE_SAGA_RETRY_LATER;
	edata->message = unconstify(char *, running.reason);
	edata->detail = unconstify(char *, running.detail);
	edata->hint = NULL;
	edata->constraint_name = fail ? SAGA_CALL_FAIL_FIELD :
		psprintf(SAGA_CALL_LATER_FIELD "%lld", (long long) running.delay);
	ReThrowError(edata);
}

void
saga_call_guest(void (*function) (void *arg), void *arg)
{
	MemoryContext memory = CurrentMemoryContext;
	int			guc_level = NewGUCNestLevel();
	Oid			user;
	int			security_context;

	GetUserIdAndSecContext(&user, &security_context);
	start_running();
	running.guest = true;
	PG_TRY();
	{
		function(arg);
		obey_flags();
	}
	PG_CATCH();
	{
		running.guest = false;
		if (running.control != CONTROL_NONE)
			rethrow_for_guest(memory);
		PG_RE_THROW();
	}
	PG_END_TRY();
	running.guest = false;
	AtEOXact_GUC(false, guc_level);
	SetUserIdAndSecContext(user, security_context);
}

void
saga_call_refuse_within(const char *function)
{
	if (running.request != NULL || running.guest)
		ereport(ERROR,
				errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				errmsg("%s cannot be called from a step", function));
}

/* ---- what others ask for ---------------------------------------------- */

void
saga_call_reset(void)
{
	if (calls_context != NULL)
		MemoryContextDelete(calls_context);
}

void
saga_call_clean_session(void)
{
	Assert(!IsTransactionState());
	saga_call_reset();
	DropAllPreparedStatements();
	ResetSequenceCaches();
	if (temporary_used)
	{
		StartTransactionCommand();
		PushActiveSnapshot(GetTransactionSnapshot());
		ResetTempTableNamespace();
		PopActiveSnapshot();
		CommitTransactionCommand();
		temporary_used = false;
	}
}

bool
saga_call_is_trivial(const SagaStep *step, SagaOperation operation)
{
	return step->function[operation] == NULL &&
		(operation != SAGA_OPERATION_ACTION || step->condition == NULL);
}

bool
saga_call_is_running(void)
{
	return running.request != NULL;
}

void
saga_call_saw_transactional(void)
{
	running.transactional = true;
}

void
saga_call_saw_notify(void)
{
	running.notify = true;
}

int
saga_call_subxids(bool *overflowed)
{
	*overflowed = MyProc->subxidStatus.overflowed;
	return MyProc->subxidStatus.count;
}

char *
saga_call_idempotency_key(const pg_uuid_t *token, const char *step, int element,
						  int round, SagaOperation operation)
{
	char	   *uuid;
	char	   *key;

	uuid = DatumGetCString(DirectFunctionCall1(uuid_out,
											   UUIDPGetDatum(token)));
	key = psprintf("%s/%s/%d/%s", uuid, step, element,
				   saga_operation_name(operation));
	return round > 0 ? psprintf("%s/%d", key, round) : key;
}

/* ---- saga.fail(), saga.retry_later(), saga.lock() --------------------- */

static void
require_running(const char *function)
{
	if (running.request == NULL && !running.guest)
		ereport(ERROR,
				errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				errmsg("%s can be called by a running step only", function),
				errdetail("This session is not running an operation of a saga."));
}

/*
 * Note what the operation said of itself, before the error that says it is
 * raised and perhaps swallowed.  The first word counts, and what the timer
 * said before: user code's answer to a cancel of ours means nothing.
 */
static void
note_control(Control control, const char *function, const char *reason,
			 const char *detail, int64 delay)
{
	require_running(function);
	if (running.control != CONTROL_NONE || timer.verdict != TIMER_QUIET)
		return;
	running.reason = MemoryContextStrdup(running.report_context, reason);
	if (detail != NULL)
		running.detail = MemoryContextStrdup(running.report_context, detail);
	running.delay = delay;
	running.control = control;
}

static void
fail(const char *reason, const char *detail)
{
	note_control(CONTROL_FAIL, "saga.fail()", reason, detail, 0);
	ereport(ERROR,
			errcode(ERRCODE_SAGA_FAIL),
			errmsg_internal("%s", reason),
			detail ? errdetail_internal("%s", detail) : 0);
}

/* The text of an argument, or NULL. */
static char *
text_argument(FunctionCallInfo fcinfo, int i)
{
	return PG_ARGISNULL(i) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(i));
}

/* saga.fail(reason text, detail text): ends the step for good. */
Datum
saga_fail(PG_FUNCTION_ARGS)
{
	char	   *reason = text_argument(fcinfo, 0);

	fail(reason ? reason : "failed without a reason", text_argument(fcinfo, 1));
	PG_RETURN_VOID();
}

/* saga.fail(reason text, detail jsonb) */
Datum
saga_fail_jsonb(PG_FUNCTION_ARGS)
{
	char	   *reason = text_argument(fcinfo, 0);
	char	   *detail = NULL;

	if (!PG_ARGISNULL(1))
	{
		Jsonb	   *jsonb = PG_GETARG_JSONB_P(1);

		detail = JsonbToCString(NULL, &jsonb->root, VARSIZE(jsonb));
	}
	fail(reason ? reason : "failed without a reason", detail);
	PG_RETURN_VOID();
}

/* A length of time, months counted as 30 days: for comparing, and exactly. */
static double
days_of_interval(const Interval *interval)
{
	return (double) interval->month * DAYS_PER_MONTH + interval->day +
		(double) interval->time / USECS_PER_DAY;
}

static int64
microseconds_of_interval(const Interval *interval)
{
	return ((int64) interval->month * DAYS_PER_MONTH + interval->day) *
		USECS_PER_DAY + interval->time;
}

/* saga.retry_later(delay interval, reason text): another attempt, then. */
Datum
saga_retry_later(PG_FUNCTION_ARGS)
{
	char	   *reason = text_argument(fcinfo, 1);
	Interval   *delay;
	double		days;

	if (PG_ARGISNULL(0))
		ereport(ERROR,
				errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				errmsg("delay must not be null"));
	delay = PG_GETARG_INTERVAL_P(0);
	days = days_of_interval(delay);
	if (days < 0 || days > MAX_LATER_DAYS)
		ereport(ERROR,
				errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				errmsg("delay must be between zero and ten years"));
	if (reason == NULL)
		reason = "asked for another attempt";

	note_control(CONTROL_LATER, "saga.retry_later()", reason, NULL,
				 microseconds_of_interval(delay));
	ereport(ERROR,
			errcode(ERRCODE_SAGA_RETRY_LATER),
			errmsg_internal("%s", reason));
	PG_RETURN_VOID();
}

static void
check_lock_name(const char *name)
{
	size_t		length = strlen(name);

	if (length == 0 || length > MAX_LOCK_NAME)
		ereport(ERROR,
				errcode(ERRCODE_INVALID_NAME),
				errmsg("invalid name for a lock: \"%s\"",
					   pnstrdup(name, pg_mbcliplen(name, length,
												   MAX_LOCK_NAME))),
				errdetail("A name has 1 to %d bytes.", MAX_LOCK_NAME));
	for (size_t i = 0; i < length; i++)
	{
		unsigned char c = name[i];

		if (c < 0x20 || c == 0x7f)
			ereport(ERROR,
					errcode(ERRCODE_INVALID_NAME),
					errmsg("invalid name for a lock"),
					errdetail("A name must not contain control characters."));
	}
}

/* saga.lock(name text, timeout interval): take it, or another attempt with it. */
Datum
saga_lock(PG_FUNCTION_ARGS)
{
	char	   *name = text_argument(fcinfo, 0);
	Interval   *timeout;
	double		days;

	if (name == NULL)
		ereport(ERROR,
				errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				errmsg("name must not be null"));
	if (PG_ARGISNULL(1))
		ereport(ERROR,
				errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				errmsg("timeout must not be null"));
	check_lock_name(name);
	timeout = PG_GETARG_INTERVAL_P(1);
	days = days_of_interval(timeout);
	if (days < 0 || days > MAX_LOCK_DAYS)
		ereport(ERROR,
				errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				errmsg("timeout must be between zero and %d days",
					   MAX_LOCK_DAYS));

	require_running("saga.lock()");
	if (running.guest)
		ereport(ERROR,
				errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				errmsg("saga.lock() cannot be called for a saga of another database"),
				errhint("Let the step that calls this function take the lock, with \"exclusive\"."));
	if (running.request->holds_lock != NULL &&
		running.request->holds_lock(running.request, name))
		PG_RETURN_VOID();
	note_control(CONTROL_LOCK, "saga.lock()", name, NULL,
				 microseconds_of_interval(timeout));
	ereport(ERROR,
			errcode(ERRCODE_SAGA_LOCK),
			errmsg(LOCK_MESSAGE, name));
	PG_RETURN_VOID();
}
