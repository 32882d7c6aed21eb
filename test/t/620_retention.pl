# Retention: what ended longer ago than its definition's retention goes, by
# rotation and TRUNCATE; what is not final, is kept longer, or is referred to
# survives, whole, and goes on.  Open transactions, prepared ones, old snapshots,
# steps in flight, crashes at any moment, dumps and standbys cost no saga, and
# nobody who begins one waits for it.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use SagaTest;
use Test::More;

# what the coordinator does by itself is tried at last
my $node = SagaTest->new_node(
	'main',
	start            => 1,
	allows_streaming => 1,
	conf             => { 'saga.retention_interval' => 0, 'jit' => 'off' });

$node->safe_psql('postgres', <<'EOS');
CREATE EXTENSION saga;
CREATE TABLE effect (saga_id bigint, step text, operation text, PRIMARY KEY (saga_id, step, operation));
CREATE FUNCTION work(context jsonb) RETURNS text LANGUAGE sql AS $$
	INSERT INTO effect VALUES ((context ->> 'saga_id')::bigint, context ->> 'step', context ->> 'operation')
	RETURNING step $$;
CREATE FUNCTION large(context jsonb) RETURNS text LANGUAGE sql AS $$
	SELECT string_agg(md5(i::text || (context ->> 'saga_id')), '') FROM generate_series(1, 2000) i $$;
