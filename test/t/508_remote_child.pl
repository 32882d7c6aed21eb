# Child sagas in another database, whose sagas may have children in this one: they
# are begun once, followed to their end, let complete or asked to go back, whatever
# breaks meanwhile: the courier, either server, the way between them, a connection
# that follows.  A parent that was abandoned lets them go; a standby that takes
# over without the last of them has them begun again.
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

my $orders = new_coordinator('orders', conf => { 'saga.remote_connect_timeout' => '3 s' });
my ($warehouse, $proxy) = new_remote('warehouse', preload => 1, allows_streaming => 1);

connect_remote($orders, 'warehouse', $proxy->port);

# ---- the definitions, and a way back for the sagas of the warehouse

$orders->stop;
listen_with_passwords($orders);
$orders->start;
$orders->safe_psql('postgres', <<'EOS');
CREATE ROLE billing LOGIN PASSWORD 'of billing';
SELECT saga.grant_remote('billing'), saga.grant_usage('billing');
CREATE SCHEMA billing AUTHORIZATION billing;
EOS
$warehouse->safe_psql('postgres', <<"EOS");
SELECT saga.grant_usage('shop');
CREATE EXTENSION dblink;
CREATE SERVER orders FOREIGN DATA WRAPPER dblink_fdw
    OPTIONS (host '127.0.0.1', port '${\ $orders->port}', dbname 'postgres');
GRANT USAGE ON FOREIGN SERVER orders TO shop;
CREATE USER MAPPING FOR shop SERVER orders OPTIONS (user 'billing', password 'of billing');
EOS

