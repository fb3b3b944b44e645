//! State of a store: the WASI context of one instance, its handles, per-interface state, and the account of its host memory.

use std::any::Any;
use std::sync::Arc;

use runtime_api::StdStream;
use wasmtime::component::ResourceTable;
use wasmtime::{Store, StoreContextMut, UpdateDeadline};
use wasmtime_wasi::{FsPerms, WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView};

use super::guest::Guest;
use super::handles;
use super::outgoing_body::{EndOnDrop, StoreEnd};
use super::preview1::Preview1;
use super::stdio::{Input, Output};
use super::volumes::Anchored;
use crate::bounds::epoch;
use crate::bounds::growth::StoreLimiter;
use crate::bounds::limits::{
    CONCURRENT_ENTRY_BYTES, HOSTCALL_BYTES_MAX, PREVIEW1_HOSTCALL_BYTES_MAX, RANDOM_BYTES_MAX,
};

/// Host calls between two accountings of host memory. A call adds at most one set of fields or two body chunks, so at
/// most some 8 MiB temporarily escape the budget.
const CALLS_PER_ACCOUNT: u32 = 64;
/// An interface's state of one instance, created on first use.
pub(crate) trait InterfaceState: Any + Send {
    fn of(guest: &Arc<Guest>) -> Self;
}

/// The states of all interfaces that this instance has used; they are few.
#[derive(Default)]
pub(crate) struct States(Vec<Box<dyn Any + Send>>);

impl States {
    pub(crate) fn get<S: InterfaceState>(&mut self, guest: &Arc<Guest>) -> &mut S {
        let known = self.0.iter().position(|state| (**state).is::<S>());
        let at = known.unwrap_or_else(|| {
            self.0.push(Box::new(S::of(guest)));
            self.0.len() - 1
        });
        (*self.0[at]).downcast_mut().expect("the entry at this index has this type")
    }
}

/// State of a component's store.
pub(crate) struct ComponentState {
    wasi: WasiCtx,
    pub(crate) table: ResourceTable,
    pub(crate) limiter: StoreLimiter,
    pub(crate) guest: Arc<Guest>,
    pub(crate) states: States,
    calls: u32,
    /// The end of a store of WASI 0.3.
    pub(crate) end: Option<StoreEnd>,
    /// Streams, futures and tasks at the end of the last epoch.
    concurrent_entries: u64,
}

/// State of a core module's store.
pub(crate) struct CoreState {
    p1: Preview1,
    pub(crate) limiter: StoreLimiter,
    calls: u32,
}

impl ComponentState {
    pub(crate) fn store(guest: &Arc<Guest>) -> wasmtime::Result<Store<Self>> {
        let mut table = ResourceTable::new();
        table.set_max_capacity(guest.bounds.handles);
        let state = Self {
            wasi: context(guest).build(),
            table,
            limiter: guest.limiter(),
            guest: guest.clone(),
            states: States::default(),
            calls: 0,
            end: None,
            concurrent_entries: 0,
        };
        let mut store = Store::new(&guest.engine, state);
        store.limiter_async(|state| &mut state.limiter);
        bound(&mut store, guest, |state| &mut state.limiter, count_concurrent)?;
        if let Some(table) = store.concurrent_resource_table() {
            table.set_max_capacity(guest.bounds.concurrent());
            store.data_mut().end = Some(StoreEnd::default());
        }
        Ok(store)
    }

    /// An interface's state of this instance.
    pub(crate) fn of<S: InterfaceState>(&mut self) -> &mut S {
        self.states.get(&self.guest)
    }

    /// Called at every host call: periodically accounts the guest's host memory. Beyond the maximum no further handle
    /// can be created, which traps the guest, and the limiter records the reason.
    pub(crate) fn account(&mut self) {
        self.calls += 1;
        if self.calls < CALLS_PER_ACCOUNT {
            return;
        }
        self.account_now();
    }

    /// Counts the handles of a failed guest, for the message.
    pub(crate) fn count_handles(&mut self) {
        self.limiter.handles = Some(handles::census(&mut self.table));
    }

    /// A guard that marks the store as ended before it is dropped.
    pub(crate) fn end_on_drop(&self) -> Option<EndOnDrop> {
        self.end.clone().map(EndOnDrop)
    }

