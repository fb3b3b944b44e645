//! `wasi:sockets/ip-name-lookup`.

use std::future::poll_fn;
use std::net::IpAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use guest_sockets::SocketError;
use tokio_util::task::AbortOnDropHandle;
use wasmtime::component::Resource;
use wasmtime_wasi::p2::bindings::sockets::ip_name_lookup::{Host, HostResolveAddressStream, ResolveAddressStream};
use wasmtime_wasi::p2::bindings::sockets::network::{ErrorCode, IpAddress, Network};
use wasmtime_wasi::p2::{DynPollable, Pollable, SocketResult, subscribe};

use super::codes::failure;
use super::{NetworkHandle, Sockets, foreign, handle, no_waker};

/// A lookup; dropping it ends it.
struct Lookup {
    task: AbortOnDropHandle<Result<Vec<IpAddr>, SocketError>>,
    result: Option<Result<std::vec::IntoIter<IpAddr>, SocketError>>,
}

impl Lookup {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.result.is_none() {
            let found = std::task::ready!(Pin::new(&mut self.task).poll(cx));
            // Without a result, the node is stopping.
            let found = found.unwrap_or(Err(SocketError::TemporaryResolverFailure));
            self.result = Some(found.map(Vec::into_iter));
        }
        Poll::Ready(())
    }
}

#[async_trait::async_trait]
impl Pollable for Lookup {
    async fn ready(&mut self) {
        poll_fn(|cx| self.poll(cx)).await;
    }
}

impl Host for Sockets<'_> {
    fn resolve_addresses(
        &mut self,
        network: Resource<Network>,
        name: String,
    ) -> SocketResult<Resource<ResolveAddressStream>> {
        self.0.table.get(&handle::<NetworkHandle, _>(&network))?;
        let context = self.context()?;
        let task = AbortOnDropHandle::new(tokio::spawn(guest_sockets::lookup::lookup(context, name)));
        let lookup = Lookup { task, result: None };
        Ok(foreign(self.0.table.push(lookup)?))
    }
}

impl HostResolveAddressStream for Sockets<'_> {
    fn resolve_next_address(&mut self, of: Resource<ResolveAddressStream>) -> SocketResult<Option<IpAddress>> {
        let lookup = self.0.table.get_mut(&handle::<Lookup, _>(&of))?;
        if lookup.poll(&mut no_waker()).is_pending() {
            return Err(ErrorCode::WouldBlock.into());
        }
        match &mut lookup.result {
            Some(Ok(addresses)) => Ok(addresses.next().map(IpAddress::from)),
            Some(Err(error)) => Err(failure(*error)),
            None => Err(ErrorCode::WouldBlock.into()),
        }
    }

    fn subscribe(&mut self, of: Resource<ResolveAddressStream>) -> wasmtime::Result<Resource<DynPollable>> {
        subscribe(&mut self.0.table, handle::<Lookup, _>(&of))
    }

    fn drop(&mut self, of: Resource<ResolveAddressStream>) -> wasmtime::Result<()> {
        self.0.table.delete(handle::<Lookup, _>(&of))?;
        Ok(())
    }
}
