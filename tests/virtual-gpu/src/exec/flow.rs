//! In which order diverged lanes run, so that they meet again.
//!
//! The blocks of a function are numbered in a weak topological order: without back edges it is topological, and every
//! loop is contiguous with its exits behind it. If the group of lanes with the lowest number always runs first, a
//! group that reaches a post-dominator of the branch where it split waits there for the others, because every path of
//! theirs to it goes through lower numbers.

use crate::program::{Function, Op};

/// Basic blocks of a function and their successors.
pub(super) struct Graph {
    /// First instruction of each block, ascending; one past the last at the end.
    pub starts: Vec<u32>,
    /// Successors of each block.
    pub next: Vec<Vec<u32>>,
}

impl Graph {
    pub(super) fn of(f: &Function) -> Graph {
        let n = f.code.len() as u32;
        let mut leader = vec![false; n as usize + 1];
        leader[0] = true;
        for (i, code) in f.code.iter().enumerate() {
            let mut op = code.op.clone();
            let mut ends = matches!(op, Op::Ret | Op::Exit | Op::Trap);
            op.targets(&mut |t| {
                ends = true;
                leader[(*t).min(n) as usize] = true;
            });
            if ends {
                leader[i + 1] = true;
            }
        }
        let mut starts: Vec<u32> = (0..n).filter(|i| leader[*i as usize]).collect();
        let block_of = |pc: u32, starts: &[u32]| starts.partition_point(|s| *s <= pc) as u32 - 1;
        let mut next = Vec::with_capacity(starts.len());
        for (b, _) in starts.iter().enumerate() {
            let end = starts.get(b + 1).copied().unwrap_or(n);
            let mut out = Vec::new();
            if let Some(last) = f.code.get(end as usize - 1).filter(|_| end > 0) {
                let mut op = last.op.clone();
                op.targets(&mut |t| {
                    if *t < n {
                        out.push(block_of(*t, &starts));
                    }
                });
                let falls = last.guard.is_some()
                    || !matches!(last.op, Op::Bra { .. } | Op::BrxIdx { .. } | Op::Ret | Op::Exit | Op::Trap);
                if falls && end < n {
                    out.push(b as u32 + 1);
                }
            }
            next.push(out);
        }
        starts.push(n);
        Graph { starts, next }
    }

    /// The blocks in weak topological order.
    pub(super) fn order(&self) -> Vec<u32> {
        let mut out = Vec::with_capacity(self.next.len());
        if self.next.is_empty() {
            return out;
        }
        let all: Vec<u32> = (0..self.next.len() as u32).collect();
        let mut level = vec![0; all.len()];
        self.sort(&all, &[0], 0, &mut level, &mut out);
        out
    }

    /// Orders the blocks of one level (`level[b] == depth`): components in topological order, each with its head first.
    fn sort(&self, nodes: &[u32], roots: &[u32], depth: u32, level: &mut [u32], out: &mut Vec<u32>) {
        let inside = |b: u32, level: &[u32]| level[b as usize] == depth;
        let mut seen = std::collections::HashSet::new();
        let mut post = Vec::with_capacity(nodes.len());
        for &root in roots.iter().chain(nodes) {
            if !inside(root, level) || !seen.insert(root) {
                continue;
            }
            let mut stack = vec![(root, 0)];
            while let Some((b, i)) = stack.pop() {
                match self.next[b as usize].get(i) {
                    Some(&s) => {
                        stack.push((b, i + 1));
                        if inside(s, level) && seen.insert(s) {
                            stack.push((s, 0));
                        }
                    }
                    None => post.push(b),
                }
            }
        }
        let mut before: std::collections::HashMap<u32, Vec<u32>> = std::collections::HashMap::new();
        for &b in nodes {
            for &s in &self.next[b as usize] {
                if inside(s, level) {
                    before.entry(s).or_default().push(b);
                }
            }
        }
        let mut placed = std::collections::HashSet::new();
        let mut components = Vec::new();
        for &head in post.iter().rev() {
            if !placed.insert(head) {
                continue;
            }
            let mut members = vec![head];
            let mut at = 0;
            while at < members.len() {
                for &p in before.get(&members[at]).into_iter().flatten() {
                    if placed.insert(p) {
                        members.push(p);
                    }
                }
                at += 1;
            }
            components.push(members);
        }
        for members in components {
            let head = members[0];
            out.push(head);
            if members.len() > 1 {
                let mut rest = members[1..].to_vec();
                rest.sort_unstable();
                rest.iter().for_each(|b| level[*b as usize] = depth + 1);
                level[head as usize] = u32::MAX;
                self.sort(&rest, &self.next[head as usize].clone(), depth + 1, level, out);
            }
            // What is placed belongs to no deeper level any more.
            members.iter().for_each(|b| level[*b as usize] = u32::MAX);
        }
    }

    /// The rank of each instruction.
    pub(super) fn ranks(&self) -> Vec<u32> {
        let mut ranks = vec![0; self.starts.last().copied().unwrap_or(0) as usize];
        let mut n = 0;
        for b in self.order() {
            for pc in self.starts[b as usize]..self.starts[b as usize + 1] {
                ranks[pc as usize] = n;
                n += 1;
            }
        }
        ranks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loops_are_contiguous_and_their_exits_come_after() {
        // 0 → 1; 1 → 4 (exit, laid out early in the text), 2; 2 → 3; 3 → 1; 4 ends.
        let next = vec![vec![1], vec![4, 2], vec![3], vec![1], vec![]];
        let g = Graph { starts: (0..6).collect(), next };
        assert_eq!(g.order(), [0, 1, 2, 3, 4]);
    }

    #[test]
    fn both_sides_come_before_the_block_where_they_join() {
        // 0 → 3 or 1; 3 → 2; 1 → 2: the join lies between the sides in the text.
        let next = vec![vec![3, 1], vec![2], vec![], vec![2]];
        let g = Graph { starts: (0..5).collect(), next };
        let order = g.order();
        assert_eq!((order[0], order[3]), (0, 2));
    }
}
