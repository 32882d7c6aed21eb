/*
 * participant.c
 *		Owns the functions that participants call: claim, answer, extend,
 *		release.
 *
 * Each runs in the participant's own transaction, as its user; what it may do is
 * checked here for a queue, in task.c for a task.  Those for several tasks take
 * them in the order of their ids, so that two calls cannot wait for each other,
 * and do all of it or, with an error, nothing.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "fmgr.h"
#include "funcapi.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"
#include "utils/uuid.h"

#include "answer.h"
#include "arguments.h"
#include "claim.h"
#include "compat.h"
#include "errcodes.h"
#include "record.h"
#include "tables.h"

PG_FUNCTION_INFO_V1(saga_claim_tasks);
PG_FUNCTION_INFO_V1(saga_complete_task);
PG_FUNCTION_INFO_V1(saga_complete_tasks);
PG_FUNCTION_INFO_V1(saga_fail_task);
PG_FUNCTION_INFO_V1(saga_fail_tasks);
PG_FUNCTION_INFO_V1(saga_extend_lease);
PG_FUNCTION_INFO_V1(saga_extend_leases);
PG_FUNCTION_INFO_V1(saga_release_task);
PG_FUNCTION_INFO_V1(saga_release_tasks);

/* The most bytes in the name of a participant. */
#define MAX_PARTICIPANT	200

/* What participants say of a task is for people to read: bytes. */
#define MAX_ERROR		8192
#define MAX_PROGRESS	8192

/* The columns of saga.claim_tasks(). */
enum
{
	CLAIM_ID, CLAIM_LEASE_TOKEN, CLAIM_SAGA_ID, CLAIM_DEFINITION, CLAIM_STEP,
	CLAIM_ELEMENT, CLAIM_OPERATION, CLAIM_TASK, CLAIM_PAYLOAD, CLAIM_ATTEMPT,
	CLAIM_IDEMPOTENCY_KEY, CLAIM_TRACEPARENT, CLAIM_LEASE_UNTIL, CLAIM_NCOLUMNS
};

static void
invalid(const char *message, const char *detail)
{
	ereport(ERROR,
			errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			errmsg("%s", message),
			detail == NULL ? 0 : errdetail("%s", detail));
}


/* ---- claiming ------------------------------------------------------------- */

static int64
lease_argument(FunctionCallInfo fcinfo, int n)
{
	int64		lease = saga_argument_interval(fcinfo, n, "lease");

	if (lease == 0 || lease > SAGA_MAX_LEASE)
		invalid("lease must be greater than zero and at most a day", NULL);
	return lease;
}

/* Who it is if it does not say: as pg_stat_activity shows it. */
static const char *
default_participant(void)
{
	if (application_name != NULL && application_name[0] != '\0')
		return psprintf("%s/%d", application_name, MyProcPid);
	return psprintf("%s/%d", GetUserNameFromId(GetUserId(), false), MyProcPid);
}

static const char *
participant_argument(FunctionCallInfo fcinfo, int n)
{
	const char *participant = saga_argument_text(fcinfo, n);

	if (participant == NULL)
		return default_participant();
	if (participant[0] == '\0' || strlen(participant) > MAX_PARTICIPANT)
		invalid(psprintf("participant must have 1 to %d bytes", MAX_PARTICIPANT),
				NULL);
	return participant;
}

static int
max_argument(FunctionCallInfo fcinfo, int n)
{
	int			max;

	saga_argument_require(fcinfo, n, "max");
	max = PG_GETARG_INT32(n);
	if (max < 1 || max > SAGA_MAX_TASKS)
		invalid(psprintf("max must be between 1 and %d", SAGA_MAX_TASKS), NULL);
	return max;
}

static const SagaQueue *
queue_argument(FunctionCallInfo fcinfo, int n)
{
	const SagaQueue *queue;
	const char *name;

	saga_argument_require(fcinfo, n, "queue");
	name = saga_argument_text(fcinfo, n);
	queue = saga_queue_find(name);
	if (queue == NULL)
		ereport(ERROR,
				errcode(ERRCODE_UNDEFINED_OBJECT),
				errmsg("queue \"%s\" does not exist", name),
				errhint("A step defined with saga.external_step() makes it, or saga.create_queue()."));
	saga_queue_check_participant(queue);
	return queue;
}

