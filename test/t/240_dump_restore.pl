# pg_dump carries sagas: restored by psql and by pg_restore, into another
# database of the server and into another server whose roles have other OIDs,
# they are the same sagas, none of them moves before CALL saga.adopt(), and then
# they go on to their end.  Keys, sequences, definitions and grants come along,
# and a dump that is taken in full load is consistent.
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
CREATE ROLE lost LOGIN;
CREATE ROLE watcher LOGIN;
CREATE ROLE op LOGIN;
EOS
$source->safe_psql('app', <<'EOS');
CREATE EXTENSION saga;
SELECT saga.grant_usage('app'), saga.grant_usage('clerk'), saga.grant_usage('lost');
SELECT saga.grant_monitor('watcher'), saga.grant_operator('op');
CREATE SCHEMA app AUTHORIZATION app;
GRANT USAGE ON SCHEMA app TO clerk, lost;
SET ROLE app;
CREATE TABLE app.effect (saga_id bigint, step text, operation text, role name DEFAULT current_user,
	PRIMARY KEY (saga_id, step, operation));
CREATE TABLE app.bank (open boolean);
INSERT INTO app.bank VALUES (false);
GRANT SELECT, INSERT ON app.effect, app.bank TO clerk, lost;
CREATE FUNCTION app.work(context jsonb) RETURNS text LANGUAGE sql AS $$
	INSERT INTO app.effect VALUES ((context ->> 'saga_id')::bigint, context ->> 'step', context ->> 'operation')
	RETURNING step || ' done' $$;
