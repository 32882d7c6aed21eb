/*
 * follow.c
 *		Owns what the courier knows of child sagas in other databases.
 *
 * A task of a child step is a call like others (saga.participate_child()), which
 * begins the child, asks it to go back, or lets it complete.  That it was made
 * is no answer yet: then the task is kept, with a lease that does not end, and
 * the child followed: one call for all children behind a route waits over there
 * until one of them has something to report, and returns at once then.  A report
 * becomes the answer of the task; when that is committed it is acknowledged with
 * the next call, and goes away there.
 *
 * A report that nobody waits for is acknowledged at once.  That loses nothing:
 * whoever asks a child for something that it has done already is told again.  So
 * a new courier, which has forgotten all of this, asks for every child again; and
 * so does one that hears that the other database has lost something (it was
 * restored, or a standby that lagged behind took over).
 *
 * Who waits is found by the token of its saga, the step, the element and the
 * round, which a report names as the call did.  It also names the attempt of the
 * action: another attempt may have another child.
 */
#include "postgres.h"

#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "child.h"
#include "errcodes.h"
#include "follow.h"
#include "json.h"
#include "retry.h"
#include "tables.h"

/* So long a call waits for reports; it is shorter where the role's
 * statement_timeout there is. */
#define LONGEST_POLL	(60 * USECS_PER_SEC)
#define SHORTEST_POLL	USECS_PER_SEC

/* Beyond that it has so long. */
#define POLL_GRACE		(10 * USECS_PER_SEC)

/* After a failure that says nothing about the connection; after an answer that
 * could not be written. */
#define FAILURE_PAUSE	(10 * USECS_PER_SEC)
#define WRITE_PAUSE		USECS_PER_SEC

/* uuid, step, element, round */
#define KEY_SIZE		160

/* Somebody waits for the child of an element of a step. */
typedef struct Followed
{
	char		key[KEY_SIZE];
	int64		task;
	pg_uuid_t	lease_token;
	TimestampTz lease_until;
	SagaOperation operation;
	int			attempt;
	bool		asked;			/* the call has not been answered */
	bool		reported;		/* its answer is being written */
} Followed;

struct SagaFollow
{
	SagaRoute  *route;
	void	   *owner;
	MemoryContext memory;
	HTAB	   *followed;
	char		coordinator[UUID_LEN * 2 + 5];	/* of this database */
	char		history[80];	/* of the other one, as it names it; "" = not known */
	bool		has_lost;
	bool		in_flight;		/* a call waits for reports */
	bool		has_news;		/* since the last look whether to send one */
	int			nwriting;		/* reports whose answers are being written */
	int64	   *taken;			/* reports to be acknowledged, ... */
	int			ntaken;
	int			nsent;			/* ... of which so many are just being */
	int			taken_size;
	int64		poll;
	TimestampTz not_before;		/* the next call */
	TimestampTz looked_at;		/* for those whose lease is over */
	bool		in_trouble;		/* it was logged */
};

SagaFollow *
saga_follow_open(SagaRoute *route, void *owner, MemoryContext parent)
{
	MemoryContext memory = AllocSetContextCreate(parent, "saga follow",
												 ALLOCSET_SMALL_SIZES);
	SagaFollow *follow = MemoryContextAllocZero(memory, sizeof(SagaFollow));
	HASHCTL		control = {0};

	follow->route = route;
	follow->owner = owner;
	follow->memory = memory;
	follow->poll = LONGEST_POLL;
	control.keysize = KEY_SIZE;
	control.entrysize = sizeof(Followed);
	control.hcxt = memory;
	follow->followed = hash_create("saga children that are followed", 64,
								   &control,
								   HASH_ELEM | HASH_STRINGS | HASH_CONTEXT);
	return follow;
}

static void
make_key(char *key, const char *token, const char *step, const char *element,
		 const char *round)
{
	snprintf(key, KEY_SIZE, "%s/%s/%s/%s", token, element, round, step);
}

/* The call that brings a report has the whole key in place of the saga. */
static void
key_of_call(const SagaCall *call, char *key)
{
	if (call->kind == SAGA_CALL_REPORT)
		strlcpy(key, call->params[SAGA_PARAM_SAGA], KEY_SIZE);
	else
		make_key(key, call->params[SAGA_PARAM_SAGA],
				 call->params[SAGA_PARAM_STEP],
				 call->params[SAGA_PARAM_ELEMENT],
				 call->params[SAGA_PARAM_ROUND]);
}

static Followed *
find(const SagaFollow *follow, const char *key)
{
	return hash_search(follow->followed, key, HASH_FIND, NULL);
}

