/*
 * test_machine_walks.c
 *		Random histories of random definitions that are too large, or have too
 *		many shapes at once, for all of their histories to be tried: the promises
 *		P4, P5 and P6, asked of the same oracle after every event.
 *
 * The walk is the same each time: its seed is fixed, and printed.  Another one
 * may be named as the first argument, and a number of sagas as the second.
 * Time passes; now and then there is a crash, after which the machine gets back
 * only what would have been stored.  Of what is out the outcome may become
 * unknown at any time, and now and then all that may come of it is tried beside
 * the walk.  A walk that has not come to an end is brought to one at last, by
 * doing nothing but what the machine asks for.
 */
#include <signal.h>

#include "machine_oracle.h"

#define SEED			UINT64_C(20240229)
#define NSAGAS			50000
#define MAX_TURNS		200
#define MAX_LAST_TURNS	4000

typedef struct Walk
{
	Definition	d;
	Saga		before;
	Saga		after;
	View		view;
	SagaTime	now;
	int			luck;			/* how many attempts of a hundred succeed ... */
	int			handed_out;		/* ... and are handed out */
	SagaTodo	todo;
	SagaTask	tasks[MAX_TASKS];
	const char *wrong;
} Walk;

static uint64_t random_state;
static long nevents = 0;
static long napplied = 0;
static long ncrashes = 0;
static long nended[SAGA_NSTATUS];
static long nrounds = 0;

/* What an assertion of the machine is about, should one fail. */
static const Walk *walking = NULL;

/* A number from 0 to n - 1. */
static int
pick(int n)
{
	random_state ^= random_state >> 12;
	random_state ^= random_state << 25;
	random_state ^= random_state >> 27;
	return (int) ((random_state * UINT64_C(2685821657736338717) >> 33) %
				  (uint64_t) n);
}

static bool
chance(int percent)
{
	return pick(100) < percent;
}

/* ---------------------------------------------------------------------
 * Definitions
 * ---------------------------------------------------------------------
 */

/* Steps in a graph; "before" are the bits of all that each depends on. */
static void
pick_graph(Definition *d, int *before)
{
	int			nsteps = 2 + pick(MAX_STEPS - 1);
	int			density = 10 + pick(60);
	int			preds[MAX_STEPS];
	int			i;
	int			j;

	for (i = 0; i < nsteps; i++)
	{
		preds[i] = before[i] = 0;
		for (j = 0; j < i; j++)
		{
			if (!chance(density))
				continue;
			preds[i] |= 1 << j;
			before[i] |= 1 << j | before[j];
		}
	}
	define(d, nsteps, preds, 1 + pick(4));
}

static void
pick_savepoint(Definition *d, int step, const int *before)
{
	int			alternative = step + 1 + pick(MAX_STEPS);
	bool		fits = alternative < d->rules.nsteps &&
		(before[alternative] >> step & 1);

	make_savepoint(d, step, 1 + pick(2), fits ? alternative : -1);
}

static void
pick_definition(Definition *d)
{
	int			before[MAX_STEPS];
	int			pivot;
	int			i;

	pick_graph(d, before);
	pivot = pick(3 * d->rules.nsteps);
	if (pivot < d->rules.nsteps)
		make_pivot(d, pivot);
	for (i = 0; i < d->rules.nsteps; i++)
	{
		SagaStepRule *step = &d->steps[i];
		bool		after_pivot = pivot < d->rules.nsteps &&
			(before[i] >> pivot & 1);

		if (after_pivot || chance(15))
			step->has_compensation = false;
		if (chance(30))
			make_foreach(d, i, 1 + pick(MAX_ROOM), pick(3),
						 chance(50) ? 1 + pick(3) : 0);
		step->exclusive = chance(15);
		step->has_confirmation = step->has_compensation && chance(30);
		if (!after_pivot && i != pivot && chance(40))
			pick_savepoint(d, i, before);
	}
	d->child = chance(25);
	seal(d);
}

/* ---------------------------------------------------------------------
 * One turn
 * ---------------------------------------------------------------------
 */

static void
complain(Walk *w, const char *wrong, const SagaEvent *event)
{
	if (w->wrong != NULL)
		return;
	w->wrong = wrong;
	tap_note("WRONG: %s (now %lld)", wrong, (long long) w->now);
	print_definition(&w->d);
	print_saga(&w->d, &w->before);
	if (event == NULL)
		return;
	print_event(event);
	print_saga(&w->d, &w->after);
}

static void
judge_now(Walk *w)
{
	const char *wrong;

	look(&w->d, &w->before, &w->view);
	wrong = saga_machine_check(&w->d.rules, &w->before.state);
	if (wrong == NULL)
		wrong = judge_state(&w->d, &w->before, &w->view);
	if (wrong == NULL)
	{
		saga_machine_next(&w->d.rules, &w->before.state, w->now, &w->todo,
						  w->tasks, MAX_TASKS);
		wrong = judge_todo(&w->d, &w->before, &w->view, w->now, &w->todo,
						   w->tasks);
	}
	if (wrong != NULL)
		complain(w, wrong, NULL);
}

