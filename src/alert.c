/*
 * alert.c
 *		Owns the tables saga.condition and saga.alert.
 *
 * Who notices a condition:
 *
 *	stuck				the executor, in the transaction that makes it so and that
 *						ends it; likewise the end of an overdue saga
 *	deadlock			the executor that finds the circle
 *	invariant,			who checks it
 *	invariant_failed
 *	overdue, breaker,	the coordinator, in saga_alert_watch(): after each look at
 *	no_worker, and the	the database as a whole, when a deadline has passed, and
 *	end of a deadlock	when shared memory says that something has changed
 *
 * A saga is overdue only some seconds after its deadline: one that has a way
 * back goes back then, and is mostly done with that before anybody could look.
 * That there is no worker because all places are taken is normal for a while.
 *
 * Killed at any line: rows come and go with transactions, and an alert is
 * deleted in the one that sends it.  A restart ends no condition; what has come
 * or gone meanwhile is noticed by the first look.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "alert.h"
#include "json.h"
#include "log.h"
#include "owner.h"
#include "qstate.h"
#include "shared.h"
#include "statement.h"
#include "tables.h"

/* For so long a role may wait for a worker when there is just none left. */
#define WORKER_PATIENCE	(60 * USECS_PER_SEC)
/* ... and when none could be started. */
#define START_PATIENCE	(5 * USECS_PER_SEC)

/* What holds is looked at again after so long, whatever is heard of it. */
#define WATCH_AGAIN		(60 * USECS_PER_SEC)

/* So many sagas are found to be overdue by one look, and alerts sent by one
 * transaction. */
#define MAX_OVERDUE		1000
#define MAX_SENT		1000

/* As ISO 8601 has it, whatever the settings of the session. */
#define NOW \
	"pg_catalog.to_char(pg_catalog.timezone('UTC', pg_catalog.clock_timestamp())," \
	" 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')"

#define PAYLOAD(row, state, message) \
	row ".fields || pg_catalog.jsonb_strip_nulls(pg_catalog.jsonb_build_object(" \
	"'alert', " row ".kind, 'state', '" state "', 'at', " NOW \
	", 'message', " message "))"

/* Everybody may listen, so what a step or a query has said is not sent, nor are
 * names of locks, which are made of what sagas carry: saga.alerts has them. */
#define OWN_WORDS(row) \
	"CASE WHEN " row ".kind IN ('overdue', 'breaker', 'no_worker', 'invariant')" \
	" THEN " row ".message END"

static SagaStatement note_on = {
	"WITH noted AS ("
	"INSERT INTO saga.condition AS c (kind, subject, saga_id, role, role_name,"
	"  definition, message, fields)"
	" VALUES ($1, $2, $3, $4, $5, $6, pg_catalog.left($7, 500), $8)"
	" ON CONFLICT (kind, subject) DO UPDATE SET message = excluded.message"
	"  WHERE c.message IS DISTINCT FROM excluded.message"
	" RETURNING c.*, c.xmax = 0 AS fresh)"
	" INSERT INTO saga.alert (kind, saga_id, payload)"
	" SELECT n.kind, n.saga_id, " PAYLOAD("n", "on", OWN_WORDS("n"))
	" FROM noted n WHERE n.fresh",
	8, {TEXTOID, TEXTOID, INT8OID, OIDOID, TEXTOID, TEXTOID, TEXTOID, JSONBOID}, NULL
};
static SagaStatement note_off = {
	"WITH gone AS (DELETE FROM saga.condition c"
	" WHERE c.kind = $1 AND c.subject = $2 RETURNING c.*)"
	" INSERT INTO saga.alert (kind, saga_id, payload)"
	" SELECT g.kind, g.saga_id, " PAYLOAD("g", "off", "$3::pg_catalog.text")
	" FROM gone g",
	3, {TEXTOID, TEXTOID, TEXTOID}, NULL
};
static SagaStatement adopt_stuck = {
	"WITH noted AS ("
	"INSERT INTO saga.condition AS c (kind, subject, saga_id, role, role_name,"
	"  definition, message, fields)"
	" SELECT 'stuck', 'saga ' || s.id, s.id, s.role, s.role_name, v.name,"
	"  pg_catalog.left(s.error ->> 'message', 500), pg_catalog.jsonb_build_object("
	"   'saga_id', s.id, 'definition', v.name,"
	"   'step', v.steps -> s.step::pg_catalog.int4 ->> 'name')"
	" FROM saga.saga s LEFT JOIN saga.definition_version v ON v.id = s.definition_id"
	" WHERE s.due_at IS NOT NULL AND s.status = 'stuck'"
	" AND s.coordinator = (SELECT o.id FROM saga.coordinator o)"
	" ON CONFLICT (kind, subject) DO NOTHING RETURNING c.*)"
	" INSERT INTO saga.alert (kind, saga_id, payload)"
	" SELECT n.kind, n.saga_id, " PAYLOAD("n", "on", OWN_WORDS("n")) " FROM noted n",
	0, {0}, NULL
};
static SagaStatement send = {
	"WITH gone AS (DELETE FROM saga.alert a WHERE a.id = ANY (ARRAY("
	"  SELECT b.id FROM saga.alert b ORDER BY b.id LIMIT $1)) RETURNING a.id, a.payload)"
	" SELECT pg_catalog.pg_notify('saga_alert', (s.payload"
	"  || pg_catalog.jsonb_build_object('id', s.id))::pg_catalog.text)"
	" FROM (SELECT g.id, g.payload FROM gone g ORDER BY g.id) s",
	1, {INT4OID}, NULL
};