CREATE FUNCTION app.slowly(context jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM app.work(context), pg_sleep(0.002);
END $$;
CREATE FUNCTION app.pay(context jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	IF NOT (SELECT open FROM app.bank) THEN
		RAISE EXCEPTION 'the bank is closed' USING ERRCODE = context #>> '{input,sqlstate}', HINT = 'Open it.';
	END IF;
	PERFORM app.work(context);
END $$;
SELECT saga.define('work', saga.step('one', 'app.work', 'app.work'), saga.step('two', 'app.work'));
SELECT saga.define('work', saga.step('one', 'app.slowly', 'app.work'), saga.step('two', 'app.slowly'));
SELECT saga.define('pay', saga.step('order', 'app.work', 'app.work'),
	saga.step('pay', 'app.pay', retry => saga.retry_policy(initial_delay => '8 s', jitter => 0)));
SELECT saga.define('must pay', saga.step('order', 'app.work', pivot => true),
	saga.step('pay', 'app.pay', retry => saga.retry_policy(max_attempts => 1)));
SELECT saga.define('limited', saga.step('order', 'app.work', 'app.work'),
	saga.step('pay', 'app.pay', retry => saga.retry_policy(initial_delay => '8 s', jitter => 0)));
SELECT saga.configure('limited', max_running => 1);
SELECT saga.grant_begin('work', 'clerk'), saga.grant_begin('pay', 'clerk'), saga.grant_begin('pay', 'lost');
EOS

sub poll_state
{
	my ($id, $expected) = @_;

	poll_sql($source,
		"SELECT status || ' ' || COALESCE(waiting_for, '') FROM saga.sagas WHERE saga_id = $id",
		$expected, "saga $id to be '$expected'", dbname => 'app');
	return $id;
}

sub begin
{
	my ($role, $arguments) = @_;

	return $source->safe_psql('app', "SET ROLE $role; SELECT saga.begin($arguments)");
}

my $final_states = "('completed', 'compensated', 'abandoned')";
my %id;

$id{completed} = poll_state(begin('app', q('work', key => 'k')), 'completed ');
$id{compensated} = poll_state(begin('clerk', q('pay', '{"sqlstate": "P0001"}')), 'compensated ');
$id{stuck} = poll_state(begin('app', q('must pay', '{"sqlstate": "P0001"}', key => 'stuck')), 'stuck retry, skip or abandon');
$id{abandoned} = poll_state(begin('app', q('must pay', '{"sqlstate": "P0001"}')), 'stuck retry, skip or abandon');
$source->safe_psql('app', "SET ROLE op; SELECT saga.abandon($id{abandoned}, 'written off')");
poll_state($id{abandoned}, 'abandoned ');
$id{paused} = begin('clerk', q('pay', '{"sqlstate": "08006"}'));
$id{waiting} = poll_state(begin('clerk', q('pay', '{"sqlstate": "08006"}')), 'running next attempt');
poll_state($id{paused}, 'running next attempt');
$source->safe_psql('app', "SET ROLE clerk; SELECT saga.pause($id{paused}, 'holidays')");
poll_state($id{paused}, 'paused resume');
$id{lost} = poll_state(begin('lost', q('pay', '{"sqlstate": "08006"}')), 'running next attempt');
$id{first} = poll_state(begin('app', q('limited', '{"sqlstate": "08006"}')), 'running next attempt');
$id{place} = poll_state(begin('app', q('limited', '{"sqlstate": "08006"}')), 'running place');
# from here on nothing moves
$source->safe_psql('postgres', 'ALTER SYSTEM SET saga.enabled = off');
$source->reload;
poll_sql($source, "SELECT count(*) FROM pg_stat_activity WHERE backend_type IN ('saga worker', 'saga coordinator')",
	'0', 'the processes to go');
$id{running} = begin('app', q('work', '{"note": "it''s \\"quoted\\""}', key => 'ü'));
$id{scheduled} = begin('app', q('work', start_at => now() + interval '8 s', deadline => now() + interval '1 d'));
$id{cancelled} = begin('clerk', q('work', traceparent => '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01'));
$source->safe_psql('app', "SET ROLE op; SELECT saga.cancel($id{cancelled}, 'pending')");
# a role that is gone when the dump is made
$source->safe_psql('app', 'DROP OWNED BY lost; DROP ROLE lost');

# Everything that can be seen of them, but what the adoption changes.
my $look = <<'EOS';
SELECT saga_id, definition, version, key, status, owner, step, next_attempt_at, input, result, error,
	created_at, start_at, started_at, finished_at, deadline, compensates, suspect, traceparent
FROM saga.sagas ORDER BY saga_id;
SELECT * FROM saga.steps ORDER BY saga_id, position, operation;
SELECT * FROM saga.attempts ORDER BY saga_id, started_at;
SELECT * FROM saga.requests ORDER BY id;
SELECT * FROM saga.stuck ORDER BY saga_id;
SELECT * FROM saga.definitions ORDER BY name;
SELECT * FROM saga.definition_steps ORDER BY definition, version, position;
SELECT definition_id, role_name, granted_by FROM saga.definition_grant ORDER BY 1, 2;
SELECT definition, key, saga_id FROM saga.key ORDER BY 1, 2;
SELECT saga_id, kind, reason, requested_by FROM saga.message ORDER BY id;
SELECT saga_id, granted FROM saga.lock ORDER BY position;
SELECT last_value, is_called FROM saga.saga_id_seq;
SELECT last_value, is_called FROM saga.history_id_seq;
SELECT last_value, is_called FROM saga.lock_position_seq;
SELECT last_value, is_called FROM saga.definition_id_seq;
SELECT * FROM app.effect ORDER BY 1, 2, 3;
EOS
my $original = $source->safe_psql('app', $look);

$source->command_ok([ 'pg_dump', '-f', "$dumps/plain.sql", $source->connstr('app') ], 'pg_dump');
$source->command_ok([ 'pg_dump', '-Fc', '-f', "$dumps/custom", $source->connstr('app') ], 'pg_dump -Fc');
$source->command_ok([ 'pg_dump', '--schema-only', '-f', "$dumps/schema.sql", $source->connstr('app') ],
	'pg_dump --schema-only');
my $schema = slurp_file("$dumps/schema.sql");
like($schema, qr/CREATE EXTENSION IF NOT EXISTS saga/, 'the schema has the extension');
unlike($schema, qr/CREATE (TABLE|FUNCTION|VIEW|TYPE|SEQUENCE) saga\./, '... and nothing of what is in it');

# ---- restoring

# In the other server the roles have other OIDs, and those of the first are
# somebody else's.
$target->safe_psql('postgres', <<'EOS');
CREATE ROLE thief1 LOGIN;
CREATE ROLE thief2 LOGIN;
CREATE ROLE thief3 LOGIN;
CREATE ROLE op LOGIN;
CREATE ROLE watcher LOGIN;
CREATE ROLE clerk LOGIN;
CREATE ROLE app LOGIN;
EOS
isnt($target->safe_psql('postgres', "SELECT 'app'::regrole::oid"),
	$source->safe_psql('postgres', "SELECT 'app'::regrole::oid"), 'roles have other OIDs elsewhere');

sub restore
{
	my ($node, $db, $file) = @_;
	my @command =
	  $file =~ /\.sql$/
	  ? ('psql', '-XAtq1', '-v', 'ON_ERROR_STOP=1', '-d', $node->connstr($db), '-f', "$dumps/$file")
	  : ('pg_restore', '-1', '--exit-on-error', '-d', $node->connstr($db), "$dumps/$file");
	my ($out, $err);

	$node->safe_psql('postgres', "CREATE DATABASE $db");
	ok(IPC::Run::run([ $node->installed_command(shift @command), @command ], '>', \$out, '2>', \$err),
		"$db: $file is restored in one transaction")
	  or diag($err);
	is($err, '', "$db: ... without a word");
	return;
}

restore($target, 'schema', 'schema.sql');
is($target->safe_psql('schema', 'SELECT count(*) FROM saga.sagas'), '0', 'a schema has no sagas');
is($target->safe_psql('schema', "SELECT has_function_privilege('app', 'saga.wait_within(bigint, interval)', 'EXECUTE')"),
	't', '... but the grants');

# The roles are bound by their names at the adoption, not before.
sub check_restored
{
	my ($node, $db) = @_;
	my $sql = "SELECT string_agg(DISTINCT waiting_for, ', ') FROM saga.sagas WHERE status NOT IN $final_states";

	is($node->safe_psql($db, $look), $original, "$db: the same sagas");
	is($node->safe_psql($db, $sql), 'saga.adopt()', "$db: ... that wait for saga.adopt()");
	is($node->safe_psql($db, "SELECT detail FROM saga.explain($id{running}) WHERE topic = 'waits for'"),
		'CALL saga.adopt(): it was begun in the database that this one is a copy of', "$db: ... as explain says");
	is($node->safe_psql($db, 'SET ROLE watcher; SELECT count(*) FROM saga.sagas'), scalar(keys %id),
		"$db: monitors see them");
	is($node->safe_psql($db, 'CALL saga.recover()'), '0|0|f|0|0|{}', "$db: they are not run in the foreground");
	my ($rc, $out, $err) = $node->psql($db, "SET ROLE op; SELECT saga.retry($id{stuck})");
	like($err, qr/belongs to another coordinator.*HINT:  CALL saga\.adopt/s, "$db: ... nor steered");
	# the OIDs of the other server mean nothing here
	foreach my $role ('thief1', 'thief2', 'thief3')
	{
		$node->safe_psql($db, "SELECT saga.grant_usage('$role')");
		is($node->safe_psql($db, "SET ROLE $role; SELECT (SELECT count(*) FROM saga.sagas), (SELECT count(*) FROM saga.definitions)"),
			'0|0', "$db: $role sees nothing");
	}
	# everybody looks at everything
	$node->restart;
	poll_sql($node,
		"SELECT count(*) FROM saga.workers WHERE process = 'coordinator' AND pid IS NOT NULL", '0',
		'the coordinators to have looked', dbname => $db);
	is($node->safe_psql($db, 'SELECT * FROM app.effect ORDER BY 1, 2, 3'),
		$source->safe_psql('app', 'SELECT * FROM app.effect ORDER BY 1, 2, 3'), "$db: no step has run");
	is($node->safe_psql($db, $sql), 'saga.adopt()', "$db: ... and none has moved");

	# the adoption
	my $unfinished = $node->safe_psql($db,
		"SELECT count(*) FROM saga.sagas WHERE status NOT IN $final_states AND owner <> 'lost'");
	is($node->safe_psql($db, 'CALL saga.adopt()'), "$unfinished|{lost}", "$db: saga.adopt() names the role that is missing");
	poll_sql($node, "SELECT status FROM saga.sagas WHERE saga_id = $id{$_}", 'completed', "the one that was $_", dbname => $db)
	  foreach 'running', 'scheduled';
	pass("$db: what was running, or scheduled, goes on");
	poll_sql($node, "SELECT status FROM saga.sagas WHERE saga_id = $id{cancelled}", 'compensated', 'the cancelled one', dbname => $db);
	is($node->safe_psql($db, "SELECT reason, outcome FROM saga.requests WHERE saga_id = $id{cancelled}"), 'pending|done',
		"$db: ... and what was asked is acted on");
	is($node->safe_psql($db, "SELECT status FROM saga.sagas WHERE saga_id IN ($id{stuck}, $id{paused}) ORDER BY 1"), "stuck\npaused",
		"$db: what waits for a person still does");
	is($node->safe_psql($db, "SELECT DISTINCT status FROM saga.sagas WHERE saga_id = $id{lost}"), 'running',
		"$db: ... and that of the missing role");
	$node->safe_psql($db, 'UPDATE app.bank SET open = true');
	$node->safe_psql($db, "SET ROLE app; SELECT saga.retry($id{stuck}); RESET ROLE; SET ROLE clerk; SELECT saga.resume($id{paused})");
	$node->safe_psql($db, "SELECT saga.retry(saga_id) FROM saga.sagas WHERE waiting_for = 'next attempt' AND owner <> 'lost'");
	poll_sql($node, "SELECT status FROM saga.sagas WHERE saga_id = $id{$_}", 'completed', "the one that was $_", dbname => $db)
	  foreach 'stuck', 'paused', 'waiting', 'first', 'place';
	pass("$db: all of them come to their end");
	is($node->safe_psql($db, "SELECT DISTINCT e.role, s.owner FROM app.effect e JOIN saga.sagas s USING (saga_id) WHERE owner <> 'lost' ORDER BY 1"),
		"app|app\nclerk|clerk", "$db: ... as the roles that began them");
	is($node->safe_psql($db, 'SELECT count(*) FROM saga.lock'), '0', "$db: ... and give their places back");
	is($node->safe_psql($db, "SELECT detail FROM saga.explain($id{lost}) WHERE topic = 'no worker'"), 'role "lost" does not exist',
		"$db: that of a missing role says so");
	$node->safe_psql($db, 'CREATE ROLE lost');
	is($node->safe_psql($db, 'CALL saga.adopt()'), '1|{}', "$db: ... and is adopted when there is one");
	$node->safe_psql($db, "SET ROLE op; SELECT saga.abandon($id{lost})");
	wait_all_final($node, dbname => $db);
	$node->safe_psql($db, 'DROP ROLE lost');
	is($node->safe_psql($db, "SELECT saga_id, status FROM saga.sagas WHERE saga_id IN ($id{completed}, $id{compensated}, $id{abandoned}) ORDER BY 1"),
		"$id{completed}|completed\n$id{compensated}|compensated\n$id{abandoned}|abandoned", "$db: what was final is as it was");

	# keys, definitions, sequences, grants
	is($node->safe_psql($db, "SET ROLE app; SELECT saga.begin('work', key => 'k')"), $id{completed}, "$db: keys are unique still");
	is($node->safe_psql($db, "SET ROLE app; SELECT saga.begin('work', key => 'ü')"), $id{running}, "$db: ... also those of others");
	my $new = $node->safe_psql($db, q(SET ROLE clerk; SELECT saga.begin('work')));
	cmp_ok($new, '>', $id{cancelled}, "$db: ids go on");
	is($node->safe_psql($db, q(SET ROLE app; SELECT saga.define('work', saga.step('one', 'app.slowly', 'app.work'), saga.step('two', 'app.slowly')))),
		'2', "$db: definitions are the owner's");
	is($node->safe_psql($db, q(SET ROLE app; SELECT saga.define('new', saga.step('one', 'app.work')); SELECT saga.begin('new') > 0)),
		"1\nt", "$db: ... and new ones can be made");
	wait_all_final($node, dbname => $db);
	is($node->safe_psql($db, "SELECT DISTINCT status FROM saga.sagas WHERE saga_id >= $new"), 'completed', "$db: ... and run");
	($rc, $out, $err) = $node->psql($db, q(SET ROLE clerk; SELECT saga.begin('must pay')));
	like($err, qr/permission denied for saga definition/, "$db: what was not granted is not granted");
	is($node->safe_psql($db, 'CALL saga.adopt()'), '0|{}', "$db: a second adoption has nothing to do");
	return;
}

restore($target, 'by_psql', 'plain.sql');
check_restored($target, 'by_psql');
restore($target, 'by_pg_restore', 'custom');
check_restored($target, 'by_pg_restore');
# ---- beside the original: the same roles, but another coordinator

restore($source, 'beside', 'custom');
$source->safe_psql('postgres', 'ALTER SYSTEM RESET saga.enabled');
$source->reload;
poll_sql($source, "SELECT status FROM saga.sagas WHERE saga_id = $id{running}", 'completed',
	'the original to go on', dbname => 'app');
pass('the original goes on');
is($source->safe_psql('beside', "SELECT status, waiting_for FROM saga.sagas WHERE saga_id = $id{running}"),
	'running|saga.adopt()', 'beside: ... but not the copy');
my $new = $source->safe_psql('beside', q(SET ROLE app; SELECT saga.begin('work', key => 'new')));
poll_sql($source, "SELECT status FROM saga.sagas WHERE saga_id = $new", 'completed',
	'a new saga', dbname => 'beside');
pass('beside: new sagas run before the adoption');
cmp_ok($new, '>', $id{cancelled}, 'beside: ... with new ids');
is($source->safe_psql('beside', "SELECT status, waiting_for FROM saga.sagas WHERE saga_id = $id{running}"),
	'running|saga.adopt()', 'beside: ... and the old ones wait');
$source->safe_psql('beside', 'CALL saga.adopt()');
poll_sql($source, "SELECT status FROM saga.sagas WHERE saga_id = $id{running}", 'completed',
	'the copy to go on', dbname => 'beside');
pass('beside: ... until the adoption');

# ---- in full load

$source->safe_psql('app', "SET ROLE app; SELECT count(saga.begin('work')) FROM generate_series(1, 1000)");
poll_sql($source, "SELECT count(*) > 100 FROM app.effect", 't', 'sagas to run', dbname => 'app');
$source->command_ok([ 'pg_dump', '-Fc', '-f', "$dumps/busy", $source->connstr('app') ], 'pg_dump in full load');
restore($target, 'busy', 'busy');
cmp_ok($target->safe_psql('busy', "SELECT count(*) FROM saga.sagas WHERE status = 'running' AND definition = 'work'"), '>', 0,
	'busy: the load is in the dump');
$target->safe_psql('busy', 'CALL saga.adopt()');
poll_sql($target, "SELECT count(*) FROM saga.sagas WHERE status = 'running' AND definition = 'work'", '0', 'the load', dbname => 'busy');
is($target->safe_psql('busy', <<'EOS'), '0', 'busy: each step has run once, here or there');
SELECT count(*) FROM (
	(SELECT saga_id, step, operation FROM app.effect
	 EXCEPT SELECT saga_id, step, operation::text FROM saga.steps WHERE status = 'succeeded')
	UNION ALL
	(SELECT saga_id, step, operation::text FROM saga.steps WHERE status = 'succeeded'
	 EXCEPT SELECT saga_id, step, operation FROM app.effect)) d
EOS
is($target->safe_psql('busy', "SELECT count(*) FROM saga.attempts WHERE sqlstate = '23505'"), '0', 'busy: ... and not twice');

$source->stop;
$target->stop;
done_testing();
