/*
 * remote.c
 *		Owns connections to remote databases: the only file that knows libpq.
 *
 * A connection never waits: its socket and its time are the caller's to wait
 * for, and each call of saga_connection_work() does what can be done at once.
 *
 *		OPENING		host names are looked up (resolve.c), libpq connects, and one
 *					query asks who is there
 *		READY		calls are sent, in pipeline mode, and answered in that order
 *		ENDING		no calls any more; a second connection asks the other side to
 *					end the session in which the last one hangs
 *		BROKEN		nothing left but answers and an error
 *
 * What is sent is a sequence of ITEMS, each up to a Sync of its own: what fails
 * in one has nothing to do with the next.  A call is one item or more:
 *
 *		once		[statement]: its transaction is that of the Sync
 *		else		[BEGIN, SET LOCAL statement_timeout, statement] [COMMIT]; the
 *					COMMIT ends a failed transaction too.  Then [DISCARD ALL] and
 *					the session's settings again, since the function may have
 *					left anything there
 *		bare		[SET statement_timeout] [statement], since nothing may stand
 *					around it
 *
 * An answer counts only when the Sync of the item that commits has come back:
 * until then a deferred constraint may undo what was reported.  If the connection
 * breaks before that, nobody knows; but what was not handed to libpq (it is kept
 * here while libpq has something unsent) was not sent, and what stands behind a
 * call that the server ended its session in was not begun.
 *
 * Behind a connection pooler sessions are not ours: it is noticed by the process
 * id, which is not the one that the server itself names.  Then no statement is
 * prepared, no setting outlives a transaction, and nobody is terminated.
 *
 * What a server can do to this process is bounded: what it sends for one answer
 * is counted before libpq sees it (channel.c); it has a time for each call, and
 * for connecting; an answer of the wrong form breaks the connection; text in a
 * wrong encoding does not get through.  A limit that is known: a server that asks
 * for SCRAM says how often libpq has to compute a hash before it answers, and that
 * cannot be interrupted.
 *
 * All memory of a connection is in one context; that of libpq and the socket are
 * given back by its reset callback, so that an error of the caller's, which
 * deletes the parent, leaks nothing.
 *
 * The courier, and saga_remote_probe() in any backend.
 */
#include "postgres.h"

#include <limits.h>
#include <sys/ioctl.h>

#include "lib/ilist.h"
#include "lib/stringinfo.h"
#include "libpq-fe.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/fd.h"
#include "storage/latch.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "channel.h"
#include "remote.h"
#include "resolve.h"

/* After its time a call is waited for so much longer, microseconds: it is
 * cancelled over there, and says so. */
#define GRACE		(5 * USECS_PER_SEC)

/* What is no call is answered within this. */
#define QUIET_TIME	(30 * USECS_PER_SEC)

/* To have a session ended. */
#define CONTROL_TIME	(10 * USECS_PER_SEC)

/* While connecting, and while there is nothing to answer, a server has little to
 * say: bytes. */
#define MAX_TALK	(1024 * 1024)

/* So often is the socket read before others get their turn. */
#define MAX_READS	32

/* A name that was looked up is good for so long. */
#define ADDRESS_TIME	(60 * USECS_PER_SEC)
#define NADDRESSES	32

#define MAX_STATEMENTS	32		/* prepared in a session, ... */
#define MAX_PREPARATIONS	8	/* ... each at most so often */

typedef enum Step
{
	STEP_RESOLVE,				/* OPENING: looks up host names, ... */
	STEP_CONNECT,				/* ... connects, ... */
	STEP_SETUP,					/* ... asks who is there */
	STEP_READY,
	STEP_ENDING,
	STEP_BROKEN
} Step;

typedef enum BreakReason
{
	BREAK_LOST,
	BREAK_GOODBYE,				/* the server said so, as the last thing */
	BREAK_TIME_OVER,
	BREAK_TOO_LARGE,
	BREAK_NONSENSE
} BreakReason;

/* One of the hosts of the options, which may be lists. */
typedef struct Host
{
	const char *name;			/* "" = none */
	const char *address;		/* "" = none; several when they were looked up,
								 * until expand_hosts() */
	const char *port;			/* NULL = the default */
	bool		is_tried;		/* libpq has come to it, or there is none */
} Host;

typedef struct Call
{
	dlist_node	node;
	SagaRemoteCall request;
	int64		limit;			/* after which it is cancelled there; 0 = none */
	TimestampTz sent_at;
	PGresult   *result;			/* of the statement, if it had no error */
	PGresult   *error;			/* the first error of all of it */
	SagaRemoteAnswer answer;	/* when it is in "answers" */
} Call;

typedef enum ItemKind
{
	ITEM_CALL,					/* with the statement of a call */
	ITEM_COMMIT,				/* of the call before */
	ITEM_PING,					/* a Sync alone: how long is the way? */
	ITEM_SETUP,					/* settings, then who is there */
	ITEM_QUIET					/* must work, and says nothing */
} ItemKind;

typedef struct Item
{
	dlist_node	node;
	ItemKind	kind;
	Call	   *call;			/* CALL, COMMIT */
	bool		is_last;		/* its Sync completes the call */
	bool		leaves_transaction; /* its Sync is within one */
	int			nstatements;
	int			main;			/* which of them is the call's, from 0 */
	int			nresults;
	int			prepares;		/* number of the statement that its first one
								 * prepares; 0 = none */
	int			uses;			/* likewise, that the main one is */
	TimestampTz sent_at;
	int64		limit;			/* 0 = none */
} Item;

/* A statement prepared over there. */
typedef enum StatementState
{
	STATEMENT_UNPREPARED,
	STATEMENT_PREPARING,		/* nobody knows yet whether that works */
	STATEMENT_PREPARED
} StatementState;

typedef struct Statement
{
	const char *sql;
	StatementState state;
	int			number;			/* names it; a new one each time it is prepared */
	int			npreparations;
} Statement;

struct SagaConnection
{
	MemoryContext context;		/* all of this */
	MemoryContextCallback callback;
	SagaTarget	target;			/* copied */
	Step		step;
	SagaError	error;			/* BROKEN, ENDING */
	bool		passing;
	int			nfds;			/* AcquireExternalFD() */

	/* OPENING */
	TimestampTz opened_at;
	TimestampTz deadline;
	int			nhosts;			/* 0: as the options are */
	Host	   *hosts;
	int			resolving;		/* which of them */
	SagaResolve *resolve;
	const char *resolve_error;
	int64		host_time;		/* option connect_timeout; 0 = none */
	TimestampTz host_deadline;	/* of the host that libpq is at */
	char	   *at_host;		/* what that is */

	/* from STEP_CONNECT on */
	PGconn	   *conn;
	PostgresPollingStatusType polling;
	SagaChannel *channel;		/* from STEP_SETUP on, beneath it */
	bool		unsent;			/* the socket would not take all that there is */
	bool		is_dirty;		/* nor was all of it tried */
	Size		nbytes;			/* read since the last answer */
	char	   *last_words;		/* of a server that ended the session while it
								 * was idle */

	/* from STEP_SETUP on */
	bool		pooled;
	int64		their_limit;	/* the role's own, of a statement or transaction,
								 * microseconds; 0 = none */
	int64		role_timeout;	/* statement_timeout of a fresh session, ... */
	int64		session_timeout;	/* ... and of this one, when it comes to what is
									 * sent next */
	char	   *started;		/* when the session began, to know it by */
	SagaRemoteInfo info;
	int			nnumbers;		/* of statements, given so far */
	int			nstatements;
	Statement	statements[MAX_STATEMENTS];

	dlist_head	items;			/* Item: sent, in order */
	dlist_head	waiting;		/* Call: not yet handed to libpq */
	dlist_head	sent;			/* Call */
	dlist_head	answers;		/* Call: to be taken */
	Call	   *taken;			/* its answer is the caller's for now */
	int			ncalls;			/* in waiting and sent */
	TimestampTz answered_at;	/* when the last item was */
	int			lost_pid;		/* ENDING: the session to end, ... */
	SagaConnection *control;	/* ... by this connection */
	TimestampTz control_until;
};

static const char setup_settings[] =
"SELECT pg_catalog.set_config(s.name, s.value, false)"
" FROM (VALUES ('default_transaction_isolation', 'read committed'),"
" ('default_transaction_read_only', 'off'),"
" ('default_transaction_deferrable', 'off'),"
" ('idle_in_transaction_session_timeout', '0'),"
" ('idle_session_timeout', '0'),"
" ('transaction_timeout', '0'),"
" ('DateStyle', 'ISO')) AS s (name, value)"
" WHERE pg_catalog.current_setting(s.name, true) IS NOT NULL"
" AND pg_catalog.pg_backend_pid() OPERATOR(pg_catalog.=) $1::pg_catalog.int4";

enum
{
	LOOK_PID, LOOK_RECOVERY, LOOK_TIMEOUT, LOOK_TRANSACTION_TIMEOUT,
	LOOK_STARTED, LOOK_VERSION, LOOK_COLUMNS
};

