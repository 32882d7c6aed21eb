/*
 * test_machine_histories.c
 *		Proves that the state machine keeps the promises P4, P5 and P6 in every
 *		history of every small definition.
 *
 * The enumeration keeps no SagaState: between two events there is only a
 * record of what the tables of the extension hold, from which the state is
 * built anew, so that each event comes after a crash.  (Gates alone are in no
 * table: they are kept in the record, and a crash that forgets them is an event
 * among others.)  States that have been seen are not gone through again.  What
 * may and must happen is said in machine_oracle.h.
 *
 * Of what is handed out the outcome may become unknown at any time.  All that
 * can come of it then is tried in every status, and counted: see nreturned.
 *
 * Time does not pass here: a time is now, ahead, or over, and "ticks" bring
 * those ahead to now, in any order.
 *
 * The definitions are parted so that their number stays in bounds: all graphs
 * with few kinds of events, small graphs with all shapes of steps in pairs, the
 * smallest with everything, and some that are chosen.  What is larger than that
 * is for test_machine_walks.c.
 */
#include <signal.h>

#include "machine_oracle.h"

/* The kinds of events that are followed, beside success and failure. */
#define WITH_CANCEL		(1 << 0)
#define WITH_PEOPLE		(1 << 1)	/* retry, skip */
#define WITH_PAUSE		(1 << 2)
#define WITH_CLOCK		(1 << 3)	/* a start time and a deadline */
#define WITH_RETRY		(1 << 4)	/* passing failures: two attempts */
#define WITH_LATER		(1 << 5)
#define WITH_LOST		(1 << 6)
#define WITH_HANDOUT	(1 << 7)	/* started, cancelled, revoked */
#define WITH_EXPIRY		(1 << 8)	/* what is handed out has a time */
#define WITH_UNKNOWN	(1 << 9)
#define WITH_CHOICE		(1 << 10)	/* not taken */
#define WITH_SIGNAL		(1 << 11)
#define WITH_CRASH		(1 << 12)	/* gates are forgotten */
#define EXACT			(1 << 13)	/* all counters of all that has ended */
#define WITH_ALL		((1 << 13) - 1)

#define MAX_WORDS		(3 + MAX_POOL * SAGA_NOPERATION)

/* An exploration that grows larger is cut, and said to be. */
#define MAX_RECORDS		1800

/* ---------------------------------------------------------------------
 * The records: what is left of a state after a crash
 * ---------------------------------------------------------------------
 */

typedef struct Record
{
	uint32_t	words[MAX_WORDS];
} Record;

/* A time, as far as it matters. */
static uint32_t
save_time(SagaTime time)
{
	if (time == 0)
		return 0;
	if (time <= NOW)
		return 1;
	return time == SAGA_TIME_NEVER ? 3 : 2;
}

static SagaTime
load_time(uint32_t word, SagaTime ahead)
{
	switch (word & 3)
	{
		case 0:
			return 0;
		case 1:
			return NOW;
		case 2:
			return ahead;
		default:
			return SAGA_TIME_NEVER;
	}
}

/*
 * The number of attempts is told apart no further than the other counters
 * require: LATER would make it grow without end.  Of what has ended, unless
 * it is to be exact, just whether it was by crashes.
 */
static uint32_t
save_op(const SagaOpState *op, bool exact)
{
	uint32_t	failures = (uint32_t) op->failures;
	uint32_t	crashes = (uint32_t) op->crashes;
	uint32_t	attempts;

	if (!exact && (ended_well(op) || op->status == SAGA_OP_FAILED))
	{
		failures = 0;
		crashes = op->status == SAGA_OP_FAILED &&
			crashes >= SAGA_MAX_CRASHES ? crashes : 0;
	}
	attempts = failures + crashes;
	if (attempts == 0 && op->attempts > 0)
		attempts = 1;
	return (uint32_t) op->status | (uint32_t) op->gate << 3 |
		(uint32_t) op->unknown << 5 | (uint32_t) op->cancelled << 6 |
		(uint32_t) op->surplus << 7 | (uint32_t) op->signalled << 8 |
		attempts << 9 | failures << 13 | crashes << 17 |
		save_time(op->due_at) << 21;
}

static void
load_op(uint32_t word, SagaOpState *op)
{
	op->status = (SagaOpStatus) (word & 7);
	op->gate = (SagaGate) (word >> 3 & 3);
	op->unknown = word >> 5 & 1;
	op->cancelled = word >> 6 & 1;
	op->surplus = word >> 7 & 1;
	op->signalled = word >> 8 & 1;
	op->attempts = (int) (word >> 9 & 15);
	op->failures = (int) (word >> 13 & 15);
	op->crashes = (int) (word >> 17 & 15);
	op->due_at = load_time(word >> 21,
						   op->status == SAGA_OP_WAITING &&
						   op->gate != SAGA_GATE_QUEUED ? NOW + PAUSE :
						   NOW + LEASE);
}

/* Only the operations that the step has are kept. */
static bool
has_operation(const Definition *d, int step, int operation)
{
	return operation == ACTION ||
		(operation == COMPENSATION && d->steps[step].has_compensation) ||
		(operation == CONFIRMATION && d->steps[step].has_confirmation);
}

static void
save(const Definition *d, const Saga *s, bool exact, Record *record)
{
	const SagaState *state = &s->state;
	bool		clock = exact || !state->backward || state->goal >= 0;
	uint32_t   *word = record->words;
	int			i;
	int			j;
	int			k;

	word[0] = (uint32_t) state->status | (uint32_t) state->backward << 4 |
		(uint32_t) (state->goal + 1) << 5 | (uint32_t) state->released << 9 |
		(clock ? save_time(state->start_at) : 1) << 10 |
		(clock ? save_time(state->deadline) : 3) << 12;
	word[1] = word[2] = 0;
	for (i = 0; i < d->rules.nsteps; i++)
	{
		word[1] |= (uint32_t) s->recoveries[i] << (2 * i);
		word[2] |= (uint32_t) (s->steps[i].nelements + 1) << (3 * i);
	}
	word += 3;
	for (i = 0; i < d->rules.nsteps; i++)
	{
		for (j = 0; j < d->room[i]; j++)
		{
			for (k = 0; k < SAGA_NOPERATION; k++)
			{
				if (has_operation(d, i, k))
					*word++ = j < s->steps[i].nelements ?
						save_op(look_at(s, i, j, (SagaOperation) k), exact) :
						0;
			}
		}
	}
}

static void
load(const Definition *d, const uint32_t *word, Saga *s)
{
	SagaState  *state = &s->state;
	int			i;
	int			j;
	int			k;

	memset(s, 0, offsetof(Saga, pool) +
		   (size_t) d->npool * sizeof(SagaElementState));
	state->status = (SagaStatus) (word[0] & 15);
	state->backward = word[0] >> 4 & 1;
	state->goal = (int16_t) ((int) (word[0] >> 5 & 15) - 1);
	state->released = word[0] >> 9 & 1;
	state->child = d->child;
	state->start_at = load_time(word[0] >> 10, AHEAD);
	state->deadline = load_time(word[0] >> 12, AHEAD);
	state->nsteps = d->rules.nsteps;
	attach(d, s);
	for (i = 0; i < d->rules.nsteps; i++)
	{
		s->recoveries[i] = (int) (word[1] >> (2 * i) & 3);
		s->steps[i].nelements = (int) (word[2] >> (3 * i) & 7) - 1;
	}
	word += 3;
	for (i = 0; i < d->rules.nsteps; i++)
	{
		for (j = 0; j < d->room[i]; j++)
		{
			for (k = 0; k < SAGA_NOPERATION; k++)
			{
				if (has_operation(d, i, k))
					load_op(*word++, op_of(s, i, j, (SagaOperation) k));
			}
		}
	}
	saga_machine_loaded(&d->rules, state);
}

