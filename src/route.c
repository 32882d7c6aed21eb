/*
 * route.c
 *		Owns the connections of one role to one remote database, and which call
 *		goes through which.
 *
 * Calls are pipelined: a connection may have many in flight, which are done
 * there one after the other, each in a transaction of its own.  How many follows
 * from what is seen of the answers: more, while the other side runs dry; fewer,
 * when calls wait too long for those before them.  With functions that take
 * long there is one.
 *
 * Of several calls that are sent together none waits for the disk over there: they
 * commit asynchronously (SOFT), and one statement behind them makes all of it
 * durable (SETTLE).  Until that is answered none of them has been done; if the
 * connection breaks before, they are asked for again.  Others may see their
 * effects before they are durable, but cannot keep what follows from them without
 * keeping them: WAL is flushed in its order.  That is so only where the answer can
 * be asked for again, and where the session is ours: a pooler could have another
 * server settle.
 *
 * An answer that was lost: where calls are made once it is asked for again, for
 * the same attempt, on another connection; the first answer comes back, or the
 * call is made then.  That is done a few times only: a call that ends the other
 * side's process each time must come to an end.
 *
 * Whose answer it is.  Answers come in the order of the calls, so one that came
 * twice, or an answer to something that was sent twice, by whatever stands
 * between us and the server, would be taken for that of the next call.  So each
 * call has a number, which comes back with its result.  An error of what was
 * called has the name of the operation in its context.  One of the commit has
 * nothing, and is believed when the next answer on that connection is the right
 * one; if there is no next call one is made for that.
 *
 * A route that cannot be gone pauses, longer each time; what waits for it is
 * not claimed meanwhile.
 */
#include "postgres.h"

#include "common/pg_prng.h"
#include "mb/pg_wchar.h"
#include "storage/fd.h"
#include "storage/latch.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "errcodes.h"
#include "guc.h"
#include "log.h"
#include "participate.h"
#include "route.h"
#include "sstate.h"

/* Calls in flight on one connection: at most, and before anything is known. */
#define MAX_DEPTH		64
#define FIRST_DEPTH		4

/* A call that was answered so soon after the time of the way did not wait for
 * others there; it should not wait longer than that.  Microseconds. */
#define LITTLE_WAIT		2000
#define LONG_WAIT		100000

/* So many are settled at once. */
#define MAX_SOFT		16

/* A call that takes longer than this holds up those behind it: no more are sent
 * until it is done. */
#define SLOW_CALL		(200 * INT64CONST(1000))

/* So many bytes the calls of a route have, all together: each is in memory until
 * it was answered. */
#define MAX_BYTES		((Size) 64 * 1024 * 1024)

/* One whose calls are not done once is renewed after so long: the extension may
 * be there now. */
#define PLAIN_LIFETIME	USECS_PER_MINUTE

/* So long a connection is kept at least, though others want one. */
#define TIME_SLICE		(200 * INT64CONST(1000))

/* The most bytes of a text in an error. */
#define MAX_ERROR_TEXT	10000

/* An answer that was lost is asked for so often. */
#define MAX_ASKS		3

/* Pauses after a failure: the first, each twice as long, at most. */
#define FIRST_PAUSE		(200 * INT64CONST(1000))
#define MAX_PAUSE		(30 * USECS_PER_SEC)

typedef struct Line
{
	SagaConnection *connection;
	bool		follows;		/* children, and sends nothing else */
	bool		event;			/* its socket is ready for something */
	bool		retired;		/* nothing more is sent */
	bool		broken;			/* nothing more is believed */
	bool		was_ready;
	bool		ending;			/* it has broken; something is still to be done */
	TimestampTz opened_at;
	TimestampTz idle_since;		/* 0: something is in flight */
	dlist_head	sent;			/* calls in flight, in this order */
	dlist_head	unsure;			/* those that have failed, if that was theirs */
	bool		asks_echo;		/* to find that out */
	dlist_head	outgoing;		/* calls that are sent together */
	int			noutgoing;
	dlist_head	unsettled;		/* those that are done, and not kept yet */
	bool		was_full;		/* it has had as many calls as it should */
} Line;

struct SagaRoute
{
	MemoryContext memory;
	MemoryContext target_memory;	/* of the next two; NULL = there is none */
	SagaTarget	target;
	bool		refused;		/* there is no target, for this reason: */
	SagaError	refusal;
	MemoryContext error_memory; /* of the next */
	SagaError	error;			/* of the last try; its message is NULL if it was
								 * taken */
	bool		error_passing;
	int32		id;
	const char *server;
	Oid			role;
	const char *role_name;
	int			nlines;
	Line	   *lines[SAGA_MAX_REMOTE_CONNECTIONS + 1];	/* one may follow */
	dlist_head	waiting;		/* calls to be asked again */
	int			nwaiting;
	int			depth;			/* calls in flight on one line; 0 = not known */
	bool		is_steady;		/* they were too many once */
	bool		cannot_settle;	/* that was refused: the role may not, say */
	Size		in_flight;		/* bytes that the calls have that are in flight, or
								 * to be asked again */
	Size		size;			/* of a call, lately; 0 = not known */
	int			failures;		/* in a row */
	TimestampTz pause_until;	/* 0 = none */
	bool		has_info;		/* news of the other side */
	SagaRemoteInfo info;
	char		version[64];	/* info.saga_version */
};

static const char *const participate_sql =
	"SELECT (p.r).outcome, (p.r).result::pg_catalog.text, $10::pg_catalog.text"
	" FROM (SELECT saga.participate("
	"$1::pg_catalog.uuid, $2::pg_catalog.uuid, $3::pg_catalog.text,"
	" $4::pg_catalog.text, $5::pg_catalog.text, $6::pg_catalog.jsonb,"
	" $7::pg_catalog.int4, $8::pg_catalog.int4,"
	" $9::pg_catalog.timestamptz) AS r OFFSET 0) AS p";

