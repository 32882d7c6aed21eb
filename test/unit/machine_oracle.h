/*
 * machine_oracle.h
 *		The rules of the state machine, read a second time: from the design and
 *		the rules, not from machine.c, and in the simplest way rather than the
 *		fastest.
 *
 * First what a state means (look), then what becomes of an event
 * (oracle_verdict, oracle_make), what is to be done (judge_todo); last, and
 * without the former, the promises P4 to P6 (judge_state, judge_change).
 */
#ifndef SAGA_MACHINE_ORACLE_H
#define SAGA_MACHINE_ORACLE_H

#include "machine_model.h"

/* What a state means. */
typedef struct View
{
	bool		off[MAX_STEPS];
	bool		done[MAX_STEPS];
	bool		hopeless[MAX_STEPS];
	bool		undone[MAX_STEPS];
	bool		concerned[MAX_STEPS];	/* is to be undone, going back */
	bool		holds;			/* the pivot */
	bool		all_done;
	bool		all_undone;		/* of the steps concerned */
	bool		no_return;
} View;

/* ---------------------------------------------------------------------
 * Elements
 * ---------------------------------------------------------------------
 */

static inline bool
oracle_final(const Saga *s)
{
	return s->state.status >= SAGA_STATUS_COMPLETED;
}

static inline bool
ended_well(const SagaOpState *op)
{
	return op->status == SAGA_OP_SUCCEEDED || op->status == SAGA_OP_SKIPPED;
}

static inline bool
to_be_tried(const SagaOpState *op)
{
	return op->status == SAGA_OP_PENDING || op->status == SAGA_OP_WAITING;
}

/* Did the action have its effect, or perhaps? */
static inline bool
has_effect(const SagaOpState *action)
{
	return action->status == SAGA_OP_SUCCEEDED || action->unknown;
}

static inline bool
element_undone(const Definition *d, const Saga *s, int step, int element)
{
	const SagaOpState *action = look_at(s, step, element, ACTION);

	return action->status != SAGA_OP_RUNNING &&
		(!has_effect(action) || !d->steps[step].has_compensation ||
		 ended_well(look_at(s, step, element, COMPENSATION)));
}

/* A loser, or what may be one, that has to be compensated at once. */
static inline bool
surplus_left(const Definition *d, const Saga *s, int step, int element)
{
	return look_at(s, step, element, ACTION)->surplus &&
		!element_undone(d, s, step, element);
}

static inline int
count_status(const Saga *s, int step, SagaOpStatus status)
{
	int			n = 0;
	int			i;

	for (i = 0; i < s->steps[step].nelements; i++)
		n += look_at(s, step, i, ACTION)->status == status;
	return n;
}

/* Successes that count for a quorum; those a person declared, too. */
static inline int
count_wins(const Saga *s, int step)
{
	int			n = 0;
	int			i;

	for (i = 0; i < s->steps[step].nelements; i++)
	{
		const SagaOpState *action = look_at(s, step, i, ACTION);

		n += (action->status == SAGA_OP_SUCCEEDED && !action->surplus) ||
			(action->status == SAGA_OP_SKIPPED && action->attempts > 0);
	}
	return n;
}

/* A step that was expanded to one element only needs no more than that. */
static inline int
count_needed(const Definition *d, const Saga *s, int step)
{
	int			quorum = d->steps[step].quorum;

	return s->steps[step].nelements < quorum ? s->steps[step].nelements :
		quorum;
}

/* ---------------------------------------------------------------------
 * Steps
 * ---------------------------------------------------------------------
 */

/* The steps that are off because of this savepoint. */
static inline void
look_at_savepoint(const Definition *d, const Saga *s, int savepoint, View *v)
{
	int			alternative = d->steps[savepoint].alternative;
	bool		off[MAX_STEPS] = {false};
	int			i;
	int			j;

	for (i = 0; i < d->rules.nsteps; i++)
	{
		if (s->recoveries[savepoint] > 0)
			off[i] = d->depends[savepoint][i] && i != alternative &&
				!d->depends[alternative][i];
		else
		{
			off[i] = d->steps[i].npreds > 0;
			for (j = 0; j < d->steps[i].npreds; j++)
				off[i] &= off[d->preds[i][j]];
			off[i] |= i == alternative;
		}
		v->off[i] |= off[i];
	}
}

static inline bool
step_is_done(const Definition *d, const Saga *s, int step)
{
	int			n = s->steps[step].nelements;

	if (n < 0)
		return false;
	if (d->steps[step].quorum > 0)
		return count_wins(s, step) >= count_needed(d, s, step);
	return count_status(s, step, SAGA_OP_SUCCEEDED) +
		count_status(s, step, SAGA_OP_SKIPPED) == n;
}

/* Successes there are, and those there may still be. */
static inline int
count_chances(const Saga *s, int step)
{
	return count_wins(s, step) + count_status(s, step, SAGA_OP_PENDING) +
		count_status(s, step, SAGA_OP_WAITING) +
		count_status(s, step, SAGA_OP_RUNNING);
}

static inline bool
step_is_hopeless(const Definition *d, const Saga *s, int step)
{
	return s->steps[step].nelements >= 0 &&
		count_status(s, step, SAGA_OP_FAILED) > 0 &&
		(d->steps[step].quorum == 0 ||
		 count_chances(s, step) < count_needed(d, s, step));
}

/* An action of a pivot that was passed, or may have been. */
static inline bool
step_holds(const Saga *s, int step)
{
	int			i;

	for (i = 0; i < s->steps[step].nelements; i++)
	{
		const SagaOpState *action = look_at(s, step, i, ACTION);

		if (ended_well(action) || action->status == SAGA_OP_RUNNING ||
			action->unknown)
			return true;
	}
	return false;
}

static inline void
look_at_step(const Definition *d, const Saga *s, int step, View *v)
{
	int			i;

	v->done[step] = v->off[step] || step_is_done(d, s, step);
	v->hopeless[step] = !v->off[step] && step_is_hopeless(d, s, step);
	v->concerned[step] = s->state.backward &&
		(s->state.goal < 0 || d->depends[s->state.goal][step]);
	v->undone[step] = true;
	for (i = 0; i < s->steps[step].nelements; i++)
		v->undone[step] &= element_undone(d, s, step, i);
	v->holds |= d->steps[step].pivot && !v->off[step] &&
		(v->done[step] || step_holds(s, step));
	v->all_done &= v->done[step];
	v->all_undone &= v->undone[step] || !v->concerned[step];
}

static inline void
look(const Definition *d, const Saga *s, View *v)
{
	int			i;

	memset(v, 0, sizeof(*v));
	v->all_done = true;
	v->all_undone = true;
	for (i = 0; i < d->rules.nsteps; i++)
	{
		if (d->steps[i].savepoint && d->steps[i].alternative >= 0)
			look_at_savepoint(d, s, i, v);
	}
	for (i = 0; i < d->rules.nsteps; i++)
		look_at_step(d, s, i, v);

	/* a child may be released while it goes back: that turns nothing */
	v->no_return = v->holds || (!s->state.backward && v->all_done &&
								(!s->state.child || s->state.released));
}

static inline bool
has_running(const Definition *d, const Saga *s)
{
	int			i;
	int			j;
	int			k;

	for (i = 0; i < d->rules.nsteps; i++)
	{
		for (j = 0; j < s->steps[i].nelements; j++)
		{
			for (k = 0; k < SAGA_NOPERATION; k++)
			{
				if (look_at(s, i, j, (SagaOperation) k)->status ==
					SAGA_OP_RUNNING)
					return true;
			}
		}
	}
	return false;
}

