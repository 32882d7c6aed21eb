# The proxy that stands between servers in the tests of remote steps: each fault
# that it makes is seen by psql as what it is meant to be, and once it is well
# again so are its connections.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use PostgreSQL::Test::Utils;
use SagaProxy;
use SagaTest;
use Test::More;
use Time::HiRes qw(time);

my $node = SagaTest->new_node(
	'main',
	preload => 0,
	start   => 1,
	conf    => { listen_addresses => '127.0.0.1' });
my $proxy = SagaProxy->start($node->port);

$node->safe_psql('postgres', 'CREATE TABLE t (a text)');

my $connstr = 'host=127.0.0.1 port=' . $proxy->port . ' dbname=postgres user=' . (getpwuid($<))[0];

# A session through the proxy, of some statements; its output is read when it
# has ended.
sub start_session
{
	my (@sql) = @_;
	my %session = (out => '', err => '');

	$session{handle} = IPC::Run::start(
		[ $node->installed_command('psql'), '-XAtq', '-d', $connstr, map { ('-c', $_) } @sql ],
		'<', \undef, '>', \$session{out}, '2>', \$session{err},
		IPC::Run::timeout(60));
	return \%session;
}

sub end_session
{
	my ($session) = @_;

	eval { $session->{handle}->finish; };
	return "$session->{out}$session->{err}";
}

sub through
{
	my (@sql) = @_;

	return end_session(start_session(@sql));
}

sub rows
{
	my ($what) = @_;

	return $node->safe_psql('postgres', "SELECT count(*) FROM t WHERE a = '$what'");
}

sub poll_rows
{
	my ($what) = @_;

	poll_sql($node, "SELECT count(*) FROM t WHERE a = '$what'", '1', "row $what");
	return;
}

# ---- all is well

is(through('SELECT 1'), "1\n", 'a query goes through');
is(through("SELECT length(repeat('x', 3000000))"), "3000000\n", '... and a long one');
is(length(through("SELECT repeat('x', 3000000)")), 3000001, '... and a long answer');
is($proxy->stats->{accepted}, 3, 'connections are counted');
cmp_ok($proxy->stats->{bytes}, '>', 3000000, '... and what comes back');

# ---- all connections

$proxy->refuse;
like(through('SELECT 1'), qr/closed the connection unexpectedly|Connection reset/, 'refuse: a new connection is reset');
$proxy->pass;
$proxy->ignore;
my $session = start_session('SELECT 2');
my $deadline = time() + 60;
until ($proxy->stats->{open} == 1)
{
	die 'nobody connects' if time() >= $deadline;
}
is($session->{out}, '', 'ignore: no answer');
$proxy->pass;
like(end_session($session), qr/closed the connection unexpectedly|Connection reset/, '... ever');

$proxy->hold('server');
$session = start_session("INSERT INTO t VALUES ('held')");
$proxy->release;
is(end_session($session), '', 'hold: goes on when it is released');
is(rows('held'), 1, '... and nothing is lost');

$proxy->delay(0.05);
my $before = time();
is(through('SELECT 3'), "3\n", 'delay: nothing is lost');
cmp_ok(time() - $before, '>=', 0.2, '... it takes its time');
$proxy->pass;

# ---- with a message

my $rule = $proxy->rule(from => 'client', match => 'cut here', do => 'cut');
like(through("INSERT INTO t VALUES ('cut here')"), qr/closed the connection unexpectedly|Connection reset/, 'cut: the connection breaks');
is($proxy->hits($rule), 1, '... by the rule');
is(rows('cut here'), 0, '... before the message arrives');
is(through("INSERT INTO t VALUES ('cut here')"), '', '... once');

$rule = $proxy->rule(from => 'client', match => 'to be lost', do => 'lose', skip => 1);
is(through("INSERT INTO t VALUES ('not to be lost')"), '', 'lose: one is skipped');
like(through("INSERT INTO t VALUES ('to be lost')"), qr/closed the connection unexpectedly|Connection reset/, '... then the connection breaks');
is(rows('to be lost'), 1, '... after the server has done it');

$rule = $proxy->rule(from => 'client', match => 'wait for me', do => 'hold');
$session = start_session("INSERT INTO t VALUES ('wait for me')");
$proxy->wait_for_hit($rule);
is(rows('wait for me'), 0, 'hold of a message: it has not arrived');
$proxy->release;
is(end_session($session), '', '... until it is released');
is(rows('wait for me'), 1, '... then it has');

$rule = $proxy->rule(from => 'client', match => 'silence', do => 'hold', direction => 'server');
$session = start_session("INSERT INTO t VALUES ('silence')");
$proxy->wait_for_hit($rule);
poll_rows('silence');
pass('hold of the answer: it is done');
$proxy->cut;
like(end_session($session), qr/closed the connection unexpectedly|Connection reset/, '... and nobody is told');

$rule = $proxy->rule(from => 'client', match => 'swallowed', do => 'swallow');
$session = start_session("INSERT INTO t VALUES ('swallowed')");
$proxy->wait_for_hit($rule);
$proxy->pass;
like(end_session($session), qr/closed the connection unexpectedly|Connection reset/, 'swallow: what has lost bytes does not go on');
is(rows('swallowed'), 0, '... and they are lost');

$proxy->rule(from => 'client', match => 'repeat', do => 'truncate', bytes => 1000);
like(through("SELECT repeat('x', 3000)"), qr/closed the connection unexpectedly|lost synchronization/, 'truncate: the answer ends early');

$proxy->rule(from => 'client', match => 'twice', do => 'duplicate');
$session = through("INSERT INTO t VALUES ('twice')");
is(rows('twice'), 2, 'duplicate: a message that arrives twice is done twice');
$proxy->rule(from => 'server', match => '^D', do => 'duplicate');
like(through("SELECT 'one'", "SELECT 'two'"), qr/^one\n.*(without prior row description|while idle)/s,
	'... and so with an answer');

my $description = pack('A N n Z* N n N n N n', 'T', 6 + 1 + 1 + 18, 1, 'x', 0, 0, 25, -1 & 0xffff, 0xffffffff, 0);
my $row = pack('A N n N A*', 'D', 4 + 2 + 4 + 3, 1, 3, 'yes');
$proxy->rule(
	from  => 'client',
	match => 'is it so',
	do    => 'answer',
	head  => $description,
	chunk => $row,
	count => 100000,
	tail  => pack('A N Z*', 'C', 4 + 11, 'SELECT 100') . pack('A N A', 'Z', 5, 'I'));
my $answer = through("SELECT 'is it so'");
is(($answer =~ tr/\n//), 100000, 'answer: as many rows as are asked for');
is(rows('is it so'), 0, '... and the server knows nothing');

# ---- what is behind it

$node->stop;
like(through('SELECT 1'), qr/closed the connection unexpectedly|Connection reset/, 'the server is down');
$node->start;
is(through('SELECT 4'), "4\n", '... and up again');

my $other = SagaTest->new_node(
	'other',
	preload => 0,
	start   => 1,
	conf    => { listen_addresses => '127.0.0.1' });
$other->safe_psql('postgres', "CREATE TABLE other AS SELECT 'here' AS it");
$proxy->target($other->port);
is(through('TABLE other'), "here\n", 'new connections lead to another server');

$proxy->stop;
like(through('SELECT 1'), qr/Connection refused/, 'nobody is there when it has ended');

$node->stop;
$other->stop;
done_testing();
