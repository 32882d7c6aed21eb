'use strict';
// The tasks of the queue "payments": what you replace by your own.
//
// A task is a row of saga.claim_tasks(), and no transaction is open while it is done: call whom
// you like, and pass on task.idempotency_key.  Return the result, and statements with their
// arguments that are committed together with the answer: short ones, for all tasks share a
// connection.  task.signal is aborted when nobody needs the task any more, or its lease is lost.
const { setTimeout: sleep } = require('node:timers/promises');

// Nothing was done, and another attempt would be refused as well.
class Refused extends Error {}

async function charge_card(task) {
  const { order_id, amount, seconds = 0 } = task.payload.input;
  if (amount > 1000) throw new Refused('card declined');
  // In place of real work, which ends early when it is not needed.
  await sleep(seconds * 1000, null, { signal: task.signal })
    .catch(() => { throw new Refused('no longer wanted'); });
  return [{ paid: amount }, [
    'INSERT INTO payment (idempotency_key, order_id, amount) VALUES ($1, $2, $3)' +
    ' ON CONFLICT DO NOTHING', [task.idempotency_key, order_id, amount]]];
}

async function refund(task) {
  // What was charged; where task.payload.outcome_unknown is set that may be nothing.
  return [{}, [
    'INSERT INTO payment (idempotency_key, order_id, amount)' +
    ' SELECT $1, order_id, -amount FROM payment WHERE order_id = $2 AND amount > 0' +
    ' ON CONFLICT DO NOTHING', [task.idempotency_key, task.payload.input.order_id]]];
}

module.exports = { tasks: { charge_card, refund }, Refused };
