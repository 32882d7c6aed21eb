/*
 * engine.c
 *		The one engine: loads sagas, asks the machine, does it, records it.
 *
 * A run takes up to SAGA_MAX_BATCH sagas of one role.  Each transaction of the
 * run locks those that have something to do, does what each has to do
 * (advance.c), operations in subtransactions of their own (call.c), and writes
 * what came of all of them at the end, in the top transaction; then the next
 * transaction goes on with those that have another step.
 *
 * How it stays right when killed at any line: an operation's effect and its
 * record commit together or not at all (P2).  Nothing that memory knows of a
 * saga counts unless the row, locked again, has the same turn.  After the
 * commit only hints are given to shared memory; the row's due_at makes the
 * sweep find whatever a lost hint stood for.
 *
 * How a saga does not harm its neighbours (P8): what fails rolls back its
 * subtransaction.  What cannot share a transaction (it waits for a lock, runs
 * longer than saga.batch_time, used temporary tables, wants another isolation
 * level ...) goes back to the ring to be run alone, uncounted.  When a commit
 * fails the batch is done again one saga at a time; alone, a failed commit is
 * that saga's attempt.
 */
#include "postgres.h"

#include "access/xact.h"
#include "commands/async.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "advance.h"
#include "alert.h"
#include "call.h"
#include "catalog.h"
#include "compat.h"
#include "engine.h"
#include "guc.h"
#include "locks.h"
#include "log.h"
#include "owner.h"
#include "qstate.h"
#include "record.h"
#include "server.h"
#include "store.h"
#include "tables.h"
#include "task.h"
#include "upkeep.h"

/* So many of one definition in what a scan finds are a backlog, */
#define BACKLOG			64

/* and it tells so many backlogs apart. */
#define MAX_BACKLOGS	8

/* A look beyond backlogs may take one part in so many of the time. */
#define BEYOND_SHARE	20

/* So many transactions a saga may have before others get their turn. */
#define MAX_ROUNDS		16

/* So often a transaction of one saga that met a conflict is done again. */
#define MAX_CONFLICTS	3


/* ---- a transaction --------------------------------------------------------- */

static void
begin_transaction(SagaRun *run, int isolation, bool in_batch)
{
	run->driver->begin();
	XactIsoLevel = isolation;
	XactReadOnly = false;
	XactDeferrable = false;
	saga_disable_transaction_timeout();
	run->isolation = isolation;
	run->in_batch = in_batch;
	run->stop = false;
	run->flush = false;
	run->force = false;
	run->answering = false;
	run->wishes = NIL;
	run->batch_end = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
												 saga_batch_time);
}

/* The transaction that is open needs not be flushed. */
void
saga_engine_commit_lazily(void)
{
	(void) set_config_option("synchronous_commit", "off", PGC_USERSET,
							 PGC_S_SESSION, GUC_ACTION_LOCAL, true, 0, false);
}

/*
 * The commits between local steps may be asynchronous if the role says so: no
 * later durable commit survives a crash without them.
 */
static void
commit_transaction(SagaRun *run)
{
	Assert(!saga_owner_is_current());
	if (run->force)
		ForceSyncCommit();
	else if (saga_local_commit == SAGA_LOCAL_COMMIT_ASYNC && !run->flush)
		saga_engine_commit_lazily();
	saga_call_reset();
	run->driver->commit();
	run->result->transactions++;
}

/* The operation that is stuck, with the number of its last attempt; false if it
 * is none of them. */
static bool
find_stuck(const Saga *saga, SagaTask *task)
{
	SagaTodo	todo;

	if (saga->broken != NULL)
		return false;
	saga_machine_next(&saga->definition->rules, &saga->state,
					  GetCurrentTimestamp(), &todo, task, 1);
	if (todo.step < 0 || todo.element < 0 ||
		todo.element >= saga->state.steps[todo.step].nelements)
		return false;
	task->step = todo.step;
	task->element = todo.element;
	task->operation = todo.operation;
	task->attempt = saga_record_op(saga, task)->attempts;
	return true;
}

