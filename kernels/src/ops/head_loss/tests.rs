use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::reference::Operands;
use super::*;
use crate::device::Backend;
use crate::strips::{STRIP, from_rows, to_rows};
use crate::weight::FrozenWeight;

/// A case in f64, every number of it an f32.
struct Case {
    vocab: usize,
    dim: usize,
    rank: usize,
    hidden: Vec<f64>,
    weight: Vec<f64>,
    a: Vec<f64>,
    b: Vec<f64>,
    targets: Vec<u32>,
}

const LORA_SCALE: f32 = 2.0;
const GRADIENT_SCALE: f32 = 0.25;

impl Case {
    fn new(n: usize, vocab: usize, dim: usize, rank: usize) -> Case {
        let mut random = ChaCha8Rng::seed_from_u64(7);
        let mut values =
            |n: usize| -> Vec<f64> { (0..n).map(|_| f64::from(random.random_range(-1.0f32..1.0))).collect() };
        let [hidden, weight, a, b] = [n * dim, vocab * dim, rank * dim, vocab * rank].map(&mut values);
        // Every fourth row is ignored, the last id is among the targets.
        let target = |row: usize| if row % 4 == 3 { IGNORED } else { (vocab - 1 - row * 31 % vocab) as u32 };
        Case { vocab, dim, rank, hidden, weight, a, b, targets: (0..n).map(target).collect() }
    }

    fn operands(&self) -> Operands<'_> {
        Operands {
            vocab: self.vocab,
            dim: self.dim,
            rank: self.rank,
            scale: f64::from(LORA_SCALE),
            hidden: &self.hidden,
            weight: &self.weight,
            a: &self.a,
            b: &self.b,
            targets: &self.targets,
        }
    }

    fn on(&self, device: &Device) -> Uploaded {
        Uploaded {
            hidden: upload(device, &from_rows(&self.hidden, self.targets.len(), self.dim)),
            weight: FrozenWeight::dense(upload(device, &self.weight), self.vocab, self.dim).unwrap(),
            a: upload(device, &self.a),
            b: upload(device, &self.b),
            rank: self.rank,
        }
    }

    /// Losses, dh, dA, dB and dW in chunks of `chunk` rows. The parameters' gradients start at 1.
    fn run(&self, isa: Isa, chunk: usize) -> [Vec<f32>; 5] {
        let device = Device::cpu();
        let operands = self.on(&device);
        let head = operands.head();
        let mut scratch = Scratch::new(&device, isa, &head, (self.targets.len(), chunk), true).unwrap();
        let mut losses = vec![f32::NAN; self.targets.len()];
        let mut d_hidden = vec![f32::NAN; self.hidden.len()];
        let [mut d_a, mut d_b, mut d_w] = [&self.a, &self.b, &self.weight].map(|x| vec![1.0; x.len()]);
        let gradients = cpu::Gradients {
            scale: GRADIENT_SCALE,
            hidden: Some(&mut d_hidden),
            lora: (self.rank > 0).then_some((&mut d_a, &mut d_b)),
            weight: Some(&mut d_w),
        };
        let hidden = operands.hidden.f32();
        cpu::run(isa, hidden, head, &self.targets, &mut losses, Some(gradients), scratch.parts());
        let d_hidden = to_rows(&d_hidden, self.targets.len(), self.dim);
        [losses, d_hidden, d_a, d_b, d_w]
    }

    fn check(&self, chunk: usize) {
        let d = self.operands().gradients(f64::from(GRADIENT_SCALE));
        let plus_one = |x: Vec<f64>| -> Vec<f64> { x.into_iter().map(|x| x + 1.0).collect() };
        let want = [self.operands().losses(), d.hidden, plus_one(d.a), plus_one(d.b), plus_one(d.weight)];
        for isa in Isa::available() {
            let got = self.run(isa, chunk);
            for (name, (got, want)) in ["loss", "dh", "dA", "dB", "dW"].iter().zip(got.iter().zip(&want)) {
                close(&format!("{name} on {isa:?}"), got, want, self.tolerance());
            }
        }
    }

    /// A logit is a sum of D products below 1 and of r below 2·D: it errs by at most e = (D + r·2·D)·(D + r)·2⁻²⁴, and
    /// each probability by that share of itself. The gradients of a row's logits sum to at most 2·0.25 in magnitude, so
    /// dh, dB and dW err by at most that times e and the factor beside it, at most 1, 2·D and 1; dA sums N rows of such
    /// with both factors, 2·r and 1; N rows add N·2⁻²⁴ each.
    fn tolerance(&self) -> f64 {
        let (n, dim, rank) = (self.targets.len() as f64, self.dim as f64, self.rank as f64);
        let logit = (dim + 2.0 * rank * dim) * (dim + rank + 8.0) * 2f64.powi(-24);
        let sums = (n + 8.0) * 2f64.powi(-24) * (n + 2.0 * dim);
        logit * (1.0 + 2.0 * rank).max(n / 4.0) + sums
    }
}

