use kernels::strips::from_rows;
use kernels::weight::FrozenWeight;
use kernels::{Category, DType, Device};

use super::collect::Sums;
use super::*;
use crate::checkpoint::{BpeSettings, Tokenizer, train_bpe};
use crate::data::{self, Document, TokenStream};
use crate::model::{Linear, Weight};

fn tokenizer() -> Tokenizer {
    let settings = BpeSettings { vocab_size: 260, ..BpeSettings::default() };
    train_bpe(["abc"].iter(), &settings).unwrap()
}

fn documents(texts: &[&str]) -> Vec<data::Result<Document>> {
    let document = |text: &&str| Ok(Document { source: "here".into(), text: (*text).into(), file_bytes: 1 });
    texts.iter().map(document).collect()
}

fn sample(texts: &[&str], count: usize, length: usize, seed: u64) -> data::Result<Vec<Vec<u32>>> {
    sample_windows(&TokenStream::build(documents(texts), &tokenizer(), |_| ())?, count, length, seed)
}

#[test]
fn windows_lie_within_one_document_and_belong_to_the_seed() {
    // Byte tokens: a window that crossed documents would mix letters and digits.
    let texts = ["abdeghijklmnopq", "0123456789", "short"];
    let windows = sample(&texts, 40, 8, 1).unwrap();
    assert_eq!(windows.len(), 40);
    let tokenizer = tokenizer();
    let texts_of = |windows: &[Vec<u32>]| -> Vec<String> {
        windows.iter().map(|window| tokenizer.decode(window).unwrap()).collect()
    };
    let drawn = texts_of(&windows);
    assert!(drawn.iter().all(|window| texts[0].contains(window) || texts[1].contains(window)), "{drawn:?}");
    for first in ["a", "q", "0", "9"] {
        assert!(drawn.iter().any(|window| window.contains(first)), "{first}: both ends of both documents are drawn");
    }
    assert_eq!(windows, sample(&texts, 40, 8, 1).unwrap());
    assert_ne!(windows, sample(&texts, 40, 8, 2).unwrap());
    // A document of exactly one window.
    assert_eq!(texts_of(&sample(&["12345678"], 2, 8, 0).unwrap()), ["12345678", "12345678"]);
}

#[test]
fn text_without_a_window_is_refused() {
    let error = sample(&["too short", "abc"], 2, 10, 0).unwrap_err().to_string();
    for part in ["windows of 10 tokens", "none of 2 documents", "has 9 tokens", "shorter sequence length"] {
        assert!(error.contains(part), "{part} is not in: {error}");
    }
    assert!(matches!(sample(&["abc"], 1, 1, 0), Err(data::Error::WindowLength(1))));
}

fn tensor(device: &Device, rows: usize, cols: usize, salt: usize) -> Tensor {
    let values: Vec<f32> = (0..rows * cols).map(|i| ((i * 7919 + salt) % 1009) as f32 / 504.0 - 1.0).collect();
    Tensor::new(device.upload(Category::Activations, &from_rows(&values, rows, cols)).unwrap(), rows, cols)
}

#[test]
fn what_has_no_room_comes_back_from_the_file() {
    let device = Device::cpu();
    let tensors: Vec<Tensor> = [(5, 8), (5, 8), (3, 8), (5, 8)]
        .into_iter()
        .enumerate()
        .map(|(salt, (rows, cols))| tensor(&device, rows, cols, salt))
        .collect();
    // Room for the first and, after the second has gone to the file, for the smaller third.
    let mut store = Store::new(&device, (5 * 8 + 3 * 8) * 4);
    for tensor in &tensors {
        store.push(tensor.clone()).unwrap();
    }
    assert_eq!(store.spilled(), 2 * 5 * 8 * 4);
    for (index, tensor) in tensors.iter().enumerate() {
        assert_eq!(store.get(index).unwrap().buffer().f32(), tensor.buffer().f32());
    }
    for index in [0, 1] {
        store.set(index, tensor(&device, 5, 8, 100 + index)).unwrap();
    }
    for (index, salt) in [(0, 100), (1, 101), (3, 3)] {
        assert_eq!(store.get(index).unwrap().buffer().f32(), tensor(&device, 5, 8, salt).buffer().f32());
    }
}

fn linear(name: &str, prunable: bool) -> Linear {
    let weight = Device::cpu().zeros(Category::Weights, DType::F32, 0).unwrap();
    let weight = Weight::Frozen(FrozenWeight::dense(weight, 0, 0).unwrap());
    Linear { name: name.into(), weight, bias: None, lora: None, prunable }
}

#[test]
fn sums_are_those_of_all_tokens_and_shared_by_layers_with_one_input() {
    let device = Device::cpu();
    // More tokens than a strip, no whole vectors.
    let (rows, cols) = (203, 7);
    for criterion in [Criterion::Wanda, Criterion::SparseGpt] {
        let mut collector = Collector::new(criterion);
        for chunk in 0..2 {
            let shared = tensor(&device, rows, cols, chunk);
            for name in ["q", "k"] {
                collector.add(&linear(name, true), &shared).unwrap();
            }
            drop(shared);
            // As large, and where the freed one was.
            let own = tensor(&device, rows, cols, 10 + chunk);
            collector.add(&linear("out", true), &own).unwrap();
            collector.add(&linear("project_out", false), &own).unwrap();
        }
        let groups = collector.into_groups();
        let names: Vec<_> = groups.iter().map(|group| group.names.join("+")).collect();
        assert_eq!(names, ["q+k", "out"]);
        for (group, salts) in groups.iter().zip([[0, 1], [10, 11]]) {
            let rows_of = |salt| kernels::strips::to_rows(tensor(&device, rows, cols, salt).buffer().f32(), rows, cols);
            let x: Vec<f32> = salts.into_iter().flat_map(rows_of).collect();
            let sum = |i: usize, j: usize| -> f64 {
                x.chunks(cols).map(|token| f64::from(token[i]) * f64::from(token[j])).sum()
            };
            match &group.sums {
                Sums::Squares(squares, tokens) => {
                    assert_eq!(*tokens, 2 * rows);
                    // f64 sums of 406 terms below 1.
                    assert!((0..cols).all(|j| (squares[j] - sum(j, j)).abs() < 1e-11));
                }
                // f32 sums of 406 terms below 1: at most 406²·2⁻²⁴.
                Sums::Gram(gram) => {
                    assert!(
                        gram.f32()
                            .iter()
                            .enumerate()
                            .all(|(at, x)| (f64::from(*x) - sum(at / cols, at % cols)).abs() < 0.01)
                    );
                }
            }
        }
    }
}
