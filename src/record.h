/*
 * record.h
 *		How events and outcomes get into a saga in memory: the machine is told,
 *		and what is to be stored is marked.
 *
 * Executors and the coordinator, on a saga that is locked in the current
 * transaction.
 */
#ifndef SAGA_RECORD_H
#define SAGA_RECORD_H

#include "outcome.h"
#include "store.h"

/* An event that has just happened. */
extern SagaEvent saga_record_make_event(SagaEventKind kind, const SagaTask *task);

/* Tell the machine. */
extern SagaVerdict saga_record_event(Saga *saga, const SagaEvent *event);

/* Likewise one of an operation, with nothing more to say; raises if the
 * machine refuses it. */
extern void saga_record_op_event(Saga *saga, SagaEventKind kind,
								 const SagaTask *task, TimestampTz due_at);

/* What is stored of an operation; saga_record_mark() has it written. */
extern SagaOpRow *saga_record_row(const Saga *saga, const SagaTask *task);
extern SagaOpState *saga_record_op(const Saga *saga, const SagaTask *task);
extern void saga_record_mark(Saga *saga, const SagaTask *task);

/* What whoever carries the operation out has to know of the saga. */
extern SagaCallRequest saga_record_request(const Saga *saga,
										   const SagaTask *task);

/*
 * Record what came of an operation: false if the machine does not expect it
 * (it came twice), then nothing has changed.  FAILED is worth another attempt
 * as the step's policy says.  SUCCEEDED ends the operation; what that is to a
 * timer or a child is kinds.c's matter.  Not for LOCK.
 */
extern bool saga_record_outcome(Saga *saga, const SagaTask *task,
								const SagaOutcome *outcome);

/* Likewise a success without a function, and a failure for good. */
extern bool saga_record_success(Saga *saga, const SagaTask *task,
								Jsonb *result);
extern bool saga_record_final_failure(Saga *saga, const SagaTask *task,
									  const SagaError *error);

/* The first cause of its going back or being stuck stays.  "task" may be
 * NULL. */
extern void saga_record_cause(Saga *saga, const SagaTask *task,
							  const SagaError *error);

extern SagaError saga_record_make_error(int sqlstate, const char *message,
										const char *detail);

#endif							/* SAGA_RECORD_H */
