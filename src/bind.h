/*
 * bind.h
 *		The arguments of an operation's function, made of the saga's data.
 *
 * call.c only, inside the operation's subtransaction and as its role: looking
 * up types and converting values may run code of the user.
 */
#ifndef SAGA_BIND_H
#define SAGA_BIND_H

#include "nodes/params.h"

#include "call.h"

struct SagaParameter;

/* How the parameters of a function get their values. */
typedef struct SagaBinding
{
	Oid			function;
	bool		takes_context;	/* one jsonb: the context */
	int			nparams;
	struct SagaParameter *params;	/* NULL if takes_context */
	ParamListInfo values;		/* of all parameters, by position */
	const char *converting;		/* name of the parameter whose value is being
								 * converted, for the context of errors */
} SagaBinding;

/* A bit of each parameter that is left to its default. */
typedef struct SagaOmitted
{
	uint64		bits[(FUNC_MAX_ARGS + 63) / 64];
} SagaOmitted;

/*
 * Learn the parameters of a function of the step, for the request's operation
 * or the condition of it; the function has been checked.  All of it is in
 * CurrentMemoryContext, and good for every element of that step.
 */
extern void saga_binding_prepare(SagaBinding *binding, Oid function,
								 const SagaCallRequest *request);

/*
 * Fill in the values, in CurrentMemoryContext, and say which have none: the
 * function's defaults are to be used.  Raises ERRCODE_SAGA_MISSING_ARGUMENT
 * where there is no default, and whatever a conversion raises, after which the
 * binding is of no use.  Not if it takes the context.
 */
extern void saga_binding_evaluate(SagaBinding *binding,
								  const SagaCallRequest *request,
								  SagaOmitted *omitted);

/* Likewise, if it takes the context. */
extern void saga_binding_give_context(SagaBinding *binding,
									  const SagaCallRequest *request,
									  const char *idempotency_key,
									  const char *traceparent);

/*
 * The context: what a function that takes one jsonb gets, and a participant.
 * "traceparent" is the operation's.  In CurrentMemoryContext; runs no code of the
 * user, so anybody may call it.
 */
extern Jsonb *saga_binding_context(const SagaCallRequest *request,
								   const char *idempotency_key,
								   const char *traceparent);

/* The name of a parameter, from 0. */
extern const char *saga_binding_name(const SagaBinding *binding, int i);

#endif							/* SAGA_BIND_H */
