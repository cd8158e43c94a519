//! Barriers that not all reach, and warp operations whose lanes are not all there.

use virtual_gpu::fault::Kind;

use crate::{HERE, allowed, caught, caught_in};

#[test]
fn barriers_under_a_divergent_branch() {
    for barrier in ["bar.sync 0;", "bar.red.popc.u32 %r3, 0, %p1;", "bar.arrive 0, 64;"] {
        caught(Kind::DivergentBarrier, "", &format!("@%p2 {barrier} {HERE}"));
    }
    // Half a warp is at the barrier, the other half does other work, and leaves.
    let body = format!(
        "setp.ge.u32 %p4, %r1, 40; @%p4 bra L;\nbar.sync 0; {HERE}\nL: mov.u32 %r3, 1; st.global.u32 [%rd1], %r3;"
    );
    caught_in(32, Kind::DivergentBarrier, "", &body);
    // Two barriers for the two sides of a branch within a warp.
    let body = format!("setp.ge.u32 %p4, %r1, 40; @%p4 bra L; bar.sync 1; bra E; {HERE}\nL: bar.sync 2;\nE:");
    crate::caught_in(32, Kind::DivergentBarrier, "", &body);
    // Each warp waits at another barrier of the whole block.
    let body = format!("setp.ge.u32 %p4, %r1, 32; @%p4 bra L;\nbar.sync 1; bra E; {HERE}\nL: bar.sync 2;\nE:");
    caught_in(0, Kind::DivergentBarrier, "", &body);
    // One barrier with two thread counts.
    let body = format!("setp.ge.u32 %p4, %r1, 32; @%p4 bra L;\nbar.sync 1, 64; bra E;\nL:\nbar.sync 1, 32; {HERE}\nE:");
    caught_in(32, Kind::DivergentBarrier, "", &body);
    // More threads than will come.
    let body = format!("setp.ge.u32 %p4, %r1, 32; @%p4 bra E;\nbarrier.sync 1, 64; {HERE}\nE:");
    caught_in(0, Kind::DivergentBarrier, "", &body);
    // Both sides meet, and leaving before it is allowed.
    allowed("", "@%p1 bra L; mov.u32 %r3, 1; L: bar.sync 0;");
    allowed("", "@%p1 exit; bar.sync 0;");
    allowed("", "@%p2 bra L; barrier.sync 0; bra E; L: barrier.sync 0; E:");
}

/// Operations of a whole warp, with what they need.
const OPERATIONS: [&str; 15] = [
    "shfl.sync.bfly.b32 %r3, %r1, 1, 31, 0xffffffff;",
    "shfl.sync.idx.b32 %r3|%p4, %r1, 0, 31, 0xffffffff;",
    "shfl.sync.up.b32 %r3, %r1, 1, 0, 0xffffffff;",
    "shfl.sync.down.b32 %r3, %r1, 1, 31, 0xffffffff;",
    "vote.sync.all.pred %p4, %p1, 0xffffffff;",
    "vote.sync.any.pred %p4, %p1, 0xffffffff;",
    "vote.sync.uni.pred %p4, %p1, 0xffffffff;",
    "vote.sync.ballot.b32 %r3, %p1, 0xffffffff;",
    "match.any.sync.b32 %r3, %r1, 0xffffffff;",
    "match.all.sync.b64 %r3|%p4, %rd1, 0xffffffff;",
    "redux.sync.add.s32 %r3, %r1, 0xffffffff;",
    "redux.sync.xor.b32 %r3, %r1, 0xffffffff;",
    "bar.warp.sync 0xffffffff;",
    "activemask.b32 %r3; bar.warp.sync 0xffffffff;",
    "bar.warp.sync -1;",
];

