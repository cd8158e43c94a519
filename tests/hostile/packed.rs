//! Text in compressed files and in Parquet.

use std::io::{Read, Write};
use std::sync::Arc;

use parquet::basic::Compression;
use parquet::column::writer::ColumnCloseResult;
use parquet::data_type::{ByteArray, ByteArrayType, Int32Type};
use parquet::file::metadata::ColumnChunkMetaData;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;

use crate::case::{Case, EVAL};
use crate::folder::Spoil::Bytes;
use crate::texts::named;

/// Memory for a text as long as they may be, in bytes: it is one document, and held whole.
const TEXT: u64 = 320 << 20;

pub fn cases() -> Vec<Case> {
    let gz = |name, bytes, says| (name, "eval.jsonl.gz", bytes, says);
    let zst = |name, bytes: &[u8], says| (name, "eval.jsonl.zst", bytes.to_vec(), says);
    let parquet = |name, bytes: &[u8], says| (name, "eval.parquet", bytes.to_vec(), says);
    let lines = gzip(&b"{\"text\":\"hello\"}\n".repeat(100)[..]);
    let mut altered = lines.clone();
    altered[20] ^= 0x55;
    let behind = [&lines[..], b"a line that is not gzip"].concat();
    let rows = strings("text", &[Some(b"one"), Some(b"two"), Some(b"three")]);
    let ends = |by: usize| rows[..rows.len() - by].to_vec();
    let unreadable = "eval.parquet: not a readable Parquet file";
    let mut cases = named(vec![
        gz("gzip's that is none", vec![b'x'; 50], "its compressed data cannot be unpacked (invalid gzip header)"),
        gz("gzip's cut in its checksum", lines[..lines.len() - 1].to_vec(), "its compressed data ends early"),
        gz("gzip's cut in its data", lines[..lines.len() - 9].to_vec(), "its compressed data ends early"),
        gz("gzip's altered", altered, "its compressed data cannot be unpacked"),
        gz("gzip's with something behind it", behind, "its compressed data cannot be unpacked (invalid gzip header)"),
        gz("gzip's of nothing", gzip(&b""[..]), "eval.jsonl.gz: the file holds no text"),
        gz(
            "gzip's, a line of 100 MiB in 100 KiB",
            gzip(std::io::repeat(b'a').take(100 << 20)),
            "eval.jsonl.gz:1: the line is longer than 64 MiB",
        ),
        zst("zstd's that is none", &[b'x'; 50], "its compressed data cannot be unpacked"),
        zst("zstd's cut", b"\x28\xb5\x2f\xfd\0\0", "its compressed data ends early"),
        zst("zstd's of an unknown block", &frame(0, &[7, 0, 0]), "its compressed data cannot be unpacked"),
        zst(
            "zstd's with a window of 2 GiB",
            &frame(31, &[1, 0, 0]),
            "its compressed data cannot be unpacked (Frame requires too much memory",
        ),
        zst(
            "zstd's, a line of 64 GiB in 2 MiB",
            &run(b'a', 64 << 30),
            "eval.jsonl.zst:1: the line is longer than 64 MiB",
        ),
        zst("zstd's, blank lines without a text", &run(b' ', 32 << 20), "eval.jsonl.zst: the file holds no text"),
        parquet("Parquet cut to its mark", b"PAR1", unreadable),
        parquet("Parquet of nothing", &[&b"PAR1"[..], &[0; 100], b"PAR1"].concat(), unreadable),
        parquet("Parquet with a footer of 4 GB", &[&b"PAR1"[..], &[255; 100], b"PAR1"].concat(), unreadable),
        parquet("Parquet cut by a byte", &ends(1), unreadable),
        parquet("Parquet cut in the middle", &ends(rows.len() / 2), unreadable),
        parquet("Parquet that is JSON", b"{\"text\":\"a text that is long enough\"}", unreadable),
        parquet(
            "Parquet of other columns",
            &strings("content", &[Some(b"one")]),
            "eval.parquet: has no column \"text\"; its columns are content",
        ),
        parquet("Parquet with a column of numbers", &numbers(), "eval.parquet: its column \"text\" holds no strings"),
        parquet(
            "Parquet with a null",
            &strings("text", &[Some(b"one"), None]),
            "eval.parquet: row 2: its \"text\" is null",
        ),
        parquet(
            "Parquet that is not UTF-8",
            &strings("text", &[Some(b"one"), Some(b"caf\xe9")]),
            "eval.parquet: row 2: not UTF-8 at byte 3",
        ),
        parquet("Parquet without rows", &strings("text", &[]), "eval.parquet: the file holds no text"),
        parquet("Parquet of empty rows", &strings("text", &[Some(b"")]), "eval.parquet: the file holds no text"),
    ]);
    cases.extend(pages());
    let long = "the text is longer than 256 MiB; divide it into documents";
    for (file, bytes) in
        [("eval.txt.gz", gzip(std::io::repeat(b'a').take(257 << 20))), ("eval.txt.zst", run(b'a', 64 << 30))]
    {
        let case = Case::new(EVAL, "a text longer than any, packed", vec![Bytes(file, bytes)], long, 1);
        cases.push(case.with(&format!("--eval {file}")).holding(TEXT));
    }
    cases
}

