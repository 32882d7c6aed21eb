# Queues are announced, once for all tasks of a moment, by the coordinator and
# with an empty payload; what is not said in a transaction that committed is not
# announced.  Nobody has to ask for that: leases end, retries are announced and
# breakers close while no process of ours is there; a crash of the server costs
# announcements, not tasks; and without workers CALL saga.recover() does it all.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use IPC::Run;
use PostgreSQL::Test::Utils;
use SagaTest;
use Test::More;
use Time::HiRes qw(time usleep);

# all that is begun in one transaction is one batch
my $node = SagaTest->new_node(
	'main',
	start => 1,
	conf  => {
		'saga.workers_per_role' => '1',
		'saga.batch_time'       => '1min'
	});

$node->safe_psql('postgres', <<'EOS');
CREATE EXTENSION saga;
CREATE ROLE app LOGIN;
SELECT saga.grant_usage('app');
CREATE FUNCTION nothing() RETURNS void LANGUAGE sql AS '';
SET ROLE app;
SELECT saga.define('local', saga.step('nothing', 'nothing'));
SELECT saga.define(q, saga.external_step('do', q,
    retry => saga.retry_policy(initial_delay => '10 ms', max_delay => '10 ms')))
FROM unnest(ARRAY['mail', 'calls', 'parcels']) q;
EOS

sub app
{
	my ($sql) = @_;

	return $node->safe_psql('postgres', $sql, extra_params => [ '-U', 'app' ]);
}

# ---- a session that listens

sub start_listener
{
	my (@queues) = @_;
	my %listener = (in => '', out => '', err => '', marks => 0, heard => {}, payloads => 0);

	$listener{handle} = IPC::Run::start(
		[ $node->installed_command('psql'), '-XAtq', '-d', $node->connstr('postgres') ],
		'<', \$listener{in}, '>', \$listener{out}, '2>', \$listener{err},
		IPC::Run::timeout(300));
	$listener{in} .= "LISTEN saga_$_;\n" foreach @queues;
	listen_now(\%listener);
	return \%listener;
}

