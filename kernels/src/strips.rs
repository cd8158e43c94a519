//! How the CPU lays out activations: in strips of tokens, each strip features × tokens.
//!
//! A matrix of n tokens and F features is cut into strips of [`STRIP`] tokens, the last with what is left. A strip is stored
//! after the one before it, feature by feature, the tokens of a feature side by side. So a vector register holds one feature
//! of sixteen tokens, which is what every operation here wants: a product broadcasts a weight against it, a norm sums down
//! the features with no sum across lanes, and what one product writes the next reads where it stands. The elements are
//! those of the row-major matrix in another order, so their number, and every operation that goes element by element, are
//! the same.

use std::marker::PhantomData;
use std::ops::Range;

use rayon::prelude::*;

use crate::simd::{F32x16, Isa, LANES, transpose};
use crate::simd_fn;

/// Tokens of a strip: two columns of a product over them, and one row of them, fill the registers of AVX-512.
pub const STRIP: usize = 6 * LANES;

/// One strip of a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Strip {
    /// Its first token.
    pub first: usize,
    /// Its tokens.
    pub width: usize,
}

/// The strips of `tokens` tokens.
pub fn strips(tokens: usize) -> impl ExactSizeIterator<Item = Strip> {
    (0..tokens.div_ceil(STRIP)).map(move |index| strip_of(tokens, index * STRIP))
}

/// The strip that holds `token` of `tokens`.
fn strip_of(tokens: usize, token: usize) -> Strip {
    let first = token / STRIP * STRIP;
    Strip { first, width: STRIP.min(tokens - first) }
}

/// Tokens that lie in one strip, as a range of its lanes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The strip.
    pub strip: Strip,
    /// The tokens, counted from the strip's first.
    pub lanes: Range<usize>,
}

/// The tokens `range` of `tokens`, strip by strip.
pub fn pieces(tokens: usize, range: Range<usize>) -> impl Iterator<Item = Piece> {
    let mut next = range.start;
    std::iter::from_fn(move || {
        (next < range.end).then(|| {
            let strip = strip_of(tokens, next);
            let end = range.end.min(strip.first + strip.width);
            let lanes = next - strip.first..end - strip.first;
            next = end;
            Piece { strip, lanes }
        })
    })
}

/// All of `tokens` in pieces of at most `lanes` lanes: tasks that are finer than strips.
pub fn lane_groups(tokens: usize, lanes: usize) -> impl Iterator<Item = Piece> {
    strips(tokens).flat_map(move |strip| {
        (0..strip.width).step_by(lanes).map(move |at| Piece { strip, lanes: at..strip.width.min(at + lanes) })
    })
}

/// Some features of a matrix in strips.
#[derive(Clone, Copy, Debug)]
pub struct Strips<'a> {
    data: &'a [f32],
    tokens: usize,
    /// Features of the whole matrix.
    features: usize,
    /// The first feature of this part.
    first: usize,
}

impl<'a> Strips<'a> {
    /// A matrix of `tokens` × `features`.
    ///
    /// # Panics
    /// If `data` has another number of elements.
    pub fn new(data: &'a [f32], tokens: usize, features: usize) -> Strips<'a> {
        assert_eq!(data.len(), tokens * features, "a matrix in strips has tokens·features elements");
        Strips { data, tokens, features, first: 0 }
    }

    /// The same matrix from feature `first` on.
    pub fn from_feature(self, first: usize) -> Strips<'a> {
        Strips { first: self.first + first, ..self }
    }

    /// Tokens.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// The features of a strip from `feature` on, each `strip.width` elements.
    #[inline(always)]
    pub fn rows(&self, strip: Strip, feature: usize) -> &'a [f32] {
        let start = strip.first * self.features;
        &self.data[start + (self.first + feature) * strip.width..start + self.features * strip.width]
    }

    /// One feature of some lanes of a strip.
    #[inline(always)]
    pub fn row(&self, piece: &Piece, feature: usize) -> &'a [f32] {
        &self.rows(piece.strip, feature)[piece.lanes.clone()]
    }

    /// Packs features `lanes` of tokens `k`, the features innermost: element (token p, feature i) goes to `out[p·width + i]`,
    /// zeros behind the features of each token.
    pub(crate) fn pack_features(&self, isa: Isa, lanes: Range<usize>, k: Range<usize>, width: usize, out: &mut [f32]) {
        let count = lanes.len();
        let mut at = 0;
        for piece in pieces(self.tokens, k) {
            let from = &self.rows(piece.strip, lanes.start)[piece.lanes.start..];
            let out = &mut out[at * width..][..piece.lanes.len() * width];
            transpose(isa, (count, piece.lanes.len()), from, piece.strip.width, out, width);
            if count < width {
                out.chunks_exact_mut(width).for_each(|row| row[count..].fill(0.0));
            }
            at += piece.lanes.len();
        }
    }
}

