//! Loads and stores in every space, type and width; hints; asynchronous copies.

use crate::harness::{Program, bits};
use crate::values::{Random, mask};

const TYPES: [&str; 14] =
    ["b8", "b16", "b32", "b64", "u8", "u16", "u32", "u64", "s8", "s16", "s32", "s64", "f32", "f64"];

/// A register as wide as 32 bits for a type, the `i`-th.
fn register(ty: &str, i: usize) -> String {
    match ty {
        "f32" => format!("%f{}", 20 + i),
        "f64" => format!("%fd{}", 20 + i),
        ty if bits(ty) == 64 => format!("%rd{}", 20 + i),
        _ => format!("%r{}", 20 + i),
    }
}

fn list(ty: &str, count: usize) -> String {
    let names: Vec<_> = (0..count).map(|i| register(ty, i)).collect();
    if count == 1 { names[0].clone() } else { format!("{{{}}}", names.join(", ")) }
}

/// What a load of `count` elements puts into registers, as 64 bits each.
fn loaded(bytes: &[u8], ty: &str, count: usize) -> Vec<u64> {
    let n = bits(ty);
    bytes
        .chunks((n / 8) as usize)
        .take(count)
        .map(|chunk| {
            let v = chunk.iter().rev().fold(0, |v, b| v << 8 | u64::from(*b));
            let negative = ty.starts_with('s') && v >> (n - 1) == 1;
            let extended = if negative { v | !mask(n) } else { v };
            extended & mask(n.max(32))
        })
        .collect()
}

/// 96 bytes a thread: 16 of data, 32 for the registers after a load, 16 for what a store leaves, 32 spare.
const STRIDE: usize = 96;
const THREADS: usize = 64;

/// Loads with `load` from `[from]` after `before`, keeps the registers, stores with `store` to `[to]`, then runs `after`.
fn round_trip(globals: &str, load: &str, store: Option<&str>, ty: &str, count: usize, around: [&str; 4]) {
    let [before, from, to, after] = around;
    let mut body =
        format!("mad.wide.u32 %rd2, %r1, {STRIDE}, %rd1;\n{before}\n{load} {}, [{from}];\n", list(ty, count));
    for i in 0..count {
        body += &format!("st.global.b{} [%rd2+{}], {};\n", bits(ty).max(32), 16 + 8 * i, register(ty, i));
    }
    if let Some(store) = store {
        body += &format!("{store} [{to}], {};\n", list(ty, count));
    }
    body += after;
    let mut random = Random(ty.len() as u64 + count as u64);
    let data: Vec<u8> = (0..THREADS * STRIDE).map(|i| if i % STRIDE < 16 { random.next() as u8 } else { 0 }).collect();
    let program = Program { globals, body: &body, block: THREADS as u32, ..Program::default() };
    let found = program.run(&data);
    for t in 0..THREADS {
        let (input, row) = (&data[t * STRIDE..][..16], &found[t * STRIDE..][..STRIDE]);
        let wanted: Vec<u8> = loaded(input, ty, count).iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(row[16..16 + wanted.len()], wanted, "{load} of thread {t}");
        if let Some(store) = store {
            let n = bits(ty) as usize / 8 * count;
            let mut kept = [0; 16];
            kept[..n].copy_from_slice(&input[..n]);
            assert_eq!(row[48..64], kept, "{store} of thread {t}");
        }
    }
}

fn each(f: impl Fn(&str, usize, &str)) {
    for ty in TYPES {
        for (count, vec) in [(1, ""), (2, ".v2"), (4, ".v4")] {
            if bits(ty) as usize * count <= 128 {
                f(ty, count, vec);
            }
        }
    }
}

const COPY_IN: &str = "ld.global.v4.b32 {%r30, %r31, %r32, %r33}, [%rd2];";
const COPY_OUT: &str = "st.global.v4.b32 [%rd2+48], {%r40, %r41, %r42, %r43};";