/* What the operation that is stuck said last. */
static const char *
stuck_reason(const Saga *saga)
{
	const Jsonb *error = NULL;
	JsonbValue	value;
	SagaTask	task;

	if (saga->broken != NULL)
		return saga->broken;
	if (find_stuck(saga, &task))
		error = saga_record_row(saga, &task)->error;
	if (error != NULL && JB_ROOT_IS_OBJECT(error) &&
		getKeyJsonValueFromContainer(unconstify(JsonbContainer *, &error->root),
									 "message", strlen("message"),
									 &value) != NULL &&
		value.type == jbvString)
		return pnstrdup(value.val.string.val, value.val.string.len);
	return "an operation is out of attempts";
}

/* The sagas of the batch that may have something to give back; all of them
 * before it is known. */
static int
list_leaving(SagaMember **members, int n, bool all, Saga **leaving)
{
	int			nleaving = 0;

	for (int i = 0; i < n; i++)
	{
		Saga	   *saga = members[i]->saga;

		if (saga != NULL && saga->branch == NULL && !saga->ended &&
			saga->definition != NULL && (all || members[i]->leaves))
			leaving[nleaving++] = saga;
	}
	return nleaving;
}

/* Ask for what the batch wishes, and tell those who wished. */
static void
ask_and_answer(SagaRun *run, SagaMember **members, int n)
{
	Saga	   *leaving[SAGA_MAX_BATCH];
	int			nleaving = list_leaving(members, n, true, leaving);
	int			nwishes = list_length(run->wishes);
	SagaLockRequest *requests = palloc(nwishes * sizeof(SagaLockRequest));
	ListCell   *cell;

	foreach(cell, run->wishes)
		requests[foreach_current_index(cell)] =
			((SagaWish *) lfirst(cell))->request;
	saga_locks_announce(requests, nwishes, leaving, nleaving);
	saga_locks_request(requests, nwishes);
	run->answering = true;
	foreach(cell, run->wishes)
	{
		SagaWish   *wish = lfirst(cell);

		wish->request = requests[foreach_current_index(cell)];
		saga_advance_answer(wish);
	}
	for (int i = 0; i < n; i++)
		if (members[i]->saga != NULL)
			saga_advance_after_answers(run, members[i]);
}

/* What the sagas that leave hold goes to those who wait for it. */
static void
give_back_locks(SagaMember **members, int n, bool announced)
{
	Saga	   *leaving[SAGA_MAX_BATCH];
	int			nleaving = list_leaving(members, n, false, leaving);

	if (nleaving == 0 || !saga_locks_in_use())
		return;
	if (!announced)
		saga_locks_announce(NULL, 0, leaving, nleaving);
	saga_locks_give_back(leaving, nleaving);
}

/* Did a person have it try again? */
static bool
was_retried(const Saga *saga)
{
	ListCell   *cell;

	foreach(cell, saga->messages)
	{
		const SagaMessage *message = lfirst(cell);

		if (strcmp(message->kind, "retry") == 0 && message->outcome != NULL &&
			strcmp(message->outcome, "done") == 0)
			return true;
	}
	return false;
}

/* What somebody should see to, or need not any more.  A retry that has failed
 * in the transaction that took it was one, too. */
static void
note_conditions(SagaMember *member)
{
	const Saga *saga = member->saga;
	bool		was_stuck = member->status_before == SAGA_STATUS_STUCK;
	bool		is_stuck = saga->state.status == SAGA_STATUS_STUCK;

	member->got_stuck = false;
	if (saga->branch != NULL || saga->ended)
		return;
	if (was_stuck && is_stuck && saga->attempts != NIL && was_retried(saga))
		was_stuck = false;
	if (member->status_before == SAGA_STATUS_STUCK && !(was_stuck && is_stuck))
		saga_alert_saga_off(saga, SAGA_ALERT_STUCK);
	member->got_stuck = is_stuck && !was_stuck;
	if (member->got_stuck)
		saga_alert_saga_on(saga, SAGA_ALERT_STUCK, stuck_reason(saga));
	if (saga_status_is_final(saga->state.status) &&
		saga->state.deadline < GetCurrentTimestamp())
		saga_alert_saga_off(saga, SAGA_ALERT_OVERDUE);
}

