//! Fuzz target of the messages: any text to a message, and back.

use bolero::check;

use super::message::Message;

/// Parts of messages, valid and invalid.
const PIECES: [&str; 15] = [
    "takeover 1 ",
    "offer 1 ",
    "sockets\n",
    "commit",
    "released",
    "serving",
    "refused ",
    "42 ",
    "-1 ",
    "tcp 127.0.0.1:6443 api server\n",
    "udp [::1]:53 \n",
    "tcp nowhere x\n",
    "\n",
    "\0",
    "99999999999999999999 ",
];

#[test]
fn any_message_is_read_as_it_is_written_or_refused() {
    check!().with_type::<(Vec<u8>, Vec<u8>)>().for_each(|(picks, tail)| {
        let picked = picks.iter().map(|pick| PIECES[usize::from(*pick) % PIECES.len()]);
        let mut bytes = picked.collect::<String>().into_bytes();
        bytes.extend(tail);
        match Message::parse(&bytes) {
            Ok(message) => assert_eq!(Message::parse(message.to_string().as_bytes()).unwrap(), message),
            Err(error) => assert!(error.to_string().len() < 600, "{error}"),
        }
    });
}
