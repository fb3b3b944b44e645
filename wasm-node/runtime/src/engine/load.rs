//! A loaded module: its kind, its requirements, and its pre-instantiated form, shared by all pods of a digest.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use wasmtime::Module;
use wasmtime::component::types::ComponentItem;
use wasmtime::component::{Component, InstancePre};
use wasmtime_wasi::p2::bindings::CommandPre;
use wasmtime_wasi::p3::bindings::CommandPre as ConcurrentCommandPre;
use wasmtime_wasi_http::p2::bindings::ProxyPre;
use wasmtime_wasi_http::p3::bindings::ServicePre;

use super::inspect::of_module;
use super::plugin::Plugin;
use super::request::ServerPre;
use super::stacks;
use super::{Engine, LinkedEngine, MeteredEngines, compile};
use crate::bounds::limits::{MEMORIES_MAX, TABLES_MAX};
use crate::bounds::slots::Weight;
use crate::host::GrantCondition;
use crate::host::state::{ComponentState, CoreState};
use crate::host::wasi_version::{WasiVersion, is_wasi_0_3};
use machinery_api::imports::ImportRules;
use runtime_api::{Grants, Kind, LoadError, Metering};

/// Requested use of a module that may have several.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum ModuleUse {
    /// The kind that a container of it has.
    Any,
    /// A command.
    Command,
}

/// Identity of a loaded module: digest, engine, and requested use.
pub(crate) type ModuleKey = (String, Metering, ModuleUse);

/// A command's export.
const RUN: &str = "wasi:cli/run@0.2.";
/// The same of WASI 0.3.
const CONCURRENT_RUN: &str = "wasi:cli/run@0.3.";
/// A server's export.
const HANDLER: &str = "wasi:http/incoming-handler@0.2.";
/// The same of WASI 0.3, in the worlds `service` and `middleware`.
const CONCURRENT_HANDLER: &str = "wasi:http/handler@0.3.";
/// Bytes of a page of linear memory.
const WASM_PAGE_BYTES: u64 = 64 << 10;

/// A component or a core module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CodeKind {
    Component,
    Module,
}

impl CodeKind {
    /// Detects the kind by the preamble: magic, version, layer.
    pub(crate) fn of(bytes: &[u8]) -> Result<Self, LoadError> {
        match bytes {
            [0, b'a', b's', b'm', 1, 0, 0, 0, ..] => Ok(Self::Module),
            [0, b'a', b's', b'm', _, _, 1, 0, ..] => Ok(Self::Component),
            [0, b'a', b's', b'm', version, ..] => Err(LoadError::NotWasm(format!("unknown binary version {version}"))),
            [0x7f, b'E', b'L', b'F', ..] => Err(LoadError::NotWasm("an ELF program".into())),
            [] => Err(LoadError::NotWasm("an empty file".into())),
            _ => Err(LoadError::NotWasm("the file does not begin with \\0asm".into())),
        }
    }
}

pub(crate) enum Code {
    Component(Component),
    Module(Module),
}

/// The pre-instantiated form.
pub(crate) enum Pre {
    Command(CommandPre<ComponentState>),
    /// A command of WASI 0.3.
    ConcurrentCommand(ConcurrentCommandPre<ComponentState>),
    Server(ServerPre),
    Core(wasmtime::InstancePre<CoreState>),
    Plugin(InstancePre<ComponentState>),
}

/// A module, loaded once per digest and metering, shared by every container of it.
pub struct PreparedModule {
    digest: String,
    kind: Kind,
    pub(crate) metering: Metering,
    pub(crate) engine: Arc<MeteredEngines>,
    code: Code,
    /// Its functions, if it is a plugin.
    pub(crate) plugin: Option<Arc<Plugin>>,
    /// By grants: few ever differ.
    prepared: Mutex<Vec<(Grants, Arc<Pre>)>>,
    /// Pool usage of an instance.
    pub(crate) weight: Weight,
    /// Minimum initial bytes of an instance.
    pub(crate) start_bytes: u64,
}

