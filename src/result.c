/*
 * result.c
 *		The function behind column "result" of view saga.sagas: the result of
 *		the last step of a saga that has succeeded.
 *
 * It is a function since a sub-query of the view, which is made for few of its
 * rows, would be taken to be made for all of them: the planner would have every
 * query of the view compiled.
 *
 * Any backend, also in recovery; only reads, with the snapshot of the query.
 * Who may use the view may call the function too, so it asks itself whose saga
 * that is.
 */
#include "postgres.h"

#include "fmgr.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/snapmgr.h"

#include "catalog.h"
#include "explain.h"
#include "owner.h"
#include "role.h"
#include "tables.h"

PG_FUNCTION_INFO_V1(saga_result_raw);

/* The elements of one step that have been begun, in order; of a step that is no
 * foreach step one. */
typedef struct StepResult
{
	int			step;			/* -1 = none */
	bool		succeeded;		/* of any element */
	int			n;
	int			size;
	Jsonb	  **values;			/* NULL = it has none, or did not succeed */
} StepResult;

/* What is known while the rows of a saga's operations are read. */
typedef struct Search
{
	const SagaNames *names;
	ArrayType  *rounds;			/* of the steps; NULL = all are in their first */
	StepResult	current;		/* the step whose rows come */
	StepResult	last;			/* the last one before that has succeeded */
} Search;

static int
present_round(const Search *search, int step)
{
	/* one that is not on the way has a negative one, which no row has */
	if (search->rounds == NULL)
		return 0;
	if (step >= ARR_DIMS(search->rounds)[0])
		return -1;
	return ((int32 *) ARR_DATA_PTR(search->rounds))[step];
}

static void
end_step(Search *search)
{
	if (search->current.succeeded)
		search->last = search->current;
	search->current = (StepResult)
	{
		.step = -1
	};
}

static void
add_value(StepResult *result, Jsonb *value)
{
	if (result->n == result->size)
	{
		result->size = Max(result->size * 2, 8);
		result->values = result->values == NULL ?
			palloc(result->size * sizeof(Jsonb *)) :
			repalloc(result->values, result->size * sizeof(Jsonb *));
	}
	result->values[result->n++] = value;
}

/* Rows come by step, and among those of actions by element. */
static void
look_at_operation(TupleTableSlot *slot, void *arg)
{
	Search	   *search = arg;
	Datum	   *values = slot->tts_values;
	int			step = DatumGetInt16(values[STEP_STEP]);
	bool		succeeded;

	if (DatumGetObjectId(values[STEP_OPERATION]) !=
		search->names->operation[SAGA_OPERATION_ACTION] ||
		DatumGetInt16(values[STEP_ROUND]) != present_round(search, step))
		return;
	if (search->current.step != step)
	{
		end_step(search);
		search->current.step = step;
	}
	succeeded = DatumGetObjectId(values[STEP_STATUS]) ==
		search->names->op_status[SAGA_OP_SUCCEEDED] &&
		!DatumGetBool(values[STEP_SURPLUS]);
	search->current.succeeded |= succeeded;
	add_value(&search->current, succeeded && !slot->tts_isnull[STEP_RESULT] ?
			  DatumGetJsonbPCopy(values[STEP_RESULT]) : NULL);
}

static Jsonb *
make_array(const StepResult *result)
{
	JsonbParseState *state = NULL;

	pushJsonbValue(&state, WJB_BEGIN_ARRAY, NULL);
	for (int i = 0; i < result->n; i++)
	{
		Jsonb	   *value = result->values[i];
		JsonbValue	item = {.type = jbvNull};

		if (value != NULL &&
			!(JB_ROOT_IS_SCALAR(value) &&
			  JsonbExtractScalar(&value->root, &item)))
			JsonbToJsonbValue(value, &item);
		pushJsonbValue(&state, WJB_ELEM, &item);
	}
	return JsonbValueToJsonb(pushJsonbValue(&state, WJB_END_ARRAY, NULL));
}

/* May the current user see the saga whose row this is? */
static bool
is_visible(const SagaNames *names, TupleTableSlot *slot)
{
	Oid			role = DatumGetObjectId(slot->tts_values[SAGA_ROLE]);
	SagaRoleRef ref = {role, NULL};

	if (saga_owner_has_granted("monitor_privilege"))
		return true;
	if (memcmp(DatumGetUUIDP(slot->tts_values[SAGA_COORDINATOR]),
			   &names->coordinator, UUID_LEN) == 0)
		return has_privs_of_role(GetUserId(), role);
	ref.name = TextDatumGetCString(slot->tts_values[SAGA_ROLE_NAME]);
	return saga_role_has_privileges(GetUserId(), &ref);
}

/*
 * The result of a saga that is in this leaf; NULL if it has none, or none yet,
 * or is not for the current user to see.
 */
static Jsonb *
find_result(SagaTables *tables, const SagaNames *names, Snapshot snapshot,
			int64 id, int slot)
{
	SagaTable  *table = saga_tables_get(tables, SAGA_TABLE_SAGA, slot);
	const SagaDefinition *definition;
	Search		search = {.names = names,.current.step = -1,.last.step = -1};
	Datum	   *values = table->slot->tts_values;
	Oid			status;

	if (!saga_table_fetch_id(table, snapshot, id))
		return NULL;
	status = DatumGetObjectId(values[SAGA_STATUS]);
	if ((status != names->status[SAGA_STATUS_COMPLETED] &&
		 status != names->status[SAGA_STATUS_HELD]) ||
		!is_visible(names, table->slot))
		return NULL;
	definition = saga_catalog_version(DatumGetInt32(values[SAGA_DEFINITION_ID]));
	if (definition == NULL)
		return NULL;
	if (!table->slot->tts_isnull[SAGA_RECOVERIES])
		search.rounds =
			DatumGetArrayTypeP(DirectFunctionCall2(saga_rounds_raw,
												   values[SAGA_DEFINITION_ID],
												   values[SAGA_RECOVERIES]));
	saga_table_scan(saga_tables_get(tables, SAGA_TABLE_STEP, slot), snapshot, id,
					look_at_operation, &search);
	end_step(&search);
	if (search.last.step < 0)
		return NULL;
	if (search.last.step < definition->rules.nsteps &&
		definition->rules.steps[search.last.step].foreach)
		return make_array(&search.last);
	return search.last.values[0];
}

/* saga.result_raw(saga_id, slot) */
Datum
saga_result_raw(PG_FUNCTION_ARGS)
{
	int64		id = PG_GETARG_INT64(0);
	int			slot = PG_GETARG_INT16(1);
	const SagaNames *names = saga_tables_names();
	SagaTables	tables = {.lockmode = AccessShareLock};
	Jsonb	   *result;

	if (slot < 0 || slot >= SAGA_NSLOTS)
		PG_RETURN_NULL();
	result = find_result(&tables, names, GetActiveSnapshot(), id, slot);
	saga_tables_close(&tables);
	if (result == NULL)
		PG_RETURN_NULL();
	PG_RETURN_JSONB_P(result);
}
