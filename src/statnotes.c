/*
 * statnotes.c
 *		Owns what a transaction notes for the statistics, until it ends.
 *
 * A row that is written tells here how many sagas there are more or less, and
 * in the transaction's commit callback all of that is added to shared memory,
 * under one lock, whatever was done.  Nothing is allocated then: the notes are.
 *
 * saga.begin() may stand in a subtransaction: a note has its level.  Deeper ones
 * come later, so the notes are a stack: what a subtransaction did is on top when
 * it ends, and is dropped, or becomes its parent's.
 *
 * Any process; one that dies takes its notes with it, as it does its transaction.
 */
#include "postgres.h"

#include "access/transam.h"
#include "access/xact.h"
#include "utils/memutils.h"

#include "statnotes.h"

/* Room at first, and what is kept of it between transactions. */
#define ROOM_AT_FIRST	16
#define ROOM_KEPT		256

static struct
{
	SagaStatsNote *notes;
	int			n;
	int			room;
	bool		uncertain;
	char		gid[SAGA_MAX_GID];	/* "": it is not about to be prepared */
}			pending;

static bool callbacks_registered = false;

static void
clear_notes(void)
{
	pending.n = 0;
	pending.uncertain = false;
	pending.gid[0] = '\0';
}

/* Add what one has noted to the other. */
static void
merge_notes(SagaStatsNote *into, const SagaStatsNote *from)
{
	into->moves |= from->moves;
	for (int i = 0; i < SAGA_NGAUGES; i++)
		into->gauges[i] += from->gauges[i];
	saga_tally_merge(&into->tally, &from->tally);
}

static bool
is_of(const SagaStatsNote *note, int32 version, int position, int operation)
{
	return note->version == version && note->position == position &&
		note->operation == operation;
}

/* The note of that level, or -1; the ones from "end" on are not looked at. */
static int
find_note(int level, int end, int32 version, int position, int operation)
{
	for (int i = end - 1; i >= 0 && pending.notes[i].level >= level; i--)
		if (pending.notes[i].level == level &&
			is_of(&pending.notes[i], version, position, operation))
			return i;
	return -1;
}

/* Nothing may throw or allocate. */
static void
at_subtransaction_end(SubXactEvent event, SubTransactionId id,
					  SubTransactionId parent, void *arg)
{
	int			level;
	int			first = pending.n;

	(void) id;
	(void) parent;
	(void) arg;
	if (pending.n == 0 || (event != SUBXACT_EVENT_COMMIT_SUB &&
						   event != SUBXACT_EVENT_ABORT_SUB))
		return;
	level = GetCurrentTransactionNestLevel();
	while (first > 0 && pending.notes[first - 1].level >= level)
		first--;
	if (event == SUBXACT_EVENT_ABORT_SUB)
	{
		pending.n = first;
		return;
	}
	for (int i = first; i < pending.n; i++)
	{
		SagaStatsNote *note = &pending.notes[i];
		int			same = find_note(level - 1, first, note->version,
									 note->position, note->operation);

		note->level = level - 1;
		if (same >= 0)
			merge_notes(&pending.notes[same], note);
		else
		{
			if (i != first)
				pending.notes[first] = *note;
			first++;
		}
	}
	pending.n = first;
}

/* Interrupts are held here; nothing may throw or allocate. */
static void
at_transaction_end(XactEvent event, void *arg)
{
	uint64		xid;

	(void) arg;
	switch (event)
	{
		case XACT_EVENT_COMMIT:
		case XACT_EVENT_PREPARE:
			break;
		case XACT_EVENT_ABORT:
			clear_notes();
			return;
		default:
			return;
	}
	if (pending.n == 0 && !pending.uncertain)
	{
		pending.gid[0] = '\0';
		return;
	}
	xid = U64FromFullTransactionId(GetTopFullTransactionIdIfAny());
	if (event == XACT_EVENT_COMMIT)
		saga_stats_apply(pending.notes, pending.n, xid, pending.uncertain);
	else
		saga_stats_keep(pending.notes, pending.n, xid,
						pending.uncertain ? "" : pending.gid);
	clear_notes();
}

