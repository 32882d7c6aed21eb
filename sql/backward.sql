--
-- Going back: compensations in reverse order, only for steps that succeeded,
-- never past a pivot (P5); a compensation is retried on any error and, out of
-- attempts, leaves the saga stuck: visibly, with one alert, for a person to
-- decide.
--
SELECT setval('saga.saga_id_seq', 3000000, false) AS ids_begin_at;
CREATE SCHEMA backward_test AUTHORIZATION regress_saga_owner;
GRANT USAGE ON SCHEMA backward_test TO PUBLIC;
SET ROLE regress_saga_owner;

-- A step writes what it did, and fails when the input says so: "fail" names
-- operations, each with how often they fail (0 = always), "state" the SQLSTATE.
CREATE TABLE backward_test.log (n bigint GENERATED ALWAYS AS IDENTITY, saga_id bigint, what text);
CREATE FUNCTION backward_test.act(context jsonb) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    me text := concat_ws(' ', context ->> 'operation', context ->> 'step');
    times integer := context #>> ARRAY['input', 'fail', me];
BEGIN
    INSERT INTO backward_test.log (saga_id, what) VALUES ((context ->> 'saga_id')::bigint, me);
    IF times = 0 OR (context ->> 'attempt')::integer <= times THEN
        RAISE EXCEPTION '% failed', me USING ERRCODE = coalesce(context #>> '{input,state}', 'P0001'),
            DETAIL = 'Attempt ' || (context ->> 'attempt') || '.', HINT = 'Try harder.';
    END IF;
    RETURN me;
END
$$;
CREATE FUNCTION backward_test.log(id bigint) RETURNS text LANGUAGE sql
    AS 'SELECT string_agg(what, '', '' ORDER BY n) FROM backward_test.log WHERE saga_id = id';
-- a, b (without compensation), c, d: no pivot.
SELECT saga.define('back',
    saga.step('a', 'backward_test.act', 'backward_test.act', retry => saga.retry_policy(2, '5 ms'), compensation_retry => saga.retry_policy(3, '5 ms')),
    saga.step('b', 'backward_test.act', retry => saga.retry_policy(2, '5 ms')),
    saga.step('c', 'backward_test.act', 'backward_test.act', retry => saga.retry_policy(2, '5 ms'), compensation_retry => saga.retry_policy(3, '5 ms')),
    saga.step('d', 'backward_test.act', 'backward_test.act', retry => saga.retry_policy(2, '5 ms'), compensation_retry => saga.retry_policy(3, '5 ms')));
-- The same with its pivot at b.
SELECT saga.define('back_pivot',
    saga.step('a', 'backward_test.act', 'backward_test.act', retry => saga.retry_policy(2, '5 ms'), compensation_retry => saga.retry_policy(3, '5 ms')),
    saga.step('b', 'backward_test.act', pivot => true, retry => saga.retry_policy(2, '5 ms')),
    saga.step('c', 'backward_test.act', retry => saga.retry_policy(3, '5 ms')),
    saga.step('d', 'backward_test.act', retry => saga.retry_policy(3, '5 ms', fail_on => '{23505}')));

-- Nothing fails: nothing is undone.
SELECT saga.begin('back') AS id \gset
SELECT saga_test.outcome(:id);
SELECT backward_test.log(:id);

-- Wherever it fails, what succeeded is undone, the last first.  (The log has what
-- really happened: what failed attempts wrote to it was undone with them.)
SELECT count(saga.begin('back', jsonb_build_object('fail', jsonb_build_object('action ' || s, 0)), key => 'fails at ' || s)) FROM unnest('{a,b,c,d}'::text[]) s;
SELECT * FROM saga_test.all_ended('back');
SELECT key, status, backward_test.log(saga_id), error ->> 'message' AS error FROM saga.sagas WHERE key LIKE 'fails at %' ORDER BY key;
SELECT saga_id AS id FROM saga.sagas WHERE key = 'fails at d' \gset
SELECT * FROM saga_test.story(:id);
SELECT error FROM saga.sagas WHERE saga_id = :id;
-- A compensation is retried on any error, by its own policy.
SELECT count(saga.begin('back', jsonb_build_object('fail', jsonb_build_object('action d', 0, 'compensation c', 2, 'compensation a', 1), 'state', s), key => 'compensations ' || s)) FROM unnest('{P0001,23505,40001}'::text[]) s;
SELECT * FROM saga_test.all_ended('back');
SELECT key, status, backward_test.log(saga_id) FROM saga.sagas WHERE key LIKE 'compensations %' ORDER BY key;
SELECT saga_id AS id FROM saga.sagas WHERE key = 'compensations 23505' \gset
SELECT * FROM saga_test.story(:id);
SELECT step, operation, attempt, outcome, passing, sqlstate, message, detail, hint FROM saga.attempts WHERE saga_id = :id ORDER BY started_at;
-- The first cause stays.
SELECT error ->> 'step' AS step, error ->> 'operation' AS operation, error ->> 'message' AS message, error ->> 'detail' AS detail, error ->> 'hint' AS hint FROM saga.sagas WHERE saga_id = :id;

-- Out of attempts it is stuck, and nothing before it is undone meanwhile.
SELECT saga.begin('back', '{"fail": {"action d": 0, "compensation c": 0}}', key => 'stuck') AS id \gset
SELECT saga_test.outcome(:id);
SELECT backward_test.log(:id);
SELECT * FROM saga_test.story(:id);
SELECT definition, version, key, owner, step, operation, attempts, cause ->> 'message' AS cause, last_error ->> 'message' AS last_error, last_error ->> 'detail' AS last_detail, since >= created_at AS since
FROM saga.stuck WHERE saga_id = :id;
SELECT status, step, waiting_for, next_attempt_at, finished_at, compensates FROM saga.sagas WHERE saga_id = :id;
-- Retry: all attempts of the policy again; then it is stuck again.
SELECT saga.retry(:id, 'another go') = :id AS retried;
SELECT saga_test.outcome(:id);
SELECT attempts, failures, status FROM saga.steps WHERE saga_id = :id AND step = 'c' AND operation = 'compensation';
-- Skip: taken for done; what comes after goes on.
SELECT saga.skip(:id, 'done by hand') = :id AS skipped;
SELECT saga_test.outcome(:id);
SELECT backward_test.log(:id);
SELECT step, operation, status, attempts, error FROM saga_test.story(:id);
SELECT error ->> 'message' AS error, finished_at IS NOT NULL AS finished FROM saga.sagas WHERE saga_id = :id;
SELECT count(*) FROM saga.stuck WHERE saga_id = :id;
SELECT verb, step, reason, requested_by, outcome, applied_at >= requested_at AS applied FROM saga.requests WHERE saga_id = :id ORDER BY id;
-- Abandon: closed as it is.
SELECT saga.begin('back', '{"fail": {"action c": 0, "compensation a": 0}}', key => 'abandoned') AS id \gset
SELECT saga_test.outcome(:id);
SELECT saga.abandon(:id, 'not worth it') = :id AS abandoned;
SELECT saga_test.outcome(:id);
SELECT error ->> 'message' AS error, waiting_for FROM saga.sagas WHERE saga_id = :id;
SELECT step, operation, status, attempts, error FROM saga_test.story(:id);
SELECT backward_test.log(:id);
-- Retry after the cause was mended.
SELECT saga.begin('back', '{"fail": {"action c": 0, "compensation a": 4}}', key => 'mended') AS id \gset
SELECT saga_test.outcome(:id);
SELECT saga.retry(:id, step => 'a') = :id AS retried;
SELECT saga_test.outcome(:id);
SELECT step, operation, status, attempts FROM saga_test.story(:id);
-- An alert each time a saga gets stuck, and when it is not any more, with a payload
-- that programs read; none for those that only failed.
RESET ROLE;
SELECT saga_test.wait_until('NOT EXISTS (SELECT FROM saga.alert)', 'the earlier alerts to be sent');
LISTEN saga_alert;
SET ROLE regress_saga_owner;
\o |sed -n 's/"at": "[^"]*", "id": [0-9]*, //; s/ received from server process with PID [0-9]*//p'
SELECT saga.begin('back', '{"fail": {"action c": 0}}') AS failed \gset
SELECT saga_test.outcome(:failed);
SELECT saga.begin('back', '{"fail": {"action c": 0, "compensation a": 0}}', key => 'it''s "stuck"') AS id \gset
SELECT saga_test.outcome(:id);
SELECT saga.retry(:id);
SELECT saga_test.outcome(:id);
SELECT saga.begin('back_pivot', '{"fail": {"action d": 0}}') AS forward \gset
SELECT saga_test.outcome(:forward);
SELECT saga.abandon(:id);
SELECT saga_test.outcome(:id);
SELECT saga.abandon(:forward);
SELECT saga_test.outcome(:forward);
RESET ROLE;
SELECT saga_test.wait_until('NOT EXISTS (SELECT FROM saga.alert)', 'all alerts to be sent');
NOTIFY saga_alert, 'that is all';
\o
UNLISTEN saga_alert;
SET ROLE regress_saga_owner;

-- Before the pivot all is as ever; the pivot's own failure turns it back too.
SELECT saga.begin('back_pivot', '{"fail": {"action b": 0}}', key => 'pivot fails') AS id \gset
SELECT saga_test.outcome(:id);
SELECT backward_test.log(:id);
-- After it any error is retried, and nothing is ever undone.
SELECT saga.begin('back_pivot', '{"fail": {"action c": 2}, "state": "23505"}', key => 'forward') AS id \gset
SELECT saga_test.outcome(:id);
SELECT backward_test.log(:id);
SELECT * FROM saga_test.failures(:id);
SELECT saga.begin('back_pivot', '{"fail": {"action c": 0}}', key => 'stuck forward') AS id \gset
SELECT saga_test.outcome(:id);
SELECT backward_test.log(:id);
SELECT step, operation, status, attempts, error FROM saga_test.story(:id);
SELECT step, operation, attempts, cause ->> 'message' AS cause, last_error ->> 'message' AS last_error FROM saga.stuck WHERE saga_id = :id;
SELECT status, compensates FROM saga.sagas WHERE saga_id = :id;
SELECT saga.cancel(:id);
SELECT saga.skip(:id, 'done by hand', step => 'c') = :id AS skipped;
SELECT saga_test.outcome(:id);
SELECT backward_test.log(:id);
SELECT step, operation, status, attempts, error FROM saga_test.story(:id);
-- The policy's fail_on, and saga.fail(), which is final: stuck at once.
SELECT saga.begin('back_pivot', '{"fail": {"action d": 0}, "state": "23505"}', key => 'stuck at once') AS id \gset
SELECT saga_test.outcome(:id);
SELECT step, operation, status, attempts, error FROM saga_test.story(:id);
SELECT * FROM saga_test.failures(:id);
SELECT saga.abandon(:id, 'end of test') = :id AS abandoned;
CREATE FUNCTION backward_test.refuse(context jsonb) RETURNS void LANGUAGE sql
    AS $$ SELECT saga.fail('cannot ' || (context ->> 'operation'), 'never') $$;
SELECT saga.define('back_fail', saga.step('a', 'backward_test.act', 'backward_test.refuse', compensation_retry => saga.retry_policy(0)), saga.step('b', 'backward_test.refuse'));
SELECT saga.begin('back_fail') AS id \gset
SELECT saga_test.outcome(:id);
SELECT step, operation, status, attempts, error FROM saga_test.story(:id);
SELECT saga.skip(:id) = :id AS skipped;
SELECT saga_test.outcome(:id);
-- A compensation may ask for its own time.
CREATE FUNCTION backward_test.later(context jsonb) RETURNS text LANGUAGE sql
    AS $$ SELECT CASE WHEN context ->> 'attempt' = '1' THEN saga.retry_later('20 ms')::text END $$;
SELECT saga.define('back_later', saga.step('a', 'backward_test.act', 'backward_test.later', compensation_retry => saga.retry_policy(1)), saga.step('b', 'backward_test.refuse'));
SELECT saga.begin('back_later') AS id \gset
SELECT saga_test.outcome(:id);
SELECT step, operation, status, attempts, error FROM saga_test.story(:id);

-- Cancelled where it waits; what waited is not attempted again.
CREATE FUNCTION backward_test.not_yet() RETURNS void LANGUAGE sql AS $$ SELECT saga.retry_later('1 day', 'not yet') $$;
SELECT saga.define('back_wait', saga.step('a', 'backward_test.act', 'backward_test.act'), saga.step('b', 'backward_test.not_yet', 'backward_test.act'), saga.step('c', 'backward_test.act'));
SELECT saga.begin('back_wait') AS id \gset
SELECT saga_test.waits_for(:id);
SELECT saga.cancel(:id, 'changed my mind') = :id AS cancelled;
SELECT saga_test.outcome(:id);
SELECT backward_test.log(:id);
SELECT step, operation, status, attempts, error FROM saga_test.story(:id);
SELECT error FROM saga.sagas WHERE saga_id = :id;
-- Many steps: undone in reverse, each once.
SELECT saga.define('back_long', VARIADIC array_agg(saga.step('s' || n, 'backward_test.act', 'backward_test.act') ORDER BY n) || saga.step('last', 'backward_test.refuse')) FROM generate_series(1, 300) n;
SELECT saga.begin('back_long') AS id \gset
SELECT saga_test.outcome(:id);
SELECT count(*), array_agg(what ORDER BY n) = array(SELECT 'action s' || n FROM generate_series(1, 300) n) || array(SELECT 'compensation s' || n FROM generate_series(300, 1, -1) n) AS in_order
FROM backward_test.log WHERE saga_id = :id;

-- Many sagas, a part of which goes back: the sum is kept, whatever happened.
CREATE TABLE backward_test.account (id integer PRIMARY KEY, balance integer NOT NULL CHECK (balance >= 0));
INSERT INTO backward_test.account SELECT n, 100 FROM generate_series(0, 9) n;
CREATE FUNCTION backward_test.debit(source integer, amount integer) RETURNS void LANGUAGE sql AS 'UPDATE backward_test.account SET balance = balance - amount WHERE id = source';
CREATE FUNCTION backward_test.undebit(source integer, amount integer) RETURNS void LANGUAGE sql AS 'UPDATE backward_test.account SET balance = balance + amount WHERE id = source';
CREATE FUNCTION backward_test.credit(target integer, amount integer, refused boolean) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    UPDATE backward_test.account SET balance = balance + amount WHERE id = target;
    IF refused THEN
        PERFORM saga.fail('refused');
    END IF;
END
$$;
SELECT saga.define('back_transfer', saga.step('debit', 'backward_test.debit', 'backward_test.undebit'), saga.step('credit', 'backward_test.credit'));
SELECT count(saga.begin('back_transfer', jsonb_build_object('source', n % 10, 'target', (n * 7 + 3) % 10, 'amount', 1 + n % 90, 'refused', n % 5 = 0))) FROM generate_series(1, 1000) n;
SELECT sum(sagas) FROM saga_test.all_ended('back_transfer');
SELECT sum(balance) FROM backward_test.account;
SELECT bool_and(status = 'compensated') FROM saga.sagas WHERE definition = 'back_transfer' AND (input ->> 'refused')::boolean;

SELECT count(*) FROM saga.sagas WHERE definition LIKE 'back%' AND finished_at IS NULL;
RESET ROLE;
SET client_min_messages = warning;
SELECT count(saga.drop_definition(name)) FROM saga.definitions WHERE name LIKE 'back%';
DROP SCHEMA backward_test CASCADE;
