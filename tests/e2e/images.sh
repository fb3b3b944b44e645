#!/usr/bin/env bash
# Images from registries of others: layouts, TLS with a private CA, passwords and tokens, mirrors; whose image is whose; and hostile ones.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
here=$(dirname "${BASH_SOURCE[0]}")

key=(-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2)
openssl req -x509 "${key[@]}" -subj /CN=ca -keyout "$WORK/ca-key.pem" -out "$WORK/ca.pem" 2>/dev/null
openssl req -x509 "${key[@]}" -subj /CN=registry -CA "$WORK/ca.pem" -CAkey "$WORK/ca-key.pem" -keyout "$WORK/key.pem" -out "$WORK/server.pem" \
  -addext 'subjectAltName=DNS:localhost,IP:127.0.0.1' -addext basicConstraints=critical,CA:FALSE 2>/dev/null
: > "$WORK/requests"
python3 "$here/registry.py" "${SAMPLES_BIN:-sample-workloads/bin}/hello.wasm" "$WORK/server.pem" "$WORK/key.pem" "$WORK/requests" > "$WORK/ports" & SERVER_PID=$!
trap 'kill "$SERVER_PID" 2>/dev/null || true; cleanup' EXIT
eventually 20 grep -q . "$WORK/ports"
read -r tls plain < "$WORK/ports"
cat > "$WORK/registries.yaml" <<YAML
mirrors:
  docker.io:
    endpoint: ["http://127.0.0.1:$plain"]
  "127.0.0.1:$plain":
    endpoint: ["http://127.0.0.1:$plain"]
configs:
  "localhost:$tls":
    tls: {ca_file: ca.pem}
  "127.0.0.1:$tls": {}
YAML
up --registries "$WORK/registries.yaml"
R=localhost:$tls
PASSWORD=hush-hush-hush

# runs NAME IMAGE [ARGUMENTS…]: a pod of it becomes Ready
runs() { start "$@"; kubectl wait --for=condition=Ready "pod/$1" --timeout=60s "${ns[@]}" >/dev/null || fail "$1 is not Ready: $(kubectl get events "${ns[@]}" 2>&1 | tail -5)"; }
start() { local name=$1 image=$2; shift 2; kubectl run "$name" --image="$image" --port=8080 --image-pull-policy="${policy:-IfNotPresent}" "${ns[@]}" "$@" >/dev/null; }
# refused NAME REASON PATTERN: the pod waits for that reason, and an event says why
refused() {
  eventually 60 has "^($2|ImagePullBackOff)$" kubectl get pod "$1" "${ns[@]}" -o 'jsonpath={.status.containerStatuses[0].state.waiting.reason}'
  eventually 20 has "$3" kubectl get events "${ns[@]}" --field-selector "involvedObject.name=$1" -o 'jsonpath={range .items[*]}{.message}{"\n"}{end}'
}
ns=()

for layout in cncf scratch compat index spin wash; do runs "$layout" "$R/$layout/hello:v1"; done
expect "localhost:$tls/index/hello" "$(kubectl get pod index -o 'jsonpath={.status.containerStatuses[0].imageID}' | cut -d@ -f1)" "imageID"
eventually 10 has 'Successfully pulled image "localhost:[0-9]+/cncf/hello:v1" in .*s \(.*s including waiting\). Image size: [0-9]+ bytes.' kubectl get events
start linux "$R/linux/hello:v1"; refused linux ErrImagePull 'linux/amd64.*deploy your own module'
start none "$R/cncf/none@sha256:$(printf '0%.0s' {1..64})"; refused none ErrImagePull 'digest|not found'
start closed "127.0.0.1:1/x:v1"; refused closed ErrImagePull 'registries'
start untrusted "127.0.0.1:$tls/cncf/hello:v1"; refused untrusted RegistryUnavailable 'registry is unavailable.*certificate'
runs mirrored cncf/hello:v1
has '^http /v2/cncf/hello/manifests/v1\?ns=docker.io -$' cat "$WORK/requests" || fail "the mirror was not asked: $(cat "$WORK/requests")"
echo "· layouts, a private CA, a mirror"

