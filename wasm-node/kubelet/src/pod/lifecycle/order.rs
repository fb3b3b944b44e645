//! The order in which a pod's containers start and stop. Pure functions of all containers' stages, evaluated after each
//! event and never stored.

use super::container::{ContainerMachine, ContainerStage};
use super::event::{Class, ContainerPolicy, LifecyclePolicy};

/// Whether all init containers and sidecars have passed, so that the main containers may start.
#[must_use]
pub fn initialized(machines: &[ContainerMachine]) -> bool {
    machines
        .iter()
        .filter(|machine| matches!(machine.class, Class::Init | Class::Sidecar))
        .all(|machine| machine.passed)
}

/// The idle containers that may start now: the first init container that hasn't passed, else the main ones; ephemeral
/// ones always. As upstream, a main container's `postStart` hook delays the main containers after it.
pub(in crate::pod) fn begin(machines: &[ContainerMachine], rules: &LifecyclePolicy) -> Vec<usize> {
    let waits = |machine: &ContainerMachine| matches!(machine.class, Class::Init | Class::Sidecar) && !machine.passed;
    let first = machines.iter().position(waits);
    let holds_back = |(machine, own): (&ContainerMachine, &ContainerPolicy)| {
        let comes = matches!(machine.stage, ContainerStage::Idle | ContainerStage::Pulling | ContainerStage::Starting);
        machine.class == Class::Main && own.post_start.is_some() && (comes || machine.hook_pending())
    };
    let held = machines.iter().zip(rules.containers.iter()).position(holds_back);
    let has_turn = |(index, machine): &(usize, &ContainerMachine)| match machine.class {
        Class::Init | Class::Sidecar => Some(*index) == first,
        Class::Main => first.is_none() && held.is_none_or(|held| *index <= held),
        Class::Ephemeral => true,
    };
    let idle = machines.iter().enumerate().filter(|(_, machine)| machine.stage == ContainerStage::Idle);
    idle.filter(has_turn).map(|(index, _)| index).collect()
}

/// Whether the pod has ended: its main containers are done, or an init container has failed for good.
pub(in crate::pod) fn is_over(machines: &[ContainerMachine]) -> bool {
    let done = |machine: &ContainerMachine| machine.stage == ContainerStage::Done;
    machines.iter().filter(|machine| machine.class == Class::Main).all(done)
        || machines.iter().any(|machine| machine.class == Class::Init && done(machine) && !machine.passed)
}

/// The live containers of a closing pod to be stopped now: all at once, except sidecars, which stop in reverse order
/// after the main containers. `late`: no time remains for this order.
pub(in crate::pod) fn end(machines: &[ContainerMachine], late: bool) -> Vec<usize> {
    let busy = machines.iter().any(|machine| machine.class == Class::Main && machine.is_live());
    let last = machines.iter().rposition(|machine| machine.class == Class::Sidecar && machine.is_live());
    let has_turn = |(index, machine): &(usize, &ContainerMachine)| {
        machine.class != Class::Sidecar || late || !busy && Some(*index) == last
    };
    machines
        .iter()
        .enumerate()
        .filter(|(_, machine)| machine.is_live())
        .filter(has_turn)
        .map(|(index, _)| index)
        .collect()
}
