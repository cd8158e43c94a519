//! The scheduler, the waiting and the rules, on small kernels.

use std::sync::Arc;

use super::{Launch, LoadedModule, Outcome, launch};
use crate::device::Description;
use crate::fault::{Fault, Kind};
use crate::memory::{Access, GlobalMemory};

/// Runs a kernel body over one buffer of 64-bit pointer `%rd1`, with `%r1` the thread's index in x and `%r2` the block's.
struct Run {
    memory: GlobalMemory,
    buffer: u64,
    words: usize,
}

impl Run {
    fn new(init: &[u32]) -> Run {
        let memory = GlobalMemory::new(1 << 30);
        let buffer = memory.alloc(init.len() as u64 * 4).unwrap();
        let bytes: Vec<u8> = init.iter().flat_map(|v| v.to_le_bytes()).collect();
        memory.write(buffer, &bytes).unwrap();
        Run { memory, buffer, words: init.len() }
    }

    fn go(&self, grid: u32, block: u32, globals: &str, body: &str) -> Result<Outcome, Fault> {
        let ptx = format!(
            ".version 8.2\n.target sm_80\n.address_size 64\n{globals}\n\
             .visible .entry k(.param .u64 p)\n{{\n\
             .reg .pred %p<16>;\n.reg .b16 %h<16>;\n.reg .b32 %r<64>;\n.reg .f32 %f<32>;\n.reg .b64 %rd<32>;\n\
             ld.param.u64 %rd1, [p];\ncvta.to.global.u64 %rd1, %rd1;\n\
             mov.u32 %r1, %tid.x;\nmov.u32 %r2, %ctaid.x;\n{body}\n}}\n"
        );
        let module = crate::lower::load(&ptx).unwrap_or_else(|e| panic!("{e}"));
        let loaded = LoadedModule::load(Arc::new(module), &self.memory).unwrap();
        let function = loaded.module().function("k").unwrap();
        launch(&Launch {
            module: &loaded,
            function,
            grid: [grid, 1, 1],
            block: [block, 1, 1],
            dynamic_shared: 0,
            params: &self.buffer.to_le_bytes(),
            device: &Description::default_device(),
            memory: &self.memory,
            cooperative: false,
        })
    }

    fn words(&self) -> Vec<u32> {
        let mut bytes = vec![0; self.words * 4];
        self.memory.read(self.buffer, &mut bytes, Access::Raw).unwrap();
        bytes.chunks(4).map(|c| u32::from_le_bytes(c.try_into().unwrap())).collect()
    }
}

fn fails(block: u32, globals: &str, body: &str) -> Fault {
    Run::new(&[0; 1024]).go(1, block, globals, body).expect_err("the kernel breaks a rule")
}

/// Stores `%r10` at the thread's word.
const OUT: &str = "mul.wide.u32 %rd2, %r1, 4; add.u64 %rd2, %rd1, %rd2; st.global.u32 [%rd2], %r10;\n";

#[test]
fn lanes_that_diverge_meet_again_after_the_branch() {
    let run = Run::new(&[0; 64]);
    // Odd lanes loop as often as their index; a full-mask vote after the join counts everyone without waiting.
    let body = format!(
        "and.b32 %r3, %r1, 1; setp.eq.u32 %p1, %r3, 0; mov.u32 %r10, 0; @%p1 bra JOIN;\n\
         mov.u32 %r4, 0;\nLOOP: add.u32 %r10, %r10, 2; add.u32 %r4, %r4, 1; setp.lt.u32 %p2, %r4, %r1; @%p2 bra LOOP;\n\
         JOIN: activemask.b32 %r11; popc.b32 %r11, %r11; add.u32 %r10, %r10, %r11; {OUT} ret;"
    );
    let outcome = run.go(1, 64, "", &body).unwrap();
    let expect: Vec<u32> = (0..64).map(|t| 32 + if t % 2 == 1 { 2 * t } else { 0 }).collect();
    assert_eq!(run.words(), expect);
    assert_eq!(outcome.counters.warps, 2);
    assert!(outcome.counters.divergent_branches >= 2);
    assert_eq!(outcome.counters.global_store.sectors_per_request(), 4.0);
}

#[test]
fn a_lock_between_lanes_of_a_warp_makes_progress() {
    let run = Run::new(&[0; 2]);
    let body = "add.u64 %rd2, %rd1, 4;\n\
         SPIN: atom.global.cas.b32 %r3, [%rd1], 0, 1; setp.ne.u32 %p1, %r3, 0; @%p1 bra SPIN;\n\
         ld.volatile.global.u32 %r4, [%rd2]; add.u32 %r4, %r4, 1; st.volatile.global.u32 [%rd2], %r4;\n\
         membar.gl; atom.global.exch.b32 %r5, [%rd1], 0; ret;";
    run.go(3, 64, "", body).unwrap();
    assert_eq!(run.words(), [0, 192]);
}

