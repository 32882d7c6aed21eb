/*
 * taskrow.h
 *		A row of saga.task: read, locked, changed.
 *
 * task.c, claim.c, answer.c and upkeep.c, inside a transaction.  Memory is
 * CurrentMemoryContext's unless it is said.
 */
#ifndef SAGA_TASKROW_H
#define SAGA_TASKROW_H

#include "outcome.h"
#include "queue.h"
#include "shared.h"
#include "tables.h"

/* What "outcome" says of rows that have ended. */
#define SAGA_TASKROW_ANSWERED	"answered"
#define SAGA_TASKROW_EXPIRED	"expired"
#define SAGA_TASKROW_WITHDRAWN	"withdrawn"

/* The attempt of a task that is none: see taskrow.c. */
#define SAGA_TASKROW_ASIDE	0

/* A row that was locked, to be changed. */
typedef struct SagaTaskRow
{
	HeapTuple	tuple;			/* as it was; t_self is the row's */
	Datum		values[TASK_NCOLUMNS];
	bool		nulls[TASK_NCOLUMNS];
} SagaTaskRow;

/* The tables of one call, with a snapshot that is active. */
typedef struct SagaTaskTable
{
	SagaTables	tables;			/* to write: tasks and messages */
	SagaTable  *table;
	Snapshot	snapshot;
} SagaTaskTable;

/* What this transaction has written so far counts. */
extern void saga_taskrow_open(SagaTaskTable *tasks);
extern void saga_taskrow_close(SagaTaskTable *tasks);

/* The row in a slot. */
extern void saga_taskrow_read(TupleTableSlot *slot, SagaTaskRow *row);

/* Lock the row of a task and read it; false if it is not to be had. */
extern bool saga_taskrow_lock(SagaTaskTable *tasks, int64 id, bool wait,
							  SagaTaskRow *row);

/* Lock the row that a scan has left in the table's slot, unless somebody else
 * has it or has changed it. */
extern bool saga_taskrow_lock_found(SagaTaskTable *tasks);

/* Store what has been changed of it. */
extern void saga_taskrow_write(SagaTaskTable *tasks, SagaTaskRow *row);

/* It is ready or claimed; it is claimed; it was answered, and nobody has taken
 * the answer; it has ended so. */
extern bool saga_taskrow_is_open(const SagaTaskRow *row);
extern bool saga_taskrow_is_claimed(const SagaTaskRow *row);
extern bool saga_taskrow_has_answer(const SagaTaskRow *row);
extern bool saga_taskrow_has_outcome(const SagaTaskRow *row,
									 const char *outcome);

/* It is no attempt of an operation. */
extern bool saga_taskrow_is_aside(const SagaTaskRow *row);

/* A column; NULL or 0 if it is null. */
extern const char *saga_taskrow_text(const SagaTaskRow *row, int column);
extern TimestampTz saga_taskrow_time(const SagaTaskRow *row, int column);
extern int64 saga_taskrow_id(const SagaTaskRow *row);

extern void saga_taskrow_set(SagaTaskRow *row, int column, Datum value);

/* It has ended so, now. */
extern void saga_taskrow_set_outcome(SagaTaskRow *row, const char *outcome);

/* Store that nobody does anything with it any more. */
extern void saga_taskrow_end(SagaTaskTable *tasks, SagaTaskRow *row);
extern void saga_taskrow_withdraw(SagaTaskTable *tasks, SagaTaskRow *row);
extern void saga_taskrow_expire(SagaTaskTable *tasks, SagaTaskRow *row);

/* Store that nobody has claimed it. */
extern void saga_taskrow_give_back(SagaTaskTable *tasks, SagaTaskRow *row);

/* The queue it stands in, of participants or of a server; NULL if that is gone. */
extern const SagaQueue *saga_taskrow_queue(const SagaTaskRow *row);

/* The saga it is of. */
extern SagaRef saga_taskrow_saga(const SagaTaskRow *row);

/* The outcome of the attempt, as the saga is told of it: in the row, when it is
 * woken by the commit, or as a message. */
extern Jsonb *saga_taskrow_make_answer(const SagaTaskRow *row,
									   const SagaOutcome *outcome);
extern void saga_taskrow_wake(const SagaTaskRow *row);
extern void saga_taskrow_send(SagaTaskTable *tasks, const SagaTaskRow *row,
							  Jsonb *answer);

#endif							/* SAGA_TASKROW_H */