/* ---------------------------------------------------------------------
 * The enumeration
 * ---------------------------------------------------------------------
 */

/* How a history goes from one state to the next. */
typedef enum EdgeKind
{
	EDGE_SYSTEM,				/* outcomes and the clock */
	EDGE_WHIM,					/* likewise, but for ever if the step wants */
	EDGE_PERSON					/* or a parent */
} EdgeKind;

typedef struct Edge
{
	int			from;
	int			to;
	EdgeKind	kind;
} Edge;

typedef struct Exploration
{
	const Definition *d;
	int			with;			/* the events that are followed */
	int			nwords;			/* of a record */
	uint32_t   *records;
	int			nrecords;
	int			records_size;
	int		   *table;			/* hash table of positions in records, or -1 */
	int			table_size;		/* a power of two */
	Edge	   *edges;
	int			nedges;
	int			edges_size;
	int			current;		/* the record whose events are tried */
	bool		cut;
	View		view;			/* of the current state */
	Saga		before;
	Saga		after;
	bool		clean;			/* "after" is as "before" */
	const char *wrong;			/* the first thing that was */
} Exploration;

/* Sums over all explorations. */
static long total_definitions = 0;
static long total_states = 0;
static long total_events = 0;
static long total_cut = 0;
static double total_histories = 0;

/*
 * Outcomes of operations that were handed out: in a saga that goes forward or
 * back, in this status, of this operation, asked back or not, known until then
 * or not, at the first attempt or a later one.
 */
static long nreturned[2][SAGA_NSTATUS][SAGA_NOPERATION][2][2][2]
[SAGA_EVENT_REVOKED + 1];

/* What an assertion of the machine is about, should one fail. */
static const Exploration *now_exploring = NULL;

static void *
must_realloc(void *memory, size_t size)
{
	memory = realloc(memory, size);
	if (memory == NULL)
	{
		printf("Bail out! out of memory\n");
		exit(1);
	}
	return memory;
}

static uint64_t
hash_words(const uint32_t *words, int nwords)
{
	uint64_t	hash = UINT64_C(14695981039346656037);
	int			i;

	for (i = 0; i < nwords; i++)
	{
		hash = (hash ^ words[i]) * UINT64_C(1099511628211);
		hash ^= hash >> 29;
	}
	return hash;
}

static uint32_t *
nth_record(const Exploration *x, int n)
{
	return &x->records[(size_t) n * (size_t) x->nwords];
}

/* The place in the hash table where the record is, or would be. */
static int
find_place(const Exploration *x, const uint32_t *words)
{
	int			mask = x->table_size - 1;
	int			place = (int) (hash_words(words, x->nwords) &
							   (uint64_t) mask);

	while (x->table[place] >= 0 &&
		   memcmp(nth_record(x, x->table[place]), words,
				  (size_t) x->nwords * sizeof(uint32_t)) != 0)
		place = (place + 1) & mask;
	return place;
}

static void
grow_table(Exploration *x)
{
	int			i;

	x->table_size = x->table_size > 0 ? 2 * x->table_size : 1 << 8;
	x->table = must_realloc(x->table, (size_t) x->table_size * sizeof(int));
	for (i = 0; i < x->table_size; i++)
		x->table[i] = -1;
	for (i = 0; i < x->nrecords; i++)
		x->table[find_place(x, nth_record(x, i))] = i;
}

/* The position of a record, which is kept if it is new; -1: there is no room. */
static int
intern(Exploration *x, const Record *record)
{
	int			place;

	if (2 * x->nrecords >= x->table_size)
		grow_table(x);
	place = find_place(x, record->words);
	if (x->table[place] >= 0)
		return x->table[place];
	if (x->nrecords >= MAX_RECORDS)
	{
		x->cut = true;
		return -1;
	}
	if (x->nrecords == x->records_size)
	{
		x->records_size = x->records_size > 0 ? 2 * x->records_size : 256;
		x->records = must_realloc(x->records, (size_t) x->records_size *
								  (size_t) x->nwords * sizeof(uint32_t));
	}
	memcpy(nth_record(x, x->nrecords), record->words,
		   (size_t) x->nwords * sizeof(uint32_t));
	x->table[place] = x->nrecords;
	return x->nrecords++;
}

static void
add_edge(Exploration *x, int to, EdgeKind kind)
{
	if (to < 0 || to == x->current)
	{
		if (to == x->current && kind == EDGE_SYSTEM && x->wrong == NULL)
			x->wrong = "a history without people goes in a circle of one";
		return;
	}
	if (x->nedges == x->edges_size)
	{
		x->edges_size = x->edges_size > 0 ? 2 * x->edges_size : 1024;
		x->edges = must_realloc(x->edges, (size_t) x->edges_size *
								sizeof(Edge));
	}
	x->edges[x->nedges].from = x->current;
	x->edges[x->nedges].to = to;
	x->edges[x->nedges].kind = kind;
	x->nedges++;
}

static void
complain(Exploration *x, const char *wrong, const Saga *before,
		 const SagaEvent *event, const Saga *after)
{
	if (x->wrong != NULL)
		return;
	x->wrong = wrong;
	tap_note("WRONG: %s", wrong);
	print_definition(x->d);
	print_saga(x->d, before);
	if (event != NULL)
		print_event(event);
	if (after != NULL)
		print_saga(x->d, after);
}

static void
reach(Exploration *x, const Saga *after, EdgeKind kind)
{
	Record		record;

	save(x->d, after, x->with & EXACT, &record);
	add_edge(x, intern(x, &record), kind);
}

/* P6, for each kind of event. */
static void
try_on_final(Exploration *x, const Saga *final)
{
	static Saga after;
	int			i;

	copy_saga(x->d, &after, final);
	for (i = 0; i < SAGA_NEVENT; i++)
	{
		SagaEvent	event = make_event((SagaEventKind) i, 0, 0, ACTION);
		SagaVerdict verdict;

		verdict = saga_machine_apply(&x->d->rules, &after.state, &event);
		total_events++;
		if (verdict != SAGA_VERDICT_FINAL ||
			!is_unchanged(x->d, final, &after))
			complain(x, "P6: a final state was changed", final, &event,
					 &after);
	}
}

static EdgeKind
kind_of_edge(const Exploration *x, const SagaEvent *event)
{
	switch (event->kind)
	{
		case SAGA_EVENT_LATER:
			return EDGE_WHIM;
		case SAGA_EVENT_REVOKED:
			return event->operation == ACTION &&
				is_unneeded(&x->before, &x->view, event->step) ?
				EDGE_SYSTEM : EDGE_WHIM;
		case SAGA_EVENT_QUEUED:
			return look_at(&x->before, event->step, event->element,
						   ACTION)->gate == SAGA_GATE_QUEUED ?
				EDGE_WHIM : EDGE_SYSTEM;
		default:
			return event->kind >= SAGA_EVENT_RELEASE ? EDGE_PERSON :
				EDGE_SYSTEM;
	}
}

