//! Modules: PTX text in, functions and variables out.

use std::collections::HashMap;
use std::ffi::{c_int, c_uint};
use std::sync::Arc;

use crate::driver::abi::{DevicePtr, Handle, HostPtr, In, Out, Text};
use crate::driver::exports::{aliases, exports, invalid};
use crate::driver::gpu::{LoadError, LoadedKernel};
use crate::driver::session::{context, context_or};
use crate::driver::state::{Function, Module};
use crate::driver::status::{Result, Status};

const INFO_LOG_BUFFER: c_int = 3;
const INFO_LOG_SIZE: c_int = 4;
const ERROR_LOG_BUFFER: c_int = 5;
const ERROR_LOG_SIZE: c_int = 6;

/// First bytes of images that are machine code: ELF, and fat binaries as nvcc wraps and writes them.
const BINARIES: [(&[u8], &str); 3] = [
    (b"\x7fELF", "machine code (a cubin)"),
    (b"\x50\xed\x55\xba", "a fat binary"),
    (b"\xb1\x43\x62\x46", "a wrapped fat binary"),
];

/// The options of a load that mean something here: where its log goes.
#[derive(Default)]
pub(super) struct JitOptions {
    error_log: Option<(HostPtr, usize)>,
    /// Where the sizes stand that the call replaces by what it wrote.
    values: Vec<(c_int, Out<usize>)>,
}

impl JitOptions {
    /// The options of a call. A value stands in its place as a word, whatever its type.
    pub(super) fn read(options: In<c_int>, values: In<usize>, count: c_uint) -> Result<JitOptions> {
        let mut read = JitOptions::default();
        let (mut buffer, mut size) = (None, 0);
        for (index, option) in options.all(count as usize)?.into_iter().enumerate() {
            let value = values.at(index)?;
            match option {
                ERROR_LOG_BUFFER => buffer = Some(HostPtr(value)),
                ERROR_LOG_SIZE => size = value as u32 as usize,
                _ => {}
            }
            if [INFO_LOG_SIZE, ERROR_LOG_SIZE].contains(&option) {
                read.values.push((option, values.out_at(index)));
            }
            if option == INFO_LOG_BUFFER && value != 0 {
                // The information log stays empty: a string that ends at once.
                HostPtr(value).write(&[0]);
            }
        }
        read.error_log = buffer.filter(|buffer| !buffer.is_null() && size > 0).map(|buffer| (buffer, size));
        Ok(read)
    }

    /// Writes the error log, cut to the buffer, and how long it is.
    fn log(&self, text: &str) {
        let mut written = 0;
        if let Some((buffer, size)) = self.error_log {
            written = text.len().min(size - 1);
            buffer.write(&text.as_bytes()[..written]);
            buffer.offset(written).write(&[0]);
        }
        for (option, out) in &self.values {
            out.set_if_wanted(if *option == ERROR_LOG_SIZE { written } else { 0 });
        }
    }
}

/// Loads PTX text into the current context.
fn load(call: &str, out: Out<Handle>, text: &[u8], options: &JitOptions) -> Result {
    let mut cuda = context()?;
    if out.is_null() {
        return Err(Status::INVALID_VALUE);
    }
    let refuse = |status: Status, reason: &str| {
        options.log(reason);
        crate::report::warn(&format!("{call}: {reason}"));
        Err(status)
    };
    if let Some((_, what)) = BINARIES.iter().find(|(magic, _)| text.starts_with(magic)) {
        return refuse(Status::NO_BINARY_FOR_GPU, &format!("the image is {what}; the virtual GPU runs PTX text"));
    }
    let Ok(text) = std::str::from_utf8(text) else {
        return refuse(Status::INVALID_IMAGE, "the image is not text; the virtual GPU runs PTX text");
    };
    let (gpu, owner) = (cuda.gpu(), cuda.context);
    match gpu.load(text) {
        Ok(loaded) => {
            options.log("");
            let handle = cuda.handle();
            let module = Module { context: owner, loaded: Arc::new(loaded), functions: HashMap::new() };
            cuda.modules.insert(handle, module);
            out.set(handle)
        }
        Err(LoadError::Ptx(reason)) => refuse(Status::INVALID_PTX, &reason),
        Err(LoadError::Version(reason)) => refuse(Status::UNSUPPORTED_PTX_VERSION, &reason),
        Err(LoadError::Memory(reason)) => refuse(Status::OUT_OF_MEMORY, &reason),
    }
}

