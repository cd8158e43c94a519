use half::{bf16, f16};
use proptest::prelude::*;

use super::*;
use crate::device::{Backend, Category};
use crate::ops::embedding;
use crate::ops::linear::reference::Operands;
use crate::ops::linear::{Lora, backward_input, forward};
use crate::ops::pack::pack;
use crate::ops::pack_two_four::pack_two_four;
use crate::ops::testing::{differences, random, rows, upload, upload_tokens};
use crate::spmm::{self, Columns};
use crate::strips::STRIP;
use crate::weight::{Form, FrozenWeight, Kept, merge};

/// How a weight is stored.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Dense(DType),
    Sparse(DType),
    NOfM(usize, usize),
    /// A GPU's forms, in host memory.
    Blocks,
    TwoFour,
}

const KINDS: [Kind; 11] = [
    Kind::Dense(DType::F32),
    Kind::Dense(DType::F16),
    Kind::Dense(DType::BF16),
    Kind::Sparse(DType::F32),
    Kind::Sparse(DType::F16),
    Kind::Sparse(DType::BF16),
    Kind::NOfM(2, 4),
    Kind::NOfM(4, 8),
    Kind::NOfM(1, 3),
    Kind::Blocks,
    Kind::TwoFour,
];

impl Kind {
    /// Columns near `cols` that it can have.
    fn cols(self, cols: usize) -> usize {
        match self {
            Kind::NOfM(_, m) => cols.next_multiple_of(m),
            Kind::TwoFour => cols.next_multiple_of(4),
            _ => cols,
        }
    }

    fn dtype(self) -> DType {
        match self {
            Kind::Dense(dtype) | Kind::Sparse(dtype) => dtype,
            Kind::NOfM(..) | Kind::TwoFour => DType::BF16,
            Kind::Blocks => DType::F16,
        }
    }

    fn keeps(self, seed: u64, len: usize) -> Vec<bool> {
        let draw = random(len, seed);
        let group = |n: usize, m: usize| {
            // The n largest draws of each group; of equal ones the first.
            let above = |i: usize| {
                let from = i / m * m;
                (from..from + m).filter(|j| draw[*j] > draw[i] || (draw[*j] == draw[i] && *j < i)).count()
            };
            (0..len).map(|i| above(i) < n).collect()
        };
        match self {
            Kind::NOfM(n, m) => group(n, m),
            Kind::TwoFour => group(2, 4),
            _ => draw.iter().map(|x| *x < 0.1).collect(),
        }
    }

    fn store(self, device: &Device, w: &[f64], keep: &[bool], rows: usize, cols: usize) -> FrozenWeight {
        let source = match self.dtype() {
            DType::F16 => {
                device.upload(Category::Weights, &w.iter().map(|x| f16::from_f64(*x)).collect::<Vec<_>>()).unwrap()
            }
            DType::BF16 => {
                device.upload(Category::Weights, &w.iter().map(|x| bf16::from_f64(*x)).collect::<Vec<_>>()).unwrap()
            }
            _ => upload(device, w),
        };
        let mask = device.upload(Category::Masks, &words(keep)).unwrap();
        let kept = keep.iter().filter(|keep| **keep).count();
        match self {
            Kind::Dense(_) => FrozenWeight::dense(source, rows, cols).unwrap(),
            Kind::Sparse(_) => FrozenWeight::pruned(device, &source, rows, cols, &mask, kept).unwrap(),
            Kind::NOfM(n, m) => FrozenWeight::pruned_n_of_m(device, &source, rows, cols, &mask, n, m).unwrap(),
            Kind::Blocks => FrozenWeight::Blocks(pack(device, &source, rows, cols, &mask, kept).unwrap()),
            Kind::TwoFour => FrozenWeight::TwoFour(pack_two_four(device, &source, rows, cols, &mask).unwrap()),
        }
    }
}

fn words(keep: &[bool]) -> Vec<u64> {
    let mut words = vec![0u64; keep.len().div_ceil(64)];
    keep.iter().enumerate().filter(|(_, keep)| **keep).for_each(|(i, _)| words[i / 64] |= 1 << (i % 64));
    words
}

struct Case {
    shape: cuda::Shape,
    rank: usize,
    scaled: bool,
    keep: Vec<bool>,
    held: FrozenWeight,
    /// W, A, B, x, dy.
    tensors: [Vec<f64>; 5],
}

