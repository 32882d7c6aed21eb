/*
 * defserver.c
 *		Owns what saga.define() asks, and says, of the foreign servers of a
 *		definition.
 *
 * Whether calls have their effect once is a matter of what is there when they
 * are made, and of the role that makes them: what is said here is what the
 * definer would find at this moment.  Nothing of it is stored.
 *
 * Runs in the definer's backend, which waits for the servers, one after the
 * other and only for some seconds, with its transaction open: so whoever defines
 * has this done last.
 */
#include "postgres.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "nodes/pg_list.h"
#include "utils/resowner.h"
#include "utils/timestamp.h"

#include "defserver.h"
#include "foreign.h"
#include "remote.h"

/* So long is waited for a server. */
#define PROBE_TIMEOUT	(3 * USECS_PER_SEC)


/* ---- which they are --------------------------------------------------- */

/* The steps of a server stand together; a child first, so that it is seen. */
static int
compare_steps(const ListCell *a, const ListCell *b)
{
	const SagaStep *first = lfirst(a);
	const SagaStep *second = lfirst(b);
	int			order = strcmp(first->server, second->server);

	if (order == 0)
		order = (second->kind == SAGA_KIND_CHILD) -
			(first->kind == SAGA_KIND_CHILD);
	return order != 0 ? order : first < second ? -1 : 1;
}

/* Of each server a step that names it: a child, if there is one. */
static List *
find_servers(const SagaDefinition *def)
{
	List	   *remote = NIL;
	List	   *servers = NIL;
	ListCell   *cell;

	for (int i = 0; i < def->rules.nsteps; i++)
	{
		if (def->steps[i].server != NULL)
			remote = lappend(remote, (void *) &def->steps[i]);
	}
	list_sort(remote, compare_steps);
	foreach(cell, remote)
	{
		SagaStep   *step = lfirst(cell);

		if (servers == NIL ||
			strcmp(((SagaStep *) llast(servers))->server, step->server) != 0)
			servers = lappend(servers, step);
	}
	return servers;
}


/* ---- may they be used? ------------------------------------------------ */

static void
describe_step(void *arg)
{
	errcontext("step \"%s\"", ((const SagaStep *) arg)->name);
}

void
saga_defserver_check(const SagaDefinition *def)
{
	ListCell   *cell;

	foreach(cell, find_servers(def))
	{
		const SagaStep *step = lfirst(cell);
		ErrorContextCallback callback = {
			.previous = error_context_stack,
			.callback = describe_step,
			.arg = (void *) step
		};

		error_context_stack = &callback;
		saga_foreign_check(step->server);
		error_context_stack = callback.previous;
	}
}


/* ---- once, or at least once? ------------------------------------------- */

/*
 * Where the current user would be connected to.  False with the error if that
 * is nowhere, in a subtransaction: a mapping that somebody creates later is no
 * reason not to define.
 */
static bool
find_target(const char *server, SagaTarget *target, ErrorData **error)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	volatile bool found = false;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		saga_foreign_find(server, GetUserId(), context, target);
		ReleaseCurrentSubTransaction();
		found = true;
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		*error = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
	}
	PG_END_TRY();
	CurrentResourceOwner = owner;
	MemoryContextSwitchTo(context);
	return found;
}

static void
tell_unknown(const char *server, const char *message, const char *detail)
{
	ereport(NOTICE,
			errmsg("could not find out whether steps at server \"%s\" are done once: %s",
				   server, message),
			detail != NULL ? errdetail_internal("%s", detail) : 0,
			errhint("They are done once if extension saga is there, else at least once: saga.check_server() tells which."));
}

static void
tell_found(const SagaStep *step, const SagaRemoteInfo *info)
{
	if (info->saga_version != NULL)
		ereport(NOTICE,
				errmsg("steps at server \"%s\" are done once", step->server),
				errdetail("Extension saga %s is there, and answers an operation that has been done without doing it again.",
						  info->saga_version));
	else if (step->kind == SAGA_KIND_CHILD)
		ereport(NOTICE,
				errmsg("steps at server \"%s\" are done at least once, and sagas cannot be begun there",
					   step->server),
				errdetail("Extension saga is not there for the user of the connection."),
				errhint("CREATE EXTENSION saga there, and call saga.grant_remote() for that user."));
	else
		ereport(NOTICE,
				errmsg("steps at server \"%s\" are done at least once",
					   step->server),
				errdetail("Extension saga is not there for the user of the connection, so an operation whose answer was lost is done again."),
				errhint("CREATE EXTENSION saga there, and call saga.grant_remote() for that user; or have the functions look at the idempotency key."));
}

static void
tell_of_server(const SagaStep *step)
{
	SagaTarget	target;
	SagaRemoteInfo info;
	SagaError	error;
	ErrorData  *data;

	if (!find_target(step->server, &target, &data))
		tell_unknown(step->server, data->message, data->detail);
	else if (!saga_remote_probe(&target, PROBE_TIMEOUT, &info, &error))
		tell_unknown(step->server, error.message, error.detail);
	else
		tell_found(step, &info);
}

void
saga_defserver_tell(const SagaDefinition *def)
{
	ListCell   *cell;

	/* whoever has turned NOTICEs off does not wait for what he will not see */
	if (!message_level_is_interesting(NOTICE))
		return;
	foreach(cell, find_servers(def))
	{
		CHECK_FOR_INTERRUPTS();
		tell_of_server(lfirst(cell));
	}
}
