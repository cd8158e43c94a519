//! Matrix tiles: AMX multiplies 16×32 bf16 by 32×16 and adds to 16×16 f32, sixteen times what AVX-512 does of f32 in as long.
//!
//! A bf16 has 8 significant bits and the exponents of an f32. So an f32 (24 bits) is the sum of three bf16, its *parts*, and
//! an f16 (11 bits) of two, both exactly: each part is what the ones before it leave, rounded to the nearest. A product of two
//! parts is exact in f32; part i is at most 2⁻⁸ⁱ of the number. (Henry, Tang and Heinecke, “Leveraging the bfloat16 Artificial
//! Intelligence Datatype For Higher-Precision Computations”, 2019.) What is multiplied depends on A, a weight:
//!
//! * f32: three parts of either, and the six products of parts i and j with i + j ≤ 2. The others are at most 2⁻²⁴ of the whole
//!   product each, what an f32 rounds to.
//! * f16 and bf16, weights that their files have in 16 bits: all parts of it, two or one, and two of B, which so keeps 16 bits
//!   or more as well. Products with i + j ≤ 1, three or two, make the whole product to 2⁻¹⁵, and mostly to 2⁻¹⁷; errors fall
//!   either way, so a sum of a thousand terms has them at 2⁻²⁰ of its terms' magnitudes.
//!
//! The instructions take what is smaller than 2⁻¹²⁶ for zero. Infinities have no parts: whoever cuts them finds NaN.

use std::arch::asm;
use std::arch::x86_64::{
    __m512, __m512i, _MM_CMPINT_NLT, _mm512_add_epi32, _mm512_and_si512, _mm512_castps_si512, _mm512_castsi512_ps,
    _mm512_cmp_epu32_mask, _mm512_mask_blend_epi16, _mm512_permutex2var_epi16, _mm512_set1_epi32, _mm512_slli_epi32,
    _mm512_srli_epi32, _mm512_storeu_si512, _mm512_sub_ps,
};

/// Rows of every tile: of C, of A, and pairs of rows of B.
pub const SIDE: usize = 16;
/// Columns of a tile of A and rows of one of B: what one instruction sums over.
pub const DEPTH: usize = 32;
/// bf16 of a tile.
pub const TILE: usize = SIDE * DEPTH;
/// Parts of an f32.
pub const PARTS: usize = 3;

/// Parts of B where A has so many.
pub const fn parts_beside(parts: usize) -> usize {
    if parts == PARTS { PARTS } else { 2 }
}

/// Products of parts that are multiplied where A has so many.
pub const fn products(parts: usize) -> usize {
    [2, 3, 6][parts - 1]
}

/// Whether this machine has the instructions and the system lets the process use them, for which it must be asked once.
pub fn available() -> bool {
    const AMX_BF16: u32 = 1 << 22;
    const AMX_TILE: u32 = 1 << 24;
    if std::arch::x86_64::__cpuid(0).eax < 7 {
        return false;
    }
    let features = std::arch::x86_64::__cpuid_count(7, 0).edx;
    features & (AMX_BF16 | AMX_TILE) == AMX_BF16 | AMX_TILE && permitted()
}

#[cfg(target_os = "linux")]
fn permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: the call takes two numbers and touches no memory of the process.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}

/// While it lives, this thread's tile registers are eight tiles of 16 rows of 64 bytes.
#[derive(Debug)]
pub struct Configured {
    /// The registers belong to the thread.
    not_send: std::marker::PhantomData<*const ()>,
}

