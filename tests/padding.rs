//! Sequences that are padded to one length.

mod small_models;

use kernels::Device;
use small_models::{assert_pads_change_nothing, llama, opt, opt_post_norm};

/// Sums of some eighty terms in another order: a few units of f32's 2⁻²⁴ each.
const SUMS: f64 = 1e-5;

#[test]
fn pads_change_no_loss_and_no_gradient() {
    for config in [opt(), opt_post_norm(), llama()] {
        for recompute in [0, 2] {
            assert_pads_change_nothing(&Device::cpu(), &config, recompute, SUMS);
        }
    }
}
