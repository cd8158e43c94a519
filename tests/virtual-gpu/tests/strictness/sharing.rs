//! Shared memory: races between barriers, and asynchronous copies used before they were waited for.

use virtual_gpu::fault::Kind;

use crate::{HERE, allowed, caught, caught_in};

const SHARED: &str = ".shared .align 16 .b8 s[512];";
/// Thread 0 alone.
const FIRST: &str = "setp.eq.u32 %p5, %r1, 0;";
/// All of shared memory written, and barriers: two, so that it is the first warp that goes on first.
const FILLED: &str = "shl.b32 %r9, %r1, 3; mov.u64 %rd9, 0; st.shared.u64 [%r9], %rd9; bar.sync 0; bar.sync 0;";

/// Thread 0 does one thing, then [`crate::THREAD`], of another warp, another: a race.
#[track_caller]
fn race(first: &str, second: &str) {
    let fault = caught(Kind::SharedRace, SHARED, &format!("{FIRST} {FILLED}\n@%p5 {first}\n@%p1 {second} {HERE}"));
    assert!(fault.what.contains("thread 0") || fault.what.contains("warp 0"), "{fault}");
    // With a barrier between they do not race, nor if one thread does both.
    allowed(SHARED, &format!("{FIRST} {FILLED}\n@%p5 {first}\nbar.sync 0;\n@%p1 {second}"));
    allowed(SHARED, &format!("{FIRST} {FILLED}\n@%p1 {first}\n@%p1 {second}"));
}

#[test]
fn between_warps() {
    let (load, store) = ("ld.shared.u32 %r3, [s];", "st.shared.u32 [s], %r1;");
    let (atomic, reduction) = ("atom.shared.add.u32 %r4, [s], 1;", "red.shared.max.u32 [s], 1;");
    for (first, second) in [
        (store, load),
        (load, store),
        (store, store),
        (store, atomic),
        (atomic, store),
        (load, atomic),
        (atomic, load),
        (reduction, load),
        (store, reduction),
        ("ld.volatile.shared.u32 %r3, [s];", store),
        (store, "ld.volatile.shared.u32 %r3, [s];"),
        ("st.volatile.shared.u32 [s], %r1;", load),
        // Some bytes in common are enough.
        ("st.shared.u8 [s+1], %r1;", load),
        ("st.shared.u32 [s+12], %r1;", "ld.shared.v4.u32 {%r3, %r4, %r5, %r6}, [s];"),
        ("ld.shared.v2.u64 {%rd2, %rd3}, [s];", "st.shared.u16 [s+14], 0;"),
    ] {
        race(first, second);
    }
    // What is read, or updated atomically, by all does not race; neither do neighbours.
    for (first, second) in [(load, load), (atomic, atomic), (atomic, reduction), (store, "ld.shared.u32 %r3, [s+4];")] {
        allowed(SHARED, &format!("{FIRST} {FILLED}\n@%p5 {first}\n@%p1 {second}"));
    }
    allowed(SHARED, &format!("{FIRST} {FILLED}\n@%p5 st.shared.u8 [s+1], %r1;\n@%p1 ld.shared.u8 %r3, [s+2];"));
    // By way of generic addresses.
    let generic = "cvta.shared.u64 %rd2, 0;";
    caught(
        Kind::SharedRace,
        SHARED,
        &format!("{FIRST} {FILLED} {generic}\n@%p5 st.u32 [%rd2], %r1;\n@%p1 ld.u32 %r3, [%rd2]; {HERE}"),
    );
}

#[test]
fn within_a_warp_there_is_no_order_either() {
    let neighbour = "setp.eq.u32 %p5, %r1, 36;";
    let body = |barrier: &str| {
        format!("{neighbour} {FILLED}\n@%p5 st.shared.u32 [s], %r1;\n{barrier}\n@%p1 ld.shared.u32 %r3, [s]; {HERE}")
    };
    caught(Kind::SharedRace, SHARED, &body(""));
    caught(Kind::SharedRace, SHARED, &body("setp.ge.u32 %p6, %r1, 38; @%p6 bar.warp.sync 0xffffffc0;"));
    allowed(SHARED, &body("bar.warp.sync 0xffffffff;"));
    allowed(SHARED, &body("or.pred %p6, %p1, %p5; @%p6 bar.warp.sync 0x30;"));
    // Two lanes, one address, one instruction.
    caught(
        Kind::SharedRace,
        SHARED,
        &format!("{neighbour} {FILLED} or.pred %p6, %p1, %p5;\n@%p6 st.shared.u32 [s], %r1; {HERE}"),
    );
}

