//! Programs that look at what the environment describes.

use cudarc::driver::{CudaContext, sys};

#[test]
#[ignore = "needs a virtual GPU"]
fn two_of_them() {
    assert_eq!(CudaContext::device_count().unwrap(), 2);
    let (first, second) = (CudaContext::new(0).unwrap(), CudaContext::new(1).unwrap());
    assert_eq!(first.name().unwrap(), "NVIDIA GeForce RTX 4090");
    assert_eq!(first.compute_capability().unwrap(), (8, 9));
    assert_eq!(second.name().unwrap(), "NVIDIA H100 80GB HBM3");
    assert_eq!(second.compute_capability().unwrap(), (9, 0));
    let sms = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
    assert_eq!((first.attribute(sms).unwrap(), second.attribute(sms).unwrap()), (128, 132));
    assert_ne!(first.uuid().unwrap().bytes, second.uuid().unwrap().bytes);
    // An address tells its device, and data moves between the two.
    let (from, to) = (first.new_stream().unwrap(), second.new_stream().unwrap());
    let x = from.clone_htod(&[1u32, 2, 3]).unwrap();
    let mut y = to.alloc_zeros::<u32>(3).unwrap();
    to.memcpy_dtod(&x, &mut y).unwrap();
    assert_eq!(to.clone_dtoh(&y).unwrap(), [1, 2, 3]);
}

#[test]
#[ignore = "needs a virtual GPU"]
fn none() {
    assert_eq!(CudaContext::new(0).unwrap_err().0, sys::CUresult::CUDA_ERROR_NO_DEVICE);
}
