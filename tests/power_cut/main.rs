//! The power goes at any moment: what a run said is written is there, what is there is whole, and the run that goes on ends in the
//! same bits.
//!
//! A small run (`run`) writes its checkpoints, report and model on a disk that records what it is asked (`recorder`). Of what was
//! asked up to a moment, `file_system` makes the states that a cut may leave; each is made in a folder of its own and gone on with.

mod file_system;
mod recorder;
mod run;
#[path = "../small_models/mod.rs"]
mod small_models;

use std::cell::Cell;
use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;

use engine::checkpoint::replace_file_on;
use file_system::{FileSystem, Op, Random, Tree, make};
use recorder::{Entry, Recorder, Said};
use run::{Results, model_of, report_of, results};

/// States of a cut beyond which they are drawn at random; `PERP_ENGINE_POWER_CUT_STATES` is another number for a longer run.
fn most() -> usize {
    std::env::var("PERP_ENGINE_POWER_CUT_STATES").ok().and_then(|text| text.parse().ok()).unwrap_or(24)
}

/// What a run said up to some moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Promised {
    checkpoint: Option<u64>,
    report: bool,
    model: bool,
}

impl Promised {
    fn hear(&mut self, said: &Said) {
        match said {
            Said::Checkpoint(number) | Said::GoesOn(number) => self.checkpoint = Some(*number),
            Said::Report => self.report = true,
            Said::Model => self.model = true,
            Said::Over => {}
        }
    }
}

/// A run that was recorded.
struct Recording {
    before: FileSystem,
    promised: Promised,
    log: Vec<Entry>,
}

/// Records a run on what an earlier one left, as it was when that one was killed.
fn record(before: FileSystem, promised: Promised) -> (Recording, Results) {
    let folder = tempfile::tempdir().unwrap();
    make(&before.seen(), folder.path());
    let disk = Arc::new(Recorder::new(folder.path()));
    run::run(disk.clone(), folder.path(), &|said| disk.say(said)).unwrap();
    let log = disk.log();
    let recording = Recording { before, promised, log };
    // The recording is of all that happened.
    let mut after = recording.before.clone();
    recording.ops().for_each(|op| after.apply(op));
    for (path, bytes) in after.seen() {
        let found = folder.path().join(&path);
        assert_eq!(bytes, found.is_file().then(|| std::fs::read(&found).unwrap()), "{}", path.display());
    }
    (recording, results(folder.path()))
}

impl Recording {
    fn ops(&self) -> impl Iterator<Item = &Op> {
        self.log.iter().filter_map(|entry| if let Entry::Op(op) = entry { Some(op) } else { None })
    }

    /// Each moment from entry `first` on: what is on the disk, and what was promised. Entry `forgotten` does not happen.
    fn moments(&self, first: usize, forgotten: Option<usize>) -> impl Iterator<Item = (usize, FileSystem, Promised)> {
        let (mut disk, mut promised) = (self.before.clone(), self.promised);
        (0..=self.log.len()).filter_map(move |at| {
            let moment = (at >= first).then(|| (at, disk.clone(), promised));
            match self.log.get(at) {
                Some(Entry::Op(op)) if forgotten != Some(at) => disk.apply(op),
                Some(Entry::Said(said)) => promised.hear(said),
                _ => {}
            }
            moment
        })
    }
}

/// Goes on with what a cut left, and says what is wrong.
fn go_on(state: &Tree, promised: Promised, expected: &Results) -> Result<(), String> {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    make(state, root);
    let whole = |found: &Tree| found.iter().all(|(path, bytes)| expected.files.get(path) == Some(bytes));
    let report = report_of(root);
    if promised.report && report.is_empty() || !whole(&report) {
        return Err(format!("the report is {}", if report.is_empty() { "lost" } else { "torn" }));
    }
    let model = model_of(root);
    let files = |tree: &Tree| tree.keys().filter(|path| path.starts_with("models")).count();
    if promised.model && model.is_empty()
        || !model.is_empty() && files(&model) != files(&expected.files)
        || !whole(&model)
    {
        return Err(format!("the model is {}", if model.is_empty() { "lost" } else { "torn" }));
    }
    // Without a checkpoint it starts, and says nothing of going on.
    let (from, over) = (Cell::new(None), Cell::new(false));
    // A disk that syncs nothing: no power is lost from here on.
    run::run(Arc::new(Recorder::new(root)), root, &|said| match said {
        Said::GoesOn(number) => from.set(Some(number)),
        Said::Over => over.set(true),
        _ => {}
    })?;
    // The model comes last: where it is, the run was over.
    if over.get() == model.is_empty() {
        return Err(format!(
            "a model was {}there, and the run over: {}",
            if model.is_empty() { "not " } else { "" },
            over.get()
        ));
    }
    if !over.get() && from.get() < promised.checkpoint {
        return Err(format!("it went on from {:?}, and {:?} was there", from.get(), promised.checkpoint));
    }
    if results(root) != *expected {
        return Err("it ended in other bits".into());
    }
    Ok(())
}

/// How many states were gone on with; or the first from which it went wrong.
fn try_all(
    moments: impl Iterator<Item = (usize, FileSystem, Promised)>,
    expected: &Results,
    most: usize,
    seed: u64,
    tried: &mut HashSet<(Tree, Promised)>,
) -> Result<usize, String> {
    let mut random = Random(seed);
    let mut states = 0;
    for (at, disk, promised) in moments {
        for state in disk.after_a_cut(most, &mut random) {
            if tried.insert((state.clone(), promised)) {
                go_on(&state, promised, expected).map_err(|what| format!("cut before entry {at}: {what}"))?;
                states += 1;
            }
        }
    }
    Ok(states)
}

