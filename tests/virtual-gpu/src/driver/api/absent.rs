//! What CUDA has and this driver has not. A program that calls it is told so, by name, where a missing symbol would end it
//! before it began.

use crate::driver::exports::{Export, guard, unsupported};
use crate::driver::status::Status;

/// Functions that answer `NOT_SUPPORTED`. They take no notice of their arguments, which in C are the caller's to clear away.
macro_rules! absent {
    ($($what:literal: $($name:ident)*;)*) => {
        $($(
            #[unsafe(no_mangle)]
            pub extern "C" fn $name() -> Status {
                guard(stringify!($name), || Err(unsupported(stringify!($name), $what)))
            }
        )*)*
        /// The functions of this file.
        pub const EXPORTS: &[Export] = &[$($((stringify!($name), $name as *const ()),)*)*];
    };
}

absent! {
    "an array":
        cuArrayCreate_v2 cuArray3DCreate_v2 cuArrayDestroy cuArrayGetDescriptor_v2 cuArray3DGetDescriptor_v2
        cuArrayGetMemoryRequirements cuArrayGetPlane cuArrayGetSparseProperties cuMemcpyAtoA_v2 cuMemcpyAtoD_v2
        cuMemcpyDtoA_v2 cuMemcpyAtoHAsync_v2 cuMemcpyHtoAAsync_v2 cuMemMapArrayAsync cuMipmappedArrayCreate
        cuMipmappedArrayDestroy cuMipmappedArrayGetLevel cuMipmappedArrayGetMemoryRequirements
        cuMipmappedArrayGetSparseProperties;
    "a texture":
        cuTexObjectCreate cuTexObjectDestroy cuTexObjectGetResourceDesc cuTexObjectGetResourceViewDesc
        cuTexObjectGetTextureDesc cuModuleGetTexRef cuTexRefCreate cuTexRefDestroy cuTexRefSetAddress_v2
        cuTexRefSetAddress2D_v3 cuTexRefSetAddressMode cuTexRefSetArray cuTexRefSetFilterMode cuTexRefSetFlags
        cuTexRefSetFormat cuTexRefSetMipmappedArray cuDeviceGetTexture1DLinearMaxWidth;
    "a surface":
        cuSurfObjectCreate cuSurfObjectDestroy cuSurfObjectGetResourceDesc cuModuleGetSurfRef cuSurfRefSetArray
        cuSurfRefGetArray;
    "memory shared between processes":
        cuIpcOpenMemHandle cuIpcOpenMemHandle_v2 cuIpcCloseMemHandle cuIpcGetEventHandle cuIpcOpenEventHandle
        cuMemPoolExportPointer cuMemPoolImportPointer;
    "virtual memory management":
        cuMemAddressFree cuMemMap cuMemUnmap cuMemSetAccess cuMemRelease cuMemRetainAllocationHandle
        cuMemGetAllocationPropertiesFromHandle cuMemExportToShareableHandle cuMemImportFromShareableHandle
        cuMemGetHandleForAddressRange cuMulticastCreate cuMulticastAddDevice cuMulticastBindMem cuMulticastBindAddr
        cuMulticastUnbind cuMulticastGetGranularity;
    "an external semaphore":
        cuImportExternalSemaphore cuDestroyExternalSemaphore cuSignalExternalSemaphoresAsync
        cuWaitExternalSemaphoresAsync cuExternalMemoryGetMappedMipmappedArray;
    "sharing with graphics":
        cuGraphicsMapResources cuGraphicsUnmapResources cuGraphicsUnregisterResource
        cuGraphicsResourceSetMapFlags_v2 cuGraphicsResourceGetMappedPointer_v2
        cuGraphicsResourceGetMappedMipmappedArray cuGraphicsSubResourceGetMappedArray;
    "a memory operation of a stream":
        cuStreamBatchMemOp_v2 cuGraphAddBatchMemOpNode;
    "a memory node that is added by hand":
        cuGraphAddMemAllocNode cuGraphAddMemFreeNode cuGraphMemAllocNodeGetParams cuGraphMemFreeNodeGetParams;
    "an object that graphs keep alive":
        cuUserObjectRetain cuUserObjectRelease cuGraphRetainUserObject cuGraphReleaseUserObject;
    "a tensor map":
        cuTensorMapEncodeTiled cuTensorMapEncodeIm2col cuTensorMapReplaceAddress;
}
