#!/bin/sh
# Build test/unit/test_*.c with the pure sources and run them.  Needs a C
# compiler only; with prove they are summed up, without they speak for themselves.
set -eu

top=$(cd "$(dirname "$0")/.." && pwd)
CC=${CC:-cc}
command -v "$CC" >/dev/null || CC=gcc
UNIT_CFLAGS=${UNIT_CFLAGS:--O2 -g}

bin=$(mktemp -d "${TMPDIR:-/tmp}/saga-unit.XXXXXX")
trap 'rm -rf "$bin"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

cd "$top"
pure=
for file in src/machine.c src/retry.c src/series.c; do
	[ ! -f $file ] || pure="$pure $file"
done

tests=
for file in test/unit/test_*.c; do
	[ -f "$file" ] || continue
	name=$(basename "$file" .c)
	# The asserts of machine.c are on here.
	$CC -std=c11 -Wall -Wextra -Werror $UNIT_CFLAGS -DUSE_ASSERT_CHECKING=1 \
		-Isrc -Itest/unit -o "$bin/$name" "$file" $pure -lm
	tests="$tests $name"
done
[ -n "$tests" ] || { echo "no unit tests"; exit 1; }

cd "$bin"
if command -v prove >/dev/null; then
	prove --exec '' $(for t in $tests; do echo "./$t"; done)
else
	failed=0
	for t in $tests; do
		echo "# $t"
		"./$t" || failed=$((failed + 1))
	done
	[ $failed -eq 0 ] || { echo "$failed test programs failed"; exit 1; }
	echo "All tests successful."
fi
