#!/usr/bin/env bash
# Admission from outside: quotas under concurrent creates and their release, pod security, limits, and webhooks with a server and an
# authority of their own.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

up
kubectl create namespace a >/dev/null
eventually 20 kubectl get serviceaccount -n a default

# A quota: twenty concurrent creates, of which five fit; deletions free it.
kubectl create quota -n a five --hard=count/configmaps=6 >/dev/null
eventually 20 has '^1$' kubectl get quota -n a five -o jsonpath='{.status.used.count/configmaps}'
made() { kubectl create configmap -n a "c$1" 2> "$WORK/create-$1" >/dev/null && echo made || echo refused; }
for n in $(seq 20); do made "$n" > "$WORK/made-$n" & made_pids+=($!); done
wait "${made_pids[@]}"
expect 5 "$(cat "$WORK"/made-* | grep -c made)" "of twenty config maps at once"
grep -qF 'exceeded quota: five, requested: count/configmaps=1, used: count/configmaps=6, limited: count/configmaps=6' "$WORK"/create-* || fail "$(cat "$WORK"/create-*)"
kubectl delete configmap -n a "$(kubectl get configmap -n a -o name | grep -m1 /c | cut -d/ -f2)" >/dev/null
eventually 20 kubectl create configmap -n a again

# Pod security and limits.
kubectl label namespace a pod-security.kubernetes.io/enforce=baseline >/dev/null
exits 1 kubectl run -n a --image=i --overrides='{"spec": {"hostNetwork": true}}' bad
grep -qF 'violates PodSecurity "baseline:latest": host namespaces (hostNetwork=true)' "$WORK/err" || fail "$(cat "$WORK/err")"
kubectl apply -f - >/dev/null << 'YAML'
{apiVersion: v1, kind: LimitRange, metadata: {name: l, namespace: a}, spec: {limits: [{type: Container, default: {memory: 64Mi}}]}}
YAML
expect 64Mi "$(kubectl run -n a --image=i --dry-run=server p -o jsonpath='{.spec.containers[0].resources.limits.memory}')" "a container's limit"

# Webhooks over TLS, with a separate authority.
cat > "$WORK/hook.py" << 'PYTHON'
"""hook.py FOLDER: answers AdmissionReviews over TLS on a port of the system's choice, which FOLDER/port names."""
import base64, http.server, json, ssl, sys

FOLDER = sys.argv[1]

class Hook(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["request"]
        answer = {"uid": request["uid"], "allowed": True}
        path = self.path.split("?")[0]
        if path == "/label":
            patch = [{"op": "add", "path": "/metadata/annotations", "value": {"hooked": request["userInfo"]["username"]}}]
            answer |= {"patchType": "JSONPatch", "patch": base64.b64encode(json.dumps(patch).encode()).decode()}
        if path == "/refuse":
            answer |= {"allowed": "refused" not in request["name"], "status": {"message": "not this one"}, "warnings": ["seen"]}
        body = json.dumps({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": answer}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hook)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(f"{FOLDER}/hook.crt", f"{FOLDER}/hook.key")
server.socket = context.wrap_socket(server.socket, server_side=True)
with open(f"{FOLDER}/port", "w") as file:
    file.write(str(server.server_port))
server.serve_forever()
PYTHON
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=hooks -keyout "$WORK/ca.key" -out "$WORK/ca.crt" 2>/dev/null
openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=hook -keyout "$WORK/hook.key" -out "$WORK/hook.csr" 2>/dev/null
openssl x509 -req -in "$WORK/hook.csr" -CA "$WORK/ca.crt" -CAkey "$WORK/ca.key" -CAcreateserial -days 1 -extfile <(echo subjectAltName=IP:127.0.0.1) -out "$WORK/hook.crt" 2>/dev/null
python3 "$WORK/hook.py" "$WORK" & HOOK_PID=$!
trap 'kill $HOOK_PID 2>/dev/null || true; cleanup' EXIT
eventually 10 test -s "$WORK/port"
# hook KIND PATH
hook() {
  cat << YAML
apiVersion: admissionregistration.k8s.io/v1
kind: ${1}WebhookConfiguration
metadata: {name: e2e}
webhooks:
- name: e2e.example.com
  clientConfig: {url: "https://127.0.0.1:$(cat "$WORK/port")$2", caBundle: $(base64 -w0 "$WORK/ca.crt")}
  rules: [{apiGroups: [apps], apiVersions: [v1], operations: [CREATE], resources: [deployments]}]
  namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: a}}
  sideEffects: None
  admissionReviewVersions: [v1]
  timeoutSeconds: 5
YAML
}
hook Mutating /label | kubectl apply -f - >/dev/null
hook Validating /refuse | kubectl apply -f - >/dev/null
kubectl create deployment -n a fine --image=i --replicas=0 2> "$WORK/err" >/dev/null
grep -qx 'Warning: seen' "$WORK/err" || fail "$(cat "$WORK/err")"
expect kubernetes-admin "$(kubectl get deployment -n a fine -o jsonpath='{.metadata.annotations.hooked}')" "what the hook noted"
exits 1 kubectl create deployment -n a refused --image=i
grep -qF 'admission webhook "e2e.example.com" denied the request: not this one' "$WORK/err" || fail "$(cat "$WORK/err")"
kubectl create deployment refused --image=i --replicas=0 >/dev/null
kill $HOOK_PID; wait $HOOK_PID 2>/dev/null || true
exits 1 kubectl create deployment -n a other --image=i
grep -qF 'failed calling webhook "e2e.example.com": failed to call webhook: Post "https://127.0.0.1:' "$WORK/err" || fail "$(cat "$WORK/err")"
kubectl patch mutatingwebhookconfiguration e2e --type=json -p '[{"op": "replace", "path": "/webhooks/0/failurePolicy", "value": "Ignore"}]' >/dev/null
kubectl delete validatingwebhookconfiguration e2e >/dev/null
kubectl create deployment -n a other --image=i --replicas=0 >/dev/null

# Hostile policies and conditions.
python3 tests/e2e/policies.py "$KUBECONFIG" "$UP_PID"
echo "admission: a quota that many run into, pod security, limits, webhooks, hostile policies"
