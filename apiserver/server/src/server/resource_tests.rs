//! Tests that resources are added and removed on a running server, and that all documents and paths follow.

use std::sync::Arc;
use std::time::Duration;

use apiserver_schema::{self as schema, types::Text};
use axum::body::{Body, BodyDataStream};
use futures::StreamExt as _;
use http::Request;
use http_body_util::BodyExt as _;
use machinery_api::{GroupVersionKind, StoragePrefix};
use machinery_env::Env;
use serde_json::{Value, json};
use tower::ServiceExt as _;

use super::{Apiserver, Config};
use crate::test_catalog::resource;
use apiserver_auth::UserInfo;
use apiserver_catalog::ResourceConflict;
use apiserver_resources::cells::column;
use apiserver_resources::{Column, Context, ResourceInfo, SharedStrategy, Strategy, field::ErrorList};
use apiserver_storage::store::memory::MemoryStore;

const WAIT: Duration = Duration::from_secs(20);

/// The strategy of widgets.
struct Widgets;

impl Strategy for Widgets {
    fn validate(&self, _: &Context<'_>, object: &Value, _: Option<&Value>, errors: &mut ErrorList) {
        let at = apiserver_resources::field::Path::root("data");
        if object["data"]["color"] == "none" {
            errors.invalid(&at.child("color"), "none", "must be a color");
        }
    }
}

fn widgets() -> ResourceInfo {
    let maps = resource("", "configmaps");
    ResourceInfo {
        group: "x.example.com".into(),
        version: "v1".into(),
        api_version: "x.example.com/v1".into(),
        kind: "Widget".into(),
        plural: "widgets".into(),
        singular: "widget".into(),
        short_names: vec!["wd".into()],
        categories: vec!["all".into()],
        prefix: Some(StoragePrefix::new("x.example.com/widgets")),
        strategy: SharedStrategy::Owned(Arc::new(Widgets)),
        custom: None,
        ..ResourceInfo::clone(maps)
    }
}

const WIDGETS: &str = "/apis/x.example.com/v1/namespaces/default/widgets";
const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

struct Server(Apiserver);

impl Server {
    async fn open() -> Self {
        let (env, _) = Env::seeded(3, "2026-01-01T00:00:00Z".parse().unwrap());
        let server =
            Self(Apiserver::open(&env, Arc::new(MemoryStore::new(env.clone())), Config::of_tests()).await.unwrap());
        let namespace = json!({"metadata": {"name": "default"}});
        assert_eq!(server.ask("POST", "/api/v1/namespaces", namespace).await.0, 201);
        server
    }

    async fn answer(&self, method: &str, path: &str, accept: &str, body: Value) -> http::Response<Body> {
        let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
        let request = Request::builder().method(method).uri(path).header("accept", accept);
        self.perform(request.header("content-type", "application/json").body(body).unwrap()).await
    }

    async fn perform(&self, mut request: Request<Body>) -> http::Response<Body> {
        request.extensions_mut().insert(UserInfo::component("admin", Some("system:masters")));
        self.0.service().oneshot(request).await.unwrap()
    }