/* By the index saga_deadline, which leaves out what is final. */
static SagaStatement find_overdue = {
	"SELECT s.id, s.role, s.role_name, v.name, s.deadline"
	" FROM saga.saga s"
	" LEFT JOIN saga.definition_version v ON v.id = s.definition_id"
	" WHERE s.due_at IS NOT NULL AND s.deadline IS NOT NULL AND s.deadline <= $1"
	" AND s.coordinator = $2"
	" AND NOT EXISTS (SELECT FROM saga.condition c"
	"  WHERE c.kind = 'overdue' AND c.subject = 'saga ' || s.id)"
	" ORDER BY s.deadline LIMIT 1000",
	2, {TIMESTAMPTZOID, UUIDOID}, NULL
};
static SagaStatement find_next_deadline = {
	"SELECT s.deadline FROM saga.saga s"
	" WHERE s.due_at IS NOT NULL AND s.deadline IS NOT NULL AND s.deadline > $1"
	" ORDER BY s.deadline LIMIT 1",
	1, {TIMESTAMPTZOID}, NULL
};
static SagaStatement find_past = {
	"SELECT c.subject FROM saga.condition c WHERE c.kind = 'overdue'"
	" AND NOT EXISTS (SELECT FROM saga.saga s"
	"  WHERE s.id = c.saga_id AND s.due_at IS NOT NULL)",
	0, {0}, NULL
};
static SagaStatement find_untied = {
	"SELECT c.subject FROM saga.condition c WHERE c.kind = 'deadlock'"
	" AND NOT EXISTS (SELECT FROM saga.lock l"
	"  WHERE l.root_id = c.saga_id AND NOT l.granted)",
	0, {0}, NULL
};
static SagaStatement find_of_kind = {
	"SELECT c.subject FROM saga.condition c WHERE c.kind = $1",
	1, {TEXTOID}, NULL
};
/* Those that only saga_alert_watch() ends, or that it may have noted just when
 * they ended. */
static SagaStatement find_watched = {
	"SELECT FROM saga.condition c"
	" WHERE c.kind = ANY ('{overdue,deadlock,breaker,no_worker}') LIMIT 1",
	0, {0}, NULL
};
static SagaStatement find_queues = {
	"SELECT q.id, q.owner, q.owner_name, q.name, NULL FROM saga.queue q"
	" UNION ALL SELECT r.id, r.role, r.role_name, NULL, r.server"
	" FROM saga.server_role r",
	0, {0}, NULL
};
static SagaStatement find_waiting = {
	"SELECT s.role_name FROM saga.saga s WHERE s.role = $1 AND s.due_at <= $2"
	" AND s.coordinator = $3 LIMIT 1",
	3, {OIDOID, TIMESTAMPTZOID, UUIDOID}, NULL
};

