//! Names on the hub, and what the hub says of a repository.

use std::fs;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use engine::hub::conversion::{self, Page};
use engine::hub::{DataId, DataPart, Hub, ModelId, Settings, Use};

use super::bounded::within;
use super::scratch;

const MEMORY: usize = 64 << 20;

/// Names of models and data sets: what is read is written as it was, and is no way out of a folder.
pub fn hub_id(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    within(MEMORY, || {
        if let Ok(id) = text.parse::<ModelId>() {
            assert_eq!(id.to_string().parse(), Ok(id.clone()));
            stays_inside(&id.repo);
            stays_inside(&id.revision);
        }
        if let Ok(id) = text.parse::<DataId>() {
            assert_eq!(id.to_string().parse(), Ok(id.clone()));
            stays_inside(&id.repo);
            stays_inside(&id.revision);
        }
    });
}

fn stays_inside(name: &str) {
    assert!(Path::new(name).components().all(|part| matches!(part, Component::Normal(_))), "{name}");
}

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A cache in which a model and a data set are listed, and the model's config.json is. What is asked is answered from there alone.
fn cache(listing: &[u8]) -> Hub {
    let cache = scratch::folder();
    for kind in ["models", "datasets"] {
        let folder = cache.join(format!("{kind}--o--n"));
        fs::create_dir_all(folder.join(".listings")).expect("a folder");
        fs::write(folder.join(".listings").join(format!("{COMMIT}.json")), listing).expect("room for the input");
        fs::create_dir_all(folder.join("snapshots").join(COMMIT)).expect("a folder");
    }
    fs::write(snapshot("config.json"), "{}").expect("room");
    Hub::new(Settings {
        endpoint: "http://localhost:9".into(),
        cache: cache.into(),
        token: None,
        offline: true,
        certificates: None,
        timeout: Duration::from_secs(1),
        pause: Duration::ZERO,
    })
}

/// Where the cache has a file of the model.
fn snapshot(name: &str) -> PathBuf {
    scratch::folder().join(format!("models--o--n/snapshots/{COMMIT}/{name}"))
}

/// What the API said of a commit, as the cache keeps it, behind a line that says what is wanted of it.
pub fn hub_listing(bytes: &[u8]) {
    let (wanted, listing) = bytes.split_at(bytes.iter().position(|byte| *byte == b'\n').unwrap_or(0));
    let Ok(wanted) = std::str::from_utf8(wanted) else { return };
    let hub = cache(listing);
    within(MEMORY, || {
        let model = ModelId { repo: "o/n".into(), revision: COMMIT.into() };
        let _ = hub.model(&model, true, &|_| {});
        let _ = hub.model(&model, false, &|_| {});
        let part = wanted.parse().unwrap_or(DataPart::Split { config: None, split: None });
        let data = DataId { repo: "o/n".into(), part, revision: COMMIT.into() };
        for wanted in [Use::Train, Use::Test, Use::Validation] {
            let _ = hub.data(&data, wanted, Some(1), &|_| {});
        }
    });
}

const SHARDED: &[u8] = br#"{"sha": "0123456789abcdef0123456789abcdef01234567", "siblings": [{"rfilename": "config.json"}, {"rfilename": "model.safetensors.index.json"}, {"rfilename": "a.safetensors"}, {"rfilename": "b/c.safetensors"}, {"rfilename": "../d.safetensors"}]}"#;

/// The index by which shards are fetched. It is good where all that it names is here: one file.
pub fn hub_index(bytes: &[u8]) {
    let hub = cache(SHARDED);
    fs::write(snapshot("model.safetensors.index.json"), bytes).expect("room for the input");
    fs::write(snapshot("a.safetensors"), "").expect("room");
    within(MEMORY, || {
        let model = ModelId { repo: "o/n".into(), revision: COMMIT.into() };
        if hub.model(&model, true, &|_| {}).is_ok() {
            let index: serde_json::Value = serde_json::from_slice(bytes).expect("it was read");
            let shards = index["weight_map"].as_object().expect("it was read");
            assert!(shards.values().all(|shard| shard == "a.safetensors"), "{index}");
        }
    });
}

/// What the API says of a model's discussions, in which the conversion bot's pull request is looked for. A revision is no way out of a
/// folder.
pub fn hub_discussions(bytes: &[u8]) {
    within(MEMORY, || {
        let Ok(page) = Page::parse(bytes) else { return };
        let _ = page.has_next();
        if let Some(number) = page.newest() {
            let revision = conversion::revision(number);
            assert!(conversion::is_revision(&revision));
            stays_inside(&revision);
        }
    });
}
