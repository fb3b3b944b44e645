//! The controllers' role: all controllers on the shared informer; with leader election if others share the store.

use std::sync::Arc;

use apiserver_auth::signing::CertificateTemplate;
use apiserver_resources::checking::Warning;

use super::ground::Ground;
use super::identities::ComponentIdentity;
use super::role::Component;

pub(super) fn build(ground: &Ground) -> anyhow::Result<Vec<Component>> {
    let asked = &ground.config.controllers;
    let signing_key = ground.pki.service_account().clone();
    let authority = ground.pki.clone();
    let sign_certificate: controllers::SignCertificate = Arc::new(move |template| {
        let &controllers::CertificateTemplate { request, usages, not_before, not_after } = template;
        authority
            .sign(&CertificateTemplate { request, usages, not_before, not_after })
            .map_err(|error| error.to_string())
    });
    let apiserver = ground.apiserver.clone();
    let check_policy: controllers::CheckPolicy = Arc::new(move |policy| {
        let found = apiserver.check_policy(policy).into_iter();
        found.map(|Warning { field_ref, warning }| controllers::ExpressionWarning { field_ref, warning }).collect()
    });
    let settings = controllers::Settings {
        root_ca_pem: ground.pki.ca_pem().to_owned(),
        cluster_cidrs: vec![(ground.network.pods.into(), ground.network.node_mask)],
        sign_certificate: Some(sign_certificate),
        check_policy: Some(check_policy),
        sign_token: Some(Arc::new(move |claims| signing_key.sign(claims).ok())),
        features: ground.config.features,
        ..controllers::Settings::default()
    };
    let mut config = asked.config(settings, ground.candidate.as_deref().unwrap_or_default());
    config.election = config.election.filter(|_| ground.candidate.is_some());
    config.informer = Some(ground.informer.clone());
    ground.with_metrics(|registry| config.metrics.register(registry));
    let (service, timers) = (ground.service.clone(), ground.env.clone());
    let clients: controllers::Clients =
        Arc::new(move |account| ComponentIdentity::Controller(account).client(&timers, &service));
    let client = ComponentIdentity::ControllerManager.client(&ground.env, &ground.service);
    let (env, stop) = (ground.env.clone(), ground.stop.components.clone());
    let run = async move {
        loop {
            let term = controllers::run(client.clone(), clients.clone(), env.clone(), config.clone(), stop.clone());
            match term.await {
                Ok(()) => return Ok(()),
                // The API server of this process goes on.
                Err(error @ controllers::Error::Election(_)) => tracing::warn!(%error, "the controllers wait"),
            }
        }
    };
    let (env, stop) = (ground.env.clone(), ground.stop.components.clone());
    let inventory = asked.inventory.clone().map(|inventory| {
        Component::new("node inventory", async move {
            inventory.reload_on_changes(env, stop).await;
            Ok(())
        })
    });
    Ok([Component::new("controllers", run)].into_iter().chain(inventory).collect())
}
