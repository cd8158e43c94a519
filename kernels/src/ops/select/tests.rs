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
fn on_every_isa(
    entries: &[f32],
    operation: impl Fn(&Buffer) -> Result<Selection>,
    select: impl Fn(Isa, &mut [u64]),
) -> Vec<Vec<bool>> {
    let len = entries.len();
    let selection = operation(&upload(entries)).unwrap();
    assert_eq!(selection.first_unusable().unwrap(), None);
    let mut masks = vec![bits(selection.mask.as_slice(), len)];
    for isa in Isa::available() {
        // What the mask held before does not matter.
        let mut words = vec![u64::MAX; len.div_ceil(64)];
        select(isa, &mut words);
        masks.push(bits(&words, len));
    }
    masks
}

fn upload<T: Element>(entries: &[T]) -> Buffer {
    Device::cpu().upload(Category::Weights, entries).unwrap()
}

/// Many ties, zeros of both signs, tiny and huge values.
fn entries(max: usize) -> impl Strategy<Value = Vec<f32>> {
    let entry = prop_oneof![
        (-3i32..4).prop_map(|x| x as f32),
        Just(-0.0f32),
        -1.0f32..1.0,
        Just(f32::MIN_POSITIVE / 4.0),
        Just(f32::MAX),
    ];
    prop::collection::vec(entry, 0..max)
}

/// The mask of a matrix that comes in pieces of `size` entries, put together.
fn in_pieces(entries: &[f32], k: usize, size: usize) -> Vec<bool> {
    let device = Device::cpu();
    let pieces: Vec<Buffer> = entries.chunks(size).map(upload).collect();
    let mut threshold = Threshold::new(&device, DType::F32, k).unwrap();
    for _ in 0..threshold.rounds() {
        pieces.iter().for_each(|piece| threshold.count(piece).unwrap());
        threshold.advance().unwrap();
    }
    let mask = |piece: &Buffer| bits(threshold.mask(piece).unwrap().as_slice(), piece.len());
    pieces.iter().flat_map(mask).collect()
}

proptest! {
    #[test]
    fn exactly_the_k_smallest_go_lower_indices_first(
        entries in entries(300), share in 0.0f64..=1.0, size in 1usize..400,
    ) {
        let k = (share * entries.len() as f64) as usize;
        let masks = on_every_isa(&entries, |entries| keep_largest(entries, k), |isa, words| {
            let mut state = [0; threshold::WORDS];
            state[threshold::TIES] = k as u64;
            for (above, shift) in [(31, 20), (20, 9), (9, 0)] {
                let digit = threshold::Digit { above, shift };
                let mut bins = vec![0; digit.bins()];
                cpu::count(&entries, digit, state[threshold::KEY] as u32, &mut bins);
                cpu::choose(digit, &mut bins, &mut state);
            }
            cpu::mask(isa, &entries, &mut state, words);
        });
        for mask in masks {
            prop_assert_eq!(mask, reference::keep_largest(&entries, k));
        }
        prop_assert_eq!(in_pieces(&entries, k, size), reference::keep_largest(&entries, k));
    }

    #[test]
    fn weights_are_compared_as_they_lie(entries in entries(300), share in 0.0f64..=1.0) {
        let k = (share * entries.len() as f64) as usize;
        let halves: Vec<f16> = entries.iter().map(|x| f16::from_f32(x.clamp(-60_000.0, 60_000.0))).collect();
        let brains: Vec<bf16> = entries.iter().map(|x| bf16::from_f32(x.clamp(-1e38, 1e38))).collect();
        let wide: Vec<f32> = halves.iter().map(|x| x.to_f32()).collect();
        let mask = keep_largest(&upload(&halves), k).unwrap().mask;
        prop_assert_eq!(bits(mask.as_slice(), entries.len()), reference::keep_largest(&wide, k));
        let wide: Vec<f32> = brains.iter().map(|x| x.to_f32()).collect();
        let mask = keep_largest(&upload(&brains), k).unwrap().mask;
        prop_assert_eq!(bits(mask.as_slice(), entries.len()), reference::keep_largest(&wide, k));
    }

    #[test]
    fn rows_are_selected_each_for_itself(cols in 1usize..150, rows in 0usize..140, share in 0.0f64..=1.0, seed: u32) {
        let entries: Vec<f32> = (0..rows * cols)
            .map(|i| ((i as u32 ^ seed).wrapping_mul(2_654_435_761) as i32 >> 28) as f32)
            .collect();
        let k = (share * cols as f64) as usize;
        let masks = on_every_isa(&entries, |entries| keep_largest_of_rows(entries, cols, k), |isa, mask| {
            cpu::keep_largest_of_rows(isa, &entries, cols, k, mask);
        });
        let want: Vec<bool> = entries.chunks(cols).flat_map(|row| reference::keep_largest(row, k)).collect();
        for mask in masks {
            prop_assert_eq!(&mask, &want);
        }
    }

    #[test]
    fn groups_keep_their_n_largest(groups in 0usize..700, m in 1usize..=32, n in 0usize..=32, seed: u32) {
        let n = n.min(m);
        let entries: Vec<f32> = (0..groups * m)
            .map(|i| ((i as u32 ^ seed).wrapping_mul(2_654_435_761) as i32 >> 29) as f32)
            .collect();
        let masks = on_every_isa(&entries, |entries| keep_n_of_m(entries, m, n, m), |isa, mask| {
            cpu::keep_n_of_m(isa, &entries, n, m, mask);
        });
        let want: Vec<bool> = entries.chunks(m).flat_map(|group| reference::keep_largest(group, m - n)).collect();
        for mask in masks {
            prop_assert_eq!(&mask, &want);
        }
    }
}

