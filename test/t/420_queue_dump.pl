# pg_dump carries queues, their grants and their tasks: in another server, whose
# roles have other OIDs, a queue is nobody's and its tasks are not to be had
# before CALL saga.adopt(); then owners and participants are bound by name, and
# what was ready, claimed, answered or to be undone goes on to its end.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use PostgreSQL::Test::Utils;
use SagaTest;
use Test::More;

my $source = SagaTest->new_node('source', start => 1);
my $target = SagaTest->new_node('target', start => 1);
my $dumps  = PostgreSQL::Test::Utils::tempdir();

# ---- what is dumped

$source->safe_psql('postgres', <<'EOS');
CREATE DATABASE app;
CREATE ROLE app LOGIN;
CREATE ROLE clerk LOGIN;
CREATE ROLE hand LOGIN;
CREATE ROLE lost LOGIN;
EOS
$source->safe_psql('app', <<'EOS');
CREATE EXTENSION saga;
SELECT saga.grant_usage('app'), saga.grant_usage('clerk');
SET ROLE app;
SELECT saga.create_queue('work');
SELECT saga.configure_queue('work', 7, '3 s', '4 s');
SELECT saga.create_queue('stopped');
SELECT saga.configure_queue('stopped', paused => true);
SELECT saga.grant_participant('hand', 'work'), saga.grant_participant('lost', 'work');
SELECT saga.grant_offer('work', 'clerk');
SELECT saga.define('job', saga.external_step('do', 'work', 'do it', 'undo it'),
	saga.external_step('stop', 'stopped'));
RESET ROLE;
SET ROLE clerk;
SELECT saga.define('errand', saga.external_step('run', 'work', timeout => '2 hours'));
EOS

sub begin
{
	my ($role, $arguments) = @_;

	return $source->safe_psql('app', "SET ROLE $role; SELECT saga.begin($arguments)");
}

sub poll_task
{
	my ($node, $db, $id, $step, $expected) = @_;

	return poll_sql($node,
		"SELECT status FROM saga.tasks WHERE saga_id = $id AND step = '$step' ORDER BY id DESC LIMIT 1",
		$expected, "the task of $step of saga $id to be $expected", dbname => $db);
}

# Claim the one task of a saga, which has to be the oldest; return its id and
# token.
sub claim
{
	my ($node, $db, $id, $queue) = @_;
	my ($saga, $task, $token) = split /\|/, $node->safe_psql($db,
		"SET ROLE hand; SELECT saga_id, id, lease_token FROM saga.claim_tasks('$queue', 1, '1 hour', 'hand')");

	is($saga, $id, "$db: a task is claimed");
	return ($task, $token);
}

my %id;

$id{answered} = begin('clerk', q('errand'));
poll_task($source, 'app', $id{answered}, 'run', 'ready');
my ($answered, $answered_token) = claim($source, 'app', $id{answered}, 'work');
$source->safe_psql('app', "SET ROLE hand; SELECT saga.complete_task($answered, '$answered_token', '1')");
poll_sql($source, "SELECT status FROM saga.sagas WHERE saga_id = $id{answered}", 'completed', 'the first', dbname => 'app');

$id{undo} = begin('app', q('job'));
poll_task($source, 'app', $id{undo}, 'do', 'ready');
my ($task, $task_token) = claim($source, 'app', $id{undo}, 'work');
$source->safe_psql('app', "SET ROLE hand; SELECT saga.complete_task($task, '$task_token', '1')");
poll_task($source, 'app', $id{undo}, 'stop', 'ready');
$source->safe_psql('app', "SET ROLE app; SELECT saga.cancel($id{undo})");
poll_task($source, 'app', $id{undo}, 'do', 'ready');

# the compensation is the next in the queue
($task, $task_token) = claim($source, 'app', $id{undo}, 'work');
$source->safe_psql('app', "SET ROLE hand; SELECT * FROM saga.extend_lease($task, '$task_token', '1 hour', '{\"percent\": 50}')");
$id{stopped} = begin('app', q('job'));
poll_task($source, 'app', $id{stopped}, 'do', 'ready');
my ($first, $first_token) = claim($source, 'app', $id{stopped}, 'work');
$source->safe_psql('app', "SET ROLE hand; SELECT saga.complete_task($first, '$first_token')");
poll_task($source, 'app', $id{stopped}, 'stop', 'ready');
$id{ready} = begin('clerk', q('errand'));
poll_task($source, 'app', $id{ready}, 'run', 'ready');
$source->safe_psql('app', 'DROP OWNED BY lost; DROP ROLE lost');

