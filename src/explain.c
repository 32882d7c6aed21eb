/*
 * explain.c
 *		What the views and saga.explain() ask the machine about a saga: which
 *		round of its steps is the present one, and what shape they have; and
 *		shared memory about a server: why a call is not sent to it.
 *
 * Any backend.  Only reads.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "catalog.h"
#include "explain.h"
#include "owner.h"
#include "remotename.h"
#include "server.h"
#include "sstate.h"
#include "store.h"

PG_FUNCTION_INFO_V1(saga_rounds_raw);
PG_FUNCTION_INFO_V1(saga_explain_raw);
PG_FUNCTION_INFO_V1(saga_server_waits_raw);

/* Columns of saga.explain_raw(). */
enum
{
	COL_POSITION,
	COL_KIND,
	COL_AFTER,
	COL_ONLY_IF,
	COL_FOREACH,
	COL_ELEMENTS,
	COL_QUORUM,
	COL_CONFIRMATION,
	COL_RECOVERIES,
	COL_RECOVERED,
	COL_EXCLUSIVE,
	COL_ROUND,
	COL_OFF,
	COL_DONE,
	COL_NOT_TAKEN,
	COL_GOAL,
	COL_SERVER,
	COL_GUARANTEE,
	COL_ACTION,
	COL_COMPENSATION,
	COL_PIVOT,
	COL_ALTERNATIVE,
	COL_CHILD,
	COL_QUEUE,
	NCOLS
};


/* ---- rounds ---------------------------------------------------------------- */

/* The state of a saga that has only just begun, but has gone forward again
 * from its savepoints so often. */
static void
make_state(const SagaRules *rules, ArrayType *recoveries, SagaState *state)
{
	SagaElementState *elements = palloc(rules->nsteps *
										sizeof(SagaElementState));
	Datum	   *values;
	bool	   *nulls;
	int			n;
	int			k = 0;

	state->nsteps = rules->nsteps;
	state->steps = palloc0(rules->nsteps * sizeof(SagaStepState));
	for (int i = 0; i < rules->nsteps; i++)
	{
		state->steps[i].nelements = rules->steps[i].foreach ? -1 : 1;
		state->steps[i].elements = &elements[i];
	}
	if (rules->has_savepoints)
		state->recoveries = palloc0(rules->nsteps * sizeof(int));
	saga_machine_init(rules, state, 0, 0, SAGA_TIME_NEVER);
	if (rules->has_savepoints && recoveries != NULL)
	{
		deconstruct_array(recoveries, INT2OID, sizeof(int16), true,
						  TYPALIGN_SHORT, &values, &nulls, &n);
		for (int i = 0; i < rules->nsteps && k < n; i++)
			if (rules->steps[i].savepoint)
			{
				state->recoveries[i] = nulls[k] ? 0 : DatumGetInt16(values[k]);
				k++;
			}
	}
	saga_machine_loaded(rules, state);
}

/*
 * saga.rounds_raw(definition_id, recoveries): of each step its present round,
 * or -1 less that if it is not on the way that the saga takes.  NULL if there
 * is no such version.
 */
Datum
saga_rounds_raw(PG_FUNCTION_ARGS)
{
	const SagaDefinition *definition;
	SagaState	state = {0};
	Datum	   *rounds;

	if (PG_ARGISNULL(0))
		PG_RETURN_NULL();
	definition = saga_catalog_version(PG_GETARG_INT32(0));
	if (definition == NULL)
		PG_RETURN_NULL();
	make_state(&definition->rules,
			   PG_ARGISNULL(1) ? NULL : PG_GETARG_ARRAYTYPE_P(1), &state);
	rounds = palloc(state.nsteps * sizeof(Datum));
	for (int i = 0; i < state.nsteps; i++)
	{
		int			round = saga_machine_round(&definition->rules, &state, i);

		rounds[i] = Int32GetDatum(state.steps[i].off ? -1 - round : round);
	}
	PG_RETURN_POINTER(construct_array(rounds, state.nsteps, INT4OID,
									  sizeof(int32), true, TYPALIGN_INT));
}


/* ---- the shape of a saga ----------------------------------------------------- */

typedef struct Row
{
	Datum		values[NCOLS];
	bool		nulls[NCOLS];
} Row;

static void
set_column(Row *row, int column, Datum value)
{
	row->values[column] = value;
	row->nulls[column] = false;
}

static void
set_text(Row *row, int column, const char *text)
{
	if (text != NULL)
		set_column(row, column, CStringGetTextDatum(text));
}

