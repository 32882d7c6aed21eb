/*
 * api.c
 *		The SQL-callable functions about sagas: begin, the verbs of people,
 *		signals, waiting, the drivers in the foreground, adopt.
 *
 * Runs in any backend.  begin, the verbs and signal write one row each in the
 * caller's transaction, and note whom to wake after its commit.  The
 * procedures commit; so they are refused where that is not possible.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "pgstat.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/proc.h"
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

#include "alert.h"
#include "arguments.h"
#include "catalog.h"
#include "compat.h"
#include "engine.h"
#include "locks.h"
#include "migrate.h"
#include "errcodes.h"
#include "guc.h"
#include "invariant.h"
#include "kinds.h"
#include "owner.h"
#include "queue.h"
#include "server.h"
#include "retention.h"
#include "store.h"
#include "trace.h"
#include "upkeep.h"

/* A waiter looks again this often even if nobody wakes it. */
#define WAIT_RECHECK_MS			5000
/* ... and this often when it could not be registered. */
#define WAIT_POLL_MS			200
/* The longest that saga.wait_within() may hold its caller's snapshot. */
#define WAIT_WITHIN_MAX_US		(60 * USECS_PER_SEC)
/* saga.recover() waits so long for a worker to come, looking this often. */
#define WORKER_PATIENCE_US		(2 * USECS_PER_SEC)
#define WORKER_POLL_MS			10
/* saga.recover() looks after the sagas of so many roles. */
#define MAX_DUE_ROLES			1024
/* So many sagas of a tree are advanced by one CALL saga.run(). */
#define MAX_TREE				10000
/* ... each so often, at most. */
#define MAX_TREE_ROUNDS			10000

PG_FUNCTION_INFO_V1(saga_begin);
PG_FUNCTION_INFO_V1(saga_cancel);
PG_FUNCTION_INFO_V1(saga_pause);
PG_FUNCTION_INFO_V1(saga_resume);
PG_FUNCTION_INFO_V1(saga_retry);
PG_FUNCTION_INFO_V1(saga_skip);
PG_FUNCTION_INFO_V1(saga_abandon);
PG_FUNCTION_INFO_V1(saga_migrate);
PG_FUNCTION_INFO_V1(saga_signal);
PG_FUNCTION_INFO_V1(saga_signal_by_key);
PG_FUNCTION_INFO_V1(saga_wait);
PG_FUNCTION_INFO_V1(saga_wait_within);
PG_FUNCTION_INFO_V1(saga_run);
PG_FUNCTION_INFO_V1(saga_recover);
PG_FUNCTION_INFO_V1(saga_adopt);
PG_FUNCTION_INFO_V1(saga_cron_database);


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

