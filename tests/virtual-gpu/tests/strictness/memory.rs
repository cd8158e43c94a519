//! Addresses: bounds, alignment, lifetime, what nothing has written, what is read-only.

use virtual_gpu::fault::Kind;

use crate::{HERE, allowed, caught};

const SHARED: &str = ".shared .align 16 .b8 s[256];";
const LOCAL: &str = ".local .align 16 .b8 l[64];";

/// One instruction that the thread alone executes.
#[track_caller]
fn alone(kind: Kind, globals: &str, before: &str, instruction: &str) {
    caught(kind, globals, &format!("{before}\n@%p1 {instruction} {HERE}"));
}

#[test]
fn out_of_bounds() {
    for instruction in [
        "ld.global.u32 %r3, [%rd1+1032];",
        "ld.global.u8 %r3, [%rd1+-1];",
        "ld.global.v4.u32 {%r3, %r4, %r5, %r6}, [%rd1+1024];",
        "ld.global.nc.u64 %rd2, [%rd1+1032];",
        "ld.volatile.global.u32 %r3, [%rd1+1032];",
        "ld.u32 %r3, [%rd1+1032];",
        "st.global.u32 [%rd1+1032], %r1;",
        "st.global.v2.u64 [%rd1+1024], {%rd1, %rd1};",
        "st.u32 [%rd1+1032], %r1;",
        "atom.global.add.u32 %r3, [%rd1+1032], 1;",
        "atom.global.cas.b64 %rd2, [%rd1+1032], %rd1, %rd1;",
        "red.global.add.f32 [%rd1+1032], 0f3F800000;",
    ] {
        alone(Kind::OutOfBounds, "", "", instruction);
    }
    alone(Kind::OutOfBounds, "", "mov.u64 %rd2, 16;", "ld.global.u32 %r3, [%rd2];");
    alone(Kind::OutOfBounds, ".const .align 4 .b32 c = 5;", "", "ld.const.u32 %r3, [c+4];");
    for instruction in [
        "ld.shared.u32 %r3, [s+256];",
        "ld.shared.v4.u32 {%r3, %r4, %r5, %r6}, [s+256];",
        "st.shared.u64 [s+256], %rd1;",
        "st.shared.u32 [s+-4], %r1;",
        "atom.shared.add.u32 %r3, [s+256], 1;",
        "red.shared.or.b32 [s+256], 1;",
        "cp.async.ca.shared.global [s+256], [%rd1], 4;",
        "cp.async.cg.shared.global [s], [%rd1+1024], 16;",
        "mbarrier.init.shared.b64 [s+256], 1;",
    ] {
        alone(Kind::OutOfBounds, SHARED, "", instruction);
    }
    alone(Kind::OutOfBounds, SHARED, "cvta.shared.u64 %rd2, 256;", "st.u32 [%rd2], %r1;");
    alone(Kind::OutOfBounds, "", LOCAL, "st.local.u32 [l+65536], %r1;");
    alone(Kind::OutOfBounds, "", LOCAL, "ld.local.u32 %r3, [l+-16];");
    alone(Kind::OutOfBounds, "", "", "ld.param.u64 %rd2, [p+24];");
}

#[test]
fn misaligned() {
    for instruction in [
        "ld.global.u32 %r3, [%rd1+2];",
        "ld.global.u64 %rd2, [%rd1+4];",
        "ld.global.v2.u32 {%r3, %r4}, [%rd1+4];",
        "ld.global.v4.u32 {%r3, %r4, %r5, %r6}, [%rd1+8];",
        "st.global.u16 [%rd1+1], 0;",
        "st.global.v2.f32 [%rd1+4], {0f00000000, 0f00000000};",
        "atom.global.add.u64 %rd2, [%rd1+4], 1;",
        "red.global.max.u32 [%rd1+2], 1;",
        "ld.u32 %r3, [%rd1+2];",
    ] {
        alone(Kind::Misaligned, "", "", instruction);
    }
    for instruction in [
        "ld.shared.u32 %r3, [s+2];",
        "ld.shared.v4.u32 {%r3, %r4, %r5, %r6}, [s+8];",
        "st.shared.u64 [s+4], %rd1;",
        "atom.shared.add.u32 %r3, [s+2], 1;",
        "cp.async.cg.shared.global [s+8], [%rd1], 16;",
        "cp.async.ca.shared.global [s], [%rd1+4], 8;",
        "mbarrier.init.shared.b64 [s+4], 1;",
    ] {
        alone(Kind::Misaligned, SHARED, "", instruction);
    }
    alone(Kind::Misaligned, "", LOCAL, "st.local.u32 [l+2], %r1;");
    alone(Kind::Misaligned, "", "", "ld.param.u64 %rd2, [p+4];");
}

#[test]
fn matrix_rows_that_lie_wrong() {
    // The sixth row of the second warp's matrix.
    for (kind, address) in [(Kind::OutOfBounds, 256), (Kind::Misaligned, 8)] {
        let body = format!(
            "shl.b32 %r3, %r1, 2; st.shared.u32 [%r3], %r1; bar.sync 0; and.b32 %r4, %r1, 7; shl.b32 %r4, %r4, 4;\n\
             selp.b32 %r4, {address}, %r4, %p1;\nldmatrix.sync.aligned.m8n8.x1.shared.b16 {{%r5}}, [%r4]; {HERE}"
        );
        caught(kind, SHARED, &body);
    }
}

