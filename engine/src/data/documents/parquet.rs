//! A Parquet file of one document a row, as data sets such as WikiText are published.

use std::fs::File;
use std::path::PathBuf;
use std::vec::IntoIter;

use parquet::basic::Type;
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};

use super::super::error::{Error, Result};
use super::{Document, Rows, io};

/// The column that is read.
const COLUMN: &str = "text";

/// Rows that are read at once: texts of one or a few pages of the file.
const ROWS: usize = 256;

/// The rows of the column `text`, row group by row group; other columns are never read.
pub struct ParquetRows {
    path: PathBuf,
    reader: SerializedFileReader<File>,
    /// The leaf column's place.
    column: usize,
    /// The row group after the one that is being read.
    next_group: usize,
    values: Option<ColumnReaderImpl<ByteArrayType>>,
    texts: IntoIter<ByteArray>,
    row: u64,
    rows: u64,
    file_len: u64,
    any_text: bool,
}

impl ParquetRows {
    pub fn open(path: PathBuf) -> Result<ParquetRows> {
        let file = File::open(&path).map_err(io(&path))?;
        let file_len = file.metadata().map_err(io(&path))?.len();
        let reader = SerializedFileReader::new(file).map_err(|error| damaged(&path, &error))?;
        let metadata = reader.metadata().file_metadata();
        let columns = metadata.schema_descr().columns();
        let place = columns.iter().position(|column| column.path().parts() == [COLUMN]);
        let unfit = |reason: String| Error::Rows { path: path.clone(), reason };
        let Some(column) = place else {
            let names: Vec<String> = columns.iter().take(8).map(|column| column.path().string()).collect();
            return Err(unfit(format!("has no column \"{COLUMN}\"; its columns are {}", names.join(", "))));
        };
        let kind = columns[column].physical_type();
        if kind != Type::BYTE_ARRAY || columns[column].max_rep_level() > 0 {
            return Err(unfit(format!("its column \"{COLUMN}\" holds no strings")));
        }
        let rows = u64::try_from(metadata.num_rows()).unwrap_or(0);
        Ok(ParquetRows {
            path,
            reader,
            column,
            next_group: 0,
            values: None,
            texts: Vec::new().into_iter(),
            row: 0,
            rows,
            file_len,
            any_text: false,
        })
    }

    /// Reads more rows; false at the end.
    fn refill(&mut self) -> Result<bool> {
        let fail = |error: ParquetError| damaged(&self.path, &error);
        loop {
            if let Some(values) = &mut self.values {
                let (mut texts, mut levels) = (Vec::new(), Vec::new());
                let (records, present, _) =
                    values.read_records(ROWS, Some(&mut levels), None, &mut texts).map_err(fail)?;
                if present < records {
                    let null = levels.iter().position(|level| *level == 0).unwrap_or(0) as u64;
                    let reason = format!("row {}: its \"{COLUMN}\" is null", self.row + null + 1);
                    return Err(Error::Rows { path: self.path.clone(), reason });
                }
                if records > 0 {
                    self.texts = texts.into_iter();
                    return Ok(true);
                }
                self.values = None;
            }
            if self.next_group == self.reader.num_row_groups() {
                return Ok(false);
            }
            let group = self.reader.get_row_group(self.next_group).map_err(fail)?;
            self.next_group += 1;
            // The crate takes these for granted, and panics where they are not.
            let chunk = group.metadata().column(self.column);
            let places = [chunk.data_page_offset(), chunk.compressed_size(), chunk.uncompressed_size()];
            if places.into_iter().chain(chunk.dictionary_page_offset()).any(|at| at < 0) {
                return Err(fail(ParquetError::General(format!(
                    "row group {}: a negative offset or size",
                    self.next_group
                ))));
            }
            match group.get_column_reader(self.column).map_err(fail)? {
                ColumnReader::ByteArrayColumnReader(values) => self.values = Some(values),
                _ => unreachable!("the column's type was checked"),
            }
        }
    }
}

impl Rows for ParquetRows {
    fn next_row(&mut self) -> Result<Option<Document>> {
        if self.texts.len() == 0 && !self.refill()? {
            return if self.any_text { Ok(None) } else { Err(Error::Empty { path: self.path.clone() }) };
        }
        let bytes = self.texts.next().expect("just filled");
        self.row += 1;
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

fn damaged(path: &std::path::Path, error: &ParquetError) -> Error {
    if let ParquetError::External(source) = error
        && let Some(source) = source.downcast_ref::<std::io::Error>()
        && source.raw_os_error().is_some()
    {
        return Error::Io { path: path.into(), source: std::io::Error::from(source.kind()) };
    }
    let reason = error.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
    Error::Damaged { path: path.into(), reason: format!("not a readable Parquet file ({reason})") }
}
