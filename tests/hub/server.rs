//! A hub on loopback: the paths, headers and redirects of the real one, and what goes wrong on a network.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// The commit that `main` is.
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// The commit that `refs/convert/parquet` is.
pub const CONVERTED: &str = "89abcdef0123456789abcdef0123456789abcdef";

/// The commit that a pull request is.
pub fn pull_commit(number: u64) -> String {
    format!("{number:040x}")
}

/// Discussions on a page.
const PAGE: usize = 2;

/// A repository.
#[derive(Clone, Default)]
pub struct Repo {
    pub files: BTreeMap<String, Vec<u8>>,
    /// The files of pull requests, by their numbers.
    pub pulls: BTreeMap<u64, BTreeMap<String, Vec<u8>>>,
    /// What the API says of them and of other discussions, all of it whatever is asked for.
    pub discussions: Vec<Value>,
    /// The Parquet files that the hub made of a data set.
    pub converted: BTreeMap<String, Vec<u8>>,
    /// A data set's card, as JSON.
    pub card: Option<String>,
    /// The token that may read it, where not all may.
    pub gate: Option<String>,
    /// Where it has moved to.
    pub moved: Option<String>,
}

impl Repo {
    pub fn of(files: &[(&str, &[u8])]) -> Repo {
        let files = files.iter().map(|(name, bytes)| ((*name).to_string(), bytes.to_vec())).collect();
        Repo { files, ..Repo::default() }
    }
}

/// Which requests something happens to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum On {
    /// The API's, of a revision.
    Info,
    /// The API's, of discussions.
    Discussions,
    /// What is known of a file.
    Head,
    /// A file's bytes.
    Body,
}

/// What happens.
#[derive(Clone, Debug)]
pub enum Mishap {
    /// So many bytes come, and then nothing, while the connection stays.
    Stall(usize),
    /// So many bytes come, and the connection ends.
    Truncate(usize),
    /// So many bytes come, and the rest a while later.
    Slow(usize, Duration),
    /// A status with headers.
    Status(u16, &'static str),
    /// The whole file, whatever range was asked for.
    NoRange,
    /// Another range than was asked for.
    OtherRange,
    /// As many bytes, but others.
    Altered,
    /// This body instead.
    Says(String),
    /// These headers instead.
    Headers(String),
}

/// A request that came.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub range: Option<u64>,
    pub token: Option<String>,
    /// At the storage that large files are redirected to.
    pub storage: bool,
}

#[derive(Default)]
struct State {
    repos: Mutex<BTreeMap<String, Repo>>,
    mishaps: Mutex<Vec<(On, Mishap)>>,
    requests: Mutex<Vec<Request>>,
    sent: Mutex<usize>,
}

/// The hub and its storage, each at a port of its own.
pub struct HubServer {
    pub endpoint: String,
    state: Arc<State>,
}

impl HubServer {
    pub fn start() -> HubServer {
        let state = Arc::new(State::default());
        let storage = listen(&state, None);
        let endpoint = listen(&state, Some(storage));
        HubServer { endpoint, state }
    }

    /// Takes a repository in: `models/OWNER/NAME` or `datasets/OWNER/NAME`.
    pub fn add(&self, name: &str, repo: Repo) {
        self.state.repos.lock().unwrap().insert(name.into(), repo);
    }

    /// The next such request that nothing else happens to meets with this.
    pub fn mishap(&self, on: On, mishap: Mishap) {
        self.state.mishaps.lock().unwrap().push((on, mishap));
    }

    /// Whether something is still to happen.
    pub fn is_calm(&self) -> bool {
        self.state.mishaps.lock().unwrap().is_empty()
    }

    /// What was asked since this was last called.
    pub fn requests(&self) -> Vec<Request> {
        std::mem::take(&mut self.state.requests.lock().unwrap())
    }

    /// Bytes of files that were sent since this was last called.
    pub fn sent(&self) -> usize {
        std::mem::take(&mut self.state.sent.lock().unwrap())
    }
}

fn listen(state: &Arc<State>, storage: Option<String>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let state = state.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (state, storage) = (state.clone(), storage.clone());
            std::thread::spawn(move || Connection { state: &state, storage: storage.as_deref(), stream }.serve());
        }
    });
    address
}

/// One request and its answer; nothing where the other side has gone.
struct Connection<'a> {
    state: &'a State,
    /// Where the storage is; none at the storage.
    storage: Option<&'a str>,
    stream: TcpStream,
}

