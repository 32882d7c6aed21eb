/*
 * machine.h
 *		The state machine of a saga: what to do next, and what an event makes of
 *		a state.
 *
 * PURE: calls nothing of the server, reads no clock, no table, no global.
 * Time and randomness come with the event.  Anyone may call.
 *
 *					  start time has come
 *		SCHEDULED ------------------------> RUNNING ----------> COMPLETED
 *						 a step failed for good, |	all is done and confirmed;
 *						 cancel, deadline		 |	of a child: HELD until its
 *												 v	parent releases it
 *		RUNNING <--------------------------- COMPENSATING ----> COMPENSATED
 *			a savepoint is reached, and the		nothing left to undo
 *			saga may go forward from it again
 *
 *		HELD -- recalled by its parent --> COMPENSATING
 *		any of these -- pause --> PAUSED -- resume --> where it was
 *		RUNNING with no way back, COMPENSATING -- out of attempts --> STUCK
 *		either of these -- process ended three times --> STUCK
 *			-- retry or skip, by a person --> where it was
 *		any that is not final -- abandon --> ABANDONED
 *
 * A step has one element, or, with "foreach", as many as its array has; an
 * operation is one of an element of a step.  Several may be ready, and be out,
 * at the same time.
 *
 * (machine.c's header has the table of transitions and the invariants.)
 */
#ifndef SAGA_MACHINE_H
#define SAGA_MACHINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "retry.h"

/* A time in microseconds of the caller's epoch. */
typedef int64_t SagaTime;

#define SAGA_TIME_NEVER		INT64_MAX

/* A process that ended so often during an operation makes its saga stuck. */
#define SAGA_MAX_CRASHES	3

/* No definition may have more steps than this ... */
#define SAGA_MAX_STEPS		INT16_MAX

/* ... nor one in which steps name those they come after more than this. */
#define SAGA_MAX_GRAPH		1024

/* No step may have more elements than this. */
#define SAGA_MAX_ELEMENTS	100000

typedef enum SagaStatus
{
	SAGA_STATUS_SCHEDULED,
	SAGA_STATUS_RUNNING,
	SAGA_STATUS_COMPENSATING,
	SAGA_STATUS_HELD,
	SAGA_STATUS_STUCK,
	SAGA_STATUS_PAUSED,
	SAGA_STATUS_COMPLETED,
	SAGA_STATUS_COMPENSATED,
	SAGA_STATUS_ABANDONED
} SagaStatus;

#define SAGA_NSTATUS	(SAGA_STATUS_ABANDONED + 1)

typedef enum SagaOperation
{
	SAGA_OPERATION_ACTION,
	SAGA_OPERATION_COMPENSATION,
	SAGA_OPERATION_CONFIRMATION
} SagaOperation;

#define SAGA_NOPERATION	(SAGA_OPERATION_CONFIRMATION + 1)

typedef enum SagaOpStatus
{
	SAGA_OP_PENDING,			/* not begun */
	SAGA_OP_RUNNING,			/* handed out: to a worker, a timer, a person, a
								 * child, a participant; the outcome comes from
								 * there */
	SAGA_OP_WAITING,			/* for its next attempt */
	SAGA_OP_SUCCEEDED,
	SAGA_OP_FAILED,				/* for good; or out of attempts */
	SAGA_OP_SKIPPED				/* not needed, or a person said so */
} SagaOpStatus;

#define SAGA_NOP_STATUS	(SAGA_OP_SKIPPED + 1)

/*
 * What an action needs to be attempted: a semantic lock, a place among the
 * sagas that may be in its step at once, or both.  The caller may forget it:
 * the machine asks again, and who has the lock is granted it.
 */
typedef enum SagaGate
{
	SAGA_GATE_CLOSED,			/* not asked for, as far as is known */
	SAGA_GATE_QUEUED,			/* the saga stands in line for it */
	SAGA_GATE_OPEN				/* it has it */
} SagaGate;

