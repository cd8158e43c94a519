//! Long texts, tokenised piece by piece.
//!
//! A tokenizer's library keeps some hundred bytes for each of a text's while it is at it. So a long text is cut into pieces that
//! overlap, and where two meet, the tokens of the one are followed by those of the other from the middle of a run of tokens that
//! both have at the same places: the second has by then forgotten where it began, and the first does not yet see its end. Where no
//! such run is (in a word longer than the overlap, say), the piece is tokenised once more, twice as long. Where a text is split into words
//! first, nothing beyond such a run can matter; a BPE or Unigram over whole texts could in principle know more.

use std::ops::Range;

use rayon::prelude::*;

/// A token, and where in the text it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Placed {
    pub id: u32,
    pub start: usize,
    pub end: usize,
}

/// How a text is cut.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cut {
    /// Bytes that a piece has at most.
    pub piece: usize,
    /// Bytes of two pieces that overlap.
    pub overlap: usize,
    /// Tokens that must be alike.
    pub run: usize,
}

/// Some thousand tokens of overlap, of which 64 must be alike, and pieces so large that it costs a thirtieth, and so small that the
/// library's share is some 15 MB a thread.
pub(super) const CUT: Cut = Cut { piece: 128 << 10, overlap: 4 << 10, run: 64 };

/// One piece, tokenised.
struct Piece {
    range: Range<usize>,
    tokens: Vec<Placed>,
}

/// Adds the ids of a text, by `encode`, which tells the tokens of a part of it, and where in the part they stand.
pub(super) fn encode<E: Send>(
    text: &str,
    cut: Cut,
    ids: &mut Vec<u32>,
    encode: impl Fn(&str) -> Result<Vec<Placed>, E> + Sync,
) -> Result<(), E> {
    let tokenise = |range: Range<usize>| -> Result<Piece, E> {
        let mut tokens = encode(&text[range.clone()])?;
        for token in &mut tokens {
            token.start += range.start;
            token.end += range.start;
        }
        Ok(Piece { range, tokens })
    };
    let piece_from = |start: usize, len: usize| start..boundary(text, start + len);
    // The last piece, and how many of its tokens are ids already.
    let (mut last, mut done) = (tokenise(piece_from(0, cut.piece))?, 0);
    while last.range.end < text.len() {
        let start = |end: usize| boundary(text, end - cut.overlap);
        let mut group = vec![piece_from(start(last.range.end), cut.piece)];
        while group.len() < rayon::current_num_threads() && group[group.len() - 1].end < text.len() {
            group.push(piece_from(start(group[group.len() - 1].end), cut.piece));
        }
        for next in group.into_par_iter().map(tokenise).collect::<Result<Vec<_>, E>>()? {
            match meet(&last, &next, cut.run) {
                Some((end, start)) if end >= done => {
                    ids.extend(last.tokens[done..end].iter().map(|token| token.id));
                    (last, done) = (next, start);
                }
                _ => {
                    // One piece of twice the length: it begins where this one does, and so with the same tokens.
                    last = tokenise(piece_from(last.range.start, 2 * last.range.len()))?;
                    break;
                }
            }
        }
    }
    ids.extend(last.tokens[done..].iter().map(|token| token.id));
    Ok(())
}

