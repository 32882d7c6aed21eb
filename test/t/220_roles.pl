# Roles whose sagas cannot run: one that may not log in, one without CONNECT, one
# that was dropped, made again under the same name, or renamed.  Their sagas
# wait, saga.workers and saga.explain() say why, operators can still close them,
# everybody else's go on, and they continue when the reason is gone.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use PostgreSQL::Test::Utils;
use SagaTest;
use Test::More;

my $node = SagaTest->new_node('main', start => 1);
my $version = $node->safe_psql('postgres', 'SHOW server_version_num') / 10000;

$node->safe_psql('postgres', <<'EOS');
CREATE EXTENSION saga;
CREATE ROLE good LOGIN;
CREATE ROLE op LOGIN;
SELECT saga.grant_operator('op');
CREATE SCHEMA app;
GRANT USAGE ON SCHEMA app TO PUBLIC;
CREATE TABLE app.effect (saga_id bigint, step text, role name DEFAULT current_user);
GRANT INSERT, SELECT ON app.effect TO PUBLIC;
CREATE FUNCTION app.work(context jsonb) RETURNS void LANGUAGE sql AS
	$$ INSERT INTO app.effect VALUES ((context ->> 'saga_id')::bigint, context ->> 'step') $$;
CREATE FUNCTION app.later() RETURNS void LANGUAGE plpgsql AS
	$$ BEGIN PERFORM saga.retry_later('1 d', 'tomorrow'); END $$;
SELECT saga.define('work', saga.step('work', 'app.work'));
SELECT saga.define('later', saga.step('work', 'app.work', 'app.work'), saga.step('later', 'app.later'));
SELECT saga.grant_begin('work', 'public'), saga.grant_begin('later', 'public');
SELECT saga.grant_usage('good');
EOS

sub begin
{
	my ($role, $definition) = @_;

	return $node->safe_psql('postgres',
		"SET ROLE $role; SELECT saga.begin('" . ($definition || 'work') . "')");
}

sub create_role
{
	my ($role, $options) = @_;

	$node->safe_psql('postgres',
		"CREATE ROLE $role $options; SELECT saga.grant_usage('$role')");
	return;
}

sub status
{
	my ($id) = @_;

	return $node->safe_psql('postgres',
		"SELECT status FROM saga.sagas WHERE saga_id = $id");
}

sub wait_status
{
	my ($id, $expected, $what) = @_;

	poll_sql($node, "SELECT status FROM saga.sagas WHERE saga_id = $id",
		$expected, $what);
	return 1;
}

# Everybody else's sagas run meanwhile.
sub others_run
{
	my ($when) = @_;

	ok(wait_status(begin('good'), 'completed', "another role's saga $when"),
		"others' sagas run $when");
	return;
}

# The view, explain and the log name the reason.
sub reason_is
{
	my ($id, $role, $reason, $when) = @_;

	poll_sql($node,
		"SELECT reason FROM saga.workers WHERE process = 'worker' AND role = '$role'",
		$reason, "the reason $when");
	is(status($id), 'running', "its sagas wait $when");
	like(
		$node->safe_psql('postgres',
			"SELECT detail FROM saga.explain($id) WHERE topic = 'no worker'"),
		qr/$reason/, '... saga.explain() says why');
	is( $node->safe_psql('postgres',
			"SET ROLE op; SELECT count(*) FROM saga.workers WHERE role = '$role' AND reason = '$reason'"),
		'1', '... and monitors see it in saga.workers');
	return;
}

# An operator's verbs reach a saga whose role can have no worker.
sub operator_abandons
{
	my ($id, $when) = @_;

	$node->safe_psql('postgres', "SET ROLE op; SELECT saga.abandon($id, 'by hand')");
	ok(wait_status($id, 'abandoned', "an operator's abandon $when"),
		"an operator can abandon a saga $when");
	is( $node->safe_psql('postgres',
			"SELECT verb, reason, requested_by, outcome FROM saga.requests WHERE saga_id = $id"),
		'abandon|by hand|op|done', '... which is recorded');
	return;
}

# ---- a role that may not log in

