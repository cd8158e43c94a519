//! Models and data sets of the hub, asked of a real HTTP server on loopback.

#[path = "../cli_support/mod.rs"]
mod cli_support;
mod command_line;
mod conversion;
mod data_sets;
mod models;
mod reported;
mod server;
mod troubles;

use std::cell::RefCell;
use std::path::PathBuf;
use std::time::Duration;

use engine::hub::{DataFiles, Event, Hub, Result, Settings, Use};
use server::{HubServer, Repo};
use tempfile::TempDir;

/// A hub, a cache, and what happened between them.
struct Setup {
    server: HubServer,
    folder: TempDir,
    settings: Settings,
    events: RefCell<Vec<String>>,
}

impl Setup {
    fn new() -> Setup {
        let (server, folder) = (HubServer::start(), TempDir::new().unwrap());
        let settings = Settings {
            endpoint: server.endpoint.clone(),
            cache: folder.path().join("hub"),
            token: None,
            offline: false,
            certificates: None,
            timeout: Duration::from_millis(500),
            pause: Duration::from_millis(1),
        };
        Setup { server, folder, settings, events: RefCell::default() }
    }

    /// One with a model.
    fn with(name: &str, repo: Repo) -> Setup {
        let setup = Setup::new();
        setup.server.add(name, repo);
        setup
    }

    fn cache(&self, path: &str) -> PathBuf {
        self.settings.cache.join(path)
    }

    fn on_event(&self, event: Event<'_>) {
        let told = match event {
            Event::Progress { file, done, size } => format!("{file} {done}/{size}"),
            Event::Shared { file } => format!("{file} shared"),
            Event::Pause { error, pause } => format!("{} pause {}", error.brief(), pause.as_millis()),
            Event::Unreachable { error } => error.brief(),
            Event::Converted { revision, author } => format!("{revision} of {author}"),
        };
        self.events.borrow_mut().push(told);
    }

    fn model(&self, id: &str) -> Result<PathBuf> {
        self.part(id, true)
    }

    /// A model with its weights or without.
    fn part(&self, id: &str, weights: bool) -> Result<PathBuf> {
        Hub::new(self.settings.clone()).model(&id.parse().expect("an id"), weights, &|event| self.on_event(event))
    }

    /// What happened since this was last called, without the progress of files.
    fn told(&self) -> Vec<String> {
        let mut events = self.events.take();
        events.retain(|event| !event.ends_with(|last: char| last.is_ascii_digit()) || event.contains(" pause "));
        events
    }

    /// A hub that nobody is at, from now on.
    fn cut(&mut self) {
        let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        self.settings.endpoint = format!("http://{nobody}");
    }

    fn data(&self, id: &str, wanted: Use, shards: Option<usize>) -> Result<DataFiles> {
        let id = id.parse().expect("an id");
        Hub::new(self.settings.clone()).data(&id, wanted, shards, &|event| self.on_event(event))
    }

    /// The names of files that were taken.
    fn names(&self, id: &str, wanted: Use, shards: Option<usize>) -> Vec<String> {
        let files = self.data(id, wanted, shards).unwrap().files;
        let name = |path: &PathBuf| {
            let path = path.strip_prefix(&self.settings.cache).unwrap();
            path.iter().skip(3).map(|part| part.to_str().unwrap()).collect::<Vec<_>>().join("/")
        };
        files.iter().map(name).collect()
    }

    /// Addresses that were asked for since this was last called, without those of the API.
    fn asked(&self) -> Vec<String> {
        self.server
            .requests()
            .into_iter()
            .map(|request| request.path)
            .filter(|path| !path.starts_with("/api"))
            .collect()
    }
}

/// Fails with one line that holds every part.
fn assert_says<T: std::fmt::Debug>(result: Result<T>, parts: &[&str]) {
    let said = result.unwrap_err().to_string();
    assert!(!said.contains('\n'), "{said}");
    for part in parts {
        assert!(said.contains(part), "'{part}' is not in: {said}");
    }
}

/// Bytes that are not all the same.
fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i * 31 % 251) as u8).collect()
}
