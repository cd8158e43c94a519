//! Thread-instructions a second on one core: straight arithmetic from a program built by hand, all checks on.

use std::sync::Arc;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use virtual_gpu::device::Description;
use virtual_gpu::exec::{Launch, LoadedModule, launch};
use virtual_gpu::memory::GlobalMemory;
use virtual_gpu::program::*;

/// Iterations of the loop.
const LOOPS: u32 = 2000;
/// Rounds of the body, unrolled.
const UNROLL: u32 = 8;

/// A kernel that loops over `body`, which works on 32-bit registers 1 to 7.
fn kernel(body: &[Op]) -> Module {
    let (counter, p) = (Reg(0), Reg(0));
    let mut ops: Vec<Op> = (1..8).map(|r| mov(Reg(r), Src::Imm(0x3f80_0000 + u64::from(r)))).collect();
    ops.push(mov(counter, Src::Imm(0)));
    let head = ops.len() as u32;
    for _ in 0..UNROLL {
        ops.extend_from_slice(body);
    }
    ops.push(Op::Int2 { op: IntOp2::Add, ty: Type::U32, dst: counter, a: Src::Reg(counter), b: Src::Imm(1) });
    let compare = Comparison {
        compare: Compare::Lt,
        ty: Type::U32,
        ftz: false,
        a: Src::Reg(counter),
        b: Src::Imm(LOOPS.into()),
        combine: None,
    };
    ops.push(Op::Setp { dst: Some(p), other: None, comparison: compare });
    let plain = |op| Instruction { op, guard: None, line: 1, loc: None };
    let mut code: Vec<Instruction> = ops.into_iter().map(plain).collect();
    let guard = Some(Guard { reg: p, negated: false });
    code.push(Instruction { op: Op::Bra { target: head, uniform: false }, guard, line: 1, loc: None });
    code.push(plain(Op::Ret));
    let names = |n: usize, prefix: &str| (0..n).map(|i| format!("{prefix}{i}").into()).collect();
    let registers = Registers { r32: names(8, "%r"), r64: Vec::new(), pred: names(1, "%p") };
    let function = Function { name: "k".into(), entry: true, code, registers, ..Function::default() };
    Module { functions: vec![function], ..Module::default() }
}

fn mov(dst: Reg, a: Src) -> Op {
    Op::Mov { width: Width::W32, dst, a }
}

fn r(i: u16) -> Src {
    Src::Reg(Reg(i))
}

fn speed(c: &mut Criterion) {
    let fma = |d: u16| Op::Fma { ty: Type::F32, mode: FloatMode::default(), dst: Reg(d), a: r(d), b: r(2), c: r(3) };
    let int = |op, d: u16| Op::Int2 { op, ty: Type::U32, dst: Reg(d), a: r(d), b: r(4) };
    let mad = Op::Int3 { op: IntOp3::MadLo, ty: Type::U32, dst: Reg(7), a: r(7), b: r(4), c: r(1) };
    let bodies = [
        ("fma.f32", vec![fma(1), fma(5), fma(6), fma(7)]),
        ("integer", vec![int(IntOp2::Add, 5), int(IntOp2::Xor, 6), mad.clone(), int(IntOp2::Shr, 5)]),
        ("mixed", vec![fma(1), int(IntOp2::Add, 5), fma(6), mad]),
    ];
    let memory = GlobalMemory::new(1 << 20);
    let device = Description::default_device();
    let mut group = c.benchmark_group("speed");
    for (name, body) in bodies {
        let loaded = LoadedModule::new(Arc::new(kernel(&body)), Vec::new());
        let one = Launch {
            module: &loaded,
            function: 0,
            grid: [1, 1, 1],
            block: [128, 1, 1],
            dynamic_shared: 0,
            params: &[],
            device: &device,
            memory: &memory,
            cooperative: false,
        };
        // One block runs on one host thread.
        let instructions = launch(&one).expect("the kernel is sound").counters.thread_instructions.total();
        group.throughput(Throughput::Elements(instructions));
        group.bench_function(name, |b| b.iter(|| launch(&one).expect("the kernel is sound")));
    }
    group.finish();
}

