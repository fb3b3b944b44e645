#!/usr/bin/env bash
# Traces and logs by OTLP: one trace from a Service through guests' calls, API writes, ids in log lines; a collector that is gone or hangs;
# hostile contexts; nothing without the variables.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
RECORDS=$WORK/records
receiver() {
  rm -f "$WORK/port"
  python3 tests/e2e/otlp.py "$WORK/port" "$RECORDS" & RECEIVER=$!
  eventually 20 test -f "$WORK/port"
}
stop_receiver() { kill "$RECEIVER"; wait "$RECEIVER" 2>/dev/null || true; }
# records EXPRESSION: whether the Python expression over `spans`, `logs` and `traces` (spans by name, of trace TRACE) is true
records() {
  TRACE=${TRACE:-} python3 - "$RECORDS" "$1" <<'PY'
import json, os, sys
records = [json.loads(line) for line in open(sys.argv[1])]
spans = [record for record in records if record["kind"] == "span"]
logs = [record for record in records if record["kind"] == "log"]
trace = [span for span in spans if span["trace"] == os.environ["TRACE"]]
def named(name): return [span for span in trace if span["name"] == name]
def below(parent, name): return [span for span in named(name) if span["parent"] == parent["span"]]
sys.exit(0 if eval(sys.argv[2]) else 1)
PY
}
fresh() { TRACE=$(python3 -c 'import secrets; print(secrets.token_hex(16))'); }
dropped() { kubectl get --raw /metrics | sed -n "s/^coracle_otlp_dropped_total{signal=\"$1\"} //p"; }

receiver
export OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:$(cat "$WORK/port") OTEL_EXPORTER_OTLP_HEADERS=x-token=boat
export OTEL_BSP_SCHEDULE_DELAY=100 OTEL_BLRP_SCHEDULE_DELAY=100 OTEL_BSP_MAX_QUEUE_SIZE=512 OTEL_EXPORTER_OTLP_TIMEOUT=2000 OTEL_RESOURCE_ATTRIBUTES=site=harbour
up --nodes 2 --log-format json --log-level warn,access=debug
for name in hello endless shop-frontend shop-catalog shop-users shop-payments; do
  "$CORACLE" push --data-dir "$WORK/data" "sample-workloads/bin/$name.wasm" "registry.local/$name:v1" >/dev/null
done
kubectl apply -f sample-workloads/manifests/shop.yaml -f sample-workloads/manifests/hello.yaml >/dev/null
sed 's|^      labels: {app: endless}|      annotations: {fuel.coracle.dev/endless: "500000000"}\n&|' sample-workloads/manifests/endless.yaml | kubectl apply -f - >/dev/null
for name in frontend catalog users payments; do kubectl -n shop rollout status "deployment/$name" --timeout=300s >/dev/null; done
for name in hello endless; do kubectl rollout status "deployment/$name" --timeout=300s >/dev/null; done
SHOP=http://127.0.0.1:$(kubectl -n shop get service frontend -o jsonpath='{.spec.ports[0].nodePort}')
HELLO=http://$(kubectl get service hello -o jsonpath='{.spec.clusterIP}') ENDLESS=http://$(kubectl get service endless -o jsonpath='{.spec.clusterIP}')