# Have it take what was sent until now.
sub listen_now
{
	my ($listener) = @_;

	# psql shows what has come with a result behind the result
	for (1 .. 2)
	{
		my $mark = 'mark ' . ++$listener->{marks};

		$listener->{in} .= "SELECT '$mark';\n";
		$listener->{handle}->pump until $listener->{out} =~ /^\Q$mark\E$/m;
	}
	while ($listener->{out} =~
		s/^Asynchronous notification "saga_(\w+)"( with payload)?.*\n//m)
	{
		$listener->{heard}{$1}++;
		$listener->{payloads}++ if defined $2;
	}
	return;
}

sub heard
{
	my ($listener, $queue) = @_;

	listen_now($listener);
	return $listener->{heard}{$queue} || 0;
}

# Wait until it has heard of the queue, and forget it.
sub hear
{
	my ($listener, $queue, $what) = @_;
	my $deadline = time() + 60;

	while (heard($listener, $queue) == 0)
	{
		die "timed out waiting for $what" if time() >= $deadline;
		usleep(20_000);
	}
	$listener->{heard}{$queue} = 0;
	pass("announced: $what");
	return;
}

sub end_listener
{
	my ($listener) = @_;

	$listener->{in} .= "\\q\n";
	eval { $listener->{handle}->finish; };
	return;
}

# It leaves when it has nothing to announce.
sub coordinator_leaves
{
	poll_sql($node,
		"SELECT count(*) FROM saga.workers WHERE process = 'coordinator'",
		'0', 'the coordinator to leave');
	return;
}

sub poll_ready
{
	my ($queue, $n, $what) = @_;

	poll_sql($node, "SELECT count(*) FROM saga.tasks WHERE queue = '$queue' AND status = 'ready'",
		$n, $what);
	return;
}

# Complete the task that was claimed in another session.
sub complete_of
{
	my ($participant) = @_;

	$node->safe_psql('postgres',
		"SELECT saga.complete_task(id, lease_token) FROM saga.task WHERE participant = '$participant'");
	return;
}

my $listener = start_listener('mail', 'calls', 'parcels');

# ---- one for all of a batch, none for sagas without external steps

app("SELECT count(saga.begin('local')) FROM generate_series(1, 20)");
wait_all_final($node);
coordinator_leaves();
is_deeply([ map { heard($listener, $_) } qw(mail calls parcels) ],
	[ 0, 0, 0 ], 'local steps announce nothing');

app("SELECT count(saga.begin('mail')) FROM generate_series(1, 40)");
poll_ready('mail', 40, 'the tasks to be offered');
is($node->safe_psql('postgres', 'SELECT count(DISTINCT xmin::text) FROM saga.task'),
	'1', 'all tasks are offered by one transaction');
coordinator_leaves();
is_deeply([ map { heard($listener, $_) } qw(mail calls parcels) ],
	[ 1, 0, 0 ], '... and announced once, and no other queue');
is($listener->{payloads}, 0, 'the payload is empty');
$listener->{heard} = {};

# what is given back is there for others
app(<<'EOS');
BEGIN;
SELECT count(saga.release_task(id, lease_token)) FROM saga.claim_tasks('mail', 40);
ROLLBACK;
EOS
hear($listener, 'mail', 'a claim that was rolled back: others may have looked meanwhile');
app("SELECT count(saga.release_task(id, lease_token)) FROM saga.claim_tasks('mail', 40, participant => 'one')");
hear($listener, 'mail', 'tasks that were released');

app("SELECT count(saga.complete_task(id, lease_token)) FROM saga.claim_tasks('mail', 40, participant => 'one')");
wait_all_final($node);
is( app("SELECT offered, completed, failed, expired, rate > 0, breaker, participants FROM saga.queues WHERE queue = 'mail'"),
	'40|40|0|0|t|closed|1',
	'the view knows what became of them');

# ---- a lease that ends while nobody of us is there

app("SELECT saga.begin('mail')");
hear($listener, 'mail', 'another task');
is(app("SELECT attempt FROM saga.claim_tasks('mail', lease => '12 s', participant => 'sleeper')"),
	'1', 'it is claimed');
poll_sql($node,
	"SELECT count(*) FROM saga.workers WHERE process = 'coordinator'",
	'0', 'the coordinator to leave before the lease ends');
is(app("SELECT status FROM saga.tasks WHERE participant = 'sleeper'"),
	'claimed', 'the coordinator leaves before the lease ends');
hear($listener, 'mail', 'the next attempt, when the lease is over');
is(app("SELECT attempt FROM saga.claim_tasks('mail', participant => 'riser')"),
	'2', '... which can be claimed');
is( app("SELECT string_agg(concat_ws(' ', participant, status), ', ' ORDER BY id) FROM saga.tasks WHERE participant IN ('sleeper', 'riser')"),
	'sleeper expired, riser claimed',
	'the first one has expired');
is(app("SELECT expired, failures_in_row FROM saga.queues WHERE queue = 'mail'"),
	'1|1', 'the view counts it');
complete_of('riser');

# ---- the breaker

app("SELECT saga.configure_queue('calls', breaker_failures => 3, breaker_pause => '1 h', breaker_max_pause => '2 h')");
app("SELECT count(saga.begin('calls')) FROM generate_series(1, 6)");
hear($listener, 'calls', 'tasks before they fail');
poll_ready('calls', 6, 'all of them to be offered');
coordinator_leaves();
listen_now($listener);
$listener->{heard} = {};

my $state = "SELECT breaker, failures_in_row, breaker_until > now() FROM saga.queues WHERE queue = 'calls'";
app("SELECT count(saga.fail_task(id, lease_token, 'busy', retryable => false)) FROM saga.claim_tasks('calls', 2)");
is(app($state), 'closed|2|', 'two failures are not enough');
app("SELECT count(saga.fail_task(id, lease_token, 'busy', retryable => false)) FROM saga.claim_tasks('calls', 1)");
is(app($state), 'open|3|t', 'the third one opens the breaker');
is(app("SELECT count(*) FROM saga.claim_tasks('calls')"), '0', '... and nobody gets a task');
app("SELECT saga.begin('calls')");
poll_ready('calls', 4, 'another task');
coordinator_leaves();
is(heard($listener, 'calls'), 0, 'new tasks are not announced meanwhile');

# a shorter pause counts for the one that has begun, for who asks
app("SELECT saga.configure_queue('calls', breaker_pause => '1 s', breaker_max_pause => '1 s')");
is(app("SELECT count(*) FROM saga.claim_tasks('calls')"), '0', 'who asks is told to wait still');
hear($listener, 'calls', 'the end of the pause');

# one task for each pause
my $trial = app(<<'EOS');
SELECT (SELECT count(*) FROM saga.claim_tasks('calls', lease => '1 h', participant => 'first')),
       (SELECT count(*) FROM saga.claim_tasks('calls', lease => '1 h', participant => 'second'))
EOS
is($trial, '1|0', 'one task is tried');
is(app("SELECT breaker FROM saga.queues WHERE queue = 'calls'"), 'half open', '... as the view says');
hear($listener, 'calls', 'that the next one may be tried');

# it is done: all the others are to be had
complete_of('first');
hear($listener, 'calls', 'that the breaker has closed');
is(app($state), 'closed|0|', 'a success closes the breaker');
is(app("SELECT count(saga.complete_task(id, lease_token)) FROM saga.claim_tasks('calls')"),
	'3', 'all tasks that wait can be claimed');

# opened again, and closed by a person
app("SELECT saga.configure_queue('calls', breaker_failures => 1, breaker_pause => '1 h', breaker_max_pause => '1 h')");
app("SELECT count(saga.begin('calls')) FROM generate_series(1, 2)");
poll_ready('calls', 2, 'two more');
app("SELECT count(saga.fail_task(id, lease_token, 'busy', retryable => false)) FROM saga.claim_tasks('calls', 1)");
is(app($state), 'open|1|t', 'the breaker is open again');
coordinator_leaves();
listen_now($listener);
$listener->{heard} = {};
app("SELECT saga.reset_breaker('calls')");
hear($listener, 'calls', 'that a person has closed it');
is(app("SELECT count(saga.complete_task(id, lease_token)) FROM saga.claim_tasks('calls')"),
	'1', '... and the task can be claimed');

# who looks in vain does not take the place of the one task
app("SELECT saga.configure_queue('calls', breaker_pause => '1 s', breaker_max_pause => '1 s')");
app("SELECT saga.begin('calls')");
poll_ready('calls', 1, 'one more');
listen_now($listener);
$listener->{heard} = {};
app("SELECT count(saga.fail_task(id, lease_token, 'busy', retryable => false)) FROM saga.claim_tasks('calls')");
hear($listener, 'calls', 'the end of the pause, though nothing waits');
is(app("SELECT count(*) FROM saga.claim_tasks('calls')"), '0', 'nothing waits');
app("SELECT saga.begin('calls')");
hear($listener, 'calls', 'the next task');
is(app("SELECT count(saga.complete_task(id, lease_token)) FROM saga.claim_tasks('calls')"),
	'1', '... which can be claimed');
wait_all_final($node);

# ---- without workers

$node->append_conf('postgresql.conf', 'saga.enabled = off');
$node->reload;
poll_sql($node,
	"SELECT count(*) FROM pg_stat_activity WHERE backend_type IN ('saga worker', 'saga coordinator')",
	'0', 'all processes to leave');
listen_now($listener);
$listener->{heard} = {};

app("SELECT saga.begin('parcels')");
app('CALL saga.recover()');
hear($listener, 'parcels', 'a task that saga.recover() has offered');
app("SELECT count(*) FROM saga.claim_tasks('parcels', lease => '10 ms', participant => 'lazy')");
my $deadline = time() + 60;
while (app("SELECT count(*) FROM saga.tasks WHERE queue = 'parcels' AND status = 'ready'") ne '1')
{
	die 'timed out waiting for saga.recover() to end a lease' if time() >= $deadline;
	app('CALL saga.recover()');
}
is(app("SELECT status FROM saga.tasks WHERE participant = 'lazy'"),
	'expired', 'saga.recover() ends leases');
hear($listener, 'parcels', 'the next attempt');

# ---- a crash, and what is deleted

$node->safe_psql('postgres', <<'EOS');
UPDATE saga.task SET offered_at = offered_at - interval '2 h', ended_at = ended_at - interval '2 h'
WHERE ended_at IS NOT NULL;
EOS
end_listener($listener);
$node->stop('immediate');
$node->start;
$listener = start_listener('mail', 'calls', 'parcels');
is(heard($listener, 'parcels'), 0, 'without a coordinator nothing is announced');
cmp_ok($node->safe_psql('postgres', 'SELECT count(*) FROM saga.task'), '>', 40, 'old tasks are there');
$node->append_conf('postgresql.conf', 'saga.enabled = on');
$node->reload;
hear($listener, 'parcels', 'the tasks of before the crash');
is_deeply([ map { heard($listener, $_) } qw(mail calls) ],
	[ 0, 0 ], '... and no queue without tasks');
poll_sql($node, 'SELECT count(*) FROM saga.task', '1', 'the old tasks to be deleted');
is(app("SELECT count(saga.complete_task(id, lease_token)) FROM saga.claim_tasks('parcels')"),
	'1', 'the task of before the crash is done');
wait_all_final($node);
end_listener($listener);

# ---- more queues than memory has room for

$listener = start_listener(map { "many_$_" } 1 .. 300);
app(<<'EOS');
SELECT count(saga.define('many_' || i, saga.external_step('do', 'many_' || i))) FROM generate_series(1, 300) i;
EOS
app("SELECT count(saga.begin('many_' || i)) FROM generate_series(1, 300) i");
my $until = time() + 60;
while (listen_now($listener), keys %{ $listener->{heard} } < 300 && time() < $until)
{
	usleep(20_000);
}
is(scalar keys %{ $listener->{heard} }, 300, 'all of 300 queues are announced');
coordinator_leaves();
pass('... and then no longer');
end_listener($listener);
app("SELECT count(saga.cancel(saga_id)) FROM saga.sagas WHERE status = 'running'");
wait_all_final($node);
is(app("SELECT count(*) FROM saga.tasks WHERE status = 'withdrawn'"),
	'300', 'their tasks are withdrawn');

# ---- not preloaded

$node->append_conf('postgresql.conf', "shared_preload_libraries = ''");
$node->restart;
$listener = start_listener('mail');
my $id = app("SELECT saga.begin('mail')");
app("CALL saga.run($id, NULL)");
hear($listener, 'mail', 'a task that saga.run() has offered, without the library');
app('CALL saga.recover()');
hear($listener, 'mail', 'what waits, by saga.recover()');
is(app("SELECT count(saga.complete_task(id, lease_token)) FROM saga.claim_tasks('mail')"),
	'1', 'it is claimed and done');
app('CALL saga.recover()');
is(app("SELECT status FROM saga.sagas WHERE saga_id = $id"), 'completed', 'its saga completes');
end_listener($listener);

$node->stop;
done_testing();
