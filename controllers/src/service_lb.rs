//! `service-lb-controller`: assigns addresses of a pool to Services of type LoadBalancer, without a cloud
//! (`docs/decisions/0084-address-pool.md`).
//!
//! An IPAddress object allocates an address: only one creation of it succeeds. It is created before the Service's
//! status shows the address, and deleted after the Service has released it. So the next pass can complete after any
//! crash.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::LazyLock;
use std::time::Duration;

use clap::Args;
use k8s_openapi::api::core::v1::{Service, ServiceSpec};
use k8s_openapi::api::networking::v1::{IPAddress, IPAddressSpec, ParentReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use machinery_api::ObjectKey;
use machinery_api::names::ADDRESS_POOL_CLASS;
use machinery_client::{Action, BackOff, Change, Context, Controller, EventRecord, Input, ObjectCache, Plan, key_of};
use machinery_rules::address_pool::AddressPool;
use serde_json::{Value, json};

use crate::Settings;

const FINALIZER: &str = "service.kubernetes.io/load-balancer-cleanup";
const MANAGED_BY: &str = "ipaddress.kubernetes.io/managed-by";
const MANAGER: &str = "service-lb-controller.coracle.dev";
const FAMILY: &str = "ipaddress.kubernetes.io/ip-family";
/// The component of events, as upstream's.
const SOURCE: &str = "service-controller";
/// The retry interval when no address is free. A released address requeues at once.
const RETRY: Duration = Duration::from_secs(60);

/// The option of load balancers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
pub struct BalancerOptions {
    /// Addresses for Services of type LoadBalancer: blocks, ranges and addresses, as in
    /// 10.0.0.0/28,10.0.1.5-10.0.1.9 (docs/addresses.md, "LoadBalancer Services")
    #[arg(long, env = "CORACLE_LOAD_BALANCER_POOL", value_name = "POOL")]
    load_balancer_pool: Option<AddressPool>,
}

static NO_ADDRESSES: LazyLock<AddressPool> = LazyLock::new(AddressPool::default);

impl BalancerOptions {
    /// The addresses. Empty: Services get none.
    #[must_use]
    pub fn pool(&self) -> &AddressPool {
        self.load_balancer_pool.as_ref().unwrap_or(&NO_ADDRESSES)
    }

    pub fn set_pool(&mut self, pool: AddressPool) {
        self.load_balancer_pool = Some(pool);
    }
}

pub(crate) const CONTROLLER: Controller<Settings> = Controller {
    name: "service-lb-controller",
    account: "service-controller",
    workers: 1,
    back_off: BackOff::DEFAULT,
    inputs: &[Input::of::<Service>(of_service), Input::of::<IPAddress>(of_address)],
    reconcile,
};

fn spec_type(service: &Service) -> Option<&ServiceSpec> {
    service.spec.as_ref().filter(|spec| spec.type_.as_deref() == Some("LoadBalancer"))
}

/// Whether a Service needs an address of the pool: one with another class doesn't.
fn needs_address(service: &Service) -> bool {
    let ours = |spec: &ServiceSpec| spec.load_balancer_class.as_deref().is_none_or(|class| class == ADDRESS_POOL_CLASS);
    spec_type(service).is_some_and(ours) && service.metadata.deletion_timestamp.is_none()
}

fn is_held(service: &Service) -> bool {
    service.metadata.finalizers.iter().flatten().any(|name| name == FINALIZER)
}

fn addresses(service: &Service) -> impl Iterator<Item = &str> {
    let balancer = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    balancer.into_iter().flat_map(|balancer| balancer.ingress.iter().flatten()).filter_map(|one| one.ip.as_deref())
}

fn of_service(_: &ObjectCache, change: &Change) -> Vec<ObjectKey> {
    let concerns =
        |service: Option<&Service>| service.is_some_and(|service| needs_address(service) || is_held(service));
    if concerns(change.before()) || concerns(change.after()) { vec![ObjectKey::clone(&change.key)] } else { Vec::new() }
}

/// The Service that an address is allocated to.
fn holder(address: &IPAddress) -> Option<ObjectKey> {
    let labels = address.metadata.labels.as_ref()?;
    let parent = &address.spec.parent_ref;
    let ours = labels.get(MANAGED_BY).is_some_and(|name| name == MANAGER) && parent.resource == "services";
    ours.then(|| ObjectKey::new(parent.namespace.clone().unwrap_or_default(), parent.name.clone()))
}

/// The Service that holds it; if an address became free, Services without one, too.
fn of_address(view: &ObjectCache, change: &Change) -> Vec<ObjectKey> {
    let held = change.latest::<IPAddress>().and_then(holder);
    // Any client can write an address that isn't the Service's into a status.
    let has = |service: &Service| status_addresses(view, service, &key_of(&service.metadata)).next().is_some();
    let waiting = |service: &&Service| needs_address(service) && !has(service);
    let freed = change.after::<IPAddress>().is_none();
    let waiting = view.all::<Service>().filter(|service| freed && waiting(service)).map(|one| key_of(&one.metadata));
    held.into_iter().chain(waiting).collect()
}

fn is_of(address: &IPAddress, key: &ObjectKey) -> bool {
    holder(address).as_ref() == Some(key)
}

/// The addresses in a Service's status that the Service holds.
fn status_addresses<'a>(
    view: &'a ObjectCache,
    service: &Service,
    key: &ObjectKey,
) -> impl Iterator<Item = &'a IPAddress> {
    let reported = addresses(service).filter_map(|ip| view.get::<IPAddress>(&ObjectKey::cluster(ip)));
    reported.filter(|address| is_of(address, key))
}

