/*
 * stepgraph.c
 *		Owns the rules for how the steps of a definition hang together: their
 *		order, the pivot on every path, savepoints and locks.
 *
 * A definition in which each step follows the one before it can be as long as
 * SAGA_MAX_STEPS, and is looked at in a time that grows with its length only;
 * with the rest, which may take the square of it, goes SAGA_MAX_GRAPH.
 *
 * Nothing here calls itself: what a user has written cannot exhaust the stack.
 *
 * Runs in any backend, on memory only.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "nodes/pg_list.h"
#include "utils/builtins.h"
#include "utils/varlena.h"

#include "stepgraph.h"

/* No definition may have more savepoints. */
#define MAX_SAVEPOINTS	64

/* How many steps a message names. */
#define MAX_NAMED		5

/* The steps in the order of their names. */
typedef struct NameIndex
{
	SagaStepInput *steps;
	int			n;
	int16	   *sorted;
} NameIndex;

/* What a step is to the pivots of the paths that lead to it. */
typedef struct PathState
{
	int16		pivot;			/* the last one before it, -1 if there is none */
	int16		via;			/* the step before it on the path from there */
} PathState;


/* ---- names ------------------------------------------------------------ */

static int
compare_by_name(const void *a, const void *b, void *steps)
{
	return strcmp(((const SagaStepInput *) steps)[*(const int16 *) a].name,
				  ((const SagaStepInput *) steps)[*(const int16 *) b].name);
}

/* Raises if a name is given twice. */
static void
make_index(NameIndex *index, SagaStepInput *steps, int n)
{
	index->steps = steps;
	index->n = n;
	index->sorted = palloc(n * sizeof(int16));
	for (int i = 0; i < n; i++)
		index->sorted[i] = i;
	qsort_arg(index->sorted, n, sizeof(int16), compare_by_name, steps);
	for (int i = 1; i < n; i++)
	{
		const char *name = steps[index->sorted[i]].name;

		if (strcmp(steps[index->sorted[i - 1]].name, name) == 0)
			ereport(ERROR,
					errcode(ERRCODE_DUPLICATE_OBJECT),
					errmsg("step \"%s\" is defined more than once", name));
	}
}

/* The step of that name, or -1. */
static int
find_step(const NameIndex *index, const char *name)
{
	int			low = 0;
	int			high = index->n - 1;

	while (low <= high)
	{
		int			middle = (low + high) / 2;
		int			position = index->sorted[middle];
		int			order = strcmp(name, index->steps[position].name);

		if (order == 0)
			return position;
		if (order < 0)
			high = middle - 1;
		else
			low = middle + 1;
	}
	return -1;
}

/* The name most like this one among the first thousand, or NULL. */
static const char *
similar_step(const NameIndex *index, const char *name)
{
	int			length = strlen(name);
	int			limit = Min(Min(length / 3 + 1, 4), length - 1);
	const char *best = NULL;

	if (length > SAGA_MAX_NAME)
		return NULL;
	for (int i = 0; i < Min(index->n, SAGA_MAX_GRAPH) && limit >= 0; i++)
	{
		const char *candidate = index->steps[index->sorted[i]].name;
		int			distance;

		distance = varstr_levenshtein_less_equal(candidate, strlen(candidate),
												 name, length, 1, 1, 1,
												 limit, true);
		if (distance <= limit)
		{
			best = candidate;
			limit = distance - 1;
		}
	}
	return best;
}

/* The step that a field of another one names; raises if there is none. */
static int
require_step(const NameIndex *index, const SagaStepInput *step,
			 const char *field, const char *name)
{
	int			found = find_step(index, name);
	const char *similar;

	if (found >= 0)
		return found;
	similar = similar_step(index, name);
	ereport(ERROR,
			errcode(ERRCODE_UNDEFINED_OBJECT),
			errmsg("step \"%s\" (%s of %s) does not exist",
				   name, field, step->where),
			similar != NULL ?
			errhint("Perhaps you meant \"%s\".", similar) : 0);
	return -1;					/* not reached */
}

