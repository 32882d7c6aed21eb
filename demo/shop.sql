-- The shop: existing business functions become the steps of a saga as they
-- are.  Their parameters are filled by name, from the input of the saga or,
-- where one is named like an earlier step, with that step's result.
\set ON_ERROR_STOP on
SET client_min_messages = warning;

CREATE SCHEMA shop;

CREATE TABLE shop.stock (sku text PRIMARY KEY, on_hand int NOT NULL CHECK (on_hand >= 0));
CREATE TABLE shop.orders (order_id int PRIMARY KEY, sku text NOT NULL, qty int NOT NULL,
    amount numeric NOT NULL, status text NOT NULL DEFAULT 'new');
CREATE TABLE shop.reservations (order_id int PRIMARY KEY, sku text NOT NULL, qty int NOT NULL);
CREATE TABLE shop.payments (payment_id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    order_id int NOT NULL, amount numeric NOT NULL);

INSERT INTO shop.stock VALUES ('A', 10);

CREATE FUNCTION shop.reserve_stock(order_id int, sku text, qty int) RETURNS jsonb
LANGUAGE plpgsql AS $$
DECLARE
    remaining int;
BEGIN
    UPDATE shop.stock s SET on_hand = on_hand - qty WHERE s.sku = reserve_stock.sku
        RETURNING on_hand INTO STRICT remaining;
    INSERT INTO shop.reservations VALUES (order_id, sku, qty);
    RETURN jsonb_build_object('on_hand', remaining);
END $$;

CREATE FUNCTION shop.release_stock(order_id int) RETURNS void
LANGUAGE sql AS $$
    WITH gone AS (DELETE FROM shop.reservations r WHERE r.order_id = $1 RETURNING sku, qty)
    UPDATE shop.stock s SET on_hand = on_hand + gone.qty FROM gone WHERE s.sku = gone.sku;
$$;

CREATE FUNCTION shop.charge(order_id int, amount numeric) RETURNS int
LANGUAGE plpgsql AS $$
DECLARE
    id int;
BEGIN
    INSERT INTO shop.payments (order_id, amount) VALUES (order_id, amount)
        RETURNING payment_id INTO id;
    IF amount > 1000 THEN
        RAISE EXCEPTION 'card declined' USING DETAIL = format('%s is above the limit of 1000.', amount);
    END IF;
    RETURN id;
END $$;

-- "charge" is what the step of that name returned: the id of the payment.
CREATE FUNCTION shop.refund(charge int) RETURNS void
LANGUAGE sql AS $$
    DELETE FROM shop.payments WHERE payment_id = $1;
$$;

CREATE FUNCTION shop.confirm_order(order_id int) RETURNS void
LANGUAGE sql AS $$
    UPDATE shop.orders o SET status = 'confirmed' WHERE o.order_id = $1;
$$;

\set ECHO queries

SELECT saga.define('place_order',
    saga.step('reserve_stock', 'shop.reserve_stock', compensation => 'shop.release_stock'),
    saga.step('charge', 'shop.charge', compensation => 'shop.refund'),
    saga.step('confirm', 'shop.confirm_order', pivot => true));

\set ECHO none
\echo '-- An order that can be paid.  The saga begins with the transaction that places it.'
\set ECHO queries
BEGIN;
INSERT INTO shop.orders VALUES (41, 'A', 2, 90);
SELECT saga.begin('place_order', '{"order_id": 41, "sku": "A", "qty": 2, "amount": 90}', key => 'order-41') AS paid \gset
COMMIT;
CALL saga.wait(:paid, timeout => '20 s');
\set ECHO none
\echo '-- One that cannot: the card is declined, and the reserved stock goes back.'
\set ECHO queries
BEGIN;
INSERT INTO shop.orders VALUES (42, 'A', 3, 5000);
SELECT saga.begin('place_order', '{"order_id": 42, "sku": "A", "qty": 3, "amount": 5000}', key => 'order-42') AS declined \gset
COMMIT;
CALL saga.wait(:declined, timeout => '20 s');

SELECT saga_id, key, status, owner, error FROM saga.sagas ORDER BY saga_id;

SELECT saga_id, step, operation, status, attempts, result, error FROM saga.steps ORDER BY saga_id, started_at, step, operation;

SELECT * FROM saga.explain(:paid);

SELECT * FROM saga.explain(:declined);

SELECT saga.timeline(:declined);

SELECT definition, running, stuck, completed, compensated, compensation_ratio_1h, p50_1h, p99_1h FROM saga.health;

-- 10 less the 2 of order 41, one payment, nothing left of order 42
SELECT (SELECT on_hand FROM shop.stock WHERE sku = 'A') AS on_hand,
       (SELECT count(*) FROM shop.reservations) AS reservations,
       (SELECT string_agg(format('order %s: %s', order_id, amount), ', ') FROM shop.payments) AS payments;
\set ECHO none
SELECT count(*) FILTER (WHERE status = 'completed') = 1
       AND count(*) FILTER (WHERE status = 'compensated') = 1
       AND (SELECT on_hand FROM shop.stock WHERE sku = 'A') = 8
       AND (SELECT count(*) FROM shop.payments) = 1 AS good FROM saga.sagas \gset
\if :good
\else
\warn 'The shop is not as it should be.'
SELECT 1 / 0;
\endif
