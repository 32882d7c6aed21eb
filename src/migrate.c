/*
 * migrate.c
 *		Owns the move of a saga from one version of its definition to another:
 *		what has to be the same, and what is renumbered.
 *
 * A saga is known by the positions of its steps, and those are of one version.
 * To move it is to give each step that has left a trace the position that the
 * step of the same name has in the other version, provided that all that has
 * been done would have been done there likewise, so that the machine's rules
 * hold there as if the saga had never been of another version.  What has not
 * begun is the other version's matter altogether.
 *
 * Who asks (saga.migrate()) checks what is committed and sends a message.  The
 * executor that has the saga's row checks again and moves it, in a transaction
 * that does nothing else: the rows of steps, attempts and locks, then the
 * saga's own with its turn, so that whoever remembers the saga loads it again.
 * So there is no race with the steps of the saga: between asking and moving it
 * may do more, and then the move is refused, or carries that along.  Killed at
 * any line, all of it has happened or nothing.
 *
 * What others know of positions:
 * - Branches, whose rows and outcomes are about attempts that are out: as long
 *	 as there is one the saga is not moved.  (Outcomes that have come are taken
 *	 before, in another transaction.)
 * - Tasks of external and remote steps know their step by its name, and the
 *	 answer comes to that step wherever it stands: they stay out, or in work.
 * - Timers, signals and children are RUNNING operations without a row but the
 *	 step's own: they go on, with the time that was set for them.
 * - Children remember a position, but are found by their id: see kinds.c.
 *	 Their rows stay as they are, since only who has locked one may write it.
 * - Rows of saga.lock are written under the lock of their key, by whoever is
 *	 granted or gives back: so these are taken first, by announcing the saga.
 */
#include "postgres.h"

#include "nodes/pg_list.h"
#include "utils/acl.h"
#include "utils/builtins.h"

#include "catalog.h"
#include "json.h"
#include "locks.h"
#include "migrate.h"

/* A move that is looked at. */
typedef struct Move
{
	const Saga *saga;
	const SagaDefinition *target;
	int16	   *map;			/* of each step its position there, or -1 */
	uint8	   *traces;			/* of each step what there is: SAGA_TRACE_... */
	Saga	   *translated;
	List	   *problems;		/* of char *: "step ..., and ..." */
	bool		is_busy;		/* one of them is that it works just now */
} Move;


/* ---- what speaks against it ------------------------------------------------- */

static void
add_problem(Move *move, char *problem)
{
	move->problems = lappend(move->problems, problem);
}

static int
count_ops(const Saga *saga, int step, SagaOperation op, SagaOpStatus status)
{
	return saga->state.steps[step].count[op][status];
}

/* Has any element's operation been attempted, or is it out? */
static bool
has_begun(const Saga *saga, int step, SagaOperation operation)
{
	const SagaStepState *state = &saga->state.steps[step];

	for (int i = 0; i < state->nelements; i++)
	{
		const SagaOpState *op = &state->elements[i].op[operation];

		if (op->attempts > 0 || op->status == SAGA_OP_RUNNING ||
			op->status == SAGA_OP_SUCCEEDED)
			return true;
	}
	return false;
}

/* Has its action ended, or begun, or been passed over, in this round? */
static bool
is_passed(const Saga *saga, int step)
{
	const SagaStepState *state = &saga->state.steps[step];

	return state->nelements > 0 &&
		state->count[SAGA_OPERATION_ACTION][SAGA_OP_PENDING] < state->nelements;
}

/* What a step has done, as in "step "charge" has succeeded". */
static const char *
describe_step(const Move *move, int step)
{
	const Saga *saga = move->saga;
	static const struct
	{
		SagaOpStatus status;
		const char *text;
	}			texts[] = {
		{SAGA_OP_RUNNING, "has begun"},
		{SAGA_OP_SUCCEEDED, "has succeeded"},
		{SAGA_OP_WAITING, "has been attempted"},
		{SAGA_OP_FAILED, "has failed"},
		{SAGA_OP_SKIPPED, "was skipped"}
	};

	for (size_t i = 0; i < lengthof(texts); i++)
		if (count_ops(saga, step, SAGA_OPERATION_ACTION, texts[i].status) > 0)
			return texts[i].text;
	if ((move->traces[step] & SAGA_TRACE_OPERATION) == 0)
		return "holds a lock, or waits for one";
	for (int i = 0; i < saga->state.steps[step].nelements; i++)
		if (saga->ops[step][i][SAGA_OPERATION_ACTION].stored)
			return saga->state.steps[step].elements[i].op[SAGA_OPERATION_ACTION].signalled ?
				"has its signal" : "had begun";
	return "was done before the saga went back to a savepoint";
}

