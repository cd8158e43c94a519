//! Ids, settings and names. What needs a hub is tested against one on loopback, with the program.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use super::cache::is_inside;
use super::conversion::{Page, is_revision};
use super::id::{DataId, DataPart, ModelId};
use super::listing::{Config, Listing};
use super::settings::Settings;

#[test]
fn models_are_an_owner_a_name_and_perhaps_a_revision() {
    for (text, repo, revision) in [
        ("facebook/opt-1.3b", "facebook/opt-1.3b", "main"),
        ("facebook/opt-1.3b@v1.0", "facebook/opt-1.3b", "v1.0"),
        ("a/b_c@refs/pr/12", "a/b_c", "refs/pr/12"),
    ] {
        let id: ModelId = text.parse().unwrap();
        assert_eq!((id.repo.as_str(), id.revision.as_str()), (repo, revision));
        assert_eq!(id.to_string(), text);
    }
    let long = format!("a/{}", "b".repeat(95));
    for path in [
        "",
        "gpt2",
        "/a/b",
        "./a/b",
        "../a",
        "a/..",
        "a/b/c",
        "a/",
        "/b",
        "~/models/x",
        "a\\b",
        "a/b@",
        "a/b@x y",
        "a/b@../x",
        "a/b@-x",
        "a/b:c",
        "a/b c",
        "a/é",
        "a/.b",
        "a/-b",
        "a/b.",
        "a/b--c",
        &long,
    ] {
        assert!(path.parse::<ModelId>().is_err(), "{path}");
    }
}

#[test]
fn data_sets_may_name_a_configuration_a_split_or_files() {
    let split = |config: Option<&str>, split: Option<&str>| DataPart::Split {
        config: config.map(str::to_string),
        split: split.map(str::to_string),
    };
    let files = |files: &str| DataPart::Files(files.into());
    for (text, repo, part, revision) in [
        ("wikitext:wikitext-2-raw-v1", "wikitext", split(Some("wikitext-2-raw-v1"), None), "main"),
        ("allenai/c4:en:validation@1588ec4", "allenai/c4", split(Some("en"), Some("validation")), "1588ec4"),
        ("allenai/c4", "allenai/c4", split(None, None), "main"),
        ("allenai/c4:en/c4-train.0000?-*@main", "allenai/c4", files("en/c4-train.0000?-*"), "main"),
        ("owner/texts:train.jsonl.gz", "owner/texts", files("train.jsonl.gz"), "main"),
    ] {
        let id: DataId = text.parse().unwrap();
        assert_eq!((id.repo.as_str(), &id.part, id.revision.as_str()), (repo, &part, revision));
        assert_eq!(id.to_string(), text.trim_end_matches("@main"));
    }
    // What stands behind the last @ would be read as a revision.
    let id: DataId = "o/n:a@b/*.txt@main".parse().unwrap();
    assert_eq!((&id.part, id.revision.as_str()), (&files("a@b/*.txt"), "main"));
    assert_eq!(id.to_string().parse(), Ok(id));
    for path in [
        "",
        "words",
        "data/words.txt",
        "data/c4.json.gz",
        "data/*.jsonl",
        "/a/b:c",
        "./a:b",
        "a/b/c:d",
        "a/b:",
        "a/b:c:",
        "a/b::d",
        "a/b:c:d:e",
        "a/b:../c:d",
        "C:\\text.txt",
        "a/b:c d",
    ] {
        assert!(path.parse::<DataId>().is_err(), "{path}");
    }
}

#[test]
fn settings_are_those_of_the_hub_s_other_programs() {
    let read = |variables: &[(&str, &str)]| {
        let variables: HashMap<String, String> = variables.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
        Settings::read(|name| variables.get(name).cloned())
    };
    let folder = tempfile::TempDir::new().unwrap();
    let at = folder.path().to_str().unwrap();
    let plain = read(&[("HOME", at)]).unwrap();
    assert_eq!(plain.endpoint, "https://huggingface.co");
    assert_eq!(plain.cache, folder.path().join(".cache/huggingface/hub"));
    assert_eq!((plain.token.as_deref(), plain.offline, plain.timeout), (None, false, Duration::from_secs(30)));

    let cache = |variables: &[(&str, &str)]| read(variables).unwrap().cache;
    assert_eq!(cache(&[("HOME", at), ("XDG_CACHE_HOME", "/x")]), Path::new("/x/huggingface/hub"));
    assert_eq!(cache(&[("HOME", at), ("HF_HOME", "/h")]), Path::new("/h/hub"));
    assert_eq!(cache(&[("HOME", at), ("HF_HOME", "~/h")]), folder.path().join("h/hub"));
    assert_eq!(cache(&[("HF_HOME", "/h"), ("HF_HUB_CACHE", "/c")]), Path::new("/c"));

    std::fs::write(folder.path().join("token"), "hf_file\n").unwrap();
    let token = |variables: &[(&str, &str)]| read(variables).unwrap().token;
    assert_eq!(token(&[("HF_HOME", at)]).as_deref(), Some("hf_file"));
    assert_eq!(token(&[("HF_HOME", at), ("HF_TOKEN", " hf_variable ")]).as_deref(), Some("hf_variable"));
    let path = folder.path().join("token");
    assert_eq!(token(&[("HF_HOME", "/h"), ("HF_TOKEN_PATH", path.to_str().unwrap())]).as_deref(), Some("hf_file"));

    let home = ("HF_HOME", at);
    assert_eq!(read(&[home, ("HF_ENDPOINT", "http://mirror/hf/")]).unwrap().endpoint, "http://mirror/hf");
    assert!(read(&[home, ("HF_HUB_OFFLINE", "ON")]).unwrap().offline);
    assert!(read(&[home, ("TRANSFORMERS_OFFLINE", "1")]).unwrap().offline);
    assert!(!read(&[home, ("HF_HUB_OFFLINE", "0")]).unwrap().offline);
    assert_eq!(read(&[home, ("HF_HUB_DOWNLOAD_TIMEOUT", "5")]).unwrap().timeout, Duration::from_secs(5));
    for bad in
        [("HF_ENDPOINT", "ftp://x"), ("HF_TOKEN", "a\nb"), ("HF_HUB_DOWNLOAD_TIMEOUT", "0"), ("SSL_CERT_FILE", "/no")]
    {
        let error = read(&[home, bad]).unwrap_err().to_string();
        assert!(error.starts_with(bad.0), "{error}");
    }
    assert!(read(&[]).unwrap_err().to_string().contains("HF_HOME"));
    assert!(!format!("{:?}", read(&[home, ("HF_TOKEN", "hf_secret")]).unwrap()).contains("hf_secret"));
}

