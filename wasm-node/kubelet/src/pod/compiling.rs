//! Tells a pod that its module is being compiled, where that takes long.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use machinery_client::{EventRecord, reference_to};

use super::shared::Shared;
use crate::spec::containers;

/// Upstream has no word for it, as it compiles nothing.
const REASON: &str = "Compiling";

fn message(image: &str, so_far: Duration, may: Option<Duration>) -> String {
    let (so_far, bound) =
        (so_far.as_secs(), may.map(|may| format!(", of at most {} s once it is its turn", may.as_secs())));
    format!("Compiling module of image {image:?}: {so_far} s so far{}", bound.unwrap_or_default())
}

/// Who writes that as events about a pod's container.
pub(super) fn teller<'a>(
    node: &'a Shared,
    pod: &'a Pod,
    container: &'a str,
    image: &'a str,
) -> impl Fn(Duration) + Send + Sync + 'a {
    // Most pods are told nothing: what it takes is looked for when it is wanted.
    move |so_far| {
        let spec = containers::spec(pod);
        let own = containers::each(&spec).find(|(_, of)| of.name == container);
        let mut about = reference_to(pod);
        about.field_path = own.map(|(class, _)| format!("{}{{{container}}}", containers::field(class)));
        let message = message(image, so_far, node.parts.runtime.compile_time_max());
        node.recorder.record(EventRecord { about, warning: false, reason: REASON, message, source: None });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_of_a_compilation() {
        let second = Duration::from_secs;
        let of = |may| message("registry.local/a:v1", second(30), may);
        assert_eq!(
            of(Some(second(120))),
            r#"Compiling module of image "registry.local/a:v1": 30 s so far, of at most 120 s once it is its turn"#
        );
        assert_eq!(of(None), r#"Compiling module of image "registry.local/a:v1": 30 s so far"#);
    }
}
