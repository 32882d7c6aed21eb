/*
 * inflight.h
 *		The crash record: which operation each executor is in, in a mapped file
 *		that outlives shared memory, the process and the server.
 *
 * Only shared.c calls it.  Nothing here throws.  Where the file cannot be had,
 * all of it does nothing, and an operation that crashes the server is retried
 * as if it had not.
 */
#ifndef SAGA_INFLIGHT_H
#define SAGA_INFLIGHT_H

#include "shared.h"

/* The postmaster, at every (re)initialization of shared memory: map the file,
 * once.  Returns false when there is none. */
extern bool saga_inflight_open(int nrecords);

/* The postmaster, right after: take what the record of this executor holds;
 * false if it was in no operation, or is not to blame. */
extern bool saga_inflight_take(int index, SagaLost *lost);

/* The executor of that index. */
extern void saga_inflight_set(int index, Oid database, Oid role,
							  const SagaOperationRef *what);
extern void saga_inflight_clear(int index);

/* May be called in a signal handler. */
extern void saga_inflight_excuse(int index);

#endif							/* SAGA_INFLIGHT_H */
