//! Warp-wide matrices: `ldmatrix`, `movmatrix`, `mma`, `mma.sp`, `wmma`.

use super::*;
use crate::program::{Layout, Mma, Round, Space, WmmaMatrix, WmmaMove};

type Shape = (u8, u8, u16);

/// `m16n8k16` as numbers.
fn parse_shape(name: &str) -> Option<Shape> {
    let (m, rest) = name.strip_prefix('m')?.split_once('n')?;
    let (n, k) = rest.split_once('k')?;
    Some((m.parse().ok()?, n.parse().ok()?, k.parse().ok()?))
}

fn shape(m: &mut Modifiers<'_>) -> Lowered<Shape> {
    m.find(parse_shape).ok_or_else(|| m.refuse("a matrix instruction needs a shape such as .m16n8k16"))
}

fn layout(m: &mut Modifiers<'_>) -> Lowered<Layout> {
    m.find(|name| match name {
        "row" => Some(Layout::Row),
        "col" => Some(Layout::Col),
        _ => None,
    })
    .ok_or_else(|| m.refuse("a matrix instruction needs a layout, .row or .col"))
}

/// `ldmatrix` and `movmatrix`.
pub(super) fn moves<'a>(b: &mut Body<'_, 'a>, i: &Instruction<'a>, m: &mut Modifiers<'a>) -> Lowered<Op> {
    b.require(i, i.opcode, 75)?;
    m.expect("sync")?;
    m.expect("aligned")?;
    m.expect("m8n8")?;
    if i.opcode == "movmatrix" {
        m.expect("trans")?;
        m.ty(&[Type::B16])?;
        let [d, a] = exactly(i)?;
        return Ok(Op::MovMatrix { dst: b.dst(d, Type::B32)?, a: b.src(a, Type::B32)? });
    }
    let count = m.need(&[("x1", 1), ("x2", 2), ("x4", 4)])?;
    let trans = m.take("trans");
    let shared = m.choose(&[("shared", ()), ("shared::cta", ())]).is_some();
    let space = if shared { Space::Shared } else { Space::Generic };
    m.ty(&[Type::B16])?;
    let [d, a] = exactly(i)?;
    let mut dst = [None; 4];
    for (slot, reg) in dst.iter_mut().zip(b.dsts(d, count, Type::B32)?) {
        *slot = Some(reg);
    }
    Ok(Op::LdMatrix { count: count as u8, trans, space, dst, address: b.address(a, space)? })
}

/// Type of the registers that hold a fragment's elements.
fn register_type(element: Type) -> Type {
    match element {
        Type::F64 => Type::F64,
        Type::F32 => Type::F32,
        Type::S32 => Type::S32,
        _ => Type::B32,
    }
}

/// Registers of a fragment of so many elements a lane.
fn registers(element: Type, elements: u32) -> usize {
    (elements * element.bits()).div_ceil(register_type(element).bits()) as usize
}

/// The depths that `mma` knows for m16n8 (m8n8 where `tall` is false) by element type.
fn depths(ty: Type, tall: bool, sparse: bool) -> &'static [u32] {
    use Type::*;
    match (ty, tall, sparse) {
        (F16, false, false) => &[4],
        (F16 | BF16, true, false) => &[8, 16],
        (F16 | BF16, true, true) => &[16, 32],
        (TF32, true, false) => &[4, 8],
        (TF32, true, true) => &[8, 16],
        (F64, false, false) => &[4],
        (F64, true, false) => &[4, 8, 16],
        (U8 | S8, false, false) => &[16],
        (U8 | S8, true, false) => &[16, 32],
        (U8 | S8, true, true) => &[32, 64],
        (U4 | S4, false, false) => &[32],
        (U4 | S4, true, false) => &[32, 64],
        (U4 | S4, true, true) => &[64, 128],
        (B1, false, false) => &[128],
        (B1, true, false) => &[128, 256],
        _ => &[],
    }
}