# What can be seen, but what the adoption changes and what only shared memory knows.
my $look = <<'EOS';
SELECT queue, owner, paused, ready, oldest_ready, claimed, oldest_claimed, next_lease_end, breaker_failures,
	breaker_pause, breaker_max_pause FROM saga.queues ORDER BY queue;
SELECT * FROM saga.tasks ORDER BY id;
SELECT queue_id, role_name, privilege, granted_by, granted_at FROM saga.queue_grant ORDER BY 1, 2, 3;
SELECT id, lease_token FROM saga.task ORDER BY id;
SELECT last_value, is_called FROM saga.queue_id_seq;
SELECT last_value, is_called FROM saga.task_id_seq;
EOS
my $original = $source->safe_psql('app', $look);

$source->command_ok([ 'pg_dump', '-Fc', '-f', "$dumps/custom", $source->connstr('app') ], 'pg_dump');

# ---- another server

# What the OIDs of the first server's roles are here.
$target->safe_psql('postgres', <<'EOS');
CREATE ROLE thief1 LOGIN;
CREATE ROLE thief2 LOGIN;
CREATE ROLE thief3 LOGIN;
CREATE ROLE thief4 LOGIN;
CREATE ROLE hand LOGIN;
CREATE ROLE clerk LOGIN;
CREATE ROLE app LOGIN;
EOS

sub restore
{
	my ($node, $db) = @_;

	$node->safe_psql('postgres', "CREATE DATABASE $db");
	$node->command_ok([ 'pg_restore', '-1', '--exit-on-error', '-d', $node->connstr($db), "$dumps/custom" ],
		"$db: the dump is restored in one transaction");
	return;
}

# Nobody gets what is there, and the coordinator leaves it alone.
sub check_waits
{
	my ($node, $db) = @_;

	is($node->safe_psql($db, $look), $original, "$db: queues, grants and tasks are the same");
	is($node->safe_psql($db, "SELECT (SELECT count(*) FROM saga.claim_tasks('work')), (SELECT count(*) FROM saga.claim_tasks('stopped'))"), '0|0',
		"$db: nobody gets a task before saga.adopt()");
	$node->restart;
	poll_sql($node, "SELECT count(*) FROM saga.workers WHERE process = 'coordinator' AND pid IS NOT NULL", '0',
		'the coordinators to have looked', dbname => $db);
	is($node->safe_psql($db, "SELECT count(*) FROM saga.claim_tasks('work')"), '0', "$db: ... nor after a restart");
	is($node->safe_psql($db, $look), $original, "$db: ... and nothing has changed");
	return;
}

# After the adoption each comes to its end.
sub check_goes_on
{
	my ($node, $db) = @_;
	my ($rc, $out, $err);

	is($node->safe_psql($db, 'SET ROLE hand; SELECT queue, owner, ready, claimed FROM saga.queues'), 'work|app|1|1',
		"$db: a participant sees its queue");
	($rc, $out, $err) = $node->psql($db, "SET ROLE hand; SELECT saga.claim_tasks('stopped')");
	like($err, qr/permission denied for queue "stopped"/, "$db: ... and takes no tasks of another one");

	# who had a lease has it still, and an answer is known again
	$node->safe_psql($db, "SET ROLE hand; SELECT saga.complete_task($answered, '$answered_token', '1')");
	$node->safe_psql($db, "SET ROLE hand; SELECT saga.complete_task($task, '$task_token')");
	poll_sql($node, "SELECT status FROM saga.sagas WHERE saga_id = $id{undo}", 'compensated', 'the one that is undone', dbname => $db);
	my ($next, $token) = claim($node, $db, $id{ready}, 'work');
	$node->safe_psql($db, "SET ROLE hand; SELECT saga.complete_task($next, '$token')");
	poll_sql($node, "SELECT status FROM saga.sagas WHERE saga_id = $id{ready}", 'completed', 'the one that was ready', dbname => $db);

	# the owner is the owner
	is($node->safe_psql($db, "SET ROLE app; SELECT count(*) FROM saga.claim_tasks('stopped')"), '0', "$db: a paused queue is paused");
	$node->safe_psql($db, "SET ROLE app; SELECT saga.configure_queue('stopped', paused => false)");
	$node->safe_psql($db, "SET ROLE app; SELECT saga.complete_task(id, lease_token) FROM saga.claim_tasks('stopped')");
	poll_sql($node, "SELECT status FROM saga.sagas WHERE saga_id = $id{stopped}", 'completed', 'the last one', dbname => $db);
	pass("$db: all come to their end");
	$node->safe_psql($db, "SET ROLE clerk; SELECT saga.define('errand', saga.external_step('run', 'work'), saga.external_step('back', 'work'))");
	pass("$db: who may offer still may");
	$node->safe_psql($db, "SET ROLE app; SELECT saga.create_queue('new')");
	is($node->safe_psql($db, "SELECT count(*), count(DISTINCT id) FROM saga.queue"), '3|3', "$db: new queues have new ids");
	is($node->safe_psql($db, "SELECT role_name FROM saga.queue_grant g WHERE NOT EXISTS (SELECT FROM pg_roles r WHERE r.oid = g.role AND r.rolname = g.role_name)"),
		'lost', "$db: the grant of a role that is missing here is bound to none");
	return;
}