/* "a", "b" and 7 more */
static void
append_name(StringInfo buf, int nth, int n, const char *name)
{
	if (nth < MAX_NAMED)
		appendStringInfo(buf, "%s\"%s\"", nth > 0 ? ", " : "", name);
	else if (nth == MAX_NAMED)
		appendStringInfo(buf, " and %d more", n - MAX_NAMED);
}


/* ---- what a step comes after ------------------------------------------ */

static int
compare_int16(const void *a, const void *b)
{
	return *(const int16 *) a - *(const int16 *) b;
}

/* Without repetitions, in order: it is a set. */
static void
set_preds(SagaStepInput *step, int16 *preds, int n)
{
	int			kept = 0;

	qsort(preds, n, sizeof(int16), compare_int16);
	for (int i = 0; i < n; i++)
	{
		if (kept == 0 || preds[kept - 1] != preds[i])
			preds[kept++] = preds[i];
	}
	step->preds = preds;
	step->npreds = kept;
}

static void
resolve_after(const NameIndex *index, int position)
{
	SagaStepInput *step = &index->steps[position];
	int16	   *preds = palloc(Max(step->nafter, 1) * sizeof(int16));
	int			n = 0;

	if (!step->has_after && position > 0)
		preds[n++] = position - 1;
	for (int i = 0; i < step->nafter; i++)
	{
		CHECK_FOR_INTERRUPTS();
		preds[n] = require_step(index, step, "after", step->after[i]);
		if (preds[n] == position)
			ereport(ERROR,
					errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					errmsg("%s comes after itself", step->where),
					errhint("Name the steps that must have ended before it, or '{}' if it is to start at once."));
		n++;
	}
	set_preds(step, preds, n);
}

static bool
follows_its_neighbour(const SagaStepInput *steps, int position)
{
	const SagaStepInput *step = &steps[position];

	if (position == 0)
		return step->npreds == 0;
	return step->npreds == 1 && step->preds[0] == position - 1;
}

static bool
is_linear(const SagaStepInput *steps, int n)
{
	for (int i = 0; i < n; i++)
	{
		if (!follows_its_neighbour(steps, i))
			return false;
	}
	return true;
}


/* ---- topological order ------------------------------------------------ */

static bool
comes_right_after(const SagaStepInput *step, int16 pred)
{
	return bsearch(&pred, step->preds, step->npreds, sizeof(int16),
				   compare_int16) != NULL;
}

/* The first predecessor that has no place in the order; there is one. */
static int
unplaced_pred(const SagaStepInput *step, const int16 *place)
{
	for (int i = 0; i < step->npreds; i++)
	{
		if (place[step->preds[i]] < 0)
			return step->preds[i];
	}
	elog(ERROR, "step \"%s\" waits for nothing", step->name);
	return -1;
}

/*
 * Every step without a place waits for another one: going from each to one
 * that it waits for, we must come round.  Returns the length of the cycle,
 * whose steps are, from the last to the first, in "cycle".
 */
static int
find_cycle(const SagaStepInput *steps, int n, const int16 *place,
		   int16 *cycle)
{
	bool	   *seen = palloc0(n * sizeof(bool));
	int			step = 0;
	int			first;
	int			length = 0;

	while (place[step] >= 0)
		step++;
	while (!seen[step])
	{
		seen[step] = true;
		step = unplaced_pred(&steps[step], place);
	}
	first = step;
	do
	{
		cycle[length++] = step;
		step = unplaced_pred(&steps[step], place);
	} while (step != first);
	pfree(seen);
	return length;
}

