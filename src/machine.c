/*
 * machine.c
 *		The state machine of a saga.
 *
 * This file owns the rules by which a saga moves: which operation is the next
 * one, and what each event makes of a state.  It is pure: all that it knows is
 * in its arguments, all that it decides is in what it returns or, for an event
 * that it applies, in the SagaState.  Every process that advances a saga calls
 * it.  It stays right when the caller is killed at any line because nothing is
 * kept here: the caller writes the state in the transaction in which it acts,
 * and what it read again is the whole truth.  What has to be kept: status,
 * backward, start_at, deadline, and of each operation its status, unknown,
 * attempts, failures, crashes and, while it is WAITING, due_at.
 *
 * Words used below:
 *		done		an action that has SUCCEEDED or was SKIPPED
 *		unknown		an operation that may have had its effect though nobody
 *					said that it succeeded.  The machine clears that mark when
 *					the operation succeeds or is skipped, and never sets it:
 *					that, like RUNNING, is written by whoever hands operations
 *					out to others
 *		the pivot	holds when a pivot's action is done, is RUNNING or is
 *		holds		unknown: the saga may be past the point of no return, so it
 *					does not turn back.  (A pivot that a person skipped counts
 *					as passed: nothing after it can be undone.)  Once it holds
 *					for being done, it holds for ever
 *		undone		in a saga that goes back, a step with nothing (left) to
 *					undo: its action did not succeed and is not unknown, or it
 *					has no compensation, or that has SUCCEEDED or was SKIPPED.
 *					A step whose action is RUNNING is not undone
 *		stuck		an operation that a person must decide about: a FAILED
 *					compensation; and in a saga that goes forward, a FAILED
 *					action
 *
 * About the last: FAILED alone does not say whether an action failed for good
 * or is out of attempts, and needs not.  Before the pivot holds both turn the
 * saga back in the same event, so that a saga that still goes forward has a
 * FAILED action for two reasons only: there was no way back, since the pivot
 * held, or its process ended SAGA_MAX_CRASHES times (crashes says so), which
 * is no verdict about the business.  If the pivot ceases to hold (it was out,
 * and its outcome is: failed), actions that failed for the first reason turn
 * the saga back then.
 *
 * Forward, an action is ready when it is PENDING or WAITING and all actions of
 * the steps before it are done.  Backward, a compensation is ready when its
 * step is not undone, its action is not RUNNING, and every step that depends
 * on it, however far off, is undone.  Compensations of steps that need none
 * stay PENDING, and so do the actions that were never begun; confirmations are
 * PENDING always, for the time being.
 *
 * The statuses, and what an event makes of them:
 *
 *				SCHEDULED RUNNING COMPENS. HELD    STUCK    PAUSED   final
 *	succeeded	stale     (1)     (1)      stale   (2)      (2)      final
 *	failed		stale     (1)     (1)      stale   (2)      (2)      final
 *	later		stale     (1)     (1)      stale   (2)      (2)      final
 *	lost		stale     (1)     (1)      stale   (2)      (2)      final
 *	start		RUNNING   stale   stale    stale   stale    paused   final
 *	deadline	(3)       (3)     backward stale   (3)      paused   final
 *	cancel		(4)       (4)     backward (4)     (4)      (4)      final
 *	pause		PAUSED    PAUSED  PAUSED   nothing stuck    paused   final
 *	resume		not pau.  not p.  not p.   not p.  not p.   (5)      final
 *	retry		nothing   (6)     (6)      nothing (6)      paused   final
 *	skip		nothing   (6)     (6)      nothing (6)      paused   final
 *	abandon		ABANDONED, but final when it has ended
 *
 *	Small letters are the verdict that refuses it; nothing has changed then.
 *	(1) of an operation that is ready or RUNNING, else stale.  A ready one is
 *		accepted before its due time too: the clock of the report may be behind
 *		the one that was asked.
 *	(2) of an operation that is RUNNING, else stale: what was handed out comes
 *		to a known outcome whatever becomes of the saga meanwhile.  PAUSED and
 *		STUCK stay; only "backward" may become true under PAUSED, and a STUCK
 *		saga turns back when the pivot's failure gives the way free.
 *	(3) stale before its time; backward when it goes back already; pivot when
 *		the pivot holds; else the saga turns back.
 *	(4) backward or pivot likewise; else the saga turns back.
 *	(5) what the operations say: SCHEDULED if none has begun and start_at is
 *		still ahead, else as under "after every event".
 *	(6) on the operations of the direction it goes that are stuck or WAITING,
 *		else nothing.  Retry without a step means all of these, skip the stuck
 *		one (else the waiting one) that comes first in the order in which they
 *		are done.
 *
 *	What an outcome makes of its operation (each counts one attempt):
 *		succeeded				SUCCEEDED; crashes = 0
 *		failed, passing, with	WAITING; failures + 1
 *		  attempts left
 *		failed otherwise		FAILED; failures + 1
 *		later					WAITING
 *		lost					crashes + 1; WAITING, and FAILED at the last one
 *	An action that comes back when the saga goes back is FAILED in place of
 *	WAITING: nobody waits for it any more.
 *
 *	After every event:
 *		forward, the pivot does not hold and an action FAILED otherwise than by
 *		  crashes				-> backward, WAITING actions become FAILED
 *		an operation is stuck	-> STUCK
 *		forward					-> COMPLETED when all actions are done, else
 *								   RUNNING
 *		backward				-> COMPENSATED when all steps are undone, else
 *								   COMPENSATING
 *	(not while it is PAUSED, the first of these excepted).
 *
 * What holds in every state, asserted by saga_machine_check():
 *	I1	Positions, enums and counters are in their ranges.  No operation
 *		counts more failures or crashes than attempts; a PENDING one has no
 *		attempts, a WAITING, SUCCEEDED or FAILED one has some.
 *	I2	A WAITING operation has a time; so has a SCHEDULED saga.
 *	I3	unknown are RUNNING, WAITING and FAILED operations only.
 *	I4	Fewer than SAGA_MAX_CRASHES crashes, unless FAILED or SKIPPED.
 *	I5	An action that has begun has done actions before it.
 *	I6	Forward: no compensation has begun; a FAILED action has
 *		SAGA_MAX_CRASHES crashes, or the pivot holds.
 *	I7	Backward: the pivot does not hold, no action is WAITING.  (Backward
 *		never ends but with the saga.)
 *	I8	A compensation that has begun belongs to a step that has one, whose
 *		action SUCCEEDED or is unknown, and every step that depends on it is
 *		undone.
 *	I9	SCHEDULED, RUNNING, HELD and COMPLETED go forward, COMPENSATING and
 *		COMPENSATED backward; STUCK, PAUSED and ABANDONED keep either.
 *	I10	SCHEDULED: nothing has begun.  RUNNING: not all actions are done;
 *		HELD, COMPLETED: all are.  COMPENSATING: not every step is undone;
 *		COMPENSATED: each is.
 *	I11	Something is stuck in STUCK, may be in PAUSED and ABANDONED, and is
 *		not in the others.
 *	I12	Confirmations are PENDING.
 *
 * HELD is not reached by an event yet: it waits for child sagas.
 */
