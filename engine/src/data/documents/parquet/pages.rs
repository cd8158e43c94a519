//! Pages of a column, of bounded size. The library believes what pages say of their own sizes, and takes as much memory; its
//! codecs unpack some of them to the end, whatever they said. So each page is looked at before the library has it: its header,
//! what it unpacks to, and the counts that its values begin with.

use std::fs::File;
use std::io::{BufReader, Read};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use parquet::basic::{Compression, Encoding};
use parquet::column::page::{Page, PageMetadata, PageReader};
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::ColumnChunkMetaData;
use parquet::file::reader::{ChunkReader, Length};
use parquet::file::serialized_reader::SerializedPageReader;

use super::header::PageHeader;

/// The largest page, unpacked. Writers make pages of a megabyte, and of some hundred where rows are books.
pub const PAGE_LIMIT: usize = 512 << 20;
/// The most different values of a dictionary, and the most values whose lengths stand in front of them: the library holds
/// some dozen bytes for each. Writers begin a new page after some ten thousand rows.
pub const VALUES_LIMIT: usize = 4 << 20;

/// A page that is too large.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct TooLarge {
    /// What is.
    pub what: String,
}

fn too_large(what: String) -> ParquetError {
    ParquetError::External(Box::new(TooLarge { what }))
}

/// The bytes of a column's chunk.
pub struct Chunk {
    file: File,
    len: u64,
    codec: Compression,
    /// Of the page whose bytes are asked for next.
    header: Mutex<PageHeader>,
}

impl Length for Chunk {
    fn len(&self) -> u64 {
        self.len
    }
}

impl ChunkReader for Chunk {
    type T = BufReader<File>;

    /// A page's header, which is asked for before its bytes.
    fn get_read(&self, start: u64) -> Result<Self::T> {
        let header = PageHeader::read(&mut self.file.get_read(start)?)?;
        if header.unpacked > PAGE_LIMIT as i64 || header.packed > PAGE_LIMIT as i64 {
            return Err(too_large(format!(
                "a page of {} MiB, {} MiB unpacked, and no more than {} MiB are taken at once",
                header.packed >> 20,
                header.unpacked >> 20,
                PAGE_LIMIT >> 20
            )));
        }
        *self.header.lock().expect("nothing panics under it") = header;
        self.file.get_read(start)
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes> {
        // Before memory is taken for them.
        if start.checked_add(length as u64).is_none_or(|end| end > self.len) {
            return Err(ParquetError::EOF("a page ends behind the file".into()));
        }
        let bytes = self.file.get_bytes(start, length)?;
        self.unpacks_as_it_says(&bytes)?;
        Ok(bytes)
    }
}

impl Chunk {
    /// For the codecs that the library lets unpack without an end. What cannot be unpacked the library tells.
    fn unpacks_as_it_says(&self, bytes: &[u8]) -> Result<()> {
        let header = *self.header.lock().expect("nothing panics under it");
        let levels = usize::try_from(header.levels).unwrap_or(usize::MAX);
        let Some(packed) = bytes.get(levels..).filter(|_| header.is_packed) else { return Ok(()) };
        let said = u64::try_from(header.unpacked - header.levels).unwrap_or(0);
        let unpacked = match self.codec {
            Compression::GZIP(_) => count(flate2::read::MultiGzDecoder::new(packed), said),
            Compression::BROTLI(_) => count(brotli::Decompressor::new(packed, 1 << 16), said),
            // Hadoop's blocks, or else a frame.
            Compression::LZ4 => count(lz4_flex::frame::FrameDecoder::new(packed), said),
            _ => 0,
        };
        if unpacked > said {
            return Err(too_large(format!("a page that unpacks to more than the {said} bytes that it says")));
        }
        Ok(())
    }
}

/// Bytes that come out, up to one more than `most`; whatever came before an error.
fn count(unpacked: impl Read, most: u64) -> u64 {
    let (mut limited, mut buffer, mut all) = (unpacked.take(most + 1), vec![0; 1 << 16], 0);
    while let Ok(read @ 1..) = limited.read(&mut buffer) {
        all += read as u64;
    }
    all
}

/// The pages of a chunk in their order.
pub struct Pages {
    pages: SerializedPageReader<Chunk>,
    /// Above 0 where values may be null: levels up to it stand in front of them.
    most_level: i16,
}

impl Pages {
    /// Those of the `chunk` of a file of `rows` rows.
    pub fn new(file: &File, chunk: &ColumnChunkMetaData, rows: usize) -> Result<Pages> {
        let len = file.metadata()?.len();
        let (file, codec) = (file.try_clone()?, chunk.compression());
        let bytes = Arc::new(Chunk { file, len, codec, header: Mutex::default() });
        let most_level = chunk.column_descr().max_def_level();
        Ok(Pages { pages: SerializedPageReader::new(bytes, chunk, rows, None)?, most_level })
    }

