#!/bin/bash
# "make check": every test on throw-away servers.  Installs missing packages
# and nothing else; the user's tree is only read.
#
#   SUITES="unit regress isolation tap pgtap"   which suites (default: all; those
#                                that the next ones belong to, if one is given)
#   REGRESS, ISOLATION           names of tests of sql/ and test/specs/
#   PROVE_TESTS, PGTAP_TESTS     files of test/t/ and test/pgtap/
#   SAGA_SUITE_TIMEOUT           seconds that a suite may take (1200)
#   SAGA_KEEP=1                  keep the scratch directory
#   SAGA_RESULTS=DIR             copy logs there when a suite fails
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

bash "$top/tools/prerequisites.sh" check
find_postgres

if [ -z "${SUITES:-}" ]; then
	SUITES=
	[ -z "${REGRESS:-}" ] || SUITES+=" regress"
	[ -z "${ISOLATION:-}" ] || SUITES+=" isolation"
	[ -z "${PROVE_TESTS:-}" ] || SUITES+=" tap"
	[ -z "${PGTAP_TESTS:-}" ] || SUITES+=" pgtap"
	: "${SUITES:=unit regress isolation tap pgtap}"
fi
for suite in $SUITES; do
	case $suite in
		unit | regress | isolation | tap | pgtap) ;;
		*) die "unrecognized suite: \"$suite\"" ;;
	esac
done

make_scratch check
as_user mkdir "$scratch/log" "$scratch/tap"
limit=${SAGA_SUITE_TIMEOUT:-1200}
passed=0
failed=0
summary=()

# run_suite NAME command ...: run it with its output in a log and on the screen.
run_suite()
{
	local name=$1 log=$scratch/log/$1 rc=0

	shift
	touch "$log"
	echo
	echo "=== $name"
	run_job bash -c 'set -o pipefail; log=$1; shift; "$@" 2>&1 | tee -a "$log"' - "$log" \
		timeout --kill-after=10 "$limit" \
		"${user_prefix[@]}" env PERL_TEST_HARNESS_DUMP_TAP="$scratch/tap/$name" "$@" || rc=$?
	[ $rc -ne 124 ] || echo "$name took longer than $limit s and was stopped" | tee -a "$log"
	return $rc
}

# What the runner said at its end, kept for the closing lines.
note() { summary+=("$(printf '%-10s %s' "$1" "$2")"); }

add() { passed=$((passed + $1)); failed=$((failed + $2)); }

# pg_regress and pg_isolation_regress, before 16 and since.
settle_regress()
{
	local name=$1 rc=$2 log=$scratch/log/$1 line good=0 bad=0

	line=$(grep -E 'All [0-9]+ tests passed|[0-9]+ of [0-9]+ tests (failed|passed)' "$log" | tail -n 1 |
		sed 's/^[# ]*//; s/[ .]*$/./') || true
	if [[ $line =~ ^All\ ([0-9]+)\ tests ]]; then
		good=${BASH_REMATCH[1]}
	elif [[ $line =~ ^([0-9]+)\ of\ ([0-9]+)\ tests\ failed ]]; then
		bad=${BASH_REMATCH[1]}
		good=$((BASH_REMATCH[2] - bad))
	elif [[ $line =~ ^([0-9]+)\ of\ ([0-9]+)\ tests\ passed ]]; then
		good=${BASH_REMATCH[1]}
		bad=$((BASH_REMATCH[2] - good))
	fi
	[ "$rc" -eq 0 ] || [ "$bad" -gt 0 ] || bad=1
	add "$good" "$bad"
	note "$name" "${line:-did not run to its end}"
}

# prove and pg_prove: the counts are those of the TAP itself.
settle_prove()
{
	local name=$1 rc=$2 log=$scratch/log/$1 good=0 bad=0 line

	if [ -d "$scratch/tap/$name" ]; then
		good=$(find "$scratch/tap/$name" -type f -exec grep -hcE '^ok\b|^not ok .*# *TODO' {} + | awk '{n += $1} END {print n + 0}')
		bad=$(find "$scratch/tap/$name" -type f -exec grep -hE '^not ok\b' {} + | grep -vcE '# *TODO') || true
	fi
	# a script that died or planned more than it ran
	[ "$rc" -eq 0 ] || [ "$bad" -gt 0 ] || bad=1
	add "$good" "$bad"
	line=$(grep -E '^(All tests successful|Files=[0-9]+|Result:)' "$log" | tr '\n' ' ') || true
	note "$name" "${line:-did not run to its end}"
}

show_diffs()
{
	local file

	for file in "$@"; do
		[ ! -s "$file" ] || { echo "--- $(basename "$file")"; head -n 1500 "$file"; }
	done
}

# A worker may crash, or leak, while every answer is right.
# inspect_log SUITE PATTERN FILE ...
inspect_log()
{
	local name=$1 pattern=$2 found

	shift 2
	found=$(grep -hE -A 3 "$pattern" "$@" 2>/dev/null | head -n 40) || true
	[ -n "$found" ] || return 0
	echo "--- $name: in the server's log"
	echo "$found"
	add 0 1
	note "$name" "the server's log has a crash or a leak"
}
leaks="WARNING:.*(reference|refcount|file) leak|you don't own a lock"
crashes='PANIC:|TRAP: |was terminated by signal'

