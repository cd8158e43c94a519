//! A Parquet file of one document a row, as data sets such as WikiText are published.

mod header;
mod pages;

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use parquet::basic::Type;
use parquet::column::reader::ColumnReaderImpl;
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::errors::ParquetError;
use parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader};

use self::pages::{Pages, TooLarge};
use super::super::error::{Error, Result};
use super::{Document, ROW_LIMIT, Rows, io};
use crate::guard::guarded;

/// The column that is read.
const COLUMN: &str = "text";

/// The most bytes of what stands at the end of a file about its row groups and columns: a thousand groups of ten columns have
/// two million or three.
const FOOTER_LIMIT: u32 = 16 << 20;

/// The rows of the column `text`, row group by row group; other columns are never read.
pub struct ParquetRows {
    path: PathBuf,
    file: File,
    metadata: ParquetMetaData,
    /// The leaf column's place.
    column: usize,
    /// The row group after the one that is being read.
    next_group: usize,
    values: Option<ColumnReaderImpl<ByteArrayType>>,
    row: u64,
    rows: u64,
    file_len: u64,
    any_text: bool,
}

impl ParquetRows {
    pub fn open(path: PathBuf) -> Result<ParquetRows> {
        let mut file = File::open(&path).map_err(io(&path))?;
        let file_len = file.metadata().map_err(io(&path))?.len();
        let unfit = |reason: String| Error::Rows { path: path.clone(), reason };
        let footer = footer_bytes(&mut file, file_len).map_err(io(&path))?;
        if footer > FOOTER_LIMIT {
            return Err(unfit(format!(
                "its footer has {footer} bytes, and no more than {FOOTER_LIMIT} are taken; write it with larger row groups"
            )));
        }
        let metadata = read(&path, || ParquetMetaDataReader::new().parse_and_finish(&file))?;
        let facts = metadata.file_metadata();
        let columns = facts.schema_descr().columns();
        let place = columns.iter().position(|column| column.path().parts() == [COLUMN]);
        let Some(column) = place else {
            let names: Vec<String> = columns.iter().take(8).map(|column| column.path().string()).collect();
            return Err(unfit(format!("has no column \"{COLUMN}\"; its columns are {}", names.join(", "))));
        };
        let kind = columns[column].physical_type();
        if kind != Type::BYTE_ARRAY || columns[column].max_rep_level() > 0 {
            return Err(unfit(format!("its column \"{COLUMN}\" holds no strings")));
        }
        let rows = u64::try_from(facts.num_rows()).unwrap_or(0);
        Ok(ParquetRows {
            path,
            file,
            metadata,
            column,
            next_group: 0,
            values: None,
            row: 0,
            rows,
            file_len,
            any_text: false,
        })
    }

    /// The next row; nothing at the end. One at a time: what a page tells of many rows in few bytes, such as that each begins
    /// like the one before, is not all unpacked at once.
    fn next_text(&mut self) -> Result<Option<ByteArray>> {
        loop {
            if let Some(values) = &mut self.values {
                let (mut text, mut levels) = (Vec::with_capacity(1), Vec::with_capacity(1));
                let (records, present, _) =
                    read(&self.path, || values.read_records(1, Some(&mut levels), None, &mut text))?;
                if present < records {
                    let reason = format!("row {}: its \"{COLUMN}\" is null", self.row + 1);
                    return Err(Error::Rows { path: self.path.clone(), reason });
                }
                if let Some(text) = text.pop() {
                    return Ok(Some(text));
                }
                self.values = None;
            }
            if self.next_group == self.metadata.num_row_groups() {
                return Ok(None);
            }
            let group = self.metadata.row_group(self.next_group);
            self.next_group += 1;
            let rows = usize::try_from(group.num_rows()).unwrap_or(0);
            let chunk = group.column(self.column);
            let pages = read(&self.path, || Pages::new(&self.file, chunk, rows))?;
            self.values = Some(ColumnReaderImpl::new(chunk.column_descr_ptr(), Box::new(pages)));
        }
    }
}

/// The bytes of a footer, as the file's last eight say it.
fn footer_bytes(file: &mut File, file_len: u64) -> std::io::Result<u32> {
    let mut length = [0; 4];
    if file_len >= 8 {
        file.seek(SeekFrom::Start(file_len - 8))?;
        file.read_exact(&mut length)?;
    }
    // What is longer than the file is no Parquet file, and told as such.
    Ok(Some(u32::from_le_bytes(length)).filter(|length| u64::from(*length) < file_len).unwrap_or(0))
}

/// Calls the library, which takes much of a file for granted, and panics where it is not so.
fn read<T>(path: &Path, run: impl FnOnce() -> std::result::Result<T, ParquetError>) -> Result<T> {
    let broken = || Err(ParquetError::General("it contradicts itself".into()));
    guarded(run).unwrap_or_else(broken).map_err(|error| failed(path, &error))
}

impl Rows for ParquetRows {
    fn next_row(&mut self) -> Result<Option<Document>> {
        let Some(bytes) = self.next_text()? else {
            return if self.any_text { Ok(None) } else { Err(Error::Empty { path: self.path.clone() }) };
        };
        self.row += 1;
        if bytes.len() > ROW_LIMIT {
            let reason = format!(
                "row {}: its \"{COLUMN}\" is longer than {} MiB; divide it into several rows",
                self.row,
                ROW_LIMIT >> 20
            );
            return Err(Error::Rows { path: self.path.clone(), reason });
        }
        let source = format!("{}:{}", self.path.display(), self.row);
        let text = std::str::from_utf8(bytes.data()).map_err(|error| Error::Rows {
            path: self.path.clone(),
            reason: format!("row {}: not UTF-8 at byte {}", self.row, error.valid_up_to()),
        })?;
        self.any_text |= !text.is_empty();
        // Rows of about the same size: what a page took in the file is not told.
        let share = |row: u64| {
            (u128::from(self.file_len) * u128::from(row.min(self.rows)) / u128::from(self.rows.max(1))) as u64
        };
        Ok(Some(Document { source, text: text.into(), file_bytes: share(self.row) - share(self.row - 1) }))
    }
}

fn failed(path: &Path, error: &ParquetError) -> Error {
    if let ParquetError::External(source) = error {
        if let Some(source) = source.downcast_ref::<std::io::Error>()
            && source.raw_os_error().is_some()
        {
            return Error::Io { path: path.into(), source: std::io::Error::from(source.kind()) };
        }
        if let Some(TooLarge { what }) = source.downcast_ref() {
            let reason = format!("its column \"{COLUMN}\" has {what}; write it with smaller pages");
            return Error::Rows { path: path.into(), reason };
        }
    }
    let reason = error.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
    Error::Damaged { path: path.into(), reason: format!("not a readable Parquet file ({reason})") }
}