/* A setting of its transaction, which the function may set in another way. */
static const char *const soft_participate_sql =
	"SELECT (p.r).outcome, (p.r).result::pg_catalog.text, $10::pg_catalog.text"
	" FROM (SELECT pg_catalog.set_config('synchronous_commit', 'off', true),"
	" saga.participate("
	"$1::pg_catalog.uuid, $2::pg_catalog.uuid, $3::pg_catalog.text,"
	" $4::pg_catalog.text, $5::pg_catalog.text, $6::pg_catalog.jsonb,"
	" $7::pg_catalog.int4, $8::pg_catalog.int4,"
	" $9::pg_catalog.timestamptz) AS r OFFSET 0) AS p";

static const char *const settle_sql =
	"SELECT saga.settle($1::pg_catalog.int4), $2::pg_catalog.text";

static const char *const participate_child_sql =
	"SELECT p.outcome, p.result::pg_catalog.text, $10::pg_catalog.text"
	" FROM saga.participate_child("
	"$1::pg_catalog.uuid, $2::pg_catalog.uuid, $3::pg_catalog.text,"
	" $4::pg_catalog.text, $5::pg_catalog.text, $6::pg_catalog.jsonb,"
	" $7::pg_catalog.int4, $8::pg_catalog.int4,"
	" $9::pg_catalog.timestamptz) AS p";

static const char *const follow_sql =
	"CALL saga.follow_children($1::pg_catalog.uuid, $2::pg_catalog._int8,"
	" $3::pg_catalog.interval, NULL, $4::pg_catalog.text, $5::pg_catalog.text)";

static const char *const forget_sql =
	"SELECT f.n::pg_catalog.text, f.n::pg_catalog.text, $4::pg_catalog.text"
	" FROM saga.forget_barriers($1::pg_catalog.uuid,"
	" $2::pg_catalog.timestamptz, $3::pg_catalog.uuid[]) AS f(n)";

static const char *const echo_sql = "SELECT $1::pg_catalog.text";

/* The parameters of saga.settle(). */
enum
{
	SETTLE_PID, SETTLE_ECHO, SETTLE_PARAMS
};

/* It says the same, and that it is so. */
#define ECHO_TIMEOUT	(10 * USECS_PER_SEC)


/* Connections of all routes of this process. */
static int	nlines_of_all = 0;

bool
saga_route_has_room(void)
{
	/* each takes three open files, of a third of what there may be */
	return nlines_of_all < Max(max_safe_fds / 9 - 2, 4);
}


/* ---- routes --------------------------------------------------------------- */

SagaRoute *
saga_route_open(const SagaServerQueue *queue, MemoryContext parent)
{
	MemoryContext memory = AllocSetContextCreate(parent, "saga route",
												 ALLOCSET_SMALL_SIZES);
	SagaRoute  *route = MemoryContextAllocZero(memory, sizeof(SagaRoute));

	route->memory = memory;
	route->error_memory = AllocSetContextCreate(memory, "saga route error",
												ALLOCSET_SMALL_SIZES);
	route->id = queue->queue.id;
	route->server = MemoryContextStrdup(memory, queue->queue.name);
	route->role = queue->role;
	route->role_name = MemoryContextStrdup(memory, queue->role_name);
	dlist_init(&route->waiting);
	return route;
}

static void
close_line(SagaRoute *route, int i)
{
	Line	   *line = route->lines[i];

	saga_connection_close(line->connection);
	pfree(line);
	nlines_of_all--;
	route->lines[i] = route->lines[--route->nlines];
}

void
saga_route_close(SagaRoute *route)
{
	while (route->nlines > 0)
		close_line(route, route->nlines - 1);
	while (!dlist_is_empty(&route->waiting))
	{
		SagaCall   *call = dlist_container(SagaCall, node,
										   dlist_pop_head_node(&route->waiting));

		MemoryContextDelete(call->memory);
	}
	MemoryContextDelete(route->memory);
}

int32
saga_route_id(const SagaRoute *route)
{
	return route->id;
}

Oid
saga_route_role(const SagaRoute *route)
{
	return route->role;
}

const char *
saga_route_role_name(const SagaRoute *route)
{
	return route->role_name;
}

const char *
saga_route_server(const SagaRoute *route)
{
	return route->server;
}

char *
saga_route_describe(const SagaRoute *route)
{
	return saga_log_describe_names("server", saga_route_server(route),
								   "role", saga_route_role_name(route), NULL);
}

Oid
saga_route_server_oid(const SagaRoute *route)
{
	return route->target_memory != NULL ? route->target.server : InvalidOid;
}

static void
forget_target(SagaRoute *route)
{
	if (route->target_memory != NULL)
		MemoryContextDelete(route->target_memory);
	route->target_memory = NULL;
	route->refused = false;
	for (int i = 0; i < route->nlines; i++)
		route->lines[i]->retired = true;
	/* what has failed may not, with other settings */
	saga_route_end_pause(route);
}

/* Of what the other side says so much is kept, as of an error of ours. */
static const char *
copy_text(const char *text)
{
	size_t		length;

	if (text == NULL)
		return NULL;
	length = strnlen(text, MAX_ERROR_TEXT + 1);
	if (length > MAX_ERROR_TEXT)
		length = pg_mbcliplen(text, (int) length, MAX_ERROR_TEXT);
	return pnstrdup(text, length);
}

static void
copy_error(SagaError *to, const SagaError *from, MemoryContext memory)
{
	MemoryContext old = MemoryContextSwitchTo(memory);

	*to = *from;
	to->message = copy_text(from->message);
	to->detail = copy_text(from->detail);
	to->hint = copy_text(from->hint);
	to->context = copy_text(from->context);
	MemoryContextSwitchTo(old);
}

/* The target's strings and arrays in "memory". */
static void
copy_target(SagaTarget *to, const SagaTarget *from, MemoryContext memory)
{
	MemoryContext old = MemoryContextSwitchTo(memory);

	*to = *from;
	to->server_name = pstrdup(from->server_name);
	to->role_name = pstrdup(from->role_name);
	to->keywords = palloc0((from->noptions + 1) * sizeof(char *));
	to->values = palloc0((from->noptions + 1) * sizeof(char *));
	for (int i = 0; i < from->noptions; i++)
	{
		to->keywords[i] = pstrdup(from->keywords[i]);
		to->values[i] = pstrdup(from->values[i]);
	}
	MemoryContextSwitchTo(old);
}

