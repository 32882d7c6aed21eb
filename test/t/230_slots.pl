# Too few processes.  max_worker_processes is used up by others: the sagas that
# get no worker wait, saga.workers, saga.explain() and the log say why, those
# that have one go on, and all of them when there is room again.  saga.max_workers
# is small and there are many roles: each gets its turn, whatever the others do.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use PostgreSQL::Test::Utils;
use SagaTest;
use Test::More;

# of the five: logical replication's launcher, ours, and three more
my $node = SagaTest->new_node(
	'main',
	start => 1,
	conf => {
		max_worker_processes => 5,
		max_parallel_workers => 5,
		'saga.worker_idle_timeout' => '1 h',
	});

$node->safe_psql('postgres', <<'EOS');
CREATE EXTENSION saga;
CREATE SCHEMA app;
GRANT USAGE ON SCHEMA app TO PUBLIC;
CREATE TABLE app.effect (saga_id bigint, role name DEFAULT current_user);
GRANT INSERT ON app.effect TO PUBLIC;
CREATE FUNCTION app.work(context jsonb) RETURNS void LANGUAGE sql AS
	$$ INSERT INTO app.effect VALUES ((context ->> 'saga_id')::bigint) $$;
CREATE FUNCTION app.linger() RETURNS void LANGUAGE sql AS 'SELECT pg_sleep(0.3)';
CREATE FUNCTION app.sleep() RETURNS void LANGUAGE sql AS 'SELECT pg_sleep(86400)';
SELECT saga.define('work', saga.step('work', 'app.work'));
SELECT saga.define('linger', saga.step('linger', 'app.linger'), saga.step('work', 'app.work'));
SELECT saga.define('sleep', saga.step('sleep', 'app.sleep', timeout => '1 d'));
SELECT saga.grant_begin(name, 'public') FROM saga.definitions;
DO $$
BEGIN
	FOR i IN 1 .. 12 LOOP
		EXECUTE format('CREATE ROLE role%s LOGIN', i);
		PERFORM saga.grant_usage('role' || i);
	END LOOP;
END $$;
EOS

sub begin
{
	my ($role, $definition, $n) = @_;

	return $node->safe_psql('postgres',
		"SET ROLE $role; SELECT max(saga.begin('$definition')) FROM generate_series(1, "
		  . ($n || 1) . ')');
}

sub wait_status
{
	my ($id, $expected, $what) = @_;

	poll_sql($node, "SELECT status FROM saga.sagas WHERE saga_id = $id",
		$expected, $what);
	return 1;
}

sub set_conf
{
	my (%conf) = @_;

	foreach my $name (sort keys %conf)
	{
		$node->safe_psql('postgres', "ALTER SYSTEM SET $name = '$conf{$name}'");
	}
	$node->reload;
	return;
}

# ---- max_worker_processes

# Queries of others that take so many places.
my $force = $node->safe_psql('postgres',
	"SELECT name FROM pg_settings WHERE name IN ('force_parallel_mode', 'debug_parallel_query')");
my @others;

sub occupy
{
	my ($n) = @_;

	for (1 .. $n)
	{
		my $session = $node->background_psql('postgres', on_error_stop => 0);

		$session->query_until(qr/begins/,
			"SET $force = on;\n\\echo begins\nSELECT pg_sleep(86400);\n");
		push @others, $session;
	}
	poll_sql($node,
		"SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'parallel worker'",
		scalar(@others), 'others to take places');
	return;
}

sub leave
{
	$node->safe_psql('postgres',
		"SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE backend_type = 'client backend' AND query LIKE '%pg_sleep(86400)%' AND pid <> pg_backend_pid()");
	$_->quit foreach @others;
	@others = ();
	return;
}

# one role has a worker, then there is no place
ok(wait_status(begin('role1', 'work'), 'completed', 'a first saga'), 'a saga runs while there is room');
poll_sql($node, "SELECT count(*) FROM saga.workers WHERE process = 'coordinator' AND pid IS NOT NULL",
	'0', 'the coordinator to leave');
begin('role1', 'sleep');
poll_sql($node, 'SELECT count(*) FROM saga.workers WHERE operation IS NOT NULL', '1', 'a step to run');
occupy(2);
my $waits = begin('role2', 'work');
my $reason = 'out of background worker slots (max_worker_processes)';
poll_sql($node, "SELECT reason FROM saga.workers WHERE process = 'worker' AND role = 'role2'",
	$reason, 'the reason');
pass('saga.workers says that there is no slot');
like(
	$node->safe_psql('postgres',
		"SELECT detail FROM saga.explain($waits) WHERE topic = 'no worker'"),
	qr/\Q$reason\E/, '... and saga.explain()');
like(slurp_file($node->logfile),
	qr/LOG:  out of background worker slots\n.*DETAIL:.*\n.*HINT:  You might need to increase max_worker_processes\./,
	'... and the log, with a hint');
