//! The tests of this program on the virtual GPU.

use std::path::{Path, PathBuf};

use crate::embedding::different_ids;
use crate::linear::library;
use crate::select::COPIED;
use crate::traffic::{
    ADAMW_SIZES, ATTENTION, BIAS, EMBEDDING, LONG_ROWS, NORMS, ODD, ODD_EMBEDDING, ODD_ROTARY, PACK, POINTWISE, ROTARY,
    SELECT,
};

/// Runs the ignored tests that `filter` picks, with a cuBLASLt. `what` names the run, `device` what the virtual GPU is.
fn run(what: &str, filter: &[&str], device: &str) -> PathBuf {
    let report = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{what}.jsonl"));
    let cublas = virtual_gpu::library_folder_of("virtual_cublas", &["libcublasLt.so.12"]);
    virtual_gpu::rerun::ignored_tests(filter, device, &report, &[cublas]);
    report
}

#[test]
fn every_test_of_a_gpu_passes_on_a_virtual_a100() {
    run("all", &["gpu_"], "a100-80gb");
}

#[test]
fn a_fault_and_an_old_gpu_are_told() {
    run("fault", &["--exact", "device::a_kernel_that_writes_where_nothing_is_stops_the_device"], "a100-40gb");
    let old = include_str!("../../../tests/virtual-gpu/src/device/rtx-4090.toml")
        .replace("NVIDIA GeForce RTX 4090\"", "Old\"")
        .replace("[8, 9]", "[7, 5]");
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("old.toml");
    std::fs::write(&path, old).unwrap();
    run("old", &["--exact", "device::an_old_device_is_refused_by_name"], path.to_str().unwrap());
}

/// What the virtual GPU counted in one launch.
pub struct Counts(serde_json::Value);

impl Counts {
    /// The launches of one ignored test, in order.
    pub fn of(test: &str) -> Vec<Counts> {
        let report = run(&test.replace("::", "-"), &["--exact", test], "a100-80gb");
        let lines = virtual_gpu::report::read(&report).unwrap();
        lines.into_iter().map(|mut line| Counts(line["launch"].take())).collect()
    }

    /// The launches that are not of packing a weight, in order.
    pub fn of_packed(test: &str) -> Vec<Counts> {
        Counts::of(test).into_iter().filter(|launch| !launch.kernel().starts_with("pack_")).collect()
    }

    pub fn kernel(&self) -> &str {
        self.0["kernel"].as_str().unwrap()
    }

    pub fn count(&self, pointer: &str) -> u64 {
        self.0["counters"].pointer(pointer).unwrap_or_else(|| panic!("{pointer} in {}", self.0)).as_u64().unwrap()
    }

    /// Of all requests to global memory.
    fn global(&self, what: &str) -> usize {
        ["load", "store", "atomic"].iter().map(|kind| self.count(&format!("/global_{kind}/{what}")) as usize).sum()
    }

    /// Bytes between the SMs and global memory, in the sectors that it moves.
    pub fn bytes(&self) -> usize {
        32 * self.global("sectors")
    }

    /// Asserts that requests touch hardly more sectors than the bytes that threads ask for fill.
    pub fn assert_whole_sectors(&self) {
        let (bytes, asked) = (self.bytes(), self.global("bytes"));
        let share = bytes as f64 / asked as f64;
        assert!(share <= 1.1, "{}: sectors of {bytes} bytes for {asked} bytes, {share:.3}", self.kernel());
    }

    pub fn bank_conflicts(&self) -> u64 {
        self.count("/shared_load/conflicts") + self.count("/shared_store/conflicts")
    }
}

/// Asserts that launches bound by memory move at most 1.1 times the least, without bank conflicts.
fn assert_traffic(launches: &[&Counts], least: usize) {
    let moved: usize = launches.iter().map(|launch| launch.bytes()).sum();
    assert_share(launches[0].kernel(), moved, least, 1.1);
    launches.iter().for_each(|launch| assert_eq!(launch.bank_conflicts(), 0, "{}", launch.kernel()));
}

/// Asserts that `moved` bytes are at most `share` of the least.
pub fn assert_share(what: &str, moved: usize, least: usize, share: f64) {
    let ratio = moved as f64 / least as f64;
    assert!((1.0..=share).contains(&ratio), "{what} moves {moved} bytes, {ratio:.3} of the least, {least}");
}