static const char *
judge_applied(Walk *w, const SagaEvent *event)
{
	static Saga expected;
	const char *wrong;

	napplied++;
	nrounds += event->kind == SAGA_EVENT_FORWARD;
	copy_saga(&w->d, &expected, &w->before);
	oracle_make(&w->d, &expected, &w->view, event);
	wrong = compare_saga(&w->d, &w->before, &expected, &w->after, event);
	if (wrong == NULL)
		wrong = judge_change(&w->d, &w->before, &w->view, &w->after, event);
	return wrong;
}

/* Let it happen to "after". */
static void
try_event(Walk *w, SagaEvent *event)
{
	SagaVerdict expected;
	SagaVerdict verdict;
	const char *wrong = NULL;

	event->now = w->now;
	copy_saga(&w->d, &w->after, &w->before);
	if (event->kind == SAGA_EVENT_EXPANDED && event->step >= 0 &&
		event->step < w->d.rules.nsteps)
		event->elements = w->after.steps[event->step].elements;
	expected = oracle_verdict(&w->d, &w->before, &w->view, event);
	verdict = saga_machine_apply(&w->d.rules, &w->after.state, event);
	nevents++;
	if (verdict != expected)
	{
		tap_note("verdict %d, expected %d", (int) verdict, (int) expected);
		wrong = "the verdict is wrong";
	}
	else if (verdict == SAGA_VERDICT_APPLIED)
		wrong = judge_applied(w, event);
	else if (!is_unchanged(&w->d, &w->before, &w->after))
		wrong = "a refused event has changed something";
	if (wrong != NULL)
		complain(w, wrong, event);
}

/* Let it happen; the walk goes on from what the machine made of it. */
static void
happen(Walk *w, SagaEvent *event)
{
	try_event(w, event);
	copy_saga(&w->d, &w->before, &w->after);
	judge_now(w);
}

/* All is stored; what no table holds is forgotten. */
static void
crash(Walk *w)
{
	int			i;
	int			j;

	for (i = 0; i < w->d.rules.nsteps; i++)
	{
		for (j = 0; j < w->before.steps[i].nelements; j++)
		{
			SagaOpState *action = op_of(&w->before, i, j, ACTION);

			if (action->gate == SAGA_GATE_QUEUED)
				action->due_at = action->status == SAGA_OP_WAITING ?
					w->now : 0;
			action->gate = SAGA_GATE_CLOSED;
			action->changed = false;
			op_of(&w->before, i, j, COMPENSATION)->changed = false;
			op_of(&w->before, i, j, CONFIRMATION)->changed = false;
		}
		memset((char *) &w->before.steps[i] + offsetof(SagaStepState, off), 0,
			   sizeof(SagaStepState) - offsetof(SagaStepState, off));
	}
	memset(&w->before.state.totals, 0, sizeof(w->before.state.totals));
	saga_machine_loaded(&w->d.rules, &w->before.state);
	ncrashes++;
	judge_now(w);
}

/* ---------------------------------------------------------------------
 * What happens
 * ---------------------------------------------------------------------
 */

/* How an attempt ends; "plainly" is: well or not. */
static SagaEvent
pick_outcome(const Walk *w, int step, int element, SagaOperation operation,
			 bool plainly)
{
	SagaEvent	event = make_event(SAGA_EVENT_SUCCEEDED, step, element,
								   operation);
	int			n = pick(plainly ? 50 : 100);

	if (chance(w->luck))
		return event;
	if (n < 50)
	{
		event.kind = SAGA_EVENT_FAILED;
		event.passing = n < 35;
	}
	else if (n < 65)
	{
		event.kind = SAGA_EVENT_LATER;
		event.delay = pick(3) * 700 - 1;
	}
	else
		event.kind = n < 85 ? SAGA_EVENT_LOST : SAGA_EVENT_NOT_TAKEN;
	return event;
}