static void
check_traceparent(const char *traceparent)
{
	if (!saga_trace_is_valid(traceparent))
		ereport(ERROR,
				errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				errmsg("invalid traceparent: \"%s\"", traceparent),
				errhint("It looks like 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01."));
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
	char	   *key = saga_argument_text(fcinfo, 2);
	char	   *traceparent = saga_argument_text(fcinfo, 5);
	TimestampTz start_at = time_argument(fcinfo, 3, "start_at");
	TimestampTz deadline = time_argument(fcinfo, 4, "deadline");

	saga_check_may_write("saga.begin()");
	saga_argument_require(fcinfo, 0, "definition");
	saga_argument_require(fcinfo, 1, "input");
	saga_argument_require(fcinfo, 6, "on_duplicate");
	saga_catalog_forget_old();
	definition = saga_catalog_for_begin(saga_argument_text(fcinfo, 0),
										!PG_ARGISNULL(7) && PG_GETARG_BOOL(7),
										true);
	input = PG_GETARG_JSONB_P(1);
	/* what the steps need and nothing provides is an error now, not in an hour */
	saga_definition_check_input(definition, input);
	if (key != NULL)
		check_key(key);
	if (traceparent != NULL)
		check_traceparent(traceparent);
	if (PG_ARGISNULL(4))
		deadline = saga_definition_deadline(definition, start_at);
	else if (deadline <= Max(start_at, GetCurrentTimestamp()))
		ereport(ERROR,
				errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				errmsg("deadline must be later than the start of the saga"));
	PG_RETURN_INT64(saga_store_begin(definition, input, key, start_at, deadline,
									 traceparent,
									 parse_on_duplicate(saga_argument_text(fcinfo, 6))));
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

/* Why a saga of this definition may only go forward. */
static const char *
no_way_back(const SagaDefinition *definition)
{
	bool		confirms = false;

	for (int i = 0; i < definition->rules.nsteps; i++)
		confirms |= definition->rules.steps[i].has_confirmation;
	if (!confirms)
		return "Its pivot has succeeded: it can only go forward.";
	if (!definition->has_pivot)
		return "It is being confirmed: it can only go forward.";
	return "Its pivot has succeeded, or it is being confirmed: it can only go forward.";
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
			detail = no_way_back(saga->definition);
			hint = "Use retry, skip or abandon if it is stuck.";
			break;
		case SAGA_VERDICT_BACKWARD:
			detail = "It is compensating already.";
			break;
		case SAGA_VERDICT_HELD:
			if (saga->parent_id == SAGA_FAR_PARENT)
			{
				detail = "The saga is done, and waits for its parent, a saga of another database.";
				hint = "Cancel the parent there to let it go back, and this one with it.";
				break;
			}
			detail = psprintf("The saga is done, and waits for its parent, saga %lld.",
							  (long long) saga->parent_id);
			hint = psprintf("Use saga.cancel(%lld) to let the parent go back, and this one with it.",
							(long long) saga->parent_id);
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

/* Its rows have no meaning: nothing but abandon can help. */
static void
refuse_broken(const char *verb, const Saga *saga)
{
	ereport(ERROR,
			errcode(ERRCODE_DATA_CORRUPTED),
			errmsg("cannot %s saga %lld", verb, (long long) saga->ref.id),
			errdetail("Its rows are not consistent: %s.", saga->broken),
			errhint("Use saga.abandon()."));
}

/* Make the saga what it will be when what people asked of it has been acted
 * upon.  Whatever is refused then changes nothing here either. */
static void
apply_requests(Saga *saga)
{
	ListCell   *cell;

	foreach(cell, saga->messages)
	{
		SagaMessage *message = lfirst(cell);
		SagaEvent	event = {.step = -1, .element = message->element,
		.now = GetCurrentTimestamp(), .delay = -1};

		if (!saga_store_is_request(message->kind) ||
			!saga_event_parse(message->kind, &event.kind))
			continue;
		if (message->step != NULL)
			event.step = saga_definition_step(saga->definition, message->step);
		(void) saga_machine_apply(&saga->definition->rules, &saga->state,
								  &event);
	}
}

/*
 * Would the saga, as it stands and after what others have asked of it, accept
 * this?  It is asked again when the engine acts on it.
 */
static void
check_verb(Saga *saga, const char *verb, SagaEventKind kind, int step,
		   int element)
{
	SagaEvent	event = {.kind = kind, .step = step, .element = element,
	.now = GetCurrentTimestamp(), .delay = -1};

	if (saga->broken != NULL)
	{
		if (kind == SAGA_EVENT_ABANDON &&
			!saga_status_is_final(saga->state.status))
			return;
		refuse_broken(verb, saga);
	}
	apply_requests(saga);
	if (kind == SAGA_EVENT_CANCEL)
		saga_kind_imagine_turning_back(saga);
	refuse(verb, saga, saga_machine_apply(&saga->definition->rules,
										  &saga->state, &event));
}

/* Position of a step that was named by the caller. */
static int
find_step(const Saga *saga, const char *step)
{
	int			position = saga_definition_step(saga->definition, step);

	if (position < 0)
		ereport(ERROR,
				errcode(ERRCODE_UNDEFINED_OBJECT),
				errmsg("saga definition \"%s\" has no step \"%s\"",
					   saga->definition->name, step));
	return position;
}

/* The element of a foreach step that was named by the caller; -1 = any. */
static int
element_argument(FunctionCallInfo fcinfo, int n, const char *step)
{
	int			element;

	if (PG_ARGISNULL(n))
		return -1;
	element = PG_GETARG_INT32(n);
	if (element < 0)
		ereport(ERROR,
				errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				errmsg("element must not be negative"),
				errhint("The first element of a step's array has the number 0."));
	if (step == NULL)
		ereport(ERROR,
				errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				errmsg("element must not be given without a step"),
				errhint("Name the step that it is an element of."));
	return element;
}

static void
check_element(const Saga *saga, int step, int element)
{
	int			nelements = saga->state.steps[step].nelements;
	const char *name = saga->definition->steps[step].name;

	if (element < nelements)
		return;
	ereport(ERROR,
			errcode(ERRCODE_UNDEFINED_OBJECT),
			errmsg("step \"%s\" of saga %lld has no element %d", name,
				   (long long) saga->ref.id, element),
			nelements < 0 ? errdetail("Its elements are not known yet.") :
			!saga->definition->rules.steps[step].foreach ?
			errdetail("It is not a foreach step.") :
			errdetail_plural("It has %d element, counted from 0.",
							 "It has %d elements, counted from 0.",
							 nelements, nelements));
}

static Datum
ask(FunctionCallInfo fcinfo, SagaEventKind kind, bool takes_step)
{
	const char *verb = saga_event_name(kind);
	char	   *step = takes_step ? saga_argument_text(fcinfo, 2) : NULL;
	int			element = takes_step ? element_argument(fcinfo, 3, step) : -1;
	char	   *reason = saga_argument_text(fcinfo, 1);
	Saga	   *saga;
	int			position = -1;

	if (PG_ARGISNULL(0))
		PG_RETURN_NULL();
	saga_check_may_write(psprintf("saga.%s()", verb));
	saga_catalog_forget_old();
	saga = find_saga(PG_GETARG_INT64(0));
	if (step != NULL && saga->broken == NULL)
	{
		position = find_step(saga, step);
		if (element >= 0)
			check_element(saga, position, element);
	}
	check_verb(saga, verb, kind, position, element);
	saga_store_post(saga, verb, step, element, reason, NULL);
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


/* ---- another version ------------------------------------------------------ */

/* Is it already on its way to some version? */
static bool
has_asked_to_migrate(const Saga *saga)
{
	ListCell   *cell;

	foreach(cell, saga->messages)
		if (strcmp(((const SagaMessage *) lfirst(cell))->kind, "migrate") == 0)
			return true;
	return false;
}

/* saga.migrate(saga_id, version, reason) */
Datum
saga_migrate(PG_FUNCTION_ARGS)
{
	const SagaDefinition *target;
	Saga	   *saga;

	if (!PG_ARGISNULL(1) && PG_GETARG_INT32(1) < 1)
		ereport(ERROR,
				errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				errmsg("version must be greater than zero"));
	if (PG_ARGISNULL(0))
		PG_RETURN_NULL();
	saga_check_may_write("saga.migrate()");
	saga_catalog_forget_old();
	saga = find_saga(PG_GETARG_INT64(0));
	if (saga->broken != NULL)
		refuse_broken("migrate", saga);
	apply_requests(saga);
	if (saga_status_is_final(saga->state.status))
		refuse("migrate", saga, SAGA_VERDICT_FINAL);
	target = saga_migrate_check(saga, PG_ARGISNULL(1) ? 0 : PG_GETARG_INT32(1));
	/* nothing to be done: so that it can be asked of many at once */
	if (target->id != saga->definition_id || has_asked_to_migrate(saga))
		saga_store_post(saga, "migrate", NULL, -1, saga_argument_text(fcinfo, 2),
						saga_migrate_write(target->version));
	PG_RETURN_INT64(saga->ref.id);
}


/* ---- signals ---------------------------------------------------------------- */

/* May a second signal be ignored? */
static bool
parse_ignores_duplicate(const char *word)
{
	if (strcmp(word, "ignore") == 0)
		return true;
	if (strcmp(word, "error") == 0)
		return false;
	ereport(ERROR,
			errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			errmsg("unrecognized value for on_duplicate: \"%s\"", word),
			errhint("Valid values are \"error\" and \"ignore\"."));
}

/* "Its signal steps are ..." */
static char *
list_signal_steps(const SagaDefinition *definition)
{
	StringInfoData list;

	initStringInfo(&list);
	for (int i = 0; i < definition->rules.nsteps; i++)
		if (definition->steps[i].kind == SAGA_KIND_SIGNAL)
			appendStringInfo(&list, "%s\"%s\"", list.len > 0 ? ", " : "",
							 definition->steps[i].name);
	if (list.len == 0)
		return "It has no signal step: see saga.signal_step().";
	return psprintf("Its signal steps are %s.", list.data);
}

static int
find_signal_step(const Saga *saga, const char *signal)
{
	const SagaDefinition *definition = saga->definition;
	int			step = saga_definition_step(definition, signal);

	if (step < 0)
		ereport(ERROR,
				errcode(ERRCODE_UNDEFINED_OBJECT),
				errmsg("saga definition \"%s\" has no step \"%s\"",
					   definition->name, signal),
				errdetail("Saga %lld runs version %d of it.",
						  (long long) saga->ref.id, definition->version),
				errhint("%s", list_signal_steps(definition)));
	if (definition->steps[step].kind != SAGA_KIND_SIGNAL)
		ereport(ERROR,
				errcode(ERRCODE_WRONG_OBJECT_TYPE),
				errmsg("step \"%s\" of saga definition \"%s\" does not wait for a signal",
					   signal, definition->name),
				errdetail("It is of kind \"%s\".",
						  saga_step_kind_name(definition->steps[step].kind)),
				errhint("%s", list_signal_steps(definition)));
	return step;
}

/* Does the saga go forward, or is it to, so that a signal may have its step
 * before it? */
static void
check_wants_signals(const Saga *saga)
{
	SagaStatus	status = saga->state.status;

	if (saga_status_is_final(status))
		ereport(ERROR,
				errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				errmsg("cannot signal saga %lld", (long long) saga->ref.id),
				errdetail("The saga has already ended with status \"%s\".",
						  saga_status_name(status)),
				errhint("View saga.sagas shows the ones that have not."));
	if (saga->state.backward && saga->state.goal < 0)
		ereport(ERROR,
				errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				errmsg("cannot signal saga %lld", (long long) saga->ref.id),
				errdetail("It is compensating: its steps wait for nothing any more."),
				errhint("Begin another saga."));
}

/*
 * Has the step its signal, or is its time over?  Returns why, as a sentence,
 * or NULL.  "again" is set when a signal has come before this one.
 */
static char *
find_earlier_signal(const Saga *saga, int step, bool *again)
{
	const SagaStep *rule = &saga->definition->steps[step];
	const SagaOpState *op;
	const SagaOpRow *row;
	ListCell   *cell;

	*again = true;
	foreach(cell, saga->messages)
	{
		const SagaMessage *message = lfirst(cell);

		if (strcmp(message->kind, "signal") == 0 && message->step != NULL &&
			strcmp(message->step, rule->name) == 0)
			return psprintf("Role \"%s\" sent it at %s.",
							message->requested_by,
							timestamptz_to_str(message->created_at));
	}
	/* with a savepoint before it the step will be another round's */
	if (saga->state.backward &&
		saga_rules_is_before(&saga->definition->rules, saga->state.goal, step))
		return NULL;
	op = &saga->state.steps[step].elements[0].op[SAGA_OPERATION_ACTION];
	row = &saga->ops[step][0][SAGA_OPERATION_ACTION];
	switch (op->status)
	{
		case SAGA_OP_PENDING:
		case SAGA_OP_RUNNING:
		case SAGA_OP_WAITING:
			return op->signalled ? pstrdup("It came before its step.") : NULL;
		case SAGA_OP_SUCCEEDED:
			*again = rule->fallback == NULL;
			return psprintf(*again ? "It came at %s." :
							"The step has had its result since %s: of a signal, or because its time was over.",
							timestamptz_to_str(row->finished_at));
		case SAGA_OP_FAILED:
			*again = false;
			return psprintf("Step \"%s\" has failed: its time is over.",
							rule->name);
		case SAGA_OP_SKIPPED:
			*again = false;
			return psprintf("Step \"%s\" was skipped.", rule->name);
	}
	return NULL;
}

static void
report_duplicate_signal(const Saga *saga, const char *signal,
						const char *detail, bool again)
{
	ereport(ERROR,
			errcode(ERRCODE_SAGA_DUPLICATE_SIGNAL),
			again ? errmsg("saga %lld already has signal \"%s\"",
						   (long long) saga->ref.id, signal) :
			errmsg("signal \"%s\" comes too late for saga %lld", signal,
				   (long long) saga->ref.id),
			errdetail("%s", detail),
			errhint("Use on_duplicate => 'ignore' if that is to be expected."));
}

/* The signal of one who has no rights waits for nobody and keeps nobody
 * waiting: these are asked before the others are held off. */
static void
check_may_signal(int64 id)
{
	SagaGlance	glance;

	CommandCounterIncrement();	/* the caller may have begun it just now */
	if (!saga_store_glance(id, &glance))
		ereport(ERROR,
				errcode(ERRCODE_UNDEFINED_OBJECT),
				errmsg("saga %lld does not exist", (long long) id),
				errhint("View saga.sagas has the ids of your sagas."));
	if (!has_privs_of_role(GetUserId(), glance.role) && !is_operator())
		ereport(ERROR,
				errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				errmsg("permission denied for saga %lld", (long long) id));
}

/* Returns false if it was a second one, which the caller wants ignored. */
static bool
send_signal(int64 id, const char *signal, Jsonb *payload, bool ignores_duplicate)
{
	Saga	   *saga;
	char	   *earlier;
	bool		again;
	int			step;

	saga_store_serialize_signals(id);
	saga = find_saga(id);
	if (saga->broken != NULL)
		refuse_broken("signal", saga);
	step = find_signal_step(saga, signal);
	apply_requests(saga);
	check_wants_signals(saga);
	earlier = find_earlier_signal(saga, step, &again);
	if (earlier != NULL)
	{
		if (ignores_duplicate)
			return false;
		report_duplicate_signal(saga, signal, earlier, again);
	}
	saga_store_post(saga, "signal", signal, -1, NULL, payload);
	return true;
}

/* The payload; without one JSON's null. */
static Jsonb *
payload_argument(FunctionCallInfo fcinfo, int n)
{
	if (!PG_ARGISNULL(n))
		return PG_GETARG_JSONB_P(n);
	return DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum("null")));
}

/* saga.signal(saga_id, signal, payload, on_duplicate) */
Datum
saga_signal(PG_FUNCTION_ARGS)
{
	int64		id;
	bool		ignores;

	saga_check_may_write("saga.signal()");
	saga_argument_require(fcinfo, 1, "signal");
	saga_argument_require(fcinfo, 3, "on_duplicate");
	ignores = parse_ignores_duplicate(saga_argument_text(fcinfo, 3));
	if (PG_ARGISNULL(0))
		PG_RETURN_NULL();
	id = PG_GETARG_INT64(0);
	saga_catalog_forget_old();
	check_may_signal(id);
	PG_RETURN_BOOL(send_signal(id, saga_argument_text(fcinfo, 1),
							   payload_argument(fcinfo, 2), ignores));
}

/*
 * The saga of this definition that has this key, for one who may signal it:
 * to others a key is not even said to be there.
 */
static int64
find_saga_by_key(const char *name, const char *key)
{
	SagaGlance	glance;
	int64		id;

	if (saga_catalog_newest(name) == NULL)
		ereport(ERROR,
				errcode(ERRCODE_UNDEFINED_OBJECT),
				errmsg("saga definition \"%s\" does not exist", name));
	CommandCounterIncrement();
	id = saga_store_find_key(name, key);
	if (id == 0 || !saga_store_glance(id, &glance) ||
		(!has_privs_of_role(GetUserId(), glance.role) && !is_operator()))
		ereport(ERROR,
				errcode(ERRCODE_UNDEFINED_OBJECT),
				errmsg("saga definition \"%s\" has no saga with key \"%s\"",
					   name, key),
				errdetail("There is none that role \"%s\" may signal.",
						  GetUserNameFromId(GetUserId(), false)),
				errhint("View saga.sagas has the keys of your sagas."));
	return id;
}

/* saga.signal(definition, key, signal, payload, on_duplicate) */
Datum
saga_signal_by_key(PG_FUNCTION_ARGS)
{
	bool		ignores;
	int64		id;

	saga_check_may_write("saga.signal()");
	saga_argument_require(fcinfo, 0, "definition");
	saga_argument_require(fcinfo, 1, "key");
	saga_argument_require(fcinfo, 2, "signal");
	saga_argument_require(fcinfo, 4, "on_duplicate");
	ignores = parse_ignores_duplicate(saga_argument_text(fcinfo, 4));
	saga_catalog_forget_old();
	id = find_saga_by_key(saga_argument_text(fcinfo, 0), saga_argument_text(fcinfo, 1));
	PG_RETURN_BOOL(send_signal(id, saga_argument_text(fcinfo, 2),
							   payload_argument(fcinfo, 3), ignores));
}


/* ---- waiting ---------------------------------------------------------------- */

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

	saga_argument_require(fcinfo, 0, "saga_id");
	id = PG_GETARG_INT64(0);
	until = GetCurrentTimestamp() + saga_argument_interval(fcinfo, 1, "timeout");
	saga_require_may_commit(fcinfo, "saga.wait()",
					   "saga.wait_within() waits in a function, for a minute at most.");
	if (SPI_connect_ext(SPI_OPT_NONATOMIC) != SPI_OK_CONNECT)
		elog(ERROR, "could not connect to SPI");
	status = wait_until_final(id, until, true);
	SPI_finish();
	values[0] = CStringGetTextDatum(saga_status_name(status));
	return saga_make_row(fcinfo, values, NULL);
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

	saga_argument_require(fcinfo, 0, "saga_id");
	id = PG_GETARG_INT64(0);
	timeout = saga_argument_interval(fcinfo, 1, "timeout");
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

/* When a run is to begin no more transactions; DT_NOEND: never. */
static TimestampTz foreground_until = DT_NOEND;

static bool
foreground_goes_on(void)
{
	return foreground_until == DT_NOEND ||
		GetCurrentTimestamp() < foreground_until;
}

static const SagaDriver foreground_driver = {
	.begin = foreground_begin,
	.commit = foreground_commit,
	.abort = foreground_abort,
	.worker = false,
	.goes_on = foreground_goes_on
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
	saga_require_may_commit(fcinfo, procedure,
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
	foreground_until = DT_NOEND;
	(void) saga_executor_enter(GetUserId(), -1, 0);
}

static void
leave_foreground(void)
{
	saga_executor_leave();
	SPI_finish();
}

/* What a coordinator does for tasks, if there can be none: announce queues,
 * with "look" those in which tasks wait, and delete what ended long ago. */
static void
do_duties(bool look)
{
	if (saga_shared_available() && saga_enabled)
		return;
	if (look)
	{
		saga_engine_look_for_tasks(&foreground_driver);
		(void) saga_engine_purge_tasks(&foreground_driver);
		(void) saga_engine_watch(&foreground_driver);
		saga_engine_send_alerts(&foreground_driver);
	}
	saga_engine_announce(&foreground_driver);
}

/* Run these, as far as they are not somebody else's; did that do anything? */
static bool
run_refs(SagaRef *refs, int n, SagaRunResult *result)
{
	int64		done = result->changed + result->operations;
	int			mine;

	CHECK_FOR_INTERRUPTS();
	mine = n > 0 ? saga_executor_claim(refs, n) : 0;
	if (mine > 0)
		saga_engine_run(&foreground_driver, refs, mine, result);
	return result->changed + result->operations > done;
}

/*
 * Run a saga, and what it hands out to other workers, until it waits for
 * something else; did that do anything?
 */
static bool
run_saga(const SagaRef *saga, SagaRunResult *result)
{
	SagaGlance	before;
	SagaGlance	after;
	SagaRef		refs[SAGA_MAX_BATCH];
	bool		any = false;
	int			n;

	if (!saga_store_glance(saga->id, &before))
		return false;
	SPI_commit();
	do
	{
		refs[0] = *saga;
		any |= run_refs(refs, 1, result);
		n = saga_store_find_branches(saga->id, refs, SAGA_MAX_BATCH);
		SPI_commit();
	} while (run_refs(refs, n, result));
	/* the end of a child is an event for its parent, with no attempt made */
	return any ||
		(saga_store_glance(saga->id, &after) && after.status != before.status);
}

/*
 * Run a saga and its children, and theirs, until a look at all of them brings
 * nothing about.  Parents come first: one that has just begun a child, or has
 * let it go, finds it further down.
 */
static void
run_tree(const SagaRef *root, SagaRunResult *result)
{
	SagaRef    *tree = palloc(MAX_TREE * sizeof(SagaRef));
	bool		any = true;

	for (int round = 0; any && round < MAX_TREE_ROUNDS; round++)
	{
		int			n = 1;

		any = false;
		tree[0] = *root;
		for (int i = 0; i < n; i++)
		{
			any |= run_saga(&tree[i], result);
			n += saga_store_find_children(tree[i].id, &tree[n], MAX_TREE - n);
			SPI_commit();
		}
		if (n == 1)
			break;				/* nobody can have left it anything to do */
	}
	pfree(tree);
}

/*
 * CALL saga.run(saga_id, INOUT status): advance one saga of the caller's own,
 * with its children, until it is final or waits.
 */
Datum
saga_run(PG_FUNCTION_ARGS)
{
	SagaRunResult result = {0};
	SagaGlance	glance;
	Datum		values[1];
	Saga	   *saga;
	SagaRef		ref;

	saga_argument_require(fcinfo, 0, "saga_id");
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
		run_tree(&ref, &result);
		do_duties(false);
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
	return saga_make_row(fcinfo, values, NULL);
}

/* What one CALL saga.recover() has to do, and what it did. */
typedef struct Recovery
{
	int64		max;			/* advance so many sagas */
	TimestampTz until;			/* begin nothing new from then on */
	SagaRunResult result;
	bool		remaining;		/* one of the two has stopped it */
	int64		leases;			/* that were over and have been ended */
	Oid		   *roles;			/* those with something due, but the caller */
	int			nroles;
	bool		mine;			/* has the caller something due? */
	int64		woken;			/* roles whose workers have been woken */
} Recovery;

/*
 * Run what is due of the current role, up to "max" sagas and until "until".
 * Looks again as long as that brought something about: the end of one saga may
 * have given its place to another.
 */
static void
recover_due(Recovery *recovery)
{
	SagaRunResult *result = &recovery->result;
	bool		complete = false;
	int64		done = 0;
	int64		looked = 0;
	TimestampTz next_due;
	SagaRef		refs[SAGA_MAX_BATCH];

	while (looked < recovery->max && foreground_goes_on())
	{
		int			mine;
		int			n;

		if (complete && result->changed + result->operations == done)
			return;
		if (complete)
			done = result->changed + result->operations;
		n = saga_engine_find_due(&foreground_driver, refs,
								 Min(recovery->max - looked, SAGA_MAX_BATCH),
								 &complete, &next_due);
		CHECK_FOR_INTERRUPTS();
		looked += n;
		mine = n > 0 ? saga_executor_claim(refs, n) : 0;
		if (mine > 0)
			saga_engine_run(&foreground_driver, refs, mine, result);
		if (next_due != DT_NOEND)
			saga_due_at(GetUserId(), next_due);
	}
	saga_engine_find_from_start();
	recovery->remaining = saga_engine_find_due(&foreground_driver, refs, 1,
											   &complete, &next_due) > 0;
	saga_engine_find_from_start();
}

static bool
has_launcher(void)
{
	TimestampTz since;

	return saga_shared_available() && saga_enabled &&
		saga_launcher_pid(&since) != 0;
}

/* Has the current role a worker, or nothing to do for one? */
static bool
is_attended(SagaPoolInfo *pools)
{
	int			n = saga_shared_pools(pools, false);

	for (int i = 0; i < n; i++)
		if (pools[i].database == MyDatabaseId && pools[i].role == GetUserId())
			return pools[i].nworkers > 0 || !pools[i].waits;
	return false;
}

/*
 * Its workers have been woken: is there one, or does one come?  If not, there is
 * a reason, known or not, and what is due has to be done here.
 */
static bool
worker_comes(TimestampTz until)
{
	SagaPoolInfo *pools = palloc(SAGA_MAX_POOLS * sizeof(SagaPoolInfo));
	bool		comes = false;

	until = Min(until, GetCurrentTimestamp() + WORKER_PATIENCE_US);
	while (has_launcher() && saga_pool_blocked(GetUserId()) == NULL)
	{
		comes = is_attended(pools);
		if (comes || GetCurrentTimestamp() >= until)
			break;
		InvalidateCatalogSnapshotConditionally();
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 WORKER_POLL_MS, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
	pfree(pools);
	return comes;
}

/* End the leases that are over, all of them if there is time. */
static void
end_leases(Recovery *recovery)
{
	TimestampTz next;
	TimestampTz now;

	do
	{
		CHECK_FOR_INTERRUPTS();
		now = GetCurrentTimestamp();
		next = saga_engine_expire_leases(&foreground_driver, now,
										 &recovery->leases);
	} while (next <= now && foreground_goes_on());
	saga_duty_at(SAGA_DUTY_LEASES, next);
}

/* Wake the workers of all roles that have something due, and note these. */
static void
wake_due(Recovery *recovery)
{
	int			n = saga_engine_wake_due(&foreground_driver, recovery->roles,
										 MAX_DUE_ROLES);

	for (int i = 0; i < n; i++)
	{
		if (recovery->roles[i] == GetUserId())
			recovery->mine = true;
		else
			recovery->roles[recovery->nroles++] = recovery->roles[i];
	}
}

/* For the other roles, what a coordinator does if they have no worker: what
 * people asked of their sagas, without calling anything.  It may also be of
 * roles that are gone, so that nobody else could. */
static void
apply_messages_of_others(const Recovery *recovery)
{
	if (has_launcher() || !superuser())
		return;
	for (int i = 0; i < recovery->nroles; i++)
		saga_engine_apply_messages(&foreground_driver, recovery->roles[i]);
}

static int
compare_names(const ListCell *a, const ListCell *b)
{
	return strcmp(lfirst(a), lfirst(b));
}

/* Of the other roles, count those whose workers have been woken, and return the
 * names of those that have none and that the caller may know of: text[]. */
static Datum
list_unserved(Recovery *recovery)
{
	List	   *names = NIL;
	Datum	   *values;
	int			n = 0;
	ListCell   *cell;

	for (int i = 0; i < recovery->nroles; i++)
	{
		Oid			role = recovery->roles[i];
		char	   *name = GetUserNameFromId(role, true);

		if (has_launcher() && saga_pool_blocked(role) == NULL)
			recovery->woken++;
		else if (name == NULL ? superuser() :
				 has_privs_of_role(GetUserId(), role) ||
				 saga_owner_has_granted("monitor_privilege"))
			names = lappend(names, name != NULL ? name : psprintf("%u", role));
	}
	list_sort(names, compare_names);
	values = palloc((list_length(names) + 1) * sizeof(Datum));
	foreach(cell, names)
		values[n++] = CStringGetTextDatum(lfirst(cell));
	return PointerGetDatum(construct_array(values, n, TEXTOID, -1, false,
										   TYPALIGN_INT));
}

static void
recover(Recovery *recovery)
{
	end_leases(recovery);
	wake_due(recovery);
	if (recovery->mine && worker_comes(recovery->until))
		recovery->woken = 1;
	else
		recover_due(recovery);
	apply_messages_of_others(recovery);
	saga_engine_send_alerts(&foreground_driver);
	do_duties(true);
}

/*
 * CALL saga.recover(max, time_budget, INOUT operations, INOUT finished, INOUT
 * remaining, INOUT leases, INOUT woken, INOUT unserved): see to it that what is
 * due is done.  Leases that are over are ended and workers woken whosever the
 * sagas are; the caller's own are advanced here if no worker comes.
 */
Datum
saga_recover(PG_FUNCTION_ARGS)
{
	Recovery	recovery = {0};
	Datum		values[6];

	saga_argument_require(fcinfo, 0, "max");
	recovery.max = PG_GETARG_INT64(0);
	if (recovery.max < 1)
		ereport(ERROR,
				errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				errmsg("max must be greater than zero"));
	recovery.until = GetCurrentTimestamp() +
		saga_argument_interval(fcinfo, 1, "time_budget");
	/* an error at its very end would keep all else from being done */
	if (StatementTimeout > 0)
		recovery.until = Min(recovery.until, GetCurrentStatementStartTimestamp() +
							 StatementTimeout * INT64CONST(800));
	recovery.roles = palloc(MAX_DUE_ROLES * sizeof(Oid));
	enter_foreground(fcinfo, "saga.recover()");
	foreground_until = recovery.until;
	PG_TRY();
	{
		recover(&recovery);
	}
	PG_CATCH();
	{
		saga_executor_leave();
		PG_RE_THROW();
	}
	PG_END_TRY();
	leave_foreground();
	values[0] = Int64GetDatum(recovery.result.operations);
	values[1] = Int64GetDatum(recovery.result.finished);
	values[2] = BoolGetDatum(recovery.remaining);
	values[3] = Int64GetDatum(recovery.leases);
	values[5] = list_unserved(&recovery);
	values[4] = Int64GetDatum(recovery.woken);
	return saga_make_row(fcinfo, values, NULL);
}


/* ---- schedules ----------------------------------------------------------------- */

/*
 * saga.cron_database() returns the database in which pg_cron keeps its jobs;
 * NULL if it is not loaded.  The setting is hidden from ordinary roles, whom
 * errors and hints have to tell.
 */
Datum
saga_cron_database(PG_FUNCTION_ARGS)
{
	const char *database = GetConfigOption("cron.database_name", true, false);

	/* without the library it is but a line of the configuration */
	if (database == NULL ||
		(GetConfigOptionFlags("cron.database_name", true) & GUC_CUSTOM_PLACEHOLDER) != 0)
		PG_RETURN_NULL();
	PG_RETURN_TEXT_P(cstring_to_text(database));
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

	saga_check_may_write("saga.adopt()");
	saga_retention_keep_off();
	values[0] = Int64GetDatum(saga_store_adopt(&unbound));
	saga_catalog_adopt();
	saga_queue_adopt();
	saga_server_adopt();
	saga_invariant_adopt();
	saga_alert_adopt();
	saga_locks_adopt();
	saga_upkeep_announce_ready();
	names = palloc((list_length(unbound) + 1) * sizeof(Datum));
	foreach(cell, unbound)
		names[n++] = CStringGetTextDatum(lfirst(cell));
	values[1] = PointerGetDatum(construct_array(names, n, TEXTOID, -1, false,
												TYPALIGN_INT));
	saga_wake_database();
	return saga_make_row(fcinfo, values, NULL);
}
