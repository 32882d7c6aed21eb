/*
 * test_machine.c
 *		Proves that the state machine keeps the promises P4, P5 and P6.
 *
 * Three parts:
 *	- tables: each (state, event) pair is a row, the forbidden ones too;
 *	- scenarios: times, delays and graphs that a table of letters cannot show;
 *	- an enumeration of every history of every small definition.
 *
 * The enumeration keeps no SagaState: between two events there is only a
 * record of what the tables of the extension hold, from which the state is
 * built anew, so that each event comes after a crash.  States that have been
 * seen are not gone through again.  What may and must happen is said a second
 * time here, in functions that begin with "oracle", from the design and not
 * from machine.c.
 *
 * Time does not pass in the enumeration: a time is now, ahead, or over, and
 * "tick" events bring those ahead to now, in any order.
 */
#include <stdlib.h>
#include <string.h>

#include "machine.h"
#include "tap.h"

#define MAX_STEPS		4
#define MAX_ATTEMPTS	2

#define NOW				INT64_C(1000000000)
#define PAUSE			INT64_C(1000)	/* every pause of the policy */
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
	bool		depends[MAX_STEPS][MAX_STEPS];	/* [i][j]: j on i */
	char		name[80];
} Definition;

/* A state with the memory that it points to. */
typedef struct Saga
{
	SagaState	state;
	SagaStepState steps[MAX_STEPS];
} Saga;

/* The graphs, by the bits of the steps that each step follows. */
typedef struct Graph
{
	const char *name;
	int			nsteps;
	int			preds[MAX_STEPS];
} Graph;

static const Graph linear_graphs[] = {
	{"one step", 1, {0}},
	{"two steps", 2, {0, 1}},
	{"three steps", 3, {0, 1, 2}},
	{"four steps", 4, {0, 1, 2, 4}}
};

static const Graph other_graphs[] = {
	{"two roots", 2, {0, 0}},
	{"fork of two", 3, {0, 1, 1}},
	{"join of two", 3, {0, 0, 3}},
	{"root beside a line", 3, {0, 1, 0}},
	{"diamond", 4, {0, 1, 1, 6}}
};

static void
define(Definition *definition, const Graph *graph, int pivot,
	   int compensations)
{
	int			i;
	int			j;
	int			k;

	memset(definition, 0, sizeof(*definition));
	definition->rules.nsteps = graph->nsteps;
	definition->rules.steps = definition->steps;
	for (i = 0; i < graph->nsteps; i++)
	{
		SagaStepRule *step = &definition->steps[i];

		step->has_compensation = (compensations >> i) & 1;
		step->pivot = i == pivot;
		step->preds = definition->preds[i];
		for (j = 0; j < i; j++)
		{
			if (!((graph->preds[i] >> j) & 1))
				continue;
			definition->preds[i][step->npreds++] = (int16_t) j;
			definition->depends[j][i] = true;
			for (k = 0; k < j; k++)
				definition->depends[k][i] |= definition->depends[k][j];
		}
		for (j = 0; j < SAGA_NOPERATION; j++)
		{
			step->retry[j].max_attempts = MAX_ATTEMPTS;
			step->retry[j].initial_delay = PAUSE;
			step->retry[j].max_delay = PAUSE;
			step->retry[j].multiplier = 1;
		}
	}
	snprintf(definition->name, sizeof(definition->name),
			 "%s, pivot %d, compensations %d", graph->name, pivot,
			 compensations);
}

static void
begin(const Definition *definition, Saga *saga, SagaTime start_at,
	  SagaTime deadline)
{
	memset(saga, 0, sizeof(*saga));
	saga_machine_init(&definition->rules, &saga->state, saga->steps, NOW,
					  start_at, deadline);
}

static SagaOpState *
op_of(Saga *saga, int step, SagaOperation operation)
{
	return &saga->steps[step].op[operation];
}

static SagaEvent
make_event(SagaEventKind kind, int step, SagaOperation operation)
{
	SagaEvent	event = {0};

	event.kind = kind;
	event.step = step;
	event.operation = operation;
	event.passing = true;
	event.now = NOW;
	event.delay = -1;
	return event;
}

/* ---------------------------------------------------------------------
 * Tables
 * ---------------------------------------------------------------------
 */

static void
test_words(void)
{
	int			wrong = 0;
	int			i;

	for (i = 0; i < SAGA_NSTATUS; i++)
	{
		SagaStatus	status;

		if (!saga_status_parse(saga_status_name((SagaStatus) i), &status) ||
			(int) status != i)
			wrong++;
	}
	for (i = 0; i < SAGA_NOPERATION; i++)
	{
		SagaOperation operation;

		if (!saga_operation_parse(saga_operation_name((SagaOperation) i),
								  &operation) || (int) operation != i)
			wrong++;
	}
	for (i = 0; i < SAGA_NOP_STATUS; i++)
	{
		SagaOpStatus status;

		if (!saga_op_status_parse(saga_op_status_name((SagaOpStatus) i),
								  &status) || (int) status != i)
			wrong++;
	}
	for (i = 0; i < SAGA_NEVENT; i++)
	{
		SagaEventKind kind;

		if (!saga_event_parse(saga_event_name((SagaEventKind) i), &kind) ||
			(int) kind != i)
			wrong++;
	}
	tap_ok(wrong == 0, "every word comes back as what it stands for");
}

static void
test_odd_words(void)
{
	SagaStatus	status;
	SagaOperation operation;
	SagaOpStatus op_status;
	SagaEventKind kind;

	tap_ok(strcmp(saga_status_name(SAGA_STATUS_COMPENSATING),
				  "compensating") == 0 &&
		   strcmp(saga_operation_name(COMPENSATION), "compensation") == 0 &&
		   strcmp(saga_op_status_name(SAGA_OP_SKIPPED), "skipped") == 0 &&
		   strcmp(saga_event_name(SAGA_EVENT_LOST), "lost") == 0,
		   "words are the ones that SQL shows");
	tap_ok(!saga_status_parse("Running", &status) &&
		   !saga_operation_parse("", &operation) &&
		   !saga_op_status_parse("stuck", &op_status) &&
		   !saga_event_parse("pausee", &kind), "other words are refused");
	tap_ok(saga_status_name((SagaStatus) 99) != NULL &&
		   saga_operation_name((SagaOperation) 99) != NULL &&
		   saga_op_status_name((SagaOpStatus) 99) != NULL &&
		   saga_event_name((SagaEventKind) 99) != NULL,
		   "a name is never NULL");
}

/*
 * The rows of the table: a state, by the letters that lead to it, and what each
 * event makes of it.
 *
 * Letters that lead there: s success, f passing failure, F failure for good,
 * l later, x lost, of the operation at hand; h hands it out, u says that nobody
 * knows how it ended; c cancel, p pause, a abandon; H makes it HELD.  The
 * definition: two steps with compensations, a pivot, a step.  Two attempts.
 *
 * Letters of the results: the status after an event that was applied, in
 * capitals (Scheduled, Running, Compensating, stucK, Paused, Done, Undone,
 * Abandoned), or the verdict that refused it: final, v pivot, backward,
 * not paused, paused, k stuck, o nothing, stale.
 */
typedef struct TableRow
{
	const char *what;
	const char *path;
	const char *results;
} TableRow;

/* In the order of the letters of the results. */
static const struct
{
	SagaEventKind kind;
	bool		passing;
}			table_events[] = {
	{SAGA_EVENT_SUCCEEDED, true},
	{SAGA_EVENT_FAILED, true},
	{SAGA_EVENT_FAILED, false},
	{SAGA_EVENT_LATER, true},
	{SAGA_EVENT_LOST, true},
	{SAGA_EVENT_START, true},
	{SAGA_EVENT_DEADLINE, true},
	{SAGA_EVENT_CANCEL, true},
	{SAGA_EVENT_PAUSE, true},
	{SAGA_EVENT_RESUME, true},
	{SAGA_EVENT_RETRY, true},
	{SAGA_EVENT_SKIP, true},
	{SAGA_EVENT_ABANDON, true}
};

