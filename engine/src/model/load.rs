//! Builds modules from a model folder, from random numbers, or from nothing (on Meta).

use std::cell::RefCell;
use std::sync::Arc;

use half::{bf16, f16};
use kernels::device::Element;
use kernels::weight::FrozenWeight;
use kernels::{Buffer, Category, DType, Device};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use rayon::prelude::*;

use super::{Embedding, Head, Linear, Norm, NormKind, Weight};
use crate::checkpoint::{ModelFolder, TensorInfo};
use crate::error::Result;
use crate::tensor::Param;

/// Where weights come from.
#[derive(Clone, Copy)]
pub enum Source<'a> {
    /// A Hugging Face model folder.
    Folder(&'a ModelFolder),
    /// A fresh model: weights from N(0, std²), biases 0, norms 1. Each tensor draws from its own stream, so that the
    /// order of loading does not matter.
    Random {
        /// The run's seed.
        seed: u64,
        /// The standard deviation.
        std: f64,
        /// The matrices' element type, f32 or a 16-bit one they are rounded to.
        dtype: DType,
    },
    /// No values, on Meta: the bytes of weights in this element type.
    Absent(DType),
}

/// The head's table.
const HEAD: &str = "lm_head.weight";

/// What is done with each linear layer as soon as it is loaded: pruned, say.
type OnLinear<'a> = Box<dyn FnMut(&mut Linear) -> Result<()> + 'a>;

/// Builds modules one at a time; what a caller does with a linear layer as it comes (prune, pack) is done before the next
/// one is loaded, so the dense model is never in memory whole.
pub struct Loader<'a> {
    device: Device,
    source: Source<'a>,
    on_linear: RefCell<Option<OnLinear<'a>>>,
    unpacks: bool,
}

impl<'a> Loader<'a> {
    /// A loader onto `device`.
    pub fn new(device: &Device, source: Source<'a>) -> Loader<'a> {
        Loader { device: device.clone(), source, on_linear: RefCell::new(None), unpacks: false }
    }

    /// Calls `run` with each linear layer inside decoder layers as it is loaded.
    pub fn on_linear(self, run: impl FnMut(&mut Linear) -> Result<()> + 'a) -> Loader<'a> {
        *self.on_linear.borrow_mut() = Some(Box::new(run));
        self
    }

    /// Loads the matrices of packed files dense, as those of all others: for who prunes them further, whose plan knows no
    /// packed matrix that is pruned. Without it they stay packed; on the CPU they are multiplied where they stand in the file.
    pub fn unpacked(self) -> Loader<'a> {
        Loader { unpacks: true, ..self }
    }

    /// The device modules are put on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// A linear layer at module path `name`: `name.weight` `[rows, cols]` and, where `bias` says so, `name.bias`.
    ///
    /// # Errors
    /// A missing tensor, a wrong shape or element type, no memory, or what the callback returns.
    pub fn linear(&self, name: &str, rows: usize, cols: usize, bias: bool, prunable: bool) -> Result<Arc<Linear>> {
        let mut linear = Linear {
            name: name.into(),
            weight: self.weight(&format!("{name}.weight"), rows, cols)?,
            bias: if bias { Some(self.param(&format!("{name}.bias"), rows, 0.0)?) } else { None },
            lora: None,
            prunable,
        };
        if prunable && let Some(run) = self.on_linear.borrow_mut().as_mut() {
            run(&mut linear)?;
        }
        Ok(Arc::new(linear))
    }

    /// A norm over `dim` features; LayerNorm has `name.bias` too.
    ///
    /// # Errors
    /// As [`Loader::linear`].
    pub fn norm(&self, kind: NormKind, name: &str, dim: usize, eps: f64) -> Result<Norm> {
        Ok(Norm {
            name: name.into(),
            kind,
            weight: self.param(&format!("{name}.weight"), dim, 1.0)?,
            bias: match kind {
                NormKind::Layer => Some(self.param(&format!("{name}.bias"), dim, 0.0)?),
                NormKind::Rms => None,
            },
            eps: eps as f32,
        })
    }

    /// An embedding of `rows` vectors of `cols` features.
    ///
    /// # Errors
    /// As [`Loader::linear`].
    pub fn embedding(&self, name: &str, rows: usize, cols: usize) -> Result<Embedding> {
        Ok(Embedding { name: name.into(), weight: Arc::new(self.weight(&format!("{name}.weight"), rows, cols)?) })
    }

    /// The embedding of tokens. Where the head's table is `tied` to it, files may have both under the head's name alone, as what drops
    /// doubles from PyTorch's files leaves them.
    ///
    /// # Errors
    /// As [`Loader::linear`].
    pub fn tokens(&self, name: &str, rows: usize, cols: usize, tied: bool) -> Result<Embedding> {
        let table = format!("{name}.weight");
        let stored = match self.source {
            Source::Folder(folder) if tied && !has(folder, &table) && has(folder, HEAD) => HEAD,
            _ => &table,
        };
        Ok(Embedding { name: name.into(), weight: Arc::new(self.weight(stored, rows, cols)?) })
    }

    /// The LM head: the embedding's table where `tied`, `lm_head.weight` otherwise.
    ///
    /// # Errors
    /// As [`Loader::linear`].
    pub fn head(&self, tied: bool, embedding: &Embedding) -> Result<Head> {
        let table = &embedding.weight;
        let weight = if tied { table.clone() } else { Arc::new(self.weight(HEAD, table.rows(), table.cols())?) };
        Ok(Head { name: "lm_head".into(), weight, tied, lora: None })
    }

    fn weight(&self, name: &str, rows: usize, cols: usize) -> Result<Weight> {
        let values = match self.source {
            Source::Folder(folder) => {
                let info = find(folder, name, &[rows, cols])?;
                if info.is_packed() && !self.unpacks {
                    return Ok(Weight::Frozen(info.load_weight(&self.device, Category::Weights)?));
                }
                info.load(&self.device, Category::Weights)?
            }
            Source::Random { seed, std, dtype } => {
                let mut values = self.device.alloc(Category::Weights, dtype, rows * cols)?;
                match dtype {
                    DType::F16 => fill_normal(seed, name, std, &mut values, f16::from_f32)?,
                    DType::BF16 => fill_normal(seed, name, std, &mut values, bf16::from_f32)?,
                    _ => fill_normal(seed, name, std, &mut values, |x: f32| x)?,
                }
                values
            }
            Source::Absent(dtype) => self.device.alloc(Category::Weights, dtype, rows * cols)?,
        };
        Ok(Weight::Frozen(FrozenWeight::dense(values, rows, cols)?))
    }

    fn param(&self, name: &str, len: usize, fresh: f32) -> Result<Arc<Param>> {
        let value: Buffer = match self.source {
            Source::Folder(folder) => find(folder, name, &[len])?.load_f32(&self.device, Category::Weights)?,
            Source::Random { .. } => self.device.upload(Category::Weights, &vec![fresh; len])?,
            Source::Absent(_) => self.device.alloc(Category::Weights, DType::F32, len)?,
        };
        Ok(Arc::new(Param::new(name, &[len], value)))
    }
}

/// The tensor under its name, or under the name that files of the bare decoder use (no leading `model.`).
pub(super) fn find<'a>(folder: &'a ModelFolder, name: &str, shape: &[usize]) -> Result<&'a TensorInfo> {
    Ok(folder.expect(bare(folder, name).unwrap_or(name), shape)?)
}

