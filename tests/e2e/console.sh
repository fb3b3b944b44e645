#!/usr/bin/env bash
# The operator's view: status of running, unhealthy and stopped clusters; findings about the machine; the dashboard and its proxy.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

status() { "$CORACLE" status --data-dir "$WORK/data" "$@"; }
# of EXPRESSION: of the JSON status `s`
of() { python3 -c "import json; s = json.load(open('$WORK/out')); print($1)"; }

# --- status
exits 1 "$CORACLE" status --data-dir "$WORK/none"
grep -q "no cluster has run in $WORK/none" "$WORK/out" && grep -q "next: coracle up --data-dir $WORK/none" "$WORK/out" || fail "no cluster: $(cat "$WORK/out")"
expect 1 "$(wc -l < "$WORK/err")" "lines of an unhealthy status on stderr"
[ ! -e "$WORK/none" ] || fail "status made the data folder"
up --nodes 2
exits 0 status
for line in 'The cluster runs' '/readyz  *6 checks pass' "store  *embedded, in $WORK/data/store" 'Nodes: 2 of 2 ready' 'coracle-1  *Ready  *v1.36.0' "registry  *$REGISTRY" "DNS  *$(cat "$WORK/data/dns-address")" 'Pods: none' 'pki/ca.crt' 'No problems'; do
  grep -q "$line" "$WORK/out" || fail "status says nothing of $line: $(cat "$WORK/out")"
done
[ "$(uname)" != Linux ] || grep -q "process  *$UP_PID," "$WORK/out" || fail "status doesn't know the process $UP_PID: $(cat "$WORK/out")"
exits 0 status --output json
expect "running True 0" "$(of 's["state"], s["healthy"], len(s["problems"])')" "a healthy cluster as JSON"
expect "https://127.0.0.1:$(sed -n 's/^ready server=https:..[^:]*:\([0-9]*\) .*/\1/p' "$WORK/ready")" "$(of 's["controlPlane"]["server"]')" "the server"
expect "$(kubectl get --raw /api/v1/namespaces/kube-public/configmaps/coracle-node | python3 -c 'import json,sys; print(json.load(sys.stdin)["data"]["serviceCIDR"])')" "$(of 's["addresses"]["serviceCidr"]')" "the Services' addresses"
exits 0 "$CORACLE" status --kubeconfig "$KUBECONFIG"
# Something that isn't healthy is named, with the command that shows why.
kubectl create deployment broken --image=registry.local/none:v1 >/dev/null
kubectl cordon coracle-2 >/dev/null
pulls() { status -o json > "$WORK/out" 2>/dev/null || true; of '[p["reason"] for p in s["workloads"]["read"]["podsNotReady"]]' | grep -q Pull; }
eventually 30 pulls
exits 1 status
for line in 'deployment/broken  *0 of 1 ready' 'coracle-2  *Ready,SchedulingDisabled' 'kubectl uncordon coracle-2' '1 pod isn.t ready' 'next: kubectl -n default describe pod broken-'; do
  grep -q "$line" "$WORK/out" || fail "status says nothing of $line: $(cat "$WORK/out")"
done
# A user without rights sees what it may see.
kubectl create serviceaccount guest >/dev/null
kubectl config view --raw -o json | python3 -c '
import json, sys
config = json.load(sys.stdin)
config["users"][0]["user"] = {"token": sys.argv[1]}
json.dump(config, sys.stdout)' "$(kubectl create token guest)" > "$WORK/guest"
exits 0 "$CORACLE" status --kubeconfig "$WORK/guest"
grep -q 'Nodes: not allowed (nodes is forbidden' "$WORK/out" || fail "without rights: $(cat "$WORK/out")"
echo "· status of a running cluster"

# --- doctor
doctor() { "$CORACLE" doctor --data-dir "$WORK/data" --port 0 "$@"; }
# check NAME: the result of a check in the JSON output `s`
check() { of "json.dumps(next(c['result'] for c in s['checks'] if c['check'] == '$1'))"; }
# KUBECONFIG is this cluster's here, and free space and kubectl are the machine's.
exits 0 doctor
for line in '^ok  *api-port' 'open-files' 'instance-pool' '^ok  *clock .*agrees with the API server' '^ok  *permissions' '^ok  *certificates' '^ok  *kubeconfig' '[0-9]* errors, [0-9]* warnings'; do
  grep -q "$line" "$WORK/out" || fail "doctor says nothing of $line: $(cat "$WORK/out")"
