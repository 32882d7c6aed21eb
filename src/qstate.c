/*
 * qstate.c
 *		Owns what shared memory knows of the queues of tasks: which are to be
 *		announced, how their participants do, and their breakers.
 *
 * The segment is a table of fixed size, with one entry per queue that was used
 * lately, of all databases.  When it is full, the entry that was used longest
 * ago gives way, unless it stands for an announcement; if all do, there is no
 * room for another: then the coordinator looks which queues have tasks that
 * wait, and those for which there is still none it announces at once.
 *
 * What a transaction does to queues is noted in static arrays and told when it
 * has committed: then nothing may throw or allocate, and nothing here does.
 * Notes of an aborted subtransaction may stay, they are harmless; those of a
 * prepared transaction are forgotten.  The entry of a queue to which tasks are
 * offered is made before the commit; beyond the queues that can be noted with
 * all that is counted, those to be announced are noted by the places of their
 * entries.
 *
 * Announcing.  Who has offered tasks marks the queue; whoever made its time to
 * be announced an earlier one tells the coordinator, by saga_duty_at(), once he
 * has no lock here any more.  The coordinator takes its duty first and looks at
 * the marks then, so that none is lost.  A queue that has a mark already costs
 * the next offer nothing but its lock.
 *
 * Calls.  A queue of a server has a negative id.  Its mark is the courier's: it
 * is told by saga_courier_want(), once no lock is held here, takes that first
 * and the marks then.  There is no pause between two marks.
 *
 * The breaker of a queue has these states:
 *
 *		closed		-> open when so many tasks have failed in a row
 *		open		until the end of its pause, nobody gets a task
 *		half open	the pause is over: who asks next gets one task, and "until"
 *					becomes the time at which somebody may get another.  It
 *					failed: open, for a pause twice as long.  It was not used,
 *					since there was none or its transaction aborted: the next
 *					who asks gets one
 *		any			-> closed when a task was completed
 *
 * The queue is announced, or found by the courier, when "until" is over, not
 * before, and when it closes.
 *
 * Time is that of the wall clock, which may be set back: whatever is found to
 * lie in the future further than it was ever put there is taken for now; see
 * mend_times().
 *
 * Locks, in the order in which they are taken, and never together with those
 * of shared.c:
 *
 *		table		which queue has which entry: shared to find one, exclusive
 *					to make or free one.
 *		queue		one for each entry: what is in it.  "database" and "id" are
 *					changed with both locks held exclusively, and so may be read
 *					with either.  Nobody holds two of these but who holds the
 *					table exclusively.
 */
#include "postgres.h"

#include "access/xact.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "nodes/pg_list.h"
#include "storage/ipc.h"
#include "storage/lwlock.h"
#include "storage/shmem.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "qstate.h"
#include "shared.h"

#define NQUEUES			256

/* Queues that one transaction may note, and places of entries that a backend
 * remembers. */
#define NNOTES			16
#define NREMEMBERED		16

/* A queue is announced once in so long, whatever is offered. */
#define ANNOUNCE_PAUSE	(5 * INT64CONST(1000))

/* Completed tasks are counted in buckets: those of a minute, and the one that
 * is being filled. */
#define BUCKET_TIME		(10 * USECS_PER_SEC)
#define RATE_BUCKETS	6
#define NBUCKETS		(RATE_BUCKETS + 1)

typedef struct Bucket
{
	int64		number;			/* its time, in BUCKET_TIMEs */
	int64		ncompleted;
} Bucket;

typedef struct Queue
{
	/* Both locks, exclusive, to change these.  InvalidOid: unused. */
	Oid			database;
	int32		id;

	/* The lock of the queue guards the rest. */
	char		name[SAGA_MAX_QUEUE_NAME + 1];	/* of a server's it may be cut */
	TimestampTz used_at;		/* last */

	/* The mark. */
	bool		announce;		/* to be announced, as soon as it may be */
	bool		alarm;			/* likewise, since nobody got a task until then */
	TimestampTz announced_at;	/* last; 0 = never, as of a server's queue */

	bool		open;			/* the breaker is not closed */
	bool		trying;			/* a task was given since the pause was over */
	int			failures;		/* in a row */
	int64		pause;			/* of this opening, microseconds */
	TimestampTz until;			/* open: before, nobody gets a task */
	uint32		trial;			/* number of the task that was given last */

	int64		noffered;		/* these since the entry was made */
	int64		nclaimed;
	int64		ncompleted;
	int64		nfailed;
	int64		nexpired;
	Bucket		buckets[NBUCKETS];	/* at the remainder of their number */
	SagaQueueParticipant participants[SAGA_QUEUE_PARTICIPANTS];
} Queue;

