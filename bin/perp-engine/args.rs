//! Flags that several subcommands share, each explained once.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, ValueEnum};
use engine::data::Packing;
use engine::peft::{ALL_LINEAR, LoraKind, Method, TrainSet};
use engine::prune::{Criterion, Pattern, Pruning};

use crate::error::Failure;
use crate::gemm::GemmArgs;
use crate::graphs::GraphArgs;

/// Where to compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The first GPU where there is one, the host's processor otherwise.
    Auto,
    /// The host's processor.
    Cpu,
    /// The GPU of this number, as the driver counts them.
    Cuda(usize),
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceChoice::Auto => f.write_str("auto"),
            DeviceChoice::Cpu => f.write_str("cpu"),
            DeviceChoice::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
        }
    }
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<DeviceChoice, String> {
        let number = |text: &str| text.parse().ok();
        let choice = match text.split_once(':') {
            None => match text {
                "auto" => Some(DeviceChoice::Auto),
                "cpu" => Some(DeviceChoice::Cpu),
                "cuda" => Some(DeviceChoice::Cuda(0)),
                _ => None,
            },
            Some((kind, at)) => number(at).filter(|_| kind == "cuda").map(DeviceChoice::Cuda),
        };
        choice.ok_or_else(|| "expected auto, cpu, cuda, or cuda:N for the GPU with number N".into())
    }
}

/// Activation checkpointing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Checkpointing {
    /// For as few decoder layers as make the step fit.
    Auto,
    /// Keep each decoder layer's input only, and run the layer again in the backward pass.
    On,
    /// Keep what the backward pass needs.
    Off,
}

/// Decoder layers whose weights stay in the host's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offload {
    /// None.
    Off,
    /// As few as make the step fit, if recomputing all layers does not.
    Auto,
    /// So many, from the first.
    Layers(usize),
}

impl FromStr for Offload {
    type Err = String;

    fn from_str(text: &str) -> Result<Offload, String> {
        match text {
            "off" => Ok(Offload::Off),
            "auto" => Ok(Offload::Auto),
            count => count.parse().map(Offload::Layers).map_err(|_| "expected off, auto, or a number of layers".into()),
        }
    }
}

/// What a step may do to take less of the device's memory.
#[derive(Args, Clone, Copy, Debug)]
#[command(next_help_heading = "Memory")]
pub struct SavingArgs {
    /// Recompute decoder layers in the backward pass to save memory; auto: as few as make the step fit.
    #[arg(long, value_enum, default_value = "auto", value_name = "WHEN")]
    pub checkpointing: Checkpointing,
    /// On a GPU, keep the frozen weights of this many decoder layers in pinned host memory and copy each to the GPU while the
    /// one before is multiplied; auto: as few layers as make the step fit when recomputing all of them does not.
    #[arg(long, value_parser = |s: &str| s.parse::<Offload>(), default_value = "off", value_name = "WHEN|N")]
    pub offload: Offload,
}

/// The machine and the console.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Machine and output")]
pub struct MachineArgs {
    /// Device to compute on: cpu, cuda (an NVIDIA GPU) or cuda:N; auto: a GPU where there is one, cpu otherwise.
    #[arg(long, value_parser = |s: &str| s.parse::<DeviceChoice>(), default_value = "auto", value_name = "DEVICE")]
    pub device: DeviceChoice,
    #[command(flatten)]
    pub gemm: GemmArgs,
    /// Processor threads [default: all].
    #[arg(long, value_parser = threads, value_name = "N")]
    pub threads: Option<usize>,
    /// Read flags from a TOML file: the names of the flags without dashes. Flags given here win over the file.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Say nothing but the result and warnings.
    #[arg(long)]
    pub quiet: bool,
    /// Write everything measured to this file: .json, or, of runs that train, a page to look at: .html.
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
}

/// Evaluation windows of commands that do not train.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Evaluation")]
pub struct WindowArgs {
    /// Tokens of a window [default: the model's context].
    #[arg(long, value_parser = sequence, value_name = "N")]
    pub seq_len: Option<usize>,
    /// Windows computed at once.
    #[arg(long, default_value_t = 2, value_parser = positive, value_name = "N")]
    pub batch: usize,
}

