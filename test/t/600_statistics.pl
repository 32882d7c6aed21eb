# The statistics say what the tables say, while everything changes: random
# traffic of many kinds (savepoints and transactions that are rolled back,
# prepared transactions, children, timers, signals, people) with counts of the
# rows in the middle of it.  The tables are locked now and then, which waits for
# all who write, and then the gauges are the rows: exactly.  After a clean
# restart the counters are still there, after a crash they begin anew, and the
# gauges are right in both cases; as they are after COPY, DROP EXTENSION, a promotion, a
# prepared transaction that outlived a crash, and when there are more definitions
# than there is room for.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use PostgreSQL::Test::Utils;
use SagaTest;
use Test::More;
use Time::HiRes qw(usleep);

my $seed = $ENV{SAGA_SEED} || 6;
srand($seed);
diag "SAGA_SEED=$seed";

my $node = SagaTest->new_node(
	'main',
	start            => 1,
	allows_streaming => 1,
	conf             => { 'saga.workers_per_role' => 3, 'deadlock_timeout' => '100ms' });

# What of gauges and rows is not the same.
my $gauges_sql = <<'EOS';
CREATE VIEW public.gauge AS
    SELECT definition, x.what, x.n FROM saga.health_raw() h
    CROSS JOIN LATERAL (VALUES ('scheduled', scheduled), ('running', running),
        ('compensating', compensating), ('held', held), ('stuck', stuck), ('paused', paused)) x(what, n)
    WHERE x.n IS DISTINCT FROM 0
    UNION ALL
    SELECT definition, 'waits for ' || w.key, w.value::bigint
    FROM saga.health_raw() h CROSS JOIN LATERAL jsonb_each_text(COALESCE(h.waiting, '{"?": 1}')) w;
CREATE VIEW public.row_count AS
    WITH s AS (
        SELECT v.name AS definition, s.status::text, CASE
            WHEN s.coordinator <> (SELECT id FROM saga.coordinator) THEN 'adopt'
            WHEN s.waiting_for IS NULL OR s.waiting_for = 'branch' THEN 'worker'
            WHEN s.waiting_for = 'child saga' THEN 'child'
            WHEN s.waiting_for = 'place in step' THEN 'place'
            WHEN s.waiting_for = 'retry, skip or abandon' THEN 'person'
            WHEN s.waiting_for = 'outcome' THEN 'other'
            ELSE s.waiting_for END AS reason
        FROM saga.saga s LEFT JOIN saga.definition_version v ON v.id = s.definition_id
        WHERE s.due_at IS NOT NULL)
    SELECT definition, status AS what, count(*) AS n FROM s GROUP BY 1, 2
    UNION ALL
    SELECT definition, 'waits for ' || reason, count(*) FROM s GROUP BY 1, 2;
CREATE VIEW public.wrong AS
    SELECT COALESCE(g.definition, r.definition) AS definition, COALESCE(g.what, r.what) AS what,
        g.n AS gauge, r.n AS there
    FROM public.gauge g FULL JOIN public.row_count r
        ON COALESCE(g.definition, '?') = COALESCE(r.definition, '?') AND g.what = r.what
    WHERE g.n IS DISTINCT FROM r.n ORDER BY 1, 2;
EOS

sub setup
{
	$node->safe_psql('postgres', 'CREATE EXTENSION saga');
	$node->safe_psql('postgres', $gauges_sql);
	return;
}

# Who writes has come to the end of his transaction before the lock is there.
sub locked_check
{
	my ($what) = @_;

	is( $node->safe_psql('postgres', "SET lock_timeout = '30 s'; BEGIN; LOCK saga.saga IN SHARE MODE; SELECT * FROM wrong; COMMIT"),
		'',
		"$what: the gauges are what there is");
	return;
}

