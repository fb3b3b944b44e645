"""WebSocket clients of pods/exec: v4 and v5, and clients that are slow, flood or disconnect."""
import base64, json, os, subprocess, sys, time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from websocket import WITHIN_S, WebSocket, expect

POD = sys.argv[1]


def client_of(pod, query, protocol):
    return WebSocket(f"/api/v1/namespaces/default/pods/{pod}/exec?{query}", protocol)


def query(*command, stdin=False, stdout=True, stderr=True, tty=False, container="box"):
    flags = {"stdin": stdin, "stdout": stdout, "stderr": stderr, "tty": tty}
    words = "".join("&command=" + "".join(f"%{b:02x}" for b in word.encode()) for word in command)
    return f"container={container}" + "".join(f"&{name}=true" for name, on in flags.items() if on) + words


def exec_(*command, protocol="v5.channel.k8s.io", **more):
    return client_of(POD, query(*command, **more), protocol)


def said(client):
    """All data, by channel, and the status of channel 3."""
    channels = {}
    for message in client.messages():
        channels[message[0]] = channels.get(message[0], b"") + message[1:]
    return channels, json.loads(channels.get(3, b"{}"))


def shows(client, wanted):
    """The terminal's next output is exactly this."""
    shown = ""
    for message in client.messages():
        expect(1, message[0], f"the channel of {message!r}")
        shown += message[1:].decode()
        if shown == wanted:
            return
        expect(True, wanted.startswith(shown), f"{wanted!r} on the terminal, which shows {shown!r}")
    expect(wanted, shown, "what the terminal shows until it ends")


for protocol in ("v5.channel.k8s.io", "v4.channel.k8s.io"):
    channels, status = said(exec_("sh", "-c", "echo out; echo err >&2; exit 3", protocol=protocol))
    expect((b"out\n", b"err\n"), (channels[1], channels[2]), f"{protocol}: outputs")
    expect(("Failure", "NonZeroExitCode", [{"reason": "ExitCode", "message": "3"}]), (status["status"], status["reason"], status["details"]["causes"]), f"{protocol}: status")
    expect({"metadata": {}, "status": "Success"}, said(exec_("true", protocol=protocol))[1], f"{protocol}: success")

# Before v4 a session ends with a message, or with nothing on success; a client without a protocol gets that version.
for protocol in ("channel.k8s.io", ""):
    client = exec_("sh", "-c", "echo out; exit 3", protocol=protocol)
    expect(protocol != "", "sec-websocket-protocol: channel.k8s.io" in client.head.lower(), f"{protocol!r} in the handshake")
    channels = [(message[0], message[1:]) for message in client.messages() if message[1:]]
    expect([(1, b"out\n"), (3, b"command terminated with non-zero exit code: exit status 3")], channels, f"{protocol!r}: outputs and end")
    expect([], [message for message in exec_("true", protocol=protocol).messages() if message[1:]], f"{protocol!r}: success")

# /tmp belongs to the sessions, for the container's lifetime.
expect("Success", said(exec_("sh", "-c", "mkdir /tmp/d && echo kept > /tmp/d/note"))[1]["status"], "a write to /tmp")
expect((b"kept\n", "Success"), ((r := said(exec_("cat", "/tmp/d/note")))[0].get(1), r[1]["status"]), "the next session finds it")
print("· /tmp")

# v5 signals the end of stdin: cat ends by it.
client = exec_("cat", stdin=True)
client.send(b"\0hello ")
client.send(b"\0world")
client.send(b"\xff\0")
channels, status = said(client)
expect((b"hello world", "Success"), (channels[1], status["status"]), "the end of stdin")
print("· v4 and v5")

for asked, code, says in (
    (query("true", stdout=False, stderr=False), 400, "you must specify at least 1 of stdin, stdout, stderr"),
    (query(), 400, "you must specify at least 1 command"),
    (query("true", container="nobody"), 400, f"container nobody is not valid for pod {POD}"),
    (query("x" * 3000), 101, ""),
):
    client = client_of(POD, asked, "v5.channel.k8s.io")
    expect((code, True), (client.code, says in client.body), f"{asked}: {client.body!r}")
expect((404, True), ((c := client_of("nobody", query("true"), "v5.channel.k8s.io")).code, "not found" in c.body), "no such pod")
expect(400, client_of(POD, query("true"), "v9.channel.k8s.io").code, "an unknown subprotocol")
print("· what is refused")

# A log over a WebSocket: an empty message first, then the lines; with `follow` until the client disconnects.
for protocol in ("binary.k8s.io", ""):
    client = WebSocket("/api/v1/namespaces/default/pods/talker/log?container=box", protocol)
    expect((101, [b"", b"said at once\n"]), (client.code, list(client.messages())), f"a log by {protocol!r}")
client = WebSocket("/api/v1/namespaces/default/pods/talker/log", "base64.binary.k8s.io")
expect((101, [b"", base64.b64encode(b"said at once\n")]), (client.code, list(client.messages())), "a log in base64")
client = WebSocket("/api/v1/namespaces/default/pods/talker/log?follow=true", "binary.k8s.io")
messages = client.messages()
expect([b"", b"said at once\n"], [next(messages), next(messages)], "a log that is followed")
client.send(b"", op=8)
expect([], list(messages), "the end that the client wants")
expect(400, WebSocket("/api/v1/namespaces/default/pods/talker/log", "v4.channel.k8s.io").code, "a log by another subprotocol")
expect(404, WebSocket("/api/v1/namespaces/default/pods/nobody/log", "binary.k8s.io").code, "a log of no pod")
print("· logs over WebSockets")

