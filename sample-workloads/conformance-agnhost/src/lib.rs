//! Upstream's `agnhost` is one image with programs and servers as subcommands: this component exports `run` (the programs of
//! `conformance`) and an HTTP handler (the pages of `conformance-web`). The annotation `kind.coracle.dev/CONTAINER` selects
//! the export that a container uses.
#![no_std]
extern crate conformance as _;
extern crate conformance_web as _;