my $functions = <<'EOS';
-- What was done, and a compensation that fails while there is a row in "broken".
CREATE TABLE done (n bigint GENERATED ALWAYS AS IDENTITY, tag text, what text);
CREATE TABLE broken (x int);
CREATE FUNCTION deed(context jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO done (tag, what) VALUES (context #>> '{input,tag}',
        concat_ws(' ', nullif(context ->> 'operation', 'action'), context ->> 'step'));
    IF context ->> 'operation' = 'action' AND context #>> '{input,fail}' = context ->> 'step' THEN
        PERFORM saga.fail('told to');
    END IF;
    IF context ->> 'operation' = 'compensation' AND EXISTS (SELECT FROM broken) THEN
        PERFORM saga.fail('it cannot be undone just now');
    END IF;
    RETURN jsonb_build_object(context ->> 'step', context #> '{input,tag}');
END $$;
CREATE SEQUENCE tries;
CREATE FUNCTION third_time(context jsonb) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    IF nextval('tries') < 3 THEN
        PERFORM saga.fail('not yet');
    END IF;
    RETURN 'lucky';
END $$;
EOS

sub as
{
	my ($node, $role, $sql) = @_;

	return $node->safe_psql('postgres', $sql, extra_params => [ '-U', $role ]);
}

as($orders, 'billing', "$functions; SELECT saga.define('bill', saga.step('bill', 'deed', 'deed'))");
as($warehouse, 'shop', <<"EOS");
$functions
SELECT saga.define('parcel', saga.step('pick', 'deed', 'deed'), saga.step('pack', 'deed', 'deed'));
SELECT saga.define('waits', saga.step('pick', 'deed', 'deed'), saga.signal_step('go'), saga.step('pack', 'deed', 'deed'));
SELECT saga.define('billed', saga.step('pick', 'deed', 'deed'),
    saga.child_step('bill', 'bill', server => 'orders'), saga.step('pack', 'deed', 'deed'));
SELECT saga.define('irrevocable', saga.step('ship', 'deed', pivot => true));
SELECT saga.define('lucky', saga.step('try', 'third_time'));
SELECT saga.define('echo', saga.step('echo', 'deed', 'deed'));
EOS
as_app($orders, <<"EOS");
$functions
CREATE FUNCTION for_child(context jsonb) RETURNS jsonb LANGUAGE sql AS
    \$\$ SELECT jsonb_build_object('tag', context #> '{input,tag}', 'fail', context #> '{input,child_fail}') \$\$;
CREATE FUNCTION child(name text) RETURNS jsonb LANGUAGE sql IMMUTABLE AS
    \$\$ SELECT saga.child_step(name, name, server => 'warehouse', input => 'for_child') \$\$;
SELECT saga.define('of ' || name, saga.step('first', 'deed', 'deed'), child(name), saga.step('last', 'deed', 'deed'))
FROM unnest(ARRAY['parcel', 'waits', 'billed', 'irrevocable', 'nothing']) name;
SELECT saga.define('behind pivot', saga.step('first', 'deed', pivot => true),
    saga.child_step('lucky', 'lucky', server => 'warehouse', retry => saga.retry_policy(5, '5 ms')));
SELECT saga.define('many', saga.child_step('echo', 'echo', server => 'warehouse', foreach => 'items', parallel => 20),
    saga.step('last', 'deed', 'deed'));
SELECT saga.define('patient', saga.step('first', 'deed', 'deed'),
    saga.child_step('waits', 'waits', server => 'warehouse', retry => saga.retry_policy(0, '50 ms', '200 ms')));
EOS

# ---- what can be asked

# What was done for a tag, in its order; of the sagas of a role.
sub done
{
	my ($node, $role, $tag) = @_;

	return as($node, $role, "SELECT coalesce(string_agg(what, ', ' ORDER BY n), '') FROM done WHERE tag = '$tag'");
}

my $ntags = 0;

# Begin a saga with a tag of its own; returns both.
sub start
{
	my ($definition, %input) = @_;
	my $tag = 'tag ' . ++$ntags;
	my $more = join '', map { qq(, "$_": "$input{$_}") } sort keys %input;

	return (begin_saga($orders, $definition, qq({"tag": "$tag"$more})), $tag);
}

sub kid_of
{
	my ($id, $status) = @_;

	poll_sql($warehouse,
		"SELECT status FROM saga.sagas WHERE remote_parent_id = $id ORDER BY saga_id DESC LIMIT 1",
		$status, "the child of saga $id to be $status");
	return $warehouse->safe_psql('postgres', "SELECT max(saga_id) FROM saga.sagas WHERE remote_parent_id = $id");
}

sub waiting_kid
{
	my ($id) = @_;

	poll_sql($warehouse, "SELECT waiting_for FROM saga.sagas WHERE remote_parent_id = $id", 'signal',
		"the child of saga $id to wait");
	return kid_of($id, 'running');
}

sub poll_followed
{
	my ($id) = @_;

	poll_sql($orders, "SELECT waiting_for FROM saga.steps WHERE saga_id = $id AND step = 'waits' AND operation = 'action'",
		qr/^saga \d+ of waits at server warehouse, since /, "the child of saga $id to be followed");
	return;
}

sub signal_kid
{
	my ($kid) = @_;

	as($warehouse, 'shop', "SELECT saga.signal($kid, 'go')");
	return;
}

sub explanation
{
	my ($node, $id, $topic) = @_;

	return $node->safe_psql('postgres', "SELECT detail FROM saga.explain($id) WHERE topic = '$topic'");
}

# Nothing is left of it that would be done, or told.
sub check_nothing_left
{
	my ($name) = @_;

	poll_sql($orders, "SELECT count(*) FROM saga.tasks WHERE status IN ('ready', 'claimed')", '0', "$name: no task to be left");
	poll_sql($warehouse, 'SELECT count(*) FROM saga.child_report', '0', "$name: no report to be left");
	pass("$name: nothing is left");
	return;
}

# ---- forward and back

my ($id, $tag) = start('of parcel');
poll_saga($orders, $id, 'completed');
is(done($orders, 'app', $tag), 'first, last', 'the parent was done once');
is(done($warehouse, 'shop', $tag), 'pick, pack', 'so was the child');
kid_of($id, 'completed');
is( $orders->safe_psql('postgres', "SELECT result FROM saga.steps WHERE saga_id = $id AND step = 'parcel' AND operation = 'action'"),
	qq({"pack": "$tag"}), 'its result is that of the step');
is( $warehouse->safe_psql('postgres', "SELECT parent_id IS NULL, root_id = saga_id, remote_coordinator IS NOT NULL FROM saga.sagas WHERE remote_parent_id = $id"),
	't|t|t', 'its parent is one of another database');

($id, $tag) = start('of parcel', child_fail => 'pack');
poll_saga($orders, $id, 'compensated');
is(done($warehouse, 'shop', $tag), 'pick, compensation pick', 'a child that fails goes back');
is(done($orders, 'app', $tag), 'first, compensation first', 'and so does its parent');
like(explanation($orders, $id, 'cause'), qr/^child saga \d+ at server "warehouse" was compensated \(SG022\) .*told to \(SG001\)/,
	'the cause is that of the child');

($id, $tag) = start('of parcel', fail => 'last');
poll_saga($orders, $id, 'compensated');
is(done($warehouse, 'shop', $tag), 'pick, pack, compensation pack, compensation pick',
	'a child that was done goes back with its parent');
is(done($orders, 'app', $tag), 'first, compensation first', 'and what came before it');
kid_of($id, 'compensated');

($id, $tag) = start('of waits');
my $kid = waiting_kid($id);
poll_followed($id);
like(explanation($orders, $id, 'waits for'), qr/^saga $kid of waits at server warehouse, since /, 'the parent says what it waits for');
is(explanation($warehouse, $kid, 'parent'), "saga $id of another database", 'the child says whose it is');
signal_kid($kid);
poll_saga($orders, $id, 'completed');
is(done($warehouse, 'shop', $tag), 'pick, pack', 'a child that waits for somebody is waited for');

($id, $tag) = start('of waits');
$kid = waiting_kid($id);
as_app($orders, "SELECT saga.cancel($id)");
poll_saga($orders, $id, 'compensated');
kid_of($id, 'compensated');
is(done($warehouse, 'shop', $tag), 'pick, compensation pick', 'a child that runs goes back when its parent is cancelled');
like(explanation($warehouse, $kid, 'cause'), qr/^its parent, a saga of another database, goes back \(SG010\)/, 'and says why');

# ---- stuck, until a person sees to it

as($warehouse, 'shop', 'INSERT INTO broken VALUES (1)');
($id, $tag) = start('of parcel', fail => 'last');
$kid = kid_of($id, 'stuck');
is($orders->safe_psql('postgres', "SELECT status FROM saga.sagas WHERE saga_id = $id"), 'compensating',
	'the parent of a child that is stuck waits');
as($warehouse, 'shop', "DELETE FROM broken; SELECT saga.retry($kid)");
poll_saga($orders, $id, 'compensated');
kid_of($id, 'compensated');

as($warehouse, 'shop', 'INSERT INTO broken VALUES (1)');
($id, $tag) = start('of parcel', fail => 'last');
$kid = kid_of($id, 'stuck');
as($warehouse, 'shop', "DELETE FROM broken; SELECT saga.abandon($kid)");
poll_saga($orders, $id, 'stuck');
like($orders->safe_psql('postgres', "SELECT last_error ->> 'message' FROM saga.stuck WHERE saga_id = $id"),
	qr/^child saga $kid at server "warehouse" was abandoned$/, 'one that was abandoned cannot be undone');
as_app($orders, "SELECT saga.retry($id)");
poll_sql($orders, "SELECT count(*) FROM saga.attempts WHERE saga_id = $id AND operation = 'compensation'", '2', 'another attempt');
poll_saga($orders, $id, 'stuck');
as_app($orders, "SELECT saga.skip($id)");
poll_saga($orders, $id, 'compensated');

# ---- elements, attempts, what cannot be

my $items = join ', ', map { qq({"tag": "item $_"}) } (1 .. 40);
$id = begin_saga($orders, 'many', qq({"tag": "many", "items": [$items]}));
poll_saga($orders, $id, 'completed');
is( $orders->safe_psql('postgres', "SELECT count(DISTINCT result ->> 'echo') FROM saga.steps WHERE saga_id = $id AND step = 'echo' AND operation = 'action'"),
	'40', 'one for each element, and each has its own result');
is($warehouse->safe_psql('postgres', "SELECT count(*) FROM saga.sagas WHERE remote_parent_id = $id AND status = 'completed'"),
	'40', 'they all complete');
$id = begin_saga($orders, 'many', qq({"tag": "many too", "fail": "last", "items": [$items]}));
poll_saga($orders, $id, 'compensated');
is($warehouse->safe_psql('postgres', "SELECT count(*) FROM saga.sagas WHERE remote_parent_id = $id AND status = 'compensated'"),
	'40', 'or go back');

($id) = start('behind pivot');
poll_saga($orders, $id, 'completed');
is( $warehouse->safe_psql('postgres', "SELECT string_agg(status::text, ' ' ORDER BY saga_id) FROM saga.sagas WHERE remote_parent_id = $id"),
	'compensated compensated completed', 'each attempt has a child of its own');

($id, $tag) = start('of irrevocable');
poll_saga($orders, $id, 'compensated');
like(explanation($orders, $id, 'cause'), qr/^child saga definition "irrevocable" has a pivot \(SG005\)/,
	'a child with a pivot is refused where it may have to go back');
($id, $tag) = start('of nothing');
poll_saga($orders, $id, 'compensated');
like(explanation($orders, $id, 'cause'), qr/^saga definition "nothing" does not exist \(42704\)/, 'so is one of no definition');
check_nothing_left('so far');

# ---- three levels

($id, $tag) = start('of billed');
poll_saga($orders, $id, 'completed');
is(done($orders, 'billing', $tag), 'bill', 'a child may have one in the first database');
is(done($warehouse, 'shop', $tag), 'pick, pack', 'and goes on when that is done');
($id, $tag) = start('of billed', fail => 'last');
poll_saga($orders, $id, 'compensated');
is(done($orders, 'billing', $tag), 'bill, compensation bill', 'it goes back with both');
is( $orders->safe_psql('postgres', "SELECT string_agg(depth::text, ' ' ORDER BY id) FROM saga.saga WHERE definition_id = (SELECT id FROM saga.definition_version WHERE name = 'bill')"),
	'2 2', 'how deep it is goes along');
poll_sql($orders, 'SELECT count(*) FROM saga.child_report', '0', 'no report to be left here');

# ---- orphans

($id, $tag) = start('of waits');
$kid = waiting_kid($id);
poll_followed($id);
as_app($orders, "SELECT saga.abandon($id)");
poll_saga($orders, $id, 'abandoned');
poll_sql($warehouse, "SELECT let_go FROM saga.remote_parent WHERE saga_id = $kid", 't', 'the child to be let go');
signal_kid($kid);
kid_of($id, 'completed');
is(done($warehouse, 'shop', $tag), 'pick, pack', 'a child whose parent was abandoned goes on by itself');

as_app($orders, q{SELECT saga.define('holds', child('parcel'), saga.signal_step('go'))});
($id, $tag) = start('holds');
$kid = kid_of($id, 'held');
is(explanation($warehouse, $kid, 'waits for'), "its parent, saga $id of another database", 'a child that is held says for whom');
my ($rc, $out, $err) = $warehouse->psql('postgres', "SELECT saga.cancel($kid)", extra_params => [ '-U', 'shop' ]);
like($err, qr/waits for its parent, a saga of another database/, 'nobody else has it go back');
as_app($orders, "SELECT saga.abandon($id)");
kid_of($id, 'completed');
check_nothing_left('after orphans');

# ---- something ends while a child is followed

sub session_of
{
	my ($like) = @_;

	return poll_sql($warehouse,
		"SELECT min(pid) FROM pg_stat_activity WHERE usename = 'shop' AND backend_type = 'client backend' AND query LIKE '$like'",
		qr/^\d+$/, "a session like $like");
}

my %breaks = (
	'the courier is killed' => sub {
		my $pid = courier_pid($orders);

		restart_after($orders, sub { kill 'KILL', $pid }, 'the courier was killed');
	},
	'the courier is terminated' => sub {
		$orders->safe_psql('postgres', 'SELECT pg_terminate_backend(' . courier_pid($orders) . ')');
	},
	'the session that follows is terminated' => sub {
		$warehouse->safe_psql('postgres', 'SELECT pg_terminate_backend(' . session_of('CALL saga.follow_children%') . ')');
	},
	'the way is cut' => sub { $proxy->cut; $proxy->pass; },
	'the child\'s server stops at once' => sub {
		$warehouse->stop('immediate');
		$warehouse->start;
	},
	'the parent\'s server stops at once' => sub {
		$orders->stop('immediate');
		$orders->start;
	});

foreach my $break (sort keys %breaks)
{
	my @sagas = map { [ start('of waits') ] } (1 .. 3);
	my @kids = map { waiting_kid($_->[0]) } @sagas;

	poll_followed($_->[0]) foreach @sagas;
	$breaks{$break}->();
	signal_kid($kids[0]);
	poll_sql($orders, "SELECT saga.cancel($sagas[1][0])", $sagas[1][0], 'a cancel');
	poll_saga($orders, $sagas[0][0], 'completed', "$break: the one to complete");
	poll_saga($orders, $sagas[1][0], 'compensated', "$break: another to go back");
	signal_kid($kids[2]);
	poll_saga($orders, $sagas[2][0], 'completed', "$break: the third to complete");
	is(done($warehouse, 'shop', $sagas[0][1]), 'pick, pack', "$break: it was done once");
	is(done($warehouse, 'shop', $sagas[1][1]), 'pick, compensation pick', "$break: and undone once");
	is($warehouse->safe_psql('postgres', "SELECT count(*) FROM saga.sagas WHERE remote_parent_id IN ($sagas[0][0], $sagas[1][0], $sagas[2][0])"),
		'3', "$break: there is one child of each");
}
check_nothing_left('after what was broken');

# ---- the answer of a begin is lost, and what is reported meanwhile

my $rule = $proxy->rule(from => 'server', match => '"saga_id"', do => 'cut', times => 1);
($id, $tag) = start('of parcel');
poll_saga($orders, $id, 'completed', 'a saga to complete, whose child\'s begin was not heard of');
is(done($warehouse, 'shop', $tag), 'pick, pack', 'a child whose begin was not heard of is begun once');
$proxy->drop_rule($rule) if defined $rule;

# ---- it cannot be reached when it is to be asked to go back

($id, $tag) = start('patient');
$kid = waiting_kid($id);
poll_followed($id);
$proxy->refuse;
$proxy->cut;
as_app($orders, "SELECT saga.cancel($id)");
poll_sql($orders, "SELECT count(*) FROM saga.tasks WHERE saga_id = $id AND cancel_requested", '1', 'the cancel to be acted upon');
$proxy->pass;
poll_saga($orders, $id, 'compensated', 'a saga to go back when the server of its child is there again');
is(done($warehouse, 'shop', $tag), 'pick, compensation pick', 'a child that could not be reached goes back later');

# one whose begin was never sent
$proxy->refuse;
$proxy->cut;
($id, $tag) = start('patient');
poll_sql($orders, "SELECT count(*) FROM saga.tasks WHERE saga_id = $id", qr/^[1-9]/, 'its child to be asked for');
as_app($orders, "SELECT saga.cancel($id)");
poll_saga($orders, $id, 'compensated', 'a saga to go back whose child was never begun');
$proxy->pass;
check_nothing_left('after nobody was reached');
is(done($warehouse, 'shop', $tag), '', 'a child that was not begun in time never is');

# ---- abandoned while it cannot be reached

($id, $tag) = start('of waits');
$kid = waiting_kid($id);
poll_followed($id);
$proxy->refuse;
$proxy->cut;
as_app($orders, "SELECT saga.abandon($id)");
poll_saga($orders, $id, 'abandoned');
signal_kid($kid);
kid_of($id, 'held');
$proxy->pass;
kid_of($id, 'completed');
check_nothing_left('after an orphan that could not be reached');

# ---- without processes over there

my ($depot, $depot_proxy) = new_remote('depot');
connect_remote($orders, 'depot', $depot_proxy->port);
$depot->safe_psql('postgres', "SELECT saga.grant_usage('shop')");
as($depot, 'shop', "$functions; SELECT saga.define('parcel', saga.step('pick', 'deed', 'deed'))");
as_app($orders, q{SELECT saga.define('at depot', saga.child_step('parcel', 'parcel', server => 'depot'))});
($id, $tag) = start('at depot');
poll_sql($depot, "SELECT count(*) FROM saga.sagas WHERE remote_parent_id = $id", '1', 'the child to be begun');
as($depot, 'shop', 'CALL saga.recover()');
poll_sql($depot, 'CALL saga.recover()', qr/^\d/, 'the foreground');
poll_sql($orders, "SELECT status FROM saga.steps WHERE saga_id = $id AND operation = 'action'", 'succeeded', 'its child to be done');
poll_sql($depot, "SELECT count(*) FROM saga.message", qr/^[1-9]/, 'the child to be let complete');
as($depot, 'shop', 'CALL saga.recover()');
poll_saga($orders, $id, 'completed', 'a parent whose child is advanced in the foreground');
is(done($depot, 'shop', $tag), 'pick', 'it was done once');

# ---- without the extension over there

my ($attic, $attic_proxy) = new_remote('attic', saga => 0);
connect_remote($orders, 'attic', $attic_proxy->port);
as_app($orders, q{SELECT saga.define('at attic', saga.child_step('parcel', 'parcel', server => 'attic'))});
($id, $tag) = start('at attic');
poll_saga($orders, $id, 'compensated');
like(explanation($orders, $id, 'cause'), qr/^the server has no extension "saga" that could begin a child saga \(3F000\)/,
	'without the extension there is a clear error');

# ---- another database of the same cluster

$warehouse->safe_psql('postgres', 'CREATE DATABASE annex');
$warehouse->safe_psql('annex', "CREATE EXTENSION saga; CREATE SCHEMA shop AUTHORIZATION shop; SELECT saga.grant_usage('shop'), saga.grant_remote('shop')");
$warehouse->safe_psql('annex', "$functions; SELECT saga.define('parcel', saga.step('pick', 'deed', 'deed'))", extra_params => [ '-U', 'shop' ]);
(my $password = password_of('warehouse')) =~ s/'/''/g;
$warehouse->safe_psql('postgres', <<"EOS");
CREATE SERVER annex FOREIGN DATA WRAPPER dblink_fdw
    OPTIONS (host '127.0.0.1', port '${\ $warehouse->port}', dbname 'annex');
GRANT USAGE ON FOREIGN SERVER annex TO shop;
CREATE USER MAPPING FOR shop SERVER annex OPTIONS (user 'shop', password '$password');
EOS
as($warehouse, 'shop', q{SELECT saga.define('in annex', saga.child_step('parcel', 'parcel', server => 'annex'), saga.step('last', 'deed', 'deed'))});
$id = as($warehouse, 'shop', q{SELECT saga.begin('in annex', '{"tag": "annex"}')});
poll_saga($warehouse, $id, 'completed');
$id = as($warehouse, 'shop', q{SELECT saga.begin('in annex', '{"tag": "back", "fail": "last"}')});
poll_saga($warehouse, $id, 'compensated');
is($warehouse->safe_psql('annex', "SELECT string_agg(what, ', ' ORDER BY n) FROM shop.done WHERE tag IN ('annex', 'back')"),
	'pick, pick, compensation pick', 'a child may be in another database of the same cluster');

# ---- a standby takes over, and lacks the last ones

my $standby = PostgreSQL::Test::Cluster->new('standby');
$warehouse->backup('standby');
$standby->init_from_backup($warehouse, 'standby', has_streaming => 1);
$standby->start;
my ($known, $known_tag) = start('of waits');
my $known_kid = waiting_kid($known);
poll_followed($known);
$warehouse->wait_for_catchup($standby, 'replay');
$standby->stop;
my ($lost, $lost_tag) = start('of waits');
waiting_kid($lost);
poll_followed($lost);
$warehouse->stop('immediate');
$standby->append_conf('postgresql.conf', "primary_conninfo = ''");
$standby->start;
$standby->promote;
$proxy->target($standby->port);
$warehouse = $standby;
my $lost_kid = waiting_kid($lost);
signal_kid($known_kid);
signal_kid($lost_kid);
poll_saga($orders, $known, 'completed', 'a saga whose child the standby knows');
poll_saga($orders, $lost, 'completed', 'a saga whose child was lost');
is(done($warehouse, 'shop', $known_tag), 'pick, pack', 'a child that the standby knows goes on');
is(done($warehouse, 'shop', $lost_tag), 'pick, pack', 'one that was lost is begun again');
check_nothing_left('after the standby took over');

# ---- the parent's database is restored from a dump, and adopts its sagas

($id, $tag) = start('of waits');
$kid = waiting_kid($id);
poll_followed($id);
my $dump = PostgreSQL::Test::Utils::tempdir() . '/dump';
$orders->run_log([ 'pg_dump', '--file', $dump, $orders->connstr('postgres') ]) or die 'pg_dump failed';
$orders->stop('immediate');
my $restored = SagaTest->new_node('restored', start => 1);
$restored->safe_psql('postgres', 'CREATE ROLE app LOGIN; CREATE ROLE billing LOGIN');
$restored->run_log([ 'psql', '-XqAt', '-v', 'ON_ERROR_STOP=1', '-d', $restored->connstr('postgres'), '-f', $dump ])
  or die 'psql failed';
$orders = $restored;
signal_kid($kid);
kid_of($id, 'held');
is($orders->safe_psql('postgres', "SELECT waiting_for FROM saga.sagas WHERE saga_id = $id"), 'saga.adopt()',
	'a restored dump follows nobody');
$orders->safe_psql('postgres', 'CALL saga.adopt()');
poll_saga($orders, $id, 'completed', 'a saga that was restored');
kid_of($id, 'completed');
is(done($warehouse, 'shop', $tag), 'pick, pack', 'its child was done once');
check_nothing_left('after the restore');

done_testing();
