/*
 * store.c
 *		The tables of sagas.
 *
 * This file owns every access to saga.saga, step, attempt, message, branch,
 * history and key.  Two kinds of access stand side by side:
 *
 * - The hot path (begin, lock, load, save, and what sagas tell each other)
 *	 goes row by row, without a plan: see tables.c.
 * - Everything else is SQL, run as the owner (owner.c), prepared once.
 *
 * How a batch stays right: saga_store_lock() first locks the rows of sagas and
 * branches, each in its newest version, and then, with a newer snapshot, reads
 * what hangs on them.  Under one snapshot a row that another executor has just
 * moved on would be seen new beside its old steps, and a step would be run
 * twice.  What a caller remembers of a saga counts only when the row has the
 * same turn.  The primary keys of step and attempt are the backstop.
 *
 * Who has the row of a saga may change all that hangs on it.  Who has the row
 * of a branch may only take that away and send the outcome: so of a saga there
 * is one writer at any time, however many work for it.
 *
 * A process that dies anywhere here has changed nothing that was not
 * committed, and holds nothing but its transaction's locks.
 */
#include "postgres.h"

#include "access/detoast.h"
#include "access/htup_details.h"
#include "access/sysattr.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "commands/sequence.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "storage/proc.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "catalog.h"
#include "json.h"
#include "owner.h"
#include "statement.h"
#include "store.h"
#include "tables.h"

/* So many bytes of input are loaded for one batch. */
#define MAX_BATCH_INPUT		(64 * 1024 * 1024)

/* So many bytes of results a foreach step may have; a jsonb holds no more
 * than 256 MB. */
#define MAX_ARRAY_SIZE		(200 * 1024 * 1024)

/* Sagas with more elements are loaded without asserting what the machine's
 * rules say about their rows, unless assertions are on. */
#define MAX_CHECKED			2000

/* So many random tokens are made at a time. */
#define TOKEN_POOL			32

/* The array that a foreach step goes through. */
typedef struct SagaElements
{
	JsonbContainer *array;		/* in the input or a result; NULL = there is
								 * none */
	Jsonb	  **values;			/* of the elements that were asked for; NULL
								 * before the first was */
} SagaElements;

/* What tables.c has looked up; set by look_up_names(). */
static const SagaNames *names;

/* To be called first by whoever comes from outside. */
static void
look_up_names(void)
{
	names = saga_tables_names();
}


/* ---- values ------------------------------------------------------------ */

static void
put_text(Datum *values, bool *nulls, int column, const char *text)
{
	nulls[column] = text == NULL;
	if (text != NULL)
		values[column] = CStringGetTextDatum(text);
}

static void
put_time(Datum *values, bool *nulls, int column, TimestampTz time)
{
	nulls[column] = time == 0;
	values[column] = TimestampTzGetDatum(time);
}

/* An id; 0 is none. */
static void
put_id(Datum *values, bool *nulls, int column, int64 value)
{
	nulls[column] = value == 0;
	values[column] = Int64GetDatum(value);
}

static void
put_jsonb(Datum *values, bool *nulls, int column, const Jsonb *jsonb)
{
	nulls[column] = jsonb == NULL;
	values[column] = PointerGetDatum(jsonb);
}

static char *
get_text(TupleTableSlot *slot, int column)
{
	return slot->tts_isnull[column] ? NULL :
		TextDatumGetCString(slot->tts_values[column]);
}

static TimestampTz
get_time(TupleTableSlot *slot, int column)
{
	return slot->tts_isnull[column] ? 0 :
		DatumGetTimestampTz(slot->tts_values[column]);
}

static int64
get_id(TupleTableSlot *slot, int column)
{
	return slot->tts_isnull[column] ? 0 :
		DatumGetInt64(slot->tts_values[column]);
}

static Jsonb *
get_jsonb(TupleTableSlot *slot, int column)
{
	return slot->tts_isnull[column] ? NULL :
		DatumGetJsonbPCopy(slot->tts_values[column]);
}

/* NULL stands for "never" where the machine has a number. */
static SagaTime
time_or_never(TupleTableSlot *slot, int column)
{
	return slot->tts_isnull[column] ? SAGA_TIME_NEVER :
		DatumGetTimestampTz(slot->tts_values[column]);
}


/* ---- begin ------------------------------------------------------------ */

/* What the row of a new saga is made of; its role is the current user. */
typedef struct NewSaga
{
	int64		id;
	const SagaDefinition *definition;
	Jsonb	   *input;
	const char *key;
	TimestampTz start_at;		/* 0 = at once */
	TimestampTz deadline;		/* 0 = none */
	const char *traceparent;
	const Saga *parent;			/* NULL = none in this database */
	int			parent_step;
	int			parent_element;
	bool		has_far_parent; /* it has one in another, and ... */
	int			depth;			/* ... so many sagas are above it */
} NewSaga;

static SagaStatement claim_key = {
	"INSERT INTO saga.key (definition, key, saga_id, slot)"
	" VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING",
	4, {TEXTOID, TEXTOID, INT8OID, INT2OID}, NULL
};
static SagaStatement read_key = {
	"SELECT k.saga_id,"
	" (SELECT s.due_at FROM saga.saga s WHERE s.id = k.saga_id) IS NULL,"
	" NOT EXISTS (SELECT FROM saga.saga s WHERE s.id = k.saga_id)"
	" FROM saga.key k WHERE k.definition = $1 AND k.key = $2",
	2, {TEXTOID, TEXTOID}, NULL
};
static SagaStatement take_key = {
	"UPDATE saga.key SET saga_id = $3, slot = $4"
	" WHERE definition = $1 AND key = $2 AND saga_id = $5",
	5, {TEXTOID, TEXTOID, INT8OID, INT2OID, INT8OID}, NULL
};

static SagaStatement find_key = {
	"SELECT k.saga_id FROM saga.key k WHERE k.definition = $1 AND k.key = $2",
	2, {TEXTOID, TEXTOID}, NULL
};

static void
report_duplicate_key(const SagaDefinition *definition, const char *key,
					 int64 existing)
{
	ereport(ERROR,
			errcode(ERRCODE_UNIQUE_VIOLATION),
			errmsg("saga definition \"%s\" already has a saga with key \"%s\"",
				   definition->name, key),
			errdetail("It is saga %lld.", (long long) existing));
}

/*
 * Give the key to saga "id".  Returns 0, or the id of the saga that keeps it.
 * Another session that is about to take the same key is waited for: by the
 * insertion, which sees the conflict in the unique index.  What it left is
 * read by a second statement, with a newer snapshot.
 */
static int64
settle_key(const SagaDefinition *definition, const char *key, int64 id,
		   SagaOnDuplicate on_duplicate)
{
	Datum		values[5];
	SagaOwnerSwitch owner;
	int64		existing = 0;
	bool		ended = false;
	bool		gone = false;	/* it has been removed, and left its key */

	values[0] = CStringGetTextDatum(definition->name);
	values[1] = CStringGetTextDatum(key);
	values[2] = Int64GetDatum(id);
	values[3] = Int16GetDatum(names->slot);
	saga_owner_enter_patiently(&owner);
	for (;;)
	{
		bool		isnull;

		CHECK_FOR_INTERRUPTS();
		if (saga_statement_run(&claim_key, values, NULL, false, 0) == 1)
		{
			existing = 0;
			break;
		}
		if (saga_statement_run(&read_key, values, NULL, false, 1) == 0)
			continue;			/* deleted meanwhile */
		existing = DatumGetInt64(saga_statement_datum(0, 1, &isnull));
		ended = DatumGetBool(saga_statement_datum(0, 2, &isnull));
		gone = DatumGetBool(saga_statement_datum(0, 3, &isnull));
		if (!gone && (on_duplicate != SAGA_DUPLICATE_NEW || !ended))
			break;
		values[4] = Int64GetDatum(existing);
		if (saga_statement_run(&take_key, values, NULL, false, 0) == 1)
		{
			existing = 0;
			break;
		}
	}
	saga_owner_leave(&owner);
	if (existing != 0 && on_duplicate == SAGA_DUPLICATE_ERROR)
		report_duplicate_key(definition, key, existing);
	return existing;
}

/* Many at a time: a call of the generator costs as much as the rest of a row. */
void
saga_store_make_token(pg_uuid_t *token)
{
	static pg_uuid_t pool[TOKEN_POOL];
	static int	nleft = 0;

	if (nleft == 0)
	{
		if (!pg_strong_random(pool, sizeof(pool)))
			ereport(ERROR,
					errcode(ERRCODE_INTERNAL_ERROR),
					errmsg("could not generate random values"));
		nleft = TOKEN_POOL;
	}
	*token = pool[--nleft];
	memset(&pool[nleft], 0, UUID_LEN);
}

/* Insert the row, and have a worker look at it once that is committed. */
static void
insert_saga(const NewSaga *new)
{
	TimestampTz now = GetCurrentTimestamp();
	Oid			role = GetUserId();
	bool		later = new->start_at > now;
	const char *waiting_for = later ? "start time" : NULL;
	SagaCounted as = {later ? SAGA_STATUS_SCHEDULED : SAGA_STATUS_RUNNING,
	saga_stats_reason(waiting_for)};
	Datum		values[SAGA_NCOLUMNS];
	bool		nulls[SAGA_NCOLUMNS] = {false};
	pg_uuid_t	token;
	SagaTable  *table;

	saga_store_make_token(&token);
	values[SAGA_ID] = Int64GetDatum(new->id);
	values[SAGA_DUE_AT] = TimestampTzGetDatum(later ? new->start_at : now);
	values[SAGA_CREATED_AT] = TimestampTzGetDatum(now);
	put_time(values, nulls, SAGA_START_AT, new->start_at);
	nulls[SAGA_STARTED_AT] = true;
	nulls[SAGA_FINISHED_AT] = true;
	put_time(values, nulls, SAGA_DEADLINE, new->deadline);
	if (new->deadline != 0)
		saga_duty_at(SAGA_DUTY_CONDITIONS, new->deadline + SAGA_OVERDUE_GRACE);
	values[SAGA_TOKEN] = UUIDPGetDatum(&token);
	values[SAGA_COORDINATOR] = UUIDPGetDatum(&names->coordinator);
	values[SAGA_ROLE] = ObjectIdGetDatum(role);
	put_id(values, nulls, SAGA_PARENT_ID,
		   new->parent ? new->parent->ref.id :
		   new->has_far_parent ? SAGA_FAR_PARENT : 0);
	put_id(values, nulls, SAGA_ROOT_ID, new->parent ? new->parent->root_id : 0);
	values[SAGA_DEFINITION_ID] = Int32GetDatum(new->definition->id);
	values[SAGA_TURN] = Int32GetDatum(0);
	values[SAGA_STATUS] = ObjectIdGetDatum(names->status[as.status]);
	values[SAGA_PARENT_ELEMENT] = Int32GetDatum(new->parent_element);
	nulls[SAGA_PARENT_ELEMENT] = new->parent == NULL;
	values[SAGA_SLOT] = Int16GetDatum(names->slot);
	values[SAGA_STEP] = Int16GetDatum(0);
	values[SAGA_GOAL] = Int16GetDatum(-1);
	values[SAGA_PARENT_STEP] = Int16GetDatum(new->parent_step);
	nulls[SAGA_PARENT_STEP] = new->parent == NULL;
	values[SAGA_DEPTH] = Int16GetDatum(new->parent ? new->parent->depth + 1 :
									   new->depth);
	values[SAGA_BACKWARD] = BoolGetDatum(false);
	values[SAGA_SUSPECT] = BoolGetDatum(false);
	values[SAGA_RELEASED] = BoolGetDatum(false);
	nulls[SAGA_RECOVERIES] = true;
	put_text(values, nulls, SAGA_ROLE_NAME, GetUserNameFromId(role, false));
	put_text(values, nulls, SAGA_KEY, new->key);
	put_text(values, nulls, SAGA_WAITING_FOR, waiting_for);
	put_text(values, nulls, SAGA_TRACEPARENT, new->traceparent);
	put_jsonb(values, nulls, SAGA_INPUT, new->input);
	nulls[SAGA_ERROR] = true;

	table = saga_table_open(SAGA_TABLE_SAGA, names->slot, RowExclusiveLock);
	saga_table_insert(table, values, nulls);
	saga_table_close(table);
	saga_stats_begun(new->definition->name, new->definition->id, as);
	saga_wake_at_commit(role, new->id, names->slot, new->definition->id, false);
}

static void
require_no_copy(void)
{
	look_up_names();
	if (saga_tables_is_copy())
		ereport(ERROR,
				errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				errmsg("cannot begin a saga in a copy of a database"),
				errdetail("This database was made from the files of another one, whose sagas it must not run."),
				errhint("CALL saga.adopt() makes it a coordinator of its own."));
}

int64
saga_store_begin(const SagaDefinition *definition, Jsonb *input,
				 const char *key, TimestampTz start_at, TimestampTz deadline,
				 const char *traceparent, SagaOnDuplicate on_duplicate)
{
	NewSaga		new = {
		.definition = definition,
		.input = input,
		.key = key,
		.start_at = start_at,
		.deadline = deadline,
		.traceparent = traceparent
	};

	require_no_copy();
	new.id = nextval_internal(names->id_sequence, false);
	if (key != NULL)
	{
		int64		existing = settle_key(definition, key, new.id, on_duplicate);

		if (existing != 0)
			return existing;
	}
	insert_saga(&new);
	return new.id;
}