static void
count_return(const Exploration *x, const SagaEvent *event)
{
	const SagaState *state = &x->before.state;
	const SagaOpState *op;

	if (event->kind > SAGA_EVENT_REVOKED)
		return;
	op = look_at(&x->before, event->step, event->element, event->operation);
	if (op->status == SAGA_OP_RUNNING)
		nreturned[state->backward][state->status][event->operation]
			[op->cancelled][op->unknown][op->attempts > 0][event->kind]++;
}

/* The whole of the oracle's questions about one event. */
static const char *
judge_applied(Exploration *x, const SagaEvent *event)
{
	static Saga expected;
	const char *wrong;

	count_return(x, event);
	copy_saga(x->d, &expected, &x->before);
	oracle_make(x->d, &expected, &x->view, event);
	wrong = compare_saga(x->d, &x->before, &expected, &x->after, event);
	if (wrong == NULL)
		wrong = judge_change(x->d, &x->before, &x->view, &x->after, event);
	if (wrong == NULL)
		wrong = saga_machine_check(&x->d->rules, &x->after.state);
	return wrong;
}

static void
try_event(Exploration *x, SagaEvent *event, bool follow)
{
	SagaVerdict expected;
	SagaVerdict verdict;
	const char *wrong = NULL;

	if (!x->clean)
		copy_saga(x->d, &x->after, &x->before);
	x->clean = false;
	if (event->kind == SAGA_EVENT_EXPANDED && event->step >= 0 &&
		event->step < x->d->rules.nsteps)
		event->elements = x->after.steps[event->step].elements;
	expected = oracle_verdict(x->d, &x->before, &x->view, event);
	verdict = saga_machine_apply(&x->d->rules, &x->after.state, event);
	total_events++;
	if (verdict != expected)
	{
		tap_note("verdict %d, expected %d", (int) verdict, (int) expected);
		wrong = "the verdict is wrong";
	}
	else if (verdict != SAGA_VERDICT_APPLIED)
	{
		x->clean = is_unchanged(x->d, &x->before, &x->after);
		wrong = x->clean ? NULL : "a refused event has changed something";
	}
	else
		wrong = judge_applied(x, event);
	if (wrong != NULL)
		complain(x, wrong, &x->before, event, &x->after);
	else if (verdict != SAGA_VERDICT_APPLIED)
		return;
	else if (event->kind == SAGA_EVENT_ABANDON)
		try_on_final(x, &x->after); /* and there it ends: not gone through */
	else if (follow)
		reach(x, &x->after, kind_of_edge(x, event));
}

/* Is this kind of event one that is followed? */
static bool
is_followed(int with, SagaEventKind kind)
{
	switch (kind)
	{
		case SAGA_EVENT_LATER:
			return with & WITH_LATER;
		case SAGA_EVENT_LOST:
			return with & WITH_LOST;
		case SAGA_EVENT_NOT_TAKEN:
			return with & WITH_CHOICE;
		case SAGA_EVENT_REVOKED:
		case SAGA_EVENT_STARTED:
		case SAGA_EVENT_CANCELLED:
			return with & WITH_HANDOUT;
		case SAGA_EVENT_SIGNALLED:
			return with & WITH_SIGNAL;
		case SAGA_EVENT_CANCEL:
			return with & WITH_CANCEL;
		case SAGA_EVENT_PAUSE:
		case SAGA_EVENT_RESUME:
			return with & WITH_PAUSE;
		case SAGA_EVENT_RETRY:
		case SAGA_EVENT_SKIP:
			return with & WITH_PEOPLE;
		default:
			return true;
	}
}

static void
try_operation(Exploration *x, int step, int element, SagaOperation operation,
			  bool everything)
{
	bool		out = x->with & WITH_UNKNOWN && !everything &&
		look_at(&x->before, step, element, operation)->status ==
		SAGA_OP_RUNNING;
	int			i;

	for (i = 0; names_operation((SagaEventKind) i); i++)
	{
		SagaEvent	event = make_event((SagaEventKind) i, step, element,
									   operation);
		bool		follow = is_followed(x->with, event.kind);
		bool		lock = (i == SAGA_EVENT_QUEUED || i == SAGA_EVENT_GRANTED) &&
			!x->d->steps[step].exclusive;

		if (!everything && (!follow || lock) &&
			!(out && i <= SAGA_EVENT_REVOKED))
			continue;
		if (i == SAGA_EVENT_FAILED)
		{
			event.passing = false;
			try_event(x, &event, true);
			event.passing = true;
			if (!(x->with & WITH_RETRY) && !everything && !out)
				continue;
			follow = x->with & WITH_RETRY;
		}
		try_event(x, &event, follow);
		if (i == SAGA_EVENT_STARTED || i == SAGA_EVENT_QUEUED)
		{
			event.due_at = NOW + LEASE;
			if (everything || x->with & WITH_EXPIRY)
				try_event(x, &event, follow && x->with & WITH_EXPIRY);
		}
	}
}

static void
try_operations(Exploration *x, bool everything)
{
	int			i;
	int			j;
	int			k;

	for (i = 0; i < x->d->rules.nsteps; i++)
	{
		for (j = everything ? -1 : 0;
			 j < x->before.steps[i].nelements + everything; j++)
		{
			for (k = 0; k < SAGA_NOPERATION; k++)
			{
				if (everything || has_operation(x->d, i, k))
					try_operation(x, i, j, (SagaOperation) k,
								  everything);
			}
		}
		for (j = everything ? -1 : 0; j <= x->d->room[i]; j++)
		{
			SagaEvent	event = make_event(SAGA_EVENT_EXPANDED, i, 0, ACTION);

			event.nelements = j;
			if (everything || x->d->steps[i].foreach)
				try_event(x, &event, j <= x->d->room[i]);
		}
	}
}

static void
try_people_and_clock(Exploration *x, bool everything)
{
	int			i;
	int			step;
	int			element;

	for (i = SAGA_EVENT_START; i < SAGA_NEVENT; i++)
	{
		SagaEvent	event = make_event((SagaEventKind) i, -1, -1, ACTION);
		bool		follow = is_followed(x->with, event.kind);

		if (i != SAGA_EVENT_RETRY && i != SAGA_EVENT_SKIP)
		{
			try_event(x, &event, follow);
			continue;
		}
		if (!follow && !everything)
			continue;
		for (step = -1; step <= x->d->rules.nsteps; step++)
		{
			int			n = step < 0 || step == x->d->rules.nsteps ? 1 :
				x->before.steps[step].nelements + 1;

			for (element = -1; element < (n > 2 ? n : 1); element++)
			{
				event.step = step;
				event.element = element;
				try_event(x, &event, follow);
			}
		}
	}
}

/* The caller has changed the state itself. */
static void
reach_changed(Exploration *x, Saga *changed, EdgeKind kind)
{
	const char *wrong;

	saga_machine_loaded(&x->d->rules, &changed->state);
	wrong = saga_machine_check(&x->d->rules, &changed->state);
	if (wrong != NULL)
		complain(x, wrong, &x->before, NULL, changed);
	reach(x, changed, kind);
}

