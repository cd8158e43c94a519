//! Barriers, fences, mbarrier objects.

use crate::harness::Program;

/// A hundred and twenty-eight threads hand each other values through shared memory; only the barrier keeps it right.
fn exchange(barrier: &str) {
    let body = format!(
        ".shared .b32 word[128]; mov.u32 %r3, word; mad.lo.u32 %r4, %r1, 4, %r3; mul.lo.u32 %r5, %r1, 7;\n\
         st.shared.u32 [%r4], %r5;\n{barrier}\n\
         xor.b32 %r6, %r1, 127; mad.lo.u32 %r7, %r6, 4, %r3; ld.shared.u32 %r8, [%r7];\n\
         mad.wide.u32 %rd2, %r1, 4, %rd1; st.global.u32 [%rd2], %r8;"
    );
    let found = Program { body: &body, block: 128, ..Program::default() }.words(&[0; 128]);
    assert_eq!(found, (0..128).map(|t| (t ^ 127) * 7).collect::<Vec<_>>(), "{barrier}");
}

#[test]
fn block_barriers_order_shared_memory() {
    for name in ["bar", "bar.cta", "barrier", "barrier.cta"] {
        let aligned = if name.starts_with("barrier") { &["", ".aligned"][..] } else { &[""] };
        for aligned in aligned {
            exchange(&format!("{name}.sync{aligned} 0;"));
            exchange(&format!("{name}.sync{aligned} 3, 128;"));
            exchange(&format!("mov.u32 %r9, 5; mov.u32 %r10, 128; {name}.sync{aligned} %r9, %r10;"));
            for (red, out) in [("popc.u32", "%r11"), ("and.pred", "%p5"), ("or.pred", "%p5")] {
                let predicate = "setp.lt.u32 %p4, %r1, 100;";
                exchange(&format!("{predicate} {name}.red.{}{aligned}.{} {out}, 0, %p4;", split(red).0, split(red).1));
                exchange(&format!(
                    "{predicate} {name}.red.{}{aligned}.{} {out}, 2, 128, !%p4;",
                    split(red).0,
                    split(red).1
                ));
            }
        }
    }
}

fn split(red: &str) -> (&str, &str) {
    red.split_once('.').unwrap()
}

#[test]
fn barrier_reductions_combine_all_threads() {
    let body = "setp.lt.u32 %p1, %r1, 100; bar.red.popc.u32 %r3, 0, %p1; bar.red.and.pred %p2, 0, %p1;\n\
         bar.red.or.pred %p3, 0, %p1; bar.red.popc.u32 %r4, 0, !%p1; setp.lt.u32 %p4, %r1, 4096;\n\
         bar.red.and.pred %p5, 0, %p4; bar.red.or.pred %p6, 0, !%p4;\n\
         selp.u32 %r5, 1, 0, %p2; selp.u32 %r6, 2, 0, %p3; selp.u32 %r7, 4, 0, %p5; selp.u32 %r8, 8, 0, %p6;\n\
         add.u32 %r5, %r5, %r6; add.u32 %r5, %r5, %r7; add.u32 %r5, %r5, %r8;\n\
         mad.wide.u32 %rd2, %r1, 12, %rd1; st.global.u32 [%rd2], %r3; st.global.u32 [%rd2+4], %r4; st.global.u32 [%rd2+8], %r5;";
    let found = Program { body, block: 128, ..Program::default() }.words(&[0; 384]);
    assert!(found.chunks(3).all(|row| row == [100, 28, 6]), "{found:?}");
}

/// Half of the block arrives and goes on, the other half waits for it.
#[test]
fn arrivals_release_those_who_wait() {
    for (arrive, sync) in [
        ("bar.arrive 1, 128;", "bar.sync 1, 128;"),
        ("bar.cta.arrive 1, 128;", "bar.cta.sync 1, 128;"),
        ("barrier.arrive 1, 128;", "barrier.sync 1, 128;"),
        ("barrier.arrive.aligned 1, 128;", "barrier.sync.aligned 1, 128;"),
        ("barrier.cta.arrive 1, 128;", "barrier.cta.sync 1, 128;"),
        ("barrier.cta.arrive.aligned 1, 128;", "barrier.cta.sync.aligned 1, 128;"),
    ] {
        let body = format!(
            ".shared .b32 word[64]; mov.u32 %r3, word; and.b32 %r4, %r1, 63; mad.lo.u32 %r4, %r4, 4, %r3;\n\
             setp.ge.u32 %p1, %r1, 64; @%p1 bra CONSUME;\n\
             st.shared.u32 [%r4], %r1; {arrive} ret;\n\
             CONSUME: {sync} ld.shared.u32 %r5, [%r4]; mad.wide.u32 %rd2, %r1, 4, %rd1; st.global.u32 [%rd2], %r5;"
        );
        let found = Program { body: &body, block: 128, ..Program::default() }.words(&[9; 128]);
        assert_eq!(found[64..], (0..64).collect::<Vec<_>>(), "{arrive}");
    }
}

