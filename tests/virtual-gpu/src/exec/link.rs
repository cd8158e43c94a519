//! A kernel made ready to run: its functions in one code array, registers and frames laid side by side, symbols turned
//! into addresses, operands listed for the checks.
//!
//! Every function has its own registers and frames at fixed places: a call moves no window, and recursion puts aside what
//! is there.

use std::collections::HashMap;

use super::flow::Graph;
use crate::counters::Class as Count;
use crate::fault::{Fault, Kind};
use crate::memory::window;
use crate::program::*;

/// Addresses of functions, 16 apart.
pub const FUNCTIONS: u64 = 0x0400_0000_0000;

/// An instruction, linked.
pub(super) struct Code {
    pub op: Op,
    pub guard: Option<Guard>,
    /// Index of the guard in the table of written lanes.
    pub guard_init: u32,
    /// Range of `Kernel::operands`: sources, then destinations.
    pub uses: (u32, u32),
    pub defs: (u32, u32),
    pub count: Count,
    /// Whether the register unit alone runs it.
    pub alu: bool,
    pub line: u32,
    pub loc: Option<Loc>,
    /// Index of its function in the module.
    pub function: u32,
}

/// A function at its place.
#[derive(Clone, Debug, Default)]
pub(super) struct Placed {
    pub entry: u32,
    pub params: Vec<Arg>,
    pub returns: Vec<Arg>,
    /// Its registers in the table of written lanes: three ranges.
    pub init: [(u32, u32); 3],
    pub frame: (u32, u32),
    pub local: (u32, u32),
    /// Whether instructions other than plain moves name its local variables.
    pub names_locals: bool,
}

/// A kernel ready to run.
pub struct Kernel {
    pub(super) name: String,
    pub(super) code: Vec<Code>,
    pub(super) operands: Vec<u32>,
    pub(super) rank: Vec<u32>,
    pub(super) functions: HashMap<u32, Placed>,
    pub(super) files: (usize, usize, usize),
    pub(super) local_bytes: u32,
    pub(super) frame_bytes: u32,
    pub(super) shared_bytes: u32,
    /// Whether it asks where the shared memory is that the system keeps for itself.
    pub(super) reserved: bool,
    pub(super) granule: u32,
    /// Whether flags order accesses: fences or ordered operations occur.
    pub(super) fences: bool,
    /// Whether it may allocate from the heap, and whether its blocks may meet.
    pub(super) allocates: bool,
    pub(super) meets: bool,
    pub(super) registers: u32,
    pub(super) param_bytes: u32,
    pub(super) directives: Directives,
    pub(super) names: HashMap<u32, String>,
}

struct Bases {
    r32: usize,
    r64: usize,
    pred: usize,
    local: u32,
    frame: u32,
    code: u32,
}

/// Links the kernel at index `function`.
///
/// # Errors
/// A fault of the launch: no kernel, an undefined function, a register out of its file.
pub(super) fn link(m: &Module, function: usize, globals: &[u64]) -> Result<Kernel, Fault> {
    let refuse = |kind, what: String| Fault {
        kernel: m.functions.get(function).map_or(String::new(), |f| f.name.clone()),
        kind,
        place: None,
        what,
    };
    let entry = m.functions.get(function).filter(|f| f.entry);
    let entry = entry.ok_or_else(|| refuse(Kind::InvalidCall, "no such kernel in the module".into()))?;
    let reached = reach(m, function).map_err(|name| {
        refuse(Kind::InvalidCall, format!("function {name} is declared and called, but defined nowhere"))
    })?;
    let shared = Shared::place(m, &reached);
    let sizes = |pick: &dyn Fn(&Registers) -> usize| reached.iter().map(|f| pick(&m.functions[*f].registers)).sum();
    let files: (usize, usize, usize) = (sizes(&|r| r.r32.len()), sizes(&|r| r.r64.len()), sizes(&|r| r.pred.len()));
    if files.0.max(files.1).max(files.2) > usize::from(u16::MAX) {
        return Err(refuse(
            Kind::Unsupported,
            "more than 65535 registers of one kind in a kernel and what it calls".into(),
        ));
    }
    let mut k = Kernel {
        name: entry.name.clone(),
        code: Vec::new(),
        operands: Vec::new(),
        rank: Vec::new(),
        functions: HashMap::new(),
        files,
        local_bytes: 0,
        frame_bytes: 0,
        shared_bytes: shared.bytes,
        reserved: false,
        granule: 0,
        fences: false,
        allocates: false,
        meets: false,
        registers: 0,
        param_bytes: entry.param_bytes,
        directives: entry.directives,
        names: HashMap::new(),
    };
    let mut at = Bases { r32: 0, r64: 0, pred: 0, local: 0, frame: 0, code: 0 };
    for &index in &reached {
        let f = &m.functions[index];
        at.local = at.local.next_multiple_of(f.local_align.clamp(16, 1 << 12).next_power_of_two());
        at.frame = at.frame.next_multiple_of(16);
        place(&mut k, m, index, &mut at, &shared, globals).map_err(|what| refuse(Kind::Unsupported, what))?;
    }
    (k.local_bytes, k.frame_bytes) = (at.local, at.frame);
    k.reserved = k.code.iter().any(|c| matches!(c.op, Op::MovSpecial { special, .. } if special.reserved()));
    k.granule = k.code.iter().map(|c| smallest(&c.op)).min().unwrap_or(4);
    Ok(k)
}