int64
saga_store_begin_child(const Saga *parent, int step, int element,
					   const SagaDefinition *definition, Jsonb *input,
					   TimestampTz deadline, const char *traceparent)
{
	NewSaga		new = {
		.definition = definition,
		.input = input,
		.deadline = deadline,
		.traceparent = traceparent,
		.parent = parent,
		.parent_step = step,
		.parent_element = element
	};

	Assert(GetCurrentTransactionNestLevel() == 1);
	Assert(parent->branch == NULL && parent->role == GetUserId());
	look_up_names();
	new.id = nextval_internal(names->id_sequence, false);
	(void) saga_tables_push_snapshot();
	insert_saga(&new);
	PopActiveSnapshot();
	return new.id;
}

int64
saga_store_begin_far_child(const SagaDefinition *definition, Jsonb *input,
						   TimestampTz deadline, const char *traceparent,
						   int depth)
{
	NewSaga		new = {
		.definition = definition,
		.input = input,
		.deadline = deadline,
		.traceparent = traceparent,
		.has_far_parent = true,
		.depth = depth
	};

	require_no_copy();
	new.id = nextval_internal(names->id_sequence, false);
	insert_saga(&new);
	return new.id;
}

int64
saga_store_find_key(const char *definition, const char *key)
{
	Datum		values[2];
	SagaOwnerSwitch owner;
	int64		id = 0;
	bool		isnull;

	values[0] = CStringGetTextDatum(definition);
	values[1] = CStringGetTextDatum(key);
	saga_owner_enter(&owner);
	if (saga_statement_run(&find_key, values, NULL, false, 1) > 0)
		id = DatumGetInt64(saga_statement_datum(0, 1, &isnull));
	saga_owner_leave(&owner);
	return id;
}


/* ---- the elements of foreach steps -------------------------------------- */

static int
memorize_array(Saga *saga, int step, const char **wrong)
{
	const SagaStepRule *rule = &saga->definition->rules.steps[step];
	JsonbValue	value;
	int			n;

	if (!saga_path_find(&saga->definition->steps[step].foreach, saga->input,
						(const Jsonb *const *) saga->results, NULL, &value))
		*wrong = "there is no value";
	else if (!saga_json_is_array(&value))
		*wrong = "it is not an array";
	else
	{
		n = JsonContainerSize(value.val.binary.data);
		if (n > SAGA_MAX_ELEMENTS)
			*wrong = psprintf("it has %d elements, more than %d", n,
							  SAGA_MAX_ELEMENTS);
		else if (n < rule->quorum)
			*wrong = psprintf("it has %d element%s, fewer than the quorum of %d",
							  n, n == 1 ? "" : "s", rule->quorum);
		else
		{
			saga->elements[step].array = value.val.binary.data;
			return n;
		}
	}
	return -1;
}

int
saga_store_expand(Saga *saga, int step, const char **wrong,
				  SagaElementState **elements)
{
	MemoryContext caller = MemoryContextSwitchTo(saga->memory);
	int			n;

	Assert(saga->definition->rules.steps[step].foreach);
	memset(&saga->elements[step], 0, sizeof(SagaElements));
	n = memorize_array(saga, step, wrong);
	/* an empty array has an address too */
	saga->ops[step] = palloc0(Max(abs(n), 1) * sizeof(SagaOpRows));
	*elements = palloc0(Max(abs(n), 1) * sizeof(SagaElementState));
	MemoryContextSwitchTo(caller);
	return n;
}

Jsonb *
saga_store_element(const Saga *saga, int step, int element)
{
	SagaElements *elements = &saga->elements[step];
	MemoryContext caller;

	if (elements->array == NULL || element < 0 ||
		(uint32) element >= JsonContainerSize(elements->array))
		return NULL;
	caller = MemoryContextSwitchTo(saga->memory);
	if (elements->values == NULL)
		elements->values = palloc0(JsonContainerSize(elements->array) *
								   sizeof(Jsonb *));
	/* a look-up counts from the last of every 32 that has its offset stored */
	if (elements->values[element] == NULL)
		elements->values[element] =
			JsonbValueToJsonb(getIthJsonbValueFromContainer(elements->array,
															element));
	MemoryContextSwitchTo(caller);
	return elements->values[element];
}

static void
add_to_array(JsonbParseState **writer, Jsonb *result)
{
	JsonbValue	item = {.type = jbvNull};

	if (result != NULL && !JsonbExtractScalar(&result->root, &item))
		JsonbToJsonbValue(result, &item);
	(void) pushJsonbValue(writer, WJB_ELEM, &item);
}

/*
 * The results of a foreach step as one array, a null for each element that
 * has none.  Elements that succeed once the step is done are surplus, so it
 * never becomes another.  NULL if that would be too large for a jsonb.
 */
static Jsonb *
collect_results(const Saga *saga, int step)
{
	const SagaStepState *state = &saga->state.steps[step];
	JsonbParseState *writer = NULL;
	Size		size = 0;

	(void) pushJsonbValue(&writer, WJB_BEGIN_ARRAY, NULL);
	for (int element = 0; element < state->nelements; element++)
	{
		const SagaOpState *op =
			&state->elements[element].op[SAGA_OPERATION_ACTION];
		Jsonb	   *result =
			saga->ops[step][element][SAGA_OPERATION_ACTION].result;

		if (op->status != SAGA_OP_SUCCEEDED || op->surplus)
			result = NULL;
		size += sizeof(JEntry) + (result ? VARSIZE(result) : 0);
		if (size > MAX_ARRAY_SIZE)
			return NULL;
		add_to_array(&writer, result);
	}
	return JsonbValueToJsonb(pushJsonbValue(&writer, WJB_END_ARRAY, NULL));
}

void
saga_store_settle_results(Saga *saga)
{
	const SagaRules *rules = &saga->definition->rules;
	MemoryContext caller = MemoryContextSwitchTo(saga->memory);

	for (int step = 0; step < rules->nsteps; step++)
	{
		const SagaStepState *state = &saga->state.steps[step];

		if (!rules->steps[step].foreach || saga->results[step] != NULL ||
			state->off || state->nelements < 0 ||
			!saga_machine_step_is_done(rules, &saga->state, step))
			continue;
		saga->results[step] = collect_results(saga, step);
		if (saga->results[step] == NULL)
			saga->broken = "the results of the elements of a step are too large";
	}
	MemoryContextSwitchTo(caller);
}


/* ---- lock and load ---------------------------------------------------- */

/*
 * Look in all leaves for the row of a saga but in "except", the newest leaf
 * first: most that are asked for are young.  Returns the table, with the row in
 * its slot, or NULL.
 */
static SagaTable *
find_row_elsewhere(SagaTables *tables, Snapshot snapshot, int64 id, int except)
{
	for (int i = 0; i < SAGA_NSLOTS; i++)
	{
		int			leaf = (names->slot + SAGA_NSLOTS - i) % SAGA_NSLOTS;
		SagaTable  *table;

		if (leaf == except)
			continue;
		table = saga_tables_get(tables, SAGA_TABLE_SAGA, leaf);
		if (saga_table_fetch_id(table, snapshot, id))
			return table;
	}
	return NULL;
}

static SagaTable *
find_row(SagaTables *tables, Snapshot snapshot, int64 id)
{
	return find_row_elsewhere(tables, snapshot, id, -1);
}

SagaTable *
saga_store_locate(SagaTables *tables, Snapshot snapshot, int64 id, int16 slot)
{
	SagaTable  *table;

	look_up_names();
	table = saga_tables_get(tables, SAGA_TABLE_SAGA, slot);
	if (saga_table_fetch_id(table, snapshot, id))
		return table;
	return find_row_elsewhere(tables, snapshot, id, slot);
}

static int
compare_by_id(const void *a, const void *b, void *arg)
{
	const SagaRef *refs = arg;
	int64		left = refs[*(const int *) a].id;
	int64		right = refs[*(const int *) b].id;

	return left < right ? -1 : left > right;
}

/* Is this row of a saga one that this executor may work on? */
static bool
row_is_ours(TupleTableSlot *slot, Oid role, const char *role_name)
{
	if (memcmp(DatumGetUUIDP(slot->tts_values[SAGA_COORDINATOR]),
			   &names->coordinator, UUID_LEN) != 0)
		return false;			/* of another coordinator: see saga.adopt() */
	if (!OidIsValid(role))
		return true;
	return role == DatumGetObjectId(slot->tts_values[SAGA_ROLE]) &&
		strcmp(role_name, get_text(slot, SAGA_ROLE_NAME)) == 0;
}

/* Room for all steps; those of foreach get theirs by saga_store_expand(). */
static void
prepare_memory(Saga *saga)
{
	const SagaRules *rules = &saga->definition->rules;
	int			nsteps = rules->nsteps;
	SagaElementState *elements = palloc0(nsteps * sizeof(SagaElementState));
	SagaOpRows *ops = palloc0(nsteps * sizeof(SagaOpRows));

	saga->state.nsteps = nsteps;
	saga->state.steps = palloc0(nsteps * sizeof(SagaStepState));
	saga->ops = palloc0(nsteps * sizeof(SagaOpRows *));
	saga->results = palloc0(nsteps * sizeof(Jsonb *));
	saga->rounds = palloc0(nsteps * sizeof(int));
	saga->elements = palloc0(nsteps * sizeof(SagaElements));
	if (rules->has_savepoints)
		saga->state.recoveries = palloc0(nsteps * sizeof(int));
	for (int step = 0; step < nsteps; step++)
	{
		if (rules->steps[step].foreach)
			saga->state.steps[step].nelements = -1;
		else
		{
			saga->state.steps[step].nelements = 1;
			saga->state.steps[step].elements = &elements[step];
			saga->ops[step] = &ops[step];
		}
	}
}

/* Make a Saga of the row in "slot"; its steps come with load_steps(). */
static Saga *
read_saga(TupleTableSlot *slot)
{
	Saga	   *saga = palloc0(sizeof(Saga));
	Datum	   *values = slot->tts_values;

	saga->memory = CurrentMemoryContext;
	saga->ref.id = DatumGetInt64(values[SAGA_ID]);
	saga->ref.slot = DatumGetInt16(values[SAGA_SLOT]);
	saga->ref.suspect = DatumGetBool(values[SAGA_SUSPECT]);
	saga->suspect = saga->ref.suspect;
	saga->turn = DatumGetInt32(values[SAGA_TURN]);
	saga->definition_id = DatumGetInt32(values[SAGA_DEFINITION_ID]);
	saga->ref.definition = saga->definition_id;
	saga->parent_id = get_id(slot, SAGA_PARENT_ID);
	saga->parent_step = saga->parent_element = -1;
	saga->root_id = saga->ref.id;
	saga->depth = DatumGetInt16(values[SAGA_DEPTH]);
	if (saga->parent_id > 0)
	{
		saga->parent_step = DatumGetInt16(values[SAGA_PARENT_STEP]);
		saga->parent_element = DatumGetInt32(values[SAGA_PARENT_ELEMENT]);
		saga->root_id = get_id(slot, SAGA_ROOT_ID);
	}
	saga->state.status = saga_tables_label(names->status, SAGA_NSTATUS,
										   values[SAGA_STATUS]);
	saga->state.backward = DatumGetBool(values[SAGA_BACKWARD]);
	saga->state.goal = DatumGetInt16(values[SAGA_GOAL]);
	saga->state.child = saga->parent_id != 0;
	saga->state.released = DatumGetBool(values[SAGA_RELEASED]);
	saga->state.deadline = time_or_never(slot, SAGA_DEADLINE);
	saga->due_at = get_time(slot, SAGA_DUE_AT);
	saga->state.start_at = slot->tts_isnull[SAGA_START_AT] ?
		DatumGetTimestampTz(values[SAGA_CREATED_AT]) :
		DatumGetTimestampTz(values[SAGA_START_AT]);
	saga->token = *DatumGetUUIDP(values[SAGA_TOKEN]);
	saga->role = DatumGetObjectId(values[SAGA_ROLE]);
	saga->key = get_text(slot, SAGA_KEY);
	saga->traceparent = get_text(slot, SAGA_TRACEPARENT);
	saga->waiting_for = get_text(slot, SAGA_WAITING_FOR);
	saga->counted.status = saga->state.status;
	saga->counted.reason = saga_stats_reason(saga->waiting_for);
	saga->input = get_jsonb(slot, SAGA_INPUT);
	saga->cause = get_jsonb(slot, SAGA_ERROR);
	saga->has_error = saga->cause != NULL;
	saga->created_at = get_time(slot, SAGA_CREATED_AT);
	saga->started_at = get_time(slot, SAGA_STARTED_AT);
	saga->step = DatumGetInt16(values[SAGA_STEP]);
	saga->tuple = ExecCopySlotHeapTuple(slot);
	saga->foreign = saga_tables_is_copy() ||
		memcmp(DatumGetUUIDP(values[SAGA_COORDINATOR]), &names->coordinator,
			   UUID_LEN) != 0;
	return saga;
}

