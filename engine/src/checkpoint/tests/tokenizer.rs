use super::super::{BpeSettings, OutputFolder, Tokenizer, train_bpe};
use super::*;

const TEXTS: [&str; 3] = [
    "It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want of a wife.",
    "However little known the feelings or views of such a man may be on his first entering a neighbourhood, this truth \
     is so well fixed in the minds of the surrounding families.",
    "\"My dear Mr. Bennet,\" said his lady to him one day, \"have you heard that Netherfield Park is let at last?\"",
];

/// OPT's special tokens, with its ids.
fn settings() -> BpeSettings {
    BpeSettings {
        vocab_size: 300,
        special_tokens: ["<s>", "<pad>", "</s>", "<unk>"].map(String::from).to_vec(),
        bos: Some("</s>".into()),
        eos: Some("</s>".into()),
        pad: Some("<pad>".into()),
    }
}

fn trained() -> Tokenizer {
    train_bpe(TEXTS.iter(), &settings()).unwrap()
}

fn save(tokenizer: &Tokenizer) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let folder = OutputFolder::create(dir.path().join("t")).unwrap();
    tokenizer.save(&folder).unwrap();
    folder.commit().unwrap();
    dir
}

/// The trained vocabulary and merges as the two files of GPT-2, with what else a test puts beside them.
fn two_files(others: &[(&str, Value)]) -> TempDir {
    let json: Value = serde_json::from_str(&trained().to_json().unwrap()).unwrap();
    let merges: Vec<String> = json["model"]["merges"]
        .as_array()
        .unwrap()
        .iter()
        .map(|pair| format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap()))
        .collect();
    let dir = tempfile::tempdir().unwrap();
    let put = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    put("vocab.json", &json["model"]["vocab"].to_string());
    put("merges.txt", &format!("#version: 0.2\n{}\n", merges.join("\n")));
    others.iter().for_each(|(name, value)| put(name, &value.to_string()));
    dir
}

#[test]
fn any_text_survives_encoding_and_decoding() {
    let tokenizer = trained();
    assert_eq!(tokenizer.vocab_size(), 300);
    for text in TEXTS.iter().copied().chain(["", "  spaces\n\n\ttabs", "naïve façade 東京 🦀", "\u{0}\u{7f}"]) {
        let ids = tokenizer.encode(text).unwrap();
        assert_eq!(ids[0], 2, "BOS stands in front");
        assert!(ids.iter().all(|&id| id < 300));
        assert_eq!(tokenizer.decode(&ids[1..]).unwrap(), text);
    }
}

#[test]
fn training_is_deterministic() {
    let one = trained().to_json().unwrap();
    let reversed = train_bpe(TEXTS.iter().rev(), &settings()).unwrap();
    assert_eq!(one, trained().to_json().unwrap());
    assert_eq!(one, reversed.to_json().unwrap());
}

#[test]
fn special_tokens_get_the_first_ids() {
    let tokenizer = trained();
    let ids = ["<s>", "<pad>", "</s>", "<unk>"].map(|token| tokenizer.token_id(token));
    assert_eq!(ids, [Some(0), Some(1), Some(2), Some(3)]);
}

#[test]
fn a_tokenizer_without_bos_adds_nothing() {
    let tokenizer = train_bpe(TEXTS.iter(), &BpeSettings { vocab_size: 300, ..BpeSettings::default() }).unwrap();
    assert!(tokenizer.encode("").unwrap().is_empty());
}

#[test]
fn a_saved_tokenizer_encodes_as_before() {
    let tokenizer = trained();
    let dir = save(&tokenizer);
    let folder = dir.path().join("t");
    assert_eq!(listing(&folder), ["tokenizer.json", "tokenizer_config.json"]);
    let again = Tokenizer::from_folder(&folder).unwrap();
    assert_eq!(again.encode(TEXTS[0]).unwrap(), tokenizer.encode(TEXTS[0]).unwrap());
    let config: Value = serde_json::from_slice(&std::fs::read(folder.join("tokenizer_config.json")).unwrap()).unwrap();
    assert_eq!(config["bos_token"], "</s>");
    assert_eq!(config["tokenizer_class"], "PreTrainedTokenizerFast");
}

