//! Kernel launches.

use std::ffi::{c_int, c_uint, c_void};

use crate::driver::abi::{Handle, In, LaunchConfig};
use crate::driver::exports::{exports, unsupported};
use crate::driver::job::Action;
use crate::driver::launches::{Dimensions, Params};
use crate::driver::session::context;
use crate::driver::status::{Result, Status};

/// `CU_LAUNCH_ATTRIBUTE_*`.
const IGNORE: c_uint = 0;
const ACCESS_POLICY_WINDOW: c_uint = 1;
const COOPERATIVE: c_uint = 2;
const SYNCHRONIZATION_POLICY: c_uint = 3;
const CLUSTER_DIMENSION: c_uint = 4;
const CLUSTER_SCHEDULING: c_uint = 5;
const PRIORITY: c_uint = 8;

fn launch(call: &str, function: Handle, dimensions: Dimensions, stream: Handle, params: Params) -> Result {
    let mut cuda = context()?;
    let kernel = cuda.kernel(call, function, dimensions, params)?;
    let (_, context) = cuda.stream(stream)?;
    if cuda.functions.get(&function).is_none_or(|function| function.context != context) {
        return Err(Status::INVALID_HANDLE); // a function of another context than the stream's
    }
    let what = format!("kernel {}", kernel.kernel.name());
    cuda.submit(stream, &what, Action::Kernel(kernel)).map(|_| ())
}

exports! {
    #[ptsz]
    fn cuLaunchKernel(
        function: Handle,
        grid_x: c_uint, grid_y: c_uint, grid_z: c_uint,
        block_x: c_uint, block_y: c_uint, block_z: c_uint,
        shared: c_uint, stream: Handle, params: *mut *mut c_void, extra: *mut *mut c_void,
    ) {
        let (grid, block) = ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]);
        let dimensions = Dimensions { grid, block, shared, cooperative: false };
        launch("cuLaunchKernel", function, dimensions, stream, Params { each: params, packed: extra })
    }

    #[ptsz]
    fn cuLaunchCooperativeKernel(
        function: Handle,
        grid_x: c_uint, grid_y: c_uint, grid_z: c_uint,
        block_x: c_uint, block_y: c_uint, block_z: c_uint,
        shared: c_uint, stream: Handle, params: *mut *mut c_void,
    ) {
        let (grid, block) = ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]);
        let dimensions = Dimensions { grid, block, shared, cooperative: true };
        let params = Params { each: params, packed: std::ptr::null_mut() };
        launch("cuLaunchCooperativeKernel", function, dimensions, stream, params)
    }

    #[ptsz]
    fn cuLaunchKernelEx(
        config: In<LaunchConfig>, function: Handle, params: *mut *mut c_void, extra: *mut *mut c_void,
    ) {
        let config = config.get()?;
        let mut cooperative = false;
        for attribute in config.attributes.all(config.attribute_count as usize)? {
            match attribute.id {
                // Hints change nothing of what is computed.
                IGNORE | ACCESS_POLICY_WINDOW | SYNCHRONIZATION_POLICY | CLUSTER_SCHEDULING | PRIORITY => {}
                COOPERATIVE => cooperative = attribute.value[0] as u32 != 0,
                CLUSTER_DIMENSION => {
                    // Three 32-bit numbers; a cluster of one block is no cluster.
                    let [xy, z] = [attribute.value[0], attribute.value[1]];
                    if [xy as u32, (xy >> 32) as u32, z as u32] != [1; 3] {
                        return Err(unsupported("cuLaunchKernelEx", "a cluster of blocks"));
                    }
                }
                other => return Err(unsupported("cuLaunchKernelEx", &format!("launch attribute {other}"))),
            }
        }
        let LaunchConfig { grid, block, shared_bytes: shared, stream, .. } = config;
        let dimensions = Dimensions { grid, block, shared, cooperative };
        launch("cuLaunchKernelEx", function, dimensions, stream, Params { each: params, packed: extra })
    }

    fn cuLaunchCooperativeKernelMultiDevice(_list: In<u8>, _devices: c_uint, _flags: c_uint) {
        Err(unsupported("cuLaunchCooperativeKernelMultiDevice", "one launch on several devices (deprecated)"))
    }

    fn cuLaunch(_function: Handle) {
        Err(unsupported("cuLaunch", "launching in the manner before CUDA 4.0; use cuLaunchKernel"))
    }

    fn cuLaunchGrid(_function: Handle, _width: c_int, _height: c_int) {
        Err(unsupported("cuLaunchGrid", "launching in the manner before CUDA 4.0; use cuLaunchKernel"))
    }
}
