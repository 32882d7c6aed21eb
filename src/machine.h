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
 *						 a step failed for good, |  every step succeeded or
 *						 cancel, deadline		 |  was skipped
 *												 v
 *										   COMPENSATING ------> COMPENSATED
 *														nothing left to undo
 *
 *		any of these three -- pause --> PAUSED -- resume --> where it was
 *		RUNNING past the pivot, COMPENSATING -- out of attempts --> STUCK
 *		either of these -- process ended three times --> STUCK
 *			-- retry or skip, by a person --> where it was
 *		any that is not final -- abandon --> ABANDONED
 *
 * (machine.c's header has the table of transitions and the invariants.)
 */
#ifndef SAGA_MACHINE_H
#define SAGA_MACHINE_H

#include <stdbool.h>
#include <stdint.h>

#include "retry.h"

/* A time in microseconds of the caller's epoch. */
typedef int64_t SagaTime;

#define SAGA_TIME_NEVER		INT64_MAX

/* A process that ended so often during an operation makes its saga stuck. */
#define SAGA_MAX_CRASHES	3

/* No definition may have more steps than this. */
#define SAGA_MAX_STEPS		INT16_MAX

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
	SAGA_OP_RUNNING,			/* handed out: the intent is committed, the
								 * outcome is not known yet (never for a local
								 * function) */
	SAGA_OP_WAITING,			/* for its next attempt */
	SAGA_OP_SUCCEEDED,
	SAGA_OP_FAILED,				/* for good; or out of attempts */
	SAGA_OP_SKIPPED				/* not needed, or a person said so */
} SagaOpStatus;

#define SAGA_NOP_STATUS	(SAGA_OP_SKIPPED + 1)

/* One step of a definition, as far as the machine is concerned. */
typedef struct SagaStepRule
{
	bool		has_compensation;
	bool		pivot;
	int			npreds;			/* the steps that must have ended before */
	const int16_t *preds;		/* their positions, each less than this one's */
	SagaRetryPolicy retry[SAGA_NOPERATION];
} SagaStepRule;

typedef struct SagaRules
{
	int			nsteps;			/* at least 1 */
	const SagaStepRule *steps;	/* in topological order */
} SagaRules;

/* What is known of one operation of one step. */
typedef struct SagaOpState
{
	SagaOpStatus status;
	bool		unknown;		/* it may have had its effect: RUNNING, WAITING
								 * or FAILED only, never for a local function.
								 * Set by who hands it out, not by an event */
	int			attempts;		/* tries made, of whatever outcome */
	int			failures;		/* those that count against the policy, since the
								 * last retry by a person */
	int			crashes;		/* processes that ended during it, likewise */
	SagaTime	due_at;			/* WAITING: when the next attempt is due */
} SagaOpState;

typedef struct SagaStepState
{
	SagaOpState op[SAGA_NOPERATION];
} SagaStepState;

typedef struct SagaState
{
	SagaStatus	status;
	bool		backward;		/* going back: kept while STUCK or PAUSED */
	SagaTime	start_at;		/* SCHEDULED: when it is to begin.  START
								 * before that time changes it: keep it too */
	SagaTime	deadline;		/* SAGA_TIME_NEVER if there is none */
	int			nsteps;
	SagaStepState *steps;		/* as many as the rules have */
} SagaState;

typedef enum SagaEventKind
{
	/* of an operation: step and operation are set */
	SAGA_EVENT_SUCCEEDED,
	SAGA_EVENT_FAILED,			/* passing says which kind */
	SAGA_EVENT_LATER,			/* the step asks for another attempt, which is
								 * not a failure */
	SAGA_EVENT_LOST,			/* the process ended during it: no effect */
	/* of the clock */
	SAGA_EVENT_START,			/* begin now, whatever start_at says */
	SAGA_EVENT_DEADLINE,		/* the deadline has passed */
	/* of a person; step is -1 for "whichever it is", else that one only */
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
	SagaOperation operation;
	bool		passing;		/* FAILED: worth another attempt.  If not, and
								 * the saga cannot turn back (any_passing), it
								 * is stuck at once, whatever is left */
	SagaTime	now;
	SagaTime	delay;			/* FAILED, LATER: pause asked for by the step,
								 * microseconds; -1: as the policy says */
	double		random;			/* for the jitter, in [0, 1) */
} SagaEvent;