#[test]
fn a_barrier_across_the_grid_makes_progress() {
    let run = Run::new(&[0; 400]);
    let body = "bar.sync 0; setp.ne.u32 %p1, %r1, 0; @%p1 bra WAIT;\n\
         membar.gl; atom.global.add.u32 %r3, [%rd1], 1;\n\
         SPIN: ld.volatile.global.u32 %r4, [%rd1]; setp.lt.u32 %p2, %r4, 300; @%p2 bra SPIN;\n\
         membar.gl;\nWAIT: bar.sync 0;\n\
         mul.wide.u32 %rd2, %r2, 4; add.u64 %rd2, %rd1, %rd2; st.global.u32 [%rd2+4], %r4; ret;";
    let body = body.replace("setp.ne.u32 %p1, %r1, 0;", "mov.u32 %r4, 300; setp.ne.u32 %p1, %r1, 0;");
    run.go(300, 64, "", &body).unwrap();
    assert_eq!(run.words()[..301], [300; 301]);
}

#[test]
fn functions_take_arguments_and_return() {
    let run = Run::new(&[0; 32]);
    let function = ".func (.param .b32 ret) triple(.param .b32 x)\n{ .reg .b32 %r<4>; .reg .pred %p; \
         ld.param.u32 %r1, [x]; and.b32 %r3, %r1, 1; setp.eq.u32 %p, %r3, 0; mul.lo.u32 %r2, %r1, 3; @%p bra E; add.u32 %r2, %r2, 100;\
         E: st.param.b32 [ret], %r2; ret; }";
    let body = format!(
        "{{ .param .b32 a; .param .b32 b; st.param.b32 [a], %r1; call (b), triple, (a); ld.param.b32 %r10, [b]; }}\n{OUT} ret;"
    );
    run.go(1, 32, function, &body).unwrap();
    let expect: Vec<u32> = (0..32).map(|t| 3 * t + if t % 2 == 1 { 100 } else { 0 }).collect();
    assert_eq!(run.words(), expect);
}

#[test]
fn recursion_without_end_is_named() {
    let f = fails(32, ".func f()\n{ call f; ret; }", "call f; ret;");
    assert_eq!(f.kind, Kind::InvalidCall);
    assert!(f.what.contains("f calls itself, 4096 calls deep: the stack is full"), "{f}");
}

#[test]
fn shared_memory_needs_barriers() {
    let shared = ".shared .align 4 .b8 s[4096];";
    let store = "mov.u32 %r3, s; shl.b32 %r4, %r1, 2; add.u32 %r3, %r3, %r4; st.shared.u32 [%r3], %r1;\n";
    let read =
        format!("xor.b32 %r4, %r4, 4; mov.u32 %r5, s; add.u32 %r5, %r5, %r4; ld.shared.u32 %r10, [%r5]; {OUT} ret;");
    let f = fails(64, shared, &format!("{store}{read}"));
    assert_eq!(f.kind, Kind::SharedRace);
    assert!(f.what.contains("written by thread"), "{f}");
    assert!(f.place.as_ref().unwrap().text.contains("ld.shared"), "{f}");
    for barrier in ["bar.sync 0;", "bar.warp.sync 0xffffffff;", "barrier.sync 1, 64;"] {
        let run = Run::new(&[0; 64]);
        run.go(1, 64, shared, &format!("{store}{barrier}\n{read}")).unwrap();
        assert_eq!(run.words()[7], 6);
    }
}

