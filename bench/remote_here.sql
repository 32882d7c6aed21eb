-- The shop, from where the warehouse is called: by sagas, and by dblink.  Run as
-- the role that owns everything here; the servers are there.
\set ON_ERROR_STOP on

-- The same call in the way that holds up its caller, over a connection that is
-- kept.
CREATE FUNCTION ship_there(server text, context jsonb) RETURNS jsonb
LANGUAGE plpgsql AS $$
DECLARE
    answer jsonb;
BEGIN
    IF dblink_get_connections() IS NULL THEN
        PERFORM dblink_connect('there', server);
    END IF;
    SELECT t.answer INTO answer FROM dblink('there', format('SELECT ship(%L)', context)) AS t(answer jsonb);
    RETURN answer;
END $$;

-- Sagas that call it at a server, with and without a way back.
CREATE FUNCTION define_shipping(server text) RETURNS void
LANGUAGE sql AS $$
    SELECT saga.define(server, saga.remote_step('ship', server => server, action => 'ship'));
    SELECT saga.define(server || '_undoable',
        saga.remote_step('ship', server => server, action => 'ship', compensation => 'unship'));
$$;

CREATE FUNCTION order_to_ship(i int) RETURNS jsonb
LANGUAGE sql IMMUTABLE AS $$
    SELECT jsonb_build_object('order_id', i, 'sku', 1 + i * 7919::bigint % 10000, 'qty', 1)
$$;
