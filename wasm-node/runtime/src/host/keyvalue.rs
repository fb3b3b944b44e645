//! `wasi:keyvalue`, where the pod's annotation grants `keyvalue`: a store shared by a namespace's pods on this node
//! (`docs/decisions/0057-keyvalue.md`) or on several (`docs/decisions/0114-shared-keyvalue.md`).

use std::any::Any;
use std::sync::Arc;

use runtime_api::keyvalue::{KeyvalueStore, StoreError, VALUE_BYTES_MAX, Value, Write, Written, bucket};
use runtime_api::ledger::Resource as LedgerResource;
use wasmtime::StoreContextMut;
use wasmtime::component::{ComponentType, Lift, Linker, LinkerInstance, Lower, Resource, ResourceType, WasmList};

use super::guest::Guest;
use super::state::ComponentState;

pub(super) const VERSION: &str = "0.2.0-draft2";

/// `store.error`.
#[derive(Debug, Clone, ComponentType, Lift, Lower)]
#[component(variant)]
enum Error {
    #[component(name = "no-such-store")]
    NoSuchStore,
    #[component(name = "access-denied")]
    AccessDenied,
    #[component(name = "other")]
    Other(String),
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        Self::Other(error.to_string())
    }
}

/// `store.key-response`.
#[derive(Debug, Clone, ComponentType, Lift, Lower)]
#[component(record)]
struct KeyResponse {
    keys: Vec<String>,
    cursor: Option<String>,
}

/// `atomics.cas-error`.
#[derive(ComponentType, Lift, Lower)]
#[component(variant)]
enum CasError {
    #[component(name = "store-error")]
    StoreError(Error),
    #[component(name = "cas-failed")]
    CasFailed(Resource<Cas>),
}

/// An open bucket: its name alone; content is read on each call.
struct Bucket {
    name: String,
}

/// A compare-and-swap handle: the value that was read, to be replaced.
struct Cas {
    bucket: String,
    key: String,
    seen: Option<Value>,
}

pub(super) fn held_bytes(entry: &(dyn Any + Send)) -> Option<u64> {
    if let Some(bucket) = entry.downcast_ref::<Bucket>() {
        return Some(bucket.name.len() as u64);
    }
    let cas = entry.downcast_ref::<Cas>()?;
    let value = cas.seen.as_ref().map_or(0, |seen| seen.bytes.len());
    Some((cas.bucket.len() + cas.key.len() + value) as u64)
}

/// A guest's namespace.
struct GuestStore {
    keyvalue: Arc<dyn KeyvalueStore>,
    guest: Arc<Guest>,
}

type Guests<'a> = StoreContextMut<'a, ComponentState>;
/// Result of a function of the interface; the outer error traps the guest.
type CallResult<T> = wasmtime::Result<(Result<T, Error>,)>;

impl GuestStore {
    /// Fails if the container has no namespace.
    fn of(store: &mut Guests<'_>) -> Result<Self, Error> {
        store.data_mut().account();
        let guest = store.data().guest.clone();
        let keyvalue = guest.keyvalue.clone().ok_or(Error::AccessDenied)?;
        Ok(Self { keyvalue, guest })
    }

    /// The write is the container's memory while it waits.
    async fn write(&self, write: Write) -> Result<Written, Error> {
        let held = self.guest.ledger.hold(LedgerResource::Memory, write.bytes() as u64);
        let _held = held.map_err(|_| StoreError::Memory)?;
        Ok(self.keyvalue.write(write).await?)
    }
}

fn named(store: &Guests<'_>, of: &Resource<Bucket>) -> wasmtime::Result<String> {
    Ok(store.data().table.get(of)?.name.clone())
}

/// A value, copied out of the guest unless it is too large.
fn value(store: &Guests<'_>, list: &WasmList<u8>) -> Result<Vec<u8>, Error> {
    match list.len() {
        length if length > VALUE_BYTES_MAX => Err(StoreError::ValueTooLarge(length).into()),
        _ => Ok(list.as_le_slice(store).to_vec()),
    }
}