bool
saga_alert_on(const SagaCondition *condition)
{
	Datum		values[8];
	char		nulls[] = "        ";
	SagaOwnerSwitch owner;
	uint64		n;

	values[0] = CStringGetTextDatum(condition->kind);
	values[1] = CStringGetTextDatum(condition->subject);
	values[2] = Int64GetDatum(condition->saga_id);
	nulls[2] = condition->saga_id == 0 ? 'n' : ' ';
	values[3] = ObjectIdGetDatum(condition->role);
	values[4] = CStringGetTextDatum(condition->role_name);
	values[5] = saga_statement_text(condition->definition, &nulls[5]);
	values[6] = saga_statement_text(condition->message, &nulls[6]);
	values[7] = JsonbPGetDatum(condition->fields);
	saga_owner_enter(&owner);
	n = saga_statement_run(&note_on, values, nulls, false, 0);
	saga_owner_leave(&owner);
	if (n > 0)
		saga_wake_coordinator();
	return n > 0;
}

bool
saga_alert_off(const char *kind, const char *subject, const char *message)
{
	Datum		values[3];
	char		nulls[] = "   ";
	SagaOwnerSwitch owner;
	uint64		n;

	values[0] = CStringGetTextDatum(kind);
	values[1] = CStringGetTextDatum(subject);
	values[2] = saga_statement_text(message, &nulls[2]);
	saga_owner_enter(&owner);
	n = saga_statement_run(&note_off, values, nulls, false, 0);
	saga_owner_leave(&owner);
	if (n > 0)
		saga_wake_coordinator();
	return n > 0;
}

void
saga_alert_adopt(void)
{
	SagaOwnerSwitch owner;

	saga_owner_enter(&owner);
	saga_statement_run(&adopt_stuck, NULL, NULL, false, 0);
	saga_owner_leave(&owner);
	saga_wake_coordinator();
}


/* ---- sagas ---------------------------------------------------------------- */

static char *
name_saga(int64 id)
{
	return psprintf("saga %lld", (long long) id);
}

void
saga_alert_saga_on(const Saga *saga, const char *kind, const char *message)
{
	SagaJsonWriter writer = NULL;
	const char *definition = saga->definition ? saga->definition->name : "";
	const char *step = "";
	const char *role_name = GetUserNameFromId(saga->role, true);
	SagaCondition condition = {
		.kind = kind,
		.subject = name_saga(saga->ref.id),
		.role = saga->role,
		.role_name = role_name != NULL ? role_name : "",
		.saga_id = saga->ref.id,
		.definition = definition,
		.message = message
	};

	if (saga->definition && saga->step < saga->state.nsteps)
		step = saga->definition->steps[saga->step].name;
	saga_json_begin_object(&writer);
	saga_json_put_int(&writer, "saga_id", saga->ref.id);
	saga_json_put_string(&writer, "definition", definition);
	saga_json_put_string(&writer, "step", step);
	condition.fields = saga_json_finish_object(&writer);
	(void) saga_alert_on(&condition);
}

void
saga_alert_saga_off(const Saga *saga, const char *kind)
{
	(void) saga_alert_off(kind, name_saga(saga->ref.id),
						  saga_status_name(saga->state.status));
}


/* ---- sending ---------------------------------------------------------------- */

bool
saga_alert_send(void)
{
	Datum		value = Int32GetDatum(MAX_SENT);
	SagaOwnerSwitch owner;
	uint64		n;

	(void) saga_tables_names();
	if (saga_tables_is_empty("alert"))
		return true;
	saga_owner_enter(&owner);
	n = saga_statement_run(&send, &value, NULL, false, 0);
	saga_owner_leave(&owner);
	return n < MAX_SENT;
}


/* ---- watching ----------------------------------------------------------------- */

