//! Fuzz targets of inputs from pods.

use bolero::{ValueGenerator, check, produce};

use super::environment::expand;

/// A literal implementation of upstream's documentation, character by character.
fn expand_simply(text: &str, known: &dyn Fn(&str) -> Option<String>) -> String {
    let letters: Vec<char> = text.chars().collect();
    let (mut out, mut at) = (String::new(), 0);
    while at < letters.len() {
        let rest = &letters[at + 1..];
        match (letters[at], rest.first()) {
            ('$', Some('$')) => {
                out.push('$');
                at += 2;
            }
            ('$', Some('(')) => match rest.iter().position(|letter| *letter == ')') {
                Some(end) => {
                    let name: String = rest[1..end].iter().collect();
                    out.push_str(&known(&name).unwrap_or_else(|| format!("$({name})")));
                    at += end + 2;
                }
                None => {
                    out.push_str("$(");
                    at += 2;
                }
            },
            (letter, _) => {
                out.push(letter);
                at += 1;
            }
        }
    }
    out
}

#[test]
fn references_are_expanded_as_documented() {
    let of = ["$", "(", ")", "A", "B", "$(A)", "$$", "\u{e9}", "$("];
    let known = |name: &str| matches!(name, "A" | "").then(|| "$(B)".to_owned());
    let texts = produce::<Vec<u8>>()
        .map_gen(move |bytes| bytes.iter().map(|byte| of[usize::from(*byte) % of.len()]).collect::<String>());
    check!().with_generator(texts).for_each(|text| assert_eq!(expand(text, &known), expand_simply(text, &known)));
}