/// Evaluation text and windows.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Evaluation")]
pub struct EvalArgs {
    /// Evaluation text, in the forms that --train takes; or a protocol: wikitext2 (WikiText-2's raw test split, whole) or c4
    /// (1,100 documents of C4's validation split, 256 windows).
    #[arg(long, num_args = 1.., value_name = "TEXT")]
    pub eval: Vec<PathBuf>,
    /// Evaluate at most this many windows; 0 for all [default: 0; c4: 256; the demo: 128].
    #[arg(long, value_name = "N")]
    pub eval_windows: Option<usize>,
}

impl EvalArgs {
    /// The most windows to evaluate.
    pub fn max_windows(&self, default: usize) -> Option<usize> {
        Some(self.eval_windows.unwrap_or(default)).filter(|windows| *windows > 0)
    }
}

/// What is pruned, and how.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Pruning")]
pub struct PruneArgs {
    /// What scores a weight; the lowest go: magnitude (its absolute value), random, or, with --calibrate, wanda (its magnitude
    /// times its input's norm) or sparsegpt (the error that the other weights cannot make up for, which they then do).
    #[arg(long, default_value = "magnitude", value_parser = |s: &str| s.parse::<Criterion>(), value_name = "NAME")]
    pub criterion: Criterion,
    /// Share of the weights to remove, in [0, 1) [default: 0.5]: of each matrix, or on average (--allocation).
    #[arg(long, value_parser = sparsity, conflicts_with = "pattern", value_name = "SHARE")]
    pub sparsity: Option<f64>,
    /// Keep n of every m consecutive weights of a row, such as 2:4 or 4:8.
    #[arg(long, value_parser = |s: &str| s.parse::<Pattern>(), value_name = "N:M")]
    pub pattern: Option<Pattern>,
}

impl PruneArgs {
    /// The pattern asked for.
    pub fn pattern(&self) -> Pattern {
        self.pattern.unwrap_or(Pattern::Unstructured { sparsity: self.sparsity.unwrap_or(0.5) })
    }

    /// Criterion and pattern together.
    pub fn pruning(&self, seed: u64) -> Pruning {
        Pruning { criterion: self.criterion, pattern: self.pattern(), seed }
    }
}

/// What trains.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "What trains")]
pub struct MethodArgs {
    /// biases: biases of linear layers. norms: and norms. probe: and LoRA on the head. perp: and LoRA on --targets.
    /// mask-lora, scale-lora: perp with adapters on --targets that merge into the weights without losing a zero.
    /// lora-prune: perp whose LoRA loses, when it is merged, what would fill zeros. full: everything, pruned weights staying
    /// zero.
    #[arg(long, default_value = "perp", value_parser = |s: &str| s.parse::<Method>(), value_name = "NAME")]
    pub method: Method,
    /// Train exactly these parts instead of a method's set: any of biases, norms, head, and one of lora, mask-lora,
    /// scale-lora, lora-prune.
    #[arg(long, value_delimiter = ',', value_parser = PARTS, value_name = "PART,…")]
    pub parts: Vec<String>,
    /// Rank of the LoRA matrices.
    #[arg(long, default_value_t = 16, value_parser = small, value_name = "R")]
    pub rank: usize,
    /// LoRA's α: the update is scaled by α/rank.
    #[arg(long, default_value_t = 32.0, value_parser = above_zero, value_name = "ALPHA")]
    pub alpha: f64,
    /// Linear layers with LoRA, by name (q_proj, fc1, …), or all-linear [default: q_proj,v_proj; of adapters that merge:
    /// all-linear].
    #[arg(long, value_delimiter = ',', value_name = "NAME,…")]
    targets: Vec<String>,
}

impl MethodArgs {
    /// The set of trainable parameters asked for.
    pub fn train_set(&self) -> Result<TrainSet, Failure> {
        let of_method = TrainSet::of(self.method, self.rank, self.alpha, &self.targets_of(self.method.lora()));
        if self.parts.is_empty() {
            return Ok(of_method);
        }
        let has = |part: &str| self.parts.iter().any(|p| p == part);
        let mut kinds = LoraKind::ALL.into_iter().filter(|kind| has(kind.name()));
        let (kind, other) = (kinds.next(), kinds.next());
        if let (Some(kind), Some(other)) = (kind, other) {
            return Err(Failure::usage(format!(
                "--parts {},{}: a layer has one adapter; name one of them",
                kind.name(),
                other.name()
            )));
        }
        Ok(TrainSet {
            biases: has("biases"),
            norms: has("norms"),
            head: has("head"),
            targets: kind.map_or(Vec::new(), |kind| self.targets_of(kind)),
            kind: kind.unwrap_or(LoraKind::Lora),
            full: false,
            ..of_method
        })
    }

