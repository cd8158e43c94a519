//! Registers that the thread has not written.

use virtual_gpu::fault::Kind;

use crate::{HERE, allowed, caught, caught_in};

#[test]
fn every_place_where_a_register_is_read() {
    for (globals, instruction) in [
        ("", "add.u32 %r3, %r1, %r4;"),
        ("", "fma.rn.f32 %f1, %f2, %f2, %f2;"),
        ("", "add.f64 %fd1, %fd0, %fd0;"),
        ("", "setp.lt.u32 %p4, %r4, 7;"),
        ("", "selp.b32 %r3, 1, 2, %p4;"),
        ("", "and.pred %p5, %p1, %p4;"),
        ("", "cvt.rn.f32.u32 %f1, %r4;"),
        ("", "mov.b64 %rd2, {%r1, %r4};"),
        ("", "ld.global.u32 %r3, [%rd2];"),
        ("", "st.global.u32 [%rd2], %r1;"),
        ("", "st.global.u32 [%rd1], %r4;"),
        ("", "atom.global.add.u32 %r3, [%rd1], %r4;"),
        (".shared .b32 s;", "st.shared.u32 [s], %r4;"),
        ("", "mad.lo.cc.u32 %r3, %r4, %r1, %r1;"),
        ("", "cvta.to.global.u64 %rd3, %rd2;"),
    ] {
        let fault = caught(Kind::UninitialisedRegister, globals, &format!("@%p1 {instruction} {HERE}"));
        assert!(fault.what.contains("register %"), "{fault}");
    }
}

#[test]
fn registers_that_only_other_threads_wrote() {
    caught(Kind::UninitialisedRegister, "", &format!("@%p2 mov.u32 %r4, 1;\nadd.u32 %r3, %r4, 1; {HERE}"));
    let body = format!("@%p1 bra SKIP; mov.u32 %r4, 1;\nSKIP: bar.warp.sync 0xffffffff;\nadd.u32 %r3, %r4, 1; {HERE}");
    caught(Kind::UninitialisedRegister, "", &body);
    allowed("", "@%p2 mov.u32 %r4, 1; @%p2 add.u32 %r3, %r4, 1; selp.b32 %r4, 1, 2, %p1;");
}

#[test]
fn the_predicate_of_a_guard() {
    caught_in(0, Kind::UninitialisedRegister, "", &format!("@%p9 mov.u32 %r3, 1; {HERE}"));
    caught(
        Kind::UninitialisedRegister,
        "",
        &format!("@%p2 setp.eq.u32 %p9, %r1, 0;\n@%p9 bra L; {HERE}\nL: mov.u32 %r3, 1;"),
    );
}

#[test]
fn operands_of_warp_operations() {
    for operation in [
        "shfl.sync.bfly.b32 %r3, %r4, 1, 31, 0xffffffff;",
        "vote.sync.any.pred %p5, %p4, 0xffffffff;",
        "vote.sync.ballot.b32 %r3, %p4, 0xffffffff;",
        "match.any.sync.b32 %r3, %r4, 0xffffffff;",
        "redux.sync.add.u32 %r3, %r4, 0xffffffff;",
        "bar.red.popc.u32 %r3, 0, %p4;",
        "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%f1, %f2, %f3, %f4}, {%r0, %r4}, {%r0}, {%f0, %f0, %f0, %f0};",
        "movmatrix.sync.aligned.m8n8.trans.b16 %r3, %r4;",
    ] {
        let write = "@%p2 mov.u32 %r4, 1; @%p2 setp.eq.u32 %p4, %r1, 0; mov.f32 %f0, 0f00000000;";
        caught(Kind::UninitialisedRegister, "", &format!("{write}\n{operation} {HERE}"));
    }
}

#[test]
fn what_a_function_did_not_return() {
    let function = ".func (.param .b32 out) f(.param .b32 x)\n{ .reg .b32 %r; .reg .pred %p; ld.param.u32 %r, [x]; \
        setp.eq.u32 %p, %r, 37; @%p bra E; st.param.b32 [out], %r; E: ret; }";
    let body = format!(
        "{{ .param .b32 a; .param .b32 b; st.param.b32 [a], %r1; call (b), f, (a); ld.param.b32 %r3, [b]; }}\n\
         add.u32 %r4, %r3, 1; {HERE}"
    );
    caught(Kind::UninitialisedRegister, function, &body);
}
