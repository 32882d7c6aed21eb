# What precedes incidents is seen before they come: saga.vitals names whoever
# holds back vacuum (a session, a prepared transaction, a standby, a replication
# slot), to a monitor who may see no other session; the saga that has waited
# longest for a worker, and none while its operation runs; and what no longer
# runs.  With 100,000 sagas no view is thought to cost so much that it is
# compiled, and rows that cannot be removed do not make them slow.  On a standby
# the views can be read.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use SagaTest;
use Test::More;

my $node = SagaTest->new_node('main', start => 1, allows_streaming => 1);

$node->safe_psql('postgres', <<'EOS');
CREATE EXTENSION saga;
CREATE ROLE shop LOGIN;
CREATE ROLE watch LOGIN;
SELECT saga.grant_usage('shop'), saga.grant_monitor('watch');
CREATE SCHEMA app AUTHORIZATION shop;
SET ROLE shop;
CREATE FUNCTION app.work() RETURNS text LANGUAGE sql RETURN 'done';
CREATE FUNCTION app.sleep() RETURNS void LANGUAGE sql AS 'SELECT pg_sleep(600)';
SELECT saga.define('work', saga.step('work', 'app.work'), saga.step('again', 'app.work'));
SELECT saga.define('sleep', saga.step('work', 'app.work'), saga.step('sleep', 'app.sleep'));
EOS

sub begin
{
	my ($definition) = @_;

	return $node->safe_psql('postgres',
		"SET ROLE shop; SELECT saga.begin('$definition')");
}

# Wait until the monitor sees this in saga.vitals.
sub poll_vitals
{
	my ($columns, $expected, $what) = @_;

	poll_sql($node, "SET ROLE watch; SELECT $columns FROM saga.vitals",
		$expected, $what);
	pass($what);
	return;
}

# Take some transaction ids, so that what is older has an age.
sub pass_transactions
{
	$node->safe_psql('postgres', 'SELECT txid_current()') for 1 .. 3;
	return;
}


# ---- who holds back vacuum ---------------------------------------------------

my $holder = 'horizon_holder, horizon_role, horizon_application,'
  . ' horizon_name, horizon_age >= 3';
my $session = $node->background_psql('postgres',
	extra_params => [ '-U', 'shop' ]);

$session->query_safe("SET application_name = 'report'");
$session->query_safe('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1');
my $pid = $session->query_safe('SELECT pg_backend_pid()');
pass_transactions();
poll_vitals("$holder, horizon_pid, horizon_since < at",
	"session|shop|report||t|$pid|t", 'a session holds back vacuum');
$session->quit;

$node->safe_psql('postgres',
	"BEGIN; SELECT txid_current(); PREPARE TRANSACTION 'forgotten'");
pass_transactions();
my $user = $node->safe_psql('postgres', 'SELECT current_user');
poll_vitals("$holder, horizon_pid, horizon_since < at",
	"prepared transaction|$user||forgotten|t||t",
	'a prepared transaction holds back vacuum');
$node->safe_psql('postgres', "ROLLBACK PREPARED 'forgotten'");

my $standby = PostgreSQL::Test::Cluster->new('standby');

$node->backup('backup');
$standby->init_from_backup($node, 'backup', has_streaming => 1);
$standby->append_conf('postgresql.conf', <<'EOS');
hot_standby_feedback = on
wal_receiver_status_interval = 1s
EOS
$standby->start;
$session = $standby->background_psql('postgres');
$session->query_safe('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1');
pass_transactions();
poll_vitals('horizon_holder, horizon_application, horizon_age >= 3',
	'standby|standby|t', 'a standby holds back vacuum');
$session->quit;

# The same, by a slot.
$node->safe_psql('postgres',
	"SELECT pg_create_physical_replication_slot('for_standby')");
$standby->append_conf('postgresql.conf', "primary_slot_name = 'for_standby'");
$standby->restart;
$session = $standby->background_psql('postgres');
$session->query_safe('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1');
pass_transactions();
poll_vitals('horizon_holder, horizon_name, horizon_age >= 3',
	'replication slot|for_standby|t', 'a replication slot holds back vacuum');

# Gone, but not its slot.
$session->quit;
$standby->stop('immediate');
poll_vitals('horizon_holder, horizon_name, horizon_pid IS NULL',
	'replication slot|for_standby|t', 'a slot that nobody uses does too');
$standby->append_conf('postgresql.conf', 'hot_standby_feedback = off');
$standby->start;
poll_vitals('horizon_holder IS NULL', 't', 'nobody does any more');


# ---- who waits for a worker ----------------------------------------------------

my $id = begin('sleep');

poll_sql($node,
	"SELECT step FROM saga.workers WHERE saga_id = $id", 'sleep',
	'the operation to run');
poll_vitals('oldest_due_id IS NULL, workers, workers_wanted, no_worker',
	't|1|0|', 'a saga whose operation runs does not wait');
$node->safe_psql('postgres', 'ALTER SYSTEM SET saga.enabled = off');
$node->reload;
$node->safe_psql('postgres',
	"SELECT pg_terminate_backend(pid) FROM saga.workers WHERE saga_id = $id");
poll_vitals('enabled, launcher, workers, oldest_due_id, oldest_due_role, no_worker',
	"f|t|0|$id|shop|saga.enabled is off",
	'it waits when its process is gone');

