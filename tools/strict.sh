#!/bin/bash
# Compile every source with gcc and with clang, each warning an error, into a
# directory outside the tree.  PostgreSQL's headers count as the system's: what
# they would warn about is not ours to mend.
set -uo pipefail

top=$(cd "$(dirname "$0")/.." && pwd)
pg_config=${PG_CONFIG:-$(sh "$top/tools/pg_config.sh")}
[ -f "$("$pg_config" --pgxs 2>/dev/null)" ] || pg_config=$(sh "$top/tools/pg_config.sh")
out=$(mktemp -d "${TMPDIR:-/tmp}/saga-strict.XXXXXX")
trap 'rm -rf "$out"' EXIT

warnings=(-Wall -Wextra -Werror -Wmissing-prototypes -Wpointer-arith
	-Wdeclaration-after-statement -Wvla -Wundef -Wformat-security)
gcc_only=(-Wshadow=compatible-local -Wimplicit-fallthrough=3 -Wcast-function-type)
base=(-std=gnu11 -O2 -fPIC -fno-strict-aliasing -fwrapv -D_GNU_SOURCE
	-I"$top/src" -DSAGA_VERSION="\"$(sed -n "s/^default_version *= *'\(.*\)'.*/\1/p" "$top/saga.control")\""
	-isystem "$("$pg_config" --includedir-server)"
	-isystem "$("$pg_config" --includedir)")

cd "$top"
passed=0
failed=0
compile()
{
	local cc=$1 file=$2

	shift 2
	if "$cc" "$@" -c -o "$out/$(basename "$file").$cc.o" "$file"; then
		passed=$((passed + 1))
	else
		echo "$cc: $file has warnings or errors" >&2
		failed=$((failed + 1))
	fi
}

for cc in ${STRICT_COMPILERS:-gcc clang}; do
	command -v "$cc" >/dev/null || { echo "$cc is not installed" >&2; exit 1; }
	flags=("${base[@]}" "${warnings[@]}")
	[ "$cc" != gcc ] || flags+=("${gcc_only[@]}")
	for file in src/*.c; do
		[ -f "$file" ] || continue
		compile "$cc" "$file" "${flags[@]}"
		# Also with the assertions in, where this server's headers allow it.
		compile "$cc" "$file" "${flags[@]}" -DUSE_ASSERT_CHECKING=1
	done
done
echo "strict: $passed compilations without a warning, $failed with"
[ $failed -eq 0 ]
