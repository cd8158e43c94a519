//! Dense products by cuBLASLt.

use serde_json::Value;
use tempfile::TempDir;

use crate::cli_support::{Fixture, assert_fails, assert_succeeds, text};
use crate::{PERPLEXITY, on_gpu, perplexity, retrain, with_cublas};

#[test]
fn dense_products_are_the_librarys_where_it_is_asked_for_and_found() {
    let folder = TempDir::new().unwrap();
    let run = |gemm: &'static str, device: &'static str| {
        let flags = ["--method", "full", "--steps", "2", "--batch", "2", "--device", device, "--gemm", gemm];
        retrain(|args| with_cublas("120205", args), &folder, &flags)
    };
    let [own, auto, cublas] = ["own", "auto", "cublas"].map(|gemm| run(gemm, "cuda"));
    assert_eq!(own["library"], Value::Null);
    assert_eq!(auto["library"], "cuBLASLt 12.2.5 for products of weights that train");
    assert_eq!(cublas["library"], "cuBLASLt 12.2.5 for dense products");
    for with in [&auto, &cublas] {
        let (got, want) = (perplexity(with, "retrained"), perplexity(&own, "retrained"));
        assert!((got / want - 1.0).abs() <= PERPLEXITY, "{got}, not {want}");
        assert!(with["peak_bytes"]["by_category"]["workspace"].as_u64() >= Some(32 << 20), "accounted");
    }
    assert_ne!(auto["steps"][1]["loss"], own["steps"][1]["loss"], "its sums have another order");
}

#[test]
fn a_library_that_is_missing_too_old_or_of_no_use_is_told_in_one_line() {
    let (model, eval) = (Fixture::get().model(), Fixture::get().eval());
    let args = ["eval", "--model", text(&model), "--eval", text(&eval), "--gemm", "cublas"];
    let without = on_gpu("a100-40gb", &args).output().unwrap();
    assert_fails(&without, 1, &["no cuBLASLt found (looked for libcublasLt.so, ", "or take --gemm own"]);
    let old = with_cublas("110502", &args).output().unwrap();
    assert_fails(&old, 1, &["cuBLASLt 11.5.2 found, 12.0 or newer is needed"]);
    let on_cpu = with_cublas("120205", &[&args[..], &["--device", "cpu"]].concat()).output().unwrap();
    assert_fails(&on_cpu, 2, &["--gemm cublas multiplies on a GPU"]);
    // Without being asked for it is no error to be without.
    let auto = with_cublas("110502", &[&args[..6], &["auto", "--eval-windows", "2"]].concat()).output().unwrap();
    assert_succeeds(&auto);
}
