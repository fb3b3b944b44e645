//! Tests of rooms and connections, without sockets: what each one receives for what others send.
use super::*;
use crate::frames::{Decoder, Event, Sender};
use crate::peer::QUEUE_BYTES_MAX;

const KEY: &str = "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n";

fn request(target: &str) -> String {
    format!(
        "GET {target} HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n{KEY}\r\n"
    )
}

struct Test {
    hub: Hub,
    now_ms: u64,
}

impl Test {
    fn new() -> Self {
        let settings = Settings { clients_max: 10, echo_bytes_max: 1000, ..Settings::default() };
        Self { hub: Hub::new(settings), now_ms: 1_000_000 }
    }

    fn connect(&mut self, target: &str) -> u64 {
        let id = self.hub.accept(self.now_ms).unwrap();
        self.hub.receive(id, request(target).as_bytes(), self.now_ms);
        id
    }

    /// Pending bytes of a connection.
    fn take(&mut self, id: u64) -> Vec<u8> {
        let peer = self.hub.peer(id).unwrap();
        let bytes = peer.pending().to_vec();
        peer.sent(bytes.len());
        bytes
    }

    fn send(&mut self, id: u64, opcode: Opcode, payload: &[u8]) {
        let mut frame = Vec::new();
        write_frame(&mut frame, opcode, payload, Some([9, 8, 7, 6]));
        self.hub.receive(id, &frame, self.now_ms);
    }

    fn say(&mut self, id: u64, text: &str) {
        self.send(id, Opcode::Text, text.as_bytes());
    }

    fn events(&mut self, id: u64) -> Vec<Event> {
        let bytes = self.take(id);
        let response = bytes.windows(4).position(|four| four == b"\r\n\r\n");
        let head = if bytes.starts_with(b"HTTP/1.1 101") { response.unwrap() + 4 } else { 0 };
        let mut rest = &bytes[head..];
        let mut decoder = Decoder::new(Sender::Server, 1 << 20);
        let mut events = Vec::new();
        while let Some(event) = decoder.next(&mut rest).unwrap() {
            events.push(event);
        }
        events
    }

    fn texts(&mut self, id: u64) -> Vec<String> {
        let text = |event| match event {
            Event::Text(text) => text,
            other => panic!("{other:?}"),
        };
        self.events(id).into_iter().map(text).collect()
    }

    fn end(&mut self, id: u64) {
        self.hub.remove(id);
    }
}