/* Before the settings: it asks what the role's own are. */
static const char setup_look[] =
"SELECT pg_catalog.pg_backend_pid(), pg_catalog.pg_is_in_recovery(),"
" pg_catalog.current_setting('statement_timeout'),"
" pg_catalog.current_setting('transaction_timeout', true),"
" (SELECT pg_catalog.date_part('epoch', a.backend_start)"
"  FROM pg_catalog.pg_stat_get_activity(pg_catalog.pg_backend_pid()) AS a),"
" (SELECT e.extversion"
"  FROM pg_catalog.pg_extension AS e, pg_catalog.pg_depend AS d,"
"  pg_catalog.pg_proc AS p, pg_catalog.pg_namespace AS n"
"  WHERE e.extname OPERATOR(pg_catalog.=) 'saga'"
"  AND n.nspname OPERATOR(pg_catalog.=) 'saga'"
"  AND p.proname OPERATOR(pg_catalog.=) 'participate'"
"  AND p.pronamespace OPERATOR(pg_catalog.=) n.oid"
"  AND d.objid OPERATOR(pg_catalog.=) p.oid"
"  AND d.classid OPERATOR(pg_catalog.=)"
"   'pg_catalog.pg_proc'::pg_catalog.regclass::pg_catalog.oid"
"  AND d.refclassid OPERATOR(pg_catalog.=)"
"   'pg_catalog.pg_extension'::pg_catalog.regclass::pg_catalog.oid"
"  AND d.refobjid OPERATOR(pg_catalog.=) e.oid"
"  AND d.deptype OPERATOR(pg_catalog.=) 'e'"
"  AND pg_catalog.has_schema_privilege(n.oid, 'USAGE')"
"  AND pg_catalog.has_function_privilege(p.oid, 'EXECUTE') LIMIT 1)";

/* The process id may be another session's by now. */
static const char terminate_sql[] =
"SELECT pg_catalog.pg_terminate_backend($1::pg_catalog.int4)"
" FROM pg_catalog.pg_stat_get_activity($1::pg_catalog.int4) AS a"
" WHERE pg_catalog.date_part('epoch', a.backend_start)"
" OPERATOR(pg_catalog.=) $2::pg_catalog.float8";

static void forget_addresses(SagaConnection *connection);
static void hand_over_waiting(SagaConnection *connection);


/* ---- text ------------------------------------------------------------------ */

static char *
keep_text(SagaConnection *connection, const char *text)
{
	return MemoryContextStrdup(connection->context, text);
}

/* What the other side, or libpq, says, without what is no text here and
 * without white space at its end.  NULL stays NULL. */
static char *
keep_foreign_text(SagaConnection *connection, const char *text)
{
	char	   *copy;
	int			length;

	if (text == NULL)
		return NULL;
	copy = keep_text(connection, text);
	length = strlen(copy);
	while (length > 0 && isspace((unsigned char) copy[length - 1]))
		copy[--length] = '\0';
	if (!pg_verify_mbstr(GetDatabaseEncoding(), copy, length, true))
	{
		for (char *p = copy; *p != '\0'; p++)
		{
			if (IS_HIGHBIT_SET(*p))
				*p = '?';
		}
	}
	return copy;
}

static const char *
find_option(const SagaTarget *target, const char *keyword)
{
	for (int i = 0; i < target->noptions; i++)
	{
		if (strcmp(target->keywords[i], keyword) == 0)
			return target->values[i];
	}
	return NULL;
}


/* ---- errors ----------------------------------------------------------------- */

static void
set_error(SagaConnection *connection, SagaError *error, const char *sqlstate,
		  const char *message, const char *detail)
{
	memset(error, 0, sizeof(*error));
	strlcpy(error->sqlstate, sqlstate, sizeof(error->sqlstate));
	error->message = message;
	error->detail = detail == NULL || detail[0] == '\0' ? NULL :
		keep_text(connection, detail);
}

static char *
format(SagaConnection *connection, const char *message)
{
	MemoryContext caller = MemoryContextSwitchTo(connection->context);
	char	   *result = psprintf(message, connection->target.server_name);

	MemoryContextSwitchTo(caller);
	return result;
}

/* May it be different in a while, without anybody's doing? */
static bool
is_passing(const char *sqlstate)
{
	static const char *const classes[] = {
		"08", "40", "53", "55", "57", "58", "XX"
	};

	for (int i = 0; i < (int) lengthof(classes); i++)
	{
		if (strncmp(sqlstate, classes[i], 2) == 0)
			return true;
	}
	return strcmp(sqlstate, "25006") == 0;
}

static bool
is_fatal(const PGresult *result)
{
	const char *severity = PQresultErrorField(result,
											  PG_DIAG_SEVERITY_NONLOCALIZED);

	return severity != NULL &&
		(strcmp(severity, "FATAL") == 0 || strcmp(severity, "PANIC") == 0);
}

static const char *
result_sqlstate(const PGresult *result)
{
	return PQresultErrorField(result, PG_DIAG_SQLSTATE);
}

/* Whole, as the other side has sent it. */
static void
take_error(SagaConnection *connection, const PGresult *result, SagaError *error)
{
	const char *sqlstate = result_sqlstate(result);
	char	   *message;

	memset(error, 0, sizeof(*error));
	if (sqlstate == NULL || strlen(sqlstate) != 5)
		sqlstate = "08P01";
	for (int i = 0; i < 5; i++)
	{
		bool		good = (sqlstate[i] >= '0' && sqlstate[i] <= '9') ||
			(sqlstate[i] >= 'A' && sqlstate[i] <= 'Z');

		error->sqlstate[i] = good ? sqlstate[i] : 'X';
	}
	message = keep_foreign_text(connection,
								PQresultErrorField(result,
												   PG_DIAG_MESSAGE_PRIMARY));
	if (message == NULL)
		message = keep_foreign_text(connection, PQresultErrorMessage(result));
	error->message = message;
	error->detail = keep_foreign_text(connection,
									  PQresultErrorField(result,
														 PG_DIAG_MESSAGE_DETAIL));
	error->hint = keep_foreign_text(connection,
									PQresultErrorField(result,
													   PG_DIAG_MESSAGE_HINT));
	error->context = keep_foreign_text(connection,
									   PQresultErrorField(result,
														  PG_DIAG_CONTEXT));
}

/* "LOCATION:  function, file.c:1", in any language. */
static bool
is_location(const char *line, int length)
{
	int			digits = 0;

	while (digits < length && isdigit((unsigned char) line[length - 1 - digits]))
		digits++;
	length -= digits;
	return digits > 0 && length > 3 && strncmp(line + length - 3, ".c:", 3) == 0;
}

static void
drop_locations(char *words)
{
	char	   *to = words;
	const char *from = words;

	while (*from != '\0')
	{
		int			length = strcspn(from, "\n");
		const char *next = from + length + (from[length] == '\n');

		if (!is_location(from, length))
		{
			memmove(to, from, next - from);
			to += next - from;
		}
		from = next;
	}
	if (to > words && to[-1] == '\n')
		to--;
	*to = '\0';
}

/*
 * What libpq says of a connection that could not be made, with the SQLSTATEs
 * taken out: the only place where it tells them is its text, after the severity,
 * when it is to be verbose.  "sqlstate" gets the last one, or nothing; *passing
 * is true if any was, or there is none.
 */
static char *
connection_words(SagaConnection *connection, char *sqlstate, bool *passing)
{
	char	   *words = keep_foreign_text(connection,
										  PQerrorMessage(connection->conn));
	char	   *to = words;

	sqlstate[0] = '\0';
	*passing = false;
	for (const char *from = words; *from != '\0'; from++)
	{
		*to++ = *from;
		if (strncmp(from, ":  ", 3) != 0 || strlen(from) < 10 ||
			strncmp(from + 8, ": ", 2) != 0 ||
			strspn(from + 3, "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ") != 5)
			continue;
		memcpy(sqlstate, from + 3, 5);
		sqlstate[5] = '\0';
		*passing = *passing || is_passing(sqlstate);
		*to++ = ' ';
		*to++ = ' ';
		from += 9;
	}
	*to = '\0';
	if (sqlstate[0] == '\0')
		*passing = true;

	drop_locations(words);
	return words;
}


/* ---- what is given back ------------------------------------------------------ */

static void
free_call_results(Call *call)
{
	PQclear(call->result);
	PQclear(call->error);
	call->result = NULL;
	call->error = NULL;
}

static void
free_list_results(dlist_head *list)
{
	dlist_iter	iter;

	dlist_foreach(iter, list)
		free_call_results(dlist_container(Call, node, iter.cur));
}

static void
free_text(const char *text)
{
	if (text != NULL)
		pfree(unconstify(char *, text));
}

static void
forget_call(Call *call)
{
	free_call_results(call);
	if (call->request.params != NULL)
		pfree(unconstify(void *, (const void *) call->request.params));
	free_text(call->answer.error.message);
	free_text(call->answer.error.detail);
	free_text(call->answer.error.hint);
	free_text(call->answer.error.context);
	free_text(call->answer.constraint);
	pfree(call);
}

static void
forget_taken(SagaConnection *connection)
{
	Call	   *call = connection->taken;

	connection->taken = NULL;
	if (call != NULL)
		forget_call(call);
}

static void
disconnect(SagaConnection *connection)
{
	if (connection->conn != NULL)
		PQfinish(connection->conn);
	connection->conn = NULL;
	if (connection->channel != NULL)
		saga_channel_close(connection->channel);
	connection->channel = NULL;
}

static bool
acquire_fds(SagaConnection *connection, int n)
{
	for (; n > 0; n--)
	{
		if (!AcquireExternalFD())
			return false;
		connection->nfds++;
	}
	return true;
}

