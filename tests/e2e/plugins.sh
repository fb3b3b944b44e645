#!/usr/bin/env bash
# Plugins from outside: the commands of docs/plugins.md, then errors, limits, sessions and a new version under load.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

section() { awk -v from="## $1" '$0 == from {on = 1; next} /^## / {on = 0} on' docs/plugins.md | awk '/^```console/ {on = 1; next} /^```/ {on = 0} on'; }
five=$(section 'Five minutes') sessions=$(section 'Sessions') state=$(section 'State and settings') programs=$(section 'From a program')
[ -n "$five" ] && [ -n "$sessions" ] && [ -n "$state" ] && [ -n "$programs" ] || fail "docs/plugins.md has no commands"

up
mkdir -p "$WORK/bin" && ln -sf "$CORACLE" "$WORK/bin/coracle"
export PATH="$WORK/bin:$PATH" CORACLE_DATA_DIR="$WORK/data"
# Unchanged, except for PATH and the folder of this run; curl fails if a call does.
curl() { command curl -fsS "$@" && echo; }
page() { eval "$(grep -v '^export ' <<< "$1")"; }
cd "$WORK"; ln -s "$OLDPWD/sample-workloads" "$OLDPWD/clients" .
page "$five" > "$WORK/said"
for line in '"hello ada"' '{"text":"bonjour ada","language":"french","letters":10}' '{text: "hallo Dr. ada", language: german, letters: 10}' '  export coracle:samples/greeter;'; do
  grep -qxF -- "$line" "$WORK/said" || fail "docs/plugins.md promises $line"
done
page "$sessions" > "$WORK/said"
grep -qxF '["ada"]' "$WORK/said" || fail "a guest book in its session: $(cat "$WORK/said")"
page "$state" > "$WORK/said"
for line in 'ok(1)' 'ok(2)'; do grep -qxF "$line" "$WORK/said" || fail "kept in calls: $(cat "$WORK/said")"; done
page "$programs" > "$WORK/said"
expect "1 1" "$(xargs < "$WORK/said")" "programs that call once"
cd "$OLDPWD"
unset -f curl

url=http://$(kubectl get service greeter -o jsonpath='{.spec.clusterIP}')
status() { curl -s -m 20 -D "$WORK/head" -o "$WORK/body" -w '%{http_code}' "$@"; }
expect 400 "$(status "$url/coracle:samples/greeter/greet" -d '{"name": 1}')" "a wrong argument"
expect '{"error":"argument \"name\": wanted string, found a number"}' "$(cat "$WORK/body")" "what is wrong"
expect 404 "$(status "$url/coracle:samples/greeter/none" -d '{}')" "no such function"
expect 405 "$(status "$url/coracle:samples/greeter/greet")" "a GET of a function"
head -c 5000000 /dev/zero > "$WORK/zeros"
expect 413 "$(status "$url/coracle:samples/greeter/greet" --data-binary "@$WORK/zeros")" "a body of 5 MB"
curl -fsS "$url/openapi.json" | python3 -c 'import json,sys; d=json.load(sys.stdin); assert d["openapi"]=="3.1.0" and len(d["paths"])==5, d'
eventually 10 has 'greet ada' kubectl logs -l app=greeter --tail=-1

# `coracle call`, through the API server.
expect '"hello ada"' "$("$CORACLE" call deployment/greeter greet '"ada"')" "coracle call"
expect '{text: "hallo ada", language: german, letters: 8}' \
  "$("$CORACLE" call -n default service/greeter coracle:samples/greeter/introduce '{name: "ada", language: german}')" "coracle call of a Service"
pod=$(kubectl get pods -l app=greeter -o jsonpath='{.items[0].metadata.name}')
expect '"guest-book-1"' "$("$CORACLE" call "pod/$pod" --session ours guest-book '"ours"')" "a resource"
expect 'ok(1)' "$("$CORACLE" call "pod/$pod" --session ours guest-book.sign '"guest-book-1"' '"ada"')" "a resource in its session"
exits 0 "$CORACLE" call "pod/$pod" guest-book '"theirs"'
grep -qE '^session [0-9a-f]{32}$' "$WORK/err" || fail "the session is not told"
for wrong in "deployment/greeter greet 1" "deployment/greeter none" "pod/none greet" "service/none greet"; do
  # shellcheck disable=SC2086
  exits 1 "$CORACLE" call $wrong
  expect 1 "$(wc -l < "$WORK/err")" "lines of an error of call $wrong"
done
exits 1 "$CORACLE" call deployment/greeter greet 1
grep -qF 'argument "name": wanted string, found 1' "$WORK/err" || fail "what is wrong is not named: $(cat "$WORK/err")"
exits 2 "$CORACLE" call job/greeter greet

# A pod's limits hold for a call.
kubectl create deployment starved --image=registry.local/greeter:v1 --port=80 --dry-run=client -o json |
  python3 -c 'import json,sys; d=json.load(sys.stdin); d["spec"]["template"]["metadata"]["annotations"]={"fuel.coracle.dev/greeter": "10"}; json.dump(d, sys.stdout)' |
  kubectl apply -f - >/dev/null
kubectl expose deployment starved --port=80 >/dev/null
kubectl rollout status deployment/starved --timeout=30s >/dev/null
starved=http://$(kubectl get service starved -o jsonpath='{.spec.clusterIP}')
answers() { [ "$(status "$starved/")" = 200 ]; }
eventually 10 answers
expect 503 "$(status "$starved/coracle:samples/greeter/greet" -d '{"name": "ada"}')" "a call without fuel"
grep -qi '^coracle-reason: fuel' "$WORK/head" || fail "no reason: $(cat "$WORK/head")"

# A new version under load: no call is lost.
kubectl patch service greeter -p '{"spec": {"sessionAffinity": "None"}}' >/dev/null
python3 - "$url" > "$WORK/load" << 'PYTHON' & load=$!
import json, sys, urllib.request
from concurrent.futures import ThreadPoolExecutor
def call(n):
    body = json.dumps({"name": f"n{n}"}).encode()
    with urllib.request.urlopen(sys.argv[1] + "/coracle:samples/greeter/greet", body, timeout=20) as answer:
        assert json.load(answer) == f"hello n{n}"
with ThreadPoolExecutor(4) as pool:
    print(len(list(pool.map(call, range(3000)))))
PYTHON
kubectl rollout restart deployment/greeter >/dev/null
kubectl rollout status deployment/greeter --timeout=60s >/dev/null
wait $load || fail "a call was lost while the version changed"
expect 3000 "$(cat "$WORK/load")" "calls under load"
# A module without exports reports why it does not run.
printf '\0asm\r\0\1\0' > "$WORK/empty.wasm"
"$CORACLE" push "$WORK/empty.wasm" registry.local/empty:v1 >/dev/null
kubectl create deployment empty --image=registry.local/empty:v1 >/dev/null
waiting() { has 'exports nothing' kubectl get pods -l app=empty -o jsonpath='{.items[0].status.containerStatuses[0].state.waiting.message}'; }
eventually 20 waiting
down
echo PASS
