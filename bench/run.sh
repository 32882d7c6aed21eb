#!/bin/bash
# "make bench": one table, everything measured in one run on one server, with
# fsync and synchronous_commit on; a value is the median of three rounds, in
# which all measurements alternate.
#
#   BENCH_ORDERS   orders per run (20000)    BENCH_ROUNDS   rounds (3)
#   BENCH_MEMORY   sagas of the memory test (100000)
#   BENCH_IDLE     seconds of the idle test (60)
#   BENCH_FANOUT   elements of a foreach step (1000)
#   BENCH_TIMERS   sagas that wait for timers (100000), which fire over
#   BENCH_SPREAD   so many seconds (60)
#   BENCH_LOCKS    sagas that contend for 10 locks (10000)
#   BENCH_TASKS    tasks of external steps per run of participants (3000)
#   BENCH_NOTICES  tasks that a listener waits for (1000)
#   BENCH_REMOTE   sagas of a remote step per run (10000); the others there
#   BENCH_CALLING  call for so many seconds (4)
#   BENCH_WATCHED, BENCH_FINISHED   see monitoring.sh
#   BENCH_PARTS    "floors begin drain latency fanout locks timers remote tasks
#                  notices memory monitoring idle"
#   BENCH_CONF     further settings of the server, "name=value name=value"
source "$(dirname "${BASH_SOURCE[0]}")/../tools/lib.sh"

bash "$top/tools/prerequisites.sh" bench
find_postgres
orders=${BENCH_ORDERS:-20000}
rounds=${BENCH_ROUNDS:-3}
memory=${BENCH_MEMORY:-100000}
idle=${BENCH_IDLE:-60}
fanout=${BENCH_FANOUT:-1000}
timers=${BENCH_TIMERS:-100000}
spread=${BENCH_SPREAD:-60}
contenders=${BENCH_LOCKS:-10000}
locks=10
tasks=${BENCH_TASKS:-3000}
notices=${BENCH_NOTICES:-1000}
remote=${BENCH_REMOTE:-10000}
calling=${BENCH_CALLING:-4}
parts=" ${BENCH_PARTS:-floors begin drain latency fanout locks timers remote tasks notices memory monitoring idle} "
items=1000

make_scratch bench
stage_extension
# shellcheck disable=SC2086
start_server server fsync=on synchronous_commit=on shared_buffers=1GB max_wal_size=8GB \
	checkpoint_timeout=1h ${BENCH_CONF:-}
as_user mkdir "$scratch/values"
cd "$scratch/tmp"

psql() { as_user "$bindir/psql" -Xq -v ON_ERROR_STOP=1 -d bench "$@"; }
ask() { psql -At -c "$1"; }
as_bench() { psql -U bench "$@"; }
want() { [[ $parts == *" $1 "* ]]; }
progress() { echo "# $*" >&2; }
# Keep a value; the table takes the median of each name's.
keep() { echo "$2" | as_user tee -a "$scratch/values/$1" >/dev/null; }
value()
{
	[ -s "$scratch/values/$1" ] || return 0
	sort -g "$scratch/values/$1" | awk '{v[NR] = $1} END {
		print NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2}'
}
# percentile P < pgbench's log: the third column has microseconds.
percentile() { awk '{print $3}' | sort -n | awk -v p="$1" '{v[NR] = $1} END {i = int(NR * p / 100); print v[i < 1 ? 1 : i]}'; }

reset()
{
	as_bench -c "CALL reset($orders, $items)"
	psql -c CHECKPOINT
}

# seconds COMMAND ...: how long it took.
seconds()
{
	local start=$EPOCHREALTIME

	"$@" >/dev/null
	awk -v a="$start" -v b="$EPOCHREALTIME" 'BEGIN {print b - a}'
}
keep_rate() { keep "$1" "$(awk -v n="$2" -v s="$3" 'BEGIN {printf "%.1f", n / s}')"; }

floor_a()
{
	local clients=$1 out

	reset
	out=$(as_user "$bindir/pgbench" -n -M prepared -U bench -d bench -c "$clients" -j 2 \
		-t $((orders / clients)) -D n=0 -D per_client=$((orders / clients)) \
		-f "$scratch/src/bench/floor_a.pgbench" 2>&1) || die "$out"
	keep "floor_a$clients" "$(sed -n 's/^tps = \([0-9.]*\).*/\1/p' <<<"$out")"
}

floor_in_server()
{
	reset
	keep_rate "$1" "$orders" "$(seconds as_bench -c "CALL $1()")"
}

# Where all commits are known exactly: the WAL.
commits_between()
{
	ask "SELECT count FROM pg_get_wal_stats('$1', '$2', true)
		WHERE \"resource_manager/record_type\" = 'Transaction/COMMIT'"
}

# Unfinished ones, with saga's indexes to help; every poll costs the workers time.
wait_for_end()
{
	local deadline=$((SECONDS + $1)) left

	while
		left=$(ask "SELECT count(*) FROM saga.sagas WHERE status NOT IN ('completed', 'compensated', 'abandoned')")
		[ "$left" -gt 0 ]
	do
		[ $SECONDS -lt $deadline ] || die "timed out with $left sagas that have not ended"
		sleep 1
	done
}

