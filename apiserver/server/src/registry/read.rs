//! The read path: get, list, and the start of a watch, served by the watch cache or an object source.

use machinery_api::selector::{FieldRequirement, go_quoted};
use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use machinery_api::error::GroupResource;
use machinery_api::{ApiError, Cause};

use super::object::parse_version;
use super::page::{self, Continue};
use super::{Registry, RequestScope, ResponseObject, VerbResult, store_error};
use apiserver_resources::ResourceInfo;
use apiserver_resources::objects::ObjectSource;
use apiserver_resources::options::{ListOptions, VersionMatch};
use apiserver_storage::cache::{Cached, Page, Selectors, VersionError, Watch};
use apiserver_storage::store::Revision;

/// The maximum time that a read waits for a revision (upstream: 3 s).
const VERSION_WAIT: Duration = Duration::from_secs(3);

/// The result of a list.
#[derive(Debug)]
pub struct List {
    /// In key order.
    pub items: Vec<Arc<Cached>>,
    /// The list's resourceVersion.
    pub revision: Revision,
    /// The token of the next page.
    pub continue_token: Option<String>,
    /// The number of items after this page; not counted with selectors.
    pub remaining: Option<u64>,
}

/// The start of a watch.
pub struct WatchStart {
    /// The initial state in key order, sent as ADDED events.
    pub initial: Vec<Arc<Cached>>,
    /// The revision of `initial`.
    pub revision: Revision,
    /// Whether a bookmark marks the end of the initial state.
    pub initial_events_bookmark: bool,
    /// The events after it.
    pub watch: Watch,
}

/// 504 for a revision that isn't reached in time.
pub(super) fn too_large(wanted: Revision, current: Revision) -> ApiError {
    let cause = Cause {
        reason: "ResourceVersionTooLarge".into(),
        message: "Too large resource version".into(),
        field: String::new(),
    };
    ApiError::Timeout(format!("Timeout: Too large resource version: {wanted}, current: {current}"), 1, vec![cause])
}

/// 410 for a watch that starts before the oldest event.
fn too_old(wanted: Revision, oldest: Revision) -> ApiError {
    ApiError::Expired(format!("too old resource version: {wanted} ({oldest})"))
}

impl Registry {
    /// Waits for a revision; an error if it isn't reached in time.
    async fn wait_for_revision(&self, revision: Revision) -> Result<(), ApiError> {
        if self.cache.wait_for_revision(revision, VERSION_WAIT).await {
            return Ok(());
        }
        Err(too_large(revision, self.cache.revision()))
    }

    /// Waits until the watch cache has every acknowledged write (a consistent read).
    pub(crate) async fn sync_cache(&self) -> Result<(), ApiError> {
        self.cache.sync().await.map_err(|error| store_error(&error))
    }

    /// Gets the object of the path.
    pub async fn get(&self, call: &RequestScope<'_>, version: &str) -> Result<VerbResult, ApiError> {
        if !version.is_empty() {
            let wanted = parse_version(version).map_err(|e| bad_version("", version, &e))?;
            self.wait_for_revision(wanted).await?;
        } else {
            self.sync_cache().await?;
        }
        if let Some(source) = &call.row.source {
            let missing = || match source.not_found_name() {
                Some(named) => ApiError::NotFound(GroupResource::new(&*call.row.group, named), call.name.to_owned()),
                None => call.not_found(),
            };
            let made = source.get(call.object_namespace(), call.name).await.ok_or_else(missing)?;
            return Ok(VerbResult::Object(200, ResponseObject::Value(made)));
        }
        let cached = self.cache.get(call.key().as_str()).ok_or_else(|| call.not_found())?;
        let cached = self.versions.show_one(call.row, cached).await?;
        Ok(VerbResult::Object(200, ResponseObject::Cached(cached)))
    }

    /// The selectors of a list, with field labels of the stored version, or upstream's error for an unsupported field.
    pub fn selectors(call: &RequestScope<'_>, options: &ListOptions) -> Result<Selectors, ApiError> {
        let row = call.row;
        let mut selectors = Selectors { labels: options.labels.clone(), fields: options.fields.clone() };
        for requirement in &selectors.fields.requirements {
            check_field(row, &requirement.field)?;
        }
        if !call.name.is_empty() {
            match selectors.fields.exact("metadata.name") {
                None if selectors.fields.is_everything() => {
                    selectors.fields = FieldRequirement::equals("metadata.name", call.name).into();
                }
                Some(name) if name == call.name => {}
                _ => {
                    return Err(ApiError::BadRequest(
                        "fieldSelector metadata.name doesn't match requested name".into(),
                    ));
                }
            }
        }
        if row.stored_as.is_some() {
            for requirement in &mut selectors.fields.requirements {
                if let Cow::Owned(label) = row.strategy.stored_label(&requirement.field) {
                    requirement.field = label;
                }
            }
        }
        Ok(selectors)
    }