#[test]
fn each_rule_has_its_fault() {
    let shared = ".shared .align 16 .b8 s[256];";
    let cases: &[(&str, u32, &str, Kind)] = &[
        ("", 32, "ld.global.u32 %r3, [%rd1+4096]; ret;", Kind::OutOfBounds),
        ("", 32, "ld.global.u32 %r3, [%rd1+2]; ret;", Kind::Misaligned),
        ("", 32, "add.u32 %r3, %r4, 1; ret;", Kind::UninitialisedRegister),
        (shared, 32, "ld.shared.u32 %r3, [s]; ret;", Kind::UninitialisedShared),
        (shared, 32, "mov.u32 %r3, 1; st.shared.u32 [s+256], %r3; ret;", Kind::OutOfBounds),
        (shared, 32, "mov.u32 %r3, 1; st.shared.u32 [s], %r3; ret;", Kind::SharedRace),
        ("", 64, "setp.lt.u32 %p1, %r1, 40; @%p1 bar.sync 0; ret;", Kind::DivergentBarrier),
        (
            "",
            64,
            "setp.ge.u32 %p1, %r1, 40; @%p1 bra A; bar.sync 0; A: st.global.u32 [%rd1], %r1; ret;",
            Kind::DivergentBarrier,
        ),
        ("", 64, "setp.lt.u32 %p1, %r1, 16; @%p1 bra A; bar.sync 0; ret; A: bar.sync 1; ret;", Kind::DivergentBarrier),
        ("", 64, "setp.lt.u32 %p1, %r1, 32; @%p1 bra A; bar.sync 0; ret; A: bar.sync 1; ret;", Kind::DivergentBarrier),
        (
            "",
            32,
            "setp.lt.u32 %p1, %r1, 16; @%p1 bar.warp.sync 0xffffffff; bar.warp.sync 0xffff; ret;",
            Kind::MissingLanes,
        ),
        ("", 16, "shfl.sync.down.b32 %r3, %r1, 8, 31, 0xffff; ret;", Kind::MissingLanes),
        ("", 32, "vote.sync.any.pred %p2, 1, 0xfffffffe; ret;", Kind::MissingLanes),
        (shared, 1, "cp.async.ca.shared.global [s], [%rd1], 4; ld.shared.u32 %r3, [s]; ret;", Kind::AsyncCopyPending),
        ("", 32, "trap;", Kind::Trap),
        (".const .align 4 .b32 c = 5;", 1, "mov.u64 %rd3, c; mov.u32 %r3, 1; st.u32 [%rd3], %r3; ret;", Kind::ReadOnly),
    ];
    for (globals, block, body, kind) in cases {
        let f = fails(*block, globals, body);
        assert_eq!(f.kind, *kind, "{body}: {f}");
        let place = f.place.unwrap();
        assert!(place.line > 8 && !place.text.is_empty());
    }
    let memory = GlobalMemory::new(1 << 20);
    let run = Run { buffer: memory.alloc(64).unwrap(), memory, words: 16 };
    let f = run.go(1, 32, "", "ld.global.u32 %r3, [%rd1]; ret;").unwrap_err();
    assert_eq!(f.kind, Kind::UninitialisedGlobal);
    run.memory.free(run.buffer).unwrap();
    let f = run.go(1, 32, "", "ld.global.u32 %r3, [%rd1]; ret;").unwrap_err();
    assert_eq!(f.kind, Kind::UseAfterFree);
    assert_eq!(run.go(1, 2048, "", "ret;").unwrap_err().kind, Kind::TooManyResources);
    let f = run.go(1, 32, ".shared .b8 s[200000];", "mov.u32 %r3, s; ret;").unwrap_err();
    assert_eq!(f.kind, Kind::TooManyResources);
}

#[test]
fn threads_that_left_are_not_waited_for() {
    let run = Run::new(&[0; 64]);
    let body = "setp.ge.u32 %p1, %r1, 40; @%p1 bra A; bar.sync 0; mov.u32 %r10, 1;\n";
    run.go(1, 64, "", &format!("{body}{OUT}A: ret;")).unwrap();
    assert_eq!(run.words().iter().sum::<u32>(), 40);
}

#[test]
fn tiles_of_a_warp_shuffle_on_their_own() {
    let run = Run::new(&[0; 32]);
    let body = format!(
        "and.b32 %r3, %r1, 16; mov.u32 %r4, 0xffff; shl.b32 %r4, %r4, %r3; mov.u32 %r10, %r1;\n\
         shfl.sync.bfly.b32 %r5, %r10, 1, 0x101f, %r4; add.u32 %r10, %r10, %r5;\n\
         shfl.sync.bfly.b32 %r5, %r10, 2, 0x101f, %r4; add.u32 %r10, %r10, %r5;\n\
         shfl.sync.bfly.b32 %r5, %r10, 4, 0x101f, %r4; add.u32 %r10, %r10, %r5;\n\
         shfl.sync.bfly.b32 %r5, %r10, 8, 0x101f, %r4; add.u32 %r10, %r10, %r5;\n{OUT} ret;"
    );
    run.go(1, 32, "", &body).unwrap();
    let sums: Vec<u32> = (0..32).map(|t| if t < 16 { 120 } else { 376 }).collect();
    assert_eq!(run.words(), sums);
}

#[test]
fn both_sides_of_a_branch_meet_in_one_warp_operation() {
    let run = Run::new(&[0; 32]);
    let body = format!(
        "setp.lt.u32 %p1, %r1, 16; @%p1 bra A; redux.sync.add.u32 %r10, %r1, 0xffffffff; bra B;\n\
         A: redux.sync.add.u32 %r10, %r1, 0xffffffff;\nB: {OUT} ret;"
    );
    run.go(1, 32, "", &body).unwrap();
    assert_eq!(run.words(), [496; 32]);
}