# drain PERCENT: begin all orders in one transaction, then time the workers.
drain()
{
	local percent=$1 begun wal_from wal_to span

	reset
	begun=$(as_bench -At <<-SQL
		BEGIN;
		SELECT count(saga.begin('order', order_input(o, o.order_id % 100 < $percent))) FROM orders o \g /dev/null
		SELECT pg_current_wal_insert_lsn(), clock_timestamp();
		COMMIT;
	SQL
	)
	wal_from=${begun%%|*}
	begun=${begun#*|}
	wait_for_end 300
	wal_to=$(ask "SELECT pg_current_wal_flush_lsn()")
	span=$(ask "SELECT extract(epoch FROM max(finished_at) - '$begun') FROM saga.sagas WHERE created_at <= '$begun'")
	keep_rate "drain$percent" "$orders" "$span"
	keep "wal$percent" "$(ask "SELECT round(('$wal_to'::pg_lsn - '$wal_from') / $orders)")"
	keep "commits$percent" "$(ask "SELECT round($(commits_between "$wal_from" "$wal_to")::numeric / $orders, 3)")"
	check_books "$percent"
}

# A benchmark of a wrong result is worth nothing.
check_books()
{
	local wrong

	wrong=$(ask "SELECT count(*) FROM orders
		WHERE (status = 'confirmed') <> NOT (order_id % 100 < $1)")
	wrong+=+$(ask "SELECT (SELECT count(*) FROM payments) - count(*) FROM orders WHERE status = 'confirmed'")
	wrong+=+$(ask "SELECT $items * 1000000 - sum(stock) - (SELECT sum(qty) FROM orders WHERE status = 'confirmed') FROM items")
	wrong=${wrong%+}
	[[ $wrong =~ ^[0+]*$ ]] || die "the books are wrong after $1 % compensated: $wrong"
}

# Begin beside a plain INSERT of a row of the same size: in one transaction
# each, rolled back, so that no worker runs meanwhile.
begin_cost()
{
	local size out

	reset
	# The row that begin writes, as it is before anybody has worked on it.
	size=$(psql -At <<-'SQL'
		BEGIN;
		SET LOCAL ROLE bench;
		SELECT saga.begin('order', order_input(o, true)) FROM orders o LIMIT 1 \g /dev/null
		RESET ROLE;
		SELECT pg_column_size(s.*) FROM saga.saga s WHERE s.xmin::text = pg_current_xact_id()::text;
		ROLLBACK;
	SQL
	)
	size=$(tail -n 1 <<<"$size")
	keep row_size "$size"
	as_bench -c "SET client_min_messages = warning" -c "DROP TABLE IF EXISTS plain" \
		-c "CREATE TABLE plain (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, payload text)"
	# ... and one with the same columns and indexes.
	psql -c "SET client_min_messages = warning" -c "DROP TABLE IF EXISTS same" \
		-c "CREATE TABLE same (LIKE saga.saga_0 INCLUDING ALL) WITH (fillfactor = 60)" \
		-c "ALTER TABLE same OWNER TO bench" \
		-c "CREATE SEQUENCE IF NOT EXISTS same_id" -c "GRANT ALL ON same_id TO bench" \
		-c "GRANT USAGE ON SCHEMA saga TO bench"
	out=$(as_bench -At -v orders="$orders" -v payload=$((size > 40 ? size - 36 : 4)) <<-'SQL'
		SET client_min_messages = error;
		SET bench.payload = :payload;
		SELECT saga.begin('order', order_input(o, true)) FROM orders o LIMIT 0;
		BEGIN;
		SELECT clock_timestamp() AS t0, pg_current_wal_insert_lsn() AS w0 \gset
		DO $$
		DECLARE
			payload text := repeat('x', current_setting('bench.payload')::int);
			o orders;
		BEGIN
			FOR o IN SELECT * FROM orders LOOP
				INSERT INTO plain (payload) VALUES (payload);
			END LOOP;
		END $$;
		SELECT clock_timestamp() AS t1, pg_current_wal_insert_lsn() AS w1 \gset
		ROLLBACK;
		BEGIN;
		SELECT clock_timestamp() AS t2, pg_current_wal_insert_lsn() AS w2 \gset
		DO $$
		DECLARE
			input jsonb;
			o orders;
		BEGIN
			SELECT order_input(orders, true) INTO input FROM orders LIMIT 1;
			FOR o IN SELECT * FROM orders LOOP
				PERFORM saga.begin('order', input);
			END LOOP;
		END $$;
		SELECT clock_timestamp() AS t3, pg_current_wal_insert_lsn() AS w3 \gset
		ROLLBACK;
		BEGIN;
		SELECT clock_timestamp() AS t4, pg_current_wal_insert_lsn() AS w4 \gset
		DO $$
		DECLARE
			input jsonb;
			o orders;
		BEGIN
			SELECT order_input(orders, true) INTO input FROM orders LIMIT 1;
			FOR o IN SELECT * FROM orders LOOP
				INSERT INTO same (id, due_at, created_at, token, coordinator, role,
					definition_id, turn, status, slot, step, goal, backward, suspect,
					released, depth, role_name, input)
				VALUES (nextval('same_id'), clock_timestamp(), clock_timestamp(),
					gen_random_uuid(), '00000000-0000-0000-0000-000000000000', 10,
					1, 0, 'running', 0, 0, -1, false, false, false, 0, 'bench', input);
			END LOOP;
		END $$;
		SELECT clock_timestamp() AS t5, pg_current_wal_insert_lsn() AS w5 \gset
		ROLLBACK;
		SELECT extract(epoch FROM :'t1'::timestamptz - :'t0') * 1e6 / :orders,
			(:'w1'::pg_lsn - :'w0') / :orders,
			extract(epoch FROM :'t3'::timestamptz - :'t2') * 1e6 / :orders,
			(:'w3'::pg_lsn - :'w2') / :orders,
			extract(epoch FROM :'t5'::timestamptz - :'t4') * 1e6 / :orders,
			(:'w5'::pg_lsn - :'w4') / :orders;
	SQL
	)
	out=$(tail -n 1 <<<"$out")
	keep insert_us "$(cut -d'|' -f1 <<<"$out")"
	keep insert_wal "$(cut -d'|' -f2 <<<"$out")"
	keep begin_us "$(cut -d'|' -f3 <<<"$out")"
	keep begin_wal "$(cut -d'|' -f4 <<<"$out")"
	keep same_us "$(cut -d'|' -f5 <<<"$out")"
	keep same_wal "$(cut -d'|' -f6 <<<"$out")"
}

# latency NAME N: p50 and p99 of a pgbench script, one client.
latency()
{
	local name=$1 n=$2 out

	rm -f "$scratch"/tmp/lat*
	out=$(as_user "$bindir/pgbench" -n -U bench -d bench -c 1 -t "$n" -D n=0 -l --log-prefix="$scratch/tmp/lat" \
		-f "$scratch/src/bench/latency_$name.pgbench" 2>&1) || die "$out"
	keep "${name}_p50" "$(cat "$scratch"/tmp/lat.* | percentile 50)"
	keep "${name}_p99" "$(cat "$scratch"/tmp/lat.* | percentile 99)"
}

# ---- shapes beside loops that write the same rows

same_tables()
{
	psql -c "SET client_min_messages = warning" \
		-c "CREATE TABLE same_saga (LIKE saga.saga_0 INCLUDING ALL) WITH (fillfactor = 60)" \
		-c "CREATE TABLE same_step (LIKE saga.step_0 INCLUDING ALL)" \
		-c "CREATE TABLE same_lock (LIKE saga.lock INCLUDING ALL)" \
		-c "ALTER TABLE same_saga OWNER TO bench" -c "ALTER TABLE same_step OWNER TO bench" \
		-c "ALTER TABLE same_lock OWNER TO bench" \
		-c "CREATE SEQUENCE IF NOT EXISTS same_id" -c "GRANT ALL ON same_id TO bench"
}

empty_same_tables()
{
	as_bench -c "TRUNCATE same_saga, same_step, same_lock"
	psql -c CHECKPOINT
}

# Is what was asked for right?  expect NAME GOT WANTED
expect() { [ "$2" = "$3" ] || die "$1: $2 in place of $3"; }

# One saga with so many elements; then as many rows, in as many commits.
measure_fanout()
{
	local id wal_from wal_to begun commits batch

	psql -c CHECKPOINT
	as_bench -c "TRUNCATE parcels"
	# the function and the worker's session are warm
	id=$(as_bench -At -c "SELECT saga.begin('fanout', fanout_input(10))")
	as_bench -c "CALL saga.wait($id, timeout => '1 min')" >/dev/null
	wal_from=$(ask "SELECT pg_current_wal_insert_lsn()")
	id=$(as_bench -At -c "SELECT saga.begin('fanout', fanout_input($fanout))")
	as_bench -c "CALL saga.wait($id, timeout => '5 min')" >/dev/null
	wal_to=$(ask "SELECT pg_current_wal_flush_lsn()")
	expect "parcels sent" "$(ask "SELECT count(DISTINCT n) || ' of ' || count(*) FROM parcels WHERE saga_id = $id")" "$fanout of $fanout"
	begun=$(ask "SELECT extract(epoch FROM finished_at - created_at) FROM saga.sagas WHERE saga_id = $id")
	commits=$(commits_between "$wal_from" "$wal_to")
	keep_rate fanout "$fanout" "$begun"
	keep fanout_wal "$(ask "SELECT round(('$wal_to'::pg_lsn - '$wal_from') / $fanout)")"
	keep fanout_commits "${commits:-0}"
	batch=$((fanout / (${commits:-1} > 2 ? commits - 2 : 1)))
	empty_same_tables
	wal_from=$(ask "SELECT pg_current_wal_insert_lsn()")
	keep_rate raw_fanout "$fanout" "$(seconds as_bench -c "CALL raw_fanout($fanout, $((batch > 0 ? batch : 1)))")"
	wal_to=$(ask "SELECT pg_current_wal_flush_lsn()")
	keep raw_fanout_wal "$(ask "SELECT round(('$wal_to'::pg_lsn - '$wal_from') / $fanout)")"
}

# Sagas that take turns for few locks, begun in one transaction.
measure_locks()
{
	local begun span

	as_bench -c "TRUNCATE turns, stock" -c "INSERT INTO stock SELECT i, 0 FROM generate_series(0, $locks - 1) i"
	psql -c CHECKPOINT
	begun=$(as_bench -At <<-SQL
		BEGIN;
		SELECT count(saga.begin('turns', jsonb_build_object('sku', i % $locks)))
		FROM generate_series(1, $contenders) i \g /dev/null
		SELECT clock_timestamp();
		COMMIT;
	SQL
	)
	wait_for_end 900
	span=$(ask "SELECT extract(epoch FROM max(finished_at) - '$begun') FROM saga.sagas WHERE definition = 'turns' AND created_at <= '$begun'")
	# nobody came between the two steps of another: no count was lost
	expect "turns taken" "$(ask "SELECT sum(n) FROM stock")" "$contenders"
	keep_rate locks "$contenders" "$span"
	as_bench -c "TRUNCATE turns" -c "UPDATE stock SET n = 0"
	empty_same_tables
	keep_rate raw_locks "$contenders" "$(seconds as_bench -c "CALL raw_locks($contenders, $locks)")"
	expect "turns of the loop" "$(ask "SELECT sum(n) FROM stock")" "$contenders"
}

# Hundredths of a second of all processes of the server so far.
server_cpu()
{
	local postmaster pid

	postmaster=$(head -n 1 "$PGDATA/postmaster.pid")
	for pid in "$postmaster" $(cat "/proc/$postmaster/task/$postmaster/children"); do
		# with those of children that have ended, for the postmaster
		cat "/proc/$pid/stat" 2>/dev/null || true
	done | sed 's/^.*) //' | awk -v first=1 '{n += $12 + $13; if (first) {n += $14 + $15; first = 0}} END {print n + 0}'
}

# Sagas that all wait; then their timers fire, evenly over some time.
measure_timers()
{
	local lead from now cpu waiting fired raw

	as_bench -c "TRUNCATE fired"
	psql -c CHECKPOINT
	# until then all of them are to wait, and some seconds longer
	lead=$((timers / 1500 + 30))
	from=$(ask "SELECT extract(epoch FROM clock_timestamp() + interval '$lead s')")
	as_bench -c "SELECT count(saga.begin('timed', jsonb_build_object('due',
		to_timestamp($from + i * $spread::float / $timers)))) FROM generate_series(1, $timers) i" >/dev/null
	while waiting=$(ask "SELECT count(*) FROM saga.step WHERE step = 0 AND status = 'running'"); [ "$waiting" -lt "$timers" ]; do
		[ "$(ask "SELECT count(*) FROM fired")" -eq 0 ] || break
		sleep 1
	done
	keep timers_waiting "$waiting"
	# what ran before has reported, and the first is not due for a while
	sleep 3
	now=$EPOCHREALTIME
	cpu=$(server_cpu)
	sleep "$(awk -v due="$from" -v now="$now" 'BEGIN {s = due - now - 1; print (s > 0 ? s : 0)}')"
	keep timers_idle "$(awk -v n="$(($(server_cpu) - cpu))" -v a="$now" -v b="$EPOCHREALTIME" \
		'BEGIN {if (b - a > 1) printf "%.2f", n / (b - a)}')"
	cpu=$(server_cpu)
	sleep "$((spread + 2))"
	wait_for_end 600
	fired=$(($(server_cpu) - cpu))
	expect "timers fired" "$(ask "SELECT count(*) FROM fired")" "$timers"
	expect "timers fired too early" "$(ask "SELECT count(*) FROM fired WHERE at < due")" 0
	keep timers_p50 "$(ask "SELECT percentile_disc(0.5) WITHIN GROUP (ORDER BY extract(epoch FROM at - due)) * 1000 FROM fired")"
	keep timers_p99 "$(ask "SELECT percentile_disc(0.99) WITHIN GROUP (ORDER BY extract(epoch FROM at - due)) * 1000 FROM fired")"
	keep timers_done "$(ask "SELECT percentile_disc(0.99) WITHIN GROUP (ORDER BY extract(epoch FROM g.finished_at - f.due)) * 1000
		FROM fired f JOIN saga.saga g ON g.id = f.saga_id")"
	keep timers_cpu "$(awk -v n="$fired" -v s="$timers" 'BEGIN {printf "%.1f", n * 10000 / s}')"

	# the same rows, all of them due
	as_bench -c "TRUNCATE fired"
	empty_same_tables
	as_bench -c "SELECT count(write_saga(i, to_timestamp($from + i * $spread::float / $timers),
			jsonb_build_object('due', to_timestamp($from)))) FROM generate_series(1, $timers) i" \
		-c "SELECT count(write_step(i, 0, 0, NULL)) FROM generate_series(1, $timers) i" \
		-c "UPDATE same_step SET status = 'running', finished_at = NULL" \
		-c "VACUUM ANALYZE same_saga, same_step" >/dev/null
	psql -c CHECKPOINT
	cpu=$(server_cpu)
	as_bench -c "CALL raw_timers($timers)"
	# its backend has ended: it counts as the postmaster's
	sleep 1
	raw=$(($(server_cpu) - cpu))
	expect "timers of the loop" "$(ask "SELECT count(*) FROM fired")" "$timers"
	keep raw_timers_cpu "$(awk -v n="$raw" -v s="$timers" 'BEGIN {printf "%.1f", n * 10000 / s}')"
}