#[test]
fn use_after_free() {
    for instruction in [
        "ld.global.u32 %r3, [%rd5];",
        "ld.global.v4.u32 {%r3, %r4, %r5, %r6}, [%rd5+16];",
        "st.global.u32 [%rd5+1028], %r1;",
        "atom.global.add.u32 %r3, [%rd5], 1;",
        "ld.u32 %r3, [%rd5];",
    ] {
        alone(Kind::UseAfterFree, "", "", instruction);
    }
    alone(Kind::UseAfterFree, SHARED, "", "cp.async.ca.shared.global [s], [%rd5], 4;");
}

#[test]
fn global_memory_that_nothing_wrote() {
    for instruction in [
        "ld.global.u32 %r3, [%rd6];",
        "ld.global.nc.u8 %r3, [%rd6+1];",
        "ld.u64 %rd2, [%rd6+8];",
        "atom.global.add.u32 %r3, [%rd6], 1;",
        "red.global.add.u32 [%rd6], 1;",
    ] {
        alone(Kind::UninitialisedGlobal, "", "", instruction);
    }
    alone(Kind::UninitialisedGlobal, SHARED, "", "cp.async.cg.shared.global [s], [%rd6], 16;");
    // Three of four words are there.
    let some = "@%p1 st.global.v2.u32 [%rd6], {%r0, %r0}; @%p1 st.global.u32 [%rd6+8], %r0;";
    alone(Kind::UninitialisedGlobal, "", some, "ld.global.v4.u32 {%r3, %r4, %r5, %r6}, [%rd6];");
    // A whole warp's row, of which one lane's is missing.
    let row = "mul.wide.u32 %rd2, %r1, 4; add.u64 %rd2, %rd6, %rd2; @%p2 st.global.u32 [%rd2], %r1;";
    caught(Kind::UninitialisedGlobal, "", &format!("{row}\nld.global.u32 %r3, [%rd2]; {HERE}"));
    allowed(
        "",
        "@%p1 st.global.u32 [%rd6], %r1; @%p1 ld.global.u32 %r3, [%rd6]; @%p1 atom.global.exch.b32 %r3, [%rd6+4], 1;",
    );
}

#[test]
fn shared_memory_that_nothing_wrote() {
    for instruction in [
        "ld.shared.u32 %r3, [s];",
        "ld.shared.u8 %r3, [s+9];",
        "atom.shared.add.u32 %r3, [s], 1;",
        "red.shared.add.u32 [s], 1;",
    ] {
        alone(Kind::UninitialisedShared, SHARED, "", instruction);
    }
    let half = "@%p1 st.shared.u32 [s], %r1;";
    alone(Kind::UninitialisedShared, SHARED, half, "ld.shared.v2.u32 {%r3, %r4}, [s];");
    alone(Kind::UninitialisedShared, SHARED, "cvta.shared.u64 %rd2, 0;", "ld.u32 %r3, [%rd2];");
    let body = format!(
        "shl.b32 %r3, %r1, 2; @%p2 st.shared.u32 [%r3], %r1; bar.sync 0; and.b32 %r4, %r1, 7; shl.b32 %r4, %r4, 4; add.u32 %r4, %r4, 64;\n\
         ldmatrix.sync.aligned.m8n8.x1.shared.b16 {{%r5}}, [%r4]; {HERE}"
    );
    // Word 37 lies in the row at 144, whose address lane 5 gives; it is the second warp that is let go first.
    caught(Kind::UninitialisedShared, SHARED, &body);
}

#[test]
fn local_memory_that_the_thread_did_not_write() {
    alone(Kind::UninitialisedLocal, "", &format!("{LOCAL} @%p2 st.local.u32 [l], %r1;"), "ld.local.u32 %r3, [l];");
    allowed("", &format!("{LOCAL} st.local.u32 [l], %r1; ld.local.u32 %r3, [l];"));
}

#[test]
fn padding_may_be_copied_and_not_used() {
    // As compilers copy a structure whose second byte is padding.
    let copy = format!("{LOCAL} st.local.u8 [l], %r1; ld.local.u8 %r3, [l+1]; st.local.u8 [l+2], %r3;");
    allowed("", &format!("{copy} ld.local.u8 %r4, [l+2]; st.global.u8 [%rd1], %r4;"));
    alone(Kind::UninitialisedRegister, "", &copy, "add.u32 %r5, %r3, 1;");
    alone(Kind::UninitialisedLocal, "", &copy, "ld.local.u16 %r5, [l+2];");
}

#[test]
fn constants_are_read_only() {
    let constant = ".const .align 4 .b32 c = 5;";
    alone(Kind::ReadOnly, constant, "mov.u64 %rd2, c;", "st.u32 [%rd2], %r1;");
    alone(Kind::ReadOnly, constant, "mov.u64 %rd2, c;", "atom.add.u32 %r3, [%rd2], 1;");
}

#[test]
fn atomics_work_where_threads_share() {
    let local = format!("{LOCAL} cvta.local.u64 %rd2, 0; st.local.u32 [l], %r1;");
    alone(Kind::WrongSpace, "", &local, "atom.add.u32 %r3, [%rd2], 1;");
}
