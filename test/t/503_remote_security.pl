# What protects servers from each other.  Nobody borrows the identity of the server:
# a role without a password, or whose password was not asked for, connects nowhere,
# and nobody uses the mapping or the connection of another.  What another server
# sends, however much and whatever it is, costs a bounded amount of memory, has a
# clear error, and delays nobody else.  Names and values are taken as they are.
# Passwords are nowhere to be seen.  And on the other side, what was done for one
# role is not repeated, undone or answered for another.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use PostgreSQL::Test::Utils;
use SagaProxy;
use SagaRemote;
use SagaTest;
use Test::More;
use Time::HiRes qw(time usleep);

my $orders = new_coordinator(
	'orders',
	conf => {
		'saga.remote_connect_timeout' => '3 s',
		# but what we say ourselves when we make mappings
		'log_min_messages'            => 'debug2',
		'log_connections'             => 'on',
		'log_statement'               => 'none',
	});
my ($payments, $proxy) = new_remote('payments', conf => { 'log_connections' => 'on', 'log_min_messages' => 'debug2', 'log_statement' => 'none' });
my ($warehouse, $other) = new_remote('warehouse', saga => 0, conf => { 'log_statement' => 'none' });
my $port = $proxy->port;
my $secret = password_of('payments');
(my $quoted = $secret) =~ s/'/''/g;

connect_remote($orders, 'payments', $port);
connect_remote($orders, 'warehouse', $other->port);

$orders->safe_psql('postgres', "SELECT saga.configure_server('payments', breaker_failures => 0)");
as_app($orders, <<'EOS');
CREATE FUNCTION quick(attempts int) RETURNS jsonb LANGUAGE sql IMMUTABLE AS
    $$ SELECT saga.retry_policy(attempts, '20 ms', '100 ms') $$;
SELECT saga.define('at ' || s, saga.remote_step('do', s, 'shop.act', retry => quick(1), timeout => '1 s'))
FROM unnest(ARRAY['payments', 'warehouse']) s;
EOS

# SQL as some role, in a session of its own.
sub as
{
	my ($role, $sql) = @_;

	return $orders->safe_psql('postgres', $sql, extra_params => [ '-U', $role ]);
}

sub refused
{
	my ($role, $sql) = @_;
	my ($rc, $out, $err) = $orders->psql('postgres', "\\set VERBOSITY verbose\n$sql", extra_params => [ '-U', $role ]);

	return $err;
}

sub attempts
{
	my ($id) = @_;

	return $orders->safe_psql('postgres',
		"SELECT string_agg(concat_ws(' ', attempt, outcome, sqlstate), ', ' ORDER BY attempt) FROM saga.attempts WHERE saga_id = $id");
}

sub message
{
	my ($id) = @_;

	return $orders->safe_psql('postgres', "SELECT message FROM saga.attempts WHERE saga_id = $id ORDER BY attempt LIMIT 1");
}

# Begin one as some role and wait for its end.
sub run_as
{
	my ($role, $definition, $status) = @_;
	my $id = as($role, "SELECT saga.begin('$definition')");

	poll_saga($orders, $id, $status || 'completed', "a saga \"$definition\" of $role");
	return $id;
}

# ---- the identity of the server

my $host = $orders->host;
my $own  = $orders->port;
my $superuser = $orders->safe_psql('postgres', 'SELECT current_user');

$orders->safe_psql('postgres', <<"EOS");
CREATE TABLE breach (who text);
CREATE FUNCTION breach(context jsonb) RETURNS text LANGUAGE sql AS
    \$\$ INSERT INTO breach VALUES (current_user) RETURNING who \$\$;
CREATE SERVER loop FOREIGN DATA WRAPPER dblink_fdw OPTIONS (host '$host', port '$own', dbname 'postgres');
GRANT USAGE ON FOREIGN SERVER loop TO app;
CREATE ROLE other LOGIN;
SELECT saga.grant_usage('other');
GRANT USAGE ON FOREIGN SERVER loop, payments TO other;
EOS
as('app', "SELECT saga.define('loop', saga.remote_step('do', 'loop', 'public.breach', retry => quick(2)))");
as('other', "SELECT saga.define('others loop', saga.remote_step('do', 'loop', 'public.breach')), "
	  . "saga.define('others', saga.remote_step('do', 'payments', 'shop.act'))");
