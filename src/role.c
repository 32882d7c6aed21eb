/*
 * role.c
 *		Owns the question whether a role that a table names is still the one
 *		that was meant.
 *
 * Any backend; reads the caches of PostgreSQL only.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "utils/acl.h"

#include "role.h"

bool
saga_role_is_there(const SagaRoleRef *role)
{
	char	   *name;

	if (!OidIsValid(role->oid) || role->name == NULL)
		return false;
	name = GetUserNameFromId(role->oid, true);
	return name != NULL && strcmp(name, role->name) == 0;
}

bool
saga_role_has_privileges(Oid user, const SagaRoleRef *role)
{
	if (superuser_arg(user))
		return true;
	return saga_role_is_there(role) && has_privs_of_role(user, role->oid);
}
