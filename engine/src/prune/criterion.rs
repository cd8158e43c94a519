//! What scores an entry.

use std::fmt;
use std::str::FromStr;

use rand_chacha::rand_core::Rng;

use crate::model::named_rng;

/// A pruning criterion: the entries with the lowest scores go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Criterion {
    /// |w|.
    Magnitude,
    /// Uniform in (0, 1], seeded by the run and the tensor's name; zero for entries that are zero already.
    Random,
}

impl Criterion {
    /// All criteria.
    pub const ALL: [Criterion; 2] = [Criterion::Magnitude, Criterion::Random];

    /// The name users give.
    pub fn name(self) -> &'static str {
        match self {
            Criterion::Magnitude => "magnitude",
            Criterion::Random => "random",
        }
    }

    /// Turns weights into scores, none of them negative.
    pub(super) fn score(self, weights: &mut [f32], tensor: &str, seed: u64) {
        match self {
            Criterion::Magnitude => weights.iter_mut().for_each(|w| *w = w.abs()),
            Criterion::Random => {
                let mut rng = named_rng(seed, tensor);
                for w in weights {
                    let score = ((rng.next_u32() >> 8) + 1) as f32 / (1 << 24) as f32;
                    *w = if *w == 0.0 { 0.0 } else { score };
                }
            }
        }
    }
}

impl fmt::Display for Criterion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Criterion {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Criterion, String> {
        Criterion::ALL.into_iter().find(|criterion| criterion.name() == name).ok_or_else(|| {
            format!("unknown criterion '{name}': one of {}", Criterion::ALL.map(Criterion::name).join(", "))
        })
    }
}
