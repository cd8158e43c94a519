//! Attention, forward and backward. That the reference's gradients are derivatives is shown by its own tests.

use kernels::ops::attention::{Attention, Gradients, Precision, backward, forward, reference};
use kernels::{Buffer, DType, Device};

use crate::support::{assert_within, dot, download, gpu, random, rounding, upload};

/// q, k, v and the output's gradient.
struct Operands {
    q: Vec<f64>,
    k: Vec<f64>,
    v: Vec<f64>,
    d_out: Vec<f64>,
}

impl Operands {
    fn new(dtype: DType, a: &Attention) -> Operands {
        let (rows, queries, keys) = (a.batch * a.tokens, a.heads * a.head_dim, a.kv_heads * a.head_dim);
        Operands {
            q: random(dtype, rows * queries, 1),
            k: random(dtype, rows * keys, 2),
            v: random(dtype, rows * keys, 3),
            d_out: random(dtype, rows * queries, 4),
        }
    }

    /// Output, log-sum-exp, dq, dk and dv.
    fn reference(&self, a: &Attention) -> [Vec<f64>; 5] {
        let (out, lse) = reference::forward(a, &self.q, &self.k, &self.v);
        let (dq, dk, dv) = reference::backward(a, &self.d_out, &self.q, &self.k, &self.v);
        [out, lse, dq, dk, dv]
    }

    /// How far from the reference's the kernels' results may be for what is rounded to `unit` on the way, to first order:
    /// p before p·v and pᵀ·dout, out before δ = dout·out, ds before ds·k and dsᵀ·q. In f32 nothing is.
    ///
    /// A p that is off by unit·p changes out by unit·Σ p|v|. This and out's own rounding change δ, and δ all ds of the query by
    /// p|δ's change|, to which comes unit·|ds|.
    fn roundings(&self, a: &Attention, unit: f64, [out, lse, ..]: &[Vec<f64>; 5]) -> [Vec<f64>; 5] {
        let (dim, scale, group) = (a.head_dim, f64::from(a.scale), a.heads / a.kv_heads);
        let mut allowed = [&self.q, lse, &self.q, &self.k, &self.k].map(|like| vec![0.0; like.len()]);
        let [d_out_by, _, d_q, d_k, d_v] = &mut allowed;
        for (b, h, i) in
            (0..a.batch).flat_map(|b| (0..a.heads).flat_map(move |h| (0..a.tokens).map(move |i| (b, h, i))))
        {
            let at = ((b * a.tokens + i) * a.heads + h) * dim;
            let query = at..at + dim;
            let first = a.window.map_or(0, |window| (i + 1).saturating_sub(window));
            let keys: Vec<(usize, f64)> = (first..=i)
                .map(|j| {
                    let key = ((b * a.tokens + j) * a.kv_heads + h / group) * dim;
                    let score = scale * dot(&self.q[query.clone()], &self.k[key..][..dim]);
                    (key, (score - lse[(b * a.heads + h) * a.tokens + i]).exp())
                })
                .collect();
            for &(key, p) in &keys {
                for d in 0..dim {
                    d_out_by[at + d] += unit * p * self.v[key + d].abs();
                    d_v[key + d] += unit * p * self.d_out[at + d].abs();
                }
            }
            let delta = dot(&self.d_out[query.clone()], &out[query.clone()]);
            let delta_by: f64 = query.map(|x| self.d_out[x].abs() * (unit * out[x].abs() + d_out_by[x])).sum();
            for &(key, p) in &keys {
                let ds = p * (dot(&self.d_out[at..][..dim], &self.v[key..][..dim]) - delta);
                let ds_by = unit * ds.abs() + p * delta_by;
                for d in 0..dim {
                    d_q[at + d] += scale * ds_by * self.k[key + d].abs();
                    d_k[key + d] += scale * ds_by * self.q[at + d].abs();
                }
            }
        }
        allowed
    }
}

/// Output, log-sum-exp, dq, dk and dv.
pub fn pass(device: &Device, dtype: DType, a: &Attention) -> [Buffer; 5] {
    let operands = Operands::new(dtype, a);
    let [q, k, v, d_out] =
        [&operands.q, &operands.k, &operands.v, &operands.d_out].map(|values| upload(device, dtype, values));
    let (out, lse) = forward(a, &q, &k, &v).unwrap();
    let Gradients { dq, dk, dv } = backward(a, d_out, &q, &k, &v, &out, &lse).unwrap();
    [out, lse, dq, dk, dv]
}

pub fn attention(batch: usize, tokens: usize, (heads, kv_heads): (usize, usize), head_dim: usize) -> Attention {
    let scale = 1.0 / (head_dim as f32).sqrt();
    Attention { batch, tokens, heads, kv_heads, head_dim, scale, window: None, precision: Precision::F32 }
}

/// Beside `roundings`, sums in f32. A score is a sum of hd products below 1 that is then divided by √hd: its roundings, each of
/// 2⁻²³ (tensor cores cut off) of a running sum of some √hd, come to hd·2⁻²³, by which p is off, too. Another sum of as many
/// terms as keys are seen, or see, has as many roundings more. Those before dq and dk sum ds, up to some √hd.
fn equal_the_reference(dtype: DType, a: &Attention) {
    let operands = Operands::new(dtype, a);
    let got = pass(&gpu(), dtype, a);
    let want = operands.reference(a);
    let unit = if dtype == DType::F32 { 0.0 } else { rounding(dtype) };
    let roundings = operands.roundings(a, unit, &want);
    let terms = a.head_dim + a.tokens * a.heads / a.kv_heads + 32;
    let sums = 2f64.powi(-23) * terms as f64;
    for (((name, got), want), by) in ["out", "lse", "dq", "dk", "dv"].iter().zip(&got).zip(&want).zip(&roundings) {
        // The gradients of keys are sums over all that see them.
        let largest = want.iter().fold(1.0f64, |most, x| most.max(x.abs()));
        let what = format!("{name} for {a:?} in {dtype}");
        assert_within(&what, got, want, |i| rounding(got.dtype()) * want[i].abs() + by[i] + sums * largest);
    }
}

