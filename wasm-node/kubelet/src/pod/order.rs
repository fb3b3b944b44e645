//! Whose turn it is: which containers of a pod begin, and which end. Functions of where all of them stand, asked anew after
//! each event and never stored. Pure.

use super::cell::{Cell, CellStage};
use super::event::{Class, ContainerPolicy, LifecyclePolicy};

/// Whether all have passed that the pod's own containers wait for.
#[must_use]
pub fn initialized(cells: &[Cell]) -> bool {
    cells.iter().filter(|cell| matches!(cell.class, Class::Init | Class::Sidecar)).all(|cell| cell.passed)
}

/// Those whose turn to begin has come: the first init container that those behind it wait for, else the pod's own; ephemeral
/// ones at any time. As upstream, where one of the pod's own has a hook after its start, those behind it wait for that.
pub(super) fn begin(cells: &[Cell], rules: &LifecyclePolicy) -> Vec<usize> {
    let waits = |cell: &Cell| matches!(cell.class, Class::Init | Class::Sidecar) && !cell.passed;
    let first = cells.iter().position(waits);
    let holds_back = |(cell, own): (&Cell, &ContainerPolicy)| {
        let comes = matches!(cell.stage, CellStage::Idle | CellStage::Pulling | CellStage::Starting);
        cell.class == Class::Main && own.post_start.is_some() && (comes || cell.hooking())
    };
    let held = cells.iter().zip(rules.containers.iter()).position(holds_back);
    let has_turn = |(index, cell): &(usize, &Cell)| match cell.class {
        Class::Init | Class::Sidecar => Some(*index) == first,
        Class::Main => first.is_none() && held.is_none_or(|held| *index <= held),
        Class::Ephemeral => true,
    };
    let idle = cells.iter().enumerate().filter(|(_, cell)| cell.stage == CellStage::Idle);
    idle.filter(has_turn).map(|(index, _)| index).collect()
}

/// Whether the pod has nothing left to do: its own containers are done for good, or an init container has failed for good.
pub(super) fn is_over(cells: &[Cell]) -> bool {
    let done = |cell: &Cell| cell.stage == CellStage::Done;
    cells.iter().filter(|cell| cell.class == Class::Main).all(done)
        || cells.iter().any(|cell| cell.class == Class::Init && done(cell) && !cell.passed)
}

/// Of a pod that closes, those that run and whose turn to end has come: all at once, but for sidecars, which end one by one
/// after the pod's own containers, the last first. `late`: no time is left to wait for a turn.
pub(super) fn end(cells: &[Cell], late: bool) -> Vec<usize> {
    let busy = cells.iter().any(|cell| cell.class == Class::Main && cell.is_live());
    let last = cells.iter().rposition(|cell| cell.class == Class::Sidecar && cell.is_live());
    let has_turn =
        |(index, cell): &(usize, &Cell)| cell.class != Class::Sidecar || late || !busy && Some(*index) == last;
    cells.iter().enumerate().filter(|(_, cell)| cell.is_live()).filter(has_turn).map(|(index, _)| index).collect()
}
