//! `wasi:tls`: the client's side of TLS over any pair of streams, for guests without a TLS of their own. The authorities are those of
//! the guest's HTTPS requests. The cryptography runs in tasks of the host, so it is measured and charged here.

use std::any::Any;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use machinery_env::Env;
use machinery_serve::net::{Dial, Stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use wasmtime::component::Linker;
use wasmtime_wasi_tls::p2::{HostClientConnection, HostClientHandshake, HostFutureClientStreams, LinkOptions};
use wasmtime_wasi_tls::{
    Error, TlsProvider, TlsStream, TlsTransport, WasiTlsCtx, WasiTlsCtxBuilder, WasiTlsCtxView, WasiTlsView,
};

use super::guest::Guest;
use super::state::{ComponentState, InterfaceState};
use crate::bounds::cpu::CpuMeter;
use crate::bounds::thread_clock::measured;

/// The version of the draft.
pub(super) const VERSION: &str = "0.2.0-draft";
/// Timeout of a handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(30);
/// Host memory of a connection: buffers of records in both directions, keys, the chain of the server.
const CONNECTION_BYTES: u64 = 64 << 10;

/// TLS of one instance.
struct Tls(WasiTlsCtx);

impl InterfaceState for Tls {
    fn of(guest: &Arc<Guest>) -> Self {
        let provider = Provider { dial: guest.dial.clone(), env: guest.clock().clone(), cpu: guest.cpu.clone() };
        Self(WasiTlsCtxBuilder::new().provider(Box::new(provider)).build())
    }
}

/// Starts connections with the data plane's authorities.
struct Provider {
    dial: Option<Arc<dyn Dial>>,
    env: Env,
    cpu: Arc<CpuMeter>,
}

impl TlsProvider for Provider {
    fn connect(
        &self,
        server: String,
        transport: Box<dyn TlsTransport>,
    ) -> Pin<Box<dyn Future<Output = Result<Box<dyn TlsStream>, Error>> + Send>> {
        let (dial, env, cpu) = (self.dial.clone(), self.env.clone(), self.cpu.clone());
        Box::pin(async move {
            let dial = dial.ok_or_else(|| Error::msg("the container has no network"))?;
            let handshake = charged(&cpu, dial.start_tls(&server, Stream::Tunnel(Box::new(transport))));
            let stream = match env.timeout(HANDSHAKE_TIMEOUT, handshake).await {
                Ok(stream) => stream.map_err(|error| Error::msg(error.to_string()))?,
                Err(_) => return Err(Error::msg("the TLS handshake took too long")),
            };
            Ok(Box::new(Charged { stream, cpu: cpu.clone() }) as Box<dyn TlsStream>)
        })
    }
}

/// A future whose polls are charged.
async fn charged<F: Future>(cpu: &CpuMeter, future: F) -> F::Output {
    let mut future = pin!(future);
    poll_fn(|cx| charge(cpu, || future.as_mut().poll(cx))).await
}

fn charge<T>(cpu: &CpuMeter, work: impl FnOnce() -> T) -> T {
    let (result, took) = measured(work);
    cpu.charge(took);
    result
}

/// A stream whose cryptography is charged to the container.
struct Charged<S> {
    stream: S,
    cpu: Arc<CpuMeter>,
}

impl<S: AsyncRead + AsyncWrite + Send + Unpin + 'static> TlsStream for Charged<S> {}

impl<S: AsyncRead + Unpin> AsyncRead for Charged<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { stream, cpu } = &mut *self;
        charge(cpu, || Pin::new(stream).poll_read(cx, into))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Charged<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let Self { stream, cpu } = &mut *self;
        charge(cpu, || Pin::new(stream).poll_write(cx, bytes))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { stream, cpu } = &mut *self;
        charge(cpu, || Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { stream, cpu } = &mut *self;
        charge(cpu, || Pin::new(stream).poll_shutdown(cx))
    }
}

/// Host memory of a handle besides itself. A guest may start a handshake over any streams, so that no other account bounds them.
pub(super) fn held_bytes(entry: &(dyn Any + Send)) -> Option<u64> {
    let is_tls = entry.is::<HostClientHandshake>()
        || entry.is::<HostFutureClientStreams>()
        || entry.is::<HostClientConnection>();
    is_tls.then_some(CONNECTION_BYTES)
}

impl WasiTlsView for ComponentState {
    fn tls(&mut self) -> WasiTlsCtxView<'_> {
        // A connection is much memory for one call.
        self.account_now();
        let Tls(ctx) = self.states.get(&self.guest);
        WasiTlsCtxView { table: &mut self.table, ctx }
    }
}

pub(crate) fn link(linker: &mut Linker<ComponentState>) -> wasmtime::Result<()> {
    wasmtime_wasi_tls::p2::add_to_linker(linker, LinkOptions::default().tls(true))
}
