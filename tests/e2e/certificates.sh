#!/usr/bin/env bash
# Certificates change while the server runs: revoked client certificates, the server's own, the administrator's.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
"$CORACLE" apiserver --data-dir "$WORK/data" --port 0 --tls-san api.example,203.0.113.7 > "$WORK/ready" 2> "$WORK/up.log" & UP_PID=$!
await_ready "coracle apiserver" "$UP_PID" "$WORK/ready"
cp "$WORK/data/kubeconfig" "$WORK/lost"; export KUBECONFIG=$WORK/data/kubeconfig
address=$(sed -n 's|^ready server=https://\([^ ]*\).*|\1|p' "$WORK/ready")

# No node gets a certificate for a recorded name.
recorded=$(kubectl -n kube-system get configmap coracle-api-servers -o jsonpath='{.data.addresses}' | tr '\n' ' ')
expect "127.0.0.1 203.0.113.7 api.example " "$recorded" "the record of API servers"

# An administrator's certificate is lost: the file's is recreated, and the lost one revoked.
kubectl --kubeconfig "$WORK/lost" get namespaces --watch > "$WORK/watch" 2>&1 & watch=$!
eventually 10 grep kube-system "$WORK/watch"
kubectl --kubeconfig "$WORK/lost" config view --raw -o jsonpath='{.users[0].user.client-certificate-data}' | base64 -d > "$WORK/lost.crt"
rm "$WORK/data/pki/admin.crt" "$WORK/data/pki/admin.key"
another() { ! cmp "$WORK/lost" "$KUBECONFIG"; }
eventually 15 another
openssl x509 -in "$WORK/lost.crt" -noout -fingerprint -sha256 | sed 's/.*=//; s/$/  # ada, lost laptop/' >> "$WORK/data/pki/revoked"
refused() { ! kubectl --kubeconfig "$WORK/lost" get namespaces > /dev/null 2> "$WORK/err" && grep -q Unauthorized "$WORK/err"; }
eventually 15 refused
wait $watch || true # its connection ended
kubectl get namespace default >/dev/null || fail "the new certificate is not known"

# An invalid line is reported, and the list stays.
echo nonsense >> "$WORK/data/pki/revoked"
eventually 15 grep 'line 2 is neither a SHA-256 fingerprint' "$WORK/up.log"
refused || fail "a wrong line revokes nobody"
rm "$WORK/data/pki/revoked"
eventually 15 kubectl --kubeconfig "$WORK/lost" get namespace default

# A certificate in a browser serves pages of this server alone (Origin, Sec-Fetch-Site); programs send neither header.
of_user() { kubectl config view --raw -o jsonpath="{.users[0].user.$1}" | base64 -d; }
of_user client-certificate-data > "$WORK/user.crt"; of_user client-key-data > "$WORK/user.key"
code() { curl -sk --max-time 10 -o "$WORK/answer" -w '%{http_code}' --cert "$WORK/user.crt" --key "$WORK/user.key" "https://$address/api/v1/namespaces" "$@"; }
[ "$(code)" = 200 ] || fail "a program: $(cat "$WORK/answer")"
[ "$(code -H "Origin: https://$address" -H 'Sec-Fetch-Site: same-origin')" = 200 ] || fail "a page of this server"
for page in 'Origin: https://evil.example' 'Origin: null' 'Sec-Fetch-Site: cross-site' 'Sec-Fetch-Site: same-site'; do
  [ "$(code -H "$page")" = 403 ] || fail "$page: $(cat "$WORK/answer")"
  grep -q 'page of another site' "$WORK/answer" || fail "$page: $(cat "$WORK/answer")"
done
[ "$(code -H 'Origin: https://evil.example' -X POST -d '{"metadata": {"name": "evil"}}')" = 403 ] || fail "a write of a page"
upgrade=(-H 'Connection: Upgrade' -H 'Upgrade: websocket' -H 'Sec-WebSocket-Version: 13' -H 'Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==')
[ "$(code --http1.1 "${upgrade[@]}" -H 'Origin: https://evil.example')" = 403 ] || fail "a WebSocket of a page"
kubectl get namespace evil > /dev/null 2>&1 && fail "a page has made a namespace"

# The server's own.
serial() { openssl s_client -connect "$address" < /dev/null 2>/dev/null | openssl x509 -noout -serial; }
first=$(serial)
rm "$WORK/data/pki/apiserver.crt" "$WORK/data/pki/apiserver.key"
renewed() { [ "$(serial)" != "$first" ]; }
eventually 15 renewed
kubectl get namespace default >/dev/null || fail "the new serving certificate is not good"
down
echo nonsense > "$WORK/data/pki/revoked"
exits 1 "$CORACLE" apiserver --data-dir "$WORK/data" --port 0
grep -q 'revoked: line 1' "$WORK/err" || fail "a start with a wrong list: $(cat "$WORK/err")"
echo PASS