static void
do_task(Walk *w, const SagaTask *task, bool plainly)
{
	SagaEvent	event = make_event(SAGA_EVENT_FAILED, task->step,
								   task->element, task->operation);

	switch (task->kind)
	{
		case SAGA_TASK_OPERATE:
			event = pick_outcome(w, task->step, task->element,
								 task->operation, plainly);
			if (!plainly && chance(w->handed_out))
			{
				event.kind = SAGA_EVENT_STARTED;
				event.due_at = chance(50) ? w->now + LEASE : SAGA_TIME_NEVER;
			}
			break;
		case SAGA_TASK_EXPAND:
			event.kind = SAGA_EVENT_EXPANDED;
			event.nelements = pick(w->d.room[task->step] + 1);
			if (event.nelements < w->d.steps[task->step].quorum)
				event.nelements = 1;
			break;
		case SAGA_TASK_ACQUIRE:
			event.kind = chance(60) ? SAGA_EVENT_GRANTED : SAGA_EVENT_QUEUED;
			event.due_at = chance(50) || plainly ? w->now + LEASE :
				SAGA_TIME_NEVER;
			break;
		case SAGA_TASK_EXPIRE:
			event.passing = chance(80);
			break;
		case SAGA_TASK_REVOKE:
			event.kind = chance(50) ? SAGA_EVENT_CANCELLED :
				SAGA_EVENT_REVOKED;
			break;
	}
	happen(w, &event);
}

/* Choose one of those that are out, and let the event be of it. */
static bool
find_out(const Walk *w, SagaEvent *event)
{
	int			n = 0;
	int			i;
	int			j;
	int			k;

	for (i = 0; i < w->d.rules.nsteps; i++)
	{
		for (j = 0; j < w->before.steps[i].nelements; j++)
		{
			for (k = 0; k < SAGA_NOPERATION; k++)
			{
				if (look_at(&w->before, i, j, (SagaOperation) k)->status ==
					SAGA_OP_RUNNING && pick(++n) == 0)
					*event = make_event(SAGA_EVENT_SUCCEEDED, i, j,
										(SagaOperation) k);
			}
		}
	}
	return n > 0;
}

static void
come_back(Walk *w, bool plainly)
{
	SagaEvent	event;

	if (!find_out(w, &event))
		return;
	event = pick_outcome(w, event.step, event.element, event.operation,
						 plainly);
	if (!plainly && chance(10))
		event.kind = SAGA_EVENT_REVOKED;
	happen(w, &event);
}

/* Nobody knows any more whether it has had its effect; nothing is reported. */
static void
lose_track(Walk *w)
{
	SagaEvent	event;

	if (!find_out(w, &event))
		return;
	op_of(&w->before, event.step, event.element,
		  event.operation)->unknown = true;
	judge_now(w);
}

/* Whatever may come of one that is out; the walk does not go on from there. */
static void
try_returns(Walk *w)
{
	SagaEvent	event;
	int			i;

	if (!find_out(w, &event))
		return;
	for (i = 0; i <= SAGA_EVENT_CANCELLED; i++)
	{
		event.kind = (SagaEventKind) i;
		event.passing = chance(50);
		try_event(w, &event);
	}
}

static void
pass_time(Walk *w, SagaTime until)
{
	if (until > w->now && until != SAGA_TIME_NEVER)
		w->now = until;
	judge_now(w);
}

/* What it waits for comes. */
static void
end_wait(Walk *w, bool plainly)
{
	SagaEvent	event = make_event(SAGA_EVENT_RETRY, -1, -1, ACTION);

	switch (w->todo.wait)
	{
		case SAGA_WAIT_OUTCOME:
			if (w->todo.due_at == SAGA_TIME_NEVER || chance(70))
				come_back(w, plainly);
			else
				pass_time(w, w->todo.due_at);
			return;
		case SAGA_WAIT_LOCK:
			if (w->todo.due_at != SAGA_TIME_NEVER && chance(50))
			{
				pass_time(w, w->todo.due_at);
				return;
			}
			event = make_event(SAGA_EVENT_GRANTED, w->todo.step,
							   w->todo.element, ACTION);
			break;
		case SAGA_WAIT_PARENT:
			event.kind = chance(60) ? SAGA_EVENT_RELEASE : SAGA_EVENT_RECALL;
			break;
		case SAGA_WAIT_PERSON_STUCK:
			event.kind = chance(60) ? SAGA_EVENT_RETRY : SAGA_EVENT_SKIP;
			if (w->todo.element < 0)
				event.kind = SAGA_EVENT_ABANDON;
			break;
		case SAGA_WAIT_PERSON_PAUSED:
			event.kind = SAGA_EVENT_RESUME;
			break;
		default:
			pass_time(w, w->todo.due_at);
			return;
	}
	happen(w, &event);
}

/* Do what the machine asks for. */
static void
go_on(Walk *w, bool plainly)
{
	SagaEvent	event = make_event(SAGA_EVENT_DEADLINE, -1, -1, ACTION);

	if (w->todo.deadline || w->todo.start || w->todo.forward)
	{
		event.kind = w->todo.deadline ? SAGA_EVENT_DEADLINE :
			w->todo.start ? SAGA_EVENT_START : SAGA_EVENT_FORWARD;
		happen(w, &event);
	}
	else if (w->todo.ntasks > 0)
		do_task(w, &w->tasks[pick(w->todo.ntasks)], plainly);
	else
		end_wait(w, plainly);
}

