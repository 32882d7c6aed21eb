# saga.check_server() connects as the steps of the current user's sagas do, and
# says what is there or what is wrong: passwords, mappings and hosts of every
# kind, standbys, and servers that hang, talk without end or are none.  Whatever
# they do it comes back in time, can be cancelled, and leaves nothing open.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use IO::Socket::INET;
use POSIX ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use SagaRemote;
use SagaTest;
use Test::More;
use Time::HiRes qw(time);

my $orders = new_coordinator('orders', conf => { 'saga.remote_connect_timeout' => '2 s', 'saga.enabled' => 'off' });
my ($payments) = new_remote('payments', allows_streaming => 1);
my ($warehouse) = new_remote('warehouse', saga => 0);
my $port = $payments->port;
my $secret = password_of('payments');
my $connecting = qr/could not connect to server/;

# What is said as some role, as one line, and how long that took.
sub check
{
	my ($role, $server) = @_;
	my $start = time;
	my ($rc, $out, $err) = $orders->psql('postgres',
		"\\set VERBOSITY verbose\nSELECT concat_ws(' ', reachable, 'once=' || once, saga_version, 'recovery=' || in_recovery, error) FROM saga.check_server('$server')",
		extra_params => [ '-U', $role ]);

	cmp_ok(time - $start, '<', 10, "$server answers in time, whatever it does");
	unlike("$out$err", qr/\Q$secret\E/, '... and tells no password');
	return $err ne '' ? $err : $out;
}

my $superuser = $orders->safe_psql('postgres', 'SELECT current_user');

# ---- passwords and mappings

connect_remote($orders, 'payments', $port);
connect_remote($orders, 'warehouse', $warehouse->port);
like(check('app', 'payments'), qr/^t once=true 1\.\d+ recovery=false$/, 'a server with the extension');
like(check('app', 'warehouse'), qr/^t once=false recovery=false$/, 'a server without it');
$payments->safe_psql('postgres', 'REVOKE EXECUTE ON FUNCTION saga.participate FROM shop');
like(check('app', 'payments'), qr/^t once=false recovery=false$/, 'a server where the role may not use it');
$payments->safe_psql('postgres', "SELECT saga.grant_remote('shop')");

connect_remote($orders, 'wrong', $port, password => 'not that one');
like(check('app', 'wrong'), qr/^f 28P01: $connecting "wrong": .*FATAL:  password authentication failed for user "shop"$/, 'a wrong password');
connect_remote($orders, 'nobody', $port, user => 'nobody', of => 'payments');
like(check('app', 'nobody'), qr/^f 28P01: .*"nobody"$/, 'a role that is not there');
connect_remote($orders, 'nodb', $port, of => 'payments', dbname => q(no 'such' "database" = \\));
like(check('app', 'nodb'), qr/^f 3D000: .*FATAL:  database "no 'such' "database" = \\" does not exist$/, 'a database that is not there, by its whole name');
connect_remote($orders, 'connstr', $port, of => 'payments', dbname => "host=/tmp user=$superuser dbname=postgres");
like(check('app', 'connstr'), qr/^f 3D000: .*database "host=\/tmp user=\w+ dbname=postgres" does not exist$/, '... and never as a string of options');

$orders->safe_psql('postgres', 'CREATE ROLE other LOGIN; GRANT USAGE ON FOREIGN SERVER payments TO other; '
	  . "SELECT saga.grant_usage('other'); CREATE ROLE stranger LOGIN; SELECT saga.grant_usage('stranger')");
like(check('other', 'payments'), qr/42704: user mapping not found for user "other"/, 'no mapping');
like(check('stranger', 'payments'), qr/42501: permission denied for foreign server payments/, 'no right to use the server');
(my $quoted = $secret) =~ s/'/''/g;
$orders->safe_psql('postgres', "CREATE USER MAPPING FOR PUBLIC SERVER payments OPTIONS (user 'shop', password '$quoted')");
like(check('other', 'payments'), qr/^t once=true /, 'the mapping of PUBLIC');
like(check('stranger', 'payments'), qr/42501: /, '... for those who may use the server');