fresh
order() { curl -fsS -m 20 -X POST -H 'content-type: application/json' -H "traceparent: 00-$TRACE-00f067aa0ba902b7-$1" -H 'tracestate: harbour=1' -d '{"product":"coracle","user":"ada","quantity":1}' "$SHOP/api/orders" >/dev/null; }
order 01
one_trace='[door] = named("POST shop/frontend")
[guest] = below(door, "POST frontend")
calls = below(guest, "GET") + below(guest, "POST")
reached = [(call["attributes"]["server.address"], below(call, "GET " + call["attributes"]["server.address"]) or below(call, "POST " + call["attributes"]["server.address"])) for call in calls]
assert door["parent"] == "00f067aa0ba902b7" and door["spanKind"] == 2 and guest["spanKind"] == 2, door
assert {name for name, _ in reached} >= {"catalog", "users", "payments"}, reached
assert all(len(found) == 1 for name, found in reached if name != "orders"), reached
assert all(call["spanKind"] == 3 and call["attributes"]["coracle.service"].startswith("shop/") for call in calls if call["attributes"]["server.address"] != "orders"), calls
assert door["attributes"]["http.response.status_code"] == 200 and door["attributes"]["coracle.endpoint.node"].startswith("coracle-"), door
assert guest["attributes"]["k8s.pod.name"].startswith("frontend-") and guest["attributes"]["coracle.instance.reused"] is False and guest["attributes"]["coracle.queue.wait_ms"] >= 0, guest
assert all(span["state"] == "harbour=1" and span["token"] == "boat" and span["service"] == "coracle" and span["resource"]["site"] == "harbour" for span in trace), trace
assert all(span["start"] <= span["end"] for span in trace), trace'
holds() { records "exec('''$1''') or True"; }
eventually 30 holds "$one_trace"
echo "· one trace from the Service through the guest to the Services that it calls"
has_logs() { records 'any(log["trace"] == os.environ["TRACE"] and log["span"] and log["severity"] == "DEBUG" for log in logs)'; }
eventually 20 has_logs
line() { grep "\"trace_id\":\"$TRACE\"" "$WORK/up.log" | python3 -c 'import json,sys; line=json.loads(sys.stdin.readline()); assert len(line["span_id"]) == 16 and line["target"] == "access", line'; }
eventually 20 line
echo "· log lines and exported log records have its ids"

fresh; order 00; not_sampled=$TRACE
fresh
code=$(curl -s -m 30 -o /dev/null -w '%{http_code}' -H "traceparent: 00-$TRACE-00f067aa0ba902b7-01" "$ENDLESS/loop")
expect 503 "$code" "a loop that uses up its fuel"
failure='[guest] = [span for span in named("GET endless") if span["attributes"].get("coracle.reason") == "fuel"]
assert guest["failed"] and guest["attributes"]["coracle.fuel.used"] > 0 and guest["attributes"]["http.response.status_code"] == 503, guest'
eventually 20 holds "$failure"
TRACE=$not_sampled; records 'not trace' || fail "a request whose caller does not sample is exported"
echo "· a failed run has its reason and fuel; a caller's decision not to sample is kept"

# A write of an administrator, with its parts; another user's context is only a link.
fresh
pem() { python3 - "$KUBECONFIG" "$1" <<'PY'
import base64, sys, yaml
config = yaml.safe_load(open(sys.argv[1]))
found = {**config["users"][0]["user"], **config["clusters"][0]["cluster"]}
print(found["server"] if sys.argv[2] == "server" else base64.b64decode(found[sys.argv[2]]).decode())
PY
}
for part in client-certificate-data client-key-data certificate-authority-data; do pem "$part" > "$WORK/$part"; done
SERVER=$(pem server)
api() { curl -fsS -m 20 --cacert "$WORK/certificate-authority-data" -H "traceparent: 00-$TRACE-00f067aa0ba902b7-01" -H 'content-type: application/json' "$@"; }
admin() { api --cert "$WORK/client-certificate-data" --key "$WORK/client-key-data" "$@"; }
admin -o /dev/null -d '{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"traced"}}' "$SERVER/api/v1/namespaces/default/configmaps"
write='[request] = named("POST /api/v1/namespaces/{:namespace}/configmaps")
assert request["parent"] == "00f067aa0ba902b7" and request["attributes"]["http.response.status_code"] == 201 and request["attributes"]["k8s.resource"] == "configmaps" and request["attributes"]["audit-id"], request
[commit] = below(request, "store.commit")
assert commit["attributes"]["coracle.store.conflict"] is False and commit["attributes"]["coracle.store.key"].endswith("/configmaps/default/traced"), commit
assert below(request, "admission.mutate") and below(request, "admission.validate"), trace'
eventually 20 holds "$write"
token=$(kubectl create token default)
fresh
exits 22 api -o /dev/null -H "authorization: Bearer $token" "$SERVER/api/v1/namespaces/default/secrets"
linked() { records 'not trace and any(span["links"] == [os.environ["TRACE"]] and span["attributes"]["http.response.status_code"] == 403 for span in spans)'; }
eventually 20 linked
echo "· an API write has its admission and its commit; an unprivileged caller's context is a link"