/// Pages of Parquet that say, or are, more than they should. Each is a file of one page of one column.
fn pages() -> Vec<Case> {
    const PLAIN: u32 = 0;
    const DELTA_LENGTHS: u32 = 6;
    const DELTA_STRINGS: u32 = 7;
    let none = Compression::UNCOMPRESSED;
    let gz = || Compression::GZIP(Default::default());
    let long = 65 << 20;
    // A PLAIN value: its length, four bytes, and itself.
    let value = (long as u32).to_le_bytes();
    let long_row = gzip(value.as_slice().chain(std::io::repeat(0).take(long)));
    // DELTA_BINARY_PACKED: numbers of a block, its miniblocks, all of them, the first.
    let counts = |count: u64| [&[0x80, 1, 4][..], &varint(count), &[0]].concat();
    // One prefix, and then as many suffixes.
    let suffixes = [counts(1), counts(1 << 40)].concat();
    let all = vec![
        (
            "Parquet with a page of 2 GiB",
            one_page(Compression::SNAPPY, data_page(PLAIN, i32::MAX as u32, 1, b"x"), 1),
            "eval.parquet: its column \"text\" has a page of 0 MiB, 2047 MiB unpacked, and no more than 512 MiB are taken at \
             once; write it with smaller pages",
        ),
        (
            "Parquet with a page that says 100 bytes and has 600 MiB",
            one_page(gz(), data_page(PLAIN, 100, 1, &gzip(std::io::repeat(0).take(600 << 20))), 1),
            "its column \"text\" has a page that unpacks to more than the 100 bytes that it says",
        ),
        (
            "Parquet with a row of 65 MiB",
            one_page(gz(), data_page(PLAIN, long as u32 + 4, 1, &long_row), 1),
            "eval.parquet: row 1: its \"text\" is longer than 64 MiB; divide it into several rows",
        ),
        (
            "Parquet with 2⁴⁰ lengths in a page",
            one_page(none, data_page(DELTA_LENGTHS, 8, 1, &counts(1 << 40)), 1),
            "has a page of 1099511627776 values, and no more than 4194304 are taken at once",
        ),
        (
            "Parquet with 2⁴⁰ suffixes in a page",
            one_page(none, data_page(DELTA_STRINGS, 16, 1, &suffixes), 1),
            "has a page of 1099511627776 values",
        ),
        (
            "Parquet with a dictionary of 2³¹ − 1 values",
            one_page(none, dictionary(i32::MAX as u32), 1),
            "has a page of 2147483647 values",
        ),
        (
            "Parquet with a row of its page's 0",
            one_page(none, data_page(PLAIN, 0, 0, b""), 1),
            "eval.parquet: the file holds no text",
        ),
        (
            "Parquet with a value that its page has not",
            one_page(none, data_page(PLAIN, 8, 2, &[255, 255, 255, 127, b'a', b'b', b'c', b'd']), 2),
            "eval.parquet: not a readable Parquet file",
        ),
        (
            "Parquet whose footer is larger than any",
            [&b"PAR1"[..], &vec![0; 17 << 20], &(17u32 << 20).to_le_bytes(), b"PAR1"].concat(),
            "eval.parquet: its footer has 17825792 bytes, and no more than 16777216 are taken",
        ),
    ];
    named(all.into_iter().map(|(name, bytes, says)| (name, "eval.parquet", bytes, says)).collect())
}

/// As Thrift and Parquet write whole numbers: seven bits a byte, the lowest first.
fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

/// A number of a Thrift struct, in the field after the last.
fn next_number(value: u32) -> Vec<u8> {
    [&[0x15][..], &varint(u64::from(value) << 1)].concat()
}

