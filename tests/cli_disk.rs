//! Disks that are full, small or read-only, and numbers that are no numbers: the run says what is at fault, and what was good stays.
#![cfg(unix)]

mod cli_support;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use cli_support::runs::{Place, stderr, uninterrupted};
use cli_support::{CACHE, Fixture, assert_fails, assert_succeeds, text};
use serde_json::Value;

/// A command's arguments without a flag and its value.
fn without(command: &Command, flag: &str) -> Command {
    let args: Vec<&str> = command.get_args().map(|arg| arg.to_str().unwrap()).collect();
    let at = args.iter().position(|arg| *arg == flag).unwrap();
    let mut other = Command::new(command.get_program());
    other.args(&args[..at]).args(&args[at + 2..]).env("CUDA_VISIBLE_DEVICES", "").env("XDG_CACHE_HOME", CACHE);
    other
}

/// Runs a command where no file may grow past so many bytes (512 at a time), as on a full disk: the write fails, and the
/// signal that comes with it is ignored.
fn with_file_limit(command: &Command, bytes: usize) -> Output {
    let mut limited = Command::new("sh");
    let script = format!("trap '' XFSZ; ulimit -f {}; exec \"$0\" \"$@\"", bytes / 512);
    limited.arg("-c").arg(script).arg(command.get_program()).args(command.get_args());
    // The tokens are in the cache already: what meets the limit is what the test is about.
    limited.env("CUDA_VISIBLE_DEVICES", "").env("XDG_CACHE_HOME", CACHE).output().unwrap()
}

/// A small disk (a tmpfs) that only a test's own processes see, which takes no rights.
struct SmallDisk {
    /// Where it is mounted.
    at: PathBuf,
    /// Where what is on it is copied when its process is over, and it goes.
    copy: PathBuf,
}

impl SmallDisk {
    /// None, and a word about it, where the system lets no one mount.
    fn new(place: &Place, at: PathBuf) -> Option<SmallDisk> {
        std::fs::create_dir_all(&at).unwrap();
        let disk = SmallDisk { at, copy: place.path("copy") };
        let mounted = disk.script("true").arg("size=64k").arg("true").output();
        if mounted.is_ok_and(|output| output.status.success()) {
            return Some(disk);
        }
        // Not by println!, which a test that passes keeps to itself.
        let said = "SKIPPED: a user may not mount a tmpfs here (unshare --user --map-root-user --mount)\n";
        std::io::stderr().write_all(said.as_bytes()).unwrap();
        None
    }

    /// A shell in which the disk is mounted; its first argument is the mount's options.
    fn script(&self, script: &str) -> Command {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--mount", "sh", "-c"]);
        command.arg(format!("mount -t tmpfs -o \"$0\" tmpfs '{}' && {script}", text(&self.at)));
        command
    }

    /// Runs a command with the disk of these options, and copies what it left there.
    fn run(&self, options: &str, command: &Command) -> Output {
        let script = format!("{{ \"$@\"; code=$?; cp -r '{}' '{}'; exit $code; }}", text(&self.at), text(&self.copy));
        let _ = std::fs::remove_dir_all(&self.copy);
        let mut shell = self.script(&script);
        shell.arg(options).arg(command.get_program()).args(command.get_args());
        shell.env("CUDA_VISIBLE_DEVICES", "").env("XDG_CACHE_HOME", CACHE).output().unwrap()
    }

    /// What was left, sorted.
    fn left(&self) -> Vec<String> {
        let names =
            std::fs::read_dir(&self.copy).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    }
}

/// Sizes of the checkpoints of a run, the first one first: every step makes them larger by its record, 56 bytes.
fn sizes(flags: &[&str]) -> Vec<usize> {
    let place = Place::new();
    assert_succeeds(&place.run(flags));
    let sizes: Vec<usize> = place.files().iter().rev().map(|f| std::fs::metadata(f).unwrap().len() as usize).collect();
    assert!(sizes[24] >= sizes[0] + 24 * 56);
    sizes
}

/// Of a rank that makes a checkpoint larger than the report, which has to fit.
const LARGE: [&str; 6] = ["--save-every", "1", "--keep", "100", "--rank", "64"];

