/*
 * sstate.h
 *		What shared memory shows of remote databases: what a courier is doing
 *		there, and how they answer.
 *
 * Written by the courier of a database, read by views.  All of it is lost with
 * the server.  Without a segment (not preloaded) there is nothing.
 *
 * An entry is known by the id of its queue (server.h) in the current database.
 */
#ifndef SAGA_SSTATE_H
#define SAGA_SSTATE_H

#include "datatype/timestamp.h"

typedef enum SagaServerState
{
	SAGA_SERVER_IDLE,			/* no connection, nothing to do */
	SAGA_SERVER_CONNECTING,
	SAGA_SERVER_CONNECTED,
	SAGA_SERVER_PAUSING			/* it could not be reached: again at retry_at */
} SagaServerState;

/* "idle", "connecting", "connected", "pausing" */
extern const char *saga_server_state_name(SagaServerState state);

#define SAGA_SERVER_ERROR_LENGTH	256

typedef struct SagaServerInfo
{
	SagaServerState state;
	int			connections;
	int			in_flight;
	TimestampTz retry_at;		/* PAUSING; else 0 */
	int64		ncalls;			/* these since the server's start: answered, ... */
	int64		nfailed;		/* ... of them with an error, ... */
	int64		nlost;			/* ... answers that were lost, ... */
	int64		nunreachable;	/* ... connections that failed */
	double		p50;			/* seconds from sending to the answer, over the last */
	double		p99;			/* minute or two; 0 if there was none */
	TimestampTz last_call;		/* 0 = none */
	TimestampTz last_error_at;	/* likewise */
	char		last_error[SAGA_SERVER_ERROR_LENGTH];	/* cut at a character's end */
} SagaServerInfo;

/* ---- the courier ----------------------------------------------------------- */

/* What it is doing with that server; cheap if nothing has changed. */
extern void saga_sstate_show(int32 queue, SagaServerState state,
							 int connections, int in_flight,
							 TimestampTz retry_at);

/* A call was answered, after so many microseconds. */
extern void saga_sstate_answered(int32 queue, int64 latency, bool failed);

/* An answer was lost; a connection could not be made; the reason is for
 * people. */
extern void saga_sstate_lost(int32 queue, const char *error);
extern void saga_sstate_unreachable(int32 queue, const char *error);

/* The courier ends: it is connected to nothing. */
extern void saga_sstate_disconnect_all(void);

/* ---- views, and others ------------------------------------------------------ */

/* False if nothing is known of it. */
extern bool saga_sstate_info(int32 queue, SagaServerInfo *info);

/* The database, or its extension, is gone. */
extern void saga_sstate_forget_database(Oid database);

/* ---- the module -------------------------------------------------------------- */

/* Ask for the segment; from _PG_init() in the postmaster. */
extern void saga_sstate_init(void);

#endif							/* SAGA_SSTATE_H */