/* Time passes: each time that is ahead may be the next to come. */
static void
try_ticks(Exploration *x)
{
	static Saga after;
	int			n = x->d->npool * SAGA_NOPERATION;
	int			i;

	copy_saga(x->d, &after, &x->before);
	for (i = 0; i < n; i++)
	{
		SagaOpState *op = &after.pool[i / SAGA_NOPERATION].op[i %
															 SAGA_NOPERATION];
		SagaTime	due_at = op->due_at;

		if (due_at <= NOW || due_at == SAGA_TIME_NEVER)
			continue;
		op->due_at = NOW;
		reach_changed(x, &after, EDGE_SYSTEM);
		op->due_at = due_at;
	}
	copy_saga(x->d, &after, &x->before);
	after.state.start_at = NOW;
	if (x->before.state.start_at > NOW)
		reach_changed(x, &after, EDGE_SYSTEM);
	copy_saga(x->d, &after, &x->before);
	after.state.deadline = NOW;
	if (x->before.state.deadline == AHEAD)
		reach_changed(x, &after, EDGE_SYSTEM);
}

/*
 * Nobody knows any more whether an operation that is out has had its effect.
 * The machine is not told: it is to be sound as it is.
 */
static void
try_unknown(Exploration *x)
{
	static Saga after;
	int			i;

	copy_saga(x->d, &after, &x->before);
	for (i = 0; i < x->d->npool * SAGA_NOPERATION; i++)
	{
		SagaOpState *op = &after.pool[i / SAGA_NOPERATION].op[i %
															 SAGA_NOPERATION];
		const char *wrong;

		if (op->status != SAGA_OP_RUNNING || op->unknown)
			continue;
		op->unknown = true;
		wrong = saga_machine_check(&x->d->rules, &after.state);
		if (wrong != NULL)
			complain(x, wrong, &x->before, NULL, &after);
		reach(x, &after, EDGE_SYSTEM);
		op->unknown = false;
	}
}

/* A crash: what no table holds is forgotten. */
static void
try_crash(Exploration *x)
{
	static Saga after;
	bool		changed = false;
	int			i;

	copy_saga(x->d, &after, &x->before);
	for (i = 0; i < x->d->npool; i++)
	{
		SagaOpState *action = &after.pool[i].op[ACTION];

		if (action->gate == SAGA_GATE_QUEUED)
			action->due_at = action->status == SAGA_OP_WAITING ? NOW : 0;
		changed |= action->gate != SAGA_GATE_CLOSED;
		action->gate = SAGA_GATE_CLOSED;
	}
	if (changed)
		reach_changed(x, &after, EDGE_WHIM);
}

/* With little room, the first of the tasks are named. */
static const char *
judge_room(const Exploration *x, const SagaTodo *todo, const SagaTask *tasks)
{
	SagaTodo	less;
	SagaTask	some[MAX_TASKS];
	int			max = 1 + (x->current & 1);

	saga_machine_next(&x->d->rules, &x->before.state, NOW, &less, some, max);
	if (less.ntasks != (todo->ntasks < max ? todo->ntasks : max) ||
		memcmp(some, tasks, (size_t) less.ntasks * sizeof(SagaTask)) != 0)
		return "with less room other tasks are named";
	return NULL;
}

static void
visit(Exploration *x, int n)
{
	SagaTodo	todo;
	SagaTask	tasks[MAX_TASKS];
	const char *wrong;
	bool		everything;

	x->current = n;
	load(x->d, nth_record(x, n), &x->before);
	look(x->d, &x->before, &x->view);
	x->clean = false;
	everything = x->with & EXACT || n < 3 ||
		(hash_words(nth_record(x, n), x->nwords) >> 20 & 63) == 0;
	wrong = saga_machine_check(&x->d->rules, &x->before.state);
	if (wrong == NULL)
		wrong = judge_state(x->d, &x->before, &x->view);
	if (wrong == NULL)
	{
		memset(tasks, 0, sizeof(tasks[0]) * 16);
		saga_machine_next(&x->d->rules, &x->before.state, NOW, &todo, tasks,
						  MAX_TASKS);
		wrong = judge_todo(x->d, &x->before, &x->view, NOW, &todo, tasks);
		if (wrong == NULL && todo.ntasks > 1)
			wrong = judge_room(x, &todo, tasks);
		if (wrong != NULL)
			tap_note("deadline %d start %d forward %d tasks %d wait %d of "
					 "%d.%d %d due %lld", todo.deadline, todo.start,
					 todo.forward, todo.ntasks, (int) todo.wait, todo.step,
					 todo.element, (int) todo.operation,
					 (long long) todo.due_at);
	}
	if (wrong != NULL)
	{
		complain(x, wrong, &x->before, NULL, NULL);
		return;
	}
	if (oracle_final(&x->before))
	{
		try_on_final(x, &x->before);
		return;
	}
	try_operations(x, everything);
	try_people_and_clock(x, everything);
	try_ticks(x);
	if (x->with & WITH_UNKNOWN)
		try_unknown(x);
	if (x->with & WITH_CRASH)
		try_crash(x);
}

/* ---------------------------------------------------------------------
 * What holds for the whole graph of states
 * ---------------------------------------------------------------------
 */

/* The edges that one may go, by state: counting sort by one of their ends. */
typedef struct Adjacency
{
	int		   *first;			/* of each state, and one more */
	int		   *other;
} Adjacency;

static void
sort_edges(const Exploration *x, bool reversed, EdgeKind last_kind,
		   Adjacency *adjacency)
{
	int		   *first;
	int			i;

	first = must_realloc(NULL, ((size_t) x->nrecords + 2) * sizeof(int));
	memset(first, 0, ((size_t) x->nrecords + 2) * sizeof(int));
	adjacency->first = first;
	adjacency->other = must_realloc(NULL, ((size_t) x->nedges + 1) *
									sizeof(int));
	for (i = 0; i < x->nedges; i++)
	{
		if (x->edges[i].kind <= last_kind)
			first[(reversed ? x->edges[i].to : x->edges[i].from) + 2]++;
	}
	for (i = 2; i < x->nrecords + 2; i++)
		first[i] += first[i - 1];

	/* filling moves each start to the end, which is the next one's start */
	for (i = 0; i < x->nedges; i++)
	{
		const Edge *edge = &x->edges[i];

		if (edge->kind <= last_kind)
			adjacency->other[first[(reversed ? edge->to : edge->from) + 1]++] =
				reversed ? edge->from : edge->to;
	}
}

static void
free_adjacency(Adjacency *adjacency)
{
	free(adjacency->first);
	free(adjacency->other);
}

/* Has it ended, or come to where only others can help? */
static bool
is_end(Exploration *x, int n, bool people_help)
{
	SagaStatus	status = (SagaStatus) (nth_record(x, n)[0] & 15);
	SagaEvent	skip = make_event(SAGA_EVENT_SKIP, -1, -1, ACTION);
	SagaOperation operation;
	int			i;
	int			j;

	if (saga_status_is_final(status))
		return true;
	if (!people_help)
		return status == SAGA_STATUS_STUCK || status == SAGA_STATUS_PAUSED ||
			status == SAGA_STATUS_HELD;

	/* a step that no operation can save: there is no way but to abandon it */
	if (status != SAGA_STATUS_STUCK)
		return false;
	load(x->d, nth_record(x, n), &x->before);
	look(x->d, &x->before, &x->view);
	return x->view.no_return &&
		!find_target(x->d, &x->before, &x->view, &skip, false, &i, &j,
					 &operation);
}

