//! The device itself: memory, copies, accounts, errors.

use kernels::device::{CudaError, Source};
use kernels::ops::rotary::Direction;
use kernels::{Backend, Buffer, Category, DType, Device, Error};

use crate::support::gpu;
use crate::{
    activation, adamw, add, attention, bias_gradient, embedding, head_loss, layer_norm, linear, rms_norm, rotary,
    select,
};

/// More than two pinned pieces of 4 MiB, and lengths around their edges.
#[test]
#[ignore = "needs a GPU"]
fn gpu_what_is_uploaded_comes_back() {
    let device = gpu();
    for len in [0, 1, 4 << 20, (4 << 20) + 1, (10 << 20) + 3] {
        let bytes: Vec<u8> = (0..len).map(|i| (i * 31 / 128) as u8).collect();
        let buffer = device.upload(Category::Weights, &bytes).unwrap();
        let copy = buffer.duplicate(Category::Activations).unwrap();
        drop(buffer);
        assert!(copy.download::<u8>().unwrap() == bytes);
    }
    let zeros = device.zeros(Category::Gradients, DType::F32, 1000).unwrap();
    assert_eq!(zeros.download::<f32>().unwrap(), [0.0; 1000]);
}

/// Uploads that share pinned pieces, until these have been full several times; read only when all are on their way.
#[test]
#[ignore = "needs a GPU"]
fn gpu_many_small_uploads_arrive_each_in_its_place() {
    let device = gpu();
    let bytes = |i: usize| (0..300_000 + i).map(move |at| (at / 97 + 13 * i) as u8).collect::<Vec<_>>();
    let buffers: Vec<_> = (0..50).map(|i| device.upload(Category::Workspace, &bytes(i)).unwrap()).collect();
    buffers.iter().enumerate().for_each(|(i, buffer)| assert!(buffer.download::<u8>().unwrap() == bytes(i), "{i}"));
}

