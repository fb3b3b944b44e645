//! Tests of the pure parts of the toolbox's shell. They run here because its own workspace is built for WebAssembly
//! only.

use proptest::prelude::*;

macro_rules! shared {
    ($($path:literal $name:ident),*) => {$(
        #[path = $path]
        #[allow(dead_code, unreachable_pub, reason = "the toolbox uses all of it")]
        mod $name;
    )*};
}

shared!(
    "../../../../../sample-workloads/unix/src/sh/parse.rs" parse,
    "../../../../../sample-workloads/unix/src/sh/pattern.rs" pattern,
    "../../../../../sample-workloads/unix/src/sh/arithmetic.rs" arithmetic
);

use parse::{Command, Redirect, parse};

fn simple(words: &[&str]) -> Command {
    Command::Simple {
        assigns: Vec::new(),
        words: words.iter().map(|w| (*w).to_owned()).collect(),
        redirects: Vec::new(),
    }
}

#[test]
fn scripts_are_read() {
    assert_eq!(parse("ls -l  /data # all").unwrap(), simple(&["ls", "-l", "/data"]));
    assert_eq!(
        parse("a 'b c' \"$(d \"e)\")\" ${f:-g h}").unwrap(),
        simple(&["a", "'b c'", "\"$(d \"e)\")\"", "${f:-g h}"])
    );
    assert_eq!(parse("a; b\n\nc;").unwrap(), Command::List(vec![simple(&["a"]), simple(&["b"]), simple(&["c"])]));
    let Command::AndOr(first, rest) = parse("a && b || c").unwrap() else { panic!() };
    assert_eq!((*first, rest), (simple(&["a"]), vec![(true, simple(&["b"])), (false, simple(&["c"]))]));
    let Command::Pipe { not, commands } = parse("! a | b").unwrap() else { panic!() };
    assert_eq!((not, commands.len()), (true, 2));
    let Command::Simple { assigns, words, redirects } = parse("A=1 cat < in >> out 2>&1").unwrap() else { panic!() };
    assert_eq!((assigns, words), (vec![("A".to_owned(), "1".to_owned())], vec!["cat".to_owned()]));
    assert_eq!(redirects, [Redirect::From("in".into()), Redirect::To(1, "out".into(), true), Redirect::Same(2, 1)]);
    for whole in [
        "if a; then b; elif c; then d; else e; fi",
        "while a; do b; done",
        "until a\ndo\nb\ndone > f",
        "for x in 1 2 3; do echo $x; done | wc -l",
        "for x; do :; done",
        "case $x in a|b) c;; *) d; esac",
        "f() { echo $1; }; f x",
        "( cd /; ls )",
        "cat <<E\na $b\nE\necho",
        "cat <<-'E'\n\ta\n\tE",
        "echo if then fi",
    ] {
        parse(whole).unwrap_or_else(|wrong| panic!("{whole}: {wrong:?}"));
    }
}

#[test]
fn syntax_errors_differ_from_unfinished_lines() {
    for (text, unfinished) in [
        ("if a; then", true),
        ("echo 'a", true),
        ("echo \"a", true),
        ("echo $(a", true),
        ("a &&", true),
        ("a |", true),
        ("while a; do b", true),
        ("cat <<E\na", true),
        ("{ a", true),
        ("fi", false),
        ("a )", false),
        ("; a", false),
        ("a & b", false),
        ("for 1 in a; do b; done", false),
        ("a > ", true),
        ("if ; then a; fi", false),
        ("case a in b c) d;; esac", false),
    ] {
        assert_eq!(parse(text).map_err(|wrong| wrong.unfinished), Err(unfinished), "{text}");
    }
    // Any nesting depth ends in an error, not in a stack overflow.
    for nested in ["( ", "{ ", "if ", "while ", "f() ", "case a in b) "] {
        assert!(parse(&nested.repeat(20_000)).is_err(), "{nested}");
    }
    assert!(parse(&"a && ".repeat(20_000)).is_err_and(|wrong| wrong.unfinished));
    parse(&"a; ".repeat(20_000)).unwrap();
    assert!(parse(&format!("echo {}", "$(".repeat(20_000))).is_err());
}

#[test]
fn patterns_fit_as_in_any_shell() {
    for (pattern, text, fits) in [
        ("*", "", true),
        ("*.txt", "a.txt", true),
        ("*.txt", "a.txt.gz", false),
        ("a*b*c", "axxbyyc", true),
        ("?", "\u{20ac}", true),
        ("[a-c]x", "bx", true),
        ("[!a-c]x", "bx", false),
        ("[]]", "]", true),
        ("[", "[", true),
        ("\\*", "*", true),
        ("\\*", "a", false),
        ("", "a", false),
    ] {
        assert_eq!(pattern::matches(pattern, text), fits, "{pattern} {text}");
    }
    // No pattern takes exponential time.
    assert!(!pattern::matches(&"*a".repeat(2000), &"a".repeat(1999)));
}

#[test]
fn numbers_are_reckoned() {
    let value = |text: &str| arithmetic::evaluate(text, &mut |name| (name == "x").then(|| "7".to_owned()));
    for (text, number) in [
        ("1+2*3", 7),
        ("(1+2)*3", 9),
        ("x % 4", 3),
        ("-x", -7),
        ("1<2 && 2<1", 0),
        ("x==7?1:0", 1),
        ("1<<4", 16),
        ("0x10", 16),
        ("", 0),
        ("y", 0),
        ("7/2", 3),
        ("!0", 1),
    ] {
        assert_eq!(value(text), Ok(number), "{text}");
    }
    for wrong in ["1/0", "1+", "(1", "1 2", "1<<99", "9x"] {
        assert!(value(wrong).is_err(), "{wrong}");
    }
    assert!(value(&"(".repeat(10_000)).is_err() && value(&"-".repeat(10_000)).is_err());
}

proptest! {
    /// Any text is parsed or rejected.
    #[test]
    fn any_text_is_read_or_refused(text in "[a-c \\n;|&<>(){}$`'\"\\\\=#!*0-2éif]{0,60}") {
        let _ = parse(&text);
    }

    #[test]
    fn any_words_are_read_or_refused(words in proptest::collection::vec(
        proptest::sample::select(vec!["if", "then", "fi", "else", "elif", "while", "do", "done", "for", "in", "case", "esac", ";;", ";", "&&", "||", "|",
            "(", ")", "{", "}", "!", "a", "A=b", "$x", "\n", "<<E", "E", ">", "2>&1", "f()"]), 0..30)) {
        let _ = parse(&words.join(" "));
    }

    #[test]
    fn any_expression_is_reckoned_or_refused(text in "[0-9x+*/%<>=!&|^~?:() -]{0,40}") {
        let _ = arithmetic::evaluate(&text, &mut |_| Some("3".to_owned()));
    }

    #[test]
    fn a_pattern_without_signs_fits_itself(text in "[a-z/.]{0,20}") {
        prop_assert!(pattern::matches(&text, &text));
        prop_assert!(pattern::matches("*", &text));
    }
}
