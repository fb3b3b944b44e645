//! Identities of the roles and their API clients: over the in-process service, with the identity as a typed request
//! extension.

use apiserver::server::ApiService;
use apiserver_auth::UserInfo;
use axum::body::Body;
use http::HeaderValue;
use http::header::USER_AGENT;
use kube::Client;
use machinery_env::Env;

/// A component or another API user of this process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ComponentIdentity {
    /// The user of `DATA_DIR/kubeconfig`.
    Admin,
    Scheduler,
    ControllerManager,
    Proxy,
    /// One controller's service account in `kube-system`.
    Controller(&'static str),
    /// A node agent, by node name.
    Node(String),
}

impl ComponentIdentity {
    fn user(&self) -> UserInfo {
        match self {
            Self::Admin => UserInfo::component("kubernetes-admin", Some("system:masters")),
            Self::Scheduler => UserInfo::component("system:kube-scheduler", None),
            Self::ControllerManager => UserInfo::component("system:kube-controller-manager", None),
            Self::Proxy => UserInfo::component("system:kube-proxy", None),
            Self::Controller(account) => UserInfo::service_account("kube-system", account),
            Self::Node(name) => UserInfo::component(format!("system:node:{name}"), Some("system:nodes")),
        }
    }

    /// The user agent, as upstream's program: the field manager of this role's writes.
    fn agent(&self) -> &'static str {
        match self {
            Self::Admin => "coracle",
            Self::Scheduler => "kube-scheduler",
            Self::ControllerManager | Self::Controller(_) => "kube-controller-manager",
            Self::Proxy => "kube-proxy",
            Self::Node(_) => "kubelet",
        }
    }

    /// A client with this identity.
    pub(super) fn client(&self, env: &Env, service: &ApiService) -> Client {
        let user = self.user();
        let agent = HeaderValue::from_static(self.agent());
        machinery_client::in_process(env, service.clone(), move |request| {
            let (mut head, body) = request.into_parts();
            head.extensions.insert(user.clone());
            head.headers.entry(USER_AGENT).or_insert_with(|| agent.clone());
            http::Request::from_parts(head, Body::new(body))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_role_is_its_own_user() {
        assert_eq!(ComponentIdentity::Node("coracle-1".into()).user().name, "system:node:coracle-1");
        assert_eq!(ComponentIdentity::Node("coracle-1".into()).user().groups, ["system:nodes", "system:authenticated"]);
        assert_eq!(
            ComponentIdentity::Controller("job-controller").user().name,
            "system:serviceaccount:kube-system:job-controller"
        );
        assert_eq!(ComponentIdentity::Admin.user().groups[0], "system:masters");
    }
}
