--
-- saga.lock(): what it refuses, outside of a step and in one.
--
SELECT setval('saga.saga_id_seq', 19000000, false) AS ids_begin_at;
SELECT saga.lock('sku-A');
\echo :LAST_ERROR_SQLSTATE
SELECT saga.lock(repeat('x', 200), '400 days');
SELECT saga.lock(repeat('x', 201));
\echo :LAST_ERROR_SQLSTATE

-- In a step these are errors of the step.
CREATE SCHEMA lock_function_test AUTHORIZATION regress_saga_owner;
SET ROLE regress_saga_owner;
CREATE FUNCTION lock_function_test.take(name text, timeout interval) RETURNS void LANGUAGE sql AS $$ SELECT saga.lock(name, timeout) $$;
SELECT saga.define('lock_function', saga.step('s', 'lock_function_test.take'));
SELECT count(saga.begin('lock_function', v)) FROM unnest(ARRAY[
    '{"name": null, "timeout": "1 h"}',
    '{"name": "sku-A", "timeout": null}',
    '{"name": "", "timeout": "1 h"}',
    '{"name": "a\nb", "timeout": "1 h"}',
    '{"name": "sku-A", "timeout": "-1 s"}',
    '{"name": "sku-A", "timeout": "1 mon -31 days"}',
    '{"name": "sku-A", "timeout": "401 days"}',
    '{"name": "sku-A", "timeout": "14 mons"}']::jsonb[]) v;
SELECT * FROM saga_test.all_ended('lock_function');
SELECT s.input, status, passing, sqlstate, message, a.detail FROM saga.sagas s JOIN saga.attempts a USING (saga_id) WHERE definition = 'lock_function' ORDER BY saga_id;

RESET ROLE;
SET client_min_messages = warning;
SELECT saga.drop_definition('lock_function');
DROP SCHEMA lock_function_test CASCADE;
