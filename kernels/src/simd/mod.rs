//! Vector code that is written once and compiled for each instruction set.
//!
//! [`simd_fn!`](crate::simd_fn) compiles a function body for AVX-512, AVX2 and the portable baseline and picks one at run
//! time. Inside, [`F32x16`] is sixteen f32 lanes whose operations the compiler turns into one 512-bit, two 256-bit or four
//! 128-bit instructions. Every body sums in the same order on each instruction set; results differ only by whether a
//! multiply-add rounds once or twice.

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
mod half;
mod lanes;
mod scale;
mod transpose;

use std::sync::OnceLock;

pub use self::half::{Widen, widen_bf16, widen_f16};
pub use lanes::{F32x16, LANES, madd};
pub use scale::{scale_block, scale_block_from};
#[cfg(target_arch = "x86_64")]
pub(crate) use transpose::turn;
pub use transpose::{transpose, transpose_into};

/// An instruction set of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// What every target has.
    Portable,
    /// AVX2 with FMA, F16C, BMI1 and POPCNT.
    Avx2,
    /// AVX-512 F, BW, DQ and VL, and all that AVX2 stands for.
    Avx512,
    /// Matrix tiles of bf16, and all that AVX-512 stands for.
    Amx,
}

impl Isa {
    /// The best that this machine has. `PERP_ENGINE_ISA=portable|avx2|avx512|amx` asks for less.
    pub fn best() -> Isa {
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(|| {
            let wanted = match std::env::var("PERP_ENGINE_ISA").as_deref() {
                Ok("portable") => Isa::Portable,
                Ok("avx2") => Isa::Avx2,
                Ok("avx512") => Isa::Avx512,
                _ => Isa::Amx,
            };
            Isa::available().into_iter().filter(|isa| *isa <= wanted).max().unwrap_or(Isa::Portable)
        })
    }

    /// All that this machine has, from the plainest; tests run each.
    pub fn available() -> Vec<Isa> {
        let mut all = vec![Isa::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c")
                && is_x86_feature_detected!("bmi1")
                && is_x86_feature_detected!("popcnt");
            if avx2 {
                all.push(Isa::Avx2);
            }
            if avx2
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
            {
                all.push(Isa::Avx512);
                // Where there are none, tests have a model of tiles.
                if amx::available() || cfg!(test) {
                    all.push(Isa::Amx);
                }
            }
        }
        all
    }

    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
            Isa::Amx => "amx",
        }
    }

    /// True where the instructions of AVX-512 may be used.
    pub fn has_avx512(self) -> bool {
        self >= Isa::Avx512
    }
}

/// The first `count` of sixteen lanes.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn lane_mask(count: usize) -> u16 {
    ((1u32 << count.min(LANES)) - 1) as u16
}

/// Asks for every cache line of `bytes` to come as far as the second level; changes nothing but how soon they can be read.
#[inline]
pub fn prefetch(bytes: &[u8]) {
    #[cfg(target_arch = "x86_64")]
    for line in bytes.chunks(64) {
        // SAFETY: every x86-64 has the instruction, and it never faults.
        unsafe { std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T1 }>(line.as_ptr().cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = bytes;
}

/// Compiles one body for every instruction set. The generated function takes the [`Isa`] first:
///
/// ```
/// use kernels::simd::Isa;
/// use kernels::simd_fn;
///
/// simd_fn! {
///     /// x *= a
///     pub fn scale(x: &mut [f32], a: f32) {
///         for x in x {
///             *x *= a;
///         }
///     }
/// }
///
/// let mut x = [1.0, 2.0];
/// scale(Isa::best(), &mut x, 3.0);
/// assert_eq!(x, [3.0, 6.0]);
/// ```
///
/// One type parameter with one bound is possible. In the body the constant `FMA` says whether multiply-adds fuse; pass it on to [`madd`] and the methods of [`F32x16`].
#[macro_export]
macro_rules! simd_fn {
    ($(#[$meta:meta])* $vis:vis fn $name:ident $(<$t:ident: $bound:path>)? ($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        $vis fn $name $(<$t: $bound>)? (isa: $crate::simd::Isa, $($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            #[allow(unused_mut)]
            fn generic<const FMA: bool $(, $t: $bound)?>($($arg: $ty),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi1,popcnt")]
            fn avx512 $(<$t: $bound>)? ($($arg: $ty),*) $(-> $ret)? { generic::<true $(, $t)?>($($arg),*) }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c,bmi1,popcnt")]
            fn avx2 $(<$t: $bound>)? ($($arg: $ty),*) $(-> $ret)? { generic::<true $(, $t)?>($($arg),*) }

            match isa {
                // SAFETY: both are only made where the machine has these features.
                #[cfg(target_arch = "x86_64")]
                $crate::simd::Isa::Avx512 | $crate::simd::Isa::Amx => unsafe { avx512($($arg),*) },
                // SAFETY: `Isa::Avx2` is only made where the machine has these features.
                #[cfg(target_arch = "x86_64")]
                $crate::simd::Isa::Avx2 => unsafe { avx2($($arg),*) },
                _ => generic::<false $(, $t)?>($($arg),*),
            }
        }
    };
}
