/*
 * survey.c
 *		The functions behind the views that look at all sagas at once: which
 *		roles have something unfinished, and which saga has waited longest.
 *
 * They read beginnings of indexes and never count: what they cost depends on
 * the number of roles and of definitions, not of sagas.  While somebody holds
 * back vacuum, an index begins with any number of entries whose sagas have ended
 * long ago.  That is just when these views are asked, so no more than some
 * ten thousand of these are looked at: then what is looked for is not known.
 *
 * Any backend, also in recovery; only reads, with the snapshot of the query.
 * Who may use the views may call these too, so what they show is limited here.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/itup.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "nodes/pg_list.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/fmgroids.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "compat.h"
#include "owner.h"
#include "shared.h"
#include "tables.h"

PG_FUNCTION_INFO_V1(saga_oldest_raw);
PG_FUNCTION_INFO_V1(saga_roles_raw);

/* So many rows are looked at for one answer, and by one call.  Entries of rows
 * that nobody can see any more are marked so, and then cost nothing. */
#define VISITS_EACH		20000
#define VISITS_ALL		60000

/* Both indexes have three columns. */
#define NKEYS			3


/* ---- walking along an index -------------------------------------------------- */

typedef struct Walk
{
	SagaTable  *table;
	IndexScanDesc scan;
	Datum		entry[NKEYS];	/* where it is */
	int			visits;			/* that are left for this answer */
	int		   *all_visits;		/* and for the whole call */
} Walk;

typedef enum Found
{
	FOUND_ROW,					/* in the table's slot */
	FOUND_NONE,
	FOUND_TOO_MANY				/* nobody knows */
} Found;

/* The index of a leaf whose first columns are these, of the script's order. */
static Relation
find_index(SagaTable *table, int first, int second)
{
	for (int i = 0; i < table->nindexes; i++)
	{
		Form_pg_index index = table->indexes[i]->rd_index;

		if (index->indnkeyatts == NKEYS && index->indisvalid &&
			index->indkey.values[0] == first + 1 &&
			index->indkey.values[1] == second + 1 &&
			index->indkey.values[2] == SAGA_ID + 1)
			return table->indexes[i];
	}
	elog(ERROR, "table \"%s\" has lost an index",
		 RelationGetRelationName(table->rel));
	return NULL;				/* keep the compiler quiet */
}

static void
walk_begin(Walk *walk, SagaTable *table, Relation index, int nkeys,
		   int *all_visits)
{
	walk->table = table;
	walk->scan = saga_index_beginscan(table->rel, index, GetActiveSnapshot(), nkeys);
	walk->scan->xs_want_itup = true;
	walk->all_visits = all_visits;
}

static void
walk_end(Walk *walk)
{
	index_endscan(walk->scan);
}

/* The next entry, of a row that may be gone. */
static bool
walk_next(Walk *walk)
{
	bool		nulls[NKEYS];

	CHECK_FOR_INTERRUPTS();
	if (index_getnext_tid(walk->scan, ForwardScanDirection) == NULL)
		return false;
	index_deform_tuple(walk->scan->xs_itup, walk->scan->xs_itupdesc,
					   walk->entry, nulls);
	return true;
}

/* The first one of those that the keys are for, as many as the walk was begun
 * with. */
static bool
walk_to(Walk *walk, ScanKey keys)
{
	index_rescan(walk->scan, keys, walk->scan->numberOfKeys, NULL, 0);
	walk->visits = VISITS_EACH;
	return walk_next(walk);
}

/*
 * Go on from the present entry, to one whose row is there.  Who has looked at
 * too many looks at no more.
 */
static Found
walk_to_row(Walk *walk)
{
	do
	{
		if (walk->visits-- <= 0 || (*walk->all_visits)-- <= 0)
			return FOUND_TOO_MANY;
		if (index_fetch_heap(walk->scan, walk->table->slot))
		{
			slot_getallattrs(walk->table->slot);
			return FOUND_ROW;
		}
	} while (walk_next(walk));
	return FOUND_NONE;
}

static Found
find_first(Walk *walk, ScanKey keys)
{
	return walk_to(walk, keys) ? walk_to_row(walk) : FOUND_NONE;
}


