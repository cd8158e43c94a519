//! Data sets: which files are a configuration's and a split's.

use engine::hub::Use::{Test, Train, Validation};

use super::server::{COMMIT, CONVERTED, Repo};
use super::{Setup, assert_says};

/// A repository of files whose bytes do not matter.
fn of(names: &[&str]) -> Repo {
    Repo::of(&names.iter().map(|name| (*name, name.as_bytes())).collect::<Vec<_>>())
}

fn c4() -> Repo {
    let mut names: Vec<String> = (0..8).map(|shard| format!("en/c4-train.{shard:05}-of-00008.json.gz")).collect();
    names.extend((0..2).map(|shard| format!("en/c4-validation.{shard:05}-of-00002.json.gz")));
    names.push("en.noclean/c4-train.00000-of-00001.json.gz".into());
    names.push("realnewslike/c4-train.00000-of-00001.json.gz".into());
    names.push("c4.py".into());
    of(&names.iter().map(String::as_str).collect::<Vec<_>>())
}

fn wikitext() -> Repo {
    of(&[
        "README.md",
        "wikitext-103-raw-v1/train-00000-of-00002.parquet",
        "wikitext-103-raw-v1/train-00001-of-00002.parquet",
        "wikitext-2-raw-v1/test-00000-of-00001.parquet",
        "wikitext-2-raw-v1/train-00000-of-00001.parquet",
        "wikitext-2-raw-v1/validation-00000-of-00001.parquet",
    ])
}

#[test]
fn a_configuration_is_a_folder_and_a_split_a_word_of_a_name() {
    let setup = Setup::with("datasets/allenai/c4", c4());
    let first = ["en/c4-train.00000-of-00008.json.gz"];
    assert_eq!(setup.names("allenai/c4:en", Train, Some(1)), first);
    assert_eq!(setup.data("allenai/c4:en", Train, Some(1)).unwrap().of, 8);
    assert_eq!(setup.names("allenai/c4:en", Train, Some(3)).len(), 3);
    assert_eq!(setup.names("allenai/c4:en", Train, None).len(), 8);
    // Neither has a test split.
    for wanted in [Test, Validation] {
        assert_eq!(setup.names("allenai/c4:en", wanted, Some(1)), ["en/c4-validation.00000-of-00002.json.gz"]);
    }
    assert_eq!(setup.names("allenai/c4:en:train", Test, Some(1)), first);
    let asked: Vec<String> = setup.asked();
    assert!(!asked.iter().any(|path| path.contains("noclean") || path.contains("c4.py")), "{asked:?}");

    assert_says(
        setup.data("allenai/c4:fr", Train, None),
        &["allenai/c4:fr: has no part \"fr\"", "en, en.noclean, realnewslike"],
    );
    assert_says(
        setup.data("allenai/c4", Train, None),
        &["allenai/c4: has several parts", "behind a colon", "en.noclean"],
    );
    let no_split = setup.data("allenai/c4:realnewslike", Test, None);
    assert_says(no_split, &["has no split \"test\" or \"validation\"", "realnewslike/c4-train.00000-of-00001.json.gz"]);
    assert_says(setup.data("owner/none:en", Train, None), &["owner/none:en: ", "no such data set", "HF_TOKEN"]);
}

#[test]
fn names_without_an_owner_are_where_the_hub_has_moved_them() {
    let setup = Setup::with("datasets/Salesforce/wikitext", wikitext());
    setup
        .server
        .add("datasets/wikitext", Repo { moved: Some("datasets/Salesforce/wikitext".into()), ..Repo::default() });
    let names = setup.names("wikitext:wikitext-2-raw-v1", Test, Some(1));
    assert_eq!(names, ["wikitext-2-raw-v1/test-00000-of-00001.parquet"]);
    assert!(setup.cache("datasets--wikitext/snapshots").join(COMMIT).join(&names[0]).is_file());
    let names = setup.names("wikitext:wikitext-103-raw-v1", Train, None);
    assert_eq!(names.len(), 2);
}

