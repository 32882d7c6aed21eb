-- A warehouse: what the other database of the remote steps has.  Run there, as
-- the role that owns everything.
\set ON_ERROR_STOP on

CREATE TABLE stock (sku int PRIMARY KEY, on_hand int NOT NULL);
INSERT INTO stock SELECT i, 1000000 FROM generate_series(1, 10000) i;
CREATE TABLE shipments (shipment_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    order_id int NOT NULL, sku int NOT NULL, qty int NOT NULL);
ANALYZE stock;

CREATE FUNCTION ship(context jsonb) RETURNS jsonb
LANGUAGE plpgsql AS $$
DECLARE
    input jsonb := context -> 'input';
    id bigint;
BEGIN
    UPDATE stock SET on_hand = on_hand - (input ->> 'qty')::int WHERE sku = (input ->> 'sku')::int;
    INSERT INTO shipments (order_id, sku, qty)
        VALUES ((input ->> 'order_id')::int, (input ->> 'sku')::int, (input ->> 'qty')::int)
        RETURNING shipment_id INTO id;
    RETURN jsonb_build_object('shipment_id', id);
END $$;

CREATE FUNCTION unship(context jsonb) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    input jsonb := context -> 'input';
BEGIN
    DELETE FROM shipments WHERE shipment_id = (context #>> '{result,shipment_id}')::bigint;
    UPDATE stock SET on_hand = on_hand + (input ->> 'qty')::int WHERE sku = (input ->> 'sku')::int;
END $$;