static void
release_fds(SagaConnection *connection)
{
	for (; connection->nfds > 0; connection->nfds--)
		ReleaseExternalFD();
}

/* The context goes: by saga_connection_close(), or after an error. */
static void
release(void *arg)
{
	SagaConnection *connection = (SagaConnection *) arg;

	free_list_results(&connection->waiting);
	free_list_results(&connection->sent);
	free_list_results(&connection->answers);
	if (connection->taken != NULL)
		free_call_results(connection->taken);
	if (connection->resolve != NULL)
		saga_resolve_end(connection->resolve);
	disconnect(connection);
	release_fds(connection);
}


/* ---- answers ------------------------------------------------------------------ */

static void
put_answer(SagaConnection *connection, Call *call, SagaRemoteAnswerKind kind)
{
	call->answer.tag = call->request.tag;
	call->answer.kind = kind;
	call->answer.sent_at = call->sent_at;
	dlist_push_tail(&connection->answers, &call->node);
	connection->ncalls--;
}

/* A call that has no answer. */
static void
put_loss(SagaConnection *connection, Call *call, SagaRemoteAnswerKind kind,
		 BreakReason reason, const char *words, TimestampTz now)
{
	const char *sqlstate = kind == SAGA_REMOTE_UNSENT ? "08006" : "08007";
	const char *message = "lost the connection to server \"%s\"";

	if (kind == SAGA_REMOTE_UNKNOWN)
	{
		if (reason == BREAK_TIME_OVER)
			message = "server \"%s\" did not answer in time";
		else if (reason == BREAK_TOO_LARGE)
			message = "answer of server \"%s\" is too large";
		else if (reason == BREAK_NONSENSE)
			message = "could not understand the answer of server \"%s\"";
		else
			message = "lost the connection to server \"%s\" during the call";
		if (reason == BREAK_TOO_LARGE)
			sqlstate = "54000";
		call->answer.timed_out = reason == BREAK_TIME_OVER;
		call->answer.too_large = reason == BREAK_TOO_LARGE;
	}
	set_error(connection, &call->answer.error, sqlstate,
			  format(connection, message), words);
	call->answer.answered_at = now;
	dlist_delete(&call->node);
	put_answer(connection, call, kind);
}

/* The call that the other side is at; NULL: at none. */
static Item *
head_item(SagaConnection *connection)
{
	if (dlist_is_empty(&connection->items))
		return NULL;
	return dlist_container(Item, node, dlist_head_node(&connection->items));
}

/*
 * The server's last words come behind all results that it had: has the first item
 * perhaps begun what it is for?  Without them nobody can tell, since results wait
 * over there for the Sync.
 */
static bool
may_have_begun(const Item *item)
{
	return item->kind == ITEM_COMMIT || item->nresults >= item->main;
}

/* Every call gets its answer; that of the first one has the reason. */
static void
lose_calls(SagaConnection *connection, BreakReason reason, const char *words)
{
	TimestampTz now = GetCurrentTimestamp();
	bool		goodbye = reason == BREAK_GOODBYE && !connection->pooled;
	Item	   *item = head_item(connection);
	Call	   *head = item == NULL ? NULL : item->call;
	dlist_mutable_iter iter;

	if (goodbye && head != NULL && !may_have_begun(item))
		head = NULL;
	else if (reason == BREAK_TIME_OVER && head == NULL &&
			 !dlist_is_empty(&connection->sent))
		head = dlist_container(Call, node,
							   dlist_head_node(&connection->sent));
	dlist_foreach_modify(iter, &connection->sent)
	{
		Call	   *call = dlist_container(Call, node, iter.cur);

		if (call == head)
			put_loss(connection, call, SAGA_REMOTE_UNKNOWN, reason, words, now);
		else
			put_loss(connection, call,
					 goodbye ? SAGA_REMOTE_UNSENT : SAGA_REMOTE_UNKNOWN,
					 BREAK_LOST, words, now);
	}
	dlist_foreach_modify(iter, &connection->waiting)
		put_loss(connection, dlist_container(Call, node, iter.cur),
				 SAGA_REMOTE_UNSENT, BREAK_LOST, words, now);
}

static void
forget_items(SagaConnection *connection)
{
	while (!dlist_is_empty(&connection->items))
		pfree(dlist_container(Item, node,
							  dlist_pop_head_node(&connection->items)));
}

/* A host that hangs may run the call for ever. */
static void
begin_control(SagaConnection *connection)
{
	SagaTarget	target = connection->target;
	const char **keywords;
	const char **values;
	int			n = 0;

	/* To that host, if there are several. */
	keywords = MemoryContextAlloc(connection->context,
								  (target.noptions + 4) * sizeof(char *));
	values = MemoryContextAlloc(connection->context,
								(target.noptions + 4) * sizeof(char *));
	for (int i = 0; i < target.noptions; i++)
	{
		if (strcmp(target.keywords[i], "host") == 0 ||
			strcmp(target.keywords[i], "hostaddr") == 0 ||
			strcmp(target.keywords[i], "port") == 0 ||
			strcmp(target.keywords[i], "target_session_attrs") == 0)
			continue;
		keywords[n] = target.keywords[i];
		values[n++] = target.values[i];
	}
	keywords[n] = "host";
	values[n++] = keep_text(connection, PQhost(connection->conn));
	keywords[n] = "hostaddr";
	values[n] = PQhostaddr(connection->conn);
	values[n] = keep_text(connection, values[n] == NULL ? "" : values[n]);
	n++;
	keywords[n] = "port";
	values[n++] = keep_text(connection, PQport(connection->conn));
	keywords[n] = values[n] = NULL;
	target.noptions = n;
	target.keywords = keywords;
	target.values = values;

	connection->lost_pid = connection->info.pid;
	connection->control_until =
		TimestampTzPlusMilliseconds(GetCurrentTimestamp(), CONTROL_TIME / 1000);
	connection->control = saga_connection_open(&target, CONTROL_TIME,
											   connection->context);
}

/* The connection is over; it was READY. */
static void
break_off(SagaConnection *connection, BreakReason reason, const char *words)
{
	const char *sqlstate = "08006";
	const char *message = "lost the connection to server \"%s\"";
	Item	   *item = head_item(connection);
	bool		hangs = reason == BREAK_TIME_OVER && item != NULL &&
		item->call != NULL && !connection->pooled &&
		connection->started != NULL;
	char	   *copy = keep_foreign_text(connection, words);

	if (reason == BREAK_NONSENSE)
		sqlstate = "08P01";
	if (reason == BREAK_TIME_OVER)
		message = "server \"%s\" did not answer in time";
	set_error(connection, &connection->error, sqlstate,
			  format(connection, message), copy);
	connection->passing = true;
	lose_calls(connection, reason, copy);
	forget_items(connection);
	if (hangs)
		begin_control(connection);
	disconnect(connection);
	release_fds(connection);
	connection->step = hangs ? STEP_ENDING : STEP_BROKEN;
}

/* It could not be opened. */
static void
fail_opening(SagaConnection *connection, const char *sqlstate,
			 const char *words, bool passing)
{
	set_error(connection, &connection->error, sqlstate,
			  format(connection, "could not connect to server \"%s\""), words);
	connection->passing = passing;
	forget_addresses(connection);
	forget_items(connection);
	disconnect(connection);
	release_fds(connection);
	connection->step = STEP_BROKEN;
}

/* What libpq says is why. */
static void
break_by_libpq(SagaConnection *connection)
{
	char	   *words = connection->last_words;

	/* What it says next is what it thinks of that. */
	if (words == NULL)
	{
		words = keep_foreign_text(connection, PQerrorMessage(connection->conn));
		words[strcspn(words, "\n")] = '\0';
	}
	if (connection->step == STEP_READY)
		break_off(connection, BREAK_LOST, words);
	else
		fail_opening(connection, "08006", words, true);
}

static void
break_by_nonsense(SagaConnection *connection, const char *words)
{
	if (connection->step == STEP_READY)
		break_off(connection, BREAK_NONSENSE, words);
	else
		fail_opening(connection, "08P01", words, true);
}


/* ---- bytes ----------------------------------------------------------------------- */

/* How much is before libpq. */
static int
count_readable(SagaConnection *connection)
{
	int			n = 0;

	return ioctl(PQsocket(connection->conn), FIONREAD, &n) < 0 ? 0 : n;
}

/* What can be read now is counted as read.  False: it is too much. */
static bool
count_bytes(SagaConnection *connection, Size max)
{
	connection->nbytes += count_readable(connection);
	return connection->nbytes <= max;
}

/* Messages that nobody asked for: the last words of a session are kept. */
static void
receive_notice(void *arg, const PGresult *result)
{
	SagaConnection *connection = (SagaConnection *) arg;

	if (connection->last_words == NULL && is_fatal(result))
		connection->last_words =
			keep_foreign_text(connection, PQresultErrorMessage(result));
}

static void
drop_notifications(SagaConnection *connection)
{
	PGnotify   *notification;

	while ((notification = PQnotifies(connection->conn)) != NULL)
		PQfreemem(notification);
}


/* ---- hosts ----------------------------------------------------------------------- */

typedef struct Address
{
	char		host[256];
	char		addresses[SAGA_ADDRESS_LENGTH];
	TimestampTz until;
} Address;

