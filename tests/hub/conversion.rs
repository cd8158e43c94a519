//! Models with weights in `.bin` alone, and the pull requests that offer them as safetensors.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

use super::server::{COMMIT, Mishap, On, Repo, pull_commit};
use super::{Setup, assert_says, bytes};

const TITLE: &str = "Adding `safetensors` variant of this model";
const BOT: &str = "SFconvertbot";

/// A discussion as the API has them.
fn discussion(num: u64, title: &str, is_pull_request: bool, status: &str, author: &str) -> Value {
    json!({
        "num": num, "title": title, "isPullRequest": is_pull_request, "status": status, "pinned": false,
        "author": {"name": author, "fullname": BOT, "type": "user", "isHf": false},
        "repo": {"name": "owner/old", "type": "model"}, "createdAt": "2023-04-29T08:41:22.000Z",
    })
}

/// What a pull request has: each its own weights, configuration and tokenizer, beside what `main` has.
fn pull(number: u64) -> BTreeMap<String, Vec<u8>> {
    let (config, tokenizer) = (format!("{{\"pull\": {number}}}"), format!("[{number}]"));
    let weights = bytes(1000 + number as usize);
    Repo::of(&[
        ("config.json", config.as_bytes()),
        ("tokenizer.json", tokenizer.as_bytes()),
        ("model.safetensors", &weights),
        ("pytorch_model.bin", b"code"),
    ])
    .files
}

/// A model whose `main` has no safetensors, with these discussions, and with a pull request of each number.
fn old(discussions: Vec<Value>) -> Repo {
    let numbers = discussions.iter().filter_map(|one| one["num"].as_u64());
    let pulls = numbers.map(|number| (number, pull(number))).collect();
    let files: [(&str, &[u8]); 4] = [
        ("config.json", b"{}"),
        ("tokenizer.json", b"{ }"),
        ("flax_model.msgpack", b"pack"),
        ("pytorch_model.bin", b"code"),
    ];
    Repo { pulls, discussions, ..Repo::of(&files) }
}

fn assert_is_pull(setup: &Setup, folder: &Path, number: u64) {
    assert_eq!(folder, setup.cache("models--owner--old/snapshots").join(pull_commit(number)));
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        assert!(std::fs::read(folder.join(name)).unwrap() == pull(number)[name], "{name}");
    }
}

/// Discussions that were asked for since this was last called.
fn asked(setup: &Setup) -> Vec<String> {
    let paths = setup.server.requests().into_iter().map(|request| request.path);
    paths.filter(|path| path.contains("/discussions")).collect()
}

const NONE: [&str; 4] = [
    "owner/old: has no model.safetensors, only pytorch_model.bin",
    "no open pull request of SFconvertbot",
    "owner/old@refs/pr/N",
    "save_pretrained",
];

#[test]
fn all_of_a_model_in_bin_alone_is_taken_from_the_bot_s_newest_pull_request() {
    // On three pages, in no order; newer than the right one are those that are not to be taken.
    let discussions = vec![
        discussion(17, "How is it prompted?", false, "open", "reader"),
        discussion(9, TITLE, true, "open", BOT),
        discussion(16, TITLE, true, "open", "mallory"),
        discussion(14, TITLE, true, "closed", BOT),
        discussion(12, TITLE, true, "open", BOT),
        discussion(15, "Adding `flax` variant of this model", true, "open", BOT),
    ];
    let mut setup = Setup::with("models/owner/old", old(discussions));
    let folder = setup.model("owner/old").unwrap();
    assert_is_pull(&setup, &folder, 12);
    assert_eq!(setup.told(), ["refs/pr/12 of SFconvertbot"]);
    let requests = setup.server.requests();
    assert!(!requests.iter().any(|request| request.path.contains(".bin")), "{requests:?}");
    let pages: Vec<&str> =
        requests.iter().filter_map(|one| one.path.split_once("/discussions?")).map(|two| two.1).collect();
    let filtered = |page: usize| format!("p={page}&type=pull_request&status=open&author=SFconvertbot");
    assert_eq!(pages, [filtered(0), filtered(1), filtered(2)]);
    let sizes: usize =
        ["config.json", "tokenizer.json", "model.safetensors"].iter().map(|name| pull(12)[*name].len()).sum();
    assert_eq!(setup.server.sent(), sizes, "nothing of main");

    // Without a network the cache has it, and is not in doubt which it was.
    setup.model("owner/old@refs/pr/16").unwrap();
    setup.server.requests();
    setup.told();
    setup.settings.offline = true;
    assert_eq!(setup.model("owner/old").unwrap(), folder);
    assert_eq!(setup.told(), ["refs/pr/12 of SFconvertbot"]);
    assert!(setup.server.requests().is_empty());
    setup.settings.offline = false;
    setup.cut();
    assert_eq!(setup.model("owner/old").unwrap(), folder);
    let told = setup.told();
    assert!(matches!(told.as_slice(), [one, _] if one.contains("cannot be reached")), "asked once: {told:?}");
    setup.settings.offline = true;
    std::fs::remove_file(folder.join("model.safetensors")).unwrap();
    assert_says(setup.model("owner/old"), &["owner/old@refs/pr/12: ", "model.safetensors is not in the cache"]);
    // A revision that nobody would keep there is none.
    std::fs::write(setup.cache("models--owner--old/.listings/conversion"), "refs/pr/../../../x").unwrap();
    assert_says(setup.model("owner/old"), &["owner/old: ", "its weights in safetensors are not in the cache"]);
}