/* How often it went forward again: stored by savepoint, known by step. */
static void
read_recoveries(SagaTables *tables, Saga *saga)
{
	const SagaRules *rules = &saga->definition->rules;
	SagaTable  *table = saga_tables_get(tables, SAGA_TABLE_SAGA, saga->ref.slot);
	ArrayType  *array;
	bool		isnull;
	int			n = 0;
	Datum		value = heap_getattr(saga->tuple, SAGA_RECOVERIES + 1,
									 RelationGetDescr(table->rel), &isnull);

	if (isnull)
		return;
	array = DatumGetArrayTypeP(value);
	for (int step = 0; step < rules->nsteps; step++)
		n += rules->steps[step].savepoint;
	if (n == 0 || ARR_NDIM(array) != 1 || ARR_DIMS(array)[0] != n ||
		ARR_HASNULL(array))
	{
		saga->broken = "its savepoints are not those of its definition";
		return;
	}
	n = 0;
	for (int step = 0; step < rules->nsteps; step++)
		if (rules->steps[step].savepoint)
			saga->state.recoveries[step] = ((int16 *) ARR_DATA_PTR(array))[n++];
}

/* A row of saga.step, until its element has a place in memory. */
typedef struct StoredOp
{
	int			element;
	int			operation;
	SagaOpState op;
	SagaOpRow	row;
	int			next;			/* of the same step; -1 = none */
} StoredOp;

typedef struct Loading
{
	Saga	   *saga;
	StoredOp   *stored;
	int			nstored;
	int			room;
	int		   *first;			/* by step; -1 = none, or placed */
	bool	   *begun;			/* by step: an operation of it has begun */
	bool		confirming;		/* a confirmation has */
} Loading;

static void
read_op_state(TupleTableSlot *slot, SagaOpState *op)
{
	Datum	   *values = slot->tts_values;

	op->status = saga_tables_label(names->op_status, SAGA_NOP_STATUS,
								   values[STEP_STATUS]);
	op->unknown = DatumGetBool(values[STEP_UNKNOWN]);
	op->cancelled = DatumGetBool(values[STEP_CANCELLED]);
	op->surplus = DatumGetBool(values[STEP_SURPLUS]);
	op->signalled = DatumGetBool(values[STEP_SIGNALLED]);
	op->attempts = DatumGetInt32(values[STEP_ATTEMPTS]);
	op->failures = DatumGetInt32(values[STEP_FAILURES]);
	op->crashes = DatumGetInt32(values[STEP_CRASHES]);
	if (op->status == SAGA_OP_RUNNING)
		op->due_at = time_or_never(slot, STEP_DUE_AT);
	else
		op->due_at = get_time(slot, STEP_DUE_AT);
}

static void
read_op_row(TupleTableSlot *slot, SagaOpRow *row)
{
	row->stored = true;
	row->started_at = get_time(slot, STEP_STARTED_AT);
	row->finished_at = get_time(slot, STEP_FINISHED_AT);
	row->child_id = get_id(slot, STEP_CHILD_ID);
	row->task_id = get_id(slot, STEP_TASK_ID);
	row->result = get_jsonb(slot, STEP_RESULT);
	row->error = get_jsonb(slot, STEP_ERROR);
}

/* Keep a row of the present round; those of earlier ones are history. */
static void
read_step(TupleTableSlot *slot, void *arg)
{
	Loading    *loading = arg;
	Saga	   *saga = loading->saga;
	int			step = DatumGetInt16(slot->tts_values[STEP_STEP]);
	int			round = DatumGetInt16(slot->tts_values[STEP_ROUND]);
	StoredOp   *stored;

	if (step < 0 || step >= saga->state.nsteps)
	{
		saga->broken = "a step is not one of its definition";
		return;
	}
	if (round < saga->rounds[step])
		return;
	if (round > saga->rounds[step])
	{
		saga->broken = "a step is of a round that has not come";
		return;
	}
	if (loading->nstored == loading->room)
	{
		loading->room *= 2;
		loading->stored = repalloc(loading->stored,
								   loading->room * sizeof(StoredOp));
	}
	stored = &loading->stored[loading->nstored];
	memset(stored, 0, sizeof(StoredOp));
	stored->element = DatumGetInt32(slot->tts_values[STEP_ELEMENT]);
	stored->operation =
		saga_tables_label(names->operation, SAGA_NOPERATION,
						  slot->tts_values[STEP_OPERATION]);
	read_op_state(slot, &stored->op);
	read_op_row(slot, &stored->row);
	stored->next = loading->first[step];
	loading->first[step] = loading->nstored++;
	if (stored->op.status != SAGA_OP_PENDING)
	{
		loading->begun[step] = true;
		loading->confirming |= stored->operation == SAGA_OPERATION_CONFIRMATION;
	}
}

/* Give the rows of a step whose elements are known their places. */
static void
place_rows(Loading *loading, int step)
{
	Saga	   *saga = loading->saga;
	SagaStepState *state = &saga->state.steps[step];

	for (int i = loading->first[step]; i >= 0; i = loading->stored[i].next)
	{
		const StoredOp *stored = &loading->stored[i];

		if (stored->element < 0 || stored->element >= state->nelements)
		{
			saga->broken = "a step has more elements than its array";
			return;
		}
		state->elements[stored->element].op[stored->operation] = stored->op;
		saga->ops[step][stored->element][stored->operation] = stored->row;
		if (!saga->definition->rules.steps[step].foreach &&
			stored->operation == SAGA_OPERATION_ACTION &&
			stored->op.status == SAGA_OP_SUCCEEDED)
			saga->results[step] = stored->row.result;
	}
	loading->first[step] = -1;
}

/*
 * Has a step with no elements been passed?  It has no row to say so, and it
 * is done as soon as it is expanded: to make that of it before the machine was
 * told would put the status in the wrong.  What could only have come after it
 * says that it was; otherwise the machine asks for its elements again.
 */
static bool
was_passed(const Loading *loading, int step)
{
	const SagaState *state = &loading->saga->state;
	const SagaRules *rules = &loading->saga->definition->rules;

	if (loading->confirming || state->status == SAGA_STATUS_HELD ||
		state->status == SAGA_STATUS_COMPLETED)
		return true;
	/* what else would have kept a stuck saga from going back? */
	if (rules->steps[step].pivot && !state->backward &&
		(state->status == SAGA_STATUS_STUCK ||
		 state->status == SAGA_STATUS_PAUSED ||
		 state->status == SAGA_STATUS_ABANDONED))
		return true;
	for (int later = step + 1; later < rules->nsteps; later++)
		if (loading->begun[later] && saga_rules_is_before(rules, step, later))
			return true;
	return false;
}

/* Is it a foreach step that was, or could be, expanded? */
static bool
is_to_be_expanded(const Saga *saga, int step)
{
	const SagaStepRule *rule = &saga->definition->rules.steps[step];

	if (!rule->foreach || saga->state.steps[step].off)
		return false;
	for (int i = 0; i < rule->npreds; i++)
		if (!saga_machine_step_is_done(&saga->definition->rules, &saga->state,
									   rule->preds[i]))
			return false;
	return true;
}

/* Make the elements of a foreach step, as far as they are known, and give its
 * rows their places. */
static void
load_elements(Loading *loading, int step)
{
	Saga	   *saga = loading->saga;
	SagaElementState *elements;
	const char *wrong;
	int			n;

	if (!is_to_be_expanded(saga, step))
		return;
	n = saga_store_expand(saga, step, &wrong, &elements);
	if (n < 0 && loading->first[step] >= 0)
		n = 1;					/* the one that failed for the whole step */
	if (n < 0 || (n == 0 && !was_passed(loading, step)))
	{
		saga->ops[step] = NULL;
		return;
	}
	saga->state.steps[step].nelements = n;
	saga->state.steps[step].elements = elements;
	place_rows(loading, step);
	saga_machine_loaded(&saga->definition->rules, &saga->state);
	saga_store_settle_results(saga);
}

/* Assert what the machine says of its states, unless that takes long. */
static const char *
check_state(const Saga *saga)
{
#ifndef USE_ASSERT_CHECKING
	int			n = 0;

	for (int step = 0; step < saga->state.nsteps; step++)
		n += Max(saga->state.steps[step].nelements, 0);
	if (n > MAX_CHECKED)
		return NULL;
#endif
	return saga_machine_check(&saga->definition->rules, &saga->state);
}

/*
 * Read the rows of all steps at once, then find their places: of the elements
 * of a foreach step nothing is known before the steps that it depends on are.
 */
static void
load_steps(SagaTables *tables, Snapshot snapshot, Saga *saga)
{
	const SagaRules *rules = &saga->definition->rules;
	Loading		loading = {.saga = saga, .room = 8};

	loading.stored = palloc(loading.room * sizeof(StoredOp));
	loading.first = palloc(rules->nsteps * sizeof(int));
	loading.begun = palloc0(rules->nsteps * sizeof(bool));
	for (int step = 0; step < rules->nsteps; step++)
	{
		loading.first[step] = -1;
		saga->rounds[step] = saga_machine_round(rules, &saga->state, step);
	}
	if (saga->turn > 0)
		saga_table_scan(saga_tables_get(tables, SAGA_TABLE_STEP, saga->ref.slot),
						snapshot, saga->ref.id, read_step, &loading);

	for (int step = 0; step < rules->nsteps; step++)
		if (!rules->steps[step].foreach)
			place_rows(&loading, step);
	saga_machine_loaded(rules, &saga->state);
	for (int step = 0; step < rules->nsteps; step++)
		load_elements(&loading, step);

	for (int step = 0; step < rules->nsteps; step++)
		if (loading.first[step] >= 0 && saga->broken == NULL)
			saga->broken = "a step has begun before its elements were known";
	pfree(loading.stored);
	pfree(loading.first);
	pfree(loading.begun);
}

static void
read_message(TupleTableSlot *slot, void *arg)
{
	Saga	   *saga = arg;
	SagaMessage *message = palloc0(sizeof(SagaMessage));

	message->tid = slot->tts_tid;
	message->id = DatumGetInt64(slot->tts_values[MESSAGE_ID]);
	message->kind = get_text(slot, MESSAGE_KIND);
	message->step = get_text(slot, MESSAGE_STEP);
	message->element = slot->tts_isnull[MESSAGE_ELEMENT] ? -1 :
		DatumGetInt32(slot->tts_values[MESSAGE_ELEMENT]);
	message->reason = get_text(slot, MESSAGE_REASON);
	message->payload = get_jsonb(slot, MESSAGE_PAYLOAD);
	message->requested_by = get_text(slot, MESSAGE_REQUESTED_BY);
	message->created_at = get_time(slot, MESSAGE_CREATED_AT);
	saga->messages = lappend(saga->messages, message);
}

/*
 * The definition of a saga.  One that cannot be read is that saga's trouble,
 * not its batch's: so a first look is taken in a subtransaction.
 */
static const SagaDefinition *
load_definition(Saga *saga)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	const SagaDefinition *volatile definition = NULL;

	if (saga_catalog_has_version(saga->definition_id))
		return saga_catalog_version(saga->definition_id);
	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		definition = saga_catalog_version(saga->definition_id);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		saga_owner_abandon();
		RollbackAndReleaseCurrentSubTransaction();
		CurrentResourceOwner = owner;
		MemoryContextSwitchTo(context);
		if (error->sqlerrcode != ERRCODE_DATA_CORRUPTED)
			ReThrowError(error);
		saga->broken = error->message;
	}
	PG_END_TRY();
	CurrentResourceOwner = owner;
	MemoryContextSwitchTo(context);
	if (definition == NULL && saga->broken == NULL)
		saga->broken = "the version of its definition does not exist";
	return definition;
}

/* The definition and the steps of a saga that was just read. */
static void
load_saga(SagaTables *tables, Snapshot snapshot, Saga *saga)
{
	saga->definition = load_definition(saga);
	if (saga->definition == NULL)
		return;
	prepare_memory(saga);
	read_recoveries(tables, saga);
	if (saga->broken == NULL)
		load_steps(tables, snapshot, saga);
	else
		saga_machine_loaded(&saga->definition->rules, &saga->state);
	if (saga->broken == NULL)
		saga->broken = check_state(saga);
}

/* What others want of it. */
static void
load_messages(SagaTables *tables, Snapshot snapshot, Saga *saga)
{
	MemoryContext caller = MemoryContextSwitchTo(saga->memory);

	saga->messages = NIL;
	saga_table_scan(saga_tables_get(tables, SAGA_TABLE_MESSAGE, 0), snapshot,
					saga->ref.id, read_message, saga);
	MemoryContextSwitchTo(caller);
}

/* Would the input of one more saga be too much?  Never for the first. */
static bool
is_too_large(TupleTableSlot *slot, Size *size)
{
	Size		more = toast_raw_datum_size(slot->tts_values[SAGA_INPUT]);

	if (*size > 0 && *size + more > MAX_BATCH_INPUT)
		return true;
	*size += more;
	return false;
}

/* One call of saga_store_lock(). */
typedef struct Locking
{
	SagaTables	tables;
	Snapshot	snapshot;
	Oid			role;
	const char *role_name;
	Size		size;			/* of the inputs that were read */
} Locking;

/* A row of saga.branch that was locked. */
typedef struct LockedBranch
{
	SagaBranch *branch;			/* NULL = none was */
	int64		saga_id;
	int16		slot;
} LockedBranch;

/* Lock the row of a saga; returns its table, NULL if it is not to be had. */
static SagaTable *
lock_where_it_is(Locking *locking, const SagaRef *ref)
{
	SagaTable  *table = saga_tables_get(&locking->tables, SAGA_TABLE_SAGA,
										ref->slot);

	if (saga_table_lock(table, locking->snapshot, ref->id))
		return table;
	if (saga_table_fetch_id(table, locking->snapshot, ref->id))
		return NULL;			/* somebody else has it */
	table = find_row_elsewhere(&locking->tables, locking->snapshot, ref->id,
							   ref->slot);
	if (table == NULL ||
		!saga_table_lock(table, locking->snapshot, ref->id))
		return NULL;
	return table;
}

