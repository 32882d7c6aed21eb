-- How to test a saga: begin it, wait for its end, look at the data and at what
-- saga.steps says of it.
--
-- A saga runs after the commit, in another session.  So these tests are not
-- wrapped in BEGIN and ROLLBACK, as pgTAP's usually are; they clean up instead.
-- \gset keeps the id of a saga in a variable of psql, and saga.wait_within()
-- waits for its end and returns its status.
\ir shop.psql
SELECT plan(24);

-- What was defined.
SELECT results_eq(
    $$ SELECT step, action, compensation FROM saga.definition_steps
       WHERE definition = 'place_order' AND version = (SELECT version FROM saga.definitions WHERE name = 'place_order')
       ORDER BY position $$,
    $$ VALUES ('reserve', 'shop.reserve_stock(integer,pg_catalog.text,integer)', 'shop.release_stock(integer)'),
              ('charge', 'shop.charge(integer,numeric)', 'shop.refund(integer)'),
              ('confirm', 'shop.confirm_order(integer)', NULL) $$,
    'the definition has the steps that it should have');

-- An order goes through.
SELECT shop.place_order(1, 'A', 2, 99.50) AS id \gset
SELECT is(saga.wait_within(:id), 'completed', 'an order goes through');
SELECT results_eq(format('SELECT shop.story(%s)', :id),
    ARRAY['action of reserve succeeded', 'action of charge succeeded', 'action of confirm succeeded'],
    '... in three steps');
SELECT is((SELECT status FROM shop.orders WHERE order_id = 1), 'confirmed', '... and is confirmed');
SELECT is((SELECT on_hand FROM shop.stock WHERE sku = 'A'), 8, '... the stock is taken');
SELECT is((SELECT result FROM saga.steps WHERE saga_id = :id AND step = 'reserve'), '8', '... as the result of the step says');
SELECT is((SELECT count(*) FROM shop.payments WHERE order_id = 1 AND NOT refunded), 1::bigint, '... and paid once');

-- The card is declined: what was done before is undone, the newest first.
INSERT INTO shop.bank (answer) VALUES ('declined');
SELECT shop.place_order(2, 'A', 3, 2000) AS id \gset
SELECT is(saga.wait_within(:id), 'compensated', 'an order whose payment is declined is compensated');
SELECT results_eq(format('SELECT shop.story(%s)', :id),
    ARRAY['action of reserve succeeded', 'compensation of reserve succeeded',
          'action of charge failed', 'action of confirm skipped'],
    '... the reservation is given back, nothing is confirmed');
SELECT is((SELECT on_hand FROM shop.stock WHERE sku = 'A'), 8, '... the stock is as before');
SELECT is_empty('SELECT FROM shop.payments WHERE order_id = 2', '... the failed step has left nothing');
SELECT is((SELECT error ->> 'message' FROM saga.sagas WHERE saga_id = :id), 'bank: card declined', '... the saga says why');
SELECT is((SELECT error ->> 'step' FROM saga.sagas WHERE saga_id = :id), 'charge', '... and where');
SELECT results_eq(format('SELECT attempt, sqlstate, detail FROM saga.attempts WHERE saga_id = %s', :id),
    $$ VALUES (1, 'P0001', 'The limit is 1000.') $$,
    '... after one attempt, whose whole error is kept');

-- The bank is out of reach twice: the third attempt succeeds.
INSERT INTO shop.bank (answer) VALUES ('unreachable'), ('unreachable');
SELECT shop.place_order(3, 'A', 1, 10) AS id \gset
SELECT is(saga.wait_within(:id), 'completed', 'an order goes through although the bank is out of reach for a while');
SELECT is((SELECT attempts FROM saga.steps WHERE saga_id = :id AND step = 'charge'), 3, '... at the third attempt');
SELECT is((SELECT count(*) FROM shop.payments WHERE order_id = 3), 1::bigint, '... and is paid once');

-- ... and for longer than the policy allows.
INSERT INTO shop.bank (answer) SELECT 'unreachable' FROM generate_series(1, 3);
SELECT shop.place_order(4, 'A', 1, 10) AS id \gset
SELECT is(saga.wait_within(:id), 'compensated', 'after three attempts the order is given up');
SELECT is((SELECT count(*) FROM saga.attempts WHERE saga_id = :id AND passing), 3::bigint, '... each of them is on record');

-- The first step fails: there is nothing to undo.
SELECT shop.place_order(5, 'A', 100, 10) AS id \gset
SELECT is(saga.wait_within(:id), 'compensated', 'an order for more than there is ends at its first step');
SELECT is((SELECT on_hand FROM shop.stock WHERE sku = 'A'), 7, '... and takes no stock');

-- One order, one saga: the key.
SELECT is(saga.begin('place_order', '{"order_id": 1, "sku": "A", "qty": 2, "amount": 99.5}', key => 'order 1'),
    (SELECT saga_id FROM saga.sagas WHERE key = 'order 1' AND owner = 'shop_app' ORDER BY saga_id DESC LIMIT 1),
    'an order that is placed again is the same saga');
SELECT throws_like($$ SELECT saga.begin('place_order', '{"order_id": 6, "qty": 1, "amount": 10}') $$,
    'input of saga definition "place_order" lacks "sku"',
    'an order without what the steps need is refused at once');

-- Rolled back: there is neither an order nor a saga.
BEGIN;
SELECT shop.place_order(7, 'A', 1, 10) AS id \gset
ROLLBACK;
SELECT is_empty(format('SELECT FROM saga.sagas WHERE saga_id = %s', :id), 'a saga is begun with its transaction, or not at all');

SELECT * FROM finish();
