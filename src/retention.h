/*
 * retention.h
 *		Sagas that ended long ago are removed: see retention.c for how.
 *
 * The coordinator, and CALL saga.retain(); with no transaction open, or in a
 * procedure the one that it always has.
 */
#ifndef SAGA_RETENTION_H
#define SAGA_RETENTION_H

#include "datatype/timestamp.h"

#include "engine.h"

/* What was done; the numbers are added to. */
typedef struct SagaRetained
{
	int64		removed;		/* sagas that are gone */
	int64		moved;			/* sagas that were moved to another leaf */
	int64		leaves;			/* leaves that were emptied */
	const char *waits_for;		/* why a leaf that is to be emptied is not; static
								 * text, NULL = nothing */
} SagaRetained;

/*
 * Do what there is to do, in transactions of some 50 ms each, until that time or
 * until nothing can be done; at least one transaction.  Returns when there is
 * more to do, a time that is over if there is now; DT_NOEND if there is nothing
 * that could ever be removed.  Waits for nobody, but for a lock for a moment.  An
 * error is logged, or raised with "raise".
 */
extern TimestampTz saga_retention_run(const SagaDriver *driver,
									  TimestampTz until, bool raise,
									  SagaRetained *done);

/* The next run looks at all leaves at once, whenever that was to be. */
extern void saga_retention_look_now(void);

/* saga.adopt() changes rows of all sagas: it waits until none is being moved,
 * and none is until its transaction ends. */
extern void saga_retention_keep_off(void);

#endif							/* SAGA_RETENTION_H */
