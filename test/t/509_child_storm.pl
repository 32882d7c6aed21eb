# Sagas whose children are in another database, 600 of them or more, while the
# courier and backends are killed, either server is stopped without a chance to say
# goodbye, and the network between them loses, delays, cuts off and repeats what is
# sent.  Some children fail, some parents fail after them, some are cancelled or
# abandoned at work.
#
# At the end all sagas of both databases are final.  Each child has ended as its
# parent has, but where that was abandoned; a parent that has completed has as many
# children as it wanted; each step of a child was done once, and undone once.
#
#	SAGA_SEED          the seed, if it is not to be the same one each time
#	SAGA_STORM_SAGAS   how many sagas at least (600)
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use List::Util 'shuffle';
use PostgreSQL::Test::Utils;
use SagaProxy;
use SagaRemote;
use SagaTest;
use Test::More;
use Time::HiRes qw(time usleep);

my $seed  = $ENV{SAGA_SEED}        || 7;
my $sagas = $ENV{SAGA_STORM_SAGAS} || 600;

# What breaks is broken for so many seconds.
use constant PAUSE => 0.8;

srand($seed);
diag "SAGA_SEED=$seed";

my $orders = new_coordinator(
	'orders',
	conf => {
		'saga.remote_connect_timeout' => '1 s',
		'log_min_error_statement'     => 'panic',
		'log_statement'               => 'none',
	});
my ($warehouse, $proxy) = new_remote('warehouse', preload => 1, conf => { 'log_statement' => 'none' });

connect_remote($orders, 'warehouse', $proxy->port);
$orders->safe_psql('postgres',
	"SELECT saga.configure_server('warehouse', breaker_failures => 4, breaker_pause => '50 ms', breaker_max_pause => '300 ms')");
