//! What every served type looks like, as data: decoding, strictness, defaults, protobuf, OpenAPI.
