#!/usr/bin/env bash
# Plants each bug of internal/plant in turn, and demands that a test of the law
# which the bug breaks (TestL<n>…) fails, and lists all that do. First, the same
# binaries must pass with no bug alive: a test that always fails finds nothing.
set -euo pipefail
GO=${GO:-go}
root=$PWD
dir=$(mktemp -d) && trap 'rm -rf "$dir"' EXIT

# The constants of plant.go: NAME = "bug" // L4: what it breaks
bugs=$(sed -nE 's/^[[:space:]]+[A-Za-z]+[[:space:]]*=[[:space:]]*"([a-z-]+)"[[:space:]]*\/\/ L([0-9]):.*/\1 \2/p' internal/plant/plant.go)
[ -n "$bugs" ] || { echo "planted: no bugs found in internal/plant/plant.go" >&2; exit 1; }
# No bug may be left out for the way its line is written, nor for want of code.
for name in $(sed -nE 's/^[[:space:]]+([A-Z][A-Za-z]+)[[:space:]]*=[[:space:]]*".*/\1/p' internal/plant/plant.go); do
	grep -qE "^[[:space:]]+$name[[:space:]]*=[[:space:]]*\"[a-z-]+\"[[:space:]]*// L[0-9]:" internal/plant/plant.go ||
		{ echo "planted: $name in internal/plant/plant.go does not say which law it breaks" >&2; exit 1; }
	grep -rqE --include='*.go' --exclude='*_test.go' "plant\.Is\(plant\.$name\)" internal ||
		{ echo "planted: $name is planted nowhere" >&2; exit 1; }
done

# Packages that hold tests of laws, each with the laws that it tests. (Those in
# test/ run the real binary, and plant their bugs in a binary of their own.)
laws=$(grep -rEo --include='*_test.go' '^func TestL[0-9]' internal |
	sed -E 's|^\./||; s|/[^/]*:func TestL([0-9])$| \1|' | sort -u)
[ -n "$laws" ] || { echo "planted: no test of a law (TestL<n>) found" >&2; exit 1; }

for pkg in $(cut -d' ' -f1 <<<"$laws" | sort -u); do
	"$GO" test -c -tags planted -o "$dir/${pkg//\//_}.test" "./$pkg"
done

# run PKG LAW BUG: runs the tests of a law in a package, where go test would.
run() {
	(cd "$root/$1" && VACATE_PLANTED=$3 "$dir/${1//\//_}.test" \
		-test.run "^TestL$2" -test.failfast -test.timeout 3m >"$dir/out" 2>&1)
}

while read -r pkg law; do
	if ! run "$pkg" "$law" ""; then
		cat "$dir/out"
		echo "planted: L$law in $pkg fails with no bug alive" >&2
		exit 1
	fi
done <<<"$laws"

missed=0
while read -r bug law; do
	found=
	while read -r pkg l; do
		[ "$l" = "$law" ] || continue
		# Only the law's own verdict counts: not a build, a crash or a time-out.
		if ! run "$pkg" "$law" "$bug" && test=$(grep -o -m1 -- "^--- FAIL: TestL$law[A-Za-z0-9_]*" "$dir/out"); then
			found+=" ${pkg#internal/}.${test##* }"
		fi
	done <<<"$laws"
	if [ -n "$found" ]; then
		printf 'planted: %-20s found by%s\n' "$bug" "$found"
	else
		printf 'planted: %-20s NOT FOUND by any test of L%s\n' "$bug" "$law" >&2
		missed=1
	fi
done <<<"$bugs"
exit $missed
