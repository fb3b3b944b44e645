#!/usr/bin/env bash
# The signature policy: images signed as by cosign run, and no others; a policy that changes.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
here=$(dirname "${BASH_SOURCE[0]}")

curve=(-pkeyopt ec_paramgen_curve:P-256)
key=(-newkey ec "${curve[@]}" -nodes -days 2)
openssl req -x509 "${key[@]}" -subj /CN=ca -keyout "$WORK/ca-key.pem" -out "$WORK/ca.pem" 2>/dev/null
openssl req -x509 "${key[@]}" -subj /CN=registry -CA "$WORK/ca.pem" -CAkey "$WORK/ca-key.pem" -keyout "$WORK/key.pem" -out "$WORK/server.pem" \
  -addext 'subjectAltName=DNS:localhost' -addext basicConstraints=critical,CA:FALSE 2>/dev/null
for key in good wrong; do
  openssl genpkey -algorithm EC "${curve[@]}" -out "$WORK/$key.pem" 2>/dev/null
  openssl pkey -in "$WORK/$key.pem" -pubout -out "$WORK/$key.pub"
done
: > "$WORK/requests"
python3 "$here/registry.py" "${SAMPLES_BIN:-sample-workloads/bin}/hello.wasm" "$WORK/server.pem" "$WORK/key.pem" "$WORK/requests" "$WORK" > "$WORK/ports" & SERVER_PID=$!
trap 'kill "$SERVER_PID" 2>/dev/null || true; cleanup' EXIT
eventually 20 grep -q . "$WORK/ports"
read -r tls plain < "$WORK/ports"
R=localhost:$tls
cat > "$WORK/registries.yaml" <<YAML
mirrors:
  "mirrored.test": {endpoint: ["http://127.0.0.1:$plain"]}
  "$R": {endpoint: ["http://127.0.0.1:$plain"]}
configs:
  "$R": {tls: {ca_file: ca.pem}}
YAML
# policy KEY [MORE]: the content of the file
policy() {
  cat > "$WORK/new.json" <<JSON
{"default": [{"type": "reject"}], "transports": {"docker": {
  "registry.local": [{"type": "insecureAcceptAnything"}], "$R/cncf": [{"type": "insecureAcceptAnything"}], ${2:-}
  "$R": [{"type": "sigstoreSigned", "keyPath": "$WORK/$1.pub", "signedIdentity": {"type": "matchRepository"}}]}}}
JSON
  mv "$WORK/new.json" "$WORK/policy.json"
}
policy good
up --registries "$WORK/registries.yaml" --signature-policy "$WORK/policy.json"
start() { local name=$1 image=$2; shift 2; kubectl run "$name" --image="$image" --port=8080 --image-pull-policy="${pull:-IfNotPresent}" "$@" >/dev/null; }
runs() { start "$@"; kubectl wait --for=condition=Ready "pod/$1" --timeout=60s >/dev/null || fail "$1 is not Ready: $(kubectl describe pod "$1" | tail -n 8)"; }
# refused NAME PATTERN: the pod waits for a missing signature, and an event has the reason
refused() {
  eventually 60 has "^(SignatureValidationFailed|ImagePullBackOff)$" kubectl get pod "$1" -o 'jsonpath={.status.containerStatuses[0].state.waiting.reason}'
  eventually 20 has "image pull failed for .* because the signature validation failed: .*$2" kubectl get events --field-selector "involvedObject.name=$1" -o 'jsonpath={range .items[*]}{.message}{"\n"}{end}'
}
for name in signed signed-index signed-mirrored signed-referrer; do runs "$name" "$R/$name/hello:v1"; done
has "^http /v2/signed/hello/manifests/sha256-[0-9a-f]*.sig.ns=localhost(%3A|:)$tls -" cat "$WORK/requests" || fail "the mirror was not asked for the signature"
! has '^https /v2/signed/' cat "$WORK/requests" || fail "the registry was asked for what its mirror has"
has '^https /v2/signed-mirrored/hello/manifests/sha256-[0-9a-f]*.sig -' cat "$WORK/requests" || fail "a mirror without signatures ended it"
digest=$(kubectl get pod signed -o 'jsonpath={.status.containerStatuses[0].imageID}'); digest=${digest#*@}
runs pinned "$R/signed/other@$digest"
runs free "$R/cncf/hello:v1"
kubectl create secret docker-registry pull --docker-server="$R" --docker-username=robot --docker-password=hush-hush-hush >/dev/null
runs locked "$R/private-signed/hello:v1" '--overrides={"spec":{"imagePullSecrets":[{"name":"pull"}]}}'
has "^https /v2/private-signed/hello/manifests/sha256-[0-9a-f]*.sig Basic " cat "$WORK/requests" || fail "the signature was asked for without the account"
echo "· signed images"

before=$(awk '/VmHWM/ {print $2}' "/proc/$UP_PID/status")
for name in unsigned signed-wrong signed-other signed-endless signed-huge signed-many signed-broken signed-metadata signed-bundle; do start "$name" "$R/$name/hello:v1"; done
start nowhere mirrored.test/signed/hello:v1
refused unsigned "$R/unsigned/hello@sha256:[0-9a-f]{64}: it has no signature \\(no \"sha256-[0-9a-f]{64}.sig\" beside it\\); rule \"$R\" of the node's signature policy wants a signature: .cosign sign --key."
refused signed-wrong 'signed by none of the policy.s keys'
refused signed-other 'its signature is of another image, sha256:'
refused signed-endless 'its signature.s payload has more than 65536 bytes'
refused signed-huge 'its manifest has more than'
refused signed-many 'it has more than 64 signatures'
refused signed-metadata 'its signatures can.t be had: it redirects: addresses of this machine, link-local ones and metadata services'
refused signed-broken 'is no manifest of signatures'
refused signed-bundle 'it has a Sigstore bundle, as cosign writes since version 3, .*cosign sign --new-bundle-format=false --key'
refused nowhere 'rule "default" of the node.s signature policy rejects every image'
! grep -q ' /v2/signed/hello/manifests/v1?ns=mirrored.test' "$WORK/requests" || fail "a registry was asked for what is rejected"
after=$(awk '/VmHWM/ {print $2}' "/proc/$UP_PID/status")
[ $((after - before)) -lt 65536 ] || fail "hostile signatures took $((after - before)) KiB"
kubectl get pod unsigned -o 'jsonpath={.status.containerStatuses[0].state.waiting.message}' > "$WORK/message"
[ "$(kubectl get pods --no-headers -o custom-columns=N:.metadata.name,P:.status.phase | grep -c Running)" = 7 ] || fail "$(kubectl get pods)"
"$CORACLE" push "${SAMPLES_BIN:-sample-workloads/bin}/wordcount.wasm" registry.local/wordcount:v1 --data-dir "$WORK/data" >/dev/null
mounts() { printf '{apiVersion: v1, kind: Pod, metadata: {name: %s}, spec: {restartPolicy: Never, volumes: [{name: v, image: {reference: "%s"}}], containers: [{name: c,
  image: "registry.local/wordcount:v1", args: [/data], volumeMounts: [{name: v, mountPath: /data}]}]}}' "$1" "$2" | kubectl apply -f - >/dev/null; }
