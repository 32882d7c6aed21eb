# A worker that is killed, in each window of an operation, with SIGKILL (the
# server restarts) and with SIGTERM (it does not), in an action and in a
# compensation:
#
#	before the effect
#	after the effect, in the operation
#	after the effect, in the operation's deferred trigger
#	after the operation, before its record is written
#	after the commit was flushed, before anybody saw it
#	after the commit, before the next step
#
# Whatever the window, each operation has its effect once, every step that the
# tables call succeeded has had it, the saga ends as it would have, and a lost
# attempt is on record exactly if the worker was inside an operation.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use IPC::Run;
use PostgreSQL::Test::Utils;
use SagaTest;
use Test::More;

my $node = SagaTest->new_node(
	'main',
	start => 1,
	allows_streaming => 1,
	conf  => { 'saga.worker_idle_timeout' => '1h' });

# Each operation passes three gates, which a prepared transaction may hold:
# 10 * position + 1 before its effect, + 2 after it, + 3 in the trigger; those
# of a compensation 100 later.
$node->safe_psql('postgres', <<'EOS');
CREATE EXTENSION saga;
CREATE ROLE app LOGIN;
GRANT CREATE ON SCHEMA public TO app;
SELECT saga.grant_usage('app');
SET ROLE app;
CREATE TABLE effect (saga_id bigint, step text, operation text, gate int,
    PRIMARY KEY (saga_id, step, operation));
CREATE FUNCTION wait_at_gate() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock_shared(NEW.gate + 3);
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON effect DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION wait_at_gate();
CREATE FUNCTION act(context jsonb) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    gate constant int := CASE context ->> 'operation' WHEN 'action' THEN 0 ELSE 100 END
        + CASE context ->> 'step' WHEN 'first' THEN 10 WHEN 'second' THEN 20 ELSE 30 END;
BEGIN
    PERFORM pg_advisory_xact_lock_shared(gate + 1);
    INSERT INTO effect
        VALUES ((context ->> 'saga_id')::bigint, context ->> 'step',
                context ->> 'operation', gate);
    PERFORM pg_advisory_xact_lock_shared(gate + 2);
    IF context ->> 'step' = 'last' AND context -> 'input' ? 'fails' THEN
        PERFORM saga.fail('as the test wants it');
    END IF;
    RETURN context ->> 'attempt';
END $$;
SELECT saga.define('windows',
    saga.step('first', 'act', compensation => 'act'),
    saga.step('second', 'act', compensation => 'act'),
    saga.step('last', 'act'));
EOS

my $lock_wait = "SELECT pid FROM pg_stat_activity "
  . "WHERE backend_type = 'saga worker' AND wait_event_type = 'Lock'";
my $sync_wait = "SELECT pid FROM pg_stat_activity "
  . "WHERE backend_type = 'saga worker' AND wait_event = 'SyncRep'";

sub advisory { return "SELECT pg_advisory_xact_lock($_[0])" }

# From now on each commit waits for a standby that does not exist; ours too,
# unless they are local.
sub hold_commits
{
	my ($out, $err) = ('', '');
	my $probe;

	$node->safe_psql('postgres',
		"SET synchronous_commit = local; "
		  . "ALTER SYSTEM SET synchronous_standby_names = 'nobody'");
	$node->reload;

	# the setting counts from when the checkpointer has read it: try
	for (1 .. 100)
	{
		$probe = IPC::Run::start(
			[
				$node->installed_command('psql'), '-XAtq',
				'-d', $node->connstr('postgres'),
				'-c', q{COMMENT ON ROLE app IS 'probe'}
			],
			'<', \undef, '>', \$out, '2>', \$err);
		# held, unless it ends by itself
		while ($probe->pumpable)
		{
			return $probe
			  if $node->safe_psql('postgres',
				"SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep' "
				  . "AND query LIKE 'COMMENT%'");
			eval { $probe->pump_nb };
		}
		$probe->finish;
	}
	die "could not hold commits";
}

sub release_commits
{
	my ($probe) = @_;

	$node->safe_psql('postgres',
		'ALTER SYSTEM RESET synchronous_standby_names');
	$node->reload;
	eval { $probe->finish };
	return;
}

sub open_gate_locally
{
	my ($name) = @_;

	return $node->safe_psql('postgres',
		"SET synchronous_commit = local; ROLLBACK PREPARED '$name'");
}

sub begin_saga
{
	my ($input) = @_;

	return $node->safe_psql('postgres',
		"SET ROLE app; SELECT saga.begin('windows', '$input')");
}

# Kill the one worker that waits; returns once the server answers again.
sub kill_waiting
{
	my ($signal, $query, $what) = @_;
	my $pid = poll_sql($node, $query, qr/^\d+$/, "a worker to wait $what");

	if ($signal eq 'KILL')
	{
		restart_after($node, sub { kill 'KILL', $pid }, "the kill $what");
	}
	else
	{
		kill $signal, $pid;
	}
	poll_sql($node,
		"SELECT count(*) FROM pg_stat_activity WHERE pid = $pid",
		'0', "the worker's end $what");
	return;
}

