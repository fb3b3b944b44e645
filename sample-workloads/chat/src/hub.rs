//! All connections and their rooms. A room exists while it has members. No I/O: the event loop moves the bytes.
use crate::frames::{Opcode, write_frame};
use crate::peer::{Effect, Member, Peer};
use crate::settings::Settings;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use serde_json::json;

/// Maximum names of others in the first message of a room. The message also has their number.
const NAMES_MAX: usize = 50;
/// Maximum bytes in buffers of all connections after a turn of the event loop. A turn adds at most one read for each of them.
const BUFFER_BYTES_MAX: usize = 24 * 1024 * 1024;

pub struct Hub {
    settings: Settings,
    peers: BTreeMap<u64, Peer>,
    accepted_total: u64,
    messages_total: u64,
    dropped_total: u64,
    /// Lines for the log.
    lines: Vec<String>,
}

impl Hub {
    pub fn new(settings: Settings) -> Self {
        let peers = BTreeMap::new();
        Self { settings, peers, accepted_total: 0, messages_total: 0, dropped_total: 0, lines: Vec::new() }
    }

    /// Adds a connection and returns its number; `None` if there are too many.
    pub fn accept(&mut self, now_ms: u64) -> Option<u64> {
        if self.peers.len() >= self.settings.clients_max {
            return None;
        }
        self.accepted_total += 1;
        self.peers.insert(self.accepted_total, Peer::new(now_ms));
        Some(self.accepted_total)
    }

    pub fn peer(&mut self, id: u64) -> Option<&mut Peer> {
        self.peers.get_mut(&id)
    }

    /// The time of the next [`Hub::tick`].
    pub fn next_deadline_ms(&self) -> Option<u64> {
        self.peers.values().map(Peer::deadline_ms).min()
    }

    /// Lines for the log since the last call.
    pub fn take_lines(&mut self) -> Vec<String> {
        core::mem::take(&mut self.lines)
    }

