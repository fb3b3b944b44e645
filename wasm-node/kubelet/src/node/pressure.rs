//! Node pressure on memory, disk, inodes or descriptors. Pure: from a reading of the machine to shortages and conditions. The signals
//! are those of <https://kubernetes.io/docs/concepts/scheduling-eviction/node-pressure-eviction/>. Guests have no processes, so
//! `PIDPressure` stands for descriptors of this process.

use std::time::Duration;

use machinery_api::quantity::{Format, Quantity};

use super::thresholds::EvictionThresholds;
use crate::volume::usage::quantity;

/// How long a pressure condition lasts after its last shortage, to avoid oscillation (upstream's).
const TRANSITION: Duration = Duration::from_secs(300);
/// The maximum threshold as a fraction (1/20) of the guests' memory, so that a node with a small memory bound is not always short.
const GUESTS_PART: u64 = 20;
/// The default minimum of free descriptors if 5% are fewer: enough to start another container.
const DESCRIPTORS_LOW: u64 = 8;

/// An eviction signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Signal {
    /// Upstream's `memory.available`.
    Memory,
    /// Upstream's `nodefs.available`.
    Disk,
    /// Upstream's `nodefs.inodesFree`.
    Inodes,
    /// The counterpart of upstream's `pid.available`.
    Descriptors,
}

impl Signal {
    /// In upstream's order: memory before all other resources.
    pub(super) const ALL: [Self; 4] = [Self::Memory, Self::Disk, Self::Inodes, Self::Descriptors];

    /// The name in upstream's flags.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory.available",
            Self::Disk => "nodefs.available",
            Self::Inodes => "nodefs.inodesFree",
            Self::Descriptors => "pid.available",
        }
    }

    /// The resource's name in events and messages.
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

    /// Formats an amount as upstream does.
    pub(super) fn amount(self, of: u64) -> String {
        match self {
            Self::Memory | Self::Disk => quantity(of),
            Self::Inodes | Self::Descriptors => {
                Quantity::from_int(i64::try_from(of).unwrap_or(i64::MAX), Format::DecimalSi).to_string()
            }
        }
    }
}

/// The pressure conditions of a Node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pressure {
    Memory,
    Disk,
    Pid,
}

impl Pressure {
    /// The condition's type, status, reason and message (upstream's).
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

/// A signal whose available amount is below its threshold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shortage {
    pub(super) signal: Signal,
    pub(super) threshold: u64,
    pub(super) available: u64,
}

/// The total and the free amount of a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ResourceAmount {
    pub(super) total: u64,
    pub(super) free: u64,
}

/// A reading of the machine; `None` if an amount is unknown or unbounded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct MachineReading {
    pub(super) memory_bytes: Option<ResourceAmount>,
    /// The memory of this node's guests.
    pub(super) guest_memory_bytes: Option<ResourceAmount>,
    pub(super) disk_bytes: Option<ResourceAmount>,
    pub(super) inodes: Option<ResourceAmount>,
    /// The descriptors of all guests of the process.
    pub(super) descriptors: Option<ResourceAmount>,
}

impl MachineReading {
    /// The shortages by `thresholds`, in upstream's order.
    pub(super) fn shortages(&self, thresholds: &EvictionThresholds) -> Vec<Shortage> {
        let low = |signal: Signal, amount: Option<ResourceAmount>, bound: &dyn Fn(u64, u64) -> u64| {
            let amount = amount?;
            let threshold = bound(thresholds.get(signal)?.of(amount.total), amount.total);
            (amount.free < threshold).then_some(Shortage { signal, threshold, available: amount.free })
        };
        let by_default = *thresholds == EvictionThresholds::default();
        let whole = |threshold: u64, _: u64| threshold;
        let guests = |threshold: u64, total: u64| threshold.min(total / GUESTS_PART);
        let descriptors = |threshold: u64, _: u64| if by_default { threshold.max(DESCRIPTORS_LOW) } else { threshold };
        // The total is 0 on a file system without an inode count.
        let inodes = self.inodes.filter(|amount| amount.total > 0);
        let all = [
            low(Signal::Memory, self.memory_bytes, &whole)
                .or_else(|| low(Signal::Memory, self.guest_memory_bytes, &guests)),
            low(Signal::Disk, self.disk_bytes, &whole),
            low(Signal::Inodes, inodes, &|threshold, _| threshold.max(1)),
            low(Signal::Descriptors, self.descriptors.filter(|amount| amount.total > 0), &descriptors),
        ];
        all.into_iter().flatten().collect()
    }
}

/// The pressure conditions: active during a shortage, and for a transition period after it.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Pressures {
    short_at: [Option<Duration>; 3],
}

impl Pressures {
    /// Records the shortages of an observation.
    pub(super) fn observe(&mut self, shortages: &[Shortage], now: Duration) {
        for shortage in shortages {
            self.short_at[shortage.signal.pressure() as usize] = Some(now);
        }
    }

    /// The conditions that are active at `now`.
    pub(super) fn active(&self, now: Duration) -> ActivePressures {
        ActivePressures(self.short_at.map(|last| last.is_some_and(|last| now.saturating_sub(last) < TRANSITION)))
    }
}

