/*
 * trace.h
 *		W3C trace contexts: the trace that a saga belongs to, and the spans that
 *		it and its operations are.
 *
 * Any process; no tables or catalogs are read, and there need not be a
 * transaction.  Results are in CurrentMemoryContext.
 */
#ifndef SAGA_TRACE_H
#define SAGA_TRACE_H

#include "utils/uuid.h"

#include "call.h"

/* The length of ids in hexadecimal digits. */
#define SAGA_TRACE_ID_LENGTH	32
#define SAGA_SPAN_ID_LENGTH		16

/* The flag that says that whoever began the trace records it. */
#define SAGA_TRACE_SAMPLED		0x01

typedef struct SagaTrace
{
	char		trace_id[SAGA_TRACE_ID_LENGTH + 1];
	char		span_id[SAGA_SPAN_ID_LENGTH + 1];	/* the saga's */
	char		parent_id[SAGA_SPAN_ID_LENGTH + 1]; /* of the span that began it; ""
													 * = none */
	int			flags;
} SagaTrace;

/* Is it one that W3C's recommendation allows, of this version or a later one? */
extern bool saga_trace_is_valid(const char *traceparent);

/* Of a saga: "traceparent" is what it was begun with; NULL, or one that is not
 * valid: it is a trace of its own. */
extern void saga_trace_of_saga(const pg_uuid_t *token, const char *traceparent,
							   SagaTrace *trace);

/* The id of the span that an operation is, the same for all its attempts. */
extern char *saga_trace_span_id(const pg_uuid_t *token, const char *step,
								int element, int round,
								SagaOperation operation);

/* The traceparent of an operation: what whoever carries it out is told. */
extern char *saga_trace_of_operation(const SagaCallRequest *request);

#endif							/* SAGA_TRACE_H */