/* What became of an event. */
typedef enum SagaVerdict
{
	SAGA_VERDICT_APPLIED,
	SAGA_VERDICT_FINAL,			/* refused: the saga has ended */
	SAGA_VERDICT_PIVOT,			/* refused: its pivot has succeeded, was
								 * skipped, or may have had its effect */
	SAGA_VERDICT_BACKWARD,		/* refused: it is compensating already */
	SAGA_VERDICT_NOT_PAUSED,
	SAGA_VERDICT_PAUSED,		/* refused: it is paused (already) */
	SAGA_VERDICT_STUCK,			/* refused: it is stuck (retry, skip ...) */
	SAGA_VERDICT_NOTHING,		/* refused: no operation waits or is stuck
								 * (retry, skip), or not that step's */
	SAGA_VERDICT_STALE			/* refused: that operation is not the one to do,
								 * or has ended (an outcome that came twice) */
} SagaVerdict;

/* Why nothing can be done just now. */
typedef enum SagaWait
{
	SAGA_WAIT_NOTHING,			/* there is something to do, or it is final */
	SAGA_WAIT_START,			/* for its start time */
	SAGA_WAIT_RETRY,			/* for the next attempt of todo.step */
	SAGA_WAIT_OUTCOME,			/* for the outcome of an operation handed out
								 * (HELD, step is -1: for its parent's) */
	SAGA_WAIT_PERSON_STUCK,		/* for retry, skip or abandon of todo.step */
	SAGA_WAIT_PERSON_PAUSED		/* for resume */
} SagaWait;

/* The next thing to do.  At most one operation at a time is named: the first
 * in the order of the steps (going back, the last); the engine asks again
 * after it has told the machine what came of it. */
typedef struct SagaTodo
{
	bool		deadline;		/* report SAGA_EVENT_DEADLINE first */
	bool		start;			/* report SAGA_EVENT_START first */
	bool		operate;		/* attempt "operation" of "step" now */
	int			step;			/* with operate and the waits; else -1 */
	SagaOperation operation;
	int			attempt;		/* with operate: the number of the attempt */
	SagaWait	wait;			/* with none of the three above */
	SagaTime	due_at;			/* when to look again: not after "now" if there
								 * is something to do, SAGA_TIME_NEVER if only
								 * a person or an outcome can move it */
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
 * Make "state" that of a saga that was just begun: SCHEDULED when start_at is
 * in the future, else RUNNING.  "steps" is the caller's, of rules->nsteps.
 * start_at must not be SAGA_TIME_NEVER: nobody would look at that saga again.
 */
extern void saga_machine_init(const SagaRules *rules, SagaState *state,
							  SagaStepState *steps, SagaTime now,
							  SagaTime start_at, SagaTime deadline);

/* What to do next.  Changes nothing. */
extern void saga_machine_next(const SagaRules *rules, const SagaState *state,
							  SagaTime now, SagaTodo *todo);

/*
 * Apply an event.  Only SAGA_VERDICT_APPLIED has changed the state; every
 * other verdict left it as it was.
 */
extern SagaVerdict saga_machine_apply(const SagaRules *rules, SagaState *state,
									  const SagaEvent *event);

/*
 * Is every error of this operation worth another attempt?  So it is with
 * compensations, confirmations and the actions after a pivot that succeeded.
 */
extern bool saga_machine_any_passing(const SagaRules *rules,
									 const SagaState *state,
									 int step, SagaOperation operation);

/*
 * Has the state a meaning under the rules?  Returns NULL, or what is wrong
 * with it, as static text.
 */
extern const char *saga_machine_check(const SagaRules *rules,
									  const SagaState *state);

#endif							/* SAGA_MACHINE_H */
