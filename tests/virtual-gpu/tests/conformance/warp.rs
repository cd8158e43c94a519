//! Shuffles, votes, matches, reductions across the lanes of a warp.

use crate::harness::Program;
use crate::values::Random;

/// Runs `code` in one warp: `%r3` and `%r4` are two words of the lane; gives two words of every lane.
fn lanes(code: &str, words: &[[u32; 2]; 32]) -> Vec<[u32; 2]> {
    let body = format!(
        "mad.wide.u32 %rd2, %r1, 16, %rd1; ld.global.v2.u32 {{%r3, %r4}}, [%rd2]; mov.u32 %r5, 0; mov.u32 %r6, 0;\n\
         mov.b64 %rd3, {{%r3, %r4}};\n{code}\nst.global.v2.u32 [%rd2+8], {{%r5, %r6}};"
    );
    let buffer: Vec<u32> = words.iter().flat_map(|w| [w[0], w[1], 0, 0]).collect();
    Program { body: &body, ..Program::default() }.words(&buffer).chunks(4).map(|c| [c[2], c[3]]).collect()
}

fn random_words(seed: u64, below: u64) -> [[u32; 2]; 32] {
    let mut random = Random(seed);
    std::array::from_fn(|_| [random.below(below) as u32, random.below(below) as u32])
}

/// The ISA's program for `shfl`: the lane read, and whether it is in range.
fn source(mode: &str, lane: u32, b: u32, c: u32) -> (u32, bool) {
    let (clamp, segment) = (c & 31, c >> 8 & 31);
    let max = (lane & segment) | (clamp & !segment);
    let min = lane & segment;
    let b = b & 31;
    let (j, fits) = match mode {
        "up" => (lane as i32 - b as i32, lane as i32 - b as i32 >= max as i32),
        "down" => ((lane + b) as i32, lane + b <= max),
        "bfly" => ((lane ^ b) as i32, lane ^ b <= max),
        _ => ((min | (b & !segment)) as i32, min | (b & !segment) <= max),
    };
    if fits { (j as u32, true) } else { (lane, false) }
}

#[test]
fn shuffles() {
    for mode in ["up", "down", "bfly", "idx"] {
        for (width, lanes_apart) in [(32, [1, 5, 16, 31]), (8, [1, 3, 4, 7]), (4, [0, 1, 2, 3])] {
            let c = (32 - width) << 8 | if mode == "up" { 0 } else { 31 };
            for b in lanes_apart {
                let words = random_words(u64::from(b), 1 << 32);
                let code = format!(
                    "shfl.sync.{mode}.b32 %r5|%p1, %r3, {b}, {c}, 0xffffffff; selp.u32 %r6, 1, 0, %p1;\n\
                     shfl.sync.{mode}.b32 %r7, %r3, {b}, {c}, -1; setp.ne.u32 %p2, %r5, %r7; @%p2 trap;"
                );
                for (lane, found) in lanes(&code, &words).into_iter().enumerate() {
                    let (j, fits) = source(mode, lane as u32, b, c);
                    assert_eq!(found, [words[j as usize][0], fits.into()], "{mode} {b} {c:#x} lane {lane}");
                }
            }
        }
        // Each lane with its own b and c.
        let words = random_words(9, 1 << 13);
        let code = format!("shfl.sync.{mode}.b32 %r5|%p1, %r1, %r3, %r4, 0xffffffff; selp.u32 %r6, 1, 0, %p1;");
        for (lane, found) in lanes(&code, &words).into_iter().enumerate() {
            let (j, fits) = source(mode, lane as u32, words[lane][0], words[lane][1]);
            assert_eq!(found, [j, fits.into()], "{mode} {:x?} lane {lane}", words[lane]);
        }
    }
}

/// Half of a warp shuffles among itself while the other half does something else.
#[test]
fn shuffles_of_part_of_a_warp() {
    let words = random_words(3, 1 << 32);
    let code = "and.b32 %r9, %r1, 1; setp.eq.u32 %p1, %r9, 0; @%p1 bra EVEN;\n\
         shfl.sync.bfly.b32 %r5, %r3, 2, 31, 0xaaaaaaaa; bra.uni DONE;\n\
         EVEN: shfl.sync.bfly.b32 %r5, %r4, 4, 31, 0x55555555; DONE:";
    for (lane, found) in lanes(code, &words).into_iter().enumerate() {
        let wanted = if lane % 2 == 0 { words[lane ^ 4][1] } else { words[lane ^ 2][0] };
        assert_eq!(found[0], wanted, "lane {lane}");
    }
}