void
saga_route_set_target(SagaRoute *route, const SagaTarget *target)
{
	if (route->target_memory != NULL && !route->refused &&
		route->target.fingerprint == target->fingerprint)
		return;
	forget_target(route);
	route->target_memory = AllocSetContextCreate(route->memory,
												 "saga route target",
												 ALLOCSET_SMALL_SIZES);
	copy_target(&route->target, target, route->target_memory);
}

static void
note_error(SagaRoute *route, const SagaError *error, bool passing)
{
	MemoryContextReset(route->error_memory);
	copy_error(&route->error, error, route->error_memory);
	route->error_passing = passing;
}

static void
pause_route(SagaRoute *route, TimestampTz now)
{
	int64		pause = FIRST_PAUSE;

	for (int i = 0; i < route->failures && pause < MAX_PAUSE; i++)
		pause *= 2;
	pause = Min(pause, MAX_PAUSE);
	route->failures++;
	/* not all at once, where there are several */
	route->pause_until = now + pause * 4 / 5 +
		(int64) (pg_prng_double(&pg_global_prng_state) * (pause / 5));
}

void
saga_route_set_refused(SagaRoute *route, const SagaError *error)
{
	int			failures = route->failures;

	forget_target(route);
	route->failures = failures;
	route->refused = true;
	note_error(route, error, false);
	pause_route(route, GetCurrentTimestamp());
}

const SagaError *
saga_route_take_error(SagaRoute *route, bool *passing)
{
	static SagaError taken;

	if (route->error.message == NULL)
		return NULL;
	taken = route->error;
	route->error.message = NULL;
	*passing = route->error_passing;
	return &taken;
}


/* ---- room ----------------------------------------------------------------- */

/* Is what is called through it done once? */
static bool
is_once(const Line *line)
{
	const SagaRemoteInfo *info = saga_connection_info(line->connection);

	return info != NULL && info->saga_version != NULL;
}

/*
 * How many calls a connection should have in flight.  What is not done once is
 * sent alone: nothing may be done there, behind a call that hangs, when nobody
 * waits for it any more.
 */
static int
choose_depth(const SagaRoute *route, const Line *line)
{
	if (!is_once(line))
		return 1;
	return route->depth == 0 ? FIRST_DEPTH : route->depth;
}

/* Of the way there and back, microseconds. */
static int64
round_trip(const Line *line)
{
	return saga_connection_info(line->connection)->round_trip;
}

/* How many more may be sent through it. */
static int
line_room(const SagaRoute *route, const Line *line, TimestampTz now)
{
	int			in_flight;
	TimestampTz since;

	if (line->follows || line->retired || line->broken ||
		saga_connection_state(line->connection) != SAGA_CONNECTION_READY)
		return 0;
	in_flight = saga_connection_in_flight(line->connection) + line->noutgoing;
	since = saga_connection_head_since(line->connection);
	if (in_flight > 0 && now - since > SLOW_CALL + round_trip(line))
		return 0;
	return Max(choose_depth(route, line) - in_flight, 0);
}

/* Can something be sent through it? */
static bool
is_open(const Line *line)
{
	return !line->retired && !line->broken &&
		saga_connection_state(line->connection) == SAGA_CONNECTION_READY;
}

int
saga_route_room(SagaRoute *route, TimestampTz now)
{
	int			room = 0;

	for (int i = 0; i < route->nlines; i++)
		room += line_room(route, route->lines[i], now);
	room = Max(room - route->nwaiting, 0);
	if (route->in_flight >= MAX_BYTES)
		return 0;
	if (route->size > 0)
		room = Min(room, (int) ((MAX_BYTES - route->in_flight) / route->size) + 1);
	return room;
}

int
saga_route_capacity(SagaRoute *route)
{
	int			n = 0;

	for (int i = 0; i < route->nlines; i++)
		if (is_open(route->lines[i]) && !route->lines[i]->follows)
			n += choose_depth(route, route->lines[i]);
	return n;
}

/* The connection that has least to do; NULL if none has room. */
static Line *
choose_line(const SagaRoute *route, TimestampTz now)
{
	Line	   *best = NULL;
	int			most = 0;

	for (int i = 0; i < route->nlines; i++)
	{
		int			room = line_room(route, route->lines[i], now);

		if (room > most)
		{
			best = route->lines[i];
			most = room;
		}
	}
	return best;
}


/* ---- calls ---------------------------------------------------------------- */

static void
finish(SagaRoute *route, SagaCall *call, dlist_head *done)
{
	route->in_flight -= call->size;
	dlist_push_tail(done, &call->node);
}

/* Its outcome is not known, and will not be. */
static void
give_up(SagaRoute *route, SagaCall *call, const SagaError *error,
		bool is_final, dlist_head *done)
{
	copy_error(&call->outcome.error, error, call->memory);
	call->outcome.kind = SAGA_OUTCOME_FAILED;
	call->outcome.is_final = is_final;
	call->outcome.is_passing = !is_final;
	call->outcome.unknown = true;
	finish(route, call, done);
}

static void
wait_to_ask(SagaRoute *route, SagaCall *call)
{
	dlist_push_tail(&route->waiting, &call->node);
	route->nwaiting++;
}

