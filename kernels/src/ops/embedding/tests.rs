use proptest::prelude::*;

use super::*;
use crate::ops::testing::{assert_close, random, upload};
use crate::weight::FrozenWeight;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(30))]
    #[test]
    fn rows_are_copied_added_and_their_gradients_gathered(
        batch in 1usize..3, tokens in 1usize..20, vocab in 1usize..9, cols in 1usize..300, offset in 0usize..3, seed: u64,
    ) {
        let device = Device::cpu();
        let n = batch * tokens;
        let ids: Vec<u32> = random(n, seed).iter().map(|x| ((x + 1.0) / 2.0 * vocab as f64) as u32).collect();
        let (table, positions) = (random(vocab * cols, seed ^ 1), random((tokens + offset) * cols, seed ^ 2));
        let held = FrozenWeight::dense(upload(&device, &table), vocab, cols).unwrap();
        let value = upload(&device, &positions);
        let places = WeightRef::Trainable { value: &value, rows: tokens + offset, cols };

        let mut y = lookup(&device, &ids, WeightRef::Frozen(&held)).unwrap();
        add_positions(&mut y, places, tokens, offset).unwrap();
        let row = |n: usize| ids[n] as usize * cols;
        let place = |n: usize| (offset + n % tokens) * cols;
        let want: Vec<f64> = (0..n * cols)
            .map(|i| table[row(i / cols) + i % cols] + positions[place(i / cols) + i % cols])
            .collect();
        assert_close("y", y.f32(), &want, 1e-7);

        // At most 40 rows meet in one row of a table.
        let dy = random(n * cols, seed ^ 3);
        let (mut want_table, mut want_places) = (vec![1.0; vocab * cols], vec![1.0; (tokens + offset) * cols]);
        for (i, dy) in dy.iter().enumerate() {
            want_table[row(i / cols) + i % cols] += dy;
            want_places[place(i / cols) + i % cols] += dy;
        }
        let dy = upload(&device, &dy);
        let mut d_table = upload(&device, &vec![1.0; vocab * cols]);
        lookup_gradient(&dy, &ids, &mut d_table).unwrap();
        assert_close("dE", d_table.f32(), &want_table, 40.0 * 2f64.powi(-23));
        let mut d_places = upload(&device, &vec![1.0; (tokens + offset) * cols]);
        position_gradient(&dy, cols, tokens, offset, &mut d_places).unwrap();
        assert_close("dP", d_places.f32(), &want_places, 40.0 * 2f64.powi(-23));
    }
}

#[test]
fn a_token_or_position_outside_the_table_is_named() {
    let device = Device::cpu();
    let value = upload(&device, &[0.0; 12]);
    let table = WeightRef::Trainable { value: &value, rows: 4, cols: 3 };
    let error = lookup(&device, &[3, 4], table).unwrap_err().to_string();
    assert!(error.contains("token 4 is outside the vocabulary of 4"), "{error}");
    let mut y = upload(&device, &[0.0; 9]);
    let error = add_positions(&mut y, table, 3, 2).unwrap_err().to_string();
    assert!(error.contains("sequences of 3 tokens, but the model has positions for 1 to 2"), "{error}");
}
