/*
 * catalog.h
 *		The tables of definitions, and each backend's cache of them.
 *
 * Any backend.  What a lookup returns stays valid until the next call of
 * saga_catalog_forget_old(), which only the outermost caller makes, between
 * batches or at the start of a begin: an invalidation alone frees nothing.
 */
#ifndef SAGA_CATALOG_H
#define SAGA_CATALOG_H

#include "datatype/timestamp.h"

#include "definition.h"

/* A version by its id; NULL if there is none.  Settings are the newest. */
extern const SagaDefinition *saga_catalog_version(int32 id);

/* The newest version of a name; NULL if there is none. */
extern const SagaDefinition *saga_catalog_newest(const char *name);

/*
 * The newest version of a name, for begin: holds off saga.drop_definition()
 * until the end of the transaction, and raises when there is none, it is not
 * enabled, or the current user may not begin it; without "wait" also (55P03)
 * when it is about to be dropped.
 */
extern const SagaDefinition *saga_catalog_for_begin(const char *name,
													bool trust_definition,
													bool wait);

/* The newest version of a name that a step has for its child; raises when there
 * is none, or the current user may not begin it. */
extern const SagaDefinition *saga_catalog_for_child(const char *name);

/* That version of a name, also when the definition was dropped; NULL if there
 * is none. */
extern const SagaDefinition *saga_catalog_numbered(const char *name,
												   int version);

/* May sagas of this role be of this definition, enabled or not?  If not *why
 * says it, as a sentence. */
extern bool saga_catalog_may_run(const SagaDefinition *definition, Oid role,
								 const char **why);

/*
 * What is stored of the newest version of a name; NULL if there is no such
 * definition.  For its owner, and for those who see all; raises for others.
 */
extern Jsonb *saga_catalog_newest_steps(const char *name, bool sees_all);

extern void saga_catalog_forget_old(void);

/*
 * Between use(true) and use(false), which the engine puts around a run,
 * nothing is forgotten: a step may itself call saga.begin() or a verb.
 */
extern void saga_catalog_use(bool begins);

/* Is the version in the cache, so that looking it up reads no table? */
extern bool saga_catalog_has_version(int32 id);

/* ---- changes: each checks that the current user may make it ------------- */

/* Make this the newest version, unless it is already; returns its number, and
 * whether it was stored. */
extern int	saga_catalog_define(const char *name, Jsonb *steps, bool *stored);

/* What saga.configure() was given; NULL = leave it as it is. */
typedef struct SagaCatalogSettings
{
	const bool *enabled;
	const int  *max_running;	/* 0 = no limit */
	const Interval *deadline;	/* zero = none */
	const Interval *retention;
	const char *exclusive;		/* "" = none, nor the next two */
	const char *exclusive_until;	/* name of a step; "" = none */
	const Interval *exclusive_timeout;	/* zero = no limit */
} SagaCatalogSettings;

extern void saga_catalog_configure(const char *name,
								   const SagaCatalogSettings *settings);

/*
 * An invariant of the current user is violated: have no sagas begun.  False if it
 * may not, or there is no such definition, with *why as a sentence.
 */
extern bool saga_catalog_disable(const char *name, const char *invariant,
								 const char **why);

/* Remove a definition, its grants and its keys; the versions stay. */
extern void saga_catalog_drop(const char *name, bool force);

/* InvalidOid and "public" stand for everyone. */
extern void saga_catalog_grant(const char *name, Oid role,
							   const char *role_name);

/* Returns false if there was nothing to take back. */
extern bool saga_catalog_revoke(const char *name, const char *role_name);

/* For saga.adopt(): bind owners and grants to the roles that have their names
 * here.  The caller has checked that it may. */
extern void saga_catalog_adopt(void);

#endif							/* SAGA_CATALOG_H */
