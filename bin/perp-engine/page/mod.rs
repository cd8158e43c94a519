//! Reports that people look at: one HTML file each, with its charts as SVG inside. It asks the network for nothing and runs no
//! script, so it looks the same in ten years; colours follow the reader's light or dark setting.

mod chart;
mod compare;
mod data;
mod groups;
mod html;
mod markdown;
mod run;
mod scale;

pub use compare::{Comparison, comparison};
pub use data::RunData;
pub use run::run;