struct Uploaded {
    hidden: Buffer,
    weight: FrozenWeight,
    a: Buffer,
    b: Buffer,
    rank: usize,
}

impl Uploaded {
    fn head(&self) -> Head<'_> {
        let lora = Lora { a: &self.a, b: &self.b, rank: self.rank, scale: LORA_SCALE };
        Head { weight: WeightRef::Frozen(&self.weight), lora: (self.rank > 0).then_some(lora) }
    }
}

fn upload(device: &Device, values: &[f64]) -> Buffer {
    let values: Vec<f32> = values.iter().map(|x| *x as f32).collect();
    device.upload(Category::Weights, &values).unwrap()
}

fn close(what: &str, got: &[f32], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len());
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert!((f64::from(*got) - want).abs() <= tolerance, "{what}: [{i}] is {got}, not {want} ± {tolerance}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn losses_and_gradients_equal_the_reference_for_any_shape(
        n in prop_oneof![1usize..40, 90usize..250], vocab in 1usize..200, dim in 1usize..40, rank in 0usize..4,
        strips in 1usize..4,
    ) {
        Case::new(n, vocab, dim, rank).check(strips * STRIP);
    }
}

#[test]
fn a_vocabulary_of_several_blocks_equals_the_reference() {
    Case::new(9, 2 * 4096 + 5, 3, 2).check(9);
}

#[test]
fn the_reference_gradients_are_finite_differences_of_the_reference() {
    let mut case = Case::new(6, 7, 3, 2);
    let d = case.operands().gradients(1.0);
    let fields: [fn(&mut Case) -> &mut Vec<f64>; 4] =
        [|c| &mut c.hidden, |c| &mut c.a, |c| &mut c.b, |c| &mut c.weight];
    // A central difference errs by h²/6 times the third derivative (below 100) plus 2⁻⁵²·loss/h: both below 2e-9.
    let h = 1e-5;
    for (name, (field, want)) in ["h", "A", "B", "W"].iter().zip(fields.iter().zip([d.hidden, d.a, d.b, d.weight])) {
        for (i, want) in want.into_iter().enumerate() {
            let mut at = |step: f64| {
                field(&mut case)[i] += step;
                let sum: f64 = case.operands().losses().iter().sum();
                field(&mut case)[i] -= step;
                sum
            };
            let got = (at(h) - at(-h)) / (2.0 * h);
            assert!((got - want).abs() < 1e-8, "d{name}[{i}] is {want}, but differences say {got}");
        }
    }
}

#[test]
fn the_loss_alone_equals_the_loss_with_gradients() {
    let case = Case::new(33, 100, 20, 3);
    let device = Device::cpu();
    let operands = case.on(&device);
    let mut d_a = device.zeros(Category::Gradients, DType::F32, case.a.len()).unwrap();
    let mut d_b = device.zeros(Category::Gradients, DType::F32, case.b.len()).unwrap();
    let wanted = Wanted { scale: 1.0, hidden: false, lora: Some((&mut d_a, &mut d_b)), weight: None };
    let both = loss_and_gradients(&operands.hidden, operands.head(), &case.targets, wanted).unwrap();
    let rows = both.rows.read().unwrap();
    assert_eq!(rows, loss(&operands.hidden, operands.head(), &case.targets).unwrap().read().unwrap());
    assert!(both.d_hidden.is_none());
    assert_eq!(both.rows.sum().unwrap(), rows.iter().map(|x| f64::from(*x)).sum::<f64>());
    let want = case.operands().gradients(1.0);
    close("dA", d_a.f32(), &want.a, 4.0 * case.tolerance());
    close("dB", d_b.f32(), &want.b, 4.0 * case.tolerance());
}

/// Chunks of 384 and 316 rows: only the second ends in a strip of no whole vectors.
#[test]
fn a_last_chunk_that_ends_within_a_vector_has_room() {
    let case = Case::new(700, 50_000, 1, 1);
    let operands = case.on(&Device::cpu());
    let got = loss(&operands.hidden, operands.head(), &case.targets).unwrap().read().unwrap();
    close("loss", &got, &case.operands().losses(), case.tolerance());
}

