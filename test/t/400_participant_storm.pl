# 20 participants and 5,000 sagas of external and local steps: participants are
# killed with SIGKILL while they hold tasks, work past their lease, answer twice
# and after their lease, while people cancel sagas and the server is restarted
# twice, once without a chance to say goodbye.
#
# Each effect is a row.  In queue "inside" it is written in the transaction of
# the answer: it is there exactly once if the saga says that the operation
# succeeded, else not at all.  In queue "outside" it is written before, in a
# transaction of its own that extends the lease, as a service outside would have
# it: at least once, always with the same idempotency key.  No effect of an
# action is later than one of its compensation, everything that a compensated
# saga did is undone, and no task is left.
#
# What the sagas do is a function of the seed, when something is killed is not.
#
#	SAGA_SEED          the seed, if it is not to be the same one each time
#	SAGA_STORM_SAGAS   how many sagas (5000)
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use POSIX ':sys_wait_h';
use PostgreSQL::Test::Utils;
use SagaTest;
use Test::More;
use Time::HiRes qw(time usleep);

my $seed  = $ENV{SAGA_SEED}        || 7;
my $sagas = $ENV{SAGA_STORM_SAGAS} || 5000;

use constant PARTICIPANTS => 20;

# So many sagas that have not ended are enough, and begun at a time.
use constant BACKLOG => 600;
use constant WAVE    => 100;

# At least so many seconds between two kills, and at most so many for it all.
use constant KILL_PAUSE => 0.1;
my $longest = 120 + $sagas / 25;

srand($seed);
diag "SAGA_SEED=$seed";

my $node = SagaTest->new_node(
	'main',
	start => 1,
	conf  => {
		'saga.workers_per_role'   => 2,
		'max_connections'         => 60,
		'log_min_error_statement' => 'panic',
	});

$node->safe_psql('postgres', <<'EOF');
CREATE EXTENSION saga;
CREATE ROLE app LOGIN;
CREATE ROLE participant LOGIN;
SELECT saga.grant_usage('app');
GRANT CREATE ON SCHEMA public TO app;
SET ROLE app;

-- What was done, in the order in which it was done: "n" is drawn while the
-- row of the task is locked by an answer or an extension.
CREATE TABLE effect (
    n bigint GENERATED ALWAYS AS IDENTITY,
    queue text NOT NULL,
    saga_id bigint NOT NULL,
    step text NOT NULL,
    element int,
    operation text NOT NULL,
    attempt int NOT NULL,
    key text NOT NULL,
    task_id bigint,
    unknown boolean NOT NULL);
-- What participants have seen: how often, and what they should not have.
CREATE TABLE seen (what text NOT NULL, detail text);
CREATE TABLE wrong (what text NOT NULL, detail text);
GRANT INSERT ON effect, seen, wrong TO participant;