static void
send_through(Line *line, SagaCall *call)
{
	static uint64 number = 0;
	const SagaRemoteInfo *info = saga_connection_info(line->connection);
	SagaRemoteCall remote = {.timeout = call->timeout, .tag = call};
	const char *plain_params[2];

	snprintf(call->echo, sizeof(call->echo), UINT64_FORMAT, ++number);
	if (call->kind != SAGA_CALL_FORGET && call->kind != SAGA_CALL_FOLLOW)
		call->params[SAGA_PARAM_ECHO] = call->echo;
	if (call->kind == SAGA_CALL_ECHO)
	{
		remote.sql = echo_sql;
		remote.nparams = 1;
		remote.params = &call->params[SAGA_PARAM_ECHO];
		remote.once = info->saga_version != NULL;
	}
	else if (call->kind == SAGA_CALL_FORGET)
	{
		remote.sql = forget_sql;
		remote.once = true;
		remote.nparams = SAGA_FORGET_PARAMS;
		call->params[SAGA_FORGET_ECHO] = call->echo;
		remote.params = call->params;
	}
	else if (call->kind == SAGA_CALL_FOLLOW)
	{
		remote.sql = follow_sql;
		remote.nparams = SAGA_FOLLOW_PARAMS;
		call->params[SAGA_FOLLOW_ECHO] = call->echo;
		remote.params = call->params;
		remote.bare = remote.once = true;
	}
	else if (call->kind == SAGA_CALL_CHILD)
	{
		/* without the extension the server says so */
		remote.sql = participate_child_sql;
		remote.nparams = SAGA_CALL_PARAMS;
		remote.params = call->params;
		remote.once = info->saga_version != NULL;
	}
	else if (call->kind == SAGA_CALL_SETTLE)
	{
		remote.sql = settle_sql;
		remote.nparams = SETTLE_PARAMS;
		call->params[SETTLE_ECHO] = call->echo;
		remote.params = call->params;
		remote.once = true;
	}
	else if (info->saga_version != NULL)
	{
		remote.sql = call->soft ? soft_participate_sql : participate_sql;
		remote.nparams = SAGA_CALL_PARAMS;
		remote.params = call->params;
		remote.once = true;
	}
	else
	{
		plain_params[0] = call->params[SAGA_PARAM_CONTEXT];
		plain_params[1] = call->echo;
		remote.sql = call->plain_sql;
		remote.nparams = 2;
		remote.params = plain_params;
	}
	call->unsent = false;
	dlist_push_tail(&line->sent, &call->node);
	call->once = remote.once;
	saga_connection_send(line->connection, &remote);
	line->idle_since = 0;
	/* what could not be written, or is wrong, is seen to in this turn */
	line->event = true;
}

/* Is it the route's, and nobody else waits for it? */
static bool
is_own(const SagaCall *call)
{
	return call->kind == SAGA_CALL_ECHO || call->kind == SAGA_CALL_SETTLE;
}

/* It is this route's, until it has come to an end. */
static void
count_call(SagaRoute *route, SagaCall *call)
{
	if (call->size == 0)
		call->size = MemoryContextMemAllocated(call->memory, false);
	route->in_flight += call->size;
	route->size = route->size == 0 ? call->size :
		(route->size * 7 + call->size) / 8;
}

/* A call of the route's own. */
static SagaCall *
new_call(SagaRoute *route, SagaCallKind kind, int64 timeout)
{
	MemoryContext memory = AllocSetContextCreate(route->memory,
												 "saga route call",
												 ALLOCSET_SMALL_SIZES);
	SagaCall   *call = MemoryContextAllocZero(memory, sizeof(SagaCall));

	call->memory = memory;
	call->kind = kind;
	call->timeout = timeout;
	return call;
}

/* All that was sent before it is to be durable.  Its limit is that of those, so
 * that the session's is not changed for it. */
static void
send_settle(SagaRoute *route, Line *line, int64 timeout)
{
	SagaCall   *call = new_call(route, SAGA_CALL_SETTLE, timeout);
	char	   *pid = MemoryContextAlloc(call->memory, 12);

	pg_ltoa(saga_connection_info(line->connection)->pid, pid);
	call->params[SETTLE_PID] = pid;
	send_through(line, call);
}

/* Before anything is known of the calls there may be one that takes long, for which
 * the others would have to wait. */
static bool
can_be_soft(const SagaRoute *route, const Line *line)
{
	return is_once(line) && route->depth > 0 && !route->cannot_settle &&
		!saga_connection_info(line->connection)->pooled;
}

static void
send_outgoing(SagaRoute *route, Line *line)
{
	bool		soft = line->noutgoing > 1 && can_be_soft(route, line);
	int			n = 0;

	while (line->noutgoing > 0)
	{
		SagaCall   *call = dlist_container(SagaCall, node,
										   dlist_pop_head_node(&line->outgoing));

		line->noutgoing--;
		call->soft = soft && call->kind == SAGA_CALL_STEP;
		n += call->soft;
		send_through(line, call);
		if (n > 0 && (n == MAX_SOFT || line->noutgoing == 0))
		{
			send_settle(route, line, call->timeout);
			n = 0;
		}
	}
	if (saga_connection_in_flight(line->connection) >= choose_depth(route, line))
		line->was_full = true;
}

static void
send_all_outgoing(SagaRoute *route)
{
	for (int i = 0; i < route->nlines; i++)
		if (route->lines[i]->noutgoing > 0)
			send_outgoing(route, route->lines[i]);
}

static void
give_to(Line *line, SagaCall *call)
{
	dlist_push_tail(&line->outgoing, &call->node);
	line->noutgoing++;
}

/* One that can be used, whether there is room or not. */
static Line *
find_open_line(const SagaRoute *route)
{
	for (int i = 0; i < route->nlines; i++)
		if (!route->lines[i]->follows &&
			saga_connection_state(route->lines[i]->connection) ==
			SAGA_CONNECTION_READY)
			return route->lines[i];
	return NULL;
}


void
saga_route_send(SagaRoute *route, dlist_head *calls)
{
	TimestampTz now = GetCurrentTimestamp();

	while (!dlist_is_empty(calls))
	{
		SagaCall   *call = dlist_container(SagaCall, node,
										   dlist_pop_head_node(calls));
		Line	   *line = choose_line(route, now);

		count_call(route, call);
		/* it was there a moment ago */
		if (line == NULL)
			line = find_open_line(route);
		if (line == NULL)
		{
			call->unsent = true;
			wait_to_ask(route, call);
		}
		else
			give_to(line, call);
	}
	send_all_outgoing(route);
}

void
saga_route_ask_again(SagaRoute *route, SagaCall *call)
{
	count_call(route, call);
	wait_to_ask(route, call);
}

static SagaCall *
take_waiting(SagaRoute *route)
{
	route->nwaiting--;
	return dlist_container(SagaCall, node,
						   dlist_pop_head_node(&route->waiting));
}