static const TableRow table_rows[] = {
	/* s f F l x start deadline cancel pause resume retry skip abandon */
	{"scheduled", "@", "tttttRUUPnooA"},
	{"running, fresh", "", "RRURRtUUPnooA"},
	{"running, one done", "s", "RRCRRtCCPnooA"},
	{"running, waiting", "f", "RUURRtUUPnRRA"},
	{"running, waiting after later", "l", "RRURRtUUPnRRA"},
	{"running, waiting after two crashes", "xx", "RRURKtUUPnRRA"},
	{"running, handed out", "h", "RRURRtCCPnooA"},
	{"running, outcome unknown", "u", "RCCRRtCCPnRRA"},
	{"running, at the pivot", "ss", "RRCRRtCCPnooA"},
	{"running, pivot waits", "ssf", "RCCRRtCCPnRRA"},
	{"running, pivot handed out", "ssh", "RRCRRtvvPnooA"},
	{"running, pivot unknown", "ssu", "RKKRRtvvPnRRA"},
	{"running, past the pivot", "sss", "DRKRRtvvPnooA"},
	{"running, waiting past the pivot", "sssf", "DKKRRtvvPnRDA"},
	{"compensating", "sF", "UCKCCtbbPnooA"},
	{"compensating, waiting", "sFf", "UKKCCtbbPnCUA"},
	{"compensating, waiting after two crashes", "sFxx", "UCKCKtbbPnCUA"},
	{"compensating, handed out", "sFh", "UCKCCtbbPnooA"},
	{"compensating, two to undo", "ssF", "CCKCCtbbPnooA"},
	{"compensating, first action out", "hc", "CUUUUtbbPnooA"},
	{"compensating, second action out", "shc", "CCCCCtbbPnooA"},
	{"held", "ssssH", "tttttttvonooA"},
	{"stuck after crashes", "xxx", "ttttttUUknRRA"},
	{"stuck after crashes, one done", "sxxx", "ttttttCCknRRA"},
	{"stuck after crashes past the pivot", "sssxxx", "ttttttvvknRDA"},
	{"stuck past the pivot", "sssff", "ttttttvvknRDA"},
	{"stuck at once past the pivot", "sssF", "ttttttvvknRDA"},
	{"stuck at an unknown pivot", "ssuf", "ttttttvvknRRA"},
	{"stuck in a compensation", "sFff", "ttttttbbknCUA"},
	{"stuck after crashes in a compensation", "sFxxx", "ttttttbbknCUA"},
	{"stuck in a compensation, two to undo", "ssFff", "ttttttbbknCCA"},
	{"paused, scheduled", "@p", "tttttppUpSppA"},
	{"paused, fresh", "p", "tttttppUpRppA"},
	{"paused, one done", "sp", "tttttppCpRppA"},
	{"paused, waiting", "fp", "tttttppUpRppA"},
	{"paused, handed out", "hp", "PPPPPppCpRppA"},
	{"paused, pivot handed out", "sshp", "PPPPPppvpRppA"},
	{"paused past the pivot", "sssp", "tttttppvpRppA"},
	{"paused, last action came back", "ssshps", "tttttppvpDppA"},
	{"paused, last action is stuck", "ssshpF", "tttttppvpKppA"},
	{"paused, first action failed", "hpF", "tttttppbpUppA"},
	{"paused, second action failed", "shpF", "tttttppbpCppA"},
	{"paused, compensating", "sFp", "tttttppbpCppA"},
	{"paused, compensation handed out", "sFhp", "PPPPPppbpCppA"},
	{"paused, compensation is stuck", "sFhpF", "tttttppbpKppA"},
	{"completed", "ssss", "fffffffffffff"},
	{"compensated", "sFs", "fffffffffffff"},
	{"compensated, nothing to undo", "F", "fffffffffffff"},
	{"abandoned", "sa", "fffffffffffff"},
	{"abandoned with an action out", "sha", "fffffffffffff"},
	{"abandoned, stuck", "sFffa", "fffffffffffff"}
};

/* Which operation is at hand: the one out, else the next one, else any. */
static void
find_at_hand(const Definition *definition, Saga *saga, int *step,
			 SagaOperation *operation)
{
	SagaTodo	todo;
	int			i;

	for (i = 0; i < definition->rules.nsteps * 2; i++)
	{
		*step = i / 2;
		*operation = i % 2 == 0 ? ACTION : COMPENSATION;
		if (op_of(saga, *step, *operation)->status == SAGA_OP_RUNNING)
			return;
	}
	saga_machine_next(&definition->rules, &saga->state, NOW, &todo);
	*step = todo.step >= 0 ? todo.step : 0;
	*operation = todo.step >= 0 ? todo.operation : ACTION;
}

static SagaVerdict
apply_at_hand(const Definition *definition, Saga *saga, SagaEventKind kind,
			  bool passing)
{
	SagaEvent	event = make_event(kind, -1, ACTION);

	if (kind <= SAGA_EVENT_LOST)
		find_at_hand(definition, saga, &event.step, &event.operation);
	if (kind == SAGA_EVENT_DEADLINE)
		event.now = AHEAD;
	event.passing = passing;
	return saga_machine_apply(&definition->rules, &saga->state, &event);
}

/* What the engine, not the machine, does to a state. */
static void
touch_at_hand(const Definition *definition, Saga *saga, char letter)
{
	SagaOperation operation;
	int			step;

	if (letter == 'H')
	{
		saga->state.status = SAGA_STATUS_HELD;
		return;
	}
	find_at_hand(definition, saga, &step, &operation);
	op_of(saga, step, operation)->status = SAGA_OP_RUNNING;
	if (letter == 'h')
		return;
	op_of(saga, step, operation)->unknown = true;
	apply_at_hand(definition, saga, SAGA_EVENT_FAILED, true);
}

static bool
walk(const Definition *definition, Saga *saga, const char *path)
{
	static const char letters[] = "sFlxcpa";
	static const SagaEventKind kinds[] = {
		SAGA_EVENT_SUCCEEDED, SAGA_EVENT_FAILED, SAGA_EVENT_LATER,
		SAGA_EVENT_LOST, SAGA_EVENT_CANCEL, SAGA_EVENT_PAUSE,
		SAGA_EVENT_ABANDON
	};
	bool		scheduled = *path == '@';
	SagaVerdict verdict = SAGA_VERDICT_APPLIED;

	begin(definition, saga, scheduled ? AHEAD : NOW, AHEAD);
	for (path += scheduled; *path != '\0'; path++)
	{
		if (strchr("huH", *path) != NULL)
			touch_at_hand(definition, saga, *path);
		else if (*path == 'f')
			verdict = apply_at_hand(definition, saga, SAGA_EVENT_FAILED, true);
		else
			verdict = apply_at_hand(definition, saga,
									kinds[strchr(letters, *path) - letters],
									false);
		if (verdict != SAGA_VERDICT_APPLIED ||
			saga_machine_check(&definition->rules, &saga->state) != NULL)
			return false;
	}
	return true;
}

/* The letter of a result, as the table has them. */
static char
letter_of(SagaVerdict verdict, SagaStatus status)
{
	return verdict == SAGA_VERDICT_APPLIED ? "SRCHKPDUA"[status] :
		"?fvbnpkot"[verdict];
}

static void
test_table_row(const Definition *definition, const TableRow *row)
{
	Saga		before;
	int			i;

	if (!tap_ok(walk(definition, &before, row->path), "%s: is reached",
				row->what))
		return;
	for (i = 0; i < lengthof(table_events); i++)
	{
		Saga		after = before;
		SagaVerdict verdict;
		const char *wrong;
		char		letter;

		after.state.steps = after.steps;
		verdict = apply_at_hand(definition, &after, table_events[i].kind,
								table_events[i].passing);
		letter = letter_of(verdict, after.state.status);
		wrong = saga_machine_check(&definition->rules, &after.state);
		if (!tap_ok(letter == row->results[i] && wrong == NULL, "%s: %s%s%s",
					row->what,
					table_events[i].kind == SAGA_EVENT_FAILED &&
					!table_events[i].passing ? "for good " : "",
					saga_event_name(table_events[i].kind),
					letter >= 'a' ? " is refused" : ""))
			tap_note("got %c, expected %c; %s", letter, row->results[i],
					 wrong != NULL ? wrong : "the state is sound");
	}
}

static void
test_table(void)
{
	static const Graph *graph = &linear_graphs[3];
	Definition	definition;
	int			i;

	define(&definition, graph, 2, 3);
	for (i = 0; i < lengthof(table_rows); i++)
		test_table_row(&definition, &table_rows[i]);
}

/* ---------------------------------------------------------------------
 * Scenarios
 * ---------------------------------------------------------------------
 */

/* Is this what is to do, or to be waited for, and when? */
static bool
todo_is(const Definition *definition, const Saga *saga, SagaTime now,
		const SagaTodo *expected)
{
	SagaTodo	todo;

	saga_machine_next(&definition->rules, &saga->state, now, &todo);
	return todo.deadline == expected->deadline &&
		todo.start == expected->start && todo.operate == expected->operate &&
		todo.step == expected->step && todo.wait == expected->wait &&
		todo.due_at == expected->due_at &&
		(todo.step < 0 || todo.operation == expected->operation) &&
		todo.attempt == expected->attempt;
}

static bool
attempts(const Definition *definition, const Saga *saga, SagaTime now,
		 int step, SagaOperation operation, int attempt)
{
	SagaTodo	todo;

	saga_machine_next(&definition->rules, &saga->state, now, &todo);
	return todo.operate && !todo.start && !todo.deadline &&
		todo.step == step && todo.operation == operation &&
		todo.attempt == attempt && todo.wait == SAGA_WAIT_NOTHING &&
		todo.due_at <= now;
}

static bool
waits(const Definition *definition, const Saga *saga, SagaTime now,
	  SagaWait wait, int step, SagaTime due_at)
{
	SagaTodo	expected = {0};

	expected.step = step;
	expected.wait = wait;
	expected.due_at = due_at;
	expected.operation = saga->state.backward ? COMPENSATION : ACTION;
	return todo_is(definition, saga, now, &expected);
}

static bool
has_deadline(const Definition *definition, const Saga *saga, SagaTime now)
{
	SagaTodo	todo;

	saga_machine_next(&definition->rules, &saga->state, now, &todo);
	return todo.deadline && !todo.operate && !todo.start &&
		todo.wait == SAGA_WAIT_NOTHING && todo.due_at <= now;
}

static SagaVerdict
apply(const Definition *definition, Saga *saga, SagaEventKind kind, int step,
	  SagaOperation operation)
{
	SagaEvent	event = make_event(kind, step, operation);

	return saga_machine_apply(&definition->rules, &saga->state, &event);
}

static SagaVerdict
fail_for_good(const Definition *definition, Saga *saga, int step,
			  SagaOperation operation)
{
	SagaEvent	event = make_event(SAGA_EVENT_FAILED, step, operation);

	event.passing = false;
	return saga_machine_apply(&definition->rules, &saga->state, &event);
}

