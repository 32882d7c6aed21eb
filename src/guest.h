/*
 * guest.h
 *		Functions that another database names, called with a context.
 *
 * Any backend, inside a transaction, as the role that has called.
 */
#ifndef SAGA_GUEST_H
#define SAGA_GUEST_H

#include "utils/jsonb.h"

typedef struct SagaGuest SagaGuest;

/*
 * The function of that name, 'f' or 'schema.f' as SQL reads names; it is not
 * looked for yet.  Good until the next call of this.  Raises 42602.
 */
extern SagaGuest *saga_guest_find(const char *name);

/*
 * Call it, and return what it returned as jsonb, in CurrentMemoryContext: NULL
 * for null and void.  See saga_call_guest().  Raises what a query would that
 * calls it, and what it raises.
 */
extern Jsonb *saga_guest_call(SagaGuest *guest, Jsonb *context);

#endif							/* SAGA_GUEST_H */