#ifdef USE_ASSERT_CHECKING
#include <assert.h>
#endif
#include <limits.h>
#include <stddef.h>
#include <string.h>

#include "machine.h"

/* Upper bound of a pause that a step asks for: a hundred years. */
#define MAX_ASKED_DELAY		INT64_C(3155760000000000)

/* Upper bound of the pause after a process has ended: a second. */
#define MAX_LOST_DELAY		INT64_C(1000000)

#define lengthof(array)		((int) (sizeof(array) / sizeof((array)[0])))

/* Some steps, by position. */
typedef struct StepSet
{
	uint64_t	words[SAGA_MAX_STEPS / 64 + 1];
} StepSet;

/* The words, in the order of the enums. */
static const char *const status_names[] = {
	"scheduled", "running", "compensating", "held", "stuck", "paused",
	"completed", "compensated", "abandoned"
};

static const char *const operation_names[] = {
	"action", "compensation", "confirmation"
};

static const char *const op_status_names[] = {
	"pending", "running", "waiting", "succeeded", "failed", "skipped"
};

static const char *const event_names[] = {
	"succeeded", "failed", "later", "lost", "start", "deadline", "cancel",
	"pause", "resume", "retry", "skip", "abandon"
};

_Static_assert(lengthof(status_names) == SAGA_NSTATUS, "a word each");
_Static_assert(lengthof(operation_names) == SAGA_NOPERATION, "a word each");
_Static_assert(lengthof(op_status_names) == SAGA_NOP_STATUS, "a word each");
_Static_assert(lengthof(event_names) == SAGA_NEVENT, "a word each");

/* ---------------------------------------------------------------------
 * Words
 * ---------------------------------------------------------------------
 */

static const char *
name_of(const char *const *names, int nnames, int value)
{
	return value >= 0 && value < nnames ? names[value] : "unrecognized";
}

/* The position of "name", or -1. */
static int
find_name(const char *const *names, int nnames, const char *name)
{
	int			i;

	for (i = 0; i < nnames; i++)
	{
		if (strcmp(names[i], name) == 0)
			return i;
	}
	return -1;
}

const char *
saga_status_name(SagaStatus status)
{
	return name_of(status_names, SAGA_NSTATUS, (int) status);
}

const char *
saga_operation_name(SagaOperation operation)
{
	return name_of(operation_names, SAGA_NOPERATION, (int) operation);
}

const char *
saga_op_status_name(SagaOpStatus status)
{
	return name_of(op_status_names, SAGA_NOP_STATUS, (int) status);
}

const char *
saga_event_name(SagaEventKind kind)
{
	return name_of(event_names, SAGA_NEVENT, (int) kind);
}

bool
saga_status_parse(const char *name, SagaStatus *status)
{
	int			found = find_name(status_names, SAGA_NSTATUS, name);

	if (found < 0)
		return false;
	*status = (SagaStatus) found;
	return true;
}

bool
saga_operation_parse(const char *name, SagaOperation *operation)
{
	int			found = find_name(operation_names, SAGA_NOPERATION, name);

	if (found < 0)
		return false;
	*operation = (SagaOperation) found;
	return true;
}

bool
saga_op_status_parse(const char *name, SagaOpStatus *status)
{
	int			found = find_name(op_status_names, SAGA_NOP_STATUS, name);

	if (found < 0)
		return false;
	*status = (SagaOpStatus) found;
	return true;
}

bool
saga_event_parse(const char *name, SagaEventKind *kind)
{
	int			found = find_name(event_names, SAGA_NEVENT, name);

	if (found < 0)
		return false;
	*kind = (SagaEventKind) found;
	return true;
}