# this server itself, which trusts who comes by its socket
$orders->safe_psql('postgres', "CREATE SERVER loop FOREIGN DATA WRAPPER dblink_fdw OPTIONS (host '" . $orders->host . "', port '" . $orders->port . "', dbname 'postgres'); "
	  . "GRANT USAGE ON FOREIGN SERVER loop TO app; CREATE USER MAPPING FOR app SERVER loop OPTIONS (user '$superuser', password 'x')");
like(check('app', 'loop'), qr/^f 2F003: password is required: Non-superuser cannot connect if the server does not request a password\./, 'nobody borrows the identity of this server');
like(check($superuser, 'loop'), qr/^t once=true /, '... but a superuser, who needs no mapping');

# ---- hosts

$orders->safe_psql('postgres', "ALTER SERVER payments OPTIONS (SET host 'localhost')");
like(check('app', 'payments'), qr/^t once=true /, 'a name that has to be looked up');
$orders->safe_psql('postgres', "ALTER SERVER payments OPTIONS (SET host 'no-such-host.invalid')");
like(check('app', 'payments'), qr/^f 08001: $connecting "payments": could not translate host name "no-such-host.invalid" to address: /, 'a name that nobody has');
$orders->safe_psql('postgres', "ALTER SERVER payments OPTIONS (SET host 'no-such-host.invalid,localhost')");
like(check('app', 'payments'), qr/^t once=true /, '... and one that somebody has');
$orders->safe_psql('postgres', "ALTER SERVER payments OPTIONS (SET host '127.0.0.1,127.0.0.1', SET port '1,$port')");
like(check('app', 'payments'), qr/^t once=true /, 'a host that refuses, and one that does not');
$orders->safe_psql('postgres', "ALTER SERVER payments OPTIONS (SET port '1,1')");
like(check('app', 'payments'), qr/^f 08001: .*Connection refused.*Connection refused/s, 'two hosts that refuse');
$orders->safe_psql('postgres', "ALTER SERVER payments OPTIONS (SET host 'verify.invalid', ADD hostaddr '127.0.0.1', SET port '$port')");
like(check('app', 'payments'), qr/^t once=true /, 'an address with a name that is not looked up');
$orders->safe_psql('postgres', "ALTER SERVER payments OPTIONS (SET host '127.0.0.1', DROP hostaddr, ADD sslmode 'require')");
like(check('app', 'payments'), qr/^f 08001: .*SSL/, 'TLS where there is none');
$orders->safe_psql('postgres', "ALTER SERVER payments OPTIONS (DROP sslmode)");

SKIP:
{
	my $data = $warehouse->data_dir;

	skip 'no openssl', 6
	  if system_log('openssl', 'req', '-new', '-x509', '-days', '3', '-nodes', '-subj', '/CN=localhost', '-out', "$data/server.crt", '-keyout', "$data/server.key") != 0;
	chmod 0600, "$data/server.key";
	$warehouse->append_conf('postgresql.conf', 'ssl = on');
	$warehouse->restart;
	skip 'no TLS', 6 if $warehouse->safe_psql('postgres', 'SHOW ssl') ne 'on';
	$orders->safe_psql('postgres', "ALTER SERVER warehouse OPTIONS (ADD sslmode 'verify-full', ADD sslrootcert '$data/server.crt')");
	like(check('app', 'warehouse'), qr/^f 08001: .*server certificate for "localhost" does not match host name "127\.0\.0\.1"/, 'TLS to another than was meant');
	$orders->safe_psql('postgres', "ALTER SERVER warehouse OPTIONS (SET host 'localhost')");
	like(check('app', 'warehouse'), qr/^t once=false recovery=false$/, 'TLS');
}

# ---- what is not as usual

$payments->safe_psql('postgres', "ALTER ROLE shop SET statement_timeout = '2s'; ALTER ROLE shop SET default_transaction_read_only = on; "
	  . "ALTER ROLE shop SET search_path = shop; ALTER ROLE shop SET idle_session_timeout = '1s'");