/* ---- the oldest saga of each definition -------------------------------------- */

/* What a call of one of the functions has in hand. */
typedef struct Survey
{
	const SagaNames *names;
	ReturnSetInfo *result;
	Oid			user;
	bool		sees_all;
	bool		is_copy;		/* all sagas wait for saga.adopt() */
	int			visits;
} Survey;

static void
start_survey(Survey *survey, FunctionCallInfo fcinfo)
{
	InitMaterializedSRF(fcinfo, 0);
	survey->names = saga_tables_names();
	survey->result = (ReturnSetInfo *) fcinfo->resultinfo;
	survey->user = GetUserId();
	survey->sees_all = saga_owner_sees_health();
	survey->is_copy = saga_tables_is_copy();
	survey->visits = VISITS_ALL;
}

static bool
may_see(const Survey *survey, Oid role)
{
	return survey->sees_all || has_privs_of_role(survey->user, role);
}

/* "row" is that of the saga, or NULL if it is not known which that is. */
static void
put_oldest(Survey *survey, Datum definition, TupleTableSlot *row)
{
	Datum		values[3] = {definition};
	bool		nulls[3] = {false, row == NULL, row == NULL};

	if (row != NULL &&
		!may_see(survey, DatumGetObjectId(row->tts_values[SAGA_ROLE])))
		return;
	if (row != NULL)
	{
		values[1] = row->tts_values[SAGA_ID];
		values[2] = row->tts_values[SAGA_CREATED_AT];
	}
	tuplestore_putvalues(survey->result->setResult, survey->result->setDesc,
						 values, nulls);
}

/* The versions that have sagas of this status in a leaf, one after the other. */
static void
survey_status(Survey *survey, Walk *walk, Oid status)
{
	ScanKeyData next[2];
	ScanKeyData one[2];
	Datum		definition = Int32GetDatum(PG_INT32_MIN);

	ScanKeyInit(&next[0], 1, BTEqualStrategyNumber, F_ENUM_EQ,
				ObjectIdGetDatum(status));
	one[0] = next[0];
	for (;;)
	{
		Found		found;

		ScanKeyInit(&next[1], 2, BTGreaterStrategyNumber, F_INT4GT, definition);
		if (!walk_to(walk, next))
			return;
		definition = walk->entry[1];
		ScanKeyInit(&one[1], 2, BTEqualStrategyNumber, F_INT4EQ, definition);
		found = find_first(walk, one);
		if (found != FOUND_NONE)
			put_oldest(survey, definition,
					   found == FOUND_ROW ? walk->table->slot : NULL);
	}
}

/*
 * saga.oldest_raw(): by saga_unfinished, of each version that has sagas that are
 * not final the one with the smallest id, among others; without an id if that
 * is not known.
 */
Datum
saga_oldest_raw(PG_FUNCTION_ARGS)
{
	Survey		survey;

	start_survey(&survey, fcinfo);
	for (int leaf = 0; leaf < SAGA_NSLOTS; leaf++)
	{
		SagaTable  *table = saga_table_open(SAGA_TABLE_SAGA, leaf,
											AccessShareLock);
		Walk		walk;

		walk_begin(&walk, table,
				   find_index(table, SAGA_STATUS, SAGA_DEFINITION_ID), 2,
				   &survey.visits);
		for (int status = 0; status < SAGA_NSTATUS; status++)
			if (!saga_status_is_final((SagaStatus) status))
				survey_status(&survey, &walk, survey.names->status[status]);
		walk_end(&walk);
		saga_table_close(table);
	}
	return (Datum) 0;
}


/* ---- roles ------------------------------------------------------------------- */

/* So many due sagas of a role and leaf are looked at: one that went on has
 * waited since its last operation only. */
#define CANDIDATES		10

typedef struct RoleInfo
{
	Oid			role;
	Datum		role_name;
	bool		foreign;		/* it has some of another coordinator */
	bool		unknown;		/* not all was looked at */
	int64		oldest_id;		/* 0 = none */
	TimestampTz oldest_due;
	TimestampTz next_due;		/* DT_NOEND = none */
} RoleInfo;

