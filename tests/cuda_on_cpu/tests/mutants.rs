//! The emulator's own test: kernels and launches with one planted bug each, every one of which must be caught.
//!
//! What only a sanitizer sees runs in a process of its own: the tests marked as ignored are those processes, started by
//! the tests below them.

use cuda_on_cpu::{Instrument, Order, orders, rerun, with_order};
use cudarc::driver::PushKernelArg;
use support::{Geometry, Gpu, OVERLAPS, grid, matmul_sm90, numbers};

mod support;

/// Launches a kernel whose one parameter is y, and gives y or the error.
fn run(kernel: &str, geometry: Geometry, y_count: usize) -> Result<Vec<f32>, String> {
    let gpu = Gpu::with_kernels("collectives");
    let mut y = gpu.zeros::<f32>(y_count);
    gpu.launch(&gpu.function(kernel), geometry, |args| {
        args.arg(&mut y);
    })
    .map_err(|_| cuda_on_cpu::last_error())?;
    Ok(gpu.download(&y))
}

/// The same with x before y, both of 64 elements.
fn run_on(kernel: &str, x: &[f32]) -> Result<Vec<f32>, String> {
    let gpu = Gpu::with_kernels("collectives");
    let (x, mut y) = (gpu.upload(x), gpu.zeros::<f32>(x.len()));
    let threads = if kernel.contains("async") { 32 } else { 64 };
    gpu.launch(&gpu.function(kernel), grid(1, threads), |args| {
        args.arg(&x).arg(&mut y);
    })
    .map_err(|_| cuda_on_cpu::last_error())?;
    Ok(gpu.download(&y))
}

/// The same of two blocks of 32, in a launch that may overlap those before it.
fn run_overlapping(kernel: &str) -> Result<Vec<f32>, String> {
    let gpu = Gpu::with_kernels("grids");
    let (x, y) = (gpu.upload(&numbers(64, 1)), gpu.zeros::<f32>(64));
    let addresses = [gpu.address(&x), gpu.address(&y)];
    gpu.launch_with(OVERLAPS, &gpu.function(kernel), grid(2, 32), &addresses)
        .map_err(|_| cuda_on_cpu::last_error())?;
    Ok(gpu.download(&y))
}

fn assert_error(result: Result<Vec<f32>, String>, parts: &[&str]) {
    let error = result.expect_err("the mutant ran to its end");
    for part in parts {
        assert!(error.contains(part), "{part:?} is not in {error:?}");
    }
}

#[test]
fn missing_barrier_gives_a_wrong_result_in_every_order() {
    if cuda_on_cpu::skip_on_driver("missing_barrier_gives_a_wrong_result_in_every_order") {
        return;
    }
    let x = numbers(64, 1);
    let reversed: Vec<f32> = x.iter().rev().copied().collect();
    for &order in orders() {
        assert_ne!(
            with_order(order, || run_on("mutant_missing_barrier", &x)).expect("it ends"),
            reversed,
            "{order:?}"
        );
    }
}

#[test]
fn divergent_barrier_is_an_error_that_names_both_lines() {
    if cuda_on_cpu::skip_on_driver("divergent_barrier_is_an_error_that_names_both_lines") {
        return;
    }
    assert_error(
        run_on("mutant_divergent_barrier", &numbers(64, 1)),
        &["divergent barrier", "collectives.cu:", "others wait at"],
    );
}

#[test]
fn deadlock_lists_who_waits_where() {
    if cuda_on_cpu::skip_on_driver("deadlock_lists_who_waits_where") {
        return;
    }
    assert_error(
        run("mutant_deadlock", grid(1, 32), 32),
        &["deadlock", "16 thread(s) at __syncthreads", "at __syncwarp"],
    );
}

#[test]
fn shuffle_from_a_lane_outside_the_mask_is_an_error() {
    if cuda_on_cpu::skip_on_driver("shuffle_from_a_lane_outside_the_mask_is_an_error") {
        return;
    }
    assert_error(
        run("mutant_shuffle_from_outside", grid(1, 32), 32),
        &["reads lane 0, which takes no part"],
    );
}

#[test]
fn missing_wait_for_an_async_copy_gives_nan() {
    if cuda_on_cpu::skip_on_driver("missing_wait_for_an_async_copy_gives_nan") {
        return;
    }
    let y = run_on("mutant_missing_async_wait", &numbers(128, 1)).expect("it ends");
    assert!(y.iter().all(|v| v.is_nan()), "{y:?}");
}

