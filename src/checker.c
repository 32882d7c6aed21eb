/*
 * checker.c
 *		The saga checker: runs the query of one invariant as its owner.
 *
 * A query can call any function, and so do whatever its owner may do.  To whom
 * asks for the check that must not matter, be it a superuser or pg_cron: so it
 * is done by a background worker that is a session of the owner from its first
 * moment, with the owner's settings, as saga's workers are.  There is nobody to
 * return to, nothing of another session to read or to change, and nothing that
 * it leaves behind: it ends with the check.
 *
 * The query runs in a transaction that is read-only, at repeatable read (all of
 * it sees the same), and rolled back in any case; and as a security-restricted
 * operation, so that SET ROLE does not make the session another role's.  It is
 * one SELECT, which saga_checker_parse() has seen to, and it is a subquery of
 * ours.  Names mean what they meant to who has added it.  A timer cancels it,
 * and ends the process if it takes no notice.
 *
 * What was found is recorded by the same process, in transactions of their own:
 * what holds first, the rest after it.
 *
 * Of those that are checked together the quick ones come first, and all of them
 * have a limited time: so a slow one, or one that is meant to be, keeps only slow
 * ones waiting, and these take turns.
 *
 * Who asks waits.  It holds an object lock on the invariant meanwhile, so that
 * there is one check at a time; a procedure nothing else, no snapshot and no
 * transaction's lock.  If the process ends without having recorded anything, who
 * has asked records that.
 */
#include "postgres.h"

#include <signal.h>

#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_type.h"
#include "commands/dbcommands.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "parser/parser.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
#include "tcop/tcopprot.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/plancache.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/timeout.h"
#include "utils/timestamp.h"

#include "arguments.h"
#include "call.h"
#include "checker.h"
#include "compat.h"
#include "invariant.h"
#include "json.h"
#include "owner.h"
#include "session.h"
#include "statement.h"
#include "tables.h"

PG_FUNCTION_INFO_V1(saga_check_invariant);
PG_FUNCTION_INFO_V1(saga_check_invariants);

/* A cancel that was swallowed is repeated so often, in milliseconds, and so many
 * times; then the process ends. */
#define CANCEL_AGAIN	100
#define MAX_CANCELS		50

/* So many rows are fetched at once. */
#define FETCH_ROWS		20

/* Recording what was found may take so long, and looking for sagas. */
#define RECORD_TIME		(5 * 60 * USECS_PER_SEC)
#define SEARCH_TIME		(10 * USECS_PER_SEC)

/* In bgw_extra. */
typedef struct CheckerArgs
{
	Oid			database;
	Oid			role;
	int32		invariant;
	int64		timeout;		/* microseconds: that of the invariant, or less */
} CheckerArgs;

static SagaStatement list_due = {
	"SELECT i.id, i.owner, i.owner_name FROM saga.invariant i"
	" WHERE (i.every IS NULL OR i.tried_at IS NULL"
	"        OR i.tried_at + i.every <= pg_catalog.clock_timestamp())"
	" AND i.coordinator = (SELECT c.id FROM saga.coordinator c)"
	" ORDER BY COALESCE(i.duration > '1 s'::pg_catalog.interval, true),"
	"  i.tried_at NULLS FIRST, i.id",
	0, {0}, NULL
};
static SagaStatement find_name = {
	"SELECT i.id FROM saga.invariant i WHERE i.name = $1",
	1, {TEXTOID}, NULL
};


/* ---- the form of a query ------------------------------------------------------ */

static void
raise_not_select(const char *detail)
{
	ereport(ERROR,
			errcode(ERRCODE_SYNTAX_ERROR),
			errmsg("query of an invariant must be one SELECT"),
			errdetail("%s", detail));
}

/* What a syntax error says of its position is about the query, and not about the
 * statement that it was given in. */
static void
point_into_query(void *arg)
{
	int			position = geterrposition();

	if (position > 0)
	{
		errposition(0);
		internalerrposition(position);
		internalerrquery(arg);
	}
}

static List *
parse(const char *query)
{
	ErrorContextCallback callback = {
		.previous = error_context_stack,
		.callback = point_into_query,
		.arg = unconstify(char *, query)
	};
	List	   *statements;

	error_context_stack = &callback;
	statements = raw_parser(query, RAW_PARSE_DEFAULT);
	error_context_stack = callback.previous;
	return statements;
}