/* Per process. */
static Address address_cache[NADDRESSES];

static Address *
find_address(const char *host, TimestampTz now)
{
	for (int i = 0; i < NADDRESSES; i++)
	{
		if (address_cache[i].until > now &&
			strcmp(address_cache[i].host, host) == 0)
			return &address_cache[i];
	}
	return NULL;
}

static void
remember_address(const char *host, const char *addresses, TimestampTz now)
{
	Address    *oldest = &address_cache[0];

	if (strlen(host) >= sizeof(oldest->host))
		return;
	for (int i = 1; i < NADDRESSES; i++)
	{
		if (address_cache[i].until < oldest->until)
			oldest = &address_cache[i];
	}
	strlcpy(oldest->host, host, sizeof(oldest->host));
	strlcpy(oldest->addresses, addresses, sizeof(oldest->addresses));
	oldest->until = now + ADDRESS_TIME;
}

/* A host that cannot be connected to may have got another one. */
static void
forget_addresses(SagaConnection *connection)
{
	for (int i = 0; i < connection->nhosts; i++)
	{
		for (int j = 0; j < NADDRESSES; j++)
		{
			if (strcmp(address_cache[j].host, connection->hosts[i].name) == 0)
				address_cache[j].until = 0;
		}
	}
}

static int
count_elements(const char *list)
{
	int			n = 1;

	if (list == NULL)
		return 0;
	for (const char *p = list; *p != '\0'; p++)
		n += *p == ',';
	return n;
}

/* The n-th element of a list with commas, from 0. */
static char *
list_element(SagaConnection *connection, const char *list, int n)
{
	int			length;

	while (n-- > 0)
		list = strchr(list, ',') + 1;
	length = strcspn(list, ",");
	return MemoryContextStrdup(connection->context, pnstrdup(list, length));
}

/*
 * The hosts of the options.  None are made if the lists do not fit together:
 * libpq says what is wrong, before it looks up any.
 */
static void
find_hosts(SagaConnection *connection)
{
	const char *names = find_option(&connection->target, "host");
	const char *addresses = find_option(&connection->target, "hostaddr");
	const char *ports = find_option(&connection->target, "port");
	int			nnames = count_elements(names);
	int			naddresses = count_elements(addresses);
	int			nports = count_elements(ports);
	int			n = Max(nnames, naddresses);

	if (n == 0 || (nnames > 0 && naddresses > 0 && nnames != naddresses) ||
		(nports > 1 && nports != n))
		return;
	connection->hosts = MemoryContextAllocZero(connection->context,
											   n * sizeof(Host));
	for (int i = 0; i < n; i++)
	{
		Host	   *host = &connection->hosts[i];

		host->name = nnames == 0 ? "" : list_element(connection, names, i);
		host->address = naddresses == 0 ? "" :
			list_element(connection, addresses, i);
		host->port = nports == 0 ? NULL :
			list_element(connection, ports, nports == 1 ? 0 : i);
	}
	connection->nhosts = n;
}

static void
append_element(StringInfo list, bool first, const char *element)
{
	if (!first)
		appendStringInfoChar(list, ',');
	if (element != NULL)
		appendStringInfoString(list, element);
}

/* A host with several addresses becomes as many. */
static void
expand_hosts(SagaConnection *connection)
{
	Host	   *old = connection->hosts;
	int			n = 0;

	for (int i = 0; i < connection->nhosts; i++)
		n += count_elements(old[i].address);
	if (n == connection->nhosts)
		return;
	connection->hosts = MemoryContextAlloc(connection->context,
										   n * sizeof(Host));
	n = 0;
	for (int i = 0; i < connection->nhosts; i++)
	{
		for (int j = 0; j < count_elements(old[i].address); j++)
		{
			connection->hosts[n] = old[i];
			connection->hosts[n++].address =
				list_element(connection, old[i].address, j);
		}
	}
	connection->nhosts = n;
}

/* The lists again, of the hosts that have not been tried. */
static void
write_hosts(SagaConnection *connection, const char **keywords,
			const char **values, int *n)
{
	StringInfoData names,
				addresses,
				ports;
	bool		first = true;

	initStringInfo(&names);
	initStringInfo(&addresses);
	initStringInfo(&ports);
	for (int i = 0; i < connection->nhosts; i++)
	{
		const Host *host = &connection->hosts[i];

		if (host->is_tried)
			continue;
		append_element(&names, first, host->name);
		append_element(&addresses, first, host->address);
		append_element(&ports, first, host->port);
		first = false;
	}
	keywords[*n] = "host";
	values[(*n)++] = names.data;
	keywords[*n] = "hostaddr";
	values[(*n)++] = addresses.data;
	keywords[*n] = "port";
	values[(*n)++] = ports.data;
}


/* ---- OPENING: addresses, libpq ----------------------------------------------------- */

/* How many hosts libpq has not come to. */
static int
count_untried(const SagaConnection *connection)
{
	int			n = 0;

	for (int i = 0; i < connection->nhosts; i++)
		n += !connection->hosts[i].is_tried;
	return n;
}

static const char *
or_empty(const char *text)
{
	return text == NULL ? "" : text;
}

static void
note_tried(SagaConnection *connection)
{
	const char *name = or_empty(PQhost(connection->conn));
	const char *address = or_empty(PQhostaddr(connection->conn));
	const char *port = or_empty(PQport(connection->conn));

	for (int i = 0; i < connection->nhosts; i++)
	{
		Host	   *host = &connection->hosts[i];

		if ((host->name[0] == '\0' || strcmp(host->name, name) == 0) &&
			(host->address[0] == '\0' || strcmp(host->address, address) == 0) &&
			(host->port == NULL || strcmp(host->port, port) == 0))
			host->is_tried = true;
	}
}

/*
 * libpq goes on to the next host when one refuses, but not when one says nothing:
 * that is for whoever watches the time.
 */
static void
note_host(SagaConnection *connection, TimestampTz now)
{
	PGconn	   *conn = connection->conn;
	int64		time = connection->host_time;
	char	   *at;

	at = psprintf("%s,%s,%s", or_empty(PQhost(conn)),
				  or_empty(PQhostaddr(conn)), or_empty(PQport(conn)));
	if (connection->at_host != NULL && strcmp(connection->at_host, at) == 0)
	{
		pfree(at);
		return;
	}
	if (connection->at_host != NULL)
		pfree(connection->at_host);
	connection->at_host = at;
	note_tried(connection);
	if (time == 0)
		time = (connection->deadline - now) / (count_untried(connection) + 1);
	connection->host_deadline = now + Max(time, 0);
}

/* libpq writes the address of the host that it is at in another way: this has to
 * end nevertheless. */
static void
try_no_more(SagaConnection *connection)
{
	for (int i = 0; i < connection->nhosts; i++)
		connection->hosts[i].is_tried = true;
}

/* libpq fails; why? */
static void
fail_connecting(SagaConnection *connection, bool at_once)
{
	PGconn	   *conn = connection->conn;
	char		sqlstate[6];
	bool		passing;
	char	   *words = connection_words(connection, sqlstate, &passing);
	const char *address = PQhostaddr(conn);

	/* The password that it wants is one that we do not have. */
	if (sqlstate[0] == '\0' && PQconnectionNeedsPassword(conn))
	{
		strlcpy(sqlstate, "28P01", sizeof(sqlstate));
		passing = false;
	}

	/* It has not even come to a host: the options are at fault. */
	if (at_once && sqlstate[0] == '\0' &&
		(address == NULL || address[0] == '\0') &&
		strstr(words, ".s.PGSQL.") == NULL)
		passing = false;
	fail_opening(connection, sqlstate[0] == '\0' ? "08001" : sqlstate, words,
				 passing);
}

static void
begin_connecting(SagaConnection *connection, TimestampTz now)
{
	SagaTarget *target = &connection->target;
	const char **keywords = palloc((target->noptions + 5) * sizeof(char *));
	const char **values = palloc((target->noptions + 5) * sizeof(char *));
	int			nuntried = count_untried(connection);
	int			n = 0;

	for (int i = 0; i < target->noptions; i++)
	{
		if (connection->nhosts > 0 &&
			(strcmp(target->keywords[i], "host") == 0 ||
			 strcmp(target->keywords[i], "hostaddr") == 0 ||
			 strcmp(target->keywords[i], "port") == 0))
			continue;
		keywords[n] = target->keywords[i];
		values[n++] = target->values[i];
	}
	if (connection->nhosts > 0)
		write_hosts(connection, keywords, values, &n);

	/* A server that asks for Kerberos would have libpq wait for others. */
	if (PQlibVersion() >= 160000 && find_option(target, "require_auth") == NULL)
	{
		keywords[n] = "require_auth";
		values[n++] = "!gss,!sspi";
	}
	keywords[n] = values[n] = NULL;

	connection->step = STEP_CONNECT;
	connection->nbytes = 0;
	connection->conn = PQconnectStartParams(keywords, values, 0);
	pfree(keywords);
	pfree(values);
	if (connection->conn == NULL)
	{
		fail_opening(connection, "53200", "out of memory", true);
		return;
	}
	if (PQstatus(connection->conn) == CONNECTION_BAD)
	{
		fail_connecting(connection, true);
		return;
	}
	/* libpq tells the SQLSTATE only so. */
	PQsetErrorVerbosity(connection->conn, PQERRORS_VERBOSE);
	PQsetNoticeReceiver(connection->conn, receive_notice, connection);
	connection->polling = PGRES_POLLING_WRITING;
	note_host(connection, now);
	if (count_untried(connection) == nuntried)
		try_no_more(connection);
}

