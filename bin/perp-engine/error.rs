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
