//! What stands for [matrix tiles](super) where the processor's kind knows none: nothing is ever multiplied by them.

use std::convert::Infallible;
use std::marker::PhantomData;

use super::Term;
use super::pass::{Block, Pass};
use crate::strips::Strip;

pub(super) const GROUP: usize = 1;
pub(super) const TASK_COLUMNS: usize = 0;
pub(super) const PASS_BLOCKS: usize = 1;
pub(super) const WEIGHTS_BYTES: usize = 0;

pub(super) fn workspace_len(_: usize, _: usize) -> usize {
    0
}

pub(super) fn pay(_: (usize, usize), _: &[Term<'_>]) -> bool {
    false
}

pub(super) struct Tokens<'a>(Infallible, PhantomData<&'a mut [f32]>);

impl<'a> Tokens<'a> {
    pub fn cut(_: &Pass, _: &[Term<'_>], _: usize, _: &'a mut [f32]) -> Option<Tokens<'a>> {
        None
    }

    pub fn sweep(&self, _: Strip, _: Option<Strip>, _: &Weights, _: bool, _: &mut [f32]) {
        match self.0 {}
    }
}

pub(super) struct Weights;

impl Weights {
    pub const fn new() -> Weights {
        Weights
    }

    pub fn begin(&mut self, _: impl ExactSizeIterator<Item = f32>) {}

    pub fn cut(&mut self, tokens: &Tokens<'_>, _: (usize, &Block), _: &[Term<'_>], _: (usize, usize), _: &mut [f32]) {
        match tokens.0 {}
    }
}