#[test]
fn files_can_be_named() {
    let setup = Setup::with("datasets/allenai/c4", c4());
    let one = "en/c4-train.00003-of-00008.json.gz";
    assert_eq!(setup.names(&format!("allenai/c4:{one}@main"), Train, Some(1)), [one]);
    assert_eq!(setup.names("allenai/c4:en/c4-validation.*.json.gz", Train, Some(1)).len(), 2, "all that are named");
    assert_eq!(setup.names("allenai/c4:*/c4-train.00000-*", Train, None).len(), 3);
    assert_eq!(setup.names("allenai/c4:**/*-of-00001*", Train, None).len(), 2);
    assert_says(
        setup.data("allenai/c4:en/*.txt", Train, None),
        &["allenai/c4:en/*.txt: has no file \"en/*.txt\"", "en.noclean"],
    );
}

#[test]
fn a_card_says_which_files_are_a_configuration_s() {
    let mut repo =
        of(&["README.md", "sample/10BT/000.parquet", "sample/10BT/001.parquet", "all/x.parquet", "held.jsonl"]);
    repo.card = Some(
        r#"{"license": "odc-by", "configs": [
            {"config_name": "all", "data_files": "all/*"},
            {"config_name": "sample-10BT", "default": true, "data_files": [
                {"split": "train", "path": "sample/10BT/*"}, {"split": "test", "path": ["held.jsonl"]}]},
            {"config_name": "gone", "data_files": [{"split": "train", "path": "gone/*"}]},
            {"config_name": 7}, "nonsense"]}"#
            .into(),
    );
    let mut setup = Setup::with("datasets/owner/web", repo);
    let two = ["sample/10BT/000.parquet", "sample/10BT/001.parquet"];
    assert_eq!(setup.names("owner/web:sample-10BT", Train, None), two);
    assert_eq!(setup.names("owner/web", Train, None), two, "the default one");
    assert_eq!(setup.names("owner/web", Test, None), ["held.jsonl"]);
    assert_eq!(setup.names("owner/web:all", Train, None), ["all/x.parquet"]);
    assert_says(
        setup.data("owner/web:all", Test, None),
        &["has no split \"test\" or \"validation\"; \"all\" has train"],
    );
    assert_says(setup.data("owner/web:gone", Train, None), &["no files of text for its split \"train\"", "gone/*"]);
    assert_says(setup.data("owner/web:mine", Train, None), &["has no part \"mine\"", "sample-10BT"]);
    // The card is known without a network, too.
    setup.settings.offline = true;
    assert_eq!(setup.names("owner/web:sample-10BT", Train, None), two);
    assert_says(setup.data("owner/web:mine", Train, None), &["has no part \"mine\"", "sample-10BT"]);
}

#[test]
fn splits_have_the_names_that_the_hub_knows_and_what_has_none_is_for_training() {
    let setup =
        Setup::with("datasets/owner/plain", of(&["data/dev-0.jsonl", "data/training-0.jsonl", "data/eval.jsonl"]));
    assert_eq!(setup.names("owner/plain", Train, None), ["data/training-0.jsonl"]);
    assert_eq!(setup.names("owner/plain", Validation, None), ["data/dev-0.jsonl"]);
    assert_eq!(setup.names("owner/plain", Test, None), ["data/eval.jsonl"]);
    setup.server.add("datasets/owner/lines", of(&["a.jsonl", "b.jsonl", "dataset_infos.json"]));
    assert_eq!(setup.names("owner/lines", Train, None), ["a.jsonl", "b.jsonl"]);
    assert_says(
        setup.data("owner/lines", Test, None),
        &["owner/lines: has no split \"test\" or \"validation\"", "a.jsonl"],
    );
}