/* The names of the steps right before, if that is not just the one before. */
static void
set_after(Row *row, const SagaDefinition *definition, int step)
{
	const SagaStepRule *rule = &definition->rules.steps[step];
	Datum	   *names;

	if (definition->rules.before == NULL)
		return;
	names = palloc((rule->npreds + 1) * sizeof(Datum));
	for (int i = 0; i < rule->npreds; i++)
		names[i] = CStringGetTextDatum(definition->steps[rule->preds[i]].name);
	set_column(row, COL_AFTER,
			   PointerGetDatum(construct_array(names, rule->npreds, TEXTOID, -1,
											   false, TYPALIGN_INT)));
}

static bool
may_begin(const Saga *saga, int step)
{
	const SagaRules *rules = &saga->definition->rules;
	const SagaStepRule *rule = &rules->steps[step];

	if (rules->before == NULL)
		return step == 0 ||
			saga_machine_step_is_done(rules, &saga->state, step - 1);
	for (int i = 0; i < rule->npreds; i++)
		if (!saga_machine_step_is_done(rules, &saga->state, rule->preds[i]))
			return false;
	return true;
}

/* How many elements a step has; -1 if that is not known yet. */
static int
count_elements(Saga *saga, int step)
{
	SagaElementState *elements;
	const char *wrong;

	if (saga->state.steps[step].nelements >= 0)
		return saga->state.steps[step].nelements;
	/* nobody has stored that yet, but what it is made of is there */
	return may_begin(saga, step) ?
		saga_store_expand(saga, step, &wrong, &elements) : -1;
}

/* Was its condition false?  Others are skipped by a person after an attempt,
 * or where a quorum needs them no more. */
static bool
is_not_taken(const Saga *saga, int step)
{
	const SagaOpState *op;

	if (saga->definition->steps[step].condition == NULL ||
		saga->state.steps[step].nelements != 1)
		return false;
	op = &saga->state.steps[step].elements[0].op[SAGA_OPERATION_ACTION];
	return op->status == SAGA_OP_SKIPPED && op->attempts == 0;
}

/* The name of an operation for people, or NULL. */
static const char *
operation_text(const SagaStep *step, SagaOperation operation)
{
	const char *task = step->task[operation];
	SagaRemoteName name;

	if (task == NULL)
		return step->function[operation];
	if (step->kind == SAGA_KIND_REMOTE &&
		saga_remote_name_parse(task, &name) == NULL)
		return saga_remote_name_text(&name);
	return task;
}

/* How often a call has its effect there, as far as somebody has seen what is
 * there: the role of the saga if it was one who has; NULL = nobody. */
static const char *
guarantee_text(const Saga *saga, const SagaStep *step)
{
	const SagaServerQueue *queue;
	int			once;

	if (step->kind != SAGA_KIND_REMOTE)
		return NULL;
	queue = saga_server_find(step->server, saga->role);
	once = queue != NULL && queue->once >= 0 ? queue->once :
		saga_server_once(step->server);
	return once < 0 ? NULL : once > 0 ? "once" : "at least once";
}

static void
fill_row(Row *row, Saga *saga, int i)
{
	const SagaDefinition *definition = saga->definition;
	const SagaStepRule *rule = &definition->rules.steps[i];
	const SagaStep *step = &definition->steps[i];

	memset(row->values, 0, sizeof(row->values));
	memset(row->nulls, true, sizeof(row->nulls));
	set_column(row, COL_POSITION, Int32GetDatum(i + 1));
	set_text(row, COL_KIND, saga_step_kind_name(step->kind));
	set_after(row, definition, i);
	set_text(row, COL_ONLY_IF, step->condition);
	if (rule->foreach)
	{
		int			elements = count_elements(saga, i);

		set_text(row, COL_FOREACH, step->foreach.text);
		if (elements >= 0)
			set_column(row, COL_ELEMENTS, Int32GetDatum(elements));
		if (rule->quorum > 0)
			set_column(row, COL_QUORUM, Int32GetDatum(rule->quorum));
	}
	set_text(row, COL_CONFIRMATION,
			 operation_text(step, SAGA_OPERATION_CONFIRMATION));
	if (rule->savepoint)
	{
		set_column(row, COL_RECOVERIES, Int32GetDatum(rule->recoveries));
		set_column(row, COL_RECOVERED, Int32GetDatum(saga->state.recoveries[i]));
	}
	set_text(row, COL_EXCLUSIVE, step->exclusive.text);
	set_column(row, COL_ROUND,
			   Int32GetDatum(saga_machine_round(&definition->rules,
												&saga->state, i)));
	set_column(row, COL_OFF, BoolGetDatum(saga->state.steps[i].off));
	set_column(row, COL_DONE,
			   BoolGetDatum(saga_machine_step_is_done(&definition->rules,
													  &saga->state, i)));
	set_column(row, COL_NOT_TAKEN, BoolGetDatum(is_not_taken(saga, i)));
	set_column(row, COL_GOAL, BoolGetDatum(saga->state.backward &&
										   saga->state.goal == i));
	set_text(row, COL_SERVER, step->server);
	set_text(row, COL_GUARANTEE, guarantee_text(saga, step));
	set_text(row, COL_ACTION, operation_text(step, SAGA_OPERATION_ACTION));
	set_text(row, COL_COMPENSATION,
			 operation_text(step, SAGA_OPERATION_COMPENSATION));
	set_column(row, COL_PIVOT, BoolGetDatum(rule->pivot));
	if (rule->savepoint && rule->alternative >= 0)
		set_text(row, COL_ALTERNATIVE,
				 definition->steps[rule->alternative].name);
	set_text(row, COL_CHILD, step->child);
	set_text(row, COL_QUEUE, step->queue);
}

