"""The cases of chat.py, after Autobahn's test suite (its client and server behaviour by RFC 6455): what is sent, and what an echo sends back."""
import dataclasses, struct

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
MASK = b"\x37\xfa\x21\x3d"
MAX = 1 << 20


def frame(opcode, payload=b"", final=True, reserved=0, mask=MASK):
    head = bytes([final << 7 | reserved << 4 | opcode])
    length = len(payload)
    if length < 126:
        head += bytes([0x80 | length])
    elif length < 1 << 16:
        head += b"\xfe" + struct.pack(">H", length)
    else:
        head += b"\xff" + struct.pack(">Q", length)
    stream = int.from_bytes((mask * (length // 4 + 1))[:length], "big") ^ int.from_bytes(payload, "big")
    return head + mask + stream.to_bytes(length, "big")


def fragments(opcode, pieces):
    last = len(pieces) - 1
    return [frame(CONTINUATION if at else opcode, piece, final=at == last) for at, piece in enumerate(pieces)]


def cut(data, size):
    return [data[at:at + size] for at in range(0, len(data), size)] or [b""]


def close(code, reason=b""):
    return frame(CLOSE, struct.pack(">H", code) + reason)


@dataclasses.dataclass
class Case:
    name: str
    sends: list
    # Frames of the server before its close frame.
    receives: list
    # The code of its close frame; None for a close frame without one.
    code: int | None = 1000
    # Bytes of a write; None: all at once.
    piece: int | None = None
    # The message isn't complete: the server has to fail before its end.
    fails_fast: bool = False
    # The client closes after what it has received.
    sends_close: bool = False


def echoes(name, sends, receives, piece=None):
    return Case(name, sends, receives, piece=piece, sends_close=True)


def fails(name, sends, receives=(), code=1002, piece=None, fast=False):
    return Case(name, sends, list(receives), code, piece, fast)


def echo_cases():
    """1: messages. 2: pings and pongs."""
    for section, opcode, fill in [("1.1", TEXT, b"*"), ("1.2", BINARY, b"\xfe")]:
        for at, length in enumerate([0, 125, 126, 127, 128, 65535, 65536], 1):
            yield echoes(f"{section}.{at}", [frame(opcode, fill * length)], [(opcode, fill * length)])
        yield echoes(f"{section}.8", [frame(opcode, fill * 65536)], [(opcode, fill * 65536)], 997)
    for name, payload, piece in [("2.1", b"", None), ("2.2", b"Hello, world!", None), ("2.3", b"\x00\xff\xfe\xfd\xfc\xfb\x00\xff", None), ("2.4", b"\xfe" * 125, None), ("2.6", b"\xfe" * 125, 1)]:
        yield echoes(name, [frame(PING, payload)], [(PONG, payload)], piece)
    yield fails("2.5", [frame(PING, b"\xfe" * 126)])
    yield echoes("2.7", [frame(PONG)], [])
    yield echoes("2.8", [frame(PONG, b"unsolicited pong payload")], [])
    yield echoes("2.9", [frame(PONG, b"unsolicited"), frame(PING, b"ping payload")], [(PONG, b"ping payload")])
    payloads = [b"payload-%d" % at for at in range(10)]
    for name, piece in [("2.10", None), ("2.11", 1)]:
        yield echoes(name, [frame(PING, payload) for payload in payloads], [(PONG, payload) for payload in payloads], piece)


def reserved_cases():
    """3: reserved bits. 4: reserved opcodes."""
    hello, again = b"Hello, world!", (TEXT, b"Hello, world!")
    yield fails("3.1", [frame(TEXT, hello, reserved=1)])
    for name, reserved, piece in [("3.2", 2, None), ("3.3", 3, 32), ("3.4", 4, 1)]:
        yield fails(name, [frame(TEXT, hello), frame(TEXT, hello, reserved=reserved), frame(PING)], [again], piece=piece)
    yield fails("3.5", [frame(BINARY, b"\x00\xff\xfe", reserved=5)])
    yield fails("3.6", [frame(PING, hello, reserved=6)])
    yield fails("3.7", [frame(CLOSE, reserved=7)])
    for section, first in [("4.1", 3), ("4.2", 11)]:
        for at in range(5):
            bad = frame(first + at, hello if at % 2 else b"")
            sends = [bad] if at < 2 else [frame(TEXT, hello), bad, frame(PING)]
            yield fails(f"{section}.{at + 1}", sends, [] if at < 2 else [again], piece=1 if at == 4 else None)


def fragment_cases():
    """5: fragments, and control frames between them."""
    yield fails("5.1", fragments(PING, [b"fragment1", b"fragment2"]))
    yield fails("5.2", fragments(PONG, [b"fragment1", b"fragment2"]))
    two = fragments(TEXT, [b"fragment1", b"fragment2"])
    whole = (TEXT, b"fragment1fragment2")
    for name, piece in [("5.3", None), ("5.4", 15), ("5.5", 1)]:
        yield echoes(name, two, [whole], piece)
    for name, piece in [("5.6", None), ("5.7", 15), ("5.8", 1)]:
        yield echoes(name, [two[0], frame(PING, b"ping"), two[1]], [(PONG, b"ping"), whole], piece)
    for first, final in [(9, True), (12, False)]:
        for at, piece in enumerate([None, 15, 1]):
            yield fails(f"5.{first + at}", [frame(CONTINUATION, b"non-continuation", final), frame(TEXT, b"Hello")], piece=piece)
    yield fails("5.15", [*two, frame(CONTINUATION, b"fragment3", False), frame(TEXT, b"fragment4")], [whole])
    for name, final in [("5.16", False), ("5.17", True)]:
        yield fails(name, [frame(CONTINUATION, b"fragment1", final), frame(TEXT, b"fragment2", False), frame(CONTINUATION, b"fragment3")])
    yield fails("5.18", [frame(TEXT, b"fragment1", False), frame(TEXT, b"fragment2")])
    five = fragments(TEXT, [b"fragment%d" % at for at in range(5)])
    for name, piece in [("5.19", None), ("5.20", 1)]:
        sends = [*five[:2], frame(PING, b"ping1"), *five[2:4], frame(PING, b"ping2"), five[4]]
        yield echoes(name, sends, [(PONG, b"ping1"), (PONG, b"ping2"), (TEXT, b"".join(b"fragment%d" % at for at in range(5)))], piece)


def text_cases():
    """6: UTF-8. Python's decoder says which sequences are valid."""
    yield echoes("6.1.1", [frame(TEXT)], [(TEXT, b"")])
    yield echoes("6.1.2", fragments(TEXT, [b"", b"", b""]), [(TEXT, b"")])
    yield echoes("6.1.3", fragments(TEXT, [b"", b"middle frame payload", b""]), [(TEXT, b"middle frame payload")])
    text = "Hello-µ@ßöäüàá-UTF-8!!".encode()
    yield echoes("6.2.1", [frame(TEXT, text)], [(TEXT, text)])
    yield echoes("6.2.2", fragments(TEXT, ["Hello-µ@ßöä".encode(), "üàá-UTF-8!!".encode()]), [(TEXT, text)])
    yield echoes("6.2.3", fragments(TEXT, cut(text, 1)), [(TEXT, text)])
    kosme = "κόσμε".encode()
    yield echoes("6.2.4", fragments(TEXT, cut(kosme, 1)), [(TEXT, kosme)])
    broken = kosme + b"\xed\xa0\x80" + b"edited"
    yield fails("6.3.1", [frame(TEXT, broken)], code=1007)
    yield fails("6.3.2", fragments(TEXT, cut(broken, 1)), code=1007)
    # The server fails at once: the rest isn't sent.
    beyond = "κόσμε".encode() + b"\xf4\x90"
    yield fails("6.4.1", [frame(TEXT, kosme, False), frame(CONTINUATION, b"\xf4\x90\x80\x80", False)], code=1007, fast=True)
    yield fails("6.4.2", [frame(TEXT, kosme + b"\xf4", False), frame(CONTINUATION, b"\x90", False)], code=1007, fast=True)
    for name, rest in [("6.4.3", b"\x80\x80edited"), ("6.4.4", b"\x80")]:
        yield fails(name, [frame(TEXT, beyond + rest)[:6 + len(beyond)]], code=1007, fast=True)
    sections = {
        5: ["κόσμε".encode(), b"hello$world", "hello¢world".encode(), "hello€world".encode(), "hello𤭢world".encode()],
        6: [kosme[:length] for length in range(1, len(kosme) + 1)],
        7: [b"\x00", b"\xc2\x80", b"\xe0\xa0\x80", b"\xf0\x90\x80\x80"],
        8: [b"\xf8\x88\x80\x80\x80", b"\xfc\x84\x80\x80\x80\x80"],
        9: [b"\x7f", b"\xdf\xbf", b"\xef\xbf\xbf", b"\xf4\x8f\xbf\xbf"],
        10: [b"\xf7\xbf\xbf\xbf", b"\xfb\xbf\xbf\xbf\xbf", b"\xfd\xbf\xbf\xbf\xbf\xbf"],
        11: [b"\xed\x9f\xbf", b"\xee\x80\x80", b"\xef\xbf\xbd", b"\xf4\x8f\xbf\xbf", b"\xf4\x90\x80\x80"],
        12: [b"\x80", b"\xbf", *(b"\x80\xbf" * length for length in (1, 2, 3)), b"\x80\xbf\x80", b"\x80\xbf\x80\xbf\x80", bytes(range(0x80, 0xC0))],
        13: [b" ".join(bytes([byte]) for byte in span) + b" " for span in (range(0xC0, 0xE0), range(0xE0, 0xF0), range(0xF0, 0xF8), range(0xF8, 0xFC), range(0xFC, 0xFE))],
        14: [b"\xc0", b"\xe0\x80", b"\xf0\x80\x80", b"\xf8\x80\x80\x80", b"\xfc\x80\x80\x80\x80", b"\xdf", b"\xef\xbf", b"\xf7\xbf\xbf", b"\xfb\xbf\xbf\xbf", b"\xfd\xbf\xbf\xbf\xbf"],
        15: [b"\xc0\xe0\x80\xf0\x80\x80\xf8\x80\x80\x80\xfc\x80\x80\x80\x80\xdf\xef\xbf\xf7\xbf\xbf\xfb\xbf\xbf\xbf\xfd\xbf\xbf\xbf\xbf"],
        16: [b"\xfe", b"\xff", b"\xfe\xfe\xff\xff"],
        17: [b"\xc0\xaf", b"\xe0\x80\xaf", b"\xf0\x80\x80\xaf", b"\xf8\x80\x80\x80\xaf", b"\xfc\x80\x80\x80\x80\xaf"],
        18: [b"\xc1\xbf", b"\xe0\x9f\xbf", b"\xf0\x8f\xbf\xbf", b"\xf8\x87\xbf\xbf\xbf", b"\xfc\x83\xbf\xbf\xbf\xbf"],
        19: [b"\xc0\x80", b"\xe0\x80\x80", b"\xf0\x80\x80\x80", b"\xf8\x80\x80\x80\x80", b"\xfc\x80\x80\x80\x80\x80"],
        20: [b"\xed\xa0\x80", b"\xed\xad\xbf", b"\xed\xae\x80", b"\xed\xaf\xbf", b"\xed\xb0\x80", b"\xed\xbe\x80", b"\xed\xbf\xbf"],
        21: [high + low for high in (b"\xed\xa0\x80", b"\xed\xad\xbf", b"\xed\xae\x80", b"\xed\xaf\xbf") for low in (b"\xed\xb0\x80", b"\xed\xbf\xbf")],
        22: [chr(plane << 16 | last).encode() for plane in range(17) for last in (0xFFFE, 0xFFFF)],
        23: [chr(last).encode() for last in range(0xFFF9, 0x10000)],
    }
    for section, sequences in sections.items():
        for at, sequence in enumerate(sequences, 1):
            try:
                sequence.decode()
                yield echoes(f"6.{section}.{at}", [frame(TEXT, sequence)], [(TEXT, sequence)])
            except UnicodeDecodeError:
                yield fails(f"6.{section}.{at}", [frame(TEXT, sequence)], code=1007)


def close_cases():
    """7: close frames."""
    hello, again = frame(TEXT, b"Hello World!"), (TEXT, b"Hello World!")
    yield Case("7.1.1", [hello, close(1000)], [again])
    yield Case("7.1.2", [close(1000), close(1000)], [])
    yield Case("7.1.3", [close(1000), frame(PING)], [])
    yield Case("7.1.4", [close(1000), hello], [])
    yield Case("7.1.5", [frame(TEXT, b"fragment1", False), close(1000), frame(CONTINUATION, b"fragment2")], [])
    long = b"BAsd7&jh23" * (256 * 1024 // 10)
    yield Case("7.1.6", [frame(TEXT, long), close(1000), frame(PING)], [(TEXT, long)])
    yield Case("7.3.1", [frame(CLOSE)], [], None)
    yield fails("7.3.2", [frame(CLOSE, b"a")])
    yield Case("7.3.3", [close(1000)], [])
    yield Case("7.3.4", [close(1000, b"Hello World!")], [])
    yield Case("7.3.5", [close(1000, b"*" * 123)], [])
    yield fails("7.3.6", [close(1000, b"*" * 124)])
    yield fails("7.5.1", [close(1000, "κόσμε".encode() + b"\xed\xa0\x80edited")], code=1007)
    for at, code in enumerate([1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999], 1):
        yield Case(f"7.7.{at}", [close(code)], [], code)
    for at, code in enumerate([0, 999, 1004, 1005, 1006, 1016, 1100, 2000, 2999], 1):
        yield fails(f"7.9.{at}", [close(code)])
    for at, code in enumerate([5000, 65535], 1):
        yield fails(f"7.13.{at}", [close(code)])


def long_cases():
    """9: long messages and many of them. 10: a message in fragments of one size."""
    for group, opcode in [(1, TEXT), (2, BINARY)]:
        for at, length in enumerate([1 << 16, 1 << 18, MAX], 1):
            yield echoes(f"9.{group}.{at}", [frame(opcode, b"*" * length)], [(opcode, b"*" * length)])
        for at, size in enumerate([64, 256, 1 << 10, 1 << 12, 1 << 14, 1 << 16, 1 << 18, MAX], 1):
            yield echoes(f"9.{group + 2}.{at}", [b"".join(fragments(opcode, cut(b"*" * MAX, size)))], [(opcode, b"*" * MAX)])
        for at, size in enumerate([64, 128, 256, 512, 1024, 2048], 1):
            yield echoes(f"9.{group + 4}.{at}", [frame(opcode, b"*" * (1 << 16))], [(opcode, b"*" * (1 << 16))], size)
        for at, size in enumerate([0, 16, 64, 256, 1024, 4096], 1):
            yield echoes(f"9.{group + 6}.{at}", [frame(opcode, b"*" * size)] * 100, [(opcode, b"*" * size)] * 100)
    yield echoes("10.1.1", fragments(TEXT, cut(b"*" * 65536, 1300)), [(TEXT, b"*" * 65536)])


def all_cases():
    return [case for cases in (echo_cases, reserved_cases, fragment_cases, text_cases, close_cases, long_cases) for case in cases()]
