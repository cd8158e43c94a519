//! One case, and how it is run.

use std::io::Read;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::cli_support::Fixture;
use crate::folder::{Spoil, fresh, listing};

/// Address space that a case may take, in bytes: an allocation without bounds fails at once.
const ADDRESS_SPACE: u64 = 2 << 30;
/// Memory that a case may touch, in bytes: four lines of .jsonl at their limit, which is the most that is read at once.
const MOST_RESIDENT: u64 = 256 << 20;
/// What does not end by then hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// Commands in the case's folder.
pub const INSPECT: &[&str] = &["inspect", "model"];
pub const EVAL: &[&str] = &["eval", "--model", "model", "--eval", "eval.txt", "--quiet"];
pub const ADAPTED: &[&str] = &["eval", "--model", "model", "--eval", "eval.txt", "--adapter", "adapter", "--quiet"];
pub const MERGE: &[&str] = &["merge", "--model", "model", "--adapter", "adapter", "--out", "out", "--quiet"];
pub const PRUNE: &[&str] = &["prune", "--model", "model", "--out", "out", "--quiet"];
pub const PROFILE: &[&str] = &["profile", "--model", "model"];
pub const SWEEP: &[&str] = &["sweep", "sweep.toml", "--out", "out", "--quiet"];
pub const REPORT: &[&str] = &["report", "run.json", "--out", "page.html"];
pub const PRETRAIN: &[&str] =
    &["pretrain", "--model", "model", "--train", "train.txt", "--out", "out", "--steps", "2", "--quiet"];
pub const RETRAIN: &[&str] = &[
    "retrain",
    "--model",
    "model",
    "--train",
    "train.txt",
    "--eval",
    "eval.txt",
    "--steps",
    "2",
    "--out",
    "out",
    "--report",
    "run.json",
    "--memory-budget",
    "64MiB",
    "--quiet",
];
pub const RESUME: &[&str] = &[
    "retrain",
    "--model",
    "model",
    "--train",
    "train.txt",
    "--eval",
    "eval.txt",
    "--steps",
    "2",
    "--out",
    "out",
    "--checkpoints",
    "run",
    "--keep",
    "1",
    "--resume",
    "--quiet",
];

/// Bad input.
pub struct Case {
    command: &'static [&'static str],
    name: String,
    spoilt: Vec<Spoil>,
    /// More flags; one that the command has already takes its place.
    flags: Vec<String>,
    says: String,
    code: i32,
    most: u64,
}

/// A row: what it is, how it is made, the telling part of what is said.
pub type Row = (&'static str, Vec<Spoil>, &'static str);

/// Cases of one command and exit code.
pub fn table(command: &'static [&'static str], code: i32, rows: Vec<Row>) -> Vec<Case> {
    rows.into_iter().map(|(name, spoilt, says)| Case::new(command, name, spoilt, says, code)).collect()
}

/// A row of flags: the flags, and the telling part of what is said.
pub type FlagRow = (&'static str, &'static str);

/// Cases of flags, separated by spaces.
pub fn flags(command: &'static [&'static str], code: i32, rows: Vec<FlagRow>) -> Vec<Case> {
    rows.into_iter().map(|(flags, says)| Case::new(command, flags, Vec::new(), says, code).with(flags)).collect()
}

