/*
 * participate.h
 *		What the functions have in common that another database calls here for
 *		its sagas.
 *
 * The functions themselves: saga.participate(), saga.participate_child().
 */
#ifndef SAGA_PARTICIPATE_H
#define SAGA_PARTICIPATE_H

#include "fmgr.h"

#include "barrier.h"

/* Raises unless the transaction is at read committed: who waits for another
 * transaction has to see what it has done. */
extern void saga_participate_require_read_committed(const char *function);

/*
 * The arguments, checked, of which the operation is not read: it is the action
 * until the caller says otherwise.  "name" is that of the fifth, for messages.
 */
extern void saga_participate_read_call(FunctionCallInfo fcinfo,
									   const char *name,
									   SagaBarrierCall *call);

/*
 * With this an error's context ends: the caller knows by it of which operation
 * it is.  Logs show it, so it tells nothing of the saga's token: a hash of all
 * that names the operation (FNV-1a), the same on every machine.
 */
#define SAGA_CALL_MARK_LENGTH	32

extern void saga_participate_mark(char *mark, const char *token,
								  const char *step, int element, int round,
								  const char *operation);

/* The row that they return. */
extern Datum saga_participate_result(SagaBarrierVerdict verdict,
									 const Jsonb *answer);

/* What saga.forget_barriers() is to child sagas: those whose parents have ended
 * are let go, should that not have been done. */
extern void saga_child_forget(const pg_uuid_t *coordinator, TimestampTz before,
							  Datum kept);

#endif							/* SAGA_PARTICIPATE_H */
