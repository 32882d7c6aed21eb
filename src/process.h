/*
 * process.h
 *		The background processes of saga: their entry points, and what the
 *		launcher passes to those that it starts.
 *
 * The entry points are called by the postmaster's children, by name.
 */
#ifndef SAGA_PROCESS_H
#define SAGA_PROCESS_H

/* In bgw_extra; bgw_main_arg is the index of the place. */
typedef struct SagaStartArgs
{
	Oid			database;
	Oid			role;			/* InvalidOid for a service */
	uint32		generation;
} SagaStartArgs;

extern PGDLLEXPORT void saga_launcher_main(Datum arg);
extern PGDLLEXPORT void saga_coordinator_main(Datum arg);
extern PGDLLEXPORT void saga_courier_main(Datum arg);
extern PGDLLEXPORT void saga_worker_main(Datum arg);

/* Register the launcher; from _PG_init() in the postmaster. */
extern void saga_launcher_register(void);

#endif							/* SAGA_PROCESS_H */