/// A page: its header (parquet.thrift, PageHeader) and what is in it.
fn page(kind: u32, unpacked: u32, inner: &[u8], data: &[u8]) -> Vec<u8> {
    [&next_number(kind)[..], &next_number(unpacked), &next_number(data.len() as u32), inner, &[0], data].concat()
}

fn data_page(encoding: u32, unpacked: u32, values: u32, data: &[u8]) -> Vec<u8> {
    const RLE: u32 = 3;
    let numbers = [values, encoding, RLE, RLE].map(next_number).concat();
    page(0, unpacked, &[&[0x2c][..], &numbers, &[0]].concat(), data)
}

fn dictionary(values: u32) -> Vec<u8> {
    let numbers = [values, 0].map(next_number).concat();
    page(2, 4, &[&[0x4c][..], &numbers, &[0]].concat(), &[0; 4])
}

/// A file of one column of texts, whose only chunk is this page.
fn one_page(codec: Compression, page: Vec<u8>, rows: u64) -> Vec<u8> {
    let schema = Arc::new(parse_message_type("message rows { required binary text (utf8); }").unwrap());
    let mut bytes = Vec::new();
    let mut writer = SerializedFileWriter::new(&mut bytes, schema, Arc::default()).unwrap();
    let metadata = ColumnChunkMetaData::builder(writer.schema_descr().column(0))
        .set_compression(codec)
        .set_num_values(rows as i64)
        .set_total_compressed_size(page.len() as i64)
        .set_total_uncompressed_size(page.len() as i64)
        .set_data_page_offset(0)
        .build()
        .unwrap();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&page).unwrap();
    let closed = ColumnCloseResult {
        bytes_written: page.len() as u64,
        rows_written: rows,
        metadata,
        bloom_filter: None,
        column_index: None,
        offset_index: None,
    };
    let mut group = writer.next_row_group().unwrap();
    group.append_column(&file, closed).unwrap();
    group.close().unwrap();
    writer.close().unwrap();
    bytes
}

/// Compressed as it comes: what this process holds counts as its children's, too.
fn gzip(mut bytes: impl Read) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::copy(&mut bytes, &mut encoder).unwrap();
    encoder.finish().unwrap()
}

/// A frame of zstd's (RFC 8878, 3.1.1): the magic number, a descriptor that promises a window and nothing else, the window of
/// 2^`log` bytes (2^10 at least), and blocks.
fn frame(log: u8, blocks: &[u8]) -> Vec<u8> {
    [&[0x28, 0xb5, 0x2f, 0xfd, 0, log.saturating_sub(10) << 3], blocks].concat()
}

/// A frame of one byte again and again: blocks of 128 KiB, the most that a block may have, in four bytes each.
fn run(byte: u8, len: u64) -> Vec<u8> {
    const BLOCK: u64 = 128 << 10;
    const RUN: u64 = 1 << 1;
    let block = |last: u64| [&(BLOCK << 3 | RUN | last).to_le_bytes()[..3], &[byte]].concat();
    let blocks = [block(0).repeat((len / BLOCK - 1) as usize), block(1)].concat();
    frame(17, &blocks)
}

/// A Parquet file of one column.
fn parquet(column: &str, write: impl FnOnce(&mut parquet::file::writer::SerializedColumnWriter)) -> Vec<u8> {
    let schema = Arc::new(parse_message_type(&format!("message rows {{ optional {column}; }}")).unwrap());
    let mut bytes = Vec::new();
    let mut writer = SerializedFileWriter::new(&mut bytes, schema, Arc::default()).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let mut values = group.next_column().unwrap().unwrap();
    write(&mut values);
    values.close().unwrap();
    group.close().unwrap();
    writer.close().unwrap();
    bytes
}

/// Rows of bytes, some of them null.
fn strings(name: &str, rows: &[Option<&[u8]>]) -> Vec<u8> {
    let values: Vec<ByteArray> = rows.iter().flatten().map(|row| row.to_vec().into()).collect();
    let levels: Vec<i16> = rows.iter().map(|row| row.is_some().into()).collect();
    parquet(&format!("binary {name} (utf8)"), |column| {
        column.typed::<ByteArrayType>().write_batch(&values, Some(&levels), None).unwrap();
    })
}

fn numbers() -> Vec<u8> {
    parquet("int32 text", |column| {
        column.typed::<Int32Type>().write_batch(&[1], Some(&[1]), None).unwrap();
    })
}