# operators, functions and tables of the same names come first in the path
$payments->safe_psql('postgres', <<'EOS');
SET ROLE shop;
SET default_transaction_read_only = off;
CREATE TABLE shop.pg_extension AS SELECT 'saga'::name AS extname, 'mine' AS extversion;
CREATE FUNCTION shop.pg_backend_pid() RETURNS int LANGUAGE sql AS 'SELECT 1';
CREATE FUNCTION shop.wrong(name, name) RETURNS boolean LANGUAGE sql AS 'SELECT true';
CREATE OPERATOR shop.= (FUNCTION = shop.wrong, LEFTARG = name, RIGHTARG = name);
EOS
like(check('app', 'payments'), qr/^t once=true 1\.\d+ recovery=false$/, 'a role with settings of its own');
$payments->safe_psql('postgres', 'DROP OPERATOR shop.= (name, name); DROP FUNCTION shop.wrong, shop.pg_backend_pid; DROP TABLE shop.pg_extension; ALTER ROLE shop RESET ALL');

$payments->safe_psql('postgres', 'ALTER ROLE shop CONNECTION LIMIT 0');
like(check('app', 'payments'), qr/^f 53300: .*FATAL:  too many connections for role "shop"$/, 'too many connections');
$payments->safe_psql('postgres', 'ALTER ROLE shop CONNECTION LIMIT -1');

my $standby = PostgreSQL::Test::Cluster->new('standby');
$payments->backup('backup');
$standby->init_from_backup($payments, 'backup', has_streaming => 1);
$standby->start;
connect_remote($orders, 'standby', $standby->port, of => 'payments');
like(check('app', 'standby'), qr/^t once=true 1\.\d+ recovery=true$/, 'a standby');
$standby->stop;
like(check('app', 'standby'), qr/^f 08001: .*Connection refused/, 'one that is down');

# ---- servers that are none

my @children;

# Have a process do that with everyone who connects; returns its port.
sub serve
{
	my ($code) = @_;
	my $socket = IO::Socket::INET->new(Listen => 50, LocalAddr => '127.0.0.1', Proto => 'tcp') or die "could not listen: $!";
	my $pid = fork();

	die "could not fork: $!" unless defined $pid;
	if ($pid == 0)
	{
		local $SIG{PIPE} = 'IGNORE';
		my @open;

		while (my $client = $socket->accept)
		{
			binmode $client;
			push @open, $client if $code->($client);
		}
		POSIX::_exit(0);
	}
	push @children, $pid;
	return $socket->sockport;
}

sub message { my ($type, $body) = @_; return $type . pack('N', 4 + length $body) . $body; }
sub parameter { return message('S', "$_[0]\0$_[1]\0"); }

sub receive
{
	my ($client, $n) = @_;
	my $data = '';

	while (length $data < $n)
	{
		return undef unless $client->sysread($data, $n - length $data, length $data);
	}
	return $data;
}

# Let somebody in, who is asked for a password.
sub welcome
{
	my ($client) = @_;

	while (defined(my $length = receive($client, 4)))
	{
		my $packet = receive($client, unpack('N', $length) - 4);

		return 0 unless defined $packet;
		# TLS, GSS
		if (unpack('N', $packet) >= 80877103) { $client->syswrite('N'); next; }
		last;
	}
	$client->syswrite(message('R', pack('N', 3)));
	return 0 unless defined receive($client, 1);
	my $length = receive($client, 4);
	return 0 unless defined $length && defined receive($client, unpack('N', $length) - 4);
	return $client->syswrite(message('R', pack('N', 0)));
}

sub ready { return parameter('server_version', '15.0') . parameter('client_encoding', 'UTF8') . message('K', pack('NN', 1, 1)) . message('Z', 'I'); }

# Let somebody in, and wait for the first question.
sub be_asked { my ($client) = @_; return welcome($client) && $client->syswrite(ready()) && $client->sysread(my $question, 65536); }

# Until nobody listens any more.
sub endlessly
{
	my ($client, $code) = @_;

	1 while defined $client->syswrite($code->());
	return 0;
}

