use proptest::prelude::*;

use super::*;

fn values(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    (0..n)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    /// Each product of k terms below 1 errs by at most about k·2⁻²⁴ times the sum of magnitudes, itself at most k.
    #[test]
    fn products_equal_the_naive_loop_for_any_shape_and_stride(
        m in 1usize..90, n in 1usize..230, k in 0usize..300,
        ta: bool, tb: bool, accumulate: bool, biased: bool, pad in 0usize..3,
    ) {
        let (lda, ldb, ldc) = (if ta { m } else { k } + pad, if tb { k } else { n } + pad, n + pad);
        let a = values(if ta { k } else { m } * lda + 1, 1);
        let b = values(if tb { n } else { k } * ldb + 1, 2);
        let c = values(m * ldc, 3);
        let bias = values(n, 4);
        let sa = if ta { Strided::transposed(&a, lda) } else { Strided::rows(&a, lda) };
        let sb = if tb { Strided::transposed(&b, ldb) } else { Strided::rows(&b, ldb) };
        let dims = Dims { m, n, k };
        let epilogue = Epilogue { accumulate, bias: biased.then_some(&bias) };
        for isa in Isa::available() {
            let mut got = c.clone();
            let mut work = vec![0.0; workspace_len(dims)];
            gemm(isa, dims, sa, sb, &mut got, ldc, epilogue, &mut work);
            for i in 0..m {
                for j in 0..ldc {
                    let mut want = f64::from(c[i * ldc + j]);
                    if j < n {
                        want = if accumulate { want } else { 0.0 };
                        for p in 0..k {
                            let x = if ta { a[p * lda + i] } else { a[i * lda + p] };
                            let y = if tb { b[j * ldb + p] } else { b[p * ldb + j] };
                            want += f64::from(x) * f64::from(y);
                        }
                        want += if biased { f64::from(bias[j]) } else { 0.0 };
                    }
                    let tolerance = (k + 2) as f64 * 2f64.powi(-23) * (k as f64).sqrt().max(1.0);
                    prop_assert!((f64::from(got[i * ldc + j]) - want).abs() <= tolerance, "({i},{j}) on {isa:?}");
                }
            }
        }
    }
}

#[test]
fn the_result_does_not_depend_on_the_number_of_threads() {
    let (m, n, k) = (70, 300, 500);
    let (a, b) = (values(m * k, 5), values(k * n, 6));
    let dims = Dims { m, n, k };
    let product = |threads| {
        let mut c = vec![0.0; m * n];
        let mut work = vec![0.0; workspace_len(dims)];
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(|| {
            let (a, b) = (Strided::rows(&a, k), Strided::rows(&b, n));
            gemm(Isa::best(), dims, a, b, &mut c, n, Epilogue::default(), &mut work);
        });
        c
    };
    let one = product(1);
    assert_eq!(one, product(2));
    assert_eq!(one, product(5));
}
