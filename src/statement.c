/*
 * statement.c
 *		Owns how the engine's SQL statements are prepared and run.
 *
 * Plans are kept for the life of the backend; PostgreSQL makes them anew when
 * what they are about has changed.
 */
#include "postgres.h"

#include "executor/spi.h"

#include "statement.h"

uint64
saga_statement_run(SagaStatement *statement, Datum *values, const char *nulls,
				   bool read_only, long limit)
{
	int			result;

	if (statement->plan == NULL)
	{
		SPIPlanPtr	plan = SPI_prepare(statement->sql, statement->nargs,
									   statement->types);

		if (plan == NULL)
			elog(ERROR, "could not prepare \"%s\": %s", statement->sql,
				 SPI_result_code_string(SPI_result));
		SPI_keepplan(plan);
		statement->plan = plan;
	}
	result = SPI_execute_plan(statement->plan, values, nulls, read_only, limit);
	if (result < 0)
		elog(ERROR, "could not execute \"%s\": %s", statement->sql,
			 SPI_result_code_string(result));
	return SPI_processed;
}

Datum
saga_statement_datum(uint64 row, int column, bool *isnull)
{
	return SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc,
						 column, isnull);
}