/* "step "charge" has succeeded, and <what>". */
static void
add_step_problem(Move *move, int step, const char *what)
{
	add_problem(move, psprintf("step \"%s\" %s, and %s",
							   move->saga->definition->steps[step].name,
							   describe_step(move, step), what));
}

static bool
same_text(const char *a, const char *b)
{
	return a == b || (a != NULL && b != NULL && strcmp(a, b) == 0);
}

/* Do both lead to the same value?  The first name may be that of a step in one
 * version, and a field of the input in the other. */
static bool
same_path(const Move *move, const SagaPath *here, const SagaPath *there)
{
	if (!same_text(here->text, there->text))
		return false;
	return here->text == NULL ||
		there->step == (here->step < 0 ? -1 : move->map[here->step]);
}

/* What the participant is told, or the function, here or at a server: NULL if
 * there is none. */
static const char *
called(const SagaStep *step, SagaOperation operation)
{
	return step->task[operation] != NULL ? step->task[operation] :
		step->function[operation];
}

/* The functions that were called, or are to be for what has begun; and tasks
 * likewise. */
static void
check_operations(Move *move, int from, int to)
{
	const SagaStep *here = &move->saga->definition->steps[from];
	const SagaStep *there = &move->target->steps[to];
	const char *another = here->kind == SAGA_KIND_EXTERNAL ? "another task" :
		"another function";

	for (int i = 0; i < SAGA_NOPERATION; i++)
	{
		SagaOperation op = (SagaOperation) i;

		if (!has_begun(move->saga, from, op) ||
			same_text(called(here, op), called(there, op)))
			continue;
		if (op != SAGA_OPERATION_ACTION)
			add_problem(move, psprintf("the %s of step \"%s\" has begun, and is %s there",
									   saga_operation_name(op), here->name,
									   called(there, op) == NULL ? "none" : another));
		else
			add_step_problem(move, from,
							 psprintf("its action is %s there", another));
	}
}

/* Who has had a task of it is asked for the others too, and what was done in a
 * database is undone there. */
static void
check_place(Move *move, int from, int to)
{
	const SagaStep *here = &move->saga->definition->steps[from];
	const SagaStep *there = &move->target->steps[to];
	bool		begun = false;

	for (int op = 0; op < SAGA_NOPERATION; op++)
		begun |= has_begun(move->saga, from, (SagaOperation) op);
	if (begun && !same_text(here->queue, there->queue))
		add_step_problem(move, from,
						 psprintf("its tasks are offered in queue \"%s\" there",
								  there->queue));
	if (begun && !same_text(here->server, there->server))
		add_step_problem(move, from, there->server == NULL ?
						 "its child is one of this database there" :
						 psprintf("it is done at server \"%s\" there",
								  there->server));
}

/* What has succeeded can still be undone and confirmed. */
static void
check_promises(Move *move, int from, int to)
{
	const Saga *saga = move->saga;
	const SagaStepRule *here = &saga->definition->rules.steps[from];
	const SagaStepRule *there = &move->target->rules.steps[to];

	if (count_ops(saga, from, SAGA_OPERATION_ACTION, SAGA_OP_SUCCEEDED) +
		count_ops(saga, from, SAGA_OPERATION_ACTION, SAGA_OP_RUNNING) == 0)
		return;
	if (here->has_compensation && !there->has_compensation &&
		saga->state.totals.npivots == 0)
		add_step_problem(move, from, "it has no compensation there");
	if (here->has_confirmation && !there->has_confirmation)
		add_step_problem(move, from, "it has no confirmation there");
}

/* Its name there, or NULL. */
static const char *
name_of_alternative(const SagaDefinition *definition, int step)
{
	int			alternative = definition->rules.steps[step].alternative;

	return alternative < 0 ? NULL : definition->steps[alternative].name;
}

static void
check_savepoint(Move *move, int from, int to)
{
	const Saga *saga = move->saga;
	const SagaStepRule *there = &move->target->rules.steps[to];
	int			used = saga->state.recoveries == NULL ? 0 :
		saga->state.recoveries[from];
	bool		is_goal = saga->state.backward && saga->state.goal == from;

	if (used == 0 && !is_goal)
		return;
	if (!there->savepoint)
		add_step_problem(move, from, "the saga has gone back to it: it is no savepoint there");
	else if (!same_text(name_of_alternative(saga->definition, from),
						name_of_alternative(move->target, to)))
		add_step_problem(move, from, "the saga has gone back to it: another step comes after it there");
	else if (there->recoveries < used + is_goal)
		add_problem(move, psprintf("the saga has gone forward from step \"%s\" %d times, and may %d times there",
								   saga->definition->steps[from].name, used + is_goal,
								   there->recoveries));
}