/* Begins with the step that is listed first, and ends with it again. */
static char *
describe_cycle(const SagaStepInput *steps, const int16 *cycle, int length)
{
	StringInfoData buf;
	int			start = 0;
	int			shown = Min(length, 2 * MAX_NAMED);

	for (int i = 1; i < length; i++)
	{
		if (cycle[i] < cycle[start])
			start = i;
	}
	initStringInfo(&buf);
	for (int i = 0; i < shown; i++)
		appendStringInfo(&buf, "%s -> ",
						 steps[cycle[(start + length - i) % length]].name);
	if (shown < length)
		appendStringInfoString(&buf, "... -> ");
	appendStringInfoString(&buf, steps[cycle[start]].name);
	return buf.data;
}

/* The steps that are not in the cycle, but can never be reached either. */
static char *
describe_unreachable(const SagaStepInput *steps, int n, const int16 *place,
					 const int16 *cycle, int length)
{
	bool	   *in_cycle = palloc0(n * sizeof(bool));
	int			total = 0;
	int			nth = 0;
	StringInfoData buf;

	for (int i = 0; i < length; i++)
		in_cycle[cycle[i]] = true;
	for (int i = 0; i < n; i++)
		total += place[i] < 0 && !in_cycle[i] ? 1 : 0;
	if (total == 0)
		return NULL;
	initStringInfo(&buf);
	for (int i = 0; i < n; i++)
	{
		if (place[i] < 0 && !in_cycle[i])
			append_name(&buf, nth++, total, steps[i].name);
	}
	return buf.data;
}

static void
report_cycle(const char *definition, const SagaStepInput *steps, int n,
			 const int16 *place)
{
	int16	   *cycle = palloc(n * sizeof(int16));
	int			length = find_cycle(steps, n, place, cycle);
	char	   *unreachable = describe_unreachable(steps, n, place, cycle,
												   length);
	char	   *path = describe_cycle(steps, cycle, length);

	ereport(ERROR,
			errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			errmsg("steps of saga definition \"%s\" wait for each other",
				   definition),
			unreachable != NULL ?
			errdetail("Cycle: %s. Never reached, since they come after such steps: %s.",
					  path, unreachable) :
			errdetail("Cycle: %s.", path),
			errhint("Change \"after\" of one of them."));
}

/*
 * Give each step its place: always the first one listed of those whose
 * predecessors have theirs.
 */
static void
find_places(const char *definition, const SagaStepInput *steps, int n,
			int16 *place)
{
	int		   *nwaiting = palloc(n * sizeof(int));

	for (int i = 0; i < n; i++)
	{
		nwaiting[i] = steps[i].npreds;
		place[i] = -1;
	}
	for (int next = 0; next < n; next++)
	{
		int			step = 0;

		CHECK_FOR_INTERRUPTS();
		while (step < n && (place[step] >= 0 || nwaiting[step] > 0))
			step++;
		if (step == n)
			report_cycle(definition, steps, n, place);
		place[step] = next;
		for (int i = 0; i < n; i++)
		{
			if (place[i] < 0 && comes_right_after(&steps[i], step))
				nwaiting[i]--;
		}
	}
	pfree(nwaiting);
}

/* Move the steps to their places, with what they say of others. */
static void
move_steps(SagaStepInput *steps, int n, const int16 *place)
{
	SagaStepInput *copy = palloc(n * sizeof(SagaStepInput));

	memcpy(copy, steps, n * sizeof(SagaStepInput));
	for (int i = 0; i < n; i++)
	{
		SagaStepInput *step = &steps[place[i]];
		int16	   *preds = palloc(Max(copy[i].npreds, 1) * sizeof(int16));

		*step = copy[i];
		for (int p = 0; p < step->npreds; p++)
			preds[p] = place[copy[i].preds[p]];
		set_preds(step, preds, step->npreds);
	}
	pfree(copy);
}

bool
saga_stepgraph_sort(const char *definition, SagaStepInput *steps, int n)
{
	NameIndex	index;
	int16	   *place;

	make_index(&index, steps, n);
	for (int i = 0; i < n; i++)
		resolve_after(&index, i);
	if (is_linear(steps, n))
		return true;
	if (n > SAGA_MAX_GRAPH)
		ereport(ERROR,
				errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				errmsg("saga definition \"%s\" has %d steps", definition, n),
				errdetail("It must have at most %d when steps say what they come after.",
						  SAGA_MAX_GRAPH),
				errhint("Make parts of it sagas of their own, and begin those with saga.child_step(); or use foreach."));
	place = palloc(n * sizeof(int16));
	find_places(definition, steps, n, place);
	move_steps(steps, n, place);
	return is_linear(steps, n);
}