/* The one statement of the query, without what ends it. */
static char *
take_statement(const char *query)
{
	List	   *statements = parse(query);
	RawStmt    *raw;
	SelectStmt *select;

	if (list_length(statements) != 1)
		raise_not_select(psprintf("It has %d statements.",
								  list_length(statements)));
	raw = linitial_node(RawStmt, statements);
	if (!IsA(raw->stmt, SelectStmt))
		raise_not_select("It is another command.");
	select = (SelectStmt *) raw->stmt;
	if (select->intoClause != NULL)
		raise_not_select("It has INTO.");
	if (select->lockingClause != NIL)
		raise_not_select("It locks rows.");
	return raw->stmt_len > 0 ?
		pnstrdup(query + raw->stmt_location, raw->stmt_len) :
		pstrdup(query + raw->stmt_location);
}

/* The query, as a subquery that returns its rows as jsonb.  It ends on a line of
 * its own: its last one may be a comment. */
static char *
wrap_query(const char *query)
{
	return psprintf("SELECT pg_catalog.to_jsonb(violation.*) FROM (\n%s\n) AS violation",
					query);
}

static SPIPlanPtr
prepare_query(const char *sql)
{
	SPIPlanPtr	plan = SPI_prepare(sql, 0, NULL);

	if (plan == NULL)
		elog(ERROR, "could not prepare the query of an invariant: %s",
			 SPI_result_code_string(SPI_result));
	return plan;
}

static bool
has_column(TupleDesc desc, int before, const char *name)
{
	for (int i = 0; i < before; i++)
		if (strcmp(NameStr(TupleDescAttr(desc, i)->attname), name) == 0)
			return true;
	return false;
}

static void
check_columns(TupleDesc desc, ArrayType *key)
{
	Datum	   *names;
	int			n;

	if (desc == NULL || desc->natts == 0)
		raise_not_select("It has no columns.");
	for (int i = 0; i < desc->natts; i++)
	{
		const char *name = NameStr(TupleDescAttr(desc, i)->attname);

		if (has_column(desc, i, name))
			ereport(ERROR,
					errcode(ERRCODE_DUPLICATE_COLUMN),
					errmsg("query of an invariant has two columns \"%s\"", name),
					errhint("Give one of them another name, with AS."));
	}
	if (key == NULL)
		return;
	deconstruct_array(key, TEXTOID, -1, false, TYPALIGN_INT, &names, NULL, &n);
	for (int i = 0; i < n; i++)
		if (!has_column(desc, desc->natts, TextDatumGetCString(names[i])))
			ereport(ERROR,
					errcode(ERRCODE_UNDEFINED_COLUMN),
					errmsg("query of the invariant has no column \"%s\"",
						   TextDatumGetCString(names[i])),
					errdetail("The key names it."));
}

char *
saga_checker_parse(const char *query, ArrayType *key)
{
	char	   *statement = take_statement(query);
	SPIPlanPtr	plan;

	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "could not connect to SPI");
	plan = prepare_query(statement);
	check_columns(((CachedPlanSource *) linitial(SPI_plan_get_plan_sources(plan)))->resultDesc,
				  key);
	/* what a subquery must not have is said now, and not by the first check */
	(void) prepare_query(wrap_query(statement));
	SPI_finish();
	return statement;
}


/* ---- the timer ---------------------------------------------------------------- */

static struct
{
	TimeoutId	id;				/* 0: not registered */
	volatile sig_atomic_t passed;
	volatile sig_atomic_t ncancels;
} timer;

/* In a signal handler: only what those may do. */
static void
handle_timer(void)
{
	timer.passed = true;
	if (timer.ncancels++ < MAX_CANCELS)
		QueryCancelPending = true;
	else
		ProcDiePending = true;
	InterruptPending = true;
	SetLatch(MyLatch);
}

static void
start_timer(int64 microseconds)
{
	timer.passed = false;
	timer.ncancels = 0;
	if (timer.id == 0)
		timer.id = RegisterTimeout(USER_TIMEOUT, handle_timer);
	enable_timeout_every(timer.id, GetCurrentTimestamp() + microseconds,
						 CANCEL_AGAIN);
}

static void
stop_timer(void)
{
	disable_timeout(timer.id, false);
	QueryCancelPending = false;
}


/* ---- the process: the query ------------------------------------------------------ */

static void
set_for_transaction(const char *name, const char *value)
{
	(void) set_config_option(name, value, PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_LOCAL, true, 0, false);
}