/// The kernel, and the functions it may call.
fn reach(m: &Module, kernel: usize) -> Result<Vec<usize>, String> {
    let mut reached = vec![kernel];
    let mut at = 0;
    while at < reached.len() {
        let f = &m.functions[reached[at]];
        at += 1;
        let direct = f.code.iter().filter_map(|c| match &c.op {
            Op::Call(call) => match call.target {
                CallTarget::Function(i) => Some(i),
                _ => None,
            },
            _ => None,
        });
        let direct: Vec<u32> = direct.collect();
        // Whoever takes a function's address, or calls through one, may call any whose address is taken.
        let indirect =
            f.code.iter().any(|c| matches!(&c.op, Op::Call(call) if matches!(call.target, CallTarget::Indirect(_))));
        let mut taken: Vec<u32> = Vec::new();
        let mut take = |s: &Symbol| {
            if let SymbolKind::Function(i) = s.what {
                taken.push(i);
            }
        };
        f.symbols.iter().for_each(&mut take);
        if indirect {
            m.functions.iter().flat_map(|f| &f.symbols).for_each(&mut take);
            m.globals.iter().flat_map(|g| &g.relocations).for_each(|r| take(&r.symbol));
        }
        for (i, called) in direct.iter().map(|i| (*i, true)).chain(taken.iter().map(|i| (*i, false))) {
            let i = i as usize;
            let Some(callee) = m.functions.get(i) else { return Err(format!("number {i}")) };
            if callee.external {
                if called {
                    return Err(callee.name.clone());
                }
            } else if !reached.contains(&i) {
                reached.push(i);
            }
        }
    }
    Ok(reached)
}

/// Where the shared variables of a kernel lie.
struct Shared {
    offset: Vec<Option<u32>>,
    bytes: u32,
}

impl Shared {
    fn place(m: &Module, reached: &[usize]) -> Shared {
        let mut used = vec![false; m.shared.len()];
        for f in reached {
            for s in &m.functions[*f].symbols {
                if let SymbolKind::Shared(i) = s.what
                    && let Some(u) = used.get_mut(i as usize)
                {
                    *u = true;
                }
            }
        }
        let mut offset = vec![None; m.shared.len()];
        let mut bytes = 0u32;
        let mut align = 1;
        for dynamic in [false, true] {
            for (i, v) in m.shared.iter().enumerate().filter(|(i, v)| used[*i] && v.dynamic == dynamic) {
                let a = v.align.max(1).next_power_of_two();
                if dynamic {
                    // All dynamic arrays begin at the same place.
                    align = align.max(a);
                } else {
                    bytes = bytes.next_multiple_of(a);
                    offset[i] = Some(bytes);
                    bytes = bytes.saturating_add(v.size);
                }
            }
        }
        let dynamic = used.iter().zip(&m.shared).any(|(u, v)| *u && v.dynamic);
        if dynamic {
            bytes = bytes.next_multiple_of(align.max(16));
            for (i, v) in m.shared.iter().enumerate() {
                if used[i] && v.dynamic {
                    offset[i] = Some(bytes);
                }
            }
        }
        Shared { offset, bytes }
    }
}

