//! Sixteen f32 lanes.

/// The number of lanes of [`F32x16`].
pub const LANES: usize = 16;

/// a·b + c, in one rounding where `FMA` says that the target has the instruction. (Without it `f32::mul_add` would call
/// the C library once a lane.)
#[inline(always)]
pub fn madd<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// Sixteen f32 lanes; every method works on all lanes at once.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct F32x16(pub [f32; LANES]);

macro_rules! lanewise {
    ($($(#[$meta:meta])* $name:ident($a:ident $(, $b:ident)?) => $e:expr;)*) => { $(
        $(#[$meta])*
        #[inline(always)]
        pub fn $name(self $(, $b: F32x16)?) -> F32x16 {
            let mut out = self.0;
            for (lane, out) in out.iter_mut().enumerate() {
                let $a = self.0[lane];
                $(let $b = $b.0[lane];)?
                *out = $e;
            }
            F32x16(out)
        }
    )* };
}

// Methods rather than operators: a chain such as `a.mul(b).madd::<FMA>(c, d)` reads in one direction.
#[allow(clippy::should_implement_trait)]
impl F32x16 {
    /// All lanes zero.
    pub const ZERO: F32x16 = F32x16([0.0; LANES]);

    /// All lanes `x`.
    #[inline(always)]
    pub fn splat(x: f32) -> F32x16 {
        F32x16([x; LANES])
    }

    /// The first sixteen elements.
    #[inline(always)]
    pub fn load(x: &[f32]) -> F32x16 {
        F32x16(x[..LANES].try_into().expect("sixteen elements"))
    }

    /// Up to sixteen elements; the lanes past the end are `fill`.
    #[inline(always)]
    pub fn load_partial(x: &[f32], fill: f32) -> F32x16 {
        let mut lanes = [fill; LANES];
        if x.is_empty() {
            return F32x16(lanes); // What is left of most rows, for which nothing need be called.
        }
        let n = x.len().min(LANES);
        lanes[..n].copy_from_slice(&x[..n]);
        F32x16(lanes)
    }

    /// Writes sixteen elements.
    #[inline(always)]
    pub fn store(self, x: &mut [f32]) {
        x[..LANES].copy_from_slice(&self.0);
    }

    /// Writes as many lanes as `x` has room for.
    #[inline(always)]
    pub fn store_partial(self, x: &mut [f32]) {
        let n = x.len().min(LANES);
        x[..n].copy_from_slice(&self.0[..n]);
    }

    lanewise! {
        /// self + b
        add(a, b) => a + b;
        /// self − b
        sub(a, b) => a - b;
        /// self · b
        mul(a, b) => a * b;
        /// self / b
        div(a, b) => a / b;
        /// The larger of each pair.
        max(a, b) => if a > b { a } else { b };
        /// The smaller of each pair.
        min(a, b) => if a < b { a } else { b };
        /// √self
        sqrt(a) => a.sqrt();
    }

    /// self · b + c
    #[inline(always)]
    pub fn madd<const FMA: bool>(self, b: F32x16, c: F32x16) -> F32x16 {
        let mut out = c.0;
        for (lane, out) in out.iter_mut().enumerate() {
            *out = madd::<FMA>(self.0[lane], b.0[lane], *out);
        }
        F32x16(out)
    }

    /// The sum of all lanes, pairwise.
    #[inline(always)]
    pub fn sum(self) -> f32 {
        let mut x = self.0;
        let mut width = LANES / 2;
        while width > 0 {
            for i in 0..width {
                x[i] += x[i + width];
            }
            width /= 2;
        }
        x[0]
    }

    /// The largest lane.
    #[inline(always)]
    pub fn largest(self) -> f32 {
        let mut x = self.0;
        let mut width = LANES / 2;
        while width > 0 {
            for i in 0..width {
                x[i] = if x[i] > x[i + width] { x[i] } else { x[i + width] };
            }
            width /= 2;
        }
        x[0]
    }

    /// eˣ to within 2 units in the last place. Underflows to zero below −87.3 and saturates to the largest power above 88.
    ///
    /// x = n·ln 2 + r with |r| ≤ ln 2 / 2; eʳ by its Taylor polynomial of degree 7, whose remainder is below
    /// (ln 2 / 2)⁸ / 8! ≈ 5e-9, less than half a unit in the last place of a number near 1.
    #[inline(always)]
    pub fn exp<const FMA: bool>(self) -> F32x16 {
        const LN2_HIGH: f32 = 0.693_359_4;
        const LN2_LOW: f32 = -2.121_944_4e-4;
        /// Adding 1.5·2²³ rounds to the nearest integer, which then stands in the low bits of the sum.
        const ROUND: f32 = 12_582_912.0;
        let mut out = [0.0; LANES];
        for (lane, out) in out.iter_mut().enumerate() {
            let x = self.0[lane];
            let clamped = if x < -87.3 { -87.3 } else { x };
            let clamped = if clamped > 88.0 { 88.0 } else { clamped };
            let rounded = madd::<FMA>(clamped, std::f32::consts::LOG2_E, ROUND);
            let n = rounded - ROUND;
            let r = madd::<FMA>(n, -LN2_HIGH, clamped);
            let r = madd::<FMA>(n, -LN2_LOW, r);
            let mut p = 1.0 / 5040.0;
            for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
                p = madd::<FMA>(p, r, c);
            }
            // 2ⁿ. (`n as i32` would saturate, and so be compiled to a scalar conversion for each lane.)
            let scale = f32::from_bits(rounded.to_bits().wrapping_add(127) << 23);
            *out = if x < -87.3 { 0.0 } else { p * scale };
        }
        F32x16(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::Isa;
    use crate::simd_fn;

    simd_fn! {
        fn exp_all(x: &mut [f32]) {
            for x in x.chunks_mut(LANES) {
                F32x16::load_partial(x, 0.0).exp::<FMA>().store_partial(x);
            }
        }
    }

    #[test]
    fn exp_is_within_two_ulps_on_every_instruction_set() {
        let inputs: Vec<f32> = (0..200_001).map(|i| -87.0 + i as f32 * (175.0 / 200_000.0)).collect();
        for isa in Isa::available() {
            let mut got = inputs.clone();
            exp_all(isa, &mut got);
            for (x, got) in inputs.iter().zip(got) {
                let want = f64::from(*x).exp();
                let ulp = f64::from(f32::from_bits((want as f32).to_bits() + 1) - want as f32);
                assert!((f64::from(got) - want).abs() <= 2.0 * ulp, "exp({x}) = {got}, not {want} on {isa:?}");
            }
        }
    }

    #[test]
    fn exp_of_minus_infinity_is_zero() {
        for isa in Isa::available() {
            let mut x = [f32::NEG_INFINITY, -1e30, -88.0, 0.0];
            exp_all(isa, &mut x);
            assert_eq!(x, [0.0, 0.0, 0.0, 1.0]);
        }
    }
}
