/*
 * machine.c
 *		The state machine of a saga.
 *
 * This file owns the rules by which a saga moves: which operations can be done
 * now, and what each event makes of a state.  It is pure: all that it knows is
 * in its arguments, all that it decides is in what it returns or, for an event
 * that it applies, in the SagaState.  Every process that advances a saga calls
 * it.  It stays right when the caller is killed at any line because nothing is
 * kept here: the caller writes the state in the transaction in which it acts,
 * and what it read again is the whole truth.  What has to be kept: of the saga
 * status, backward, goal, released, start_at, deadline and recoveries; of a
 * foreach step the number of its elements; and of each operation its status,
 * unknown, cancelled, surplus, signalled, attempts, failures, crashes and,
 * while it is WAITING or RUNNING, due_at.  Gates are kept with the locks.
 *
 * Words used below:
 *		element		of a step: one, or with foreach as many as EXPANDED said;
 *					until then they are not known
 *		good		an action that SUCCEEDED and is not surplus, or that a
 *					person skipped, which is after an attempt
 *		off			a step that is not on the way that the saga takes: the
 *					alternative of a savepoint, and what is only reached through
 *					it, until the saga has gone forward from there again; from
 *					then on what comes after the savepoint otherwise.  Nothing
 *					of it begins, and it counts as done
 *		done		a step that is off; or whose elements are known, and each
 *					action has SUCCEEDED or was SKIPPED; or, with a quorum, so
 *					many are good.  A step that is done stays it, as long as its
 *					round lasts
 *		hopeless	a step with a FAILED action; with a quorum, one with so many
 *					that too few can be good in the end
 *		broken		hopeless, and not for crashes alone: an action has FAILED
 *					otherwise
 *		unknown		an operation that may have had its effect, in this attempt
 *					or an earlier one, though nobody said that it succeeded.
 *					The machine never sets that mark: that is for whoever hands
 *					operations out to others.  It clears it when the operation
 *					succeeds, when a person skips it, and when the only attempt
 *					there was is revoked.  No other outcome does: what is known
 *					of an attempt says nothing of those before
 *		surplus		an action of a step that was done without it, and that has
 *					or may have had its effect all the same.  It is compensated
 *					at once: nothing depends on it
 *		the pivot	holds when a pivot is done, or an action of it is, is
 *		holds		RUNNING or unknown: the saga may be past the point of no
 *					return, so it does not turn back.  (A pivot that was skipped
 *					counts as passed: nothing after it can be undone.)  Once it
 *					holds for being done, it holds for ever
 *		no way back	the pivot holds; or the saga goes forward, all steps are
 *					done, and it is no child or was released: it is being
 *					confirmed, or completes
 *		undone		an element with nothing (left) to undo: its action did not
 *					succeed and is not unknown, or it has no compensation, or
 *					that has SUCCEEDED or was SKIPPED.  One whose action is
 *					RUNNING is not undone.  A step is when all its elements are
 *		goal		of a saga that goes back: the savepoint from which it will
 *					go forward again, or none
 *		reach		of a saga that goes back: the steps after its goal, or all.
 *					Only these are compensated; the actions of the others are
 *					not attempted meanwhile, but end as they end
 *		round		the steps after a savepoint start afresh when the saga goes
 *					forward from it again: a new round of them
 *		stuck		an operation that a person must decide about: in a saga
 *					that goes back a FAILED compensation within reach; in one
 *					that goes forward a FAILED action of a hopeless step, a
 *					FAILED compensation (of a surplus action) or confirmation
 *
 * About the last: FAILED alone does not say whether an action failed for good
 * or is out of attempts, and needs not.  While there is a way back both turn
 * the saga back in the same event, so that a saga that still goes forward has
 * a hopeless step for two reasons only: there was no way back, since the pivot
 * held, or a process ended SAGA_MAX_CRASHES times (crashes says so), which
 * is no verdict about the business.  If the pivot ceases to hold (it was out,
 * and its outcome is: failed), what failed for the first reason turns the saga
 * back then.
 *
 * What is ready (an operation that is PENDING or WAITING):
 *		forward, an action of a step that is neither off nor done, when all steps
 *			before it, however far off, are done and, if it needs one, its
 *			gate is OPEN
 *		forward, the compensation of a surplus action
 *		forward, a confirmation of an action that SUCCEEDED and is not surplus,
 *			when all steps are done and the saga is no child or was released
 *		backward, the compensation of an element within reach that is not undone
 *			and whose action is not RUNNING, when every step that depends on
 *			its step, however far off, is undone
 * Compensations of what needs none stay PENDING, and so do the actions that
 * were never begun, unless a quorum was reached without them: SKIPPED.
 *
 * The statuses, and what an event makes of them:
 *
 *				SCHEDULED RUNNING COMPENS. HELD    STUCK    PAUSED   final
 *	outcomes	stale     (1)     (1)      stale   (2)      (2)      final
 *	started		stale     (1)     (1)      stale   stale    stale    final
 *	cancelled	stale     (2)     (2)      stale   (2)      (2)      final
 *	signalled	(3)       (3)     (3)      (3)     (3)      (3)      final
 *	queued		stale     (4)     stale    stale   stale    stale    final
 *	granted		stale     (4)     stale    stale   stale    stale    final
 *	expanded	stale     (5)     stale    stale   stale    stale    final
 *	start		RUNNING   stale   stale    stale   stale    paused   final
 *	deadline	(6)       (6)     (6)      stale   (6)      paused   final
 *	forward		stale     stale   (7)      stale   stale    paused   final
 *	release		(8)       (8)     (8)      (8)     (8)      (8)      final
 *	recall		(9)       (9)     (9)      (9)     (9)      (9)      final
 *	cancel		(10)      (10)    (10)     held    (10)     (10)     final
 *	pause		PAUSED    PAUSED  PAUSED   nothing stuck    paused   final
 *	resume		not pau.  not p.  not p.   not p.  not p.   (11)     final
 *	retry		nothing   (12)    (12)     nothing (12)     paused   final
 *	skip		nothing   (12)    (12)     nothing (12)     paused   final
 *	abandon		ABANDONED, but final when it has ended
 *
 *	Small letters are the verdict that refuses it; nothing has changed then.
 *	(1) of an operation that is ready or RUNNING (revoked: RUNNING, started:
 *		ready), else stale.  A ready one is accepted before its due time too:
 *		the clock of the report may be behind the one that was asked.  Failed
 *		also of an action that is QUEUED and ready but for that, and of the only
 *		element of a foreach step: its lock did not come, its elements could not
 *		be told.  Not taken whatever the gate says: a condition needs no lock.
 *	(2) of an operation that is RUNNING, else stale: what was handed out comes
 *		to a known outcome whatever becomes of the saga meanwhile.  PAUSED and
 *		STUCK stay; only "backward" and "goal" may change under PAUSED, and a
 *		STUCK saga turns back when the pivot's failure gives the way free.
 *		Cancelled: of one that was not asked before.
 *	(3) of an action that is PENDING or WAITING and has no such mark, else stale
 *	(4) of an action that is ready but for its gate, which is not OPEN, else
 *		stale
 *	(5) of a foreach step whose elements are not known, where its actions would
 *		be ready; as many as its quorum, or one, which then is all of the
 *		quorum: it stands for elements that are too few, or could not be told,
 *		and is to fail; else stale
 *	(6) stale before its time; else as (10)
 *	(7) RUNNING, when the saga has come back to its goal: all within reach is
 *		undone; else stale
 *	(8) of a child that is not released, else stale: it is now; HELD becomes
 *		RUNNING or COMPLETED
 *	(9) as (10), of a child, also when it is HELD; else stale
 *	(10) backward when it goes back already, all the way; pivot when there is no
 *		way back; else the saga turns back all the way, and is not PAUSED
 *		any more.
 *	(11) what the operations say: SCHEDULED if none has begun and start_at is
 *		still ahead, else as under "after every event".
 *	(12) on the operations of the direction it goes that are stuck or WAITING,
 *		else nothing.  Retry without a step means all of these, skip the stuck
 *		one (else the waiting one) that comes first in the order in which they
 *		are done.
 *
 *	What an outcome makes of its operation (all but the last two count one
 *	attempt):
 *		succeeded				SUCCEEDED; crashes = 0
 *		failed, passing, with	WAITING; failures + 1
 *		  attempts left
 *		failed otherwise		FAILED; failures + 1
 *		later					WAITING
 *		lost					crashes + 1; WAITING, and FAILED at the last one
 *		not taken				SKIPPED; but if it is unknown, and for a quorum
 *								  that cannot be had without it, or if it was
 *								  attempted, FAILED, failures + 1, and that
 *								  counts: so what it may have done is undone,
 *								  there is an operation to blame, and SKIPPED
 *								  after an attempt is what a person said
 *		revoked					PENDING and not unknown if it was never
 *								  attempted before, else WAITING, due at once,
 *								  and as unknown as it is
 *	An action that comes back when nobody waits for it any more: in the reach
 *	of a saga that goes back it is FAILED in place of WAITING; in a step that
 *	was done without it SKIPPED in place of PENDING and WAITING, but surplus
 *	when it SUCCEEDED, or is unknown: that one is FAILED.
 *
 *	When a quorum is reached, the other actions of the step become the same.
 *
 *	After every event:
 *		forward, there is a way back and a step is broken -> backward, to the
 *		  last savepoint that has a recovery left and comes before all hopeless
 *		  steps, or all the way; WAITING actions within reach become FAILED
 *		backward to a goal, a step out of its reach is broken -> likewise, with
 *		  a goal that has the old one's reach in its own
 *		an operation is stuck, or forward a step hopeless -> STUCK
 *		forward					-> when all steps are done, nothing is RUNNING
 *								   and no surplus left: HELD if it is a child and
 *								   not released, else COMPLETED when it is
 *								   confirmed; else RUNNING
 *		backward				-> COMPENSATED when it has no goal and all steps
 *								   are undone, else COMPENSATING
 *	(not while it is PAUSED or SCHEDULED, the first two excepted).
 *
 * So that a step may have very many elements, the operations are counted: by
 * step in SagaStepState, and the steps of which something is true in
 * SagaTotals.  Whoever changes what is counted does it between open_op() and
 * close_op(); everything else asks the counters and looks at the elements of
 * a step only to do something with each of them.
 *
 * What holds in every state, asserted by saga_machine_check():
 *	I1	Positions, enums and counters are in their ranges.  No operation
 *		counts more failures or crashes than attempts; a PENDING one has no
 *		attempts, a WAITING, SUCCEEDED or FAILED one has some.
 *	I2	A WAITING operation has a time, unless it is QUEUED; so has a SCHEDULED
 *		saga.
 *	I3	unknown are RUNNING, WAITING and FAILED operations only; cancelled are
 *		RUNNING ones; signalled are actions that have not ended.
 *	I4	Fewer than SAGA_MAX_CRASHES crashes, unless FAILED or SKIPPED.
 *	I5	A step of which an action has begun has done steps before it.  Nothing
 *		has begun of a step that is off.
 *	I6	Forward: only surplus actions have compensations that have begun; no
 *		step is broken, or there is no way back.
 *	I7	Backward: the pivot does not hold, no action within reach is WAITING.
 *		The goal is a savepoint with a recovery left; forward there is none.
 *	I8	A compensation that has begun belongs to a step that has one, whose
 *		action SUCCEEDED or is unknown, and is of a surplus action, or within
 *		reach and every step that depends on it is undone.
 *	I9	SCHEDULED, RUNNING, HELD and COMPLETED go forward, COMPENSATING and
 *		COMPENSATED backward; STUCK, PAUSED and ABANDONED keep either.
 *	I10	The status is the one that the operations say: SCHEDULED: nothing has
 *		begun.  HELD, COMPLETED: all steps are done.  COMPENSATED: each is
 *		undone.
 *	I11	Something is stuck in STUCK, may be in PAUSED and ABANDONED, and is
 *		not in the others.
 *	I12	A confirmation that has begun belongs to a step that has one, whose
 *		action SUCCEEDED and is not surplus; all steps are done and the saga is
 *		no child or was released.
 *	I13	Surplus are actions of a quorum step that is done, SUCCEEDED or FAILED
 *		and unknown.  HELD is a child that is not released.
 *	I14	off, the counters of the steps and the totals are what a recount says.
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

/* States with more elements are not asserted: it would take too long. */
#define MAX_ASSERTED		4096

