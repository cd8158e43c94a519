//! The header in front of a page, read before the library reads it: what stands in it decides how much memory the library takes.
//!
//! It is a struct of Thrift's compact protocol (`PageHeader` of parquet-format's parquet.thrift). The library takes the fields
//! that it knows for what they should be, whatever type their own byte names; so does this reader refuse another type, and both
//! see the same.

use std::io::{self, Read};

/// What a page says of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageHeader {
    /// Bytes when it is unpacked.
    pub unpacked: i64,
    /// Bytes in the file.
    pub packed: i64,
    /// Bytes in front, of levels, that are never packed: of the second version's data pages.
    pub levels: i64,
    /// False where a page of the second version is not packed at all.
    pub is_packed: bool,
}

impl PageHeader {
    /// Reads one.
    ///
    /// # Errors
    /// The reader's, and a struct that is none of this kind.
    pub fn read(input: &mut impl Read) -> io::Result<PageHeader> {
        let mut header = PageHeader { is_packed: true, ..PageHeader::default() };
        Fields { input, depth: 0 }.read(&mut |fields, id, kind| {
            match id {
                2 => header.unpacked = fields.integer(kind)?,
                3 => header.packed = fields.integer(kind)?,
                1 | 4 => drop(fields.integer(kind)?),
                // The first version's data page: four integers. A dictionary: two, and a truth.
                5 => fields.inner(kind, &mut |fields, id, kind| match id {
                    1..=4 => fields.integer(kind).map(drop),
                    _ => fields.skip(kind),
                })?,
                6 => fields.inner(kind, &mut |fields, _, kind| fields.skip(kind))?,
                7 => fields.inner(kind, &mut |fields, id, kind| match id {
                    1 | 2 => fields.integer(kind).map(drop),
                    3 => truth(kind).map(drop),
                    _ => fields.skip(kind),
                })?,
                8 => {
                    header.levels = 0;
                    fields.inner(kind, &mut |fields, id, kind| {
                        match id {
                            5 | 6 => header.levels = header.levels.saturating_add(fields.integer(kind)?),
                            1..=4 => drop(fields.integer(kind)?),
                            7 => header.is_packed = truth(kind)?,
                            _ => fields.skip(kind)?,
                        }
                        Ok(())
                    })?;
                }
                _ => fields.skip(kind)?,
            }
            Ok(())
        })?;
        Ok(header)
    }
}

/// Types of the compact protocol.
const TRUE: u8 = 1;
const FALSE: u8 = 2;
const BYTE: u8 = 3;
const I32: u8 = 5;
const DOUBLE: u8 = 7;
const BINARY: u8 = 8;
const LIST: u8 = 9;
const SET: u8 = 10;
const MAP: u8 = 11;
const STRUCT: u8 = 12;

/// Structs in structs, which real headers have two of.
const DEEPEST: usize = 16;

fn odd(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("a page's header {what}"))
}

fn truth(kind: u8) -> io::Result<bool> {
    match kind {
        TRUE => Ok(true),
        FALSE => Ok(false),
        _ => Err(odd("has something for true or false")),
    }
}

/// The fields of a struct, as they come.
struct Fields<'a, R> {
    input: &'a mut R,
    depth: usize,
}

/// What is done with a field of this number and type.
type OnField<'a, 'b, R> = &'a mut dyn FnMut(&mut Fields<'b, R>, i16, u8) -> io::Result<()>;

impl<'b, R: Read> Fields<'b, R> {
    fn read(&mut self, on_field: OnField<'_, 'b, R>) -> io::Result<()> {
        let mut id: i16 = 0;
        loop {
            let head = self.byte()?;
            let kind = head & 0xf;
            if kind == 0 {
                return Ok(());
            }
            id = match head >> 4 {
                0 => i16::try_from(self.zigzag()?).map_err(|_| odd("numbers a field past all"))?,
                step => id.checked_add(i16::from(step)).ok_or_else(|| odd("numbers a field past all"))?,
            };
            on_field(self, id, kind)?;
        }
    }

    fn inner(&mut self, kind: u8, on_field: OnField<'_, 'b, R>) -> io::Result<()> {
        if kind != STRUCT {
            return Err(odd("has something else for a struct"));
        }
        self.deeper(|fields| fields.read(on_field))
    }

    fn deeper(&mut self, read: impl FnOnce(&mut Self) -> io::Result<()>) -> io::Result<()> {
        if self.depth == DEEPEST {
            return Err(odd("is nested too deep"));
        }
        self.depth += 1;
        let done = read(self);
        self.depth -= 1;
        done
    }

    fn integer(&mut self, kind: u8) -> io::Result<i64> {
        if kind != I32 {
            return Err(odd("has something else for a number"));
        }
        // The library keeps 32 bits.
        Ok(i64::from(self.zigzag()? as i32))
    }

    fn skip(&mut self, kind: u8) -> io::Result<()> {
        match kind {
            TRUE | FALSE => Ok(()),
            BYTE => self.byte().map(drop),
            4..=6 => self.varint().map(drop),
            DOUBLE => self.pass(8),
            BINARY => {
                let length = self.varint()?;
                self.pass(length)
            }
            // No header that a program writes has any.
            LIST | SET | MAP => Err(odd("has a list")),
            STRUCT => self.deeper(|fields| fields.read(&mut |fields, _, kind| fields.skip(kind))),
            _ => Err(odd("has a field of no type")),
        }
    }

    fn pass(&mut self, bytes: u64) -> io::Result<()> {
        let passed = io::copy(&mut self.input.by_ref().take(bytes), &mut io::sink())?;
        if passed == bytes { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }

    fn byte(&mut self) -> io::Result<u8> {
        let mut byte = [0];
        self.input.read_exact(&mut byte)?;
        Ok(byte[0])
    }

    fn varint(&mut self) -> io::Result<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(odd("has a number without an end"))
    }

    fn zigzag(&mut self) -> io::Result<i64> {
        let value = self.varint()?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }
}