keep_results()
{
	[ -n "${SAGA_RESULTS:-}" ] || return 0
	mkdir -p "$SAGA_RESULTS"
	cp -r "$scratch/log" "$SAGA_RESULTS/" 2>/dev/null || true
	cp "$scratch"/*/server.log "$SAGA_RESULTS/" 2>/dev/null || true
	cp "$scratch"/src/regression.* "$scratch"/src/output_iso/regression.* "$SAGA_RESULTS/" 2>/dev/null || true
	cp -r "$scratch"/src/tmp_check/log "$SAGA_RESULTS/tap" 2>/dev/null || true
}

# The installcheck of PGXS, in the copy, with only what is named switched on.
installcheck()
{
	local name=$1

	shift
	run_suite "$name" make -s -C "$scratch/src" installcheck PG_CONFIG="$pg_config" "$@"
}

suite_unit()
{
	local rc=0

	run_suite unit env TMPDIR="$scratch/tmp" sh "$scratch/src/tools/unit.sh" || rc=$?
	settle_prove unit $rc
}

suite_regress()
{
	local rc=0 tests=${REGRESS:-}

	if [ -n "$tests" ] && [ -f "$top/sql/setup.sql" ] && [[ " $tests " != *" setup "* ]]; then
		tests="setup $tests"
	fi
	start_server regress
	installcheck regress ISOLATION= TAP_TESTS= ${tests:+REGRESS="$tests"} || rc=$?
	[ $rc -eq 0 ] || show_diffs "$scratch/src/regression.diffs"
	stop_server regress || rc=1
	settle_regress regress $rc
	inspect_log regress "$crashes|$leaks" "$scratch/regress/server.log"
}

suite_isolation()
{
	local rc=0

	# sagas advance where a test says so, and nowhere else
	start_server isolation saga.enabled=off
	installcheck isolation REGRESS= TAP_TESTS= ${ISOLATION:+ISOLATION="$ISOLATION"} || rc=$?
	[ $rc -eq 0 ] || show_diffs "$scratch/src/output_iso/regression.diffs"
	stop_server isolation || rc=1
	settle_regress isolation $rc
	inspect_log isolation "$crashes|$leaks" "$scratch/isolation/server.log"
}

suite_tap()
{
	local rc=0

	installcheck tap REGRESS= ISOLATION= PROVE_FLAGS="-j2 -I $scratch/src/test/lib" \
		${PROVE_TESTS:+PROVE_TESTS="$PROVE_TESTS"} || rc=$?
	if [ $rc -ne 0 ]; then
		for file in "$scratch"/src/tmp_check/log/regress_log_*; do
			grep -lE 'not ok|died|timed out|Bail' "$file" >/dev/null 2>&1 || continue
			echo "--- ${file##*/} (its end)"
			tail -n 60 "$file"
		done
	fi
	settle_prove tap $rc
	# crashes are what some of these are about
	inspect_log tap "PANIC:|TRAP: |$leaks" "$scratch"/src/tmp_check/log/*.log
}

suite_pgtap()
{
	local rc=0 tests=${PGTAP_TESTS:-}

	[ -n "$tests" ] || tests=$(cd "$scratch/src" && ls test/pgtap/*.sql 2>/dev/null) || true
	start_server pgtap
	as_user "$bindir/psql" -Xq -v ON_ERROR_STOP=1 -c 'CREATE EXTENSION pgtap' -c 'CREATE EXTENSION saga'
	# pg_prove finds psql in PATH
	run_suite pgtap env PATH="$bindir:$PATH" sh -c 'cd "$1" && shift && exec pg_prove "$@"' - \
		"$scratch/src" -d postgres $tests || rc=$?
	stop_server pgtap || rc=1
	settle_prove pgtap $rc
	inspect_log pgtap "$crashes|$leaks" "$scratch/pgtap/server.log"
}

# run SUITE unless it has no tests; a suite that cannot even start has failed.
attempt()
{
	local name=$1 files

	case $name in
		unit) files=("$scratch"/src/test/unit/test_*.c) ;;
		regress) files=("$scratch"/src/sql/*.sql) ;;
		isolation) files=("$scratch"/src/test/specs/*.spec) ;;
		tap) files=("$scratch"/src/test/t/*.pl) ;;
		pgtap) files=("$scratch"/src/test/pgtap/*.sql) ;;
	esac
	if ! [ -e "${files[0]}" ]; then
		add 0 1
		note "$name" "no tests found"
		return 0
	fi
	"suite_$name" || { add 0 1; note "$name" "could not be run"; }
}

if [ "${SUITES// /}" = unit ]; then
	copy_sources
else
	stage_extension
fi
for suite in $SUITES; do
	attempt "$suite"
done
[ "$failed" -eq 0 ] || keep_results

echo
for line in "${summary[@]}"; do
	echo "$line"
done
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