void
saga_route_take_waiting(SagaRoute *route, dlist_head *calls)
{
	while (route->nwaiting > 0)
		finish(route, take_waiting(route), calls);
}

/* Those whose answer was lost; one that is not done once there must not be
 * asked again. */
static void
send_waiting(SagaRoute *route, TimestampTz now, dlist_head *done)
{
	Line	   *line;

	while (route->nwaiting > 0 && (line = choose_line(route, now)) != NULL)
	{
		SagaCall   *call = take_waiting(route);

		if (saga_connection_info(line->connection)->saga_version != NULL)
			give_to(line, call);
		else if (call->unsent)
		{
			call->release = true;
			finish(route, call, done);
		}
		else
		{
			SagaError	error = {
				.message = "the answer of the server was lost",
				.detail = "Extension \"saga\" is not there any more, or the role may not use it: it cannot be asked for again."
			};

			strcpy(error.sqlstate, "08007");
			give_up(route, call, &error, false, done);
		}
	}
	send_all_outgoing(route);
}

/* Leases that are over: the coordinator has seen to these. */
static void
forget_expired(SagaRoute *route, TimestampTz now)
{
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &route->waiting)
	{
		SagaCall   *call = dlist_container(SagaCall, node, iter.cur);

		if (call->lease_until > now)
			continue;
		dlist_delete(&call->node);
		route->nwaiting--;
		route->in_flight -= call->size;
		MemoryContextDelete(call->memory);
	}
}

/* The answer was lost: ask for it again, where that does no harm. */
static void
take_loss(SagaRoute *route, SagaCall *call, const SagaError *error, bool once,
		  dlist_head *done)
{
	if (once && call->kind != SAGA_CALL_FOLLOW && ++call->nlost <= MAX_ASKS)
		wait_to_ask(route, call);
	else
		give_up(route, call, error, false, done);
}

/* What saga.fail() and saga.retry_later() say there: see participate(). */
static bool
read_control(SagaOutcome *outcome, const char *constraint)
{
	static const char later[] = "saga_retry_later_";
	char	   *end;

	if (constraint == NULL)
		return false;
	if (strcmp(outcome->error.sqlstate, unpack_sql_state(ERRCODE_SAGA_FAIL)) == 0 &&
		strcmp(constraint, "saga_fail") == 0)
	{
		outcome->is_final = true;
		return true;
	}
	if (strcmp(outcome->error.sqlstate,
			   unpack_sql_state(ERRCODE_SAGA_RETRY_LATER)) != 0 ||
		strncmp(constraint, later, strlen(later)) != 0)
		return false;
	outcome->delay = strtoll(constraint + strlen(later), &end, 10);
	if (*end != '\0' || outcome->delay < 0)
	{
		outcome->delay = 0;
		return false;
	}
	outcome->kind = SAGA_OUTCOME_LATER;
	return true;
}

static bool
has_class(const SagaError *error, const char *class)
{
	return strncmp(error->sqlstate, class, 2) == 0;
}

/* Does the error say something about the server, and not of what was called? */
static bool
is_servers_trouble(const SagaError *error)
{
	return has_class(error, "08") || has_class(error, "53") ||
		has_class(error, "58") ||
		(has_class(error, "57") && strcmp(error->sqlstate, "57014") != 0);
}

/* It was answered with an error, and nothing of it remains; if the answer is
 * its own. */
static void
take_failure(Line *line, SagaCall *call, const SagaRemoteAnswer *answer)
{
	SagaOutcome *outcome = &call->outcome;

	copy_error(&outcome->error, &answer->error, call->memory);
	outcome->kind = SAGA_OUTCOME_FAILED;
	outcome->timed_out = answer->timed_out;
	call->was_reached = !is_servers_trouble(&outcome->error);
	if (!read_control(outcome, answer->constraint))
	{
		/* a standby: after a failover it is none, or another server is meant */
		outcome->is_passing = strcmp(outcome->error.sqlstate, "25006") == 0;
		outcome->is_final =
			strcmp(outcome->error.sqlstate,
				   unpack_sql_state(ERRCODE_SAGA_VOID)) == 0 ||
			strcmp(outcome->error.sqlstate,
				   unpack_sql_state(ERRCODE_SAGA_FORGOTTEN)) == 0;
	}
	dlist_push_tail(&line->unsure, &call->node);
}

/* The context of errors that participate() raises for it ends with this. */
static bool
is_error_of(const SagaCall *call, const SagaError *error)
{
	char		name[SAGA_CALL_MARK_LENGTH];
	size_t		length;
	size_t		context;

	if ((call->kind != SAGA_CALL_STEP && call->kind != SAGA_CALL_CHILD) ||
		error->context == NULL)
		return false;
	saga_participate_mark(name, call->params[SAGA_PARAM_SAGA],
						  call->params[SAGA_PARAM_STEP],
						  atoi(call->params[SAGA_PARAM_ELEMENT]),
						  atoi(call->params[SAGA_PARAM_ROUND]),
						  call->params[SAGA_PARAM_OPERATION]);
	length = strlen(name);
	context = strlen(error->context);
	return context >= length &&
		strcmp(error->context + context - length, name) == 0;
}

/* Is it the answer to this call? */
static bool
is_answer_of(const SagaCall *call, const SagaRemoteAnswer *answer)
{
	return answer->ncolumns > 0 &&
		answer->columns[answer->ncolumns - 1] != NULL &&
		strcmp(answer->columns[answer->ncolumns - 1], call->echo) == 0;
}

static void
finish_all(SagaRoute *route, dlist_head *calls, dlist_head *done)
{
	while (!dlist_is_empty(calls))
		finish(route, dlist_container(SagaCall, node,
									  dlist_pop_head_node(calls)), done);
}

/* The answers of this connection are those of its calls: what has failed has. */
static void
believe(SagaRoute *route, Line *line, dlist_head *done)
{
	finish_all(route, &line->unsure, done);
}