/// A disk as it was before the first run.
fn fresh() -> (Recording, Results) {
    // Hands are changed for longer than a matrix of eight takes. Whoever is second finds it done.
    let _ = rayon::ThreadPoolBuilder::new().num_threads(1).build_global();
    record(FileSystem::new(), Promised::default())
}

#[test]
fn a_power_cut_at_any_moment_leaves_what_was_promised() {
    let (recording, expected) = fresh();
    let mut tried = HashSet::new();
    let states = try_all(recording.moments(0, None), &expected, most(), 1, &mut tried).unwrap();
    println!("{} operations, {states} states", recording.ops().count());
    assert!(states > 500, "{states}");
}

#[test]
fn a_kill_and_then_a_power_cut_leave_what_was_promised() {
    let (recording, expected) = fresh();
    let mut tried = HashSet::new();
    let (mut kills, mut states) = (0, 0);
    for (at, disk, promised) in recording.moments(0, None) {
        // Where something is renamed and not yet synced, and now and then.
        let renamed = matches!(recording.log.get(at.wrapping_sub(1)), Some(Entry::Op(Op::Rename(..))));
        if promised.model || !model_in(&disk).is_empty() || !(renamed || at % 11 == 0) {
            continue;
        }
        let (second, results) = record(disk, promised);
        assert!(results == expected, "killed before entry {at}");
        kills += 1;
        states += try_all(second.moments(0, None), &expected, most() / 4, at as u64, &mut tried)
            .unwrap_or_else(|what| panic!("killed before entry {at}, then {what}"));
    }
    println!("{kills} kills, {states} states");
    assert!(kills > 5 && states > 500, "{kills} kills, {states} states");
}

/// The model as processes see it.
fn model_in(disk: &FileSystem) -> Tree {
    disk.seen().into_iter().filter(|(path, _)| path.starts_with("models/new/one")).collect()
}

/// The test can fail: where any one sync is left out, something that was promised can be lost.
#[test]
fn every_sync_is_needed() {
    let (recording, expected) = fresh();
    let mut needed = 0;
    for (at, entry) in recording.log.iter().enumerate() {
        let Entry::Op(op) = entry else { continue };
        if !op.is_sync() {
            continue;
        }
        // What is lost shows when it was told of, or has got its name.
        let shows = |at: &usize| match recording.log.get(at.wrapping_sub(1)) {
            Some(Entry::Op(op)) => matches!(op, Op::Rename(..)),
            said => said.is_some(),
        };
        let moments = recording.moments(at, Some(at)).filter(|(at, ..)| shows(at));
        let tried = try_all(moments, &expected, most(), 2, &mut HashSet::new());
        // Of the checkpoint folder, when it is opened: it is for what a killed run renamed.
        let opening = Op::SyncFolder("runs/one".into());
        if *op == opening && !recording.ops().take_while(|other| !std::ptr::eq(*other, op)).any(|op| *op == opening) {
            tried.unwrap();
            continue;
        }
        let what = tried.expect_err(&format!("{op:?} is not needed"));
        println!("without {op:?}: {what}");
        needed += 1;
    }
    assert!(needed > 20, "{needed}");
}

/// And so it is for the sync with which a folder of checkpoints is opened.
#[test]
fn what_a_killed_run_renamed_is_synced_before_it_is_gone_on_from() {
    let (recording, expected) = fresh();
    let is_checkpoint =
        |entry: &Entry| matches!(entry, Entry::Op(Op::Rename(_, to)) if to.ends_with("step-00000004.safetensors"));
    let renamed = recording.log.iter().position(is_checkpoint).unwrap();
    let (_, disk, promised) = recording.moments(renamed + 1, None).next().unwrap();
    let (second, _) = record(disk, promised);
    let sync = second.log.iter().position(|entry| matches!(entry, Entry::Op(op) if op.is_sync())).unwrap();
    let cut = |forgotten| try_all(second.moments(sync, forgotten), &expected, most(), 3, &mut HashSet::new());
    cut(None).unwrap();
    cut(Some(sync)).unwrap_err();
}

/// A report that is there keeps its bytes or gets the new ones.
#[test]
fn a_replaced_report_is_the_old_or_the_new_one() {
    let folder = tempfile::tempdir().unwrap();
    let (old, new) = (vec![b'a'; 2000], vec![b'b'; 3000]);
    std::fs::write(folder.path().join("r.json"), &old).unwrap();
    let disk = Arc::new(Recorder::new(folder.path()));
    replace_file_on(&*disk, &folder.path().join("r.json"), &new).unwrap();
    disk.say(Said::Report);
    let mut before = FileSystem::new();
    let path = PathBuf::from("r.json");
    for op in [
        Op::CreateFile(path.clone()),
        Op::Write { path: path.clone(), at: 0, bytes: old.clone() },
        Op::SyncFile(path.clone()),
        Op::SyncFolder("".into()),
    ] {
        before.apply(&op);
    }
    let recording = Recording { before, promised: Promised::default(), log: disk.log() };
    let mut random = Random(4);
    for (at, disk, promised) in recording.moments(0, None) {
        for state in disk.after_a_cut(1000, &mut random) {
            let found = state[&path].as_ref().unwrap();
            assert!(*found == new || (*found == old && !promised.report), "cut before entry {at}");
        }
    }
}
