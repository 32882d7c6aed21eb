# The launcher, the coordinator and workers, ended in every way, idle and under
# load: SIGTERM, pg_terminate_backend(), pg_cancel_backend() and SIGKILL.  What
# was ended comes back by itself, no saga is lost or done twice, and only an
# attempt that was running is counted.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use PostgreSQL::Test::Utils;
use SagaTest;
use Test::More;

my $node = SagaTest->new_node('main', start => 1);

create_bank($node);
$node->safe_psql('postgres', <<'EOS');
CREATE FUNCTION nothing() RETURNS void LANGUAGE sql AS '';
CREATE FUNCTION gated(gate int) RETURNS void LANGUAGE sql AS
    'SELECT pg_advisory_xact_lock_shared(gate)';
SET ROLE bank;
SELECT saga.define('quick', saga.step('nothing', 'nothing'));
SELECT saga.define('gated', saga.step('gated', 'gated',
    retry => saga.retry_policy(initial_delay => '10 ms', jitter => 0)));
EOS

sub begin_saga
{
	my ($definition, $input) = @_;

	return $node->safe_psql('postgres',
		"SET ROLE bank; SELECT saga.begin('$definition', '$input')");
}

sub wait_completed
{
	my ($id, $what) = @_;

	poll_sql($node, "SELECT status FROM saga.sagas WHERE saga_id = $id",
		'completed', "a saga begun $what", timeout => 30);
	return 1;
}

sub pid_of
{
	my ($process) = @_;

	return start_coordinator($node) if $process eq 'coordinator';
	wait_completed(begin_saga('quick', '{}'), 'to have a worker')
	  if $process eq 'worker';
	return poll_sql($node,
		"SELECT min(pid) FROM pg_stat_activity WHERE backend_type = 'saga $process'",
		qr/^\d+$/, "a $process");
}

sub wait_gone
{
	my ($pid) = @_;

	poll_sql($node,
		"SELECT count(*) FROM pg_stat_activity WHERE pid = $pid",
		'0', "the end of process $pid");
	return;
}

# ---- idle

foreach my $process ('worker', 'coordinator', 'launcher')
{
	foreach my $way ('TERM', 'KILL')
	{
		my $pid = pid_of($process);

		if ($way eq 'KILL')
		{
			restart_after($node, sub { kill 'KILL', $pid },
				"the kill of an idle $process");
		}
		else
		{
			kill 'TERM', $pid;
			wait_gone($pid);
		}
		ok(wait_completed(begin_saga('quick', '{}'), "after the $process had SIG$way"),
			"an idle $process, SIG$way: the next saga runs");
		poll_sql($node,
			"SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'saga launcher'",
			'1', 'the launcher to be back');
	}
}

# what was begun while there was no launcher, nor any worker to see it
my $launcher = pid_of('launcher');
foreach my $pid (backend_pids($node, 'saga worker'),
	backend_pids($node, 'saga coordinator'))
{
	kill 'TERM', $pid;
	wait_gone($pid);
}
kill 'TERM', $launcher;
wait_gone($launcher);
ok(wait_completed(begin_saga('quick', '{}'), 'while there was no launcher'),
	'a saga begun while there is no launcher runs');
is($node->safe_psql('postgres', 'SELECT count(*) FROM saga.attempt'),
	'0', 'nobody lost an attempt');

# ---- a worker in a step

my $at_gate = "SELECT pid FROM pg_stat_activity "
  . "WHERE backend_type = 'saga worker' AND wait_event = 'advisory'";
my $attempts = "SELECT string_agg(concat_ws(' ', attempt, outcome, sqlstate), ',' "
  . "ORDER BY attempt) FROM saga.attempts WHERE saga_id = ";