/// An operation's name, and its kernels once.
type Pass = (&'static str, fn(&Device));

/// What Meta plans is what the GPU does: the same buffers, the tables and partial sums of kernels included.
#[test]
#[ignore = "needs a GPU"]
fn gpu_memory_peaks_where_meta_says() {
    const TYPE: DType = DType::BF16;
    let passes: &[Pass] = &[
        ("norm and step", |device| drop(adamw::steps(device, &[5000, 17], 2))),
        ("mask", |device| drop(adamw::masked(device, 100))),
        ("layer_norm", |device| drop(layer_norm::pass(device, TYPE, 40, 64))),
        ("rms_norm", |device| drop(rms_norm::pass(device, TYPE, 40, 64))),
        ("linear", |device| {
            let case = linear::Case::new(TYPE, linear::Kind::Packed(TYPE, 50), (9, 24, 16, 2));
            linear::products::pass(device, TYPE, &case);
            linear::gradients::pass(device, TYPE, &case, |len| vec![0.0; len]);
        }),
        ("2:4 and an epilogue", |device| {
            let layer = linear::epilogues::Layer::new(device, TYPE, linear::Kind::TwoFour(TYPE), (9, 24, 16, 2));
            for kind in activation::KINDS {
                layer.forward(Some(kind), true, true);
            }
        }),
        ("activation", |device| drop(activation::pass(device, TYPE, 100))),
        ("add", |device| drop(add::pass(device, TYPE, 100))),
        ("bias_gradient", |device| drop(bias_gradient::pass(device, TYPE, 70, 24))),
        ("embedding", |device| embedding::pass(device, (9, 24), 20, 10)),
        ("select", |device| drop(select::pass(device, TYPE, 40, 1008))),
        ("attention", |device| {
            attention::pass(device, TYPE, &attention::attention(1, 70, (2, 1), 64));
        }),
        ("rotary", |device| {
            let shape = rotary::Shape { rows: 6, tokens: 3, heads: 2, head_dim: 16, pairs: 8 };
            rotary::pass(device, TYPE, shape, Direction::Forward);
        }),
        ("head_loss", |device| {
            let case = head_loss::Case::new(TYPE, linear::Kind::Dense(TYPE), (200, 2056, 24, 3));
            head_loss::pass(device, &case, None);
        }),
    ];
    let (meta, device) = (Device::meta(Backend::Cuda, 2), Device::cuda(0).unwrap());
    for (what, pass) in passes {
        let [planned, taken] = [&meta, &device].map(|device| {
            device.memory().reset_peak();
            pass(device);
            assert_eq!(device.memory().in_use(), 0, "{what}");
            device.memory().peak()
        });
        assert_eq!(planned, taken, "{what}");
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_more_memory_than_there_is_is_refused_and_not_accounted() {
    let device = Device::cuda(0).unwrap();
    let total = device.gpu().unwrap().total_memory();
    let _some = device.alloc(Category::Weights, DType::U8, 1000).unwrap();
    let error = device.alloc(Category::Activations, DType::U8, total).unwrap_err();
    let Error::OutOfMemory { requested, category, in_use, limit } = error else { panic!("{error}") };
    assert_eq!((requested, category, in_use, limit), (total as u64, "activations", 1000, total as u64));
    assert_eq!(device.memory().in_use(), 1000);
    device.alloc(Category::Activations, DType::U8, 1000).unwrap();
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_times_are_taken_while_a_profile_is() {
    let device = Device::cuda(0).unwrap();
    device.start_profile();
    layer_norm::pass(&device, DType::BF16, 64, 256);
    let rows = device.take_profile();
    let names: Vec<_> = rows.iter().map(|row| (row.kernel, row.calls)).collect();
    assert_eq!(names, [("layer_norm_forward", 1), ("layer_norm_backward", 1)]);
    assert!(rows.iter().all(|row| row.seconds > 0.0 && row.seconds < 10.0), "{rows:?}");
}

/// Stores a number through its first parameter.
static STORE: Source = Source {
    name: "store",
    ptx: "\
.version 8.2
.target sm_80
.address_size 64
.visible .entry store(
	.param .u64 store_param_0,
	.param .u32 store_param_1
)
{
	.reg .b32 %r<2>;
	.reg .b64 %rd<3>;
	ld.param.u64 %rd1, [store_param_0];
	ld.param.u32 %r1, [store_param_1];
	cvta.to.global.u64 %rd2, %rd1;
	st.global.u32 [%rd2], %r1;
	ret;
}
",
};

#[test]
#[ignore = "needs a GPU"]
fn gpu_launches_whose_arguments_do_not_fit_are_refused() {
    let device = gpu();
    let gpu = device.gpu().unwrap();
    let mut there = device.zeros(Category::Workspace, DType::U32, 1).unwrap();
    let on_host = Device::cpu().zeros(Category::Workspace, DType::U32, 1).unwrap();
    let store = || gpu.launch(&STORE, "store").unwrap();
    // SAFETY: none of these launches is made.
    let refused = |launch: kernels::device::Launch<'_>| match unsafe { launch.run() } {
        Err(CudaError::Launch { kernel, reason }) => format!("{kernel}: {reason}"),
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(store().write(&mut there)), "store: arguments of [8] bytes given, [8, 4] declared");
    assert_eq!(
        refused(store().write(&mut there).value(1u64)),
        "store: arguments of [8, 8] bytes given, [8, 4] declared"
    );
    let elsewhere = refused(store().read(&on_host).value(1u32));
    assert!(elsewhere.starts_with("store: Buffer(1 u32 on cpu, workspace) is not on "), "{elsewhere}");
    let threads = refused(store().write(&mut there).value(1u32).block([1025, 1, 1]));
    assert_eq!(threads, "store: blocks of 1025 threads, 1 to 1024 are possible");
    let blocks = refused(store().write(&mut there).value(1u32).grid([1, 65_536, 1]));
    assert_eq!(blocks, "store: 65536 blocks along y, 1 to 65535 are possible");
    let shared = refused(store().write(&mut there).value(1u32).shared(1 << 20));
    assert!(shared.starts_with("store: 1048576 bytes of shared memory a block, the GPU has "), "{shared}");
    assert_eq!(gpu.launch(&STORE, "restore").err().unwrap().to_string(), "restore: no such kernel in store");
    // SAFETY: the kernel writes the one number that `there` holds.
    unsafe { store().write(&mut there).value(7u32).run() }.unwrap();
    assert_eq!(there.download::<u32>().unwrap(), [7]);
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_kernels_that_the_driver_cannot_compile_are_told_with_its_log() {
    static BROKEN: Source = Source {
        name: "broken",
        ptx: ".version 8.2\n.target sm_80\n.address_size 64\n.visible .entry broken()\n{\n\tfrobnicate.u32 %r1;\n\tret;\n}\n",
    };
    let error = gpu().gpu().unwrap().launch(&BROKEN, "broken").err().unwrap();
    let CudaError::Load { module: "broken", log } = error else { panic!("{error}") };
    assert!(log.contains("frobnicate"), "{log}");
}

/// On its own, for it leaves the process without a GPU.
#[test]
#[ignore = "ends the process's use of the GPU; `emulated` runs it"]
fn a_kernel_that_writes_where_nothing_is_stops_the_device() {
    let device = Device::cuda(0).unwrap();
    let gpu = device.gpu().unwrap();
    let kept: Buffer = device.zeros(Category::Weights, DType::U32, 4).unwrap();
    // SAFETY: none; that is the test. The store hits an address that no allocation has.
    unsafe { gpu.launch(&STORE, "store").unwrap().value(64u64).value(1u32).run() }.unwrap();
    for error in [device.synchronize().unwrap_err(), kept.download::<u32>().unwrap_err()] {
        assert!(matches!(error, Error::Cuda(CudaError::Lost { .. })), "{error}");
        assert!(error.to_string().contains("last checkpoint"), "{error}");
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_numbers_that_no_gpu_has_are_refused() {
    let error = Device::cuda(99).unwrap_err();
    assert!(matches!(error, Error::Cuda(CudaError::NoGpu { ordinal: 99, .. })), "{error}");
}

/// `emulated` describes such a GPU.
#[test]
#[ignore = "wants a GPU of compute capability 7.5; `emulated` runs it"]
fn an_old_device_is_refused_by_name() {
    let error = Device::cuda(0).unwrap_err().to_string();
    let want =
        "Old has compute capability 7.5, the kernels need 8.0 (A100, RTX 30 and newer): use another GPU or the CPU";
    assert_eq!(error, want);
}
