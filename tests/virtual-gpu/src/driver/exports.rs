//! What every exported function shares: a C signature, no panic across it, and a row for `cuGetProcAddress`.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::abi::Handle;
use super::state::STREAM_PER_THREAD;
use super::status::{Result, Status};

thread_local! {
    /// A function that a stream called is running on this thread: CUDA forbids it to call CUDA.
    static IN_HOST_FUNCTION: Cell<bool> = const { Cell::new(false) };
    /// The call that is running means the thread's own default stream where it names none.
    static OWN_DEFAULT_STREAM: Cell<bool> = const { Cell::new(false) };
}

/// An exported function: the name that C knows it by, and where it is.
pub type Export = (&'static str, *const ());

/// Runs the body of the exported function `name`.
pub fn guard(name: &'static str, body: impl FnOnce() -> Result) -> Status {
    if IN_HOST_FUNCTION.get() {
        crate::report::warn(&format!("{name}: called from a host function of a stream, where CUDA allows no calls"));
        return Status::NOT_PERMITTED;
    }
    crate::report::calls::begin(name);
    if let Some(status) = super::mishaps::of_call(name) {
        return status;
    }
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => Status::SUCCESS,
        Ok(Err(status)) => status,
        Err(panic) => {
            crate::report::warn(&format!("{name}: the virtual GPU is at fault: {}", panic_text(&*panic)));
            Status::UNKNOWN
        }
    }
}

/// The same for a variant of the function that takes the null stream as the calling thread's own default stream.
pub fn guard_own_stream(name: &'static str, body: impl FnOnce() -> Result) -> Status {
    let outer = OWN_DEFAULT_STREAM.replace(true);
    let status = guard(name, body);
    OWN_DEFAULT_STREAM.set(outer);
    status
}

/// The stream that a handle names in the call that is running: null stands for one of the two default streams.
pub fn stream_named(handle: Handle) -> Handle {
    if handle.is_null() && OWN_DEFAULT_STREAM.get() { STREAM_PER_THREAD } else { handle }
}

/// What a panic said.
pub fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("a panic without words")
}

/// Runs a function of the program on behalf of a stream.
pub fn as_host_function(call: impl FnOnce()) {
    IN_HOST_FUNCTION.set(true);
    call();
    IN_HOST_FUNCTION.set(false);
}

/// The error for what CUDA offers and the virtual GPU does not; says so on stderr.
pub fn unsupported(call: &str, what: &str) -> Status {
    crate::report::warn(&format!("{call}: {what} is not supported by the virtual GPU"));
    Status::NOT_SUPPORTED
}

/// `INVALID_VALUE`, with the reason on stderr: CUDA keeps it to itself.
pub fn invalid(call: &str, reason: &str) -> Status {
    crate::report::warn(&format!("{call}: {reason}"));
    Status::INVALID_VALUE
}

/// Functions with CUDA's names and signatures. A body is a block that gives a [`Result`].
///
/// `#[ptsz]` or `#[ptds]` before a function exports it once more with that ending, as programs call it that were
/// compiled for per-thread default streams: the null stream is then the calling thread's own.
macro_rules! exports {
    ($($(#[$variant:ident])? fn $name:ident $args:tt $body:block)*) => {
        $(
            #[unsafe(no_mangle)]
            pub unsafe extern "C" fn $name $args -> $crate::driver::status::Status {
                $crate::driver::exports::guard(stringify!($name), move || -> $crate::driver::status::Result { $body })
            }

            $(
                /// The function again, where the null stream is the thread's own.
                mod $name {
                    use super::*;

                    pub const NAME: &str = concat!(stringify!($name), "_", stringify!($variant));

                    #[unsafe(export_name = concat!(stringify!($name), "_", stringify!($variant)))]
                    pub unsafe extern "C" fn own_stream $args -> $crate::driver::status::Status {
                        $crate::driver::exports::guard_own_stream(
                            NAME,
                            move || -> $crate::driver::status::Result { $body },
                        )
                    }
                }
            )?
        )*
        /// The functions of this file.
        pub const EXPORTS: &[$crate::driver::exports::Export] = &[
            $(
                (stringify!($name), $name as *const ()),
                $($crate::driver::exports::own_stream!($name $variant),)?
            )*
        ];
    };
}

/// The row of a function's variant for per-thread default streams.
macro_rules! own_stream {
    ($name:ident $variant:ident) => {
        ($name::NAME, $name::own_stream as *const ())
    };
}

/// Names under which CUDA has exported the same function with the same signature.
macro_rules! aliases {
    ($($alias:ident = $name:ident($($arg:ident: $type:ty),* $(,)?);)*) => {
        $(
            #[unsafe(no_mangle)]
            pub unsafe extern "C" fn $alias($($arg: $type),*) -> $crate::driver::status::Status {
                // SAFETY: the two functions have one contract.
                unsafe { $name($($arg),*) }
            }
        )*
        /// The other names of functions of this file.
        pub const ALIASES: &[$crate::driver::exports::Export] = &[$((stringify!($alias), $alias as *const ())),*];
    };
}

pub(crate) use {aliases, exports, own_stream};
