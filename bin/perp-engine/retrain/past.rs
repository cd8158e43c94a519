//! Cycles that are over, and what a resumed run must know of them.
//!
//! A checkpoint has no frozen weights: they are pruned again, cycle by cycle, which is deterministic. By magnitude and at random that
//! depends on the base model, and on adapters that merged into it. Wanda and SparseGPT look at what goes into a layer, which all
//! depends on that has trained by then. So checkpoints keep what each cycle left of this: less than 1 % of the parameters a cycle,
//! where pruned weights with SparseGPT's changes would be half a model each. The price is time: a run that goes on in cycle c
//! calibrates c times. Where weights themselves train, the checkpoint has them with their masks, and no cycle is pruned again but
//! the first, which loading needs.

use std::sync::Arc;

use engine::model::Model;
use engine::peft;
use engine::retrain::PastParam;
use engine::tensor::Param;

use super::Run;
use crate::checkpoints::{Keeper, Resumed};
use crate::error::Failure;

impl Run<'_> {
    fn is_calibrated(&self) -> bool {
        self.args.pruning.criterion.needs_calibration()
    }

    /// Whether a run that goes on in cycle `resumed` prunes for `cycle` again.
    pub(super) fn prunes_again(&self, cycle: usize, resumed: Option<usize>) -> bool {
        !(self.set.full && self.is_calibrated() && resumed.is_some_and(|at| cycle <= at))
    }

    /// Of `params`, which train, those whose values after a cycle decide about the next one's frozen weights.
    fn deciding<'p>(&self, model: &mut dyn Model, params: &'p [Arc<Param>]) -> Vec<&'p Arc<Param>> {
        let merging = peft::merging(model);
        let merges = |param: &Arc<Param>| merging.iter().any(|other| Arc::ptr_eq(other, param));
        let all = self.is_calibrated() && !self.set.full;
        params.iter().filter(|param| all || self.set.kind.merges() && merges(param)).collect()
    }

    /// Keeps what a cycle that another follows left, before its adapters merge.
    pub(super) fn remember(
        &self,
        cycle: usize,
        model: &mut dyn Model,
        params: &[Arc<Param>],
        keeper: &mut Keeper<'_>,
    ) -> Result<(), Failure> {
        for param in self.deciding(model, params) {
            keeper.past.push(PastParam::of(cycle, param)?);
        }
        Ok(())
    }

    /// Makes of the model what a cycle that is over made of it, as far as the next one's pruning depends on that.
    pub(super) fn repeat(
        &self,
        cycle: usize,
        model: &mut dyn Model,
        resumed: &Resumed,
        keeper: &mut Keeper<'_>,
    ) -> Result<(), Failure> {
        if !self.set.kind.merges() && !self.is_calibrated() || self.set.full {
            return Ok(());
        }
        let params = peft::apply(model, &self.set, self.args.optimizer.seed)?;
        for param in self.deciding(model, &params) {
            PastParam::restore(&resumed.checkpoint, cycle, param)?;
        }
        self.remember(cycle, model, &params, keeper)?;
        if self.merges_after(cycle) { self.merge(cycle, model).map(drop) } else { Ok(()) }
    }
}
