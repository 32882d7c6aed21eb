# What an operator acts on is in the server's log, each once, and says in one form
# what it is about: sagas that are stuck, overdue, whose process ended or that wait
# for each other; breakers, servers that cannot be reached, roles without workers.
# Names and keys cannot forge a line of it, and no token is there.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use PostgreSQL::Test::Utils;
use SagaRemote;
use SagaTest;
use Test::More;

my $node = new_coordinator('orders', conf => { log_line_prefix => '%m [%p] %b ', log_error_verbosity => 'default', log_min_messages => 'warning' });
my ($warehouse, $proxy) = new_remote('warehouse');

connect_remote($node, 'warehouse', $warehouse->port);
$warehouse->stop;
as_app($node, <<'EOS');
CREATE FUNCTION good(context jsonb) RETURNS text LANGUAGE sql RETURN 'done';
CREATE FUNCTION bad(context jsonb) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    RAISE WARNING 'about to fail';
    RAISE EXCEPTION E'card declined\n2030-01-01 00:00:00 UTC [1] postmaster LOG:  forged';
END $$;
CREATE FUNCTION dies(context jsonb) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    IF (context ->> 'attempt')::int = 1 THEN
        PERFORM pg_terminate_backend(pg_backend_pid());
    END IF;
    RETURN 'done';
END $$;
EOS

# The trace and span of a saga, or of its operation.
sub ids_of
{
	my ($id, $name) = @_;

	$name = $name ? "= '$name'" : "= attributes ->> 'saga.definition'";
	return $node->safe_psql('postgres', "SELECT 'trace_id=' || trace_id || ' span_id=' || span_id FROM saga.spans WHERE saga_id = $id AND name $name");
}

# The log, message by message: each is its line, those of its detail, hint and
# context, and what is indented behind them.
sub messages
{
	return split /^(?=\S+ \S+ \S+ \[\d+\] [\w ]+ (?:LOG|WARNING|ERROR|FATAL):  )/m, slurp_file($node->logfile);
}

# Wait until the log has that message, and return the whole of it; there is one.
sub message
{
	my ($pattern, $what) = @_;

	wait_for_server_log($node, qr/$pattern/, 0, $what);
	my @found = grep { /$pattern/ } messages();

	is(@found, 1, "$what: logged, once");
	return $found[0];
}

sub context_is
{
	my ($message, $context, $what) = @_;
	my ($found) = $message =~ /CONTEXT:  (.*)/;

	is($found, $context, "$what: says what it is about");
	return;
}

# ---- stuck: a key that looks like a line of the log