/// A matrix in strips whose parts belong to different tasks.
#[derive(Clone, Copy, Debug)]
pub struct SharedStrips<'a> {
    data: *mut f32,
    tokens: usize,
    features: usize,
    lifetime: PhantomData<&'a mut [f32]>,
}

// SAFETY: what hands out elements asks its callers for disjoint ones.
unsafe impl Send for SharedStrips<'_> {}
// SAFETY: as above.
unsafe impl Sync for SharedStrips<'_> {}

impl<'a> SharedStrips<'a> {
    /// A matrix of `tokens` × `features`.
    ///
    /// # Panics
    /// If `data` has another number of elements.
    pub fn new(data: &'a mut [f32], tokens: usize, features: usize) -> SharedStrips<'a> {
        assert_eq!(data.len(), tokens * features, "a matrix in strips has tokens·features elements");
        SharedStrips { data: data.as_mut_ptr(), tokens, features, lifetime: PhantomData }
    }

    /// One feature of some lanes of a strip.
    ///
    /// # Safety
    /// No one else uses these elements while the slice lives.
    #[inline(always)]
    pub unsafe fn row(&self, piece: &Piece, feature: usize) -> &'a mut [f32] {
        let Piece { strip, lanes } = piece;
        assert!(feature < self.features && lanes.end <= strip.width && strip.first + strip.width <= self.tokens);
        let at = strip.first * self.features + feature * strip.width + lanes.start;
        // SAFETY: inside the matrix by the assertion, and the caller's alone by the contract.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(at), lanes.len()) }
    }

    /// Where the first lane of one feature stands; the next features follow `strip.width` elements apart.
    pub fn pointer(&self, piece: &Piece, feature: usize) -> *mut f32 {
        let Piece { strip, lanes } = piece;
        assert!(feature < self.features && lanes.end <= strip.width && strip.first + strip.width <= self.tokens);
        // SAFETY: inside the matrix by the assertion.
        unsafe { self.data.add(strip.first * self.features + feature * strip.width + lanes.start) }
    }

    /// Some features of a whole strip.
    ///
    /// # Safety
    /// No one else uses these elements while the slice lives.
    pub unsafe fn rows(&self, strip: Strip, features: Range<usize>) -> &'a mut [f32] {
        assert!(features.end <= self.features && strip.first + strip.width <= self.tokens);
        let at = strip.first * self.features + features.start * strip.width;
        // SAFETY: inside the matrix by the assertion, and the caller's alone by the contract.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(at), features.len() * strip.width) }
    }
}

/// Lanes that an operation takes through all features at a time: two vectors, the two cache lines that come together.
pub const GROUP: usize = 2 * LANES;

/// [`GROUP`] lanes of one feature.
#[derive(Clone, Copy, Debug)]
pub struct Lanes(pub [F32x16; 2]);

impl Lanes {
    /// All lanes `x`.
    #[inline(always)]
    pub fn splat(x: f32) -> Lanes {
        Lanes([F32x16::splat(x); 2])
    }

    /// At most [`GROUP`] elements; the lanes past the end are zero.
    #[inline(always)]
    pub fn load(x: &[f32]) -> Lanes {
        if x.len() == GROUP {
            return Lanes([F32x16::load(x), F32x16::load(&x[LANES..])]);
        }
        let (first, second) = x.split_at(x.len().min(LANES));
        Lanes([F32x16::load_partial(first, 0.0), F32x16::load_partial(second, 0.0)])
    }