/* The one that this call, or report, is about; NULL if nobody waits for it. */
static Followed *
find_task(const SagaFollow *follow, const SagaCall *call)
{
	Followed   *followed;
	char		key[KEY_SIZE];

	key_of_call(call, key);
	followed = find(follow, key);
	return followed != NULL && followed->task == call->task ? followed : NULL;
}

static void
stop(SagaFollow *follow, Followed *followed)
{
	(void) hash_search(follow->followed, followed->key, HASH_REMOVE, NULL);
}


/* ---- calls ------------------------------------------------------------------ */

/* Its saga has ended. */
static void
stop_saga(SagaFollow *follow, const char *token)
{
	size_t		length = strlen(token);
	HASH_SEQ_STATUS scan;
	Followed   *followed;

	hash_seq_init(&scan, follow->followed);
	while ((followed = hash_seq_search(&scan)) != NULL)
		if (strncmp(followed->key, token, length) == 0 && !followed->reported)
			stop(follow, followed);
}

void
saga_follow_expect(SagaFollow *follow, SagaCall *call)
{
	Followed   *followed;
	char		key[KEY_SIZE];

	strlcpy(follow->coordinator, call->params[SAGA_PARAM_COORDINATOR],
			sizeof(follow->coordinator));
	call->expected = true;
	if (call->aside)
	{
		if (call->operation == SAGA_OPERATION_CONFIRMATION)
			stop_saga(follow, call->params[SAGA_PARAM_SAGA]);
		return;
	}
	key_of_call(call, key);
	followed = hash_search(follow->followed, key, HASH_ENTER, NULL);
	followed->task = call->task;
	followed->lease_token = call->lease_token;
	followed->lease_until = call->lease_until;
	followed->operation = call->operation;
	followed->attempt = call->attempt;
	followed->asked = true;
	followed->reported = false;
}

/* Might it succeed another time? */
static bool
may_pass(const SagaOutcome *outcome)
{
	static const SagaRetryPolicy none = {0};

	return outcome->kind != SAGA_OUTCOME_FAILED ||
		(!outcome->is_final &&
		 saga_retry_is_passing(&none, outcome->error.sqlstate,
							   outcome->is_passing || outcome->unknown));
}

/* A task that nobody waits for: it is tried as often as it takes. */
static void
settle_aside(SagaFollow *follow, const SagaCall *call,
			 SagaTaskRequest *request)
{
	const SagaOutcome *outcome = &call->outcome;

	request->act = SAGA_TASK_ANSWER;
	request->outcome = outcome;
	if (!call->release && outcome->kind == SAGA_OUTCOME_SUCCEEDED)
		return;
	/* what was never sent waits for other settings */
	if (call->release || !call->expected || may_pass(outcome))
		request->act = SAGA_TASK_RELEASE;
	else
		ereport(LOG,
				errmsg("server \"%s\" could not be told of child sagas that are not needed any more: %s",
					   saga_route_server(follow->route),
					   outcome->error.message),
				errdetail("They are of step \"%s\".",
						  call->params[SAGA_PARAM_STEP]),
				errcontext("%s", saga_route_describe(follow->route)));
}

/* Is the extension not there, or not for this role? */
static bool
lacks_extension(const SagaError *error)
{
	return strcmp(error->sqlstate, "3F000") == 0 ||
		strcmp(error->sqlstate, "42883") == 0;
}

static void
settle_failure(SagaCall *call, SagaTaskRequest *request)
{
	SagaOutcome *outcome = &call->outcome;

	if (outcome->kind == SAGA_OUTCOME_FAILED && lacks_extension(&outcome->error))
	{
		outcome->error.detail = outcome->error.message;
		outcome->error.message = "the server has no extension \"saga\" that could begin a child saga";
		outcome->error.hint = "CREATE EXTENSION saga there, and call saga.grant_remote() for the user of the mapping.";
		outcome->is_final = true;
	}
	/* one that was cancelled, and is never to be begun */
	request->gives_up = call->operation == SAGA_OPERATION_ACTION &&
		strcmp(outcome->error.sqlstate,
			   unpack_sql_state(ERRCODE_SAGA_VOID)) == 0;
	request->act = SAGA_TASK_ANSWER;
	request->outcome = outcome;
}

/* Each answer says which history that database has. */
static void
note_history(SagaFollow *follow, const char *history)
{
	if (history == NULL)
		return;
	if (follow->history[0] != '\0' &&
		strncmp(follow->history, history, sizeof(follow->history) - 1) != 0)
		follow->has_lost = true;
	strlcpy(follow->history, history, sizeof(follow->history));
}

