//! Sequences of a text, under both packings.

use super::*;
use crate::model::TokenBatch;
use kernels::ops::head_loss::IGNORED;

/// A stream of documents of so many tokens, numbered through: byte tokens of a tokenizer without specials.
fn stream(lengths: &[usize]) -> TokenStream {
    let settings = BpeSettings { vocab_size: 256, ..BpeSettings::default() };
    let tokenizer = train_bpe(["x"].iter(), &settings).unwrap();
    let mut letters = ('a'..='z').cycle();
    let mut text = |length: &usize| Ok(document(&letters.by_ref().take(*length).collect::<String>()));
    TokenStream::build(lengths.iter().map(&mut text).collect::<Vec<_>>(), &tokenizer, |_| ()).unwrap()
}

#[test]
fn packed_sequences_are_the_stream_cut() {
    let stream = stream(&[3, 5, 1, 6]);
    let windows = Windows::new(stream.clone(), Packing::Pack, 4).unwrap();
    assert_eq!(windows.count(), 3);
    for index in 0..3 {
        assert_eq!(windows.tokens(index), &stream.tokens()[4 * index..][..4]);
    }
    assert_message(Windows::new(stream, Packing::Pack, 16), &["15 tokens", "takes 16"]);
}

#[test]
fn padded_sequences_are_documents_cut_off_and_those_that_predict_nothing_are_passed_over() {
    let text = stream(&[3, 1, 5, 0, 2, 1]);
    let windows = Windows::new(text.clone(), Packing::Pad, 4).unwrap();
    assert_eq!(windows.count(), 3);
    assert_eq!(windows.tokens(0), text.document(0));
    assert_eq!(windows.tokens(1), &text.document(2)[..4]);
    assert_eq!(windows.tokens(2), text.document(3));
    assert_eq!(Windows::new(stream(&[2, 3]), Packing::Pad, 4).unwrap().count(), 2);
    assert_message(Windows::new(stream(&[1, 1]), Packing::Pad, 4), &["2 tokens", "takes 2"]);
    assert_message(Windows::new(stream(&[3]), Packing::Pad, 1), &["at least 2"]);
}

#[test]
fn pads_have_no_targets_and_are_not_counted() {
    let batch = TokenBatch::padded(&[&[5, 6, 7], &[8, 9], &[1]]);
    assert_eq!((batch.seq_len(), batch.sequences(), batch.predictions(), batch.real_tokens()), (3, 3, 3, 6));
    assert_eq!(batch.tokens()[..], [5, 6, 7, 8, 9, 0, 1, 0, 0]);
    assert_eq!(batch.targets(), [6, 7, IGNORED, 9, IGNORED, IGNORED, IGNORED, IGNORED, IGNORED]);
    assert_eq!(TokenBatch::padded(&[&[1, 2], &[3, 4]]), TokenBatch::new(vec![1, 2, 3, 4], 2));
}

#[test]
fn packings_have_names() {
    for packing in [Packing::Pack, Packing::Pad] {
        assert_eq!(packing.to_string().parse(), Ok(packing));
    }
    assert!("none".parse::<Packing>().is_err());
}
