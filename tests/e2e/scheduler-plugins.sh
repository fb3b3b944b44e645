#!/usr/bin/env bash
# Scheduler plugins that are WebAssembly components: a correct one, and others that trap, never end, allocate memory, burn fuel and
# return garbage, beside a profile without any. And an extender that selects the victims for a pod.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
BIN=$PWD/sample-workloads/bin

# plugin NAME MODULE MORE: a profile of that name in small letters, with the plugin
plugin() {
  cat <<YAML
- schedulerName: ${1,,}
  plugins:
    multiPoint: {enabled: [{name: $1, weight: 1000}]}
  pluginConfig:
  - name: $1
    args: {apiVersion: scheduler.coracle.dev/v1, kind: WasmPluginArgs, module: "$2", $3}
YAML
}
unruly() { plugin "$1" "$BIN/placement-unruly.wasm" "$2"; }
python3 tests/e2e/extender.py > "$WORK/extender.port" & EXTENDER_PID=$!
trap 'kill "$EXTENDER_PID" 2>/dev/null || true; cleanup' EXIT
eventually 30 test -s "$WORK/extender.port"
{
  printf 'apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\npodMaxBackoffSeconds: 2\nextenders:\n'
  printf -- '- {urlPrefix: "http://127.0.0.1:%s", preemptVerb: preempt, nodeCacheCapable: true, managedResources: [{name: example.com/seat}]}\n' "$(cat "$WORK/extender.port")"
  printf 'profiles:\n- schedulerName: default-scheduler\n'
  plugin Placement "$BIN/placement.wasm" 'config: {}, timeout: 30s'
  plugin Roomy "$BIN/placement.wasm" 'config: {podsMax: 0}, timeout: 30s'
  plugin Packed "$BIN/placement.wasm" 'config: {podsMax: 2}, timeout: 30s'
  unruly Fatal 'config: trap, timeout: 30s'
  unruly Traps 'config: trap, failurePolicy: Ignore, timeout: 30s'
  unruly Loops 'config: loop, failurePolicy: Ignore, timeout: 500ms'
  unruly Burns 'config: loop, failurePolicy: Ignore, timeout: 60s, fuel: 100000000'
  unruly Eats 'config: eat, failurePolicy: Ignore, timeout: 30s, memory: 8Mi'
  unruly Rubbish 'config: rubbish, failurePolicy: Ignore, timeout: 30s'
  unruly Scores 'config: score, failurePolicy: Ignore, timeout: 30s'
  unruly Errs 'config: error, failurePolicy: Ignore, timeout: 30s'
  unruly Refuses 'config: refuse, failurePolicy: Ignore, timeout: 30s'
} > "$WORK/scheduler.yaml"
sed "s#$BIN/placement.wasm#$WORK/none.wasm#" "$WORK/scheduler.yaml" > "$WORK/none.yaml"
sed "s#$BIN/placement.wasm#$BIN/hello.wasm#" "$WORK/scheduler.yaml" > "$WORK/other.yaml"
exits 2 "$CORACLE" up --data-dir "$WORK/never" --port 0 --scheduler-config "$WORK/none.yaml"
has 'plugin "Placement": .*none.wasm: No such file' cat "$WORK/err" || fail "$(cat "$WORK/err")"
exits 2 "$CORACLE" up --data-dir "$WORK/never" --port 0 --scheduler-config "$WORK/other.yaml"
has "hello.wasm: it doesn't export coracle:scheduler/plugin@0.1" cat "$WORK/err" || fail "$(cat "$WORK/err")"
echo "· a file that is no plugin is refused at the start"

up --nodes 2 --scheduler-config "$WORK/scheduler.yaml"
kubectl wait --for=condition=Ready node/coracle-1 node/coracle-2 --timeout=60s >/dev/null
# pod NAME SCHEDULER ANNOTATIONS MORE: its image exists nowhere: only the binding matters
pod() {
  printf '{"apiVersion":"v1","kind":"Pod","metadata":{"name":"%s","annotations":{%s}},"spec":{"schedulerName":"%s","containers":[{"name":"c","image":"registry.local/none:v1"}]%s}}' "$1" "${3:-}" "$2" "${4:-}" | kubectl create -f - >/dev/null
}
node_of() { kubectl get pod "$1" -o jsonpath='{.spec.nodeName}'; }
is_bound() { [ -n "$(node_of "$1")" ]; }
bound() { pod "$@"; eventually 60 is_bound "$1"; }
condition() { kubectl get pod "$1" -o jsonpath='{.status.conditions[?(@.type=="PodScheduled")].reason}: {.status.conditions[?(@.type=="PodScheduled")].message}'; }
avoids() { printf '"placement.example.com/avoid":"%s"' "$1"; }

for name in low high; do
  kubectl create priorityclass "$name" --value="$([ $name = low ] && echo 1 || echo 1000)" >/dev/null
done
for nth in 1 2 3 4; do
  pod "packed-$nth" packed '' ',"priorityClassName":"low","terminationGracePeriodSeconds":0'
  # The first pod waits for the compilation of the plugin.
  eventually 180 is_bound "packed-$nth"
done
pod packed-first packed '' ',"priorityClassName":"high","terminationGracePeriodSeconds":0'
eventually 60 is_bound packed-first
one_preempted() { [ "$(kubectl get events --field-selector reason=Preempted -o jsonpath='{range .items[*]}{.involvedObject.name}{"\n"}{end}' | sort -u | grep -c '^packed-[1-4]$')" = 1 ]; }
eventually 30 one_preempted
expect 3 "$(kubectl get pods -o name | grep -c 'packed-[1-4]')" "pods that stay"
kubectl delete pods --all --timeout=60s >/dev/null
echo "· for a plugin's refusal alone as few go as it agrees to"

