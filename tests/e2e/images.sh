#!/usr/bin/env bash
# Images of foreign registries: layouts, TLS with a private CA, passwords and tokens, mirrors, access to images, and hostile ones.
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
mkdir "$WORK/providers"; : > "$WORK/calls"
cat > "$WORK/providers/gives" <<'SH'
#!/bin/sh
read -r request
echo "$1 $request" >> "$CALLS"
user='{"username":"robot","password":"'$SECRET'"}'
echo '{"apiVersion":"credentialprovider.kubelet.k8s.io/v1","kind":"CredentialProviderResponse","cacheKeyType":"Image","auth":{"'"$WHERE"'":'"$user"',"docker.io":'"$user"'}}'
SH
printf '#!/bin/sh\nsleep 600 & wait\n' > "$WORK/providers/hangs"
printf '#!/bin/sh\necho %s\n' "hush-garbage" > "$WORK/providers/babbles"
cat > "$WORK/providers/knows" <<'PY'
#!/usr/bin/env python3
import base64, json, os, sys
request = json.load(sys.stdin)
part = request["serviceAccountToken"].split(".")[1]
claims = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
with open(os.environ["CALLS"], "a") as calls:
    print("knows", request["image"], claims["sub"], ",".join(claims["aud"]), claims["kubernetes.io"]["pod"]["name"], json.dumps(request["serviceAccountAnnotations"]), file=calls)
print(json.dumps({"apiVersion": request["apiVersion"], "kind": "CredentialProviderResponse", "cacheKeyType": "Registry",
                  "auth": {os.environ["WHERE"]: {"username": "robot", "password": os.environ["SECRET"]}}}))