/* ---------------------------------------------------------------------
 * Questions about a state
 * ---------------------------------------------------------------------
 */

static void
empty_set(StepSet *set, int nsteps)
{
	memset(set->words, 0, ((size_t) nsteps / 64 + 1) * sizeof(uint64_t));
}

static void
add_to_set(StepSet *set, int step)
{
	set->words[step / 64] |= UINT64_C(1) << (step % 64);
}

static bool
is_in_set(const StepSet *set, int step)
{
	return (set->words[step / 64] >> (step % 64)) & 1;
}

bool
saga_status_is_final(SagaStatus status)
{
	return status == SAGA_STATUS_COMPLETED ||
		status == SAGA_STATUS_COMPENSATED ||
		status == SAGA_STATUS_ABANDONED;
}

static SagaOpState *
action_of(const SagaState *state, int step)
{
	return &state->steps[step].op[SAGA_OPERATION_ACTION];
}

static SagaOpState *
compensation_of(const SagaState *state, int step)
{
	return &state->steps[step].op[SAGA_OPERATION_COMPENSATION];
}

/* What is done for a step in the direction in which the saga goes. */
static SagaOperation
current_operation(const SagaState *state)
{
	return state->backward ? SAGA_OPERATION_COMPENSATION :
		SAGA_OPERATION_ACTION;
}

static SagaOpState *
current_op(const SagaState *state, int step)
{
	return &state->steps[step].op[current_operation(state)];
}

/*
 * The steps in the order in which they are done: 0 is the first going
 * forward, the last going back.
 */
static int
nth_step(const SagaState *state, int n)
{
	return state->backward ? state->nsteps - 1 - n : n;
}

/* Needs no further attempt, and none will be made. */
static bool
has_ended_well(const SagaOpState *op)
{
	return op->status == SAGA_OP_SUCCEEDED || op->status == SAGA_OP_SKIPPED;
}

/* Not made yet, or to be made again. */
static bool
is_to_be_tried(const SagaOpState *op)
{
	return op->status == SAGA_OP_PENDING || op->status == SAGA_OP_WAITING;
}

static bool
has_begun(const SagaState *state)
{
	int			i;

	for (i = 0; i < state->nsteps; i++)
	{
		if (action_of(state, i)->status != SAGA_OP_PENDING)
			return true;
	}
	return false;
}

/*
 * Does the pivot hold?  The action of step "except" (-1: of none) is not asked
 * whether it is RUNNING: that is for the one who is about to report how it
 * ended.
 */
static bool
pivot_holds_but_for(const SagaRules *rules, const SagaState *state, int except)
{
	int			i;

	for (i = 0; i < rules->nsteps; i++)
	{
		const SagaOpState *action = action_of(state, i);

		if (!rules->steps[i].pivot)
			continue;
		if (has_ended_well(action) || action->unknown)
			return true;
		if (action->status == SAGA_OP_RUNNING && i != except)
			return true;
	}
	return false;
}

static bool
pivot_holds(const SagaRules *rules, const SagaState *state)
{
	return pivot_holds_but_for(rules, state, -1);
}

static bool
preds_are_done(const SagaRules *rules, const SagaState *state, int step)
{
	const SagaStepRule *rule = &rules->steps[step];
	int			i;

	for (i = 0; i < rule->npreds; i++)
	{
		if (!has_ended_well(action_of(state, rule->preds[i])))
			return false;
	}
	return true;
}

static bool
all_are_done(const SagaState *state)
{
	int			i;

	for (i = 0; i < state->nsteps; i++)
	{
		if (!has_ended_well(action_of(state, i)))
			return false;
	}
	return true;
}

static bool
may_have_effect(const SagaOpState *action)
{
	return action->status == SAGA_OP_SUCCEEDED || action->unknown;
}

static bool
is_undone(const SagaRules *rules, const SagaState *state, int step)
{
	const SagaOpState *action = action_of(state, step);

	if (action->status == SAGA_OP_RUNNING)
		return false;
	if (!may_have_effect(action) || !rules->steps[step].has_compensation)
		return true;
	return has_ended_well(compensation_of(state, step));
}

static bool
all_are_undone(const SagaRules *rules, const SagaState *state)
{
	int			i;

	for (i = 0; i < rules->nsteps; i++)
	{
		if (!is_undone(rules, state, i))
			return false;
	}
	return true;
}

/*
 * The steps that a step which is not undone depends on, however far off.  One
 * pass from the last to the first is enough: a step's predecessors have lower
 * positions, so all that can block a step has been seen before it.
 */
static void
find_blocked(const SagaRules *rules, const SagaState *state, StepSet *blocked)
{
	int			i;
	int			j;

	empty_set(blocked, rules->nsteps);
	for (i = rules->nsteps - 1; i >= 0; i--)
	{
		const SagaStepRule *rule = &rules->steps[i];

		if (!is_in_set(blocked, i) && is_undone(rules, state, i))
			continue;
		for (j = 0; j < rule->npreds; j++)
			add_to_set(blocked, rule->preds[j]);
	}
}

static bool
action_is_ready(const SagaRules *rules, const SagaState *state, int step)
{
	return is_to_be_tried(action_of(state, step)) &&
		preds_are_done(rules, state, step);
}