static void
set_text(Datum *values, bool *nulls, int column, const char *text)
{
	nulls[column] = text == NULL;
	if (text != NULL)
		values[column] = CStringGetTextDatum(text);
}

/* Put one into the result. */
static void
return_claim(const SagaClaim *claim, void *arg)
{
	ReturnSetInfo *result = arg;
	Datum		values[CLAIM_NCOLUMNS];
	bool		nulls[CLAIM_NCOLUMNS] = {false};

	values[CLAIM_ID] = Int64GetDatum(claim->id);
	values[CLAIM_LEASE_TOKEN] = UUIDPGetDatum(&claim->lease_token);
	values[CLAIM_SAGA_ID] = Int64GetDatum(claim->saga_id);
	set_text(values, nulls, CLAIM_DEFINITION, claim->definition);
	set_text(values, nulls, CLAIM_STEP, claim->step);
	values[CLAIM_ELEMENT] = Int32GetDatum(claim->element);
	nulls[CLAIM_ELEMENT] = claim->element < 0;
	values[CLAIM_OPERATION] =
		ObjectIdGetDatum(saga_tables_names()->operation[claim->operation]);
	set_text(values, nulls, CLAIM_TASK, claim->task);
	values[CLAIM_PAYLOAD] = JsonbPGetDatum(claim->payload);
	values[CLAIM_ATTEMPT] = Int32GetDatum(claim->attempt);
	set_text(values, nulls, CLAIM_IDEMPOTENCY_KEY, claim->idempotency_key);
	set_text(values, nulls, CLAIM_TRACEPARENT, claim->traceparent);
	values[CLAIM_LEASE_UNTIL] = TimestampTzGetDatum(claim->lease_until);
	tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
}

/*
 * saga.claim_tasks(queue, max, lease, participant): a row for each task that is
 * this participant's from the end of the transaction until its lease is over.
 * Raises 42704 if there is no such queue, 42501 if its tasks are not for the
 * current user.
 */
Datum
saga_claim_tasks(PG_FUNCTION_ARGS)
{
	const SagaQueue *queue;
	const char *participant;
	int64		lease;
	int			max;

	saga_check_may_write("saga.claim_tasks()");
	InitMaterializedSRF(fcinfo, 0);
	queue = queue_argument(fcinfo, 0);
	max = max_argument(fcinfo, 1);
	lease = lease_argument(fcinfo, 2);
	participant = participant_argument(fcinfo, 3);
	if (!queue->paused)
		max = saga_qstate_allowance(queue->id, &queue->breaker, max);
	if (queue->paused || max == 0)
		saga_qstate_claimed(queue->id, queue->name, participant, 0);
	else
		(void) saga_claim_take(queue, max, lease, participant, return_claim,
							   fcinfo->resultinfo);
	return (Datum) 0;
}


/* ---- what is answered ------------------------------------------------------- */

/* The class 00 is success, and 01 and 02 are no errors either. */
static void
set_sqlstate(SagaError *error, const char *sqlstate)
{
	static const char letters[] = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ";

	if (strlen(sqlstate) != 5 || strspn(sqlstate, letters) != 5 ||
		strncmp(sqlstate, "00", 2) == 0 || strncmp(sqlstate, "01", 2) == 0 ||
		strncmp(sqlstate, "02", 2) == 0)
		invalid(psprintf("invalid SQLSTATE: \"%s\"", sqlstate),
				"An error has one of five digits or capital letters, of a class other than 00, 01 and 02.");
	strlcpy(error->sqlstate, sqlstate, sizeof(error->sqlstate));
}

/* The fields that are for one task and for several: retryable, retry_after,
 * outcome_unknown, from argument "n" on. */
static void
read_failure(FunctionCallInfo fcinfo, int n, SagaOutcome *outcome)
{
	memset(outcome, 0, sizeof(*outcome));
	outcome->kind = SAGA_OUTCOME_FAILED;
	saga_argument_require(fcinfo, n, "retryable");
	outcome->is_passing = PG_GETARG_BOOL(n);
	outcome->is_final = !outcome->is_passing;
	if (!PG_ARGISNULL(n + 1))
	{
		/* 0 would be "as the policy says" */
		outcome->delay = saga_argument_interval(fcinfo, n + 1, "retry_after");
		outcome->delay = Max(outcome->delay, 1);
	}
	saga_argument_require(fcinfo, n + 2, "outcome_unknown");
	outcome->unknown = PG_GETARG_BOOL(n + 2);
	outcome->error = saga_record_make_error(ERRCODE_SAGA_TASK_FAILED, NULL,
											NULL);
}