kubectl label node coracle-1 disk=slow >/dev/null
kubectl annotate node coracle-1 placement.example.com/preference=100 >/dev/null
liked() { pod "liked-$1" placement && eventually 60 is_bound "liked-$1" && [ "$(node_of "liked-$1")" = coracle-1 ]; }
# A pod bound before the annotation is retried.
until liked $((tries=${tries:-0}+1)); do [ "$tries" -lt 20 ] || fail "a node that is preferred isn't taken"; done
bound careful placement "$(avoids disk=slow)"
expect coracle-2 "$(node_of careful)" "the node that a plugin leaves"
echo "· a plugin refuses nodes and prefers others"

kubectl label node coracle-2 disk=slow >/dev/null
pod never placement "$(avoids disk=slow)"
none_left() { has '^Unschedulable: 0/2 nodes are available: 2 node\(s\) had the label disk=slow, which the pod avoids\.' condition never; }
eventually 60 none_left
eventually 30 has FailedScheduling kubectl get events --field-selector involvedObject.name=never
pod roomless roomy
full() { has '^Unschedulable: 0/2 nodes are available: 2 node\(s\) had 0 pods' condition roomless; }
eventually 60 full
explain() { exits 0 "$CORACLE" explain-scheduling --data-dir "$WORK/data" --scheduler-config "$WORK/scheduler.yaml" "$@"; cp "$WORK/out" "$WORK/explained"; }
explain never
has 'coracle-1 +Placement +node\(s\) had the label disk=slow, which the pod avoids' cat "$WORK/explained" || fail "$(cat "$WORK/explained")"
kubectl label node coracle-2 disk- >/dev/null
eventually 60 is_bound never
expect coracle-2 "$(node_of never)" "the node whose label has gone"
echo "· what it refuses is told, and tried again when nodes change"

explain liked-1 -o json --record "$WORK/record.json"
python3 - "$WORK/explained" <<'PY'
import json, sys
it = json.load(open(sys.argv[1]))
assert it["node"] == "coracle-1", it["node"]
scores = {node["name"]: [score for score in node["scores"] if score["plugin"] == "Placement"][0] for node in it["nodes"]}
assert (scores["coracle-1"]["weighted"], scores["coracle-2"]["score"]) == (100000, 50), scores
PY
cp "$WORK/explained" "$WORK/first"
exits 0 "$CORACLE" explain-scheduling --replay "$WORK/record.json" -o json
cmp "$WORK/out" "$WORK/first" || fail "a recording says something else than what was recorded"
echo "· its scores are explained, and replayed without it"

# Pods with plugins that never end are many: they wait for each other, and no other pod waits for them.
for nth in $(seq 1 12); do pod "slow-$nth" loops; done
pod fatal fatal
for nth in 1 2 3; do bound "free-$nth" default-scheduler; done
declare -A why=([Traps]='it trapped' [Loops]='no answer within 500ms' [Burns]='a call used more fuel than its 100000000' [Eats]='it needs more memory than its 8388608 bytes'
  [Rubbish]='candidate 2 is refused, of 2' [Scores]='returns an invalid score 101' [Errs]='2 candidates are too many' [Refuses]='it is not in the mood')
for name in "${!why[@]}"; do
  bound "by-${name,,}" "${name,,}"
  eventually 60 has "Scheduler plugin \"$name\" failed at (Filter|Score) and was done without: .*${why[$name]}" kubectl get events --field-selector reason=SchedulerPluginFailed -o jsonpath='{range .items[*]}{.message}{"\n"}{end}'
done
has 'about to trap|wasm trap|unreachable' kubectl get events --field-selector reason=SchedulerPluginFailed,involvedObject.name=by-traps -o jsonpath='{.items[0].message}' || fail "$(kubectl get events -o wide)"
eventually 60 has '^SchedulerError: running "Fatal" filter plugin: it trapped' condition fatal
expect "" "$(node_of fatal)" "the node of a pod whose plugin can't be done without"
for nth in $(seq 1 12); do eventually 60 is_bound "slow-$nth"; done
bound last default-scheduler
echo "· those that trap, loop, burn, eat and answer rubbish are told, and harm nobody else"

metrics() { kubectl get --raw /metrics; }
eventually 30 has '^coracle_scheduler_plugin_failures_total\{plugin="Loops",reason="timeout"\} [1-9]' metrics
eventually 30 has '^scheduler_plugin_execution_duration_seconds_count\{plugin="Placement",extension_point="Filter",status="Success"\} [1-9]' metrics
echo "· figures"

# One seat on each node, used by a pod of lower priority.
for node in coracle-1 coracle-2; do
  kubectl patch node "$node" --subresource=status --type=merge -p '{"status":{"capacity":{"example.com/seat":"1"},"allocatable":{"example.com/seat":"1"}}}' >/dev/null
done
seated() { printf '{"apiVersion":"v1","kind":"Pod","metadata":{"name":"%s"},"spec":{"priorityClassName":"%s","terminationGracePeriodSeconds":0,"containers":[{"name":"c","image":"registry.local/none:v1","resources":{"requests":{"example.com/seat":"1"},"limits":{"example.com/seat":"1"}}}]}}' "$1" "$2" | kubectl create -f - >/dev/null; }
for name in low-1 low-2; do seated $name low; eventually 60 is_bound $name; done
stays=$([ "$(node_of low-1)" = coracle-1 ] && echo low-1 || echo low-2)
seated high high
eventually 60 is_bound high
expect coracle-2 "$(node_of high)" "the node from which an extender lets pods go"
expect coracle-1 "$(node_of "$stays")" "who stays"
echo "· an extender has a say in who goes for a pod"
down