static bool
compensation_is_ready(const SagaRules *rules, const SagaState *state,
					  const StepSet *blocked, int step)
{
	return is_to_be_tried(compensation_of(state, step)) &&
		action_of(state, step)->status != SAGA_OP_RUNNING &&
		!is_undone(rules, state, step) &&
		!is_in_set(blocked, step);
}

/* Is this operation RUNNING, or one that may be attempted now? */
static bool
is_expected(const SagaRules *rules, const SagaState *state,
			int step, SagaOperation operation)
{
	StepSet		blocked;

	if (state->steps[step].op[operation].status == SAGA_OP_RUNNING)
		return true;
	if (operation == SAGA_OPERATION_ACTION)
		return state->status == SAGA_STATUS_RUNNING &&
			action_is_ready(rules, state, step);
	if (operation != SAGA_OPERATION_COMPENSATION ||
		state->status != SAGA_STATUS_COMPENSATING)
		return false;
	find_blocked(rules, state, &blocked);
	return compensation_is_ready(rules, state, &blocked, step);
}

static bool
is_stuck(const SagaState *state, int step)
{
	return current_op(state, step)->status == SAGA_OP_FAILED;
}

static bool
is_waiting(const SagaState *state, int step)
{
	return current_op(state, step)->status == SAGA_OP_WAITING;
}

/* The step whose operation is stuck, the first of them, or -1. */
static int
find_stuck(const SagaState *state)
{
	int			n;

	for (n = 0; n < state->nsteps; n++)
	{
		if (is_stuck(state, nth_step(state, n)))
			return nth_step(state, n);
	}
	return -1;
}

/* Likewise the one that is WAITING, due or not. */
static int
find_waiting(const SagaState *state)
{
	int			n;

	for (n = 0; n < state->nsteps; n++)
	{
		if (is_waiting(state, nth_step(state, n)))
			return nth_step(state, n);
	}
	return -1;
}

/*
 * Has the deadline a say, now or later?  Not while the saga is PAUSED: its
 * time comes with resume.
 */
static bool
deadline_matters(const SagaRules *rules, const SagaState *state)
{
	if (state->deadline == SAGA_TIME_NEVER || state->backward)
		return false;
	if (state->status != SAGA_STATUS_SCHEDULED &&
		state->status != SAGA_STATUS_RUNNING &&
		state->status != SAGA_STATUS_STUCK)
		return false;
	return !pivot_holds(rules, state);
}

bool
saga_machine_any_passing(const SagaRules *rules, const SagaState *state,
						 int step, SagaOperation operation)
{
	if (operation != SAGA_OPERATION_ACTION)
		return true;
	return pivot_holds_but_for(rules, state, step);
}

/* ---------------------------------------------------------------------
 * What to do next
 * ---------------------------------------------------------------------
 */

/*
 * The invariants, in builds with USE_ASSERT_CHECKING: of each state that is
 * asked about, and of each that an event has made.
 */
static void
assert_sound(const SagaRules *rules, const SagaState *state)
{
#ifdef USE_ASSERT_CHECKING
	assert(saga_machine_check(rules, state) == NULL);
#else
	(void) rules;
	(void) state;
#endif
}

static void
plan_nothing(SagaTodo *todo)
{
	todo->deadline = false;
	todo->start = false;
	todo->operate = false;
	todo->step = -1;
	todo->operation = SAGA_OPERATION_ACTION;
	todo->attempt = 0;
	todo->wait = SAGA_WAIT_NOTHING;
	todo->due_at = SAGA_TIME_NEVER;
}

static void
plan_wait(SagaTodo *todo, SagaWait wait, int step, SagaOperation operation,
		  SagaTime due_at)
{
	todo->wait = wait;
	todo->step = step;
	todo->operation = operation;
	todo->due_at = due_at;
}

static void
plan_attempt(SagaTodo *todo, const SagaOpState *op, int step,
			 SagaOperation operation, SagaTime due_at)
{
	todo->operate = true;
	todo->step = step;
	todo->operation = operation;
	todo->attempt = op->attempts < INT_MAX ? op->attempts + 1 : INT_MAX;
	todo->wait = SAGA_WAIT_NOTHING;
	todo->due_at = due_at;
}

/*
 * Take an operation that is RUNNING or ready into the plan.  Returns true if
 * it can be attempted now, which ends the search; else it is waited for, if
 * nothing comes earlier.
 */
static bool
consider(SagaTodo *todo, const SagaState *state, int step,
		 SagaOperation operation, SagaTime now)
{
	const SagaOpState *op = &state->steps[step].op[operation];
	SagaTime	due_at = op->status == SAGA_OP_WAITING ? op->due_at : now;

	if (op->status == SAGA_OP_RUNNING)
	{
		if (todo->wait == SAGA_WAIT_NOTHING)
			plan_wait(todo, SAGA_WAIT_OUTCOME, step, operation,
					  SAGA_TIME_NEVER);
		return false;
	}
	if (due_at > now)
	{
		if (todo->wait == SAGA_WAIT_NOTHING || due_at < todo->due_at)
			plan_wait(todo, SAGA_WAIT_RETRY, step, operation, due_at);
		return false;
	}
	plan_attempt(todo, op, step, operation, due_at);
	return true;
}

static void
plan_start(const SagaState *state, SagaTime now, SagaTodo *todo)
{
	todo->due_at = state->start_at;
	if (state->start_at <= now)
		todo->start = true;
	else
		todo->wait = SAGA_WAIT_START;
}