shut_gate($node, 'gate', 'SELECT pg_advisory_xact_lock(7)');
my $id = begin_saga('gated', '{"gate": 7}');
my $pid = poll_sql($node, $at_gate, qr/^\d+$/, 'the worker at the gate');
$node->safe_psql('postgres', "SELECT pg_cancel_backend($pid)");
poll_sql($node, $attempts . $id, '1 failed 57014', 'the cancelled attempt');
is(poll_sql($node, $at_gate, qr/^\d+$/, 'the worker at the gate again'),
	$pid, 'pg_cancel_backend() ends the attempt, not the worker');

$node->safe_psql('postgres', "SELECT pg_terminate_backend($pid)");
poll_sql(
	$node,
	$attempts . $id,
	'1 failed 57014,2 lost SG012',
	'the attempt whose process was terminated');
isnt(poll_sql($node, $at_gate, qr/^\d+$/, 'another worker at the gate'),
	$pid, 'pg_terminate_backend() ends the worker: another one goes on');
open_gate($node, 'gate');
ok(wait_completed($id, 'before its worker was terminated'), 'the saga completes');
is($node->safe_psql('postgres', "SELECT attempts, failures FROM saga.steps WHERE saga_id = $id"),
	'3|1', 'one attempt failed, one was lost, one succeeded');

# A cancel outside of an operation belongs to nobody.
$pid = pid_of('worker');
$node->safe_psql('postgres', "SELECT pg_cancel_backend($pid)");
ok(wait_completed(begin_saga('quick', '{}'), 'after the cancel'),
	'a cancel of an idle worker hurts nobody');

# ---- under load

my $offset = -s $node->logfile;
my @terminated;

$node->safe_psql('postgres', 'SET ROLE bank; SELECT begin_transfers(1000)');
foreach my $round (1 .. 5)
{
	foreach my $process ('worker', 'coordinator', 'launcher', 'worker')
	{
		my ($victim) = backend_pids($node, "saga $process");

		$node->safe_psql('postgres', 'SET ROLE bank; SELECT begin_transfers(100)');
		start_coordinator($node) if $process eq 'launcher';
		next unless defined $victim;
		push @terminated, $process;
		kill 'TERM', $victim;
	}
}
my %n;
$n{$_}++ foreach @terminated;
note "terminated: " . join(', ', map { "$n{$_} ${_}s" } sort keys %n);
ok($n{worker} && $n{coordinator} && $n{launcher}, 'each kind was terminated under load');
wait_all_final($node);
is(audit($node), '', 'SIGTERM of all under load: nothing lost, nothing twice');
cmp_ok(
	$node->safe_psql('postgres',
		"SELECT count(*) FROM saga.attempts JOIN saga.sagas USING (saga_id) "
		  . "WHERE definition = 'transfer' AND outcome = 'lost'"),
	'<=', $n{worker},
	'no more attempts were lost than workers were terminated');
unlike(slurp_file($node->logfile, $offset),
	qr/reinitializing|PANIC|TRAP/, 'and the server did not restart');

foreach my $process ('coordinator', 'launcher', 'worker')
{
	my $final = $node->safe_psql('postgres',
		'SELECT count(*) FROM saga.saga WHERE due_at IS NULL');

	$node->safe_psql('postgres', 'SET ROLE bank; SELECT begin_transfers(1500)');
	my $victim = pid_of($process);
	poll_sql($node,
		"SELECT count(*) > $final + 50 FROM saga.saga WHERE due_at IS NULL",
		't', 'the load to be under way');
	my $left = $node->safe_psql('postgres',
		'SELECT count(*) FROM saga.saga WHERE due_at IS NOT NULL');
	restart_after($node, sub { kill 'KILL', $victim }, "the kill of the $process");
	note "$process killed while $left sagas were to do";
	wait_all_final($node);
	is(audit($node), '', "SIGKILL of the $process under load: nothing lost, nothing twice");
}
is(
	$node->safe_psql('postgres',
		"SELECT count(*) FROM saga.sagas WHERE status = 'stuck'"),
	'0',
	'nobody is stuck');

$node->stop;
done_testing();
