#!/usr/bin/env bash
# The scheduler's file (profiles, weights, a disabled plugin), and `coracle explain-scheduling`: its result equals the decision.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

cat > "$WORK/scheduler.yaml" <<'YAML'
apiVersion: kubescheduler.config.k8s.io/v1
kind: KubeSchedulerConfiguration
profiles:
- schedulerName: default-scheduler
- schedulerName: packs
  pluginConfig:
  - name: NodeResourcesFit
    args: {scoringStrategy: {type: MostAllocated, resources: [{name: cpu, weight: 1}]}}
  plugins:
    multiPoint: {disabled: [{name: PodTopologySpread}, {name: NodeResourcesBalancedAllocation}]}
- schedulerName: careless
  plugins:
    filter: {disabled: [{name: NodeUnschedulable}, {name: TaintToleration}]}
- schedulerName: likes
  plugins:
    score: {enabled: [{name: NodeAffinity, weight: 1000}]}
YAML
# An extender, called only for pods that request a seat: coracle-2 has one.
python3 tests/e2e/extender.py > "$WORK/extender.port" & EXTENDER_PID=$!
trap 'kill "$EXTENDER_PID" 2>/dev/null || true; cleanup' EXIT
eventually 30 test -s "$WORK/extender.port"
cat >> "$WORK/scheduler.yaml" <<YAML
extenders:
- urlPrefix: http://127.0.0.1:$(cat "$WORK/extender.port")/
  filterVerb: filter
  nodeCacheCapable: true
  managedResources: [{name: example.com/seat, ignoredByScheduler: true}]
YAML
up --nodes 2 --scheduler-config "$WORK/scheduler.yaml"
kubectl wait --for=condition=Ready node/coracle-1 node/coracle-2 --timeout=60s >/dev/null
# pod NAME SCHEDULER MORE: its image exists nowhere: only the binding matters
pod() {
  printf '{"apiVersion":"v1","kind":"Pod","metadata":{"name":"%s"},"spec":{"schedulerName":"%s","containers":[{"name":"c","image":"registry.local/none:v1","resources":{"requests":{"cpu":"200m","memory":"8Mi"}}}]%s}}' "$1" "$2" "${3:-}"
}
node_of() { kubectl get pod "$1" -o jsonpath='{.spec.nodeName}'; }
is_bound() { [ -n "$(node_of "$1")" ]; }
# bound NAME SCHEDULER MORE: creates it; it is bound to a node
bound() { pod "$@" | kubectl create -f - >/dev/null; eventually 30 is_bound "$1"; }
preferring() { printf ',"affinity":{"nodeAffinity":{"preferredDuringSchedulingIgnoredDuringExecution":[{"weight":1,"preference":{"matchFields":[{"key":"metadata.name","operator":"In","values":["%s"]}]}}]}}' "$1"; }
explain() { exits 0 "$CORACLE" explain-scheduling --scheduler-config "$WORK/scheduler.yaml" "$@"; cp "$WORK/out" "$WORK/explained"; }
# said EXPRESSION: of the explanation as JSON, `it`
said() { python3 -c 'import json, sys; it = json.load(open(sys.argv[1])); print(eval(sys.argv[2]))' "$WORK/explained" "$1"; }

bound first default-scheduler ',"nodeSelector":{"kubernetes.io/hostname":"coracle-1"}'
expect coracle-1 "$(node_of first)" "the node that a pod selects"
bound packed packs
expect coracle-1 "$(node_of packed)" "the fuller node, by the profile that packs"
bound spread default-scheduler
expect coracle-2 "$(node_of spread)" "the emptier node, by the default profile"
bound packed-2 packs
expect coracle-1 "$(node_of packed-2)" "the fuller node again"
echo "· profiles have arguments of their own"

bound liked likes "$(preferring coracle-1)"
expect coracle-1 "$(node_of liked)" "the node that is liked, by its weight"
explain --data-dir "$WORK/data" liked -o json
expect "coracle-1 likes 1000 100000" "$(said "it['node'] + ' ' + it['profile'] + ' ' + next(f\"{p['weight']} {s['weighted']}\" for p, s in zip(it['plugins'], it['nodes'][0]['scores']) if p['name'] == 'NodeAffinity')")" "the weight of a profile"
echo "· weights count"

