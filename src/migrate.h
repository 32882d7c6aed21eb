/*
 * migrate.h
 *		The move of a saga from one version of its definition to another.
 *
 * Any backend may check; executors and the coordinator apply, on a saga that is
 * locked in the current transaction, at its top level, at read committed, with
 * no other saga in it.
 */
#ifndef SAGA_MIGRATE_H
#define SAGA_MIGRATE_H

#include "definition.h"
#include "store.h"

/*
 * The version that this saga is to move to; 0: the newest.  Raises when there
 * is none, the saga's role may not have it, or what the saga has done has
 * another meaning there.  It is asked again by saga_migrate_apply().
 */
extern const SagaDefinition *saga_migrate_check(const Saga *saga, int version);

/* What a message "migrate" says. */
extern Jsonb *saga_migrate_write(int version);

/*
 * Act on that message: renumbers what is stored of the saga and makes it one
 * of that version, to be saved, and to be loaded again before it is gone on
 * with.  Returns what came of it, as the history says it.
 */
extern const char *saga_migrate_apply(Saga *saga, const SagaMessage *message);

#endif							/* SAGA_MIGRATE_H */
