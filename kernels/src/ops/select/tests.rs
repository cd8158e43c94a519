use proptest::prelude::*;

use super::*;

fn bits(mask: &Buffer, len: usize) -> Vec<bool> {
    let words = mask.as_slice::<u64>();
    assert_eq!(words.len(), len.div_ceil(64));
    // Bits past the end are clear, so that counting ones counts entries.
    assert_eq!(words.iter().map(|w| w.count_ones() as usize).sum::<usize>(), {
        (0..len).filter(|i| words[i / 64] >> (i % 64) & 1 == 1).count()
    });
    (0..len).map(|i| words[i / 64] >> (i % 64) & 1 == 1).collect()
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
        let mask = keep_largest(&device, &scores, k).unwrap();
        prop_assert_eq!(bits(&mask, scores.len()), reference::keep_largest(&scores, k));
    }

    #[test]
    fn rows_are_selected_each_for_itself(cols in 1usize..150, rows in 0usize..5, share in 0.0f64..=1.0, seed: u32) {
        let device = Device::cpu();
        let scores: Vec<f32> = (0..rows * cols).map(|i| ((i as u32 ^ seed).wrapping_mul(2_654_435_761) >> 28) as f32)
            .collect();
        let k = (share * cols as f64) as usize;
        let mask = keep_largest_of_rows(&device, &scores, cols, k).unwrap();
        let want: Vec<bool> = scores.chunks(cols).flat_map(|row| reference::keep_largest(row, k)).collect();
        prop_assert_eq!(bits(&mask, scores.len()), want);
    }

    #[test]
    fn groups_keep_their_n_largest(groups in 0usize..40, m in 1usize..=32, n in 0usize..=32, seed: u32) {
        let n = n.min(m);
        let device = Device::cpu();
        let scores: Vec<f32> = (0..groups * m).map(|i| ((i as u32 ^ seed).wrapping_mul(2_654_435_761) >> 29) as f32)
            .collect();
        let mask = keep_n_of_m(&device, &scores, m, n, m).unwrap();
        let want: Vec<bool> = scores.chunks(m).flat_map(|group| reference::keep_largest(group, m - n)).collect();
        prop_assert_eq!(bits(&mask, scores.len()), want);
    }
}

#[test]
fn ties_across_chunks_go_in_order() {
    let device = Device::cpu();
    let scores = vec![1.0f32; 600_001];
    for k in [0, 1, 300_000, 600_000, 600_001] {
        let mask = keep_largest(&device, &scores, k).unwrap();
        let keep = bits(&mask, scores.len());
        assert!(keep[..k].iter().all(|keep| !keep) && keep[k..].iter().all(|keep| *keep), "k = {k}");
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
