--
-- Prepared transactions: a saga that was begun in one, or what was asked of a
-- saga in one, counts at COMMIT PREPARED and never was after ROLLBACK PREPARED
-- (P1).  (expected/prepared_1.out: where there are none.)
--
SELECT current_setting('max_prepared_transactions')::integer > 0 AS possible \gset
\if :possible
\else
\quit
\endif
SELECT setval('saga.saga_id_seq', 7000000, false) AS ids_begin_at;
CREATE SCHEMA prepared_test AUTHORIZATION regress_saga_owner;
SET ROLE regress_saga_owner;
CREATE FUNCTION prepared_test.act() RETURNS text LANGUAGE sql RETURN 'acted';
CREATE FUNCTION prepared_test.later() RETURNS text LANGUAGE sql AS $$ SELECT saga.retry_later('1 day')::text $$;
SELECT saga.define('prepared', saga.step('act', 'prepared_test.act'));
SELECT saga.define('prepared_later', saga.step('later', 'prepared_test.later'));

BEGIN;
SELECT saga.begin('prepared', key => 'kept') AS kept \gset
SAVEPOINT s;
SELECT saga.begin('prepared', key => 'not kept') AS not_kept \gset
ROLLBACK TO s;
PREPARE TRANSACTION 'regress_saga_kept';
BEGIN;
SELECT saga.begin('prepared', key => 'rolled back') AS rolled_back \gset
PREPARE TRANSACTION 'regress_saga_rolled_back';
-- Nobody sees them yet, and who wants the key waits.
SELECT count(*) FROM saga.sagas WHERE definition = 'prepared';
SET lock_timeout = '50 ms';
\set SHOW_CONTEXT never
SELECT saga.begin('prepared', key => 'kept');
\echo :LAST_ERROR_SQLSTATE
RESET lock_timeout;
\set SHOW_CONTEXT errors
-- Another saga that runs meanwhile changes nothing of that.
SELECT saga.begin('prepared', key => 'another') AS another \gset
SELECT saga_test.outcome(:another);
SELECT count(*) FROM saga.sagas WHERE definition = 'prepared';
COMMIT PREPARED 'regress_saga_kept';
SELECT saga_test.outcome(:kept);
ROLLBACK PREPARED 'regress_saga_rolled_back';
SELECT key, status FROM saga.sagas WHERE definition = 'prepared' ORDER BY key;
SELECT saga.begin('prepared', key => 'kept') = :kept AS same;
SELECT saga.begin('prepared', key => 'rolled back') <> :rolled_back AS new;
SELECT * FROM saga_test.all_ended('prepared');

-- Many at once.
BEGIN;
SELECT count(saga.begin('prepared', key => 'many ' || n)) FROM generate_series(1, 5000) n;
PREPARE TRANSACTION 'regress_saga_many';
COMMIT PREPARED 'regress_saga_many';
SELECT * FROM saga_test.all_ended('prepared');

-- What is asked of a saga.
SELECT saga.begin('prepared_later') AS id \gset
SELECT saga_test.waits_for(:id);
BEGIN;
SELECT saga.abandon(:id, 'not really') = :id AS abandoned;
PREPARE TRANSACTION 'regress_saga_verb';
ROLLBACK PREPARED 'regress_saga_verb';
SELECT status FROM saga.sagas WHERE saga_id = :id;
BEGIN;
SELECT saga.cancel(:id, 'really') = :id AS cancelled;
PREPARE TRANSACTION 'regress_saga_verb';
COMMIT PREPARED 'regress_saga_verb';
SELECT saga_test.outcome(:id);

RESET ROLE;
SET client_min_messages = warning;
SELECT count(saga.drop_definition(name)) FROM saga.definitions WHERE name LIKE 'prepared%';
DROP SCHEMA prepared_test CASCADE;
