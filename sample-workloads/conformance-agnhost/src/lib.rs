//! Upstream's `agnhost` is one image, of which some subcommands are programs and others servers: so this component exports `run`
//! (the programs of `conformance`) and an HTTP handler (the pages of `conformance-web`). What a container of it is says the
//! annotation `kind.coracle.dev/CONTAINER`.
#![no_std]
extern crate conformance as _;
extern crate conformance_web as _;