const SCALE: f64 = 2.0;

impl Case {
    fn new(device: &Device, kind: Kind, (n, rows, cols): (usize, usize, usize), rank: usize, scaled: bool) -> Case {
        let cols = kind.cols(cols);
        let keep = kind.keeps(5, rows * cols);
        // Multiples of 1/128 in [−1, 1] are exact in every element type; some kept ones are zero.
        let drawn = random(rows * cols, 1).into_iter().enumerate().map(|(i, x)| if i % 7 == 3 { 0.0 } else { x });
        let w: Vec<f64> =
            drawn.zip(&keep).map(|(x, keep)| if *keep { (x * 128.0).round() / 128.0 } else { 0.0 }).collect();
        let held = kind.store(device, &w, &keep, rows, cols);
        let keep = match kind {
            Kind::Dense(_) => w.iter().map(|x| *x != 0.0).collect(),
            _ => keep,
        };
        let tensors = [w, random(rank * cols, 2), random(rows * rank, 3), random(n * cols, 4), random(n * rows, 6)];
        Case { shape: cuda::Shape { n, rows, cols }, rank, scaled, keep, held, tensors }
    }

    fn form(&self) -> Form {
        if self.scaled { Form::Scale } else { Form::Add { scale: SCALE as f32 } }
    }

    /// W as it is multiplied, of tensors like the case's.
    fn effective(&self, [w, a, b, ..]: &[Vec<f64>; 5]) -> Vec<f64> {
        let (cuda::Shape { n, rows, cols }, rank) = (self.shape, self.rank);
        let operands = Operands { n, rows, cols, rank, scale: SCALE, w, a, b, bias: &[] };
        operands.adapted(&self.keep, self.scaled)
    }

    /// Σ dy·y
    fn objective(&self, tensors: &[Vec<f64>; 5]) -> f64 {
        let cuda::Shape { n, rows, cols } = self.shape;
        let (w, [_, _, _, x, dy]) = (self.effective(tensors), tensors);
        let mut sum = 0.0;
        for i in 0..n {
            for row in 0..rows {
                let y: f64 = (0..cols).map(|col| x[i * cols + col] * w[row * cols + col]).sum();
                sum += y * dy[i * rows + row];
            }
        }
        sum
    }

    /// dA and dB by the formulas.
    fn gradients(&self) -> (Vec<f64>, Vec<f64>) {
        let (cuda::Shape { n, rows, cols }, rank) = (self.shape, self.rank);
        let [w, a, b, x, dy] = &self.tensors;
        let (mut d_a, mut d_b) = (vec![0.0; rank * cols], vec![0.0; rows * rank]);
        for row in 0..rows {
            for col in (0..cols).filter(|col| self.keep[row * cols + col]) {
                let g: f64 = (0..n).map(|i| dy[i * rows + row] * x[i * cols + col]).sum();
                let g = if self.scaled { w[row * cols + col] * g } else { SCALE * g };
                for k in 0..rank {
                    d_a[k * cols + col] += b[row * rank + k] * g;
                    d_b[row * rank + k] += a[k * cols + col] * g;
                }
            }
        }
        (d_a, d_b)
    }
}

/// Sums of `terms` products of magnitude at most `size` in f32, each rounding at most 2⁻²⁴ of the running sum.
fn assert_close(what: &str, got: &[f32], want: &[f64], terms: usize, size: f64) {
    let tolerance = (terms + 8) as f64 * size * 2f64.powi(-24) * 8.0;
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert!((f64::from(*got) - want).abs() <= tolerance, "{what}[{i}] = {got}, not {want} ± {tolerance}");
    }
    assert_eq!(got.len(), want.len(), "{what}");
}