/// The operand of LDTILECFG.
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl Configured {
    /// # Safety
    /// On a machine where these are [`available`]; no other lives on this thread.
    pub unsafe fn new() -> Configured {
        let mut config = Config { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        config.row_bytes[..8].fill(64);
        config.rows[..8].fill(SIDE as u8);
        #[cfg(test)]
        if model::needed() {
            return Configured { not_send: std::marker::PhantomData };
        }
        // SAFETY: the instruction reads the 64 bytes of `config`; the caller vouches for the machine.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const config, options(nostack, readonly)) };
        Configured { not_send: std::marker::PhantomData }
    }
}

impl Drop for Configured {
    fn drop(&mut self) {
        #[cfg(test)]
        if model::needed() {
            return;
        }
        // SAFETY: the registers were configured on this thread, and no one else uses them.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}

/// What is asked for before it is needed. Nothing of it is read: any address will do.
#[derive(Clone, Copy, Debug)]
pub struct Ahead {
    /// The tiles of C that are multiplied next, as far apart as those of now.
    pub c: *const f32,
    /// Tiles that are multiplied later, [`AHEAD`] bytes for each step.
    pub operand: *const u16,
}

/// Bytes of operands that each step asks for.
pub const AHEAD: usize = 11 * 64;

/// Asks for two rows of the next tiles of C, which are written, and for operands into the second-level cache.
macro_rules! ask {
    () => {
        "prefetchw [{c}]\nprefetchw [{c} + 64]\nprefetchw [{c} + {to_stride}]\nprefetchw [{c} + {to_stride} + 64]\n\
         lea {c}, [{c} + 2*{to_stride}]\n\
         prefetcht1 [{operand}]\nprefetcht1 [{operand} + 64]\nprefetcht1 [{operand} + 128]\n\
         prefetcht1 [{operand} + 192]\nprefetcht1 [{operand} + 256]\nprefetcht1 [{operand} + 320]\n\
         prefetcht1 [{operand} + 384]\nprefetcht1 [{operand} + 448]\nprefetcht1 [{operand} + 512]\n\
         prefetcht1 [{operand} + 576]\nprefetcht1 [{operand} + 640]\nadd {operand}, 704"
    };
}

/// A kernel that holds a few tiles of C: `$load` brings them, `$step` adds a step to them, `$store` takes them away. `$a` and
/// `$b` are the bytes of a step. Between the steps' loads of the second-level cache there is time to [ask](Ahead) for what
/// lies further away.
macro_rules! kernel {
    ($name:ident, $load:literal, $step:expr, $store:literal, $a:literal, $b:literal) => {
        #[inline]
        unsafe fn $name(
            steps: usize,
            (a, b): (*const u16, *const u16),
            from: (*const f32, usize),
            to: (*mut f32, usize),
            ahead: Ahead,
        ) {
            // SAFETY: the caller's; the tile registers are not the compiler's to keep anything in.
            unsafe {
                asm!(
                    $load,
                    "2:",
                    ask!(),
                    $step,
                    concat!("add {a}, ", $a),
                    concat!("add {b}, ", $b),
                    "dec {steps}",
                    "jnz 2b",
                    $store,
                    steps = inout(reg) steps => _,
                    a = inout(reg) a => _,
                    b = inout(reg) b => _,
                    from = in(reg) from.0,
                    from_lower = in(reg) from.0.wrapping_add(SIDE * from.1),
                    from_stride = in(reg) from.1 * 4,
                    to = in(reg) to.0,
                    to_lower = in(reg) to.0.wrapping_add(SIDE * to.1),
                    to_stride = in(reg) to.1 * 4,
                    c = inout(reg) ahead.c => _,
                    operand = inout(reg) ahead.operand => _,
                    line = in(reg) 64usize,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                );
            }
        }
    };
}

/// Tiles of A, two below each other, `$offset` bytes into the step.
macro_rules! a {
    ($offset:literal) => {
        concat!(
            "tileloadd tmm4, [{a} + {line}*1 + ",
            $offset,
            "]\ntileloadd tmm5, [{a} + {line}*1 + ",
            $offset,
            " + 1024]\n"
        )
    };
}

/// 32×32 of C: tiles of B, two beside each other, and their products with those of A.
macro_rules! wide {
    ($name:ident, $a:literal, $b:literal, $step:expr) => {
        kernel!(
            $name,
            "tileloadd tmm0, [{from} + {from_stride}*1]\ntileloadd tmm1, [{from} + {from_stride}*1 + 64]\n\
             tileloadd tmm2, [{from_lower} + {from_stride}*1]\ntileloadd tmm3, [{from_lower} + {from_stride}*1 + 64]",
            $step,
            "tilestored [{to} + {to_stride}*1], tmm0\ntilestored [{to} + {to_stride}*1 + 64], tmm1\n\
             tilestored [{to_lower} + {to_stride}*1], tmm2\ntilestored [{to_lower} + {to_stride}*1 + 64], tmm3",
            $a,
            $b
        );
    };
    (b $offset:literal) => {
        concat!("tileloadd tmm6, [{b} + {line}*1 + ", $offset, "]\ntileloadd tmm7, [{b} + {line}*1 + ", $offset, " + 1024]\n")
    };
    (products) => {
        "tdpbf16ps tmm0, tmm4, tmm6\ntdpbf16ps tmm1, tmm4, tmm7\ntdpbf16ps tmm2, tmm5, tmm6\ntdpbf16ps tmm3, tmm5, tmm7\n"
    };
}

/// 32×16 of C.
macro_rules! narrow {
    ($name:ident, $a:literal, $b:literal, $step:expr) => {
        kernel!(
            $name,
            "tileloadd tmm0, [{from} + {from_stride}*1]\ntileloadd tmm2, [{from_lower} + {from_stride}*1]",
            $step,
            "tilestored [{to} + {to_stride}*1], tmm0\ntilestored [{to_lower} + {to_stride}*1], tmm2",
            $a,
            $b
        );
    };
    (b $offset:literal) => {
        concat!("tileloadd tmm6, [{b} + {line}*1 + ", $offset, "]\n")
    };
    (products) => {
        "tdpbf16ps tmm0, tmm4, tmm6\ntdpbf16ps tmm2, tmm5, tmm6\n"
    };
}

// The parts of B go from the last to the first, which then meets the other parts of A: what is small is added first, and little
// is loaded twice.
wide!(wide_1, "2048", "4096", concat!(a!("0"), wide!(b "2048"), wide!(products), wide!(b "0"), wide!(products)));
wide!(
    wide_2,
    "4096",
    "4096",
    concat!(a!("0"), wide!(b "2048"), wide!(products), wide!(b "0"), wide!(products), a!("2048"), wide!(products))
);
wide!(
    wide_3,
    "6144",
    "6144",
    concat!(
        a!("0"),
        wide!(b "4096"),
        wide!(products),
        wide!(b "2048"),
        wide!(products),
        wide!(b "0"),
        wide!(products),
        a!("4096"),
        wide!(products),
        a!("2048"),
        wide!(products),
        wide!(b "2048"),
        wide!(products)
    )
);
narrow!(
    narrow_1,
    "2048",
    "2048",
    concat!(a!("0"), narrow!(b "1024"), narrow!(products), narrow!(b "0"), narrow!(products))
);
narrow!(
    narrow_2,
    "4096",
    "2048",
    concat!(
        a!("0"),
        narrow!(b "1024"),
        narrow!(products),
        narrow!(b "0"),
        narrow!(products),
        a!("2048"),
        narrow!(products)
    )
);
narrow!(
    narrow_3,
    "6144",
    "3072",
    concat!(
        a!("0"),
        narrow!(b "2048"),
        narrow!(products),
        narrow!(b "1024"),
        narrow!(products),
        narrow!(b "0"),
        narrow!(products),
        a!("4096"),
        narrow!(products),
        a!("2048"),
        narrow!(products),
        narrow!(b "1024"),
        narrow!(products)
    )
);

/// C `[32, 16·beside]` = S + A `[32, 32·steps]` · B `[32·steps, 16·beside]`, `beside` 1 or 2. S is what `from` points to, with
/// rows so many elements apart, and C goes `to` where it may be S. A is cut into `parts` parts and B into
/// [as many as that needs](parts_beside); each step of 32 has part after part, and of each part the tiles of A below each other ([`cut_row`]), those of B beside each other
/// ([`cut_pair`]).
///
/// # Safety
/// The thread is [`Configured`], S and C lie where `from` and `to` say, and `a` and `b` point to all tiles of as many steps, one
/// at least.
pub unsafe fn multiply(
    _: &Configured,
    (parts, beside): (usize, usize),
    steps: usize,
    (a, b): (*const u16, *const u16),
    from: (*const f32, usize),
    to: (*mut f32, usize),
    ahead: Ahead,
) {
    debug_assert!(steps > 0);
    #[cfg(test)]
    if model::needed() {
        // SAFETY: the caller's.
        return unsafe { model::multiply((parts, beside), steps, (a, b), from, to) };
    }
    // SAFETY: the caller's.
    unsafe {
        match (parts, beside) {
            (1, 2) => wide_1(steps, (a, b), from, to, ahead),
            (2, 2) => wide_2(steps, (a, b), from, to, ahead),
            (3, 2) => wide_3(steps, (a, b), from, to, ahead),
            (1, 1) => narrow_1(steps, (a, b), from, to, ahead),
            (2, 1) => narrow_2(steps, (a, b), from, to, ahead),
            (3, 1) => narrow_3(steps, (a, b), from, to, ahead),
            _ => unreachable!("a number has one to three parts, and one or two tiles stand beside each other"),
        }
    }
}

/// The bits of each f32 rounded to a bf16, half away from zero, in the upper half; what they leave is below.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn rounded(x: __m512) -> __m512i {
    _mm512_add_epi32(_mm512_castps_si512(x), _mm512_set1_epi32(0x8000))
}

/// x without the part that [`rounded`] has of it: exact, for both are multiples of the last bit of x.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn rest(x: __m512, rounded: __m512i) -> __m512 {
    let part = _mm512_and_si512(rounded, _mm512_set1_epi32(0xffff_0000u32 as i32));
    _mm512_sub_ps(x, _mm512_castsi512_ps(part))
}

/// Cuts the 32 numbers of a row of A into `parts` parts, whose rows of tiles are `apart` bf16 apart.
///
/// # Safety
/// On a machine with AVX-512 F and BW; `to` has room for the row of each part.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub unsafe fn cut_row(parts: usize, mut left: __m512, mut right: __m512, to: *mut u16, apart: usize) {
    /// The upper halves of 32 words, in order.
    const UPPER: [u16; 32] = {
        let mut index = [0; 32];
        let mut i = 0;
        while i < 32 {
            index[i] = 2 * i as u16 + 1;
            i += 1;
        }
        index
    };
    // SAFETY: both are 64 bytes.
    let upper = unsafe { std::mem::transmute::<[u16; 32], __m512i>(UPPER) };
    for part in 0..parts {
        let (l, r) = (rounded(left), rounded(right));
        // SAFETY: the caller's.
        unsafe { _mm512_storeu_si512(to.add(part * apart).cast(), _mm512_permutex2var_epi16(l, upper, r)) };
        (left, right) = (rest(left, l), rest(right, r));
    }
}

