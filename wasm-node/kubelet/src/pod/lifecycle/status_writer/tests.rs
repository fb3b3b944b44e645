//! The order of a pod's status writes: one at a time, delayed, retried, and given up.

use super::*;

const fn second(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn status(phase: &str) -> Arc<Compressed<PodStatus>> {
    Arc::new(PodStatus { phase: Some(phase.into()), ..PodStatus::default() }.into())
}

fn at(elapsed: Duration) -> WriteFacts {
    WriteFacts { elapsed, ..WriteFacts::default() }
}

/// A writer with a projected status, of a pod whose status the watch shows as empty.
fn writer() -> StatusWriter {
    let mut writer = StatusWriter::new(StatusTarget::Pod);
    assert_eq!(writer.step(StatusEvent::Projected(status("Running")), second(0)), []);
    writer
}

fn next(writer: &mut StatusWriter, facts: &WriteFacts) -> NextWrite {
    writer.next(facts, || None)
}

fn end(writer: &mut StatusWriter, outcome: WriteOutcome, elapsed: Duration) -> Vec<StatusAction> {
    writer.step(StatusEvent::WriteEnded { outcome, newest: 0, jitter: Duration::ZERO }, elapsed)
}

fn observed(version: u64) -> StatusEvent {
    StatusEvent::Observed { target: StatusTarget::Pod, version }
}

#[test]
fn one_write_is_in_flight_and_the_next_has_the_newest_status() {
    let mut writer = writer();
    let first = next(&mut writer, &at(second(1)));
    assert_eq!((first.dirty, first.start, first.idle), (true, Some(StatusWrite::Patch), false));
    writer.step(StatusEvent::Projected(status("Failed")), second(1));
    writer.step(StatusEvent::Projected(status("Succeeded")), second(1));
    assert_eq!(next(&mut writer, &at(second(1))).start, None, "a write is in flight");
    assert_eq!(end(&mut writer, WriteOutcome::Accepted(7), second(2)), [StatusAction::ReleaseFirstActions]);
    assert_eq!(next(&mut writer, &at(second(2))).start, Some(StatusWrite::Patch));
    assert_eq!(writer.desired().get().phase.as_deref(), Some("Succeeded"));
    end(&mut writer, WriteOutcome::Accepted(8), second(3));
    let last = next(&mut writer, &at(second(3)));
    assert_eq!(last, NextWrite { dirty: false, start: None, idle: true, settles_in: None, retry_in: None });
}

#[test]
fn the_watch_is_compared_once_per_change() {
    let mut writer = writer();
    let running = status("Running").get();
    assert!(!writer.next(&at(second(1)), || Some(&running)).dirty, "the API has it already");
    assert!(!writer.next(&at(second(1)), || panic!("nothing has changed")).dirty);
    writer.step(observed(3), second(1));
    assert!(writer.next(&at(second(1)), || None).dirty);
}

#[test]
fn a_failed_write_is_retried_with_back_off() {
    let mut writer = writer();
    let (mut elapsed, mut waits) = (second(0), Vec::new());
    for _ in 0..9 {
        assert_eq!(next(&mut writer, &at(elapsed)).start, Some(StatusWrite::Patch));
        assert_eq!(end(&mut writer, WriteOutcome::Failed, elapsed), [], "nothing is reported yet");
        let wait = next(&mut writer, &at(elapsed)).retry_in.unwrap();
        let early = next(&mut writer, &at(elapsed + wait - Duration::from_millis(1)));
        assert_eq!((early.start, early.idle), (None, false));
        waits.push(wait.as_millis());
        elapsed += wait;
    }
    assert_eq!(waits, [400, 800, 1600, 3200, 6400, 12_800, 15_000, 15_000, 15_000]);
    next(&mut writer, &at(elapsed));
    let jitter = Duration::from_millis(300);
    writer.step(StatusEvent::WriteEnded { outcome: WriteOutcome::Rejected, newest: 0, jitter }, elapsed);
    assert_eq!(next(&mut writer, &at(elapsed)).retry_in, Some(WRITE_RETRY_MAX + jitter));
    elapsed += WRITE_RETRY_MAX + jitter;
    assert_eq!(next(&mut writer, &at(elapsed)).start, Some(StatusWrite::Patch));
    end(&mut writer, WriteOutcome::Accepted(1), elapsed);
    writer.step(StatusEvent::Projected(status("Failed")), elapsed);
    next(&mut writer, &at(elapsed));
    end(&mut writer, WriteOutcome::Failed, elapsed);
    assert_eq!(next(&mut writer, &at(elapsed)).retry_in, Some(Duration::from_millis(400)), "the count starts again");
}

#[test]
fn a_status_that_settles_soon_waits_and_a_longer_wait_is_ignored() {
    let mut writer = writer();
    let settling = |millis| WriteFacts { settles_in: Some(Duration::from_millis(millis)), ..at(second(1)) };
    let waiting = next(&mut writer, &settling(80));
    assert_eq!((waiting.start, waiting.settles_in), (None, Some(Duration::from_millis(80))));
    let shifted = next(&mut writer, &settling(3_600_000));
    assert_eq!(shifted.start, Some(StatusWrite::Patch), "the clock was set back");
    end(&mut writer, WriteOutcome::Accepted(1), second(1));
    assert_eq!(next(&mut writer, &settling(80)).settles_in, None, "nothing is to be written");
    writer.step(StatusEvent::Projected(status("Failed")), second(1));
    assert_eq!(next(&mut writer, &settling(0)).start, Some(StatusWrite::Patch));
}

#[test]
fn a_delete_waits_for_the_final_status() {
    let mut writer = writer();
    writer.step(StatusEvent::DeleteRequested, second(1));
    assert_eq!(next(&mut writer, &at(second(1))).start, Some(StatusWrite::Patch));
    writer.step(StatusEvent::DeleteRequested, second(1));
    end(&mut writer, WriteOutcome::Accepted(7), second(1));
    let stale = WriteFacts { stale: true, ..at(second(1)) };
    assert_eq!(next(&mut writer, &stale).start, None, "a newer status follows");
    let removed = WriteFacts { removed: true, ..at(second(1)) };
    assert_eq!(next(&mut writer, &removed).start, None, "there is nothing to delete");
    assert_eq!(next(&mut writer, &at(second(1))).start, Some(StatusWrite::Delete));
    assert_eq!(end(&mut writer, WriteOutcome::TooLarge, second(1)), [StatusAction::ReleaseFirstActions]);
    assert_eq!(next(&mut writer, &at(second(2))).start, Some(StatusWrite::Delete), "a delete is always retried");
    end(&mut writer, WriteOutcome::Gone, second(2));
    assert!(next(&mut writer, &at(second(2))).idle, "one delete is enough");
}

#[test]
fn a_pod_that_is_gone_or_too_large_is_not_written_again() {
    for (outcome, first) in [
        (WriteOutcome::Gone, vec![StatusAction::ReleaseFirstActions]),
        (WriteOutcome::TooLarge, vec![StatusAction::ReleaseFirstActions, StatusAction::RecordTooLarge]),
    ] {
        let mut writer = writer();
        next(&mut writer, &at(second(1)));
        assert_eq!(end(&mut writer, outcome, second(1)), first);
        writer.step(observed(9), second(1));
        assert!(next(&mut writer, &at(second(9))).idle, "{outcome:?}");
        writer.step(StatusEvent::Projected(status("Failed")), second(9));
        assert_eq!(next(&mut writer, &at(second(9))).start, Some(StatusWrite::Patch), "a different status");
        assert_eq!(end(&mut writer, outcome, second(9)), [StatusAction::ReleaseFirstActions], "one event is enough");
    }
}

#[test]
fn the_status_of_an_earlier_run_stays() {
    let mut writer = writer();
    writer.step(StatusEvent::WrittenBefore, second(0));
    assert!(next(&mut writer, &at(second(1))).idle);
    writer.step(observed(5), second(1));
    assert!(next(&mut writer, &at(second(1))).idle, "whatever the watch shows");
}

#[test]
fn a_static_pod_without_a_mirror_writes_nothing_and_a_new_mirror_everything() {
    let mirror = |uid: Option<&str>, version| StatusEvent::Observed {
        target: StatusTarget::Mirror(uid.map(Into::into)),
        version,
    };
    let mut writer = writer();
    writer.step(mirror(None, 1), second(0));
    assert!(next(&mut writer, &at(second(1))).idle);
    writer.step(mirror(Some("a"), 2), second(1));
    assert_eq!(next(&mut writer, &at(second(1))).start, Some(StatusWrite::Patch));
    writer.step(mirror(None, 3), second(1));
    end(&mut writer, WriteOutcome::Accepted(3), second(1));
    writer.step(mirror(Some("b"), 4), second(2));
    assert_eq!(next(&mut writer, &at(second(2))).start, Some(StatusWrite::Patch), "nothing is known of this one");
    assert_eq!(*writer.target(), StatusTarget::Mirror(Some("b".into())));
}

#[test]
fn a_result_without_a_write_changes_nothing() {
    let mut writer = writer();
    for outcome in [WriteOutcome::Accepted(9), WriteOutcome::Gone, WriteOutcome::TooLarge, WriteOutcome::Failed] {
        assert_eq!(end(&mut writer, outcome, second(1)), [], "{outcome:?}");
    }
    let first = next(&mut writer, &at(second(1)));
    assert_eq!((first.start, first.retry_in), (Some(StatusWrite::Patch), None));
    end(&mut writer, WriteOutcome::Accepted(9), second(1));
    assert_eq!(end(&mut writer, WriteOutcome::Failed, second(1)), [], "the second result of one write");
    assert!(next(&mut writer, &at(second(1))).idle);
}

#[test]
fn responses_have_an_outcome() {
    let outcomes = [404, 409, 413, 403, 422, 400].map(WriteOutcome::of_failure);
    let rejected = WriteOutcome::Rejected;
    assert_eq!(
        outcomes,
        [WriteOutcome::Gone, WriteOutcome::Gone, WriteOutcome::TooLarge, rejected, rejected, rejected]
    );
    assert_eq!([0, 408, 429, 500, 503, 200].map(WriteOutcome::of_failure), [WriteOutcome::Failed; 6]);
}

#[test]
fn the_result_of_a_write_to_an_earlier_mirror_is_ignored() {
    let mirror = |uid: &str| StatusTarget::Mirror(Some(uid.into()));
    for outcome in [WriteOutcome::Gone, WriteOutcome::Accepted(9), WriteOutcome::TooLarge] {
        let mut writer = StatusWriter::new(mirror("first"));
        writer.step(StatusEvent::Projected(status("Running")), second(0));
        assert_eq!(next(&mut writer, &at(second(1))).start, Some(StatusWrite::Patch));
        writer.step(StatusEvent::Observed { target: mirror("second"), version: 8 }, second(1));
        assert_eq!(next(&mut writer, &at(second(1))).start, None, "the first mirror's write is in flight");
        assert_eq!(end(&mut writer, outcome, second(2)), [StatusAction::ReleaseFirstActions]);
        assert_eq!(next(&mut writer, &at(second(2))).start, Some(StatusWrite::Patch), "{outcome:?}");
    }
}