/*
 * Can every state end?  With people's help, short of abandoning it; without
 * it, or come to where it waits for a person or a parent.
 */
static void
judge_ends(Exploration *x, bool people_help)
{
	Adjacency	back;
	int		   *queue = must_realloc(NULL, (size_t) x->nrecords * sizeof(int));
	bool	   *seen = must_realloc(NULL, (size_t) x->nrecords * sizeof(bool));
	int			nqueue = 0;
	int			i;
	int			j;

	sort_edges(x, true, people_help ? EDGE_PERSON : EDGE_WHIM, &back);
	for (i = 0; i < x->nrecords; i++)
	{
		seen[i] = is_end(x, i, people_help);
		if (seen[i])
			queue[nqueue++] = i;
	}
	for (i = 0; i < nqueue; i++)
	{
		for (j = back.first[queue[i]]; j < back.first[queue[i] + 1]; j++)
		{
			if (seen[back.other[j]])
				continue;
			seen[back.other[j]] = true;
			queue[nqueue++] = back.other[j];
		}
	}
	for (i = 0; i < x->nrecords && x->wrong == NULL; i++)
	{
		if (seen[i])
			continue;
		load(x->d, nth_record(x, i), &x->before);
		complain(x, people_help ? "it cannot end" :
				 "it cannot end without people's help", &x->before, NULL,
				 NULL);
	}
	free_adjacency(&back);
	free(queue);
	free(seen);
}

/*
 * The number of histories from a state on that nobody meddles with and in which
 * no step asks for "later", or -1 if one has no end.
 */
static double
count_histories(const Adjacency *forth, double *counts, int n)
{
	double		count = 0;
	int			i;

	if (counts[n] != 0)
		return counts[n];
	counts[n] = -1;				/* on the way: seen again, it goes in circles */
	for (i = forth->first[n]; i < forth->first[n + 1]; i++)
	{
		double		more = count_histories(forth, counts, forth->other[i]);

		if (more < 0)
			return -1;
		count += more;
	}
	counts[n] = count > 0 ? count : 1;
	return counts[n];
}

static void
judge_histories(Exploration *x)
{
	Adjacency	forth;
	double	   *counts = must_realloc(NULL, (size_t) x->nrecords *
									  sizeof(double));
	int			i;

	for (i = 0; i < x->nrecords; i++)
		counts[i] = 0;
	sort_edges(x, false, EDGE_SYSTEM, &forth);
	for (i = 0; i < x->nrecords && x->wrong == NULL; i++)
	{
		if (count_histories(&forth, counts, i) >= 0)
			continue;
		load(x->d, nth_record(x, i), &x->before);
		complain(x, "a history without people has no end", &x->before, NULL,
				 NULL);
	}
	total_histories += counts[0];
	free_adjacency(&forth);
	free(counts);
}

/* A saga that may begin: with a deadline or none, scheduled or at once. */
static void
add_root(Exploration *x, SagaTime start_at, SagaTime deadline)
{
	Record		record;

	begin(x->d, &x->before, start_at, deadline);
	save(x->d, &x->before, x->with & EXACT, &record);
	intern(x, &record);
}

static int
count_words(const Definition *d)
{
	int			n = 3;
	int			i;
	int			j;

	for (i = 0; i < d->rules.nsteps; i++)
	{
		for (j = 0; j < SAGA_NOPERATION; j++)
			n += has_operation(d, i, j) ? d->room[i] : 0;
	}
	return n;
}

static bool
explore(const Definition *d, int with)
{
	static Exploration x;
	int			i;

	memset(&x, 0, sizeof(x));
	x.d = d;
	x.with = with;
	x.nwords = count_words(d);
	now_exploring = &x;
	if (with & WITH_CLOCK)
	{
		add_root(&x, AHEAD, AHEAD);
		add_root(&x, NOW, AHEAD);
		if (with & EXACT)
			add_root(&x, AHEAD, SAGA_TIME_NEVER);
	}
	add_root(&x, NOW, SAGA_TIME_NEVER);
	for (i = 0; i < x.nrecords && x.wrong == NULL; i++)
		visit(&x, i);
	if (x.wrong == NULL && !x.cut)
		judge_ends(&x, false);
	if (x.wrong == NULL && !x.cut && with & WITH_PEOPLE &&
		with & WITH_PAUSE)
		judge_ends(&x, true);
	if (x.wrong == NULL && !x.cut)
		judge_histories(&x);
	total_definitions++;
	total_states += x.nrecords;
	total_cut += x.cut;
	now_exploring = NULL;
	free(x.records);
	free(x.table);
	free(x.edges);
	return x.wrong == NULL;
}

/* ---------------------------------------------------------------------
 * Which definitions
 * ---------------------------------------------------------------------
 */

/* What a step may be. */
typedef enum Shape
{
	PLAIN,						/* with a compensation */
	BARE,						/* without */
	PIVOT,
	CONFIRMED,
	RECOVERING,					/* a savepoint: the same steps again */
	DETOUR,						/* a savepoint: other steps then */
	LOCKED,
	EACH,						/* foreach, two elements */
	EACH_IN_TURN,				/* one at a time */
	ANY,						/* one of two is enough */
	ANY_CONFIRMED,
	ANY_BARE,
	MOST,						/* two of three, one at a time */
	EACH_LOCKED
} Shape;

#define NSHAPES	(EACH_LOCKED + 1)

static const char *const shape_names[] = {
	"plain", "bare", "pivot", "confirmed", "recovering", "detour", "locked",
	"each", "each in turn", "any", "any confirmed", "any bare", "most",
	"each locked"
};

/* The first of the steps that come after this one, or -1. */
static int
find_later(int nsteps, const int *preds, int step)
{
	int			after = 1 << step;
	int			i;

	for (i = step + 1; i < nsteps; i++)
	{
		if (preds[i] & after)
			return i;
	}
	return -1;
}

static void
make_shape(Definition *d, int step, Shape shape, const int *preds)
{
	SagaStepRule *rule = &d->steps[step];

	switch (shape)
	{
		case PLAIN:
			break;
		case BARE:
			rule->has_compensation = false;
			break;
		case PIVOT:
			make_pivot(d, step);
			break;
		case CONFIRMED:
			rule->has_confirmation = true;
			break;
		case RECOVERING:
			make_savepoint(d, step, 1, -1);
			break;
		case DETOUR:
			make_savepoint(d, step, 1,
						   find_later(d->rules.nsteps, preds, step));
			break;
		case LOCKED:
			rule->exclusive = true;
			break;
		case EACH:
			make_foreach(d, step, 2, 0, 0);
			break;
		case EACH_IN_TURN:
			make_foreach(d, step, 2, 1, 0);
			break;
		case ANY:
			make_foreach(d, step, 2, 0, 1);
			break;
		case ANY_CONFIRMED:
			make_foreach(d, step, 2, 0, 1);
			rule->has_confirmation = true;
			break;
		case ANY_BARE:
			make_foreach(d, step, 2, 0, 1);
			rule->has_compensation = false;
			break;
		case MOST:
			make_foreach(d, step, 3, 1, 2);
			break;
		case EACH_LOCKED:
			make_foreach(d, step, 2, 1, 0);
			rule->exclusive = true;
			break;
	}
}