PY
chmod +x "$WORK"/providers/*
provider() { echo "{name: $1, apiVersion: credentialprovider.kubelet.k8s.io/v1, matchImages: [$2], defaultCacheDuration: 10m, $3}"; }
cat > "$WORK/providers.yaml" <<YAML
apiVersion: kubelet.config.k8s.io/v1
kind: CredentialProviderConfig
providers:
- $(provider gives "'*:$tls/private-given', '*:$tls/private-late', docker.io, registry.local" "args: [get], env: [{name: CALLS, value: $WORK/calls}, {name: WHERE, value: 'localhost:$tls'}, {name: SECRET, value: hush-hush-hush}]")
- $(provider hangs "'localhost:$tls/private-late'" "args: []")
- $(provider babbles "'localhost:$tls/private-given'" "args: []")
- $(provider knows "'localhost:$tls/private-account'" "env: [{name: CALLS, value: $WORK/calls}, {name: WHERE, value: 'localhost:$tls'}, {name: SECRET, value: hush-hush-hush}],
     tokenAttributes: {serviceAccountTokenAudience: registry.test, cacheType: ServiceAccount, requireServiceAccount: true, requiredServiceAccountAnnotationKeys: [registry.test/role]}")
YAML
providers=(--image-credential-provider-config "$WORK/providers.yaml" --image-credential-provider-bin-dir "$WORK/providers")
up --registries "$WORK/registries.yaml" "${providers[@]}"
R=localhost:$tls
PASSWORD=hush-hush-hush

# runs NAME IMAGE [ARGUMENTS…]: a pod of it becomes Ready
runs() { start "$@"; kubectl wait --for=condition=Ready "pod/$1" --timeout=60s "${ns[@]}" >/dev/null || fail "$1 is not Ready: $(kubectl get events "${ns[@]}" 2>&1 | tail -5)"; }
start() { local name=$1 image=$2; shift 2; kubectl run "$name" --image="$image" --port=8080 --image-pull-policy="${policy:-IfNotPresent}" "${ns[@]}" "$@" >/dev/null; }
# refused NAME REASON PATTERN: the pod waits for that reason, and an event has the cause
refused() {
  eventually 60 has "^($2|ImagePullBackOff)$" kubectl get pod "$1" "${ns[@]}" -o 'jsonpath={.status.containerStatuses[0].state.waiting.reason}'
  eventually 20 has "$3" kubectl get events "${ns[@]}" --field-selector "involvedObject.name=$1" -o 'jsonpath={range .items[*]}{.message}{"\n"}{end}'
}
ns=()

# Slow registries, in a separate namespace: later steps don't wait for them.
kubectl create namespace slow >/dev/null
eventually 20 kubectl get serviceaccount default -n slow
ns=(-n slow)
for evil in drip drip-manifest silent; do start "evil-$evil" "127.0.0.1:$plain/evil-$evil/hello:v1"; done
start late "$R/private-late/hello:v1"
ns=()
for layout in cncf scratch compat index spin wash zstd; do runs "$layout" "$R/$layout/hello:v1"; done
expect "localhost:$tls/index/hello" "$(kubectl get pod index -o 'jsonpath={.status.containerStatuses[0].imageID}' | cut -d@ -f1)" "imageID"
eventually 10 has 'Successfully pulled image "localhost:[0-9]+/cncf/hello:v1" in .*s \(.*s including waiting\). Image size: [0-9]+ bytes.' kubectl get events
start linux "$R/linux/hello:v1"; refused linux ErrImagePull 'linux/amd64.*deploy your own module'
start none "$R/cncf/none@sha256:$(printf '0%.0s' {1..64})"; refused none ErrImagePull 'digest|not found'
start closed "127.0.0.1:1/x:v1"; refused closed ErrImagePull 'registries'
start untrusted "127.0.0.1:$tls/cncf/hello:v1"; refused untrusted RegistryUnavailable 'registry is unavailable.*certificate'
for fault in busy broken reset cut; do start "fault-$fault" "$R/fault-$fault/hello:v1"; done
runs many "$R/many/hello:v1"
for command in count /bin/count.wasm; do
  exits 1 kubectl exec many -- "$command"
  has 'usage: wordcount' cat "$WORK/err" || fail "another command of the image, as $command: $(cat "$WORK/err")"
done
exits 127 kubectl exec many -- /count.wasm
has 'no such file|not found' cat "$WORK/err" || fail "what is not there: $(cat "$WORK/err")"
# Files beside the module are the container's root folder: read-only, below the mounts.
for layout in files spin-files spin-archive; do
  runs "$layout" "$R/$layout/hello:v1"
  expect "a b c d e f g" "$(kubectl exec "$layout" -- cat /texts/one) $(kubectl exec "$layout" -- cat /texts/two)" "files of $layout"
done
exits 1 kubectl exec files -- sh -c 'echo x > /texts/one'; has 'Permission denied' cat "$WORK/err" || fail "writing to an image: $(cat "$WORK/err")"
printf '{apiVersion: v1, kind: Pod, metadata: {name: over}, spec: {volumes: [{name: v, emptyDir: {}}], containers: [{name: c, image: "%s", volumeMounts: [{name: v, mountPath: /texts/new}]}]}}' \
  "$R/files/hello:v1" | kubectl apply -f - >/dev/null
kubectl wait --for=condition=Ready pod/over --timeout=60s >/dev/null
kubectl exec over -- sh -c 'echo mine > /texts/new/file'
expect mine "$(kubectl exec over -- cat /texts/new/file)" "a volume within an image's files"
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
runs given "$R/private-given/hello:v1"
policy=Always; runs given-again "$R/private-given/hello:v1"; unset policy
kubectl create namespace third >/dev/null
eventually 20 kubectl get serviceaccount default -n third
ns=(-n third); policy=Never; runs of-everybody "$R/private-given/hello:v1"; unset policy; ns=()
expect 1 "$(grep -c "private-given" "$WORK/calls")" "calls of a provider whose answer holds"
has "^get .*\"apiVersion\":\"credentialprovider.kubelet.k8s.io/v1\"" cat "$WORK/calls" && has "\"image\":\"$R/private-given/hello\"" cat "$WORK/calls" || fail "what a provider is told: $(cat "$WORK/calls")"
has 'babbles.*error reading GVK from response' cat "$WORK/up.log" || has 'error reading GVK from response.*babbles' cat "$WORK/up.log" || fail "a provider's garbage is not in the log"
echo "· passwords, tokens, ServiceAccounts, credential providers; whose image is whose"

# A provider that gets the pod's ServiceAccount: with its opt-in, as far as nodes may request that audience.
start account-none "$R/private-account/hello:v1"; refused account-none ErrImagePull 'pull access denied'
! has '^knows' cat "$WORK/calls" || fail "a provider was asked for who didn't opt in"
kubectl annotate serviceaccount default registry.test/role=puller registry.test/other=x >/dev/null
start account-early "$R/private-account/hello:v1"; refused account-early ErrImagePull 'pull access denied'
has 'audience .*registry.test.* not found in pod spec volume.* is not authorized to request tokens for this audience' cat "$WORK/up.log" || fail "the log doesn't say that nodes may not ask for that audience"
kubectl create -f - >/dev/null <<'YAML'
apiVersion: v1
kind: List
items:
- {apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRole, metadata: {name: registry-tokens}, rules: [{apiGroups: [""], resources: [registry.test], verbs: [request-serviceaccounts-token-audience]}]}
- {apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRoleBinding, metadata: {name: registry-tokens}, roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: registry-tokens},
   subjects: [{apiGroup: rbac.authorization.k8s.io, kind: Group, name: "system:nodes"}]}
YAML
kubectl delete pod account-none account-early >/dev/null
runs account "$R/private-account/hello:v1"
policy=Always; runs account-again "$R/private-account/hello:v1"
policy=Never; runs account-there "$R/private-account/hello:v1"
expect "knows $R/private-account/hello system:serviceaccount:default:default registry.test account {\"registry.test/role\": \"puller\"}" "$(grep ^knows "$WORK/calls")" "what a provider is told of a ServiceAccount, once"
ns=(-n third); start account-never "$R/private-account/hello:v1"; unset policy
eventually 30 has '^ErrImageNeverPull$' kubectl get pod account-never -n third -o 'jsonpath={.status.containerStatuses[0].state.waiting.reason}'
start account-other "$R/private-account/hello:v1"; refused account-other ErrImagePull 'pull access denied'
ns=()
echo "· a provider that knows ServiceAccounts"

"$CORACLE" push "${SAMPLES_BIN:-sample-workloads/bin}/wordcount.wasm" registry.local/wordcount:v1 --data-dir "$WORK/data" >/dev/null
# mounts NAME VOLUMES MOUNTS [MORE]: a pod that counts the files and words of /data
mounts() { printf '{apiVersion: v1, kind: Pod, metadata: {name: %s}, spec: {restartPolicy: Never, %s volumes: [%s], containers: [{name: count,
  image: "registry.local/wordcount:v1", args: [/data], volumeMounts: [%s]}]}}' "$1" "${4:-}" "$2" "$3" | kubectl apply -f - >/dev/null; }
of() { echo "{name: ${3:-data}, image: {reference: \"$1\", pullPolicy: ${2:-IfNotPresent}}}"; }
at='{name: data, mountPath: /data'
counted() {
  kubectl wait --for=jsonpath='{.status.phase}'=Succeeded "pod/$1" --timeout=60s >/dev/null || fail "$1: $(kubectl describe pod "$1" | tail -n 12)"
  kubectl logs "$1" | python3 -c 'import json,sys; d=json.loads(sys.stdin.read()); print(d["files"], d["words"])'
}
mounts image "$(of "$R/data/hello:v1")" "$at}"; expect "2 7" "$(counted image)" "layers of gzip and zstd, with a whiteout"
mounts artifact "$(of "$R/artifact/hello:v1" Always)" "$at}"; expect "1 3" "$(counted artifact)" "an artifact's file"
mounts folder "$(of "$R/data/hello:v1" Never)" "$at, subPath: texts}"; expect "2 7" "$(counted folder)" "a folder of an image"
mounts file "$(of "$R/data/hello:v1")" '{name: data, mountPath: /data/only.txt, subPath: texts/two}'; expect "1 4" "$(counted file)" "a file of an image"
mounts two "$(of "$R/data/hello:v1"), $(of "$R/artifact/hello:v1" Never other)" "$at}, {name: other, mountPath: /data/more}"
expect "2 7" "$(counted two)" "two images"
mounts locked "$(of "$R/private-data/hello:v1")" "$at}" 'imagePullSecrets: [{name: pull}],'; expect "2 7" "$(counted locked)" "an image that wants a password"
expect "data /data true" "$(kubectl get pod image -o 'jsonpath={.status.containerStatuses[0].volumeMounts[0].name} {.status.containerStatuses[0].volumeMounts[0].mountPath} {.status.containerStatuses[0].volumeMounts[0].readOnly}')" "the mount's status"
mounts unused "$(of "$R/data/none@sha256:$(printf '0%.0s' {1..64})" IfNotPresent other), {name: data, emptyDir: {}}" "$at}"; expect "0 0" "$(counted unused)" "an image that nobody mounts"
mounts missing "$(of "$R/data/none@sha256:$(printf '0%.0s' {1..64})")" "$at}"; refused missing ErrImagePull 'Failed to pull image "localhost:[0-9]+/data/none@'
mounts denied "$(of "$R/private-data/hello:v1")" "$at}"; refused denied ErrImagePull 'pull access denied'
mounts escape "$(of "$R/evil-escape/hello:v1")" "$at}"; refused escape ErrImagePull 'leads out of the image'
mounts absent "$(of "$R/artifact/none:v1" Never)" "$at}"
eventually 30 has '^ErrImageNeverPull$' kubectl get pod absent -o 'jsonpath={.status.containerStatuses[0].state.waiting.reason}'
mounts nowhere "$(of "$R/data/hello:v1")" "$at, subPath: none}"
eventually 30 has '^CreateContainerError ImageVolumeMountFailed' kubectl get pod nowhere -o 'jsonpath={.status.containerStatuses[0].state.waiting.reason} {.status.containerStatuses[0].state.waiting.message}'
if kubectl run bad --image=x --overrides='{"spec":{"volumes":[{"name":"v","image":{"pullPolicy":"Often"}}]}}' 2> "$WORK/err"; then fail "a volume of no image was taken"; fi
has 'volumes\[0\].image.reference: Required' cat "$WORK/err" && has 'image.pullPolicy: Unsupported value: "Often"' cat "$WORK/err" || fail "$(cat "$WORK/err")"
printf '{apiVersion: v1, kind: Pod, metadata: {name: reads}, spec: {volumes: [%s], containers: [{name: c, image: "%s", volumeMounts: [%s}]}]}}' \
  "$(of "$R/data/hello:v1")" "$R/cncf/hello:v1" "$at" | kubectl apply -f - >/dev/null
kubectl wait --for=condition=Ready pod/reads --timeout=60s >/dev/null
expect "a b c" "$(kubectl exec reads -- cat /data/texts/one)" "a file in a running pod"
if kubectl exec reads -- sh -c 'echo x > /data/texts/one' 2>/dev/null; then fail "an image was written to"; fi
expect "a b c" "$(kubectl exec reads -- cat /data/texts/one)" "a file that nobody may write"
[ "$(ls "$WORK/data/images/trees" | grep -vc -- -run)" = 2 ] || fail "folders of images: $(ls "$WORK/data/images/trees")"
echo "· volumes that are images"

listed() { "$CORACLE" image ls -o json --data-dir "$WORK/data" | python3 -c 'import json,sys
for image in json.load(sys.stdin): print(image["name"], image["kind"], image["inUse"])'; }
image() { exits "$1" "$CORACLE" image "${@:2}" --data-dir "$WORK/data"; }
has "^$R/cncf/hello:v1 module True$" listed || fail "image ls: $(listed)"
has "^$R/data/hello:v1 volume True$" listed || fail "image ls: $(listed)"
image 0 ls; has "^IMAGE  .*LAST USED$" cat "$WORK/out" && has "^$R/cncf/hello:v1  .* module   yes .* in use$" cat "$WORK/out" || fail "image ls: $(cat "$WORK/out")"
CORACLE_OUTPUT=$WORK/by-env.tar image 0 ls; has "^IMAGE " cat "$WORK/out" || fail "CORACLE_OUTPUT changes image ls: $(cat "$WORK/out")"
CORACLE_FORMAT=json image 0 ls; has '^\[' cat "$WORK/out" || fail "CORACLE_FORMAT changes nothing: $(cat "$WORK/out")"
CORACLE_OUTPUT=$WORK/by-env.tar image 0 export "$R/cncf/hello:v1"; [ -s "$WORK/by-env.tar" ] || fail "CORACLE_OUTPUT is no file of image export"
# A pipe is written to, and remains one: so do devices.
mkfifo "$WORK/pipe"; cat "$WORK/pipe" > "$WORK/piped.tar" & piped=$!
image 0 export "$R/cncf/hello:v1" -o "$WORK/pipe"; wait "$piped"
[ -p "$WORK/pipe" ] || fail "a pipe was replaced by a file"
cmp "$WORK/by-env.tar" "$WORK/piped.tar" || fail "an image through a pipe"
image 1 import "$WORK"; has "cannot import $WORK: .*directory" cat "$WORK/err" || fail "a folder as an archive: $(cat "$WORK/err")"
image 1 rm "$R/cncf/hello:v1" none:v1
expect 1 "$(wc -l < "$WORK/err")" "lines of an error"
has "hello:v1 is in use: remove the pods.*docker.io/library/none:v1 is not on this node: .coracle image ls." cat "$WORK/err" || fail "$(cat "$WORK/err")"
for form in "$R/zstd/hello:v1" "$R/data/hello:v1" "$R/index/hello:v1"; do
  image 0 export "$form" -o "$WORK/out.tar"
  has '"layers"' skopeo inspect --raw "oci-archive:$WORK/out.tar" || fail "skopeo can't read the export of $form"
  [ "$(skopeo inspect "oci-archive:$WORK/out.tar" --format '{{.Digest}}' 2>"$WORK/err")" != "" ] || fail "skopeo: $(cat "$WORK/err")"
done
kubectl delete pod zstd --wait >/dev/null
image 0 export "$R/zstd/hello:v1" -o "$WORK/zstd.tar"
image 0 rm "$R/zstd/hello:v1"; has '^localhost:.*/zstd/hello:v1 removed \(.* came free\)$' cat "$WORK/out" || fail "$(cat "$WORK/out")"
! has "/zstd/hello" listed || fail "what was removed is there"
image 1 export "$R/zstd/hello:v1" -o "$WORK/none.tar"; [ ! -e "$WORK/none.tar" ] || fail "a failed export left a file"
image 0 import "$WORK/zstd.tar"; has "^$R/zstd/hello:v1 \(module\)$" cat "$WORK/out" || fail "import: $(cat "$WORK/out")"
CORACLE_NAME=Not/One image 0 import "$WORK/out.tar" --reference brought.test/in:v1
policy=Never; runs imported "$R/zstd/hello:v1"; runs brought brought.test/in:v1; unset policy
image 0 export "$R/scratch/hello:v1" -o "$WORK/scratch.tar"
skopeo copy -q --insecure-policy "oci-archive:$WORK/scratch.tar" "docker-archive:$WORK/docker.tar:saved.test/hello:v1" 2>"$WORK/err" || fail "skopeo: $(cat "$WORK/err")"
image 0 import "$WORK/docker.tar"; policy=Never; runs saved saved.test/hello:v1; unset policy
head -c 5000 "$WORK/zstd.tar" > "$WORK/half.tar"; image 1 import "$WORK/half.tar"
image 1 import "$0"; has 'cannot import .*images.sh' cat "$WORK/err" || fail "$(cat "$WORK/err")"
expect 401 "$(curl -s -o /dev/null -w '%{http_code}' "http://$REGISTRY/_coracle/images")" "images are told to nobody unknown"
echo "· images listed, removed, taken out and brought in"

