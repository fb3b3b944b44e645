#!/usr/bin/env bash
# Controllers and scheduler as separate processes: coracle controllers and coracle scheduler on coracle apiserver. They do their own
# work only, elect a leader, and continue after the leader is killed.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

others=()
leave() {
  local pid
  for pid in "${others[@]}"; do kill -KILL "$pid" 2>/dev/null || true; done
  for pid in "${others[@]}"; do wait "$pid" 2>/dev/null || true; done
  cleanup
}
trap leave EXIT
"$CORACLE" apiserver --data-dir "$WORK/data" --port 0 > "$WORK/ready" 2> "$WORK/up.log" & UP_PID=$!
await_ready "coracle apiserver" "$UP_PID" "$WORK/ready"
KUBECONFIG=$WORK/data/kubeconfig; export KUBECONFIG

exits 2 "$CORACLE" controllers
exits 0 "$CORACLE" controller-manager --help
exits 2 "$CORACLE" controllers --kubeconfig "$KUBECONFIG" --controllers='*,-jobs'
grep -q '"jobs" is not in the list of known controllers' "$WORK/err" || fail "an unknown controller: $(cat "$WORK/err")"
exits 2 "$CORACLE" controllers --kubeconfig "$KUBECONFIG" --cloud-provider=external
grep -q 'there is no cloud provider' "$WORK/err" || fail "a flag that means nothing: $(cat "$WORK/err")"
exits 2 "$CORACLE" scheduler --kubeconfig "$KUBECONFIG" --leader-elect-lease-duration=5s
exits 1 "$CORACLE" scheduler --kubeconfig "$WORK/none"

# process NAME COMMAND…: starts one, and waits until it runs
process() {
  local name=$1; shift
  "$CORACLE" "$@" --kubeconfig "$KUBECONFIG" --metrics-bind 127.0.0.1:0 > "$WORK/$name.ready" 2> "$WORK/$name.log" & others+=($!)
  eventually 60 grep '^ready kubeconfig=.* metrics=http://127.0.0.1:' "$WORK/$name.ready"
}
figures() { curl -fsS "$(sed -n 's/^ready .*metrics=//p' "$WORK/$1.ready")"; }
holder() { kubectl -n kube-system get lease kube-controller-manager -o jsonpath='{.spec.holderIdentity}'; }
manager=(controllers --controllers='*,-job' --use-service-account-credentials)
# The user of the controllers has few rights of its own, as upstream: it may issue the tokens of each controller's account.
sed 's/^  user:$/&\n    as: system:kube-controller-manager/' "$WORK/data/kubeconfig" > "$WORK/manager"
expect no "$(kubectl --kubeconfig "$WORK/manager" auth can-i create pods || true)" "the right of the controllers' user to create pods"
KUBECONFIG=$WORK/manager process one "${manager[@]}"; one=${others[-1]}
eventually 60 has . holder
leader=$(holder)
KUBECONFIG=$WORK/manager process two "${manager[@]}"
process scheduler scheduler
kubectl create -f - >/dev/null <<'YAML'
apiVersion: v1
kind: Node
metadata: {name: paper}
status:
  capacity: {cpu: "8", memory: 8Gi, pods: "50"}
  allocatable: {cpu: "8", memory: 8Gi, pods: "50"}
  conditions: [{type: Ready, status: "True", reason: Test, message: ""}]
YAML
eventually 60 kubectl get serviceaccount default
kubectl create deployment web --image registry.local/hello:v1 --replicas 2 >/dev/null
kubectl create job none --image registry.local/hello:v1 >/dev/null
placed() { [ "$(kubectl get pods -l app="$1" -o jsonpath='{range .items[*]}{.spec.nodeName}{"\n"}{end}' | grep -c paper)" = "$2" ]; }
eventually 60 placed web 2
expect "" "$(kubectl get pods -l job-name=none -o name)" "pods of a Job whose controller does not run"
has '^workqueue_adds_total\{name="deployment"\} [1-9]' figures one || fail "the one that leads has no figures of its queues"
has '^workqueue_depth\{' figures two && fail "the one that waits works"
has '^scheduler_schedule_attempts_total\{.*scheduled' figures scheduler || fail "the scheduler has no figures"

# Expressions of policies are checked against the built-in kinds.
kubectl create -f - >/dev/null <<'YAML'
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {name: wrong}
spec:
  matchConstraints: {resourceRules: [{apiGroups: [apps], apiVersions: [v1], operations: [CREATE], resources: [deployments]}]}
  validations: [{expression: object.spec.replica > 1}]
YAML
checked() { has "undefined field 'replica'" kubectl get validatingadmissionpolicy wrong -o 'jsonpath={.status.typeChecking.expressionWarnings[0].warning}'; }
eventually 30 checked

# The data plane alone: a Service of an endpoint outside the cluster. The API server publishes the cluster's addresses.
exits 0 kubectl -n kube-public get configmap coracle-node
echo "kubeconfig: $KUBECONFIG
metrics-bind: 127.0.0.1:0
node-ip: 127.0.0.1" > "$WORK/proxy.yaml"
exits 2 "$CORACLE" proxy --config <(echo 'metrics: x')
has 'proxy has no flag --metrics' cat "$WORK/err" || fail "an unknown key: $(cat "$WORK/err")"
"$CORACLE" proxy --config "$WORK/proxy.yaml" > "$WORK/proxy.ready" 2> "$WORK/proxy.log" & others+=($!)
eventually 60 grep '^ready kubeconfig=.* metrics=http://127.0.0.1:' "$WORK/proxy.ready"
has '^coracle_proxy_requests_parsed_total 0' figures proxy || fail "the data plane has no figures"
kill "${others[-1]}"
wait "${others[-1]}" || fail "a data plane that is stopped fails: $(cat "$WORK/proxy.log")"

# The leader is killed: the other one continues when the Lease has expired.
kill -KILL "$one"; wait "$one" 2>/dev/null || true
moved() { local now; now=$(holder) && [ -n "$now" ] && [ "$now" != "$leader" ]; }
eventually 120 moved
kubectl create deployment after --image registry.local/hello:v1 >/dev/null
eventually 60 placed after 1
# A stopped leader releases its leadership, and ends without an error.
kill "${others[1]}"
wait "${others[1]}" || fail "a controller manager that is stopped fails: $(cat "$WORK/two.log")"
expect "" "$(holder)" "who leads when nobody is left"
down
echo PASS