/// Loads an image in memory. Text ends in a zero byte; machine code is told by its first bytes and not read on.
pub(super) fn load_image(call: &str, out: Out<Handle>, image: In<u8>, options: &JitOptions) -> Result {
    let first = image.get()?;
    let text = match BINARIES.iter().find(|(magic, _)| magic[0] == first && starts_with(image, magic)) {
        Some((magic, _)) => magic.to_vec(),
        None => image.as_text().bytes()?,
    };
    load(call, out, &text, options)
}

fn starts_with(image: In<u8>, magic: &[u8]) -> bool {
    // Stops at the first byte that differs, so it reads nothing past a shorter text's end.
    magic.iter().enumerate().all(|(index, byte)| image.at(index) == Ok(*byte))
}

/// Loads a file.
pub(super) fn load_file(call: &str, out: Out<Handle>, path: Text, options: &JitOptions) -> Result {
    let path = path.path()?;
    let mut bytes = std::fs::read(&path).map_err(|error| {
        crate::report::warn(&format!("{call}: {}: {error}", path.display()));
        Status::FILE_NOT_FOUND
    })?;
    while bytes.last() == Some(&0) {
        bytes.pop();
    }
    load(call, out, &bytes, options)
}

/// The kernel of a module by name.
pub(super) fn module_function(out: Out<Handle>, handle: Handle, name: Text) -> Result {
    let mut cuda = context()?;
    let name = name.get()?;
    if out.is_null() {
        return Err(Status::INVALID_VALUE);
    }
    let module = cuda.modules.get(&handle).ok_or(Status::INVALID_HANDLE)?;
    if let Some(&known) = module.functions.get(&name) {
        return out.set(known);
    }
    let kernel = LoadedKernel::find(&module.loaded, &name).map_err(|fault| match fault {
        Some(fault) => {
            crate::report::warn(&fault.to_string());
            Status::INVALID_IMAGE
        }
        None => Status::NOT_FOUND,
    })?;
    let (context, function) = (module.context, cuda.handle());
    let max_dynamic_shared = cuda.gpu().description.shared_per_block.saturating_sub(kernel.static_shared());
    cuda.functions.insert(function, Function { module: handle, context, kernel, max_dynamic_shared, carveout: -1 });
    if let Some(module) = cuda.modules.get_mut(&handle) {
        module.functions.insert(name, function);
    }
    out.set(function)
}

/// The variable of a module by name.
pub(super) fn module_global(address: Out<DevicePtr>, bytes: Out<usize>, handle: Handle, name: Text) -> Result {
    let cuda = context()?;
    let name = name.get()?;
    let module = cuda.modules.get(&handle).ok_or(Status::INVALID_HANDLE)?;
    let (at, size) = module.loaded.variable(&name).ok_or(Status::NOT_FOUND)?;
    address.set_if_wanted(at);
    bytes.set_if_wanted(size as usize);
    Ok(())
}

/// `cuFuncGetAttribute`.
pub(super) fn function_attribute(value: Out<c_int>, which: c_uint, handle: Handle) -> Result {
    let mut cuda = context()?;
    let gpu = cuda.gpu();
    let function = cuda.function(handle)?.clone();
    let kernel = &function.kernel;
    let (major, minor) = gpu.description.compute_capability;
    let (version, target) = kernel.versions();
    value.set(match which {
        0 => kernel.max_threads(&gpu.description) as c_int,
        1 => kernel.static_shared() as c_int,
        2 => kernel.constant_bytes() as c_int,
        3 => kernel.local_bytes() as c_int,
        4 => kernel.registers() as c_int,
        5 => target as c_int,
        6 => (major * 10 + minor) as c_int,
        7 => 0,
        8 => function.max_dynamic_shared as c_int,
        9 => function.carveout,
        10..=15 => 0, // clusters
        _ => {
            return Err(invalid("cuFuncGetAttribute", &format!("attribute {which} (PTX {}.{})", version.0, version.1)));
        }
    })
}

