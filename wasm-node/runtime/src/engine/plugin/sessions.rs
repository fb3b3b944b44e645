//! Sessions of a plugin: an instance that lives between calls, with the resources that its clients hold as strings. Their
//! number is limited and shared among clients like slots among containers: a client may have as many as it leaves free. A
//! session without a call for a minute ends.
//!
//! A name chosen by a client is bound to that client: the same name of another client is another session. A generated name has
//! 128 random bits, which suffice as the authorization to use the session.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use wasmtime::component::{Instance, ResourceAny, Val};

use super::super::request;
use crate::bounds::limits::{SESSION_RESOURCES_MAX, SESSIONS_MAX};
use crate::plugin::error_path::shortened;
use crate::plugin::types::{Shape, resource_word};

/// Maximum time between two calls of a session (docs/contract.md §4).
pub(crate) const SESSION_IDLE_MAX: Duration = Duration::from_secs(60);
/// Maximum bytes of a session's name: enough for a name chosen by a client.
const NAME_BYTES_MAX: usize = 128;

/// Whether a client may choose this name.
pub(crate) fn is_name(name: &[u8]) -> bool {
    !name.is_empty() && name.len() <= NAME_BYTES_MAX && name.iter().all(u8::is_ascii_graphic)
}

/// The limit of sessions is reached.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct SessionLimit;

/// Lifecycle of a session.
pub(crate) enum SessionState {
    /// Before the first call.
    New,
    Live(Box<LiveSession>),
    /// Its instance was dropped: a call failed or was cut off.
    Ended,
}

/// A session's instance and its exported resources.
pub(crate) struct LiveSession {
    pub(crate) instance: request::Instance<Instance>,
    pub(crate) resources: Resources,
}

/// The resources exported to clients, by their strings.
#[derive(Default)]
pub(crate) struct Resources {
    known: HashMap<String, (String, ResourceAny)>,
    made: u64,
}

impl Resources {
    /// Replaces a resource's string by the resource; an owned one passes to the guest: it is removed and appended to
    /// `taken`.
    pub(crate) fn put(&mut self, shape: &Shape, value: &mut Val, taken: &mut Vec<TakenResource>) -> Result<(), String> {
        let (Shape::Own(wanted) | Shape::Borrow(wanted), Val::String(name)) = (shape, &*value) else { return Ok(()) };
        let word = resource_word(wanted);
        let Some((of, resource)) = self.known.get(name) else {
            return Err(format!("wanted a {word} of this session, which knows no {:?}", shortened(name)));
        };
        if of != wanted {
            return Err(format!("wanted a {word}, found a {}", resource_word(of)));
        }
        let resource = *resource;
        if matches!(shape, Shape::Own(_)) {
            taken.extend(self.known.remove_entry(name).map(|(name, of)| TakenResource(name, of)));
        }
        *value = Val::Resource(resource);
        Ok(())
    }

    /// Restores the resources of a call that was not made.
    pub(crate) fn put_back(&mut self, taken: Vec<TakenResource>) {
        self.known.extend(taken.into_iter().map(|TakenResource(name, of)| (name, of)));
    }

    /// Replaces a resource of a result by a string.
    pub(crate) fn keep(&mut self, shape: &Shape, value: &mut Val) -> Result<(), String> {
        let (Shape::Own(of) | Shape::Borrow(of), Val::Resource(resource)) = (shape, &*value) else { return Ok(()) };
        if self.known.len() >= SESSION_RESOURCES_MAX {
            return Err(format!("a session has at most {SESSION_RESOURCES_MAX} resources"));
        }
        self.made += 1;
        let name = format!("{}-{}", resource_word(of), self.made);
        self.known.insert(name.clone(), (of.clone(), *resource));
        *value = Val::String(name);
        Ok(())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.known.is_empty()
    }
}

/// An owned resource passed to a call.
pub(crate) struct TakenResource(String, (String, ResourceAny));

/// The key of a session.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    name: Arc<str>,
    /// The client that chose the name; `None` for a generated name.
    chosen_by: Option<String>,
}

/// One session.
pub(crate) struct Session {
    pub(crate) name: Arc<str>,
    key: Key,
    client: String,
    pub(crate) state: tokio::sync::Mutex<SessionState>,
    used: Mutex<Instant>,
}

