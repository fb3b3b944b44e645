#!/usr/bin/env bash
# Cluster DNS on the wire, by dig: every kind of record, absence, aliases, TCP, truncation, and its address over a restart.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

up
at() { local address; address=$(cat "$WORK/data/dns-address"); echo "@${address%:*} -p ${address##*:}"; }
# ask ARGUMENTS…: the short answer; say ARGUMENTS…: the whole one
ask() { dig +short +time=5 +tries=2 $(at) "$@" | sort; }
say() { dig +time=5 +tries=2 $(at) "$@"; }
has_answer() { local wanted=$1; shift; [ "$(ask "$@")" = "$wanted" ]; }
status() { say "$@" | sed -n 's/.*status: \([A-Z]*\),.*/\1/p'; }
zone=svc.cluster.local

"$CORACLE" push --data-dir "$WORK/data" "${SAMPLES_BIN:-sample-workloads/bin}/hello.wasm" registry.local/hello:v1 >/dev/null
kubectl apply -f - >/dev/null <<'YAML'
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: crew}, ports: [{name: http, port: 80, targetPort: 80}, {name: dgram, port: 53, protocol: UDP}]}
---
apiVersion: v1
kind: Service
metadata: {name: crew}
spec: {clusterIP: None, selector: {app: crew}, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: early}
spec: {clusterIP: None, publishNotReadyAddresses: true, selector: {app: early}}
---
apiVersion: v1
kind: Service
metadata: {name: waiting}
spec: {clusterIP: None, selector: {app: early}}
---
apiVersion: v1
kind: Pod
metadata: {name: early, labels: {app: early}}
spec:
  containers: [{name: hello, image: "registry.local/hello:v1", readinessProbe: {httpGet: {path: /none, port: 80}}}]
---
apiVersion: v1
kind: Service
metadata: {name: outside}
spec: {type: ExternalName, externalName: nowhere.invalid}
---
apiVersion: v1
kind: Service
metadata: {name: local}
spec: {type: ExternalName, externalName: web.default.svc.cluster.local}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: crew}
spec:
  serviceName: crew
  replicas: 2
  selector: {matchLabels: {app: crew}}
  template:
    metadata: {labels: {app: crew}}
    spec: {containers: [{name: hello, image: "registry.local/hello:v1", env: [{name: POD_NAME, value: crew}]}]}
YAML
kubectl rollout status statefulset/crew --timeout=300s >/dev/null
ip() { kubectl get "$1" -o jsonpath="{$2}"; }
web=$(ip service/web .spec.clusterIP) one=$(ip pod/crew-0 .status.podIP) two=$(ip pod/crew-1 .status.podIP)
reversed() { local IFS=.; set -- $1; echo "$4.$3.$2.$1.in-addr.arpa"; }

eventually 30 has_answer "$web" "web.default.$zone" A
expect "$(ip service/kubernetes .spec.clusterIP)" "$(ask kubernetes.default.$zone A)" "the API server's Service"
expect '"1.1.0"' "$(ask dns-version.cluster.local TXT)" "the specification's version"
expect "0 100 80 web.default.$zone." "$(ask _http._tcp.web.default.$zone SRV)" "a named port"
expect "0 100 53 web.default.$zone." "$(ask _dgram._udp.web.default.$zone SRV)" "a named UDP port"
expect "web.default.$zone." "$(ask -x "$web")" "the name of a cluster IP"
expect "30" "$(say +noall +answer web.default.$zone A | awk '{print $2}')" "the TTL"
expect "WeB.DEFAULT.$zone." "$(say +noall +answer WeB.DEFAULT.$zone A | awk '{print $1}')" "the case of a question"
echo "· Services: addresses, named ports, and back"

eventually 30 has_answer "$(printf '%s\n' "$one" "$two" | sort)" "crew.default.$zone" A
expect "$one" "$(ask crew-0.crew.default.$zone A)" "an endpoint's host name"
expect "$(printf '0 50 80 crew-%s.crew.default.%s.\n' 0 "$zone" 1 "$zone")" "$(ask _http._tcp.crew.default.$zone SRV)" "the ports of endpoints"
expect 2 "$(say +noall +additional _http._tcp.crew.default.$zone SRV | grep -cE '[[:space:]]A[[:space:]]')" "the targets' addresses"
expect "crew-1.crew.default.$zone." "$(ask -x "$two")" "the name of an endpoint"
expect "$two" "$(ask "${two//./-}.default.pod.cluster.local" A)" "the record of a pod"
early=$(ip pod/early .status.podIP)
eventually 60 has_answer "$early" "early.default.$zone" A
expect NXDOMAIN "$(status waiting.default.$zone A)" "endpoints that aren't ready"
echo "· headless Services: ready endpoints, or all where the Service says so"

expect "nowhere.invalid." "$(ask outside.default.$zone CNAME)" "an external name"
expect "nowhere.invalid." "$(ask outside.default.$zone A)" "an external name that leads nowhere"
expect "$(printf '%s\n' "$web" "web.default.$zone." | sort)" "$(ask local.default.$zone A)" "an external name inside the cluster"
expect "127.0.0.1" "$(ask localhost. A)" "a forwarded name"
expect NXDOMAIN "$(status nowhere.invalid A)" "a forwarded name that doesn't exist"
echo "· external names are aliases, and other names are forwarded"

expect NXDOMAIN "$(status nope.default.$zone A)" "a missing Service"
expect NOERROR "$(status web.default.$zone AAAA)" "a Service without such an address"
expect "" "$(ask web.default.$zone AAAA)" "its addresses"
has 'cluster.local.[[:space:]]+30[[:space:]]+IN[[:space:]]+SOA' say +noall +authority nope.default.$zone || fail "absence has no SOA"
expect NXDOMAIN "$(status -x "${web%.*}.250")" "an unused cluster IP"
expect REFUSED "$(status +notcp web.default.$zone ANY)" "all records of a name"
has 'Transfer failed' say cluster.local AXFR || fail "the zone was transferred"
expect REFUSED "$(status version.bind CH TXT)" "another class"
expect NOTIMP "$(status +opcode=UPDATE web.default.$zone A)" "an update"
expect BADVERS "$(status +edns=1 +noednsnegotiation web.default.$zone A)" "a later version of EDNS"
echo "· absence and refusal have their codes"

python3 - << 'PYTHON' | kubectl apply -f - >/dev/null
import json
endpoints = [{"addresses": [f"192.0.2.{n}"]} for n in range(1, 201)]
service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "crowd"}, "spec": {"clusterIP": "None", "ports": [{"port": 80}]}}
part = {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": {"name": "crowd-1", "labels": {"kubernetes.io/service-name": "crowd"}},
        "addressType": "IPv4", "ports": [{"name": "", "port": 80}], "endpoints": endpoints}