for fault in busy broken reset cut; do
  kubectl wait --for=condition=Ready "pod/fault-$fault" --timeout=90s >/dev/null || fail "fault-$fault doesn't get over it: $(kubectl describe pod "fault-$fault" | tail -n 8)"
done
before=$(awk '/VmHWM/ {print $2}' "/proc/$UP_PID/status")
for evil in realm echo manifest redirect metadata digest blob bomb; do start "evil-$evil" "127.0.0.1:$plain/evil-$evil/hello:v1" "$(with plain)"; done
start evil-plain "$R/evil-realm/hello:v1"; refused evil-plain ErrImagePull 'its token realm has no TLS'
start evil-down "$R/evil-redirect/hello:v1"; refused evil-down ErrImagePull 'redirects to an address without TLS'
refused evil-realm ErrImagePull 'token realm is refused'
refused evil-echo ErrImagePull 'pull access denied'
refused evil-manifest ErrImagePull 'its manifest has more than'
refused evil-redirect ErrImagePull 'it redirects: addresses of this machine'
refused evil-metadata ErrImagePull 'it redirects: addresses of this machine, link-local ones and metadata services'
refused evil-digest ErrImagePull 'another blob'
refused evil-blob ErrImagePull 'another blob'
refused evil-bomb 'ErrImagePull|InspectFailed' '512 MiB|536870912|unpack'
after=$(awk '/VmHWM/ {print $2}' "/proc/$UP_PID/status")
[ $((after - before)) -lt 102400 ] || fail "hostile registries took $((after - before)) KiB"
runs neighbour "$R/cncf/hello:v2"
runs elsewhere "127.0.0.1:$plain/private-elsewhere/hello:v1" "$(with plain)"
has '^http /v2/private-elsewhere/hello/blobs/sha256:[0-9a-f]* Basic ' cat "$WORK/requests" && has '^https /v2/elsewhere/hello/blobs/sha256:[0-9a-f]* -$' cat "$WORK/requests" || fail "a redirect was not followed without the account"
! has '^https /v2/elsewhere/.* Basic' cat "$WORK/requests" || fail "the account went to another origin"
printf '{"auths": {"127.0.0.1:%s": {"username": "robot", "password": "%s"}}}' "$plain" "$PASSWORD" > "$WORK/config.json"
exits 1 env DOCKER_CONFIG="$WORK" "$CORACLE" pull "127.0.0.1:$plain/evil-echo/hello:v1" "$WORK/evil.wasm" --registries "$WORK/registries.yaml"
has 'pull access denied' cat "$WORK/err" && ! grep -q hush "$WORK/err" || fail "coracle pull tells an account: $(cat "$WORK/err")"
ns=(-n slow)
refused evil-drip ErrImagePull 'its blob comes with less than 8192 bytes a second'
kubectl wait --for=condition=Ready pod/late -n slow --timeout=90s >/dev/null || fail "a provider that hangs keeps the pull: $(kubectl describe pod late -n slow | tail -n 8)"
has 'not finished within 60 s' cat "$WORK/up.log" || fail "a provider that hangs is not in the log"
! has 'registry.local' cat "$WORK/calls" || fail "a provider was asked for the cluster's own registry"
has 'docker.io/cncf/hello' cat "$WORK/calls" || fail "a provider was not asked for an image of a mirror"
refused evil-drip-manifest 'ErrImagePull|RegistryUnavailable' 'its manifest takes more than 30 s'
ns=()
kubectl get --raw /api/v1/nodes/coracle-1/proxy/metrics > "$WORK/metrics"
metric() { has "^$1 [1-9]" cat "$WORK/metrics" || fail "no $1: $(grep -E '^kubelet_(image|credential)' "$WORK/metrics")"; }
metric 'kubelet_credential_provider_plugin_duration_count\{plugin_name="gives"\}'
metric 'kubelet_credential_provider_plugin_duration_bucket\{plugin_name="knows",le="10"\}'
metric 'kubelet_credential_provider_plugin_errors_total\{plugin_name="hangs"\}'
! grep -q 'plugin_errors_total{plugin_name="gives"}' "$WORK/metrics" || fail "a provider that answers has errors"
metric 'kubelet_credential_provider_config_info\{hash="sha256:[0-9a-f]{64}"\}'
for what in requested mounted_succeed mounted_errors; do metric "kubelet_image_volume_${what}_total"; done
metric 'kubelet_image_pull_duration_seconds_count\{image_size_in_bytes="0-10MB"\}'
for told in "$(kubectl get events,pods -A -o yaml)" "$(cat "$WORK/up.log")" "$(cat "$WORK"/data/images/images/*.json)" "$(cat "$WORK/metrics")" "$(listed)$("$CORACLE" image ls --data-dir "$WORK/data")" \
  "$(kubectl get --raw /api/v1/nodes/coracle-1/proxy/pods)" "$(tar -xOf "$WORK/out.tar" index.json)"; do
  if grep -Eq "hush|eyJ[A-Za-z0-9_-]{30}|wrong-wrong|$(printf 'robot:%s' "$PASSWORD" | base64)" <<< "$told"; then fail "an account is told"; fi
