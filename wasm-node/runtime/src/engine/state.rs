//! What a store carries: the WASI context of one instance, its handles, and the account of what the host holds for it.

use std::sync::Arc;

use http_body_util::BodyExt;
use wasmtime::component::ResourceTable;
use wasmtime::{Store, UpdateDeadline};
use wasmtime_wasi::{FsPerms, WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView};
use wasmtime_wasi_http::p2::body::{HostIncomingBody, HostOutgoingBody};
use wasmtime_wasi_http::p2::types::{
    HostIncomingRequest, HostIncomingResponse, HostOutgoingRequest, HostOutgoingResponse,
};
use wasmtime_wasi_http::{FieldMap, WasiHttpCtx, WasiHttpCtxView, WasiHttpView};

use super::body::Exchange;
use super::container::Shared;
use super::growth::{COMMAND_GROWTH_WAIT_MAX, StoreLimiter};
use super::limits::{
    BODY_CHUNK_BYTES, HOSTCALL_BYTES_MAX, HTTP_FIELDS_BYTES_MAX, PREVIEW1_HOSTCALL_BYTES_MAX, RANDOM_BYTES_MAX,
    RESOURCE_TABLE_ENTRIES_MAX,
};
use crate::host::filesystem::OpenFiles;
use crate::host::http::Outgoing;
use crate::host::listing::{LISTING_BYTES, Listing};
use crate::host::preview1::Preview1;
use crate::host::stdio::Output;
use runtime_api::{Kind, Metering, StdStream};

/// Host calls between two counts of what the host holds. A call adds at most one set of fields or two body chunks, so
/// what escapes the budget for a moment is some 8 MiB at the very most.
const CALLS_PER_ACCOUNT: u32 = 64;
/// What a handle costs besides its content: the boxed entry, its table slot and its children's set.
const HANDLE_BYTES: u64 = 256;
/// What one header costs besides its bytes.
const HEADER_BYTES: u64 = 64;
/// Buffered bytes that an incoming body may hold: one read of the connection.
const INCOMING_BODY_BYTES: u64 = 16 << 10;
/// An outgoing body: one chunk under way and one buffered.
const OUTGOING_BODY_BYTES: u64 = 2 * BODY_CHUNK_BYTES as u64;

/// State of a component's store.
pub(crate) struct ComponentState {
    wasi: WasiCtx,
    http: WasiHttpCtx,
    outgoing: Outgoing,
    pub(crate) table: ResourceTable,
    pub(crate) limiter: StoreLimiter,
    pub(crate) shared: Arc<Shared>,
    pub(crate) exchange: Option<Arc<Exchange>>,
    pub(crate) files: OpenFiles,
    calls: u32,
}

/// State of a core module's store.
pub(crate) struct CoreState {
    p1: Preview1,
    pub(crate) limiter: StoreLimiter,
    calls: u32,
}

impl ComponentState {
    pub(crate) fn store(shared: &Arc<Shared>, exchange: Option<Arc<Exchange>>) -> wasmtime::Result<Store<Self>> {
        let mut http = WasiHttpCtx::new();
        http.set_field_size_limit(HTTP_FIELDS_BYTES_MAX);
        let mut table = ResourceTable::new();
        table.set_max_capacity(RESOURCE_TABLE_ENTRIES_MAX);
        let state = Self {
            wasi: context(shared).build(),
            http,
            outgoing: Outgoing::new(shared.clone()),
            table,
            limiter: limiter(shared),
            shared: shared.clone(),
            exchange,
            files: OpenFiles::default(),
            calls: 0,
        };
        let mut store = Store::new(&shared.loaded.linked().wasmtime, state);
        store.limiter_async(|state| &mut state.limiter);
        bound(&mut store, shared, |state| &mut state.limiter)?;
        Ok(store)
    }

    /// Called at every host call: now and then counts what the host holds for this guest. Over what it may ever have no
    /// further handle can be made, which traps the guest, and the limiter remembers why.
    fn account(&mut self) {
        self.calls += 1;
        if self.calls < CALLS_PER_ACCOUNT {
            return;
        }
        self.account_now();
    }

    /// Counts it at once, where much may have been added.
    pub(crate) fn account_now(&mut self) {
        self.calls = 0;
        if !account(&mut self.table, 0, &mut self.limiter) {
            self.table.set_max_capacity(0);
        }
    }
}

impl CoreState {
    pub(crate) fn store(shared: &Arc<Shared>) -> wasmtime::Result<Store<Self>> {
        let mut context = context(shared);
        context.args(&shared.argv).envs(&shared.env);
        // Preview 1 has no working directory: its libc resolves relative paths against a folder named ".".
        let cwd = shared.cwd_dir.as_ref().map(|(host, writable)| (host.as_path(), ".", *writable));
        let named = shared.disk.preopens().iter().map(|p| (p.host.as_path(), p.guest.as_str(), p.writable));
        let mut volumes = Vec::new();
        for (host, guest, writable) in named.chain(cwd) {
            let held = shared.disk.descriptor().map_err(wasmtime::Error::from)?;
            context.preopened_dir(host, guest, perms(writable))?;
            volumes.push((host.to_owned(), held));
        }
        let mut p1 = context.build_p1();
        WasiView::ctx(&mut p1).table.set_max_capacity(RESOURCE_TABLE_ENTRIES_MAX);
        let p1 = Preview1::new(p1, shared.disk.clone(), volumes);
        let state = Self { p1, limiter: limiter(shared), calls: 0 };
        let mut store = Store::new(&shared.loaded.linked().wasmtime, state);
        store.limiter_async(|state| &mut state.limiter);
        bound(&mut store, shared, |state| &mut state.limiter)?;
        store.set_hostcall_fuel(PREVIEW1_HOSTCALL_BYTES_MAX);
        Ok(store)
    }