    fn check(&self, page: &Page) -> Result<()> {
        let values = match page {
            Page::DictionaryPage { num_values, .. } => *num_values as usize,
            Page::DataPage { .. } | Page::DataPageV2 { .. } => match page.encoding() {
                Encoding::DELTA_LENGTH_BYTE_ARRAY => lengths(self.values(page), 1),
                Encoding::DELTA_BYTE_ARRAY => lengths(self.values(page), 2),
                _ => 0,
            },
        };
        if values > VALUES_LIMIT {
            return Err(too_large(format!(
                "a page of {values} values, and no more than {VALUES_LIMIT} are taken at once"
            )));
        }
        Ok(())
    }
}

impl Pages {
    /// What stands behind the levels of a data page.
    fn values<'a>(&self, page: &'a Page) -> &'a [u8] {
        let levels = match page {
            Page::DataPageV2 { def_levels_byte_len, rep_levels_byte_len, .. } => {
                *def_levels_byte_len as usize + *rep_levels_byte_len as usize
            }
            Page::DataPage { buf, num_values, def_level_encoding, .. } if self.most_level > 0 => {
                match (def_level_encoding, buf.first_chunk()) {
                    (Encoding::RLE, Some(length)) => 4 + u32::from_le_bytes(*length) as usize,
                    // Bits for each value, without a length.
                    _ => {
                        let bits = i16::BITS - self.most_level.leading_zeros();
                        (*num_values as usize * bits as usize).div_ceil(8)
                    }
                }
            }
            _ => 0,
        };
        page.buffer().get(levels..).unwrap_or_default()
    }
}

impl Iterator for Pages {
    type Item = Result<Page>;

    fn next(&mut self) -> Option<Result<Page>> {
        self.get_next_page().transpose()
    }
}

impl PageReader for Pages {
    fn get_next_page(&mut self) -> Result<Option<Page>> {
        let page = self.pages.get_next_page()?;
        page.as_ref().map_or(Ok(()), |page| self.check(page))?;
        Ok(page)
    }

    fn peek_next_page(&mut self) -> Result<Option<PageMetadata>> {
        Err(in_order())
    }

    fn skip_next_page(&mut self) -> Result<()> {
        Err(in_order())
    }
}

/// Every row of the column is read, and none has several values: nobody looks ahead.
fn in_order() -> ParquetError {
    ParquetError::NYI("pages are read in their order".into())
}

/// The most numbers of the first `lists` lists at the start of `bytes`, which are packed as DELTA_BINARY_PACKED describes it;
/// where one is damaged, of those before it.
fn lengths(mut bytes: &[u8], lists: usize) -> usize {
    let mut most = 0;
    for _ in 0..lists {
        let Some((count, list)) = delta_list(bytes) else { break };
        most = most.max(count);
        match bytes.get(list..).filter(|_| count <= VALUES_LIMIT) {
            Some(rest) => bytes = rest,
            None => break,
        }
    }
    most
}

/// The numbers of a list, and its bytes: a head (numbers of a block, its miniblocks, all numbers, the first of them), and blocks
/// (the least difference, the bits of each miniblock's differences, these).
fn delta_list(bytes: &[u8]) -> Option<(usize, usize)> {
    let mut at = 0;
    let block = varint(bytes, &mut at)?;
    let miniblocks = usize::try_from(varint(bytes, &mut at)?).ok().filter(|miniblocks| *miniblocks > 0)?;
    let count = usize::try_from(varint(bytes, &mut at)?).unwrap_or(usize::MAX);
    varint(bytes, &mut at)?;
    let each = usize::try_from(block).ok()? / miniblocks;
    if count > VALUES_LIMIT || each == 0 {
        return Some((count, at));
    }
    let mut left = count.saturating_sub(1);
    while left > 0 {
        let Some(()) = varint(bytes, &mut at).map(drop) else { break };
        let Some(widths) = bytes.get(at..).and_then(|rest| rest.get(..miniblocks)) else { break };
        at += miniblocks;
        for width in widths {
            if left > 0 {
                at = at.checked_add(usize::from(*width).checked_mul(each)? / 8)?;
                left = left.saturating_sub(each);
            }
        }
    }
    Some((count, at))
}

fn varint(bytes: &[u8], at: &mut usize) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = bytes.get(*at)?;
        *at += 1;
        value |= u64::from(byte & 0x7f) << shift;
        if *byte < 0x80 {
            return Some(value);
        }
    }
    None
}