done
port=$(sed -n 's/^ready server=https:..[^:]*:\([0-9]*\) .*/\1/p' "$WORK/ready")
exits 0 "$CORACLE" doctor --data-dir "$WORK/data" --port "$port"
grep -q '^ok  *api-port .*the cluster of this data folder runs' "$WORK/out" || fail "the cluster's own port: $(cat "$WORK/out")"
exits 1 "$CORACLE" doctor --data-dir "$WORK/none" --port "$port" -o json
grep -q 'is in use by another program' <<< "$(check api-port)" || fail "a taken port: $(check api-port)"
expect 1 "$(wc -l < "$WORK/err")" "lines of an error on stderr"
[ ! -e "$WORK/none" ] || fail "doctor made the data folder"
exits 1 "$CORACLE" doctor --data-dir "$WORK/none" --bind 192.0.2.1
grep -q 'error  *api-port .*192.0.2.1:6443' "$WORK/out" && grep -q 'fix: .*--bind 127.0.0.1' "$WORK/out" || fail "another machine's address: $(cat "$WORK/out")"
chmod 644 "$WORK/data/kubeconfig"
exits 1 doctor
grep -q "fix: chmod 600 $WORK/data/kubeconfig" "$WORK/out" || fail "an open kubeconfig: $(cat "$WORK/out")"
chmod 600 "$WORK/data/kubeconfig"
KUBECONFIG=$WORK/guest exits 0 doctor -o json
grep -q "export KUBECONFIG=$WORK/data/kubeconfig" <<< "$(check kubeconfig)" || fail "another KUBECONFIG: $(check kubeconfig)"
mkdir "$WORK/bin"
printf '#!/bin/sh\necho "{\\"clientVersion\\": {\\"gitVersion\\": \\"v1.30.1\\"}}"\n' > "$WORK/bin/kubectl"
chmod +x "$WORK/bin/kubectl"
PATH=$WORK/bin:$PATH exits 0 doctor -o json
grep -q 'kubectl is v1.30.1' <<< "$(check kubectl)" || fail "an old kubectl: $(check kubectl)"
(ulimit -n 4096; exits 0 doctor; grep -q 'warning  *open-files .*4096 files' "$WORK/out" || fail "a low limit: $(cat "$WORK/out")")
echo "· doctor"

# --- the dashboard's files, served by the API server
server=$(sed -n 's/^ready server=\([^ ]*\) .*/\1/p' "$WORK/ready")
# file PATH [curl's flags…]: code and body
file() { local path=$1; shift; curl -s -m 20 --cacert "$WORK/data/pki/ca.crt" -o "$WORK/body" -w '%{http_code}' "$@" "$server$path"; }
token=$(kubectl create token guest)
expect 403 "$(file /dashboard/)" "the dashboard for anonymous users"
has 'forbidden: User .*system:anonymous.* cannot get path .*/dashboard/' cat "$WORK/body" || fail "anonymous users: $(cat "$WORK/body")"
expect 200 "$(file /dashboard/ -H "Authorization: Bearer $token" -D "$WORK/head")" "the dashboard for a user without roles"
cmp "$WORK/body" dashboard/dist/index.html || fail "the page isn't that of dashboard/dist/"
for header in "content-security-policy: default-src 'none'; script-src 'self'" 'cache-control: no-cache' 'x-content-type-options: nosniff' 'referrer-policy: no-referrer' 'cross-origin-opener-policy: same-origin' 'etag: W/'; do
  grep -qi "^$header" "$WORK/head" || fail "no header $header: $(cat "$WORK/head")"
done
expect 304 "$(file /dashboard/ -H "Authorization: Bearer $token" -H "If-None-Match: $(sed -n 's/^etag: \(.*\)\r$/\1/Ip' "$WORK/head")")" "an unchanged file"
expect 308 "$(file /dashboard -H "Authorization: Bearer $token")" "the path without a slash"
expect 403 "$(file /dashboards -H "Authorization: Bearer $token")" "another path"
expect 403 "$(file /api/v1/nodes -H "Authorization: Bearer $token")" "the API for a user without roles"
echo "· files of the dashboard"

