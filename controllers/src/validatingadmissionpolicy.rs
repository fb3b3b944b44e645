//! `validatingadmissionpolicy-status-controller`: writes type errors of a policy's expressions into its status. The
//! type check needs the served types ([`crate::Authority::check_policy`]).

use k8s_openapi::api::admissionregistration::v1::ValidatingAdmissionPolicy;
use machinery_api::ObjectKey;
use machinery_client::driver::own_key;
use machinery_client::{Action, BackOff, Context, Controller, Input, ObjectCache, Plan, value_of};
use serde_json::{Value, json};

use crate::Settings;

pub(crate) const CONTROLLER: Controller<Settings> = Controller {
    name: "validatingadmissionpolicy-status-controller",
    account: "validatingadmissionpolicy-status-controller",
    workers: 1,
    back_off: BackOff::DEFAULT,
    inputs: &[Input::of::<ValidatingAdmissionPolicy>(own_key)],
    reconcile,
};

fn reconcile(view: &ObjectCache, key: &ObjectKey, context: &Context<'_, Settings>) -> Plan {
    let Some(policy) = view.get::<ValidatingAdmissionPolicy>(key) else { return Plan::nothing() };
    let generation = policy.metadata.generation.unwrap_or(0);
    let observed = policy.status.as_ref().and_then(|status| status.observed_generation).unwrap_or(0);
    if generation <= observed {
        return Plan::nothing();
    }
    let Some(found) = context.settings.authority.check_policy(&value_of(policy)) else { return Plan::nothing() };
    let warnings: Vec<Value> =
        found.into_iter().map(|found| json!({"fieldRef": found.field_ref, "warning": found.warning})).collect();
    let warnings = if warnings.is_empty() { Value::Null } else { warnings.into() };
    let status = json!({"observedGeneration": generation, "typeChecking": {"expressionWarnings": warnings}});
    let patch = json!({"metadata": {"uid": policy.metadata.uid}, "status": status});
    vec![Action::patch(policy, patch).on("status")].into()
}

#[cfg(test)]
mod tests {
    use machinery_client::simulate::Simulation;

    use super::*;
    use crate::table_tests::{decide, start};

    fn policy(expression: &str, status: Value) -> Value {
        json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy",
            "metadata": {"name": "p", "generation": 2}, "status": status,
            "spec": {"validations": [{"expression": expression}]}})
    }

    fn status(of: Value) -> Option<Value> {
        let mut simulation: Simulation = crate::simulation(start(), [of]);
        let key = ObjectKey::cluster("p");
        let plan = decide("validatingadmissionpolicy-status-controller", &simulation, &key);
        let acted = !plan.actions.is_empty();
        assert_eq!(simulation.apply(plan), Vec::<String>::new());
        assert_eq!(decide("validatingadmissionpolicy-status-controller", &simulation, &key), Plan::nothing());
        let policy = simulation.view.get::<ValidatingAdmissionPolicy>(&key).unwrap();
        acted.then(|| value_of(policy)["status"].take())
    }

    #[test]
    fn each_generation_is_checked_once() {
        let warnings = json!([{"fieldRef": "spec.validations[0].expression", "warning": "no wrong"}]);
        let checked = |warnings: Value| Some(json!({"observedGeneration": 2, "typeChecking": warnings}));
        assert_eq!(status(policy("wrong", json!({}))), checked(json!({"expressionWarnings": warnings})));
        let before = json!({"observedGeneration": 1, "typeChecking": {"expressionWarnings": warnings}});
        assert_eq!(status(policy("right", before)), checked(json!({})), "what was wrong before isn't told any more");
        assert_eq!(status(policy("wrong", json!({"observedGeneration": 2}))), None);
    }
}