static void
take_addresses(SagaConnection *connection, TimestampTz now)
{
	char		addresses[SAGA_ADDRESS_LENGTH];
	Host	   *host = &connection->hosts[connection->resolving];
	const char *error;

	if (!saga_resolve_done(connection->resolve, addresses, &error))
		return;
	if (addresses[0] != '\0')
	{
		host->address = keep_text(connection, addresses);
		remember_address(host->name, addresses, now);
	}
	else
	{
		host->is_tried = true;
		connection->resolve_error =
			keep_foreign_text(connection,
							  psprintf("could not translate host name \"%s\" to address: %s",
									   host->name, error));
	}
	saga_resolve_end(connection->resolve);
	connection->resolve = NULL;
	connection->resolving++;
}

/* Look up the next name that has to be; if there is none, connect. */
static void
resolve_next(SagaConnection *connection, TimestampTz now)
{
	for (; connection->resolving < connection->nhosts; connection->resolving++)
	{
		Host	   *host = &connection->hosts[connection->resolving];
		Address    *known;

		if (host->address[0] != '\0' || !saga_resolve_is_needed(host->name))
			continue;
		known = find_address(host->name, now);
		if (known != NULL)
		{
			host->address = keep_text(connection, known->addresses);
			continue;
		}
		connection->resolve = saga_resolve_begin(host->name);
		if (connection->resolve != NULL)
			return;
		fail_opening(connection, "53000",
					 "Could not begin to look up a host name.", true);
		return;
	}
	expand_hosts(connection);
	if (connection->nhosts > 0 && count_untried(connection) == 0)
		fail_opening(connection, "08001", connection->resolve_error, true);
	else
		begin_connecting(connection, now);
}

static void
work_resolve(SagaConnection *connection, TimestampTz now)
{
	if (connection->resolve != NULL)
		take_addresses(connection, now);
	if (connection->resolve == NULL)
		resolve_next(connection, now);
}


/* ---- sending ------------------------------------------------------------------------ */

static Item *
add_item(SagaConnection *connection, ItemKind kind, Call *call)
{
	Item	   *item = MemoryContextAllocZero(connection->context, sizeof(Item));

	item->kind = kind;
	item->call = call;
	item->limit = call == NULL ? QUIET_TIME : call->limit;
	item->sent_at = GetCurrentTimestamp();
	dlist_push_tail(&connection->items, &item->node);
	return item;
}

static bool
send_statement(SagaConnection *connection, Item *item, const char *sql,
			   int nparams, const char *const *params)
{
	item->nstatements++;
	return PQsendQueryParams(connection->conn, sql, nparams, NULL, params,
							 NULL, NULL, 0) != 0;
}

static bool
send_sync(SagaConnection *connection)
{
#ifdef LIBPQ_HAS_SEND_PIPELINE_SYNC
	return PQsendPipelineSync(connection->conn) != 0;
#else
	return PQpipelineSync(connection->conn) != 0;
#endif
}

/* What must work, around a call with this limit: it has no more time than that. */
static Item *
add_quiet(SagaConnection *connection, int64 limit)
{
	Item	   *item = add_item(connection, ITEM_QUIET, NULL);

	if (limit != 0)
		item->limit = Min(limit, QUIET_TIME);
	return item;
}

static bool
send_quiet(SagaConnection *connection, const char *sql, int64 limit)
{
	Item	   *item = add_quiet(connection, limit);

	return send_statement(connection, item, sql, 0, NULL) &&
		send_sync(connection);
}

static bool
send_settings(SagaConnection *connection, Item *item)
{
	char		pid[16];
	const char *params[1] = {pid};

	snprintf(pid, sizeof(pid), "%d", PQbackendPID(connection->conn));
	return send_statement(connection, item, setup_settings, 1, params);
}

/* Milliseconds as PostgreSQL counts them, for a limit of microseconds. */
static int
limit_milliseconds(int64 limit)
{
	return (int) Min((limit + 999) / 1000, INT_MAX);
}

/* The session's own, for what has no transaction around it. */
static bool
send_session_timeout(SagaConnection *connection, int64 limit)
{
	char		sql[64];

	if (connection->session_timeout == limit)
		return true;
	connection->session_timeout = limit;
	snprintf(sql, sizeof(sql), "SET statement_timeout = %d",
			 limit_milliseconds(limit));
	return send_quiet(connection, sql, limit);
}

/* Leave the session to the next call as the role finds it. */
static bool
send_cleaning(SagaConnection *connection, int64 limit)
{
	Item	   *item;

	for (int i = 0; i < connection->nstatements; i++)
		connection->statements[i].state = STATEMENT_UNPREPARED;
	connection->session_timeout = connection->role_timeout;
	if (!send_quiet(connection, "DISCARD ALL", limit))
		return false;
	item = add_quiet(connection, limit);
	return send_settings(connection, item) && send_sync(connection);
}

/* NULL: not worth preparing. */
static Statement *
find_statement(SagaConnection *connection, const char *sql)
{
	Statement  *statement;

	for (int i = 0; i < connection->nstatements; i++)
	{
		statement = &connection->statements[i];
		if (statement->sql == sql || strcmp(statement->sql, sql) == 0)
			return statement->npreparations < MAX_PREPARATIONS ||
				statement->state == STATEMENT_PREPARED ? statement : NULL;
	}
	if (connection->nstatements == MAX_STATEMENTS)
		return NULL;
	statement = &connection->statements[connection->nstatements++];
	memset(statement, 0, sizeof(*statement));
	statement->sql = sql;
	return statement;
}

/*
 * Prepared over there with its first use.  As long as nobody knows whether that
 * has worked others are sent as they are.
 */
static bool
send_prepared(SagaConnection *connection, Item *item)
{
	const SagaRemoteCall *request = &item->call->request;
	Statement  *statement = find_statement(connection, request->sql);
	char		name[32];

	if (statement == NULL || statement->state == STATEMENT_PREPARING)
		return send_statement(connection, item, request->sql,
							  request->nparams, request->params);
	if (statement->state == STATEMENT_UNPREPARED)
	{
		statement->number = ++connection->nnumbers;
		statement->npreparations++;
		statement->state = STATEMENT_PREPARING;
		item->prepares = statement->number;
		item->main = item->nstatements++ + 1;
	}
	item->uses = statement->number;
	item->nstatements++;
	snprintf(name, sizeof(name), "saga_%d", statement->number);
	if (item->prepares != 0 &&
		!PQsendPrepare(connection->conn, name, request->sql, 0, NULL))
		return false;
	return PQsendQueryPrepared(connection->conn, name, request->nparams,
							   request->params, NULL, NULL, 0) != 0;
}

static bool
send_alone(SagaConnection *connection, Call *call)
{
	Item	   *item;
	bool		prepares = call->request.once && !connection->pooled;

	if (!connection->pooled &&
		!send_session_timeout(connection, call->limit))
		return false;
	item = add_item(connection, ITEM_CALL, call);
	item->is_last = true;
	if (!(prepares ? send_prepared(connection, item) :
		  send_statement(connection, item, call->request.sql,
						 call->request.nparams, call->request.params)))
		return false;
	return send_sync(connection);
}

static bool
send_transaction(SagaConnection *connection, Call *call)
{
	Item	   *item = add_item(connection, ITEM_CALL, call);
	char		sql[64];

	item->leaves_transaction = true;
	if (!send_statement(connection, item,
						"BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE",
						0, NULL))
		return false;
	if (call->limit != connection->session_timeout || connection->pooled)
	{
		snprintf(sql, sizeof(sql), "SET LOCAL statement_timeout = %d",
				 limit_milliseconds(call->limit));
		if (!send_statement(connection, item, sql, 0, NULL))
			return false;
	}
	item->main = item->nstatements;
	if (!send_statement(connection, item, call->request.sql,
						call->request.nparams, call->request.params) ||
		!send_sync(connection))
		return false;

	item = add_item(connection, ITEM_COMMIT, call);
	item->is_last = true;
	return send_statement(connection, item, "COMMIT", 0, NULL) &&
		send_sync(connection);
}

static void
forget_params(Call *call)
{
	if (call->request.params != NULL)
		pfree(unconstify(void *, (const void *) call->request.params));
	call->request.params = NULL;
}

/* To libpq, which may have to wait before it can send all of it. */
static void
hand_over(SagaConnection *connection, Call *call)
{
	bool		good;

	call->sent_at = GetCurrentTimestamp();
	if (call->request.bare || (call->request.once && !connection->pooled))
		good = send_alone(connection, call);
	else
		good = send_transaction(connection, call);
	if (good && !call->request.once)
		good = send_cleaning(connection, call->limit);
	if (!good)
	{
		/* The Sync that would have it committed was not sent. */
		if (call->request.bare)
		{
			dlist_delete(&call->node);
			dlist_push_tail(&connection->sent, &call->node);
		}
		break_by_libpq(connection);
		return;
	}
	dlist_delete(&call->node);
	dlist_push_tail(&connection->sent, &call->node);
	forget_params(call);
}