typedef struct QueueTable
{
	Queue		queues[NQUEUES];
} QueueTable;

static QueueTable *table = NULL;
static LWLockPadded *locks = NULL;

/* The tranche: the table, and one lock for each entry. */
#define NLOCKS			(1 + NQUEUES)
#define TABLE_LOCK		(&locks[0].lock)
#define QUEUE_LOCK(queue)	(&locks[1 + ((queue) - table->queues)].lock)

/* Where this backend has found queues, by the remainder of their id. */
static int16 remembered[NREMEMBERED];

/* What the current transaction does to a queue. */
typedef struct Note
{
	int32		id;
	char		name[SAGA_MAX_QUEUE_NAME + 1];
	bool		announce;
	int64		noffered;
	bool		looked;			/* a participant has looked for tasks, */
	char		participant[SAGA_PARTICIPANT_NAME];	/* who, if it was told */
	int64		nclaimed;		/* and got so many */
	int64		ncompleted;
	int64		nfailed;
	int64		nexpired;
	SagaBreaker breaker;		/* with the three above, or a trial */
	uint32		trial;			/* was given to this transaction; 0 = none */
} Note;

static struct
{
	bool		any;			/* is there anything in here? */
	bool		look;			/* something to announce has lost its entry */
	uint32		courier;		/* wanted of it: SAGA_COURIER_* */
	bool		ended;			/* tasks have ended */
	bool		more;			/* is there anything in "more_ids"? */
	int			nnotes;
	TimestampTz lease;			/* the first lease ends; DT_NOEND: none */
	List	   *unplaced;		/* names, in TopTransactionContext: without an
								 * entry */
	Note		notes[NNOTES];
	int32		more_ids[NQUEUES];	/* to be announced, too: the queue that has
									 * this entry; 0 = none */
}			pending = {.lease = DT_NOEND};

/* Without a segment: what this backend is to announce itself.  Known limit: so
 * many queues; the others are found by saga.recover(). */
static struct
{
	int			n;
	char		names[NNOTES][SAGA_MAX_QUEUE_NAME + 1];
}			own;

static bool callback_registered = false;
static shmem_request_hook_type prev_shmem_request_hook = NULL;
static shmem_startup_hook_type prev_shmem_startup_hook = NULL;


/* ---- entries ----------------------------------------------------------- */

/* Is it of calls of a server, and so the courier's? */
static bool
is_servers(int32 id)
{
	return id < 0;
}

static bool
is_queue(const Queue *queue, int32 id)
{
	return queue->id == id && queue->database == MyDatabaseId;
}

/* The entry of a queue of this database; the table is locked. */
static Queue *
find_queue(int32 id)
{
	for (int i = 0; i < NQUEUES; i++)
		if (is_queue(&table->queues[i], id))
		{
			remembered[(uint32) id % NREMEMBERED] = i;
			return &table->queues[i];
		}
	return NULL;
}

/* Find it and lock it; NULL, with nothing locked, if there is none. */
static Queue *
lock_queue(int32 id, LWLockMode mode)
{
	Queue	   *queue = &table->queues[remembered[(uint32) id % NREMEMBERED]];

	LWLockAcquire(QUEUE_LOCK(queue), mode);
	if (is_queue(queue, id))
		return queue;
	LWLockRelease(QUEUE_LOCK(queue));

	LWLockAcquire(TABLE_LOCK, LW_SHARED);
	queue = find_queue(id);
	if (queue != NULL)
		LWLockAcquire(QUEUE_LOCK(queue), mode);
	LWLockRelease(TABLE_LOCK);
	return queue;
}

