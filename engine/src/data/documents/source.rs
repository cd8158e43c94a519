//! Bytes of a file as its documents have them: unpacked as they are read, and counted as they lie in the file.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use flate2::bufread::MultiGzDecoder;
use zstd::stream::read::Decoder;

use super::super::error::{Error, Result};
use super::form::Compression;
use super::io;

/// A file's bytes, unpacked. What is packed a thousandfold takes no more memory than what is not: a window of the
/// decoder's (zstd: at most 128 MiB, what its format asks decoders to bear) and a buffer.
pub struct Source {
    path: PathBuf,
    reader: Box<dyn BufRead + Send>,
    /// Bytes of the file that were read, where that is not what `reader` gave out.
    packed: Option<Arc<AtomicU64>>,
    reported: u64,
}

const BUFFER: usize = 1 << 20;

impl Source {
    pub fn open(path: &Path, compression: Compression) -> Result<Source> {
        let file = File::open(path).map_err(io(path))?;
        let count = Arc::new(AtomicU64::new(0));
        let counted = |file| BufReader::with_capacity(BUFFER, Counted { file, count: count.clone() });
        let reader: Box<dyn BufRead + Send> = match compression {
            Compression::None => Box::new(BufReader::with_capacity(BUFFER, file)),
            Compression::Gzip => Box::new(BufReader::with_capacity(BUFFER, MultiGzDecoder::new(counted(file)))),
            Compression::Zstd => {
                let decoder = Decoder::with_buffer(counted(file)).map_err(io(path))?;
                Box::new(BufReader::with_capacity(BUFFER, decoder))
            }
        };
        let packed = (compression != Compression::None).then_some(count);
        Ok(Source { path: path.into(), reader, packed, reported: 0 })
    }

    /// Appends bytes up to and with the next newline, at most `limit` of them; their number.
    pub fn read_line(&mut self, limit: u64, bytes: &mut Vec<u8>) -> Result<usize> {
        let read = (&mut self.reader).take(limit).read_until(b'\n', bytes);
        read.map_err(|error| self.failed(error))
    }

    /// Appends all bytes, at most `limit` of them.
    pub fn read_all(&mut self, limit: u64, bytes: &mut Vec<u8>) -> Result<usize> {
        let read = (&mut self.reader).take(limit).read_to_end(bytes);
        read.map_err(|error| self.failed(error))
    }

    /// The bytes of the file that were read since this was last asked, of which the caller took `taken` unpacked ones.
    pub fn file_bytes(&mut self, taken: u64) -> u64 {
        let Some(packed) = &self.packed else { return taken };
        let now = packed.load(Ordering::Relaxed);
        now - std::mem::replace(&mut self.reported, now)
    }

    /// What the system says is of the system; anything else a decoder found.
    fn failed(&self, error: io::Error) -> Error {
        let path = self.path.clone();
        if error.raw_os_error().is_some() || self.packed.is_none() {
            return Error::Io { path, source: error };
        }
        let reason = match error.kind() {
            io::ErrorKind::UnexpectedEof => "its compressed data ends early".to_string(),
            _ => format!("its compressed data cannot be unpacked ({})", error.to_string().replace('\n', " ")),
        };
        Error::Damaged { path, reason }
    }
}

struct Counted {
    file: File,
    count: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer)?;
        self.count.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}