/// The active pressure conditions at one time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct ActivePressures([bool; 3]);

impl ActivePressures {
    pub(super) fn has(self, pressure: Pressure) -> bool {
        self.0[pressure as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::super::thresholds::{DISK_BYTES_DEFAULT, MEMORY_BYTES_DEFAULT};
    use super::*;

    fn amount(total: u64, free: u64) -> Option<ResourceAmount> {
        Some(ResourceAmount { total, free })
    }

    fn shortages(of: MachineReading) -> Vec<Shortage> {
        of.shortages(&EvictionThresholds::default())
    }

    #[test]
    fn pressures_are_reported_in_order() {
        let enough = MachineReading {
            memory_bytes: amount(8 << 30, MEMORY_BYTES_DEFAULT),
            guest_memory_bytes: amount(100, 5),
            disk_bytes: amount(1 << 40, DISK_BYTES_DEFAULT),
            inodes: amount(1000, 50),
            descriptors: amount(200, 10),
        };
        assert_eq!(shortages(enough), []);
        assert_eq!(shortages(MachineReading::default()), []);
        // A file system without an inode count.
        assert_eq!(shortages(MachineReading { inodes: amount(0, 0), ..enough }), []);
        let none = MachineReading {
            memory_bytes: amount(8 << 30, 1),
            guest_memory_bytes: amount(100, 0),
            disk_bytes: amount(1 << 40, 2),
            inodes: amount(1000, 49),
            descriptors: amount(20, 7),
        };
        let reported: Vec<_> =
            shortages(none).iter().map(|s| (s.signal.resource(), s.threshold, s.available)).collect();
        assert_eq!(
            reported,
            [
                ("memory", MEMORY_BYTES_DEFAULT, 1),
                ("ephemeral-storage", DISK_BYTES_DEFAULT, 2),
                ("inodes", 50, 49),
                ("descriptors", 8, 7)
            ]
        );
        let guests = shortages(MachineReading { memory_bytes: None, ..none });
        assert_eq!((guests[0].signal, guests[0].threshold), (Signal::Memory, 5));
    }

    #[test]
    fn a_small_disk_is_short_by_its_own_size() {
        let disk = |total: u64, free: u64| {
            shortages(MachineReading { disk_bytes: amount(total, free), ..MachineReading::default() })
        };
        assert_eq!(disk(700 << 20, 600 << 20), []);
        assert_eq!(disk(700 << 20, 70 << 20), []);
        let [short] = disk(700 << 20, (70 << 20) - 1)[..] else { panic!("not short") };
        assert_eq!((short.signal, short.threshold), (Signal::Disk, 70 << 20));
    }

    #[test]
    fn thresholds_that_were_given_replace_all_others() {
        let nothing = MachineReading {
            memory_bytes: amount(1000, 0),
            guest_memory_bytes: amount(1000, 0),
            disk_bytes: amount(1000, 0),
            inodes: amount(1000, 0),
            descriptors: amount(1000, 0),
        };
        let of = |text: &str, reading: MachineReading| -> Vec<_> {
            let all = reading.shortages(&text.parse().unwrap());
            all.into_iter().map(|short| (short.signal, short.threshold)).collect()
        };
        assert_eq!(of("", nothing), []);
        assert_eq!(of("nodefs.available<30%", nothing), [(Signal::Disk, 300)]);
        assert_eq!(of("nodefs.available<30%", MachineReading { disk_bytes: amount(1000, 300), ..nothing }), []);
        assert_eq!(
            of("pid.available<2,nodefs.inodesFree<1%", nothing),
            [(Signal::Inodes, 10), (Signal::Descriptors, 2)]
        );
        let of_guests = MachineReading { memory_bytes: amount(1000, 900), ..nothing };
        assert_eq!(of("memory.available<200", of_guests), [(Signal::Memory, 50)]);
        assert_eq!(of("memory.available<1%", of_guests), [(Signal::Memory, 10)]);
    }

    #[test]
    fn pressure_lasts_a_while() {
        let (mut pressures, second) = (Pressures::default(), Duration::from_secs);
        let inodes = Shortage { signal: Signal::Inodes, threshold: 2, available: 1 };
        pressures.observe(&[], second(1));
        assert_eq!(pressures.active(second(1)), ActivePressures::default());
        pressures.observe(&[inodes], second(10));
        assert!(
            pressures.active(second(309)).has(Pressure::Disk) && !pressures.active(second(310)).has(Pressure::Disk)
        );
        assert!(
            !pressures.active(second(10)).has(Pressure::Memory) && !pressures.active(second(10)).has(Pressure::Pid)
        );
    }

    #[test]
    fn amounts_are_written_as_upstream_does() {
        assert_eq!([0, 1 << 30].map(|bytes| Signal::Disk.amount(bytes)), ["0", "1Gi"]);
        assert_eq!([0, 4999, 5000].map(|count| Signal::Inodes.amount(count)), ["0", "4999", "5k"]);
        assert_eq!(Pressure::Pid.condition(true).2, "KubeletHasInsufficientPID");
        assert_eq!(Pressure::Disk.condition(false).2, "KubeletHasNoDiskPressure");
    }
}
