# pg_cron does what there are no workers for: in a server that does not preload
# saga, with jobs that are client sessions, and in one with saga.enabled = off,
# with jobs that are background workers.  saga.schedule_recovery() and the like
# make jobs that run, in pg_cron's database and in others, and say what to do
# where they cannot; saga.recover() does what it says, to whomever calls it.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use PostgreSQL::Test::Utils;
use SagaTest;
use Test::More;
use Time::HiRes qw(time usleep);

# names that have to be quoted
my $other = q{d"b o'x};
my $bob = q{Bo"b o'x};

sub run
{
	my ($node, $sql, %opt) = @_;

	return $node->safe_psql($opt{dbname} || 'postgres', $sql,
		extra_params => [ '-U', $opt{role} || 'postgres' ]);
}

sub error
{
	my ($node, $sql, %opt) = @_;
	my ($rc, $out, $err) = $node->psql($opt{dbname} || 'postgres', $sql,
		extra_params => [ '-U', $opt{role} || 'postgres' ]);

	return $rc == 0 ? 'no error' : $err;
}

# What a hint says is to be executed.
sub hinted
{
	my ($error, $pattern) = @_;

	return $1 if $error =~ /HINT:  $pattern: (.*;)$/m;
	die "no such hint: $error";
}

sub quote
{
	my ($name) = @_;

	$name =~ s/"/""/g;
	return qq{"$name"};
}

sub literal
{
	my ($text) = @_;

	$text =~ s/'/''/g;
	return "'$text'";
}

# A database in which role $role begins sagas, of two steps or none.
sub prepare
{
	my ($node, $dbname, $role) = @_;
	my $name = quote($role);

	run($node, 'CREATE EXTENSION IF NOT EXISTS saga', dbname => $dbname);
	run($node, 'SELECT saga.grant_usage(' . literal($role) . ')', dbname => $dbname);
	run($node, "CREATE SCHEMA AUTHORIZATION $name", dbname => $dbname);
	run($node, <<"EOS", dbname => $dbname, role => $role);
CREATE TABLE $name.effect (saga_id bigint, step text, PRIMARY KEY (saga_id, step));
CREATE FUNCTION $name.work(context jsonb) RETURNS void LANGUAGE plpgsql AS \$\$
BEGIN
	INSERT INTO $name.effect VALUES ((context ->> 'saga_id')::bigint, context ->> 'step');
	PERFORM pg_sleep((context -> 'input' ->> 'seconds')::float8);
	IF context -> 'input' ->> 'fails' = context ->> 'step' THEN
		PERFORM saga.fail('no');
	END IF;
END \$\$;
CREATE FUNCTION $name.undo(context jsonb) RETURNS void LANGUAGE sql AS \$\$
	DELETE FROM $name.effect WHERE saga_id = (context ->> 'saga_id')::bigint
		AND step = context ->> 'step' \$\$;
EOS
	my $work = literal("$name.work");
	my $undo = literal("$name.undo");
	run($node, 'SELECT saga.define(' . literal("work of $role") . ", saga.step('one', $work, $undo),"
		  . " saga.step('two', $work))", dbname => $dbname, role => $role);
	return;
}

sub create_roles
{
	my ($node) = @_;

	run($node, 'CREATE ROLE shop LOGIN; CREATE ROLE ' . quote($bob) . ' LOGIN; CREATE DATABASE ' . quote($other));
	prepare($node, 'postgres', 'shop');
	prepare($node, $other, $bob);
	return;
}

sub begin
{
	my ($node, $dbname, $role, $n, $input) = @_;

	return split /\n/, run($node, 'SELECT saga.begin(' . literal("work of $role") . ", '"
		  . ($input || '{}') . "') FROM generate_series(1, $n)", dbname => $dbname, role => $role);
}

# The minute that pg_cron begins jobs at may be most of a minute away.
sub wait_for_jobs
{
	my ($node) = @_;
	my $deadline = time() + 180;

	while (slurp_file($node->logfile) !~ /cron job \d+ (COMMAND )?completed/)
	{
		die 'timed out waiting for jobs of pg_cron' if time() >= $deadline;
		usleep(100_000);
	}
	return;
}

sub wait_ended
{
	my ($node, $dbname, $expected) = @_;

	poll_sql($node, "SELECT string_agg(n || ' ' || status, ', ' ORDER BY status::text) FROM "
		  . '(SELECT status, count(*) AS n FROM saga.sagas GROUP BY status) s',
		$expected, "jobs to run the sagas of $dbname", dbname => $dbname, timeout => 120);
	return;
}

# ---- jobs, on both servers, before the next minute begins

my %cron = (
	jobs => SagaTest->new_node('jobs', conf => {
		shared_preload_libraries => 'saga,pg_cron',
		'saga.enabled' => 'off',
		'cron.use_background_workers' => 'on' }),
	sessions => SagaTest->new_node('sessions', conf => {
		shared_preload_libraries => 'pg_cron',
		'cron.use_background_workers' => 'off' }));
$cron{sessions}->append_conf('postgresql.conf', "cron.host = '" . $cron{sessions}->host . "'");
foreach my $node (values %cron)
{
	$node->start;
	create_roles($node);
}
my $error = error($cron{jobs}, 'SELECT saga.schedule_recovery()');
like($error, qr/ERROR:  extension "pg_cron" does not exist/, 'without the extension an error says so');
is(run($cron{jobs}, 'SELECT count(*) FROM saga.schedules; SELECT saga.unschedule()'), "0\n0", '... and there is nothing to unschedule');
run($cron{jobs}, hinted($error, 'As a superuser'));
run($cron{sessions}, 'CREATE EXTENSION pg_cron');

foreach my $kind (sort keys %cron)
{
	my $node = $cron{$kind};

	begin($node, 'postgres', 'shop', 20);
	begin($node, 'postgres', 'shop', 10, '{"fails": "two"}');
	begin($node, $other, $bob, 15);
	# another role
	$error = error($node, 'SELECT saga.schedule_recovery()', role => 'shop');
	like($error, qr/permission denied for schema cron/, "$kind: a role needs a privilege of pg_cron");
	run($node, hinted($error, 'As a superuser'));
	my $job = run($node, 'SELECT saga.schedule_recovery()', role => 'shop');
	is(run($node, 'SELECT what, database, role, schedule, command, active FROM saga.schedules WHERE job_id = ' . $job),
		q{recovery|postgres|shop|* * * * *|CALL saga.recover(max => 1000, time_budget => '00:00:50')|t},
		"$kind: the job is there");
	# another database
	$error = error($node, 'SELECT saga.schedule_recovery(max => 100, role => ' . literal($bob) . ')', dbname => $other);
	like($error, qr/ERROR:  pg_cron is not in database "\Q$other\E".*DETAIL:.*"postgres"/s,
		"$kind: elsewhere an error says where pg_cron is");
	run($node, hinted($error, 'In database "postgres", as a superuser'));
	is(run($node, 'SELECT what, database, role, command FROM saga.schedules WHERE database = ' . literal($other)),
		qq{recovery|$other|$bob|CALL saga.recover(max => 100, time_budget => '00:00:50')}, '... and the command of its hint works');
	# few records are kept, of each job
	run($node, <<"EOS");
INSERT INTO cron.job_run_details (jobid, database, username, command, status)
	SELECT $job, 'postgres', 'shop', 'CALL saga.recover()', 'failed' FROM generate_series(1, 1500);
INSERT INTO cron.job_run_details (jobid, username, command, status)
	SELECT 4711, 'postgres', 'not ours', 'succeeded' FROM generate_series(1, 1500);
SELECT cron.alter_job(job_id, '* * * * *') FROM saga.schedules WHERE what = 'run history' AND role = 'postgres';
EOS
}
is(run($cron{jobs}, 'SELECT what, role FROM saga.schedules ORDER BY 1, 2'),
	"recovery|$bob\nrecovery|shop\nrun history|postgres\nrun history|shop", 'a superuser sees all jobs');
is(run($cron{jobs}, 'SELECT what, role FROM saga.schedules ORDER BY 1', role => 'shop'),
	"recovery|shop\nrun history|shop", '... a role its own');

# ---- without pg_cron, while these jobs wait for the minute

my $plain = SagaTest->new_node('plain', start => 1);
create_roles($plain);
$error = error($plain, 'SELECT saga.schedule_recovery()', role => 'shop');
like($error, qr/ERROR:  pg_cron is not loaded via "shared_preload_libraries"/, 'without pg_cron an error says so');
like($error, qr/HINT:  Install pg_cron, .* cron\.database_name = 'postgres'/, '... and what to do');
my $command = hinted($error, q{.* as role "shop" and execute});
is(run($plain, $command, role => 'shop'), '0|0|f|0|0|{}', '... and what other schedulers may execute');
is(run($plain, 'SELECT count(*) FROM saga.schedules; SELECT saga.unschedule()'), "0\n0", '... and there is nothing to unschedule');

# ---- saga.recover()

$plain->append_conf('postgresql.conf', 'saga.enabled = off');
$plain->reload;
poll_sql($plain, 'SHOW saga.enabled', 'off', 'the setting');
run($plain, 'SELECT saga.grant_usage(' . literal($bob) . ')');
run($plain, 'CREATE ROLE watcher LOGIN; SELECT saga.grant_monitor(\'watcher\'), saga.grant_usage(\'watcher\')');

# two at once
begin($plain, 'postgres', 'shop', 150);
my @sessions = map { $plain->background_psql('postgres', extra_params => [ '-U', 'shop' ]) } 1 .. 2;
$_->query_until(qr/begins/, "\\echo begins\nCALL saga.recover();\n\\echo done\n") foreach @sessions;
my @did = map { $_->query_until(qr/done/, '') =~ /^(\d+)\|(\d+)\|f\|/m ? [ $1, $2 ] : [ 0, 0 ] } @sessions;
$_->quit foreach @sessions;
is(run($plain, 'SELECT status, count(*) FROM saga.sagas GROUP BY 1'), 'completed|150', 'two at once: all sagas run');
is(join('|', $did[0][0] + $did[1][0], $did[0][1] + $did[1][1]), '300|150', '... each step once, as the two say');
is(run($plain, 'CALL saga.recover()', role => 'shop'), '0|0|f|0|0|{}', '... and then there is nothing to do');

# as whoever calls
begin($plain, 'postgres', 'shop', 3);
is(run($plain, 'CALL saga.recover()'), '0|0|f|0|0|{shop}', 'a superuser: told whose sagas are due');
is(run($plain, 'CALL saga.recover()', role => 'watcher'), '0|0|f|0|0|{shop}', '... so is a monitor');
is(run($plain, 'CALL saga.recover()', role => $bob), '0|0|f|0|0|{}', 'another role: not');
is(run($plain, 'CALL saga.recover(2)', role => 'shop'), '4|2|t|0|0|{}', 'its own role: they run, at most so many');
is(run($plain, 'CALL saga.recover(1)', role => 'shop'), '2|1|f|0|0|{}', '... the rest with the next call');

# for so long, not longer than a batch and an operation take
begin($plain, 'postgres', 'shop', 40, '{"seconds": 0.1}');
my @row = split /\|/, run($plain, q{CALL saga.recover(time_budget => '0.5 s')}, role => 'shop');
cmp_ok($row[0], '<', 40, 'the budget ends it between two operations');
is($row[2], 't', '... and it says that there is more');
is(run($plain, q{CALL saga.recover(time_budget => '0')}, role => 'shop'), '0|0|t|0|0|{}', 'without a budget nothing is run');
@row = split /\|/, run($plain, q{SET statement_timeout = '4 s'; CALL saga.recover()}, role => 'shop');
is($row[2], 't', 'it ends before statement_timeout ends it');
run($plain, 'SELECT count(saga.cancel(saga_id)) FROM saga.sagas WHERE NOT final');
run($plain, 'CALL saga.recover()', role => 'shop');
is(run($plain, 'SELECT count(*) FROM saga.sagas WHERE NOT final'), '0', 'the next call sees to the rest');

# leases, whosever they are
run($plain, <<'EOS', role => 'shop');
SELECT saga.create_queue('parcels');
SELECT saga.define('sent', saga.external_step('send', 'parcels',
	retry => saga.retry_policy(5, initial_delay => '1 ms', max_delay => '1 ms')));
SELECT saga.begin('sent') FROM generate_series(1, 3);
CALL saga.recover();
SELECT count(*) FROM saga.claim_tasks('parcels', 2, lease => '1 ms', participant => 'lazy');
SELECT pg_sleep(0.01);
EOS
is(run($plain, 'CALL saga.recover()'), '0|0|f|2|0|{shop}', 'leases that are over are ended by whoever calls');
is(run($plain, 'CALL saga.recover()'), '0|0|f|0|0|{shop}', '... once');
# the policy has a pause of a millisecond
for (1 .. 1000)
{
	last if run($plain, "SELECT count(*) FROM saga.tasks WHERE status = 'ready'") eq '3';
	run($plain, 'CALL saga.recover()', role => 'shop');
}
is(run($plain, "SELECT count(*) FROM saga.tasks WHERE status = 'ready'"), '3', '... and their tasks are offered again');

# of a role that is gone
run($plain, 'CREATE ROLE gone LOGIN');
prepare($plain, 'postgres', 'gone');
my ($left) = begin($plain, 'postgres', 'gone', 1);
run($plain, 'DROP OWNED BY gone; DROP ROLE gone');
run($plain, "SELECT saga.abandon($left)");
run($plain, 'CALL saga.recover()', role => $bob);
is(run($plain, "SELECT status FROM saga.sagas WHERE saga_id = $left"), 'running', 'what was asked of a saga of a role that is gone waits');
run($plain, 'CALL saga.recover()');
is(run($plain, "SELECT status FROM saga.sagas WHERE saga_id = $left"), 'abandoned', '... until a superuser calls');

# with workers
$plain->append_conf('postgresql.conf', 'saga.enabled = on');
$plain->reload;
run($plain, <<'EOS', role => 'shop');
SELECT saga.define('approved', saga.signal_step('approval'));
EOS
my $asked = run($plain, q{SELECT saga.begin('approved')}, role => 'shop');
poll_sql($plain, "SELECT waiting_for FROM saga.sagas WHERE saga_id = $asked", 'signal', 'a saga to wait');
# as if the one to be told had not heard of it
run($plain, <<"EOS");
INSERT INTO saga.message (id, saga_id, slot, role, kind, requested_by)
	SELECT nextval('saga.history_id_seq'), id, slot, role, 'cancel', 'shop' FROM saga.saga WHERE id = $asked;
EOS
is(run($plain, 'CALL saga.recover()', role => 'shop'), '0|0|f|0|1|{}', 'where there are workers these are woken');
poll_sql($plain, "SELECT status FROM saga.sagas WHERE saga_id = $asked", 'compensated', 'a worker to act on it');
$plain->stop;

# ---- which job is which

my $jobs = $cron{jobs};
my $id = run($jobs, 'SELECT saga.schedule_retention()');
is(run($jobs, 'SELECT saga.schedule_retention(); SELECT saga.schedule_retention()'), "$id\n$id", 'a second call means the same job');
is(run($jobs, q{SELECT saga.schedule_retention('0 4 * * 0', '2 h')}), $id, '... with another schedule too');
is(run($jobs, "SELECT schedule, command FROM cron.job WHERE jobid = $id"),
	q{0 4 * * 0|CALL saga.retain(time_budget => '02:00:00')}, '... which is changed');
run($jobs, "SELECT cron.alter_job($id, active => false)");
my $again = run($jobs, 'SELECT saga.schedule_retention()');
is(run($jobs, "SELECT count(*), bool_and(active) FROM cron.job WHERE jobname = 'saga retention'"), '1|t', 'one that was switched off is made anew');
run($jobs, "UPDATE cron.job SET nodeport = nodeport + 1 WHERE jobid = $again");
run($jobs, 'SELECT saga.schedule_retention()');
is(run($jobs, "SELECT nodeport FROM cron.job WHERE jobname = 'saga retention'"), $jobs->port, '... and one for a port that has changed');
run($jobs, 'SELECT saga.schedule_reconciliation()');
is(run($jobs, 'SELECT what, schedule, command FROM saga.schedules WHERE what LIKE \'re%n\' AND role = \'postgres\' ORDER BY 1'),
	"reconciliation|*/10 * * * *|CALL saga.check_invariants()\nretention|0 3 * * *|CALL saga.retain(time_budget => '00:10:00')",
	'retention and reconciliation');
foreach my $do (split /\n/, run($jobs, q{SELECT command FROM saga.schedules WHERE what IN ('retention', 'reconciliation')}))
{
	is(error($jobs, $do), 'no error', "... can be executed: $do");
}
is(run($jobs, 'SELECT saga.schedule_retention(role => \'postgres\') = (SELECT job_id FROM saga.schedules WHERE what = \'retention\')'),
	't', 'a role may be named');

# names that pg_cron would cut off
my @long = map { 'x' x 62 . $_ } 1, 2;
run($jobs, "CREATE DATABASE $_") foreach @long;
my @ids = map { run($jobs, "SELECT saga.schedule_recovery(database => '$_')") } @long, @long;
is("@ids[0, 1]", "@ids[2, 3]", 'databases with long names have a job each');
isnt($ids[0], $ids[1], '... of their own');
run($jobs, "DROP DATABASE $long[1]");
is(run($jobs, "SELECT saga.unschedule(database => '$_')"), '1', '... that can be removed, even when its database is gone') foreach @long;
is(run($jobs, 'SELECT saga.unschedule(\'recovery\', database => ' . literal($long[0]) . ')'), '0', '... and need not be there');

# errors
like(error($jobs, 'SELECT saga.schedule_recovery(\'tomorrow\')'), qr/invalid schedule: tomorrow/, 'no schedule');
like(error($jobs, 'SELECT saga.schedule_recovery(NULL)'), qr/schedule must not be null/, 'no schedule at all');
like(error($jobs, 'SELECT saga.schedule_recovery(max => 0)'), qr/max must be greater than zero/, 'no number');
like(error($jobs, 'SELECT saga.schedule_recovery(time_budget => \'-1 s\')'), qr/time_budget must not be negative/, 'no budget');
like(error($jobs, 'SELECT saga.schedule_recovery(database => \'nowhere\')'), qr/database "nowhere" does not exist/, 'no database');
like(error($jobs, 'SELECT saga.schedule_recovery(role => \'nobody\')'), qr/role "nobody" does not exist/, 'no role');
like(error($jobs, 'SELECT saga.unschedule(\'recover\')'), qr/unrecognized kind of schedule: "recover".*HINT:.*"recovery"/s, 'no kind');
run($jobs, 'CREATE ROLE closed; CREATE ROLE nothing LOGIN');
$error = error($jobs, 'SELECT saga.schedule_recovery(role => \'closed\')');
like($error, qr/role "closed" is not permitted to log in/, 'a role that may not log in');
like(error($jobs, 'SELECT saga.schedule_recovery(role => \'nothing\')'), qr/role "nothing" may not call procedure saga.recover/,
	'a role without the privilege');
like(error($jobs, 'SELECT saga.schedule_recovery(role => ' . literal($bob) . ')', role => 'shop'),
	qr/must be superuser to schedule a job of role "\Q$bob\E"/, 'for another role');
like(error($jobs, 'SELECT saga.schedule_recovery(database => ' . literal($other) . ')', role => 'shop'),
	qr/permission denied for function cron.schedule_in_database.*HINT:.*role => 'shop'/s, 'for another database');
like(error($jobs, 'SELECT saga.unschedule()', dbname => $other), qr/HINT:  In database "postgres".*database = 'd"b o\'\'x';/,
	'removing from elsewhere');

# ---- the minute

foreach my $kind (sort keys %cron)
{
	my $node = $cron{$kind};

	wait_for_jobs($node);
	wait_ended($node, 'postgres', '10 compensated, 20 completed');
	wait_ended($node, $other, '15 completed');
	pass("$kind: jobs have run the sagas of both databases");
	is(run($node, 'SELECT count(*) FROM shop.effect'), '40', '... each step once');
	is(run($node, 'SELECT count(*) FROM ' . quote($bob) . '.effect', dbname => $other), '30', '... in both');
	poll_sql($node, q{SELECT string_agg(DISTINCT last_status, ' ') FROM saga.schedules}
		  . q{ WHERE schedule = '* * * * *'}, 'succeeded', "$kind: the runs to end");
	poll_sql($node, q{SELECT count(*) FROM saga.schedules WHERE last_start <= last_end AND last_message IS NOT NULL}
		  . q{ AND what = 'recovery'}, '2', "$kind: saga.schedules to show their last runs");
	poll_sql($node, q{SELECT count(*) <= 1001 FROM cron.job_run_details d JOIN saga.schedules s ON s.job_id = d.jobid}
		  . q{ WHERE s.role = 'shop'}, 't', "$kind: old records to be deleted", timeout => 120);
	is(run($node, 'SELECT count(*) FROM cron.job_run_details WHERE jobid = 4711'), '1500', '... of these jobs alone');
}

# ---- the end

my $sessions = $cron{sessions};
is(run($sessions, 'SELECT saga.unschedule(\'retention\'); SELECT saga.unschedule()', role => 'shop'), "0\n1", 'a role removes its own');
is(run($sessions, 'SELECT role FROM saga.schedules ORDER BY 1'), "$bob\npostgres", '... and no others');
is(run($sessions, 'SELECT saga.unschedule(); SELECT saga.unschedule(database => ' . literal($other) . ')'), "0\n1", 'those of a database');
is(run($sessions, 'SELECT count(*) FROM cron.job; SELECT count(*) FROM cron.job_run_details WHERE jobid <> 4711'), "0\n0",
	'nothing is left of them');

# pg_cron does not go on with a job whose role was dropped
run($jobs, 'SELECT saga.schedule_recovery(role => \'nothing\') FROM saga.grant_usage(\'nothing\')');
my $offset = -s $jobs->logfile;
run($jobs, 'DROP OWNED BY nothing; DROP ROLE nothing; SELECT saga.schedule_recovery()');
wait_for_server_log($jobs, qr/role "nothing" does not exist/, $offset, 'pg_cron to fail');
is(run($jobs, 'SELECT saga.unschedule(role => \'nothing\')'), '1', 'a job of a role that is gone can be removed');
poll_sql($jobs, q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'pg_cron launcher'
	AND backend_start < clock_timestamp() - interval '1.2 s'}, '1', 'pg_cron to stay');
pass('... and pg_cron goes on');

$_->stop foreach values %cron;
done_testing();
