/*
 * defserver.h
 *		The foreign servers that a definition names, as saga.define() looks at
 *		them.
 *
 * Any backend, in a transaction, as the user who defines.
 */
#ifndef SAGA_DEFSERVER_H
#define SAGA_DEFSERVER_H

#include "definition.h"

/* Raises unless each of them is there, and is one that the current user may
 * use; the error names a step. */
extern void saga_defserver_check(const SagaDefinition *def);

/* Connect to each, and tell by a NOTICE whether what is done there is done once.
 * That this cannot be found out is told too, and nothing else comes of it. */
extern void saga_defserver_tell(const SagaDefinition *def);

#endif							/* SAGA_DEFSERVER_H */