my $rows = message('1', '') . message('2', '') . message('T', pack('n', 1) . "x\0" . pack('NnNnNn', 0, 0, 25, 65535, -1 & 0xffffffff, 0));
my $row = message('D', pack('nN', 1, 8000) . 'x' x 8000);
my $n = 0;
my %servers = (
	hangs => [ sub { return 1 }, qr/f 08001: $connecting "hangs": Timeout expired\.$/ ],
	closes => [ sub { return 0 }, qr/f 08001: .*server closed the connection unexpectedly/ ],
	web => [ sub { $_[0]->syswrite("HTTP/1.1 400 Bad Request\r\n\r\n"); return 0 }, qr/f 08001: / ],
	let_in_and_hangs => [ sub { welcome($_[0]); return 1 }, qr/f 08001: .*Timeout expired/ ],
	ready_and_hangs => [ sub { welcome($_[0]) && $_[0]->syswrite(ready()); return 1 }, qr/f 08001: .*Timeout expired/ ],
	ready_and_closes => [ sub { welcome($_[0]) && $_[0]->syswrite(ready()); return 0 }, qr/f 08006: .*server closed the connection unexpectedly/ ],
	parameters => [ sub { my $c = shift; welcome($c) && endlessly($c, sub { parameter('p' . $n++, 'y' x 5000) }) }, qr/f 08P01: .*It says too much/ ],
	notices => [ sub { my $c = shift; welcome($c) && $c->syswrite(ready()) && endlessly($c, sub { message('N', "SNOTICE\0C00000\0M" . 'z' x 5000 . "\0\0") }) }, qr/f 08P01: .*It says too much/ ],
	notifications => [ sub { my $c = shift; welcome($c) && $c->syswrite(ready()) && endlessly($c, sub { message('A', pack('N', 1) . "a\0" . 'z' x 5000 . "\0") }) }, qr/f 08P01: .*It says too much/ ],
	rows => [ sub { my $c = shift; be_asked($c) && $c->syswrite(message('Z', 'I') . $rows) && endlessly($c, sub { $row }) }, qr/f 08P01: .*It says too much/ ],
	one_row => [ sub { my $c = shift; be_asked($c) && $c->syswrite(message('Z', 'I') . $rows . 'D' . pack('NnN', 1_000_000_010, 1, 1_000_000_000)) && endlessly($c, sub { 'x' x 65536 }) }, qr/f 08P01: .*It says too much/ ],
	syncs => [ sub { my $c = shift; welcome($c) && $c->syswrite(ready()) && endlessly($c, sub { message('Z', 'I') }) }, qr/f 08P01: / ],
	errors => [ sub { my $c = shift; welcome($c) && $c->syswrite(ready()) && endlessly($c, sub { message('E', "SERROR\0VERROR\0Cx'\"\\\xff\0Msorry \xff\0\0") }) }, qr/f XXXXX: .*sorry \?$/ ],
	short => [ sub { my $c = shift; be_asked($c) && $c->syswrite(message('Z', 'I') . $rows . message('D', pack('nN', 1, 1) . 'x') . message('C', "SELECT 1\0") . message('Z', 'I')); return 1 }, qr/f 08P01: .*It does not answer as PostgreSQL does/ ],
	copies => [ sub { my $c = shift; be_asked($c) && $c->syswrite(message('Z', 'I') . message('1', '') . message('2', '') . message('G', pack('Cn', 0, 0))); return 1 }, qr/f 08P01: / ],
	noise => [ sub { my $c = shift; welcome($c) && endlessly($c, sub { join '', map { chr rand 256 } 1 .. 1000 }) }, qr/f 08\w+: / ],
	dribbles => [ sub { my $c = shift; welcome($c) && endlessly($c, sub { select undef, undef, undef, 0.3; parameter('a', 'b') }) }, qr/f 08001: .*Timeout expired/ ],
);

# in one session, so that what was left open adds up
my $left = "RESET ROLE; SELECT concat_ws(' ', (SELECT count(*) FROM pg_ls_dir('/proc/self/fd')), "
  . "(SELECT count(*) FROM pg_ls_dir('/proc/self/task'))); SET ROLE app;";