impl std::fmt::Debug for PreparedModule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PreparedModule").field("digest", &self.digest).field("kind", &self.kind).finish_non_exhaustive()
    }
}

impl PreparedModule {
    /// Command, server or plugin.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The engine of its instances.
    pub(crate) fn linked(&self) -> &Arc<LinkedEngine> {
        match self.kind {
            Kind::HttpServer | Kind::Plugin => &self.engine.pooled,
            Kind::Command => &self.engine.on_demand,
        }
    }

    /// The pre-instantiated form for a container with these grants.
    pub(crate) fn prepare(&self, container: &str, grants: &Grants) -> Result<Arc<Pre>, LoadError> {
        let mut known = self.prepared.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, pre)) = known.iter().find(|(of, _)| of == grants) {
            return Ok(pre.clone());
        }
        let linked = self.linked();
        let pre = Arc::new(match &self.code {
            Code::Module(module) => Pre::Core(prepare_module(linked, module)?),
            Code::Component(component) => prepare_component(linked, component, self.kind, container, grants)?,
        });
        known.push((grants.clone(), pre.clone()));
        Ok(pre)
    }

    /// Checks a module's imports against a container's rules.
    ///
    /// # Errors
    /// The first import that is not permitted.
    pub(crate) fn check_imports(&self, container: &str, allowed: Option<&ImportRules>) -> Result<(), LoadError> {
        let Some(allowed) = allowed else { return Ok(()) };
        let imports = match &self.code {
            Code::Component(component) => names(&self.linked().wasmtime, component).0,
            Code::Module(module) => module.imports().map(|import| of_module(import.module(), import.name())).collect(),
        };
        match imports.into_iter().find(|import| !allowed.allows(import)) {
            Some(import) => Err(LoadError::NotAllowed { import, container: container.to_owned() }),
            None => Ok(()),
        }
    }

    /// The module's own digest (`sha256:…`).
    #[must_use]
    pub fn digest(&self) -> &str {
        &self.digest
    }
}

impl Engine {
    /// Loads a module: from memory while a container of it lives, else from the cache, else by compiling it for
    /// `namespace` as in [`Engine::compile`].
    ///
    /// # Errors
    /// The module doesn't compile, or has no kind that a container can run.
    pub async fn load(
        &self,
        digest: &str,
        file: &Path,
        metering: Metering,
        namespace: &str,
    ) -> Result<Arc<PreparedModule>, LoadError> {
        self.load_as(digest, file, metering, namespace, ModuleUse::Any).await
    }

