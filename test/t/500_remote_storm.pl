# Three servers, of which "orders" has the sagas, and 3,000 of these or more with
# steps in all three, while backends and the courier are killed, servers are stopped
# without a chance to say goodbye, and the network between them loses, delays,
# cuts off, repeats and invents what is sent.  Some sagas fail at their last step,
# some are cancelled at work.
#
# Each effect is a row and a change of a stock, and nothing but saga keeps it from
# being there twice.  At the end all sagas are final, what they say has happened
# has happened once, nothing else has, the stocks of the three databases add up,
# and what participants remember is what they have done.
#
# What the sagas do is a function of the seed, when something breaks is not.
#
#	SAGA_SEED          the seed, if it is not to be the same one each time
#	SAGA_STORM_SAGAS   how many sagas at least (3000)
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
my $sagas = $ENV{SAGA_STORM_SAGAS} || 3000;

# While something is broken there are always so many that have not ended.
use constant TRICKLE => 30;

# What breaks is broken for so many seconds; if it is to come to pass so often,
# until it has, and at most for twice as long.
use constant PAUSE => 0.8;
my $longest = 200 + $sagas / 25;

srand($seed);
diag "SAGA_SEED=$seed";

my $orders = new_coordinator(
	'orders',
	conf => {
		'saga.workers_per_role'       => 2,
		'saga.remote_connect_timeout' => '1 s',
		'max_connections'             => 60,
		'log_min_error_statement'     => 'panic',
		'log_statement'               => 'none',
	});
my (%node, %proxy);

foreach my $name ('payments', 'warehouse')
{
	($node{$name}, $proxy{$name}) = new_remote($name);
	connect_remote($orders, $name, $proxy{$name}->port);
	$orders->safe_psql('postgres',
		"SELECT saga.configure_server('$name', breaker_failures => 4, breaker_pause => '50 ms', breaker_max_pause => '300 ms')");
}

# ---- what sagas do

