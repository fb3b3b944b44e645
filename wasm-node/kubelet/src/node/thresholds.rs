//! Eviction thresholds in the syntax of upstream's `--eviction-hard`: `memory.available<100Mi,nodefs.available<10%`.
//! Pure: parses a text, and applies a threshold to a total. A signal without a threshold is never short.

use std::str::FromStr;

use machinery_api::quantity::Quantity;

use super::pressure::Signal;

/// The resolution of percentages, so that `0.5%` is exact.
const WHOLE: u32 = 1_000_000;
/// The default threshold of free memory (upstream's).
pub(super) const MEMORY_BYTES_DEFAULT: u64 = 100 << 20;
/// The default threshold of a large disk: the default bound of one emptyDir. 10% of a large disk would exceed the need.
pub(super) const DISK_BYTES_DEFAULT: u64 = 1 << 30;
/// The default threshold of a small disk (upstream's), which might always be below the absolute one.
const DISK_PART_DEFAULT: Fraction = Fraction::percent(10);
/// The default threshold of free inodes (upstream's) and of free descriptors.
const COUNTED_PART_DEFAULT: Fraction = Fraction::percent(5);

/// A fraction of a total.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Fraction(u32);

impl Fraction {
    const fn percent(percent: u32) -> Self {
        Self(WHOLE / 100 * percent)
    }

    fn of(self, total: u64) -> u64 {
        let part = u128::from(total) * u128::from(self.0) / u128::from(WHOLE);
        u64::try_from(part).unwrap_or(u64::MAX)
    }
}

/// The minimum free amount of a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Threshold {
    quantity: Option<u64>,
    part: Option<Fraction>,
}

impl Threshold {
    const fn quantity(quantity: u64) -> Self {
        Self { quantity: Some(quantity), part: None }
    }

    const fn part(part: Fraction) -> Self {
        Self { quantity: None, part: Some(part) }
    }

    /// The amount for a total: the smaller one if the threshold has both forms.
    pub(super) fn of(self, total: u64) -> u64 {
        let part = self.part.map(|part| part.of(total));
        self.quantity.into_iter().chain(part).min().unwrap_or(0)
    }
}

/// The thresholds of a node by signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EvictionThresholds([Option<Threshold>; Signal::ALL.len()]);

impl Default for EvictionThresholds {
    fn default() -> Self {
        let of = |signal: Signal| match signal {
            Signal::Memory => Threshold::quantity(MEMORY_BYTES_DEFAULT),
            Signal::Disk => Threshold { quantity: Some(DISK_BYTES_DEFAULT), part: Some(DISK_PART_DEFAULT) },
            Signal::Inodes | Signal::Descriptors => Threshold::part(COUNTED_PART_DEFAULT),
        };
        Self(Signal::ALL.map(|signal| Some(of(signal))))
    }
}

impl EvictionThresholds {
    /// The free bytes below which a node with a disk of `total_bytes` evicts pods; `None` if the disk isn't monitored.
    #[must_use]
    pub fn disk_bytes(&self, total_bytes: u64) -> Option<u64> {
        self.get(Signal::Disk).map(|threshold| threshold.of(total_bytes))
    }

    /// The threshold of a signal; `None` if it isn't monitored.
    pub(super) fn get(&self, signal: Signal) -> Option<Threshold> {
        self.0[signal as usize]
    }
}

/// The error of an invalid list of thresholds.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadThresholds {
    /// A statement has no valid syntax.
    #[error("{0:?} is not SIGNAL<AMOUNT, such as memory.available<100Mi or nodefs.available<10%")]
    Form(String),
    /// The signal is unknown.
    #[error("{signal:?} is not a signal of a node: {}{}", names(), hint(.signal))]
    Signal {
        /// The text in the list.
        signal: String,
    },
    /// A signal has two thresholds.
    #[error("{0} has more than one threshold")]
    Twice(&'static str),
    /// The amount of a signal is invalid.
    #[error("{signal}<{amount}: {why}")]
    Amount {
        /// The signal.
        signal: &'static str,
        /// The text in the list.
        amount: String,
        /// The error in the amount.
        why: &'static str,
    },
}