/* What libpq has, to the channel; and that to the wire. */
static void
flush(SagaConnection *connection, bool all)
{
	int			rest;

	do
	{
		/* An error shows when what was said before it is read. */
		rest = PQflush(connection->conn);
		connection->is_dirty = !all && rest <= 0;
		connection->unsent = !connection->is_dirty &&
			!saga_channel_send(connection->channel);
	} while (rest > 0 && !connection->unsent);
}

static void
hand_over_waiting(SagaConnection *connection)
{
	while (connection->step == STEP_READY && !connection->unsent &&
		   !dlist_is_empty(&connection->waiting))
	{
		hand_over(connection,
				  dlist_container(Call, node,
								  dlist_head_node(&connection->waiting)));
		if (connection->step == STEP_READY)
			flush(connection, false);
	}
}

static char **
copy_params(SagaConnection *connection, const SagaRemoteCall *call)
{
	Size		size = call->nparams * sizeof(char *);
	char	  **params;
	char	   *text;

	if (call->nparams == 0)
		return NULL;
	for (int i = 0; i < call->nparams; i++)
		size += call->params[i] == NULL ? 0 : strlen(call->params[i]) + 1;
	params = MemoryContextAllocHuge(connection->context, size);
	text = (char *) (params + call->nparams);
	for (int i = 0; i < call->nparams; i++)
	{
		params[i] = NULL;
		if (call->params[i] == NULL)
			continue;
		params[i] = text;
		text += strlen(strcpy(text, call->params[i])) + 1;
	}
	return params;
}

/* Theirs, if that is shorter. */
static int64
effective_limit(const SagaConnection *connection, int64 timeout)
{
	if (timeout == 0)
		return connection->their_limit;
	if (connection->their_limit == 0)
		return timeout;
	return Min(timeout, connection->their_limit);
}

void
saga_connection_send(SagaConnection *connection, const SagaRemoteCall *call)
{
	Call	   *copy;

	forget_taken(connection);
	copy = MemoryContextAllocZero(connection->context, sizeof(Call));
	copy->request = *call;
	copy->request.params = (const char *const *) copy_params(connection, call);
	copy->limit = effective_limit(connection, call->timeout);
	copy->sent_at = GetCurrentTimestamp();
	dlist_push_tail(&connection->waiting, &copy->node);
	connection->ncalls++;
	if (connection->step == STEP_READY)
		hand_over_waiting(connection);
	else
		put_loss(connection, copy, SAGA_REMOTE_UNSENT, BREAK_LOST,
				 connection->error.detail, copy->sent_at);
}


/* ---- OPENING: who is there? ---------------------------------------------------------- */

/* What SHOW says of a time: "30s", "0", "250ms"; microseconds, 0 if it is none. */
static int64
parse_setting(const char *text)
{
	static const struct
	{
		const char *unit;
		int64		factor;
	}			units[] = {
		{"us", 1}, {"ms", 1000}, {"s", USECS_PER_SEC}, {"min", USECS_PER_MINUTE},
		{"h", USECS_PER_HOUR}, {"d", USECS_PER_DAY}, {"", 1000}
	};
	char	   *end;
	long		number;

	if (text == NULL)
		return 0;
	number = strtol(text, &end, 10);
	if (number <= 0 || number > INT_MAX)
		return 0;
	for (int i = 0; i < (int) lengthof(units); i++)
	{
		if (strcmp(units[i].unit, end) == 0)
			return number * units[i].factor;
	}
	return 0;
}

static char *
keep_column(SagaConnection *connection, const PGresult *result, int column)
{
	if (PQgetisnull(result, 0, column))
		return NULL;
	return keep_foreign_text(connection, PQgetvalue(result, 0, column));
}

/* The answer to setup_look. */
static void
take_look(SagaConnection *connection, const PGresult *result)
{
	SagaRemoteInfo *info = &connection->info;
	char	   *column;
	int64		other;

	if (PQntuples(result) != 1 || PQnfields(result) != LOOK_COLUMNS)
	{
		break_by_nonsense(connection, "It does not answer as PostgreSQL does.");
		return;
	}
	info->server_version = PQserverVersion(connection->conn);
	column = keep_column(connection, result, LOOK_PID);
	info->pid = column == NULL ? 0 : atoi(column);
	connection->pooled = info->pid != PQbackendPID(connection->conn);
	info->pooled = connection->pooled;
	column = keep_column(connection, result, LOOK_RECOVERY);
	info->in_recovery = column != NULL && strcmp(column, "t") == 0;
	connection->role_timeout =
		parse_setting(keep_column(connection, result, LOOK_TIMEOUT));
	connection->session_timeout = connection->role_timeout;
	connection->their_limit = connection->role_timeout;
	other = parse_setting(keep_column(connection, result,
									  LOOK_TRANSACTION_TIMEOUT));
	if (other != 0)
		connection->their_limit = effective_limit(connection, other);
	connection->started = keep_column(connection, result, LOOK_STARTED);
	info->saga_version = keep_column(connection, result, LOOK_VERSION);
}

/*
 * The connection stands.  A role that is no superuser counts only with its own
 * password: whoever was let in without it came in as this server.
 */
static void
begin_setup(SagaConnection *connection)
{
	PGconn	   *conn = connection->conn;
	Item	   *item;

	if (connection->target.needs_password && !PQconnectionUsedPassword(conn))
	{
		fail_opening(connection, "2F003",
					 "Non-superuser cannot connect if the server does not request a password.",
					 false);
		connection->error.message = keep_text(connection, "password is required");
		connection->error.hint =
			keep_text(connection,
					  "Target server's authentication method must be changed.");
		return;
	}
	connection->step = STEP_SETUP;
	connection->nbytes = 0;
	if (acquire_fds(connection, SAGA_CHANNEL_FDS))
		connection->channel = saga_channel_open(PQsocket(conn),
												connection->context);
	if (connection->channel == NULL)
	{
		fail_opening(connection, "53000",
					 "There are too many open files on this server.", true);
		return;
	}
	if (PQsetnonblocking(conn, 1) != 0 || !PQenterPipelineMode(conn))
	{
		break_by_libpq(connection);
		return;
	}
	(void) add_item(connection, ITEM_PING, NULL);
	if (send_sync(connection))
	{
		item = add_item(connection, ITEM_SETUP, NULL);
		if (send_statement(connection, item, setup_look, 0, NULL) &&
			send_settings(connection, item) && send_sync(connection))
		{
			flush(connection, true);
			return;
		}
	}
	break_by_libpq(connection);
}

static void
work_connect(SagaConnection *connection, TimestampTz now)
{
	PostgresPollingStatusType polling;

	if (connection->polling == PGRES_POLLING_READING &&
		!count_bytes(connection, MAX_TALK))
	{
		fail_opening(connection, "08P01",
					 "It says too much before it lets anybody in.", true);
		return;
	}
	polling = PQconnectPoll(connection->conn);
	switch (polling)
	{
		case PGRES_POLLING_OK:
			begin_setup(connection);
			break;
		case PGRES_POLLING_READING:
		case PGRES_POLLING_WRITING:
			connection->polling = polling;
			note_host(connection, now);
			break;
		default:
			fail_connecting(connection, false);
			break;
	}
}

/* The time of opening, or of one host, is over. */
static void
watch_opening(SagaConnection *connection, TimestampTz now)
{
	if (connection->step != STEP_RESOLVE && connection->step != STEP_CONNECT &&
		connection->step != STEP_SETUP)
		return;
	if (now >= connection->deadline ||
		(connection->step == STEP_CONNECT && now >= connection->host_deadline &&
		 count_untried(connection) == 0))
	{
		fail_opening(connection, "08001", "Timeout expired.", true);
		return;
	}
	if (connection->step == STEP_CONNECT && now >= connection->host_deadline)
	{
		disconnect(connection);
		begin_connecting(connection, now);
	}
}


/* ---- READY: results ------------------------------------------------------------------ */

static Statement *
find_numbered(SagaConnection *connection, int number)
{
	for (int i = 0; i < connection->nstatements; i++)
	{
		if (connection->statements[i].number == number)
			return &connection->statements[i];
	}
	return NULL;
}

/* A result of the statement that prepares another. */
static void
note_prepared(SagaConnection *connection, int number, bool good)
{
	Statement  *statement = find_numbered(connection, number);

	if (statement != NULL && statement->state == STATEMENT_PREPARING)
		statement->state = good ? STATEMENT_PREPARED : STATEMENT_UNPREPARED;
}

/* A prepared statement that has had its day: something was changed there. */
static void
note_stale(SagaConnection *connection, int number, const PGresult *result)
{
	const char *sqlstate = result_sqlstate(result);
	Statement  *statement = find_numbered(connection, number);

	if (statement != NULL && statement->state == STATEMENT_PREPARED &&
		(strcmp(sqlstate, "26000") == 0 || strcmp(sqlstate, "0A000") == 0))
		statement->state = STATEMENT_UNPREPARED;
}