# The same in each database: an effect, and so many taken from a stock or put back.
my $work = <<'EOS';
CREATE TABLE stock (id int PRIMARY KEY, n bigint NOT NULL);
INSERT INTO stock SELECT i, 100000 FROM generate_series(0, 99) i;
CREATE FUNCTION work(context jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    input constant jsonb := context -> 'input';
    operation constant text := context ->> 'operation';
    number bigint;
BEGIN
    -- so that there is something to meet
    PERFORM pg_sleep(0.02 * random());
    INSERT INTO effect (saga_id, step, element, operation, attempt, key, unknown)
    VALUES ((context ->> 'saga_id')::bigint, context ->> 'step', (context ->> 'element')::int,
        operation, (context ->> 'attempt')::int, context ->> 'idempotency_key',
        coalesce((context ->> 'outcome_unknown')::boolean, false))
    RETURNING n INTO number;
    UPDATE stock SET n = n + CASE operation WHEN 'action' THEN -1 WHEN 'compensation' THEN 1 ELSE 0 END * (input ->> 'amount')::int
    WHERE id = (input ->> 'item')::int;
    IF operation = 'action' AND input ->> 'fail' = context ->> 'step' THEN
        IF input ->> 'how' = 'fail' THEN
            PERFORM saga.fail('declined');
        END IF;
        RAISE EXCEPTION 'sold out';
    END IF;
    IF operation = 'action' AND input ->> 'later' = context ->> 'step' AND (context ->> 'attempt')::int < 2 THEN
        PERFORM saga.retry_later('10 ms', 'not yet');
    END IF;
    RETURN jsonb_build_object('n', number);
END $$;
EOS
foreach my $name (keys %node)
{
	$node{$name}->safe_psql('postgres',
		"SET ROLE shop; SET search_path = shop; $work; ALTER FUNCTION work SET search_path = shop, pg_temp");
}
as_app($orders, 'CREATE TABLE effect (n bigint GENERATED ALWAYS AS IDENTITY, saga_id bigint NOT NULL, step text NOT NULL, '
	  . "element int, operation text NOT NULL, attempt int NOT NULL, key text NOT NULL, unknown boolean NOT NULL); $work");
as_app($orders, <<'EOS');
CREATE FUNCTION patient() RETURNS jsonb LANGUAGE sql IMMUTABLE AS
    $$ SELECT saga.retry_policy(0, '20 ms', '200 ms') $$;

-- Where each step is done, to look it up at the end.
CREATE TABLE place (step text, place text);
INSERT INTO place VALUES ('order', 'orders'), ('charge', 'payments'), ('reserve', 'warehouse'), ('ship', 'warehouse'),
    ('flight', 'payments'), ('hotel', 'warehouse'), ('invoice', 'orders'),
    ('pick', 'warehouse'), ('weigh', 'orders'), ('bill', 'payments'), ('thank', 'payments');

-- one after the other
SELECT saga.define('purchase',
    saga.step('order', 'work', 'work'),
    saga.remote_step('charge', 'payments', 'shop.work', compensation => 'shop.work',
        timeout => '2 s', compensation_timeout => '2 s', retry => patient(), compensation_retry => patient()),
    saga.remote_step('reserve', 'warehouse', 'shop.work', compensation => 'shop.work',
        timeout => '2 s', compensation_timeout => '2 s', retry => patient(), compensation_retry => patient()),
    saga.remote_step('ship', 'warehouse', 'shop.work', compensation => 'shop.work',
        timeout => '2 s', compensation_timeout => '2 s', retry => patient(), compensation_retry => patient()));
-- two at a time, and confirmed
SELECT saga.define('trip',
    saga.remote_step('flight', 'payments', 'shop.work', compensation => 'shop.work', confirmation => 'shop.work', after => '{}',
        timeout => '2 s', compensation_timeout => '2 s', confirmation_timeout => '2 s',
        retry => patient(), compensation_retry => patient(), confirmation_retry => patient()),
    saga.remote_step('hotel', 'warehouse', 'shop.work', compensation => 'shop.work', after => '{}',
        timeout => '2 s', compensation_timeout => '2 s', retry => patient(), compensation_retry => patient()),
    saga.step('invoice', 'work', 'work', after => '{flight,hotel}'));
-- one for each of a list, and a pivot with something behind it
SELECT saga.define('parcels',
    saga.remote_step('pick', 'warehouse', 'shop.work', compensation => 'shop.work', foreach => 'items', parallel => 2,
        timeout => '2 s', compensation_timeout => '2 s', retry => patient(), compensation_retry => patient()),
    saga.step('weigh', 'work', 'work'),
    saga.remote_step('bill', 'payments', 'shop.work', pivot => true, timeout => '2 s', retry => patient()),
    saga.remote_step('thank', 'payments', 'shop.work', timeout => '2 s', retry => patient()));

-- A third of each; two of seven have a step (the last one, or the last before the
-- pivot: of a pivot it may be unknown whether it was done before it failed, and
-- then a person has to say) that fails for business reasons, one way or the other,
-- one of seven a last one that asks for another moment.
CREATE FUNCTION begin_sagas(first int, n int) RETURNS bigint LANGUAGE sql AS $$
    SELECT count(saga.begin(definition, jsonb_strip_nulls(jsonb_build_object(
        'item', (random() * 99)::int, 'amount', 1 + (random() * 9)::int,
        'fail', CASE WHEN kind NOT IN (1, 2) THEN NULL WHEN definition = 'parcels' THEN 'weigh' ELSE last END,
        'how', CASE WHEN kind = 1 THEN 'fail' END,
        'later', CASE WHEN kind = 3 THEN last END,
        'items', CASE WHEN definition = 'parcels' THEN (SELECT jsonb_agg(x) FROM generate_series(0, i % 4) x) END))))
    FROM (SELECT i, (ARRAY['purchase', 'trip', 'parcels'])[1 + i % 3] AS definition,
                 (ARRAY['ship', 'invoice', 'bill'])[1 + i % 3] AS last, i / 3 % 7 AS kind
          FROM generate_series(first, first + n - 1) i) s
$$;
-- Somebody has second thoughts about some that are at work.
CREATE FUNCTION cancel_some(n int) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    saga bigint;
    cancelled bigint := 0;
BEGIN
    FOR saga IN SELECT saga_id FROM saga.sagas WHERE finished_at IS NULL AND NOT compensates ORDER BY random() LIMIT n LOOP
        BEGIN
            PERFORM saga.cancel(saga, 'second thoughts');
            cancelled := cancelled + 1;
        EXCEPTION WHEN OTHERS THEN
            -- it has ended, or is behind its pivot
        END;
    END LOOP;
    RETURN cancelled;
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

sub end_courier
{
	my ($signal) = @_;
	my $pid = ask($orders, "SELECT min(pid) FROM pg_stat_activity WHERE backend_type = 'saga courier'") or return;

	return restart_after($orders, sub { kill 'KILL', $pid }, 'the kill of the courier') if $signal eq 'KILL';
	kill $signal, $pid;
	return;
}

# One that is at work, if there is one.
sub kill_backend
{
	my ($node) = @_;
	my $pid = ask($node, "SELECT pid FROM pg_stat_activity WHERE usename = 'shop' ORDER BY state = 'active' DESC LIMIT 1") or return;

	restart_after($node, sub { kill 'KILL', $pid }, 'the kill of a backend');
	return;
}

sub terminate_backends
{
	my ($node) = @_;

	ask($node, "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = 'shop'");
	return;
}

my $garbage = join('', map { chr(rand 256) } 1 .. 5000);

# What is done to the network.  Those that return a rule are met TIMES times.
use constant TIMES => 6;

sub call_rule
{
	my ($proxy, $do, %rule) = @_;

	return $proxy->rule(
		from  => 'client',
		match => '"operation": "',
		do    => $do,
		skip  => int(rand 5),
		times => TIMES,
		%rule);
}

my %network = (
	'cut'               => sub { $_[0]->cut; },
	'refuse'            => sub { $_[0]->refuse; $_[0]->cut; },
	'ignore'            => sub { $_[0]->ignore; $_[0]->cut; },
	'lose requests'     => sub { $_[0]->swallow('client'); },
	'lose answers'      => sub { $_[0]->swallow('server'); },
	'lose both'         => sub { $_[0]->swallow('both'); },
	'hold answers'      => sub { $_[0]->hold('server'); },
	'delay'             => sub { $_[0]->delay(0.02); },
	'lose commits'      => sub { return call_rule($_[0], 'lose'); },
	'cut before a call' => sub { return call_rule($_[0], 'cut'); },
	'cut at an answer'  => sub { return call_rule($_[0], 'cut', from => 'server', match => '^C', skip => int(rand 50)); },
	'truncate'          => sub { return call_rule($_[0], 'truncate', bytes => int(rand 200)); },
	'repeat requests'   => sub { return call_rule($_[0], 'duplicate'); },
	'repeat answers'    => sub { return call_rule($_[0], 'duplicate', direction => 'server'); },
	'repeat rows'       => sub { return call_rule($_[0], 'duplicate', from => 'server', match => '^D', skip => int(rand 20)); },
	'garbage'           => sub { return call_rule($_[0], 'answer', tail => $garbage); },
);

# What happens, one after the other.  Each returns what stops it, and what tells
# that it has come to pass, if there is such a thing.
my @events;
foreach my $name (sort keys %node)
{
	my $proxy = $proxy{$name};

	foreach my $fault (sort keys %network)
	{
		push @events, [ "$name: $fault", sub {
			my $rule = $network{$fault}->($proxy);

			return (sub { $proxy->pass; },
				defined $rule ? sub { return $proxy->hits($rule) >= TIMES; } : undef);
		} ];
	}
	push @events, [ "$name: immediate restart", sub { restart($node{$name}); return; } ] for 1 .. 2;
	push @events, [ "$name: kill -9 of a backend", sub { kill_backend($node{$name}); return; } ] for 1 .. 2;
	push @events, [ "$name: end of all backends", sub { terminate_backends($node{$name}); return; } ];
}
push @events, [ 'orders: immediate restart', sub { restart($orders); return; } ] for 1 .. 2;
push @events, [ 'orders: kill -9 of the courier', sub { end_courier('KILL'); return; } ] for 1 .. 3;
push @events, [ 'orders: SIGTERM to the courier', sub { end_courier('TERM'); return; } ] for 1 .. 3;
push @events, [ 'all: immediate restart', sub {
	$_->stop('immediate') foreach $orders, values %node;
	$_->start foreach values %node, $orders;
	return;
} ];
@events = shuffle @events;

my $started   = time();
my $events    = @events;
my $begun     = 0;
my $cancelled = 0;
my $met       = 0;
my ($current, $stop, $enough, $since);

sub begin_sagas
{
	my ($n) = @_;
	my $random = ($seed * 7919 + $begun) % 1000;
	my $done = ask($orders, "SELECT setseed(0.$random); SET ROLE app; SELECT begin_sagas($begun, $n)");

	$begun += $1 if defined $done && $done =~ /(\d+)\s*$/;
	return;
}

while (1)
{
	my $left = ask($orders, 'SELECT count(*) FROM saga.saga WHERE due_at IS NOT NULL');

	if (time() - $started > $longest)
	{
		diag ask($orders, "SELECT string_agg(s::text, E'\\n') FROM (SELECT saga_id, definition, status, step, waiting_for, error "
			  . 'FROM saga.sagas WHERE finished_at IS NULL LIMIT 20) s') || 'orders does not answer';
		diag ask($orders, "SELECT string_agg(s::text, E'\\n') FROM saga.servers s") || '';
		die 'the storm does not end';
	}

	# what is broken is mended, and the next thing breaks
	if ($current)
	{
		my $for = time() - $since;
		my $is_enough = $enough && $enough->();

		$met++ if $is_enough;
		if ($is_enough || $for >= PAUSE * ($enough ? 2 : 1))
		{
			$stop->() if $stop;
			undef $current;
		}
	}
	if (!defined $left)
	{
		usleep(50_000);
		next;
	}
	last if $left == 0 && !@events && !$current;
	if (!$current && @events)
	{
		begin_sagas(int($sagas / $events) + 1);
		$current = shift @events;
		note sprintf('%.1f s: %s (%d begun, %d left)', time() - $started, $current->[0], $begun, $left);
		($stop, $enough) = $current->[1]->();
		$since = time();
	}
	elsif ($current && $left < TRICKLE)
	{
		begin_sagas(TRICKLE);
	}
	$cancelled += ask($orders, 'SET ROLE app; SELECT cancel_some(2)') || 0 if $current;
	usleep(50_000);
}
note sprintf('%.1f s: all have ended; %d sagas, %d cancelled', time() - $started, $begun, $cancelled);

# ---- what is there

sub audit_is
{
	my ($sql, $expected, $what) = @_;

	is($orders->safe_psql('postgres', $sql), $expected, $what);
	return;
}

audit_is("SELECT status, count(*) FROM saga.sagas WHERE status NOT IN ('completed', 'compensated') GROUP BY 1",
	'', 'all sagas have ended');
audit_is("SELECT status, count(*) FROM saga.tasks WHERE status IN ('ready', 'claimed') GROUP BY 1", '', 'no call is left');
audit_is('SELECT count(*) FROM saga.message', '0', 'no message is left');

# everything into one database
$orders->safe_psql('postgres', <<'EOS');
CREATE TABLE effects AS SELECT 'orders' AS place, * FROM effect;
CREATE TABLE stocks AS SELECT 'orders' AS place, * FROM stock;
CREATE TABLE barriers (place text, token uuid, element int, operation text, void boolean, step text, role_name text);
EOS
foreach my $name (sort keys %node)
{
	(my $connstr = $node{$name}->connstr('postgres')) =~ s/'/''/g;
	$orders->safe_psql('postgres', <<"EOS");
INSERT INTO effects SELECT '$name', * FROM dblink('$connstr', 'SELECT * FROM shop.effect')
    AS t (n bigint, saga_id bigint, step text, element int, operation text, attempt int, key text, unknown boolean);
INSERT INTO stocks SELECT '$name', * FROM dblink('$connstr', 'SELECT * FROM shop.stock') AS t (id int, n bigint);
INSERT INTO barriers SELECT '$name', * FROM dblink('$connstr', 'SELECT token, element, operation::text, void, step, role_name FROM saga.barrier')
    AS t (token uuid, element int, operation text, void boolean, step text, role_name text);
EOS
}
$orders->safe_psql('postgres', <<'EOS');
CREATE TABLE said AS
    SELECT p.place, t.saga_id, t.step, coalesce(t.element, -1) AS element, t.operation::text, t.status::text, t.attempts,
        (t.result ->> 'n')::bigint AS answer
    FROM saga.steps t JOIN saga.sagas s USING (saga_id) JOIN place p ON p.step = t.step;
CREATE TABLE done AS
    SELECT place, saga_id, step, coalesce(element, -1) AS element, operation, count(*) AS n, min(n) AS first, max(n) AS last
    FROM effects GROUP BY 1, 2, 3, 4, 5;
CREATE TABLE remembered AS
    SELECT b.place, s.id AS saga_id, b.step, b.element, b.operation, b.void, b.role_name FROM barriers b LEFT JOIN saga.saga s USING (token);
ANALYZE said, done, remembered;
EOS

# the storm was one
cmp_ok($begun, '>=', $sagas, 'so many sagas');
foreach my $status ('completed', 'compensated')
{
	cmp_ok($orders->safe_psql('postgres', "SELECT count(*) FROM saga.sagas WHERE status = '$status'"),
		'>', $sagas / 10, "sagas were $status");
}
cmp_ok($cancelled, '>', $events, 'some were cancelled');
cmp_ok($met, '>', 10, 'the network broke where it should');
cmp_ok($orders->safe_psql('postgres', "SELECT count(*) FROM saga.attempts WHERE sqlstate LIKE '08%'"), '>', 10, 'connections were lost');
cmp_ok($orders->safe_psql('postgres', 'SELECT count(*) FROM said JOIN done USING (place, saga_id, step, element, operation) '
		  . "WHERE place <> 'orders' AND attempts > 1"), '>', 10, 'operations succeeded at a later attempt');

# what happened, and what saga says
my $key = '(place, saga_id, step, element, operation)';
audit_is("SELECT place, saga_id, step, element, operation, n FROM done WHERE n > 1 LIMIT 10", '', 'no effect is there twice');
# a compensation may have had nothing to undo
audit_is("SELECT s.* FROM said s LEFT JOIN done d USING $key WHERE s.status = 'succeeded' AND d.n IS NULL AND NOT (s.operation = 'compensation' "
	  . "AND NOT EXISTS (SELECT FROM done a WHERE a.operation = 'action' AND (a.saga_id, a.step, a.element) = (s.saga_id, s.step, s.element))) LIMIT 10",
	'', 'each operation that has succeeded has its effect');
# an action may have had one that nobody knew of when it was undone
audit_is("SELECT d.* FROM done d LEFT JOIN said s USING $key WHERE s.status IS DISTINCT FROM 'succeeded' AND NOT (d.operation = 'action' "
	  . "AND EXISTS (SELECT FROM done c WHERE c.operation = 'compensation' AND (c.saga_id, c.step, c.element) = (d.saga_id, d.step, d.element))) LIMIT 10",
	'', 'there is no effect of another, unless it was undone');
audit_is('SELECT count(*) FROM (SELECT FROM effects GROUP BY place, saga_id, step, element, operation HAVING count(DISTINCT key) <> 1) k',
	'0', 'one idempotency key for an operation');
audit_is('SELECT count(DISTINCT key) = count(*) FROM effects', 't', '... which is its own');
audit_is("SELECT a.* FROM done a JOIN saga.sagas s USING (saga_id) WHERE s.status = 'compensated' AND a.operation = 'action' AND NOT EXISTS "
	  . "(SELECT FROM done c WHERE c.operation = 'compensation' AND (c.saga_id, c.step, c.element) = (a.saga_id, a.step, a.element)) LIMIT 10",
	'', 'all that a compensated saga has done is undone');
audit_is("SELECT c.* FROM done c WHERE c.operation = 'compensation' AND NOT EXISTS (SELECT FROM done a WHERE a.operation = 'action' "
	  . 'AND (c.saga_id, c.step, c.element) = (a.saga_id, a.step, a.element) AND a.last < c.first) LIMIT 10',
	'', 'nothing else is, and nothing before it was done');
audit_is("SELECT c.* FROM done c JOIN saga.sagas s USING (saga_id) WHERE c.operation = 'compensation' AND s.status = 'completed' LIMIT 10",
	'', '... and nothing of a completed one');
audit_is("SELECT saga_id, definition, input FROM saga.sagas LEFT JOIN (SELECT saga_id, count(*) AS n FROM done GROUP BY 1) d USING (saga_id) "
	  . "WHERE status = 'completed' AND n IS DISTINCT FROM CASE definition WHEN 'parcels' THEN 3 + jsonb_array_length(input -> 'items') ELSE 4 END LIMIT 10",
	'', 'a completed one has done all that it has to');
audit_is("SELECT s.* FROM said s JOIN done d USING $key WHERE operation = 'action' AND s.status = 'succeeded' AND s.answer IS DISTINCT FROM d.last LIMIT 10",
	'', 'an answer is that of its own effect');

# ---- sums

audit_is("SELECT st.place, st.id, st.n, 100000 - coalesce(t.n, 0) FROM stocks st LEFT JOIN "
	  . "(SELECT d.place, (s.input ->> 'item')::int AS id, sum((s.input ->> 'amount')::int) AS n "
	  . "FROM saga.sagas s JOIN done d USING (saga_id) WHERE s.status = 'completed' AND d.operation = 'action' GROUP BY 1, 2) t "
	  . 'USING (place, id) WHERE st.n <> 100000 - coalesce(t.n, 0)',
	'', 'each stock is what completed sagas have left');
audit_is("SELECT p.sold, w.sold, s.* FROM "
	  . "(SELECT sum(100000 - n) AS sold FROM stocks WHERE place = 'payments') p, "
	  . "(SELECT sum(100000 - n) AS sold FROM stocks WHERE place = 'warehouse') w, "
	  . "(SELECT sum(CASE definition WHEN 'parcels' THEN 2 ELSE 1 END * (input ->> 'amount')::int) AS payments, "
	  . "sum(CASE definition WHEN 'purchase' THEN 2 WHEN 'trip' THEN 1 ELSE jsonb_array_length(input -> 'items') END * (input ->> 'amount')::int) AS warehouse "
	  . "FROM saga.sagas WHERE status = 'completed') s WHERE p.sold <> s.payments OR w.sold <> s.warehouse",
	'', 'the three databases add up');

# ---- what participants remember

audit_is('SELECT count(*) FROM remembered WHERE saga_id IS NULL', '0', 'participants know of no other sagas');
audit_is('SELECT DISTINCT role_name FROM remembered', 'shop', '... and of no other role');
audit_is("SELECT d.* FROM done d LEFT JOIN remembered r USING $key WHERE d.place <> 'orders' AND r.void IS DISTINCT FROM false LIMIT 10",
	'', 'each effect is remembered');
# a compensation without an action is remembered, and does nothing
audit_is("SELECT r.* FROM remembered r LEFT JOIN done d USING $key WHERE NOT r.void AND d.n IS NULL AND NOT (r.operation = 'compensation' "
	  . "AND EXISTS (SELECT FROM remembered a WHERE a.operation = 'action' AND a.void AND (a.saga_id, a.step, a.element) = (r.saga_id, r.step, r.element))) LIMIT 10",
	'', 'what is remembered was done');

note $orders->safe_psql('postgres',
	"SELECT string_agg(format('%s %s', n, sqlstate), ', ' ORDER BY n DESC) FROM (SELECT sqlstate, count(*) AS n FROM saga.attempts GROUP BY 1) t");
note $orders->safe_psql('postgres', "SELECT string_agg(format('%s: %s calls, %s lost, %s unreachable', server, calls, lost, unreachable), '; ') FROM saga.servers");

$_->stop foreach $orders, values %node;
done_testing();
