//! The authorizer of the dashboard's files: every authenticated user may read them, as they hold no secret. RBAC, which has no
//! rule for them, comes first.

use apiserver::http::static_files::is_below;
use apiserver_auth::{ANONYMOUS, Attributes, Authorize, Decision, MaybeReady, UserInfo};
use apiserver_resources::objects::ObjectReader;

use super::files::PREFIX;

/// Allows authenticated users to read the files.
pub struct DashboardReaders;

impl Authorize for DashboardReaders {
    fn authorize<'a>(
        &'a self,
        _: &'a dyn ObjectReader,
        user: &'a UserInfo,
        request: &'a Attributes<'_>,
    ) -> MaybeReady<'a, Decision> {
        let is_file = !request.is_resource && is_below(PREFIX, request.path) && matches!(request.verb, "get" | "head");
        let allowed = is_file && user.name != ANONYMOUS;
        if allowed { Decision::allow("the dashboard's files").into() } else { Decision::no_opinion("").into() }
    }
}

#[cfg(test)]
mod tests {
    use super::{PREFIX, is_below};

    #[test]
    fn the_files_are_below_their_path() {
        let is_below = |path| is_below(PREFIX, path);
        assert!(is_below("/dashboard") && is_below("/dashboard/") && is_below("/dashboard/app.js"));
        assert!(!is_below("/dashboards") && !is_below("/api/v1/dashboard"));
    }
}