fn check(kind: Kind, shape: (usize, usize, usize), rank: usize, scaled: bool, by_differences: bool) {
    let device = Device::cpu();
    let case = Case::new(&device, kind, shape, rank, scaled);
    let cuda::Shape { n, rows: out, cols } = case.shape;
    let [_, a, b, x, dy] = &case.tensors;
    let (a, b) = (upload(&device, a), upload(&device, b));
    let (x, dy) = (upload_tokens(&device, x, n), upload_tokens(&device, dy, n));
    let adapted = Adapted { weight: &case.held, a: &a, b: &b, rank, form: case.form() };
    let weight = WeightRef::Adapted(adapted);
    // An entry is at most 1 + 2r, of r + 1 terms.
    let size = 1.0 + SCALE * rank as f64;
    let what = format!("{kind:?} {shape:?} rank {rank} scaled {scaled}");

    let w = case.effective(&case.tensors);
    let linear = Operands { n, rows: out, cols, rank: 0, scale: 0.0, w: &w, a: &[], b: &[], bias: &vec![0.0; out] };
    let y = forward(&device, &x, n, weight, None, None).unwrap();
    assert!(y.u.is_none());
    assert_close(&what, &rows(y.y.f32(), n), &linear.forward(&case.tensors[3]), cols + rank, size);
    let dx = backward_input(&device, &dy, n, weight, None).unwrap();
    let turned: Vec<f64> = (0..cols * out).map(|i| w[i % out * cols + i / out]).collect();
    let back = Operands { rows: cols, cols: out, w: &turned, bias: &vec![0.0; cols], ..linear };
    assert_close(&what, &rows(dx.f32(), n), &back.forward(&case.tensors[4]), out + rank, size);

    // Gradients add to what is there.
    let (mut d_a, mut d_b) = (upload(&device, &vec![1.0; rank * cols]), upload(&device, &vec![1.0; out * rank]));
    adapted_gradients(&device, &x, &dy, n, adapted, &mut d_a, &mut d_b).unwrap();
    let (want_a, want_b) = if by_differences {
        let mut tensors = case.tensors.clone();
        let mut of = |which| differences(&mut tensors, which, |tensors| case.objective(tensors));
        (of(1), of(2))
    } else {
        case.gradients()
    };
    let plus_one = |d: Vec<f64>| -> Vec<f64> { d.into_iter().map(|d| d + 1.0).collect() };
    assert_close(&what, d_a.f32(), &plus_one(want_a), n * out, SCALE);
    assert_close(&what, d_b.f32(), &plus_one(want_b), n * cols, SCALE);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn products_and_gradients_equal_the_reference_for_every_kind_of_weight(
        kind in prop::sample::select(KINDS.to_vec()),
        n in 1usize..20, rows in 1usize..70, cols in 1usize..70, rank in 0usize..6, scaled: bool,
    ) {
        check(kind, (n, rows, cols), rank, scaled, rows * cols < 300);
    }
}

#[test]
fn every_kind_agrees_with_finite_differences() {
    for kind in KINDS {
        for scaled in [false, true] {
            check(kind, (5, 9, 14), 3, scaled, true);
        }
    }
}

/// More than a tile of G in both directions, more than a pass of tokens, more ranks than are copied to scratch.
#[test]
fn edges_of_tiles_equal_the_reference() {
    check(Kind::Sparse(DType::F16), (STRIP + 5, 259, 777), 9, false, false);
    check(Kind::NOfM(2, 4), (2, 513, 769), 1, true, false);
    check(Kind::Dense(DType::BF16), (1030, 17, 33), 2, false, false);
    check(Kind::Sparse(DType::F32), (3, 65, 131), 70, false, false);
    check(Kind::Dense(DType::F32), (3, 66, 67), 65, true, false);
    check(Kind::Sparse(DType::BF16), (0, 5, 7), 2, false, false);
}

