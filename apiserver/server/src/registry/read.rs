//! Get, list, and where a watch begins.

use machinery_api::selector::{FieldRequirement, go_quoted};
use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use machinery_api::error::Named;
use machinery_api::{ApiError, Cause};

use super::object::parse_version;
use super::page::{self, Continue};
use super::{Answer, Registry, RequestScope, ResponseObject, store_error};
use crate::request::options::{ListOptions, Match};
use apiserver_resources::ResourceInfo;
use apiserver_resources::objects::ObjectSource;
use apiserver_storage::cache::{Cached, Page, Selectors, VersionError, Watch};
use apiserver_storage::store::Revision;

/// How long a read waits for a version that hasn't been reached (upstream: 3 s).
const VERSION_WAIT: Duration = Duration::from_secs(3);

/// A list's answer.
#[derive(Debug)]
pub struct List {
    /// In key order.
    pub items: Vec<Arc<Cached>>,
    /// The list's version.
    pub revision: Revision,
    /// Where the next page begins.
    pub continue_token: Option<String>,
    /// How many items follow this page; not counted with selectors.
    pub remaining: Option<u64>,
}

/// How a watch begins.
pub struct WatchStart {
    /// What is there, in key order, to be shown as added.
    pub initial: Vec<Arc<Cached>>,
    /// The version of the state that `initial` is.
    pub revision: Revision,
    /// Whether a bookmark says that the initial state is over.
    pub initial_events_bookmark: bool,
    /// What follows.
    pub watch: Watch,
}

/// 504 for a version that isn't reached.
pub(super) fn too_large(wanted: Revision, current: Revision) -> ApiError {
    let cause = Cause {
        reason: "ResourceVersionTooLarge".into(),
        message: "Too large resource version".into(),
        field: String::new(),
    };
    ApiError::Timeout(format!("Timeout: Too large resource version: {wanted}, current: {current}"), 1, vec![cause])
}

/// 410 for a watch that begins before history does.
fn too_old(wanted: Revision, oldest: Revision) -> ApiError {
    ApiError::Expired(format!("too old resource version: {wanted} ({oldest})"))
}

impl Registry {
    /// Waits for a version; an error where it doesn't come.
    async fn reach(&self, revision: Revision) -> Result<(), ApiError> {
        if self.cache.until(revision, VERSION_WAIT).await {
            return Ok(());
        }
        Err(too_large(revision, self.cache.revision()))
    }

    /// Waits until everything is here that was acknowledged to anybody.
    pub(crate) async fn newest(&self) -> Result<(), ApiError> {
        self.cache.sync().await.map_err(|error| store_error(&error))
    }

    /// The object of the path.
    pub async fn get(&self, call: &RequestScope<'_>, version: &str) -> Result<Answer, ApiError> {
        if !version.is_empty() {
            let wanted = parse_version(version).map_err(|e| bad_version("", version, &e))?;
            self.reach(wanted).await?;
        } else {
            self.newest().await?;
        }
        if let Some(source) = &call.row.source {
            let missing = || match source.missing_as() {
                Some(named) => ApiError::NotFound(Named::new(&*call.row.group, named), call.name.to_owned()),
                None => call.not_found(),
            };
            let made = source.get(call.object_namespace(), call.name).await.ok_or_else(missing)?;
            return Ok(Answer::Object(200, ResponseObject::Value(made)));
        }
        let cached = self.cache.get(call.key().as_str()).ok_or_else(|| call.not_found())?;
        let cached = self.versions.show_one(call.row, cached).await?;
        Ok(Answer::Object(200, ResponseObject::Cached(cached)))
    }

