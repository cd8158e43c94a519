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
    spmm(isa, shape, terms, &mut out, stride, e, &mut work);
    out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    /// Each sum of k terms below 1 errs by at most about k·2⁻²⁴ times the sum of magnitudes, itself at most k.
    #[test]
    fn products_equal_the_naive_loop_for_any_shape_density_and_pair_of_terms(
        m in 1usize..150, n in 1usize..140, k in 0usize..1300, rank in 0usize..20,
        transposed: bool, accumulate: bool, biased: bool, pad in 0usize..3,
        density in prop::sample::select(vec![0.0, 0.05, 0.5, 1.0]),
    ) {
        let (lda, ldb, ldc) = (k + pad, if transposed { k } else { n } + pad, n + pad);
        let (a, b) = (values(m * lda + 1, 1, 1.0), values(if transposed { n } else { k } * ldb + 1, 2, density));
        let (u, v) = (values(m * rank, 3, 1.0), values(n * rank, 4, 1.0));
        let (c, bias) = (values(m * ldc, 5, 1.0), values(n, 6, 1.0));
        let of_b = if transposed { Dense::transposed(&b, ldb) } else { Dense::rows(&b, ldb) };
        let of_v = Dense::transposed(&v, rank);
        let terms = [Term { a: &a, a_stride: lda, b: &of_b, k }, Term { a: &u, a_stride: rank, b: &of_v, k: rank }];
        for isa in Isa::available() {
            let epilogue = Epilogue { accumulate, bias: biased.then_some(&bias) };
            let got = product(isa, (m, n), &terms, &c, ldc, epilogue);
            for i in 0..m {
                for j in 0..ldc {
                    let mut want = f64::from(c[i * ldc + j]);
                    if j < n {
                        want = if accumulate { want } else { 0.0 };
                        for p in 0..k {
                            let y = if transposed { b[j * ldb + p] } else { b[p * ldb + j] };
                            want += f64::from(a[i * lda + p]) * f64::from(y);
                        }
                        for p in 0..rank {
                            want += f64::from(u[i * rank + p]) * f64::from(v[j * rank + p]);
                        }
                        want += if biased { f64::from(bias[j]) } else { 0.0 };
                    }
                    let terms = (k + rank) as f64;
                    let tolerance = (terms + 2.0) * 2f64.powi(-23) * terms.sqrt().max(1.0);
                    prop_assert!((f64::from(got[i * ldc + j]) - want).abs() <= tolerance, "({i},{j}) on {isa:?}");
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
        let (of_left, of_right) = (Dense::rows(&l, left), Dense::rows(&r, right));
        let both = Beside { left: &of_left, left_columns: left, right: &of_right };
        let one = Dense::rows(&whole, left + right);
        let c = vec![0.0; m * (left + right)];
        let run = |b| {
            let terms = [Term { a: &a, a_stride: k, b, k }];
            product(Isa::best(), (m, left + right), &terms, &c, left + right, Epilogue::default())
        };
        prop_assert_eq!(run(&both), run(&one));
    }
}

#[test]
fn the_result_does_not_depend_on_the_number_of_threads() {
    let (m, n, k) = (200, 130, 1500);
    let (a, b) = (values(m * k, 1, 1.0), values(k * n, 2, 0.5));
    let of_b = Dense::rows(&b, n);
    let terms = [Term { a: &a, a_stride: k, b: &of_b, k }];
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| product(Isa::best(), (m, n), &terms, &vec![0.0; m * n], n, Epilogue::default()))
    };
    assert_eq!(run(1), run(7));
}

#[test]
fn a_zero_meets_no_token() {
    let (a, b) = ([f32::INFINITY, 2.0], [0.0, 3.0]);
    let of_b = Dense::rows(&b, 1);
    let terms = [Term { a: &a, a_stride: 2, b: &of_b, k: 2 }];
    for isa in Isa::available() {
        assert_eq!(product(isa, (1, 1), &terms, &[0.0], 1, Epilogue::default()), [6.0]);
    }
}