#[test]
fn uninitialised_shared_memory_gives_nan() {
    if cuda_on_cpu::skip_on_driver("uninitialised_shared_memory_gives_nan") {
        return;
    }
    let y = run("mutant_uninitialised_shared", grid(1, 32), 32).expect("it ends");
    assert!(y.iter().all(|v| v.is_nan()), "{y:?}");
}

#[test]
fn missing_mbarrier_wait_gives_nan() {
    if cuda_on_cpu::skip_on_driver("missing_mbarrier_wait_gives_nan") {
        return;
    }
    let (got, _) = matmul_sm90::run("mutant_missing_load_wait", 64, [64, 64, 64]).expect("it ends");
    assert!(got.iter().all(|v| v.is_nan()));
}

#[test]
fn stage_released_before_its_product_is_done_gives_a_wrong_result() {
    if cuda_on_cpu::skip_on_driver("stage_released_before_its_product_is_done_gives_a_wrong_result")
    {
        return;
    }
    let (got, expected) =
        matmul_sm90::run("mutant_missing_product_wait", 64, [64, 64, 640]).expect("it ends");
    assert_ne!(got, expected);
}

#[test]
fn operand_with_the_wrong_layout_gives_a_wrong_result() {
    if cuda_on_cpu::skip_on_driver("operand_with_the_wrong_layout_gives_a_wrong_result") {
        return;
    }
    for mutant in ["mutant_missing_transpose", "mutant_wrong_block"] {
        let (got, expected) = matmul_sm90::run_of_columns(mutant).expect("it ends");
        assert_ne!(got, expected, "{mutant}");
    }
}

#[test]
fn waiting_for_the_elements_a_box_steps_over_is_a_deadlock() {
    if cuda_on_cpu::skip_on_driver("waiting_for_the_elements_a_box_steps_over_is_a_deadlock") {
        return;
    }
    let error = matmul_sm90::run_box(0, 2, 16 * 64 * 2).expect_err("the mutant ran to its end");
    assert!(error.contains("deadlock") && error.contains("mbarrier wait"), "{error}");
}

#[test]
fn dependence_on_the_order_of_blocks_shows() {
    if cuda_on_cpu::skip_on_driver("dependence_on_the_order_of_blocks_shows") {
        return;
    }
    let results = [Order::Ascending, Order::Descending].map(|order| {
        with_order(order, || run("mutant_order_of_blocks", grid(5, 1), 1)).expect("it ends")
    });
    assert_ne!(results[0], results[1]);
}

#[test]
fn access_before_the_wait_for_earlier_grids_is_an_error() {
    if cuda_on_cpu::skip_on_driver("access_before_the_wait_for_earlier_grids_is_an_error") {
        return;
    }
    for mutant in [
        "mutant_early_load",
        "mutant_early_async_load",
        "mutant_early_atomic",
    ] {
        assert_error(
            run_overlapping(mutant),
            &[mutant, "accesses global memory before griddepcontrol.wait"],
        );
    }
}

#[test]
fn thread_that_ends_without_waiting_for_earlier_grids_is_an_error() {
    if cuda_on_cpu::skip_on_driver("thread_that_ends_without_waiting_for_earlier_grids_is_an_error")
    {
        return;
    }
    assert_error(
        run_overlapping("mutant_early_end"),
        &["mutant_early_end", "thread 5: ends without griddepcontrol.wait"],
    );
}

#[test]
fn dynamic_shared_memory_that_was_not_asked_for_is_an_error() {
    if cuda_on_cpu::skip_on_driver("dynamic_shared_memory_that_was_not_asked_for_is_an_error") {
        return;
    }
    let gpu = Gpu::with_kernels("collectives");
    let (mut y, n) = (gpu.zeros::<f32>(32), 32i32);
    let result = gpu.launch(&gpu.function("test_dynamic_shared"), grid(1, 32), |args| {
        args.arg(&mut y).arg(&n);
    });
    assert!(result.is_err());
    assert!(
        cuda_on_cpu::last_error().contains("launched with 0 bytes"),
        "{}",
        cuda_on_cpu::last_error()
    );
}

// ---- what AddressSanitizer sees