/* What was read, in a context that outlives the transaction. */
typedef struct Rows
{
	MemoryContext context;
	Datum	   *values;
	int			n;
	int64		size;
} Rows;

static void
keep_row(Rows *rows, Datum value)
{
	MemoryContext old = MemoryContextSwitchTo(rows->context);
	Jsonb	   *row = DatumGetJsonbPCopy(value);

	MemoryContextSwitchTo(old);
	if (VARSIZE(row) > SAGA_INVARIANT_MAX_ROW_SIZE)
		ereport(ERROR,
				errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				errmsg("a row of the query is larger than %d kB",
					   SAGA_INVARIANT_MAX_ROW_SIZE / 1024),
				errhint("Select only what tells which row it is, and what is wrong with it."));
	rows->size += VARSIZE(row);
	if (rows->size > SAGA_INVARIANT_MAX_SIZE)
		ereport(ERROR,
				errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				errmsg("the rows of the query are larger than %d MB",
					   SAGA_INVARIANT_MAX_SIZE / 1024 / 1024),
				errhint("Select fewer columns, or let max_rows be less."));
	rows->values[rows->n++] = JsonbPGetDatum(row);
}

/* Reads one row more than is kept, to know whether there are more. */
static void
fetch_rows(Portal portal, int max_rows, Rows *rows, bool *truncated)
{
	for (;;)
	{
		CHECK_FOR_INTERRUPTS();
		SPI_cursor_fetch(portal, true, FETCH_ROWS);
		for (uint64 i = 0; i < SPI_processed; i++)
		{
			bool		isnull;
			Datum		value;

			if (rows->n == max_rows)
			{
				*truncated = true;
				return;
			}
			value = SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc,
								  1, &isnull);
			if (!isnull)
				keep_row(rows, value);
		}
		if (SPI_processed < FETCH_ROWS)
			return;
		SPI_freetuptable(SPI_tuptable);
	}
}

/* In a transaction that will be rolled back. */
static void
run_query(const SagaInvariant *invariant, Rows *rows, SagaFinding *finding)
{
	Portal		portal;

	SetUserIdAndSecContext(GetUserId(), SECURITY_RESTRICTED_OPERATION);
	set_for_transaction("search_path", invariant->search_path);
	set_for_transaction("TimeZone", invariant->time_zone);
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "could not connect to SPI");
	PushActiveSnapshot(GetTransactionSnapshot());
	portal = SPI_cursor_open(NULL,
							 prepare_query(wrap_query(invariant->query)),
							 NULL, NULL, true);
	fetch_rows(portal, invariant->max_rows, rows, &finding->truncated);
	/* it may have swallowed the error */
	if (timer.passed)
		ereport(ERROR,
				errcode(ERRCODE_QUERY_CANCELED),
				errmsg("canceling the query of an invariant"));
}

/* In the memory context "memory". */
static Jsonb *
take_error(const SagaInvariant *invariant, MemoryContext memory)
{
	MemoryContext old = MemoryContextSwitchTo(memory);
	ErrorData  *error = CopyErrorData();
	const char *message = error->message;
	const char *hint = error->hint;
	Jsonb	   *result;

	FlushErrorState();
	if (timer.passed)
	{
		message = psprintf("timed out after %lld ms",
						   (long long) (invariant->timeout / 1000));
		hint = "Make the query faster, or give the invariant a longer timeout.";
	}
	result = saga_invariant_error(timer.passed ? ERRCODE_QUERY_CANCELED :
								  error->sqlerrcode, message, error->detail,
								  hint, error->context);
	MemoryContextSwitchTo(old);
	return result;
}

static void
query(const SagaInvariant *invariant, SagaFinding *finding)
{
	MemoryContext memory = CurrentMemoryContext;
	Rows		rows = {
		.context = memory,
		.values = palloc(invariant->max_rows * sizeof(Datum))
	};

	memset(finding, 0, sizeof(*finding));
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	XactReadOnly = true;
	XactIsoLevel = XACT_REPEATABLE_READ;
	pgstat_report_activity(STATE_RUNNING, invariant->query);
	start_timer(invariant->timeout);
	/* before the snapshot: what commits in between is seen, and is after it */
	finding->at = GetCurrentTimestamp();
	PG_TRY();
	{
		run_query(invariant, &rows, finding);
	}
	PG_CATCH();
	{
		finding->error = take_error(invariant, memory);
	}
	PG_END_TRY();
	stop_timer();
	MemoryContextSwitchTo(memory);
	AbortCurrentTransaction();
	MemoryContextSwitchTo(memory);
	pgstat_report_activity(STATE_RUNNING, "recording what was found");
	finding->duration = GetCurrentTimestamp() - finding->at;
	finding->rows = construct_array(rows.values, rows.n, JSONBOID, -1, false,
									TYPALIGN_INT);
}