/* The text column of all rows of a statement, in CurrentMemoryContext. */
static List *
read_texts(SagaStatement *statement, Datum *values)
{
	MemoryContext caller = CurrentMemoryContext;
	List	   *texts = NIL;
	SagaOwnerSwitch owner;
	uint64		n;

	saga_owner_enter(&owner);
	n = saga_statement_run(statement, values, NULL, true, 0);
	for (uint64 i = 0; i < n; i++)
	{
		bool		isnull;
		Datum		value = saga_statement_datum(i, 1, &isnull);
		MemoryContext old = MemoryContextSwitchTo(caller);

		texts = lappend(texts, TextDatumGetCString(value));
		MemoryContextSwitchTo(old);
	}
	saga_owner_leave(&owner);
	return texts;
}

static bool
has_text(const List *texts, const char *text)
{
	ListCell   *cell;

	foreach(cell, texts)
		if (strcmp(lfirst(cell), text) == 0)
			return true;
	return false;
}

/* All of that kind that are noted have ended, but for those in "holding". */
static void
end_others(const char *kind, const List *holding)
{
	Datum		value = CStringGetTextDatum(kind);
	List	   *noted = read_texts(&find_of_kind, &value);
	ListCell   *cell;

	foreach(cell, noted)
		if (!has_text(holding, lfirst(cell)))
			(void) saga_alert_off(kind, lfirst(cell), NULL);
}

static void
end_those(const char *kind, SagaStatement *statement)
{
	List	   *ended = read_texts(statement, NULL);
	ListCell   *cell;

	foreach(cell, ended)
		(void) saga_alert_off(kind, lfirst(cell), NULL);
}

/* What was read of a saga, a queue or a server, to be noted. */
typedef struct Subject
{
	int64		id;
	Oid			role;
	char	   *role_name;
	char	   *name;			/* of a saga's definition, or a queue; or NULL */
	char	   *server;			/* or NULL */
	TimestampTz deadline;
} Subject;

static char *
copy_text(uint64 row, int column)
{
	bool		isnull;
	Datum		value = saga_statement_datum(row, column, &isnull);

	return isnull ? NULL : TextDatumGetCString(value);
}

static List *
read_subjects(SagaStatement *statement, Datum *values, bool sagas)
{
	MemoryContext caller = CurrentMemoryContext;
	List	   *subjects = NIL;
	SagaOwnerSwitch owner;
	uint64		n;

	saga_owner_enter(&owner);
	n = saga_statement_run(statement, values, NULL, true, 0);
	for (uint64 i = 0; i < n; i++)
	{
		MemoryContext old = MemoryContextSwitchTo(caller);
		Subject    *subject = palloc0(sizeof(Subject));
		Datum		id;
		bool		isnull;

		id = saga_statement_datum(i, 1, &isnull);
		subject->id = sagas ? DatumGetInt64(id) : DatumGetInt32(id);
		subject->role = DatumGetObjectId(saga_statement_datum(i, 2, &isnull));
		subject->role_name = copy_text(i, 3);
		subject->name = copy_text(i, 4);
		if (sagas)
			subject->deadline =
				DatumGetTimestampTz(saga_statement_datum(i, 5, &isnull));
		else
			subject->server = copy_text(i, 5);
		subjects = lappend(subjects, subject);
		MemoryContextSwitchTo(old);
	}
	saga_owner_leave(&owner);
	return subjects;
}

static void
note_overdue(const Subject *subject)
{
	SagaJsonWriter writer = NULL;
	SagaCondition condition = {
		.kind = SAGA_ALERT_OVERDUE,
		.subject = name_saga(subject->id),
		.role = subject->role,
		.role_name = subject->role_name,
		.saga_id = subject->id,
		.definition = subject->name,
		.message = psprintf("it was to end by %s",
							timestamptz_to_str(subject->deadline))
	};

	saga_json_begin_object(&writer);
	saga_json_put_int(&writer, "saga_id", subject->id);
	saga_json_put_string(&writer, "definition", subject->name);
	condition.fields = saga_json_finish_object(&writer);
	(void) saga_alert_on(&condition);
}

