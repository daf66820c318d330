//! What the stand-in driver refuses, as a driver would; what the build finds in a kernel source.

use cudarc::driver::{PushKernelArg, sys};
use support::{Geometry, Gpu, OVERLAPS, grid};

mod support;

#[test]
fn allocation_inside_a_capture_is_refused() {
    if cuda_on_cpu::skip_on_driver("allocation_inside_a_capture_is_refused") {
        return;
    }
    let gpu = Gpu::with_kernels("collectives");
    gpu.stream
        .begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
        .expect("a capture");
    assert!(gpu.stream.alloc_zeros::<f32>(4).is_err());
    assert!(
        cuda_on_cpu::last_error().contains("inside a capture"),
        "{}",
        cuda_on_cpu::last_error()
    );
    let _ = gpu.stream.end_capture(sys::CUgraphInstantiate_flags(0));
}

/// A stream that is drawn into a capture has to be waited for; what it adds runs when it is.
#[test]
fn a_capture_waits_for_streams_that_it_draws_in() {
    if cuda_on_cpu::skip_on_driver("a_capture_waits_for_streams_that_it_draws_in") {
        return;
    }
    let gpu = Gpu::with_kernels("collectives");
    let side = gpu.stream.context().new_stream().expect("a stream");
    let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    let none = sys::CUgraphInstantiate_flags(0);
    for joined in [true, false] {
        gpu.stream.begin_capture(mode).expect("a capture");
        side.join(&gpu.stream).expect("drawn in");
        let done = side.record_event(None).expect("an event");
        if joined {
            gpu.stream.wait(&done).expect("joined");
        }
        assert_eq!(gpu.stream.end_capture(none).is_ok(), joined);
    }
    assert!(cuda_on_cpu::last_error().contains("drew in"), "{}", cuda_on_cpu::last_error());
}

#[test]
fn fresh_device_memory_is_nan() {
    if cuda_on_cpu::skip_on_driver("fresh_device_memory_is_nan") {
        return;
    }
    let gpu = Gpu::with_kernels("collectives");
    let fresh = gpu.uninitialised::<f32>(100);
    assert!(gpu.download(&fresh).iter().all(|x| x.is_nan()));
}

#[test]
fn launches_beyond_the_limits_are_refused() {
    if cuda_on_cpu::skip_on_driver("launches_beyond_the_limits_are_refused") {
        return;
    }
    let gpu = Gpu::with_kernels("collectives");
    let mut y = gpu.zeros::<f32>(2048);
    let x = gpu.zeros::<f32>(2048);
    let sum = gpu.function("test_block_sum");
    for (geometry, complaint) in [
        (grid(1, 512), "__launch_bounds__ says 256"),
        (grid(1, 2048), "a block of 2048 threads"),
        (grid(0, 256), "a grid of 0"),
        (
            Geometry {
                blocks: [1, 1, 1],
                threads: 256,
                dynamic_shared: 64 << 10,
            },
            "the function's limit is 49152",
        ),
    ] {
        let result = gpu.launch(&sum, geometry, |args| {
            args.arg(&x).arg(&mut y);
        });
        assert!(result.is_err(), "{complaint}");
        assert!(
            cuda_on_cpu::last_error().contains(complaint),
            "{}",
            cuda_on_cpu::last_error()
        );
    }
}

#[test]
fn launch_attributes_are_counted_or_refused() {
    if cuda_on_cpu::skip_on_driver("launch_attributes_are_counted_or_refused") {
        return;
    }
    let gpu = Gpu::with_kernels("grids");
    let (x, y) = (gpu.zeros::<f32>(32), gpu.zeros::<f32>(32));
    let addresses = [gpu.address(&x), gpu.address(&y)];
    let function = gpu.function("test_overlap");
    let launch = |attribute| gpu.launch_with(attribute, &function, grid(1, 32), &addresses);
    let before = cuda_on_cpu::overlapping_launches();
    launch(OVERLAPS).expect("a launch");
    launch((OVERLAPS.0, 0)).expect("a launch that is an ordinary one");
    assert_eq!(cuda_on_cpu::overlapping_launches() - before, 1);
    let cooperative = sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_COOPERATIVE;
    assert!(launch((cooperative, 1)).is_err());
    assert!(
        cuda_on_cpu::last_error().contains("launch attribute 2 is not modelled"),
        "{}",
        cuda_on_cpu::last_error()
    );
}

#[test]
fn a_module_has_the_kernels_of_its_file_alone() {
    if cuda_on_cpu::skip_on_driver("a_module_has_the_kernels_of_its_file_alone") {
        return;
    }
    let gpu = Gpu::with_kernels("collectives");
    assert!(
        gpu.context
            .load_module(cudarc::nvrtc::Ptx::from_binary(
                b"no image at all\0".to_vec()
            ))
            .is_err()
    );
    let other = gpu
        .context
        .load_module(cudarc::nvrtc::Ptx::from_binary(cuda_on_cpu::image(
            "hopper",
        )))
        .expect("a module");
    assert!(other.load_function("test_reverse").is_err());
    assert!(other.load_function("test_matmul_sm90_64").is_ok());
}

#[test]
fn entries_are_found_in_sources() {
    let source = r#"
        // extern "C" __global__ void in_a_comment(int) {}
        extern "C" __global__ void plain(float* x) {}
        extern "C" __global__ void __launch_bounds__(kThreads * (1 + 1), 2)
            bounded(int n) {}"#;
    let found = cuda_on_cpu::entries(source).expect("a good source");
    let found: Vec<_> = found
        .iter()
        .map(|e| (e.name.as_str(), e.launch_bounds.as_str()))
        .collect();
    assert_eq!(found, [("plain", ""), ("bounded", "kThreads * (1 + 1), 2")]);
    assert!(cuda_on_cpu::entries("template <int N> __global__ void k() {}").is_err());
}

/// A kernel with one statement, as a source file of its own.
fn complaint_about(name: &str, statement: &str) -> Option<String> {
    let folder = std::env::temp_dir().join(format!("recant-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a temporary folder");
    let source = folder.join(name).with_extension("cu");
    let text = format!(
        "#include \"common.cuh\"\nextern \"C\" __global__ void k(float* y) {{ {statement} }}\n"
    );
    std::fs::write(&source, text).expect("a temporary file");
    let complaint = cuda_on_cpu::compiler_complaint(&source);
    std::fs::remove_dir_all(&folder).expect("the temporary folder is ours");
    complaint
}

#[test]
fn what_has_no_emulation_does_not_compile() {
    assert_eq!(
        complaint_about("known", "ptx::cp_async_commit(); y[0] = __expf(1.0f);"),
        None
    );
    for (name, statement) in [
        ("wrapper", "ptx::wrapper_of_a_later_chip();"),
        ("intrinsic", "y[0] = float(__activemask());"),
        ("shared", "__shared__ float tile[4]; y[0] = tile[0];"),
    ] {
        assert!(
            complaint_about(name, statement).is_some_and(|text| text.contains("error")),
            "{name}"
        );
    }
}
