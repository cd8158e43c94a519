//! Linear layers as the formulas say, in f64.

/// Every operand of the contract, dense.
pub struct Operands<'a> {
    /// Rows of x.
    pub n: usize,
    /// Output features.
    pub rows: usize,
    /// Input features.
    pub cols: usize,
    /// Rank of the adapter; zero for none.
    pub rank: usize,
    /// α/r.
    pub scale: f64,
    /// W `[rows, cols]`.
    pub w: &'a [f64],
    /// A `[rank, cols]`.
    pub a: &'a [f64],
    /// B `[rows, rank]`.
    pub b: &'a [f64],
    /// `[rows]`.
    pub bias: &'a [f64],
}

impl Operands<'_> {
    /// W + s·B·A.
    fn effective(&self, row: usize, col: usize) -> f64 {
        let update: f64 = (0..self.rank).map(|r| self.b[row * self.rank + r] * self.a[r * self.cols + col]).sum();
        self.w[row * self.cols + col] + self.scale * update
    }

    /// An adapter inside the weight instead, where `kept` says that W has an entry: w + s·p, or w·p where `scaled`.
    pub fn adapted(&self, kept: &[bool], scaled: bool) -> Vec<f64> {
        (0..self.rows * self.cols)
            .map(|i| {
                let (row, col) = (i / self.cols, i % self.cols);
                let p: f64 = (0..self.rank).map(|r| self.b[row * self.rank + r] * self.a[r * self.cols + col]).sum();
                match (kept[i], scaled) {
                    (false, _) => 0.0,
                    (true, true) => self.w[i] * p,
                    (true, false) => self.w[i] + self.scale * p,
                }
            })
            .collect()
    }

    /// y `[n, rows]`.
    pub fn forward(&self, x: &[f64]) -> Vec<f64> {
        let mut y = vec![0.0; self.n * self.rows];
        for i in 0..self.n {
            for row in 0..self.rows {
                let sum: f64 = (0..self.cols).map(|col| x[i * self.cols + col] * self.effective(row, col)).sum();
                y[i * self.rows + row] = self.bias[row] + sum;
            }
        }
        y
    }
}