/* Anything may happen to anything; most of it will be refused. */
static void
meddle(Walk *w)
{
	SagaEventKind kind = (SagaEventKind) pick(SAGA_NEVENT);
	int			step = pick(w->d.rules.nsteps + 2) - 1;
	int			nelements = step >= 0 && step < w->d.rules.nsteps ?
		w->before.steps[step].nelements : 1;
	SagaEvent	event = make_event(kind, step,
								   pick((nelements > 0 ? nelements : 0) + 2) -
								   1, (SagaOperation) pick(SAGA_NOPERATION));

	if (kind == SAGA_EVENT_ABANDON && !chance(3))
		return;
	if ((kind == SAGA_EVENT_CANCEL || kind == SAGA_EVENT_RECALL ||
		 kind == SAGA_EVENT_PAUSE) && !chance(30))
		return;
	event.passing = chance(70);
	event.due_at = chance(50) ? w->now + LEASE : SAGA_TIME_NEVER;
	event.nelements = step >= 0 && step < w->d.rules.nsteps ?
		pick(w->d.room[step] + 2) - 1 : 1;
	happen(w, &event);
}

static bool
has_ended(const Walk *w)
{
	return saga_status_is_final(w->before.state.status);
}

/* P6: whatever comes now. */
static void
try_on_final(Walk *w)
{
	int			i;

	for (i = 0; i < SAGA_NEVENT; i++)
	{
		SagaEvent	event = make_event((SagaEventKind) i, 0, 0, ACTION);

		happen(w, &event);
	}
}

static bool
walk(Walk *w)
{
	int			turn;

	w->wrong = NULL;
	w->now = NOW;
	w->luck = chance(60) ? 88 + pick(12) : 50 + pick(40);
	w->handed_out = chance(60) ? 35 : 90;
	pick_definition(&w->d);
	begin(&w->d, &w->before, chance(20) ? AHEAD : NOW,
		  chance(10) ? NOW + pick(20) * PAUSE : SAGA_TIME_NEVER);
	judge_now(w);
	for (turn = 0; turn < MAX_TURNS && !has_ended(w); turn++)
	{
		if (w->wrong != NULL)
			return false;
		if (chance(70))
			go_on(w, false);
		else if (chance(40))
			come_back(w, false);
		else if (chance(90))
			meddle(w);
		else
			pass_time(w, w->now + pick(3) * PAUSE);
		if (w->wrong == NULL && chance(8))
			lose_track(w);
		if (w->wrong == NULL && chance(10))
			try_returns(w);
		if (w->wrong == NULL && chance(20))
			crash(w);
	}

	/* P4: it comes to an end if only what it asks for is done */
	for (turn = 0; turn < MAX_LAST_TURNS && !has_ended(w); turn++)
	{
		if (w->wrong != NULL)
			return false;
		go_on(w, true);
	}
	if (!has_ended(w))
		complain(w, "P4: it comes to no end", NULL);
	else if (chance(10))
		try_on_final(w);
	nended[w->before.state.status]++;
	return w->wrong == NULL;
}

static void
show_definition_of_failure(int signal_number)
{
	if (walking != NULL)
	{
		tap_note("an assertion of the machine failed, around this:");
		print_definition(&walking->d);
		print_saga(&walking->d, &walking->before);
	}
	fflush(stdout);
	signal(signal_number, SIG_DFL);
	raise(signal_number);
}

int
main(int argc, char **argv)
{
	static Walk w;
	uint64_t	seed = argc > 1 ? strtoull(argv[1], NULL, 10) : SEED;
	int			nsagas = argc > 2 ? atoi(argv[2]) : NSAGAS;
	bool		sound = true;
	int			i;

	setvbuf(stdout, NULL, _IOLBF, 0);
	signal(SIGABRT, show_definition_of_failure);
	tap_note("seed %llu", (unsigned long long) seed);
	random_state = seed != 0 ? seed : 1;
	walking = &w;
	for (i = 0; i < nsagas && sound; i++)
		sound = walk(&w);
	walking = NULL;
	tap_ok(sound, "walks: every event of %d sagas", i);
	tap_ok(!sound || (nended[SAGA_STATUS_COMPLETED] > 0 &&
					  nended[SAGA_STATUS_COMPENSATED] > 0 && nrounds > 0),
		   "walks: they end in more ways than one");
	tap_note("%d definitions, %ld events tried, %ld applied, %ld crashes, "
			 "%ld new rounds", i, nevents, napplied, ncrashes, nrounds);
	tap_note("%ld completed, %ld compensated, %ld abandoned",
			 nended[SAGA_STATUS_COMPLETED], nended[SAGA_STATUS_COMPENSATED],
			 nended[SAGA_STATUS_ABANDONED]);
	return tap_done();
}
