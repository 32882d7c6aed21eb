/*
 * store.h
 *		The tables of sagas: the only place that reads and writes them.
 *
 * Who may call: any backend for begin, peek, post and the queries; executors
 * and the coordinator, inside a transaction that the engine started, for the
 * rest.  Rows are written in the top transaction only, never in an operation's
 * subtransaction.
 *
 * Locks, in this order: rows of sagas and branches by ascending id (SKIP
 * LOCKED, so nobody waits), then what locks.h says.
 */
#ifndef SAGA_STORE_H
#define SAGA_STORE_H

#include "access/htup.h"
#include "datatype/timestamp.h"
#include "nodes/pg_list.h"
#include "storage/itemptr.h"
#include "utils/uuid.h"

#include "call.h"
#include "definition.h"
#include "machine.h"
#include "shared.h"
#include "stats.h"
#include "tables.h"

/* What is stored of one operation beside what the machine knows. */
typedef struct SagaOpRow
{
	bool		stored;			/* there is a row, of the present round */
	bool		changed;		/* to be written, also if the machine's part is
								 * as it was */
	TimestampTz started_at;		/* of the first attempt; 0 = none */
	TimestampTz finished_at;	/* 0 = not ended */
	int64		child_id;		/* of an action: the child that was begun; 0 =
								 * none */
	int64		task_id;		/* the task of its last attempt; 0 = none */
	bool		lacks_place;	/* of one that is QUEUED: for a place in its
								 * step, not for a lock.  Not stored */
	Jsonb	   *result;
	Jsonb	   *error;			/* of the last attempt that failed */
} SagaOpRow;

typedef SagaOpRow SagaOpRows[SAGA_NOPERATION];

/* A message, as read; applied messages are deleted by saga_store_save(). */
typedef struct SagaMessage
{
	ItemPointerData tid;
	int64		id;
	const char *kind;
	const char *step;			/* may be NULL */
	int			element;		/* -1 = none */
	const char *reason;			/* may be NULL */
	Jsonb	   *payload;		/* may be NULL */
	const char *requested_by;
	TimestampTz created_at;
	const char *outcome;		/* set by who applies it: goes to the history, if
								 * people sent it */
} SagaMessage;

/* An attempt that did not succeed, to be written. */
typedef struct SagaAttempt
{
	int			step;
	int			element;
	int			round;
	SagaOperation operation;
	int			attempt;
	bool		passing;
	const char *outcome;
	const SagaError *error;
	TimestampTz started_at;
	TimestampTz finished_at;
} SagaAttempt;

/*
 * An operation that was handed out to another worker: a row of saga.branch.
 * In a SagaRef its id stands with slot SAGA_BRANCH_SLOT.
 */
#define SAGA_BRANCH_SLOT	(-1)

typedef struct SagaBranch
{
	int64		id;
	ItemPointerData tid;
	SagaTask	task;			/* OPERATE */
	int			round;
	bool		moot;			/* nobody waits for it any more: the saga has
								 * ended, turned back, or gone on without it;
								 * it may not even be loaded, or be broken */
} SagaBranch;

/* parent_id of a saga whose parent is one of another database: see farparent.h.
 * The script knows it too. */
#define SAGA_FAR_PARENT		(-1)

/* A saga in memory: what its row and the rows of its steps say. */
typedef struct Saga
{
	SagaRef		ref;
	const SagaDefinition *definition;
	int32		definition_id;
	int			turn;
	SagaState	state;			/* with what the machine made of it */
	SagaOpRows **ops;			/* [step][element][operation]; [step] is NULL
								 * while its elements are not known */
	Jsonb	  **results;		/* by position: of a step that is done; of a
								 * foreach step the array of its elements'.  NULL =
								 * none.  See saga_store_settle_results() */
	pg_uuid_t	token;
	Oid			role;
	const char *key;			/* may be NULL */
	const char *traceparent;	/* that it was begun with; may be NULL */
	Jsonb	   *input;
	int64		parent_id;		/* 0 = none */
	int			parent_step;	/* -1 if it is none of this database */
	int			parent_element;
	int64		root_id;		/* of the tree; its own if it has no parent */
	int			depth;			/* how many sagas are above it */
	bool		has_error;		/* the row has the first cause already */
	Jsonb	   *cause;			/* that cause, as it was loaded; may be NULL */
	bool		has_place;		/* of those that max_running gives */
	bool		has_start_lock; /* that of configure(exclusive) */
	TimestampTz created_at;
	TimestampTz started_at;		/* 0 = not yet */
	HeapTuple	tuple;			/* as stored; its t_self is the row's */
	SagaCounted counted;		/* as what that is counted */
	bool		foreign;		/* of another coordinator: see saga.adopt() */
	const char *broken;			/* why its rows have no meaning; NULL = fine */
	bool		ended;			/* it was final when it was locked: nothing is
								 * loaded or saved but messages that came late */
	SagaBranch *branch;			/* not NULL: this is not the saga but a branch of
								 * it.  The saga's row is not locked, and only
								 * read: nothing of it may be changed */
	MemoryContext memory;		/* all of it is here */
	int		   *rounds;			/* store.c's own: by step, that of "ops" */
	struct SagaElements *elements;	/* likewise: the arrays of foreach steps */

	int			nfailed;		/* attempts that have failed since it was loaded */

	/* what saga_store_save() is to write */
	bool		changed;
	bool		stale;			/* once it is saved, memory no longer counts */
	bool		suspect;
	int			step;
	TimestampTz due_at;			/* DT_NOEND: only somebody can move it */
	const char *waiting_for;	/* NULL = nothing */
	Jsonb	   *error;			/* NULL = leave as it is */
	List	   *attempts;		/* of SagaAttempt */
	List	   *messages;		/* of SagaMessage: all that were read */
} Saga;