static void
unlock_queue(Queue *queue)
{
	LWLockRelease(QUEUE_LOCK(queue));
}

/* An entry that is free or can be spared, locked; NULL if there is none.  The
 * table is locked exclusively. */
static Queue *
lock_spare(void)
{
	Queue	   *spare = NULL;
	TimestampTz used_at = DT_NOEND;

	for (int i = 0; i < NQUEUES; i++)
	{
		Queue	   *queue = &table->queues[i];

		LWLockAcquire(QUEUE_LOCK(queue), LW_EXCLUSIVE);
		if (!OidIsValid(queue->database))
		{
			if (spare != NULL)
				unlock_queue(spare);
			return queue;
		}
		if (queue->announce || queue->alarm || queue->used_at >= used_at)
		{
			unlock_queue(queue);
			continue;
		}
		/* kept locked, so that it cannot come to stand for an announcement */
		if (spare != NULL)
			unlock_queue(spare);
		spare = queue;
		used_at = queue->used_at;
	}
	return spare;
}

/* The same as lock_queue(), exclusively; makes it if there is none.  NULL if
 * there is no room. */
static Queue *
make_queue(int32 id, const char *name)
{
	Queue	   *queue = lock_queue(id, LW_EXCLUSIVE);
	bool		made = false;

	if (queue == NULL)
	{
		LWLockAcquire(TABLE_LOCK, LW_EXCLUSIVE);
		queue = find_queue(id);
		if (queue != NULL)
			LWLockAcquire(QUEUE_LOCK(queue), LW_EXCLUSIVE);
		else
		{
			queue = lock_spare();
			made = true;
		}
		if (queue != NULL && made)
		{
			memset(queue, 0, sizeof(Queue));
			queue->database = MyDatabaseId;
			queue->id = id;
			remembered[(uint32) id % NREMEMBERED] = queue - table->queues;
		}
		LWLockRelease(TABLE_LOCK);
	}
	if (queue != NULL && strcmp(queue->name, name) != 0)
		strlcpy(queue->name, name, sizeof(queue->name));
	return queue;
}

/* Free an entry; both locks are held exclusively. */
static void
free_queue(Queue *queue)
{
	queue->database = InvalidOid;
	queue->announce = queue->alarm = false;
}


/* ---- announcements and breakers: the queue is locked exclusively ------------ */

/* The clock was set back: nothing is to wait longer than it was to at first. */
static void
mend_times(Queue *queue, TimestampTz now)
{
	if (queue->announced_at > now)
		queue->announced_at = 0;
	if (queue->open && queue->until > now + queue->pause)
		queue->until = now + queue->pause;
}

/* When is it to be announced, or found by the courier?  DT_NOEND: not. */
static TimestampTz
announcement_due(const Queue *queue)
{
	TimestampTz due;

	if (!queue->announce && !queue->alarm)
		return DT_NOEND;
	due = queue->announced_at + ANNOUNCE_PAUSE;
	return queue->open ? Max(due, queue->until) : due;
}

static void
open_breaker(Queue *queue, int64 pause, TimestampTz now)
{
	queue->open = true;
	queue->trying = false;
	queue->pause = pause;
	queue->until = now + pause;
	queue->alarm = true;
}

/* If it was open, tasks may wait. */
static void
close_breaker(Queue *queue)
{
	queue->announce |= queue->open;
	queue->open = false;
	queue->trying = false;
	queue->failures = 0;
}

/* Tasks have failed, or their leases are over. */
static void
count_failures(Queue *queue, const SagaBreaker *breaker, int64 n,
			   TimestampTz now)
{
	queue->failures = (int) Min(queue->failures + n, PG_INT32_MAX);
	if (breaker->failures == 0)
		queue->open = queue->trying = false;
	else if (!queue->open)
	{
		if (queue->failures >= breaker->failures)
			open_breaker(queue, Min(breaker->pause, breaker->max_pause), now);
	}
	/* with the others it was claimed before the breaker opened */
	else if (queue->trying)
		open_breaker(queue, queue->pause > breaker->max_pause / 2 ?
					 breaker->max_pause : queue->pause * 2, now);
}

