//! How LayerNorm and RMSNorm lay rows over threads and blocks: the host's side of norm.cuh.

use crate::device::{Buffer, Category, DType, Device, Gpu, Launch, Source};
use crate::error::{Error, Result};

/// As in norm.cuh.
const MAX_THREADS: usize = 640;
/// Blocks of forward that an SM holds: 48 registers a thread.
const FORWARD_BLOCKS_PER_SM: usize = 2;
/// A block of forward takes rows of so many times the bytes of the parameters that it reads.
const FORWARD_SHARE: usize = 13;
/// A block of backward takes rows of so many times the bytes of its parts of the gradients, which are written and read,
/// and of its weight.
const BACKWARD_SHARE: usize = 16;
/// Blocks of backward at most: two for each SM of an A100.
const BACKWARD_BLOCKS: usize = 216;

/// How rows are read, as in the kernels' names.
pub(in crate::ops) struct Layout {
    dtype: DType,
    cols: usize,
    /// 2: a weight and a bias; 1: a weight.
    parameters: usize,
    /// By vectors of 16 bytes.
    pub whole: bool,
    /// Threads of a team, which takes a row.
    threads: usize,
    /// Teams of a block.
    teams: usize,
    /// Columns a thread.
    columns: usize,
}

impl Layout {
    /// The layout of rows of `cols` features.
    ///
    /// # Errors
    /// Rows longer than registers hold.
    pub fn of(op: &'static str, dtype: DType, cols: usize, parameters: usize) -> Result<Layout> {
        let vector = 16 / dtype.size();
        let whole = cols.is_multiple_of(vector);
        let columns = if whole { 2 * vector } else { 8 };
        let threads = cols.div_ceil(columns).next_multiple_of(32);
        if threads > MAX_THREADS {
            let most = MAX_THREADS * columns;
            return Err(Error::Domain {
                op,
                reason: format!("rows of {cols} features, a GPU takes {most} of {dtype}"),
            });
        }
        Ok(Layout { dtype, cols, parameters, whole, threads, teams: MAX_THREADS / threads, columns })
    }

    /// Columns of a parameter as the kernels lay them out: at least a row's.
    fn places(&self) -> usize {
        self.threads * self.columns
    }

    /// Elements of a vector.
    fn vector(&self) -> usize {
        if self.whole { 16 / self.dtype.size() } else { 1 }
    }

    /// Rows whose traffic, `arrays` elements a column, is `share` times `bytes` a column.
    fn rows_for(&self, share: usize, bytes: usize, arrays: usize) -> usize {
        (share * bytes).div_ceil(arrays * self.dtype.size()).max(self.teams)
    }

    /// Blocks of backward for `rows` rows, whatever the GPU.
    fn backward_blocks(&self, rows: usize) -> usize {
        rows.div_ceil(self.rows_for(BACKWARD_SHARE, 8 * self.parameters + 4, 3)).min(BACKWARD_BLOCKS)
    }

    fn launch<'a>(
        &self,
        gpu: &'a Gpu,
        source: &'static Source,
        kernel: &'static str,
        blocks: usize,
    ) -> Result<Launch<'a>> {
        let launch = gpu.launch(source, kernel)?.grid([blocks, 1, 1]).block([self.threads, self.teams, 1]);
        Ok(launch.shared(self.parameters * self.places() * 4))
    }

    /// The launch of forward over `rows` rows; its arguments are to come.
    pub fn forward<'a>(
        &self,
        gpu: &'a Gpu,
        source: &'static Source,
        kernel: &'static str,
        rows: usize,
    ) -> Result<Launch<'a>> {
        let blocks = rows.div_ceil(self.rows_for(FORWARD_SHARE, 4 * self.parameters, 2));
        self.launch(gpu, source, kernel, blocks.min(gpu.multiprocessors() * FORWARD_BLOCKS_PER_SM))
    }

    /// The launch of backward over `rows` rows; its arguments are to come.
    pub fn backward<'a>(
        &self,
        gpu: &'a Gpu,
        source: &'static Source,
        kernel: &'static str,
        rows: usize,
    ) -> Result<Launch<'a>> {
        self.launch(gpu, source, kernel, self.backward_blocks(rows))
    }

    /// Each block's part of the parameters' gradients, `[blocks, parameters, places]`; empty where none is wanted.
    pub fn partials(&self, device: &Device, rows: usize, wanted: bool) -> Result<Buffer> {
        let len = if wanted { self.backward_blocks(rows) * self.parameters * self.places() } else { 0 };
        device.alloc(Category::Workspace, DType::F32, len)
    }

    /// The launch that adds the parts up; the gradients are to come as arguments.
    pub fn sum<'a>(
        &self,
        gpu: &'a Gpu,
        source: &'static Source,
        kernel: &'static str,
        rows: usize,
        partials: &Buffer,
    ) -> Result<Launch<'a>> {
        Ok(gpu
            .launch(source, kernel)?
            .grid([self.places().div_ceil(32), self.parameters, 1])
            .block([32, 8, 1])
            .read(partials)
            .dimension("blocks", self.backward_blocks(rows))
            .dimension("places", self.places())
            .dimension("threads", self.threads)
            .dimension("elements of a vector", self.vector())
            .dimension("features", self.cols))
    }
}
