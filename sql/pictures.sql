--
-- Pictures: definitions and sagas as graphs, when what happened as lines of
-- text, and all of it as a page.  Whatever stands in names, keys and errors is
-- text there and nothing else.  680_report.pl shows the pictures to the programs
-- that read them.
--
\set SHOW_CONTEXT never
SELECT setval('saga.saga_id_seq', 49000000, false) AS ids_begin_at;
CREATE FUNCTION saga_test.picture_wants(context jsonb) RETURNS boolean LANGUAGE sql AS 'SELECT true';
SET ROLE regress_saga_owner;
CREATE FUNCTION pg_temp.refused(command text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    said text;
BEGIN
    EXECUTE command;
    RETURN 'done';
EXCEPTION WHEN OTHERS THEN
    RETURN SQLSTATE || ' ' || SQLERRM;
END $$;

-- Texts.
SELECT form, saga.escape(t.text, form)
FROM (VALUES (E'<b title="x" class=''y''>&amp; `z` \\N #quot; ]]> \u0007\r\n\t.')) t(text),
    unnest('{html,mermaid,dot,plain}'::text[]) form;
SELECT text, saga.escape(text, 'mermaid')
FROM (VALUES ('1. a'), ('12) a'), ('- a'), ('a-1. b'), ('fa:fa-car'), ('$$x$$'), (' a'), ('')) t(text);
SELECT saga.escape('x', 'svg');
SELECT x, saga.time_text(x)
FROM unnest('{0,0.00004,0.0123,0.0999,0.99949,0.9996,1,59.4,59.6,61,3569,3571,7290,84000,86400,90000,-1,Infinity}'::float8[]) x;

-- A definition with everything.
SELECT saga.define('picture_parcel', saga.step('pack', 'saga_test.act', 'saga_test.act'));
SELECT saga.create_queue('picture_queue');
SELECT saga.define('picture',
    saga.step('charge', 'saga_test.act', 'saga_test.act', savepoint => true, and_then => 'train', recoveries => 2),
    saga.step('pack', 'saga_test.act', 'saga_test.act', after => '{charge}', concurrency => 3),
    saga.step('fly', 'saga_test.act', after => '{pack}', only_if => 'saga_test.picture_wants'),
    saga.step('train', 'saga_test.act', after => '{charge}'),
    saga.timer_step('cool_off', '14 days', after => '{fly,train}'),
    saga.step('confirm', 'saga_test.act', pivot => true, after => '{cool_off}', exclusive => 'sku'),
    saga.signal_step('approved', timeout => '3 days', after => '{confirm}'),
    saga.child_step('parcels', definition => 'picture_parcel', foreach => 'items', quorum => 2, after => '{approved}'),
    saga.external_step('mail', 'picture_queue', action => 'send', after => '{parcels}'));
SELECT saga.diagram('picture');
SELECT saga.diagram('picture', 'dot');
-- All versions.
SELECT saga.define('picture', saga.step('only', 'saga_test.act', 'saga_test.act', confirmation => 'saga_test.act'));
SELECT saga.diagram('picture');
SELECT saga.diagram('picture', version => 1) = saga.diagram('picture', 'mermaid', 1) AS the_first;
-- What cannot be drawn.
SELECT saga.diagram('no_such_picture');
SELECT saga.diagram('picture', version => 3);
SELECT saga.diagram(49999999);
SELECT saga.timeline(49999999);
SELECT saga.diagram('picture', 'png');
SELECT saga.diagram(NULL::text);
SELECT saga.diagram(NULL::bigint);

-- A saga: a savepoint, a step that was not taken, compensations, children.
CREATE FUNCTION pg_temp.states(id bigint)
RETURNS TABLE (step text, state text, class text, compensation text) LANGUAGE sql AS $$
    SELECT s ->> 'name', s ->> 'state', saga.picture_class(s), s ->> 'compensation_state'
    FROM jsonb_array_elements(saga.picture(id) -> 'steps') s
$$;
SELECT saga.define('picture_saga',
    saga.step('charge', 'saga_test.act', 'saga_test.act', savepoint => true, and_then => 'train'),
    saga.step('pack', 'saga_test.act', 'saga_test.act'),
    saga.step('fly', 'saga_test.act'),
    saga.step('train', 'saga_test.act', after => '{charge}'),
    saga.child_step('parcels', definition => 'picture_parcel', foreach => 'items', after => '{fly,train}'),
    saga.signal_step('approved'));
SELECT saga.begin('picture_saga', '{"items": [{}, {}], "fail": {"action fly": 0}}', key => 'k-1') AS id \gset
SELECT saga_test.wait_until(format('(SELECT waiting_for = ''signal'' FROM saga.sagas WHERE saga_id = %s)', :id), 'its signal', :id);
SELECT * FROM pg_temp.states(:id);
SELECT saga.diagram(:id);
SELECT regexp_replace(line, '\d+ \w+$', 'N') AS line FROM (
    SELECT regexp_replace(regexp_replace(line, '\|.*\|', '|...|'), '\d+(\.\d+)? \w+$', 'T') AS line, n
    FROM saga.timeline(:id) WITH ORDINALITY t(line, n)) t
WHERE n <> 2 ORDER BY line LIKE '#%', line COLLATE "C";
SELECT count(*) FILTER (WHERE length(line) > 80) AS too_long,
       count(*) FILTER (WHERE line LIKE '%|%x%|%') AS failed,
       count(*) FILTER (WHERE line LIKE '%>|%') AS go_on
FROM saga.timeline(:id) line;
SELECT bool_and(length(line) <= 200) AS fits FROM saga.timeline(:id, 200) line;
SELECT pg_temp.refused(format('SELECT saga.timeline(%s, %s)', :id, width)) FROM unnest('{39,1001,NULL::int}'::text[]) width;
SELECT saga.cancel(:id, 'enough');
SELECT saga_test.outcome(:id);
SELECT * FROM pg_temp.states(:id);
SELECT regexp_replace(line, '\|.*!.*\|', '|...!...|') AS line FROM saga.timeline(:id) line WHERE line LIKE '%!%done';
SELECT count(*) FROM saga.timeline(:id) line WHERE line LIKE 'compensation of %|%#%|%';
-- One that sees neither the definition nor its steps any more.
RESET ROLE;
SELECT saga.drop_definition('picture_saga');
SET ROLE regress_saga_owner;
SELECT saga.diagram('picture_saga');
SELECT count(*) FROM regexp_matches(saga.diagram(:id), 's\d\[', 'g');

-- Names that would like to be something else.
SELECT saga.define(E'"]:::x --> end; </script> %%{init: {}}%%',
    saga.step(E'a"]; click s1 "javascript:alert(1)" <img src=x>', 'saga_test.act', 'saga_test.act'),
    saga.step(E'1. \\N \\" ]]> #quot; & &lt; %s', 'saga_test.act'));
SELECT saga.begin(E'"]:::x --> end; </script> %%{init: {}}%%',
    jsonb_build_object('fail', jsonb_build_object(E'action 1. \\N \\" ]]> #quot; & &lt; %s', 0)),
    key => E'\'"><svg/onload=alert(1)>\n\u001b[2Jx') AS id \gset
SELECT saga_test.outcome(:id);
SELECT line FROM regexp_split_to_table(saga.diagram(:id), '\n') line WHERE line ~ '^ +(begin|s1|s2|c1)\W.*:::';
SELECT line FROM regexp_split_to_table(saga.diagram(:id, 'dot'), '\n') line WHERE line ~ '^ +(begin|s1|s2|c1) \[';
SELECT split_part(line, '|', 1) FROM saga.timeline(:id, 200) line WHERE line !~ '^\d{4}-';

-- The page.  What is in it is looked at by 680_report.pl.
SELECT saga.report(max_rows => 0);
SELECT saga.report(ARRAY[NULL::bigint]);
SELECT saga.report(ARRAY(SELECT generate_series(1, 51)));
SELECT saga.report(ARRAY[49999999]);
SELECT saga.report(definition => 'no_such_picture');
SELECT page LIKE '<!DOCTYPE html>%</html>' AS whole, page ~ '[^\n\t -~]' AS foreign_characters,
       page ~* 'https?://|<img|src=.x|javascript:[^a]' AS links
FROM saga.report(ARRAY[:id]) page;
SELECT page LIKE '%<article id="saga-' || :id || '"%' AS saga, page LIKE '%id="definition"%' AS definition,
       page LIKE '%<h3>Queues%' AS queues
FROM saga.report(ARRAY[:id, :id], 'picture') page;
-- A policy by the hashes of its style sheet and its script.
SELECT count(*) AS hashes
FROM saga.report('{}') page, (VALUES ('style', saga.report_style()), ('script', saga.report_script())) t(tag, text)
WHERE strpos(page, tag || '-src &#39;sha256-' || encode(sha256(convert_to(text, 'UTF8')), 'base64') || '&#39;') > 0
  AND strpos(page, '<' || tag || '>' || text || '</' || tag || '>') > 0;

-- Pictures show what their caller may see.
SET ROLE regress_saga_other;
SELECT pg_temp.refused(command)
FROM unnest(ARRAY[format('SELECT saga.diagram(%s)', :id), format('SELECT saga.timeline(%s)', :id),
    format('SELECT saga.report(ARRAY[%s])', :id), 'SELECT saga.diagram(''picture'')', 'SELECT saga.report(definition => ''picture'')']) command;
SELECT page LIKE '%who sees the sagas of its own roles%' AS own, page LIKE '%picture_parcel%' AS others FROM saga.report() page;
SET ROLE regress_saga_stranger;
SELECT pg_temp.refused(command)
FROM unnest(ARRAY[format('SELECT saga.diagram(%s)', :id), 'SELECT saga.diagram(''picture'')', 'SELECT saga.report()']) command;
SET ROLE regress_saga_monitor;
SELECT saga.diagram(:id) LIKE 'flowchart%' AS saga, saga.diagram('picture') LIKE 'flowchart%' AS definition,
       (SELECT count(*) > 4 FROM saga.timeline(:id)) AS timeline;
SELECT page LIKE '%who sees the sagas of all roles%' AS "all", page LIKE '%picture_parcel%' AS others FROM saga.report() page;
RESET ROLE;
DROP FUNCTION saga_test.picture_wants;
