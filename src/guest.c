/*
 * guest.c
 *		Owns how functions are called that another database names.
 *
 * The call is the query SELECT schema.function($1), with a jsonb.  So finding
 * the function, the search_path, privileges of it and of its schema, defaults
 * and SECURITY DEFINER are as in a query of the role; errors and their contexts
 * too.  It is prepared once per session, role and name; PostgreSQL plans it anew
 * when something of it has changed.  What came of the name has been read and is
 * written in quotes, so nothing but a call of a function gets into the query.
 *
 * Runs in a session of the role that the other database has connected as.
 * Nothing of it outlives the session.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "utils/fmgroids.h"
#include "utils/hsearch.h"
#include "utils/plancache.h"

#include "call.h"
#include "guest.h"
#include "remotename.h"

/* Two names in quotes in which every character is one, and a dot. */
#define MAX_NAME	(2 * (2 * NAMEDATALEN + 2) + 2)

/* When there are so many, all are forgotten. */
#define MAX_GUESTS	500

typedef struct GuestKey
{
	Oid			role;
	char		name[MAX_NAME]; /* as it was given; zeros behind it */
} GuestKey;

struct SagaGuest
{
	GuestKey	key;
	char		quoted[MAX_NAME];
	SPIPlanPtr	plan;			/* NULL until it is first called */
};

/* A call that is under way. */
typedef struct GuestCall
{
	SagaGuest  *guest;
	Jsonb	   *context;
	MemoryContext memory;		/* for the result */
	Jsonb	   *result;
} GuestCall;

static HTAB *guests = NULL;

/* ---- finding ---------------------------------------------------------------- */

static void
create_guests(void)
{
	HASHCTL		control = {0};

	control.keysize = sizeof(GuestKey);
	control.entrysize = sizeof(SagaGuest);
	guests = hash_create("saga guests", 16, &control, HASH_ELEM | HASH_BLOBS);
}

static void
forget_guests(void)
{
	HASH_SEQ_STATUS scan;
	SagaGuest  *guest;

	hash_seq_init(&scan, guests);
	while ((guest = hash_seq_search(&scan)) != NULL)
		if (guest->plan != NULL)
			SPI_freeplan(guest->plan);
	hash_destroy(guests);
	create_guests();
}

static void
report_name(const char *fault)
{
	ereport(ERROR,
			errcode(ERRCODE_INVALID_NAME),
			errmsg("invalid name for a function"),
			errdetail_internal("%s", fault));
}

SagaGuest *
saga_guest_find(const char *name)
{
	GuestKey	key;
	SagaGuest  *guest;
	SagaRemoteName parsed;
	const char *fault;

	if (strlen(name) >= MAX_NAME)
		report_name(psprintf("It has more than %d bytes.", MAX_NAME - 1));
	memset(&key, 0, sizeof(key));
	key.role = GetUserId();
	strlcpy(key.name, name, sizeof(key.name));
	if (guests == NULL)
		create_guests();
	guest = hash_search(guests, &key, HASH_FIND, NULL);
	if (guest != NULL)
		return guest;

	fault = saga_remote_name_parse(name, &parsed);
	if (fault != NULL)
		report_name(fault);
	if (hash_get_num_entries(guests) >= MAX_GUESTS)
		forget_guests();
	guest = hash_search(guests, &key, HASH_ENTER, NULL);
	guest->plan = NULL;
	strlcpy(guest->quoted, saga_remote_name_quoted(&parsed),
			sizeof(guest->quoted));
	return guest;
}


/* ---- calling ----------------------------------------------------------------- */

static void
prepare(SagaGuest *guest)
{
	Oid			type = JSONBOID;
	char	   *sql = psprintf("SELECT %s($1)", guest->quoted);
	SPIPlanPtr	plan = SPI_prepare(sql, 1, &type);

	if (plan == NULL)
		elog(ERROR, "could not prepare \"%s\": %s", sql,
			 SPI_result_code_string(SPI_result));
	if (SPI_keepplan(plan) != 0)
		elog(ERROR, "could not keep the plan of \"%s\"", sql);
	guest->plan = plan;
}

static void
refuse_function(const SagaGuest *guest, const char *fault)
{
	ereport(ERROR,
			errcode(ERRCODE_INVALID_FUNCTION_DEFINITION),
			errmsg("function %s cannot be used in a saga", guest->key.name),
			errdetail_internal("%s", fault));
}

/*
 * A query may be more than a call of a function.  That is known when it has been
 * run: until then it may have to be read again.
 */
static void
check_function(const SagaGuest *guest)
{
	CachedPlanSource *source =
		linitial(SPI_plan_get_plan_sources(guest->plan));
	Query	   *query = linitial_node(Query, source->query_list);

	if (query->hasTargetSRFs)
		refuse_function(guest, "It returns a set.");
	if (query->hasAggs)
		refuse_function(guest, "It is an aggregate.");
}

/* As a query would do it that had to_jsonb() around the call. */
static Jsonb *
convert_result(Oid type, Datum value)
{
	Param	   *param = makeNode(Param);
	FmgrInfo	function;

	if (type == JSONBOID)
		return DatumGetJsonbP(value);
	param->paramkind = PARAM_EXTERN;
	param->paramid = 1;
	param->paramtype = type;
	param->paramtypmod = -1;
	param->location = -1;
	fmgr_info(F_TO_JSONB, &function);
	fmgr_info_set_expr((Node *) makeFuncExpr(F_TO_JSONB, JSONBOID,
											 list_make1(param), InvalidOid,
											 InvalidOid, COERCE_EXPLICIT_CALL),
					   &function);
	return DatumGetJsonbP(FunctionCall1(&function, value));
}

static void
take_result(GuestCall *call)
{
	Oid			type = SPI_gettypeid(SPI_tuptable->tupdesc, 1);
	MemoryContext old;
	Jsonb	   *result;
	bool		isnull;
	Datum		value;

	if (SPI_processed != 1)
		elog(ERROR, "a call of %s returned no row", call->guest->quoted);
	value = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1,
						  &isnull);
	if (isnull || type == VOIDOID)
		return;
	result = convert_result(type, value);
	old = MemoryContextSwitchTo(call->memory);
	call->result = DatumGetJsonbPCopy(JsonbPGetDatum(result));
	MemoryContextSwitchTo(old);
}

static void
run_call(void *arg)
{
	GuestCall  *call = arg;
	SagaGuest  *guest = call->guest;
	Datum		value = JsonbPGetDatum(call->context);
	int			result;

	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "could not connect to SPI");
	if (guest->plan == NULL)
		prepare(guest);
	result = SPI_execute_plan(guest->plan, &value, NULL, false, 1);
	if (result != SPI_OK_SELECT)
		elog(ERROR, "could not call %s: %s", guest->quoted,
			 SPI_result_code_string(result));
	check_function(guest);
	take_result(call);
	if (SPI_finish() != SPI_OK_FINISH)
		elog(ERROR, "could not disconnect from SPI");
}

Jsonb *
saga_guest_call(SagaGuest *guest, Jsonb *context)
{
	GuestCall	call = {.guest = guest, .context = context};

	call.memory = CurrentMemoryContext;
	saga_call_guest(run_call, &call);
	return call.result;
}