static void
test_start(void)
{
	Definition	d;
	Saga		saga;
	SagaEvent	event;
	SagaTodo	start = {0};

	define(&d, &linear_graphs[1], -1, 3);
	start.start = true;
	start.step = -1;
	start.due_at = NOW + 50;
	begin(&d, &saga, NOW + 50, SAGA_TIME_NEVER);
	tap_ok(waits(&d, &saga, NOW, SAGA_WAIT_START, -1, NOW + 50),
		   "start: waits for its time");
	tap_ok(todo_is(&d, &saga, NOW + 50, &start), "start: when it has come");
	saga.state.deadline = NOW + 20;
	tap_ok(waits(&d, &saga, NOW, SAGA_WAIT_START, -1, NOW + 20),
		   "start: looks earlier when the deadline is before it");
	tap_ok(has_deadline(&d, &saga, NOW + 60),
		   "start: the deadline goes before it");
	begin(&d, &saga, NOW, SAGA_TIME_NEVER);
	tap_ok(saga.state.status == SAGA_STATUS_RUNNING &&
		   attempts(&d, &saga, NOW, 0, ACTION, 1), "start: at once");

	begin(&d, &saga, AHEAD, SAGA_TIME_NEVER);
	event = make_event(SAGA_EVENT_START, -1, ACTION);
	saga_machine_apply(&d.rules, &saga.state, &event);
	apply(&d, &saga, SAGA_EVENT_PAUSE, -1, ACTION);
	apply(&d, &saga, SAGA_EVENT_RESUME, -1, ACTION);
	tap_ok(saga.state.status == SAGA_STATUS_RUNNING,
		   "start: what began before its time is not sent back by a pause");

	begin(&d, &saga, NOW + 50, SAGA_TIME_NEVER);
	apply(&d, &saga, SAGA_EVENT_PAUSE, -1, ACTION);
	event = make_event(SAGA_EVENT_RESUME, -1, ACTION);
	event.now = NOW + 50;
	saga_machine_apply(&d.rules, &saga.state, &event);
	tap_ok(saga.state.status == SAGA_STATUS_RUNNING,
		   "start: a pause that ends after it");
}

static void
test_deadline(void)
{
	Definition	d;
	Saga		saga;

	define(&d, &linear_graphs[2], 1, 1);
	begin(&d, &saga, NOW, NOW + 500);
	apply(&d, &saga, SAGA_EVENT_FAILED, 0, ACTION);
	tap_ok(waits(&d, &saga, NOW, SAGA_WAIT_RETRY, 0, NOW + 500),
		   "deadline: before the next attempt");
	tap_ok(has_deadline(&d, &saga, NOW + 500) &&
		   has_deadline(&d, &saga, NOW + 5000), "deadline: when it has passed");
	saga.state.deadline = NOW + 5000;
	tap_ok(waits(&d, &saga, NOW, SAGA_WAIT_RETRY, 0, NOW + PAUSE),
		   "deadline: after the next attempt");
	tap_ok(apply(&d, &saga, SAGA_EVENT_DEADLINE, -1, ACTION) ==
		   SAGA_VERDICT_STALE, "deadline: not before its time");
	saga.state.deadline = NOW;
	apply(&d, &saga, SAGA_EVENT_PAUSE, -1, ACTION);
	tap_ok(waits(&d, &saga, NOW, SAGA_WAIT_PERSON_PAUSED, -1,
				 SAGA_TIME_NEVER), "deadline: does not touch a paused saga");
	apply(&d, &saga, SAGA_EVENT_RESUME, -1, ACTION);
	tap_ok(has_deadline(&d, &saga, NOW), "deadline: is back with resume");
	apply(&d, &saga, SAGA_EVENT_SUCCEEDED, 0, ACTION);
	apply(&d, &saga, SAGA_EVENT_SUCCEEDED, 1, ACTION);
	apply(&d, &saga, SAGA_EVENT_FAILED, 2, ACTION);
	tap_ok(waits(&d, &saga, NOW, SAGA_WAIT_RETRY, 2, NOW + PAUSE),
		   "deadline: of no matter past the pivot");
	apply(&d, &saga, SAGA_EVENT_FAILED, 2, ACTION);
	tap_ok(waits(&d, &saga, NOW, SAGA_WAIT_PERSON_STUCK, 2, SAGA_TIME_NEVER),
		   "deadline: of no matter when stuck past the pivot");

	begin(&d, &saga, NOW, NOW + 500);
	apply(&d, &saga, SAGA_EVENT_LOST, 0, ACTION);
	apply(&d, &saga, SAGA_EVENT_LOST, 0, ACTION);
	apply(&d, &saga, SAGA_EVENT_LOST, 0, ACTION);
	tap_ok(waits(&d, &saga, NOW, SAGA_WAIT_PERSON_STUCK, 0, NOW + 500) &&
		   has_deadline(&d, &saga, NOW + 500),
		   "deadline: reaches a saga stuck before the pivot");
	begin(&d, &saga, NOW, NOW + 500);
	apply(&d, &saga, SAGA_EVENT_SUCCEEDED, 0, ACTION);
	fail_for_good(&d, &saga, 1, ACTION);
	tap_ok(attempts(&d, &saga, NOW + 1000, 0, COMPENSATION, 1),
		   "deadline: of no matter when going back");
}

/* An event, and what the operation must be after it. */
typedef struct OutcomeRow
{
	const char *what;
	SagaEventKind kind;
	SagaTime	delay;
	double		random;
	SagaOpStatus status;
	int			failures;
	int			crashes;
	SagaTime	due_at;
} OutcomeRow;

/* The policy: 8 ms doubled, up to 100 ms, a quarter of it random. */
static const OutcomeRow outcome_rows[] = {
	{"first failure", SAGA_EVENT_FAILED, -1, 0, SAGA_OP_WAITING, 1, 0,
	NOW + 8000},
	{"second failure", SAGA_EVENT_FAILED, -1, 0, SAGA_OP_WAITING, 2, 0,
	NOW + 16000},
	{"failure with jitter", SAGA_EVENT_FAILED, -1, 0.5, SAGA_OP_WAITING, 3, 0,
	NOW + 28000},
	{"failure with a delay of its own", SAGA_EVENT_FAILED, 7, 0,
	SAGA_OP_WAITING, 4, 0, NOW + 7},
	{"failure with no delay", SAGA_EVENT_FAILED, 0, 0, SAGA_OP_WAITING, 5, 0,
	NOW},
	{"later, as the policy says", SAGA_EVENT_LATER, -1, 0, SAGA_OP_WAITING, 5,
	0, NOW + 100000},
	{"later, in a day", SAGA_EVENT_LATER, INT64_C(86400000000), 0,
	SAGA_OP_WAITING, 5, 0, NOW + INT64_C(86400000000)},
	{"later, in more years than there are", SAGA_EVENT_LATER, INT64_MAX, 0,
	SAGA_OP_WAITING, 5, 0, NOW + INT64_C(3155760000000000)},
	{"first crash", SAGA_EVENT_LOST, -1, 0, SAGA_OP_WAITING, 5, 1, NOW + 8000},
	{"second crash", SAGA_EVENT_LOST, -1, 0, SAGA_OP_WAITING, 5, 2,
	NOW + 8000},
	{"success", SAGA_EVENT_SUCCEEDED, -1, 0, SAGA_OP_SUCCEEDED, 5, 0, 0}
};

static void
test_outcomes(void)
{
	Definition	d;
	Saga		saga;
	int			i;

	define(&d, &linear_graphs[0], -1, 1);
	d.steps[0].retry[ACTION].max_attempts = 0;
	d.steps[0].retry[ACTION].initial_delay = 8000;
	d.steps[0].retry[ACTION].max_delay = 100000;
	d.steps[0].retry[ACTION].multiplier = 2;
	d.steps[0].retry[ACTION].jitter = 0.25;
	begin(&d, &saga, NOW, SAGA_TIME_NEVER);
	for (i = 0; i < lengthof(outcome_rows); i++)
	{
		const OutcomeRow *row = &outcome_rows[i];
		const SagaOpState *op = op_of(&saga, 0, ACTION);
		SagaEvent	event = make_event(row->kind, 0, ACTION);

		event.delay = row->delay;
		event.random = row->random;
		saga_machine_apply(&d.rules, &saga.state, &event);
		if (!tap_ok(op->status == row->status && op->attempts == i + 1 &&
					op->failures == row->failures &&
					op->crashes == row->crashes && op->due_at == row->due_at,
					"outcome: %s", row->what))
			tap_note("%s, %d attempts, %d failures, %d crashes, due in %lld",
					 saga_op_status_name(op->status), op->attempts,
					 op->failures, op->crashes,
					 (long long) (op->due_at - NOW));
	}
	tap_ok(saga.state.status == SAGA_STATUS_COMPLETED, "outcome: completed");
}

static void
test_limits(void)
{
	Definition	d;
	Saga		saga;
	SagaEvent	event;
	int			i;

	define(&d, &linear_graphs[0], -1, 1);
	d.steps[0].retry[ACTION].max_attempts = 0;
	begin(&d, &saga, NOW, SAGA_TIME_NEVER);
	for (i = 0; i < 100000; i++)
		apply(&d, &saga, SAGA_EVENT_FAILED, 0, ACTION);
	tap_ok(saga.state.status == SAGA_STATUS_RUNNING,
		   "limits: no limit of attempts is none");
	event = make_event(SAGA_EVENT_LATER, 0, ACTION);
	event.now = INT64_MAX - 5;
	event.delay = 100;
	saga_machine_apply(&d.rules, &saga.state, &event);
	tap_ok(op_of(&saga, 0, ACTION)->due_at == SAGA_TIME_NEVER - 1 &&
		   saga_machine_check(&d.rules, &saga.state) == NULL,
		   "limits: the end of time is not never");
	d.steps[0].retry[ACTION].initial_delay = INT64_C(3600000000);
	d.steps[0].retry[ACTION].max_delay = INT64_C(3600000000);
	apply(&d, &saga, SAGA_EVENT_LOST, 0, ACTION);
	tap_ok(op_of(&saga, 0, ACTION)->due_at == NOW + 1000000,
		   "limits: a crash does not wait for a long policy");
	op_of(&saga, 0, ACTION)->attempts = INT32_MAX;
	op_of(&saga, 0, ACTION)->failures = INT32_MAX;
	apply(&d, &saga, SAGA_EVENT_FAILED, 0, ACTION);
	tap_ok(op_of(&saga, 0, ACTION)->attempts == INT32_MAX &&
		   op_of(&saga, 0, ACTION)->failures == INT32_MAX &&
		   attempts(&d, &saga, AHEAD * 100, 0, ACTION, INT32_MAX),
		   "limits: counters do not overflow");
	d.steps[0].retry[ACTION].max_attempts = 1;
	begin(&d, &saga, NOW, SAGA_TIME_NEVER);
	apply(&d, &saga, SAGA_EVENT_FAILED, 0, ACTION);
	tap_ok(saga.state.status == SAGA_STATUS_COMPENSATED,
		   "limits: one attempt is one");
}