seat=',"resources":{"requests":{"cpu":"200m","example.com/seat":"1"},"limits":{"example.com/seat":"1"}}'
seated() { printf '{"apiVersion":"v1","kind":"Pod","metadata":{"name":"%s"},"spec":{"containers":[{"name":"c","image":"registry.local/none:v1"%s}]%s}}' "$1" "$seat" "${2:-}" | kubectl create -f - >/dev/null; }
seated sits
eventually 30 is_bound sits
expect coracle-2 "$(node_of sits)" "the node that an extender leaves"
seated stands ',"nodeSelector":{"kubernetes.io/hostname":"coracle-1"}'
no_seat() { has "1 no seat is free" kubectl get pod stands -o jsonpath='{.status.conditions[?(@.type=="PodScheduled")].message}'; }
eventually 30 no_seat
explain --data-dir "$WORK/data" sits -o json
has 'http://127.0.0.1:' said "it['notAsked'][0]" || fail "an explanation hides that an extender isn't asked"
echo "· extenders are asked about pods that want what they manage"

kubectl cordon coracle-1 >/dev/null && kubectl cordon coracle-2 >/dev/null
bound careless careless
pod careful default-scheduler | kubectl create -f - >/dev/null
why() { kubectl get pod careful -o jsonpath='{.status.conditions[?(@.type=="PodScheduled")].message}'; }
refused() { has '^0/2 nodes are available: 2 node\(s\) were unschedulable\.' why; }
eventually 30 refused
expect "" "$(node_of careful)" "the node of a pod whose profile heeds cordons"
pod nobodys nobody | kubectl create -f - >/dev/null
echo "· a plugin is off in one profile alone"

explain --kubeconfig "$WORK/data/kubeconfig" careful
has '^pod default/careful by the profile default-scheduler: nowhere\. 0/2 nodes are available: 2 node\(s\) were unschedulable\.' cat "$WORK/explained" || fail "$(cat "$WORK/explained")"
has '^coracle-2 +NodeUnschedulable +node\(s\) were unschedulable$' cat "$WORK/explained" || fail "$(cat "$WORK/explained")"
expect "$(why)" "$(explain --data-dir "$WORK/data" careful -o json; said "it['message']")" "the message of the pod's condition"
kubectl uncordon coracle-1 >/dev/null && kubectl uncordon coracle-2 >/dev/null
eventually 30 is_bound careful
# A bound pod is explained as if it had no node, and one of a file as if it were created.
explain --data-dir "$WORK/data" packed -o json
expect coracle-1 "$(said "it['node']")" "where a pod that has a node would go again"
pod idea packs ',"nodeSelector":{"no":"where"}' > "$WORK/idea.json"
explain --data-dir "$WORK/data" --filename "$WORK/idea.json"
has "coracle-1 +NodeAffinity +node\(s\) didn't match Pod's node affinity/selector" cat "$WORK/explained" || fail "$(cat "$WORK/explained")"
exits 1 kubectl get pod idea
exits 1 "$CORACLE" explain-scheduling --data-dir "$WORK/data" none
has 'pods "none" not found' cat "$WORK/err" || fail "$(cat "$WORK/err")"
exits 1 "$CORACLE" explain-scheduling --data-dir "$WORK/data" nobodys
has 'no profile decides for the schedulerName "nobody"' cat "$WORK/err" || fail "$(cat "$WORK/err")"
exits 2 "$CORACLE" explain-scheduling
echo "· what plugins say of each node"

kubectl create serviceaccount viewer >/dev/null
sed '/client-\(certificate\|key\)-data/d' "$KUBECONFIG" > "$WORK/viewer"
kubectl --kubeconfig "$WORK/viewer" config set-credentials "$(kubectl config view -o jsonpath='{.users[0].name}')" --token="$(kubectl create token viewer)" >/dev/null
exits 1 "$CORACLE" explain-scheduling --kubeconfig "$WORK/viewer" packed
has 'system:serviceaccount:default:viewer" cannot get resource "pods"' cat "$WORK/err" || fail "$(cat "$WORK/err")"
echo "· with the user's own rights"

explain --data-dir "$WORK/data" packed -o json --record "$WORK/record.json"
cp "$WORK/explained" "$WORK/first"
down
exits 0 "$CORACLE" explain-scheduling --replay "$WORK/record.json" -o json
cmp "$WORK/out" "$WORK/first" || fail "a recording says something else than what was recorded"
head -c 300 "$WORK/record.json" > "$WORK/broken.json"
exits 1 "$CORACLE" explain-scheduling --replay "$WORK/broken.json"
expect 1 "$(wc -l < "$WORK/err")" "lines of an error"
has 'no recording of a decision' cat "$WORK/err" || fail "$(cat "$WORK/err")"
echo "· a recorded decision replays without a cluster"

sed 's/NodeAffinity, weight/NodeAffinities, weight/' "$WORK/scheduler.yaml" > "$WORK/wrong.yaml"
exits 2 timeout 60 "$CORACLE" up --data-dir "$WORK/other" --port 0 --scheduler-config "$WORK/wrong.yaml"
expect 1 "$(wc -l < "$WORK/err")" "lines of a refusal"
echo "· a broken file is refused"
echo PASS
