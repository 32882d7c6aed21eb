# The shapes of control flow with workers running:
#
#	- two branches really run at the same time, in two workers, forward and
#	  backward, and so do elements of a foreach step, never more than
#	  "parallel" says;
#	- timers fire and signals arrive, also after the server was restarted, and
#	  nothing is held while they are awaited (P9);
#	- children, to some depth, complete with their parents and go back with
#	  them;
#	- sagas that want the same lock take turns, in the order in which they
#	  asked; a circle of them is broken, and the one that stays ends.
#
# Who runs beside whom is seen by advisory locks: a function holds one with its
# number and looks for another's in pg_locks, up to a deadline.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use PostgreSQL::Test::Utils;
use SagaTest;
use Test::More;

my $node = SagaTest->new_node(
	'main',
	start => 1,
	conf  => {
		'saga.workers_per_role' => 2,
		'deadlock_timeout'      => '100ms',
	});

$node->safe_psql('postgres', <<'EOS');
CREATE EXTENSION saga;
CREATE ROLE app LOGIN;
GRANT CREATE ON SCHEMA public TO app;
SELECT saga.grant_usage('app');
SET ROLE app;
CREATE SEQUENCE marker;
CREATE TABLE effect (saga_id bigint, step text, element int, operation text, pid int,
    others int, n1 bigint, n2 bigint);

-- how many there are beside this one, having waited until there are so many
CREATE FUNCTION meet(class int, own int, wanted int) RETURNS int LANGUAGE plpgsql AS $$
DECLARE
    deadline constant timestamptz := clock_timestamp() + interval '30 s';
    others int;
BEGIN
    PERFORM pg_advisory_xact_lock(class, own);
    LOOP
        SELECT count(DISTINCT l.pid) INTO others FROM pg_locks l
        WHERE l.locktype = 'advisory' AND l.classid = class::oid AND l.objsubid = 2
          AND l.granted AND l.pid <> pg_backend_pid();
        EXIT WHEN others >= wanted OR clock_timestamp() > deadline;
        PERFORM pg_sleep(0.005);
    END LOOP;
    -- so that the other one finds it too
    PERFORM pg_sleep(0.1);
    RETURN others;
END $$;

CREATE FUNCTION note(context jsonb, others int) RETURNS void LANGUAGE sql AS $$
    INSERT INTO effect VALUES ((context ->> 'saga_id')::bigint, context ->> 'step',
        COALESCE((context ->> 'index')::int, 0), context ->> 'operation', pg_backend_pid(),
        others, nextval('marker'))
$$;
CREATE FUNCTION act(context jsonb) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    PERFORM note(context, NULL);
    IF context #>> '{input,fail_at}' = context ->> 'step' AND context ->> 'operation' = 'action' THEN
        PERFORM saga.fail('as the test wants it');
    END IF;
    RETURN context ->> 'step';
END $$;
-- the two branches of one saga, in each direction
CREATE FUNCTION branch(context jsonb) RETURNS int LANGUAGE plpgsql AS $$
DECLARE
    others constant int := meet(CASE context ->> 'operation' WHEN 'action' THEN 1 ELSE 2 END,
        CASE context ->> 'step' WHEN 'left' THEN 1 ELSE 2 END, 1);
BEGIN
    PERFORM note(context, others);
    RETURN others;
END $$;
CREATE FUNCTION element(context jsonb) RETURNS int LANGUAGE plpgsql AS $$
DECLARE
    others constant int := meet(3, (context ->> 'index')::int, 0);
BEGIN
    PERFORM note(context, others);
    RETURN others;
END $$;
-- waits until step "second" has been done and committed
CREATE FUNCTION long(context jsonb) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    deadline constant timestamptz := clock_timestamp() + interval '10 s';
    seen boolean;