/* One step of a definition, as far as the machine is concerned. */
typedef struct SagaStepRule
{
	bool		has_compensation;
	bool		has_confirmation;	/* of a function, then has_compensation too;
									 * of a child, also at and after a pivot */
	bool		pivot;
	bool		foreach;		/* its elements come with EXPANDED */
	bool		exclusive;		/* its actions need a lock or a place: see
								 * SagaGate */
	bool		savepoint;		/* not at or after a pivot */
	int			parallel;		/* foreach: at most so many operations of it are
								 * RUNNING or named as tasks at once; 0 = all */
	int			quorum;			/* foreach: so many successes are enough; 0 =
								 * every one is needed */
	int			recoveries;		/* savepoint: how often a saga may go forward
								 * from it again, at least 1 */
	int16_t		alternative;	/* savepoint: the step, after this one, that is
								 * done then; -1 = the same steps again */
	int			npreds;			/* the steps that must have ended before */
	const int16_t *preds;		/* their positions, each less than this one's */
	SagaRetryPolicy retry[SAGA_NOPERATION];
} SagaStepRule;

typedef struct SagaRules
{
	int			nsteps;			/* at least 1 */
	const SagaStepRule *steps;	/* in topological order */
	bool		has_savepoints;
	const uint64_t *before;		/* by saga_rules_close(); NULL: each step has
								 * the one before it as its only predecessor,
								 * the first none */
} SagaRules;

/* What is known of one operation of one element. */
typedef struct SagaOpState
{
	SagaOpStatus status;
	SagaGate	gate;			/* of an action; not stored */
	bool		unknown;		/* an attempt of it may have had its effect:
								 * RUNNING, WAITING or FAILED only, never for a
								 * local function.  Set by who hands it out
								 * while it is RUNNING, not by an event; see
								 * saga_machine_loaded().  It stays until the
								 * operation succeeds or a person skips it */
	bool		cancelled;		/* RUNNING: whoever has it was asked to give it
								 * up */
	bool		surplus;		/* an action that SUCCEEDED after the quorum had
								 * been reached without it, or that FAILED and
								 * is unknown: compensated, also while the saga
								 * goes forward */
	bool		signalled;		/* an action whose outcome is there before its
								 * time: it has not succeeded yet */
	bool		changed;		/* set with every change; cleared by who has
								 * stored it */
	int			attempts;		/* tries made, of whatever outcome */
	int			failures;		/* those that count against the policy, since the
								 * last retry by a person */
	int			crashes;		/* processes that ended during it, likewise */
	SagaTime	due_at;			/* WAITING: when the next attempt is due.
								 * RUNNING: when it is over if no outcome came.
								 * QUEUED: when the wait is over, which is kept
								 * with the lock; stored as "now" if WAITING.
								 * Else 0 */
} SagaOpState;

typedef struct SagaElementState
{
	SagaOpState op[SAGA_NOPERATION];
} SagaElementState;

typedef struct SagaStepState
{
	int			nelements;		/* 1 unless foreach; -1: not known yet */
	SagaElementState *elements; /* the caller's memory, so many */

	/* the machine's own: saga_machine_loaded() makes it */
	bool		off;			/* not on the way that the saga takes: counts as
								 * done, and nothing is attempted */
	bool		changed;		/* an operation of it has "changed" set */
	int			count[SAGA_NOPERATION][SAGA_NOP_STATUS];
	int			ncrashed;		/* FAILED actions with SAGA_MAX_CRASHES crashes */
	int			nsurplus;		/* surplus actions not compensated yet */
	int			nundo;			/* elements with something left to undo, were
								 * the saga to go back */
	int			nextra;			/* SUCCEEDED actions that are surplus */
	int			nclosed;		/* SKIPPED actions with attempts: a person says
								 * that they are done */
	int			nunknown;		/* WAITING and FAILED actions that are unknown */
	int			first[SAGA_NOPERATION]; /* the first element of which this
										 * operation has not ended */
} SagaStepState;