static inline bool
oracle_has_begun(const Definition *d, const Saga *s)
{
	int			i;

	for (i = 0; i < d->rules.nsteps; i++)
	{
		if (s->steps[i].nelements > 0 &&
			count_status(s, i, SAGA_OP_PENDING) < s->steps[i].nelements)
			return true;
	}
	return false;
}

/* ---------------------------------------------------------------------
 * What may be attempted
 * ---------------------------------------------------------------------
 */

static inline bool
preds_done(const Definition *d, const View *v, int step)
{
	int			i;

	for (i = 0; i < d->rules.nsteps; i++)
	{
		if (d->depends[i][step] && !v->done[i])
			return false;
	}
	return true;
}

/* May this step be worked on, its elements known or not? */
static inline bool
step_is_open(const Definition *d, const Saga *s, const View *v, int step)
{
	return s->state.status == SAGA_STATUS_RUNNING && !s->state.backward &&
		!v->done[step] && preds_done(d, v, step);
}

static inline bool
gate_is_open(const Definition *d, int step, const SagaOpState *action)
{
	return !d->steps[step].exclusive || action->gate == SAGA_GATE_OPEN;
}

static inline bool
action_awaits_lock(const Definition *d, const Saga *s, const View *v, int step,
				   int element)
{
	const SagaOpState *action = look_at(s, step, element, ACTION);

	return step_is_open(d, s, v, step) && to_be_tried(action) &&
		!gate_is_open(d, step, action);
}

/* P5: may this compensation act in this state? */
static inline bool
may_compensate(const Definition *d, const Saga *s, const View *v, int step,
			   int element)
{
	int			i;

	if (element_undone(d, s, step, element) ||
		look_at(s, step, element, ACTION)->status == SAGA_OP_RUNNING)
		return false;
	if (s->state.status == SAGA_STATUS_RUNNING)
		return surplus_left(d, s, step, element);
	if (s->state.status != SAGA_STATUS_COMPENSATING || !v->concerned[step])
		return false;
	for (i = 0; i < d->rules.nsteps; i++)
	{
		if (d->depends[step][i] && !v->undone[i])
			return false;
	}
	return true;
}

static inline bool
may_confirm(const Definition *d, const Saga *s, const View *v, int step,
			int element)
{
	const SagaOpState *action = look_at(s, step, element, ACTION);

	return s->state.status == SAGA_STATUS_RUNNING && v->all_done &&
		(!s->state.child || s->state.released) &&
		d->steps[step].has_confirmation && !v->off[step] &&
		action->status == SAGA_OP_SUCCEEDED && !action->surplus;
}

static inline bool
is_ready(const Definition *d, const Saga *s, const View *v, int step,
		 int element, SagaOperation operation)
{
	const SagaOpState *op = look_at(s, step, element, operation);

	if (!to_be_tried(op))
		return false;
	switch (operation)
	{
		case ACTION:
			return step_is_open(d, s, v, step) && gate_is_open(d, step, op);
		case COMPENSATION:
			return may_compensate(d, s, v, step, element);
		case CONFIRMATION:
			return may_confirm(d, s, v, step, element);
	}
	return false;
}

static inline bool
is_to_expand(const Definition *d, const Saga *s, const View *v, int step)
{
	return step_is_open(d, s, v, step) && s->steps[step].nelements < 0;
}

/* Does nobody need this action any more? */
static inline bool
is_unneeded(const Saga *s, const View *v, int step)
{
	return s->state.backward ? v->concerned[step] : v->done[step];
}

/* ---------------------------------------------------------------------
 * What a person can be asked about
 * ---------------------------------------------------------------------
 */

static inline bool
is_stuck(const Saga *s, const View *v, int step, int element,
		 SagaOperation operation)
{
	const SagaOpState *op = look_at(s, step, element, operation);

	if (op->status != SAGA_OP_FAILED)
		return false;
	switch (operation)
	{
		case ACTION:
			return !s->state.backward && v->hopeless[step];
		case COMPENSATION:
			return s->state.backward ? v->concerned[step] :
				look_at(s, step, element, ACTION)->surplus;
		case CONFIRMATION:
			return true;
	}
	return false;
}

static inline bool
is_target(const Saga *s, const View *v, int step, int element,
		  SagaOperation operation)
{
	if (is_stuck(s, v, step, element, operation))
		return true;
	if (look_at(s, step, element, operation)->status != SAGA_OP_WAITING)
		return false;
	if (operation == COMPENSATION)
		return s->state.backward ? v->concerned[step] :
			look_at(s, step, element, ACTION)->surplus;
	return !s->state.backward;
}

/*
 * The operation that comes first of those that the event is about, in the
 * order in which they are done; only_stuck leaves out those that wait.
 */
static inline bool
find_target(const Definition *d, const Saga *s, const View *v,
			const SagaEvent *event, bool only_stuck, int *step, int *element,
			SagaOperation *operation)
{
	int			n;
	int			i;
	int			j;
	int			k;

	for (n = 0; n < d->rules.nsteps; n++)
	{
		i = s->state.backward ? d->rules.nsteps - 1 - n : n;
		for (j = 0; j < s->steps[i].nelements; j++)
		{
			for (k = 0; k < SAGA_NOPERATION; k++)
			{
				SagaOperation o = (SagaOperation) k;

				if ((event->step != -1 && event->step != i) ||
					(event->element != -1 && event->element != j) ||
					!is_target(s, v, i, j, o) ||
					(only_stuck && !is_stuck(s, v, i, j, o)))
					continue;
				*step = i;
				*element = j;
				*operation = o;
				return true;
			}
		}
	}
	return false;
}

/* ---------------------------------------------------------------------
 * Which events are accepted
 * ---------------------------------------------------------------------
 */

static inline bool
names_element(const Definition *d, const Saga *s, const SagaEvent *event)
{
	return event->step >= 0 && event->step < d->rules.nsteps &&
		(unsigned int) event->operation < SAGA_NOPERATION &&
		event->element >= 0 &&
		event->element < s->steps[event->step].nelements;
}

static inline bool
accepts_operation(const Definition *d, const Saga *s, const View *v,
				  const SagaEvent *event)
{
	int			step = event->step;
	int			element = event->element;
	bool		action = event->operation == ACTION;
	const SagaOpState *op;
	bool		running;
	bool		ready;

	if (!names_element(d, s, event))
		return false;
	op = look_at(s, step, element, event->operation);
	running = op->status == SAGA_OP_RUNNING;
	ready = is_ready(d, s, v, step, element, event->operation);
	switch (event->kind)
	{
		case SAGA_EVENT_FAILED:
			/* its lock did not come, or its elements could not be found */
			if (action && action_awaits_lock(d, s, v, step, element) &&
				(op->gate == SAGA_GATE_QUEUED ||
				 (d->steps[step].foreach && s->steps[step].nelements == 1)))
				return true;
			return running || ready;
		case SAGA_EVENT_SUCCEEDED:
		case SAGA_EVENT_LATER:
		case SAGA_EVENT_LOST:
			return running || ready;
		case SAGA_EVENT_NOT_TAKEN:
			/* a condition needs no lock */
			return action && (running || ready ||
							  action_awaits_lock(d, s, v, step, element));
		case SAGA_EVENT_REVOKED:
			return running;
		case SAGA_EVENT_STARTED:
			return ready;
		case SAGA_EVENT_CANCELLED:
			return running && !op->cancelled;
		case SAGA_EVENT_SIGNALLED:
			return action && to_be_tried(op) && !op->signalled;
		default:
			return action && action_awaits_lock(d, s, v, step, element);
	}
}