/* All that is written, after the last operation of the transaction. */
static void
write_all(SagaRun *run, SagaMember **members, int n)
{
	Saga	   *sagas[SAGA_MAX_BATCH];
	bool		asked = run->wishes != NIL;

	if (asked)
		ask_and_answer(run, members, n);
	for (int i = 0; i < n; i++)
	{
		sagas[i] = members[i]->saga;
		if (sagas[i] == NULL)
			continue;
		saga_advance_finish(run, members[i]);
		note_conditions(members[i]);
	}
	for (int i = 0; i < n; i++)
		run->result->changed += sagas[i] != NULL && sagas[i]->changed;
	saga_store_save(sagas, n);
	if (run->isolation == XACT_READ_COMMITTED)
		give_back_locks(members, n, asked);
}

/*
 * Under a snapshot of its own the transaction could not see who waits for a
 * lock: so that is done in another one.  Should we die before, the sweep
 * finds what a saga that has ended still holds.
 */
static void
give_back_later(SagaRun *run, SagaMember **members, int n)
{
	Saga	   *leaving[SAGA_MAX_BATCH];

	if (run->isolation == XACT_READ_COMMITTED ||
		list_leaving(members, n, false, leaving) == 0)
		return;
	begin_transaction(run, XACT_READ_COMMITTED, false);
	give_back_locks(members, n, false);
	commit_transaction(run);
	MemoryContextSwitchTo(run->memory);
}

/* Who has begun to wait for a lock may have closed a circle.  Should we die
 * before we look, the sweep does. */
static void
break_circles(SagaRun *run, SagaMember **members, int n)
{
	int64		roots[SAGA_MAX_BATCH];
	int			nroots = 0;

	for (int i = 0; i < n; i++)
		if (members[i]->saga != NULL && members[i]->stands_in_line)
			roots[nroots++] = members[i]->saga->root_id;
	if (nroots == 0)
		return;
	begin_transaction(run, XACT_READ_COMMITTED, false);
	(void) saga_locks_break_circles(roots, nroots);
	commit_transaction(run);
	MemoryContextSwitchTo(run->memory);
}

static void
log_stuck(const Saga *saga)
{
	SagaTask	task;
	bool		found = find_stuck(saga, &task);

	ereport(LOG,
			errmsg("saga %lld is stuck: %s", (long long) saga->ref.id,
				   stuck_reason(saga)),
			errhint("Use saga.retry(), saga.skip() or saga.abandon(); saga.explain() tells more."),
			errcontext("%s", saga_log_describe(saga, found ? &task : NULL)));
}

static void
log_overdue(const Saga *saga)
{
	ereport(LOG,
			errmsg("saga %lld has passed its deadline", (long long) saga->ref.id),
			errdetail("What was done for it is compensated."),
			errcontext("%s", saga_log_describe(saga, NULL)));
}

/* "saga" is the one that it was about; NULL if that is not to be had. */
static void
log_lost(SagaRun *run, const Saga *saga)
{
	const SagaOperationRef *what = &run->lost->what;
	SagaTask	task = {.step = what->step,.element = what->element,
	.operation = what->operation,.attempt = what->attempt};

	run->told_lost = true;
	ereport(LOG,
			errmsg("a process ended during saga %lld",
				   (long long) what->saga_id),
			errhint("Look for a crash or a termination before this line."),
			errcontext("%s", saga == NULL ? saga_log_describe_ref(what) :
					   saga_log_describe(saga, &task)));
}

/* What an operator acts on, now that it is committed. */
static void
log_events(SagaRun *run, SagaMember **members, int n)
{
	for (int i = 0; i < n; i++)
	{
		const Saga *saga = members[i]->saga;

		if (saga == NULL)
			continue;
		if (run->lost != NULL)
			log_lost(run, saga);
		if (members[i]->overdue)
			log_overdue(saga);
		if (members[i]->got_stuck)
			log_stuck(saga);
	}
}

