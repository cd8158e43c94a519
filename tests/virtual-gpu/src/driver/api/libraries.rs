//! Libraries. A library is a module of the current context: lazy loading for several contexts is not done.

use std::ffi::{c_int, c_uint, c_void};

use crate::driver::abi::{DevicePtr, Handle, In, Out, Text};
use crate::driver::exports::{exports, unsupported};
use crate::driver::session::context;
use crate::driver::status::Status;

use super::modules::{
    JitOptions, function_attribute, load_file, load_image, module_function, module_global, set_function_attribute,
};

exports! {
    fn cuLibraryLoadData(
        library: Out<Handle>, code: In<u8>, options: In<c_int>, values: In<usize>, count: c_uint,
        _library_options: In<c_int>, _library_values: In<usize>, _library_count: c_uint,
    ) {
        load_image("cuLibraryLoadData", library, code, &JitOptions::read(options, values, count)?)
    }

    fn cuLibraryLoadFromFile(
        library: Out<Handle>, path: Text, options: In<c_int>, values: In<usize>, count: c_uint,
        _library_options: In<c_int>, _library_values: In<usize>, _library_count: c_uint,
    ) {
        load_file("cuLibraryLoadFromFile", library, path, &JitOptions::read(options, values, count)?)
    }

    fn cuLibraryUnload(library: Handle) {
        let mut cuda = context()?;
        if !cuda.modules.contains_key(&library) {
            return Err(Status::INVALID_HANDLE);
        }
        cuda.unload(library);
        Ok(())
    }

    fn cuLibraryGetKernel(kernel: Out<Handle>, library: Handle, name: Text) {
        module_function(kernel, library, name)
    }

    fn cuLibraryGetModule(module: Out<Handle>, library: Handle) {
        if !context()?.modules.contains_key(&library) {
            return Err(Status::INVALID_HANDLE);
        }
        module.set(library)
    }

    fn cuLibraryGetGlobal(address: Out<DevicePtr>, bytes: Out<usize>, library: Handle, name: Text) {
        module_global(address, bytes, library, name)
    }

    fn cuLibraryGetManaged(_address: Out<DevicePtr>, _bytes: Out<usize>, _library: Handle, name: Text) {
        name.bytes()?;
        context()?;
        Err(Status::NOT_FOUND)
    }

    fn cuLibraryGetUnifiedFunction(_function: Out<*const c_void>, _library: Handle, _name: Text) {
        Err(unsupported("cuLibraryGetUnifiedFunction", "a function with one address on host and device"))
    }

    fn cuKernelGetFunction(function: Out<Handle>, kernel: Handle) {
        context()?.function(kernel)?;
        function.set(kernel)
    }

    fn cuKernelGetAttribute(value: Out<c_int>, which: c_uint, kernel: Handle, _device: c_int) {
        function_attribute(value, which, kernel)
    }

    fn cuKernelSetAttribute(which: c_uint, value: c_int, kernel: Handle, _device: c_int) {
        set_function_attribute(kernel, which, value)
    }

    fn cuKernelSetCacheConfig(kernel: Handle, config: c_uint, _device: c_int) {
        context()?.function(kernel)?;
        if config > 3 { Err(Status::INVALID_VALUE) } else { Ok(()) }
    }
}
