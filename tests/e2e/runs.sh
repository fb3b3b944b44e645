#!/usr/bin/env bash
# `coracle run`: from a file to an address, and with --dev from a change of the file to its response.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
bin=${SAMPLES_BIN:-sample-workloads/bin}
cp "$bin/hello.wasm" "$WORK/My_App.wasm"
run() { "$CORACLE" run --data-dir "$WORK/data" "$@"; }

exits 1 run "$WORK/My_App.wasm"
has 'start one with' cat "$WORK/err" || fail "no cluster: $(cat "$WORK/err")"
up
exits 0 run "$WORK/My_App.wasm" --replicas 2
address=$(head -n 1 "$WORK/out")
[[ $address =~ ^http://127\.0\.0\.1:[0-9]+/$ ]] || fail "the address: $address"
has '^hello from my-app-' curl -sS -m 10 "$address" || fail "no answer at $address"
expect "2 2" "$(kubectl get deployment my-app -o 'jsonpath={.status.readyReplicas} {.spec.replicas}')" "replicas"
exits 0 run "$WORK/My_App.wasm" --port 9090 --name my-app
has ':9090/ ' cat "$WORK/out" || fail "another port: $(cat "$WORK/out")"
echo text > "$WORK/text.wasm"
exits 1 run "$WORK/text.wasm"
has 'asm' cat "$WORK/err" || fail "no module: $(cat "$WORK/err")"
exits 1 run "$WORK/none.wasm"
exits 1 "$CORACLE" inspect "$WORK/none" --data-dir "$WORK/data"
has "cannot read $WORK/none; give the path" cat "$WORK/err" || fail "a path that is not there: $(cat "$WORK/err")"
kubectl create service clusterip somebodys --tcp=80 >/dev/null
exits 1 run "$WORK/My_App.wasm" --name somebodys
has 'there is a Service' cat "$WORK/err" || fail "somebody's Service: $(cat "$WORK/err")"
expect "" "$(kubectl get deployment somebodys --ignore-not-found)" "a Deployment beside somebody's Service"
exits 2 run "$WORK/My_App.wasm" --name Not_A_Label
kubectl create deployment mine --image=registry.local/my-app:run >/dev/null
exits 1 run "$WORK/My_App.wasm" --name mine
has 'give another name' cat "$WORK/err" || fail "somebody's Deployment: $(cat "$WORK/err")"
echo "· run"

"$CORACLE" run --data-dir "$WORK/data" "$WORK/My_App.wasm" --name dev --port 7070 --dev --keep > "$WORK/dev" 2> "$WORK/dev-err" & DEV_PID=$!
trap 'kill "$DEV_PID" 2>/dev/null || true; cleanup' EXIT
eventually 60 grep -q '^http://' "$WORK/dev"
address=$(sed -n 's/^\(http:.*\)$/\1/p' "$WORK/dev" | head -n 1)
has '^hello from dev-' curl -sS -m 10 "$address" || fail "no answer at $address"
# Another module, replaced as a linker does; then an invalid one, which changes nothing; then the first one again.
python3 - "$address" "$WORK" "$bin" <<'PY'
import os, shutil, sys, time, urllib.error, urllib.request
address, work, bin = sys.argv[1:]
def answer():
    try:
        with urllib.request.urlopen(address, timeout=5) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, ""
    except OSError:
        return 0, ""
def told():
    with open(f"{work}/dev") as file: return sum(" serves " in line for line in file)
def until(condition, what):
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > 30: sys.exit(f"{what}: {answer()}")
        time.sleep(0.02)
    return time.monotonic() - began
def change(name, wanted):
    before = told()
    shutil.copy(name, f"{work}/next"); os.rename(f"{work}/next", f"{work}/My_App.wasm")
    took = until(lambda: wanted(answer()), "a change is not served")
    # Until then both respond, the old one and this one.
    until(lambda: told() > before, "a change is not said to be served")
    return took
times = []
# A first compilation takes as long as it takes.
change(f"{bin}/trap.wasm", lambda got: got[0] == 200 and "hello from" not in got[1])
change(f"{bin}/hello.wasm", lambda got: got[1].startswith("hello from dev-"))
for _ in range(3):
    times.append(change(f"{bin}/trap.wasm", lambda got: got[0] == 200 and "hello from" not in got[1]))
    times.append(change(f"{bin}/hello.wasm", lambda got: got[1].startswith("hello from dev-")))
with open(f"{work}/My_App.wasm", "w") as file: file.write("half a module")
print("  a change serves after " + ", ".join(f"{seconds * 1000:.0f}" for seconds in times) + " ms")
if sorted(times)[len(times) // 2] > 1: sys.exit("a change takes more than a second")
PY
eventually 20 grep -q 'runs on' "$WORK/dev-err"
has '^hello from dev-' curl -sS -m 10 "$address" || fail "half a module took the place of a whole one"
# A failing command replaces no server: the server still responds.
cp "$bin/crash.wasm" "$WORK/next"; mv "$WORK/next" "$WORK/My_App.wasm"
eventually 60 grep -q 'does not run: .*runs on' "$WORK/dev-err"
has '^hello from dev-' curl -sS -m 10 "$address" || fail "a command that fails took the place of a server"
# A path that is no file is reported, and blocks nothing.
mkfifo "$WORK/next"; mv "$WORK/next" "$WORK/My_App.wasm"
eventually 20 grep -q 'it is no file' "$WORK/dev-err"
rm "$WORK/My_App.wasm"
eventually 20 grep -q 'No such file' "$WORK/dev-err"
kill -INT "$DEV_PID"; wait "$DEV_PID" || fail "a stopped run is no failure"
eventually 20 has "^1$" kubectl get deployment dev -o "jsonpath={.status.readyReplicas}" # what runs goes on
echo "· run --dev"
down
echo PASS
