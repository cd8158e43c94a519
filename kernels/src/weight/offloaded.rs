//! Frozen weights in the host's memory, brought to the GPU each time that they are multiplied.
//!
//! They lie in pinned memory in the GPU's own form, packed where they are pruned. Two places on the GPU, each as large as the
//! largest of them, take turns: while one weight is multiplied, the next is on its way.

use std::sync::{Arc, Mutex};

use super::{BlockWeight, DenseWeight, FrozenWeight, TwoFourWeight};
use crate::device::{Buffer, Category, Cost, DType, Device, Pinned, Ring, places};
use crate::error::Result;

/// Where weights are brought to: shared by all that are offloaded from one device.
pub struct Landing {
    device: Device,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Bytes of the largest weight.
    largest: usize,
    /// There from the first time on that one is brought.
    places: Option<Arc<Places>>,
}

struct Places {
    buffers: [Arc<Buffer>; 2],
    /// Nothing on Meta.
    ring: Option<Ring>,
}

impl Landing {
    /// For weights of `device`: a GPU, or Meta in its place.
    pub fn new(device: &Device) -> Landing {
        Landing { device: device.clone(), state: Mutex::default() }
    }

    fn reserve(&self, bytes: usize) {
        let mut state = self.state.lock().expect("no panic while locked");
        if bytes > state.largest {
            *state = State { largest: bytes, places: None };
        }
    }

    fn places(&self) -> Result<Arc<Places>> {
        let mut state = self.state.lock().expect("no panic while locked");
        if let Some(places) = &state.places {
            return Ok(places.clone());
        }
        let place = || self.device.alloc(Category::Weights, DType::U8, state.largest);
        let buffers = [Arc::new(place()?), Arc::new(place()?)];
        // After the buffers: the ring's copies wait until the device's stream has allocated them.
        let ring = self.device.gpu().map(|gpu| Ring::new(gpu)).transpose()?;
        let places = Arc::new(Places { buffers, ring });
        state.places = Some(places.clone());
        Ok(places)
    }
}

impl std::fmt::Debug for Landing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Landing on {}", self.device.name())
    }
}

/// A `[rows, cols]` weight in pinned memory.
pub struct OffloadedWeight {
    landing: Arc<Landing>,
    /// Nothing on Meta.
    host: Option<Arc<Pinned>>,
    rows: usize,
    cols: usize,
    form: Form,
    /// Element type and number of each part; the entries are the last.
    parts: Vec<(DType, usize)>,
}

#[derive(Clone, Copy)]
enum Form {
    Dense,
    Blocks,
    TwoFour,
}

impl OffloadedWeight {
    /// Takes a weight of the landing's device to the host.
    ///
    /// # Errors
    /// The GPU's, such as no pinned memory.
    ///
    /// # Panics
    /// For a weight in the CPU's packed form, which no GPU has.
    pub fn new(weight: &FrozenWeight, landing: &Arc<Landing>) -> Result<OffloadedWeight> {
        let (form, parts) = match weight {
            FrozenWeight::Dense(w) => (Form::Dense, vec![&w.values]),
            FrozenWeight::Blocks(w) => (Form::Blocks, vec![w.bits(), w.starts(), &w.values]),
            FrozenWeight::TwoFour(w) => (Form::TwoFour, vec![w.places(), w.values()]),
            FrozenWeight::Sparse(_) => panic!("a weight packed for the CPU is not on a GPU"),
        };
        let host = match landing.device.gpu() {
            Some(gpu) => Some(Arc::new(gpu.pin(&parts)?)),
            None => None,
        };
        let parts = parts.iter().map(|part| (part.dtype(), part.len())).collect();
        let offloaded =
            OffloadedWeight { landing: landing.clone(), host, rows: weight.rows(), cols: weight.cols(), form, parts };
        landing.reserve(offloaded.host_bytes());
        Ok(offloaded)
    }

    /// Output features.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Input features.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The element type of the stored entries.
    pub fn dtype(&self) -> DType {
        self.parts.last().expect("a weight has a part").0
    }

    /// Where it is brought to.
    pub fn landing(&self) -> &Arc<Landing> {
        &self.landing
    }

    /// The device that it is brought to.
    pub fn device(&self) -> &Device {
        &self.landing.device
    }

    /// Bytes of pinned memory.
    pub fn host_bytes(&self) -> usize {
        self.places().1
    }

    fn places(&self) -> (Vec<usize>, usize) {
        places(&self.parts.iter().map(|(dtype, len)| len * dtype.size()).collect::<Vec<_>>())
    }

    /// The weight on the device, until what is returned goes. Kernels that are launched by then read it; the host waits for
    /// nothing. One weight at a time.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory) for the places, the first time; or the GPU's.
    pub fn bring(&self) -> Result<Brought> {
        let landed = self.landing.places()?;
        let (offsets, bytes) = self.places();
        let cost = Cost::new("weight_upload", 0, bytes, 0);
        let device = self.device();
        let mut at = 0;
        match (&landed.ring, &self.host) {
            (Some(ring), Some(host)) => device.launch(cost, |gpu| {
                at = ring.bring(gpu, host, &landed.buffers)?;
                Ok(())
            })?,
            _ => device.run(cost, || ()),
        }
        let mut parts = self
            .parts
            .iter()
            .zip(offsets)
            .map(|((dtype, len), offset)| Buffer::view(&landed.buffers[at], offset, *dtype, *len));
        let mut part = || parts.next().expect("as many as the form has");
        let (rows, cols) = (self.rows, self.cols);
        let weight = match self.form {
            Form::Dense => FrozenWeight::Dense(DenseWeight { rows, cols, values: part(), zeros: Default::default() }),
            Form::Blocks => FrozenWeight::Blocks(BlockWeight::from_parts(rows, cols, part(), part(), part())),
            Form::TwoFour => {
                let places = part();
                FrozenWeight::TwoFour(TwoFourWeight::from_parts(rows, cols, part(), places))
            }
        };
        drop(parts);
        Ok(Brought { weight, at, landed })
    }
}

impl std::fmt::Debug for OffloadedWeight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "OffloadedWeight({}×{} {}, {} bytes)", self.rows, self.cols, self.dtype(), self.host_bytes())
    }
}

/// A weight on the device for as long as this lives.
pub struct Brought {
    weight: FrozenWeight,
    at: usize,
    landed: Arc<Places>,
}

impl std::ops::Deref for Brought {
    type Target = FrozenWeight;

    fn deref(&self) -> &FrozenWeight {
        &self.weight
    }
}

impl std::fmt::Debug for Brought {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} in place {}", self.weight, self.at)
    }
}

impl Drop for Brought {
    fn drop(&mut self) {
        if let (Some(ring), Some(gpu)) = (&self.landed.ring, self.weight.device().gpu()) {
            // What goes wrong here goes wrong with the next call that can tell, too.
            let _ = ring.done(gpu, self.at);
        }
    }
}
