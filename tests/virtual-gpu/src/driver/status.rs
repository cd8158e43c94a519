//! `CUresult`: the numbers, names and sentences of CUDA's errors.

use std::ffi::CStr;

/// A `CUresult` as it crosses the C interface. Not an enum: C may hand in any number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Status(pub i32);

/// What a call gives: success, or the error that the caller gets.
pub type Result<T = ()> = std::result::Result<T, Status>;

/// A row of the table: number, name, sentence.
type Row = (i32, &'static CStr, &'static CStr);

macro_rules! statuses {
    ($($name:ident = $code:literal: $text:literal,)*) => {
        impl Status {
            $(#[allow(missing_docs, dead_code)] pub const $name: Status = Status($code);)*
        }
        const TABLE: &[Row] = &[$(statuses!(@row $name $code $text),)*];
    };
    (@row SUCCESS $code:literal $text:literal) => { ($code, c"CUDA_SUCCESS", text($text)) };
    (@row $name:ident $code:literal $text:literal) => {
        ($code, text(concat!("CUDA_ERROR_", stringify!($name), "\0")), text($text))
    };
}

/// A C string from a literal that ends in a zero byte.
const fn text(literal: &'static str) -> &'static CStr {
    match CStr::from_bytes_with_nul(literal.as_bytes()) {
        Ok(text) => text,
        Err(_) => panic!("the literals of this file end in a zero byte"),
    }
}

impl Status {
    fn row(self) -> Option<&'static Row> {
        TABLE.iter().find(|row| row.0 == self.0)
    }

    /// The name of the constant, such as `CUDA_ERROR_INVALID_VALUE`; none for a number that CUDA does not know.
    pub fn name(self) -> Option<&'static CStr> {
        self.row().map(|row| row.1)
    }

    /// The sentence that CUDA gives for it.
    pub fn sentence(self) -> Option<&'static CStr> {
        self.row().map(|row| row.2)
    }
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.name() {
            Some(name) => f.write_str(&name.to_string_lossy()),
            None => write!(f, "CUresult {}", self.0),
        }
    }
}

