/*
 * courier.c
 *		The saga courier of a database: makes the calls of its sagas to other
 *		databases.
 *
 * An operation that is to be done elsewhere is a task in the queue of a server
 * and a role; the courier is the participant.  It claims as many as its
 * connections have room for, flushed, sends them, and writes the answers as they
 * come; each of these is a short transaction, and none is open while it waits.
 * What it has not claimed is anybody's: it can be withdrawn, and a server that
 * cannot be reached holds nothing.
 *
 * It is a superuser's session and runs no user code, ever; to the other side it
 * is the role of the saga, by the user mapping of that role, under the rules of
 * dblink.  It never waits for anything but its latch and its sockets, all at
 * once.
 *
 * Killed at any line: what was claimed stays so.  The next courier takes it
 * over, at its start: where calls are made once it asks for the answer again,
 * else the outcome is not known.  An answer that was not written yet is asked
 * for again in the same way.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/pmsignal.h"
#include "tcop/tcopprot.h"
#include "utils/backend_status.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "answer.h"
#include "claim.h"
#include "compat.h"
#include "engine.h"
#include "follow.h"
#include "foreign.h"
#include "guc.h"
#include "process.h"
#include "qstate.h"
#include "route.h"
#include "server.h"
#include "session.h"
#include "shared.h"
#include "sstate.h"
#include "taskrow.h"

/* As whom it claims tasks. */
#define COURIER			"courier"

/* How long it stays when there is nothing to do and no connection. */
#define LINGER			(5 * USECS_PER_SEC)

/* Beyond twice the time of the attempt, a lease is so long. */
#define LEASE			(5 * USECS_PER_MINUTE)

/* An answer whose row somebody has locked is written after so long. */
#define BUSY_PAUSE		(20 * INT64CONST(1000))

/* While calls wait for a pause to be over: whether the server's options have
 * changed we see only when we are awake. */
#define CHANGES_PAUSE	USECS_PER_SEC

/* One that waits for its first connection looks again after so long. */
#define HUNGRY_PAUSE	(100 * INT64CONST(1000))

/* After an error of our own, which no saga can have caused. */
#define ERROR_PAUSE		USECS_PER_SEC

/* How often it is looked whether servers are to be told what they may forget. */
#define FORGET_INTERVAL	USECS_PER_HOUR

/* The other side forgets so much at a time; then there may be more. */
#define FORGET_BATCH	10000

/* Who has changed the settings of a queue tells us before our cache is told. */
#define CACHE_PAUSE		(100 * INT64CONST(1000))

/* So many answers are written in one transaction: sagas of more than can be
 * noted to be woken would have to be looked for. */
#define MAX_ANSWERS		60

/* So many tasks at once are answered with the reason why they cannot be sent. */
#define MAX_REFUSED		100

/* What is known of a queue of calls. */
typedef struct Queue
{
	int32		id;
	SagaRoute  *route;
	SagaFollow *follow;			/* child sagas there */
	SagaBreaker breaker;
	bool		paused;
	bool		once;			/* as it was found by the last who was there */
	bool		has_tasks;		/* there may be some that nobody has claimed */
	bool		marked;			/* it was told so, and has not looked since */
	bool		looked_up;		/* its target has been found, when there were ... */
	uint64		changes;		/* ... so many saga_foreign_changes() */
	TimestampTz not_before;		/* a claim has failed: none until then */
	TimestampTz hungry_since;	/* it wants a connection, and has none; 0 = not */
	bool		in_trouble;		/* that it cannot be reached was logged */
	SagaCall   *forget;			/* to be sent when it is connected; NULL = none */
} Queue;

static MemoryContext courier_context;	/* of queues, routes and calls */
static MemoryContext turn_context;	/* reset with each turn */
static Queue **queues = NULL;
static int	nqueues = 0;
static int	queues_size = 0;

/* Answers to be written; those that somebody's lock has held up. */
static dlist_head done;
static TimestampTz busy_until = 0;

/* When it was looked last what servers may forget. */
static TimestampTz forgets_at = 0;

/* Another database waits for this place: nothing more is claimed. */
static bool is_leaving = false;

/* Another process is to go on, which knows nothing of what was. */
static bool begin_anew = false;

/* Is the extension to be looked for again? */
static bool check_extension = false;

/* What is waited for, behind latch and postmaster; made anew when connections
 * come or go. */
typedef struct Wait
{
	void	   *data;			/* of the route; not touched */
	pgsocket	socket;
	uint32		events;
} Wait;

static WaitEventSet *wait_set = NULL;
static Wait *waits = NULL;
static int	nwaits = 0;
static int	waits_size = 0;


/* ---- queues ----------------------------------------------------------------- */

static Queue *
find_queue(int32 id)
{
	for (int i = 0; i < nqueues; i++)
		if (queues[i]->id == id)
			return queues[i];
	return NULL;
}

/* Read its settings; in a transaction.  NULL if there is no such queue. */
static Queue *
load_queue(int32 id)
{
	Queue	   *queue = find_queue(id);
	SagaServerQueue *found = saga_server_queue_by_id(id);

	if (found == NULL)
		return NULL;
	if (queue == NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(courier_context);

		queue = palloc0(sizeof(Queue));
		queue->id = id;
		queue->route = saga_route_open(found, courier_context);
		queue->follow = saga_follow_open(queue->route, queue, courier_context);
		if (nqueues == queues_size)
		{
			queues_size = Max(16, 2 * queues_size);
			queues = queues == NULL ?
				palloc(queues_size * sizeof(Queue *)) :
				repalloc(queues, queues_size * sizeof(Queue *));
		}
		queues[nqueues++] = queue;
		MemoryContextSwitchTo(old);
	}
	/* saga.adopt() has given it another role: nothing of the one before is to be
	 * used for that */
	if (found->role != saga_route_role(queue->route))
		begin_anew = true;
	queue->breaker = found->queue.breaker;
	queue->paused = found->queue.paused;
	queue->once = found->once == 1;
	return queue;
}

