# shellcheck shell=bash
# An etcd cluster with TLS for the end-to-end tests. Source it after lib.sh.
# ETCD_URLS and ETCD_TLS are the values of --store etcd:… and the flags of its files.
declare -A MEMBER_PID=()
MEMBERS=()
ETCD_TLS=(--etcd-cafile "$WORK/tls/ca" --etcd-certfile "$WORK/tls/cert" --etcd-keyfile "$WORK/tls/key")

# free_ports COUNT: below the ports that systems give to connections, since a member needs its own again.
free_ports() {
  python3 -c 'import os, socket, sys
free = (p for p in range(20000 + os.getpid() * 7 % 9000, 32000) if socket.socket().connect_ex(("127.0.0.1", p)))
print(*(next(free) for _ in range(int(sys.argv[1]))))' "$1"
}
# authority: the files of $WORK/tls
authority() {
  local ec=(-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes)
  mkdir -p "$WORK/tls"
  openssl req -x509 "${ec[@]}" -keyout "$WORK/tls/ca.key" -out "$WORK/tls/ca" -days 2 -subj /CN=authority 2>/dev/null
  openssl req "${ec[@]}" -keyout "$WORK/tls/key" -out "$WORK/tls/csr" -subj /CN=root 2>/dev/null
  openssl x509 -req -in "$WORK/tls/csr" -CA "$WORK/tls/ca" -CAkey "$WORK/tls/ca.key" -CAcreateserial -days 2 -out "$WORK/tls/cert" \
    -extfile <(echo 'subjectAltName=IP:127.0.0.1') 2>/dev/null
}
# plan_members COUNT: the files and addresses of the members 0 to COUNT-1
plan_members() {
  local n ports
  authority
  read -ra ports <<< "$(free_ports $((2 * $1)))"
  ETCD_URLS=
  MEMBER_PEERS=
  for ((n = 0; n < $1; n++)); do
    MEMBERS+=("https://127.0.0.1:${ports[2 * n]} https://127.0.0.1:${ports[2 * n + 1]}")
    ETCD_URLS+=,https://127.0.0.1:${ports[2 * n]}
    MEMBER_PEERS+=,m$n=https://127.0.0.1:${ports[2 * n + 1]}
  done
  ETCD_URLS=${ETCD_URLS#,} MEMBER_PEERS=${MEMBER_PEERS#,}
}
# members COUNT: plans and starts them
members() {
  local n
  plan_members "$1"
  for ((n = 0; n < $1; n++)); do start_member "$n"; done
}
start_member() {
  local tls=$WORK/tls client peer
  read -r client peer <<< "${MEMBERS[$1]}"
  etcd --name "m$1" --data-dir "$WORK/m$1" --listen-client-urls "$client" --advertise-client-urls "$client" \
    --listen-peer-urls "$peer" --initial-advertise-peer-urls "$peer" --initial-cluster "$MEMBER_PEERS" --log-level error \
    --cert-file "$tls/cert" --key-file "$tls/key" --client-cert-auth --trusted-ca-file "$tls/ca" \
    --peer-cert-file "$tls/cert" --peer-key-file "$tls/key" --peer-client-cert-auth --peer-trusted-ca-file "$tls/ca" \
    2>> "$WORK/m$1.err" & MEMBER_PID[$1]=$!
}
stop_member() { { kill -KILL "${MEMBER_PID[$1]}" && wait "${MEMBER_PID[$1]}"; } 2>/dev/null || true; unset "MEMBER_PID[$1]"; }
stop_members() { local n; for n in "${!MEMBER_PID[@]}"; do stop_member "$n"; done; }