/* Hints to shared memory: who waits for these, when to look again. */
static void
tell_others(SagaRun *run, SagaMember **members, int n)
{
	int64		finished[SAGA_MAX_BATCH];
	int			nfinished = 0;
	bool		stuck = false;

	for (int i = 0; i < n; i++)
	{
		Saga	   *saga = members[i]->saga;

		if (saga == NULL || saga->branch != NULL || saga->ended)
			continue;
		if (saga_status_is_final(saga->state.status))
			finished[nfinished++] = saga->ref.id;
		else if (!members[i]->active && saga->due_at != DT_NOEND)
			saga_due_at(saga->role, saga->due_at);
		stuck |= members[i]->got_stuck;
	}
	run->result->finished += nfinished;
	if (nfinished > 0)
		saga_waiters_notify(finished, nfinished);
	if (stuck)
		saga_wake_coordinator();
}

static void
run_transaction(SagaRun *run, SagaMember **members, int n)
{
	Saga	   *sagas[SAGA_MAX_BATCH];
	SagaRef		refs[SAGA_MAX_BATCH];
	bool		put_off[SAGA_MAX_BATCH] = {false};

	begin_transaction(run, members[0]->isolation, n > 1);
	MemoryContextSwitchTo(run->memory);
	for (int i = 0; i < n; i++)
	{
		sagas[i] = members[i]->saga;
		refs[i] = members[i]->ref;
	}
	saga_store_lock(sagas, refs, n, run->role, put_off);
	for (int i = 0; i < n; i++)
	{
		SagaMember *member = members[i];

		member->saga = sagas[i];
		member->noperations = member->nquiet = 0;
		member->has_called = member->asks = false;
		member->leaves = member->stands_in_line = false;
		member->overdue = false;
		if (member->saga != NULL)
		{
			/* retention may have moved it */
			if (member->ref.slot != SAGA_BRANCH_SLOT)
				member->ref.slot = member->saga->ref.slot;
			saga_advance(run, member);
		}
		else
			member->active = put_off[i];
	}
	write_all(run, members, n);
	commit_transaction(run);
	MemoryContextSwitchTo(run->memory);
	tell_others(run, members, n);
	log_events(run, members, n);
	give_back_later(run, members, n);
	break_circles(run, members, n);
}

/* Forget what is known of sagas whose transaction was rolled back. */
static void
forget(SagaMember **members, int n)
{
	for (int i = 0; i < n; i++)
	{
		members[i]->failed = members[i]->saga;
		members[i]->saga = NULL;
		members[i]->active = true;
		members[i]->alone = false;
		members[i]->lock = NULL;
		members[i]->asks_again = false;
	}
}

/*
 * Run a transaction; an error comes back as data, with the transaction rolled
 * back, NULL if there was none.
 */
static ErrorData *
try_transaction(SagaRun *run, SagaMember **members, int n)
{
	ErrorData  *volatile error = NULL;

	PG_TRY();
	{
		run_transaction(run, members, n);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(run->memory);
		error = CopyErrorData();
		FlushErrorState();
		saga_executor_doing(NULL);
		saga_owner_abandon();
		saga_call_reset();
		run->driver->abort();
		MemoryContextSwitchTo(run->memory);
		forget(members, n);
	}
	PG_END_TRY();
	return error;
}

/* An error that is not about the saga at hand: the run is over. */
static bool
ends_the_run(const ErrorData *error)
{
	switch (ERRCODE_TO_CATEGORY(error->sqlerrcode))
	{
		case ERRCODE_INSUFFICIENT_RESOURCES:
		case ERRCODE_OPERATOR_INTERVENTION:
			return true;
		default:
			return error->sqlerrcode == ERRCODE_UNDEFINED_OBJECT ||
				error->sqlerrcode == ERRCODE_UNDEFINED_TABLE;
	}
}

/* What the transaction that failed was about, as far as is known. */
static char *
describe_failed(const SagaMember *member)
{
	const SagaOperationRef *what = &member->operation;
	SagaTask	task = {.step = what->step,.element = what->element,
	.operation = what->operation,.attempt = what->attempt};

	if (member->failed == NULL)
		return psprintf("saga=%lld", (long long) member->ref.id);
	return saga_log_describe(member->failed,
							 member->noperations > 0 ? &task : NULL);
}