    /// True where --targets was given.
    pub fn names_targets(&self) -> bool {
        !self.targets.is_empty()
    }

    /// The linear layers that get adapters of this kind.
    pub fn targets_of(&self, kind: LoraKind) -> Vec<String> {
        match (self.targets.is_empty(), kind.merges()) {
            (false, _) => self.targets.clone(),
            (true, true) => vec![ALL_LINEAR.into()],
            (true, false) => vec!["q_proj".into(), "v_proj".into()],
        }
    }

    /// The name of the set in reports.
    pub fn label(&self) -> String {
        if self.parts.is_empty() { self.method.to_string() } else { self.parts.join("+") }
    }
}

/// The shape of a step.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Training")]
pub struct StepArgs {
    /// Sequences of a micro-batch [default: 2; pretrain and the demo: 8].
    #[arg(long, value_parser = positive, value_name = "N")]
    pub batch: Option<usize>,
    /// Micro-batches whose gradients add up to one step [default: 4; pretrain and the demo: 1].
    #[arg(long, value_parser = small, value_name = "N")]
    pub accumulate: Option<usize>,
    /// Tokens of a sequence, and of an evaluation window [default: the model's context].
    #[arg(long, value_parser = sequence, value_name = "N")]
    pub seq_len: Option<usize>,
    #[command(flatten)]
    pub graphs: GraphArgs,
    #[command(flatten)]
    pub saving: SavingArgs,
    /// The most memory a run may plan for, such as 8GiB or 500MB [default: what the machine has left].
    #[arg(long, value_parser = bytes, value_name = "SIZE")]
    pub memory_budget: Option<u64>,
}

/// The optimizer.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Training")]
pub struct OptimizerArgs {
    /// Training text: .txt files (a document each), .jsonl or .json files (a document a line, in the field "text"), these also
    /// as .gz or .zst, .parquet files (a document a row, in the column "text"), quoted patterns such as 'c4/*.json.gz', or data
    /// sets of the hub, such as allenai/c4:en or wikitext:wikitext-2-raw-v1.
    #[arg(long, num_args = 1.., value_name = "TEXT")]
    pub train: Vec<PathBuf>,
    /// How documents fill sequences: pack (end to end, cut into sequences), or pad (each in a sequence of its own, cut off or
    /// padded; pads have no loss).
    #[arg(long, value_parser = |s: &str| s.parse::<Packing>(), default_value = "pack", value_name = "HOW")]
    pub packing: Packing,
    /// Optimizer steps (of each cycle) [default: 1000; the demo: 120].
    #[arg(long, value_parser = positive, value_name = "N")]
    pub steps: Option<usize>,
    /// Largest learning rate of AdamW [default: 5e-4].
    #[arg(long, value_parser = at_least_zero, value_name = "RATE")]
    pub lr: Option<f64>,
    /// Share of the steps over which the learning rate rises from 0; then it falls linearly to 0.
    #[arg(long, default_value_t = 0.1, value_parser = share, value_name = "SHARE")]
    pub warmup: f64,
    /// Largest L2 norm of all gradients together; 0 for no clipping.
    #[arg(long, default_value_t = 1.0, value_parser = at_least_zero, value_name = "NORM")]
    pub clip: f64,
    /// Decoupled weight decay.
    #[arg(long, default_value_t = 0.0, value_parser = at_least_zero, value_name = "RATE")]
    pub weight_decay: f64,
    /// Seed of everything random: the order of the training windows, LoRA's start, random pruning, calibration
    /// windows.
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub seed: u64,
}

impl OptimizerArgs {
    /// The clipping norm, if any.
    pub fn clip(&self) -> Option<f64> {
        Some(self.clip).filter(|clip| *clip > 0.0)
    }

    /// Fails where no training text is named.
    pub fn require_train(&self) -> Result<&[PathBuf], Failure> {
        if self.train.is_empty() {
            return Err(Failure::usage(
                "--train is missing: name text to train on, such as files of .txt, .jsonl or .parquet",
            ));
        }
        Ok(&self.train)
    }
}

