--
-- Signals: a step that waits for somebody.
--
SELECT setval('saga.saga_id_seq', 25000000, false) AS ids_begin_at;
SET ROLE regress_saga_owner;
SELECT saga.define('signal',
    saga.step('a', 'saga_test.act', 'saga_test.act'),
    saga.signal_step('approved'),
    saga.step('last', 'saga_test.act'));
SELECT step, kind, wait, otherwise FROM saga.definition_steps WHERE definition = 'signal' ORDER BY position;
-- It waits, and goes on.
SELECT saga.begin('signal') AS id \gset
SELECT saga_test.waits_for(:id);
SELECT count(*) > 0 AS explained FROM saga.explain(:id) WHERE detail LIKE '%approved%';
SELECT saga.signal(:id, 'approved', '{"by": "Ada"}');
SELECT saga_test.outcome(:id);
SELECT * FROM saga_test.story(:id);
SELECT verb, step, requested_by, outcome FROM saga.requests WHERE saga_id = :id;
-- The saga has ended.
\set VERBOSITY terse
SELECT saga.signal(25000000, 'approved');
\set VERBOSITY default
-- Before its step: it is kept.
SELECT saga.define('signal_later', saga.timer_step('first', '200 ms'), saga.signal_step('approved'));
SELECT saga.begin('signal_later', key => 'order-42') AS id \gset
SELECT saga.signal('signal_later', key => 'order-42', signal => 'approved', payload => '"early"');
-- A second one.
\set VERBOSITY sqlstate
SELECT saga.signal(:id, 'approved', '"twice"');
\set VERBOSITY default
SELECT saga.signal(:id, 'approved', '"twice"', on_duplicate => 'ignore');
SELECT saga_test.outcome(:id);
SELECT saga.result(:id);
-- In the transaction that begins the saga.
BEGIN;
SELECT saga.begin('signal') AS id \gset
SELECT saga.signal(:id, 'approved');
COMMIT;
SELECT saga_test.outcome(:id);
SELECT step, result FROM saga_test.story(:id) WHERE step = 'approved';
-- Its time passes: it fails, or has another result.
SELECT saga.define('signal_timeout', saga.step('a', 'saga_test.act', 'saga_test.act'), saga.signal_step('approved', timeout => '50 ms'));
SELECT saga.begin('signal_timeout') AS id \gset
SELECT saga_test.outcome(:id);
SELECT step, sqlstate, message FROM saga_test.failures(:id);
SELECT saga_test.log(:id);
SELECT saga.define('signal_otherwise', saga.signal_step('approved', timeout => '50 ms', otherwise => '{"by": "nobody"}'));
SELECT saga.begin('signal_otherwise') AS id \gset
SELECT saga_test.outcome(:id);
SELECT saga.result(:id);
-- The saga goes back while it waits.
SELECT saga.begin('signal') AS id \gset
SELECT saga_test.waits_for(:id);
SELECT saga.cancel(:id) = :id AS cancelled;
SELECT saga_test.outcome(:id);
SELECT saga_test.log(:id);
-- Wrong ones.
SELECT saga.begin('signal', key => 'k') AS id \gset
SELECT saga_test.waits_for(:id);
\set VERBOSITY sqlstate
SELECT saga.signal(:id, 'nothing');
SELECT saga.signal(:id, 'a');
SELECT saga.signal(:id, NULL);
SELECT saga.signal(:id, 'approved', on_duplicate => 'perhaps');
SELECT saga.signal(-1, 'approved');
SELECT saga.signal('signal', 'no such key', 'approved');
SELECT saga.signal('no such definition', 'k', 'approved');
RESET ROLE;
SET ROLE regress_saga_other;
SELECT saga.signal(:id, 'approved');
RESET ROLE;
\set VERBOSITY default
-- An operator may.
SET ROLE regress_saga_operator;
SELECT saga.signal(:id, 'approved', '"by the operator"');
RESET ROLE;
SET ROLE regress_saga_owner;
SELECT saga_test.outcome(:id);
SELECT saga.define('signal_wrong', saga.signal_step('s', timeout => '-1 s'));
SELECT saga.define('signal_wrong', saga.signal_step('s', otherwise => '1'));
-- A null payload is a result too; a pivot may be a signal.
SELECT saga.define('signal_pivot', saga.step('a', 'saga_test.act', 'saga_test.act'), saga.signal_step('go', pivot => true), saga.step('b', 'saga_test.act', retry => saga.retry_policy(3, '5 ms')));
SELECT saga.begin('signal_pivot', '{"fail": {"action b": 1}}') AS id \gset
SELECT saga.signal(:id, 'go', 'null');
SELECT saga_test.outcome(:id);
SELECT saga_test.log(:id);
RESET ROLE;
