# shellcheck shell=bash
# Steps with their seconds, for tests/run and .ci/run. Source this, call `steps NAME`, then `step WORDS…` where each step begins.
# The end of the script prints a table, and writes NAME.json to the folder `times` of the tests' cache; `tests/bench/run loop` prints it.
STEP_TITLES=() STEP_BEGINS=()
steps() { STEPS_NAME=$1; trap 'steps_end $?' EXIT; }
step() {
  STEP_TITLES+=("$*"); STEP_BEGINS+=("$SECONDS")
  printf '\n%s %s (%ds)\n' "${STEP_MARK:---}" "$*" "$SECONDS"
}
# steps_end CODE: a script with an EXIT trap of its own calls it from there.
steps_end() {
  local folder=${CORACLE_TEST_CACHE:-$HOME/.cache/coracle-test}/times n end
  mkdir -p "$folder"
  STEP_BEGINS+=("$SECONDS")
  {
    printf '{"commit": "%s", "at": "%s", "exit": %d, "seconds": %d, "steps": [' \
      "$(git rev-parse --short HEAD 2>/dev/null || echo none)" "$(date -u +%FT%TZ)" "$1" "$SECONDS"
    for n in "${!STEP_TITLES[@]}"; do
      end=${STEP_BEGINS[n + 1]}
      [ "$n" = 0 ] || printf ', '
      printf '["%s", %d]' "${STEP_TITLES[n]//\"/}" $((end - STEP_BEGINS[n]))
    done
    printf ']}\n'
  } > "$folder/$STEPS_NAME.json.new"
  printf '\n%7s  step of %s\n' seconds "$STEPS_NAME"
  for n in "${!STEP_TITLES[@]}"; do printf '%7d  %s\n' $((STEP_BEGINS[n + 1] - STEP_BEGINS[n])) "${STEP_TITLES[n]}"; done
  printf '%7d  in all, exit code %d\n' "$SECONDS" "$1"
  mv "$folder/$STEPS_NAME.json.new" "$folder/$STEPS_NAME.json"
}
