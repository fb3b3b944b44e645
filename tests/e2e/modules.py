"""Modules of a few bytes in the binary format: sections of an id, a length and a vector."""


def leb(n):
    return bytes((n & 127 | 128,)) + leb(n >> 7) if n > 127 else bytes((n,))


def named(text):
    return leb(len(text)) + text


def section(number, data):
    return bytes((number,)) + leb(len(data)) + data


def command(code, imports=b"", start=0, memory=b"", locals=b"\0"):
    """(func (export "_start") code)"""
    body = locals + code + b"\x0b"
    return (b"\0asm\1\0\0\0" + section(1, b"\1\x60\0\0") + imports + section(3, b"\1\0") + memory
            + section(7, b"\1" + named(b"_start") + b"\0" + leb(start)) + section(10, b"\1" + leb(len(body)) + body))


def nothing(mark=b""):
    """Ends at once; `mark` makes it a different module."""
    return command(b"") + section(0, named(b"mark") + mark)


LOOP = command(b"\x03\x40\x0c\x00\x0b")  # loop br 0 end


def subtype():
    """A call through a table with a type that may have subtypes, of a function of another type."""
    types = b"\3" + b"\x50\0\x60\0\0" + b"\x60\1\x7f\0" + b"\x60\0\0"
    codes = b"".join(leb(len(body)) + body for body in (b"\0\x0b", b"\0\x41\0\x11\0\0\x0b"))
    return (b"\0asm\1\0\0\0" + section(1, types) + section(3, b"\2\1\2") + section(4, b"\1\x70\0\1")
            + section(7, b"\1" + named(b"_start") + b"\0\1") + section(9, b"\1\0\x41\0\x0b\1\0") + section(10, b"\2" + codes))


def knot(locals=500):
    """Nested loops that change every local: a few kB that compile for minutes."""
    add = lambda n: b"\x20\0\x20" + leb(n) + b"\x6a\x21" + leb(n)
    code = b"\x03\x40" * 1000 + b"".join(map(add, range(locals))) + b"".join(b"\x20" + leb(n % locals) + b"\x0d\0\x0b" for n in range(1000))
    return command(code, locals=b"\1" + leb(locals) + b"\x7f")
