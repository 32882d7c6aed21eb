/*
 * channel.h
 *		A valve in a connection of libpq: what the other side sends gets through in
 *		pieces of bounded size, when asked for, and is counted.
 *
 * remote.c only.  Needs no transaction; throws nothing but when memory is out.
 * Who has one has reserved SAGA_CHANNEL_FDS more descriptors for it.
 */
#ifndef SAGA_CHANNEL_H
#define SAGA_CHANNEL_H

#include "utils/palloc.h"

typedef struct SagaChannel SagaChannel;

#define SAGA_CHANNEL_FDS	2

/* So much gets through at once: as much as libpq is sure to take. */
#define SAGA_CHANNEL_PIECE	8192

/*
 * Begin: from now on "fd", which is not blocking, leads here, and the caller
 * waits for saga_channel_socket() instead.  NULL, and all is as it was, if that
 * cannot be; errno says why.
 */
extern SagaChannel *saga_channel_open(int fd, MemoryContext context);

extern int	saga_channel_socket(const SagaChannel *channel);

/* Let the next piece through.  Returns its size; 0: there is none now; -1: the
 * other side has closed, and so it looks to libpq. */
extern int	saga_channel_receive(SagaChannel *channel);

/* Put on the wire what libpq has written.  False if something is left, until
 * the socket is writeable. */
extern bool saga_channel_send(SagaChannel *channel);

/* After libpq has closed "fd": its last words are sent, if that can be. */
extern void saga_channel_close(SagaChannel *channel);

#endif							/* SAGA_CHANNEL_H */