mounts volume "$R/signed-data/hello:v1"
kubectl wait --for=jsonpath='{.status.phase}'=Succeeded pod/volume --timeout=60s >/dev/null || fail "a signed volume: $(kubectl describe pod volume | tail -n 8)"
mounts unsigned-volume "$R/artifact/hello:v1"; refused unsigned-volume 'it has no signature'
echo "· unsigned, wrongly signed, hostile signatures; volumes"

get() { exits "$1" "$CORACLE" pull "$R/$2/hello:v1" "$WORK/$2.wasm" --registries "$WORK/registries.yaml" --signature-policy "$WORK/policy.json"; }
get 0 signed; cmp "$WORK/signed.wasm" "${SAMPLES_BIN:-sample-workloads/bin}/hello.wasm"
get 1 signed-wrong; has 'signed by none' cat "$WORK/err" || fail "$(cat "$WORK/err")"
[ ! -e "$WORK/signed-wrong.wasm" ] || fail "an image that is refused left a file"
echo "· coracle pull"

"$CORACLE" image export "$R/cncf/hello:v1" -o "$WORK/free.tar" --data-dir "$WORK/data" >/dev/null
"$CORACLE" image import "$WORK/free.tar" --name "$R/imported/hello:v1" --data-dir "$WORK/data" >/dev/null
pull=Never; start imported "$R/imported/hello:v1"; refused imported 'is on the node, but rule .* was never found met'; unset pull
runs again "$R/signed/hello:v1"
policy wrong
# Present images are verified again by the new rule.
changed() { kubectl delete pod changed --ignore-not-found --wait >/dev/null; start changed "$R/signed/hello:v1"
  eventually 20 has . kubectl get pod changed -o 'jsonpath={.status.containerStatuses[0].state}'; has SignatureValidationFailed kubectl get pod changed -o 'jsonpath={.status.containerStatuses[0].state.waiting.reason}'; }
eventually 60 changed
pull=Never; start never "$R/signed/hello:v1"; refused never 'was never found met'; unset pull
kubectl wait --for=condition=Ready pod/signed --timeout=10s >/dev/null || fail "a pod that runs was harmed"
runs mended "$R/signed-wrong/hello:v1"
printf '{"default": [{"type": "insecureAcceptAnything"' > "$WORK/policy.json"
eventually 20 has 'InvalidSignaturePolicyFile .*policy.json can.t be used, and the previous version stays in effect' kubectl get events -A -o 'jsonpath={range .items[*]}{.reason} {.message}{"\n"}{end}'
start kept "$R/unsigned/hello:v2"; refused kept 'it has no signature'
policy good
eventually 90 kubectl wait --for=condition=Ready pod/changed --timeout=1s
echo "· a policy that changes"
down
printf '{"default": [{"type": "sigstoreSigned", "fulcio": {"oidcIssuer": "x"}, "rekorPublicKeyPath": "r"}]}' > "$WORK/policy.json"
exits 1 "$CORACLE" up --data-dir "$WORK/other" --port 0 --signature-policy "$WORK/policy.json"
has '^[^ ]*.*--signature-policy: .*default\[0\]: .*keyless signatures and transparency logs are not verified here' cat "$WORK/err" || fail "$(cat "$WORK/err")"
expect 1 "$(wc -l < "$WORK/err")" "lines of an error"
echo PASS