static Jsonb *
make_progress(JsonbContainer *result, MemoryContext memory)
{
	MemoryContext old = MemoryContextSwitchTo(memory);
	SagaJsonWriter writer = NULL;
	JsonbValue	id;
	Jsonb	   *progress;

	saga_json_begin_object(&writer);
	if (saga_json_get(result, "saga_id", &id) && id.type == jbvNumeric)
		saga_json_put_jsonb(&writer, "saga_id", JsonbValueToJsonb(&id));
	progress = saga_json_finish_object(&writer);
	MemoryContextSwitchTo(old);
	return progress;
}

bool
saga_follow_settle(SagaFollow *follow, SagaCall *call, Jsonb *result,
				   SagaTaskRequest *request)
{
	Followed   *followed;

	if (call->aside)
	{
		settle_aside(follow, call, request);
		return true;
	}
	followed = find_task(follow, call);
	if (call->expected && (followed == NULL || followed->reported))
		return false;
	if (call->release)
		request->act = SAGA_TASK_RELEASE;
	else if (call->outcome.kind != SAGA_OUTCOME_SUCCEEDED)
		settle_failure(call, request);
	else if (result == NULL || !JB_ROOT_IS_OBJECT(result))
	{
		/* there is no child, so there is nothing to compensate */
		request->act = SAGA_TASK_ANSWER;
		request->outcome = &call->outcome;
		call->outcome.result = NULL;
	}
	else
	{
		JsonbValue	history;

		if (saga_json_get(&result->root, "history", &history) &&
			history.type == jbvString)
			note_history(follow, saga_json_string(&history));
		request->act = SAGA_TASK_EXTEND;
		request->lease = SAGA_TASK_NO_END;
		request->progress = make_progress(&result->root, call->memory);
	}
	return true;
}


/* ---- reports ------------------------------------------------------------------ */

static void
add_taken(SagaFollow *follow, int64 report)
{
	if (follow->ntaken == follow->taken_size)
	{
		follow->taken_size = Max(64, 2 * follow->taken_size);
		follow->taken = follow->taken == NULL ?
			MemoryContextAlloc(follow->memory,
							   follow->taken_size * sizeof(int64)) :
			repalloc(follow->taken, follow->taken_size * sizeof(int64));
	}
	follow->taken[follow->ntaken++] = report;
}

void
saga_follow_written(SagaFollow *follow, SagaCall *call,
					const SagaTaskRequest *request)
{
	Followed   *followed = find_task(follow, call);

	follow->has_news = true;
	if (call->kind == SAGA_CALL_REPORT)
	{
		follow->nwriting--;
		if (!call->unwritten)
			add_taken(follow, call->report);
		else
			follow->not_before = GetCurrentTimestamp() + WRITE_PAUSE;
	}
	if (followed == NULL)
		return;
	followed->reported = false;
	if (call->kind == SAGA_CALL_REPORT && call->unwritten)
		return;					/* it is told again */
	if (request->act == SAGA_TASK_EXTEND && request->done)
		followed->asked = false;
	else
		stop(follow, followed);
}

/* A field of a report, as it stands in a key; NULL if there is none. */
static const char *
text_field(JsonbContainer *object, const char *name)
{
	JsonbValue	value;

	if (!saga_json_get(object, name, &value))
		return NULL;
	if (value.type == jbvString)
		return saga_json_string(&value);
	return value.type != jbvNumeric ? NULL :
		psprintf("%lld", (long long) saga_json_int(&value));
}

/* Who waits for it, if it tells him something; "outcome" is what. */
static Followed *
find_reader(const SagaFollow *follow, JsonbContainer *object,
			SagaChildReport *report, SagaOutcome *outcome)
{
	const char *token = text_field(object, "token");
	const char *step = text_field(object, "step");
	const char *element = text_field(object, "element");
	const char *round = text_field(object, "round");
	const char *attempt = text_field(object, "attempt");
	Followed   *followed;
	JsonbValue	said;
	char		key[KEY_SIZE];

	if (token == NULL || step == NULL || element == NULL || round == NULL ||
		attempt == NULL || !saga_json_get(object, "report", &said) ||
		!saga_json_is_object(&said) ||
		!saga_child_read_report(said.val.binary.data, report))
		return NULL;
	make_key(key, token, step, element, round);
	followed = find(follow, key);
	if (followed == NULL)
		return NULL;
	if (followed->operation == SAGA_OPERATION_ACTION &&
		followed->attempt != atoi(attempt))
		return NULL;
	return saga_child_outcome(report, followed->operation, false,
							  saga_route_server(follow->route), outcome) ?
		followed : NULL;
}

