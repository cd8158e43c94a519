use proptest::prelude::*;

use super::*;

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

/// Runs `terms` into a copy of `c`.
fn product(isa: Isa, shape: (usize, usize), terms: &[Term<'_>], c: &[f32], stride: usize, e: Epilogue<'_>) -> Vec<f32> {
    let mut out = c.to_vec();
    let mut work = vec![f32::NAN; workspace_len(shape.0, terms.iter().map(|term| term.k).sum())];
    spmm(isa, shape, terms, Output::rows(&mut out, stride), e, &mut work);
    out
}

/// A `[rows, cols]` matrix, or its transpose, with `pad` elements between rows.
fn matrix(data: &[f32], cols: usize, rows: usize, pad: usize, transposed: bool) -> Matrix<'_> {
    if transposed { Matrix::transposed(data, rows + pad) } else { Matrix::rows(data, cols + pad) }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    /// Each sum of k terms below 1 errs by at most about k·2⁻²⁴ times the sum of magnitudes, itself at most k.
    #[test]
    fn products_equal_the_naive_loop_for_any_shape_density_and_pair_of_terms(
        m in 1usize..150, n in 1usize..140, k in 0usize..1300, rank in 0usize..20,
        ta: bool, tb: bool, tc: bool, accumulate: bool, biased: bool, pad in 0usize..3,
        density in prop::sample::select(vec![0.0, 0.05, 0.5, 1.0]),
    ) {
        let (a, b) = (values((m + pad) * (k + pad) + 1, 1, 1.0), values((k + pad) * (n + pad) + 1, 2, density));
        let (u, v) = (values(m * rank, 3, 1.0), values(n * rank, 4, 1.0));
        let (rows, width) = if tc { (n, m) } else { (m, n) };
        let ldc = width + pad;
        let (c, bias) = (values(rows * ldc, 5, 1.0), values(n, 6, 1.0));
        let (of_a, of_b) = (matrix(&a, k, m, pad, ta), matrix(&b, n, k, pad, tb));
        let (of_u, of_v) = (Matrix::rows(&u, rank), Matrix::transposed(&v, rank));
        let terms = [Term { a: of_a, b: &of_b, k }, Term { a: of_u, b: &of_v, k: rank }];
        let at = |data: &[f32], i: usize, j: usize, rows: usize, cols: usize, transposed: bool| {
            f64::from(if transposed { data[j * (rows + pad) + i] } else { data[i * (cols + pad) + j] })
        };
        for isa in Isa::available() {
            let epilogue = Epilogue { accumulate, bias: biased.then_some(&bias) };
            let mut got = c.clone();
            let mut work = vec![f32::NAN; workspace_len(m, k + rank)];
            let out = if tc { Output::transposed(&mut got, ldc) } else { Output::rows(&mut got, ldc) };
            spmm(isa, (m, n), &terms, out, epilogue, &mut work);
            for row in 0..rows {
                for col in 0..ldc {
                    let mut want = f64::from(c[row * ldc + col]);
                    if col < width {
                        let (i, j) = if tc { (col, row) } else { (row, col) };
                        want = if accumulate { want } else { 0.0 };
                        want += (0..k).map(|p| at(&a, i, p, m, k, ta) * at(&b, p, j, k, n, tb)).sum::<f64>();
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
    fn operands_beside_each_other_are_one_matrix(
        m in 1usize..40, left in 0usize..130, right in 1usize..20, k in 1usize..100,
    ) {
        let (a, l, r) = (values(m * k, 1, 1.0), values(k * left, 2, 0.5), values(k * right, 3, 1.0));
        let whole: Vec<f32> =
            (0..k).flat_map(|p| [&l[p * left..(p + 1) * left], &r[p * right..(p + 1) * right]].concat()).collect();
        let (of_left, of_right) = (Matrix::rows(&l, left), Matrix::rows(&r, right));
        let both = Beside { left: &of_left, left_columns: left, right: &of_right };
        let one = Matrix::rows(&whole, left + right);
        let c = vec![0.0; m * (left + right)];
        let run = |b| {
            let terms = [Term { a: Matrix::rows(&a, k), b, k }];
            product(Isa::best(), (m, left + right), &terms, &c, left + right, Epilogue::default())
        };
        prop_assert_eq!(run(&both), run(&one));
    }
}

#[test]
fn the_result_does_not_depend_on_the_number_of_threads() {
    let (m, n, k) = (200, 130, 1500);
    let (a, b) = (values(m * k, 1, 1.0), values(k * n, 2, 0.5));
    let of_b = Matrix::rows(&b, n);
    let terms = [Term { a: Matrix::rows(&a, k), b: &of_b, k }];
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| product(Isa::best(), (m, n), &terms, &vec![0.0; m * n], n, Epilogue::default()))
    };
    assert_eq!(run(1), run(7));
}

#[test]
fn a_zero_meets_no_token() {
    let (a, b) = ([f32::INFINITY, 2.0], [0.0, 3.0]);
    let of_b = Matrix::rows(&b, 1);
    let terms = [Term { a: Matrix::rows(&a, 2), b: &of_b, k: 2 }];
    for isa in Isa::available() {
        assert_eq!(product(isa, (1, 1), &terms, &[0.0], 1, Epilogue::default()), [6.0]);
    }
}
