/*
 * channel.c
 *		Owns the valve between libpq and the socket of a connection.
 *
 * libpq reads until the kernel has nothing more, and makes room for a message as
 * large as its header says, up to 1 GB: a fast server fills that within one call.
 * There is nothing in libpq that limits it.  So its descriptor is made one end of
 * a pair of sockets, when the connection stands; the other end, and the socket
 * itself, are here, and what goes from one to the other is ours to say.  TLS and
 * all else stay with libpq, which does not see a difference.
 *
 * In the other direction what was written for many calls goes out at once.
 */
#include "postgres.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "channel.h"

/* Else SIGPIPE is ignored, as in every process of PostgreSQL. */
#ifndef MSG_NOSIGNAL
#define MSG_NOSIGNAL	0
#endif

struct SagaChannel
{
	int			far;			/* the connection's socket */
	int			near;			/* the pair's end whose other one libpq has */
	bool		is_closed;		/* by the other side */
	bool		is_deaf;		/* what is written gets nowhere: there may still
								 * be something to read, and why */
	MemoryContext context;
	char	   *rest;			/* that the socket would not take */
	int			nrest;
};

/* Of one call each; nothing stays in it. */
static char piece[8 * SAGA_CHANNEL_PIECE];

static bool
prepare_fd(int fd)
{
	return fcntl(fd, F_SETFD, FD_CLOEXEC) == 0 &&
		fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK) == 0;
}

static void
close_quietly(int fd)
{
	int			saved = errno;

	if (fd >= 0)
		close(fd);
	errno = saved;
}

SagaChannel *
saga_channel_open(int fd, MemoryContext context)
{
	SagaChannel *channel = MemoryContextAllocZero(context, sizeof(SagaChannel));
	int			pair[2] = {-1, -1};

	channel->context = context;
	channel->far = dup(fd);
	if (channel->far >= 0 && prepare_fd(channel->far) &&
		socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0 &&
		prepare_fd(pair[0]) && prepare_fd(pair[1]) && dup2(pair[1], fd) >= 0)
	{
		(void) fcntl(fd, F_SETFD, FD_CLOEXEC);
		close_quietly(pair[1]);
		channel->near = pair[0];
		return channel;
	}
	close_quietly(channel->far);
	close_quietly(pair[0]);
	close_quietly(pair[1]);
	pfree(channel);
	return NULL;
}

int
saga_channel_socket(const SagaChannel *channel)
{
	return channel->far;
}

static bool
would_block(void)
{
	return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR;
}

int
saga_channel_receive(SagaChannel *channel)
{
	ssize_t		n;

	if (channel->is_closed)
		return -1;
	n = recv(channel->far, piece, SAGA_CHANNEL_PIECE, 0);
	if (n < 0 && would_block())
		return 0;

	/* libpq has taken all of the last piece: there is room for this one. */
	if (n > 0 && send(channel->near, piece, n, MSG_NOSIGNAL) == n)
		return (int) n;
	channel->is_closed = true;
	(void) shutdown(channel->near, SHUT_WR);
	return -1;
}

/* As much as the socket takes.  What cannot be sent any more is dropped. */
static int
put_on_wire(SagaChannel *channel, const char *data, int length)
{
	ssize_t		n;

	if (channel->is_deaf)
		return length;
	n = send(channel->far, data, length, MSG_NOSIGNAL);
	if (n >= 0)
		return (int) n;
	if (would_block())
		return 0;
	channel->is_deaf = true;
	return length;
}

static bool
send_rest(SagaChannel *channel)
{
	int			n;

	if (channel->nrest == 0)
		return true;
	n = put_on_wire(channel, channel->rest, channel->nrest);
	channel->nrest -= n;
	memmove(channel->rest, channel->rest + n, channel->nrest);
	return channel->nrest == 0;
}

static void
keep_rest(SagaChannel *channel, const char *data, int length)
{
	if (channel->rest == NULL)
		channel->rest = MemoryContextAlloc(channel->context, sizeof(piece));
	memcpy(channel->rest, data, length);
	channel->nrest = length;
}

bool
saga_channel_send(SagaChannel *channel)
{
	while (send_rest(channel))
	{
		ssize_t		length = recv(channel->near, piece, sizeof(piece), 0);
		int			n;

		if (length <= 0)
			return true;
		n = put_on_wire(channel, piece, (int) length);
		if (n < length)
			keep_rest(channel, piece + n, (int) length - n);
	}
	return false;
}

void
saga_channel_close(SagaChannel *channel)
{
	/* No memory is wanted here: it may be on its way out. */
	if (channel->nrest == 0)
	{
		ssize_t		length = recv(channel->near, piece, sizeof(piece), 0);

		if (length > 0)
			(void) put_on_wire(channel, piece, (int) length);
	}
	close_quietly(channel->near);
	close_quietly(channel->far);
}
