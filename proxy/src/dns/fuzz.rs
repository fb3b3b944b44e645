//! Fuzz target of the packet path: any packet to an answer.

use bolero::check;
use hickory_resolver::proto::op::{Message, MessageType, ResponseCode};

use super::answer::{Decision, answer};
use super::packet::{Request, Transport, UDP_BYTES_MAX};
use super::tests::{shop, zone};

/// Parts of packets, valid and invalid: headers, labels, ends of questions, OPT records.
const PIECES: [&[u8]; 16] = [
    b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00",
    b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x01",
    b"\x12\x34\x28\x00\x00\x01\x00\x00\x00\x00\x00\x00",
    b"\x04crew\x04shop\x03svc",
    b"\x05_http\x04_tcp",
    b"\x07cluster\x05local\x00",
    b"\x00\x01\x00\x01",
    b"\x00\x21\x00\x01",
    b"\x00\x0c\x00\x01",
    b"\x013\x010\x0266\x03127\x07in-addr\x04arpa\x00",
    b"\x00\x00\x29\x04\xd0\x00\x00\x80\x00\x00\x00",
    b"\x00\x00\x29\x00\x00\x00\x01\x00\x00\x00\x04",
    b"\xc0\x0c",
    b"\x3f",
    b"\xff\xff\xff\xff",
    b"\x03a.b\x00",
];

#[test]
fn any_packet_gets_a_valid_answer_or_none() {
    let routes = shop();
    check!().with_type::<(Vec<u8>, Vec<u8>, bool)>().for_each(|(picks, tail, udp)| {
        let mut packet: Vec<u8> =
            picks.iter().flat_map(|pick| PIECES[usize::from(*pick) % PIECES.len()]).copied().collect();
        packet.extend(tail);
        let transport = if *udp { Transport::Udp } else { Transport::Tcp };
        let Some(request) = Request::parse(&packet) else {
            assert!(packet.len() < 12 || packet[2] & 0x80 != 0, "a request gets an answer");
            return;
        };
        let mut reply = request.reply(request.rejected.unwrap_or(ResponseCode::ServFail));
        if let (Some(query), None) = (&request.query, request.rejected)
            && let Decision::Answer(found) = answer(&zone(&routes), query)
        {
            reply.metadata.response_code = found.code;
            (reply.answers, reply.authorities, reply.additionals) =
                (found.answers, found.authorities, found.additionals);
        }
        let encoded = request.encode(reply, transport).expect("an answer that can be encoded");
        assert!(!*udp || encoded.len() <= usize::from(UDP_BYTES_MAX));
        let parsed = Message::from_vec(&encoded).expect("an answer that can be parsed");
        assert_eq!(
            (parsed.metadata.id.to_be_bytes().as_slice(), parsed.metadata.message_type),
            (&packet[..2], MessageType::Response)
        );
        match &request.query {
            Some(query) => assert!(parsed.queries.len() == 1 && parsed.queries[0].name().eq_case(query.name())),
            None => assert!(parsed.queries.is_empty()),
        }
    });
}