/// The last place up to `at` where a character begins, or the text's end.
fn boundary(text: &str, at: usize) -> usize {
    (0..=at.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
}

/// How many tokens of `first` go before which of `second`: the middle of the first run that both have.
fn meet(first: &Piece, second: &Piece, run: usize) -> Option<(usize, usize)> {
    let mut i = first.tokens.partition_point(|token| token.start < second.range.start);
    let mut j = 0;
    let mut alike = 0;
    while let (Some(a), Some(b)) = (first.tokens.get(i), second.tokens.get(j)) {
        if a == b {
            (i, j, alike) = (i + 1, j + 1, alike + 1);
            if alike == run {
                return Some((i - run / 2, j - run / 2));
            }
            continue;
        }
        alike = 0;
        // Whichever begins, or else ends, sooner is behind.
        match (a.start, a.end).cmp(&(b.start, b.end)) {
            std::cmp::Ordering::Less => i += 1,
            std::cmp::Ordering::Greater => j += 1,
            std::cmp::Ordering::Equal => (i, j) = (i + 1, j + 1),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use proptest::prelude::*;
    use serde_json::{Value, json};
    use tokenizers::Tokenizer;

    use super::*;

    const WORDS: [&str; 16] = [
        "the",
        "whole",
        "of",
        "a",
        "sparse",
        "model's",
        "weights",
        "is",
        "don't",
        "Émile",
        "日本語",
        "3.1415",
        "zero",
        "zeros",
        "aaaa",
        "e\u{301}",
    ];
    /// Pieces of some hundred tokens.
    const SMALL: Cut = Cut { piece: 700, overlap: 300, run: 16 };

    /// Ids of all characters of the words, and of every beginning of two characters or more, as one or as parts of one.
    fn vocabulary(prefix: &str, inside: &str) -> Vec<String> {
        let mut all = vec!["?".to_owned()];
        for word in WORDS {
            let chars: Vec<char> = word.chars().collect();
            all.extend((1..=chars.len()).map(|n| format!("{prefix}{}", chars[..n].iter().collect::<String>())));
            all.extend(chars.iter().map(|c| format!("{inside}{c}")));
        }
        let mut seen = std::collections::HashSet::new();
        all.retain(|token| seen.insert(token.clone()));
        all
    }

    fn ids(vocabulary: &[String]) -> Value {
        vocabulary
            .iter()
            .enumerate()
            .map(|(id, token)| (token.clone(), json!(id)))
            .collect::<serde_json::Map<_, _>>()
            .into()
    }

    fn tokenizer(name: &str) -> Tokenizer {
        let part = |kind: &str| json!({"type": kind});
        let all = vocabulary("▁", "");
        let chars = |token: &String| token.chars().count();
        // As SentencePiece's: each token of two characters or more joins the one before and its last character.
        let merges: Vec<_> = all
            .iter()
            .filter(|token| chars(token) > 1)
            .map(|token| {
                let last = token.char_indices().last().expect("two characters").0;
                json!([token[..last], token[last..]])
            })
            .collect();
        let bpe_vocabulary = [all.clone(), vec!["▁".to_owned()]].concat();
        let scored: Vec<_> = bpe_vocabulary.iter().map(|token| json!([token, -10.0 + chars(token) as f64])).collect();
        let spaces = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
        let first = json!({"type": "Prepend", "prepend": "▁"});
        let metaspace = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": true});
        let (normalizer, pre_tokenizer, model) = match name {
            "bytes" => {
                let settings = crate::checkpoint::BpeSettings { vocab_size: 320, ..Default::default() };
                let trained = crate::checkpoint::train_bpe([WORDS.join(" ")].iter(), &settings).unwrap();
                return Tokenizer::from_bytes(trained.to_json().unwrap()).unwrap();
            }
            "whole text" => (
                json!({"type": "Sequence", "normalizers": [first, spaces]}),
                Value::Null,
                json!({"type": "BPE", "vocab": ids(&bpe_vocabulary), "merges": merges, "unk_token": "?", "fuse_unk": true}),
            ),
            "unigram" => (part("NFC"), metaspace, json!({"type": "Unigram", "unk_id": 0, "vocab": scored})),
            "words" => (
                json!({"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null, "lowercase": true}),
                part("BertPreTokenizer"),
                json!({"type": "WordPiece", "vocab": ids(&vocabulary("", "##")), "unk_token": "?", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100}),
            ),
            _ => unreachable!("{name}"),
        };
        let file = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "post_processor": null, "decoder": null,
            "normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "model": model,
        });
        Tokenizer::from_bytes(file.to_string()).unwrap()
    }

    const KINDS: [&str; 4] = ["bytes", "whole text", "unigram", "words"];

    fn places(tokenizer: &Tokenizer, text: &str) -> Vec<Placed> {
        let encoding = tokenizer.encode(text, false).unwrap();
        let places = encoding.get_ids().iter().zip(encoding.get_offsets());
        places.map(|(&id, &(start, end))| Placed { id, start, end }).collect()
    }

    /// The ids by pieces, and how many bytes were tokenised.
    fn by_pieces(tokenizer: &Tokenizer, text: &str) -> (Vec<u32>, usize) {
        let bytes = AtomicUsize::new(0);
        let mut ids = Vec::new();
        let done = encode(text, SMALL, &mut ids, |part| {
            bytes.fetch_add(part.len(), Ordering::Relaxed);
            Ok::<_, Infallible>(places(tokenizer, part))
        });
        done.unwrap();
        (ids, bytes.into_inner())
    }

    fn whole(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
        tokenizer.encode_fast(text, false).unwrap().get_ids().to_vec()
    }

    fn fragment() -> impl Strategy<Value = String> {
        prop_oneof![
            12 => (0..WORDS.len()).prop_map(|i| format!(" {}", WORDS[i])),
            2 => (0..WORDS.len()).prop_map(|i| format!("{},\n\n", WORDS[i])),
            1 => "[ \n\t]{1,40}",
            1 => "[a-z]{1,30}",
            1 => (1usize..60).prop_map(|n| "a".repeat(n)),
            1 => "\\PC{1,8}",
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn pieces_give_the_tokens_of_the_whole(fragments in prop::collection::vec(fragment(), 300..900)) {
            let text = fragments.concat();
            for kind in KINDS {
                let tokenizer = tokenizer(kind);
                let (ids, bytes) = by_pieces(&tokenizer, &text);
                prop_assert!(bytes > text.len(), "{}: no piece overlaps another", kind);
                prop_assert_eq!(ids, whole(&tokenizer, &text), "{}", kind);
            }
        }
    }

    #[test]
    fn a_word_without_an_end_is_one_piece_and_costs_little_more_than_its_length() {
        let text = "a".repeat(20_000);
        for kind in KINDS {
            let tokenizer = tokenizer(kind);
            let (ids, bytes) = by_pieces(&tokenizer, &text);
            assert_eq!(ids, whole(&tokenizer, &text), "{kind}");
            let most = 5 * text.len() + rayon::current_num_threads() * 6 * SMALL.piece;
            assert!(bytes <= most, "{kind}");
        }
    }

    #[test]
    fn what_is_added_around_a_text_is_around_a_long_one() {
        let settings = crate::checkpoint::BpeSettings {
            vocab_size: 320,
            special_tokens: vec!["<s>".into()],
            bos: Some("<s>".into()),
            ..Default::default()
        };
        let tokenizer = crate::checkpoint::train_bpe([WORDS.join(" ")].iter(), &settings).unwrap();
        let text = WORDS.join(" ").repeat(10_000);
        assert!(text.len() > 2 * CUT.piece);
        let inner = Tokenizer::from_bytes(tokenizer.to_json().unwrap()).unwrap();
        let want = inner.encode_fast(text.as_str(), true).unwrap().get_ids().to_vec();
        assert_eq!(want[0], 0);
        assert_eq!(tokenizer.encode(&text).unwrap(), want);
    }
}