# ---- tasks of external steps beside a bare queue

participants="1 8 32"
batches="1 10 100"

# How many batches each of so many participants claims: fewer where each waits
# for a flush, more where it is over too soon.
batches_each()
{
	local all=$tasks

	case "$1 $2" in
		"1 1") all=$((tasks / 4)) ;;
		*" 1") all=$((tasks / 2)) ;;
		*" 100") all=$((tasks * 2)) ;;
	esac
	echo $(((all + $1 * $2 - 1) / ($1 * $2)))
}

# set_workers on | off; with "off" returns when they have ended.
set_workers()
{
	psql -c "ALTER SYSTEM SET saga.enabled = $1" -c "SELECT pg_reload_conf()" >/dev/null
	while [ "$1" = off ] && [ "$(ask "SELECT count(*) FROM pg_stat_activity
		WHERE backend_type LIKE 'saga %' AND backend_type <> 'saga launcher'")" -gt 0 ]; do
		sleep 0.1
	done
}

# Until so many tasks wait to be claimed.
offer_tasks()
{
	local deadline=$((SECONDS + 300)) waiting

	as_bench -c "SELECT count(saga.begin('errand', errand_input(i))) FROM generate_series(1, $1) i" >/dev/null
	while waiting=$(ask "SELECT count(*) FROM saga.task WHERE at IS NOT NULL AND NOT claimed"); [ "$waiting" -lt "$1" ]; do
		[ $SECONDS -lt $deadline ] || die "timed out with $waiting of $1 tasks offered"
		sleep 0.5
	done
}

