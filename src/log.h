/*
 * log.h
 *		What our lines in the server's log are about, in one form.
 *
 * Whoever writes to the log at a level below ERROR, of a saga, a queue, a server,
 * a role or a database, gives what is made here as the message's context:
 *
 *		ereport(LOG, errmsg(...), errcontext("%s", saga_log_describe(...)));
 *
 * Programs read it, so it does not change: words "name=value" with a space
 * between them, in this order, without those that are not known,
 *
 *		saga definition key step element operation attempt trace_id span_id
 *		server queue role database invariant
 *
 * where names and keys are written as JSON strings, so that none of them can look
 * like another word or another line.  One line is written for each event that an
 * operator acts on, once it is committed, by the process that made it happen.
 *
 * Any process, in a transaction or not.  Results are in CurrentMemoryContext.
 */
#ifndef SAGA_LOG_H
#define SAGA_LOG_H

#include "store.h"

/* Of a saga; "task" is the operation that it is about, NULL = the saga as a
 * whole.  The definition, or the rows of its steps, may not be loaded. */
extern char *saga_log_describe(const Saga *saga, const SagaTask *task);

/* Of an operation that is being called. */
extern char *saga_log_describe_call(const SagaCallRequest *request);

/* Of an operation, when the saga cannot be had. */
extern char *saga_log_describe_ref(const SagaOperationRef *ref);

/* Of anything else: pairs of a word and a name, up to a NULL.  A name that is
 * NULL is left out. */
extern char *saga_log_describe_names(const char *word,...);

#endif							/* SAGA_LOG_H */
