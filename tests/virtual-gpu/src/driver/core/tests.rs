//! Every way to forget a wait is caught, and no way to wait right is.

use std::sync::Arc;

use super::*;

/// Work that touches one allocation.
#[derive(Debug)]
struct Job {
    name: &'static str,
    range: std::ops::Range<u64>,
    access: Access,
}

const SPACE: Space = Space::Device { device: 0, allocation: 1 };

#[derive(Default)]
struct Machine {
    schedule: Schedule<Job>,
    ledger: Ledger,
    ran: Vec<&'static str>,
    conflicts: Vec<(Arc<str>, Arc<str>)>,
}

impl Machine {
    fn stream(&mut self, kind: Kind) -> StreamId {
        self.schedule.open(0, kind)
    }

    fn write(&mut self, stream: StreamId, name: &'static str) {
        self.job(stream, Job { name, range: 0..64, access: Access::Write });
    }

    fn read(&mut self, stream: StreamId, name: &'static str) {
        self.job(stream, Job { name, range: 0..64, access: Access::Read });
    }

    fn job(&mut self, stream: StreamId, job: Job) {
        self.schedule.enqueue(stream, job).unwrap();
    }

    /// What `cuStreamWaitEvent` on an event just recorded on `other` does.
    fn wait(&mut self, stream: StreamId, other: StreamId) {
        let stamp = self.schedule.stamp(other);
        self.schedule.wait(stream, &stamp);
    }

    fn synchronize(&mut self, goal: Clock) {
        while let Next::Run(work) = self.schedule.next(&goal) {
            let touch = Touch { stream: work.stream, epoch: work.epoch, what: work.item.name.into() };
            if let Err(conflict) =
                self.ledger.touch(SPACE, work.item.range.clone(), work.item.access, &work.clock, &touch)
            {
                self.conflicts.push((conflict.first.what, conflict.second.what));
            }
            self.ran.push(work.item.name);
            self.schedule.finish(work.stream, work.epoch);
        }
        self.schedule.host_waited(&goal);
        if self.schedule.quiet() {
            self.ledger.clear();
            self.schedule.forget_closed();
        }
    }

    fn synchronize_stream(&mut self, stream: StreamId) {
        let goal = self.schedule.stamp(stream);
        self.synchronize(goal);
    }

    /// Runs all there is; gives the conflicts in words.
    fn conflicts(mut self) -> Vec<String> {
        let goal = self.schedule.group(0);
        self.synchronize(goal);
        self.conflicts.iter().map(|(first, second)| format!("{first} / {second}")).collect()
    }
}

#[test]
fn nothing_runs_before_someone_waits() {
    let mut machine = Machine::default();
    let (a, b) = (machine.stream(Kind::NonBlocking), machine.stream(Kind::NonBlocking));
    machine.write(a, "a1");
    machine.write(a, "a2");
    machine.job(b, Job { name: "b1", range: 64..65, access: Access::Write });
    assert!(machine.ran.is_empty());
    machine.synchronize_stream(a);
    assert_eq!(machine.ran, ["a1", "a2"], "and then no more than was asked for");
    assert!(machine.conflicts().is_empty());
}

#[test]
fn an_event_brings_only_what_was_recorded_before_it() {
    let mut machine = Machine::default();
    let a = machine.stream(Kind::NonBlocking);
    machine.write(a, "before");
    let event = machine.schedule.stamp(a);
    machine.write(a, "after");
    assert!(!machine.schedule.done(&event));
    machine.synchronize(event.clone());
    assert_eq!(machine.ran, ["before"]);
    assert!(machine.schedule.done(&event));
}

#[test]
fn a_reader_on_another_stream_without_an_event_is_caught() {
    let mut machine = Machine::default();
    let (a, b) = (machine.stream(Kind::NonBlocking), machine.stream(Kind::NonBlocking));
    machine.write(a, "writer");
    machine.read(b, "reader");
    assert_eq!(machine.conflicts(), ["writer / reader"]);
}

#[test]
fn the_same_is_caught_whichever_runs_first() {
    let mut machine = Machine::default();
    let (a, b) = (machine.stream(Kind::NonBlocking), machine.stream(Kind::NonBlocking));
    machine.write(a, "writer");
    machine.read(b, "reader");
    machine.synchronize_stream(b);
    assert_eq!(machine.conflicts(), ["reader / writer"]);
}

