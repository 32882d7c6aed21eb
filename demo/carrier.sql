-- A step that the database cannot do: a carrier ships the parcel.  psql plays the
-- carrier's program, in a session of its own role, which may take the tasks of
-- its queue and nothing else.
\set ON_ERROR_STOP on
SET client_min_messages = warning;

CREATE TABLE shop.labels (idempotency_key text PRIMARY KEY, order_id int NOT NULL);
CREATE FUNCTION shop.is_offered(saga_id bigint) RETURNS boolean LANGUAGE sql AS
$$ SELECT count(*) > 0 FROM saga.tasks t WHERE t.saga_id = $1 AND t.status = 'ready' $$;
-- Until a task of the saga is there.
CREATE PROCEDURE shop.await_task(saga_id bigint) LANGUAGE plpgsql AS $$
BEGIN
    FOR i IN 1 .. 2000 LOOP
        EXIT WHEN shop.is_offered(saga_id);
        PERFORM pg_sleep(0.01);
        COMMIT;
    END LOOP;
END $$;

\set ECHO queries
SELECT saga.define('ship_order',
    saga.external_step('ship', queue => 'parcels', action => 'print label', compensation => 'void label'),
    saga.step('confirm', 'shop.confirm_order'));
SELECT saga.grant_participant('carrier', queue => 'parcels');
GRANT USAGE ON SCHEMA shop TO carrier;
GRANT SELECT, INSERT ON shop.labels TO carrier;

SELECT saga.begin('ship_order', '{"order_id": 42}', key => 'order-42') AS id \gset
CALL shop.await_task(:id);
SELECT topic, detail FROM saga.explain(:id) WHERE topic = 'waits for';
\set ECHO none
\echo '-- The carrier claims, prints, answers: the label and the answer are one transaction.'
\c - carrier
\set ECHO queries
SELECT * FROM saga.claim_tasks('parcels', max => 1, lease => '30 s', participant => 'carrier/1') \gset task_
SELECT :'task_task' AS task, :'task_payload'::jsonb -> 'input' AS input, :'task_idempotency_key' AS idempotency_key;
BEGIN;
INSERT INTO shop.labels VALUES (:'task_idempotency_key', (:'task_payload'::jsonb #>> '{input,order_id}')::int) ON CONFLICT DO NOTHING;
SELECT saga.complete_task(:task_id, :'task_lease_token', '{"tracking": "NO-4711"}');
COMMIT;
\set ECHO none
\echo '-- Somebody who is late, or has guessed, is not believed.'
\set ON_ERROR_STOP off
\set ECHO queries
SELECT saga.complete_task(:task_id, gen_random_uuid(), '{"tracking": "NO-4712"}');
\set ECHO none
\set ON_ERROR_STOP on
\c - shop
SET client_min_messages = warning;
\set ECHO queries
CALL saga.wait(:id, timeout => '20 s');
SELECT step, operation, status, result FROM saga.steps WHERE saga_id = :id ORDER BY position;
\set ECHO none
SELECT (SELECT status FROM saga.sagas WHERE saga_id = :id) = 'completed'
       AND (SELECT count(*) FROM shop.labels) = 1 AS good \gset
\if :good
\else
\warn 'The parcel is not as it should be.'
SELECT 1 / 0;
\endif