#[test]
fn votes() {
    for seed in 0..12 {
        let threshold = [0, 1, 3, 4][seed as usize % 4];
        let words = random_words(seed, 4);
        let votes: Vec<bool> = words.iter().map(|w| w[0] < threshold).collect();
        let ballot = votes.iter().enumerate().fold(0, |m, (l, v)| m | u32::from(*v) << l);
        let code = format!(
            "setp.lt.u32 %p1, %r3, {threshold}; vote.sync.ballot.b32 %r5, %p1, 0xffffffff;\n\
             vote.sync.all.pred %p2, %p1, 0xffffffff; vote.sync.any.pred %p3, %p1, 0xffffffff;\n\
             vote.sync.uni.pred %p4, %p1, 0xffffffff; vote.sync.any.pred %p5, !%p1, 0xffffffff;\n\
             selp.u32 %r6, 1, 0, %p2; @%p3 add.u32 %r6, %r6, 2; @%p4 add.u32 %r6, %r6, 4; @%p5 add.u32 %r6, %r6, 8;"
        );
        let (all, any) = (ballot == u32::MAX, ballot != 0);
        let flags = u32::from(all) | u32::from(any) << 1 | u32::from(all || !any) << 2 | u32::from(!all) << 3;
        for found in lanes(&code, &words) {
            assert_eq!(found, [ballot, flags]);
        }
    }
    // Among the lanes of a mask.
    let code = "setp.ge.u32 %p1, %r1, 24; @%p1 bra HIGH; bra DONE;\nHIGH: setp.gt.u32 %p2, %r1, 27;\n\
         vote.sync.ballot.b32 %r5, %p2, 0xff000000; activemask.b32 %r6; DONE:";
    for (lane, found) in lanes(code, &random_words(0, 2)).into_iter().enumerate() {
        assert_eq!(found, if lane >= 24 { [0xf000_0000, 0xff00_0000] } else { [0, 0] });
    }
}

#[test]
fn matches() {
    for (seed, below) in [(1, 4), (2, 1), (3, 30)] {
        let words = random_words(seed, below);
        let code = "match.any.sync.b32 %r5, %r3, 0xffffffff; match.any.sync.b64 %r6, %rd3, 0xffffffff;";
        for (lane, found) in lanes(code, &words).into_iter().enumerate() {
            let same = |f: &dyn Fn([u32; 2]) -> bool| (0..32).fold(0u32, |m, l| m | u32::from(f(words[l])) << l);
            let wanted = [same(&|w| w[0] == words[lane][0]), same(&|w| w == words[lane])];
            assert_eq!(found, wanted);
        }
        let code = "match.all.sync.b32 %r5|%p1, %r3, 0xffffffff; match.all.sync.b64 %r6|%p2, %rd3, 0xffffffff;\n\
             match.all.sync.b32 %r7, %r3, 0xffffffff; setp.ne.u32 %p3, %r5, %r7; @%p3 trap;\n\
             match.all.sync.b64 %r7, %rd3, 0xffffffff; setp.ne.u32 %p3, %r6, %r7; @%p3 trap;\n\
             @%p1 add.u32 %r5, %r5, 2; @%p2 add.u32 %r6, %r6, 2;";
        let wanted = |all: bool| if all { 1 } else { 0 };
        let all = [words.iter().all(|w| w[0] == words[0][0]), words.iter().all(|w| *w == words[0])];
        for found in lanes(code, &words) {
            assert_eq!(found, all.map(wanted)); // all lanes (-1) and 2 more, or nothing
        }
    }
}

#[test]
fn reductions() {
    let words = random_words(5, 1 << 32);
    let column: Vec<u32> = words.iter().map(|w| w[0]).collect();
    let signed = column.iter().map(|v| *v as i32);
    let expected = [
        ("add.u32", column.iter().fold(0u32, |a, v| a.wrapping_add(*v))),
        ("add.s32", column.iter().fold(0u32, |a, v| a.wrapping_add(*v))),
        ("min.u32", *column.iter().min().unwrap()),
        ("max.u32", *column.iter().max().unwrap()),
        ("min.s32", signed.clone().min().unwrap() as u32),
        ("max.s32", signed.max().unwrap() as u32),
        ("and.b32", column.iter().fold(!0, |a, v| a & v)),
        ("or.b32", column.iter().fold(0, |a, v| a | v)),
        ("xor.b32", column.iter().fold(0, |a, v| a ^ v)),
    ];
    for (name, wanted) in expected {
        let code = format!("redux.sync.{name} %r5, %r3, 0xffffffff;");
        assert!(lanes(&code, &words).iter().all(|f| f[0] == wanted), "{name}");
    }
    let code = "setp.lt.u32 %p1, %r1, 8; @%p1 redux.sync.add.u32 %r5, %r1, 0xff;";
    for (lane, found) in lanes(code, &words).into_iter().enumerate() {
        assert_eq!(found[0], if lane < 8 { 28 } else { 0 });
    }
}

pub fn all() {
    shuffles();
    shuffles_of_part_of_a_warp();
    votes();
    matches();
    reductions();
}
