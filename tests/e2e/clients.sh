#!/usr/bin/env bash
# Host applications in Rust, Python and JavaScript (clients/) call a plugin through its Service while its version changes
# repeatedly: no call is lost. GREET_RS names the built example of clients/rust; without it the example is built here.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
seconds=${SWAP_SECONDS:-10}
if [ -z "${GREET_RS:-}" ]; then
  cargo build --locked --quiet -p coracle-client --example greet
  GREET_RS=${CARGO_TARGET_DIR:-$PWD/target}/debug/examples/greet
fi

up
export CORACLE_DATA_DIR="$WORK/data"
one=${SAMPLES_BIN:-sample-workloads/bin}/greeter.wasm two=$WORK/two.wasm
# Another version: the same functions in other bytes, by a custom section at the end.
{ cat "$one"; printf '\0\4\3two'; } > "$two"
"$CORACLE" push "$one" registry.local/greeter:v1 >/dev/null
"$CORACLE" push "$two" registry.local/greeter:v2 >/dev/null
kubectl apply -f sample-workloads/manifests/greeter.yaml >/dev/null
kubectl patch service greeter -p '{"spec": {"sessionAffinity": "None"}}' >/dev/null
rolled() { kubectl rollout status deployment/greeter --timeout=60s >/dev/null; }
rolled
url=http://$(kubectl get service greeter -o jsonpath='{.spec.clusterIP}')
eventually 20 curl -fsS -m 10 "$url/"
images() { kubectl get pods -l app=greeter -o jsonpath='{range .items[*]}{.status.containerStatuses[0].imageID}{"\n"}{end}' | sort -u; }
before=$(images)

# under_load NAME COMMAND…: swaps versions for as long as the client calls
version=1
under_load() {
  local name=$1 swaps=0 client; shift
  "$@" "$url" "$seconds" > "$WORK/calls" 2> "$WORK/client.err" & client=$!
  while kill -0 $client 2>/dev/null; do
    version=$((3 - version))
    kubectl set image deployment/greeter "greeter=registry.local/greeter:v$version" >/dev/null
    rolled
    swaps=$((swaps + 1))
  done
  wait $client || fail "$name lost a call: $(tail -n 3 "$WORK/client.err")"
  [ "$swaps" -ge 2 ] || fail "$name: $swaps versions in $seconds s"
  [ "$(cat "$WORK/calls")" -ge 200 ] || fail "$name: $(cat "$WORK/calls") calls"
  echo "$name: $(cat "$WORK/calls") calls while the version changed $swaps times"
}
under_load Rust "$GREET_RS"
under_load Python python3 clients/python/greet.py
under_load JavaScript node clients/javascript/greet.mjs
[ $version = 2 ] || { kubectl set image deployment/greeter greeter=registry.local/greeter:v2 >/dev/null; rolled; }
other() { [ "$(images | wc -l)" = 1 ] && [ "$(images)" != "$before" ]; }
eventually 20 other

# Typed clients that `coracle bind` writes: records, results, a resource with its session, and errors.
kubectl patch service greeter -p '{"spec": {"sessionAffinity": "ClientIP"}}' >/dev/null
expect "$WORK/bound/greeter_client.py" "$("$CORACLE" bind deployment/greeter --lang python --out "$WORK/bound")" "the client's file"
"$CORACLE" bind sample-workloads/greeter/wit/world.wit --lang js --out "$WORK/bound" >/dev/null
cat > "$WORK/bound/bound.py" << 'PYTHON'
import sys
from greeter_client import Card, Err, GreeterClient, Language, Ok, Person, PluginError

greeter = GreeterClient(sys.argv[1])
assert greeter.greet("ada") == "hello ada"
card = greeter.introduce(Person(name="ada", language=Language.GERMAN, title="Dr."))
assert card == Card(text="hallo Dr. ada", language=Language.GERMAN, letters=10), card
book = greeter.guest_book("ours")
assert (book.sign("ada"), book.sign(""), book.names()) == (Ok(1), Err("ours wants a name"), ["ada"])
try:
    GreeterClient(sys.argv[1] + "/nowhere").greet("ada")
    sys.exit("a call of nowhere succeeds")
except PluginError as error:
    assert error.status == 404, error
PYTHON
cat > "$WORK/bound/bound.mjs" << 'JS'
import assert from 'node:assert/strict';
import { GreeterClient, PluginError } from './greeter_client.mjs';

const greeter = new GreeterClient(process.argv[2]);
assert.equal(await greeter.greet('ada'), 'hello ada');
const card = await greeter.introduce({ name: 'ada', language: 'german', title: 'Dr.' });
assert.deepEqual(card, { text: 'hallo Dr. ada', language: 'german', letters: 10 });
const book = await greeter.guestBook('ours');
assert.deepEqual([await book.sign('ada'), await book.sign(''), await book.names()], [{ ok: 1 }, { err: 'ours wants a name' }, ['ada']]);
await assert.rejects(new GreeterClient(`${process.argv[2]}/nowhere`).greet('ada'), (error) => error instanceof PluginError && error.status === 404);
JS
for client in "python3 $WORK/bound/bound.py" "node $WORK/bound/bound.mjs"; do
  # shellcheck disable=SC2086
  exits 0 $client "$url"
done
echo 'package a:b; world w { export f: func(' > "$WORK/broken.wit"
exits 1 "$CORACLE" bind "$WORK/broken.wit" --lang js --out "$WORK/bound"
has 'expected' cat "$WORK/err" || fail "broken WIT: $(cat "$WORK/err")"
exits 1 "$CORACLE" bind deployment/none --lang js

# Errors reach the application as errors of its language.
for client in "$GREET_RS" "python3 clients/python/greet.py" "node clients/javascript/greet.mjs"; do
  # shellcheck disable=SC2086
  exits 1 $client "$url/nowhere"
done
down
echo PASS
