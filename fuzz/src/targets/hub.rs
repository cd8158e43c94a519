//! Names on the hub, and what the hub says of a repository.

use std::fs;
use std::path::{Component, Path};
use std::time::Duration;

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

/// What the API said of a commit, as the cache keeps it, behind a line that says what is wanted of it.
pub fn hub_listing(bytes: &[u8]) {
    let (wanted, listing) = bytes.split_at(bytes.iter().position(|byte| *byte == b'\n').unwrap_or(0));
    let Ok(wanted) = std::str::from_utf8(wanted) else { return };
    let cache = scratch::folder();
    for kind in ["models", "datasets"] {
        let folder = cache.join(format!("{kind}--o--n"));
        fs::create_dir_all(folder.join(".listings")).expect("a folder");
        fs::write(folder.join(".listings").join(format!("{COMMIT}.json")), listing).expect("room for the input");
        fs::create_dir_all(folder.join("snapshots").join(COMMIT)).expect("a folder");
    }
    fs::write(cache.join(format!("models--o--n/snapshots/{COMMIT}/config.json")), "{}").expect("room");
    let hub = Hub::new(Settings {
        endpoint: "http://localhost:9".into(),
        cache: cache.into(),
        token: None,
        offline: true,
        certificates: None,
        timeout: Duration::from_secs(1),
        pause: Duration::ZERO,
    });
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
