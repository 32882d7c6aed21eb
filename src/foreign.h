/*
 * foreign.h
 *		Where a remote database is, and who goes there: foreign servers and user
 *		mappings as dblink reads them, and the rules that protect this server.
 *
 * Any backend, in a transaction.  Reads the catalogs only; connects to nothing.
 */
#ifndef SAGA_FOREIGN_H
#define SAGA_FOREIGN_H

#include "utils/palloc.h"

/* What it takes to connect to a server as a role. */
typedef struct SagaTarget
{
	Oid			server;			/* of the foreign server, ... */
	Oid			mapping;		/* ... the user mapping, InvalidOid: a superuser
								 * who has none, ... */
	Oid			role;			/* ... and who goes there */
	const char *server_name;
	const char *role_name;
	bool		needs_password; /* the connection counts only if the server asked
								 * for the password of the mapping */
	int			noptions;
	const char **keywords;		/* for PQconnectStartParams(), with a NULL at the */
	const char **values;		/* end; no passwords but in here */
	uint64		fingerprint;	/* changes when any of that does */
} SagaTarget;

/*
 * Find out, in "context".  The role is asked about, not the current user.
 * Raises
 *		42704	no such server, or no mapping for the role
 *		42501	the role has no USAGE on the server
 *		2F003	the role is no superuser, and its mapping has no password
 *		0A000	the server's foreign-data wrapper is not one that connects to
 *				PostgreSQL (dblink_fdw, postgres_fdw)
 *		HV00D	an option that is none of libpq's, or not on our list
 */
extern void saga_foreign_find(const char *server_name, Oid role,
							  MemoryContext context, SagaTarget *target);

/* Is there a foreign server of that name that saga could connect to?  Raises as
 * above for the name, the wrapper and the current user's USAGE. */
extern void saga_foreign_check(const char *server_name);

/*
 * How often servers, mappings or roles have changed, as far as this backend
 * has been told: while it is the same, so is every target.  The first call
 * begins to listen.
 */
extern uint64 saga_foreign_changes(void);

#endif							/* SAGA_FOREIGN_H */