/* It may be otherwise than was answered. */
static void
take_doubtful(SagaRoute *route, dlist_head *calls, const SagaError *error,
			  bool once, dlist_head *done)
{
	while (!dlist_is_empty(calls))
	{
		SagaCall   *call = dlist_container(SagaCall, node,
										   dlist_pop_head_node(calls));

		memset(&call->outcome, 0, sizeof(call->outcome));
		call->result = NULL;
		call->was_reached = false;
		take_loss(route, call, error, once, done);
	}
}

/* They are not, or nobody knows: what has failed may have succeeded, and what has
 * succeeded may not have been kept. */
static void
doubt(SagaRoute *route, Line *line, bool once, dlist_head *done)
{
	SagaError	unsure = {
		.sqlstate = "08007",
		.message = "the answer of the server was lost",
		.detail = "It could not be told which of several answers was its own."
	};
	SagaError	unsettled = {
		.sqlstate = "08007",
		.message = "the answer of the server was lost",
		.detail = "It was done, but it is not known whether it was kept."
	};

	take_doubtful(route, &line->unsure, &unsure, once, done);
	take_doubtful(route, &line->unsettled, &unsettled, once, done);
}

/* Nothing of what is in flight on it is known. */
static void
lose_line(SagaRoute *route, Line *line, const SagaError *error, bool once,
		  dlist_head *done)
{
	line->broken = true;
	doubt(route, line, once, done);
	while (!dlist_is_empty(&line->sent))
	{
		SagaCall   *call = dlist_container(SagaCall, node,
										   dlist_pop_head_node(&line->sent));

		if (is_own(call))
			MemoryContextDelete(call->memory);
		else
			take_loss(route, call, error, once, done);
	}
}

/* The other side is out of step: what came on this connection is not to be
 * believed any more, nor what comes.  "call" is in flight still. */
static void
distrust(SagaRoute *route, Line *line, SagaCall *call, bool once,
		 dlist_head *done)
{
	SagaError	error = {
		.sqlstate = "08007",
		.message = "the server's answer was not the answer to its call",
		.detail = "The connection was closed; what has become of the calls on it is not known."
	};

	saga_sstate_lost(route->id, error.message);
	dlist_push_head(&line->sent, &call->node);
	lose_line(route, line, &error, once, done);
}


/* Its answers come too late for anybody. */
static void
abandon(SagaRoute *route, Line *line, dlist_head *done)
{
	SagaError	error = {
		.sqlstate = "08007",
		.message = "the server did not answer in time",
		.detail = "The connection was closed; what has become of the calls on it is not known."
	};

	saga_sstate_lost(route->id, error.message);
	lose_line(route, line, &error, is_once(line), done);
}

/* Nothing follows what has failed: ask for something that shows whether it
 * has. */
static void
ask_echo(SagaRoute *route, Line *line)
{
	SagaCall   *call = new_call(route, SAGA_CALL_ECHO, ECHO_TIMEOUT);

	line->asks_echo = true;
	send_through(line, call);
}

static void
take_success(SagaRoute *route, Line *line, SagaCall *call,
			 const SagaRemoteAnswer *answer, bool once, dlist_head *done)
{
	const char *result = NULL;

	if (call->kind == SAGA_CALL_FOLLOW)
	{
		result = answer->columns[0];
		if (answer->columns[1] != NULL)
			call->history = MemoryContextStrdup(call->memory,
												answer->columns[1]);
	}
	else if (once || call->kind == SAGA_CALL_CHILD)
		result = answer->ncolumns > 1 ? answer->columns[1] : NULL;
	else if (answer->ncolumns > 0)
		result = answer->columns[0];
	if (result != NULL)
		call->result = MemoryContextStrdup(call->memory, result);
	call->outcome.kind = SAGA_OUTCOME_SUCCEEDED;
	call->was_reached = true;
	if (call->soft)
		dlist_push_tail(&line->unsettled, &call->node);
	else
		finish(route, call, done);
}

static void
take_lost(SagaRoute *route, SagaCall *call, const SagaRemoteAnswer *answer,
		  bool once, dlist_head *done)
{
	saga_sstate_lost(route->id, answer->error.message);
	if (!answer->timed_out && !answer->too_large)
	{
		take_loss(route, call, &answer->error, once, done);
		return;
	}
	call->outcome.timed_out = answer->timed_out;
	call->was_reached = answer->too_large;
	give_up(route, call, &answer->error, answer->too_large, done);
}

/* Had the line too many calls, or too few? */
static void
learn_depth(SagaRoute *route, Line *line, const SagaRemoteAnswer *answer)
{
	int64		waited = answer->answered_at - answer->sent_at - round_trip(line);
	int			depth = choose_depth(route, line);

	if (!is_once(line))
		return;
	if (waited > LONG_WAIT)
	{
		if (!line->was_full)
			return;
		route->is_steady = true;
		depth = Max(depth / 2, 1);
	}
	else if (line->was_full && (waited < LITTLE_WAIT ||
			 saga_connection_in_flight(line->connection) == 0))
		depth = Min(depth + (route->is_steady ? (depth + 3) / 4 : depth),
					MAX_DEPTH);
	else if (route->depth > 0)
		return;
	route->depth = depth;
	line->was_full = false;
}

/*
 * Was it refused before participate() began?  What was prepared is gone, or the
 * extension is, or the right to use it: that says nothing of the saga, and the
 * next connection finds out what is there.
 */
static bool
was_not_begun(const SagaCall *call, const SagaRemoteAnswer *answer, bool once)
{
	const SagaError *error = &answer->error;

	return once && answer->kind == SAGA_REMOTE_FAILED &&
		(call->kind == SAGA_CALL_STEP || call->kind == SAGA_CALL_CHILD) &&
		!is_error_of(call, error) &&
		(has_class(error, "26") || has_class(error, "42") ||
		 has_class(error, "0A") || has_class(error, "3F"));
}