/*
 * In a statement: what "expression" is for the saga "s" of a row that has its
 * saga_id, and the slot where the saga was once; NULL if there is none.  As
 * such a row does not follow a saga that retention moves, a join on both would
 * lose it.
 */
#define SAGA_OF(row, expression) \
	"COALESCE((SELECT " expression " FROM saga.saga s" \
	"  WHERE s.id = " row ".saga_id AND s.slot = " row ".slot)," \
	" (SELECT " expression " FROM saga.saga s WHERE s.id = " row ".saga_id))"

/* 128 random bits. */
extern void saga_store_make_token(pg_uuid_t *token);

/* Whose messages the history keeps: "cancel" ..., "migrate" and "signal". */
extern bool saga_store_is_request(const char *kind);

/*
 * The elements of a foreach step, from the saga's data: how many, or -1 if
 * they cannot be had, with the reason in *wrong.  Then saga->ops[step] has
 * room for so many, as has the array that is returned for the machine's
 * EXPANDED.  For a step that cannot be expanded there is room for one, which
 * the caller expands it to, to let that one fail.
 */
extern int	saga_store_expand(Saga *saga, int step, const char **wrong,
							  SagaElementState **elements);

/* The element of a foreach step; NULL for any other. */
extern Jsonb *saga_store_element(const Saga *saga, int step, int element);

/* After outcomes: make the results of foreach steps that are done now. */
extern void saga_store_settle_results(Saga *saga);

/* Before SAGA_EVENT_FORWARD: write the operations that have changed, since
 * the machine forgets them; and after it: forget them here too. */
extern void saga_store_save_operations(Saga *saga);
extern void saga_store_forget_round(Saga *saga);

/*
 * For migrate.c.  "map" gives the positions of steps in the target by their
 * positions now; -1 = it is none of its steps.
 *
 * saga_store_find_traces() sets "traces" of those steps that have rows of
 * operations, of any round, or of locks.
 */
#define SAGA_TRACE_OPERATION	1
#define SAGA_TRACE_LOCK			2

extern void saga_store_find_traces(const Saga *saga, uint8 *traces);

/* The saga as it would be loaded if it were of that version; nothing is known
 * yet of what the machine thinks of it.  In CurrentMemoryContext. */
extern Saga *saga_store_translate(const Saga *saga,
								  const SagaDefinition *target,
								  const int16 *map);

/* Renumber all rows of a locked saga but its own, and make it "translated",
 * which saga_store_save() then writes. */
extern void saga_store_move(Saga *saga, const Saga *translated,
							const int16 *map);

/* How many sagas of a definition that have not ended, and that "role" sees
 * ("sees_all": any), are at each step: an object with the steps' names. */
extern Jsonb *saga_store_count_at_steps(const char *definition, Oid role,
										bool sees_all);

/* The state of a saga for one that only looks, or NULL.  The second one is
 * told its slot, reads no messages, and for many of them opens tables once. */
extern Saga *saga_store_peek(int64 id);
extern Saga *saga_store_peek_at(SagaTables *tables, Snapshot snapshot,
								int64 id, int16 slot);

/*
 * The table that has the row of a saga, with the row in its slot; NULL if there
 * is none.  "slot" is where it was when somebody looked: retention may have
 * moved it since.
 */
extern SagaTable *saga_store_locate(SagaTables *tables, Snapshot snapshot,
									int64 id, int16 slot);

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

/* Likewise for a child of this saga, which is locked and whose role the
 * current user is: in the engine's top transaction.  "traceparent" is that of
 * the step's action. */
extern int64 saga_store_begin_child(const Saga *parent, int step, int element,
									const SagaDefinition *definition,
									Jsonb *input, TimestampTz deadline,
									const char *traceparent);

/* Likewise for the child of a saga of another database, which has so many sagas
 * above it: in the caller's transaction. */
extern int64 saga_store_begin_far_child(const SagaDefinition *definition,
										Jsonb *input, TimestampTz deadline,
										const char *traceparent, int depth);

/* The saga of a definition that has this key; 0 = none. */
extern int64 saga_store_find_key(const char *definition, const char *key);