#[test]
fn adamw_and_the_norm_move_little_more_than_their_tensors() {
    let counts = Counts::of("traffic::gpu_adamw_once");
    let [chunks, finish, step] = &counts[..] else { panic!("three launches for all tensors, not {}", counts.len()) };
    let elements: usize = ADAMW_SIZES.iter().sum();
    // Every other tensor has a mask, a bit an element.
    let masks: usize = ADAMW_SIZES.iter().skip(1).step_by(2).map(|n| n / 8).sum();
    assert_traffic(&[chunks, finish], 4 * elements + masks);
    assert_traffic(&[step], 28 * elements + masks);
}

/// Kernels, in order, and what rounding moves.
#[test]
fn the_library_multiplies_what_it_is_asked_to() {
    let (_, cols, rows, _) = library::LAUNCHES;
    for (test, of_frozen) in [
        (
            "linear::library::gpu_library_for_what_trains",
            ["linear_forward_bf16", "linear_backward_input_bf16"].as_slice(),
        ),
        ("linear::library::gpu_library_for_all", &["round_bf16", "product", "product"]),
    ] {
        let counts = Counts::of(test);
        let kernels: Vec<&str> = counts.iter().map(Counts::kernel).collect();
        // W, then the bias; W again.
        let trained = ["round_bf16", "round_bf16", "product", "round_bf16", "product"].as_slice();
        let adapted = [
            "lora_project_32_bf16",
            "linear_any_forward_bf16",
            "lora_project_32_bf16",
            "linear_any_backward_input_bf16",
        ];
        assert_eq!(kernels, [trained, of_frozen, &adapted, &["product"]].concat(), "{test}");
        // Of the trained weight W twice and the bias once; of the frozen ones the bias alone.
        let rounded: Vec<&Counts> = counts.iter().filter(|launch| launch.kernel() == "round_bf16").collect();
        let of_weight: &[bool] = if of_frozen.len() == 2 { &[true, false, true] } else { &[true, false, true, false] };
        assert_eq!(rounded.len(), of_weight.len(), "{test}");
        for (launch, of_weight) in rounded.into_iter().zip(of_weight) {
            assert_traffic(&[launch], 6 * rows * if *of_weight { cols } else { 1 });
        }
    }
}

#[test]
fn norms_move_little_more_than_their_rows() {
    let counts = Counts::of("traffic::gpu_norms_once");
    let [large, small] = [&counts[..6], &counts[6..]];
    for ((rows, cols), counts) in NORMS.into_iter().zip([large, small]) {
        let [forward, backward, sums, rms_forward, rms_backward, rms_sums] = counts else {
            panic!("six launches, not {}", counts.len())
        };
        // LayerNorm reads and writes two parameters, two gradients and two numbers a row, RMSNorm one of each.
        for (of_each, forward, backward) in [(2, forward, [backward, sums]), (1, rms_forward, [rms_backward, rms_sums])]
        {
            assert_traffic(&[forward], 4 * rows * cols + of_each * 4 * (rows + cols));
            // x, dy and what dx is added to are read, dx is written.
            assert_traffic(&backward, 8 * rows * cols + of_each * (4 * rows + 8 * cols) + 4 * cols);
        }
    }
}

#[test]
fn maps_move_little_more_than_their_arrays() {
    let counts = Counts::of("traffic::gpu_maps_once");
    let mut counts = counts.iter();
    let mut expect = |kernel: &str, least| {
        let launch = counts.next().expect("a launch for each");
        assert_eq!(launch.kernel(), kernel);
        // The bias's gradient is added up from parts.
        let rest = kernel.starts_with("bias_gradient").then(|| counts.next().expect("a second launch"));
        assert_traffic(&[Some(launch), rest].into_iter().flatten().collect::<Vec<_>>(), least);
    };
    let n = POINTWISE;
    for (dtype, e) in [("bf16", 2), ("f16", 2), ("f32", 4)] {
        for (kernel, least) in [
            ("relu", 2 * n * e + n / 8),
            ("relu_backward", 2 * n * e + n / 8),
            ("activation", 2 * n * e),
            ("activation_backward", 3 * n * e),
            ("silu_gate", 3 * n * e),
            ("silu_gate_backward", 5 * n * e),
            ("add", 3 * n * e),
            ("bias_gradient", BIAS.0 * BIAS.1 * e + 8 * BIAS.1),
            ("rotary", 2 * ROTARY.rows * ROTARY.heads * ROTARY.head_dim * e + 8 * ROTARY.tokens * ROTARY.pairs),
        ] {
            expect(&format!("{kernel}_{dtype}"), least);
        }
    }
    let (vocab, cols, rows, tokens) = EMBEDDING;
    let different = different_ids(rows, vocab);
    expect("embedding_bf16", 4 * rows * cols + 4 * rows);
    expect("add_positions_bf16_bf16", 4 * rows * cols + 2 * tokens * cols);
    expect("embedding_gradient_bf16", 2 * rows * cols + 8 * different * cols + 4 * rows);
    expect("position_gradient_bf16", 2 * rows * cols + 8 * tokens * cols);
    expect("apply_mask", 8 * n + n / 8);
    assert!(counts.next().is_none());
}

