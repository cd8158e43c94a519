//! One deliberately broken kernel for every rule, and every way to break it: each must be caught, and the message must name
//! the kernel, the block, the thread and the line of the PTX.

mod language;
mod memory;
mod registers;
mod resources;
mod sharing;
mod waiting;

use std::sync::Arc;

use virtual_gpu::device::Description;
use virtual_gpu::exec::{Launch, LoadedModule, launch};
use virtual_gpu::fault::{Fault, Kind};
use virtual_gpu::lower;
use virtual_gpu::memory::GlobalMemory;

/// Ends the line that is wrong.
const HERE: &str = "// <- wrong";
/// The thread that `%p1` picks: the sixth lane of the second warp.
const THREAD: u32 = 37;
/// Threads of a block: three dimensions, so that the thread named is no plain number.
const BLOCK: [u32; 3] = [8, 4, 2];

/// What every kernel begins with. `%rd1` is 1032 bytes that were written, `%rd5` as many that were freed, `%rd6` 1024 that
/// nothing wrote. `%r1` is the thread's linear index, `%p1` holds for [`THREAD`] alone, `%p2` for the others; `%r0` is 0.
/// Of the two blocks the first leaves at once.
const PROLOGUE: &str = ".reg .pred %p<16>; .reg .b16 %h<16>; .reg .b32 %r<64>; .reg .f32 %f<32>; .reg .b64 %rd<32>; .reg .f64 %fd<4>;
    ld.param.u64 %rd1, [p]; ld.param.u64 %rd5, [p+8]; ld.param.u64 %rd6, [p+16];
    mov.u32 %r1, %tid.y; mov.u32 %r2, %tid.z; mad.lo.u32 %r1, %r2, 4, %r1; mov.u32 %r2, %tid.x; mad.lo.u32 %r1, %r1, 8, %r2;
    setp.eq.u32 %p1, %r1, 37; setp.ne.u32 %p2, %r1, 37; mov.u32 %r0, 0;
    mov.u32 %r2, %ctaid.x; setp.eq.u32 %p3, %r2, 0; @%p3 exit;
";

/// A kernel named `wrong`, of two blocks of [`BLOCK`] threads.
fn text(globals: &str, body: &str) -> String {
    // A kernel gets the shared variables that it names.
    let named = if globals.contains(".shared") { "mov.u32 %r0, s; mov.u32 %r0, 0;\n" } else { "" };
    format!(
        ".version 8.2\n.target sm_80\n.address_size 64\n{globals}\n.visible .entry wrong(.param .align 8 .b8 p[24])\n{{\n\
         {PROLOGUE}{named}{body}\n    ret;\n}}\n"
    )
}

fn run(text: &str) -> Result<(), Fault> {
    let memory = GlobalMemory::new(1 << 30);
    let module = lower::load(text).unwrap_or_else(|e| panic!("{e}\nof\n{text}"));
    let [written, freed, fresh] = [1032, 1032, 1024].map(|bytes| memory.alloc(bytes).unwrap());
    memory.set(written, &[0], 1032).unwrap();
    memory.set(freed, &[0], 1032).unwrap();
    memory.free(freed).unwrap();
    let loaded = LoadedModule::load(Arc::new(module), &memory).unwrap();
    launch(&Launch {
        module: &loaded,
        function: loaded.module().function("wrong").unwrap(),
        grid: [2, 1, 1],
        block: BLOCK,
        dynamic_shared: 0,
        params: &[written, freed, fresh].map(u64::to_le_bytes).concat(),
        device: &Description::default_device(),
        memory: &memory,
        cooperative: false,
    })
    .map(drop)
}

/// Asserts that the body breaks a rule in a thread at the line that ends with [`HERE`], and that the message tells all that.
#[track_caller]
fn caught_in(thread: u32, kind: Kind, globals: &str, body: &str) -> Fault {
    let text = text(globals, body);
    let fault = run(&text).expect_err(body);
    assert_eq!(fault.kind, kind, "{body}\n{fault}");
    let wrong: Vec<usize> = text.lines().enumerate().filter(|(_, l)| l.contains(HERE)).map(|(i, _)| i + 1).collect();
    let [line] = wrong[..] else { panic!("one line is wrong, not {wrong:?}:\n{body}") };
    let statement = text.lines().nth(line - 1).unwrap().trim().trim_end_matches(HERE).trim();
    let (x, y, z) = (thread % 8, thread / 8 % 4, thread / 32);
    let message = fault.to_string();
    for part in [
        "kernel wrong: ".to_owned(),
        format!("block (1,0,0) thread ({x},{y},{z}), "),
        format!("PTX line {line}: {statement}"),
    ] {
        assert!(message.contains(&part), "{body}\nis said to be\n{message}\nwithout\n{part}");
    }
    fault
}

/// The same in [`THREAD`].
#[track_caller]
fn caught(kind: Kind, globals: &str, body: &str) -> Fault {
    caught_in(THREAD, kind, globals, body)
}

/// Asserts that nothing is wrong with the body: what the rule allows, next to what it does not.
#[track_caller]
fn allowed(globals: &str, body: &str) {
    if let Err(fault) = run(&text(globals, body)) {
        panic!("{body}\nis right, but\n{fault}");
    }
}
