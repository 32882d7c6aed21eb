--
-- Participants outside: what must not go on for ever, what a person can still
-- do, and whose word counts.
--
SELECT setval('saga.saga_id_seq', 44000000, false) AS ids_begin_at;
-- Claim one task, as soon as it is there.
CREATE FUNCTION saga_test.claim_one(queue text, lease interval DEFAULT '1 hour', OUT id bigint, OUT lease_token uuid, OUT operation saga.operation, OUT attempt integer)
LANGUAGE plpgsql AS $$
DECLARE
    patience constant timestamptz := clock_timestamp() + '1 min';
BEGIN
    LOOP
        SELECT c.id, c.lease_token, c.operation, c.attempt INTO id, lease_token, operation, attempt
        FROM saga.claim_tasks(queue, 1, lease, 'regress') c;
        EXIT WHEN FOUND;
        IF clock_timestamp() > patience THEN
            RAISE EXCEPTION 'timed out waiting for a task of queue %', queue;
        END IF;
        PERFORM pg_sleep(0.01);
    END LOOP;
END
$$;
CREATE FUNCTION saga_test.wait_for_task(id bigint, status text) RETURNS void LANGUAGE sql AS $$
    SELECT saga_test.wait_until(
        format('(SELECT EXISTS (SELECT FROM saga.tasks t WHERE t.saga_id = %s AND t.status = %L))', id, status),
        format('a task of saga %s that is %s', id, status), id)
