use proptest::prelude::*;

use super::*;

fn bits(words: &[u64], len: usize) -> Vec<bool> {
    assert_eq!(words.len(), len.div_ceil(64));
    // Bits past the end are clear, so that counting ones counts entries.
    assert_eq!(words.iter().map(|w| w.count_ones() as usize).sum::<usize>(), {
        (0..len).filter(|i| words[i / 64] >> (i % 64) & 1 == 1).count()
    });
    (0..len).map(|i| words[i / 64] >> (i % 64) & 1 == 1).collect()
}

/// The masks that `select` makes on each instruction set, and the operation's own.
fn on_every_isa(len: usize, operation: Result<Buffer>, select: impl Fn(Isa, &mut [u64])) -> Vec<Vec<bool>> {
    let mut masks = vec![bits(operation.unwrap().as_slice(), len)];
    for isa in Isa::available() {
        let mut words = vec![0; len.div_ceil(64)];
        select(isa, &mut words);
        masks.push(bits(&words, len));
    }
    masks
}

/// Many ties, zeros of both signs, tiny and huge values.
fn scores(max: usize) -> impl Strategy<Value = Vec<f32>> {
    let score = prop_oneof![
        (0u32..4).prop_map(|x| x as f32),
        Just(-0.0f32),
        0.0f32..1.0,
        Just(f32::MIN_POSITIVE / 4.0),
        Just(f32::MAX),
    ];
    prop::collection::vec(score, 0..max)
}

proptest! {
    #[test]
    fn exactly_the_k_smallest_go_lower_indices_first(scores in scores(300), share in 0.0f64..=1.0) {
        let device = Device::cpu();
        let k = (share * scores.len() as f64) as usize;
        let masks = on_every_isa(scores.len(), keep_largest(&device, &scores, k), |isa, mask| {
            cpu::keep_largest(isa, &scores, k, mask);
        });
        for mask in masks {
            prop_assert_eq!(mask, reference::keep_largest(&scores, k));
        }
    }

    #[test]
    fn rows_are_selected_each_for_itself(cols in 1usize..150, rows in 0usize..140, share in 0.0f64..=1.0, seed: u32) {
        let device = Device::cpu();
        let scores: Vec<f32> = (0..rows * cols).map(|i| ((i as u32 ^ seed).wrapping_mul(2_654_435_761) >> 28) as f32)
            .collect();
        let k = (share * cols as f64) as usize;
        let masks = on_every_isa(scores.len(), keep_largest_of_rows(&device, &scores, cols, k), |isa, mask| {
            cpu::keep_largest_of_rows(isa, &scores, cols, k, mask);
        });
        let want: Vec<bool> = scores.chunks(cols).flat_map(|row| reference::keep_largest(row, k)).collect();
        for mask in masks {
            prop_assert_eq!(&mask, &want);
        }
    }

    #[test]
    fn groups_keep_their_n_largest(groups in 0usize..700, m in 1usize..=32, n in 0usize..=32, seed: u32) {
        let n = n.min(m);
        let device = Device::cpu();
        let scores: Vec<f32> = (0..groups * m).map(|i| ((i as u32 ^ seed).wrapping_mul(2_654_435_761) >> 29) as f32)
            .collect();
        let masks = on_every_isa(scores.len(), keep_n_of_m(&device, &scores, m, n, m), |isa, mask| {
            cpu::keep_n_of_m(isa, &scores, n, m, mask);
        });
        let want: Vec<bool> = scores.chunks(m).flat_map(|group| reference::keep_largest(group, m - n)).collect();
        for mask in masks {
            prop_assert_eq!(&mask, &want);
        }
    }
}

#[test]
fn ties_go_in_order_across_the_parts_of_a_matrix() {
    let device = Device::cpu();
    let scores = vec![1.0f32; 600_001];
    for k in [0, 1, 300_000, 600_000, 600_001] {
        let mask = keep_largest(&device, &scores, k).unwrap();
        let keep = bits(mask.as_slice(), scores.len());
        assert!(keep[..k].iter().all(|keep| !keep) && keep[k..].iter().all(|keep| *keep), "k = {k}");
    }
}

#[test]
fn a_matrix_of_many_parts_is_selected_as_by_sorting_whatever_the_number_of_threads() {
    // Above 64 parts' least size, a prime number of entries; every value about 20 times, so that ties straddle parts.
    let scores: Vec<f32> =
        (0..1_300_021u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 16) as f32 * f32::MIN_POSITIVE).collect();
    for k in [1, 433_333, 1_299_999] {
        let want = reference::keep_largest(&scores, k);
        for threads in [1, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let mask = pool.install(|| keep_largest(&Device::cpu(), &scores, k)).unwrap();
            assert!(bits(mask.as_slice(), scores.len()) == want, "k = {k}, {threads} threads");
        }
    }
}

#[test]
fn the_first_unusable_score_is_found_on_every_instruction_set() {
    let mut scores = vec![f32::MAX; 50_001];
    scores[7] = -0.0;
    for isa in Isa::available() {
        assert_eq!(cpu::first_unusable(isa, &scores), None);
    }
    for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -f32::MIN_POSITIVE / 4.0] {
        for at in [50_000, 40_003, 16_384, 0] {
            scores[at] = bad;
            for isa in Isa::available() {
                assert_eq!(cpu::first_unusable(isa, &scores), Some(at), "{bad} on {isa:?}");
            }
        }
        [50_000, 40_003, 16_384, 0].iter().for_each(|at| scores[*at] = f32::MAX);
    }
}

#[test]
fn scores_without_an_order_and_patterns_that_do_not_fit_are_named() {
    let device = Device::cpu();
    let message = |result: Result<Buffer>| result.unwrap_err().to_string();
    assert!(message(keep_largest(&device, &[1.0, f32::NAN], 1)).contains("score 1 is NaN"));
    assert!(message(keep_largest(&device, &[-1.0], 1)).contains("score 0 is -1"));
    assert!(message(keep_largest(&device, &[1.0], 2)).contains("2 of 1"));
    assert!(
        message(keep_n_of_m(&device, &[1.0; 6], 6, 2, 4)).contains("rows of 6 entries cannot be cut into groups of 4")
    );
    assert!(message(keep_n_of_m(&device, &[1.0; 64], 64, 2, 64)).contains("2:64 is no pattern"));
}