create_role('nologin', 'NOLOGIN');
my $first = begin('nologin');
if ($version >= 17)
{
	ok(wait_status($first, 'completed', 'the saga of a role that may not log in'),
		'sagas of a role that may not log in run');
}
else
{
	my $second = begin('nologin');

	reason_is($first, 'nologin', 'role may not log in', 'while the role may not log in');
	others_run('while a role may not log in');
	operator_abandons($second, 'of a role that may not log in');
	my $paused = begin('nologin');
	$node->safe_psql('postgres', "SET ROLE nologin; SELECT saga.pause($paused)");
	ok(wait_status($paused, 'paused', 'a pause'), 'it can pause its own');
	$node->safe_psql('postgres', 'ALTER ROLE nologin LOGIN');
	ok(wait_status($first, 'completed', 'the saga of a role that may log in'),
		'they run when the role may log in');
	$node->safe_psql('postgres', "SET ROLE nologin; SELECT saga.resume($paused)");
	ok(wait_status($paused, 'completed', 'the resumed one'), '... also what was paused');
	# taken away again, while there is a worker
	$node->safe_psql('postgres', 'ALTER ROLE nologin NOLOGIN');
	# sessions that are there may stay, workers too, until they notice
	$node->safe_psql('postgres', "SELECT pg_terminate_backend(pid, 30000) FROM pg_stat_activity WHERE usename = 'nologin'");
	reason_is(begin('nologin'), 'nologin', 'role may not log in', 'after LOGIN was taken away');
	$node->safe_psql('postgres', 'ALTER ROLE nologin LOGIN');
	wait_all_final($node);
}

# ---- no privilege to connect

create_role('noconnect', 'LOGIN');
$node->safe_psql('postgres', 'REVOKE CONNECT ON DATABASE postgres FROM PUBLIC');
$node->safe_psql('postgres', 'GRANT CONNECT ON DATABASE postgres TO good, op');
$first = begin('noconnect');
reason_is($first, 'noconnect', 'role has no CONNECT privilege on the database', 'without CONNECT');
others_run('while a role may not connect');
operator_abandons(begin('noconnect'), 'of a role that may not connect');
$node->safe_psql('postgres', 'GRANT CONNECT ON DATABASE postgres TO noconnect');
ok(wait_status($first, 'completed', 'the saga of a role that may connect'),
	'they run when it may connect');
# ... through a group
$node->safe_psql('postgres', 'CREATE ROLE team; REVOKE CONNECT ON DATABASE postgres FROM noconnect');
# sessions that are there may stay, workers too
$node->safe_psql('postgres', "SELECT pg_terminate_backend(pid, 30000) FROM pg_stat_activity WHERE usename = 'noconnect'");
$first = begin('noconnect');
reason_is($first, 'noconnect', 'role has no CONNECT privilege on the database', 'after CONNECT was revoked');
$node->safe_psql('postgres', 'GRANT CONNECT ON DATABASE postgres TO team; GRANT team TO noconnect');
ok(wait_status($first, 'completed', 'the saga of a member'), '... or is a member of one that may');
$node->safe_psql('postgres', 'GRANT CONNECT ON DATABASE postgres TO PUBLIC');

unlike(slurp_file($node->logfile), qr/FATAL:.*(not permitted to log in|permission denied for database)/,
	'nobody has tried in vain');
my $log = slurp_file($node->logfile);
my $times = () = $log =~ /cannot start saga worker for role "noconnect"/g;
is($times, 2, 'the log tells once per change');

# ---- a role that was dropped

create_role('gone', 'LOGIN');
my $waits = begin('gone', 'later');
poll_sql($node, "SELECT waiting_for FROM saga.sagas WHERE saga_id = $waits",
	'next attempt', 'a saga to wait');
my $to_abandon = begin('gone', 'later');
my $scheduled = $node->safe_psql('postgres',
	"SET ROLE gone; SELECT saga.begin('work', start_at => now() + interval '1 d')");
poll_sql($node, "SELECT waiting_for FROM saga.sagas WHERE saga_id = $to_abandon",
	'next attempt', 'another one');
$node->safe_psql('postgres', 'DROP OWNED BY gone; DROP ROLE gone');
like(
	$node->safe_psql('postgres',
		"SELECT detail FROM saga.explain($waits) WHERE topic = 'no worker'"),
	qr/role "gone" does not exist/, "a dropped role's saga says so");
is($node->safe_psql('postgres', "SELECT owner FROM saga.sagas WHERE saga_id = $waits"),
	'gone', '... and whose it was');
# make it due, as tomorrow does
$node->safe_psql('postgres',
	"UPDATE saga.saga SET due_at = now(), start_at = CASE WHEN start_at IS NOT NULL THEN now() END WHERE id IN ($waits, $scheduled); UPDATE saga.step SET due_at = now() WHERE saga_id = $waits AND due_at IS NOT NULL; CALL saga.adopt()");
poll_sql($node, "SELECT count(*) FROM saga.workers WHERE reason = 'role does not exist'",
	'1', 'the reason in saga.workers');
