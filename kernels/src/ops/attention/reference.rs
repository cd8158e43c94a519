//! Attention in f64, one query and one key at a time.

use super::Attention;

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Every query of every head.
fn queries(a: &Attention) -> impl Iterator<Item = Query> + '_ {
    let group = a.heads / a.kv_heads.max(1);
    (0..a.batch).flat_map(move |b| {
        (0..a.heads).flat_map(move |h| {
            (0..a.tokens).map(move |i| {
                let first = a.window.map_or(0, |window| (i + 1).saturating_sub(window));
                let at = |row: usize, heads: usize, head: usize| ((b * a.tokens + row) * heads + head) * a.head_dim;
                Query {
                    q: at(i, a.heads, h),
                    lse: (b * a.heads + h) * a.tokens + i,
                    keys: (first..=i).map(|j| at(j, a.kv_heads, h / group)).collect(),
                }
            })
        })
    })
}

/// A query: where its features start in q, its place in lse, and where the features of its visible keys start in k and v.
struct Query {
    q: usize,
    lse: usize,
    keys: Vec<usize>,
}

/// Output and log-sum-exp, laid out as [`forward`](super::forward) says.
pub fn forward(a: &Attention, q: &[f64], k: &[f64], v: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let dim = a.head_dim;
    let (mut out, mut lse) = (vec![0.0; q.len()], vec![0.0; a.batch * a.heads * a.tokens]);
    for query in queries(a) {
        let scores: Vec<f64> =
            query.keys.iter().map(|&key| f64::from(a.scale) * dot(&q[query.q..][..dim], &k[key..][..dim])).collect();
        let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        lse[query.lse] = largest + scores.iter().map(|s| (s - largest).exp()).sum::<f64>().ln();
        for (s, &key) in scores.iter().zip(&query.keys) {
            for d in 0..dim {
                out[query.q + d] += (s - lse[query.lse]).exp() * v[key + d];
            }
        }
    }
    (out, lse)
}

/// dq, dk and dv.
pub fn backward(a: &Attention, d_out: &[f64], q: &[f64], k: &[f64], v: &[f64]) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let (dim, scale) = (a.head_dim, f64::from(a.scale));
    let (out, lse) = forward(a, q, k, v);
    let (mut dq, mut dk, mut dv) = (vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; v.len()]);
    for query in queries(a) {
        let head = query.q..query.q + dim;
        let delta = dot(&d_out[head.clone()], &out[head.clone()]);
        for &key in &query.keys {
            let p = (scale * dot(&q[head.clone()], &k[key..][..dim]) - lse[query.lse]).exp();
            let ds = p * (dot(&d_out[head.clone()], &v[key..][..dim]) - delta);
            for d in 0..dim {
                dv[key + d] += p * d_out[query.q + d];
                dk[key + d] += scale * ds * q[query.q + d];
                dq[query.q + d] += scale * ds * k[key + d];
            }
        }
    }
    (dq, dk, dv)
}
