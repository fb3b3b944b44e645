"""An HTTP service: the host calls `handle` for each request, in an instance of its own."""
from componentize_py_types import Ok
from wit_world import exports
from wit_world.imports.types import (
    Fields, IncomingRequest, Method_Get, OutgoingBody, OutgoingResponse, ResponseOutparam,
)

from routes import respond

PIECE_BYTES_MAX = 4096  # of one write: WASI's limit


class IncomingHandler(exports.IncomingHandler):
    def handle(self, request: IncomingRequest, response_out: ResponseOutparam) -> None:
        is_get = isinstance(request.method(), Method_Get)
        status, text = respond(is_get, request.path_with_query() or "/")
        response = OutgoingResponse(Fields.from_list([("content-type", b"text/plain")]))
        response.set_status_code(status)
        body = response.body()
        ResponseOutparam.set(response_out, Ok(response))
        content = text.encode()
        with body.write() as stream:
            for start in range(0, len(content), PIECE_BYTES_MAX):
                stream.blocking_write_and_flush(content[start : start + PIECE_BYTES_MAX])
        OutgoingBody.finish(body, None)