#[test]
fn ties_go_in_order_across_the_parts_of_a_matrix() {
    let entries = vec![1.0f32; 600_001];
    for k in [0, 1, 300_000, 600_000, 600_001] {
        let mask = keep_largest(&upload(&entries), k).unwrap().mask;
        let keep = bits(mask.as_slice(), entries.len());
        assert!(keep[..k].iter().all(|keep| !keep) && keep[k..].iter().all(|keep| *keep), "k = {k}");
    }
}

#[test]
fn a_matrix_of_many_parts_is_selected_as_by_sorting_whatever_the_number_of_threads() {
    // Above 64 parts' least size, a prime number of entries; every value about 20 times, so that ties straddle parts.
    let entries: Vec<f32> =
        (0..1_300_021u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 16) as f32 * f32::MIN_POSITIVE).collect();
    for k in [1, 433_333, 1_299_999] {
        let want = reference::keep_largest(&entries, k);
        for threads in [1, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let mask = pool.install(|| keep_largest(&upload(&entries), k)).unwrap().mask;
            assert!(bits(mask.as_slice(), entries.len()) == want, "k = {k}, {threads} threads");
        }
    }
}

/// As on a GPU: what is counted before the pieces is wider than 32 bits.
#[test]
fn pieces_far_into_a_matrix_are_selected_and_told_apart() {
    let (device, before) = (Device::cpu(), (1 << 32) + 3);
    let mut pieces = [[0.5f32, 3.0, -1.0], [2.0, -0.25, 0.5]].map(|piece| upload(&piece));
    let count = |pieces: &[Buffer]| {
        let mut threshold = Threshold::new(&device, DType::F32, before + 2).unwrap();
        threshold.after_zeros(before).unwrap();
        for _ in 0..threshold.rounds() {
            pieces.iter().for_each(|piece| threshold.count(piece).unwrap());
            threshold.advance().unwrap();
        }
        threshold
    };
    let mut threshold = count(&pieces);
    let masks = pieces.each_ref().map(|piece| threshold.mask(piece).unwrap().as_slice::<u64>()[0]);
    assert_eq!(masks, [0b110, 0b101]);
    pieces[1] = upload(&[1.0f32, f32::NAN, 1.0]);
    assert_eq!(count(&pieces).first_unusable().unwrap(), Some(before + 4));
}