/* As much of a text as is kept. */
static const char *
clip_text(const char *text)
{
	size_t		length = text == NULL ? 0 : strlen(text);

	if (length <= MAX_ERROR)
		return text;
	return pnstrdup(text, pg_mbcliplen(text, (int) length, MAX_ERROR));
}

static void
set_message(SagaOutcome *outcome, const char *message)
{
	if (message[0] == '\0')
		invalid("error must not be empty", NULL);
	outcome->error.message = clip_text(message);
}

/* Everybody who looks at the task sees it. */
static Jsonb *
check_progress(Jsonb *progress)
{
	if (VARSIZE_ANY(progress) > MAX_PROGRESS)
		invalid("progress is too large",
				psprintf("It has %d bytes, and must have at most %d.",
						 (int) VARSIZE_ANY(progress), MAX_PROGRESS));
	return progress;
}

static void
read_task(FunctionCallInfo fcinfo, SagaTaskAct act, SagaTaskRequest *request)
{
	memset(request, 0, sizeof(*request));
	saga_argument_require(fcinfo, 0, "id");
	saga_argument_require(fcinfo, 1, "lease_token");
	request->act = act;
	request->id = PG_GETARG_INT64(0);
	request->lease_token = PG_GETARG_UUID_P(1);
}

static void
act_on_task(SagaTaskRequest *request)
{
	saga_answer_act(&request, 1, false);
}


/* ---- one task ---------------------------------------------------------------- */

/* saga.complete_task(id, lease_token, result): false if that was said before */
Datum
saga_complete_task(PG_FUNCTION_ARGS)
{
	SagaOutcome outcome = {.kind = SAGA_OUTCOME_SUCCEEDED};
	SagaTaskRequest request;

	saga_check_may_write("saga.complete_task()");
	read_task(fcinfo, SAGA_TASK_ANSWER, &request);
	if (!PG_ARGISNULL(2))
		outcome.result = PG_GETARG_JSONB_P(2);
	request.outcome = &outcome;
	act_on_task(&request);
	PG_RETURN_BOOL(!request.repeated);
}

/* saga.fail_task(id, lease_token, error, retryable, retry_after,
 * outcome_unknown, detail, sqlstate): likewise */
Datum
saga_fail_task(PG_FUNCTION_ARGS)
{
	SagaOutcome outcome;
	SagaTaskRequest request;
	const char *sqlstate;

	saga_check_may_write("saga.fail_task()");
	read_task(fcinfo, SAGA_TASK_ANSWER, &request);
	saga_argument_require(fcinfo, 2, "error");
	read_failure(fcinfo, 3, &outcome);
	set_message(&outcome, saga_argument_text(fcinfo, 2));
	outcome.error.detail = clip_text(saga_argument_text(fcinfo, 6));
	sqlstate = saga_argument_text(fcinfo, 7);
	if (sqlstate != NULL)
		set_sqlstate(&outcome.error, sqlstate);
	request.outcome = &outcome;
	act_on_task(&request);
	PG_RETURN_BOOL(!request.repeated);
}

/* saga.extend_lease(id, lease_token, lease, progress) */
Datum
saga_extend_lease(PG_FUNCTION_ARGS)
{
	SagaTaskRequest request;
	TupleDesc	desc;
	Datum		values[2];
	bool		nulls[2] = {false};

	saga_check_may_write("saga.extend_lease()");
	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	read_task(fcinfo, SAGA_TASK_EXTEND, &request);
	request.lease = lease_argument(fcinfo, 2);
	if (!PG_ARGISNULL(3))
		request.progress = check_progress(PG_GETARG_JSONB_P(3));
	act_on_task(&request);
	values[0] = TimestampTzGetDatum(request.lease_until);
	values[1] = BoolGetDatum(request.cancelled);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc),
													  values, nulls)));
}

