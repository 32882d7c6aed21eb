/*
 * store.h
 *		The tables of sagas: the only place that reads and writes them.
 *
 * Who may call: any backend for begin, peek, post and the queries; executors
 * and the coordinator, inside a transaction that the engine started, for the
 * rest.  Rows are written in the top transaction only, never in an operation's
 * subtransaction.
 *
 * Locks, in this order: saga rows by ascending id (SKIP LOCKED, so nobody
 * waits), then places (saga.lock) by ascending key.
 */
#ifndef SAGA_STORE_H
#define SAGA_STORE_H

#include "access/htup.h"
#include "datatype/timestamp.h"
#include "storage/itemptr.h"
#include "utils/uuid.h"

#include "call.h"
#include "definition.h"
#include "machine.h"
#include "shared.h"

#define SAGA_NSLOTS		8

/* What is stored of one operation beside what the machine knows. */
typedef struct SagaOpRow
{
	bool		changed;		/* to be written */
	HeapTuple	tuple;			/* as stored; NULL if there is no row yet */
	TimestampTz started_at;		/* of the first attempt; 0 = none */
	TimestampTz finished_at;	/* 0 = not ended */
	Jsonb	   *result;
	Jsonb	   *error;			/* of the last attempt that failed */
} SagaOpRow;

/* A message, as read; applied messages are deleted by saga_store_save(). */
typedef struct SagaMessage
{
	ItemPointerData tid;
	int64		id;
	const char *kind;
	const char *step;			/* may be NULL */
	const char *reason;			/* may be NULL */
	const char *requested_by;
	TimestampTz created_at;
	const char *outcome;		/* set by who applies it: goes to the history */
} SagaMessage;

/* An attempt that did not succeed, to be written. */
typedef struct SagaAttempt
{
	int			step;
	SagaOperation operation;
	int			attempt;
	bool		passing;
	const char *outcome;
	const SagaError *error;
	TimestampTz started_at;
	TimestampTz finished_at;
} SagaAttempt;

/* A saga in memory: what its row and the rows of its steps say. */
typedef struct Saga
{
	SagaRef		ref;
	const SagaDefinition *definition;
	int32		definition_id;
	int			turn;
	SagaState	state;
	SagaOpRow (*ops)[SAGA_NOPERATION];	/* by position of the step */
	Jsonb	  **results;		/* of the actions, by position */
	pg_uuid_t	token;
	Oid			role;
	const char *key;			/* may be NULL */
	const char *traceparent;	/* may be NULL */
	Jsonb	   *input;
	bool		has_error;		/* the row has the first cause already */
	bool		has_place;		/* of those that max_running gives */
	TimestampTz created_at;
	TimestampTz started_at;		/* 0 = not yet */
	HeapTuple	tuple;			/* as stored; its t_self is the row's */
	bool		foreign;		/* of another coordinator: see saga.adopt() */
	const char *broken;			/* why its rows have no meaning; NULL = fine */
	bool		ended;			/* it was final when it was locked: nothing is
								 * loaded or saved but messages that came late */

	/* what saga_store_save() is to write */
	bool		changed;
	bool		suspect;
	int			step;
	TimestampTz due_at;			/* DT_NOEND: only somebody can move it */
	const char *waiting_for;	/* NULL = nothing */
	Jsonb	   *error;			/* NULL = leave as it is */
	List	   *attempts;		/* of SagaAttempt */
	List	   *messages;		/* of SagaMessage: all that were read */
} Saga;

/* The state of a saga for one that only looks, or NULL. */
extern Saga *saga_store_peek(int64 id);

/*
 * Insert the row of a new saga; returns its id.  For saga.begin(): in the
 * caller's transaction.  "existing" returns true when the key is taken and
 * the id is that of the saga that has it.
 */
typedef enum SagaOnDuplicate
{
	SAGA_DUPLICATE_RETURN,
	SAGA_DUPLICATE_ERROR,
	SAGA_DUPLICATE_NEW			/* if the one that has the key has ended */
} SagaOnDuplicate;

extern int64 saga_store_begin(const SagaDefinition *definition, Jsonb *input,
							  const char *key, TimestampTz start_at,
							  TimestampTz deadline, const char *traceparent,
							  SagaOnDuplicate on_duplicate);

/*
 * Lock those of these sagas that are free, are this coordinator's, and are of
 * the role "role" under its present name (InvalidOid: any role), and load
 * what is new of them.  A Saga that is given counts only if its row is as
 * remembered, else it is loaded again, in CurrentMemoryContext; NULL ones are
 * loaded.  Those that could not be locked are set to NULL.  So are those
 * whose input would make the batch too large for the memory; put_off is set
 * for these: they are to be had by a smaller batch.
 */
extern void saga_store_lock(Saga **sagas, const SagaRef *refs, int n,
							Oid role, bool *put_off);

/* Write all that has changed. */
extern void saga_store_save(Saga **sagas, int n);

/* Add a message for a saga; the caller has checked that it may. */
extern void saga_store_post(const Saga *saga, const char *kind,
							const char *step, const char *reason);

/* Up to "max" sagas of the current role that are due, from (after_due,
 * after_id) on; then those with messages.  Moves the position. */
typedef struct SagaDuePosition
{
	TimestampTz due_at;
	int64		id;
} SagaDuePosition;

extern int	saga_store_find_due(SagaDuePosition *position, SagaRef *refs,
								int max, bool *complete,
								TimestampTz *next_due);

/* The sagas of the role that have messages, by id after that one, at most max. */
extern int	saga_store_find_messages(Oid role, int64 after, SagaRef *refs,
									 int max);

/* For each role with something unfinished: is any due or has a message, and
 * when does the first that is not due fall due (DT_NOEND)? */
typedef void (*SagaRoleCallback) (Oid role, bool due, bool message,
								  TimestampTz next_due);
extern bool saga_store_look(SagaRoleCallback callback);

/*
 * Places of a definition with max_running: ask for one (true = granted now;
 * else the saga stands in line and gets a message when its turn has come), and
 * give back what these sagas have, now that they have ended.  All of it at
 * read committed, where the newest rows are seen; a transaction that touches
 * the places of several definitions locks them first, all at once.
 */
extern void saga_store_places_lock(List *definition_ids);
extern bool saga_store_place_request(const Saga *saga);
extern void saga_store_place_release(Saga **sagas, int n);

/* Give places that have become free by saga.configure(). */
extern void saga_store_places_regrant(void);

/* Write an alert, and send all that wait (NOTIFY saga_alert). */
extern void saga_store_alert(const Saga *saga, const char *kind,
							 const char *message);
extern int	saga_store_send_alerts(void);

/* What is committed of a saga now (under repeatable read, what the snapshot
 * shows); false if there is none. */
typedef struct SagaGlance
{
	SagaStatus	status;
	Oid			role;
	bool		own;			/* written by the current transaction */
} SagaGlance;

extern bool saga_store_glance(int64 id, SagaGlance *glance);

/* Make the sagas of a copy this coordinator's own: saga.adopt(). */
extern int64 saga_store_adopt(List **unbound);

#endif							/* SAGA_STORE_H */