/* How many steps there are of which this is true. */
typedef struct SagaTotals
{
	int			nopen;			/* it is not done */
	int			nbegun;			/* an action has begun */
	int			nhopeless;		/* it cannot become done by itself ... */
	int			nbroken;		/* ... nor by trying again what has crashed */
	int			npivots;		/* it is a pivot that holds */
	int			nundo;			/* something is left to undo */
	int			nrunning;		/* an operation is RUNNING */
	int			nsurplus;		/* a surplus action is not compensated yet */
	int			nconfirm;		/* a confirmation is left to be made */
	int			nfailed;		/* a compensation or confirmation has FAILED */

	/* and two of them, to begin to look from */
	int			first_active;	/* the first that is not done, has something
								 * RUNNING or surplus; nsteps if none has */
	int			last_undo;		/* the last with something left to undo, or -1 */
} SagaTotals;

typedef struct SagaState
{
	SagaStatus	status;
	bool		backward;		/* going back: kept while STUCK or PAUSED */
	int16_t		goal;			/* backward: the savepoint at which it is to turn
								 * forward again; -1 = it goes all the way */
	bool		child;			/* it has a parent, ... */
	bool		released;		/* ... which has let it go: it may complete */
	SagaTime	start_at;		/* SCHEDULED: when it is to begin.  START
								 * before that time changes it: keep it too */
	SagaTime	deadline;		/* SAGA_TIME_NEVER if there is none */
	int			nsteps;
	SagaStepState *steps;		/* as many as the rules have */
	int		   *recoveries;		/* by step: how often the saga went forward
								 * again from this savepoint; NULL if the rules
								 * have no savepoint */
	SagaTotals	totals;			/* the machine's own */
} SagaState;

typedef enum SagaEventKind
{
	/* outcomes of an operation: step, element and operation are set */
	SAGA_EVENT_SUCCEEDED,
	SAGA_EVENT_FAILED,			/* passing says which kind */
	SAGA_EVENT_LATER,			/* the step asks for another attempt, which is
								 * not a failure */
	SAGA_EVENT_LOST,			/* the process ended during it: no effect */
	SAGA_EVENT_NOT_TAKEN,		/* of an action: its condition is false */
	SAGA_EVENT_REVOKED,			/* of a RUNNING one: this attempt was given up
								 * with no effect, as if it had not been handed
								 * out; of earlier ones that says nothing */
	/* what becomes of an operation without an attempt; likewise */
	SAGA_EVENT_STARTED,			/* a ready one is RUNNING now, until due_at */
	SAGA_EVENT_CANCELLED,		/* who has the RUNNING one was asked to give it
								 * up */
	SAGA_EVENT_SIGNALLED,		/* of an action that is not out: its outcome is
								 * there */
	SAGA_EVENT_QUEUED,			/* the action waits for its lock or place, until
								 * due_at */
	SAGA_EVENT_GRANTED,			/* it has all that it needs */
	/* of a step */
	SAGA_EVENT_EXPANDED,		/* its elements: nelements, elements */
	/* of the clock */
	SAGA_EVENT_START,			/* begin now, whatever start_at says */
	SAGA_EVENT_DEADLINE,		/* the deadline has passed */
	/* of the caller, who has stored what there was to store */
	SAGA_EVENT_FORWARD,			/* turn forward again: see SagaTodo.forward */
	/* of a child's parent */
	SAGA_EVENT_RELEASE,			/* it may complete when it is done */
	SAGA_EVENT_RECALL,			/* it is to go back, also when it is HELD */
	/* of a person; step and element are -1 for "whichever it is" */
	SAGA_EVENT_CANCEL,
	SAGA_EVENT_PAUSE,
	SAGA_EVENT_RESUME,
	SAGA_EVENT_RETRY,
	SAGA_EVENT_SKIP,
	SAGA_EVENT_ABANDON
} SagaEventKind;

#define SAGA_NEVENT	(SAGA_EVENT_ABANDON + 1)

