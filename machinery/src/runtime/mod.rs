//! The controller runtime: view, queue, driver, back-off, leader election.