/// Tiles have 128 queries or keys by 32 or 64 of the others, in f32 16 by 32: shapes inside one, with edges in every
/// direction, of several; heads between the sizes that there are kernels for; every grouping of heads.
#[test]
#[ignore = "needs a GPU"]
fn gpu_forward_and_gradients_equal_the_reference_in_any_shape() {
    let shapes = [
        attention(1, 1, (1, 1), 8),
        attention(3, 17, (6, 3), 24),
        attention(2, 37, (4, 1), 64),
        attention(1, 131, (2, 2), 80),
        attention(2, 65, (4, 2), 72),
        attention(1, 200, (2, 1), 96),
        attention(1, 129, (3, 1), 128),
        attention(2, 33, (1, 1), 120),
    ];
    for a in shapes {
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            equal_the_reference(dtype, &a);
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_many_tiles_equal_the_reference() {
    for dtype in [DType::F32, DType::BF16] {
        equal_the_reference(dtype, &attention(1, 419, (2, 1), 64));
    }
}

/// Windows that begin within a tile, at its edge and within a warp's rows, and those that hide nothing.
#[test]
#[ignore = "needs a GPU"]
fn gpu_windows_hide_what_lies_before_them() {
    for (dim, window) in [(64, 1), (64, 33), (64, 128), (128, 70), (80, 200), (16, 1000)] {
        for dtype in [DType::F32, DType::BF16] {
            equal_the_reference(dtype, &Attention { window: Some(window), ..attention(1, 290, (2, 1), dim) });
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_large_scores_neither_overflow_nor_underflow_the_softmax() {
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        for scale in [100.0, 1e-30] {
            let results = pass(&gpu(), dtype, &Attention { scale, ..attention(1, 70, (1, 1), 16) });
            assert!(results.iter().flat_map(download).all(f64::is_finite), "{dtype}");
        }
    }
}

/// Equal scores are equal weights, in whatever tile they lie: a query's output is the share of its keys whose values are 1.
///
/// In powers of two the scores are 19664.0556, which f32 rounds by 0.00097. Who multiplies what came before a tile by that much
/// a tile, as a fused multiply-add does, is off by 0.3 % after 10 tiles of 64 keys, or 20 of 32 in f32. Allowed are the roundings
/// of a weight and of out, 0.1 % in f16, and of a sum of 640 weights.
#[test]
#[ignore = "needs a GPU"]
fn gpu_equal_scores_weigh_the_same_in_every_tile() {
    let a = Attention { scale: 1041.0, ..attention(1, 640, (1, 1), 8) };
    let len = a.tokens * a.head_dim;
    let values: Vec<f64> = (0..len).map(|i| if i < len / 2 { 0.0 } else { 1.0 }).collect();
    let want: Vec<f64> = (0..len)
        .map(|i| i / a.head_dim + 1)
        .map(|keys| keys.saturating_sub(a.tokens / 2) as f64 / keys as f64)
        .collect();
    for dtype in [DType::F32, DType::F16] {
        let [q, k, v] = [&vec![1.2109375; len], &vec![1.3515625; len], &values].map(|x| upload(&gpu(), dtype, x));
        let (out, _) = forward(&a, &q, &k, &v).unwrap();
        let by = 2.0 * rounding(dtype) + 2f64.powi(-23) * a.tokens as f64;
        assert_within(&format!("out in {dtype}"), &out, &want, |i| by * want[i]);
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_attention_has_the_same_bits_every_time() {
    for dtype in [DType::F32, DType::BF16] {
        let run = || pass(&gpu(), dtype, &attention(2, 150, (4, 2), 64)).map(|buffer| download(&buffer));
        assert_eq!(run(), run());
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_no_tokens_give_no_output() {
    for a in [attention(0, 5, (2, 1), 64), attention(2, 0, (2, 1), 64)] {
        assert!(pass(&gpu(), DType::BF16, &a).iter().all(Buffer::is_empty));
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_attention_without_a_kernel_is_refused() {
    let device = gpu();
    let error = |a: Attention, dtype: [DType; 2]| {
        let operands = Operands::new(dtype[0], &a);
        let [q, k, v] =
            [(&operands.q, 0), (&operands.k, 1), (&operands.v, 1)].map(|(x, i)| upload(&device, dtype[i], x));
        forward(&a, &q, &k, &v).unwrap_err().to_string()
    };
    let message = |a| error(a, [DType::BF16; 2]);
    let want = |head| format!("attention_forward: heads of {head} features, a GPU takes multiples of 8 up to 128");
    for head in [4, 20, 136] {
        assert_eq!(message(attention(1, 2, (1, 1), head)), want(head));
    }
    for scale in [0.0, -1.0, 1e-39, f32::MAX] {
        let want = format!("attention_forward: the scale is {scale}, a GPU takes normal numbers above 0");
        assert_eq!(message(Attention { scale, ..attention(1, 2, (1, 1), 8) }), want);
    }
    let mixed = error(attention(1, 2, (1, 1), 8), [DType::F16, DType::BF16]);
    assert_eq!(mixed, "attention_forward: k is bf16, expected f16");
}
