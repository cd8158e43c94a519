//! Compressed files, Parquet, patterns.

use std::io::Write;
use std::sync::Arc;

use flate2::Compression;
use flate2::write::GzEncoder;
use parquet::data_type::{ByteArray, ByteArrayType, Int32Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;

use super::*;

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 3).unwrap()
}

const LINES: &[u8] = b"{\"text\": \"one\", \"url\": \"u\"}\n{\"text\": \"two\"}\n";
const MORE: &[u8] = b"{\"text\": \"three\"}\n";

/// Bytes behind one another: members and frames do so.
fn twice(pack: fn(&[u8]) -> Vec<u8>) -> Vec<u8> {
    [pack(LINES), pack(MORE)].concat()
}

#[test]
fn compressed_lines_and_texts_are_those_of_the_plain_file() {
    let expected = ["one", "two", "three"];
    for (name, bytes) in [
        ("c4-train.00000-of-01024.json.gz", twice(gzip)),
        ("a.jsonl.gz", gzip(&[LINES, MORE].concat())),
        ("a.jsonl.zst", twice(zstd)),
        ("A.JSON.ZST", twice(zstd)),
        ("a.json", [LINES, MORE].concat()),
    ] {
        assert_eq!(texts(&[(name, &bytes)]).unwrap(), expected, "{name}");
    }
    for (name, bytes) in [("a.txt.gz", gzip(b"\xef\xbb\xbftext")), ("a.txt.zst", zstd(b"text"))] {
        assert_eq!(texts(&[(name, &bytes)]).unwrap(), ["text"], "{name}");
    }
    // A split of the bytes inside a line is none of the text.
    let all = [LINES, MORE].concat();
    let cut = [gzip(&all[..10]), gzip(&all[10..])].concat();
    assert_eq!(texts(&[("a.jsonl.gz", &cut)]).unwrap(), expected);
}

#[test]
fn compressed_files_count_their_own_bytes() {
    let lines: Vec<u8> = (0..5000).flat_map(|i| format!("{{\"text\": \"number {i}\"}}\n").into_bytes()).collect();
    for (name, bytes) in [("a.jsonl.gz", gzip(&lines)), ("a.jsonl.zst", zstd(&lines))] {
        let (_dir, paths) = files(&[(name, &bytes)]);
        let documents = read_documents(&paths).unwrap();
        let total = documents.total_bytes();
        assert_eq!(total, bytes.len() as u64);
        assert_eq!(documents.map(|document| document.unwrap().file_bytes).sum::<u64>(), total);
    }
}

#[test]
fn damaged_compressed_files_are_named_and_nothing_panics() {
    for (name, bytes) in [("a.jsonl.gz", twice(gzip)), ("a.jsonl.zst", twice(zstd))] {
        let cut = match texts(&[(name, &bytes[..bytes.len() - 3])]) {
            Err(error) => error.to_string(),
            Ok(texts) => panic!("{name}: {texts:?}"),
        };
        assert!(cut.contains(name) && cut.contains("ends early") && cut.contains("get or make the file anew"), "{cut}");
        assert_message(
            texts(&[(name, &[&b"plain text, not packed"[..], &bytes].concat())]),
            &[name, "cannot be unpacked"],
        );
        for length in 1..bytes.len() {
            let _ = texts(&[(name, &bytes[..length])]);
        }
    }
}

/// A kilobyte for a megabyte: a line or a text that is packed so tightly must not fill the memory.
#[test]
fn bombs_end_at_the_limits() {
    let zeros = vec![b' '; 65 << 20];
    for (name, bytes) in [("bomb.jsonl.gz", gzip(&zeros)), ("bomb.jsonl.zst", zstd(&zeros))] {
        assert!(bytes.len() < 1 << 20);
        assert_message(texts(&[(name, &bytes)]), &[name, ":1: ", "longer than 64 MiB"]);
    }
    // Members behind one another unpack as one text.
    let part = zstd(&vec![b'x'; 43 << 20]);
    assert_message(texts(&[("bomb.txt.zst", &part.repeat(6))]), &["bomb.txt.zst", "longer than 256 MiB", ".jsonl"]);
}

/// A Parquet file of rows (`None` is null) in groups, with a column of numbers before the texts.
fn parquet_file(column: &str, groups: &[&[Option<&str>]], properties: WriterProperties) -> Vec<u8> {
    let schema = format!("message rows {{ required int32 id; optional binary {column} (utf8); }}");
    let schema = Arc::new(parse_message_type(&schema).unwrap());
    let mut bytes = Vec::new();
    let mut writer = SerializedFileWriter::new(&mut bytes, schema, Arc::new(properties)).unwrap();
    for rows in groups {
        let mut group = writer.next_row_group().unwrap();
        let mut ids = group.next_column().unwrap().unwrap();
        let numbers: Vec<i32> = (0..rows.len() as i32).collect();
        ids.typed::<Int32Type>().write_batch(&numbers, None, None).unwrap();
        ids.close().unwrap();
        let mut texts = group.next_column().unwrap().unwrap();
        let values: Vec<ByteArray> = rows.iter().flatten().map(|text| ByteArray::from(*text)).collect();
        let levels: Vec<i16> = rows.iter().map(|row| row.is_some().into()).collect();
        texts.typed::<ByteArrayType>().write_batch(&values, Some(&levels), None).unwrap();
        texts.close().unwrap();
        group.close().unwrap();
    }
    writer.close().unwrap();
    bytes
}