#[test]
fn every_type_and_width_in_every_space() {
    each(|ty, count, vec| {
        let (load, store) = (format!("ld.global{vec}.{ty}"), format!("st.global{vec}.{ty}"));
        round_trip("", &load, Some(&store), ty, count, ["", "%rd2", "%rd2+48", ""]);
        round_trip(
            "",
            &format!("ld{vec}.{ty}"),
            Some(&format!("st{vec}.{ty}")),
            ty,
            count,
            ["", "%rd2", "%rd2+48", ""],
        );
        round_trip("", &format!("ld.global.nc{vec}.{ty}"), None, ty, count, ["", "%rd2", "", ""]);
        round_trip("", &format!("ldu.global{vec}.{ty}"), None, ty, count, ["", "%rd2", "", ""]);
        for space in ["shared", "local"] {
            let declare = match space {
                "shared" => ".shared .align 16 .b8 area[2048]; mov.u32 %r3, area; mad.lo.u32 %r3, %r1, 32, %r3;",
                _ => ".local .align 16 .b8 area[32]; mov.u32 %r3, area;",
            };
            let before = format!(
                "{declare} {COPY_IN} st.{space}.v4.b32 [%r3], {{%r30, %r31, %r32, %r33}};\n\
                 mov.u32 %r34, 0; st.{space}.v4.b32 [%r3+16], {{%r34, %r34, %r34, %r34}};"
            );
            let after = format!("ld.{space}.v4.b32 {{%r40, %r41, %r42, %r43}}, [%r3+16];\n{COPY_OUT}");
            let (load, store) = (format!("ld.{space}{vec}.{ty}"), format!("st.{space}{vec}.{ty}"));
            round_trip("", &load, Some(&store), ty, count, [&before, "%r3", "%r3+16", &after]);
        }
        parameters(ty, count, vec);
        constants(ty, count, vec);
    });
}

/// Through a function's parameter: the caller stores 16 bytes, the callee loads them as the type and returns the same way.
fn parameters(ty: &str, count: usize, vec: &str) {
    let list = list(ty, count);
    let n = bits(ty) as usize / 8 * count;
    let function = format!(
        ".func (.param .align 16 .b8 out[16]) pass(.param .align 16 .b8 in[16])\n{{\n\
         .reg .b32 %r<40>; .reg .b64 %rd<40>; .reg .f32 %f<40>; .reg .f64 %fd<40>;\n\
         ld.param{vec}.{ty} {list}, [in]; st.param{vec}.{ty} [out], {list}; ret;\n}}"
    );
    crate::harness::record(&format!("ld.param{vec}.{ty} x; st.param{vec}.{ty} x;"));
    let body = format!(
        "mad.wide.u32 %rd2, %r1, {STRIDE}, %rd1; {{ .param .align 16 .b8 a[16]; .param .align 16 .b8 b[16];\n\
         {COPY_IN} st.param.v4.b32 [a], {{%r30, %r31, %r32, %r33}};\n\
         call.uni (b), pass, (a);\nld.param{vec}.{ty} {list}, [b]; st.global{vec}.{ty} [%rd2+48], {list}; }}"
    );
    let mut random = Random(3);
    let data: Vec<u8> = (0..THREADS * STRIDE).map(|_| random.next() as u8).collect();
    let found = Program { globals: &function, body: &body, block: THREADS as u32, ..Program::default() }.run(&data);
    for t in 0..THREADS {
        let at = t * STRIDE;
        assert_eq!(found[at + 48..at + 48 + n], data[at..at + n], "ld.param{vec}.{ty} of thread {t}");
    }
}

