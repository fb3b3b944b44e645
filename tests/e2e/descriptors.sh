#!/usr/bin/env bash
# Low limits of open files: no guest takes the store's, and the soft limit is raised if the system allows it.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
export CORACLE

echo "· a soft limit below the hard one is raised"
hard=$(ulimit -Hn)
if [ "$hard" = unlimited ] || [ "$hard" -gt 1024 ]; then
  ulimit -Sn 1024
  up --nodes 0
  raised=$(awk '/^Max open files/ {print $4}' "/proc/$UP_PID/limits")
  [ "$raised" -gt 1024 ] || fail "the soft limit is still $raised of $hard"
  down
  ulimit -Sn "$hard"
fi
for trial in "1024 300" "256 20"; do
  echo "· $trial: hard limit, pods with four volumes"
  # shellcheck disable=SC2086
  python3 "$(dirname "${BASH_SOURCE[0]}")/descriptors.py" $trial > "$WORK/out" 2>&1 || fail "$(cat "$WORK/out")"
done
echo PASS
