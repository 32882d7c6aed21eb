--
-- Versions in flight: a saga stays on its version unless it is migrated, which
-- is refused when what it has done has another meaning there; what a new
-- version would change is shown before.
--
SELECT setval('saga.saga_id_seq', 900000, false) AS ids_begin_at;
CREATE FUNCTION saga_test.act2(context jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT saga_test.act(context) $$;
GRANT EXECUTE ON FUNCTION saga_test.act2 TO PUBLIC;
CREATE FUNCTION saga_test.takes(colour text) RETURNS text LANGUAGE sql AS 'SELECT colour';
CREATE FUNCTION saga_test.wants(context jsonb) RETURNS boolean LANGUAGE sql AS 'SELECT true';
CREATE FUNCTION saga_test.hold(context jsonb) RETURNS void LANGUAGE sql AS 'SELECT pg_advisory_xact_lock(28)';
-- The version and the steps of a saga, as far as it has come.
CREATE FUNCTION saga_test.where_is(id bigint) RETURNS TABLE (version integer, status saga.saga_status, at text, done text) LANGUAGE sql AS $$
    SELECT s.version, s.status, s.step,
           (SELECT string_agg(t.position || ' ' || t.step || ' ' || t.operation || ' ' || t.status, ', ' ORDER BY t.position, t.operation)
            FROM saga.steps t WHERE t.saga_id = id AND t.attempts > 0)
    FROM saga.sagas s WHERE s.saga_id = id
$$;
CREATE FUNCTION saga_test.answered(saga bigint) RETURNS TABLE (verb text, reason text, requested_by text, outcome text) LANGUAGE sql AS $$
    SELECT saga_test.wait_until(format('NOT EXISTS (SELECT FROM saga.requests WHERE saga_id = %s AND outcome = ''pending'')', saga), 'the answer', saga);
    SELECT r.verb, r.reason, r.requested_by, r.outcome FROM saga.requests r WHERE r.saga_id = saga ORDER BY r.id
$$;
SET ROLE regress_saga_owner;
-- Positions change: a step before, one between, one behind.
SELECT saga.define('move', saga.step('a', 'saga_test.act', 'saga_test.act'), saga.signal_step('go'), saga.step('z', 'saga_test.act'));
SELECT saga.begin('move', '{}', key => 'one') AS id \gset
SELECT saga_test.waits_for(:id);
SELECT saga.define('move',
    saga.timer_step('first', '0 s', after => '{}'),
    saga.step('b', 'saga_test.act', 'saga_test.act', after => '{first}'),
    saga.step('a', 'saga_test.act', 'saga_test.act2', after => '{}'),
    saga.signal_step('go', timeout => '1 day', after => '{a}'),
    saga.step('y', 'saga_test.act', after => '{go,b}'),
    saga.step('z', 'saga_test.act', after => '{y}'));
SELECT * FROM saga_test.where_is(:id);
SELECT saga.migrate(:id, reason => 'the new way') = :id AS asked;
SELECT * FROM saga_test.answered(:id);
SELECT saga_test.wait_until(format('EXISTS (SELECT FROM saga.steps WHERE saga_id = %s AND step = ''b'' AND status = ''succeeded'')', :id), 'b', :id);
SELECT * FROM saga_test.where_is(:id);
-- Again: nothing to do.
SELECT saga.migrate(:id) = :id AS asked;
SELECT count(*) FROM saga.requests WHERE saga_id = :id;
-- And back: b, which has succeeded, is not there.
SELECT saga.migrate(:id, 1);
SELECT saga.signal(:id, 'go', '1');
SELECT saga_test.outcome(:id);
SELECT * FROM saga_test.where_is(:id);
-- It has ended.
SELECT saga.migrate(:id, 1);
-- The compensation is the new version's, the failed attempts follow their step.
SELECT saga.define('undo', saga.step('a', 'saga_test.act', 'saga_test.act', retry => saga.retry_policy(initial_delay => '1 ms', retry_on => '{P0001}')), saga.signal_step('go'), saga.step('z', 'saga_test.act'));
SELECT saga.begin('undo', '{"fail": {"action a": 1}}') AS id \gset
SELECT saga_test.wait_until(format('(SELECT waiting_for = ''signal'' FROM saga.sagas WHERE saga_id = %s)', :id), 'the signal step', :id);
SELECT saga.define('undo', saga.step('zero', 'saga_test.act', after => '{}'), saga.step('a', 'saga_test.act', 'saga_test.act2', after => '{}'), saga.signal_step('go', after => '{a}'), saga.step('z', 'saga_test.act', after => '{zero,go}'));
SELECT saga.migrate(:id) = :id AS asked;
SELECT * FROM saga_test.answered(:id);
SELECT saga_test.wait_until(format('EXISTS (SELECT FROM saga.steps WHERE saga_id = %s AND step = ''zero'' AND status = ''succeeded'')', :id), 'zero', :id);
SELECT step, operation, attempt, outcome FROM saga.attempts WHERE saga_id = :id;
SELECT saga.cancel(:id) = :id AS asked;
SELECT saga_test.outcome(:id);
SELECT saga_test.log_sorted(:id);
-- What has to be the same.
SELECT saga.define('same', saga.step('a', 'saga_test.act', 'saga_test.act'), saga.step('e', 'saga_test.act', foreach => 'items', quorum => 1), saga.signal_step('go'));
SELECT saga.begin('same', '{"items": [1, 2], "others": []}') AS id \gset
SELECT saga_test.waits_for(:id);
SELECT saga.define('same', saga.step('a', 'saga_test.act2', 'saga_test.act'), saga.step('e', 'saga_test.act', foreach => 'others'), saga.timer_step('go', '1 day'));
SELECT saga.migrate(:id);
SELECT saga.define('same', saga.step('new', 'saga_test.act'), saga.step('a', 'saga_test.act'), saga.step('e', 'saga_test.act', foreach => 'items', quorum => 2), saga.signal_step('stop'));
SELECT saga.migrate(:id);
SELECT saga.define('same', saga.step('new', 'saga_test.act'), saga.step('a', 'saga_test.act', 'saga_test.act'), saga.step('e', 'saga_test.act', foreach => 'items', quorum => 1), saga.signal_step('go'));
SELECT saga.migrate(:id);
SELECT saga.define('same', saga.step('a', 'saga_test.act', 'saga_test.act', pivot => false), saga.step('e', 'saga_test.act', foreach => 'items', quorum => 1), saga.signal_step('go', pivot => true));
SELECT saga.migrate(:id);
SELECT saga.define('same', saga.step('a', 'saga_test.act', 'saga_test.act'), saga.step('e', 'saga_test.act', foreach => 'items', quorum => 1), saga.signal_step('go'), saga.step('paint', 'saga_test.takes'));
SELECT saga.migrate(:id);
SELECT saga.migrate(:id, 0);
SELECT saga.migrate(:id, 99);
SELECT saga.migrate(999999);
SELECT saga.migrate(NULL);
SELECT saga.migrate(:id, 1) = :id AS nothing_to_do;
SELECT version FROM saga.sagas WHERE saga_id = :id;
-- It moves on between asking and acting: refused then, in saga.requests.
SELECT saga.define('busy', saga.step('held', 'saga_test.hold'), saga.signal_step('stop'));
SELECT pg_advisory_lock(28);
SELECT saga.begin('busy') AS busy \gset
SELECT saga_test.wait_until(format('EXISTS (SELECT FROM saga.workers WHERE saga_id = %s AND step = ''held'')', :busy), 'the step to be under way', :busy);
SELECT saga.define('busy', saga.step('free', 'saga_test.act'), saga.signal_step('stop'));
SELECT saga.migrate(:busy, reason => 'too late') = :busy AS asked;
SELECT verb, reason, outcome FROM saga.requests WHERE saga_id = :busy;
SELECT pg_advisory_unlock(28);
SELECT * FROM saga_test.answered(:busy);
SELECT saga_test.waits_for(:busy);
SELECT * FROM saga_test.where_is(:busy);
SELECT saga.abandon(:busy) = :busy AS asked;
SELECT saga_test.outcome(:busy);
-- In the order in which it was asked.
SELECT saga.define('late', saga.signal_step('go'), saga.step('b', 'saga_test.act'), saga.signal_step('stop'));
SELECT saga.begin('late') AS late \gset
SELECT saga_test.waits_for(:late);
SELECT saga.define('late', saga.signal_step('go'), saga.step('b', 'saga_test.act2'), saga.signal_step('stop'));
SELECT saga.pause(:late) = :late AS asked;
SELECT saga_test.outcome(:late);
BEGIN;
SELECT saga.cancel(:late) = :late AS asked;
SELECT saga.migrate(:late) = :late AS asked;
COMMIT;
SELECT saga_test.outcome(:late);
SELECT * FROM saga_test.answered(:late);
SELECT version, status FROM saga.sagas WHERE saga_id = :late;
SELECT saga.begin('late') AS late \gset
SELECT saga_test.waits_for(:late);
SELECT saga.define('late', saga.signal_step('go', timeout => '1 day'), saga.step('b', 'saga_test.act'), saga.signal_step('stop'));
BEGIN;
SELECT saga.migrate(:late) = :late AS asked;
SELECT saga.signal(:late, 'go');
COMMIT;
SELECT * FROM saga_test.answered(:late);
SELECT saga_test.wait_until(format('EXISTS (SELECT FROM saga.steps WHERE saga_id = %s AND step = ''stop'' AND status = ''running'')', :late), 'stop', :late);
SELECT * FROM saga_test.where_is(:late);
SELECT saga.abandon(id) = id AS asked FROM unnest(ARRAY[:id, :late]) id;
SELECT saga_test.outcome(id) FROM unnest(ARRAY[:id, :late]) id;
-- Children are found by their parent in its new version.
SELECT saga.define('move_child', saga.step('k', 'saga_test.act', 'saga_test.act'), saga.signal_step('grow'));
SELECT saga.define('move_parent', saga.child_step('child', definition => 'move_child'), saga.signal_step('go'));
SELECT saga.begin('move_parent') AS id \gset
SELECT saga_test.wait_until(format('EXISTS (SELECT FROM saga.sagas WHERE parent_id = %s AND waiting_for = ''signal'')', :id), 'the child', :id);
SELECT saga_id AS child FROM saga.sagas WHERE parent_id = :id \gset
SELECT saga.define('move_parent', saga.step('before', 'saga_test.act', after => '{}'), saga.child_step('child', definition => 'move_child', after => '{}'), saga.signal_step('go', after => '{before,child}'));
SELECT saga.migrate(:id) = :id AS asked;
SELECT * FROM saga_test.answered(:id);
SELECT saga.signal(:child, 'grow');
SELECT saga_test.wait_until(format('(SELECT status = ''held'' FROM saga.sagas WHERE saga_id = %s)', :child), 'the child to be held', :child);
SELECT saga_test.wait_until(format('EXISTS (SELECT FROM saga.steps WHERE saga_id = %s AND step = ''go'' AND status = ''running'')', :id), 'go', :id);
SELECT * FROM saga_test.where_is(:id);
-- The child is held, and is as good as done: it has nothing to go on with.
SELECT saga.define('move_child', saga.step('k', 'saga_test.act', 'saga_test.act'), saga.signal_step('grow'), saga.step('more', 'saga_test.act'));
SELECT saga.migrate(:child);
SELECT saga.cancel(:id) = :id AS asked;
SELECT saga_test.outcome(:id), saga_test.outcome(:child);
-- Savepoints: what was done in earlier rounds goes along.
SELECT saga.define('round',
    saga.step('a', 'saga_test.act', 'saga_test.act', savepoint => true, and_then => 'd'),
    saga.step('b', 'saga_test.act', 'saga_test.act'),
    saga.step('c', 'saga_test.act', retry => saga.retry_policy(max_attempts => 1)),
    saga.step('d', 'saga_test.act', 'saga_test.act', after => '{a}'),
    saga.signal_step('go', after => '{c,d}'));
SELECT saga.begin('round', '{"fail": {"action c": 0}}') AS id \gset
SELECT saga_test.wait_until(format('(SELECT waiting_for = ''signal'' FROM saga.sagas WHERE saga_id = %s)', :id), 'the signal step', :id);
SELECT saga.define('round',
    saga.step('zero', 'saga_test.act', 'saga_test.act', after => '{}'),
    saga.step('a', 'saga_test.act', 'saga_test.act', savepoint => true, and_then => 'd', after => '{}'),
    saga.step('b', 'saga_test.act', 'saga_test.act', after => '{a}'),
    saga.step('c', 'saga_test.act', retry => saga.retry_policy(max_attempts => 1), after => '{b}'),
    saga.step('d', 'saga_test.act', 'saga_test.act', after => '{a}'),
    saga.signal_step('go', after => '{c,d}'));
SELECT saga.migrate(:id) = :id AS asked;
SELECT * FROM saga_test.answered(:id);
SELECT position, step, operation, round, status FROM saga.steps WHERE saga_id = :id AND step <> 'zero' ORDER BY position, round, operation;
SELECT step, round, message FROM saga.attempts WHERE saga_id = :id;
SELECT saga.define('round',
    saga.step('a', 'saga_test.act', 'saga_test.act', savepoint => true),
    saga.step('b', 'saga_test.act', 'saga_test.act'),
    saga.step('d', 'saga_test.act', 'saga_test.act', after => '{b}'),
    saga.signal_step('go', after => '{d}'));
SELECT saga_test.wait_until(format('EXISTS (SELECT FROM saga.steps WHERE saga_id = %s AND step = ''zero'' AND status = ''succeeded'')', :id), 'zero', :id);
SELECT saga.migrate(:id);
SELECT saga.signal(:id, 'go');
SELECT saga_test.outcome(:id);
-- Locks follow: the step that took one, and the one with which it is given back.
SELECT saga.define('hold', saga.step('take', 'saga_test.act', exclusive => 'sku', exclusive_until => 'stop'), saga.signal_step('go'), saga.step('stop', 'saga_test.act'), saga.signal_step('end'));
SELECT saga.begin('hold', '{"sku": "A"}') AS holder \gset
SELECT saga_test.waits_for(:holder);
SELECT saga.begin('hold', '{"sku": "A"}') AS waiter \gset
SELECT saga_test.waits_for(:waiter);
SELECT saga.define('hold', saga.step('zero', 'saga_test.act', after => '{}'), saga.step('take', 'saga_test.act', exclusive => 'sku', exclusive_until => 'stop', after => '{}'), saga.signal_step('go', after => '{take}'), saga.step('stop', 'saga_test.act', after => '{go,zero}'), saga.signal_step('end', after => '{stop}'));
-- The lock of a step that stands in line, or has one, is the same.
SELECT saga.define('hold', saga.step('take', 'saga_test.act'), saga.signal_step('go'), saga.step('stop', 'saga_test.act'), saga.signal_step('end'));
SELECT saga.migrate(:holder);
SELECT saga.migrate(:waiter);
-- In bulk, from the view.
SELECT count(saga.migrate(saga_id, 2, 'all of them')) FROM saga.sagas WHERE definition = 'hold' AND finished_at IS NULL;
SELECT * FROM saga_test.answered(:holder);
SELECT * FROM saga_test.answered(:waiter);
SELECT saga_id = :holder AS holds, status, step, until_step FROM saga.locks WHERE lock = 'A' ORDER BY saga_id;
SELECT saga.signal(:holder, 'go');
SELECT saga_test.wait_until(format('(SELECT count(*) = 1 FROM saga.locks WHERE lock = ''A'' AND saga_id = %s AND status = ''held'')', :waiter), 'the waiter''s turn', :waiter);
SELECT saga.signal(:waiter, 'go');
SELECT saga.signal(id, 'end') FROM unnest(ARRAY[:holder, :waiter]) id;
SELECT saga_test.outcome(id) FROM unnest(ARRAY[:holder, :waiter]) id;
-- Who may: roles with the privileges of the saga's, and operators.
SELECT saga.define('mine', saga.signal_step('go'));
SELECT saga.grant_begin('mine', 'regress_saga_other');
SET ROLE regress_saga_other;
SELECT saga.begin('mine') AS id \gset
SELECT saga_test.waits_for(:id);
SET ROLE regress_saga_owner;
SELECT saga.define('mine', saga.signal_step('go'), saga.signal_step('stop'));
SELECT saga.migrate(:id);
SET ROLE regress_saga_monitor;
SELECT saga.migrate(:id);
SET ROLE regress_saga_operator;
SELECT saga.migrate(:id) = :id AS asked;
SELECT * FROM saga_test.answered(:id);
SET ROLE regress_saga_owner;
SELECT saga.revoke_begin('mine', 'regress_saga_other');
SET ROLE regress_saga_other;
SELECT saga.migrate(:id, 1);
SELECT saga.abandon(:id) = :id AS asked;
SELECT saga_test.outcome(:id);
-- A superuser's saga keeps to the version that the superuser trusted.
RESET ROLE;
SELECT saga.begin('mine', trust_definition => true) AS id \gset
SELECT saga_test.waits_for(:id);
SELECT saga.migrate(:id, 1);
SELECT saga.abandon(:id) = :id AS asked;
SELECT saga_test.outcome(:id);
-- Of a definition that was dropped there is nothing newer.
SET ROLE regress_saga_owner;
SELECT saga.define('gone', saga.signal_step('go'));
SELECT saga.begin('gone') AS id \gset
SELECT saga_test.waits_for(:id);
SELECT saga.define('gone', saga.signal_step('go', timeout => '1 day'));
SELECT saga.drop_definition('gone', force => true);
SELECT saga.migrate(:id);
SELECT saga.migrate(:id, 2);
SELECT saga.abandon(:id) = :id AS asked;
SELECT saga_test.outcome(:id);
--
-- What a new version would change.
--
SELECT saga.define('plan',
    saga.step('a', 'saga_test.act', 'saga_test.act', timeout => '10 s'),
    saga.step('b', 'saga_test.act', retry => saga.retry_policy(max_attempts => 3)),
    saga.signal_step('go', timeout => '1 day', otherwise => '{"x": null}'),
    saga.step('z', 'saga_test.act'));
SELECT count(saga.begin('plan')) FROM generate_series(1, 3);
SELECT saga_test.wait_until('(SELECT count(*) = 3 FROM saga.sagas WHERE definition = ''plan'' AND waiting_for = ''signal'')', 'three sagas');
\x
SELECT * FROM saga.impact('plan',
    saga.step('a', 'saga_test.act', 'saga_test.act2', timeout => '20 s', savepoint => true),
    saga.step('n', 'saga_test.takes'),
    saga.signal_step('go', timeout => '2 days', otherwise => 'null'),
    saga.step('z', 'saga_test.act', only_if => 'saga_test.wants'));
SELECT * FROM saga.impact('plan',
    saga.step('a', 'saga_test.takes', timeout => '10 s'),
    saga.step('b', 'saga_test.act', retry => saga.retry_policy(max_attempts => 5, retry_on => '{22}')),
    saga.signal_step('go', timeout => '1 day', otherwise => '{"x": null}'),
    saga.step('z', 'saga_test.act', after => '{a,go}'));
\x
SELECT version FROM saga.definitions WHERE name = 'plan';
-- A definition that is not there yet; a step that cannot be.
SELECT * FROM saga.impact('nothing yet', saga.step('a', 'saga_test.act'));
SELECT * FROM saga.impact('plan', saga.step('a', 'saga_test.nowhere'));
SELECT * FROM saga.impact(NULL, saga.step('a', 'saga_test.act'));
-- For the owner and monitors.
SET ROLE regress_saga_other;
SELECT * FROM saga.impact('plan', saga.step('a', 'saga_test.act'));
SET ROLE regress_saga_monitor;
SELECT step, change, sagas FROM saga.impact('plan', saga.step('a', 'saga_test.act'));
SET ROLE regress_saga_owner;
SELECT count(saga.cancel(saga_id)) FROM saga.sagas WHERE definition = 'plan';
SELECT * FROM saga_test.all_ended('plan');
RESET ROLE;
DROP FUNCTION saga_test.act2, saga_test.where_is, saga_test.answered, saga_test.takes, saga_test.wants, saga_test.hold;