# A transaction that holds the horizon, from here to release_horizon.
hold_horizon()
{
	local line

	coproc holder { as_bench -At; }
	echo "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 'holds' FROM bare_payload;" >&"${holder[1]}"
	read -r line <&"${holder[0]}"
	expect "snapshot" "$line" holds
}
release_horizon()
{
	local pid=$holder_PID

	echo "COMMIT; \\q" >&"${holder[1]}"
	wait "$pid"
}

# participate NAME KIND PARTICIPANTS BATCH: so many claim and answer; the rate
# counts what was really done.
participate()
{
	local name=$1 kind=$2 clients=$3 batch=$4 each out before answered results

	each=$(batches_each "$clients" "$batch")
	results=$(printf ',"\\"done\\""%.0s' $(seq "$batch"))
	# a constant, so that neither is planned each time
	sed "s/:batch/$batch/" "$scratch/src/bench/tasks_$kind.pgbench" | as_user tee "$scratch/tmp/tasks.pgbench" >/dev/null
	before=$(tasks_done "$kind")
	out=$(as_user "$bindir/pgbench" -n -M prepared -U bench -d bench -c "$clients" -j 2 -t "$each" \
		-D results="{${results#,}}" -f "$scratch/tmp/tasks.pgbench" 2>&1) || die "$out"
	answered=$(($(tasks_done "$kind") - before))
	[ $answered -gt $((clients * batch * each / 2)) ] || die "$name: only $answered tasks done: $out"
	keep "$name" "$(sed -n 's/^tps = \([0-9.]*\).*/\1/p' <<<"$out" |
		awk -v answered="$answered" -v n=$((clients * each)) '{printf "%.1f", $1 * answered / n}')"
}
tasks_done()
{
	case $1 in
		bare) ask "SELECT $pool - count(*) FROM bare_task" ;;
		saga) ask "SELECT count(*) FROM saga.task WHERE outcome = 'answered'" ;;
	esac
}