CREATE FUNCTION fails() RETURNS void LANGUAGE plpgsql AS $$
BEGIN RAISE EXCEPTION 'never' USING DETAIL = repeat('x', 9000); END $$;
CREATE FUNCTION gate(name text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN PERFORM pg_advisory_xact_lock_shared(hashtext(name)); END $$;
CREATE TABLE switch (works boolean);
INSERT INTO switch VALUES (false);
CREATE FUNCTION moody() RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	IF NOT (SELECT works FROM switch) THEN RAISE EXCEPTION 'not today'; END IF;
	RETURN 'at last';
END $$;
SELECT saga.create_queue('q');
SELECT saga.define('quick', saga.step('one', 'work'));
SELECT saga.define('kept', saga.step('one', 'work', 'work'), saga.step('two', 'large'),
	saga.step('three', 'fails', retry => saga.retry_policy(max_attempts => 2, initial_delay => '1 ms', retry_on => '{P0001}')));
SELECT saga.define('signal', saga.step('one', 'large'), saga.signal_step('go'), saga.step('two', 'work'));
SELECT saga.define('timer', saga.step('one', 'work'), saga.timer_step('nap', '1 h'));
SELECT saga.define('task', saga.step('one', 'work'), saga.external_step('ask', queue => 'q'), saga.step('two', 'work'));
SELECT saga.define('stuck', saga.step('one', 'work', 'moody', compensation_retry => saga.retry_policy(max_attempts => 1)),
	saga.step('two', 'fails'));
SELECT saga.define('ended_child', saga.step('one', 'work', 'work'), saga.step('two', 'fails'));
SELECT saga.define('child', saga.step('one', 'work', 'work'));
SELECT saga.define('parent', saga.child_step('ended', 'ended_child',
	retry => saga.retry_policy(initial_delay => '1 h', max_delay => '1 h', retry_on => '{SG022}')));
SELECT saga.define('family', saga.child_step('held', 'child'), saga.signal_step('go'), saga.step('two', 'work'));
SELECT saga.define('turns', saga.step('one', 'work'), saga.signal_step('go'), saga.step('two', 'work'));
SELECT saga.configure('turns', exclusive => 'k');
SELECT saga.define('gated', saga.step('one', 'gate'), saga.step('two', 'work'));
SELECT saga.define('strict', saga.step('one', 'work', isolation => 'repeatable read'),
	saga.step('two', 'work', isolation => 'serializable'));
SELECT saga.define('fan', saga.step('one', 'work'), saga.step('a', 'gate', after => '{one}'),
	saga.step('b', 'gate', after => '{one}'), saga.step('end', 'work', after => '{a,b}'));
SELECT saga.configure(name, retention => '0') FROM saga.definitions WHERE name NOT IN ('kept');
-- a saga as people see it
CREATE VIEW whole AS
	SELECT s.saga_id, to_jsonb(s) AS saga,
		(SELECT jsonb_agg(to_jsonb(t) ORDER BY t.position, t.operation, t.round, t.element)
		 FROM saga.steps t WHERE t.saga_id = s.saga_id) AS steps,
		(SELECT jsonb_agg(to_jsonb(a) ORDER BY a.step, a.operation, a.attempt) FROM saga.attempts a WHERE a.saga_id = s.saga_id) AS attempts,
		(SELECT jsonb_agg(to_jsonb(r) ORDER BY r.id) FROM saga.requests r WHERE r.saga_id = s.saga_id) AS requests
	FROM saga.sagas s;
-- what must hold of the tables at any time
CREATE FUNCTION broken() RETURNS TABLE (what text, n bigint) LANGUAGE sql AS $$
	SELECT * FROM (
		SELECT 'sagas in two leaves', count(*) FROM (SELECT FROM saga.saga GROUP BY id HAVING count(*) > 1) x
		UNION ALL
		SELECT 'steps without their saga', count(*) FROM saga.step t
		WHERE NOT EXISTS (SELECT FROM saga.saga s WHERE s.id = t.saga_id AND s.slot = t.slot)
		UNION ALL
		SELECT 'attempts without their saga', count(*) FROM saga.attempt t
		WHERE NOT EXISTS (SELECT FROM saga.saga s WHERE s.id = t.saga_id AND s.slot = t.slot)
		UNION ALL
		SELECT 'history without its saga', count(*) FROM saga.history t
		WHERE NOT EXISTS (SELECT FROM saga.saga s WHERE s.id = t.saga_id AND s.slot = t.slot)
		UNION ALL
		SELECT 'keys without their saga', count(*) FROM saga.key k
		WHERE NOT EXISTS (SELECT FROM saga.saga s WHERE s.id = k.saga_id)
		UNION ALL
		SELECT 'sagas without steps', count(*) FROM saga.saga s
		WHERE s.turn > 0 AND s.status <> 'abandoned' AND s.started_at IS NOT NULL
			AND NOT EXISTS (SELECT FROM saga.step t WHERE t.saga_id = s.id)
	) x (what, n) WHERE n > 0 $$;
EOS

sub retain
{
	my ($budget) = @_;

	$budget = '20 s' unless defined $budget;
	return $node->safe_psql('postgres', "CALL saga.retain('$budget')");
}

# With nobody in the way, until it waits for nothing.
sub retain_all
{
	return poll_sql($node, "CALL saga.retain('20 s')", '0|0|', 'everything to be removed');
}

sub begin
{
	my ($definition, $input, $more) = @_;

	$input = '{}' unless defined $input;
	$more = $more ? ", $more" : '';
	return $node->safe_psql('postgres', "SELECT saga.begin('$definition', '$input'$more)");
}

# The definitions of sagas that are there.
sub there
{
	return $node->safe_psql('postgres',
		"SELECT string_agg(definition || ' ' || n, ', ' ORDER BY definition) FROM"
		  . " (SELECT definition, count(*) AS n FROM saga.sagas GROUP BY definition) x");
}

# Something that can be removed.
sub begin_quick
{
	$node->safe_psql('postgres', "SELECT count(saga.begin('quick')) FROM generate_series(1, 20)");
	poll_sql($node,
		"SELECT count(*) FROM saga.sagas WHERE definition = 'quick' AND finished_at IS NULL AND start_at IS NULL",
		'0', 'them to complete');
	return;
}

sub poll_saga
{
	my ($id, $expected) = @_;

	poll_sql($node,
		"SELECT concat_ws(' ', status, waiting_for) FROM saga.sagas WHERE saga_id = $id",
		$expected, "saga $id to be '$expected'");
	return $id;
}

sub leaf_of
{
	my ($id) = @_;

	return $node->safe_psql('postgres', "SELECT slot FROM saga.saga WHERE id = $id");
}

sub whole
{
	my ($where) = @_;

	return $node->safe_psql('postgres',
		"SELECT md5(string_agg(w::text, ' ' ORDER BY saga_id)) FROM whole w WHERE $where");
}

# ---- survivors

my %id;
$node->safe_psql('postgres',
	"SELECT count(saga.begin('quick', key => 'quick ' || i)) FROM generate_series(1, 500) i");
$id{kept} = begin('kept', '{}', "key => 'kept'");
$id{signal} = begin('signal', '{}', "key => 'signal'");
$id{timer} = begin('timer');
$id{scheduled} = begin('quick', '{}', "start_at => now() + interval '1 h'");
$id{task} = begin('task');
$id{stuck} = begin('stuck');
$id{family} = begin('family');
$id{parent} = begin('parent');
$id{first} = begin('turns', '{"k": 1}');
poll_saga($id{first}, 'running signal');
$id{second} = begin('turns', '{"k": 1}');
$id{paused} = begin('signal');
poll_saga($id{paused}, 'running signal');
$node->safe_psql('postgres', "SELECT saga.pause($id{paused}, 'why not')");
poll_saga($id{paused}, 'paused resume');
poll_saga($id{kept}, 'compensated');
poll_saga($id{signal}, 'running signal');
poll_saga($id{timer}, 'running timer');
poll_saga($id{task}, 'running participant');
poll_saga($id{stuck}, 'stuck retry, skip or abandon');
poll_saga($id{family}, 'running signal');
# its child has ended, and it has not
poll_saga($id{parent}, 'running next attempt');
poll_sql($node, "SELECT count(*) FROM saga.sagas WHERE definition = 'quick' AND status = 'completed'",
	'500', 'the quick ones to complete');
my $lease = $node->safe_psql('postgres',
	"SELECT format('%s, %L', id, lease_token) FROM saga.claim_tasks('q', lease => '1 h')");
poll_saga($id{second}, 'running lock');
# one that a saga of another database has begun, and may come back to
$node->safe_psql('postgres', <<'EOS');
INSERT INTO saga.remote_parent (token, begun_at, coordinator, saga_id, element, attempt, round, step, role_name)
SELECT gen_random_uuid(), now(), gen_random_uuid(), saga_id, 0, 1, 0, 'far', 'postgres' FROM saga.key WHERE key = 'quick 500'
EOS

my $before = whole("saga ->> 'definition' <> 'quick' OR saga ->> 'status' = 'scheduled' OR saga ->> 'key' = 'quick 500'");
is(retain(), '499|14|', 'what has expired goes, the others are moved');
is(there(),
	'child 1, ended_child 1, family 1, kept 1, parent 1, quick 2, signal 2, stuck 1, task 1, timer 1, turns 2',
	'these survive');
is(whole('true'), $before, '... and are what they were');
is($node->safe_psql('postgres', 'SELECT * FROM broken()'), '', '... whole');
is($node->safe_psql('postgres', 'SELECT count(*) FROM saga.key'), '3', 'keys go with their sagas');
is($node->safe_psql('postgres', "SELECT string_agg(slot || ' ' || state, ', ' ORDER BY slot) FROM saga.storage"),
	'0 empty, 1 current, 2 empty, 3 empty, 4 empty, 5 empty, 6 survivors, 7 empty',
	'a leaf was emptied');
is( $node->safe_psql('postgres',
		"SELECT bool_and(pg_relation_size('saga.' || t || '_0') = 0) FROM unnest('{saga,step,attempt,history}'::text[]) t"),
	't', '... on disk');
is(begin('quick', '{}', "key => 'quick 1', on_duplicate => 'error'") > $id{second},
	1, 'a key that has gone can be used again');
is(begin('signal', '{}', "key => 'signal'"), $id{signal},
	'the key of a survivor is taken');

# ---- they go on, though what others have of them says where they were

$node->safe_psql('postgres', "SELECT saga.signal($id{signal}, 'go')");
poll_saga($id{signal}, 'completed');
$node->safe_psql('postgres', "SELECT saga.signal($id{first}, 'go')");
poll_saga($id{first}, 'completed');
poll_saga($id{second}, 'running signal');
$node->safe_psql('postgres', "SELECT saga.complete_task($lease, '1')");
poll_saga($id{task}, 'completed');
$node->safe_psql('postgres', "SELECT saga.signal($id{family}, 'go')");
poll_saga($id{family}, 'completed');
is($node->safe_psql('postgres', "SELECT status FROM saga.sagas WHERE definition = 'child'"),
	'completed', 'a held child is released');
$node->safe_psql('postgres', "UPDATE switch SET works = true; SELECT saga.retry($id{stuck})");
poll_saga($id{stuck}, 'compensated');
$node->safe_psql('postgres', "SELECT saga.resume($id{paused})");
poll_saga($id{paused}, 'running signal');
$node->safe_psql('postgres', "SELECT saga.cancel($id{timer}), saga.cancel($id{parent})");
poll_saga($id{timer}, 'compensated');
poll_saga($id{parent}, 'compensated');
is($node->safe_psql('postgres',
		"SELECT count(*) FROM saga.lock l WHERE NOT EXISTS (SELECT FROM saga.saga s WHERE s.id = l.saga_id AND s.due_at IS NOT NULL)"),
	'0', 'no lock is left behind');
$node->safe_psql('postgres', 'UPDATE saga.remote_parent SET let_go = true');
retain_all();
is(there(), 'kept 1, quick 1, signal 1, turns 1', 'those that ended go');
is($node->safe_psql('postgres', 'SELECT * FROM broken()'), '', '... whole');

# a message whose sender has read where the saga was before it was moved
my $sender = $node->background_psql('postgres', on_error_stop => 1);
$sender->query_safe('BEGIN');
$sender->query_safe("SELECT saga.signal($id{paused}, 'go')");
my $leaf = leaf_of($id{paused});
begin_quick();
retain('1 s');
is(retain('1 s') =~ /tables$/ ? 'waits' : 'done', 'waits',
	'a leaf in which somebody has looked is not emptied');
$sender->query_safe('COMMIT');
$sender->quit;
poll_saga($id{paused}, 'completed');
retain_all();

# ---- begun, and not committed

sub begin_open
{
	my $open = $node->background_psql('postgres', on_error_stop => 1);

	$open->query_safe('BEGIN');
	$open->query_safe("SELECT saga.begin('quick', key => 'open')");
	return $open;
}

my $current = "SELECT slot FROM saga.storage WHERE state = 'current'";
my $open = begin_open();
$leaf = $node->safe_psql('postgres', $current);
begin_quick();
like(retain('1 s'), qr/tables$/, 'an open begin keeps its leaf');
isnt($node->safe_psql('postgres', $current), $leaf, '... which is not the current one any more');
my $start = time();
begin('quick');
cmp_ok(time() - $start, '<', 20, '... and nobody waits for it');
$open->query_safe('COMMIT');
$open->quit;
poll_sql($node, "SELECT status FROM saga.sagas WHERE key = 'open'", 'completed',
	'the saga of an old leaf to run');
retain_all();
is($node->safe_psql('postgres', "SELECT count(*) FROM saga.sagas WHERE key = 'open'"),
	'0', 'then it goes, too');

$node->safe_psql('postgres',
	"BEGIN; SELECT saga.begin('signal', key => 'prepared'); PREPARE TRANSACTION 'p'");
$leaf = $node->safe_psql('postgres', $current);
begin_quick();
like(retain('1 s'), qr/tables$/, 'a prepared begin keeps its leaf');
$node->restart;
like(retain('1 s'), qr/tables$/, '... over a restart');
$node->safe_psql('postgres', "COMMIT PREPARED 'p'");
my $prepared = $node->safe_psql('postgres', "SELECT saga_id FROM saga.sagas WHERE key = 'prepared'");
poll_saga($prepared, 'running signal');
retain_all();
isnt(leaf_of($prepared), $leaf, '... and is moved when it is committed');
$node->safe_psql('postgres', "SELECT saga.signal('signal', 'prepared', 'go')");
poll_saga($prepared, 'completed');

# ---- in work

my $gate = $node->background_psql('postgres', on_error_stop => 1);
$gate->query_safe("SELECT pg_advisory_lock(hashtext('g'))");
begin_quick();
$id{gated} = begin('gated', '{"name": "g"}');
$id{fan} = begin('fan', '{"name": "g"}');
poll_sql($node, "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'advisory' AND backend_type = 'saga worker'",
	'2', 'the steps to run');
is($node->safe_psql('postgres', "SELECT count(*) > 0 FROM saga.branch"), 't', 'there are branches');
$leaf = leaf_of($id{gated});
like(retain('1 s'), qr/(tables|work)$/, 'a step in work keeps its leaf');
$gate->query_safe("SELECT pg_advisory_unlock_all()");
poll_saga($id{gated}, 'completed');
poll_saga($id{fan}, 'completed');
retain_all();
is($node->safe_psql('postgres', "SELECT pg_relation_size('saga.saga_$leaf')"), '0', '... and then it is emptied');
is($node->safe_psql('postgres',
		"SELECT count(*), count(DISTINCT (saga_id, step)) FROM effect WHERE saga_id IN ($id{gated}, $id{fan})"),
	'3|3', 'each step was done once');

# ---- old snapshots

$id{seen} = begin('signal', '{}', "key => 'seen'");
poll_saga($id{seen}, 'running signal');
$leaf = leaf_of($id{seen});
my $reader = $node->background_psql('postgres', on_error_stop => 1);
$reader->query_safe('BEGIN ISOLATION LEVEL REPEATABLE READ');
$reader->query_safe('SELECT 1 FROM effect LIMIT 1');
begin_quick();
like(retain('1 s'), qr/old snapshots$/, 'an old snapshot keeps a leaf');
isnt(leaf_of($id{seen}), $leaf, '... which a saga has left');
is($reader->query_safe("SELECT status FROM saga.sagas WHERE saga_id = $id{seen}"),
	'running', '... that is still seen by it');
$reader->query_safe('COMMIT');
$reader->quit;
retain_all();
is($node->safe_psql('postgres', "SELECT pg_relation_size('saga.saga_$leaf')"), '0', '... and not longer');

# ---- a definition's retention is made longer between the look and the end

begin_quick();
$reader = $node->background_psql('postgres', on_error_stop => 1);
$reader->query_safe('BEGIN');
$reader->query_safe('SELECT count(*) FROM saga.sagas');
my $job = $node->background_psql('postgres', on_error_stop => 1);
$job->query_safe("CALL saga.retain('500 ms')");
$node->safe_psql('postgres', "SELECT saga.configure('quick', retention => '1 day')");
$reader->query_safe('COMMIT');
$reader->quit;
$job->query_safe("CALL saga.retain('10 s')");
$job->quit;
is($node->safe_psql('postgres', "SELECT count(*) FROM saga.sagas WHERE definition = 'quick' AND status = 'completed'"),
	'20', 'what is to be kept now is kept');
$node->safe_psql('postgres', "SELECT saga.configure('quick', retention => '0')");

# ---- two at a time, and many sagas that are begun, run and end meanwhile;
#      the server crashes in the middle

my @load;
my $rotations = $node->safe_psql('postgres', 'SELECT sum(generation) FROM saga.slot');
my $script = PostgreSQL::Test::Utils::tempdir() . "/load.sql";
append_to_file($script, <<'EOS' x 3000);
SELECT FROM pg_sleep(0.01);
SELECT saga.begin(d, '{"name": "g", "k": 1}') FROM unnest('{quick,quick,quick,quick,signal,kept,fan,family,strict}'::text[]) d;
EOS
my $retainer = PostgreSQL::Test::Utils::tempdir() . "/retain.sql";
append_to_file($retainer, "CALL saga.retain('200 ms');\nSELECT FROM pg_sleep(0.01);\n" x 3000);
foreach my $file ($script, $script, $retainer, $retainer)
{
	my %client = (out => '', err => '');

	$client{handle} = IPC::Run::start(
		[ $node->installed_command('psql'), '-XAtq', '-d', $node->connstr('postgres'), '-f', $file ],
		'<', \undef, '>', \$client{out}, '2>', \$client{err});
	push @load, \%client;
}
poll_sql($node, "SELECT sum(generation) > $rotations + 12 FROM saga.slot", 't', 'some rotations');
$node->stop('immediate');
foreach my $client (@load)
{
	eval { $client->{handle}->finish; };
}
my @begun = grep { /^\d+$/ } map { split /\n/, $_->{out} } @load[0, 1];
unlike(join('', map { $_->{err} } @load), qr/ERROR:/,
	'nobody was in the way of anybody');
$node->start;
is($node->safe_psql('postgres', 'SELECT * FROM broken()'), '', 'after a crash all is whole');
$node->safe_psql('postgres', "SELECT saga.signal(saga_id, 'go', on_duplicate => 'ignore') FROM saga.sagas"
	  . " WHERE definition IN ('signal', 'family', 'turns') AND finished_at IS NULL");
poll_sql($node, "SELECT count(*) FROM saga.saga WHERE due_at IS NOT NULL AND start_at IS NULL", '0',
	'every saga to end');
is($node->safe_psql('postgres',
		"SELECT count(*) FROM saga.saga WHERE due_at IS NULL AND status NOT IN ('completed', 'compensated')"),
	'0', '... as it should');
cmp_ok(scalar(@begun), '>', 100, 'many were begun');
is( $node->safe_psql('postgres',
		"SELECT count(*) FROM unnest('{" . join(',', @begun) . "}'::bigint[]) i"
		  . " WHERE NOT EXISTS (SELECT FROM effect e WHERE e.saga_id = i)"
		  . " AND NOT EXISTS (SELECT FROM saga.saga s WHERE s.id = i)"),
	'0', 'none was lost');
is($node->safe_psql('postgres', "SELECT count(*) FROM saga.message") + 0, 0, 'no message is left');
retain_all();
is( $node->safe_psql('postgres',
		"SELECT count(*) FILTER (WHERE definition <> 'kept' AND finished_at IS NOT NULL) <= count(*) / 2.0 FROM saga.sagas"),
	't', 'what has expired goes, or takes no more room than what is kept');
is($node->safe_psql('postgres', "SELECT count(*) FROM saga.storage WHERE state = 'closed'"),
	'0', '... and no closed slot is left');
is($node->safe_psql('postgres', 'SELECT * FROM broken()'), '', '... and nothing else');

# ---- export

like(
	$node->safe_psql('postgres',
		"SELECT count(*), bool_and(e #>> '{saga,status}' = 'compensated' AND jsonb_array_length(e -> 'attempts') = 2"
		  . " AND jsonb_array_length(e -> 'steps') > 2 AND e ? 'requests')"
		  . " FROM saga.export() e WHERE e #>> '{saga,definition}' = 'kept'"),
	qr/^[1-9]\d*\|t$/, 'an export has all of a saga');
is($node->safe_psql('postgres', "SELECT count(*) FROM saga.export(now() - interval '1 h')"),
	'0', '... that ended before then');

# ---- rights

$node->safe_psql('postgres', <<'EOS');
CREATE ROLE app;
CREATE ROLE monitor;
CREATE ROLE operator;
SELECT saga.grant_usage('app'), saga.grant_monitor('monitor'), saga.grant_operator('operator');
EOS
my ($rc, $out, $err) = $node->psql('postgres', 'SET ROLE app; CALL saga.retain()');
like($err, qr/permission denied for procedure retain/, 'not everybody removes sagas');
is($node->safe_psql('postgres', 'SET ROLE app; SELECT count(*) FROM saga.export()'),
	'0', '... or sees those of others');
is($node->safe_psql('postgres', 'SET ROLE monitor; SELECT count(*) > 0 FROM saga.export()'),
	't', 'monitors see them');
is($node->safe_psql('postgres', 'SET ROLE monitor; SELECT count(*) FROM saga.storage'), '8', '... and the slots');
is($node->safe_psql('postgres', "SET ROLE operator; CALL saga.retain('5 s')"), '0|0|', 'operators may');
($rc, $out, $err) = $node->psql('postgres', 'BEGIN; CALL saga.retain()');
like($err, qr/saga.retain\(\)/, 'not in a transaction block');

# ---- whatever plan is chosen for the scan: here rows come by definition, and
# more are to be kept than are moved at once

$node->safe_psql('postgres', 'CREATE DATABASE plans');
$node->safe_psql('plans', <<'EOS');
CREATE EXTENSION saga;
CREATE FUNCTION nothing() RETURNS void LANGUAGE sql AS '';
SELECT saga.define('a long', saga.step('one', 'nothing'));
SELECT saga.define('b short', saga.step('one', 'nothing'));
SELECT saga.configure('b short', retention => '1 s');
SELECT saga.begin(CASE WHEN i % 7 < 3 THEN 'a long' ELSE 'b short' END, '{}', key => i::text) FROM generate_series(1, 700) i;
EOS
poll_sql($node, 'SELECT count(*) FROM saga.saga WHERE due_at IS NULL', '700', 'them to complete', dbname => 'plans');
# long enough ago that nobody looks for them in particular
$node->safe_psql('plans', "UPDATE saga.saga SET finished_at = finished_at - interval '1 day', created_at = created_at - interval '1 day'");
foreach my $options ('-c enable_nestloop=off -c enable_hashjoin=off', '-c enable_nestloop=off -c enable_mergejoin=off')
{
	local $ENV{PGOPTIONS} = $options;

	poll_sql($node, "CALL saga.retain('20 s')", '0|0|', 'everything to be removed', dbname => 'plans');
	is($node->safe_psql('plans', "SELECT count(*) FROM saga.sagas WHERE definition = 'a long'"), '300',
		"what is to be kept is kept: $options");
	is($node->safe_psql('plans', 'SELECT count(*) FROM saga.key'),
		$node->safe_psql('plans', 'SELECT count(*) FROM saga.saga'), '... and the keys of no other');
	$node->safe_psql('plans', "SELECT saga.begin('b short') FROM generate_series(1, 900)");
	poll_sql($node, 'SELECT count(*) FROM saga.saga WHERE due_at IS NOT NULL', '0', 'more to complete', dbname => 'plans');
	$node->safe_psql('plans', "UPDATE saga.saga SET finished_at = finished_at - interval '1 day' WHERE finished_at > now() - interval '1 h'");
}
$node->safe_psql('postgres', 'DROP DATABASE plans');

# ---- a dump: nothing of it is touched before it is adopted

my $dumps = PostgreSQL::Test::Utils::tempdir();
my $n = $node->safe_psql('postgres', 'SELECT count(*) FROM saga.saga');
$node->safe_psql('postgres', "UPDATE saga.saga SET finished_at = finished_at - interval '1 year' WHERE due_at IS NULL");
$node->safe_psql('postgres', 'CREATE DATABASE copy');
command_ok([ 'pg_dump', '-Fc', '-f', "$dumps/dump", '-d', $node->connstr('postgres') ], 'a dump');
command_ok([ 'pg_restore', '--exit-on-error', '-d', $node->connstr('copy'), "$dumps/dump" ], '... is restored');
is($node->safe_psql('copy', "SELECT count(*) FROM saga.slot"), '8', 'the slots are known there');
$node->safe_psql('copy', "CALL saga.retain('1 s')") for 1 .. 2;
is($node->safe_psql('copy', 'SELECT count(*) FROM saga.saga'), $n, 'nothing goes before it is adopted');
is($node->safe_psql('copy', "SELECT DISTINCT waits_for FROM saga.storage WHERE waits_for IS NOT NULL"),
	'saga.adopt()', '... which is said');
$node->safe_psql('copy', 'CALL saga.adopt()');
$node->safe_psql('copy', "CALL saga.retain('1 s')") for 1 .. 2;
is($node->safe_psql('copy', "SELECT count(*) FROM saga.sagas WHERE definition = 'kept'"),
	$node->safe_psql('copy', "SELECT count(*) FROM saga.saga WHERE due_at IS NULL"),
	'then its retention begins');
is($node->safe_psql('copy', 'SELECT * FROM broken()'), '', 'all is whole');
retain_all();
is(there(), 'quick 1', 'where they come from they are gone');
$node->safe_psql('postgres', 'DROP DATABASE copy');

# ---- a standby, and by itself

$node->backup('backup');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($node, 'backup', has_streaming => 1);
$standby->append_conf('postgresql.conf', "saga.retention_interval = '1s'");
$standby->start;
($rc, $out, $err) = $standby->psql('postgres', 'CALL saga.retain()');
like($err, qr/during recovery|read-only/, 'not on a standby');
$node->append_conf('postgresql.conf', "saga.retention_interval = '1s'");
$node->reload;
$id{again} = begin('signal', '{}', "key => 'again'");
$node->safe_psql('postgres', "SELECT count(saga.begin('quick')) FROM generate_series(1, 200)");
# there is nothing else to be done: the pause of what was 0 has to end first
start_coordinator($node);
poll_sql($node, "SELECT count(*) FROM saga.sagas", '2', 'the coordinator to remove what has expired');
pass('the coordinator does it by itself');
$node->wait_for_catchup($standby, 'replay');
is($standby->safe_psql('postgres', "SELECT string_agg(definition, ',' ORDER BY definition) FROM saga.sagas"),
	'quick,signal', 'on a standby, too');
$node->stop('immediate');
$standby->promote;
$standby->safe_psql('postgres', "SELECT saga.signal($id{again}, 'go')");
poll_sql($standby, "SELECT string_agg(definition, ',') FROM saga.sagas", 'quick',
	'the promoted standby to run it and to remove it');
pass('it goes on when that is promoted');
is($standby->safe_psql('postgres', 'SELECT * FROM broken()'), '', '... whole');
$standby->stop;

done_testing();
