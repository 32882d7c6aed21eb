/*
 * remote.h
 *		A connection to a remote database that never waits: it is opened, calls
 *		are sent through it, one behind the other, and answers come back in that
 *		order.
 *
 * The courier, and saga_remote_probe() in any backend.  Nothing here reads a
 * table, needs a transaction, throws (but when memory is out, and what interrupts
 * raise in saga_remote_probe()) or blocks.  Only remote.c knows libpq.
 *
 * Whoever has a connection waits for its socket (saga_connection_socket(),
 * _events()) and its time (_wakes_at()), calls saga_connection_work() when
 * either has come, then takes its answers until there are none.
 */
#ifndef SAGA_REMOTE_H
#define SAGA_REMOTE_H

#include "datatype/timestamp.h"
#include "outcome.h"

#include "foreign.h"

typedef struct SagaConnection SagaConnection;

typedef enum SagaConnectionState
{
	SAGA_CONNECTION_OPENING,
	SAGA_CONNECTION_READY,		/* calls can be sent */
	SAGA_CONNECTION_ENDING,		/* as BROKEN, but give it time until it is: it has
								 * the last call ended, which hangs over there */
	SAGA_CONNECTION_BROKEN		/* take its answers, look at its error, close it */
} SagaConnectionState;

/* What is on the other side, from READY on. */
typedef struct SagaRemoteInfo
{
	int			server_version; /* as PQserverVersion() */
	const char *saga_version;	/* of the extension there that this role may
								 * call; NULL: calls are made at least once */
	bool		in_recovery;	/* a standby */
	bool		pooled;			/* sessions are shared: what follows on this
								 * connection may reach another one */
	int			pid;			/* of the backend there */
	int64		round_trip;		/* of its first query, microseconds */
} SagaRemoteInfo;

/* A call: one statement in a transaction of its own. */
typedef struct SagaRemoteCall
{
	const char *sql;			/* with $1 ...; static or as long as the
								 * connection: statements are prepared by it */
	int			nparams;
	const char *const *params;	/* text; copied.  NULL = null */
	int64		timeout;		/* microseconds that the statement may take there,
								 * where it is cancelled then; 0 = no limit */
	bool		bare;			/* no transaction block around it: CALL */
	bool		once;			/* it may be prepared; the session is left as it
								 * was found.  Else it is cleaned afterwards */
	void	   *tag;			/* the caller's */
} SagaRemoteCall;

typedef enum SagaRemoteAnswerKind
{
	SAGA_REMOTE_DONE,			/* committed */
	SAGA_REMOTE_FAILED,			/* an error, and nothing of it remains */
	SAGA_REMOTE_UNSENT,			/* the connection broke before anything of it was
								 * sent */
	SAGA_REMOTE_UNKNOWN			/* it broke, or time was over, and nobody knows */
} SagaRemoteAnswerKind;

#define SAGA_REMOTE_MAX_COLUMNS	4

typedef struct SagaRemoteAnswer
{
	void	   *tag;
	SagaRemoteAnswerKind kind;
	int			ncolumns;		/* DONE: of its first row; 0 if there is none */
	const char *columns[SAGA_REMOTE_MAX_COLUMNS];	/* text, NULL = null */
	SagaError	error;			/* all but DONE: the other side's own, whole; of a
								 * lost connection 08006 (UNSENT) or 08007
								 * (UNKNOWN), with libpq's words as the detail */
	const char *constraint;		/* FAILED: field "constraint name", or NULL */
	bool		timed_out;		/* UNKNOWN: by its time; FAILED: 57014 after it */
	bool		too_large;		/* UNKNOWN: the answer was larger than what is read */
	TimestampTz sent_at;
	TimestampTz answered_at;
} SagaRemoteAnswer;

/* An answer has at most so many bytes, with whatever comes before it. */
#define SAGA_REMOTE_MAX_ANSWER	((Size) 64 * 1024 * 1024)

/*
 * Begin to connect.  All of it is in a child of "parent"; the target is copied.
 * Never NULL: what is wrong stands in the error of a BROKEN connection.
 * "timeout" is for the whole of it, name resolution to the first answer,
 * microseconds.
 */
extern SagaConnection *saga_connection_open(const SagaTarget *target,
											int64 timeout,
											MemoryContext parent);

/* End it at once: what is in flight has no answers any more. */
extern void saga_connection_close(SagaConnection *connection);

/*
 * While OPENING or ENDING the socket may be another one after each call of
 * saga_connection_work(), also if it has the same number; PGINVALID_SOCKET if
 * there is none (yet).  Events are WL_SOCKET_...
 */
extern pgsocket saga_connection_socket(const SagaConnection *connection);
extern uint32 saga_connection_events(const SagaConnection *connection);
extern TimestampTz saga_connection_wakes_at(const SagaConnection *connection);

/* Do what can be done without waiting. */
extern void saga_connection_work(SagaConnection *connection, TimestampTz now);

extern SagaConnectionState saga_connection_state(const SagaConnection *connection);
extern const SagaRemoteInfo *saga_connection_info(const SagaConnection *connection);

/* Why it is BROKEN; "passing" tells whether it may be different in a while (no
 * such host or port, no answer, 53300, 57P03 ...) or is a matter of settings. */
extern const SagaError *saga_connection_error(const SagaConnection *connection,
											  bool *passing);

/* Send a call, when READY.  Its answer will come, if only to say why it was not
 * sent.  The next saga_connection_work() puts what was sent on the wire. */
extern void saga_connection_send(SagaConnection *connection,
								 const SagaRemoteCall *call);

/* Calls that were sent and have no answer yet; since when the first of them is
 * the other side's turn (0: there is none). */
extern int	saga_connection_in_flight(const SagaConnection *connection);
extern TimestampTz saga_connection_head_since(const SagaConnection *connection);

/* The next answer, good until the next call of any function of this
 * connection; false if there is none. */
extern bool saga_connection_next_answer(SagaConnection *connection,
										SagaRemoteAnswer *answer);

/* Connect, look, and disconnect, in a backend that may wait: interrupts are
 * processed.  False with the error (in CurrentMemoryContext) if that failed.
 * info->saga_version is in CurrentMemoryContext too. */
extern bool saga_remote_probe(const SagaTarget *target, int64 timeout,
							  SagaRemoteInfo *info, SagaError *error);

#endif							/* SAGA_REMOTE_H */
