#!/usr/bin/env python3
"""balancer.py HOST:PORT…: a TCP balancer on loopback. Each connection goes to the next target. Prints its own address."""
import asyncio, itertools, sys

PIECE_BYTES = 64 * 1024


async def splice(reader, writer):
    try:
        while piece := await reader.read(PIECE_BYTES):
            writer.write(piece)
            await writer.drain()
        writer.write_eof()
    except OSError:
        writer.close()


async def main(targets):
    turns = itertools.cycle(target.rsplit(":", 1) for target in targets)

    async def connected(reader, writer):
        host, port = next(turns)
        try:
            to_reader, to_writer = await asyncio.open_connection(host, int(port))
        except OSError:
            writer.close()
            return
        await asyncio.gather(splice(reader, to_writer), splice(to_reader, writer))
        to_writer.close()
        writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    print("%s:%d" % server.sockets[0].getsockname(), flush=True)
    async with server:
        await server.serve_forever()


asyncio.run(main(sys.argv[1:]))