/// Address of a symbol of a function whose frames begin at `at`.
fn address(s: &Symbol, at: &Bases, shared: &Shared, globals: &[u64]) -> Option<u64> {
    let base = match s.what {
        SymbolKind::Global(i) => *globals.get(i as usize)?,
        SymbolKind::Shared(i) => (*shared.offset.get(i as usize)?)?.into(),
        SymbolKind::Local(o) => u64::from(at.local) + u64::from(o),
        SymbolKind::Frame(o) => CALL_PARAMS + u64::from(at.frame) + u64::from(o),
        SymbolKind::KernelParam(o) => o.into(),
        SymbolKind::Function(i) => FUNCTIONS + u64::from(i) * 16,
    };
    let generic = match s.what {
        _ if !s.generic => 0,
        SymbolKind::Shared(_) => window::SHARED,
        SymbolKind::Local(_) => window::LOCAL,
        SymbolKind::KernelParam(_) => window::PARAM,
        _ => 0,
    };
    Some((base + generic).wrapping_add_signed(s.offset))
}

fn place(
    k: &mut Kernel,
    m: &Module,
    index: usize,
    at: &mut Bases,
    shared: &Shared,
    globals: &[u64],
) -> Result<(), String> {
    let f = &m.functions[index];
    let (n32, n64, np) = (f.registers.r32.len(), f.registers.r64.len(), f.registers.pred.len());
    let (all32, all64, _) = k.files;
    let init_base = [at.r32, all32 + at.r64, all32 + all64 + at.pred].map(|v| v as u32);
    let init = [(init_base[0], n32 as u32), (init_base[1], n64 as u32), (init_base[2], np as u32)];
    let move_reg = |r: &mut Reg, c: Class| -> Result<u32, String> {
        let (base, n, first) = match c {
            Class::R32 => (at.r32, n32, init_base[0]),
            Class::R64 => (at.r64, n64, init_base[1]),
            Class::Pred => (at.pred, np, init_base[2]),
        };
        if usize::from(r.0) >= n {
            return Err(format!("register {} of {} in function {}", r.0, n, f.name));
        }
        let slot = first + u32::from(r.0);
        r.0 += base as u16;
        Ok(slot)
    };
    let move_arg = |a: &mut Arg| -> Result<(), String> {
        match a {
            Arg::Reg { width, reg } => move_reg(reg, width.class()).map(|_| ()),
            Arg::Param { offset, .. } => {
                *offset += at.frame;
                Ok(())
            }
            Arg::Imm { .. } => Ok(()),
        }
    };
    let mut placed = Placed {
        entry: at.code,
        params: f.params.iter().map(|p| p.place).collect(),
        returns: f.returns.iter().map(|p| p.place).collect(),
        init,
        frame: (at.frame, f.frame_bytes),
        local: (at.local, f.local_bytes),
        names_locals: false,
    };
    if !f.entry {
        for a in placed.params.iter_mut().chain(&mut placed.returns) {
            move_arg(a)?;
        }
    }
    let graph = Graph::of(f);
    k.registers += super::liveness::registers(f, &graph);
    k.rank.extend(graph.ranks());
    let end = f.code.len() as u32;
    for (i, code) in f.code.iter().enumerate() {
        let mut op = code.op.clone();
        let mut error = None;
        let local = |s: &Src| {
            let Src::Symbol(n) = s else { return false };
            f.symbols.get(*n as usize).is_some_and(|s| matches!(s.what, SymbolKind::Local(_)))
        };
        // Recursion moves them: the address is no constant.
        let moves = !f.entry && matches!(&op, Op::Mov { a, .. } if local(a));
        let (mut uses, mut defs) = (Vec::new(), Vec::new());
        op.operands(&mut |o| {
            let moved = match o {
                Operand::Use(s, c) => match *s {
                    Src::Reg(mut r) => move_reg(&mut r, c).map(|slot| {
                        *s = Src::Reg(r);
                        uses.push(slot);
                    }),
                    Src::Symbol(n) => {
                        placed.names_locals |= !moves && local(s);
                        let found = f.symbols.get(n as usize).and_then(|s| address(s, at, shared, globals));
                        found
                            .map(|a| *s = Src::Imm(a))
                            .ok_or_else(|| format!("symbol {n} of {} has no address", f.name))
                    }
                    Src::Imm(_) => Ok(()),
                },
                Operand::UseReg(r, c) => move_reg(r, c).map(|slot| uses.push(slot)),
                Operand::Def(r, c) => move_reg(r, c).map(|slot| defs.push(slot)),
            };
            if let Err(e) = moved {
                error = Some(e);
            }
        });
        op.targets(&mut |t| {
            if *t > end {
                error = Some(format!("branch to {t} in function {} of {end} instructions", f.name));
            }
            *t += at.code;
        });
        if let Op::Call(call) = &mut op {
            for a in call.args.iter_mut().chain(&mut call.returns) {
                if let Arg::Param { offset, .. } = a {
                    *offset += at.frame;
                }
            }
        }
        let (mut guard, mut guard_init) = (code.guard, 0);
        if let Some(g) = &mut guard {
            guard_init = move_reg(&mut g.reg, Class::Pred)?;
        }
        if let Some(e) = error {
            return Err(format!("line {}: {e}", code.line));
        }
        check(&op).map_err(|e| format!("line {}: {e}", code.line))?;
        k.fences |= ordered(&op);
        k.allocates |=
            matches!(&op, Op::Call(c) if matches!(c.target, CallTarget::Builtin(Builtin::Malloc | Builtin::Free)));
        k.meets |= matches!(op, Op::MovSpecial { special: Special::EnvReg1 | Special::EnvReg2, .. });
        if let Op::Store(s) = &op
            && s.padded()
        {
            // The address comes first; the store itself looks at the values.
            uses.truncate(usize::from(matches!(s.address.base, Src::Reg(_))));
        }
        uses.sort_unstable();
        uses.dedup();
        let from = k.operands.len() as u32;
        k.operands.extend(&uses);
        let middle = k.operands.len() as u32;
        k.operands.extend(&defs);
        let to = k.operands.len() as u32;
        k.code.push(Code {
            count: count(&op),
            alu: is_alu(&op) && !moves,
            op,
            guard,
            guard_init,
            uses: (from, middle),
            defs: (middle, to),
            line: code.line,
            loc: code.loc,
            function: index as u32,
        });
        debug_assert_eq!(k.code.len() as u32, at.code + i as u32 + 1);
    }
    // Running past the end returns.
    k.code.push(Code {
        op: Op::Ret,
        guard: None,
        guard_init: 0,
        uses: (0, 0),
        defs: (0, 0),
        count: Count::Control,
        alu: false,
        line: f.code.last().map_or(f.line, |c| c.line),
        loc: None,
        function: index as u32,
    });
    k.rank.push(end);
    k.names.insert(index as u32, f.name.clone());
    k.functions.insert(index as u32, placed);
    at.code = k.code.len() as u32;
    at.r32 += n32;
    at.r64 += n64;
    at.pred += np;
    at.local += f.local_bytes;
    at.frame += f.frame_bytes;
    Ok(())
}

