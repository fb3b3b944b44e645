//! The demo's sample modules and manifests, embedded in the program.

/// Name and bytes of each module.
pub(super) const MODULES: &[(&str, &[u8])] = &[
    ("shop-frontend", include_bytes!("../../../../sample-workloads/bin/shop-frontend.wasm")),
    ("shop-catalog", include_bytes!("../../../../sample-workloads/bin/shop-catalog.wasm")),
    ("shop-users", include_bytes!("../../../../sample-workloads/bin/shop-users.wasm")),
    ("shop-payments", include_bytes!("../../../../sample-workloads/bin/shop-payments.wasm")),
    ("shop-orders", include_bytes!("../../../../sample-workloads/bin/shop-orders.wasm")),
    ("shop-report", include_bytes!("../../../../sample-workloads/bin/shop-report.wasm")),
    ("endless", include_bytes!("../../../../sample-workloads/bin/endless.wasm")),
    ("glutton", include_bytes!("../../../../sample-workloads/bin/glutton.wasm")),
    ("trap", include_bytes!("../../../../sample-workloads/bin/trap.wasm")),
];

/// The manifest of the shop.
pub(super) const SHOP: &str = include_str!("../../../../sample-workloads/manifests/shop.yaml");

/// The manifest of its database, autoscaler and nightly report.
pub(super) const SHOP_ORDERS: &str = include_str!("../../../../sample-workloads/manifests/shop-orders.yaml");

/// Manifests of one misbehaving module each.
pub(super) const MISBEHAVING: &[&str] = &[
    include_str!("../../../../sample-workloads/manifests/endless.yaml"),
    include_str!("../../../../sample-workloads/manifests/glutton.yaml"),
    include_str!("../../../../sample-workloads/manifests/trap.yaml"),
];