#[test]
fn names_stay_in_their_folder() {
    for name in ["config.json", "a/b/c.parquet", "..c", "a..b", "…"] {
        assert!(is_inside(name), "{name}");
    }
    for name in
        ["", "/a", "../a", "a/../b", "a/..", "./a", "a//b", "a/", "a\\b", "C:a", "a\0", "a\nb", "a\u{1b}[0m", "."]
    {
        assert!(!is_inside(name), "{name:?}");
    }
}

#[test]
fn what_is_kept_of_a_listing_reads_as_the_answer_did() {
    let answer = br#"{"sha": "c", "private": false, "siblings": [{"rfilename": "a.txt", "size": 3}], "cardData": {"license": "mit",
        "configs": [{"config_name": "x", "data_files": ["a.txt", {"split": "test", "path": ["b/*"]}, {"split": "test", "path": "c"}]}]}}"#;
    let (listing, kept) = Listing::parse(answer).unwrap();
    let splits = vec![("train".into(), vec!["a.txt".into()]), ("test".into(), vec!["b/*".into(), "c".into()])];
    let configs = vec![Config { name: "x".into(), is_default: false, splits }];
    assert_eq!(listing, Listing { commit: "c".into(), files: vec!["a.txt".into()], configs });
    assert_eq!(Listing::parse(kept.as_bytes()).unwrap(), (listing, kept.clone()));
    assert!(!kept.contains("license"));
    // Cards of other shapes are none.
    for card in ["null", "{}", r#"{"configs": {}}"#, r#"{"configs": [{"config_name": "x", "data_files": [1]}]}"#] {
        let answer = format!(r#"{{"sha": "c", "siblings": [], "cardData": {card}}}"#);
        assert!(Listing::parse(answer.as_bytes()).unwrap().0.configs.is_empty(), "{card}");
    }
}

#[test]
fn pull_requests_are_the_bot_s_open_ones_of_that_title() {
    let page = |discussions: &str, count: u64, start: u64| {
        let answer = format!(r#"{{"discussions": [{discussions}], "count": {count}, "start": {start}, "other": 1}}"#);
        Page::parse(answer.as_bytes())
    };
    let one = |num: u64, title: &str, is_pull_request: bool, status: &str, author: &str| {
        format!(
            r#"{{"num": {num}, "title": {title:?}, "isPullRequest": {is_pull_request}, "status": {status:?}, "author": {author}}}"#
        )
    };
    let (title, bot) = ("Adding `safetensors` variant of this model", r#"{"name": "SFconvertbot", "isHf": true}"#);
    let (right, older) = (one(12, title, true, "open", bot), one(9, title, true, "open", bot));
    assert_eq!(page(&format!("{older},{right}"), 2, 0).unwrap().newest(), Some(12));
    assert_eq!(page(&format!("{right},{older}"), 2, 0).unwrap().newest(), Some(12));
    for other in [
        one(12, "Adding `safetensors` variant of another model", true, "open", bot),
        one(12, title, false, "open", bot),
        one(12, title, true, "closed", bot),
        one(12, title, true, "merged", bot),
        one(12, title, true, "draft", bot),
        one(12, title, true, "open", r#"{"name": "sfconvertbot2", "fullname": "SFconvertbot"}"#),
        one(12, title, true, "open", r#"{"name": null}"#),
        one(12, title, true, "open", "{}"),
        one(12, title, true, "open", "null"),
    ] {
        assert_eq!(page(&other, 1, 0).unwrap().newest(), None, "{other}");
        assert_eq!(page(&format!("{other},{older}"), 2, 0).unwrap().newest(), Some(9), "{other}");
    }
    let has_next = |discussions: &str, count, start| page(discussions, count, start).unwrap().has_next();
    assert!(has_next(&right, 2, 0) && !has_next(&right, 2, 1) && !has_next(&right, 1, u64::MAX));
    assert!(!has_next("", 2, 0), "an empty page is the last, whatever it counts");
    for odd in [one(12, title, true, "open", "7"), "7".into(), right.replace("12", "-1")] {
        assert!(page(&odd, 1, 0).is_err(), "{odd}");
    }

    assert!(is_revision("refs/pr/12"));
    for other in ["", "main", "refs/pr/", "refs/pr/x", "refs/pr/-1", "refs/pr/+1", "refs/pr/01", "refs/pr/1/../../x"] {
        assert!(!is_revision(other), "{other}");
    }
}
