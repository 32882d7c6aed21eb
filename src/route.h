/*
 * route.h
 *		The way of one role to one remote database: its connections, and the calls
 *		that are on their way.
 *
 * The courier.  Nothing here reads a table, needs a transaction, or waits; what
 * is to be done is the courier's to say, what came of it is given back to it.
 */
#ifndef SAGA_ROUTE_H
#define SAGA_ROUTE_H

#include "lib/ilist.h"
#include "utils/uuid.h"

#include "outcome.h"
#include "remote.h"
#include "server.h"

typedef struct SagaRoute SagaRoute;

/* What a call is about, as its answer is to be understood. */
typedef enum SagaCallKind
{
	SAGA_CALL_STEP,				/* an operation of a remote step */
	SAGA_CALL_CHILD,			/* likewise of a child step: see follow.h */
	SAGA_CALL_FOLLOW,			/* waits for what children report; no task */
	SAGA_CALL_REPORT,			/* none: what a child has reported, for a task */
	SAGA_CALL_FORGET,			/* what is not asked for any more; no task */
	SAGA_CALL_ECHO,				/* the route's own: see route.c */
	SAGA_CALL_SETTLE			/* likewise */
} SagaCallKind;

#define SAGA_CALL_PARAMS	10

/*
 * A task that has been claimed: an attempt of an operation.  It is in a memory
 * context of its own.
 */
typedef struct SagaCall
{
	dlist_node	node;
	MemoryContext memory;
	SagaCallKind kind;
	int64		task;			/* STEP, CHILD, REPORT; as are the next */
	pg_uuid_t	lease_token;
	TimestampTz lease_until;
	int64		timeout;		/* microseconds; 0 = no limit */
	void	   *owner;			/* all but STEP: the courier's */
	SagaOperation operation;	/* CHILD, as are the next */
	int			attempt;
	bool		aside;			/* its task is no attempt: see taskrow.c */
	bool		expected;		/* see saga_follow_expect() */
	int64		report;			/* REPORT: its number there */
	bool		gives_up;		/* CHILD, REPORT: nothing of it remains */
	const char *plain_sql;		/* STEP: where the extension is not there */
	const char *params[SAGA_CALL_PARAMS];	/* of saga.participate(); the context
											 * is the only one of "plain_sql" */
	Size		size;			/* of the memory */
	bool		unsent;			/* it waits to be sent for the first time */
	bool		once;			/* as it was sent last: it can be asked again */
	int			nlost;			/* so many answers of it were lost */
	char		echo[24];		/* comes back with its answer */
	bool		soft;			/* done is not kept: see route.c */

	/* what came of it */
	bool		release;		/* nothing: it was never sent */
	bool		was_reached;	/* the server is well, whatever the outcome is */
	bool		unwritten;		/* the outcome could not be written */
	SagaOutcome outcome;		/* but for the result, which is ... */
	const char *result;			/* ... this, as text; may be NULL */
	const char *history;		/* FOLLOW: of the database there */
} SagaCall;

/* Position of parameters of saga.participate() in "params". */
enum
{
	SAGA_PARAM_COORDINATOR, SAGA_PARAM_SAGA, SAGA_PARAM_STEP,
	SAGA_PARAM_OPERATION, SAGA_PARAM_FUNCTION, SAGA_PARAM_CONTEXT,
	SAGA_PARAM_ELEMENT, SAGA_PARAM_ROUND, SAGA_PARAM_BEGUN_AT, SAGA_PARAM_ECHO
};

/* Likewise of a call that follows children. */
#define SAGA_FOLLOW_PARAMS	5

enum
{
	SAGA_FOLLOW_COORDINATOR, SAGA_FOLLOW_ACKNOWLEDGED, SAGA_FOLLOW_TIMEOUT,
	SAGA_FOLLOW_HISTORY, SAGA_FOLLOW_ECHO
};

/* Likewise of a call that has something forgotten. */
#define SAGA_FORGET_PARAMS	4

enum
{
	SAGA_FORGET_COORDINATOR, SAGA_FORGET_BEFORE, SAGA_FORGET_KEPT,
	SAGA_FORGET_ECHO
};

extern SagaRoute *saga_route_open(const SagaServerQueue *queue,
								  MemoryContext parent);

/* End its connections; calls that are in flight are forgotten. */
extern void saga_route_close(SagaRoute *route);

