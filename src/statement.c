/*
 * statement.c
 *		Owns how the engine's SQL statements are prepared and run.
 *
 * Plans are kept for the life of the backend; PostgreSQL makes them anew when
 * what they are about has changed.
 */
#include "postgres.h"

#include "access/xact.h"
#include "executor/spi.h"
#include "utils/builtins.h"
#include "utils/snapmgr.h"

#include "statement.h"

static void
prepare(SagaStatement *statement)
{
	SPIPlanPtr	plan;

	if (statement->plan != NULL)
		return;
	plan = SPI_prepare(statement->sql, statement->nargs, statement->types);
	if (plan == NULL)
		elog(ERROR, "could not prepare \"%s\": %s", statement->sql,
			 SPI_result_code_string(SPI_result));
	SPI_keepplan(plan);
	statement->plan = plan;
}

static uint64
check_result(const SagaStatement *statement, int result)
{
	if (result < 0)
		elog(ERROR, "could not execute \"%s\": %s", statement->sql,
			 SPI_result_code_string(result));
	return SPI_processed;
}

uint64
saga_statement_run(SagaStatement *statement, Datum *values, const char *nulls,
				   bool read_only, long limit)
{
	prepare(statement);
	return check_result(statement,
						SPI_execute_plan(statement->plan, values, nulls,
										 read_only, limit));
}

uint64
saga_statement_read_latest(SagaStatement *statement, Datum *values)
{
	prepare(statement);
	CommandCounterIncrement();
	return check_result(statement,
						SPI_execute_snapshot(statement->plan, values, NULL,
											 GetLatestSnapshot(),
											 InvalidSnapshot, true, false, 0));
}

Datum
saga_statement_datum(uint64 row, int column, bool *isnull)
{
	return SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc,
						 column, isnull);
}

Datum
saga_statement_text(const char *text, char *null)
{
	*null = text == NULL ? 'n' : ' ';
	return text == NULL ? (Datum) 0 : CStringGetTextDatum(text);
}
