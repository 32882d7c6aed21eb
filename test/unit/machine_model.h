/*
 * machine_model.h
 *		What the tests of the state machine share: definitions and sagas with
 *		their memory, events, and how to print them.
 */
#ifndef SAGA_MACHINE_MODEL_H
#define SAGA_MACHINE_MODEL_H

#include <stdlib.h>
#include <string.h>

#include "machine.h"
#include "tap.h"

#define MAX_STEPS		8
#define MAX_ROOM		4		/* elements of a foreach step */
#define MAX_POOL		(MAX_STEPS * MAX_ROOM)
#define MAX_TASKS		(MAX_POOL * SAGA_NOPERATION * 3)

#define NOW				INT64_C(1000000000)
#define PAUSE			INT64_C(1000)	/* every pause of the policy */
#define LEASE			INT64_C(5000)	/* of what is handed out or queued */
#define AHEAD			(NOW + 500000)	/* start_at and deadline to come */
#define OVER			(NOW - 1)

#define ACTION			SAGA_OPERATION_ACTION
#define COMPENSATION	SAGA_OPERATION_COMPENSATION
#define CONFIRMATION	SAGA_OPERATION_CONFIRMATION

#define lengthof(array) ((int) (sizeof(array) / sizeof((array)[0])))

/* A definition with the memory that its rules point to. */
typedef struct Definition
{
	SagaRules	rules;
	SagaStepRule steps[MAX_STEPS];
	int16_t		preds[MAX_STEPS][MAX_STEPS];
	uint64_t	closure[MAX_STEPS * 4];
	bool		depends[MAX_STEPS][MAX_STEPS];	/* [i][j]: j on i */
	bool		child;			/* its sagas have a parent */
	int			room[MAX_STEPS];	/* elements at most */
	int			first[MAX_STEPS];	/* where they are in a saga's pool */
	int			npool;
} Definition;

/* A state with the memory that it points to. */
typedef struct Saga
{
	SagaState	state;
	int			recoveries[MAX_STEPS];
	SagaStepState steps[MAX_STEPS];
	SagaElementState pool[MAX_POOL];
} Saga;

/*
 * Begin a definition: plain steps with compensations, each after those whose
 * bits "preds" has.  To be followed by what is special, then by seal().
 */
static inline void
define(Definition *d, int nsteps, const int *preds, int max_attempts)
{
	int			i;
	int			j;

	memset(d, 0, sizeof(*d));
	d->rules.nsteps = nsteps;
	d->rules.steps = d->steps;
	for (i = 0; i < nsteps; i++)
	{
		SagaStepRule *step = &d->steps[i];

		step->has_compensation = true;
		step->alternative = -1;
		step->preds = d->preds[i];
		d->room[i] = 1;
		for (j = 0; j < i; j++)
		{
			if ((preds[i] >> j) & 1)
				d->preds[i][step->npreds++] = (int16_t) j;
		}
		for (j = 0; j < SAGA_NOPERATION; j++)
		{
			step->retry[j].max_attempts = max_attempts;
			step->retry[j].initial_delay = PAUSE;
			step->retry[j].max_delay = PAUSE;
			step->retry[j].multiplier = 1;
		}
	}
}

static inline void
make_foreach(Definition *d, int step, int room, int parallel, int quorum)
{
	d->steps[step].foreach = true;
	d->steps[step].parallel = parallel;
	d->steps[step].quorum = quorum;
	d->room[step] = room;
}

static inline void
make_pivot(Definition *d, int step)
{
	d->steps[step].pivot = true;
	d->steps[step].has_compensation = false;
}

static inline void
make_savepoint(Definition *d, int step, int recoveries, int alternative)
{
	d->steps[step].savepoint = true;
	d->steps[step].recoveries = recoveries;
	d->steps[step].alternative = (int16_t) alternative;
}

static inline bool
is_line(const Definition *d)
{
	int			i;

	for (i = 0; i < d->rules.nsteps; i++)
	{
		if (d->steps[i].npreds != (i > 0) ||
			(i > 0 && d->preds[i][0] != i - 1))
			return false;
	}
	return true;
}