/// `mma.sync` and `mma.sp.sync`.
pub(super) fn mma<'a>(b: &mut Body<'_, 'a>, i: &Instruction<'a>, m: &mut Modifiers<'a>) -> Lowered<Op> {
    use Type::*;
    let sparse = m.take("sp");
    m.expect("sync")?;
    m.expect("aligned")?;
    let shape = shape(m)?;
    let (a_layout, b_layout) = (layout(m)?, layout(m)?);
    let saturate = m.take("satfinite");
    let round = m.round();
    let d_type = m.ty(&[F16, F32, F64, S32])?;
    let a_type = m.ty(&[F16, BF16, TF32, F64, U8, S8, U4, S4, B1])?;
    let b_type = m.ty(&[F16, BF16, TF32, F64, U8, S8, U4, S4, B1])?;
    let c_type = m.ty(&[F16, F32, F64, S32])?;
    let mut and_popc = false;
    if a_type == B1 {
        and_popc = m.need(&[("xor", false), ("and", true)])?;
        m.expect("popc")?;
    }
    check_types(m, a_type, b_type, c_type, d_type, saturate, round)?;
    let k = u32::from(shape.2);
    let tall = shape.0 == 16;
    if !matches!(shape, (16 | 8, 8, _)) || !depths(a_type, tall, sparse).contains(&k) {
        let what = format!("no mma{} of this shape for {:?}", if sparse { ".sp" } else { "" }, a_type);
        return Err(m.refuse(what.to_lowercase()));
    }
    let ancient = shape == (8, 8, 4) && a_type == F16;
    if c_type != d_type && !(ancient && d_type == F32) {
        return Err(m.refuse("C and D have one type"));
    }
    if !ancient && (a_layout, b_layout) != (Layout::Row, Layout::Col) {
        return Err(m.refuse("this shape takes A by rows and B by columns: .row.col"));
    }
    b.require(i, "mma", needs(a_type, shape, sparse))?;
    let (rows, columns) = (u32::from(shape.0), u32::from(shape.1));
    let (a_elements, b_elements, c_elements) = if ancient {
        (4, 4, 8)
    } else {
        (rows * k / 32 / if sparse { 2 } else { 1 }, k * columns / 32, rows * columns / 32)
    };
    between(i, if sparse { 6 } else { 4 }, if sparse { 6 } else { 4 })?;
    let o = &i.operands;
    let d = b.dsts(&o[0], registers(d_type, c_elements), register_type(d_type))?;
    let a = b.srcs(&o[1], registers(a_type, a_elements), register_type(a_type))?;
    let bs = b.srcs(&o[2], registers(b_type, b_elements), register_type(b_type))?;
    let c = b.srcs(&o[3], registers(c_type, c_elements), register_type(c_type))?;
    let sparse = if sparse {
        // As many choices of selector as there are groups of lanes that can hold the metadata.
        let most = match (a_type, k) {
            (F16 | BF16, 16) | (TF32, 8) => 3,
            (U8 | S8, 64) | (U4 | S4, 128) => 0,
            _ => 1,
        };
        Some((b.src(&o[4], B32)?, b.literal(&o[5], most, "the sparsity selector")? as u8))
    } else {
        None
    };
    let round = round.unwrap_or(Round::Near);
    Ok(Op::Mma(Box::new(Mma {
        shape,
        a_layout,
        b_layout,
        a_type,
        b_type,
        c_type,
        d_type,
        saturate,
        and_popc,
        wmma: false,
        round,
        d,
        a,
        b: bs,
        c,
        sparse,
    })))
}

/// The first target that has it.
fn needs(ty: Type, shape: Shape, sparse: bool) -> u32 {
    match ty {
        Type::F16 if shape == (8, 8, 4) => 70,
        Type::F64 if shape.0 == 16 => 90,
        Type::F16 if shape.2 == 8 && !sparse => 75,
        Type::U8 | Type::S8 | Type::U4 | Type::S4 | Type::B1 if shape.0 == 8 => 75,
        _ => 80,
    }
}

fn check_types(
    m: &Modifiers<'_>,
    a: Type,
    b: Type,
    c: Type,
    d: Type,
    saturate: bool,
    round: Option<Round>,
) -> Lowered<()> {
    use Type::*;
    let integers = |x, y: [Type; 2]| y.contains(&x);
    let fits = match a {
        F16 => b == F16 && matches!(c, F16 | F32) && matches!(d, F16 | F32),
        BF16 | TF32 => b == a && (c, d) == (F32, F32),
        F64 => (b, c, d) == (F64, F64, F64),
        U8 | S8 => integers(b, [U8, S8]) && (c, d) == (S32, S32),
        U4 | S4 => integers(b, [U4, S4]) && (c, d) == (S32, S32),
        _ => b == B1 && (c, d) == (S32, S32),
    };
    if !fits {
        return Err(m.refuse("these element types do not go together"));
    }
    if saturate && !matches!(a, U8 | S8 | U4 | S4) {
        return Err(m.refuse(".satfinite applies to integers"));
    }
    if round.is_some() && a != F64 {
        return Err(m.refuse("a rounding applies to .f64"));
    }
    Ok(())
}

/// Registers of a fragment of `wmma` (A, B, C or D) by element type and shape; 0 where there is none.
fn wmma_registers(matrix: WmmaMatrix, ty: Type, shape: Shape) -> usize {
    use Type::*;
    let first = matches!(matrix, WmmaMatrix::A);
    let operand = matches!(matrix, WmmaMatrix::A | WmmaMatrix::B);
    let large = matches!(shape, (16, 16, 16) | (8, 32, 16) | (32, 8, 16));
    // The thin matrix of the oblong shapes, the long one, and the square.
    let by_shape = |thin, square, long| match (shape.0, first) {
        (16, _) => square,
        (8, true) | (32, false) => thin,
        _ => long,
    };
    match ty {
        F16 if large => {
            if operand {
                8
            } else {
                4
            }
        }
        BF16 if large && operand => by_shape(2, 4, 8),
        U8 | S8 if large && operand => by_shape(1, 2, 4),
        TF32 if shape == (16, 16, 8) && operand => 4,
        F64 if shape == (8, 8, 4) => {
            if operand {
                1
            } else {
                2
            }
        }
        U4 | S4 if shape == (8, 8, 32) && operand => 1,
        B1 if shape == (8, 8, 128) && operand => 1,
        F32 if (large || shape == (16, 16, 8)) && !operand => 8,
        S32 if large && !operand => 8,
        S32 if matches!(shape, (8, 8, 32 | 128)) && !operand => 2,
        _ => 0,
    }
}