/* Find out where its calls go.  What raises there is the reason why they go
 * nowhere. */
static void
look_up_target(Queue *queue)
{
	MemoryContext caller = CurrentMemoryContext;

	/* before the look: what changes during it has it made again */
	queue->changes = saga_foreign_changes();
	queue->looked_up = true;
	saga_session_begin();
	PG_TRY();
	{
		SagaTarget	target;

		saga_foreign_find(saga_route_server(queue->route),
						  saga_route_role(queue->route),
						  CurrentMemoryContext, &target);
		saga_route_set_target(queue->route, &target);
		saga_session_commit();
	}
	PG_CATCH();
	{
		ErrorData  *data;
		SagaError	error = {0};

		MemoryContextSwitchTo(caller);
		data = CopyErrorData();
		FlushErrorState();
		saga_session_abort();
		strlcpy(error.sqlstate, unpack_sql_state(data->sqlerrcode),
				sizeof(error.sqlstate));
		error.message = data->message;
		error.detail = data->detail;
		error.hint = data->hint;
		/* asked again after a pause, even if nothing has changed */
		queue->looked_up = false;
		saga_route_set_refused(queue->route, &error);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(caller);
}


/* What is allocated in a turn goes with it: a commit leaves another context
 * behind, which never goes. */
static void
end_transaction(void)
{
	saga_session_commit();
	MemoryContextSwitchTo(turn_context);
}

/* An error in a transaction of ours: log it, roll back, and see whether the
 * extension is still there. */
static void
report_own_error(MemoryContext caller)
{
	MemoryContextSwitchTo(caller);
	EmitErrorReport();
	FlushErrorState();
	saga_session_abort();
	check_extension = true;
}


/* ---- claims ------------------------------------------------------------------- */

/* A claim goes to the queue's calls. */
typedef struct Claiming
{
	Queue	   *queue;
	dlist_head	calls;
	const SagaError *refusal;	/* they are not to be sent, for this reason */
	bool		passing;		/* it may pass */
} Claiming;

static const char *
copy_text(const SagaCall *call, const char *text)
{
	return MemoryContextStrdup(call->memory, text);
}

static char *
uuid_text(const pg_uuid_t *uuid)
{
	return DatumGetCString(DirectFunctionCall1(uuid_out,
											   UUIDPGetDatum(uuid)));
}

static const char *
time_text(TimestampTz time)
{
	return DatumGetCString(DirectFunctionCall1(timestamptz_out,
											   TimestampTzGetDatum(time)));
}

/* A function there, called where the extension is not. */
static const char *
make_plain_sql(const char *function)
{
	return psprintf("SELECT CASE pg_catalog.pg_typeof(c.r)"
					" WHEN 'pg_catalog.void'::pg_catalog.regtype THEN NULL"
					" ELSE pg_catalog.to_jsonb(c.r) END, $2::pg_catalog.text"
					" FROM (SELECT %s($1::pg_catalog.jsonb) AS r OFFSET 0) AS c",
					function);
}

static SagaCall *
new_call(SagaCallKind kind)
{
	MemoryContext memory = AllocSetContextCreate(courier_context, "saga call",
												 ALLOCSET_SMALL_SIZES);
	SagaCall   *call = MemoryContextAllocZero(memory, sizeof(SagaCall));

	call->memory = memory;
	call->kind = kind;
	return call;
}

/* What the other side is asked to do. */
static const char *
operation_name(const SagaClaim *claim)
{
	if (!claim->aside)
		return saga_operation_name(claim->operation);
	return claim->operation == SAGA_OPERATION_COMPENSATION ? "recall" :
		"release";
}

/* What is to be sent. */
static SagaCall *
make_call(Queue *queue, const SagaClaim *claim)
{
	bool		is_child = claim->aside ||
		claim->definition_step->kind == SAGA_KIND_CHILD;
	SagaCall   *call = new_call(is_child ? SAGA_CALL_CHILD : SAGA_CALL_STEP);
	const SagaNames *names = saga_tables_names();

	call->task = claim->id;
	call->lease_token = claim->lease_token;
	call->lease_until = claim->lease_until;
	call->timeout = claim->timeout;
	call->owner = queue;
	call->operation = claim->operation;
	call->attempt = claim->attempt;
	call->aside = claim->aside;
	if (!is_child)
		call->plain_sql = copy_text(call, make_plain_sql(claim->task));
	call->params[SAGA_PARAM_COORDINATOR] =
		copy_text(call, uuid_text(&names->coordinator));
	call->params[SAGA_PARAM_SAGA] = copy_text(call, uuid_text(claim->token));
	call->params[SAGA_PARAM_STEP] = copy_text(call, claim->step);
	call->params[SAGA_PARAM_OPERATION] = operation_name(claim);
	call->params[SAGA_PARAM_FUNCTION] = copy_text(call, claim->task);
	call->params[SAGA_PARAM_CONTEXT] =
		copy_text(call, JsonbToCString(NULL, &claim->payload->root,
									   VARSIZE(claim->payload)));
	call->params[SAGA_PARAM_ELEMENT] =
		copy_text(call, psprintf("%d", claim->element));
	call->params[SAGA_PARAM_ROUND] =
		copy_text(call, psprintf("%d", claim->round));
	call->params[SAGA_PARAM_BEGUN_AT] =
		copy_text(call, time_text(claim->begun_at));
	return call;
}

static void
refuse(SagaCall *call, const SagaError *error, bool unknown)
{
	SagaOutcome *outcome = &call->outcome;

	outcome->kind = SAGA_OUTCOME_FAILED;
	outcome->error = *error;
	outcome->error.message = copy_text(call, error->message);
	outcome->error.detail = error->detail == NULL ? NULL :
		copy_text(call, error->detail);
	outcome->error.hint = error->hint == NULL ? NULL :
		copy_text(call, error->hint);
	outcome->error.context = NULL;
	outcome->unknown = unknown;
}

static void
take_claim(const SagaClaim *claim, void *arg)
{
	Claiming   *claiming = arg;
	SagaCall   *call = make_call(claiming->queue, claim);

	if (claiming->refusal != NULL)
	{
		refuse(call, claiming->refusal, false);
		call->outcome.is_passing = claiming->passing;
		call->was_reached = !claiming->passing;
	}
	dlist_push_tail(&claiming->calls, &call->node);
}

/*
 * Claim up to "max" tasks of a queue, in a transaction of its own; what is
 * claimed is in the list when it has committed.  Returns how many.
 */
static int
claim(Claiming *claiming, Queue *queue, int max)
{
	MemoryContext caller = CurrentMemoryContext;
	volatile int n = 0;

	claiming->queue = queue;
	dlist_init(&claiming->calls);
	saga_session_begin();
	PG_TRY();
	{
		SagaServerQueue *found = NULL;

		if (load_queue(queue->id) != NULL)
			found = saga_server_queue_by_id(queue->id);
		if (found != NULL && !queue->paused && !begin_anew)
		{
			int			allowed = saga_qstate_allowance(queue->id,
														&queue->breaker, max);

			if (allowed > 0)
				n = saga_claim_take(&found->queue, allowed, LEASE, COURIER,
									take_claim, claiming);
		}
		saga_session_commit();
	}
	PG_CATCH();
	{
		dlist_mutable_iter iter;

		dlist_foreach_modify(iter, &claiming->calls)
			MemoryContextDelete(dlist_container(SagaCall, node,
												iter.cur)->memory);
		dlist_init(&claiming->calls);
		report_own_error(caller);
		queue->not_before = GetCurrentTimestamp() + ERROR_PAUSE;
		n = -1;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(caller);
	return n;
}

static void
move_calls(dlist_head *from, dlist_head *to)
{
	while (!dlist_is_empty(from))
		dlist_push_tail(to, dlist_pop_head_node(from));
}

/* The tasks of a queue that cannot be sent: one, if that may be different next
 * time, else all. */
static void
refuse_tasks(Queue *queue, const SagaError *error, bool passing)
{
	Claiming	claiming = {.refusal = error,.passing = passing};
	int			n = claim(&claiming, queue, passing ? 1 : MAX_REFUSED);

	move_calls(&claiming.calls, &done);
	queue->has_tasks = n < 0 || n == (passing ? 1 : MAX_REFUSED);
}

/* Claim what there is room for, and send it. */
static void
claim_and_send(Queue *queue, TimestampTz now)
{
	int			room = saga_route_room(queue->route, now);
	Claiming	claiming = {0};
	dlist_iter	iter;
	int			n;

	/* not one by one, while there is enough in flight */
	if (room == 0 ||
		(saga_route_in_flight(queue->route) > 0 &&
		 room * 4 < saga_route_capacity(queue->route)))
		return;
	room = Min(room, SAGA_MAX_TASKS);
	n = claim(&claiming, queue, room);
	dlist_foreach(iter, &claiming.calls)
	{
		SagaCall   *call = dlist_container(SagaCall, node, iter.cur);

		if (call->kind == SAGA_CALL_CHILD)
			saga_follow_expect(queue->follow, call);
	}
	saga_route_send(queue->route, &claiming.calls);
	queue->has_tasks = n < 0 || n == room;
}

/* What a courier that is no more had claimed, or the other side may have
 * forgotten: asked again where that is of no harm. */
static void
take_over(Queue *queue, TimestampTz from)
{
	static const SagaError unknown = {
		.sqlstate = "08007",
		.message = "the process that made the call ended",
		.detail = "The outcome of the attempt is not known."
	};
	MemoryContext caller = CurrentMemoryContext;
	Claiming	claiming = {.queue = queue};

	dlist_init(&claiming.calls);
	saga_session_begin();
	PG_TRY();
	{
		SagaServerQueue *found = saga_server_queue_by_id(queue->id);

		if (found != NULL)
			saga_claim_take_over(&found->queue, LEASE, from, COURIER,
								 take_claim, &claiming);
		saga_session_commit();
	}
	PG_CATCH();
	{
		/* then the coordinator ends their leases */
		dlist_init(&claiming.calls);
		report_own_error(caller);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(caller);
	while (!dlist_is_empty(&claiming.calls))
	{
		SagaCall   *call = dlist_container(SagaCall, node,
										   dlist_pop_head_node(&claiming.calls));

		if (call->kind == SAGA_CALL_CHILD)
			saga_follow_expect(queue->follow, call);
		if (queue->once || call->kind == SAGA_CALL_CHILD)
			saga_route_ask_again(queue->route, call);
		else
		{
			refuse(call, &unknown, true);
			call->outcome.is_passing = true;
			dlist_push_tail(&done, &call->node);
		}
	}
}


/* ---- what servers may forget --------------------------------------------------- */

/* What is there to be told, on a connection that is there anyway? */
static void
prepare_forgets(void)
{
	SagaServerForget *forgets;
	int			n;

	saga_session_begin();
	n = saga_server_forgets(&forgets);
	for (int i = 0; i < n; i++)
	{
		Queue	   *queue = load_queue(forgets[i].id);
		SagaCall   *call;

		if (queue == NULL || queue->forget != NULL)
			continue;
		call = new_call(SAGA_CALL_FORGET);
		call->owner = queue;
		call->timeout = saga_step_timeout * INT64CONST(1000);
		call->params[SAGA_FORGET_COORDINATOR] =
			copy_text(call, uuid_text(&saga_tables_names()->coordinator));
		call->params[SAGA_FORGET_BEFORE] = copy_text(call, forgets[i].before);
		call->params[SAGA_FORGET_KEPT] = copy_text(call, forgets[i].kept);
		queue->forget = call;
	}
	end_transaction();
}

/* It was told, or not: then it is another time. */
static void
finish_forget(SagaCall *call)
{
	Queue	   *queue = call->owner;
	bool		succeeded = !call->release &&
		call->outcome.kind == SAGA_OUTCOME_SUCCEEDED;

	if (succeeded && call->result != NULL && atoi(call->result) >= FORGET_BATCH)
	{
		queue->forget = call;
		return;
	}
	if (succeeded)
	{
		saga_session_begin();
		saga_server_forgotten(queue->id);
		end_transaction();
	}
	else if (!call->release)
		ereport(LOG,
				errmsg("server \"%s\" could not be told which sagas it may forget: %s",
					   saga_route_server(queue->route),
					   call->outcome.error.message),
				errcontext("%s", saga_route_describe(queue->route)));
	MemoryContextDelete(call->memory);
}


/* ---- answers ------------------------------------------------------------------ */

/* What came from outside, with nothing in it that is no text of ours. */
static const char *
clean_text(SagaCall *call, const char *text)
{
	char	   *copy;
	int			length;

	if (text == NULL || pg_verifymbstr(text, strlen(text), true))
		return text;
	copy = MemoryContextStrdup(call->memory, text);
	length = (int) strlen(copy);
	for (int i = 0; i < length; i++)
		if (IS_HIGHBIT_SET(copy[i]))
			copy[i] = '?';
	return copy;
}

/* The result as jsonb; what is none is the other side's fault, and what it did
 * is not known. */
static void
read_result(SagaCall *call)
{
	SagaOutcome *outcome = &call->outcome;
	MemoryContext caller = CurrentMemoryContext;

	if (call->result == NULL)
		return;
	PG_TRY();
	{
		MemoryContextSwitchTo(call->memory);
		if (!pg_verifymbstr(call->result, strlen(call->result), true))
			ereport(ERROR,
					errcode(ERRCODE_CHARACTER_NOT_IN_REPERTOIRE),
					errmsg("it is not valid in encoding \"%s\"",
						   GetDatabaseEncodingName()));
		outcome->result = DatumGetJsonbP(DirectFunctionCall1(jsonb_in,
															 CStringGetDatum(call->result)));
		MemoryContextSwitchTo(caller);
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(call->memory);
		error = CopyErrorData();
		FlushErrorState();
		MemoryContextSwitchTo(caller);
		memset(outcome, 0, sizeof(*outcome));
		outcome->kind = SAGA_OUTCOME_FAILED;
		outcome->is_final = true;
		outcome->unknown = true;
		strcpy(outcome->error.sqlstate, "08P01");
		outcome->error.message = "the server's answer is no valid JSON";
		outcome->error.detail = error->message;
	}
	PG_END_TRY();
}

/* Of a call about a child saga; false if there is nothing to be written. */
static bool
make_child_request(SagaCall *call, SagaTaskRequest *request)
{
	Queue	   *queue = call->owner;

	if (!saga_follow_settle(queue->follow, call, call->outcome.result, request))
		return false;
	/* what nobody waits for is tried again, not all the time */
	if (call->aside && request->act == SAGA_TASK_RELEASE)
		queue->not_before = GetCurrentTimestamp() + ERROR_PAUSE;
	return true;
}

/* False if there is nothing to be written. */
static bool
make_request(SagaCall *call, SagaTaskRequest *request)
{
	SagaOutcome *outcome = &call->outcome;

	memset(request, 0, sizeof(*request));
	request->id = call->task;
	request->lease_token = &call->lease_token;
	request->dont_wait = true;
	request->was_reached = call->was_reached;
	if (call->release)
	{
		request->act = SAGA_TASK_RELEASE;
		return call->kind != SAGA_CALL_CHILD || make_child_request(call, request);
	}
	if (outcome->kind == SAGA_OUTCOME_SUCCEEDED && outcome->result == NULL)
		read_result(call);
	if (outcome->kind != SAGA_OUTCOME_SUCCEEDED)
	{
		outcome->error.message = clean_text(call, outcome->error.message);
		outcome->error.detail = clean_text(call, outcome->error.detail);
		outcome->error.hint = clean_text(call, outcome->error.hint);
		outcome->error.context = clean_text(call, outcome->error.context);
	}
	request->act = SAGA_TASK_ANSWER;
	request->outcome = outcome;
	request->gives_up = call->gives_up;
	return call->kind != SAGA_CALL_CHILD || make_child_request(call, request);
}

/* What children report is the answer to tasks. */
static void
read_reports(SagaCall *call, dlist_head *reports)
{
	Queue	   *queue = call->owner;

	if (!call->release && call->outcome.kind == SAGA_OUTCOME_SUCCEEDED)
		read_result(call);
	saga_follow_read(queue->follow, call, call->outcome.result, reports);
	MemoryContextDelete(call->memory);
}

/* Calls that are not about a task. */
static void
finish_others(void)
{
	dlist_mutable_iter iter;
	dlist_head	reports;

	dlist_init(&reports);
	dlist_foreach_modify(iter, &done)
	{
		SagaCall   *call = dlist_container(SagaCall, node, iter.cur);

		if (call->kind != SAGA_CALL_FORGET && call->kind != SAGA_CALL_FOLLOW)
			continue;
		dlist_delete(&call->node);
		if (call->kind == SAGA_CALL_FORGET)
			finish_forget(call);
		else
			read_reports(call, &reports);
	}
	move_calls(&reports, &done);
}

/* It was written, or is not to be written any more; or that has failed. */
static void
finish_call(SagaCall *call, const SagaTaskRequest *request)
{
	Queue	   *queue = call->owner;

	if (call->kind == SAGA_CALL_REPORT ||
		(call->kind == SAGA_CALL_CHILD && !call->aside))
		saga_follow_written(queue->follow, call, request);
	MemoryContextDelete(call->memory);
}

/*
 * Write these, all or none; false if that failed.  With "lazily" a crash may
 * take them back: then they are asked for again.
 */
static bool
write_answers(SagaTaskRequest *const *requests, int n, bool lazily)
{
	MemoryContext caller = CurrentMemoryContext;
	volatile bool written = true;

	saga_session_begin();
	PG_TRY();
	{
		if (lazily)
			saga_engine_commit_lazily();
		saga_answer_act(requests, n, true);
		saga_session_commit();
	}
	PG_CATCH();
	{
		report_own_error(caller);
		written = false;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(caller);
	return written;
}

/* One that cannot be written holds up no other: its lease ends, and then the
 * saga knows that it does not know. */
static void
write_some_answers(SagaCall *const *calls, SagaTaskRequest *const *requests,
				   int n)
{
	bool		lazily = true;

	for (int i = 0; i < n; i++)
		lazily &= calls[i]->once && !calls[i]->release;
	if (write_answers(requests, n, lazily))
		return;
	for (int i = 0; i < n; i++)
	{
		requests[i]->busy = false;
		calls[i]->unwritten = n == 1 ||
			!write_answers(&requests[i], 1, lazily);
	}
}

/* Write the answers that have come. */
static void
save_answers(TimestampTz now)
{
	SagaTaskRequest *requests;
	SagaTaskRequest **pointers;
	SagaCall  **calls;
	dlist_mutable_iter iter;
	int			n = 0;

	finish_others();
	dlist_foreach_modify(iter, &done)
		n++;
	if (n == 0)
		return;
	requests = palloc(n * sizeof(SagaTaskRequest));
	pointers = palloc(n * sizeof(SagaTaskRequest *));
	calls = palloc(n * sizeof(SagaCall *));
	n = 0;
	dlist_foreach_modify(iter, &done)
	{
		calls[n] = dlist_container(SagaCall, node, iter.cur);
		pointers[n] = &requests[n];
		if (make_request(calls[n], &requests[n]))
			n++;
		else
		{
			dlist_delete(iter.cur);
			MemoryContextDelete(calls[n]->memory);
		}
	}
	for (int i = 0; i < n; i += MAX_ANSWERS)
		write_some_answers(&calls[i], &pointers[i], Min(n - i, MAX_ANSWERS));
	dlist_init(&done);
	busy_until = 0;
	for (int i = 0; i < n; i++)
		if (requests[i].busy)
		{
			dlist_push_tail(&done, &calls[i]->node);
			busy_until = now + BUSY_PAUSE;
		}
		else
			finish_call(calls[i], &requests[i]);
}


/* ---- turns --------------------------------------------------------------------- */

/* Remember what there is on the other side, for define(), explain() and who
 * comes after us. */
static void
note_info(Queue *queue)
{
	const SagaRemoteInfo *info = saga_route_take_info(queue->route);

	if (info == NULL)
		return;
	saga_session_begin();
	saga_server_note(queue->id, info->saga_version != NULL,
					 info->saga_version);
	end_transaction();
	queue->once = info->saga_version != NULL;
	if (queue->in_trouble)
		ereport(LOG,
				errmsg("saga courier has reached server \"%s\" as role \"%s\" again",
					   saga_route_server(queue->route),
					   saga_route_role_name(queue->route)),
				errcontext("%s", saga_route_describe(queue->route)));
	queue->in_trouble = false;
}

/* Are there calls to be made, or to be asked again? */
static bool
has_calls(const Queue *queue)
{
	return queue->has_tasks || saga_route_nwaiting(queue->route) > 0;
}

/* Is it another queue of the same server? */
static bool
is_neighbour(const Queue *queue, const Queue *other)
{
	return other != queue && saga_route_server_oid(other->route) ==
		saga_route_server_oid(queue->route);
}

/* Does it wait for its first connection? */
static bool
is_hungry(const Queue *queue)
{
	return queue->hungry_since != 0 && has_calls(queue) &&
		saga_route_ncallers(queue->route) == 0;
}

/*
 * How many connections this route may have just now: those of a server are
 * shared by the routes that want some.  One that has none comes first, in the
 * order in which they came to want one.
 */
static int
max_connections(const Queue *queue)
{
	int			mine = saga_route_ncallers(queue->route);
	int			total = mine;
	int			wanting = 1;

	for (int i = 0; i < nqueues; i++)
	{
		const Queue *other = queues[i];

		if (!is_neighbour(queue, other))
			continue;
		total += saga_route_ncallers(other->route);
		if (has_calls(other))
			wanting++;
		if (is_hungry(other) &&
			(mine > 0 || other->hungry_since < queue->hungry_since))
			return mine;
	}
	if (total >= saga_remote_connections)
		return mine;
	return Max(saga_remote_connections / wanting, 1);
}

/*
 * All connections to the server are taken, none of them by this route: have
 * another one give up one, the first that does nothing, else who has most, else
 * who has had it longest.
 */
static void
make_room(const Queue *queue, TimestampTz now)
{
	Queue	   *richest = NULL;

	for (int i = 0; i < nqueues; i++)
		if (is_neighbour(queue, queues[i]) &&
			(saga_route_is_giving_up(queues[i]->route) ||
			 saga_route_give_up_one(queues[i]->route, false, now)))
			return;
	for (int i = 0; i < nqueues; i++)
		if (is_neighbour(queue, queues[i]) &&
			(richest == NULL || saga_route_ncallers(queues[i]->route) >
			 saga_route_ncallers(richest->route)))
			richest = queues[i];
	if (richest == NULL ||
		saga_route_give_up_one(richest->route, true, now))
		return;
	for (int i = 0; i < nqueues; i++)
		if (is_neighbour(queue, queues[i]) &&
			saga_route_give_up_one(queues[i]->route, true, now))
			return;
}

static void
connect_route(Queue *queue, TimestampTz now)
{
	int			max;

	if (saga_route_ncallers(queue->route) > 0)
		queue->hungry_since = 0;
	else if (queue->hungry_since == 0)
		queue->hungry_since = now;
	for (int i = 0; i < nqueues && !saga_route_has_room(); i++)
		(void) saga_route_give_up_one(queues[i]->route, false, now);
	max = max_connections(queue);
	if (max == 0)
		make_room(queue, now);
	else
		saga_route_connect(queue->route, max, now);
}

/* Before the connection is idle for good. */
static void
send_forget(Queue *queue, TimestampTz now)
{
	SagaCall   *call = queue->forget;
	dlist_head	calls;

	if (call == NULL || saga_route_room(queue->route, now) == 0)
		return;
	queue->forget = NULL;
	dlist_init(&calls);
	dlist_push_tail(&calls, &call->node);
	saga_route_send(queue->route, &calls);
}

/*
 * Does a person want nothing to be done there?  Who has just changed that is
 * heard of before our cache is: then the answer is another one in a moment.
 */
static bool
is_paused(Queue *queue, TimestampTz now)
{
	bool		look_again = queue->paused && queue->marked;

	queue->marked = false;
	if (!queue->paused)
		return false;
	if (look_again)
		queue->not_before = now + CACHE_PAUSE;
	if (now < queue->not_before)
		return true;
	saga_session_begin();
	(void) load_queue(queue->id);
	end_transaction();
	if (queue->paused)
		queue->has_tasks = false;
	return queue->paused;
}

/* Can it be gone, as far as is known? */
static bool
may_go(Queue *queue, TimestampTz now)
{
	SagaRoute  *route = queue->route;

	if (is_paused(queue, now))
		return false;
	if (queue->changes != saga_foreign_changes() ||
		(!queue->looked_up && now >= saga_route_pauses_until(route)))
		look_up_target(queue);
	return now >= saga_route_pauses_until(route) ||
		saga_route_nready(route) > 0;
}

/* Tasks that wait: send them, or see to it that they can be sent. */
static void
serve(Queue *queue, TimestampTz now)
{
	SagaRoute  *route = queue->route;

	if (!queue->has_tasks && saga_route_nwaiting(route) == 0 &&
		queue->forget == NULL && !saga_follow_is_active(queue->follow))
		return;
	if (!may_go(queue, now))
	{
		queue->hungry_since = 0;
		return;
	}
	if (queue->has_tasks && now >= queue->not_before && !is_leaving &&
		!begin_anew)
		claim_and_send(queue, now);
	send_forget(queue, now);
	saga_follow_work(queue->follow, now);
	if (has_calls(queue) && (saga_route_nready(route) == 0 ||
							 saga_route_room(route, now) == 0))
		connect_route(queue, now);
}

/* It could not be gone: say so to the tasks that wait. */
static void
serve_error(Queue *queue)
{
	bool		passing;
	const SagaError *error = saga_route_take_error(queue->route, &passing);

	if (error == NULL)
		return;
	if (!queue->in_trouble)
		ereport(LOG,
				errmsg("saga courier cannot reach server \"%s\" as role \"%s\": %s",
					   saga_route_server(queue->route),
					   saga_route_role_name(queue->route), error->message),
				error->detail == NULL ? 0 :
				errdetail_internal("%s", error->detail),
				errhint("This is logged once, until it can be reached."),
				errcontext("%s", saga_route_describe(queue->route)));
	queue->in_trouble = true;
	if (!passing)
	{
		dlist_head	waiting;

		dlist_init(&waiting);
		saga_route_take_waiting(queue->route, &waiting);
		while (!dlist_is_empty(&waiting))
		{
			SagaCall   *call = dlist_container(SagaCall, node,
											   dlist_pop_head_node(&waiting));

			/* a child goes on meanwhile: as long as the lease lasts */
			if (call->kind == SAGA_CALL_CHILD)
			{
				saga_route_ask_again(queue->route, call);
				continue;
			}
			refuse(call, error, true);
			dlist_push_tail(&done, &call->node);
		}
	}
	if (queue->has_tasks && !is_leaving)
		refuse_tasks(queue, error, passing);
}

/* Show people what is going on. */
static void
show(const Queue *queue, TimestampTz now)
{
	SagaRoute  *route = queue->route;
	TimestampTz pause = saga_route_pauses_until(route);
	SagaServerState state = SAGA_SERVER_IDLE;

	if (saga_route_nready(route) > 0)
		state = SAGA_SERVER_CONNECTED;
	else if (saga_route_nconnections(route) > 0)
		state = SAGA_SERVER_CONNECTING;
	else if (pause > now)
		state = SAGA_SERVER_PAUSING;
	saga_sstate_show(queue->id, state, saga_route_nconnections(route),
					 saga_route_in_flight(route),
					 state == SAGA_SERVER_PAUSING ? pause : 0);
}

/* One look at a queue and its connections. */
static void
work_on(Queue *queue, TimestampTz now)
{
	saga_route_work(queue->route, now, &done);
	note_info(queue);
	serve_error(queue);
	if (saga_follow_take_loss(queue->follow))
		take_over(queue, DT_NOEND);
	serve(queue, now);
	/* what was refused just now */
	serve_error(queue);
	show(queue, now);
}

/* Is something under way, or to be done? */
static bool
has_work(const Queue *queue)
{
	return queue->has_tasks || saga_route_nwaiting(queue->route) > 0 ||
		saga_route_in_flight(queue->route) > 0 ||
		saga_follow_is_active(queue->follow);
}

/* Which queues have tasks that nobody has claimed?  In a transaction, unless
 * there is none to look for. */
static void
take_marks(bool all, bool first)
{
	int32		id;
	bool		marked = saga_qstate_next_call(&id);
	int32	   *ids = NULL;
	int			n = 0;

	if (!marked && !all)
		return;
	saga_session_begin();
	for (; marked; marked = saga_qstate_next_call(&id))
	{
		Queue	   *queue = load_queue(id);

		if (queue != NULL)
			queue->has_tasks = queue->marked = true;
	}
	if (all)
		n = saga_server_list(&ids);
	for (int i = 0; i < n; i++)
	{
		Queue	   *queue = load_queue(ids[i]);

		if (queue == NULL)
			continue;
		queue->has_tasks = queue->marked = true;
		saga_route_end_pause(queue->route);
	}
	end_transaction();
	for (int i = 0; first && i < nqueues; i++)
		take_over(queues[i], DT_NOBEGIN);
}

/* Has the clock been set back since the last turn?  Then nothing waits for what
 * it showed before. */
static void
mend_times(void)
{
	static TimestampTz last = 0;
	TimestampTz now = GetCurrentTimestamp();

	if (now < last)
	{
		busy_until = 0;
		for (int i = 0; i < nqueues; i++)
		{
			queues[i]->not_before = 0;
			queues[i]->hungry_since = 0;
			saga_route_mend_times(queues[i]->route);
			saga_follow_mend_times(queues[i]->follow);
		}
	}
	last = now;
}

/* Do all that can be done now; returns whether there is something to wait for. */
static bool
take_turn(bool first)
{
	uint32		wants = saga_courier_take_wants();
	TimestampTz now;
	bool		busy = false;

	AcceptInvalidationMessages();
	if (check_extension)
	{
		check_extension = false;
		saga_session_require_extension();
		MemoryContextSwitchTo(turn_context);
	}
	mend_times();
	take_marks(first || (wants & SAGA_COURIER_ALL) != 0, first);
	now = GetCurrentTimestamp();
	if (now - forgets_at >= FORGET_INTERVAL || now < forgets_at)
	{
		prepare_forgets();
		forgets_at = now;
	}
	for (int i = 0; i < nqueues; i++)
	{
		work_on(queues[i], now);
		busy |= has_work(queues[i]);
	}
	now = GetCurrentTimestamp();
	if (!dlist_is_empty(&done) && now >= busy_until)
		save_answers(now);
	return busy || !dlist_is_empty(&done);
}


/* ---- waiting ---------------------------------------------------------------- */

/* When there is something to do though nothing happens. */
static TimestampTz
find_next_time(TimestampTz now)
{
	TimestampTz next = saga_qstate_call_at();

	if (!dlist_is_empty(&done))
		next = Min(next, Max(busy_until, now));
	for (int i = 0; i < nqueues; i++)
	{
		const Queue *queue = queues[i];

		next = Min(next, saga_route_wakes_at(queue->route, now));
		next = Min(next, saga_follow_wakes_at(queue->follow, now));
		if (has_calls(queue))
		{
			/* what holds it up now is over then */
			if (saga_route_pauses_until(queue->route) > now)
				next = Min(next, Min(saga_route_pauses_until(queue->route),
									 now + CHANGES_PAUSE));
			if (queue->not_before > now)
				next = Min(next, queue->not_before);
			if (queue->hungry_since != 0)
				next = Min(next, now + HUNGRY_PAUSE);
		}
	}
	return next;
}

static void
add_wait(void *data, pgsocket socket, uint32 events)
{
	if (nwaits == waits_size)
	{
		waits_size = Max(32, 2 * waits_size);
		waits = waits == NULL ?
			MemoryContextAlloc(courier_context, waits_size * sizeof(Wait)) :
			repalloc(waits, waits_size * sizeof(Wait));
	}
	waits[nwaits].data = data;
	waits[nwaits].socket = socket;
	waits[nwaits].events = events;
	nwaits++;
}

/* Make the set of what is waited for; it is kept while only the kind of events
 * changes. */
static void
prepare_wait(void)
{
	bool		renew = wait_set == NULL;
	int			before = nwaits;
	int			n = 0;

	for (int i = 0; i < nqueues; i++)
	{
		SagaRoute  *route = queues[i]->route;

		for (int k = 0; k < saga_route_nconnections(route); k++)
		{
			SagaConnection *connection = saga_route_connection(route, k);
			void	   *data = saga_route_event_data(route, k);
			pgsocket	socket = saga_connection_socket(connection);
			uint32		events = saga_connection_events(connection);

			if (socket == PGINVALID_SOCKET)
				continue;
			/* while it opens the socket may be another one of the same number */
			if (saga_connection_state(connection) != SAGA_CONNECTION_READY ||
				n >= before || waits[n].data != data ||
				waits[n].socket != socket)
				renew = true;
			if (!renew)
			{
				if (waits[n].events != events)
					ModifyWaitEvent(wait_set, n + 2, events, NULL);
				waits[n].events = events;
			}
			else
			{
				nwaits = n;
				add_wait(data, socket, events);
			}
			n++;
		}
	}
	nwaits = n;
	if (!renew && n == before)
		return;
	if (wait_set != NULL)
		FreeWaitEventSet(wait_set);
	wait_set = saga_create_wait_event_set(courier_context, n + 2);
	AddWaitEventToSet(wait_set, WL_LATCH_SET, PGINVALID_SOCKET, MyLatch, NULL);
	AddWaitEventToSet(wait_set, WL_EXIT_ON_PM_DEATH, PGINVALID_SOCKET, NULL,
					  NULL);
	for (int i = 0; i < n; i++)
		AddWaitEventToSet(wait_set, waits[i].events, waits[i].socket, NULL,
						  waits[i].data);
}

/* Sleep until something happens, or that time has come. */
static void
rest(TimestampTz until, bool busy)
{
	WaitEvent	events[64];
	TimestampTz now;
	long		timeout = -1;
	int			n;

	if (!busy)
	{
		pgstat_report_stat(true);
		pgstat_report_activity(STATE_IDLE, NULL);
	}
	prepare_wait();
	now = GetCurrentTimestamp();
	if (until != DT_NOEND)
		timeout = until <= now ? 0 :
			TimestampDifferenceMilliseconds(now, until) + 1;
	n = WaitEventSetWait(wait_set, timeout, events, lengthof(events),
						 PG_WAIT_EXTENSION);
	for (int i = 0; i < n; i++)
		if (events[i].user_data != NULL)
			saga_route_note_event(events[i].user_data);
}


/* ---- the process --------------------------------------------------------------- */

static bool
in_flight(void)
{
	if (!dlist_is_empty(&done))
		return true;
	for (int i = 0; i < nqueues; i++)
		if (saga_route_in_flight(queues[i]->route) > 0)
			return true;
	return false;
}

static bool
has_connections(void)
{
	for (int i = 0; i < nqueues; i++)
		if (saga_route_nconnections(queues[i]->route) > 0)
			return true;
	return false;
}

/* The work, until there is none or it is told to stop. */
static void
work(void)
{
	TimestampTz idle_since = 0;
	bool		first = true;
	bool		was_busy = false;

	for (;;)
	{
		bool		busy;
		TimestampTz now;
		TimestampTz next;

		ResetLatch(MyLatch);
		if (!PostmasterIsAlive())
			proc_exit(1);
		if (ProcDiePending || saga_courier_should_stop())
			return;
		QueryCancelPending = false;
		CHECK_FOR_INTERRUPTS();
		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			ProcessConfigFile(PGC_SIGHUP);
		}
		MemoryContextReset(turn_context);
		MemoryContextSwitchTo(turn_context);

		busy = take_turn(first);
		first = false;
		if (busy && !was_busy)
			pgstat_report_activity(STATE_RUNNING, "calling other databases");
		was_busy = busy;
		if (busy && !is_leaving && saga_courier_has_had_its_turn())
			is_leaving = true;

		now = GetCurrentTimestamp();
		if ((is_leaving && !in_flight()) || begin_anew)
		{
			saga_courier_want(SAGA_COURIER_ALL);
			return;
		}
		if (busy)
			idle_since = 0;
		else if (idle_since == 0)
			idle_since = now;
		next = find_next_time(now);
		if (!busy)
		{
			bool		go = saga_courier_is_wanted_elsewhere() ||
				(!has_connections() && now >= idle_since + LINGER);

			/* the pause of a breaker may be over when nobody is here */
			saga_courier_set_deadline(saga_qstate_call_at());
			if (go && saga_courier_try_leave())
				return;
			if (!has_connections())
				next = Min(next, Max(idle_since + LINGER, now));
		}
		rest(next, busy);
	}
}

/* The main function of a courier. */
void
saga_courier_main(Datum arg)
{
	SagaStartArgs args;

	memcpy(&args, MyBgworkerEntry->bgw_extra, sizeof(args));

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);

	/* before anything that can fail: the place is given back at exit */
	if (!saga_courier_enter(DatumGetInt32(arg), args.generation))
		proc_exit(0);
	BackgroundWorkerUnblockSignals();

	BackgroundWorkerInitializeConnectionByOid(args.database, InvalidOid, 0);
	saga_session_pin();

	courier_context = AllocSetContextCreate(TopMemoryContext, "saga courier",
											ALLOCSET_DEFAULT_SIZES);
	turn_context = AllocSetContextCreate(TopMemoryContext,
										 "saga courier turn",
										 ALLOCSET_DEFAULT_SIZES);
	dlist_init(&done);
	ereport(DEBUG1, errmsg_internal("saga courier started"));

	saga_session_require_extension();
	work();

	while (nqueues > 0)
		saga_route_close(queues[--nqueues]->route);
	saga_sstate_disconnect_all();
	pgstat_report_stat(true);
	saga_courier_leave();
	proc_exit(0);
}
