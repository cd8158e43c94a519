//! What the interpreter does not know, and what no program may do: named, with its line.

use virtual_gpu::fault::Kind;
use virtual_gpu::lower;

use crate::{HERE, caught, caught_in, text};

#[test]
fn unknown_instructions_are_named_with_their_line() {
    for (statement, what) in [
        ("frobnicate.u32 %r3, %r1, %r1;", "unknown instruction 'frobnicate'"),
        ("add.u32.wild %r3, %r1, %r1;", "'.wild'"),
        ("wgmma.fence.sync.aligned;", "unknown instruction 'wgmma'"),
        ("tex.1d.v4.f32.f32 {%f1, %f2, %f3, %f4}, [t, {%f0}];", "'tex'"),
        ("mov.u32 %r3, %unheard_of;", "%unheard_of"),
        (
            "mma.sync.aligned.m32n8k8.row.col.f32.f16.f16.f32 {%f1, %f2, %f3, %f4}, {%r0, %r0}, {%r0}, {%f0, %f0, %f0, %f0};",
            "m32n8k8",
        ),
        ("cp.async.bulk.commit_group;", "cp"),
    ] {
        let text = text("", &format!("@%p1 {statement} {HERE}"));
        let line = text.lines().position(|l| l.contains(HERE)).unwrap() + 1;
        let error = lower::load(&text).expect_err(statement).to_string();
        assert!(error.contains(&format!("PTX line {line}")) && error.contains(what), "{statement}\n{error}");
        assert!(error.contains(statement), "{error}");
    }
}

#[test]
fn textures_and_surfaces_are_named_with_their_line() {
    // What compilers write for texture and surface objects, and for the references of older programs.
    for statement in [
        "tex.2d.v4.f32.f32 {%f1, %f2, %f3, %f4}, [%rd2, {%f0, %f0}];",
        "tex.level.2d.v4.f32.f32 {%f1, %f2, %f3, %f4}, [%rd2, {%f0, %f0}], %f0;",
        "tld4.r.2d.v4.f32.f32 {%f1, %f2, %f3, %f4}, [%rd2, {%f0, %f0}];",
        "txq.width.b32 %r3, [%rd2];",
        "suld.b.2d.b32.trap {%r3}, [%rd2, {%r1, %r1}];",
        "sust.b.2d.b32.trap [%rd2, {%r1, %r1}], {%r3};",
        "sured.b.add.1d.u32.trap [%rd2, {%r1}], %r3;",
    ] {
        let text = text("", &format!("{statement} {HERE}"));
        let line = text.lines().position(|l| l.contains(HERE)).unwrap() + 1;
        let error = lower::load(&text).expect_err(statement).to_string();
        let opcode = statement.split('.').next().unwrap();
        let what = format!("'{opcode}': textures and surfaces are not supported");
        assert!(error.contains(&format!("PTX line {line}")) && error.contains(&what), "{statement}\n{error}");
    }
    for variable in [".global .texref t;", ".global .samplerref t = { filter_mode = linear };", ".global .surfref t;"] {
        let error = lower::load(&text(variable, "ret;")).expect_err(variable).to_string();
        assert!(error.contains("textures and surfaces are not supported") && error.contains(variable), "{error}");
    }
}

#[test]
fn traps_breakpoints_and_assertions() {
    caught(Kind::Trap, "", &format!("@%p1 trap; {HERE}"));
    caught(Kind::Breakpoint, "", &format!("@%p1 brkpt; {HERE}"));
    let globals = ".extern .func __assertfail(.param .b64 a, .param .b64 b, .param .b32 c, .param .b64 d, .param .b64 e);\n\
        .global .align 1 .b8 text[4] = {97, 60, 98, 0};";
    let body = format!(
        "@%p2 bra E; mov.u64 %rd2, text; cvta.global.u64 %rd2, %rd2;\n{{ .param .b64 a; .param .b64 b; .param .b32 c; .param .b64 d; .param .b64 e;\n\
         st.param.b64 [a], %rd2; st.param.b64 [b], %rd2; st.param.b32 [c], 7; st.param.b64 [d], %rd2; st.param.b64 [e], 1;\n\
         call.uni __assertfail, (a, b, c, d, e); {HERE}\n}}\nE:"
    );
    let fault = caught(Kind::Assert, globals, &body);
    assert!(fault.what.contains("a<b"), "{fault}");
}

#[test]
fn operands_out_of_range() {
    caught_in(
        32,
        Kind::InvalidOperand,
        "",
        &format!(
            "selp.b32 %r3, 17, 16, %p1; setp.lt.u32 %p4, %r1, 32; @%p4 exit; mov.u32 %r3, 16;\nbar.sync %r3; {HERE}"
        ),
    );
    caught_in(0, Kind::InvalidOperand, "", &format!("mov.u32 %r3, 48;\nbarrier.sync 1, %r3; {HERE}"));
    let table = "T: .branchtargets A, B;\n";
    caught(
        Kind::InvalidOperand,
        "",
        &format!("{table} selp.b32 %r3, 2, 0, %p1;\nbrx.idx %r3, T; {HERE}\nA: B: mov.u32 %r3, 0;"),
    );
    caught(
        Kind::InvalidOperand,
        ".shared .align 8 .b8 s[8];",
        &format!("mov.u64 %rd3, 0;\n@%p1 mbarrier.arrive.shared.b64 %rd2, [s]; {HERE}"),
    );
    caught(
        Kind::InvalidOperand,
        ".shared .align 16 .b8 s[16];",
        &format!("mov.u32 %r3, 17;\n@%p1 cp.async.cg.shared.global [s], [%rd1], 16, %r3; {HERE}"),
    );
}