/*
 * Lock a saga, and read it unless what is known of it still counts.  Sets
 * *saga to NULL if it is not to be had; *reload says whether its steps are to
 * be loaded.
 */
static void
lock_saga(Locking *locking, Saga **saga, const SagaRef *ref, bool *reload,
		  bool *put_off)
{
	SagaTable  *table = lock_where_it_is(locking, ref);
	Saga	   *known = *saga;

	*saga = NULL;
	if (table == NULL ||
		!row_is_ours(table->slot, locking->role, locking->role_name))
		return;
	/* one that retention has moved has its rows in other tables */
	if (known != NULL && !known->stale &&
		known->ref.slot == DatumGetInt16(table->slot->tts_values[SAGA_SLOT]) &&
		known->turn == DatumGetInt32(table->slot->tts_values[SAGA_TURN]))
	{
		MemoryContext caller = MemoryContextSwitchTo(known->memory);

		heap_freetuple(known->tuple);
		known->tuple = ExecCopySlotHeapTuple(table->slot);
		MemoryContextSwitchTo(caller);
		*saga = known;
	}
	else if (is_too_large(table->slot, &locking->size))
	{
		*put_off = true;
		return;
	}
	else
	{
		*saga = read_saga(table->slot);
		*reload = true;
	}
	(*saga)->ended = table->slot->tts_isnull[SAGA_DUE_AT];
	*reload &= !(*saga)->ended;
}

static void
lock_branch(Locking *locking, int64 id, LockedBranch *locked)
{
	SagaTable  *table = saga_tables_get(&locking->tables, SAGA_TABLE_BRANCH, 0);
	SagaBranch *branch;
	Datum	   *values;

	if (!saga_table_lock(table, locking->snapshot, id))
		return;
	branch = palloc0(sizeof(SagaBranch));
	values = table->slot->tts_values;
	branch->id = id;
	branch->tid = table->slot->tts_tid;
	branch->task.kind = SAGA_TASK_OPERATE;
	branch->task.step = DatumGetInt16(values[BRANCH_STEP]);
	branch->task.element = DatumGetInt32(values[BRANCH_ELEMENT]);
	branch->task.operation =
		saga_tables_label(names->operation, SAGA_NOPERATION,
						  values[BRANCH_OPERATION]);
	branch->task.attempt = DatumGetInt32(values[BRANCH_ATTEMPT]);
	branch->round = DatumGetInt16(values[BRANCH_ROUND]);
	locked->branch = branch;
	locked->saga_id = DatumGetInt64(values[BRANCH_SAGA_ID]);
	locked->slot = DatumGetInt16(values[BRANCH_SLOT]);
}

/*
 * Does the saga no longer wait for this branch?  As far as is committed: the
 * saga itself may be about to change its mind, and then puts the outcome away.
 */
static bool
is_moot(const Saga *saga, const SagaBranch *branch)
{
	const SagaTask *task = &branch->task;
	const SagaState *state = &saga->state;
	const SagaOpState *op;

	if (saga->ended || saga->broken != NULL)
		return true;
	if (task->step < 0 || task->step >= state->nsteps || task->element < 0 ||
		task->element >= state->steps[task->step].nelements ||
		branch->round != saga->rounds[task->step])
		return true;
	op = &state->steps[task->step].elements[task->element].op[task->operation];
	if (op->status != SAGA_OP_RUNNING || op->attempts + 1 != task->attempt)
		return true;
	if (task->operation != SAGA_OPERATION_ACTION)
		return false;
	if (state->backward &&
		(state->goal < 0 || saga_rules_is_before(&saga->definition->rules,
												 state->goal, task->step)))
		return true;
	return op->cancelled ||
		saga_machine_step_is_done(&saga->definition->rules, state, task->step);
}

/* The saga of a branch, as it is committed; NULL if it is not to be had. */
static Saga *
load_saga_of_branch(Locking *locking, const LockedBranch *locked,
					bool *put_off)
{
	SagaTable  *table = saga_store_locate(&locking->tables, locking->snapshot,
										  locked->saga_id, locked->slot);
	Saga	   *saga;

	if (table == NULL ||
		!row_is_ours(table->slot, locking->role, locking->role_name))
		return NULL;
	if (is_too_large(table->slot, &locking->size))
	{
		*put_off = true;
		return NULL;
	}
	saga = read_saga(table->slot);
	saga->ended = table->slot->tts_isnull[SAGA_DUE_AT];
	if (!saga->ended)
		load_saga(&locking->tables, locking->snapshot, saga);
	return saga;
}

/* Load the saga of the branch at "index"; of the branches of one saga each
 * has the same, in a copy of the struct. */
static void
load_branch(Locking *locking, Saga **sagas, const LockedBranch *locked,
			int index, bool *put_off)
{
	const LockedBranch *mine = &locked[index];
	Saga	   *saga = NULL;

	for (int i = 0; i < index && saga == NULL; i++)
	{
		if (locked[i].branch == NULL || locked[i].saga_id != mine->saga_id ||
			sagas[i] == NULL)
			continue;
		saga = palloc(sizeof(Saga));
		*saga = *sagas[i];
	}
	if (saga == NULL)
		saga = load_saga_of_branch(locking, mine, put_off);
	if (saga != NULL)
	{
		saga->branch = mine->branch;
		saga->branch->moot = is_moot(saga, saga->branch);
	}
	sagas[index] = saga;
}

void
saga_store_lock(Saga **sagas, const SagaRef *refs, int n, Oid role,
				bool *put_off)
{
	Locking		locking = {.tables = {.lockmode = RowExclusiveLock},
	.role = role};
	LockedBranch *branches;
	bool	   *reload;
	int		   *order;

	look_up_names();
	if (saga_tables_is_copy())
	{
		memset(sagas, 0, n * sizeof(Saga *));
		return;
	}
	branches = palloc0(n * sizeof(LockedBranch));
	reload = palloc0(n * sizeof(bool));
	order = palloc(n * sizeof(int));
	if (OidIsValid(role))
		locking.role_name = GetUserNameFromId(role, false);
	for (int i = 0; i < n; i++)
		order[i] = i;
	qsort_arg(order, n, sizeof(int), compare_by_id, unconstify(SagaRef *, refs));

	/* first statement: the rows themselves, in their newest version */
	locking.snapshot = saga_tables_push_snapshot();
	for (int i = 0; i < n; i++)
	{
		int			which = order[i];

		if (refs[which].slot == SAGA_BRANCH_SLOT)
		{
			sagas[which] = NULL;
			lock_branch(&locking, refs[which].id, &branches[which]);
		}
		else
			lock_saga(&locking, &sagas[which], &refs[which], &reload[which],
					  &put_off[which]);
	}
	PopActiveSnapshot();

	/* second statement, newer snapshot: what hangs on them */
	locking.snapshot = saga_tables_push_snapshot();
	for (int i = 0; i < n; i++)
	{
		if (branches[i].branch != NULL)
			load_branch(&locking, sagas, branches, i, &put_off[i]);
		else if (sagas[i] != NULL)
		{
			if (reload[i])
				load_saga(&locking.tables, locking.snapshot, sagas[i]);
			load_messages(&locking.tables, locking.snapshot, sagas[i]);
			if (sagas[i]->ended && sagas[i]->messages == NIL)
				sagas[i] = NULL;
		}
	}
	PopActiveSnapshot();
	saga_tables_close(&locking.tables);
	pfree(order);
	pfree(reload);
	pfree(branches);
}

Saga *
saga_store_peek(int64 id)
{
	SagaTables	tables = {.lockmode = AccessShareLock};
	Saga	   *saga = NULL;
	Snapshot	snapshot;
	SagaTable  *table;

	look_up_names();
	CommandCounterIncrement();	/* the caller's own messages count */
	snapshot = saga_tables_push_snapshot();
	table = find_row(&tables, snapshot, id);
	if (table != NULL)
	{
		saga = read_saga(table->slot);
		load_saga(&tables, snapshot, saga);
		load_messages(&tables, snapshot, saga);
	}
	PopActiveSnapshot();
	saga_tables_close(&tables);
	return saga;
}

Saga *
saga_store_peek_at(SagaTables *tables, Snapshot snapshot, int64 id, int16 slot)
{
	SagaTable  *table;
	Saga	   *saga;

	look_up_names();
	table = saga_store_locate(tables, snapshot, id, slot);
	if (table == NULL)
		return NULL;
	saga = read_saga(table->slot);
	saga->ended = table->slot->tts_isnull[SAGA_DUE_AT];
	if (!saga->ended)
		load_saga(tables, snapshot, saga);
	return saga;
}

/* Without a plan: somebody waits for the answer. */
bool
saga_store_glance(int64 id, SagaGlance *glance)
{
	SagaTables	tables = {.lockmode = AccessShareLock};
	SagaTable  *table;
	bool		found;

	look_up_names();
	table = find_row(&tables, saga_tables_push_snapshot(), id);
	found = table != NULL;
	if (found)
	{
		TupleTableSlot *slot = table->slot;
		bool		isnull;
		Datum		xmin = slot_getsysattr(slot, MinTransactionIdAttributeNumber,
										   &isnull);

		glance->status = saga_tables_label(names->status, SAGA_NSTATUS,
										   slot->tts_values[SAGA_STATUS]);
		glance->role = DatumGetObjectId(slot->tts_values[SAGA_ROLE]);
		glance->own =
			TransactionIdIsCurrentTransactionId(DatumGetTransactionId(xmin));
	}
	PopActiveSnapshot();
	saga_tables_close(&tables);
	return found;
}


/* ---- save -------------------------------------------------------------- */

/*
 * Update the row of an operation.  It is looked for again: what was read in
 * an earlier transaction may have been moved since, by VACUUM FULL say.
 */
static void
update_operation(SagaTable *table, const Saga *saga, const Datum *values,
				 HeapTuple tuple)
{
	static const struct
	{
		int			column;
		RegProcedure equal;
	}			key[STEP_NKEYS] = {
		{STEP_SAGA_ID, F_INT8EQ}, {STEP_STEP, F_INT2EQ},
		{STEP_OPERATION, F_ENUM_EQ}, {STEP_ELEMENT, F_INT4EQ},
		{STEP_ROUND, F_INT2EQ}
	};
	ScanKeyData keys[STEP_NKEYS];
	ItemPointerData tid;

	for (int i = 0; i < STEP_NKEYS; i++)
		ScanKeyInit(&keys[i], i + 1, BTEqualStrategyNumber, key[i].equal,
					values[key[i].column]);
	if (!saga_table_fetch(table, GetActiveSnapshot(), keys, STEP_NKEYS))
		ereport(ERROR,
				errcode(ERRCODE_DATA_CORRUPTED),
				errmsg("a row of saga %lld in table \"%s\" is gone",
					   (long long) saga->ref.id,
					   RelationGetRelationName(table->rel)));
	tid = table->slot->tts_tid;
	saga_table_update(table, &tid, tuple);
}

static void
save_operation(SagaTables *tables, const Saga *saga, int step, int element,
			   int operation)
{
	const SagaOpState *op =
		&saga->state.steps[step].elements[element].op[operation];
	SagaOpRow  *row = &saga->ops[step][element][operation];
	SagaTable  *table = saga_tables_get(tables, SAGA_TABLE_STEP, saga->ref.slot);
	Datum		values[STEP_NCOLUMNS];
	bool		nulls[STEP_NCOLUMNS] = {false};

	values[STEP_SAGA_ID] = Int64GetDatum(saga->ref.id);
	values[STEP_DUE_AT] = TimestampTzGetDatum(op->due_at);
	nulls[STEP_DUE_AT] = op->due_at == SAGA_TIME_NEVER ||
		(op->status != SAGA_OP_WAITING && op->status != SAGA_OP_RUNNING);
	put_time(values, nulls, STEP_STARTED_AT, row->started_at);
	put_time(values, nulls, STEP_FINISHED_AT, row->finished_at);
	values[STEP_ELEMENT] = Int32GetDatum(element);
	values[STEP_ATTEMPTS] = Int32GetDatum(op->attempts);
	values[STEP_FAILURES] = Int32GetDatum(op->failures);
	values[STEP_CRASHES] = Int32GetDatum(op->crashes);
	values[STEP_OPERATION] = ObjectIdGetDatum(names->operation[operation]);
	values[STEP_STATUS] = ObjectIdGetDatum(names->op_status[op->status]);
	put_id(values, nulls, STEP_CHILD_ID, row->child_id);
	put_id(values, nulls, STEP_TASK_ID, row->task_id);
	values[STEP_SLOT] = Int16GetDatum(saga->ref.slot);
	values[STEP_STEP] = Int16GetDatum(step);
	values[STEP_ROUND] = Int16GetDatum(saga->rounds[step]);
	values[STEP_UNKNOWN] = BoolGetDatum(op->unknown);
	values[STEP_CANCELLED] = BoolGetDatum(op->cancelled);
	values[STEP_SURPLUS] = BoolGetDatum(op->surplus);
	values[STEP_SIGNALLED] = BoolGetDatum(op->signalled);
	put_jsonb(values, nulls, STEP_RESULT, row->result);
	put_jsonb(values, nulls, STEP_ERROR, row->error);

	if (!row->stored)
		saga_table_insert(table, values, nulls);
	else
	{
		HeapTuple	tuple = heap_form_tuple(RelationGetDescr(table->rel),
											values, nulls);

		update_operation(table, saga, values, tuple);
		heap_freetuple(tuple);
	}
	row->stored = true;
}