    /// Handles received bytes of a connection.
    pub fn receive(&mut self, id: u64, bytes: &[u8], now_ms: u64) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let mut member = peer.member().cloned();
        for effect in peer.receive(bytes, &self.settings, now_ms) {
            match effect {
                Effect::Joins(wanted) => member = Some(self.join(id, wanted)),
                Effect::Says(text) => {
                    if let Some(member) = &member {
                        self.messages_total += 1;
                        self.send(&member.room, &json!({"type": "message", "name": member.name, "text": text}));
                    }
                }
                Effect::WantsStats { is_head } => self.answer_stats(id, is_head, now_ms),
            }
        }
        self.leave_if_ended(id, member);
    }

    /// The output of a connection's peer has ended.
    pub fn end_input(&mut self, id: u64, now_ms: u64) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let member = peer.member().cloned();
        peer.end_input(now_ms);
        self.leave_if_ended(id, member);
    }

    /// Removes a connection.
    pub fn remove(&mut self, id: u64) {
        if let Some(peer) = self.peers.remove(&id) {
            self.leave(peer.member());
        }
    }

    /// Pings silent connections, and drops those that stay silent. Then bounds the memory of all.
    pub fn tick(&mut self, now_ms: u64) {
        for peer in self.peers.values_mut().filter(|peer| peer.deadline_ms() <= now_ms) {
            peer.tick(&self.settings, now_ms);
            if peer.is_closed()
                && let Some(member) = peer.member()
            {
                self.lines.push(format!("{} of {} doesn't answer and is dropped", member.name, member.room));
            }
        }
        self.shed(BUFFER_BYTES_MAX);
    }

    /// Drops the connections with the largest buffers, until all buffers together have at most `bytes_max`.
    fn shed(&mut self, bytes_max: usize) {
        let open = || self.peers.values().filter(|peer| !peer.is_closed());
        let mut total: usize = open().map(Peer::buffered).sum();
        if total <= bytes_max {
            return;
        }
        let mut largest: Vec<&mut Peer> = self.peers.values_mut().filter(|peer| !peer.is_closed()).collect();
        largest.sort_unstable_by_key(|peer| core::cmp::Reverse(peer.buffered()));
        for peer in largest {
            if total <= bytes_max {
                break;
            }
            total -= peer.buffered();
            peer.drop_now();
            self.dropped_total += 1;
            self.lines.push(format!("a connection with {} bytes in buffers is dropped", peer.buffered()));
        }
    }

    /// Announces that a member has left, if it was one before and is none now.
    fn leave_if_ended(&mut self, id: u64, before: Option<Member>) {
        if self.peers.get(&id).is_none_or(|peer| peer.member().is_none()) {
            self.leave(before.as_ref());
        }
    }

    fn members<'a>(&'a self, room: &'a str) -> impl Iterator<Item = &'a Member> {
        self.peers.values().filter_map(Peer::member).filter(move |member| member.room == room)
    }

    fn join(&mut self, id: u64, wanted: Member) -> Member {
        let taken: BTreeSet<&str> = self.members(&wanted.room).map(|member| member.name.as_str()).collect();
        let mut name = wanted.name.clone();
        // At most as many numbers as connections.
        for number in 2.. {
            if !taken.contains(name.as_str()) {
                break;
            }
            name = format!("{} ({number})", wanted.name);
        }
        let member = Member { room: wanted.room, name };
        self.send(&member.room, &json!({"type": "joined", "name": member.name}));
        let count = self.members(&member.room).count() + 1;
        let others = self.members(&member.room).take(NAMES_MAX).map(|member| &member.name).collect::<Vec<_>>();
        let welcome =
            json!({"type": "welcome", "room": member.room, "name": member.name, "others": others, "count": count});
        // The close frame may be in the same piece as the handshake.
        if let Some(peer) = self.peers.get_mut(&id).filter(|peer| !peer.is_ending()) {
            peer.queue(&text_frame(&welcome)); // has space: the queue has only responses to one read
            peer.join(member.clone());
        }
        self.lines.push(format!("{} joins {}", member.name, member.room));
        member
    }

    fn leave(&mut self, member: Option<&Member>) {
        if let Some(member) = member {
            self.send(&member.room, &json!({"type": "left", "name": member.name}));
            self.lines.push(format!("{} leaves {}", member.name, member.room));
        }
    }

    /// Sends to all members of a room. Drops members that don't read, so that the others don't wait.
    fn send(&mut self, room: &str, value: &serde_json::Value) {
        let frame = text_frame(value);
        let in_room = |peer: &Peer| peer.member().is_some_and(|member| member.room == room);
        for peer in self.peers.values_mut().filter(|peer| !peer.is_closed() && in_room(peer)) {
            if !peer.queue(&frame) {
                peer.drop_now();
                self.dropped_total += 1;
                let name = peer.member().map_or("", |member| &member.name);
                self.lines.push(format!("{name} of {room} doesn't read its messages and is dropped"));
            }
        }
    }

    fn answer_stats(&mut self, id: u64, is_head: bool, now_ms: u64) {
        let mut rooms: BTreeMap<&str, usize> = BTreeMap::new();
        for member in self.peers.values().filter_map(Peer::member) {
            *rooms.entry(&member.room).or_default() += 1;
        }
        let stats = json!({
            "connections": self.peers.len(),
            "rooms": rooms,
            "messages_total": self.messages_total,
            "dropped_total": self.dropped_total,
        });
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.respond(200, "Cache-Control: no-store\r\n", "application/json", &stats.to_string(), is_head, now_ms);
        }
    }
}

fn text_frame(value: &serde_json::Value) -> Vec<u8> {
    let mut frame = Vec::new();
    write_frame(&mut frame, Opcode::Text, value.to_string().as_bytes(), None);
    frame
}

#[cfg(test)]
#[path = "hub_tests.rs"]
mod tests;