static void
plan_action(const SagaRules *rules, const SagaState *state, SagaTime now,
			SagaTodo *todo)
{
	int			i;

	for (i = 0; i < rules->nsteps; i++)
	{
		if (action_of(state, i)->status != SAGA_OP_RUNNING &&
			!action_is_ready(rules, state, i))
			continue;
		if (consider(todo, state, i, SAGA_OPERATION_ACTION, now))
			return;
	}
}

/* Also waits for the actions that were out when the saga turned back. */
static void
plan_compensation(const SagaRules *rules, const SagaState *state, SagaTime now,
				  SagaTodo *todo)
{
	StepSet		blocked;
	int			i;

	find_blocked(rules, state, &blocked);
	for (i = rules->nsteps - 1; i >= 0; i--)
	{
		SagaOperation operation = SAGA_OPERATION_COMPENSATION;

		if (action_of(state, i)->status == SAGA_OP_RUNNING)
			operation = SAGA_OPERATION_ACTION;
		else if (compensation_of(state, i)->status != SAGA_OP_RUNNING &&
				 !compensation_is_ready(rules, state, &blocked, i))
			continue;
		if (consider(todo, state, i, operation, now))
			return;
	}
}

/* The deadline goes before whatever else there is to do or to wait for. */
static void
plan_deadline(const SagaRules *rules, const SagaState *state, SagaTime now,
			  SagaTodo *todo)
{
	if (!deadline_matters(rules, state))
		return;
	if (state->deadline <= now)
	{
		plan_nothing(todo);
		todo->deadline = true;
		todo->due_at = state->deadline;
	}
	else if (state->deadline < todo->due_at)
		todo->due_at = state->deadline;
}

void
saga_machine_next(const SagaRules *rules, const SagaState *state, SagaTime now,
				  SagaTodo *todo)
{
	assert_sound(rules, state);
	plan_nothing(todo);
	switch (state->status)
	{
		case SAGA_STATUS_SCHEDULED:
			plan_start(state, now, todo);
			break;
		case SAGA_STATUS_RUNNING:
			plan_action(rules, state, now, todo);
			break;
		case SAGA_STATUS_COMPENSATING:
			plan_compensation(rules, state, now, todo);
			break;
		case SAGA_STATUS_HELD:
			todo->wait = SAGA_WAIT_OUTCOME;
			break;
		case SAGA_STATUS_STUCK:
			plan_wait(todo, SAGA_WAIT_PERSON_STUCK, find_stuck(state),
					  current_operation(state), SAGA_TIME_NEVER);
			break;
		case SAGA_STATUS_PAUSED:
			todo->wait = SAGA_WAIT_PERSON_PAUSED;
			break;
		case SAGA_STATUS_COMPLETED:
		case SAGA_STATUS_COMPENSATED:
		case SAGA_STATUS_ABANDONED:
			break;
	}
	plan_deadline(rules, state, now, todo);
}

/* ---------------------------------------------------------------------
 * After every event
 * ---------------------------------------------------------------------
 */

static void
give_up(SagaOpState *op)
{
	op->status = SAGA_OP_FAILED;
	op->due_at = 0;
}

/* Only while the pivot does not hold. */
static void
turn_back(SagaState *state)
{
	int			i;

	state->backward = true;
	for (i = 0; i < state->nsteps; i++)
	{
		if (action_of(state, i)->status == SAGA_OP_WAITING)
			give_up(action_of(state, i));
	}
}

/* Has an action failed in such a way that the saga cannot go on? */
static bool
must_turn_back(const SagaRules *rules, const SagaState *state)
{
	int			i;

	if (state->backward || pivot_holds(rules, state))
		return false;
	for (i = 0; i < state->nsteps; i++)
	{
		const SagaOpState *action = action_of(state, i);

		if (action->status == SAGA_OP_FAILED &&
			action->crashes < SAGA_MAX_CRASHES)
			return true;
	}
	return false;
}

/* The status that follows from the operations. */
static SagaStatus
derive_status(const SagaRules *rules, const SagaState *state)
{
	if (find_stuck(state) >= 0)
		return SAGA_STATUS_STUCK;
	if (state->backward)
		return all_are_undone(rules, state) ? SAGA_STATUS_COMPENSATED :
			SAGA_STATUS_COMPENSATING;
	return all_are_done(state) ? SAGA_STATUS_COMPLETED : SAGA_STATUS_RUNNING;
}

static void
settle(const SagaRules *rules, SagaState *state)
{
	if (must_turn_back(rules, state))
		turn_back(state);
	if (state->status != SAGA_STATUS_PAUSED)
		state->status = derive_status(rules, state);
}

/* ---------------------------------------------------------------------
 * Outcomes of operations
 * ---------------------------------------------------------------------
 */

static void
count_up(int *counter)
{
	if (*counter < INT_MAX)
		(*counter)++;
}

/* Never SAGA_TIME_NEVER: who waits until then is forgotten. */
static SagaTime
add_delay(SagaTime now, SagaTime delay)
{
	return delay < SAGA_TIME_NEVER - 1 - (now > 0 ? now : 0) ? now + delay :
		SAGA_TIME_NEVER - 1;
}

static void
postpone(SagaOpState *op, SagaTime now, SagaTime delay)
{
	op->status = SAGA_OP_WAITING;
	op->due_at = add_delay(now, delay);
}