fn names() -> String {
    let [first @ .., last] = Signal::ALL.map(Signal::name);
    format!("those are {} and {last}", first.join(", "))
}

/// A hint for signals of upstream that this node doesn't have.
fn hint(signal: &str) -> &'static str {
    if ["imagefs.", "containerfs."].iter().any(|one| signal.starts_with(one)) {
        "; images lie on the disk of volumes and logs here, which is nodefs"
    } else if signal == "allocatableMemory.available" {
        "; memory.available also covers the memory of guests"
    } else {
        ""
    }
}

impl FromStr for EvictionThresholds {
    type Err = BadThresholds;

    /// As upstream: a list replaces all defaults, so that unnamed signals have no threshold. `0%` and `100%` disable one.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut named = [false; Signal::ALL.len()];
        let mut thresholds = [None; Signal::ALL.len()];
        let statements = text.split(',').map(str::trim).filter(|statement| !statement.is_empty());
        for statement in statements {
            let (name, amount) = statement.split_once('<').ok_or_else(|| BadThresholds::Form(statement.to_owned()))?;
            let (name, amount) = (name.trim(), amount.trim());
            let signal = Signal::ALL.into_iter().find(|signal| signal.name() == name);
            let signal = signal.ok_or_else(|| BadThresholds::Signal { signal: name.to_owned() })?;
            if std::mem::replace(&mut named[signal as usize], true) {
                return Err(BadThresholds::Twice(signal.name()));
            }
            thresholds[signal as usize] = threshold(amount).map_err(|why| BadThresholds::Amount {
                signal: signal.name(),
                amount: amount.to_owned(),
                why,
            })?;
        }
        Ok(Self(thresholds))
    }
}