restore($target, 'elsewhere');
# the roles that have the OIDs, and those that have the names
foreach my $role ('thief1', 'thief2', 'thief3', 'thief4', 'hand', 'app')
{
	$target->safe_psql('elsewhere', "SELECT saga.grant_usage('$role')") if $role =~ /thief/;
	is($target->safe_psql('elsewhere',
			"SET ROLE $role; SELECT (SELECT count(*) FROM saga.queues), (SELECT count(*) FROM saga.tasks)"),
		'0|0', "elsewhere: $role sees nothing before saga.adopt()");
	my ($rc, $out, $err) = $target->psql('elsewhere', "SET ROLE $role; SELECT saga.claim_tasks('work')");
	like($err, qr/permission denied for queue "work"/, "elsewhere: ... and takes nothing");
}
check_waits($target, 'elsewhere');
is($target->safe_psql('elsewhere', 'CALL saga.adopt()'), '3|{}', 'elsewhere: saga.adopt()');
is($target->safe_psql('elsewhere', "SELECT count(*) FROM saga.task t JOIN saga.saga s ON s.id = t.saga_id WHERE s.due_at IS NOT NULL AND t.role <> s.role"),
	'0', 'elsewhere: tasks follow the roles of their sagas');
check_goes_on($target, 'elsewhere');

# ---- beside the original: the same roles, but another coordinator

restore($source, 'beside');
check_waits($source, 'beside');
# the queue is the owner's: what is new is offered and claimed
my $new = $source->safe_psql('beside', q(SET ROLE clerk; SELECT saga.begin('errand')));
poll_task($source, 'beside', $new, 'run', 'ready');
my ($new_task, $new_token) = claim($source, 'beside', $new, 'work');
$source->safe_psql('beside', "SET ROLE hand; SELECT saga.complete_task($new_task, '$new_token')");
poll_sql($source, "SELECT status FROM saga.sagas WHERE saga_id = $new", 'completed', 'a new saga', dbname => 'beside');
is($source->safe_psql('beside', 'CALL saga.adopt()'), '3|{}', 'beside: saga.adopt()');
check_goes_on($source, 'beside');

# ---- a copy of the files

$source->safe_psql('postgres', 'ALTER SYSTEM SET saga.enabled = off');
$source->reload;
poll_sql($source, "SELECT count(*) FROM pg_stat_activity WHERE datname = 'app'", '0', 'everybody to leave');
$source->safe_psql('postgres', 'CREATE DATABASE files TEMPLATE app');
$source->safe_psql('postgres', 'ALTER SYSTEM RESET saga.enabled');
$source->reload;
check_waits($source, 'files');
is($source->safe_psql('files', 'CALL saga.adopt()'), '3|{}', 'files: saga.adopt()');
check_goes_on($source, 'files');

# The original has not noticed.
is($source->safe_psql('app', $look), $original, 'the original is as it was');
check_goes_on($source, 'app');

$source->stop;
$target->stop;
done_testing();
