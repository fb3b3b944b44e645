#!/usr/bin/env bash
# Sessions beside a running container: kubectl exec and cp over WebSocket and SPDY, terminals, ends, limits and rejections.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
here=$(dirname "${BASH_SOURCE[0]}")

up
# No client has used the toolbox, and its artifact is on disk.
compiled() { compgen -G "$WORK/data/compiled/$(sha256sum sample-workloads/bin/toolbox.wasm | cut -d' ' -f1)-*.cwasm"; }
eventually 120 compiled
echo "· the toolbox is compiled beforehand"
bin=${SAMPLES_BIN:-sample-workloads/bin}
for name in hello toolbox; do "$CORACLE" push --data-dir "$WORK/data" "$bin/$name.wasm" "registry.local/$name:v1" >/dev/null; done
# pod NAME IMAGE ANNOTATIONS [COMMAND]
pod() {
  kubectl apply -f - >/dev/null <<Y
apiVersion: v1
kind: Pod
metadata: {name: $1, annotations: {$3}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: box
    image: registry.local/$2:v1
    command: ${4:-[]}
    env: [{name: GREETING, value: "good day"}]
    resources: {limits: {memory: 64Mi}}
    volumeMounts: [{name: data, mountPath: /data}, {name: more, mountPath: /srv/more}]
  volumes: [{name: data, emptyDir: {}}, {name: more, emptyDir: {}}]
Y
}
pod server hello ''
pod command toolbox '' '[sleep, "3600"]'
pod closed hello '"exec.coracle.dev/box": deny'
pod own toolbox '"exec.coracle.dev/box": image' '[sleep, "3600"]'
pod talker toolbox '' '[sh, -c, "echo said at once; sleep 3600"]'
kubectl wait --for=condition=Ready pod --all --timeout=240s >/dev/null

for websockets in true false; do
  export KUBECTL_REMOTE_COMMAND_WEBSOCKETS=$websockets
  for pod in server command; do
    expect "good day" "$(kubectl exec $pod -- sh -c 'echo $GREETING')" "the environment"
    expect "$pod" "$(kubectl exec $pod -- hostname)" "the host's name"
    kubectl exec $pod -- sh -c 'echo kept > /data/file'
    expect kept "$(kubectl exec $pod -- cat /data/file)" "a volume"
    exits 7 kubectl exec $pod -- sh -c 'echo before; exit 7'
    expect before "$(cat "$WORK/out")" "output before a failure"
    grep -q 'command terminated with exit code 7' "$WORK/err" || fail "kubectl does not tell the exit code: $(cat "$WORK/err")"
    exits 127 kubectl exec $pod -- nonsense
    grep -qF 'exec: "nonsense": executable file not found in $PATH' "$WORK/err" || fail "no such program: $(cat "$WORK/err")"
    expect 3 "$(seq 3 | kubectl exec -i $pod -- wc -l)" "stdin"
  done
  # 50 MB each way, and both at once.
  head -c 50000000 /dev/urandom > "$WORK/sent"
  kubectl exec -i command -- cat < "$WORK/sent" | cmp - "$WORK/sent" || fail "50 MB through cat (WebSockets: $websockets)"
  # A command that ends before it has read all of its input.
  expect 10 "$(kubectl exec -i command -- head -c 10 < "$WORK/sent" 2>/dev/null | wc -c)" "a command that reads little"
done
unset KUBECTL_REMOTE_COMMAND_WEBSOCKETS
exits 2 kubectl cp command:/data/none "$WORK/none"
[ ! -e "$WORK/none" ] || fail "what is not there was copied"
expect 127 "$(kubectl exec server -- sh -c 'kubectl >/dev/null 2>&1; echo $?')" "what a shell does not find"
expect "200 OK" "$(kubectl exec command -- wget -S -qO- "http://$(kubectl get pod server -o jsonpath='{.status.podIP}')/" 2>&1 >/dev/null | sed -n 's/.*HTTP.1.1 200/200 OK/p' | head -n 1)" "the pod's network"
kubectl exec own -- toolbox > "$WORK/tools"
kubectl exec command -- sh -c 'printf "a 1\nb 2\n" > /data/columns; awk "{print \$2, \$1}" /data/columns; awk "NR==2 {print NF}" /data/columns; printf ab | hexdump -C; [[ -r /data/columns ]] && echo there' > "$WORK/out"
expect "1 a,2 b,2,00000000  61 62                                             |ab|,00000002,there" "$(paste -sd, "$WORK/out")" "awk, hexdump and [["
exits 2 kubectl exec command -- awk 'BEGIN {x}'
grep -qx tar "$WORK/tools" || fail "the image's own command does not run"
exits 127 kubectl exec own -- cat /data/file
echo "· kubectl exec over WebSocket and SPDY"

# nslookup and nc, over the network of the pod's HTTP guests.
kubectl label pod server app=web >/dev/null
kubectl apply -f - >/dev/null <<'Y'
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 8080, targetPort: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: nobody}
spec: {selector: {app: nobody}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Pod
metadata: {name: names}
spec:
  terminationGracePeriodSeconds: 1
  hostAliases: [{ip: 192.0.2.7, hostnames: [db]}, {ip: 127.0.0.1, hostnames: [here, alias.default.svc.cluster.local]}]
  dnsConfig: {searches: [kube-system.svc.cluster.local], options: [{name: ndots, value: "1"}]}
  containers: [{name: box, image: "registry.local/hello:v1"}]
Y
kubectl wait --for=condition=Ready pod/names --timeout=60s >/dev/null
cluster_ip=$(kubectl get service web -o jsonpath='{.spec.clusterIP}')
dns=$(cut -d. -f1-3 <<< "$(kubectl get service kubernetes -o jsonpath='{.spec.clusterIP}')").10
tool() { kubectl exec "$@"; }
found() { printf 'Server:\t\t%s\nAddress:\t%s:53\n\nName:\t%s\nAddress: %s\n\n\n' "$dns" "$dns" "$1" "$2" > "$WORK/wanted"; }
serves() { tool command -- nc -z "$@"; }
eventually 20 serves web 8080
for name in web web.default web.default.svc.cluster.local WEB; do
  found web.default.svc.cluster.local "$cluster_ip"
  tool command -- nslookup $name | diff "$WORK/wanted" - || fail "nslookup $name"
done
tool names -- cat /etc/hosts > "$WORK/hosts"
grep -qxP '192\.0\.2\.7\tdb' "$WORK/hosts" && grep -qx '# Kubernetes-managed hosts file.' "$WORK/hosts" || fail "the pod's hosts file: $(cat "$WORK/hosts")"
# nslookup queries DNS only: an alias of the pod's hosts file is no name there.
for name in nope alias; do
  exits 1 tool names -- nslookup $name.default.svc.cluster.local
  printf 'Server:\t\t%s\nAddress:\t%s:53\n\n%s\n\n%s\n\n' "$dns" "$dns" "** server can't find $name.default.svc.cluster.local: NXDOMAIN" \
    "** server can't find $name.default.svc.cluster.local: NXDOMAIN" | diff - "$WORK/out" || fail "a name that is not there: $name"
done
has "^$(awk -F. '{print $4"."$3"."$2"."$1}' <<< "$cluster_ip").in-addr.arpa	name = web.default.svc.cluster.local\$" tool command -- nslookup "$cluster_ip" || fail "the name of a ClusterIP"
has "^Address: $cluster_ip\$" tool command -- nslookup -type=a web "$dns" || fail "the cluster's own name server, named"
# No server of the host's loopback is queried, under any of its names.
exits 1 tool command -- nslookup web 127.0.0.53
exits 1 tool command -- nslookup web here.nowhere.invalid
exits 0 serves "$cluster_ip" 8080
exits 0 tool command -- nc -zv -w 5 web 8080
expect "web ($cluster_ip:8080) open" "$(cat "$WORK/err")" "nc -v"
for refused in "127.0.0.1 80" "web 81" "nobody 80" "127.255.0.1 22" "169.254.169.254 80" "127.0.0.1 ${KUBECONFIG:+$(kubectl config view --minify -o jsonpath='{.clusters[0].cluster.server}' | sed 's/.*://')}"; do
  # shellcheck disable=SC2086
  exits 1 tool command -- nc -z -w 5 $refused
done
exits 1 tool command -- nc -zv web 81
expect "nc: web ($cluster_ip:81): Connection refused" "$(head -n 1 "$WORK/err")" "nc -v to a port on which nothing listens"
exits 1 tool command -- nc -z nope 80
grep -qx "nc: bad address 'nope'" "$WORK/err" || fail "nc to no name: $(cat "$WORK/err")"
exits 1 tool command -- nc -l -p 80
# The pod's loopback is its own: its listeners are there, under any of its names.
for own in 127.0.0.1 localhost; do exits 0 tool server -- nc -z $own 80; exits 1 tool server -- nc -z $own 81; done
for own in here alias.default.svc.cluster.local; do exits 0 tool names -- nc -z $own 80; done
expect "hello from server" "$(printf 'GET / HTTP/1.0\r\nHost: web\r\n\r\n' | kubectl exec -i command -- nc web 8080 | tail -n 1)" "a request by hand"
expect "hello from server" "$(tool server -- sh -c 'printf "GET / HTTP/1.0\r\nHost: web\r\n\r\n" | nc 127.0.0.1 80 | tail -n 1')" "the same from within, in a pipeline"
# Large bodies both ways at once, to a server that echoes.
head -c 3000000 /dev/urandom > "$WORK/body"
{ printf 'POST /echo HTTP/1.0\r\nHost: web\r\nContent-Length: 3000000\r\n\r\n'; cat "$WORK/body"; } | kubectl exec -i command -- nc web 8080 | tail -c 3000000 | cmp - "$WORK/body" || fail "3 MB through nc"
echo "· nslookup and nc"

for websockets in true false; do
  export KUBECTL_REMOTE_COMMAND_WEBSOCKETS=$websockets
  mkdir -p "$WORK/tree/sub/empty"; head -c 3000000 /dev/urandom > "$WORK/tree/sub/blob"; printf 'text\n' > "$WORK/tree/name with blanks"
  printf x > "$WORK/tree/$(printf 'l%.0s' $(seq 150))"
  kubectl cp "$WORK/tree" "server:/data/tree-$websockets" 2> "$WORK/err" || fail "kubectl cp to a pod: $(cat "$WORK/err")"
  kubectl cp "server:/data/tree-$websockets" "$WORK/back-$websockets" > "$WORK/out" 2>&1 || fail "kubectl cp from a pod: $(cat "$WORK/out")"
  diff -r "$WORK/tree" "$WORK/back-$websockets" || fail "what comes back differs"
  kubectl cp "$WORK/tree/sub/blob" "server:/srv/more/blob" && kubectl cp "server:/srv/more/blob" "$WORK/blob" >/dev/null 2>&1
  cmp "$WORK/tree/sub/blob" "$WORK/blob" || fail "one file"
  exits 2 kubectl cp "$WORK/tree/sub/blob" server:/nowhere/blob
done
unset KUBECTL_REMOTE_COMMAND_WEBSOCKETS
  kubectl cp "$WORK/tree/sub/blob" "server:/tmp/blob-$websockets" && kubectl exec server -- cat "/tmp/blob-$websockets" | cmp - "$WORK/tree/sub/blob" || fail "one file in /tmp"
echo "· kubectl cp"

for command in "exec closed -- true" "cp closed:/data/x $WORK/x"; do
  # shellcheck disable=SC2086
  exits 1 kubectl $command
  grep -q "denied by the pod's annotation exec.coracle.dev/box" "$WORK/err" || fail "kubectl $command does not say why not: $(cat "$WORK/err")"
done
kubectl get --raw "/api/v1/namespaces/default/pods/closed/exec?command=true&stdout=true" > "$WORK/out" 2>&1 && fail "a raw request to what is denied"
grep -qi forbidden "$WORK/out" || fail "denied, raw: $(cat "$WORK/out")"
kubectl create serviceaccount viewer >/dev/null
kubectl create clusterrole exec-get --verb=get --resource=pods,pods/exec >/dev/null
kubectl create clusterrolebinding exec-get --clusterrole=exec-get --serviceaccount=default:viewer >/dev/null
exits 1 kubectl exec server --as=system:serviceaccount:default:viewer -- true
grep -q 'cannot create resource "pods/exec"' "$WORK/err" || fail "get alone opens a way into a pod: $(cat "$WORK/err")"
exits 1 kubectl exec server -c nobody -- true
exits 1 kubectl get --raw "/api/v1/namespaces/default/pods/server/exec?command=true&stdout=true"
grep -q 'Upgrade request required' "$WORK/err" || fail "no upgrade: $(cat "$WORK/err")"
echo "· who may, and where"

python3 "$here/exec.py" server

# attach: output from then on, and input of a command.
for websockets in true false; do
  export KUBECTL_REMOTE_COMMAND_WEBSOCKETS=$websockets
  expect "through cat" "$(echo 'through cat' | kubectl run "cat-$websockets" -i -q --rm --restart=Never --image=registry.local/toolbox:v1 --command -- cat)" "kubectl run -i"
done
unset KUBECTL_REMOTE_COMMAND_WEBSOCKETS
ip=$(kubectl get pod server -o jsonpath='{.status.podIP}')
kubectl attach server > "$WORK/attached" 2> "$WORK/err" & attached=$!
watched() { kubectl exec command -- wget -qO- "http://$ip/" >/dev/null; grep -q 'GET /' "$WORK/attached"; }
eventually 20 watched
kill $attached; wait $attached 2>/dev/null || true
exits 1 kubectl attach closed
grep -q "denied by the pod's annotation" "$WORK/err" || fail "attach to what is denied: $(cat "$WORK/err")"
echo "· kubectl attach"

# A session above its container's memory limit ends; the container continues.
exits 137 kubectl exec command -- sh -c 'x=xxxxxxxxxxxxxxxx; while true; do cat /srv/more/eat >> /dev/null 2>&1; x=$(echo $x$x); seq 1 10000000 | sort | tail -n 1; done'
expect 0 "$(kubectl get pod command -o jsonpath='{.status.containerStatuses[0].restartCount}')" "restarts by a session's end"
# The container's end ends its sessions, within its grace period.
kubectl exec command -- sleep 1000 > "$WORK/out" 2> "$WORK/err" & session=$!
eventually 10 has sleep kubectl exec command -- sh -c 'echo sleep'
kubectl delete pod command --wait=true --timeout=20s >/dev/null
rc=0; wait $session || rc=$?
expect 137 "$rc" "a session whose pod is deleted: $(cat "$WORK/err")"
grep -qi panic "$WORK/up.log" && fail "something panicked"
echo "· ends"
down
echo PASS
