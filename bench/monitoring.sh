# What monitoring costs.  Sourced by run.sh.
#
#   BENCH_WATCHED    sagas per run, watched and not (100000)
#   BENCH_FINISHED   sagas that have ended, in the database (10000000)
watched=${BENCH_WATCHED:-100000}
finished=${BENCH_FINISHED:-10000000}

# What a monitor asks for every second, over one connection, until that file is
# there.
watch_all()
{
	while [ ! -e "$scratch/tmp/enough" ]; do
		cat "$scratch/src/bench/scrape.sql"
		sleep 1
	done | psql -o /dev/null
}

# drain_watched NAME: begin them in one transaction, then time the workers.
drain_watched()
{
	local begun

	as_bench -c "CALL reset($watched, $items)"
	psql -c CHECKPOINT
	begun=$(as_bench -At <<-SQL
		BEGIN;
		SELECT count(saga.begin('order', order_input(o, false))) FROM orders o \g /dev/null
		SELECT clock_timestamp();
		COMMIT;
	SQL
	)
	wait_for_end 600
	keep_rate "$1" "$watched" "$(ask "SELECT extract(epoch FROM max(finished_at) - '$begun')
		FROM saga.saga WHERE finished_at >= '$begun'")"
}

# In turns, each first as often as the other; the ratio is that of a pair.
measure_watched()
{
	local pair=$1 first=bare second=watched run watcher

	[ $((pair % 2)) -eq 1 ] || { first=watched; second=bare; }
	for run in $first $second; do
		if [ "$run" = watched ]; then
			rm -f "$scratch/tmp/enough"
			watch_all &
			watcher=$!
			drain_watched watched
			as_user touch "$scratch/tmp/enough"
			wait "$watcher"
		else
			drain_watched bare
		fi
	done
	keep watched_ratio "$(paste -d' ' <(tail -n 1 "$scratch/values/watched") <(tail -n 1 "$scratch/values/bare") |
		awk '{printf "%.3f", $1 / $2}')"
}

# Rows of sagas that have ended, as the engine leaves them.
add_finished()
{
	psql <<-SQL
		SELECT format('INSERT INTO saga.saga (%s) SELECT %s FROM (SELECT * FROM saga.saga
				WHERE status = ''completed'' ORDER BY id DESC LIMIT 1) o, generate_series(1, $finished)',
			string_agg(quote_ident(attname), ', ' ORDER BY attnum),
			string_agg(CASE attname WHEN 'id' THEN 'nextval(''saga.saga_id_seq'')'
				ELSE quote_ident(attname) END, ', ' ORDER BY attnum))
		FROM pg_attribute
		WHERE attrelid = 'saga.saga'::regclass AND attnum > 0 AND NOT attisdropped
		\\gexec
		ANALYZE saga.saga;
	SQL
}

# view NAME: how long one look at it takes, in a session that has looked before.
measure_view()
{
	local name=$1 script=$scratch/tmp/view.pgbench out

	echo "SELECT * FROM saga.$name;" | as_user tee "$script" >/dev/null
	rm -f "$scratch"/tmp/view.log*
	out=$(as_user "$bindir/pgbench" -n -d bench -c 1 -t 200 -l --log-prefix="$scratch/tmp/view.log" -f "$script" 2>&1) || die "$out"
	keep "view_${name}_p50" "$(cat "$scratch"/tmp/view.log.* | percentile 50)"
	keep "view_${name}_p99" "$(cat "$scratch"/tmp/view.log.* | percentile 99)"
}

measure_views()
{
	add_finished
	for view in health step_health vitals metrics alerts stuck; do
		measure_view $view
	done
}

monitoring_rows()
{
	local view limit

	echo
	echo "Monitoring. \"Watched\": the sagas of one run of $watched, while another session asks for all of bench/scrape.sql"
	echo "every second; in turns with runs that nobody watches. Views: one look, with $finished sagas in the database that"
	echo "have ended."
	echo
	printf '| %-36s | %10s | %-9s | %8s |\n' measurement value unit "to reach"
	echo "|---|--:|---|--:|"
	printf '| %-36s | %10s | %-9s | %8s |\n' "sagas drained, not watched" "$(number 0 "$(value bare)")" sagas/s "" \
		"sagas drained, watched" "$(number 0 "$(value watched)")" sagas/s "" \
		"watched / not" "$(value watched_ratio)" "" 0.97
	for view in health step_health vitals metrics alerts stuck; do
		limit=
		[ $view != health ] || limit=5
		printf '| %-36s | %10s | %-9s | %8s |\n' "saga.$view, p50" \
			"$(awk -v v="$(value "view_${view}_p50")" 'BEGIN {printf "%.2f", v / 1000}')" ms "$limit" \
			"saga.$view, p99" \
			"$(awk -v v="$(value "view_${view}_p99")" 'BEGIN {printf "%.2f", v / 1000}')" ms ""
	done
}
