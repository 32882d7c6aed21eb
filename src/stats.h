/*
 * stats.h
 *		Statistics in shared memory: how many sagas there are, by definition,
 *		status and what they wait for; how many were begun and have ended; how
 *		long they and their steps take.
 *
 * None of these functions throws but where it is said.  Without a segment (not
 * preloaded) they do nothing.
 */
#ifndef SAGA_STATS_H
#define SAGA_STATS_H

#include "datatype/timestamp.h"
#include "utils/snapshot.h"

#include "machine.h"
#include "series.h"

/* Is there a segment? */
extern bool saga_stats_available(void);

/* What a saga that is not final waits for, of the column waiting_for. */
typedef enum SagaReason
{
	SAGA_REASON_WORKER,			/* for nothing: somebody is to go on with it */
	SAGA_REASON_NEXT_ATTEMPT,
	SAGA_REASON_START_TIME,
	SAGA_REASON_TIMER,
	SAGA_REASON_SIGNAL,
	SAGA_REASON_CHILD,
	SAGA_REASON_PARTICIPANT,	/* or for one to claim its task */
	SAGA_REASON_SERVER,
	SAGA_REASON_LOCK,
	SAGA_REASON_PLACE,			/* in its definition, or in a step */
	SAGA_REASON_PARENT,
	SAGA_REASON_RESUME,
	SAGA_REASON_PERSON,			/* stuck */
	SAGA_REASON_ADOPT,			/* of another coordinator */
	SAGA_REASON_OTHER			/* several things */
} SagaReason;

#define SAGA_NREASONS		(SAGA_REASON_OTHER + 1)

/* Statuses that are not final come first. */
#define SAGA_NUNFINISHED	SAGA_STATUS_COMPLETED

/* Sagas that are not final, by status, then by reason: each is in one of the
 * former and in one of the latter. */
#define SAGA_NGAUGES		(SAGA_NUNFINISHED + SAGA_NREASONS)

/* "waiting_for" is a saga's, NULL = nothing; and the word for SQL. */
extern SagaReason saga_stats_reason(const char *waiting_for);
extern const char *saga_stats_reason_name(SagaReason reason);

/* As what a saga is counted. */
typedef struct SagaCounted
{
	SagaStatus	status;
	SagaReason	reason;			/* of no meaning when it is final */
} SagaCounted;

/* ---- who writes rows: notes of a transaction ---------------------------- */

/*
 * A saga was begun; or its row now says "to" where it said "from".  "version"
 * is the id of the definition's version, so that the next note is found
 * quickly; "duration", microseconds from its start, counts if it has become
 * final.  May run out of memory.
 */
extern void saga_stats_begun(const char *definition, int32 version,
							 SagaCounted as);
extern void saga_stats_moved(const char *definition, int32 version,
							 SagaCounted from, SagaCounted to, int64 duration);

/* An attempt of an operation has ended.  May run out of memory. */
extern void saga_stats_attempt(const char *definition, int32 version,
							   const char *step, int position,
							   SagaOperation operation, bool succeeded,
							   int64 duration);

/* Rows were, or may have been, written by other means: once this transaction
 * has committed the sagas of this database are to be counted. */
extern void saga_stats_uncertain(void);

/* ---- hooks --------------------------------------------------------------- */

/* The longest name of a prepared transaction, with its end: GIDSIZE of the
 * server. */
#define SAGA_MAX_GID	200

/* This transaction is about to be prepared under that name; one of that name
 * was committed or rolled back. */
extern void saga_stats_preparing(const char *gid);
extern void saga_stats_prepared_ended(const char *gid, bool committed);

/* The database is gone, or its extension. */
extern void saga_stats_forget_database(Oid database);

/* ---- counting: store.c, in a transaction that has written nothing ----------- */

/* Is it to be counted?  "look" also for signs that the gauges are wrong. */
extern bool saga_stats_wants_count(bool look);

/* Prepared transactions of before that time may have begun sagas that nobody
 * knows of; 0 = none may.  The second: none is left. */
extern TimestampTz saga_stats_lost_before(void);
extern void saga_stats_none_lost(TimestampTz before);

/*
 * Begin to count.  Returns the number of the count, and the snapshot under
 * which the rows are to be counted; 0 if somebody else is about it, or they
 * cannot be counted here.  It is over with saga_stats_count_done(), or with the
 * next that begins.  Raises what taking a snapshot does.
 */
extern uint32 saga_stats_count_begin(Snapshot *snapshot);

/* So many there are of a definition; NULL: of one that nobody knows. */
typedef struct SagaCount
{
	const char *definition;
	int64		n[SAGA_NGAUGES];
} SagaCount;

extern void saga_stats_count_done(uint32 number, const SagaCount *counts,
								  int ncounts);
extern void saga_stats_count_failed(uint32 number);

/* ---- who looks ------------------------------------------------------------- */

typedef struct SagaStatistics
{
	char		definition[NAMEDATALEN];
	char		step[NAMEDATALEN];	/* "": of the definition as a whole */
	int			operation;
	TimestampTz since;			/* when counting began */
	SagaSeries	series;
} SagaStatistics;

/* What is counted in a series. */
enum
{
	SAGA_COUNT_BEGUN, SAGA_COUNT_COMPLETED, SAGA_COUNT_COMPENSATED,
	SAGA_COUNT_ABANDONED
};

enum
{
	SAGA_COUNT_SUCCEEDED, SAGA_COUNT_FAILED
};

/* The next definition (or step) of this database; "position" is 0 at first.
 * False: there is none. */
extern bool saga_stats_next(int *position, bool steps, SagaStatistics *entry);

/*
 * How many sagas there are now of a definition; NULL: of those that there was no
 * room for.  False if that is not known.
 */
extern bool saga_stats_gauges(const char *definition, int64 *gauges);

/* Is there an entry of it, as saga_stats_next() finds them? */
extern bool saga_stats_has_definition(const char *definition);

/* The next definition of which there are some. */
extern bool saga_stats_next_gauges(int *position, char *definition,
								   int64 *gauges);

/* Forget all but the gauges; NULL: of all definitions of this database. */
extern void saga_stats_reset(const char *definition);

/* ---- the module --------------------------------------------------------------- */

/* Ask for the segment; from _PG_init() in the postmaster. */
extern void saga_stats_init(void);

#endif							/* SAGA_STATS_H */