/// What memory, matrices and waiting cost: nanoseconds a warp instruction of each kind.
fn forms(c: &mut Criterion) {
    let row = "mul.wide.u32 %rd2, %r1, 4; add.u64 %rd2, %rd1, %rd2;";
    let wide = "mul.wide.u32 %rd2, %r1, 16; add.u64 %rd2, %rd1, %rd2; mov.u32 %r3, s; shl.b32 %r4, %r1, 4; \
                add.u32 %r3, %r3, %r4; st.shared.v4.u32 [%r3], {%r1, %r1, %r1, %r1}; bar.sync 0;";
    let zeros = "mov.u32 %r20, 0; mov.f32 %f1, 0f00000000; mov.f32 %f2, %f1; mov.f32 %f3, %f1; mov.f32 %f4, %f1;";
    let cases = [
        ("ld.global", row, "ld.global.u32 %r3, [%rd2];"),
        ("st.global", row, "st.global.u32 [%rd2], %r1;"),
        ("st.shared.v4", wide, "st.shared.v4.u32 [%r3], {%r1, %r1, %r1, %r1};"),
        ("ldmatrix.x4", wide, "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r5, %r6, %r7, %r8}, [%r3];"),
        ("cp.async.16", wide, "cp.async.cg.shared.global [%r3], [%rd2], 16; cp.async.wait_all;"),
        (
            "mma.m16n8k16",
            zeros,
            "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f1, %f2, %f3, %f4}, {%r20, %r20, %r20, %r20}, \
             {%r20, %r20}, {%f1, %f2, %f3, %f4};",
        ),
        ("shfl", "", "shfl.sync.bfly.b32 %r5, %r1, 1, 31, 0xffffffff;"),
        ("bar.sync", "", "bar.sync 0;"),
        ("ex2.approx", "mov.f32 %f1, 0f3F800000;", "ex2.approx.f32 %f2, %f1;"),
    ];
    let memory = GlobalMemory::new(1 << 20);
    let buffer = memory.alloc(1 << 16).expect("a small buffer fits");
    memory.set(buffer, &[0], 1 << 16).expect("the buffer is there");
    let device = Description::default_device();
    let mut group = c.benchmark_group("forms");
    for (name, before, body) in cases {
        let ptx = format!(
            ".version 8.2\n.target sm_80\n.address_size 64\n.shared .align 16 .b8 s[4096];\n\
             .visible .entry k(.param .u64 p) {{ .reg .pred %p<2>; .reg .b32 %r<64>; .reg .f32 %f<8>; .reg .b64 %rd<8>;\n\
             ld.param.u64 %rd1, [p]; mov.u32 %r1, %tid.x; {before} mov.u32 %r50, 0;\n\
             L: {} add.u32 %r50, %r50, 1; setp.lt.u32 %p1, %r50, 100; @%p1 bra L; ret; }}",
            body.repeat(16)
        );
        let module = virtual_gpu::lower::load(&ptx).expect("the kernel is sound");
        let loaded = LoadedModule::load(Arc::new(module), &memory).expect("it has no globals");
        let one = Launch {
            module: &loaded,
            function: 0,
            grid: [1, 1, 1],
            block: [128, 1, 1],
            dynamic_shared: 0,
            params: &buffer.to_le_bytes(),
            device: &device,
            memory: &memory,
            cooperative: false,
        };
        let warp = launch(&one).expect("the kernel is sound").counters.warp_instructions.total();
        group.throughput(Throughput::Elements(warp));
        group.bench_function(name, |b| b.iter(|| launch(&one).expect("the kernel is sound")));
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10).measurement_time(Duration::from_secs(2)).warm_up_time(Duration::from_millis(500));
    targets = speed, forms
}
criterion_main!(benches);