# --- its proxy
"$CORACLE" push --data-dir "$WORK/data" sample-workloads/bin/hello.wasm registry.local/hello:v1 >/dev/null
kubectl run hello --image=registry.local/hello:v1 --port=80 >/dev/null
kubectl wait --for=condition=Ready pod/hello --timeout=120s >/dev/null
exits 1 "$CORACLE" dashboard --kubeconfig "$WORK/none" --print
grep -q 'none cannot be used' "$WORK/err" || fail "a dashboard without a kubeconfig: $(cat "$WORK/err")"
KUBECONFIG='' exits 1 "$CORACLE" dashboard --data-dir "$WORK/none" --print
grep -q 'coracle up' "$WORK/err" || fail "a dashboard without a cluster: $(cat "$WORK/err")"
here=$(dirname "${BASH_SOURCE[0]}")
# dashboard [flags…]: starts the proxy; sets DASHBOARD, ADDRESS
dashboard() {
  : > "$WORK/address"
  "$CORACLE" dashboard --print "$@" > "$WORK/address" 2> "$WORK/dashboard.log" & DASHBOARD=$!
  eventually 30 grep -q '^http://127.0.0.1:[0-9]*/dashboard/#token=[0-9a-f]\{64\}$' "$WORK/address"
  ADDRESS=$(cat "$WORK/address")
}
undashboard() { local rc=0; kill -INT "$DASHBOARD"; wait "$DASHBOARD" || rc=$?; expect 0 "$rc" "exit code of coracle dashboard"; }
# A background process of a script ignores SIGINT by default; the program handles it all the same.
dashboard --data-dir "$WORK/data" --log-level debug
PYTHONPATH=$here${PYTHONPATH:+:$PYTHONPATH} python3 "$here/dashboard_proxy.py" "$ADDRESS" || fail "the proxy"
[ "$(uname)" != Linux ] || ! tr '\0' ' ' < "/proc/$DASHBOARD/cmdline" | grep -q "${ADDRESS#*=}" || fail "the secret is in the command line"
! grep -q "${ADDRESS#*=}" "$WORK/dashboard.log" || fail "the secret is in the log"
first=$ADDRESS
undashboard
# Another run has another secret; a kubeconfig may name a program for its credentials.
cat > "$WORK/credentials" <<SH
#!/bin/sh
echo '{"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": {"token": "$token"}}'
SH
chmod +x "$WORK/credentials"
python3 - "$WORK/guest" "$WORK/credentials" > "$WORK/by-program" <<'PY'
import json, sys
config = json.load(open(sys.argv[1]))
config["users"][0]["user"] = {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": sys.argv[2], "interactiveMode": "Never"}}
json.dump(config, sys.stdout)
PY
dashboard --kubeconfig "$WORK/by-program"
[ "${first#*=}" != "${ADDRESS#*=}" ] || fail "two runs have one secret"
expect system:serviceaccount:default:guest "$(PYTHONPATH=$here${PYTHONPATH:+:$PYTHONPATH} python3 "$here/dashboard_proxy.py" "$ADDRESS" whoami)" "the user of a program's credentials"
undashboard
# A browser gets a private file; the secret is in no command line.
[ "$(uname)" != Linux ] || {
  printf '#!/bin/sh\necho "$@" > %s/opened\ncp "$1" %s/opened.html\n' "$WORK" "$WORK" > "$WORK/bin/xdg-open"
  chmod +x "$WORK/bin/xdg-open"
  PATH=$WORK/bin:$PATH "$CORACLE" dashboard --data-dir "$WORK/data" > "$WORK/out" 2> "$WORK/dashboard.log" & DASHBOARD=$!
  eventually 30 grep -q 'the dashboard of https://.* is at http://127.0.0.1:' "$WORK/dashboard.log"
  secret=$(sed -n 's/.*url=http:.*#token=\([0-9a-f]*\)".*/\1/p' "$WORK/opened.html")
  [ ${#secret} = 64 ] || fail "the opened page: $(cat "$WORK/opened.html")"
  ! grep -q "$secret" "$WORK/opened" "$WORK/dashboard.log" "$WORK/out" || fail "the secret is in a command line or a log"
  undashboard
  [ ! -e "$(cat "$WORK/opened")" ] || fail "the opened file is left"
  # Without a browser the address is printed.
  printf '#!/bin/sh\nexit 3\n' > "$WORK/bin/xdg-open"
  PATH=$WORK/bin:$PATH "$CORACLE" dashboard --data-dir "$WORK/data" 2> "$WORK/dashboard.log" & DASHBOARD=$!
  eventually 30 grep -q 'open the dashboard at http://127.0.0.1:[0-9]*/dashboard/#token=' "$WORK/dashboard.log"
  undashboard
}
kubectl delete pod hello --wait=false >/dev/null
echo "· dashboard"

# A process that doesn't answer: the command ends in time.
kill -STOP "$UP_PID"
before=$SECONDS
exits 1 status
[ $((SECONDS - before)) -le 20 ] || fail "status of a process that hangs took $((SECONDS - before)) s"
grep -q 'answer' "$WORK/out" || fail "a process that hangs: $(cat "$WORK/out")"
kill -CONT "$UP_PID"
down
exits 1 status
grep -q 'The cluster is stopped' "$WORK/out" && grep -q 'Data folder: ' "$WORK/out" && grep -q "coracle up --data-dir $WORK/data" "$WORK/out" || fail "a stopped cluster: $(cat "$WORK/out")"
exits 1 status -o json
expect "stopped None" "$(of 's["state"], s["nodes"]')" "a stopped cluster as JSON"
echo "· status of stopped clusters"

# A process that was killed leaves its socket.
up --nodes 0 --dashboard=false
exits 1 kubectl get --raw /dashboard/
grep -q "could not find the requested resource\|NotFound" "$WORK/err" || fail "a dashboard that is off: $(cat "$WORK/err")"
down KILL
exits 0 doctor
[ "$(uname)" != Linux ] || grep -q "info  *sockets .*$WORK/data/control" "$WORK/out" || fail "a socket left over: $(cat "$WORK/out")"
echo "· doctor of a killed cluster"
echo PASS