static void
test_any_passing(void)
{
	Definition	d;
	Saga		saga;

	define(&d, &linear_graphs[3], 2, 3);
	walk(&d, &saga, "ss");
	tap_ok(!saga_machine_any_passing(&d.rules, &saga.state, 2, ACTION),
		   "any passing: not the pivot's own action");
	tap_ok(saga_machine_any_passing(&d.rules, &saga.state, 0, COMPENSATION) &&
		   saga_machine_any_passing(&d.rules, &saga.state, 0, CONFIRMATION),
		   "any passing: compensations and confirmations");
	walk(&d, &saga, "ssh");
	tap_ok(!saga_machine_any_passing(&d.rules, &saga.state, 2, ACTION) &&
		   saga_machine_any_passing(&d.rules, &saga.state, 3, ACTION),
		   "any passing: others while the pivot is out");
	walk(&d, &saga, "ssu");
	tap_ok(saga_machine_any_passing(&d.rules, &saga.state, 2, ACTION),
		   "any passing: a pivot of which nobody knows");
	walk(&d, &saga, "sss");
	tap_ok(saga_machine_any_passing(&d.rules, &saga.state, 3, ACTION),
		   "any passing: past the pivot");
}

static void
test_branches(void)
{
	Definition	d;
	Saga		saga;

	/* fork of two: steps 1 and 2 after 0 */
	define(&d, &other_graphs[1], -1, 7);
	begin(&d, &saga, NOW, SAGA_TIME_NEVER);
	apply(&d, &saga, SAGA_EVENT_SUCCEEDED, 0, ACTION);
	apply(&d, &saga, SAGA_EVENT_FAILED, 1, ACTION);
	tap_ok(attempts(&d, &saga, NOW, 2, ACTION, 1),
		   "branches: one goes on while the other waits");
	op_of(&saga, 2, ACTION)->status = SAGA_OP_RUNNING;
	tap_ok(waits(&d, &saga, NOW, SAGA_WAIT_RETRY, 1, NOW + PAUSE),
		   "branches: a time goes before an outcome");
	tap_ok(attempts(&d, &saga, NOW + PAUSE, 1, ACTION, 2),
		   "branches: the waiting one when it is due");
	fail_for_good(&d, &saga, 1, ACTION);
	tap_ok(waits(&d, &saga, NOW, SAGA_WAIT_OUTCOME, 2, SAGA_TIME_NEVER) ==
		   false && saga.state.status == SAGA_STATUS_COMPENSATING &&
		   saga.state.backward, "branches: a failure turns the saga back");
	tap_ok(apply(&d, &saga, SAGA_EVENT_SUCCEEDED, 0, COMPENSATION) ==
		   SAGA_VERDICT_STALE, "branches: no undoing before the one out is in");
	apply(&d, &saga, SAGA_EVENT_SUCCEEDED, 2, ACTION);
	tap_ok(attempts(&d, &saga, NOW, 2, COMPENSATION, 1),
		   "branches: what came back is undone first");
	apply(&d, &saga, SAGA_EVENT_SUCCEEDED, 2, COMPENSATION);
	tap_ok(attempts(&d, &saga, NOW, 0, COMPENSATION, 1),
		   "branches: then what it depended on");
}

/*
 * A pivot that is out may have its effect: until its outcome is known, a
 * failure beside it must not turn the saga back.
 */
static void
test_pivot_beside_failure(void)
{
	Definition	d;
	Saga		saga;

	/* two roots, the second is the pivot */
	define(&d, &other_graphs[0], 1, 1);
	begin(&d, &saga, NOW, SAGA_TIME_NEVER);
	op_of(&saga, 1, ACTION)->status = SAGA_OP_RUNNING;
	fail_for_good(&d, &saga, 0, ACTION);
	tap_ok(saga.state.status == SAGA_STATUS_STUCK && !saga.state.backward,
		   "pivot out: a failure beside it does not turn back");
	apply(&d, &saga, SAGA_EVENT_FAILED, 1, ACTION);
	tap_ok(saga.state.status == SAGA_STATUS_COMPENSATED &&
		   op_of(&saga, 1, ACTION)->status == SAGA_OP_FAILED,
		   "pivot out: it does when the pivot failed");

	begin(&d, &saga, NOW, SAGA_TIME_NEVER);
	op_of(&saga, 1, ACTION)->status = SAGA_OP_RUNNING;
	fail_for_good(&d, &saga, 0, ACTION);
	apply(&d, &saga, SAGA_EVENT_SUCCEEDED, 1, ACTION);
	tap_ok(saga.state.status == SAGA_STATUS_STUCK && !saga.state.backward,
		   "pivot out: a person decides when the pivot succeeded");
	apply(&d, &saga, SAGA_EVENT_RETRY, 0, ACTION);
	apply(&d, &saga, SAGA_EVENT_SUCCEEDED, 0, ACTION);
	tap_ok(saga.state.status == SAGA_STATUS_COMPLETED,
		   "pivot out: and the saga completes");
}

static void
test_people(void)
{
	Definition	d;
	Saga		saga;
	SagaEvent	event;

	define(&d, &linear_graphs[3], 2, 3);
	walk(&d, &saga, "sFff");
	event = make_event(SAGA_EVENT_RETRY, -1, ACTION);
	event.now = NOW + 77;
	saga_machine_apply(&d.rules, &saga.state, &event);
	tap_ok(op_of(&saga, 0, COMPENSATION)->failures == 0 &&
		   op_of(&saga, 0, COMPENSATION)->due_at == NOW + 77 &&
		   attempts(&d, &saga, NOW + 77, 0, COMPENSATION, 3),
		   "retry: a stuck compensation begins anew");
	walk(&d, &saga, "xxx");
	apply(&d, &saga, SAGA_EVENT_RETRY, 0, ACTION);
	tap_ok(op_of(&saga, 0, ACTION)->crashes == 0 &&
		   attempts(&d, &saga, NOW, 0, ACTION, 4),
		   "retry: crashes are forgiven");
	walk(&d, &saga, "f");
	tap_ok(apply(&d, &saga, SAGA_EVENT_RETRY, 1, ACTION) ==
		   SAGA_VERDICT_NOTHING &&
		   apply(&d, &saga, SAGA_EVENT_SKIP, 1, ACTION) ==
		   SAGA_VERDICT_NOTHING &&
		   apply(&d, &saga, SAGA_EVENT_RETRY, 4, ACTION) ==
		   SAGA_VERDICT_NOTHING &&
		   apply(&d, &saga, SAGA_EVENT_SKIP, -2, ACTION) ==
		   SAGA_VERDICT_NOTHING, "retry, skip: not another step's operation");
	apply(&d, &saga, SAGA_EVENT_RETRY, 0, ACTION);
	tap_ok(op_of(&saga, 0, ACTION)->failures == 0 &&
		   attempts(&d, &saga, NOW, 0, ACTION, 2), "retry: now, not later");
	walk(&d, &saga, "f");
	apply(&d, &saga, SAGA_EVENT_SKIP, -1, ACTION);
	fail_for_good(&d, &saga, 1, ACTION);
	tap_ok(saga.state.status == SAGA_STATUS_COMPENSATED &&
		   op_of(&saga, 0, COMPENSATION)->status == SAGA_OP_PENDING,
		   "skip: a skipped action has nothing to undo");
	walk(&d, &saga, "ssf");
	apply(&d, &saga, SAGA_EVENT_SKIP, -1, ACTION);
	fail_for_good(&d, &saga, 3, ACTION);
	tap_ok(saga.state.status == SAGA_STATUS_STUCK && !saga.state.backward,
		   "skip: a skipped pivot is passed");
	walk(&d, &saga, "hpF");
	tap_ok(saga.state.status == SAGA_STATUS_PAUSED && saga.state.backward,
		   "pause: what came back meanwhile is kept");
}