impl Session {
    fn used(&self) -> MutexGuard<'_, Instant> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All sessions of one container.
#[derive(Default)]
pub(crate) struct Sessions(Mutex<SessionTable>);

#[derive(Default)]
struct SessionTable {
    by_key: HashMap<Key, Arc<Session>>,
    /// Whether a task expires idle sessions.
    watched: bool,
}

impl SessionTable {
    fn create(
        &mut self,
        key: Key,
        (client, half_full): (&str, bool),
        now: Instant,
    ) -> Result<(Arc<Session>, bool), SessionLimit> {
        let own = self.by_key.values().filter(|session| session.client == client).count();
        let holds_half = half_full && !self.by_key.is_empty();
        if holds_half || own >= SESSIONS_MAX.saturating_sub(self.by_key.len()) {
            return Err(SessionLimit);
        }
        let session = Arc::new(Session {
            name: key.name.clone(),
            key: key.clone(),
            client: client.to_owned(),
            state: tokio::sync::Mutex::new(SessionState::New),
            used: Mutex::new(now),
        });
        self.by_key.insert(key, session.clone());
        Ok((session, !std::mem::replace(&mut self.watched, true)))
    }
}

impl Sessions {
    fn all(&self) -> MutexGuard<'_, SessionTable> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns or creates the session of a client's name; also returns whether the caller must start the expiry task.
    /// `half_full`: more than half of the container's memory is used; the rest is for calls without a session.
    pub(crate) fn find_or_create(
        &self,
        name: &str,
        (client, half_full): (&str, bool),
        now: Instant,
    ) -> Result<(Arc<Session>, bool), SessionLimit> {
        let mut all = self.all();
        let mut key = Key { name: name.into(), chosen_by: None };
        let mut known = all.by_key.get(&key);
        if known.is_none() {
            key.chosen_by = Some(client.to_owned());
            known = all.by_key.get(&key);
        }
        if let Some(known) = known {
            *known.used() = now;
            return Ok((known.clone(), false));
        }
        all.create(key, (client, half_full), now)
    }

    /// Creates a session with a generated name; otherwise as [`Sessions::find_or_create`].
    pub(crate) fn create(
        &self,
        name: &str,
        of: (&str, bool),
        now: Instant,
    ) -> Result<(Arc<Session>, bool), SessionLimit> {
        self.all().create(Key { name: name.into(), chosen_by: None }, of, now)
    }

    /// Ends a session, unless another one has its name by now.
    pub(crate) fn end(&self, session: &Arc<Session>) {
        let mut all = self.all();
        if all.by_key.get(&session.key).is_some_and(|known| Arc::ptr_eq(known, session)) {
            all.by_key.remove(&session.key);
        }
    }

    /// Ends all.
    pub(crate) fn clear(&self) {
        let all = std::mem::take(&mut self.all().by_key);
        drop(all);
    }

    /// Ends sessions over the idle time; returns the time of the next check, `None` without sessions.
    pub(crate) fn expire(&self, now: Instant) -> Option<Instant> {
        let mut ended = Vec::new();
        let next = {
            let mut all = self.all();
            // A locked session is in a call.
            let idle =
                |session: &Arc<Session>| *session.used() + SESSION_IDLE_MAX <= now && session.state.try_lock().is_ok();
            all.by_key.retain(|_, session| {
                let idle = idle(session);
                if idle {
                    ended.push(session.clone());
                }
                !idle
            });
            let due = |session: &Arc<Session>| (*session.used() + SESSION_IDLE_MAX).max(now + SESSION_IDLE_MAX / 60);
            let next = all.by_key.values().map(due).min();
            all.watched = next.is_some();
            next
        };
        // Drops instances without the lock.
        drop(ended);
        next
    }
}

/// A call within a session; dropping it before its end ends the session.
pub(crate) struct Visit<'a> {
    sessions: &'a Sessions,
    session: Arc<Session>,
    ends: bool,
}

impl<'a> Visit<'a> {
    pub(crate) fn new(sessions: &'a Sessions, session: Arc<Session>) -> Self {
        Self { sessions, session, ends: true }
    }

    /// Keeps the session alive.
    pub(crate) fn keep_session(&mut self, now: Instant) {
        *self.session.used() = now;
        self.ends = false;
    }
}

impl Drop for Visit<'_> {
    fn drop(&mut self) {
        if self.ends {
            self.sessions.end(&self.session);
        }
    }
}

#[cfg(test)]
mod tests {
    use machinery_env::Env;

    use super::*;