/* The pause that the step asked for, else the policy's. */
static SagaTime
choose_delay(const SagaRetryPolicy *policy, const SagaOpState *op,
			 const SagaEvent *event)
{
	if (event->delay < 0)
		return saga_retry_delay(policy, op->failures, event->random);
	return event->delay < MAX_ASKED_DELAY ? event->delay : MAX_ASKED_DELAY;
}

static void
end_well(SagaOpState *op, SagaOpStatus status)
{
	op->status = status;
	op->unknown = false;
	op->due_at = 0;
}

static void
take_success(SagaOpState *op)
{
	end_well(op, SAGA_OP_SUCCEEDED);
	op->crashes = 0;
}

static void
take_failure(const SagaRetryPolicy *policy, SagaOpState *op,
			 const SagaEvent *event)
{
	bool		attempts_left;

	count_up(&op->failures);
	attempts_left = policy->max_attempts == 0 ||
		op->failures < policy->max_attempts;
	if (event->passing && attempts_left)
		postpone(op, event->now, choose_delay(policy, op, event));
	else
		give_up(op);
}

static void
take_loss(const SagaRetryPolicy *policy, SagaOpState *op,
		  const SagaEvent *event)
{
	SagaTime	delay = saga_retry_delay(policy, 1, event->random);

	count_up(&op->crashes);
	if (op->crashes >= SAGA_MAX_CRASHES)
		give_up(op);
	else
		postpone(op, event->now,
				 delay < MAX_LOST_DELAY ? delay : MAX_LOST_DELAY);
}

static void
take_outcome(const SagaRetryPolicy *policy, SagaOpState *op,
			 const SagaEvent *event)
{
	count_up(&op->attempts);
	switch (event->kind)
	{
		case SAGA_EVENT_SUCCEEDED:
			take_success(op);
			break;
		case SAGA_EVENT_FAILED:
			take_failure(policy, op, event);
			break;
		case SAGA_EVENT_LATER:
			postpone(op, event->now, choose_delay(policy, op, event));
			break;
		default:
			take_loss(policy, op, event);
			break;
	}
}

static SagaVerdict
apply_outcome(const SagaRules *rules, SagaState *state, const SagaEvent *event)
{
	SagaOpState *op;

	if (event->step < 0 || event->step >= state->nsteps ||
		(unsigned int) event->operation >= SAGA_NOPERATION ||
		!is_expected(rules, state, event->step, event->operation))
		return SAGA_VERDICT_STALE;

	op = &state->steps[event->step].op[event->operation];
	take_outcome(&rules->steps[event->step].retry[event->operation], op,
				 event);

	/* an action that was out when the saga turned back is not tried again */
	if (state->backward && event->operation == SAGA_OPERATION_ACTION &&
		op->status == SAGA_OP_WAITING)
		give_up(op);
	settle(rules, state);
	return SAGA_VERDICT_APPLIED;
}

/* ---------------------------------------------------------------------
 * The clock and people
 * ---------------------------------------------------------------------
 */

static SagaVerdict
apply_start(SagaState *state, const SagaEvent *event)
{
	if (state->status == SAGA_STATUS_PAUSED)
		return SAGA_VERDICT_PAUSED;
	if (state->status != SAGA_STATUS_SCHEDULED)
		return SAGA_VERDICT_STALE;

	/* begun before its time: a pause must not send it back to waiting */
	if (state->start_at > event->now)
		state->start_at = event->now;
	state->status = SAGA_STATUS_RUNNING;
	return SAGA_VERDICT_APPLIED;
}

/* Also ends a pause. */
static SagaVerdict
apply_cancel(const SagaRules *rules, SagaState *state)
{
	if (state->backward)
		return SAGA_VERDICT_BACKWARD;
	if (pivot_holds(rules, state))
		return SAGA_VERDICT_PIVOT;
	turn_back(state);
	state->status = SAGA_STATUS_COMPENSATING;
	settle(rules, state);
	return SAGA_VERDICT_APPLIED;
}

static SagaVerdict
apply_deadline(const SagaRules *rules, SagaState *state,
			   const SagaEvent *event)
{
	if (state->status == SAGA_STATUS_PAUSED)
		return SAGA_VERDICT_PAUSED;
	if (state->status == SAGA_STATUS_HELD || event->now < state->deadline)
		return SAGA_VERDICT_STALE;
	return apply_cancel(rules, state);
}

static SagaVerdict
apply_pause(SagaState *state)
{
	if (state->status == SAGA_STATUS_PAUSED)
		return SAGA_VERDICT_PAUSED;
	if (state->status == SAGA_STATUS_STUCK)
		return SAGA_VERDICT_STUCK;
	if (state->status == SAGA_STATUS_HELD)
		return SAGA_VERDICT_NOTHING;
	state->status = SAGA_STATUS_PAUSED;
	return SAGA_VERDICT_APPLIED;
}

static SagaVerdict
apply_resume(const SagaRules *rules, SagaState *state, const SagaEvent *event)
{
	if (state->status != SAGA_STATUS_PAUSED)
		return SAGA_VERDICT_NOT_PAUSED;
	if (state->start_at > event->now && !has_begun(state))
		state->status = SAGA_STATUS_SCHEDULED;
	else
		state->status = derive_status(rules, state);
	return SAGA_VERDICT_APPLIED;
}

static bool
is_named(const SagaEvent *event, int step)
{
	return event->step == -1 || event->step == step;
}