/* An error of the server.  False: it is the end of the connection. */
static bool
take_error_result(SagaConnection *connection, Item *item, int n,
				  PGresult *result)
{
	if (result_sqlstate(result) == NULL)
	{
		/* libpq's own */
		PQclear(result);
		break_by_libpq(connection);
		return false;
	}
	if (is_fatal(result) || item->call == NULL)
	{
		SagaError	error;
		bool		goodbye = is_fatal(result);

		take_error(connection, result, &error);
		PQclear(result);
		if (connection->step == STEP_READY)
			break_off(connection, goodbye ? BREAK_GOODBYE : BREAK_LOST,
					  error.message);
		else
		{
			fail_opening(connection, error.sqlstate, error.message,
						 is_passing(error.sqlstate));
		}
		return false;
	}
	if (item->prepares != 0 && n == 0)
		note_prepared(connection, item->prepares, false);
	else if (item->uses != 0)
		note_stale(connection, item->uses, result);
	if (item->call->error == NULL)
		item->call->error = result;
	else
		PQclear(result);
	return true;
}

/* What the n-th statement of an item has done. */
static void
take_good_result(SagaConnection *connection, Item *item, int n,
				 PGresult *result)
{
	if (item->kind == ITEM_SETUP && n == 0)
	{
		take_look(connection, result);
		PQclear(result);
		return;
	}
	if (item->prepares != 0 && n == 0)
		note_prepared(connection, item->prepares, true);
	if (item->kind == ITEM_CALL && n == item->main)
	{
		item->call->result = result;
		return;
	}
	if (item->kind == ITEM_COMMIT && item->call->error == NULL &&
		strcmp(PQcmdStatus(result), "COMMIT") != 0)
	{
		/* It was not told why. */
		PQclear(item->call->result);
		item->call->result = NULL;
	}
	PQclear(result);
}

static bool
take_columns(Call *call)
{
	SagaRemoteAnswer *answer = &call->answer;
	PGresult   *result = call->result;

	if (PQntuples(result) == 0)
		return true;
	answer->ncolumns = Min(PQnfields(result), SAGA_REMOTE_MAX_COLUMNS);
	for (int i = 0; i < answer->ncolumns; i++)
	{
		answer->columns[i] = NULL;
		if (PQgetisnull(result, 0, i))
			continue;
		answer->columns[i] = PQgetvalue(result, 0, i);
		if (!pg_verify_mbstr(GetDatabaseEncoding(), answer->columns[i],
							 PQgetlength(result, 0, i), true))
			return false;
	}
	return true;
}

/* The call is over. */
static void
complete_call(SagaConnection *connection, Call *call, TimestampTz now)
{
	SagaRemoteAnswer *answer = &call->answer;
	SagaRemoteAnswerKind kind = SAGA_REMOTE_DONE;
	answer->answered_at = now;
	if (call->error != NULL)
	{
		kind = SAGA_REMOTE_FAILED;
		take_error(connection, call->error, &answer->error);
		answer->constraint =
			keep_foreign_text(connection,
							  PQresultErrorField(call->error,
												 PG_DIAG_CONSTRAINT_NAME));

		/* It began at the earliest when it was sent. */
		answer->timed_out = call->limit != 0 &&
			now - call->sent_at >= call->limit &&
			strcmp(answer->error.sqlstate, "57014") == 0;
	}
	else if (call->result == NULL)
	{
		kind = SAGA_REMOTE_FAILED;
		set_error(connection, &answer->error, "40000",
				  format(connection, "server \"%s\" rolled the transaction back"),
				  NULL);
	}
	else if (!take_columns(call))
	{
		kind = SAGA_REMOTE_UNKNOWN;
		answer->ncolumns = 0;
		set_error(connection, &answer->error, "22021",
				  format(connection, "answer of server \"%s\" is not text in this database's encoding"),
				  NULL);
	}
	dlist_delete(&call->node);
	put_answer(connection, call, kind);
}

/* The Sync of the first item. */
static void
finish_item(SagaConnection *connection, TimestampTz now)
{
	Item	   *item = head_item(connection);
	SagaRemoteInfo *info = &connection->info;
	PGTransactionStatusType status = PQtransactionStatus(connection->conn);
	int64		took = now - item->sent_at;

	/* It is known only if nothing is behind. */
	if (item->nresults != item->nstatements ||
		(!item->leaves_transaction &&
		 (status == PQTRANS_INTRANS || status == PQTRANS_INERROR)))
	{
		break_by_nonsense(connection,
						  "It has sent fewer results than statements, or has not ended a transaction.");
		return;
	}
	dlist_delete(&item->node);
	if (item->kind == ITEM_PING || took < info->round_trip)
		info->round_trip = Max(took, 0);
	if (item->kind == ITEM_SETUP)
		connection->step = STEP_READY;
	if (item->is_last)
		complete_call(connection, item->call, now);
	connection->answered_at = now;
	connection->nbytes = 0;
	pfree(item);
}

/* Takes the result over. */
static void
take_result(SagaConnection *connection, PGresult *result, TimestampTz now)
{
	Item	   *item = head_item(connection);
	ExecStatusType status = PQresultStatus(result);
	int			n = item->nresults;

	if (status == PGRES_PIPELINE_SYNC)
	{
		PQclear(result);
		finish_item(connection, now);
		return;
	}
	if (n == item->nstatements && status != PGRES_FATAL_ERROR)
	{
		PQclear(result);
		break_by_nonsense(connection, "It has sent more results than there were statements.");
		return;
	}
	switch (status)
	{
		case PGRES_TUPLES_OK:
		case PGRES_COMMAND_OK:
			item->nresults++;
			take_good_result(connection, item, n, result);
			break;
		case PGRES_FATAL_ERROR:
			/* One behind the last statement is that of the commit. */
			if (take_error_result(connection, item, n, result) &&
				n < item->nstatements)
				item->nresults++;
			break;
		case PGRES_PIPELINE_ABORTED:
			item->nresults++;
			PQclear(result);
			break;
		default:
			PQclear(result);
			break_by_nonsense(connection, "It has sent a result of an unexpected kind.");
			break;
	}
}

static bool
is_open(const SagaConnection *connection)
{
	return connection->step == STEP_SETUP || connection->step == STEP_READY;
}

/* All that has been read. */
static void
take_results(SagaConnection *connection)
{
	TimestampTz now = GetCurrentTimestamp();
	int			nempty = 0;

	while (is_open(connection) && !dlist_is_empty(&connection->items) &&
		   nempty < 2 && !PQisBusy(connection->conn))
	{
		PGresult   *result = PQgetResult(connection->conn);

		if (result == NULL)
		{
			nempty++;
			continue;
		}
		nempty = 0;
		take_result(connection, result, now);
	}
	if (!is_open(connection))
		return;
	if (dlist_is_empty(&connection->items))
		(void) PQisBusy(connection->conn);
	drop_notifications(connection);
}

static void
complain_of_size(SagaConnection *connection)
{
	if (connection->step != STEP_READY)
		break_by_nonsense(connection, "It says too much before it lets anybody in.");
	else if (dlist_is_empty(&connection->sent))
		break_off(connection, BREAK_NONSENSE, "It says too much that nobody has asked for.");
	else
		break_off(connection, BREAK_TOO_LARGE,
				  psprintf("An answer has at most %d MB.",
						   (int) (SAGA_REMOTE_MAX_ANSWER / (1024 * 1024))));
}

/* How much may be read before the next answer. */
static Size
max_bytes(const SagaConnection *connection)
{
	if (connection->step == STEP_SETUP ||
		dlist_is_empty(unconstify(dlist_head *, &connection->sent)))
		return MAX_TALK;
	return SAGA_REMOTE_MAX_ANSWER;
}

/*
 * Have libpq take a piece.  With TLS it reads a record at a time, and may leave a
 * part of what it has decrypted, of which no socket says anything: there is room
 * for half of a record each time it reads.
 */
static bool
feed(SagaConnection *connection)
{
	PGconn	   *conn = connection->conn;

	if (!PQconsumeInput(conn))
		return false;
	if (!PQsslInUse(conn))
		return true;
	for (int i = 0; i < SAGA_CHANNEL_PIECE && count_readable(connection) > 0; i++)
	{
		if (!PQconsumeInput(conn))
			return false;
	}
	return PQconsumeInput(conn) && PQconsumeInput(conn);
}

/* Read what has come, piece by piece. */
static void
receive(SagaConnection *connection)
{
	for (int i = 0; i < MAX_READS && is_open(connection); i++)
	{
		int			n = saga_channel_receive(connection->channel);
		bool		good;

		if (n == 0)
			return;
		connection->nbytes += Max(n, 0);
		if (connection->nbytes > max_bytes(connection))
		{
			complain_of_size(connection);
			return;
		}
		good = feed(connection);
		take_results(connection);
		if (is_open(connection) &&
			(n < 0 || !good || PQstatus(connection->conn) == CONNECTION_BAD))
			break_by_libpq(connection);
	}
}

/* When the first item has had its time; DT_NOEND if it has any. */
static TimestampTz
head_ends_at(SagaConnection *connection)
{
	Item	   *item = head_item(connection);

	if (item == NULL || item->limit == 0)
		return DT_NOEND;
	return Max(item->sent_at, connection->answered_at) + item->limit + GRACE;
}

static void
work_open(SagaConnection *connection, TimestampTz now)
{
	/* TLS may have something to say that nobody has asked for. */
	if (connection->is_dirty || connection->unsent ||
		PQsslInUse(connection->conn))
		flush(connection, true);
	receive(connection);
	hand_over_waiting(connection);
	if (is_open(connection) && connection->is_dirty)
		flush(connection, true);
	if (connection->step == STEP_READY && now >= head_ends_at(connection))
		break_off(connection, BREAK_TIME_OVER, NULL);
}


