//! Branches, calls, predication, the end of threads, stacks.

use crate::harness::Program;

fn run(globals: &str, body: &str, wanted: impl Fn(u32) -> u32) {
    let body = format!("mad.wide.u32 %rd2, %r1, 4, %rd1; mov.u32 %r10, 0;\n{body}\nDONE: st.global.u32 [%rd2], %r10;");
    let found = Program { globals, body: &body, block: 64, ..Program::default() }.words(&[0xdead; 64]);
    assert_eq!(found, (0..64).map(wanted).collect::<Vec<_>>(), "{body}");
}

#[test]
fn branches() {
    run("", "setp.lt.u32 %p1, %r1, 20; @%p1 bra LOW; mov.u32 %r10, 2; bra.uni DONE; LOW: mov.u32 %r10, 1;", |t| {
        if t < 20 { 1 } else { 2 }
    });
    run("", "LOOP: add.u32 %r10, %r10, 3; setp.lt.u32 %p1, %r10, %r1; @%p1 bra LOOP;", |t| t.max(1).div_ceil(3) * 3);
    run("", "setp.ge.u32 %p1, %r1, 9; @!%p1 mov.u32 %r10, 5; @%p1 mov.u32 %r10, %r1;", |t| if t < 9 { 5 } else { t });
    let table = "TABLE: .branchtargets A, B, C, A; and.b32 %r3, %r1, 3;";
    let cases = "A: mov.u32 %r10, 7; bra DONE; B: mov.u32 %r10, 8; bra DONE; C: mov.u32 %r10, 9;";
    for name in ["brx.idx", "brx.idx.uni"] {
        let index = if name.ends_with("uni") { "mov.u32 %r3, 2;" } else { "" };
        let uniform = !index.is_empty();
        run("", &format!("{table} {index} {name} %r3, TABLE; {cases}"), |t| {
            if uniform { 9 } else { [7, 8, 9, 7][t as usize % 4] }
        });
    }
    // Nested loops whose trips differ by lane.
    let nested = "mov.u32 %r3, 0; OUTER: setp.ge.u32 %p1, %r3, %r1; @%p1 bra DONE; mov.u32 %r4, 0;\n\
         INNER: add.u32 %r10, %r10, 1; add.u32 %r4, %r4, 1; setp.le.u32 %p2, %r4, %r3; @%p2 bra INNER;\n\
         add.u32 %r3, %r3, 1; bra OUTER;";
    run("", nested, |t| t * (t + 1) / 2);
}

#[test]
fn calls() {
    let twice = ".func (.reg .u32 y) twice(.reg .u32 x) { add.u32 y, x, x; ret; }\n\
         .func (.param .u32 y) thrice(.param .u32 x) { .reg .u32 a; ld.param.u32 a, [x]; mul.lo.u32 a, a, 3;\n\
         st.param.u32 [y], a; ret.uni; }\n.func nothing { ret; }\n";
    run(twice, "call (%r10), twice, (%r1);", |t| 2 * t);
    run(twice, "call.uni (%r10), twice, (21); call nothing;", |_| 42);
    run(
        twice,
        "{ .param .u32 a; .param .u32 b; st.param.u32 [a], %r1; call.uni (b), thrice, (a); ld.param.u32 %r10, [b]; }",
        |t| 3 * t,
    );
    // Through a pointer that differs by lane.
    let pointer = "and.b32 %r3, %r1, 1; setp.eq.u32 %p1, %r3, 0; mov.u64 %rd3, twice; mov.u64 %rd4, square; selp.u64 %rd5, %rd3, %rd4, %p1;\n\
         KIND: .callprototype (.reg .u32 _) _ (.reg .u32 _); call (%r10), %rd5, (%r1), KIND;";
    let square = ".func (.reg .u32 y) square(.reg .u32 x) { mul.lo.u32 y, x, x; ret; }\n";
    run(&format!("{twice}{square}"), pointer, |t| if t % 2 == 0 { 2 * t } else { t * t });
    let listed = "mov.u64 %rd5, square; KIND: .calltargets twice, square; call.uni (%r10), %rd5, (%r1), KIND;";
    run(&format!("{twice}{square}"), listed, |t| t * t);
    // A table of functions in memory.
    let table = format!("{twice}{square}.global .u64 table[2] = {{twice, square}};");
    let body = "and.b32 %r3, %r1, 1; mul.wide.u32 %rd3, %r3, 8; mov.u64 %rd4, table; add.u64 %rd4, %rd4, %rd3; ld.global.u64 %rd5, [%rd4];\n\
         KIND: .callprototype (.reg .u32 _) _ (.reg .u32 _); call (%r10), %rd5, (%r1), KIND;";
    run(&table, body, |t| if t % 2 == 0 { 2 * t } else { t * t });
}

#[test]
fn ends_of_threads() {
    let early = |end: &str| format!("setp.lt.u32 %p1, %r1, 10; @%p1 {end}; mov.u32 %r10, 1;");
    for end in ["exit", "ret", "ret.uni"] {
        run("", &early(end), |t| if t < 10 { 0xdead } else { 1 });
    }
    run("", "pmevent 7; pmevent.mask 0x3; nanosleep.u32 20; mov.u32 %r10, 3;", |_| 3);
    // Barriers count only the threads that are left.
    run("", "setp.lt.u32 %p1, %r1, 32; @%p1 exit; bar.sync 0; mov.u32 %r10, 4;", |t| if t < 32 { 0xdead } else { 4 });
    for (end, what) in [("trap", "trap"), ("brkpt", "brkpt")] {
        let body = format!("setp.eq.u32 %p1, %r1, 5;\n@%p1 {end};");
        let fault = Program { body: &body, ..Program::default() }.try_run(&[0; 4]).unwrap_err();
        let place = fault.place.clone().unwrap();
        assert_eq!(place.thread, [5, 0, 0], "{fault}");
        assert!(place.text.contains(what), "{fault}");
    }
}

#[test]
fn stacks() {
    for (ty, r) in [("u64", "%rd"), ("u32", "%r")] {
        let code = format!(
            "stacksave.{ty} {r}20; alloca.{ty} {r}21, 16; alloca.{ty} {r}22, {r}23, 16; st.local.u32 [{r}21], %r1; add.u32 %r9, %r1, 1;\n\
             st.local.u32 [{r}22+12], %r9; ld.local.u32 %r3, [{r}21]; ld.local.u32 %r4, [{r}22+12];\n\
             mad.lo.u32 %r10, %r3, 100, %r4; and.b{} {r}24, {r}22, 15; setp.ne.{ty} %p1, {r}24, 0; @%p1 trap; stackrestore.{ty} {r}20;\n\
             stacksave.{ty} {r}25; setp.ne.{ty} %p1, {r}20, {r}25; @%p1 trap;",
            &ty[1..]
        );
        run("", &format!("mov.{ty} {r}23, 32; {code}"), |t| t * 101 + 1);
    }
}

pub fn all() {
    branches();
    calls();
    ends_of_threads();
    stacks();
}
