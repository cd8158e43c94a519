//! What threads of many blocks share by atomics: tables, stacks, queues, and a sort whose blocks look back.

use std::collections::HashMap;

use crate::gpu::{Gpu, Random};
use crate::params;

#[test]
fn a_hash_table() {
    let gpu = Gpu::new(include_str!("../../programs/tables.ptx"));
    let mut random = Random(31);
    let (n, size) = (700usize, 512usize);
    let keys: Vec<u32> = (0..n).map(|_| random.next() as u32 % 300).collect();
    let (table, values, full) = (gpu.upload(&vec![!0u32; size]), gpu.upload(&vec![0u32; size]), gpu.upload(&[0i32]));
    let (pk, mask) = (gpu.upload(&keys), size as u32 - 1);
    gpu.run("insert", 6, 128, params![table, values, mask, pk, n as i32, full]);
    assert_eq!(gpu.download::<i32>(full, 1), [0]);
    let mut expect: HashMap<u32, u32> = HashMap::new();
    keys.iter().for_each(|k| *expect.entry(*k).or_default() += 1);
    let asked: Vec<u32> = (0..400).collect();
    let found = gpu.alloc::<u32>(400);
    gpu.run("lookup", 4, 128, params![table, values, mask, gpu.upload(&asked), 400, found]);
    let expect: Vec<u32> = asked.iter().map(|k| expect.get(k).copied().unwrap_or(0)).collect();
    assert_eq!(gpu.download::<u32>(found, 400), expect);
}

#[test]
fn stacks_without_locks() {
    let gpu = Gpu::new(include_str!("../../programs/tables.ptx"));
    let (n, stacks) = (500usize, 3usize);
    let (heads, next) = (gpu.upload(&vec![0u64; stacks]), gpu.alloc::<u32>(n));
    gpu.run("push", 4, 128, params![heads, next, stacks as i32, n as i32]);
    let (heads, next) = (gpu.download::<u64>(heads, stacks), gpu.download::<u32>(next, n));
    for (s, head) in heads.iter().enumerate() {
        let chain = std::iter::successors(Some(*head as u32), |at| next.get((*at as usize).wrapping_sub(1)).copied());
        let mut found: Vec<usize> = chain.take_while(|at| *at != 0).map(|at| at as usize - 1).collect();
        assert_eq!(*head >> 32, found.len() as u64, "every push is counted");
        found.sort_unstable();
        assert_eq!(found, (s..n).step_by(stacks).collect::<Vec<_>>());
    }
}

#[test]
fn extremes_and_sums_by_compare_and_swap() {
    let gpu = Gpu::new(include_str!("../../programs/tables.ptx"));
    let mut random = Random(32);
    let x: Vec<f32> = (0..600).map(|_| (random.next() % 4096) as f32 - 2048.0).collect();
    let (least, sum, most) = (gpu.upload(&[f32::MAX]), gpu.upload(&[0f64]), gpu.upload(&[0u64]));
    gpu.run("extremes", 5, 128, params![gpu.upload(&x), 600, least, sum, most]);
    assert_eq!(gpu.download::<f32>(least, 1)[0], x.iter().fold(f32::MAX, |a, b| a.min(*b)));
    assert_eq!(gpu.download::<f64>(sum, 1)[0], x.iter().map(|v| f64::from(*v)).sum::<f64>());
    assert_eq!(gpu.download::<u64>(most, 1)[0], 599 << 32 | u64::from(x[599].abs().to_bits()));
}

#[test]
fn a_queue_of_work() {
    let gpu = Gpu::new(include_str!("../../programs/tables.ptx"));
    let room = 2048;
    let mut queue = vec![0i32; 2 * room];
    queue[1] = 1000;
    let mut ready = vec![0i32; room];
    ready[0] = 1;
    let (queue, ready) = (gpu.upload(&queue), gpu.upload(&ready));
    let [head, tail, pending, leaves] = [0, 1, 1, 0].map(|v: i32| gpu.upload(&[v]));
    gpu.run("quick_count", 4, 64, params![queue, head, ready, tail, pending, leaves]);
    assert_eq!(gpu.download::<i32>(leaves, 1), [1000]);
    assert_eq!(gpu.download::<i32>(pending, 1), [0]);
}

#[test]
fn radix_sort_in_single_sweeps() {
    let gpu = Gpu::new(include_str!("../../programs/radix.ptx"));
    let mut random = Random(33);
    let n = 3000usize;
    let keys: Vec<u32> = (0..n).map(|_| random.next() as u32 & random.next() as u32).collect();
    let values: Vec<u32> = (0..n as u32).collect();
    let totals = gpu.upload(&[0u32; 128]);
    let mut buffers = [gpu.upload(&keys), gpu.upload(&values), gpu.alloc::<u32>(n), gpu.alloc::<u32>(n)];
    gpu.run("histogram_all", 5, 128, params![buffers[0], n as i32, totals]);
    let blocks = n.div_ceil(128);
    for pass in 0..8 {
        let (status, next) = (gpu.upload(&vec![0u32; 16 * blocks]), gpu.upload(&[0u32]));
        let [k, v, k2, v2] = buffers;
        gpu.run("one_sweep", blocks as u32, 128, params![k, v, k2, v2, n as i32, pass, totals, status, next]);
        buffers = [k2, v2, k, v];
    }
    let mut expect: Vec<(u32, u32)> = keys.iter().copied().zip(values).collect();
    expect.sort_unstable();
    let found = gpu.download::<u32>(buffers[0], n).into_iter().zip(gpu.download::<u32>(buffers[1], n));
    assert_eq!(found.collect::<Vec<_>>(), expect, "sorted, and equal keys in their order");
}