impl Case {
    pub fn new(
        command: &'static [&'static str],
        name: impl Into<String>,
        spoilt: Vec<Spoil>,
        says: impl Into<String>,
        code: i32,
    ) -> Case {
        Case { command, name: name.into(), spoilt, flags: Vec::new(), says: says.into(), code, most: MOST_RESIDENT }
    }

    /// With more flags, separated by spaces; "''" is an empty value.
    pub fn with(mut self, flags: &str) -> Case {
        self.flags = flags.split(' ').map(|flag| if flag == "''" { "" } else { flag }.to_string()).collect();
        self
    }

    /// With this much memory, in bytes, for what it must hold.
    pub fn holding(mut self, most: u64) -> Case {
        self.most = most;
        self
    }

    pub fn title(&self) -> String {
        format!("{} {}: {}", self.command[0], self.flags.join(" "), self.name)
    }

    fn arguments(&self) -> Vec<String> {
        let mut arguments: Vec<String> = self.command.iter().map(|arg| arg.to_string()).collect();
        for flag in self.flags.iter().filter(|flag| flag.starts_with("--")) {
            if let Some(at) = arguments.iter().position(|arg| arg == flag) {
                let values = arguments[at + 1..].iter().take_while(|arg| !arg.starts_with("--")).count();
                arguments.drain(at..=at + values);
            }
        }
        arguments.extend(self.flags.iter().cloned());
        arguments
    }

    /// Runs it; says what is not as it should be.
    pub fn run(&self) -> Result<(), String> {
        let folder = fresh();
        self.spoilt.iter().for_each(|spoil| spoil.apply(folder.path()));
        let before = listing(folder.path());
        let ended = start(&self.arguments(), folder.path())?;
        let stderr = ended.stderr;
        let wrong = |what: String| Err(format!("{}\n    {what}\n    {}", self.title(), stderr.trim_end()));
        if ended.status.code() != Some(self.code) {
            let signal = ended.status.signal().map_or(String::new(), |signal| format!(" (signal {signal})"));
            return wrong(format!("exit code {:?}{signal}, expected {}", ended.status.code(), self.code));
        }
        if stderr.lines().count() != 1 || !stderr.starts_with("error: ") {
            return wrong("expected one line that begins with error:".into());
        }
        if !stderr.contains(&self.says) {
            return wrong(format!("does not say {:?}", self.says));
        }
        if ended.resident > self.most {
            return wrong(format!("took {} MiB", ended.resident >> 20));
        }
        let after = listing(folder.path());
        if before != after {
            let left: Vec<_> = after.iter().filter(|file| !before.contains(file)).collect();
            let gone: Vec<_> = before.iter().filter(|file| !after.contains(file)).collect();
            return wrong(format!("left behind or altered: {left:?}; gone or altered: {gone:?}"));
        }
        Ok(())
    }

    /// Runs it, and nothing is wrong.
    pub fn succeeds(&self) {
        let folder = fresh();
        let ended = start(&self.arguments(), folder.path()).unwrap();
        assert!(ended.status.success() && ended.stderr.is_empty(), "{}: {}", self.title(), ended.stderr);
        assert!(ended.resident <= MOST_RESIDENT, "{}: {} MiB", self.title(), ended.resident >> 20);
    }
}

/// How a process ended.
struct Ended {
    status: ExitStatus,
    stderr: String,
    /// The most memory that it had, in bytes.
    resident: u64,
}

#[allow(clippy::zombie_processes)] // wait4 waits for it, and tells its memory, too
fn start(arguments: &[String], folder: &std::path::Path) -> Result<Ended, String> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_perp-engine"));
    command.args(arguments).current_dir(folder).env("CUDA_VISIBLE_DEVICES", "").env("RAYON_NUM_THREADS", "2");
    // Plans depend on the instruction set, as they do on threads: cases name what takes no tiles.
    command.env("PERP_ENGINE_ISA", "avx512");
    command.env("XDG_CACHE_HOME", Fixture::get().path("cache"));
    command.env("HF_HUB_OFFLINE", "1");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    // SAFETY: setrlimit is a plain system call, which may be made between fork and exec.
    unsafe {
        command.pre_exec(|| {
            let limit = libc::rlimit { rlim_cur: ADDRESS_SPACE, rlim_max: ADDRESS_SPACE };
            match libc::setrlimit(libc::RLIMIT_AS, &limit) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        });
    }
    let mut child = command.spawn().unwrap();
    let started = Instant::now();
    let mut reader = child.stderr.take().unwrap();
    let stderr = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    });
    let (mut status, mut usage) = (0, std::mem::MaybeUninit::<libc::rusage>::zeroed());
    loop {
        // SAFETY: the child is ours and not yet waited for; both places are valid for writing.
        match unsafe { libc::wait4(child.id() as i32, &mut status, libc::WNOHANG, usage.as_mut_ptr()) } {
            0 if started.elapsed() > PATIENCE => {
                child.kill().and_then(|()| child.wait()).unwrap();
                return Err(format!("{arguments:?} hangs"));
            }
            0 => std::thread::sleep(Duration::from_millis(1)),
            id => {
                assert_eq!(id, child.id() as i32);
                break;
            }
        }
    }
    // SAFETY: all zeros are a valid rusage, and wait4 has filled it.
    let usage = unsafe { usage.assume_init() };
    // Kibibytes, but bytes on Apple's systems.
    let unit = if cfg!(target_vendor = "apple") { 1 } else { 1024 };
    Ok(Ended {
        status: ExitStatus::from_raw(status),
        stderr: stderr.join().unwrap(),
        resident: usage.ru_maxrss as u64 * unit,
    })
}