/// A warp's request for neighbouring elements of `e` bytes is e sectors, and one more where it begins within one.
#[test]
fn rows_of_no_whole_vectors_cost_a_sector_a_request() {
    let counts = Counts::of("traffic::gpu_odd_rows_once");
    let mut counts = counts.iter();
    let mut expect = |kernels: &[String], e: usize, least: usize| {
        let launches: Vec<&Counts> = kernels.iter().map(|_| counts.next().expect("a launch for each")).collect();
        assert_eq!(launches.iter().map(|launch| launch.kernel()).collect::<Vec<_>>(), kernels);
        launches.iter().for_each(|launch| assert_eq!(launch.bank_conflicts(), 0, "{}", launch.kernel()));
        let moved = launches.iter().map(|launch| launch.bytes()).sum();
        assert_share(&kernels[0], moved, least, 1.1 * (e + 1) as f64 / e as f64);
    };
    let (rows, cols) = ODD;
    for (dtype, e) in [("bf16", 2), ("f16", 2), ("f32", 4)] {
        for (norm, of_each, sum) in [("layer_norm", 2, "param_gradients"), ("rms_norm", 1, "weight_gradient")] {
            let forward = 2 * rows * cols * e + of_each * 4 * (rows + cols);
            expect(&[format!("{norm}_forward_{dtype}_odd")], e, forward);
            let backward = 4 * rows * cols * e + of_each * (4 * rows + 8 * cols) + 4 * cols;
            expect(&[format!("{norm}_backward_{dtype}_odd"), format!("{norm}_{sum}")], e, backward);
        }
        let of_bias = rows * cols * e + 8 * cols;
        expect(&[format!("bias_gradient_{dtype}_odd"), "bias_gradient_sum".into()], e, of_bias);
        let turned = 2 * ODD_ROTARY.rows * ODD_ROTARY.heads * 2 * ODD_ROTARY.pairs * e;
        expect(&[format!("rotary_{dtype}_odd")], e, turned + 8 * ODD_ROTARY.tokens * ODD_ROTARY.pairs);
    }
    let (vocab, cols, rows, tokens) = ODD_EMBEDDING;
    let different = different_ids(rows, vocab);
    for (kernel, least) in [
        ("embedding_bf16_odd", 4 * rows * cols + 4 * rows),
        ("add_positions_bf16_bf16_odd", 4 * rows * cols + 2 * tokens * cols),
        ("embedding_gradient_bf16_odd", 2 * rows * cols + 8 * different * cols + 4 * rows),
        ("position_gradient_bf16_odd", 2 * rows * cols + 8 * tokens * cols),
    ] {
        expect(&[kernel.into()], 2, least);
    }
    assert!(counts.next().is_none());
}

#[test]
fn attention_reads_a_tile_once_for_each_that_sees_it() {
    let counts = Counts::of("traffic::gpu_attention_once");
    let (tokens, (heads, kv_heads), dims) = ATTENTION;
    // 16 bits on tensor cores, and then f32.
    let (rounded, plain) = counts.split_at(4 * dims.len());
    assert_eq!(plain.len(), 4, "launches of a pass");
    for launch in &counts {
        assert_eq!(launch.bank_conflicts(), 0, "{}", launch.kernel());
    }
    for (dim, counts) in dims.into_iter().zip(rounded.chunks_exact(4)) {
        // Bytes of a token of one head, in 16 bits and of one statistic.
        let (row, statistic) = (dim * 2, 4);
        let queries = heads * tokens;
        // The first tile of 128 queries sees 128 keys, the second all 256; and so the other way round.
        let seen = 128 + 256;
        let of_forward = queries * (2 * row + statistic) + heads * seen * 2 * row;
        let of_delta = queries * (2 * row + statistic);
        let of_keys = kv_heads * tokens * 4 * row + heads * seen * (2 * row + 2 * statistic);
        let of_queries = queries * (3 * row + 2 * statistic) + heads * seen * 2 * row;
        for (launch, bytes) in counts.iter().zip([of_forward, of_delta, of_keys, of_queries]) {
            assert_eq!(launch.bytes(), bytes, "{}", launch.kernel());
        }
        // A warp has 32 queries and skips tiles of keys that none of them sees; each is multiplied with K and with V.
        let keys = if dim > 64 { 32 } else { 64 };
        let tiles: usize = (0..tokens).step_by(32).map(|first| (first + 32).div_ceil(keys)).sum();
        assert_eq!(counts[0].count("/tensor_fma") as usize, heads * tiles * 2 * 32 * keys * dim);
    }
}