#[test]
fn members_of_a_room_see_each_other() {
    let mut test = Test::new();
    let (ada, bob, eve) =
        (test.connect("/ws?room=r&name=ada"), test.connect("/ws?room=r&name=bob"), test.connect("/ws?room=x&name=ada"));
    let welcome = r#"{"count":1,"name":"ada","others":[],"room":"r","type":"welcome"}"#;
    assert_eq!(test.texts(ada), [welcome, r#"{"name":"bob","type":"joined"}"#]);
    assert_eq!(test.texts(bob), [r#"{"count":2,"name":"bob","others":["ada"],"room":"r","type":"welcome"}"#]);
    test.texts(eve);
    test.say(ada, "<b>\"hi\"</b>");
    for id in [ada, bob] {
        assert_eq!(test.texts(id), [r#"{"name":"ada","text":"<b>\"hi\"</b>","type":"message"}"#]);
    }
    assert!(test.texts(eve).is_empty());
    test.end(ada);
    assert_eq!(test.texts(bob), [r#"{"name":"ada","type":"left"}"#]);
}

#[test]
fn a_name_is_of_one_member_and_is_checked() {
    let mut test = Test::new();
    test.connect("/ws?room=r&name=ada");
    test.connect("/ws?room=r&name=ada");
    let third = test.connect("/ws?room=r&name=ada");
    assert!(test.texts(third)[0].contains(r#""name":"ada (3)""#));
    let long = "n".repeat(33);
    for bad in
        ["room=r&name=", "room=r", "name=a", "room=r&name=%0a", "room=r&name=%20a", &format!("room=r&name={long}")]
    {
        let id = test.connect(&format!("/ws?{bad}"));
        assert!(test.take(id).starts_with(b"HTTP/1.1 400 "), "{bad}");
        test.end(id);
    }
}

#[test]
fn a_member_that_does_not_read_is_dropped_and_others_are_not() {
    let mut test = Test::new();
    let (ada, deaf) = (test.connect("/ws?room=r&name=ada"), test.connect("/ws?room=r&name=deaf"));
    let text = "x".repeat(4000);
    for _ in 0..QUEUE_BYTES_MAX / text.len() + 1 {
        test.say(ada, &text);
        test.take(ada);
    }
    assert!(test.hub.peer(deaf).unwrap().is_closed());
    assert!(test.hub.peer(deaf).unwrap().pending().len() <= QUEUE_BYTES_MAX);
    assert_eq!(test.hub.dropped_total, 1);
    test.end(deaf);
    assert_eq!(test.texts(ada), [r#"{"name":"deaf","type":"left"}"#]);
}

#[test]
fn a_flood_and_a_wrong_message_end_their_sender() {
    let mut test = Test::new();
    let ada = test.connect("/ws?room=r&name=ada");
    let close_of = |test: &mut Test, id| {
        test.events(id).into_iter().find_map(|event| if let Event::Close(code) = event { code } else { None })
    };
    for _ in 0..50 {
        test.say(ada, "a");
    }
    assert_eq!(close_of(&mut test, ada), None);
    test.say(ada, "a");
    assert_eq!(close_of(&mut test, ada), Some(1008));
    assert!(test.hub.peer(ada).unwrap().is_ending());
    let bob = test.connect("/ws?room=r&name=bob");
    test.send(bob, Opcode::Binary, b"b");
    assert_eq!(close_of(&mut test, bob), Some(1003));
    let eve = test.connect("/ws?room=r&name=eve");
    test.say(eve, &"e".repeat(5000));
    assert_eq!(close_of(&mut test, eve), Some(1009));
}

#[test]
fn an_echo_returns_messages_and_stops_reading_while_nobody_reads_them() {
    let mut test = Test::new();
    let id = test.connect("/echo");
    test.say(id, "é");
    test.send(id, Opcode::Binary, &[0, 255]);
    test.send(id, Opcode::Ping, b"p");
    let events = test.events(id);
    assert_eq!(events[..2], [Event::Text("é".into()), Event::Binary(Vec::from([0, 255]))]);
    assert_eq!(events[2], Event::Pong);
    while test.hub.peer(id).unwrap().wants_input() {
        test.send(id, Opcode::Binary, &[0; 1000]);
    }
    assert!(test.hub.peer(id).unwrap().pending().len() < 300 * 1024);
    // The close frame is answered, and the connection ends with the peer's end.
    test.take(id);
    test.send(id, Opcode::Close, &[0x0f, 0xa0, b'x']);
    assert_eq!(test.events(id), [Event::Close(Some(4000))]);
    assert!(!test.hub.peer(id).unwrap().is_closed());
    test.hub.end_input(id, test.now_ms);
    assert!(test.hub.peer(id).unwrap().is_closed());
}

#[test]
fn silent_connections_are_pinged_and_end() {
    let mut test = Test::new();
    let (ada, idle) = (test.connect("/ws?room=r&name=ada"), test.hub.accept(test.now_ms).unwrap());
    test.take(ada);
    test.now_ms += 10_000;
    test.hub.tick(test.now_ms);
    assert!(test.take(idle).starts_with(b"HTTP/1.1 408 "));
    test.now_ms += 10_000;
    test.hub.tick(test.now_ms);
    assert!(test.hub.peer(idle).unwrap().is_closed());
    assert_eq!(test.events(ada), [Event::Ping(Vec::new())]);
    test.send(ada, Opcode::Pong, b"");
    test.now_ms += 19_999;
    test.hub.tick(test.now_ms);
    assert!(test.take(ada).is_empty());
    for _ in 0..2 {
        assert!(!test.hub.peer(ada).unwrap().is_closed());
        test.now_ms += 20_000;
        test.hub.tick(test.now_ms);
    }
    assert!(test.hub.peer(ada).unwrap().is_closed());
}

#[test]
fn requests_have_responses() {
    let mut test = Test::new();
    for (request, status) in [
        ("GET / HTTP/1.1\r\nHost: h\r\n\r\n", "200"),
        ("HEAD / HTTP/1.0\r\n\r\n", "200"),
        ("GET /stats HTTP/1.1\r\nHost: h\r\n\r\n", "200"),
        ("GET /none HTTP/1.1\r\nHost: h\r\n\r\n", "404"),
        ("POST / HTTP/1.1\r\nHost: h\r\n\r\n", "405"),
        ("GET /ws HTTP/1.1\r\nHost: h\r\n\r\n", "426"),
        (&request("/echo").replace("13", "8"), "426"),
        (&request("/none"), "404"),
        ("nonsense\r\n\r\n", "400"),
    ] {
        let id = test.hub.accept(test.now_ms).unwrap();
        for byte in request.bytes() {
            test.hub.receive(id, &[byte], test.now_ms);
        }
        let response = String::from_utf8(test.take(id)).unwrap();
        assert_eq!(response.split(' ').nth(1), Some(status), "{request}");
        assert_eq!(response.ends_with("\r\n\r\n"), request.starts_with("HEAD"), "{request}");
        assert!(test.hub.peer(id).unwrap().is_ending());
        test.end(id);
    }
    (0..10).for_each(|_| assert!(test.hub.accept(test.now_ms).is_some()));
    assert_eq!(test.hub.accept(test.now_ms), None);
}

#[test]
fn frames_may_follow_the_handshake_in_one_piece() {
    let mut test = Test::new();
    let bob = test.connect("/ws?room=r&name=bob");
    test.texts(bob);
    let id = test.hub.accept(test.now_ms).unwrap();
    let mut piece = request("/ws?room=r&name=ada").into_bytes();
    write_frame(&mut piece, Opcode::Text, b"first", Some([1, 2, 3, 4]));
    write_frame(&mut piece, Opcode::Close, b"", Some([1, 2, 3, 4]));
    test.hub.receive(id, &piece, test.now_ms);
    let joined = r#"{"name":"ada","type":"joined"}"#;
    let says = r#"{"name":"ada","text":"first","type":"message"}"#;
    assert_eq!(test.texts(bob), [joined, says, r#"{"name":"ada","type":"left"}"#]);
    assert_eq!(test.events(id), [Event::Close(None)]);
}

#[test]
fn pages_of_other_sites_are_refused() {
    let mut test = Test::new();
    for (origin, status) in [("http://h", "101"), ("http://other", "403"), ("null", "403")] {
        let id = test.hub.accept(test.now_ms).unwrap();
        let head = request("/echo").replace("Host: h", &format!("Host: h\r\nOrigin: {origin}"));
        test.hub.receive(id, head.as_bytes(), test.now_ms);
        let response = String::from_utf8(test.take(id)).unwrap();
        assert_eq!(response.split(' ').nth(1), Some(status), "{origin}");
        test.end(id);
    }
}

/// A peer that reads as much as it sends, and never all of it.
#[test]
fn a_buffer_is_bounded_while_it_is_never_empty() {
    let mut test = Test::new();
    let id = test.connect("/echo");
    test.take(id);
    test.send(id, Opcode::Binary, &[0; 1000]);
    for _ in 0..10_000 {
        test.send(id, Opcode::Binary, &[0; 1000]);
        let peer = test.hub.peer(id).unwrap();
        peer.sent(1004);
        assert_eq!(peer.pending().len(), 1004);
        assert!(peer.buffered() < 256 * 1024, "{}", peer.buffered());
    }
}

#[test]
fn the_largest_buffers_give_way() {
    let mut test = Test::new();
    let ids = [100, 900, 500].map(|length| {
        let id = test.connect("/echo");
        for _ in 0..100 {
            test.send(id, Opcode::Binary, &vec![0; length]);
        }
        id
    });
    let held: Vec<usize> = ids.map(|id| test.hub.peer(id).unwrap().buffered()).to_vec();
    let total: usize = held.iter().sum();
    let closed = |test: &mut Test| ids.map(|id| test.hub.peer(id).unwrap().is_closed());
    test.hub.shed(total);
    assert_eq!(closed(&mut test), [false, false, false]);
    test.hub.shed(total - 1);
    assert_eq!(closed(&mut test), [false, true, false]);
    test.hub.shed(held[0]);
    assert_eq!(closed(&mut test), [false, true, true]);
    assert_eq!(test.hub.dropped_total, 2);
}