pass('saga.workers has the reason');
others_run('while a role does not exist');
operator_abandons($to_abandon, 'of a role that does not exist');
my ($rc, $out, $err) = $node->psql('postgres', "SET ROLE good; SELECT saga.abandon($waits)");
like($err, qr/permission denied for saga $waits/, '... but not anybody');
is(status($waits), 'running', 'the others wait');
is(status($scheduled), 'scheduled', '... also what was scheduled');
is( $node->safe_psql('postgres', 'CALL saga.adopt()'),
	'0|{gone}', 'saga.adopt() lists the role that is missing');

# ---- made again under the same name

$node->safe_psql('postgres', 'CREATE ROLE impostor LOGIN');
$node->safe_psql('postgres', "SELECT saga.grant_usage('impostor'); ALTER ROLE impostor RENAME TO gone");
is( $node->safe_psql('postgres', "SET ROLE gone; SELECT count(*) FROM saga.sagas WHERE saga_id IN ($waits, $scheduled)"),
	'0', 'a role that was made anew does not see what its namesake began');
($rc, $out, $err) = $node->psql('postgres', "SET ROLE gone; SELECT saga.cancel($waits)");
like($err, qr/permission denied for saga $waits/, '... nor steers it');
is($node->safe_psql('postgres', 'CALL saga.recover()', extra_params => [ '-U', 'gone' ]),
	'0|0|f|0|0|{}', '... nor runs it');
my $mine = begin('gone');
ok(wait_status($mine, 'completed', 'a saga of the new role'), '... its own run');
is(status($waits), 'running', '... and the old ones wait');
is($node->safe_psql('postgres', 'CALL saga.adopt()'), '2|{}', 'until saga.adopt() binds them');
ok(wait_status($scheduled, 'completed', 'a saga of the old role'), '... then they go on');
is($node->safe_psql('postgres', "SELECT role FROM app.effect WHERE saga_id = $scheduled"),
	'gone', '... as the new role');
$node->safe_psql('postgres', "SET ROLE gone; SELECT saga.cancel($waits)");
ok(wait_status($waits, 'compensated', 'a cancelled saga'), '... and it steers them');

# ---- a role that was renamed

create_role('before', 'LOGIN');
$waits = begin('before', 'later');
poll_sql($node, "SELECT waiting_for FROM saga.sagas WHERE saga_id = $waits",
	'next attempt', 'a saga to wait');
$node->safe_psql('postgres', 'ALTER ROLE before RENAME TO after');
my $new = begin('after');
ok(wait_status($new, 'completed', 'a saga of the renamed role'), 'a renamed role can begin and run sagas');
is(status($waits), 'running', '... what it began before waits');
like(
	$node->safe_psql('postgres',
		"SELECT detail FROM saga.explain($waits) WHERE topic = 'no worker'"),
	qr/role "before" does not exist/, '... and saga.explain() says why');
$node->safe_psql('postgres', "SET ROLE op; SELECT saga.cancel($waits, 'no longer wanted')");
$node->safe_psql('postgres', 'ALTER ROLE after RENAME TO before');
# workers would find it within a minute
$node->safe_psql('postgres', 'CALL saga.recover()', extra_params => [ '-U', 'before' ]);
ok(wait_status($waits, 'compensated', 'a saga of the old name'), 'it goes on when the name is back');
$waits = begin('before', 'later');
poll_sql($node, "SELECT waiting_for FROM saga.sagas WHERE saga_id = $waits",
	'next attempt', 'a saga to wait');
$node->safe_psql('postgres', 'ALTER ROLE before RENAME TO after');
is($node->safe_psql('postgres', 'CALL saga.adopt()'), '1|{}', 'or saga.adopt() takes the new one');
is($node->safe_psql('postgres', "SELECT owner FROM saga.sagas WHERE saga_id = $waits"), 'after', '... for its owner');
$node->safe_psql('postgres', "SET ROLE after; SELECT saga.cancel($waits)");
ok(wait_status($waits, 'compensated', 'a cancelled saga'), '... and it goes on');

# ---- the owner of a definition that was dropped

create_role('author', 'LOGIN');
$node->safe_psql('postgres',
	"SET ROLE author; SELECT saga.define('authored', saga.step('work', 'app.work')); SELECT saga.grant_begin('authored', 'good')");
$node->safe_psql('postgres', 'DROP OWNED BY author; DROP ROLE author');
ok(wait_status(begin('good', 'authored'), 'completed', 'a saga of it'),
	'a definition whose owner was dropped can be begun by those who may');
$node->safe_psql('postgres', "CREATE ROLE author LOGIN; SELECT saga.grant_usage('author')");
($rc, $out, $err) = $node->psql('postgres', "SET ROLE author; SELECT saga.drop_definition('authored')");
like($err, qr/permission denied for saga definition "authored"/, '... and does not belong to a namesake');

$node->stop;
done_testing();
