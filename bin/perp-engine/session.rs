//! What most subcommands begin with: a model folder, text, a device, a plan.

use std::path::{Path, PathBuf};
use std::time::Instant;

use engine::checkpoint::ModelFolder;
use engine::evaluate;
use engine::model::{Loader, Model, Module, Offload, Source, Spill};
use engine::prune::{self, Allocation, Matrix, Pattern, Pruning, prune_linear};
use kernels::device::CudaError;
use kernels::{Backend, DType, Device};
use models::Architecture;

use crate::args::{DeviceChoice, MachineArgs};
use crate::error::Failure;
use crate::fetch;
use crate::gemm;
use crate::progress::Console;
use crate::tables;

/// The demo that comes with the source: a small OPT and Jane Austen's novels.
pub mod demo {
    use std::path::PathBuf;

    use crate::error::Failure;

    const TRAIN: [&str; 5] =
        ["emma", "mansfield_park", "northanger_abbey", "pride_and_prejudice", "sense_and_sensibility"];
    const EVAL: &str = "persuasion";

    fn at(path: &str) -> Result<PathBuf, Failure> {
        let found = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/")).join(path);
        if found.exists() {
            return Ok(found);
        }
        Err(Failure::usage(format!(
            "the demo's {path} is not there: it comes with the source checkout that built this program; \
             name a model with --model, and text with --train and --eval"
        )))
    }

    /// Its model folder.
    pub fn model() -> Result<PathBuf, Failure> {
        at("models/demo")
    }

    /// Its training text.
    pub fn train() -> Result<Vec<PathBuf>, Failure> {
        TRAIN.iter().map(|name| at(&format!("data/austen/{name}.txt"))).collect()
    }

    /// Its evaluation text, which the model has never seen.
    pub fn eval() -> Result<Vec<PathBuf>, Failure> {
        Ok(vec![at(&format!("data/austen/{EVAL}.txt"))?])
    }
}

/// A model folder with its configuration understood.
pub struct Opened {
    /// As it was named: a path, or a hub's id.
    pub name: String,
    pub path: PathBuf,
    pub folder: ModelFolder,
    pub architecture: Box<dyn Architecture>,
}

/// Opens a model folder, or a model of the hub, which is fetched.
pub fn open(console: &Console, named: &Path) -> Result<Opened, Failure> {
    let path = fetch::model(console, named, true)?;
    let folder = ModelFolder::open(&path)?;
    let architecture = models::from_config(folder.config()).map_err(|e| in_folder(&path, &e))?;
    Ok(Opened { name: named.display().to_string(), path, folder, architecture })
}

fn in_folder(path: &Path, error: &models::ConfigError) -> Failure {
    Failure::failed(format!("{}: {error}", path.display()))
}

/// A configuration alone: of a folder, a file, a model of the hub, or a built-in name such as `opt-30b`.
pub fn open_config(name: &str) -> Result<Box<dyn Architecture>, Failure> {
    if let Some(config) = models::builtin(name).filter(|_| !Path::new(name).exists()) {
        return Ok(models::from_config(&config).expect("built-in configurations are valid"));
    }
    let path = fetch::model(&Console::new(false), Path::new(name), false)?;
    let config = ModelFolder::read_config(&path)?;
    models::from_config(&config).map_err(|e| in_folder(&path, &e))
}

/// Sets the threads and opens the device; says so where it is a GPU, or where there is one that cannot be used.
pub fn device(console: &Console, machine: &MachineArgs) -> Result<Device, Failure> {
    if let Some(threads) = machine.threads {
        rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build_global()
            .map_err(|e| Failure::failed(format!("cannot start {threads} threads: {e}")))?;
    }
    let asked = machine.gemm.gemm();
    let device = match machine.device {
        DeviceChoice::Cpu => Device::cpu(),
        DeviceChoice::Cuda(ordinal) => Device::cuda_with(ordinal, asked)?,
        DeviceChoice::Auto => match Device::cuda_with(0, asked) {
            Ok(device) => device,
            // The GPU is there; what was asked for beside it is not.
            Err(kernels::Error::Cuda(error @ (CudaError::NoCublas { .. } | CudaError::OldCublas { .. }))) => {
                return Err(kernels::Error::from(error).into());
            }
            Err(error) => {
                if !matches!(error, kernels::Error::Cuda(CudaError::NoDriver | CudaError::NoGpu { .. })) {
                    console.say(&format!("computing on the processor: {error}"));
                }
                Device::cpu()
            }
        },
    };
    machine.gemm.check(device.backend())?;
    if let Some(gpu) = device.gpu() {
        let library = gemm::title(&device).map_or(String::new(), |library| format!(", {library}"));
        let memory = tables::bytes(gpu.total_memory() as u64);
        console.say(&format!("computing on {} ({memory} of memory){library}", gpu.name()));
    }
    Ok(device)
}

/// The device as users know it.
pub fn title(device: &Device) -> String {
    match device.gpu() {
        Some(gpu) => gpu.name().into(),
        None => format!("{}, {} threads", device.name(), rayon::current_num_threads()),
    }
}