static inline SagaVerdict
cancel_verdict(const Saga *s, const View *v)
{
	if (s->state.backward)
		return s->state.goal < 0 ? SAGA_VERDICT_BACKWARD :
			SAGA_VERDICT_APPLIED;
	return v->no_return ? SAGA_VERDICT_PIVOT : SAGA_VERDICT_APPLIED;
}

/* Is the saga back at its goal, so that it may turn? */
static inline bool
is_at_goal(const Saga *s, const View *v)
{
	return s->state.status == SAGA_STATUS_COMPENSATING &&
		s->state.goal >= 0 && v->all_undone;
}

static inline SagaVerdict
accept_if(bool accepted, SagaVerdict otherwise)
{
	return accepted ? SAGA_VERDICT_APPLIED : otherwise;
}

static inline SagaVerdict
oracle_verdict(const Definition *d, const Saga *s, const View *v,
			   const SagaEvent *event)
{
	SagaStatus	status = s->state.status;
	bool		paused = status == SAGA_STATUS_PAUSED;
	SagaOperation operation;
	int			i;
	int			j;

	if (oracle_final(s))
		return SAGA_VERDICT_FINAL;
	if (names_operation(event->kind))
		return accept_if(accepts_operation(d, s, v, event),
						 SAGA_VERDICT_STALE);
	switch (event->kind)
	{
		case SAGA_EVENT_EXPANDED:
			return accept_if(event->step >= 0 &&
							 event->step < d->rules.nsteps &&
							 event->nelements >= 0 &&
							 event->nelements <= SAGA_MAX_ELEMENTS &&
							 (event->nelements == 0 ||
							  event->elements != NULL) &&
							 (event->nelements == 1 || event->nelements >=
							  d->steps[event->step].quorum) &&
							 is_to_expand(d, s, v, event->step),
							 SAGA_VERDICT_STALE);
		case SAGA_EVENT_START:
			return paused ? SAGA_VERDICT_PAUSED :
				accept_if(status == SAGA_STATUS_SCHEDULED,
						  SAGA_VERDICT_STALE);
		case SAGA_EVENT_DEADLINE:
			if (paused)
				return SAGA_VERDICT_PAUSED;
			if (status == SAGA_STATUS_HELD || event->now < s->state.deadline)
				return SAGA_VERDICT_STALE;
			return cancel_verdict(s, v);
		case SAGA_EVENT_FORWARD:
			return paused ? SAGA_VERDICT_PAUSED :
				accept_if(is_at_goal(s, v), SAGA_VERDICT_STALE);
		case SAGA_EVENT_RELEASE:
			return accept_if(s->state.child && !s->state.released,
							 SAGA_VERDICT_STALE);
		case SAGA_EVENT_RECALL:
			return s->state.child ? cancel_verdict(s, v) : SAGA_VERDICT_STALE;
		case SAGA_EVENT_CANCEL:
			return status == SAGA_STATUS_HELD ? SAGA_VERDICT_HELD :
				cancel_verdict(s, v);
		case SAGA_EVENT_PAUSE:
			if (paused || status == SAGA_STATUS_STUCK)
				return paused ? SAGA_VERDICT_PAUSED : SAGA_VERDICT_STUCK;
			return accept_if(status != SAGA_STATUS_HELD,
							 SAGA_VERDICT_NOTHING);
		case SAGA_EVENT_RESUME:
			return accept_if(paused, SAGA_VERDICT_NOT_PAUSED);
		case SAGA_EVENT_RETRY:
		case SAGA_EVENT_SKIP:
			return paused ? SAGA_VERDICT_PAUSED :
				accept_if(find_target(d, s, v, event, false, &i, &j,
									  &operation), SAGA_VERDICT_NOTHING);
		case SAGA_EVENT_ABANDON:
			return SAGA_VERDICT_APPLIED;
		default:
			return SAGA_VERDICT_STALE;
	}
}

/* ---------------------------------------------------------------------
 * What they make of a state: oracle_make() changes a copy of it
 * ---------------------------------------------------------------------
 */

static inline void
set_op(SagaOpState *op, SagaOpStatus status, SagaTime due_at)
{
	op->status = status;
	op->due_at = due_at;
	op->cancelled = false;
	op->changed = true;
	if (op->gate == SAGA_GATE_QUEUED)
		op->gate = SAGA_GATE_CLOSED;
	if (ended_well(op) || status == SAGA_OP_FAILED)
		op->signalled = false;
	if (ended_well(op))
		op->unknown = false;
}

/* The actions that wait are given up, and places in line for locks. */
static inline void
make_turn(const Definition *d, Saga *s, int goal)
{
	int			i;
	int			j;

	s->state.backward = true;
	s->state.goal = (int16_t) goal;
	for (i = 0; i < d->rules.nsteps; i++)
	{
		for (j = 0; j < s->steps[i].nelements; j++)
		{
			SagaOpState *action = op_of(s, i, j, ACTION);

			if (goal >= 0 && !d->depends[goal][i])
				continue;
			if (action->status == SAGA_OP_WAITING)
				set_op(action, SAGA_OP_FAILED, 0);
			if (action->gate == SAGA_GATE_QUEUED)
			{
				action->gate = SAGA_GATE_CLOSED;
				action->due_at = 0;
			}
		}
	}
}

/*
 * Is a hopeless step one for other reasons than crashes, which are no verdict
 * about the business?
 */
static inline bool
step_is_broken(const Definition *d, const Saga *s, int step)
{
	int			left = count_chances(s, step);
	int			i;

	for (i = 0; i < s->steps[step].nelements; i++)
	{
		const SagaOpState *action = look_at(s, step, i, ACTION);

		if (action->status == SAGA_OP_FAILED &&
			action->crashes < SAGA_MAX_CRASHES)
			return true;
		left += action->status == SAGA_OP_FAILED;
	}
	return left < count_needed(d, s, step);
}

static inline bool
turns_back(const Definition *d, const Saga *s, const View *v)
{
	int			i;

	if (v->no_return || (s->state.backward && s->state.goal < 0))
		return false;
	for (i = 0; i < d->rules.nsteps; i++)
	{
		if (v->hopeless[i] && !v->concerned[i] && step_is_broken(d, s, i))
			return true;
	}
	return false;
}

/* The last savepoint before all that failed that has a recovery left. */
static inline int
choose_goal(const Definition *d, const Saga *s, const View *v)
{
	int			i;
	int			j;

	for (i = d->rules.nsteps - 1; i >= 0; i--)
	{
		bool		fits = d->steps[i].savepoint && v->done[i] && !v->off[i] &&
			s->recoveries[i] < d->steps[i].recoveries;

		if (s->state.backward && s->state.goal >= 0 && s->state.goal != i)
			fits &= d->depends[i][s->state.goal];
		for (j = 0; j < d->rules.nsteps; j++)
			fits &= !v->hopeless[j] || d->depends[i][j];
		if (fits)
			return i;
	}
	return -1;
}