/* ---- the pivot on every path ------------------------------------------ */

static void
find_paths(const SagaStepInput *steps, int n, PathState *states)
{
	for (int i = 0; i < n; i++)
	{
		states[i].pivot = states[i].via = -1;
		for (int p = 0; p < steps[i].npreds; p++)
		{
			int16		pred = steps[i].preds[p];

			if (!steps[pred].pivot && states[pred].pivot < 0)
				continue;
			states[i].pivot = steps[pred].pivot ? pred : states[pred].pivot;
			states[i].via = pred;
			break;
		}
	}
}

/*
 * A path to this step, by the pivot before it if there is one, from its start.
 * Of a long one the middle is left out.
 */
static char *
describe_path(const SagaStepInput *steps, const PathState *states, int step)
{
	List	   *path = NIL;
	int			pivot = states[step].pivot;
	int			pivot_at = 0;
	int			length;
	StringInfoData buf;

	/* from the end: towards the pivot, then wherever it goes */
	for (int i = step; i >= 0;)
	{
		path = lappend_int(path, i);
		if (pivot >= 0 && i > pivot)
			i = states[i].via;
		else
			i = steps[i].npreds > 0 ? steps[i].preds[0] : -1;
	}
	length = list_length(path);
	for (int i = 0; i < length; i++)
	{
		if (list_nth_int(path, length - 1 - i) == pivot)
			pivot_at = i;
	}
	initStringInfo(&buf);
	for (int i = 0; i < length; i++)
	{
		const SagaStepInput *shown = &steps[list_nth_int(path, length - 1 - i)];
		bool		wanted = i < 2 || i >= length - 2 ||
			abs(i - pivot_at) <= 1;

		if (wanted)
			appendStringInfo(&buf, "%s%s%s", i > 0 ? " -> " : "",
							 shown->name, shown->pivot ? " (pivot)" : "");
		else if (i == 2 || i == pivot_at + 2)
			appendStringInfoString(&buf, " -> ...");
	}
	return buf.data;
}

/* Raises: a step at or after a pivot cannot have or be this. */
static void
report_too_late(const SagaStepInput *steps, const PathState *states, int step,
				const char *what, const char *hint)
{
	const SagaStepInput *input = &steps[step];

	ereport(ERROR,
			errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			errmsg("%s cannot %s", input->where, what),
			states[step].pivot < 0 ?
			errdetail("It is the pivot: once it has succeeded, nothing is undone.") :
			errdetail("It comes after the pivot, step \"%s\": once that has succeeded, nothing is undone. Path: %s.",
					  steps[states[step].pivot].name,
					  describe_path(steps, states, step)),
			errhint("%s", hint));
}

/* What comes before the pivot can be undone, what comes after only repeated. */
static void
check_pivots(const SagaStepInput *steps, int n)
{
	PathState  *states = palloc(n * sizeof(PathState));
	const char *before = "Put what may have to be undone before the pivot.";

	find_paths(steps, n, states);
	for (int i = 0; i < n; i++)
	{
		const SagaStepInput *step = &steps[i];

		if (step->pivot && states[i].pivot >= 0)
			ereport(ERROR,
					errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					errmsg("%s cannot be a pivot", step->where),
					errdetail("A path has one pivot at most, and step \"%s\" is one already. Path: %s.",
							  steps[states[i].pivot].name,
							  describe_path(steps, states, i)),
					errhint("What comes after a pivot is repeated until it succeeds: it needs none."));
		if (!step->pivot && states[i].pivot < 0)
			continue;
		if (step->function[SAGA_OPERATION_CONFIRMATION] != NULL)
			report_too_late(steps, states, i, "have a confirmation",
							"Put what is tried first, and may have to be cancelled, before the pivot.");
		if (step->function[SAGA_OPERATION_COMPENSATION] != NULL)
			report_too_late(steps, states, i, "have a compensation", before);
		if (step->savepoint)
			report_too_late(steps, states, i, "be a savepoint",
							"Put savepoints before the pivot: a saga goes back to them.");
	}
	pfree(states);
}


