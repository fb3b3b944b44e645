"""The service's responses. This file imports nothing of WASI, so that tests run without it."""


def respond(is_get: bool, path: str) -> tuple[int, str]:
    """The status and the text of a response."""
    path = path.split("?")[0]
    if not is_get:
        return 405, "method not allowed\n"
    if path == "/":
        return 200, "hello from {{name}}\n"
    name = path.removeprefix("/hello/")
    if name and name != path:
        return 200, f"hello {name}\n"
    return 404, "not found\n"
