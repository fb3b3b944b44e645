//! Records events while a pod's module is compiled for a long time.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use machinery_client::{EventRecord, reference_to};

use super::shared::NodeContext;
use crate::spec::containers;

/// Not a reason of upstream, which compiles nothing.
const REASON: &str = "Compiling";

fn message(image: &str, so_far: Duration, may: Option<Duration>) -> String {
    let (so_far, bound) =
        (so_far.as_secs(), may.map(|may| format!(", of at most {} s once it is its turn", may.as_secs())));
    format!("Compiling module of image {image:?}: {so_far} s so far{}", bound.unwrap_or_default())
}

/// Returns a function that records this event about a pod's container.
pub(super) fn compile_reporter<'a>(
    node: &'a NodeContext,
    pod: &'a Pod,
    container: &'a str,
    image: &'a str,
) -> impl Fn(Duration) + Send + Sync + 'a {
    // Most pods record nothing, so the field path is resolved on demand.
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
    fn compilations_have_their_messages() {
        let second = Duration::from_secs;
        let of = |may| message("registry.local/a:v1", second(30), may);
        assert_eq!(
            of(Some(second(120))),
            r#"Compiling module of image "registry.local/a:v1": 30 s so far, of at most 120 s once it is its turn"#
        );
        assert_eq!(of(None), r#"Compiling module of image "registry.local/a:v1": 30 s so far"#);
    }
}