/// The tokens of a sequence: what was asked for, or the model's context.
pub fn sequence_length(asked: Option<usize>, architecture: &dyn Architecture) -> Result<usize, Failure> {
    let context = architecture.info().context;
    match asked {
        Some(length) if length > context => {
            Err(Failure::usage(format!("--seq-len {length} is longer than the model's context of {context} tokens")))
        }
        Some(length) => Ok(length),
        None => Ok(context),
    }
}

/// The GPU's name, for reports.
pub fn gpu_name(device: &Device) -> Option<String> {
    device.gpu().map(|gpu| gpu.name().to_string())
}

/// How each matrix is pruned as it is loaded.
pub struct OnLoad {
    pub pruning: Pruning,
    pub allocation: Allocation,
    /// Whether more may go than is gone already.
    pub further: bool,
    /// Where pruned weights go that find no room.
    pub spill: Option<Spill>,
}

/// Builds a model, showing its layers as they come; prunes each as it is loaded where `how` says how, and takes the
/// weights of so many layers to the host's memory.
pub fn load(
    console: &Console,
    device: &Device,
    opened: &Opened,
    how: Option<OnLoad>,
    offloaded_layers: usize,
) -> Result<Box<dyn Model>, Failure> {
    let offload = Offload::new(device, offloaded_layers);
    let info = opened.architecture.info();
    let mut task = console.task(if how.is_some() { "prune" } else { "load" }, info.layers as u64);
    let mut loader = Loader::new(device, Source::Folder(&opened.folder));
    if how.as_ref().is_some_and(|how| how.further) {
        loader = loader.unpacked();
    }
    let loader = loader.on_linear(|linear| {
        task.update(linear.layer().unwrap_or(0) as u64, &linear.name);
        if let Some(OnLoad { pruning, allocation, spill, .. }) = &how {
            prune_linear(linear, &allocation.pruning(pruning, &linear.name))?;
            spill.map_or(Ok(()), |spill| spill.take(linear))?;
        }
        offload.take(linear)
    });
    let model = opened.architecture.build(&loader)?;
    drop(loader);
    let what = how.map_or(String::new(), |how| format!(" at {}", how.pruning.pattern));
    task.finish(&format!("{} layers{what}", info.layers));
    Ok(model)
}

/// A perplexity, with a progress bar.
pub struct Evaluation<'a> {
    pub console: &'a Console,
    pub tokens: &'a [u32],
    pub seq_len: usize,
    pub batch: usize,
    pub max_windows: Option<usize>,
}

impl Evaluation<'_> {
    /// Measures `model`; adds the time to `seconds`.
    pub fn run(&self, name: &str, model: &dyn Model, seconds: &mut f64) -> Result<f64, Failure> {
        let start = Instant::now();
        let windows = (self.tokens.len() / self.seq_len).min(self.max_windows.unwrap_or(usize::MAX));
        let mut task = self.console.task("evaluate", windows as u64);
        let perplexity =
            evaluate::perplexity(model, self.tokens, self.seq_len, self.batch, self.max_windows, &mut |done, _| {
                task.update(done as u64, name)
            })?;
        task.finish(&format!("{name} perplexity {:.2} ({} windows)", perplexity.value, perplexity.windows));
        *seconds += start.elapsed().as_secs_f64();
        Ok(perplexity.value)
    }
}

/// The element type of a folder's weights: what most bytes are stored in.
pub fn weight_dtype(folder: &ModelFolder) -> DType {
    let bytes_of = |dtype: DType| {
        folder.tensors().filter(|t| t.dtype().is_ok_and(|d| d == dtype)).map(|t| t.size_bytes()).sum::<usize>()
    };
    [DType::F32, DType::F16, DType::BF16].into_iter().max_by_key(|dtype| bytes_of(*dtype)).unwrap_or(DType::F32)
}

/// Fails where a matrix of the model does not fit the pattern, before any weight is read.
pub fn check_pattern(architecture: &dyn Architecture, pattern: Pattern) -> Result<(), Failure> {
    let mut model = without_weights(architecture)?;
    model.visit(&mut |module| {
        if let Module::Linear(linear) = module
            && linear.prunable
        {
            pattern.kept(linear.weight.rows(), linear.weight.cols(), &format!("{}.weight", linear.name))?;
        }
        Ok(())
    })?;
    Ok(())
}

/// Every matrix that pruning works on, before any weight is read.
pub fn matrices(architecture: &dyn Architecture) -> Result<Vec<Matrix>, Failure> {
    Ok(prune::matrices(&mut *without_weights(architecture)?))
}

/// Bytes that pruning the largest matrix takes beside the model: its dense entries, which may be pages of a file, and what
/// [`prune::workspace_bytes`] says.
pub fn pruning_bytes(architecture: &dyn Architecture) -> Result<u64, Failure> {
    let largest = matrices(architecture)?.iter().map(|matrix| matrix.entries).max().unwrap_or(0);
    Ok(prune::workspace_bytes(largest) + (DType::F32.size() * largest) as u64)
}

fn without_weights(architecture: &dyn Architecture) -> Result<Box<dyn Model>, Failure> {
    let device = Device::meta(Backend::Cpu, 1);
    Ok(architecture.build(&Loader::new(&device, Source::Absent(DType::F32)))?)
}
