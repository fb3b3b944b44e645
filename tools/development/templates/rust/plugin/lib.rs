//! A plugin: the functions of wit/plugin.wit. The host calls each in an instance of its own.

wit_bindgen::generate!({ path: "wit", world: "plugin" });

struct Plugin;

impl Guest for Plugin {
    fn greet(name: String) -> String {
        format!("hello {name}")
    }

    fn write_card(name: String, language: Option<Language>) -> Result<Card, String> {
        if name.is_empty() {
            return Err("the name is empty".to_owned());
        }
        let hello = match language.unwrap_or(Language::English) {
            Language::English => "hello",
            Language::French => "bonjour",
            Language::German => "hallo",
            Language::Spanish => "hola",
        };
        let text = format!("{hello} {name}");
        let letters = text.chars().filter(|c| c.is_alphabetic()).count();
        Ok(Card { letters: letters.try_into().unwrap_or(u32::MAX), text })
    }
}

export!(Plugin);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cards_are_written() {
        assert_eq!(Plugin::greet("ada".to_owned()), "hello ada");
        let card = Plugin::write_card("ada".to_owned(), Some(Language::French)).unwrap();
        assert_eq!((card.text.as_str(), card.letters), ("bonjour ada", 10));
        assert!(Plugin::write_card(String::new(), None).is_err());
    }
}
