/*
 * resolve.c
 *		Owns the threads in which host names are looked up.
 *
 * getaddrinfo() waits for other machines and cannot be told not to.  So it is
 * called by a thread of its own that does nothing else: no signal is delivered
 * to it, no function of PostgreSQL is called in it, and it touches no memory but
 * one block of malloc(), which belongs to both sides and is freed by the last.
 * When it is done it closes its end of a pipe: the other end is what a process
 * can wait for.  A lookup that nobody waits for any more goes on to its end, so
 * there are only so many.
 *
 * Any process; when that ends its threads do too.
 */
#include "postgres.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netdb.h>
#include <pthread.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include "resolve.h"

/* At the same time; those that nobody waits for any more count too. */
#define MAX_LOOKUPS		32

/* What getaddrinfo() and what it loads may need. */
#define STACK_SIZE		(1024 * 1024)

/* Of one host that are tried. */
#define MAX_ADDRESSES	8

struct SagaResolve
{
	pthread_mutex_t mutex;
	int			nusers;			/* under the mutex: 2, then 1 */
	bool		is_done;		/* likewise; then the next two stay */
	char		addresses[SAGA_ADDRESS_LENGTH];
	int			error;			/* of getaddrinfo(), if there are none */
	int			done;			/* the reading end; the process's alone */
	int			doing;			/* the writing end; the thread's alone */
	char		host[FLEXIBLE_ARRAY_MEMBER];
};

static pthread_mutex_t count_mutex = PTHREAD_MUTEX_INITIALIZER;
static int	nlookups = 0;

static bool
count_lookup(int change)
{
	bool		good;

	pthread_mutex_lock(&count_mutex);
	good = nlookups + change <= MAX_LOOKUPS;
	if (good)
		nlookups += change;
	pthread_mutex_unlock(&count_mutex);
	return good;
}

/* Either side; the last one frees it. */
static void
leave(SagaResolve *resolve)
{
	bool		last;

	pthread_mutex_lock(&resolve->mutex);
	last = --resolve->nusers == 0;
	pthread_mutex_unlock(&resolve->mutex);
	if (last)
	{
		pthread_mutex_destroy(&resolve->mutex);
		free(resolve);
	}
}

/* ---- the thread ------------------------------------------------------------ */

static void
write_addresses(SagaResolve *resolve, const struct addrinfo *list)
{
	size_t		length = 0;
	int			n = 0;

	for (const struct addrinfo *a = list; a != NULL && n < MAX_ADDRESSES;
		 a = a->ai_next)
	{
		char		address[NI_MAXHOST];
		size_t		size;

		if (getnameinfo(a->ai_addr, a->ai_addrlen, address, sizeof(address),
						NULL, 0, NI_NUMERICHOST) != 0)
			continue;
		size = strlen(address);
		if (length + size + 2 > sizeof(resolve->addresses))
			break;
		if (n++ > 0)
			resolve->addresses[length++] = ',';
		memcpy(resolve->addresses + length, address, size + 1);
		length += size;
	}
	if (n == 0)
		resolve->error = EAI_NONAME;
}

static void *
look_up(void *arg)
{
	SagaResolve *resolve = (SagaResolve *) arg;
	struct addrinfo hints;
	struct addrinfo *list = NULL;

	memset(&hints, 0, sizeof(hints));
	hints.ai_family = AF_UNSPEC;
	hints.ai_socktype = SOCK_STREAM;
	resolve->error = getaddrinfo(resolve->host, NULL, &hints, &list);
	if (resolve->error == 0)
		write_addresses(resolve, list);
	if (list != NULL)
		freeaddrinfo(list);

	pthread_mutex_lock(&resolve->mutex);
	resolve->is_done = true;
	pthread_mutex_unlock(&resolve->mutex);
	close(resolve->doing);
	leave(resolve);
	(void) count_lookup(-1);
	return NULL;
}

/* No signal is for the thread: the process's handlers are not made for it. */
static bool
start_thread(SagaResolve *resolve)
{
	pthread_attr_t attributes;
	pthread_t	thread;
	sigset_t	all,
				saved;
	bool		good;

	if (pthread_attr_init(&attributes) != 0)
		return false;
	(void) pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
	(void) pthread_attr_setstacksize(&attributes, STACK_SIZE);
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &saved);
	good = pthread_create(&thread, &attributes, look_up, resolve) == 0;
	pthread_sigmask(SIG_SETMASK, &saved, NULL);
	pthread_attr_destroy(&attributes);
	return good;
}

/* ---- the process ------------------------------------------------------------ */

static SagaResolve *
make_resolve(const char *host)
{
	SagaResolve *resolve;
	int			ends[2];

	resolve = calloc(1, offsetof(SagaResolve, host) + strlen(host) + 1);
	if (resolve == NULL)
		return NULL;
	if (pipe(ends) != 0)
	{
		free(resolve);
		return NULL;
	}
	(void) fcntl(ends[0], F_SETFD, FD_CLOEXEC);
	(void) fcntl(ends[1], F_SETFD, FD_CLOEXEC);
	pthread_mutex_init(&resolve->mutex, NULL);
	resolve->nusers = 2;
	resolve->done = ends[0];
	resolve->doing = ends[1];
	strcpy(resolve->host, host);
	return resolve;
}

SagaResolve *
saga_resolve_begin(const char *host)
{
	SagaResolve *resolve;

	if (!count_lookup(1))
		return NULL;
	resolve = make_resolve(host);
	if (resolve != NULL && start_thread(resolve))
		return resolve;
	(void) count_lookup(-1);
	if (resolve != NULL)
	{
		close(resolve->doing);
		leave(resolve);
		saga_resolve_end(resolve);
	}
	return NULL;
}

pgsocket
saga_resolve_socket(const SagaResolve *resolve)
{
	return resolve->done;
}

bool
saga_resolve_done(SagaResolve *resolve, char *addresses, const char **error)
{
	bool		is_done;

	pthread_mutex_lock(&resolve->mutex);
	is_done = resolve->is_done;
	pthread_mutex_unlock(&resolve->mutex);
	if (!is_done)
		return false;
	memcpy(addresses, resolve->addresses, sizeof(resolve->addresses));
	*error = resolve->error == 0 ? NULL : gai_strerror(resolve->error);
	return true;
}

void
saga_resolve_end(SagaResolve *resolve)
{
	close(resolve->done);
	leave(resolve);
}

static bool
is_address(const char *host)
{
	char		copy[64];
	unsigned char binary[sizeof(struct in6_addr)];
	size_t		length = strcspn(host, "%");

	if (length >= sizeof(copy))
		return false;
	memcpy(copy, host, length);
	copy[length] = '\0';
	return inet_pton(AF_INET, host, binary) == 1 ||
		inet_pton(AF_INET6, copy, binary) == 1;
}

bool
saga_resolve_is_needed(const char *host)
{
	if (host[0] == '\0' || host[0] == '/' || host[0] == '@')
		return false;
	return !is_address(host);
}