    /// The preview 1 context, counted as [`ComponentState::account`] does.
    pub(crate) fn preview1(&mut self) -> &mut Preview1 {
        self.calls += 1;
        if self.calls >= CALLS_PER_ACCOUNT {
            self.calls = 0;
            let listing_bytes = self.p1.listing_bytes();
            let table = self.p1.table();
            if !account(table, listing_bytes, &mut self.limiter) {
                table.set_max_capacity(0);
            }
        }
        &mut self.p1
    }
}

fn limiter(shared: &Shared) -> StoreLimiter {
    let wait_max = match shared.loaded.kind() {
        Kind::HttpServer => shared.limits.timeout,
        Kind::Command => COMMAND_GROWTH_WAIT_MAX,
    };
    StoreLimiter::new(shared.ledger.clone(), shared.engine.growth().clone(), wait_max)
}

pub(crate) fn perms(writable: bool) -> FsPerms {
    if writable { FsPerms::ReadWrite } else { FsPerms::ReadOnly }
}

/// What every guest gets: an empty stdin, the container's log, clocks, randomness. Sockets stay denied.
fn context(shared: &Arc<Shared>) -> WasiCtxBuilder {
    let mut context = WasiCtxBuilder::new();
    context
        .stdout(Output::new(shared.log.clone(), StdStream::Stdout))
        .stderr(Output::new(shared.log.clone(), StdStream::Stderr))
        .max_random_size(RANDOM_BYTES_MAX)
        .allow_tcp(false)
        .allow_udp(false)
        .allow_ip_name_lookup(false)
        // File work runs where the guest is polled: see `host::disk`.
        .allow_blocking_current_thread(true);
    context
}

fn bound<T: 'static>(
    store: &mut Store<T>,
    shared: &Shared,
    limiter: fn(&mut T) -> &mut StoreLimiter,
) -> wasmtime::Result<()> {
    store.set_epoch_deadline(1);
    store.epoch_deadline_callback(move |mut store| {
        Ok(match limiter(store.data_mut()).debt()? {
            None => {
                super::epoch::interrupt();
                UpdateDeadline::Yield(1)
            }
            Some(waits) => UpdateDeadline::YieldCustom(1, waits),
        })
    });
    store.set_hostcall_fuel(HOSTCALL_BYTES_MAX);
    if shared.loaded.metering == Metering::Fuel {
        store.set_fuel(shared.limits.fuel.unwrap_or(u64::MAX))?;
    }
    Ok(())
}

fn account(table: &mut ResourceTable, mut bytes: u64, limiter: &mut StoreLimiter) -> bool {
    for entry in table.iter_mut() {
        bytes += HANDLE_BYTES;
        if let Some(fields) = entry.downcast_ref::<FieldMap>() {
            bytes += fields_bytes(fields);
        } else if entry.is::<Listing>() {
            bytes += LISTING_BYTES;
        } else if let Some(response) = entry.downcast_ref::<HostOutgoingResponse>() {
            bytes += fields_bytes(&response.headers) + response.body.as_ref().map_or(0, |_| OUTGOING_BODY_BYTES);
        } else if let Some(request) = entry.downcast_ref::<HostOutgoingRequest>() {
            bytes += fields_bytes(&request.headers) + request.body.as_ref().map_or(0, |_| OUTGOING_BODY_BYTES);
        } else if entry.is::<HostOutgoingBody>() {
            bytes += OUTGOING_BODY_BYTES;
        } else if entry.is::<HostIncomingBody>() || entry.is::<HostIncomingRequest>() {
            bytes += INCOMING_BODY_BYTES;
        } else if let Some(response) = entry.downcast_ref::<HostIncomingResponse>() {
            bytes += fields_bytes(&response.headers) + INCOMING_BODY_BYTES;
        }
    }
    limiter.set_host_bytes(bytes)
}

fn fields_bytes(fields: &FieldMap) -> u64 {
    fields.iter().map(|(name, value)| name.as_str().len() as u64 + value.len() as u64 + HEADER_BYTES).sum()
}

impl WasiView for ComponentState {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        self.account();
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

impl WasiHttpView for ComponentState {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        self.account();
        WasiHttpCtxView { ctx: &mut self.http, table: &mut self.table, hooks: &mut self.outgoing }
    }
}

/// A body of the seam, as wasi:http wants it.
pub(crate) fn incoming(body: machinery_serve::net::Body) -> wasmtime_wasi_http::WasiBody {
    body.map_err(|error| {
        tracing::debug!("incoming body broke off: {error}");
        wasmtime_wasi_http::Error::ConnectionTerminated
    })
    .boxed_unsync()
}
