//! What kernels print, character by character as C's printf does, and how they give up.

use crate::gpu::Gpu;
use crate::params;
use virtual_gpu::fault::Kind;

fn gpu() -> Gpu {
    Gpu::new(include_str!("../../programs/printing.ptx"))
}

#[test]
fn integers_in_every_format() {
    let output = gpu().run("integers", 1, 1, params![-42, 255u32, 1_234_567_890_123i64]).output;
    // The text that C's printf gives for the same values.
    let expect = "nothing\n\
         [-42] [  -42] [-42  ] [-0042] [-42] [-42] [-0042]\n\
         [255] [ff] [FF] [0xff] [0x000000ff] [377] [0377]\n\
         [1234567890123] [       1234567890123] [1234567890123       |] [11f71fb04cb] [1234567890123] [255]\n\
         [4422] [4422] [2] [ff]\n\
         [    -42] [-42    ] [ok] [%] [    !] [-42]\n";
    assert_eq!(output, expect);
}

#[test]
fn floats_in_every_format() {
    let output = gpu().run("floats", 1, 1, params![-1234.5678f64, 2.5f32, 0f32]).output;
    let expect = "[-1234.567800] [-1234.57] [ -1234.568] [-1234.6   ] [-1234.6] [-001234.57]\n\
         [-1.234568e+03] [-1.235E+03] [-1234.57] [-1234.57] [-1234.5678] [-1234.57]\n\
         [inf] [-inf] [  nan] [     inf] [0x1p+0]\n\
         [text] [      text] [text      ] [tex] [2.500000 after]\n";
    // The sign of 0 / 0 is not the program's: NVIDIA's is positive.
    assert_eq!(output, expect);
}

#[test]
fn names_that_virtual_functions_give() {
    let output = gpu().run("shapes", 1, 32, params![2f32]).output;
    let mut lines: Vec<&str> = output.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["circle of 2: 12", "square of 2: 4"]);
}

#[test]
fn an_assertion_names_its_thread_and_line() {
    let gpu = gpu();
    let mut x = vec![1i32; 128];
    x[70] = 9;
    let fault = gpu.try_launch("gives_up", [2, 1, 1], [64, 1, 1], 0, &params![gpu.upload(&x), 5]).unwrap_err();
    assert_eq!(fault.kind, Kind::Assert);
    let place = fault.place.as_ref().unwrap();
    assert_eq!((place.block, place.thread), ([1, 0, 0], [6, 0, 0]));
    assert!(fault.what.contains("x[i] <= limit"), "{fault}");
    let (file, line) = place.source.clone().unwrap();
    let source = include_str!("../../programs/printing.cu").lines().nth(line as usize - 1).unwrap();
    assert!(file.ends_with("printing.cu") && source.contains("assert"), "{file}:{line}: {source}");
}