$orders->safe_psql('postgres', "SELECT saga.define('own loop', saga.remote_step('do', 'loop', 'public.breach'))");

# What a mapping for app with these options comes to.
sub loop_is
{
	my ($for, $options, $state, $what) = @_;

	$orders->safe_psql('postgres', "CREATE USER MAPPING FOR $for SERVER loop OPTIONS ($options)");
	my $id = run_as('app', 'loop', 'compensated');
	is(attempts($id), "1 failed $state", $what);
	is($orders->safe_psql('postgres', 'SELECT count(*) FROM breach'), '0', '... nothing is done');
	$orders->safe_psql('postgres', "DROP USER MAPPING FOR $for SERVER loop");
	return;
}

is(attempts(run_as('app', 'loop', 'compensated')), '1 failed 42704', 'no mapping');
loop_is('app', "user '$superuser'", '2F003', 'a mapping without a password');
loop_is('app', "user '$superuser', password ''", '2F003', 'an empty password');
loop_is('app', "user '$superuser', password 'not asked for'", '2F003', 'a server that trusts, and does not ask for the password');
loop_is('PUBLIC', "user '$superuser'", '2F003', 'the mapping of PUBLIC without a password');
loop_is('PUBLIC', "user '$superuser', password 'x'", '2F003', '... and with one that is not asked for');
loop_is($superuser, "user '$superuser'", '42704', 'the mapping of another role');

# a superuser may, and nobody else gets what was connected for him
$orders->safe_psql('postgres', "CREATE USER MAPPING FOR PUBLIC SERVER loop OPTIONS (user '$superuser')");
my $id = $orders->safe_psql('postgres', "SELECT saga.begin('own loop')");
poll_saga($orders, $id, 'completed', 'the saga of a superuser');
is($orders->safe_psql('postgres', 'SELECT who FROM breach'), $superuser, 'a superuser needs no password');
is($orders->safe_psql('postgres', "SELECT connections FROM saga.servers WHERE server = 'loop' AND role = '$superuser'"), '1', '... the connection is there');
is(attempts(run_as('app', 'loop', 'compensated')), '1 failed 2F003', '... and not for others');
is(attempts(run_as('other', 'others loop', 'compensated')), '1 failed 2F003', '... of whatever role');
$orders->safe_psql('postgres', "DROP USER MAPPING FOR PUBLIC SERVER loop; ALTER ROLE app SUPERUSER; "
	  . "CREATE USER MAPPING FOR app SERVER loop OPTIONS (user '$superuser')");
run_as('app', 'loop');
is($orders->safe_psql('postgres', 'SELECT count(*) FROM breach'), '2', 'who becomes a superuser needs none either');
$orders->safe_psql('postgres', 'ALTER ROLE app NOSUPERUSER');
is(attempts(run_as('app', 'loop', 'compensated')), '1 failed 2F003', '... until that is taken back, connection or not');
is($orders->safe_psql('postgres', 'SELECT count(*) FROM breach'), '2', '... nothing is done');

# other has no mapping for payments; that of PUBLIC serves everybody, over connections of their own
is(attempts(run_as('other', 'others', 'compensated')), '1 failed 42704', 'a role has only its own mapping');
run_as('app', 'at payments');
$orders->safe_psql('postgres', "CREATE USER MAPPING FOR PUBLIC SERVER payments OPTIONS (user 'shop', password '$quoted')");
run_as('other', 'others');
is($orders->safe_psql('postgres', "SELECT string_agg(role || ' ' || (connections > 0), ', ' ORDER BY role) FROM saga.servers WHERE server = 'payments'"),
	'app true, other true', 'the mapping of PUBLIC, with a password: each role has connections of its own');
