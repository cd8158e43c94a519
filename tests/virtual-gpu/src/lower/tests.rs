use super::load;
use crate::program::{Op, Space};

fn kernel(body: &str) -> String {
    format!(
        ".version 8.2\n.target sm_80\n.address_size 64\n.global .u32 word;\n.entry k(.param .u64 p) {{\n\
         .reg .b16 %h<9>; .reg .f16 %hf<9>; .reg .b32 %r<20>; .reg .u32 %u<9>; .reg .b64 %d<9>; .reg .f32 %f<20>; \
         .reg .f64 %g<9>; .reg .pred %p<9>; .reg .u16 %us<9>; .shared .align 16 .b8 sh[64];\n{body}\n}}\n"
    )
}

#[test]
fn refused_with_line_and_reason() {
    for (body, reason) in [
        ("add.f32 %f1, %f2, 1;", "an integer constant where .f32 is wanted"),
        ("add.u32 %r1, %f1, %r2;", "a .f32 register where .u32 is wanted"),
        ("add.u32 %r1, %d1, %r2;", "a .b64 register where .u32 is wanted"),
        ("add.u32 %r1, %tid.x, %r2;", "special register '%tid'"),
        ("add.u32 %r1, %q1, %r2;", "'%q1' is not declared"),
        ("add.u32 %r1, %r20, %r2;", "'%r20' is not declared"),
        ("add.u32 %r1, %r2;", "'add' takes 3 operands here, found 2"),
        ("add.pred %p1, %p2, %p3;", "'add' does not take .pred here"),
        ("add.u32.sat %r1, %r2, %r3;", "'add' does not take .u32 here"),
        ("add.foo.u32 %r1, %r2, %r3;", "'.foo' is unknown, repeated or out of place on 'add'"),
        ("add %r1, %r2, %r3;", "'add' needs a type"),
        ("frob.u32 %r1, %r2, %r3;", "unknown instruction 'frob'"),
        ("mul.u32 %r1, %r2, %r3;", "'mul' needs one of .lo, .hi, .wide"),
        ("mul.wide.u32 %d1, %r1, %d2;", "a .b64 register where .u32 is wanted"),
        ("fma.f32 %f1, %f2, %f3, %f4;", "needs a rounding"),
        ("div.f32 %f1, %f2, %f3;", "needs a rounding"),
        ("cvt.u32.f32 %r1, %f1;", "needs an integer rounding"),
        ("cvt.f32.u32 %f1, %r1;", "needs a rounding"),
        ("cvt.rn.f32.f16 %f1, %hf1;", "is exact and takes no rounding"),
        ("cvt.rn.u32.s32 %r1, %r2;", "integers convert without rounding"),
        ("add.bf16 %h1, %h2, %h3;", "needs sm_90"),
        ("add.f16 %us1, %h2, %h3;", "a .u16 register where .f16 is wanted"),
        ("setp.lo.s32 %p1, %r1, %r2;", "does not apply to .s32"),
        ("setp.lt.b32 %p1, %r1, %r2;", "does not apply to .b32"),
        ("setp.num.u32 %p1, %r1, %r2;", "does not apply to .u32"),
        ("ld.global.u32 %r1, [sh];", "'sh' is in Shared space"),
        ("ld.u32 %r1, [sh];", "'sh' is in Shared space"),
        ("ld.shared.u32 %r1, [%g1];", "an address is a 32- or 64-bit integer"),
        ("ld.global.u32 %r1, [%r1];", "has 32 bits"),
        ("ld.global.v4.b64 {%d1, %d2, %d3, %d4}, [%d1];", "wider than 16 bytes"),
        ("ld.global.v2.b32 {%r1, %r2, %r3}, [%d1];", "2 registers are wanted here, found 3"),
        ("ld.relaxed.u32 %r1, [%d1];", "needs one of .cta, .gpu, .sys"),
        ("ld.global.u32 %h1, [%d1];", "a .b16 register where .u32 is wanted"),
        ("st.const.u32 [%d1], %r1;", "constant memory cannot be stored to"),
        ("shfl.bfly.b32 %r1, %r2, 1, 31;", "without .sync"),
        ("bar.sync 16;", "from 0 to 15"),
        ("bar.sync 0, 33;", "a multiple of 32"),
        ("bra nowhere;", "'nowhere' is not declared"),
        ("@%r1 bra L; L: ret;", "a .b32 register where .pred is wanted"),
        ("call k, (%d1);", "is a kernel"),
        ("mov.u32 %r1, word;", "does not fit .u32"),
        ("mov.u32 %r1, %clock64;", "has 64 bits"),
        ("mov.b32 {%h1, %h2, %h3}, %r1;", "does not part into 3"),
        ("atom.global.add.f16x2 %r1, [%d1], %r2;", "needs one of .noftz"),
        (
            "mma.sync.aligned.m16n8k16.row.col.f32.f16.bf16.f32 {%f1,%f2,%f3,%f4},{%r1,%r2,%r3,%r4},{%r1,%r2},{%f1,%f2,%f3,%f4};",
            "do not go together",
        ),
        (
            "mma.sync.aligned.m16n8k32.row.col.f32.f16.f16.f32 {%f1,%f2,%f3,%f4},{%r1,%r2,%r3,%r4},{%r1,%r2},{%f1,%f2,%f3,%f4};",
            "no mma of this shape",
        ),
        ("cp.async.cg.shared.global [sh], [%d1], 8;", "with .cg 16"),
        ("tex.2d.v4.f32.f32 {%f1,%f2,%f3,%f4}, [t, {%f1,%f2}];", "textures and surfaces are not supported"),
        (".reg .b32 %r; .reg .b32 %r;", "declared twice"),
        (".local .b8 big[1000000];", "too large"),
    ] {
        let error = load(&kernel(body)).expect_err(body);
        assert!(error.to_string().contains(reason), "{body}\n{error}");
        assert_eq!(error.line, 7, "{body}\n{error}");
    }
}

