/*
 * errcodes.h
 *		The SQLSTATEs of saga's own, all in class SG.  Each is in the reference.
 *
 * Any backend.
 */
#ifndef SAGA_ERRCODES_H
#define SAGA_ERRCODES_H

#include "utils/elog.h"

/* A step ended itself for good, by saga.fail(). */
#define ERRCODE_SAGA_FAIL MAKE_SQLSTATE('S', 'G', '0', '0', '1')

/* A step asked for another attempt at its own time: saga.retry_later(). */
#define ERRCODE_SAGA_RETRY_LATER MAKE_SQLSTATE('S', 'G', '0', '0', '2')

/* A parameter without a default is in neither the input nor the results. */
#define ERRCODE_SAGA_MISSING_ARGUMENT MAKE_SQLSTATE('S', 'G', '0', '0', '3')

/* A step asked for a lock that the saga has not: saga.lock(). */
#define ERRCODE_SAGA_LOCK MAKE_SQLSTATE('S', 'G', '0', '0', '4')

/* The data of the saga do not fit the step: the value of foreach or exclusive,
 * the time of a timer, the input of a child. */
#define ERRCODE_SAGA_BAD_DATA MAKE_SQLSTATE('S', 'G', '0', '0', '5')

/* A person cancelled or abandoned a saga: the cause in saga.error. */
#define ERRCODE_SAGA_CANCELLED MAKE_SQLSTATE('S', 'G', '0', '1', '0')

/* A saga's deadline passed before its pivot: the cause in saga.error. */
#define ERRCODE_SAGA_DEADLINE MAKE_SQLSTATE('S', 'G', '0', '1', '1')

/* The process ended during an attempt. */
#define ERRCODE_SAGA_PROCESS_ENDED MAKE_SQLSTATE('S', 'G', '0', '1', '2')

/* No signal came in time. */
#define ERRCODE_SAGA_SIGNAL_TIMEOUT MAKE_SQLSTATE('S', 'G', '0', '2', '0')

/* A saga has this signal already. */
#define ERRCODE_SAGA_DUPLICATE_SIGNAL MAKE_SQLSTATE('S', 'G', '0', '2', '1')

/* The child of a step was compensated or abandoned. */
#define ERRCODE_SAGA_CHILD_FAILED MAKE_SQLSTATE('S', 'G', '0', '2', '2')

/* A semantic lock did not come in time. */
#define ERRCODE_SAGA_LOCK_TIMEOUT MAKE_SQLSTATE('S', 'G', '0', '2', '3')

/* The youngest of sagas that wait for each other's locks. */
#define ERRCODE_SAGA_DEADLOCK MAKE_SQLSTATE('S', 'G', '0', '2', '4')

/* An answer, or more, under a lease that was lost. */
#define ERRCODE_SAGA_LEASE_LOST MAKE_SQLSTATE('S', 'G', '0', '3', '0')

/* A task was answered already, and differently. */
#define ERRCODE_SAGA_TASK_ANSWERED MAKE_SQLSTATE('S', 'G', '0', '3', '1')

/* A participant said that its task failed, with no SQLSTATE of its own. */
#define ERRCODE_SAGA_TASK_FAILED MAKE_SQLSTATE('S', 'G', '0', '3', '2')

/* The lease of a task ended without an answer. */
#define ERRCODE_SAGA_LEASE_EXPIRED MAKE_SQLSTATE('S', 'G', '0', '3', '3')

/* A task was not claimed, or its step not done, in time. */
#define ERRCODE_SAGA_TASK_TIMEOUT MAKE_SQLSTATE('S', 'G', '0', '3', '4')

/* For a saga of another database: what was compensated before it was done. */
#define ERRCODE_SAGA_VOID MAKE_SQLSTATE('S', 'G', '0', '4', '0')

/* Likewise: it may be forgotten whether it was done. */
#define ERRCODE_SAGA_FORGOTTEN MAKE_SQLSTATE('S', 'G', '0', '4', '1')

#endif							/* SAGA_ERRCODES_H */
