/*
 * owner.h
 *		The switch to the extension's owner around a block of engine SQL.
 *
 * Between enter and leave no user code may run: no subtransaction may begin or
 * end, and nothing may commit.  Statements see search_path "pg_catalog,
 * pg_temp" and the other engine settings, and only values that are ready are
 * passed to them (text, bigint, jsonb, timestamptz).
 *
 * Any backend.  After an error nothing needs to be undone by hand: the
 * (sub)transaction's abort restores user and settings.
 */
#ifndef SAGA_OWNER_H
#define SAGA_OWNER_H

typedef struct SagaOwnerSwitch
{
	Oid			saved_user;
	int			saved_context;
	int			guc_level;
	bool		pushed_snapshot;
} SagaOwnerSwitch;

/* Also connects to SPI; leave disconnects.  Raises if the extension is gone. */
extern void saga_owner_enter(SagaOwnerSwitch *state);
extern void saga_owner_leave(SagaOwnerSwitch *state);

/* Likewise where another session's row may be waited for: with the caller's
 * lock_timeout, which is none in the engine's own settings. */
extern void saga_owner_enter_patiently(SagaOwnerSwitch *state);

/* After an error that was caught: end the SPI connection of a block that was
 * left by it.  The abort of the transaction does the rest. */
extern void saga_owner_abandon(void);

/* Is the switch on?  For assertions at commits and subtransactions. */
extern bool saga_owner_is_current(void);

/* The owner of table saga.saga, and the OIDs of what the engine touches;
 * looked up once and forgotten when the relation cache says so. */
extern Oid	saga_owner_role(void);

/* Goes up each time what was looked up by name has to be looked up again. */
extern uint32 saga_owner_generation(void);

/* Have it go up in all backends, when this transaction has committed. */
extern void saga_owner_invalidate(void);

/* May the current user execute this function of ours, which has no arguments
 * and is there to be granted: "monitor_privilege", "operator_privilege"? */
extern bool saga_owner_has_granted(const char *function);

/* May it see the numbers of all sagas: is it a monitor, or has it the privileges
 * of pg_monitor? */
extern bool saga_owner_sees_health(void);

/* Has the current database the extension, at the version of this library? */
extern bool saga_extension_ready(void);

#endif							/* SAGA_OWNER_H */
