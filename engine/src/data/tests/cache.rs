//! Tokens are made once; what is kept is whole and of the same text, or is made anew.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::super::cache::create_partial;
use super::*;

struct Setup {
    dir: TempDir,
    corpus: Corpus,
    tokenizer: Tokenizer,
    encoded: AtomicUsize,
}

impl Setup {
    fn new() -> Setup {
        let (dir, paths) = files(&[
            ("a.txt", b"a document"),
            ("b.jsonl", b"{\"text\": \"one\"}\n{\"text\": \"\"}\n{\"text\": \"two\"}\n"),
        ]);
        let corpus = Corpus { files: paths, joining: None };
        Setup { dir, corpus, tokenizer: tokenizer(), encoded: AtomicUsize::new(0) }
    }

    fn folder(&self) -> PathBuf {
        self.dir.path().join("cache")
    }

    fn get(&self, cache: &TokenCache) -> Result<Tokenized> {
        cache.tokens(&self.corpus, &self.tokenizer, |_| {
            self.encoded.fetch_add(1, Ordering::Relaxed);
        })
    }

    fn cached(&self) -> Tokenized {
        self.get(&TokenCache::at(self.folder())).unwrap()
    }

    fn kept(&self) -> Vec<PathBuf> {
        let mut found: Vec<PathBuf> =
            std::fs::read_dir(self.folder()).map(|all| all.map(|e| e.unwrap().path()).collect()).unwrap_or_default();
        found.sort();
        found
    }

    fn expected(&self) -> Vec<u32> {
        ["a document", "one", "two"].iter().flat_map(|text| self.tokenizer.encode(text).unwrap()).collect()
    }
}

#[test]
fn the_second_run_reads_what_the_first_made() {
    let setup = Setup::new();
    let first = setup.cached();
    assert!(matches!(first.origin, Origin::Made) && first.damaged.is_none());
    assert_eq!(first.stream.tokens(), setup.expected());
    assert_eq!(first.stream.documents(), 3);
    assert_eq!(setup.encoded.load(Ordering::Relaxed), 4);
    let second = setup.cached();
    assert!(matches!(second.origin, Origin::Cached));
    assert_eq!(second.stream.tokens(), setup.expected());
    assert_eq!(second.stream.hash(), hash(&setup.expected()));
    assert_eq!(second.stream.document(2), setup.tokenizer.encode("two").unwrap());
    assert_eq!(setup.encoded.load(Ordering::Relaxed), 4, "nothing is tokenised again");
    assert_eq!(setup.kept().len(), 1);
}

#[test]
fn other_text_tokenizer_form_order_or_joining_is_another_entry_and_another_name_is_not() {
    let mut setup = Setup::new();
    setup.cached();
    // The same bytes elsewhere.
    let moved = setup.dir.path().join("renamed.TXT");
    std::fs::rename(&setup.corpus.files[0], &moved).unwrap();
    setup.corpus.files[0] = moved.clone();
    assert!(matches!(setup.cached().origin, Origin::Cached));
    let made = |setup: &Setup| matches!(setup.cached().origin, Origin::Made);
    std::fs::write(&moved, "A document").unwrap();
    assert!(made(&setup), "of as many bytes, but others");
    setup.corpus.files.reverse();
    assert!(made(&setup));
    setup.corpus.joining = Some(Joining::PARAGRAPHS);
    assert!(made(&setup));
    assert_eq!(setup.cached().stream.documents(), 1);
    let settings = BpeSettings { vocab_size: 256, ..BpeSettings::default() };
    setup.tokenizer = train_bpe(["other"].iter(), &settings).unwrap();
    assert!(made(&setup));
    // A line of JSON lines is a text of braces, too.
    let line = setup.dir.path().join("b.txt");
    std::fs::copy(&setup.corpus.files[0], &line).unwrap();
    setup.corpus.files[0] = line;
    assert!(made(&setup));
    assert_eq!(setup.kept().len(), 6);
}

