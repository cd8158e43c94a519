//! Steps as CUDA graphs: the same bits as without, in memory that was planned, with one launch and no wait.

use std::cell::RefCell;

use engine::autograd::{Tape, Var};
use engine::error::Result;
use engine::model::{Head, Model, ModelInfo, Module, TokenBatch};
use engine::peft::{self, Method};
use engine::prune::Pattern;
use engine::retrain::{Config, CudaGraphs, End, Freezing, FreezingPlan, StepRecord, Trainer};
use kernels::device::Gemm;
use kernels::{Category, DType, Device};
use serde_json::Value;
use tempfile::TempDir;

use crate::library::with_library;
use crate::small_models::{folder, llama, load_offloaded, opt, opt_post_norm, train_set};
use crate::training::batches;

const HALF: Pattern = Pattern::Unstructured { sparsity: 0.5 };
const STEPS: usize = 6;

struct Setup<'a> {
    folder: &'a TempDir,
    method: Method,
    pattern: Pattern,
    recompute: usize,
    offload: usize,
    freezing: Option<Freezing>,
    /// Tokens of each step's sequences.
    lengths: [usize; STEPS],
}

impl<'a> Setup<'a> {
    fn new(folder: &'a TempDir, method: Method, pattern: Pattern) -> Setup<'a> {
        Setup { folder, method, pattern, recompute: 0, offload: 0, freezing: None, lengths: [32; STEPS] }
    }

    fn trainer(&self, model: &mut dyn Model) -> Trainer {
        let params = peft::apply(model, &train_set(self.method), 0).unwrap();
        let config = Config {
            steps: STEPS,
            batch: 2,
            accumulate: 2,
            lr: 5e-3,
            warmup: 0.3,
            clip: Some(1.0),
            weight_decay: 0.01,
            recompute: self.recompute,
        };
        let plan = self.freezing.map(|freezing| FreezingPlan::new(model, &params, freezing, STEPS).unwrap());
        Trainer::with_freezing(model, params, config, plan).unwrap()
    }
}

/// What a run leaves.
#[derive(Debug, PartialEq)]
struct Outcome {
    /// Bits of each step's loss and norm.
    steps: Vec<[u64; 2]>,
    /// Bits of each parameter.
    params: Vec<(String, Vec<u32>)>,
}

fn bits(record: &StepRecord) -> [u64; 2] {
    [record.loss.to_bits(), record.grad_norm.to_bits()]
}

fn params(model: &mut dyn Model) -> Vec<(String, Vec<u32>)> {
    let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect();
    let of = |param: &std::sync::Arc<engine::tensor::Param>| {
        (param.name().to_string(), bits(param.value().download::<f32>().unwrap()))
    };
    engine::model::params(model).iter().map(of).collect()
}

/// Runs all steps; `between` hears of the trainer after each.
fn run(
    device: &Device,
    setup: &Setup<'_>,
    graphs: CudaGraphs,
    between: &mut dyn FnMut(usize, &mut Trainer, &dyn Model),
) -> Outcome {
    let mut model = load_offloaded(device, setup.folder, setup.pattern, setup.offload);
    let mut trainer = setup.trainer(&mut *model);
    trainer.use_cuda_graphs(graphs);
    let vocab = model.info().vocab as u64;
    let mut steps = Vec::new();
    for (at, length) in setup.lengths.into_iter().enumerate() {
        // Other tokens in each step.
        let all = batches(vocab, length, 2 * STEPS);
        steps.push(bits(&trainer.step(&*model, &all[2 * at..2 * at + 2]).unwrap()));
        between(at, &mut trainer, &*model);
    }
    drop(trainer);
    Outcome { steps, params: params(&mut *model) }
}

fn assert_same_bits(device: &Device, setup: &Setup<'_>, what: &str) {
    let plain = run(device, setup, CudaGraphs::Off, &mut |_, trainer, _| assert_eq!(trainer.cuda_graphs(), 0));
    let graphs = run(device, setup, CudaGraphs::On, &mut |at, trainer, _| {
        assert_eq!(trainer.cuda_graphs(), usize::from(at > 0), "{what}, after step {}", at + 1);
    });
    assert_eq!(graphs, plain, "{what}");
    let first = plain.steps[0];
    assert!(plain.steps[1..].iter().all(|step| *step != first), "{what}: steps differ");
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_graphs_give_the_same_bits_for_every_method() {
    let device = Device::cuda(0).unwrap();
    let of = |config: Value, dtype, cases: &[(Method, Pattern, usize)]| {
        let folder = folder(&config, dtype, 0.08);
        for (method, pattern, recompute) in cases {
            let setup = Setup { recompute: *recompute, ..Setup::new(&folder, *method, *pattern) };
            assert_same_bits(&device, &setup, &format!("{} {method} {pattern}", config["model_type"]));
        }
    };
    let two_four = Pattern::NM { n: 2, m: 4 };
    of(opt(), DType::BF16, &[(Method::Perp, HALF, 0), (Method::Perp, two_four, 1), (Method::Biases, HALF, 3)]);
    of(opt_post_norm(), DType::F32, &[(Method::Full, HALF, 0), (Method::Norms, two_four, 0)]);
    of(llama(), DType::F16, &[(Method::Full, HALF, 1), (Method::Probe, HALF, 0)]);
}

/// The library's products are captured as well, and so are copies from the host's memory that a stream of their own makes.
#[test]
#[ignore = "needs a GPU"]
fn gpu_graphs_hold_the_librarys_products_and_offloaded_layers() {
    let folder = folder(&opt(), DType::BF16, 0.08);
    let offloaded = Setup { offload: 2, recompute: 1, ..Setup::new(&folder, Method::Perp, HALF) };
    let device = Device::cuda(0).unwrap();
    assert_same_bits(&device, &offloaded, "2 layers offloaded");
    // Between graphs, layers are brought by plain copies.
    let validated = |graphs| {
        run(&device, &offloaded, graphs, &mut |_, _, model| {
            let batch = &batches(model.info().vocab as u64, 24, 1)[0];
            let hidden = model.forward(&mut Tape::inference(&device), batch).unwrap();
            assert!(hidden.tensor().buffer().download::<half::bf16>().unwrap().iter().all(|x| x.is_finite()));
        })
    };
    assert_eq!(validated(CudaGraphs::On), validated(CudaGraphs::Off));
    let Some(device) = with_library(Gemm::Cublas) else { return };
    assert_same_bits(&device, &Setup::new(&folder, Method::Full, HALF), "cuBLASLt");
}

/// Each shape has a graph, from its second step on; between steps memory of the graphs is lent, and what stays in it costs them.
#[test]
#[ignore = "needs a GPU"]
fn gpu_steps_of_other_lengths_and_work_between_steps_leave_graphs_sound() {
    let device = Device::cuda(0).unwrap();
    let folder = folder(&opt(), DType::BF16, 0.08);
    let setup = Setup { lengths: [16, 16, 32, 16, 32, 16], ..Setup::new(&folder, Method::Perp, HALF) };
    let plain = run(&device, &setup, CudaGraphs::Off, &mut |_, _, _| {});
    let mut counts = Vec::new();
    let graphs = run(&device, &setup, CudaGraphs::On, &mut |_, trainer, model| {
        counts.push(trainer.cuda_graphs());
        let in_use = device.memory().in_use();
        let batch = &batches(model.info().vocab as u64, 24, 1)[0];
        drop(model.forward(&mut Tape::inference(&device), batch).unwrap());
        assert_eq!(device.memory().in_use(), in_use);
    });
    assert_eq!(graphs, plain);
    // The longer one needs a larger slab, in which the shorter is captured again.
    assert_eq!(counts, [0, 1, 1, 1, 1, 2]);

    let same = Setup { lengths: [16; STEPS], ..Setup::new(&folder, Method::Perp, HALF) };
    let plain = run(&device, &same, CudaGraphs::Off, &mut |_, _, _| {});
    let (mut counts, mut held) = (Vec::new(), None);
    let graphs = run(&device, &same, CudaGraphs::On, &mut |at, trainer, _| {
        counts.push(trainer.cuda_graphs());
        if at == 2 {
            let values = device.upload(Category::Activations, &[1.5f32; 100]).unwrap();
            held = Some(values);
        }
    });
    assert_eq!((graphs, counts), (plain, vec![0, 1, 1, 0, 1, 1]));
    assert_eq!(held.unwrap().download::<f32>().unwrap(), [1.5; 100]);
}

/// Where other layers train than before, steps are captured anew.
#[test]
#[ignore = "needs a GPU"]
fn gpu_graphs_follow_layers_that_freeze_and_unfreeze() {
    let device = Device::cuda(0).unwrap();
    let folder = folder(&opt(), DType::BF16, 0.08);
    for (from, unfreeze) in [(End::Input, false), (End::Output, true)] {
        let freezing = Some(Freezing { from, unfreeze });
        let setup = Setup { freezing, lengths: [16; STEPS], ..Setup::new(&folder, Method::Perp, HALF) };
        let plain = run(&device, &setup, CudaGraphs::Off, &mut |_, _, _| {});
        let mut counts = Vec::new();
        let graphs = run(&device, &setup, CudaGraphs::On, &mut |_, trainer, _| counts.push(trainer.cuda_graphs()));
        assert_eq!(graphs, plain, "{freezing:?}");
        // Three layers over six steps: the first changes after its first step, and the others every second one.
        assert_eq!(counts, [0, 0, 1, 0, 1, 0], "{freezing:?}");
    }
}

/// A network that holds on to what it last computed: memory of a graph must not be held.
struct Holding(Box<dyn Model>, RefCell<Option<Var>>);

impl Model for Holding {
    fn info(&self) -> &ModelInfo {
        self.0.info()
    }

    fn embed(&self, tape: &mut Tape, batch: &TokenBatch) -> Result<Var> {
        self.0.embed(tape, batch)
    }

    fn decode(&self, tape: &mut Tape, layer: usize, x: Var, batch: &TokenBatch) -> Result<Var> {
        self.0.decode(tape, layer, x, batch)
    }

    fn finish(&self, tape: &mut Tape, x: Var) -> Result<Var> {
        let x = self.0.finish(tape, x)?;
        self.1.replace(Some(x.clone()));
        Ok(x)
    }

    fn head(&self) -> &Head {
        self.0.head()
    }

    fn visit(&mut self, show: &mut dyn FnMut(Module<'_>) -> Result<()>) -> Result<()> {
        self.0.visit(show)
    }
}

/// Where a step cannot be captured, it and all later ones are as they would be without, and it is told; or it is an error.
#[test]
#[ignore = "needs a GPU"]
fn gpu_steps_that_cannot_be_captured_go_on_without_and_say_why() {
    let device = Device::cuda(0).unwrap();
    let folder = folder(&opt(), DType::BF16, 0.08);
    let setup = Setup { lengths: [16; STEPS], ..Setup::new(&folder, Method::Perp, HALF) };
    let plain = run(&device, &setup, CudaGraphs::Off, &mut |_, _, _| {});
    let with = |graphs| {
        let mut model = Holding(load_offloaded(&device, setup.folder, HALF, 0), RefCell::new(None));
        let mut trainer = setup.trainer(&mut model);
        trainer.use_cuda_graphs(graphs);
        let all = batches(model.info().vocab as u64, 16, 2 * STEPS);
        let mut steps = Vec::new();
        for micro_batches in all.chunks(2) {
            steps.push(bits(&trainer.step(&model, micro_batches).map_err(|error| error.to_string())?));
        }
        let why = trainer.why_no_graphs().map(str::to_string);
        drop(trainer);
        Ok::<_, String>((Outcome { steps, params: params(&mut model) }, why))
    };
    let (outcome, why) = with(CudaGraphs::Auto).unwrap();
    assert_eq!(outcome, plain);
    assert!(why.as_ref().is_some_and(|why| why.contains("cannot be one CUDA graph")), "{why:?}");
    let error = with(CudaGraphs::On).unwrap_err();
    assert!(error.starts_with("--cuda-graphs on: ") && error.contains("use --cuda-graphs auto"), "{error}");
    // What is left of it does not disturb others.
    assert_same_bits(&device, &setup, "after one that failed");
}

/// What the driver was called for in one half of a step.
#[derive(Debug)]
struct Calls(serde_json::Map<String, Value>);

impl Calls {
    fn count(&self, name: &str) -> u64 {
        self.0.get(name).map_or(0, |calls| calls["count"].as_u64().unwrap())
    }

    /// All calls but those that bind the context to the thread.
    fn all(&self) -> u64 {
        self.0.keys().filter(|name| *name != "cuCtxSetCurrent").map(|name| self.count(name)).sum()
    }

    fn waits(&self) -> u64 {
        self.0.values().map(|calls| calls["waits"].as_u64().unwrap()).sum()
    }
}

/// A step is all from the first upload of its tokens to the last launch of its update (`Trainer::start`). In it the host makes no call
/// that waits for the device, with a graph and without, whatever trains: adapters, all weights by the library, adapters that lie
/// inside weights; and where layers are recomputed or come from the host's memory. It waits after it, where it reads the losses and
/// the norm (`Trainer::finish`).
#[test]
#[ignore = "needs the virtual GPU, which counts"]
fn the_host_waits_for_nothing_within_a_step() {
    let folder = folder(&opt(), DType::BF16, 0.08);
    let perp = || Setup::new(&folder, Method::Perp, HALF);
    let own = Device::cuda(0).unwrap();
    let cublas = with_library(Gemm::Cublas).expect("the virtual GPU has a library");
    let cases = [
        ("perp", &own, perp()),
        ("perp, 2 layers offloaded", &own, Setup { offload: 2, ..perp() }),
        ("perp, 2 layers recomputed", &own, Setup { recompute: 2, ..perp() }),
        ("full by cuBLASLt", &cublas, Setup::new(&folder, Method::Full, HALF)),
        ("mask-lora", &own, Setup::new(&folder, Method::MaskLora, HALF)),
    ];
    for (what, device, setup) in &cases {
        for graphs in [CudaGraphs::Off, CudaGraphs::On] {
            let [within, read] = calls_of_a_step(device, setup, graphs);
            println!("{what}, graphs {graphs:?}: {} calls within a step: {within:?}; read: {read:?}", within.all());
            assert_eq!(within.waits(), 0, "{what}: {within:?}");
            if graphs == CudaGraphs::On {
                // A launch, and the event behind it; one place has the losses and the norm.
                assert_eq!((within.count("cuGraphLaunch"), within.all()), (1, 2), "{what}: {within:?}");
                assert_eq!(read.waits(), 1, "{what}: {read:?}");
            } else {
                let launches = within.count("cuLaunchKernel");
                assert!(launches > 100 && within.all() > launches, "{what}: {within:?}");
                // Of each micro-batch its losses, and the norm.
                assert_eq!(read.waits(), 3, "{what}: {read:?}");
            }
        }
    }
}

/// Calls within a run's third step, when modules are loaded and what is to be captured is, and behind it.
fn calls_of_a_step(device: &Device, setup: &Setup<'_>, graphs: CudaGraphs) -> [Calls; 2] {
    let gpu = device.gpu().unwrap();
    let mut model = load_offloaded(device, setup.folder, setup.pattern, setup.offload);
    let mut trainer = setup.trainer(&mut *model);
    trainer.use_cuda_graphs(graphs);
    let all = batches(model.info().vocab as u64, 32, 2 * 3);
    let (before, last) = all.split_at(2 * 2);
    for micro_batches in before.chunks_exact(2) {
        trainer.step(&*model, micro_batches).unwrap();
    }
    gpu.start_profiler().unwrap();
    let started = trainer.start(&*model, last).unwrap();
    gpu.stop_profiler().unwrap();
    gpu.start_profiler().unwrap();
    trainer.finish(&*model, last, started).unwrap();
    gpu.stop_profiler().unwrap();
    let report = std::env::var_os("VIRTUAL_GPU_REPORT").expect("the virtual GPU's report");
    let lines = std::fs::read_to_string(report).unwrap();
    // Of all that was counted the last two; launches are told, too.
    let counted: Vec<&str> = lines.lines().filter(|line| line.starts_with("{\"calls\"")).collect();
    let [.., within, read] = counted[..] else { panic!("{} times counted", counted.len()) };
    [within, read].map(|line| {
        let line: Value = serde_json::from_str(line).unwrap();
        Calls(line["calls"].as_object().unwrap().clone())
    })
}