typedef struct SagaEvent
{
	SagaEventKind kind;
	int			step;			/* position, or -1 */
	int			element;		/* from 0; or -1 */
	SagaOperation operation;
	bool		passing;		/* FAILED: worth another attempt.  If not, and
								 * the saga cannot turn back (any_passing), it
								 * is stuck at once, whatever is left */
	SagaTime	now;
	SagaTime	delay;			/* FAILED, LATER: pause asked for by the step,
								 * microseconds; -1: as the policy says */
	SagaTime	due_at;			/* STARTED, QUEUED: SAGA_TIME_NEVER if none */
	double		random;			/* for the jitter, in [0, 1) */
	int			nelements;		/* EXPANDED: 0 to SAGA_MAX_ELEMENTS, as many as
								 * the quorum at least; or 1, to be FAILED, where
								 * they are less or could not be told ... */
	SagaElementState *elements; /* ... in memory that stays the state's; zeroed
								 * by the machine */
} SagaEvent;

/* What became of an event. */
typedef enum SagaVerdict
{
	SAGA_VERDICT_APPLIED,
	SAGA_VERDICT_FINAL,			/* refused: the saga has ended */
	SAGA_VERDICT_PIVOT,			/* refused: there is no way back: its pivot has
								 * succeeded, was skipped, or may have had its
								 * effect; or it is being confirmed */
	SAGA_VERDICT_BACKWARD,		/* refused: it is compensating already */
	SAGA_VERDICT_HELD,			/* refused: it is done, and its parent decides */
	SAGA_VERDICT_NOT_PAUSED,
	SAGA_VERDICT_PAUSED,		/* refused: it is paused (already) */
	SAGA_VERDICT_STUCK,			/* refused: it is stuck (retry, skip ...) */
	SAGA_VERDICT_NOTHING,		/* refused: no operation waits or is stuck
								 * (retry, skip), or not that step's */
	SAGA_VERDICT_STALE			/* refused: that operation is not one to do, or
								 * has ended (an outcome that came twice) */
} SagaVerdict;

/* Why nothing can be done just now. */
typedef enum SagaWait
{
	SAGA_WAIT_NOTHING,			/* there is something to do, or it is final */
	SAGA_WAIT_START,			/* for its start time */
	SAGA_WAIT_RETRY,			/* for the next attempt of todo.step */
	SAGA_WAIT_OUTCOME,			/* for the outcome of an operation handed out */
	SAGA_WAIT_LOCK,				/* for the lock of todo.step */
	SAGA_WAIT_PARENT,			/* HELD: for its parent's decision */
	SAGA_WAIT_PERSON_STUCK,		/* for retry, skip or abandon of todo.step */
	SAGA_WAIT_PERSON_PAUSED		/* for resume */
} SagaWait;

/* One thing to do. */
typedef enum SagaTaskKind
{
	SAGA_TASK_OPERATE,			/* attempt it now and report the outcome, or hand
								 * it out and report STARTED */
	SAGA_TASK_EXPAND,			/* find the elements of the step and report
								 * EXPANDED */
	SAGA_TASK_ACQUIRE,			/* ask for the action's lock and report GRANTED
								 * or QUEUED */
	SAGA_TASK_EXPIRE,			/* it is over: of a RUNNING operation report an
								 * outcome, of a QUEUED one FAILED */
	SAGA_TASK_REVOKE			/* nobody needs this RUNNING operation any more:
								 * ask who has it to give it up and report
								 * CANCELLED, or REVOKED where that is at once */
} SagaTaskKind;

typedef struct SagaTask
{
	SagaTaskKind kind;
	int			step;
	int			element;		/* 0 with EXPAND */
	SagaOperation operation;
	int			attempt;		/* OPERATE: the number of the attempt, from 1 */
} SagaTask;

/* What to do next, in this order: deadline, start, forward, the tasks. */
typedef struct SagaTodo
{
	bool		deadline;		/* report SAGA_EVENT_DEADLINE first */
	bool		start;			/* report SAGA_EVENT_START first */
	bool		forward;		/* the saga has come back to its goal, a
								 * savepoint: store what has changed, then report
								 * SAGA_EVENT_FORWARD, which begins a new round
								 * and forgets the one before */
	int			ntasks;			/* in the caller's array: all that can be done
								 * now, in any order, as far as it has room.  In
								 * the order of the steps (going back, the other
								 * way), then of the elements */
	SagaWait	wait;			/* with none of the four above: for what, ... */
	int			step;			/* ... and of which operation; else -1 */
	int			element;
	SagaOperation operation;
	SagaTime	due_at;			/* when to look again: not after "now" if there
								 * is something to do, SAGA_TIME_NEVER if only
								 * an outcome or somebody can move it */
} SagaTodo;