    /// Writes as many lanes as `x` has room for.
    #[inline(always)]
    pub fn store(self, x: &mut [f32]) {
        if x.len() == GROUP {
            self.0[0].store(x);
            self.0[1].store(&mut x[LANES..]);
            return;
        }
        let (first, second) = x.split_at_mut(x.len().min(LANES));
        self.0[0].store_partial(first);
        self.0[1].store_partial(second);
    }

    /// `f` of each vector.
    #[inline(always)]
    pub fn map(self, f: impl Fn(F32x16) -> F32x16) -> Lanes {
        Lanes([f(self.0[0]), f(self.0[1])])
    }

    /// `f` of each pair of vectors.
    #[inline(always)]
    pub fn zip(self, other: Lanes, f: impl Fn(F32x16, F32x16) -> F32x16) -> Lanes {
        Lanes([f(self.0[0], other.0[0]), f(self.0[1], other.0[1])])
    }
}

/// Features that one task sums over tokens: two cache lines of sums at least, so that tasks share none.
pub const SUMMED: usize = 2 * LANES;

/// `out[j] += Σ` over tokens of feature j.
pub fn add_token_sums(isa: Isa, x: Strips<'_>, out: &mut [f32]) {
    out.par_chunks_mut(SUMMED).enumerate().for_each(|(chunk, out)| {
        for strip in strips(x.tokens()) {
            add_row_sums(isa, x.rows(strip, chunk * SUMMED), strip.width, out);
        }
    });
}

simd_fn! {
    /// out[j] += Σ_i rows[j·width + i]
    fn add_row_sums(rows: &[f32], width: usize, out: &mut [f32]) {
        for (out, row) in out.iter_mut().zip(rows.chunks_exact(width)) {
            let vectors = row.chunks_exact(LANES);
            let rest = F32x16::load_partial(vectors.remainder(), 0.0);
            *out += vectors.fold(rest, |sum, x| sum.add(F32x16::load(x))).sum();
        }
    }
}

/// The row-major matrix `[tokens, features]` in strips.
pub fn from_rows<T: Copy + Default>(rows: &[T], tokens: usize, features: usize) -> Vec<T> {
    let mut out = vec![T::default(); rows.len()];
    for (token, row) in rows.chunks_exact(features.max(1)).enumerate().take(tokens) {
        let strip = strip_of(tokens, token);
        for (feature, x) in row.iter().enumerate() {
            out[strip.first * features + feature * strip.width + token - strip.first] = *x;
        }
    }
    out
}

/// The matrix in strips as row-major `[tokens, features]`.
pub fn to_rows<T: Copy + Default>(data: &[T], tokens: usize, features: usize) -> Vec<T> {
    let mut out = vec![T::default(); data.len()];
    for (token, row) in out.chunks_exact_mut(features.max(1)).enumerate().take(tokens) {
        let strip = strip_of(tokens, token);
        for (feature, x) in row.iter_mut().enumerate() {
            *x = data[strip.first * features + feature * strip.width + token - strip.first];
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_go_to_strips_and_back() {
        for (tokens, features) in [(1, 1), (96, 3), (97, 5), (300, 7), (0, 4), (5, 0)] {
            let rows: Vec<u32> = (0..(tokens * features) as u32).collect();
            let data = from_rows(&rows, tokens, features);
            assert_eq!(to_rows(&data, tokens, features), rows, "{tokens}×{features}");
        }
        // Two strips of three features: the second begins after all features of the first.
        let data = from_rows(&(0..300).collect::<Vec<u32>>(), 100, 3);
        assert_eq!(data[..3], [0, 3, 6]);
        assert_eq!(data[96], 1);
        assert_eq!(data[288..], [288, 291, 294, 297, 289, 292, 295, 298, 290, 293, 296, 299]);
    }

    #[test]
    fn a_range_of_tokens_falls_into_pieces() {
        let got: Vec<_> = pieces(250, 90..210).map(|p| (p.strip.first, p.strip.width, p.lanes)).collect();
        assert_eq!(got, [(0, 96, 90..96), (96, 96, 0..96), (192, 58, 0..18)]);
        assert_eq!(lane_groups(100, 64).map(|p| p.lanes.len()).collect::<Vec<_>>(), [64, 32, 4]);
    }
}
