use kernels::{gemm::*, simd::Isa};
fn main() {
    for (m, n, k) in
        [(1024, 768, 768), (1024, 3072, 768), (1024, 768, 3072), (1024, 576, 576), (1024, 1536, 576), (1024, 16, 768)]
    {
        let a = vec![0.5f32; m * k];
        let b = vec![0.25f32; n * k];
        let mut c = vec![0.0; m * n];
        let d = Dims { m, n, k };
        let mut w = vec![0.0; workspace_len(d)];
        for isa in Isa::available() {
            let mut best = f64::MAX;
            for _ in 0..8 {
                let t = std::time::Instant::now();
                gemm(isa, d, Strided::rows(&a, k), &Strided::transposed(&b, k), &mut c, n, Epilogue::default(), &mut w);
                best = best.min(t.elapsed().as_secs_f64());
            }
            println!("{m}x{n}x{k} {isa:?} {:.1} GF/s", 2.0 * (m * n * k) as f64 / best / 1e9);
        }
    }
}