print(json.dumps({"apiVersion": "v1", "kind": "List", "items": [service, part]}))
PYTHON
crowded() { [ "$(ask +tcp crowd.default.$zone A | wc -l)" = 200 ]; }
eventually 30 crowded
has 'flags: qr aa tc' say +ignore +noedns crowd.default.$zone A || fail "a long answer over UDP isn't marked as truncated"
size=$(say +ignore +noedns crowd.default.$zone A | sed -n 's/.*MSG SIZE *rcvd: //p')
[ "$size" -le 512 ] || fail "an answer of $size bytes to a client that takes 512"
size=$(say +ignore +bufsize=4096 crowd.default.$zone A | sed -n 's/.*MSG SIZE *rcvd: //p')
{ [ "$size" -gt 512 ] && [ "$size" -le 1232 ]; } || fail "an answer of $size bytes to a client that takes 4096"
expect 200 "$(ask crowd.default.$zone A | wc -l)" "addresses, by the client's second attempt over TCP"
echo "· a long answer is truncated over UDP, and whole over TCP"

# A flood of short queries with long answers, as with forged addresses: 1 MiB at once and 1 MiB a second are answered in full.
python3 - "$(cat "$WORK/data/dns-address")" > "$WORK/flood" << 'PYTHON'
import socket, struct, sys, time
address, port = sys.argv[1].rsplit(":", 1)
name = b"".join(bytes([len(label)]) + label for label in b"crowd.default.svc.cluster.local".split(b".")) + b"\0"
query = struct.pack(">HHHHHH", 7, 0x0100, 1, 0, 0, 1) + name + struct.pack(">HH", 1, 1) + b"\0" + struct.pack(">HHIH", 41, 4096, 0, 0)
client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
client.connect((address, int(port)))
client.settimeout(5)
long = short = 0
began = time.monotonic()
for _ in range(5000):
    client.send(query)
    answer = client.recv(4096)
    long, short = long + (len(answer) > 600), short + (len(answer) <= 600)
print(long, short, int((2 + time.monotonic() - began) * (1 << 20) / 1000))
PYTHON
read -r long short long_max < "$WORK/flood"
{ [ "$long" -gt 500 ] && [ "$long" -le "$long_max" ] && [ "$((long + short))" = 5000 ]; } || fail "$long long and $short short answers, at most $long_max long ones"
expect 200 "$(ask +tcp crowd.default.$zone A | wc -l)" "addresses over TCP beside a flood"
[ "$short" -gt 0 ] || [ "$long_max" -gt 5000 ] || fail "a flood of 5000 long answers was answered in full"
echo "· a flood gets short answers"

# Its address in the cluster, where this user may bind the port.
dns=$(ip service/kubernetes .spec.clusterIP); dns=${dns%.*}.10
if python3 -c "import socket; s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); s.bind(('127.255.255.253', 53))" 2>/dev/null; then
  expect "$web" "$(dig +short +time=5 "@$dns" web.default.$zone A)" "the answer at $dns"
  expect "$dns" "$(dig +short +time=5 "@$dns" ns.dns.cluster.local A)" "the server's own address"
else
  has 'cluster DNS cannot listen' cat "$WORK/up.log" || echo "· port 53 is not this user's to bind"
fi
has '^coracle_dns_requests_total\{.*type="SRV".*\} [1-9]' kubectl get --raw /metrics || fail "no metric of requests"
has '^coracle_dns_responses_total\{rcode="NXDOMAIN"\} [1-9]' kubectl get --raw /metrics || fail "no metric of responses"

before=$(cat "$WORK/data/dns-address")
down
up
expect "$before" "$(cat "$WORK/data/dns-address")" "the address after a restart"
eventually 30 has_answer "$web" "web.default.$zone" A
echo "· the address is kept"
down
echo PASS