/* ---- ENDING ---------------------------------------------------------------------------- */

static void
send_termination(SagaConnection *connection)
{
	char		pid[16];
	const char *params[2] = {pid, connection->started};
	SagaRemoteCall call = {0};

	snprintf(pid, sizeof(pid), "%d", connection->lost_pid);
	call.sql = terminate_sql;
	call.nparams = 2;
	call.params = params;
	call.timeout = CONTROL_TIME;
	call.bare = true;
	call.once = true;
	saga_connection_send(connection->control, &call);
	connection->lost_pid = 0;
}

static void
work_ending(SagaConnection *connection, TimestampTz now)
{
	SagaConnection *control = connection->control;

	saga_connection_work(control, now);
	if (control->step == STEP_READY && connection->lost_pid != 0)
		send_termination(connection);
	if (control->step == STEP_BROKEN || control->step == STEP_ENDING ||
		!dlist_is_empty(&control->answers) || now >= connection->control_until)
	{
		saga_connection_close(control);
		connection->control = NULL;
		connection->step = STEP_BROKEN;
	}
}


/* ---- the caller's ------------------------------------------------------------------------ */

static void
copy_target(SagaConnection *connection, const SagaTarget *target)
{
	SagaTarget *copy = &connection->target;

	*copy = *target;
	copy->server_name = keep_text(connection, target->server_name);
	copy->role_name = keep_text(connection, target->role_name);
	copy->keywords = MemoryContextAlloc(connection->context,
										(target->noptions + 1) * sizeof(char *));
	copy->values = MemoryContextAlloc(connection->context,
									  (target->noptions + 1) * sizeof(char *));
	for (int i = 0; i < target->noptions; i++)
	{
		copy->keywords[i] = keep_text(connection, target->keywords[i]);
		copy->values[i] = keep_text(connection, target->values[i]);
	}
	copy->keywords[target->noptions] = NULL;
	copy->values[target->noptions] = NULL;
}

SagaConnection *
saga_connection_open(const SagaTarget *target, int64 timeout,
					 MemoryContext parent)
{
	MemoryContext context;
	MemoryContext caller;
	SagaConnection *connection;
	const char *host_time;

	context = AllocSetContextCreate(parent, "saga connection",
									ALLOCSET_SMALL_SIZES);
	connection = MemoryContextAllocZero(context, sizeof(SagaConnection));
	connection->context = context;
	dlist_init(&connection->items);
	dlist_init(&connection->waiting);
	dlist_init(&connection->sent);
	dlist_init(&connection->answers);
	connection->callback.func = release;
	connection->callback.arg = connection;
	MemoryContextRegisterResetCallback(context, &connection->callback);

	copy_target(connection, target);
	connection->step = STEP_RESOLVE;
	connection->opened_at = GetCurrentTimestamp();
	connection->deadline = connection->opened_at + timeout;
	host_time = find_option(&connection->target, "connect_timeout");
	if (host_time != NULL && atoi(host_time) > 0)
		connection->host_time = Max(atoi(host_time), 2) * USECS_PER_SEC;

	if (!acquire_fds(connection, 1))
	{
		fail_opening(connection, "53000",
					 "There are too many open files on this server.", true);
		return connection;
	}
	caller = MemoryContextSwitchTo(context);
	find_hosts(connection);
	resolve_next(connection, connection->opened_at);
	MemoryContextSwitchTo(caller);
	return connection;
}

void
saga_connection_close(SagaConnection *connection)
{
	MemoryContextDelete(connection->context);
}

pgsocket
saga_connection_socket(const SagaConnection *connection)
{
	switch (connection->step)
	{
		case STEP_RESOLVE:
			return connection->resolve == NULL ? PGINVALID_SOCKET :
				saga_resolve_socket(connection->resolve);
		case STEP_CONNECT:
			return PQsocket(connection->conn);
		case STEP_SETUP:
		case STEP_READY:
			return saga_channel_socket(connection->channel);
		case STEP_ENDING:
			return saga_connection_socket(connection->control);
		case STEP_BROKEN:
			break;
	}
	return PGINVALID_SOCKET;
}

uint32
saga_connection_events(const SagaConnection *connection)
{
	switch (connection->step)
	{
		case STEP_RESOLVE:
			return WL_SOCKET_READABLE;
		case STEP_CONNECT:
			return connection->polling == PGRES_POLLING_READING ?
				WL_SOCKET_READABLE : WL_SOCKET_WRITEABLE;
		case STEP_SETUP:
		case STEP_READY:
			return WL_SOCKET_READABLE |
				(connection->unsent || connection->is_dirty ?
				 WL_SOCKET_WRITEABLE : 0);
		case STEP_ENDING:
			return saga_connection_events(connection->control);
		case STEP_BROKEN:
			break;
	}
	return 0;
}

TimestampTz
saga_connection_wakes_at(const SagaConnection *connection)
{
	switch (connection->step)
	{
		case STEP_RESOLVE:
		case STEP_SETUP:
			return connection->deadline;
		case STEP_CONNECT:
			return Min(connection->host_deadline, connection->deadline);
		case STEP_READY:
			return head_ends_at(unconstify(SagaConnection *, connection));
		case STEP_ENDING:
			return Min(connection->control_until,
					   saga_connection_wakes_at(connection->control));
		case STEP_BROKEN:
			break;
	}
	return DT_NOEND;
}

void
saga_connection_work(SagaConnection *connection, TimestampTz now)
{
	MemoryContext caller = MemoryContextSwitchTo(connection->context);

	forget_taken(connection);
	switch (connection->step)
	{
		case STEP_RESOLVE:
			work_resolve(connection, now);
			break;
		case STEP_CONNECT:
			work_connect(connection, now);
			break;
		case STEP_SETUP:
		case STEP_READY:
			work_open(connection, now);
			break;
		case STEP_ENDING:
			work_ending(connection, now);
			break;
		case STEP_BROKEN:
			break;
	}
	watch_opening(connection, now);
	MemoryContextSwitchTo(caller);
}

SagaConnectionState
saga_connection_state(const SagaConnection *connection)
{
	switch (connection->step)
	{
		case STEP_READY:
			return SAGA_CONNECTION_READY;
		case STEP_ENDING:
			return SAGA_CONNECTION_ENDING;
		case STEP_BROKEN:
			return SAGA_CONNECTION_BROKEN;
		default:
			return SAGA_CONNECTION_OPENING;
	}
}

const SagaRemoteInfo *
saga_connection_info(const SagaConnection *connection)
{
	return &connection->info;
}

const SagaError *
saga_connection_error(const SagaConnection *connection, bool *passing)
{
	*passing = connection->passing;
	return &connection->error;
}

int
saga_connection_in_flight(const SagaConnection *connection)
{
	return connection->ncalls;
}

TimestampTz
saga_connection_head_since(const SagaConnection *connection)
{
	const Call *call;

	if (dlist_is_empty(unconstify(dlist_head *, &connection->sent)))
		return 0;
	call = dlist_container(Call, node,
						   dlist_head_node(unconstify(dlist_head *,
													  &connection->sent)));
	return Max(call->sent_at, connection->answered_at);
}

bool
saga_connection_next_answer(SagaConnection *connection,
							SagaRemoteAnswer *answer)
{
	forget_taken(connection);
	if (dlist_is_empty(&connection->answers))
		return false;
	connection->taken =
		dlist_container(Call, node, dlist_pop_head_node(&connection->answers));
	*answer = connection->taken->answer;
	return true;
}


/* ---- a backend that may wait --------------------------------------------------------------- */

static void
wait_for(const SagaConnection *connection)
{
	pgsocket	socket = saga_connection_socket(connection);
	TimestampTz wakes_at = saga_connection_wakes_at(connection);
	uint32		events = WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH;
	long		timeout = TimestampDifferenceMilliseconds(GetCurrentTimestamp(),
														  wakes_at);

	if (socket == PGINVALID_SOCKET)
		(void) WaitLatch(MyLatch, events, timeout, PG_WAIT_EXTENSION);
	else
		(void) WaitLatchOrSocket(MyLatch,
								 events | saga_connection_events(connection),
								 socket, timeout, PG_WAIT_EXTENSION);
	ResetLatch(MyLatch);
	CHECK_FOR_INTERRUPTS();
}

static char *
copy_text(const char *text)
{
	return text == NULL ? NULL : pstrdup(text);
}

bool
saga_remote_probe(const SagaTarget *target, int64 timeout,
				  SagaRemoteInfo *info, SagaError *error)
{
	SagaConnection *connection = saga_connection_open(target, timeout,
													  CurrentMemoryContext);
	volatile bool good = false;

	PG_TRY();
	{
		while (saga_connection_state(connection) == SAGA_CONNECTION_OPENING)
		{
			wait_for(connection);
			saga_connection_work(connection, GetCurrentTimestamp());
		}
		good = saga_connection_state(connection) == SAGA_CONNECTION_READY;
		*info = connection->info;
		info->saga_version = copy_text(info->saga_version);
		*error = connection->error;
		error->message = copy_text(error->message);
		error->detail = copy_text(error->detail);
		error->hint = copy_text(error->hint);
		error->context = copy_text(error->context);
	}
	PG_FINALLY();
	{
		saga_connection_close(connection);
	}
	PG_END_TRY();
	return good;
}
