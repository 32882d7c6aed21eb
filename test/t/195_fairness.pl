# Definitions are fair to each other: a saga of one waits for no more than a
# few batches, however many of another were begun before it in one statement
# or one by one, also after a restart, when nothing but the tables knows them.
# What is begun in a group gets its turn as a whole; a retry behind a backlog
# is done before the backlog is.  More definitions than lanes, and more sagas
# than these hold: none is forgotten.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use PostgreSQL::Test::Utils;
use SagaTest;
use Test::More;

my $batch = 50;

# "A few": the one at hand, the one that has it, and some that end in between.
my $few = 5 * $batch;

my $node = SagaTest->new_node(
	'main',
	start => 1,
	conf  => {
		'saga.workers_per_role'  => 1,
		'saga.batch_size'        => $batch,
		'synchronous_commit'     => 'off',
		'track_commit_timestamp' => 'on'
	});

$node->safe_psql('postgres', <<'EOS');
CREATE EXTENSION saga;
CREATE ROLE app LOGIN;
SELECT saga.grant_usage('app');
GRANT CREATE ON SCHEMA public TO app;
SET ROLE app;
CREATE TABLE gate ();
CREATE TABLE begun (saga_id bigint);
CREATE FUNCTION nothing() RETURNS void LANGUAGE sql AS '';
CREATE FUNCTION pass_gate() RETURNS void LANGUAGE sql AS 'SELECT FROM gate';
CREATE FUNCTION fails_once(context jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF context ->> 'attempt' = '1' THEN
        RAISE EXCEPTION 'not yet' USING ERRCODE = '57000';
    END IF;
END $$;
SELECT saga.define('many', saga.step('nothing', 'nothing'));
SELECT saga.define('few', saga.step('one', 'nothing'), saga.step('two', 'nothing'));
SELECT saga.define('gated', saga.step('pass', 'pass_gate'));
SELECT saga.define('retried', saga.step('fails', 'fails_once', retry =>
    saga.retry_policy(initial_delay => '50 ms', max_delay => '50 ms')));
SELECT saga.define('kind' || i, saga.step('nothing', 'nothing'))
FROM generate_series(1, 25) i;
-- each in a transaction of its own, of all these definitions by turns
CREATE PROCEDURE begin_each(n int, VARIADIC names text[]) LANGUAGE plpgsql AS $$
BEGIN
    FOR i IN 0 .. n - 1 LOOP
        PERFORM saga.begin(names[1 + i % cardinality(names)]);
        COMMIT;
    END LOOP;
END $$;
EOS

sub begin
{
	my ($definition, $n) = @_;

	return $node->safe_psql('postgres',
		"SET ROLE app; WITH b AS (INSERT INTO begun SELECT saga.begin('$definition') "
		  . 'FROM generate_series(1, ' . ($n || 1) . ') RETURNING saga_id) '
		  . 'SELECT max(saga_id) FROM b');
}

sub wait_completed
{
	my ($id, $what) = @_;

	poll_sql($node, "SELECT status FROM saga.sagas WHERE saga_id = $id",
		'completed', $what);
	return;
}

# How many of the backlog ended after the commit that began this saga and before
# it ended, and how many after it?
sub overtaken_by
{
	my ($id) = @_;

	return split /\|/, $node->safe_psql('postgres', <<"EOS");
SELECT count(*) FILTER (WHERE m.finished_at < f.finished_at),
    count(*) FILTER (WHERE m.finished_at IS NULL OR m.finished_at > f.finished_at)
FROM saga.sagas f JOIN begun USING (saga_id), saga.sagas m
WHERE f.saga_id = $id AND m.definition = 'many'
AND (m.finished_at IS NULL
    OR m.finished_at > pg_xact_commit_timestamp(begun.xmin))
EOS
}

sub is_soon
{
	my ($id, $what) = @_;
	my ($before, $after) = overtaken_by($id);

	cmp_ok($before, '<=', $few, "$what: $before others were done meanwhile");
	cmp_ok($after, '>', $few, "... of a backlog: $after were done later");
	return;
}

# Begin others while the only worker waits at the gate, alone with a saga that
# got its turn like any other: so what is done in between does not depend on
# which process is faster.
sub shut
{
	shut_gate($node, 'shut', 'LOCK TABLE gate');
	begin('gated');
	poll_sql(
		$node,
		"SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid) "
		  . "WHERE NOT l.granted AND a.backend_type = 'saga worker' "
		  . "AND a.xact_start < clock_timestamp() - interval '0.5 s'",
		'1',
		'the worker to wait at the gate');
	return;
}

sub begin_few
{
	my ($n, $what) = @_;
	my $id;

	shut();
	$id = begin('few', $n);
	open_gate($node, 'shut');
	wait_completed($id, $what);
	is_soon($id, $what);
	return;
}

# ---- a backlog that was begun in one statement

begin('many', 20000);
begin_few(1, 'a saga of another definition');

begin('many', 10000);
begin_few(40, 'the last one of forty');

# ---- after a restart, when nothing but the tables knows them

begin('many', 10000);
$node->restart;
begin_few(1, 'a saga begun after a restart');

# ---- what falls due behind them

begin('many', 20000);
my $id = begin('retried');

# at the gate its time comes
shut();
open_gate($node, 'shut');
wait_completed($id, 'a retry behind a backlog');
my ($before, $after) = overtaken_by($id);
cmp_ok($after, '>', 0, "a retry: $before others were done meanwhile, $after later");
wait_all_final($node, timeout => 180);

# ---- more than the lanes hold, one by one, while the worker is busy

shut();
$node->safe_psql('postgres', "SET ROLE app; CALL begin_each(3000, 'many')");
$id = begin('few');
open_gate($node, 'shut');
wait_completed($id, 'a saga behind a full lane');
is_soon($id, 'a saga behind a full lane');
wait_all_final($node);

shut();
$node->safe_psql('postgres',
	"SET ROLE app; CALL begin_each(5000, "
	  . join(', ', map { "'kind$_'" } 1 .. 25) . ')');
open_gate($node, 'shut');
wait_all_final($node);
is( $node->safe_psql('postgres', <<'EOS'),
SELECT count(*), count(DISTINCT definition) FROM saga.sagas
WHERE definition LIKE 'kind%' AND status = 'completed'
EOS
	'5000|25',
	'more definitions than lanes: all are done');
is( $node->safe_psql('postgres',
		"SELECT count(*) FROM saga.sagas WHERE status <> 'completed'"),
	'0',
	'... and all others');

$node->stop;
done_testing();
