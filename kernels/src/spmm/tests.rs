use proptest::prelude::*;

use super::*;
use crate::strips::{from_rows, to_rows};

fn values(n: usize, seed: u32, density: f64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        f64::from(state >> 8) / f64::from(1 << 24)
    };
    (0..n).map(|_| if next() < density { (next() * 2.0 - 1.0) as f32 } else { 0.0 }).collect()
}

/// Runs `terms`, whose A are tokens.
fn product(isa: Isa, (m, n): (usize, usize), terms: &[Term<'_>]) -> Vec<f32> {
    let mut out = vec![f32::NAN; m * n];
    let mut work = vec![f32::NAN; tokens_workspace_len(isa, m, terms.iter().map(|term| term.k).sum())];
    spmm(isa, (m, n), terms, Output::Strips(&mut out), Epilogue::default(), &mut work);
    to_rows(&out, m, n)
}

/// Where C goes.
#[derive(Clone, Copy, Debug)]
enum Form {
    Strips,
    Rows,
    Transposed,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    /// Each sum of k terms below 1 errs by at most about k·2⁻²⁴ times the sum of magnitudes, itself at most k.
    #[test]
    fn products_equal_the_naive_loop_for_any_shape_density_and_pair_of_terms(
        m in 1usize..300, n in 1usize..140, k in prop_oneof![0usize..1300, 0usize..80], rank in 0usize..20,
        features: bool, tb: bool, accumulate: bool, biased: bool, pad in 0usize..3,
        form in prop::sample::select(vec![Form::Strips, Form::Rows, Form::Transposed]),
        density in prop::sample::select(vec![0.0, 0.05, 0.5, 1.0]),
    ) {
        // A and U are [m, k] and [m, rank], row-major here.
        let (a, b) = (values(m * k, 1, 1.0), values((k + pad) * (n + pad) + 1, 2, density));
        let (u, v) = (values(m * rank, 3, 1.0), values(n * rank, 4, 1.0));
        let (rows, width, pad_c) = match form {
            Form::Strips => (m, n, 0),
            Form::Rows => (m, n, pad),
            Form::Transposed => (n, m, pad),
        };
        let ldc = width + pad_c;
        let (c, bias) = (values(rows * ldc, 5, 1.0), values(n, 6, 1.0));
        let operand = |data: &[f32], k: usize| -> Vec<f32> {
            // As features, the matrix is stored as k tokens of m features.
            let turned = || (0..k).flat_map(|p| (0..m).map(move |i| data[i * k + p])).collect::<Vec<f32>>();
            if features { from_rows(&turned(), k, m) } else { from_rows(data, m, k) }
        };
        let (in_a, in_u) = (operand(&a, k), operand(&u, rank));
        let as_rows = |data, k| match features {
            true => Rows::Features(Strips::new(data, k, m)),
            false => Rows::Tokens(Strips::new(data, m, k)),
        };
        let of_b = if tb { Matrix::transposed(&b, k + pad) } else { Matrix::rows(&b, n + pad) };
        let of_v = Matrix::transposed(&v, rank);
        let terms =
            [Term { a: as_rows(&in_a, k), b: &of_b, k }, Term { a: as_rows(&in_u, rank), b: &of_v, k: rank }];
        let at_b = |p: usize, j: usize| f64::from(if tb { b[j * (k + pad) + p] } else { b[p * (n + pad) + j] });
        for isa in Isa::available() {
            let epilogue = Epilogue { accumulate, bias: biased.then_some(&bias) };
            let mut got = if let Form::Strips = form { from_rows(&c, m, n) } else { c.clone() };
            let len = if features { features_workspace_len } else { tokens_workspace_len }(isa, m, k + rank);
            let mut work = vec![f32::NAN; len];
            let out = match form {
                Form::Strips => Output::Strips(&mut got),
                Form::Rows => Output::Rows(&mut got, ldc),
                Form::Transposed => Output::Transposed(&mut got, ldc),
            };
            spmm(isa, (m, n), &terms, out, epilogue, &mut work);
            let got = if let Form::Strips = form { to_rows(&got, m, n) } else { got };
            for row in 0..rows {
                for col in 0..ldc {
                    let mut want = f64::from(c[row * ldc + col]);
                    if col < width {
                        let (i, j) = if let Form::Transposed = form { (col, row) } else { (row, col) };
                        want = if accumulate { want } else { 0.0 };
                        want += (0..k).map(|p| f64::from(a[i * k + p]) * at_b(p, j)).sum::<f64>();
                        want += (0..rank).map(|p| f64::from(u[i * rank + p]) * f64::from(v[j * rank + p])).sum::<f64>();
                        want += if biased { f64::from(bias[j]) } else { 0.0 };
                    }
                    let terms = (k + rank) as f64;
                    let tolerance = (terms + 2.0) * 2f64.powi(-23) * terms.sqrt().max(1.0);
                    prop_assert!((f64::from(got[row * ldc + col]) - want).abs() <= tolerance, "({row},{col}) on {isa:?}");
                }
            }
        }
    }

    #[test]
    fn an_activation_as_b_has_tokens_as_rows(m in 1usize..40, n in 1usize..140, k in 1usize..300) {
        let (a, b) = (values(m * k, 1, 1.0), values(k * n, 2, 0.7));
        let (in_a, in_b) = (from_rows(&a, m, k), from_rows(&b, k, n));
        let (strips, matrix) = (Strips::new(&in_b, k, n), Matrix::rows(&b, n));
        let run = |b: &dyn Columns| {
            product(Isa::best(), (m, n), &[Term { a: Rows::Tokens(Strips::new(&in_a, m, k)), b, k }])
        };
        prop_assert_eq!(run(&strips), run(&matrix));
    }

    #[test]
    fn operands_beside_each_other_are_one_matrix(
        m in 1usize..40, left in 0usize..130, right in 1usize..20, k in 1usize..100,
    ) {
        let (a, l, r) = (values(m * k, 1, 1.0), values(k * left, 2, 0.5), values(k * right, 3, 1.0));
        let whole: Vec<f32> =
            (0..k).flat_map(|p| [&l[p * left..(p + 1) * left], &r[p * right..(p + 1) * right]].concat()).collect();
        let (of_left, of_right) = (Matrix::rows(&l, left), Matrix::rows(&r, right));
        let both = Beside { left: &of_left, left_columns: left, right: &of_right };
        let one = Matrix::rows(&whole, left + right);
        let run = |b| {
            product(Isa::best(), (m, left + right), &[Term { a: Rows::Tokens(Strips::new(&a, m, k)), b, k }])
        };
        prop_assert_eq!(run(&both), run(&one));
    }
}

#[test]
fn the_result_does_not_depend_on_the_number_of_threads() {
    // Columns in whole pairs and groups or not, tokens in whole vectors or not, and more rows than a pass.
    // Columns without zeros, too, of which tasks that begin elsewhere take other ones together.
    for (m, n, k, density) in
        [(200, 130, 1500, 0.5), (192, 289, 1500, 0.5), (100, 67, 1100, 0.5), (200, 134, 1100, 1.0)]
    {
        let (a, b) = (values(m * k, 1, 1.0), values(k * n, 2, density));
        let of_b = Matrix::rows(&b, n);
        let terms = [Term { a: Rows::Tokens(Strips::new(&a, m, k)), b: &of_b, k }];
        for isa in Isa::available() {
            let run = |threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| product(isa, (m, n), &terms))
            };
            assert!(run(1) == run(7), "{m}×{n}×{k} on {isa:?}");
        }
    }
}