$warehouse->safe_psql('postgres', "SELECT saga.grant_usage('shop')");
$warehouse->safe_psql('postgres', <<'EOS', extra_params => [ '-U', 'shop' ]);
CREATE TABLE done (n bigint GENERATED ALWAYS AS IDENTITY, saga_id bigint, step text, operation text);
CREATE FUNCTION work(context jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_sleep(0.01 * random());
    INSERT INTO done (saga_id, step, operation)
    VALUES ((context ->> 'saga_id')::bigint, context ->> 'step', context ->> 'operation');
    IF context ->> 'operation' = 'action' AND context #>> '{input,fail}' = context ->> 'step' THEN
        PERFORM saga.fail('sold out');
    END IF;
    RETURN jsonb_build_object('parcel', context #> '{input,parcel}');
END $$;
SELECT saga.define('parcel', saga.step('pick', 'work', 'work'), saga.step('pack', 'work', 'work'),
    saga.step('label', 'work', 'work', confirmation => 'work'));
EOS
as_app($orders, <<'EOS');
CREATE FUNCTION patient() RETURNS jsonb LANGUAGE sql IMMUTABLE AS
    $$ SELECT saga.retry_policy(0, '20 ms', '200 ms') $$;
CREATE FUNCTION close(context jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF context #> '{input,refuse}' = 'true' THEN
        PERFORM saga.fail('refused');
    END IF;
END $$;
SELECT saga.define('order',
    saga.child_step('parcels', 'parcel', server => 'warehouse', foreach => 'parcels', parallel => 3, retry => patient()),
    saga.step('close', 'close'));
-- Of seven one has a child that fails, one fails itself.
CREATE FUNCTION begin_sagas(first int, n int) RETURNS bigint LANGUAGE sql AS $$
    SELECT count(saga.begin('order', jsonb_build_object('refuse', i % 7 = 2, 'parcels',
        (SELECT coalesce(jsonb_agg(jsonb_strip_nulls(jsonb_build_object('parcel', x, 'fail', CASE WHEN i % 7 = 1 AND x = 1 THEN 'pack' END))), '[]')
         FROM generate_series(1, 1 + i % 4) x))))
    FROM generate_series(first, first + n - 1) i
$$;
CREATE FUNCTION ask_some(verb text, n int) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    saga bigint;
    asked bigint := 0;
BEGIN
    FOR saga IN SELECT saga_id FROM saga.sagas WHERE finished_at IS NULL AND NOT compensates ORDER BY random() LIMIT n LOOP
        BEGIN
            IF verb = 'cancel' THEN
                PERFORM saga.cancel(saga, 'second thoughts');
            ELSE
                PERFORM saga.abandon(saga, 'never mind');
            END IF;
            asked := asked + 1;
        EXCEPTION WHEN OTHERS THEN
            -- it has ended
        END;
    END LOOP;
    RETURN asked;
END $$;
EOS

# ---- the storm

# NULL while a server is not there.
sub ask
{
	my ($node, $sql) = @_;
	my ($rc, $out) = (undef, '');

	eval { $rc = $node->psql('postgres', $sql, stdout => \$out, on_error_die => 0, timeout => 60); };
	return defined $rc && $rc == 0 && $out ne '' ? $out : undef;
}

sub restart
{
	my ($node) = @_;

	$node->stop('immediate');
	usleep(200_000);
	$node->start;
	return;
}

sub end_process
{
	my ($node, $signal, $condition) = @_;
	my $pid = ask($node, "SELECT pid FROM pg_stat_activity WHERE $condition ORDER BY random() LIMIT 1") or return;

	return restart_after($node, sub { kill 'KILL', $pid }, 'the kill of a process') if $signal eq 'KILL';
	kill $signal, $pid;
	return;
}

use constant TIMES => 4;

sub rule
{
	my ($do, %rule) = @_;

	$proxy->rule(do => $do, skip => int(rand 10), times => TIMES, %rule);
	return;
}

my %network = (
	'cut'            => sub { $proxy->cut; },
	'refuse'         => sub { $proxy->refuse; $proxy->cut; },
	'ignore'         => sub { $proxy->ignore; $proxy->cut; },
	'lose requests'  => sub { $proxy->swallow('client'); },
	'lose answers'   => sub { $proxy->swallow('server'); },
	'hold answers'   => sub { $proxy->hold('server'); },
	'delay'          => sub { $proxy->delay(0.02); },
	'lose commits'   => sub { rule('lose', from => 'client', match => 'recall|action|compensation|confirmation|release'); },
	'cut at reports' => sub { rule('cut', from => 'server', match => '"report"'); },
	'cut at begins'  => sub { rule('cut', from => 'server', match => '"saga_id"'); },
	'repeat rows'    => sub { rule('duplicate', from => 'server', match => '^D'); },
	'repeat requests' => sub { rule('duplicate', from => 'client', match => 'action'); },
);
my $courier  = "backend_type = 'saga courier'";
my $sessions = "usename = 'shop' AND backend_type = 'client backend'";
my $workers  = "backend_type = 'saga worker'";
my @events   = map { my $fault = $_; [ $fault, $network{$fault}, sub { $proxy->pass; } ] } sort keys %network;
push @events, [ 'restart of the warehouse', sub { restart($warehouse); } ] for 1 .. 2;
push @events, [ 'restart of the orders', sub { restart($orders); } ] for 1 .. 2;
push @events, [ 'kill -9 of the courier', sub { end_process($orders, 'KILL', $courier); } ] for 1 .. 2;
push @events, [ 'SIGTERM to the courier', sub { end_process($orders, 'TERM', $courier); } ] for 1 .. 2;
push @events, [ 'kill -9 of a session', sub { end_process($warehouse, 'KILL', $sessions); } ];
push @events, [ 'SIGTERM to a session', sub { end_process($warehouse, 'TERM', $sessions); } ] for 1 .. 3;
push @events, [ 'SIGTERM to a worker', sub { end_process($warehouse, 'TERM', $workers); } ];
@events = shuffle @events;

my $started = time();
my $events  = @events;
my ($begun, $cancelled, $abandoned) = (0, 0, 0);

foreach my $event (@events)
{
	my ($name, $break, $mend) = @$event;
	my $until;

	note sprintf('%.1f s: %s', time() - $started, $name);
	if (defined(my $n = ask($orders, 'SET ROLE app; SELECT begin_sagas(' . $begun . ', ' . (int($sagas / $events) + 1) . ')')))
	{
		$begun += $1 if $n =~ /(\d+)\s*$/;
	}
	usleep(100_000);
	$break->();
	$until = time() + PAUSE;
	while (time() < $until)
	{
		$cancelled += ask($orders, "SET ROLE app; SELECT ask_some('cancel', 1)") || 0;
		usleep(50_000);
	}
	$abandoned += ask($orders, "SET ROLE app; SELECT ask_some('abandon', 1)") || 0;
	$mend->() if $mend;
}
$proxy->pass;
foreach my $node ($orders, $warehouse)
{
	poll_sql($node,
		"SELECT coalesce(string_agg(format('%s %s %s', saga_id, status, waiting_for), ', '), 'none') FROM "
		  . '(SELECT * FROM saga.sagas WHERE finished_at IS NULL LIMIT 20) s',
		'none', 'all sagas of ' . $node->name . ' to end', timeout => 120);
}
note sprintf('%.1f s: all have ended; %d sagas, %d cancelled, %d abandoned', time() - $started, $begun, $cancelled, $abandoned);

# ---- what is there

cmp_ok($begun, '>=', $sagas, 'so many sagas');
cmp_ok($cancelled, '>', $events / 2, 'some were cancelled');
cmp_ok($abandoned, '>', 2, 'some were abandoned');
poll_sql($orders, "SELECT count(*) FROM saga.tasks WHERE status IN ('ready', 'claimed')", '0', 'no task to be left');
poll_sql($warehouse, 'SELECT count(*) FROM saga.child_report', '0', 'no report to be left');

(my $connstr = $warehouse->connstr('postgres')) =~ s/'/''/g;
$orders->safe_psql('postgres', <<"EOS");
CREATE TABLE kid AS SELECT * FROM dblink('$connstr',
    'SELECT saga_id, remote_parent_id, status::text, parcel FROM (SELECT s.*, (s.input ->> ''parcel'')::int AS parcel FROM saga.sagas s) x')
    AS t (saga_id bigint, parent bigint, status text, parcel int);
CREATE TABLE done AS SELECT * FROM dblink('$connstr', 'SELECT saga_id, step, operation, count(*) FROM shop.done GROUP BY 1, 2, 3')
    AS t (saga_id bigint, step text, operation text, n bigint);
EOS

sub audit_is
{
	my ($sql, $what) = @_;

	is($orders->safe_psql('postgres', "$sql LIMIT 10"), '', $what);
	return;
}

foreach my $status ('completed', 'compensated')
{
	cmp_ok($orders->safe_psql('postgres', "SELECT count(*) FROM saga.sagas WHERE status = '$status'"),
		'>', $sagas / 10, "sagas were $status");
}
audit_is("SELECT p.saga_id, k.* FROM saga.sagas p JOIN kid k ON k.parent = p.saga_id WHERE p.status = 'compensated' AND k.status <> 'compensated'",
	'the children of who went back went back');
audit_is("SELECT p.saga_id, p.input, k.* FROM saga.sagas p LEFT JOIN (SELECT parent, count(*) FILTER (WHERE status = 'completed') AS n, "
	  . "count(DISTINCT parcel) FILTER (WHERE status = 'completed') AS parcels, count(*) AS all FROM kid GROUP BY 1) k ON k.parent = p.saga_id "
	  . "WHERE p.status = 'completed' AND (k.n, k.parcels, k.all) IS DISTINCT FROM "
	  . "(jsonb_array_length(p.input -> 'parcels'), jsonb_array_length(p.input -> 'parcels'), jsonb_array_length(p.input -> 'parcels'))",
	'those of who has completed have completed, one for each parcel');
audit_is("SELECT t.saga_id, t.element, t.result FROM saga.steps t JOIN saga.sagas s USING (saga_id) WHERE s.status = 'completed' "
	  . "AND t.step = 'parcels' AND t.operation = 'action' AND t.result ->> 'parcel' IS DISTINCT FROM (t.element + 1)::text",
	'the result of each is its own');
audit_is("SELECT * FROM kid WHERE status NOT IN ('completed', 'compensated')", 'no child has ended otherwise');
audit_is("SELECT * FROM kid k WHERE NOT EXISTS (SELECT FROM saga.sagas p WHERE p.saga_id = k.parent)", 'each has a parent');
audit_is("SELECT * FROM done WHERE n <> 1", 'nothing was done twice');
audit_is("SELECT k.*, d.* FROM kid k LEFT JOIN done d ON d.saga_id = k.saga_id AND d.operation = 'confirmation' "
	  . "WHERE (k.status = 'completed') <> (d.n IS NOT NULL)", 'what has completed was confirmed, and nothing else');
audit_is("SELECT a.* FROM done a JOIN kid k USING (saga_id) WHERE k.status = 'compensated' AND a.operation = 'action' AND NOT EXISTS "
	  . "(SELECT FROM done c WHERE c.saga_id = a.saga_id AND c.step = a.step AND c.operation = 'compensation')",
	'what has gone back is undone');

$_->stop foreach $orders, $warehouse;
done_testing();