/// Operations that are for all 32 lanes by definition.
const ALIGNED: [&str; 6] = [
    "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%f1, %f2, %f3, %f4}, {%r0, %r0}, {%r0}, {%f0, %f0, %f0, %f0};",
    "mma.sp.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%f1, %f2, %f3, %f4}, {%r0, %r0}, {%r0, %r0}, {%f0, %f0, %f0, %f0}, %r8, 0x0;",
    "ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r3}, [%r0];",
    "movmatrix.sync.aligned.m8n8.trans.b16 %r3, %r1;",
    "wmma.load.a.sync.aligned.row.m16n16k16.global.s8 {%r3, %r4}, [%rd1], 16;",
    "wmma.store.d.sync.aligned.row.m16n16k16.global.s32 [%rd1], {%r0, %r0, %r0, %r0, %r0, %r0, %r0, %r0}, 16;",
];
const SETUP: &str = "mov.f32 %f0, 0f00000000; mov.u32 %r8, 0x44444444; setp.lt.u32 %p6, %r1, 4; shl.b32 %r9, %r1, 2; st.shared.u32 [%r9], %r0; bar.sync 0;";
const SHARED: &str = ".shared .align 16 .b8 s[256];";

#[test]
fn lanes_that_skip_an_operation_of_their_warp() {
    for operation in OPERATIONS.iter().chain(&ALIGNED) {
        // The lane goes round it, to a barrier that waits for all.
        let body = format!("{SETUP} @%p1 bra L;\n{operation} {HERE}\nL: bar.sync 0;");
        let fault = caught_in(32, Kind::MissingLanes, SHARED, &body);
        assert!(fault.what.contains("0xffffffdf"), "who is there: {fault}");
        // A guard does the same.
        if !operation.contains("activemask") {
            caught_in(32, Kind::MissingLanes, SHARED, &format!("{SETUP}\n@%p2 {operation} {HERE}\nbar.sync 0;"));
        }
        allowed(SHARED, &format!("{SETUP} @%p1 bra L; mov.u32 %r10, 1; L: {operation}"));
    }
}

#[test]
fn lanes_that_have_left() {
    // Matrix operations need them; of a shuffle, those that are read.
    for operation in ALIGNED {
        caught_in(32, Kind::MissingLanes, SHARED, &format!("{SETUP} @%p1 exit;\n{operation} {HERE}"));
    }
    caught_in(
        36,
        Kind::MissingLanes,
        "",
        &format!("@%p1 exit;\nshfl.sync.bfly.b32 %r3, %r1, 1, 31, 0xffffffff; {HERE}"),
    );
    caught_in(
        36,
        Kind::MissingLanes,
        "",
        &format!("@%p1 exit;\nshfl.sync.down.b32 %r3, %r1, 1, 31, 0xffffffff; {HERE}"),
    );
    caught_in(
        32,
        Kind::MissingLanes,
        "",
        &format!("@%p1 exit;\nshfl.sync.idx.b32 %r3, %r1, 5, 31, 0xffffffff; {HERE}"),
    );
    allowed("", "@%p1 exit; shfl.sync.idx.b32 %r3, %r1, 4, 31, 0xffffffff; vote.sync.any.pred %p4, %p1, 0xffffffff;");
}

#[test]
fn masks_that_are_wrong() {
    for operation in [
        "shfl.sync.bfly.b32 %r3, %r1, 1, 31, 0xffffffdf;",
        "vote.sync.ballot.b32 %r3, %p1, 0xffffffdf;",
        "match.any.sync.b32 %r3, %r1, 0xffffffdf;",
        "redux.sync.min.u32 %r3, %r1, 0xffffffdf;",
        "bar.warp.sync 0xffffffdf;",
    ] {
        let warp = "setp.lt.u32 %p4, %r1, 32; @%p4 exit;";
        caught(Kind::MissingLanes, "", &format!("{warp}\n{operation} {HERE}"));
    }
    // The lanes do not agree who takes part.
    let body =
        format!("selp.b32 %r4, 0xfffffff0, 0xffffffff, %p1;\nredux.sync.add.u32 %r3, %r1, %r4; {HERE}\nbar.sync 0;");
    caught_in(32, Kind::MissingLanes, "", &body);
    // A shuffle that reads beyond its mask.
    let body = format!(
        "setp.lt.u32 %p4, %r1, 36; @%p4 bra L; shfl.sync.down.b32 %r3, %r1, 1, 31, 0xfffffff0; bra L; L: @%p2 bra E; mov.u32 %r4, 0x20;\nshfl.sync.idx.b32 %r3, %r1, 4, 31, %r4; {HERE}\nE:"
    );
    caught(Kind::MissingLanes, "", &body);
}
