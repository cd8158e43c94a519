//! Tokens are made once: a folder keeps them under the hash of text and tokenizer.
//!
//! Many runs may share the folder. A file is written under a name of its own and renamed when it is whole, so that what has a
//! name here is whole, or was damaged later: then it is made anew. A run that two start at once is tokenised by both, and
//! the later one's file, of the same bytes, takes the place of the earlier one's.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::documents::read_documents;
use super::error::{Error, Result};
use super::stream::{self, Joining, Progress, TokenStream};
use super::token_file::{Digest, TokenFile, VERSION};
use crate::checkpoint::Tokenizer;

/// The text that tokens are made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Corpus {
    /// Its files, in order.
    pub files: Vec<PathBuf>,
    /// How its documents are [joined](super::join) and tokenised as one; each is by itself where it is not said.
    pub joining: Option<Joining>,
}

/// Where tokens came from.
#[derive(Debug)]
pub enum Origin {
    /// The cache had them.
    Cached,
    /// They were made; the cache, if there is one, has them now.
    Made,
    /// They were made, and the cache could not take them.
    NotKept(Error),
}

/// Tokens, and how they were come by.
#[derive(Debug)]
pub struct Tokenized {
    /// The tokens.
    pub stream: TokenStream,
    /// Where they came from.
    pub origin: Origin,
    /// A file of the cache that was found damaged and has been replaced: which, and what was wrong.
    pub damaged: Option<(PathBuf, &'static str)>,
}

/// A folder of tokens, or none.
#[derive(Clone, Debug)]
pub struct TokenCache {
    folder: Option<PathBuf>,
}

/// The extension of a file that is complete.
const EXTENSION: &str = "tokens";
/// The extension of one that is being written. Who writes it holds its lock.
const PARTIAL: &str = "partial";

impl TokenCache {
    /// One in `folder`, which is made when it is needed.
    pub fn at(folder: impl Into<PathBuf>) -> TokenCache {
        TokenCache { folder: Some(folder.into()) }
    }

    /// None: tokens lie in a temporary file and are made anew by each run.
    pub fn off() -> TokenCache {
        TokenCache { folder: None }
    }

