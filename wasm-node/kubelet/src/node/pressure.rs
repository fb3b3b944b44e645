//! What a node is short of: memory, disk, inodes, or descriptors for its guests. Pure: from what was read of the machine to what is told.
//! The signals are those of <https://kubernetes.io/docs/concepts/scheduling-eviction/node-pressure-eviction/>; guests have no processes, so
//! that `PIDPressure` tells of what they have in their stead, descriptors of this process.

use std::time::Duration;

use machinery_api::quantity::{Format, Quantity};

use crate::volume::usage::quantity;

/// How long a condition of pressure stays after its reason has gone, so that pods don't come and go with it (upstream's).
const TRANSITION: Duration = Duration::from_secs(300);
/// Free memory below which the node says so (upstream's threshold).
const MEMORY_LOW_BYTES: u64 = 100 << 20;
/// Free disk below which the node says so: what the default bound of one emptyDir could use up.
const DISK_LOW_BYTES: u64 = 1 << 30;
/// The part of all inodes, and of all descriptors, below which those that are free are too few: 5% (upstream's for inodes).
const COUNTED_PART: u64 = 20;
/// Descriptors with which another container can begin, where 5% are fewer.
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
    pub(super) memory_free_bytes: Option<u64>,
    /// Of what this node's guests may hold.
    pub(super) guest_memory_bytes: Option<Room>,
    pub(super) disk_free_bytes: Option<u64>,
    pub(super) inodes: Option<Room>,
    /// Of what all guests of the process may have open.
    pub(super) descriptors: Option<Room>,
}

impl Reading {
    /// What there is too little of, in upstream's order: memory before all other resources.
    pub(super) fn shortages(&self) -> Vec<Shortage> {
        let low = |signal: Signal, available: Option<u64>, threshold: u64| {
            let available = available.filter(|available| *available < threshold)?;
            Some(Shortage { signal, threshold, available })
        };
        let counted = |signal: Signal, room: Option<Room>, least: u64| {
            let room = room.filter(|room| room.total > 0)?;
            low(signal, Some(room.free), (room.total / COUNTED_PART).max(least))
        };
        let guests = |room: Room| {
            // A small share of a small machine is not short for being small.
            low(Signal::Memory, Some(room.free), MEMORY_LOW_BYTES.min(room.total / 20))
        };
        let memory = low(Signal::Memory, self.memory_free_bytes, MEMORY_LOW_BYTES);
        let all = [
            memory.or_else(|| self.guest_memory_bytes.and_then(guests)),
            low(Signal::Disk, self.disk_free_bytes, DISK_LOW_BYTES),
            counted(Signal::Inodes, self.inodes, 1),
            counted(Signal::Descriptors, self.descriptors, DESCRIPTORS_LOW),
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
    use super::*;

    #[test]
    fn what_is_short_is_told_in_order() {
        let room = |total: u64, free: u64| Some(Room { total, free });
        let enough = Reading {
            memory_free_bytes: Some(MEMORY_LOW_BYTES),
            guest_memory_bytes: room(100, 5),
            disk_free_bytes: Some(DISK_LOW_BYTES),
            inodes: room(1000, 50),
            descriptors: room(200, 10),
        };
        assert_eq!(enough.shortages(), []);
        assert_eq!(Reading::default().shortages(), []);
        // A file system that counts no inodes.
        assert_eq!(Reading { inodes: room(0, 0), ..enough }.shortages(), []);
        let none = Reading {
            memory_free_bytes: Some(1),
            guest_memory_bytes: room(100, 0),
            disk_free_bytes: Some(2),
            inodes: room(1000, 49),
            descriptors: room(20, 7),
        };
        let told: Vec<_> = none.shortages().iter().map(|s| (s.signal.resource(), s.threshold, s.available)).collect();
        assert_eq!(
            told,
            [
                ("memory", MEMORY_LOW_BYTES, 1),
                ("ephemeral-storage", DISK_LOW_BYTES, 2),
                ("inodes", 50, 49),
                ("descriptors", 8, 7)
            ]
        );
        let guests = Reading { memory_free_bytes: None, ..none }.shortages();
        assert_eq!((guests[0].signal, guests[0].threshold), (Signal::Memory, 5));
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
