//! How many registers a function needs: the most that are live at once. `ptxas` schedules and rematerialises, so its
//! number differs; this one is what the program's own order needs.

use super::flow::Graph;
use crate::program::{Class, Function, Op, Operand, Src};

/// Registers that the hardware keeps for itself (stack pointer, constant zero, scheduling slack).
const OVERHEAD: u32 = 6;

struct Step {
    uses: Vec<u32>,
    defs: Vec<u32>,
    guarded: bool,
}

/// Estimate of 32-bit registers a thread; 64-bit ones count twice, predicates have their own file.
pub(super) fn registers(f: &Function, graph: &Graph) -> u32 {
    let n32 = f.registers.r32.len() as u32;
    let all = (n32 as usize) + f.registers.r64.len();
    let index = |r: u16, c: Class| match c {
        Class::R32 => Some(u32::from(r)),
        Class::R64 => Some(n32 + u32::from(r)),
        Class::Pred => None,
    };
    let steps: Vec<Step> = f
        .code
        .iter()
        .map(|c| {
            let mut s = Step { uses: Vec::new(), defs: Vec::new(), guarded: c.guard.is_some() };
            let mut op: Op = c.op.clone();
            op.operands(&mut |o| match o {
                Operand::Use(Src::Reg(r), c) => s.uses.extend(index(r.0, c)),
                Operand::UseReg(r, c) => s.uses.extend(index(r.0, c)),
                Operand::Def(r, c) => s.defs.extend(index(r.0, c)),
                Operand::Use(..) => {}
            });
            s.uses.retain(|i| (*i as usize) < all);
            s.defs.retain(|i| (*i as usize) < all);
            s
        })
        .collect();
    let blocks = graph.next.len();
    let words = all.div_ceil(64);
    let mut live_in = vec![vec![0u64; words]; blocks];
    let mut changed = true;
    let mut most = 0;
    while changed {
        changed = false;
        for b in (0..blocks).rev() {
            let mut live = vec![0u64; words];
            for s in &graph.next[b] {
                live.iter_mut().zip(&live_in[*s as usize]).for_each(|(a, v)| *a |= v);
            }
            walk(&steps, graph, b, &mut live, |_| {});
            if live != live_in[b] {
                live_in[b] = live;
                changed = true;
            }
        }
    }
    for b in 0..blocks {
        let mut live = vec![0u64; words];
        for s in &graph.next[b] {
            live.iter_mut().zip(&live_in[*s as usize]).for_each(|(a, v)| *a |= v);
        }
        let count = |live: &[u64]| {
            live.iter().enumerate().fold(0, |n, (i, w)| {
                let wide = (0..64).filter(|b| w >> b & 1 == 1 && i as u32 * 64 + b >= n32).count() as u32;
                n + w.count_ones() + wide
            })
        };
        walk(&steps, graph, b, &mut live, |live| most = most.max(count(live)));
    }
    most + OVERHEAD
}

/// Walks a block backwards.
fn walk(steps: &[Step], graph: &Graph, block: usize, live: &mut [u64], mut seen: impl FnMut(&[u64])) {
    for pc in (graph.starts[block]..graph.starts[block + 1]).rev() {
        let s = &steps[pc as usize];
        if !s.guarded {
            s.defs.iter().for_each(|i| live[*i as usize / 64] &= !(1 << (i % 64)));
        }
        s.uses.iter().for_each(|i| live[*i as usize / 64] |= 1 << (i % 64));
        seen(live);
    }
}