/* ---- the process: the whole check --------------------------------------------- */

/* One of the transactions that record what was found; one that takes too long
 * ends the process. */
static void
begin_recording(int64 time)
{
	start_timer(time);
	saga_session_begin();
}

static void
end_recording(void)
{
	saga_session_commit();
	stop_timer();
}

static void
check(const SagaInvariant *invariant, MemoryContext memory)
{
	SagaInvariantChange change;
	SagaFinding finding;
	bool		done;

	query(invariant, &finding);
	begin_recording(RECORD_TIME);
	MemoryContextSwitchTo(memory);
	done = saga_invariant_record(invariant, &finding, &change);
	end_recording();
	MemoryContextSwitchTo(memory);
	if (!done)
		return;
	saga_invariant_log(invariant, &change);
	if (finding.error != NULL)
		return;
	begin_recording(RECORD_TIME);
	done = saga_invariant_pause_sagas(invariant, false);
	end_recording();
	if (!done)
	{
		begin_recording(RECORD_TIME);
		(void) saga_invariant_pause_sagas(invariant, true);
		end_recording();
	}
	MemoryContextSwitchTo(memory);
	begin_recording(SEARCH_TIME);
	saga_invariant_find_sagas(invariant);
	end_recording();
}

/* Settings of the role and the database that would make the session another
 * role's, or its transactions unable to record anything. */
static void
pin_settings(void)
{
	static const char *const settings[][2] = {
		{"role", "none"},
		{"default_transaction_isolation", "read committed"},
		{"default_transaction_read_only", "off"},
		{"default_transaction_deferrable", "off"},
		SAGA_TRANSACTION_TIMEOUT_OFF
	};

	for (int i = 0; i < (int) lengthof(settings); i++)
		SetConfigOption(settings[i][0], settings[i][1], PGC_SUSET,
						PGC_S_OVERRIDE);
}

/* The main function of a checker. */
void
saga_checker_main(Datum arg)
{
	CheckerArgs args;
	SagaInvariant *invariant;
	MemoryContext memory;
	bool		mine;

	(void) arg;
	memcpy(&args, MyBgworkerEntry->bgw_extra, sizeof(args));
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnectionByOid(args.database, args.role,
											  SAGA_WORKER_CONNECT_FLAGS);
	memory = AllocSetContextCreate(TopMemoryContext, "saga checker",
								   ALLOCSET_DEFAULT_SIZES);
	/* first without a transaction, then what needs the catalogs */
	saga_session_begin();
	pin_settings();
	if (GetUserId() != args.role)
		elog(FATAL, "session of a saga checker has another role");
	saga_session_commit();
	saga_session_require_extension();

	saga_session_begin();
	MemoryContextSwitchTo(memory);
	invariant = saga_invariant_read(args.invariant);
	mine = invariant != NULL && invariant->owner.oid == args.role &&
		saga_role_is_there(&invariant->owner) && !invariant->foreign;
	saga_session_commit();
	MemoryContextSwitchTo(memory);
	if (mine)
	{
		invariant->timeout = args.timeout;
		check(invariant, memory);
	}
	pgstat_report_stat(true);
	proc_exit(0);
}


/* ---- asking for a check ---------------------------------------------------------- */

typedef struct Waiting
{
	BackgroundWorkerHandle *handle;
} Waiting;

/* Whoever waits is to go: so is what it has waited for. */
static void
end_checker(int code, Datum arg)
{
	(void) code;
	TerminateBackgroundWorker(((Waiting *) DatumGetPointer(arg))->handle);
}

