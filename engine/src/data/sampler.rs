//! The order of training windows.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::error::{Error, Result};
use crate::model::named_rng;

/// Where a sampler stands: all that is needed to go on from there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SamplerPosition {
    /// Whole passes over the windows that are done.
    pub epoch: u64,
    /// Windows of the current pass that are done.
    pub index: usize,
}

/// Draws windows without replacement: each epoch is a new permutation of all of them, and depends on nothing but the
/// seed and the epoch's number. A batch may span two epochs.
#[derive(Clone, Debug)]
pub struct TrainSampler {
    seed: u64,
    order: Vec<usize>,
    position: SamplerPosition,
}

impl TrainSampler {
    /// A sampler over windows 0 .. `windows`.
    ///
    /// # Errors
    /// [`Error::Position`] if there are none.
    pub fn new(windows: usize, seed: u64) -> Result<TrainSampler> {
        TrainSampler::resume(windows, seed, SamplerPosition::default())
    }

    /// A sampler that goes on where one with the same windows and seed stood.
    ///
    /// # Errors
    /// [`Error::Position`] if the position lies outside the windows.
    pub fn resume(windows: usize, seed: u64, position: SamplerPosition) -> Result<TrainSampler> {
        if position.index >= windows {
            return Err(Error::Position { index: position.index, windows });
        }
        Ok(TrainSampler { seed, order: permutation(windows, seed, position.epoch), position })
    }

    /// The numbers of the next `batch` windows.
    pub fn next_batch(&mut self, batch: usize) -> Vec<usize> {
        (0..batch).map(|_| self.next_window()).collect()
    }

    /// Where it stands.
    pub fn position(&self) -> SamplerPosition {
        self.position
    }

    fn next_window(&mut self) -> usize {
        let window = self.order[self.position.index];
        self.position.index += 1;
        if self.position.index == self.order.len() {
            self.position = SamplerPosition { epoch: self.position.epoch + 1, index: 0 };
            self.order = permutation(self.order.len(), self.seed, self.position.epoch);
        }
        window
    }
}

/// `count` different windows of 0 .. `windows`, or all where there are no more, ascending; drawn uniformly from the seed.
pub fn sample(windows: usize, count: usize, seed: u64) -> Vec<usize> {
    let mut rng = named_rng(seed, "validation");
    // Floyd's algorithm: each j of the last `count` brings itself where what is drawn below it is there already.
    let mut drawn = std::collections::BTreeSet::new();
    for j in windows.saturating_sub(count)..windows {
        let below = ((u128::from(rng.next_u64()) * (j as u128 + 1)) >> 64) as usize;
        if !drawn.insert(below) {
            drawn.insert(j);
        }
    }
    drawn.into_iter().collect()
}

/// A uniform permutation of 0 .. `n` (Fisher–Yates). The generator and the draws are fixed here, so that a seed means
/// the same order on every machine and in every later version.
fn permutation(n: usize, seed: u64, epoch: u64) -> Vec<usize> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(epoch);
    let mut order: Vec<usize> = (0..n).collect();
    for i in (1..n).rev() {
        // The high half of a 128-bit product: uniform over 0 ..= i up to a bias of (i+1)/2⁶⁴.
        let j = (u128::from(rng.next_u64()) * (i as u128 + 1)) >> 64;
        order.swap(i, j as usize);
    }
    order
}
