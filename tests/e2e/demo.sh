#!/usr/bin/env bash
# The demo, as a user runs it: its output has figures, no request is lost, and no file is left behind.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

export TMPDIR=$WORK/tmp HOME=$WORK/home
mkdir -p "$TMPDIR" "$HOME"
exits 0 timeout "$((4 * HANG_S))" "$CORACLE" demo
for part in 'Nine Wasm modules were pushed' 'An order went from the frontend' 'was deleted; its replacement was ready' \
  'scaled from 3 to 6 pods' 'holds [0-9]+ MiB' 'coracle-reason: [a-z]+' 'Cleaned up: nothing is left behind'; do
  grep -Eq "$part" "$WORK/out" || fail "the story has no '$part': $(cat "$WORK/out")"
done
[ -z "$(ls -A "$TMPDIR")" ] || fail "left behind in the temporary folder: $(ls -A "$TMPDIR")"
[ -z "$(find "$HOME" -type f)" ] || fail "left behind at home: $(find "$HOME" -type f)"
echo PASS
