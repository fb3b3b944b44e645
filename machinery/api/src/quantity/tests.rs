//! Quantities: upstream's canonical forms, errors and roundings.

use super::*;
use proptest::prelude::*;

#[test]
fn canonical_forms_are_upstreams() {
    for (text, expected) in [
        ("0", "0"),
        ("0Mi", "0"),
        ("0.0", "0"),
        ("-", "0"),
        ("100m", "100m"),
        ("0.1", "100m"),
        ("0.5", "500m"),
        ("1000m", "1"),
        ("1500m", "1500m"),
        ("1.5", "1500m"),
        ("1000", "1k"),
        ("1024", "1024"),
        ("1024Mi", "1Gi"),
        ("1Gi", "1Gi"),
        ("1.5Gi", "1536Mi"),
        ("0.5Mi", "512Ki"),
        ("1023Ki", "1023Ki"),
        ("8Ki", "8Ki"),
        ("8Mi", "8Mi"),
        ("1e3", "1e3"),
        ("1E3", "1E3"),
        ("10e3", "10e3"),
        ("1e1", "10"),
        ("+1", "+1"),
        ("01", "01"),
        ("1.", "1."),
        ("-1", "-1"),
        ("-0.5", "-500m"),
        ("1n", "1n"),
        ("0.1n", "1n"),
        ("0.0000000001", "1n"),
        ("1.1Ki", "1126400m"),
        ("100000", "100k"),
        ("1.25M", "1250k"),
        ("12345678901234567890", "12345678901234567890"),
        ("100Ei", "9223372036854775807"),
        ("2000000", "2M"),
        ("3000Ki", "3000Ki"),
        ("2048Ki", "2Mi"),
        ("500M", "500M"),
        ("0.001Ki", "1024m"),
        ("-0.5Ki", "-512"),
        ("0.0001Ki", "102400u"),
        ("1e19", "10e18"),
        ("1.500", "1.500"),
        ("010m", "010m"),
        ("100.000", "100"),
        ("0.3Gi", "322122547200m"),
        ("1.999999999999999Gi", "2147483647999998927n"),
        ("9999999999999999999M", "9999999999999999999M"),
        ("1500000000000000000000n", "1500G"),
        ("123456789012345678901Ki", "9223372036854775807"),
        ("1e", "Suffix"),
    ] {
        match Quantity::parse(text) {
            Ok(quantity) => assert_eq!(quantity.to_string(), expected, "{text}"),
            Err(error) => assert_eq!(format!("{error:?}"), expected, "{text}"),
        }
    }
}

#[test]
fn invalid_quantities_are_rejected_with_the_reason() {
    for (text, error) in [
        ("", QuantityError::Format),
        ("abc", QuantityError::Format),
        ("1 Gi", QuantityError::Format),
        ("1Gib", QuantityError::Format),
        ("1GiB", QuantityError::Format),
        ("1KK", QuantityError::Suffix),
        ("1i", QuantityError::Suffix),
        ("1.2.3", QuantityError::Format),
        ("1K", QuantityError::Suffix),
        ("1e99999999999999999999", QuantityError::Suffix),
        ("1m1", QuantityError::Suffix),
        ("é", QuantityError::Format),
    ] {
        assert_eq!(Quantity::parse(text).map(|q| q.to_string()), Err(error), "{text}");
    }
}

#[test]
fn arithmetic_keeps_the_format_and_rounds_up() {
    let q = |text: &str| Quantity::parse(text).unwrap();
    assert_eq!(q("1Gi").add(&q("512Mi")).to_string(), "1536Mi");
    assert_eq!(q("0").add(&q("64Mi")).to_string(), "64Mi");
    assert_eq!(q("1").sub(&q("250m")).to_string(), "750m");
    assert_eq!(q("1n").value(), 1);
    assert_eq!(q("1500u").milli(), 2);
    assert!(q("1Gi") > q("1G"));
    assert!(q("1e900") > q("1") && q("-1e900") < q("1n"));
    assert_eq!(q("1000m"), q("1"));
}

#[test]
fn whole_numbers_are_recognized_as_upstream() {
    for (text, whole) in [
        ("1", true),
        ("1500m", false),
        ("1.5", false),
        ("1500u", false),
        ("0.5Ki", true),
        ("0.3Gi", false),
        // Thousandths beyond 64 bits.
        ("9000000000000000", true),
        ("10000000000000000", false),
        ("100P", true),
        ("10e15", true),
        ("7E", true),
        ("1e30", true),
        ("-100P", true),
        ("1.5Pi", true),
        ("10Pi", false),
        ("-10Pi", false),
        ("16Pi", false),
        ("7Ei", false),
        ("8Ei", true),
        ("12345678901234567890", false),
        ("99999999999999999M", false),
        ("99999999999999999G", true),
        ("123456789012345678e2", true),
    ] {
        assert_eq!(Quantity::parse(text).unwrap().is_whole_at_milli(), whole, "{text}");
    }
}

proptest! {
    #[test]
    fn quantities_have_a_total_order(texts in proptest::collection::vec("-?(0|[1-9][0-9]{0,37})([eE]-?[0-9]{1,2}|[numkMGTPE]|[KMGTPE]i)?", 3)) {
        let quantities: Vec<Quantity> = texts.iter().filter_map(|text| Quantity::parse(text).ok()).collect();
        prop_assert_eq!(crate::order::total_order_fault(&quantities, Ord::cmp), None);
    }

    #[test]
    fn never_panics(text in "\\PC{0,40}") {
        let _ = Quantity::parse(&text);
    }

    #[test]
    fn near_grammar_never_panics_and_printing_settles(text in "[+-]?[0-9]{0,40}\\.?[0-9]{0,40}([eE][+-]?[0-9]{0,4}|[numkMGTPE]|[KMGTPE]i)?") {
        if let Ok(quantity) = Quantity::parse(&text) {
            let printed = Quantity { text: None, ..quantity.clone() }.to_string();
            if let Ok(again) = Quantity::parse(&printed) {
                prop_assert_eq!(again.to_string(), printed);
                prop_assert_eq!(&again, &quantity);
            }
            let _ = (quantity.value(), quantity.milli(), quantity.add(&quantity), quantity.sub(&quantity));
        }
    }

    #[test]
    fn order_and_sums_agree_with_integers(a in -1_000_000_000i64..1_000_000_000, b in -1_000_000_000i64..1_000_000_000) {
        let (x, y) = (Quantity::from_milli(a, Format::DecimalSi), Quantity::from_milli(b, Format::DecimalSi));
        prop_assert_eq!(x.cmp(&y), a.cmp(&b));
        prop_assert_eq!(x.add(&y).milli(), a + b);
        prop_assert_eq!(x.sub(&y).milli(), a - b);
        prop_assert_eq!(Quantity::parse(&x.to_string()).unwrap().milli(), a);
    }
}