static void
register_callbacks(void)
{
	if (callbacks_registered)
		return;
	RegisterXactCallback(at_transaction_end, NULL);
	RegisterSubXactCallback(at_subtransaction_end, NULL);
	callbacks_registered = true;
}

static void
make_room(void)
{
	Size		size;

	register_callbacks();
	if (pending.n == 0 && pending.room > ROOM_KEPT)
	{
		pfree(pending.notes);
		pending.notes = NULL;
		pending.room = 0;
	}
	if (pending.n < pending.room)
		return;
	size = (pending.room == 0 ? ROOM_AT_FIRST : 2 * pending.room) *
		sizeof(SagaStatsNote);
	if (pending.notes == NULL)
		pending.notes = MemoryContextAlloc(TopMemoryContext, size);
	else
		pending.notes = repalloc(pending.notes, size);
	pending.room = size / sizeof(SagaStatsNote);
}

/* The current subtransaction's note; a new one if there is none. */
static SagaStatsNote *
get_note(const char *definition, int32 version, const char *step, int position,
		 int operation)
{
	int			level = GetCurrentTransactionNestLevel();
	int			i = find_note(level, pending.n, version, position, operation);
	SagaStatsNote *note;

	if (i >= 0)
		return &pending.notes[i];
	make_room();
	note = &pending.notes[pending.n++];
	memset(note, 0, sizeof(SagaStatsNote));
	note->version = version;
	note->position = position;
	note->operation = operation;
	note->level = level;
	strlcpy(note->definition, definition, sizeof(note->definition));
	strlcpy(note->step, step, sizeof(note->step));
	return note;
}

static void
count_as(SagaStatsNote *note, SagaCounted as, int n)
{
	if (as.status >= SAGA_NUNFINISHED)
		return;
	note->gauges[as.status] += n;
	note->gauges[SAGA_NUNFINISHED + as.reason] += n;
	note->moves = true;
}

void
saga_stats_begun(const char *definition, int32 version, SagaCounted as)
{
	SagaStatsNote *note;

	if (!saga_stats_available())
		return;
	note = get_note(definition, version, "", -1, -1);
	count_as(note, as, 1);
	note->tally.counts[SAGA_COUNT_BEGUN]++;
}

static int
count_of_end(SagaStatus status)
{
	switch (status)
	{
		case SAGA_STATUS_COMPLETED:
			return SAGA_COUNT_COMPLETED;
		case SAGA_STATUS_COMPENSATED:
			return SAGA_COUNT_COMPENSATED;
		default:
			return SAGA_COUNT_ABANDONED;
	}
}

void
saga_stats_moved(const char *definition, int32 version, SagaCounted from,
				 SagaCounted to, int64 duration)
{
	SagaStatsNote *note;

	if (!saga_stats_available() ||
		(from.status == to.status && from.reason == to.reason))
		return;
	note = get_note(definition, version, "", -1, -1);
	count_as(note, from, -1);
	count_as(note, to, 1);
	if (to.status >= SAGA_NUNFINISHED)
	{
		note->tally.counts[count_of_end(to.status)]++;
		saga_tally_duration(&note->tally, duration);
	}
}

void
saga_stats_attempt(const char *definition, int32 version, const char *step,
				   int position, SagaOperation operation, bool succeeded,
				   int64 duration)
{
	SagaStatsNote *note;

	if (!saga_stats_available())
		return;
	note = get_note(definition, version, step, position, operation);
	note->tally.counts[succeeded ? SAGA_COUNT_SUCCEEDED : SAGA_COUNT_FAILED]++;
	saga_tally_duration(&note->tally, duration);
}

void
saga_stats_uncertain(void)
{
	if (!saga_stats_available())
		return;
	register_callbacks();
	pending.uncertain = true;
}

void
saga_stats_preparing(const char *gid)
{
	if (pending.n > 0 || pending.uncertain)
		strlcpy(pending.gid, gid, sizeof(pending.gid));
}