#[test]
fn a_zero_meets_no_token() {
    // One column, and columns enough for every kind of kernel.
    for (m, n, k) in [(1, 1, 2), (100, 70, 90)] {
        let mut a = vec![2.0f32; m * k];
        let mut b = vec![3.0; k * n];
        a[..m.min(STRIP)].fill(f32::INFINITY); // the first feature of the first strip
        b[..n].fill(0.0); // and its row
        let of_b = Matrix::rows(&b, n);
        let terms = [Term { a: Rows::Tokens(Strips::new(&a, m, k)), b: &of_b, k }];
        for isa in Isa::available() {
            assert!(product(isa, (m, n), &terms).iter().all(|x| *x == 6.0 * (k - 1) as f32), "{m}×{n}×{k} on {isa:?}");
        }
    }
}

/// Against weights of 16 bits tiles may take tokens of 16: each term errs by 2⁻¹⁵ at most, besides what sums in f32 round.
#[test]
fn weights_of_16_bits_are_multiplied_to_16() {
    use crate::device::{Category, Device};
    use crate::weight::{FrozenWeight, WeightRef};
    let device = Device::cpu();
    let (m, n, k) = (130, 96, 700);
    let (x, w) = (values(m * k, 1, 1.0), values(n * k, 2, 1.0));
    let tokens = from_rows(&x, m, k);
    let f16: Vec<half::f16> = w.iter().map(|x| half::f16::from_f32(*x)).collect();
    let bf16: Vec<half::bf16> = w.iter().map(|x| half::bf16::from_f32(*x)).collect();
    let sources = [device.upload(Category::Weights, &f16).unwrap(), device.upload(Category::Weights, &bf16).unwrap()];
    for source in sources {
        let weight = FrozenWeight::dense(source, n, k).unwrap();
        let stored = weight.to_f32().unwrap();
        let of_w = WeightRef::Frozen(&weight).transposed();
        let terms = [Term { a: Rows::Tokens(Strips::new(&tokens, m, k)), b: &of_w, k }];
        for isa in Isa::available() {
            for (at, got) in product(isa, (m, n), &terms).iter().enumerate() {
                let pairs = (0..k).map(|p| f64::from(x[at / n * k + p]) * f64::from(stored[at % n * k + p]));
                let (want, size) = pairs.fold((0.0, 0.0), |(sum, size), x| (sum + x, size + x.abs()));
                let each = if isa == Isa::Amx { 2f64.powi(-15) } else { 0.0 };
                let tolerance = size * (each + k as f64 * 2f64.powi(-24));
                assert!(
                    (f64::from(*got) - want).abs() <= tolerance,
                    "{at} on {isa:?}: {got}, not {want} ± {tolerance}"
                );
            }
        }
    }
}