/* The task that was given to try was not used.  If there is none, whoever
 * offers the next one has it announced. */
static void
give_back_trial(Queue *queue, const Note *note, bool aborted, TimestampTz now)
{
	if (!queue->trying || queue->trial != note->trial)
		return;
	queue->trying = false;
	if (aborted)
		/* others may have been there for it: they are told */
		queue->until = Min(queue->until, now + note->breaker.pause);
	else
	{
		queue->until = now;
		queue->alarm = false;
	}
}

static void
count_completed(Queue *queue, int64 n, TimestampTz now)
{
	int64		number = now / BUCKET_TIME;
	Bucket	   *bucket = &queue->buckets[number % NBUCKETS];

	if (bucket->number != number)
	{
		bucket->number = number;
		bucket->ncompleted = 0;
	}
	bucket->ncompleted += n;
	queue->ncompleted += n;
}

/* Remember a participant, in the place of the one seen longest ago. */
static void
see_participant(Queue *queue, const char *name, int64 nclaimed,
				TimestampTz now)
{
	SagaQueueParticipant *place = &queue->participants[0];

	for (int i = 0; i < SAGA_QUEUE_PARTICIPANTS; i++)
	{
		SagaQueueParticipant *participant = &queue->participants[i];

		if (participant->last_seen != 0 &&
			strcmp(participant->name, name) == 0)
		{
			participant->last_seen = now;
			participant->nclaimed += nclaimed;
			return;
		}
		if (participant->last_seen < place->last_seen)
			place = participant;
	}
	strlcpy(place->name, name, sizeof(place->name));
	place->last_seen = now;
	place->nclaimed = nclaimed;
}


/* ---- what a transaction does -------------------------------------------------- */

/* A mark was set, or counts earlier: tell who acts on it.  No lock is held. */
static void
tell_due(int32 id, TimestampTz due)
{
	if (!is_servers(id))
		saga_duty_at(SAGA_DUTY_ANNOUNCE, due);
	else if (due != DT_NOEND)
		saga_courier_want(SAGA_COURIER_CALLS);
}

/* Something to announce has no entry. */
static void
note_missing(int32 id)
{
	if (is_servers(id))
		pending.courier |= SAGA_COURIER_ALL;
	else
		pending.look = true;
}

/* A breaker was opened or closed: somebody may have to see to it. */
static void
tell_breaker(bool before, bool after)
{
	if (before != after)
		saga_duty_at(SAGA_DUTY_CONDITIONS, GetCurrentTimestamp());
}

/*
 * One note of a transaction that has committed.  Returns when the queue is to
 * be announced, if that is earlier than it was; else DT_NOEND.
 */
static TimestampTz
apply_note(const Note *note, TimestampTz now)
{
	Queue	   *queue = make_queue(note->id, note->name);
	TimestampTz before;
	TimestampTz due;
	bool		was_open;
	bool		is_open;

	if (queue == NULL)
	{
		if (note->announce)
			note_missing(note->id);
		return DT_NOEND;
	}
	mend_times(queue, now);
	before = announcement_due(queue);
	was_open = queue->open;
	queue->used_at = now;
	queue->noffered += note->noffered;
	queue->nclaimed += note->nclaimed;
	queue->nfailed += note->nfailed;
	queue->nexpired += note->nexpired;
	if (note->trial != 0 && note->nclaimed == 0)
		give_back_trial(queue, note, false, now);
	if (note->announce)
		queue->announce = true;
	if (note->looked && note->participant[0] != '\0')
		see_participant(queue, note->participant, note->nclaimed, now);
	if (note->ncompleted > 0)
	{
		count_completed(queue, note->ncompleted, now);
		close_breaker(queue);
	}
	else if (note->nfailed + note->nexpired > 0)
		count_failures(queue, &note->breaker, note->nfailed + note->nexpired,
					   now);
	due = announcement_due(queue);
	is_open = queue->open;
	unlock_queue(queue);
	tell_breaker(was_open, is_open);
	return due < before ? due : DT_NOEND;
}