/* Start the process and wait for its end; false if there is no slot for it. */
static bool
run_checker(const SagaInvariant *invariant)
{
	CheckerArgs args = {
		.database = MyDatabaseId,
		.role = invariant->owner.oid,
		.invariant = invariant->id,
		.timeout = invariant->timeout
	};
	BackgroundWorker worker;
	Waiting		waiting;

	memset(&worker, 0, sizeof(worker));
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS |
		BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = BGW_NEVER_RESTART;
	worker.bgw_notify_pid = MyProcPid;
	strlcpy(worker.bgw_library_name, "saga", sizeof(worker.bgw_library_name));
	strlcpy(worker.bgw_function_name, "saga_checker_main", BGW_MAXLEN);
	strlcpy(worker.bgw_type, "saga checker", BGW_MAXLEN);
	snprintf(worker.bgw_name, BGW_MAXLEN, "saga checker of %s", invariant->name);
	memcpy(worker.bgw_extra, &args, sizeof(args));
	if (!RegisterDynamicBackgroundWorker(&worker, &waiting.handle))
		return false;

	PG_ENSURE_ERROR_CLEANUP(end_checker, PointerGetDatum(&waiting));
	{
		if (WaitForBackgroundWorkerShutdown(waiting.handle) == BGWH_POSTMASTER_DIED)
			proc_exit(1);
	}
	PG_END_ENSURE_ERROR_CLEANUP(end_checker, PointerGetDatum(&waiting));
	return true;
}

/* Why the owner can have no session; NULL if nothing is known to be in the way. */
static Jsonb *
find_obstacle(const SagaInvariant *invariant)
{
	HeapTuple	tuple;
	bool		may_log_in;

	if (!saga_role_is_there(&invariant->owner))
		return saga_invariant_error(ERRCODE_UNDEFINED_OBJECT,
									psprintf("role \"%s\" does not exist",
											 invariant->owner.name),
									"The query is run as the owner of the invariant.",
									"If it was renamed, use CALL saga.adopt().",
									NULL);
	tuple = SearchSysCache1(AUTHOID, ObjectIdGetDatum(invariant->owner.oid));
	may_log_in = HeapTupleIsValid(tuple) &&
		(SAGA_NOLOGIN_ROLES_RUN ||
		 ((Form_pg_authid) GETSTRUCT(tuple))->rolcanlogin);
	if (HeapTupleIsValid(tuple))
		ReleaseSysCache(tuple);
	if (!may_log_in)
		return saga_invariant_error(ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION,
									psprintf("role \"%s\" is not permitted to log in",
											 invariant->owner.name),
									"The query is run in a session of the owner of the invariant.",
									"Let a role that may log in add the invariant.",
									NULL);
	if (!superuser_arg(invariant->owner.oid) &&
		saga_database_connectcheck(MyDatabaseId, invariant->owner.oid) != ACLCHECK_OK)
		return saga_invariant_error(ERRCODE_INSUFFICIENT_PRIVILEGE,
									psprintf("permission denied for database \"%s\"",
											 get_database_name(MyDatabaseId)),
									"The query is run in a session of the owner of the invariant, who has no CONNECT privilege.",
									NULL, NULL);
	return NULL;
}

static Jsonb *
describe_early_end(const SagaInvariant *invariant, int64 duration)
{
	if (duration >= invariant->timeout)
		return saga_invariant_error(ERRCODE_QUERY_CANCELED,
									psprintf("timed out after %lld ms, and had to be ended with its process",
											 (long long) (invariant->timeout / 1000)),
									"The query took no notice of being canceled.",
									NULL, NULL);
	return saga_invariant_error(ERRCODE_CONNECTION_FAILURE,
								"the process that ran the query ended early",
								NULL, "The server log may say why.", NULL);
}

/*
 * Check it; the caller has locked it.  Returns it as it is now; NULL if it is
 * gone, or was replaced meanwhile.  What could not be checked for another reason
 * than the query's own is recorded in the present transaction, which with
 * "commits" is another one than that of the call.
 */
static SagaInvariant *
check_one(const SagaInvariant *before, bool commits)
{
	SagaFinding finding = {.at = GetCurrentTimestamp()};
	SagaInvariantChange change;
	SagaInvariant *after;

	finding.error = find_obstacle(before);
	if (finding.error == NULL)
	{
		MemoryContext memory = CurrentMemoryContext;
		bool		done;

		/* nothing of ours is to be held for so long */
		if (commits)
			SPI_commit();
		InvalidateCatalogSnapshotConditionally();
		done = run_checker(before);
		MemoryContextSwitchTo(memory);
		if (!done)
			finding.error =
				saga_invariant_error(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
									 "out of background worker slots", NULL,
									 "You might need to increase max_worker_processes.",
									 NULL);
		AcceptInvalidationMessages();
	}
	after = saga_invariant_read(before->id);
	if (after == NULL || after->revision != before->revision)
		return NULL;
	if (after->checks > before->checks)
		return after;
	finding.duration = GetCurrentTimestamp() - finding.at;
	if (finding.error == NULL)
		finding.error = describe_early_end(before, finding.duration);
	if (!saga_invariant_record(before, &finding, &change))
		return NULL;
	saga_invariant_log(before, &change);
	after->error = finding.error;
	return after;
}