for parent in '' 00 "ff-$TRACE-00f067aa0ba902b7-01" 00-00000000000000000000000000000000-00f067aa0ba902b7-01 "00-${TRACE^^}-00f067aa0ba902b7-01" "00-$TRACE-00f067aa0ba902b7-01-$(printf 'a%.0s' {1..4000})" "$(printf '0%.0s' {1..8000})"; do
  curl -fsS -m 20 -o /dev/null -H "traceparent: $parent" -H "tracestate: $(printf 'b=%.0s' {1..3000})" "$HELLO/version" || fail "a request with traceparent ${parent:0:80}"
done
for _ in 1 2; do printf 'traceparent: 00-%s-00f067aa0ba902b7-01\n' "$TRACE"; done > "$WORK/twice"
curl -fsS -m 20 -o /dev/null -H @"$WORK/twice" "$HELLO/version"
curl -fsS -m 20 -o /dev/null -X "$(printf 'A%.0s' {1..50})" "$HELLO/version" || true
hostile='roots = [span for span in spans if span["name"] == "GET default/hello" and not span["parent"]]
assert len(roots) >= 8 and not any(span["state"] for span in roots), len(roots)
assert len({span["trace"] for span in roots}) == len(roots) and not trace, trace'
eventually 20 holds "$hostile"
echo "· invalid contexts begin new traces"

touch "$RECORDS.hang"
requests() { local n; for n in $(seq "$1"); do curl -fsS -m 5 -o /dev/null "$HELLO/version" || fail "request $n with $2"; done; }
requests 400 "a collector that hangs"
some_dropped() { [ "$(dropped traces)" -gt 0 ]; }
eventually 60 some_dropped
rss() { awk '/^VmRSS/ {print $2}' "/proc/$UP_PID/status"; }
before=$(rss)
requests 400 "a collector that hangs"
[ $(($(rss) - before)) -lt 40000 ] || fail "memory grows from $before to $(rss) kB while the collector hangs"
rm "$RECORDS.hang"
# The first traces after it may still find a full queue.
traced() { local n; fresh; order 01; for n in 1 2 3 4 5 6; do ! holds "$one_trace" 2>/dev/null || return 0; sleep 0.5; done; return 1; }
eventually 90 traced
echo "· a collector that hangs delays nothing; spans are dropped, counted, and exported again after it"

stop_receiver
requests 100 "a collector that is gone"
echo "· neither does one that is gone"
stops() { local began=$SECONDS; down; [ $((SECONDS - began)) -le 5 ] || fail "with $1, the stop took $((SECONDS - began)) s"; }
stops "a collector that is gone"

receiver
export OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:$(cat "$WORK/port")
touch "$RECORDS.hang"
up --nodes 1
stops "a collector that hangs"
rm "$RECORDS.hang"

# What is queued at a stop is sent.
export OTEL_BSP_SCHEDULE_DELAY=3600000
up --nodes 1
kubectl rollout status deployment/hello --timeout=300s >/dev/null
served() { curl -fsS -m 5 -o /dev/null "$HELLO/version"; }
eventually 60 served
fresh
curl -fsS -m 20 -o /dev/null -H "traceparent: 00-$TRACE-00f067aa0ba902b7-01" "$HELLO/version"
records 'not trace' || fail "a batch is sent before its time"
down
records 'named("GET default/hello") and named("GET hello")' || fail "the last batch is not sent at the stop"
echo "· a stop sends the last batch, and waits for no collector"

OTEL_TRACES_SAMPLER=xray exits 2 "$CORACLE" up --data-dir "$WORK/data" --port 0
has 'OTEL_TRACES_SAMPLER=xray is not supported: set one of always_on' cat "$WORK/err" || fail "$(cat "$WORK/err")"
unset "${!OTEL_@}"
up --nodes 1
threads() { cat /proc/"$UP_PID"/task/*/comm; }
! has otlp threads || fail "a thread exports without variables"
down
stop_receiver
echo PASS
