//! Handles of an instance (WASI resources): their host memory, and the kind of which there are the most. Some languages close handles
//! late or never, so a message about too many names the kind.

use std::any::Any;

use wasmtime::component::ResourceTable;
use wasmtime_wasi::filesystem::Descriptor;
use wasmtime_wasi::p2::{DynInputStream, DynOutputStream, DynPollable};
use wasmtime_wasi_http::p2::body::{HostIncomingBody, HostOutgoingBody};
use wasmtime_wasi_http::p2::types::{
    HostFutureIncomingResponse, HostIncomingRequest, HostIncomingResponse, HostOutgoingRequest, HostOutgoingResponse,
};
use wasmtime_wasi_http::p3::{Request, Response};
use wasmtime_wasi_http::{FieldMap, RequestOptions};

use super::listing::Listing;
use crate::bounds::census::{Census, HANDLE_BYTES};

/// A kind of handle.
struct HandleKind {
    /// Interface and resource, as in WIT.
    name: &'static str,
    is: fn(&(dyn Any + Send)) -> bool,
}

impl HandleKind {
    const fn of<T: Any>(name: &'static str) -> Self {
        Self { name, is: |entry| entry.is::<T>() }
    }
}

/// The kinds of which guests may have many; any other is named `other`.
static KINDS: [HandleKind; 17] = [
    HandleKind::of::<DynPollable>("wasi:io/poll.pollable"),
    HandleKind::of::<DynInputStream>("wasi:io/streams.input-stream"),
    HandleKind::of::<DynOutputStream>("wasi:io/streams.output-stream"),
    HandleKind::of::<wasmtime::Error>("wasi:io/error.error"),
    HandleKind::of::<Descriptor>("wasi:filesystem/types.descriptor"),
    HandleKind::of::<Listing>("wasi:filesystem/types.directory-entry-stream"),
    HandleKind::of::<FieldMap>("wasi:http/types.fields"),
    HandleKind::of::<RequestOptions>("wasi:http/types.request-options"),
    HandleKind::of::<HostIncomingRequest>("wasi:http/types.incoming-request"),
    HandleKind::of::<HostIncomingResponse>("wasi:http/types.incoming-response"),
    HandleKind::of::<HostIncomingBody>("wasi:http/types.incoming-body"),
    HandleKind::of::<HostOutgoingRequest>("wasi:http/types.outgoing-request"),
    HandleKind::of::<HostOutgoingResponse>("wasi:http/types.outgoing-response"),
    HandleKind::of::<HostOutgoingBody>("wasi:http/types.outgoing-body"),
    HandleKind::of::<HostFutureIncomingResponse>("wasi:http/types.future-incoming-response"),
    HandleKind::of::<Request>("wasi:http/types.request"),
    HandleKind::of::<Response>("wasi:http/types.response"),
];

/// Counts the handles of an instance.
pub(crate) fn census(table: &mut ResourceTable) -> Census {
    let (mut counts, mut handles) = ([0; KINDS.len()], 0);
    for entry in table.iter_mut() {
        handles += 1;
        if let Some(kind) = KINDS.iter().position(|kind| (kind.is)(&*entry)) {
            counts[kind] += 1;
        }
    }
    let other = handles - counts.iter().sum::<u64>();
    let known = KINDS.iter().map(|kind| kind.name).zip(counts);
    let most = known.chain([("other", other)]).max_by_key(|(_, count)| *count).unwrap_or(("other", 0));
    Census { handles, most }
}

/// Host memory of all handles with their content. Called every few host calls, so the kinds without content come first.
pub(crate) fn bytes(table: &mut ResourceTable) -> u64 {
    let of = |entry: &(dyn Any + Send)| {
        let plain = entry.is::<DynPollable>() || entry.is::<DynInputStream>() || entry.is::<DynOutputStream>();
        HANDLE_BYTES + if plain { 0 } else { super::held_bytes(entry) }
    };
    table.iter_mut().map(|entry| of(&*entry)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_frequent_kind_is_named() {
        let mut table = ResourceTable::new();
        assert_eq!(census(&mut table).handles, 0);
        for _ in 0..3 {
            table.push(FieldMap::default()).unwrap();
        }
        let error = table.push(wasmtime::Error::msg("")).unwrap();
        let found = census(&mut table);
        assert_eq!(found.to_string(), "3 of its 4 handles are of the kind wasi:http/types.fields");
        assert_eq!((found.bytes(), bytes(&mut table)), (1024, 1024));
        table.delete(error).unwrap();
        for _ in 0..9 {
            table.push("unknown").unwrap();
        }
        assert_eq!(census(&mut table).to_string(), "9 of its 12 handles are of the kind other");
    }
}