setup();
$node->safe_psql('postgres', <<'EOS');
CREATE ROLE app LOGIN;
GRANT CREATE ON SCHEMA public TO app;
SELECT saga.grant_usage('app');
SET ROLE app;
CREATE FUNCTION may_fail(context jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF context -> 'input' ->> 'fails' = context ->> 'step' THEN
        PERFORM saga.fail('as it was told to');
    ELSIF context -> 'input' ->> 'stumbles' = context ->> 'step' AND (context ->> 'attempt')::int < 3 THEN
        RAISE serialization_failure;
    END IF;
END $$;
CREATE FUNCTION undo(context jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF context -> 'input' ->> 'cannot' IS NOT NULL THEN
        PERFORM saga.fail('cannot be undone');
    END IF;
END $$;
CREATE FUNCTION begins(context jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    BEGIN
        PERFORM saga.begin('plain', context -> 'input');
        RAISE division_by_zero;
    EXCEPTION WHEN division_by_zero THEN
    END;
    PERFORM saga.begin('plain', context -> 'input');
END $$;
CREATE FUNCTION quick() RETURNS jsonb LANGUAGE sql
    RETURN saga.retry_policy(initial_delay => '5 ms');
CREATE FUNCTION give_up() RETURNS jsonb LANGUAGE sql
    RETURN saga.retry_policy(max_attempts => 2, initial_delay => '5 ms');
SELECT saga.define('plain',
    saga.step('one', 'may_fail', retry => quick(), compensation => 'undo', compensation_retry => give_up()),
    saga.step('two', 'may_fail', retry => quick(), compensation => 'undo', compensation_retry => give_up()),
    saga.step('three', 'may_fail', retry => quick()));
SELECT saga.define('parent',
    saga.step('one', 'begins', compensation => 'undo', compensation_retry => give_up()),
    saga.child_step('child', 'plain'),
    saga.step('three', 'may_fail', retry => quick()));
SELECT saga.define('waits',
    saga.timer_step('sleep', '20 ms'),
    saga.signal_step('sign', timeout => '300 ms', otherwise => '1'),
    saga.step('one', 'may_fail', retry => quick(), compensation => 'undo', compensation_retry => give_up()));
SELECT saga.define('turns', saga.step('one', 'may_fail', retry => quick(), compensation => 'undo', compensation_retry => give_up(), exclusive => 'k'),
    saga.step('last', 'may_fail'));
SELECT saga.define('fans', saga.step('one', 'may_fail', retry => quick(), compensation => 'undo', compensation_retry => give_up(), after => '{}'),
    saga.step('two', 'may_fail', retry => quick(), compensation => 'undo', compensation_retry => give_up(), after => '{}'),
    saga.step('three', 'may_fail', retry => quick(), after => '{one,two}'));
SELECT saga.configure('fans', max_running => 20);

-- begins that are undone by savepoints, on several levels
CREATE FUNCTION levels(input jsonb, depth int) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM saga.begin('plain', input);
    IF depth > 0 THEN
        BEGIN
            PERFORM levels(input, depth - 1);
            PERFORM saga.begin('waits', input);
            IF random() < 0.5 THEN
                RAISE division_by_zero;
            END IF;
        EXCEPTION WHEN division_by_zero THEN
        END;
        PERFORM saga.begin('plain', input);
    END IF;
END $$;
-- what people ask of some saga
CREATE FUNCTION meddle() RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    x bigint := (SELECT saga_id FROM saga.sagas WHERE finished_at IS NULL ORDER BY random() LIMIT 1);
BEGIN
    CASE (random() * 5)::int
        WHEN 0 THEN PERFORM saga.cancel(x);
        WHEN 1 THEN PERFORM saga.pause(x);
        WHEN 2 THEN PERFORM saga.resume(x);
        WHEN 3 THEN PERFORM saga.retry(x);
        WHEN 4 THEN PERFORM saga.signal(x, 'sign');
        ELSE PERFORM saga.abandon(x, 'test');
    END CASE;
EXCEPTION WHEN OTHERS THEN
END $$;
EOS

# ---- traffic

my @definitions = qw(plain parent waits turns fans);

sub a_begin
{
	my $definition = $definitions[ int(rand(@definitions)) ];
	my $r          = rand();
	my %input      = (k => int(rand(40)));

	$input{fails}    = (qw(one two three))[ int(rand(3)) ] if $r < 0.4;
	$input{stumbles} = 'two' if $r > 0.8;
	$input{cannot}   = 1 if $r < 0.1;
	my $json = '{' . join(', ', map { qq("$_": "$input{$_}") } sort keys %input) . '}';
	return ("'$definition', '$json'", "'$json'");
}

sub a_statement
{
	my ($gid) = @_;
	my $r = rand();
	my ($begin, $json) = a_begin();

	return "SELECT saga.begin($begin);" if $r < 0.4;
	return "SELECT saga.begin($begin, start_at => now() + interval '300 ms');" if $r < 0.45;
	return "SELECT levels($json, " . int(rand(4)) . ');' if $r < 0.55;
	return "SELECT count(saga.begin($begin)) FROM generate_series(1, 30);" if $r < 0.6;
	return "BEGIN; SELECT saga.begin($begin); SAVEPOINT s; SELECT saga.begin($begin); "
	  . 'ROLLBACK TO s; SAVEPOINT t; SELECT 1/0; ROLLBACK TO t; '
	  . "SELECT saga.begin($begin); RELEASE s; COMMIT;"
	  if $r < 0.7;
	return "BEGIN; SELECT saga.begin($begin); ROLLBACK;" if $r < 0.75;
	return "BEGIN; SELECT saga.begin($begin); SELECT levels($json, 2); PREPARE TRANSACTION '$gid'; "
	  . (rand() < 0.5 ? 'COMMIT' : 'ROLLBACK') . " PREPARED '$gid';"
	  if $r < 0.85;
	return 'SELECT meddle();';
}

sub start_traffic
{
	my ($n) = @_;
	my @load;

	for my $client (1 .. 3)
	{
		my $file = PostgreSQL::Test::Utils::tempdir() . '/traffic.sql';
		my %client = (out => '');

		append_to_file($file, join("\n", map { a_statement("$client-$_") } 1 .. $n) . "\n");
		$client{handle} = IPC::Run::start(
			[
				$node->installed_command('psql'), '-XAtq', '-U', 'app',
				'-d', $node->connstr('postgres'), '-f', $file
			],
			'<', \undef, '>', \$client{out}, '2>&1');
		push @load, \%client;
	}
	return \@load;
}

sub end_traffic
{
	my ($load) = @_;

	foreach my $client (@$load)
	{
		eval { $client->{handle}->finish; };
	}
	return;
}

# Nothing moves: what is left waits for a person, or for who does.
sub wait_until_quiet
{
	poll_sql(
		$node, <<'EOS', '', 'the sagas to come to rest');
SELECT s.id, s.status, s.waiting_for, s.due_at, m.kind FROM saga.saga s LEFT JOIN saga.message m ON m.saga_id = s.id
WHERE s.due_at < now() + interval '1 min' OR m.id IS NOT NULL
EOS
	return;
}

my $load = start_traffic(200);
for my $round (1 .. 8)
{
	# each has the rows counted, while they change
	if ($round > 4)
	{
		for (1 .. 3)
		{
			$node->safe_psql('postgres', "COPY saga.message FROM '/dev/null'; SELECT count(*) FROM gauge");
		}
	}
	usleep(200_000);
	locked_check("round $round");
}
cmp_ok($node->safe_psql('postgres', "SELECT count(*) FROM saga.saga WHERE due_at IS NOT NULL"),
	'>', 0, '... of sagas that were on their way');
end_traffic($load);
wait_until_quiet();
is($node->safe_psql('postgres', 'SELECT * FROM wrong'), '', 'afterwards: the gauges are what there is');
cmp_ok($node->safe_psql('postgres', 'SELECT count(*) FROM gauge'), '>', 1, '... and something is');

# ---- counters

# Of a definition whose sagas are all there: what was counted is what they are.
# One that was cancelled before its start took no time.
my $counters = <<'EOS';
SELECT h.definition, h.begun, h.completed, h.compensated, h.abandoned, round(h.seconds::numeric, 3), r.*
FROM saga.health_raw() h JOIN (
    SELECT v.name, count(*) AS begun, count(*) FILTER (WHERE s.status = 'completed') AS completed,
        count(*) FILTER (WHERE s.status = 'compensated') AS compensated,
        count(*) FILTER (WHERE s.status = 'abandoned') AS abandoned,
        round(COALESCE(sum(GREATEST(0, extract(epoch FROM s.finished_at - COALESCE(s.start_at, s.created_at)))), 0), 3) AS seconds
    FROM saga.saga s JOIN saga.definition_version v ON v.id = s.definition_id GROUP BY 1) r
    ON r.name = h.definition
WHERE (h.begun, h.completed, h.compensated, h.abandoned) IS DISTINCT FROM
        (r.begun, r.completed, r.compensated, r.abandoned)
    OR abs(h.seconds - r.seconds) > 0.01
EOS
my $step_counters = <<'EOS';
WITH o AS (
    SELECT saga_id, step, operation, 1 AS succeeded, 0 AS failed FROM saga.step WHERE status = 'succeeded'
    UNION ALL SELECT saga_id, step, operation, 0, 1 FROM saga.attempt
), s AS (
    SELECT v.name, v.steps -> o.step::int ->> 'name' AS step, o.operation,
        sum(o.succeeded) AS succeeded, sum(o.failed) AS failed
    FROM o JOIN saga.saga s ON s.id = o.saga_id JOIN saga.definition_version v ON v.id = s.definition_id
    GROUP BY 1, 2, 3)
SELECT * FROM s FULL JOIN saga.step_health_raw() h
    ON (h.definition, h.step, h.operation) = (s.name, s.step, s.operation)
WHERE (s.succeeded, s.failed) IS DISTINCT FROM (h.succeeded::numeric, h.failed::numeric)
EOS
is($node->safe_psql('postgres', $counters), '', 'what was begun and has ended was counted');
is($node->safe_psql('postgres', "SELECT string_agg(definition, ' ' ORDER BY definition) FROM saga.health_raw() WHERE begun > 0 AND completed > 0 AND compensated > 0"),
	'fans parent plain turns waits', '... of every definition');
is($node->safe_psql('postgres', $step_counters), '', 'attempts were counted');
is($node->safe_psql('postgres', <<'EOS'), '', 'percentiles are within a class of the exact ones');
SELECT h.definition, h.p50_1d, r.p50, h.p99_1d, r.p99 FROM saga.health_raw() h JOIN (
    SELECT v.name, percentile_disc(0.5) WITHIN GROUP (ORDER BY x.d) AS p50,
        percentile_disc(0.99) WITHIN GROUP (ORDER BY x.d) AS p99
    FROM saga.saga s JOIN saga.definition_version v ON v.id = s.definition_id
    CROSS JOIN LATERAL (SELECT GREATEST('0', s.finished_at - COALESCE(s.start_at, s.created_at)) AS d) x
    WHERE s.finished_at IS NOT NULL GROUP BY 1) r ON r.name = h.definition
WHERE h.p50_1d NOT BETWEEN r.p50 / 1.415 AND r.p50 * 1.415
    OR h.p99_1d NOT BETWEEN r.p99 / 1.415 AND r.p99 * 1.415
EOS
is($node->safe_psql('postgres', <<'EOS'), 't', 'the hour has what there was, at the rate of the time since the start');
SELECT bool_and(begun_1h BETWEEN 0.999999 * begun / late AND 1.000001 * begun / early
    AND completed_1h BETWEEN 0.999999 * completed / late AND 1.000001 * completed / early
    AND compensation_ratio_1h = compensated::float8 / (completed + compensated + abandoned))
FROM (SELECT *, extract(epoch FROM now() - since)::float8 / 60 AS early,
          extract(epoch FROM clock_timestamp() - since)::float8 / 60 AS late
      FROM saga.health_raw()) h
EOS

# ---- who may see and reset

$node->safe_psql('postgres', <<'EOS');
CREATE ROLE stranger LOGIN;
CREATE ROLE watcher LOGIN;
CREATE ROLE operator LOGIN;
SELECT saga.grant_usage('stranger'), saga.grant_monitor('watcher'), saga.grant_operator('operator');
EOS
is($node->safe_psql('postgres', "SET ROLE $_->[0]; SELECT count(*) > 0 FROM saga.health_raw(); SELECT count(*) > 0 FROM saga.step_health_raw()"),
	"$_->[1]\n$_->[1]", "$_->[0] sees " . ($_->[1] eq 't' ? 'them' : 'nothing'))
  foreach [ 'app', 't' ], [ 'stranger', 'f' ], [ 'watcher', 't' ], [ 'operator', 't' ];
foreach my $role ('app', 'watcher')
{
	my ($rc, $out, $err) = $node->psql('postgres', "SET ROLE $role; SELECT saga.reset_statistics()");
	like($err, qr/permission denied for function reset_statistics/, "$role cannot reset them");
}

# ---- a clean restart, a crash

my $totals = 'SELECT definition, begun, completed, compensated, abandoned, seconds, since FROM saga.health_raw() ORDER BY 1';
my $steps  = 'SELECT definition, step, operation, succeeded, failed, seconds, since, p50_1d FROM saga.step_health_raw() ORDER BY 1, 2, 3';
my $file   = $node->data_dir . '/pg_stat/saga.stat';
my $before = $node->safe_psql('postgres', "$totals; $steps");

$node->safe_psql('postgres', "BEGIN; SET ROLE app; SELECT saga.begin('plain'); PREPARE TRANSACTION 'restart'");
$node->stop;
ok(-e $file, 'statistics are saved at a shutdown');
my $saved = slurp_file($file);
$node->start;
ok(!-e $file, '... and the file is gone after the start');
is($node->safe_psql('postgres', "$totals; $steps"), $before, '... but not what was in it');
is($node->safe_psql('postgres', 'BEGIN; CREATE TEMP TABLE t(); SELECT * FROM wrong; ROLLBACK'),
	'', 'after a restart the gauges are what there is, also for who has written something');
is($node->safe_psql('postgres', 'SELECT * FROM wrong'), '', '... and for others');

# nobody who is there now has seen it being prepared
$node->safe_psql('postgres', "COMMIT PREPARED 'restart'");
locked_check('prepared before a restart, committed after it');

$load = start_traffic(40);
usleep(300_000);
my ($victim) = backend_pids($node, 'saga worker');
restart_after($node, sub { kill 'KILL', $victim }, 'SIGKILL of a worker');
end_traffic($load);
locked_check('after SIGKILL of a worker');
is($node->safe_psql('postgres', "SELECT count(*) FROM saga.health_raw() WHERE definition = 'parent' AND begun >= "
		. $node->safe_psql('postgres', "SELECT count(*) FROM saga.saga s JOIN saga.definition_version v ON v.id = s.definition_id WHERE v.name = 'parent'")),
	'0', '... and counters begin anew');

# with transactions that are still prepared
$node->safe_psql('postgres', "BEGIN; SET ROLE app; SELECT saga.begin('plain'); PREPARE TRANSACTION 'crash'");
$load = start_traffic(40);
usleep(300_000);
$node->stop('immediate');
end_traffic($load);
ok(!-e $file, 'nothing is saved at an immediate shutdown');
$node->start;
wait_until_quiet();
is($node->safe_psql('postgres', 'SELECT * FROM wrong'), '', 'after an immediate shutdown the gauges are what there is');
$node->safe_psql('postgres', $_)
  foreach map { $_ eq 'crash' ? "COMMIT PREPARED '$_'" : "ROLLBACK PREPARED '$_'" }
  split /\n/, $node->safe_psql('postgres', 'SELECT gid FROM pg_prepared_xacts');
locked_check('prepared before a crash, committed after it');

# a file that is not what was written
foreach my $way ([ 'cut off', substr($saved, 0, length($saved) - 100) ],
	[ 'empty', '' ],
	[ 'changed', substr($saved, 0, 1000) . 'x' . substr($saved, 1001) ],
	[ 'of something else', 'x' x length($saved) ],
	[ 'longer', $saved . 'x' ])
{
	my ($what, $content) = @$way;

	$node->stop;
	unlink $file;
	append_to_file($file, $content);
	my $offset = -s $node->logfile;
	$node->start;
	like(slurp_file($node->logfile, $offset), qr/LOG:  ignoring invalid data in file "pg_stat\/saga.stat"/,
		"a file that is $what is ignored");
}
# saga was not preloaded for a while, maybe: what was counted until then is not all
my $since = $node->safe_psql('postgres', 'SELECT now()');
$node->stop;
unlink $file;
append_to_file($file, $saved);
my $offset = -s $node->logfile;
$node->start;
like(slurp_file($node->logfile, $offset), qr/LOG:  ignoring file "pg_stat\/saga.stat" of an earlier shutdown/,
	'... and so is one that is right, but of an earlier shutdown');
is($node->safe_psql('postgres', "SELECT count(*) FROM saga.health_raw() WHERE since < '$since'"), '0', 'statistics begin anew');
$node->safe_psql('postgres', "SET ROLE app; SELECT saga.begin('waits'), saga.begin('plain')");

# ---- reset

wait_until_quiet();
my $gauges = $node->safe_psql('postgres', 'SELECT * FROM gauge ORDER BY 1, 2');
$node->safe_psql('postgres', "SET ROLE operator; SELECT saga.reset_statistics('plain')");
is($node->safe_psql('postgres', "SELECT sum(begun + completed + compensated + abandoned + seconds + begun_1d) FROM saga.health_raw() WHERE definition = 'plain'"),
	'0', 'reset: the counters of one definition');
is($node->safe_psql('postgres', "SELECT sum(succeeded + failed + seconds + succeeded_1d), count(p50_1d) FROM saga.step_health_raw() WHERE definition = 'plain'"),
	'0|0', '... and of its steps');
cmp_ok($node->safe_psql('postgres', "SELECT begun FROM saga.health_raw() WHERE definition = 'waits'"), '>', 0, '... not of others');
$node->safe_psql('postgres', 'SELECT saga.reset_statistics()');
is($node->safe_psql('postgres', 'SELECT sum(begun + completed + compensated + abandoned) FROM saga.health_raw()'), '0', '... of all');
is($node->safe_psql('postgres', 'SELECT * FROM gauge ORDER BY 1, 2'), $gauges, '... the gauges stay');

# ---- rows that come by other means

$node->safe_psql('postgres', 'CREATE DATABASE copy');
$node->safe_psql('copy', 'CREATE EXTENSION saga');
is($node->safe_psql('copy', 'SELECT count(*) FROM saga.health_raw()'), '0', 'statistics are of one database');
$node->safe_psql('postgres', 'DROP DATABASE copy');
$node->safe_psql('postgres', 'CREATE DATABASE copy TEMPLATE template0');
my $dump = PostgreSQL::Test::Utils::tempdir() . '/dump';
$node->command_ok([ 'pg_dump', '-f', $dump, 'postgres' ], 'the sagas are dumped');
$node->command_ok([ 'psql', '-qX', '-v', 'ON_ERROR_STOP=1', '-f', $dump, 'copy' ], '... and restored');
is($node->safe_psql('copy', 'SELECT * FROM wrong'), '', 'COPY: the gauges are what there is');
is($node->safe_psql('copy', "SELECT sum(n) FROM gauge WHERE what = 'waits for adopt'"),
	$node->safe_psql('copy', 'SELECT count(*) FROM saga.saga WHERE due_at IS NOT NULL'), '... and waits for saga.adopt()');
$node->safe_psql('copy', 'CALL saga.adopt()');
is($node->safe_psql('copy', "SELECT count(*) FROM gauge WHERE what = 'waits for adopt'"), '0', '... until then');
is($node->safe_psql('copy', 'BEGIN; LOCK saga.saga IN SHARE MODE; SELECT * FROM wrong; COMMIT'), '', '... which is noticed');
$node->safe_psql('copy', 'DROP EXTENSION saga CASCADE; CREATE EXTENSION saga');
is($node->safe_psql('copy', 'SELECT count(*) FROM saga.health_raw()'), '0', 'with the extension all goes');
$node->safe_psql('postgres', 'DROP DATABASE copy');
$node->safe_psql('postgres', 'CREATE DATABASE copy TEMPLATE postgres');
is($node->safe_psql('copy', 'SELECT * FROM wrong WHERE what NOT LIKE $$waits for%$$'), '', 'a copy of a database: the gauges are what there is');
$node->safe_psql('postgres', 'DROP DATABASE copy');

# ---- more definitions than there is room for

$node->safe_psql('postgres', <<'EOS');
SET ROLE app;
CREATE FUNCTION nothing() RETURNS void LANGUAGE sql AS '';
SELECT count(saga.define('many' || n, saga.step('one', 'nothing'))) FROM generate_series(1, 1100) n;
SELECT count(saga.begin('many' || n, start_at => '2999-01-01')) FROM generate_series(1, 1100) n;
EOS
my $sums = 'SELECT what, sum(gauge), sum(there) FROM (SELECT what, n AS gauge, 0 AS there FROM gauge UNION ALL SELECT what, 0, n FROM row_count) x GROUP BY 1 HAVING sum(gauge) <> sum(there)';
is($node->safe_psql('postgres', $sums), '', 'more definitions than there is room for: the sums are right');
cmp_ok($node->safe_psql('postgres', "SELECT n FROM gauge WHERE definition IS NULL AND what = 'scheduled'"), '>', 50, '... some are counted together');
$node->safe_psql('postgres', "SET ROLE app; SELECT count(saga.cancel(saga_id, 'test')) FROM saga.sagas WHERE definition LIKE 'many%' AND saga_id % 2 = 0");
poll_sql($node, "SELECT count(*) FROM saga.saga WHERE status = 'scheduled'", '550', 'half of them to end');
is($node->safe_psql('postgres', "BEGIN; LOCK saga.saga IN SHARE MODE; $sums; COMMIT"), '', '... also when half of them have ended');
$node->safe_psql('postgres', "COPY saga.message FROM '/dev/null'");
locked_check('... and with the next count each has its own again');
is($node->safe_psql('postgres', 'SELECT count(*) FROM gauge WHERE definition IS NULL'), '0', '... none is left without');

# ---- a standby

$node->backup('backup');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($node, 'backup', has_streaming => 1);
$standby->start;
$node->wait_for_catchup($standby, 'replay', $node->lsn('insert'));
is($standby->safe_psql('postgres', 'SELECT * FROM wrong'), '', 'on a standby the gauges are what there is');
cmp_ok($standby->safe_psql('postgres', 'SELECT count(*) FROM gauge'), '>', 1, '... and something is');
$node->stop;
$standby->promote;
is($standby->safe_psql('postgres', 'SELECT * FROM wrong'), '', '... and when it is promoted');
cmp_ok($standby->safe_psql('postgres', 'SELECT count(*) FROM gauge'), '>', 1, '... and something is');

$standby->stop;
done_testing();
