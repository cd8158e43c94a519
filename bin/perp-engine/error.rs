//! How a command ends when it does not succeed.

use std::fmt;
use std::process::ExitCode;

use engine::error::Error;

/// Why a command stopped.
#[derive(Debug)]
pub enum Failure {
    /// The flags contradict themselves or the machine: exit code 2.
    Usage(String),
    /// The work could not be done: exit code 1.
    Failed(String),
    /// A signal ended the work where it could be ended: exit code 128 and the signal's number.
    Interrupted { signal: u8, message: String },
    /// Nobody reads the output any more: no complaint.
    Quiet,
}

impl Failure {
    /// A usage error.
    pub fn usage(message: impl Into<String>) -> Failure {
        Failure::Usage(message.into())
    }

    /// A failure.
    pub fn failed(message: impl Into<String>) -> Failure {
        Failure::Failed(message.into())
    }

    /// 2 for usage, 1 for failure, what shells use for signals.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Failure::Usage(_) => ExitCode::from(2),
            Failure::Failed(_) => ExitCode::from(1),
            Failure::Interrupted { signal, .. } => ExitCode::from(128 + signal),
            Failure::Quiet => ExitCode::SUCCESS,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Usage(message) | Failure::Failed(message) | Failure::Interrupted { message, .. } => {
                f.write_str(message)
            }
            Failure::Quiet => Ok(()),
        }
    }
}

impl<E: Into<Error>> From<E> for Failure {
    fn from(error: E) -> Failure {
        Failure::Failed(error.into().to_string())
    }
}

/// The most characters of an error line.
const LINE: usize = 2000;

/// A message as one line that does nothing to a terminal: what files say may be quoted in it, whatever that is.
pub fn one_line(message: &str) -> String {
    let mut line = String::new();
    for (i, c) in message.chars().enumerate() {
        match c {
            _ if i == LINE => return line + "…",
            c if c.is_control() => line.extend(c.escape_default()),
            c => line.push(c),
        }
    }
    line
}

/// What is wrong with the flags, in one line. Help and the version are no failures: they are printed, and the program ends.
pub fn usage(error: clap::Error) -> Failure {
    use clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;
    if !error.use_stderr() || error.kind() == DisplayHelpOnMissingArgumentOrSubcommand {
        error.exit();
    }
    let text = error.to_string();
    let lines = text
        .lines()
        .map(str::trim)
        .filter(|line| !(line.is_empty() || line.starts_with("Usage: ") || line.starts_with("For more information, ")));
    let mut message = String::new();
    for line in lines {
        let between = if line.starts_with("tip: ") { "; " } else { " " };
        message += if message.is_empty() { "" } else { between };
        message += line;
    }
    Failure::Usage(message.strip_prefix("error: ").unwrap_or(&message).into())
}

/// Writes to standard output; a reader that has gone away ends the command without a complaint.
pub fn print(text: &str) -> Result<(), Failure> {
    use std::io::{ErrorKind, Write};
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Err(Failure::Quiet),
        Err(e) => Err(Failure::failed(format!("cannot write to standard output: {e}"))),
    }
}

/// Writes a line to standard error. Where no one reads any more it is lost, and the work goes on: hours of it may be behind.
pub fn tell(line: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_one_line_whatever_it_quotes() {
        assert_eq!(one_line("a\nerror: b\u{1b}[31m\tc é"), "a\\nerror: b\\u{1b}[31m\\tc é");
        assert_eq!(one_line(&"x".repeat(LINE)), "x".repeat(LINE));
        assert_eq!(one_line(&"é".repeat(LINE + 1)), "é".repeat(LINE) + "…");
    }
}