#define lengthof(array)		((int) (sizeof(array) / sizeof((array)[0])))

/* Some steps, by position. */
typedef struct StepSet
{
	uint64_t	words[SAGA_MAX_STEPS / 64 + 1];
} StepSet;

/* An operation's place in a state. */
typedef struct Place
{
	int			step;
	int			element;
	SagaOperation operation;
} Place;

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
	"succeeded", "failed", "later", "lost", "not_taken", "revoked", "started",
	"cancelled", "signalled", "queued", "granted", "expanded", "start",
	"deadline", "forward", "release", "recall", "cancel", "pause", "resume",
	"retry", "skip", "abandon"
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
 * Rules, and sets of steps
 * ---------------------------------------------------------------------
 */

static int
nwords(int nsteps)
{
	return (nsteps + 63) / 64;
}

size_t
saga_rules_closure_size(int nsteps)
{
	return (size_t) nsteps * (size_t) nwords(nsteps) * sizeof(uint64_t);
}

/* A row for each step, with a bit for each step before it. */
void
saga_rules_close(SagaRules *rules, uint64_t *memory)
{
	int			width = nwords(rules->nsteps);
	int			i;
	int			j;
	int			k;

	memset(memory, 0, saga_rules_closure_size(rules->nsteps));
	for (i = 0; i < rules->nsteps; i++)
	{
		uint64_t   *row = memory + (size_t) i * (size_t) width;

		for (j = 0; j < rules->steps[i].npreds; j++)
		{
			int			pred = rules->steps[i].preds[j];

			for (k = 0; k < width; k++)
				row[k] |= memory[(size_t) pred * (size_t) width + (size_t) k];
			row[pred / 64] |= UINT64_C(1) << (pred % 64);
		}
	}
	rules->before = memory;
}

/* Word "word" of the set of the steps before this one. */
static uint64_t
word_before(const SagaRules *rules, int step, int word)
{
	if (rules->before != NULL)
		return rules->before[(size_t) step * (size_t) nwords(rules->nsteps) +
							 (size_t) word];
	if (word < step / 64)
		return UINT64_MAX;
	return word == step / 64 ? (UINT64_C(1) << (step % 64)) - 1 : 0;
}

bool
saga_rules_is_before(const SagaRules *rules, int earlier, int later)
{
	if (rules->before == NULL)
		return earlier < later;
	return (word_before(rules, later, earlier / 64) >> (earlier % 64)) & 1;
}

static void
empty_set(const SagaRules *rules, StepSet *set)
{
	memset(set->words, 0, (size_t) nwords(rules->nsteps) * sizeof(uint64_t));
}