/* Could this definition be made?  One pivot, and what must come before it. */
static bool
is_valid(const Definition *d)
{
	int			npivots = 0;
	int			i;
	int			j;

	for (i = 0; i < d->rules.nsteps; i++)
	{
		const SagaStepRule *step = &d->steps[i];

		npivots += step->pivot;
		if (step->savepoint && step->pivot)
			return false;
		for (j = 0; j < d->rules.nsteps; j++)
		{
			if (d->steps[j].pivot && d->depends[j][i] &&
				(step->savepoint || step->has_confirmation))
				return false;
		}
	}
	return npivots <= 1;
}

/* A graph, by the bits of the steps that each step follows. */
typedef struct Graph
{
	int			nsteps;
	int			preds[MAX_STEPS];
} Graph;

#define MAX_GRAPHS		128
#define MAX_GRAPH_STEPS	5

static Graph graphs[MAX_GRAPHS];
static int	ngraphs = 0;

/* What depends on what, by bits [i * n + j], under a numbering of the steps. */
static uint32_t
closure_bits(const Graph *graph, const int *numbers)
{
	int			n = graph->nsteps;
	int			before[MAX_STEPS];
	uint32_t	bits = 0;
	int			i;
	int			j;

	for (i = 0; i < n; i++)
	{
		before[i] = graph->preds[i];
		for (j = 0; j < i; j++)
		{
			if ((before[i] >> j) & 1)
				before[i] |= before[j];
		}
		for (j = 0; j < i; j++)
		{
			if ((before[i] >> j) & 1)
				bits |= UINT32_C(1) << (numbers[j] * n + numbers[i]);
		}
	}
	return bits;
}

/* The least of all numberings: the same for all graphs of one form. */
static uint32_t
canonical_bits(const Graph *graph, int *numbers, int n)
{
	uint32_t	least = UINT32_MAX;
	int			i;
	int			j;

	if (n == graph->nsteps)
		return closure_bits(graph, numbers);
	for (i = 0; i < graph->nsteps; i++)
	{
		bool		taken = false;
		uint32_t	bits;

		for (j = 0; j < n; j++)
			taken |= numbers[j] == i;
		if (taken)
			continue;
		numbers[n] = i;
		bits = canonical_bits(graph, numbers, n + 1);
		least = bits < least ? bits : least;
	}
	return least;
}

/* Does no step name one that it comes after anyway? */
static bool
is_reduced(const Graph *graph)
{
	int			before[MAX_STEPS];
	int			i;
	int			j;

	for (i = 0; i < graph->nsteps; i++)
	{
		before[i] = 0;
		for (j = 0; j < i; j++)
		{
			if ((graph->preds[i] >> j) & 1)
				before[i] |= before[j];
		}
		if (before[i] & graph->preds[i])
			return false;
		before[i] |= graph->preds[i];
	}
	return true;
}

/* All graphs of up to five steps, up to isomorphism. */
static void
make_graphs(void)
{
	static uint32_t seen[MAX_GRAPHS];
	int			nseen = 0;
	int			n;
	int			bits;
	int			i;

	for (n = 1; n <= MAX_GRAPH_STEPS; n++)
	{
		for (nseen = ngraphs, bits = 0; bits < 1 << (n * (n - 1) / 2); bits++)
		{
			Graph		graph = {0};
			int			numbers[MAX_STEPS];

			graph.nsteps = n;
			for (i = 0; i < n; i++)
				graph.preds[i] = (bits >> (i * (i - 1) / 2)) & ((1 << i) - 1);
			if (!is_reduced(&graph))
				continue;
			seen[ngraphs] = canonical_bits(&graph, numbers, 0);
			for (i = nseen; seen[i] != seen[ngraphs]; i++)
				;
			if (i == ngraphs)
				graphs[ngraphs++] = graph;
		}
	}
}

typedef struct Sum
{
	long		definitions;
	long		states;
	long		events;
} Sum;

static Sum
sum_now(void)
{
	Sum			sum = {total_definitions, total_states, total_events};

	return sum;
}

static void
report(bool sound, const char *what, Sum before)
{
	tap_ok(sound, "histories: %s (%ld definitions, %ld states, %ld events)",
		   what, total_definitions - before.definitions,
		   total_states - before.states, total_events - before.events);
}

static int
attempts_of(int with)
{
	return with & WITH_RETRY ? 2 : 1;
}

/* One pivot or none at each place, and compensations for all or for some. */
static bool
explore_graph(const Graph *graph, int some, bool child, int with)
{
	bool		sound = true;
	int			pivot;
	int			i;

	for (pivot = -1; pivot < graph->nsteps && sound; pivot++)
	{
		Definition	d;

		define(&d, graph->nsteps, graph->preds, attempts_of(with));
		for (i = 0; i < graph->nsteps; i++)
			d.steps[i].has_compensation = (some >> i) & 1;
		if (pivot >= 0)
			make_pivot(&d, pivot);
		d.child = child;
		seal(&d);
		sound = explore(&d, with);
	}
	return sound;
}

/* All graphs of so many steps; of the compensations all, or every choice. */
static void
test_graphs(const char *what, int from, int to, bool every_choice, bool child,
			int with)
{
	Sum			before = sum_now();
	bool		sound = true;
	int			i;

	for (i = 0; i < ngraphs && sound; i++)
	{
		int			all = (1 << graphs[i].nsteps) - 1;
		int			some = every_choice ? 0 : all;

		if (graphs[i].nsteps < from || graphs[i].nsteps > to)
			continue;
		for (; some <= all && sound; some++)
			sound = explore_graph(&graphs[i], some, child, with);
	}
	report(sound, what, before);
}

/*
 * The events to be followed, one set after the other: each definition of a
 * family that is large is tried with one of them.
 */
static const int turns[] = {
	WITH_CANCEL,
	WITH_RETRY,
	WITH_LATER,
	WITH_LOST,
	WITH_CANCEL | WITH_CLOCK,
	WITH_PEOPLE | WITH_PAUSE,
	WITH_LOST | WITH_PEOPLE,
	WITH_HANDOUT,
	WITH_HANDOUT | WITH_EXPIRY,
	WITH_HANDOUT | WITH_UNKNOWN,
	WITH_HANDOUT | WITH_UNKNOWN | WITH_RETRY | WITH_CANCEL,
	WITH_HANDOUT | WITH_UNKNOWN | WITH_RETRY | WITH_PEOPLE | WITH_PAUSE,
	WITH_CANCEL | WITH_CHOICE,
	WITH_SIGNAL,
	WITH_CANCEL | WITH_CHOICE | WITH_CRASH | WITH_CLOCK,
	WITH_CANCEL | WITH_PEOPLE | WITH_PAUSE,
	WITH_CRASH | WITH_RETRY
};