# It has waited since its first step, not since it was begun.
is( $node->safe_psql('postgres', <<"EOS"),
SELECT r.oldest_due_at = s.finished_at, r.oldest_due_at > a.created_at
FROM saga.roles r, saga.steps s, saga.alive a
WHERE s.saga_id = $id AND s.step = 'work' AND a.saga_id = $id
EOS
	't|t', 'since its last operation');

# Those that were begun since wait less long, however many they are.
$node->safe_psql('postgres',
	"SET ROLE shop; SELECT saga.begin('work') FROM generate_series(1, 50)");
poll_vitals('oldest_due_id', $id, 'the one that waits longest is named');
$node->safe_psql('postgres', "SELECT saga.abandon($id, 'of no use')");
$node->safe_psql('postgres', 'ALTER SYSTEM RESET saga.enabled');
$node->reload;
poll_vitals('enabled, oldest_due_id IS NULL', 't|t', 'nobody waits any more');
wait_all_final($node);


# ---- what the planner thinks ---------------------------------------------------

$node->safe_psql('postgres', <<'EOS');
INSERT INTO saga.saga (id, due_at, created_at, finished_at, token, coordinator, role, definition_id, turn,
		status, slot, step, goal, depth, backward, suspect, released, role_name, waiting_for, input)
	SELECT 1000000 + g, CASE WHEN g % 10 = 0 THEN 'infinity'::timestamptz END, now(), CASE WHEN g % 10 > 0 THEN now() END,
		gen_random_uuid(), s.coordinator, s.role, s.definition_id, 2,
		(CASE WHEN g % 10 = 0 THEN 'paused' ELSE 'completed' END)::saga.saga_status, s.slot, 1, -1, 0, false, false, false,
		s.role_name, CASE WHEN g % 10 = 0 THEN 'resume' END, s.input
	FROM saga.saga s, generate_series(1, 100000) g WHERE s.id = (SELECT max(id) FROM saga.saga);
INSERT INTO saga.step (saga_id, started_at, finished_at, element, attempts, failures, crashes, operation, status, slot,
		step, round, unknown, cancelled, surplus, signalled, result)
	SELECT s.id, now(), now(), 0, 1, 0, 0, 'action', 'succeeded', s.slot, 0, 0, false, false, false, false, '"done"'
	FROM saga.saga s WHERE s.id > 1000000;
ANALYZE saga.saga, saga.step;
EOS
is( $node->safe_psql('postgres',
		'SELECT count(*) FROM saga.ended WHERE saga_id > 1000000'),
	90000, 'there are many sagas');

sub cost
{
	my ($query) = @_;
	my $plan = $node->safe_psql('postgres', "EXPLAIN SELECT * FROM $query");

	return $plan =~ /cost=[\d.]+\.\.([\d.]+)/ ? $1 : die "no plan: $plan\n";
}

foreach my $query (
	'saga.sagas', 'saga.sagas WHERE NOT final',
	"saga.sagas WHERE status = 'stuck'",
	map { "saga.$_" }
	qw(alive ended stuck messages locks health step_health vitals roles workers))
{
	cmp_ok(cost($query), '<', 100000, "$query is not compiled");
}
foreach my $view (qw(sagas alive ended steps attempts requests))
{
	cmp_ok(cost("saga.$view WHERE saga_id = 1000010"),
		'<', 1000, "one saga of saga.$view is looked up");
}
is( $node->safe_psql('postgres',
		'SELECT result FROM saga.sagas WHERE saga_id = 1000011'),
	'"done"', 'a result is found among many');


# ---- while vacuum is held back -------------------------------------------------

# Rows that are gone and cannot be removed come before the oldest saga: they are
# not all looked at, and that is said.
$session = $node->background_psql('postgres');
$session->query_safe('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1');
$node->safe_psql('postgres', <<'EOS');
INSERT INTO saga.saga (id, due_at, created_at, token, coordinator, role, definition_id, turn,
		status, slot, step, goal, depth, backward, suspect, released, role_name, waiting_for, input)
	SELECT 500000 + g, 'infinity', now(), gen_random_uuid(), s.coordinator, s.role, s.definition_id, 2,
		'paused', s.slot, 1, -1, 0, false, false, false, s.role_name, 'resume', s.input
	FROM saga.saga s, generate_series(1, 25000) g WHERE s.id = 1000001;
DELETE FROM saga.saga WHERE id BETWEEN 500001 AND 525000;
EOS
is( $node->safe_psql('postgres', 'SELECT count(*), min(saga_id) FROM saga.oldest_raw()'),
	'1|', 'the oldest saga is not looked for among too many');
is($node->safe_psql('postgres', "SELECT role FROM saga.roles"),
	'shop', 'its role is known');
$session->quit;
$node->safe_psql('postgres', 'VACUUM saga.saga');
is( $node->safe_psql('postgres', 'SELECT count(*), min(saga_id) FROM saga.oldest_raw()'),
	'1|1000010', 'and found when vacuum has removed them');


# ---- on a standby ----------------------------------------------------------------

$node->wait_for_catchup($standby, 'replay');
is( $standby->safe_psql('postgres', <<'EOS'),
SELECT (SELECT count(*) FROM saga.alive), (SELECT count(*) FROM saga.sagas WHERE result IS NOT NULL) > 90000,
	(SELECT count(*) FROM saga.vitals), (SELECT count(*) FROM saga.roles),
	(SELECT count(*) FROM saga.health), (SELECT count(oldest_saga_id) FROM saga.health),
	(SELECT sum(paused) FROM saga.health)
EOS
	'10000|t|1|1|2|1|10000', 'the views can be read on a standby');
$standby->stop;
$node->stop;

done_testing();