/// Cuts sixteen numbers of two rows of B into `parts` parts, pair by pair as tiles have them, `apart` bf16 apart. True if one
/// of them is not finite, or so large that its first part would not be.
///
/// # Safety
/// On a machine with AVX-512 F and BW; `to` has room for the row of each part.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub unsafe fn cut_pair(parts: usize, mut even: __m512, mut odd: __m512, to: *mut u16, apart: usize) -> bool {
    let beyond = |x: __m512| {
        // Without its sign: the least that rounds up to infinity, and all above it.
        let magnitude = _mm512_slli_epi32::<1>(_mm512_castps_si512(x));
        _mm512_cmp_epu32_mask::<_MM_CMPINT_NLT>(magnitude, _mm512_set1_epi32((0x7f7f_8000u32 << 1) as i32))
    };
    let found = beyond(even) | beyond(odd);
    for part in 0..parts {
        let (e, o) = (rounded(even), rounded(odd));
        let pairs = _mm512_mask_blend_epi16(0xaaaa_aaaa, _mm512_srli_epi32::<16>(e), o);
        // SAFETY: the caller's.
        unsafe { _mm512_storeu_si512(to.add(part * apart).cast(), pairs) };
        (even, odd) = (rest(even, e), rest(odd, o));
    }
    found != 0
}

