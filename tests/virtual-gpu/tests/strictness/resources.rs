//! Launches that the device described can't hold: refused before a block runs, so that they name the kernel and the number.

use std::fmt::Write;
use std::sync::Arc;

use virtual_gpu::device::Description;
use virtual_gpu::exec::{Launch, LoadedModule, launch};
use virtual_gpu::fault::{Fault, Kind};
use virtual_gpu::lower;
use virtual_gpu::memory::GlobalMemory;

struct Shape<'a> {
    device: &'a str,
    grid: [u32; 3],
    block: [u32; 3],
    dynamic_shared: u32,
    cooperative: bool,
}

const ONE: Shape<'_> =
    Shape { device: "a100-80gb", grid: [1; 3], block: [32, 1, 1], dynamic_shared: 0, cooperative: false };

fn start(directives: &str, body: &str, shape: &Shape<'_>) -> Result<(), Fault> {
    let text = format!(
        ".version 8.2\n.target sm_80\n.address_size 64\n.visible .entry greedy(.param .u64 p)\n{directives}\n{{\n{body}\nret;\n}}\n"
    );
    let memory = GlobalMemory::new(1 << 20);
    let buffer = memory.alloc(1024).unwrap();
    memory.set(buffer, &[1], 1024).unwrap();
    let module = lower::load(&text).unwrap_or_else(|e| panic!("{e}"));
    let loaded = LoadedModule::load(Arc::new(module), &memory).unwrap();
    let Shape { device, grid, block, dynamic_shared, cooperative } = *shape;
    let device = Description::find(device).unwrap();
    let params = buffer.to_le_bytes();
    let function = loaded.module().function("greedy").unwrap();
    let (module, memory, device) = (&loaded, &memory, &device);
    launch(&Launch { module, function, grid, block, dynamic_shared, params: &params, device, memory, cooperative })
        .map(drop)
}

#[track_caller]
fn refused(directives: &str, body: &str, shape: &Shape<'_>, number: &str) {
    let fault = start(directives, body, shape).expect_err(number);
    assert_eq!(fault.kind, Kind::TooManyResources, "{fault}");
    let message = fault.to_string();
    assert!(message.contains("kernel greedy: ") && message.contains(number), "{message}");
}

#[test]
fn threads_and_blocks() {
    refused("", "", &Shape { block: [1025, 1, 1], ..ONE }, "1024");
    refused("", "", &Shape { block: [32, 32, 2], ..ONE }, "1024");
    refused("", "", &Shape { block: [1, 1, 65], ..ONE }, "64 in z");
    refused("", "", &Shape { block: [0, 1, 1], ..ONE }, "empty");
    refused("", "", &Shape { grid: [1, 65536, 1], ..ONE }, "65535");
    refused("", "", &Shape { grid: [1, 1, 65536], ..ONE }, "65535");
    refused(".maxntid 64, 1, 1", "", &Shape { block: [96, 1, 1], ..ONE }, ".maxntid");
    refused(".reqntid 64, 1, 1", "", &ONE, ".reqntid");
    // 108 multiprocessors of 2048 threads each.
    refused("", "", &Shape { grid: [217, 1, 1], block: [1024, 1, 1], cooperative: true, ..ONE }, "216 fit");
    start("", "", &Shape { grid: [216, 1, 1], block: [1024, 1, 1], cooperative: true, ..ONE }).unwrap();
}

#[test]
fn shared_memory_of_each_device() {
    // What one block may opt into: 163 KiB, 227 KiB, 99 KiB.
    for (device, most) in
        [("a100-40gb", 163 << 10), ("a100-80gb", 163 << 10), ("h100", 227 << 10), ("rtx-4090", 99 << 10)]
    {
        start("", "", &Shape { device, dynamic_shared: most, ..ONE }).unwrap();
        refused("", "", &Shape { device, dynamic_shared: most + 1, ..ONE }, &most.to_string());
        // Static and dynamic count together.
        let kept = ".shared .b8 s[256]; .reg .b32 %r; mov.u32 %r, s;";
        start("", kept, &Shape { device, dynamic_shared: most - 256, ..ONE }).unwrap();
        refused("", kept, &Shape { device, dynamic_shared: most - 255, ..ONE }, &most.to_string());
    }
}

#[test]
fn registers() {
    // 150 values live at once: 1024 threads would want 153600 of the 65536 registers of a block.
    let mut body = String::from(".reg .b32 %r<150>; .reg .b64 %rd<2>; ld.param.u64 %rd1, [p];\n");
    (0..150).for_each(|i| writeln!(body, "ld.global.u32 %r{i}, [%rd1+{}];", 4 * i).unwrap());
    (1..150).for_each(|i| writeln!(body, "xor.b32 %r0, %r0, %r{i};").unwrap());
    body += "st.global.u32 [%rd1], %r0;";
    refused("", &body, &Shape { block: [1024, 1, 1], ..ONE }, "65536 registers");
    start("", &body, &Shape { block: [256, 1, 1], ..ONE }).unwrap();
    // The compiler would have spilled for a kernel that says how large its blocks are.
    start(".maxntid 1024, 1, 1", &body, &Shape { block: [1024, 1, 1], ..ONE }).unwrap();
    start(".maxnreg 64", &body, &Shape { block: [1024, 1, 1], ..ONE }).unwrap();
}