#[test]
fn pull_requests_of_others_are_taken_only_where_they_are_named() {
    let mut setup = Setup::with("models/owner/old", old(vec![discussion(3, TITLE, true, "open", "mallory")]));
    assert_says(setup.model("owner/old"), &NONE);
    assert_eq!(setup.server.sent(), 0);
    assert_eq!(asked(&setup).len(), 1);
    assert!(setup.told().is_empty());
    let folder = setup.model("owner/old@refs/pr/3").unwrap();
    assert_is_pull(&setup, &folder, 3);
    // Here, too, and without a network.
    assert_says(setup.model("owner/old"), &NONE);
    setup.settings.offline = true;
    assert_says(setup.model("owner/old"), &["owner/old: ", "its weights in safetensors are not in the cache"]);
}

#[test]
fn the_bot_is_asked_for_where_main_has_bin_alone_and_no_revision_is_named() {
    let bot = || vec![discussion(2, TITLE, true, "open", BOT)];
    let setup = Setup::with("models/owner/old", old(bot()));
    let named = format!("owner/old@{COMMIT}");
    let said = setup.model(&named).unwrap_err().to_string();
    assert!(said.starts_with(&format!("{named}: has no model.safetensors")) && !said.contains(BOT), "{said}");
    // Whose weights are not wanted need not have them.
    assert_eq!(setup.part("owner/old", false).unwrap(), setup.cache("models--owner--old/snapshots").join(COMMIT));
    let mut safe = old(bot());
    safe.files.insert("model.safetensors".into(), bytes(7));
    setup.server.add("models/owner/safe", safe);
    setup.model("owner/safe").unwrap();
    let mut flax = old(bot());
    flax.files.remove("pytorch_model.bin");
    setup.server.add("models/owner/flax", flax);
    let said = setup.model("owner/flax").unwrap_err().to_string();
    assert!(said.contains("has no model.safetensors, only flax_model.msgpack") && !said.contains(BOT), "{said}");
    assert!(asked(&setup).is_empty());
    setup.model("owner/old").unwrap();
    assert_eq!(asked(&setup).len(), 1);
}

#[test]
fn a_pull_request_that_is_closed_or_brings_nothing_is_none() {
    let open = || old(vec![discussion(2, TITLE, true, "open", BOT)]);
    let mut setup = Setup::with("models/owner/old", open());
    setup.model("owner/old").unwrap();
    setup.server.add("models/owner/old", old(vec![discussion(2, TITLE, true, "closed", BOT)]));
    assert_says(setup.model("owner/old"), &NONE);
    setup.settings.offline = true;
    assert_says(setup.model("owner/old"), &["owner/old: ", "its weights in safetensors are not in the cache"]);
    setup.settings.offline = false;
    let mut empty = open();
    empty.pulls.get_mut(&2).unwrap().remove("model.safetensors");
    setup.server.add("models/owner/old", empty);
    assert_says(setup.model("owner/old"), &NONE);
    setup.server.add("models/owner/old", Repo { pulls: BTreeMap::new(), ..open() });
    assert_says(setup.model("owner/old"), &NONE);
}

#[test]
fn a_hub_without_discussions_has_none_and_one_in_trouble_says_so() {
    let setup = Setup::with("models/owner/old", old(vec![discussion(2, TITLE, true, "open", BOT)]));
    for mishap in [
        Mishap::Status(403, ""),
        Mishap::Status(404, ""),
        Mishap::Says("<html>".into()),
        Mishap::Says(r#"{"discussions": [{"num": 2}], "count": 1, "start": 0}"#.into()),
        Mishap::Says("[".repeat(400)),
    ] {
        setup.server.mishap(On::Discussions, mishap);
        assert_says(setup.model("owner/old"), &NONE);
        assert!(setup.server.is_calm());
    }
    for (status, part) in [(503, "/api/models/owner/old/discussions answers 503"), (429, "(429)")] {
        (0..5).for_each(|_| setup.server.mishap(On::Discussions, Mishap::Status(status, "")));
        assert_says(setup.model("owner/old"), &["owner/old: ", part]);
        assert!(setup.server.is_calm());
    }
    // One that says the same page without end is not asked without end.
    let page = json!({"discussions": [discussion(3, "Hello", false, "open", "reader")], "count": 1000, "start": 0});
    (0..60).for_each(|_| setup.server.mishap(On::Discussions, Mishap::Says(page.to_string())));
    asked(&setup);
    assert_says(setup.model("owner/old"), &NONE);
    assert_eq!(asked(&setup).len(), 50);
}