/* Keys of a role, and of a range of times. */
#define NROLEKEYS		3

static void
set_keys(ScanKey keys, StrategyNumber role_strategy, Oid role,
		 TimestampTz from, TimestampTz to)
{
	ScanKeyInit(&keys[0], 1, role_strategy,
				role_strategy == BTEqualStrategyNumber ? F_OIDEQ : F_OIDGT,
				ObjectIdGetDatum(role));
	ScanKeyInit(&keys[1], 2, BTGreaterEqualStrategyNumber, F_TIMESTAMPTZ_GE,
				TimestampTzGetDatum(from));
	ScanKeyInit(&keys[2], 2, BTLessEqualStrategyNumber, F_TIMESTAMPTZ_LE,
				TimestampTzGetDatum(to));
}

static RoleInfo *
role_info(List **roles, Oid role)
{
	RoleInfo   *info;
	ListCell   *cell;

	foreach(cell, *roles)
	{
		info = lfirst(cell);
		if (info->role == role)
			return info;
	}
	info = palloc0(sizeof(RoleInfo));
	info->role = role;
	info->next_due = DT_NOEND;
	*roles = lappend(*roles, info);
	return info;
}

/* Is an operation of this saga called just now? */
static bool
is_running(const SagaProcessInfo *processes, int nprocesses, int64 id)
{
	for (int i = 0; i < nprocesses; i++)
		if (processes[i].database == MyDatabaseId &&
			processes[i].doing.saga_id == id)
			return true;
	return false;
}

static void
find_last_end(TupleTableSlot *slot, void *arg)
{
	TimestampTz *last = arg;

	if (!slot->tts_isnull[STEP_FINISHED_AT])
		*last = Max(*last,
					DatumGetTimestampTz(slot->tts_values[STEP_FINISHED_AT]));
}

/*
 * Since when a due saga, whose row this is, has waited.  Its due_at stays as it
 * is while it goes on, so that its updates are HOT.
 */
static TimestampTz
waits_since(TupleTableSlot *row, SagaTable *steps)
{
	TimestampTz since = DatumGetTimestampTz(row->tts_values[SAGA_DUE_AT]);

	if (DatumGetInt32(row->tts_values[SAGA_TURN]) > 0 &&
		row->tts_isnull[SAGA_WAITING_FOR])
		saga_table_scan(steps, GetActiveSnapshot(),
						DatumGetInt64(row->tts_values[SAGA_ID]),
						find_last_end, &since);
	return since;
}

/* False if the saga of this row waits for saga.adopt(). */
static bool
look_at_row(const Survey *survey, RoleInfo *info, TupleTableSlot *row)
{
	bool		own = !survey->is_copy &&
		memcmp(DatumGetUUIDP(row->tts_values[SAGA_COORDINATOR]),
			   &survey->names->coordinator, UUID_LEN) == 0;

	if (info->role_name == (Datum) 0)
		info->role_name = datumCopy(row->tts_values[SAGA_ROLE_NAME], false, -1);
	info->foreign |= !own;
	return own;
}

/* What is due of a role in a leaf. */
static void
look_at_due(Survey *survey, RoleInfo *info, Walk *walk, SagaTable *steps,
			TimestampTz now, const SagaProcessInfo *processes, int nprocesses)
{
	TupleTableSlot *row = walk->table->slot;
	ScanKeyData keys[NROLEKEYS];
	Found		found;

	set_keys(keys, BTEqualStrategyNumber, info->role, DT_NOBEGIN, now);
	found = find_first(walk, keys);
	if (found == FOUND_TOO_MANY)
	{
		/* what has fallen due lately is likely to be there, and tells as much */
		set_keys(keys, BTEqualStrategyNumber, info->role, now - USECS_PER_MINUTE,
				 now);
		found = find_first(walk, keys);
		info->unknown = true;
	}
	for (int n = 0; found == FOUND_ROW && n < CANDIDATES; n++)
	{
		int64		id = DatumGetInt64(row->tts_values[SAGA_ID]);

		if (look_at_row(survey, info, row) &&
			!is_running(processes, nprocesses, id))
		{
			TimestampTz since = waits_since(row, steps);

			if (info->oldest_id == 0 || since < info->oldest_due)
			{
				info->oldest_id = id;
				info->oldest_due = since;
			}
		}
		found = walk_next(walk) ? walk_to_row(walk) : FOUND_NONE;
	}
}

