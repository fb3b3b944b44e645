//! `agnhost guestbook`: a key-value store with replicas, and its frontend.
use super::not_listening;
use crate::client;
use crate::flags::Flags;
use crate::http::Response;
use crate::net::{Stream, resolve};
use crate::task::sleep;
use crate::web::{self, Call, log};
use alloc::rc::Rc;
use core::cell::RefCell;
use guest::{String, ToOwned, ToString, Vec, format, text};
use serde_json::{Map, Value, json};
use unix::{Context, Ended};

const FLAGS: [&str; 3] = ["http-port", "backend-port", "replicaof"];
/// Attempts to register at the primary, one a second.
const ATTEMPTS: u32 = 15;
const SECOND_NS: u64 = 1_000_000_000;
/// Maximum replicas and keys.
const ENTRIES_MAX: usize = 1000;

struct Book {
    backend_port: u16,
    store: RefCell<Map<String, Value>>,
    replicas: RefCell<Vec<String>>,
}

pub fn guestbook(context: &mut Context, args: &[String]) -> Ended {
    super::serve(context, "guestbook", async || {
        let flags = Flags::read(args, &FLAGS, &[])?;
        let port = web::port(flags.get("http-port").unwrap_or("80"))?;
        let backend_port = web::port(flags.get("backend-port").unwrap_or("6379"))?;
        let book = Rc::new(Book { backend_port, store: RefCell::default(), replicas: RefCell::default() });
        let served = Rc::clone(&book);
        let respond = web::handler(move |call| respond(Rc::clone(&served), call));
        web::listen(port, respond).map_err(|code| not_listening("tcp", port, code))?;
        match flags.get("replicaof") {
            Some(primary) => book.register(primary).await,
            None => Ok(()),
        }
    })
}

impl Book {
    fn at(&self, host: &str) -> String {
        if host.contains(':') {
            format!("[{host}]:{}", self.backend_port)
        } else {
            format!("{host}:{}", self.backend_port)
        }
    }

    /// Registers this replica at its primary and takes over the store.
    async fn register(&self, primary: &str) -> Result<(), String> {
        let at = self.at(primary);
        for _ in 0..ATTEMPTS {
            match self.try_register(primary, &at).await {
                Ok(store) => {
                    *self.store.borrow_mut() = store;
                    log(&format!("Registered to node: {primary}"));
                    return Ok(());
                }
                Err(problem) => {
                    log(&format!("encountered error while registering to primary: {problem}. Retrying in 1s."))
                }
            }
            sleep(SECOND_NS).await;
        }
        Err("Timed out while registering to primary.".into())
    }

    async fn try_register(&self, primary: &str, at: &str) -> Result<Map<String, Value>, String> {
        // The pod's own address is that of a connection to the primary.
        let addresses = resolve(primary).await.map_err(|failure| failure.words())?;
        let stream = Stream::connect(&addresses, self.backend_port).await.map_err(|failure| failure.words())?;
        let own = stream.own_address().ok_or("no address")?;
        drop(stream);
        let response = client::get(at, &format!("register?host={own}")).await?;
        let response: Value = serde_json::from_str(&response).map_err(|error| format!("{error}"))?;
        Ok(response["data"].as_object().cloned().unwrap_or_default())
    }
}

async fn respond(book: Rc<Book>, call: Call) -> Response {
    let result = match call.path.as_str() {
        "/register" => register(&book, &call),
        "/get" => Ok(get(&book, &call)),
        "/set" => set(&book, &call).await,
        "/guestbook" => forward(&book, &call).await,
        _ => Err(Response::error(404, "404 page not found")),
    };
    result.unwrap_or_else(|problem| problem)
}

fn register(book: &Book, call: &Call) -> Result<Response, Response> {
    let host = call.parameter("host").to_owned();
    log(&format!("GET /register?host={host}"));
    let mut replicas = book.replicas.borrow_mut();
    if replicas.len() >= ENTRIES_MAX {
        return Err(Response::error(417, "too many replicas"));
    }
    replicas.push(host);
    Ok(Response::ok(json!({"data": *book.store.borrow()}).to_string()))
}

fn get(book: &Book, call: &Call) -> Response {
    let key = call.parameter("key");
    log(&format!("GET /get?key={key}"));
    let store = book.store.borrow();
    let data = if key.is_empty() { json!(*store) } else { store.get(key).cloned().unwrap_or_else(|| "".into()) };
    Response::ok(json!({"data": data}).to_string())
}

async fn set(book: &Book, call: &Call) -> Result<Response, Response> {
    let (key, value) = (call.parameter("key"), call.parameter("value"));
    log(&format!("GET /set?key={key}&value={value}"));
    if key.is_empty() {
        return Err(Response::error(400, "cannot set with empty key."));
    }
    if book.store.borrow().len() >= ENTRIES_MAX {
        return Err(Response::error(417, "too many keys"));
    }
    book.store.borrow_mut().insert(key.to_owned(), value.into());
    let request = format!("set?key={}&value={}", text::encode(key), text::encode(value));
    let replicas = book.replicas.borrow().clone();
    for replica in &replicas {
        client::get(&book.at(replica), &request).await.map_err(|problem| {
            Response::error(417, &format!("encountered error while propagating to replica '{replica}': {problem}"))
        })?;
    }
    Ok(Response::ok(json!({"message": "Updated"}).to_string()))
}

/// The frontend: writes go to the primary, reads to a replica.
async fn forward(book: &Book, call: &Call) -> Result<Response, Response> {
    let command = call.parameter("cmd").to_ascii_lowercase();
    let (key, value) = (call.parameter("key"), call.parameter("value"));
    log(&format!("GET /guestbook?cmd={command}&key={key}&value={value}"));
    let host = match command.as_str() {
        "set" if key.is_empty() => return Err(Response::error(400, "cannot set with empty key.")),
        "set" => "agnhost-primary",
        "get" => "agnhost-replica",
        _ => return Err(Response::error(400, &format!("unsupported cmd: '{command}'"))),
    };
    let request = format!("{command}?key={}&value={}", text::encode(key), text::encode(value));
    match client::get(&book.at(host), &request).await {
        Ok(response) => Ok(Response::ok(response)),
        Err(problem) => Err(Response::error(417, &format!("encountered error: {problem}"))),
    }
}