/// Both directions read what [`merge`] makes of the dense matrix, and each instruction set forms the reference.
#[test]
fn a_merged_weight_is_what_products_read() {
    let device = Device::cpu();
    for kind in KINDS {
        for (scaled, rank) in [(false, 16), (true, 5), (false, 66)] {
            let case = Case::new(&device, kind, (1, 67, 131), rank, scaled);
            let cuda::Shape { rows, cols, .. } = case.shape;
            let want = case.effective(&case.tensors);
            let (a, b) = (upload(&device, &case.tensors[1]), upload(&device, &case.tensors[2]));
            let weight = Adapted { weight: &case.held, a: &a, b: &b, rank, form: case.form() };
            let mask = case.held.mask().unwrap();
            let kept = mask.as_deref().map_or(Kept::Nonzero, Kept::Bits);
            let mut merged = case.held.to_f32().unwrap();
            merge(&mut merged, cols, kept, (a.f32(), b.f32(), rank), case.form());
            assert_close("merged", &merged, &want, rank + 1, 1.0 + SCALE * rank as f64);
            let is_zero = |i: usize| merged[i] == 0.0;
            assert!((0..rows * cols).all(|i| case.keep[i] || is_zero(i)), "{kind:?}: a zero is lost");
            let grown = (0..rows * cols).filter(|i| case.keep[*i] && case.tensors[0][*i] == 0.0);
            assert!(scaled || grown.clone().all(|i| !is_zero(i)), "{kind:?}: a stored zero is kept");
            assert!(grown.count() > 0 || matches!(kind, Kind::Dense(_)));

            let mut line = vec![f32::NAN; cols - 3];
            WeightRef::Adapted(weight).read(rows - 1, 3..cols, &mut line);
            assert_eq!(line, merged[(rows - 1) * cols + 3..]);
            for isa in Isa::available() {
                let (mut block, mut spare) = (vec![f32::NAN; 64 * 64], vec![f32::NAN; 64 * 64]);
                let (height, width, row, col) = (61, 59, 6, 70);
                let straight = WeightRef::Adapted(weight).straight();
                straight.read(isa, row..row + height, col..col + width, &mut block, &mut spare);
                let transposed: Vec<f32> = (0..height * width).map(|i| block[i % width * 64 + i / width]).collect();
                let turned = WeightRef::Adapted(weight).transposed();
                turned.read(isa, col..col + width, row..row + height, &mut block, &mut spare);
                for (i, x) in transposed.iter().enumerate() {
                    let (r, c) = (i / width, i % width);
                    assert_eq!(block[r * 64 + c], *x, "{kind:?} on {isa:?}");
                    assert_close("block", &[*x], &[want[(row + r) * cols + col + c]], rank + 1, size(rank));
                    if isa == Isa::best() {
                        assert_eq!(*x, merged[(row + r) * cols + col + c], "{kind:?}");
                    }
                }
            }
        }
    }
}

fn size(rank: usize) -> f64 {
    1.0 + SCALE * rank as f64
}

#[test]
fn plain_lora_merges_into_every_entry() {
    let (w, a, b) = (random(6, 1), random(2 * 3, 2), random(2 * 2, 3));
    let operands = Operands { n: 0, rows: 2, cols: 3, rank: 2, scale: 0.5, w: &w, a: &a, b: &b, bias: &[] };
    let want = operands.adapted(&[true; 6], false);
    let f32s = |x: &[f64]| x.iter().map(|x| *x as f32).collect::<Vec<f32>>();
    let mut merged = f32s(&w);
    merge(&mut merged, 3, Kept::All, (&f32s(&a), &f32s(&b), 2), Form::Add { scale: 0.5 });
    assert_close("merged", &merged, &want, 3, 2.0);
}

#[test]
fn the_gradients_do_not_depend_on_the_number_of_threads() {
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let device = Device::cpu();
            let case = Case::new(&device, Kind::Sparse(DType::F16), (100, 300, 800), 4, false);
            let [_, a, b, x, dy] = &case.tensors;
            let (a, b) = (upload(&device, a), upload(&device, b));
            let (x, dy) = (upload_tokens(&device, x, 100), upload_tokens(&device, dy, 100));
            let weight = Adapted { weight: &case.held, a: &a, b: &b, rank: 4, form: case.form() };
            let (mut d_a, mut d_b) = (upload(&device, &[0.5; 4 * 800]), upload(&device, &[0.5; 300 * 4]));
            adapted_gradients(&device, &x, &dy, 100, weight, &mut d_a, &mut d_b).unwrap();
            let y = forward(&device, &x, 100, WeightRef::Adapted(weight), None, None).unwrap().y;
            [d_a, d_b, y].map(|x| x.f32().to_vec())
        })
    };
    assert_eq!(run(1), run(5));
}

