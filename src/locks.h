/*
 * locks.h
 *		Semantic locks and places: sagas that take turns.
 *
 * Who may call: executors and the coordinator, inside a transaction that the
 * engine started, at its top level, after all operations of it; saga.lock()
 * for saga_locks_is_held().
 *
 * A lock is a name within the definitions of one owner; it is held by a tree
 * of sagas (children share what their parent has), by one tree at a time,
 * first come first served.  Places are held by one saga each: a definition has
 * max_running of them, a step as many as its "concurrency" says, over all
 * versions of the definition.  All are rows of saga.lock.
 *
 * Everything here is serialized per lock by a heavyweight lock until the end
 * of the transaction, at read committed, where the newest rows are seen.  A
 * transaction that touches several announces them first, all at once: they
 * are locked in one order, so that executors never wait in a circle.
 */
#ifndef SAGA_LOCKS_H
#define SAGA_LOCKS_H

#include "datatype/timestamp.h"
#include "nodes/pg_list.h"

#include "definition.h"
#include "store.h"

/* The most bytes of a lock's name; longer values are hashed. */
#define SAGA_MAX_LOCK_NAME	200

/* One thing that is asked for. */
typedef struct SagaLockRequest
{
	const Saga *saga;
	const char *name;			/* of a lock; NULL: none, but a place */
	int			places;			/* > 0: one of so many places in the step; with
								 * a name after the lock is had.  0, and no name:
								 * a place of its definition */
	int			step;			/* who asks, for the view; -1: before the start */
	int			until_step;		/* the lock is given back when that step has
								 * ended; -1: with the saga's end */
	int64		timeout;		/* of the wait for the lock; microseconds, 0 = no
								 * limit */

	/* the answer */
	bool		granted;
	bool		lacks_place;	/* not granted: what it waits for is the place in
								 * the step */
	TimestampTz expires_at;		/* not granted: DT_NOEND = never */
} SagaLockRequest;

/*
 * The name of a lock from the value of "exclusive": strings as they are,
 * other scalars as text; NULL for objects and arrays.
 */
extern char *saga_locks_name(const JsonbValue *value);

/*
 * Ask for all of these.  A saga whose tree has it, or that stood in line and
 * whose turn has come, is granted; else it stands in line, with the time at
 * which it first asked and will give up, and gets a message "place" when its
 * turn comes.  Requests may be repeated.
 */
extern void saga_locks_request(SagaLockRequest *requests, int n);

/*
 * Announce what saga_locks_request() and saga_locks_give_back() of this
 * transaction will touch: the first call of those in a transaction.
 * "leaving" are sagas of which something is given back.
 */
extern void saga_locks_announce(const SagaLockRequest *requests, int n,
								Saga **leaving, int nleaving);

/*
 * Give back what these sagas hold and their places in line, and grant them to
 * those whose turn it is.  Of a saga that is final everything; of one that
 * goes back what it waits for (to a savepoint: what steps after that wait
 * for); of any other what is given back with the end of a step that is done,
 * what steps that are done waited for, and what has expired.  A saga that is
 * held by its parent gives back its place, and no lock.  A place in a step is
 * given back when that has ended, or its actions are given up and none of them
 * is out any more.
 */
extern void saga_locks_give_back(Saga **sagas, int n);

/* Has saga.lock any row?  If not the two above need not be called. */
extern bool saga_locks_in_use(void);

/*
 * In a transaction of its own, after a commit in which a saga began to wait:
 * look for circles of waiting trees of sagas that go through one of these
 * roots (n = 0: anywhere), and send the youngest tree of each, that can go
 * back, the message "deadlock".  Of executors that close a circle at the same
 * time the one that commits last sees all of it.  Returns how many were sent.
 */
extern int	saga_locks_break_circles(const int64 *roots, int n);

/* Grant what has become free by saga.configure() or was left by a process that
 * died; the coordinator's sweep. */
extern void saga_locks_regrant(void);

/*
 * Has this saga the lock, itself and to its end?  Any snapshot will do.  What
 * others of its tree have may be given back before it ends: it asks for its
 * own, and gets that at once.
 */
extern bool saga_locks_is_held(const SagaDefinition *definition,
							   int64 saga_id, const char *name);

/* Names follow the owners of definitions, whose OIDs differ in a restored dump:
 * for saga.adopt(), after saga_catalog_adopt(). */
extern void saga_locks_adopt(void);

#endif							/* SAGA_LOCKS_H */