#[test]
fn a_disk_that_fills_up_costs_no_checkpoint_and_not_the_run() {
    let expected = uninterrupted(&["--rank", "64"]);
    let (place, sizes) = (Place::new(), sizes(&LARGE));
    let Some(disk) = SmallDisk::new(&place, place.checkpoints()) else { return };
    // Room for three checkpoints, the lock, and most of a fourth; a tmpfs gives whole pages.
    let pages = |bytes: usize| bytes.div_ceil(4096);
    let most = sizes[..3].iter().map(|size| pages(*size)).sum::<usize>() + 1 + pages(sizes[3]) - 2;
    let output = disk.run(&format!("size={}k", 4 * most), &place.kept(&LARGE));
    assert_succeeds(&output);
    let error = stderr(&output);
    for step in 3..=24 {
        let warning = format!("warning: no checkpoint of step {step}: cannot write");
        assert!(error.contains(&warning), "{error}");
    }
    assert!(error.contains("No space left on device"), "{error}");
    let last = place.checkpoints().join("step-00000002.safetensors");
    assert!(error.contains(&format!("the last good one is {}", last.display())), "{error}");
    let whole = [0, 1, 2].map(|n| format!("step-{n:08}.safetensors"));
    assert_eq!(disk.left(), [&["lock".into(), "result.json".into()][..], &whole].concat());
    // The run went on and ended as ever; and from what there is it can be gone on with.
    assert!(place.result() == expected);
    std::fs::remove_dir(place.checkpoints()).unwrap();
    std::fs::rename(&disk.copy, place.checkpoints()).unwrap();
    place.forget_result();
    let output = place.run(&[&LARGE[..], &["--resume"]].concat());
    assert_succeeds(&output);
    assert!(stderr(&output).contains("goes on after step 2 "), "{}", stderr(&output));
    assert!(place.result() == expected);
}

#[test]
fn a_disk_without_room_is_an_error_before_anything_is_trained() {
    let (place, sizes) = (Place::new(), sizes(&LARGE));
    let Some(disk) = SmallDisk::new(&place, place.checkpoints()) else { return };
    let output = disk.run(&format!("size={}k", sizes[0] / 2048), &place.kept(&LARGE));
    let parts = ["no checkpoint can be kept: cannot write", "No space left on device", "or free space"];
    assert_fails(&output, 1, &parts);
    assert_eq!(disk.left(), ["lock"]);
    assert!(!place.path("out").exists() && !place.path("run.json").exists());
}

#[test]
fn room_for_one_checkpoint_more_than_are_kept_is_enough() {
    let (place, sizes) = (Place::new(), sizes(&LARGE));
    let Some(disk) = SmallDisk::new(&place, place.checkpoints()) else { return };
    let options = format!("size={}k", 4 * (3 * sizes[24].div_ceil(4096) + 2));
    let output = disk.run(&options, &place.kept(&["--save-every", "1", "--keep", "2", "--rank", "64"]));
    assert_succeeds(&output);
    assert!(!stderr(&output).contains("warning"), "{}", stderr(&output));
    let whole = [23, 24].map(|n| format!("step-{n:08}.safetensors"));
    assert_eq!(disk.left(), [&["lock".into(), "result.json".into()][..], &whole].concat());
}

#[test]
fn a_model_that_does_not_fit_leaves_nothing_and_is_written_by_the_run_that_goes_on() {
    let expected = uninterrupted(&[]);
    let place = Place::new();
    let Some(disk) = SmallDisk::new(&place, place.path("disk")) else { return };
    let out = place.path("disk/new/out");
    let weights = std::fs::metadata(Fixture::get().model().join("model.safetensors")).unwrap().len();
    let output = disk.run(&format!("size={}k", weights / 2048), &place.kept(&["--out", text(&out)]));
    assert_fails(&output, 1, &["cannot write", "No space left on device", text(&place.path("disk/new"))]);
    assert!(disk.left().is_empty(), "{:?}", disk.left());
    std::fs::remove_file(place.path("run.json")).unwrap();
    assert_succeeds(&place.run(&["--resume"]));
    assert!(place.result() == expected);
}