secret() { kubectl create secret docker-registry "$1" --docker-server="$2" --docker-username=robot --docker-password="$3" "${ns[@]}" >/dev/null; }
secret pull "$R" "$PASSWORD"; secret wrong "$R" wrong-wrong; secret plain "127.0.0.1:$plain" "$PASSWORD"
with() { echo "--overrides={\"spec\":{\"imagePullSecrets\":[{\"name\":\"$1\"}]}}"; }
for kind in private token; do
  start "$kind-anonymous" "$R/$kind/hello:v1"; refused "$kind-anonymous" ErrImagePull 'pull access denied'
  start "$kind-wrong" "$R/$kind/hello:v1" "$(with wrong)"; refused "$kind-wrong" ErrImagePull 'pull access denied'
  start "$kind-missing" "$R/$kind/hello:v1" "$(with nothing)"; refused "$kind-missing" ErrImagePull 'Unable to retrieve some image pull secrets \(nothing\)'
  runs "$kind-right" "$R/$kind/hello:v1" "$(with pull)"
done
kubectl create namespace other >/dev/null
eventually 20 kubectl get serviceaccount default -n other
ns=(-n other)
start stolen "$R/private/hello:v1"; refused stolen ErrImagePull 'pull access denied'
policy=Never; start never "$R/private/hello:v1"; unset policy
eventually 30 has '^ErrImageNeverPull$' kubectl get pod never -n other -o 'jsonpath={.status.containerStatuses[0].state.waiting.reason}'
secret of-account "$R" "$PASSWORD"
kubectl patch serviceaccount default -n other -p '{"imagePullSecrets":[{"name":"of-account"}]}' >/dev/null
runs by-account "$R/private/hello:v1"
ns=()
echo "· passwords, tokens, ServiceAccounts; whose image is whose"

before=$(awk '/VmHWM/ {print $2}' "/proc/$UP_PID/status")
for evil in realm echo manifest redirect digest blob; do start "evil-$evil" "127.0.0.1:$plain/evil-$evil/hello:v1" "$(with plain)"; done
start evil-plain "$R/evil-realm/hello:v1"; refused evil-plain ErrImagePull 'its token realm has no TLS'
start evil-down "$R/evil-redirect/hello:v1"; refused evil-down ErrImagePull 'redirects to an address without TLS'
refused evil-realm ErrImagePull 'token realm is refused'
refused evil-echo ErrImagePull 'pull access denied'
refused evil-manifest ErrImagePull 'its manifest has more than'
refused evil-redirect ErrImagePull 'it redirects: addresses of this machine'
refused evil-digest ErrImagePull 'another blob'
refused evil-blob ErrImagePull 'another blob'
after=$(awk '/VmHWM/ {print $2}' "/proc/$UP_PID/status")
[ $((after - before)) -lt 102400 ] || fail "hostile registries took $((after - before)) KiB"
runs neighbour "$R/cncf/hello:v2"
for told in "$(kubectl get events,pods -A -o yaml)" "$(cat "$WORK/up.log")" "$(cat "$WORK"/data/images/images/*.json)"; do
  if grep -Eq "hush|wrong-wrong|$(printf 'robot:%s' "$PASSWORD" | base64)" <<< "$told"; then fail "an account is told"; fi
done
echo "· hostile registries"
down
printf 'mirrors: {a.io: {endpoint: ["http://b"], rewrite: {}}}\n' > "$WORK/registries.yaml"
exits 1 "$CORACLE" up --data-dir "$WORK/other" --port 0 --registries "$WORK/registries.yaml"
has rewrite cat "$WORK/err" || fail "what is wrong with the file: $(cat "$WORK/err")"
echo PASS
