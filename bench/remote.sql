-- What both databases of the remote steps have.  Run as the role that owns
-- everything in them.
\set ON_ERROR_STOP on

-- What a function of a saga's step gets, of a call that is no saga's.
CREATE FUNCTION shipment(order_id int, sku int) RETURNS jsonb
LANGUAGE sql AS $$
    SELECT jsonb_build_object('saga_id', order_id, 'step', 'ship', 'operation', 'action', 'attempt', 1,
        'definition', 'ship_10', 'idempotency_key', '00000000-0000-0000-0000-000000000000/ship',
        'input', jsonb_build_object('order_id', order_id, 'sku', sku, 'qty', 1), 'results', '{}'::jsonb)
$$;
