//! What a node is short of: memory, disk, inodes, or descriptors for its guests. Pure: from what was read of the machine to what is told.
//! The signals are those of <https://kubernetes.io/docs/concepts/scheduling-eviction/node-pressure-eviction/>; guests have no processes, so
//! that `PIDPressure` tells of what they have in their stead, descriptors of this process.

use std::time::Duration;

use machinery_api::quantity::{Format, Quantity};

use super::thresholds::EvictionThresholds;
use crate::volume::usage::quantity;

/// How long a condition of pressure stays after its reason has gone, so that pods don't come and go with it (upstream's).
const TRANSITION: Duration = Duration::from_secs(300);
/// The part of what a node's guests may hold that is enough in any case: a small share of a small machine is not short for being small.
const GUESTS_PART: u64 = 20;
/// Descriptors with which another container can begin, where 5% are fewer (by default).
const DESCRIPTORS_LOW: u64 = 8;

/// What there can be too little of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Signal {
    /// Upstream's `memory.available`.
    Memory,
    /// Upstream's `nodefs.available`.
    Disk,
    /// Upstream's `nodefs.inodesFree`.
    Inodes,
    /// In the place of upstream's `pid.available`.
    Descriptors,
}

impl Signal {
    /// In upstream's order: memory before all other resources.
    pub(super) const ALL: [Self; 4] = [Self::Memory, Self::Disk, Self::Inodes, Self::Descriptors];

    /// As upstream's flags name it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory.available",
            Self::Disk => "nodefs.available",
            Self::Inodes => "nodefs.inodesFree",
            Self::Descriptors => "pid.available",
        }
    }

    /// The resource as events and messages name it.
    pub(super) fn resource(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Disk => "ephemeral-storage",
            Self::Inodes => "inodes",
            Self::Descriptors => "descriptors",
        }
    }

    fn pressure(self) -> Pressure {
        match self {
            Self::Memory => Pressure::Memory,
            Self::Disk | Self::Inodes => Pressure::Disk,
            Self::Descriptors => Pressure::Pid,
        }
    }

    /// An amount of it as upstream writes it.
    pub(super) fn amount(self, of: u64) -> String {
        match self {
            Self::Memory | Self::Disk => quantity(of),
            Self::Inodes | Self::Descriptors => {
                Quantity::from_int(i64::try_from(of).unwrap_or(i64::MAX), Format::DecimalSi).to_string()
            }
        }
    }
}

/// The conditions of a Node that tell of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pressure {
    Memory,
    Disk,
    Pid,
}

impl Pressure {
    /// Its type, its reason and its message, as upstream has them.
    pub(super) fn condition(self, holds: bool) -> (&'static str, bool, &'static str, &'static str) {
        let (kind, [so, not]) = match self {
            Self::Memory => (
                "MemoryPressure",
                [
                    ("KubeletHasInsufficientMemory", "kubelet has insufficient memory available"),
                    ("KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
                ],
            ),
            Self::Disk => (
                "DiskPressure",
                [
                    ("KubeletHasDiskPressure", "kubelet has disk pressure"),
                    ("KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
                ],
            ),
            Self::Pid => (
                "PIDPressure",
                [
                    ("KubeletHasInsufficientPID", "kubelet has insufficient PID available"),
                    ("KubeletHasSufficientPID", "kubelet has sufficient PID available"),
                ],
            ),
        };
        let (reason, message) = if holds { so } else { not };
        (kind, holds, reason, message)
    }
}

/// How much less than needed there is of something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shortage {
    pub(super) signal: Signal,
    pub(super) threshold: u64,
    pub(super) available: u64,
}

/// What there is of something, and how much of it is free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Room {
    pub(super) total: u64,
    pub(super) free: u64,
}

/// What was read of the machine; none where it can't be told, or has no bound.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Reading {
    pub(super) memory_bytes: Option<Room>,
    /// Of what this node's guests may hold.
    pub(super) guest_memory_bytes: Option<Room>,
    pub(super) disk_bytes: Option<Room>,
    pub(super) inodes: Option<Room>,
    /// Of what all guests of the process may have open.
    pub(super) descriptors: Option<Room>,
}

impl Reading {
    /// What there is too little of by `thresholds`, in upstream's order.
    pub(super) fn shortages(&self, thresholds: &EvictionThresholds) -> Vec<Shortage> {
        let low = |signal: Signal, room: Option<Room>, bound: &dyn Fn(u64, u64) -> u64| {
            let room = room?;
            let threshold = bound(thresholds.get(signal)?.of(room.total), room.total);
            (room.free < threshold).then_some(Shortage { signal, threshold, available: room.free })
        };
        let by_default = *thresholds == EvictionThresholds::default();
        let whole = |threshold: u64, _: u64| threshold;
        let guests = |threshold: u64, total: u64| threshold.min(total / GUESTS_PART);
        let descriptors = |threshold: u64, _: u64| if by_default { threshold.max(DESCRIPTORS_LOW) } else { threshold };
        // A file system that counts no inodes has a total of none.
        let inodes = self.inodes.filter(|room| room.total > 0);
        let all = [
            low(Signal::Memory, self.memory_bytes, &whole)
                .or_else(|| low(Signal::Memory, self.guest_memory_bytes, &guests)),
            low(Signal::Disk, self.disk_bytes, &whole),
            low(Signal::Inodes, inodes, &|threshold, _| threshold.max(1)),
            low(Signal::Descriptors, self.descriptors.filter(|room| room.total > 0), &descriptors),
        ];
        all.into_iter().flatten().collect()
    }
}

