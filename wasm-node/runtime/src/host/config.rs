//! `wasi:config/store`, where the pod's annotation grants `config`: the current content of the ConfigMaps in the container's
//! `envFrom` (`docs/decisions/0053-config-store.md`). The version is the one of wasmtime's own host; it is a draft, so no other
//! one matches.

use wasmtime::StoreContextMut;
use wasmtime::component::{ComponentType, Lift, Linker, Lower};

use super::state::ComponentState;

pub(super) const VERSION: &str = "0.2.0-rc.1";
/// Maximum bytes of one `get-all`: the values of some large ConfigMaps (1 MiB each).
const ALL_BYTES_MAX: usize = 4 << 20;

/// The interface's `error`.
#[derive(Debug, Clone, ComponentType, Lift, Lower)]
#[component(variant)]
enum Error {
    #[component(name = "upstream")]
    Upstream(String),
    #[component(name = "io")]
    Io(String),
}

fn all(state: &ComponentState) -> Result<Vec<(String, String)>, Error> {
    let Some(config) = &state.guest.config else { return Ok(Vec::new()) };
    let all = config.all();
    let bytes: usize = all.iter().map(|(key, value)| key.len() + value.len()).sum();
    if bytes > ALL_BYTES_MAX {
        return Err(Error::Upstream(format!(
            "all values have {bytes} bytes, over {ALL_BYTES_MAX}: get them one by one"
        )));
    }
    Ok(all)
}

pub(crate) fn link(linker: &mut Linker<ComponentState>) -> wasmtime::Result<()> {
    let mut store = linker.instance(&format!("wasi:config/store@{VERSION}"))?;
    store.func_wrap("get", |store: StoreContextMut<'_, ComponentState>, (key,): (String,)| {
        let config = store.data().guest.config.as_ref();
        Ok((Ok::<_, Error>(config.and_then(|config| config.get(&key))),))
    })?;
    store.func_wrap("get-all", |store: StoreContextMut<'_, ComponentState>, (): ()| Ok((all(store.data()),)))
}