/* A step that has left something behind, and that is in both versions. */
static void
check_step(Move *move, int from, int to)
{
	const SagaStep *here = &move->saga->definition->steps[from];
	const SagaStep *there = &move->target->steps[to];
	const SagaStepRule *rule = &move->saga->definition->rules.steps[from];
	const SagaStepRule *rule_there = &move->target->rules.steps[to];

	if (here->kind != there->kind)
	{
		add_step_problem(move, from,
						 psprintf("it is of kind \"%s\" there",
								  saga_step_kind_name(there->kind)));
		return;
	}
	if (!same_path(move, &here->foreach, &there->foreach))
		add_step_problem(move, from, there->foreach.text == NULL ?
						 "it is no foreach step there" :
						 "it goes through another array there");
	if (!same_text(here->child, there->child) &&
		has_begun(move->saga, from, SAGA_OPERATION_ACTION))
		add_step_problem(move, from,
						 psprintf("its child is of definition \"%s\" there",
								  there->child));
	if (rule->pivot != rule_there->pivot && is_passed(move->saga, from))
		add_step_problem(move, from, rule_there->pivot ?
						 "it is a pivot there" : "it is no pivot there");
	if ((move->traces[from] & SAGA_TRACE_OPERATION) != 0 &&
		(rule->quorum != rule_there->quorum ||
		 rule->parallel != rule_there->parallel))
		add_step_problem(move, from, rule->quorum != rule_there->quorum ?
						 "its quorum is another one there" :
						 "another number of its elements runs at once there");
	if ((move->traces[from] & SAGA_TRACE_LOCK) != 0 &&
		(!same_path(move, &here->exclusive, &there->exclusive) ||
		 (here->concurrency > 0) != (there->concurrency > 0)))
		add_step_problem(move, from, "it needs another lock there");
	check_operations(move, from, to);
	check_place(move, from, to);
	check_promises(move, from, to);
	check_savepoint(move, from, to);
	if ((move->traces[from] & SAGA_TRACE_OPERATION) != 0 &&
		saga_machine_round(&move->saga->definition->rules, &move->saga->state,
						   from) !=
		saga_machine_round(&move->target->rules, &move->translated->state, to))
		add_step_problem(move, from, "other savepoints come before it there");
}

static void
check_steps(Move *move)
{
	const Saga *saga = move->saga;

	for (int step = 0; step < saga->state.nsteps; step++)
	{
		const SagaStep *here = &saga->definition->steps[step];

		for (int op = 0; op < SAGA_NOPERATION; op++)
		{
			if (here->kind != SAGA_KIND_LOCAL ||
				count_ops(saga, step, (SagaOperation) op, SAGA_OP_RUNNING) == 0)
				continue;
			add_problem(move, psprintf("the %s of step \"%s\" is in the hands of another worker",
									   saga_operation_name((SagaOperation) op), here->name));
			move->is_busy = true;
		}
		if (move->traces[step] == 0)
			continue;
		if (move->map[step] < 0)
			add_step_problem(move, step, "there is no such step there");
		else
			check_step(move, step, move->map[step]);
	}
}

/* What has begun comes after nothing there that has not been done. */
static void
check_order(Move *move)
{
	const Saga *saga = move->saga;
	const SagaRules *rules = &move->target->rules;

	for (int step = 0; step < saga->state.nsteps; step++)
	{
		const SagaStepRule *rule;

		if (move->map[step] < 0 || !is_passed(saga, step))
			continue;
		rule = &rules->steps[move->map[step]];
		for (int i = 0; i < rule->npreds; i++)
			if (!saga_machine_step_is_done(rules, &move->translated->state,
										   rule->preds[i]))
				add_step_problem(move, step,
								 psprintf("it comes after step \"%s\" there, which has not ended",
										  move->target->steps[rule->preds[i]].name));
	}
}

/* What steps there need and nothing provides. */
static void
check_input(Move *move)
{
	const SagaDefinition *target = move->target;
	JsonbContainer *input = &move->saga->input->root;

	for (int i = 0; i < target->nrequired; i++)
	{
		JsonbValue	value;

		if (getKeyJsonValueFromContainer(input, target->required[i],
										 strlen(target->required[i]),
										 &value) == NULL)
			add_problem(move, psprintf("the saga's input has no field \"%s\", which a step there needs",
									   target->required[i]));
	}
}

/* Fills the rest of what has "saga" and "target". */
static void
look_at_move(Move *move)
{
	const Saga *saga = move->saga;
	int			n = saga->state.nsteps;
	const char *wrong;

	move->map = palloc(n * sizeof(int16));
	move->traces = palloc0(n * sizeof(uint8));
	for (int step = 0; step < n; step++)
		move->map[step] =
			saga_definition_step(move->target, saga->definition->steps[step].name);
	saga_store_find_traces(saga, move->traces);
	move->translated = saga_store_translate(saga, move->target, move->map);
	saga_machine_loaded(&move->target->rules, &move->translated->state);
	check_steps(move);
	check_input(move);
	if (move->problems == NIL)
		check_order(move);
	if (move->problems != NIL)
		return;
	wrong = saga_machine_check(&move->target->rules, &move->translated->state);
	if (wrong != NULL)
		add_problem(move, psprintf("the saga's state cannot be there (%s)", wrong));
}


