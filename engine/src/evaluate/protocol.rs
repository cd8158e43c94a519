//! Perplexities that the field compares, by name.

use std::path::Path;

use crate::data::Joining;
use crate::hub::DataId;

/// Which text, how it is joined, and how much of it counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// The raw test split of WikiText-2 (Merity et al. 2016), rows joined with two newlines, all windows: as GPTQ, SparseGPT,
    /// Wanda and PERP measure it.
    WikiText2,
    /// The first 1,100 documents of the first of eight shards of C4's English validation split, joined with a space, the first
    /// 256 windows: as SparseGPT and Wanda measure it.
    C4,
}

impl Protocol {
    /// All of them.
    pub const ALL: [Protocol; 2] = [Protocol::WikiText2, Protocol::C4];

    /// As it is named on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Protocol::WikiText2 => "wikitext2",
            Protocol::C4 => "c4",
        }
    }

    /// The protocol of a name, where no file is called so.
    pub fn named(path: &Path) -> Option<Protocol> {
        Protocol::ALL.into_iter().find(|protocol| path.as_os_str() == protocol.name()).filter(|_| !path.exists())
    }

    /// The data set on the hub, with its split or file.
    pub fn data(self) -> DataId {
        let id = match self {
            Protocol::WikiText2 => "Salesforce/wikitext:wikitext-2-raw-v1:test",
            Protocol::C4 => "allenai/c4:en/c4-validation.00000-of-00008.json.gz",
        };
        id.parse().expect("an id of ours")
    }

    /// How its documents become one text.
    pub fn joining(self) -> Joining {
        match self {
            Protocol::WikiText2 => Joining::PARAGRAPHS,
            Protocol::C4 => Joining { separator: " ", documents: Some(1100) },
        }
    }

    /// The most windows.
    pub fn windows(self) -> Option<usize> {
        match self {
            Protocol::WikiText2 => None,
            Protocol::C4 => Some(256),
        }
    }
}