done
echo "· hostile registries"

good=$(cat "$WORK/registries.yaml")
printf 'mirrors: {quay.io: {endpoint: [half' > "$WORK/registries.yaml"
eventually 20 has 'InvalidRegistriesFile .*registries.yaml can.t be used, and the previous version stays in effect' kubectl get events -A -o 'jsonpath={range .items[*]}{.reason} {.message}{"\n"}{end}'
has 'cannot be used; the previous version stays in effect' cat "$WORK/up.log" || fail "the log doesn't say what is wrong with the file"
runs kept "$R/cncf/hello:v3"
start renewed 127.0.0.1:2/cncf/hello:v1; refused renewed ErrImagePull 'registries'
sed "s|^mirrors:|mirrors:\n  \"127.0.0.1:2\":\n    endpoint: [\"http://127.0.0.1:$plain\"]|" <<< "$good" > "$WORK/new.yaml"
mv "$WORK/new.yaml" "$WORK/registries.yaml"
eventually 30 has '^http /v2/cncf/hello/manifests/v1\?ns=127.0.0.1(%3A|:)2 -$' cat "$WORK/requests"
kubectl wait --for=condition=Ready pod/renewed --timeout=120s >/dev/null || fail "a new mirror is not asked: $(kubectl describe pod renewed | tail -n 8)"
echo "· a file of registries that changes"
down
printf 'mirrors: {a.io: {endpoint: ["http://b"], rewrite: {}}}\n' > "$WORK/registries.yaml"
exits 1 "$CORACLE" up --data-dir "$WORK/other" --port 0 --registries "$WORK/registries.yaml"
has rewrite cat "$WORK/err" || fail "what is wrong with the file: $(cat "$WORK/err")"
exits 2 "$CORACLE" up --data-dir "$WORK/other" --port 0 "${providers[@]:0:2}"
sed -i 's/args: \[get\]/args: [get], tokenAttributes: {serviceAccountTokenAudience: a, requireServiceAccount: true}/' "$WORK/providers.yaml"
exits 1 "$CORACLE" up --data-dir "$WORK/other" --port 0 "${providers[@]}"
has 'image-credential-provider-config: failed to validate .*providers.tokenAttributes.cacheType: Required value' cat "$WORK/err" || fail "what is wrong with the file: $(cat "$WORK/err")"
echo PASS
