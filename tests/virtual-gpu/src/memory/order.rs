//! What happened before what within a block: the clocks behind race detection.
//!
//! One counter numbers the block's synchronisations. An access is stamped with it; a warp knows, of each other warp,
//! the stamp before which everything that warp did is ordered before itself. Barriers join that knowledge. Lanes of a
//! warp are ordered by block barriers and `bar.warp.sync` alone, as the memory model has it: running in step is not
//! synchronisation.

use std::collections::HashMap;

/// Knowledge of a block's warps about one another.
pub struct Clocks {
    now: u32,
    warps: usize,
    /// `known[w * warps + v]`: w is ordered after what v did at stamps below.
    known: Vec<u32>,
    /// Lanes of a warp are ordered after what its other lanes did at stamps below.
    within: Vec<u32>,
    /// The same for pairs of lanes, once a part of a warp has synchronised.
    lanes: Vec<Option<Box<[[u32; 32]; 32]>>>,
    /// All threads are ordered after everything at stamps below.
    all: u32,
    /// What strong writes released, by shared address.
    released: HashMap<u64, Vec<u32>>,
}

impl Clocks {
    /// Clocks of a block of so many warps.
    pub fn new(warps: usize) -> Clocks {
        Clocks {
            now: 1,
            warps,
            known: vec![0; warps * warps],
            within: vec![0; warps],
            lanes: (0..warps).map(|_| None).collect(),
            all: 0,
            released: HashMap::new(),
        }
    }

    /// Stamp of an access made now.
    #[inline(always)]
    pub fn now(&self) -> u32 {
        self.now
    }

    /// Stamps below are ordered before every thread.
    #[inline(always)]
    pub fn all(&self) -> u32 {
        self.all
    }

    /// Whether what thread `by` did at `stamp` is ordered before what thread `me` does now.
    pub fn ordered(&self, by: u32, stamp: u32, me: u32) -> bool {
        let (v, w) = (by as usize / 32, me as usize / 32);
        if stamp < self.all || by == me {
            return true;
        }
        if v != w {
            return stamp < self.known[w * self.warps + v];
        }
        let pair = |m: &[[u32; 32]; 32]| stamp < m[me as usize % 32][by as usize % 32];
        stamp < self.within[w] || self.lanes[w].as_deref().is_some_and(pair)
    }

    /// Warp `w` arrives somewhere without waiting: what it has done, for those who wait. A new interval begins.
    pub fn arrive(&mut self, w: usize) -> Vec<u32> {
        self.now += 1;
        let mut vector = self.known[w * self.warps..(w + 1) * self.warps].to_vec();
        vector[w] = self.now;
        vector
    }

    /// The warps of `waiting` meet, with what others have `arrived` before.
    pub fn meet(&mut self, waiting: &[usize], arrived: &[Vec<u32>]) {
        self.now += 1;
        let mut joined = vec![0; self.warps];
        let mut join = |vector: &[u32]| joined.iter_mut().zip(vector).for_each(|(j, v)| *j = (*j).max(*v));
        for &w in waiting {
            join(&self.known[w * self.warps..(w + 1) * self.warps]);
        }
        arrived.iter().for_each(|v| join(v));
        for &w in waiting {
            joined[w] = self.now;
        }
        for &w in waiting {
            self.known[w * self.warps..(w + 1) * self.warps].copy_from_slice(&joined);
            self.within[w] = self.now;
            self.lanes[w] = None;
        }
        if waiting.len() == self.warps {
            self.all = self.now;
            self.released.clear();
        }
    }

    /// Lanes `mask` of warp `w` meet; `live` are the warp's lanes that have not exited.
    pub fn meet_lanes(&mut self, w: usize, mask: u32, live: u32) {
        self.now += 1;
        if mask & live == live {
            self.within[w] = self.now;
            self.lanes[w] = None;
            return;
        }
        let m = self.lanes[w].get_or_insert_with(|| Box::new([[0; 32]; 32]));
        let mut joined = [0; 32];
        for i in (0..32).filter(|i| mask >> i & 1 == 1) {
            joined.iter_mut().zip(&m[i]).for_each(|(j, v)| *j = (*j).max(*v));
        }
        for (i, j) in joined.iter_mut().enumerate() {
            if mask >> i & 1 == 1 {
                *j = self.now;
            }
        }
        for i in (0..32).filter(|i| mask >> i & 1 == 1) {
            m[i] = joined;
        }
    }

    /// Thread `me` does a strong write or atomic at `address`: whoever reads it strongly is ordered after.
    /// More is ordered than PTX promises without fences: a missing fence is not reported, a race never invented.
    pub fn release(&mut self, address: u64, me: u32) {
        let w = me as usize / 32;
        let vector = self.arrive(w);
        let cell = self.released.entry(address).or_insert_with(|| vec![0; vector.len()]);
        cell.iter_mut().zip(&vector).for_each(|(c, v)| *c = (*c).max(*v));
    }

    /// Thread `me` read strongly at `address`.
    pub fn acquire(&mut self, address: u64, me: u32) {
        let w = me as usize / 32;
        if let Some(cell) = self.released.get(&address) {
            let own = &mut self.known[w * self.warps..(w + 1) * self.warps];
            own.iter_mut().zip(cell).for_each(|(k, c)| *k = (*k).max(*c));
            // What its own warp released orders its own lanes.
            self.within[w] = self.within[w].max(cell[w]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_barrier_orders_everyone() {
        let mut c = Clocks::new(2);
        let s = c.now();
        assert!(!c.ordered(0, s, 40) && !c.ordered(0, s, 1) && c.ordered(0, s, 0));
        c.meet(&[0, 1], &[]);
        assert!(c.ordered(0, s, 40) && c.ordered(0, s, 1));
        assert!(!c.ordered(0, c.now(), 40));
    }

    #[test]
    fn a_warp_barrier_orders_the_lanes_of_its_mask_alone() {
        let mut c = Clocks::new(2);
        let s = c.now();
        c.meet_lanes(0, 0b11, !0);
        assert!(c.ordered(0, s, 1) && !c.ordered(0, s, 2) && !c.ordered(0, s, 32));
        c.meet_lanes(0, 0b110, !0);
        assert!(c.ordered(0, s, 2), "lane 1 passes on what it knows of lane 0");
        c.meet_lanes(0, !0, !0);
        assert!(c.ordered(0, s, 31));
    }

    #[test]
    fn who_only_arrives_learns_nothing() {
        let mut c = Clocks::new(2);
        let s = c.now();
        let arrived = c.arrive(0);
        let later = c.now();
        c.meet(&[1], &[arrived]);
        assert!(c.ordered(0, s, 32), "before the arrival");
        assert!(!c.ordered(0, later, 32), "after the arrival");
        assert!(!c.ordered(32, s, 0), "the other way");
    }

    #[test]
    fn a_flag_orders_what_was_before_it() {
        let mut c = Clocks::new(3);
        let s = c.now();
        c.release(16, 0);
        let later = c.now();
        c.acquire(16, 70);
        assert!(c.ordered(0, s, 70) && !c.ordered(0, later, 70) && !c.ordered(0, s, 33));
    }
}
