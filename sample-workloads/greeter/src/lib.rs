//! A plugin: functions with typed arguments that clients call by name. The node serves them over HTTP.
#![no_std]
extern crate alloc;

use alloc::{format, string::String, vec::Vec};
use core::cell::RefCell;

use exports::coracle::samples::greeter::{Card, Guest, GuestGuestBook, Language, Person};

wit_bindgen::generate!({ path: "wit", world: "plugin" });

/// Maximum entries of a book.
const ENTRIES_MAX: usize = 1000;

struct Greeter;

impl Guest for Greeter {
    type GuestBook = GuestBook;

    fn greet(name: String) -> String {
        guest::log!("greet {name}");
        format!("hello {name}")
    }

    fn introduce(person: Person) -> Card {
        guest::log!("introduce {}", person.name);
        let hello = match person.language {
            Language::English => "hello",
            Language::French => "bonjour",
            Language::German => "hallo",
            Language::Spanish => "hola",
        };
        let text = match &person.title {
            Some(title) => format!("{hello} {title} {}", person.name),
            None => format!("{hello} {}", person.name),
        };
        Card { letters: text.chars().filter(|c| c.is_alphabetic()).count() as u32, language: person.language, text }
    }
}

struct GuestBook {
    title: String,
    names: RefCell<Vec<String>>,
}

impl GuestGuestBook for GuestBook {
    fn new(title: String) -> Self {
        guest::log!("a guest book: {title}");
        Self { title, names: RefCell::default() }
    }

    fn sign(&self, name: String) -> Result<u32, String> {
        let mut names = self.names.borrow_mut();
        if name.is_empty() {
            return Err(format!("{} wants a name", self.title));
        }
        if names.len() >= ENTRIES_MAX {
            return Err(format!("{} is full", self.title));
        }
        names.push(name);
        Ok(names.len() as u32)
    }

    fn names(&self) -> Vec<String> {
        self.names.borrow().clone()
    }
}

export!(Greeter);
