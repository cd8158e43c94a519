//! What one instruction of a warp may touch besides its worker, with the checks on shared memory.

use super::access::lanes;
use super::link::Code;
use super::regs::LANES;
use super::warp::{Trouble, Warp};
use crate::fault::Kind;
use crate::memory::{AccessError, Clocks, SharedMemory};

/// What one instruction may touch besides its worker.
pub(super) struct View<'b> {
    pub warp: &'b mut Warp,
    pub shared: &'b mut SharedMemory,
    pub clocks: &'b mut Clocks,
    pub code: &'b [Code],
    pub pc: u32,
    pub w: usize,
}

impl View<'_> {
    fn shared_address(&self, a: u64, n: u32, lane: usize) -> Result<u32, Trouble> {
        let trouble = |error| Trouble { lane: lane as u32, error };
        self.shared.check(a, n).map_err(trouble)?;
        if self.shared.is_pending(a as u32, n) {
            let what = format!("shared address {a:#x} while a cp.async into it is pending: wait for its group first");
            return Err(trouble(AccessError::new(Kind::AsyncCopyPending, what)));
        }
        Ok(a as u32)
    }

    fn race(&self, a: u64, lane: usize, writes: bool, r: crate::memory::Race) -> Trouble {
        let me = self.w * LANES + lane;
        let who = r.thread.map_or(format!("a thread of warp {}", r.warp), |t| format!("thread {t}"));
        let did = match r.wrote_at {
            Some(pc) => format!("written by {who} at PTX line {}", self.code[pc as usize].line),
            None => format!("read by {who}"),
        };
        let does = if writes { "written" } else { "read" };
        let what = format!("shared address {a:#x} is {does} by thread {me} and was {did}, with no barrier between");
        Trouble { lane: lane as u32, error: AccessError::new(Kind::SharedRace, what) }
    }

    /// Checks and records a read of shared memory.
    #[inline(always)]
    pub fn read_shared(&mut self, a: u64, n: u32, lane: usize, strong: bool, acquire: bool) -> Result<(), Trouble> {
        let at = self.shared_address(a, n, lane)?;
        if !self.shared.initialised(at, n) {
            let what = format!("{n} bytes read at shared address {a:#x} that no thread has written");
            let error = AccessError::new(Kind::UninitialisedShared, what);
            return Err(Trouble { lane: lane as u32, error });
        }
        let me = (self.w * LANES + lane) as u32;
        if strong && acquire {
            self.clocks.acquire(a, me);
        }
        self.shared.record_read(self.clocks, at, n, me, strong).map_err(|r| self.race(a, lane, false, r))
    }

    /// Checks and records a write to shared memory.
    #[inline(always)]
    pub fn write_shared(&mut self, a: u64, n: u32, lane: usize, strong: bool, release: bool) -> Result<(), Trouble> {
        let at = self.shared_address(a, n, lane)?;
        let me = (self.w * LANES + lane) as u32;
        self.shared.record_write(self.clocks, at, n, me, strong, self.pc).map_err(|r| self.race(a, lane, true, r))?;
        if strong && release {
            self.clocks.release(a, me);
        }
        Ok(())
    }

    /// Finishes the asynchronous copies of lanes `m` whose group `done` accepts: (copy's group, committed groups).
    pub fn finish_copies(&mut self, m: u32, done: impl Fn(u32, u32) -> bool) -> Result<(), Trouble> {
        let mut copies = std::mem::take(&mut self.warp.copies);
        for c in &mut copies {
            for lane in lanes(c.m & m) {
                if !done(c.group[lane], self.warp.committed[lane]) {
                    continue;
                }
                c.m &= !(1 << lane);
                let to = c.to[lane];
                self.shared.end_copy(to, c.size);
                self.write_shared(to.into(), c.size, lane, false, false)?;
                for (i, part) in (0..c.size).step_by(8).enumerate() {
                    self.shared.store(to + part, c.size.min(8), c.data[lane][i]);
                }
            }
        }
        copies.retain(|c| c.m != 0);
        self.warp.copies = copies;
        Ok(())
    }
}
