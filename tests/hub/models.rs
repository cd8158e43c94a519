//! Models: which files come, where they are put, and what is taken from there.

use std::path::Path;

use super::server::{COMMIT, HubServer, Repo, sha256};
use super::{Setup, assert_says, bytes};

/// A model of one file, and what is not needed of it.
fn model() -> Repo {
    let large = bytes(3000);
    Repo::of(&[
        ("config.json", b"{}"),
        ("tokenizer.json", b"{ }"),
        ("model.safetensors", &large),
        ("pytorch_model.bin", b"code"),
        ("tf_model.h5", b"h5"),
        ("flax_model.msgpack", b"pack"),
        ("onnx/model.safetensors", b"other"),
        ("README.md", b"# Demo"),
    ])
}

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap()
}

#[test]
fn files_lie_where_the_hub_s_own_programs_put_them() {
    let setup = Setup::with("models/owner/demo", model());
    let folder = setup.model("owner/demo").unwrap();
    let snapshot = setup.cache("models--owner--demo/snapshots").join(COMMIT);
    assert_eq!(folder, snapshot);
    assert_eq!(read(&setup.cache("models--owner--demo/refs/main")), COMMIT.as_bytes());
    let large = model().files["model.safetensors"].clone();
    let blobs = setup.cache("models--owner--demo/blobs");
    assert_eq!(read(&blobs.join(sha256(&large))), large);
    for (name, etag) in [("model.safetensors", sha256(&large)), ("config.json", sha256(b"{}")[..40].to_string())] {
        let link = std::fs::read_link(snapshot.join(name)).unwrap();
        assert_eq!(link, Path::new("../../blobs").join(&etag), "{name}");
        assert!(setup.cache(&format!(".locks/models--owner--demo/{etag}.lock")).is_file());
    }
    let mut here: Vec<String> =
        snapshot.read_dir().unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    here.sort();
    assert_eq!(here, ["config.json", "model.safetensors", "tokenizer.json"]);
    assert_eq!(blobs.read_dir().unwrap().count(), 3, "nothing incomplete is left");
    assert_eq!(setup.server.sent(), 3000 + 2 + 3);
}

#[test]
fn what_is_here_is_not_fetched_again_and_serves_without_a_network() {
    let mut setup = Setup::with("models/owner/demo", model());
    let folder = setup.model("owner/demo").unwrap();
    setup.server.requests();
    assert_eq!(setup.model("owner/demo").unwrap(), folder);
    let requests = setup.server.requests();
    assert_eq!(requests.len(), 1, "whether main has moved on: {requests:?}");
    // A commit never moves on.
    assert_eq!(setup.model(&format!("owner/demo@{COMMIT}")).unwrap(), folder);
    setup.settings.offline = true;
    assert_eq!(setup.model("owner/demo").unwrap(), folder);
    assert!(setup.server.requests().is_empty());
    std::fs::remove_file(folder.join("model.safetensors")).unwrap();
    assert_says(
        setup.model("owner/demo"),
        &["owner/demo: ", "model.safetensors is not in the cache", "HF_HUB_OFFLINE"],
    );
    assert_says(setup.model("owner/other"), &["owner/other: ", "it is not in the cache", "HF_HUB_OFFLINE"]);
}

#[test]
fn a_snapshot_of_another_program_serves_without_a_network() {
    let mut setup = Setup::with("models/owner/demo", model());
    setup.settings.offline = true;
    let folder = setup.cache("models--owner--demo/snapshots").join(COMMIT);
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::create_dir_all(setup.cache("models--owner--demo/refs")).unwrap();
    std::fs::write(setup.cache("models--owner--demo/refs/main"), COMMIT).unwrap();
    std::fs::write(folder.join("config.json"), "{}").unwrap();
    assert_says(setup.model("owner/demo"), &["owner/demo: ", "its weights are not in the cache"]);
    std::fs::write(folder.join("model.safetensors"), "weights").unwrap();
    assert_eq!(setup.model("owner/demo").unwrap(), folder);
}

