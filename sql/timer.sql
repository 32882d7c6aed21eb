--
-- Timers: for so long, or until a time that a function computes.
--
SELECT setval('saga.saga_id_seq', 24000000, false) AS ids_begin_at;
CREATE FUNCTION saga_test.soon(context jsonb) RETURNS timestamptz LANGUAGE sql AS $$ SELECT clock_timestamp() + interval '50 ms' $$;
CREATE FUNCTION saga_test.a_while(context jsonb) RETURNS interval LANGUAGE sql AS $$ SELECT interval '50 ms' $$;
CREATE FUNCTION saga_test.when_input_says(moment timestamptz) RETURNS timestamptz LANGUAGE sql AS $$ SELECT moment $$;
CREATE FUNCTION saga_test.not_a_time(context jsonb) RETURNS text LANGUAGE sql AS $$ SELECT 'noon' $$;
SET ROLE regress_saga_owner;
SELECT saga.define('timer',
    saga.step('a', 'saga_test.act', 'saga_test.act'),
    saga.timer_step('pause', '100 ms'),
    saga.timer_step('soon', until => 'saga_test.soon'),
    saga.timer_step('a_while', until => 'saga_test.a_while'),
    saga.timer_step('at_once', '0'),
    saga.step('last', 'saga_test.act'));
SELECT step, kind, wait, action FROM saga.definition_steps WHERE definition = 'timer' ORDER BY position;
SELECT saga.begin('timer') AS id \gset
SELECT saga_test.outcome(:id);
SELECT * FROM saga_test.story(:id);
SELECT finished_at - started_at >= '100 ms' AS long_enough FROM saga.steps WHERE saga_id = :id AND step = 'pause';
-- While it waits.
SELECT saga.define('timer_long', saga.step('a', 'saga_test.act', 'saga_test.act'), saga.timer_step('cool_off', '14 days'), saga.step('b', 'saga_test.act'));
SELECT saga.begin('timer_long') AS id \gset
SELECT saga_test.waits_for(:id);
SELECT step, status, waits_until - started_at BETWEEN '13 days 23 hours' AND '14 days 1 min' AS due FROM saga.steps WHERE saga_id = :id AND step = 'cool_off';
SELECT count(*) > 0 AS explained FROM saga.explain(:id) WHERE detail LIKE '%cool_off%' OR detail LIKE '%timer%';
-- It goes back from there at once.
SELECT saga.cancel(:id, 'changed my mind') = :id AS cancelled;
SELECT saga_test.outcome(:id);
SELECT saga_test.log(:id);
-- A time that has passed fires at once; null and infinity are errors.
SELECT saga.define('timer_input', saga.timer_step('t', until => 'saga_test.when_input_says'));
SELECT saga.begin('timer_input', '{"moment": "2020-01-01"}') AS id \gset
SELECT saga_test.outcome(:id);
SELECT saga.begin('timer_input', '{"moment": null}') AS id \gset
SELECT saga_test.outcome(:id);
SELECT sqlstate, message, detail FROM saga.attempts WHERE saga_id = :id;
SELECT saga.begin('timer_input', '{"moment": "infinity"}') AS id \gset
SELECT saga_test.outcome(:id);
SELECT sqlstate, message, detail FROM saga.attempts WHERE saga_id = :id;
-- Beside other branches.
SELECT saga.define('timer_beside', saga.timer_step('t', '50 ms'), saga.step('a', 'saga_test.act', after => '{}'), saga.step('b', 'saga_test.act', after => '{t,a}'));
SELECT saga.begin('timer_beside') AS id \gset
SELECT saga_test.outcome(:id);
SELECT saga_test.log(:id);
-- Wrong ones.
SELECT saga.define('timer_wrong', saga.timer_step('t', '-1 s'));
SELECT saga.define('timer_wrong', saga.timer_step('t', '1 month'));
SELECT saga.define('timer_wrong', saga.timer_step('t'));
SELECT saga.define('timer_wrong', saga.timer_step('t', '1 s', until => 'saga_test.soon'));
SELECT saga.define('timer_wrong', saga.timer_step('t', until => 'saga_test.not_a_time'));
SELECT saga.define('timer_wrong', '{"kind": "timer", "name": "t", "delay": 1, "compensation": "saga_test.act"}');
-- A hundred that wait: none of them is looked at.
SELECT count(saga.begin('timer_long')) FROM generate_series(1, 100);
SELECT saga_test.wait_until('(SELECT count(*) FROM saga.sagas WHERE definition = ''timer_long'' AND waiting_for = ''timer'') = 100', 'all of them to wait');
SELECT count(saga.cancel(saga_id)) FROM saga.sagas WHERE definition = 'timer_long' AND status = 'running';
SELECT * FROM saga_test.all_ended('timer_long');
RESET ROLE;
DROP FUNCTION saga_test.soon, saga_test.a_while, saga_test.when_input_says, saga_test.not_a_time;