#[test]
fn what_is_no_text_is_taken_as_the_parquet_files_that_the_hub_made_of_it() {
    let mut repo = of(&["script.py", "README.md"]);
    repo.converted = of(&["default/partial-train/0000.parquet", "default/test/0000.parquet"]).files;
    let setup = Setup::with("datasets/owner/script", repo);
    assert_eq!(setup.names("owner/script", Train, None), ["default/partial-train/0000.parquet"]);
    assert_eq!(setup.names("owner/script:default:test", Train, None), ["default/test/0000.parquet"]);
    assert!(setup.cache("datasets--owner--script/snapshots").join(CONVERTED).is_dir());
    setup.server.add("datasets/owner/pictures", of(&["a.png"]));
    assert_says(setup.data("owner/pictures", Train, None), &["owner/pictures: has no files of text", "script"]);
    assert_says(setup.data(&format!("owner/script@{COMMIT}"), Train, None), &["has no files of text"]);
}

#[test]
fn part_of_a_split_that_another_program_left_is_not_taken_for_its_beginning() {
    let mut setup = Setup::with("datasets/allenai/c4", c4());
    setup.settings.offline = true;
    let folder = setup.cache("datasets--allenai--c4/snapshots").join(COMMIT).join("en");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::create_dir_all(setup.cache("datasets--allenai--c4/refs")).unwrap();
    std::fs::write(setup.cache("datasets--allenai--c4/refs/main"), COMMIT).unwrap();
    let put = |shard: usize| std::fs::write(folder.join(format!("c4-train.{shard:05}-of-00008.json.gz")), "x").unwrap();
    put(1);
    assert_says(
        setup.data("allenai/c4:en", Train, Some(1)),
        &["allenai/c4:en: ", "some of its files are not in the cache"],
    );
    put(0);
    let found = setup.data("allenai/c4:en", Train, Some(2)).unwrap();
    assert_eq!((found.files.len(), found.of), (2, 8));
    assert_says(setup.data("allenai/c4:en", Train, Some(3)), &["some of its files are not in the cache"]);
    assert_says(setup.data("allenai/c4:en", Test, Some(1)), &["allenai/c4:en: ", "its files are not in the cache"]);
}

#[test]
fn names_that_leave_their_folder_are_refused() {
    for escape in
        ["../../../../evil-train.jsonl", "/tmp/evil-train.jsonl", "train/../../evil.jsonl", "a\u{1b}[31m/train.jsonl"]
    {
        let setup = Setup::with("datasets/owner/evil", of(&[escape]));
        let mut repo = of(&[escape]);
        repo.card = Some(r#"{"configs": [{"config_name": "default", "data_files": "**"}]}"#.into());
        setup.server.add("datasets/owner/card", repo);
        // By a pattern, by the card, and by a folder's name, where a configuration can be called so.
        let folder = ["tmp", "train"].into_iter().find(|folder| escape.split('/').any(|part| part == *folder));
        let folder = folder.map(|folder| format!("owner/evil:{folder}"));
        for id in ["owner/evil:**", "owner/card"].into_iter().chain(folder.as_deref()) {
            let said = setup.data(id, Train, None).unwrap_err().to_string();
            let refused = format!("{id}: names a file \"{}\", which leaves its folder", escape.escape_debug());
            assert_eq!(said, refused);
        }
        // And what lists the names lists them escaped.
        let said = setup.data("owner/evil:none", Train, None).unwrap_err().to_string();
        assert!(said.contains("has no part \"none\"") && !said.contains('\u{1b}'), "{said}");
        let mut found = walk(setup.folder.path());
        found.retain(|path| path.contains("evil") && !path.contains("datasets--owner--"));
        assert!(found.is_empty(), "{found:?}");
    }
}

fn walk(folder: &std::path::Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in folder.read_dir().unwrap().flatten() {
        match entry.file_type().unwrap().is_dir() {
            true => found.extend(walk(&entry.path())),
            false => found.push(entry.path().display().to_string()),
        }
    }
    found
}
