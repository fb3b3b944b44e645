//! Checks of the system's limits and sockets. Pure.

use super::checks::{CheckResult, Finding, Level};
use super::facts::{Facts, PortState};
use crate::inspection::amounts::bytes;

/// The port of Services that people open in a browser.
const HTTP_PORT: u16 = 80;
/// `vm.overcommit_memory`: no more address space than memory and swap.
const OVERCOMMIT_NEVER: u8 = 2;
/// A machine with fewer free blocks has nearly all of them in use.
const BLOCKS_LOW: usize = 3;

pub(super) fn open_files(facts: &Facts) -> CheckResult {
    let fix = if cfg!(target_os = "macos") {
        "sudo launchctl limit maxfiles 65536 200000"
    } else {
        "ulimit -n 65536 in the shell that starts coracle (root raises the hard limit: ulimit -Hn 65536), or LimitNOFILE=65536 \
         in its systemd unit"
    };
    let findings = facts.machine.descriptor_shortage.iter();
    CheckResult::of(findings.map(|why| Finding::new(Level::Warning, why, fix)).collect(), || {
        "the limit is ample".to_owned()
    })
}

pub(super) fn api_port(facts: &Facts) -> CheckResult {
    let address = facts.machine.api_address;
    let port = address.port();
    if port == 0 {
        return CheckResult::Passed("a free port is chosen at the start".to_owned());
    }
    let finding = |message, fix: String| CheckResult::Findings(vec![Finding::new(Level::Error, message, fix)]);
    match &facts.machine.api_port {
        PortState::Free => CheckResult::Passed(format!("{address} is free")),
        PortState::Taken if facts.folder.is_running => {
            CheckResult::Passed(format!("{address} is in use, and the cluster of this data folder runs"))
        }
        PortState::Taken => finding(
            format!("the API server's address {address} is in use by another program"),
            format!("stop that program ({}), or start with: coracle up --port 0", listeners_command(port)),
        ),
        PortState::Forbidden => finding(
            format!("this user may not listen on {address}"),
            "start with a port above 1023: coracle up --port 6443".to_owned(),
        ),
        PortState::Failed(why) => finding(
            format!("no program can listen on {address}: {why}"),
            "start with an address of this machine: coracle up --bind 127.0.0.1".to_owned(),
        ),
    }
}

/// The command that shows who listens on a port.
fn listeners_command(port: u16) -> String {
    if cfg!(windows) {
        format!("netstat -ano | findstr :{port}")
    } else if cfg!(target_os = "linux") {
        format!("ss -ltnp 'sport = :{port}'")
    } else {
        format!("lsof -nP -iTCP:{port} -sTCP:LISTEN")
    }
}

pub(super) fn http_port(facts: &Facts) -> CheckResult {
    let finding = |message, fix: String| CheckResult::Findings(vec![Finding::new(Level::Warning, message, fix)]);
    match &facts.machine.http_port {
        None => CheckResult::not_applicable("ClusterIPs have listeners on Linux alone"),
        Some(PortState::Free) => CheckResult::Passed("Services of port 80 can listen on their ClusterIPs".to_owned()),
        Some(PortState::Taken) => finding(
            "another program listens on port 80 of all addresses: Services of port 80 are not reachable at their ClusterIPs \
             from this machine"
                .to_owned(),
            format!("stop that program, or bind it to one address ({})", listeners_command(HTTP_PORT)),
        ),
        Some(PortState::Forbidden) => {
            let start = facts.machine.unprivileged_port_start.unwrap_or(1024);
            finding(
                format!(
                    "this user may not listen on ports below {start}: Services of port 80 are not reachable at their \
                     ClusterIPs from this machine, only at NodePorts and from pods"
                ),
                "sudo sysctl -w net.ipv4.ip_unprivileged_port_start=80".to_owned(),
            )
        }
        Some(PortState::Failed(why)) => finding(
            format!("addresses of 127.0.0.0/8 can't be used: {why}"),
            "sudo ip link set lo up".to_owned(),
        ),
    }
}

pub(super) fn instance_pool(facts: &Facts) -> CheckResult {
    let pool = &facts.machine.pool;
    if pool.is_pooled && pool.live == pool.live_max {
        return CheckResult::Passed(format!("{} guest instances at once", pool.live));
    }
    let what = format!("{} guest instances at once instead of {}", pool.live, pool.live_max);
    let (why, fix) = match (pool.mappings, &pool.error) {
        (Some(mappings), _) if mappings < pool.mappings_needed => (
            format!("a process may have {mappings} memory mappings, and {} are needed", pool.mappings_needed),
            "sudo sysctl -w vm.max_map_count=262144".to_owned(),
        ),
        (_, error) => {
            let fix = if facts.machine.overcommit == Some(OVERCOMMIT_NEVER) {
                "sudo sysctl -w vm.overcommit_memory=0"
            } else {
                "ulimit -v unlimited in the shell that starts coracle, or remove LimitAS= from its systemd unit"
            };
            (error.clone().unwrap_or_else(|| "the system refuses the address space".to_owned()), fix.to_owned())
        }
    };
    CheckResult::Findings(vec![Finding::new(Level::Warning, format!("{what}: {why}"), fix)])
}

pub(super) fn memory_limit(facts: &Facts) -> CheckResult {
    let Some(memory) = facts.machine.memory_bytes else {
        return CheckResult::not_applicable("the machine's memory is unknown");
    };
    let Some(limit) = facts.machine.memory_limit_bytes else {
        return CheckResult::Passed(format!("{}, all of it usable", bytes(memory)));
    };
    let message = format!(
        "this process may use {} of the machine's {}: nodes report three quarters of the machine's memory to the scheduler, and \
         the kernel ends the process above its limit",
        bytes(limit),
        bytes(memory)
    );
    let fix = "raise the limit (MemoryMax= of the systemd unit, --memory of the container), or bound the pods with a \
                ResourceQuota for limits.memory in each namespace";
    CheckResult::Findings(vec![Finding::new(Level::Warning, message, fix)])
}

pub(super) fn address_blocks(facts: &Facts) -> CheckResult {
    match facts.machine.free_blocks {
        None => CheckResult::not_applicable("clusters have blocks of 127.0.0.0/8 on Linux alone"),
        Some(0) if !facts.folder.is_running => CheckResult::Findings(vec![Finding::new(
            Level::Error,
            "other clusters use all blocks of 127.0.0.0/8",
            "stop one of them (ss -ltnp 'sport = :6442'), or start with --service-cidr and --cluster-cidr",
        )]),
        Some(free) if free < BLOCKS_LOW && !facts.folder.is_running => CheckResult::Findings(vec![Finding::new(
            Level::Info,
            format!("{free} blocks of 127.0.0.0/8 are left for clusters"),
            "stop unused clusters (ss -ltnp 'sport = :6442')",
        )]),
        Some(free) => CheckResult::Passed(format!("{free} blocks of 127.0.0.0/8 are free")),
    }
}