/* Nothing was called, and yet it failed: leave this saga, its row stays due,
 * and go on with the others. */
static void
leave_alone(SagaRun *run, SagaMember *member, ErrorData *error)
{
	bool		in_foreground = !run->driver->worker && OidIsValid(run->role);

	if (ends_the_run(error))
		ReThrowError(error);
	ereport(in_foreground ? WARNING : LOG,
			errcode(error->sqlerrcode),
			errmsg("could not advance saga %lld: %s",
				   (long long) member->ref.id, error->message),
			error->detail ? errdetail_internal("%s", error->detail) : 0,
			errcontext("%s", describe_failed(member)));
	member->active = false;
}

/*
 * One saga, alone: an error after its operation was called is a failure of
 * that operation, recorded in a transaction of its own.  A conflict with
 * others (class 40) is first tried again, uncounted.
 */
static void
run_one(SagaRun *run, SagaMember *member)
{
	ErrorData  *error;
	SagaError	commit_error;

	for (int conflicts = 0;; conflicts++)
	{
		member->noperations = 0;
		error = try_transaction(run, &member, 1);
		if (error == NULL)
			return;
		if (member->noperations > 1)
		{
			/* which of them it was is seen when each commits alone */
			member->single = true;
			continue;
		}
		if (conflicts >= MAX_CONFLICTS ||
			ERRCODE_TO_CATEGORY(error->sqlerrcode) != ERRCODE_TRANSACTION_ROLLBACK)
			break;
	}
	if (member->noperations == 0 || !OidIsValid(run->role))
	{
		leave_alone(run, member, error);
		return;
	}
	commit_error = saga_record_make_error(error->sqlerrcode, error->message, error->detail);
	commit_error.hint = error->hint;
	commit_error.context = error->context;
	run->commit_error = &commit_error;
	member->isolation = XACT_READ_COMMITTED;
	error = try_transaction(run, &member, 1);
	run->commit_error = NULL;
	if (error != NULL)
		leave_alone(run, member, error);
}

static bool
may_go_on(const SagaRun *run)
{
	return run->driver->goes_on == NULL || run->driver->goes_on();
}

static void
run_group(SagaRun *run, SagaMember **members, int n)
{
	ErrorData  *error;

	if (n == 1)
	{
		run_one(run, members[0]);
		return;
	}
	error = try_transaction(run, members, n);
	if (error == NULL)
		return;
	ereport(DEBUG1,
			errmsg("a batch of %d sagas is done again one at a time: %s",
				   n, error->message));
	FreeErrorData(error);
	for (int i = 0; i < n && may_go_on(run); i++)
		run_one(run, members[i]);
}


/* ---- a run ------------------------------------------------------------------ */

/* Give a saga back: it is final, it waits, or somebody else has it.  When it
 * was woken meanwhile it is looked at again. */
static void
give_back(SagaMember *member)
{
	const Saga *saga = member->saga;

	if (saga_executor_release(member->ref.id))
		member->active = true;
	/* it fell due while we still had it, when who looks for such passes over it */
	else if (saga != NULL && saga->branch == NULL && !saga->ended &&
			 !saga_status_is_final(saga->state.status) &&
			 saga->due_at <= GetCurrentTimestamp())
		saga_due_at(saga->role, saga->due_at);
}

/* Give back one that has more to do, for any worker of the role. */
static void
hand_on(SagaRun *run, SagaMember *member)
{
	SagaRef		ref = member->ref;

	ref.alone = member->alone;
	if (member->saga != NULL)
	{
		ref.suspect = member->saga->suspect;
		ref.definition = member->saga->definition_id;
	}
	member->active = false;
	while (saga_executor_release(member->ref.id))
		;
	(void) saga_ring_put(run->role, &ref, 1);
}

/* The members that can share the next transaction. */
static int
choose_group(const SagaRun *run, SagaMember **group)
{
	int			n = 0;

	for (int i = 0; i < run->nmembers; i++)
	{
		SagaMember *member = &run->members[i];

		if (!member->active)
			continue;
		if (member->alone || member->isolation != XACT_READ_COMMITTED)
		{
			if (n == 0)
			{
				group[0] = member;
				return 1;
			}
			continue;
		}
		group[n++] = member;
	}
	return n;
}

