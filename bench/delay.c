/*
 * delay.c
 *		A network between a client and a server that is so many milliseconds
 *		away: what is sent arrives later, in order, and nothing else changes.
 *
 * usage: delay PORT MILLISECONDS ...
 *
 * For each number it listens on a free port of 127.0.0.1, and prints the ports
 * in that order, on one line.  What connects there is connected to PORT; what
 * either side sends is held for half of the time, so that an answer comes back
 * that much later.  There is no limit to what is on its way: bandwidth and
 * windows are not part of this.  Connecting by itself takes no time, what is
 * said afterwards does.
 *
 * It ends when its standard input does.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

/* Something that was read together; without bytes it is the end. */
typedef struct Chunk
{
	struct Chunk *next;
	int64_t		due;			/* nanoseconds */
	size_t		size;
	size_t		sent;
	char		data[];
} Chunk;

/* A socket, and what is on its way to it. */
typedef struct End
{
	int			fd;
	struct End *other;
	int64_t		delay;			/* of what is read here */
	bool		read_end;		/* nothing comes from it any more, ... */
	bool		written_end;	/* ... goes to it any more */
	bool		full;			/* it takes no more at the moment */
	Chunk	   *first;
	Chunk	   *last;
} End;

typedef struct Link
{
	struct Link *next;
	End			ends[2];
} Link;

static Link *links;
static int	epoll_fd;
static int	target_port;

/* These are no ends of links, as listeners are none. */
static End	timer;
static End	input = {.fd = STDIN_FILENO};

static void
die(const char *what)
{
	fprintf(stderr, "delay: %s: %s\n", what, strerror(errno));
	exit(1);
}

static int64_t
now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}

static struct sockaddr_in
loopback(int port)
{
	return (struct sockaddr_in) {
		.sin_family = AF_INET,
		.sin_port = htons(port),
		.sin_addr.s_addr = htonl(INADDR_LOOPBACK),
	};
}

/* Ask for what this end can still tell us. */
static void
watch(End *end, int operation)
{
	struct epoll_event event = {
		.events = (end->read_end ? 0 : EPOLLIN) | (end->full ? EPOLLOUT : 0),
		.data.ptr = end,
	};

	/* one that has ended is not watched any more */
	if (epoll_ctl(epoll_fd, operation, end->fd, &event) != 0 && errno != ENOENT)
		die("epoll_ctl");
}

static void
open_end(End *end, int fd)
{
	int			on = 1;

	end->fd = fd;
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	watch(end, EPOLL_CTL_ADD);
}