/// `cuFuncSetAttribute`.
pub(super) fn set_function_attribute(handle: Handle, which: c_uint, value: c_int) -> Result {
    let mut cuda = context()?;
    let optin = cuda.gpu().description.shared_per_block_optin;
    let function = cuda.function(handle)?;
    match which {
        8 => {
            let room = optin.saturating_sub(function.kernel.static_shared());
            let wanted = u32::try_from(value).ok().filter(|wanted| *wanted <= room).ok_or_else(|| {
                let name = function.kernel.name();
                let reason =
                    format!("{value} bytes of dynamic shared memory for {name}: the device has room for {room}");
                invalid("cuFuncSetAttribute", &reason)
            })?;
            function.max_dynamic_shared = wanted;
            Ok(())
        }
        9 if (-1..=100).contains(&value) => {
            function.carveout = value;
            Ok(())
        }
        _ => Err(Status::INVALID_VALUE),
    }
}

exports! {
    fn cuModuleLoad(module: Out<Handle>, path: Text) {
        load_file("cuModuleLoad", module, path, &JitOptions::default())
    }

    fn cuModuleLoadData(module: Out<Handle>, image: In<u8>) {
        load_image("cuModuleLoadData", module, image, &JitOptions::default())
    }

    fn cuModuleLoadDataEx(module: Out<Handle>, image: In<u8>, count: c_uint, options: In<c_int>, values: In<usize>) {
        load_image("cuModuleLoadDataEx", module, image, &JitOptions::read(options, values, count)?)
    }

    fn cuModuleLoadFatBinary(_module: Out<Handle>, image: In<u8>) {
        image.get()?;
        context()?;
        crate::report::warn("cuModuleLoadFatBinary: the virtual GPU runs PTX text; load that with cuModuleLoadData");
        Err(Status::NO_BINARY_FOR_GPU)
    }

    fn cuModuleUnload(module: Handle) {
        let mut cuda = context_or(|cuda| cuda.modules.get(&module).map(|module| module.context))?;
        let owner = cuda.modules.get(&module).ok_or(Status::INVALID_HANDLE)?.context;
        // Kernels that wait still need their code and variables.
        let goal = cuda.all_of(owner);
        cuda.run(&goal);
        cuda.unload(module);
        cuda.context(owner).map(|_| ())
    }

    fn cuModuleGetFunction(function: Out<Handle>, module: Handle, name: Text) {
        module_function(function, module, name)
    }

    fn cuModuleGetGlobal_v2(address: Out<DevicePtr>, bytes: Out<usize>, module: Handle, name: Text) {
        module_global(address, bytes, module, name)
    }

    fn cuModuleGetLoadingMode(mode: Out<c_int>) {
        mode.set(1) // CU_MODULE_EAGER_LOADING
    }

    fn cuFuncGetAttribute(value: Out<c_int>, which: c_uint, function: Handle) {
        function_attribute(value, which, function)
    }

    fn cuFuncSetAttribute(function: Handle, which: c_uint, value: c_int) {
        set_function_attribute(function, which, value)
    }

    fn cuFuncSetCacheConfig(function: Handle, config: c_uint) {
        context()?.function(function)?;
        if config > 3 { Err(Status::INVALID_VALUE) } else { Ok(()) }
    }

    fn cuFuncSetSharedMemConfig(function: Handle, config: c_uint) {
        context()?.function(function)?;
        if config > 2 { Err(Status::INVALID_VALUE) } else { Ok(()) }
    }

    fn cuFuncGetModule(module: Out<Handle>, function: Handle) {
        let found = context()?.function(function)?.module;
        module.set(found)
    }
}

aliases! {
    cuModuleGetGlobal = cuModuleGetGlobal_v2(address: Out<DevicePtr>, bytes: Out<usize>, module: Handle, name: Text);
}