/* ---- savepoints and locks --------------------------------------------- */

/* The rules as far as the questions of the machine need them. */
static void
make_rules(const SagaStepInput *steps, int n, bool linear, SagaRules *rules)
{
	SagaStepRule *each;

	memset(rules, 0, sizeof(*rules));
	rules->nsteps = n;
	if (linear)
		return;
	each = palloc0(n * sizeof(SagaStepRule));
	for (int i = 0; i < n; i++)
	{
		each[i].npreds = steps[i].npreds;
		each[i].preds = steps[i].preds;
	}
	rules->steps = each;
	saga_rules_close(rules, palloc(saga_rules_closure_size(n)));
}

static void
check_lock(const NameIndex *index, const SagaRules *rules, int position)
{
	const SagaStepInput *step = &index->steps[position];
	int			until;

	if (step->exclusive_until == NULL)
		return;
	until = require_step(index, step, "exclusive_until",
						 step->exclusive_until);
	if (until != position && !saga_rules_is_before(rules, position, until))
		ereport(ERROR,
				errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				errmsg("invalid exclusive_until in %s", step->where),
				errdetail("Step \"%s\" does not come after it.",
						  step->exclusive_until),
				errhint("The lock is held until the step itself or one that comes after it has ended."));
}

/* "owner" is, by step, the savepoint whose alternative it is, or -1. */
static void
check_alternative(const NameIndex *index, const SagaRules *rules,
				  int position, int16 *owner)
{
	const SagaStepInput *step = &index->steps[position];
	int			alternative;

	if (step->and_then == NULL ||
		strcmp(step->and_then, SAGA_AND_THEN_RETRY) == 0)
		return;
	alternative = require_step(index, step, "and_then", step->and_then);
	if (!saga_rules_is_before(rules, position, alternative))
		ereport(ERROR,
				errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				errmsg("invalid and_then in %s", step->where),
				position == alternative ?
				errdetail("A savepoint is not its own alternative.") :
				errdetail("Step \"%s\" does not come after it.",
						  step->and_then),
				errhint("It is 'retry', to do the same steps again, or a step after the savepoint, which is done in their place."));
	if (owner[alternative] >= 0)
		ereport(ERROR,
				errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				errmsg("invalid and_then in %s", step->where),
				errdetail("Step \"%s\" is the alternative of savepoint \"%s\" already.",
						  step->and_then,
						  index->steps[owner[alternative]].name),
				errhint("Give each savepoint an alternative of its own."));
	owner[alternative] = position;
}

void
saga_stepgraph_check(const char *definition, const SagaStepInput *steps,
					 int n, bool linear)
{
	NameIndex	index;
	SagaRules	rules;
	int16	   *owner = palloc(n * sizeof(int16));
	int			nsavepoints = 0;

	check_pivots(steps, n);
	make_index(&index, (SagaStepInput *) steps, n);
	make_rules(steps, n, linear, &rules);
	memset(owner, -1, n * sizeof(int16));
	for (int i = 0; i < n; i++)
	{
		CHECK_FOR_INTERRUPTS();
		check_lock(&index, &rules, i);
		check_alternative(&index, &rules, i, owner);
		nsavepoints += steps[i].savepoint ? 1 : 0;
	}
	if (nsavepoints > MAX_SAVEPOINTS)
		ereport(ERROR,
				errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				errmsg("saga definition \"%s\" has %d savepoints",
					   definition, nsavepoints),
				errdetail("It must have at most %d.", MAX_SAVEPOINTS));
}