/* The next one that falls due, if any waits for a time. */
static void
look_at_next(Survey *survey, RoleInfo *info, Walk *walk, TimestampTz now)
{
	TupleTableSlot *row = walk->table->slot;
	ScanKeyData keys[NROLEKEYS];
	TimestampTz due;
	Found		found;

	set_keys(keys, BTEqualStrategyNumber, info->role, now + 1, DT_NOEND);
	found = find_first(walk, keys);
	info->unknown |= found == FOUND_TOO_MANY;
	if (found != FOUND_ROW)
		return;
	(void) look_at_row(survey, info, row);
	due = DatumGetTimestampTz(row->tts_values[SAGA_DUE_AT]);
	info->next_due = Min(info->next_due, due);
}

static void
survey_leaf(Survey *survey, List **roles, int leaf, TimestampTz now,
			const SagaProcessInfo *processes, int nprocesses)
{
	SagaTable  *table = saga_table_open(SAGA_TABLE_SAGA, leaf, AccessShareLock);
	SagaTable  *steps = saga_table_open(SAGA_TABLE_STEP, leaf, AccessShareLock);
	ScanKeyData keys[NROLEKEYS];
	Oid			role = InvalidOid;
	Walk		walk;

	walk_begin(&walk, table, find_index(table, SAGA_ROLE, SAGA_DUE_AT), NROLEKEYS,
			   &survey->visits);
	for (;;)
	{
		set_keys(keys, BTGreaterStrategyNumber, role, DT_NOBEGIN, DT_NOEND);
		if (!walk_to(&walk, keys))
			break;
		role = DatumGetObjectId(walk.entry[0]);
		if (may_see(survey, role))
		{
			RoleInfo   *info = role_info(roles, role);

			look_at_due(survey, info, &walk, steps, now, processes, nprocesses);
			look_at_next(survey, info, &walk, now);
		}
	}
	walk_end(&walk);
	saga_table_close(steps);
	saga_table_close(table);
}

static void
put_role(Survey *survey, const RoleInfo *info)
{
	Datum		values[6] = {0};
	bool		nulls[6] = {false};

	if (info->role_name == (Datum) 0 && !info->unknown)
		return;					/* what it had has ended */
	values[0] = ObjectIdGetDatum(info->role);
	values[1] = info->role_name;
	nulls[1] = info->role_name == (Datum) 0;
	values[2] = Int64GetDatum(info->oldest_id);
	values[3] = TimestampTzGetDatum(info->oldest_due);
	nulls[2] = nulls[3] = info->oldest_id == 0;
	values[4] = BoolGetDatum(info->foreign);
	values[5] = TimestampTzGetDatum(info->next_due);
	nulls[5] = TIMESTAMP_NOT_FINITE(info->next_due);
	tuplestore_putvalues(survey->result->setResult, survey->result->setDesc,
						 values, nulls);
}

/* saga.roles_raw(): by saga_due, a row for each role with sagas that are not
 * final. */
Datum
saga_roles_raw(PG_FUNCTION_ARGS)
{
	SagaProcessInfo *processes = NULL;
	TimestampTz now = GetCurrentTimestamp();
	List	   *roles = NIL;
	Survey		survey;
	ListCell   *cell;
	int			nprocesses = 0;

	start_survey(&survey, fcinfo);
	if (saga_shared_available())
	{
		processes = palloc(SAGA_MAX_PROCESSES * sizeof(SagaProcessInfo));
		nprocesses = saga_shared_processes(processes);
	}
	for (int leaf = 0; leaf < SAGA_NSLOTS; leaf++)
		survey_leaf(&survey, &roles, leaf, now, processes, nprocesses);
	foreach(cell, roles)
		put_role(&survey, lfirst(cell));
	return (Datum) 0;
}
