/*
 * invariant.h
 *		Invariants, and what was found to violate them.
 *
 * Any backend, in a transaction.  What is read is in CurrentMemoryContext, and
 * is the newest that was committed.
 */
#ifndef SAGA_INVARIANT_H
#define SAGA_INVARIANT_H

#include "datatype/timestamp.h"
#include "nodes/pg_list.h"
#include "utils/array.h"
#include "utils/jsonb.h"

#include "role.h"

/* The most rows that an invariant may ask for, and the most bytes of them. */
#define SAGA_INVARIANT_MAX_ROWS		10000
#define SAGA_INVARIANT_MAX_ROW_SIZE	(100 * 1024)
#define SAGA_INVARIANT_MAX_SIZE		(16 * 1024 * 1024)

typedef struct SagaInvariant
{
	int32		id;
	int			revision;
	int64		checks;
	const char *name;
	const char *query;			/* one SELECT */
	const char *search_path;
	const char *time_zone;
	const char *definition;		/* may be NULL */
	SagaRoleRef owner;
	ArrayType  *key;			/* text[]; may be NULL */
	int64		timeout;		/* microseconds */
	int			max_rows;
	bool		pause;
	bool		to_pause;		/* the sagas that run are to be paused still */
	bool		foreign;		/* of another coordinator: see saga.adopt() */
	bool		own;			/* written by the current transaction */
	int			violations;
	TimestampTz checked_at;		/* 0 = never */
	Jsonb	   *error;			/* of the last check; may be NULL */
} SagaInvariant;

/* NULL if there is none. */
extern SagaInvariant *saga_invariant_read(int32 id);

/* What a check has brought. */
typedef struct SagaFinding
{
	TimestampTz at;				/* what was committed then is what it saw */
	int64		duration;		/* microseconds */
	Jsonb	   *error;			/* not NULL: it has failed, and the rest counts
								 * for nothing */
	ArrayType  *rows;			/* jsonb[] */
	bool		truncated;		/* there are more */
} SagaFinding;

/* Errors as they are kept. */
extern Jsonb *saga_invariant_error(int sqlstate, const char *message,
								   const char *detail, const char *hint,
								   const char *context);

/* What is new about it, for the server's log. */
typedef struct SagaInvariantChange
{
	bool		violated;		/* and was not before */
	bool		good;			/* likewise */
	const char *failed;			/* why, if it did not fail before; or NULL */
	const char *pauses;			/* the definition that was disabled; or NULL */
} SagaInvariantChange;

/*
 * Keep what was found, note what changes for those who see to it, and disable
 * the definition if that was asked for; false if the invariant is not the one
 * any more that was read.  The current user is its owner, if "finding" is no
 * error.
 */
extern bool saga_invariant_record(const SagaInvariant *invariant,
								  const SagaFinding *finding,
								  SagaInvariantChange *change);

/* Once that was committed. */
extern void saga_invariant_log(const SagaInvariant *invariant,
							   const SagaInvariantChange *change);

/*
 * In another transaction: ask the sagas of the definition that run to pause, if
 * that is to be done.  False if somebody may be beginning one just now: then it
 * is to be called again, with "wait", to find those.
 */
extern bool saga_invariant_pause_sagas(const SagaInvariant *invariant,
									   bool wait);

/* In another one: find the sagas that may have made the new violations. */
extern void saga_invariant_find_sagas(const SagaInvariant *invariant);

/* For saga.adopt(): bind owners to the roles that have their names here. */
extern void saga_invariant_adopt(void);

#endif							/* SAGA_INVARIANT_H */
