#!/bin/bash
# "make demo": saga at work on a throw-away server, first in a shop, then with a
# participant outside, then in a bank where workers are killed while 20,000
# transfers run.
source "$(dirname "${BASH_SOURCE[0]}")/../tools/lib.sh"

bash "$top/tools/prerequisites.sh" demo
find_postgres
make_scratch demo
stage_extension
start_server server fsync=on shared_buffers=256MB max_wal_size=2GB log_min_messages=log
server_log=$scratch/server/server.log
transfers=${DEMO_TRANSFERS:-20000}

psql() { as_user "$bindir/psql" -Xq "$@"; }
ask() { psql -At -d bank -c "$1" 2>/dev/null; }
say() { printf '\n%s\n' "$*"; }

# wait_for SECONDS WHAT command ...: poll until the command is true.
wait_for()
{
	local deadline=$((SECONDS + $1)) what=$2

	shift 2
	until "$@"; do
		if [ $SECONDS -ge $deadline ]; then
			tail -n 20 "$server_log" >&2
			die "timed out waiting for $what"
		fi
		sleep 0.2
	done
}

has_begun()
{
	local n

	n=$(ask "SELECT count(*) FROM saga.sagas WHERE definition = 'transfer'") || return 1
	[ "${n:-0}" -ge "$1" ]
}
find_worker()
{
	worker=$(ask "SELECT pid FROM pg_stat_activity
		WHERE backend_type = 'saga worker' AND datname = 'bank' AND pid <> ${1:-0}
		ORDER BY backend_start LIMIT 1") && [ -n "$worker" ]
}
has_restarted() { [ "$(grep -c 'all server processes terminated; reinitializing' "$server_log")" -gt 0 ] && ask 'SELECT 1' >/dev/null; }
# How many still run; the status says it, not the time.
unfinished="SELECT count(*) FROM saga.sagas WHERE definition = 'transfer'
	AND status NOT IN ('completed', 'compensated', 'abandoned')"
all_final() { [ "$(ask "$unfinished")" = 0 ]; }

say "=== 1. A shop: an order is reserved, charged and confirmed, or it never was"
psql -d postgres -v ON_ERROR_STOP=1 <<'SQL'
SET client_min_messages = warning;
CREATE ROLE shop LOGIN;
CREATE ROLE carrier LOGIN;
CREATE ROLE bank LOGIN;
CREATE DATABASE shop OWNER shop;
CREATE DATABASE bank OWNER bank;
\c shop
SET client_min_messages = warning;
CREATE EXTENSION saga;
SELECT saga.grant_usage('shop') \g /dev/null
\c bank
SET client_min_messages = warning;
CREATE EXTENSION saga;
SELECT saga.grant_usage('bank') \g /dev/null
SQL
psql -U shop -d shop -f "$scratch/src/demo/shop.sql"

say "=== 2. A carrier outside: parcels are tasks, claimed and answered in SQL"
psql -U shop -d shop -f "$scratch/src/demo/carrier.sql"

say "=== 3. A bank: $transfers transfers by pgbench -c 8, while workers are killed"
as_user "$bindir/pgbench" -q -i -s 10 -U bank -d bank >/dev/null 2>&1 ||
	die "could not initialize pgbench's tables"
psql -U bank -d bank -f "$scratch/src/demo/bank.sql"
before=$(ask 'SELECT sum(abalance) FROM pgbench_accounts')

setsid "${user_prefix[@]}" env PGUSER=bank PGDATABASE=bank bash "$scratch/src/demo/begin_transfers.sh" \
	"$transfers" "$bindir" "$scratch/src/demo/transfer.pgbench" </dev/null &
current_job=$!

wait_for 60 "a fifth of the transfers to begin" has_begun $((transfers / 5))
wait_for 20 "a worker" find_worker
as_user kill -KILL "$worker"
say "kill -9 of worker $worker after $((transfers / 5)) transfers: the server restarts"
wait_for 30 "the server to restart" has_restarted
killed=$worker
say "it is back with $(ask "SELECT count(*) FROM saga.sagas") transfers, $(ask "$unfinished") of them not finished"

wait_for 60 "three fifths of the transfers to begin" has_begun $((transfers * 3 / 5))
wait_for 20 "a worker" find_worker "$killed"
as_user kill -TERM "$worker"
say "SIGTERM to worker $worker"

rc=0
wait "$current_job" || rc=$?
current_job=
[ $rc -eq 0 ] || die "the transfers did not all begin"
wait_for 60 "the transfers to finish" all_final

say "Sagas by status:"
psql -d bank -c "SELECT status, count(*) FROM saga.sagas WHERE definition = 'transfer' GROUP BY status ORDER BY status"
say "Balances, entries and speed (from the first begin to the last end, the restart included):"
psql -d bank -c "
	SELECT (SELECT sum(abalance) FROM pgbench_accounts) AS sum_of_balances, $before AS as_it_was,
	       (SELECT count(*) FROM pgbench_history) AS history_entries,
	       round(count(*) / extract(epoch FROM max(finished_at) - min(created_at)), 0) AS sagas_per_second
	FROM saga.sagas WHERE definition = 'transfer'"

verdict=$(ask "
	SELECT concat_ws('; ',
	    CASE WHEN count(*) <> $transfers THEN format('%s sagas instead of $transfers', count(*)) END,
	    CASE WHEN count(*) FILTER (WHERE status IN ('completed', 'compensated')) <> count(*)
	         THEN 'not every saga is final' END,
	    CASE WHEN (SELECT sum(abalance) FROM pgbench_accounts) <> $before THEN 'the sum is not conserved' END,
	    CASE WHEN (SELECT count(*) FROM pgbench_history) <> count(*) FILTER (WHERE status = 'completed')
	         THEN 'the entries are not those of the completed transfers' END)
	FROM saga.sagas WHERE definition = 'transfer'")
[ -z "$verdict" ] || die "WRONG: $verdict"
say "Every transfer is completed or compensated, and the sum is what it was."