static SagaVerdict
apply_retry(const SagaRules *rules, SagaState *state, const SagaEvent *event)
{
	SagaVerdict verdict = SAGA_VERDICT_NOTHING;
	int			i;

	if (state->status == SAGA_STATUS_PAUSED)
		return SAGA_VERDICT_PAUSED;
	for (i = 0; i < state->nsteps; i++)
	{
		SagaOpState *op = current_op(state, i);

		if (!is_named(event, i) ||
			(!is_stuck(state, i) && !is_waiting(state, i)))
			continue;
		op->failures = 0;
		op->crashes = 0;
		postpone(op, event->now, 0);
		verdict = SAGA_VERDICT_APPLIED;
	}
	if (verdict == SAGA_VERDICT_APPLIED)
		settle(rules, state);
	return verdict;
}

/* The step whose operation is to be skipped, or -1. */
static int
find_skippable(const SagaState *state, const SagaEvent *event)
{
	int			step = event->step;

	if (step == -1)
	{
		step = find_stuck(state);
		return step >= 0 ? step : find_waiting(state);
	}
	if (step < 0 || step >= state->nsteps)
		return -1;
	return is_stuck(state, step) || is_waiting(state, step) ? step : -1;
}

static SagaVerdict
apply_skip(const SagaRules *rules, SagaState *state, const SagaEvent *event)
{
	int			step;

	if (state->status == SAGA_STATUS_PAUSED)
		return SAGA_VERDICT_PAUSED;
	step = find_skippable(state, event);
	if (step < 0)
		return SAGA_VERDICT_NOTHING;
	end_well(current_op(state, step), SAGA_OP_SKIPPED);
	settle(rules, state);
	return SAGA_VERDICT_APPLIED;
}

/* The operations keep what they were, for the record. */
static SagaVerdict
apply_abandon(SagaState *state)
{
	state->status = SAGA_STATUS_ABANDONED;
	return SAGA_VERDICT_APPLIED;
}

static SagaVerdict
apply_event(const SagaRules *rules, SagaState *state, const SagaEvent *event)
{
	if (saga_status_is_final(state->status))
		return SAGA_VERDICT_FINAL;
	switch (event->kind)
	{
		case SAGA_EVENT_SUCCEEDED:
		case SAGA_EVENT_FAILED:
		case SAGA_EVENT_LATER:
		case SAGA_EVENT_LOST:
			return apply_outcome(rules, state, event);
		case SAGA_EVENT_START:
			return apply_start(state, event);
		case SAGA_EVENT_DEADLINE:
			return apply_deadline(rules, state, event);
		case SAGA_EVENT_CANCEL:
			return apply_cancel(rules, state);
		case SAGA_EVENT_PAUSE:
			return apply_pause(state);
		case SAGA_EVENT_RESUME:
			return apply_resume(rules, state, event);
		case SAGA_EVENT_RETRY:
			return apply_retry(rules, state, event);
		case SAGA_EVENT_SKIP:
			return apply_skip(rules, state, event);
		case SAGA_EVENT_ABANDON:
			return apply_abandon(state);
	}
	return SAGA_VERDICT_STALE;
}

SagaVerdict
saga_machine_apply(const SagaRules *rules, SagaState *state,
				   const SagaEvent *event)
{
	SagaVerdict verdict = apply_event(rules, state, event);

	if (verdict == SAGA_VERDICT_APPLIED)
		assert_sound(rules, state);
	return verdict;
}

void
saga_machine_init(const SagaRules *rules, SagaState *state,
				  SagaStepState *steps, SagaTime now, SagaTime start_at,
				  SagaTime deadline)
{
	/* SAGA_OP_PENDING, false and 0 are all zero */
	memset(steps, 0, (size_t) rules->nsteps * sizeof(SagaStepState));
	memset(state, 0, sizeof(SagaState));
	state->status = start_at > now ? SAGA_STATUS_SCHEDULED :
		SAGA_STATUS_RUNNING;
	state->backward = false;
	state->start_at = start_at;
	state->deadline = deadline;
	state->nsteps = rules->nsteps;
	state->steps = steps;
}

/* ---------------------------------------------------------------------
 * The invariants, by their numbers in the file header
 * ---------------------------------------------------------------------
 */

static const char *
check_rules(const SagaRules *rules)
{
	int			i;
	int			j;

	if (rules->nsteps < 1 || rules->nsteps > SAGA_MAX_STEPS)
		return "I1: the number of steps is out of range";
	for (i = 0; i < rules->nsteps; i++)
	{
		const SagaStepRule *rule = &rules->steps[i];

		for (j = 0; j < rule->npreds; j++)
		{
			if (rule->preds[j] < 0 || rule->preds[j] >= i)
				return "I1: a step comes before one that it depends on";
		}
	}
	return NULL;
}

static const char *
check_counters(const SagaOpState *op)
{
	if (op->failures < 0 || op->crashes < 0 ||
		op->failures > op->attempts || op->crashes > op->attempts)
		return "I1: failures or crashes are more than the attempts";
	if (op->status == SAGA_OP_PENDING && op->attempts > 0)
		return "I1: a pending operation has been attempted";
	if ((op->status == SAGA_OP_WAITING || op->status == SAGA_OP_SUCCEEDED ||
		 op->status == SAGA_OP_FAILED) && op->attempts == 0)
		return "I1: an operation has an outcome without an attempt";
	if (op->crashes >= SAGA_MAX_CRASHES &&
		op->status != SAGA_OP_FAILED && op->status != SAGA_OP_SKIPPED)
		return "I4: an operation goes on after too many crashes";
	return NULL;
}

