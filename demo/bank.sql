-- Transfers between the accounts of pgbench: debit, credit, and an entry in
-- pgbench_history.  "fail_at" makes one fail at its second or third step.
\set ON_ERROR_STOP on
SET client_min_messages = warning;

CREATE FUNCTION debit(source int, amount int) RETURNS void
LANGUAGE sql AS $$
    UPDATE pgbench_accounts SET abalance = abalance - amount WHERE aid = source;
$$;

CREATE FUNCTION undo_debit(source int, amount int) RETURNS void
LANGUAGE sql AS $$
    UPDATE pgbench_accounts SET abalance = abalance + amount WHERE aid = source;
$$;

CREATE FUNCTION credit(target int, amount int, fail_at int) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    UPDATE pgbench_accounts SET abalance = abalance + amount WHERE aid = target;
    IF fail_at = 2 THEN
        RAISE EXCEPTION 'account % is closed', target;
    END IF;
END $$;

CREATE FUNCTION undo_credit(target int, amount int) RETURNS void
LANGUAGE sql AS $$
    UPDATE pgbench_accounts SET abalance = abalance - amount WHERE aid = target;
$$;

CREATE FUNCTION enter(source int, target int, amount int, fail_at int) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO pgbench_history (tid, bid, aid, delta, mtime)
        VALUES (source, target, target, amount, clock_timestamp());
    IF fail_at = 3 THEN
        RAISE EXCEPTION 'the books are closed for account %', target;
    END IF;
END $$;

-- Something to lose: 1000 in every account.
UPDATE pgbench_accounts SET abalance = 1000;

SELECT saga.define('transfer',
    saga.step('debit', 'debit', compensation => 'undo_debit'),
    saga.step('credit', 'credit', compensation => 'undo_credit'),
    saga.step('enter', 'enter')) \g /dev/null
