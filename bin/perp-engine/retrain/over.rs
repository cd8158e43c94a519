//! Runs that are over. What a run ends in is written down in the folder of its checkpoints before it is there, so that --resume knows a
//! finished run from one whose model is another's.

use std::path::{Path, PathBuf};

use engine::checkpoint::{OutputFolder, file_hash, folder_hash};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::Run;
use crate::checkpoints::Keeper;
use crate::error::Failure;

/// A file or folder that a run wrote.
#[derive(Serialize, Deserialize)]
struct Written {
    path: PathBuf,
    blake3: String,
}

/// All that a run wrote.
#[derive(Serialize, Deserialize)]
struct Ending {
    model: Written,
    report: Option<Written>,
}

impl Run<'_> {
    /// Before the model appears at `out`: what it is. A folder of checkpoints that takes no more is a warning, as it is in training.
    pub(super) fn promise(&self, keeper: &Keeper<'_>, folder: &OutputFolder, out: &Path) {
        if let Err(error) = self.write_down(keeper, folder, out) {
            self.console.warn(&format!("{error}; --resume will not know that the run is complete"));
        }
    }

    fn write_down(&self, keeper: &Keeper<'_>, folder: &OutputFolder, out: &Path) -> Result<(), Failure> {
        let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.into());
        let report =
            self.args.machine.report.as_ref().map(|path| -> Result<Written, Failure> {
                Ok(Written { path: absolute(path), blake3: file_hash(path)? })
            });
        let model = Written { path: absolute(out), blake3: folder.hash()? };
        keeper.will_end_in(&json!(Ending { model, report: report.transpose()? }))
    }

    /// Where the run is over, what there is of it. Nothing where it is not, or where its model is gone: it goes on from its last
    /// checkpoint then, and writes it again.
    pub(super) fn over(&self, keeper: &Keeper<'_>) -> Result<Option<String>, Failure> {
        let Some(out) = &self.args.out else { return Ok(None) };
        let Err(refused) = OutputFolder::check(out) else { return Ok(None) };
        let Some(ending) = keeper.ended_in()?.filter(|_| out.is_dir()) else { return Err(refused.into()) };
        let ending = Ending::deserialize(ending)
            .map_err(|error| Failure::failed(format!("{}: {error}", keeper.result_file().display())))?;
        let model = out.display();
        if folder_hash(out)? != ending.model.blake3 {
            return Err(Failure::failed(format!(
                "--out {model}: the run is complete, and this is not the model that it wrote: it was altered, or is another \
                 run's; name a new folder, or move this one, and --resume writes the model again"
            )));
        }
        let Some(path) = &self.args.machine.report else {
            return Ok(Some(format!("the run is complete: its model is {model}\n")));
        };
        let report = path.display();
        let written = ending.report.as_ref();
        if written.is_none_or(|written| file_hash(path).ok().as_ref() != Some(&written.blake3)) {
            let there =
                written.map_or("it wrote none".into(), |written| format!("it wrote {}", written.path.display()));
            let what = if path.exists() { "is not its report" } else { "is missing" };
            return Err(Failure::failed(format!(
                "--report {report}: the run is complete, its model is {model}, and this report {what} ({there}); move the model, \
                 and --resume writes both again"
            )));
        }
        Ok(Some(format!("the run is complete: its model is {model}, its report {report}\n")))
    }
}
