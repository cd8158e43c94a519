//! Text in compressed files and in Parquet.

use std::io::Read;
use std::sync::Arc;

use parquet::data_type::{ByteArray, ByteArrayType, Int32Type};
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
    let long = "the text is longer than 256 MiB; divide it into documents";
    for (file, bytes) in
        [("eval.txt.gz", gzip(std::io::repeat(b'a').take(257 << 20))), ("eval.txt.zst", run(b'a', 64 << 30))]
    {
        let case = Case::new(EVAL, "a text longer than any, packed", vec![Bytes(file, bytes)], long, 1);
        cases.push(case.with(&format!("--eval {file}")).holding(TEXT));
    }
    cases
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
