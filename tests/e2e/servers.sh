#!/usr/bin/env bash
# Three `coracle server` over three etcd members with TLS: docs/nodes.md, "Several machines". Who may join; what they decide together;
# a rolling restart under load; the leader frozen; members and servers killed.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
. "$(dirname "${BASH_SOURCE[0]}")/members.bash"
declare -A SERVER_PID=()
leave() {
  local n
  for n in "${!SERVER_PID[@]}"; do { kill -CONT "${SERVER_PID[$n]}"; kill_server "$n"; } 2>/dev/null || true; done
  stop_members
  cleanup
}
trap leave EXIT

# Three addresses of this machine stand for three machines.
read -ra PORT <<< "$(free_ports 1)"
PREFIX=/registry
address() { echo "127.0.0.1$1"; }
start_server() {
  : > "$WORK/$1.ready"
  "$CORACLE" server --data-dir "$WORK/data$1" --bind "$(address "$1")" --port "${PORT[0]}" --store "etcd:$ETCD_URLS" "${ETCD_TLS[@]}" \
    --etcd-prefix "$PREFIX" > "$WORK/$1.ready" 2>> "$WORK/$1.log" & SERVER_PID[$1]=$!
}
await_server() { await_ready "server $1" "${SERVER_PID[$1]}" "$WORK/$1.ready"; }
kill_server() { { kill -KILL "${SERVER_PID[$1]}" && wait "${SERVER_PID[$1]}"; } 2>/dev/null || true; unset "SERVER_PID[$1]"; }
stop_server() {
  local rc=0
  kill -TERM "${SERVER_PID[$1]}"; wait "${SERVER_PID[$1]}" || rc=$?
  unset "SERVER_PID[$1]"
  expect 0 "$rc" "exit code of a server"
}
# on N …: kubectl at server N
on() { local n=$1; shift; kubectl --kubeconfig "$WORK/data$n/kubeconfig" "$@"; }
endpoints() { on "$1" get endpoints kubernetes -o jsonpath='{range .subsets[*].addresses[*]}{.ip}{"\n"}{end}' 2>/dev/null | sort | xargs; }
slices() { on "$1" get endpointslices -l kubernetes.io/service-name=kubernetes -o jsonpath='{range .items[*].endpoints[*]}{.addresses[0]}{"\n"}{end}' | sort | xargs; }
lists() { [ "$(endpoints "$1")" = "$2" ] && [ "$(slices "$1")" = "$2" ]; }
all="$(address 1) $(address 2) $(address 3)"

# The first server makes the cluster's keys; another one needs them.
members 3
start_server 1; await_server 1
exits 1 "$CORACLE" server --data-dir "$WORK/data2" --bind "$(address 2)" --port "${PORT[0]}" --store "etcd:$ETCD_URLS" "${ETCD_TLS[@]}"
has 'there is a cluster in this store.*copy the folder pki' cat "$WORK/err" || fail "no keys: $(cat "$WORK/err")"
[ ! -e "$WORK/data2/pki/ca.key" ] || fail "a refused start made an authority"
"$CORACLE" server --data-dir "$WORK/other" --port 0 > "$WORK/other.ready" 2> "$WORK/other.log" & SERVER_PID[9]=$!
await_ready "the server of another store" "${SERVER_PID[9]}" "$WORK/other.ready"
stop_server 9
exits 1 "$CORACLE" server --data-dir "$WORK/other" --bind "$(address 2)" --port "${PORT[0]}" --store "etcd:$ETCD_URLS" "${ETCD_TLS[@]}"
has 'has another authority' cat "$WORK/err" || fail "other keys: $(cat "$WORK/err")"
exits 1 "$CORACLE" server --data-dir "$WORK/data1b" --bind "$(address 2)" --port "${PORT[0]}" --store "etcd:$ETCD_URLS" "${ETCD_TLS[@]}" --service-cidr 10.7.0.0/16

