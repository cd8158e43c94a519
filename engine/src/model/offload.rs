//! Which decoder layers keep their weights in the host's memory.

use std::sync::Arc;

use kernels::Device;
use kernels::weight::Landing;

use super::Linear;
use crate::error::Result;

/// Takes the weights of the first decoder layers to the host as they are loaded.
#[derive(Clone, Debug)]
pub struct Offload {
    layers: usize,
    landing: Arc<Landing>,
}

impl Offload {
    /// For the first `layers` decoder layers of a model on `device`, a GPU or Meta in its place.
    pub fn new(device: &Device, layers: usize) -> Offload {
        Offload { layers, landing: Arc::new(Landing::new(device)) }
    }

    /// Takes the layer's weight to the host if it is in one of them.
    ///
    /// # Errors
    /// The GPU's, such as no pinned memory.
    pub fn take(&self, linear: &mut Linear) -> Result<()> {
        match linear.layer() {
            Some(layer) if layer < self.layers => linear.weight.offload(&self.landing),
            _ => Ok(()),
        }
    }
}