fn counted(m: &Modifiers<'_>, matrix: WmmaMatrix, ty: Type, shape: Shape) -> Lowered<usize> {
    match wmma_registers(matrix, ty, shape) {
        0 => Err(m.refuse(format!("no wmma fragment of type {} has this shape", crate::lower::types::name(ty)))),
        n => Ok(n),
    }
}

/// `wmma.load`, `wmma.store`, `wmma.mma`.
pub(super) fn wmma<'a>(b: &mut Body<'_, 'a>, i: &Instruction<'a>, m: &mut Modifiers<'a>) -> Lowered<Op> {
    b.require(i, "wmma", 70)?;
    let kind = m.need(&[("load", 0), ("store", 1), ("mma", 2)])?;
    if kind == 2 {
        return wmma_mma(b, i, m);
    }
    let matrix = if kind == 0 {
        m.need(&[("a", WmmaMatrix::A), ("b", WmmaMatrix::B), ("c", WmmaMatrix::C)])?
    } else {
        m.need(&[("d", WmmaMatrix::D)])?
    };
    m.expect("sync")?;
    m.expect("aligned")?;
    let (layout, shape) = (layout(m)?, shape(m)?);
    let space = m
        .choose(&[("global", Space::Global), ("shared", Space::Shared), ("shared::cta", Space::Shared)])
        .unwrap_or(Space::Generic);
    use Type::*;
    let ty = m.ty(&[F16, BF16, TF32, F32, F64, U8, S8, U4, S4, B1, S32])?;
    let count = counted(m, matrix, ty, shape)?;
    let narrow = ty.bits() < 8;
    if narrow && layout != if matrix == WmmaMatrix::A { Layout::Row } else { Layout::Col } {
        return Err(m.refuse("types below a byte take A by rows and B by columns"));
    }
    between(i, 2, 3)?;
    let (fragment, place) = if kind == 0 { (0, 1) } else { (1, 0) };
    let address = b.address(&i.operands[place], space)?;
    let stride = i.operands.get(2).map(|s| b.src(s, Type::U32)).transpose()?;
    let regs = b.dsts(&i.operands[fragment], count, register_type(ty))?;
    let moved = Box::new(WmmaMove { matrix, shape, layout, ty, space, address, stride, regs });
    Ok(if kind == 0 { Op::WmmaLoad(moved) } else { Op::WmmaStore(moved) })
}

fn wmma_mma<'a>(b: &mut Body<'_, 'a>, i: &Instruction<'a>, m: &mut Modifiers<'a>) -> Lowered<Op> {
    use Type::*;
    let bit_op = m.choose(&[("xor", false), ("and", true)]);
    if bit_op.is_some() {
        m.expect("popc")?;
    }
    m.expect("sync")?;
    m.expect("aligned")?;
    let (a_layout, b_layout) = (layout(m)?, layout(m)?);
    let shape = shape(m)?;
    let saturate = m.take("satfinite");
    let round = m.round();
    let mut types = Vec::new();
    while let Some(ty) = m.maybe_type() {
        types.push(ty);
    }
    let (d_type, a_type, b_type, c_type) = match types[..] {
        [d, c] => (d, F16, F16, c),
        [d, a, b, c] => (d, a, b, c),
        _ => return Err(m.refuse("'wmma.mma' takes two or four types")),
    };
    check_types(m, a_type, b_type, c_type, d_type, saturate, round)?;
    if a_type.bits() < 8 && (a_layout, b_layout) != (Layout::Row, Layout::Col) {
        return Err(m.refuse("types below a byte take A by rows and B by columns"));
    }
    if (a_type == B1) != bit_op.is_some() {
        return Err(m.refuse(".xor.popc or .and.popc goes with .b1, and only with it"));
    }
    let [d, a, bs, c] = exactly(i)?;
    let d = b.dsts(d, counted(m, WmmaMatrix::D, d_type, shape)?, register_type(d_type))?;
    let a = b.srcs(a, counted(m, WmmaMatrix::A, a_type, shape)?, register_type(a_type))?;
    let bs = b.srcs(bs, counted(m, WmmaMatrix::B, b_type, shape)?, register_type(b_type))?;
    let c = b.srcs(c, counted(m, WmmaMatrix::C, c_type, shape)?, register_type(c_type))?;
    let (and_popc, round) = (bit_op == Some(true), round.unwrap_or(Round::Near));
    Ok(Op::Mma(Box::new(Mma {
        shape,
        a_layout,
        b_layout,
        a_type,
        b_type,
        c_type,
        d_type,
        saturate,
        and_popc,
        wmma: true,
        round,
        d,
        a,
        b: bs,
        c,
        sparse: None,
    })))
}