fn constants(ty: &str, count: usize, vec: &str) {
    let mut random = Random(7);
    let data: Vec<u8> = (0..16 * THREADS).map(|_| random.next() as u8).collect();
    let list: Vec<_> = data.iter().map(u8::to_string).collect();
    let globals = format!(".const .align 16 .b8 table[{}] = {{{}}};", data.len(), list.join(", "));
    let mut body = format!(
        "mad.wide.u32 %rd2, %r1, 32, %rd1; mov.u64 %rd3, table; mad.wide.u32 %rd3, %r1, 16, %rd3;\n\
         ld.const{vec}.{ty} {}, [%rd3];\n",
        self::list(ty, count)
    );
    for i in 0..count {
        body += &format!("st.global.b{} [%rd2+{}], {};\n", bits(ty).max(32), 8 * i, register(ty, i));
    }
    let program = Program { globals: &globals, body: &body, block: THREADS as u32, ..Program::default() };
    let found = program.run(&vec![0; 32 * THREADS]);
    for t in 0..THREADS {
        let wanted: Vec<u8> = loaded(&data[16 * t..][..16], ty, count).iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(found[32 * t..][..wanted.len()], wanted, "ld.const{vec}.{ty} of thread {t}");
    }
}

#[test]
fn cache_operators_orders_and_hints() {
    let plain = |load: &str, store: &str| {
        let body = format!(
            "mad.wide.u32 %rd2, %r1, 8, %rd1; createpolicy.fractional.L2::evict_last.b64 %rd9, 0f3F800000;\n\
             {load} add.u32 %r3, %r3, 1; {store}"
        );
        let input: Vec<u32> = (0..64).map(|i| if i % 2 == 0 { i * 3 } else { 0 }).collect();
        let found = Program { body: &body, ..Program::default() }.words(&input);
        for t in 0..32 {
            assert_eq!(found[2 * t + 1], input[2 * t] + 1, "{load} {store}");
        }
    };
    let store = "st.global.b32 [%rd2+4], %r3;";
    let load = "ld.global.b32 %r3, [%rd2];";
    for op in [".ca", ".cg", ".cs", ".lu", ".cv"] {
        plain(&format!("ld.global{op}.b32 %r3, [%rd2];"), store);
    }
    for op in [".wb", ".cg", ".cs", ".wt"] {
        plain(load, &format!("st.global{op}.b32 [%rd2+4], %r3;"));
    }
    for space in ["", ".global"] {
        plain(&format!("ld.weak{space}.b32 %r3, [%rd2];"), &format!("st.weak{space}.b32 [%rd2+4], %r3;"));
        plain(&format!("ld.volatile{space}.b32 %r3, [%rd2];"), &format!("st.volatile{space}.b32 [%rd2+4], %r3;"));
        for scope in [".cta", ".gpu", ".sys"] {
            for (read, write) in [(".relaxed", ".relaxed"), (".acquire", ".release")] {
                plain(
                    &format!("ld{read}{scope}{space}.b32 %r3, [%rd2];"),
                    &format!("st{write}{scope}{space}.b32 [%rd2+4], %r3;"),
                );
            }
        }
    }
    for hint in ["evict_normal", "evict_unchanged", "evict_first", "evict_last", "no_allocate"] {
        plain(&format!("ld.global.L1::{hint}.b32 %r3, [%rd2];"), &format!("st.global.L1::{hint}.b32 [%rd2+4], %r3;"));
        plain(&format!("ld.global.nc.L1::{hint}.b32 %r3, [%rd2];"), store);
    }
    for size in ["64B", "128B", "256B"] {
        plain(&format!("ld.global.L2::{size}.b32 %r3, [%rd2];"), store);
        plain(&format!("ld.global.nc.L2::{size}.b32 %r3, [%rd2];"), store);
    }
    plain("ld.global.L2::cache_hint.b32 %r3, [%rd2], %rd9;", "st.global.L2::cache_hint.b32 [%rd2+4], %r3, %rd9;");
    plain("ld.global.nc.L2::cache_hint.b32 %r3, [%rd2], %rd9;", store);
    for op in [".ca", ".cg", ".cs"] {
        plain(&format!("ld.global{op}.nc.b32 %r3, [%rd2];"), store);
    }
    // Advice that must change nothing.
    let advice = "prefetch.global.L1 [%rd2]; prefetch.global.L2 [%rd2]; prefetch.L1 [%rd2]; prefetch.L2 [%rd2];\n\
         prefetch.global.L2::evict_last [%rd2]; prefetch.global.L2::evict_normal [%rd2]; prefetchu.L1 [%rd2];\n\
         .local .b32 mine; st.local.b32 [mine], %r1; prefetch.local.L1 [mine]; prefetch.local.L2 [mine];\n\
         applypriority.global.L2::evict_normal [%rd1], 128; applypriority.L2::evict_normal [%rd1], 128;\n\
         createpolicy.fractional.L2::evict_first.b64 %rd8; createpolicy.fractional.L2::evict_normal.b64 %rd8;\n\
         createpolicy.fractional.L2::evict_unchanged.b64 %rd8;\n\
         createpolicy.fractional.L2::evict_last.L2::evict_first.b64 %rd8, 0f3F000000;\n\
         createpolicy.range.global.L2::evict_last.L2::evict_first.b64 %rd8, [%rd1], 0x100, 0x200;\n\
         createpolicy.range.L2::evict_last.b64 %rd8, [%rd1], 0x100, 0x200;\n\
         createpolicy.cvt.L2.b64 %rd8, 0; ld.global.b32 %r3, [%rd2];";
    plain(advice, store);
    // What is discarded is never read again before it is written.
    let body = "discard.global.L2 [%rd1], 128; discard.L2 [%rd1+128], 128; mad.wide.u32 %rd2, %r1, 4, %rd1;\n\
         bar.warp.sync -1; st.global.b32 [%rd2], %r1;";
    assert_eq!(Program { body, ..Program::default() }.words(&[0; 64])[..32], (0..32).collect::<Vec<_>>());
    shared_orders();
}