/// Parses one threshold; `None` for amounts that disable it upstream.
fn threshold(amount: &str) -> Result<Option<Threshold>, &'static str> {
    if let Some(percent) = amount.strip_suffix('%') {
        let plain = !percent.is_empty() && percent.chars().all(|letter| letter.is_ascii_digit() || letter == '.');
        let percent = percent.parse::<f64>().ok().filter(|_| plain).ok_or("not a percentage such as 10%")?;
        if percent > 100.0 {
            return Err("a percentage is from 0% to 100%");
        }
        // Exact for up to four decimals, the resolution of `WHOLE`.
        let part = (percent * f64::from(WHOLE / 100)).round() as u32;
        return Ok((1..WHOLE).contains(&part).then(|| Threshold::part(Fraction(part))));
    }
    let quantity =
        Quantity::parse(amount).map_err(|_| "neither a quantity such as 100Mi nor a percentage such as 10%")?;
    let value = u64::try_from(quantity.value()).ok().filter(|_| quantity.sign() > 0);
    value.map(|value| Some(Threshold::quantity(value))).ok_or("has to be positive")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> Result<EvictionThresholds, String> {
        text.parse::<EvictionThresholds>().map_err(|error| error.to_string())
    }

    /// The amounts by signal, of a total of 1000.
    fn amounts(of: EvictionThresholds) -> [Option<u64>; 4] {
        Signal::ALL.map(|signal| of.get(signal).map(|threshold| threshold.of(1000)))
    }

    #[test]
    fn lists_are_upstreams() {
        let all =
            read("memory.available<100Mi, nodefs.available < 10% ,nodefs.inodesFree<0.1%,pid.available<5").unwrap();
        assert_eq!(amounts(all), [Some(100 << 20), Some(100), Some(1), Some(5)]);
        // Signals that aren't in the list have no threshold, nor have these amounts.
        assert_eq!(amounts(read("nodefs.available<1").unwrap()), [None, Some(1), None, None]);
        assert_eq!(amounts(read("nodefs.available<0%,memory.available<100%").unwrap()), [None; 4]);
        assert_eq!(amounts(read("").unwrap()), [None; 4]);
    }

    #[test]
    fn errors_name_the_field() {
        let signals = "those are memory.available, nodefs.available, nodefs.inodesFree and pid.available";
        for (text, want) in [
            (
                "memory.available",
                "\"memory.available\" is not SIGNAL<AMOUNT, such as memory.available<100Mi or nodefs.available<10%"
                    .to_owned(),
            ),
            (
                "memory.available>1",
                "\"memory.available>1\" is not SIGNAL<AMOUNT, such as memory.available<100Mi or nodefs.available<10%"
                    .to_owned(),
            ),
            ("disk<1", format!("\"disk\" is not a signal of a node: {signals}")),
            (
                "imagefs.available<15%",
                format!(
                    "\"imagefs.available\" is not a signal of a node: {signals}; images lie on the disk of volumes and logs here, which is nodefs"
                ),
            ),
            ("pid.available<1,pid.available<2", "pid.available has more than one threshold".into()),
            ("pid.available<0%,pid.available<2", "pid.available has more than one threshold".into()),
            ("memory.available<0", "memory.available<0: has to be positive".into()),
            ("memory.available<-1Gi", "memory.available<-1Gi: has to be positive".into()),
            ("memory.available<101%", "memory.available<101%: a percentage is from 0% to 100%".into()),
            ("memory.available<-1%", "memory.available<-1%: not a percentage such as 10%".into()),
            ("memory.available<%", "memory.available<%: not a percentage such as 10%".into()),
            (
                "memory.available<1x",
                "memory.available<1x: neither a quantity such as 100Mi nor a percentage such as 10%".into(),
            ),
        ] {
            assert_eq!(read(text), Err(want), "{text}");
        }
    }

    #[test]
    fn a_disk_of_any_size_has_a_default_that_it_can_meet() {
        let disk = EvictionThresholds::default().get(Signal::Disk).unwrap();
        assert_eq!(disk.of(700 << 20), 70 << 20);
        assert_eq!(disk.of(10 << 30), 1 << 30);
        assert_eq!(disk.of(4 << 40), 1 << 30);
        assert_eq!(disk.of(0), 0);
        assert_eq!(EvictionThresholds::default().disk_bytes(4 << 40), Some(1 << 30));
        assert_eq!(read("memory.available<1Gi").unwrap().disk_bytes(4 << 40), None);
    }

    proptest! {
        #[test]
        fn a_part_is_never_more_than_the_total(total: u64, hundredths in 1_u32..10_000) {
            let text = format!("nodefs.available<{}.{:02}%", hundredths / 100, hundredths % 100);
            let threshold = read(&text).unwrap().get(Signal::Disk).unwrap();
            prop_assert_eq!(threshold.of(total), (u128::from(total) * u128::from(hundredths) / 10_000) as u64);
            prop_assert!(threshold.of(total) <= total);
        }

        #[test]
        fn a_list_is_the_sum_of_its_statements(
            given in proptest::sample::subsequence(Signal::ALL.to_vec(), 0..=4).prop_shuffle(),
            amounts in proptest::collection::vec(prop_oneof!["[1-9][0-9]{0,3}(Ki|Mi|k)?", "[1-9][0-9]?%"], 4),
        ) {
            let statements: Vec<_> = given.iter().zip(&amounts).map(|(one, amount)| format!("{}<{amount}", one.name())).collect();
            let together = read(&statements.join(",")).unwrap();
            for signal in Signal::ALL {
                let alone = given.iter().position(|one| *one == signal).and_then(|at| read(&statements[at]).unwrap().get(signal));
                prop_assert_eq!(together.get(signal), alone);
            }
        }

        #[test]
        fn texts_of_its_own_pieces_are_read_or_refused(
            pieces in proptest::collection::vec(
                prop_oneof![
                    Just("memory.available"), Just("nodefs.available"), Just("imagefs.available"), Just("<"), Just(","), Just("%"),
                    Just("-"), Just("."), Just("1"), Just("9999999999999999999"), Just("e"), Just("Ei"), Just(" "), Just("\u{e9}"),
                ],
                0..12,
            ),
        ) {
            let text = pieces.concat();
            if let Ok(thresholds) = read(&text) {
                // An existing threshold is positive.
                prop_assert!(Signal::ALL.iter().all(|one| thresholds.get(*one).is_none_or(|found| found.of(u64::MAX) > 0)));
            }
        }
    }
}