static inline SagaStatus
status_of(const Definition *d, const Saga *s, const View *v)
{
	bool		left = has_running(d, s);
	bool		confirmed = true;
	int			i;
	int			j;

	for (i = 0; i < d->rules.nsteps; i++)
	{
		if (!s->state.backward && v->hopeless[i])
			return SAGA_STATUS_STUCK;
		for (j = 0; j < s->steps[i].nelements; j++)
		{
			if (is_stuck(s, v, i, j, COMPENSATION) ||
				is_stuck(s, v, i, j, CONFIRMATION))
				return SAGA_STATUS_STUCK;
			left |= surplus_left(d, s, i, j);
			confirmed &= !d->steps[i].has_confirmation ||
				look_at(s, i, j, ACTION)->status != SAGA_OP_SUCCEEDED ||
				look_at(s, i, j, ACTION)->surplus ||
				ended_well(look_at(s, i, j, CONFIRMATION));
		}
	}
	if (s->state.backward)
		return s->state.goal < 0 && v->all_undone ? SAGA_STATUS_COMPENSATED :
			SAGA_STATUS_COMPENSATING;
	if (!v->all_done || left)
		return SAGA_STATUS_RUNNING;
	if (s->state.child && !s->state.released)
		return SAGA_STATUS_HELD;
	return confirmed ? SAGA_STATUS_COMPLETED : SAGA_STATUS_RUNNING;
}

/* A quorum that is reached needs no more actions. */
static inline void
close_reached(const Definition *d, Saga *s, const View *v)
{
	int			i;
	int			j;

	for (i = 0; i < d->rules.nsteps; i++)
	{
		if (d->steps[i].quorum == 0 || v->off[i] || !v->done[i])
			continue;
		for (j = 0; j < s->steps[i].nelements; j++)
		{
			SagaOpState *action = op_of(s, i, j, ACTION);

			if (to_be_tried(action))
				set_op(action, action->unknown ? SAGA_OP_FAILED :
					   SAGA_OP_SKIPPED, 0);
			if (action->status == SAGA_OP_FAILED && action->unknown)
				action->surplus = true;
		}
	}
}

static inline void
settle(const Definition *d, Saga *s)
{
	View		v;

	look(d, s, &v);
	close_reached(d, s, &v);
	look(d, s, &v);
	if (turns_back(d, s, &v))
	{
		make_turn(d, s, choose_goal(d, s, &v));
		look(d, s, &v);
	}
	if (s->state.status != SAGA_STATUS_PAUSED &&
		s->state.status != SAGA_STATUS_SCHEDULED)
		s->state.status = status_of(d, s, &v);
}

/* The action, of which v is how it was before, is tried again or not. */
static inline void
make_another_attempt(const Definition *d, const Saga *s, const View *v,
					 const SagaEvent *event, SagaOpState *op, SagaTime delay)
{
	bool		unneeded = event->operation == ACTION &&
		is_unneeded(s, v, event->step);

	if (!unneeded)
		set_op(op, SAGA_OP_WAITING, event->now + delay);
	else if (d->steps[event->step].quorum > 0 && v->done[event->step] &&
			 !op->unknown)
		set_op(op, SAGA_OP_SKIPPED, 0);
	else
		set_op(op, SAGA_OP_FAILED, 0);
}

static inline void
make_outcome(const Definition *d, Saga *s, const View *v,
			 const SagaEvent *event)
{
	const SagaRetryPolicy *policy =
		&d->steps[event->step].retry[event->operation];
	SagaOpState *op = op_of(s, event->step, event->element, event->operation);
	SagaTime	delay = event->delay >= 0 ? event->delay : PAUSE;
	bool		loser = event->operation == ACTION && v->done[event->step] &&
		d->steps[event->step].quorum > 0;

	op->attempts++;
	switch (event->kind)
	{
		case SAGA_EVENT_SUCCEEDED:
			set_op(op, SAGA_OP_SUCCEEDED, 0);
			op->crashes = 0;
			op->surplus = loser;
			break;
		case SAGA_EVENT_FAILED:
			op->failures++;
			if (event->passing && (policy->max_attempts == 0 ||
								   op->failures < policy->max_attempts))
				make_another_attempt(d, s, v, event, op, delay);
			else
				set_op(op, SAGA_OP_FAILED, 0);
			break;
		case SAGA_EVENT_LATER:
			make_another_attempt(d, s, v, event, op, delay);
			break;
		default:
			op->crashes++;
			if (op->crashes < SAGA_MAX_CRASHES)
				make_another_attempt(d, s, v, event, op, PAUSE);
			else
				set_op(op, SAGA_OP_FAILED, 0);
			break;
	}
	if (loser && op->unknown)
		op->surplus = true;
}

/* What is known of this attempt says nothing of those before. */
static inline void
make_revoked(const Definition *d, const Saga *s, const View *v,
			 const SagaEvent *event, SagaOpState *op)
{
	if (op->attempts > 0)
	{
		make_another_attempt(d, s, v, event, op, 0);
		return;
	}
	set_op(op, SAGA_OP_PENDING, 0);
	op->unknown = false;
}

/*
 * A condition undoes nothing of what may have been done before it was asked.
 * Of a quorum's element it is no success; and it must leave something that a
 * person can be asked about.
 */
static inline void
make_not_taken(const Definition *d, const Saga *s, const View *v,
			   const SagaEvent *event, SagaOpState *op)
{
	bool		short_of = !v->done[event->step] &&
		d->steps[event->step].quorum > 0 &&
		(op->attempts > 0 ||
		 count_chances(s, event->step) - 1 < count_needed(d, s, event->step));

	if (op->unknown || short_of)
	{
		op->attempts++;
		op->failures++;
		set_op(op, SAGA_OP_FAILED, 0);
	}
	else
		set_op(op, SAGA_OP_SKIPPED, 0);
}

static inline void
make_operation(const Definition *d, Saga *s, const View *v,
			   const SagaEvent *event)
{
	SagaOpState *op = op_of(s, event->step, event->element, event->operation);

	switch (event->kind)
	{
		case SAGA_EVENT_NOT_TAKEN:
			make_not_taken(d, s, v, event, op);
			break;
		case SAGA_EVENT_REVOKED:
			make_revoked(d, s, v, event, op);
			break;
		case SAGA_EVENT_STARTED:
			set_op(op, SAGA_OP_RUNNING, event->due_at);
			break;
		case SAGA_EVENT_CANCELLED:
			op->cancelled = true;
			break;
		case SAGA_EVENT_SIGNALLED:
			op->signalled = true;
			break;
		case SAGA_EVENT_QUEUED:
			op->gate = SAGA_GATE_QUEUED;
			op->due_at = event->due_at;
			break;
		case SAGA_EVENT_GRANTED:
			if (op->status != SAGA_OP_WAITING)
				op->due_at = 0;
			else if (op->gate == SAGA_GATE_QUEUED)
				op->due_at = event->now;
			op->gate = SAGA_GATE_OPEN;
			break;
		default:
			make_outcome(d, s, v, event);
			break;
	}
}