/* Returns when to look again. */
static TimestampTz
watch_deadlines(TimestampTz now)
{
	Datum		values[2];
	SagaOwnerSwitch owner;
	TimestampTz next = DT_NOEND;
	List	   *overdue;
	ListCell   *cell;

	end_those(SAGA_ALERT_OVERDUE, &find_past);
	values[0] = TimestampTzGetDatum(now - SAGA_OVERDUE_GRACE);
	values[1] = UUIDPGetDatum(&saga_tables_names()->coordinator);
	overdue = read_subjects(&find_overdue, values, true);
	foreach(cell, overdue)
		note_overdue(lfirst(cell));
	if (list_length(overdue) >= MAX_OVERDUE)
		return now;				/* there are more */

	saga_owner_enter(&owner);
	if (saga_statement_run(&find_next_deadline, values, NULL, true, 1) > 0)
	{
		bool		isnull;

		next = DatumGetTimestampTz(saga_statement_datum(0, 1, &isnull)) +
			SAGA_OVERDUE_GRACE;
	}
	saga_owner_leave(&owner);
	return next;
}

static char *
name_breaker(const Subject *queue)
{
	return queue->server == NULL ? psprintf("queue %s", queue->name) :
		psprintf("server %s, role %s", queue->server, queue->role_name);
}

static char *
describe_breaker(const Subject *queue)
{
	return queue->server == NULL ?
		saga_log_describe_names("queue", queue->name, NULL) :
		saga_log_describe_names("server", queue->server,
								"role", queue->role_name, NULL);
}

static void
log_open_breaker(const Subject *queue, int failures)
{
	if (queue->server == NULL)
		ereport(LOG,
				errmsg("breaker of queue \"%s\" has opened", queue->name),
				errdetail("Its tasks are held back, since %d have failed in a row.",
						  failures),
				errcontext("%s", describe_breaker(queue)));
	else
		ereport(LOG,
				errmsg("breaker of server \"%s\" has opened for role \"%s\"",
					   queue->server, queue->role_name),
				errdetail("Calls are held back, since %d have failed in a row.",
						  failures),
				errcontext("%s", describe_breaker(queue)));
}

static void
log_closed_breaker(const Subject *queue)
{
	if (queue->server == NULL)
		ereport(LOG,
				errmsg("breaker of queue \"%s\" has closed", queue->name),
				errcontext("%s", describe_breaker(queue)));
	else
		ereport(LOG,
				errmsg("breaker of server \"%s\" has closed for role \"%s\"",
					   queue->server, queue->role_name),
				errcontext("%s", describe_breaker(queue)));
}

/* Returns whether the breaker is not closed. */
static bool
watch_breaker(const Subject *queue)
{
	SagaQueueInfo info;
	SagaJsonWriter writer = NULL;
	SagaCondition condition = {
		.kind = SAGA_ALERT_BREAKER,
		.subject = name_breaker(queue),
		.role = queue->role,
		.role_name = queue->role_name
	};

	if (!saga_qstate_info((int32) queue->id, &info) ||
		info.breaker == SAGA_BREAKER_CLOSED)
		return false;
	saga_json_begin_object(&writer);
	if (queue->server == NULL)
	{
		condition.message = "tasks are held back: too many have failed in a row";
		saga_json_put_string(&writer, "queue", queue->name);
	}
	else
	{
		condition.message = "calls are held back: the server has failed too often in a row";
		saga_json_put_string(&writer, "server", queue->server);
		saga_json_put_string(&writer, "role", queue->role_name);
	}
	condition.fields = saga_json_finish_object(&writer);
	if (saga_alert_on(&condition))
		log_open_breaker(queue, info.failures);
	return true;
}

/* Those of queues that are gone end with them. */
static void
watch_breakers(void)
{
	Datum		kind = CStringGetTextDatum(SAGA_ALERT_BREAKER);
	List	   *queues = read_subjects(&find_queues, NULL, false);
	List	   *noted = read_texts(&find_of_kind, &kind);
	List	   *open = NIL;
	ListCell   *cell;

	foreach(cell, queues)
	{
		const Subject *queue = lfirst(cell);
		char	   *subject = name_breaker(queue);

		if (watch_breaker(queue))
			open = lappend(open, subject);
		else if (has_text(noted, subject) &&
				 saga_alert_off(SAGA_ALERT_BREAKER, subject, NULL))
			log_closed_breaker(queue);
	}
	end_others(SAGA_ALERT_BREAKER, open);
}