is($node->safe_psql('postgres', "SELECT status FROM saga.sagas WHERE saga_id = $waits"), 'running', 'the saga waits');
leave();
ok(wait_status($waits, 'completed', 'the saga that waited'), '... and runs when there is room');
$node->safe_psql('postgres', 'SELECT saga.abandon(saga_id) FROM saga.sagas WHERE finished_at IS NULL');
$node->safe_psql('postgres', 'SELECT pg_cancel_backend(pid) FROM saga.workers WHERE operation IS NOT NULL');
wait_all_final($node);

# an idle worker gives its place to a role that has none
poll_sql($node, "SELECT count(*) FROM saga.workers WHERE process = 'coordinator' AND pid IS NOT NULL",
	'0', 'the coordinator to leave');
poll_sql($node, "SELECT count(*) FROM saga.workers WHERE process = 'worker' AND state = 'idle'",
	'2', 'idle workers of two roles');
occupy(1);
ok(wait_status(begin('role3', 'work'), 'completed', "a third role's saga"),
	'an idle worker of another role gives way when there is no slot');
ok(wait_status(begin('role4', 'work'), 'completed', "a fourth role's saga"), '... again');
leave();

# no room for any at all, from the start
$node->stop;
$node->append_conf('postgresql.conf', 'max_worker_processes = 2');
$node->start;
$waits = begin('role1', 'work');
poll_sql($node,
	"SELECT count(*) > 0 FROM saga.workers WHERE pid IS NULL AND reason = '$reason'",
	't', 'the reason');
is($node->safe_psql('postgres', "SELECT status FROM saga.sagas WHERE saga_id = $waits"), 'running',
	'without a single slot sagas wait');
is($node->safe_psql('postgres', 'CALL saga.recover()', extra_params => [ '-U', 'role1' ]), '1|1|f|0|0|{}',
	'... or are run in the foreground');
# one slot for all
$node->append_conf('postgresql.conf', 'max_worker_processes = 3');
$node->restart;
my @ids = map { begin("role$_", 'work', 20) } 1 .. 4;
wait_all_final($node);
pass('with a single slot for everybody all sagas run');

# ---- saga.max_workers

$node->append_conf('postgresql.conf', 'max_worker_processes = 16');
$node->restart;
foreach my $max (1, 2)
{
	set_conf('saga.max_workers' => $max);
	$node->safe_psql('postgres', 'TRUNCATE app.effect');
	begin("role$_", 'work', 50) foreach 1 .. 12;
	poll_sql($node, "SELECT count(*) FROM app.effect", '600', "all roles' sagas");
	is($node->safe_psql('postgres', 'SELECT count(DISTINCT role), count(DISTINCT saga_id) FROM app.effect'),
		'12|600', "saga.max_workers = $max: the sagas of twelve roles run");
	cmp_ok($node->safe_psql('postgres', "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'saga worker'"),
		'<=', $max, '... by no more workers than that');
}

# one role has much to do, and others come later
$node->safe_psql('postgres', 'TRUNCATE app.effect');
begin('role1', 'linger', 200);
poll_sql($node, "SELECT count(*) FROM saga.workers WHERE role = 'role1' AND operation IS NOT NULL", qr/^[12]$/, 'a busy role');
ok(wait_status(begin("role$_", 'work'), 'completed', "role$_\'s saga"), "a role that is busy does not keep role$_ waiting") foreach 2 .. 4;
cmp_ok($node->safe_psql('postgres', "SELECT count(*) FROM saga.sagas WHERE owner = 'role1' AND status = 'running'"), '>', '0',
	'... to its end');
# a role whose steps do not end
begin('role5', 'sleep', 4);
poll_sql($node, "SELECT count(*) FROM saga.workers WHERE role = 'role5' AND operation IS NOT NULL", '1', 'a step that does not end');
ok(wait_status(begin("role$_", 'work'), 'completed', "role$_\'s saga"), "... nor does one that hangs keep role$_") foreach 6 .. 8;

# raised by a reload
set_conf('saga.max_workers' => 8, 'saga.workers_per_role' => 3);
poll_sql($node, "SELECT count(*) FROM saga.workers WHERE role = 'role5' AND operation IS NOT NULL", qr/^[23]$/, 'more workers after a reload');
pass('saga.max_workers and saga.workers_per_role are raised by a reload');
# and lowered
set_conf('saga.max_workers' => 1, 'saga.workers_per_role' => 1);
$node->safe_psql('postgres', "SELECT saga.abandon(saga_id) FROM saga.sagas WHERE owner = 'role5' AND finished_at IS NULL");
$node->safe_psql('postgres', 'SELECT pg_cancel_backend(pid) FROM saga.workers WHERE operation IS NOT NULL');
poll_sql($node, "SELECT count(*) <= 1 FROM pg_stat_activity WHERE backend_type = 'saga worker'", 't', 'workers to leave');
pass('... and lowered');

$node->stop;
done_testing();