#[test]
fn warp_barriers_order_shared_memory() {
    let body = ".shared .b32 word[32]; mov.u32 %r3, word; mad.lo.u32 %r4, %r1, 4, %r3; st.shared.u32 [%r4], %r1;\n\
         bar.warp.sync 0xffffffff; xor.b32 %r6, %r1, 1; mad.lo.u32 %r7, %r6, 4, %r3; ld.shared.u32 %r8, [%r7];\n\
         mad.wide.u32 %rd2, %r1, 4, %rd1; st.global.u32 [%rd2], %r8;";
    let found = Program { body, ..Program::default() }.words(&[0; 32]);
    assert_eq!(found, (0..32).map(|t| t ^ 1).collect::<Vec<_>>());
}

/// A value, a fence, a flag: whoever sees the flag sees the value, in another block too.
#[test]
fn fences_publish() {
    for fence in [
        "membar.cta",
        "membar.gl",
        "membar.sys",
        "fence.sc.cta",
        "fence.sc.gpu",
        "fence.sc.sys",
        "fence.acq_rel.cta",
        "fence.acq_rel.gpu",
        "fence.acq_rel.sys",
        "fence.cta",
        "fence.gpu",
        "fence.sys",
        "fence.proxy.alias",
    ] {
        let grid = if fence.ends_with("cta") || fence.ends_with("alias") { 1 } else { 2 };
        let other = if grid == 1 { "setp.lt.u32 %p1, %r1, 32;" } else { "setp.eq.u32 %p1, %r2, 0;" };
        let body = format!(
            "setp.eq.u32 %p2, %r1, 0; setp.eq.u32 %p3, %r1, 32; {other}\n@%p1 bra WRITE;\n\
             SPIN: ld.relaxed.gpu.global.b32 %r3, [%rd1]; setp.eq.u32 %p4, %r3, 0; @%p4 bra SPIN;\n\
             {fence}; ld.global.u32 %r4, [%rd1+4]; mad.wide.u32 %rd2, %r1, 4, %rd1; st.global.u32 [%rd2+8], %r4; ret;\n\
             WRITE: @!%p2 ret; st.global.u32 [%rd1+4], 77; {fence}; st.relaxed.gpu.global.b32 [%rd1], 1;"
        );
        let program = Program { body: &body, block: 64, grid, ..Program::default() };
        let found = program.words(&[0; 66]);
        assert!(found[34..66].iter().all(|v| *v == 77), "{fence}: {found:?}");
    }
}