/* Send it again, through another connection. */
static void
take_back(SagaRoute *route, Line *line, SagaCall *call,
		  const SagaRemoteAnswer *answer, dlist_head *done)
{
	/* those behind it fare the same: that is one failure */
	if (!line->retired)
	{
		saga_sstate_unreachable(route->id, answer->error.message);
		pause_route(route, answer->answered_at);
	}
	line->retired = true;
	/* one that was lost before may have been made */
	if (call->nlost > 0)
		wait_to_ask(route, call);
	else
	{
		call->release = true;
		finish(route, call, done);
	}
}

/* It was answered. */
static void
take_return(SagaRoute *route, Line *line, SagaCall *call,
			const SagaRemoteAnswer *answer, bool once, dlist_head *done)
{
	bool		failed = answer->kind == SAGA_REMOTE_FAILED;

	if (failed ? is_own(call) : !is_answer_of(call, answer))
	{
		route->cannot_settle |= failed && call->kind == SAGA_CALL_SETTLE;
		distrust(route, line, call, once, done);
		return;
	}
	if (was_not_begun(call, answer, once))
	{
		take_back(route, line, call, answer, done);
		return;
	}
	route->failures = 0;
	if (!failed)
		believe(route, line, done);
	if (is_own(call))
	{
		if (call->kind == SAGA_CALL_ECHO)
			line->asks_echo = false;
		else
			finish_all(route, &line->unsettled, done);
		MemoryContextDelete(call->memory);
		return;
	}
	if (call->kind != SAGA_CALL_FOLLOW)
	{
		learn_depth(route, line, answer);
		saga_sstate_answered(route->id, answer->answered_at - answer->sent_at,
							 failed);
	}
	if (failed)
	{
		take_failure(line, call, answer);
		if (is_error_of(call, &answer->error))
			believe(route, line, done);
	}
	else
		take_success(route, line, call, answer, once, done);
}

static void
take_answer(SagaRoute *route, Line *line, const SagaRemoteAnswer *answer,
			dlist_head *done)
{
	SagaCall   *call = answer->tag;

	dlist_delete(&call->node);
	switch (answer->kind)
	{
		case SAGA_REMOTE_DONE:
		case SAGA_REMOTE_FAILED:
			take_return(route, line, call, answer, is_once(line), done);
			break;
		case SAGA_REMOTE_UNSENT:
			/* one that was lost before may have been made */
			if (is_own(call))
				MemoryContextDelete(call->memory);
			else if (call->nlost > 0)
				wait_to_ask(route, call);
			else
			{
				call->release = true;
				finish(route, call, done);
			}
			break;
		case SAGA_REMOTE_UNKNOWN:
			if (is_own(call))
				MemoryContextDelete(call->memory);
			else
				take_lost(route, call, answer, is_once(line), done);
			break;
	}
}


/* ---- connections ------------------------------------------------------------ */

/* Begin to connect, unless that has to wait. */
static void
open_line(SagaRoute *route, TimestampTz now, bool follows)
{
	Line	   *line;

	if (route->target_memory == NULL || !saga_route_has_room() ||
		route->nlines >= (int) lengthof(route->lines) ||
		now < route->pause_until)
		return;
	for (int i = 0; i < route->nlines; i++)
		if (!route->lines[i]->retired &&
			saga_connection_state(route->lines[i]->connection) ==
			SAGA_CONNECTION_OPENING)
			return;
	line = MemoryContextAllocZero(route->memory, sizeof(Line));
	line->connection =
		saga_connection_open(&route->target,
							 saga_remote_connect_timeout * INT64CONST(1000),
							 route->memory);
	line->follows = follows;
	line->opened_at = now;
	line->event = true;
	dlist_init(&line->sent);
	dlist_init(&line->unsure);
	dlist_init(&line->outgoing);
	dlist_init(&line->unsettled);
	route->lines[route->nlines++] = line;
	nlines_of_all++;
}

void
saga_route_connect(SagaRoute *route, int max, TimestampTz now)
{
	if (saga_route_ncallers(route) < max)
		open_line(route, now, false);
}

bool
saga_route_can_follow(SagaRoute *route, TimestampTz now)
{
	for (int i = 0; i < route->nlines; i++)
	{
		Line	   *line = route->lines[i];

		if (line->follows && !line->retired && !line->broken && !line->ending)
			return is_open(line) && is_once(line) &&
				saga_connection_in_flight(line->connection) == 0 &&
				dlist_is_empty(&line->unsure);
	}
	open_line(route, now, true);
	return false;
}

void
saga_route_follow(SagaRoute *route, SagaCall *call)
{
	for (int i = 0; i < route->nlines; i++)
		if (route->lines[i]->follows && is_open(route->lines[i]))
		{
			send_through(route->lines[i], call);
			return;
		}
	elog(ERROR, "there is no connection that follows");
}

bool
saga_route_is_giving_up(const SagaRoute *route)
{
	for (int i = 0; i < route->nlines; i++)
		if (route->lines[i]->retired && !route->lines[i]->follows)
			return true;
	return false;
}

bool
saga_route_give_up_one(SagaRoute *route, bool force, TimestampTz now)
{
	Line	   *best = NULL;

	for (int i = 0; i < route->nlines; i++)
	{
		Line	   *line = route->lines[i];

		if (line->retired || line->follows)
			continue;
		if (line->idle_since != 0 && line->was_ready)
		{
			best = line;
			break;
		}
		if (force && line->was_ready && now - line->opened_at >= TIME_SLICE &&
			(best == NULL || line->opened_at < best->opened_at))
			best = line;
	}
	if (best == NULL)
		return false;
	best->retired = true;
	best->event = true;
	return true;
}

/* It can be used from now on. */
static void
welcome(SagaRoute *route, Line *line, TimestampTz now)
{
	const SagaRemoteInfo *info = saga_connection_info(line->connection);

	line->was_ready = true;
	line->idle_since = now;
	route->pause_until = 0;
	route->info = *info;
	if (info->saga_version != NULL)
	{
		strlcpy(route->version, info->saga_version, sizeof(route->version));
		route->info.saga_version = route->version;
	}
	route->has_info = true;
}