static Oid
invariant_relation(void)
{
	return get_relname_relid("invariant", get_namespace_oid("saga", false));
}

static bool
may_check(const SagaRoleRef *owner)
{
	return saga_role_has_privileges(GetUserId(), owner) ||
		saga_owner_has_granted("operator_privilege");
}

static void
refuse_copy(void)
{
	(void) saga_tables_names();
	if (saga_tables_is_copy())
		ereport(ERROR,
				errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				errmsg("cannot check invariants in a copy of a database"),
				errhint("CALL saga.adopt() makes the copy a coordinator of its own."));
}

/* ---- saga.check_invariants() ------------------------------------------------------ */

typedef struct Counts
{
	int64		checked;
	int64		violated;
	int64		failed;
} Counts;

/* The ids of those that are due, and that the current user may check, in the
 * order in which they are to be checked. */
static int
list_invariants(int32 **ids)
{
	MemoryContext caller = CurrentMemoryContext;
	SagaRoleRef *owners;
	SagaOwnerSwitch owner;
	uint64		n;
	int			chosen = 0;

	saga_owner_enter(&owner);
	n = saga_statement_read_latest(&list_due, NULL);
	*ids = MemoryContextAlloc(caller, (n + 1) * sizeof(int32));
	owners = MemoryContextAlloc(caller, (n + 1) * sizeof(SagaRoleRef));
	for (uint64 i = 0; i < n; i++)
	{
		bool		isnull;

		(*ids)[i] = DatumGetInt32(saga_statement_datum(i, 1, &isnull));
		owners[i].oid = DatumGetObjectId(saga_statement_datum(i, 2, &isnull));
		owners[i].name =
			MemoryContextStrdup(caller,
								TextDatumGetCString(saga_statement_datum(i, 3, &isnull)));
	}
	saga_owner_leave(&owner);
	for (uint64 i = 0; i < n; i++)
		if (may_check(&owners[i]))
			(*ids)[chosen++] = (*ids)[i];
	return chosen;
}

static void
check_locked(int32 id, int64 time_left, Counts *counts)
{
	SagaInvariant *invariant = saga_invariant_read(id);

	if (invariant == NULL || invariant->foreign || !may_check(&invariant->owner))
		return;
	invariant->timeout = Min(invariant->timeout, time_left);
	invariant = check_one(invariant, true);
	if (invariant == NULL)
		return;
	counts->checked++;
	if (invariant->error != NULL)
		counts->failed++;
	if (invariant->violations > 0)
		counts->violated++;
}

/* The lock is the session's, since it is to outlive transactions; an error ends
 * it as any other. */
static void
check_listed(int32 id, int64 time_left, Counts *counts)
{
	LOCKTAG		tag;

	SET_LOCKTAG_OBJECT(tag, MyDatabaseId, invariant_relation(), id, 0);
	/* somebody else is at it */
	if (LockAcquire(&tag, ExclusiveLock, true, true) == LOCKACQUIRE_NOT_AVAIL)
		return;
	check_locked(id, time_left, counts);
	SPI_commit();
	LockRelease(&tag, ExclusiveLock, true);
}

/*
 * CALL saga.check_invariants(time_budget, INOUT checked, INOUT violated, INOUT
 * failed)
 */
