/*
 * resolve.h
 *		Addresses of hosts, looked up without waiting for them.
 *
 * remote.c, in any process; needs no transaction, throws nothing.  libpq would
 * wait in getaddrinfo(), and with it everybody who waits for this process.
 */
#ifndef SAGA_RESOLVE_H
#define SAGA_RESOLVE_H

#include "datatype/timestamp.h"

typedef struct SagaResolve SagaResolve;

/* Begin to look up a name; it is malloc'ed.  NULL if that cannot be begun. */
extern SagaResolve *saga_resolve_begin(const char *host);

/* Readable when it is done. */
extern pgsocket saga_resolve_socket(const SagaResolve *resolve);

/* Is it done?  Then "addresses" has the first few, with commas between them, or
 * is empty and "error" says why. */
#define SAGA_ADDRESS_LENGTH	512

extern bool saga_resolve_done(SagaResolve *resolve, char *addresses,
							  const char **error);

/* Forget it, done or not. */
extern void saga_resolve_end(SagaResolve *resolve);

/* Is this a name that has to be looked up: no address, no path of a socket? */
extern bool saga_resolve_is_needed(const char *host);

#endif							/* SAGA_RESOLVE_H */
