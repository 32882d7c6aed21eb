--
-- Try, confirm, cancel: confirmations run when every step has succeeded, until
-- they succeed; tries are cancelled when the saga goes back.
--
SELECT setval('saga.saga_id_seq', 22000000, false) AS ids_begin_at;
SET ROLE regress_saga_owner;
SELECT saga.define('confirm',
    saga.step('seat', 'saga_test.act', 'saga_test.act', confirmation => 'saga_test.act',
              confirmation_retry => saga.retry_policy(0, '5 ms')),
    saga.step('plain', 'saga_test.act', 'saga_test.act'),
    saga.step('meal', 'saga_test.act', 'saga_test.act', confirmation => 'saga_test.act',
              confirmation_retry => saga.retry_policy(2, '5 ms')));
SELECT step, confirmation, confirmation_retry ->> 'max_attempts' AS max_attempts
FROM saga.definition_steps WHERE definition = 'confirm' ORDER BY position;
-- All is well.
SELECT saga.begin('confirm') AS id \gset
SELECT saga_test.outcome(:id);
SELECT * FROM saga_test.story(:id);
SELECT saga_test.in_order(:id, 'action meal', 'confirmation seat'), saga_test.in_order(:id, 'action meal', 'confirmation meal');
-- The last try fails: what was tried is cancelled, nothing is confirmed.
SELECT saga.begin('confirm', '{"fail": {"action meal": 0}}') AS id \gset
SELECT saga_test.outcome(:id);
SELECT saga_test.log(:id);
-- A confirmation is retried on any error, and nothing is undone.
SELECT saga.begin('confirm', '{"fail": {"confirmation seat": 3}}') AS id \gset
SELECT saga_test.outcome(:id);
SELECT step, operation, status, attempts FROM saga_test.story(:id) WHERE operation <> 'action';
-- Out of attempts: stuck, with no way back; the other one is confirmed.
SELECT saga.begin('confirm', '{"fail": {"confirmation meal": 0}}') AS id \gset
SELECT saga_test.outcome(:id);
SELECT step, operation, attempts FROM saga.stuck WHERE saga_id = :id;
SELECT saga.cancel(:id);
SELECT saga.retry(:id, 'again') = :id AS retried;
SELECT saga_test.outcome(:id);
SELECT saga.skip(:id, 'confirmed by telephone', 'meal') = :id AS skipped;
SELECT saga_test.wait_until(format('(SELECT status FROM saga.sagas WHERE saga_id = %s) = ''completed''', :id), 'its end', :id);
SELECT step, operation, status FROM saga_test.story(:id) WHERE operation = 'confirmation' ORDER BY 1;
-- For each element.
SELECT saga.define('confirm_each',
    saga.step('seats', 'saga_test.act', 'saga_test.act', confirmation => 'saga_test.act', foreach => 'seats', parallel => 2));
SELECT saga.begin('confirm_each', '{"seats": ["1A", "1B", "1C"]}') AS id \gset
SELECT saga_test.outcome(:id);
SELECT saga_test.log_sorted(:id);
-- What cannot be kept is refused.
SELECT saga.define('confirm_wrong', saga.step('a', 'saga_test.act', confirmation => 'saga_test.act'));
SELECT saga.define('confirm_wrong', saga.step('a', 'saga_test.act', 'saga_test.act', confirmation => 'saga_test.act', pivot => true));
SELECT saga.define('confirm_wrong', saga.step('a', 'saga_test.act', pivot => true),
    saga.step('b', 'saga_test.act', 'saga_test.act', confirmation => 'saga_test.act'));
SELECT saga.define('confirm_wrong', saga.step('a', 'saga_test.act', confirmation_timeout => '1 s'));
-- With a pivot: the try before it is confirmed at the end.
SELECT saga.define('confirm_pivot',
    saga.step('try', 'saga_test.act', 'saga_test.act', confirmation => 'saga_test.act'),
    saga.step('pivot', 'saga_test.act', pivot => true),
    saga.step('last', 'saga_test.act', retry => saga.retry_policy(3, '5 ms')));
SELECT saga.begin('confirm_pivot', '{"fail": {"action last": 1}}') AS id \gset
SELECT saga_test.outcome(:id);
SELECT saga_test.log(:id);
RESET ROLE;