is(as('other', "SELECT string_agg(DISTINCT role, ', ') FROM saga.servers"), 'other', '... and sees only these');
$orders->safe_psql('postgres', 'DROP USER MAPPING FOR PUBLIC SERVER payments');
is(attempts(run_as('other', 'others', 'compensated')), '1 failed 42704', '... which are gone with it');

# files of this server are nobody's but a superuser's
my $passfile = PostgreSQL::Test::Utils::tempdir() . '/passfile';
append_to_file($passfile, '*:*:*:*:' . ($secret =~ s/([\\:])/\\$1/gr) . "\n");
chmod 0600, $passfile;
$orders->safe_psql('postgres', "ALTER SERVER payments OPTIONS (ADD passfile '$passfile'); ALTER USER MAPPING FOR app SERVER payments OPTIONS (DROP password)");
is(attempts(run_as('app', 'at payments', 'compensated')), '1 failed 2F003', 'a password from a file does not count');
$orders->safe_psql('postgres', "ALTER USER MAPPING FOR app SERVER payments OPTIONS (ADD password 'wrong')");
like(attempts(run_as('app', 'at payments', 'compensated')), qr/^1 failed (28P01|42501)$/, '... nor helps out');
$orders->safe_psql('postgres', "ALTER SERVER payments OPTIONS (DROP passfile); ALTER USER MAPPING FOR app SERVER payments OPTIONS (SET password '$quoted')");
run_as('app', 'at payments');

# the environment of the server has no say
like(refused('app', "SELECT saga.define('x', saga.remote_step('do', 'host=$host', 'public.breach'))"),
	qr/42704: .*server "host=.*" does not exist/, 'a server is a name, not a string of options');
like(refused('other', "CREATE SERVER mine FOREIGN DATA WRAPPER dblink_fdw"), qr/42501/, '... and not for everybody to make');

# ---- names and values are what they are

$orders->safe_psql('postgres', 'ALTER USER MAPPING FOR app SERVER loop OPTIONS (ADD password \'x\')');
foreach my $value ("postgres user=$superuser host=$host", "host=$host port=$own dbname=postgres", "postgresql:///postgres?host=$host", "postgres' host='$host")
{
	(my $literal = $value) =~ s/'/''/g;
	$orders->safe_psql('postgres', "ALTER SERVER payments OPTIONS (SET dbname '$literal')");
	my $id = run_as('app', 'at payments', 'compensated');
	is(attempts($id), '1 failed 3D000', "a database of a strange name: $value");
}
$orders->safe_psql('postgres', "ALTER SERVER payments OPTIONS (SET dbname 'postgres')");