fn shared_orders() {
    for (read, write) in [
        ("ld.volatile.shared", "st.volatile.shared"),
        ("ld.weak.shared", "st.weak.shared"),
        ("ld.relaxed.cta.shared", "st.relaxed.cta.shared"),
        ("ld.acquire.cta.shared", "st.release.cta.shared"),
        ("ld.shared::cta", "st.shared::cta"),
    ] {
        let body = format!(
            ".shared .b32 word[32]; mov.u32 %r3, word; mad.lo.u32 %r3, %r1, 4, %r3; mul.lo.u32 %r4, %r1, 5;\n\
             {write}.b32 [%r3], %r4; {read}.b32 %r5, [%r3]; mad.wide.u32 %rd2, %r1, 4, %rd1; st.global.b32 [%rd2], %r5;"
        );
        let found = Program { body: &body, ..Program::default() }.words(&[0; 32]);
        assert_eq!(found, (0..32).map(|t| 5 * t).collect::<Vec<_>>(), "{write} {read}");
    }
}

/// Elements of variables are addressed by index and by offset alike; vectors of registers have members.
#[test]
fn addressing_of_variables() {
    let globals = ".global .align 16 .u32 table[8] = {10, 11, 12, 13, 14, 15, 16, 17};";
    let body = ".reg .v4 .u32 v; ld.global.u32 %r3, [table+8]; ld.global.u32 %r4, table[5]; mov.u64 %rd2, table;\n\
         ld.global.u32 %r5, [%rd2+-4+8]; ld.global.v4.u32 v, [%rd2]; add.u32 %r6, v.w, v.x;\n\
         st.global.v4.u32 [%rd1], {%r3, %r4, %r5, %r6};";
    let found = Program { globals, body, block: 1, ..Program::default() }.words(&[0; 4]);
    assert_eq!(found, [12, 15, 11, 23]);
}

