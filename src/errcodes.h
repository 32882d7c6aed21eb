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

/* A person cancelled or abandoned a saga: the cause in saga.error. */
#define ERRCODE_SAGA_CANCELLED MAKE_SQLSTATE('S', 'G', '0', '1', '0')

/* A saga's deadline passed before its pivot: the cause in saga.error. */
#define ERRCODE_SAGA_DEADLINE MAKE_SQLSTATE('S', 'G', '0', '1', '1')

/* The process ended during an attempt. */
#define ERRCODE_SAGA_PROCESS_ENDED MAKE_SQLSTATE('S', 'G', '0', '1', '2')

#endif							/* SAGA_ERRCODES_H */