/* The same for one that was noted by the place of its entry. */
static TimestampTz
apply_place(Queue *queue, int32 id, TimestampTz now)
{
	TimestampTz before = DT_NOEND;
	TimestampTz due = DT_NOEND;

	LWLockAcquire(QUEUE_LOCK(queue), LW_EXCLUSIVE);
	if (is_queue(queue, id))
	{
		mend_times(queue, now);
		before = announcement_due(queue);
		queue->announce = true;
		due = announcement_due(queue);
	}
	else
		note_missing(id);
	unlock_queue(queue);
	return due < before ? due : DT_NOEND;
}

static void
act_on_commit(TimestampTz now)
{
	for (int i = 0; i < pending.nnotes; i++)
		tell_due(pending.notes[i].id, apply_note(&pending.notes[i], now));
	for (int i = 0; pending.more && i < NQUEUES; i++)
		if (pending.more_ids[i] != 0)
			tell_due(pending.more_ids[i],
					 apply_place(&table->queues[i], pending.more_ids[i], now));
	if (pending.look || pending.unplaced != NIL)
		saga_duty_at(SAGA_DUTY_LOOK, now);
	if (pending.courier != 0)
		saga_courier_want(pending.courier);
	saga_duty_at(SAGA_DUTY_LEASES, pending.lease);
	if (pending.ended)
		saga_task_has_ended(now);
}

static void
act_on_abort(TimestampTz now)
{
	for (int i = 0; i < pending.nnotes; i++)
	{
		const Note *note = &pending.notes[i];
		TimestampTz due;
		Queue	   *queue;

		if (note->trial == 0 && note->nclaimed == 0)
			continue;
		queue = lock_queue(note->id, LW_EXCLUSIVE);
		if (queue == NULL)
			continue;
		mend_times(queue, now);
		if (note->trial != 0)
			give_back_trial(queue, note, true, now);
		/* others may have looked while they were locked */
		if (note->nclaimed > 0)
			queue->announce = true;
		due = announcement_due(queue);
		unlock_queue(queue);
		tell_due(note->id, due);
	}
}

static void
remember_own(const char *name)
{
	for (int i = 0; i < own.n; i++)
		if (strcmp(own.names[i], name) == 0)
			return;
	if (own.n < NNOTES)
		strlcpy(own.names[own.n++], name, sizeof(own.names[0]));
}

/* Interrupts are held here; nothing may throw or allocate. */
static void
at_transaction_end(XactEvent event, void *arg)
{
	(void) arg;
	if (!pending.any)
		return;
	switch (event)
	{
		case XACT_EVENT_COMMIT:
			if (table != NULL)
				act_on_commit(GetCurrentTimestamp());
			else
				for (int i = 0; i < pending.nnotes; i++)
					if (pending.notes[i].announce &&
						!is_servers(pending.notes[i].id))
						remember_own(pending.notes[i].name);
			break;
		case XACT_EVENT_ABORT:
			if (table != NULL)
				act_on_abort(GetCurrentTimestamp());
			break;
		case XACT_EVENT_PREPARE:
			break;
		default:
			return;
	}
	if (pending.more)
		memset(pending.more_ids, 0, sizeof(pending.more_ids));
	pending.any = false;
	pending.look = false;
	pending.courier = 0;
	pending.ended = false;
	pending.more = false;
	pending.nnotes = 0;
	pending.lease = DT_NOEND;
	pending.unplaced = NIL;
}

/* Something is noted of the current transaction. */
static void
begin_noting(void)
{
	if (!callback_registered)
	{
		RegisterXactCallback(at_transaction_end, NULL);
		callback_registered = true;
	}
	pending.any = true;
}

/* The note of a queue, and of a participant if one is told; NULL if there is no
 * room for it. */
static Note *
find_note(int32 id, const char *name, const char *participant)
{
	Note	   *note;

	begin_noting();
	for (int i = 0; i < pending.nnotes; i++)
	{
		note = &pending.notes[i];
		if (note->id == id &&
			(participant == NULL || !note->looked ||
			 strcmp(note->participant, participant) == 0))
			return note;
	}
	if (pending.nnotes == NNOTES)
		return NULL;
	note = &pending.notes[pending.nnotes++];
	memset(note, 0, sizeof(Note));
	note->id = id;
	strlcpy(note->name, name, sizeof(note->name));
	return note;
}