BEGIN
    LOOP
        seen := EXISTS (SELECT FROM effect e WHERE e.saga_id = (context ->> 'saga_id')::bigint
            AND e.step = 'second' AND e.operation = context ->> 'operation');
        EXIT WHEN seen OR clock_timestamp() > deadline;
        PERFORM pg_sleep(0.01);
    END LOOP;
    RETURN seen;
END $$;
CREATE FUNCTION pair(context jsonb) RETURNS int LANGUAGE plpgsql AS $$
DECLARE
    others constant int := meet(4, (context ->> 'index')::int, 1);
BEGIN
    PERFORM note(context, others);
    RETURN others;
END $$;
EOS

sub begin_saga
{
	my ($definition, $input) = @_;

	return $node->safe_psql('postgres',
		"SET ROLE app; SELECT saga.begin('$definition', '" . ($input || '{}') . "')");
}

sub wait_status
{
	my ($id, $status, $what) = @_;

	poll_sql($node, "SELECT status FROM saga.sagas WHERE saga_id = $id",
		$status, "$what to be $status");
	return;
}

sub ask { return $node->safe_psql('postgres', $_[0]) }

# ---- branches

$node->safe_psql('postgres', <<'EOS');
SET ROLE app;
SELECT saga.define('branches',
    saga.step('left', 'branch', compensation => 'branch', after => '{}'),
    saga.step('right', 'branch', compensation => 'branch', after => '{}'),
    saga.step('end', 'act', after => '{left,right}'));
SELECT saga.define('pairs', saga.step('pair', 'pair', foreach => 'items', parallel => 2));
SELECT saga.define('alone', saga.step('alone', 'element', foreach => 'items', parallel => 1));
EOS

# a step that lasts, in each place among the branches
$node->safe_psql('postgres', <<'EOS');
SET ROLE app;
SELECT saga.define('long_first',
    saga.step('long', 'long', compensation => 'act', after => '{}'),
    saga.step('first', 'act', compensation => 'act', after => '{}'),
    saga.step('second', 'act', compensation => 'act', after => '{first}'));
SELECT saga.define('long_last',
    saga.step('first', 'act', after => '{}'), saga.step('second', 'act', after => '{first}'),
    saga.step('long', 'long', after => '{}'));
EOS

my $id;

foreach my $definition ('long_first', 'long_last')
{
	$id = begin_saga($definition);
	wait_status($id, 'completed', 'a saga with a long step');
	is(ask("SELECT result FROM saga.steps WHERE saga_id = $id AND step = 'long'"),
		'true', "a long step keeps no other branch waiting: $definition");
}

$id = begin_saga('branches');
wait_status($id, 'completed', 'a saga with two branches');
is(ask("SELECT string_agg(others::text, ',' ORDER BY step), count(DISTINCT pid) "
		. "FROM effect WHERE saga_id = $id AND step <> 'end'"),
	'1,1|2', 'two branches run at the same time in two workers');
is(ask("SELECT step FROM effect WHERE saga_id = $id ORDER BY n1 DESC LIMIT 1"),
	'end', '... and what comes after both comes last');

$id = begin_saga('branches', '{"fail_at": "end"}');
wait_status($id, 'compensated', 'a saga whose last step fails');
is(ask("SELECT operation, string_agg(others::text, ',' ORDER BY step), count(DISTINCT pid) "
		. "FROM effect WHERE saga_id = $id GROUP BY 1 ORDER BY 1"),
	"action|1,1|2\ncompensation|1,1|2",
	'two branches go back at the same time in two workers');

$id = begin_saga('pairs', '{"items": [1, 2]}');
wait_status($id, 'completed', 'a saga with two elements');
is(ask("SELECT string_agg(others::text, ','), count(DISTINCT pid) FROM effect WHERE saga_id = $id"),
	'1,1|2', 'two elements run at the same time in two workers');
$id = begin_saga('alone', '{"items": [1, 2, 3, 4]}');
wait_status($id, 'completed', 'a saga with one element at a time');
is(ask("SELECT string_agg(others::text, ',') FROM effect WHERE saga_id = $id"),
	'0,0,0,0', 'parallel => 1: one element at a time');