/// What the kernels do, without tiles: so that all around them is tested on machines that have none.
#[cfg(test)]
mod model {
    use std::sync::OnceLock;

    use half::bf16;

    use super::{DEPTH, SIDE, TILE, parts_beside};

    pub fn needed() -> bool {
        static NEEDED: OnceLock<bool> = OnceLock::new();
        *NEEDED.get_or_init(|| !super::available())
    }

    /// # Safety
    /// As [`super::multiply`], without tile registers.
    pub unsafe fn multiply(
        (parts, beside): (usize, usize),
        steps: usize,
        (a, b): (*const u16, *const u16),
        from: (*const f32, usize),
        to: (*mut f32, usize),
    ) {
        // SAFETY: the caller's.
        let (a, b) = unsafe {
            (
                std::slice::from_raw_parts(a, steps * parts * 2 * TILE),
                std::slice::from_raw_parts(b, steps * parts_beside(parts) * beside * TILE),
            )
        };
        let number = |bits: &u16| bf16::from_bits(*bits).to_f32();
        for row in 0..2 * SIDE {
            for col in 0..beside * SIDE {
                // SAFETY: the caller's.
                let mut sum = unsafe { *from.0.add(row * from.1 + col) };
                for step in 0..steps {
                    let of_b = parts_beside(parts);
                    for (part_a, part_b) in (0..parts).flat_map(|a| (0..of_b - a).map(move |b| (a, b))) {
                        let a = &a[((step * parts + part_a) * 2 + row / SIDE) * TILE + row % SIDE * DEPTH..][..DEPTH];
                        let b = &b[((step * of_b + part_b) * beside + col / SIDE) * TILE..][..TILE];
                        for (k, a) in a.iter().enumerate() {
                            sum += number(a) * number(&b[k / 2 * DEPTH + 2 * (col % SIDE) + k % 2]);
                        }
                    }
                }
                // SAFETY: the caller's.
                unsafe { *to.0.add(row * to.1 + col) = sum };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    /// Sums of 384 products of numbers below ½, which either side rounds in its own order.
    #[test]
    fn tiles_multiply_as_their_model_does() {
        if model::needed() {
            return;
        }
        for (parts, beside) in (1..=PARTS).flat_map(|parts| [(parts, 1), (parts, 2)]) {
            let steps = 2;
            let numbers = |len: usize, seed: usize| -> Vec<u16> {
                let at = |i: usize| ((i * 7919 + seed) % 1009) as f32 / 1009.0 - 0.5;
                (0..len).map(|i| bf16::from_f32(at(i)).to_bits()).collect()
            };
            let (a, b) =
                (numbers(steps * parts * 2 * TILE, 3), numbers(steps * parts_beside(parts) * beside * TILE, 5));
            let from: Vec<f32> = (0..2 * SIDE * 40).map(|i| i as f32 / 100.0).collect();
            let (mut got, mut want) = (vec![0.0; 2 * SIDE * 36], vec![0.0; 2 * SIDE * 36]);
            // SAFETY: the machine has tiles, and all tiles and rows are there.
            unsafe {
                let configured = Configured::new();
                let (operands, from) = ((a.as_ptr(), b.as_ptr()), (from.as_ptr(), 40));
                let ahead = Ahead { c: got.as_ptr(), operand: b.as_ptr() };
                multiply(&configured, (parts, beside), steps, operands, from, (got.as_mut_ptr(), 36), ahead);
                model::multiply((parts, beside), steps, operands, from, (want.as_mut_ptr(), 36));
            }
            for (got, want) in got.iter().zip(&want) {
                assert!(
                    (got - want).abs() <= 384.0 * 2f32.powi(-24) * 100.0,
                    "{parts} parts, {beside} beside: {got}, {want}"
                );
            }
        }
    }

    #[test]
    fn parts_are_what_is_left_rounded() {
        if !std::arch::is_x86_feature_detected!("avx512bw") {
            return;
        }
        let numbers: [f32; 32] = std::array::from_fn(|i| {
            (1.0 + i as f32 / 31.7).powi(5 - i as i32 / 3) * if i % 2 == 0 { 1.0 } else { -1.0 }
        });
        let want = |part: usize, x: f32| {
            let rounded = |x: f32| f32::from_bits((x.to_bits() + 0x8000) & 0xffff_0000);
            let first = rounded(x);
            let second = rounded(x - first);
            let third = rounded(x - first - second);
            assert_eq!(x, first + second + third);
            bf16::from_f32([first, second, third][part]).to_bits()
        };
        let mut rows = [0u16; PARTS * DEPTH];
        let mut pairs = [0u16; PARTS * DEPTH];
        // SAFETY: the machine has AVX-512 F and BW, and both hold a row of each part.
        unsafe {
            let load = |at: usize| std::arch::x86_64::_mm512_loadu_ps(numbers.as_ptr().add(at));
            cut_row(PARTS, load(0), load(16), rows.as_mut_ptr(), DEPTH);
            assert!(!cut_pair(PARTS, load(0), load(16), pairs.as_mut_ptr(), DEPTH));
            let huge = std::arch::x86_64::_mm512_set1_ps(-3.4e38);
            assert!(cut_pair(PARTS, load(0), huge, [0u16; PARTS * DEPTH].as_mut_ptr(), DEPTH));
        }
        for part in 0..PARTS {
            for (i, x) in numbers.iter().enumerate() {
                assert_eq!(rows[part * DEPTH + i], want(part, *x), "{x}");
                assert_eq!(pairs[part * DEPTH + i % 16 * 2 + i / 16], want(part, *x), "{x}");
            }
        }
    }
}
