-- Before a saga there are its functions.  They are plain functions: each can be
-- tested in a transaction that is rolled back, with its compensation.  The one
-- property that a saga rests on: an action and then its compensation leave the
-- data as they were.
\ir shop.psql
BEGIN;
SELECT plan(8);
CREATE TEMPORARY TABLE before AS TABLE shop.stock;

SELECT is(shop.reserve_stock(1, 'A', 4), 6, 'a reservation tells what remains');
SELECT bag_eq('TABLE shop.reservations', $$ VALUES (1, 'A', 4) $$, '... and is on record');
SELECT shop.release_stock(1);
SELECT bag_eq('TABLE shop.stock', 'TABLE before', 'released, the stock is as before');
SELECT is_empty('TABLE shop.reservations', '... without a trace');

-- A compensation may be called for an action whose outcome is unknown: so it
-- has to bear that there is nothing to undo.
SELECT lives_ok('SELECT shop.release_stock(1)', 'releasing what is not reserved is no error');
SELECT bag_eq('TABLE shop.stock', 'TABLE before', '... and changes nothing');

SELECT throws_ok($$ SELECT shop.reserve_stock(2, 'A', 11) $$, '23514', NULL, 'more than there is cannot be reserved');
SELECT throws_ok($$ SELECT shop.reserve_stock(2, 'B', 1) $$, 'P0002', NULL, '... nor what there is none of');

SELECT * FROM finish();
ROLLBACK;