    /// As [`Engine::load`], for [`Container::exec`](super::Container::exec): a server that also exports `run` is loaded as a
    /// command. `None` if it exports none.
    ///
    /// # Errors
    /// As above.
    pub async fn load_command(
        &self,
        digest: &str,
        file: &Path,
        metering: Metering,
        namespace: &str,
    ) -> Result<Option<Arc<PreparedModule>>, LoadError> {
        match self.load_as(digest, file, metering, namespace, ModuleUse::Command).await {
            Ok(loaded) => Ok((loaded.kind == Kind::Command).then_some(loaded)),
            Err(LoadError::Unsupported(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn load_as(
        &self,
        digest: &str,
        file: &Path,
        metering: Metering,
        namespace: &str,
        module_use: ModuleUse,
    ) -> Result<Arc<PreparedModule>, LoadError> {
        let key = (digest.to_owned(), metering, module_use);
        if let Some(loaded) = self.shared(&key) {
            return Ok(loaded);
        }
        let kind = compile::code_kind(file).await?;
        self.compile(digest, file, metering, namespace).await?;
        let gone = || "the compiled module is gone again".to_owned();
        let settings = self.cached_settings(digest, metering)?.ok_or_else(|| LoadError::Unfit(gone()))?;
        let engine = self.engines(settings)?.clone();
        // The pool's engine maps only what fits its bounds, so it is used for commands too.
        let code = match self.map_artifact(&engine, &engine.pooled, digest, kind).await {
            Ok(Some(code)) => code,
            // A damaged artifact was removed: recompile the module.
            Ok(None) | Err(_) => {
                self.compile(digest, file, metering, namespace).await?;
                let mapped = self.map_artifact(&engine, &engine.pooled, digest, kind).await;
                mapped.and_then(|code| code.ok_or_else(gone)).map_err(LoadError::Unfit)?
            }
        };
        let kind_of_container = determine_kind(&engine.pooled, &code, module_use)?;
        let code = match kind_of_container {
            Kind::HttpServer | Kind::Plugin => code,
            Kind::Command => {
                let mapped = self.map_artifact(&engine, &engine.on_demand, digest, kind).await;
                mapped.ok().flatten().ok_or_else(|| LoadError::Unfit(gone()))?
            }
        };
        let plugin = match (&code, kind_of_container) {
            (Code::Component(component), Kind::Plugin) => {
                Some(self.plugin((digest, file), &engine, namespace, component).await?)
            }
            _ => None,
        };
        let (mut weight, start_bytes) = resource_needs(&code);
        if settings.wasi == WasiVersion::V0_3 {
            weight.instances = stacks::pool_instances(file).await?;
        }
        let loaded = Arc::new(PreparedModule {
            digest: digest.to_owned(),
            kind: kind_of_container,
            metering,
            engine,
            code,
            plugin,
            prepared: Mutex::default(),
            weight,
            start_bytes,
        });
        self.share(key, &loaded);
        Ok(loaded)
    }

    /// The compiler's description of a plugin; recompiles if it is missing.
    async fn plugin(
        &self,
        (digest, file): (&str, &Path),
        engine: &MeteredEngines,
        namespace: &str,
        component: &Component,
    ) -> Result<Arc<Plugin>, LoadError> {
        let read = async || {
            let (this, component) = (self.clone(), component.clone());
            let (digest, fingerprint) = (digest.to_owned(), engine.fingerprint.clone());
            let read = move || {
                let description = this.inner.cache.description(&digest, &fingerprint)?;
                let plugin = description.and_then(|description| Plugin::new(description, &component));
                let refused = |why| LoadError::Unsupported(format!("the component is a plugin, and {why}"));
                Some(plugin.map(Arc::new).map_err(refused))
            };
            tokio::task::spawn_blocking(read).await.map_err(|error| LoadError::Engine(error.to_string()))
        };
        if let Some(plugin) = read().await? {
            return plugin;
        }
        self.inner.cache.forget(digest, &engine.fingerprint);
        self.compile(digest, file, engine.settings.metering, namespace).await?;
        read().await?.unwrap_or_else(|| Err(LoadError::Unfit("what the plugin offers is gone again".into())))
    }

    async fn map_artifact(
        &self,
        engine: &Arc<MeteredEngines>,
        linked: &Arc<LinkedEngine>,
        digest: &str,
        kind: CodeKind,
    ) -> Result<Option<Code>, String> {
        let (this, engine, linked, digest) = (self.clone(), engine.clone(), linked.clone(), digest.to_owned());
        let map = move || this.inner.cache.load(&linked.wasmtime, &digest, &engine.fingerprint, kind);
        tokio::task::spawn_blocking(map).await.map_err(|error| error.to_string())?
    }
}

/// The kind of a container of this code; an error if it has none under any grants.
fn determine_kind(linked: &LinkedEngine, code: &Code, module_use: ModuleUse) -> Result<Kind, LoadError> {
    match code {
        Code::Component(component) => {
            let (imports, exports) = names(&linked.wasmtime, component);
            let is_run = |export: &String| export.starts_with(RUN) || export.starts_with(CONCURRENT_RUN);
            let runs = module_use == ModuleUse::Command && exports.iter().any(is_run);
            let kind = if runs { Kind::Command } else { component_kind(&exports)? };
            let imports_0_3 = imports.iter().any(|import| is_wasi_0_3(import));
            match imports.into_iter().find(|import| crate::host::offered(import).is_none()) {
                Some(import) => Err(missing(import)),
                None if kind == Kind::Plugin && imports_0_3 => Err(LoadError::Unsupported(
                    "the component is a plugin and imports interfaces of WASI 0.3, which only commands (wasi:cli/run@0.3.0) \
                     and HTTP servers (wasi:http/handler@0.3.0) may: build it against WASI 0.2"
                        .into(),
                )),
                None => Ok(kind),
            }
        }
        Code::Module(module) => {
            if module.get_export("_start").is_none() {
                let exports: Vec<&str> = module.exports().map(|export| export.name()).take(5).collect();
                return Err(LoadError::Unsupported(format!(
                    "a core module is a command and must export _start; this one exports {}",
                    list(&exports)
                )));
            }
            prepare_module(linked, module)?;
            Ok(Kind::Command)
        }
    }
}

/// Pool usage of an instance, and its minimum initial bytes.
fn resource_needs(code: &Code) -> (Weight, u64) {
    let most = || wasmtime::ResourcesRequired {
        num_memories: MEMORIES_MAX as u32,
        max_initial_memory_size: None,
        num_tables: TABLES_MAX as u32,
        max_initial_table_size: None,
    };
    let resources = match code {
        Code::Component(component) => component.resources_required().unwrap_or_else(most),
        Code::Module(module) => module.resources_required(),
    };
    let weight = Weight { instances: 1, memories: resources.num_memories, tables: resources.num_tables };
    (weight, resources.max_initial_memory_size.unwrap_or(0).saturating_mul(WASM_PAGE_BYTES))
}

fn prepare_module(linked: &LinkedEngine, module: &Module) -> Result<wasmtime::InstancePre<CoreState>, LoadError> {
    for import in module.imports() {
        if import.module() != crate::host::preview1::MODULE {
            return Err(LoadError::MissingImport { import: format!("{}::{}", import.module(), import.name()) });
        }
    }
    linked.core_linker.instantiate_pre(module).map_err(|error| {
        match error.downcast_ref::<wasmtime::UnknownImportError>() {
            Some(missing) => LoadError::MissingImport { import: format!("{}::{}", missing.module(), missing.name()) },
            None => LoadError::BadImport(format!("{error:#}")),
        }
    })
}

fn prepare_component(
    linked: &LinkedEngine,
    component: &Component,
    kind: Kind,
    container: &str,
    grants: &Grants,
) -> Result<Pre, LoadError> {
    let (imports, exports) = names(&linked.wasmtime, component);
    for import in imports {
        match crate::host::offered(&import) {
            None => return Err(missing(import)),
            // Not visible to other guests.
            Some(row) if row.granted == GrantCondition::ToToolbox && !grants.is_toolbox() => {
                return Err(LoadError::MissingImport { import });
            }
            Some(row) if !crate::host::allows(grants, row) => {
                return Err(LoadError::NotGranted {
                    import,
                    interface: row.name.to_owned(),
                    container: container.to_owned(),
                });
            }
            Some(_) => {}
        }
    }
    let bad = |error: wasmtime::Error| LoadError::BadImport(format!("{error:#}"));
    let linker = linked.component_linker(grants).map_err(bad)?;
    let pre: InstancePre<ComponentState> = linker.instantiate_pre(component).map_err(bad)?;
    let unfit =
        |error: wasmtime::Error| LoadError::Unsupported(format!("the component's export does not fit: {error:#}"));
    let has = |prefix: &str| exports.iter().any(|export| export.starts_with(prefix));
    Ok(match kind {
        Kind::HttpServer if has(CONCURRENT_HANDLER) => {
            Pre::Server(ServerPre::Service(ServicePre::new(pre).map_err(unfit)?))
        }
        Kind::HttpServer => Pre::Server(ServerPre::Proxy(ProxyPre::new(pre).map_err(unfit)?)),
        Kind::Command if has(CONCURRENT_RUN) => Pre::ConcurrentCommand(ConcurrentCommandPre::new(pre).map_err(unfit)?),
        Kind::Command => Pre::Command(CommandPre::new(pre).map_err(unfit)?),
        Kind::Plugin => Pre::Plugin(pre),
    })
}

/// The error of an import that this node lacks, with what to do where that is known.
fn missing(import: String) -> LoadError {
    if import.starts_with(CONCURRENT_HANDLER) {
        return LoadError::Unsupported(format!(
            "the component imports {import}: a middleware runs composed with its service (wac plug SERVICE --plug MIDDLEWARE)"
        ));
    }
    match is_wasi_0_3(&import) {
        true => LoadError::Unsupported(format!(
            "the component imports {import}, which this node does not offer: of WASI 0.3 it offers {}",
            crate::host::names_of_0_3()
        )),
        false => LoadError::MissingImport { import },
    }
}

/// Server before command, as the contract says for a component with both exports; with neither it is a plugin.
pub(crate) fn component_kind(exports: &[String]) -> Result<Kind, LoadError> {
    let has = |prefix: &str| exports.iter().any(|export| export.starts_with(prefix));
    if has(CONCURRENT_HANDLER) || has(HANDLER) {
        return Ok(Kind::HttpServer);
    }
    if has(CONCURRENT_RUN) || has(RUN) {
        return Ok(Kind::Command);
    }
    if let Some(newer) = exports.iter().find(|e| e.starts_with("wasi:http/") || e.starts_with("wasi:cli/run@")) {
        return Err(LoadError::Unsupported(format!(
            "the component exports {newer}; this version serves wasi:http/handler@0.3, wasi:http/incoming-handler@0.2 and \
             wasi:cli/run of 0.3 and 0.2"
        )));
    }
    if exports.is_empty() {
        return Err(LoadError::Unsupported(
            "the component exports nothing; a container is a command (wasi:cli/run of 0.2 or 0.3), an HTTP server \
             (wasi:http/incoming-handler@0.2 or wasi:http/handler@0.3) or a plugin (functions of its own)"
                .into(),
        ));
    }
    Ok(Kind::Plugin)
}

fn list(names: &[&str]) -> String {
    if names.is_empty() { "nothing".to_owned() } else { names.join(", ") }
}

fn names(engine: &wasmtime::Engine, component: &Component) -> (Vec<String>, Vec<String>) {
    let ty = component.component_type();
    let imports = ty
        .imports(engine)
        // Types come with the instances that export them.
        .filter(|(_, item)| !matches!(item.ty, ComponentItem::Type(_)))
        .map(|(name, _)| name.to_owned())
        .collect();
    (imports, ty.exports(engine).map(|(name, _)| name.to_owned()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_preamble_decides() {
        assert_eq!(CodeKind::of(b"\0asm\x01\0\0\0").unwrap(), CodeKind::Module);
        assert_eq!(CodeKind::of(b"\0asm\x0d\0\x01\0").unwrap(), CodeKind::Component);
        for bad in [&b""[..], b"\0asm", b"\x7fELF\x02\x01", b"#!/bin/sh"] {
            assert!(matches!(CodeKind::of(bad), Err(LoadError::NotWasm(_))), "{bad:?}");
        }
    }

    #[test]
    fn both_exports_make_a_server_and_neither_a_plugin() {
        let kind = |exports: &[&str]| component_kind(&exports.iter().map(|e| (*e).to_owned()).collect::<Vec<_>>());
        let (http, run) = ("wasi:http/incoming-handler@0.2.0", "wasi:cli/run@0.2.3");
        assert_eq!(kind(&[run, http]).unwrap(), Kind::HttpServer);
        assert_eq!(kind(&[run]).unwrap(), Kind::Command);
        assert_eq!(kind(&["coracle:samples/greeter"]).unwrap(), Kind::Plugin);
        assert!(kind(&[]).unwrap_err().to_string().contains("exports nothing"));
        let (newer, run_newer) = ("wasi:http/handler@0.3.0", "wasi:cli/run@0.3.2");
        assert_eq!(kind(&[run_newer, newer]).unwrap(), Kind::HttpServer);
        assert_eq!(kind(&[run_newer]).unwrap(), Kind::Command);
        assert!(kind(&["wasi:http/handler@0.4.0"]).unwrap_err().to_string().contains("0.4.0"));
    }
}