/// An mbarrier's phase ends when its count of arrivals is met; waiting is by token or by parity.
#[test]
fn mbarriers_count_arrivals() {
    for space in ["", ".shared", ".shared::cta"] {
        let address = if space.is_empty() { "cvta.shared.u64 %rd3, object;" } else { "mov.u64 %rd3, object;" };
        let run = |arrive: &str, wait: &str, count: u32| {
            let body = format!(
                ".shared .align 8 .b64 object; .shared .b32 word[64]; {address} mov.u32 %r3, word; mad.lo.u32 %r4, %r1, 4, %r3;\n\
                 setp.ne.u32 %p1, %r1, 0; @%p1 bra READY; mbarrier.init{space}.b64 [%rd3], {count};\n\
                 READY: bar.sync 0; st.shared.u32 [%r4], %r1; mov.u32 %r9, 1;\n{arrive}\n\
                 SPIN: {wait} @!%p2 bra SPIN;\n\
                 xor.b32 %r5, %r1, 63; mad.lo.u32 %r5, %r5, 4, %r3; ld.shared.u32 %r6, [%r5];\n\
                 mad.wide.u32 %rd2, %r1, 4, %rd1; st.global.u32 [%rd2], %r6; bar.sync 0;\n\
                 @%p1 ret; mbarrier.inval{space}.b64 [%rd3];"
            );
            let found = Program { body: &body, block: 64, ..Program::default() }.words(&[0; 64]);
            assert_eq!(found, (0..64).map(|t| t ^ 63).collect::<Vec<_>>(), "{arrive}");
        };
        let token = format!("mbarrier.test_wait{space}.b64 %p2, [%rd3], %rd4;");
        let parity = format!("mbarrier.test_wait.parity{space}.b64 %p2, [%rd3], 0;");
        run(&format!("mbarrier.arrive{space}.b64 %rd4, [%rd3];"), &token, 64);
        run(&format!("mbarrier.arrive{space}.b64 _, [%rd3];"), &parity, 64);
        run(&format!("mbarrier.arrive_drop{space}.b64 %rd4, [%rd3];"), &token, 64);
        // A second arrival of every thread by one instruction that does not complete the phase.
        let two =
            format!("mbarrier.arrive.noComplete{space}.b64 %rd5, [%rd3], 1; mbarrier.arrive{space}.b64 %rd4, [%rd3];");
        run(&two, &token, 128);
        let drop = format!(
            "mbarrier.arrive_drop.noComplete{space}.b64 %rd5, [%rd3], 1; mbarrier.arrive{space}.b64 %rd4, [%rd3];"
        );
        run(&drop, &token, 128);
    }
    let body = ".shared .align 8 .b64 object; mov.u64 %rd3, object; mbarrier.init.shared.b64 [%rd3], 5;\n\
         mbarrier.arrive.shared.b64 %rd4, [%rd3]; mbarrier.pending_count.b64 %r3, %rd4;\n\
         mbarrier.arrive.noComplete.shared.b64 %rd4, [%rd3], 2; mbarrier.pending_count.b64 %r4, %rd4;\n\
         st.global.u32 [%rd1], %r3; st.global.u32 [%rd1+4], %r4;";
    // The token is the state before the arrival.
    assert_eq!(Program { body, block: 1, ..Program::default() }.words(&[0; 2]), [5, 4]);
}

/// Copies arrive at an mbarrier when they are done.
#[test]
fn copies_arrive_at_mbarriers() {
    for (space, noinc, count) in [
        ("", "", 32),
        (".shared", "", 32),
        (".shared::cta", ".noinc", 64),
        ("", ".noinc", 64),
        (".shared", ".noinc", 64),
        (".shared::cta", "", 32),
    ] {
        let address = if space.is_empty() { "cvta.shared.u64 %rd3, object;" } else { "mov.u64 %rd3, object;" };
        let body = format!(
            ".shared .align 8 .b64 object; .shared .align 4 .b32 word[32]; {address} mov.u32 %r3, word;\n\
             mad.lo.u32 %r4, %r1, 4, %r3; setp.ne.u32 %p1, %r1, 0; @%p1 bra READY;\n\
             mbarrier.init.shared.b64 [object], {count}; READY: bar.sync 0; mad.wide.u32 %rd2, %r1, 4, %rd1;\n\
             cp.async.ca.shared.global [%r4], [%rd2], 4; cp.async.mbarrier.arrive{noinc}{space}.b64 [%rd3];\n\
             mbarrier.arrive.shared.b64 %rd4, [object];\n\
             SPIN: mbarrier.test_wait.shared.b64 %p2, [object], %rd4; @!%p2 bra SPIN;\n\
             xor.b32 %r5, %r1, 31; mad.lo.u32 %r5, %r5, 4, %r3; ld.shared.u32 %r6, [%r5]; bar.sync 0; st.global.u32 [%rd2], %r6;"
        );
        let input: Vec<u32> = (100..132).collect();
        let found = Program { body: &body, ..Program::default() }.words(&input);
        assert_eq!(found, (0..32).map(|t| 100 + (t ^ 31)).collect::<Vec<_>>(), "{noinc}{space}");
    }
}

pub fn all() {
    block_barriers_order_shared_memory();
    barrier_reductions_combine_all_threads();
    arrivals_release_those_who_wait();
    warp_barriers_order_shared_memory();
    fences_publish();
    mbarriers_count_arrivals();
    copies_arrive_at_mbarriers();
}