    /// What a list's selectors come to, with labels of the stored version, or upstream's refusal of a field.
    pub fn selectors(call: &RequestScope<'_>, options: &ListOptions) -> Result<Selectors, ApiError> {
        let row = call.row;
        let mut selectors = options.selectors.clone();
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

    /// A page of what is in the collection of the path.
    pub async fn list(&self, call: &RequestScope<'_>, options: &ListOptions) -> Result<Answer, ApiError> {
        let selectors = Self::selectors(call, options)?;
        if let Some(source) = &call.row.source {
            return self.list_made(call, &**source, &selectors).await;
        }
        let scope = call.scope();
        let asked = &options.resource_version;
        let token = match options.continue_token.as_str() {
            "" => None,
            text => Some(Continue::decode(text)?),
        };
        if token.is_some() && !matches!(asked.as_str(), "" | "0") {
            let message = "specifying resource version is not allowed when using continue";
            return Err(ApiError::BadRequest(message.into()));
        }
        let wanted = match asked.as_str() {
            "" => 0,
            text => parse_version(text).map_err(|e| bad_version("invalid resource version: ", text, &e))?,
        };
        // As upstream's cache: a list of any version comes whole.
        let limit = if asked == "0" { 0 } else { usize::try_from(options.limit).unwrap_or(0) };
        let (mut at, mut start, mut left) = (None, None, None);
        if let Some(token) = token {
            left = token.left;
            if let Some(revision) = token.revision {
                self.reach(revision).await?;
                at = Some(revision);
            }
            start = Some(token.start);
        } else {
            let exact = match options.version_match {
                Some(Match::Exact) => true,
                Some(Match::NotOlderThan) => false,
                None => limit > 0 && wanted > 0,
            };
            if wanted > 0 {
                self.reach(wanted).await?;
            } else if asked.is_empty() {
                self.newest().await?;
            }
            at = (exact && wanted > 0).then_some(wanted);
        }
        // The token names the first key that may follow; the cache takes the last that came before.
        let after = start.as_ref().map(|s| scope.key(s.strip_suffix('\0').unwrap_or(s)));
        let page = match self.one_name(call, at, after.as_deref(), &selectors) {
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
                // What was counted with the first page, less what came since; else one by one for an old version.
                let left = left.map(|left| left.saturating_sub(page.items.len() as u64));
                left.or(page.remaining).or_else(|| self.cache.count_after(scope.as_str(), last, page.revision).ok())
            }
            _ => None,
        };
        let (items, revision) = (page.items, page.revision);
        let token = |key| Continue { left: remaining, ..Continue::after(key, Some(revision)) }.encode();
        let continue_token = next.map(token);
        self.listed(call, List { items, revision, continue_token, remaining }).await
    }

    /// A list of what was found, as the version of the path shows it.
    async fn listed(&self, call: &RequestScope<'_>, mut list: List) -> Result<Answer, ApiError> {
        list.items = self.versions.show(call.row, list.items).await?;
        Ok(Answer::List(list))
    }

    /// A list of objects that are made when they are asked for: always whole, and of now.
    async fn list_made(
        &self,
        call: &RequestScope<'_>,
        source: &dyn ObjectSource,
        selectors: &Selectors,
    ) -> Result<Answer, ApiError> {
        self.newest().await?;
        let namespace = Some(call.namespace).filter(|namespace| !namespace.is_empty());
        let made = source.list(namespace).await;
        let items = made.iter().map(|object| Arc::new(Cached::unstored(object)));
        let items = items.filter(|item| selectors.matches(item)).collect();
        Ok(Answer::List(List { items, revision: self.cache.revision(), continue_token: None, remaining: None }))
    }

    /// A list of one name reads one key.
    fn one_name(
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
        // The revision first: the object may only be newer than the list claims to be.
        let revision = self.cache.revision();
        let key = super::key(call.row, call.object_namespace(), name);
        let found = self.cache.get(key.as_str()).filter(|c| selectors.matches(c));
        let items: Vec<Arc<Cached>> = found.into_iter().collect();
        let revision = items.iter().map(|c| c.modified).max().unwrap_or(0).max(revision);
        Some(Page { items, revision, remaining: Some(0), next: None })
    }

    /// Begins a watch of the collection of the path. Errors of a version are for the stream, as upstream sends them.
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
            self.newest().await?;
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
            && let Err(error) = self.reach(wanted).await
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
                // Compacted between the two steps: list again.
                Err(VersionError::Compacted(_) | VersionError::Future(_)) => continue,
            }
        }
    }
}

fn bad_version(what: &str, text: &str, error: &str) -> ApiError {
    ApiError::BadRequest(format!("{what}resourceVersion: Invalid value: {}: {error}", go_quoted(text)))
}

/// Refuses a field that the kind can't be selected by, in the words of the kind's own conversion upstream.
fn check_field(row: &ResourceInfo, label: &str) -> Result<(), ApiError> {
    // Kinds with fields of their own upstream list each label, and cluster-wide ones leave the namespace out.
    let generic = label == "metadata.name"
        || label == "metadata.namespace" && (row.namespaced || row.strategy.selectable_labels().is_empty());
    if generic || row.strategy.selectable_labels().iter().any(|known| known == label) {
        return Ok(());
    }
    Err(ApiError::BadRequest(row.strategy.unknown_label(label)))
}
