//! CUDA C++ to PTX by NVRTC, the compiler as a library.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::Path;
use std::ptr::{null, null_mut};

use libloading::{Library, Symbol};

use crate::Result;

/// The loaded compiler.
pub struct Nvrtc(Library);

type Program = *mut c_void;
type Create = unsafe extern "C" fn(
    *mut Program,
    *const c_char,
    *const c_char,
    c_int,
    *const *const c_char,
    *const *const c_char,
) -> c_int;
type Compile = unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int;
type Size = unsafe extern "C" fn(Program, *mut usize) -> c_int;
type Text = unsafe extern "C" fn(Program, *mut c_char) -> c_int;
type Destroy = unsafe extern "C" fn(*mut Program) -> c_int;
type ErrorText = unsafe extern "C" fn(c_int) -> *const c_char;

impl Nvrtc {
    pub fn load(path: &Path) -> Result<Nvrtc> {
        // SAFETY: NVRTC's initialisers do nothing but set up the library.
        unsafe { Library::new(path) }.map(Nvrtc).map_err(|e| format!("cannot load {}: {e}", path.display()))
    }

    /// The PTX of `source`, which lines name `name`, or the compiler's log.
    pub fn compile(&self, name: &str, source: &str, options: &[String]) -> Result<String> {
        let text = |text: &str| CString::new(text).map_err(|_| format!("{name}: a NUL byte in the source"));
        let (source, file) = (text(source)?, text(name)?);
        let options = options.iter().map(|option| text(option)).collect::<Result<Vec<_>>>()?;
        let options: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();
        let mut program = null_mut();
        // SAFETY: every string outlives the calls that read it, and the functions have the types of nvrtc.h.
        unsafe {
            let create: Symbol<'_, Create> = self.function("nvrtcCreateProgram")?;
            self.check(create(&mut program, source.as_ptr(), file.as_ptr(), 0, null(), null()), name)?;
            let compile: Symbol<'_, Compile> = self.function("nvrtcCompileProgram")?;
            let status = compile(program, options.len() as c_int, options.as_ptr());
            let log = self.text(program, "nvrtcGetProgramLogSize", "nvrtcGetProgramLog", name)?;
            let ptx = if status == 0 {
                self.text(program, "nvrtcGetPTXSize", "nvrtcGetPTX", name)
            } else {
                Err(format!("{name} does not compile:\n{}", log.trim()))
            };
            let destroy: Symbol<'_, Destroy> = self.function("nvrtcDestroyProgram")?;
            self.check(destroy(&mut program), name)?;
            if status == 0 && !log.trim().is_empty() {
                return Err(format!("{name} compiles with warnings:\n{}", log.trim()));
            }
            ptx
        }
    }

    /// # Safety
    /// `T` is the function's type.
    unsafe fn function<T>(&self, name: &str) -> Result<Symbol<'_, T>> {
        // SAFETY: the caller vouches for the type.
        unsafe { self.0.get(name.as_bytes()) }.map_err(|e| format!("NVRTC has no {name}: {e}"))
    }

    /// # Safety
    /// `program` is a program of this library.
    unsafe fn text(&self, program: Program, size: &str, text: &str, name: &str) -> Result<String> {
        // SAFETY: the second call writes as many bytes as the first one said.
        unsafe {
            let (size, text): (Symbol<'_, Size>, Symbol<'_, Text>) = (self.function(size)?, self.function(text)?);
            let mut len = 0;
            self.check(size(program, &mut len), name)?;
            let mut bytes = vec![0u8; len];
            self.check(text(program, bytes.as_mut_ptr().cast()), name)?;
            bytes.truncate(bytes.iter().position(|byte| *byte == 0).unwrap_or(len));
            String::from_utf8(bytes).map_err(|_| format!("{name}: NVRTC's output is not UTF-8"))
        }
    }

    fn check(&self, status: c_int, name: &str) -> Result<()> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: the function takes any number and returns a static string.
        let text = unsafe {
            let text: Symbol<'_, ErrorText> = self.function("nvrtcGetErrorString")?;
            CStr::from_ptr(text(status)).to_string_lossy().into_owned()
        };
        Err(format!("{name}: NVRTC says {text}"))
    }
}
