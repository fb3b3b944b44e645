//! Definitions of other API servers' clients. A client that reads `Established` at one server can use the resource at
//! all of them: before a server answers what it serves, or that it doesn't serve something, it is up to date.

use std::time::Duration;

use machinery_api::ApiError;

use super::{GROUP, PLURAL};
use crate::http::handle::RequestHandler;
use crate::http::route::{NoRoute, Route};

/// The maximum time that a request waits for a definition to be served; compilation takes milliseconds.
const SERVED_WAIT: Duration = Duration::from_secs(3);

/// Whether the answer depends on all definitions. Requests for a served resource don't wait.
fn depends_on_definitions(route: &Result<Route, NoRoute>) -> bool {
    match route {
        Ok(Route::Groups | Route::Group(_) | Route::Resources(..)) => true,
        Ok(Route::OpenApiV2 | Route::OpenApiIndex | Route::OpenApi(_)) => true,
        Ok(_) => false,
        Err(NoRoute::PlainNotFound | NoRoute::Error(ApiError::NoSuchResource)) => true,
        Err(NoRoute::Error(_)) => false,
    }
}

impl RequestHandler {
    /// Whether a route was found in an outdated catalog, and is worth another search now: with a store of several
    /// servers, waits until this one serves all definitions that existed before the call.
    pub(crate) async fn definitions_arrived(&self, route: &Result<Route, NoRoute>) -> bool {
        let registry = &self.deps.registry;
        // The only server of a store serves a definition before it is established.
        if registry.cache.is_current() || !depends_on_definitions(route) || registry.sync_cache().await.is_err() {
            return false;
        }
        let Some(prefix) = registry.served.with(|catalog| catalog.prefix(GROUP, PLURAL)) else { return false };
        let newest = registry.cache.resource_revision(prefix.as_str());
        let mut served = self.definitions_served.subscribe();
        let arrived = registry.env.timeout(SERVED_WAIT, served.wait_for(|served| *served >= newest)).await;
        arrived.is_ok_and(|arrived| arrived.is_ok())
    }
}