/* Have an entry for it; NULL if there is no room.  What is pointed to is not
 * locked. */
static Queue *
reserve_entry(int32 id, const char *name)
{
	Queue	   *queue = make_queue(id, name);

	if (queue == NULL)
		return NULL;
	/* now it is not the one that gives way */
	queue->used_at = GetCurrentTimestamp();
	unlock_queue(queue);
	return queue;
}

/* There is no room to remember that it is to be announced. */
static void
note_unplaced(int32 id, const char *name)
{
	MemoryContext old;
	ListCell   *cell;

	if (is_servers(id))
	{
		pending.courier |= SAGA_COURIER_ALL;
		return;
	}
	foreach(cell, pending.unplaced)
		if (strcmp(lfirst(cell), name) == 0)
			return;
	old = MemoryContextSwitchTo(TopTransactionContext);
	pending.unplaced = lappend(pending.unplaced, pstrdup(name));
	MemoryContextSwitchTo(old);
}

void
saga_qstate_offered(int32 queue, const char *name, int ntasks)
{
	Note	   *note = find_note(queue, name, NULL);
	Queue	   *entry;

	if (note != NULL)
	{
		note->noffered += ntasks;
		if (note->announce)
			return;
		note->announce = true;
	}
	if (table == NULL)
	{
		if (note == NULL)
			note_unplaced(queue, name);
		return;
	}
	entry = reserve_entry(queue, name);
	if (entry == NULL)
	{
		if (note != NULL)
			note->announce = false;
		note_unplaced(queue, name);
	}
	else if (note == NULL)
	{
		pending.more = true;
		pending.more_ids[entry - table->queues] = queue;
	}
}

bool
saga_qstate_next_unplaced(char *name)
{
	if (pending.unplaced == NIL)
		return false;
	strlcpy(name, llast(pending.unplaced), SAGA_MAX_QUEUE_NAME + 1);
	pending.unplaced = list_delete_last(pending.unplaced);
	return true;
}

void
saga_qstate_claimed(int32 queue, const char *name, const char *participant,
					int ntasks)
{
	char		who[SAGA_PARTICIPANT_NAME] = "";
	Note	   *note;

	if (table == NULL)
		return;
	if (participant != NULL)
		memcpy(who, participant,
			   pg_mbcliplen(participant, strlen(participant), sizeof(who) - 1));
	note = find_note(queue, name, who);
	if (note == NULL)
		return;
	note->looked = true;
	memcpy(note->participant, who, sizeof(who));
	note->nclaimed += ntasks;
}

void
saga_qstate_answered(int32 queue, const char *name, const SagaBreaker *breaker,
					 int ncompleted, int nfailed, int nexpired)
{
	Note	   *note;

	if (table == NULL)
		return;
	note = find_note(queue, name, NULL);
	pending.ended = true;
	if (note == NULL)
		return;
	note->breaker = *breaker;
	note->ncompleted += ncompleted;
	note->nfailed += nfailed;
	note->nexpired += nexpired;
}

void
saga_qstate_ended(void)
{
	if (table == NULL)
		return;
	begin_noting();
	pending.ended = true;
}

void
saga_qstate_lease(TimestampTz until)
{
	if (table == NULL)
		return;
	begin_noting();
	pending.lease = Min(pending.lease, until);
}


/* ---- at once ------------------------------------------------------------------ */

/* The breaker is not closed: how many tasks may be claimed now? */
static int
allow_trial(Queue *queue, const SagaBreaker *breaker, int max, Note *note)
{
	TimestampTz now = GetCurrentTimestamp();

	if (!queue->open)
		return max;
	if (breaker->failures == 0)
	{
		close_breaker(queue);
		return max;
	}
	/* it may have been made shorter, and the clock may have been set back */
	queue->pause = Min(queue->pause, breaker->max_pause);
	mend_times(queue, now);
	if (now < queue->until)
		return 0;
	queue->trying = true;
	if (++queue->trial == 0)
		queue->trial = 1;
	queue->until = now + queue->pause;
	queue->alarm = true;
	if (note != NULL)
	{
		note->trial = queue->trial;
		note->breaker = *breaker;
	}
	return 1;
}