$$;
-- A pivot whose deadline has passed and which cannot turn back, since a
-- participant may have done it: it is offered once more, and stays.
SELECT saga.define('limits_pivot', saga.external_step('c', 'limits_pivot', pivot => true, compensation => NULL, retry => saga.retry_policy(5, '5 ms')));
SELECT saga.begin('limits_pivot', deadline => clock_timestamp() + '2 s') AS id \gset
SELECT id > 0 AS claimed FROM saga_test.claim_one('limits_pivot', '1 ms');
SELECT saga_test.wait_for_task(:id, 'expired');
SELECT saga_test.wait_for_task(:id, 'ready');
SELECT saga_test.wait_until(format('(SELECT deadline < clock_timestamp() FROM saga.sagas WHERE saga_id = %s)', :id), 'its deadline', :id);
SELECT pg_sleep(0.3);
SELECT status, count(*) < 4 AS few FROM saga.tasks WHERE saga_id = :id GROUP BY status ORDER BY status;
SELECT attempt, saga.complete_task(id, lease_token) FROM saga_test.claim_one('limits_pivot');
SELECT saga_test.outcome(:id);
-- One that nobody has claimed is taken back at the deadline, and by a person.
SELECT saga.begin('limits_pivot', deadline => clock_timestamp() + '300 ms') AS id \gset
SELECT saga_test.outcome(:id);
SELECT status FROM saga.tasks WHERE saga_id = :id;
SELECT saga.begin('limits_pivot') AS id \gset
SELECT saga_test.wait_for_task(:id, 'ready');
SELECT saga.cancel(:id, 'nobody has it') = :id AS cancelled;
SELECT saga_test.outcome(:id);
SELECT saga.begin('limits_pivot') AS id \gset
SELECT id AS task, lease_token AS token FROM saga_test.claim_one('limits_pivot') \gset
\set VERBOSITY terse
SELECT saga.cancel(:id, 'somebody has it');
\set VERBOSITY default
SELECT saga.complete_task(:task, :'token');
SELECT saga_test.outcome(:id);
-- A person's retry gives an action all of its time again.
SELECT saga.define('limits_total', saga.step('p', 'saga_test.act', pivot => true), saga.external_step('c', 'limits_total', total_timeout => '2 s'));
SELECT saga.begin('limits_total') AS id \gset
SELECT saga_test.wait_until(format('(SELECT status = ''stuck'' FROM saga.sagas WHERE saga_id = %s)', :id), 'it to be stuck', :id);
SELECT saga.retry(:id, 'again') = :id AS retried;
SELECT operation, saga.complete_task(id, lease_token) FROM saga_test.claim_one('limits_total');
SELECT saga_test.outcome(:id);
-- A task that is given back too late has waited too long to be claimed.
SELECT saga.define('limits_claim', saga.external_step('c', 'limits_claim', claim_timeout => '1 s', retry => saga.retry_policy(1)));
SELECT saga.begin('limits_claim') AS id \gset
SELECT id AS task, lease_token AS token FROM saga_test.claim_one('limits_claim') \gset
SELECT pg_sleep(1.1);
SELECT saga.release_task(:task, :'token');
SELECT saga_test.outcome(:id);
SELECT sqlstate FROM saga.attempts WHERE saga_id = :id;
-- The data of a saga may be too large for a participant: that step fails, and
-- nobody else's tasks wait for it.
CREATE FUNCTION saga_test.much(ctx jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT to_jsonb(repeat('x', 110000000)) $$;
SELECT saga.define('limits_size', saga.step('a', 'saga_test.much'), saga.external_step('c', 'limits_size'));
SELECT saga.begin('limits_size') AS id \gset
SELECT saga_test.outcome(:id);
SELECT sqlstate, message FROM saga.attempts WHERE saga_id = :id;
-- The right to offer counts when an action is offered; what was done can be undone.
CREATE ROLE regress_limits_owner LOGIN;
CREATE ROLE regress_limits_app LOGIN;
SELECT saga.grant_usage('regress_limits_owner'), saga.grant_usage('regress_limits_app');
SET ROLE regress_limits_owner;
SELECT saga.create_queue('limits_right');
SELECT saga.grant_offer('limits_right', 'regress_limits_app');
SET ROLE regress_limits_app;
SELECT saga.define('limits_right', saga.external_step('a', 'limits_right', compensation => 'undo a'), saga.signal_step('go'), saga.external_step('b', 'limits_right'));
SELECT saga.begin('limits_right') AS id \gset
SET ROLE regress_limits_owner;
SELECT operation, saga.complete_task(id, lease_token) FROM saga_test.claim_one('limits_right');
SELECT saga.revoke_offer('limits_right', 'regress_limits_app');
SET ROLE regress_limits_app;
SELECT saga.signal(:id, 'go');
SET ROLE regress_limits_owner;
SELECT operation, saga.complete_task(id, lease_token) FROM saga_test.claim_one('limits_right');
RESET ROLE;
SELECT saga_test.outcome(:id);
SELECT step, operation, sqlstate, message FROM saga.attempts WHERE saga_id = :id;
-- A forced drop of the definition takes nothing from a saga that has begun.
SET ROLE regress_limits_owner;
SELECT saga.define('limits_drop', saga.signal_step('go'), saga.external_step('a', 'limits_right'));
SELECT saga.grant_begin('limits_drop', 'regress_limits_app');
SET ROLE regress_limits_app;
SELECT saga.begin('limits_drop') AS id \gset
SET ROLE regress_limits_owner;
SELECT saga.drop_definition('limits_drop', force => true);
RESET ROLE;
SELECT saga.signal(:id, 'go');
SELECT operation, saga.complete_task(id, lease_token) FROM saga_test.claim_one('limits_right');
SELECT saga_test.outcome(:id);
-- Who does not know the token learns nothing, whatever queue it is.
SELECT saga.grant_participant('regress_limits_app', 'limits_pivot');
SELECT saga.begin('limits_claim') AS id \gset
SELECT id AS task FROM saga_test.claim_one('limits_claim') \gset
SET ROLE regress_limits_app;
\set VERBOSITY sqlstate
SELECT saga.complete_task(:task, gen_random_uuid());
SELECT saga.complete_task(1000000000, gen_random_uuid());
\set VERBOSITY default
RESET ROLE;
SELECT saga.cancel(:id) = :id AS cancelled;
SELECT saga_test.wait_until(format('(SELECT cancel_requested FROM saga.tasks WHERE id = %s)', :task), 'the participant to be asked', :id);
SELECT saga.abandon(:id) = :id AS abandoned;
-- The views may stand in a query that is made to run in parallel.
BEGIN;
SELECT set_config(name, 'on', true) FROM pg_settings WHERE name IN ('force_parallel_mode', 'debug_parallel_query');
SELECT count(*) > 0 AS there FROM saga.queues WHERE queue LIKE 'limits%';
SELECT count(*) >= 0 AS there FROM saga.participants;
ROLLBACK;
SELECT saga.drop_definition('limits_right');
SELECT saga.drop_queue('limits_right');
DROP OWNED BY regress_limits_owner, regress_limits_app;
DROP ROLE regress_limits_owner, regress_limits_app;
