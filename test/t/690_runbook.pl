# Every statement of doc/runbook.md, in the situation that it is for: what shows
# why shows it, and what mends mends it.  They are read from the file and run as
# it says, with the variables of psql that it asks for, as the roles that it names.
# None is left out; each link leads to a heading, each alert and each state of a
# saga has its section.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use SagaRemote;
use SagaTest;
use Test::More;

my $file = "$FindBin::RealBin/../../doc/runbook.md";
my %runner = (
	'a superuser'                 => undef,
	'the role of the sagas'       => 'app',
	'the owner of the definition' => 'app',
	'the owner of the invariant'  => 'app',
	'the owner of the queue'      => 'app',
	'the role of the exporter'    => 'prometheus');

# ---- the file

my $text = slurp_file($file);
my (%section, %anchor, $heading);

# Of each section the statements, with the role that the block is for.
while ($text =~ /^#+ ([^\n]+)\n|^```sql\n(?:-- as ([^\n]+)\n)?(.*?)^```$/msg)
{
	if (defined $1)
	{
		$heading = $1;
		(my $name = lc $heading) =~ s/[^a-z0-9 -]//g;
		$name =~ s/ /-/g;
		$anchor{$name} = 1;
		next;
	}
	my ($role, $block) = ($2, $3);

	die "nobody is \"$role\" in $heading\n" if defined $role && !exists $runner{$role};
	push @{ $section{$heading} }, { sql => $1, user => defined $role ? $runner{$role} : 'night' }
	  while $block =~ /\G\s*(.+?;)[^\S\n]*(?:--[^\n]*)?\n/sg;
}
is(join(' ', grep { !$anchor{$_} } $text =~ /\]\(#([^)]+)\)/g), '', 'each link leads to a heading');

my $node = new_coordinator('main', allows_streaming => 1,
	conf => { 'saga.workers_per_role' => 2, 'saga.max_workers' => 4, 'saga.worker_idle_timeout' => '1h' });
my ($warehouse) = new_remote('warehouse');

connect_remote($node, 'warehouse', $warehouse->port);

# The statement of that section that has $pattern.
sub statement
{
	my ($name, $pattern) = @_;
	my @found = grep { $_->{sql} =~ $pattern } @{ $section{$name} };

	die "$name has " . @found . " statements with $pattern\n" unless @found == 1;
	$found[0]{tried} = 1;
	return $found[0];
}

# Run it: what it returns; with $error it has to fail.
sub run_it
{
	my ($statement, $variables, $dbname, $error) = @_;
	my @user = defined $statement->{user} ? ('-U', $statement->{user}) : ();
	my ($out, $err);
	my $rc = $node->psql($dbname || 'postgres', $statement->{sql},
		stdout       => \$out,
		stderr       => \$err,
		extra_params => [ @user, map { ('-v', "$_=$variables->{$_}") } sort keys %$variables ]);

	if (defined $error)
	{
		die "no error of: $statement->{sql}\n" if $rc == 0;
		return $err;
	}
	die "$err\nof: $statement->{sql}\n" if $rc != 0;
	return $out;
}

# It says so.
sub shows
{
	my ($name, $pattern, $variables, $expected, $dbname) = @_;
	my $out = run_it(statement($name, $pattern), $variables, $dbname);

	like($out, $expected, "$name: it shows why");
	return $out;
}

# It does so: then the query returns what is expected.
sub mends
{
	my ($name, $pattern, $variables, $query, $expected, $dbname) = @_;
	my $out = run_it(statement($name, $pattern), $variables, $dbname);

	if (defined $query)
	{
		poll_sql($node, $query, $expected, "$name: to be mended", dbname => $dbname || 'postgres');
		pass("$name: it mends");
	}
	return $out;
}

sub dba
{
	my ($sql, $dbname) = @_;

	return $node->safe_psql($dbname || 'postgres', $sql);
}

sub status_of
{
	my ($id) = @_;

	return "SELECT status FROM saga.sagas WHERE saga_id = $id";
}

sub waits_for
{
	my ($id, $what) = @_;

	return poll_sql($node, "SELECT concat_ws(': ', status, waiting_for) FROM saga.sagas WHERE saga_id = $id",
		$what, "saga $id to wait for $what");
}

sub alert
{
	my ($alert, $n) = @_;

	return poll_sql($node, "SELECT count(*) FROM saga.alerts WHERE alert = '$alert'", $n, "$n alerts: $alert");
}

# A session that holds an advisory lock, and its process.
sub shut
{
	my ($n) = @_;
	my $session = $node->background_psql('postgres', extra_params => [ '-U', 'app' ]);

	$session->query_safe("SELECT pg_advisory_lock($n)");
	return ($session, $session->query_safe('SELECT pg_backend_pid()'));
}

sub begin
{
	my ($definition, $input, $more) = @_;

	return as_app($node, "SELECT saga.begin('$definition', '" . ($input || '{}') . "'" . ($more ? ", $more" : '') . ')');
}

run_it($_, {}) foreach map { $_->{tried} = 1; $_ } @{ $section{'Before the first night'} };
dba(<<'EOS');
CREATE ROLE prometheus;
CREATE ROLE clerk LOGIN;
CREATE ROLE mailer LOGIN;
SELECT saga.grant_usage('clerk'), saga.grant_usage('mailer');
SET ROLE app;
CREATE TABLE broken (what text);
CREATE FUNCTION work(context jsonb) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    IF context -> 'input' ->> 'gate' = context ->> 'step' THEN
        PERFORM pg_advisory_xact_lock_shared(1);
    END IF;
    IF EXISTS (SELECT FROM broken WHERE what = concat_ws(' ', context ->> 'step', context ->> 'operation')) THEN
        RAISE EXCEPTION 'bank is closed' USING ERRCODE = '08006';
    END IF;
    RETURN 'done';
END $$;
CREATE FUNCTION plain() RETURNS void LANGUAGE sql AS '';
SELECT saga.define('order', saga.step('reserve', 'work', 'work', compensation_retry => saga.retry_policy(1)),
    saga.step('charge', 'work', 'work', retry => saga.retry_policy(1)));
SELECT saga.define('later', saga.step('pay', 'work', 'work', retry => saga.retry_policy(initial_delay => '1 hour', max_delay => '1 hour'),
    compensation_retry => saga.retry_policy(initial_delay => '1 hour', max_delay => '1 hour')), saga.step('end', 'work'));
SELECT saga.define('asks', saga.step('do', 'work', 'work'), saga.signal_step('approve'));
SELECT saga.define('final', saga.step('do', 'work', pivot => true), saga.signal_step('approve'));
SELECT saga.define('circle', saga.step('one', 'work', pivot => true, exclusive => 'first'), saga.signal_step('go'),
    saga.step('two', 'work', exclusive => 'second'));
SELECT saga.define('cools', saga.timer_step('cool_off', '14 days'));
SELECT saga.define('parent', saga.child_step('pay', 'later'), saga.signal_step('approve'));
SELECT saga.define('branches', saga.step('a', 'work', after => '{}'), saga.step('b', 'work', after => '{}'));
SELECT saga.define('packs', saga.step('pack', 'work', exclusive => 'sku'), saga.signal_step('approve'));
SELECT saga.define('narrow', saga.step('pay', 'work', concurrency => 1, retry => saga.retry_policy(initial_delay => '1 hour', max_delay => '1 hour')));
SELECT saga.define('sends', saga.external_step('send', 'mail', retry => saga.retry_policy(1)));
SELECT saga.configure_queue('mail', breaker_failures => 2, breaker_pause => '1 hour', breaker_max_pause => '1 hour');
SELECT saga.define('ships', saga.remote_step('ship', 'warehouse', 'shop.act',
    retry => saga.retry_policy(initial_delay => '1 hour', max_delay => '1 hour')));
SELECT saga.define('plain', saga.step('do', 'plain'));
SELECT saga.grant_begin('plain', 'public');
CREATE TABLE stock (item text, n int);
SELECT saga.add_invariant('stock', 'SELECT item, n FROM stock WHERE n < 0', definition => 'asks', pause => true);
EOS

# ---- the sagas that wait for something, and are moved on

my $id = begin('order', '{}', "start_at => now() + interval '1 hour'");
waits_for($id, 'scheduled: start time');
shows('A saga does not move', qr/count\(\*\)/, {}, qr/^order\|scheduled\|start time\|1\|/m);
shows('A saga does not move', qr/FROM saga.alive WHERE saga_id/, { id => $id }, qr/\|scheduled\|start time\|/);
shows('A saga does not move', qr/explain/, { id => $id }, qr/waits for\|its start at/);
shows('A saga does not move', qr/timeline/, { id => $id }, qr/saga $id of order/);
mends('Scheduled', qr/cancel/, { id => $id }, status_of($id), 'compensated');
shows('Why did it end so?', qr/FROM saga.ended/, { id => $id }, qr/^compensated\|/);
shows('Why did it end so?', qr/timeline/, { id => $id }, qr/saga $id of order/);
shows('First look', qr/requests/, { id => $id }, qr/\|cancel\|night\|the customer has called it off\|done$/);

as_app($node, "INSERT INTO broken VALUES ('pay action')");
$id = begin('later');
my $skipped = begin('later');
waits_for($_, 'running: next attempt') foreach $id, $skipped;
shows('Next attempt', qr/attempts/, { id => $id }, qr/^pay\|action\|1\|.*\|failed\|08006\|bank is closed$/);
mends('Next attempt', qr/skip/, { id => $skipped }, status_of($skipped), 'completed');
my $parent = begin('parent');
waits_for($parent, 'running: child saga');
my $child = dba("SELECT saga_id FROM saga.sagas WHERE parent_id = $parent");
waits_for($child, 'running: next attempt');
shows('Child saga', qr/root_id/, { id => $parent }, qr/^$parent\|.*\n$child\|$parent\|later\|running\|next attempt\|pay\|/);
my @failing = map { begin('later') } 1 .. 3;
waits_for($_, 'running: next attempt') foreach @failing;

my %later = (definition => 'later', step => 'pay');
shows('SagaStepFailing', qr/step_health/, \%later, qr/^pay\|action\|/);
shows('SagaStepFailing', qr/attempts/, \%later, qr/^failed\|08006\|bank is closed\|5\|/);
mends('SagaStepFailing', qr/saga.pause/, \%later, "SELECT count(*) FROM saga.alive WHERE definition = 'later' AND status = 'paused'", '5');
mends('SagaStepFailing', qr/saga.resume/, \%later,
	"SELECT count(*) FROM saga.alive WHERE definition = 'later' AND waiting_for = 'next attempt'", '5');
as_app($node, 'TRUNCATE broken');
mends('Next attempt', qr/retry/, { id => $child }, status_of($child), 'held');
mends('SagaStepFailing', qr/retry/, \%later, "SELECT count(*) FROM saga.alive WHERE definition = 'later' AND status <> 'held'", '0');
shows('Completed', qr/attempts/, { id => $id }, qr/^pay\|action\|1\|.*08006/);
shows('Completed', qr/requests/, { id => $skipped }, qr/^skip\|.*\|night\|.*\|done by hand\|done$/);

shows('Held', qr/parent_id/, { id => $child }, qr/^$parent\|parent\|running\|signal\|/);
shows('Signal', qr/saga.steps/, { id => $parent }, qr/^approve\|$/);
is(mends('Signal', qr/saga.signal/, { id => $parent, step => 'approve' }, status_of($parent), 'completed'), 't', 'Signal: it is sent');
is(dba(status_of($child)), 'completed', 'Held: the child has completed with its parent');

$id = begin('cools');
waits_for($id, 'running: timer');
mends('Timer', qr/cancel/, { id => $id }, status_of($id), 'compensated');

($id, my $cancelled) = map { begin('asks') } 1, 2;
waits_for($_, 'running: signal') foreach $id, $cancelled;
as_app($node, "SELECT saga.pause(saga_id, 'the stock is counted') FROM saga.alive WHERE saga_id IN ($id, $cancelled)");
waits_for($_, 'paused: resume') foreach $id, $cancelled;
shows('Paused', qr/requests/, { id => $id }, qr/\|app\|the stock is counted$/);
mends('Paused', qr/resume/, { id => $id }, status_of($id), 'running');
mends('Paused', qr/cancel/, { id => $cancelled }, status_of($cancelled), 'compensated');
shows('Compensated', qr/steps/, { id => $cancelled }, qr/^do\|action\|succeeded\|.*^do\|compensation\|succeeded\|/ms);
as_app($node, "INSERT INTO broken VALUES ('pay compensation'), ('end action')");
$id = begin('later');
waits_for($id, 'running: next attempt');
as_app($node, "SELECT saga.cancel($id, 'too dear')");
waits_for($id, 'compensating: next attempt');
shows('Compensating', qr/steps/, { id => $id }, qr/^pay\|compensation\|waiting\|1\|bank is closed$/m);
as_app($node, "TRUNCATE broken; SELECT saga.retry($id)");
poll_sql($node, status_of($id), 'compensated', 'the saga to have gone back');

# ---- in the hands of others

$id = begin('sends');
waits_for($id, 'running: participant');
shows('Participant', qr/tasks/, { id => $id }, qr/^\d+\|mail\|send\|ready\|1\|/);
as_app($node, "SELECT saga.complete_task(id, lease_token) FROM saga.claim_tasks('mail', 1)");
poll_sql($node, status_of($id), 'completed', 'the task to be done');

my %mail = (queue => 'mail', role => 'mailer');
as_app($node, "SELECT saga.configure_queue('mail', paused => true)");
$id = begin('sends');
shows('SagaQueueBacklogOld', qr/saga.queues/, \%mail, qr/^mail\|t\|closed\|/);
shows('SagaQueueBacklogOld', qr/saga.participants/, \%mail, qr/\|\d+$/);
mends('SagaQueueBacklogOld', qr/configure_queue/, \%mail, "SELECT paused FROM saga.queues WHERE queue = 'mail'", 'f');
my $claim = "SELECT id FROM saga.claim_tasks('mail', 1, participant => 'van')";
my ($rc, undef, $err) = $node->psql('postgres', $claim, extra_params => [ '-U', 'mailer' ]);
like($err, qr/permission denied/, 'a participant may not take tasks');
mends('SagaQueueBacklogOld', qr/grant_participant/, \%mail);
poll_sql($node, "SET ROLE mailer; $claim", qr/\d/, 'the participant to have a task');
shows('SagaQueueBacklogOld', qr/saga.tasks/, \%mail, qr/^\d+\|$id\|van\|/);

my @fail = map { begin('sends') } 1 .. 3;
poll_sql($node, "SELECT ready FROM saga.queues WHERE queue = 'mail'", '3', 'tasks');
as_app($node, "SELECT saga.fail_task(id, lease_token, 'no stamps') FROM saga.claim_tasks('mail', 2)");
alert('breaker', 1);
shows('SagaQueueBreakerOpen', qr/saga.queues/, \%mail, qr/^mail\|open\|.+\|2\|1\|/);
poll_sql($node, "SELECT count(*) FROM saga.ended WHERE saga_id IN (@{[join ', ', @fail]})", '2', 'two sagas to go back');
shows('SagaQueueBreakerOpen', qr/saga.attempts/, \%mail, qr/\|$fail[1]\|.*\|no stamps$/m);
mends('SagaQueueBreakerOpen', qr/reset_breaker/, \%mail, "SELECT count(*) FROM saga.alerts WHERE alert = 'breaker'", '0');
is(as_app($node, "SELECT saga.complete_task(id, lease_token) FROM saga.claim_tasks('mail', 1)"), 't', '... and tasks are given out');

my %there = (server => 'warehouse');
dba("SELECT saga.configure_server('warehouse', paused => true)");
$id = begin('ships');
waits_for($id, 'running: remote database');
shows('Remote database', qr/tasks/, { id => $id }, qr/^\d+\|warehouse\|shop\.act\|ready\|1\|/);
shows('SagaServerBacklogOld', qr/saga.servers/, \%there, qr/^warehouse\|app\|paused\|/);
run_it(statement('SagaServerBacklogOld', qr/saga.workers/), {});
mends('SagaServerBacklogOld', qr/configure_server/, \%there, status_of($id), 'completed');
mends('SagaServerBacklogOld', qr/ALTER SYSTEM/, {});
mends('SagaServerBacklogOld', qr/pg_reload/, {}, 'SHOW saga.remote_connections_per_server', '8');

dba("SELECT saga.configure_server('warehouse', breaker_failures => 1, breaker_pause => '1 hour', breaker_max_pause => '1 hour')");
$warehouse->stop('immediate');
my @ships = map { begin('ships') } 1, 2;
alert('breaker', 1);
poll_sql($node, "SELECT count(*) > 0 FROM saga.alive WHERE definition = 'ships' AND waiting_for = 'next attempt'", 't', 'an attempt to fail');
shows('SagaServerBreakerOpen', qr/saga.servers/, \%there, qr/^warehouse\|app\|\w+\|open\|/);
shows('SagaServerBreakerOpen', qr/check_server/, \%there, qr/^f\|.+/);
$warehouse->start;
like(run_it(statement('SagaServerBreakerOpen', qr/check_server/), \%there), qr/^t\|$/, '... and when the cause is gone');
mends('SagaServerBreakerOpen', qr/reset_breaker/, \%there);
mends('SagaServerBreakerOpen', qr/saga.retry/, \%there,
	"SELECT count(*) FROM saga.sagas WHERE definition = 'ships' AND status <> 'completed'", '0');
alert('breaker', 0);

# ---- in line

my ($first, $second) = map { begin('packs', '{"sku": "apple"}') } 1, 2;
waits_for($first, 'running: signal');
waits_for($second, 'running: lock');
shows('Lock', qr/locks/, { id => $second }, qr/^apple\|1\|.*\|$first\|packs\|running\|signal$/);
as_app($node, "SELECT saga.signal($first, 'approve')");
waits_for($second, 'running: signal');

as_app($node, "SELECT saga.configure('final', max_running => 1)");
($first, $second) = map { begin('final') } 1, 2;
waits_for($first, 'running: signal');
waits_for($second, 'running: place');
shows('Place', qr/locks/, { id => $second }, qr/^1\|1\|\{$first\}$/);
mends('Place', qr/configure/, { definition => 'final' }, "SELECT waiting_for FROM saga.alive WHERE saga_id = $second", 'signal');
as_app($node, "SELECT saga.signal(saga_id, 'approve') FROM saga.alive WHERE definition = 'final'");

as_app($node, "INSERT INTO broken VALUES ('pay action')");
$first = begin('narrow');
waits_for($first, 'running: next attempt');
$second = begin('narrow');
waits_for($second, 'running: place in step');
shows('Place in step', qr/locks/, { id => $second }, qr/^narrow\.pay\|1\|1\|$first\|running\|next attempt$/);
as_app($node, "TRUNCATE broken; SELECT saga.retry($first)");
poll_sql($node, status_of($second), 'completed', 'the next in line');

# ---- workers that work, and hang

my ($gate, $gate_pid) = shut(1);
my $branch = begin('branches', '{"gate": "b"}');
waits_for($branch, 'running: branch');
poll_sql($node, "SELECT step FROM saga.workers WHERE saga_id = $branch", 'b', 'the branch that was handed out');
shows('Branch', qr/workers/, { id => $branch }, qr/^\d+\|b\|action\|1\|.*\|\{$gate_pid\}$/);
$gate->quit;
poll_sql($node, status_of($branch), 'completed', 'the branches to end');

($gate, $gate_pid) = shut(1);
my @hang = map { begin('order', '{"gate": "reserve"}') } 1, 2;
poll_sql($node, "SELECT count(*) FROM saga.workers WHERE saga_id IN ($hang[0], $hang[1])", '2', 'all workers to work');
my $due = begin('order');
poll_sql($node, 'SELECT oldest_due_id FROM saga.vitals', $due, 'a saga to wait for a worker');
shows('SagaBacklogOld', qr/count/, {}, qr/^worker\|app\|running\|.*\|2\|/m);
shows('SagaBacklogOld', qr/blocked_by/, {}, qr/\|app\|$hang[0]\|reserve\|action\|1\|.*\|Lock\|advisory\|\{$gate_pid\}/);
mends('SagaBacklogOld', qr/saga.max_workers/, {});
mends('SagaBacklogOld', qr/workers_per_role/, {});
mends('SagaBacklogOld', qr/pg_reload/, {}, status_of($due), 'completed');
my ($pid) = shows('Running, waits for nothing', qr/workers/, { id => $hang[0] }, qr/\|Lock\|advisory\|\{$gate_pid\}$/) =~ /^(\d+)/;
mends('Running, waits for nothing', qr/cancel/, { pid => $pid }, "SELECT sqlstate FROM saga.attempts WHERE saga_id = $hang[0]", '57014');
mends('SagaBacklogOld', qr/terminate/, { pid => $gate_pid }, status_of($hang[1]), 'completed');
eval { $gate->quit };
poll_sql($node, status_of($hang[0]), 'completed', 'the next attempt');

# ---- stuck

as_app($node, "INSERT INTO broken VALUES ('charge action'), ('reserve compensation')");
my %order = (definition => 'order');
my @stuck = map { begin('order', '{}', "key => 'order-$_'") } 1 .. 5;
alert('stuck', 5);
shows('SagaStuck', qr/first_cause/, {}, qr/^$stuck[0]\|order\|order-1\|reserve\|compensation\|1\|.*\|bank is closed\|08006\|bank is closed$/m);
shows('SagaStuck', qr/explain/, { id => $stuck[0] }, qr/^to do\|saga.retry/m);
shows('SagaStuck', qr/saga.attempts/, { id => $stuck[0] }, qr/^1\|.*\|failed\|08006\|bank is closed\|/m);
shows('First look', qr/saga.alerts/, {}, qr/^critical\|stuck\|.*\|saga $stuck[0]\|bank is closed\|.*saga\.retry\($stuck[0]\)/m);
shows('First look', qr/saga.vitals/, {}, qr/^t\|t\|/);
shows('First look', qr/saga.health/, {}, qr/^order\|t\|0\|0\|5\|/m);
mends('SagaStuck', qr/skip/, { id => $stuck[1] }, status_of($stuck[1]), 'compensated');
mends('SagaStuck', qr/abandon/, { id => $stuck[2] }, status_of($stuck[2]), 'abandoned');
shows('Abandoned', qr/requests/, { id => $stuck[2] }, qr/^night\|.*\|written off$/);
shows('Abandoned', qr/steps/, { id => $stuck[2] }, qr/^reserve\|action\|succeeded\|.*^reserve\|compensation\|failed\|/ms);
as_app($node, "DELETE FROM broken WHERE what LIKE 'reserve%'");
mends('SagaStuck', qr/retry\(:id/, { id => $stuck[0] }, status_of($stuck[0]), 'compensated');
mends('SagaStuck', qr/FROM saga.stuck WHERE/, \%order, 'SELECT count(*) FROM saga.stuck', '0');
alert('stuck', 0);
shows('SagaCompensationRatioHigh', qr/saga.ended/, \%order, qr/^charge\|08006\|bank is closed\|4\|$stuck[4]$/m);
mends('SagaCompensationRatioHigh', qr/false/, \%order, "SELECT enabled FROM saga.health WHERE definition = 'order'", 'f');
isnt($node->psql('postgres', "SET ROLE app; SELECT saga.begin('order')"), 0, '... and there are no new ones');
mends('SagaCompensationRatioHigh', qr/true/, \%order, "SELECT enabled FROM saga.health WHERE definition = 'order'", 't');
as_app($node, 'TRUNCATE broken');

# rows that make no sense
$id = begin('asks');
waits_for($id, 'running: signal');
dba("UPDATE saga.step SET step = 7 WHERE saga_id = $id AND step = 0; UPDATE saga.saga SET turn = turn + 1 WHERE id = $id");
dba("INSERT INTO saga.message (id, saga_id, slot, role, kind, requested_by)"
	  . " SELECT nextval('saga.history_id_seq'), id, slot, role, 'pause', 'app' FROM saga.saga WHERE id = $id; CALL saga.adopt()");
waits_for($id, 'stuck: abandon');
mends('SagaStuck', qr/abandon/, { id => $id }, status_of($id), 'abandoned');

# ---- deadlock, deadline

($first, $second) = map { begin('circle', $_) } '{"first": "X", "second": "Y"}', '{"first": "Y", "second": "X"}';
waits_for($_, 'running: signal') foreach $first, $second;
as_app($node, "SELECT saga.signal($_, 'go')") foreach $first, $second;
alert('deadlock', 1);
shows('SagaDeadlock', qr/alerts/, {}, qr/^$second\|.*$first/);
shows('SagaDeadlock', qr/locks/, {}, qr/^X\|$first\|circle\|\|one\|held\|.*^X\|$second\|circle\|\|two\|waiting\|\{$first\}/ms);
mends('SagaDeadlock', qr/abandon/, { id => $second }, status_of($first), 'completed');
# its end is noticed by the next look, which comes each minute by itself
dba('CALL saga.adopt()');
alert('deadlock', 0);

$id = begin('final', '{}', "deadline => clock_timestamp() + interval '1 s'");
alert('overdue', 1);
shows('SagaOverdue', qr/saga.alive/, {}, qr/^$id\|final\|\|running\|signal\|approve\|f\|/);
shows('SagaOverdue', qr/explain/, { id => $id }, qr/^waits for\|saga\.signal\(\) with "approve"/m);
mends('SagaOverdue', qr/abandon/, { id => $id }, status_of($id), 'abandoned');
alert('overdue', 0);

# ---- books

my %stock = (invariant => 'stock', definition => 'asks');
dba('CALL saga.check_invariants()');
$id = begin('asks', '{"item": "apple"}');
waits_for($id, 'running: signal');
as_app($node, "INSERT INTO stock VALUES ('apple', -1)");
dba('CALL saga.check_invariants()');
alert('invariant', 1);
waits_for($id, 'paused: resume');
shows('SagaInvariantViolated', qr/good_until/, \%stock, qr/^\d+\|\{.*apple.*\}\|.*\{.*$id.*\}\|f$/);
shows('SagaInvariantViolated', qr/saga.sagas/, \%stock, qr/^$id\|asks\|\|paused\|\{"item": "apple"\}/m);
as_app($node, 'UPDATE stock SET n = 1');
is(mends('SagaInvariantViolated', qr/check_invariant/, \%stock, "SELECT count(*) FROM saga.alerts WHERE alert = 'invariant'", '0'), '0', '... and nothing is wrong');
mends('SagaInvariantViolated', qr/configure/, \%stock, "SELECT enabled FROM saga.health WHERE definition = 'asks'", 't');
my $paused = begin('asks');
waits_for($paused, 'running: signal');
as_app($node, "SELECT saga.pause($paused, 'by a person')");
waits_for($paused, 'paused: resume');
mends('SagaInvariantViolated', qr/resume/, \%stock, status_of($id), 'running');
is(dba(status_of($paused)), 'paused', '... and what a person has paused stays so');

as_app($node, "ALTER TABLE stock RENAME TO gone; SELECT saga.add_invariant('slow', 'SELECT 1 AS a FROM pg_sleep(1) s WHERE s::text = ''x''', timeout => '1 ms')");
dba('CALL saga.check_invariants()');
alert('invariant_failed', 2);
shows('SagaInvariantFailed', qr/error_since/, \%stock, qr/^42P01\|.*\|app\|SELECT item/);
as_app($node, 'ALTER TABLE gone RENAME TO stock');
mends('SagaInvariantFailed', qr/check_invariant/, \%stock, "SELECT count(*) FROM saga.alerts WHERE subject = 'invariant stock'", '0');
shows('SagaInvariantFailed', qr/error_since/, { invariant => 'slow' }, qr/^57014\|.*\|00:00:00\.001\|/);
mends('SagaInvariantFailed', qr/add_invariant/, { invariant => 'slow' });
dba("SELECT saga.check_invariant('slow')");
alert('invariant_failed', 0);
mends('SagaInvariantFailed', qr/drop_invariant/, { invariant => 'slow' }, "SELECT count(*) FROM saga.invariants WHERE invariant = 'slow'", '0');

# ---- vacuum

my $session = $node->background_psql('postgres', extra_params => [ '-U', 'app' ]);
$session->query_safe("SET application_name = 'report'; BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1");
$pid = $session->query_safe('SELECT pg_backend_pid()');
dba('SELECT txid_current()') for 1 .. 3;
poll_sql($node, 'SELECT horizon_pid FROM saga.vitals', $pid, 'the session to hold the horizon');
shows('SagaHorizonHeld', qr/horizon_application/, {}, qr/^session\|$pid\|app\|report\|/);
shows('SagaHorizonHeld', qr/xact_start/, {}, qr/^$pid\|idle in transaction\|.*SELECT/);
mends('SagaHorizonHeld', qr/terminate/, {}, "SELECT count(*) FROM pg_stat_activity WHERE pid = $pid", '0');
eval { $session->quit };
dba("BEGIN; SELECT txid_current(); PREPARE TRANSACTION 'forgotten'");
dba('SELECT txid_current()') for 1 .. 3;
poll_sql($node, 'SELECT horizon_name FROM saga.vitals', 'forgotten', 'a prepared transaction to hold it');
mends('SagaHorizonHeld', qr/ROLLBACK/, { name => 'forgotten' }, 'SELECT count(*) FROM pg_prepared_xacts', '0');

my $standby = PostgreSQL::Test::Cluster->new('standby');
$node->backup('backup');
dba("SELECT pg_create_physical_replication_slot('old_standby')");
$standby->init_from_backup($node, 'backup', has_streaming => 1);
$standby->append_conf('postgresql.conf',
	"hot_standby_feedback = on\nwal_receiver_status_interval = 1s\nprimary_slot_name = 'old_standby'");
$standby->start;
poll_sql($node, "SELECT xmin IS NOT NULL FROM pg_replication_slots WHERE slot_name = 'old_standby'", 't', 'the standby to have told');
$standby->stop('immediate');
dba('SELECT txid_current()') for 1 .. 3;
poll_sql($node, 'SELECT horizon_name, horizon_pid IS NULL FROM saga.vitals', 'old_standby|t', 'a slot to hold it');
mends('SagaHorizonHeld', qr/drop_replication_slot/, { name => 'old_standby' }, 'SELECT count(*) FROM pg_replication_slots', '0');

dba("BEGIN; INSERT INTO saga.key SELECT 'none', n::text, n, 0 FROM generate_series(1, 30000) n; ROLLBACK");
poll_sql($node, 'SELECT worst_table FROM saga.vitals', 'key', 'dead rows to be seen');
shows('SagaDeadRows', qr/saga.vitals/, {}, qr/^\d+\|key\|30\d+\|/);
shows('SagaDeadRows', qr/pg_settings/, {}, qr/^autovacuum\|on$/m);
run_it(statement('SagaDeadRows', qr/pg_stat_activity/), {});
mends('SagaDeadRows', qr/VACUUM/, { table => 'key' }, "SELECT worst_table IS DISTINCT FROM 'key' FROM saga.vitals", 't');
mends('SagaDeadRows', qr/SYSTEM SET autovacuum_vacuum_cost/, {});
mends('SagaDeadRows', qr/SYSTEM SET autovacuum_naptime/, {});
mends('SagaDeadRows', qr/pg_reload/, {}, 'SHOW autovacuum_naptime', '10s');

# ---- a copy

$id = begin('asks');
waits_for($id, 'running: signal');
poll_sql($node, "SELECT count(*) FROM pg_stat_activity WHERE datname = 'postgres' AND backend_type = 'client backend' AND pid <> pg_backend_pid()",
	'0', 'all sessions to have ended');
dba('CREATE DATABASE copy TEMPLATE postgres', 'template1');
is(dba("SELECT waiting_for FROM saga.alive WHERE saga_id = $id", 'copy'), 'saga.adopt()', 'a copy waits');
shows('Adopt', qr/saga.alive/, {}, qr/^app\|t\|[1-9]\d*$/m, 'copy');
mends('Adopt', qr/CALL saga.adopt/, {}, "SELECT waiting_for FROM saga.alive WHERE saga_id = $id", 'signal', 'copy');

# ---- nobody to run sagas

sub begin_plain
{
	my ($role) = @_;
	my $saga = dba("SET ROLE $role; SELECT saga.begin('plain')");

	return $saga;
}

sub absent
{
	my ($role, $reason) = @_;

	poll_sql($node, "SELECT reason FROM saga.workers WHERE role = '$role' AND state = 'absent'", $reason, "no worker: $reason");
	return;
}

my %clerk = (role => 'clerk', database => 'postgres');
dba('GRANT CONNECT ON DATABASE postgres TO app, night, mailer; REVOKE CONNECT ON DATABASE postgres FROM PUBLIC');
$id = begin_plain('clerk');
alert('no_worker', 1);
shows('SagaNoWorker', qr/'absent'/, {}, qr/^worker\|clerk\|postgres\|role has no CONNECT privilege on the database\|/m);
shows('SagaNoWorker', qr/FROM saga.roles/, {}, qr/^clerk\|t\|t\|f\|role has no CONNECT/m);
mends('SagaNoWorker', qr/GRANT CONNECT/, \%clerk, status_of($id), 'completed');
alert('no_worker', 0);

# from PostgreSQL 17 on it needs no LOGIN
dba("ALTER ROLE clerk NOLOGIN");
$id = begin_plain('clerk');
absent('clerk', 'role may not log in') if dba('SHOW server_version_num') < 170000;
mends('SagaNoWorker', qr/ALTER ROLE/, \%clerk, status_of($id), 'completed');

dba('ALTER DATABASE postgres IS_TEMPLATE true');
$id = begin_plain('mailer');
absent('mailer', 'database is a template');
mends('SagaNoWorker', qr/IS_TEMPLATE/, \%clerk, status_of($id), 'completed');

$session = $node->background_psql('copy');
dba('ALTER DATABASE copy ALLOW_CONNECTIONS false');
$session->query_safe("SET ROLE mailer; SELECT saga.begin('plain')");
absent('mailer', 'database does not accept connections');
mends('SagaNoWorker', qr/ALLOW_CONNECTIONS/, { database => 'copy' });
poll_sql($node, "SELECT count(*) FROM saga.alive WHERE definition = 'plain'", '0', 'the copy to go on', dbname => 'copy');
$session->quit;

dba("CREATE ROLE ghost; SELECT saga.grant_usage('ghost')");
$id = begin_plain('ghost');
poll_sql($node, "SELECT no_worker IS NOT NULL FROM saga.roles WHERE role = 'ghost'", 't', 'nobody for the role');
dba('DROP OWNED BY ghost; DROP ROLE ghost');
mends('SagaNoWorker', qr/abandon/, { role => 'ghost' }, status_of($id), 'abandoned');

dba("CREATE ROLE maid; SELECT saga.grant_usage('maid')");
$id = begin_plain('maid');
poll_sql($node, "SELECT no_worker IS NOT NULL FROM saga.roles WHERE role = 'maid'", 't', 'nobody for the role');
dba('ALTER ROLE maid RENAME TO married; ALTER ROLE married LOGIN; GRANT CONNECT ON DATABASE postgres TO married');
poll_sql($node, "SELECT \"exists\" FROM saga.roles WHERE role = 'maid'", 'f', 'no such role');
mends('SagaNoWorker', qr/CALL/, {}, status_of($id), 'completed');
run_it(statement('SagaNoWorker', qr/ALTER EXTENSION/), {});

# too few places: first for the launcher itself, then for workers
$node->append_conf('postgresql.auto.conf', "max_worker_processes = 0\nsaga.max_workers = 1");
$node->restart;
$id = begin_plain('clerk');
shows('SagaLauncherAbsent', qr/saga.workers/, {}, qr/^absent\|/);
shows('SagaLauncherAbsent', qr/pg_settings/, {}, qr/^max_worker_processes\|0$/m);
mends('SagaLauncherAbsent', qr/ALTER SYSTEM/, {});
$node->restart;
poll_sql($node, status_of($id), 'completed', 'sagas to go on with a launcher');

($gate, $gate_pid) = shut(1);
$id = begin('order', '{"gate": "reserve"}');
poll_sql($node, "SELECT count(*) FROM saga.workers WHERE saga_id = $id", '1', 'the only worker to work');
my $other = begin_plain('clerk');
absent('clerk', 'out of saga workers (saga.max_workers)');
mends('SagaNoWorker', qr/saga.max_workers/, {});
mends('SagaNoWorker', qr/pg_reload/, {}, status_of($other), 'completed');
$gate->quit;
poll_sql($node, status_of($id), 'completed', 'the other one to go on');

dba('ALTER SYSTEM SET max_worker_processes = 2');
$node->restart;
$id = begin_plain('clerk');
absent('clerk', 'out of background worker slots (max_worker_processes)');
mends('SagaNoWorker', qr/max_worker_processes/, {});
$node->restart;
poll_sql($node, status_of($id), 'completed', 'sagas to go on with workers');

# switched off, not loaded
dba('ALTER SYSTEM SET saga.enabled = off');
$node->reload;
poll_sql($node, 'SELECT enabled FROM saga.vitals', 'f', 'it to be off');
$id = begin('order');
shows('SagaDisabled', qr/vitals/, {}, qr/^f\|t\|saga\.enabled is off$/);
mends('SagaDisabled', qr/recover/, {}, status_of($id), 'completed');
$id = begin('order');
mends('SagaDisabled', qr/saga.enabled/, {});
mends('SagaDisabled', qr/pg_reload/, {}, status_of($id), 'completed');
$node->append_conf('postgresql.conf', "shared_preload_libraries = ''");
$node->restart;
$id = begin('order');
shows('SagaDisabled', qr/vitals/, {}, qr/\|f\|saga is not loaded via shared_preload_libraries$/);
shows('SagaDisabled', qr/SHOW/, {}, qr/^$/);
mends('SagaDisabled', qr/SYSTEM SET shared_preload/, {});
$node->restart;
poll_sql($node, status_of($id), 'completed', 'sagas to go on once it is loaded');

# ---- nobody watches

sub metrics_fail
{
	return run_it(statement('SagaMetricsAbsent', qr/saga.metrics/), {}, 'postgres', 1);
}

my %metrics = (database => 'postgres');
like(metrics_fail(), qr/not permitted to log in/, 'SagaMetricsAbsent: it shows why');
mends('SagaMetricsAbsent', qr/LOGIN/, \%metrics);
like(metrics_fail(), qr/permission denied for database/, 'SagaMetricsAbsent: it shows why');
mends('SagaMetricsAbsent', qr/CONNECT/, \%metrics);
like(metrics_fail(), qr/permission denied for schema saga/, 'SagaMetricsAbsent: it shows why');
mends('SagaMetricsAbsent', qr/pg_monitor/, \%metrics);
shows('SagaMetricsAbsent', qr/saga.metrics/, {}, qr/^[1-9]/);

# ---- nothing is left out

my @kinds = dba("SELECT regexp_matches(col_description('saga.alerts'::regclass, 1), '(?:^|; )(\\w+):', 'g')") =~ /\{(\w+)\}/g;
my @states = split /\n/, dba('SELECT unnest(enum_range(NULL::saga.saga_status))');

cmp_ok(@kinds + 0, '>', 5, 'there are kinds of alerts');
is(join(' ', grep { $text !~ /^\| \[\w+\]\(#\w+\) \| `$_`/m } @kinds), '', '... and each is in the contents');
cmp_ok(@states + 0, '>', 8, 'there are states');
is(join(' ', grep { $text !~ /^\| `$_` \|/m && $text !~ /^### $_$/mi } @states), '', '... and each has its section');
my ($table) = slurp_file("$FindBin::RealBin/../../doc/operating.md") =~ /^\| `waiting_for` \| status .*?\n((?:\|.*\n)+)/m;
my @reasons = $table =~ /^\| `([^`]+)` \|/mg;

cmp_ok(@reasons + 0, '>', 10, 'there is what sagas wait for');
is(join(', ', grep { $text !~ /^\| (?:`\w+`|any) \| `\Q$_\E` \|/m } @reasons), '', '... and each has its section');
my @untried = map { my $name = $_; map { "$name: $_->{sql}" } grep { !$_->{tried} } @{ $section{$name} } } sort keys %section;
is(join("\n", @untried), '', 'every statement was tried');

$node->stop;
$warehouse->stop;
done_testing();
