//! Arguments that name models and data sets of the hub, and what is shown while they come.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::time::Instant;

use engine::hub::{DataId, Event, Hub, ModelId, OnEvent, Settings, Use};

use crate::error::Failure;
use crate::progress::{Console, Task, clock};
use crate::tables;

/// The hub's model that an argument names; none where it is a path: what is there, and what cannot be an id.
pub fn model_id(named: &Path) -> Option<ModelId> {
    if named.exists() { None } else { named.to_str()?.parse().ok() }
}

/// The hub's data set that an argument names; none where it is a path.
pub fn data_id(named: &Path) -> Option<DataId> {
    if named.exists() { None } else { named.to_str()?.parse().ok() }
}

/// The folder that an argument names: a path as it is, a model of the hub from the cache, where it is fetched into; with its
/// weights or without.
pub fn model(console: &Console, named: &Path, weights: bool) -> Result<PathBuf, Failure> {
    let Some(id) = model_id(named) else { return Ok(named.to_path_buf()) };
    from_hub(console, &id.to_string(), |hub, on_event| hub.model(&id, weights, on_event))
}

/// The files of a data set of the hub: the first `shards` of a split, or all.
pub fn data(console: &Console, id: &DataId, wanted: Use, shards: Option<usize>) -> Result<Vec<PathBuf>, Failure> {
    let found = from_hub(console, &id.to_string(), |hub, on_event| hub.data(id, wanted, shards, on_event))?;
    let (taken, of) = (found.files.len(), found.of);
    if taken < of {
        console.say(&format!("{id}: file 1 to {taken} of {of}; --shards takes more"));
    }
    Ok(found.files)
}

fn from_hub<T>(
    console: &Console,
    id: &str,
    ask: impl FnOnce(&Hub, &OnEvent<'_>) -> engine::hub::Result<T>,
) -> Result<T, Failure> {
    let hub = Hub::new(Settings::from_env()?);
    let shown = RefCell::new(Shown { console, id, start: Instant::now(), current: None, files: 0, bytes: 0 });
    let found = ask(&hub, &|event| shown.borrow_mut().on(event))?;
    shown.into_inner().finish();
    Ok(found)
}

/// Files of more bytes have a bar of their own.
const LARGE: u64 = 8 << 20;

/// What is shown of one model or data set.
struct Shown<'a> {
    console: &'a Console,
    id: &'a str,
    start: Instant,
    current: Option<Current>,
    /// Files that came, and their bytes that came now.
    files: usize,
    bytes: u64,
}

/// The file that comes.
struct Current {
    name: String,
    done: u64,
    task: Option<Task>,
}

impl Shown<'_> {
    fn on(&mut self, event: Event<'_>) {
        match event {
            Event::Progress { file, done, size } => self.progress(file, done, size),
            Event::Shared { file } => self.say(&format!("{file} is being fetched by another process: waiting for it")),
            Event::Pause { error, pause } => {
                self.say(&format!("{}; trying again in {}", error.brief(), clock(pause.as_secs_f64())));
            }
            Event::Unreachable { error } => {
                self.console.warn(&format!("{}: {}; what the cache has is taken", self.id, error.brief()));
            }
            Event::Converted { revision, author } => {
                let what = format!("main has no safetensors; all is taken from {revision}, a pull request of {author}");
                self.say(&what);
            }
        }
    }

    fn say(&self, what: &str) {
        let line = format!("{:>10} {}: {what}", "fetch", self.id);
        match self.current.as_ref().and_then(|current| current.task.as_ref()) {
            Some(task) => task.say(&line),
            None => self.console.say(&line),
        }
    }

    fn progress(&mut self, file: &str, done: u64, size: u64) {
        if self.current.as_ref().is_none_or(|current| current.name != file) {
            self.files += 1;
            let mut task = (size > LARGE).then(|| self.console.task("fetch", size));
            if let Some(task) = &mut task {
                task.begin_at(done);
            }
            self.current = Some(Current { name: file.into(), done, task });
        }
        let current = self.current.as_mut().expect("just set");
        self.bytes += done.saturating_sub(current.done);
        current.done = done;
        if let Some(task) = &mut current.task {
            task.update(done, &format!("{file} {} of {}", tables::bytes(done), tables::bytes(size)));
            if done == size
                && let Some(task) = current.task.take()
            {
                task.finish(&format!("{file} {}", tables::bytes(size)));
            }
        }
    }

    fn finish(self) {
        if self.files > 0 {
            let (files, bytes) = (self.files, tables::bytes(self.bytes));
            let what = if files == 1 { "file" } else { "files" };
            let time = clock(self.start.elapsed().as_secs_f64());
            self.console.say(&format!("{:>10} {}: {files} {what}, {bytes} in {time}", "fetch", self.id));
        }
    }
}