/// What would break the interpreter's loops.
fn check(op: &Op) -> Result<(), String> {
    let good = match op {
        Op::Load(l) => matches!(l.count, 1 | 2 | 4) && l.ty.bits() >= 8,
        Op::Store(s) => matches!(s.count, 1 | 2 | 4) && s.ty.bits() >= 8,
        Op::LdMatrix { count, .. } => matches!(count, 1 | 2 | 4),
        Op::Pack { width, part, .. } | Op::Unpack { width, part, .. } => {
            width.bits() / part.bits() <= 4 && part.bits() < width.bits()
        }
        Op::CpAsync(c) => matches!(c.size, 4 | 8 | 16),
        Op::Mma(m) => super::matrix::supported(m),
        Op::WmmaLoad(m) | Op::WmmaStore(m) => super::matrix::supported_move(m),
        _ => true,
    };
    if good { Ok(()) } else { Err("this form of the instruction is not supported".into()) }
}

/// log2 of the bytes that an instruction touches at once in what may be shared memory; 4 if none.
fn smallest(op: &Op) -> u32 {
    let (space, bytes) = match op {
        Op::Load(l) => (l.space, l.ty.bytes() * u32::from(l.count)),
        Op::Store(s) => (s.space, s.ty.bytes() * u32::from(s.count)),
        Op::Atom(a) => (a.space, a.ty.bytes()),
        Op::WmmaStore(w) | Op::WmmaLoad(w) => (w.space, w.ty.bytes()),
        Op::CpAsync(c) => (Space::Shared, c.size.into()),
        Op::Mbarrier { .. } => (Space::Shared, 8),
        _ => return 4,
    };
    if matches!(space, Space::Shared | Space::Generic) { bytes.trailing_zeros().min(4) } else { 4 }
}