static void
fill_set(const SagaRules *rules, StepSet *set)
{
	memset(set->words, 0xff,
		   (size_t) nwords(rules->nsteps) * sizeof(uint64_t));
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

static void
add_those_before(const SagaRules *rules, StepSet *set, int step)
{
	int			i;

	for (i = 0; i <= step / 64; i++)
		set->words[i] |= word_before(rules, step, i);
}

static void
keep_those_before(const SagaRules *rules, StepSet *set, int step)
{
	int			i;

	for (i = 0; i < nwords(rules->nsteps); i++)
		set->words[i] &= word_before(rules, step, i);
}

/* ---------------------------------------------------------------------
 * Questions about operations, elements and steps: as many elements as there
 * may be, these look at one, or at counters
 * ---------------------------------------------------------------------
 */

bool
saga_status_is_final(SagaStatus status)
{
	return status == SAGA_STATUS_COMPLETED ||
		status == SAGA_STATUS_COMPENSATED ||
		status == SAGA_STATUS_ABANDONED;
}

static SagaOpState *
op_of(const SagaState *state, int step, int element, SagaOperation operation)
{
	return &state->steps[step].elements[element].op[operation];
}

/* Needs no further attempt, and none will be made. */
static bool
has_ended_well(const SagaOpState *op)
{
	return op->status == SAGA_OP_SUCCEEDED || op->status == SAGA_OP_SKIPPED;
}

static bool
has_ended(const SagaOpState *op)
{
	return has_ended_well(op) || op->status == SAGA_OP_FAILED;
}

/* Not made yet, or to be made again. */
static bool
is_to_be_tried(const SagaOpState *op)
{
	return op->status == SAGA_OP_PENDING || op->status == SAGA_OP_WAITING;
}

static bool
may_have_effect(const SagaOpState *action)
{
	return action->status == SAGA_OP_SUCCEEDED || action->unknown;
}

static bool
element_is_undone(const SagaStepRule *rule, const SagaElementState *element)
{
	const SagaOpState *action = &element->op[SAGA_OPERATION_ACTION];

	if (action->status == SAGA_OP_RUNNING)
		return false;
	if (!may_have_effect(action) || !rule->has_compensation)
		return true;
	return has_ended_well(&element->op[SAGA_OPERATION_COMPENSATION]);
}

/* A surplus action that is not compensated yet? */
static bool
element_is_surplus(const SagaStepRule *rule, const SagaElementState *element)
{
	return element->op[SAGA_OPERATION_ACTION].surplus &&
		!element_is_undone(rule, element);
}

static bool
is_confirmable(const SagaStepRule *rule, const SagaElementState *element)
{
	const SagaOpState *action = &element->op[SAGA_OPERATION_ACTION];

	return rule->has_confirmation && !action->surplus &&
		action->status == SAGA_OP_SUCCEEDED;
}

/* How many actions of the step have this status? */
static int
count_actions(const SagaStepState *step, SagaOpStatus status)
{
	return step->count[SAGA_OPERATION_ACTION][status];
}

/* How many operations of the step are out? */
static int
count_running(const SagaStepState *step)
{
	return step->count[SAGA_OPERATION_ACTION][SAGA_OP_RUNNING] +
		step->count[SAGA_OPERATION_COMPENSATION][SAGA_OP_RUNNING] +
		step->count[SAGA_OPERATION_CONFIRMATION][SAGA_OP_RUNNING];
}

static int
count_good(const SagaStepState *step)
{
	return count_actions(step, SAGA_OP_SUCCEEDED) - step->nextra +
		step->nclosed;
}

/* How many actions may be good in the end, if nobody but the saga acts? */
static int
count_possible(const SagaStepState *step)
{
	return count_good(step) + count_actions(step, SAGA_OP_PENDING) +
		count_actions(step, SAGA_OP_WAITING) +
		count_actions(step, SAGA_OP_RUNNING);
}

/* How many have to be good?  Of a step with a quorum, its elements known. */
static int
count_needed(const SagaStepRule *rule, const SagaStepState *step)
{
	return rule->quorum < step->nelements ? rule->quorum : step->nelements;
}

static bool
step_is_done(const SagaStepRule *rule, const SagaStepState *step)
{
	if (step->off || step->nelements < 0)
		return step->off;
	if (rule->quorum > 0)
		return count_good(step) >= count_needed(rule, step);
	return count_actions(step, SAGA_OP_SUCCEEDED) +
		count_actions(step, SAGA_OP_SKIPPED) == step->nelements;
}

static bool
step_is_hopeless(const SagaStepRule *rule, const SagaStepState *step)
{
	if (step->off || step->nelements < 0)
		return false;
	if (rule->quorum > 0)
		return count_possible(step) < count_needed(rule, step);
	return count_actions(step, SAGA_OP_FAILED) > 0;
}

static bool
step_is_broken(const SagaStepRule *rule, const SagaStepState *step)
{
	return step_is_hopeless(rule, step) &&
		count_actions(step, SAGA_OP_FAILED) > step->ncrashed;
}

/* Is this a pivot that holds? */
static bool
step_holds(const SagaStepRule *rule, const SagaStepState *step)
{
	if (!rule->pivot || step->off)
		return false;
	return step_is_done(rule, step) || step->nunknown > 0 ||
		count_actions(step, SAGA_OP_SUCCEEDED) > 0 ||
		count_actions(step, SAGA_OP_SKIPPED) > 0 ||
		count_actions(step, SAGA_OP_RUNNING) > 0;
}

static bool
step_has_begun(const SagaStepState *step)
{
	return step->nelements > 0 &&
		count_actions(step, SAGA_OP_PENDING) < step->nelements;
}

static bool
step_is_to_confirm(const SagaStepRule *rule, const SagaStepState *step)
{
	const int  *count = step->count[SAGA_OPERATION_CONFIRMATION];

	return rule->has_confirmation &&
		count[SAGA_OP_SUCCEEDED] + count[SAGA_OP_SKIPPED] <
		count_actions(step, SAGA_OP_SUCCEEDED) - step->nextra;
}

static bool
step_has_failed(const SagaStepState *step)
{
	return step->count[SAGA_OPERATION_COMPENSATION][SAGA_OP_FAILED] +
		step->count[SAGA_OPERATION_CONFIRMATION][SAGA_OP_FAILED] > 0;
}

/* ---------------------------------------------------------------------
 * Counting
 * ---------------------------------------------------------------------
 */

/* Count an element of a step in (by = 1) or out (by = -1). */
static void
count_element(const SagaStepRule *rule, SagaStepState *step,
			  const SagaElementState *element, int by)
{
	const SagaOpState *action = &element->op[SAGA_OPERATION_ACTION];
	int			i;

	for (i = 0; i < SAGA_NOPERATION; i++)
	{
		/* what was stored may be anything; saga_machine_check() says so */
		if ((unsigned int) element->op[i].status < SAGA_NOP_STATUS)
			step->count[i][element->op[i].status] += by;
	}
	if (action->status == SAGA_OP_FAILED &&
		action->crashes >= SAGA_MAX_CRASHES)
		step->ncrashed += by;
	if (action->status == SAGA_OP_SKIPPED && action->attempts > 0)
		step->nclosed += by;
	if (action->status == SAGA_OP_SUCCEEDED && action->surplus)
		step->nextra += by;
	if (action->unknown && (action->status == SAGA_OP_WAITING ||
							action->status == SAGA_OP_FAILED))
		step->nunknown += by;
	if (!element_is_undone(rule, element))
		step->nundo += by;
	if (element_is_surplus(rule, element))
		step->nsurplus += by;
}

static bool
step_is_active(const SagaRules *rules, const SagaState *state, int step)
{
	const SagaStepState *it = &state->steps[step];

	return it->nsurplus > 0 || count_running(it) > 0 ||
		!step_is_done(&rules->steps[step], it);
}

/*
 * This step has changed.  What these pass over was passed over before, unless
 * something came back to life: so a long line costs little.
 */
static void
move_ends(const SagaRules *rules, SagaState *state, int step)
{
	SagaTotals *totals = &state->totals;

	if (step < totals->first_active && step_is_active(rules, state, step))
		totals->first_active = step;
	while (totals->first_active < rules->nsteps &&
		   !step_is_active(rules, state, totals->first_active))
		totals->first_active++;
	if (step > totals->last_undo && state->steps[step].nundo > 0)
		totals->last_undo = step;
	while (totals->last_undo >= 0 &&
		   state->steps[totals->last_undo].nundo == 0)
		totals->last_undo--;
}

/* Likewise a step of a saga. */
static void
count_step(const SagaRules *rules, SagaState *state, int step, int by)
{
	const SagaStepRule *rule = &rules->steps[step];
	const SagaStepState *it = &state->steps[step];
	SagaTotals *totals = &state->totals;

	totals->nopen += step_is_done(rule, it) ? 0 : by;
	totals->nbegun += step_has_begun(it) ? by : 0;
	totals->nhopeless += step_is_hopeless(rule, it) ? by : 0;
	totals->nbroken += step_is_broken(rule, it) ? by : 0;
	totals->npivots += step_holds(rule, it) ? by : 0;
	totals->nundo += it->nundo > 0 ? by : 0;
	totals->nrunning += count_running(it) > 0 ? by : 0;
	totals->nsurplus += it->nsurplus > 0 ? by : 0;
	totals->nconfirm += step_is_to_confirm(rule, it) ? by : 0;
	totals->nfailed += step_has_failed(it) ? by : 0;
}

/* All steps, each of which has been counted. */
static void
count_steps(const SagaRules *rules, SagaState *state)
{
	int			i;

	memset(&state->totals, 0, sizeof(state->totals));
	state->totals.last_undo = rules->nsteps - 1;
	for (i = 0; i < rules->nsteps; i++)
		count_step(rules, state, i, 1);
	move_ends(rules, state, 0);
}

/*
 * An operation of this element has changed.  Each element is passed over once
 * until an operation comes back to life, which takes a person: so this costs
 * little, whatever the number of elements.
 */
static void
move_first(SagaStepState *step, int element, SagaOperation operation)
{
	int			first = step->first[operation];

	if (element < first)
	{
		if (!has_ended(&step->elements[element].op[operation]))
			step->first[operation] = element;
		return;
	}
	while (first < step->nelements &&
		   has_ended(&step->elements[first].op[operation]))
		first++;
	step->first[operation] = first;
}

/*
 * Whoever changes an operation does it between these two, and asks no counter
 * meanwhile.  Only a gate, and marks that are not counted, need them not.
 */
static SagaOpState *
open_op(const SagaRules *rules, SagaState *state, int step, int element,
		SagaOperation operation)
{
	SagaStepState *it = &state->steps[step];
	SagaOpState *op = op_of(state, step, element, operation);

	count_step(rules, state, step, -1);
	count_element(&rules->steps[step], it, &it->elements[element], -1);
	op->changed = true;
	it->changed = true;
	return op;
}

static void
close_op(const SagaRules *rules, SagaState *state, int step, int element,
		 SagaOperation operation)
{
	SagaStepState *it = &state->steps[step];

	count_element(&rules->steps[step], it, &it->elements[element], 1);
	count_step(rules, state, step, 1);
	move_first(it, element, operation);
	move_ends(rules, state, step);
}

/* Count the elements of a step afresh; "changed" and "off" are left alone. */
static void
recount_step(const SagaStepRule *rule, SagaStepState *step)
{
	int			i;

	memset(step->count, 0, sizeof(step->count));
	memset(step->first, 0, sizeof(step->first));
	step->ncrashed = 0;
	step->nsurplus = 0;
	step->nundo = 0;
	step->nextra = 0;
	step->nclosed = 0;
	step->nunknown = 0;
	for (i = 0; i < step->nelements; i++)
		count_element(rule, step, &step->elements[i], 1);
	for (i = 0; i < SAGA_NOPERATION && step->nelements > 0; i++)
		move_first(step, 0, (SagaOperation) i);
}

static bool
has_changes(const SagaStepState *step)
{
	int			i;
	int			j;

	for (i = 0; i < step->nelements; i++)
	{
		for (j = 0; j < SAGA_NOPERATION; j++)
		{
			if (step->elements[i].op[j].changed)
				return true;
		}
	}
	return false;
}

/* The steps that this savepoint, which has an alternative, puts off. */
static void
add_those_off(const SagaRules *rules, const SagaState *state, int savepoint,
			  StepSet *off)
{
	int			alternative = rules->steps[savepoint].alternative;
	StepSet		own;
	int			i;
	int			j;

	if (state->recoveries[savepoint] > 0)
	{
		for (i = savepoint + 1; i < rules->nsteps; i++)
		{
			if (i != alternative && saga_rules_is_before(rules, savepoint, i) &&
				!saga_rules_is_before(rules, alternative, i))
				add_to_set(off, i);
		}
		return;
	}

	/* the alternative, and what is only reached through it */
	empty_set(rules, &own);
	add_to_set(&own, alternative);
	add_to_set(off, alternative);
	for (i = alternative + 1; i < rules->nsteps; i++)
	{
		const SagaStepRule *rule = &rules->steps[i];

		for (j = 0; j < rule->npreds && is_in_set(&own, rule->preds[j]);)
			j++;
		if (rule->npreds == 0 || j < rule->npreds)
			continue;
		add_to_set(&own, i);
		add_to_set(off, i);
	}
}

static void
find_off(const SagaRules *rules, const SagaState *state, StepSet *off)
{
	int			i;

	empty_set(rules, off);
	for (i = 0; i < rules->nsteps && rules->has_savepoints; i++)
	{
		if (rules->steps[i].savepoint && rules->steps[i].alternative >= 0)
			add_those_off(rules, state, i, off);
	}
}

void
saga_machine_loaded(const SagaRules *rules, SagaState *state)
{
	StepSet		off;
	int			i;

	find_off(rules, state, &off);
	for (i = 0; i < rules->nsteps; i++)
	{
		SagaStepState *step = &state->steps[i];

		step->off = is_in_set(&off, i);
		step->changed = has_changes(step);
		recount_step(&rules->steps[i], step);
	}
	count_steps(rules, state);
}

/* ---------------------------------------------------------------------
 * Questions about a saga
 * ---------------------------------------------------------------------
 */

/*
 * The steps in the order in which they are done: 0 is the first going
 * forward, the last going back.
 */
static int
nth_step(const SagaState *state, int n)
{
	return state->backward ? state->nsteps - 1 - n : n;
}

bool
saga_machine_step_is_done(const SagaRules *rules, const SagaState *state,
						  int step)
{
	return step_is_done(&rules->steps[step], &state->steps[step]);
}

int
saga_machine_round(const SagaRules *rules, const SagaState *state, int step)
{
	int			round = 0;
	int			i;

	for (i = 0; i < step && rules->has_savepoints; i++)
	{
		if (rules->steps[i].savepoint && saga_rules_is_before(rules, i, step))
			round += state->recoveries[i];
	}
	return round;
}

/*
 * Are all steps before this one done?  If those right before it are, it is not
 * for being off, then so are those before them.
 */
static bool
preds_are_done(const SagaRules *rules, const SagaState *state, int step)
{
	const SagaStepRule *rule = &rules->steps[step];
	bool		off = false;
	int			i;

	/* the last first: it is the likeliest to be missing */
	for (i = rule->npreds - 1; i >= 0; i--)
	{
		if (!saga_machine_step_is_done(rules, state, rule->preds[i]))
			return false;
		off |= state->steps[rule->preds[i]].off;
	}
	for (i = 0; i < step && off; i++)
	{
		if (!saga_machine_step_is_done(rules, state, i) &&
			saga_rules_is_before(rules, i, step))
			return false;
	}
	return true;
}

/* May confirmations be made? */
static bool
is_confirming(const SagaState *state)
{
	return !state->backward && state->totals.nopen == 0 &&
		(!state->child || state->released);
}

static bool
has_no_way_back(const SagaState *state)
{
	return state->totals.npivots > 0 || is_confirming(state);
}

/*
 * Does the pivot hold?  This action is not asked whether it is RUNNING: that
 * is for the one who is about to report how it ended.
 */
static bool
pivot_holds_but_for(const SagaRules *rules, const SagaState *state, int step,
					int element)
{
	const SagaStepRule *rule = &rules->steps[step];
	SagaStepState rest = state->steps[step];
	const SagaOpState *action;

	if (element >= rest.nelements || !step_holds(rule, &rest))
		return state->totals.npivots > 0;
	action = op_of(state, step, element, SAGA_OPERATION_ACTION);
	if (action->status != SAGA_OP_RUNNING)
		return true;
	rest.count[SAGA_OPERATION_ACTION][SAGA_OP_RUNNING]--;
	return state->totals.npivots > 1 || action->unknown ||
		step_holds(rule, &rest);
}

bool
saga_machine_any_passing(const SagaRules *rules, const SagaState *state,
						 int step, int element, SagaOperation operation)
{
	if (operation != SAGA_OPERATION_ACTION)
		return true;
	return is_confirming(state) ||
		pivot_holds_but_for(rules, state, step, element);
}

/* In a saga that goes back: is this step to be undone? */
static bool
is_within_reach(const SagaRules *rules, const SagaState *state, int step)
{
	return state->backward &&
		(state->goal < 0 || saga_rules_is_before(rules, state->goal, step));
}

/* Does a step that is not undone depend on this one? */
static bool
is_blocked(const SagaRules *rules, const SagaState *state, int step)
{
	int			i;

	for (i = step + 1; i <= state->totals.last_undo; i++)
	{
		if (state->steps[i].nundo > 0 && saga_rules_is_before(rules, step, i))
			return true;
	}
	return false;
}

/* Has a saga with a goal come back to it? */
static bool
is_back(const SagaRules *rules, const SagaState *state)
{
	int			i;

	if (state->status != SAGA_STATUS_COMPENSATING || state->goal < 0)
		return false;
	for (i = state->goal + 1; i <= state->totals.last_undo; i++)
	{
		if (state->steps[i].nundo > 0 && is_within_reach(rules, state, i))
			return false;
	}
	return true;
}

/* Has a compensation or confirmation failed that cannot be left for later? */
static bool
has_failed(const SagaRules *rules, const SagaState *state)
{
	int			i;

	if (state->totals.nfailed == 0 || state->goal < 0)
		return state->totals.nfailed > 0;
	for (i = state->goal + 1; i < rules->nsteps; i++)
	{
		if (step_has_failed(&state->steps[i]) &&
			is_within_reach(rules, state, i))
			return true;
	}
	return false;
}

/*
 * May actions of this step begin, as far as the other steps are concerned?
 * Its elements need not be known.
 */
static bool
step_is_open(const SagaRules *rules, const SagaState *state, int step)
{
	return state->status == SAGA_STATUS_RUNNING &&
		!saga_machine_step_is_done(rules, state, step) &&
		preds_are_done(rules, state, step);
}

static bool
is_to_expand(const SagaRules *rules, const SagaState *state, int step)
{
	return rules->steps[step].foreach && state->steps[step].nelements < 0 &&
		step_is_open(rules, state, step);
}

/* May this action be attempted now, or as soon as it has its lock? */
static bool
is_ready_but_for_gate(const SagaRules *rules, const SagaState *state,
					  int step, int element)
{
	return is_to_be_tried(op_of(state, step, element,
								SAGA_OPERATION_ACTION)) &&
		step_is_open(rules, state, step);
}

static bool
compensation_is_ready(const SagaRules *rules, const SagaState *state,
					  int step, int element)
{
	const SagaStepRule *rule = &rules->steps[step];
	const SagaElementState *it = &state->steps[step].elements[element];

	if (!is_to_be_tried(&it->op[SAGA_OPERATION_COMPENSATION]))
		return false;
	if (state->status == SAGA_STATUS_RUNNING)
		return element_is_surplus(rule, it);
	return state->status == SAGA_STATUS_COMPENSATING &&
		is_within_reach(rules, state, step) &&
		!element_is_undone(rule, it) &&
		it->op[SAGA_OPERATION_ACTION].status != SAGA_OP_RUNNING &&
		!is_blocked(rules, state, step);
}

static bool
confirmation_is_ready(const SagaRules *rules, const SagaState *state,
					  int step, int element)
{
	const SagaElementState *it = &state->steps[step].elements[element];

	return state->status == SAGA_STATUS_RUNNING && is_confirming(state) &&
		is_confirmable(&rules->steps[step], it) &&
		is_to_be_tried(&it->op[SAGA_OPERATION_CONFIRMATION]);
}

/* Is the operation one that may be attempted now, its pause apart? */
static bool
is_ready(const SagaRules *rules, const SagaState *state, const Place *place)
{
	int			step = place->step;
	int			element = place->element;

	switch (place->operation)
	{
		case SAGA_OPERATION_ACTION:
			return is_ready_but_for_gate(rules, state, step, element) &&
				(!rules->steps[step].exclusive ||
				 op_of(state, step, element,
					   SAGA_OPERATION_ACTION)->gate == SAGA_GATE_OPEN);
		case SAGA_OPERATION_COMPENSATION:
			return compensation_is_ready(rules, state, step, element);
		case SAGA_OPERATION_CONFIRMATION:
			return confirmation_is_ready(rules, state, step, element);
	}
	return false;
}

/*
 * Does nobody wait for this action any more?  "done": its step is done without
 * it.
 */
static bool
is_needless(const SagaRules *rules, const SagaState *state, int step,
			bool done)
{
	return done || is_within_reach(rules, state, step);
}

/*
 * Is the operation, with this status, in question in the direction that the
 * saga goes: FAILED, a person must decide about it; WAITING, one may?
 * "hopeless": its step is.
 */
static bool
is_in_question(const SagaRules *rules, const SagaState *state,
			   const Place *place, SagaOpStatus status, bool hopeless)
{
	if (op_of(state, place->step, place->element,
			  place->operation)->status != status)
		return false;
	if (place->operation != SAGA_OPERATION_ACTION)
		return !state->backward || is_within_reach(rules, state, place->step);
	return !state->backward && (status != SAGA_OP_FAILED || hopeless);
}

static bool
is_named(int name, int position)
{
	return name == -1 || name == position;
}

/*
 * The first operation, in the order in which they are done, that is in
 * question with this status, of the step and element named (-1: of any).
 */
static bool
find_in_question(const SagaRules *rules, const SagaState *state,
				 SagaOpStatus status, int step, int element, Place *place)
{
	int			n;
	int			i;
	int			j;

	for (n = 0; n < state->nsteps; n++)
	{
		int			it = nth_step(state, n);
		const SagaStepState *found = &state->steps[it];
		bool		hopeless = step_is_hopeless(&rules->steps[it], found);

		if (!is_named(step, it) ||
			found->count[SAGA_OPERATION_ACTION][status] +
			found->count[SAGA_OPERATION_COMPENSATION][status] +
			found->count[SAGA_OPERATION_CONFIRMATION][status] == 0)
			continue;
		for (i = 0; i < found->nelements; i++)
		{
			for (j = 0; j < SAGA_NOPERATION && is_named(element, i); j++)
			{
				*place = (Place) {it, i, (SagaOperation) j};
				if (is_in_question(rules, state, place, status, hopeless))
					return true;
			}
		}
	}
	return false;
}

/*
 * Has the deadline a say, now or later?  Not while the saga is PAUSED: its
 * time comes with resume.
 */
static bool
deadline_matters(const SagaState *state)
{
	if (state->deadline == SAGA_TIME_NEVER || has_no_way_back(state))
		return false;
	if (state->backward && state->goal < 0)
		return false;
	return state->status == SAGA_STATUS_SCHEDULED ||
		state->status == SAGA_STATUS_RUNNING ||
		state->status == SAGA_STATUS_COMPENSATING ||
		state->status == SAGA_STATUS_STUCK;
}

/* ---------------------------------------------------------------------
 * What to do next
 * ---------------------------------------------------------------------
 */

/* What is known while the steps are gone through, in order. */
typedef struct Plan
{
	const SagaRules *rules;
	const SagaState *state;
	SagaTime	now;
	SagaTodo   *todo;
	SagaTask   *tasks;
	int			max;
	int			nrunning;		/* steps with something RUNNING to come */

	/* backward: what a step that is not undone, gone through, depends on */
	bool		has_blocked;
	StepSet		blocked;

	/* of the step that is gone through now */
	int			step;
	bool		startable[SAGA_NOPERATION];
	bool		needless;		/* nobody waits for a RUNNING action */
	int			room;			/* so many more may be attempted */
	int			nout;			/* so many RUNNING ones are to come */
} Plan;

/*
 * The invariants, in builds with USE_ASSERT_CHECKING: of each state that is
 * asked about, and of each that an event has made.
 */
static void
assert_sound(const SagaRules *rules, const SagaState *state)
{
#ifdef USE_ASSERT_CHECKING
	int64_t		size = 0;
	int			i;

	for (i = 0; i < state->nsteps && size <= MAX_ASSERTED; i++)
		size += 1 + (state->steps[i].nelements > 0 ?
					 state->steps[i].nelements : 0);
	if (size <= MAX_ASSERTED)
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
	todo->forward = false;
	todo->ntasks = 0;
	todo->wait = SAGA_WAIT_NOTHING;
	todo->step = -1;
	todo->element = -1;
	todo->operation = SAGA_OPERATION_ACTION;
	todo->due_at = SAGA_TIME_NEVER;
}

static bool
is_full(const Plan *plan)
{
	return plan->todo->ntasks >= plan->max;
}

static void
add_task(Plan *plan, SagaTaskKind kind, int element, SagaOperation operation)
{
	SagaTask   *task;

	if (is_full(plan))
		return;
	task = &plan->tasks[plan->todo->ntasks++];
	task->kind = kind;
	task->step = plan->step;
	task->element = element;
	task->operation = operation;
	task->attempt = 0;
	if (kind == SAGA_TASK_OPERATE)
	{
		int			attempts = op_of(plan->state, plan->step, element,
									 operation)->attempts;

		task->attempt = attempts < INT_MAX ? attempts + 1 : INT_MAX;
	}
}

/* Wait for this, if nothing comes earlier. */
static void
add_wait(Plan *plan, SagaWait wait, int element, SagaOperation operation,
		 SagaTime due_at)
{
	SagaTodo   *todo = plan->todo;

	if (todo->wait != SAGA_WAIT_NOTHING && due_at >= todo->due_at)
		return;
	todo->wait = wait;
	todo->step = plan->step;
	todo->element = element;
	todo->operation = operation;
	todo->due_at = due_at;
}

static void
plan_running(Plan *plan, const SagaOpState *op, int element,
			 SagaOperation operation)
{
	plan->nout--;
	if (op->due_at <= plan->now)
		add_task(plan, SAGA_TASK_EXPIRE, element, operation);
	else if (operation == SAGA_OPERATION_ACTION && plan->needless &&
			 !op->cancelled)
		add_task(plan, SAGA_TASK_REVOKE, element, operation);
	else
		add_wait(plan, SAGA_WAIT_OUTCOME, element, operation, op->due_at);
}

/* Of one that is not RUNNING and may be attempted, or asked a lock for. */
static void
plan_attempt(Plan *plan, const SagaOpState *op, int element,
			 SagaOperation operation)
{
	bool		locked = operation == SAGA_OPERATION_ACTION &&
		plan->rules->steps[plan->step].exclusive &&
		op->gate != SAGA_GATE_OPEN;

	if (locked && op->gate == SAGA_GATE_QUEUED)
	{
		if (op->due_at <= plan->now)
			add_task(plan, SAGA_TASK_EXPIRE, element, operation);
		else
			add_wait(plan, SAGA_WAIT_LOCK, element, operation, op->due_at);
	}
	else if (!locked && plan->room == 0)
		return;
	else if (op->status == SAGA_OP_WAITING && op->due_at > plan->now)
		add_wait(plan, SAGA_WAIT_RETRY, element, operation, op->due_at);
	else if (locked)
		add_task(plan, SAGA_TASK_ACQUIRE, element, operation);
	else
	{
		add_task(plan, SAGA_TASK_OPERATE, element, operation);
		plan->room--;
	}
}

/*
 * May this operation be attempted, given that the step's are startable?  Of
 * actions all are that have not ended.
 */
static bool
is_startable(const Plan *plan, const SagaElementState *element,
			 SagaOperation operation)
{
	const SagaStepRule *rule = &plan->rules->steps[plan->step];

	if (!plan->startable[operation] ||
		!is_to_be_tried(&element->op[operation]))
		return false;
	if (operation == SAGA_OPERATION_ACTION)
		return true;
	if (operation == SAGA_OPERATION_CONFIRMATION)
		return is_confirmable(rule, element);
	if (!plan->state->backward)
		return element_is_surplus(rule, element);
	return !element_is_undone(rule, element) &&
		element->op[SAGA_OPERATION_ACTION].status != SAGA_OP_RUNNING;
}

static void
plan_element(Plan *plan, int element)
{
	const SagaElementState *it;
	int			i;

	it = &plan->state->steps[plan->step].elements[element];
	for (i = 0; i < SAGA_NOPERATION; i++)
	{
		if (it->op[i].status == SAGA_OP_RUNNING)
			plan_running(plan, &it->op[i], element, (SagaOperation) i);
		else if (is_startable(plan, it, (SagaOperation) i))
			plan_attempt(plan, &it->op[i], element, (SagaOperation) i);
	}
}

/* Which operations of the step can be attempted? */
static void
plan_startable(Plan *plan)
{
	const SagaRules *rules = plan->rules;
	const SagaState *state = plan->state;
	const SagaStepState *step = &state->steps[plan->step];
	bool		forward = state->status == SAGA_STATUS_RUNNING;
	bool		backward = state->status == SAGA_STATUS_COMPENSATING;

	plan->startable[SAGA_OPERATION_ACTION] = forward &&
		count_actions(step, SAGA_OP_PENDING) +
		count_actions(step, SAGA_OP_WAITING) > 0 &&
		step_is_open(rules, state, plan->step);
	plan->startable[SAGA_OPERATION_COMPENSATION] =
		(forward && step->nsurplus > 0) ||
		(backward && step->nundo > 0 &&
		 is_within_reach(rules, state, plan->step) &&
		 !(plan->has_blocked && is_in_set(&plan->blocked, plan->step)));
	plan->startable[SAGA_OPERATION_CONFIRMATION] = forward &&
		is_confirming(state) &&
		step_is_to_confirm(&rules->steps[plan->step], step);
}

/* The first element that is worth a look; past the last if none is. */
static int
find_first_element(const Plan *plan)
{
	const SagaStepState *step = &plan->state->steps[plan->step];
	int			first = INT_MAX;
	int			i;

	for (i = 0; i < SAGA_NOPERATION; i++)
	{
		if ((plan->startable[i] || step->count[i][SAGA_OP_RUNNING] > 0) &&
			step->first[i] < first)
			first = step->first[i];
	}
	return first;
}

/* With no room and nothing RUNNING to come, only locks are left to see to. */
static bool
is_exhausted(const Plan *plan)
{
	return plan->nout == 0 && plan->room == 0 &&
		!(plan->rules->steps[plan->step].exclusive &&
		  plan->startable[SAGA_OPERATION_ACTION]);
}

static void
plan_step(Plan *plan, int step)
{
	const SagaStepRule *rule = &plan->rules->steps[step];
	const SagaStepState *it = &plan->state->steps[step];
	int			i;

	plan->step = step;
	plan->nout = count_running(it);
	plan->nrunning -= plan->nout > 0 ? 1 : 0;
	if (is_to_expand(plan->rules, plan->state, step))
		add_task(plan, SAGA_TASK_EXPAND, 0, SAGA_OPERATION_ACTION);
	plan_startable(plan);
	plan->needless = is_needless(plan->rules, plan->state, step,
								 step_is_done(rule, it));
	plan->room = INT_MAX;
	if (rule->parallel > 0)
		plan->room = rule->parallel > plan->nout ?
			rule->parallel - plan->nout : 0;
	for (i = find_first_element(plan);
		 i < it->nelements && !is_full(plan) && !is_exhausted(plan); i++)
		plan_element(plan, i);
}

/* Note what waits for a step that was gone through. */
static void
note_blocked(Plan *plan, int step)
{
	if (plan->state->steps[step].nundo == 0)
		return;
	if (!plan->has_blocked)
		empty_set(plan->rules, &plan->blocked);
	/* of a line the first one blocks all the others */
	if (!plan->has_blocked || plan->rules->before != NULL)
		add_those_before(plan->rules, &plan->blocked, step);
	plan->has_blocked = true;
}

/*
 * In a line nothing is to be found beyond a step that all the others wait for,
 * but what is RUNNING.
 */
static bool
is_end_of_line(const Plan *plan, int step)
{
	if (plan->rules->before != NULL || plan->nrunning > 0)
		return false;
	if (plan->state->backward)
		return plan->has_blocked;
	return !saga_machine_step_is_done(plan->rules, plan->state, step);
}

static void
plan_steps(Plan *plan)
{
	const SagaTotals *totals = &plan->state->totals;
	int			n = is_confirming(plan->state) ? 0 : totals->first_active;

	if (plan->state->status == SAGA_STATUS_STUCK && plan->nrunning == 0)
		return;
	if (plan->state->backward)
		n = plan->state->nsteps - 1 - totals->last_undo;
	for (; n < plan->state->nsteps && !is_full(plan); n++)
	{
		int			step = nth_step(plan->state, n);

		plan_step(plan, step);
		if (plan->state->backward)
			note_blocked(plan, step);
		if (is_end_of_line(plan, step))
			break;
	}
}

static void
plan_operations(const SagaRules *rules, const SagaState *state, SagaTime now,
				SagaTodo *todo, SagaTask *tasks, int max)
{
	Plan		plan;

	plan.rules = rules;
	plan.state = state;
	plan.now = now;
	plan.todo = todo;
	plan.tasks = tasks;
	plan.max = max;
	plan.nrunning = state->totals.nrunning;
	plan.has_blocked = false;
	plan_steps(&plan);
	if (todo->ntasks == 0)
		return;
	todo->wait = SAGA_WAIT_NOTHING;
	todo->step = -1;
	todo->element = -1;
	todo->operation = SAGA_OPERATION_ACTION;
	todo->due_at = now;
}

/* What is out is looked after; else a person is waited for. */
static void
plan_stuck(const SagaRules *rules, const SagaState *state, SagaTodo *todo)
{
	Place		place = {-1, -1, SAGA_OPERATION_ACTION};

	if (todo->ntasks > 0)
		return;
	(void) find_in_question(rules, state, SAGA_OP_FAILED, -1, -1, &place);
	todo->wait = SAGA_WAIT_PERSON_STUCK;
	todo->step = place.step;
	todo->element = place.element;
	todo->operation = place.operation;
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
plan_status(const SagaRules *rules, const SagaState *state, SagaTime now,
			SagaTodo *todo, SagaTask *tasks, int max)
{
	switch (state->status)
	{
		case SAGA_STATUS_SCHEDULED:
			plan_start(state, now, todo);
			break;
		case SAGA_STATUS_RUNNING:
			plan_operations(rules, state, now, todo, tasks, max);
			break;
		case SAGA_STATUS_COMPENSATING:
			todo->forward = is_back(rules, state);
			if (todo->forward)
				todo->due_at = now;
			else
				plan_operations(rules, state, now, todo, tasks, max);
			break;
		case SAGA_STATUS_HELD:
			todo->wait = SAGA_WAIT_PARENT;
			break;
		case SAGA_STATUS_STUCK:
			plan_operations(rules, state, now, todo, tasks, max);
			plan_stuck(rules, state, todo);
			break;
		case SAGA_STATUS_PAUSED:
			todo->wait = SAGA_WAIT_PERSON_PAUSED;
			break;
		case SAGA_STATUS_COMPLETED:
		case SAGA_STATUS_COMPENSATED:
		case SAGA_STATUS_ABANDONED:
			break;
	}
}

void
saga_machine_next(const SagaRules *rules, const SagaState *state, SagaTime now,
				  SagaTodo *todo, SagaTask *tasks, int max)
{
	bool		matters = deadline_matters(state);

	assert_sound(rules, state);
	plan_nothing(todo);

	/* the deadline goes before whatever else there is to do or to wait for */
	if (matters && state->deadline <= now)
	{
		todo->deadline = true;
		todo->due_at = state->deadline;
		return;
	}
	plan_status(rules, state, now, todo, tasks, max);
	if (matters && state->deadline < todo->due_at)
		todo->due_at = state->deadline;
}

/* ---------------------------------------------------------------------
 * What an operation becomes
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

/* It stands in line for its lock no more, if it did. */
static void
leave_queue(SagaOpState *op)
{
	if (op->gate != SAGA_GATE_QUEUED)
		return;
	op->gate = SAGA_GATE_CLOSED;
	op->due_at = 0;
}

static void
postpone(SagaOpState *op, SagaTime now, SagaTime delay)
{
	leave_queue(op);
	op->status = SAGA_OP_WAITING;
	op->cancelled = false;
	op->due_at = add_delay(now, delay);
}

static void
end_op(SagaOpState *op, SagaOpStatus status)
{
	leave_queue(op);
	op->status = status;
	op->cancelled = false;
	op->signalled = false;
	op->due_at = 0;
}

static void
end_well(SagaOpState *op, SagaOpStatus status)
{
	end_op(op, status);
	op->unknown = false;
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
		end_op(op, SAGA_OP_FAILED);
}

static void
take_loss(const SagaRetryPolicy *policy, SagaOpState *op,
		  const SagaEvent *event)
{
	SagaTime	delay = saga_retry_delay(policy, 1, event->random);

	count_up(&op->crashes);
	if (op->crashes >= SAGA_MAX_CRASHES)
		end_op(op, SAGA_OP_FAILED);
	else
		postpone(op, event->now,
				 delay < MAX_LOST_DELAY ? delay : MAX_LOST_DELAY);
}

/*
 * As if it had not been handed out.  That it had no effect is said of this
 * attempt only: an earlier one may have been lost.
 */
static void
take_back(SagaOpState *op, const SagaEvent *event)
{
	postpone(op, event->now, 0);
	if (op->attempts > 0)
		return;
	op->status = SAGA_OP_PENDING;
	op->unknown = false;
	op->due_at = 0;
}

static void
take_outcome(const SagaRetryPolicy *policy, SagaOpState *op,
			 const SagaEvent *event)
{
	if (event->kind != SAGA_EVENT_NOT_TAKEN &&
		event->kind != SAGA_EVENT_REVOKED)
		count_up(&op->attempts);
	switch (event->kind)
	{
		case SAGA_EVENT_SUCCEEDED:
			end_well(op, SAGA_OP_SUCCEEDED);
			op->crashes = 0;
			break;
		case SAGA_EVENT_FAILED:
			take_failure(policy, op, event);
			break;
		case SAGA_EVENT_LATER:
			postpone(op, event->now, choose_delay(policy, op, event));
			break;
		case SAGA_EVENT_NOT_TAKEN:
			end_well(op, SAGA_OP_SKIPPED);
			break;
		case SAGA_EVENT_REVOKED:
			take_back(op, event);
			break;
		default:
			take_loss(policy, op, event);
			break;
	}
}

/* Of an action that is not taken where its step wants it. */
static void
take_want(SagaOpState *op)
{
	count_up(&op->attempts);
	count_up(&op->failures);
	end_op(op, SAGA_OP_FAILED);
}

/*
 * An action that came back to a step that was done without it.  What it did,
 * or may have done, is to be undone; else it was not needed.
 */
static void
leave_over(SagaOpState *action)
{
	if (is_to_be_tried(action))
	{
		if (action->unknown)
			end_op(action, SAGA_OP_FAILED);
		else
			end_well(action, SAGA_OP_SKIPPED);
	}
	action->surplus = may_have_effect(action);
}

/* ---------------------------------------------------------------------
 * After every event
 * ---------------------------------------------------------------------
 */

/*
 * When an action has made its step done, by its quorum, the others are not
 * needed; those that are RUNNING come back in their own time.
 */
static void
close_quorum(const SagaRules *rules, SagaState *state, int step)
{
	int			i;

	for (i = 0; i < state->steps[step].nelements; i++)
	{
		SagaOpState *action = op_of(state, step, i, SAGA_OPERATION_ACTION);

		if (!is_to_be_tried(action) &&
			!(action->status == SAGA_OP_FAILED && action->unknown))
			continue;
		leave_over(open_op(rules, state, step, i, SAGA_OPERATION_ACTION));
		close_op(rules, state, step, i, SAGA_OPERATION_ACTION);
	}
}

/* The actions of a step within reach are not attempted any more. */
static void
give_up_step(const SagaRules *rules, SagaState *state, int step)
{
	SagaStepState *it = &state->steps[step];
	int			i;

	if (count_actions(it, SAGA_OP_WAITING) == 0 &&
		!rules->steps[step].exclusive)
		return;
	for (i = it->first[SAGA_OPERATION_ACTION]; i < it->nelements; i++)
	{
		SagaOpState *action = op_of(state, step, i, SAGA_OPERATION_ACTION);

		if (action->status != SAGA_OP_WAITING)
		{
			leave_queue(action);
			continue;
		}
		end_op(open_op(rules, state, step, i, SAGA_OPERATION_ACTION),
			   SAGA_OP_FAILED);
		close_op(rules, state, step, i, SAGA_OPERATION_ACTION);
	}
}

/* Only while there is a way back; a new goal is not after the old one. */
static void
turn_back(const SagaRules *rules, SagaState *state, int goal)
{
	int			i;

	state->backward = true;
	state->goal = (int16_t) goal;
	for (i = 0; i < state->nsteps; i++)
	{
		if (is_within_reach(rules, state, i))
			give_up_step(rules, state, i);
	}
}

/* Has a step failed in such a way that the saga cannot go on as it goes? */
static bool
must_turn_back(const SagaRules *rules, const SagaState *state)
{
	int			i;

	if (state->totals.nbroken == 0 || has_no_way_back(state))
		return false;
	if (!state->backward || state->goal < 0)
		return !state->backward;
	for (i = 0; i < rules->nsteps; i++)
	{
		if (step_is_broken(&rules->steps[i], &state->steps[i]) &&
			!is_within_reach(rules, state, i))
			return true;
	}
	return false;
}

/*
 * The last savepoint that was passed, has a recovery left and comes before all
 * hopeless steps; -1 if there is none.  One that changes its goal does not
 * leave the old one's reach half undone: only that goal or those before it
 * will do.
 */
static int
choose_goal(const SagaRules *rules, const SagaState *state)
{
	StepSet		set;
	int			i;

	if (!rules->has_savepoints)
		return -1;
	fill_set(rules, &set);
	for (i = 0; i < rules->nsteps; i++)
	{
		if (step_is_hopeless(&rules->steps[i], &state->steps[i]))
			keep_those_before(rules, &set, i);
	}
	for (i = rules->nsteps - 1; i >= 0; i--)
	{
		const SagaStepRule *rule = &rules->steps[i];

		if (rule->savepoint && is_in_set(&set, i) &&
			state->recoveries[i] < rule->recoveries &&
			!state->steps[i].off && step_is_done(rule, &state->steps[i]) &&
			(state->goal < 0 || i == state->goal ||
			 saga_rules_is_before(rules, i, state->goal)))
			return i;
	}
	return -1;
}

/* The status that follows from the operations. */
static SagaStatus
derive_status(const SagaRules *rules, const SagaState *state)
{
	const SagaTotals *totals = &state->totals;

	if (has_failed(rules, state) ||
		(!state->backward && totals->nhopeless > 0))
		return SAGA_STATUS_STUCK;
	if (state->backward)
		return state->goal < 0 && totals->nundo == 0 ?
			SAGA_STATUS_COMPENSATED : SAGA_STATUS_COMPENSATING;
	if (totals->nopen > 0 || totals->nrunning > 0 || totals->nsurplus > 0)
		return SAGA_STATUS_RUNNING;
	if (state->child && !state->released)
		return SAGA_STATUS_HELD;
	return totals->nconfirm > 0 ? SAGA_STATUS_RUNNING : SAGA_STATUS_COMPLETED;
}

static void
settle(const SagaRules *rules, SagaState *state)
{
	if (must_turn_back(rules, state))
		turn_back(rules, state, choose_goal(rules, state));
	if (state->status != SAGA_STATUS_PAUSED &&
		state->status != SAGA_STATUS_SCHEDULED)
		state->status = derive_status(rules, state);
}

/* After an operation of a step; "was_done" is what the step was before. */
static void
settle_step(const SagaRules *rules, SagaState *state, int step, bool was_done)
{
	if (rules->steps[step].quorum > 0 && !was_done &&
		saga_machine_step_is_done(rules, state, step))
		close_quorum(rules, state, step);
	settle(rules, state);
}

/* ---------------------------------------------------------------------
 * Operations
 * ---------------------------------------------------------------------
 */

/* The operation that the event names, or NULL. */
static SagaOpState *
find_op(const SagaState *state, const SagaEvent *event)
{
	if (event->step < 0 || event->step >= state->nsteps ||
		event->element < 0 ||
		event->element >= state->steps[event->step].nelements ||
		(unsigned int) event->operation >= SAGA_NOPERATION)
		return NULL;
	return op_of(state, event->step, event->element, event->operation);
}

static bool
event_is_ready(const SagaRules *rules, const SagaState *state,
			   const SagaEvent *event)
{
	Place		place = {event->step, event->element, event->operation};

	return is_ready(rules, state, &place);
}

/* Of an action: is it ready, or would it be if it had its lock? */
static bool
event_is_ready_but_for_gate(const SagaRules *rules, const SagaState *state,
							const SagaEvent *event)
{
	return event->operation == SAGA_OPERATION_ACTION &&
		is_ready_but_for_gate(rules, state, event->step, event->element);
}

/*
 * May an action fail before it can be attempted?  Its lock did not come; or
 * its step's elements could not be told, and this stands for them.
 */
static bool
may_fail_early(const SagaRules *rules, const SagaState *state,
			   const SagaEvent *event, const SagaOpState *op)
{
	if (!event_is_ready_but_for_gate(rules, state, event))
		return false;
	return op->gate == SAGA_GATE_QUEUED ||
		(rules->steps[event->step].foreach &&
		 state->steps[event->step].nelements == 1);
}

static bool
outcome_is_expected(const SagaRules *rules, const SagaState *state,
					const SagaEvent *event, const SagaOpState *op)
{
	bool		is_action = event->operation == SAGA_OPERATION_ACTION;

	if (op->status == SAGA_OP_RUNNING)
		return is_action || event->kind != SAGA_EVENT_NOT_TAKEN;
	if (event->kind == SAGA_EVENT_REVOKED)
		return false;
	if (event->kind == SAGA_EVENT_NOT_TAKEN)
		return event_is_ready_but_for_gate(rules, state, event);
	if (event->kind == SAGA_EVENT_FAILED &&
		may_fail_early(rules, state, event, op))
		return true;
	return event_is_ready(rules, state, event);
}

/*
 * Is this action, which has not ended, to be FAILED should it not be taken?
 * So it is where it may have had its effect all the same, which SKIPPED would
 * forget; where the quorum cannot be had without it; and where it would count
 * for the quorum if it were SKIPPED, which is for a person to say.
 */
static bool
is_wanted(const SagaStepRule *rule, const SagaStepState *step,
		  const SagaOpState *action)
{
	if (action->unknown)
		return true;
	return rule->quorum > 0 && !step_is_done(rule, step) &&
		(action->attempts > 0 ||
		 count_possible(step) - 1 < count_needed(rule, step));
}

static SagaVerdict
apply_outcome(const SagaRules *rules, SagaState *state, const SagaEvent *event)
{
	int			step = event->step;
	SagaOpState *op = find_op(state, event);
	bool		was_done;
	bool		within_reach;
	bool		wanted;

	if (op == NULL || !outcome_is_expected(rules, state, event, op))
		return SAGA_VERDICT_STALE;

	was_done = saga_machine_step_is_done(rules, state, step);
	within_reach = is_within_reach(rules, state, step);
	wanted = is_wanted(&rules->steps[step], &state->steps[step], op);
	open_op(rules, state, step, event->element, event->operation);
	if (event->kind == SAGA_EVENT_NOT_TAKEN && wanted)
		take_want(op);
	else
		take_outcome(&rules->steps[step].retry[event->operation], op, event);
	if (event->operation == SAGA_OPERATION_ACTION)
	{
		if (was_done)
			leave_over(op);
		else if (within_reach && op->status == SAGA_OP_WAITING)
			end_op(op, SAGA_OP_FAILED);
	}
	close_op(rules, state, step, event->element, event->operation);
	settle_step(rules, state, step, was_done);
	return SAGA_VERDICT_APPLIED;
}

static SagaVerdict
apply_started(const SagaRules *rules, SagaState *state, const SagaEvent *event)
{
	SagaOpState *op = find_op(state, event);

	if (op == NULL || op->status == SAGA_OP_RUNNING ||
		!event_is_ready(rules, state, event))
		return SAGA_VERDICT_STALE;
	open_op(rules, state, event->step, event->element, event->operation);
	op->status = SAGA_OP_RUNNING;
	op->cancelled = false;
	op->due_at = event->due_at;
	close_op(rules, state, event->step, event->element, event->operation);
	settle(rules, state);
	return SAGA_VERDICT_APPLIED;
}

static void
mark_changed(SagaState *state, int step, SagaOpState *op)
{
	op->changed = true;
	state->steps[step].changed = true;
}

static SagaVerdict
apply_cancelled(SagaState *state, const SagaEvent *event)
{
	SagaOpState *op = find_op(state, event);

	if (op == NULL || op->status != SAGA_OP_RUNNING || op->cancelled)
		return SAGA_VERDICT_STALE;
	op->cancelled = true;
	mark_changed(state, event->step, op);
	return SAGA_VERDICT_APPLIED;
}

static SagaVerdict
apply_signalled(SagaState *state, const SagaEvent *event)
{
	SagaOpState *op = find_op(state, event);

	if (op == NULL || event->operation != SAGA_OPERATION_ACTION ||
		!is_to_be_tried(op) || op->signalled)
		return SAGA_VERDICT_STALE;
	op->signalled = true;
	mark_changed(state, event->step, op);
	return SAGA_VERDICT_APPLIED;
}

/*
 * QUEUED or GRANTED.  Neither is stored with the operation: the lock's row is
 * the truth.
 */
static SagaVerdict
apply_gate(const SagaRules *rules, SagaState *state, const SagaEvent *event)
{
	SagaOpState *op = find_op(state, event);

	if (op == NULL || !rules->steps[event->step].exclusive ||
		op->gate == SAGA_GATE_OPEN ||
		!event_is_ready_but_for_gate(rules, state, event))
		return SAGA_VERDICT_STALE;
	if (event->kind == SAGA_EVENT_QUEUED)
	{
		op->gate = SAGA_GATE_QUEUED;
		op->due_at = event->due_at;
		return SAGA_VERDICT_APPLIED;
	}
	/* the pause before a retry is over when it could stand in line */
	if (op->gate == SAGA_GATE_QUEUED)
		op->due_at = op->status == SAGA_OP_WAITING ? event->now : 0;
	op->gate = SAGA_GATE_OPEN;
	return SAGA_VERDICT_APPLIED;
}

/* May a foreach step have so many elements? */
static bool
is_fit_number(const SagaStepRule *rule, int nelements)
{
	return nelements == 1 ||
		(nelements >= rule->quorum && nelements >= 0 &&
		 nelements <= SAGA_MAX_ELEMENTS);
}

static SagaVerdict
apply_expanded(const SagaRules *rules, SagaState *state,
			   const SagaEvent *event)
{
	int			n = event->nelements;
	SagaStepState *step;

	if (event->step < 0 || event->step >= state->nsteps ||
		!is_to_expand(rules, state, event->step) ||
		!is_fit_number(&rules->steps[event->step], n) ||
		(n > 0 && event->elements == NULL))
		return SAGA_VERDICT_STALE;
	step = &state->steps[event->step];
	count_step(rules, state, event->step, -1);
	step->nelements = n;
	step->elements = event->elements;
	/* SAGA_OP_PENDING, SAGA_GATE_CLOSED, false and 0 are all zero */
	if (n > 0)
		memset(step->elements, 0, (size_t) n * sizeof(SagaElementState));
	recount_step(&rules->steps[event->step], step);
	count_step(rules, state, event->step, 1);
	move_ends(rules, state, event->step);
	settle(rules, state);
	return SAGA_VERDICT_APPLIED;
}

/* ---------------------------------------------------------------------
 * The clock, the caller, the parent and people
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

/* All the way.  Also ends a pause. */
static SagaVerdict
go_back(const SagaRules *rules, SagaState *state)
{
	if (state->backward && state->goal < 0)
		return SAGA_VERDICT_BACKWARD;
	if (has_no_way_back(state))
		return SAGA_VERDICT_PIVOT;
	turn_back(rules, state, -1);
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
	return go_back(rules, state);
}

/* The steps that were undone are as if they had never begun. */
static SagaVerdict
apply_forward(const SagaRules *rules, SagaState *state)
{
	int			i;

	if (state->status == SAGA_STATUS_PAUSED)
		return SAGA_VERDICT_PAUSED;
	if (!is_back(rules, state))
		return SAGA_VERDICT_STALE;
	for (i = state->goal + 1; i < rules->nsteps; i++)
	{
		SagaStepState *step = &state->steps[i];

		if (!is_within_reach(rules, state, i))
			continue;
		if (step->nelements > 0)
			memset(step->elements, 0,
				   (size_t) step->nelements * sizeof(SagaElementState));
		if (rules->steps[i].foreach)
			step->nelements = -1;
	}
	count_up(&state->recoveries[state->goal]);
	state->backward = false;
	state->goal = -1;
	saga_machine_loaded(rules, state);
	settle(rules, state);
	return SAGA_VERDICT_APPLIED;
}

static SagaVerdict
apply_release(const SagaRules *rules, SagaState *state)
{
	if (!state->child || state->released)
		return SAGA_VERDICT_STALE;
	state->released = true;
	settle(rules, state);
	return SAGA_VERDICT_APPLIED;
}

static SagaVerdict
apply_recall(const SagaRules *rules, SagaState *state)
{
	return state->child ? go_back(rules, state) : SAGA_VERDICT_STALE;
}

static SagaVerdict
apply_cancel(const SagaRules *rules, SagaState *state)
{
	return state->status == SAGA_STATUS_HELD ? SAGA_VERDICT_HELD :
		go_back(rules, state);
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
	if (state->start_at > event->now && state->totals.nbegun == 0 &&
		!state->backward)
		state->status = SAGA_STATUS_SCHEDULED;
	else
		state->status = derive_status(rules, state);
	return SAGA_VERDICT_APPLIED;
}

/* Returns whether an operation of this element was in question. */
static bool
retry_element(const SagaRules *rules, SagaState *state, int step, int element,
			  bool hopeless, SagaTime now)
{
	bool		found = false;
	int			i;

	for (i = 0; i < SAGA_NOPERATION; i++)
	{
		Place		it = {step, element, (SagaOperation) i};
		SagaOpState *op;

		if (!is_in_question(rules, state, &it, SAGA_OP_FAILED, hopeless) &&
			!is_in_question(rules, state, &it, SAGA_OP_WAITING, hopeless))
			continue;
		op = open_op(rules, state, step, element, it.operation);
		op->failures = 0;
		op->crashes = 0;
		postpone(op, now, 0);
		close_op(rules, state, step, element, it.operation);
		found = true;
	}
	return found;
}

static SagaVerdict
apply_retry(const SagaRules *rules, SagaState *state, const SagaEvent *event)
{
	SagaVerdict verdict = SAGA_VERDICT_NOTHING;
	int			i;
	int			j;

	if (state->status == SAGA_STATUS_PAUSED)
		return SAGA_VERDICT_PAUSED;
	for (i = 0; i < state->nsteps; i++)
	{
		/* it may cease to be with the first: but all are meant */
		bool		hopeless = step_is_hopeless(&rules->steps[i],
												&state->steps[i]);

		if (!is_named(event->step, i))
			continue;
		for (j = 0; j < state->steps[i].nelements; j++)
		{
			if (is_named(event->element, j) &&
				retry_element(rules, state, i, j, hopeless, event->now))
				verdict = SAGA_VERDICT_APPLIED;
		}
	}
	if (verdict == SAGA_VERDICT_APPLIED)
		settle(rules, state);
	return verdict;
}

static SagaVerdict
apply_skip(const SagaRules *rules, SagaState *state, const SagaEvent *event)
{
	Place		it;
	bool		was_done;

	if (state->status == SAGA_STATUS_PAUSED)
		return SAGA_VERDICT_PAUSED;
	if (!find_in_question(rules, state, SAGA_OP_FAILED, event->step,
						  event->element, &it) &&
		!find_in_question(rules, state, SAGA_OP_WAITING, event->step,
						  event->element, &it))
		return SAGA_VERDICT_NOTHING;
	was_done = saga_machine_step_is_done(rules, state, it.step);
	end_well(open_op(rules, state, it.step, it.element, it.operation),
			 SAGA_OP_SKIPPED);
	close_op(rules, state, it.step, it.element, it.operation);
	settle_step(rules, state, it.step, was_done);
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
		case SAGA_EVENT_NOT_TAKEN:
		case SAGA_EVENT_REVOKED:
			return apply_outcome(rules, state, event);
		case SAGA_EVENT_STARTED:
			return apply_started(rules, state, event);
		case SAGA_EVENT_CANCELLED:
			return apply_cancelled(state, event);
		case SAGA_EVENT_SIGNALLED:
			return apply_signalled(state, event);
		case SAGA_EVENT_QUEUED:
		case SAGA_EVENT_GRANTED:
			return apply_gate(rules, state, event);
		case SAGA_EVENT_EXPANDED:
			return apply_expanded(rules, state, event);
		case SAGA_EVENT_START:
			return apply_start(state, event);
		case SAGA_EVENT_DEADLINE:
			return apply_deadline(rules, state, event);
		case SAGA_EVENT_FORWARD:
			return apply_forward(rules, state);
		case SAGA_EVENT_RELEASE:
			return apply_release(rules, state);
		case SAGA_EVENT_RECALL:
			return apply_recall(rules, state);
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
saga_machine_init(const SagaRules *rules, SagaState *state, SagaTime now,
				  SagaTime start_at, SagaTime deadline)
{
	int			i;

	state->status = start_at > now ? SAGA_STATUS_SCHEDULED :
		SAGA_STATUS_RUNNING;
	state->backward = false;
	state->goal = -1;
	state->child = false;
	state->released = false;
	state->start_at = start_at;
	state->deadline = deadline;
	for (i = 0; i < state->nsteps; i++)
	{
		SagaStepState *step = &state->steps[i];

		if (step->nelements > 0)
			memset(step->elements, 0,
				   (size_t) step->nelements * sizeof(SagaElementState));
	}
	if (rules->has_savepoints)
		memset(state->recoveries, 0, (size_t) state->nsteps * sizeof(int));
	saga_machine_loaded(rules, state);
}

/* ---------------------------------------------------------------------
 * The invariants, by their numbers in the file header
 * ---------------------------------------------------------------------
 */

static const char *
check_savepoint(const SagaRules *rules, int step)
{
	const SagaStepRule *rule = &rules->steps[step];

	if (!rule->savepoint)
		return NULL;
	if (!rules->has_savepoints || rule->recoveries < 1)
		return "I1: a savepoint that nothing can go forward from";
	if (rule->alternative >= 0 &&
		(rule->alternative <= step || rule->alternative >= rules->nsteps ||
		 !saga_rules_is_before(rules, step, rule->alternative)))
		return "I1: an alternative does not come after its savepoint";
	return NULL;
}

static const char *
check_rules(const SagaRules *rules)
{
	const char *wrong = NULL;
	int			i;
	int			j;

	if (rules->nsteps < 1 || rules->nsteps > SAGA_MAX_STEPS)
		return "I1: the number of steps is out of range";
	for (i = 0; i < rules->nsteps && wrong == NULL; i++)
	{
		const SagaStepRule *rule = &rules->steps[i];

		for (j = 0; j < rule->npreds; j++)
		{
			if (rule->preds[j] < 0 || rule->preds[j] >= i)
				return "I1: a step comes before one that it depends on";
		}
		if (rules->before == NULL &&
			(rule->npreds != (i > 0) || (i > 0 && rule->preds[0] != i - 1)))
			return "I1: what comes before what was not set";
		wrong = check_savepoint(rules, i);
	}
	return wrong;
}

static const char *
check_attempts(const SagaOpState *op)
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
check_marks(const SagaOpState *op, SagaOperation operation)
{
	bool		is_action = operation == SAGA_OPERATION_ACTION;

	if (op->unknown && op->status != SAGA_OP_RUNNING &&
		op->status != SAGA_OP_WAITING && op->status != SAGA_OP_FAILED)
		return "I3: the outcome of an operation is known and unknown";
	if (op->cancelled && op->status != SAGA_OP_RUNNING)
		return "I3: an operation is cancelled that nobody has";
	if (op->signalled && (!is_action || has_ended(op)))
		return "I3: an operation is signalled that is none to come";
	if (op->gate != SAGA_GATE_CLOSED && !is_action)
		return "I3: an operation has a gate that needs none";
	if (op->gate == SAGA_GATE_QUEUED && !is_to_be_tried(op))
		return "I3: an operation is queued that is none to do";
	return NULL;
}

static const char *
check_op(const SagaOpState *op, SagaOperation operation)
{
	const char *wrong;

	if ((unsigned int) op->status >= SAGA_NOP_STATUS ||
		(unsigned int) op->gate > SAGA_GATE_OPEN)
		return "I1: the status of an operation is out of range";
	if (op->status == SAGA_OP_WAITING && op->due_at == SAGA_TIME_NEVER &&
		op->gate != SAGA_GATE_QUEUED)
		return "I2: a waiting operation is never due";
	wrong = check_marks(op, operation);
	return wrong != NULL ? wrong : check_attempts(op);
}

static const char *
check_action(const SagaRules *rules, const SagaState *state, int step,
			 const SagaOpState *action)
{
	if (action->status == SAGA_OP_WAITING &&
		is_within_reach(rules, state, step))
		return "I7: an action waits in a saga that goes back";
	if (!action->surplus)
		return NULL;
	if (rules->steps[step].quorum <= 0 ||
		!saga_machine_step_is_done(rules, state, step))
		return "I13: an action is surplus to no quorum";
	if (action->status != SAGA_OP_SUCCEEDED &&
		!(action->status == SAGA_OP_FAILED && action->unknown))
		return "I13: an action is surplus that has no effect";
	return NULL;
}

static const char *
check_compensation(const SagaRules *rules, const SagaState *state, int step,
				   const SagaElementState *element, bool blocked)
{
	const SagaOpState *action = &element->op[SAGA_OPERATION_ACTION];

	if (element->op[SAGA_OPERATION_COMPENSATION].status == SAGA_OP_PENDING)
		return NULL;
	if (!rules->steps[step].has_compensation)
		return "I8: a compensation has begun that the step has not";
	if (!may_have_effect(action))
		return "I8: a compensation has begun with nothing to undo";
	if (action->status == SAGA_OP_RUNNING)
		return "I8: a compensation has begun while the action is out";
	if (action->surplus)
		return NULL;
	if (!state->backward)
		return "I6: a compensation has begun in a saga that goes forward";
	if (blocked || !is_within_reach(rules, state, step))
		return "I8: a compensation has begun too early";
	return NULL;
}

static const char *
check_confirmation(const SagaRules *rules, const SagaState *state, int step,
				   const SagaElementState *element)
{
	if (element->op[SAGA_OPERATION_CONFIRMATION].status == SAGA_OP_PENDING)
		return NULL;
	if (!is_confirmable(&rules->steps[step], element))
		return "I12: a confirmation has begun with nothing to confirm";
	if (!is_confirming(state))
		return "I12: a confirmation has begun too early";
	return NULL;
}

static const char *
check_element(const SagaRules *rules, const SagaState *state, int step,
			  int element, bool blocked)
{
	const SagaElementState *it = &state->steps[step].elements[element];
	const char *wrong = check_action(rules, state, step,
									 &it->op[SAGA_OPERATION_ACTION]);

	if (wrong == NULL)
		wrong = check_compensation(rules, state, step, it, blocked);
	if (wrong == NULL)
		wrong = check_confirmation(rules, state, step, it);
	return wrong;
}

static const char *
check_step(const SagaRules *rules, const SagaState *state, int step,
		   bool blocked)
{
	const SagaStepState *it = &state->steps[step];
	const char *wrong = NULL;
	int			i;

	if (step_has_begun(it) && !preds_are_done(rules, state, step))
		return "I5: an action has begun before one that it depends on ended";
	if (step_has_begun(it) && it->off)
		return "I5: an action has begun that is off the way";
	for (i = 0; i < it->nelements && wrong == NULL; i++)
		wrong = check_element(rules, state, step, i, blocked);
	return wrong;
}

static const char *
check_steps(const SagaRules *rules, const SagaState *state)
{
	StepSet		blocked;
	const char *wrong = NULL;
	int			i;

	empty_set(rules, &blocked);
	for (i = rules->nsteps - 1; i >= 0 && wrong == NULL; i--)
	{
		wrong = check_step(rules, state, i, is_in_set(&blocked, i));
		if (state->steps[i].nundo > 0)
			add_those_before(rules, &blocked, i);
	}
	return wrong;
}

/* I1 to I4: each operation by itself. */
static const char *
check_operations(const SagaRules *rules, const SagaState *state)
{
	const char *wrong = NULL;
	int			i;
	int			j;
	int			k;

	for (i = 0; i < rules->nsteps; i++)
	{
		const SagaStepState *step = &state->steps[i];

		if (rules->steps[i].foreach ?
			step->nelements != -1 &&
			!is_fit_number(&rules->steps[i], step->nelements) :
			step->nelements != 1)
			return "I1: the number of elements is out of range";
		for (j = 0; j < step->nelements && wrong == NULL; j++)
		{
			for (k = 0; k < SAGA_NOPERATION && wrong == NULL; k++)
				wrong = check_op(&step->elements[j].op[k], (SagaOperation) k);
		}
	}
	return wrong;
}

static bool
counters_agree(const SagaStepState *a, const SagaStepState *b)
{
	return memcmp(a->count, b->count, sizeof(a->count)) == 0 &&
		memcmp(a->first, b->first, sizeof(a->first)) == 0 &&
		a->ncrashed == b->ncrashed && a->nsurplus == b->nsurplus &&
		a->nundo == b->nundo && a->nextra == b->nextra &&
		a->nclosed == b->nclosed && a->nunknown == b->nunknown;
}

/* I14; "changed" is the caller's to clear. */
static const char *
check_counters(const SagaRules *rules, const SagaState *state)
{
	SagaState	copy = *state;
	StepSet		off;
	int			i;

	find_off(rules, state, &off);
	for (i = 0; i < rules->nsteps; i++)
	{
		SagaStepState recount = state->steps[i];

		if (recount.off != is_in_set(&off, i))
			return "I14: a step is off or not, and should not be";
		recount_step(&rules->steps[i], &recount);
		if (!counters_agree(&recount, &state->steps[i]))
			return "I14: the counters of a step are wrong";
	}
	count_steps(rules, &copy);
	if (memcmp(&copy.totals, &state->totals, sizeof(copy.totals)) != 0)
		return "I14: the totals are wrong";
	return NULL;
}

static const char *
check_goal(const SagaRules *rules, const SagaState *state)
{
	int			i;

	for (i = 0; i < rules->nsteps && rules->has_savepoints; i++)
	{
		if (rules->steps[i].savepoint &&
			(state->recoveries[i] < 0 ||
			 state->recoveries[i] > rules->steps[i].recoveries))
			return "I1: the recoveries of a savepoint are out of range";
	}
	if (state->goal == -1)
		return NULL;
	if (state->goal < 0 || state->goal >= rules->nsteps ||
		!rules->has_savepoints || !rules->steps[state->goal].savepoint)
		return "I7: the goal is not a savepoint";
	if (!state->backward)
		return "I7: a saga that goes forward has a goal";
	if (state->recoveries[state->goal] >=
		rules->steps[state->goal].recoveries)
		return "I7: the goal has no recovery left";
	return NULL;
}

static const char *
check_direction(const SagaState *state)
{
	SagaStatus	status = state->status;

	if (!state->backward && state->totals.nbroken > 0 &&
		!has_no_way_back(state))
		return "I6: an action has failed and the saga goes forward";
	if (state->backward && state->totals.npivots > 0)
		return "I7: a saga goes back past its pivot";
	if (state->backward && (status == SAGA_STATUS_SCHEDULED ||
							status == SAGA_STATUS_RUNNING ||
							status == SAGA_STATUS_HELD ||
							status == SAGA_STATUS_COMPLETED))
		return "I9: the status is one of going forward";
	if (!state->backward && (status == SAGA_STATUS_COMPENSATING ||
							 status == SAGA_STATUS_COMPENSATED))
		return "I9: the status is one of going back";
	if (state->released && !state->child)
		return "I13: a saga is released that has no parent";
	if (status == SAGA_STATUS_HELD && (!state->child || state->released))
		return "I13: a saga is held that nobody holds";
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
		return state->totals.nbegun > 0 ?
			"I10: a scheduled saga has begun" : NULL;
	}
	if (status == derive_status(rules, state))
		return NULL;
	if (status == SAGA_STATUS_STUCK)
		return "I11: nothing is stuck in a stuck saga";
	if (derive_status(rules, state) == SAGA_STATUS_STUCK)
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
		wrong = check_operations(rules, state);
	if (wrong == NULL)
		wrong = check_goal(rules, state);
	if (wrong == NULL)
		wrong = check_counters(rules, state);
	if (wrong == NULL)
		wrong = check_steps(rules, state);
	if (wrong == NULL)
		wrong = check_direction(state);
	if (wrong == NULL)
		wrong = check_status(rules, state);
	return wrong;
}