impl Connection<'_> {
    fn serve(mut self) -> Option<()> {
        let request = self.read()?;
        self.state.requests.lock().unwrap().push(request.clone());
        match self.storage {
            None => self.stored(&request),
            Some(_) => self.hub(&request),
        }
    }

    fn read(&self) -> Option<Request> {
        let mut reader = BufReader::new(self.stream.try_clone().ok()?);
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let mut words = line.split_whitespace();
        let (method, path) = (words.next()?.to_string(), words.next()?.to_string());
        let (mut range, mut token) = (None, None);
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok()?;
            let Some((name, value)) = line.trim().split_once(':') else { break };
            match name.to_ascii_lowercase().as_str() {
                "range" => range = value.trim().strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok(),
                "authorization" => token = value.trim().strip_prefix("Bearer ").map(str::to_string),
                _ => {}
            }
        }
        Some(Request { method, path, range, token, storage: self.storage.is_none() })
    }

    fn take(&self, on: On) -> Option<Mishap> {
        let mut mishaps = self.state.mishaps.lock().unwrap();
        let at = mishaps.iter().position(|(kind, _)| *kind == on)?;
        Some(mishaps.remove(at).1)
    }

    fn head(&mut self, status: u16, headers: &str) -> Option<()> {
        let head = format!("HTTP/1.1 {status} -\r\n{headers}Connection: close\r\n\r\n");
        self.stream.write_all(head.as_bytes()).ok()
    }

    /// Keeps the connection and says nothing more until the other side has gone.
    fn wait(&mut self) -> Option<()> {
        self.stream.set_read_timeout(Some(Duration::from_secs(20))).ok()?;
        self.stream.read(&mut [0]).ok().map(|_| ())
    }

    /// Large files, under their checksums.
    fn stored(&mut self, request: &Request) -> Option<()> {
        let sum = request.path.split('?').next()?.strip_prefix("/storage/")?;
        let repos = self.state.repos.lock().unwrap().clone();
        let revisions =
            repos.values().flat_map(|repo| [&repo.files, &repo.converted].into_iter().chain(repo.pulls.values()));
        let bytes = revisions.flat_map(|files| files.values()).find(|bytes| sha256(bytes) == sum)?;
        self.body(request, bytes, "")
    }

    fn hub(&mut self, request: &Request) -> Option<()> {
        let path = request.path.split('?').next()?;
        let bodiless = request.method == "HEAD";
        let (name, rest, on) = match path.strip_prefix("/api/") {
            Some(rest) => match rest.strip_suffix("/discussions") {
                Some(name) => (name.to_string(), "", On::Discussions),
                None => {
                    let (name, revision) = rest.split_once("/revision/")?;
                    (name.to_string(), revision, On::Info)
                }
            },
            None => {
                let (name, rest) = path.strip_prefix('/')?.split_once("/resolve/")?;
                let name = if name.starts_with("datasets/") { name.into() } else { format!("models/{name}") };
                (name, rest, if bodiless { On::Head } else { On::Body })
            }
        };
        let text = |to: &mut Self, status, headers: &str, body: &str| {
            to.head(status, &format!("{headers}Content-Length: {}\r\n", body.len()))?;
            if bodiless { Some(()) } else { to.stream.write_all(body.as_bytes()).ok() }
        };
        if on != On::Body {
            match self.take(on) {
                Some(Mishap::Status(status, headers)) => return text(self, status, headers, "it is broken"),
                Some(Mishap::Says(body)) => return text(self, 200, "", &body),
                Some(Mishap::Headers(headers)) => return self.head(200, &headers),
                Some(Mishap::Stall(_)) => return self.wait(),
                Some(mishap) => panic!("{mishap:?} happens to bodies"),
                None => {}
            }
        }
        let repos = self.state.repos.lock().unwrap().clone();
        let Some(repo) = repos.get(&name) else {
            return text(self, 401, "X-Error-Code: RepoNotFound\r\n", "Invalid username or password.");
        };
        if let Some(moved) = &repo.moved {
            let short = |name: &str| name.trim_start_matches("models/").to_string();
            let to = request.path.replacen(&short(&name), &short(moved), 1);
            return text(self, 307, &format!("Location: {to}\r\n"), "moved");
        }
        if repo.gate.is_some() && repo.gate != request.token {
            let status = if request.token.is_some() { 403 } else { 401 };
            return text(self, status, "X-Error-Code: GatedRepo\r\n", "gated");
        }
        let of = |revision: &str| match revision {
            "main" | "refs%2Fpr%2F1" | COMMIT => Some((COMMIT.to_string(), &repo.files)),
            "refs%2Fconvert%2Fparquet" | CONVERTED if !repo.converted.is_empty() => {
                Some((CONVERTED.to_string(), &repo.converted))
            }
            _ => {
                let is = |number: u64| revision == format!("refs%2Fpr%2F{number}") || revision == pull_commit(number);
                let (number, files) = repo.pulls.iter().find(|(number, _)| is(**number))?;
                Some((pull_commit(*number), files))
            }
        };
        if on == On::Discussions {
            let page: usize = request.path.split(['?', '&']).find_map(|part| part.strip_prefix("p="))?.parse().ok()?;
            let (count, start) = (repo.discussions.len(), page * PAGE);
            let some: Vec<&Value> = repo.discussions.iter().skip(start).take(PAGE).collect();
            let answer = json!({"discussions": some, "count": count, "start": start, "numClosedDiscussions": 0});
            return text(self, 200, "", &answer.to_string());
        }
        if on == On::Info {
            let Some((commit, files)) = of(rest) else {
                return text(self, 404, "X-Error-Code: RevisionNotFound\r\n", "none");
            };
            let files: Vec<String> = files.keys().map(|name| json!({"rfilename": name}).to_string()).collect();
            let card = repo.card.as_deref().unwrap_or("{}");
            let answer = format!(
                "{{\"id\": {name:?}, \"sha\": \"{commit}\", \"cardData\": {card}, \"siblings\": [{}]}}",
                files.join(",")
            );
            return text(self, 200, "", &answer);
        }
        let (commit, file) = rest.split_once('/')?;
        let Some(bytes) = of(commit).and_then(|(_, files)| files.get(&file.replace("%20", " "))) else {
            return text(self, 404, "X-Error-Code: EntryNotFound\r\n", "none");
        };
        let sum = sha256(bytes);
        if [".safetensors", ".gz", ".parquet"].iter().any(|large| file.ends_with(large)) {
            let (storage, size) = (self.storage?, bytes.len());
            let headers = format!(
                "Location: {storage}/storage/{sum}?signature=secret\r\nX-Linked-Etag: \"{sum}\"\r\nX-Linked-Size: {size}\r\n\
                 ETag: \"other\"\r\n"
            );
            return text(self, 302, &headers, "elsewhere");
        }
        let etag = format!("ETag: \"{}\"\r\n", &sum[..40]);
        if bodiless {
            return self.head(200, &format!("{etag}Content-Length: {}\r\n", bytes.len()));
        }
        self.body(request, bytes, &etag)
    }

    fn body(&mut self, request: &Request, bytes: &[u8], etag: &str) -> Option<()> {
        let mishap = self.take(On::Body);
        let mut from = request.range.unwrap_or(0) as usize;
        match &mishap {
            Some(Mishap::Status(status, headers)) => {
                return self.head(*status, &format!("{headers}Content-Length: 0\r\n"));
            }
            Some(Mishap::NoRange) => from = 0,
            _ => {}
        }
        if from > 0 && from >= bytes.len() {
            return self.head(416, "Content-Length: 0\r\n");
        }
        let told = if matches!(mishap, Some(Mishap::OtherRange)) { from + 1 } else { from };
        let range = format!("Content-Range: bytes {told}-{}/{}\r\n", bytes.len() - 1, bytes.len());
        let (status, range) = if from > 0 { (206, range.as_str()) } else { (200, "") };
        self.head(status, &format!("{etag}{range}Content-Length: {}\r\n", bytes.len() - from))?;
        let mut part = bytes[from..].to_vec();
        match mishap {
            Some(Mishap::Truncate(count) | Mishap::Stall(count)) => part.truncate(count),
            Some(Mishap::Altered) => part[0] ^= 1,
            _ => {}
        }
        *self.state.sent.lock().unwrap() += part.len();
        if let Some(Mishap::Slow(count, pause)) = mishap {
            let (first, rest) = part.split_at(count.min(part.len()));
            self.stream.write_all(first).ok()?;
            std::thread::sleep(pause);
            return self.stream.write_all(rest).ok();
        }
        self.stream.write_all(&part).ok()?;
        if let Some(Mishap::Stall(_)) = mishap { self.wait() } else { Some(()) }
    }
}

pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