/// The parts of a model that can train: the last are the names of [`LoraKind`].
const PARTS: [&str; 7] = ["biases", "norms", "head", "lora", "mask-lora", "scale-lora", "lora-prune"];

/// The same command, where a flag's value may begin with a minus, so that the flag's own message says what is wrong with it.
pub fn with_minus(command: clap::Command) -> clap::Command {
    command.mut_args(|arg| {
        let takes_values = arg.get_action().takes_values();
        arg.allow_negative_numbers(takes_values)
    })
}

/// A number that f32 can hold, since kernels compute in it.
fn number(text: &str, range: &str, fits: impl Fn(f64) -> bool) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if (value as f32).is_finite() && fits(value) => Ok(value),
        _ => Err(format!("expected a number {range}")),
    }
}

fn sparsity(text: &str) -> Result<f64, String> {
    number(text, "in [0, 1): the share of weights to remove, such as 0.5", |s| (0.0..1.0).contains(&s))
}

/// A share in [0, 1].
pub fn share(text: &str) -> Result<f64, String> {
    number(text, "in [0, 1]", |s| (0.0..=1.0).contains(&s))
}

/// A number above 0.
pub fn above_zero(text: &str) -> Result<f64, String> {
    number(text, "above 0", |x| x > 0.0)
}

/// A number of at least 0.
pub fn at_least_zero(text: &str) -> Result<f64, String> {
    number(text, "of at least 0", |x| x >= 0.0)
}

/// The most of anything that is counted: products of a few such numbers stay within 64 bits.
const MOST: usize = u32::MAX as usize;
/// The most of what a step repeats, a matrix has, or calibration keeps; far beyond use.
const MANY: usize = 1 << 16;
/// More threads than machines have.
const MOST_THREADS: usize = 1 << 12;
/// The largest vocabulary that a configuration may have.
const MOST_TOKENS: usize = 1 << 21;

fn whole(text: &str, least: usize, most: usize) -> Result<usize, String> {
    let number = text.parse().ok().filter(|n| (least..=most).contains(n));
    number.ok_or_else(|| format!("expected a whole number of at least {least}, and at most {most}"))
}

/// A whole number of at least 1.
pub fn positive(text: &str) -> Result<usize, String> {
    whole(text, 1, MOST)
}

/// A LoRA rank, or a number of micro-batches or calibration windows.
pub fn small(text: &str) -> Result<usize, String> {
    whole(text, 1, MANY)
}

/// A number of threads.
pub fn threads(text: &str) -> Result<usize, String> {
    whole(text, 1, MOST_THREADS)
}

/// A number of tokens in a vocabulary.
pub fn vocabulary(text: &str) -> Result<usize, String> {
    whole(text, 1, MOST_TOKENS)
}

/// A sequence length: a prediction needs two tokens.
pub fn sequence(text: &str) -> Result<usize, String> {
    whole(text, 2, MOST)
}

/// A size in bytes, with or without a unit.
pub fn bytes(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, f64); 7] = [
        ("KiB", 1024.0),
        ("MiB", 1_048_576.0),
        ("GiB", 1_073_741_824.0),
        ("KB", 1e3),
        ("MB", 1e6),
        ("GB", 1e9),
        ("B", 1.0),
    ];
    let (digits, unit) =
        UNITS.iter().find_map(|(unit, size)| text.strip_suffix(unit).map(|rest| (rest, *size))).unwrap_or((text, 1.0));
    let value = number(digits.trim(), "of bytes, such as 8GiB or 500MB", |x| x >= 1.0)?;
    Ok((value * unit) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_take_units() {
        assert_eq!(bytes("512"), Ok(512));
        assert_eq!(bytes("1.5KiB"), Ok(1536));
        assert_eq!(bytes("2 GB"), Ok(2_000_000_000));
        for bad in ["", "GiB", "-1", "1TB", "nan"] {
            assert!(bytes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ranges_are_checked() {
        assert!(sparsity("1").is_err() && sparsity("-0.1").is_err() && sparsity("x").is_err());
        assert_eq!(sparsity("0.5"), Ok(0.5));
        assert!(positive("0").is_err() && sequence("1").is_err() && share("1.1").is_err());
    }
}
