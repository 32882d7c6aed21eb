/*
 * upkeep.c
 *		Owns what is done about tasks that nobody looks after: leases that are
 *		over, answers that no executor has taken, tasks that wait, and rows of
 *		tasks that ended long ago.
 *
 * The coordinator calls it, and CALL saga.recover().  A row that somebody has
 * locked is left for the next time.
 */
#include "postgres.h"

#include "access/genam.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "guc.h"
#include "owner.h"
#include "queue.h"
#include "statement.h"
#include "store.h"
#include "task.h"
#include "taskrow.h"
#include "upkeep.h"

/* One whose row somebody had locked is looked at again after so long. */
#define SKIPPED_PAUSE	USECS_PER_SEC

/* In one batch: leases that are ended, rows that are deleted, and looked at for
 * that. */
#define MAX_EXPIRED		1000
#define MAX_PURGED		1000
#define MAX_PURGE_LOOK	20000

/* Those of participants and of servers. */
#define QUEUES \
	"(SELECT id FROM saga.queue UNION ALL SELECT id FROM saga.server_role) q"

#define EXPIRED_OF_QUEUES(condition) \
	"SELECT e.id FROM " QUEUES " CROSS JOIN LATERAL" \
	" (SELECT t.id, t.at FROM saga.task t" \
	"  WHERE t.queue_id = q.id AND t.claimed AND t.at IS NOT NULL AND " condition \
	"  AND " SAGA_OF("t", "s.coordinator") " = $2" \
	"  ORDER BY t.at LIMIT 1000) e ORDER BY e.id"

static SagaStatement find_expired = {
	EXPIRED_OF_QUEUES("t.at <= $1"), 2, {TIMESTAMPTZOID, UUIDOID}, NULL
};
/* Reads all that are claimed. */
static SagaStatement find_forgotten = {
	EXPIRED_OF_QUEUES("(t.at <= $1 OR t.ended_at <= $3)"),
	3, {TIMESTAMPTZOID, UUIDOID, TIMESTAMPTZOID}, NULL
};
static SagaStatement find_next_end = {
	"SELECT pg_catalog.min(e.at) FROM " QUEUES " CROSS JOIN LATERAL"
	" (SELECT t.at FROM saga.task t"
	"  WHERE t.queue_id = q.id AND t.claimed AND t.at > $1"
	"  ORDER BY t.at LIMIT 1) e",
	1, {TIMESTAMPTZOID}, NULL
};
/* What a courier has claimed it may have left behind. */
static SagaStatement find_ready_queues = {
	"SELECT q.id, q.name FROM saga.queue q"
	" WHERE EXISTS (SELECT FROM saga.task t"
	"  WHERE t.queue_id = q.id AND NOT t.claimed AND t.at IS NOT NULL)"
	" UNION ALL SELECT r.id, r.server FROM saga.server_role r"
	" WHERE EXISTS (SELECT FROM saga.task t"
	"  WHERE t.queue_id = r.id AND t.at IS NOT NULL)",
	0, {0}, NULL
};

/* The tasks whose lease is over, and those that were answered before then and
 * whose answer nobody has taken, by their ids; returns how many. */
static int
list_expired(TimestampTz now, TimestampTz answered_before, int64 *ids, int max)
{
	Datum		values[3];
	SagaOwnerSwitch owner;
	int			n;

	values[0] = TimestampTzGetDatum(now);
	values[1] = UUIDPGetDatum(&saga_tables_names()->coordinator);
	values[2] = TimestampTzGetDatum(answered_before);
	saga_owner_enter(&owner);
	n = (int) saga_statement_run(answered_before == DT_NOBEGIN ?
								 &find_expired : &find_forgotten,
								 values, NULL, true, max);
	for (int i = 0; i < n; i++)
	{
		bool		isnull;

		ids[i] = DatumGetInt64(saga_statement_datum(i, 1, &isnull));
	}
	saga_owner_leave(&owner);
	return n;
}

static TimestampTz
next_end(TimestampTz now)
{
	Datum		values[1] = {TimestampTzGetDatum(now)};
	TimestampTz end = DT_NOEND;
	SagaOwnerSwitch owner;
	Datum		value;
	bool		isnull;

	saga_owner_enter(&owner);
	(void) saga_statement_run(&find_next_end, values, NULL, true, 1);
	value = saga_statement_datum(0, 1, &isnull);
	if (!isnull)
		end = DatumGetTimestampTz(value);
	saga_owner_leave(&owner);
	return end;
}

/* The lease is over: for the saga an attempt that may have had its effect. */
static void
end_lease(SagaTaskTable *tasks, SagaTaskRow *row)
{
	const SagaQueue *queue = saga_taskrow_queue(row);
	SagaOutcome outcome;

	if (saga_taskrow_is_aside(row))
	{
		saga_taskrow_give_back(tasks, row);
		if (queue != NULL)
			saga_qstate_offered(queue->id, queue->name, 0);
		return;
	}
	saga_task_lease_outcome(saga_taskrow_text(row, TASK_PARTICIPANT), &outcome);
	saga_taskrow_send(tasks, row, saga_taskrow_make_answer(row, &outcome));
	saga_taskrow_expire(tasks, row);
	if (queue != NULL)
		saga_qstate_answered(queue->id, queue->name, &queue->breaker, 0, 0, 1);
}

