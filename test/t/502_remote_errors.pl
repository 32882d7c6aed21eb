# What goes wrong between databases, one thing at a time: errors of the other side
# arrive whole and are classified as local ones; what settings forbid fails at
# once and works when they are mended; a function that takes too long is cancelled
# there; a read-only standby is tried again; where the extension is not there
# answers that are lost are unknown; and a server that hangs or is away delays its
# own steps only, which people can still cancel, pause and abandon.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use SagaProxy;
use SagaRemote;
use SagaTest;
use Test::More;
use Time::HiRes qw(time usleep);

my $orders = new_coordinator(
	'orders',
	conf => {
		'saga.remote_connections_per_server' => 4,
		'saga.remote_idle_timeout'           => '2 s',
		'saga.remote_connect_timeout'        => '2 s',
		'saga.step_timeout'                  => '1 min',
	});
# warehouse has no extension: calls there are made at least once; nor does it have
# all of our characters
my ($payments, $proxy) = new_remote('payments', allows_streaming => 1);
my ($warehouse, $other) = new_remote('warehouse', saga => 0, encoding => 'LATIN9');
my $port = $proxy->port;

connect_remote($orders, 'payments', $port);
connect_remote($orders, 'warehouse', $other->port, wrapper => 'dblink_fdw');
$orders->safe_psql('postgres', "SELECT saga.configure_server('payments', breaker_failures => 0), saga.configure_server('warehouse', breaker_failures => 0)");

