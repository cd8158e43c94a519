//! What can go wrong between here and the hub.

use std::path::PathBuf;

/// The result of asking the hub.
pub type Result<T> = std::result::Result<T, Error>;

/// A failure that names what was asked for and says what would help. Every message is one line.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An environment variable that makes no sense.
    #[error("{variable}: {reason}")]
    Setting {
        /// The variable.
        variable: &'static str,
        /// What is wrong and what would be right.
        reason: String,
    },
    /// Nothing of that name in the cache, and no network is to be used.
    #[error(
        "{id}: no such path here, and of the hub's {what} not in the cache {}; HF_HUB_OFFLINE forbids to fetch it: unset that, or \
         fetch it where there is a network",
        cache.display()
    )]
    Offline {
        /// What was asked for.
        id: String,
        /// Which part of it, and `is` or `are`.
        what: String,
        /// The cache.
        cache: PathBuf,
    },
    /// No answer at all.
    #[error(
        "{id}: no such path here, and {endpoint} cannot be reached ({reason}); check the name and the network; HF_ENDPOINT names \
         another hub"
    )]
    Unreachable {
        /// What was asked for.
        id: String,
        /// The hub.
        endpoint: String,
        /// What the system says.
        reason: String,
    },
    /// Terms that the token's owner has not accepted, or no token.
    #[error("{id}: it is gated; accept its terms at {page}, and give that account's token in HF_TOKEN ({token})")]
    Gated {
        /// What was asked for.
        id: String,
        /// Where to.
        page: String,
        /// Whether there is one.
        token: &'static str,
    },
    /// A token that the hub does not take, or for this.
    #[error("{id}: the hub refuses the token ({status}); give one that may read it in HF_TOKEN, or none")]
    Token {
        /// What was asked for.
        id: String,
        /// The answer's status.
        status: u16,
    },
    /// Nothing of that name, or nothing that may be seen.
    #[error(
        "{id}: no such path here, and the hub has no such {kind}, or it is private; check the name, and for what is private give \
         a token in HF_TOKEN"
    )]
    NoRepo {
        /// What was asked for.
        id: String,
        /// model or data set.
        kind: &'static str,
    },
    /// No such branch, tag or commit.
    #[error("{id}: has no revision \"{revision}\"; name a branch, a tag, refs/pr/N or a commit")]
    NoRevision {
        /// What was asked for.
        id: String,
        /// The revision.
        revision: String,
    },
    /// A repository without what is needed of it.
    #[error("{id}: {reason}")]
    Content {
        /// What was asked for.
        id: String,
        /// What is missing and what would be right.
        reason: String,
    },
    /// A model whose weights lie in files alone that can run code.
    #[error(
        "{id}: has no model.safetensors, only {file} and its like, which can run code when read{looked}; name a revision that has \
         one, such as {repo}@refs/pr/N where pull request N brings it, or load it with transformers and save it with \
         save_pretrained"
    )]
    NoSafetensors {
        /// What was asked for.
        id: String,
        /// The repository.
        repo: String,
        /// One of those files, as messages have it.
        file: String,
        /// Where else they were looked for.
        looked: String,
    },
    /// A data set of other files than text.
    #[error(
        "{id}: has no files of text (.parquet, .jsonl, .json.gz, …), and the hub made none of it; is it made by a script?"
    )]
    NoText {
        /// What was asked for.
        id: String,
    },
    /// The hub asked for patience more often than we had it.
    #[error(
        "{id}: the hub takes no more requests for now (429); wait some minutes, or give a token in HF_TOKEN, which may ask more"
    )]
    TooMany {
        /// What was asked for.
        id: String,
    },
    /// The hub is in trouble.
    #[error("{id}: {url} answers {status} each time; try again later: what has come is kept")]
    Status {
        /// What was asked for.
        id: String,
        /// The address.
        url: String,
        /// The answer's status.
        status: u16,
    },
    /// Something else than a hub answered.
    #[error("{id}: {url} gave no hub's answer ({reason}); is HF_ENDPOINT right, or a proxy between?")]
    Answer {
        /// What was asked for.
        id: String,
        /// The address.
        url: String,
        /// What is odd.
        reason: String,
    },
    /// A file that came in parts, and then no more.
    #[error("{id}: {file} stops after {done} of {size} bytes each time ({reason}); run again to go on from there")]
    CutOff {
        /// What was asked for.
        id: String,
        /// The file.
        file: String,
        /// Bytes that came.
        done: u64,
        /// Bytes of the file.
        size: u64,
        /// The last failure.
        reason: String,
    },
    /// A file of other bytes than the hub says.
    #[error(
        "{id}: {file} came damaged (its SHA-256 is another) and is removed; run again, and if it comes so again, tell its owner"
    )]
    Damaged {
        /// What was asked for.
        id: String,
        /// The file.
        file: String,
    },
    /// A file of the cache that is none to be read.
    #[error(
        "{id}: cannot read {}: {source}; remove it and run again to fetch it anew, and if it comes so again, tell its owner",
        path.display()
    )]
    Unread {
        /// What was asked for.
        id: String,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: std::io::Error,
    },
    /// The system refused.
    #[error("{id}: cannot write {}: {source}; HF_HUB_CACHE names another folder", path.display())]
    Io {
        /// What was asked for.
        id: String,
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
}

impl Error {
    /// What happened, in a few words, for when it is tried again.
    pub fn brief(&self) -> String {
        match self {
            Error::Unreachable { endpoint, reason, .. } => format!("{endpoint} cannot be reached ({reason})"),
            Error::TooMany { .. } => "the hub asks for patience (429)".into(),
            Error::Status { status, .. } => format!("the hub answers {status}"),
            Error::CutOff { file, done, size, reason, .. } => {
                format!("{file} stops after {done} of {size} bytes ({reason})")
            }
            other => other.to_string(),
        }
    }
}
