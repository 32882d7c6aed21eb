-- Sagas that need a person: a compensation that keeps failing, a step after the
-- pivot.  What saga.stuck and saga.explain() say of them, and how retry, skip and
-- abandon end them.  Also cancel, pause and resume.
\ir shop.psql
-- Paid is paid: after the pivot there is no way back.
SELECT saga.define('deliver',
    saga.step('charge', 'shop.charge', pivot => true),
    saga.step('confirm', 'shop.confirm_order', retry => saga.retry_policy(max_attempts => 2, initial_delay => '10 ms'))) AS version \gset
SELECT plan(21);

-- Wait until only a person can move it; saga.wait_within() waits for the end.
CREATE FUNCTION shop.rest(id bigint) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    FOR i IN 1 .. 3000 LOOP
        EXIT WHEN (SELECT status FROM saga.sagas WHERE saga_id = id) IN ('stuck', 'paused');
        PERFORM pg_sleep(0.01);
    END LOOP;
    RETURN (SELECT status FROM saga.sagas WHERE saga_id = id);
END $$;

-- The order is closed meanwhile, so it cannot be confirmed; and the refund
-- fails as often as its policy allows.
INSERT INTO shop.bank (answer) VALUES ('declined'), ('declined');
CREATE FUNCTION shop.close_order() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN UPDATE shop.orders SET status = 'closed' WHERE order_id = NEW.order_id; RETURN NULL; END $$;
CREATE TRIGGER closes AFTER INSERT ON shop.payments FOR EACH ROW EXECUTE FUNCTION shop.close_order();
CREATE OR REPLACE FUNCTION shop.charge(order_id int, amount numeric) RETURNS int LANGUAGE sql AS
    $$ INSERT INTO shop.payments (order_id, amount) VALUES ($1, $2) RETURNING payment_id $$;

SELECT shop.place_order(1, 'A', 2, 99.50) AS id \gset
SELECT is(shop.rest(:id), 'stuck', 'a saga whose compensation is out of attempts is stuck');
SELECT results_eq(format('SELECT shop.story(%s)', :id),
    ARRAY['action of reserve succeeded', 'action of charge succeeded',
          'compensation of charge failed', 'action of confirm failed'],
    '... where it is: the reservation is not given back before the refund');
SELECT results_eq(format('SELECT step, operation::text, attempts, cause ->> ''message'', last_error ->> ''message'' FROM saga.stuck WHERE saga_id = %s', :id),
    $$ VALUES ('charge', 'compensation', 2, 'order 1 is no longer open', 'bank: card declined') $$,
    'saga.stuck has the step, the cause and the last error');
SELECT ok(EXISTS (SELECT FROM saga.explain(:id) WHERE topic = 'to do'), 'saga.explain() says what can be done');

-- The bank is asked again, and refunds.
SELECT is(saga.retry(:id, 'talked to the bank'), :id::bigint, 'it is retried');
SELECT is(saga.wait_within(:id), 'compensated', '... and goes on to its end');
SELECT is((SELECT count(*) FROM shop.payments WHERE order_id = 1 AND refunded), 1::bigint, '... with the refund');
SELECT is((SELECT on_hand FROM shop.stock WHERE sku = 'A'), 10, '... and the stock');
SELECT results_eq(format('SELECT verb, reason, requested_by::text, outcome FROM saga.requests WHERE saga_id = %s', :id),
    $$ VALUES ('retry', 'talked to the bank', 'shop_app', 'done') $$,
    'who asked for it, and why, is on record');

-- Refunded by hand: skip takes it for done.
INSERT INTO shop.bank (answer) VALUES ('declined'), ('declined');
SELECT shop.place_order(2, 'A', 2, 99.50) AS id \gset
SELECT is(shop.rest(:id), 'stuck', 'another one is stuck');
SELECT saga.skip(:id, 'refunded in cash') AS skipped \gset
SELECT is(saga.wait_within(:id), 'compensated', 'a step that was done by hand is skipped');
SELECT is((SELECT status::text FROM saga.steps WHERE saga_id = :id AND step = 'charge' AND operation = 'compensation'), 'skipped',
    '... as its steps say');

-- After the pivot only forward: retried, stuck, never undone.
INSERT INTO shop.orders VALUES (3, 'A', 1, 10, 'new');
SELECT saga.begin('deliver', '{"order_id": 3, "amount": 10}') AS id \gset
SELECT is(shop.rest(:id), 'stuck', 'a step after the pivot is never given up');
SELECT throws_like(format('SELECT saga.cancel(%s)', :id), 'cannot cancel saga %', '... nor can the saga be cancelled');
-- what stood in its way is put right
UPDATE shop.orders SET status = 'new' WHERE order_id = 3;
SELECT saga.retry(:id) AS retried \gset
SELECT is(saga.wait_within(:id), 'completed', '... until it can go on');

-- Or closed as it is.
INSERT INTO shop.orders VALUES (4, 'A', 1, 10, 'new');
SELECT saga.begin('deliver', '{"order_id": 4, "amount": 10}') AS id \gset
SELECT is(shop.rest(:id), 'stuck', 'one more');
SELECT saga.abandon(:id, 'written off') AS abandoned \gset
SELECT is(saga.wait_within(:id), 'abandoned', 'a saga that nobody will repair is abandoned');
SELECT throws_like(format('SELECT saga.retry(%s)', :id), 'cannot retry saga %', '... and that is final');

-- A saga that has not begun yet can be stopped.
INSERT INTO shop.orders VALUES (5, 'A', 1, 10, 'new');
SELECT saga.begin('place_order', '{"order_id": 5, "sku": "A", "qty": 1, "amount": 10}', start_at => now() + interval '1 d') AS id \gset
SELECT saga.pause(:id, 'stocktaking') AS paused \gset
SELECT is(shop.rest(:id), 'paused', 'a saga is paused');
SELECT throws_like(format('SELECT saga.retry(%s)', :id), 'cannot retry saga %', '... until it is resumed');
SELECT saga.cancel(:id, 'customer has changed his mind') AS cancelled \gset
SELECT is(saga.wait_within(:id), 'compensated', '... or cancelled');

SELECT * FROM finish();