/* saga.release_task(id, lease_token) */
Datum
saga_release_task(PG_FUNCTION_ARGS)
{
	SagaTaskRequest request;

	saga_check_may_write("saga.release_task()");
	read_task(fcinfo, SAGA_TASK_RELEASE, &request);
	act_on_task(&request);
	PG_RETURN_VOID();
}


/* ---- several tasks ------------------------------------------------------------- */

/* An argument that is an array. */
typedef struct Elements
{
	Datum	   *values;
	bool	   *nulls;
	int			n;
} Elements;

/* The tasks of one call. */
typedef struct Tasks
{
	int			n;
	SagaTaskRequest *requests;	/* in the order of the arguments ... */
	SagaTaskRequest **order;	/* ... and by their ids */
	bool		skip_lost;
} Tasks;

static void
read_elements(FunctionCallInfo fcinfo, int n, Oid type, Elements *elements)
{
	ArrayType  *array = PG_GETARG_ARRAYTYPE_P(n);
	int16		length;
	bool		by_value;
	char		align;

	if (ARR_NDIM(array) > 1)
		ereport(ERROR,
				errcode(ERRCODE_ARRAY_SUBSCRIPT_ERROR),
				errmsg("arrays of tasks must have one dimension"));
	get_typlenbyvalalign(type, &length, &by_value, &align);
	deconstruct_array(array, type, length, by_value, align, &elements->values,
					  &elements->nulls, &elements->n);
}

/* As many as there are tasks. */
static void
read_same_number(FunctionCallInfo fcinfo, int n, Oid type, const char *name,
				 int expected, Elements *elements)
{
	read_elements(fcinfo, n, type, elements);
	if (elements->n != expected)
		ereport(ERROR,
				errcode(ERRCODE_ARRAY_SUBSCRIPT_ERROR),
				errmsg("%s must have as many elements as ids", name),
				errdetail("They have %d and %d.", elements->n, expected));
}

static void
refuse_nulls(const Elements *elements, const char *name)
{
	for (int i = 0; i < elements->n; i++)
		if (elements->nulls[i])
			ereport(ERROR,
					errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					errmsg("%s must not contain nulls", name));
}

static int
compare_by_id(const void *a, const void *b)
{
	int64		left = (*(SagaTaskRequest *const *) a)->id;
	int64		right = (*(SagaTaskRequest *const *) b)->id;

	return left < right ? -1 : left > right;
}

/* ids and lease_tokens, which stand first, and skip_lost. */
static void
read_tasks(FunctionCallInfo fcinfo, SagaTaskAct act, int skip_lost,
		   Tasks *tasks)
{
	Elements	ids;
	Elements	tokens;

	saga_argument_require(fcinfo, 0, "ids");
	saga_argument_require(fcinfo, 1, "lease_tokens");
	saga_argument_require(fcinfo, skip_lost, "skip_lost");
	read_elements(fcinfo, 0, INT8OID, &ids);
	read_same_number(fcinfo, 1, UUIDOID, "lease_tokens", ids.n, &tokens);
	refuse_nulls(&ids, "ids");
	refuse_nulls(&tokens, "lease_tokens");
	tasks->n = ids.n;
	tasks->skip_lost = PG_GETARG_BOOL(skip_lost);
	tasks->requests = palloc0(ids.n * sizeof(SagaTaskRequest));
	tasks->order = palloc(ids.n * sizeof(SagaTaskRequest *));
	for (int i = 0; i < ids.n; i++)
	{
		tasks->requests[i].act = act;
		tasks->requests[i].id = DatumGetInt64(ids.values[i]);
		tasks->requests[i].lease_token = DatumGetUUIDP(tokens.values[i]);
		tasks->order[i] = &tasks->requests[i];
	}
	qsort(tasks->order, ids.n, sizeof(SagaTaskRequest *), compare_by_id);
	for (int i = 1; i < ids.n; i++)
		if (tasks->order[i]->id == tasks->order[i - 1]->id)
			invalid("ids must not contain duplicates", NULL);
}