/* States that mean nothing, each with the invariant that says so. */
static void
test_check(void)
{
	Definition	d;
	Saga		saga;
	int16_t		later = 3;

#define BROKEN(path, what, invariant) \
	do { \
		const char *wrong_; \
		walk(&d, &saga, path); \
		what; \
		wrong_ = saga_machine_check(&d.rules, &saga.state); \
		if (!tap_ok(wrong_ != NULL && \
					strncmp(wrong_, invariant ":", \
							strlen(invariant ":")) == 0, \
					"check: %s after \"%s\"", #what, path)) \
			tap_note("says: %s", wrong_ != NULL ? wrong_ : "nothing"); \
	} while (0)

	define(&d, &linear_graphs[3], 2, 3);
	BROKEN("", saga.state.nsteps = 3, "I1");
	BROKEN("", saga.state.status = (SagaStatus) 9, "I1");
	BROKEN("", op_of(&saga, 0, ACTION)->status = (SagaOpStatus) 6, "I1");
	BROKEN("", op_of(&saga, 0, ACTION)->failures = 1, "I1");
	BROKEN("", op_of(&saga, 0, ACTION)->crashes = -1, "I1");
	BROKEN("", op_of(&saga, 0, ACTION)->attempts = 1, "I1");
	BROKEN("s", op_of(&saga, 0, ACTION)->attempts = 0, "I1");
	BROKEN("f", op_of(&saga, 0, ACTION)->due_at = SAGA_TIME_NEVER, "I2");
	BROKEN("@", saga.state.start_at = SAGA_TIME_NEVER, "I2");
	BROKEN("s", op_of(&saga, 0, ACTION)->unknown = true, "I3");
	BROKEN("xx", (op_of(&saga, 0, ACTION)->crashes = 3,
				  op_of(&saga, 0, ACTION)->attempts = 3), "I4");
	BROKEN("s", (op_of(&saga, 2, ACTION)->status = SAGA_OP_RUNNING), "I5");
	BROKEN("", op_of(&saga, 0, COMPENSATION)->status = SAGA_OP_RUNNING, "I6");
	BROKEN("sf", op_of(&saga, 1, ACTION)->status = SAGA_OP_FAILED, "I6");
	BROKEN("sf", saga.state.backward = true, "I7");
	BROKEN("sss", saga.state.backward = true, "I7");
	BROKEN("ssF", op_of(&saga, 0, COMPENSATION)->status = SAGA_OP_RUNNING,
		   "I8");
	BROKEN("sF", op_of(&saga, 1, COMPENSATION)->status = SAGA_OP_RUNNING,
		   "I8");
	BROKEN("sF", saga.state.status = SAGA_STATUS_RUNNING, "I9");
	BROKEN("s", saga.state.status = SAGA_STATUS_COMPENSATING, "I9");
	BROKEN("s", saga.state.status = SAGA_STATUS_SCHEDULED, "I10");
	BROKEN("s", saga.state.status = SAGA_STATUS_COMPLETED, "I10");
	BROKEN("s", saga.state.status = SAGA_STATUS_HELD, "I10");
	BROKEN("sF", saga.state.status = SAGA_STATUS_COMPENSATED, "I10");
	BROKEN("s", saga.state.status = SAGA_STATUS_STUCK, "I11");
	BROKEN("xxx", saga.state.status = SAGA_STATUS_RUNNING, "I11");
	BROKEN("", op_of(&saga, 0, CONFIRMATION)->status = SAGA_OP_RUNNING, "I12");
	BROKEN("", d.steps[1].preds = &later, "I1");
	BROKEN("", d.rules.nsteps = 0, "I1");
#undef BROKEN
}

/* ---------------------------------------------------------------------
 * The oracle: the rules, read a second time
 * ---------------------------------------------------------------------
 */

static bool
oracle_final(const Saga *saga)
{
	return saga->state.status >= SAGA_STATUS_COMPLETED;
}

static bool
oracle_ended_well(const SagaOpState *op)
{
	return op->status == SAGA_OP_SUCCEEDED || op->status == SAGA_OP_SKIPPED;
}

/* Past the point of no return, or perhaps. */
static bool
oracle_no_return(const Definition *d, const Saga *saga)
{
	int			i;

	for (i = 0; i < d->rules.nsteps; i++)
	{
		const SagaOpState *op = &saga->steps[i].op[ACTION];

		if (d->steps[i].pivot &&
			(oracle_ended_well(op) || op->status == SAGA_OP_RUNNING ||
			 op->unknown))
			return true;
	}
	return false;
}

static bool
oracle_needs_undoing(const Definition *d, const Saga *saga, int step)
{
	const SagaOpState *action = &saga->steps[step].op[ACTION];

	return d->steps[step].has_compensation &&
		(action->status == SAGA_OP_SUCCEEDED || action->unknown) &&
		!oracle_ended_well(&saga->steps[step].op[COMPENSATION]);
}

/* P5: may this compensation act in this state? */
static bool
oracle_may_compensate(const Definition *d, const Saga *saga, int step)
{
	int			i;

	if (!saga->state.backward || oracle_no_return(d, saga) ||
		!oracle_needs_undoing(d, saga, step) ||
		saga->steps[step].op[ACTION].status == SAGA_OP_RUNNING)
		return false;
	for (i = 0; i < d->rules.nsteps; i++)
	{
		if (d->depends[step][i] &&
			(oracle_needs_undoing(d, saga, i) ||
			 saga->steps[i].op[ACTION].status == SAGA_OP_RUNNING))
			return false;
	}
	return true;
}

static bool
oracle_may_act(const Definition *d, const Saga *saga, int step)
{
	int			i;

	for (i = 0; i < d->rules.nsteps; i++)
	{
		if (d->depends[i][step] &&
			!oracle_ended_well(&saga->steps[i].op[ACTION]))
			return false;
	}
	return !saga->state.backward;
}

static bool
oracle_expects(const Definition *d, const Saga *saga, const SagaEvent *event)
{
	const SagaOpState *op;

	if (event->step < 0 || event->step >= d->rules.nsteps ||
		event->operation == CONFIRMATION)
		return false;
	op = &saga->steps[event->step].op[event->operation];
	if (op->status == SAGA_OP_RUNNING)
		return true;
	if (op->status != SAGA_OP_PENDING && op->status != SAGA_OP_WAITING)
		return false;
	if (event->operation == ACTION)
		return saga->state.status == SAGA_STATUS_RUNNING &&
			oracle_may_act(d, saga, event->step);
	return saga->state.status == SAGA_STATUS_COMPENSATING &&
		oracle_may_compensate(d, saga, event->step);
}

/* Is there an operation that retry or skip can be about? */
static bool
oracle_has_target(const Definition *d, const Saga *saga, int step)
{
	int			i;

	for (i = 0; i < d->rules.nsteps; i++)
	{
		const SagaOpState *op =
			&saga->steps[i].op[saga->state.backward ? COMPENSATION : ACTION];

		if ((step == -1 || step == i) &&
			(op->status == SAGA_OP_WAITING || op->status == SAGA_OP_FAILED))
			return true;
	}
	return false;
}

static SagaVerdict
oracle_cancel(const Definition *d, const Saga *saga)
{
	if (saga->state.backward)
		return SAGA_VERDICT_BACKWARD;
	return oracle_no_return(d, saga) ? SAGA_VERDICT_PIVOT :
		SAGA_VERDICT_APPLIED;
}

static SagaVerdict
oracle_verdict(const Definition *d, const Saga *saga, const SagaEvent *event)
{
	SagaStatus	status = saga->state.status;

	if (oracle_final(saga))
		return SAGA_VERDICT_FINAL;
	if (event->kind <= SAGA_EVENT_LOST)
		return oracle_expects(d, saga, event) ? SAGA_VERDICT_APPLIED :
			SAGA_VERDICT_STALE;
	if (event->kind == SAGA_EVENT_ABANDON)
		return SAGA_VERDICT_APPLIED;
	if (event->kind == SAGA_EVENT_CANCEL)
		return oracle_cancel(d, saga);
	if (event->kind == SAGA_EVENT_RESUME)
		return status == SAGA_STATUS_PAUSED ? SAGA_VERDICT_APPLIED :
			SAGA_VERDICT_NOT_PAUSED;
	if (status == SAGA_STATUS_PAUSED)
		return SAGA_VERDICT_PAUSED;
	if (event->kind == SAGA_EVENT_PAUSE)
		return status == SAGA_STATUS_STUCK ? SAGA_VERDICT_STUCK :
			SAGA_VERDICT_APPLIED;
	if (event->kind == SAGA_EVENT_START)
		return status == SAGA_STATUS_SCHEDULED ? SAGA_VERDICT_APPLIED :
			SAGA_VERDICT_STALE;
	if (event->kind == SAGA_EVENT_DEADLINE)
		return saga->state.deadline <= event->now ? oracle_cancel(d, saga) :
			SAGA_VERDICT_STALE;
	return oracle_has_target(d, saga, event->step) ? SAGA_VERDICT_APPLIED :
		SAGA_VERDICT_NOTHING;
}

/*
 * Has an action failed in a way that sends the saga back?  Not by crashes
 * alone: those are no verdict about the business.
 */
static bool
oracle_turns_back(const Definition *d, const Saga *saga)
{
	int			i;

	if (oracle_no_return(d, saga))
		return false;
	for (i = 0; i < d->rules.nsteps; i++)
	{
		if (saga->steps[i].op[ACTION].status == SAGA_OP_FAILED &&
			saga->steps[i].op[ACTION].crashes < SAGA_MAX_CRASHES)
			return true;
	}
	return false;
}

static bool
oracle_has_begun(const Definition *d, const Saga *saga)
{
	int			i;

	for (i = 0; i < d->rules.nsteps; i++)
	{
		if (saga->steps[i].op[ACTION].status != SAGA_OP_PENDING)
			return true;
	}
	return false;
}

/* What the status must be, from the operations alone. */
static SagaStatus
oracle_status(const Definition *d, const Saga *saga)
{
	bool		done = true;
	bool		undone = true;
	bool		stuck = false;
	int			i;

	for (i = 0; i < d->rules.nsteps; i++)
	{
		const SagaOpState *action = &saga->steps[i].op[ACTION];

		done &= oracle_ended_well(action);
		undone &= !oracle_needs_undoing(d, saga, i) &&
			action->status != SAGA_OP_RUNNING;
		stuck |= saga->steps[i].op[COMPENSATION].status == SAGA_OP_FAILED;
		stuck |= !saga->state.backward && action->status == SAGA_OP_FAILED;
	}
	if (stuck)
		return SAGA_STATUS_STUCK;
	if (saga->state.backward)
		return undone ? SAGA_STATUS_COMPENSATED : SAGA_STATUS_COMPENSATING;
	return done ? SAGA_STATUS_COMPLETED : SAGA_STATUS_RUNNING;
}

/* ---------------------------------------------------------------------
 * The records: what is left of a state after a crash
 * ---------------------------------------------------------------------
 */

typedef struct OpRecord
{
	unsigned	status:3;
	unsigned	unknown:1;
	unsigned	attempts:4;
	unsigned	failures:3;
	unsigned	crashes:3;
	unsigned	due:1;			/* WAITING, and its time has come */
} OpRecord;

typedef struct Record
{
	uint8_t		status;
	uint8_t		backward;
	uint8_t		start;			/* 0 has come, 1 ahead */
	uint8_t		deadline;		/* 0 over, 1 ahead, 2 none */
	OpRecord	op[MAX_STEPS][2];
} Record;

static OpRecord
save_op(const SagaOpState *op, bool in_the_past)
{
	OpRecord	record = {0};
	int			attempts_at_least = op->failures + op->crashes;

	record.status = (unsigned) op->status & 7;
	record.unknown = op->unknown;
	record.failures = (unsigned) op->failures & 7;
	record.crashes = (unsigned) op->crashes & 7;
	if (op->attempts > 0)
		record.attempts = attempts_at_least > 0 ?
			(unsigned) attempts_at_least & 15 : 1;
	record.due = op->status == SAGA_OP_WAITING && op->due_at <= NOW;

	/* counters that nothing can depend on any more; only for speed */
	if (in_the_past)
	{
		record.failures = 0;
		record.crashes = 0;
		record.attempts = record.attempts > 0;
	}
	return record;
}

/*
 * The number of attempts is told apart no further than the other counters
 * require: LATER would make it grow without end.  "exact" says whether
 * the other counters of what has ended are kept, and the times of a saga that
 * goes back.
 */
static void
save(const Definition *d, const Saga *saga, bool exact, Record *record)
{
	const SagaState *state = &saga->state;
	int			i;

	memset(record, 0, sizeof(*record));
	record->status = (uint8_t) state->status;
	record->backward = state->backward;
	record->start = state->start_at > NOW;
	record->deadline = state->deadline <= NOW ? 0 :
		state->deadline == SAGA_TIME_NEVER ? 2 : 1;
	if (state->backward && !exact)
	{
		record->start = 0;
		record->deadline = 2;
	}
	for (i = 0; i < d->rules.nsteps; i++)
	{
		const SagaOpState *action = &saga->steps[i].op[ACTION];
		const SagaOpState *compensation = &saga->steps[i].op[COMPENSATION];

		record->op[i][0] = save_op(action, !exact &&
								   (oracle_ended_well(action) ||
									(state->backward &&
									 action->status == SAGA_OP_FAILED)));
		record->op[i][1] = save_op(compensation, !exact &&
								   oracle_ended_well(compensation));
	}
}

static void
load_op(const OpRecord *record, SagaOpState *op)
{
	op->status = (SagaOpStatus) record->status;
	op->unknown = record->unknown;
	op->attempts = (int) record->attempts;
	op->failures = (int) record->failures;
	op->crashes = (int) record->crashes;

	/* of what does not wait the time is not kept: it may be anything */
	op->due_at = op->status != SAGA_OP_WAITING ? SAGA_TIME_NEVER :
		record->due ? NOW : NOW + PAUSE;
}

static void
load(const Definition *d, const Record *record, Saga *saga)
{
	int			i;

	memset(saga, 0, sizeof(*saga));
	saga->state.status = (SagaStatus) record->status;
	saga->state.backward = record->backward;
	saga->state.start_at = record->start ? AHEAD : NOW;
	saga->state.deadline = record->deadline == 0 ? OVER :
		record->deadline == 1 ? AHEAD : SAGA_TIME_NEVER;
	saga->state.nsteps = d->rules.nsteps;
	saga->state.steps = saga->steps;
	for (i = 0; i < d->rules.nsteps; i++)
	{
		load_op(&record->op[i][0], &saga->steps[i].op[ACTION]);
		load_op(&record->op[i][1], &saga->steps[i].op[COMPENSATION]);
	}
}

static void
copy_saga(Saga *to, const Saga *from)
{
	*to = *from;
	to->state.steps = to->steps;
}

/* "from" with what changed nothing, compared byte by byte. */
static bool
is_unchanged(const Saga *before, const Saga *after)
{
	SagaState	state = after->state;

	state.steps = before->state.steps;
	return memcmp(&state, &before->state, sizeof(state)) == 0 &&
		memcmp(after->steps, before->steps, sizeof(after->steps)) == 0;
}

/* ---------------------------------------------------------------------
 * The enumeration
 * ---------------------------------------------------------------------
 */

/* How a history goes from one state to the next. */
typedef enum EdgeKind
{
	EDGE_SYSTEM,				/* outcomes and the clock */
	EDGE_LATER,					/* likewise, but for ever if the step wants */
	EDGE_PERSON
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
	bool		exact;
	bool		remote;			/* operations are handed out, too */
	Record	   *records;
	int			nrecords;
	int			records_size;
	int		   *table;			/* hash table of positions in records, or -1 */
	int			table_size;		/* a power of two */
	Edge	   *edges;
	int			nedges;
	int			edges_size;
	int			current;		/* the record whose events are tried */
	const char *wrong;			/* the first thing that was */
} Exploration;

/* Sums over all explorations. */
static long total_states = 0;
static long total_events = 0;
static double total_histories = 0;

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
hash_record(const Record *record)
{
	const unsigned char *bytes = (const unsigned char *) record;
	uint64_t	hash = UINT64_C(14695981039346656037);
	size_t		i;

	for (i = 0; i < sizeof(*record); i++)
		hash = (hash ^ bytes[i]) * UINT64_C(1099511628211);
	return hash ^ (hash >> 29);
}

/* The place in the hash table where the record is, or would be. */
static int
find_place(const Exploration *x, const Record *record)
{
	int			mask = x->table_size - 1;
	int			place = (int) (hash_record(record) & (uint64_t) mask);

	while (x->table[place] >= 0 &&
		   memcmp(&x->records[x->table[place]], record, sizeof(*record)) != 0)
		place = (place + 1) & mask;
	return place;
}

static void
grow_table(Exploration *x)
{
	int			i;

	x->table_size = x->table_size > 0 ? 2 * x->table_size : 1 << 12;
	x->table = must_realloc(x->table,
							(size_t) x->table_size * sizeof(int));
	for (i = 0; i < x->table_size; i++)
		x->table[i] = -1;
	for (i = 0; i < x->nrecords; i++)
		x->table[find_place(x, &x->records[i])] = i;
}

/* The position of a record, which is kept if it is new. */
static int
intern(Exploration *x, const Record *record)
{
	int			place;

	if (2 * x->nrecords >= x->table_size)
		grow_table(x);
	place = find_place(x, record);
	if (x->table[place] >= 0)
		return x->table[place];
	if (x->nrecords == x->records_size)
	{
		x->records_size = x->records_size > 0 ? 2 * x->records_size : 1024;
		x->records = must_realloc(x->records, (size_t) x->records_size *
								  sizeof(Record));
	}
	x->records[x->nrecords] = *record;
	x->table[place] = x->nrecords;
	return x->nrecords++;
}

static void
add_edge(Exploration *x, int to, EdgeKind kind)
{
	if (x->nedges == x->edges_size)
	{
		x->edges_size = x->edges_size > 0 ? 2 * x->edges_size : 4096;
		x->edges = must_realloc(x->edges, (size_t) x->edges_size *
								sizeof(Edge));
	}
	x->edges[x->nedges].from = x->current;
	x->edges[x->nedges].to = to;
	x->edges[x->nedges].kind = kind;
	x->nedges++;
}

static void
print_saga(const Definition *d, const Saga *saga)
{
	int			i;
	int			j;

	tap_note("%s%s, start %lld, deadline %lld",
			 saga_status_name(saga->state.status),
			 saga->state.backward ? " backward" : "",
			 (long long) saga->state.start_at,
			 (long long) saga->state.deadline);
	for (i = 0; i < d->rules.nsteps; i++)
	{
		for (j = 0; j < 2; j++)
		{
			const SagaOpState *op = &saga->steps[i].op[j];

			tap_note("  step %d %s %s%s, %d attempts, %d failures, "
					 "%d crashes, due %lld", i,
					 saga_operation_name((SagaOperation) j),
					 saga_op_status_name(op->status),
					 op->unknown ? " unknown" : "", op->attempts,
					 op->failures, op->crashes, (long long) op->due_at);
		}
	}
}

static void
complain(Exploration *x, const char *wrong, const Saga *before,
		 const SagaEvent *event, const Saga *after)
{
	if (x->wrong != NULL)
		return;
	x->wrong = wrong;
	tap_note("%s: %s", x->d->name, wrong);
	print_saga(x->d, before);
	if (event != NULL)
		tap_note("event %s of step %d %s%s", saga_event_name(event->kind),
				 event->step, saga_operation_name(event->operation),
				 event->passing ? ", passing" : "");
	if (after != NULL)
		print_saga(x->d, after);
}

/* P5 and what ended stays ended, between two states. */
static const char *
judge_op(const Definition *d, const Saga *before, const Saga *after, int step,
		 SagaOperation operation)
{
	const SagaOpState *old = &before->steps[step].op[operation];
	const SagaOpState *new = &after->steps[step].op[operation];

	if (oracle_ended_well(old) && old->status != new->status)
		return "an operation that has ended goes on";
	if (new->attempts < old->attempts)
		return "attempts are forgotten";
	if (operation == COMPENSATION && old->status == SAGA_OP_PENDING &&
		new->status != SAGA_OP_PENDING &&
		!oracle_may_compensate(d, before, step))
		return "P5: a compensation acts that must not";
	if (operation == ACTION && old->status == SAGA_OP_PENDING &&
		new->status != SAGA_OP_PENDING && !oracle_may_act(d, before, step))
		return "an action acts that must not";
	return NULL;
}

/* Did the outcome make of its operation what it must? */
static const char *
judge_outcome(const Saga *before, const Saga *after, const SagaEvent *event)
{
	const SagaOpState *old = &before->steps[event->step].op[event->operation];
	const SagaOpState *new = &after->steps[event->step].op[event->operation];
	bool		again = event->operation == COMPENSATION ||
		!after->state.backward;
	int			failures = old->failures + (event->kind == SAGA_EVENT_FAILED);
	int			crashes = event->kind == SAGA_EVENT_SUCCEEDED ? 0 :
		old->crashes + (event->kind == SAGA_EVENT_LOST);
	SagaOpStatus status = again ? SAGA_OP_WAITING : SAGA_OP_FAILED;

	if (event->kind == SAGA_EVENT_SUCCEEDED)
		status = SAGA_OP_SUCCEEDED;
	else if (event->kind == SAGA_EVENT_FAILED &&
			 (!event->passing || failures >= MAX_ATTEMPTS))
		status = SAGA_OP_FAILED;
	else if (event->kind == SAGA_EVENT_LOST && crashes >= SAGA_MAX_CRASHES)
		status = SAGA_OP_FAILED;
	if (new->attempts != old->attempts + 1 || new->failures != failures ||
		new->crashes != crashes)
		return "an outcome is counted wrongly";
	if (new->status != status)
		return "an outcome makes the wrong thing of its operation";
	if (status == SAGA_OP_WAITING && new->due_at != NOW + PAUSE)
		return "the next attempt has a wrong time";
	if (new->unknown != (old->unknown && status != SAGA_OP_SUCCEEDED))
		return "what is unknown is wrong";
	return NULL;
}

/* What a person's retry or skip made of the operations. */
static const char *
judge_person(const Definition *d, const Saga *before, const Saga *after,
			 const SagaEvent *event)
{
	SagaOperation operation = before->state.backward ? COMPENSATION : ACTION;
	int			changed = 0;
	int			i;

	for (i = 0; i < d->rules.nsteps; i++)
	{
		const SagaOpState *old = &before->steps[i].op[operation];
		const SagaOpState *new = &after->steps[i].op[operation];
		bool		target = (event->step == -1 || event->step == i) &&
			(old->status == SAGA_OP_WAITING || old->status == SAGA_OP_FAILED);

		if (memcmp(old, new, sizeof(*old)) != 0)
			changed++;
		if (event->kind == SAGA_EVENT_RETRY && target &&
			(new->status != SAGA_OP_WAITING || new->failures != 0 ||
			 new->crashes != 0 || new->due_at != NOW))
			return "retry has not made an operation due now";
		if (!target && new->status != old->status)
			return "an operation was changed that the person did not name";
	}
	if (event->kind == SAGA_EVENT_SKIP && changed != 1)
		return "skip has not skipped just one operation";
	return NULL;
}

/* The status after an event that was applied. */
static const char *
judge_status(const Definition *d, const Saga *before, const Saga *after,
			 const SagaEvent *event)
{
	SagaStatus	status = after->state.status;

	if (event->kind == SAGA_EVENT_ABANDON)
		return status == SAGA_STATUS_ABANDONED ? NULL : "not abandoned";
	if (event->kind == SAGA_EVENT_PAUSE)
		return status == SAGA_STATUS_PAUSED ? NULL : "not paused";
	if (event->kind == SAGA_EVENT_RESUME && before->state.start_at > NOW &&
		!oracle_has_begun(d, before))
		return status == SAGA_STATUS_SCHEDULED ? NULL :
			"a pause has brought a start forward";
	if (event->kind == SAGA_EVENT_START && after->state.start_at > NOW)
		return "it has started and is to start";
	if (event->kind <= SAGA_EVENT_LOST &&
		before->state.status == SAGA_STATUS_PAUSED)
		return status == SAGA_STATUS_PAUSED ? NULL : "a pause was lost";
	return status == oracle_status(d, after) ? NULL :
		"the status is not what the operations say";
}

static const char *
judge_applied(const Definition *d, const Saga *before, const Saga *after,
			  const SagaEvent *event)
{
	const char *wrong = saga_machine_check(&d->rules, &after->state);
	bool		turns = event->kind == SAGA_EVENT_CANCEL ||
		event->kind == SAGA_EVENT_DEADLINE;
	int			i;

	for (i = 0; i < d->rules.nsteps && wrong == NULL; i++)
	{
		wrong = judge_op(d, before, after, i, ACTION);
		if (wrong == NULL)
			wrong = judge_op(d, before, after, i, COMPENSATION);
	}
	if (wrong == NULL && event->kind <= SAGA_EVENT_LOST)
		wrong = judge_outcome(before, after, event);
	if (wrong == NULL && (event->kind == SAGA_EVENT_RETRY ||
						  event->kind == SAGA_EVENT_SKIP))
		wrong = judge_person(d, before, after, event);
	if (wrong == NULL)
		wrong = judge_status(d, before, after, event);
	if (wrong == NULL && event->kind != SAGA_EVENT_ABANDON &&
		after->state.backward != (before->state.backward || turns ||
								  oracle_turns_back(d, after)))
		wrong = "the saga goes in the wrong direction";
	if (wrong == NULL && after->state.deadline != before->state.deadline)
		wrong = "the deadline has changed";
	return wrong;
}

static EdgeKind
kind_of_edge(const SagaEvent *event)
{
	if (event->kind == SAGA_EVENT_LATER)
		return EDGE_LATER;
	return event->kind >= SAGA_EVENT_CANCEL ? EDGE_PERSON : EDGE_SYSTEM;
}

static void
reach(Exploration *x, const Saga *after, EdgeKind kind)
{
	Record		record;

	save(x->d, after, x->exact, &record);
	add_edge(x, intern(x, &record), kind);
}

/* P6, for each kind of event. */
static void
try_on_final(Exploration *x, const Saga *final)
{
	int			i;

	for (i = 0; i < SAGA_NEVENT; i++)
	{
		SagaEvent	event = make_event((SagaEventKind) i, -1, ACTION);
		Saga		after;
		SagaVerdict verdict;

		if (event.kind <= SAGA_EVENT_LOST)
			event.step = 0;
		copy_saga(&after, final);
		verdict = saga_machine_apply(&x->d->rules, &after.state, &event);
		if (verdict != SAGA_VERDICT_FINAL || !is_unchanged(final, &after))
			complain(x, "P6: a final state was changed", final, &event,
					 &after);
	}
}

static void
try_event(Exploration *x, const Saga *before, const SagaEvent *event)
{
	SagaVerdict expected = oracle_verdict(x->d, before, event);
	SagaVerdict verdict;
	Saga		after;
	const char *wrong = NULL;

	copy_saga(&after, before);
	verdict = saga_machine_apply(&x->d->rules, &after.state, event);
	total_events++;
	if (verdict != expected)
		wrong = "the verdict is wrong";
	else if (verdict != SAGA_VERDICT_APPLIED)
		wrong = is_unchanged(before, &after) ? NULL :
			"a refused event has changed something";
	else
		wrong = judge_applied(x->d, before, &after, event);
	if (wrong != NULL)
		complain(x, wrong, before, event, &after);
	else if (event->kind == SAGA_EVENT_ABANDON &&
			 verdict == SAGA_VERDICT_APPLIED)
		try_on_final(x, &after);	/* and there it ends: not gone through */
	else if (verdict == SAGA_VERDICT_APPLIED)
		reach(x, &after, kind_of_edge(event));
}

static void
try_outcomes(Exploration *x, const Saga *before)
{
	int			nops = x->d->rules.nsteps * SAGA_NOPERATION;
	int			i;
	int			j;

	for (i = 0; i < nops; i++)
	{
		for (j = SAGA_EVENT_SUCCEEDED; j <= SAGA_EVENT_LOST; j++)
		{
			SagaOperation operation = (SagaOperation) (i % SAGA_NOPERATION);
			SagaEvent	event = make_event((SagaEventKind) j,
										   i / SAGA_NOPERATION, operation);

			try_event(x, before, &event);
			event.passing = false;
			if (j == SAGA_EVENT_FAILED)
				try_event(x, before, &event);
		}
	}
}

static void
try_people_and_clock(Exploration *x, const Saga *before)
{
	int			i;
	int			step;

	for (i = SAGA_EVENT_START; i < SAGA_NEVENT; i++)
	{
		bool		names_step = i == SAGA_EVENT_RETRY || i == SAGA_EVENT_SKIP;
		int			last = names_step ? x->d->rules.nsteps : -1;

		for (step = -1; step <= last; step++)
		{
			SagaEvent	event = make_event((SagaEventKind) i, step, ACTION);

			try_event(x, before, &event);
		}
	}
}

/* Time passes: each time that is ahead may be the next to come. */
static void
try_ticks(Exploration *x, const Saga *before)
{
	int			i;
	Saga		after;

	for (i = 0; i < x->d->rules.nsteps * 2; i++)
	{
		SagaOpState *op;

		copy_saga(&after, before);
		op = &after.steps[i / 2].op[i % 2];
		if (op->status != SAGA_OP_WAITING || op->due_at <= NOW)
			continue;
		op->due_at = NOW;
		reach(x, &after, EDGE_SYSTEM);
	}
	copy_saga(&after, before);
	after.state.start_at = NOW;
	if (before->state.start_at > NOW)
		reach(x, &after, EDGE_SYSTEM);
	copy_saga(&after, before);
	after.state.deadline = OVER;
	if (before->state.deadline == AHEAD)
		reach(x, &after, EDGE_SYSTEM);
}

/*
 * The engine hands the next operation out, and learns of one that is out that
 * nobody knows how it ended.
 */
static void
try_remote(Exploration *x, const Saga *before, const SagaTodo *todo)
{
	Saga		after;
	int			i;

	copy_saga(&after, before);
	if (todo->operate)
	{
		after.steps[todo->step].op[todo->operation].status = SAGA_OP_RUNNING;
		if (saga_machine_check(&x->d->rules, &after.state) != NULL)
			complain(x, "cannot hand out what is to do", before, NULL, &after);
		reach(x, &after, EDGE_SYSTEM);
	}
	for (i = 0; i < x->d->rules.nsteps; i++)
	{
		SagaEvent	event = make_event(SAGA_EVENT_FAILED, i, ACTION);

		copy_saga(&after, before);
		if (before->steps[i].op[ACTION].status != SAGA_OP_RUNNING)
			continue;
		after.steps[i].op[ACTION].unknown = true;
		try_event(x, &after, &event);
	}
}

/* Is there an operation of this status in the direction of the saga? */
static bool
has_op(const Definition *d, const Saga *saga, SagaOpStatus status)
{
	int			i;

	for (i = 0; i < d->rules.nsteps; i++)
	{
		if (saga->steps[i].op[ACTION].status == status ||
			saga->steps[i].op[COMPENSATION].status == status)
			return true;
	}
	return false;
}

/* The time of the next attempt that is ahead, of operations that may act. */
static SagaTime
oracle_next_attempt(const Definition *d, const Saga *saga)
{
	int			i;

	for (i = 0; i < d->rules.nsteps * 2; i++)
	{
		if (saga->steps[i / 2].op[i % 2].status == SAGA_OP_WAITING)
			return NOW + PAUSE;
	}
	return SAGA_TIME_NEVER;
}

static bool
oracle_deadline_matters(const Definition *d, const Saga *saga)
{
	return saga->state.status != SAGA_STATUS_PAUSED && !oracle_final(saga) &&
		!saga->state.backward && !oracle_no_return(d, saga);
}

/* P4: a saga that waits names what for, and when to look again. */
static const char *
judge_wait(const Definition *d, const Saga *saga, const SagaTodo *todo)
{
	SagaTime	due_at = SAGA_TIME_NEVER;
	bool		named = false;

	switch (todo->wait)
	{
		case SAGA_WAIT_START:
			named = saga->state.status == SAGA_STATUS_SCHEDULED;
			due_at = saga->state.start_at;
			break;
		case SAGA_WAIT_RETRY:
			named = saga->steps[todo->step].op[todo->operation].status ==
				SAGA_OP_WAITING;
			due_at = oracle_next_attempt(d, saga);
			break;
		case SAGA_WAIT_OUTCOME:
			named = saga->steps[todo->step].op[todo->operation].status ==
				SAGA_OP_RUNNING && !has_op(d, saga, SAGA_OP_WAITING);
			break;
		case SAGA_WAIT_PERSON_STUCK:
			named = saga->state.status == SAGA_STATUS_STUCK &&
				saga->steps[todo->step].op[todo->operation].status ==
				SAGA_OP_FAILED;
			break;
		case SAGA_WAIT_PERSON_PAUSED:
			named = saga->state.status == SAGA_STATUS_PAUSED;
			break;
		case SAGA_WAIT_NOTHING:
			break;
	}
	if (oracle_deadline_matters(d, saga) && saga->state.deadline < due_at)
		due_at = saga->state.deadline;
	if (!named)
		return "P4: it waits for something that is not there";
	return todo->due_at == due_at ? NULL : "P4: it looks again at a wrong time";
}

static const char *
judge_operate(const Definition *d, const Saga *saga, const SagaTodo *todo)
{
	SagaEvent	event = make_event(SAGA_EVENT_SUCCEEDED, todo->step,
								   todo->operation);
	const SagaOpState *op = &saga->steps[todo->step].op[todo->operation];

	if (op->status != SAGA_OP_PENDING && op->status != SAGA_OP_WAITING)
		return "an operation is to act that is not to";
	if (op->status == SAGA_OP_WAITING && op->due_at > NOW)
		return "an operation is to act before its time";
	if (todo->attempt != op->attempts + 1)
		return "the attempt has a wrong number";
	return oracle_expects(d, saga, &event) ? NULL :
		"what is to do would be refused";
}

static const char *
judge_todo(const Definition *d, const Saga *saga, const SagaTodo *todo)
{
	int			ways = todo->deadline + todo->start + todo->operate +
		(todo->wait != SAGA_WAIT_NOTHING);

	if (oracle_final(saga))
		return ways == 0 && todo->due_at == SAGA_TIME_NEVER ? NULL :
			"P6: a final saga has something to do";
	if (ways != 1)
		return "P4: not just one thing to do or to wait for";
	if (oracle_deadline_matters(d, saga) && saga->state.deadline <= NOW &&
		!todo->deadline)
		return "P4: the deadline was forgotten";
	if (todo->wait != SAGA_WAIT_NOTHING)
		return judge_wait(d, saga, todo);
	if (todo->due_at > NOW)
		return "P4: what is to do has a time ahead";
	if (todo->deadline)
		return oracle_deadline_matters(d, saga) &&
			saga->state.deadline <= NOW ? NULL : "a deadline for nothing";
	if (todo->start)
		return saga->state.status == SAGA_STATUS_SCHEDULED ? NULL :
			"a start for nothing";
	return judge_operate(d, saga, todo);
}

static void
visit(Exploration *x, int n)
{
	Saga		saga;
	SagaTodo	todo;
	const char *wrong;

	x->current = n;
	load(x->d, &x->records[n], &saga);
	wrong = saga_machine_check(&x->d->rules, &saga.state);
	if (wrong == NULL)
	{
		saga_machine_next(&x->d->rules, &saga.state, NOW, &todo);
		wrong = judge_todo(x->d, &saga, &todo);
	}
	if (wrong != NULL)
	{
		complain(x, wrong, &saga, NULL, NULL);
		return;
	}
	try_outcomes(x, &saga);
	try_people_and_clock(x, &saga);
	if (oracle_final(&saga))
		return;
	try_ticks(x, &saga);
	if (x->remote)
		try_remote(x, &saga, &todo);
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

static bool
is_goal(const Record *record, bool people_help)
{
	if (record->status >= SAGA_STATUS_COMPLETED)
		return true;
	return !people_help && (record->status == SAGA_STATUS_STUCK ||
							record->status == SAGA_STATUS_PAUSED);
}

/*
 * Can every state end?  With people's help, short of abandoning it; without
 * it, or come to where it waits for a person.
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

	sort_edges(x, true, people_help ? EDGE_PERSON : EDGE_LATER, &back);
	for (i = 0; i < x->nrecords; i++)
	{
		seen[i] = is_goal(&x->records[i], people_help);
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
		Saga		saga;

		load(x->d, &x->records[i], &saga);
		if (!seen[i])
			complain(x, people_help ? "it cannot end" :
					 "it cannot end without people's help", &saga, NULL, NULL);
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
		Saga		saga;

		if (count_histories(&forth, counts, i) >= 0)
			continue;
		load(x->d, &x->records[i], &saga);
		complain(x, "a history without people has no end", &saga, NULL, NULL);
	}
	total_histories += counts[0];
	free_adjacency(&forth);
	free(counts);
}

/* A saga that may begin: with a deadline or none, scheduled or at once. */
static void
add_root(Exploration *x, SagaTime start_at, SagaTime deadline)
{
	Saga		saga;
	Record		record;

	begin(x->d, &saga, start_at, deadline);
	save(x->d, &saga, x->exact, &record);
	intern(x, &record);
}

static bool
explore(const Definition *d, bool exact, bool remote)
{
	Exploration x = {0};
	int			i;

	x.d = d;
	x.exact = exact;
	x.remote = remote;
	add_root(&x, AHEAD, AHEAD);
	add_root(&x, NOW, AHEAD);
	add_root(&x, NOW, SAGA_TIME_NEVER);
	if (exact)
		add_root(&x, AHEAD, SAGA_TIME_NEVER);
	for (i = 0; i < x.nrecords && x.wrong == NULL; i++)
		visit(&x, i);
	if (x.wrong == NULL)
		judge_ends(&x, true);
	if (x.wrong == NULL)
		judge_ends(&x, false);
	if (x.wrong == NULL)
		judge_histories(&x);
	total_states += x.nrecords;
	free(x.records);
	free(x.table);
	free(x.edges);
	return x.wrong == NULL;
}

/*
 * Every placement of one pivot or none, and of the compensations; or, for the
 * sake of time, each step with a compensation.
 */
static void
explore_graph(const Graph *graph, bool all_placements, bool exact, bool remote)
{
	int			all = (1 << graph->nsteps) - 1;
	int			compensations = all_placements ? 0 : all;
	long		states = total_states;
	int			ndefinitions = 0;
	bool		sound = true;
	int			pivot;

	for (; compensations <= all && sound; compensations++)
	{
		for (pivot = -1; pivot < graph->nsteps && sound; pivot++)
		{
			Definition	d;

			define(&d, graph, pivot, compensations);
			sound = explore(&d, exact, remote);
			ndefinitions++;
		}
	}
	tap_ok(sound, "histories: %s%s%s (%d definitions, %ld states)",
		   graph->name, exact ? ", all counters" : "",
		   remote ? ", handed out" : "", ndefinitions, total_states - states);
}

static void
test_histories(void)
{
	bool		all_placements = true;
	bool		exact = true;
	bool		remote = true;
	int			i;

	for (i = 0; i < lengthof(linear_graphs); i++)
	{
		if (linear_graphs[i].nsteps <= 2)
			explore_graph(&linear_graphs[i], all_placements, exact, !remote);
		explore_graph(&linear_graphs[i], all_placements, !exact,
					  linear_graphs[i].nsteps <= 3);
	}
	for (i = 0; i < lengthof(other_graphs); i++)
	{
		explore_graph(&other_graphs[i], all_placements, !exact, !remote);
		if (other_graphs[i].nsteps <= 3)
			explore_graph(&other_graphs[i], !all_placements, !exact, remote);
	}
	tap_note("%ld states, %ld events tried, %.3g histories without people",
			 total_states, total_events, total_histories);
}

int
main(void)
{
	test_words();
	test_odd_words();
	test_table();
	test_start();
	test_deadline();
	test_outcomes();
	test_limits();
	test_any_passing();
	test_branches();
	test_pivot_beside_failure();
	test_people();
	test_check();
	test_histories();
	return tap_done();
}
