--
-- At most n sagas in a step: in the order in which they came, whatever becomes
-- of those that are in it.
--
SELECT setval('saga.saga_id_seq', 31000000, false) AS ids_begin_at;
-- Steps that note when they began and ended; one that takes its time; one that
-- comes again until somebody says that it has done.
CREATE TABLE saga_test.visit (saga_id bigint, step text, began timestamptz, ended timestamptz);
CREATE TABLE saga_test.over (saga_id bigint);
GRANT SELECT, INSERT ON saga_test.visit, saga_test.over TO PUBLIC;
CREATE FUNCTION saga_test.visits(context jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    began constant timestamptz := clock_timestamp();
    outcome jsonb;
BEGIN
    PERFORM pg_sleep(0.005);
    outcome := saga_test.act(context);
    INSERT INTO saga_test.visit VALUES ((context ->> 'saga_id')::bigint, context ->> 'step', began, clock_timestamp());
    RETURN outcome;
END $$;
CREATE FUNCTION saga_test.stays(context jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM saga_test.over WHERE saga_id = (context ->> 'saga_id')::bigint) THEN
        PERFORM saga.retry_later('1 hour', 'not over');
    END IF;
    IF context #> '{input,fails}' = context -> 'attempt' THEN
        RAISE EXCEPTION 'failed';
    END IF;
    RETURN saga_test.act(context);
END $$;
-- How many sagas were in a step at once: from their first attempt, also one that
-- failed, to their last.
CREATE FUNCTION saga_test.most_at_once(name text) RETURNS bigint LANGUAGE sql AS $$
    WITH stay AS (SELECT saga_id, min(began) AS began, max(ended) AS ended
                  FROM (SELECT saga_id, began, ended FROM saga_test.visit WHERE step = name
                        UNION ALL
                        SELECT saga_id, started_at, finished_at FROM saga.attempts WHERE step = name) v
                  GROUP BY saga_id)
    SELECT max(n) FROM (SELECT (SELECT count(*) FROM stay b WHERE b.began <= a.began AND b.ended > a.began) AS n FROM stay a) x
$$;
-- Who has a place, and who waits for one.
CREATE FUNCTION saga_test.line() RETURNS TABLE (lock text, step text, saga bigint, status text, "position" bigint, places integer, until_step text)
LANGUAGE sql AS $$
    SELECT l.lock, l.step, l.saga_id - 31000000, l.status, l.position, l.places, l.until_step
    FROM saga.locks l WHERE l.kind = 'step' ORDER BY l.lock, l.status, l.position, l.saga_id
$$;
-- It has come to a step that is not over.
CREATE FUNCTION saga_test.is_in(id bigint) RETURNS void LANGUAGE sql AS $$
    SELECT saga_test.wait_until(format('(SELECT waiting_for FROM saga.sagas WHERE saga_id = %s) = ''next attempt''', id), 'its turn', id)
$$;
SET ROLE regress_saga_owner;

-- Many sagas and few places.
SELECT saga.define('crowd',
    saga.step('a', 'saga_test.visits'),
    saga.step('narrow', 'saga_test.visits', 'saga_test.act', concurrency => 2),
    saga.step('z', 'saga_test.visits'));
SELECT count(saga.begin('crowd', '{}')) FROM generate_series(1, 40);
SELECT * FROM saga_test.all_ended('crowd');
SELECT saga_test.most_at_once('narrow') <= 2 AS kept, count(*) FROM saga_test.visit WHERE step = 'narrow';
SELECT count(*) FROM saga.locks;
-- Of another role, and of another version of the definition: one line.
SELECT saga.grant_begin('crowd', 'regress_saga_other');
SELECT count(saga.begin('crowd', '{}')) FROM generate_series(1, 15);
SELECT saga.define('crowd',
    saga.step('b', 'saga_test.visits'),
    saga.step('narrow', 'saga_test.visits', 'saga_test.act', concurrency => 2),
    saga.step('z', 'saga_test.visits'));
SET ROLE regress_saga_other;
SELECT count(saga.begin('crowd', '{}')) FROM generate_series(1, 15);
SET ROLE regress_saga_owner;
SELECT count(saga.begin('crowd', '{}')) FROM generate_series(1, 15);
RESET ROLE;
SELECT * FROM saga_test.all_ended('crowd');
SET ROLE regress_saga_owner;
SELECT saga_test.most_at_once('narrow') <= 2 AS kept, count(*) FROM saga_test.visit WHERE step = 'narrow';
-- Each with attempts that fail, and pauses after them: it is in the step all the
-- while.
SELECT saga.define('crowd_fails',
    saga.step('fails', 'saga_test.visits', concurrency => 3, retry => saga.retry_policy(3, '10 ms', jitter => 0, retry_on => '{P0001}')));
SELECT count(saga.begin('crowd_fails', jsonb_build_object('fail', jsonb_build_object('action fails', n % 3)))) FROM generate_series(1, 30) n
WHERE n % 3 > 0;
SELECT * FROM saga_test.all_ended('crowd_fails');
SELECT saga_test.most_at_once('fails') <= 3 AS kept, count(*) FROM saga_test.visit WHERE step = 'fails';
SELECT count(*) FROM saga.locks;

-- Under a snapshot of its own.
SELECT saga.define('crowd_strict', saga.step('strict', 'saga_test.visits', isolation => 'serializable', concurrency => 1, retry => saga.retry_policy(0, '1 ms')), saga.step('z', 'saga_test.act'));
SELECT count(saga.begin('crowd_strict', '{}')) FROM generate_series(1, 10);
SELECT * FROM saga_test.all_ended('crowd_strict');
SELECT saga_test.most_at_once('strict') <= 1 AS kept, count(*) FROM saga_test.visit WHERE step = 'strict';
SELECT count(*) FROM saga.locks;

-- First come first served.
SELECT saga.define('slow', saga.step('before', 'saga_test.act', 'saga_test.act'),
    saga.step('stay', 'saga_test.stays', 'saga_test.act', concurrency => 1, retry => saga.retry_policy(1)), saga.signal_step('after'));
SELECT saga.begin('slow', '{}') AS s1 \gset
SELECT saga_test.is_in(:s1);
SELECT saga.begin('slow', '{}') AS s2 \gset
SELECT saga_test.waits_for(:s2);
SELECT saga.begin('slow', '{}') AS s3 \gset
SELECT saga_test.waits_for(:s3);
SELECT saga.begin('slow', '{}') AS s4 \gset
SELECT saga_test.waits_for(:s4);
SELECT * FROM saga_test.line();
SELECT held_by = ARRAY[:s1]::bigint[] AS held_by_first, expires_at FROM saga.locks WHERE saga_id = :s3;
SELECT topic, regexp_replace(detail, '(saga) \d+', '\1 N') AS detail FROM saga.explain(:s3) WHERE topic IN ('place', 'waits for', 'no worker');
SELECT topic, detail FROM saga.explain(:s1) WHERE topic = 'place';
-- A place is free with the end of the step, not with that of the saga.
INSERT INTO saga_test.over VALUES (:s1);
SELECT saga.retry(:s1) = :s1 AS retried;
SELECT saga_test.is_in(:s2);
SELECT waiting_for FROM saga.sagas WHERE saga_id = :s1;
SELECT * FROM saga_test.line();
-- Whoever is paused in it keeps his; cancelled he goes, and so does one in line.
SELECT saga.pause(:s2) = :s2 AS paused;
SELECT saga_test.outcome(:s2);
SELECT saga.cancel(:s3) = :s3 AS cancelled;
SELECT saga_test.outcome(:s3);
SELECT * FROM saga_test.line();
SELECT saga.cancel(:s2) = :s2 AS cancelled;
SELECT saga_test.outcome(:s2);
SELECT saga_test.is_in(:s4);
SELECT * FROM saga_test.line();
-- Abandoned he goes too.
SELECT saga.begin('slow', '{}') AS s5 \gset
SELECT saga_test.waits_for(:s5);
SELECT saga.abandon(:s4) = :s4 AS abandoned;
SELECT saga_test.outcome(:s4);
SELECT saga_test.is_in(:s5);
-- One in line whose saga is abandoned, and one whose deadline passes there.
SELECT saga.begin('slow', '{}') AS s6 \gset
SELECT saga_test.waits_for(:s6);
SELECT saga.begin('slow', '{}', deadline => clock_timestamp() + '200 ms') AS s7 \gset
SELECT saga.begin('slow', '{}') AS s8 \gset
SELECT saga_test.outcome(:s7);
SELECT saga_test.waits_for(:s8);
SELECT saga.abandon(:s6) = :s6 AS abandoned;
SELECT saga_test.outcome(:s6);
SELECT * FROM saga_test.line();
-- Skipped the step has ended.
SELECT saga.skip(:s5) = :s5 AS skipped;
SELECT saga_test.is_in(:s8);
-- A step that fails for good gives the place back, while the rest is undone.
SELECT saga.begin('slow', '{"fail": {"action stay": 0}}') AS s9 \gset
SELECT saga_test.waits_for(:s9);
SELECT saga.begin('slow', '{}') AS s10 \gset
SELECT saga_test.waits_for(:s10);
INSERT INTO saga_test.over VALUES (:s8), (:s9), (:s10);
SELECT saga.retry(:s8) = :s8 AS retried;
SELECT saga_test.outcome(:s9);
SELECT saga_test.wait_until(format('(SELECT waiting_for FROM saga.sagas WHERE saga_id = %s) = ''signal''', :s10), 'its turn', :s10);
SELECT count(*) FROM saga.locks;
SELECT saga.signal(id, 'after') FROM unnest(ARRAY[:s1, :s5, :s8, :s10]::bigint[]) id;
SELECT * FROM saga_test.all_ended('slow');

-- Going back to a savepoint it gives its place back, and stands in line again.
SELECT saga.define('forward',
    saga.step('s', 'saga_test.act', 'saga_test.act', savepoint => true, recoveries => 5),
    saga.step('in', 'saga_test.stays', 'saga_test.act', concurrency => 1));
SELECT saga.begin('forward', '{"fails": 2}') AS first \gset
SELECT saga_test.is_in(:first);
SELECT saga.begin('forward', '{}') AS second \gset
SELECT saga_test.waits_for(:second);
INSERT INTO saga_test.over VALUES (:first);
SELECT saga.retry(:first) = :first AS retried;
SELECT saga_test.is_in(:second);
SELECT saga_test.waits_for(:first);
SELECT * FROM saga_test.line();
INSERT INTO saga_test.over VALUES (:second);
SELECT saga.retry(:second) = :second AS retried;
SELECT saga_test.outcome(:second), saga_test.outcome(:first);
SELECT saga_test.log(:first);
SELECT count(*) FROM saga.locks;

-- All elements of a step count as one saga; and so that none of them is forgotten.
SELECT saga.define('crowd_each',
    saga.step('each', 'saga_test.visits', 'saga_test.act', foreach => 'list', parallel => 2, concurrency => 2, retry => saga.retry_policy(1)));
SELECT count(saga.begin('crowd_each', CASE WHEN n = 3 THEN '{"list": [1, 2, 3, 4], "fail": {"action each 2": 0}}'::jsonb
    WHEN n = 5 THEN '{"list": []}' WHEN n = 6 THEN '{"list": 7}' ELSE '{"list": [1, 2, 3, 4]}' END)) FROM generate_series(1, 12) n;
SELECT * FROM saga_test.all_ended('crowd_each');
SELECT saga_test.most_at_once('each') <= 2 AS kept FROM saga_test.visit WHERE step = 'each' LIMIT 1;
SELECT count(*) FROM saga.locks;

-- With a lock: that first.  Who stands in line for it takes no place from others.
SELECT saga.define('both', saga.step('stay', 'saga_test.stays', 'saga_test.act', exclusive => 'sku', concurrency => 2));
SELECT saga.begin('both', '{"sku": "A"}') AS a1 \gset
SELECT saga_test.is_in(:a1);
SELECT saga.begin('both', '{"sku": "A"}') AS a2 \gset
SELECT saga_test.waits_for(:a2);
SELECT saga.begin('both', '{"sku": "B"}') AS b1 \gset
SELECT saga_test.is_in(:b1);
SELECT saga.begin('both', '{"sku": "C"}') AS c1 \gset
SELECT saga_test.waits_for(:c1);
SELECT lock, kind, saga_id = :a1 AS a1, saga_id = :a2 AS a2, saga_id = :b1 AS b1, saga_id = :c1 AS c1, status, position
FROM saga.locks ORDER BY kind, lock, status, saga_id;
-- It has the lock now, and stands in line behind the other one.
SELECT saga.cancel(:a1) = :a1 AS cancelled;
SELECT saga_test.outcome(:a1);
SELECT saga_test.is_in(:c1);
SELECT saga_test.wait_until(format('(SELECT waiting_for FROM saga.sagas WHERE saga_id = %s) = ''place in step''', :a2), 'the lock', :a2);
SELECT lock, kind, saga_id = :a2 AS a2, saga_id = :b1 AS b1, saga_id = :c1 AS c1, status, position
FROM saga.locks ORDER BY kind, lock, status, saga_id;
INSERT INTO saga_test.over VALUES (:a2), (:b1), (:c1);
SELECT saga.retry(:b1) = :b1 AS retried, saga.retry(:c1) = :c1 AS retried;
SELECT saga_test.outcome(:b1), saga_test.outcome(:c1), saga_test.outcome(:a2);

-- A child: until it has ended.  Its parent does not wait for others' parents.
SELECT saga.define('both_kid', saga.signal_step('go'), saga.step('k', 'saga_test.act', 'saga_test.act'));
SELECT saga.define('both_mother', saga.child_step('kid', definition => 'both_kid', concurrency => 1), saga.signal_step('after'));
SELECT saga.begin('both_mother', '{}') AS first \gset
SELECT saga_test.waits_for(:first);
SELECT saga.begin('both_mother', '{}') AS second \gset
SELECT saga_test.waits_for(:second);
SELECT saga.signal((SELECT saga_id FROM saga.sagas WHERE parent_id = :first), 'go');
SELECT saga_test.wait_until(format('(SELECT waiting_for FROM saga.sagas WHERE saga_id = %s) = ''child saga''', :second), 'its turn', :second);
SELECT waiting_for FROM saga.sagas WHERE saga_id = :first;
SELECT saga.cancel(:second) = :second AS cancelled;
SELECT saga_test.outcome(:second);
SELECT saga.signal(:first, 'after');
SELECT saga_test.outcome(:first);
SELECT count(*) FROM saga.locks;

-- A new version may allow for more.  Of those before it in the line it lets in
-- none; nor does it overtake them.
SELECT saga.define('wider', saga.step('stay', 'saga_test.stays', concurrency => 1));
SELECT saga.begin('wider', '{}') AS w1 \gset
SELECT saga_test.is_in(:w1);
SELECT saga.define('wider', saga.step('stay', 'saga_test.stays', concurrency => 2));
SELECT saga.begin('wider', '{}') AS w2 \gset
SELECT saga_test.is_in(:w2);
SELECT saga.begin('wider', '{}') AS w3 \gset
SELECT saga_test.waits_for(:w3);
INSERT INTO saga_test.over VALUES (:w1), (:w2), (:w3);
SELECT saga.retry(:w2) = :w2 AS retried;
SELECT saga_test.outcome(:w3);
-- Of a definition that was dropped they go on.
SELECT saga.begin('wider', '{}') AS w5 \gset
SELECT saga_test.is_in(:w5);
SELECT saga.begin('wider', '{}') AS w6 \gset
SELECT saga_test.waits_for(:w6);
RESET ROLE;
SELECT saga.drop_definition('wider', force => true);
SET ROLE regress_saga_owner;
INSERT INTO saga_test.over VALUES (:w5), (:w6);
SELECT saga.retry(:w1) = :w1 AS retried, saga.retry(:w5) = :w5 AS retried;
SELECT saga_test.outcome(:w1), saga_test.outcome(:w5), saga_test.outcome(:w6);
SELECT count(*) FROM saga.locks;

-- Two that wait for each other, one in a step with one place: the younger one
-- goes back.
RESET ROLE;
CREATE FUNCTION saga_test.has_first(input jsonb) RETURNS boolean LANGUAGE sql AS $$ SELECT input ? 'first' $$;
CREATE FUNCTION saga_test.takes(context jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
    IF context -> 'input' ? 'wants' THEN
        IF NOT EXISTS (SELECT FROM saga_test.over WHERE saga_id = (context ->> 'saga_id')::bigint) THEN
            PERFORM saga.retry_later('1 hour', 'not over');
        END IF;
        PERFORM saga.lock(context #>> '{input,wants}');
    END IF;
    RETURN saga_test.act(context);
END $$;
SET ROLE regress_saga_owner;
SELECT saga.define('circle_round',
    saga.step('one', 'saga_test.act', 'saga_test.act', only_if => 'saga_test.has_first', exclusive => 'lock'),
    saga.step('go', 'saga_test.takes', 'saga_test.act', concurrency => 1));
SELECT saga.begin('circle_round', '{"lock": "Y", "wants": "X"}') AS older \gset
SELECT saga_test.is_in(:older);
SELECT saga.begin('circle_round', '{"lock": "X", "first": 1}') AS younger \gset
SELECT saga_test.waits_for(:younger);
INSERT INTO saga_test.over VALUES (:older);
SELECT saga.retry(:older) = :older AS retried;
SELECT saga_test.outcome(:older), saga_test.outcome(:younger);
SELECT error ->> 'sqlstate' AS sqlstate, error ->> 'message' AS message, regexp_replace(error ->> 'detail', '\d+', 'N', 'g') AS detail
FROM saga.sagas WHERE saga_id = :younger;
SELECT count(*) FROM saga.locks;
RESET ROLE;
DROP FUNCTION saga_test.visits, saga_test.stays, saga_test.most_at_once, saga_test.line, saga_test.is_in, saga_test.has_first, saga_test.takes;
DROP TABLE saga_test.visit, saga_test.over;
