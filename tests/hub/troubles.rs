//! What goes wrong on a network, and what is said of what cannot go right.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::server::{Mishap, On, Repo, sha256};
use super::{Setup, assert_says, bytes};

const SIZE: usize = 2_000_000;

fn setup() -> Setup {
    Setup::with("models/owner/demo", Repo::of(&[("config.json", b"{}"), ("model.safetensors", &bytes(SIZE))]))
}

/// A setup whose small file is there, so that bodies are those of the large one.
fn begun() -> Setup {
    let setup = setup();
    setup.model("owner/demo").unwrap();
    std::fs::remove_file(setup.cache(&format!("models--owner--demo/blobs/{}", sha256(&bytes(SIZE))))).unwrap();
    setup.server.requests();
    setup.server.sent();
    setup
}

fn incomplete(setup: &Setup) -> PathBuf {
    setup.cache(&format!("models--owner--demo/blobs/{}.incomplete", sha256(&bytes(SIZE))))
}

fn assert_whole(folder: &Path) {
    assert!(std::fs::read(folder.join("model.safetensors")).unwrap() == bytes(SIZE));
}

/// From where bodies were asked for.
fn ranges(setup: &Setup) -> Vec<Option<u64>> {
    setup.server.requests().iter().filter(|request| request.storage).map(|request| request.range).collect()
}

#[test]
fn what_is_cut_off_or_stalls_goes_on_where_it_stopped() {
    for mishaps in [
        vec![Mishap::Truncate(700_001)],
        vec![Mishap::Stall(700_001)],
        vec![Mishap::Truncate(700_001), Mishap::Status(500, ""), Mishap::Stall(0), Mishap::Truncate(299_999)],
    ] {
        let setup = begun();
        for mishap in &mishaps {
            setup.server.mishap(On::Body, mishap.clone());
        }
        assert_whole(&setup.model("owner/demo").unwrap());
        assert!(setup.server.is_calm());
        assert_eq!(setup.server.sent(), SIZE, "each byte once: {mishaps:?}");
        let expected: &[Option<u64>] = match mishaps.len() {
            1 => &[None, Some(700_001)],
            _ => &[None, Some(700_001), Some(700_001), Some(700_001), Some(1_000_000)],
        };
        assert_eq!(ranges(&setup), expected, "{mishaps:?}");
        assert!(!incomplete(&setup).exists());
    }
}

#[test]
fn what_another_run_began_goes_on() {
    let setup = begun();
    setup.server.mishap(On::Body, Mishap::Truncate(800_000));
    (0..5).for_each(|_| setup.server.mishap(On::Body, Mishap::Truncate(0)));
    let parts = ["owner/demo: model.safetensors stops after 800000 of 2000000 bytes each time", "run again"];
    assert_says(setup.model("owner/demo"), &parts);
    assert_eq!(std::fs::metadata(incomplete(&setup)).unwrap().len(), 800_000);
    ranges(&setup);
    assert_whole(&setup.model("owner/demo").unwrap());
    assert_eq!(ranges(&setup), [Some(800_000)]);
    assert_eq!(setup.server.sent(), SIZE);
}

#[test]
fn a_server_that_cannot_go_on_begins_anew() {
    let setup = begun();
    setup.server.mishap(On::Body, Mishap::Truncate(5));
    setup.server.mishap(On::Body, Mishap::NoRange);
    assert_whole(&setup.model("owner/demo").unwrap());
    let setup = begun();
    setup.server.mishap(On::Body, Mishap::Truncate(5));
    setup.server.mishap(On::Body, Mishap::Status(416, ""));
    assert_whole(&setup.model("owner/demo").unwrap());
    let setup = begun();
    setup.server.mishap(On::Body, Mishap::Truncate(5));
    setup.server.mishap(On::Body, Mishap::OtherRange);
    assert_says(setup.model("owner/demo"), &["owner/demo: ", "bytes from 5 were asked for", "bytes 6-", "HF_ENDPOINT"]);
}