int
saga_qstate_allowance(int32 id, const SagaBreaker *breaker, int max)
{
	TimestampTz due;
	Queue	   *queue;
	Note	   *note;
	bool		open;
	char		name[SAGA_MAX_QUEUE_NAME + 1];

	if (table == NULL || max < 1)
		return max;
	queue = lock_queue(id, LW_SHARED);
	if (queue == NULL)
		return max;
	open = queue->open;
	memcpy(name, queue->name, sizeof(name));
	unlock_queue(queue);
	if (!open)
		return max;

	note = find_note(id, name, NULL);
	queue = lock_queue(id, LW_EXCLUSIVE);
	if (queue == NULL)
		return max;
	max = allow_trial(queue, breaker, max, note);
	due = announcement_due(queue);
	open = queue->open;
	unlock_queue(queue);
	tell_due(id, due);
	tell_breaker(true, open);
	return max;
}

void
saga_qstate_forget(int32 id)
{
	Queue	   *queue;

	if (table == NULL)
		return;
	LWLockAcquire(TABLE_LOCK, LW_EXCLUSIVE);
	queue = find_queue(id);
	if (queue != NULL)
	{
		LWLockAcquire(QUEUE_LOCK(queue), LW_EXCLUSIVE);
		free_queue(queue);
		unlock_queue(queue);
	}
	LWLockRelease(TABLE_LOCK);
}

void
saga_qstate_forget_database(Oid database)
{
	if (table == NULL)
		return;
	LWLockAcquire(TABLE_LOCK, LW_EXCLUSIVE);
	for (int i = 0; i < NQUEUES; i++)
	{
		Queue	   *queue = &table->queues[i];

		if (queue->database != database)
			continue;
		LWLockAcquire(QUEUE_LOCK(queue), LW_EXCLUSIVE);
		free_queue(queue);
		unlock_queue(queue);
	}
	LWLockRelease(TABLE_LOCK);
}

void
saga_qstate_close_breaker(int32 id)
{
	TimestampTz due;
	Queue	   *queue;
	bool		was_open;

	if (table == NULL)
		return;
	queue = lock_queue(id, LW_EXCLUSIVE);
	if (queue == NULL)
		return;
	was_open = queue->open;
	close_breaker(queue);
	due = announcement_due(queue);
	unlock_queue(queue);
	tell_due(id, due);
	tell_breaker(was_open, false);
}


/* ---- marks ------------------------------------------------------------------ */

static bool
next_own(char *name)
{
	if (own.n == 0)
		return false;
	memcpy(name, own.names[--own.n], sizeof(own.names[0]));
	return true;
}

/* Take the first mark that counts by now, of the queues of servers or of the
 * others; false if there is none. */
static bool
take_mark(bool servers, int32 *id, char *name)
{
	TimestampTz now = GetCurrentTimestamp();
	bool		found = false;

	LWLockAcquire(TABLE_LOCK, LW_SHARED);
	for (int i = 0; !found && i < NQUEUES; i++)
	{
		Queue	   *queue = &table->queues[i];

		if (queue->database != MyDatabaseId ||
			is_servers(queue->id) != servers)
			continue;
		LWLockAcquire(QUEUE_LOCK(queue), LW_EXCLUSIVE);
		mend_times(queue, now);
		if (announcement_due(queue) <= now)
		{
			queue->announce = queue->alarm = false;
			if (!servers)
				queue->announced_at = now;
			*id = queue->id;
			memcpy(name, queue->name, sizeof(queue->name));
			found = true;
		}
		unlock_queue(queue);
	}
	LWLockRelease(TABLE_LOCK);
	return found;
}

/* When the first mark of those counts; DT_NOEND if there is none. */
static TimestampTz
first_mark(bool servers)
{
	TimestampTz when = DT_NOEND;

	if (table == NULL)
		return DT_NOEND;
	LWLockAcquire(TABLE_LOCK, LW_SHARED);
	for (int i = 0; i < NQUEUES; i++)
	{
		Queue	   *queue = &table->queues[i];
		TimestampTz due;

		if (queue->database != MyDatabaseId ||
			is_servers(queue->id) != servers)
			continue;
		LWLockAcquire(QUEUE_LOCK(queue), LW_SHARED);
		due = announcement_due(queue);
		unlock_queue(queue);
		when = Min(when, due);
	}
	LWLockRelease(TABLE_LOCK);
	return when;
}