-- An operation of a local step.
CREATE FUNCTION local(context jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO effect (queue, saga_id, step, operation, attempt, key, unknown)
    VALUES ('local', (context ->> 'saga_id')::bigint, context ->> 'step', context ->> 'operation',
        (context ->> 'attempt')::int, context ->> 'idempotency_key', false);
    IF context ->> 'operation' = 'action' AND context #>> '{input,decline}' = context ->> 'step' THEN
        PERFORM saga.fail('declined');
    END IF;
    RETURN '"local"';
END $$;

CREATE FUNCTION patient() RETURNS jsonb LANGUAGE sql IMMUTABLE AS
    $$ SELECT saga.retry_policy(0, '20 ms', '200 ms') $$;
SELECT saga.define('shop',
    saga.step('order', 'local', 'local'),
    saga.external_step('charge', 'inside', compensation => 'refund', retry => patient(), compensation_retry => patient()),
    saga.external_step('ship', 'outside', compensation => 'call back', retry => patient(), compensation_retry => patient()),
    saga.step('books', 'local', 'local'));
SELECT saga.define('trip',
    saga.external_step('flight', 'inside', after => '{}', compensation => 'undo', confirmation => 'confirm',
        retry => patient(), compensation_retry => patient(), confirmation_retry => patient()),
    saga.external_step('hotel', 'outside', after => '{}', compensation => 'undo', retry => patient(), compensation_retry => patient()),
    saga.step('invoice', 'local', 'local', after => '{flight,hotel}'));
SELECT saga.define('parcels',
    saga.external_step('pack', 'inside', foreach => 'items', parallel => 2, compensation => 'unpack',
        retry => patient(), compensation_retry => patient()),
    saga.step('weigh', 'local', 'local'),
    saga.external_step('mail', 'inside', pivot => true, retry => patient()),
    saga.external_step('thank', 'outside', retry => patient()));
SELECT saga.grant_participant('participant', 'inside');
SELECT saga.grant_participant('participant', 'outside');

-- A third of each; every other one goes as it should, the others have a step that
-- is declined, or fails at first, or does not know what it did.  Of these the
-- pivot does no more than fail at first: if nobody knows whether it was done, and
-- it does not go on, the saga is stuck.
CREATE FUNCTION begin_sagas(first int, n int) RETURNS bigint LANGUAGE sql AS $$
    SELECT count(saga.begin(definition, jsonb_strip_nulls(jsonb_build_object(
        'decline', CASE WHEN kind IN (3, 4) THEN steps[1 + i / 3 % cardinality(steps)] END,
        'flaky', CASE WHEN kind IN (5, 6) THEN (steps || '{mail}')[1 + i / 3 % (cardinality(steps) + 1)] END,
        'unsure', CASE WHEN kind = 7 THEN steps[1 + i / 3 % cardinality(steps)] END,
        'items', CASE WHEN definition = 'parcels' THEN (SELECT jsonb_agg(x) FROM generate_series(0, i % 4) x) END))))
    FROM (SELECT i, definition, (random() * 9)::int AS kind,
                 CASE definition WHEN 'shop' THEN '{order,charge,ship,books}'
                                 WHEN 'trip' THEN '{flight,hotel,invoice}' ELSE '{pack,weigh}' END::text[] AS steps
          FROM (SELECT i, (ARRAY['shop', 'trip', 'parcels'])[1 + i % 3] AS definition
                FROM generate_series(first, first + n - 1) i) d) s
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

RESET ROLE;
GRANT CREATE ON SCHEMA public TO participant;
SET ROLE participant;

-- What a participant does with its tasks, "t" one of them as JSON.
CREATE FUNCTION write_effect(queue text, t jsonb) RETURNS void LANGUAGE sql AS $$
    INSERT INTO effect (queue, saga_id, step, element, operation, attempt, key, task_id, unknown)
    VALUES (queue, (t ->> 'saga_id')::bigint, t ->> 'step', (t ->> 'element')::int, t ->> 'operation',
        (t ->> 'attempt')::int, t ->> 'idempotency_key', (t ->> 'id')::bigint,
        coalesce((t #>> '{payload,outcome_unknown}')::boolean, false))
$$;
-- Fails what the input says: declined for good, the first two attempts, or
-- without knowing.
CREATE FUNCTION fails(t jsonb) RETURNS text LANGUAGE sql AS $$
    SELECT CASE WHEN t ->> 'operation' <> 'action' THEN NULL
                WHEN t #>> '{payload,input,decline}' = t ->> 'step' AND t ->> 'element' IS DISTINCT FROM '0' THEN 'decline'
                WHEN t #>> '{payload,input,flaky}' = t ->> 'step' AND (t ->> 'attempt')::int <= 2 THEN 'flaky'
                WHEN t #>> '{payload,input,unsure}' = t ->> 'step' THEN 'unsure' END
$$;
-- Answer it; false if it had this answer.
CREATE FUNCTION answer(t jsonb) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    id constant bigint := t ->> 'id';
    token constant uuid := t ->> 'lease_token';
BEGIN
    RETURN CASE fails(t)
        WHEN 'decline' THEN saga.fail_task(id, token, 'declined', retryable => false)
        WHEN 'flaky' THEN saga.fail_task(id, token, 'not now', retry_after => '10 ms')
        WHEN 'unsure' THEN saga.fail_task(id, token, 'no answer', retryable => false, outcome_unknown => true)
        ELSE saga.complete_task(id, token, jsonb_build_object('done', t -> 'idempotency_key')) END;
END $$;

-- One task, in the caller's transaction: effect and answer.
CREATE FUNCTION do_task(t jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF fails(t) IS NULL THEN
        PERFORM write_effect('inside', t);
    END IF;
    PERFORM answer(t);
END $$;
-- All of them in one transaction; one whose lease was lost is left out.
CREATE FUNCTION do_tasks(tasks jsonb) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    t jsonb;
BEGIN
    FOR t IN SELECT x FROM jsonb_array_elements(tasks) x ORDER BY (x ->> 'id')::bigint LOOP
        BEGIN
            PERFORM do_task(t);
        EXCEPTION WHEN SQLSTATE 'SG030' THEN
            INSERT INTO seen VALUES ('lease lost');
        END;
    END LOOP;
END $$;
-- The same with arrays: what is accepted has its effect.
CREATE FUNCTION do_arrays(tasks jsonb) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    done jsonb := (SELECT coalesce(jsonb_agg(x ORDER BY (x ->> 'id')::bigint), '[]') FROM jsonb_array_elements(tasks) x WHERE fails(x) IS NULL);
    accepted bigint[];
BEGIN
    accepted := ARRAY(SELECT saga.complete_tasks(
        ARRAY(SELECT (x ->> 'id')::bigint FROM jsonb_array_elements(done) x),
        ARRAY(SELECT (x ->> 'lease_token')::uuid FROM jsonb_array_elements(done) x),
        ARRAY(SELECT jsonb_build_object('done', x -> 'idempotency_key') FROM jsonb_array_elements(done) x), true));
    PERFORM write_effect('inside', x) FROM jsonb_array_elements(done) x WHERE (x ->> 'id')::bigint = ANY (accepted);
    INSERT INTO seen SELECT 'lease lost' FROM jsonb_array_elements(done) x WHERE (x ->> 'id')::bigint <> ALL (accepted);
    PERFORM do_tasks((SELECT coalesce(jsonb_agg(x), '[]') FROM jsonb_array_elements(tasks) x WHERE fails(x) IS NOT NULL));
END $$;
-- Outside: first the effects, with leases that are still there; then the answers.
CREATE FUNCTION do_outside(tasks jsonb, lease interval DEFAULT '2 s') RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    t jsonb;
BEGIN
    FOR t IN SELECT x FROM jsonb_array_elements(tasks) x ORDER BY (x ->> 'id')::bigint LOOP
        BEGIN
            IF (SELECT cancel_requested FROM saga.extend_lease((t ->> 'id')::bigint, (t ->> 'lease_token')::uuid, lease, '"at it"')) THEN
                INSERT INTO seen VALUES ('cancel requested');
            END IF;
            IF fails(t) IS NULL OR fails(t) = 'unsure' THEN
                PERFORM write_effect('outside', t);
            END IF;
        EXCEPTION WHEN SQLSTATE 'SG030' THEN
            INSERT INTO seen VALUES ('lease lost');
        END;
    END LOOP;
END $$;
CREATE FUNCTION answer_outside(tasks jsonb) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    t jsonb;
BEGIN
    FOR t IN SELECT x FROM jsonb_array_elements(tasks) x ORDER BY (x ->> 'id')::bigint LOOP
        BEGIN
            PERFORM answer(t);
        EXCEPTION WHEN SQLSTATE 'SG030' THEN
            INSERT INTO seen VALUES ('lease lost');
        END;
    END LOOP;
END $$;
-- What was answered, or not, is answered again: the same way, which is nothing
-- new; and another way, which is refused.
CREATE FUNCTION answer_again(tasks jsonb) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    t jsonb;
    lost boolean;
BEGIN
    FOR t IN SELECT x FROM jsonb_array_elements(tasks) x ORDER BY (x ->> 'id')::bigint LOOP
        lost := false;
        BEGIN
            IF answer(t) THEN
                INSERT INTO wrong VALUES ('the same answer counted again', t::text);
            END IF;
            INSERT INTO seen VALUES ('same answer again');
        EXCEPTION
            WHEN SQLSTATE 'SG030' THEN
                lost := true;
            WHEN SQLSTATE 'SG031' THEN
                INSERT INTO wrong VALUES ('the same answer was refused', t::text);
        END;
        BEGIN
            PERFORM saga.complete_task((t ->> 'id')::bigint, (t ->> 'lease_token')::uuid, '"another"');
            INSERT INTO wrong VALUES ('another answer was accepted', t::text);
        EXCEPTION
            WHEN SQLSTATE 'SG030' THEN
                IF NOT lost THEN
                    INSERT INTO wrong VALUES ('a lease was lost that had its answer', t::text);
                END IF;
            WHEN SQLSTATE 'SG031' THEN
                INSERT INTO seen VALUES ('another answer was refused');
        END;
    END LOOP;
END $$;
-- What was given back is somebody else's, or nobody's.
CREATE FUNCTION answer_lost(tasks jsonb) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    t jsonb;
BEGIN
    FOR t IN SELECT x FROM jsonb_array_elements(tasks) x ORDER BY (x ->> 'id')::bigint LOOP
        BEGIN
            PERFORM saga.complete_task((t ->> 'id')::bigint, (t ->> 'lease_token')::uuid, '"not mine"');
            INSERT INTO wrong VALUES ('an answer of another participant was accepted', t::text);
        EXCEPTION WHEN SQLSTATE 'SG030' THEN
            INSERT INTO seen VALUES ('answer to what was given back');
        END;
    END LOOP;
END $$;
EOF

# ---- participants

# What psql does again and again: claim, work for a while, and answer.
my %turn = (
	# in one transaction, claim and all
	quick => <<'EOF',
SELECT count(do_task(to_jsonb(t))) FROM saga.claim_tasks('inside', 3, '2 s', :'me') t;
EOF
	# one by one, or all at once
	plain => <<'EOF',
SELECT coalesce(jsonb_agg(t), '[]') AS tasks, count(t) > 0 AS some FROM saga.claim_tasks('inside', 5, '2 s', :'me') t \gset
\if :some
SELECT pg_sleep(0.005);
SELECT do_tasks(:'tasks');
\else
SELECT pg_sleep(0.02);
\endif
EOF
	arrays => <<'EOF',
SELECT coalesce(jsonb_agg(t), '[]') AS tasks, count(t) > 0 AS some FROM saga.claim_tasks('inside', 20, '2 s', :'me') t \gset
\if :some
SELECT pg_sleep(0.01);
SELECT do_arrays(:'tasks');
\else
SELECT pg_sleep(0.02);
\endif
EOF
	outside => <<'EOF',
SELECT coalesce(jsonb_agg(t), '[]') AS tasks, count(t) > 0 AS some FROM saga.claim_tasks('outside', 5, '2 s', :'me') t \gset
\if :some
SELECT do_outside(:'tasks');
SELECT pg_sleep(0.005);
SELECT answer_outside(:'tasks');
\else
SELECT pg_sleep(0.02);
\endif
EOF
	# their lease is over when they answer, more often than not
	slow => <<'EOF',
SELECT coalesce(jsonb_agg(t), '[]') AS tasks, count(t) > 0 AS some FROM saga.claim_tasks('inside', 2, '100 ms', :'me') t \gset
SELECT pg_sleep(random() * 0.6);
SELECT do_tasks(:'tasks');
EOF
	slow_outside => <<'EOF',
SELECT coalesce(jsonb_agg(t), '[]') AS tasks, count(t) > 0 AS some FROM saga.claim_tasks('outside', 2, '100 ms', :'me') t \gset
SELECT do_outside(:'tasks', '200 ms');
SELECT pg_sleep(random() * 0.6);
SELECT answer_outside(:'tasks');
EOF
	# once is not enough for them
	twice => <<'EOF',
SELECT coalesce(jsonb_agg(t), '[]') AS tasks, count(t) > 0 AS some FROM saga.claim_tasks('inside', 5, '500 ms', :'me') t \gset
\if :some
SELECT do_tasks(:'tasks');
SELECT answer_again(:'tasks');
SELECT pg_sleep(random() * 0.2);
SELECT answer_again(:'tasks');
\else
SELECT pg_sleep(0.02);
\endif
EOF
	# they take some, think better of it, and give half of them back; and answer
	# these, too
	picky => <<'EOF',
SELECT coalesce(jsonb_agg(t), '[]') AS tasks, coalesce(jsonb_agg(t) FILTER (WHERE id % 2 = 0), '[]') AS mine, coalesce(jsonb_agg(t) FILTER (WHERE id % 2 = 1), '[]') AS others,
    coalesce(array_agg(id) FILTER (WHERE id % 2 = 1), '{}') AS ids, coalesce(array_agg(lease_token) FILTER (WHERE id % 2 = 1), '{}') AS tokens, count(t) > 0 AS some
FROM saga.claim_tasks('outside', 4, '2 s', :'me') t \gset
\if :some
SELECT count(*) FROM saga.release_tasks(:'ids', :'tokens', true);
SELECT do_outside(:'mine');
SELECT answer_outside(:'mine');
SELECT answer_lost(:'others');
\else
SELECT pg_sleep(0.02);
\endif
EOF
);
my @kinds = (
	('plain') x 4, ('arrays') x 2, ('outside') x 5, ('slow') x 2,
	('slow_outside') x 2, ('twice') x 2, ('quick') x 1, ('picky') x 2);
is(scalar(@kinds), PARTICIPANTS, 'so many participants');

my $dir = PostgreSQL::Test::Utils::tempdir();
append_to_file("$dir/$_.sql", $turn{$_} x 2000) foreach keys %turn;

my @participants;
my $incarnations = 0;

sub start_participant
{
	my ($i) = @_;
	my $kind = $kinds[$i];
	my $pid  = fork;

	$incarnations++;
	die "could not fork: $!" unless defined $pid;
	if ($pid == 0)
	{
		open STDIN,  '<', '/dev/null';
		open STDOUT, '>', '/dev/null';
		open STDERR, '>', "$dir/$i.err";
		exec($node->installed_command('psql'), '-XAtq', '-U', 'participant',
			'-v', 'ON_ERROR_STOP=1', '-v', "me=$kind/$i/$incarnations",
			'-d', $node->connstr('postgres'), '-f', "$dir/$kind.sql")
		  or POSIX::_exit(1);
	}
	$participants[$i] = $pid;
	return;
}

# What participants were told that no participant should be.
my %errors;

sub read_errors
{
	my ($i) = @_;

	foreach my $line (split /\n/, slurp_file("$dir/$i.err"))
	{
		next unless $line =~ /(ERROR|FATAL|PANIC): +(.*)/;
		next if $line =~ /the database system is (starting up|shutting down|not yet accepting connections|in recovery mode)/;
		next if $line =~ /terminating connection|could not connect|server closed the connection|connection to server/;
		$errors{$2}++;
	}
	unlink "$dir/$i.err";
	return;
}

# Start those again that have ended.
sub renew_participants
{
	foreach my $i (0 .. PARTICIPANTS - 1)
	{
		next if $participants[$i] && waitpid($participants[$i], WNOHANG) == 0;
		read_errors($i) if $participants[$i];
		start_participant($i);
	}
	return;
}

sub end_participants
{
	foreach my $i (0 .. PARTICIPANTS - 1)
	{
		kill 'KILL', $participants[$i];
		waitpid $participants[$i], 0;
		read_errors($i);
	}
	@participants = ();
	return;
}

END
{
	my $status = $?;

	kill 'KILL', $_ foreach grep { $_ } @participants;
	$? = $status;
}

# ---- the storm

# NULL while the server is not there.
sub ask
{
	my ($sql) = @_;
	my ($rc, $out) = (undef, '');

	eval { $rc = $node->psql('postgres', $sql, stdout => \$out, on_error_die => 0, timeout => 60); };
	return defined $rc && $rc == 0 ? $out : undef;
}

my $started  = time();
my $begun    = 0;
my $killed   = 0;
my $cancelled = 0;
my $next_kill = time() + 1;
my @restarts = (
	[ 0.3, 'fast' ],
	[ 0.65, 'immediate' ]);

while (1)
{
	my $left = ask('SELECT count(*) FROM saga.saga WHERE due_at IS NOT NULL');

	die 'the storm does not end' if time() - $started > $longest;
	renew_participants();
	if (defined $left)
	{
		last if $left == 0 && $begun >= $sagas && !@restarts;
		if ($begun < $sagas && $left < BACKLOG)
		{
			my $n = $sagas - $begun < WAVE ? $sagas - $begun : WAVE;
			my $random = ($seed * 7919 + $begun) % 1000;

			$n = ask("SELECT setseed(0.$random); SET ROLE app; SELECT begin_sagas($begun, $n)");
			$begun += $1 if defined $n && $n =~ /(\d+)\s*$/;
		}
		$cancelled += ask('SET ROLE app; SELECT cancel_some(5)') || 0;
	}
	if (time() >= $next_kill)
	{
		$killed++ if kill 'KILL', $participants[ int(rand(PARTICIPANTS)) ];
		$next_kill = time() + KILL_PAUSE;
	}
	if (@restarts && $begun >= $restarts[0][0] * $sagas)
	{
		my $mode = (shift @restarts)->[1];

		note sprintf('%.1f s: %s restart, %s sagas begun', time() - $started, $mode, $begun);
		$node->stop($mode);
		usleep(100_000);
		$node->start;
	}
	usleep(50_000);
}
note sprintf('%.1f s: all have ended; %d participants, %d killed, %d sagas cancelled',
	time() - $started, $incarnations, $killed, $cancelled);
end_participants();

# ---- what is there

sub audit_is
{
	my ($sql, $expected, $what) = @_;

	is($node->safe_psql('postgres', $sql), $expected, $what);
	return;
}

audit_is('SELECT count(*) FROM saga.saga', $begun, 'all sagas are there');
cmp_ok($begun, '>=', $sagas, '... and were begun');
audit_is("SELECT count(*) FROM saga.sagas WHERE status NOT IN ('completed', 'compensated')",
	'0', '... and have ended');
audit_is("SELECT status, count(*) FROM saga.tasks WHERE status IN ('ready', 'claimed') GROUP BY 1",
	'', 'no task is left');
audit_is('SELECT count(*) FROM saga.message', '0', 'no message is left');
is(join("\n", map { "$_: $errors{$_}" } sort keys %errors), '', 'participants met no errors');
audit_is('SELECT what, count(*), min(detail) FROM wrong GROUP BY 1', '', '... and nothing that should not be');

# the storm was one
cmp_ok($killed, '>', $sagas / 500, 'participants were killed');
audit_is("SELECT string_agg(DISTINCT what, ', ') FROM seen",
	'another answer was refused, answer to what was given back, cancel requested, lease lost, same answer again',
	'leases were lost, answers were sent again, sagas were cancelled at work');
foreach my $outcome ('answered', 'expired', 'withdrawn')
{
	cmp_ok($node->safe_psql('postgres', "SELECT count(*) FROM saga.tasks WHERE status = '$outcome'"),
		'>', $sagas / 500, "tasks were $outcome");
}
foreach my $status ('completed', 'compensated')
{
	cmp_ok($node->safe_psql('postgres', "SELECT count(*) FROM saga.sagas WHERE status = '$status'"),
		'>', $sagas / 20, "sagas were $status");
}

# what happened, and what saga says
$node->safe_psql('postgres', <<'EOF');
CREATE TABLE said AS
    SELECT t.saga_id, t.step, t.element, t.operation::text, t.status::text, d.kind,
        CASE d.kind WHEN 'local' THEN 'local' ELSE CASE WHEN t.step IN ('ship', 'hotel', 'thank') THEN 'outside' ELSE 'inside' END END AS queue,
        s.status AS saga_status
    FROM saga.steps t JOIN saga.sagas s USING (saga_id)
        JOIN saga.definition_steps d ON d.definition = s.definition AND d.step = t.step
    WHERE t.status = 'succeeded';
CREATE TABLE done AS
    SELECT queue, saga_id, step, element, operation, count(*) AS n, min(n) AS first, max(n) AS last,
        count(DISTINCT key) AS keys, bool_or(unknown) AS unknown
    FROM effect GROUP BY 1, 2, 3, 4, 5;
ANALYZE said, done;
EOF
audit_is("SELECT count(*) > 0 FROM said WHERE queue = 'inside'", 't', 'operations have succeeded inside');
audit_is("SELECT count(*) > 0 FROM said WHERE queue = 'outside'", 't', '... and outside');
audit_is("SELECT count(*), min(saga_id), min(step), min(operation) FROM said s LEFT JOIN done d USING (saga_id, step, operation) "
	  . "WHERE s.element IS NOT DISTINCT FROM d.element AND d.n <> 1 AND s.queue <> 'outside' HAVING count(*) > 0",
	'', 'inside: no effect is there twice');
audit_is("SELECT count(*), min(saga_id), min(step), min(operation) FROM said s WHERE NOT EXISTS "
	  . "(SELECT FROM done d WHERE d.saga_id = s.saga_id AND d.step = s.step AND d.operation = s.operation "
	  . "AND d.element IS NOT DISTINCT FROM s.element) HAVING count(*) > 0",
	'', 'each operation that has succeeded has its effect');
audit_is("SELECT count(*), min(saga_id), min(step), min(operation) FROM done d WHERE d.queue <> 'outside' AND NOT EXISTS "
	  . "(SELECT FROM said s WHERE d.saga_id = s.saga_id AND d.step = s.step AND d.operation = s.operation "
	  . "AND d.element IS NOT DISTINCT FROM s.element) HAVING count(*) > 0",
	'', 'inside: there is no effect of one that has not');
audit_is('SELECT count(*) FROM done WHERE keys <> 1', '0', 'one idempotency key for all effects of an operation');
audit_is('SELECT count(DISTINCT key) = (SELECT count(*) FROM done) FROM effect', 't', '... which is its own');
audit_is("SELECT count(*) FROM saga.tasks a JOIN saga.tasks c USING (saga_id, step) "
	  . "WHERE a.element IS NOT DISTINCT FROM c.element AND a.operation = 'action' "
	  . "AND c.operation = 'compensation' AND a.id > c.id",
	'0', 'no action was offered after its compensation');
audit_is("SELECT count(*) FROM done a JOIN done c USING (saga_id, step) "
	  . "WHERE a.element IS NOT DISTINCT FROM c.element AND a.operation = 'action' "
	  . "AND c.operation = 'compensation' AND a.last > c.first",
	'0', '... or had its effect after it');
audit_is("SELECT count(*), min(saga_id), min(a.step) FROM done a JOIN saga.sagas s USING (saga_id) "
	  . "WHERE s.status = 'compensated' AND a.operation = 'action' AND NOT EXISTS "
	  . "(SELECT FROM done c WHERE c.saga_id = a.saga_id AND c.step = a.step AND c.operation = 'compensation' "
	  . "AND c.element IS NOT DISTINCT FROM a.element) HAVING count(*) > 0",
	'', 'all that a compensated saga has done is undone');
audit_is("SELECT count(*) FROM done c WHERE operation = 'compensation' AND NOT unknown AND NOT EXISTS "
	  . "(SELECT FROM done a WHERE c.saga_id = a.saga_id AND c.step = a.step AND a.operation = 'action' "
	  . "AND c.element IS NOT DISTINCT FROM a.element)",
	'0', 'nothing else is, unless nobody knew');
audit_is("SELECT count(*) FROM done c JOIN saga.sagas s USING (saga_id) WHERE c.operation = 'compensation' AND s.status = 'completed'",
	'0', '... and nothing of a completed one');
audit_is("SELECT count(*) FROM saga.sagas s WHERE status = 'completed' AND definition = 'trip' AND NOT EXISTS "
	  . "(SELECT FROM done d WHERE d.saga_id = s.saga_id AND d.step = 'flight' AND d.operation = 'confirmation' AND d.n = 1)",
	'0', 'each completed one is confirmed, once');
audit_is("SELECT count(*) > 0 FROM effect WHERE unknown", 't', 'participants were told that an outcome is unknown');
audit_is("SELECT count(*) > 0 FROM done WHERE queue = 'outside' AND n > 1", 't',
	'outside: some effects are there twice, which is what the key is for');
note $node->safe_psql('postgres',
	"SELECT string_agg(format('%s tasks %s', n, status), ', ') FROM (SELECT status, count(*) AS n FROM saga.tasks GROUP BY 1) t");
note $node->safe_psql('postgres',
	"SELECT string_agg(format('%s %s', n, what), ', ') FROM (SELECT what, count(*) AS n FROM seen GROUP BY 1) t");

$node->stop;
done_testing();
