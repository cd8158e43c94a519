//! Loads PTX, launches it, reads memory back.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt::Write;
use std::sync::Arc;

use virtual_gpu::device::Description;
use virtual_gpu::exec::{Launch, LoadedModule, Outcome, launch};
use virtual_gpu::fault::Fault;
use virtual_gpu::lower;
use virtual_gpu::memory::{Access, GlobalMemory};

thread_local! {
    static FORMS: RefCell<BTreeSet<String>> = const { RefCell::new(BTreeSet::new()) };
}

/// The forms that this thread's programs held.
pub fn forms() -> BTreeSet<String> {
    FORMS.take()
}

/// Notes the instructions of a program under test: opcode and modifiers, and what of its operands makes another form.
pub fn record(code: &str) {
    let code: String = code.lines().map(|l| l.split("//").next().unwrap_or("")).collect::<Vec<_>>().join("\n");
    FORMS.with_borrow_mut(|forms| {
        for statement in code.split(';') {
            if let Some(form) = form(statement) {
                forms.insert(form);
            }
        }
    });
}

fn form(statement: &str) -> Option<String> {
    let mut text = statement.trim().trim_start_matches(['{', '}', '\n', ' ']).trim();
    while let Some((label, rest)) = text.split_once(':') {
        let named = label.chars().all(|c| c.is_ascii_alphanumeric() || "_$".contains(c));
        if !named || label.is_empty() || rest.starts_with(':') {
            break;
        }
        text = rest.trim();
    }
    let text = match text.strip_prefix('@') {
        Some(guarded) => guarded.split_once(char::is_whitespace)?.1.trim(),
        None => text,
    };
    if text.is_empty() || text.starts_with('.') {
        return None;
    }
    let (name, operands) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    let operands = operands.trim();
    let opcode = name.split('.').next()?;
    let count = |list: &str| list.split(',').count();
    let suffix = match opcode {
        "mov" if operands.starts_with('{') => format!(" unpack{}", count(&operands[..operands.find('}')?])),
        "mov" if operands.contains('{') => format!(" pack{}", count(&operands[operands.find('{')?..])),
        "setp" | "shfl" | "match" if operands.split(',').next()?.contains('|') => " |p".into(),
        "bar" | "barrier" | "mbarrier" | "cp" | "createpolicy" if count(operands) > 1 => {
            format!(" {}", count(operands))
        }
        "mov" | "cvt" => special(operands).map_or(String::new(), |s| format!(" {s}")),
        _ => String::new(),
    };
    Some(format!("{name}{suffix}"))
}

/// The special register that a move reads.
fn special(operands: &str) -> Option<&str> {
    let source = operands.split(',').nth(1)?.trim();
    let name = source.strip_prefix('%')?;
    let numbered = ["r", "rd", "f", "fd", "h", "hf", "p"];
    let plain = numbered.iter().any(|p| name.strip_prefix(p).is_some_and(|n| n.bytes().all(|b| b.is_ascii_digit())));
    if plain { None } else { Some(source) }
}

/// A program and what it runs on: `%rd1` is the buffer, `%r1` the thread's index in x, `%r2` the block's.
pub struct Program<'a> {
    pub globals: &'a str,
    pub body: &'a str,
    pub grid: u32,
    pub block: u32,
    pub dynamic_shared: u32,
    pub target: u32,
}

impl Default for Program<'_> {
    fn default() -> Self {
        Program { globals: "", body: "", grid: 1, block: 32, dynamic_shared: 0, target: 80 }
    }
}

const REGISTERS: &str = ".reg .pred %p<16>; .reg .b16 %h<32>; .reg .f16 %hf<16>; .reg .b32 %r<100>; .reg .f32 %f<100>; \
     .reg .b64 %rd<40>; .reg .f64 %fd<32>;";

impl Program<'_> {
    pub fn text(&self) -> String {
        format!(
            ".version 8.2\n.target sm_{}\n.address_size 64\n{}\n.visible .entry k(.param .u64 p)\n{{\n{REGISTERS}\n\
             ld.param.u64 %rd1, [p];\nmov.u32 %r1, %tid.x;\nmov.u32 %r2, %ctaid.x;\n{}\nret;\n}}\n",
            self.target, self.globals, self.body
        )
    }

    /// Runs it over a copy of `buffer`; what the buffer holds then.
    pub fn try_run(&self, buffer: &[u8]) -> Result<(Vec<u8>, Outcome), Fault> {
        self.launch([self.grid, 1, 1], [self.block, 1, 1], self.dynamic_shared, buffer)
    }

    fn launch(
        &self,
        grid: [u32; 3],
        block: [u32; 3],
        dynamic_shared: u32,
        buffer: &[u8],
    ) -> Result<(Vec<u8>, Outcome), Fault> {
        record(self.body);
        let text = self.text();
        let module = lower::load(&text).unwrap_or_else(|e| panic!("{e}\nof\n{text}"));
        let memory = GlobalMemory::new(1 << 30);
        let address = memory.alloc(buffer.len() as u64).unwrap();
        memory.write(address, buffer).unwrap();
        let loaded = LoadedModule::load(Arc::new(module), &memory).unwrap();
        let outcome = launch(&Launch {
            module: &loaded,
            function: loaded.module().function("k").unwrap(),
            grid,
            block,
            dynamic_shared,
            params: &address.to_le_bytes(),
            device: &Description::default_device(),
            memory: &memory,
            cooperative: false,
        })?;
        let mut after = vec![0; buffer.len()];
        memory.read(address, &mut after, Access::Raw).unwrap();
        Ok((after, outcome))
    }

    /// Over a grid and blocks of three dimensions.
    pub fn words_3d(&self, grid: [u32; 3], block: [u32; 3], dynamic_shared: u32, buffer: &[u32]) -> Vec<u32> {
        let bytes: Vec<u8> = buffer.iter().flat_map(|w| w.to_le_bytes()).collect();
        match self.launch(grid, block, dynamic_shared, &bytes) {
            Ok((after, _)) => words(&after),
            Err(fault) => panic!("{fault}\nof\n{}", self.text()),
        }
    }

    pub fn run(&self, buffer: &[u8]) -> Vec<u8> {
        match self.try_run(buffer) {
            Ok((after, _)) => after,
            Err(fault) => panic!("{fault}\nof\n{}", self.text()),
        }
    }

    /// Over words.
    pub fn words(&self, buffer: &[u32]) -> Vec<u32> {
        let bytes: Vec<u8> = buffer.iter().flat_map(|w| w.to_le_bytes()).collect();
        words(&self.run(&bytes))
    }
}