static void
run_rounds(SagaRun *run)
{
	SagaMember *group[SAGA_MAX_BATCH];
	int			rounds = 0;
	int			n;

	while (may_go_on(run) && (n = choose_group(run, group)) > 0)
	{
		CHECK_FOR_INTERRUPTS();
		run_group(run, group, n);
		if (run->soiled && run->driver->worker)
		{
			/* before the next saga's step finds it */
			run->soiled = false;
			saga_call_clean_session();
			MemoryContextSwitchTo(run->memory);
		}
		for (int i = 0; i < n; i++)
		{
			if (!group[i]->active)
				give_back(group[i]);
			else if (run->driver->worker &&
					 (group[i]->misplaced || (group[i]->alone && n > 1)))
				hand_on(run, group[i]);
		}
		if (run->interrupted)
			ereport(ERROR,
					errcode(ERRCODE_QUERY_CANCELED),
					errmsg(run->out_of_time ?
						   "canceling statement due to statement timeout" :
						   "canceling statement due to user request"));
		if (++rounds < MAX_ROUNDS || !run->driver->worker)
			continue;
		for (int i = 0; i < run->nmembers; i++)
			if (run->members[i].active)
				hand_on(run, &run->members[i]);
	}
}

static void
start_run(SagaRun *run, const SagaDriver *driver, Oid role, const SagaRef *refs,
		  int n, SagaRunResult *result)
{
	memset(run, 0, sizeof(SagaRun));
	run->driver = driver;
	run->result = result;
	run->role = role;
	run->memory = AllocSetContextCreate(TopMemoryContext, "saga batch",
										ALLOCSET_DEFAULT_SIZES);
	run->nmembers = n;
	run->members = MemoryContextAllocZero(run->memory, n * sizeof(SagaMember));
	for (int i = 0; i < n; i++)
	{
		run->members[i].ref = refs[i];
		run->members[i].active = true;
		run->members[i].isolation = XACT_READ_COMMITTED;
	}
	saga_catalog_forget_old();
	saga_catalog_use(true);
}

static void
end_run(SagaRun *run)
{
	saga_catalog_use(false);
	MemoryContextDelete(run->memory);
}