#[test]
fn a_writer_over_unordered_readers_or_writers_is_caught() {
    let mut machine = Machine::default();
    let (a, b, c) =
        (machine.stream(Kind::NonBlocking), machine.stream(Kind::NonBlocking), machine.stream(Kind::NonBlocking));
    machine.read(a, "first reader");
    machine.read(b, "second reader");
    machine.wait(c, a);
    machine.write(c, "writer");
    assert_eq!(machine.conflicts(), ["second reader / writer"]);

    let mut machine = Machine::default();
    let (a, b) = (machine.stream(Kind::NonBlocking), machine.stream(Kind::NonBlocking));
    machine.write(a, "one");
    machine.write(b, "other");
    assert_eq!(machine.conflicts(), ["one / other"]);
}

#[test]
fn readers_need_no_order_among_them() {
    let mut machine = Machine::default();
    let (a, b) = (machine.stream(Kind::NonBlocking), machine.stream(Kind::NonBlocking));
    machine.read(a, "one");
    machine.read(b, "other");
    assert!(machine.conflicts().is_empty());
}

#[test]
fn disjoint_halves_of_one_allocation_need_no_order() {
    let mut machine = Machine::default();
    let (a, b) = (machine.stream(Kind::NonBlocking), machine.stream(Kind::NonBlocking));
    machine.job(a, Job { name: "low", range: 0..32, access: Access::Write });
    machine.job(b, Job { name: "high", range: 32..64, access: Access::Write });
    assert!(machine.conflicts().is_empty());
}

#[test]
fn an_event_orders_and_so_do_chains_of_events() {
    let mut machine = Machine::default();
    let streams: Vec<_> = (0..4).map(|_| machine.stream(Kind::NonBlocking)).collect();
    machine.write(streams[0], "first");
    for pair in streams.windows(2) {
        machine.wait(pair[1], pair[0]);
    }
    machine.write(streams[3], "last");
    assert!(machine.conflicts().is_empty(), "order passes through streams without work of their own");
}

#[test]
fn an_event_recorded_too_early_is_caught() {
    let mut machine = Machine::default();
    let (a, b) = (machine.stream(Kind::NonBlocking), machine.stream(Kind::NonBlocking));
    machine.wait(b, a);
    machine.write(a, "writer");
    machine.read(b, "reader");
    assert_eq!(machine.conflicts(), ["writer / reader"]);
}

#[test]
fn waiting_for_the_wrong_stream_is_caught() {
    let mut machine = Machine::default();
    let (a, b, c) =
        (machine.stream(Kind::NonBlocking), machine.stream(Kind::NonBlocking), machine.stream(Kind::NonBlocking));
    machine.write(a, "writer");
    machine.wait(c, b);
    machine.read(c, "reader");
    assert_eq!(machine.conflicts(), ["writer / reader"]);
}

#[test]
fn a_host_that_waits_orders_what_it_queues_afterwards() {
    let mut machine = Machine::default();
    let (a, b) = (machine.stream(Kind::NonBlocking), machine.stream(Kind::NonBlocking));
    machine.write(a, "writer");
    machine.synchronize_stream(a);
    machine.read(b, "reader");
    assert!(machine.conflicts().is_empty());
}

#[test]
fn work_queued_before_the_host_waited_is_not_ordered_by_it() {
    let mut machine = Machine::default();
    let (a, b) = (machine.stream(Kind::NonBlocking), machine.stream(Kind::NonBlocking));
    machine.write(a, "writer");
    machine.read(b, "reader");
    machine.synchronize_stream(a);
    assert_eq!(machine.conflicts(), ["writer / reader"]);
}

#[test]
fn the_legacy_default_stream_orders_blocking_streams_both_ways() {
    let mut machine = Machine::default();
    let (legacy, a, b) = (machine.stream(Kind::Legacy), machine.stream(Kind::Blocking), machine.stream(Kind::Blocking));
    machine.write(a, "before");
    machine.write(legacy, "default");
    machine.write(b, "after");
    machine.synchronize_stream(b);
    assert_eq!(machine.ran, ["before", "default", "after"]);
    assert!(machine.conflicts().is_empty());
}