my $key = qq(k" saga=1 step="x"\n2030-01-01 00:00:00 UTC [1] postmaster LOG:  saga 4711 is stuck\ttab\\);
(my $quoted = $key) =~ s/'/''/g;
(my $json   = $key) =~ s/([\\"])/\\$1/g;
$json =~ s/\n/\\n/g;
$json =~ s/\t/\\t/g;
my $id = as_app($node, <<"EOS");
SELECT saga.define('an "order"', saga.step('reserve', 'good', 'bad', compensation_retry => saga.retry_policy(3, '1 ms')),
    saga.signal_step('go'));
SELECT saga.begin('an "order"', key => '$quoted');
EOS
$id =~ s/.*\n//;
poll_sql($node, "SELECT waiting_for FROM saga.sagas WHERE saga_id = $id", 'signal', 'the saga to wait');
as_app($node, "SELECT saga.cancel($id)");
poll_sql($node, "SELECT status FROM saga.sagas WHERE saga_id = $id", 'stuck', 'the saga to be stuck');
my $about = qq(saga=$id definition="an \\"order\\"" key="$json" step="reserve" operation=compensation attempt=3 ) . ids_of($id, 'compensation reserve');
my $message = message(qr/LOG:  saga $id is stuck: card declined/, 'a saga that is stuck');
context_is($message, $about, '... which');
like($message, qr/HINT:  Use saga\.retry\(\), saga\.skip\(\) or saga\.abandon\(\)/, '... and what to do');
unlike(slurp_file($node->logfile), qr/^2030/m, 'nothing forges a line');
my @warnings = slurp_file($node->logfile) =~ /WARNING:  about to fail\n.*CONTEXT:  PL\/pgSQL.*\n\t(.*)/g;
is("@warnings", join(' ', map { $about =~ s/attempt=3/attempt=$_/r } 1 .. 3), 'what a step says is said in the same form');
as_app($node, "SELECT saga.abandon($id, reason => 'tried')");

# ---- overdue

my $late = as_app($node, "SELECT saga.begin('an \"order\"', deadline => clock_timestamp() + interval '200 ms',"
	  . " traceparent => '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01')");
$message = message(qr/LOG:  saga $late has passed its deadline/, 'a saga whose deadline has passed');
context_is($message, qq(saga=$late definition="an \\"order\\"" ) . ids_of($late), '... which');
like($message, qr/trace_id=0af7651916cd43dd8448eb211c80319c/, '... in the trace of who began it');

# ---- a process ends

my $dies = as_app($node, "SELECT saga.define('dies', saga.step('die', 'dies')); SELECT saga.begin('dies', '{}', key => 'd')");
$dies =~ s/.*\n//;
poll_sql($node, "SELECT status FROM saga.sagas WHERE saga_id = $dies", 'completed', 'the saga to complete');
$message = message(qr/LOG:  a process ended during saga $dies/, 'a process that ended');
context_is($message, qq(saga=$dies definition="dies" key="d" step="die" operation=action attempt=1 ) . ids_of($dies, 'action die'), '... in what');

# ---- two wait for each other

as_app($node, "SELECT saga.define('circle', saga.step('one', 'good', 'good', exclusive => 'first'), saga.signal_step('go'),"
	  . " saga.step('two', 'good', exclusive => 'second'))");
my ($first, $second) = map { as_app($node, "SELECT saga.begin('circle', '$_')") } '{"first": "X", "second": "Y"}', '{"first": "Y", "second": "X"}';
poll_sql($node, "SELECT waiting_for FROM saga.sagas WHERE saga_id = $_", 'signal', 'both to wait') foreach $first, $second;
as_app($node, "SELECT saga.signal($_, 'go')") foreach $first, $second;
poll_sql($node, "SELECT status FROM saga.sagas WHERE saga_id = $second", 'compensated', 'the younger one to go back');
$message = message(qr/LOG:  saga $second goes back, since sagas wait for each other's locks/, 'a circle');
context_is($message, qq(saga=$second definition="circle" ) . ids_of($second), '... who goes back');
like($message, qr/DETAIL:  They are sagas (?:$first, $second|$second, $first), and wait for ".*", ".*"\./, '... and who they are');

# ---- rows that make no sense

my $broken = as_app($node, "SELECT saga.begin('circle', '{\"first\": \"Z\", \"second\": \"Z\"}')");
poll_sql($node, "SELECT waiting_for FROM saga.sagas WHERE saga_id = $broken", 'signal', 'one more to wait');
$node->safe_psql('postgres', "UPDATE saga.step SET step = 7 WHERE saga_id = $broken AND step = 0; UPDATE saga.saga SET turn = turn + 1 WHERE id = $broken");
$node->safe_psql('postgres', "INSERT INTO saga.message (id, saga_id, slot, role, kind, requested_by)"
	  . " SELECT nextval('saga.history_id_seq'), id, slot, role, 'pause', 'app' FROM saga.saga WHERE id = $broken; CALL saga.adopt()");
$message = message(qr/LOG:  saga $broken is stuck: /, 'rows that are not consistent');
context_is($message, qq(saga=$broken definition="circle" ) . ids_of($broken), '... whose');

# ---- an error that is of no step

my $far_off = $node->safe_psql('postgres', <<'EOS');
SET ROLE app;
SELECT saga.define('signals', saga.signal_step('a', after => '{}'), saga.signal_step('b', after => '{}')) AS version \gset
BEGIN;
SELECT saga.begin('signals', key => 's') AS id \gset
RESET ROLE;
SELECT 'saga.step_' || slot AS leaf FROM saga.saga WHERE id = :id \gset
CREATE UNIQUE INDEX only_one ON :leaf ((true)) WHERE saga_id = :id;
COMMIT;
SELECT :id;
EOS
wait_for_server_log($node, qr/could not advance saga $far_off: duplicate key/, 0, 'an error that is of no step');
($message) = grep { /LOG:  could not advance saga $far_off: duplicate key/ } messages();
context_is($message, qq(saga=$far_off definition="signals" key="s" ) . ids_of($far_off), 'an error that is of no step');
$node->safe_psql('postgres', 'DROP INDEX saga.only_one');

# ---- breakers

as_app($node, "SELECT saga.create_queue('pay'); SELECT saga.configure_queue('pay', breaker_failures => 2, breaker_pause => '1 min');"
	  . " SELECT saga.define('pays', saga.external_step('pay', 'pay', retry => saga.retry_policy(1)));"
	  . " SELECT saga.begin('pays') FROM generate_series(1, 3)");
poll_sql($node, "SELECT count(*) FROM saga.tasks WHERE status = 'ready'", '3', 'tasks');
as_app($node, "SELECT saga.fail_task(id, lease_token, 'no') FROM saga.claim_tasks('pay', 2)");
$message = message(qr/LOG:  breaker of queue "pay" has opened/, 'a breaker that opens');
context_is($message, 'queue="pay"', '... whose');
unlike(slurp_file($node->logfile), qr/has closed/, 'it has not closed');
as_app($node, "SELECT saga.reset_breaker('pay')");
context_is(message(qr/LOG:  breaker of queue "pay" has closed/, 'a breaker that closes'), 'queue="pay"', '... whose');

# ---- a server that cannot be reached

as_app($node, "SELECT saga.define('far', saga.remote_step('ship', 'warehouse', 'shop.act', retry => saga.retry_policy(1000, '200 ms')))");
my $far = begin_saga($node, 'far');
$message = message(qr/LOG:  saga courier cannot reach server "warehouse"/, 'a server that cannot be reached');
context_is($message, 'server="warehouse" role="app"', '... which, for whom');
$warehouse->start;
poll_saga($node, $far, 'completed', 'the saga at the server');
context_is(message(qr/LOG:  saga courier has reached server "warehouse" as role "app" again/, 'the server is back'),
	'server="warehouse" role="app"', '... which, for whom');

# ---- a role without workers

$node->safe_psql('postgres', "CREATE ROLE clerk LOGIN; SELECT saga.grant_usage('clerk'); GRANT CREATE ON SCHEMA public TO clerk;"
	  . " REVOKE CONNECT ON DATABASE postgres FROM PUBLIC; GRANT CONNECT ON DATABASE postgres TO app");
$node->safe_psql('postgres', "SET ROLE clerk; CREATE FUNCTION clerk(context jsonb) RETURNS text LANGUAGE sql RETURN 'done';"
	  . " SELECT saga.define('work', saga.step('work', 'clerk')); SELECT saga.begin('work')");
$message = message(qr/LOG:  cannot start saga worker for role "clerk"/, 'a role without workers');
context_is($message, 'role="clerk" database="postgres"', '... which, where');

# ---- nothing else

$node->stop;
$warehouse->stop;
my $log = slurp_file($node->logfile);
my @bare = grep { /^\S+ \S+ \S+ \[\d+\] saga \w+ LOG: .*saga \d/ && !/CONTEXT:  .*saga=\d+ /s } messages();
is("@bare", '', 'every line about a saga says what it is about');
$node->start;
my @tokens = split /\n/, $node->safe_psql('postgres', 'SELECT token FROM saga.saga');
cmp_ok(@tokens + 0, '>', 5, 'no token');
is((grep { my $bare = s/-//gr; index($log, $_) >= 0 || index($log, $bare) >= 0 } @tokens) + 0, 0, '... is in the log');
$node->stop;
done_testing();