/// Which conditions hold: while there is a shortage, and for a while after the last one.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Pressures {
    short_at: [Option<Duration>; 3],
}

impl Pressures {
    /// What a new observation makes of them.
    pub(super) fn observed(&mut self, shortages: &[Shortage], now: Duration) {
        for shortage in shortages {
            self.short_at[shortage.signal.pressure() as usize] = Some(now);
        }
    }

    /// Those that hold `now`.
    pub(super) fn held(&self, now: Duration) -> Held {
        Held(self.short_at.map(|last| last.is_some_and(|last| now.saturating_sub(last) < TRANSITION)))
    }
}

/// The conditions of pressure that hold at a time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Held([bool; 3]);

impl Held {
    pub(super) fn has(self, pressure: Pressure) -> bool {
        self.0[pressure as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::super::thresholds::{DISK_BYTES_DEFAULT, MEMORY_BYTES_DEFAULT};
    use super::*;

    fn room(total: u64, free: u64) -> Option<Room> {
        Some(Room { total, free })
    }

    fn shortages(of: Reading) -> Vec<Shortage> {
        of.shortages(&EvictionThresholds::default())
    }

    #[test]
    fn what_is_short_is_told_in_order() {
        let enough = Reading {
            memory_bytes: room(8 << 30, MEMORY_BYTES_DEFAULT),
            guest_memory_bytes: room(100, 5),
            disk_bytes: room(1 << 40, DISK_BYTES_DEFAULT),
            inodes: room(1000, 50),
            descriptors: room(200, 10),
        };
        assert_eq!(shortages(enough), []);
        assert_eq!(shortages(Reading::default()), []);
        // A file system that counts no inodes.
        assert_eq!(shortages(Reading { inodes: room(0, 0), ..enough }), []);
        let none = Reading {
            memory_bytes: room(8 << 30, 1),
            guest_memory_bytes: room(100, 0),
            disk_bytes: room(1 << 40, 2),
            inodes: room(1000, 49),
            descriptors: room(20, 7),
        };
        let told: Vec<_> = shortages(none).iter().map(|s| (s.signal.resource(), s.threshold, s.available)).collect();
        assert_eq!(
            told,
            [
                ("memory", MEMORY_BYTES_DEFAULT, 1),
                ("ephemeral-storage", DISK_BYTES_DEFAULT, 2),
                ("inodes", 50, 49),
                ("descriptors", 8, 7)
            ]
        );
        let guests = shortages(Reading { memory_bytes: None, ..none });
        assert_eq!((guests[0].signal, guests[0].threshold), (Signal::Memory, 5));
    }

    #[test]
    fn a_small_disk_is_short_by_its_own_size() {
        let disk = |total: u64, free: u64| shortages(Reading { disk_bytes: room(total, free), ..Reading::default() });
        assert_eq!(disk(700 << 20, 600 << 20), []);
        assert_eq!(disk(700 << 20, 70 << 20), []);
        let [short] = disk(700 << 20, (70 << 20) - 1)[..] else { panic!("not short") };
        assert_eq!((short.signal, short.threshold), (Signal::Disk, 70 << 20));
    }

    #[test]
    fn thresholds_that_were_given_replace_all_others() {
        let nothing = Reading {
            memory_bytes: room(1000, 0),
            guest_memory_bytes: room(1000, 0),
            disk_bytes: room(1000, 0),
            inodes: room(1000, 0),
            descriptors: room(1000, 0),
        };
        let of = |text: &str, reading: Reading| -> Vec<_> {
            let all = reading.shortages(&text.parse().unwrap());
            all.into_iter().map(|short| (short.signal, short.threshold)).collect()
        };
        assert_eq!(of("", nothing), []);
        assert_eq!(of("nodefs.available<30%", nothing), [(Signal::Disk, 300)]);
        assert_eq!(of("nodefs.available<30%", Reading { disk_bytes: room(1000, 300), ..nothing }), []);
        assert_eq!(
            of("pid.available<2,nodefs.inodesFree<1%", nothing),
            [(Signal::Inodes, 10), (Signal::Descriptors, 2)]
        );
        let of_guests = Reading { memory_bytes: room(1000, 900), ..nothing };
        assert_eq!(of("memory.available<200", of_guests), [(Signal::Memory, 50)]);
        assert_eq!(of("memory.available<1%", of_guests), [(Signal::Memory, 10)]);
    }

    #[test]
    fn pressure_lasts_a_while() {
        let (mut pressures, second) = (Pressures::default(), Duration::from_secs);
        let inodes = Shortage { signal: Signal::Inodes, threshold: 2, available: 1 };
        pressures.observed(&[], second(1));
        assert_eq!(pressures.held(second(1)), Held::default());
        pressures.observed(&[inodes], second(10));
        assert!(pressures.held(second(309)).has(Pressure::Disk) && !pressures.held(second(310)).has(Pressure::Disk));
        assert!(!pressures.held(second(10)).has(Pressure::Memory) && !pressures.held(second(10)).has(Pressure::Pid));
    }

    #[test]
    fn amounts_are_written_as_upstream_does() {
        assert_eq!([0, 1 << 30].map(|bytes| Signal::Disk.amount(bytes)), ["0", "1Gi"]);
        assert_eq!([0, 4999, 5000].map(|count| Signal::Inodes.amount(count)), ["0", "4999", "5k"]);
        assert_eq!(Pressure::Pid.condition(true).2, "KubeletHasInsufficientPID");
        assert_eq!(Pressure::Disk.condition(false).2, "KubeletHasNoDiskPressure");
    }
}