/* One step alone, of each shape, with all sets of events. */
static void
test_single_steps(bool child)
{
	static const int none[] = {0};
	Sum			before = sum_now();
	bool		sound = true;
	int			shape;
	int			i;

	for (shape = 0; shape < NSHAPES && sound; shape++)
	{
		for (i = 0; i < lengthof(turns) && sound; i++)
		{
			Definition	d;

			if (shape == DETOUR)
				continue;
			define(&d, 1, none, attempts_of(turns[i]));
			make_shape(&d, 0, (Shape) shape, none);
			d.child = child;
			seal(&d);
			sound = explore(&d, turns[i]);
		}
	}
	report(sound, child ? "one step of a child, of any shape" :
		   "one step, of any shape", before);
}

/* Two steps, after each other or not, of each pair of shapes. */
static void
test_pairs(Shape first)
{
	static const int preds[][2] = {{0, 0}, {0, 1}};
	Sum			before = sum_now();
	char		what[80];
	bool		sound = true;
	int			second;
	int			i;

	for (second = 0; second < NSHAPES && sound; second++)
	{
		for (i = 0; i < 4 && sound; i++)
		{
			int			turn = (int) first * 7 + second * 4 + i;
			int			with = i < 2 ? 0 : turns[turn % lengthof(turns)];
			Definition	d;

			define(&d, 2, preds[i & 1], attempts_of(with));
			make_shape(&d, 0, first, preds[i & 1]);
			make_shape(&d, 1, (Shape) second, preds[i & 1]);
			d.child = turn & 1;
			seal(&d);
			if (is_valid(&d))
				sound = explore(&d, with);
		}
	}
	snprintf(what, sizeof(what), "\"%s\" with every other shape",
			 shape_names[first]);
	report(sound, what, before);
}

/* One shape at each place of every graph. */
static void
test_places(Shape shape, int from, int to, int one_in)
{
	Sum			before = sum_now();
	char		what[80];
	bool		sound = true;
	int			turn = (int) shape;
	int			i;
	int			place;

	for (i = 0; i < ngraphs; i++)
	{
		for (place = 0; place < graphs[i].nsteps && sound; place++)
		{
			int			pivot = turn % 9 - 1;
			int			with = turns[turn % lengthof(turns)];
			Definition	d;

			turn++;
			if (graphs[i].nsteps < from || graphs[i].nsteps > to ||
				turn % one_in != 0)
				continue;
			define(&d, graphs[i].nsteps, graphs[i].preds, attempts_of(with));
			make_shape(&d, place, shape, graphs[i].preds);
			if (pivot >= 0 && pivot < graphs[i].nsteps && pivot != place)
				make_pivot(&d, pivot);
			d.child = turn % 7 == 0;
			seal(&d);
			if (is_valid(&d))
				sound = explore(&d, with);
		}
	}
	snprintf(what, sizeof(what), "\"%s\" anywhere in %d to %d steps",
			 shape_names[shape], from, to);
	report(sound, what, before);
}

/* ---------------------------------------------------------------------
 * Definitions that are chosen
 * ---------------------------------------------------------------------
 */

/* A step, by letters, and what it comes after, by bits. */
typedef struct ChosenStep
{
	int			preds;
	const char *letters;		/* f foreach of two, F of three, q a quorum of
								 * one, Q of two, p one at a time, s a savepoint,
								 * S one with two recoveries, c confirmation,
								 * l lock, P pivot, b no compensation */
	int			alternative;	/* -1 if none */
} ChosenStep;

typedef struct Chosen
{
	const char *what;
	int			nsteps;
	ChosenStep	steps[MAX_GRAPH_STEPS];
} Chosen;

static const Chosen chosen[] = {
	{"a savepoint in a savepoint", 4,
	{{0, "s", -1}, {1, "", -1}, {2, "s", -1}, {4, "", -1}}},
	{"a savepoint with two recoveries in another", 3,
	{{0, "s", -1}, {1, "S", -1}, {2, "", -1}}},
	{"an alternative", 4,
	{{0, "s", 2}, {1, "", -1}, {1, "", -1}, {6, "", -1}}},
	{"an alternative with a step that only it leads to", 5,
	{{0, "s", 2}, {1, "", -1}, {1, "", -1}, {4, "", -1}, {10, "", -1}}},
	{"an alternative in an alternative", 5,
	{{0, "s", 2}, {1, "", -1}, {1, "s", 4}, {4, "", -1}, {4, "", -1}}},
	{"an alternative in a savepoint", 5,
	{{0, "s", -1}, {1, "s", 3}, {2, "", -1}, {2, "", -1}, {12, "", -1}}},
	{"an alternative tried twice", 3,
	{{0, "S", 2}, {1, "", -1}, {1, "", -1}}},
	{"an alternative that comes after a normal step too", 4,
	{{0, "s", 2}, {1, "", -1}, {2, "", -1}, {4, "P", -1}}},
	{"two savepoints beside each other", 5,
	{{0, "s", -1}, {0, "s", -1}, {1, "", -1}, {2, "", -1}, {12, "", -1}}},
	{"two savepoints before a step, one before another", 4,
	{{0, "s", -1}, {0, "s", -1}, {3, "", -1}, {1, "", -1}}},
	{"a savepoint beside a step", 4,
	{{0, "s", -1}, {1, "", -1}, {0, "", -1}, {6, "", -1}}},
	{"a savepoint beside a pivot", 3,
	{{0, "s", -1}, {1, "", -1}, {0, "P", -1}}},
	{"a savepoint before a pivot", 4,
	{{0, "s", -1}, {1, "", -1}, {2, "P", -1}, {4, "b", -1}}},
	{"the pivot in an alternative", 4,
	{{0, "s", 2}, {1, "", -1}, {1, "P", -1}, {6, "b", -1}}},
	{"a quorum after a savepoint", 3,
	{{0, "s", -1}, {1, "fq", -1}, {2, "", -1}}},
	{"a quorum before a savepoint", 3,
	{{0, "fq", -1}, {1, "s", -1}, {2, "", -1}}},
	{"a quorum beside a failure after a savepoint", 3,
	{{0, "s", -1}, {1, "fq", -1}, {1, "", -1}}},
	{"a quorum as the alternative", 3,
	{{0, "s", 2}, {1, "f", -1}, {1, "fq", -1}}},
	{"a quorum of two of three", 2,
	{{0, "FQ", -1}, {1, "", -1}}},
	{"a quorum of two of three, one at a time, confirmed", 1,
	{{0, "FQpc", -1}}},
	{"a quorum as the pivot", 3,
	{{0, "", -1}, {1, "fqP", -1}, {2, "b", -1}}},
	{"a foreach as the pivot", 2,
	{{0, "", -1}, {1, "fP", -1}}},
	{"confirmations before a pivot", 4,
	{{0, "c", -1}, {1, "c", -1}, {2, "P", -1}, {4, "b", -1}}},
	{"confirmations beside each other", 4,
	{{0, "c", -1}, {0, "fc", -1}, {0, "fqc", -1}, {3, "", -1}}},
	{"confirmations after a savepoint", 3,
	{{0, "sc", -1}, {1, "c", -1}, {2, "c", -1}}},
	{"locks after a savepoint", 3,
	{{0, "s", -1}, {1, "l", -1}, {1, "l", -1}}},
	{"locks of a quorum", 2,
	{{0, "fql", -1}, {1, "l", -1}}},
	{"a savepoint with everything after it", 4,
	{{0, "s", -1}, {1, "fqc", -1}, {1, "l", -1}, {6, "c", -1}}}
};