pub(crate) fn link(linker: &mut Linker<ComponentState>) -> wasmtime::Result<()> {
    link_store(&mut linker.instance(&format!("wasi:keyvalue/store@{VERSION}"))?)?;
    link_atomics(&mut linker.instance(&format!("wasi:keyvalue/atomics@{VERSION}"))?)?;
    link_batch(&mut linker.instance(&format!("wasi:keyvalue/batch@{VERSION}"))?)
}

fn link_store(store: &mut LinkerInstance<'_, ComponentState>) -> wasmtime::Result<()> {
    store.resource("bucket", ResourceType::host::<Bucket>(), |mut store, rep| {
        store.data_mut().table.delete(Resource::<Bucket>::new_own(rep))?;
        Ok(())
    })?;
    store.func_wrap("open", |mut store: Guests<'_>, (identifier,): (String,)| {
        if let Err(error) = GuestStore::of(&mut store) {
            return Ok((Err(error),));
        }
        let Some(name) = bucket(&identifier) else { return Ok((Err(Error::NoSuchStore),)) };
        let bucket = store.data_mut().table.push(Bucket { name: name.to_owned() })?;
        Ok((Ok(bucket),))
    })?;
    store.func_wrap_async("[method]bucket.get", |mut store: Guests<'_>, (of, key): (Resource<Bucket>, String)| {
        Box::new(async move { get(&mut store, &of, &key).await })
    })?;
    store.func_wrap_async(
        "[method]bucket.exists",
        |mut store: Guests<'_>, (of, key): (Resource<Bucket>, String)| {
            Box::new(async move {
                let bucket = named(&store, &of)?;
                let read = async { Ok::<_, Error>(GuestStore::of(&mut store)?.keyvalue.exists(&bucket, &key).await?) };
                Ok((read.await,))
            })
        },
    )?;
    store.func_wrap_async(
        "[method]bucket.set",
        |mut store: Guests<'_>, (of, key, list): (Resource<Bucket>, String, WasmList<u8>)| {
            Box::new(async move {
                let bucket = named(&store, &of)?;
                let value = match value(&store, &list) {
                    Ok(value) => value,
                    Err(error) => return Ok((Err(error),)),
                };
                done(&mut store, Write::Set { bucket, pairs: vec![(key, value)] }).await
            })
        },
    )?;
    store.func_wrap_async(
        "[method]bucket.delete",
        |mut store: Guests<'_>, (of, key): (Resource<Bucket>, String)| {
            Box::new(async move {
                let bucket = named(&store, &of)?;
                done(&mut store, Write::Delete { bucket, keys: vec![key] }).await
            })
        },
    )?;
    store.func_wrap_async(
        "[method]bucket.list-keys",
        |mut store: Guests<'_>, (of, cursor): (Resource<Bucket>, Option<String>)| {
            Box::new(async move {
                let bucket = named(&store, &of)?;
                let read = async {
                    Ok::<_, Error>(GuestStore::of(&mut store)?.keyvalue.list(&bucket, cursor.as_deref()).await?)
                };
                let read = read.await;
                Ok((read.map(|page| KeyResponse { keys: page.keys, cursor: page.cursor }),))
            })
        },
    )
}

async fn get(store: &mut Guests<'_>, of: &Resource<Bucket>, key: &str) -> CallResult<Option<Vec<u8>>> {
    let bucket = named(store, of)?;
    let read = async { Ok::<_, Error>(GuestStore::of(store)?.keyvalue.get(&bucket, key).await?) };
    let read = read.await;
    Ok((read.map(|found| found.map(|value| value.bytes)),))
}

/// A write without a result value.
async fn done(store: &mut Guests<'_>, write: Write) -> CallResult<()> {
    let written = async { GuestStore::of(store)?.write(write).await };
    Ok((written.await.map(|_| ()),))
}

