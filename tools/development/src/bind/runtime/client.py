class PluginError(Exception):
    """A call that failed. `status` is the HTTP status, `reason` the header coracle-reason (trap, memory, timeout, …)."""

    def __init__(self, status: int, reason: Optional[str], message: str) -> None:
        super().__init__(f"{status} {message or reason or ''}".strip())
        self.status, self.reason = status, reason


T = TypeVar("T")
E = TypeVar("E")


@dataclass
class Ok(Generic[T]):
    """The `ok` of a WIT result."""

    value: T


@dataclass
class Err(Generic[E]):
    """The `err` of a WIT result."""

    value: E


@dataclass
class Some(Generic[T]):
    """The value of an option whose value is an option."""

    value: T


class Transport:
    """A plugin's address, such as http://127.0.0.1:8080. `timeout` is in seconds."""

    def __init__(self, url: str, timeout: float = 70) -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"{url} is no HTTP address")
        self.url, self.timeout = url.rstrip("/"), timeout

    def post(self, function: str, body: dict, session: Optional[str]) -> tuple[Any, Optional[str]]:
        """The result as JSON, and the session that the call has opened."""
        headers = {"content-type": "application/json"} | ({"coracle-session": session} if session else {})
        url = f"{self.url}/{urllib.parse.quote(function, safe='/:@')}"
        request = urllib.request.Request(url, json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as response:
                return json.load(response), response.headers.get("coracle-session")
        except urllib.error.HTTPError as error:
            text = error.read(1 << 16).decode(errors="replace")
            try:
                text = json.loads(text)["error"]
            except (ValueError, TypeError, KeyError):
                pass
            raise PluginError(error.code, error.headers.get("coracle-reason"), text) from None


class _Client:
    def __init__(self, plugin: Union[str, Transport], session: Optional[str] = None) -> None:
        self._transport = Transport(plugin) if isinstance(plugin, str) else plugin
        self._session = session

    def _call(self, function: str, arguments: list, result: Any) -> Any:
        call = _Call(self._transport, self._session)
        body = {name: codec.encode(value, call) for name, codec, value in arguments}
        answer, opened = self._transport.post(function, body, call.session)
        call.session = opened or call.session
        return None if result is None else result.decode(answer, call)


class _Remote(_Client):
    """A resource: a value that lives in the plugin's session."""

    def __init__(self, transport: Transport, session: Optional[str], handle: str) -> None:
        super().__init__(transport, session)
        self._handle = handle


@dataclass
class _Call:
    transport: Transport
    session: Optional[str]


class _Plain:
    def encode(self, value: Any, call: _Call) -> Any:
        return value

    decode = encode


class _Int:
    def encode(self, value: int, call: _Call) -> Any:
        return int(value)

    decode = encode


class _Float:
    def encode(self, value: float, call: _Call) -> Any:
        return {"nan": "NaN", "inf": "inf", "-inf": "-inf"}.get(str(float(value)), float(value))

    def decode(self, value: Any, call: _Call) -> float:
        return float(value)


class _Bytes:
    def encode(self, value: bytes, call: _Call) -> str:
        return base64.b64encode(value).decode()

    def decode(self, value: Any, call: _Call) -> bytes:
        return base64.b64decode(value)


@dataclass
class _List:
    of: Any

    def encode(self, value: Any, call: _Call) -> list:
        return [self.of.encode(item, call) for item in value]

    def decode(self, value: Any, call: _Call) -> list:
        return [self.of.decode(item, call) for item in value]


@dataclass
class _Map:
    key: Any
    of: Any
    is_object: bool

    def encode(self, value: dict, call: _Call) -> Any:
        pairs = [[self.key.encode(key, call), self.of.encode(item, call)] for key, item in value.items()]
        return dict(pairs) if self.is_object else pairs

    def decode(self, value: Any, call: _Call) -> dict:
        pairs = value.items() if self.is_object else value
        return {self.key.decode(key, call): self.of.decode(item, call) for key, item in pairs}


@dataclass
class _Tuple:
    of: list

    def encode(self, value: tuple, call: _Call) -> list:
        return [codec.encode(item, call) for codec, item in zip(self.of, value, strict=True)]

    def decode(self, value: list, call: _Call) -> tuple:
        return tuple(codec.decode(item, call) for codec, item in zip(self.of, value, strict=True))


@dataclass
class _Option:
    of: Any
    is_nested: bool

    def encode(self, value: Any, call: _Call) -> Any:
        if value is None:
            return None
        return {"some": self.of.encode(value.value, call)} if self.is_nested else self.of.encode(value, call)

    def decode(self, value: Any, call: _Call) -> Any:
        if value is None:
            return None
        return Some(self.of.decode(value["some"], call)) if self.is_nested else self.of.decode(value, call)


@dataclass
class _Result:
    ok: Any
    err: Any

    def encode(self, value: Any, call: _Call) -> dict:
        name, codec = ("ok", self.ok) if isinstance(value, Ok) else ("err", self.err)
        return {name: None if codec is None else codec.encode(value.value, call)}

    def decode(self, value: dict, call: _Call) -> Any:
        ((name, item),) = value.items()
        kind, codec = {"ok": (Ok, self.ok), "err": (Err, self.err)}[name]
        return kind(None if codec is None else codec.decode(item, call))


@dataclass
class _Record:
    kind: type
    fields: list  # of (attribute, name, codec)

    def encode(self, value: Any, call: _Call) -> dict:
        return {name: codec.encode(getattr(value, attribute), call) for attribute, name, codec in self.fields}

    def decode(self, value: dict, call: _Call) -> Any:
        return self.kind(**{attribute: codec.decode(value.get(name), call) for attribute, name, codec in self.fields})


@dataclass
class _Variant:
    cases: list  # of (class, name, codec)

    def encode(self, value: Any, call: _Call) -> dict:
        for kind, name, codec in self.cases:
            if type(value) is kind:
                return {name: None if codec is None else codec.encode(value.value, call)}
        raise TypeError(f"{value!r} is no case of this variant")

    def decode(self, value: dict, call: _Call) -> Any:
        ((found, item),) = value.items()
        kind, codec = next((kind, codec) for kind, name, codec in self.cases if name == found)
        return kind() if codec is None else kind(codec.decode(item, call))


@dataclass
class _Enum:
    kind: Any

    def encode(self, value: Any, call: _Call) -> str:
        return value.value

    def decode(self, value: str, call: _Call) -> Any:
        return self.kind(value)


@dataclass
class _Flags:
    kind: Any
    names: list  # in the order of the bits

    def encode(self, value: Any, call: _Call) -> list:
        return [name for bit, name in enumerate(self.names) if value & self.kind(1 << bit)]

    def decode(self, value: list, call: _Call) -> Any:
        return self.kind(sum(1 << self.names.index(name) for name in value))


@dataclass
class _Resource:
    kind: Any

    def encode(self, value: _Remote, call: _Call) -> str:
        if call.session not in (None, value._session):
            raise ValueError("one call has resources of two sessions")
        call.session = value._session
        return value._handle

    def decode(self, value: str, call: _Call) -> Any:
        return self.kind(call.transport, call.session, value)


_plain, _int, _float, _bytes = _Plain(), _Int(), _Float(), _Bytes()