    /// The tokens of a corpus. `progress` hears of what is tokenised, from any thread.
    ///
    /// # Errors
    /// Those of [`read_documents`], [`Error::Tokenizer`], [`Error::Changed`] for a file that changed while it was read, and
    /// [`Error::Tokens`] where the tokens have no room.
    pub fn tokens(
        &self,
        corpus: &Corpus,
        tokenizer: &Tokenizer,
        progress: impl Fn(Progress) + Sync,
    ) -> Result<Tokenized> {
        let documents = read_documents(&corpus.files)?;
        let Some(folder) = &self.folder else {
            let file = tempfile::tempfile().map_err(Error::Tokens)?;
            let stream = make(&file, &Digest::default(), corpus, documents, tokenizer, progress)?;
            return Ok(Tokenized { stream, origin: Origin::Made, damaged: None });
        };
        let times = times(&corpus.files)?;
        let key = key(corpus, tokenizer)?;
        let path = folder.join(format!("{}.{EXTENSION}", blake3::Hash::from_bytes(key)));
        let mut damaged = None;
        match File::open(&path).and_then(|file| TokenFile::open(&file, &key)) {
            Ok(Ok(file)) => {
                let stream = TokenStream::of(file);
                return Ok(Tokenized { stream, origin: Origin::Cached, damaged });
            }
            Ok(Err(what)) => damaged = Some((path.clone(), what)),
            Err(_) => {} // not there, or not to be read: what is made takes its place, or tells why not
        }
        let partial = create_partial(folder);
        let file = match &partial {
            Ok(partial) => partial.as_file().try_clone(),
            Err(_) => tempfile::tempfile(),
        };
        let file = file.map_err(Error::Tokens)?;
        let stream = make(&file, &key, corpus, documents, tokenizer, progress)?;
        if let Some(changed) = times.iter().find(|(path, time)| stamp(path).ok() != Some(*time)) {
            return Err(Error::Changed { path: changed.0.clone() });
        }
        let kept = partial.and_then(|partial| match partial.persist(&path) {
            Ok(_) => Ok(()),
            Err(error) => Err(error.error),
        });
        let origin = match kept {
            Ok(()) => Origin::Made,
            Err(source) => Origin::NotKept(Error::Io { path: folder.clone(), source }),
        };
        Ok(Tokenized { stream, origin, damaged })
    }
}

/// Tokenises a corpus into a file and maps it.
fn make(
    file: &File,
    key: &Digest,
    corpus: &Corpus,
    documents: impl Iterator<Item = Result<super::Document>>,
    tokenizer: &Tokenizer,
    progress: impl Fn(Progress) + Sync,
) -> Result<TokenStream> {
    match corpus.joining {
        Some(joining) => stream::write(file, [stream::join(documents, joining)], tokenizer, key, progress)?,
        None => stream::write(file, documents, tokenizer, key, progress)?,
    }
    TokenStream::map(file, key)
}

/// A new file in the folder, locked. Takes away what killed runs left there: what nobody has locked.
pub(super) fn create_partial(folder: &Path) -> std::io::Result<tempfile::NamedTempFile> {
    fs::create_dir_all(folder)?;
    for entry in fs::read_dir(folder)?.flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|extension| extension == PARTIAL)
            && let Ok(file) = File::open(&path)
            && file.try_lock().is_ok()
        {
            // Still locked: who has just made it, and waits for the lock, then sees that it is gone.
            let _ = fs::remove_file(&path); // another run's turn
        }
    }
    loop {
        let partial = tempfile::Builder::new().prefix(".").suffix(&format!(".{PARTIAL}")).tempfile_in(folder)?;
        partial.as_file().lock()?;
        // Before it was locked, another run may have taken it for a killed one's.
        if partial.path().exists() {
            return Ok(partial);
        }
    }
}

/// A file's size and time of change.
fn stamp(path: &Path) -> std::io::Result<(u64, Option<SystemTime>)> {
    fs::metadata(path).map(|metadata| (metadata.len(), metadata.modified().ok()))
}

type Stamps<'a> = Vec<(&'a PathBuf, (u64, Option<SystemTime>))>;

fn times(files: &[PathBuf]) -> Result<Stamps<'_>> {
    let of = |path: &PathBuf| stamp(path).map_err(|source| Error::Io { path: path.clone(), source });
    files.iter().map(|path| of(path).map(|stamp| (path, stamp))).collect()
}

/// BLAKE3 of all that decides about a corpus's tokens: the format, the program, the tokenizer, how documents are joined, and of
/// each file its form and bytes. Names do not count.
fn key(corpus: &Corpus, tokenizer: &Tokenizer) -> Result<Digest> {
    let mut hasher = blake3::Hasher::new();
    let mut add = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_le_bytes()).update(bytes);
    };
    add(format!("tokens {VERSION} of perp-engine {}", env!("CARGO_PKG_VERSION")).as_bytes());
    let json = tokenizer.to_json().map_err(|cause| Error::Tokenizer { document: "the tokenizer".into(), cause })?;
    add(json.as_bytes());
    add(format!("{:?}", corpus.joining).as_bytes());
    for path in &corpus.files {
        add(super::documents::form_name(path)?.as_bytes());
        add(&file_digest(path).map_err(|source| Error::Io { path: path.clone(), source })?);
    }
    Ok(*hasher.finalize().as_bytes())
}

fn file_digest(path: &Path) -> std::io::Result<Digest> {
    let mut file = File::open(path)?;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 8 << 20];
    loop {
        let mut filled = 0;
        while filled < buffer.len() {
            match file.read(&mut buffer[filled..])? {
                0 => break,
                read => filled += read,
            }
        }
        if filled == 0 {
            return Ok(*hasher.finalize().as_bytes());
        }
        hasher.update_rayon(&buffer[..filled]);
    }
}
