use proptest::prelude::*;

use super::*;
use crate::ops::testing::{assert_close, differences, dot, random, rows, upload, upload_tokens};
use crate::weight::FrozenWeight;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(30))]
    #[test]
    fn rows_are_copied_added_and_their_gradients_gathered(
        batch in 1usize..3, tokens in prop_oneof![1usize..20, 60usize..100], vocab in 1usize..9, cols in 1usize..40, offset in 0usize..3, seed: u64,
    ) {
        let device = Device::cpu();
        let n = batch * tokens;
        let ids: Vec<u32> = random(n, seed).iter().map(|x| ((x + 1.0) / 2.0 * vocab as f64) as u32).collect();
        let mut tables = [random(vocab * cols, seed ^ 1), random((tokens + offset) * cols, seed ^ 2)];
        let held = FrozenWeight::dense(upload(&device, &tables[0]), vocab, cols).unwrap();
        let value = upload(&device, &tables[1]);
        let places = WeightRef::Trainable { value: &value, rows: tokens + offset, cols, mask: None };
        let embedded = |t: &[Vec<f64>; 2]| reference::embed(&ids, &t[0], &t[1], cols, tokens, offset);

        let mut y = lookup(&device, &ids, WeightRef::Frozen(&held)).unwrap();
        add_positions(&mut y, places, tokens, offset).unwrap();
        assert_close("y", &rows(y.f32(), n), &embedded(&tables), 1e-7);

        // At most 200 rows meet in one row of a table: 200·2⁻²⁴ ≈ 1.2e-5 of their sum; differences in f64 err by about
        // 1e-16·8000/1e-5.
        let dy = random(n * cols, seed ^ 3);
        let [want_table, want_places] = [0, 1].map(|which| {
            let d = differences(&mut tables, which, |t| dot(&embedded(t), &dy));
            d.into_iter().map(|d| d + 1.0).collect::<Vec<_>>()
        });
        let dy = upload_tokens(&device, &dy, n);
        let mut d_table = upload(&device, &vec![1.0; vocab * cols]);
        lookup_gradient(&dy, &ids, &mut d_table).unwrap();
        assert_close("dE", d_table.f32(), &want_table, 1.5e-5);
        let mut d_places = upload(&device, &vec![1.0; (tokens + offset) * cols]);
        position_gradient(&dy, cols, tokens, offset, &mut d_places).unwrap();
        assert_close("dP", d_places.f32(), &want_places, 1.5e-5);
    }
}

#[test]
fn a_token_or_position_outside_the_table_is_named() {
    let device = Device::cpu();
    let value = upload(&device, &[0.0; 12]);
    let table = WeightRef::Trainable { value: &value, rows: 4, cols: 3, mask: None };
    let error = lookup(&device, &[3, 4], table).unwrap_err().to_string();
    assert!(error.contains("token 4 is outside the vocabulary of 4"), "{error}");
    let mut y = upload(&device, &[0.0; 9]);
    let error = add_positions(&mut y, table, 3, 2).unwrap_err().to_string();
    assert!(error.contains("sequences of 3 tokens, but the model has positions for 1 to 2"), "{error}");
}

#[test]
fn rows_wider_than_a_task_or_a_buffer_are_whole() {
    let device = Device::cpu();
    let (tokens, cols) = (3, 300);
    let (table, positions) = (random(2 * cols, 1), random(tokens * cols, 2));
    let (value, places) = (upload(&device, &table), upload(&device, &positions));
    let mut y = lookup(&device, &[1, 0, 1], WeightRef::Trainable { value: &value, rows: 2, cols, mask: None }).unwrap();
    add_positions(&mut y, WeightRef::Trainable { value: &places, rows: tokens, cols, mask: None }, tokens, 0).unwrap();
    assert_close("y", &rows(y.f32(), tokens), &reference::embed(&[1, 0, 1], &table, &positions, cols, tokens, 0), 1e-7);
}

#[test]
fn a_gradient_does_not_depend_on_the_number_of_threads() {
    let (vocab, cols, n) = (700, 300, 900);
    let dy = random(n * cols, 1);
    let ids: Vec<u32> = (0..n as u32).map(|i| i * i % vocab as u32).collect();
    let gradient = |threads| {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(|| {
            let device = Device::cpu();
            let mut d_table = upload(&device, &vec![0.0; vocab * cols]);
            lookup_gradient(&upload_tokens(&device, &dy, n), &ids, &mut d_table).unwrap();
            d_table.f32().to_vec()
        })
    };
    let one = gradient(1);
    assert_eq!(one, gradient(2));
    assert_eq!(one, gradient(5));
    let mut want = vec![0.0; vocab * cols];
    for (id, dy) in ids.iter().zip(dy.chunks(cols)) {
        want[*id as usize * cols..][..cols].iter_mut().zip(dy).for_each(|(sum, dy)| *sum += dy);
    }
    // At most 900 terms below 1 meet in one row: 900·2⁻²⁴ ≈ 5e-5 of the largest sum.
    assert_close("dE", &one, &want, 1e-4);
}

#[test]
fn tables_stay_in_f16_and_bf16() {
    let device = Device::cpu();
    let values = [0.5f32, -1.25, 3.0, 0.0, -0.0078125, 640.0];
    let halves: Vec<half::f16> = values.iter().map(|x| half::f16::from_f32(*x)).collect();
    let brains: Vec<half::bf16> = values.iter().map(|x| half::bf16::from_f32(*x)).collect();
    let category = Category::Weights;
    for table in [device.upload(category, &halves).unwrap(), device.upload(category, &brains).unwrap()] {
        let table = FrozenWeight::dense(table, 2, 3).unwrap();
        let y = lookup(&device, &[1, 0, 1], WeightRef::Frozen(&table)).unwrap();
        assert_eq!(rows(y.f32(), 3), [&values[3..], &values[..3], &values[3..]].concat());
    }
}

#[test]
fn operands_that_do_not_fit_are_named() {
    let device = Device::cpu();
    let value = upload(&device, &[0.0; 12]);
    let short = WeightRef::Trainable { value: &value, rows: 5, cols: 3, mask: None };
    let error = lookup(&device, &[0], short).unwrap_err().to_string();
    assert_eq!(error, "embedding: table has 12 elements, expected 15");
    let mut half = device.zeros(Category::Gradients, DType::F16, 12).unwrap();
    let error = lookup_gradient(&value, &[0, 1, 2, 3], &mut half).unwrap_err().to_string();
    assert_eq!(error, "embedding_gradient: d_table is f16, expected f32");
    let mut d_table = upload(&device, &[0.0; 12]);
    let error = lookup_gradient(&value, &[0, 1, 2, 3, 0], &mut d_table).unwrap_err().to_string();
    assert_eq!(error, "embedding_gradient: dy has 12 elements, expected 10");
    let none = upload(&device, &[]);
    assert!(lookup_gradient(&none, &[], &mut d_table).is_ok());
}