Datum
saga_check_invariants(PG_FUNCTION_ARGS)
{
	MemoryContext memory = AllocSetContextCreate(CurrentMemoryContext,
												 "saga invariants",
												 ALLOCSET_SMALL_SIZES);
	MemoryContext caller = CurrentMemoryContext;
	Counts		counts = {0};
	Datum		values[3];
	TimestampTz until;
	int32	   *ids;
	int			n;

	saga_require_may_commit(fcinfo, "saga.check_invariants()",
							"saga.check_invariant() checks one in a function.");
	saga_check_may_write("saga.check_invariants()");
	until = GetCurrentTimestamp() +
		saga_argument_interval(fcinfo, 0, "time_budget");
	if (SPI_connect_ext(SPI_OPT_NONATOMIC) != SPI_OK_CONNECT)
		elog(ERROR, "could not connect to SPI");
	SPI_commit();
	MemoryContextSwitchTo(memory);
	refuse_copy();
	n = list_invariants(&ids);
	SPI_commit();
	for (int i = 0; i < n; i++)
	{
		int64		time_left = until - GetCurrentTimestamp();

		CHECK_FOR_INTERRUPTS();
		if (time_left <= 0)
			break;
		MemoryContextSwitchTo(memory);
		check_listed(ids[i], time_left, &counts);
	}
	SPI_finish();
	MemoryContextSwitchTo(caller);
	MemoryContextDelete(memory);
	values[0] = Int64GetDatum(counts.checked);
	values[1] = Int64GetDatum(counts.violated);
	values[2] = Int64GetDatum(counts.failed);
	return saga_make_row(fcinfo, values, NULL);
}

/* ---- saga.check_invariant() --------------------------------------------------------- */

static int32
find_invariant(const char *name)
{
	Datum		value = CStringGetTextDatum(name);
	SagaOwnerSwitch owner;
	int32		id = 0;
	bool		isnull;

	saga_owner_enter(&owner);
	if (saga_statement_read_latest(&find_name, &value) > 0)
		id = DatumGetInt32(saga_statement_datum(0, 1, &isnull));
	saga_owner_leave(&owner);
	return id;
}

static void
raise_undefined(const char *name)
{
	ereport(ERROR,
			errcode(ERRCODE_UNDEFINED_OBJECT),
			errmsg("invariant \"%s\" does not exist", name));
}

static char *
error_field(Jsonb *error, const char *field)
{
	JsonbValue	value;

	return saga_json_get(&error->root, field, &value) ?
		saga_json_string(&value) : NULL;
}

/* The error that a check has ended with, under the name of the invariant. */
static void
raise_failed(const SagaInvariant *invariant)
{
	const char *sqlstate = error_field(invariant->error, "sqlstate");
	const char *detail = error_field(invariant->error, "detail");
	const char *hint = error_field(invariant->error, "hint");

	ereport(ERROR,
			errcode(sqlstate != NULL && strlen(sqlstate) == 5 ?
					MAKE_SQLSTATE(sqlstate[0], sqlstate[1], sqlstate[2],
								  sqlstate[3], sqlstate[4]) :
					ERRCODE_INTERNAL_ERROR),
			errmsg("could not check invariant \"%s\": %s", invariant->name,
				   error_field(invariant->error, "message")),
			detail ? errdetail("%s", detail) : 0,
			hint ? errhint("%s", hint) : 0);
}

/* saga.check_invariant(name) returns the number of violations. */
Datum
saga_check_invariant(PG_FUNCTION_ARGS)
{
	SagaInvariant *invariant;
	char	   *name = saga_argument_text(fcinfo, 0);
	int32		id;

	saga_argument_require(fcinfo, 0, "name");
	saga_check_may_write("saga.check_invariant()");
	saga_call_refuse_within("saga.check_invariant()");
	refuse_copy();
	id = find_invariant(name);
	if (id == 0)
		raise_undefined(name);
	invariant = saga_invariant_read(id);
	if (invariant == NULL)
		raise_undefined(name);
	if (!may_check(&invariant->owner))
		ereport(ERROR,
				errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				errmsg("permission denied for invariant \"%s\"", name));
	if (invariant->own)
		ereport(ERROR,
				errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				errmsg("cannot check invariant \"%s\" in the transaction that wrote it",
					   name),
				errdetail("The query runs in a session of its own, which sees what is committed."));
	LockDatabaseObject(invariant_relation(), id, 0, ExclusiveLock);
	/* it may have been replaced while we waited */
	invariant = saga_invariant_read(id);
	if (invariant == NULL)
		raise_undefined(name);
	if (!may_check(&invariant->owner))
		ereport(ERROR,
				errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				errmsg("permission denied for invariant \"%s\"", name));
	invariant = check_one(invariant, false);
	if (invariant == NULL)
		ereport(ERROR,
				errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				errmsg("invariant \"%s\" was replaced or dropped while it was checked",
					   name));
	if (invariant->error != NULL)
		raise_failed(invariant);
	PG_RETURN_INT64(invariant->violations);
}