static void
accept_link(const End *listener)
{
	struct sockaddr_in target = loopback(target_port);
	Link	   *link;
	int			fds[2];

	fds[0] = accept4(listener->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
	if (fds[0] < 0)
		return;
	fds[1] = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	link = calloc(1, sizeof(Link));
	if (fds[1] < 0 || link == NULL)
		die("new connection");
	/* whatever becomes of it, writing and reading tell */
	if (connect(fds[1], (struct sockaddr *) &target, sizeof(target)) != 0 &&
		errno != EINPROGRESS)
		die("connect");
	link->next = links;
	links = link;
	for (int i = 0; i < 2; i++)
	{
		link->ends[i].other = &link->ends[1 - i];
		link->ends[i].delay = listener->delay;
		open_end(&link->ends[i], fds[i]);
	}
}

static void
put_chunk(End *from, const char *data, size_t size, int64_t now)
{
	End		   *to = from->other;
	Chunk	   *chunk = malloc(sizeof(Chunk) + size);

	if (chunk == NULL)
		die("malloc");
	chunk->next = NULL;
	chunk->due = now + from->delay;
	chunk->size = size;
	chunk->sent = 0;
	memcpy(chunk->data, data, size);
	if (to->first == NULL)
		to->first = chunk;
	else
		to->last->next = chunk;
	to->last = chunk;
}

/* Take what has come.  A connection that broke ends like one that was closed. */
static void
read_end(End *end)
{
	static char buffer[256 * 1024];
	ssize_t		size = read(end->fd, buffer, sizeof(buffer));

	if (size < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (size <= 0)
	{
		size = 0;
		end->read_end = true;
		watch(end, EPOLL_CTL_MOD);
	}
	put_chunk(end, buffer, size, now_ns());
}

static void
drop_first(End *end)
{
	Chunk	   *chunk = end->first;

	end->first = chunk->next;
	free(chunk);
}

/* Hand over what is due. */
static void
write_due(End *end, int64_t now)
{
	while (end->first != NULL && end->first->due <= now && !end->full)
	{
		Chunk	   *chunk = end->first;
		ssize_t		sent;

		if (chunk->size == 0)
		{
			shutdown(end->fd, SHUT_WR);
			end->written_end = true;
			drop_first(end);
			continue;
		}
		sent = send(end->fd, chunk->data + chunk->sent, chunk->size - chunk->sent, MSG_NOSIGNAL);
		if (sent < 0 && errno == EAGAIN)
		{
			end->full = true;
			watch(end, EPOLL_CTL_MOD);
		}
		else if (sent < 0)
			drop_first(end);	/* nobody is there to take it */
		else if ((chunk->sent += sent) == chunk->size)
			drop_first(end);
	}
}

/* Forget links that have ended both ways. */
static void
close_ended(void)
{
	Link	  **next = &links;

	while (*next != NULL)
	{
		Link	   *link = *next;

		if (link->ends[0].written_end && link->ends[1].written_end)
		{
			*next = link->next;
			close(link->ends[0].fd);
			close(link->ends[1].fd);
			free(link);
		}
		else
			next = &link->next;
	}
}

/* The links are few: looking at all of them costs less than keeping order. */
static void
move_due(void)
{
	struct itimerspec next = {0};
	int64_t		now = now_ns();
	int64_t		due = INT64_MAX;

	for (Link *link = links; link != NULL; link = link->next)
	{
		for (int i = 0; i < 2; i++)
		{
			End		   *end = &link->ends[i];

			write_due(end, now);
			if (end->first != NULL && !end->full && end->first->due < due)
				due = end->first->due;
		}
	}
	if (due != INT64_MAX)
	{
		next.it_value.tv_sec = due / 1000000000;
		next.it_value.tv_nsec = due % 1000000000;
	}
	timerfd_settime(timer.fd, TFD_TIMER_ABSTIME, &next, NULL);
}

static void
take_event(const struct epoll_event *event)
{
	End		   *end = event->data.ptr;
	uint64_t	times;

	if (end == &input)
		exit(0);
	if (end == &timer)
	{
		if (read(timer.fd, &times, sizeof(times)) < 0 && errno != EAGAIN)
			die("timer");
		return;
	}
	if (end->other == NULL)
	{
		accept_link(end);
		return;
	}
	if (end->full && (event->events & ~EPOLLIN))
	{
		end->full = false;
		watch(end, EPOLL_CTL_MOD);
	}
	if (!end->read_end)
		read_end(end);
	else if (event->events & (EPOLLHUP | EPOLLERR))
		epoll_ctl(epoll_fd, EPOLL_CTL_DEL, end->fd, NULL);
}

static void
listen_with(const char *milliseconds, const char *separator)
{
	struct sockaddr_in address = loopback(0);
	socklen_t	length = sizeof(address);
	End		   *listener = calloc(1, sizeof(End));

	if (listener == NULL)
		die("malloc");
	listener->delay = (int64_t) (atof(milliseconds) * 1e6 / 2);
	listener->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (listener->fd < 0 ||
		bind(listener->fd, (struct sockaddr *) &address, length) != 0 ||
		listen(listener->fd, 128) != 0 ||
		getsockname(listener->fd, (struct sockaddr *) &address, &length) != 0)
		die("listen");
	watch(listener, EPOLL_CTL_ADD);
	printf("%s%d", separator, ntohs(address.sin_port));
}

int
main(int argc, char **argv)
{
	if (argc < 3)
	{
		fprintf(stderr, "usage: delay PORT MILLISECONDS ...\n");
		return 2;
	}
	target_port = atoi(argv[1]);
	epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	timer.fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
	if (epoll_fd < 0 || timer.fd < 0)
		die("epoll");
	watch(&timer, EPOLL_CTL_ADD);
	watch(&input, EPOLL_CTL_ADD);
	for (int i = 2; i < argc; i++)
		listen_with(argv[i], i > 2 ? " " : "");
	printf("\n");
	fflush(stdout);

	for (;;)
	{
		struct epoll_event events[64];
		int			n = epoll_wait(epoll_fd, events, 64, -1);

		if (n < 0 && errno != EINTR)
			die("epoll_wait");
		for (int i = 0; i < n; i++)
			take_event(&events[i]);
		move_due();
		close_ended();
	}
}