# The second server gets the keys with a token, once. The third one has a copy.
join() { "$CORACLE" server --data-dir "$WORK/data2" --bind "$(address 2)" --port "${PORT[0]}" --store "etcd:$ETCD_URLS" "${ETCD_TLS[@]}" "$@"; }
exits 1 "$CORACLE" token create --control-plane --data-dir "$WORK/none"
has 'none has no keys of a cluster.*--data-dir' cat "$WORK/err" || fail "a token without keys: $(cat "$WORK/err")"
exits 0 "$CORACLE" token create --control-plane --data-dir "$WORK/data1"
grep -Eq "^coracle server --server https://$(address 1):${PORT[0]} --token [a-z0-9]{6}\.[a-z0-9]{16}\.[0-9a-f]{64} --ca-hash sha256:[0-9a-f]{64}$" "$WORK/out" || fail "the line of a token: $(cat "$WORK/out")"
read -ra line < "$WORK/out"
token=${line[5]} hash=${line[7]}
expect "" "$(on 1 get secrets,configmaps -A -o json | grep -o "${token##*.}")" "the key of the token in the API"
secrets() { on 1 get secrets -A -o go-template='{{range .items}}{{range .data}}{{base64decode .}}{{"\n"}}{{end}}{{end}}' > "$WORK/secrets"; }
secrets && grep -qa "${token%%.*}" "$WORK/secrets" && ! grep -qa 'PRIVATE KEY' "$WORK/secrets" || fail "a private key in the API"
exits 2 join --server "https://$(address 1):${PORT[0]}"
exits 2 join --server "https://$(address 1):${PORT[0]}" --token "${token%?}" --ca-hash "$hash"
exits 2 join --server "https://$(address 1):${PORT[0]}" --token "$token" --ca-hash "${hash#sha256:}"
exits 2 join --server "http://$(address 1):${PORT[0]}" --token "$token" --ca-hash "$hash"
exits 1 join --server "https://$(address 1):${PORT[0]}" --token "$token" --ca-hash "sha256:$(head -c 32 /dev/zero | sha256sum | cut -c1-64)"
has 'this is another cluster' cat "$WORK/err" || fail "another authority: $(cat "$WORK/err")"
wrong=${token%.*}.$(tr 0123456789abcdef 123456789abcdef0 <<< "${token##*.}")
exits 1 join --server "https://$(address 1):${PORT[0]}" --token "$wrong" --ca-hash "$hash"
has 'third part' cat "$WORK/err" || fail "another key: $(cat "$WORK/err")"
exits 1 join --server "https://$(address 1):${PORT[0]}" --token "aaaaaa.${token#*.}" --ca-hash "$hash"
has 'is wrong, used, or older than two hours' cat "$WORK/err" || fail "an unknown token: $(cat "$WORK/err")"
[ ! -e "$WORK/data2/pki/ca.key" ] || fail "a refused token made an authority"
# It reads nothing else.
expect no "$(on 1 auth can-i list secrets -n kube-system --as "system:bootstrap:${token%%.*}" || true)" "a token's rights"
# A start whose other flags are refused has got the keys, and needs the token no more.
exits 1 join --server "https://$(address 1):${PORT[0]}" --token "$token" --ca-hash "$hash" --service-cidr 10.7.0.0/16
has 'the cluster in this store has 10.96.0.0/12' cat "$WORK/err" || fail "other addresses: $(cat "$WORK/err")"
for file in ca.crt ca.key sa.key; do cmp "$WORK"/data{1,2}/pki/$file || fail "another $file"; done
expect 600 "$(stat -c %a "$WORK/data2/pki/ca.key")" "mode of the authority's key"
exits 1 "$CORACLE" server --data-dir "$WORK/data4" --bind "$(address 2)" --port "${PORT[0]}" --store "etcd:$ETCD_URLS" "${ETCD_TLS[@]}" \
  --server "https://$(address 1):${PORT[0]}" --token "$token" --ca-hash "$hash"
has 'is wrong, used, or older than two hours' cat "$WORK/err" || fail "a used token: $(cat "$WORK/err")"
left() { on 1 get secrets,roles,rolebindings -n kube-system -o name | grep -c "${token%%.*}" || true; }
nothing_left() { [ "$(left)" = 0 ]; }
eventually 30 nothing_left
mkdir -m 700 "$WORK/data3"; cp -a "$WORK/data1/pki" "$WORK/data3/"; rm "$WORK/data3/pki"/apiserver.*
exits 1 "$CORACLE" server --data-dir "$WORK/data2" --bind "$(address 2)" --port "${PORT[0]}" --store "etcd:$ETCD_URLS" "${ETCD_TLS[@]}" --service-cidr 10.7.0.0/16
has 'the cluster in this store has 10.96.0.0/12' cat "$WORK/err" || fail "other addresses: $(cat "$WORK/err")"
start_server 2; start_server 3; await_server 2; await_server 3
for n in 1 2 3; do eventually 15 lists "$n" "$all"; done
expect ok "$(on 2 get --raw /readyz)" "readyz of the second server"
expect 10.96.0.1 "$(on 3 get service kubernetes -o jsonpath='{.spec.clusterIP}')" "the cluster's address"

python3 tests/e2e/servers.py decide "$WORK"/data{1,2,3}/kubeconfig || fail "the servers decide differently"

# A certificate that the folder of one server revokes is refused by all, also after the end of that server.
openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout "$WORK/ada.key" -out "$WORK/ada.csr" -subj /O=system:masters/CN=ada 2>/dev/null
openssl x509 -req -in "$WORK/ada.csr" -CA "$WORK/data1/pki/ca.crt" -CAkey "$WORK/data1/pki/ca.key" -set_serial 7 -days 1 -out "$WORK/ada.crt" \
  -extfile <(echo extendedKeyUsage=clientAuth) 2>/dev/null
as_ada() {
  curl -s -o /dev/null -w '%{http_code}\n' --cacert "$WORK/data1/pki/ca.crt" --cert "$WORK/ada.crt" --key "$WORK/ada.key" \
    "https://$(address "$1"):${PORT[0]}/api/v1/nodes"
}
for n in 1 2 3; do expect 200 "$(as_ada "$n")" "a user's certificate at server $n"; done
openssl x509 -in "$WORK/ada.crt" -noout -fingerprint -sha256 | sed 's/.*=//; s/$/  # ada, lost laptop/' > "$WORK/data1/pki/revoked"
refused() { [ "$(as_ada "$1")" = 401 ]; }
for n in 1 2 3; do eventually 15 refused "$n"; done

# A rolling restart under load: clients only retry broken connections.
python3 tests/e2e/servers.py load "$WORK"/data{1,2,3}/kubeconfig > "$WORK/load" 2>&1 & load=$!
eventually 20 grep -q started "$WORK/load"
for n in 1 2 3; do stop_server "$n"; start_server "$n"; await_server "$n"; done
kill -TERM "$load"; wait "$load" || fail "a client's request failed: $(cat "$WORK/load")"
for n in 1 2 3; do eventually 15 lists "$n" "$all"; done

# The leader is frozen past its lease: another leads, and the old one doesn't act when it goes on.
holder() { on "$1" -n kube-system get lease "kube-$2" -o jsonpath='{.spec.holderIdentity}'; }
leader=$(holder 2 controller-manager)
frozen=$(grep -l "${leader##*_}" "$WORK"/data[123]/candidate | sed 's/.*data\([123]\).*/\1/')
[ -n "$frozen" ] || fail "no server is the candidate $leader"
alive=$((frozen % 3 + 1))
kill -STOP "${SERVER_PID[$frozen]}"
led_by_other() { local now; now=$(holder "$alive" "$1") && [ -n "$now" ] && [ "$now" != "$leader" ]; }
eventually 40 led_by_other controller-manager
on "$alive" create deployment later --image registry.local/x:v1 --replicas 3 >/dev/null
has_pods() { [ "$(on "$alive" get pods -l app=later --no-headers 2>/dev/null | wc -l)" = 3 ]; }
eventually 20 has_pods
eventually 40 lists "$alive" "$(tr ' ' '\n' <<< "$all" | grep -v "$(address "$frozen")" | xargs)"
now=$(holder "$alive" controller-manager)
kill -CONT "${SERVER_PID[$frozen]}"
eventually 30 lists "$alive" "$all"
expect ok "$(on "$frozen" get --raw /readyz)" "readyz of the server that was frozen"
expect "$now" "$(holder "$alive" controller-manager)" "the leader after the old one went on"
expect 3 "$(on "$frozen" get pods -l app=later --no-headers | wc -l)" "pods, when two may have acted"

# One of three members is killed, then a server; writes go on. Without a quorum they fail, and go on afterwards.
# A write whose connection breaks has an unknown result, so a client looks.
written() { on "$1" create configmap "$2" || on "$1" get configmap "$2"; }
stop_member 0
eventually 15 written 1 without-member
kill_server 1
eventually 15 written 2 without-server
eventually 40 lists 2 "$(address 2) $(address 3)"
expect 401 "$(as_ada 3)" "a certificate that a dead server revoked"
stop_member 1
not_ready() { ! on 2 get --raw /readyz; }
eventually 20 not_ready
! on 2 create configmap lost 2>/dev/null || fail "a write without a quorum"
start_member 0; start_member 1
eventually 30 written 3 after
start_server 1; await_server 1
on 1 get configmap without-member without-server after >/dev/null

# Servers that start together over an empty store make one cluster.
for n in 1 2 3; do stop_server "$n"; done
PREFIX=/together
for n in 1 2 3; do start_server "$n"; done
for n in 1 2 3; do await_server "$n"; done
for n in 1 2 3; do eventually 15 lists "$n" "$all"; done
expect 1 "$(on 1 get services --no-headers | wc -l)" "Services of a new cluster"
for n in 1 2 3; do stop_server "$n"; done
echo PASS