#[test]
fn the_first_unusable_entry_is_found_on_every_instruction_set() {
    let mut entries = vec![f32::MAX; 50_001];
    entries[7] = -0.0;
    let first = |entries: &[f32], isa| {
        let mut unusable = [u64::MAX];
        cpu::check(isa, entries, 100, &mut unusable);
        unusable[0]
    };
    for isa in Isa::available() {
        assert_eq!(first(&entries, isa), u64::MAX);
    }
    for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for at in [50_000, 40_003, 16_384, 0] {
            entries[at] = bad;
            for isa in Isa::available() {
                assert_eq!(first(&entries, isa), 100 + at as u64, "{bad} on {isa:?}");
            }
            let found = |selection: Result<Selection>| selection.unwrap().first_unusable().unwrap();
            let buffer = upload(&entries);
            assert_eq!(found(keep_largest(&buffer, 3)), Some(at));
            assert_eq!(found(keep_largest_of_rows(&buffer, 50_001, 3)), Some(at));
            assert_eq!(found(keep_n_of_m(&buffer, 50_001, 1, 3)), Some(at));
        }
        [50_000, 40_003, 16_384, 0].iter().for_each(|at| entries[*at] = f32::MAX);
    }
    let halves = [f16::MAX, f16::INFINITY];
    assert_eq!(keep_largest(&upload(&halves), 1).unwrap().first_unusable().unwrap(), Some(1));
}

#[test]
fn kept_entries_are_counted() {
    let mask = keep_largest(&upload(&[1.0f32; 1000]), 123).unwrap().mask;
    assert_eq!(count_kept(&mask).unwrap().as_slice::<u64>(), [877]);
}

#[test]
fn meta_accounts_what_the_cpu_takes() {
    let peak = |device: &Device| {
        let entries = device.zeros(Category::Weights, DType::BF16, 1000).unwrap();
        let kept = keep_largest(&entries, 10).unwrap();
        let rows = keep_largest_of_rows(&entries, 100, 3).unwrap();
        let groups = keep_n_of_m(&entries, 100, 2, 4).unwrap();
        let count = count_kept(&groups.mask).unwrap();
        assert_eq!(kept.first_unusable().unwrap(), None);
        drop((kept, rows, groups, count));
        device.memory().peak()
    };
    let cpu = Device::cpu();
    assert_eq!(peak(&cpu), peak(&Device::meta(Backend::Cpu, cpu.threads())));
}

#[test]
fn what_does_not_fit_is_named() {
    let message = |result: Result<Selection>| result.unwrap_err().to_string();
    assert_eq!(message(keep_largest(&upload(&[1.0f32]), 2)), "keep_largest: 2 of 1 entries cannot be removed");
    assert!(message(keep_largest(&upload(&[1u32]), 1)).contains("entries is u32, expected f32"));
    let six = upload(&[1.0f32; 6]);
    assert!(message(keep_n_of_m(&six, 6, 2, 4)).contains("rows of 6 entries cannot be cut into groups of 4"));
    assert!(message(keep_n_of_m(&upload(&[1.0f32; 64]), 64, 2, 64)).contains("2:64 is no pattern"));
    assert!(message(keep_largest_of_rows(&six, 4, 1)).contains("entries has 6 elements, expected 4"));
    assert!(message(keep_largest_of_rows(&six, 3, 4)).contains("4 of 3 entries"));
}

#[test]
fn pieces_come_in_the_same_order_in_every_round() {
    let device = Device::cpu();
    let [one, two] = [1, 2].map(|len| upload(&vec![1.0f32; len]));
    let mut threshold = Threshold::new(&device, DType::F32, 1).unwrap();
    threshold.count(&one).unwrap();
    threshold.count(&two).unwrap();
    assert!(threshold.mask(&one).unwrap_err().to_string().contains("0 of 3 rounds are done"));
    threshold.advance().unwrap();
    assert!(threshold.count(&two).unwrap_err().to_string().contains("piece has 2 elements, expected 1"));
    threshold.count(&one).unwrap();
    assert!(threshold.advance().unwrap_err().to_string().contains("1 of 2 pieces are counted"));
    threshold.count(&two).unwrap();
    assert!(threshold.count(&two).unwrap_err().to_string().contains("2 pieces are all there are"));
}