/// The addresses that a Service holds.
fn held_addresses<'a>(view: &'a ObjectCache, key: &ObjectKey, service: Option<&Service>) -> Vec<&'a IPAddress> {
    // Usually those of its status; only otherwise all are searched.
    let reported: Vec<&IPAddress> =
        service.into_iter().flat_map(|service| status_addresses(view, service, key)).collect();
    if reported.is_empty() { view.all::<IPAddress>().filter(|address| is_of(address, key)).collect() } else { reported }
}

fn reconcile(view: &ObjectCache, key: &ObjectKey, context: &Context<'_, Settings>) -> Plan {
    let pool = context.settings.options.balancers.pool();
    let service = view.get::<Service>(key);
    let own = held_addresses(view, key, service);
    match service {
        Some(service) if needs_address(service) => match pool.is_empty() {
            // The Service keeps its address.
            true => Plan::nothing(),
            false => ensure(view, service, &own, context),
        },
        Some(service) if !own.is_empty() || (is_held(service) && !pool.is_empty() && is_default(service)) => {
            release(service, &own)
        }
        _ => own.into_iter().map(remove).collect::<Vec<_>>().into(),
    }
}

/// Whether the finalizer of a Service without an address may be this controller's.
fn is_default(service: &Service) -> bool {
    let class = service.spec.as_ref().and_then(|spec| spec.load_balancer_class.as_deref());
    class.is_none_or(|class| class == ADDRESS_POOL_CLASS)
}

fn remove(address: &IPAddress) -> Action {
    Action::delete(address)
}

fn name(address: &IPAddress) -> &str {
    address.metadata.name.as_deref().unwrap_or_default()
}

fn event(service: &Service, reason: &'static str, message: &str) -> Action {
    Action::Event(EventRecord::normal(service, reason, message.to_owned()).from(SOURCE))
}

/// The address for a Service, and whether the Service holds it.
fn choose(
    view: &ObjectCache,
    service: &Service,
    own: &[&IPAddress],
    pool: &AddressPool,
) -> Result<(IpAddr, bool), String> {
    let wish = spec_type(service).and_then(|spec| spec.load_balancer_ip.as_deref()).filter(|wish| !wish.is_empty());
    let wish = wish.map(|text| text.parse::<IpAddr>().map_err(|_| format!("{text} is no IP address"))).transpose()?;
    let fits = |ip: IpAddr| pool.contains(ip) && wish.is_none_or(|wish| wish == ip);
    let mut kept = own.iter().filter_map(|address| name(address).parse::<IpAddr>().ok());
    if let Some(ip) = kept.find(|ip| fits(*ip)) {
        return Ok((ip, true));
    }
    let taken = |ip: IpAddr| view.get::<IPAddress>(&ObjectKey::cluster(ip.to_string()));
    if let Some(wish) = wish {
        if !pool.contains(wish) {
            return Err(format!("{wish} of spec.loadBalancerIP is not in the pool {pool}"));
        }
        return match taken(wish).map(holder) {
            None => Ok((wish, false)),
            Some(Some(holder)) => Err(format!("{wish} of spec.loadBalancerIP is Service {holder}'s")),
            Some(None) => Err(format!("{wish} of spec.loadBalancerIP is taken")),
        };
    }
    // The former address, if its IPAddress was deleted.
    let before = addresses(service).filter_map(|ip| ip.parse().ok()).find(|ip| fits(*ip) && taken(*ip).is_none());
    let free = || {
        let all: BTreeSet<Ipv4Addr> = view.all::<IPAddress>().filter_map(|one| name(one).parse().ok()).collect();
        pool.first_free(|ip| all.contains(&ip)).map(IpAddr::V4)
    };
    let ip = before.or_else(free).ok_or_else(|| format!("no address is left in the pool {pool}"))?;
    Ok((ip, false))
}