# A watch over a WebSocket, as browsers and Headlamp's server have it: each event is a text message. Messages of the client are ignored.
watched = "/api/v1/namespaces/default/pods?watch=true&fieldSelector=metadata.name%3Dtalker"
for protocol in ("base64.binary.k8s.io", ""):
    client = WebSocket(f"{watched}&timeoutSeconds=2", protocol)
    expect((101, protocol != ""), (client.code, "sec-websocket-protocol: base64.binary.k8s.io" in client.head.lower()), "the handshake of a watch")
    client.send(b"more", op=1)
    events = [json.loads(message) for message in client.messages()]
    expect(("ADDED", "talker", 1), (events[0]["type"], events[0]["object"]["metadata"]["name"], client.opcode), "the first event")
client = WebSocket(watched, None)
messages = client.messages()
expect("ADDED", json.loads(next(messages))["type"], "an endless watch")
client.send(b"", op=8)
expect([], list(messages), "the end of a watch that the client wants")
expect(404, WebSocket("/api/v1/namespaces/default/nothings?watch=true", None).code, "a watch of no kind")
expect(400, WebSocket(watched, "v4.channel.k8s.io").code, "a watch by another subprotocol")
print("· watches over WebSockets")

# A terminal: echo, erase, CRLF, ^D; ^C is the shell's while it reads, and ends the command otherwise.
client = exec_("sh", stdin=True, tty=True, stderr=False)
client.send(b"\x04{\"Width\":80,\"Height\":24}")
shows(client, "/ # ")
# The typed input, and the terminal's complete output for it.
for typed, wanted in (("echo onf\x7fe\r", "echo onf\x08 \x08e\r\none\r\n/ # "), ("nothing\x03", "nothing^C\r\n/ # "),
                      ("echo runs; sleep 1000\r", "echo runs; sleep 1000\r\nruns\r\n"), ("\x03", "^C\r\n/ # "), ("echo $?\r", "echo $?\r\n130\r\n/ # "),
                      ("while true; do x=1; done\r", "while true; do x=1; done\r\n"), ("\x03", "^C\r\n/ # "), ("echo $?\r", "echo $?\r\n130\r\n/ # "),
                      ("sleep 1000\r\x03", "sleep 1000\r\n^C\r\n/ # "), ("echo $?\r", "echo $?\r\n130\r\n/ # ")):
    client.send(b"\0" + typed.encode())
    shows(client, wanted)
client.send(b"\0exit 4\r")
channels, status = said(client)
expect("4", status["details"]["causes"][0]["message"], "the shell's end")
client = exec_("cat", stdin=True, tty=True, stderr=False)
client.send(b"\0a\r\x04")
expect((b"a\r\na\r\n", "Success"), ((r := said(client))[0][1], r[1]["status"]), "^D")
client = exec_("sh", "-c", "while true; do :; done", stdin=True, tty=True, stderr=False)
client.send(b"\0\x03")
client.send(b"\0\x03")
expect("130", said(client)[1]["details"]["causes"][0]["message"], "^C of what does not read")
print("· terminals")

# A browser's token is one of the subprotocols.
def kubectl(*words):
    return subprocess.run(["kubectl", *words], check=True, capture_output=True, text=True, timeout=60).stdout.strip()


kubectl("create", "serviceaccount", "browser")
kubectl("create", "clusterrolebinding", "browser", "--clusterrole=edit", "--serviceaccount=default:browser")
token = kubectl("create", "token", "browser")
path = f"/api/v1/namespaces/default/pods/{POD}/exec?{query('echo', 'hello')}"
client = WebSocket(path, "v5.channel.k8s.io", token=token)
expect((101, False), (client.code, "bearer" in client.head), "a session by token, whose subprotocol isn't chosen")
expect(b"hello\n", said(client)[0][1], "its output")
for protocol, wrong, why in [("v5.channel.k8s.io", token[:-8], "another token"), ("", token, "a token without another subprotocol")]:
    expect(401, WebSocket(path, protocol, token=wrong).code, why)
print("· a token as subprotocol")

# A client that pauses its reads: the guest waits, and no output is lost.
client = exec_("seq", "300000")
client.fills()
channels, status = said(client)
expect("".join(f"{n}\n" for n in range(1, 300001)).encode() == channels[1], True, "a slow reader's bytes")
expect("Success", status["status"], "a slow reader's status")
# A client that never reads has its slot until it disconnects, and no longer.
floods = []
while True:
    client = exec_("sh", "-c", "while true; do echo flood; done")
    if client.code != 101:
        break
    floods.append(client)
    expect(True, len(floods) < 100, "sessions are bounded")
expect((429, 16, True), (client.code, len(floods), "as many as it may" in client.body), f"one session too many: {client.body!r}")
expect(("Status", "TooManyRequests"), ((status := json.loads(client.body))["kind"], status["reason"]), "a refusal is a Status")
refused = subprocess.run(["kubectl", "exec", POD, "--", "true"], capture_output=True, text=True, timeout=60)
wanted = f"error: unable to upgrade connection: {status['message']}"
expect((1, wanted), (refused.returncode, refused.stderr.strip().splitlines()[-1]), "kubectl shows why a session is refused")
for client in floods:
    client.socket.close()
    client.file.close()
began = time.monotonic()
while (client := exec_("true")).code != 101:
    expect(True, time.monotonic() - began < WITHIN_S, "places come back when clients go")
    time.sleep(0.1)
expect("Success", said(client)[1]["status"], "a session after the flood")
print("· slow readers and floods")