/* Do it with each; those whose lease was not lost are returned. */
static void
act_on_tasks(FunctionCallInfo fcinfo, Tasks *tasks)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;

	saga_answer_act(tasks->order, tasks->n, tasks->skip_lost);
	for (int i = 0; i < tasks->n; i++)
	{
		const SagaTaskRequest *request = &tasks->requests[i];
		Datum		values[3];
		bool		nulls[3] = {false};

		if (!request->done)
			continue;
		values[0] = Int64GetDatum(request->id);
		values[1] = TimestampTzGetDatum(request->lease_until);
		values[2] = BoolGetDatum(request->cancelled);
		tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
	}
}

/* saga.complete_tasks(ids, lease_tokens, results, skip_lost) */
Datum
saga_complete_tasks(PG_FUNCTION_ARGS)
{
	SagaOutcome *outcomes;
	Elements	results = {0};
	Tasks		tasks;

	saga_check_may_write("saga.complete_tasks()");
	InitMaterializedSRF(fcinfo, MAT_SRF_USE_EXPECTED_DESC);
	read_tasks(fcinfo, SAGA_TASK_ANSWER, 3, &tasks);
	if (!PG_ARGISNULL(2))
		read_same_number(fcinfo, 2, JSONBOID, "results", tasks.n, &results);
	outcomes = palloc0(tasks.n * sizeof(SagaOutcome));
	for (int i = 0; i < tasks.n; i++)
	{
		outcomes[i].kind = SAGA_OUTCOME_SUCCEEDED;
		if (results.n > 0 && !results.nulls[i])
			outcomes[i].result = DatumGetJsonbP(results.values[i]);
		tasks.requests[i].outcome = &outcomes[i];
	}
	act_on_tasks(fcinfo, &tasks);
	return (Datum) 0;
}

/* saga.fail_tasks(ids, lease_tokens, errors, retryable, retry_after,
 * outcome_unknown, skip_lost) */
Datum
saga_fail_tasks(PG_FUNCTION_ARGS)
{
	SagaOutcome *outcomes;
	Elements	errors;
	Tasks		tasks;

	saga_check_may_write("saga.fail_tasks()");
	InitMaterializedSRF(fcinfo, MAT_SRF_USE_EXPECTED_DESC);
	read_tasks(fcinfo, SAGA_TASK_ANSWER, 6, &tasks);
	saga_argument_require(fcinfo, 2, "errors");
	read_same_number(fcinfo, 2, TEXTOID, "errors", tasks.n, &errors);
	refuse_nulls(&errors, "errors");
	outcomes = palloc0(tasks.n * sizeof(SagaOutcome));
	for (int i = 0; i < tasks.n; i++)
	{
		read_failure(fcinfo, 3, &outcomes[i]);
		set_message(&outcomes[i], TextDatumGetCString(errors.values[i]));
		tasks.requests[i].outcome = &outcomes[i];
	}
	act_on_tasks(fcinfo, &tasks);
	return (Datum) 0;
}

/* saga.extend_leases(ids, lease_tokens, lease, progress, skip_lost) */
Datum
saga_extend_leases(PG_FUNCTION_ARGS)
{
	Elements	progress = {0};
	Tasks		tasks;
	int64		lease;

	saga_check_may_write("saga.extend_leases()");
	InitMaterializedSRF(fcinfo, 0);
	read_tasks(fcinfo, SAGA_TASK_EXTEND, 4, &tasks);
	lease = lease_argument(fcinfo, 2);
	if (!PG_ARGISNULL(3))
		read_same_number(fcinfo, 3, JSONBOID, "progress", tasks.n, &progress);
	for (int i = 0; i < tasks.n; i++)
	{
		tasks.requests[i].lease = lease;
		if (progress.n > 0 && !progress.nulls[i])
			tasks.requests[i].progress =
				check_progress(DatumGetJsonbP(progress.values[i]));
	}
	act_on_tasks(fcinfo, &tasks);
	return (Datum) 0;
}

/* saga.release_tasks(ids, lease_tokens, skip_lost) */
Datum
saga_release_tasks(PG_FUNCTION_ARGS)
{
	Tasks		tasks;

	saga_check_may_write("saga.release_tasks()");
	InitMaterializedSRF(fcinfo, MAT_SRF_USE_EXPECTED_DESC);
	read_tasks(fcinfo, SAGA_TASK_RELEASE, 2, &tasks);
	act_on_tasks(fcinfo, &tasks);
	return (Datum) 0;
}
