/*
 * sstate.c
 *		Owns what shared memory shows of remote databases: what a courier is doing
 *		there, and how they answer.
 *
 * The segment is a table of fixed size, with one entry for each queue of calls
 * (a server and a role) that was used lately, of all databases.  When it is
 * full, the entry that was used longest ago gives way, and begins anew when it
 * is used again.
 *
 * How long answers took is counted in buckets, an eighth of a power of two
 * wide, in two windows of a minute each.  Percentiles are of both: of the last
 * minute and of what has passed of this one.
 *
 * One lock guards the table.  Nothing is done under it but to find an entry and
 * to count, and each courier writes to entries of its own database only.
 *
 * Killed at any line: at its exit, however it comes about, a courier shows that
 * it is connected to nothing; after a crash of the server there is no table.
 */
#include "postgres.h"

#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "port/pg_bitutils.h"
#include "storage/ipc.h"
#include "storage/lwlock.h"
#include "storage/shmem.h"
#include "utils/timestamp.h"

#include "sstate.h"

#define NSERVERS		128

/* Places of entries that a backend remembers. */
#define NREMEMBERED		16

#define WINDOW_TIME		(60 * USECS_PER_SEC)
#define NWINDOWS		2

/*
 * Buckets of latencies, in microseconds: each power of two has eight of the
 * same width, so that none is wider than an eighth of what is in it; below
 * eight, one has one.  The last is of a day and a half, and all beyond.
 */
#define SUB_BITS		3
#define NSUBS			(1 << SUB_BITS)
#define TOP_BIT			37
#define NBUCKETS		((TOP_BIT - SUB_BITS + 1) * NSUBS)

typedef struct Window
{
	int64		number;			/* its time, in WINDOW_TIMEs */
	int64		n;				/* in all buckets */
	uint32		buckets[NBUCKETS];
} Window;

typedef struct Server
{
	/* The lock of the table guards all.  InvalidOid: unused. */
	Oid			database;
	int32		queue;
	TimestampTz used_at;		/* last */

	/* As in SagaServerInfo. */
	SagaServerState state;
	int			connections;
	int			in_flight;
	TimestampTz retry_at;
	int64		ncalls;
	int64		nfailed;
	int64		nlost;
	int64		nunreachable;
	TimestampTz last_call;
	TimestampTz last_error_at;
	char		last_error[SAGA_SERVER_ERROR_LENGTH];

	Window		windows[NWINDOWS];	/* at the remainder of their number */
} Server;

typedef struct ServerTable
{
	Server		servers[NSERVERS];
} ServerTable;

static ServerTable *table = NULL;
static LWLockPadded *lock = NULL;

#define TABLE_LOCK		(&lock->lock)

/* Where this backend has found queues, by the remainder of their id. */
static int16 remembered[NREMEMBERED];

/* Will this process show at its exit that it is connected to nothing? */
static bool exit_registered = false;

static shmem_request_hook_type prev_shmem_request_hook = NULL;
static shmem_startup_hook_type prev_shmem_startup_hook = NULL;


/* ---- entries: the table is locked ---------------------------------------- */

static bool
is_server(const Server *server, int32 queue)
{
	return server->queue == queue && server->database == MyDatabaseId;
}

/* The entry of a queue of this database; NULL if there is none. */
static Server *
find_server(int32 queue)
{
	int16	   *place = &remembered[(uint32) queue % NREMEMBERED];

	if (is_server(&table->servers[*place], queue))
		return &table->servers[*place];
	for (int i = 0; i < NSERVERS; i++)
		if (is_server(&table->servers[i], queue))
		{
			*place = i;
			return &table->servers[i];
		}
	return NULL;
}

/* An entry that is free, or the one that was used longest ago. */
static Server *
find_spare(void)
{
	Server	   *spare = &table->servers[0];

	for (int i = 0; i < NSERVERS; i++)
	{
		Server	   *server = &table->servers[i];

		if (!OidIsValid(server->database))
			return server;
		if (server->used_at < spare->used_at)
			spare = server;
	}
	return spare;
}

/* The entry of a queue, made if there is none, and used now.  Exclusively. */
static Server *
use_server(int32 queue, TimestampTz now)
{
	Server	   *server = find_server(queue);

	if (server == NULL)
	{
		server = find_spare();
		memset(server, 0, sizeof(Server));
		server->database = MyDatabaseId;
		server->queue = queue;
	}
	server->used_at = now;
	return server;
}