static inline void
make_person(const Definition *d, Saga *s, const View *v,
			const SagaEvent *event)
{
	SagaEvent	one = *event;
	Saga		before;
	int			i;
	int			j;
	SagaOperation operation;

	if (event->kind == SAGA_EVENT_SKIP)
	{
		if (find_target(d, s, v, event, true, &i, &j, &operation) ||
			find_target(d, s, v, event, false, &i, &j, &operation))
			set_op(op_of(s, i, j, operation), SAGA_OP_SKIPPED, 0);
		return;
	}
	copy_saga(d, &before, s);
	for (i = 0; i < d->rules.nsteps; i++)
	{
		for (j = 0; j < s->steps[i].nelements; j++)
		{
			SagaOpState *op;
			int			step;
			int			element;

			one.step = i;
			one.element = j;
			if ((event->step != -1 && event->step != i) ||
				(event->element != -1 && event->element != j) ||
				!find_target(d, &before, v, &one, false, &step, &element,
							 &operation))
				continue;
			op = op_of(s, i, j, operation);
			set_op(op, SAGA_OP_WAITING, event->now);
			op->failures = 0;
			op->crashes = 0;
		}
	}
}

static inline void
make_forward(const Definition *d, Saga *s)
{
	int			goal = s->state.goal;
	int			i;
	int			j;

	s->recoveries[goal]++;
	s->state.backward = false;
	s->state.goal = -1;
	s->state.status = SAGA_STATUS_RUNNING;
	for (i = 0; i < d->rules.nsteps; i++)
	{
		if (!d->depends[goal][i])
			continue;
		for (j = 0; j < s->steps[i].nelements; j++)
			memset(&s->steps[i].elements[j], 0, sizeof(SagaElementState));
		s->steps[i].nelements = d->steps[i].foreach ? -1 : 1;
	}
}

static inline void
oracle_make(const Definition *d, Saga *s, const View *v,
			const SagaEvent *event)
{
	if (names_operation(event->kind))
		make_operation(d, s, v, event);
	else
	{
		switch (event->kind)
		{
			case SAGA_EVENT_EXPANDED:
				s->steps[event->step].nelements = event->nelements;
				memset(s->steps[event->step].elements, 0,
					   (size_t) event->nelements * sizeof(SagaElementState));
				break;
			case SAGA_EVENT_START:
				if (s->state.start_at > event->now)
					s->state.start_at = event->now;
				s->state.status = SAGA_STATUS_RUNNING;
				break;
			case SAGA_EVENT_FORWARD:
				make_forward(d, s);
				break;
			case SAGA_EVENT_RELEASE:
				s->state.released = true;
				break;
			case SAGA_EVENT_DEADLINE:
			case SAGA_EVENT_RECALL:
			case SAGA_EVENT_CANCEL:
				make_turn(d, s, -1);
				s->state.status = SAGA_STATUS_COMPENSATING;
				break;
			case SAGA_EVENT_PAUSE:
				s->state.status = SAGA_STATUS_PAUSED;
				return;
			case SAGA_EVENT_RESUME:
				s->state.status = s->state.start_at > event->now &&
					!oracle_has_begun(d, s) && !s->state.backward ?
					SAGA_STATUS_SCHEDULED : SAGA_STATUS_RUNNING;
				break;
			case SAGA_EVENT_RETRY:
			case SAGA_EVENT_SKIP:
				make_person(d, s, v, event);
				break;
			default:
				s->state.status = SAGA_STATUS_ABANDONED;
				return;
		}
	}
	settle(d, s);
}

/* ---------------------------------------------------------------------
 * Is the state after an event the one that was expected?
 * ---------------------------------------------------------------------
 */

static inline const char *
compare_op(const SagaOpState *before, const SagaOpState *expected,
		   const SagaOpState *after)
{
	if (after->status != expected->status)
		return "an operation has a wrong status";
	if (after->attempts != expected->attempts ||
		after->failures != expected->failures ||
		after->crashes != expected->crashes)
		return "an attempt is counted wrongly";
	if (after->unknown != expected->unknown ||
		after->surplus != expected->surplus)
		return "what is unknown or surplus is wrong";
	if (after->cancelled != expected->cancelled ||
		after->signalled != expected->signalled)
		return "what is cancelled or signalled is wrong";
	if ((after->gate == SAGA_GATE_QUEUED) !=
		(expected->gate == SAGA_GATE_QUEUED))
		return "a place in line for a lock is wrong";

	/* of what was attempted, the lock may be asked for again */
	if (after->gate != expected->gate && before->status == after->status &&
		to_be_tried(after))
		return "a lock is wrong";
	if (after->due_at != expected->due_at)
		return "a time is wrong";
	return NULL;
}

/* Would a caller that stores just what is marked store the new state? */
static inline bool
marks_change(const SagaOpState *before, const SagaOpState *after)
{
	return after->changed ||
		(after->status == before->status &&
		 after->unknown == before->unknown &&
		 after->cancelled == before->cancelled &&
		 after->surplus == before->surplus &&
		 after->signalled == before->signalled &&
		 after->attempts == before->attempts &&
		 after->failures == before->failures &&
		 after->crashes == before->crashes &&
		 (after->due_at == before->due_at ||
		  (after->status != SAGA_OP_WAITING &&
		   after->status != SAGA_OP_RUNNING) ||
		  before->gate == SAGA_GATE_QUEUED ||
		  after->gate == SAGA_GATE_QUEUED));
}

static inline const char *
compare_step(const Saga *before, const Saga *expected, const Saga *after,
			 int step, bool same_round)
{
	const char *wrong;
	int			i;
	int			j;

	if (after->steps[step].nelements != expected->steps[step].nelements)
		return "a step has a wrong number of elements";
	for (i = 0; i < after->steps[step].nelements; i++)
	{
		for (j = 0; j < SAGA_NOPERATION; j++)
		{
			const SagaOpState *new = look_at(after, step, i, (SagaOperation) j);
			const SagaOpState *old = look_at(before, step, i,
											 (SagaOperation) j);

			wrong = compare_op(old, look_at(expected, step, i,
											(SagaOperation) j), new);
			if (wrong != NULL)
				return wrong;
			if (same_round && i < before->steps[step].nelements &&
				!marks_change(old, new))
				return "a change is not marked";
			if (new->changed && !after->steps[step].changed)
				return "a changed step is not marked";
		}
	}
	return NULL;
}

static inline const char *
compare_saga(const Definition *d, const Saga *before, const Saga *expected,
			 const Saga *after, const SagaEvent *event)
{
	const SagaState *a = &after->state;
	const SagaState *e = &expected->state;
	const char *wrong;
	int			i;

	if (a->backward != e->backward || a->goal != e->goal)
		return "the saga goes in the wrong direction";
	if (a->status != e->status)
		return "the status is not what the operations say";
	if (a->child != e->child || a->released != e->released)
		return "a child's release is wrong";
	if (a->start_at != e->start_at || a->deadline != e->deadline)
		return "the start or the deadline is wrong";
	for (i = 0; i < d->rules.nsteps; i++)
	{
		if (after->recoveries[i] != expected->recoveries[i])
			return "a recovery is counted wrongly";
		wrong = compare_step(before, expected, after, i,
							 event->kind != SAGA_EVENT_FORWARD);
		if (wrong != NULL)
			return wrong;
	}
	return NULL;
}

/* ---------------------------------------------------------------------
 * P4: what is to be done, or waited for
 * ---------------------------------------------------------------------
 */

/* What must and what may be named, and when to look again. */
typedef struct Wanted
{
	bool		must[SAGA_TASK_REVOKE + 1][MAX_POOL][SAGA_NOPERATION];
	bool		may[SAGA_TASK_REVOKE + 1][MAX_POOL][SAGA_NOPERATION];
	bool		waits[SAGA_WAIT_PERSON_PAUSED + 1];
	SagaTime	earliest;		/* of all times that are ahead ... */
	SagaTime	necessary;		/* ... and of those that must not be missed */
	int			noperate[MAX_STEPS];	/* that could be attempted now */
	int			nrunning[MAX_STEPS];
} Wanted;