#[test]
fn a_hub_that_cannot_be_reached_leaves_what_the_cache_has() {
    let mut setup = Setup::with("models/owner/demo", model());
    let folder = setup.model("owner/demo").unwrap();
    setup.cut();
    setup.events.borrow_mut().clear();
    assert_eq!(setup.model("owner/demo").unwrap(), folder);
    let events = setup.events.borrow();
    assert!(matches!(events.as_slice(), [one] if one.contains("cannot be reached")), "{events:?}");
    drop(events);
    let parts = ["owner/other: no such path here", &setup.settings.endpoint, "cannot be reached", "HF_ENDPOINT"];
    assert_says(setup.model("owner/other"), &parts);
    std::fs::remove_file(folder.join("config.json")).unwrap();
    assert_says(setup.model("owner/demo"), &["owner/demo: ", "cannot be reached"]);
}

#[test]
fn revisions_are_branches_tags_pull_requests_and_commits() {
    let setup = Setup::with("models/owner/demo", model());
    setup.model("owner/demo@refs/pr/1").unwrap();
    assert_eq!(read(&setup.cache("models--owner--demo/refs/refs/pr/1")), COMMIT.as_bytes());
    setup.model(&format!("owner/demo@{COMMIT}")).unwrap();
    assert!(!setup.cache("models--owner--demo/refs").join(COMMIT).exists());
    let unknown = setup.model("owner/demo@v9");
    assert_says(unknown, &["owner/demo@v9: has no revision \"v9\"", "branch", "commit"]);
}

#[test]
fn shards_are_those_of_the_index() {
    let index = br#"{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors",
        "c": "model-00001-of-00002.safetensors"}}"#;
    let mut repo = Repo::of(&[
        ("config.json", b"{}"),
        ("model.safetensors.index.json", index),
        ("model-00001-of-00002.safetensors", &bytes(100)),
        ("model-00002-of-00002.safetensors", &bytes(200)),
        ("model-00003-of-00002.safetensors", &bytes(300)),
    ]);
    let setup = Setup::with("models/owner/demo", repo.clone());
    let folder = setup.model("owner/demo").unwrap();
    assert_eq!(read(&folder.join("model-00002-of-00002.safetensors")), bytes(200));
    assert!(!folder.join("model-00003-of-00002.safetensors").exists());

    repo.files.remove("model-00002-of-00002.safetensors");
    let setup = Setup::with("models/owner/demo", repo);
    let parts =
        ["owner/demo: ", "model.safetensors.index.json names model-00002-of-00002.safetensors, which it has not"];
    assert_says(setup.model("owner/demo"), &parts);
}

#[test]
fn what_is_no_model_says_so_before_anything_large_comes() {
    let setup = Setup::with("models/owner/old", Repo::of(&[("config.json", b"{}"), ("pytorch_model.bin", &bytes(9))]));
    setup.server.add("models/owner/empty", Repo::of(&[("config.json", b"{}")]));
    setup.server.add("models/owner/words", Repo::of(&[("words.txt", b"a")]));
    let remedy =
        ["owner/old: has no model.safetensors, only pytorch_model.bin", "owner/old@refs/pr/N", "save_pretrained"];
    assert_says(setup.model("owner/old"), &remedy);
    assert_says(setup.model("owner/empty"), &["owner/empty: has no model.safetensors", "is it a model?"]);
    assert_says(setup.model("owner/words"), &["owner/words: has no config.json"]);
    assert_eq!(setup.server.sent(), 0);
}

#[test]
fn an_index_that_is_none_to_be_read_is_told_with_its_remedy() {
    let name = "model.safetensors.index.json";
    let index = br#"{"weight_map": {"a": "model-00001-of-00001.safetensors"}}"#;
    let files: [(&str, &[u8]); 3] =
        [("config.json", b"{}"), (name, index), ("model-00001-of-00001.safetensors", &bytes(100))];
    let setup = Setup::with("models/owner/demo", Repo::of(&files));
    let folder = setup.model("owner/demo").unwrap();
    // The link's file is the one that a remedy must name: without it alone nothing would come anew.
    let blob = folder.join(name).canonicalize().unwrap();
    let large = std::fs::File::create(&blob).unwrap();
    large.set_len((64 << 20) + 1).unwrap();
    let named = format!("cannot read {}: ", blob.display());
    let parts = ["owner/demo: ", named.as_str(), "more than 67108864 bytes", "remove it and run again"];
    assert_says(setup.model("owner/demo"), &parts);
    std::fs::remove_file(&blob).unwrap();
    assert_eq!(setup.model("owner/demo").unwrap(), folder);
    assert_eq!(read(&folder.join(name)), index);

    std::fs::remove_file(folder.join(name)).unwrap();
    std::fs::create_dir(folder.join(name)).unwrap();
    assert_says(setup.model("owner/demo"), &["owner/demo: cannot read ", name, "no regular file", "remove it"]);
}