#[test]
fn bytes_that_are_not_the_promised_ones_come_again_and_are_never_kept() {
    let setup = begun();
    setup.server.mishap(On::Body, Mishap::Altered);
    assert_whole(&setup.model("owner/demo").unwrap());
    assert_eq!(setup.server.sent(), 2 * SIZE);

    // Half a file that is not of this one, and one that is too long.
    for junk in [SIZE / 2, SIZE, SIZE + 1] {
        let setup = begun();
        std::fs::write(incomplete(&setup), vec![7; junk]).unwrap();
        assert_whole(&setup.model("owner/demo").unwrap());
    }

    let setup = begun();
    setup.server.mishap(On::Body, Mishap::Altered);
    setup.server.mishap(On::Body, Mishap::Altered);
    assert_says(setup.model("owner/demo"), &["owner/demo: model.safetensors came damaged", "SHA-256"]);
    assert!(!incomplete(&setup).exists());
    assert_whole(&setup.model("owner/demo").unwrap());
}

#[test]
fn what_is_left_of_a_small_file_is_not_gone_on_with() {
    // Nothing would tell that it is not of this one, such as zeros after a power cut.
    for junk in [1, 2, 3] {
        let setup = setup();
        let blobs = setup.cache("models--owner--demo/blobs");
        std::fs::create_dir_all(&blobs).unwrap();
        std::fs::write(blobs.join(format!("{}.incomplete", &sha256(b"{}")[..40])), vec![0; junk]).unwrap();
        let folder = setup.model("owner/demo").unwrap();
        assert_eq!(std::fs::read(folder.join("config.json")).unwrap(), b"{}", "{junk}");
    }
}

#[test]
fn what_passes_is_tried_again_after_the_pause_that_was_asked_for() {
    let setup = setup();
    setup.server.mishap(On::Info, Mishap::Status(429, "Retry-After: 1\r\n"));
    setup.server.mishap(On::Info, Mishap::Status(500, ""));
    setup.server.mishap(On::Info, Mishap::Stall(0));
    setup.server.mishap(On::Head, Mishap::Status(503, ""));
    setup.server.mishap(On::Body, Mishap::Status(502, ""));
    assert_whole(&setup.model("owner/demo").unwrap());
    assert!(setup.server.is_calm());
    let events = setup.events.borrow();
    let pauses: Vec<&String> = events.iter().filter(|event| event.contains(" pause ")).collect();
    let expected = ["(429) pause 1000", "500 pause 2", "cannot be reached", "503 pause 1", "502 pause 1"];
    assert_eq!(pauses.len(), expected.len(), "{pauses:?}");
    for (pause, expected) in pauses.iter().zip(expected) {
        assert!(pause.contains(expected), "{pauses:?}");
    }
}

#[test]
fn what_does_not_pass_is_told() {
    let setup = setup();
    let often = |on: On, mishap: Mishap| (0..5).for_each(|_| setup.server.mishap(on, mishap.clone()));
    often(On::Info, Mishap::Status(429, ""));
    assert_says(setup.model("owner/demo"), &["owner/demo: ", "(429)", "HF_TOKEN"]);
    often(On::Info, Mishap::Status(503, ""));
    assert_says(
        setup.model("owner/demo"),
        &["owner/demo: ", "/api/models/owner/demo/revision/main answers 503", "later"],
    );
    often(On::Body, Mishap::Status(500, ""));
    assert_says(setup.model("owner/demo"), &["owner/demo: ", "config.json answers 500"]);
    assert!(setup.server.is_calm());
    // 418 will stay.
    setup.server.mishap(On::Info, Mishap::Status(418, ""));
    assert_says(setup.model("owner/demo"), &["owner/demo: ", "answers 418"]);
    assert!(setup.server.is_calm());
}

#[test]
fn who_may_not_read_is_told_what_to_do() {
    let mut setup = setup();
    setup.server.add("models/owner/gated", Repo { gate: Some("hf_good".into()), ..Repo::default() });
    assert_says(setup.model("owner/none"), &["owner/none: ", "no such model", "private", "HF_TOKEN"]);
    let page = format!("accept its terms at {}/owner/gated", setup.settings.endpoint);
    assert_says(setup.model("owner/gated"), &["owner/gated: it is gated", &page, "HF_TOKEN (there is none)"]);
    setup.settings.token = Some("hf_bad".into());
    assert_says(setup.model("owner/gated"), &["owner/gated: it is gated", &page, "HF_TOKEN (the one given may not)"]);
    setup.server.mishap(On::Info, Mishap::Status(401, ""));
    assert_says(setup.model("owner/demo"), &["owner/demo: ", "refuses the token (401)", "HF_TOKEN"]);
    setup.server.mishap(On::Info, Mishap::Status(403, ""));
    assert_says(setup.model("owner/demo"), &["owner/demo: ", "refuses the token (403)", "HF_TOKEN"]);
    setup.server.mishap(On::Info, Mishap::Status(404, ""));
    assert_says(setup.model("owner/demo"), &["owner/demo: ", "no such model"]);
}