/* Is there anything of this operation that the table has to have?  Where it
 * stands in line for a lock is not. */
static bool
is_to_be_saved(const SagaOpState *op, const SagaOpRow *row)
{
	if (row->changed)
		return true;
	return op->changed &&
		(row->stored || op->status != SAGA_OP_PENDING || op->signalled);
}

/* Only the steps with something new are gone through. */
static void
save_operations(SagaTables *tables, Saga *saga)
{
	for (int step = 0; step < saga->state.nsteps; step++)
	{
		SagaStepState *state = &saga->state.steps[step];

		if (!state->changed)
			continue;
		for (int element = 0; element < state->nelements; element++)
			for (int operation = 0; operation < SAGA_NOPERATION; operation++)
			{
				SagaOpState *op = &state->elements[element].op[operation];
				SagaOpRow  *row = &saga->ops[step][element][operation];

				if (is_to_be_saved(op, row))
					save_operation(tables, saga, step, element, operation);
				op->changed = row->changed = false;
			}
		state->changed = false;
	}
}

void
saga_store_save_operations(Saga *saga)
{
	SagaTables	tables = {.lockmode = RowExclusiveLock};

	Assert(GetCurrentTransactionNestLevel() == 1);
	Assert(saga->branch == NULL);
	look_up_names();
	(void) saga_tables_push_snapshot();
	save_operations(&tables, saga);
	PopActiveSnapshot();
	saga_tables_close(&tables);
	/* saga_store_save() may have to find what was written here */
	CommandCounterIncrement();
}

void
saga_store_forget_round(Saga *saga)
{
	const SagaRules *rules = &saga->definition->rules;

	for (int step = 0; step < rules->nsteps; step++)
	{
		int			round = saga_machine_round(rules, &saga->state, step);

		if (round == saga->rounds[step])
			continue;
		saga->rounds[step] = round;
		saga->results[step] = NULL;
		memset(&saga->elements[step], 0, sizeof(SagaElements));
		if (rules->steps[step].foreach)
			saga->ops[step] = NULL;
		else
			memset(saga->ops[step], 0, sizeof(SagaOpRows));
	}
}

static void
save_attempt(SagaTables *tables, const Saga *saga, const SagaAttempt *attempt)
{
	Datum		values[ATTEMPT_NCOLUMNS];
	bool		nulls[ATTEMPT_NCOLUMNS] = {false};
	const SagaError *error = attempt->error;

	values[ATTEMPT_SAGA_ID] = Int64GetDatum(saga->ref.id);
	values[ATTEMPT_STARTED_AT] = TimestampTzGetDatum(attempt->started_at);
	values[ATTEMPT_FINISHED_AT] = TimestampTzGetDatum(attempt->finished_at);
	values[ATTEMPT_ELEMENT] = Int32GetDatum(attempt->element);
	values[ATTEMPT_ATTEMPT] = Int32GetDatum(attempt->attempt);
	values[ATTEMPT_OPERATION] =
		ObjectIdGetDatum(names->operation[attempt->operation]);
	values[ATTEMPT_SLOT] = Int16GetDatum(saga->ref.slot);
	values[ATTEMPT_STEP] = Int16GetDatum(attempt->step);
	values[ATTEMPT_ROUND] = Int16GetDatum(attempt->round);
	values[ATTEMPT_PASSING] = BoolGetDatum(attempt->passing);
	put_text(values, nulls, ATTEMPT_OUTCOME, attempt->outcome);
	put_text(values, nulls, ATTEMPT_SQLSTATE, error->sqlstate);
	put_text(values, nulls, ATTEMPT_MESSAGE, error->message);
	put_text(values, nulls, ATTEMPT_DETAIL, error->detail);
	put_text(values, nulls, ATTEMPT_HINT, error->hint);
	put_text(values, nulls, ATTEMPT_CONTEXT, error->context);
	saga_table_insert(saga_tables_get(tables, SAGA_TABLE_ATTEMPT, saga->ref.slot),
					  values, nulls);
}

/* A message that was acted on leaves its table; what people asked for goes
 * to the history. */
static void
save_message(SagaTables *tables, const Saga *saga, SagaMessage *message,
			 TimestampTz now)
{
	Datum		values[HISTORY_NCOLUMNS];
	bool		nulls[HISTORY_NCOLUMNS] = {false};

	saga_table_delete(saga_tables_get(tables, SAGA_TABLE_MESSAGE, 0), &message->tid);
	if (!saga_store_is_request(message->kind))
		return;
	values[HISTORY_ID] = Int64GetDatum(message->id);
	values[HISTORY_SAGA_ID] = Int64GetDatum(saga->ref.id);
	values[HISTORY_REQUESTED_AT] = TimestampTzGetDatum(message->created_at);
	values[HISTORY_APPLIED_AT] = TimestampTzGetDatum(now);
	values[HISTORY_ELEMENT] = Int32GetDatum(message->element);
	nulls[HISTORY_ELEMENT] = message->element < 0;
	values[HISTORY_SLOT] = Int16GetDatum(saga->ref.slot);
	put_text(values, nulls, HISTORY_VERB, message->kind);
	put_text(values, nulls, HISTORY_STEP, message->step);
	put_text(values, nulls, HISTORY_REASON, message->reason);
	put_text(values, nulls, HISTORY_ROLE_NAME, message->requested_by);
	put_text(values, nulls, HISTORY_OUTCOME, message->outcome);
	saga_table_insert(saga_tables_get(tables, SAGA_TABLE_HISTORY, saga->ref.slot),
					  values, nulls);
}

/* How often it went forward again from each savepoint; NULL: never. */
static ArrayType *
recoveries_to_array(const Saga *saga)
{
	const SagaRules *rules = &saga->definition->rules;
	Datum	   *values = palloc(rules->nsteps * sizeof(Datum));
	bool		any = false;
	int			n = 0;

	for (int step = 0; step < rules->nsteps; step++)
	{
		if (!rules->steps[step].savepoint)
			continue;
		any |= saga->state.recoveries[step] != 0;
		values[n++] = Int16GetDatum(saga->state.recoveries[step]);
	}
	return any ? construct_array(values, n, INT2OID, sizeof(int16), true,
								 TYPALIGN_SHORT) : NULL;
}

/* The row says something else of a saga: tell the statistics. */
static void
count_move(Saga *saga, TimestampTz now)
{
	SagaCounted to = {saga->state.status,
	saga_stats_reason(saga->waiting_for)};

	if (saga->definition != NULL)
		saga_stats_moved(saga->definition->name, saga->definition->id,
						 saga->counted, to, now - saga->state.start_at);
	else
		saga_stats_uncertain();	/* nobody knows whose it is */
	saga->counted = to;
}

/*
 * Update the row of a saga.  While it goes on due_at stays as it is, so that
 * no indexed column changes and the update is HOT.
 */
static void
save_row(SagaTables *tables, Saga *saga, TimestampTz now)
{
	SagaTable  *table = saga_tables_get(tables, SAGA_TABLE_SAGA, saga->ref.slot);
	bool		final = saga_status_is_final(saga->state.status);
	Datum		values[SAGA_NCOLUMNS];
	bool		nulls[SAGA_NCOLUMNS] = {false};
	bool		replace[SAGA_NCOLUMNS] = {false};
	MemoryContext caller;
	HeapTuple	tuple;

	values[SAGA_DUE_AT] = TimestampTzGetDatum(saga->due_at);
	nulls[SAGA_DUE_AT] = final;
	replace[SAGA_DUE_AT] = true;
	put_time(values, nulls, SAGA_STARTED_AT, saga->started_at);
	replace[SAGA_STARTED_AT] = true;
	values[SAGA_FINISHED_AT] = TimestampTzGetDatum(now);
	replace[SAGA_FINISHED_AT] = final;
	values[SAGA_TURN] = Int32GetDatum(saga->turn + 1);
	replace[SAGA_TURN] = true;
	values[SAGA_DEFINITION_ID] = Int32GetDatum(saga->definition_id);
	replace[SAGA_DEFINITION_ID] = true;
	values[SAGA_STATUS] = ObjectIdGetDatum(names->status[saga->state.status]);
	replace[SAGA_STATUS] = true;
	values[SAGA_STEP] = Int16GetDatum(saga->step);
	replace[SAGA_STEP] = true;
	values[SAGA_GOAL] = Int16GetDatum(saga->state.goal);
	replace[SAGA_GOAL] = true;
	values[SAGA_BACKWARD] = BoolGetDatum(saga->state.backward);
	replace[SAGA_BACKWARD] = true;
	values[SAGA_SUSPECT] = BoolGetDatum(saga->suspect);
	replace[SAGA_SUSPECT] = true;
	values[SAGA_RELEASED] = BoolGetDatum(saga->state.released);
	replace[SAGA_RELEASED] = true;
	/* those of a saga that is broken are left as they are */
	if (saga->broken == NULL &&
		(saga->definition->rules.has_savepoints || saga->stale))
	{
		ArrayType  *recoveries = saga->definition->rules.has_savepoints ?
			recoveries_to_array(saga) : NULL;

		values[SAGA_RECOVERIES] = PointerGetDatum(recoveries);
		nulls[SAGA_RECOVERIES] = recoveries == NULL;
		replace[SAGA_RECOVERIES] = true;
	}
	put_text(values, nulls, SAGA_WAITING_FOR, saga->waiting_for);
	replace[SAGA_WAITING_FOR] = true;
	put_jsonb(values, nulls, SAGA_ERROR, saga->error);
	replace[SAGA_ERROR] = saga->error != NULL;

	caller = MemoryContextSwitchTo(saga->memory);
	tuple = heap_modify_tuple(saga->tuple, RelationGetDescr(table->rel),
							  values, nulls, replace);
	MemoryContextSwitchTo(caller);
	saga_table_update(table, &saga->tuple->t_self, tuple);
	heap_freetuple(saga->tuple);
	saga->tuple = tuple;
	saga->turn++;
	count_move(saga, now);
	if (saga->error != NULL)
	{
		saga->has_error = true;
		saga->cause = saga->error;
	}
	saga->error = NULL;
	saga->changed = false;
}

/* Take away the messages that were acted on: of a saga that has ended, all. */
static void
save_messages(SagaTables *tables, Saga *saga, TimestampTz now)
{
	ListCell   *cell;

	foreach(cell, saga->messages)
	{
		SagaMessage *message = lfirst(cell);

		if (saga->ended || message->outcome != NULL)
			save_message(tables, saga, message, now);
	}
	saga->messages = NIL;
}

void
saga_store_save(Saga **sagas, int n)
{
	SagaTables	tables = {.lockmode = RowExclusiveLock};
	TimestampTz now = GetCurrentTimestamp();

	Assert(GetCurrentTransactionNestLevel() == 1);
	look_up_names();
	(void) saga_tables_push_snapshot();
	for (int i = 0; i < n; i++)
	{
		Saga	   *saga = sagas[i];
		ListCell   *cell;

		if (saga == NULL || saga->branch != NULL || !saga->changed)
			continue;
		save_messages(&tables, saga, now);
		if (saga->ended)
		{
			/* final is final: only what was asked too late is put away */
			saga->changed = false;
			continue;
		}
		save_operations(&tables, saga);
		foreach(cell, saga->attempts)
			save_attempt(&tables, saga, lfirst(cell));
		saga->attempts = NIL;
		save_row(&tables, saga, now);
	}
	PopActiveSnapshot();
	saga_tables_close(&tables);
}


/* ---- another version ----------------------------------------------------- */

/*
 * Positions are part of primary keys, and those of one saga may change places:
 * so they go through negative numbers.
 */
static SagaStatement renumber_steps[] = {
	{"UPDATE saga.step t SET step = -1 - m.position"
		" FROM pg_catalog.unnest($3) WITH ORDINALITY m(position, n)"
		" WHERE t.saga_id = $1 AND t.slot = $2 AND t.step = m.n - 1"
		" AND t.step <> m.position",
	3, {INT8OID, INT2OID, INT2ARRAYOID}, NULL},
	{"UPDATE saga.step t SET step = -1 - t.step"
		" WHERE t.saga_id = $1 AND t.slot = $2 AND t.step < 0",
	2, {INT8OID, INT2OID}, NULL},
	{"UPDATE saga.attempt t SET step = -1 - m.position"
		" FROM pg_catalog.unnest($3) WITH ORDINALITY m(position, n)"
		" WHERE t.saga_id = $1 AND t.slot = $2 AND t.step = m.n - 1"
		" AND t.step <> m.position",
	3, {INT8OID, INT2OID, INT2ARRAYOID}, NULL},
	{"UPDATE saga.attempt t SET step = -1 - t.step"
		" WHERE t.saga_id = $1 AND t.slot = $2 AND t.step < 0",
	2, {INT8OID, INT2OID}, NULL},
	/* what was to be given back with a step that is gone is with the saga's end */
	{"UPDATE saga.lock l SET step = $3[l.step + 1],"
		" until_step = NULLIF($3[l.until_step + 1], -1)"
		" WHERE l.saga_id = $1",
	3, {INT8OID, INT2OID, INT2ARRAYOID}, NULL}
};
static SagaStatement find_lock_steps = {
	"SELECT DISTINCT l.step FROM saga.lock l"
	" WHERE l.saga_id = $1 AND l.step IS NOT NULL",
	1, {INT8OID}, NULL
};

