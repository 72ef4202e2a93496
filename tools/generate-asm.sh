#!/usr/bin/env bash
# generate-asm.sh [DIR]: writes the assembly that internal/xts/_asm makes, in place,
# or below DIR under the same path.
set -euo pipefail
GO=${GO:-go}
out=${1:-.}/internal/xts/xts_wide_amd64.s

mkdir -p "$(dirname "$out")"
new=$(mktemp) && trap 'rm -f "$new"' EXIT
(cd internal/xts/_asm && "$GO" run .) >"$new" # _asm is a module of its own
cat "$new" >"$out"