# The last value of a name by the last of another one.
keep_ratio()
{
	keep "$1" "$(awk -v a="$(tail -n 1 "$scratch/values/$2")" -v b="$(tail -n 1 "$scratch/values/$3")" \
		'BEGIN {print a / b}')"
}

# Claims and answers alone: tasks that wait before the clock starts, and no
# workers; both kinds of queue in turns, and both as long.  With "held" a
# transaction stays open over all turns of one size.
measure_claims()
{
	local horizon=$1 clients=$2 batch round

	pool=0
	for batch in $batches; do
		pool=$((pool + rounds * clients * batch * $(batches_each "$clients" "$batch")))
	done
	# nobody finds the queue empty
	pool=$((pool + 5000))
	offer_tasks "$pool"
	set_workers off
	as_bench -c "CALL fill_bare_tasks($pool)"
	for batch in $batches; do
		psql -c "VACUUM ANALYZE saga.task, bare_task" -c CHECKPOINT
		[ "$horizon" = free ] || hold_horizon
		for round in $(seq "$rounds"); do
			participate "bare $horizon $clients $batch" bare "$clients" "$batch"
			participate "saga $horizon $clients $batch" saga "$clients" "$batch"
			keep_ratio "ratio $horizon $clients $batch" "saga $horizon $clients $batch" "bare $horizon $clients $batch"
		done
		[ "$horizon" = free ] || release_horizon
	done
	set_workers on
	finish_errands
}

finish_errands()
{
	as_bench -c "CALL run_errands()"
	wait_for_end 600
	expect "errands done" "$(ask "SELECT count(*) FROM saga.sagas WHERE definition = 'errand' AND status <> 'completed'")" 0
}

# The same while workers act on the answers: from the first claim to the end of
# the last saga.
measure_whole()
{
	local horizon=$1 clients=$2 batch=$3 begun n

	n=$((clients * batch * $(batches_each "$clients" "$batch")))
	begun=$(ask "SELECT clock_timestamp()")
	offer_tasks "$n"
	[ "$horizon" = free ] || hold_horizon
	participate "alone" saga "$clients" "$batch"
	finish_errands
	[ "$horizon" = free ] || release_horizon
	keep_rate "whole $horizon $clients $batch" "$n" "$(ask "SELECT extract(epoch FROM max(g.finished_at) - min(t.claimed_at))
		FROM saga.task t JOIN saga.saga g ON g.id = t.saga_id WHERE t.offered_at >= '$begun'")"
}

# What a saga's payload is, for the bare queue.
measure_payload()
{
	offer_tasks 1
	as_bench <<-'SQL'
		SELECT id, lease_token, payload FROM saga.claim_tasks('errands') \gset
		INSERT INTO bare_payload VALUES (:'payload');
		SELECT saga.complete_task(:id, :'lease_token') \g /dev/null
	SQL
	expect "payloads" "$(ask "SELECT count(*) FROM bare_payload")" 1
	keep payload "$(ask "SELECT pg_column_size(payload) FROM bare_payload")"
}

measure_notices()
{
	local kind p50 p99 unheard

	as_user gcc -O2 -o "$scratch/listen" "$scratch/src/bench/listen.c" -I"$("$pg_config" --includedir)" \
		-L"$("$pg_config" --libdir)" -Wl,-rpath,"$("$pg_config" --libdir)" -lpq
	as_bench -c "CALL fill_bare_tasks(0)"
	while read -r kind p50 p99 unheard; do
		keep "notice_${kind}_p50" "$p50"
		keep "notice_${kind}_p99" "$p99"
		expect "notices of $kind that did not come" "$unheard" 0
	done < <(as_user env PGUSER=bench PGDATABASE=bench "$scratch/listen" "$notices" 5)
	[ -n "$(value notice_saga_p50)" ] || die "no notice came"
}

# ---- remote steps beside calls that wait, and beside calls on the spot

latencies="0 1 10 50"
connections="1 8"

there() { psql -h "$scratch/there" -p "$port_there" "$@"; }
ask_there() { there -At -c "$1"; }