typedef struct Traces
{
	int			nsteps;
	uint8	   *traces;
} Traces;

static void
note_trace(TupleTableSlot *slot, void *arg)
{
	Traces	   *traces = arg;
	int			step = DatumGetInt16(slot->tts_values[STEP_STEP]);

	if (step >= 0 && step < traces->nsteps)
		traces->traces[step] |= SAGA_TRACE_OPERATION;
}

void
saga_store_find_traces(const Saga *saga, uint8 *traces)
{
	SagaTables	tables = {.lockmode = AccessShareLock};
	Traces		arg = {saga->state.nsteps, traces};
	Datum		values[1] = {Int64GetDatum(saga->ref.id)};
	SagaOwnerSwitch owner;
	uint64		n;

	look_up_names();
	saga_table_scan(saga_tables_get(&tables, SAGA_TABLE_STEP, saga->ref.slot),
					saga_tables_push_snapshot(), saga->ref.id, note_trace, &arg);
	PopActiveSnapshot();
	saga_tables_close(&tables);
	saga_owner_enter(&owner);
	n = saga_statement_run(&find_lock_steps, values, NULL, false, 0);
	for (uint64 i = 0; i < n; i++)
	{
		bool		isnull;
		int			step = DatumGetInt16(saga_statement_datum(i, 1, &isnull));

		if (step >= 0 && step < saga->state.nsteps)
			traces[step] |= SAGA_TRACE_LOCK;
	}
	saga_owner_leave(&owner);
}

/* What is not stored of an operation is as if it had just been loaded. */
static void
forget_gate(SagaOpState *op)
{
	if (op->gate == SAGA_GATE_QUEUED)
		op->due_at = op->status == SAGA_OP_WAITING ? GetCurrentTimestamp() : 0;
	op->gate = SAGA_GATE_CLOSED;
	op->changed = false;
}

/*
 * The elements of one step.  Those of a foreach step that has not begun are
 * left to be found again, unless there are none: then it has been passed.
 */
static void
translate_step(const Saga *saga, Saga *translated, int from, int to)
{
	const SagaStepState *old = &saga->state.steps[from];
	SagaStepState *new = &translated->state.steps[to];
	bool		any = false;

	if (old->nelements < 0)
		return;
	for (int i = 0; i < old->nelements; i++)
		for (int op = 0; op < SAGA_NOPERATION; op++)
			any |= saga->ops[from][i][op].stored;
	if (!any && (saga->definition->rules.steps[from].foreach ||
				 translated->definition->rules.steps[to].foreach))
	{
		const char *path = saga->definition->steps[from].foreach.text;
		const char *there = translated->definition->steps[to].foreach.text;

		if (old->nelements > 0 || path == NULL || there == NULL ||
			strcmp(path, there) != 0)
			return;
	}
	new->nelements = old->nelements;
	new->elements = palloc(Max(old->nelements, 1) * sizeof(SagaElementState));
	memcpy(new->elements, old->elements,
		   old->nelements * sizeof(SagaElementState));
	for (int i = 0; i < new->nelements; i++)
		for (int op = 0; op < SAGA_NOPERATION; op++)
			forget_gate(&new->elements[i].op[op]);
	translated->ops[to] = saga->ops[from];
	translated->results[to] = saga->results[from];
	translated->elements[to] = saga->elements[from];
}

Saga *
saga_store_translate(const Saga *saga, const SagaDefinition *target,
					 const int16 *map)
{
	Saga	   *translated = palloc(sizeof(Saga));

	*translated = *saga;
	translated->definition = target;
	translated->definition_id = target->id;
	translated->state.recoveries = NULL;
	prepare_memory(translated);
	translated->state.goal = -1;
	translated->step = 0;
	for (int step = 0; step < saga->state.nsteps; step++)
	{
		int			to = map[step];

		if (to < 0)
			continue;
		translate_step(saga, translated, step, to);
		if (saga->state.recoveries != NULL &&
			translated->state.recoveries != NULL)
			translated->state.recoveries[to] = saga->state.recoveries[step];
		if (saga->state.goal == step)
			translated->state.goal = to;
		if (saga->step == step)
			translated->step = to;
	}
	for (int step = 0; step < target->rules.nsteps; step++)
		translated->rounds[step] = saga_machine_round(&target->rules,
													  &translated->state, step);
	return translated;
}

void
saga_store_move(Saga *saga, const Saga *translated, const int16 *map)
{
	int			n = saga->state.nsteps;
	Datum	   *positions = palloc(n * sizeof(Datum));
	bool		same = true;
	Datum		values[3];
	SagaOwnerSwitch owner;

	Assert(GetCurrentTransactionNestLevel() == 1);
	Assert(saga->branch == NULL && !saga->changed);
	for (int i = 0; i < n; i++)
	{
		positions[i] = Int16GetDatum(map[i]);
		same &= map[i] == i;
	}
	values[0] = Int64GetDatum(saga->ref.id);
	values[1] = Int16GetDatum(saga->ref.slot);
	values[2] = PointerGetDatum(construct_array(positions, n, INT2OID,
												sizeof(int16), true,
												TYPALIGN_SHORT));
	if (!same)
	{
		saga_owner_enter(&owner);
		for (size_t i = 0; i < lengthof(renumber_steps); i++)
			(void) saga_statement_run(&renumber_steps[i], values, NULL, false, 0);
		saga_owner_leave(&owner);
	}
	*saga = *translated;
	saga->changed = saga->stale = true;
}

/* Of "role" as in the views: in a restored dump the name has to match too. */
static SagaStatement count_at_steps = {
	"SELECT pg_catalog.jsonb_object_agg(x.name, x.sagas) FROM ("
	"SELECT v.steps -> c.step::integer ->> 'name' AS name,"
	"  pg_catalog.sum(c.sagas) AS sagas FROM ("
	"SELECT p.definition_id, p.step, pg_catalog.count(*) AS sagas FROM ("
	"SELECT s.definition_id, s.id, s.step FROM saga.saga s"
	" WHERE s.due_at IS NOT NULL AND s.definition_id = ANY (ARRAY("
	"  SELECT w.id FROM saga.definition_version w WHERE w.name = $1))"
	" AND ($3 OR pg_catalog.pg_has_role($2, s.role, 'USAGE')"
	"  AND (s.role_name = pg_catalog.pg_get_userbyid(s.role)"
	"       OR s.coordinator = (SELECT c.id FROM saga.coordinator c)))"
	" UNION "
	"SELECT s.definition_id, s.id, t.step FROM saga.saga s"
	" JOIN saga.step t ON t.saga_id = s.id AND t.slot = s.slot"
	"  AND t.status IN ('running', 'waiting')"
	" WHERE s.due_at IS NOT NULL AND s.definition_id = ANY (ARRAY("
	"  SELECT w.id FROM saga.definition_version w WHERE w.name = $1))"
	" AND ($3 OR pg_catalog.pg_has_role($2, s.role, 'USAGE')"
	"  AND (s.role_name = pg_catalog.pg_get_userbyid(s.role)"
	"       OR s.coordinator = (SELECT c.id FROM saga.coordinator c)))"
	") p GROUP BY 1, 2) c"
	" JOIN saga.definition_version v ON v.id = c.definition_id"
	" GROUP BY 1) x WHERE x.name IS NOT NULL",
	3, {TEXTOID, OIDOID, BOOLOID}, NULL
};

Jsonb *
saga_store_count_at_steps(const char *definition, Oid role, bool sees_all)
{
	MemoryContext caller = CurrentMemoryContext;
	Datum		values[3];
	SagaOwnerSwitch owner;
	Jsonb	   *counts = NULL;
	Datum		value;
	bool		isnull;

	values[0] = CStringGetTextDatum(definition);
	values[1] = ObjectIdGetDatum(role);
	values[2] = BoolGetDatum(sees_all);
	saga_owner_enter(&owner);
	(void) saga_statement_run(&count_at_steps, values, NULL, false, 0);
	value = saga_statement_datum(0, 1, &isnull);
	if (!isnull)
	{
		MemoryContext old = MemoryContextSwitchTo(caller);

		counts = DatumGetJsonbPCopy(value);
		MemoryContextSwitchTo(old);
	}
	saga_owner_leave(&owner);
	return counts;
}


/* ---- branches ------------------------------------------------------------ */

/*
 * "alone" is not kept: a wake-up at commit cannot say it, and who takes the
 * branch finds out by itself, as with any operation.
 */
void
saga_store_hand_out(const Saga *saga, const SagaTask *task,
					bool alone pg_attribute_unused())
{
	SagaTable  *table;
	Datum		values[BRANCH_NCOLUMNS];
	bool		nulls[BRANCH_NCOLUMNS] = {false};
	int64		id;

	Assert(GetCurrentTransactionNestLevel() == 1);
	Assert(saga->branch == NULL && task->kind == SAGA_TASK_OPERATE);
	look_up_names();
	id = nextval_internal(names->id_sequence, false);
	values[BRANCH_ID] = Int64GetDatum(id);
	values[BRANCH_SAGA_ID] = Int64GetDatum(saga->ref.id);
	values[BRANCH_CREATED_AT] = TimestampTzGetDatum(GetCurrentTimestamp());
	values[BRANCH_ROLE] = ObjectIdGetDatum(saga->role);
	values[BRANCH_ELEMENT] = Int32GetDatum(task->element);
	values[BRANCH_ATTEMPT] = Int32GetDatum(task->attempt);
	values[BRANCH_OPERATION] =
		ObjectIdGetDatum(names->operation[task->operation]);
	values[BRANCH_SLOT] = Int16GetDatum(saga->ref.slot);
	values[BRANCH_STEP] = Int16GetDatum(task->step);
	values[BRANCH_ROUND] = Int16GetDatum(saga->rounds[task->step]);
	table = saga_table_open(SAGA_TABLE_BRANCH, 0, RowExclusiveLock);
	saga_table_insert(table, values, nulls);
	saga_table_close(table);
	saga_wake_at_commit(saga->role, id, SAGA_BRANCH_SLOT, saga->definition_id,
						false);
}

void
saga_store_end_branch(const Saga *saga, Jsonb *outcome)
{
	SagaBranch *branch = saga->branch;
	SagaTable  *table;

	Assert(GetCurrentTransactionNestLevel() == 1);
	look_up_names();
	(void) saga_tables_push_snapshot();
	table = saga_table_open(SAGA_TABLE_BRANCH, 0, RowExclusiveLock);
	saga_table_delete(table, &branch->tid);
	saga_table_close(table);
	if (outcome != NULL && !saga->ended && saga->definition != NULL)
		saga_store_post(saga, "outcome",
						saga->definition->steps[branch->task.step].name,
						branch->task.element, NULL, outcome);
	PopActiveSnapshot();
}


/* ---- messages ---------------------------------------------------------- */

bool
saga_store_is_request(const char *kind)
{
	SagaEventKind event;

	return strcmp(kind, "signal") == 0 || strcmp(kind, "migrate") == 0 ||
		(saga_event_parse(kind, &event) && event >= SAGA_EVENT_CANCEL);
}

/* Insert a message, and have the saga looked at once that is committed. */
static void
insert_message_into(SagaTable *table, const SagaRef *ref, Oid role,
					const char *kind, const char *step, int element,
					const char *reason, Jsonb *payload)
{
	Datum		values[MESSAGE_NCOLUMNS];
	bool		nulls[MESSAGE_NCOLUMNS] = {false};

	values[MESSAGE_ID] =
		Int64GetDatum(nextval_internal(names->history_sequence, false));
	values[MESSAGE_SAGA_ID] = Int64GetDatum(ref->id);
	values[MESSAGE_SLOT] = Int16GetDatum(ref->slot);
	values[MESSAGE_ROLE] = ObjectIdGetDatum(role);
	put_text(values, nulls, MESSAGE_KIND, kind);
	put_text(values, nulls, MESSAGE_STEP, step);
	values[MESSAGE_ELEMENT] = Int32GetDatum(element);
	nulls[MESSAGE_ELEMENT] = element < 0;
	put_text(values, nulls, MESSAGE_REASON, reason);
	put_jsonb(values, nulls, MESSAGE_PAYLOAD, payload);
	put_text(values, nulls, MESSAGE_REQUESTED_BY,
			 saga_store_is_request(kind) ?
			 GetUserNameFromId(GetUserId(), false) : "");
	values[MESSAGE_CREATED_AT] = TimestampTzGetDatum(GetCurrentTimestamp());
	saga_table_insert(table, values, nulls);
	saga_wake_at_commit(role, ref->id, ref->slot, ref->definition, true);
}

static void
insert_message(const SagaRef *ref, Oid role, const char *kind,
			   const char *step, int element, const char *reason,
			   Jsonb *payload)
{
	SagaTable  *table = saga_table_open(SAGA_TABLE_MESSAGE, 0,
										RowExclusiveLock);

	insert_message_into(table, ref, role, kind, step, element, reason, payload);
	saga_table_close(table);
}

void
saga_store_post(const Saga *saga, const char *kind, const char *step,
				int element, const char *reason, Jsonb *payload)
{
	look_up_names();
	insert_message(&saga->ref, saga->role, kind, step, element, reason,
				   payload);
}

