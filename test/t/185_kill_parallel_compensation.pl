# A worker that is killed in the middle of a parallel compensation, with SIGKILL
# (the server restarts) and with SIGTERM (it does not).  The saga is this:
#
#	     /- b1 - c1 -\
#	a --+-- b2 - c2 --+-- fail
#	     \- b3 ------/
#
# so that going back c1, c2 and b3 are compensated at the same time, then b1 and
# b2, then a.  The windows:
#
#	before the effects of two compensations, both in hand
#	after them, in the operations
#	after them, in the operations' deferred triggers
#	in one, when the other has been done, and what came after that
#	in the second row of compensations, both in hand
#	in the last one, which waited for all others
#	before the operations for other workers are written down
#	after an operation for another worker, before its outcome is sent
#
# Whatever the window, each compensation has its effect once, each after those
# of all steps that depend on its own, the saga is compensated, and a lost
# attempt is on record exactly for the operation that the process was in.
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
		'saga.worker_idle_timeout' => '1h',
		'saga.workers_per_role'    => 2,
	});

# A compensation passes three gates, which a prepared transaction may hold:
# 10 * number of the step + 1 before its effect, + 2 after it, + 3 in the
# trigger.  The saga fails when there is a row in "go".
$node->safe_psql('postgres', <<'EOS');
CREATE EXTENSION saga;
CREATE ROLE app LOGIN;
GRANT CREATE ON SCHEMA public TO app;
SELECT saga.grant_usage('app');
SET ROLE app;
CREATE SEQUENCE marker;
CREATE TABLE go (saga_id bigint);
CREATE TABLE effect (saga_id bigint, step text, operation text, gate int, n1 bigint, n2 bigint);
CREATE TABLE before (earlier text, later text);
INSERT INTO before VALUES ('a', 'b1'), ('a', 'b2'), ('a', 'b3'), ('a', 'c1'), ('a', 'c2'),
    ('b1', 'c1'), ('b2', 'c2');
CREATE FUNCTION wait_at_gate() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock_shared(NEW.gate + 3);
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON effect DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION wait_at_gate();
CREATE FUNCTION act(context jsonb) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    gate constant int := CASE context ->> 'operation' WHEN 'action' THEN 1000 ELSE
        10 * array_position('{a,b1,b2,b3,c1,c2}', context ->> 'step') END;
    n1 constant bigint := nextval('marker');
BEGIN
    PERFORM pg_advisory_xact_lock_shared(gate + 1);
    INSERT INTO effect VALUES ((context ->> 'saga_id')::bigint, context ->> 'step',
        context ->> 'operation', gate, n1, nextval('marker'));
    PERFORM pg_advisory_xact_lock_shared(gate + 2);
END $$;
CREATE FUNCTION fail(context jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM go WHERE saga_id = (context ->> 'saga_id')::bigint) THEN
        PERFORM saga.retry_later('20 ms', 'wait for the test');
    END IF;
    PERFORM saga.fail('as the test wants it');
END $$;
SELECT saga.define('tree',
    saga.step('a', 'act', compensation => 'act'),
    saga.step('b1', 'act', compensation => 'act', after => '{a}'),
    saga.step('b2', 'act', compensation => 'act', after => '{a}'),
    saga.step('b3', 'act', compensation => 'act', after => '{a}'),
    saga.step('c1', 'act', compensation => 'act', after => '{b1}'),
    saga.step('c2', 'act', compensation => 'act', after => '{b2}'),
    saga.step('fail', 'fail', after => '{c1,c2,b3}'));
EOS

my %number = (a => 1, b1 => 2, b2 => 3, b3 => 4, c1 => 5, c2 => 6);

sub gates
{
	my ($which, @steps) = @_;

	return join '; ',
	  map { 'SELECT pg_advisory_xact_lock(' . ($number{$_} * 10 + $which) . ')' }
	  @steps;
}

my $waiting = <<'EOS';
SELECT a.pid, COALESCE(w.step || ' ' || w.operation || ' ' || w.attempt, '')
FROM pg_stat_activity a LEFT JOIN saga.workers w USING (pid)
WHERE a.backend_type = 'saga worker' AND a.wait_event_type = 'Lock'
  AND a.xact_start < clock_timestamp() - interval '100 ms'
ORDER BY w.step
EOS

# Those whose effect has been committed.
sub undone
{
	my ($id) = @_;

	return "SELECT count(*) FROM effect WHERE saga_id = $id AND operation = 'compensation'";
}