# ---- timers and signals

$node->safe_psql('postgres', <<'EOS');
SET ROLE app;
CREATE FUNCTION soon(context jsonb) RETURNS timestamptz LANGUAGE sql AS
    $$ SELECT clock_timestamp() + interval '300 ms' $$;
SELECT saga.define('timers',
    saga.step('before', 'act'),
    saga.timer_step('short', '300 ms', after => '{before}'),
    saga.timer_step('until', until => 'soon', after => '{before}'),
    saga.step('after', 'act', after => '{short,until}'));
SELECT saga.define('long',
    saga.timer_step('long', '5 s'), saga.step('after', 'act'));
SELECT saga.define('signals',
    saga.step('before', 'act', compensation => 'act'),
    saga.signal_step('go', timeout => '1 day'),
    saga.step('after', 'act', compensation => 'act'));
SELECT saga.define('late',
    saga.signal_step('default', timeout => '200 ms', otherwise => '"nobody"'),
    saga.step('between', 'act', compensation => 'act'),
    saga.signal_step('needed', timeout => '200 ms'));
EOS

$id = begin_saga('timers');
wait_status($id, 'completed', 'a saga with timers');
is(ask("SELECT count(*) FROM saga.step WHERE saga_id = $id AND step IN (1, 2) "
		. "AND finished_at - started_at >= interval '300 ms'"),
	'2', 'timers fire when their time has passed');
cmp_ok(ask("SELECT extract(epoch FROM max(finished_at) - min(started_at)) FROM saga.step "
		. "WHERE saga_id = $id AND step IN (1, 2)"),
	'<', 10, '... and soon after');
is(ask("SELECT count(*) FROM saga.step t JOIN saga.step e USING (saga_id) WHERE saga_id = $id "
		. "AND t.step IN (1, 2) AND e.step = 3 AND e.started_at < t.finished_at"),
	'0', '... and what comes after waits for both');

# nobody waits in a transaction
my $nothing_held = "SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'saga %' "
  . "AND (xact_start IS NOT NULL OR backend_xid IS NOT NULL OR backend_xmin IS NOT NULL)";
$id = begin_saga('long');
my $signalled = begin_saga('signals');
my $early = ask("BEGIN; SET LOCAL ROLE app; SELECT saga.begin('signals') AS id \\gset\n"
	. "SELECT saga.signal(:id, 'go', '\"early\"') \\g /dev/null\n"
	. "SELECT :id; COMMIT");
wait_status($early, 'completed', 'a saga that was signalled before its step');
is(ask("SELECT result FROM saga.step WHERE saga_id = $early AND step = 1 AND operation = 'action'"),
	'"early"', 'a signal that comes before its step is kept for it');
poll_sql($node, "SELECT status FROM saga.step WHERE saga_id = $signalled AND step = 1",
	'running', 'the saga to wait for its signal');
poll_sql($node, $nothing_held, '0', 'no transaction to be open while a signal and a timer are awaited');
pass('nothing is held while a signal and a timer are awaited');
$node->restart;
is(ask("SELECT status FROM saga.sagas WHERE saga_id = $signalled"),
	'running', 'after a restart it still waits');
is(ask("SELECT saga.signal($signalled, 'go', '{\"by\": \"Ada\"}')"), 't', 'the signal is sent');
wait_status($signalled, 'completed', 'the saga that was signalled');
is(ask("SELECT result FROM saga.step WHERE saga_id = $signalled AND step = 1 AND operation = 'action'"),
	'{"by": "Ada"}', '... and is the result of its step');
wait_status($id, 'completed', 'the saga whose timer fires after a restart');
is(ask("SELECT finished_at - started_at >= interval '5 s' FROM saga.step WHERE saga_id = $id AND step = 0"),
	't', 'a timer fires after a restart, not before its time');
