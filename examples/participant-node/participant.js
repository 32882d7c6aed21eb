#!/usr/bin/env node
'use strict';
// A participant of sagas: claims tasks of a queue, has them done, answers.  See README.md.
const os = require('node:os');
const { setTimeout: sleep } = require('node:timers/promises');
const { Client } = require('pg');
const { tasks, Refused } = require('./tasks');

const setting = (name, otherwise) => process.env[`SAGA_${name}`] ?? otherwise;
const QUEUE = setting('QUEUE', 'payments');
const BATCH = Number(setting('BATCH', 10));
const CONCURRENCY = Number(setting('CONCURRENCY', 10));
const [LEASE, POLL, GRACE] = [['LEASE', 30], ['POLL', 10], ['GRACE', 20]]
  .map(([name, seconds]) => Number(setting(name, seconds)) * 1000);

let due = true; // there may be tasks to claim
let stopAt = Infinity; // when we end, after SIGTERM
let woken = false;
let wake = () => { woken = true; };
const clients = new Set(); // to be closed together

// Wait until wake() is called, or has been: true; or for so long: false.
function wakened(ms) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, ms, false);
    wake = () => { clearTimeout(timer); woken = true; resolve(true); };
    if (woken) wake();
  }).finally(() => { woken = false; });
}

async function connect(connectionString) {
  const client = new Client({
    connectionString, connectionTimeoutMillis: 5000, query_timeout: 30000,
    keepAlive: true, keepAliveInitialDelayMillis: 30000,
  });
  clients.add(client);
  client.on('error', () => { client.lost = true; wake(); }); // unheard it would end the process
  client.on('notification', () => { due = true; wake(); });
  await client.connect();
  return client;
}

async function listen() {
  const client = await connect(process.env.SAGA_LISTEN_DSN);
  await client.query(`LISTEN ${client.escapeIdentifier(`saga_${QUEUE}`)}`);
  return client;
}

// One transaction: all of the statements, or none.
async function transaction(db, statements) {
  await db.query('BEGIN');
  for (const [sql, values] of statements) await db.query(sql, values);
  await db.query('COMMIT');
}

function failure(task, error) {
  const known = error instanceof Refused; // else it may have been done all the same
  return ['SELECT saga.fail_task($1, $2, $3, retryable => $4, outcome_unknown => $5)',
    [task.id, task.lease_token, error.message || String(error), !known, !known]];
}

// Do the task, and leave the statements that tell so in task.answer.
async function perform(task) {
  try {
    if (task.signal.aborted) throw new Refused('no longer wanted');
    const [result, ...effects] = await tasks[task.task](task);
    task.answer = [...effects, ['SELECT saga.complete_task($1, $2, $3)',
      [task.id, task.lease_token, JSON.stringify(result)]]];
  } catch (error) {
    task.answer = [failure(task, error)];
  }
  wake();
}

// If the connection breaks, call it again: the same answer is accepted twice.
async function answer(db, task) {
  let statements = task.answer;
  for (let tries = 0; tries < 2; tries++) {
    try {
      return await transaction(db, statements);
    } catch (error) {
      await db.query('ROLLBACK'); // throws if the connection is lost
      console.warn(`task ${task.id}: ${error.message}`);
      if (error.code === 'SG030') return; // the lease is lost, and the task somebody else's
      statements = [failure(task, error)];
    }
  }
}

const leases = (list) => [list.map((task) => task.id), list.map((task) => task.lease_token)];

async function main() {
  const held = new Map(); // tasks claimed and not answered, by id
  let waiting = []; // those of them that are not begun
  let db, listener, extendAt = 0, pause = 100;
  const stop = () => { stopAt = Math.min(stopAt, Date.now() + GRACE); wake(); };
  process.on('SIGTERM', stop).on('SIGINT', stop);

  while (stopAt === Infinity || (held.size > 0 && Date.now() < stopAt)) {
    try {
      db ??= await connect();
      if (stopAt < Infinity && waiting.length > 0) {
        await db.query('SELECT saga.release_tasks($1, $2, skip_lost => true)', leases(waiting));
        waiting.forEach((task) => held.delete(task.id));
        waiting = [];
      }
      for (const task of [...held.values()].filter((each) => each.answer)) {
        await answer(db, task);
        held.delete(task.id);
      }
      if (held.size > 0 && Date.now() >= extendAt) {
        const { rows } = await db.query('SELECT * FROM saga.extend_leases($1, $2, $3, skip_lost => true)',
          [...leases([...held.values()]), `${LEASE} ms`]);
        const wanted = new Set(rows.filter((row) => !row.cancel_requested).map((row) => row.id));
        held.forEach((task) => wanted.has(task.id) || task.abort.abort());
        extendAt = Date.now() + LEASE / 3;
      }
      if (due && stopAt === Infinity && held.size < CONCURRENCY) {
        due = false; // unless we are notified from here on, or get all that we ask for
        const { rows } = await db.query('SELECT * FROM saga.claim_tasks($1, $2, $3, $4)',
          [QUEUE, BATCH, `${LEASE} ms`, `${os.hostname()}/${process.pid}`]);
        if (held.size === 0) extendAt = Date.now() + LEASE / 3;
        for (const task of rows) {
          task.abort = new AbortController();
          task.signal = task.abort.signal;
          held.set(task.id, task);
          waiting.push(task);
        }
        due ||= rows.length === BATCH;
      } else if (!listener) {
        listener = await listen();
        due = true; // what was notified before is lost
      } else {
        const pollAfter = Math.min(POLL, LEASE / 3) * (0.5 + Math.random() / 2);
        due = !await wakened(stopAt < Infinity ? 500 : pollAfter) || due;
        if (listener.lost) throw new Error('the listening connection is lost');
        pause = 100;
      }
      while (waiting.length > 0 && stopAt === Infinity && held.size - waiting.length < CONCURRENCY) {
        perform(waiting.shift());
      }
    } catch (error) { // the server is restarting, maybe
      console.warn(error.message || error.code);
      clients.forEach((client) => client.end().catch(() => {}));
      clients.clear();
      db = listener = null;
      due = true;
      await sleep(pause * (0.5 + Math.random() / 2));
      pause = Math.min(2 * pause, LEASE / 6, 5000);
    }
  }
  process.exit(held.size > 0 ? 1 : 0); // 1: leases are left to expire
}

main();