    async fn send(&self, request: Request<Body>) -> (u16, Value) {
        let response = self.perform(request).await;
        let code = response.status().as_u16();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (code, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
    }

    /// The group's OpenAPI document and its URL.
    async fn described(&self) -> (String, Value) {
        let (_, index) = self.get("/openapi/v3").await;
        let url = index["paths"]["apis/x.example.com/v1"]["serverRelativeURL"].as_str().unwrap().to_owned();
        let (code, document) = self.get(&url).await;
        assert_eq!(code, 200, "{url}");
        (url, document)
    }

    async fn ask(&self, method: &str, path: &str, body: Value) -> (u16, Value) {
        let response = self.answer(method, path, "application/json", body).await;
        let code = response.status().as_u16();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (code, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
    }

    async fn get(&self, path: &str) -> (u16, Value) {
        self.ask("GET", path, Value::Null).await
    }

    async fn watch(&self, path: &str) -> BodyDataStream {
        let response = self.answer("GET", path, "*/*", Value::Null).await;
        assert_eq!(response.status(), 200, "{path}");
        response.into_body().into_data_stream()
    }

    /// Aggregated discovery: its ETag, and whether it includes the widgets.
    async fn aggregated(&self) -> (String, bool) {
        let response = self.answer("GET", "/apis", AGGREGATED, Value::Null).await;
        let tag = response.headers()[http::header::ETAG].to_str().unwrap().to_owned();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        let document: Value = serde_json::from_slice(&bytes).unwrap();
        let groups = document["items"].as_array().unwrap();
        let found = groups.iter().find(|group| group["metadata"]["name"] == "x.example.com");
        let resource = found.map(|group| &group["versions"][0]["resources"][0]);
        assert!(resource.is_none_or(|r| r["resource"] == "widgets" && r["responseKind"]["kind"] == "Widget"));
        (tag, resource.is_some())
    }

    /// Whether group list, resource list and OpenAPI index include the group.
    async fn documents(&self) -> (bool, u16, bool) {
        let (_, groups) = self.get("/apis").await;
        let group = groups["groups"].as_array().unwrap().iter().any(|group| group["name"] == "x.example.com");
        let (_, index) = self.get("/openapi/v3").await;
        (group, self.get("/apis/x.example.com/v1").await.0, index["paths"].get("apis/x.example.com/v1").is_some())
    }
}

async fn event(stream: &mut BodyDataStream) -> Option<Value> {
    let chunk = Env::real().timeout(WAIT, stream.next()).await.expect("an event in time")?.unwrap();
    Some(serde_json::from_slice(&chunk).unwrap())
}

fn widget(name: &str, color: &str) -> Value {
    json!({"apiVersion": "x.example.com/v1", "kind": "Widget", "metadata": {"name": name}, "data": {"color": color}})
}

/// A strategy whose columns and labels are defined at runtime.
struct Gadgets {
    columns: Vec<Column>,
    labels: Vec<Text>,
}

impl Strategy for Gadgets {
    fn validate(&self, _: &Context<'_>, _: &Value, _: Option<&Value>, _: &mut ErrorList) {}

    fn columns(&self) -> &[Column] {
        &self.columns
    }

    fn cells(&self, object: &Value, _: jiff::Timestamp) -> Vec<Value> {
        vec![object["spec"]["size"].clone()]
    }

    fn selectable(&self, object: &Value) -> Vec<String> {
        vec![object["spec"]["color"].as_str().unwrap_or("").to_owned()]
    }

    fn selectable_labels(&self) -> &[Text] {
        &self.labels
    }
}

/// A resource with a type of its own.
fn gadgets(part: &str) -> ResourceInfo {
    let of = GroupVersionKind { group: "x.example.com", version: "v1", kind: "Gadget" };
    let part =
        json!({"type": "object", "properties": {"name": {"type": "string"}, part: {"type": "integer", "default": 1}}});
    let spec = json!({"type": "object", "properties": {
        "size": {"type": "integer", "format": "int32", "default": 3, "description": "How large it is."},
        "color": {"type": "string", "enum": ["red", "blue"]},
        "share": {"x-kubernetes-int-or-string": true},
        "parts": {"type": "array", "items": part, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
            "x-kubernetes-patch-merge-key": "name", "x-kubernetes-patch-strategy": "merge"},
        "notes": {"type": "object", "additionalProperties": {"type": "string"}},
        "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}});
    let schema = json!({"type": "object", "description": "A gadget.", "properties": {"spec": spec}});
    let strategy =
        Gadgets { columns: vec![column("Size", "integer")], labels: vec![Text::Owned(".spec.color".into())] };
    ResourceInfo {
        kind: "Gadget".into(),
        plural: "gadgets".into(),
        singular: "gadget".into(),
        short_names: Vec::new(),
        schema: schema::structural(schema::built_in(), of, &schema).unwrap().into(),
        prefix: Some(StoragePrefix::new("x.example.com/gadgets")),
        strategy: SharedStrategy::Owned(Arc::new(strategy)),
        custom: None,
        ..widgets()
    }
}

const GADGETS: &str = "/apis/x.example.com/v1/namespaces/default/gadgets";

/// Checks the OpenAPI schemas of the gadgets' types.
fn check_gadgets(document: &Value) {
    let schemas = &document["components"]["schemas"];
    let gadget = &schemas["com.example.x.v1.Gadget"];
    assert_eq!(
        (&gadget["description"], &gadget["x-kubernetes-group-version-kind"]),
        (&json!("A gadget."), &json!([{"group": "x.example.com", "version": "v1", "kind": "Gadget"}]))
    );
    let fields = &schemas["com.example.x.v1.Gadget_spec"]["properties"];
    assert_eq!((&fields["size"]["default"], &fields["size"]["description"]), (&json!(3), &json!("How large it is.")));
    assert_eq!(
        (&fields["color"]["enum"], &fields["parts"]["x-kubernetes-list-map-keys"]),
        (&json!(["red", "blue"]), &json!(["name"]))
    );
    assert!(schemas["com.example.x.v1.Gadget_spec_parts"]["properties"].get("weight").is_some());
    assert_eq!(schemas["com.example.x.v1.Gadget_spec_free"]["x-kubernetes-preserve-unknown-fields"], true);
    for part in document.to_string().split("#/components/schemas/").skip(1) {
        let name = part.split('"').next().unwrap();
        assert!(schemas.get(name).is_some(), "{name}");
    }
}

#[tokio::test]
async fn a_resource_brings_types_of_its_own() {
    let server = Server::open().await;
    server.0.add_resource(widgets()).await.unwrap();
    server.0.add_resource(gadgets("weight")).await.unwrap();
    let gadget = |spec: Value| json!({"metadata": {"name": "g"}, "spec": spec});
    let strict = format!("{GADGETS}?fieldValidation=Strict");
    let (code, refused) = server.ask("POST", &strict, gadget(json!({"parts": [{"height": 1}]}))).await;
    let message = refused["message"].as_str().unwrap();
    assert!(code == 400 && message.ends_with("unknown field \"spec.parts[0].height\""), "{message}");
    let (code, refused) = server.ask("POST", GADGETS, gadget(json!({"notes": {"a": 1}}))).await;
    assert_eq!((code, refused["message"].as_str().unwrap().contains("spec.notes of type string")), (400, true));
    let given = json!({"color": "red", "share": "5%", "parts": [{"name": "a"}], "notes": {"n": "1"}, "free": {"x": {"y": [null]}}});
    let (code, made) = server.ask("POST", &strict, gadget(given.clone())).await;
    let mut spec = given;
    (spec["size"], spec["parts"][0]["weight"]) = (json!(3), json!(1));
    assert_eq!((code, &made["spec"], &made["kind"]), (201, &spec, &json!("Gadget")));

    let patched = async |media: &str, patch: Value| {
        let request = Request::builder().method("PATCH").uri(format!("{GADGETS}/g?fieldValidation=Strict"));
        let request = request.header("content-type", format!("application/{media}-patch+json"));
        server.send(request.body(Body::from(patch.to_string())).unwrap()).await
    };
    let (code, after) =
        patched("strategic-merge", json!({"spec": {"parts": [{"name": "b"}], "free": {"x": {"z": 1}}}})).await;
    spec["parts"] = json!([{"name": "b", "weight": 1}, {"name": "a", "weight": 1}]);
    spec["free"]["x"]["z"] = json!(1);
    assert_eq!((code, &after["spec"]), (200, &spec));
    let (code, refused) = patched("merge", json!({"spec": {"height": 1}})).await;
    assert_eq!((code, refused["message"].as_str().unwrap().contains("unknown field")), (422, true), "{refused}");
    assert_eq!(patched("merge", json!({"spec": {"size": 9, "share": 4, "parts": null}})).await.1["spec"]["share"], 4);
    let selected = async |color: &str| server.get(&format!("{GADGETS}?fieldSelector=.spec.color={color}")).await.1;
    assert_eq!(
        (selected("red").await["items"][0]["spec"]["size"].clone(), selected("blue").await["items"].clone()),
        (json!(9), json!([]))
    );
    assert_eq!(server.get(&format!("{GADGETS}?fieldSelector=.spec.size=9")).await.0, 400);
    let table = server.answer("GET", GADGETS, "application/json;as=Table;v=v1;g=meta.k8s.io", Value::Null).await;
    let table: Value = serde_json::from_slice(&table.into_body().collect().await.unwrap().to_bytes()).unwrap();
    assert_eq!((&table["columnDefinitions"][0]["name"], &table["rows"][0]["cells"]), (&json!("Size"), &json!([9])));

    let (url, document) = server.described().await;
    check_gadgets(&document);

    // The resource is added again with a different type; objects stored under the first type remain.
    assert!(server.0.remove_resource(gadgets("weight").gvr()).await);
    assert!(server.described().await.1["components"]["schemas"].get("com.example.x.v1.Gadget").is_none());
    server.0.add_resource(gadgets("height")).await.unwrap();
    let (other_url, document) = server.described().await;
    assert_ne!(url, other_url, "another type, another hash");
    assert!(
        document["components"]["schemas"]["com.example.x.v1.Gadget_spec_parts"]["properties"].get("height").is_some()
    );
    let (code, after) = patched("merge", json!({"spec": {"parts": [{"name": "c", "height": 2}]}})).await;
    assert_eq!(
        (code, &after["spec"]["parts"], &after["spec"]["size"]),
        (200, &json!([{"name": "c", "height": 2}]), &json!(9))
    );
}

#[tokio::test]
async fn a_resource_comes_and_goes_on_a_running_server() {
    let server = Server::open().await;
    let (tag_before, _) = server.aggregated().await;
    let mut maps = server.watch("/api/v1/configmaps?watch=true").await;
    assert_eq!(server.documents().await, (false, 404, false));
    assert_eq!(server.get(WIDGETS).await.0, 404);

    server.0.add_resource(widgets()).await.unwrap();
    assert_eq!(server.0.add_resource(widgets()).await, Err(ResourceConflict::Name("widgets.x.example.com".into())));
    let elsewhere = ResourceInfo { plural: "gadgets".into(), ..widgets() };
    assert_eq!(server.0.add_resource(elsewhere).await, Err(ResourceConflict::Prefix("widgets.x.example.com".into())));

    let (tag, listed) = server.aggregated().await;
    assert!(listed && tag != tag_before);
    assert_eq!(server.documents().await, (true, 200, true));
    let (_, resources) = server.get("/apis/x.example.com/v1").await;
    assert_eq!(resources["resources"][0]["shortNames"], json!(["wd"]));
    let (url, document) = server.described().await;
    assert!(document["paths"].get(WIDGETS.replace("default", "{namespace}")).is_some());

    let mut watch = server.watch(&format!("{WIDGETS}?watch=true")).await;
    assert_eq!(server.ask("POST", WIDGETS, widget("bad", "none")).await.0, 422, "its own rules hold");
    let (code, made) = server.ask("POST", WIDGETS, widget("w", "red")).await;
    assert_eq!((code, &made["kind"], &made["apiVersion"]), (201, &json!("Widget"), &json!("x.example.com/v1")));
    assert_eq!(server.get(WIDGETS).await.1["items"].as_array().unwrap().len(), 1);
    let seen = event(&mut watch).await.unwrap();
    assert_eq!((&seen["type"], &seen["object"]["metadata"]["name"]), (&json!("ADDED"), &json!("w")));
    let objects = server.0.objects();
    let found = apiserver_resources::objects::ObjectReader::get(&*objects, "x.example.com", "widgets", "default", "w");
    assert_eq!(found.unwrap()["data"]["color"], "red", "what reads objects by name finds it");

    let name = widgets();
    assert!(server.0.remove_resource(name.gvr()).await && !server.0.remove_resource(name.gvr()).await);
    assert_eq!(event(&mut watch).await, None, "its watches end");
    assert_eq!(server.documents().await, (false, 404, false));
    assert_eq!(server.aggregated().await, (tag_before, false));
    assert_eq!(server.get(WIDGETS).await.0, 404);
    assert_eq!(server.ask("POST", WIDGETS, widget("v", "red")).await.0, 404);
    assert_eq!(server.get(&format!("{WIDGETS}?watch=true")).await.0, 404);
    assert_eq!(server.get(&url).await.0, 404);

    // Watches of other kinds continue, and stored objects reappear with their kind.
    let map = json!({"metadata": {"name": "m"}});
    assert_eq!(server.ask("POST", "/api/v1/namespaces/default/configmaps", map).await.0, 201);
    assert_eq!(event(&mut maps).await.unwrap()["object"]["metadata"]["name"], "m");
    server.0.add_resource(widgets()).await.unwrap();
    assert_eq!(server.get(&format!("{WIDGETS}/w")).await.1["data"]["color"], "red");
    assert_eq!(server.aggregated().await.0, tag);
}