static inline bool
deadline_matters(const Saga *s, const View *v)
{
	SagaStatus	status = s->state.status;

	return s->state.deadline != SAGA_TIME_NEVER && !v->no_return &&
		(!s->state.backward || s->state.goal >= 0) &&
		(status == SAGA_STATUS_SCHEDULED || status == SAGA_STATUS_RUNNING ||
		 status == SAGA_STATUS_STUCK || status == SAGA_STATUS_COMPENSATING);
}

static inline void
want_time(Wanted *w, SagaTime now, SagaTime due_at, bool necessary)
{
	if (due_at > now && due_at < w->earliest)
		w->earliest = due_at;
	if (necessary && due_at > now && due_at < w->necessary)
		w->necessary = due_at;
}

static inline void
want_running(const Saga *s, const View *v, SagaTime now, int step, int place,
			 const SagaOpState *op, SagaOperation operation, Wanted *w)
{
	bool		over = op->due_at <= now;
	bool		unneeded = is_unneeded(s, v, step);

	w->must[SAGA_TASK_EXPIRE][place][operation] = over;
	w->waits[SAGA_WAIT_OUTCOME] = true;
	w->nrunning[step]++;
	want_time(w, now, op->due_at, true);
	if (operation == ACTION && !op->cancelled)
	{
		w->must[SAGA_TASK_REVOKE][place][operation] = unneeded && !over;
		w->may[SAGA_TASK_REVOKE][place][operation] = unneeded ||
			v->done[step];
	}
}

static inline void
want_op(const Definition *d, const Saga *s, const View *v, SagaTime now,
		int step, int element, SagaOperation operation, Wanted *w)
{
	const SagaOpState *op = look_at(s, step, element, operation);
	int			place = d->first[step] + element;
	bool		due = op->status == SAGA_OP_PENDING || op->due_at <= now;

	if (op->status == SAGA_OP_RUNNING)
		want_running(s, v, now, step, place, op, operation, w);
	else if (operation == ACTION &&
			 action_awaits_lock(d, s, v, step, element))
	{
		if (op->gate == SAGA_GATE_QUEUED)
		{
			w->must[SAGA_TASK_EXPIRE][place][operation] = op->due_at <= now;
			w->waits[SAGA_WAIT_LOCK] = true;
		}
		else
		{
			w->must[SAGA_TASK_ACQUIRE][place][operation] = due;
			w->waits[SAGA_WAIT_RETRY] |= !due;
		}
		if (op->gate == SAGA_GATE_QUEUED || !due)
			want_time(w, now, op->due_at, true);
	}
	else if (is_ready(d, s, v, step, element, operation))
	{
		w->may[SAGA_TASK_OPERATE][place][operation] = due;
		w->noperate[step] += due;
		w->waits[SAGA_WAIT_RETRY] |= !due;
		if (!due)
			want_time(w, now, op->due_at, d->steps[step].parallel == 0);
	}
}

static inline void
want_all(const Definition *d, const Saga *s, const View *v, SagaTime now,
		 Wanted *w)
{
	int			i;
	int			j;
	int			k;

	for (i = 0; i < d->rules.nsteps; i++)
	{
		if (is_to_expand(d, s, v, i))
			w->must[SAGA_TASK_EXPAND][d->first[i]][ACTION] = true;
		for (j = 0; j < s->steps[i].nelements; j++)
		{
			for (k = 0; k < SAGA_NOPERATION; k++)
				want_op(d, s, v, now, i, j, (SagaOperation) k, w);
		}
	}
}

static inline void
want(const Definition *d, const Saga *s, const View *v, SagaTime now,
	 Wanted *w)
{
	SagaStatus	status = s->state.status;

	memset(w, 0, sizeof(*w));
	w->earliest = w->necessary = SAGA_TIME_NEVER;
	w->waits[SAGA_WAIT_START] = status == SAGA_STATUS_SCHEDULED;
	w->waits[SAGA_WAIT_PARENT] = status == SAGA_STATUS_HELD;
	w->waits[SAGA_WAIT_PERSON_PAUSED] = status == SAGA_STATUS_PAUSED;
	if (status == SAGA_STATUS_SCHEDULED)
		want_time(w, now, s->state.start_at, true);
	if (status == SAGA_STATUS_RUNNING || status == SAGA_STATUS_COMPENSATING ||
		status == SAGA_STATUS_STUCK)
		want_all(d, s, v, now, w);
	if (status == SAGA_STATUS_STUCK)
	{
		memset(w->waits, 0, sizeof(w->waits));
		w->waits[SAGA_WAIT_PERSON_STUCK] = true;
	}
	if (deadline_matters(s, v))
		want_time(w, now, s->state.deadline, true);
}

/* What a person is asked about must be something that a person can decide. */
static inline bool
names_stuck(const Definition *d, const Saga *s, const View *v,
			const SagaTodo *todo)
{
	SagaEvent	anything = make_event(SAGA_EVENT_RETRY, -1, -1, ACTION);
	SagaOperation operation;
	int			i;
	int			j;

	if (todo->step < 0)
		return false;
	if (todo->element >= 0)
		return todo->element < s->steps[todo->step].nelements &&
			is_stuck(s, v, todo->step, todo->element, todo->operation);
	return v->hopeless[todo->step] &&
		!find_target(d, s, v, &anything, true, &i, &j, &operation);
}

static inline bool
names_wait(const Definition *d, const Saga *s, const View *v, SagaTime now,
		   const SagaTodo *todo)
{
	const SagaOpState *op;

	if (todo->wait == SAGA_WAIT_PERSON_STUCK)
		return names_stuck(d, s, v, todo);
	if (todo->wait == SAGA_WAIT_START || todo->wait == SAGA_WAIT_PARENT ||
		todo->wait == SAGA_WAIT_PERSON_PAUSED)
		return todo->step == -1;
	if (todo->step < 0 || todo->element < 0)
		return false;
	op = look_at(s, todo->step, todo->element, todo->operation);
	if (todo->wait == SAGA_WAIT_OUTCOME)
		return op->status == SAGA_OP_RUNNING;
	if (todo->wait == SAGA_WAIT_LOCK)
		return op->gate == SAGA_GATE_QUEUED &&
			action_awaits_lock(d, s, v, todo->step, todo->element);
	return op->status == SAGA_OP_WAITING && op->due_at > now &&
		(is_ready(d, s, v, todo->step, todo->element, todo->operation) ||
		 (todo->operation == ACTION &&
		  action_awaits_lock(d, s, v, todo->step, todo->element)));
}

static inline const char *
judge_wait(const Definition *d, const Saga *s, const View *v, SagaTime now,
		   const SagaTodo *todo, const Wanted *w)
{
	if (!w->waits[todo->wait] || !names_wait(d, s, v, now, todo))
		return "P4: it waits for something that is not there";
	if (todo->due_at < w->earliest || todo->due_at > w->necessary)
		return "P4: it looks again at a wrong time";
	if (todo->due_at == SAGA_TIME_NEVER &&
		(todo->wait == SAGA_WAIT_START || todo->wait == SAGA_WAIT_RETRY))
		return "P4: it waits for ever for a time";
	return NULL;
}