/* ---- latencies ----------------------------------------------------------- */

static int
bucket_of(int64 latency)
{
	uint64		value = (uint64) Max(latency, 0);
	int			shift;

	if (value < NSUBS)
		return (int) value;
	if (value >= UINT64CONST(1) << TOP_BIT)
		return NBUCKETS - 1;
	shift = pg_leftmost_one_pos64(value) - SUB_BITS;
	return shift * NSUBS + (int) (value >> shift);
}

/* The least latency that is in a bucket. */
static double
bucket_start(int bucket)
{
	int			shift = Max(bucket / NSUBS - 1, 0);

	return (double) ((uint64) (bucket - shift * NSUBS) << shift);
}

static void
count_latency(Server *server, int64 latency, TimestampTz now)
{
	int64		number = now / WINDOW_TIME;
	Window	   *window = &server->windows[number % NWINDOWS];

	if (window->number != number)
	{
		memset(window, 0, sizeof(Window));
		window->number = number;
	}
	window->n++;
	window->buckets[bucket_of(latency)]++;
}

/* Is it the one that is being filled, or the one before? */
static bool
is_recent(const Window *window, TimestampTz now)
{
	int64		number = now / WINDOW_TIME;

	return window->n > 0 && window->number <= number &&
		window->number > number - NWINDOWS;
}

/* So many of all answers took no longer than that, in seconds; 0 if there was
 * none. */
static double
percentile(const Server *server, double part, TimestampTz now)
{
	double		rank = 0;
	double		passed = 0;

	for (int w = 0; w < NWINDOWS; w++)
		if (is_recent(&server->windows[w], now))
			rank += part * server->windows[w].n;
	for (int b = 0; rank > 0 && b < NBUCKETS; b++)
	{
		double		n = 0;

		for (int w = 0; w < NWINDOWS; w++)
			if (is_recent(&server->windows[w], now))
				n += server->windows[w].buckets[b];
		if (n > 0 && passed + n >= rank)
		{
			double		start = bucket_start(b);
			double		width = bucket_start(b + 1) - start;

			/* as if those of a bucket were spread evenly */
			return (start + width * (rank - passed) / n) / USECS_PER_SEC;
		}
		passed += n;
	}
	return 0;
}


/* ---- the courier ------------------------------------------------------------ */

static void
disconnect_at_exit(int code, Datum arg)
{
	(void) code;
	(void) arg;
	saga_sstate_disconnect_all();
}

/* Something is shown by this process. */
static void
register_exit(void)
{
	if (exit_registered)
		return;
	on_shmem_exit(disconnect_at_exit, (Datum) 0);
	exit_registered = true;
}

static bool
shows(const Server *server, SagaServerState state, int connections,
	  int in_flight, TimestampTz retry_at)
{
	return server != NULL && server->state == state &&
		server->connections == connections &&
		server->in_flight == in_flight && server->retry_at == retry_at;
}

void
saga_sstate_show(int32 queue, SagaServerState state, int connections,
				 int in_flight, TimestampTz retry_at)
{
	Server	   *server;
	bool		same;

	if (table == NULL)
		return;
	register_exit();
	LWLockAcquire(TABLE_LOCK, LW_SHARED);
	same = shows(find_server(queue), state, connections, in_flight, retry_at);
	LWLockRelease(TABLE_LOCK);
	if (same)
		return;

	LWLockAcquire(TABLE_LOCK, LW_EXCLUSIVE);
	server = use_server(queue, GetCurrentTimestamp());
	server->state = state;
	server->connections = connections;
	server->in_flight = in_flight;
	server->retry_at = retry_at;
	LWLockRelease(TABLE_LOCK);
}

void
saga_sstate_answered(int32 queue, int64 latency, bool failed)
{
	TimestampTz now = GetCurrentTimestamp();
	Server	   *server;

	if (table == NULL)
		return;
	LWLockAcquire(TABLE_LOCK, LW_EXCLUSIVE);
	server = use_server(queue, now);
	server->ncalls++;
	server->nfailed += failed;
	server->last_call = now;
	count_latency(server, latency, now);
	LWLockRelease(TABLE_LOCK);
}

/* An error that is not an answer; it is counted there. */
static void
note_error(Server *server, const char *error, TimestampTz now)
{
	int			length = pg_mbcliplen(error, strlen(error),
									  SAGA_SERVER_ERROR_LENGTH - 1);

	memcpy(server->last_error, error, length);
	server->last_error[length] = '\0';
	server->last_error_at = now;
}