$id = begin_saga('late');
wait_status($id, 'compensated', 'a saga whose signal does not come');
is( ask("SELECT string_agg(concat_ws(' ', operation, step, status), ', ' ORDER BY started_at, step) "
			. "FROM saga.step WHERE saga_id = $id AND operation = 'action'"),
	'action 0 succeeded, action 1 succeeded, action 2 failed',
	'a signal that does not come in time is a default or a failure');
is(ask("SELECT result FROM saga.step WHERE saga_id = $id AND step = 0"),
	'"nobody"', '... the default is the result');

# ---- children

$node->safe_psql('postgres', <<'EOS');
SET ROLE app;
CREATE FUNCTION same(context jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT context -> 'input' $$;
SELECT saga.define('leaf', saga.step('leaf', 'act', compensation => 'act'));
SELECT saga.define('middle',
    saga.child_step('leaves', 'leaf', input => 'same', foreach => 'items', parallel => 3),
    saga.step('middle', 'act', compensation => 'act'));
SELECT saga.define('top',
    saga.child_step('first', 'middle', after => '{}'),
    saga.child_step('second', 'middle', after => '{}'),
    saga.step('top', 'act', after => '{first,second}'));
EOS

my $tree = sub {
	my ($top) = @_;

	return ask("WITH RECURSIVE t AS (SELECT id, status FROM saga.saga WHERE id = $top "
		  . "UNION ALL SELECT g.id, g.status FROM t JOIN saga.saga g ON g.parent_id = t.id) "
		  . "SELECT status, count(*) FROM t GROUP BY 1");
};
my $effects = sub {
	my ($top) = @_;

	return ask("SELECT e.step, operation, count(*) FROM effect e JOIN saga.saga g ON g.id = saga_id "
		  . "WHERE COALESCE(g.root_id, g.id) = $top GROUP BY 1, 2 ORDER BY 1, 2");
};
$id = begin_saga('top', '{"items": [1, 2, 3, 4, 5]}');
wait_status($id, 'completed', 'a saga with children');
poll_sql($node, "SELECT count(*) FROM saga.saga WHERE due_at IS NOT NULL", '0', 'the children to be final');
is($tree->($id), 'completed|13', 'children complete with their parent');
is($effects->($id), "leaf|action|10\nmiddle|action|2\ntop|action|1", '... each with its effect once');
$id = begin_saga('top', '{"items": [1, 2, 3, 4, 5], "fail_at": "top"}');
wait_status($id, 'compensated', 'a saga with children whose last step fails');
poll_sql($node, "SELECT count(*) FROM saga.saga WHERE due_at IS NOT NULL", '0', 'the children to be final');
is($tree->($id), 'compensated|13', 'children go back with their parent');
is($effects->($id),
	"leaf|action|10\nleaf|compensation|10\nmiddle|action|2\nmiddle|compensation|2",
	'... each undone once');
is(ask("SELECT count(*) FROM effect m JOIN effect l ON l.step = 'leaf' AND l.operation = 'compensation' "
		. "JOIN saga.saga gl ON gl.id = l.saga_id AND gl.parent_id = m.saga_id "
		. "WHERE m.step = 'middle' AND m.operation = 'compensation' AND l.n1 < m.n1 AND gl.root_id = $id"),
	'0', '... and in reverse order');

# ---- locks

$node->safe_psql('postgres', <<'EOS');
SET ROLE app;
CREATE FUNCTION hold(context jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO effect VALUES ((context ->> 'saga_id')::bigint, context ->> 'step', 0, 'action',
        pg_backend_pid(), NULL, nextval('marker'));
    PERFORM pg_sleep(0.002);
    UPDATE effect SET n2 = nextval('marker')
    WHERE saga_id = (context ->> 'saga_id')::bigint AND step = context ->> 'step';
END $$;
SELECT saga.define('turns', saga.step('one', 'hold'), saga.step('two', 'hold'), saga.step('three', 'hold'));
SELECT saga.configure('turns', exclusive => 'sku');
SELECT saga.define('line',
    saga.step('free', 'act'),
    saga.signal_step('go', timeout => '1 day'),
    saga.step('locked', 'act', exclusive => 'sku'));
SELECT saga.define('cross',
    saga.step('first', 'act', compensation => 'act', exclusive => 'first'),
    saga.signal_step('go', timeout => '1 day'),
    saga.step('second', 'act', exclusive => 'second'));
SELECT count(saga.begin('turns', jsonb_build_object('sku', i % 3))) FROM generate_series(1, 60) i;
EOS
wait_all_final($node);
is(ask("SELECT status, count(*) FROM saga.sagas WHERE definition = 'turns' GROUP BY 1"),
	'completed|60', 'sagas that want the same locks all complete');
is( ask("WITH t AS (SELECT saga_id, g.input ->> 'sku' AS sku, min(n1) AS n1, max(n2) AS n2 "
			. "FROM effect JOIN saga.sagas g USING (saga_id) WHERE g.definition = 'turns' GROUP BY 1, 2) "
			. "SELECT count(*) FROM t JOIN t o USING (sku) "
			. "WHERE o.saga_id > t.saga_id AND o.n1 <= t.n2 AND t.n1 <= o.n2"),
	'0', '... one at a time');
is( ask("WITH t AS (SELECT saga_id, g.input ->> 'sku' AS sku, min(n1) AS n1 "
			. "FROM effect JOIN saga.sagas g USING (saga_id) WHERE g.definition = 'turns' GROUP BY 1, 2) "
			. "SELECT count(DISTINCT sku) FROM t"),
	'3', '... of three');

# a holder that waits keeps the others waiting, in the order in which they asked
$node->safe_psql('postgres', <<'EOS');
SET ROLE app;
SELECT saga.define('holder',
    saga.step('locked', 'act', exclusive => 'sku'), saga.signal_step('go', timeout => '1 day'));
EOS
my $holder = begin_saga('holder', '{"sku": "A"}');
poll_sql($node, "SELECT count(*) FROM saga.step WHERE saga_id = $holder AND step = 1", '1', 'the holder to wait');
my @line;
for (1 .. 5)
{
	my $next = begin_saga('line', '{"sku": "A"}');
	push @line, $next;
	ask("SELECT saga.signal($next, 'go')");
	poll_sql($node, "SELECT count(*) FROM saga.lock WHERE saga_id = $next AND NOT granted",
		'1', 'a saga to stand in line');
}
is(ask("SELECT count(*) FROM saga.step WHERE step = 2 AND status = 'succeeded' "
		. "AND saga_id IN (" . join(',', @line) . ")"),
	'0', 'nobody passes the one that holds the lock');
poll_sql($node, $nothing_held, '0', 'no transaction to be open while a lock is awaited');
ask("SELECT saga.signal($holder, 'go')");
wait_all_final($node);
is(ask("SELECT string_agg(saga_id::text, ',' ORDER BY n1) FROM effect "
		. "WHERE step = 'locked' AND saga_id <> $holder"),
	join(',', @line), 'the line moves in the order in which they asked');

# a circle
my $one = begin_saga('cross', '{"first": "X", "second": "Y"}');
my $two = begin_saga('cross', '{"first": "Y", "second": "X"}');
poll_sql($node, "SELECT count(*) FROM saga.step WHERE saga_id IN ($one, $two) AND step = 1", '2',
	'both to hold their first lock');
ask("SELECT saga.signal($one, 'go'), saga.signal($two, 'go')");
wait_all_final($node);
is( ask("SELECT status, error ->> 'sqlstate' FROM saga.sagas WHERE saga_id IN ($one, $two) ORDER BY saga_id"),
	"completed|\ncompensated|SG024",
	'of two that wait for each other the younger goes back, the older completes');
is(ask('SELECT count(*) FROM saga.lock'), '0', 'no lock is left');

$node->stop;
done_testing();