/* Named once, each that must be, none that must not be, and in order. */
static inline const char *
judge_tasks(const Definition *d, const Saga *s, const SagaTodo *todo,
			const SagaTask *tasks, Wanted *w)
{
	int			named[MAX_STEPS] = {0};
	int			last = -1;
	int			i;
	int			j;
	int			k;

	for (i = 0; i < todo->ntasks; i++)
	{
		const SagaTask *task = &tasks[i];
		int			place = d->first[task->step] + task->element;
		int			rank = (s->state.backward ?
							d->rules.nsteps - 1 - task->step : task->step) *
			MAX_ROOM + task->element;

		if (!w->must[task->kind][place][task->operation] &&
			!w->may[task->kind][place][task->operation])
			return "a task is named that is none, or twice";
		w->must[task->kind][place][task->operation] = false;
		w->may[task->kind][place][task->operation] = false;
		if (rank < last)
			return "the tasks are not in order";
		last = rank;
		if (task->kind != SAGA_TASK_OPERATE)
			continue;
		named[task->step]++;
		if (task->attempt != look_at(s, task->step, task->element,
									 task->operation)->attempts + 1)
			return "the attempt has a wrong number";
	}
	for (i = 0; i <= SAGA_TASK_REVOKE; i++)
	{
		for (j = 0; j < d->npool; j++)
		{
			for (k = 0; k < SAGA_NOPERATION; k++)
			{
				if (w->must[i][j][k])
					return "P4: a task is forgotten";
			}
		}
	}
	for (i = 0; i < d->rules.nsteps; i++)
	{
		int			parallel = d->steps[i].parallel;
		int			room = parallel - w->nrunning[i];

		if (parallel == 0 || room > w->noperate[i])
			room = w->noperate[i];
		if (named[i] != (room > 0 ? room : 0))
			return "more than parallel allows, or less";
	}
	return NULL;
}

static inline const char *
judge_todo(const Definition *d, const Saga *s, const View *v, SagaTime now,
		   const SagaTodo *todo, const SagaTask *tasks)
{
	int			ways = todo->deadline + todo->start + todo->forward +
		(todo->ntasks > 0) + (todo->wait != SAGA_WAIT_NOTHING);
	Wanted		w;

	if (oracle_final(s))
		return ways == 0 && todo->due_at == SAGA_TIME_NEVER ? NULL :
			"P6: a final saga has something to do";
	if (ways != 1)
		return "P4: not just one thing to do or to wait for";
	if (todo->wait == SAGA_WAIT_NOTHING && todo->due_at > now)
		return "P4: what is to do has a time ahead";
	if (todo->deadline != (deadline_matters(s, v) &&
						   s->state.deadline <= now))
		return "P4: the deadline was forgotten, or is none";
	if (todo->deadline)
		return NULL;
	if (todo->start != (s->state.status == SAGA_STATUS_SCHEDULED &&
						s->state.start_at <= now))
		return "P4: the start was forgotten, or is none";
	if (todo->forward != is_at_goal(s, v))
		return "P4: it does not turn forward where it should";
	if (todo->start || todo->forward)
		return NULL;
	want(d, s, v, now, &w);
	if (todo->wait == SAGA_WAIT_NOTHING)
		return judge_tasks(d, s, todo, tasks, &w);
	return judge_wait(d, s, v, now, todo, &w) != NULL ?
		judge_wait(d, s, v, now, todo, &w) :
		judge_tasks(d, s, todo, tasks, &w);
}

/* ---------------------------------------------------------------------
 * P5 and P6, in every state ...
 * ---------------------------------------------------------------------
 */

static inline bool
has_begun(const SagaOpState *op)
{
	return op->status != SAGA_OP_PENDING;
}

static inline const char *
judge_element(const Definition *d, const Saga *s, const View *v, int step,
			  int element)
{
	const SagaOpState *action = look_at(s, step, element, ACTION);
	const SagaOpState *undo = look_at(s, step, element, COMPENSATION);
	const SagaOpState *confirm = look_at(s, step, element, CONFIRMATION);

	if (v->off[step] && has_begun(action))
		return "a step acts that is not on the way";
	if (has_begun(undo) && (!d->steps[step].has_compensation ||
							!has_effect(action)))
		return "P5: a compensation of what has none, or had no effect";
	if (has_begun(undo) && (action->status == SAGA_OP_RUNNING ||
							to_be_tried(action)))
		return "P5: a compensation while its action is out, or to come";
	if (has_begun(undo) && !action->surplus &&
		(!s->state.backward || !v->concerned[step] || v->holds))
		return "P5: a compensation past a pivot, or out of reach";
	if (has_begun(confirm) &&
		(!d->steps[step].has_confirmation || has_begun(undo) ||
		 action->status != SAGA_OP_SUCCEEDED || action->surplus ||
		 s->state.backward || !v->all_done ||
		 (s->state.child && !s->state.released)))
		return "a confirmation too early, or of what has none";
	return NULL;
}

/* Nothing is left over of what has ended. */
static inline const char *
judge_ended(const Definition *d, const Saga *s, const View *v, int step,
			int element)
{
	const SagaOpState *action = look_at(s, step, element, ACTION);
	bool		won = action->status == SAGA_OP_SUCCEEDED && !action->surplus;

	if (s->state.status == SAGA_STATUS_COMPENSATED)
		return element_undone(d, s, step, element) ? NULL :
			"P5: something was not undone";
	if (won && d->steps[step].has_confirmation &&
		s->state.status == SAGA_STATUS_COMPLETED &&
		!ended_well(look_at(s, step, element, CONFIRMATION)))
		return "it is completed, and not confirmed";
	if (!won && !v->off[step] && !element_undone(d, s, step, element))
		return "P5: the effect of a loser was not undone";
	return to_be_tried(action) && !v->off[step] ?
		"it is completed, and not done" : NULL;
}

static inline const char *
judge_savepoint(const Definition *d, const Saga *s, int savepoint)
{
	int			alternative = d->steps[savepoint].alternative;
	int			recoveries = s->recoveries[savepoint];
	int			i;
	int			j;

	if (recoveries < 0 || recoveries > d->steps[savepoint].recoveries)
		return "more recoveries than there may be";
	for (i = 0; i < d->rules.nsteps && alternative >= 0; i++)
	{
		bool		normal = d->depends[savepoint][i] && i != alternative &&
			!d->depends[alternative][i];

		for (j = 0; j < s->steps[i].nelements; j++)
		{
			if (((recoveries > 0 && normal) ||
				 (recoveries == 0 && i == alternative)) &&
				has_begun(look_at(s, i, j, ACTION)))
				return "an alternative beside the normal steps";
		}
	}
	return NULL;
}

static inline bool
has_many_winners(const Definition *d, const Saga *s, int step)
{
	int			n = 0;
	int			i;

	for (i = 0; i < s->steps[step].nelements; i++)
	{
		const SagaOpState *action = look_at(s, step, i, ACTION);

		n += action->status == SAGA_OP_SUCCEEDED && !action->surplus;
	}
	return n > d->steps[step].quorum;
}

/*
 * Is there no way back, whatever this action, which may be out, will come to?
 * Then its every error is passing.
 */