static const char *
copy_text(const char *text)
{
	return text == NULL ? NULL : pstrdup(text);
}

/* Copied to the current context. */
static void
copy_outcome(SagaOutcome *to, const SagaOutcome *from)
{
	*to = *from;
	if (from->result != NULL)
		to->result = DatumGetJsonbPCopy(JsonbPGetDatum(from->result));
	to->error.message = copy_text(from->error.message);
	to->error.detail = copy_text(from->error.detail);
	to->error.hint = copy_text(from->error.hint);
	to->error.context = NULL;
}

/* The answer to the task of who waits for it. */
static SagaCall *
make_answer(SagaFollow *follow, const Followed *followed, int64 id,
			const SagaChildReport *report, const SagaOutcome *outcome)
{
	MemoryContext memory = AllocSetContextCreate(follow->memory, "saga report",
												 ALLOCSET_SMALL_SIZES);
	MemoryContext old = MemoryContextSwitchTo(memory);
	SagaCall   *call = palloc0(sizeof(SagaCall));

	call->memory = memory;
	call->kind = SAGA_CALL_REPORT;
	call->owner = follow->owner;
	call->task = followed->task;
	call->lease_token = followed->lease_token;
	call->params[SAGA_PARAM_SAGA] = pstrdup(followed->key);
	call->report = id;
	call->was_reached = true;
	call->once = true;
	call->gives_up = followed->operation == SAGA_OPERATION_ACTION &&
		report->status == SAGA_STATUS_COMPENSATED;
	copy_outcome(&call->outcome, outcome);
	MemoryContextSwitchTo(old);
	return call;
}

/* One of those that an answer has. */
static void
read_report(SagaFollow *follow, JsonbContainer *object, dlist_head *reports)
{
	JsonbValue	id;
	SagaChildReport report;
	SagaOutcome outcome;
	Followed   *followed;
	SagaCall   *call;

	if (!saga_json_get(object, "id", &id) || id.type != jbvNumeric)
		return;
	followed = find_reader(follow, object, &report, &outcome);
	if (followed == NULL)
	{
		add_taken(follow, saga_json_int(&id));
		return;
	}
	/* it says more than one thing: the next comes again */
	if (followed->reported)
		return;
	call = make_answer(follow, followed, saga_json_int(&id), &report, &outcome);
	dlist_push_tail(reports, &call->node);
	followed->reported = true;
	follow->nwriting++;
}

static void
read_reports(SagaFollow *follow, Jsonb *result, dlist_head *reports)
{
	if (!JB_ROOT_IS_ARRAY(result) || JB_ROOT_IS_SCALAR(result))
		ereport(ERROR,
				errcode(ERRCODE_PROTOCOL_VIOLATION),
				errmsg("the reports of child sagas are no array"));
	for (uint32 i = 0; i < JB_ROOT_COUNT(result); i++)
	{
		JsonbValue *value = getIthJsonbValueFromContainer(&result->root, i);

		if (value != NULL && saga_json_is_object(value))
			read_report(follow, value->val.binary.data, reports);
	}
}

/* Those that were sent have gone. */
static void
forget_taken(SagaFollow *follow)
{
	follow->ntaken -= follow->nsent;
	memmove(follow->taken, follow->taken + follow->nsent,
			follow->ntaken * sizeof(int64));
	follow->nsent = 0;
}

/* It has failed: not at once again, unless that is about its time. */
static void
note_failure(SagaFollow *follow, const SagaOutcome *outcome)
{
	if (outcome->kind == SAGA_OUTCOME_FAILED &&
		strcmp(outcome->error.sqlstate, "57014") == 0 &&
		follow->poll > SHORTEST_POLL)
	{
		follow->poll = Max(follow->poll / 2, SHORTEST_POLL);
		return;
	}
	follow->not_before = GetCurrentTimestamp() +
		(outcome->unknown ? WRITE_PAUSE : FAILURE_PAUSE);
	if (outcome->unknown || follow->in_trouble)
		return;
	follow->in_trouble = true;
	ereport(LOG,
			errmsg("child sagas at server \"%s\" cannot be followed as role \"%s\": %s",
				   saga_route_server(follow->route),
				   saga_route_role_name(follow->route),
				   outcome->error.message),
			errhint("This is logged once, until they can be."),
			errcontext("%s", saga_route_describe(follow->route)));
}