/* What follows from the rest of a definition. */
static inline void
seal(Definition *d)
{
	int			i;
	int			j;
	int			k;

	for (i = 0; i < d->rules.nsteps; i++)
	{
		d->rules.has_savepoints |= d->steps[i].savepoint;
		d->first[i] = d->npool;
		d->npool += d->room[i];
		for (j = 0; j < d->steps[i].npreds; j++)
		{
			d->depends[d->preds[i][j]][i] = true;
			for (k = 0; k < i; k++)
				d->depends[k][i] |= d->depends[k][d->preds[i][j]];
		}
	}
	if (d->npool > MAX_POOL ||
		saga_rules_closure_size(d->rules.nsteps) > sizeof(d->closure))
	{
		printf("Bail out! the tests have too little room\n");
		exit(1);
	}

	/* a line needs no closure: its sagas are tried without one */
	if (!is_line(d))
		saga_rules_close(&d->rules, d->closure);
}

/* Let a saga point to its own memory. */
static inline void
attach(const Definition *d, Saga *saga)
{
	int			i;

	saga->state.steps = saga->steps;
	saga->state.recoveries = d->rules.has_savepoints ? saga->recoveries : NULL;
	for (i = 0; i < d->rules.nsteps; i++)
		saga->steps[i].elements = &saga->pool[d->first[i]];
}

static inline void
begin(const Definition *d, Saga *saga, SagaTime start_at, SagaTime deadline)
{
	int			i;

	memset(saga, 0, sizeof(*saga));
	saga->state.nsteps = d->rules.nsteps;
	attach(d, saga);
	for (i = 0; i < d->rules.nsteps; i++)
		saga->steps[i].nelements = d->steps[i].foreach ? -1 : 1;
	saga_machine_init(&d->rules, &saga->state, NOW, start_at, deadline);
	if (d->child)
	{
		saga->state.child = true;
		saga_machine_loaded(&d->rules, &saga->state);
	}
}

static inline void
copy_saga(const Definition *d, Saga *to, const Saga *from)
{
	to->state = from->state;
	memcpy(to->recoveries, from->recoveries, sizeof(to->recoveries));
	memcpy(to->steps, from->steps,
		   (size_t) d->rules.nsteps * sizeof(SagaStepState));
	memcpy(to->pool, from->pool,
		   (size_t) d->npool * sizeof(SagaElementState));
	attach(d, to);
}

/* Byte by byte; the pointers differ. */
static inline bool
is_unchanged(const Definition *d, const Saga *before, const Saga *after)
{
	SagaState	state;
	SagaStepState steps[MAX_STEPS];
	int			i;

	memcpy(&state, &after->state, sizeof(state));
	memcpy(steps, after->steps, sizeof(steps));
	state.steps = before->state.steps;
	state.recoveries = before->state.recoveries;
	for (i = 0; i < d->rules.nsteps; i++)
		steps[i].elements = before->steps[i].elements;
	return memcmp(&state, &before->state, sizeof(state)) == 0 &&
		memcmp(steps, before->steps,
			   (size_t) d->rules.nsteps * sizeof(SagaStepState)) == 0 &&
		memcmp(after->recoveries, before->recoveries,
			   sizeof(after->recoveries)) == 0 &&
		memcmp(after->pool, before->pool,
			   (size_t) d->npool * sizeof(SagaElementState)) == 0;
}

static inline SagaOpState *
op_of(Saga *saga, int step, int element, SagaOperation operation)
{
	return &saga->steps[step].elements[element].op[operation];
}

static inline const SagaOpState *
look_at(const Saga *saga, int step, int element, SagaOperation operation)
{
	return &saga->steps[step].elements[element].op[operation];
}

static inline SagaEvent
make_event(SagaEventKind kind, int step, int element, SagaOperation operation)
{
	SagaEvent	event = {0};

	event.kind = kind;
	event.step = step;
	event.element = element;
	event.operation = operation;
	event.passing = true;
	event.now = NOW;
	event.delay = -1;
	event.due_at = SAGA_TIME_NEVER;
	return event;
}