#[test]
fn a_limit_of_files_is_an_error_at_the_start_and_later_a_warning() {
    let expected = uninterrupted(&["--rank", "64"]);
    let sizes = sizes(&LARGE);
    let full = Place::new();
    let output = with_file_limit(&full.kept(&LARGE), sizes[0] / 2);
    assert_fails(&output, 1, &["no checkpoint can be kept: cannot write", "File too large", "free space"]);
    assert!(full.files().is_empty() && !full.path("out").exists());

    let full = Place::new();
    // The model is larger than a checkpoint: it is written by the run that goes on.
    let command = without(&full.kept(&LARGE), "--out");
    let output = with_file_limit(&command, (sizes[0] + sizes[24]) / 2 / 512 * 512);
    assert_succeeds(&output);
    let newest = full.files()[0].clone();
    assert!(stderr(&output).contains("warning: no checkpoint of step 24: cannot write"), "{}", stderr(&output));
    assert!(stderr(&output).contains(&format!("the last good one is {}", newest.display())), "{}", stderr(&output));
    // The run itself went on, and from what there is it can be gone on with.
    let report =
        |place: &Place| -> Value { serde_json::from_slice(&std::fs::read(place.path("run.json")).unwrap()).unwrap() };
    assert_eq!(report(&full)["perplexity"], expected.1["perplexity"]);
    assert!((1..25).contains(&full.files().len()));
    assert!(std::fs::read_dir(full.checkpoints()).unwrap().all(|e| !text(&e.unwrap().path()).contains("partial")));
    std::fs::remove_file(full.path("run.json")).unwrap();
    assert_succeeds(&full.run(&[&LARGE[..], &["--resume"]].concat()));
    assert!(full.result() == expected);
}

#[test]
fn a_folder_that_cannot_be_written_is_named_before_anything_is_trained() {
    use std::os::unix::fs::PermissionsExt;
    let place = Place::new();
    std::fs::create_dir(place.checkpoints()).unwrap();
    std::fs::set_permissions(place.checkpoints(), std::fs::Permissions::from_mode(0o555)).unwrap();
    // Permissions do not bind root; no one makes files under /proc.
    let bound = std::fs::write(place.checkpoints().join("probe"), "").is_err();
    let folder = if bound { place.checkpoints() } else { PathBuf::from("/proc/self") };
    let output = place.command(&["--checkpoints", text(&folder)]).output().unwrap();
    assert_fails(&output, 1, &["cannot create", text(&folder)]);
    std::fs::set_permissions(place.checkpoints(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let file = place.path("file");
    std::fs::write(&file, "").unwrap();
    let output = place.command(&["--checkpoints", text(&file)]).output().unwrap();
    assert_fails(&output, 1, &[text(&file), "is not a folder"]);
    assert!(!place.path("out").exists() && Path::new(&file).is_file());
}

#[test]
fn a_read_only_disk_is_named_before_anything_is_trained() {
    let place = Place::new();
    let Some(disk) = SmallDisk::new(&place, place.path("disk")) else { return };
    let at = |name: &str| text(&place.path("disk").join(name)).to_string();
    for (flag, name) in [("--checkpoints", ""), ("--checkpoints", "run"), ("--out", "out"), ("--report", "run.json")] {
        let value = at(name);
        let flags = if flag == "--checkpoints" { vec![flag, &value] } else { vec![flag, &value, "--steps", "1000000"] };
        let output = disk.run("ro", &place.command(&flags));
        assert_fails(&output, 1, &["cannot create", value.trim_end_matches('/'), "Read-only file system"]);
        assert!(disk.left().is_empty() && !place.path("out").exists() && !place.path("run.json").exists());
    }
}

#[test]
fn a_nan_names_the_step_the_first_tensor_and_the_last_good_checkpoint() {
    // In what trains: there is no good checkpoint, and it is not the disk's fault. Of two tensors the one that comes first in a
    // forward pass is named, which has the later name.
    let (place, tensor) = (Place::new(), "model.decoder.layers.1.fc1.bias");
    let model = Fixture::get().with_nan(&[tensor, "model.decoder.final_layer_norm.bias"]);
    let output = without(&place.kept(&["--model", text(model.path())]), "--eval").output().unwrap();
    let first = format!("step 0: {tensor} holds a value that is not finite, the first tensor that does");
    assert_fails(&output, 1, &[&first]);
    assert!(!stderr(&output).contains("free space") && place.files().is_empty());

    // In what is frozen: the loss is the first to show it.
    let (place, tensor) = (Place::new(), "model.decoder.embed_positions.weight");
    let model = Fixture::get().with_nan(&[tensor]);
    let output = without(&place.kept(&["--model", text(model.path())]), "--eval").output().unwrap();
    let good = place.checkpoints().join("step-00000000.safetensors");
    let parts = [
        "step 1: the loss is not finite",
        "is the first that is not",
        &format!("{tensor} of the model holds a value that is not finite"),
        &format!("the last good checkpoint is {}", good.display()),
    ];
    assert_fails(&output, 1, &parts);
    assert_eq!(place.files(), [good]);
    assert!(!place.path("out").exists() && !place.path("run.json").exists());
}