    #[test]
    fn one_client_leaves_sessions_for_the_next() {
        let sessions = Sessions::default();
        let now = Env::real().instant();
        let take = |client: &str| {
            (0..).take_while(|n| sessions.find_or_create(&format!("{client}{n}"), (client, false), now).is_ok()).count()
        };
        let counts: Vec<usize> = ["a", "b", "c", "d"].iter().map(|client| take(client)).collect();
        assert_eq!(counts, [SESSIONS_MAX / 2, SESSIONS_MAX / 4, SESSIONS_MAX / 8, SESSIONS_MAX / 16]);
        assert!(sessions.find_or_create("a7", ("a", false), now).is_ok(), "one that lives costs nothing");
        let (session, _) = sessions.find_or_create("a7", ("a", false), now).unwrap();
        sessions.end(&session);
        assert_eq!(
            sessions.find_or_create("b-more", ("b", false), now).err(),
            Some(SessionLimit),
            "it is not b's that came free"
        );
        assert!(sessions.find_or_create("e", ("e", false), now).is_ok());
    }

    #[test]
    fn a_chosen_session_name_gives_no_other_client_access() {
        let sessions = Sessions::default();
        let now = Env::real().instant();
        let enter = |name: &str, client: &str| sessions.find_or_create(name, (client, false), now).unwrap().0;
        let ours = enter("cart", "shop/a");
        assert!(Arc::ptr_eq(&enter("cart", "shop/a"), &ours));
        let theirs = enter("cart", "shop/b");
        assert!(!Arc::ptr_eq(&theirs, &ours) && theirs.name == ours.name);
        sessions.end(&theirs);
        assert!(Arc::ptr_eq(&enter("cart", "shop/a"), &ours), "each ends its own");
        // A generated name may be passed on to other clients.
        let (made, _) = sessions.create("5f1c", ("shop/a", false), now).unwrap();
        assert!(Arc::ptr_eq(&enter("5f1c", "shop/b"), &made));
    }

    #[test]
    fn sessions_leave_half_of_the_memory() {
        let sessions = Sessions::default();
        let now = Env::real().instant();
        let (first, _) = sessions.find_or_create("a", ("x", true), now).unwrap();
        assert_eq!(sessions.find_or_create("b", ("y", true), now).err(), Some(SessionLimit));
        assert!(sessions.find_or_create("a", ("x", true), now).is_ok(), "one that lives");
        sessions.end(&first);
        assert!(sessions.find_or_create("b", ("y", true), now).is_ok(), "it is calls that hold it");
    }

    #[test]
    fn idle_sessions_end() {
        let sessions = Sessions::default();
        let now = Env::real().instant();
        let (first, unwatched) = sessions.find_or_create("a", ("x", false), now).unwrap();
        assert!(unwatched && !sessions.find_or_create("a", ("x", false), now).unwrap().1);
        let later = now + Duration::from_secs(30);
        sessions.find_or_create("b", ("x", false), later).unwrap();
        assert_eq!(sessions.expire(now), Some(now + SESSION_IDLE_MAX));
        let called = first.state.try_lock().unwrap();
        assert_eq!(sessions.expire(now + SESSION_IDLE_MAX), Some(now + SESSION_IDLE_MAX + Duration::from_secs(1)));
        drop(called);
        assert_eq!(sessions.expire(now + SESSION_IDLE_MAX), Some(later + SESSION_IDLE_MAX));
        sessions.find_or_create("b", ("x", false), later + SESSION_IDLE_MAX).unwrap();
        assert!(sessions.expire(later + SESSION_IDLE_MAX).is_some(), "a call begins its time anew");
        assert_eq!(sessions.expire(later + 2 * SESSION_IDLE_MAX), None);
        assert!(
            sessions.find_or_create("b", ("x", false), later + 3 * SESSION_IDLE_MAX).unwrap().1,
            "nobody looks any more"
        );
    }

    #[test]
    fn a_visit_that_is_cut_off_ends_its_session() {
        let sessions = Sessions::default();
        let now = Env::real().instant();
        let (session, _) = sessions.find_or_create("a", ("x", false), now).unwrap();
        let mut visit = Visit::new(&sessions, session.clone());
        visit.keep_session(now);
        drop(visit);
        assert!(Arc::ptr_eq(&sessions.find_or_create("a", ("x", false), now).unwrap().0, &session));
        drop(Visit::new(&sessions, session.clone()));
        let (other, _) = sessions.find_or_create("a", ("x", false), now).unwrap();
        assert!(!Arc::ptr_eq(&other, &session));
        sessions.end(&session);
        assert!(
            Arc::ptr_eq(&sessions.find_or_create("a", ("x", false), now).unwrap().0, &other),
            "another one of its name stays"
        );
    }

    #[test]
    fn names_are_plain() {
        assert!(is_name(b"my-session.1") && is_name(&[b'a'; 128]));
        assert!(!is_name(b"") && !is_name(b"a b") && !is_name(&[b'a'; 129]) && !is_name("é".as_bytes()));
    }
}