    /// Accounts it at once, where much may have been added. Returns whether it is within what the guest may have.
    pub(crate) fn account_now(&mut self) -> bool {
        self.calls = 0;
        let concurrent_bytes = self.concurrent_entries * CONCURRENT_ENTRY_BYTES;
        let fits = account(&mut self.table, concurrent_bytes, &mut self.limiter);
        if !fits {
            self.table.set_max_capacity(0);
        }
        fits
    }
}

impl CoreState {
    pub(crate) fn store(guest: &Arc<Guest>) -> wasmtime::Result<Store<Self>> {
        let mut context = context(guest);
        context.args(&guest.argv).envs(&guest.env);
        // Preview 1 has no working directory: its libc resolves relative paths against a folder named ".".
        let cwd = guest.cwd_dir.as_ref().map(|folder| Ok((Anchored::of(folder)?, ".", folder.writable)));
        let named = guest.disk.preopens().iter();
        let named = named.map(|folder| Ok((Anchored::of(folder)?, folder.guest.as_str(), folder.writable)));
        let mut volumes = Vec::new();
        for volume in named.chain(cwd) {
            let (anchored, name, writable) = volume.map_err(|error: std::io::Error| wasmtime::Error::from(error))?;
            let held = guest.disk.descriptor().map_err(wasmtime::Error::from)?;
            context.preopened_dir(&anchored.path, name, perms(writable))?;
            volumes.push((anchored, name.to_owned(), held));
        }
        let mut p1 = context.build_p1();
        WasiView::ctx(&mut p1).table.set_max_capacity(guest.bounds.handles);
        let p1 = Preview1::new(p1, guest.disk.clone(), volumes);
        let state = Self { p1, limiter: guest.limiter(), calls: 0 };
        let mut store = Store::new(&guest.engine, state);
        store.limiter_async(|state| &mut state.limiter);
        bound(&mut store, guest, |state| &mut state.limiter, |_| true)?;
        store.set_hostcall_fuel(PREVIEW1_HOSTCALL_BYTES_MAX);
        Ok(store)
    }

    /// See [`ComponentState::count_handles`].
    pub(crate) fn count_handles(&mut self) {
        self.limiter.handles = Some(handles::census(self.p1.table()));
    }

    /// The preview 1 context; counts calls like [`ComponentState::account`].
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

pub(crate) fn perms(writable: bool) -> FsPerms {
    if writable { FsPerms::ReadWrite } else { FsPerms::ReadOnly }
}

/// The context of every guest: standard streams, clocks, randomness. Sockets are denied.
fn context(guest: &Guest) -> WasiCtxBuilder {
    let mut context = WasiCtxBuilder::new();
    context
        .stdin(Input::of(guest))
        .stdout(Output::of(guest, StdStream::Stdout))
        .stderr(Output::of(guest, StdStream::Stderr))
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
    guest: &Guest,
    limiter: fn(&mut T) -> &mut StoreLimiter,
    count: fn(&mut StoreContextMut<'_, T>) -> bool,
) -> wasmtime::Result<()> {
    store.set_epoch_deadline(1);
    store.epoch_deadline_callback(move |mut store| {
        if !count(&mut store) {
            return Err(wasmtime::Error::msg("the guest's streams, futures and tasks exceed its memory"));
        }
        Ok(match limiter(store.data_mut()).debt()? {
            None => {
                epoch::interrupt();
                UpdateDeadline::Yield(1)
            }
            Some(waits) => UpdateDeadline::YieldCustom(1, waits),
        })
    });
    store.set_hostcall_fuel(HOSTCALL_BYTES_MAX);
    if let Some(fuel) = guest.fuel {
        store.set_fuel(fuel)?;
    }
    Ok(())
}

/// Charges the streams, futures and tasks of a store of WASI 0.3, which guests make without a call of this node. Called at the
/// end of each epoch. Returns false if they exceed what the guest may have.
fn count_concurrent(store: &mut StoreContextMut<'_, ComponentState>) -> bool {
    let Some(table) = store.concurrent_resource_table() else { return true };
    let entries = table.iter_mut().count() as u64;
    let state = store.data_mut();
    if state.concurrent_entries == entries {
        return true;
    }
    state.concurrent_entries = entries;
    state.account_now()
}

fn account(table: &mut ResourceTable, bytes: u64, limiter: &mut StoreLimiter) -> bool {
    limiter.set_host_bytes(bytes + handles::bytes(table))
}

impl WasiView for ComponentState {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        self.account();
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}
