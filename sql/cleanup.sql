--
-- The tests leave nothing behind: every saga of theirs is final, and their
-- roles, which belong to the whole cluster, go.
--
SELECT definition, key, status, waiting_for FROM saga.sagas
WHERE status NOT IN ('completed', 'compensated', 'abandoned') ORDER BY saga_id;
SELECT process, state, reason FROM saga.workers WHERE reason IS NOT NULL;
SELECT count(*) FROM saga.message;
SET client_min_messages = warning;
DROP SCHEMA saga_test CASCADE;
DROP OWNED BY regress_saga_owner, regress_saga_other, regress_saga_monitor,
    regress_saga_operator, regress_saga_stranger;
DROP EXTENSION saga;
DROP ROLE regress_saga_owner, regress_saga_other, regress_saga_monitor,
    regress_saga_operator, regress_saga_stranger;
