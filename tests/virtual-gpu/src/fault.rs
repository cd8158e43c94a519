//! What a kernel did wrong: where, and what would be right.

use std::fmt;

/// Kinds of faults; each strictness rule has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// An address outside every allocation, or past the end of shared, local or parameter memory.
    OutOfBounds,
    /// An address that is not a multiple of the access's size.
    Misaligned,
    /// An address in memory that was freed.
    UseAfterFree,
    /// A write to constant or otherwise read-only memory.
    ReadOnly,
    /// Bytes of global memory that nothing has written.
    UninitialisedGlobal,
    /// Bytes of shared memory that no thread of the block has written.
    UninitialisedShared,
    /// A value in local memory none of whose bytes the thread has written (copies of structures read their padding).
    UninitialisedLocal,
    /// A register that the thread has not written.
    UninitialisedRegister,
    /// Two threads touched one shared address, one wrote, and nothing ordered them.
    SharedRace,
    /// A barrier that not all threads it waits for can reach.
    DivergentBarrier,
    /// A warp operation whose mask names lanes that do not take part.
    MissingLanes,
    /// Shared memory read or written while a `cp.async` into it was pending.
    AsyncCopyPending,
    /// The launch asks for more threads, registers or shared memory than the device has.
    TooManyResources,
    /// An address of the wrong state space.
    WrongSpace,
    /// An instruction, or a use of one, that is not supported.
    Unsupported,
    /// An operand outside what PTX allows (a barrier's number, a table's index, a source lane).
    InvalidOperand,
    /// A call of something that is no function, or recursion.
    InvalidCall,
    /// `trap`.
    Trap,
    /// `brkpt`.
    Breakpoint,
    /// A device-side assertion.
    Assert,
    /// Nothing in the kernel can go on.
    Deadlock,
    /// The kernel ran past the limit on instructions set for it.
    TimedOut,
}

/// Where in a kernel.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct Place {
    /// Block index, x y z.
    pub block: [u32; 3],
    /// Thread index in the block, x y z.
    pub thread: [u32; 3],
    /// Function that holds the instruction.
    pub function: String,
    /// Line of the PTX, from 1; 0 if no instruction is at fault.
    pub line: u32,
    /// That line.
    pub text: String,
    /// File and line of the source, where the PTX tells.
    pub source: Option<(String, u32)>,
}

/// A fault: the kernel stops, the context is lost.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Fault {
    /// Kernel.
    pub kernel: String,
    /// Which rule.
    pub kind: Kind,
    /// Where; None for faults of the launch itself.
    pub place: Option<Box<Place>>,
    /// What is wrong, and what would be right.
    pub what: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "kernel {}: {}", self.kernel, self.what)?;
        let Some(p) = &self.place else { return Ok(()) };
        let ([bx, by, bz], [tx, ty, tz]) = (p.block, p.thread);
        write!(f, "\n  block ({bx},{by},{bz}) thread ({tx},{ty},{tz})")?;
        if p.line > 0 {
            write!(f, ", PTX line {}: {}", p.line, p.text)?;
        }
        if p.function != self.kernel && !p.function.is_empty() {
            write!(f, "\n  in function {}", p.function)?;
        }
        if let Some((file, line)) = &p.source {
            write!(f, "\n  from {file}:{line}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Fault {}