# The end of a saga: its effects, its attempts that were lost, its status.
sub check_saga
{
	my ($id, $fails, $lost, $what) = @_;
	my $status = $fails ? 'compensated' : 'completed';
	my $expected =
	  $fails
	  ? 'first action,first compensation,second action,second compensation'
	  : 'first action,last action,second action';

	poll_sql($node, "SELECT status FROM saga.sagas WHERE saga_id = $id",
		$status, "the saga killed $what to be $status");
	is( $node->safe_psql(
			'postgres',
			"SELECT string_agg(step || ' ' || operation, ',' "
			  . "ORDER BY step, operation) FROM effect WHERE saga_id = $id"),
		$expected,
		"$what: each effect once");
	is( $node->safe_psql(
			'postgres',
			"SELECT string_agg(step || ' ' || operation, ',' "
			  . "ORDER BY step, operation) FROM saga.steps "
			  . "WHERE saga_id = $id AND status = 'succeeded'"),
		$expected,
		"$what: each record once");
	is( $node->safe_psql(
			'postgres',
			"SELECT COALESCE(string_agg(concat_ws(' ', outcome, step, operation, "
			  . "attempt, sqlstate), ','), 'none') FROM saga.attempts "
			  . "WHERE saga_id = $id AND outcome <> 'failed'"),
		$lost,
		"$what: the attempts that were lost");
	is( $node->safe_psql(
			'postgres',
			"SELECT sum(attempts) FROM saga.steps WHERE saga_id = $id"),
		($fails ? 5 : 3) + ($lost eq 'none' ? 0 : 1),
		"$what: no more attempts than that");
	return;
}

# [window, locks of the gate, step and operation lost]
my @windows = (
	[ 'before the effect of an action', advisory(21), 'second action' ],
	[ 'after the effect of an action',  advisory(22), 'second action' ],
	[ 'in the deferred trigger of an action', advisory(23), 'second action' ],
	[
		'before the record of an action',
		'LOCK TABLE saga.step IN SHARE MODE',
		undef
	],
	[
		'after the commit of an action, before the next',
		advisory(31),
		'last action'
	],
	[
		'before the effect of a compensation', advisory(121),
		'second compensation'
	],
	[
		'after the effect of a compensation', advisory(122),
		'second compensation'
	],
	[
		'in the deferred trigger of a compensation', advisory(123),
		'second compensation'
	],
	[
		'after the commit of a compensation, before the next', advisory(111),
		'first compensation'
	]);

foreach my $signal ('TERM', 'KILL')
{
	foreach my $window (@windows)
	{
		my ($name, $locks, $lost) = @$window;
		my $fails = $name =~ /compensation/;
		my $what  = "$name, by SIG$signal";

		shut_gate($node, 'gate', $locks);
		my $id = begin_saga($fails ? '{"fails": 1}' : '{}');
		kill_waiting($signal, $lock_wait, $what);
		open_gate($node, 'gate');
		check_saga($id, $fails,
			defined $lost ? "lost $lost 1 SG012" : 'none', $what);
	}

	foreach my $operation ('action', 'compensation')
	{
		my $fails = $operation eq 'compensation';
		my $what =
		  "after the commit of an $operation was flushed, by SIG$signal";

		shut_gate($node, 'gate', advisory($fails ? 122 : 22));
		my $id = begin_saga($fails ? '{"fails": 1}' : '{}');
		poll_sql($node, $lock_wait, qr/^\d+$/, "the worker at the gate");
		my $probe = hold_commits();
		open_gate_locally('gate');
		kill_waiting($signal, $sync_wait, $what);
		release_commits($probe);
		check_saga($id, $fails, 'none', $what);
	}
}

# Between two sagas a worker holds nothing that could be lost.
my $attempts = $node->safe_psql('postgres', 'SELECT count(*) FROM saga.attempt');
my ($pid) = backend_pids($node, 'saga worker');
ok($pid, 'an idle worker');
kill 'TERM', $pid;
poll_sql($node, "SELECT count(*) FROM pg_stat_activity WHERE pid = $pid",
	'0', 'the idle worker to end');
check_saga(begin_saga('{}'), 0, 'none', 'idle, by SIGTERM');
($pid) = backend_pids($node, 'saga worker');
restart_after($node, sub { kill 'KILL', $pid }, 'the kill of an idle worker');
check_saga(begin_saga('{}'), 0, 'none', 'idle, by SIGKILL');
is($node->safe_psql('postgres', 'SELECT count(*) FROM saga.attempt'),
	$attempts, 'an idle worker loses no attempt');

$node->stop;
done_testing();