/// A name without its `model.`, where the file has the tensor so.
fn bare<'a>(folder: &ModelFolder, name: &'a str) -> Option<&'a str> {
    name.strip_prefix("model.").filter(|bare| folder.tensor(name).is_none() && folder.tensor(bare).is_some())
}

fn has(folder: &ModelFolder, name: &str) -> bool {
    folder.tensor(name).is_some() || bare(folder, name).is_some()
}

/// Numbers that one task draws: even, for they come in pairs.
const NORMALS: usize = 1 << 14;

/// N(0, std²) by Box and Muller's transform, from a stream of the seed and the tensor's name.
fn fill_normal<T: Element>(
    seed: u64,
    name: &str,
    std: f64,
    out: &mut Buffer,
    round: impl Fn(f32) -> T + Sync,
) -> kernels::Result<()> {
    out.fill(|out: &mut [T]| {
        out.par_chunks_mut(NORMALS).enumerate().for_each(|(index, chunk)| {
            let mut rng = named_rng(seed, name);
            // A pair of numbers takes two draws of 64 bits, so where a chunk begins in the stream is known.
            rng.set_word_pos((2 * NORMALS * index) as u128);
            let mut uniform = || (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
            for pair in chunk.chunks_mut(2) {
                let radius = std * (-2.0 * (1.0 - uniform()).ln()).sqrt();
                let angle = std::f64::consts::TAU * uniform();
                pair[0] = round((radius * angle.cos()) as f32);
                if let Some(second) = pair.get_mut(1) {
                    *second = round((radius * angle.sin()) as f32);
                }
            }
        });
        Ok(())
    })
}

/// A random stream of its own for each seed and name.
pub(crate) fn named_rng(seed: u64, name: &str) -> ChaCha8Rng {
    // FNV-1a spreads names over streams; a collision would only make two tensors share their noise.
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(hash);
    rng
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_weights_are_one_stream_however_many_tasks_draw_it() {
        let (len, std) = (2 * NORMALS + 3, 0.02);
        let mut buffer = Device::cpu().zeros(Category::Weights, DType::F32, len).unwrap();
        fill_normal(7, "fc1.weight", std, &mut buffer, |x: f32| x).unwrap();
        let mut rng = named_rng(7, "fc1.weight");
        let mut uniform = || (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        let mut want = Vec::new();
        while want.len() < len {
            let (radius, angle) = (std * (-2.0 * (1.0 - uniform()).ln()).sqrt(), std::f64::consts::TAU * uniform());
            want.extend([(radius * angle.cos()) as f32, (radius * angle.sin()) as f32]);
        }
        want.truncate(len);
        assert_eq!(*buffer.read::<f32>().unwrap(), want);
    }
}