#[test]
fn truncation_and_padding_of_the_file_are_ignored() {
    let tokenizer = trained();
    let dir = save(&tokenizer);
    let file = dir.path().join("t/tokenizer.json");
    let mut json: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    json["truncation"] = json!({"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0});
    json["padding"] = json!({"strategy": {"Fixed": 999}, "direction": "Right", "pad_to_multiple_of": null,
        "pad_id": 1, "pad_type_id": 0, "pad_token": "<pad>"});
    std::fs::write(&file, json.to_string()).unwrap();
    let again = Tokenizer::from_folder(dir.path().join("t")).unwrap();
    assert_eq!(again.encode(TEXTS[1]).unwrap(), tokenizer.encode(TEXTS[1]).unwrap());
}

#[test]
fn vocab_and_merges_encode_as_tokenizer_json_does() {
    let expected = trained().encode(TEXTS[2]).unwrap();
    let bos = json!({"content": "</s>", "lstrip": false, "normalized": true});
    let with_config = two_files(&[("tokenizer_config.json", json!({"add_bos_token": true, "bos_token": bos}))]);
    assert_eq!(Tokenizer::from_folder(with_config.path()).unwrap().encode(TEXTS[2]).unwrap(), expected);

    let with_map = two_files(&[
        ("tokenizer_config.json", json!({"add_bos_token": true})),
        ("special_tokens_map.json", json!({"bos_token": "</s>", "pad_token": "<pad>"})),
    ]);
    let tokenizer = Tokenizer::from_folder(with_map.path()).unwrap();
    assert_eq!(tokenizer.encode(TEXTS[2]).unwrap(), expected);
    assert_eq!(tokenizer.encode("a<pad>").unwrap().last(), Some(&1), "special tokens are seen in text");

    let bare = Tokenizer::from_folder(two_files(&[]).path()).unwrap();
    assert_eq!(bare.encode(TEXTS[2]).unwrap(), expected[1..], "without a configuration nothing is added");
}

#[test]
fn added_tokens_keep_their_ids() {
    let dir = two_files(&[("added_tokens.json", json!({"<b>": 301, "<a>": 300}))]);
    let tokenizer = Tokenizer::from_folder(dir.path()).unwrap();
    assert_eq!(tokenizer.encode("<b><a>").unwrap(), [301, 300]);
    assert_eq!(tokenizer.vocab_size(), 302);
    let dir = two_files(&[("added_tokens.json", json!({"<a>": 305}))]);
    assert_message(Tokenizer::from_folder(dir.path()), &["added_tokens.json", "<a>", "305"]);
}

#[test]
fn bad_tokenizer_files_are_named() {
    let dir = tempfile::tempdir().unwrap();
    assert_message(
        Tokenizer::from_folder(dir.path()),
        &["no tokenizer", "tokenizer.json", "vocab.json with merges.txt"],
    );
    std::fs::write(dir.path().join("tokenizer.model"), "x").unwrap();
    assert_message(Tokenizer::from_folder(dir.path()), &["only tokenizer.model"]);
    std::fs::write(dir.path().join("tokenizer.json"), "{\"version\": \"1.0\"}").unwrap();
    assert_message(Tokenizer::from_folder(dir.path()), &["tokenizer.json", "not a valid tokenizer"]);

    let bad = |name: &str, text: &str, parts: &[&str]| {
        let dir = two_files(&[]);
        std::fs::write(dir.path().join(name), text).unwrap();
        assert_message(Tokenizer::from_folder(dir.path()), parts);
    };
    bad("vocab.json", "{\"a\": -1}", &["vocab.json", "tokens to ids"]);
    bad("merges.txt", "a b c", &["merges.txt", "line 1", "two symbols"]);
    bad("merges.txt", "nothere either", &["merges.txt", "not a valid tokenizer"]);
    bad("tokenizer_config.json", "{\"add_bos_token\": true}", &["tokenizer_config.json", "no bos_token"]);
    let unknown = "{\"add_bos_token\": true, \"bos_token\": 3}";
    bad("tokenizer_config.json", unknown, &["tokenizer_config.json", "no bos_token"]);
}

#[test]
fn a_tokenizer_json_cut_anywhere_is_an_error_and_never_a_panic() {
    let dir = save(&trained());
    let file = dir.path().join("t/tokenizer.json");
    let whole = std::fs::read(&file).unwrap();
    for length in (0..whole.len() - 1).step_by(331) {
        std::fs::write(&file, &whole[..length]).unwrap();
        assert_message(Tokenizer::from_folder(dir.path().join("t")), &["tokenizer.json"]);
    }
}

#[test]
fn settings_that_contradict_themselves_are_refused() {
    let train = |change: fn(&mut BpeSettings)| {
        let mut settings = settings();
        change(&mut settings);
        train_bpe(TEXTS.iter(), &settings)
    };
    assert_message(train(|s| s.vocab_size = 259), &["vocabulary of 259", "260 at least"]);
    assert_message(train(|s| s.bos = Some("<bos>".into())), &["<bos>", "one of the special tokens"]);
    assert_message(train(|s| s.special_tokens.push("<s>".into())), &["<s>", "twice"]);
    train(|s| s.vocab_size = 260).unwrap();
}
