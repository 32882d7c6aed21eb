
=pod

=head1 NAME

SagaRandom - random definitions, and a second reading of the rules

=head1 SYNOPSIS

  use SagaRandom;

  my $random = SagaRandom->new($seed);

  $node->safe_psql('postgres', $random->setup_sql);     # as superuser
  $node->safe_psql('postgres', $random->children_sql);
  $node->safe_psql('postgres', $random->wave_sql(1, 40));
  ...
  $node->safe_psql('postgres', $random->history_sql);
  foreach my $check ($random->checks) { ... }

=head1 DESCRIPTION

A definition has one to seven steps of any shape, put together so that
saga.define() has to take it.  All functions of steps are one, C<act>: it
writes a marker into C<effect>, and fails as a hash of the seed, the saga's
name, the step, the element, the round, the operation and the attempt says.

What a definition says is kept in tables of our own (C<def>, C<pred>,
C<before>, C<off>), made here and not by saga.  The checks are queries over
these, the markers, and copies of the engine's rows (C<g> sagas, C<s>
operations, C<a> attempts that failed, C<e> markers, C<x> operations that
were seen to be stuck).  Each returns what is wrong.

A marker has two numbers of one sequence, taken when the function began and
when it was about to end.  A function that was called because of another's
success began after the other's transaction, or the other's place in the
same one, so its first number is greater than the other's second.

=cut

package SagaRandom;

use strict;
use warnings;

# Sagas take turns for so many locks.
use constant NLOCKS => 10;

# Definitions that are begun as children only: the first have no children
# themselves.
use constant NCHILDREN => 24;
use constant NLEAVES   => 16;

sub new
{
	my ($class, $seed) = @_;

	srand($seed);
	return bless { seed => $seed }, $class;
}

# ---- the schema ----------------------------------------------------------

