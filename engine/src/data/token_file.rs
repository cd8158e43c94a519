//! Tokens in a file, mapped where they are read: however many there are, memory holds what is being looked at.
//!
//! | bytes | what |
//! |---|---|
//! | 0 – 7 | `perp-tok` |
//! | 8 – 11 | the format's version, u32 |
//! | 12 – 15 | 0 |
//! | 16 – 23 | n, u64: tokens |
//! | 24 – 31 | d, u64: documents with tokens |
//! | 32 – 63 | the key: BLAKE3 of what the tokens were made of |
//! | 64 – 95 | BLAKE3 of the tokens |
//! | 96 – 127 | BLAKE3 of bytes 0 – 95 and of the documents' ends |
//! | 128 – | the tokens, u32, end to end; zeros up to a multiple of 8 |
//! | – end | where each document ends: the tokens up to and with its last, u64 |
//!
//! Numbers are the machine's own, so that they can be read where they lie; on a machine of the other order the version reads
//! as another one.

use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::ops::Range;

use memmap2::Mmap;

pub const VERSION: u32 = 1;
const MAGIC: &[u8; 8] = b"perp-tok";
const HEADER: usize = 128;

/// BLAKE3.
pub type Digest = [u8; 32];

/// A token file that can be trusted.
#[derive(Debug)]
pub struct TokenFile {
    map: Mmap,
    tokens: usize,
    documents: usize,
}

impl TokenFile {
    /// Maps a file and reads all of it to know that it is whole, and made of what `key` names; else says what is wrong.
    pub fn open(file: &File, key: &Digest) -> io::Result<std::result::Result<TokenFile, &'static str>> {
        if !file.metadata()?.is_file() {
            return Ok(Err("is not a regular file"));
        }
        // SAFETY: the bytes are u8 and are checked below. Token files are never changed in place: the cache renames whole
        // ones into their place, and others have no name. Whoever truncates one while it is mapped ends the process.
        let map = unsafe { Mmap::map(file)? };
        Ok(TokenFile::check(map, key))
    }

    fn check(map: Mmap, key: &Digest) -> std::result::Result<TokenFile, &'static str> {
        let Some((head, body)) = map.split_at_checked(HEADER) else { return Err("is shorter than its header") };
        let number = |at: usize| u64::from_ne_bytes(head[at..at + 8].try_into().expect("eight bytes"));
        if &head[..8] != MAGIC {
            return Err("is not a file of tokens");
        }
        if head[8..16] != preamble()[8..16] {
            return Err("is of another version");
        }
        if &head[32..64] != key {
            return Err("was made of something else");
        }
        let sizes = || {
            let (tokens, documents) = (usize::try_from(number(16)).ok()?, usize::try_from(number(24)).ok()?);
            let tokens_end = tokens.checked_mul(4)?.checked_next_multiple_of(8)?;
            (tokens_end.checked_add(documents.checked_mul(8)?)? == body.len())
                .then_some((tokens, documents, tokens_end))
        };
        let Some((tokens, documents, tokens_end)) = sizes() else {
            return Err("is torn: it has another size than it says");
        };
        let sum = blake3::Hasher::new().update(&head[..96]).update_rayon(&body[tokens_end..]).finalize();
        let tokens_sum = blake3::Hasher::new().update_rayon(&body[..4 * tokens]).finalize();
        if sum.as_bytes()[..] != head[96..] || tokens_sum.as_bytes()[..] != head[64..96] {
            return Err("is damaged: its checksum is another");
        }
        if body[4 * tokens..tokens_end].iter().any(|pad| *pad != 0) {
            return Err("is damaged: what stands between tokens and ends is not zero");
        }
        let file = TokenFile { map, tokens, documents };
        let ordered = file.ends().is_sorted_by(|a, b| a < b);
        if !ordered || file.ends().last().copied().unwrap_or(0) != tokens as u64 {
            return Err("is damaged: its documents do not fill it");
        }
        Ok(file)
    }

    /// All tokens.
    pub fn tokens(&self) -> &[u32] {
        bytemuck::cast_slice(&self.map[HEADER..HEADER + 4 * self.tokens])
    }

    /// For each document the tokens up to and with its last; ascending.
    pub fn ends(&self) -> &[u64] {
        bytemuck::cast_slice(&self.map[self.map.len() - 8 * self.documents..])
    }

    /// The tokens of a document.
    pub fn document(&self, index: usize) -> Range<usize> {
        let ends = self.ends();
        let start = if index == 0 { 0 } else { ends[index - 1] };
        start as usize..ends[index] as usize
    }

    /// BLAKE3 of the tokens, as it is in the header.
    pub fn tokens_digest(&self) -> Digest {
        self.map[64..96].try_into().expect("32 bytes")
    }
}

fn preamble() -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..12].copy_from_slice(&VERSION.to_ne_bytes());
    bytes
}

/// Writes a token file, document by document. It cannot be opened before [`TokenWriter::finish`].
pub struct TokenWriter<'a> {
    out: BufWriter<&'a File>,
    hasher: blake3::Hasher,
    /// The ends, in a file of their own until the tokens are complete.
    ends: BufWriter<File>,
    tokens: u64,
    documents: u64,
}

impl<'a> TokenWriter<'a> {
    /// Begins in a new file.
    pub fn new(file: &'a File) -> io::Result<TokenWriter<'a>> {
        let mut out = BufWriter::with_capacity(1 << 20, file);
        out.write_all(&[0; HEADER])?;
        let ends = BufWriter::new(tempfile::tempfile()?);
        Ok(TokenWriter { out, hasher: blake3::Hasher::new(), ends, tokens: 0, documents: 0 })
    }

    /// Appends a document; one without tokens leaves no trace.
    pub fn push(&mut self, tokens: &[u32]) -> io::Result<()> {
        if tokens.is_empty() {
            return Ok(());
        }
        let bytes: &[u8] = bytemuck::cast_slice(tokens);
        self.hasher.update(bytes);
        self.out.write_all(bytes)?;
        self.tokens += tokens.len() as u64;
        self.documents += 1;
        self.ends.write_all(&self.tokens.to_ne_bytes())
    }

    /// Completes and syncs the file.
    pub fn finish(mut self, key: &Digest) -> io::Result<()> {
        if self.tokens % 2 == 1 {
            self.out.write_all(&[0; 4])?;
        }
        let mut head = [0; HEADER];
        head[..16].copy_from_slice(&preamble());
        head[16..24].copy_from_slice(&self.tokens.to_ne_bytes());
        head[24..32].copy_from_slice(&self.documents.to_ne_bytes());
        head[32..64].copy_from_slice(key);
        head[64..96].copy_from_slice(self.hasher.finalize().as_bytes());
        let mut sum = blake3::Hasher::new();
        sum.update(&head[..96]);
        let mut ends = self.ends.into_inner().map_err(io::IntoInnerError::into_error)?;
        ends.seek(SeekFrom::Start(0))?;
        let mut buffer = vec![0; 1 << 16];
        loop {
            let read = ends.read(&mut buffer)?;
            if read == 0 {
                break;
            }
            sum.update(&buffer[..read]);
            self.out.write_all(&buffer[..read])?;
        }
        head[96..].copy_from_slice(sum.finalize().as_bytes());
        let mut file = self.out.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.seek(SeekFrom::Start(0))?;
        file.write_all(&head)?;
        file.sync_all()
    }
}
