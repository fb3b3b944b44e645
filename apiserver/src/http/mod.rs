//! HTTP: router, request info, negotiation, discovery, OpenAPI, streaming.

pub mod openapi;