#[test]
fn answers_that_no_hub_gives_are_told() {
    let setup = setup();
    let deep = format!("{{\"sha\": \"c\", \"siblings\": [], \"cardData\": {{\"configs\": {}", "[".repeat(400));
    let sha = |sha: &str| format!("{{\"sha\": {sha:?}, \"siblings\": []}}");
    for (on, mishap, part) in [
        (On::Info, Mishap::Says("<html>Sign in to the hotel's network".into()), "expected value"),
        (On::Info, Mishap::Says(deep), "recursion limit"),
        (On::Info, Mishap::Says(sha("../../../x")), "no commit"),
        (On::Info, Mishap::Status(302, ""), "302 to nowhere"),
        (On::Info, Mishap::Status(302, "Location: ftp://elsewhere/\r\n"), "302 to nowhere"),
        (On::Head, Mishap::Headers("Content-Length: 2\r\n".into()), "no ETag"),
        (On::Head, Mishap::Headers("ETag: \"../../x\"\r\nContent-Length: 2\r\n".into()), "no ETag"),
        (On::Head, Mishap::Headers("ETag: \"x\"\r\nContent-Length: 1\r\n".into()), "more than the 1 bytes"),
        (On::Head, Mishap::Status(404, "X-Error-Code: EntryNotFound\r\n"), "lists this file and does not have it"),
    ] {
        setup.server.mishap(on, mishap.clone());
        assert_says(setup.model("owner/demo"), &["owner/demo: ", "gave no hub's answer", part, "HF_ENDPOINT"]);
        assert!(setup.server.is_calm(), "{mishap:?}");
    }
    let around = format!("Location: {}/api/models/owner/demo/revision/main\r\n", setup.settings.endpoint).leak();
    (0..11).for_each(|_| setup.server.mishap(On::Info, Mishap::Status(307, around)));
    assert_says(setup.model("owner/demo"), &["more than 10 redirects"]);
}

#[test]
fn a_signature_is_not_told() {
    // What stands behind the question mark of a storage's address.
    let setup = begun();
    let said = |part: &str| {
        let mut said = vec![setup.model("owner/demo").unwrap_err().to_string()];
        said.append(&mut setup.events.borrow_mut());
        assert!(said.iter().any(|line| line.contains(part)), "'{part}' is not in: {said:?}");
        assert!(!said.iter().any(|line| line.contains("secret") || line.contains("signature")), "{said:?}");
        assert!(setup.server.is_calm());
    };
    for (status, part) in [(418, "answers 418"), (302, "302 to nowhere")] {
        setup.server.mishap(On::Body, Mishap::Status(status, ""));
        said(part);
        assert!(setup.server.requests().iter().any(|request| request.path.contains("signature=secret")));
    }
    (0..5).for_each(|_| setup.server.mishap(On::Body, Mishap::Status(500, "")));
    said("answers 500");
    for (to, tries, part) in [
        ("http://127.0.0.1:1/a", 5, "127.0.0.1:1 cannot be reached"),
        ("http:///a", 1, "no hub's answer"),
        ("http://a b/", 1, "no hub's answer"),
    ] {
        let header = format!("Location: {to}?signature=secret\r\n").leak();
        (0..tries).for_each(|_| setup.server.mishap(On::Info, Mishap::Status(307, header)));
        said(part);
    }
}

#[test]
fn one_of_two_fetches_and_the_other_waits_for_it() {
    let setup = begun();
    setup.server.mishap(On::Body, Mishap::Slow(1000, Duration::from_millis(300)));
    std::thread::scope(|scope| {
        let both: Vec<_> = (0..2)
            .map(|_| {
                let settings = setup.settings.clone();
                scope.spawn(move || {
                    let hub = engine::hub::Hub::new(settings);
                    hub.model(&"owner/demo".parse().unwrap(), true, &|_| {}).unwrap()
                })
            })
            .collect();
        both.into_iter().for_each(|one| assert_whole(&one.join().unwrap()));
    });
    assert_eq!(setup.server.sent(), SIZE, "each byte once");
}