my $weird = q(a'b"c\\d; -- $$ %s {e});
(my $ident = $weird) =~ s/"/""/g;
(my $lit = $weird) =~ s/'/''/g;
$orders->safe_psql('postgres', <<"EOS");
CREATE ROLE "$ident" LOGIN;
SELECT saga.grant_usage('$lit');
CREATE SERVER "$ident" FOREIGN DATA WRAPPER dblink_fdw OPTIONS (host '127.0.0.1', port '$port', dbname 'postgres', application_name '$lit');
GRANT USAGE ON FOREIGN SERVER "$ident" TO "$ident";
CREATE USER MAPPING FOR "$ident" SERVER "$ident" OPTIONS (user 'shop', password '$quoted');
EOS
$payments->safe_psql('postgres', qq(SET ROLE shop; CREATE SCHEMA "$ident"; CREATE FUNCTION "$ident"."$ident"(context jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT shop.act(context)'))
  if $payments->safe_psql('postgres', 'GRANT CREATE ON DATABASE postgres TO shop') eq '';
$orders->safe_psql('postgres', qq(SET ROLE "$ident"; SELECT saga.define('$lit', saga.remote_step('$lit', '$lit', quote_ident('$lit') || '.' || quote_ident('$lit'), compensation => quote_ident('$lit') || '.' || quote_ident('$lit')))));
$id = $orders->safe_psql('postgres', qq(SET ROLE "$ident"; SELECT saga.begin('$lit', jsonb_build_object('$lit', '$lit'))));
poll_saga($orders, $id, 'completed', 'a saga with strange names');
is($payments->safe_psql('postgres', "SELECT step FROM shop.effect WHERE saga_id = $id"), $weird, 'all names may be strange');
is($orders->safe_psql('postgres', "SELECT server FROM saga.servers WHERE role = '$lit'"), $weird, '... and are shown as they are');

foreach my $name ('shop.act; DROP TABLE shop.effect', 'shop.act(jsonb)', "shop.act', now())--", 'a.b.c', '', 'shop.', '"unterminated', "shop.act\n", 'pg_catalog.pg_terminate_backend(1)')
{
	(my $literal = $name) =~ s/'/''/g;
	like(refused('app', "SELECT saga.define('x', saga.remote_step('do', 'payments', '$literal'))"), qr/ERROR: +(22023|42602|42601|0A000)/,
		'no name of a function: ' . ($name =~ s/\n/\\n/r));
}

# ---- what a server may send

sub courier_memory
{
	my $status = slurp_file('/proc/' . courier_pid($orders) . '/status');

	return $status =~ /^VmHWM:\s+(\d+) kB/m ? $1 / 1024 : 0;
}

sub frame
{
	my ($type, $payload) = @_;

	return pack('A N', $type, 4 + length($payload)) . $payload;
}

my $description = frame('T', pack('n', 3) . join('', map { pack('Z* N n N n N n', $_, 0, 0, 25, 0xffff, 0xffffffff, 0) } 'outcome', 'result', 'echo'));
sub row { return frame('D', pack('n', scalar @_) . join('', map { defined $_ ? pack('N/a*', $_) : pack('N', 0xffffffff) } @_)); }
my $complete = frame('C', "SELECT 1\0") . frame('Z', 'I');
my $ok = frame('R', pack('N', 0));
my $ask = frame('R', pack('N', 3));
my $megabyte = 'x' x (1024 * 1024);

sub error_response
{
	my (%field) = @_;

	return frame('E', join('', map { "$_$field{$_}\0" } sort keys %field) . "\0");
}

my $call    = { from => 'client', match => '"operation": "', complete => 1 };
my $startup = { from => 'client', match => "user\\0shop\\0" };

# What payments is made to send, and what that comes to.
my @answers = (
	[ 'a row of a gigabyte', $call, { head => $description . pack('A N n N', 'D', 1024 * 1024 * 1024, 3, 4) . 'done' . pack('N', 1000 * 1024 * 1024), chunk => $megabyte, count => -1 }, qr/54000/ ],
	[ 'a row that is said to have two gigabytes', $call, { head => $description . pack('A N n', 'D', 0x7fffffff, 3), chunk => $megabyte, count => -1 }, qr/54000|08/ ],
	[ 'a row of a negative length', $call, { head => $description . pack('A N n', 'D', 0xfffffff0, 3), chunk => $megabyte, count => 10 }, qr/54000|08/ ],
	[ 'rows without end', $call, { head => $description, chunk => row('done', 'x' x 1000, 'y'), count => -1 }, qr/54000/ ],
	[ 'small rows without end', $call, { head => $description, chunk => row('done', undef, undef), count => -1 }, qr/54000|08/ ],
	[ 'columns without end', $call, { head => frame('T', pack('n', 1600) . join('', map { pack('Z* N n N n N n', "c$_", 0, 0, 25, 0xffff, 0xffffffff, 0) } 1 .. 1600)),
			chunk => row((undef) x 1600), count => -1 }, qr/54000|08/ ],
	[ 'notices without end', $call, { chunk => frame('N', "SNOTICE\0C00000\0M" . 'x' x 1000 . "\0\0"), count => -1 }, qr/54000|08/ ],
	[ 'notifications without end', $call, { chunk => frame('A', pack('N Z* Z*', 1, 'channel', 'x' x 1000)), count => -1 }, qr/54000|08/ ],
	[ 'settings without end', $call, { chunk => frame('S', pack('Z* Z*', 'application_name', 'x' x 1000)), count => -1 }, qr/54000|08/ ],
	[ 'a hundred thousand settings', $call, { chunk => join('', map { frame('S', pack('Z* Z*', "setting$_", 'x' x 500)) } 1 .. 1000), count => -1 }, qr/54000|08/ ],
	[ 'an error of a gigabyte', $call, { head => pack('A N', 'E', 1024 * 1024 * 1024) . "SERROR\0C22012\0M", chunk => $megabyte, count => -1 }, qr/54000|08/ ],
	[ 'nothing but noise', $call, { head => join('', map { chr(int(rand 256)) } 1 .. 100000) }, qr/08|54000/ ],
	[ 'nothing but zeroes', $call, { chunk => "\0" x 1000, count => 100 }, qr/08|54000/ ],
	[ 'an answer to another call', $call, { head => $description . row('done', '1', 'no') . $complete }, qr/08/ ],
	[ 'no row', $call, { head => $description . frame('C', "SELECT 0\0") . frame('Z', 'I') }, qr/08/ ],
	[ 'too few columns', $call, { head => $description . row('done') . $complete }, qr/08/ ],
	[ 'copied data without end', $call, { head => frame('H', pack('C n', 0, 0)), chunk => frame('d', 'x' x 1000), count => -1 }, qr/08|54000/ ],
	[ 'a request for copied data', $call, { head => frame('G', pack('C n', 0, 0)) }, qr/08|57014/ ],
	[ 'authentication without end', $startup, { chunk => frame('R', pack('N', 3)), count => -1 }, qr/08/ ],
	[ 'settings without end, before it is ready', $startup, { head => $ask . $ok, chunk => frame('S', pack('Z* Z*', 'a', 'x' x 1000)), count => -1 }, qr/08/ ],
	[ 'notices without end, before it is ready', $startup, { head => $ask . $ok, chunk => frame('N', "SNOTICE\0C00000\0M" . 'x' x 1000 . "\0\0"), count => -1 }, qr/08/ ],
	[ 'a gigabyte, before it is ready', $startup, { head => pack('A N', 'E', 1024 * 1024 * 1024), chunk => $megabyte, count => -1 }, qr/08/ ],
	[ 'noise, before it is ready', $startup, { head => join('', map { chr(int(rand 256)) } 1 .. 100000) }, qr/08/ ],
	[ 'a welcome without a password', $startup, { head => $ok . frame('K', pack('N N', 1, 1)) . frame('Z', 'I') }, qr/2F003/ ],
	[ 'an unknown way to authenticate', $startup, { head => frame('R', pack('N', 99)) }, qr/08/ ],
);

# the first ones to have a courier and connections
run_as('app', 'at payments');
run_as('app', 'at warehouse');
my $highest = 0;
foreach my $answer (@answers)
{
	my ($name, $when, $sends, $expected) = @$answer;

	$proxy->cut if $when == $startup;
	my $rule = $proxy->rule(%$when, do => 'answer', times => 1000, %$sends);
	my $id = as('app', q(SELECT saga.begin('at payments')));
	$proxy->wait_for_hit($rule);
	# one at a time goes on, while that is looked at
	run_as('app', 'at warehouse') for 1 .. 2;
	pass("$name: others go on");
	poll_saga($orders, $id, 'compensated', $name);
	like($orders->safe_psql('postgres', "SELECT string_agg(DISTINCT sqlstate, ',') FROM saga.attempts WHERE saga_id = $id"), qr/^$expected\w*$/,
		'... it has a clear error');
	note message($id);
	my $memory = courier_memory();
	$highest = $memory if $memory > $highest;
	cmp_ok($memory, '<', 320, '... and costs a bounded amount of memory');
	$proxy->pass;
	$proxy->cut;
	run_as('app', 'at payments');
}
note "the courier had at most $highest MB";

# errors as a server may make them up
foreach my $error (
	[ 'of no known SQLSTATE', { S => 'ERROR', V => 'ERROR', C => "ab'\\x", M => 'odd' }, '1 failed XXXXX' ],
	# these are no answer, and asked for again
	[ 'without a SQLSTATE', { S => 'ERROR', M => 'odd' }, '' ],
	[ 'without anything', {}, '' ],
	[ 'in no encoding', { S => 'ERROR', V => 'ERROR', C => '22012', M => "\xff\xfe\xc3", D => "\x80" }, '1 failed 22012' ],
	[ 'of a megabyte', { S => 'ERROR', V => 'ERROR', C => '22012', M => $megabyte }, '1 failed 22012' ],
	[ 'with control characters', { S => 'ERROR', V => 'ERROR', C => '22012', M => "a\r\n\t\e[31mb\001" }, '1 failed 22012' ],
	[ 'as ours, for ever', { S => 'ERROR', V => 'ERROR', C => 'SG002', M => 'later', n => 'saga_retry_later_99999999999999999999' }, '' ],
	[ 'as ours, before now', { S => 'ERROR', V => 'ERROR', C => 'SG002', M => 'later', n => 'saga_retry_later_-1' }, '1 failed SG002' ])
{
	my ($name, $fields, $expected) = @$error;

	# it has to be the answer to a call of a connection that is well
	run_as('app', 'at payments');
	my $rule = $proxy->rule(%$call, do => 'answer', resume => 1, head => error_response(%$fields) . frame('Z', 'I'));
	my $id = as('app', q(SELECT saga.begin('at payments')));
	$proxy->wait_for_hit($rule);
	poll_sql($orders, "SELECT count(*) FROM saga.steps WHERE saga_id = $id AND attempts > 0", '1', "the end of the attempt that has an error $name");
	my $attempts = attempts($id);
	as('app', "SELECT saga.retry($id)") if $orders->safe_psql('postgres', "SELECT waiting_for FROM saga.sagas WHERE saga_id = $id") eq 'next attempt';
	poll_sql($orders, "SELECT status IN ('completed', 'compensated') FROM saga.sagas WHERE saga_id = $id", 't', "the end of a saga with an error $name");
	is($attempts, $expected, "an error $name");
	is($orders->safe_psql('postgres', "SELECT count(*) FROM saga.attempts WHERE saga_id = $id AND sqlstate !~ '^[0-9A-Z]{5}\$'"),
		'0', '... is kept in a form that can be read');
	note substr(message($id), 0, 100);
}

# results that are none: where there is no extension they are whatever was selected
$payments->safe_psql('postgres', <<'EOS');
SET ROLE shop;
CREATE FUNCTION shop.large(context jsonb) RETURNS text LANGUAGE sql AS $$ SELECT repeat('x', (context #>> '{input,n}')::int) $$;
CREATE FUNCTION shop.deep(context jsonb) RETURNS json LANGUAGE sql AS $$ SELECT (repeat('[', (context #>> '{input,n}')::int) || repeat(']', (context #>> '{input,n}')::int))::json $$;
CREATE FUNCTION shop.zero(context jsonb) RETURNS json LANGUAGE sql AS $$ SELECT '"\u0000"'::json $$;
EOS
as('app', "SELECT saga.define(f, saga.remote_step('do', 'payments', 'shop.' || f, retry => quick(1), timeout => '20 s')) FROM unnest(ARRAY['large', 'deep', 'zero']) f");
foreach my $case (
	[ 'large', 1000000, 'completed' ], [ 'large', 100 * 1024 * 1024, 'compensated' ], [ 'deep', 1000, 'completed' ],
	[ 'deep', 100000, 'compensated' ], [ 'zero', 0, 'compensated' ])
{
	my ($definition, $n, $status) = @$case;
	my $id = as('app', qq(SELECT saga.begin('$definition', '{"n": $n}')));

	poll_saga($orders, $id, $status, "a $definition result of $n");
	ok(1, "a $definition result of $n: $status " . attempts($id));
}
cmp_ok(courier_memory(), '<', 320, 'memory is bounded');

# ---- on the other side

$payments->safe_psql('postgres', <<'EOS');
CREATE ROLE thief LOGIN;
SELECT saga.grant_remote('thief');
GRANT USAGE ON SCHEMA shop TO thief;
GRANT INSERT ON shop.effect TO thief;
EOS
$id = run_as('app', 'at payments');
my ($token) = $orders->safe_psql('postgres', "SELECT token FROM saga.saga WHERE id = $id");
my ($coordinator) = $orders->safe_psql('postgres', 'SELECT id FROM saga.coordinator');

sub participate
{
	my ($role, $operation, %opt) = @_;
	my $step = $opt{step} || 'do';
	my ($rc, $out, $err) = $payments->psql('postgres',
		"\\set VERBOSITY verbose\nSELECT outcome, result FROM saga.participate('$coordinator', '$token', '$step', '$operation', 'shop.act', "
		  . qq['{"saga_id": $id, "step": "$step", "operation": "$operation", "attempt": 1, "idempotency_key": "x", "input": {}}')],
		extra_params => [ '-U', $role ]);

	return "$out$err";
}

like(participate('shop', 'action'), qr/^repeated\|\{"n": \d+\}$/, 'who has had it done is told the answer');
like(participate('thief', 'action'), qr/42501/, 'another role is not');
like(participate('thief', 'compensation'), qr/42501/, '... and cannot undo it');
is($payments->safe_psql('postgres', "SELECT count(*) FROM shop.effect WHERE saga_id = $id"), '1', '... nothing is done');
foreach my $sql ('SELECT count(*) FROM saga.barrier', 'DELETE FROM saga.barrier', 'SELECT count(*) FROM saga.saga')
{
	my ($rc, $out, $err) = $payments->psql('postgres', $sql, extra_params => [ '-U', 'shop' ]);
	like($err, qr/permission denied/, "no way around it: $sql");
}
is($payments->safe_psql('postgres', "SELECT DISTINCT role_name FROM saga.barrier"), 'shop', 'rows are those of the role that connected');
$payments->safe_psql('postgres', "SELECT saga.forget_barriers('$coordinator', now() + '1 day', '{}')", extra_params => [ '-U', 'thief' ]);
like(participate('shop', 'action'), qr/^repeated/, 'nor does one role forget for another');

# ---- passwords

my %places;
foreach my $node ($orders, $payments, $warehouse)
{
	$places{ 'log of ' . $node->name } = slurp_file($node->logfile);
}
$places{'what is seen of processes'} = `ps axww -o args`;
$places{'pg_stat_activity'} = $orders->safe_psql('postgres', 'SELECT * FROM pg_stat_activity WHERE pid <> pg_backend_pid()');
foreach my $relation (split /\n/, $orders->safe_psql('postgres',
		"SELECT oid::regclass FROM pg_class WHERE relnamespace = 'saga'::regnamespace AND relkind IN ('r', 'v', 'p') ORDER BY 1"))
{
	$places{$relation} = $orders->safe_psql('postgres', "SELECT * FROM $relation");
}
$places{'what explain says'} = $orders->safe_psql('postgres', 'SELECT saga.explain(saga_id) FROM saga.sagas');
$places{'what check_server says'} = as('app', "SELECT * FROM saga.check_server('payments')");
$orders->safe_psql('postgres', "ALTER USER MAPPING FOR app SERVER payments OPTIONS (SET password 'wrong-secret-of-payments')");
$places{'what check_server says of a wrong one'} = as('app', "SELECT * FROM saga.check_server('payments')");
like($places{'what check_server says of a wrong one'}, qr/password authentication failed/, 'a wrong password is known to be wrong');
cmp_ok(scalar(keys %places), '>', 30, 'so many places');
foreach my $place (sort keys %places)
{
	ok($places{$place} !~ /secret-of|SCRAM-SHA-256\$/, "no password in $place");
}

$_->stop foreach $orders, $payments, $warehouse;
done_testing();
