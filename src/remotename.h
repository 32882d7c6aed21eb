/*
 * remotename.h
 *		Names of functions of other databases, which nobody here can look up.
 *
 * Any backend, on memory only.  Results are in CurrentMemoryContext.
 */
#ifndef SAGA_REMOTENAME_H
#define SAGA_REMOTENAME_H

typedef struct SagaRemoteName
{
	const char *schema;			/* NULL = wherever the search_path there leads */
	const char *function;
} SagaRemoteName;

/*
 * Read 'ship', 'wh.ship' or '"Wh"."Ship"' as SQL reads names.  Returns NULL, or
 * a sentence that says what is wrong.
 */
extern const char *saga_remote_name_parse(const char *text,
										  SagaRemoteName *name);

/*
 * For people, and for storing: wh.ship, "Wh"."Ship".  The same for all ways to
 * write the same name, and read as that name again.
 */
extern char *saga_remote_name_text(const SagaRemoteName *name);

/* For SQL that is sent to whatever version: always in quotes. */
extern char *saga_remote_name_quoted(const SagaRemoteName *name);

#endif							/* SAGA_REMOTENAME_H */
