#!/usr/bin/env bash
# The development loop: flags of `coracle run`, manifests with modules as files, and `--dev` with a build, logs and an end that leaves nothing.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
bin=$(realpath "${SAMPLES_BIN:-sample-workloads/bin}")
run() { "$CORACLE" run --data-dir "$WORK/data" "$@"; }
field() { kubectl get -n "$1" "$2" -o "jsonpath={$3}"; }
cp "$bin/hello.wasm" "$WORK/hello.wasm"
up

# Every flag of the pod, by its effect in the container.
kubectl create namespace team >/dev/null
kubectl create -n team secret generic login --from-literal=TOKEN=hidden >/dev/null
kubectl create -n team configmap settings --from-literal=level=high >/dev/null
exits 0 run "$WORK/hello.wasm" -n team --env GREETING=hi --env PATHS=a=b,c --secret login --memory 64Mi --cpu 500m \
  --volume cache:/cache --volume configmap/settings:/etc/app:ro --volume secret/login:/login -- --flag 'two words'
spec='.spec.template.spec.containers[0]'
expect '64Mi 500m 64Mi 500m' "$(field team deployment/hello "$spec.resources.limits.memory} {$spec.resources.limits.cpu} {$spec.resources.requests.memory} {$spec.resources.requests.cpu")" "limits and requests"
expect '["--flag","two words"]' "$(field team deployment/hello "$spec.args")" "arguments"
pod=$(kubectl get pods -n team -l app=hello -o name | head -n 1)
inside() { kubectl exec -n team "$pod" -- "$@"; }
inside env > "$WORK/env"
for line in GREETING=hi PATHS=a=b,c TOKEN=hidden; do grep -qx "$line" "$WORK/env" || fail "no $line: $(cat "$WORK/env")"; done
expect high "$(inside cat /etc/app/level)" "a ConfigMap's volume"
expect hidden "$(inside cat /login/TOKEN)" "a Secret's volume"
inside sh -c 'echo kept > /cache/file' || fail "an empty folder can't be written"
# The address: the NodePort, the same after another run and after a new Service; then the ClusterIP.
address=$(head -n 1 "$WORK/out")
[[ $address =~ ^http://127\.0\.0\.1:3[0-9]{4}/$ ]] || fail "the address: $(cat "$WORK/out")"
has '^http://[0-9.]+:8080/ \(service/hello in the cluster\)$' cat "$WORK/out" || fail "the ClusterIP: $(cat "$WORK/out")"
has '^hello from hello-' curl -sS -m 10 "$address" || fail "no answer at $address"
exits 0 run "$WORK/hello.wasm" -n team
expect "$address" "$(head -n 1 "$WORK/out")" "the address after another run"
expect ' ' "$(field team deployment/hello ".spec.template.spec.volumes} {$spec.env")" "what the last run had and this one has not"
kubectl delete -n team service/hello >/dev/null
exits 0 run "$WORK/hello.wasm" -n team
expect "$address" "$(head -n 1 "$WORK/out")" "the address of a new Service"
# What is wrong is said before anything is made.
exits 1 run "$WORK/hello.wasm" -n nowhere
has 'kubectl create namespace nowhere: namespaces "nowhere" not found|create namespace nowhere.*"nowhere" not found' cat "$WORK/err" || fail "a missing namespace: $(cat "$WORK/err")"
exits 2 run "$WORK/hello.wasm" --volume image/x:/x
has 'pvc/NAME:/PATH' cat "$WORK/err" || fail "forms of a volume: $(cat "$WORK/err")"
for flags in '--memory 64MB' '--cpu 0' '--env NAME' '--secret Not_A_Name' '--volume a:/x --volume b:/x' '--keep'; do
  # shellcheck disable=SC2086
  exits 2 run "$WORK/hello.wasm" $flags
done
# A folder of the host is refused by the node, and the wait says so.
timeout 20 "$CORACLE" run --data-dir "$WORK/data" "$WORK/hello.wasm" --name host --volume "$WORK:/host" 2> "$WORK/host-err" || true
has 'waiting for host, [0-9]+ s: .*--allow-host-path' cat "$WORK/host-err" || fail "a hostPath that is not allowed: $(cat "$WORK/host-err")"
echo "· flags"

mkdir -p "$WORK/shop/parts"
cp "$bin/hello.wasm" "$WORK/shop/parts/app.wasm"; cp "$bin/greeter.wasm" "$WORK/shop/app.wasm"
cat > "$WORK/shop/app.yaml" <<'YAML'
apiVersion: v1
kind: ConfigMap
metadata: {name: words}
data: {text: hello}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: front}
spec:
  selector: {matchLabels: {app: front}}
  template:
    metadata: {labels: {app: front}}
    spec: {containers: [{name: front, image: ./parts/app.wasm, ports: [{containerPort: 8080}]}]}
---
apiVersion: v1
kind: List
items:
- apiVersion: v1
  kind: Service
  metadata: {name: front}
  spec: {type: NodePort, selector: {app: front}, ports: [{port: 80, targetPort: 8080}]}
- apiVersion: apps/v1
  kind: Deployment
  metadata: {name: greeter, namespace: team}
  spec:
    selector: {matchLabels: {app: greeter}}
    template:
      metadata: {labels: {app: greeter}}
      spec: {containers: [{name: greeter, image: ./app.wasm}]}
YAML
exits 0 run -f "$WORK/shop/app.yaml"
has '^hello from front-' curl -sS -m 10 "$(head -n 1 "$WORK/out")" || fail "no answer of front: $(cat "$WORK/out")"
expect hello "$(field default configmap/words .data.text)" "an object without an image"
[[ $(field team deployment/greeter "$spec.image") =~ ^registry.local/app-2@sha256: ]] || fail "the image of a file: $(field team deployment/greeter "$spec.image")"
[[ $(field default deployment/front "$spec.image") =~ ^registry.local/app@sha256: ]] || fail "two files of one name"
expect 1 "$(field team deployment/greeter .status.readyReplicas)" "ready pods"
exits 2 run -f "$WORK/shop/app.yaml" --env A=b
sed 's/kind: ConfigMap/kind: Nothing/' "$WORK/shop/app.yaml" > "$WORK/shop/wrong.yaml"
exits 1 run -f "$WORK/shop/wrong.yaml"
has 'no matches for kind "Nothing" in version "v1"' cat "$WORK/err" || fail "an unknown kind: $(cat "$WORK/err")"
sed 's|./parts/app|./parts/none|' "$WORK/shop/app.yaml" > "$WORK/shop/wrong.yaml"
exits 1 run -f "$WORK/shop/wrong.yaml"
has 'parts/none.wasm; give the path' cat "$WORK/err" || fail "a missing module: $(cat "$WORK/err")"
echo "· -f"

# Each session begins without the output of the last one: a background process ignores SIGINT until it has handlers.
# A project: sources, a build that fails and one that doesn't, logs, and the end.
mkdir -p "$WORK/project/src"; cd "$WORK/project"
cat > coracle.yaml <<'YAML'
build: env > env; test ! -e src/broken || { echo this is wrong; exit 1; }; cp src/current web.wasm; echo built >> builds
module: web.wasm
watch: [src]
YAML
cp "$bin/hello.wasm" src/current
exits 0 "$CORACLE" run --data-dir "$WORK/data" --name once
has '^hello from once-' curl -sS -m 10 "$(head -n 1 "$WORK/out")" || fail "a project that is run once"
rm -f "$WORK/dev"; CORACLE_LOG_LEVEL=warn KUBECONFIG=$KUBECONFIG "$CORACLE" run --data-dir "$WORK/data" --dev > "$WORK/dev" 2> "$WORK/dev-err" & DEV_PID=$!
trap 'kill "$DEV_PID" 2>/dev/null || true; cleanup' EXIT
eventually 60 grep -q '^http://' "$WORK/dev"
! grep -E '^(KUBECONFIG|CORACLE_)' env || fail "a build has the cluster's variables"
! grep -q 'this is wrong' "$WORK/dev-err" || fail "output of a build that did not fail"
address=$(grep -m 1 '^http://127' "$WORK/dev")
touch src/broken
eventually 60 grep -q 'this is wrong' "$WORK/dev-err"
eventually 10 grep -q 'failed: exit status: 1; registry.local/web@.* runs on' "$WORK/dev-err"
has '^hello from web-' curl -sS -m 10 "$address" || fail "the old version does not serve during a failure"
cp "$bin/chatter.wasm" src/current; rm src/broken
eventually 60 grep -q '^web \(serves\|runs\) registry.local/web@.* after' "$WORK/dev"
# The log of what runs.
logged() { local line; line=$(kubectl logs deployment/web | head -n 1); [ -n "$line" ] && grep -qF -- "$line" "$WORK/dev"; }
eventually 30 logged
kill -INT "$DEV_PID"; wait "$DEV_PID" || fail "a stopped session is no failure: $(cat "$WORK/dev-err")"
has 'removed .*deployment/web' cat "$WORK/dev-err" || fail "what was removed: $(cat "$WORK/dev-err")"
expect "" "$(kubectl get deployment,service -l app=web -o name)" "what a session leaves"
expect deployment.apps/once "$(kubectl get deployment/once -o name)" "what a run without --dev has made"
# A session changes what was there before, and leaves it.
rm -f "$WORK/dev"; "$CORACLE" run --data-dir "$WORK/data" --dev --name once --replicas 2 > "$WORK/dev" 2> "$WORK/dev-err" & DEV_PID=$!
eventually 60 grep -q '^http://' "$WORK/dev"
kill -INT "$DEV_PID"; wait "$DEV_PID" || fail "a stopped session is no failure"
expect 2 "$(field default deployment/once .spec.replicas)" "what was there before a session"
# ^C ends a build with its processes.
printf 'build: echo $$ > pid; sleep 600\nmodule: web.wasm\n' > coracle.yaml
rm -f "$WORK/dev"; "$CORACLE" run --data-dir "$WORK/data" --dev > "$WORK/dev" 2> "$WORK/dev-err" & DEV_PID=$!
eventually 30 test -s pid
eventually 20 grep -q 'coracle: building, 5 s' "$WORK/dev-err"
kill -INT "$DEV_PID"; wait "$DEV_PID" || fail "a stopped session is no failure"
eventually 10 bash -c "! kill -0 $(cat pid)"
rm coracle.yaml; exits 2 "$CORACLE" run --data-dir "$WORK/data"
has 'a coracle.yaml in this folder' cat "$WORK/err" || fail "nothing to run: $(cat "$WORK/err")"
cd - >/dev/null
# Manifests: their files are watched, and the objects that the session has made are removed.
kubectl delete -f "$WORK/shop/app.yaml" >/dev/null; kubectl create configmap words >/dev/null
rm -f "$WORK/dev"; "$CORACLE" run --data-dir "$WORK/data" -f "$WORK/shop/app.yaml" --dev > "$WORK/dev" 2> "$WORK/dev-err" & DEV_PID=$!
eventually 60 grep -q '^http://127' "$WORK/dev"
cp "$bin/trap.wasm" "$WORK/next"; mv "$WORK/next" "$WORK/shop/parts/app.wasm"
eventually 60 grep -q 'app.yaml is ready: 4 objects after' "$WORK/dev"
kill -INT "$DEV_PID"; wait "$DEV_PID" || fail "a stopped session is no failure"
rest() { [ "$(kubectl get configmap,deployment,service words front --ignore-not-found -o name)" = configmap/words ]; }
eventually 20 rest
expect "" "$(kubectl get deployment -n team greeter --ignore-not-found -o name)" "an object of another namespace"
echo "· --dev"
down
echo PASS