/* Nobody has taken the answer: the saga finds it as a message. */
static void
deliver_answer(SagaTaskTable *tasks, SagaTaskRow *row)
{
	saga_taskrow_send(tasks, row, DatumGetJsonbP(row->values[TASK_ANSWER]));
	saga_taskrow_end(tasks, row);
}

TimestampTz
saga_upkeep_end_leases(TimestampTz answered_before, int64 *ended)
{
	TimestampTz now = GetCurrentTimestamp();
	int64	   *ids;
	TimestampTz next;
	SagaTaskTable tasks;
	SagaTaskRow row;
	int			n;
	int			skipped = 0;
	int			over = 0;

	(void) saga_tables_names();
	if (saga_tables_is_empty("task") || saga_tables_is_copy())
		return DT_NOEND;
	ids = palloc(MAX_EXPIRED * sizeof(int64));
	n = list_expired(now, answered_before, ids, MAX_EXPIRED);
	saga_taskrow_open(&tasks);
	for (int i = 0; i < n; i++)
	{
		CHECK_FOR_INTERRUPTS();
		/* whoever has it locked is about to answer, extend or take it */
		if (!saga_taskrow_lock(&tasks, ids[i], false, &row))
			skipped++;
		else if (saga_taskrow_has_answer(&row))
			deliver_answer(&tasks, &row);
		else if (saga_taskrow_is_claimed(&row) &&
				 saga_taskrow_time(&row, TASK_AT) <= now)
		{
			end_lease(&tasks, &row);
			over++;
		}
	}
	saga_taskrow_close(&tasks);
	pfree(ids);
	if (ended != NULL)
		*ended += over;
	if (n == MAX_EXPIRED && skipped < n)
		return now;				/* there are more */
	next = next_end(now);
	return skipped > 0 ? Min(next, now + SKIPPED_PAUSE) : next;
}

void
saga_upkeep_announce_ready(void)
{
	SagaOwnerSwitch owner;
	uint64		n;

	(void) saga_tables_names();
	if (saga_tables_is_empty("task") || saga_tables_is_copy())
		return;
	saga_owner_enter(&owner);
	n = saga_statement_run(&find_ready_queues, NULL, NULL, true, 0);
	for (uint64 i = 0; i < n; i++)
	{
		bool		isnull;
		int32		id = DatumGetInt32(saga_statement_datum(i, 1, &isnull));
		Datum		name = saga_statement_datum(i, 2, &isnull);

		saga_qstate_offered(id, TextDatumGetCString(name), 0);
	}
	saga_owner_leave(&owner);
}

/*
 * Ids grow with the time at which tasks were offered, so none behind the first
 * that was offered too lately can have ended long enough ago.  "purged_until"
 * keeps the next batch from reading again what this one has deleted.
 */
int64
saga_upkeep_purge(void)
{
	static int64 purged_until = 0;
	TimestampTz before = GetCurrentTimestamp() -
		saga_answer_retention * USECS_PER_SEC;
	SagaTaskTable tasks;
	ScanKeyData key;
	IndexScanDesc scan;
	TupleTableSlot *slot;
	int64		looked = 0;
	int64		purged = 0;

	(void) saga_tables_names();
	if (saga_tables_is_empty("task") || saga_tables_is_copy())
		return 0;
	saga_taskrow_open(&tasks);
	slot = tasks.table->slot;
	ScanKeyInit(&key, 1, BTGreaterStrategyNumber, F_INT8GT,
				Int64GetDatum(purged_until));
	scan = saga_index_beginscan(tasks.table->rel, tasks.table->pkey,
								tasks.snapshot, 1);
	index_rescan(scan, &key, 1, NULL, 0);
	purged_until = 0;
	while (index_getnext_slot(scan, ForwardScanDirection, slot))
	{
		CHECK_FOR_INTERRUPTS();
		slot_getallattrs(slot);
		if (DatumGetTimestampTz(slot->tts_values[TASK_OFFERED_AT]) >= before)
			break;
		if (purged == MAX_PURGED || looked++ == MAX_PURGE_LOOK)
		{
			purged_until = DatumGetInt64(slot->tts_values[TASK_ID]) - 1;
			break;
		}
		if (!slot->tts_isnull[TASK_AT] ||
			DatumGetTimestampTz(slot->tts_values[TASK_ENDED_AT]) >= before ||
			!saga_taskrow_lock_found(&tasks))
			continue;
		saga_table_delete(tasks.table, &slot->tts_tid);
		purged++;
	}
	index_endscan(scan);
	saga_taskrow_close(&tasks);
	return purged;
}
