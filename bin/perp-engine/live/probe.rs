//! One step of a run in detail: what memory was used for, and which kernels took its time.

use engine::retrain::StepRecord;
use kernels::Device;
use kernels::device::KernelStats;

/// Watches one step: the second of this process, for the first makes the optimizer's state and warms the caches; the first
/// where there is no other. On a GPU that step's kernels are waited for one by one.
pub struct Probe {
    device: Device,
    state: State,
}

enum State {
    Off,
    First,
    /// What the first did, should there be no other.
    Second(Probed),
    Done(Probed),
}

/// What the step did.
#[derive(Clone, Debug)]
pub struct Probed {
    /// The step's number.
    pub step: usize,
    /// Its wall seconds.
    pub seconds: f64,
    /// Bytes in use by category, as the step took and gave them.
    pub memory: Vec<[u64; 7]>,
    /// Its kernels.
    pub kernels: Vec<KernelStats>,
}

impl Probe {
    /// A probe that watches where `wanted`.
    pub fn new(device: &Device, wanted: bool) -> Probe {
        Probe { device: device.clone(), state: if wanted { State::First } else { State::Off } }
    }

    /// The next step is about to run.
    pub fn begin(&mut self) {
        if matches!(self.state, State::First | State::Second(_)) {
            self.device.memory().start_trace();
            self.device.start_profile();
        }
    }

    /// A step is done.
    pub fn after_step(&mut self, record: &StepRecord) {
        if matches!(self.state, State::Off | State::Done(_)) {
            return;
        }
        let memory = self.device.memory().take_trace();
        let kernels = self.device.take_profile();
        let probed = Probed { step: record.step, seconds: record.seconds, memory, kernels };
        self.state = match self.state {
            State::First => State::Second(probed),
            _ => State::Done(probed),
        };
    }

    /// What was seen, if a step was.
    pub fn take(&mut self) -> Option<Probed> {
        match std::mem::replace(&mut self.state, State::Off) {
            State::Second(probed) | State::Done(probed) => Some(probed),
            other => {
                self.state = other;
                None
            }
        }
    }
}
