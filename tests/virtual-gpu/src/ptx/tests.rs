use proptest::prelude::*;

use super::{Constant, Init, Item, Linkage, OperandKind, Statement, parse};

const SAMPLE: &str = r#"//
.version 8.2
.target sm_80, debug
.address_size 64
	.file	1 "a.cu", 12, 34
.extern .func (.param .b32 r) vprintf (.param .b64 a, .param .b64 b);
.global .align 1 .b8 $str[4] = {104, 105, 0x0A, 0};
.visible .const .align 8 .u64 table[2] = {$str, generic($str) + 2};
.global .u8 bytes[2] = {0xFF(table), 0xFF00(table)};
.extern .shared .align 16 .b8 smem[];
.weak .func (.reg .f32 y) half (.reg .f32 x) { mul.f32 y, x, 0f3F000000; ret; }
.visible .entry k( .param .u64 .ptr .global .align 4 k_0, .param .align 8 .b8 k_1[16] )
.maxntid 256, 1, 1
.minnctapersm 2
{
	.reg .pred %p<3>;
	.reg .b32 %r<10>, %x;
	.reg .v4 .f32 %v;
	.local .align 16 .b8 __local_depot0[32];
	.loc 1 7 3
	.pragma "nounroll";
	@!%p1 bra.uni $L_end;
	ld.param.u64 %rd1, [k_0+-8+4];
	ld.global.L1::no_allocate.L2::128B.v4.f32 {%f1, _, %v.x, 1.5}, [%rd1+(4*2)];
	setp.lt.and.s32 %p1|%p2, %r1, -1, !%p2;
	{ .reg .b32 t; mov.u32 t, %tid.x; call.uni (t), half, (%r1, 0d3FF0000000000000), proto; }
	mov.b32 %r1, (1 << 4) | 3; // operand constants are sums
	targets: .branchtargets $L_end, $L_end;
	proto: .callprototype (.param .b32 _) _ (.param .b32 _);
	brx.idx %r1, targets;
$L_end:
	ret;
}
.section .debug_str { .b8 1, 2 $x: .b8 0 }
"#;

#[test]
fn sample_parses() {
    let text = SAMPLE.replace("(1 << 4) | 3", "(1 << 4 | 3) + WARP_SZ");
    let module = parse(&text).unwrap();
    assert_eq!((module.version, module.address_size, module.targets.len()), ((8, 2), 64, 2));
    assert_eq!(module.items.len(), 7);
    let Item::Function(kernel) = &module.items[6] else { panic!() };
    assert_eq!((kernel.name, kernel.entry, kernel.linkage, kernel.params.len()), ("k", true, Linkage::Visible, 2));
    assert_eq!(kernel.directives[0].values, [256, 1, 1]);
    let body = kernel.body.as_ref().unwrap();
    let instructions: Vec<_> =
        body.iter().filter_map(|s| if let Statement::Instruction(i) = s { Some(i) } else { None }).collect();
    assert!(instructions[0].guard.unwrap().negated);
    let OperandKind::Address(address) = &instructions[1].operands[1].kind else { panic!() };
    assert_eq!((address.base, address.offset), (Some("k_0"), -4));
    assert_eq!(instructions[2].modifiers, ["global", "L1::no_allocate", "L2::128B", "v4", "f32"]);
    let OperandKind::Constant(constant) = instructions[4].operands[1].kind else { panic!() };
    assert_eq!(constant, Constant::Signed(19 + 32));
    let Item::Variable(bytes) = &module.items[3] else { panic!() };
    let Some(Init::List(list)) = &bytes.init else { panic!() };
    assert!(matches!(list[1], Init::Address { name: "table", mask: Some(0xFF00), .. }));
}

#[test]
fn refusals_say_where_and_what() {
    let error = parse(".version 8.2\n.target sm_80\n.entry k() {\n  add.u32 %r1 %r2, 1;\n}").unwrap_err();
    assert_eq!((error.line, error.column), (4, 15));
    assert_eq!(error.text, "add.u32 %r1 %r2, 1;");
    assert!(error.what.contains("expected ',' or ';' after an operand, found '%r2'"), "{}", error.what);
    let error = parse(".version 8.2\n.target sm_80\n.frobnicate 3;").unwrap_err();
    assert!(error.to_string().contains("unknown directive '.frobnicate'"), "{error}");
}

#[test]
fn deep_nesting_is_refused() {
    for (open, close) in
        [("{", "}"), ("mov.u32 x, ((((((", ";"), ("mov.u32 x, -------", ";"), ("ld.u32 x, [1+-+-", ";")]
    {
        let text = format!(".version 8.2\n.target sm_80\n.entry k() {{ {} {close}", open.repeat(100_000));
        parse(&text).unwrap_err();
    }
    parse(&format!(".version 8.2\n.target sm_80\n.global .u32 x = {}", "{".repeat(100_000))).unwrap_err();
    parse(&format!(".version 8.2\n.target sm_80\n.global .u32 x = 1{}", "?1:1".repeat(100_000))).unwrap_err();
    parse(&format!(".version 8.2\n.target sm_80\n.global .u32 x[{}1];", "1+".repeat(100_000))).unwrap();
}

#[test]
fn constants_follow_the_isa() {
    let value = |text: &str| {
        let text = format!(".version 8.2\n.target sm_80\n.global .s64 x = {text};");
        let module = parse(&text).unwrap();
        let Item::Variable(x) = &module.items[0] else { panic!() };
        let Some(Init::Constant(constant)) = x.init else { panic!() };
        constant
    };
    assert_eq!(value("010"), Constant::Signed(8));
    assert_eq!(value("0b101U"), Constant::Unsigned(5));
    assert_eq!(value("0x8000000000000000"), Constant::Unsigned(1 << 63));
    assert_eq!(value("-1 > 0U"), Constant::Signed(1));
    assert_eq!(value("-5 / 2"), Constant::Signed(-2));
    assert_eq!(value("-1 >> 1"), Constant::Signed(-1));
    assert_eq!(value("(.u64)-1 >> 63"), Constant::Unsigned(1));
    assert_eq!(value("1 + 2 * 3 == 7 ? 10 : 20"), Constant::Signed(10));
    assert_eq!(value("0f3FC00000"), Constant::Single(0x3FC0_0000));
    assert_eq!(value("-1.5e1"), Constant::Double(-15.0));
}

proptest! {
    /// Whatever is cut, doubled or replaced, the answer is a tree or an error.
    #[test]
    fn mutated_text_never_panics(
        edits in prop::collection::vec((0.0..1.0f64, 0..40usize, "[ -~\n]{0,3}"), 1..6),
    ) {
        let mut text = SAMPLE.as_bytes().to_vec();
        for (place, cut, insert) in edits {
            let from = (place * text.len() as f64) as usize;
            let to = (from + cut / 2).min(text.len());
            text.splice(from..to, insert.bytes());
        }
        if let Ok(text) = String::from_utf8(text) {
            let _ = crate::lower::load(&text);
        }
    }

    #[test]
    fn arbitrary_text_never_panics(text in "\\PC{0,200}") {
        let _ = parse(&format!(".version 8.2\n.target sm_80\n{text}"));
    }
}
