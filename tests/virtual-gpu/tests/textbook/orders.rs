//! What blocks tell one another: messages, locks, fences, waves, counters raised together.

use crate::gpu::{Gpu, Random};
use crate::params;

fn gpu() -> Gpu {
    Gpu::new(include_str!("../../programs/orders.ptx"))
}

#[test]
fn messages_through_a_ring() {
    let gpu = gpu();
    let n = 64 * 50 + 13;
    let x: Vec<i32> = (0..n).map(|i| i * 31 % 1000 - 500).collect();
    let (px, out, places) = (gpu.upload(&x), gpu.alloc::<i32>(n as usize), gpu.alloc::<i32>(8 * 64));
    let (sent, received) = (gpu.upload(&[0u32; 64]), gpu.upload(&[0u32; 64]));
    gpu.run("ring", 2, 64, params![px, out, n, places, sent, received]);
    assert_eq!(gpu.download::<i32>(out, n as usize), x.iter().map(|v| v * v).collect::<Vec<_>>());
}

#[test]
fn a_lock_that_serves_in_order() {
    let gpu = gpu();
    let (lock, state) = (gpu.upload(&[0u32; 2]), gpu.upload(&[0f64; 2]));
    let (blocks, warps, rounds) = (6u32, 3u32, 20u32);
    gpu.run("locked", blocks, 32 * warps, params![lock, state, rounds as i32]);
    let n = f64::from(blocks * warps * rounds);
    assert_eq!(gpu.download::<f64>(state, 2), [n, n * (n + 1.0) / 2.0]);
    assert_eq!(gpu.download::<u32>(lock, 2), [blocks * warps * rounds; 2]);
}

#[test]
fn the_last_block_finishes_the_sum() {
    let gpu = gpu();
    let n = 128 * 37 + 5;
    let x: Vec<f32> = (0..n).map(|i| (i % 7) as f32).collect();
    let (px, parts, finished, sum) = (gpu.upload(&x), gpu.alloc::<f32>(20), gpu.upload(&[0u32]), gpu.upload(&[0f32]));
    for _ in 0..2 {
        gpu.run("last_block", 20, 128, params![px, n, parts, finished, sum]);
        assert_eq!(gpu.download::<f32>(sum, 1), [x.iter().sum::<f32>()], "small integers add up exactly");
        assert_eq!(gpu.download::<u32>(finished, 1), [0], "the counter is ready for the next launch");
    }
}

#[test]
fn with_a_fence_between_one_of_two_sees_the_other() {
    let gpu = gpu();
    let rounds = 2000usize;
    let (flags, seen) = (gpu.upload(&vec![0i32; 2 * rounds]), gpu.alloc::<i32>(2 * rounds));
    gpu.run("both_look", 2, 32, params![flags, seen, rounds as i32]);
    assert!(gpu.download::<i32>(seen, 2 * rounds).chunks(2).all(|pair| pair != [0, 0]));
}

#[test]
fn a_table_filled_in_a_wave() {
    let gpu = gpu();
    let mut random = Random(41);
    let mut word = |len: usize| -> Vec<u8> { (0..len).map(|_| b'a' + (random.next() % 4) as u8).collect() };
    let (a, b) = (word(45), word(70));
    let pitch = b.len() + 1;
    let mut table = vec![0i32; (a.len() + 1) * pitch];
    (0..=a.len()).for_each(|r| table[r * pitch] = r as i32);
    (0..=b.len()).for_each(|c| table[c] = c as i32);
    let (pa, pb, pt) = (gpu.upload(&a), gpu.upload(&b), gpu.upload(&table));
    let blocks = b.len().div_ceil(32);
    let progress = gpu.upload(&vec![0u32; blocks]);
    let params = params![pa, a.len() as i32, pb, b.len() as i32, pt, progress];
    gpu.run("edit_distance", blocks as u32, 32, params);
    for r in 1..=a.len() {
        for c in 1..=b.len() {
            let change = table[(r - 1) * pitch + c - 1] + i32::from(a[r - 1] != b[c - 1]);
            table[r * pitch + c] = change.min(table[(r - 1) * pitch + c].min(table[r * pitch + c - 1]) + 1);
        }
    }
    assert_eq!(gpu.download::<i32>(pt, table.len()), table);
}

#[test]
fn counters_that_a_warp_raises_together() {
    let gpu = gpu();
    let (n, keys) = (700usize, 11usize);
    let key: Vec<u32> = (0..n as u32).map(|i| i * i % keys as u32).collect();
    let (pk, counts, place) = (gpu.upload(&key), gpu.upload(&vec![0u32; keys]), gpu.alloc::<u32>(n));
    let outcome = gpu.run("places_by_key", 6, 128, params![pk, n as i32, counts, place]);
    let (counts, place) = (gpu.download::<u32>(counts, keys), gpu.download::<u32>(place, n));
    for (k, count) in counts.iter().enumerate() {
        let mut own: Vec<u32> = (0..n).filter(|i| key[*i] as usize == k).map(|i| place[i]).collect();
        own.sort_unstable();
        assert_eq!(own, (0..*count).collect::<Vec<_>>(), "key {k}: each place is taken once");
    }
    // One atomic for each key that a warp meets, not one for each thread.
    let distinct = |warp: &[u32]| warp.iter().collect::<std::collections::BTreeSet<_>>().len();
    let least: usize = key.chunks(32).map(distinct).sum();
    assert_eq!(outcome.counters.global_atomic.bytes, 4 * least as u64);
}