my $functions = <<'EOS';
SET client_encoding = 'UTF8';
CREATE FUNCTION shop.inner_fail(what text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'cannot sell "%"', what USING ERRCODE = 'SH001',
        DETAIL = 'It was sold yesterday.', HINT = 'Come back tomorrow.';
END $$;
CREATE FUNCTION shop.raise_whole(context jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM shop.write_effect(context), shop.inner_fail(context #>> '{input,what}');
END $$;
-- Raises what the input says, the first two times.
CREATE SEQUENCE shop.calls;
CREATE FUNCTION shop.raise_state(context jsonb) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    IF (context ->> 'attempt')::int <= 2 THEN
        RAISE EXCEPTION USING ERRCODE = context #>> '{input,sqlstate}', MESSAGE = 'on purpose';
    END IF;
    PERFORM shop.write_effect(context);
    RETURN 'done';
END $$;
CREATE FUNCTION shop.slow(context jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM shop.write_effect(context), pg_sleep(600);
END $$;
CREATE FUNCTION shop.swallow(context jsonb) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    PERFORM shop.write_effect(context);
    LOOP
        BEGIN
            PERFORM pg_sleep(600);
        EXCEPTION WHEN query_canceled THEN
            -- never mind
        END;
    END LOOP;
END $$;
CREATE FUNCTION shop.nothing(context jsonb) RETURNS void LANGUAGE sql AS '';
CREATE FUNCTION shop.return_null(context jsonb) RETURNS int LANGUAGE sql AS 'SELECT NULL::int';
CREATE FUNCTION shop.return_array(context jsonb) RETURNS numeric[] LANGUAGE sql AS 'SELECT ARRAY[1.50, 2]';
CREATE TYPE shop.thing AS (name text, at date);
CREATE FUNCTION shop.return_row(context jsonb) RETURNS shop.thing LANGUAGE sql AS $$ SELECT 'a "b" \c ü€', date '2020-02-29' $$;
CREATE FUNCTION shop.echo(context jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT context -> 'input' $$;
CREATE FUNCTION shop."Weird ""Na.me"(context jsonb) RETURNS text LANGUAGE sql AS $$ SELECT 'weird' $$;
CREATE FUNCTION shop.closed(context jsonb) RETURNS text LANGUAGE sql AS $$ SELECT 'open' $$;
EOS
foreach my $node ($payments, $warehouse)
{
	$node->safe_psql('postgres', "SET ROLE shop; $functions");
	$node->safe_psql('postgres', 'CREATE FUNCTION shop.forbidden(context jsonb) RETURNS void LANGUAGE sql AS \'\'; '
		  . 'REVOKE EXECUTE ON FUNCTION shop.forbidden(jsonb) FROM PUBLIC');
}
$payments->safe_psql('postgres', <<'EOS');
SET ROLE shop;
CREATE FUNCTION shop.give_up(context jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM shop.write_effect(context);
    BEGIN
        PERFORM saga.fail('never', '{"limit": 3}');
    EXCEPTION WHEN OTHERS THEN
        -- that changes nothing
        NULL;
    END;
END $$;
CREATE FUNCTION shop.later(context jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
    IF (context ->> 'attempt')::int < 3 THEN
        PERFORM saga.retry_later('20 ms', 'not yet');
    END IF;
    RETURN shop.act(context);
END $$;
EOS

as_app($orders, <<'EOS');
CREATE FUNCTION refuse() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock_shared(8);
    RAISE 'no';
END $$;
CREATE FUNCTION quick(attempts int) RETURNS jsonb LANGUAGE sql IMMUTABLE AS
    $$ SELECT saga.retry_policy(attempts, '20 ms', '100 ms') $$;
-- Each function as a definition, on both servers, tried three times.
SELECT saga.define(f || ' at ' || s, saga.remote_step('do', s, 'shop.' || quote_ident(f), retry => quick(3)))
FROM unnest(ARRAY['act', 'raise_whole', 'raise_state', 'nothing', 'return_null', 'return_array', 'return_row', 'echo',
                  'Weird "Na.me', 'closed', 'missing', 'forbidden', 'give_up', 'later']) f,
    unnest(ARRAY['payments', 'warehouse']) s;
-- Some for as long as it takes.
SELECT saga.define('patient at ' || s, saga.remote_step('do', s, 'shop.act', retry => quick(0), timeout => '20 s'))
FROM unnest(ARRAY['payments', 'warehouse']) s;
SELECT saga.define('slow at ' || s, saga.remote_step('do', s, 'shop.slow', retry => quick(2), timeout => '300 ms'))
FROM unnest(ARRAY['payments', 'warehouse']) s;
SELECT saga.define('swallow at ' || s, saga.remote_step('do', s, 'shop.swallow', retry => quick(1), timeout => '300 ms'))
FROM unnest(ARRAY['payments', 'warehouse']) s;
SELECT saga.define('undone at ' || s,
    saga.remote_step('do', s, 'shop.act', compensation => 'shop.act', retry => quick(1), compensation_retry => quick(0)),
    saga.step('refuse', 'refuse'))
FROM unnest(ARRAY['payments', 'warehouse']) s;
EOS

sub attempts
{
	my ($id) = @_;

	return $orders->safe_psql('postgres',
		"SELECT string_agg(concat_ws(' ', attempt, outcome, sqlstate), ', ' ORDER BY attempt) FROM saga.attempts WHERE saga_id = $id");
}

# Begin one and wait for its end; its id.
sub run_saga
{
	my ($definition, $input, $status) = @_;
	my $id = begin_saga($orders, $definition, $input);

	poll_saga($orders, $id, $status || 'completed', "a saga \"$definition\"");
	return $id;
}

sub result
{
	my ($id) = @_;

	return $orders->safe_psql('postgres', "SELECT result FROM saga.steps WHERE saga_id = $id AND step = 'do' AND operation = 'action'");
}

sub waits_for
{
	my ($id, $pattern, $what) = @_;

	poll_sql($orders, "SELECT waiting_for FROM saga.steps WHERE saga_id = $id AND step = 'do'", $pattern, $what);
	return;
}

sub server_is
{
	my ($columns, $expected, $what, $server) = @_;

	$server ||= 'payments';
	is(as_app($orders, "SELECT $columns FROM saga.servers WHERE server = '$server'"), $expected, $what);
	return;
}

sub poll_server
{
	my ($columns, $expected, $what, $server) = @_;

	$server ||= 'payments';
	poll_sql($orders, "SET ROLE app; SELECT $columns FROM saga.servers WHERE server = '$server'", $expected, $what);
	pass($what);
	return;
}

# ---- errors and answers

foreach my $server ('payments', 'warehouse')
{
	my $id = run_saga("raise_whole at $server", '{"what": "näil"}', 'compensated');

	is($orders->safe_psql('postgres', "SELECT outcome, passing, sqlstate, message, detail, hint FROM saga.attempts WHERE saga_id = $id"),
		'failed|f|SH001|cannot sell "näil"|It was sold yesterday.|Come back tomorrow.', "$server: an error arrives whole");
	like($orders->safe_psql('postgres', "SELECT context FROM saga.attempts WHERE saga_id = $id"),
		qr/PL\/pgSQL function inner_fail\(text\) line 3 at RAISE.*function raise_whole\(jsonb\)/s, '... with its context');
	is(effects_of($server eq 'payments' ? $payments : $warehouse, $id, 'action'), 0, '... and nothing remains of the call');

	foreach my $state ('40001', '53300', '55P03', '57014', '08006', '25006')
	{
		$id = run_saga("raise_state at $server", qq({"sqlstate": "$state"}));
		is(attempts($id), "1 failed $state, 2 failed $state", "$server: $state is tried again");
	}
	foreach my $state ('22012', '23505', 'P0001', '42P01', 'XX000')
	{
		$id = run_saga("raise_state at $server", qq({"sqlstate": "$state"}), 'compensated');
		is(attempts($id), "1 failed $state", "$server: $state is final");
	}

	is(result(run_saga("nothing at $server")), '', "$server: no answer");
	is(result(run_saga("return_null at $server")), '', "$server: NULL");
	is(result(run_saga("return_array at $server")), '[1.50, 2]', "$server: an array");
	is(result(run_saga("return_row at $server")), '{"at": "2020-02-29", "name": "a \"b\" \\\\c ü€"}', "$server: a row");
	my $odd = q({"a'b": "c\"d\\\\e $1 %s \u20ac \n"});
	is($orders->safe_psql('postgres', 'SELECT result = input FROM saga.sagas WHERE saga_id = ' . run_saga("echo at $server", $odd)),
		't', "$server: anything goes there and comes back");
	is(result(run_saga(qq(Weird "Na.me at $server))), '"weird"', "$server: a function of any name");

	$id = run_saga("missing at $server", '{}', 'compensated');
	is(attempts($id), '1 failed 42883', "$server: no such function");
	like($orders->safe_psql('postgres', "SELECT message FROM saga.attempts WHERE saga_id = $id"), qr/shop\.missing/, '... it is named');
	is(attempts(run_saga("forbidden at $server", '{}', 'compensated')), '1 failed 42501', "$server: no privilege for the function");
}

my $id = run_saga('echo at warehouse', '{"snow": "\u2603"}', 'compensated');
is(attempts($id), '1 failed 22P05', 'a character that is not there is an error');

# what needs the extension
$id = run_saga('give_up at payments', '{}', 'compensated');
is($orders->safe_psql('postgres', "SELECT outcome, sqlstate, message, detail FROM saga.attempts WHERE saga_id = $id"),
	'failed|SG001|never|{"limit": 3}', 'saga.fail() there ends the step for good, and cannot be swallowed');
is(effects_of($payments, $id, 'action'), 0, '... and nothing remains of the call');
$id = run_saga('later at payments');
is($orders->safe_psql('postgres', "SELECT attempts, failures FROM saga.steps WHERE saga_id = $id"), '3|0',
	'saga.retry_later() there asks for another moment, which is no failure');
is(attempts(run_saga('later at warehouse', '{}', 'compensated')), '1 failed 42883', 'without the extension there is neither');

server_is('once, saga_version, failed > 0, lost, breaker, last_call <= now()', 't|1.0|t|0|closed|t', 'saga.servers: once');
server_is('once, saga_version, failed > 0, lost, breaker, last_call <= now()', 'f||t|0|closed|t', '... and at least once', 'warehouse');
is(as_app($orders, "SELECT count(*) FROM saga.servers WHERE role = 'app' AND latency_p50 > '0' AND latency_p50 <= latency_p99"),
	'2', '... with latencies');
is(as_app($orders, "SELECT kind FROM saga.definition_steps WHERE definition = 'act at payments'"), 'remote', 'the kind of step is shown');

# ---- a function that takes too long

foreach my $server ('payments', 'warehouse')
{
	my $node = $server eq 'payments' ? $payments : $warehouse;

	$id = run_saga("slow at $server", '{}', 'compensated');
	is(attempts($id), '1 timeout 57014, 2 timeout 57014', "$server: a call that takes too long fails, and is tried again");
	is($node->safe_psql('postgres', "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND usename = 'shop'"),
		'0', '... it is cancelled there');
	is(effects_of($node, $id, 'action'), 0, '... nothing remains of it');

	# the cancel is swallowed there: its session is ended
	$id = begin_saga($orders, "swallow at $server");
	poll_sql($node, "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND usename = 'shop'", '1', 'the call');
	is(result(run_saga("return_array at $server")), '[1.50, 2]', "$server: others go on while a call swallows its cancel");
	poll_saga($orders, $id, 'compensated', 'the end of it');
	is(attempts($id), '1 timeout 08007', '... nobody knows what it did');
	poll_sql($node, "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND usename = 'shop'", '0', 'its end there');
	is(effects_of($node, $id, 'action'), 0, '... and nothing remains of it');
}

# ---- settings, and what they are changed to

my $secret = password_of('payments');
$secret =~ s/'/''/g;

# What $break breaks fails with that SQLSTATE, at once; after $mend it works.
sub broken_ok
{
	my ($break, $mend, $state, $what) = @_;

	$orders->safe_psql('postgres', $break);
	my $id = run_saga('act at payments', '{}', 'compensated');
	is(attempts($id), "1 failed $state", "$what: it fails with $state, for good");
	is(effects_of($payments, $id, 'action'), 0, '... before it is done');
	$orders->safe_psql('postgres', $mend);
	is(attempts(run_saga('act at payments')), '', '... and works when that is mended');
	return;
}

broken_ok("ALTER USER MAPPING FOR app SERVER payments OPTIONS (SET password 'wrong')",
	"ALTER USER MAPPING FOR app SERVER payments OPTIONS (SET password '$secret')", '28P01', 'a wrong password');
broken_ok("ALTER USER MAPPING FOR app SERVER payments OPTIONS (DROP password)",
	"ALTER USER MAPPING FOR app SERVER payments OPTIONS (ADD password '$secret')", '2F003', 'no password');
broken_ok('DROP USER MAPPING FOR app SERVER payments',
	"CREATE USER MAPPING FOR app SERVER payments OPTIONS (user 'shop', password '$secret')", '42704', 'no mapping');
broken_ok('REVOKE USAGE ON FOREIGN SERVER payments FROM app', 'GRANT USAGE ON FOREIGN SERVER payments TO app', '42501', 'no right to the server');
broken_ok("ALTER SERVER payments OPTIONS (SET dbname 'nowhere')", "ALTER SERVER payments OPTIONS (SET dbname 'postgres')", '3D000', 'no such database');
broken_ok('DROP SERVER payments CASCADE',
	"CREATE SERVER payments FOREIGN DATA WRAPPER dblink_fdw OPTIONS (host '127.0.0.1', port '$port', dbname 'postgres'); "
	  . "GRANT USAGE ON FOREIGN SERVER payments TO app; CREATE USER MAPPING FOR app SERVER payments OPTIONS (user 'shop', password '$secret')",
	'42704', 'no server');
# a server of postgres_fdw is as good
broken_ok('ALTER SERVER payments RENAME TO elsewhere',
	"CREATE EXTENSION postgres_fdw; CREATE SERVER payments FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '127.0.0.1', port '$port', dbname 'postgres', fetch_size '10'); "
	  . "GRANT USAGE ON FOREIGN SERVER payments TO app; CREATE USER MAPPING FOR app SERVER payments OPTIONS (user 'shop', password '$secret')",
	'42704', 'a server of another name');

# the password changes there while a connection is open here: it goes on until it is closed
$payments->safe_psql('postgres', "ALTER ROLE shop PASSWORD 'another'");
is(attempts(run_saga('act at payments')), '', 'a connection that is open goes on');
$proxy->cut;
is(attempts(run_saga('act at payments', '{}', 'compensated')), '1 failed 28P01', '... and is made anew with what the mapping says');
$orders->safe_psql('postgres', "ALTER USER MAPPING FOR app SERVER payments OPTIONS (SET password 'another')");
is(attempts(run_saga('act at payments')), '', '... which is changed');
$payments->safe_psql('postgres', "ALTER ROLE shop PASSWORD '$secret'");
$orders->safe_psql('postgres', "ALTER USER MAPPING FOR app SERVER payments OPTIONS (SET password '$secret')");

# options that change nothing but the connection
$orders->safe_psql('postgres', "ALTER SERVER payments OPTIONS (ADD application_name 'renewed')");
run_saga('act at payments');
is($payments->safe_psql('postgres', "SELECT DISTINCT application_name FROM pg_stat_activity WHERE usename = 'shop'"),
	'renewed', 'connections are renewed when options change');
# with a call in flight
shut_gate($payments, 'gate', 'SELECT pg_advisory_xact_lock(7)');
$id = begin_saga($orders, 'patient at payments', '{"gate": 7}');
poll_sql($payments, "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'advisory'", '1', 'the call in flight');
$orders->safe_psql('postgres', "ALTER SERVER payments OPTIONS (SET application_name 'again')");
my $next = run_saga('act at payments');
is($payments->safe_psql('postgres', "SELECT string_agg(DISTINCT application_name, ',' ORDER BY application_name) FROM pg_stat_activity WHERE usename = 'shop'"),
	'again,renewed', '... and what is in flight is left alone');
open_gate($payments, 'gate');
poll_saga($orders, $id, 'completed', 'the call that was in flight');
is(attempts($id), '', '... to its end');
poll_sql($payments, "SELECT count(*) FROM pg_stat_activity WHERE usename = 'shop' AND application_name = 'renewed'", '0', 'the old connection to go');
$orders->safe_psql('postgres', 'ALTER SERVER payments OPTIONS (DROP application_name)');

# ---- a read-only standby

$payments->backup('backup');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($payments, 'backup', has_streaming => 1);
$standby->start;
$payments->wait_for_catchup($standby, 'replay');
$orders->safe_psql('postgres', 'ALTER SERVER payments OPTIONS (SET port \'' . $standby->port . '\')');
$id = begin_saga($orders, 'patient at payments');
poll_sql($orders, "SELECT count(*) > 1 FROM saga.attempts WHERE saga_id = $id", 't', 'attempts at the standby');
is($orders->safe_psql('postgres', "SELECT DISTINCT outcome, passing, sqlstate FROM saga.attempts WHERE saga_id = $id"),
	'failed|t|25006', 'a read-only standby refuses for now');
is($orders->safe_psql('postgres', "SET ROLE app; SELECT reachable, once, in_recovery, error FROM saga.check_server('payments')"),
	't|t|t|', 'saga.check_server() says that it is one');
$orders->safe_psql('postgres', "ALTER SERVER payments OPTIONS (SET port '$port')");
poll_saga($orders, $id, 'completed', 'the saga to be done at the primary');
is(effects_of($payments, $id, 'action'), 1, '... and is done when the server is the primary');
is($orders->safe_psql('postgres', "SET ROLE app; SELECT reachable, once, in_recovery, error FROM saga.check_server('payments')"),
	't|t|f|', 'saga.check_server() sees it');
$standby->stop;

# ---- at least once: an answer that is lost

my $rule = $other->rule(from => 'client', match => '"operation": "action"', do => 'lose');
$id = run_saga('patient at warehouse');
is($warehouse->safe_psql('postgres', "SELECT count(*), count(DISTINCT key) FROM shop.effect WHERE saga_id = $id"),
	'2|1', 'at least once: a call whose answer is lost is made again, with the same key');
like(attempts($id), qr/^1 \w+ 08007$/, '... since nobody knows');

$rule = $other->rule(from => 'client', match => '"operation": "action"', do => 'lose');
$id = run_saga('undone at warehouse', '{}', 'compensated');
is($warehouse->safe_psql('postgres', "SELECT string_agg(operation || ' ' || unknown, ', ' ORDER BY n) FROM shop.effect WHERE saga_id = $id"),
	'action false, compensation true', 'a compensation of what may have been done is told so');
like(attempts($id), qr/^1 \w+ 08007/, '... and why');
$rule = $other->rule(from => 'client', match => '"operation": "action"', do => 'cut');
$id = run_saga('undone at warehouse', '{}', 'compensated');
is($warehouse->safe_psql('postgres', "SELECT string_agg(operation || ' ' || unknown, ', ' ORDER BY n) FROM shop.effect WHERE saga_id = $id"),
	'compensation true', '... and it was not: the compensation is called all the same');
server_is('lost > 1', 't', 'saga.servers counts answers that were lost', 'warehouse');

# with the extension that is nothing
$rule = $proxy->rule(from => 'client', match => '"operation": "action"', do => 'lose');
$id = run_saga('act at payments');
is($payments->safe_psql('postgres', "SELECT count(*) FROM shop.effect WHERE saga_id = $id"), '1', 'once: an answer that is lost is asked for again');
is(attempts($id), '', '... in the same attempt');
$rule = $proxy->rule(from => 'client', match => '"operation": "action"', do => 'lose');
$id = run_saga('undone at payments', '{}', 'compensated');
is($payments->safe_psql('postgres', "SELECT string_agg(operation || ' ' || unknown, ', ' ORDER BY n) FROM shop.effect WHERE saga_id = $id"),
	'action false, compensation false', '... so nothing is unknown');
# always: then it is unknown, after some tries
$rule = $proxy->rule(from => 'client', match => '"operation": "action"', do => 'lose', times => 1000);
$id = begin_saga($orders, 'undone at payments');
poll_saga($orders, $id, 'compensated', 'a saga whose answers are all lost');
is($payments->safe_psql('postgres', "SELECT string_agg(operation, ', ' ORDER BY n) FROM shop.effect WHERE saga_id = $id"),
	'action, compensation', 'answers that are always lost: it is undone');
like(attempts($id), qr/^1 \w+ 08007/, '... since nobody knew');
cmp_ok($proxy->hits($rule), '<', 10, '... after some tries');
$proxy->pass;

# ---- a server that hangs

foreach my $way ('ignore', 'hold', 'swallow')
{
	# so that it has a connection to lose, or has none
	$proxy->cut if $way eq 'ignore';
	run_saga('act at payments') if $way ne 'ignore';
	$proxy->$way;
	my @hanging = map { begin_saga($orders, 'patient at payments') } 1 .. 8;
	poll_sql($orders, 'SELECT count(DISTINCT saga_id) FROM saga.tasks WHERE saga_id IN (' . join(',', @hanging) . ')', '8', 'their tasks');
	run_saga('act at warehouse') for 1 .. 5;
	is($orders->safe_psql('postgres', 'SELECT count(*) FROM saga.sagas WHERE finished_at IS NULL AND saga_id IN (' . join(',', @hanging) . ')'),
		'8', "$way: a server that hangs keeps its own sagas waiting");
	pass('... and no others');
	# swallowed requests are only given up by their timeout
	$proxy->pass;
	poll_saga($orders, $_, 'completed', "$way: a saga that had to wait") foreach @hanging;
	is($payments->safe_psql('postgres', 'SELECT count(*), count(DISTINCT saga_id) FROM shop.effect WHERE saga_id IN (' . join(',', @hanging) . ')'),
		'8|8', '... each is done once');
}

# ---- how many connections

shut_gate($payments, 'gate', 'SELECT pg_advisory_xact_lock(7)');
$proxy->stats;
# more than four connections may have in flight
my @many = split /\n/, as_app($orders, q(SELECT saga.begin('patient at payments', '{"gate": 7}') FROM generate_series(1, 300)));
poll_server('connections, in_flight >= 4, in_flight + ready', '4|t|300', 'as many connections as are allowed');
is($proxy->stats->{most}, 4, '... and not one more');
cmp_ok($payments->safe_psql('postgres', "SELECT count(*) FROM pg_stat_activity WHERE usename = 'shop'"), '<=', 4, '... as the other side says');
is(as_app($orders, "SELECT oldest_ready <= now(), state FROM saga.servers WHERE server = 'payments'"), 't|connected', '... and others wait');
like($orders->safe_psql('postgres', "SELECT string_agg(DISTINCT regexp_replace(waiting_for, '\\d.*', ''), ', ') FROM saga.steps WHERE status = 'running'"),
	qr/server payments/, '... for the server');
open_gate($payments, 'gate');
poll_saga($orders, $_, 'completed', 'one of many') foreach @many;
poll_server('connections, state', '0|idle', 'they are closed when nothing is to do');
poll_sql($payments, "SELECT count(*) FROM pg_stat_activity WHERE usename = 'shop'", '0', 'nobody is left there');

# ---- the breaker

$orders->safe_psql('postgres', "SELECT saga.configure_server('payments', breaker_failures => 3, breaker_pause => '1 h', breaker_max_pause => '1 h')");
$proxy->refuse;
$proxy->cut;
my @broken = map { begin_saga($orders, 'patient at payments') } 1 .. 5;
poll_server('breaker, unreachable >= 3, last_error IS NOT NULL, last_error_at <= now(), breaker_until > now()', 'open|t|t|t|t', 'the breaker opens');
$proxy->pass;
my $accepted = $proxy->stats->{accepted};
run_saga('act at warehouse') for 1 .. 3;
is($proxy->stats->{accepted}, $accepted, 'nobody goes there while it is open');
waits_for($broken[0], qr/server payments.*breaker/, 'the step to say why it waits');
pass('its steps say why they wait');
foreach my $what ("saga.reset_breaker(server => 'payments')", "saga.configure_server('payments', paused => true)")
{
	my ($rc, $out, $err) = $orders->psql('postgres', "SELECT $what", extra_params => [ '-U', 'app' ]);
	like($err, qr/permission denied for server "payments"/, "not everybody's to do: $what");
}
$orders->safe_psql('postgres', "SELECT saga.reset_breaker(server => 'payments')");
poll_saga($orders, $_, 'completed', 'a saga behind the breaker') foreach @broken;
server_is('breaker, breaker_until', 'closed|', 'it is closed by hand');
$orders->safe_psql('postgres', "SELECT saga.configure_server('payments', breaker_pause => '100 ms', breaker_max_pause => '200 ms')");
$proxy->refuse;
$proxy->cut;
@broken = map { begin_saga($orders, 'patient at payments') } 1 .. 5;
poll_server('breaker', qr/open/, 'it opens again');
$proxy->pass;
poll_saga($orders, $_, 'completed', 'a saga behind the breaker') foreach @broken;
poll_server('breaker', 'closed', '... and closes by itself');
is($payments->safe_psql('postgres', 'SELECT saga_id FROM shop.effect GROUP BY saga_id, operation HAVING count(*) > 1'), '', 'nothing was done twice at payments');
$orders->safe_psql('postgres', "SELECT saga.configure_server('payments', breaker_failures => 0)");

# paused by a person
$orders->safe_psql('postgres', "SELECT saga.configure_server('payments', paused => true)");
server_is('state', 'paused', 'a server is paused');
$id = begin_saga($orders, 'act at payments');
waits_for($id, qr/server payments.*paused/, 'the step to wait for it');
run_saga('act at warehouse');
is($orders->safe_psql('postgres', "SELECT status FROM saga.tasks WHERE saga_id = $id"), 'ready', '... and its steps wait');
$orders->safe_psql('postgres', "SELECT saga.configure_server('payments', paused => false)");
poll_saga($orders, $id, 'completed', 'the step when it is not paused any more');

# ---- a server that is away

# its compensation is not begun when the server goes
shut_gate($orders, 'refusal', 'SELECT pg_advisory_xact_lock(8)');
my $undone = begin_saga($orders, 'undone at payments');
# its step may be seen as succeeded only after the next one, in whose transaction the answer may have been taken
poll_sql($orders, "SELECT status FROM saga.tasks WHERE saga_id = $undone", 'answered', 'the action');
$payments->stop('immediate');
open_gate($orders, 'refusal');
my %away = map { $_ => begin_saga($orders, 'patient at payments') } qw(cancel pause abandon wait);
poll_server('state, unreachable > 0', qr/^(pausing|connecting)\|t$/, 'the server is away');
as_app($orders, "SELECT saga.cancel($away{cancel}, 'not needed')");
poll_saga($orders, $away{cancel}, 'compensated', 'the one that is cancelled');
pass('a saga that waits for it can be cancelled');
as_app($orders, "SELECT saga.pause($away{pause}, 'a moment')");
poll_saga($orders, $away{pause}, 'paused', 'the one that is paused');
pass('... paused');
as_app($orders, "SELECT saga.abandon($away{abandon}, 'never mind')");
poll_saga($orders, $away{abandon}, 'abandoned', 'the one that is abandoned');
pass('... and abandoned');
poll_sql($orders, "SELECT count(*) FROM saga.tasks WHERE status IN ('ready', 'claimed') AND saga_id IN ($away{cancel}, $away{abandon})",
	'0', 'their calls to be withdrawn');
is(as_app($orders, "SELECT reachable, once, error IS NOT NULL FROM saga.check_server('payments')"), 'f||t', 'saga.check_server() says that it is away');
$payments->start;
poll_saga($orders, $away{wait}, 'completed', 'the one that waits');
as_app($orders, "SELECT saga.resume($away{pause})");
poll_saga($orders, $away{pause}, 'completed', 'the one that was paused');
poll_saga($orders, $undone, 'compensated', 'the one whose compensation waits');
is($payments->safe_psql('postgres', "SELECT string_agg(operation, ', ' ORDER BY n) FROM shop.effect WHERE saga_id = $undone"), 'action, compensation',
	'a compensation waits for it, too');
is($payments->safe_psql('postgres', "SELECT count(*) FROM shop.effect WHERE saga_id IN ($away{cancel}, $away{abandon})"), '0',
	'what was withdrawn is never done');
is($payments->safe_psql('postgres', "SELECT count(*) FROM shop.effect WHERE saga_id IN ($away{wait}, $away{pause})"), '2', '... the others are');

# while the call is carried out
shut_gate($payments, 'gate', 'SELECT pg_advisory_xact_lock(7)');
$id = begin_saga($orders, 'patient at payments', '{"gate": 7}');
poll_sql($payments, "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'advisory'", '1', 'the call in flight');
as_app($orders, "SELECT saga.cancel($id, 'too late?')");
poll_sql($orders, "SELECT count(*) FROM saga.steps WHERE saga_id = $id AND cancelled", '1', 'the saga to take the cancel');
open_gate($payments, 'gate');
poll_sql($orders, "SELECT status IN ('completed', 'compensated') FROM saga.sagas WHERE saga_id = $id", 't', 'the end of it');
is(effects_of($payments, $id, 'action'), $orders->safe_psql('postgres',
		"SELECT count(*) FROM saga.steps WHERE saga_id = $id AND step = 'do' AND operation = 'action' AND status = 'succeeded'"),
	'a call that is cancelled in flight is known to be done, or not');

is($orders->safe_psql('postgres', "SELECT status, count(*) FROM saga.tasks WHERE status IN ('ready', 'claimed') GROUP BY 1"), '', 'no call is left');

$_->stop foreach $orders, $payments, $warehouse;
done_testing();
