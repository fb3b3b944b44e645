//! Encodes aggregated discovery as protobuf, by the field numbers of `apidiscovery.k8s.io/v2`. Fields that are not
//! pointers in Go are always written.

use serde_json::Value;

use super::message::{Message, VARINT};

/// Encodes an `APIGroupDiscoveryList` as a response body: a `runtime.Unknown` with its type.
pub(super) fn list(of: &Value) -> Vec<u8> {
    let mut list = Message::default();
    let mut metadata = Message::default();
    (1..=3).for_each(|number| metadata.bytes(number, b""));
    list.message(1, metadata);
    items(&mut list, 2, &of["items"], group);
    let mut of_type = Message::default();
    string(&mut of_type, 1, &of["apiVersion"]);
    string(&mut of_type, 2, &of["kind"]);
    let mut unknown = Message(b"k8s\0".to_vec());
    unknown.message(1, of_type);
    unknown.message(2, list);
    unknown.bytes(3, b"");
    unknown.bytes(4, b"");
    unknown.0
}

fn string(out: &mut Message, number: u32, value: &Value) {
    out.bytes(number, value.as_str().unwrap_or_default().as_bytes());
}

fn items(out: &mut Message, number: u32, list: &Value, of: impl Fn(&Value) -> Message) {
    for item in list.as_array().into_iter().flatten() {
        out.message(number, of(item));
    }
}

fn group(of: &Value) -> Message {
    let mut metadata = Message::default();
    string(&mut metadata, 1, &of["metadata"]["name"]);
    (2..=6).for_each(|number| metadata.bytes(number, b""));
    metadata.tag(7, VARINT);
    metadata.varint(0);
    metadata.bytes(8, b"");
    let mut out = Message::default();
    out.message(1, metadata);
    items(&mut out, 2, &of["versions"], |of| {
        let mut out = Message::default();
        string(&mut out, 1, &of["version"]);
        items(&mut out, 2, &of["resources"], resource);
        string(&mut out, 3, &of["freshness"]);
        out
    });
    out
}

fn resource(of: &Value) -> Message {
    let mut out = Message::default();
    string(&mut out, 1, &of["resource"]);
    kind(&mut out, 2, &of["responseKind"]);
    string(&mut out, 3, &of["scope"]);
    string(&mut out, 4, &of["singularResource"]);
    for (number, name) in [(5, "verbs"), (6, "shortNames"), (7, "categories")] {
        out.texts(number, &of[name]);
    }
    items(&mut out, 8, &of["subresources"], |of| {
        let mut out = Message::default();
        string(&mut out, 1, &of["subresource"]);
        kind(&mut out, 2, &of["responseKind"]);
        for accepted in of["acceptedTypes"].as_array().into_iter().flatten() {
            kind(&mut out, 3, accepted);
        }
        out.texts(4, &of["verbs"]);
        out
    });
    out
}

/// Writes a `GroupVersionKind` if there is one.
fn kind(out: &mut Message, number: u32, of: &Value) {
    if !of.is_object() {
        return;
    }
    let mut kind = Message::default();
    for (number, name) in [(1, "group"), (2, "version"), (3, "kind")] {
        string(&mut kind, number, &of[name]);
    }
    out.message(number, kind);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_written_as_a_running_upstream_wrote_it() {
        let mut json: Value = serde_json::from_str(include_str!("testdata/discovery-api.json")).expect("JSON");
        json["kind"] = "APIGroupDiscoveryList".into();
        json["apiVersion"] = "apidiscovery.k8s.io/v2".into();
        assert!(list(&json) == include_bytes!("testdata/discovery-api.pb"));
    }
}