static const char *
check_op(const SagaOpState *op)
{
	if ((unsigned int) op->status >= SAGA_NOP_STATUS)
		return "I1: the status of an operation is out of range";
	if (op->status == SAGA_OP_WAITING && op->due_at == SAGA_TIME_NEVER)
		return "I2: a waiting operation is never due";
	if (op->unknown && op->status != SAGA_OP_RUNNING &&
		op->status != SAGA_OP_WAITING && op->status != SAGA_OP_FAILED)
		return "I3: the outcome of an operation is known and unknown";
	return check_counters(op);
}

static const char *
check_action(const SagaRules *rules, const SagaState *state, int step)
{
	const SagaOpState *action = action_of(state, step);

	if (action->status != SAGA_OP_PENDING &&
		!preds_are_done(rules, state, step))
		return "I5: an action has begun before one that it depends on ended";
	if (!state->backward && action->status == SAGA_OP_FAILED &&
		action->crashes < SAGA_MAX_CRASHES && !pivot_holds(rules, state))
		return "I6: an action has failed and the saga goes forward";
	if (state->backward && action->status == SAGA_OP_WAITING)
		return "I7: an action waits in a saga that goes back";
	return NULL;
}

static const char *
check_compensation(const SagaRules *rules, const SagaState *state,
				   const StepSet *blocked, int step)
{
	if (compensation_of(state, step)->status == SAGA_OP_PENDING)
		return NULL;
	if (!state->backward)
		return "I6: a compensation has begun in a saga that goes forward";
	if (!rules->steps[step].has_compensation)
		return "I8: a compensation has begun that the step has not";
	if (!may_have_effect(action_of(state, step)))
		return "I8: a compensation has begun with nothing to undo";
	if (action_of(state, step)->status == SAGA_OP_RUNNING)
		return "I8: a compensation has begun while the action is out";
	if (is_in_set(blocked, step))
		return "I8: a compensation has begun too early";
	return NULL;
}

static const char *
check_step(const SagaRules *rules, const SagaState *state,
		   const StepSet *blocked, int step)
{
	const char *wrong = NULL;
	int			i;

	for (i = 0; i < SAGA_NOPERATION && wrong == NULL; i++)
		wrong = check_op(&state->steps[step].op[i]);
	if (wrong == NULL)
		wrong = check_action(rules, state, step);
	if (wrong == NULL)
		wrong = check_compensation(rules, state, blocked, step);
	if (wrong == NULL &&
		state->steps[step].op[SAGA_OPERATION_CONFIRMATION].status !=
		SAGA_OP_PENDING)
		wrong = "I12: a confirmation has begun";
	return wrong;
}

static const char *
check_steps(const SagaRules *rules, const SagaState *state)
{
	StepSet		blocked;
	const char *wrong = NULL;
	int			i;

	find_blocked(rules, state, &blocked);
	for (i = 0; i < rules->nsteps && wrong == NULL; i++)
		wrong = check_step(rules, state, &blocked, i);
	return wrong;
}

static const char *
check_direction(const SagaRules *rules, const SagaState *state)
{
	SagaStatus	status = state->status;

	if (state->backward && pivot_holds(rules, state))
		return "I7: a saga goes back past its pivot";
	if (state->backward && (status == SAGA_STATUS_SCHEDULED ||
							status == SAGA_STATUS_RUNNING ||
							status == SAGA_STATUS_HELD ||
							status == SAGA_STATUS_COMPLETED))
		return "I9: the status is one of going forward";
	if (!state->backward && (status == SAGA_STATUS_COMPENSATING ||
							 status == SAGA_STATUS_COMPENSATED))
		return "I9: the status is one of going back";
	return NULL;
}

/* I10 and I11: is the status the one that the operations say? */
static const char *
check_status(const SagaRules *rules, const SagaState *state)
{
	SagaStatus	status = state->status;

	if (status == SAGA_STATUS_PAUSED || status == SAGA_STATUS_ABANDONED)
		return NULL;
	if (status == SAGA_STATUS_SCHEDULED)
	{
		if (state->start_at == SAGA_TIME_NEVER)
			return "I2: a scheduled saga never starts";
		return has_begun(state) ? "I10: a scheduled saga has begun" : NULL;
	}
	if (status == SAGA_STATUS_HELD)
		status = SAGA_STATUS_COMPLETED;
	if (status == derive_status(rules, state))
		return NULL;
	if (status == SAGA_STATUS_STUCK)
		return "I11: nothing is stuck in a stuck saga";
	if (find_stuck(state) >= 0)
		return "I11: an operation is stuck and its saga is not";
	return "I10: the status does not fit what has been done";
}

const char *
saga_machine_check(const SagaRules *rules, const SagaState *state)
{
	const char *wrong = check_rules(rules);

	if (wrong == NULL && (state->nsteps != rules->nsteps ||
						  (unsigned int) state->status >= SAGA_NSTATUS))
		wrong = "I1: the number of steps or the status is out of range";
	if (wrong == NULL)
		wrong = check_steps(rules, state);
	if (wrong == NULL)
		wrong = check_direction(rules, state);
	if (wrong == NULL)
		wrong = check_status(rules, state);
	return wrong;
}