#[test]
fn copies_land_at_their_wait_and_partly_fill_with_zeros() {
    let run = Run::new(&(1..=32).collect::<Vec<_>>());
    let body = format!(
        "mov.u32 %r3, s; shl.b32 %r4, %r1, 4; add.u32 %r3, %r3, %r4; mul.wide.u32 %rd3, %r1, 16; add.u64 %rd3, %rd1, %rd3;\n\
         mov.u32 %r6, 8; cp.async.cg.shared.global [%r3], [%rd3], 16, %r6; cp.async.commit_group; cp.async.wait_group 0;\n\
         ld.shared.v4.u32 {{%r20, %r21, %r22, %r23}}, [%r3]; add.u32 %r10, %r20, %r21; add.u32 %r10, %r10, %r22;\n\
         add.u32 %r10, %r10, %r23; bar.warp.sync 0xff; {OUT} ret;"
    );
    run.go(1, 8, ".shared .align 16 .b8 s[128];", &body).unwrap();
    assert_eq!(run.words()[..8], std::array::from_fn::<u32, 8, _>(|t| 8 * t as u32 + 3));
}

#[test]
fn a_matrix_product_is_the_dense_one() {
    // A[row][k] = row + k, B[k][col] = (k == col): D = A's first eight columns.
    let run = Run::new(&[0; 128]);
    let body = "shr.u32 %r3, %r1, 2; and.b32 %r4, %r1, 3; shl.b32 %r5, %r4, 1;\n\
         add.u32 %r6, %r3, %r5; cvt.rn.f32.u32 %f1, %r6; add.f32 %f2, %f1, 0f3F800000; cvt.rn.f16x2.f32 %r20, %f2, %f1;\n\
         add.f32 %f3, %f1, 0f41000000; add.f32 %f4, %f3, 0f3F800000; cvt.rn.f16x2.f32 %r21, %f4, %f3;\n\
         setp.eq.u32 %p1, %r5, %r3; selp.b32 %r22, 0x3c00, 0, %p1; add.u32 %r7, %r5, 1; setp.eq.u32 %p2, %r7, %r3;\n\
         selp.b32 %r23, 0x3c000000, 0, %p2; or.b32 %r22, %r22, %r23; mov.f32 %f9, 0f00000000;\n\
         mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%f5, %f6, %f7, %f8}, {%r20, %r21}, {%r22}, {%f9, %f9, %f9, %f9};\n\
         cvt.rzi.u32.f32 %r30, %f5; cvt.rzi.u32.f32 %r31, %f6; cvt.rzi.u32.f32 %r32, %f7; cvt.rzi.u32.f32 %r33, %f8;\n\
         mad.lo.u32 %r8, %r3, 8, %r5; mul.wide.u32 %rd3, %r8, 4; add.u64 %rd3, %rd1, %rd3;\n\
         st.global.v2.u32 [%rd3], {%r30, %r31}; st.global.v2.u32 [%rd3+256], {%r32, %r33}; ret;";
    let outcome = run.go(1, 32, "", body).unwrap();
    let expect: Vec<u32> = (0..128).map(|i| i / 8 + i % 8).collect();
    assert_eq!(run.words(), expect);
    assert_eq!(outcome.counters.tensor_fma, 16 * 8 * 8);
}

/// The compiler gives a kernel no more registers than blocks of `.maxntid` threads can have: what it needs beyond, it
/// spills. A kernel's attributes must not say otherwise, for drivers derive the largest block from them.
#[test]
fn blocks_of_maxntid_threads_have_registers_whatever_is_live() {
    let loads: String = (0..100).map(|i| format!("ld.global.u32 %r{i}, [%rd1+{}];\n", 4 * i)).collect();
    let sums: String = (1..100).map(|i| format!("xor.b32 %r0, %r0, %r{i};\n")).collect();
    let ptx = format!(
        ".version 8.2\n.target sm_80\n.address_size 64\n.visible .entry k(.param .u64 p)\n.maxntid 1024, 1, 1\n{{\n\
         .reg .b32 %r<100>;\n.reg .b64 %rd<2>;\nld.param.u64 %rd1, [p];\n{loads}{sums}st.global.u32 [%rd1], %r0;\nret;\n}}\n"
    );
    let memory = GlobalMemory::new(1 << 30);
    let module = crate::lower::load(&ptx).unwrap_or_else(|e| panic!("{e}"));
    let loaded = LoadedModule::load(Arc::new(module), &memory).unwrap();
    let attributes = loaded.attributes(loaded.module().function("k").unwrap()).unwrap();
    assert_eq!((attributes.max_threads, attributes.registers), (Some(1024), 64));
}