void
saga_engine_run(const SagaDriver *driver, SagaRef *refs, int n,
				SagaRunResult *result)
{
	MemoryContext caller = CurrentMemoryContext;
	SagaRun		run;

	Assert(n > 0 && n <= SAGA_MAX_BATCH);
	start_run(&run, driver, GetUserId(), refs, n, result);
	PG_TRY();
	{
		run_rounds(&run);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(caller);
		saga_executor_abandon();
		end_run(&run);
		PG_RE_THROW();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(caller);
	saga_executor_release_all();
	end_run(&run);
	if (driver->worker)
		saga_call_clean_session();
}


/* ---- looking ------------------------------------------------------------------ */

static SagaDuePosition due_position = {DT_NOBEGIN, 0};
static int64 message_position = 0;	/* id of a saga; 0 = from the start */
static int64 branch_position = 0;	/* likewise of a branch */

void
saga_engine_find_from_start(void)
{
	due_position.due_at = DT_NOBEGIN;
	due_position.id = 0;
	message_position = 0;
	branch_position = 0;
}

/* Of the "more" behind the first n, keep those that are not among these. */
static int
add_new(SagaRef *refs, int n, int more)
{
	int			found = n;

	for (int i = n; i < n + more; i++)
	{
		bool		known = false;

		for (int k = 0; k < n && !known; k++)
			known = refs[k].id == refs[i].id;
		if (!known)
			refs[found++] = refs[i];
	}
	return found;
}

/* The definitions that have many of these; returns how many. */
static int
list_backlogs(const SagaRef *refs, int n, int32 *definitions)
{
	int			found = 0;

	for (int i = 0; i < n && found < MAX_BACKLOGS; i++)
	{
		int			count = 1;
		bool		known = false;

		for (int k = 0; k < found && !known; k++)
			known = definitions[k] == refs[i].definition;
		for (int k = i + 1; k < n && !known; k++)
			count += refs[k].definition == refs[i].definition;
		if (!known && count >= BACKLOG)
			definitions[found++] = refs[i].definition;
	}
	return found;
}

/*
 * The scan goes by time, so a retry or a timer would wait for all of a backlog
 * of another definition.  Look for some behind that.  The index does not know
 * definitions, so all that is due has to be read: a part at a time, with pauses
 * between them.  Every other part is that at the end, where what has just
 * fallen due is found.  Known limit: what is in the midst of a backlog of
 * hundreds of thousands, because as much was begun after it fell due, waits
 * for some seconds.
 */
static int
find_beyond(const SagaRef *found, int n, SagaRef *refs)
{
	static SagaDuePosition goes_on = {DT_NOBEGIN, 0};
	static bool at_end = false;
	static TimestampTz not_before = 0;
	int32		backlogs[MAX_BACKLOGS];
	int			nbacklogs = list_backlogs(found, n, backlogs);
	TimestampTz start = GetCurrentTimestamp();
	TimestampTz end;
	SagaDuePosition before = {start, PG_INT64_MAX};

	if (nbacklogs == 0 || start < not_before)
		return 0;
	at_end = !at_end || goes_on.due_at == DT_NOBEGIN;
	if (!at_end)
		before = goes_on;
	n = saga_store_find_due_of_others(&due_position, &before, backlogs,
									  nbacklogs, refs, SAGA_SCAN_BEYOND);
	if (!at_end || goes_on.due_at == DT_NOBEGIN)
		goes_on = before;
	end = GetCurrentTimestamp();
	not_before = end + BEYOND_SHARE * Max(end - start, 1000);
	return n;
}

int
saga_engine_find_due(const SagaDriver *driver, SagaRef *refs, int max,
					 bool *complete, TimestampTz *next_due)
{
	int			n;

	driver->begin();
	n = saga_store_find_due(&due_position, refs, max, complete, next_due);
	if (driver->worker && !*complete)
		n += find_beyond(refs, n, refs + n);
	if (*complete && n < max)
	{
		int			more = saga_store_find_messages(GetUserId(),
													message_position,
													refs + n, max - n);

		*complete = more < max - n;
		message_position = *complete ? 0 : refs[max - 1].id;
		n = add_new(refs, n, more);
	}
	if (*complete && n < max)
	{
		int			more = saga_store_find_answered(GetUserId(),
														refs + n, max - n);

		*complete = more < max - n;
		n = add_new(refs, n, more);
	}
	if (*complete && n < max)
	{
		int			more = saga_store_find_role_branches(GetUserId(),
														 branch_position,
														 refs + n, max - n);

		*complete = more < max - n;
		branch_position = *complete ? 0 : refs[max - 1].id;
		n += more;
	}
	driver->commit();
	return n;
}

/* For the sweep's callback, which has no argument of its own. */
static TimestampTz sweep_next_due;
static Oid *sweep_roles;		/* those with something to do */
static int	sweep_nroles;
static int	sweep_max_roles;

static void
note_role(Oid role, bool due, bool message, TimestampTz next_due)
{
	if (due || message)
		saga_pool_want(role);
	if ((due || message) && sweep_nroles < sweep_max_roles)
		sweep_roles[sweep_nroles++] = role;
	if (next_due != DT_NOEND)
		saga_pool_want_at(role, next_due);
	if (next_due < sweep_next_due)
		sweep_next_due = next_due;
}

TimestampTz
saga_engine_sweep(const SagaDriver *driver, bool *unfinished, bool *tasks)
{
	sweep_next_due = DT_NOEND;
	sweep_max_roles = 0;
	driver->begin();
	*tasks = !saga_tables_is_empty("task");
	*unfinished = saga_store_look(note_role);
	saga_locks_regrant();
	driver->commit();
	return sweep_next_due;
}

int
saga_engine_wake_due(const SagaDriver *driver, Oid *roles, int max)
{
	sweep_roles = roles;
	sweep_nroles = 0;
	sweep_max_roles = max;
	driver->begin();
	(void) saga_store_look(note_role);
	saga_locks_regrant();
	driver->commit();
	return sweep_nroles;
}

/* Change sagas without calling anything: the coordinator's way. */
static void
change_quietly(const SagaDriver *driver, const SagaRef *refs, int n,
			   const SagaLost *lost)
{
	MemoryContext caller = CurrentMemoryContext;
	SagaRunResult result = {0};
	SagaRun		run;

	start_run(&run, driver, InvalidOid, refs, n, &result);
	PG_TRY();
	{
		for (int i = 0; i < n; i++)
		{
			run.lost = lost;
			run_one(&run, &run.members[i]);
			if (lost != NULL && !run.told_lost)
				log_lost(&run, NULL);
		}
	}
	PG_FINALLY();
	{
		MemoryContextSwitchTo(caller);
		end_run(&run);
	}
	PG_END_TRY();
}

void
saga_engine_record_lost(const SagaDriver *driver, const SagaLost *lost)
{
	SagaRef		ref = {.id = lost->what.saga_id, .slot = lost->what.slot};

	if (lost->what.branch != 0)
	{
		ref.id = lost->what.branch;
		ref.slot = SAGA_BRANCH_SLOT;
	}

	change_quietly(driver, &ref, 1, lost);
}

void
saga_engine_apply_messages(const SagaDriver *driver, Oid role)
{
	SagaRef		refs[SAGA_MAX_BATCH];
	int64		after = 0;
	int			n;

	do
	{
		CHECK_FOR_INTERRUPTS();
		driver->begin();
		n = saga_store_find_messages(role, after, refs, SAGA_MAX_BATCH);
		driver->commit();
		if (n > 0)
		{
			after = refs[n - 1].id;
			change_quietly(driver, refs, n, NULL);
		}
	} while (n == SAGA_MAX_BATCH);
}

void
saga_engine_send_alerts(const SagaDriver *driver)
{
	bool		all = false;

	while (!all)
	{
		CHECK_FOR_INTERRUPTS();
		driver->begin();
		all = saga_alert_send();
		driver->commit();
	}
}

TimestampTz
saga_engine_watch(const SagaDriver *driver)
{
	TimestampTz next;

	driver->begin();
	next = saga_alert_watch();
	driver->commit();
	return next;
}


/* ---- tasks -------------------------------------------------------------------- */

/* The same queue may be announced twice: that is one notification. */
static void
notify_participants(const char *queue)
{
	char		channel[NAMEDATALEN];

	snprintf(channel, sizeof(channel), "saga_%s", queue);
	Async_Notify(channel, NULL);
}

void
saga_engine_announce(const SagaDriver *driver)
{
	char		queue[SAGA_MAX_QUEUE_NAME + 1];

	if (!saga_qstate_next_announcement(queue))
		return;
	driver->begin();
	/* it changes nothing, and somebody waits for it */
	saga_engine_commit_lazily();
	do
		notify_participants(queue);
	while (saga_qstate_next_announcement(queue));
	driver->commit();
}

void
saga_engine_look_for_tasks(const SagaDriver *driver)
{
	char		queue[SAGA_MAX_QUEUE_NAME + 1];

	driver->begin();
	saga_upkeep_announce_ready();
	while (saga_qstate_next_unplaced(queue))
		notify_participants(queue);
	driver->commit();
}

void
saga_engine_count_sagas(const SagaDriver *driver)
{
	driver->begin();
	saga_store_count_unfinished();
	driver->commit();
}

void
saga_engine_take_marks(const SagaDriver *driver)
{
	driver->begin();
	saga_server_take_marks();
	driver->commit();
}

TimestampTz
saga_engine_expire_leases(const SagaDriver *driver,
						  TimestampTz answered_before, int64 *ended)
{
	TimestampTz next;

	driver->begin();
	next = saga_upkeep_end_leases(answered_before, ended);
	driver->commit();
	return next;
}

int64
saga_engine_purge_tasks(const SagaDriver *driver)
{
	int64		n = -1;

	driver->begin();
	if (!saga_tables_is_empty("task"))
		n = saga_upkeep_purge();
	driver->commit();
	return n;
}