fn object(ip: IpAddr, service: &Service) -> IPAddress {
    let labels = [(FAMILY, "IPv4"), (MANAGED_BY, MANAGER)].map(|(key, value)| (key.to_owned(), value.to_owned()));
    let parent_ref = ParentReference {
        group: None,
        resource: "services".into(),
        namespace: service.metadata.namespace.clone(),
        name: service.metadata.name.clone().unwrap_or_default(),
    };
    IPAddress {
        metadata: ObjectMeta { name: Some(ip.to_string()), labels: Some(labels.into()), ..ObjectMeta::default() },
        spec: IPAddressSpec { parent_ref },
    }
}

/// Finalizers and addresses in one write: as upstream, through the status subresource.
fn write(service: &Service, finalizers: &[&str], ingress: &Value) -> Action {
    let meta = &service.metadata;
    let patch = json!({
        "metadata": {"uid": meta.uid, "resourceVersion": meta.resource_version, "finalizers": finalizers},
        "status": {"loadBalancer": {"ingress": ingress}},
    });
    Action::patch(service, patch).on("status")
}

fn ensure(view: &ObjectCache, service: &Service, own: &[&IPAddress], context: &Context<'_, Settings>) -> Plan {
    let mut plan = Plan::nothing();
    let (ip, has) = match choose(view, service, own, context.settings.options.balancers.pool()) {
        Ok(chosen) => chosen,
        Err(why) => {
            let message = format!("Error syncing load balancer: failed to ensure load balancer: {why}");
            plan.push(Action::Event(EventRecord::warning(service, "SyncLoadBalancerFailed", message).from(SOURCE)));
            if own.is_empty() && addresses(service).next().is_some() {
                // The status shows an address of another Service, or of none.
                let finalizers = service.metadata.finalizers.iter().flatten().map(String::as_str);
                plan.push(write(service, &finalizers.collect::<Vec<_>>(), &Value::Null));
            }
            plan.requeue_after(context.now, RETRY);
            return plan;
        }
    };
    let ingress = json!([{"ip": ip, "ipMode": "VIP"}]);
    let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let reported = status.and_then(|status| status.ingress.as_ref()).map(|ingress| json!(ingress));
    if !has {
        plan.push(event(service, "EnsuringLoadBalancer", "Ensuring load balancer"));
        plan.push(Action::create(&object(ip, service)));
    }
    if reported.as_ref() != Some(&ingress) || !is_held(service) {
        let others = service.metadata.finalizers.iter().flatten().map(String::as_str).filter(|name| *name != FINALIZER);
        let finalizers: Vec<&str> = others.chain([FINALIZER]).collect();
        plan.push(write(service, &finalizers, &ingress));
        plan.push(event(service, "EnsuredLoadBalancer", "Ensured load balancer"));
    }
    let text = ip.to_string();
    plan.actions.extend(own.iter().filter(|address| name(address) != text).map(|address| remove(address)));
    plan
}

fn release(service: &Service, own: &[&IPAddress]) -> Plan {
    let mut plan = Plan::nothing();
    plan.push(event(service, "DeletingLoadBalancer", "Deleting load balancer"));
    if is_held(service) || addresses(service).next().is_some() {
        let left = service.metadata.finalizers.iter().flatten().map(String::as_str).filter(|name| *name != FINALIZER);
        plan.push(write(service, &left.collect::<Vec<_>>(), &Value::Null));
    }
    plan.actions.extend(own.iter().map(|address| remove(address)));
    plan.push(event(service, "DeletedLoadBalancer", "Deleted load balancer"));
    plan
}

#[cfg(test)]
mod tests {
    use machinery_client::simulate::Simulation;

