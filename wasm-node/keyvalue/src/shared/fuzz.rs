//! Fuzz targets: addresses of shared stores, and answers of a hostile server.

use bolero::check;

use super::config::{SharedStoreConfig, SharedStoreFiles};
use super::scripts::{ScriptReply, names, stored};

#[test]
fn an_accepted_address_is_shown_without_its_credentials() {
    check!().with_type::<(u8, String)>().for_each(|(form, text)| {
        let address = match form % 4 {
            0 => text.clone(),
            1 => format!("redis://{text}"),
            2 => format!("redis://user:{text}@host/1"),
            _ => format!("redis://{text}@host:1"),
        };
        if let Ok(config) = SharedStoreConfig::new(&address, SharedStoreFiles::default()) {
            let shown = config.shown();
            let again = SharedStoreConfig::new(&shown, SharedStoreFiles::default()).unwrap();
            assert_eq!((again.shown(), again.user.clone(), again.password()), (shown, None, Ok(None)));
        }
    });
}

#[test]
fn answers_of_any_bytes_are_read_or_refused() {
    check!().for_each(|bytes| {
        let Ok(value) = redis::parse_redis_value(bytes) else { return };
        let answer = ScriptReply(value.clone());
        let _ = answer.clone().names();
        if let Ok((_, Some(content))) = answer.parts() {
            let _ = (names(content.clone()), stored(content));
        }
        if let Ok(Some(found)) = stored(value) {
            assert!(found.revision < 10_000_000_000_000_000);
        }
    });
}