/* Does this kind of event name an operation? */
static inline bool
names_operation(SagaEventKind kind)
{
	return kind <= SAGA_EVENT_GRANTED;
}

/* ---------------------------------------------------------------------
 * Print
 * ---------------------------------------------------------------------
 */

static inline void
print_definition(const Definition *d)
{
	int			i;
	int			j;

	tap_note("definition%s:", d->child ? " of a child" : "");
	for (i = 0; i < d->rules.nsteps; i++)
	{
		const SagaStepRule *step = &d->steps[i];
		char		after[80] = "";
		char		more[160] = "";

		for (j = 0; j < step->npreds; j++)
			snprintf(after + strlen(after), sizeof(after) - strlen(after),
					 "%s%d", j > 0 ? "," : " after ", step->preds[j]);
		if (step->foreach)
			snprintf(more, sizeof(more), ", foreach parallel %d quorum %d",
					 step->parallel, step->quorum);
		if (step->savepoint)
			snprintf(more + strlen(more), sizeof(more) - strlen(more),
					 ", savepoint recoveries %d alternative %d",
					 step->recoveries, step->alternative);
		tap_note("  step %d%s%s%s%s%s%s, %d attempts", i, after,
				 step->has_compensation ? ", compensation" : "",
				 step->has_confirmation ? ", confirmation" : "",
				 step->pivot ? ", pivot" : "",
				 step->exclusive ? ", exclusive" : "", more,
				 step->retry[ACTION].max_attempts);
	}
}

static inline void
print_op(const SagaOpState *op, int step, int element, SagaOperation operation)
{
	static const char *const gates[] = {"", " gate queued", " gate open"};

	tap_note("  step %d.%d %s %s%s%s%s%s%s, %d attempts, %d failures, "
			 "%d crashes, due %lld", step, element,
			 saga_operation_name(operation), saga_op_status_name(op->status),
			 (unsigned int) op->gate < 3 ? gates[op->gate] : " gate odd",
			 op->unknown ? " unknown" : "", op->cancelled ? " cancelled" : "",
			 op->surplus ? " surplus" : "", op->signalled ? " signalled" : "",
			 op->attempts, op->failures, op->crashes,
			 (long long) (op->due_at == SAGA_TIME_NEVER ? -1 : op->due_at));
}

static inline void
print_saga(const Definition *d, const Saga *saga)
{
	static const SagaOpState nothing;
	const SagaState *state = &saga->state;
	int			i;
	int			j;
	int			k;

	tap_note("%s%s goal %d%s%s, start %lld, deadline %lld",
			 saga_status_name(state->status),
			 state->backward ? " backward" : "", state->goal,
			 state->child ? " child" : "", state->released ? " released" : "",
			 (long long) state->start_at, (long long)
			 (state->deadline == SAGA_TIME_NEVER ? -1 : state->deadline));
	for (i = 0; i < d->rules.nsteps; i++)
	{
		tap_note("  step %d: %d elements%s, %d recoveries", i,
				 saga->steps[i].nelements, saga->steps[i].off ? ", off" : "",
				 saga->recoveries[i]);
		for (j = 0; j < saga->steps[i].nelements; j++)
		{
			for (k = 0; k < SAGA_NOPERATION; k++)
			{
				const SagaOpState *op = look_at(saga, i, j, (SagaOperation) k);

				if (k == ACTION || memcmp(op, &nothing, sizeof(nothing)) != 0)
					print_op(op, i, j, (SagaOperation) k);
			}
		}
	}
}

static inline void
print_event(const SagaEvent *event)
{
	tap_note("event %s of %d.%d %s%s, due %lld, %d elements",
			 saga_event_name(event->kind), event->step, event->element,
			 saga_operation_name(event->operation),
			 event->passing ? ", passing" : "", (long long)
			 (event->due_at == SAGA_TIME_NEVER ? -1 : event->due_at),
			 event->nelements);
}

#endif							/* SAGA_MACHINE_MODEL_H */