/* ---- asking ------------------------------------------------------------------ */

/* One sentence a line. */
static char *
problems_as_detail(const Move *move)
{
	StringInfoData text;
	ListCell   *cell;

	initStringInfo(&text);
	foreach(cell, move->problems)
	{
		char	   *problem = pstrdup(lfirst(cell));

		problem[0] = pg_toupper((unsigned char) problem[0]);
		appendStringInfo(&text, "%s%s.", text.len > 0 ? "\n" : "", problem);
	}
	return text.data;
}

static const SagaDefinition *
find_target(const Saga *saga, int version)
{
	const char *name = saga->definition->name;
	const SagaDefinition *target;

	if (version == 0)
		target = saga_catalog_newest(name);
	else
		target = saga_catalog_numbered(name, version);
	if (target == NULL && version == 0)
		ereport(ERROR,
				errcode(ERRCODE_UNDEFINED_OBJECT),
				errmsg("saga definition \"%s\" does not exist", name),
				errdetail("It was dropped; saga %lld goes on with version %d.",
						  (long long) saga->ref.id, saga->definition->version));
	if (target == NULL)
		ereport(ERROR,
				errcode(ERRCODE_UNDEFINED_OBJECT),
				errmsg("saga definition \"%s\" has no version %d", name,
					   version),
				errhint("View saga.definition_steps has the versions."));
	return target;
}

const SagaDefinition *
saga_migrate_check(const Saga *saga, int version)
{
	const SagaDefinition *target = find_target(saga, version);
	Move		move = {.saga = saga, .target = target};
	const char *why;

	if (!saga_catalog_may_run(target, saga->role, &why))
		ereport(ERROR,
				errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				errmsg("cannot migrate saga %lld to version %d of \"%s\"",
					   (long long) saga->ref.id, target->version, target->name),
				errdetail("%s", why));
	if (target->id == saga->definition_id)
		return target;
	look_at_move(&move);
	if (move.problems != NIL)
		ereport(ERROR,
				errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				errmsg("cannot migrate saga %lld to version %d of \"%s\"",
					   (long long) saga->ref.id, target->version, target->name),
				errdetail("%s", problems_as_detail(&move)),
				move.is_busy ? errhint("Try again when that has ended.") :
				errhint("The saga goes on with version %d. Define a version in which what it has done is the same.",
						saga->definition->version));
	return target;
}

Jsonb *
saga_migrate_write(int version)
{
	SagaJsonWriter writer = NULL;

	saga_json_begin_object(&writer);
	saga_json_put_int(&writer, "version", version);
	return saga_json_finish_object(&writer);
}


/* ---- acting ------------------------------------------------------------------ */

static bool
read_version(const SagaMessage *message, int *version)
{
	JsonbValue	value;
	int64		number;

	if (message->payload == NULL || !JB_ROOT_IS_OBJECT(message->payload) ||
		!saga_json_get(&message->payload->root, "version", &value) ||
		value.type != jbvNumeric)
		return false;
	number = saga_json_int(&value);
	*version = (int) number;
	return number > 0 && number <= PG_INT32_MAX;
}

static char *
problems_as_outcome(const Move *move)
{
	StringInfoData text;
	ListCell   *cell;

	initStringInfo(&text);
	foreach(cell, move->problems)
		appendStringInfo(&text, "%s%s", text.len > 0 ? "; " : "refused: ",
						 (char *) lfirst(cell));
	return text.data;
}

const char *
saga_migrate_apply(Saga *saga, const SagaMessage *message)
{
	Move		move = {.saga = saga};
	const char *why;
	int			version;

	Assert(saga->branch == NULL && saga->broken == NULL && !saga->ended);
	if (!read_version(message, &version))
		return "refused: it names no version";
	move.target = saga_catalog_numbered(saga->definition->name, version);
	if (move.target == NULL)
		return "refused: there is no such version";
	if (!saga_catalog_may_run(move.target, saga->role, &why))
		return psprintf("refused: %s", why);
	if (move.target->id == saga->definition_id)
		return "done";
	look_at_move(&move);
	if (move.problems != NIL)
		return problems_as_outcome(&move);
	if (saga_locks_in_use())
		saga_locks_announce(NULL, 0, &saga, 1);
	saga_store_move(saga, move.translated, move.map);
	return "done";
}