statuses! {
    SUCCESS = 0: "no error\0",
    INVALID_VALUE = 1: "invalid argument\0",
    OUT_OF_MEMORY = 2: "out of memory\0",
    NOT_INITIALIZED = 3: "initialization error\0",
    DEINITIALIZED = 4: "driver shutting down\0",
    PROFILER_DISABLED = 5: "profiler disabled while using external profiling tool\0",
    PROFILER_NOT_INITIALIZED = 6: "profiler not initialized: call cudaProfilerInitialize()\0",
    PROFILER_ALREADY_STARTED = 7: "profiler already started\0",
    PROFILER_ALREADY_STOPPED = 8: "profiler already stopped\0",
    STUB_LIBRARY = 34: "CUDA driver is a stub library\0",
    DEVICE_UNAVAILABLE = 46: "CUDA-capable device(s) is/are busy or unavailable\0",
    NO_DEVICE = 100: "no CUDA-capable device is detected\0",
    INVALID_DEVICE = 101: "invalid device ordinal\0",
    DEVICE_NOT_LICENSED = 102: "device doesn't have valid Grid license\0",
    INVALID_IMAGE = 200: "device kernel image is invalid\0",
    INVALID_CONTEXT = 201: "invalid device context\0",
    CONTEXT_ALREADY_CURRENT = 202: "context already current\0",
    MAP_FAILED = 205: "mapping of buffer object failed\0",
    UNMAP_FAILED = 206: "unmapping of buffer object failed\0",
    ARRAY_IS_MAPPED = 207: "array is mapped\0",
    ALREADY_MAPPED = 208: "resource already mapped\0",
    NO_BINARY_FOR_GPU = 209: "no kernel image is available for execution on the device\0",
    ALREADY_ACQUIRED = 210: "resource already acquired\0",
    NOT_MAPPED = 211: "resource not mapped\0",
    NOT_MAPPED_AS_ARRAY = 212: "resource not mapped as array\0",
    NOT_MAPPED_AS_POINTER = 213: "resource not mapped as pointer\0",
    ECC_UNCORRECTABLE = 214: "uncorrectable ECC error encountered\0",
    UNSUPPORTED_LIMIT = 215: "limit is not supported on this architecture\0",
    CONTEXT_ALREADY_IN_USE = 216: "exclusive-thread device already in use by a different thread\0",
    PEER_ACCESS_UNSUPPORTED = 217: "peer access is not supported between these two devices\0",
    INVALID_PTX = 218: "a PTX JIT compilation failed\0",
    INVALID_GRAPHICS_CONTEXT = 219: "invalid OpenGL or DirectX context\0",
    NVLINK_UNCORRECTABLE = 220: "uncorrectable NVLink error detected during the execution\0",
    JIT_COMPILER_NOT_FOUND = 221: "PTX JIT compiler library not found\0",
    UNSUPPORTED_PTX_VERSION = 222: "the provided PTX was compiled with an unsupported toolchain.\0",
    JIT_COMPILATION_DISABLED = 223: "PTX JIT compilation was disabled\0",
    UNSUPPORTED_EXEC_AFFINITY = 224: "the provided execution affinity is not supported\0",
    UNSUPPORTED_DEVSIDE_SYNC = 225: "the provided PTX contains unsupported call to cudaDeviceSynchronize\0",
    INVALID_SOURCE = 300: "device kernel image is invalid\0",
    FILE_NOT_FOUND = 301: "file not found\0",
    SHARED_OBJECT_SYMBOL_NOT_FOUND = 302: "shared object symbol not found\0",
    SHARED_OBJECT_INIT_FAILED = 303: "shared object initialization failed\0",
    OPERATING_SYSTEM = 304: "OS call failed or operation not supported on this OS\0",
    INVALID_HANDLE = 400: "invalid resource handle\0",
    ILLEGAL_STATE = 401: "the operation cannot be performed in the present state\0",
    NOT_FOUND = 500: "named symbol not found\0",
    NOT_READY = 600: "device not ready\0",
    ILLEGAL_ADDRESS = 700: "an illegal memory access was encountered\0",
    LAUNCH_OUT_OF_RESOURCES = 701: "too many resources requested for launch\0",
    LAUNCH_TIMEOUT = 702: "the launch timed out and was terminated\0",
    LAUNCH_INCOMPATIBLE_TEXTURING = 703: "launch uses incompatible texturing mode\0",
    PEER_ACCESS_ALREADY_ENABLED = 704: "peer access is already enabled\0",
    PEER_ACCESS_NOT_ENABLED = 705: "peer access has not been enabled\0",
    PRIMARY_CONTEXT_ACTIVE = 708: "cannot set while device is active in this process\0",
    CONTEXT_IS_DESTROYED = 709: "context is destroyed\0",
    ASSERT = 710: "device-side assert triggered\0",
    TOO_MANY_PEERS = 711: "peer mapping resources exhausted\0",
    HOST_MEMORY_ALREADY_REGISTERED = 712: "part or all of the requested memory range is already mapped\0",
    HOST_MEMORY_NOT_REGISTERED = 713: "pointer does not correspond to a registered memory region\0",
    HARDWARE_STACK_ERROR = 714: "hardware stack error\0",
    ILLEGAL_INSTRUCTION = 715: "an illegal instruction was encountered\0",
    MISALIGNED_ADDRESS = 716: "misaligned address\0",
    INVALID_ADDRESS_SPACE = 717: "operation not supported on global/shared address space\0",
    INVALID_PC = 718: "invalid program counter\0",
    LAUNCH_FAILED = 719: "unspecified launch failure\0",
    COOPERATIVE_LAUNCH_TOO_LARGE = 720: "too many blocks in cooperative launch\0",
    NOT_PERMITTED = 800: "operation not permitted\0",
    NOT_SUPPORTED = 801: "operation not supported\0",
    SYSTEM_NOT_READY = 802: "system not yet initialized\0",
    SYSTEM_DRIVER_MISMATCH = 803: "system has unsupported display driver / cuda driver combination\0",
    COMPAT_NOT_SUPPORTED_ON_DEVICE = 804: "forward compatibility was attempted on non supported HW\0",
    MPS_CONNECTION_FAILED = 805: "MPS client failed to connect to the MPS control daemon or the MPS server\0",
    MPS_RPC_FAILURE = 806: "the remote procedural call between the MPS server and the MPS client failed\0",
    MPS_SERVER_NOT_READY = 807: "MPS server is not ready to accept new MPS client requests\0",
    MPS_MAX_CLIENTS_REACHED = 808: "the hardware resources required to create MPS client have been exhausted\0",
    MPS_MAX_CONNECTIONS_REACHED = 809: "the hardware resources required to support device connections have been exhausted\0",
    MPS_CLIENT_TERMINATED = 810: "the MPS client has been terminated by the server\0",
    CDP_NOT_SUPPORTED = 811: "is not supported on this device\0",
    CDP_VERSION_MISMATCH = 812: "CUDA Dynamic Parallelism version mismatch\0",
    STREAM_CAPTURE_UNSUPPORTED = 900: "operation not permitted when stream is capturing\0",
    STREAM_CAPTURE_INVALIDATED = 901: "operation failed due to a previous error during capture\0",
    STREAM_CAPTURE_MERGE = 902: "operation would result in a merge of separate capture sequences\0",
    STREAM_CAPTURE_UNMATCHED = 903: "capture was not ended in the same stream as it began\0",
    STREAM_CAPTURE_UNJOINED = 904: "capturing stream has unjoined work\0",
    STREAM_CAPTURE_ISOLATION = 905: "dependency created on uncaptured work in another stream\0",
    STREAM_CAPTURE_IMPLICIT = 906: "operation would make the legacy stream depend on a capturing blocking stream\0",
    CAPTURED_EVENT = 907: "operation not permitted on an event last recorded in a capturing stream\0",
    STREAM_CAPTURE_WRONG_THREAD = 908: "attempt to terminate a thread-local capture sequence from another thread\0",
    TIMEOUT = 909: "wait operation timed out\0",
    GRAPH_EXEC_UPDATE_FAILURE = 910: "the graph update was not performed because it included changes which violated constraints specific to instantiated graph update\0",
    EXTERNAL_DEVICE = 911: "an async error has occured in external entity outside of CUDA\0",
    INVALID_CLUSTER_SIZE = 912: "a kernel launch error has occurred due to cluster misconfiguration\0",
    UNKNOWN = 999: "unknown error\0",
}