/*
 * saga.explain_raw(saga_id): a row for each step.  None if the saga is not for
 * the current user to see, or cannot be read.
 */
Datum
saga_explain_raw(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	Saga	   *saga;
	Row			row;

	InitMaterializedSRF(fcinfo, 0);
	if (PG_ARGISNULL(0))
		return (Datum) 0;
	saga = saga_store_peek(PG_GETARG_INT64(0));
	if (saga == NULL || saga->broken != NULL ||
		(!has_privs_of_role(GetUserId(), saga->role) &&
		 !saga_owner_has_granted("monitor_privilege")))
		return (Datum) 0;
	for (int i = 0; i < saga->state.nsteps; i++)
	{
		fill_row(&row, saga, i);
		tuplestore_putvalues(result->setResult, result->setDesc,
							 row.values, row.nulls);
	}
	return (Datum) 0;
}


/* ---- why a call waits ------------------------------------------------------- */

/* As the session wants it. */
static const char *
time_text(TimestampTz time)
{
	return DatumGetCString(DirectFunctionCall1(timestamptz_out,
											   TimestampTzGetDatum(time)));
}

/* ": <the first line of it>", or nothing. */
static char *
error_text(const char *error)
{
	int			length = strcspn(error, "\n");

	return length == 0 ? "" : psprintf(": %.*s", length, error);
}

/* Until then it is left alone, for its failures. */
static const char *
breaker_text(const SagaQueueInfo *queue, const SagaServerInfo *server)
{
	return psprintf("its breaker is open until %s%s",
					time_text(queue->breaker_until),
					error_text(server->last_error));
}

static const char *
server_text(const SagaServerInfo *server)
{
	switch (server->state)
	{
		case SAGA_SERVER_PAUSING:
			return psprintf("it cannot be reached, next try at %s%s",
							time_text(server->retry_at),
							error_text(server->last_error));
		case SAGA_SERVER_CONNECTING:
			return "it is being connected to";
		case SAGA_SERVER_IDLE:
		case SAGA_SERVER_CONNECTED:
			break;
	}
	return "to be sent";
}

/*
 * saga.server_waits_raw(queue_id): why a call that is ready is not sent.  NULL
 * if there is no such server and role, or it is not for the current user to
 * see.
 */
Datum
saga_server_waits_raw(PG_FUNCTION_ARGS)
{
	int32		id = PG_GETARG_INT32(0);
	const SagaServerQueue *queue = saga_server_queue_by_id(id);
	SagaQueueInfo info = {0};
	SagaServerInfo server = {0};
	const char *text;

	if (queue == NULL ||
		(!has_privs_of_role(GetUserId(), queue->role) &&
		 !saga_owner_has_granted("monitor_privilege")))
		PG_RETURN_NULL();
	(void) saga_qstate_info(id, &info);
	(void) saga_sstate_info(id, &server);
	if (queue->queue.paused)
		text = "it is paused";
	else if (info.breaker == SAGA_BREAKER_OPEN)
		text = breaker_text(&info, &server);
	else if (info.breaker == SAGA_BREAKER_HALF_OPEN &&
			 server.state != SAGA_SERVER_PAUSING)
		text = "its breaker is half open: another call is tried";
	else
		text = server_text(&server);
	PG_RETURN_TEXT_P(cstring_to_text(text));
}