#[test]
fn asynchronous_copies() {
    let wait_all = "cp.async.wait_all;";
    let wait_group = "cp.async.commit_group; cp.async.wait_group 0;";
    for (cop, size) in [("ca", 4), ("ca", 8), ("ca", 16), ("cg", 16)] {
        for (space, hint) in [
            ("shared", ""),
            ("shared", ".L2::64B"),
            ("shared", ".L2::128B"),
            ("shared", ".L2::256B"),
            ("shared::cta", ""),
        ] {
            for (wait, extra, kept) in [(wait_all, "", size), (wait_group, ", %r5", size / 2), (wait_group, ", %p3", 0)]
            {
                if (!hint.is_empty() || space != "shared") && !extra.is_empty() {
                    continue;
                }
                let body = format!(
                    ".shared .align 16 .b8 area[1024]; mov.u32 %r3, area; mad.lo.u32 %r3, %r1, 16, %r3;\n\
                     mad.wide.u32 %rd2, %r1, 32, %rd1; mov.u32 %r5, {}; setp.eq.u32 %p3, %r5, %r5;\n\
                     mov.u32 %r6, 0x01010101; st.shared.v4.b32 [%r3], {{%r6, %r6, %r6, %r6}};\n\
                     cp.async.{cop}.{space}.global{hint} [%r3], [%rd2], {size}{extra};\n{wait}\n\
                     ld.shared.v4.b32 {{%r40, %r41, %r42, %r43}}, [%r3];\n\
                     st.global.v4.b32 [%rd2+16], {{%r40, %r41, %r42, %r43}};",
                    size / 2
                );
                let mut random = Random(11);
                let data: Vec<u8> = (0..32 * 32).map(|_| random.next() as u8).collect();
                let found = Program { body: &body, ..Program::default() }.run(&data);
                for t in 0..32 {
                    let mut wanted = [1; 16];
                    wanted[..size].fill(0);
                    wanted[..kept].copy_from_slice(&data[32 * t..][..kept]);
                    assert_eq!(found[32 * t + 16..][..16], wanted, "{body} of thread {t}");
                }
            }
        }
    }
    let body = "createpolicy.fractional.L2::evict_first.b64 %rd9; .shared .align 16 .b8 area[512]; mov.u32 %r3, area;\n\
         mad.lo.u32 %r3, %r1, 16, %r3; mad.wide.u32 %rd2, %r1, 16, %rd1;\n\
         cp.async.cg.shared.global.L2::cache_hint [%r3], [%rd2], 16, %rd9; cp.async.wait_all;\n\
         cp.async.ca.shared.global.L2::cache_hint [%r3], [%rd2], 16, %rd9; cp.async.wait_all;\n\
         ld.shared.b32 %r4, [%r3+12]; st.global.b32 [%rd2], %r4;";
    let input: Vec<u32> = (0..128).collect();
    let found = Program { body, ..Program::default() }.words(&input);
    assert!((0..32).all(|t| found[4 * t] == 4 * t as u32 + 3));
}

/// A pipeline of three stages: `wait_group 1` leaves the newest group in flight.
#[test]
fn groups_of_copies_complete_in_order() {
    let body = ".shared .align 16 .b8 area[1536]; mov.u32 %r3, area; mad.lo.u32 %r3, %r1, 4, %r3;\n\
         mad.wide.u32 %rd2, %r1, 4, %rd1; mov.u32 %r9, 0; mov.u32 %r8, 0;\n\
         cp.async.ca.shared.global [%r3], [%rd2], 4; cp.async.commit_group;\n\
         cp.async.ca.shared.global [%r3+128], [%rd2+128], 4; cp.async.commit_group;\n\
         cp.async.wait_group 1; ld.shared.b32 %r4, [%r3]; add.u32 %r9, %r9, %r4;\n\
         cp.async.ca.shared.global [%r3+256], [%rd2+256], 4; cp.async.commit_group;\n\
         cp.async.wait_group 1; ld.shared.b32 %r4, [%r3+128]; mad.lo.u32 %r9, %r4, 10, %r9;\n\
         cp.async.wait_group 0; ld.shared.b32 %r4, [%r3+256]; mad.lo.u32 %r9, %r4, 100, %r9; st.global.b32 [%rd2], %r9;";
    let input: Vec<u32> = (0..96).map(|i| i % 7).collect();
    let found = Program { body, ..Program::default() }.words(&input);
    for t in 0..32 {
        assert_eq!(found[t], input[t] + 10 * input[t + 32] + 100 * input[t + 64]);
    }
}

pub fn all() {
    every_type_and_width_in_every_space();
    cache_operators_orders_and_hints();
    addressing_of_variables();
    asynchronous_copies();
    groups_of_copies_complete_in_order();
}
