//! Sessions of a plugin: an instance that lives between calls, with the resources that its clients know as strings. They have
//! a number, shared among clients as slots are among containers: one may have as many as it leaves free, so that whoever
//! comes next finds some. One that nobody calls for a minute ends.
//!
//! A name that a client chose is bound to that client: the same name of another client is another session. A generated name has 128 random
//! bits, and is enough to call the session.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use wasmtime::component::{Instance, ResourceAny, Val};

use super::super::request;
use crate::bounds::limits::{SESSION_RESOURCES_MAX, SESSIONS_MAX};
use crate::plugin::place::shortened;
use crate::plugin::types::{Shape, resource_word};

/// How long a session lives without a call (contract.md §4).
pub(crate) const SESSION_IDLE_MAX: Duration = Duration::from_secs(60);
/// A session's name: what a client may well choose itself.
const NAME_BYTES_MAX: usize = 128;

/// Whether a client may call a session so.
pub(crate) fn is_name(name: &[u8]) -> bool {
    !name.is_empty() && name.len() <= NAME_BYTES_MAX && name.iter().all(u8::is_ascii_graphic)
}

/// No further session now.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Full;

/// What a session holds.
pub(crate) enum State {
    /// Nobody has called yet.
    New,
    Live(Box<Live>),
    /// Its instance is gone: a call failed or was cut off within it.
    Ended,
}

/// A session's instance and what it handed out.
pub(crate) struct Live {
    pub(crate) instance: request::Instance<Instance>,
    pub(crate) resources: Resources,
}

/// The resources that clients know, by their strings.
#[derive(Default)]
pub(crate) struct Resources {
    known: HashMap<String, (String, ResourceAny)>,
    made: u64,
}

impl Resources {
    /// Puts the resource that a string means in its place; one that passes to the guest is known no more, and goes to
    /// `taken`.
    pub(crate) fn put(&mut self, shape: &Shape, value: &mut Val, taken: &mut Vec<Taken>) -> Result<(), String> {
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
            taken.extend(self.known.remove_entry(name).map(|(name, of)| Taken(name, of)));
        }
        *value = Val::Resource(resource);
        Ok(())
    }

    /// What was taken for a call that was not made.
    pub(crate) fn put_back(&mut self, taken: Vec<Taken>) {
        self.known.extend(taken.into_iter().map(|Taken(name, of)| (name, of)));
    }

    /// Gives a resource of a result its string.
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

/// A resource that a call takes with it.
pub(crate) struct Taken(String, (String, ResourceAny));

/// The key of a session.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    name: Arc<str>,
    /// The client that chose the name; none for a generated name.
    chosen_by: Option<String>,
}

/// One session.
pub(crate) struct Session {
    pub(crate) name: Arc<str>,
    key: Key,
    client: String,
    pub(crate) state: tokio::sync::Mutex<State>,
    used: Mutex<Instant>,
}

impl Session {
    fn used(&self) -> MutexGuard<'_, Instant> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All sessions of one container.
#[derive(Default)]
pub(crate) struct Sessions(Mutex<All>);

#[derive(Default)]
struct All {
    by_key: HashMap<Key, Arc<Session>>,
    /// Somebody looks for idle ones now and then.
    watched: bool,
}

impl All {
    fn begin(
        &mut self,
        key: Key,
        (client, half_full): (&str, bool),
        now: Instant,
    ) -> Result<(Arc<Session>, bool), Full> {
        let own = self.by_key.values().filter(|session| session.client == client).count();
        let holds_half = half_full && !self.by_key.is_empty();
        if holds_half || own >= SESSIONS_MAX.saturating_sub(self.by_key.len()) {
            return Err(Full);
        }
        let session = Arc::new(Session {
            name: key.name.clone(),
            key: key.clone(),
            client: client.to_owned(),
            state: tokio::sync::Mutex::new(State::New),
            used: Mutex::new(now),
        });
        self.by_key.insert(key, session.clone());
        Ok((session, !std::mem::replace(&mut self.watched, true)))
    }
}

impl Sessions {
    fn all(&self) -> MutexGuard<'_, All> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The session that a client names, made where there is none; and whether somebody has to look for idle ones from now on. `half_full`:
    /// so is the container's memory, of which sessions leave as much as they hold to calls that have none.
    pub(crate) fn enter(
        &self,
        name: &str,
        (client, half_full): (&str, bool),
        now: Instant,
    ) -> Result<(Arc<Session>, bool), Full> {
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
        all.begin(key, (client, half_full), now)
    }

    /// A new session with a generated name; the rest as [`Sessions::enter`].
    pub(crate) fn begin(&self, name: &str, of: (&str, bool), now: Instant) -> Result<(Arc<Session>, bool), Full> {
        self.all().begin(Key { name: name.into(), chosen_by: None }, of, now)
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

    /// Ends those that were idle for too long; when to look again, none where there are none.
    pub(crate) fn expire(&self, now: Instant) -> Option<Instant> {
        let mut ended = Vec::new();
        let next = {
            let mut all = self.all();
            // One whose state is locked is being called.
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
        // Their instances go without the lock.
        drop(ended);
        next
    }
}

/// A call within a session; where it doesn't come to its end the session ends.
pub(crate) struct Visit<'a> {
    sessions: &'a Sessions,
    session: Arc<Session>,
    ends: bool,
}

impl<'a> Visit<'a> {
    pub(crate) fn new(sessions: &'a Sessions, session: Arc<Session>) -> Self {
        Self { sessions, session, ends: true }
    }

