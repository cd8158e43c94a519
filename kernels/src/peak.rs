//! What this machine can do at most: the bounds that a kernel's time is held against. Measured of a processor; of a GPU from its
//! clocks, as its data sheet has it.

use std::hint::black_box;
use std::time::Instant;

use rayon::prelude::*;

use crate::device::{CudaResult, Gpu};
use crate::simd::Isa;
use crate::tile::Tile;

/// What all threads together can do, or a GPU.
#[derive(Clone, Copy, Debug)]
pub struct Peak {
    /// Operations a second, in f32 or on a GPU's tensor cores; a multiply-add is two.
    pub flops: f64,
    /// Bytes a second between the threads and memory: a ← b + s·c over arrays that no cache holds (STREAM's triad, which
    /// counts three arrays).
    pub bandwidth: f64,
}

/// Measurements, of which the best counts: whatever else runs on the machine only ever slows one down.
const TRIALS: usize = 7;

impl Peak {
    /// A GPU's.
    ///
    /// # Errors
    /// The driver's.
    pub fn of(gpu: &Gpu) -> CudaResult<Peak> {
        Ok(Peak { flops: gpu.peak_flops()?, bandwidth: gpu.peak_bandwidth()? })
    }

    /// Measures for about half a second.
    pub fn measure(isa: Isa) -> Peak {
        Peak { flops: best(|| multiply_adds(isa)), bandwidth: best(triad()) }
    }
}

fn best(mut measure: impl FnMut() -> f64) -> f64 {
    (0..TRIALS).map(|_| measure()).fold(0.0, f64::max)
}

/// The dense micro-kernel on operands that the first-level cache holds: its registers, and nothing else, are the limit.
fn multiply_adds(isa: Isa) -> f64 {
    const DEPTH: usize = 128;
    const ROUNDS: usize = 20_000;
    let tile = Tile::of(isa);
    let start = Instant::now();
    rayon::broadcast(|_| {
        let (a, b) = (vec![0.5f32; DEPTH * tile.mr], vec![0.5f32; DEPTH * tile.nr]);
        let mut c = vec![0.0f32; tile.mr * tile.nr];
        for _ in 0..ROUNDS {
            tile.multiply(DEPTH, black_box(&a), black_box(&b), &mut c, false);
        }
        black_box(c);
    });
    let operations = 2 * DEPTH * tile.mr * tile.nr * ROUNDS * rayon::current_num_threads();
    operations as f64 / start.elapsed().as_secs_f64()
}

/// A measurement of the triad that allocates once.
fn triad() -> impl FnMut() -> f64 {
    /// Elements of each array: 64 MiB, more than any cache.
    const LEN: usize = 16 << 20;
    /// Elements that a thread takes at a time.
    const CHUNK: usize = 1 << 18;
    let (mut a, b, c) = (vec![0.0f32; LEN], vec![1.0f32; LEN], vec![2.0f32; LEN]);
    move || {
        let start = Instant::now();
        let factor = black_box(3.0f32);
        a.par_chunks_mut(CHUNK).zip(b.par_chunks(CHUNK)).zip(c.par_chunks(CHUNK)).for_each(|((a, b), c)| {
            a.iter_mut().zip(b).zip(c).for_each(|((a, b), c)| *a = b + factor * c);
        });
        black_box(&a);
        (3 * 4 * LEN) as f64 / start.elapsed().as_secs_f64()
    }
}
