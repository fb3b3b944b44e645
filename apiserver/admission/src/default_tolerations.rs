//! DefaultTolerationSeconds: adds tolerations for nodes that are not ready or unreachable, so that pods are evicted
//! only after a delay.

use machinery_api::error::ApiResult;
use serde_json::{Value, json};

use super::{Context, Immediate, Operation, list_mut};

pub(super) const PLUGIN: Immediate =
    Immediate { name: "DefaultTolerationSeconds", mutate: Some(admit), validate: None };

/// Upstream's default: five minutes.
pub(super) const SECONDS: i64 = 300;

fn admit(context: &Context<'_>, pod: &mut Value) -> ApiResult<()> {
    if !context.request.is_pod() || context.request.operation == Operation::Delete {
        return Ok(());
    }
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let Some(tolerations) = list_mut(pod, "spec", "tolerations") else { return Ok(()) };
    for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        let tolerated = tolerations.iter().any(|toleration| {
            let (own, effect) = (text(&toleration["key"]), text(&toleration["effect"]));
            (own == key || own.is_empty()) && (effect == "NoExecute" || effect.is_empty())
        });
        if !tolerated {
            tolerations.push(json!({
                "effect": "NoExecute", "key": key, "operator": "Exists", "tolerationSeconds": context.toleration_seconds,
            }));
        }
    }
    Ok(())
}
