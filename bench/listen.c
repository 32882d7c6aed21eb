/*
 * listen.c
 *		How long it takes from something falling due to a listener having it.
 *
 * usage: listen SAMPLES PAUSE
 *
 * One process has two connections.  One begins a saga of an external step, or
 * inserts a row and notifies in the same transaction; the clock starts when it
 * hears of the commit.  The other one listens, claims when it is notified, and
 * the clock stops when it has the task.  So many samples of both, in turns,
 * with pauses of PAUSE to 2 * PAUSE milliseconds; prints for each kind its
 * name, p50 and p99 in microseconds, and how often nothing was heard for five
 * seconds.
 */
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <libpq-fe.h>

/* So many of one kind before the turn of the other. */
#define TURN 20

typedef struct Kind
{
	const char *name;
	const char *make_due;
	const char *listen;
	const char *claim;			/* id, lease token, payload */
	const char *answer;
	int			nanswer;		/* parameters of "answer" */
	double	   *samples;
	int			nsamples;
	int			nunheard;
} Kind;

static Kind kinds[] = {
	{
		.name = "bare",
		.make_due = "INSERT INTO bare_task (payload) SELECT payload FROM bare_payload; NOTIFY bare",
		.listen = "LISTEN bare",
		.claim = "UPDATE bare_task t SET lease_until = now() + interval '30 s'"
		" FROM (SELECT id FROM bare_task WHERE lease_until IS NULL ORDER BY id LIMIT 10"
		" FOR UPDATE SKIP LOCKED) n WHERE t.id = n.id RETURNING t.id, NULL, t.payload",
		.answer = "DELETE FROM bare_task WHERE id = $1",
		.nanswer = 1,
	},
	{
		.name = "saga",
		.make_due = "SELECT saga.begin('errand', errand_input(1))",
		.listen = "LISTEN saga_errands",
		.claim = "SELECT id, lease_token, payload FROM saga.claim_tasks('errands', participant => 'listener')",
		.answer = "SELECT saga.complete_task($1, $2)",
		.nanswer = 2,
	},
};

#define NKINDS ((int) (sizeof(kinds) / sizeof(kinds[0])))

static double
now_us(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e6 + t.tv_nsec / 1e3;
}

static void
fail(PGconn *conn)
{
	fprintf(stderr, "listen: %s", PQerrorMessage(conn));
	exit(1);
}

static PGconn *
open_connection(void)
{
	PGconn	   *conn = PQconnectdb("");

	if (PQstatus(conn) != CONNECTION_OK)
		fail(conn);
	return conn;
}

static PGresult *
checked(PGconn *conn, PGresult *result)
{
	if (PQresultStatus(result) != PGRES_COMMAND_OK &&
		PQresultStatus(result) != PGRES_TUPLES_OK)
		fail(conn);
	return result;
}

/* Take what has arrived; was there a notification? */
static int
notified(PGconn *conn)
{
	PGnotify   *notify;
	int			n = 0;

	if (!PQconsumeInput(conn))
		fail(conn);
	while ((notify = PQnotifies(conn)) != NULL)
	{
		PQfreemem(notify);
		n++;
	}
	return n > 0;
}

/* Wait for a notification; false if there was none for five seconds. */
static int
wait_for_notification(PGconn *conn)
{
	struct pollfd fd = {.fd = PQsocket(conn), .events = POLLIN};

	while (!notified(conn))
	{
		if (poll(&fd, 1, 5000) == 0)
			return 0;
	}
	return 1;
}

static PGresult *
claim(PGconn *conn, const Kind *kind)
{
	char		name[32];

	snprintf(name, sizeof(name), "claim_%s", kind->name);
	return checked(conn, PQexecPrepared(conn, name, 0, NULL, NULL, NULL, 0));
}

static void
answer(PGconn *conn, const Kind *kind, PGresult *tasks)
{
	char		name[32];

	snprintf(name, sizeof(name), "answer_%s", kind->name);
	for (int i = 0; i < PQntuples(tasks); i++)
	{
		const char *values[] = {PQgetvalue(tasks, i, 0), PQgetvalue(tasks, i, 1)};

		PQclear(checked(conn, PQexecPrepared(conn, name, kind->nanswer, values,
											 NULL, NULL, 0)));
	}
}

static void
take_sample(PGconn *beginner, PGconn *listener, Kind *kind)
{
	double		start;
	PGresult   *tasks = NULL;

	PQclear(checked(beginner, PQexec(beginner, kind->make_due)));
	start = now_us();
	do
	{
		if (tasks != NULL)
			PQclear(tasks);
		if (!wait_for_notification(listener))
			kind->nunheard++;
		tasks = claim(listener, kind);
	} while (PQntuples(tasks) == 0);
	kind->samples[kind->nsamples++] = now_us() - start;
	answer(listener, kind, tasks);
	PQclear(tasks);
}

static void
sleep_ms(double ms)
{
	struct timespec t = {.tv_sec = ms / 1e3, .tv_nsec = (long) (ms * 1e6) % 1000000000};

	nanosleep(&t, NULL);
}

static int
compare(const void *a, const void *b)
{
	double		x = *(const double *) a,
				y = *(const double *) b;

	return (x > y) - (x < y);
}

static double
percentile(const Kind *kind, int p)
{
	int			i = kind->nsamples * p / 100;

	return kind->samples[i < kind->nsamples ? i : kind->nsamples - 1];
}

int
main(int argc, char **argv)
{
	int			nsamples = argc > 1 ? atoi(argv[1]) : 0;
	double		pause = argc > 2 ? atof(argv[2]) : 0;
	PGconn	   *beginner;
	PGconn	   *listener;

	if (nsamples < 1)
	{
		fprintf(stderr, "usage: listen SAMPLES PAUSE\n");
		return 2;
	}
	beginner = open_connection();
	listener = open_connection();
	for (int k = 0; k < NKINDS; k++)
	{
		char		name[32];

		PQclear(checked(listener, PQexec(listener, kinds[k].listen)));
		snprintf(name, sizeof(name), "claim_%s", kinds[k].name);
		PQclear(checked(listener, PQprepare(listener, name, kinds[k].claim, 0, NULL)));
		snprintf(name, sizeof(name), "answer_%s", kinds[k].name);
		PQclear(checked(listener, PQprepare(listener, name, kinds[k].answer, 0, NULL)));
		kinds[k].samples = calloc(nsamples + TURN, sizeof(double));
		if (kinds[k].samples == NULL)
			return 1;
		/* what is read but once is read now */
		for (int i = 0; i < TURN; i++)
			take_sample(beginner, listener, &kinds[k]);
		kinds[k].nsamples = 0;
		kinds[k].nunheard = 0;
	}
	for (int n = 0; n < nsamples * NKINDS; n++)
	{
		take_sample(beginner, listener, &kinds[n / TURN % NKINDS]);
		sleep_ms(pause * (1 + rand() / (double) RAND_MAX));
	}
	for (int k = 0; k < NKINDS; k++)
	{
		qsort(kinds[k].samples, kinds[k].nsamples, sizeof(double), compare);
		printf("%s %.0f %.0f %d\n", kinds[k].name, percentile(&kinds[k], 50),
			   percentile(&kinds[k], 99), kinds[k].nunheard);
	}
	PQfinish(listener);
	PQfinish(beginner);
	return 0;
}