#[test]
fn the_result_does_not_depend_on_the_number_of_threads() {
    let case = Case::new(200, 300, 50, 4);
    let with = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| case.run(Isa::best(), STRIP))
    };
    let one = with(1);
    assert_eq!(one, with(2));
    assert_eq!(one, with(5));
}

#[test]
fn large_logits_neither_overflow_nor_lose_the_loss() {
    let mut case = Case::new(8, 50, 4, 0);
    case.weight.iter_mut().for_each(|w| *w *= 8192.0);
    let want = case.operands().losses();
    // A logit is a sum of 4 products below 2¹³, each of which rounds by at most 2⁻¹⁰ as the sum stays below 2¹⁵; the loss
    // is the difference of two and rounds by at most 2⁻⁹.
    close("loss", &case.run(Isa::best(), 8)[0], &want, 10.0 * 2f64.powi(-10));
}

#[test]
fn a_logit_that_is_not_a_number_makes_the_loss_not_a_number() {
    let mut case = Case::new(2, 40, 4, 0);
    case.weight[0] = f64::NAN;
    assert!(case.run(Isa::best(), 2)[0][0].is_nan());
}

#[test]
fn chunks_are_bounded_even_and_whole_strips() {
    let chunk_rows = |n, vocab: usize| chunk_rows(n, 4 * vocab, CHUNK_BYTES, STRIP);
    assert_eq!(chunk_rows(100, 1000), 100);
    // 50 272 logits of 4 bytes fit 1334 times into 256 MiB, 13 strips: 2048 rows are 11 and 11.
    assert_eq!(chunk_rows(1024, 50_272), 1024);
    assert_eq!(chunk_rows(2048, 50_272), 1056);
    // And 128 256 fit 523 times, five strips: 1024 rows are 4, 4 and 3.
    assert_eq!(chunk_rows(1024, 128_256), 384);
    assert_eq!(chunk_rows(700, 128_256), 384);
    assert_eq!(chunk_rows(1000, 1 << 30), STRIP);
    assert_eq!(chunk_rows(0, 10), 1);
}

#[test]
fn meta_accounts_what_the_cpu_takes() {
    let case = Case::new(20, 100, 30, 4);
    let peak = |device: &Device| {
        let operands = case.on(device);
        let mut d_w = device.zeros(Category::Gradients, DType::F32, case.weight.len()).unwrap();
        let losses = loss(&operands.hidden, operands.head(), &case.targets).unwrap();
        let of_loss = device.memory().peak();
        let wanted = Wanted { scale: 1.0, hidden: true, lora: None, weight: Some(&mut d_w) };
        let both = loss_and_gradients(&operands.hidden, operands.head(), &case.targets, wanted).unwrap();
        assert_eq!([losses, both.rows].map(|losses| losses.read().unwrap().len()), [20, 20]);
        (of_loss, device.memory().peak())
    };
    let cpu = Device::cpu();
    assert_eq!(peak(&cpu), peak(&Device::meta(Backend::Cpu, cpu.threads())));
}

#[test]
fn bad_operands_are_named() {
    let device = Device::cpu();
    let case = Case::new(4, 10, 3, 2);
    let operands = case.on(&device);
    let message = |targets: &[u32]| loss(&operands.hidden, operands.head(), targets).unwrap_err().to_string();
    assert_eq!(message(&[0; 3]), "head_loss: h has 12 elements, expected 9");
    assert_eq!(message(&[0, 1, 10, 2]), "head_loss: the target of row 2 is 10, expected an id below 10");
    let lora = Lora { rank: 3, ..operands.head().lora.unwrap() };
    let head = Head { lora: Some(lora), ..operands.head() };
    let error = loss(&operands.hidden, head, &case.targets).unwrap_err().to_string();
    assert_eq!(error, "head_loss: A has 6 elements, expected 9");
    let (mut d_a, mut d_b) = (upload(&device, &case.a), upload(&device, &case.b));
    let wanted = Wanted { scale: 1.0, hidden: false, lora: Some((&mut d_a, &mut d_b)), weight: None };
    let head = Head { lora: None, ..operands.head() };
    let error = loss_and_gradients(&operands.hidden, head, &case.targets, wanted).unwrap_err().to_string();
    assert_eq!(error, "head_loss_and_gradients: dA and dB are wanted of a head without an adapter");
}