pub fn words(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks_exact(4).map(|c| u32::from_le_bytes(c.try_into().unwrap())).collect()
}

/// The bits of a type by its name; 1 for a predicate.
pub fn bits(ty: &str) -> u32 {
    match ty {
        "pred" => 1,
        "f16x2" | "bf16x2" | "tf32" | "u16x2" | "s16x2" => 32,
        "bf16" => 16,
        _ => ty.trim_start_matches(|c: char| c.is_ascii_alphabetic()).parse().unwrap(),
    }
}

/// The type of a register for values of a type.
fn register(ty: &str) -> String {
    match (ty, bits(ty)) {
        ("pred", _) => ".pred".into(),
        ("f32" | "f64" | "f16", bits) => format!(".f{bits}"),
        (_, 8) => ".b16".into(),
        (_, bits) => format!(".b{bits}"),
    }
}

const INPUTS: [&str; 5] = ["a", "b", "c", "e", "f"];
const OUTPUTS: [&str; 4] = ["d", "q", "r", "s"];

/// Runs `code` once a row, a thread each: inputs `a b c e f`, outputs `d q r s` as registers of their types. Values are
/// bits, low first.
pub fn eval(target: u32, code: &str, outs: &[&str], ins: &[&str], rows: &[Vec<u64>]) -> Vec<Vec<u64>> {
    record(code);
    let mut body = String::new();
    let mut line = |text: String| writeln!(body, "{text}").unwrap();
    let stride = 8 * (ins.len() + outs.len());
    line("mov.u32 %r3, %ntid.x; mad.lo.u32 %r4, %r2, %r3, %r1;".into());
    line(format!("setp.ge.u32 %p1, %r4, {}; @%p1 exit; mad.wide.u32 %rd2, %r4, {stride}, %rd1;", rows.len()));
    for (i, (ty, name)) in ins.iter().zip(INPUTS).enumerate() {
        line(format!(".reg {} {name};", register(ty)));
        match *ty {
            "pred" => line(format!("ld.global.u32 %r5, [%rd2+{}]; setp.ne.u32 {name}, %r5, 0;", 8 * i)),
            ty => line(format!("ld.global.b{} {name}, [%rd2+{}];", bits(ty), 8 * i)),
        }
    }
    outs.iter().zip(OUTPUTS).for_each(|(ty, name)| line(format!(".reg {} {name};", register(ty))));
    line(code.to_owned());
    for (i, (ty, name)) in outs.iter().zip(OUTPUTS).enumerate() {
        let at = 8 * (ins.len() + i);
        match *ty {
            "pred" => line(format!("selp.u32 %r5, 1, 0, {name}; st.global.u32 [%rd2+{at}], %r5;")),
            ty => line(format!("st.global.b{} [%rd2+{at}], {name};", bits(ty))),
        }
    }
    let mut buffer = Vec::new();
    for row in rows {
        assert_eq!(row.len(), ins.len());
        buffer.extend(row.iter().flat_map(|v| v.to_le_bytes()));
        buffer.resize(buffer.len() + 8 * outs.len(), 0);
    }
    let grid = (rows.len() as u32).div_ceil(128);
    let program = Program { body: &body, grid, block: 128, target, ..Program::default() };
    let forms = FORMS.with_borrow(Clone::clone);
    let after = program.run(&buffer);
    FORMS.set(forms); // the plumbing is not under test
    after
        .chunks_exact(stride)
        .map(|row| row[8 * ins.len()..].chunks_exact(8).map(|v| u64::from_le_bytes(v.try_into().unwrap())).collect())
        .collect()
}

/// Checks `code` of one output against `expect` on every row; `same` compares bits (expected, found).
pub fn check_with(
    code: &str,
    out: &str,
    ins: &[&str],
    rows: &[Vec<u64>],
    expect: impl Fn(&[u64]) -> u64,
    same: impl Fn(u64, u64) -> bool,
) {
    let target = if code.contains(".xorsign") { 86 } else { 80 };
    for (row, found) in rows.iter().zip(eval(target, code, &[out], ins, rows)) {
        let wanted = expect(row);
        assert!(same(wanted, found[0]), "{code}\n  of {row:x?}\n  gives  {:#x}\n  wanted {wanted:#x}", found[0]);
    }
}

/// The same, bit for bit.
pub fn check(code: &str, out: &str, ins: &[&str], rows: &[Vec<u64>], expect: impl Fn(&[u64]) -> u64) {
    check_with(code, out, ins, rows, expect, |a, b| a == b);
}