    /// Lists a page of the path's collection.
    pub async fn list(&self, call: &RequestScope<'_>, options: &ListOptions) -> Result<VerbResult, ApiError> {
        let selectors = Self::selectors(call, options)?;
        if let Some(source) = &call.row.source {
            return self.list_virtual(call, &**source, &selectors).await;
        }
        let scope = call.scope();
        let requested = &options.resource_version;
        let token = match options.continue_token.as_str() {
            "" => None,
            text => Some(Continue::decode(text)?),
        };
        if token.is_some() && !matches!(requested.as_str(), "" | "0") {
            let message = "specifying resource version is not allowed when using continue";
            return Err(ApiError::BadRequest(message.into()));
        }
        let wanted = match requested.as_str() {
            "" => 0,
            text => parse_version(text).map_err(|e| bad_version("invalid resource version: ", text, &e))?,
        };
        // As upstream's watch cache: a list with resourceVersion 0 is never paged.
        let limit = if requested == "0" { 0 } else { usize::try_from(options.limit).unwrap_or(0) };
        let (mut at, mut start, mut left) = (None, None, None);
        if let Some(token) = token {
            left = token.left;
            if let Some(revision) = token.revision {
                self.wait_for_revision(revision).await?;
                at = Some(revision);
            }
            start = Some(token.start);
        } else {
            let exact = match options.version_match {
                Some(VersionMatch::Exact) => true,
                Some(VersionMatch::NotOlderThan) => false,
                None => limit > 0 && wanted > 0,
            };
            if wanted > 0 {
                self.wait_for_revision(wanted).await?;
            } else if requested.is_empty() {
                self.sync_cache().await?;
            }
            at = (exact && wanted > 0).then_some(wanted);
        }
        // The token has the first possible key of the page; the cache takes the last key before it.
        let after = start.as_ref().map(|s| scope.key(s.strip_suffix('\0').unwrap_or(s)));
        let page = match self.list_single_name(call, at, after.as_deref(), &selectors) {
            Some(page) => Ok(page),
            None => self.cache.list(scope.as_str(), at, after.as_deref(), limit, &selectors),
        };
        let page = page.map_err(|gone| match (gone, &start) {
            (VersionError::Compacted(_), Some(start)) => page::expired(start),
            (VersionError::Compacted(_), None) => {
                ApiError::Expired("The resourceVersion for the provided list is too old.".into())
            }
            (VersionError::Future(current), _) => too_large(at.unwrap_or(wanted), current),
            (VersionError::Unregistered, _) => ApiError::NoSuchResource,
        })?;
        let next = page.next.as_deref().and_then(|key| scope.rest(key));
        let remaining = match &page.next {
            Some(last) if selectors.is_empty() => {
                // The first page's count less the items since; without it, an old revision's items are counted.
                let left = left.map(|left| left.saturating_sub(page.items.len() as u64));
                left.or(page.remaining).or_else(|| self.cache.count_after(scope.as_str(), last, page.revision).ok())
            }
            _ => None,
        };
        let (items, revision) = (page.items, page.revision);
        let token = |key| Continue { left: remaining, ..Continue::after(key, Some(revision)) }.encode();
        let continue_token = next.map(token);
        self.list_result(call, List { items, revision, continue_token, remaining }).await
    }

    /// The list in the version of the path.
    async fn list_result(&self, call: &RequestScope<'_>, mut list: List) -> Result<VerbResult, ApiError> {
        list.items = self.versions.show(call.row, list.items).await?;
        Ok(VerbResult::List(list))
    }

    /// Lists a virtual resource: always whole and current.
    async fn list_virtual(
        &self,
        call: &RequestScope<'_>,
        source: &dyn ObjectSource,
        selectors: &Selectors,
    ) -> Result<VerbResult, ApiError> {
        self.sync_cache().await?;
        let namespace = Some(call.namespace).filter(|namespace| !namespace.is_empty());
        let made = source.list(namespace).await;
        let items = made.iter().map(|object| Arc::new(Cached::unstored(object)));
        let items = items.filter(|item| selectors.matches(item)).collect();
        Ok(VerbResult::List(List { items, revision: self.cache.revision(), continue_token: None, remaining: None }))
    }

