//! PTX, as the virtual GPU of the tests reads it.

use super::bounded::within;

const MEMORY: usize = 256 << 20;

/// A text, its tree and its program.
pub fn ptx(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    within(MEMORY, || {
        if let Err(error) = virtual_gpu::lower::load(text) {
            assert!(error.line >= 1 && error.column >= 1);
        }
    });
}
