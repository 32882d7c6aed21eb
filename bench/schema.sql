-- An order saga of three steps over 1,000 items, and the floors that it is
-- compared with.  Run as the role that owns everything here.
\set ON_ERROR_STOP on
SET client_min_messages = warning;

CREATE TABLE items (item_id int PRIMARY KEY, stock int NOT NULL);
CREATE TABLE reservations (reservation_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    order_id int NOT NULL, item_id int NOT NULL, qty int NOT NULL);
CREATE TABLE payments (payment_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    order_id int NOT NULL, amount int NOT NULL);
CREATE TABLE orders (order_id int PRIMARY KEY, item_id int NOT NULL, qty int NOT NULL,
    amount int NOT NULL, status text NOT NULL);

-- what a run starts from
CREATE PROCEDURE reset(orders int, items int)
LANGUAGE plpgsql AS $$
BEGIN
    TRUNCATE items, reservations, payments, orders;
    INSERT INTO items SELECT i, 1000000 FROM generate_series(1, items) i;
    INSERT INTO orders SELECT o, 1 + o * 7919 % items, 1 + o % 3, 10 + o % 90, 'new'
        FROM generate_series(1, orders) o;
    COMMIT;
    ANALYZE items, orders;
END $$;

-- the step functions

CREATE FUNCTION reserve(order_id int, item_id int, qty int) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
    id bigint;
BEGIN
    UPDATE items i SET stock = stock - qty WHERE i.item_id = reserve.item_id;
    INSERT INTO reservations (order_id, item_id, qty) VALUES (order_id, item_id, qty)
        RETURNING reservation_id INTO id;
    RETURN id;
END $$;

CREATE FUNCTION unreserve(reserve bigint, item_id int, qty int) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM reservations WHERE reservation_id = reserve;
    UPDATE items i SET stock = stock + qty WHERE i.item_id = unreserve.item_id;
END $$;

CREATE FUNCTION pay(order_id int, amount int) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
    id bigint;
BEGIN
    INSERT INTO payments (order_id, amount) VALUES (order_id, amount)
        RETURNING payment_id INTO id;
    RETURN id;
END $$;

CREATE FUNCTION refund(pay bigint) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM payments WHERE payment_id = pay;
END $$;

CREATE FUNCTION confirm(order_id int, refused boolean) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    UPDATE orders o SET status = 'confirmed' WHERE o.order_id = confirm.order_id;
    IF refused THEN
        RAISE EXCEPTION 'order % is refused', order_id;
    END IF;
END $$;

-- floor B: the statements in one loop, a commit every 50 orders
CREATE PROCEDURE floor_b()
LANGUAGE plpgsql AS $$
DECLARE
    o record;
    n int := 0;
BEGIN
    FOR o IN SELECT * FROM orders ORDER BY order_id LOOP
        UPDATE items SET stock = stock - o.qty WHERE item_id = o.item_id;
        INSERT INTO reservations (order_id, item_id, qty) VALUES (o.order_id, o.item_id, o.qty);
        INSERT INTO payments (order_id, amount) VALUES (o.order_id, o.amount);
        UPDATE orders SET status = 'confirmed' WHERE order_id = o.order_id;
        n := n + 1;
        IF n % 50 = 0 THEN
            COMMIT;
        END IF;
    END LOOP;
END $$;

-- floor C: the step functions, each call in a subtransaction of its own
CREATE PROCEDURE floor_c()
LANGUAGE plpgsql AS $$
DECLARE
    o record;
    n int := 0;
BEGIN
    FOR o IN SELECT * FROM orders ORDER BY order_id LOOP
        BEGIN
            PERFORM reserve(o.order_id, o.item_id, o.qty);
        EXCEPTION WHEN OTHERS THEN RAISE;
        END;
        BEGIN
            PERFORM pay(o.order_id, o.amount);
        EXCEPTION WHEN OTHERS THEN RAISE;
        END;
        BEGIN
            PERFORM confirm(o.order_id, false);
        EXCEPTION WHEN OTHERS THEN RAISE;
        END;
        n := n + 1;
        IF n % 50 = 0 THEN
            COMMIT;
        END IF;
    END LOOP;
END $$;

-- the input of the saga of an order
CREATE FUNCTION order_input(o orders, refused boolean) RETURNS jsonb
LANGUAGE sql STABLE AS $$
    SELECT jsonb_build_object('order_id', o.order_id, 'item_id', o.item_id, 'qty', o.qty,
        'amount', o.amount, 'refused', refused);
$$;