my $session = "SET ROLE app; SELECT reachable FROM saga.check_server('payments'); $left";

foreach my $name (sort keys %servers)
{
	connect_remote($orders, $name, serve($servers{$name}[0]), password => 'x');
	$session .= "SELECT concat_ws(' ', extract(epoch FROM clock_timestamp() - now()) < 8, c.reachable, replace(c.error, E'\\n', ' ')) FROM saga.check_server('$name') c;";
}
$session .= "SELECT reachable FROM saga.check_server('payments'); $left RESET ROLE; SELECT pg_read_file('/proc/self/status')";
SKIP:
{
	skip 'no /proc', 1 unless -d '/proc/self/task';
	my @said = split /\n/, $orders->safe_psql('postgres', $session);

	is(shift @said, 't', 'a server is reached');
	my $before = shift @said;
	like(shift @said, qr/^t $servers{$_}[1]/, "a server that $_") foreach sort keys %servers;
	is(shift @said, 't', 'the session goes on');
	is(shift @said, $before, '... nothing was left open, or runs');
	my %status = map { /^(\w+):\s+(\d+) kB/ ? ($1 => $2) : () } @said;
	cmp_ok($status{VmHWM} - $status{RssShmem}, '<', 100 * 1024, '... and little memory was used');
}

# before it lets anybody in, a server that is fast enough can fill libpq's buffer:
# that ends, one way or the other, and the session goes on
connect_remote($orders, 'one_row_early', serve(sub { my $c = shift; welcome($c) && $c->syswrite('D' . pack('NnN', 1_000_000_010, 1, 1_000_000_000)) && endlessly($c, sub { 'x' x 65536 }) }), password => 'x');
like($orders->safe_psql('postgres',
		"SET ROLE app; SELECT c.reachable, c.error FROM saga.check_server('one_row_early') c; SELECT reachable FROM saga.check_server('payments')"),
	qr/^f\|08\w+: .*\nt$/s, 'a server that sends a row before it lets anybody in');

# the next host has its turn when one hangs
my $hanging = serve(sub { return 1 });
$orders->safe_psql('postgres', "ALTER SERVER hangs OPTIONS (SET host '127.0.0.1,127.0.0.1', SET port '$hanging,$port'); "
	  . "ALTER USER MAPPING FOR app SERVER hangs OPTIONS (SET password '$quoted')");
like(check('app', 'hangs'), qr/^t once=true /, 'a host that hangs, and one that does not');
$orders->safe_psql('postgres', "ALTER SERVER hangs OPTIONS (SET port '$hanging,$hanging', ADD connect_timeout '1')");
like(check('app', 'hangs'), qr/^f 08001: .*Timeout expired/, 'two that hang');

# people wait no longer than they like
$orders->append_conf('postgresql.conf', "saga.remote_connect_timeout = '1 min'");
$orders->reload;
$orders->safe_psql('postgres', "ALTER SERVER hangs OPTIONS (SET host '127.0.0.1', SET port '$hanging', DROP connect_timeout)");
my ($rc, $out, $err) = $orders->psql('postgres', "SET statement_timeout = '200ms'; SELECT saga.check_server('hangs')", extra_params => [ '-U', 'app' ]);
like($err, qr/canceling statement due to statement timeout/, 'it can be cancelled');
($rc, $out, $err) = $orders->psql('postgres', "SET ROLE app; SELECT 1; $left SET statement_timeout = '50ms';"
	  . "SELECT saga.check_server('hangs');" x 10 . $left, on_error_stop => 0);
my ($first, $last) = (split /\n/, $out)[1, 2];
is($last, $first, '... and leaves nothing open');

# ---- and none of it is in a log

foreach my $node ($orders, $payments, $warehouse)
{
	unlike(slurp_file($node->logfile) =~ s/^.*(CREATE|ALTER) USER MAPPING.*$//gmr, qr/\Q$secret\E/, $node->name . ': no password in the log');
}
kill 'KILL', @children;
waitpid $_, 0 foreach @children;
done_testing();
