/*
 * statnotes.h
 *		Between statnotes.c, which collects what a transaction does, and stats.c,
 *		which adds it to shared memory.  Nobody else needs it.
 */
#ifndef SAGA_STATNOTES_H
#define SAGA_STATNOTES_H

#include "stats.h"

/* What a transaction did to the sagas of a definition, or to an operation of a
 * step. */
typedef struct SagaStatsNote
{
	int32		version;		/* id of the definition's version */
	int16		position;		/* of the step; -1: of the definition */
	int16		operation;
	int			level;			/* of the subtransaction that did it */
	bool		moves;			/* is there anything in "gauges"? */
	int32		gauges[SAGA_NGAUGES];	/* so many more */
	SagaTally	tally;
	char		definition[NAMEDATALEN];
	char		step[NAMEDATALEN];
} SagaStatsNote;

/*
 * All of these may be called at the end of a transaction: they neither throw nor
 * allocate.  "xid" is the transaction's, as a FullTransactionId's value.
 */
extern void saga_stats_apply(const SagaStatsNote *notes, int n, uint64 xid,
							 bool uncertain);

/* Keep them until the prepared transaction of that name ends; "" : it is not
 * known. */
extern void saga_stats_keep(const SagaStatsNote *notes, int n, uint64 xid,
							const char *gid);

#endif							/* SAGA_STATNOTES_H */