/* For people: what happened, and the first line of why. */
static void
show_unreachable(const SagaRoute *route, const SagaError *error)
{
	char		text[SAGA_SERVER_ERROR_LENGTH * 2];
	size_t		length = error->detail == NULL ? 0 :
		strcspn(error->detail, "\n");

	snprintf(text, sizeof(text), "%s%s%.*s", error->message,
			 length > 0 ? ": " : "", (int) Min(length, sizeof(text)),
			 length > 0 ? error->detail : "");
	saga_sstate_unreachable(route->id, text);
}

/* It has broken; all that was in flight has been answered. */
static void
note_end(SagaRoute *route, Line *line, TimestampTz now, dlist_head *done)
{
	bool		passing;
	const SagaError *error = saga_connection_error(line->connection, &passing);

	line->ending = true;
	line->idle_since = 0;
	doubt(route, line, is_once(line), done);
	if (line->retired)
		return;
	if (!line->was_ready && !line->broken)
	{
		note_error(route, error, passing);
		show_unreachable(route, error);
	}
	if (now >= route->pause_until)
		pause_route(route, now);
}

/* Has the lease of the first call in flight ended?  Then the saga goes on without
 * it. */
static bool
head_is_over(const Line *line, TimestampTz now)
{
	const SagaCall *call;

	if (dlist_is_empty(unconstify(dlist_head *, &line->sent)))
		return false;
	call = dlist_container(SagaCall, node, line->sent.head.next);
	return call->lease_until != 0 && call->lease_until <= now;
}

/* Returns false if the line is no more. */
static bool
work_line(SagaRoute *route, int i, TimestampTz now, dlist_head *done)
{
	Line	   *line = route->lines[i];
	SagaRemoteAnswer answer;
	SagaConnectionState state;

	if (line->event || saga_connection_wakes_at(line->connection) <= now)
	{
		line->event = false;
		saga_connection_work(line->connection, now);
	}
	while (!line->broken &&
		   saga_connection_next_answer(line->connection, &answer))
		take_answer(route, line, &answer, done);
	if (!line->broken && head_is_over(line, now))
		abandon(route, line, done);
	state = saga_connection_state(line->connection);
	if (!line->ending && (line->broken || state == SAGA_CONNECTION_ENDING ||
						  state == SAGA_CONNECTION_BROKEN))
		note_end(route, line, now, done);
	if (line->broken || state == SAGA_CONNECTION_BROKEN)
	{
		close_line(route, i);
		return false;
	}
	if (!dlist_is_empty(&line->unsure) && !line->asks_echo &&
		saga_connection_in_flight(line->connection) == 0)
		ask_echo(route, line);
	if (state == SAGA_CONNECTION_READY)
	{
		if (!line->was_ready)
			welcome(route, line, now);
		if (!is_once(line) && now - line->opened_at > PLAIN_LIFETIME)
			line->retired = true;
		if (saga_connection_in_flight(line->connection) > 0)
			line->idle_since = 0;
		else if (line->idle_since == 0)
			line->idle_since = now;
	}
	if (line->idle_since != 0 &&
		(line->retired || now >= line->idle_since +
		 saga_remote_idle_timeout * INT64CONST(1000)))
	{
		close_line(route, i);
		return false;
	}
	return true;
}

void
saga_route_work(SagaRoute *route, TimestampTz now, dlist_head *done)
{
	int			i = 0;

	while (i < route->nlines)
		if (work_line(route, i, now, done))
			i++;
	if (route->nwaiting == 0)
		return;
	forget_expired(route, now);
	send_waiting(route, now, done);
}

TimestampTz
saga_route_wakes_at(const SagaRoute *route, TimestampTz now)
{
	TimestampTz when = DT_NOEND;

	for (int i = 0; i < route->nlines; i++)
	{
		const Line *line = route->lines[i];

		if (line->event)
			return now;
		when = Min(when, saga_connection_wakes_at(line->connection));
		if (line->idle_since != 0)
			when = Min(when, line->idle_since +
					   saga_remote_idle_timeout * INT64CONST(1000));
	}
	return when;
}

int
saga_route_nconnections(const SagaRoute *route)
{
	return route->nlines;
}

int
saga_route_ncallers(const SagaRoute *route)
{
	int			n = 0;

	for (int i = 0; i < route->nlines; i++)
		n += !route->lines[i]->follows;
	return n;
}

int
saga_route_nready(const SagaRoute *route)
{
	int			n = 0;

	for (int i = 0; i < route->nlines; i++)
		n += is_open(route->lines[i]);
	return n;
}

static int
count_calls(const dlist_head *calls)
{
	dlist_iter	iter;
	int			n = 0;

	dlist_foreach(iter, unconstify(dlist_head *, calls))
		n += !is_own(dlist_container(SagaCall, node, iter.cur));
	return n;
}

int
saga_route_in_flight(const SagaRoute *route)
{
	int			n = 0;

	for (int i = 0; i < route->nlines; i++)
	{
		const Line *line = route->lines[i];

		if (!line->follows)
			n += count_calls(&line->sent) + count_calls(&line->unsure) +
				count_calls(&line->unsettled);
	}
	return n;
}

int
saga_route_nwaiting(const SagaRoute *route)
{
	return route->nwaiting;
}

void
saga_route_end_pause(SagaRoute *route)
{
	route->pause_until = 0;
	route->failures = 0;
}

void
saga_route_mend_times(SagaRoute *route)
{
	saga_route_end_pause(route);
	for (int i = 0; i < route->nlines; i++)
	{
		Line	   *line = route->lines[i];

		if (line->idle_since != 0)
			line->idle_since = GetCurrentTimestamp();
		line->opened_at = GetCurrentTimestamp();
		line->event = true;
	}
}

TimestampTz
saga_route_pauses_until(const SagaRoute *route)
{
	return route->pause_until;
}

const SagaRemoteInfo *
saga_route_take_info(SagaRoute *route)
{
	if (!route->has_info)
		return NULL;
	route->has_info = false;
	return &route->info;
}

SagaConnection *
saga_route_connection(const SagaRoute *route, int i)
{
	return route->lines[i]->connection;
}

void *
saga_route_event_data(const SagaRoute *route, int i)
{
	return route->lines[i];
}

void
saga_route_note_event(void *data)
{
	((Line *) data)->event = true;
}