    /// The session goes on.
    pub(crate) fn stays(&mut self) {
        *self.session.used() = Instant::now();
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
    use super::*;

    #[test]
    fn one_client_leaves_sessions_for_the_next() {
        let sessions = Sessions::default();
        let now = Instant::now();
        let take = |client: &str| {
            (0..).take_while(|n| sessions.enter(&format!("{client}{n}"), (client, false), now).is_ok()).count()
        };
        let counts: Vec<usize> = ["a", "b", "c", "d"].iter().map(|client| take(client)).collect();
        assert_eq!(counts, [SESSIONS_MAX / 2, SESSIONS_MAX / 4, SESSIONS_MAX / 8, SESSIONS_MAX / 16]);
        assert!(sessions.enter("a7", ("a", false), now).is_ok(), "one that lives costs nothing");
        let (session, _) = sessions.enter("a7", ("a", false), now).unwrap();
        sessions.end(&session);
        assert_eq!(sessions.enter("b-more", ("b", false), now).err(), Some(Full), "it is not b's that came free");
        assert!(sessions.enter("e", ("e", false), now).is_ok());
    }

    #[test]
    fn a_name_that_a_client_chose_leads_nobody_else_into_its_session() {
        let sessions = Sessions::default();
        let now = Instant::now();
        let enter = |name: &str, client: &str| sessions.enter(name, (client, false), now).unwrap().0;
        let ours = enter("cart", "shop/a");
        assert!(Arc::ptr_eq(&enter("cart", "shop/a"), &ours));
        let theirs = enter("cart", "shop/b");
        assert!(!Arc::ptr_eq(&theirs, &ours) && theirs.name == ours.name);
        sessions.end(&theirs);
        assert!(Arc::ptr_eq(&enter("cart", "shop/a"), &ours), "each ends its own");
        // A generated name may be handed on.
        let (made, _) = sessions.begin("5f1c", ("shop/a", false), now).unwrap();
        assert!(Arc::ptr_eq(&enter("5f1c", "shop/b"), &made));
    }

    #[test]
    fn sessions_leave_half_of_the_memory() {
        let sessions = Sessions::default();
        let now = Instant::now();
        let (first, _) = sessions.enter("a", ("x", true), now).unwrap();
        assert_eq!(sessions.enter("b", ("y", true), now).err(), Some(Full));
        assert!(sessions.enter("a", ("x", true), now).is_ok(), "one that lives");
        sessions.end(&first);
        assert!(sessions.enter("b", ("y", true), now).is_ok(), "it is calls that hold it");
    }

    #[test]
    fn idle_sessions_end() {
        let sessions = Sessions::default();
        let now = Instant::now();
        let (first, unwatched) = sessions.enter("a", ("x", false), now).unwrap();
        assert!(unwatched && !sessions.enter("a", ("x", false), now).unwrap().1);
        let later = now + Duration::from_secs(30);
        sessions.enter("b", ("x", false), later).unwrap();
        assert_eq!(sessions.expire(now), Some(now + SESSION_IDLE_MAX));
        let called = first.state.try_lock().unwrap();
        assert_eq!(sessions.expire(now + SESSION_IDLE_MAX), Some(now + SESSION_IDLE_MAX + Duration::from_secs(1)));
        drop(called);
        assert_eq!(sessions.expire(now + SESSION_IDLE_MAX), Some(later + SESSION_IDLE_MAX));
        sessions.enter("b", ("x", false), later + SESSION_IDLE_MAX).unwrap();
        assert!(sessions.expire(later + SESSION_IDLE_MAX).is_some(), "a call begins its time anew");
        assert_eq!(sessions.expire(later + 2 * SESSION_IDLE_MAX), None);
        assert!(sessions.enter("b", ("x", false), later + 3 * SESSION_IDLE_MAX).unwrap().1, "nobody looks any more");
    }

    #[test]
    fn a_visit_that_is_cut_off_ends_its_session() {
        let sessions = Sessions::default();
        let now = Instant::now();
        let (session, _) = sessions.enter("a", ("x", false), now).unwrap();
        let mut visit = Visit::new(&sessions, session.clone());
        visit.stays();
        drop(visit);
        assert!(Arc::ptr_eq(&sessions.enter("a", ("x", false), now).unwrap().0, &session));
        drop(Visit::new(&sessions, session.clone()));
        let (other, _) = sessions.enter("a", ("x", false), now).unwrap();
        assert!(!Arc::ptr_eq(&other, &session));
        sessions.end(&session);
        assert!(
            Arc::ptr_eq(&sessions.enter("a", ("x", false), now).unwrap().0, &other),
            "another one of its name stays"
        );
    }

    #[test]
    fn names_are_plain() {
        assert!(is_name(b"my-session.1") && is_name(&[b'a'; 128]));
        assert!(!is_name(b"") && !is_name(b"a b") && !is_name(&[b'a'; 129]) && !is_name("é".as_bytes()));
    }
}