#[test]
fn selection_reads_a_matrix_once_a_round_and_once_for_its_mask() {
    let counts = Counts::of("traffic::gpu_select_once");
    let entries = SELECT.0 * SELECT.1;
    let mask = entries / 8;
    let named = |name: &str, width: &str| -> Vec<usize> {
        let name = format!("{name}{width}");
        counts.iter().filter(|launch| launch.kernel() == name).map(Counts::bytes).collect()
    };
    for (width, size, rounds) in [("16", 2, 2), ("32", 4, 3)] {
        let of_mask = size * entries + mask;
        let histograms = named("select_histogram_", width);
        assert_eq!(histograms.len(), rounds, "a launch a round");
        assert_share("histograms", histograms.iter().sum(), rounds * size * entries, 1.1);
        // The last round's counts lead to one chunk of 16,384 entries.
        let [cut] = named("select_cut_", width)[..] else { panic!("one cut") };
        assert!(cut < 2 * size * 16_384, "cut");
        // Two masks: the matrix's and the rows'; then that of long rows.
        let [marks @ .., of_long] = &named("select_mark_", width)[..] else { panic!("three masks") };
        assert_eq!(marks.len(), 2, "masks");
        assert_share("masks", marks.iter().sum(), 2 * of_mask, 1.1);
        // A row is read once where a block copies it, and else in each round; its ties are part of a reading more.
        let [rows, long_rows] = named("select_rows_", width)[..] else { panic!("two matrices of rows") };
        assert_share("rows", rows, size * entries + 32 * SELECT.0, 1.02);
        let of_long_rows = LONG_ROWS * 2 * COPIED;
        assert_share("long rows", long_rows, rounds * of_long_rows, 1.1 + 1.0 / rounds as f64);
        assert_share("masks of long rows", *of_long, of_long_rows + of_long_rows / size / 8, 1.1);
        let groups: &[&str] = match width {
            "16" => &["select_n_of_4_", "select_n_of_8_", "select_n_of_any_"],
            _ => &["select_n_of_4_", "select_n_of_any_", "select_n_of_any_"],
        };
        for name in groups {
            let launches = named(name, width);
            assert_eq!(launches.len(), groups.iter().filter(|group| *group == name).count(), "{name}");
            launches.into_iter().for_each(|bytes| assert_share(name, bytes, of_mask, 1.0));
        }
    }
    // 15 bits in two digits, 31 in three.
    let digits = named("select_digit", "");
    assert_eq!(digits.len(), 5);
    for (bytes, bits) in digits.into_iter().zip([11, 4, 11, 11, 9]) {
        // Bins are read and cleared. Each of 32 warps reads how many are to go, and one its bins again, at least 32 of them.
        let bins = 8usize << bits;
        let of_block = 32 * 32 + (bins / 32).max(32 * 8);
        assert_share("a digit", bytes, 2 * bins, (2 * bins + of_block + 8 * 32) as f64 / (2 * bins) as f64);
    }
    let counted = named("select_count", "");
    assert_eq!(counted.len(), 2);
    assert_share("counts", counted.iter().sum(), 2 * mask, 1.01);
    for launch in counts {
        assert_eq!(launch.bank_conflicts(), 0, "{}", launch.kernel());
    }
}

#[test]
fn packing_reads_mask_and_entries_once_and_writes_what_is_kept() {
    let counts = Counts::of("traffic::gpu_pack_once");
    let entries = PACK.0 * PACK.1;
    let (mask, tiles) = (entries / 8, entries / 1024);
    let [blocks @ .., two_four] = &counts[..] else { panic!("seven launches") };
    assert_eq!(blocks.len(), 6);
    for (launches, (kernel, size)) in blocks.chunks(3).zip([("pack_values_16", 2), ("pack_values_32", 4)]) {
        let [masks, starts, values] = launches else { panic!("three launches a matrix") };
        assert_eq!([masks.kernel(), starts.kernel(), values.kernel()], ["pack_masks", "pack_starts", kernel]);
        assert_traffic(&[masks], 2 * mask + 4 * tiles);
        assert_traffic(&[starts], 8 * tiles + 8);
        // About half is kept. A vector is read where any of its 8 or 4 entries is, which at half density is nearly all.
        let kept = entries / 2;
        assert_share(kernel, values.bytes(), size * (entries + kept) + mask + 4 * tiles, 1.1);
    }
    // Half of the values and a bit an entry.
    assert_traffic(&[two_four], 2 * entries + mask + 9 * entries / 8);
}
