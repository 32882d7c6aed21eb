-- Sagas of one external step, and a bare table of the same tasks.  Run as the
-- role that owns everything here.
\set ON_ERROR_STOP on
SET client_min_messages = warning;

SELECT saga.define('errand', saga.external_step('run', 'errands')) \g /dev/null

-- as many bytes as the input of an order
CREATE FUNCTION errand_input(i int) RETURNS jsonb
LANGUAGE sql IMMUTABLE AS $$
    SELECT jsonb_build_object('order_id', i, 'item_id', 1 + i % 1000, 'qty', 1 + i % 3,
        'amount', 10 + i % 90, 'refused', false)
$$;

-- The bare queue: a task is claimed by an UPDATE, which has to be durable
-- before the work begins, and deleted when it is done.
CREATE TABLE bare_task (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    lease_until timestamptz,
    payload jsonb NOT NULL
);
CREATE INDEX bare_task_waiting ON bare_task (id) WHERE lease_until IS NULL;

-- what a participant gets of a saga, as the payload of the bare ones
CREATE TABLE bare_payload (payload jsonb NOT NULL);

CREATE PROCEDURE fill_bare_tasks(tasks int)
LANGUAGE sql AS $$
    TRUNCATE bare_task;
    INSERT INTO bare_task (payload) SELECT payload FROM bare_payload, generate_series(1, tasks);
$$;

-- all that is left
CREATE PROCEDURE run_errands()
LANGUAGE plpgsql AS $$
DECLARE
    ids bigint[];
    tokens uuid[];
BEGIN
    LOOP
        SELECT array_agg(id), array_agg(lease_token) INTO ids, tokens
        FROM saga.claim_tasks('errands', max => 100);
        EXIT WHEN ids IS NULL;
        PERFORM saga.complete_tasks(ids, tokens);
        COMMIT;
    END LOOP;
END $$;