void
saga_store_post_outcome(SagaTables *tables, const SagaRef *ref, Oid role,
						const char *step, int element, Jsonb *outcome)
{
	look_up_names();
	insert_message_into(saga_tables_get(tables, SAGA_TABLE_MESSAGE, 0), ref,
						role, "outcome", step, element, NULL, outcome);
}

bool
saga_store_post_to(int64 saga_id, const char *kind, const char *step,
				   int element, Jsonb *payload)
{
	SagaTables	tables = {.lockmode = AccessShareLock};
	SagaTable  *table;
	bool		found;

	look_up_names();
	CommandCounterIncrement();	/* it may have been begun just now */
	table = find_row(&tables, saga_tables_push_snapshot(), saga_id);
	found = table != NULL && !table->slot->tts_isnull[SAGA_DUE_AT];
	if (found)
	{
		Datum	   *values = table->slot->tts_values;
		SagaRef		ref = {
			.id = saga_id,
			.slot = DatumGetInt16(values[SAGA_SLOT]),
			.definition = DatumGetInt32(values[SAGA_DEFINITION_ID])
		};

		insert_message(&ref, DatumGetObjectId(values[SAGA_ROLE]), kind, step,
					   element, NULL, payload);
	}
	PopActiveSnapshot();
	saga_tables_close(&tables);
	return found;
}

/*
 * Of two sagas whose ids are 2^32 apart one waits for nothing: it is over with
 * the other's transaction.
 */
void
saga_store_serialize_signals(int64 saga_id)
{
	look_up_names();
	LockDatabaseObject(names->tables[SAGA_TABLE_MESSAGE][0], (Oid) saga_id, 1,
					   ExclusiveLock);
}


/* ---- what is due -------------------------------------------------------- */

static SagaStatement find_due = {
	"SELECT s.id, s.slot, s.suspect, s.definition_id, s.due_at FROM saga.saga s"
	" WHERE s.role = $1 AND s.due_at <= $2 AND (s.due_at, s.id) > ($3, $4)"
	" AND s.coordinator = $5 AND s.role_name = $6"
	" ORDER BY s.due_at, s.id LIMIT 4096",
	6, {OIDOID, TIMESTAMPTZOID, TIMESTAMPTZOID, INT8OID, UUIDOID, TEXTOID}, NULL
};
/* Backwards: the last row, if there are so many, is where the next look begins.
 * The plain comparison is for the index, which leaves out what is not due. */
static SagaStatement find_due_of_others = {
	"WITH w AS MATERIALIZED ("
	"SELECT s.id, s.slot, s.suspect, s.definition_id, s.due_at FROM saga.saga s"
	" WHERE s.role = $1 AND (s.due_at, s.id) > ($2, $3)"
	" AND s.due_at <= $4 AND (s.due_at, s.id) < ($4, $5)"
	" AND s.coordinator = $6 AND s.role_name = $7"
	" ORDER BY s.due_at DESC, s.id DESC LIMIT 2048)"
	" (SELECT w.*, false FROM w WHERE w.definition_id <> ALL ($8) LIMIT $9)"
	" UNION ALL (SELECT w.*, true FROM w OFFSET 2047)",
	9, {OIDOID, TIMESTAMPTZOID, INT8OID, TIMESTAMPTZOID, INT8OID, UUIDOID,
	TEXTOID, INT4ARRAYOID, INT8OID}, NULL
};
static SagaStatement find_next_due = {
	"SELECT s.due_at FROM saga.saga s"
	" WHERE s.role = $1 AND s.due_at > $2 AND s.due_at < 'infinity'"
	" AND s.coordinator = $3 ORDER BY s.due_at LIMIT 1",
	3, {OIDOID, TIMESTAMPTZOID, UUIDOID}, NULL
};
static SagaStatement find_branches = {
	"SELECT b.id FROM saga.branch b WHERE b.saga_id = $1 ORDER BY b.id LIMIT 4096",
	1, {INT8OID}, NULL
};
static SagaStatement find_children = {
	"SELECT s.id, s.slot, s.suspect FROM saga.saga s"
	" WHERE s.parent_id = $1 AND s.due_at IS NOT NULL ORDER BY s.id LIMIT 4096",
	1, {INT8OID}, NULL
};
/*
 * Of those sagas that saga_store_lock() would give.  Here and below the saga
 * of a message or branch stands in a sub-select in place of a join, for which
 * all sagas might be read.
 */
static SagaStatement find_role_branches = {
	"SELECT b.id FROM saga.branch b WHERE b.role = $1 AND b.id > $3"
	" AND " SAGA_OF("b", "s.coordinator = $2 AND s.role = b.role"
	"                AND s.role_name = $4")
	" ORDER BY b.id LIMIT 4096",
	4, {OIDOID, UUIDOID, INT8OID, TEXTOID}, NULL
};
static SagaStatement find_messages = {
	"SELECT DISTINCT m.saga_id, m.slot FROM saga.message m"
	" WHERE m.role = $1 AND m.saga_id > $3"
	" AND " SAGA_OF("m", "s.coordinator") " = $2"
	" ORDER BY m.saga_id",
	3, {OIDOID, UUIDOID, INT8OID}, NULL
};
/* the distinct roles by a loose scan of the index: one probe for each; and
 * those of messages and branches, whose saga may be final by now */
static SagaStatement look_at_roles = {
	"WITH RECURSIVE r(role) AS ("
	" (SELECT s.role FROM saga.saga s WHERE s.due_at IS NOT NULL"
	"  ORDER BY s.role LIMIT 1)"
	" UNION ALL"
	" SELECT (SELECT s.role FROM saga.saga s WHERE s.due_at IS NOT NULL"
	"         AND s.role > r.role ORDER BY s.role LIMIT 1)"
	" FROM r WHERE r.role IS NOT NULL), m(role) AS MATERIALIZED ("
	" SELECT DISTINCT m.role FROM saga.message m"
	" WHERE " SAGA_OF("m", "s.coordinator") " = $2"
	"), b(role) AS MATERIALIZED ("
	" SELECT DISTINCT b.role FROM saga.branch b"
	" WHERE " SAGA_OF("b", "s.coordinator") " = $2)"
	" SELECT r.role,"
	" EXISTS (SELECT FROM b WHERE b.role = r.role)"
	" OR EXISTS (SELECT FROM saga.saga s WHERE s.role = r.role"
	"            AND s.due_at <= $1 AND s.coordinator = $2),"
	" EXISTS (SELECT FROM m WHERE m.role = r.role),"
	" (SELECT s.due_at FROM saga.saga s WHERE s.role = r.role"
	"  AND s.due_at > $1 AND s.due_at < 'infinity' AND s.coordinator = $2"
	"  ORDER BY s.due_at LIMIT 1)"
	" FROM (SELECT r.role FROM r WHERE r.role IS NOT NULL"
	"       UNION SELECT m.role FROM m UNION SELECT b.role FROM b) r",
	2, {TIMESTAMPTZOID, UUIDOID}, NULL
};

static TimestampTz
next_due_of_role(Oid role, TimestampTz now)
{
	Datum		values[3] = {
		ObjectIdGetDatum(role), TimestampTzGetDatum(now),
		UUIDPGetDatum(&names->coordinator)
	};
	bool		isnull;

	if (saga_statement_run(&find_next_due, values, NULL, false, 1) == 0)
		return DT_NOEND;
	return DatumGetTimestampTz(saga_statement_datum(0, 1, &isnull));
}

/* Put the sagas that a statement has returned into "refs". */
static void
return_due(SagaRef *refs, int n)
{
	for (int i = 0; i < n; i++)
	{
		bool		isnull;

		refs[i] = (SagaRef)
		{
			.id = DatumGetInt64(saga_statement_datum(i, 1, &isnull)),
			.slot = DatumGetInt16(saga_statement_datum(i, 2, &isnull)),
			.suspect = DatumGetBool(saga_statement_datum(i, 3, &isnull)),
			.definition = DatumGetInt32(saga_statement_datum(i, 4, &isnull))
		};
	}
}

int
saga_store_find_due(SagaDuePosition *position, SagaRef *refs, int max,
					bool *complete, TimestampTz *next_due)
{
	Oid			role = GetUserId();
	TimestampTz now = GetCurrentTimestamp();
	Datum		values[6];
	SagaOwnerSwitch owner;
	int			n;

	look_up_names();
	*complete = true;
	*next_due = DT_NOEND;
	if (saga_tables_is_copy())
		return 0;
	values[0] = ObjectIdGetDatum(role);
	values[1] = TimestampTzGetDatum(now);
	values[2] = TimestampTzGetDatum(position->due_at);
	values[3] = Int64GetDatum(position->id);
	values[4] = UUIDPGetDatum(&names->coordinator);
	values[5] = CStringGetTextDatum(GetUserNameFromId(role, false));
	saga_owner_enter(&owner);
	n = (int) saga_statement_run(&find_due, values, NULL, false, max);
	return_due(refs, n);
	if (n > 0)
	{
		bool		isnull;

		position->due_at =
			DatumGetTimestampTz(saga_statement_datum(n - 1, 5, &isnull));
		position->id = refs[n - 1].id;
	}
	*complete = n < max && n < 4096;
	if (*complete)
	{
		position->due_at = DT_NOBEGIN;
		position->id = 0;
		*next_due = next_due_of_role(role, now);
	}
	saga_owner_leave(&owner);
	return n;
}

int
saga_store_find_due_of_others(const SagaDuePosition *after,
							  SagaDuePosition *before,
							  const int32 *definitions, int ndefinitions,
							  SagaRef *refs, int max)
{
	Oid			role = GetUserId();
	Datum		values[9];
	Datum	   *ids = palloc(ndefinitions * sizeof(Datum));
	SagaOwnerSwitch owner;
	bool		isnull;
	int			n;
	int			last;

	look_up_names();
	if (saga_tables_is_copy())
		return 0;
	for (int i = 0; i < ndefinitions; i++)
		ids[i] = Int32GetDatum(definitions[i]);
	values[0] = ObjectIdGetDatum(role);
	values[1] = TimestampTzGetDatum(after->due_at);
	values[2] = Int64GetDatum(after->id);
	values[3] = TimestampTzGetDatum(before->due_at);
	values[4] = Int64GetDatum(before->id);
	values[5] = UUIDPGetDatum(&names->coordinator);
	values[6] = CStringGetTextDatum(GetUserNameFromId(role, false));
	values[7] = PointerGetDatum(construct_array(ids, ndefinitions, INT4OID,
												sizeof(int32), true,
												TYPALIGN_INT));
	values[8] = Int64GetDatum(max);
	saga_owner_enter(&owner);
	n = (int) saga_statement_run(&find_due_of_others, values, NULL, false, 0);
	last = n - 1;
	/* where it ended is a row of its own, unless "max" ended it */
	if (n > 0 && DatumGetBool(saga_statement_datum(last, 6, &isnull)))
		n--;
	if (n == max)
		last = n - 1;
	before->due_at = DT_NOBEGIN;
	if (n == max || last == n)
	{
		before->due_at =
			DatumGetTimestampTz(saga_statement_datum(last, 5, &isnull));
		before->id = DatumGetInt64(saga_statement_datum(last, 1, &isnull));
	}
	return_due(refs, n);
	saga_owner_leave(&owner);
	return n;
}

/* Put the sagas that a statement has returned into "refs". */
static void
return_sagas(SagaRef *refs, int n)
{
	for (int i = 0; i < n; i++)
	{
		bool		isnull;

		refs[i] = (SagaRef)
		{
			.id = DatumGetInt64(saga_statement_datum(i, 1, &isnull)),
			.slot = DatumGetInt16(saga_statement_datum(i, 2, &isnull))
		};
	}
}

int
saga_store_find_messages(Oid role, int64 after, SagaRef *refs, int max)
{
	Datum		values[3];
	SagaOwnerSwitch owner;
	int			n;

	look_up_names();
	if (saga_tables_is_copy())
		return 0;
	values[0] = ObjectIdGetDatum(role);
	values[1] = UUIDPGetDatum(&names->coordinator);
	values[2] = Int64GetDatum(after);
	saga_owner_enter(&owner);
	n = (int) saga_statement_run(&find_messages, values, NULL, false, max);
	return_sagas(refs, n);
	saga_owner_leave(&owner);
	return n;
}

/* No more than are asked for are read, wherever that is: those that are taken
 * are gone the next time. */
static SagaStatement find_answered = {
	"SELECT DISTINCT e.saga_id, e.slot"
	" FROM (SELECT id FROM saga.queue UNION ALL"
	"       SELECT id FROM saga.server_role WHERE role = $1) q CROSS JOIN LATERAL"
	" (SELECT t.saga_id, t.slot FROM saga.task t"
	"  WHERE t.queue_id = q.id AND t.claimed AND t.at IS NOT NULL"
	"  AND t.outcome IS NOT NULL AND t.role = $1"
	"  AND " SAGA_OF("t", "s.coordinator") " = $2"
	"  ORDER BY t.at LIMIT $3) e",
	3, {OIDOID, UUIDOID, INT8OID}, NULL
};

int
saga_store_find_answered(Oid role, SagaRef *refs, int max)
{
	Datum		values[3];
	SagaOwnerSwitch owner;
	int			n;

	look_up_names();
	if (saga_tables_is_empty("task") || saga_tables_is_copy())
		return 0;
	values[0] = ObjectIdGetDatum(role);
	values[1] = UUIDPGetDatum(&names->coordinator);
	values[2] = Int64GetDatum(max);
	saga_owner_enter(&owner);
	n = (int) saga_statement_run(&find_answered, values, NULL, true, max);
	return_sagas(refs, n);
	saga_owner_leave(&owner);
	return n;
}