/// Whether an instruction orders others across threads.
fn ordered(op: &Op) -> bool {
    match op {
        Op::Fence { .. } => true,
        Op::Load(l) => !matches!(l.order, Order::Weak | Order::Relaxed),
        Op::Store(s) => !matches!(s.order, Order::Weak | Order::Relaxed),
        // Without a qualifier atomics are relaxed.
        Op::Atom(a) => !matches!(a.order, Order::Weak | Order::Relaxed),
        _ => false,
    }
}

fn is_alu(op: &Op) -> bool {
    matches!(
        op,
        Op::Nop
            | Op::Int1 { .. }
            | Op::Int2 { .. }
            | Op::Int3 { .. }
            | Op::Bfi { .. }
            | Op::Carry { .. }
            | Op::MadCarry { .. }
            | Op::Lop3Pred { .. }
            | Op::Szext { .. }
            | Op::Bmsk { .. }
            | Op::Float1 { .. }
            | Op::Float2 { .. }
            | Op::Fma { .. }
            | Op::Testp { .. }
            | Op::Setp { .. }
            | Op::Set { .. }
            | Op::Selp { .. }
            | Op::Slct { .. }
            | Op::PredLogic { .. }
            | Op::PredMov { .. }
            | Op::Cvt(_)
            | Op::CvtPair { .. }
            | Op::CvtPack { .. }
            | Op::Mov { .. }
            | Op::Pack { .. }
            | Op::Unpack { .. }
    )
}

fn count(op: &Op) -> Count {
    let float = |ty: &Type| match ty {
        Type::F32 | Type::TF32 => Count::Float32,
        Type::F64 => Count::Float64,
        _ => Count::Half,
    };
    match op {
        Op::Int1 { .. } | Op::Int2 { .. } | Op::Int3 { .. } | Op::Bfi { .. } | Op::Carry { .. } => Count::Integer,
        Op::MadCarry { .. } | Op::Lop3Pred { .. } | Op::Szext { .. } | Op::Bmsk { .. } => Count::Integer,
        Op::Float1 { ty, .. } | Op::Float2 { ty, .. } | Op::Fma { ty, .. } => float(ty),
        Op::Testp { .. } | Op::Setp { .. } | Op::Set { .. } | Op::PredLogic { .. } | Op::PredMov { .. } => {
            Count::Predicate
        }
        Op::Cvt(_) | Op::CvtPair { .. } | Op::CvtPack { .. } => Count::Convert,
        Op::Selp { .. } | Op::Slct { .. } | Op::Mov { .. } | Op::Pack { .. } | Op::Unpack { .. } => Count::Move,
        Op::MovSpecial { .. } | Op::Cvta { .. } | Op::Isspacep { .. } => Count::Move,
        Op::Load(_) | Op::LdMatrix { .. } | Op::WmmaLoad(_) => Count::Load,
        Op::Store(_) | Op::WmmaStore(_) => Count::Store,
        Op::Atom(_) => Count::Atomic,
        Op::CpAsync(_) | Op::CpAsyncCommit | Op::CpAsyncWait { .. } => Count::AsyncCopy,
        Op::Mbarrier { .. } | Op::Bar { .. } | Op::BarWarp { .. } | Op::Fence { .. } => Count::Barrier,
        Op::Shfl { .. } | Op::Vote { .. } | Op::Match { .. } | Op::Redux { .. } => Count::Warp,
        Op::ActiveMask { .. } | Op::Elect { .. } | Op::MovMatrix { .. } => Count::Warp,
        Op::Mma(_) => Count::Matrix,
        Op::Bra { .. } | Op::BrxIdx { .. } | Op::Call(_) | Op::Ret | Op::Exit | Op::Trap | Op::Brkpt => Count::Control,
        Op::Nop | Op::Nanosleep { .. } | Op::Alloca { .. } | Op::StackSave { .. } | Op::StackRestore { .. } => {
            Count::Other
        }
    }
}