#[test]
fn a_listing_that_is_none_to_be_read_is_asked_for_again_or_told() {
    let mut setup = Setup::with("models/owner/demo", model());
    let folder = setup.model("owner/demo").unwrap();
    let listing = setup.cache("models--owner--demo/.listings").join(format!("{COMMIT}.json"));
    let kept = read(&listing);
    let large = || std::fs::File::create(&listing).unwrap().set_len((64 << 20) + 1).unwrap();
    let pipe = || {
        std::fs::remove_file(&listing).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(&listing).status().unwrap().success());
    };
    for (spoil, part) in [(&large as &dyn Fn(), "more than 67108864 bytes"), (&pipe as &dyn Fn(), "no regular file")] {
        spoil();
        setup.settings.offline = true;
        let name = format!(".listings/{COMMIT}.json: ");
        let parts = ["owner/demo: cannot read ", name.as_str(), part, "remove it and run again"];
        assert_says(setup.model("owner/demo"), &parts);
        setup.settings.offline = false;
        assert_eq!(setup.model(&format!("owner/demo@{COMMIT}")).unwrap(), folder);
        assert_eq!(read(&listing), kept);
    }
    // Of what a branch is the hub knows better.
    let main = setup.cache("models--owner--demo/refs/main");
    std::fs::remove_file(&main).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(&main).status().unwrap().success());
    setup.settings.offline = true;
    assert_says(setup.model("owner/demo"), &["owner/demo: ", "it is not in the cache"]);
    setup.settings.offline = false;
    assert_eq!(setup.model("owner/demo").unwrap(), folder);
    assert_eq!(read(&main), COMMIT.as_bytes());
}

#[test]
fn a_model_that_moved_is_found_and_kept_under_the_name_that_was_given() {
    let setup = Setup::with("models/owner/demo", model());
    setup.server.add("models/old/name", Repo { moved: Some("models/owner/demo".into()), ..Repo::default() });
    let folder = setup.model("old/name").unwrap();
    assert_eq!(folder, setup.cache("models--old--name/snapshots").join(COMMIT));
    assert_eq!(read(&folder.join("model.safetensors")), bytes(3000));
}

#[test]
fn a_token_goes_to_the_hub_and_to_nobody_else() {
    let mut setup = Setup::with("models/owner/gated", Repo { gate: Some("hf_secret".into()), ..model() });
    setup.settings.token = Some("hf_secret".into());
    setup.model("owner/gated").unwrap();
    let requests = setup.server.requests();
    assert!(requests.iter().any(|request| request.storage && request.method == "GET"));
    for request in requests {
        let expected = if request.storage { None } else { Some("hf_secret") };
        assert_eq!(request.token.as_deref(), expected, "{request:?}");
    }
    // Nor to another hub that this one sends it to.
    let other = HubServer::start();
    other.add("models/owner/gated", model());
    let to = format!("Location: {}/api/models/owner/gated/revision/main\r\n", other.endpoint);
    setup.server.mishap(super::server::On::Info, super::server::Mishap::Status(307, to.leak()));
    setup.model("owner/gated").unwrap();
    let requests = other.requests();
    assert!(matches!(requests.as_slice(), [one] if one.token.is_none()), "{requests:?}");
}

#[test]
fn names_that_leave_their_folder_are_refused() {
    let escape = "../../../../evil.safetensors";
    let index = format!(r#"{{"weight_map": {{"a": "{escape}"}}}}"#);
    let setup = Setup::with(
        "models/owner/evil",
        Repo::of(&[("config.json", b"{}"), ("model.safetensors.index.json", index.as_bytes()), (escape, &bytes(10))]),
    );
    assert_says(
        setup.model("owner/evil"),
        &["owner/evil: names a file \"../../../../evil.safetensors\"", "leaves its folder"],
    );
    assert!(!setup.folder.path().join("evil.safetensors").exists());
}
