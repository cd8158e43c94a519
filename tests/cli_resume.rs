//! Nothing is lost: a run that is killed, interrupted or cut short goes on, and ends in the bits of one that never
//! was. What is damaged is noticed, and what does not belong together is refused by name.

mod cli_support;

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use cli_support::runs::{Place, stderr, uninterrupted};
use cli_support::{Fixture, assert_fails, assert_succeeds, program, text};
use serde_json::{Value, json};

/// How often the test of random moments kills; `PERP_ENGINE_KILLS` is another number.
fn kills() -> usize {
    std::env::var("PERP_ENGINE_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(50)
}

/// Splitmix64: moments that a seed repeats.
struct Moments(u64);

impl Moments {
    /// In [0, 1).
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[test]
fn a_resumed_run_ends_in_the_bits_of_an_uninterrupted_one() {
    assert_resumes(&[
        &["--method", "perp"][..],
        &["--method", "full"],
        &["--method", "perp", "--cycles", "2", "--eval-every", "7", "--validation-windows", "5"],
        &["--method", "full", "--cycles", "2"],
        &["--method", "perp", "--freeze", "output", "--unfreeze"],
        &["--method", "full", "--cycles", "2", "--freeze", "input"],
        &["--method", "perp", "--cycles", "2", "--criterion", "random"],
        // What the first cycle trained is in the weights that the second prunes.
        &["--method", "mask-lora", "--cycles", "2", "--freeze", "output"],
        &["--method", "lora-prune", "--cycles", "2", "--criterion", "random"],
        &["--method", "scale-lora", "--cycles", "2", "--merge", "none"],
        // A dense first cycle: weights that have no mask until the second.
        &["--method", "full", "--sparsity", "0.0", "--cycles", "2"],
    ]);
}

/// Sequences of many lengths, masks that are read off the weights, and adapters that do not start at zero.
#[test]
fn a_resumed_run_of_rows_of_a_pruned_model_or_from_an_adapter_ends_in_the_same_bits() {
    let fixture = Fixture::get();
    let before = Place::new();
    assert_succeeds(&before.command(&["--steps", "5"]).output().unwrap());
    let (rows, pruned, adapter) = (before.path("rows.jsonl"), before.path("pruned"), before.path("out/adapter"));
    let novel = std::fs::read_to_string(fixture.train()).unwrap();
    let lines: Vec<String> =
        novel.lines().filter(|line| line.len() > 20).map(|line| json!({"text": line}).to_string()).collect();
    std::fs::write(&rows, lines.join("\n")).unwrap();
    let model = fixture.model();
    let args = ["prune", "--model", text(&model), "--sparsity", "0.6", "--out", text(&pruned)];
    assert_succeeds(&program(&args).output().unwrap());
    assert_resumes(&[
        &["--packing", "pad", "--train", text(&rows)],
        &["--prune", "none", "--model", text(&pruned)],
        &["--prune", "none", "--model", text(&pruned), "--method", "full"],
        &["--adapter", text(&adapter)],
    ]);
}

/// What goes into a layer depends on what trained, and so do the masks of a calibrated cycle, and SparseGPT's weights.
#[test]
fn a_resumed_run_prunes_by_calibration_as_the_uninterrupted_one_did() {
    let train = Fixture::get().train();
    let calibrated = ["--calibrate", text(&train), "--calibration-samples", "8"];
    let with = |flags: &[&'static str]| -> Vec<&str> { [&calibrated[..], flags].concat() };
    let sets = [
        with(&["--criterion", "wanda", "--method", "perp"]),
        with(&["--criterion", "wanda", "--method", "perp", "--cycles", "2"]),
        with(&["--criterion", "sparsegpt", "--method", "perp", "--cycles", "2", "--allocation", "owl"]),
        with(&["--criterion", "sparsegpt", "--method", "mask-lora", "--cycles", "2"]),
        with(&["--criterion", "wanda", "--method", "full", "--cycles", "2"]),
        with(&["--criterion", "sparsegpt", "--method", "norms", "--cycles", "2", "--freeze", "input"]),
    ];
    assert_resumes(&sets.each_ref().map(Vec::as_slice));
}

/// Runs of each set of flags, resumed from several of their checkpoints, end in the bits of one that nothing disturbs.
fn assert_resumes(sets: &[&[&str]]) {
    for flags in sets.iter().copied() {
        let expected = uninterrupted(flags);
        assert_eq!(expected.1["steps"].as_array().unwrap().len(), if flags.contains(&"--cycles") { 48 } else { 24 });
        let place = Place::new();
        let every = [flags, &["--save-every", "5"]].concat();
        assert_succeeds(&place.run(&[&every[..], &["--keep", "100"]].concat()));
        assert!(place.result() == expected, "{flags:?}: checkpoints change nothing");
        let names: Vec<String> =
            place.files().iter().map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect();
        // Every fifth step of each cycle, its end, and the first one's start.
        let numbers = [0, 5, 10, 15, 20, 24, 29, 34, 39, 44, 48];
        let numbers = if flags.contains(&"--cycles") { &numbers[..] } else { &numbers[..6] };
        let wanted: Vec<String> = numbers.iter().rev().map(|n| format!("step-{n:08}.safetensors")).collect();
        assert_eq!(names, wanted);
        // From the end, from the middle, from the start; and in the last cycle's first checkpoint.
        for number in [48, 34, 24, 10, 0] {
            while place
                .files()
                .first()
                .is_some_and(|file| file > &place.path(&format!("run/step-{number:08}.safetensors")))
            {
                std::fs::remove_file(&place.files()[0]).unwrap();
            }
            place.forget_result();
            assert_succeeds(&place.run(&[&every[..], &["--resume", "--keep", "100"]].concat()));
            assert!(place.result() == expected, "{flags:?} from {number}");
        }
    }
}

/// Without what says where a run was computed and what it read, but not what it is.
fn unplaced((bytes, mut report): (Vec<Vec<u8>>, Value)) -> (Vec<Vec<u8>>, Value) {
    report.as_object_mut().unwrap().remove("model").unwrap();
    for place in ["model", "threads", "recomputed_layers"] {
        report["config"].as_object_mut().unwrap().remove(place).unwrap();
    }
    (bytes, report)
}

#[test]
fn another_number_of_threads_and_recomputed_layers_change_no_bit_of_a_resumed_run() {
    let train = Fixture::get().train();
    let calibrated = ["--criterion", "sparsegpt", "--calibrate", text(&train), "--calibration-samples", "8"];
    for flags in [&["--method", "full", "--cycles", "2"][..], &[&["--cycles", "2"][..], &calibrated].concat()] {
        let place = Place::new();
        let every = [flags, &["--save-every", "10", "--keep", "100"]].concat();
        assert_succeeds(&place.run(&[&every[..], &["--checkpointing", "off"]].concat()));
        let first = place.result();
        assert_eq!((&first.1["config"]["threads"], &first.1["config"]["recomputed_layers"]), (&json!(2), &json!(0)));
        let expected = unplaced(first);
        for (number, threads) in [(34, "1"), (10, "3")] {
            let last = place.checkpoints().join(format!("step-{number:08}.safetensors"));
            place.files().iter().filter(|file| **file > last).for_each(|file| std::fs::remove_file(file).unwrap());
            place.forget_result();
            let elsewhere = ["--resume", "--threads", threads, "--checkpointing", "on"];
            assert_succeeds(&place.run(&[&every[..], &elsewhere].concat()));
            let result = place.result();
            assert_eq!(result.1["config"]["threads"].to_string(), threads);
            assert_eq!(result.1["config"]["recomputed_layers"], 2);
            assert!(unplaced(result) == expected, "{flags:?} from {number} with {threads} threads");
        }
    }
}

#[test]
fn a_run_killed_at_random_moments_ends_in_the_same_bits() {
    let (mut moments, wanted) = (Moments(2024), kills());
    let train = Fixture::get().train();
    let sets = [
        &["--method", "perp", "--cycles", "2"][..],
        &["--method", "full", "--cycles", "2"],
        &[
            "--method",
            "perp",
            "--cycles",
            "2",
            "--criterion",
            "sparsegpt",
            "--calibrate",
            text(&train),
            "--calibration-samples",
            "8",
        ],
    ];
    let expected = sets.map(uninterrupted);
    let seconds = sets.map(|flags| {
        let started = Instant::now();
        assert_succeeds(&Place::new().run(&[flags, &["--save-every", "1"]].concat()));
        started.elapsed()
    });
    let (mut kills, mut rounds, mut in_training) = (0, 0, 0);
    while kills < wanted {
        let (flags, expected, whole) = (sets[rounds % 3], &expected[rounds % 3], seconds[rounds % 3]);
        let place = Place::new();
        loop {
            let flags = [flags, &["--save-every", "1", "--resume"]].concat();
            let mut child = place.kept(&flags).spawn().unwrap();
            // Resumed runs are shorter, so that some finish.
            let mut left = whole.mul_f64(moments.next());
            while kills < wanted && !left.is_zero() && child.try_wait().unwrap().is_none() {
                let nap = left.min(Duration::from_millis(1));
                std::thread::sleep(nap);
                left = left.saturating_sub(nap);
            }
            if kills < wanted && child.try_wait().unwrap().is_none() {
                child.kill().unwrap();
                child.wait().unwrap();
                kills += 1;
                in_training += usize::from(!place.files().is_empty());
                if !place.path("out").exists() {
                    continue;
                }
                // The model comes last: the run was over.
                assert!(assert_succeeds(&place.run(&flags)).starts_with("the run is complete"));
                break;
            }
            assert_succeeds(&child.wait_with_output().unwrap());
            break;
        }
        assert!(place.result() == *expected, "after {kills} kills");
        assert!(place.files().len() == 2, "{:?}", place.files());
        rounds += 1;
    }
    assert!(in_training > 0, "no kill came after the first checkpoint");
}

/// Where the parts of a checkpoint begin: the header's length, its opening, the checksum, the run, a tensor's entry, the data.
fn parts(bytes: &[u8]) -> Vec<usize> {
    let find = |part: &[u8]| bytes.windows(part.len()).position(|window| window == part).unwrap();
    let data = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    vec![0, 9, 40, find(b"\\\"sampler\\\""), find(b"data_offsets"), data, (data + bytes.len()) / 2, bytes.len() - 1]
}

#[test]
fn a_damaged_checkpoint_is_named_and_the_one_before_used() {
    let expected = uninterrupted(&[]);
    let place = Place::new();
    assert_succeeds(&place.run(&["--save-every", "10"]));
    let [newest, before] = [&place.files()[0], &place.files()[1]].map(Clone::clone);
    let (bytes, good) = (std::fs::read(&newest).unwrap(), std::fs::read(&before).unwrap());
    let mut damages: Vec<(String, Vec<u8>)> = parts(&bytes)
        .into_iter()
        .map(|at| {
            let mut altered = bytes.clone();
            altered[at] ^= 1;
            (format!("byte {at}"), altered)
        })
        .collect();
    damages
        .extend([0, 1, 8, 100, bytes.len() / 2, bytes.len() - 1].map(|n| (format!("{n} bytes"), bytes[..n].to_vec())));
    for (what, damaged) in damages {
        std::fs::remove_dir_all(place.checkpoints()).unwrap();
        place.forget_result();
        std::fs::create_dir(place.checkpoints()).unwrap();
        std::fs::write(&before, &good).unwrap();
        std::fs::write(&newest, &damaged).unwrap();
        let output = place.run(&["--save-every", "10", "--resume", "--quiet"]);
        assert_succeeds(&output);
        let warning = stderr(&output);
        assert!(warning.starts_with("warning: ") && warning.contains(text(&newest)), "{what}: {warning}");
        assert!(warning.contains("the one before is used"), "{what}: {warning}");
        assert!(place.result() == expected, "{what}");
        // The damaged one stands aside, a good one in its place.
        assert_eq!(std::fs::read(newest.with_extension("safetensors.damaged")).unwrap(), damaged);
        assert_succeeds(&{
            std::fs::remove_dir_all(place.path("out")).unwrap();
            place.run(&["--resume", "--quiet"])
        });
    }
    // Nothing intact is an error, and nothing is thrown away.
    for file in place.files() {
        std::fs::write(file, "torn").unwrap();
    }
    std::fs::remove_dir_all(place.path("out")).unwrap();
    assert_fails(&place.run(&["--resume"]), 1, &["is torn", "no checkpoint in", "is intact", "name a new folder"]);
    assert_eq!(place.files().len(), 2);
    assert!(!place.path("out").exists());
}

#[test]
fn another_run_is_refused_and_what_differs_is_named() {
    let fixture = Fixture::get();
    let place = Place::new();
    assert_succeeds(&place.run(&["--save-every", "10", "--keep", "4"]));
    let expected = unplaced(place.result());
    place.forget_result();
    let before: Vec<_> = place.files().iter().map(|file| std::fs::read(file).unwrap()).collect();

    // Weights of the same names, shapes and sizes: one bit is another.
    let other = fixture.copy();
    let weights = other.path().join("model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&weights, bytes).unwrap();
    let short = place.path("other.txt");
    std::fs::write(&short, &std::fs::read_to_string(fixture.train()).unwrap()[..50_000]).unwrap();
    for (flags, parts) in [
        (&["--lr", "1e-3"][..], &["lr is 0.001 here and 0.002 there"][..]),
        (&["--steps", "25"], &["steps is 25 here and 24 there"]),
        (&["--method", "full", "--seed", "3"], &["method is full here and perp there", "seed is 3 here and 0 there"]),
        (&["--pattern", "2:4"], &["pattern is 2:4 here and unstructured 0.6 there"]),
        (&["--model", text(other.path())], &["base model is ", " here and "]),
        (&["--train", text(&short)], &["training text is ", " here and "]),
        (&["--eval", text(&short)], &["evaluation text is ", " here and "]),
    ] {
        let output = place.run(&[flags, &["--resume"]].concat());
        assert_fails(&output, 2, &[&["is of another run", "name a new --checkpoints folder"], parts].concat());
    }
    assert_fails(&place.run(&[]), 2, &["holds checkpoints of a run already", "--resume"]);
    let after: Vec<_> = place.files().iter().map(|file| std::fs::read(file).unwrap()).collect();
    assert!(before == after && !place.path("out").exists());

    // Where its files lie, how many threads compute, and how often it saves is not what a run is.
    let copy = fixture.copy();
    let moved = copy.path().join("moved.txt");
    std::fs::copy(fixture.train(), &moved).unwrap();
    std::fs::remove_file(place.checkpoints().join("step-00000024.safetensors")).unwrap();
    std::fs::remove_file(place.checkpoints().join("step-00000020.safetensors")).unwrap();
    let elsewhere = ["--model", text(copy.path()), "--train", text(&moved), "--threads", "1", "--checkpointing", "on"];
    let output = place.run(&[&["--resume", "--save-every", "7", "--keep", "1"][..], &elsewhere].concat());
    assert_succeeds(&output);
    assert!(stderr(&output).contains("goes on after step 10 "), "{}", stderr(&output));
    let (bytes, mut report) = unplaced(place.result());
    report["config"]["train"] = expected.1["config"]["train"].clone();
    assert!((bytes, report) == expected);
    let names: Vec<_> = place.files().iter().map(|file| file.file_name().unwrap().to_owned()).collect();
    assert_eq!(names, ["step-00000024.safetensors"]);
    for (flags, part) in [
        (&["--save-every", "5"][..], "--checkpoints"),
        (&["--keep", "5"], "--checkpoints"),
        (&["--resume"], "--checkpoints"),
    ] {
        assert_fails(&place.command(flags).output().unwrap(), 2, &[part]);
    }
    for flags in [["--save-every", "0"], ["--keep", "0"]] {
        assert_fails(&place.run(&flags), 2, &["at least 1"]);
    }
}

#[test]
fn a_finished_run_is_over_and_says_so() {
    let place = Place::new();
    assert_succeeds(&place.run(&["--save-every", "10"]));
    let all = |place: &Place| -> Vec<(PathBuf, Vec<u8>)> {
        let mut files = vec![place.path("run.json")];
        for folder in [place.path("out"), place.path("out/adapter"), place.checkpoints()] {
            files.extend(std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).filter(|path| path.is_file()));
        }
        files.sort();
        // Who held it last is another.
        files.retain(|path| !path.ends_with("lock"));
        files.into_iter().map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
    };
    let before = all(&place);
    let log = place.path("run.jsonl");
    for flags in [&["--resume"][..], &["--resume", "--log", text(&log), "--save-every", "3"]] {
        let output = place.run(flags);
        let said = assert_succeeds(&output);
        let (model, report) = (place.path("out"), place.path("run.json"));
        let complete = format!("the run is complete: its model is {}, its report {}\n", text(&model), text(&report));
        assert_eq!(said, complete);
        assert!(!stderr(&output).contains("goes on"), "{}", stderr(&output));
        assert!(all(&place) == before && !log.exists(), "nothing is done");
    }
    // Another run's flags are named before that.
    assert_fails(&place.run(&["--resume", "--lr", "1e-3"]), 2, &["is of another run", "lr is 0.001 here"]);
    assert_fails(&place.run(&[]), 1, &["holds a model already"]);

    // What is not the run's is named, and stays.
    let report = std::fs::read(place.path("run.json")).unwrap();
    for (spoil, part) in [(Some(&b"{}"[..]), "is not its report"), (None, "is missing")] {
        match spoil {
            Some(bytes) => std::fs::write(place.path("run.json"), bytes).unwrap(),
            None => std::fs::remove_file(place.path("run.json")).unwrap(),
        }
        assert_fails(&place.run(&["--resume"]), 1, &["--report", "run.json", "the run is complete", part, "it wrote"]);
    }
    std::fs::write(place.path("run.json"), report).unwrap();
    for (file, bytes) in [("config.json", &b"{}"[..]), ("more.txt", b"")] {
        let path = place.path("out").join(file);
        let old = std::fs::read(&path).ok();
        std::fs::write(&path, bytes).unwrap();
        let parts = ["--out ", "the run is complete", "this is not the model that it wrote", "name a new folder"];
        assert_fails(&place.run(&["--resume"]), 1, &parts);
        assert_eq!(std::fs::read(&path).unwrap(), bytes);
        old.map_or_else(|| std::fs::remove_file(&path), |old| std::fs::write(&path, old)).unwrap();
    }
    assert_succeeds(&place.run(&["--resume"]));
    assert!(all(&place) == before);

    // A model that is gone is written again, from the last checkpoint.
    let first = place.result();
    place.forget_result();
    let output = place.run(&["--resume"]);
    assert_succeeds(&output);
    assert!(stderr(&output).contains("goes on after step 24"), "{}", stderr(&output));
    assert!(place.result() == first);

    // Where there are no checkpoints any more, nothing says whose the model is.
    place.files().iter().for_each(|file| std::fs::remove_file(file).unwrap());
    assert_fails(&place.run(&["--resume"]), 1, &["holds a model already"]);
    // And a run that starts there anew does not end in what another ended in.
    std::fs::rename(place.path("out"), place.path("moved")).unwrap();
    assert_succeeds(&place.run(&["--steps", "5"]));
    std::fs::remove_dir_all(place.path("out")).unwrap();
    std::fs::rename(place.path("moved"), place.path("out")).unwrap();
    assert_fails(&place.run(&["--steps", "5", "--resume"]), 1, &["this is not the model that it wrote"]);
}

#[test]
fn a_resume_before_the_first_checkpoint_starts_the_run() {
    let place = Place::new();
    let output = place.run(&["--resume"]);
    assert_succeeds(&output);
    assert!(stderr(&output).contains("no checkpoint in"), "{}", stderr(&output));
    assert!(place.result() == uninterrupted(&[]));
}

#[test]
fn two_runs_on_one_folder_are_one_too_many() {
    let place = Place::new();
    let long = ["--save-every", "1", "--steps", "2000"];
    let mut first = place.start_until(&long, "step-00000001");
    let output = Place::new().command(&["--checkpoints", text(&place.checkpoints()), "--resume"]).output().unwrap();
    assert_fails(&output, 1, &[text(&place.checkpoints()), "another run", &format!("process {}", first.id())]);
    first.kill().unwrap();
    first.wait().unwrap();
    // The lock goes with its process.
    let output = place.run(&["--steps", "1999", "--resume"]);
    assert_fails(&output, 2, &["steps is 1999 here and 2000 there"]);
}

#[test]
fn a_nan_stops_the_run_and_names_the_tensor_and_the_last_good_checkpoint() {
    // Values that grow until they overflow: after one step they are finite still.
    let place = Place::new();
    let output = place.run(&["--lr", "1e30", "--warmup", "0", "--save-every", "1"]);
    let newest = place.checkpoints().join("step-00000001.safetensors");
    let good = format!("the last good checkpoint is {}", newest.display());
    let first = "step 2: the loss is not finite, and the gradient of model.decoder.layers.0.self_attn_layer_norm.weight is the \
                 first that is not; the parameters are as step 1 left them. A smaller learning rate";
    assert_fails(&output, 1, &[first, &good]);
    assert!(!stderr(&output).contains("of the model holds"), "the model has no fault: {}", stderr(&output));
    assert_eq!(place.files()[0], newest);
    // It is good: all its values are finite.
    let bytes = std::fs::read(&newest).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    for (name, view) in tensors.tensors().into_iter().filter(|(_, view)| view.dtype() == safetensors::Dtype::F32) {
        let finite = view.data().as_chunks().0.iter().all(|bytes| f32::from_le_bytes(*bytes).is_finite());
        assert!(finite, "{name}");
    }
    assert!(!place.path("out").exists() && !place.path("run.json").exists());

    // In the second of two layers, in what does not train. Its gradient goes back through the first layer, whose parameters come
    // before; the file says where it is.
    let (place, tensor) = (Place::new(), "model.decoder.layers.1.final_layer_norm.weight");
    let model = Fixture::get().with_nan(&[tensor]);
    let output = place.run(&["--model", text(model.path()), "--method", "biases"]);
    let first = "step 1: the loss is not finite, and the gradient of model.decoder.layers.0.self_attn.q_proj.bias is the first \
                 that is not; the parameters are as step 0 left them";
    let newest = place.checkpoints().join("step-00000000.safetensors");
    let at_fault = format!(
        "; {tensor} of the model holds a value that is not finite; the last good checkpoint is {}",
        newest.display()
    );
    assert_fails(&output, 1, &[first, &at_fault]);
    assert_eq!(place.files(), [newest]);
    assert!(!place.path("out").exists() && !place.path("run.json").exists());
}

#[cfg(unix)]
mod unix {
    use super::*;

    fn signal(child: &Child, name: &str) {
        let sent = Command::new("sh").args(["-c", &format!("kill -{name} {}", child.id())]).status();
        assert!(sent.unwrap().success());
    }

    #[test]
    fn ctrl_c_and_sigterm_end_the_step_and_the_run_goes_on() {
        let flags = ["--steps", "400", "--save-every", "20"];
        let expected = uninterrupted(&["--steps", "400"]);
        for (name, code, said) in [("TERM", 143, "SIGTERM"), ("INT", 130, "Ctrl-C")] {
            let place = Place::new();
            let child = place.start_until(&flags, "step-00000020");
            signal(&child, name);
            let output = child.wait_with_output().unwrap();
            let error = stderr(&output);
            assert_eq!(output.status.code(), Some(code), "{error}");
            let newest = place.files()[0].clone();
            let line = error.lines().last().unwrap();
            assert!(line.starts_with(said) && line.contains("--resume") && line.contains(text(&newest)), "{error}");
            let step: usize = newest.file_stem().unwrap().to_str().unwrap()[5..].parse().unwrap();
            assert!((20..400).contains(&step) && line.contains(&format!("after step {step} of 400")), "{error}");
            assert!(!place.path("out").exists() && !place.path("run.json").exists());
            assert_succeeds(&place.run(&[&flags[..], &["--resume"]].concat()));
            assert!(place.result() == expected, "{name}");
        }
    }

    #[test]
    fn without_checkpoints_a_signal_says_what_would_have_kept_the_run() {
        let place = Place::new();
        let mut child = place.command(&["--steps", "1000000"]).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(|line| line.unwrap());
        assert!(lines.any(|line| line.contains("pruned perplexity")), "the last line before training");
        std::thread::sleep(Duration::from_secs(1));
        signal(&child, "TERM");
        let last = lines.last().unwrap();
        assert!(last.starts_with("SIGTERM ended the run after step ") && last.contains("--checkpoints DIR"), "{last}");
        assert_eq!(child.wait().unwrap().code(), Some(143));
        assert!(!place.path("out").exists());
    }
}