extern bool saga_status_is_final(SagaStatus status);

/* The words that SQL shows: 'running', 'action', 'waiting'.  Never NULL. */
extern const char *saga_status_name(SagaStatus status);
extern const char *saga_operation_name(SagaOperation operation);
extern const char *saga_op_status_name(SagaOpStatus status);
extern const char *saga_event_name(SagaEventKind kind);

/* The other way; return false for a word that is none of theirs. */
extern bool saga_status_parse(const char *name, SagaStatus *status);
extern bool saga_operation_parse(const char *name, SagaOperation *operation);
extern bool saga_op_status_parse(const char *name, SagaOpStatus *status);
extern bool saga_event_parse(const char *name, SagaEventKind *kind);

/*
 * Set rules->before from the predecessors, in memory of the caller's of
 * saga_rules_closure_size() bytes; at most SAGA_MAX_GRAPH steps.
 */
extern size_t saga_rules_closure_size(int nsteps);
extern void saga_rules_close(SagaRules *rules, uint64_t *memory);

/* Does "later" depend on "earlier", however far off?  Not on itself. */
extern bool saga_rules_is_before(const SagaRules *rules, int earlier,
								 int later);

/*
 * Make "state" that of a saga that was just begun: SCHEDULED when start_at is
 * in the future, else RUNNING; no child.  The caller has set nsteps and, of
 * each step, nelements (-1 with foreach, else 1) and elements, and recoveries,
 * in memory of its own; all of it is zeroed here.  start_at must not be
 * SAGA_TIME_NEVER: nobody would look at that saga again.
 */
extern void saga_machine_init(const SagaRules *rules, SagaState *state,
							  SagaTime now, SagaTime start_at,
							  SagaTime deadline);

/*
 * The caller has filled the state with what was stored: make what is the
 * machine's own of it.  To be called before anything else, and again whenever
 * the caller has changed the state itself; except for setting or clearing
 * "unknown" of a RUNNING operation, and for clearing "changed".
 */
extern void saga_machine_loaded(const SagaRules *rules, SagaState *state);

/*
 * How often the saga has gone back beyond this step to go forward again, from
 * any savepoint before it.  Operations of an earlier round are history: with
 * each round a step starts afresh.
 */
extern int	saga_machine_round(const SagaRules *rules, const SagaState *state,
							   int step);

/* What to do next.  Changes nothing.  "max" is at least 1. */
extern void saga_machine_next(const SagaRules *rules, const SagaState *state,
							  SagaTime now, SagaTodo *todo, SagaTask *tasks,
							  int max);

/*
 * Apply an event.  Only SAGA_VERDICT_APPLIED has changed the state; every
 * other verdict left it as it was.  "changed" of steps and operations says
 * which rows are to be written.  FORWARD, and no other event, begins a new
 * round of the steps after the savepoint: their operations are zeroed, foreach
 * steps have to be expanded again, and recoveries has gone up.
 */
extern SagaVerdict saga_machine_apply(const SagaRules *rules, SagaState *state,
									  const SagaEvent *event);

/*
 * Is every error of this operation worth another attempt?  So it is with
 * compensations, confirmations and the actions of a saga with no way back.
 */
extern bool saga_machine_any_passing(const SagaRules *rules,
									 const SagaState *state, int step,
									 int element, SagaOperation operation);

/* Has this step ended, so that those after it may begin? */
extern bool saga_machine_step_is_done(const SagaRules *rules,
									  const SagaState *state, int step);

/*
 * Has the state a meaning under the rules?  Returns NULL, or what is wrong
 * with it, as static text.  Also checks that what is the machine's own is what
 * saga_machine_loaded() would make.
 */
extern const char *saga_machine_check(const SagaRules *rules,
									  const SagaState *state);

#endif							/* SAGA_MACHINE_H */