/// y of eight elements and an index one past the end.
fn overrun(kernel: &str, dynamic_shared: u32) {
    let gpu = Gpu::with_kernels("collectives");
    let (mut y, n) = (gpu.zeros::<f32>(8), 8i32);
    let geometry = Geometry {
        blocks: [1, 1, 1],
        threads: 1,
        dynamic_shared,
    };
    gpu.launch(&gpu.function(kernel), geometry, |args| {
        args.arg(&mut y).arg(&n);
    })
    .unwrap_or_else(|_| panic!("{}", cuda_on_cpu::last_error()));
}

#[test]
#[ignore = "a process of address_sanitizer_finds_overruns"]
fn process_global_overrun() {
    overrun("mutant_global_overrun", 0);
}

#[test]
#[ignore = "a process of address_sanitizer_finds_overruns"]
fn process_shared_overrun() {
    overrun("mutant_shared_overrun", 0);
}

#[test]
#[ignore = "a process of address_sanitizer_finds_overruns"]
fn process_too_little_dynamic_shared() {
    overrun("test_dynamic_shared", 7 * 4);
}

#[test]
#[ignore = "a process of address_sanitizer_finds_overruns"]
fn process_enough_dynamic_shared() {
    overrun("test_dynamic_shared", 8 * 4);
}

#[test]
#[ignore = "a process of address_sanitizer_finds_accesses_before_the_wait_for_earlier_grids"]
fn process_early_plain_load() {
    let _ = run_overlapping("mutant_early_plain_load");
}

#[test]
#[ignore = "a process of address_sanitizer_finds_accesses_before_the_wait_for_earlier_grids"]
fn process_overlap() {
    let _ = run_overlapping("test_overlap");
}

#[test]
fn address_sanitizer_finds_accesses_before_the_wait_for_earlier_grids() {
    if cuda_on_cpu::skip_on_driver(
        "address_sanitizer_finds_accesses_before_the_wait_for_earlier_grids",
    ) {
        return;
    }
    let run = rerun(
        Instrument::Addresses,
        &["--exact", "process_early_plain_load", "--ignored"],
    );
    assert!(!run.success, "{}", run.output);
    assert!(run.output.contains("use-after-poison"), "{}", run.output);
    assert!(run.output.contains("grids.cu:"), "{}", run.output);
    let run = rerun(
        Instrument::Addresses,
        &["--exact", "process_overlap", "--ignored"],
    );
    assert!(run.success, "{}", run.output);
}

#[test]
fn address_sanitizer_finds_overruns() {
    if cuda_on_cpu::skip_on_driver("address_sanitizer_finds_overruns") {
        return;
    }
    for process in [
        "process_global_overrun",
        "process_shared_overrun",
        "process_too_little_dynamic_shared",
    ] {
        let run = rerun(Instrument::Addresses, &["--exact", process, "--ignored"]);
        assert!(!run.success, "{process} passed:\n{}", run.output);
        assert!(
            run.output.contains("heap-buffer-overflow"),
            "{process}:\n{}",
            run.output
        );
        assert!(
            run.output.contains("collectives.cu:"),
            "{process} is not traced to the kernel:\n{}",
            run.output
        );
    }
    let run = rerun(
        Instrument::Addresses,
        &["--exact", "process_enough_dynamic_shared", "--ignored"],
    );
    assert!(run.success, "{}", run.output);
}

// ---- what ThreadSanitizer sees

#[test]
#[ignore = "a process of thread_sanitizer_finds_races"]
fn process_missing_barrier() {
    let _ = run_on("mutant_missing_barrier", &numbers(64, 1));
}

#[test]
#[ignore = "a process of thread_sanitizer_finds_races"]
fn process_shared_race() {
    let _ = run("mutant_shared_race", grid(1, 64), 64);
}

#[test]
#[ignore = "a process of thread_sanitizer_finds_races"]
fn process_full_barrier() {
    let _ = run_on("test_reverse", &numbers(64, 1));
}

#[test]
fn thread_sanitizer_finds_races() {
    if cuda_on_cpu::skip_on_driver("thread_sanitizer_finds_races") {
        return;
    }
    for process in ["process_missing_barrier", "process_shared_race"] {
        let run = rerun(Instrument::Races, &["--exact", process, "--ignored"]);
        assert!(!run.success, "{process} passed:\n{}", run.output);
        assert!(
            run.output.contains("data race"),
            "{process}:\n{}",
            run.output
        );
        assert!(
            run.output.contains("collectives.cu:"),
            "{process} is not traced to the kernel:\n{}",
            run.output
        );
    }
    let run = rerun(
        Instrument::Races,
        &["--exact", "process_full_barrier", "--ignored"],
    );
    assert!(run.success, "{}", run.output);
}
