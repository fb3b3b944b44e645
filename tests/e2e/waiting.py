"""waiting.py HOST:PORT NEIGHBOUR DELETE…: clients that ask for what never gets a pod, in numbers, with bodies that never end, or that
leave. All others get a 503 with a text that gives the reason, the neighbour answers meanwhile, and when the command DELETE has removed
the Service, no client waits any more. A client that leaves waits for 5 s: its end looks like that of its sending half."""
import asyncio
import collections
import re
import subprocess
import sys
import time
import urllib.request

WAITING, ASKED, AT_ONCE = 600, 10_000, 100
# A bound on a hang: the flood takes 20 s on a quiet machine.
SECONDS = 700
# The proxy's own deadline, in seconds: on a slow machine it may expire before the Service is deleted.
LATE = 60
TEXTS = {
    "too many": r"too many requests wait for its first pod already; try again later",
    "removed": r"it was removed while the request waited for a pod",
    "late": r"within 60 s: its pods don't become ready \(kubectl -n default get hpa,pods,events says why\)",
    "nobody": r"no endpoint is ready for service default/never port 80$",
    "switched off": r"no autoscaler starts a pod for it any more",
}
host, port = sys.argv[1].split(":")
neighbour, delete = sys.argv[2], sys.argv[3:]


async def answer(reader):
    """The status line and the body of a response."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(re.search(rb"content-length: *(\d+)", head, re.I).group(1))
    return head.decode(), (await reader.readexactly(length)).decode().strip()


def named(head, text):
    assert head.startswith("HTTP/1.1 503 "), head
    assert re.search(r"^coracle-reason: no-endpoint\r?$", head, re.I | re.M), head
    for name, pattern in TEXTS.items():
        if re.search(pattern, text):
            return name
    raise AssertionError(f"a text that nobody documents: {text}")


async def one(kind, ends):
    try:
        reader, writer = await asyncio.open_connection(host, port)
    except ConnectionRefusedError:
        # The kernel connected a second time, and the Service was gone by then.
        return ends.update(["removed"])
    try:
        if kind == "endless":
            writer.write(b"POST / HTTP/1.1\r\nhost: never\r\ncontent-length: 1099511627776\r\n\r\n" + b"x" * 65536)
        else:
            writer.write(b"GET / HTTP/1.1\r\nhost: never\r\n\r\n")
        if kind == "leaves":
            return ends.update(["left"])
        try:
            ends.update([named(*await answer(reader))])
        except (ConnectionResetError, asyncio.IncompleteReadError):
            # A response to an unread body may be lost with it.
            assert kind == "endless"
            ends.update(["too many"])
    finally:
        writer.close()


async def many(count, ends, kept):
    """Repeats requests over one connection until one has to wait: then over another. A waiting request takes the slot of a
    disconnected client, so that all slots are in use soon, and the flood ends."""
    reader = writer = None
    for _ in range(count):
        if writer is None:
            reader, writer = await asyncio.open_connection(host, port)
        writer.write(b"GET / HTTP/1.1\r\nhost: never\r\n\r\n")
        answered = asyncio.create_task(answer(reader))
        await asyncio.wait([answered], timeout=1)
        if answered.done():
            ends.update([named(*answered.result())])
        else:
            kept.append(asyncio.create_task(stays(answered, writer, ends)))
            writer = None
    if writer is not None:
        writer.close()


async def stays(answered, writer, ends):
    ends.update([named(*await answered)])
    writer.close()


def ask_neighbour():
    with urllib.request.urlopen(f"http://{neighbour}/", timeout=240) as response:
        assert response.status == 200


async def main():
    ends, flood, kept = collections.Counter(), collections.Counter(), []
    began = time.monotonic()
    kinds = ["plain", "endless", "leaves"]
    waiting = [asyncio.create_task(one(kinds[n % 3], ends)) for n in range(WAITING)]
    while ends["too many"] == 0:
        await asyncio.sleep(0.05)
    floods = [asyncio.create_task(many(ASKED // AT_ONCE, flood, kept)) for _ in range(AT_ONCE)]
    for _ in range(5):
        await asyncio.to_thread(ask_neighbour)
    await asyncio.gather(*floods)
    early = time.monotonic() - began < LATE / 2
    await asyncio.to_thread(subprocess.run, delete, check=True, stdout=subprocess.DEVNULL)
    await asyncio.gather(*waiting, *kept)
    assert ends["removed"] or not early, (ends, flood)
    assert sum(ends.values()) == WAITING and sum(flood.values()) == ASKED, (ends, flood)
    await asyncio.to_thread(ask_neighbour)
    print("waiting:", dict(ends), "flood:", dict(flood), file=sys.stderr)


asyncio.run(asyncio.wait_for(main(), SECONDS))