#[test]
fn labels_scopes_and_addresses_resolve() {
    let text = kernel(
        "mov.u32 %r1, sh; { .reg .f32 %r1; mov.f32 %r1, 0f3F800000; bra END; }\n\
         LOOP: add.u32 %r1, %r1, 1; bra LOOP; END: st.shared.u32 [sh+8], %r1; ret;",
    );
    let module = load(&text).unwrap();
    let code = &module.functions[0].code;
    let targets: Vec<u32> =
        code.iter().filter_map(|i| if let Op::Bra { target, .. } = i.op { Some(target) } else { None }).collect();
    assert_eq!(targets, [5, 3]);
    let Op::Store(store) = &code[5].op else { panic!() };
    assert_eq!((store.space, store.address.offset), (Space::Shared, 8));
    assert_eq!(module.shared[0].size, 64);
}

#[test]
fn initial_values_land_where_the_isa_puts_them() {
    let text = ".version 8.2\n.target sm_80\n.global .u16 a[2][3] = {{1, 2}, {3, 4, 5}};\n.const .v2 .f32 v = {1.0, 0f40000000};\n\
        .global .u8 m[2] = {0xFF(a), 0xFF00(a)};\n.global .u64 p[] = {a + 4, generic(a)};";
    let module = load(text).unwrap();
    assert_eq!(module.globals[0].size, 12);
    assert_eq!(module.globals[0].init, [1, 0, 2, 0, 0, 0, 3, 0, 4, 0, 5, 0]);
    assert_eq!(module.globals[1].init, [0, 0, 128, 63, 0, 0, 0, 64]);
    let m = &module.globals[2].relocations;
    assert_eq!((m[0].shift, m[1].shift, m[1].at, m[1].size), (0, 8, 1, 1));
    assert_eq!(module.globals[3].size, 16);
    assert_eq!(module.globals[3].relocations[0].symbol.offset, 4);
    load(".version 8.2\n.target sm_80\n.global .u16 a[2] = {1, 2, 3};").unwrap_err();
    load(".version 8.2\n.target sm_80\n.global .u16 a[1152921504606846976][1152921504606846976];").unwrap_err();
}