/* Can the pool have no worker, and for how long may that be so?  Negative: it is
 * nothing to speak of. */
static int64
patience_with(const SagaPoolInfo *pool)
{
	if (pool->database != MyDatabaseId || pool->nworkers > 0 || pool->closed)
		return -1;
	switch (pool->blocked)
	{
		case SAGA_BLOCKED_NOT:
			return -1;
		case SAGA_BLOCKED_WORKERS:
		case SAGA_BLOCKED_PLACES:
			return WORKER_PATIENCE;
		case SAGA_BLOCKED_SLOTS:
		case SAGA_BLOCKED_FAILED:
			return START_PATIENCE;
		default:
			return 0;
	}
}

/* The name of the role, if sagas of it are due; else NULL. */
static char *
find_role_that_waits(Oid role, TimestampTz now)
{
	Datum		values[3];
	List	   *names;

	values[0] = ObjectIdGetDatum(role);
	values[1] = TimestampTzGetDatum(now);
	values[2] = UUIDPGetDatum(&saga_tables_names()->coordinator);
	names = read_texts(&find_waiting, values);
	return names == NIL ? NULL : linitial(names);
}

static char *
note_no_worker(const SagaPoolInfo *pool, const char *role_name)
{
	SagaJsonWriter writer = NULL;
	SagaCondition condition = {
		.kind = SAGA_ALERT_NO_WORKER,
		.subject = psprintf("role %s", role_name),
		.role = pool->role,
		.role_name = role_name,
		.message = saga_blocked_text(pool->blocked)
	};

	saga_json_begin_object(&writer);
	saga_json_put_string(&writer, "role", role_name);
	condition.fields = saga_json_finish_object(&writer);
	(void) saga_alert_on(&condition);
	return unconstify(char *, condition.subject);
}

/* Returns when to look again. */
static TimestampTz
watch_workers(TimestampTz now)
{
	SagaPoolInfo *pools;
	TimestampTz next = DT_NOEND;
	List	   *blocked = NIL;
	int			n;

	if (!saga_shared_available())
		return DT_NOEND;
	pools = palloc(SAGA_MAX_POOLS * sizeof(SagaPoolInfo));
	n = saga_shared_pools(pools, false);
	for (int i = 0; i < n; i++)
	{
		int64		patience = patience_with(&pools[i]);
		TimestampTz since = pools[i].waiting_since;
		char	   *role_name;

		if (patience < 0)
			continue;
		if (patience > 0 && (since == 0 || now < since + patience))
		{
			next = Min(next, (since == 0 ? now : since) + patience);
			continue;
		}
		role_name = find_role_that_waits(pools[i].role, now);
		if (role_name != NULL)
			blocked = lappend(blocked, note_no_worker(&pools[i], role_name));
	}
	end_others(SAGA_ALERT_NO_WORKER, blocked);
	pfree(pools);
	return next;
}

static bool
has_watched(void)
{
	SagaOwnerSwitch owner;
	bool		found;

	if (saga_tables_is_empty("condition"))
		return false;
	saga_owner_enter(&owner);
	found = saga_statement_run(&find_watched, NULL, NULL, true, 1) > 0;
	saga_owner_leave(&owner);
	return found;
}

TimestampTz
saga_alert_watch(void)
{
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz next;

	(void) saga_tables_names();
	if (saga_tables_is_copy())
		return DT_NOEND;
	next = watch_deadlines(now);
	watch_breakers();
	if (!saga_tables_is_empty("condition"))
		end_those(SAGA_ALERT_DEADLOCK, &find_untied);
	next = Min(next, watch_workers(now));
	return has_watched() ? Min(next, now + WATCH_AGAIN) : next;
}