#[test]
fn the_legacy_default_stream_does_not_order_non_blocking_streams() {
    let mut machine = Machine::default();
    let (a, legacy) = (machine.stream(Kind::NonBlocking), machine.stream(Kind::Legacy));
    machine.write(a, "writer");
    machine.read(legacy, "reader");
    assert_eq!(machine.conflicts(), ["writer / reader"]);

    let mut machine = Machine::default();
    let (legacy, a) = (machine.stream(Kind::Legacy), machine.stream(Kind::NonBlocking));
    machine.write(legacy, "writer");
    machine.read(a, "reader");
    assert_eq!(machine.conflicts(), ["writer / reader"]);
}

#[test]
fn the_legacy_default_stream_of_another_context_orders_nothing() {
    let mut machine = Machine::default();
    let a = machine.stream(Kind::Blocking);
    let other = machine.schedule.open(1, Kind::Legacy);
    machine.write(a, "writer");
    machine.read(other, "reader");
    let goal = machine.schedule.group(1);
    machine.synchronize(goal);
    assert_eq!(machine.conflicts(), ["reader / writer"]);
}

#[test]
fn blocking_streams_need_an_order_among_themselves() {
    let mut machine = Machine::default();
    let (a, b) = (machine.stream(Kind::Blocking), machine.stream(Kind::Blocking));
    machine.write(a, "writer");
    machine.read(b, "reader");
    assert_eq!(machine.conflicts(), ["writer / reader"]);
}

#[test]
fn a_later_access_does_not_hide_an_earlier_one() {
    // The second write is ordered after the first, and covers half of it; the reader is ordered after the second only
    // in words: it reads the half that the first alone wrote.
    let mut machine = Machine::default();
    let (a, b, c) =
        (machine.stream(Kind::NonBlocking), machine.stream(Kind::NonBlocking), machine.stream(Kind::NonBlocking));
    machine.job(a, Job { name: "all", range: 0..64, access: Access::Write });
    machine.wait(b, a);
    machine.job(b, Job { name: "half", range: 0..32, access: Access::Write });
    machine.job(c, Job { name: "reader", range: 32..64, access: Access::Read });
    assert_eq!(machine.conflicts(), ["all / reader"]);

    // A read does not stand in for the write before it.
    let mut machine = Machine::default();
    let (a, b) = (machine.stream(Kind::NonBlocking), machine.stream(Kind::NonBlocking));
    machine.write(a, "writer");
    machine.read(a, "own reader");
    machine.read(b, "reader");
    assert_eq!(machine.conflicts(), ["writer / reader"]);
}

#[test]
fn a_closed_stream_still_runs_and_is_then_forgotten() {
    let mut machine = Machine::default();
    let (a, b) = (machine.stream(Kind::NonBlocking), machine.stream(Kind::NonBlocking));
    machine.write(a, "writer");
    let event = machine.schedule.stamp(a);
    machine.schedule.close(a);
    machine.synchronize(event.clone());
    assert_eq!(machine.ran, ["writer"]);
    assert!(machine.schedule.done(&event), "an event of a stream that is gone has happened");
    machine.read(b, "reader");
    assert!(machine.conflicts().is_empty());
}

#[test]
fn a_long_chain_of_streams_behind_work_that_runs_is_walked_once() {
    let mut machine = Machine::default();
    let streams: Vec<_> = (0..64).map(|_| machine.stream(Kind::NonBlocking)).collect();
    machine.write(streams[0], "first");
    for pair in streams.windows(2) {
        machine.wait(pair[1], pair[0]);
        machine.write(pair[1], "next");
    }
    let goal = machine.schedule.group(0);
    let Next::Run(running) = machine.schedule.next(&goal) else { panic!("nothing waits for a thread yet") };
    // Each stream waits for all before it: walked from every end, this would be 2^63 steps.
    assert!(matches!(machine.schedule.next(&goal), Next::Busy));
    machine.schedule.finish(running.stream, running.epoch);
    assert!(machine.conflicts().is_empty());
}
