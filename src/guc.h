/*
 * guc.h
 *		The settings, all of them under "saga.".
 *
 * Any process.
 */
#ifndef SAGA_GUC_H
#define SAGA_GUC_H

#include <stdbool.h>

typedef enum SagaLocalCommit
{
	SAGA_LOCAL_COMMIT_DURABLE,	/* as synchronous_commit of the role says */
	SAGA_LOCAL_COMMIT_ASYNC
} SagaLocalCommit;

/* The upper bound of saga.remote_connections_per_server. */
#define SAGA_MAX_REMOTE_CONNECTIONS	100

extern bool saga_enabled;		/* saga.enabled */
extern int	saga_max_workers;	/* saga.max_workers */
extern int	saga_workers_per_role;	/* saga.workers_per_role */
extern int	saga_batch_size;	/* saga.batch_size */
extern int	saga_batch_time;	/* saga.batch_time, milliseconds */
extern int	saga_step_timeout;	/* saga.step_timeout, milliseconds */
extern int	saga_worker_idle_timeout;	/* saga.worker_idle_timeout, milliseconds */
extern int	saga_answer_retention;	/* saga.answer_retention, seconds */
extern int	saga_retention_interval;	/* saga.retention_interval, seconds; 0 =
										 * never */
extern int	saga_local_commit;	/* saga.local_commit, a SagaLocalCommit */
extern int	saga_remote_connections;	/* saga.remote_connections_per_server */
extern int	saga_remote_connect_timeout;	/* saga.remote_connect_timeout,
											 * milliseconds */
extern int	saga_remote_idle_timeout;	/* saga.remote_idle_timeout,
										 * milliseconds */
extern int	saga_statistics_memory; /* saga.statistics_memory, kilobytes */

/* Define them all; from _PG_init() only. */
extern void saga_guc_define(void);

#endif							/* SAGA_GUC_H */
