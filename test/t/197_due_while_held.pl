# Retries after very short pauses in sagas that take turns: what falls due while
# its worker is still busy with the batch is not left to the look of a minute
# later, which finds one at a time.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use PostgreSQL::Test::Utils;
use SagaTest;
use Test::More;

use constant SAGAS => 120;

my $node = SagaTest->new_node(
	'main',
	start => 1,
	conf  => { 'saga.workers_per_role' => 2 });

$node->safe_psql('postgres', <<'EOS');
CREATE EXTENSION saga;
CREATE ROLE app LOGIN;
GRANT CREATE ON SCHEMA public TO app;
SELECT saga.grant_usage('app');
SET ROLE app;
CREATE FUNCTION third_time(context jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF (context ->> 'attempt')::int < 3 THEN
        RAISE serialization_failure;
    END IF;
END $$;
SELECT saga.define('turns',
    saga.step('one', 'third_time', retry => saga.retry_policy(initial_delay => '5 ms'), exclusive => 'k'),
    saga.step('two', 'third_time', retry => saga.retry_policy(initial_delay => '5 ms')));
EOS
$node->safe_psql('postgres',
	'SET ROLE app; SELECT count(saga.begin(\'turns\', \'{"k": 1}\')) FROM generate_series(1, ' . SAGAS . ')');
poll_sql($node, "SELECT count(*) FROM saga.sagas WHERE status = 'completed'", SAGAS, 'the sagas to take their turns');
is($node->safe_psql('postgres', "SELECT min(failures), max(failures), count(*) FROM saga.steps"),
	'2|2|' . 2 * SAGAS, 'each step was attempted three times');

$node->stop;
done_testing();
