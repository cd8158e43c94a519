//! Pull requests of the hub's conversion bot: safetensors of a model whose `main` has weights in `.bin` alone. transformers takes
//! them, too, and has one made where there is none, which is not done here.

use serde::Deserialize;

/// Who opens them. Anybody can open a pull request of that title, so those of others are never taken by themselves.
pub const BOT: &str = "SFconvertbot";
const TITLE: &str = "Adding `safetensors` variant of this model";

/// A page of what the API says of a repository's discussions, as far as it is read.
#[derive(Deserialize)]
pub struct Page {
    discussions: Vec<Discussion>,
    /// On all pages.
    count: u64,
    /// On the pages before.
    start: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Discussion {
    num: u64,
    title: String,
    is_pull_request: bool,
    status: String,
    /// None of who left the hub.
    author: Option<Author>,
}

#[derive(Deserialize)]
struct Author {
    name: Option<String>,
}

impl Page {
    pub fn parse(answer: &[u8]) -> serde_json::Result<Page> {
        serde_json::from_slice(answer)
    }

    /// The number of the bot's newest pull request that is open. The hub was asked for these alone, but need not know how to choose.
    pub fn newest(&self) -> Option<u64> {
        let is_open = |one: &&Discussion| {
            let author = one.author.as_ref().and_then(|author| author.name.as_deref());
            one.is_pull_request && one.status == "open" && author == Some(BOT) && one.title == TITLE
        };
        self.discussions.iter().filter(is_open).map(|one| one.num).max()
    }

    /// Whether there is a page behind it.
    pub fn has_next(&self) -> bool {
        !self.discussions.is_empty() && self.start.saturating_add(self.discussions.len() as u64) < self.count
    }
}

/// The revision of a pull request.
pub fn revision(number: u64) -> String {
    format!("refs/pr/{number}")
}

/// Whether a text is the revision of a pull request: what was kept as one becomes a path.
pub fn is_revision(text: &str) -> bool {
    text.strip_prefix("refs/pr/").and_then(|number| number.parse().ok()).is_some_and(|number| revision(number) == text)
}