/*
 * Lock those of these sagas that are free, are this coordinator's, and are of
 * the role "role" under its present name (InvalidOid: any role), and load
 * what is new of them.  A Saga that is given counts only if its row is as
 * remembered, else it is loaded again, in CurrentMemoryContext; NULL ones are
 * loaded.  Those that could not be locked are set to NULL.  So are those
 * whose input would make the batch too large for the memory; put_off is set
 * for these: they are to be had by a smaller batch.
 *
 * A ref with SAGA_BRANCH_SLOT locks the row of the branch instead, and gives
 * the saga it belongs to, with branch set: always loaded anew, and shared
 * between the branches of one saga in one call but for "branch" itself.
 */
extern void saga_store_lock(Saga **sagas, const SagaRef *refs, int n,
							Oid role, bool *put_off);

/* Write all that has changed; of a branch (see saga_store_end_branch) nothing. */
extern void saga_store_save(Saga **sagas, int n);

/* Hand out an operation of a locked saga to another worker: adds the branch,
 * wakes a worker after the commit. */
extern void saga_store_hand_out(const Saga *saga, const SagaTask *task,
								bool alone);

/* Take the branch away, and unless "outcome" is NULL send that to its saga, as
 * a message of kind "outcome". */
extern void saga_store_end_branch(const Saga *saga, Jsonb *outcome);

/* The branches of one saga, at most "max". */
extern int	saga_store_find_branches(int64 saga_id, SagaRef *refs, int max);

/* Likewise its children that are not final. */
extern int	saga_store_find_children(int64 saga_id, SagaRef *refs, int max);

/*
 * Add a message for a saga; the caller has checked that it may.  "element" is
 * -1 for none; step, reason and payload may be NULL.
 */
extern void saga_store_post(const Saga *saga, const char *kind,
							const char *step, int element, const char *reason,
							Jsonb *payload);

/* Likewise from the engine to another saga, looked for in all leaves: to a
 * parent or a child.  False if there is none, or it has ended. */
extern bool saga_store_post_to(int64 saga_id, const char *kind,
							   const char *step, int element, Jsonb *payload);

/* Likewise the outcome of an operation that was handed out, from whoever did
 * it; "role" is the saga's, and "tables" are opened to write. */
extern void saga_store_post_outcome(SagaTables *tables, const SagaRef *ref,
									Oid role, const char *step, int element,
									Jsonb *outcome);

/*
 * Let those who send signals to this saga go one after the other, until the
 * end of the transaction: the second then sees the first's message.
 */
extern void saga_store_serialize_signals(int64 saga_id);

/* Up to "max" sagas of the current role that are due, from (after_due,
 * after_id) on.  Moves the position. */
typedef struct SagaDuePosition
{
	TimestampTz due_at;
	int64		id;
} SagaDuePosition;

extern int	saga_store_find_due(SagaDuePosition *position, SagaRef *refs,
								int max, bool *complete,
								TimestampTz *next_due);

/* Likewise between two positions, of none of these definitions, the last ones
 * first.  Reads a limited part of what is due, and moves "before" there; its
 * due_at is DT_NOBEGIN when it has reached "after". */
extern int	saga_store_find_due_of_others(const SagaDuePosition *after,
										  SagaDuePosition *before,
										  const int32 *definitions,
										  int ndefinitions, SagaRef *refs,
										  int max);

/* The sagas of the role that have messages, by id after that one, at most max. */
extern int	saga_store_find_messages(Oid role, int64 after, SagaRef *refs,
									 int max);

/* Likewise those with answers to their tasks that have not been taken; in any
 * order, since they are gone once they were. */
extern int	saga_store_find_answered(Oid role, SagaRef *refs, int max);

/* Likewise the branches of a role, by id after that one. */
extern int	saga_store_find_role_branches(Oid role, int64 after, SagaRef *refs,
										  int max);

/* For each role with something unfinished: is any due or has a message or a
 * branch, and when does the first that is not due fall due (DT_NOEND)? */
typedef void (*SagaRoleCallback) (Oid role, bool due, bool message,
								  TimestampTz next_due);
extern bool saga_store_look(SagaRoleCallback callback);

/* What is committed of a saga now (under repeatable read, what the snapshot
 * shows); false if there is none. */
typedef struct SagaGlance
{
	SagaStatus	status;
	Oid			role;
	bool		own;			/* written by the current transaction */
} SagaGlance;

extern bool saga_store_glance(int64 id, SagaGlance *glance);

/*
 * Count the sagas that are not final, for the statistics, unless somebody else
 * is about it.  In a transaction that has written nothing.
 */
extern void saga_store_count_unfinished(void);

/* Likewise for who asks alone: those that the active snapshot sees, also in
 * recovery.  In CurrentMemoryContext. */
extern SagaCount *saga_store_count_seen(int *ncounts);

/* Make the sagas of a copy this coordinator's own: saga.adopt(). */
extern int64 saga_store_adopt(List **unbound);

#endif							/* SAGA_STORE_H */
