/*
 * upkeep.h
 *		What is done about tasks that nobody looks after.
 *
 * The coordinator and CALL saga.recover(), inside a transaction.
 */
#ifndef SAGA_UPKEEP_H
#define SAGA_UPKEEP_H

#include "datatype/timestamp.h"

/* End the leases that are over, and send their sagas word; also of answers from
 * before that time which nobody has taken, since a wake-up was lost.  Returns
 * when the next lease ends; DT_NOEND if none does.  Adds to *ended how many
 * leases it has ended; may be NULL. */
extern TimestampTz saga_upkeep_end_leases(TimestampTz answered_before,
										  int64 *ended);

/* Have every queue with tasks that nobody has claimed announced again. */
extern void saga_upkeep_announce_ready(void);

/* Delete a batch of tasks that have ended longer ago than
 * saga.answer_retention; returns how many. */
extern int64 saga_upkeep_purge(void);

#endif							/* SAGA_UPKEEP_H */