bool
saga_qstate_next_announcement(char *name)
{
	int32		id;

	return table == NULL ? next_own(name) : take_mark(false, &id, name);
}

TimestampTz
saga_qstate_announce_at(void)
{
	return first_mark(false);
}

bool
saga_qstate_next_call(int32 *queue)
{
	char		name[SAGA_MAX_QUEUE_NAME + 1];

	return table != NULL && take_mark(true, queue, name);
}

TimestampTz
saga_qstate_call_at(void)
{
	return first_mark(true);
}


/* ---- views ----------------------------------------------------------------------- */

/* Completed in the last minute: of the oldest bucket that part which has not
 * been left behind yet. */
static double
rate_of(const Queue *queue, TimestampTz now)
{
	int64		number = now / BUCKET_TIME;
	double		passed = (double) (now % BUCKET_TIME) / BUCKET_TIME;
	double		n = 0;

	for (int i = 0; i < NBUCKETS; i++)
	{
		const Bucket *bucket = &queue->buckets[i];

		if (bucket->number == number - RATE_BUCKETS)
			n += bucket->ncompleted * (1 - passed);
		else if (bucket->number > number - RATE_BUCKETS &&
				 bucket->number <= number)
			n += bucket->ncompleted;
	}
	return n / (RATE_BUCKETS * BUCKET_TIME / USECS_PER_SEC);
}

const char *
saga_breaker_state_name(SagaBreakerState state)
{
	switch (state)
	{
		case SAGA_BREAKER_CLOSED:
			return "closed";
		case SAGA_BREAKER_OPEN:
			return "open";
		case SAGA_BREAKER_HALF_OPEN:
			return "half open";
	}
	return NULL;
}

bool
saga_qstate_info(int32 id, SagaQueueInfo *info)
{
	TimestampTz now = GetCurrentTimestamp();
	Queue	   *queue;

	memset(info, 0, sizeof(*info));
	if (table == NULL)
		return false;
	queue = lock_queue(id, LW_SHARED);
	if (queue == NULL)
		return false;
	info->noffered = queue->noffered;
	info->nclaimed = queue->nclaimed;
	info->ncompleted = queue->ncompleted;
	info->nfailed = queue->nfailed;
	info->nexpired = queue->nexpired;
	info->rate = rate_of(queue, now);
	info->failures = queue->failures;
	if (!queue->open)
		info->breaker = SAGA_BREAKER_CLOSED;
	else if (queue->trying || queue->until <= now)
		info->breaker = SAGA_BREAKER_HALF_OPEN;
	else
	{
		info->breaker = SAGA_BREAKER_OPEN;
		info->breaker_until = queue->until;
	}
	memcpy(info->participants, queue->participants,
		   sizeof(info->participants));
	unlock_queue(queue);
	return true;
}


/* ---- the segment ------------------------------------------------------------------ */

static void
request_table(void)
{
	if (prev_shmem_request_hook)
		prev_shmem_request_hook();
	RequestAddinShmemSpace(MAXALIGN(sizeof(QueueTable)));
	RequestNamedLWLockTranche("saga_queues", NLOCKS);
}

static void
startup_table(void)
{
	bool		found;

	if (prev_shmem_startup_hook)
		prev_shmem_startup_hook();

	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	table = ShmemInitStruct("saga queues", sizeof(QueueTable), &found);
	locks = GetNamedLWLockTranche("saga_queues");
	if (!found)
		memset(table, 0, sizeof(QueueTable));
	LWLockRelease(AddinShmemInitLock);
}

void
saga_qstate_init(void)
{
	prev_shmem_request_hook = shmem_request_hook;
	shmem_request_hook = request_table;
	prev_shmem_startup_hook = shmem_startup_hook;
	shmem_startup_hook = startup_table;
}
