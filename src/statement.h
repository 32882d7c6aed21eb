/*
 * statement.h
 *		The engine's SQL statements: each is prepared once per backend, and run
 *		as the owner.
 *
 * Any backend, between saga_owner_enter() and _leave(): see owner.h.
 */
#ifndef SAGA_STATEMENT_H
#define SAGA_STATEMENT_H

struct _SPI_plan;

#define SAGA_STATEMENT_ARGS	10

typedef struct SagaStatement
{
	const char *sql;
	int			nargs;
	Oid			types[SAGA_STATEMENT_ARGS];
	struct _SPI_plan *plan;		/* NULL until it is first run */
} SagaStatement;

/*
 * Run it and return the number of rows; SPI_tuptable has those that it
 * returned.  "nulls" as SPI wants them ('n' or ' ' for each), NULL = none is.
 * "limit" 0 = all.  Raises what the statement raises.
 */
extern uint64 saga_statement_run(SagaStatement *statement, Datum *values,
								 const char *nulls, bool read_only,
								 long limit);

/* Likewise a SELECT, with the newest snapshot, the changes of this transaction
 * included, whatever its isolation level: for what outlives it in a cache. */
extern uint64 saga_statement_read_latest(SagaStatement *statement,
										 Datum *values);

/* A column, from 1, of a row, from 0, of what the last one returned. */
extern Datum saga_statement_datum(uint64 row, int column, bool *isnull);

/* A text as an argument, which may be NULL; sets its place in "nulls". */
extern Datum saga_statement_text(const char *text, char *null);

#endif							/* SAGA_STATEMENT_H */
