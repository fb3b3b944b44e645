//! Implements [`runtime_api::Runtime`] over the engine, for the kubelet.

use std::any::Any;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::future::BoxFuture;
use runtime_api::ledger::Ledger;
use runtime_api::{
    Admitted, Container as ApiContainer, ContainerSpec, ExecError, ExecSpec, KeyvalueOwner, Kind, Limits, LoadError,
    Metering, Module, Outcome, Runtime, Server, Session, Stats, StopSignal, TrialOutcome,
};

use super::{Container, Engine, HttpServer, PluginServer, PreparedModule, WASMTIME_VERSION};

/// A loaded module, with the engine that creates its containers.
struct LoadedModule {
    engine: Engine,
    loaded: Arc<PreparedModule>,
}

#[async_trait]
impl Runtime for Engine {
    fn version(&self) -> (&'static str, &'static str) {
        ("wasmtime", WASMTIME_VERSION)
    }

    fn optional_interfaces(&self) -> Vec<&'static str> {
        crate::host::optional()
    }

    async fn compile(&self, digest: &str, file: &Path, metering: Metering, namespace: &str) -> Result<(), LoadError> {
        Self::compile(self, digest, file, metering, namespace).await
    }

    async fn compile_when_idle(&self, digest: &str, file: &Path, metering: Metering) -> Result<(), LoadError> {
        Self::compile_when_idle(self, digest, file, metering).await
    }

    fn compile_time_max(&self) -> Option<Duration> {
        Some(self.inner.compiler.time_max())
    }

    async fn load(
        &self,
        digest: &str,
        file: &Path,
        metering: Metering,
        namespace: &str,
    ) -> Result<Arc<dyn Module>, LoadError> {
        let loaded = Self::load(self, digest, file, metering, namespace).await?;
        Ok(Arc::new(LoadedModule { engine: self.clone(), loaded }))
    }

    async fn load_command(
        &self,
        digest: &str,
        file: &Path,
        metering: Metering,
        namespace: &str,
    ) -> Result<Option<Arc<dyn Module>>, LoadError> {
        let loaded = Self::load_command(self, digest, file, metering, namespace).await?;
        Ok(loaded.map(|loaded| Arc::new(LoadedModule { engine: self.clone(), loaded }) as Arc<dyn Module>))
    }

    fn compiled(&self) -> std::io::Result<BTreeMap<String, u64>> {
        Self::compiled(self)
    }

    fn sweep(&self, in_use: &dyn Fn(&str) -> bool) -> std::io::Result<u64> {
        Self::sweep(self, in_use)
    }

    fn ledger(&self) -> &Arc<Ledger> {
        Self::ledger(self)
    }

    fn is_keyvalue_shared(&self) -> bool {
        self.keyvalue().is_some_and(|stores| stores.is_shared())
    }

    async fn keyvalue_owners(&self, cluster: Option<&str>) -> std::io::Result<Vec<KeyvalueOwner>> {
        match self.keyvalue() {
            Some(stores) => stores.owners(cluster).await,
            None => Ok(Vec::new()),
        }
    }

    async fn remove_keyvalue(&self, owner: &KeyvalueOwner) -> std::io::Result<()> {
        match self.keyvalue() {
            Some(stores) => stores.remove(owner).await,
            None => Ok(()),
        }
    }
}

impl Module for LoadedModule {
    fn digest(&self) -> &str {
        self.loaded.digest()
    }

    fn kind(&self) -> Kind {
        self.loaded.kind()
    }

    fn container(&self, spec: ContainerSpec) -> Result<Arc<dyn ApiContainer>, LoadError> {
        Ok(Arc::new(self.engine.container(self.loaded.clone(), spec)?))
    }
}

#[async_trait]
impl ApiContainer for Container {
    fn kind(&self) -> Kind {
        Self::kind(self)
    }

    fn stats(&self) -> Stats {
        Self::stats(self)
    }

    fn resize(&self, limits: &Limits) {
        Self::resize(self, limits);
    }

    fn broken(&self) -> Option<String> {
        Self::broken(self)
    }

    async fn admit(&self) -> Admitted {
        Self::admit(self).await
    }

    async fn run(&self, admitted: Admitted, stop: BoxFuture<'static, StopSignal>) -> Outcome {
        self.run_admitted(admitted, stop).await
    }

    fn serve(&self) -> Result<Arc<dyn Server>, LoadError> {
        Ok(match Self::kind(self) {
            Kind::Plugin => Arc::new(Self::serve_plugin(self)?),
            Kind::HttpServer | Kind::Command => Arc::new(Self::serve(self)?),
        })
    }

    fn exec(&self, command: &Arc<dyn Module>, spec: ExecSpec) -> Result<Box<dyn Session>, ExecError> {
        let command: &dyn Any = &**command;
        let Some(command) = command.downcast_ref::<LoadedModule>() else {
            return Err(LoadError::Engine("the module was loaded by another runtime".into()).into());
        };
        Ok(Box::new(Self::exec(self, command.loaded.clone(), spec)?))
    }

    async fn try_instantiate(&self) -> TrialOutcome {
        Self::try_instantiate(self).await
    }
}

#[async_trait]
impl Server for PluginServer {
    async fn drained(&self) {
        Self::drained(self).await;
    }

    fn shut(&self) {
        Self::shut(self);
    }
}

#[async_trait]
impl Server for HttpServer {
    async fn drained(&self) {
        Self::drained(self).await;
    }

    fn shut(&self) {
        Self::shut(self);
    }
}
