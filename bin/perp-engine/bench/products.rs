//! The products with a model's matrices, one by one: what sparsity gains in each.

use engine::model::{Loader, Module, Source, Weight};
use engine::prune::{Pattern, prune_linear};
use half::bf16;
use kernels::ops::linear;
use kernels::weight::{FrozenWeight, WeightRef};
use kernels::{Category, DType, Device};
use models::Architecture;
use serde::Serialize;

use super::{Args, Machine, RANDOM_DTYPE, median, publish};
use crate::error::Failure;
use crate::tables;

/// What is timed for each matrix.
const PATTERNS: [&str; 7] = ["dense", "0.3", "0.5", "0.7", "0.9", "2:4", "4:8"];

#[derive(Debug, Serialize)]
struct Report {
    model: String,
    tokens: usize,
    machine: Machine,
    products: Vec<Product>,
}

/// One product; rates are those of a dense product that takes as long.
#[derive(Debug, Serialize)]
struct Product {
    direction: &'static str,
    rows: usize,
    cols: usize,
    pattern: String,
    milliseconds: Vec<f64>,
    dense_gflops: f64,
    gflops: f64,
    share_of_peak: f64,
}

struct Case {
    rows: usize,
    cols: usize,
    pattern: &'static str,
    weight: FrozenWeight,
    times: [Vec<f64>; 2],
}

pub fn run(args: &Args, device: &Device, architecture: &dyn Architecture, machine: Machine) -> Result<(), Failure> {
    let n = args.batch * args.seq_len;
    let mut cases = cases(device, architecture)?;
    let operand = |width: usize| -> Result<_, Failure> {
        let values: Vec<f32> = (0..n * width).map(|i| (i * 31 % 1009) as f32 / 1009.0 - 0.5).collect();
        Ok(match device.compute_dtype() {
            DType::BF16 => {
                device.upload(Category::Activations, &values.iter().map(|x| bf16::from_f32(*x)).collect::<Vec<_>>())?
            }
            _ => device.upload(Category::Activations, &values)?,
        })
    };
    // In turn, so that a disturbance of the machine meets all alike; the first round warms up.
    for round in 0..=args.steps {
        for case in &mut cases {
            let (x, dy) = (operand(case.cols)?, operand(case.rows)?);
            let weight = WeightRef::Frozen(&case.weight);
            device.start_profile();
            linear::forward(device, &x, n, weight, None, None)?;
            linear::backward_input(device, &dy, n, weight, None)?;
            let timed = device.take_profile();
            if round > 0 {
                for (times, stats) in case.times.iter_mut().zip(&timed) {
                    times.push(stats.seconds);
                }
            }
        }
    }
    let products = cases.iter().flat_map(|case| case.products(n, &machine)).collect();
    let report = Report { model: args.model.clone(), tokens: n, machine, products };
    publish(args, &report, &report.text())
}

/// Each shape of the model's matrices once, in every pattern that divides it; the head dense only.
fn cases(device: &Device, architecture: &dyn Architecture) -> Result<Vec<Case>, Failure> {
    let meta = Device::meta(kernels::Backend::Cpu, 1);
    let mut shapes: Vec<(usize, usize, bool)> = Vec::new();
    architecture.build(&Loader::new(&meta, Source::Absent(DType::F32)))?.visit(&mut |module| {
        let shape = match module {
            Module::Linear(linear) => (linear.weight.rows(), linear.weight.cols(), linear.prunable),
            Module::Head(head) => (head.weight.rows(), head.weight.cols(), false),
            _ => return Ok(()),
        };
        if !shapes.contains(&shape) {
            shapes.push(shape);
        }
        Ok(())
    })?;
    let mut cases = Vec::new();
    for (rows, cols, prunable) in shapes {
        for pattern in PATTERNS {
            let dense = pattern == "dense";
            let divides =
                pattern.split_once(':').is_none_or(|(_, m)| cols.is_multiple_of(m.parse().expect("a number")));
            if dense || prunable && divides {
                let loader = Loader::new(device, Source::Random { seed: 0, std: 0.02, dtype: RANDOM_DTYPE })
                    .on_linear(|linear| if dense { Ok(()) } else { prune_linear(linear, &pruning(pattern)) });
                let linear = loader.linear("matrix", rows, cols, false, true)?;
                let linear = std::sync::Arc::into_inner(linear).expect("no one else holds it");
                let Weight::Frozen(weight) = linear.weight else { unreachable!("nothing made it trainable") };
                cases.push(Case { rows, cols, pattern, weight, times: [Vec::new(), Vec::new()] });
            }
        }
    }
    Ok(cases)
}

fn pruning(pattern: &str) -> engine::prune::Pruning {
    let pattern = match pattern.parse::<f64>() {
        Ok(sparsity) => Pattern::Unstructured { sparsity },
        Err(_) => pattern.parse().expect("the patterns above are well formed"),
    };
    engine::prune::Pruning { criterion: engine::prune::Criterion::Magnitude, pattern, seed: 0 }
}

impl Case {
    fn products(&self, n: usize, machine: &Machine) -> [Product; 2] {
        ["forward", "backward"].map(|direction| {
            let times = &self.times[usize::from(direction == "backward")];
            let seconds = median(times);
            let weight = WeightRef::Frozen(&self.weight);
            let flops = if direction == "forward" { weight.forward_flops(n) } else { weight.product_flops(n) } as f64;
            let element = self.weight.device().compute_dtype().size();
            let bytes = (element * n * (self.rows + self.cols) + self.weight.size_bytes()) as f64;
            Product {
                direction,
                rows: self.rows,
                cols: self.cols,
                pattern: self.pattern.into(),
                milliseconds: times.iter().map(|seconds| 1e3 * seconds).collect(),
                dense_gflops: (2 * n * self.rows * self.cols) as f64 / seconds / 1e9,
                gflops: flops / seconds / 1e9,
                share_of_peak: machine.share(flops, bytes, seconds),
            }
        })
    }
}

impl Report {
    fn text(&self) -> String {
        let header = ["matrix", "pattern", "direction", "ms", "as dense GFLOP/s", "GFLOP/s", "of peak"];
        let mut rows = vec![header.map(String::from).to_vec()];
        rows.extend(self.products.iter().map(|p| {
            vec![
                format!("{}×{}", p.rows, p.cols),
                p.pattern.clone(),
                p.direction.into(),
                format!("{:.2}", median(&p.milliseconds)),
                format!("{:.0}", p.dense_gflops),
                format!("{:.0}", p.gflops),
                format!("{:.0} %", 100.0 * p.share_of_peak),
            ]
        }));
        format!(
            "{} · {} tokens\n{}\n\n{}\nAs dense: the rate of a dense product that takes as long.\n",
            self.model,
            self.tokens,
            self.machine,
            tables::columns(&rows)
        )
    }
}
