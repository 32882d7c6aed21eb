/*
 * server.h
 *		Remote databases as saga knows them: settings of each foreign server, and
 *		one queue of tasks for each server and role.
 *
 * Any backend, in a transaction.  What is found is remembered per backend until
 * something of it changes.  Results are in CurrentMemoryContext.
 */
#ifndef SAGA_SERVER_H
#define SAGA_SERVER_H

#include "queue.h"

/* The queue of a server and a role.  queue.name is the server's, queue.id is
 * negative, so that it is no queue's of participants. */
typedef struct SagaServerQueue
{
	SagaQueue	queue;
	Oid			role;
	const char *role_name;
	int			once;			/* 1: calls are made once there, 0: at least once,
								 * -1: nobody has been there yet */
} SagaServerQueue;

/* The queue of this server for this role; made if there is none. */
extern SagaServerQueue *saga_server_queue(const char *server, Oid role);

/* NULL if there is none; "find" makes none. */
extern SagaServerQueue *saga_server_find(const char *server, Oid role);
extern SagaServerQueue *saga_server_queue_by_id(int32 id);

/* Are calls of this server made once, as far as was seen by anybody?  As "once"
 * above. */
extern int	saga_server_once(const char *server);

/* The ids of all of them; returns how many. */
extern int	saga_server_list(int32 **ids);

/* Remember what was found there; "version" may be NULL. */
extern void saga_server_note(int32 id, bool once, const char *version);

/*
 * Sagas that servers may forget.  Once a day it is noted which sagas are final;
 * the coordinator does so, when it likes.  When a note is older than the longest
 * retention, the servers that were called are to be told of it.
 */
typedef struct SagaServerForget
{
	int32		id;				/* the queue */
	const char *before;			/* timestamptz and uuid[], as text */
	const char *kept;
} SagaServerForget;

extern void saga_server_take_marks(void);

/* Who is to be told of what; returns how many.  And: that has been done. */
extern int	saga_server_forgets(SagaServerForget **forgets);
extern void saga_server_forgotten(int32 id);

/* Settings or rows have changed: tell every cache, this one included. */
extern void saga_server_changed(void);

/* Calls of this server that wait can be made now, maybe: once this transaction
 * has committed the courier looks at its queues. */
extern void saga_server_wake(const char *server);

/* For saga.adopt(): as saga_queue_adopt(). */
extern void saga_server_adopt(void);

#endif							/* SAGA_SERVER_H */