/// Beside A, B and their gradients there are 768 features of the tokens, a tile of 256 × 768 sums, the tile's parts of A and B,
/// and what products pack, of the tokens' size. The matrix itself would take 32 MiB. Meta accounts and counts the same.
#[test]
fn no_matrix_of_the_weights_size_is_held() {
    let (n, rows, cols, rank) = (96, 2048, 4096, 2);
    let run = |device: &Device| {
        let mask = device.zeros(Category::Masks, DType::U64, rows * cols / 64).unwrap();
        let source = device.alloc(Category::Weights, DType::F16, rows * cols).unwrap();
        let weight = FrozenWeight::pruned(device, &source, rows, cols, &mask, 0).unwrap();
        let zeros = |len| device.zeros(Category::Adapters, DType::F32, len).unwrap();
        let (a, b, mut d_a, mut d_b) = (zeros(rank * cols), zeros(rows * rank), zeros(rank * cols), zeros(rows * rank));
        let (x, dy) = (zeros(n * cols), zeros(n * rows));
        let adapted = Adapted { weight: &weight, a: &a, b: &b, rank, form: Form::Scale };
        drop((mask, source));
        let before = device.memory().in_use();
        device.memory().reset_peak();
        device.start_profile();
        adapted_gradients(device, &x, &dy, n, adapted, &mut d_a, &mut d_b).unwrap();
        let peak = device.memory().peak().total;
        forward(device, &x, n, WeightRef::Adapted(adapted), None, None).unwrap();
        let costs: Vec<_> = device.take_profile().iter().map(|k| (k.kernel, k.flops, k.bytes_read)).collect();
        (before, peak, costs)
    };
    let (in_use, peak, costs) = run(&Device::cpu());
    // The last tile of a row has 256 columns, and so a strip of 64.
    let packed = [768, 256].map(|cols| spmm::tokens_workspace_len(Isa::best(), cols, 256)).into_iter().max().unwrap();
    assert!(packed <= 3 * 256 * 768, "what a product packs is of the tokens' size");
    assert_eq!(peak - in_use, (768 * n + 256 * 768 + rank * (256 + 768) + packed) as u64 * 4);
    let entries = (rows * cols) as u64;
    assert_eq!(costs[0].1, entries * (2 * n as u64 + 1 + 4 * rank as u64));
    assert_eq!(costs[1].1, entries * 2 * (rank as u64 + 1), "nothing is stored, but formed");
    let threads = rayon::current_num_threads();
    assert_eq!(run(&Device::meta(Backend::Cpu, threads)), (in_use, peak, costs));
}

#[test]
fn wrong_operands_are_refused_by_name_and_so_is_what_a_gpu_has_no_kernel_for() {
    let with = |device: &Device, len_a: usize, run: &dyn Fn(Adapted<'_>, &Buffer) -> String| {
        let weight = FrozenWeight::dense(device.alloc(Category::Weights, DType::BF16, 6).unwrap(), 2, 3).unwrap();
        let zeros = |len| device.zeros(Category::Adapters, DType::F32, len).unwrap();
        let (a, b) = (zeros(len_a), zeros(2));
        let adapted = Adapted { weight: &weight, a: &a, b: &b, rank: 1, form: Form::Add { scale: 1.0 } };
        run(adapted, &device.alloc(Category::Activations, device.compute_dtype(), 3).unwrap())
    };
    let product = |weight: Adapted<'_>, x: &Buffer, lora: Option<Lora<'_>>| {
        forward(x.device(), x, 1, WeightRef::Adapted(weight), None, lora).unwrap_err().to_string()
    };
    let (cpu, gpu) = (Device::cpu(), Device::meta(Backend::Cuda, 1));
    let short = with(&cpu, 4, &|weight, x| product(weight, x, None));
    assert_eq!(short, "linear_forward: A has 4 elements, expected 3");
    let short = with(&cpu, 4, &|weight, x| {
        let zeros = |len| cpu.zeros(Category::Adapters, DType::F32, len).unwrap();
        adapted_gradients(&cpu, x, &zeros(2), 1, weight, &mut zeros(4), &mut zeros(2)).unwrap_err().to_string()
    });
    assert_eq!(short, "adapted_gradients: A has 4 elements, expected 3");
    let both =
        with(&gpu, 3, &|weight, x| product(weight, x, Some(Lora { a: weight.a, b: weight.b, rank: 1, scale: 1.0 })));
    assert_eq!(both, "linear_forward: an adapter beside one inside the weight is not available on cuda; use the CPU");
    let table =
        with(&gpu, 3, &|weight, _| embedding::lookup(&gpu, &[0], WeightRef::Adapted(weight)).unwrap_err().to_string());
    assert_eq!(table, "embedding: an adapter inside a weight (masked or scaled) is not available on cuda; use the CPU");
}