static inline bool
has_no_return_but_for(const Definition *d, const Saga *s, const View *v,
					  int step, int element)
{
	int			i;
	int			j;

	if (v->no_return && !v->holds)
		return true;
	for (i = 0; i < d->rules.nsteps; i++)
	{
		if (!d->steps[i].pivot || v->off[i])
			continue;
		for (j = 0; j < s->steps[i].nelements; j++)
		{
			const SagaOpState *action = look_at(s, i, j, ACTION);
			bool		out = action->status == SAGA_OP_RUNNING &&
				!(i == step && j == element);

			if (out || ended_well(action) || action->unknown)
				return true;
		}
		if (v->done[i])
			return true;
	}
	return false;
}

static inline const char *
judge_state(const Definition *d, const Saga *s, const View *v)
{
	SagaStatus	status = s->state.status;
	bool		ended = status == SAGA_STATUS_COMPLETED ||
		status == SAGA_STATUS_COMPENSATED || status == SAGA_STATUS_HELD;
	const char *wrong = NULL;
	int			i;
	int			j;

	if (ended && has_running(d, s))
		return "it has ended and something is out";
	if (s->state.child && !s->state.released &&
		status == SAGA_STATUS_COMPLETED)
		return "P6: a child is final before its parent let it go";
	if (status == SAGA_STATUS_HELD && (!s->state.child || s->state.released))
		return "it is held by nobody";
	for (i = 0; i < d->rules.nsteps && wrong == NULL; i++)
	{
		int			round = 0;

		for (j = 0; j < d->rules.nsteps; j++)
			round += d->depends[j][i] ? s->recoveries[j] : 0;
		if (saga_machine_round(&d->rules, &s->state, i) != round)
			wrong = "the round of a step is wrong";
		if (saga_machine_step_is_done(&d->rules, &s->state, i) != v->done[i])
			wrong = "a step is done or is not";
		if (s->steps[i].off != v->off[i])
			wrong = "a step is off or is not";
		if (d->steps[i].savepoint && wrong == NULL)
			wrong = judge_savepoint(d, s, i);
		if (d->steps[i].quorum > 0 && has_many_winners(d, s, i))
			wrong = "a quorum has too many winners";
		for (j = 0; j < s->steps[i].nelements && wrong == NULL; j++)
		{
			wrong = judge_element(d, s, v, i, j);
			if (saga_machine_any_passing(&d->rules, &s->state, i, j,
										 ACTION) !=
				has_no_return_but_for(d, s, v, i, j))
				wrong = "an error is passing or is not";
			if (wrong == NULL && ended && status != SAGA_STATUS_HELD)
				wrong = judge_ended(d, s, v, i, j);
		}
	}
	return wrong;
}

/* ---------------------------------------------------------------------
 * ... and between two of them
 * ---------------------------------------------------------------------
 */

/* What nobody knows stays so until somebody says that it is done. */
static inline const char *
judge_unknown(const SagaOpState *old, const SagaOpState *new, bool this_one,
			  const SagaEvent *event)
{
	if (new->unknown && !old->unknown)
		return "an event has made an outcome unknown";
	if (!old->unknown || new->unknown || new->status == SAGA_OP_SUCCEEDED)
		return NULL;
	if (event->kind == SAGA_EVENT_SKIP && new->status == SAGA_OP_SKIPPED)
		return NULL;
	if (event->kind == SAGA_EVENT_REVOKED && this_one && old->attempts == 0)
		return NULL;
	return "P5: what may have had its effect is forgotten";
}

/* In the same round. */
static inline const char *
judge_op_change(const Definition *d, const Saga *before, const View *v,
				const Saga *after, int step, int element,
				const SagaEvent *event)
{
	const SagaOpState *old = look_at(before, step, element, ACTION);
	const SagaOpState *new = look_at(after, step, element, ACTION);
	bool		this_one = event->step == step && event->element == element;
	const char *wrong;
	int			i;

	for (i = 0; i < SAGA_NOPERATION; i++)
	{
		const SagaOpState *o = look_at(before, step, element,
									   (SagaOperation) i);
		const SagaOpState *n = look_at(after, step, element,
									   (SagaOperation) i);

		wrong = judge_unknown(o, n, this_one && (int) event->operation == i,
							  event);
		if (wrong != NULL)
			return wrong;
		if (ended_well(o) && o->status != n->status)
			return "an operation that has ended goes on";
		if (n->attempts < o->attempts || n->attempts > o->attempts + 1)
			return "attempts are forgotten or made up";
		if (!has_begun(o) && has_begun(n) &&
			before->state.status != SAGA_STATUS_RUNNING &&
			before->state.status != SAGA_STATUS_COMPENSATING &&
			n->status != SAGA_OP_SKIPPED)
			return "an operation begins in a saga that stands still";
	}
	if (!has_begun(old) && has_begun(new) && new->status != SAGA_OP_SKIPPED &&
		(before->state.backward || !preds_done(d, v, step) || !this_one))
		return "an action acts that must not";
	if (!has_begun(old) && has_begun(new) && d->steps[step].exclusive &&
		old->gate != SAGA_GATE_OPEN && new->status != SAGA_OP_SKIPPED &&
		event->kind != SAGA_EVENT_FAILED &&
		event->kind != SAGA_EVENT_NOT_TAKEN)
		return "an action acts without its lock";
	old = look_at(before, step, element, COMPENSATION);
	new = look_at(after, step, element, COMPENSATION);
	if (!has_begun(old) && has_begun(new) &&
		!may_compensate(d, before, v, step, element))
		return "P5: a compensation acts that must not";
	if (has_begun(old) &&
		look_at(before, step, element, ACTION)->attempts !=
		look_at(after, step, element, ACTION)->attempts)
		return "P5: an action acts after its compensation";
	return NULL;
}

/* Going forward again must forget only what is undone. */
static inline const char *
judge_new_round(const Definition *d, const Saga *before, const Saga *after,
				int step)
{
	int			i;
	int			j;

	for (i = 0; i < before->steps[step].nelements; i++)
	{
		if (!element_undone(d, before, step, i))
			return "P5: a new round forgets what is not undone";
		for (j = 0; j < SAGA_NOPERATION; j++)
		{
			if (look_at(before, step, i, (SagaOperation) j)->status ==
				SAGA_OP_RUNNING)
				return "a new round forgets what is out";
		}
	}
	for (i = 0; i < after->steps[step].nelements; i++)
	{
		for (j = 0; j < SAGA_NOPERATION; j++)
		{
			if (has_begun(look_at(after, step, i, (SagaOperation) j)))
				return "a new round does not begin afresh";
		}
	}
	return NULL;
}

static inline const char *
judge_change(const Definition *d, const Saga *before, const View *v,
			 const Saga *after, const SagaEvent *event)
{
	bool		forward = event->kind == SAGA_EVENT_FORWARD;
	const char *wrong = NULL;
	int			i;
	int			j;

	if (before->state.backward && !after->state.backward && !forward)
		return "a saga that goes back turns forward";
	if (!before->state.backward && after->state.backward && v->holds &&
		!names_operation(event->kind))
		return "P5: a saga turns back past its pivot";
	for (i = 0; i < d->rules.nsteps && wrong == NULL; i++)
	{
		if (forward && d->depends[before->state.goal][i])
			wrong = judge_new_round(d, before, after, i);
		else
		{
			for (j = 0; j < before->steps[i].nelements && wrong == NULL; j++)
				wrong = judge_op_change(d, before, v, after, i, j, event);
		}
	}
	return wrong;
}

#endif							/* SAGA_MACHINE_ORACLE_H */