    /// A list with `metadata.name=…` reads one key.
    fn list_single_name(
        &self,
        call: &RequestScope<'_>,
        at: Option<Revision>,
        after: Option<&str>,
        selectors: &Selectors,
    ) -> Option<Page> {
        let whole = !call.row.namespaced || !call.namespace.is_empty();
        let name = selectors.fields.exact("metadata.name").filter(|n| !n.is_empty() && !n.contains('/'))?;
        if !whole || at.is_some() || after.is_some() {
            return None;
        }
        // The revision is read first: the object may only be newer than the list's revision.
        let revision = self.cache.revision();
        let key = super::key(call.row, call.object_namespace(), name);
        let found = self.cache.get(key.as_str()).filter(|c| selectors.matches(c));
        let items: Vec<Arc<Cached>> = found.into_iter().collect();
        let revision = items.iter().map(|c| c.modified).max().unwrap_or(0).max(revision);
        Some(Page { items, revision, remaining: Some(0), next: None })
    }

    /// Starts a watch of the path's collection. Revision errors are returned for the stream, as upstream sends them.
    pub async fn watch(
        &self,
        call: &RequestScope<'_>,
        options: &ListOptions,
    ) -> Result<Result<WatchStart, ApiError>, ApiError> {
        let selectors = Self::selectors(call, options)?;
        let scope = call.scope();
        let version = &options.resource_version;
        let wanted = match version.as_str() {
            "" => 0,
            text => parse_version(text).map_err(|e| bad_version("", text, &e))?,
        };
        if version.is_empty() {
            self.sync_cache().await?;
        }
        let shows_state = match options.send_initial_events {
            Some(shows) => shows,
            None => wanted == 0,
        };
        if !shows_state {
            let from = if wanted == 0 { None } else { Some(wanted) };
            let watch = self.cache.watch(scope.as_str(), from, selectors);
            return Ok(match watch {
                Ok(watch) => {
                    let revision = if wanted == 0 { self.cache.revision() } else { wanted };
                    Ok(WatchStart { initial: Vec::new(), revision, initial_events_bookmark: false, watch })
                }
                Err(VersionError::Compacted(oldest)) => Err(too_old(wanted, oldest)),
                Err(VersionError::Future(current)) => Err(too_large(wanted, current)),
                Err(VersionError::Unregistered) => return Err(ApiError::NoSuchResource),
            });
        }
        if wanted > 0
            && let Err(error) = self.wait_for_revision(wanted).await
        {
            return Ok(Err(error));
        }
        loop {
            let page = match self.cache.list(scope.as_str(), None, None, 0, &selectors) {
                Ok(page) => page,
                Err(VersionError::Compacted(revision) | VersionError::Future(revision)) => {
                    return Ok(Err(too_old(wanted, revision)));
                }
                Err(VersionError::Unregistered) => return Err(ApiError::NoSuchResource),
            };
            match self.cache.watch(scope.as_str(), Some(page.revision), selectors.clone()) {
                Ok(watch) => {
                    let initial_events_bookmark = options.bookmarks && options.send_initial_events == Some(true);
                    let revision = page.revision;
                    let initial = self.versions.show(call.row, page.items).await?;
                    return Ok(Ok(WatchStart { initial, revision, initial_events_bookmark, watch }));
                }
                Err(VersionError::Unregistered) => return Err(ApiError::NoSuchResource),
                // Compacted between list and watch: list again.
                Err(VersionError::Compacted(_) | VersionError::Future(_)) => continue,
            }
        }
    }
}

fn bad_version(what: &str, text: &str, error: &str) -> ApiError {
    ApiError::BadRequest(format!("{what}resourceVersion: Invalid value: {}: {error}", go_quoted(text)))
}

/// Rejects a field that the kind doesn't support, with the message of upstream's conversion function.
fn check_field(row: &ResourceInfo, label: &str) -> Result<(), ApiError> {
    // Kinds with fields of their own list each label upstream, and cluster-wide ones omit the namespace.
    let generic = label == "metadata.name"
        || label == "metadata.namespace" && (row.namespaced || row.strategy.selectable_labels().is_empty());
    if generic || row.strategy.selectable_labels().iter().any(|known| known == label) {
        return Ok(());
    }
    Err(ApiError::BadRequest(row.strategy.unknown_label(label)))
}