    use super::*;
    use crate::simulation;
    use crate::table_tests::start;

    fn service(name: &str, spec: &Value) -> Value {
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "a"}, "spec": spec})
    }

    fn balancer() -> Value {
        json!({"type": "LoadBalancer", "ports": [{"port": 80}]})
    }

    struct Play {
        cluster: Simulation,
        settings: Settings,
    }

    impl Play {
        fn new(pool: &str, objects: Vec<Value>) -> Self {
            let mut settings = Settings::default();
            settings.options.balancers.set_pool(pool.parse().unwrap());
            Self { cluster: simulation(start(), objects), settings }
        }

        fn plan(&self, name: &str) -> Plan {
            let context = self.cluster.context(&self.settings);
            reconcile(&self.cluster.view, &ObjectKey::new("a", name), &context)
        }

        /// A pass; returns events and failures.
        fn pass(&mut self, name: &str) -> Vec<String> {
            let plan = self.plan(name);
            let reported = plan.actions.iter().filter_map(|action| match action {
                Action::Event(event) => Some(format!("{}: {}", event.reason, event.message)),
                _ => None,
            });
            let reported: Vec<String> = reported.collect();
            let failed = self.cluster.apply(plan);
            reported.into_iter().chain(failed).collect()
        }

        fn addresses(&self, name: &str) -> Vec<String> {
            let service = self.cluster.view.get::<Service>(&ObjectKey::new("a", name));
            service.into_iter().flat_map(addresses).map(str::to_owned).collect()
        }

        fn taken(&self) -> Vec<String> {
            let mut all: Vec<String> = self.cluster.view.all::<IPAddress>().map(|one| name(one).to_owned()).collect();
            all.sort();
            all
        }
    }

    #[test]
    fn an_address_is_given_kept_and_released() {
        let mut play = Play::new("10.0.0.1-10.0.0.2", vec![service("web", &balancer())]);
        assert_eq!(
            play.pass("web"),
            ["EnsuringLoadBalancer: Ensuring load balancer", "EnsuredLoadBalancer: Ensured load balancer"]
        );
        let web = play.cluster.view.get::<Service>(&ObjectKey::new("a", "web")).unwrap();
        assert!(is_held(web));
        let status = json!(web.status);
        assert_eq!(status["loadBalancer"], json!({"ingress": [{"ip": "10.0.0.1", "ipMode": "VIP"}]}));
        assert_eq!((play.taken(), play.plan("web")), (vec!["10.0.0.1".to_owned()], Plan::nothing()));
        play.settings.options.balancers.set_pool("10.0.0.2-10.0.0.9".parse().unwrap());
        play.pass("web");
        assert_eq!((play.addresses("web"), play.taken()), (vec!["10.0.0.2".to_owned()], vec!["10.0.0.2".to_owned()]));
        let mut changed = json!(play.cluster.view.get::<Service>(&ObjectKey::new("a", "web")).unwrap());
        changed["apiVersion"] = json!("v1");
        changed["kind"] = json!("Service");
        changed["spec"]["type"] = json!("ClusterIP");
        let mut play = Play::new(
            "",
            vec![changed, {
                let mut held_addresses = json!(object(
                    "10.0.0.2".parse().unwrap(),
                    &serde_json::from_value(service("web", &balancer())).unwrap()
                ));
                held_addresses["apiVersion"] = json!("networking.k8s.io/v1");
                held_addresses["kind"] = json!("IPAddress");
                held_addresses
            }],
        );
        assert_eq!(
            play.pass("web"),
            ["DeletingLoadBalancer: Deleting load balancer", "DeletedLoadBalancer: Deleted load balancer"],
            "also where there is no pool any more"
        );
        assert!(play.taken().is_empty() && play.addresses("web").is_empty());
        assert!(!is_held(play.cluster.view.get::<Service>(&ObjectKey::new("a", "web")).unwrap()));
        assert_eq!(play.plan("web"), Plan::nothing());
    }

    #[test]
    fn an_exhausted_pool_and_requested_addresses() {
        let wish = |ip: &str| {
            let mut spec = balancer();
            spec["loadBalancerIP"] = json!(ip);
            spec
        };
        let mut play = Play::new(
            "10.0.0.1-10.0.0.2",
            vec![
                service("one", &wish("10.0.0.2")),
                service("two", &balancer()),
                service("three", &balancer()),
                service("same", &wish("10.0.0.2")),
                service("far", &wish("192.0.2.1")),
            ],
        );
        play.pass("one");
        play.pass("two");
        assert_eq!((play.addresses("one"), play.addresses("two")), (vec!["10.0.0.2".into()], vec!["10.0.0.1".into()]));
        let failed = "SyncLoadBalancerFailed: Error syncing load balancer: failed to ensure load balancer:";
        for (name, why) in [
            ("three", "no address is left in the pool 10.0.0.1-10.0.0.2"),
            ("same", "10.0.0.2 of spec.loadBalancerIP is Service a/one's"),
            ("far", "192.0.2.1 of spec.loadBalancerIP is not in the pool 10.0.0.1-10.0.0.2"),
        ] {
            assert_eq!(play.pass(name), [format!("{failed} {why}")]);
            assert!(play.plan(name).requeue_at.is_some() && play.addresses(name).is_empty());
        }
    }

    #[test]
    fn an_address_in_a_status_alone_is_not_allocated() {
        let mut thief = service("thief", &balancer());
        thief["status"] = json!({"loadBalancer": {"ingress": [{"ip": "10.0.0.1", "ipMode": "VIP"}]}});
        let mut play = Play::new("10.0.0.1", vec![service("one", &balancer()), thief]);
        play.pass("one");
        let failed = "SyncLoadBalancerFailed: Error syncing load balancer: failed to ensure load balancer:";
        assert_eq!(play.pass("thief"), [format!("{failed} no address is left in the pool 10.0.0.1-10.0.0.1")]);
        assert_eq!((play.addresses("one"), play.addresses("thief")), (vec!["10.0.0.1".to_owned()], Vec::new()));
    }

    #[test]
    fn two_controllers_never_give_the_same_address() {
        let mut play = Play::new("10.0.0.0/24", vec![service("one", &balancer()), service("two", &balancer())]);
        // Both decide on the same view: the first action succeeds once, and its conflict ends the other plan.
        let plans = [play.plan("one"), play.plan("two")];
        for plan in &plans {
            let first = plan.actions.iter().find(|action| !matches!(action, Action::Event(_)));
            let Some(Action::Create { object, .. }) = first else { panic!("{first:?}") };
            assert_eq!(object["metadata"]["name"], "10.0.0.1");
        }
        let [first, _] = plans;
        assert_eq!(play.cluster.apply(first), Vec::<String>::new());
        play.pass("two");
        assert_eq!(play.addresses("two"), ["10.0.0.2"]);
    }

    #[test]
    fn foreign_addresses_are_unchanged() {
        let mut of_class = balancer();
        of_class["loadBalancerClass"] = json!("example.com/cloud");
        let mut other = service("other", &of_class);
        other["metadata"]["finalizers"] = json!([FINALIZER]);
        let mut going = other.clone();
        going["metadata"]["name"] = json!("going");
        going["metadata"]["deletionTimestamp"] = json!("2025-12-31T23:00:00Z");
        let mut play = Play::new("10.0.0.0/24", vec![other, going, service("web", &balancer())]);
        assert_eq!((play.plan("other"), play.plan("going")), (Plan::nothing(), Plan::nothing()));
        play.settings.options.balancers.set_pool(AddressPool::default());
        assert_eq!(play.plan("web"), Plan::nothing(), "no pool");
        of_class["loadBalancerClass"] = json!(ADDRESS_POOL_CLASS);
        let mut play = Play::new("10.0.0.0/24", vec![service("own", &of_class)]);
        play.pass("own");
        assert_eq!(play.addresses("own"), ["10.0.0.1"]);
    }

    #[test]
    fn leftover_addresses_of_a_service_are_released() {
        let gone: Service = serde_json::from_value(service("gone", &balancer())).unwrap();
        let mut left = json!(object("10.0.0.1".parse().unwrap(), &gone));
        left["apiVersion"] = json!("networking.k8s.io/v1");
        left["kind"] = json!("IPAddress");
        let mut play = Play::new("10.0.0.1", vec![left, service("waits", &balancer())]);
        assert_eq!(play.pass("waits").len(), 1, "none is left");
        play.pass("gone");
        assert_eq!(play.taken(), Vec::<String>::new());
        play.pass("waits");
        assert_eq!(play.addresses("waits"), ["10.0.0.1"]);
    }
}