void
saga_follow_read(SagaFollow *follow, SagaCall *call, Jsonb *result,
				 dlist_head *reports)
{
	MemoryContext caller = CurrentMemoryContext;

	follow->in_flight = false;
	follow->has_news = true;
	if (call->release || call->outcome.kind != SAGA_OUTCOME_SUCCEEDED)
	{
		follow->nsent = 0;
		if (!call->release)
			note_failure(follow, &call->outcome);
		return;
	}
	follow->in_trouble = false;
	forget_taken(follow);
	note_history(follow, call->history);
	if (result == NULL)
		return;
	PG_TRY();
	{
		read_reports(follow, result, reports);
	}
	PG_CATCH();
	{
		/* what came before it counts */
		MemoryContextSwitchTo(caller);
		EmitErrorReport();
		FlushErrorState();
		follow->not_before = GetCurrentTimestamp() + FAILURE_PAUSE;
	}
	PG_END_TRY();
}


/* ---- following ------------------------------------------------------------------ */

bool
saga_follow_is_active(const SagaFollow *follow)
{
	return hash_get_num_entries(follow->followed) > 0 || follow->ntaken > 0;
}

bool
saga_follow_take_loss(SagaFollow *follow)
{
	bool		has_lost = follow->has_lost && follow->nwriting == 0;

	if (has_lost)
		follow->has_lost = false;
	return has_lost;
}

/* Those whose call was never answered: the coordinator has ended their lease. */
static void
stop_expired(SagaFollow *follow, TimestampTz now)
{
	HASH_SEQ_STATUS scan;
	Followed   *followed;

	if (now >= follow->looked_at && now - follow->looked_at < LONGEST_POLL)
		return;
	follow->looked_at = now;
	hash_seq_init(&scan, follow->followed);
	while ((followed = hash_seq_search(&scan)) != NULL)
		if (followed->asked && !followed->reported &&
			followed->lease_until <= now)
			stop(follow, followed);
}

static const char *
write_taken(SagaFollow *follow)
{
	StringInfoData text;

	initStringInfo(&text);
	appendStringInfoChar(&text, '{');
	for (int i = 0; i < follow->ntaken; i++)
		appendStringInfo(&text, "%s%lld", i > 0 ? "," : "",
						 (long long) follow->taken[i]);
	appendStringInfoChar(&text, '}');
	follow->nsent = follow->ntaken;
	return text.data;
}

static SagaCall *
make_call(SagaFollow *follow)
{
	MemoryContext memory = AllocSetContextCreate(follow->memory,
												 "saga follow call",
												 ALLOCSET_SMALL_SIZES);
	MemoryContext old = MemoryContextSwitchTo(memory);
	SagaCall   *call = palloc0(sizeof(SagaCall));
	int64		poll = hash_get_num_entries(follow->followed) > 0 ?
		follow->poll : 0;

	call->memory = memory;
	call->kind = SAGA_CALL_FOLLOW;
	call->owner = follow->owner;
	call->timeout = poll + POLL_GRACE;
	call->params[SAGA_FOLLOW_COORDINATOR] = pstrdup(follow->coordinator);
	call->params[SAGA_FOLLOW_ACKNOWLEDGED] = follow->ntaken == 0 ? NULL :
		write_taken(follow);
	call->params[SAGA_FOLLOW_TIMEOUT] =
		psprintf("%d milliseconds", (int) (poll / 1000));
	if (follow->history[0] != '\0')
		call->params[SAGA_FOLLOW_HISTORY] = pstrdup(follow->history);
	MemoryContextSwitchTo(old);
	return call;
}

void
saga_follow_work(SagaFollow *follow, TimestampTz now)
{
	follow->has_news = false;
	if (!saga_follow_is_active(follow))
		return;
	stop_expired(follow, now);
	if (follow->in_flight || follow->nwriting > 0 || now < follow->not_before ||
		!saga_follow_is_active(follow) ||
		!saga_route_can_follow(follow->route, now))
		return;
	follow->in_flight = true;
	saga_route_follow(follow->route, make_call(follow));
}

TimestampTz
saga_follow_wakes_at(const SagaFollow *follow, TimestampTz now)
{
	if (!saga_follow_is_active(follow) || follow->in_flight ||
		follow->nwriting > 0)
		return DT_NOEND;
	if (follow->not_before > now)
		return follow->not_before;
	if (follow->has_news)
		return now;
	return saga_route_pauses_until(follow->route) > now ?
		saga_route_pauses_until(follow->route) : DT_NOEND;
}

void
saga_follow_mend_times(SagaFollow *follow)
{
	follow->not_before = 0;
}
