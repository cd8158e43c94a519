//! `--tensorboard`: event files. A file is a sequence of TFRecords (length, masked CRC-32C of it, bytes, masked CRC-32C of them),
//! each an `Event` of `tensorflow/core/util/event.proto`, of which a handful of fields is all that curves need.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use engine::retrain::StepRecord;

use super::{Event, Listener, Place, now};

/// The event file of this process.
pub struct Board {
    file: File,
    /// Steps of a cycle: the curves go on over cycles.
    steps: usize,
}

impl Board {
    /// A new event file in `folder`, which is made where there is none. With `resumed`, TensorBoard is told to forget what files
    /// of the same run say of later steps.
    pub fn open(folder: &Path, resumed: Option<Place>, steps: usize) -> io::Result<Board> {
        fs::create_dir_all(folder)?;
        let name = format!("events.out.tfevents.{:.6}.{}.perp-engine", now(), std::process::id());
        let mut board = Board { file: File::create_new(folder.join(name))?, steps };
        let mut version = Message::event(0);
        version.text(3, "brain.Event:2");
        board.write(version)?;
        if let Some(resumed) = resumed {
            let mut start = Message::event(board.global(resumed) + 1);
            let mut session = Message::default();
            session.varint(1, 1); // SessionLog.status = START
            start.message(7, session);
            board.write(start)?;
        }
        Ok(board)
    }

    fn global(&self, at: Place) -> i64 {
        (at.cycle.saturating_sub(1) * self.steps + at.step) as i64
    }

    fn write(&mut self, event: Message) -> io::Result<()> {
        self.file.write_all(&record(&event.0))
    }

    fn scalars(&mut self, at: Place, values: &[(&str, f64)]) -> io::Result<()> {
        let mut summary = Message::default();
        for (tag, value) in values {
            let mut scalar = Message::default();
            scalar.text(1, tag);
            scalar.float(2, *value as f32); // Summary.Value.simple_value
            summary.message(1, scalar);
        }
        let mut event = Message::event(self.global(at));
        event.message(5, summary);
        self.write(event)
    }
}

impl Listener for Board {
    fn hear(&mut self, at: Place, event: &Event<'_>) -> io::Result<()> {
        match event {
            Event::Step { record: StepRecord { loss, lr, grad_norm, tokens, seconds, .. }, memory_bytes } => self
                .scalars(
                    at,
                    &[
                        ("train/loss", *loss),
                        ("train/learning_rate", *lr),
                        ("train/gradient_norm", *grad_norm),
                        ("train/tokens_per_second", *tokens as f64 / seconds),
                        ("train/memory_bytes", *memory_bytes as f64),
                    ],
                ),
            Event::Eval { name, perplexity } => self.scalars(at, &[(&format!("perplexity/{name}"), *perplexity)]),
            Event::Config { .. } | Event::End { .. } => Ok(()),
        }
    }
}

/// A protocol buffer's bytes.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    /// An `Event` of now: wall_time = 1, step = 2.
    fn event(step: i64) -> Message {
        let mut event = Message::default();
        event.key(1, 1);
        event.0.extend(now().to_le_bytes());
        event.varint(2, step as u64);
        event
    }

    fn key(&mut self, field: u64, wire: u64) {
        self.bare_varint(field << 3 | wire);
    }

    fn bare_varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn varint(&mut self, field: u64, value: u64) {
        self.key(field, 0);
        self.bare_varint(value);
    }

    fn float(&mut self, field: u64, value: f32) {
        self.key(field, 5);
        self.0.extend(value.to_le_bytes());
    }

    fn bytes(&mut self, field: u64, bytes: &[u8]) {
        self.key(field, 2);
        self.bare_varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    fn text(&mut self, field: u64, text: &str) {
        self.bytes(field, text.as_bytes());
    }

    fn message(&mut self, field: u64, message: Message) {
        self.bytes(field, &message.0);
    }
}

/// A TFRecord.
fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    [&length[..], &masked(&length).to_le_bytes(), data, &masked(data).to_le_bytes()].concat()
}

/// Masked, because a CRC of bytes that hold a CRC is no good check.
fn masked(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_rfc_3720_masked() {
        // RFC 3720 B.4: 32 zeros give aa 36 91 8a.
        assert_eq!(crc32c::crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(masked(&[0; 32]), 0x8a91_36aa_u32.rotate_right(15).wrapping_add(0xa282_ead8));
    }

    #[test]
    fn bytes_are_those_that_protobuf_writes() {
        let mut value = Message::default();
        value.text(1, "a");
        value.float(2, 1.5);
        let mut summary = Message::default();
        summary.message(1, value);
        summary.varint(2, 300);
        assert_eq!(summary.0, [0x0a, 8, 0x0a, 1, b'a', 0x15, 0, 0, 0xc0, 0x3f, 0x10, 0xac, 0x02]);
    }
}