fn link_atomics(atomics: &mut LinkerInstance<'_, ComponentState>) -> wasmtime::Result<()> {
    atomics.resource("cas", ResourceType::host::<Cas>(), |mut store, rep| {
        store.data_mut().table.delete(Resource::<Cas>::new_own(rep))?;
        Ok(())
    })?;
    atomics.func_wrap_async("[static]cas.new", |mut store: Guests<'_>, (of, key): (Resource<Bucket>, String)| {
        Box::new(async move {
            let bucket = named(&store, &of)?;
            let read = async { Ok::<_, Error>(GuestStore::of(&mut store)?.keyvalue.get(&bucket, &key).await?) };
            Ok((match read.await {
                Ok(seen) => Ok(push_cas(&mut store, Cas { bucket, key, seen })?),
                Err(error) => Err(error),
            },))
        })
    })?;
    atomics.func_wrap("[method]cas.current", |store: Guests<'_>, (of,): (Resource<Cas>,)| {
        let seen = &store.data().table.get(&of)?.seen;
        Ok((Ok::<_, Error>(seen.as_ref().map(|value| value.bytes.clone())),))
    })?;
    atomics.func_wrap_async(
        "increment",
        |mut store: Guests<'_>, (of, key, delta): (Resource<Bucket>, String, i64)| {
            Box::new(async move {
                let bucket = named(&store, &of)?;
                let write = Write::Increment { bucket, key, delta };
                let written = async { GuestStore::of(&mut store)?.write(write).await };
                Ok((match written.await {
                    Ok(Written::Number(number)) => Ok(number),
                    Ok(Written::Done | Written::Stale(_)) => Err(Error::Other("an increment without a number".into())),
                    Err(error) => Err(error),
                },))
            })
        },
    )?;
    atomics.func_wrap_async("swap", |mut store: Guests<'_>, (of, list): (Resource<Cas>, WasmList<u8>)| {
        Box::new(async move { Ok((swap(&mut store, of, &list).await?,)) })
    })
}

/// The value in a handle may be large, so it is accounted at once.
fn push_cas(store: &mut Guests<'_>, cas: Cas) -> wasmtime::Result<Resource<Cas>> {
    let pushed = store.data_mut().table.push(cas)?;
    store.data_mut().account_now();
    Ok(pushed)
}

async fn swap(
    store: &mut Guests<'_>,
    of: Resource<Cas>,
    list: &WasmList<u8>,
) -> wasmtime::Result<Result<(), CasError>> {
    let Cas { bucket, key, seen } = store.data_mut().table.delete(of)?;
    let value = match value(store, list) {
        Ok(value) => value,
        Err(error) => return Ok(Err(CasError::StoreError(error))),
    };
    let seen = seen.map(|value| value.revision);
    let write = Write::Swap { bucket: bucket.clone(), key: key.clone(), seen, value };
    let written = async { GuestStore::of(store)?.write(write).await };
    match written.await {
        Ok(Written::Stale(now)) => {
            let again = push_cas(store, Cas { bucket, key, seen: now })?;
            Ok(Err(CasError::CasFailed(again)))
        }
        Ok(Written::Done | Written::Number(_)) => Ok(Ok(())),
        Err(error) => Ok(Err(CasError::StoreError(error))),
    }
}

fn link_batch(batch: &mut LinkerInstance<'_, ComponentState>) -> wasmtime::Result<()> {
    batch.func_wrap_async("get-many", |mut store: Guests<'_>, (of, keys): (Resource<Bucket>, Vec<String>)| {
        Box::new(async move {
            let bucket = named(&store, &of)?;
            let read = async { Ok::<_, Error>(GuestStore::of(&mut store)?.keyvalue.get_many(&bucket, &keys).await?) };
            let found = read.await;
            let pairs = |found: Vec<Option<Vec<u8>>>| {
                let pairs = keys.into_iter().zip(found);
                pairs.map(|(key, value)| value.map(|value| (key, value))).collect::<Vec<_>>()
            };
            Ok((found.map(pairs),))
        })
    })?;
    batch.func_wrap_async(
        "set-many",
        |mut store: Guests<'_>, (of, pairs): (Resource<Bucket>, Vec<(String, Vec<u8>)>)| {
            Box::new(async move {
                let bucket = named(&store, &of)?;
                done(&mut store, Write::Set { bucket, pairs }).await
            })
        },
    )?;
    batch.func_wrap_async("delete-many", |mut store: Guests<'_>, (of, keys): (Resource<Bucket>, Vec<String>)| {
        Box::new(async move {
            let bucket = named(&store, &of)?;
            done(&mut store, Write::Delete { bucket, keys }).await
        })
    })
}