static void
make_chosen(Definition *d, const Chosen *what, int with)
{
	int			preds[MAX_STEPS];
	int			i;

	for (i = 0; i < what->nsteps; i++)
		preds[i] = what->steps[i].preds;
	define(d, what->nsteps, preds, attempts_of(with));
	for (i = 0; i < what->nsteps; i++)
	{
		const char *letters = what->steps[i].letters;
		SagaStepRule *step = &d->steps[i];

		if (strpbrk(letters, "fF") != NULL)
			make_foreach(d, i, strchr(letters, 'F') != NULL ? 3 : 2,
						 strchr(letters, 'p') != NULL,
						 strchr(letters, 'q') != NULL ? 1 :
						 strchr(letters, 'Q') != NULL ? 2 : 0);
		if (strpbrk(letters, "sS") != NULL)
			make_savepoint(d, i, strchr(letters, 'S') != NULL ? 2 : 1,
						   what->steps[i].alternative);
		if (strchr(letters, 'P') != NULL)
			make_pivot(d, i);
		if (strchr(letters, 'b') != NULL)
			step->has_compensation = false;
		step->has_confirmation = strchr(letters, 'c') != NULL;
		step->exclusive = strchr(letters, 'l') != NULL;
	}
}

static void
test_chosen(const Chosen *what)
{
	Sum			before = sum_now();
	bool		sound = true;
	int			i;

	for (i = 0; i < lengthof(turns) && sound; i++)
	{
		Definition	d;

		make_chosen(&d, what, turns[i]);
		d.child = i % 3 == 1;
		seal(&d);
		sound = explore(&d, turns[i]);
	}
	report(sound, what->what, before);
}

static void
test_all_graphs(void)
{
	bool		every_choice = true;
	bool		child = true;

	test_graphs("one step, everything", 1, 1, every_choice, !child,
				WITH_ALL | EXACT);
	test_graphs("one step of a child, everything", 1, 1, !every_choice, child,
				WITH_ALL | EXACT);
	test_graphs("to two steps, all outcomes, all counters", 1, 2,
				every_choice, !child, WITH_CANCEL | WITH_RETRY | WITH_LATER |
				WITH_CLOCK | EXACT);
	test_graphs("to three steps, crashes and people", 1, 3, !every_choice,
				!child, WITH_CANCEL | WITH_LOST | WITH_PEOPLE);
	test_graphs("to three steps, handed out", 1, 3, !every_choice, !child,
				WITH_CANCEL | WITH_HANDOUT | WITH_EXPIRY | WITH_UNKNOWN);
	test_graphs("to three steps, handed out, second attempts", 1, 3,
				!every_choice, !child, WITH_CANCEL | WITH_HANDOUT |
				WITH_UNKNOWN | WITH_RETRY);
	test_graphs("to three steps of a child", 1, 3, !every_choice, child,
				WITH_CANCEL | WITH_PAUSE | WITH_CHOICE);
	test_graphs("to four steps, every choice of compensations", 1, 4,
				every_choice, !child, WITH_CANCEL);
	test_graphs("to four steps, people", 1, 4, !every_choice, !child,
				WITH_CANCEL | WITH_PEOPLE | WITH_PAUSE);
	test_graphs("to four steps, second attempts", 1, 4, !every_choice, !child,
				WITH_CANCEL | WITH_RETRY);
	test_graphs("of four steps, handed out", 4, 4, !every_choice, !child,
				WITH_HANDOUT);
	test_graphs("of five steps", 5, 5, !every_choice, !child, 0);
	test_graphs("of five steps, deadline and choices", 5, 5, !every_choice,
				!child, WITH_CLOCK);
}

static void
test_all(void)
{
	bool		child = true;
	int			i;

	test_all_graphs();
	test_single_steps(!child);
	test_single_steps(child);
	for (i = 0; i < NSHAPES; i++)
		test_pairs((Shape) i);
	for (i = BARE; i < NSHAPES; i++)
	{
		bool		savepoint = i == RECOVERING || i == DETOUR;

		test_places((Shape) i, 3, 4, savepoint ? 2 : 5);
		test_places((Shape) i, 5, 5, savepoint ? 11 : 41);
	}
	for (i = 0; i < lengthof(chosen); i++)
		test_chosen(&chosen[i]);
}

/* Can this operation be out in a saga of this direction and status? */
static bool
can_be_out(bool backward, SagaStatus status, SagaOperation operation)
{
	switch (status)
	{
		case SAGA_STATUS_RUNNING:
			return !backward;
		case SAGA_STATUS_COMPENSATING:
			return backward && operation != CONFIRMATION;
		case SAGA_STATUS_STUCK:
		case SAGA_STATUS_PAUSED:
			return !backward || operation != CONFIRMATION;
		default:
			return false;
	}
}

/* Has every outcome been tried, of what was handed out as bits "how" say? */
static void
test_returns(bool backward, SagaStatus status, SagaOperation operation)
{
	int			nmissing = 0;
	int			how;
	int			i;

	for (how = 0; how < 8; how++)
	{
		for (i = 0; i <= SAGA_EVENT_REVOKED; i++)
		{
			if (nreturned[backward][status][operation][how >> 2][how >> 1 & 1]
				[how & 1][i] > 0 ||
				(i == SAGA_EVENT_NOT_TAKEN && operation != ACTION))
				continue;
			nmissing++;
			tap_note("never: %s, %s, %s, attempt %s",
					 saga_event_name((SagaEventKind) i),
					 how & 4 ? "asked back" : "wanted",
					 how & 2 ? "unknown" : "known",
					 how & 1 ? "after others" : "the first");
		}
	}
	tap_ok(nmissing == 0, "histories: all that may come of %s, %s%s",
		   saga_operation_name(operation), saga_status_name(status),
		   backward ? " and going back" : "");
}

static void
test_all_returns(void)
{
	int			i;
	int			j;
	int			k;

	for (i = 0; i < SAGA_NSTATUS; i++)
	{
		for (j = 0; j < SAGA_NOPERATION; j++)
		{
			for (k = 0; k < 2; k++)
			{
				if (can_be_out(k, (SagaStatus) i, (SagaOperation) j))
					test_returns(k, (SagaStatus) i, (SagaOperation) j);
			}
		}
	}
}

static void
show_definition_of_failure(int signal_number)
{
	if (now_exploring != NULL)
	{
		tap_note("an assertion of the machine failed, around this:");
		print_definition(now_exploring->d);
		print_saga(now_exploring->d, &now_exploring->before);
	}
	fflush(stdout);
	signal(signal_number, SIG_DFL);
	raise(signal_number);
}

int
main(void)
{
	setvbuf(stdout, NULL, _IOLBF, 0);
	signal(SIGABRT, show_definition_of_failure);
	make_graphs();
	tap_ok(ngraphs == 1 + 2 + 5 + 16 + 63, "there are %d graphs", ngraphs);
	test_all();
	test_all_returns();
	tap_note("%ld definitions, %ld states, %ld events tried, "
			 "%.3g histories without people, %ld cut", total_definitions,
			 total_states, total_events, total_histories, total_cut);
	return tap_done();
}