/* Put the branches that a statement has returned into "refs". */
static void
return_branches(SagaRef *refs, int n)
{
	for (int i = 0; i < n; i++)
	{
		bool		isnull;

		refs[i] = (SagaRef)
		{
			.id = DatumGetInt64(saga_statement_datum(i, 1, &isnull)),
			.slot = SAGA_BRANCH_SLOT
		};
	}
}

int
saga_store_find_branches(int64 saga_id, SagaRef *refs, int max)
{
	Datum		value = Int64GetDatum(saga_id);
	SagaOwnerSwitch owner;
	int			n;

	saga_owner_enter(&owner);
	n = (int) saga_statement_run(&find_branches, &value, NULL, false, max);
	return_branches(refs, n);
	saga_owner_leave(&owner);
	return n;
}

int
saga_store_find_children(int64 saga_id, SagaRef *refs, int max)
{
	Datum		value = Int64GetDatum(saga_id);
	SagaOwnerSwitch owner;
	int			n;

	if (max <= 0)
		return 0;				/* to a statement no limit */
	saga_owner_enter(&owner);
	n = (int) saga_statement_run(&find_children, &value, NULL, false, max);
	for (int i = 0; i < n; i++)
	{
		bool		isnull;

		refs[i] = (SagaRef)
		{
			.id = DatumGetInt64(saga_statement_datum(i, 1, &isnull)),
			.slot = DatumGetInt16(saga_statement_datum(i, 2, &isnull)),
			.suspect = DatumGetBool(saga_statement_datum(i, 3, &isnull))
		};
	}
	saga_owner_leave(&owner);
	return n;
}

int
saga_store_find_role_branches(Oid role, int64 after, SagaRef *refs, int max)
{
	char	   *role_name;
	Datum		values[4];
	SagaOwnerSwitch owner;
	int			n;

	look_up_names();
	role_name = GetUserNameFromId(role, true);
	if (saga_tables_is_copy() || role_name == NULL ||
		saga_tables_is_empty("branch"))
		return 0;
	values[0] = ObjectIdGetDatum(role);
	values[1] = UUIDPGetDatum(&names->coordinator);
	values[2] = Int64GetDatum(after);
	values[3] = CStringGetTextDatum(role_name);
	saga_owner_enter(&owner);
	n = (int) saga_statement_run(&find_role_branches, values, NULL, false, max);
	return_branches(refs, n);
	saga_owner_leave(&owner);
	return n;
}

bool
saga_store_look(SagaRoleCallback callback)
{
	Datum		values[2];
	SagaOwnerSwitch owner;
	uint64		n;

	look_up_names();
	if (saga_tables_is_copy())
		return false;
	values[0] = TimestampTzGetDatum(GetCurrentTimestamp());
	values[1] = UUIDPGetDatum(&names->coordinator);
	saga_owner_enter(&owner);
	n = saga_statement_run(&look_at_roles, values, NULL, false, 0);
	for (uint64 i = 0; i < n; i++)
	{
		bool		isnull;
		Oid			role = DatumGetObjectId(saga_statement_datum(i, 1, &isnull));
		bool		due = DatumGetBool(saga_statement_datum(i, 2, &isnull));
		bool		message = DatumGetBool(saga_statement_datum(i, 3, &isnull));
		Datum		next_due = saga_statement_datum(i, 4, &isnull);

		callback(role, due, message,
				 isnull ? DT_NOEND : DatumGetTimestampTz(next_due));
	}
	saga_owner_leave(&owner);
	return n > 0;
}


/* ---- how many there are -------------------------------------------------- */

/* All that are in the index of what is not final. */
static SagaStatement count_unfinished = {
	"SELECT v.name, x.status, x.waiting_for, x.is_foreign, x.n FROM ("
	" SELECT s.definition_id, s.status, s.waiting_for,"
	"  s.coordinator IS DISTINCT FROM $1 AS is_foreign, pg_catalog.count(*) AS n"
	" FROM saga.saga s WHERE s.due_at IS NOT NULL GROUP BY 1, 2, 3, 4) x"
	" LEFT JOIN saga.definition_version v ON v.id = x.definition_id"
	" ORDER BY v.name",
	1, {UUIDOID}, NULL
};
static SagaStatement find_prepared_before = {
	"SELECT FROM pg_catalog.pg_prepared_xact() p"
	" WHERE p.dbid = $1 AND p.prepared < $2",
	2, {OIDOID, TIMESTAMPTZOID}, NULL
};

/* Are there any that were prepared before then? */
static bool
has_prepared_before(TimestampTz before)
{
	Datum		values[2] = {ObjectIdGetDatum(MyDatabaseId),
	TimestampTzGetDatum(before)};
	SagaOwnerSwitch owner;
	uint64		n;

	saga_owner_enter(&owner);
	n = saga_statement_run(&find_prepared_before, values, NULL, true, 1);
	saga_owner_leave(&owner);
	return n > 0;
}

/* Put row "i" of the count to those of its definition, which come together;
 * returns how many definitions there are now. */
static int
collect_count(uint64 i, SagaCount *counts, int ncounts)
{
	bool		isnull;
	Datum		name = saga_statement_datum(i, 1, &isnull);
	char	   *definition = isnull ? NULL : TextDatumGetCString(name);
	Datum		status = saga_statement_datum(i, 2, &isnull);
	Datum		wait = saga_statement_datum(i, 3, &isnull);
	char	   *waiting_for = isnull ? NULL : TextDatumGetCString(wait);
	bool		foreign = DatumGetBool(saga_statement_datum(i, 4, &isnull));
	int64		n = DatumGetInt64(saga_statement_datum(i, 5, &isnull));
	SagaReason	reason = foreign ? SAGA_REASON_ADOPT :
		saga_stats_reason(waiting_for);

	if (ncounts == 0 ||
		(definition == NULL) != (counts[ncounts - 1].definition == NULL) ||
		(definition != NULL &&
		 strcmp(definition, counts[ncounts - 1].definition) != 0))
		counts[ncounts++].definition = definition;
	counts[ncounts - 1].n[saga_tables_label(names->status, SAGA_NUNFINISHED,
											status)] += n;
	counts[ncounts - 1].n[SAGA_NUNFINISHED + reason] += n;
	return ncounts;
}

/* Under the active snapshot; in SPI's memory. */
static SagaCount *
count_all(int *ncounts)
{
	bool		copy = saga_tables_is_copy();
	Datum		value = UUIDPGetDatum(&names->coordinator);
	SagaCount  *counts;
	uint64		n;

	n = saga_statement_run(&count_unfinished, &value, copy ? "n" : NULL, true,
						   0);
	counts = palloc0((n + 1) * sizeof(SagaCount));
	*ncounts = 0;
	for (uint64 i = 0; i < n; i++)
		*ncounts = collect_count(i, counts, *ncounts);
	return counts;
}

static void
count_under(uint32 number, Snapshot snapshot)
{
	SagaOwnerSwitch owner;
	SagaCount  *counts;
	int			ncounts;

	PushActiveSnapshot(snapshot);
	saga_owner_enter(&owner);
	counts = count_all(&ncounts);
	saga_stats_count_done(number, counts, ncounts);
	saga_owner_leave(&owner);
	PopActiveSnapshot();
}

SagaCount *
saga_store_count_seen(int *ncounts)
{
	MemoryContext caller = CurrentMemoryContext;
	SagaOwnerSwitch owner;
	SagaCount  *counts;
	SagaCount  *copy;

	look_up_names();
	saga_owner_enter(&owner);
	counts = count_all(ncounts);
	MemoryContextSwitchTo(caller);
	copy = palloc((*ncounts + 1) * sizeof(SagaCount));
	for (int i = 0; i < *ncounts; i++)
	{
		copy[i] = counts[i];
		if (copy[i].definition != NULL)
			copy[i].definition = pstrdup(copy[i].definition);
	}
	saga_owner_leave(&owner);
	MemoryContextSwitchTo(caller);
	return copy;
}

void
saga_store_count_unfinished(void)
{
	TimestampTz before = saga_stats_lost_before();
	Snapshot	snapshot = NULL;
	uint32		number;
	bool		lost;

	look_up_names();
	(void) saga_tables_is_copy();	/* may look names up again */
	/* before the snapshot: who is not found has committed before that */
	lost = before != 0 && has_prepared_before(before);
	number = saga_stats_count_begin(&snapshot);
	if (number == 0)
		return;
	PG_TRY();
	{
		count_under(number, snapshot);
	}
	PG_CATCH();
	{
		saga_stats_count_failed(number);
		PG_RE_THROW();
	}
	PG_END_TRY();
	if (before != 0 && !lost)
		saga_stats_none_lost(before);
}


/* ---- adopting ------------------------------------------------ */

/* A new identity, for a copy made of files or when the row is gone. */
static const char *const renew_identity =
	"WITH o AS (SELECT d.oid FROM pg_catalog.pg_database d"
	"           WHERE d.datname = pg_catalog.current_database())"
	" INSERT INTO saga.coordinator (database) SELECT o.oid FROM o"
	" ON CONFLICT (singleton) DO UPDATE"
	"  SET id = pg_catalog.gen_random_uuid(), database = EXCLUDED.database,"
	"      created_at = pg_catalog.now()"
	"  WHERE coordinator.database <> EXCLUDED.database";

/* From now on, and not before, sagas of others that have ended are removed too
 * when their time has come: see retention.c. */
static const char *const note_adoption =
	"UPDATE saga.coordinator SET adopted_at = pg_catalog.now()";

/* Roles of this coordinator's own sagas may have been renamed since. */
static const char *const follow_renames =
	"UPDATE saga.saga s SET role_name = r.rolname, turn = s.turn + 1"
	" FROM saga.coordinator c, pg_catalog.pg_roles r"
	" WHERE s.due_at IS NOT NULL AND s.coordinator = c.id"
	" AND s.role = r.oid AND s.role_name <> r.rolname";

/* What refers to sagas follows their roles. */
static const char *const adopt_statements[] = {
	"UPDATE saga.message m SET role = r.oid"
	" FROM saga.saga s, pg_catalog.pg_roles r"
	" WHERE s.id = m.saga_id AND r.rolname = s.role_name AND r.oid <> m.role",
	"UPDATE saga.branch b SET role = r.oid"
	" FROM saga.saga s, pg_catalog.pg_roles r"
	" WHERE s.id = b.saga_id AND r.rolname = s.role_name AND r.oid <> b.role",
	"UPDATE saga.lock l SET role = r.oid"
	" FROM saga.saga s, pg_catalog.pg_roles r"
	" WHERE s.id = l.saga_id AND r.rolname = s.role_name AND r.oid <> l.role",
	"UPDATE saga.task t SET role = r.oid"
	" FROM saga.saga s, pg_catalog.pg_roles r"
	" WHERE s.id = t.saga_id AND r.rolname = s.role_name AND r.oid <> t.role"
};
static const char *const adopt_sagas =
	"UPDATE saga.saga s SET role = r.oid, turn = s.turn + 1,"
	"  coordinator = (SELECT c.id FROM saga.coordinator c)"
	" FROM pg_catalog.pg_roles r"
	" WHERE s.due_at IS NOT NULL AND r.rolname = s.role_name"
	" AND (r.oid <> s.role"
	"      OR s.coordinator <> (SELECT c.id FROM saga.coordinator c))";
static const char *const list_unbound =
	"SELECT DISTINCT s.role_name FROM saga.saga s"
	" WHERE s.due_at IS NOT NULL AND NOT EXISTS"
	"  (SELECT FROM pg_catalog.pg_roles r WHERE r.rolname = s.role_name)"
	" ORDER BY 1";

static uint64
execute(const char *sql)
{
	int			result = SPI_execute(sql, false, 0);

	if (result < 0)
		elog(ERROR, "could not execute \"%s\": %s", sql,
			 SPI_result_code_string(result));
	return SPI_processed;
}

int64
saga_store_adopt(List **unbound)
{
	MemoryContext caller = CurrentMemoryContext;
	SagaOwnerSwitch owner;
	int64		adopted;
	uint64		n;

	*unbound = NIL;
	saga_stats_uncertain();
	/* every backend remembers who this coordinator is */
	saga_owner_invalidate();
	saga_owner_enter(&owner);
	execute(renew_identity);
	execute(note_adoption);
	adopted = (int64) execute(follow_renames);
	adopted += (int64) execute(adopt_sagas);
	for (size_t i = 0; i < lengthof(adopt_statements); i++)
		execute(adopt_statements[i]);
	/* everybody has the identity and the slot in memory */
	CacheInvalidateRelcacheByRelid(get_relname_relid("saga",
													 get_namespace_oid("saga", false)));
	saga_tables_forget_names();
	n = execute(list_unbound);
	for (uint64 i = 0; i < n; i++)
	{
		bool		isnull;
		char	   *name = TextDatumGetCString(saga_statement_datum(i, 1, &isnull));
		MemoryContext old = MemoryContextSwitchTo(caller);

		*unbound = lappend(*unbound, pstrdup(name));
		MemoryContextSwitchTo(old);
	}
	saga_owner_leave(&owner);
	return adopted;
}