#[test]
fn what_is_altered_or_cut_anywhere_is_made_anew() {
    let setup = Setup::new();
    setup.cached();
    let path = setup.kept().remove(0);
    let good = std::fs::read(&path).unwrap();
    let check = |bytes: &[u8], what: &str| {
        std::fs::write(&path, bytes).unwrap();
        let again = setup.cached();
        assert!(matches!(again.origin, Origin::Made), "{what}");
        assert_eq!(again.stream.tokens(), setup.expected(), "{what}");
        assert_eq!(std::fs::read(&path).unwrap(), good, "{what}: the same bytes again");
        again.damaged
    };
    for at in 0..good.len() {
        let mut bytes = good.clone();
        bytes[at] ^= 0x10;
        let (file, _) = check(&bytes, &format!("byte {at}")).expect("says which was damaged");
        assert_eq!(file, path);
    }
    for length in 0..good.len() {
        check(&good[..length], &format!("{length} bytes"));
    }
    check(&[&good[..], b"x"].concat(), "one byte more");
    assert_eq!(setup.kept(), [path], "nothing is left beside it");
}

#[test]
fn runs_at_once_agree_and_leave_one_whole_file() {
    let setup = Setup::new();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..10 {
                    let found = setup.cached();
                    assert!(!matches!(found.origin, Origin::NotKept(_)) && found.damaged.is_none(), "{found:?}");
                    assert_eq!(found.stream.tokens(), setup.expected());
                }
            });
        }
    });
    assert_eq!(setup.kept().len(), 1);
}

#[test]
fn a_file_that_is_being_written_is_never_taken_for_a_killed_runs() {
    let dir = TempDir::new().unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..500 {
                    let partial = create_partial(dir.path()).unwrap();
                    std::thread::yield_now();
                    assert!(partial.path().exists(), "another run took it away");
                }
            });
        }
    });
}

#[test]
fn what_a_killed_run_left_goes_and_what_another_writes_stays() {
    let setup = Setup::new();
    std::fs::create_dir(setup.folder()).unwrap();
    let (left, held) = (setup.folder().join(".x.partial"), setup.folder().join(".y.partial"));
    std::fs::write(&left, "half").unwrap();
    let other = std::fs::File::create(&held).unwrap();
    other.lock().unwrap();
    setup.cached();
    assert!(!left.exists() && held.exists());
}

#[test]
fn without_a_cache_or_where_it_takes_nothing_the_tokens_are_there_all_the_same() {
    let setup = Setup::new();
    let off = setup.get(&TokenCache::off()).unwrap();
    assert!(matches!(off.origin, Origin::Made) && off.stream.tokens() == setup.expected());
    assert_eq!(setup.kept().len(), 0);
    std::fs::write(setup.folder(), "a file where the folder should be").unwrap();
    let refused = setup.cached();
    assert_eq!(refused.stream.tokens(), setup.expected());
    let Origin::NotKept(error) = refused.origin else { panic!("{:?}", refused.origin) };
    assert!(error.to_string().contains("cache"), "{error}");
}

#[test]
fn bad_text_and_changing_text_leave_nothing_in_the_cache() {
    let mut setup = Setup::new();
    let bad = setup.dir.path().join("bad.jsonl");
    std::fs::write(&bad, "{\"text\": \"x\"}\n{}\n").unwrap();
    let good = std::mem::replace(&mut setup.corpus.files, vec![bad.clone()]);
    assert_message(setup.get(&TokenCache::at(setup.folder())), &["bad.jsonl:2"]);
    setup.corpus.files = good;
    let file = setup.corpus.files[1].clone();
    let grown = TokenCache::at(setup.folder()).tokens(&setup.corpus, &setup.tokenizer, |_| {
        std::fs::write(&file, "{\"text\": \"one\"}\n{\"text\": \"\"}\n{\"text\": \"two\"}\n\n").unwrap();
    });
    assert_message(grown, &["b.jsonl", "changed while it was read"]);
    assert_eq!(setup.kept().len(), 0);
}

#[test]
fn tokens_do_not_depend_on_the_number_of_threads() {
    let documents = || (0..300).map(|i| Ok(document(&format!("document number {i}").repeat(1 + i % 7))));
    let tokenizer = tokenizer();
    let tokens = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| TokenStream::build(documents(), &tokenizer, |_| ()).unwrap().tokens().to_vec())
    };
    assert_eq!(tokens(1), tokens(4));
}