extern int32 saga_route_id(const SagaRoute *route);
extern Oid	saga_route_role(const SagaRoute *route);
extern const char *saga_route_role_name(const SagaRoute *route);
extern const char *saga_route_server(const SagaRoute *route);

/* The two for a line of the log: see log.h. */
extern char *saga_route_describe(const SagaRoute *route);

/* The foreign server's OID; InvalidOid if that is not known. */
extern Oid	saga_route_server_oid(const SagaRoute *route);

/*
 * Where it leads: known from now on, or changed (then connections are renewed
 * when what they have in flight is done), or nowhere, and why.  The target
 * is copied, memory that it came from is of no more use.
 */
extern void saga_route_set_target(SagaRoute *route, const SagaTarget *target);
extern void saga_route_set_refused(SagaRoute *route, const SagaError *error);

/*
 * Why it cannot be gone just now, or NULL.  *passing: it was tried and failed,
 * and may not next time; else it is a matter of settings.  The error is
 * reported once: with each try there is a new one.
 */
extern const SagaError *saga_route_take_error(SagaRoute *route, bool *passing);

/* How many calls could be sent right now. */
extern int	saga_route_room(SagaRoute *route, TimestampTz now);

/* So many it would have room for, if none was in flight. */
extern int	saga_route_capacity(SagaRoute *route);

/* Send calls, for which there is room; the list is empty then. */
extern void saga_route_send(SagaRoute *route, dlist_head *calls);

/*
 * There is one connection more for the call that follows children, which lasts
 * as long as they have nothing to report.  Is it there, and is none in flight?
 * It is opened if that can be done now.  Then one can be sent; its answer is
 * moved to "done", and never asked for again.
 */
extern bool saga_route_can_follow(SagaRoute *route, TimestampTz now);
extern void saga_route_follow(SagaRoute *route, SagaCall *call);

/* A call that may have been made, or its answer lost: ask again as soon as it
 * can be. */
extern void saga_route_ask_again(SagaRoute *route, SagaCall *call);

/* Take those back: move them to the list. */
extern void saga_route_take_waiting(SagaRoute *route, dlist_head *calls);

/*
 * There is more to do than is in flight: have another connection if that is of
 * use, there are at most "max" and none is just being opened.
 */
extern void saga_route_connect(SagaRoute *route, int max, TimestampTz now);

/*
 * Give a connection up for other routes of the server: one that does nothing,
 * else (with "force") one that has been there for a while, as soon as it has
 * nothing in flight; not that which follows.  False if there is none.
 */
extern bool saga_route_give_up_one(SagaRoute *route, bool force,
								   TimestampTz now);

/* May this process have one more connection, to whatever server? */
extern bool saga_route_has_room(void);

/* Is one being given up? */
extern bool saga_route_is_giving_up(const SagaRoute *route);

/* Do what can be done without waiting; calls that have come to an end are
 * moved to "done". */
extern void saga_route_work(SagaRoute *route, TimestampTz now,
							dlist_head *done);

/* When there is something to do without an event on a socket. */
extern TimestampTz saga_route_wakes_at(const SagaRoute *route, TimestampTz now);

/* Connections, in whatever state; of them, those that are not to follow
 * children, those that are open; calls that are in flight, but for the one that
 * follows, or to be asked again. */
extern int	saga_route_nconnections(const SagaRoute *route);
extern int	saga_route_ncallers(const SagaRoute *route);
extern int	saga_route_nready(const SagaRoute *route);
extern int	saga_route_in_flight(const SagaRoute *route);
extern int	saga_route_nwaiting(const SagaRoute *route);

/* Try at once, whatever has failed: somebody has seen to it. */
extern void saga_route_end_pause(SagaRoute *route);

/* The clock was set back: no time that was noted has a meaning. */
extern void saga_route_mend_times(SagaRoute *route);

/* The next try to connect is not before; 0 = there is no pause. */
extern TimestampTz saga_route_pauses_until(const SagaRoute *route);

/* What was found there by the last connection, if it was not asked before;
 * else NULL. */
extern const SagaRemoteInfo *saga_route_take_info(SagaRoute *route);

/* Each connection has a number, for the set of sockets that is waited for.  An
 * event is noted, and is acted on by saga_route_work(). */
extern SagaConnection *saga_route_connection(const SagaRoute *route, int i);
extern void *saga_route_event_data(const SagaRoute *route, int i);
extern void saga_route_note_event(void *data);

#endif							/* SAGA_ROUTE_H */