#[test]
fn a_barrier_of_other_threads_orders_nothing() {
    // The second warp waits for itself alone.
    let body = format!(
        "{FIRST} {FILLED}\n@%p5 st.shared.u32 [s], %r1;\nsetp.lt.u32 %p6, %r1, 32; @%p6 bra L;\nbarrier.sync 1, 32;\n\
         L: @%p1 ld.shared.u32 %r3, [s]; {HERE}"
    );
    caught(Kind::SharedRace, SHARED, &body);
    // A warp that only arrives has not seen what the others did.
    let body = format!(
        "{FILLED} setp.lt.u32 %p6, %r1, 32; @%p6 bra L;\nbarrier.arrive 1, 64; @%p1 ld.shared.u32 %r3, [s]; bra E; {HERE}\n\
         L: setp.eq.u32 %p5, %r1, 0; @%p5 st.shared.u32 [s], %r1; barrier.sync 1, 64;\nE:"
    );
    caught(Kind::SharedRace, SHARED, &body);
}

#[test]
fn a_shuffle_is_no_barrier() {
    let body = format!(
        "setp.eq.u32 %p5, %r1, 36; {FILLED}\n@%p5 st.shared.u32 [s], %r1; shfl.sync.bfly.b32 %r3, %r1, 1, 31, 0xffffffff;\n\
         @%p1 ld.shared.u32 %r3, [s]; {HERE}"
    );
    caught(Kind::SharedRace, SHARED, &body);
}

#[test]
fn matrices_are_read_like_all_else() {
    let body = format!(
        "{FIRST} {FILLED} and.b32 %r4, %r1, 7; shl.b32 %r4, %r4, 4; setp.ge.u32 %p6, %r1, 32;\n\
         @%p5 st.shared.u32 [s+84], %r1;\n@%p6 ldmatrix.sync.aligned.m8n8.x1.shared.b16 {{%r5}}, [%r4]; {HERE}"
    );
    // Row 5, and with it what thread 37 gives the address of.
    caught(Kind::SharedRace, SHARED, &body);
}

/// Copies 16 bytes to the start of shared memory.
const COPY: &str = "@%p1 cp.async.cg.shared.global [s], [%rd1], 16;";

#[test]
fn copies_used_before_their_wait() {
    for use_ in [
        "ld.shared.u32 %r3, [s+12];",
        "st.shared.u8 [s+3], %r1;",
        "atom.shared.add.u32 %r3, [s], 1;",
        "cp.async.ca.shared.global [s+4], [%rd1], 4;",
    ] {
        for before in
            ["", "cp.async.commit_group;", "cp.async.commit_group; cp.async.wait_group 1;", "cp.async.wait_group 0;"]
        {
            caught(Kind::AsyncCopyPending, SHARED, &format!("{FILLED} {COPY} {before}\n@%p1 {use_} {HERE}"));
        }
        for before in ["cp.async.commit_group; cp.async.wait_group 0;", "cp.async.wait_all;"] {
            allowed(SHARED, &format!("{FILLED} {COPY} {before}\n@%p1 {use_} cp.async.wait_all;"));
        }
    }
    // Other threads too, whatever barrier they pass: the copying thread has not waited.
    let body =
        format!("{FIRST} {FILLED} {COPY} cp.async.commit_group; bar.sync 0;\n@%p5 ld.shared.u32 %r3, [s]; {HERE}");
    caught_in(0, Kind::AsyncCopyPending, SHARED, &body);
    // Not even by leaving.
    let body = format!(
        "setp.eq.u32 %p5, %r1, 0; {FILLED} {COPY} cp.async.commit_group; @%p1 exit;\nbar.sync 0;\n@%p5 ld.shared.u32 %r3, [s]; {HERE}"
    );
    caught_in(0, Kind::AsyncCopyPending, SHARED, &body);
    // A matrix whose sixth row is on its way.
    let body = format!(
        "{FILLED} and.b32 %r4, %r1, 7; shl.b32 %r4, %r4, 4; @%p1 cp.async.cg.shared.global [s+80], [%rd1], 16; cp.async.commit_group;\n\
         setp.ge.u32 %p6, %r1, 32;\n@%p6 ldmatrix.sync.aligned.m8n8.x1.shared.b16 {{%r5}}, [%r4]; {HERE}"
    );
    caught(Kind::AsyncCopyPending, SHARED, &body);
}

#[test]
fn copies_are_the_copying_threads_until_a_barrier() {
    let wait = "cp.async.commit_group; cp.async.wait_group 0;";
    let neighbour = "setp.eq.u32 %p5, %r1, 38;";
    let body = format!("{neighbour} {FILLED} {COPY} {wait}\n@%p5 ld.shared.u32 %r3, [s]; {HERE}");
    caught_in(38, Kind::SharedRace, SHARED, &body);
    allowed(SHARED, &format!("{neighbour} {FILLED} {COPY} {wait} bar.sync 0;\n@%p5 ld.shared.u32 %r3, [s];"));
    // Into what another thread may still be reading.
    let body = format!("{FIRST} {FILLED} @%p5 ld.shared.u32 %r3, [s];\n{COPY} {HERE}");
    caught(Kind::SharedRace, SHARED, &body);
}
