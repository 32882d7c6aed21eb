/*
 * role.h
 *		Roles as the tables of definitions and queues keep them.
 *
 * Any backend, in a transaction.
 */
#ifndef SAGA_ROLE_H
#define SAGA_ROLE_H

/*
 * The OID is that of this cluster only, and the name may be given to another
 * role: it is the role that was meant only while both match.
 */
typedef struct SagaRoleRef
{
	Oid			oid;
	const char *name;
} SagaRoleRef;

extern bool saga_role_is_there(const SagaRoleRef *role);

/* Has "user" the privileges of it?  A superuser has, even if it is gone. */
extern bool saga_role_has_privileges(Oid user, const SagaRoleRef *role);

#endif							/* SAGA_ROLE_H */