# [window, what the gate holds, workers that wait then, compensations that have
# had their effect then, whether the workers are in an operation]
my @windows = (
	[ 'before the effects of two compensations', gates(1, 'c1', 'c2'), 2, undef, 1 ],
	[ 'after the effects of two compensations', gates(2, 'c1', 'c2'), 2, undef, 1 ],
	[
		'in the deferred triggers of two compensations',
		gates(3, 'c1', 'c2'), 2, undef, 1
	],
	[
		'in one compensation, when all that can be have been done',
		gates(1, 'c1'), 1, 3, 1
	],
	[ '... and the other way round', gates(2, 'c2'), 1, 3, 1 ],
	[ 'in the second row of compensations', gates(2, 'b1', 'b2'), 2, 3, 1 ],
	[ 'in the last compensation', gates(1, 'a'), 1, 5, 1 ],
	[
		'before an operation is handed to another worker',
		'LOCK TABLE saga.branch IN SHARE MODE', 1, undef, 0
	],
	[
		'before the outcome from another worker is sent',
		'LOCK TABLE saga.message IN SHARE MODE', 1, undef, 0
	]);

sub begin_saga
{
	my $id = $node->safe_psql('postgres', "SET ROLE app; SELECT saga.begin('tree')");

	# it is at its last step, and waits between two attempts
	poll_sql($node,
		"SELECT count(*) FROM saga.step WHERE saga_id = $id AND step = 6", '1',
		'the actions to be done');
	return $id;
}

# The end of a saga.
sub check_saga
{
	my ($id, $lost, $what) = @_;

	poll_sql($node, "SELECT status FROM saga.sagas WHERE saga_id = $id",
		'compensated', "the saga killed $what to be compensated");
	is( $node->safe_psql(
			'postgres',
			"SELECT string_agg(operation || ' ' || step, ',' "
			  . "ORDER BY operation, step) FROM effect WHERE saga_id = $id"),
		join(',', (map { "action $_" } sort keys %number),
			(map { "compensation $_" } sort keys %number)),
		"$what: each effect once");
	is( $node->safe_psql(
			'postgres',
			"SELECT p.step, q.step FROM before b "
			  . "JOIN effect p ON p.saga_id = $id AND p.operation = 'compensation' AND p.step = b.earlier "
			  . "JOIN effect q ON q.saga_id = $id AND q.operation = 'compensation' AND q.step = b.later "
			  . "WHERE q.n2 > p.n1"),
		'',
		"$what: in the reverse order of the dependencies");
	is( $node->safe_psql(
			'postgres',
			"SELECT COALESCE(string_agg(concat_ws(' ', outcome, step, operation, "
			  . "attempt, sqlstate), ',' ORDER BY step), 'none') FROM saga.attempts "
			  . "WHERE saga_id = $id AND outcome <> 'failed'"),
		$lost,
		"$what: the attempts that were lost");
	is( $node->safe_psql(
			'postgres',
			"SELECT sum(attempts) FROM saga.step WHERE saga_id = $id "
			  . "AND operation = 'compensation'"),
		6 + ($lost eq 'none' ? 0 : 1 + ($lost =~ tr/,//)),
		"$what: no more attempts than that");
	is( $node->safe_psql(
			'postgres',
			"SELECT (SELECT count(*) FROM saga.branch WHERE saga_id = $id) "
			  . "+ (SELECT count(*) FROM saga.message WHERE saga_id = $id)"),
		'0',
		"$what: nothing is left");
	return;
}

foreach my $way ('TERM', 'KILL', 'TERM to all')
{
	foreach my $window (@windows)
	{
		my ($name, $locks, $waits, $before, $inside) = @$window;
		my $what = "$name, by SIG$way";
		my $id   = begin_saga();

		shut_gate($node, 'gate', $locks);
		$node->safe_psql('postgres', "INSERT INTO go VALUES ($id)");
		poll_sql($node, undone($id), $before, "$before compensations before, $what")
		  if defined $before;
		# not those that only try whether they have to wait, in a batch
		my @waiting = split /\n/,
		  poll_sql($node, $waiting, qr/^([^\n]+(\n|$)){$waits}$/,
			"$waits workers to wait $what");
		# the first, or the second, or all
		@waiting = ($waiting[ $way eq 'KILL' ? -1 : 0 ]) if $way ne 'TERM to all';
		my @pids = map { (split /\|/)[0] } @waiting;
		my @lost = map { 'lost ' . (split /\|/)[1] . ' SG012' } @waiting;

		if ($way eq 'KILL')
		{
			restart_after($node, sub { kill 'KILL', @pids }, "the kill $what");
		}
		else
		{
			kill 'TERM', @pids;
		}
		poll_sql($node,
			'SELECT count(*) FROM pg_stat_activity WHERE pid IN (' . join(',', @pids) . ')',
			'0', "the end $what");
		open_gate($node, 'gate');
		check_saga($id, $inside ? join(',', @lost) : 'none', $what);
	}
}

$node->stop;
done_testing();
