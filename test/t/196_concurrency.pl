# Steps with few places while workers are killed and terminated and the server
# is stopped at once: nobody waits for ever, and never are more sagas in a step
# than it has places.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use PostgreSQL::Test::Utils;
use SagaTest;
use Test::More;
use Time::HiRes qw(usleep);

my $node = SagaTest->new_node(
	'main',
	start => 1,
	conf  => { 'saga.workers_per_role' => 3 });

# What a step does stays as long as its transaction; when that was rolled back,
# by a crash or a failure, the saga was in the step all the same.
$node->safe_psql('postgres', <<'EOS');
CREATE EXTENSION saga;
CREATE ROLE app LOGIN;
GRANT CREATE ON SCHEMA public TO app;
SELECT saga.grant_usage('app');
SET ROLE app;
CREATE TABLE visit (saga_id bigint, step text, began timestamptz, ended timestamptz);
CREATE FUNCTION act(context jsonb) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    began constant timestamptz := clock_timestamp();
    n constant int := (context ->> 'saga_id')::int + coalesce((context ->> 'index')::int, 0);
BEGIN
    PERFORM pg_sleep(0.003);
    IF context ->> 'operation' = 'action' AND n % 7 = 0 AND (context ->> 'attempt')::int = 1 THEN
        RAISE EXCEPTION 'once';
    ELSIF context ->> 'step' = 'last' AND n % 5 = 0 THEN
        PERFORM saga.fail('as the test wants it');
    END IF;
    INSERT INTO visit
        VALUES ((context ->> 'saga_id')::bigint, concat_ws(' ', context ->> 'operation', context ->> 'step'),
                began, clock_timestamp());
    RETURN n;
END $$;
SELECT saga.define('inner', saga.step('child', 'act', 'act', concurrency => 3));
SELECT saga.define('narrow',
    saga.step('start', 'act', 'act'),
    saga.step('two', 'act', 'act', foreach => 'list', parallel => 2, concurrency => 2,
              retry => saga.retry_policy(3, '5 ms', retry_on => '{P0001}')),
    saga.step('one', 'act', 'act', after => '{start}', exclusive => 'sku', exclusive_until => 'one', concurrency => 1,
              savepoint => true, recoveries => 2, isolation => 'repeatable read',
              retry => saga.retry_policy(0, '5 ms', retry_on => '{P0001,40}')),
    saga.child_step('kid', 'inner', after => '{one}', concurrency => 2),
    saga.step('last', 'act', 'act', after => '{two,kid}', concurrency => 4,
              retry => saga.retry_policy(3, '5 ms', retry_on => '{P0001}')));
EOS

my $begin = <<'EOS';
SET ROLE app;
SELECT count(saga.begin('narrow', jsonb_build_object('list', ARRAY[1, 2, 3], 'sku', n % 3)))
FROM generate_series(1, 40) n;
EOS

# Has a step more sagas in it than places?
my $crowded = <<'EOS';
SELECT count(*) FROM (SELECT FROM saga.lock WHERE granted AND lock_key LIKE 'step %'
    GROUP BY lock_key HAVING count(*) > min(places)) c
EOS
my $most = 0;

sub look
{
	my ($rounds) = @_;

	for (1 .. $rounds)
	{
		my $n = $node->safe_psql('postgres', $crowded);

		$most = $n if $n > $most;
		usleep(50_000);
	}
	return;
}

sub a_worker
{
	my @pids = backend_pids($node, 'saga worker');

	return @pids ? $pids[ int(rand(@pids)) ] : undef;
}

for my $round (1 .. 5)
{
	$node->safe_psql('postgres', $begin);
	look(6);
	if ($round < 3)
	{
		my $pid = a_worker();

		kill 'TERM', $pid if defined $pid;
	}
	elsif ($round < 5)
	{
		my $pid = a_worker();
		my $offset = -s $node->logfile;

		next unless defined $pid && kill 'KILL', $pid;
		wait_for_server_log($node, qr/all server processes terminated; reinitializing/,
			$offset, 'the server to restart');
		poll_sql($node, 'SELECT 1', '1', 'connections after the kill');
	}
	else
	{
		$node->stop('immediate');
		$node->start;
	}
	look(6);
}
# some are cancelled, paused for a while, or abandoned wherever they are; of one
# that has come to its end, or nearly, that is refused
$node->safe_psql('postgres', <<'EOS');
DO $$
DECLARE
    id bigint;
    n  bigint;
BEGIN
    FOR id, n IN SELECT saga_id, row_number() OVER (ORDER BY saga_id) FROM saga.sagas
        WHERE status = 'running' AND parent_id IS NULL ORDER BY saga_id LIMIT 30
    LOOP
        BEGIN
            PERFORM CASE n % 3 WHEN 0 THEN saga.cancel(id) WHEN 1 THEN saga.pause(id) ELSE saga.abandon(id) END;
        EXCEPTION WHEN object_not_in_prerequisite_state THEN
            NULL;
        END;
    END LOOP;
END $$;
EOS
look(4);
poll_sql($node, "SELECT count(saga.resume(saga_id)) FROM saga.sagas WHERE status = 'paused'", '0', 'the paused to go on');
if (!eval { wait_all_final($node); 1 })
{
	my $error = $@;

	diag $node->safe_psql('postgres',
		"SELECT e.* FROM saga.sagas s, saga.explain(s.saga_id) e WHERE s.finished_at IS NULL ORDER BY s.saga_id; "
		  . "SELECT * FROM saga.lock");
	die $error;
}
is($most, 0, 'no step had more sagas in it than places');
is($node->safe_psql('postgres', 'SELECT count(*) FROM saga.lock'), '0', 'no place is left');
is( $node->safe_psql('postgres', <<'EOS'), "one|t\ntwo|t", 'never more than so many were in a step');
WITH stay AS (
    SELECT step, saga_id, min(began) AS began, max(ended) AS ended
    FROM visit WHERE step IN ('action one', 'action two') GROUP BY step, saga_id
), crowd AS (
    SELECT a.step, max((SELECT count(*) FROM stay b WHERE b.step = a.step AND b.began <= a.began AND b.ended > a.began)) AS n
    FROM stay a
    -- of one that was abandoned or went forward again the visits are not all one stay
    WHERE NOT EXISTS (SELECT FROM saga.sagas s WHERE s.saga_id = a.saga_id AND s.status <> 'completed')
    GROUP BY a.step
)
SELECT substr(step, 8), n <= CASE step WHEN 'action one' THEN 1 ELSE 2 END FROM crowd ORDER BY 1;
EOS
isnt($node->safe_psql('postgres', "SELECT count(*) FROM saga.sagas WHERE status = 'completed' AND parent_id IS NULL"),
	'0', 'some have completed');

$node->stop;
done_testing();
