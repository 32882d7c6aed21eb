/*
 * test_machine.c
 *		The state machine by tables and scenarios: each (state, event) pair is a
 *		row, the forbidden ones too; times, delays, graphs and whatever else a
 *		table of letters cannot show; and the states that mean nothing.
 *
 * That it keeps its promises in every history is for test_machine_histories.c
 * and test_machine_walks.c.
 */
#include "machine_model.h"

#define MAX_ATTEMPTS	2

/* Graphs by the bits of the steps that each step follows. */
static const int line[] = {0, 1, 2, 4, 8};
static const int two_roots[] = {0, 0};
static const int fork_of_two[] = {0, 1, 1};

static void
define_line(Definition *d, int nsteps, int pivot, int compensations)
{
	int			i;

	define(d, nsteps, line, MAX_ATTEMPTS);
	for (i = 0; i < nsteps; i++)
		d->steps[i].has_compensation = (compensations >> i) & 1;
	if (pivot >= 0)
		d->steps[pivot].pivot = true;
	seal(d);
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
		   strcmp(saga_event_name(SAGA_EVENT_NOT_TAKEN), "not_taken") == 0,
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
 * The rows of the tables: a state, by the letters that lead to it, and what
 * each event makes of it.
 *
 * Letters that lead there: s success, f passing failure, F failure for good,
 * l later, x lost, n not taken, r revoked, k cancelled, i signalled, q queued,
 * g granted, of the operation at hand; h hands it out, u says that nobody knows
 * how it ended; e expands the step at hand to two elements; w turns forward;
 * R releases, C recalls it; c cancel, p pause, a abandon.
 *
 * Letters of the results: the status after an event that was applied, in
 * capitals (Scheduled, Running, Compensating, Held, stucK, Paused, Done,
 * Undone, Abandoned), or the verdict that refused it: final, v pivot, backward,
 * h held, not paused, paused, k stuck, o nothing, stale.
 */
typedef struct TableRow
{
	const char *what;
	const char *path;
	const char *results[2];
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
	{SAGA_EVENT_ABANDON, true},
	{SAGA_EVENT_NOT_TAKEN, true},
	{SAGA_EVENT_REVOKED, true},
	{SAGA_EVENT_STARTED, true},
	{SAGA_EVENT_CANCELLED, true},
	{SAGA_EVENT_SIGNALLED, true},
	{SAGA_EVENT_QUEUED, true},
	{SAGA_EVENT_GRANTED, true},
	{SAGA_EVENT_EXPANDED, true},
	{SAGA_EVENT_FORWARD, true},
	{SAGA_EVENT_RELEASE, true},
	{SAGA_EVENT_RECALL, true}
};

/* Two steps with compensations, a pivot, a step.  Two attempts. */
static const TableRow line_rows[] = {
	/*
	 * s f F l x start deadline cancel pause resume retry skip abandon, then
	 * not taken, revoked, started, cancelled, signalled, queued, granted,
	 * expanded, forward, release, recall
	 */
	{"scheduled", "@", {"tttttRUUPnooA", "ttttStttttt"}},
	{"running, fresh", "", {"RRURRtUUPnooA", "RtRtRtttttt"}},
	{"running, one done", "s", {"RRCRRtCCPnooA", "RtRtRtttttt"}},
	{"running, waiting", "f", {"RUURRtUUPnRRA", "RtRtRtttttt"}},
	{"running, waiting after later", "l", {"RRURRtUUPnRRA", "RtRtRtttttt"}},
	{"running, waiting after two crashes", "xx",
	{"RRURKtUUPnRRA", "RtRtRtttttt"}},
	{"running, handed out, asked back", "hk", {"RRURRtCCPnooA", "RRttttttttt"}},
	{"running, handed out and given up", "fhr",
	{"RUURRtUUPnRRA", "RtRtRtttttt"}},
	{"running, signalled", "i", {"RRURRtUUPnooA", "RtRtttttttt"}},
	{"running, first not taken", "n", {"RRURRtUUPnooA", "RtRtRtttttt"}},
	{"running, pivot not taken", "ssn", {"DRKRRtvvPnooA", "DtRtRtttttt"}},
	{"running, handed out", "h", {"RRURRtCCPnooA", "RRtRttttttt"}},
	{"running, outcome unknown", "u", {"RCCRRtCCPnRRA", "CtRtRtttttt"}},
	{"running, unknown and out again", "uh", {"RCCRRtCCPnooA", "CRtRttttttt"}},
	{"running, unknown, then given up", "uhr",
	{"RCCRRtCCPnRRA", "CtRtRtttttt"}},
	{"running, at the pivot", "ss", {"RRCRRtCCPnooA", "RtRtRtttttt"}},
	{"running, pivot waits", "ssf", {"RCCRRtCCPnRRA", "RtRtRtttttt"}},
	{"running, pivot handed out", "ssh", {"RRCRRtvvPnooA", "RRtRttttttt"}},
	{"running, pivot unknown", "ssu", {"RKKRRtvvPnRRA", "KtRtRtttttt"}},
	{"running, pivot unknown, then given up", "ssuhr",
	{"RKKRRtvvPnRRA", "KtRtRtttttt"}},
	{"running, past the pivot", "sss", {"DRKRRtvvPnooA", "DtRtRtttttt"}},
	{"running, waiting past the pivot", "sssf",
	{"DKKRRtvvPnRDA", "DtRtRtttttt"}},
	{"compensating", "sF", {"UCKCCtbbPnooA", "ttCtttttttt"}},
	{"compensating, waiting", "sFf", {"UKKCCtbbPnCUA", "ttCtttttttt"}},
	{"compensating, waiting after two crashes", "sFxx",
	{"UCKCKtbbPnCUA", "ttCtttttttt"}},
	{"compensating, handed out", "sFh", {"UCKCCtbbPnooA", "tCtCttttttt"}},
	{"compensating, two to undo", "ssF", {"CCKCCtbbPnooA", "ttCtttttttt"}},
	{"compensating, first action out", "hc", {"CUUUUtbbPnooA", "UUtCttttttt"}},
	{"compensating, second action out", "shc", {"CCCCCtbbPnooA", "CCtCttttttt"}},
	{"compensating, unknown action out", "uhc",
	{"CCCCCtbbPnooA", "CCtCttttttt"}},
	{"compensating, unknown action given up", "uhcr",
	{"UCKCCtbbPnooA", "ttCtttttttt"}},
	{"compensating, unknown", "sFu", {"UKKCCtbbPnCUA", "ttCtttttttt"}},
	{"compensating, unknown, then given up", "sFuhr",
	{"UKKCCtbbPnCUA", "ttCtttttttt"}},
	{"stuck after crashes", "xxx", {"ttttttUUknRRA", "ttttttttttt"}},
	{"stuck after crashes, one done", "sxxx", {"ttttttCCknRRA", "ttttttttttt"}},
	{"stuck after crashes past the pivot", "sssxxx",
	{"ttttttvvknRDA", "ttttttttttt"}},
	{"stuck past the pivot", "sssff", {"ttttttvvknRDA", "ttttttttttt"}},
	{"stuck at once past the pivot", "sssF", {"ttttttvvknRDA", "ttttttttttt"}},
	{"stuck at an unknown pivot", "ssuf", {"ttttttvvknRRA", "ttttttttttt"}},
	{"stuck in a compensation", "sFff", {"ttttttbbknCUA", "ttttttttttt"}},
	{"stuck after crashes in a compensation", "sFxxx",
	{"ttttttbbknCUA", "ttttttttttt"}},
	{"stuck in a compensation, two to undo", "ssFff",
	{"ttttttbbknCCA", "ttttttttttt"}},
	{"paused, scheduled", "@p", {"tttttppUpSppA", "ttttPtttptt"}},
	{"paused, fresh", "p", {"tttttppUpRppA", "ttttPtttptt"}},
	{"paused, one done", "sp", {"tttttppCpRppA", "ttttttttptt"}},
	{"paused, waiting", "fp", {"tttttppUpRppA", "ttttPtttptt"}},
	{"paused, handed out", "hp", {"PPPPPppCpRppA", "PPtPttttptt"}},
	{"paused, unknown and out again", "uhp",
	{"PPPPPppCpRppA", "PPtPttttptt"}},
	{"paused, unknown, then given up", "uhpr",
	{"tttttppCpRppA", "ttttPtttptt"}},
	{"paused, pivot handed out", "sshp", {"PPPPPppvpRppA", "PPtPttttptt"}},
	{"paused, unknown pivot given up", "ssuhpr",
	{"tttttppvpRppA", "ttttttttptt"}},
	{"paused past the pivot", "sssp", {"tttttppvpRppA", "ttttttttptt"}},
	{"paused, last action came back", "ssshps",
	{"tttttppvpDppA", "ttttttttptt"}},
	{"paused, last action is stuck", "ssshpF", {"tttttppvpKppA", "ttttttttptt"}},
	{"paused, first action failed", "hpF", {"tttttppbpUppA", "ttttttttptt"}},
	{"paused, second action failed", "shpF", {"tttttppbpCppA", "ttttttttptt"}},
	{"paused, compensating", "sFp", {"tttttppbpCppA", "ttttttttptt"}},
	{"paused, compensation handed out", "sFhp",
	{"PPPPPppbpCppA", "tPtPttttptt"}},
	{"paused, compensation is stuck", "sFhpF", {"tttttppbpKppA", "ttttttttptt"}},
	{"completed", "ssss", {"fffffffffffff", "fffffffffff"}},
	{"compensated", "sFs", {"fffffffffffff", "fffffffffff"}},
	{"compensated, nothing to undo", "F", {"fffffffffffff", "fffffffffff"}},
	{"abandoned", "sa", {"fffffffffffff", "fffffffffff"}},
	{"abandoned with an action out", "sha", {"fffffffffffff", "fffffffffff"}},
	{"abandoned, stuck", "sFffa", {"fffffffffffff", "fffffffffff"}}
};

/*
 * Of a child: a savepoint; a foreach of which one is enough; a step that needs
 * a lock and is confirmed.  Two attempts.
 */
static const TableRow child_rows[] = {
	{"child, fresh", "", {"RRURRtUUPnooA", "RtRtRttttRU"}},
	{"child, to be expanded", "s", {"ttttttCCPnooA", "tttttttRtRC"}},
	{"child, expanded", "se", {"RRRRRtCCPnooA", "RtRtRttttRC"}},
	{"child, one of two failed", "seF", {"RRCRRtCCPnooA", "CtRtRttttRC"}},
	{"child, both failed, back at its goal", "seFF",
	{"ttttttCCPnooA", "ttttttttRCC"}},
	{"child, paused, back at its goal", "seFFp",
	{"tttttppCpCppA", "ttttttttpPC"}},
	{"child, forward again", "seFFw", {"ttttttCCPnooA", "tttttttRtRC"}},
	{"child, both failed again", "seFFweFF", {"UCKCCtbbPnooA", "ttCttttttCb"}},
	{"child, one of two won", "ses", {"ttttttCCPnooA", "HtttRRRttRC"}},
	{"child, queued", "sesq", {"tRCtttCCPnooA", "HtttRRRttRC"}},
	{"child, granted", "sesg", {"HRCRRtCCPnooA", "HtRtRttttRC"}},
	{"child, failed with its lock", "sesgF", {"CCKCCtCCPnooA", "ttCttttttCC"}},
	{"child, out of time in the queue", "sesqf",
	{"ttttttCCPnRHA", "HtttRRRttRC"}},
	{"child, held", "sesgs", {"ttttttthonooA", "tttttttttRC"}},
	{"child, held, then recalled", "sesgsC", {"CCKCCtbbPnooA", "ttCttttttCb"}},
	{"child, held, recalled, then released", "sesgsCR",
	{"CCKCCtbbPnooA", "ttCtttttttb"}},
	{"child, to be confirmed", "sesgsR", {"DRKRRtvvPnooA", "ttRtttttttv"}},
	{"child, confirmation handed out", "sesgsRh",
	{"DRKRRtvvPnooA", "tRtRttttttv"}},
	{"child, confirmation waits", "sesgsRf", {"DKKRRtvvPnRDA", "ttRtttttttv"}},
	{"child, confirmation is stuck", "sesgsRff",
	{"ttttttvvknRDA", "ttttttttttv"}},
	{"child, released before it is done", "R", {"RRURRtUUPnooA", "RtRtRtttttU"}},
	{"child, released before, to be confirmed", "Rsesgs",
	{"DRKRRtvvPnooA", "ttRtttttttv"}},
	{"child, paused while it is to be confirmed", "sesgsRp",
	{"tttttppvpRppA", "ttttttttptv"}},
	{"child, completed", "sesgsRs", {"fffffffffffff", "fffffffffff"}},
	{"child, recalled", "sC", {"UCKCCtbbPnooA", "ttCttttttCb"}},
	{"child, nothing to undo", "C", {"fffffffffffff", "fffffffffff"}}
};

/* Which operation is at hand: the one out, else the next one, else any. */
static void
find_at_hand(const Definition *d, const Saga *saga, SagaEvent *event)
{
	SagaTodo	todo;
	SagaTask	task;
	int			i;
	int			j;
	int			k;

	event->step = event->element = 0;
	event->operation = ACTION;
	for (i = 0; i < d->rules.nsteps; i++)
	{
		for (j = 0; j < saga->steps[i].nelements; j++)
		{
			for (k = 0; k < SAGA_NOPERATION; k++)
			{
				if (look_at(saga, i, j, (SagaOperation) k)->status !=
					SAGA_OP_RUNNING)
					continue;
				event->step = i;
				event->element = j;
				event->operation = (SagaOperation) k;
				return;
			}
		}
	}
	saga_machine_next(&d->rules, &saga->state, NOW, &todo, &task, 1);
	if (todo.ntasks > 0)
	{
		event->step = task.step;
		event->element = task.element;
		event->operation = task.operation;
	}
	else if (todo.step >= 0 && todo.element >= 0)
	{
		event->step = todo.step;
		event->element = todo.element;
		event->operation = todo.operation;
	}
}

static SagaVerdict
apply_at_hand(const Definition *d, Saga *saga, SagaEventKind kind,
			  bool passing)
{
	SagaEvent	event = make_event(kind, -1, -1, ACTION);

	if (kind <= SAGA_EVENT_EXPANDED)
		find_at_hand(d, saga, &event);
	if (kind == SAGA_EVENT_EXPANDED)
	{
		event.nelements = 2;
		event.elements = &saga->pool[d->first[event.step]];
	}
	if (kind == SAGA_EVENT_DEADLINE)
		event.now = AHEAD;
	event.passing = passing;
	return saga_machine_apply(&d->rules, &saga->state, &event);
}

/* It is handed out, nobody knows how it ended, and it is to be tried again. */
static SagaVerdict
lose_track_at_hand(const Definition *d, Saga *saga)
{
	SagaEvent	event = {0};

	apply_at_hand(d, saga, SAGA_EVENT_STARTED, true);
	find_at_hand(d, saga, &event);
	op_of(saga, event.step, event.element, event.operation)->unknown = true;
	return apply_at_hand(d, saga, SAGA_EVENT_FAILED, true);
}

static bool
walk(const Definition *d, Saga *saga, const char *path)
{
	static const char letters[] = "sfFlxnrkiqghewRCcpa";
	static const SagaEventKind kinds[] = {
		SAGA_EVENT_SUCCEEDED, SAGA_EVENT_FAILED, SAGA_EVENT_FAILED,
		SAGA_EVENT_LATER, SAGA_EVENT_LOST, SAGA_EVENT_NOT_TAKEN,
		SAGA_EVENT_REVOKED, SAGA_EVENT_CANCELLED, SAGA_EVENT_SIGNALLED,
		SAGA_EVENT_QUEUED, SAGA_EVENT_GRANTED, SAGA_EVENT_STARTED,
		SAGA_EVENT_EXPANDED, SAGA_EVENT_FORWARD, SAGA_EVENT_RELEASE,
		SAGA_EVENT_RECALL, SAGA_EVENT_CANCEL, SAGA_EVENT_PAUSE,
		SAGA_EVENT_ABANDON
	};
	bool		scheduled = *path == '@';
	SagaVerdict verdict;

	begin(d, saga, scheduled ? AHEAD : NOW, AHEAD);
	for (path += scheduled; *path != '\0'; path++)
	{
		if (*path == 'u')
			verdict = lose_track_at_hand(d, saga);
		else
			verdict = apply_at_hand(d, saga,
									kinds[strchr(letters, *path) - letters],
									*path == 'f');
		if (verdict != SAGA_VERDICT_APPLIED ||
			saga_machine_check(&d->rules, &saga->state) != NULL)
			return false;
	}
	return true;
}

/* The letter of a result, as the tables have them. */
static char
letter_of(SagaVerdict verdict, SagaStatus status)
{
	return verdict == SAGA_VERDICT_APPLIED ? "SRCHKPDUA"[status] :
		"?fvbhnpkot"[verdict];
}

static void
test_table_row(const Definition *d, const TableRow *row)
{
	static const int first = 13;	/* of the second group */
	Saga		before;
	Saga		after;
	int			i;

	if (!tap_ok(walk(d, &before, row->path), "%s: is reached", row->what))
		return;
	for (i = 0; i < lengthof(table_events); i++)
	{
		char		expected = i < first ? row->results[0][i] :
			row->results[1][i - first];
		SagaVerdict verdict;
		const char *wrong;
		char		letter;

		memset(&after, 0, sizeof(after));
		copy_saga(d, &after, &before);
		verdict = apply_at_hand(d, &after, table_events[i].kind,
								table_events[i].passing);
		letter = letter_of(verdict, after.state.status);
		wrong = saga_machine_check(&d->rules, &after.state);
		if (!tap_ok(letter == expected && wrong == NULL, "%s: %s%s%s",
					row->what,
					table_events[i].kind == SAGA_EVENT_FAILED &&
					!table_events[i].passing ? "for good " : "",
					saga_event_name(table_events[i].kind),
					letter >= 'a' ? " is refused" : ""))
			tap_note("got %c, expected %c; %s", letter, expected,
					 wrong != NULL ? wrong : "the state is sound");
	}
}

static void
define_rows_of_child(Definition *d)
{
	define(d, 3, line, MAX_ATTEMPTS);
	make_savepoint(d, 0, 1, -1);
	make_foreach(d, 1, 2, 0, 1);
	d->steps[2].exclusive = true;
	d->steps[2].has_confirmation = true;
	d->child = true;
	seal(d);
}

static void
test_tables(void)
{
	Definition	d;
	int			i;

	define_line(&d, 4, 2, 3);
	for (i = 0; i < lengthof(line_rows); i++)
		test_table_row(&d, &line_rows[i]);

	define_rows_of_child(&d);
	for (i = 0; i < lengthof(child_rows); i++)
		test_table_row(&d, &child_rows[i]);
}

/* ---------------------------------------------------------------------
 * Scenarios
 * ---------------------------------------------------------------------
 */

/* Is this the first thing to do, and nothing else before it? */
static bool
names(const Definition *d, const Saga *saga, SagaTime now, SagaTaskKind kind,
	  int step, int element, SagaOperation operation)
{
	SagaTodo	todo;
	SagaTask	task;

	saga_machine_next(&d->rules, &saga->state, now, &todo, &task, 1);
	return todo.ntasks == 1 && !todo.start && !todo.deadline &&
		!todo.forward && todo.wait == SAGA_WAIT_NOTHING &&
		todo.due_at <= now && task.kind == kind && task.step == step &&
		task.element == element && task.operation == operation;
}

static bool
attempts(const Definition *d, const Saga *saga, SagaTime now, int step,
		 SagaOperation operation, int attempt)
{
	SagaTodo	todo;
	SagaTask	task;

	saga_machine_next(&d->rules, &saga->state, now, &todo, &task, 1);
	return names(d, saga, now, SAGA_TASK_OPERATE, step, 0, operation) &&
		task.attempt == attempt;
}

/* How many things there are to do. */
static int
count_tasks(const Definition *d, const Saga *saga, SagaTime now)
{
	SagaTodo	todo;
	SagaTask	tasks[MAX_TASKS];

	saga_machine_next(&d->rules, &saga->state, now, &todo, tasks, MAX_TASKS);
	return todo.ntasks;
}

static bool
waits(const Definition *d, const Saga *saga, SagaTime now, SagaWait wait,
	  int step, SagaTime due_at)
{
	SagaTodo	todo;
	SagaTask	task;

	saga_machine_next(&d->rules, &saga->state, now, &todo, &task, 1);
	return todo.wait == wait && todo.step == step && todo.due_at == due_at &&
		todo.ntasks == 0 && !todo.start && !todo.deadline && !todo.forward;
}

static bool
has_deadline(const Definition *d, const Saga *saga, SagaTime now)
{
	SagaTodo	todo;
	SagaTask	task;

	saga_machine_next(&d->rules, &saga->state, now, &todo, &task, 1);
	return todo.deadline && todo.ntasks == 0 && !todo.start &&
		!todo.forward && todo.wait == SAGA_WAIT_NOTHING && todo.due_at <= now;
}

static bool
has_start(const Definition *d, const Saga *saga, SagaTime now)
{
	SagaTodo	todo;
	SagaTask	task;

	saga_machine_next(&d->rules, &saga->state, now, &todo, &task, 1);
	return todo.start && todo.ntasks == 0 && !todo.deadline &&
		!todo.forward && todo.wait == SAGA_WAIT_NOTHING && todo.due_at <= now;
}

static SagaVerdict
apply_to(const Definition *d, Saga *saga, SagaEventKind kind, int step,
		 int element, SagaOperation operation)
{
	SagaEvent	event = make_event(kind, step, element, operation);

	return saga_machine_apply(&d->rules, &saga->state, &event);
}

/* Of the only element; of people's events, of any. */
static SagaVerdict
apply(const Definition *d, Saga *saga, SagaEventKind kind, int step,
	  SagaOperation operation)
{
	return apply_to(d, saga, kind, step, names_operation(kind) ? 0 : -1,
					operation);
}

static SagaVerdict
fail_for_good(const Definition *d, Saga *saga, int step,
			  SagaOperation operation)
{
	SagaEvent	event = make_event(SAGA_EVENT_FAILED, step, 0, operation);

	event.passing = false;
	return saga_machine_apply(&d->rules, &saga->state, &event);
}

static SagaVerdict
expand(const Definition *d, Saga *saga, int step, int nelements)
{
	SagaEvent	event = make_event(SAGA_EVENT_EXPANDED, step, 0, ACTION);

	event.nelements = nelements;
	event.elements = &saga->pool[d->first[step]];
	return saga_machine_apply(&d->rules, &saga->state, &event);
}

static void
set_deadline(const Definition *d, Saga *saga, SagaTime deadline)
{
	saga->state.deadline = deadline;
	saga_machine_loaded(&d->rules, &saga->state);
}

static void
test_start(void)
{
	Definition	d;
	Saga		saga;
	SagaEvent	event;

	define_line(&d, 2, -1, 3);
	begin(&d, &saga, NOW + 50, SAGA_TIME_NEVER);
	tap_ok(waits(&d, &saga, NOW, SAGA_WAIT_START, -1, NOW + 50),
		   "start: waits for its time");
	tap_ok(has_start(&d, &saga, NOW + 50), "start: when it has come");
	set_deadline(&d, &saga, NOW + 20);
	tap_ok(waits(&d, &saga, NOW, SAGA_WAIT_START, -1, NOW + 20),
		   "start: looks earlier when the deadline is before it");
	tap_ok(has_deadline(&d, &saga, NOW + 60),
		   "start: the deadline goes before it");
	begin(&d, &saga, NOW, SAGA_TIME_NEVER);
	tap_ok(saga.state.status == SAGA_STATUS_RUNNING &&
		   attempts(&d, &saga, NOW, 0, ACTION, 1), "start: at once");

	begin(&d, &saga, AHEAD, SAGA_TIME_NEVER);
	event = make_event(SAGA_EVENT_START, -1, -1, ACTION);
	saga_machine_apply(&d.rules, &saga.state, &event);
	apply(&d, &saga, SAGA_EVENT_PAUSE, -1, ACTION);
	apply(&d, &saga, SAGA_EVENT_RESUME, -1, ACTION);
	tap_ok(saga.state.status == SAGA_STATUS_RUNNING,
		   "start: what began before its time is not sent back by a pause");

	begin(&d, &saga, NOW + 50, SAGA_TIME_NEVER);
	apply(&d, &saga, SAGA_EVENT_PAUSE, -1, ACTION);
	event = make_event(SAGA_EVENT_RESUME, -1, -1, ACTION);
	event.now = NOW + 50;
	saga_machine_apply(&d.rules, &saga.state, &event);
	tap_ok(saga.state.status == SAGA_STATUS_RUNNING,
		   "start: a pause that ends after it");

	begin(&d, &saga, NOW, SAGA_TIME_NEVER);
	apply(&d, &saga, SAGA_EVENT_SUCCEEDED, 0, ACTION);
	apply(&d, &saga, SAGA_EVENT_PAUSE, -1, ACTION);
	event.now = NOW - 50;
	saga_machine_apply(&d.rules, &saga.state, &event);
	tap_ok(saga.state.status == SAGA_STATUS_RUNNING,
		   "start: what has begun is not sent back by a clock that is behind");
}

static void
test_deadline(void)
{
	Definition	d;
	Saga		saga;

	define_line(&d, 3, 1, 1);
	begin(&d, &saga, NOW, NOW + 500);
	apply(&d, &saga, SAGA_EVENT_FAILED, 0, ACTION);
	tap_ok(waits(&d, &saga, NOW, SAGA_WAIT_RETRY, 0, NOW + 500),
		   "deadline: before the next attempt");
	tap_ok(has_deadline(&d, &saga, NOW + 500) &&
		   has_deadline(&d, &saga, NOW + 5000), "deadline: when it has passed");
	set_deadline(&d, &saga, NOW + 5000);
	tap_ok(waits(&d, &saga, NOW, SAGA_WAIT_RETRY, 0, NOW + PAUSE),
		   "deadline: after the next attempt");
	tap_ok(apply(&d, &saga, SAGA_EVENT_DEADLINE, -1, ACTION) ==
		   SAGA_VERDICT_STALE, "deadline: not before its time");
	set_deadline(&d, &saga, NOW);
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

	define_line(&d, 1, -1, 1);
	d.steps[0].retry[ACTION].max_attempts = 0;
	d.steps[0].retry[ACTION].initial_delay = 8000;
	d.steps[0].retry[ACTION].max_delay = 100000;
	d.steps[0].retry[ACTION].multiplier = 2;
	d.steps[0].retry[ACTION].jitter = 0.25;
	begin(&d, &saga, NOW, SAGA_TIME_NEVER);
	for (i = 0; i < lengthof(outcome_rows); i++)
	{
		const OutcomeRow *row = &outcome_rows[i];
		const SagaOpState *op = op_of(&saga, 0, 0, ACTION);
		SagaEvent	event = make_event(row->kind, 0, 0, ACTION);

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

	define_line(&d, 1, -1, 1);
	d.steps[0].retry[ACTION].max_attempts = 0;
	begin(&d, &saga, NOW, SAGA_TIME_NEVER);
	for (i = 0; i < 100000; i++)
		apply(&d, &saga, SAGA_EVENT_FAILED, 0, ACTION);
	tap_ok(saga.state.status == SAGA_STATUS_RUNNING,
		   "limits: no limit of attempts is none");
	event = make_event(SAGA_EVENT_LATER, 0, 0, ACTION);
	event.now = INT64_MAX - 5;
	event.delay = 100;
	saga_machine_apply(&d.rules, &saga.state, &event);
	tap_ok(op_of(&saga, 0, 0, ACTION)->due_at == SAGA_TIME_NEVER - 1 &&
		   saga_machine_check(&d.rules, &saga.state) == NULL,
		   "limits: the end of time is not never");
	d.steps[0].retry[ACTION].initial_delay = INT64_C(3600000000);
	d.steps[0].retry[ACTION].max_delay = INT64_C(3600000000);
	apply(&d, &saga, SAGA_EVENT_LOST, 0, ACTION);
	tap_ok(op_of(&saga, 0, 0, ACTION)->due_at == NOW + 1000000,
		   "limits: a crash does not wait for a long policy");
	op_of(&saga, 0, 0, ACTION)->attempts = INT32_MAX;
	op_of(&saga, 0, 0, ACTION)->failures = INT32_MAX;
	apply(&d, &saga, SAGA_EVENT_FAILED, 0, ACTION);
	tap_ok(op_of(&saga, 0, 0, ACTION)->attempts == INT32_MAX &&
		   op_of(&saga, 0, 0, ACTION)->failures == INT32_MAX &&
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

	define_line(&d, 4, 2, 3);
	walk(&d, &saga, "ss");
	tap_ok(!saga_machine_any_passing(&d.rules, &saga.state, 2, 0, ACTION),
		   "any passing: not the pivot's own action");
	tap_ok(saga_machine_any_passing(&d.rules, &saga.state, 0, 0, COMPENSATION) &&
		   saga_machine_any_passing(&d.rules, &saga.state, 0, 0, CONFIRMATION),
		   "any passing: compensations and confirmations");
	walk(&d, &saga, "ssh");
	tap_ok(!saga_machine_any_passing(&d.rules, &saga.state, 2, 0, ACTION) &&
		   saga_machine_any_passing(&d.rules, &saga.state, 3, 0, ACTION),
		   "any passing: others while the pivot is out");
	walk(&d, &saga, "ssu");
	tap_ok(saga_machine_any_passing(&d.rules, &saga.state, 2, 0, ACTION),
		   "any passing: a pivot of which nobody knows");
	walk(&d, &saga, "sss");
	tap_ok(saga_machine_any_passing(&d.rules, &saga.state, 3, 0, ACTION),
		   "any passing: past the pivot");
}

static void
test_branches(void)
{
	Definition	d;
	Saga		saga;

	/* fork of two: steps 1 and 2 after 0 */
	define(&d, 3, fork_of_two, MAX_ATTEMPTS);
	seal(&d);
	begin(&d, &saga, NOW, SAGA_TIME_NEVER);
	apply(&d, &saga, SAGA_EVENT_SUCCEEDED, 0, ACTION);
	apply(&d, &saga, SAGA_EVENT_FAILED, 1, ACTION);
	tap_ok(attempts(&d, &saga, NOW, 2, ACTION, 1),
		   "branches: one goes on while the other waits");
	apply(&d, &saga, SAGA_EVENT_STARTED, 2, ACTION);
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
	define(&d, 2, two_roots, MAX_ATTEMPTS);
	make_pivot(&d, 1);
	seal(&d);
	begin(&d, &saga, NOW, SAGA_TIME_NEVER);
	apply(&d, &saga, SAGA_EVENT_STARTED, 1, ACTION);
	fail_for_good(&d, &saga, 0, ACTION);
	tap_ok(saga.state.status == SAGA_STATUS_STUCK && !saga.state.backward,
		   "pivot out: a failure beside it does not turn back");
	apply(&d, &saga, SAGA_EVENT_FAILED, 1, ACTION);
	tap_ok(saga.state.status == SAGA_STATUS_COMPENSATED &&
		   op_of(&saga, 1, 0, ACTION)->status == SAGA_OP_FAILED,
		   "pivot out: it does when the pivot failed");

	begin(&d, &saga, NOW, SAGA_TIME_NEVER);
	apply(&d, &saga, SAGA_EVENT_STARTED, 1, ACTION);
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

	define_line(&d, 4, 2, 3);
	walk(&d, &saga, "sFff");
	event = make_event(SAGA_EVENT_RETRY, -1, -1, ACTION);
	event.now = NOW + 77;
	saga_machine_apply(&d.rules, &saga.state, &event);
	tap_ok(op_of(&saga, 0, 0, COMPENSATION)->failures == 0 &&
		   op_of(&saga, 0, 0, COMPENSATION)->due_at == NOW + 77 &&
		   attempts(&d, &saga, NOW + 77, 0, COMPENSATION, 3),
		   "retry: a stuck compensation begins anew");
	walk(&d, &saga, "xxx");
	apply(&d, &saga, SAGA_EVENT_RETRY, 0, ACTION);
	tap_ok(op_of(&saga, 0, 0, ACTION)->crashes == 0 &&
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
	tap_ok(op_of(&saga, 0, 0, ACTION)->failures == 0 &&
		   attempts(&d, &saga, NOW, 0, ACTION, 2), "retry: now, not later");
	walk(&d, &saga, "f");
	apply(&d, &saga, SAGA_EVENT_SKIP, -1, ACTION);
	fail_for_good(&d, &saga, 1, ACTION);
	tap_ok(saga.state.status == SAGA_STATUS_COMPENSATED &&
		   op_of(&saga, 0, 0, COMPENSATION)->status == SAGA_OP_PENDING,
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

/* ---------------------------------------------------------------------
 * Scenarios of elements, locks, savepoints and the like
 * ---------------------------------------------------------------------
 */

static void
test_foreach(void)
{
	Definition	d;
	Saga		saga;
	SagaEvent	event;

	define(&d, 2, line, MAX_ATTEMPTS);
	make_foreach(&d, 0, 4, 2, 0);
	seal(&d);
	begin(&d, &saga, NOW, SAGA_TIME_NEVER);
	tap_ok(names(&d, &saga, NOW, SAGA_TASK_EXPAND, 0, 0, ACTION),
		   "foreach: is to be expanded");
	tap_ok(expand(&d, &saga, 0, -1) == SAGA_VERDICT_STALE &&
		   expand(&d, &saga, 0, SAGA_MAX_ELEMENTS + 1) ==
		   SAGA_VERDICT_STALE && expand(&d, &saga, 1, 1) ==
		   SAGA_VERDICT_STALE, "foreach: not to more than there may be");
	event = make_event(SAGA_EVENT_EXPANDED, 0, 0, ACTION);
	event.nelements = 2;
	tap_ok(saga_machine_apply(&d.rules, &saga.state, &event) ==
		   SAGA_VERDICT_STALE, "foreach: not without memory");
	memset(saga.pool, 0x55, 4 * sizeof(SagaElementState));
	tap_ok(expand(&d, &saga, 0, 4) == SAGA_VERDICT_APPLIED &&
		   saga_machine_check(&d.rules, &saga.state) == NULL,
		   "foreach: the memory of its elements is zeroed");
	tap_ok(expand(&d, &saga, 0, 4) == SAGA_VERDICT_STALE,
		   "foreach: expanded once");
	tap_ok(count_tasks(&d, &saga, NOW) == 2 &&
		   names(&d, &saga, NOW, SAGA_TASK_OPERATE, 0, 0, ACTION),
		   "foreach: two at once");
	apply_to(&d, &saga, SAGA_EVENT_STARTED, 0, 0, ACTION);
	tap_ok(count_tasks(&d, &saga, NOW) == 1 &&
		   names(&d, &saga, NOW, SAGA_TASK_OPERATE, 0, 1, ACTION),
		   "foreach: what is out counts");
	apply_to(&d, &saga, SAGA_EVENT_FAILED, 0, 1, ACTION);
	tap_ok(names(&d, &saga, NOW, SAGA_TASK_OPERATE, 0, 2, ACTION) &&
		   count_tasks(&d, &saga, NOW) == 1,
		   "foreach: what waits does not");
	apply_to(&d, &saga, SAGA_EVENT_STARTED, 0, 3, ACTION);
	tap_ok(waits(&d, &saga, NOW, SAGA_WAIT_RETRY, 0, NOW + PAUSE) ||
		   waits(&d, &saga, NOW, SAGA_WAIT_OUTCOME, 0, NOW + PAUSE) ||
		   waits(&d, &saga, NOW, SAGA_WAIT_OUTCOME, 0, SAGA_TIME_NEVER),
		   "foreach: no more than two");
	apply_to(&d, &saga, SAGA_EVENT_SUCCEEDED, 0, 0, ACTION);
	apply_to(&d, &saga, SAGA_EVENT_SUCCEEDED, 0, 1, ACTION);
	apply_to(&d, &saga, SAGA_EVENT_SUCCEEDED, 0, 2, ACTION);
	tap_ok(!saga_machine_step_is_done(&d.rules, &saga.state, 0),
		   "foreach: not done before the last");
	apply_to(&d, &saga, SAGA_EVENT_SUCCEEDED, 0, 3, ACTION);
	tap_ok(saga_machine_step_is_done(&d.rules, &saga.state, 0) &&
		   attempts(&d, &saga, NOW, 1, ACTION, 1), "foreach: then the next step");
	fail_for_good(&d, &saga, 1, ACTION);
	tap_ok(count_tasks(&d, &saga, NOW) == 2 &&
		   names(&d, &saga, NOW, SAGA_TASK_OPERATE, 0, 0, COMPENSATION),
		   "foreach: compensated two at once");

	begin(&d, &saga, NOW, SAGA_TIME_NEVER);
	expand(&d, &saga, 0, 0);
	tap_ok(attempts(&d, &saga, NOW, 1, ACTION, 1),
		   "foreach: nothing is done at once");
	begin(&d, &saga, NOW, SAGA_TIME_NEVER);
	expand(&d, &saga, 0, 1);
	fail_for_good(&d, &saga, 0, ACTION);
	tap_ok(saga.state.status == SAGA_STATUS_COMPENSATED,
		   "foreach: elements that could not be found");
}

static void
test_quorum(void)
{
	Definition	d;
	Saga		saga;

	define(&d, 2, line, MAX_ATTEMPTS);
	make_foreach(&d, 0, 4, 0, 2);
	seal(&d);
	begin(&d, &saga, NOW, SAGA_TIME_NEVER);
	tap_ok(expand(&d, &saga, 0, 0) == SAGA_VERDICT_STALE,
		   "quorum: not of fewer than it needs");
	expand(&d, &saga, 0, 4);
	apply_to(&d, &saga, SAGA_EVENT_STARTED, 0, 0, ACTION);
	apply_to(&d, &saga, SAGA_EVENT_STARTED, 0, 1, ACTION);
	apply_to(&d, &saga, SAGA_EVENT_SUCCEEDED, 0, 2, ACTION);
	apply_to(&d, &saga, SAGA_EVENT_SUCCEEDED, 0, 1, ACTION);
	tap_ok(op_of(&saga, 0, 3, ACTION)->status == SAGA_OP_SKIPPED,
		   "quorum: who has not begun is not needed");
	tap_ok(names(&d, &saga, NOW, SAGA_TASK_REVOKE, 0, 0, ACTION),
		   "quorum: who is out is asked back");
	apply_to(&d, &saga, SAGA_EVENT_CANCELLED, 0, 0, ACTION);
	tap_ok(attempts(&d, &saga, NOW, 1, ACTION, 1),
		   "quorum: nobody waits for it");
	apply(&d, &saga, SAGA_EVENT_SUCCEEDED, 1, ACTION);
	tap_ok(saga.state.status == SAGA_STATUS_RUNNING &&
		   waits(&d, &saga, NOW, SAGA_WAIT_OUTCOME, 0, SAGA_TIME_NEVER),
		   "quorum: but the saga does not end without it");
	apply_to(&d, &saga, SAGA_EVENT_SUCCEEDED, 0, 0, ACTION);
	tap_ok(op_of(&saga, 0, 0, ACTION)->surplus &&
		   attempts(&d, &saga, NOW, 0, COMPENSATION, 1),
		   "quorum: a loser is compensated");
	apply_to(&d, &saga, SAGA_EVENT_SUCCEEDED, 0, 0, COMPENSATION);
	tap_ok(saga.state.status == SAGA_STATUS_COMPLETED,
		   "quorum: then it is completed");

	begin(&d, &saga, NOW, SAGA_TIME_NEVER);
	expand(&d, &saga, 0, 3);
	apply_to(&d, &saga, SAGA_EVENT_SUCCEEDED, 0, 0, ACTION);
	fail_for_good(&d, &saga, 0, ACTION);
	apply_to(&d, &saga, SAGA_EVENT_STARTED, 0, 1, ACTION);
	op_of(&saga, 0, 1, ACTION)->unknown = true;
	apply_to(&d, &saga, SAGA_EVENT_SUCCEEDED, 0, 2, ACTION);
	apply_to(&d, &saga, SAGA_EVENT_FAILED, 0, 1, ACTION);
	tap_ok(op_of(&saga, 0, 1, ACTION)->status == SAGA_OP_FAILED &&
		   names(&d, &saga, NOW, SAGA_TASK_OPERATE, 0, 1, COMPENSATION),
		   "quorum: so is one of which nobody knows");
}

static void
test_handing_out(void)
{
	Definition	d;
	Saga		saga;
	SagaEvent	event = make_event(SAGA_EVENT_STARTED, 0, 0, ACTION);

	define_line(&d, 2, -1, 3);
	begin(&d, &saga, NOW, SAGA_TIME_NEVER);
	event.due_at = NOW + LEASE;
	saga_machine_apply(&d.rules, &saga.state, &event);
	tap_ok(waits(&d, &saga, NOW, SAGA_WAIT_OUTCOME, 0, NOW + LEASE),
		   "handed out: waits until it is over");
	tap_ok(names(&d, &saga, NOW + LEASE, SAGA_TASK_EXPIRE, 0, 0, ACTION),
		   "handed out: over");
	apply(&d, &saga, SAGA_EVENT_REVOKED, 0, ACTION);
	tap_ok(attempts(&d, &saga, NOW, 0, ACTION, 1),
		   "handed out: given up as if it had not been");
	saga_machine_apply(&d.rules, &saga.state, &event);
	apply(&d, &saga, SAGA_EVENT_CANCEL, -1, ACTION);
	tap_ok(names(&d, &saga, NOW, SAGA_TASK_REVOKE, 0, 0, ACTION),
		   "handed out: asked back when the saga goes back");
	apply(&d, &saga, SAGA_EVENT_CANCELLED, 0, ACTION);
	tap_ok(waits(&d, &saga, NOW, SAGA_WAIT_OUTCOME, 0, NOW + LEASE) &&
		   apply(&d, &saga, SAGA_EVENT_CANCELLED, 0, ACTION) ==
		   SAGA_VERDICT_STALE, "handed out: asked once");
	apply(&d, &saga, SAGA_EVENT_REVOKED, 0, ACTION);
	tap_ok(saga.state.status == SAGA_STATUS_COMPENSATED,
		   "handed out: nothing to undo of what was given up");
}

/* The first attempt was lost, and the second is out. */
static void
lose_first_attempt(const Definition *d, Saga *saga, int step, int element)
{
	apply_to(d, saga, SAGA_EVENT_STARTED, step, element, ACTION);
	op_of(saga, step, element, ACTION)->unknown = true;
	apply_to(d, saga, SAGA_EVENT_FAILED, step, element, ACTION);
	apply_to(d, saga, SAGA_EVENT_STARTED, step, element, ACTION);
}

static void
test_unknown(void)
{
	Definition	d;
	Saga		saga;
	const SagaOpState *action = &saga.pool[0].op[ACTION];

	define_line(&d, 2, -1, 3);
	begin(&d, &saga, NOW, SAGA_TIME_NEVER);
	lose_first_attempt(&d, &saga, 0, 0);
	apply(&d, &saga, SAGA_EVENT_REVOKED, 0, ACTION);
	tap_ok(action->unknown && attempts(&d, &saga, NOW, 0, ACTION, 2),
		   "unknown: what is given up makes nothing known of what was before");
	apply(&d, &saga, SAGA_EVENT_STARTED, 0, ACTION);
	apply(&d, &saga, SAGA_EVENT_CANCEL, -1, ACTION);
	tap_ok(names(&d, &saga, NOW, SAGA_TASK_REVOKE, 0, 0, ACTION) &&
		   apply(&d, &saga, SAGA_EVENT_SUCCEEDED, 0, COMPENSATION) ==
		   SAGA_VERDICT_STALE, "unknown: not compensated while it is out");
	apply(&d, &saga, SAGA_EVENT_REVOKED, 0, ACTION);
	tap_ok(action->status == SAGA_OP_FAILED && action->unknown &&
		   attempts(&d, &saga, NOW, 0, COMPENSATION, 1) &&
		   apply(&d, &saga, SAGA_EVENT_STARTED, 0, ACTION) ==
		   SAGA_VERDICT_STALE,
		   "unknown: then compensated, and not attempted again");
	apply(&d, &saga, SAGA_EVENT_SUCCEEDED, 0, COMPENSATION);
	tap_ok(saga.state.status == SAGA_STATUS_COMPENSATED && action->unknown,
		   "unknown: which makes it undone");

	begin(&d, &saga, NOW, SAGA_TIME_NEVER);
	lose_first_attempt(&d, &saga, 0, 0);
	fail_for_good(&d, &saga, 0, ACTION);
	tap_ok(action->unknown && attempts(&d, &saga, NOW, 0, COMPENSATION, 1),
		   "unknown: a failure makes nothing known of what was before");
	begin(&d, &saga, NOW, SAGA_TIME_NEVER);
	lose_first_attempt(&d, &saga, 0, 0);
	apply(&d, &saga, SAGA_EVENT_NOT_TAKEN, 0, ACTION);
	tap_ok(action->status == SAGA_OP_FAILED && action->unknown &&
		   attempts(&d, &saga, NOW, 0, COMPENSATION, 1),
		   "unknown: nor does a condition");
	begin(&d, &saga, NOW, SAGA_TIME_NEVER);
	lose_first_attempt(&d, &saga, 0, 0);
	apply(&d, &saga, SAGA_EVENT_SUCCEEDED, 0, ACTION);
	tap_ok(!action->unknown && attempts(&d, &saga, NOW, 1, ACTION, 1),
		   "unknown: success does");
	begin(&d, &saga, NOW, SAGA_TIME_NEVER);
	lose_first_attempt(&d, &saga, 0, 0);
	apply(&d, &saga, SAGA_EVENT_REVOKED, 0, ACTION);
	apply(&d, &saga, SAGA_EVENT_SKIP, -1, ACTION);
	apply(&d, &saga, SAGA_EVENT_CANCEL, -1, ACTION);
	tap_ok(!action->unknown && saga.state.status == SAGA_STATUS_COMPENSATED,
		   "unknown: and so does a person who skips it");
	begin(&d, &saga, NOW, SAGA_TIME_NEVER);
	apply(&d, &saga, SAGA_EVENT_STARTED, 0, ACTION);
	op_of(&saga, 0, 0, ACTION)->unknown = true;
	apply(&d, &saga, SAGA_EVENT_REVOKED, 0, ACTION);
	tap_ok(!action->unknown && attempts(&d, &saga, NOW, 0, ACTION, 1),
		   "unknown: not when the only attempt had no effect");
}

static void
test_unknown_beside_others(void)
{
	Definition	d;
	Saga		saga;

	define(&d, 2, line, MAX_ATTEMPTS);
	make_foreach(&d, 0, 2, 0, 1);
	seal(&d);
	begin(&d, &saga, NOW, SAGA_TIME_NEVER);
	expand(&d, &saga, 0, 2);
	lose_first_attempt(&d, &saga, 0, 0);
	apply_to(&d, &saga, SAGA_EVENT_SUCCEEDED, 0, 1, ACTION);
	apply_to(&d, &saga, SAGA_EVENT_REVOKED, 0, 0, ACTION);
	tap_ok(saga.state.status == SAGA_STATUS_RUNNING &&
		   op_of(&saga, 0, 0, ACTION)->surplus &&
		   names(&d, &saga, NOW, SAGA_TASK_OPERATE, 0, 0, COMPENSATION),
		   "unknown: a loser that is given up is compensated");

	define(&d, 2, line, MAX_ATTEMPTS);
	make_savepoint(&d, 0, 1, -1);
	seal(&d);
	begin(&d, &saga, NOW, SAGA_TIME_NEVER);
	apply(&d, &saga, SAGA_EVENT_SUCCEEDED, 0, ACTION);
	lose_first_attempt(&d, &saga, 1, 0);
	fail_for_good(&d, &saga, 1, ACTION);
	tap_ok(saga.state.goal == 0 &&
		   apply(&d, &saga, SAGA_EVENT_FORWARD, -1, ACTION) ==
		   SAGA_VERDICT_STALE &&
		   attempts(&d, &saga, NOW, 1, COMPENSATION, 1),
		   "unknown: no new round before it is undone");
	apply(&d, &saga, SAGA_EVENT_SUCCEEDED, 1, COMPENSATION);
	apply(&d, &saga, SAGA_EVENT_FORWARD, -1, ACTION);
	tap_ok(!op_of(&saga, 1, 0, ACTION)->unknown &&
		   attempts(&d, &saga, NOW, 1, ACTION, 1),
		   "unknown: a new round knows nothing of it");
}

static void
test_locks(void)
{
	Definition	d;
	Saga		saga;
	SagaEvent	queued = make_event(SAGA_EVENT_QUEUED, 0, 0, ACTION);

	define(&d, 1, line, MAX_ATTEMPTS);
	d.steps[0].exclusive = true;
	seal(&d);
	begin(&d, &saga, NOW, SAGA_TIME_NEVER);
	tap_ok(names(&d, &saga, NOW, SAGA_TASK_ACQUIRE, 0, 0, ACTION) &&
		   apply(&d, &saga, SAGA_EVENT_SUCCEEDED, 0, ACTION) ==
		   SAGA_VERDICT_STALE &&
		   apply(&d, &saga, SAGA_EVENT_STARTED, 0, ACTION) ==
		   SAGA_VERDICT_STALE, "lock: no attempt without it");
	queued.due_at = NOW + LEASE;
	saga_machine_apply(&d.rules, &saga.state, &queued);
	tap_ok(waits(&d, &saga, NOW, SAGA_WAIT_LOCK, 0, NOW + LEASE) &&
		   names(&d, &saga, NOW + LEASE, SAGA_TASK_EXPIRE, 0, 0, ACTION),
		   "lock: waits in line");
	apply(&d, &saga, SAGA_EVENT_FAILED, 0, ACTION);
	tap_ok(op_of(&saga, 0, 0, ACTION)->failures == 1 &&
		   waits(&d, &saga, NOW, SAGA_WAIT_RETRY, 0, NOW + PAUSE) &&
		   names(&d, &saga, NOW + PAUSE, SAGA_TASK_ACQUIRE, 0, 0, ACTION),
		   "lock: asked for again when it did not come");
	apply(&d, &saga, SAGA_EVENT_GRANTED, 0, ACTION);
	tap_ok(op_of(&saga, 0, 0, ACTION)->due_at == NOW + PAUSE &&
		   attempts(&d, &saga, NOW + PAUSE, 0, ACTION, 2),
		   "lock: does not shorten a pause");
	op_of(&saga, 0, 0, ACTION)->gate = SAGA_GATE_CLOSED;
	saga_machine_loaded(&d.rules, &saga.state);
	tap_ok(names(&d, &saga, NOW + PAUSE, SAGA_TASK_ACQUIRE, 0, 0, ACTION),
		   "lock: asked for again when it is forgotten");
	apply(&d, &saga, SAGA_EVENT_GRANTED, 0, ACTION);
	tap_ok(apply(&d, &saga, SAGA_EVENT_GRANTED, 0, ACTION) ==
		   SAGA_VERDICT_STALE, "lock: granted once");
	apply(&d, &saga, SAGA_EVENT_SUCCEEDED, 0, ACTION);
	tap_ok(saga.state.status == SAGA_STATUS_COMPLETED, "lock: and done");
}

static void
test_savepoints(void)
{
	static const int preds[] = {0, 1, 1, 6};
	Definition	d;
	Saga		saga;
	SagaTodo	todo;
	SagaTask	task;

	/* after 0 comes 1, or 2 when that failed; then 3 */
	define(&d, 4, preds, 1);
	make_savepoint(&d, 0, 1, 2);
	make_foreach(&d, 1, 2, 0, 0);
	seal(&d);
	begin(&d, &saga, NOW, SAGA_TIME_NEVER);
	apply(&d, &saga, SAGA_EVENT_SUCCEEDED, 0, ACTION);
	expand(&d, &saga, 1, 2);
	tap_ok(count_tasks(&d, &saga, NOW) == 2 && saga.steps[2].off,
		   "savepoint: the alternative is off");
	apply_to(&d, &saga, SAGA_EVENT_SUCCEEDED, 1, 0, ACTION);
	apply_to(&d, &saga, SAGA_EVENT_FAILED, 1, 1, ACTION);
	tap_ok(saga.state.goal == 0 &&
		   names(&d, &saga, NOW, SAGA_TASK_OPERATE, 1, 0, COMPENSATION),
		   "savepoint: a failure goes back to it");
	apply_to(&d, &saga, SAGA_EVENT_SUCCEEDED, 1, 0, COMPENSATION);
	saga_machine_next(&d.rules, &saga.state, NOW, &todo, &task, 1);
	tap_ok(todo.forward && todo.ntasks == 0 && todo.due_at <= NOW,
		   "savepoint: there it turns forward");
	apply(&d, &saga, SAGA_EVENT_FORWARD, -1, ACTION);
	tap_ok(saga.recoveries[0] == 1 && saga.steps[1].nelements == -1 &&
		   saga_machine_round(&d.rules, &saga.state, 0) == 0 &&
		   saga_machine_round(&d.rules, &saga.state, 1) == 1 &&
		   saga_machine_round(&d.rules, &saga.state, 3) == 1,
		   "savepoint: which begins a round");
	tap_ok(saga.steps[1].off && !saga.steps[2].off &&
		   attempts(&d, &saga, NOW, 2, ACTION, 1),
		   "savepoint: the alternative is on");
	apply(&d, &saga, SAGA_EVENT_SUCCEEDED, 2, ACTION);
	apply(&d, &saga, SAGA_EVENT_FAILED, 3, ACTION);
	tap_ok(saga.state.goal == -1 &&
		   attempts(&d, &saga, NOW, 2, COMPENSATION, 1),
		   "savepoint: no further than its recoveries");
	apply(&d, &saga, SAGA_EVENT_SUCCEEDED, 2, COMPENSATION);
	apply(&d, &saga, SAGA_EVENT_SUCCEEDED, 0, COMPENSATION);
	tap_ok(saga.state.status == SAGA_STATUS_COMPENSATED,
		   "savepoint: all the way then");
}

static void
test_confirmations(void)
{
	Definition	d;
	Saga		saga;

	define(&d, 2, line, MAX_ATTEMPTS);
	d.steps[0].has_confirmation = true;
	seal(&d);
	begin(&d, &saga, NOW, SAGA_TIME_NEVER);
	apply(&d, &saga, SAGA_EVENT_SUCCEEDED, 0, ACTION);
	tap_ok(apply(&d, &saga, SAGA_EVENT_SUCCEEDED, 0, CONFIRMATION) ==
		   SAGA_VERDICT_STALE, "confirmation: not before all is done");
	apply(&d, &saga, SAGA_EVENT_SUCCEEDED, 1, ACTION);
	tap_ok(attempts(&d, &saga, NOW, 0, CONFIRMATION, 1) &&
		   apply(&d, &saga, SAGA_EVENT_CANCEL, -1, ACTION) ==
		   SAGA_VERDICT_PIVOT, "confirmation: then there is no way back");
	fail_for_good(&d, &saga, 0, CONFIRMATION);
	tap_ok(waits(&d, &saga, NOW, SAGA_WAIT_PERSON_STUCK, 0, SAGA_TIME_NEVER),
		   "confirmation: stuck");
	apply(&d, &saga, SAGA_EVENT_RETRY, 0, ACTION);
	tap_ok(attempts(&d, &saga, NOW, 0, CONFIRMATION, 2),
		   "confirmation: retried by a person");
	apply(&d, &saga, SAGA_EVENT_SUCCEEDED, 0, CONFIRMATION);
	tap_ok(saga.state.status == SAGA_STATUS_COMPLETED,
		   "confirmation: completes the saga");
}

/* So many elements that looking at all of them each time would never end. */
static void
test_many_elements(void)
{
	SagaStepRule rule = {0};
	SagaRules	rules = {1, &rule, false, NULL};
	SagaElementState *elements = calloc(SAGA_MAX_ELEMENTS, sizeof(*elements));
	SagaStepState step = {0};
	SagaState	state = {0};
	SagaEvent	event = make_event(SAGA_EVENT_EXPANDED, 0, 0, ACTION);
	bool		right = elements != NULL;
	int			i;

	rule.foreach = rule.has_compensation = true;
	rule.alternative = -1;
	rule.parallel = 10;
	rule.retry[ACTION].max_attempts = 1;
	state.nsteps = 1;
	state.steps = &step;
	step.nelements = -1;
	saga_machine_init(&rules, &state, NOW, NOW, SAGA_TIME_NEVER);
	event.nelements = SAGA_MAX_ELEMENTS;
	event.elements = elements;
	right = right && saga_machine_apply(&rules, &state, &event) ==
		SAGA_VERDICT_APPLIED;
	for (i = 0; i < SAGA_MAX_ELEMENTS && right; i++)
	{
		SagaTodo	todo;
		SagaTask	tasks[20];
		int			left = SAGA_MAX_ELEMENTS - i;

		saga_machine_next(&rules, &state, NOW, &todo, tasks, 20);
		right = todo.ntasks == (left < 10 ? left : 10) &&
			tasks[0].element == i;
		event = make_event(SAGA_EVENT_SUCCEEDED, 0, i, ACTION);
		right = right && saga_machine_apply(&rules, &state, &event) ==
			SAGA_VERDICT_APPLIED;
	}
	tap_ok(right && state.status == SAGA_STATUS_COMPLETED,
		   "many elements: %d, one after the other", SAGA_MAX_ELEMENTS);
	free(elements);
}

/*
 * Forward to the end, where the last step fails, and back again, by the first
 * task each time.  Says how far it came, or -1.
 */
static int
run_there_and_back(const SagaRules *rules, SagaState *state)
{
	int			n;

	for (n = 0; !saga_status_is_final(state->status); n++)
	{
		SagaTodo	todo;
		SagaTask	task;
		SagaEvent	event;

		saga_machine_next(rules, state, NOW, &todo, &task, 1);
		if (todo.ntasks != 1 || task.kind != SAGA_TASK_OPERATE)
			return -1;
		event = make_event(SAGA_EVENT_SUCCEEDED, task.step, 0,
						   task.operation);
		event.passing = false;
		if (task.step == rules->nsteps - 1)
			event.kind = SAGA_EVENT_FAILED;
		if (saga_machine_apply(rules, state, &event) != SAGA_VERDICT_APPLIED)
			return -1;
	}
	return state->status == SAGA_STATUS_COMPENSATED ? n : -1;
}

/* Likewise so many steps: a line, or a graph, which is "wide" or another line. */
static int
run_many_steps(int nsteps, bool graph, bool wide)
{
	SagaStepRule *rule = calloc((size_t) nsteps, sizeof(SagaStepRule));
	SagaStepState *steps = calloc((size_t) nsteps, sizeof(SagaStepState));
	SagaElementState *elements = calloc((size_t) nsteps,
										sizeof(SagaElementState));
	int16_t    *preds = calloc((size_t) nsteps, sizeof(int16_t));
	uint64_t   *closure = graph ? malloc(saga_rules_closure_size(nsteps)) :
		NULL;
	SagaRules	rules = {nsteps, rule, false, NULL};
	SagaState	state = {0};
	int			result = -1;
	int			i;

	for (i = 0; i < nsteps && rule && steps && elements && preds; i++)
	{
		rule[i].has_compensation = true;
		rule[i].alternative = -1;
		rule[i].retry[ACTION].max_attempts = 1;
		rule[i].retry[COMPENSATION].max_attempts = 1;
		preds[i] = (int16_t) (wide ? 0 : i - 1);
		rule[i].npreds = i > 0;
		rule[i].preds = &preds[i];
		steps[i].nelements = 1;
		steps[i].elements = &elements[i];
	}
	if (i == nsteps && (closure != NULL || !graph))
	{
		state.nsteps = nsteps;
		state.steps = steps;
		if (graph)
			saga_rules_close(&rules, closure);
		saga_machine_init(&rules, &state, NOW, NOW, SAGA_TIME_NEVER);
		result = run_there_and_back(&rules, &state);
	}
	free(rule);
	free(steps);
	free(elements);
	free(preds);
	free(closure);
	return result;
}

static void
test_many_steps(void)
{
	bool		graph = true;
	bool		wide = true;

	tap_ok(run_many_steps(SAGA_MAX_STEPS, !graph, !wide) ==
		   2 * SAGA_MAX_STEPS - 1, "many steps: a line of %d",
		   (int) SAGA_MAX_STEPS);
	tap_ok(run_many_steps(SAGA_MAX_GRAPH, graph, !wide) ==
		   2 * SAGA_MAX_GRAPH - 1, "many steps: a graph of %d after each other",
		   SAGA_MAX_GRAPH);
	tap_ok(run_many_steps(SAGA_MAX_GRAPH, graph, wide) ==
		   2 * SAGA_MAX_GRAPH - 1, "many steps: a graph of %d beside each other",
		   SAGA_MAX_GRAPH);
}

/* ---------------------------------------------------------------------
 * States that mean nothing
 * ---------------------------------------------------------------------
 */

/* The invariant that a state breaks, by its number; else what is said. */
static bool
breaks(const Definition *d, const Saga *saga, const char *invariant)
{
	const char *wrong = saga_machine_check(&d->rules, &saga->state);

	if (wrong != NULL && strncmp(wrong, invariant, strlen(invariant)) == 0 &&
		wrong[strlen(invariant)] == ':')
		return true;
	tap_note("says: %s", wrong != NULL ? wrong : "nothing");
	return false;
}

/* RAW as it is, BROKEN with what is the machine's own made anew. */
#define RAW(path, what, invariant) \
	do { \
		walk(&d, &saga, path); \
		what; \
		tap_ok(breaks(&d, &saga, invariant), "check: %s after \"%s\"", \
			   #what, path); \
	} while (0)

#define BROKEN(path, what, invariant) \
	do { \
		walk(&d, &saga, path); \
		what; \
		saga_machine_loaded(&d.rules, &saga.state); \
		tap_ok(breaks(&d, &saga, invariant), "check: %s after \"%s\"", \
			   #what, path); \
	} while (0)

static void
test_check(void)
{
	Definition	d;
	Saga		saga;
	int16_t		later = 3;

	define_line(&d, 4, 2, 3);
	RAW("", saga.state.nsteps = 3, "I1");
	RAW("", saga.state.status = (SagaStatus) 9, "I1");
	RAW("", op_of(&saga, 0, 0, ACTION)->status = (SagaOpStatus) 6, "I1");
	BROKEN("", op_of(&saga, 0, 0, ACTION)->failures = 1, "I1");
	BROKEN("", op_of(&saga, 0, 0, ACTION)->crashes = -1, "I1");
	BROKEN("", op_of(&saga, 0, 0, ACTION)->attempts = 1, "I1");
	BROKEN("s", op_of(&saga, 0, 0, ACTION)->attempts = 0, "I1");
	BROKEN("f", op_of(&saga, 0, 0, ACTION)->due_at = SAGA_TIME_NEVER, "I2");
	BROKEN("@", saga.state.start_at = SAGA_TIME_NEVER, "I2");
	BROKEN("s", op_of(&saga, 0, 0, ACTION)->unknown = true, "I3");
	BROKEN("s", op_of(&saga, 0, 0, ACTION)->cancelled = true, "I3");
	BROKEN("s", op_of(&saga, 0, 0, ACTION)->signalled = true, "I3");
	BROKEN("xx", (op_of(&saga, 0, 0, ACTION)->crashes = 3,
				  op_of(&saga, 0, 0, ACTION)->attempts = 3), "I4");
	BROKEN("s", op_of(&saga, 2, 0, ACTION)->status = SAGA_OP_RUNNING, "I5");
	BROKEN("s", op_of(&saga, 0, 0, COMPENSATION)->status = SAGA_OP_RUNNING,
		   "I6");
	BROKEN("", op_of(&saga, 0, 0, COMPENSATION)->status = SAGA_OP_RUNNING,
		   "I8");
	BROKEN("sf", op_of(&saga, 1, 0, ACTION)->status = SAGA_OP_FAILED, "I6");
	BROKEN("sf", saga.state.backward = true, "I7");
	BROKEN("sss", saga.state.backward = true, "I7");
	BROKEN("s", saga.state.goal = 0, "I7");
	BROKEN("sF", saga.state.goal = 0, "I7");
	BROKEN("ssF", op_of(&saga, 0, 0, COMPENSATION)->status = SAGA_OP_RUNNING,
		   "I8");
	BROKEN("sF", op_of(&saga, 1, 0, COMPENSATION)->status = SAGA_OP_RUNNING,
		   "I8");
	BROKEN("sF", saga.state.status = SAGA_STATUS_RUNNING, "I9");
	BROKEN("s", saga.state.status = SAGA_STATUS_COMPENSATING, "I9");
	BROKEN("s", saga.state.status = SAGA_STATUS_SCHEDULED, "I10");
	BROKEN("s", saga.state.status = SAGA_STATUS_COMPLETED, "I10");
	BROKEN("sF", saga.state.status = SAGA_STATUS_COMPENSATED, "I10");
	BROKEN("s", saga.state.status = SAGA_STATUS_STUCK, "I11");
	BROKEN("xxx", saga.state.status = SAGA_STATUS_RUNNING, "I11");
	BROKEN("", op_of(&saga, 0, 0, CONFIRMATION)->status = SAGA_OP_RUNNING,
		   "I12");
	BROKEN("s", op_of(&saga, 0, 0, ACTION)->surplus = true, "I13");
	RAW("s", op_of(&saga, 0, 0, ACTION)->status = SAGA_OP_SKIPPED, "I14");
	RAW("", saga.steps[1].off = true, "I14");
	RAW("", d.steps[1].preds = &later, "I1");
	RAW("", d.rules.nsteps = 0, "I1");

	define_rows_of_child(&d);
	BROKEN("s", saga.state.status = SAGA_STATUS_HELD, "I10");
	BROKEN("sesgs", saga.state.status = SAGA_STATUS_COMPLETED, "I10");
	BROKEN("sesgs", saga.state.released = true, "I13");
	BROKEN("sesgs",
		   op_of(&saga, 2, 0, CONFIRMATION)->status = SAGA_OP_RUNNING, "I12");
	BROKEN("seFFweFF", saga.state.goal = 0, "I7");
	BROKEN("seFF", saga.recoveries[0] = 2, "I1");
	BROKEN("seFF", saga.recoveries[0] = -1, "I1");
	BROKEN("se", saga.steps[1].nelements = -2, "I1");
	BROKEN("se", op_of(&saga, 1, 0, COMPENSATION)->status = SAGA_OP_WAITING,
		   "I1");
}

int
main(void)
{
	test_words();
	test_odd_words();
	test_tables();
	test_start();
	test_deadline();
	test_outcomes();
	test_limits();
	test_any_passing();
	test_branches();
	test_pivot_beside_failure();
	test_people();
	test_foreach();
	test_quorum();
	test_handing_out();
	test_unknown();
	test_unknown_beside_others();
	test_locks();
	test_savepoints();
	test_confirmations();
	test_many_elements();
	test_many_steps();
	test_check();
	return tap_done();
}