void
saga_sstate_lost(int32 queue, const char *error)
{
	TimestampTz now = GetCurrentTimestamp();
	Server	   *server;

	if (table == NULL)
		return;
	LWLockAcquire(TABLE_LOCK, LW_EXCLUSIVE);
	server = use_server(queue, now);
	server->nlost++;
	note_error(server, error, now);
	LWLockRelease(TABLE_LOCK);
}

void
saga_sstate_unreachable(int32 queue, const char *error)
{
	TimestampTz now = GetCurrentTimestamp();
	Server	   *server;

	if (table == NULL)
		return;
	LWLockAcquire(TABLE_LOCK, LW_EXCLUSIVE);
	server = use_server(queue, now);
	server->nunreachable++;
	note_error(server, error, now);
	LWLockRelease(TABLE_LOCK);
}

/* Where it pauses it goes on to, though nobody is there. */
void
saga_sstate_disconnect_all(void)
{
	if (table == NULL)
		return;
	LWLockAcquire(TABLE_LOCK, LW_EXCLUSIVE);
	for (int i = 0; i < NSERVERS; i++)
	{
		Server	   *server = &table->servers[i];

		if (server->database != MyDatabaseId)
			continue;
		if (server->state != SAGA_SERVER_PAUSING)
			server->state = SAGA_SERVER_IDLE;
		server->connections = 0;
		server->in_flight = 0;
	}
	LWLockRelease(TABLE_LOCK);
}


/* ---- views, and others -------------------------------------------------------- */

const char *
saga_server_state_name(SagaServerState state)
{
	switch (state)
	{
		case SAGA_SERVER_IDLE:
			return "idle";
		case SAGA_SERVER_CONNECTING:
			return "connecting";
		case SAGA_SERVER_CONNECTED:
			return "connected";
		case SAGA_SERVER_PAUSING:
			return "pausing";
	}
	return NULL;
}

bool
saga_sstate_info(int32 queue, SagaServerInfo *info)
{
	TimestampTz now = GetCurrentTimestamp();
	Server	   *server;

	memset(info, 0, sizeof(*info));
	if (table == NULL)
		return false;
	LWLockAcquire(TABLE_LOCK, LW_SHARED);
	server = find_server(queue);
	if (server != NULL)
	{
		info->state = server->state;
		info->connections = server->connections;
		info->in_flight = server->in_flight;
		info->retry_at = server->retry_at;
		info->ncalls = server->ncalls;
		info->nfailed = server->nfailed;
		info->nlost = server->nlost;
		info->nunreachable = server->nunreachable;
		info->p50 = percentile(server, 0.5, now);
		info->p99 = percentile(server, 0.99, now);
		info->last_call = server->last_call;
		info->last_error_at = server->last_error_at;
		memcpy(info->last_error, server->last_error, sizeof(info->last_error));
	}
	LWLockRelease(TABLE_LOCK);
	return server != NULL;
}

void
saga_sstate_forget_database(Oid database)
{
	if (table == NULL)
		return;
	LWLockAcquire(TABLE_LOCK, LW_EXCLUSIVE);
	for (int i = 0; i < NSERVERS; i++)
		if (table->servers[i].database == database)
			table->servers[i].database = InvalidOid;
	LWLockRelease(TABLE_LOCK);
}


/* ---- the segment ---------------------------------------------------------------- */

static void
request_table(void)
{
	if (prev_shmem_request_hook)
		prev_shmem_request_hook();
	RequestAddinShmemSpace(MAXALIGN(sizeof(ServerTable)));
	RequestNamedLWLockTranche("saga_servers", 1);
}

static void
startup_table(void)
{
	bool		found;

	if (prev_shmem_startup_hook)
		prev_shmem_startup_hook();

	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	table = ShmemInitStruct("saga servers", sizeof(ServerTable), &found);
	lock = GetNamedLWLockTranche("saga_servers");
	if (!found)
		memset(table, 0, sizeof(ServerTable));
	LWLockRelease(AddinShmemInitLock);
}

void
saga_sstate_init(void)
{
	prev_shmem_request_hook = shmem_request_hook;
	shmem_request_hook = request_table;
	prev_shmem_startup_hook = shmem_startup_hook;
	shmem_startup_hook = startup_table;
}