fn properties(compression: parquet::basic::Compression) -> WriterProperties {
    WriterProperties::builder().set_compression(compression).set_data_page_row_count_limit(100).build()
}

#[test]
fn parquet_rows_are_documents_across_pages_and_groups() {
    use parquet::basic::{BrotliLevel, Compression, GzipLevel, ZstdLevel};
    let rows: Vec<String> =
        (0..1000).map(|i| if i % 3 == 0 { String::new() } else { format!(" = row {i} = \n") }).collect();
    let of = |range: std::ops::Range<usize>| rows[range].iter().map(|row| Some(row.as_str())).collect::<Vec<_>>();
    for compression in [
        Compression::UNCOMPRESSED,
        Compression::SNAPPY,
        Compression::GZIP(GzipLevel::default()),
        Compression::ZSTD(ZstdLevel::default()),
        Compression::BROTLI(BrotliLevel::default()),
        Compression::LZ4_RAW,
    ] {
        let bytes = parquet_file("text", &[&of(0..700), &of(700..1000)], properties(compression));
        let (_dir, paths) = files(&[("test-00000-of-00001.parquet", &bytes)]);
        let documents = read_all(&paths).unwrap();
        assert!(documents.iter().map(|document| &document.text).eq(&rows), "{compression}");
        assert!(documents[699].source.ends_with(".parquet:700"), "{}", documents[699].source);
        assert_eq!(documents.iter().map(|document| document.file_bytes).sum::<u64>(), bytes.len() as u64);
    }
}

#[test]
fn parquet_files_of_something_else_are_named() {
    let plain = || properties(parquet::basic::Compression::UNCOMPRESSED);
    let bytes = parquet_file("content", &[&[Some("x")]], plain());
    assert_message(texts(&[("a.parquet", &bytes)]), &["a.parquet", "no column \"text\"", "id, content"]);
    let bytes = parquet_file("text", &[&[Some("x"), None, Some("y")]], plain());
    assert_message(texts(&[("a.parquet", &bytes)]), &["a.parquet", "row 2", "null"]);
    let bytes = parquet_file("text", &[&[Some(""), Some("")]], plain());
    assert_message(texts(&[("a.parquet", &bytes)]), &["a.parquet", "no text"]);
    assert_message(texts(&[("a.parquet", b"PAR1 no")]), &["a.parquet", "not a readable Parquet file"]);
    assert_message(texts(&[("a.parquet.gz", &gzip(&bytes))]), &["a.parquet.gz", "not a supported kind"]);
}

/// Every byte of a file changed in two ways, and every shorter file: an error, or other rows, and never a panic.
#[test]
fn damaged_parquet_files_do_not_panic() {
    let rows: Vec<Option<&str>> = (0..20).map(|i| Some(["some text", "other text"][i % 2])).collect();
    let good = parquet_file("text", &[&rows], properties(parquet::basic::Compression::SNAPPY));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.parquet");
    let read = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        if let Err(error) = read_all(std::slice::from_ref(&path)) {
            assert!(error.to_string().contains("a.parquet") && !error.to_string().contains('\n'), "{error}");
        }
    };
    for at in 0..good.len() {
        for change in [0x01, 0xff] {
            let mut bytes = good.clone();
            bytes[at] ^= change;
            read(&bytes);
        }
        read(&good[..at]);
    }
}

#[test]
fn patterns_give_their_files_sorted_and_none_is_an_error() {
    let (dir, _) = files(&[("b.jsonl", b"x"), ("a.jsonl", b"x"), ("c.txt", b"x"), ("what[1].txt", b"x")]);
    std::fs::create_dir(dir.path().join("d.jsonl")).unwrap();
    let expand = |names: &[&str]| {
        let paths: Vec<PathBuf> = names.iter().map(|name| dir.path().join(name)).collect();
        let found = expand_patterns(&paths)?;
        Ok(found.iter().map(|p| p.strip_prefix(dir.path()).unwrap().to_str().unwrap().to_string()).collect::<Vec<_>>())
    };
    assert_eq!(expand(&["c.txt", "*.jsonl"]).unwrap(), ["c.txt", "a.jsonl", "b.jsonl"]);
    assert_eq!(expand(&["[ab].jsonl"]).unwrap(), ["a.jsonl", "b.jsonl"]);
    // A file's own name is no pattern.
    assert_eq!(expand(&["what[1].txt"]).unwrap(), ["what[1].txt"]);
    assert_message(expand(&["*.parquet"]), &["*.parquet", "matches no file"]);
    assert_message(expand(&["a[.txt"]), &["a[.txt", "is no pattern"]);
}