sub setup_sql
{
	my ($self) = @_;
	my $seed = $self->{seed};

	return <<"EOS";
CREATE EXTENSION saga;
CREATE ROLE app LOGIN;
GRANT CREATE ON SCHEMA public TO app;
SELECT saga.grant_usage('app');
SET ROLE app;

-- what the definitions say
CREATE TABLE def (definition text, step text, kind text, comp boolean, conf boolean,
    pivot boolean, source text, par int, quorum int, sp boolean, alt text, rec int,
    excl text, until text, asks boolean, cond int, f_final int, f_passing int,
    f_stick int, slow int, mode text, delay_ms int, max_attempts int, pause_ms numeric,
    whole text, child text,
    PRIMARY KEY (definition, step));
COMMENT ON COLUMN def.cond IS 'of a thousand, how often its condition is true';
COMMENT ON COLUMN def.whole IS 'path of the lock that sagas of the definition hold from their start';
CREATE TABLE pred (definition text, step text, pred text);
CREATE TABLE before (definition text, earlier text, later text);
-- steps that are not on the way: before (mode 0) and after (mode 1) the saga
-- went back to a savepoint with an alternative
CREATE TABLE off (definition text, sp text, mode int, step text);

-- what happened
CREATE SEQUENCE marker;
CREATE TABLE effect (saga_id bigint, step text, element int, round int, operation text,
    attempt int, n1 bigint, n2 bigint, at timestamptz);
CREATE TABLE begun (saga_id bigint, definition text);
CREATE TABLE stuck_seen (saga_id bigint, step text, operation text, element int, round int,
    failures int, crashes int, sqlstate text);
CREATE TABLE asked (saga_id bigint, verb text);

CREATE FUNCTION roll(context jsonb, salt text, fresh boolean) RETURNS int
LANGUAGE sql IMMUTABLE AS \$\$
    SELECT (abs(hashtextextended(concat_ws('/', context ->> 'definition',
        context #>> '{input,tag}', context ->> 'step', context ->> 'index',
        CASE WHEN fresh THEN concat_ws('/', context ->> 'round', context ->> 'operation',
            context ->> 'attempt') END, salt), $seed) % 1000))::int
\$\$;

CREATE FUNCTION act(context jsonb) RETURNS jsonb LANGUAGE plpgsql AS \$\$
DECLARE
    x def;
    operation constant text := context ->> 'operation';
    attempt constant int := context ->> 'attempt';
    r constant int := roll(context, 'fail', true);
    n1 bigint;
    at timestamptz;
BEGIN
    SELECT * INTO STRICT x FROM def
    WHERE definition = context ->> 'definition' AND step = context ->> 'step';
    IF x.asks AND operation = 'action' THEN
        PERFORM saga.lock(context #>> '{input,lock}', '15 s');
    END IF;
    n1 := nextval('marker');
    at := clock_timestamp();
    IF x.slow > 0 THEN
        PERFORM pg_sleep(x.slow / 1000.0);
    END IF;
    INSERT INTO effect VALUES ((context ->> 'saga_id')::bigint, x.step,
        COALESCE((context ->> 'index')::int, 0), COALESCE((context ->> 'round')::int, 0),
        operation, attempt, n1, nextval('marker'), at);
    IF operation = 'action' THEN
        IF r < x.f_final THEN
            IF r % 2 = 0 THEN
                PERFORM saga.fail('for good');
            END IF;
            RAISE division_by_zero;
        ELSIF r < x.f_final + x.f_passing THEN
            RAISE serialization_failure;
        ELSIF r >= 985 AND attempt < 4 THEN
            PERFORM saga.retry_later('4 ms', 'not yet');
        END IF;
    ELSIF r < x.f_stick THEN
        PERFORM saga.fail('stuck');
    ELSIF r < x.f_stick + x.f_passing THEN
        IF r % 2 = 0 THEN
            RAISE division_by_zero;
        END IF;
        RAISE serialization_failure;
    END IF;
    RETURN jsonb_build_object('parcels', COALESCE(
        (SELECT jsonb_agg(i) FROM generate_series(1, roll(context, 'parcels', false) % 5) i), '[]'));
END \$\$;

-- now and then null, which is no
CREATE FUNCTION take(context jsonb) RETURNS boolean LANGUAGE sql STABLE AS \$\$
    SELECT CASE WHEN roll(context, 'condition', false) < x.cond THEN true
                WHEN roll(context, 'condition', false) < 950 THEN false END
    FROM def x WHERE definition = context ->> 'definition' AND step = context ->> 'step'
\$\$;
CREATE FUNCTION soon(context jsonb) RETURNS interval LANGUAGE sql STABLE AS \$\$
    SELECT x.delay_ms * interval '1 ms' FROM def x
    WHERE definition = context ->> 'definition' AND step = context ->> 'step'
\$\$;
CREATE FUNCTION child_input(context jsonb) RETURNS jsonb LANGUAGE sql AS \$\$
    SELECT (context -> 'input') || jsonb_build_object('tag', concat_ws('.',
        context #>> '{input,tag}', context ->> 'step', context ->> 'index',
        context ->> 'attempt', context ->> 'round'))
\$\$;

RESET ROLE;

-- What people do.  Returns how many sagas have not ended.
CREATE FUNCTION tick() RETURNS bigint LANGUAGE plpgsql AS \$\$
DECLARE
    r record;
    way float;
BEGIN
    FOR r IN SELECT t.saga_id, x.step
        FROM saga.step t
        JOIN saga.saga g ON g.id = t.saga_id AND g.slot = t.slot
        JOIN saga.definition_version v ON v.id = g.definition_id
        JOIN def x ON x.definition = v.name AND x.step = v.steps -> t.step::int ->> 'name'
        WHERE g.due_at IS NOT NULL AND t.operation = 'action' AND t.status = 'running'
          AND x.kind = 'signal' AND x.mode <> 'never'
    LOOP
        BEGIN
            PERFORM saga.signal(r.saga_id, r.step, '"signalled"', on_duplicate => 'ignore');
        EXCEPTION WHEN object_not_in_prerequisite_state THEN
            NULL;   -- it ends or goes back meanwhile
        END;
    END LOOP;

    FOR r IN SELECT g.id, g.backward FROM saga.saga g WHERE g.due_at IS NOT NULL AND g.status = 'stuck'
        AND NOT EXISTS (SELECT FROM saga.message m WHERE m.saga_id = g.id)
    LOOP
        INSERT INTO stuck_seen
        SELECT t.saga_id, v.steps -> t.step::int ->> 'name', t.operation, t.element, t.round,
            t.failures, t.crashes, t.error ->> 'sqlstate'
        FROM saga.step t
        JOIN saga.saga g ON g.id = t.saga_id AND g.slot = t.slot
        JOIN saga.definition_version v ON v.id = g.definition_id
        WHERE t.saga_id = r.id AND t.status = 'failed'
          AND (t.operation <> 'action' OR NOT r.backward);
        way := random();
        BEGIN
            IF way < 0.5 THEN
                PERFORM saga.retry(r.id, 'the test');
            ELSIF way < 0.9 THEN
                PERFORM saga.skip(r.id, 'the test');
            ELSE
                PERFORM saga.abandon(r.id, 'the test');
            END IF;
        EXCEPTION WHEN object_not_in_prerequisite_state THEN
            NULL;
        END;
    END LOOP;

    FOR r IN SELECT id FROM saga.saga WHERE due_at IS NOT NULL AND status = 'paused'
    LOOP
        BEGIN
            PERFORM saga.resume(r.id, 'the test');
        EXCEPTION WHEN object_not_in_prerequisite_state THEN
            NULL;
        END;
    END LOOP;
    FOR r IN SELECT id FROM saga.saga g WHERE due_at IS NOT NULL AND parent_id IS NULL
        AND random() < 0.01 AND NOT EXISTS (SELECT FROM asked k WHERE k.saga_id = g.id)
    LOOP
        BEGIN
            IF random() < 0.5 THEN
                PERFORM saga.cancel(r.id, 'the test');
                INSERT INTO asked VALUES (r.id, 'cancel');
            ELSE
                PERFORM saga.pause(r.id, 'the test');
                INSERT INTO asked VALUES (r.id, 'pause');
            END IF;
        EXCEPTION WHEN object_not_in_prerequisite_state THEN
            NULL;
        END;
    END LOOP;
    RETURN (SELECT count(*) FROM saga.saga WHERE due_at IS NOT NULL);
END \$\$;
EOS
}

# ---- definitions ---------------------------------------------------------

sub chance { return rand() * 100 < $_[0] }
sub pick { return $_[ int(rand(@_)) ] }

# The shape of the graph: {preds}[i] and {before}[i]{j}: i comes before j.
sub make_graph
{
	my ($n) = @_;
	my @preds = ([]);
	my @before = ({});

	foreach my $i (1 .. $n - 1)
	{
		my %of;

		if (chance(45))
		{
			%of = ($i - 1 => 1);    # what it is without "after"
		}
		elsif (chance(75))
		{
			$of{ int(rand($i)) } = 1 for 1 .. 1 + int(rand(2));
		}
		push @preds, [ sort { $a <=> $b } keys %of ];
		$before[$i] = {};
		foreach my $j (keys %of)
		{
			$before[$j]{$i} = 1;
			$before[$_]{$j} && ($before[$_]{$i} = 1) for 0 .. $j;
		}
	}
	return (\@preds, \@before);
}

# Steps that are not on the way because of a savepoint.
sub find_off
{
	my ($n, $preds, $before, $sp, $alt) = @_;
	my (%normal, %alternative);

	foreach my $i (0 .. $n - 1)
	{
		$normal{$i} = 1
		  if $i == $alt
		  || (@{ $preds->[$i] } && !grep { !$normal{$_} } @{ $preds->[$i] });
		$alternative{$i} = 1
		  if $before->[$sp]{$i} && $i != $alt && !$before->[$alt]{$i};
	}
	return (\%normal, \%alternative);
}

# One definition: returns a list of steps, each a hash.
sub make_definition
{
	my ($name, $kinds) = @_;
	my $n = $kinds->{child_depth} == 0 ? 1 + int(rand(7)) : 1 + int(rand(3));
	my ($preds, $before) = make_graph($n);
	my $pivot = -1;
	my @savepoints;
	my @steps;

	$pivot = int(rand($n)) if !$kinds->{no_pivot} && chance(35);
	my $after_pivot = sub { return $pivot >= 0 && $before->[$pivot]{ $_[0] } };
	foreach (1 .. (chance(25) ? 1 : 0) + (chance(4) ? 1 : 0))
	{
		my $sp = int(rand($n));
		push @savepoints, $sp
		  if $sp != $pivot
		  && !$after_pivot->($sp)
		  && %{ $before->[$sp] }
		  && !grep { $_ == $sp } @savepoints;
	}

	foreach my $i (0 .. $n - 1)
	{
		my $past = $i == $pivot || $after_pivot->($i);
		my $kind = 'local';
		my $roll = rand(100);

		if ($i != $pivot)
		{
			$kind =
				$roll < 7  ? 'timer'
			  : $roll < 14 ? 'signal'
			  : $roll < 22 && $kinds->{child_depth} < 2 ? 'child'
			  :              'local';
		}
		my %s = (
			definition => $name, step => "s$i", kind => $kind, comp => 0, conf => 0,
			pivot => $i == $pivot ? 1 : 0, source => undef, par => undef,
			quorum => undef, sp => 0, alt => undef, rec => undef, excl => undef,
			until => undef, asks => 0, cond => undef, f_final => 0, f_passing => 0,
			f_stick => 0, slow => 0, mode => undef, delay_ms => undef,
			max_attempts => 2 + int(rand(3)), pause_ms => undef, whole => undef,
			child => undef);

		if ($kind eq 'local')
		{
			$s{comp} = !$past && chance(80) ? 1 : 0;
			$s{conf} = $s{comp} && chance(15) ? 1 : 0;
			$s{f_final} = $past ? 20 : 25;
			$s{f_passing} = 90;
			$s{f_stick} = chance(8) ? 60 : 0;
			$s{slow} = chance(30) ? 1 + int(rand(4)) : 0;
			$s{pause_ms} = 3;
			# whoever waits for a lock can go back
			if ($pivot < 0 || $before->[$i]{$pivot})
			{
				$s{excl} = pick('lock', 'lock', 'lock2') if chance(10);
				$s{asks} = 1 if !$s{excl} && chance(5);
			}
		}
		elsif ($kind eq 'timer')
		{
			$s{delay_ms} = 5 + int(rand(60));
			$s{mode} = pick('delay', 'until');
		}
		elsif ($kind eq 'signal')
		{
			$s{mode} = pick('before', 'later', 'never');
			$s{delay_ms} = $s{mode} eq 'never' ? 20 + int(rand(50)) : 60000;
		}
		else
		{
			$s{child} = 'c' . ($kinds->{child_depth} == 1 ? int(rand(NLEAVES))
				: int(rand(NCHILDREN)));
			$s{mode} = pick('function', 'same');
		}
		$s{cond} = 700 if chance(12);

		if (($kind eq 'local' || $kind eq 'child') && chance(18))
		{
			my @sources = grep {
				     $before->[$_]{$i}
				  && $steps[$_]{kind} eq 'local'
				  && !$steps[$_]{source}
				  && !defined $steps[$_]{cond}
			} 0 .. $i - 1;

			# the result of a step that may be off the way is no array
			$s{source} = @sources && !@savepoints && chance(50)
			  ? "s" . pick(@sources) . ".parcels" : 'items';
			$s{par} = pick(1, 2, 3) if chance(60);
			$s{quorum} = 1 + int(rand(3)) if $i != $pivot && chance(45);
			$s{mode} = 'function' if $kind eq 'child';
		}
		$steps[$i] = \%s;
	}

	my %off;
	foreach my $i (@savepoints)
	{
		my $s = $steps[$i];

		# so that some go back to it
		$_->{f_final} *= 3
		  foreach map { $steps[$_] } grep { $_ != $pivot && !$after_pivot->($_) }
		  sort keys %{ $before->[$i] };

		$s->{sp} = 1;
		$s->{rec} = 1 + int(rand(2));
		if (@savepoints == 1 && chance(45))
		{
			my $alt = pick(sort { $a <=> $b } keys %{ $before->[$i] });
			my ($normal, $alternative) = find_off($n, $preds, $before, $i, $alt);

			next if $pivot >= 0 && ($normal->{$pivot} || $before->[$alt]{$pivot});
			$s->{alt} = "s$alt";
			%off = (sp => $i, 0 => $normal, 1 => $alternative);
		}
	}
	if (!%off && $pivot < 0 && chance(4))
	{
		$steps[0]{whole} = 'lock';
	}
	foreach my $i (0 .. $n - 1)
	{
		my @later = grep { $before->[$i]{$_} } 0 .. $n - 1;

		next unless $steps[$i]{excl} && @later && chance(25);
		$steps[$i]{until} = 's' . pick(@later);
	}
	return {
		name => $name, n => $n, preds => $preds, before => $before,
		steps => \@steps, off => \%off
	};
}

# ---- as SQL --------------------------------------------------------------

sub literal
{
	my ($value) = @_;

	return 'NULL' unless defined $value;
	return $value if $value =~ /^-?\d+$/;
	$value =~ s/'/''/g;
	return "'$value'";
}

sub step_sql
{
	my ($definition, $i) = @_;
	my $s = $definition->{steps}[$i];
	my @preds = @{ $definition->{preds}[$i] };
	my @more;
	my $sql;

	push @more, "after => '{" . join(',', map { "s$_" } @preds) . "}'"
	  unless @preds == 1 && $preds[0] == $i - 1 && chance(50);
	push @more, "only_if => 'take'" if defined $s->{cond};
	push @more, 'pivot => true' if $s->{pivot};
	if ($s->{sp})
	{
		push @more, 'savepoint => true', "recoveries => $s->{rec}";
		push @more, 'and_then => ' . literal($s->{alt} || 'retry');
	}
	if ($s->{kind} eq 'local' || $s->{kind} eq 'child')
	{
		push @more, "foreach => '$s->{source}'" if $s->{source};
		push @more, "parallel => $s->{par}" if $s->{par};
		push @more, "quorum => $s->{quorum}" if $s->{quorum};
		push @more,
		  "retry => saga.retry_policy(max_attempts => $s->{max_attempts}, "
		  . "initial_delay => '3 ms', max_delay => '9 ms', jitter => 0)";
	}
	if ($s->{excl})
	{
		push @more, "exclusive => '$s->{excl}'", "exclusive_timeout => '15 s'";
		push @more, "exclusive_until => '$s->{until}'" if $s->{until};
	}
	if ($s->{kind} eq 'local')
	{
		my $policy =
		  "saga.retry_policy(max_attempts => 15, initial_delay => '3 ms', max_delay => '9 ms')";

		push @more, "compensation => 'act'", "compensation_retry => $policy"
		  if $s->{comp};
		push @more, "confirmation => 'act'", "confirmation_retry => $policy"
		  if $s->{conf};
		$sql = "saga.step('$s->{step}', 'act'";
	}
	elsif ($s->{kind} eq 'timer')
	{
		push @more,
		  $s->{mode} eq 'until' ? "until => 'soon'" : "delay => '$s->{delay_ms} ms'";
		$sql = "saga.timer_step('$s->{step}'";
	}
	elsif ($s->{kind} eq 'signal')
	{
		push @more, "timeout => '$s->{delay_ms} ms'";
		push @more, "otherwise => '\"nobody came\"'" if chance(60);
		$sql = "saga.signal_step('$s->{step}'";
	}
	else
	{
		push @more, "input => 'child_input'" if $s->{mode} eq 'function';
		$sql = "saga.child_step('$s->{step}', '$s->{child}'";
	}
	return join(', ', $sql, @more) . ')';
}

my @def_columns = qw(definition step kind comp conf pivot source par quorum sp
  alt rec excl until asks cond f_final f_passing f_stick slow mode delay_ms
  max_attempts pause_ms whole child);
my %is_boolean = map { $_ => 1 } qw(comp conf pivot sp asks);

sub definition_sql
{
	my ($d) = @_;
	my $n = $d->{n};
	my (@def, @pred, @before, @off);
	my @order = 0 .. $n - 1;
	my $sql;

	foreach my $i (0 .. $n - 1)
	{
		push @def, '('
		  . join(', ', map {
			  $is_boolean{$_} ? ($d->{steps}[$i]{$_} ? 'true' : 'false')
				: literal($d->{steps}[$i]{$_})
		  } @def_columns) . ')';
		push @pred, map { "('$d->{name}', 's$i', 's$_')" } @{ $d->{preds}[$i] };
		push @before, map { "('$d->{name}', 's$i', 's$_')" }
		  sort { $a <=> $b } keys %{ $d->{before}[$i] };
	}
	if (%{ $d->{off} })
	{
		foreach my $mode (0, 1)
		{
			push @off, map { "('$d->{name}', 's$d->{off}{sp}', $mode, 's$_')" }
			  sort { $a <=> $b } keys %{ $d->{off}{$mode} };
		}
	}
	my @sql = map { step_sql($d, $_) } 0 .. $n - 1;
	# in any order, where each says what it comes after
	if (chance(20) && !grep { !/after =>/ } @sql)
	{
		my @to = sort { rand() <=> 0.5 } @order;
		@sql = @sql[@to];
	}
	$sql = "SELECT saga.define('$d->{name}',\n    " . join(",\n    ", @sql) . ");\n";
	$sql .= "SELECT saga.configure('$d->{name}', exclusive => 'lock', exclusive_timeout => '15 s');\n"
	  if $d->{steps}[0]{whole};
	$sql .= 'INSERT INTO def (' . join(', ', @def_columns) . ') VALUES '
	  . join(', ', @def) . ";\n";
	$sql .= 'INSERT INTO pred VALUES ' . join(', ', @pred) . ";\n" if @pred;
	$sql .= 'INSERT INTO before VALUES ' . join(', ', @before) . ";\n" if @before;
	$sql .= 'INSERT INTO off VALUES ' . join(', ', @off) . ";\n" if @off;
	return $sql;
}

=pod

=head2 $random->children_sql, $random->wave_sql($from, $to)

Define what is begun as children; define the definitions of these numbers and
begin a saga of each.

=cut

sub children_sql
{
	my $sql = "SET ROLE app;\n";

	foreach my $i (0 .. NCHILDREN - 1)
	{
		$sql .= definition_sql(
			make_definition("c$i",
				{ no_pivot => 1, child_depth => $i < NLEAVES ? 2 : 1 }));
	}
	return $sql;
}

sub wave_sql
{
	my ($self, $from, $to) = @_;
	my $sql = "SET ROLE app;\n";

	foreach my $i ($from .. $to)
	{
		my $d = make_definition("r$i", { child_depth => 0 });
		my $items = join(',', 1 .. int(rand(6)));
		my $input = sprintf('{"tag": "r%d", "items": [%s], "lock": "L%d", "lock2": "L%d"}',
			$i, $items, int(rand(NLOCKS)), int(rand(NLOCKS)));
		my @before = grep { $_->{kind} eq 'signal' && $_->{mode} eq 'before' }
		  @{ $d->{steps} };

		$sql .= definition_sql($d);
		$sql .= "BEGIN;\n" if @before;
		$sql .= "INSERT INTO begun SELECT saga.begin('r$i', '$input'), 'r$i';\n";
		$sql .= "SELECT saga.signal(saga_id, '$_->{step}', '\"before\"') FROM begun "
		  . "WHERE definition = 'r$i';\n"
		  foreach @before;
		$sql .= "COMMIT;\n" if @before;
	}
	return $sql;
}

# ---- what happened ---------------------------------------------------------

=pod

=head2 $random->history_sql

Copy what happened into schema C<history>, which the checks read.  C<ended> says
how many processes were ended.

=cut

sub history_sql
{
	my ($self, $ended) = @_;

	return <<"EOS" . views_sql();
CREATE SCHEMA history;
SET search_path = history, public, pg_catalog;
CREATE TABLE g AS
    SELECT g.id AS saga_id, v.name AS definition, g.status::text, g.parent_id,
        (SELECT w.steps -> g.parent_step::int ->> 'name'
         FROM saga.saga q JOIN saga.definition_version w ON w.id = q.definition_id
         WHERE q.id = g.parent_id) AS parent_step,
        COALESCE(g.parent_element, 0) AS parent_element,
        COALESCE(g.root_id, g.id) AS root_id, COALESCE(g.recoveries, '{}') AS recoveries,
        g.input, g.error ->> 'sqlstate' AS sqlstate, g.finished_at
    FROM saga.saga g JOIN saga.definition_version v ON v.id = g.definition_id;
CREATE TABLE s AS
    SELECT t.saga_id, v.steps -> t.step::int ->> 'name' AS step, t.operation::text, t.element,
        t.round, t.status::text, t.attempts, t.failures, t.crashes, t.surplus, t.child_id,
        t.started_at, t.finished_at, t.result
    FROM saga.step t JOIN saga.saga g ON g.id = t.saga_id AND g.slot = t.slot
    JOIN saga.definition_version v ON v.id = g.definition_id;
CREATE TABLE a AS
    SELECT t.saga_id, v.steps -> t.step::int ->> 'name' AS step, t.operation::text, t.element,
        t.round, t.attempt, t.outcome, t.passing, t.sqlstate, t.message, t.started_at,
        t.finished_at
    FROM saga.attempt t JOIN saga.saga g ON g.id = t.saga_id AND g.slot = t.slot
    JOIN saga.definition_version v ON v.id = g.definition_id;
CREATE TABLE e AS TABLE public.effect;
CREATE TABLE x AS TABLE public.stuck_seen;
CREATE TABLE asked AS TABLE public.asked;
CREATE TABLE ended AS SELECT $ended AS n;
CREATE TABLE leftover AS
    SELECT 'branch' AS what, saga_id FROM saga.branch
    UNION ALL SELECT 'message', saga_id FROM saga.message
    UNION ALL SELECT 'lock', saga_id FROM saga.lock;
CREATE TABLE def AS TABLE public.def;
CREATE TABLE pred AS TABLE public.pred;
CREATE TABLE before AS TABLE public.before;
CREATE TABLE off AS TABLE public.off;
CREATE INDEX ON g (saga_id);
CREATE INDEX ON g (parent_id);
CREATE INDEX ON s (saga_id, step);
CREATE INDEX ON a (saga_id, step);
CREATE INDEX ON e (saga_id, step);
CREATE INDEX ON def (definition, step);
CREATE INDEX ON pred (definition, step);
CREATE INDEX ON before (definition, earlier);
CREATE INDEX ON before (definition, later);
EOS
}

sub views_sql
{
	return <<'EOS';
-- a tree in which somebody gave up on a saga is as it is
CREATE VIEW fair AS
    SELECT * FROM g WHERE NOT EXISTS
        (SELECT FROM g q WHERE q.root_id = g.root_id AND q.status = 'abandoned');
-- how often a saga went forward again from each savepoint
CREATE VIEW recovery AS
    SELECT g.saga_id, g.definition, d.step AS sp, d.alt, d.rec AS most,
        COALESCE(g.recoveries[row_number() OVER (PARTITION BY g.saga_id ORDER BY d.step)], 0)::int AS n
    FROM g JOIN def d ON d.definition = g.definition AND d.sp;
-- in which round of a step is another one, when that is in this round?  Known
-- where a definition has one savepoint at most
CREATE VIEW few AS
    SELECT definition, max(step) FILTER (WHERE sp) AS sp, max(alt) FILTER (WHERE sp) AS alt
    FROM def GROUP BY definition HAVING count(*) FILTER (WHERE sp) <= 1;
CREATE VIEW route AS
    SELECT g.saga_id, d.definition, d.step,
        COALESCE((SELECT sum(r.n) FROM recovery r
                  JOIN before b ON b.definition = d.definition AND b.earlier = r.sp AND b.later = d.step
                  WHERE r.saga_id = g.saga_id), 0)::int AS round,
        EXISTS (SELECT FROM recovery r
                JOIN off o ON o.definition = d.definition AND o.sp = r.sp AND o.step = d.step
                    AND o.mode = CASE WHEN r.n > 0 THEN 1 ELSE 0 END
                WHERE r.saga_id = g.saga_id) AS off
    FROM g JOIN def d USING (definition);
-- how many elements a step has
CREATE VIEW size AS
    SELECT g.saga_id, d.step,
        CASE WHEN d.source IS NULL THEN 1
             WHEN d.source = 'items' THEN jsonb_array_length(g.input -> 'items')
             ELSE (SELECT max(jsonb_array_length(t.result -> 'parcels')) FROM s t
                   WHERE t.saga_id = g.saga_id AND t.step = split_part(d.source, '.', 1)
                     AND t.operation = 'action') END AS n
    FROM g JOIN def d USING (definition);
CREATE TABLE route_of AS TABLE route;
CREATE TABLE size_of AS TABLE size;
CREATE INDEX ON route_of (saga_id, step);
CREATE INDEX ON size_of (saga_id, step);
-- the effects that undo or confirm others, beside them
CREATE VIEW pair AS
    SELECT a.saga_id, g.definition, a.step, a.element, a.round, a.n1, a.n2, a.at,
        c.n1 AS c1, c.n2 AS c2,
        COALESCE((SELECT t.surplus FROM s t WHERE t.saga_id = a.saga_id AND t.step = a.step
            AND t.element = a.element AND t.round = a.round AND t.operation = 'action'), false) AS surplus
    FROM e a JOIN g USING (saga_id)
    LEFT JOIN e c ON c.saga_id = a.saga_id AND c.step = a.step AND c.element = a.element
        AND c.round = a.round AND c.operation = 'compensation'
    WHERE a.operation = 'action';
CREATE TABLE pair_of AS TABLE pair;
CREATE INDEX ON pair_of (saga_id, step);
-- all that a saga and those below it did
CREATE VIEW tree AS
    WITH RECURSIVE t (top, saga_id) AS (
        SELECT saga_id, saga_id FROM g
        UNION ALL
        SELECT t.top, g.saga_id FROM t JOIN g ON g.parent_id = t.saga_id)
    SELECT t.top, e.* FROM t JOIN e USING (saga_id);
CREATE TABLE tree_of AS TABLE tree;
CREATE INDEX ON tree_of (top);
ANALYZE;
EOS
}

# What the run was made of, for people.
sub summary_sql
{
	return <<'EOS';
SET search_path = history, public;
SELECT 'sagas', (parent_id IS NOT NULL)::text AS child, status, count(*) FROM g GROUP BY 2, 3
UNION ALL SELECT 'operations', operation, status, count(*) FROM s GROUP BY 2, 3
UNION ALL SELECT 'attempts', outcome, sqlstate, count(*) FROM a GROUP BY 2, 3
UNION ALL SELECT 'stuck', operation, sqlstate, count(*) FROM x GROUP BY 2, 3
UNION ALL SELECT 'surplus', '', '', count(*) FROM s WHERE surplus
UNION ALL SELECT 'later rounds', '', '', count(*) FROM s WHERE round > 0
UNION ALL SELECT 'asked', verb, '', count(*) FROM asked GROUP BY 2
ORDER BY 1, 2, 3
EOS
}

# What has not ended, and why, for people.
sub unfinished_sql
{
	return <<'EOS';
SELECT g.id, v.name, g.status, g.waiting_for, g.due_at, g.parent_id, g.error ->> 'message',
    (SELECT string_agg(concat_ws(' ', t.step, t.operation, t.element, t.status, t.attempts), ', ')
     FROM saga.step t WHERE t.saga_id = g.id AND t.status NOT IN ('succeeded', 'skipped')) AS operations,
    (SELECT string_agg(m.kind, ', ' ORDER BY m.id) FROM saga.message m WHERE m.saga_id = g.id) AS messages
FROM saga.saga g JOIN saga.definition_version v ON v.id = g.definition_id
WHERE g.due_at IS NOT NULL ORDER BY g.id LIMIT 30
EOS
}

=pod

=head2 $random->forged_sql, $random->forgeries

Make a small history in schema C<forged>, by hand and right; and what is wrong
with it then: a list of [name of the check that is to find it, SQL].

=cut

sub forged_sql
{
	my $sql = "CREATE SCHEMA forged;\n";

	$sql .= "CREATE TABLE forged.$_ (LIKE history.$_);\n"
	  foreach qw(g s a e x asked ended leftover def pred before off);
	return $sql . <<'EOS' . views_sql();
SET search_path = forged, public, pg_catalog;
INSERT INTO def (definition, step, kind, comp, conf, pivot, source, par, quorum, sp, alt, rec,
    excl, asks, cond, mode, delay_ms, max_attempts, pause_ms, child) VALUES
    ('f', 'a', 'local', true, false, false, NULL, NULL, NULL, false, NULL, NULL, NULL, false, NULL, NULL, NULL, 2, 3, NULL),
    ('f', 'b', 'local', true, true, false, NULL, NULL, NULL, false, NULL, NULL, NULL, false, NULL, NULL, NULL, 2, 3, NULL),
    ('f', 'c', 'local', true, false, false, 'items', 1, 2, false, NULL, NULL, NULL, false, NULL, NULL, NULL, 2, 3, NULL),
    ('f', 't', 'timer', false, false, false, NULL, NULL, NULL, false, NULL, NULL, NULL, false, NULL, 'delay', 50, 2, NULL, NULL),
    ('f', 'w', 'signal', false, false, false, NULL, NULL, NULL, false, NULL, NULL, NULL, false, NULL, 'never', 50, 2, NULL, NULL),
    ('f', 'k', 'child', false, false, false, NULL, NULL, NULL, false, NULL, NULL, NULL, false, NULL, 'same', NULL, 2, NULL, 'fc'),
    ('f', 'z', 'local', false, false, true, NULL, NULL, NULL, false, NULL, NULL, NULL, false, NULL, NULL, NULL, 2, 3, NULL),
    ('fc', 'x', 'local', true, true, false, NULL, NULL, NULL, false, NULL, NULL, NULL, false, NULL, NULL, NULL, 2, 3, NULL),
    ('fr', 'a', 'local', true, false, false, NULL, NULL, NULL, true, 'y', 1, NULL, false, NULL, NULL, NULL, 2, 3, NULL),
    ('fr', 'b', 'local', true, false, false, NULL, NULL, NULL, false, NULL, NULL, NULL, false, NULL, NULL, NULL, 2, 3, NULL),
    ('fr', 'x', 'local', true, false, false, NULL, NULL, NULL, false, NULL, NULL, NULL, false, NULL, NULL, NULL, 2, 3, NULL),
    ('fr', 'y', 'local', true, false, false, NULL, NULL, NULL, false, NULL, NULL, NULL, false, NULL, NULL, NULL, 2, 3, NULL),
    ('fx', 'a', 'local', true, false, false, NULL, NULL, NULL, false, NULL, NULL, 'lock', false, NULL, NULL, NULL, 2, 3, NULL);
INSERT INTO pred VALUES ('f', 'b', 'a'), ('f', 'c', 'b'), ('f', 't', 'c'), ('f', 'w', 't'),
    ('f', 'k', 'w'), ('f', 'z', 'k'), ('fr', 'b', 'a'), ('fr', 'x', 'b'), ('fr', 'y', 'a');
INSERT INTO before WITH RECURSIVE r AS (
    SELECT definition, pred, step FROM pred
    UNION SELECT r.definition, r.pred, p.step FROM r JOIN pred p ON p.definition = r.definition AND p.pred = r.step)
    TABLE r;
INSERT INTO off VALUES ('fr', 'a', 0, 'y'), ('fr', 'a', 1, 'b'), ('fr', 'a', 1, 'x');
INSERT INTO g (saga_id, definition, status, parent_id, parent_step, parent_element, root_id,
    recoveries, input, sqlstate) VALUES
    (1, 'f', 'completed', NULL, NULL, 0, 1, '{}', '{"items": [1, 2, 3]}', NULL),
    (2, 'fc', 'completed', 1, 'k', 0, 1, '{}', '{}', NULL),
    (3, 'f', 'compensated', NULL, NULL, 0, 3, '{}', '{"items": [1, 2, 3]}', 'SG001'),
    (4, 'fr', 'completed', NULL, NULL, 0, 4, '{1}', '{}', NULL),
    (5, 'fx', 'completed', NULL, NULL, 0, 5, '{}', '{"lock": "L"}', NULL),
    (6, 'fx', 'completed', NULL, NULL, 0, 6, '{}', '{"lock": "L"}', NULL),
    (7, 'f', 'compensated', NULL, NULL, 0, 7, '{}', '{"items": [1, 2]}', 'SG001'),
    (8, 'fc', 'compensated', 7, 'k', 0, 7, '{}', '{}', 'SG010');
INSERT INTO e (saga_id, step, element, round, operation, attempt, n1, n2)
SELECT saga_id, step, element, round, operation, attempt, 10 * n, 10 * n + 5
FROM (VALUES
    (1, 1, 'a', 0, 0, 'action', 1), (2, 1, 'b', 0, 0, 'action', 1), (3, 1, 'c', 0, 0, 'action', 1),
    (4, 1, 'c', 1, 0, 'action', 1), (8, 2, 'x', 0, 0, 'action', 1), (11, 1, 'z', 0, 0, 'action', 1),
    (12, 1, 'b', 0, 0, 'confirmation', 1), (13, 2, 'x', 0, 0, 'confirmation', 1),
    (20, 3, 'a', 0, 0, 'action', 2), (21, 3, 'b', 0, 0, 'action', 1),
    (22, 3, 'b', 0, 0, 'compensation', 1), (23, 3, 'a', 0, 0, 'compensation', 1),
    (30, 4, 'a', 0, 0, 'action', 1), (31, 4, 'b', 0, 0, 'action', 1),
    (32, 4, 'b', 0, 0, 'compensation', 1), (33, 4, 'y', 0, 1, 'action', 1),
    (40, 5, 'a', 0, 0, 'action', 1), (42, 6, 'a', 0, 0, 'action', 1),
    (50, 7, 'a', 0, 0, 'action', 1), (51, 7, 'b', 0, 0, 'action', 1), (52, 7, 'c', 0, 0, 'action', 1),
    (53, 7, 'c', 1, 0, 'action', 1), (56, 8, 'x', 0, 0, 'action', 1),
    (58, 8, 'x', 0, 0, 'compensation', 1), (60, 7, 'c', 1, 0, 'compensation', 1),
    (61, 7, 'c', 0, 0, 'compensation', 1), (62, 7, 'b', 0, 0, 'compensation', 1),
    (63, 7, 'a', 0, 0, 'compensation', 1)) v (n, saga_id, step, element, round, operation, attempt);
UPDATE e SET at = timestamptz '2001-01-01 00:00Z' + n1 * interval '1 s';
INSERT INTO s (saga_id, step, operation, element, round, status, attempts, failures, crashes, surplus,
    started_at, finished_at)
SELECT saga_id, step, operation, element, round, 'succeeded', attempt, 0, 0, false, at, at + interval '5 s' FROM e;
INSERT INTO s (saga_id, step, operation, element, round, status, attempts, failures, crashes, surplus,
    child_id, started_at, finished_at, result)
SELECT saga_id, step, operation, element, round, status, attempts, attempts, 0, false, child_id,
    timestamptz '2001-01-01 00:00Z' + n * interval '10 s',
    timestamptz '2001-01-01 00:00Z' + n * interval '10 s' + interval '5 s', result
FROM (VALUES
    (5, 1, 'c', 2, 0, 'action', 'skipped', 0, NULL, NULL::jsonb),
    (5, 1, 't', 0, 0, 'action', 'succeeded', 1, NULL, NULL),
    (6, 1, 'w', 0, 0, 'action', 'succeeded', 1, NULL, '"nobody came"'),
    (8, 1, 'k', 0, 0, 'action', 'succeeded', 1, 2, NULL),
    (22, 3, 'c', 0, 0, 'action', 'failed', 1, NULL, NULL),
    (32, 4, 'x', 0, 0, 'action', 'failed', 1, NULL, NULL),
    (54, 7, 't', 0, 0, 'action', 'succeeded', 1, NULL, NULL),
    (55, 7, 'w', 0, 0, 'action', 'succeeded', 1, NULL, '"nobody came"'),
    (56, 7, 'k', 0, 0, 'action', 'succeeded', 1, 8, NULL),
    (58, 7, 'k', 0, 0, 'compensation', 'succeeded', 1, 8, NULL),
    (57, 7, 'z', 0, 0, 'action', 'failed', 1, NULL, NULL))
    v (n, saga_id, step, element, round, operation, status, attempts, child_id, result);
INSERT INTO a (saga_id, step, operation, element, round, attempt, outcome, passing, sqlstate, started_at,
    finished_at)
SELECT saga_id, step, 'action', 0, 0, attempt, 'failed', sqlstate <> 'SG001', sqlstate,
    timestamptz '2001-01-01 00:00Z' + n * interval '10 s',
    timestamptz '2001-01-01 00:00Z' + n * interval '10 s' + interval '5 s'
FROM (VALUES (19, 3, 'a', 1, '40001'), (22, 3, 'c', 1, 'SG001'), (32, 4, 'x', 1, 'SG001'),
    (57, 7, 'z', 1, 'SG001')) v (n, saga_id, step, attempt, sqlstate);
INSERT INTO ended VALUES (0);
EOS
}

my @forgeries = (
	[ 'not ended', q{UPDATE g SET status = 'running' WHERE saga_id = 5} ],
	[ 'left over', q{INSERT INTO leftover VALUES ('lock', 5)} ],
	[
		'unexpected error',
		q{UPDATE a SET sqlstate = '23505' WHERE saga_id = 3 AND step = 'a'}
	],
	[ 'second effect', q{INSERT INTO e SELECT * FROM e WHERE saga_id = 5} ],
	[ 'effect without a record', q{DELETE FROM s WHERE saga_id = 5} ],
	[ 'record without an effect', q{DELETE FROM e WHERE saga_id = 5} ],
	[
		'effect of a failed attempt',
		q{UPDATE e SET attempt = 1 WHERE saga_id = 3 AND step = 'a'}
	],
	[ 'wrong number of attempts', q{UPDATE s SET attempts = 2 WHERE saga_id = 5} ],
	[
		'wrong number of attempts',
		q{UPDATE a SET attempt = 2 WHERE saga_id = 3 AND step = 'a'}
	],
	[
		'too many attempts',
		q{INSERT INTO a SELECT saga_id, step, operation, element, round, i, outcome, true, sqlstate, message
		  FROM a, generate_series(2, 3) i WHERE saga_id = 3 AND step = 'c'}
	],
	[
		'hurry',
		q{INSERT INTO a SELECT saga_id, step, operation, element, round, 2, outcome, true, sqlstate, message,
		      finished_at + interval '1 ms', finished_at + interval '2 ms'
		  FROM a WHERE saga_id = 3 AND step = 'a'}
	],
	[ 'too many recoveries', q{UPDATE g SET recoveries = '{2}' WHERE saga_id = 4} ],
	[
		'too many recoveries',
		q{UPDATE s SET round = 2 WHERE saga_id = 4 AND step = 'y'}
	],
	[
		'undone without done',
		q{DELETE FROM e WHERE saga_id = 3 AND step = 'b' AND operation = 'action'}
	],
	[
		'not undone',
		q{DELETE FROM e WHERE saga_id = 3 AND step = 'a' AND operation = 'compensation'}
	],
	[
		'not undone',
		q{DELETE FROM e WHERE saga_id = 4 AND step = 'b' AND operation = 'compensation'}
	],
	[
		'not undone',
		q{UPDATE s SET surplus = true WHERE saga_id = 1 AND step = 'c' AND element = 1}
	],
	[
		'undone without need',
		q{INSERT INTO e VALUES (5, 'a', 0, 0, 'compensation', 1, 407, 408)}
	],
	[ 'surplus without a quorum', q{UPDATE s SET surplus = true WHERE saga_id = 5} ],
	[
		'too early',
		q{UPDATE e SET n1 = 191, n2 = 192 WHERE saga_id = 3 AND step = 'b' AND operation = 'action'}
	],
	[
		'too early',
		q{DELETE FROM e WHERE saga_id = 1 AND step = 'a'}
	],
	[
		'too early',
		q{UPDATE e SET at = at - interval '100 s' WHERE saga_id = 1 AND step = 'z'}
	],
	[
		'out of order',
		q{UPDATE e SET n2 = 214 WHERE saga_id = 3 AND step = 'a' AND operation = 'action'}
	],
	[
		'undone out of order',
		q{UPDATE e SET n1 = 440 - n1, n2 = 450 - n2 WHERE saga_id = 3 AND step = 'a' AND operation = 'compensation';
		  UPDATE e SET n1 = 236, n2 = 237 WHERE saga_id = 3 AND step = 'b' AND operation = 'compensation'}
	],
	[
		'undone out of order',
		q{UPDATE e SET n2 = 236 WHERE saga_id = 3 AND step = 'b' AND operation = 'action'}
	],
	[
		'undone past the pivot',
		q{INSERT INTO e VALUES (1, 'a', 0, 0, 'compensation', 1, 137, 138)}
	],
	[
		'undone past the pivot',
		q{INSERT INTO e VALUES (3, 'z', 0, 0, 'action', 1, 217, 218)}
	],
	[
		'not done',
		q{DELETE FROM s WHERE saga_id = 1 AND step = 'c' AND element = 1}
	],
	[ 'not done', q{DELETE FROM s WHERE saga_id = 1 AND step = 't'} ],
	[
		'too much done',
		q{UPDATE s SET status = 'succeeded' WHERE saga_id = 1 AND step = 'c' AND element = 2}
	],
	[
		'off the way',
		q{INSERT INTO e VALUES (4, 'y', 0, 0, 'action', 1, 317, 318)}
	],
	[
		'off the way',
		q{INSERT INTO e VALUES (4, 'b', 0, 1, 'action', 1, 337, 338)}
	],
	[ 'not taken', q{UPDATE def SET cond = 0 WHERE definition = 'fx'} ],
	[ 'skipped', q{UPDATE s SET status = 'skipped' WHERE saga_id = 5} ],
	[
		'confirmed too early',
		q{UPDATE e SET n1 = 107, n2 = 108 WHERE saga_id = 1 AND operation = 'confirmation'}
	],
	[
		'confirmed too early',
		q{UPDATE e SET n1 = 107, n2 = 108 WHERE saga_id = 2 AND operation = 'confirmation'}
	],
	[
		'not confirmed',
		q{DELETE FROM e WHERE saga_id = 1 AND operation = 'confirmation'}
	],
	[
		'not confirmed',
		q{INSERT INTO e VALUES (3, 'b', 0, 0, 'confirmation', 1, 237, 238)}
	],
	[
		'child against its parent',
		q{UPDATE g SET status = 'compensated' WHERE saga_id = 2}
	],
	[
		'child against its parent',
		q{UPDATE g SET status = 'completed' WHERE saga_id = 8}
	],
	[
		'child out of order',
		q{UPDATE e SET n1 = 7, n2 = 8 WHERE saga_id = 2 AND operation = 'action'}
	],
	[
		'child out of order',
		q{UPDATE e SET n1 = 117, n2 = 118 WHERE saga_id = 2 AND operation = 'action'}
	],
	[
		'child out of order',
		q{UPDATE e SET n1 = 627, n2 = 628 WHERE saga_id = 8 AND operation = 'compensation'}
	],
	[ 'lock held twice', q{UPDATE e SET n1 = 403 WHERE saga_id = 6} ],
	[
		'too many at once',
		q{UPDATE e SET n1 = 33, n2 = 46 WHERE saga_id = 1 AND step = 'c' AND element = 1}
	],
	[
		'timer too early',
		q{UPDATE s SET finished_at = started_at + interval '49 ms' WHERE saga_id = 1 AND step = 't'}
	],
	[ 'wrong signal', q{UPDATE s SET result = '"signalled"' WHERE saga_id = 1 AND step = 'w'} ],
	[ 'back without a cause', q{DELETE FROM a WHERE saga_id = 3} ],
	[ 'forward over a failure', q{UPDATE s SET status = 'failed' WHERE saga_id = 5} ],
	[
		'stuck without need',
		q{INSERT INTO x VALUES (5, 'a', 'compensation', 0, 0, 1, 0, '40001')}
	],
	[ 'too many lost', q{UPDATE a SET outcome = 'lost' WHERE saga_id = 3 AND step = 'a'} ]);

sub forgeries { return @forgeries }

# After somebody has changed the history: what is made of it.
sub derive_sql
{
	return join '',
	  map { "TRUNCATE ${_}_of; INSERT INTO ${_}_of TABLE $_;\n" }
	  qw(route size pair tree);
}

# Each check: a name, the rule that it reads, and the query for what breaks it.
my @checks = (
	[
		'not ended', 'Every saga ends.',
		q{SELECT saga_id, status FROM g WHERE status NOT IN ('completed', 'compensated', 'abandoned')}
	],
	[
		'left over', 'What has ended leaves no branch, message or lock.',
		q{SELECT * FROM leftover}
	],
	[
		'unexpected error', 'Attempts fail as the test wants it, or as the rules say.',
		q{SELECT saga_id, step, operation, sqlstate, message FROM a
		  WHERE COALESCE(sqlstate, '') NOT IN ('SG001', '22012', '40001', 'SG005', 'SG012',
		      'SG020', 'SG022', 'SG023', 'SG024')
		     OR (sqlstate = 'SG005' AND NOT EXISTS (SELECT FROM g JOIN def d USING (definition)
		         WHERE g.saga_id = a.saga_id AND d.step = a.step AND d.source IS NOT NULL))}
	],
	[
		'second effect', 'Each operation has its effect once.',
		q{SELECT saga_id, step, element, round, operation, count(*) FROM e
		  GROUP BY 1, 2, 3, 4, 5 HAVING count(*) > 1}
	],
	[
		'effect without a record', 'What had an effect is on record as succeeded.',
		q{SELECT e.* FROM e JOIN fair USING (saga_id) WHERE NOT EXISTS (SELECT FROM s
		  WHERE (s.saga_id, s.step, s.element, s.round, s.operation, s.status)
		      = (e.saga_id, e.step, e.element, e.round, e.operation, 'succeeded'))}
	],
	[
		'record without an effect', 'What is on record as succeeded had its effect.',
		q{SELECT s.saga_id, s.step, s.element, s.round, s.operation FROM s JOIN g USING (saga_id)
		  JOIN def d USING (definition, step)
		  WHERE s.status = 'succeeded' AND d.kind = 'local' AND NOT EXISTS (SELECT FROM e
		      WHERE (s.saga_id, s.step, s.element, s.round, s.operation)
		          = (e.saga_id, e.step, e.element, e.round, e.operation))}
	],
	[
		'effect of a failed attempt', 'An attempt that failed has left nothing.',
		q{SELECT e.* FROM e JOIN a USING (saga_id, step, element, round, operation, attempt)}
	],
	[
		'wrong number of attempts', 'The attempt that succeeded is the last, each number is used once.',
		q{SELECT s.saga_id, s.step, s.element, s.round, s.operation, s.attempts FROM s
		  JOIN fair USING (saga_id)
		  LEFT JOIN e USING (saga_id, step, element, round, operation)
		  WHERE e.attempt <> s.attempts
		     OR EXISTS (SELECT FROM a WHERE (a.saga_id, a.step, a.element, a.round, a.operation)
		            = (s.saga_id, s.step, s.element, s.round, s.operation)
		            AND a.attempt > s.attempts - (s.status = 'succeeded')::int)}
	],
	[
		'too many attempts', 'No more failures than the policy says, unless a person asked.',
		q{SELECT a.saga_id, a.step, a.element, a.round, count(*) FROM a JOIN g USING (saga_id)
		  JOIN def d USING (definition, step)
		  WHERE a.operation = 'action' AND d.kind IN ('local', 'child') AND a.outcome <> 'lost'
		    AND NOT EXISTS (SELECT FROM x WHERE x.saga_id = a.saga_id)
		  GROUP BY 1, 2, 3, 4, d.max_attempts
		  HAVING count(*) > d.max_attempts OR count(*) FILTER (WHERE NOT passing) > 1}
	],
	[
		'hurry', 'A retry waits for its pause.',
		q{SELECT a.saga_id, a.step, a.element, a.round, a.attempt, b.started_at - a.finished_at
		  FROM a JOIN a b USING (saga_id, step, element, round, operation) JOIN g USING (saga_id)
		  JOIN def d USING (definition, step)
		  WHERE b.attempt = a.attempt + 1 AND a.outcome = 'failed' AND a.operation = 'action'
		    AND d.kind = 'local' AND b.started_at < a.finished_at + d.pause_ms * interval '1 ms'
		    AND NOT EXISTS (SELECT FROM x WHERE x.saga_id = a.saga_id)}
	],
	[
		'too many recoveries', 'Back to a savepoint as often as it says, and rounds count that.',
		q{SELECT r.saga_id, r.sp, r.n, r.most FROM recovery r
		  WHERE r.n > r.most OR r.n < 0
		  UNION ALL
		  SELECT s.saga_id, s.step, s.round, r.round FROM s JOIN route_of r USING (saga_id, step)
		  WHERE s.round > r.round OR s.round < 0}
	],
	[
		'undone without done', 'Compensated and confirmed is only what was done before.',
		q{SELECT c.* FROM e c WHERE c.operation <> 'action' AND NOT EXISTS (SELECT FROM e a
		  WHERE a.operation = 'action' AND a.n2 < c.n1
		    AND (a.saga_id, a.step, a.element, a.round) = (c.saga_id, c.step, c.element, c.round))}
	],
	[
		'not undone', 'A saga that went back undid all, one that went back to a savepoint all behind it, '
		  . 'and what a quorum did without is undone.',
		q{SELECT p.saga_id, p.step, p.element, p.round FROM pair_of p JOIN fair g USING (saga_id, definition)
		  JOIN def d USING (definition, step) JOIN route_of r USING (saga_id, definition, step)
		  WHERE d.comp AND p.c1 IS NULL
		    AND (g.status = 'compensated' OR p.round < r.round OR p.surplus)
		    AND NOT EXISTS (SELECT FROM s WHERE (s.saga_id, s.step, s.element, s.round) =
		            (p.saga_id, p.step, p.element, p.round)
		        AND s.operation = 'compensation' AND s.status = 'skipped'
		        AND EXISTS (SELECT FROM x WHERE x.saga_id = s.saga_id AND x.operation = 'compensation'))}
	],
	[
		'undone without need', 'A saga that completed undid nothing of its last round.',
		q{SELECT p.saga_id, p.step, p.element, p.round FROM pair_of p JOIN fair g USING (saga_id, definition)
		  JOIN route_of r USING (saga_id, definition, step)
		  WHERE g.status = 'completed' AND p.c1 IS NOT NULL AND p.round = r.round AND NOT p.surplus}
	],
	[
		'surplus without a quorum', 'Only a quorum does without an element.',
		q{SELECT s.saga_id, s.step FROM s JOIN g USING (saga_id) JOIN def d USING (definition, step)
		  WHERE s.surplus AND d.quorum IS NULL}
	],
	[
		'too early', 'An action begins when what it comes after is done.',
		q{SELECT p.saga_id, p.step, p.element, p.round, q.pred, q.done, q.needed FROM (
		      SELECT p.*, k.pred, d.kind, COALESCE(LEAST(d.quorum, z.n), z.n) -
		          -- those not taken, or done by a person
		          CASE WHEN d.quorum IS NULL THEN (SELECT count(*) FROM (
		              SELECT DISTINCT t.element FROM s t WHERE t.saga_id = p.saga_id AND t.step = k.pred
		                AND t.operation = 'action' AND t.status = 'skipped') u)
		          ELSE (SELECT count(DISTINCT t.element) FROM s t WHERE t.saga_id = p.saga_id
		                AND t.step = k.pred AND t.operation = 'action' AND t.status = 'skipped'
		                AND t.attempts > 0) END AS needed,
		          CASE d.kind WHEN 'local' THEN
		              (SELECT count(*) FROM pair_of f WHERE f.saga_id = p.saga_id AND f.step = k.pred
		               AND f.n2 < p.n1 AND (f.c1 IS NULL OR f.c1 > p.n1))
		          ELSE (SELECT count(DISTINCT t.element) FROM s t WHERE t.saga_id = p.saga_id AND t.step = k.pred
		               AND t.operation = 'action' AND t.status = 'succeeded' AND t.finished_at <= p.at) END AS done
		      FROM pair_of p JOIN pred k USING (definition, step)
		      JOIN def d ON d.definition = p.definition AND d.step = k.pred
		      JOIN size_of z ON z.saga_id = p.saga_id AND z.step = k.pred
		      LEFT JOIN few f ON f.definition = p.definition
		      WHERE NOT EXISTS (SELECT FROM off o WHERE o.definition = p.definition AND o.step = k.pred
		          AND (f.definition IS NULL OR o.mode = CASE WHEN p.round > 0 THEN 1 ELSE 0 END))) q
		  JOIN pair_of p USING (saga_id, step, element, round)
		  JOIN fair USING (saga_id)
		  WHERE q.done < q.needed AND NOT EXISTS (SELECT FROM x
		      WHERE x.saga_id = p.saga_id AND x.step = q.pred AND x.sqlstate = 'SG005')}
	],
	[
		'out of order', 'Nothing of a step is done after a later one of the same round has begun.',
		q{SELECT p.saga_id, p.step, p.round, q.step AS later FROM pair_of p
		  JOIN few f USING (definition)
		  JOIN def d USING (definition, step)
		  JOIN before b ON b.definition = p.definition AND b.earlier = p.step
		  JOIN pair_of q ON q.saga_id = p.saga_id AND q.step = b.later
		  WHERE p.n2 > q.n1 AND d.quorum IS NULL
		    AND (p.round = q.round OR NOT EXISTS (SELECT FROM before w
		        WHERE w.definition = p.definition AND w.earlier = f.sp AND w.later = p.step))}
	],
	[
		'undone out of order', 'Compensations go backwards: first what depends on it.',
		q{SELECT p.saga_id, p.step, p.element, p.round, q.step AS later FROM pair_of p
		  JOIN few f USING (definition)
		  JOIN before b ON b.definition = p.definition AND b.earlier = p.step
		  JOIN pair_of q ON q.saga_id = p.saga_id AND q.step = b.later
		  JOIN fair ON fair.saga_id = p.saga_id
		  WHERE p.c1 IS NOT NULL AND NOT p.surplus
		    AND (q.n2 > p.c1 OR q.c2 > p.c1)
		    AND (p.round = q.round OR NOT EXISTS (SELECT FROM before w
		        WHERE w.definition = p.definition AND w.earlier = f.sp AND w.later = p.step))}
	],
	[
		'undone past the pivot', 'Once the pivot has succeeded nothing is undone.',
		q{SELECT c.saga_id, c.step, c.element FROM pair_of c
		  JOIN def d ON d.definition = c.definition AND d.pivot
		  JOIN e v ON v.saga_id = c.saga_id AND v.step = d.step AND v.operation = 'action'
		  WHERE c.c1 > v.n2 AND NOT c.surplus
		  UNION ALL
		  SELECT g.saga_id, g.status, 0 FROM g JOIN def d ON d.definition = g.definition AND d.pivot
		  JOIN e v ON v.saga_id = g.saga_id AND v.step = d.step
		  WHERE g.status = 'compensated'}
	],
	[
		'not done', 'A saga that completed has done every step on its way, each element or its quorum.',
		q{SELECT r.saga_id, r.step, z.n, d.quorum FROM route_of r JOIN fair g USING (saga_id, definition)
		  JOIN def d USING (definition, step) JOIN size_of z USING (saga_id, step)
		  WHERE g.status = 'completed' AND NOT r.off AND COALESCE(d.quorum, z.n) >
		      (SELECT count(*) FROM s WHERE s.saga_id = r.saga_id AND s.step = r.step
		       AND s.round = r.round AND s.operation = 'action' AND NOT s.surplus
		       AND (s.status = 'succeeded' OR (s.status = 'skipped' AND (d.quorum IS NULL OR s.attempts > 0))))
		    -- one that had too few elements, and a person said that it is done
		    AND NOT EXISTS (SELECT FROM x WHERE x.saga_id = r.saga_id AND x.step = r.step AND x.sqlstate = 'SG005')}
	],
	[
		'too much done', 'A quorum is what is kept.',
		q{SELECT s.saga_id, s.step, s.round, count(*) FROM s JOIN g USING (saga_id)
		  JOIN def d USING (definition, step)
		  WHERE d.quorum IS NOT NULL AND s.operation = 'action' AND s.status = 'succeeded' AND NOT s.surplus
		  GROUP BY 1, 2, 3, d.quorum HAVING count(*) > d.quorum}
	],
	[
		'off the way', 'An alternative is not tried before, nor what it replaces after.',
		q{SELECT p.saga_id, p.step, p.round FROM pair_of p JOIN few f USING (definition)
		  JOIN off o USING (definition, step)
		  WHERE o.mode = CASE WHEN p.round > 0 THEN 1 ELSE 0 END
		    AND (p.round > 0 OR EXISTS (SELECT FROM before b WHERE b.definition = p.definition
		        AND b.earlier = o.sp AND b.later = p.step))}
	],
	[
		'not taken', 'What a condition forbids has no effect.',
		q{SELECT e.saga_id, e.step, e.element FROM e JOIN g USING (saga_id) JOIN def d USING (definition, step)
		  WHERE roll(jsonb_build_object('definition', definition, 'input', g.input, 'step', step)
		      || CASE WHEN d.source IS NULL THEN '{}' ELSE jsonb_build_object('index', e.element) END,
		      'condition', false) >= d.cond}
	],
	[
		'skipped', 'Skipped is what its condition forbids, or a person; nothing else, without a quorum.',
		q{SELECT s.saga_id, s.step, s.element, s.round FROM s JOIN fair USING (saga_id)
		  JOIN def d USING (definition, step)
		  WHERE s.operation = 'action' AND s.status = 'skipped' AND d.quorum IS NULL
		    AND COALESCE(roll(jsonb_build_object('definition', definition, 'input', fair.input, 'step', step)
		        || CASE WHEN d.source IS NULL THEN '{}' ELSE jsonb_build_object('index', s.element) END,
		        'condition', false) < d.cond, true)
		    AND NOT EXISTS (SELECT FROM x WHERE x.saga_id = s.saga_id AND x.step = s.step)}
	],
	[
		'confirmed too early', 'Confirmations come when all actions are done, of a child when its parent has completed.',
		q{SELECT c.saga_id, c.step FROM e c JOIN pair_of p USING (saga_id)
		  WHERE c.operation = 'confirmation' AND p.n2 > c.n1 AND NOT p.surplus
		  UNION ALL
		  SELECT c.saga_id, c.step FROM e c JOIN g USING (saga_id)
		  JOIN pair_of p ON p.saga_id = g.parent_id
		  WHERE c.operation = 'confirmation' AND p.n2 > c.n1 AND NOT p.surplus}
	],
	[
		'not confirmed', 'A saga that completed has confirmed what it did, and no other has.',
		q{SELECT p.saga_id, p.step, p.element FROM pair_of p JOIN fair g USING (saga_id, definition)
		  JOIN def d USING (definition, step) JOIN route_of r USING (saga_id, definition, step)
		  WHERE d.conf AND (g.status = 'completed' AND p.round = r.round AND NOT p.surplus)
		      <> EXISTS (SELECT FROM e WHERE (e.saga_id, e.step, e.element, e.round, e.operation) =
		          (p.saga_id, p.step, p.element, p.round, 'confirmation'))
		    AND NOT EXISTS (SELECT FROM x WHERE x.saga_id = p.saga_id AND x.operation = 'confirmation')
		  UNION ALL
		  SELECT e.saga_id, e.step, e.element FROM e JOIN g USING (saga_id) JOIN def d USING (definition, step)
		  WHERE e.operation = 'confirmation' AND (NOT d.conf OR g.status = 'compensated')}
	],
	[
		'child against its parent', 'A child completes with its parent, and only the one whose result counts; else it goes back.',
		q{SELECT c.saga_id, c.status, q.saga_id AS parent, q.status AS parent_status
		  FROM fair c JOIN g q ON q.saga_id = c.parent_id
		  WHERE c.status <> CASE WHEN q.status = 'completed' AND EXISTS (SELECT FROM s
		          JOIN route_of r USING (saga_id, step)
		          WHERE s.saga_id = q.saga_id AND s.step = c.parent_step AND s.element = c.parent_element
		            AND s.operation = 'action' AND s.status = 'succeeded' AND NOT s.surplus
		            AND s.child_id = c.saga_id AND s.round = r.round)
		      THEN 'completed' ELSE 'compensated' END
		    -- behind the pivot nothing is undone, so what a quorum did without may stay
		    AND NOT (c.status = 'completed' AND q.status = 'completed' AND EXISTS (SELECT FROM s
		          JOIN def d ON d.definition = q.definition AND d.pivot
		          JOIN before b ON b.definition = q.definition AND b.earlier = d.step AND b.later = s.step
		          WHERE s.saga_id = q.saga_id AND s.step = c.parent_step AND s.surplus AND s.child_id = c.saga_id))}
	],
	[
		'child out of order', 'What a child does comes after what is before its step, and before what is after it; undone it is in between.',
		q{SELECT c.saga_id, c.parent_step, b.earlier, b.later, t.operation FROM g c
		  JOIN s ON s.saga_id = c.parent_id AND s.step = c.parent_step AND s.element = c.parent_element
		      AND s.operation = 'action' AND s.status = 'succeeded' AND s.child_id = c.saga_id AND NOT s.surplus
		  JOIN g q ON q.saga_id = c.parent_id
		  JOIN few f ON f.definition = q.definition AND f.sp IS NULL
		  JOIN before b ON b.definition = q.definition AND c.parent_step IN (b.earlier, b.later)
		  JOIN def d ON d.definition = q.definition AND d.step = b.earlier
		  JOIN pair_of p ON p.saga_id = q.saga_id AND NOT p.surplus
		      AND p.step = CASE c.parent_step WHEN b.earlier THEN b.later ELSE b.earlier END
		  JOIN fair ON fair.saga_id = c.saga_id
		  JOIN tree_of t ON t.top = c.saga_id
		  WHERE CASE WHEN c.parent_step = b.later
		        THEN t.operation = 'action' AND d.quorum IS NULL AND t.n1 < p.n2 OR t.n2 > p.c1
		        ELSE t.operation = 'action' AND d.quorum IS NULL AND t.n2 > p.n1
		             OR t.operation = 'compensation' AND t.n1 > p.n1 AND (t.n1 < p.n2 OR t.n1 < p.c2) END}
	],
	[
		'lock held twice', 'One tree of sagas at a time has a lock.',
		q{WITH held AS (
		      SELECT g.root_id, g.saga_id, l.name, min(h.n1) AS n1,
		          max(COALESCE(h.until, (SELECT max(z.n2) FROM e z WHERE z.saga_id = g.saga_id))) AS n2
		      FROM fair g
		      CROSS JOIN LATERAL (
		          SELECT d.excl AS path, p.n1, CASE WHEN d.until IS NOT NULL THEN p.n2 END AS until
		          FROM pair_of p JOIN def d USING (definition, step)
		          WHERE p.saga_id = g.saga_id AND d.excl IS NOT NULL
		          UNION ALL
		          SELECT 'lock', p.n1, NULL FROM pair_of p JOIN def d USING (definition, step)
		          WHERE p.saga_id = g.saga_id AND d.asks
		          UNION ALL
		          SELECT d.whole, p.n1, NULL FROM pair_of p JOIN def d ON d.definition = p.definition
		          WHERE p.saga_id = g.saga_id AND d.whole IS NOT NULL) h
		      CROSS JOIN LATERAL (SELECT g.input ->> h.path AS name) l
		      -- what is given back with a step may be asked for again
		      GROUP BY 1, 2, 3, CASE WHEN h.until IS NOT NULL THEN h.n1 END)
		  SELECT p.saga_id, p.name, p.n1, p.n2, q.saga_id AS other, q.n1 AS o1, q.n2 AS o2
		  FROM held p JOIN held q ON q.name = p.name AND q.root_id > p.root_id
		      AND q.n1 <= p.n2 AND p.n1 <= q.n2}
	],
	[
		'too many at once', 'So many elements at the same time as "parallel" says.',
		q{SELECT e.saga_id, e.step, e.operation, e.element, d.par, 1 + count(*) FROM e
		  JOIN g USING (saga_id) JOIN def d USING (definition, step)
		  JOIN e o ON (o.saga_id, o.step, o.round, o.operation) = (e.saga_id, e.step, e.round, e.operation)
		      AND o.element <> e.element AND o.n1 < e.n1 AND o.n2 > e.n1
		  WHERE d.par IS NOT NULL
		  GROUP BY 1, 2, 3, 4, 5 HAVING 1 + count(*) > d.par}
	],
	[
		'timer too early', 'A timer fires when its time has passed.',
		q{SELECT s.saga_id, s.step, s.finished_at - s.started_at FROM s JOIN g USING (saga_id)
		  JOIN def d USING (definition, step)
		  WHERE d.kind = 'timer' AND s.operation = 'action' AND s.status = 'succeeded'
		    AND s.finished_at < s.started_at + d.delay_ms * interval '1 ms'}
	],
	[
		'wrong signal', 'A signal step has the signal, or its default once its time is over.',
		q{SELECT s.saga_id, s.step, s.result FROM s JOIN g USING (saga_id) JOIN def d USING (definition, step)
		  WHERE d.kind = 'signal' AND s.operation = 'action' AND s.status = 'succeeded'
		    AND CASE d.mode WHEN 'never' THEN s.result <> '"nobody came"'
		                  OR s.finished_at < s.started_at + d.delay_ms * interval '1 ms'
		        WHEN 'before' THEN s.round = 0 AND g.parent_id IS NULL AND s.result <> '"before"'
		        ELSE s.result NOT IN ('"signalled"', '"before"') END}
	],
	[
		'back without a cause', 'A saga goes back when a step failed for good, a person or its parent wants it, or it waited in a circle.',
		q{SELECT g.saga_id, g.sqlstate FROM g
		  WHERE g.status = 'compensated' AND g.parent_id IS NULL
		    AND COALESCE(g.sqlstate, '') NOT IN ('SG023', 'SG024')
		    AND NOT EXISTS (SELECT FROM asked WHERE asked.saga_id = g.saga_id AND asked.verb = 'cancel')
		    AND NOT EXISTS (SELECT FROM a JOIN def d ON d.definition = g.definition AND d.step = a.step
		        WHERE a.saga_id = g.saga_id AND a.operation = 'action'
		          AND (NOT a.passing OR a.attempt >= d.max_attempts OR d.kind IN ('child', 'signal')))}
	],
	[
		'forward over a failure', 'A saga that completed has no step that failed for good on its way.',
		q{SELECT s.saga_id, s.step, s.element FROM s JOIN fair g USING (saga_id)
		  JOIN def d USING (definition, step) JOIN route_of r USING (saga_id, definition, step)
		  WHERE g.status = 'completed' AND NOT r.off AND s.round = r.round AND s.operation = 'action'
		    AND d.quorum IS NULL AND s.status NOT IN ('succeeded', 'skipped')}
	],
	[
		'stuck without need', 'Stuck is what failed for good with no way back, is out of attempts, or ended three processes.',
		q{SELECT x.* FROM x JOIN g USING (saga_id) JOIN def d USING (definition, step)
		  WHERE COALESCE(x.sqlstate, '') NOT IN ('SG001', 'SG005', 'SG022', 'SG023') AND x.crashes < 3
		    AND x.failures < CASE x.operation WHEN 'action' THEN d.max_attempts ELSE 15 END
		    AND NOT (x.operation = 'action' AND d.kind IN ('signal', 'timer'))}
	],
	[
		'too many lost', 'Only a process that ended loses an attempt, and but one.',
		q{SELECT count(*) FROM a WHERE outcome = 'lost' HAVING count(*) > (SELECT n FROM ended)}
	]);

=pod

=head2 $random->checks

A list of [name, rule, query]; the search_path has to begin with C<history>.

=cut

sub checks { return @checks }

1;