# A port that nobody listens on.
free_port()
{
	local port

	while
		port=$((20000 + RANDOM % 30000))
		(: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null
	do :; done
	echo "$port"
}

# Another server, which has the extension but does not preload it, and what
# makes it seem far away: it ends when we do.  At 0 ms nothing is between.
start_there()
{
	local ms ports

	port_there=$(free_port)
	# what it sets points to the other server
	(start_server there fsync=on synchronous_commit=on shared_buffers=1GB max_wal_size=8GB \
		checkpoint_timeout=1h shared_preload_libraries= listen_addresses=127.0.0.1 "port=$port_there")
	# a server that does not ask for a password is none that dblink calls for just anybody
	as_user sed -i '1i host all bench 127.0.0.1/32 scram-sha-256' "$scratch/there/data/pg_hba.conf"
	there -d postgres -c "SELECT pg_reload_conf()" -c "CREATE ROLE bench LOGIN PASSWORD 'bench'" \
		-c "CREATE DATABASE bench OWNER bench" >/dev/null
	# it need not be preloaded there, and says what that would be for
	there -c "SET client_min_messages = error" -c "CREATE EXTENSION saga" -c "SELECT saga.grant_remote('bench')" >/dev/null
	there -U bench -f "$scratch/src/bench/remote.sql" -f "$scratch/src/bench/remote_there.sql"

	as_user gcc -O2 -o "$scratch/delay" "$scratch/src/bench/delay.c"
	# shellcheck disable=SC2086
	coproc network { as_user "$scratch/delay" "$port_there" ${latencies#0 }; }
	read -ra ports <&"${network[0]}"
	port_at=([0]=$port_there)
	for ms in ${latencies#0 }; do
		port_at[ms]=${ports[0]}
		ports=("${ports[@]:1}")
	done
	psql -c "CREATE EXTENSION dblink"
	as_bench -f "$scratch/src/bench/remote.sql" -f "$scratch/src/bench/remote_here.sql"
	for ms in $latencies; do
		psql -c "CREATE SERVER there_$ms FOREIGN DATA WRAPPER dblink_fdw
				OPTIONS (host '127.0.0.1', port '${port_at[$ms]}', dbname 'bench')" \
			-c "CREATE USER MAPPING FOR bench SERVER there_$ms OPTIONS (user 'bench', password 'bench')" \
			-c "GRANT USAGE ON FOREIGN SERVER there_$ms TO bench"
		as_bench -c "SELECT define_shipping('there_$ms')" >/dev/null
	done
}

stop_there()
{
	local pid=$network_PID

	exec {network[1]}>&-
	wait "$pid"
	stop_server there
}

# Called often enough that it does not matter: all start alike.
reset_there()
{
	there -U bench -c "TRUNCATE shipments" -c "VACUUM ANALYZE stock"
	there -c "TRUNCATE saga.barrier" -c CHECKPOINT
	psql -c CHECKPOINT
}

# calls NAME SCRIPT CLIENTS PGBENCH'S OPTIONS: of each client from its first
# answer, for which it may have to connect, to its last.
calls()
{
	local name=$1 script=$2 clients=$3 out

	shift 3
	reset_there
	rm -f "$scratch"/tmp/call*
	out=$(as_user env PGPASSWORD=bench "$bindir/pgbench" -n -M prepared -U bench -c "$clients" -j "$clients" \
		-T "$calling" -l --log-prefix="$scratch/tmp/call" "$@" -f "$scratch/src/bench/remote_$script.pgbench" bench 2>&1) || die "$out"
	keep "$name" "$(cat "$scratch"/tmp/call.* | awk '
		{t = $5 + $6 / 1e6; if (!($1 in n)) from[$1] = t; n[$1]++; to[$1] = t}
		END {for (c in n) if (n[c] > 1) r += (n[c] - 1) / (to[c] - from[c]); printf "%.1f", r}')"
}

# shipping NAME DEFINITION: sagas begun in one transaction, from then to the end
# of the last one.
shipping()
{
	local name=$1 definition=$2 begun

	# the connections are there
	as_bench -c "SELECT count(saga.begin('$definition', order_to_ship(i))) FROM generate_series(1, 100) i" >/dev/null
	wait_for_end 100
	reset_there
	begun=$(as_bench -At <<-SQL
		BEGIN;
		SELECT count(saga.begin('$definition', order_to_ship(i))) FROM generate_series(1, $remote) i \g /dev/null
		SELECT clock_timestamp();
		COMMIT;
	SQL
	)
	wait_for_end 600
	expect "sagas completed" "$(ask "SELECT count(*) FROM saga.sagas
		WHERE definition = '$definition' AND status = 'completed' AND finished_at >= '$begun'")" "$remote"
	expect "shipments" "$(ask_there "SELECT count(DISTINCT order_id) || ' of ' || count(*) FROM shipments")" "$remote of $remote"
	keep_rate "$name" "$remote" "$(ask "SELECT extract(epoch FROM max(finished_at) - '$begun') FROM saga.sagas
		WHERE definition = '$definition' AND finished_at >= '$begun'")"
}

set_connections()
{
	psql -c "ALTER SYSTEM SET saga.remote_connections_per_server = $1" -c "SELECT pg_reload_conf()" >/dev/null
	sleep 1
}

# measure_remote CONNECTIONS MILLISECONDS
measure_remote()
{
	local at="$1 $2" kind

	calls "dblink $at" dblink "$1" -D "server=there_$2"
	shipping "remote $at" "there_$2"
	calls "direct $at" direct "$1" -h 127.0.0.1 -p "${port_at[$2]}"
	shipping "undoable $at" "there_$2_undoable"
	for kind in remote undoable; do
		keep_ratio "${kind}_dblink $at" "$kind $at" "dblink $at"
		keep_ratio "${kind}_direct $at" "$kind $at" "direct $at"
	done
}

# The largest private memory of a worker, in kB.
worker_memory()
{
	local pid

	for pid in $(ask "SELECT pid FROM pg_stat_activity WHERE backend_type = 'saga worker' AND datname = 'bench'"); do
		sed -n 's/^RssAnon:[^0-9]*\([0-9]*\).*/\1/p' "/proc/$pid/status" 2>/dev/null || true
	done | sort -n | tail -n 1
}

# Samples when a fifth has ended and when all have.
measure_memory()
{
	local before sample

	as_bench -c "CALL reset($memory, $items)"
	before=$(ask "SELECT count(*) FROM saga.sagas WHERE finished_at IS NOT NULL")
	as_bench -c "SELECT count(saga.begin('order', order_input(o, false))) FROM orders o" >/dev/null
	while [ "$(ask "SELECT count(*) FROM saga.sagas WHERE finished_at IS NOT NULL")" -lt $((before + memory / 5)) ]; do
		sleep 0.2
	done
	sample=$(worker_memory)
	keep memory_fifth "${sample:-0}"
	wait_for_end 600
	sample=$(worker_memory)
	keep memory_all "${sample:-0}"
}

transactions()
{
	as_user "$bindir/psql" -XAtq -d template1 -c "SELECT sum(xact_commit + xact_rollback) FROM pg_stat_database WHERE datname IN ('bench', 'postgres')"
}

# Nobody is connected, autovacuum is off: whatever runs is saga's.
measure_idle()
{
	local from

	wait_for_end 60
	psql -c "ALTER SYSTEM SET autovacuum = off" -c "SELECT pg_reload_conf()" >/dev/null
	# what ran before has reported by now, and the look a minute after it,
	# which finds that nothing is left to wait for, is over
	sleep 75
	from=$(transactions)
	sleep "$idle"
	keep idle "$(awk -v n="$(($(transactions) - from))" -v s="$idle" 'BEGIN {printf "%.1f", n * 60 / s}')"
}

# shellcheck source=bench/monitoring.sh
source "$top/bench/monitoring.sh"

psql -d postgres -c "CREATE ROLE bench LOGIN" -c "CREATE DATABASE bench OWNER bench"
psql -c "CREATE EXTENSION pg_walinspect" -c "CREATE EXTENSION saga" -c "SELECT saga.grant_usage('bench')" >/dev/null
as_bench -f "$scratch/src/bench/schema.sql"
as_bench -f "$scratch/src/bench/saga.sql"
if want fanout || want locks || want timers; then
	same_tables
	as_bench -f "$scratch/src/bench/flow.sql"
fi
if want tasks || want notices; then
	as_bench -f "$scratch/src/bench/tasks.sql"
fi
if want remote; then
	start_there
fi

for round in $(seq "$rounds"); do
	progress "round $round of $rounds"
	if want floors; then
		progress "floors"
		floor_a 8
		floor_a 32
		floor_in_server floor_b
		floor_in_server floor_c
	fi
	if want drain; then
		for percent in 0 5 100; do
			progress "drain, $percent % compensated"
			drain $percent
		done
	fi
	if want begin; then
		progress "begin"
		begin_cost
	fi
	if want latency; then
		progress "latency"
		reset
		latency insert 2000
		latency saga 2000
	fi
	if want fanout; then
		progress "fan-out, $fanout elements"
		measure_fanout
	fi
	if want locks; then
		progress "locks, $contenders sagas"
		measure_locks
	fi
	if want remote; then
		for n in $connections; do
			set_connections "$n"
			for ms in $latencies; do
				progress "remote, $n connections, $ms ms"
				measure_remote "$n" "$ms"
			done
		done
	fi
	if want monitoring; then
		progress "monitoring, $watched sagas"
		measure_watched "$round"
	fi
done
if want remote; then
	stop_there
fi
if want timers; then
	progress "timers, $timers sagas"
	measure_timers
fi
if want tasks || want notices; then
	measure_payload
fi
if want tasks; then
	for horizon in free held; do
		progress "tasks, horizon $horizon"
		for clients in $participants; do
			measure_claims $horizon "$clients"
		done
		for batch in $batches; do
			measure_whole $horizon 8 "$batch"
		done
	done
fi
if want notices; then
	progress "notices, $notices of each kind"
	measure_notices
fi
if want memory; then
	progress "memory, $memory sagas"
	measure_memory
fi
if want monitoring; then
	progress "monitoring, $finished sagas that have ended"
	measure_views
fi
if want idle; then
	progress "idle, $idle s"
	measure_idle
fi

# row NAME VALUE UNIT [RATIO-A RATIO-C TARGET]
row()
{
	[ -n "$2" ] || return 0
	printf '| %-52s | %10s | %-9s | %9s | %9s | %-22s |\n' "$1" "$2" "$3" "${4:-}" "${5:-}" "${6:-}"
}
ratio()
{
	[ -n "$1" ] && [ -n "$2" ] || return 0
	awk -v a="$1" -v b="$2" 'BEGIN {if (b > 0) printf "%.2f", a / b}'
}
# times A B: "0.52 x", or nothing
times()
{
	local r

	r=$(ratio "$1" "$2")
	[ -z "$r" ] || echo "$r x"
}
number()
{
	[ -n "$2" ] || return 0
	printf "%.$1f" "$2"
}
rate_row()
{
	local v

	v=$(value "$2")
	row "$1" "$(number 0 "$v")" "$3" "$(ratio "$v" "$a32")" "$(ratio "$v" "$c")" "${4:-}"
}

a32=$(value floor_a32)
c=$(value floor_c)

echo
echo "$(sed -n 's/^model name[^:]*: *//p' /proc/cpuinfo | head -n 1), $(nproc) cores, $(awk '/^MemTotal/ {printf "%.0f GB", $2 / 1048576}' /proc/meminfo), Linux $(uname -r),"
echo "$(ask 'SHOW server_version' | sed 's/^/PostgreSQL /'), fsync and synchronous_commit on, $orders orders, $items items, medians of $rounds"
echo
printf '| %-52s | %10s | %-9s | %9s | %9s | %-22s |\n' measurement value unit "/ floor A" "/ floor C" "to reach"
echo "|---|--:|---|--:|--:|---|"
rate_row "floor A: 3 transactions per order, 8 connections" floor_a8 orders/s
rate_row "floor A: 3 transactions per order, 32 connections" floor_a32 orders/s
rate_row "floor B: one loop, a commit per 50 orders" floor_b orders/s
rate_row "floor C: step functions in subtransactions, same loop" floor_c orders/s
rate_row "sagas drained, 0 % compensated" drain0 sagas/s "3 x A, 0.6 x C"
rate_row "sagas drained, 5 % compensated" drain5 sagas/s
rate_row "sagas drained, 100 % compensated" drain100 sagas/s
row "WAL per saga, 0 / 5 / 100 % compensated" "$(value wal0)" bytes "" "" "5 %: $(value wal5), 100 %: $(value wal100)"
row "commits per saga, 0 / 5 / 100 % compensated" "$(value commits0)" commits "" "" "5 %: $(value commits5), 100 %: $(value commits100)"
row "begin to completed, one at a time, p50" "$(number 0 "$(value saga_p50)")" us "" "" "under 4 INSERT commits"
row "begin to completed, one at a time, p99" "$(number 0 "$(value saga_p99)")" us
row "4 plain INSERT commits, p50" "$(number 0 "$(value insert_p50)")" us
row "4 plain INSERT commits, p99" "$(number 0 "$(value insert_p99)")" us
row "saga.begin" "$(number 2 "$(value begin_us)")" us "" "" \
	"1.5 x INSERT of its row; it is $(ratio "$(value begin_us)" "$(value same_us)")"
row "plain INSERT of its row, with the same indexes" "$(number 2 "$(value same_us)")" us
row "plain INSERT of two columns of its $(value row_size) bytes" "$(number 2 "$(value insert_us)")" us
row "saga.begin, WAL" "$(number 0 "$(value begin_wal)")" bytes "" "" \
	"it is $(ratio "$(value begin_wal)" "$(value same_wal)") x INSERT of its row"
row "plain INSERT of its row, WAL" "$(number 0 "$(value same_wal)")" bytes
row "plain INSERT of two columns, WAL" "$(number 0 "$(value insert_wal)")" bytes
row "one foreach step of $fanout elements" "$(number 0 "$(value fanout)")" elem/s "" "" \
	"$(times "$(value fanout)" "$(value raw_fanout)") the loop"
row "a loop that writes its rows, in as many commits" "$(number 0 "$(value raw_fanout)")" elem/s
row "WAL per element" "$(value fanout_wal)" bytes "" "" "$(times "$(value fanout_wal)" "$(value raw_fanout_wal)") the loop"
row "commits of the whole fan-out" "$(value fanout_commits)" commits
row "$contenders sagas that take turns for $locks locks" "$(number 0 "$(value locks)")" sagas/s "" "" \
	"$(times "$(value locks)" "$(value raw_locks)") the loop"
row "a loop that writes their rows, a commit per $locks steps" "$(number 0 "$(value raw_locks)")" sagas/s
row "$timers sagas that wait for timers, CPU meanwhile" "$(value timers_idle)" % "" "" 0
row "their timers, over $spread s: from due to woken, p50" "$(number 0 "$(value timers_p50)")" ms
row "... p99" "$(number 0 "$(value timers_p99)")" ms
row "... from due to completed, p99" "$(number 0 "$(value timers_done)")" ms
row "CPU per timer that fires, with the step after it" "$(number 0 "$(value timers_cpu)")" us "" "" \
	"$(times "$(value timers_cpu)" "$(value raw_timers_cpu)") the loop"
row "a loop that writes its rows, a commit per 50" "$(number 0 "$(value raw_timers_cpu)")" us
row "from a begin to a listener that has the task, p50" "$(value notice_saga_p50)" us "" "" \
	"$(times "$(value notice_saga_p50)" "$(value notice_bare_p50)") a bare NOTIFY"
row "... p99" "$(value notice_saga_p99)" us "" "" \
	"$(times "$(value notice_saga_p99)" "$(value notice_bare_p99)") a bare NOTIFY"
row "from an INSERT with NOTIFY to the same, p50" "$(value notice_bare_p50)" us
row "... p99" "$(value notice_bare_p99)" us
row "worker's private memory after $((memory / 5)) sagas" "$(value memory_fifth)" kB
row "worker's private memory after $memory sagas" "$(value memory_all)" kB "" "" flat
row "transactions per minute when idle" "$(value idle)" per_min "" "" 0

task_rows()
{
	local clients batch horizon

	echo
	echo "Tasks per second that participants claim in one transaction and answer in another. \"Bare\" is a table with"
	echo "SKIP LOCKED and a payload of the same $(value payload) bytes, UPDATE and DELETE; \"saga\" is claim_tasks() and complete_tasks()"
	echo "with the workers stopped, who act on the answers later; both in turns, the ratio is the median of those of $rounds"
	echo "pairs. \"Whole\" is from the first claim to the end of the last saga, with the workers. \"Held\": a transaction"
	echo "holds the horizon meanwhile."
	echo
	printf '| %12s | %5s | %-7s | %10s | %10s | %10s | %8s | %10s |\n' \
		participants batch horizon bare saga saga/bare "to reach" whole
	echo "|--:|--:|---|--:|--:|--:|--:|--:|"
	for horizon in free held; do
		for clients in $participants; do
			for batch in $batches; do
				printf '| %12s | %5s | %-7s | %10s | %10s | %10s | %8s | %10s |\n' \
					"$clients" "$batch" "$horizon" \
					"$(number 0 "$(value "bare $horizon $clients $batch")")" \
					"$(number 0 "$(value "saga $horizon $clients $batch")")" \
					"$(number 2 "$(value "ratio $horizon $clients $batch")")" 0.70 \
					"$(number 0 "$(value "whole $horizon $clients $batch")")"
			done
		done
	done
}
if want tasks; then
	task_rows
fi

remote_rows()
{
	local n ms at

	echo
	echo "Calls per second of one function in another database, an UPDATE and an INSERT, over as many connections, so many"
	echo "milliseconds away. \"dblink\": sessions here that call it there and wait; \"direct\": pgbench over there. \"Saga\" is"
	echo "$remote sagas of one remote step, from their begin to the end of the last: with all the saga's bookkeeping, here and"
	echo "there; \"undoable\": the step has a compensation. Both servers on this machine; ratios are medians of those of $rounds"
	echo "rounds."
	echo
	printf '| %11s | %4s | %8s | %8s | %8s | %8s | %11s | %8s | %11s | %8s | %9s | %9s |\n' connections ms dblink direct saga \
		undoable saga/dblink "to reach" saga/direct "to reach" "u./dblink" "u./direct"
	echo "|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|"
	for n in $connections; do
		for ms in $latencies; do
			at="$n $ms"
			printf '| %11s | %4s | %8s | %8s | %8s | %8s | %11s | %8s | %11s | %8s | %9s | %9s |\n' "$n" "$ms" \
				"$(number 0 "$(value "dblink $at")")" \
				"$(number 0 "$(value "direct $at")")" \
				"$(number 0 "$(value "remote $at")")" \
				"$(number 0 "$(value "undoable $at")")" \
				"$(number 2 "$(value "remote_dblink $at")")" \
				"$([ "$ms" != 10 ] || echo 10)" \
				"$(number 2 "$(value "remote_direct $at")")" \
				"$([ "$ms" != 0 ] || echo 0.60)" \
				"$(number 2 "$(value "undoable_dblink $at")")" \
				"$(number 2 "$(value "undoable_direct $at")")"
		done
	done
}
if want remote; then
	remote_rows
fi
if want monitoring; then
	monitoring_rows
fi
