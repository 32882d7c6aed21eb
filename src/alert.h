/*
 * alert.h
 *		Conditions that somebody should see to, and the alerts that are sent when
 *		one comes and when it goes.
 *
 * A condition is one row of saga.condition, as long as it holds, whoever asks
 * how often for it to be noted.  Its coming and its going are rows of
 * saga.alert, which the coordinator sends and deletes.
 *
 * Any backend, in a transaction: what is noted counts once that has committed.
 */
#ifndef SAGA_ALERT_H
#define SAGA_ALERT_H

#include "datatype/timestamp.h"
#include "utils/jsonb.h"

#include "store.h"

#define SAGA_ALERT_STUCK		"stuck"
#define SAGA_ALERT_DEADLOCK		"deadlock"
#define SAGA_ALERT_OVERDUE		"overdue"
#define SAGA_ALERT_BREAKER		"breaker"
#define SAGA_ALERT_NO_WORKER	"no_worker"
#define SAGA_ALERT_INVARIANT	"invariant"
#define SAGA_ALERT_INVARIANT_FAILED	"invariant_failed"

typedef struct SagaCondition
{
	const char *kind;			/* SAGA_ALERT_* */
	const char *subject;		/* for people: of one kind there is one of each */
	Oid			role;			/* whose members see it, with the name it has */
	const char *role_name;
	int64		saga_id;		/* 0 = it is not about one */
	const char *definition;		/* may be NULL */
	const char *message;		/* likewise */
	Jsonb	   *fields;			/* the subject, for programs: an object */
} SagaCondition;

/* It holds.  Returns whether it did not before; then an alert is sent. */
extern bool saga_alert_on(const SagaCondition *condition);

/* It does not hold, or not any more; "message" may be NULL.  Returns whether it
 * did before. */
extern bool saga_alert_off(const char *kind, const char *subject,
						   const char *message);

/* For saga.adopt(): the sagas that were stuck in the original are stuck here. */
extern void saga_alert_adopt(void);

/* ---- executors: of a saga that they have locked ------------------------- */

extern void saga_alert_saga_on(const Saga *saga, const char *kind,
							   const char *message);
extern void saga_alert_saga_off(const Saga *saga, const char *kind);

/* ---- the coordinator, or who stands in for it ----------------------------- */

/* Send and delete alerts that wait (NOTIFY saga_alert), a limited number; false
 * if there may be more. */
extern bool saga_alert_send(void);

/* Look at the conditions that come and go by themselves, and note what has
 * changed.  Returns when to look again; DT_NOEND if nothing is known that will
 * change. */
extern TimestampTz saga_alert_watch(void);

#endif							/* SAGA_ALERT_H */
