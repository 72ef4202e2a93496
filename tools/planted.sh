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

# run PKG LAW BUG OUT: runs the tests of a law in a package, where go test would.
run() {
	(cd "$root/$1" && VACATE_PLANTED=$3 "$dir/${1//\//_}.test" \
		-test.run "^TestL$2" -test.failfast -test.timeout 3m >"$4" 2>&1)
}

while read -r pkg law; do
	if ! run "$pkg" "$law" "" "$dir/out"; then
		cat "$dir/out"
		echo "planted: L$law in $pkg fails with no bug alive" >&2
		exit 1
	fi
done <<<"$laws"

# hunt BUG LAW: prints which tests find a bug, or returns 1.
hunt() {
	local pkg l test found=
	while read -r pkg l; do
		[ "$l" = "$2" ] || continue
		# Only the law's own verdict counts: not a build, a crash or a time-out.
		if ! run "$pkg" "$2" "$1" "$dir/$1.out" && test=$(grep -o -m1 -- "^--- FAIL: TestL$2[A-Za-z0-9_]*" "$dir/$1.out"); then
			found+=" ${pkg#internal/}.${test##* }"
		fi
	done <<<"$laws"
	if [ -z "$found" ]; then
		printf 'planted: %-20s NOT FOUND by any test of L%s\n' "$1" "$2"
		return 1
	fi
	printf 'planted: %-20s found by%s\n' "$1" "$found"
}

# Some at once: a test that finds one often does so by waiting for what never comes.
pids=()
while read -r bug law; do
	while [ "$(jobs -pr | wc -l)" -ge 4 ]; do wait -n || true; done
	hunt "$bug" "$law" >"$dir/$bug.said" &
	pids+=("$bug:$!")
done <<<"$bugs"
missed=0
for pair in "${pids[@]}"; do
	wait "${pair##*:}" || missed=1
	cat "$dir/${pair%%:*}.said"
done
exit $missed
