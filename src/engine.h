/*
 * engine.h
 *		The one engine: takes sagas, asks the machine what to do, does it in
 *		batches, records it.  Three drivers use it: the worker, CALL saga.run()
 *		and CALL saga.recover().
 */
#ifndef SAGA_ENGINE_H
#define SAGA_ENGINE_H

#include "datatype/timestamp.h"

#include "shared.h"

/* How its driver starts and ends transactions. */
typedef struct SagaDriver
{
	void		(*begin) (void);	/* start a transaction */
	void		(*commit) (void);	/* commit it; may raise */
	void		(*abort) (void);	/* after an error was caught: roll back,
									 * leaving no transaction open */
	bool		worker;			/* a background worker: clean the session */
	bool		(*goes_on) (void);	/* may a run begin another transaction?  What
									 * is left then is given back; NULL: always */
} SagaDriver;

typedef struct SagaRunResult
{
	int64		operations;		/* attempts made */
	int64		transactions;
	int64		changed;		/* sagas written, each time */
	int64		finished;		/* sagas that became final */
	int64		failed;			/* attempts that failed */
} SagaRunResult;

/*
 * Advance these sagas of the current role until each is final, waits, is held
 * by another process, or has had its turn (then it is back in the ring).  The
 * caller has claimed them (saga_executor_take or _claim); they are given back.
 * No transaction may be open; none is on return.  Raises nothing that belongs
 * to one saga; an error that it cannot place is raised with no transaction
 * left open.
 */
extern void saga_engine_run(const SagaDriver *driver, SagaRef *refs, int n,
							SagaRunResult *result);

/* A worker's scan finds so many more, beyond a backlog of other definitions. */
#define SAGA_SCAN_BEYOND	64

/*
 * In a transaction of its own: find sagas of the current role that are due or
 * have messages, at most "max" (and SAGA_SCAN_BEYOND if the driver is a
 * worker's), in "refs", which has room for them; returns how many.  Each call goes on where the last one ended;
 * *complete is set when it reached the end (the next call starts over), and
 * *next_due to when the first later one falls due (DT_NOEND: none).
 */
extern int	saga_engine_find_due(const SagaDriver *driver, SagaRef *refs,
								 int max, bool *complete,
								 TimestampTz *next_due);

/* The next call starts over, wherever the last one ended. */
extern void saga_engine_find_from_start(void);

/* The commit of the current transaction need not be flushed. */
extern void saga_engine_commit_lazily(void);

/* ---- the coordinator: each in a transaction of its own, no user code ---- */

/* Look once at the whole database: wants a pool for each role with something
 * due or a message, and returns the next time anything falls due (DT_NOEND:
 * nothing will).  *unfinished tells whether any saga is not final, *tasks
 * whether there may be any task. */
extern TimestampTz saga_engine_sweep(const SagaDriver *driver,
									 bool *unfinished, bool *tasks);

/* The same look, for one who is no coordinator: puts the roles that have
 * something due or a message in "roles", at most "max"; returns how many. */
extern int	saga_engine_wake_due(const SagaDriver *driver, Oid *roles, int max);

/* Record that the process ended during this operation, and log it. */
extern void saga_engine_record_lost(const SagaDriver *driver,
									const SagaLost *lost);

/* Apply what people asked of sagas of a role that can have no worker. */
extern void saga_engine_apply_messages(const SagaDriver *driver, Oid role);

/* Send the alerts that wait, with NOTIFY saga_alert. */
extern void saga_engine_send_alerts(const SagaDriver *driver);

/* Look at the conditions that come and go by themselves: see saga_alert_watch().
 * Returns when to look again. */
extern TimestampTz saga_engine_watch(const SagaDriver *driver);

/* Send NOTIFY saga_<queue> for the queues that are to be announced now; no
 * transaction if there is none. */
extern void saga_engine_announce(const SagaDriver *driver);

/* Find the queues in which tasks wait: they are to be announced. */
extern void saga_engine_look_for_tasks(const SagaDriver *driver);

/* Count the sagas that are not final, for the statistics. */
extern void saga_engine_count_sagas(const SagaDriver *driver);

/* Note which sagas servers may forget some day: see server.h. */
extern void saga_engine_take_marks(const SagaDriver *driver);

/* End the leases that are over, and see to answers from before that time which
 * nobody has taken; returns when the next lease ends (DT_NOEND: none does).
 * Adds to *ended how many leases it has ended; may be NULL. */
extern TimestampTz saga_engine_expire_leases(const SagaDriver *driver,
											 TimestampTz answered_before,
											 int64 *ended);

/* Delete a batch of the tasks that ended longer ago than saga.answer_retention.
 * Returns how many; -1 if there are no tasks at all. */
extern int64 saga_engine_purge_tasks(const SagaDriver *driver);

#endif							/* SAGA_ENGINE_H */
