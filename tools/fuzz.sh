#!/usr/bin/env bash
# fuzz.sh TIME: runs every fuzz target of the module for TIME, one after the
# other, and names all that failed at the end.
set -uo pipefail
GO=${GO:-go}
time=${1:-10s}
failed=()

while IFS=: read -r file target; do
	pkg=./$(dirname "$file")
	echo "== $pkg $target"
	# Go would spend up to a minute on making each interesting input smaller.
	"$GO" test -run '^$' -fuzz "^$target\$" -fuzztime "$time" -fuzzminimizetime 10x "$pkg" || failed+=("$pkg $target")
done < <(grep -rEo --include='*_test.go' '^func Fuzz[A-Za-z0-9_]*' . |
	sed 's|^\./||; s/:func /:/' | sort)

if [ ${#failed[@]} -gt 0 ]; then
	printf 'fuzz: failed: %s\n' "${failed[@]}" >&2
	exit 1
fi
