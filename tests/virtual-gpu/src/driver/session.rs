//! One call into the driver: the lock, the current context, and how queued work gets to run.

use std::ops::{Deref, DerefMut, Range};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

use super::abi::{Handle, HostPtr};
use super::core::{Access, Clock, Conflict, Next, Space, StreamId, Touch, Work};
use super::exports::panic_text;
use super::gpu::Gpu;
use super::guard;
use super::job::{Action, Failure, Job, Touched};
use super::state::{State, current};
use super::status::{Result, Status};
use crate::report;

static STATE: OnceLock<std::result::Result<Mutex<State>, Status>> = OnceLock::new();
/// The process that made the devices: as with CUDA, they are not there for processes that it forks.
static PROCESS: OnceLock<u32> = OnceLock::new();
/// Tells threads that wait for work which another thread runs.
static FINISHED: Condvar = Condvar::new();

/// Makes the devices, the first time.
///
/// # Errors
/// `NO_DEVICE` where the environment describes none; the reason goes to stderr.
pub fn initialise() -> Result {
    let made = STATE.get_or_init(|| {
        PROCESS.get_or_init(std::process::id);
        let list = std::env::var(crate::device::DEVICE_VARIABLE).unwrap_or_default();
        let list = if list.trim().is_empty() { crate::device::DEFAULT_DEVICE.to_owned() } else { list };
        match crate::device::from_list(&list) {
            Ok(devices) => {
                let gpus = devices.into_iter().enumerate().map(|(number, device)| Gpu::new(number, device)).collect();
                Ok(Mutex::new(State::new(gpus)))
            }
            Err(error) => {
                report::warn(&format!("{}: {error}", crate::device::DEVICE_VARIABLE));
                Err(Status::NO_DEVICE)
            }
        }
    });
    made.as_ref().map_err(|&status| status)?;
    if forked() { Err(Status::NOT_INITIALIZED) } else { Ok(()) }
}

/// The lock on all that the driver knows, let go while work runs.
pub struct Session {
    guard: Option<MutexGuard<'static, State>>,
    /// The current context of the calling thread; null in a session without one.
    pub context: Handle,
}

/// A session of a call that needs no context.
///
/// # Errors
/// `NOT_INITIALIZED` before `cuInit`.
pub fn driver() -> Result<Session> {
    let mut session = Session { guard: Some(lock()?), context: Handle::NULL };
    session.hear_of_touches();
    Ok(session)
}

/// A session of a call that works on the current context.
///
/// # Errors
/// As [`driver`]; where there is no current context, or it is lost.
pub fn context() -> Result<Session> {
    context_or(|_| None)
}

/// The same for a call that gives something back: without a current context, in that of `owner`.
///
/// # Errors
/// As [`context`].
pub fn context_or(owner: impl FnOnce(&Session) -> Option<Handle>) -> Result<Session> {
    let mut session = driver()?;
    session.context = current();
    if session.context.is_null() {
        session.context = owner(&session).unwrap_or_default();
    }
    State::context(&session, session.context)?;
    Ok(session)
}

fn forked() -> bool {
    PROCESS.get().is_some_and(|process| *process != std::process::id())
}

fn lock() -> Result<MutexGuard<'static, State>> {
    match STATE.get().filter(|_| !forked()) {
        Some(Ok(state)) => Ok(state.lock().unwrap_or_else(PoisonError::into_inner)),
        Some(Err(status)) => Err(*status),
        None => Err(Status::NOT_INITIALIZED),
    }
}

impl Deref for Session {
    type Target = State;

    fn deref(&self) -> &State {
        self.guard.as_deref().expect("the lock is only let go inside this file")
    }
}

impl DerefMut for Session {
    fn deref_mut(&mut self) -> &mut State {
        self.guard.as_deref_mut().expect("the lock is only let go inside this file")
    }
}

/// What running a job gave.
struct Ran {
    touched: Vec<Touched>,
    work: u64,
    host_write: bool,
}

/// Runs part of a job; a panic is a failure like others. Otherwise whoever waits for the job would wait for ever.
fn without_panic<T>(run: impl FnOnce() -> std::result::Result<T, Failure>) -> std::result::Result<T, Failure> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
        Err(Failure {
            status: Status::UNKNOWN,
            text: format!("the virtual GPU is at fault: {}", panic_text(&*panic)),
            fault: None,
        })
    })
}

impl Session {
    /// The device of the current context.
    pub fn gpu(&self) -> Arc<Gpu> {
        self.devices[self.contexts[&self.context].device].clone()
    }

    /// The number of the current context's device.
    pub fn device_number(&self) -> usize {
        self.contexts[&self.context].device
    }

    /// Runs queued work until all that `goal` knows has run; the host then knows it too.
    pub fn wait_for(&mut self, goal: &Clock) {
        report::calls::wait();
        self.run(goal);
        self.schedule.host_waited(goal);
        guard::release(|work| self.schedule.host_knows(work.stream, work.epoch));
        if self.schedule.quiet() {
            self.ledger.clear();
            self.schedule.forget_closed();
        }
    }

    /// Runs queued work until all that `goal` knows has run, whatever the host knows of it.
    pub fn run(&mut self, goal: &Clock) {
        loop {
            match self.schedule.next(goal) {
                Next::Done => return,
                Next::Run(work) => self.run_one(work),
                Next::Busy => {
                    let guard = self.guard.take().expect("locked between calls");
                    self.guard = Some(FINISHED.wait(guard).unwrap_or_else(PoisonError::into_inner));
                }
            }
        }
    }

    /// Runs one piece of work on the way to `goal`, if one can run: a query makes progress.
    pub fn progress(&mut self, goal: &Clock) {
        if let Next::Run(work) = self.schedule.next(goal) {
            self.run_one(work);
        }
    }

    /// All work of a context, asked for now.
    pub fn all_of(&self, context: Handle) -> Clock {
        self.schedule.group(context.0 as u64)
    }

    /// Waits for a context and answers what became of it.
    ///
    /// # Errors
    /// What the context is lost to.
    pub fn synchronize(&mut self, context: Handle, goal: &Clock) -> Result {
        self.wait_for(goal);
        self.context(context).map(|_| ())
    }

    fn run_one(&mut self, work: Work<Job>) {
        let Work { stream, epoch, clock, item: job } = work;
        let lost = self.contexts.get(&job.context).is_none_or(|context| context.lost.is_some());
        if !lost {
            let touch = Touch { stream, epoch, what: job.describe(stream) };
            let outcome = without_panic(|| {
                self.ledger_touch(&job.action.touches(), &clock, &touch)?;
                let ran = self.execute(&job, stream, &clock, &touch.what)?;
                self.work_done += ran.work;
                self.host_writes += u64::from(ran.host_write);
                self.ledger_touch(&ran.touched, &clock, &touch)
            });
            if let Action::Record(slot) = &job.action {
                slot.store(self.work_done, Ordering::Relaxed);
            }
            if let Err(failure) = outcome {
                self.lose(job.context, failure);
            }
        }
        self.schedule.finish(stream, epoch);
        FINISHED.notify_all();
    }

    /// Contexts are lost to what the host touched too early.
    fn hear_of_touches(&mut self) {
        for (context, text) in guard::touches() {
            self.lose(context, Failure { status: Status::ILLEGAL_STATE, text, fault: None });
        }
    }

    /// The context is lost; says why.
    pub fn lose(&mut self, context: Handle, failure: Failure) {
        report::failure(&failure);
        if let Some(context) = self.contexts.get_mut(&context) {
            context.lost.get_or_insert(failure.status);
        }
    }

    /// Notes an access by a call itself, such as a free; a conflict loses the context.
    pub fn touch_now(&mut self, context: Handle, (space, range, access): Touched, clock: &Clock, touch: &Touch) {
        if let Err(failure) = self.ledger_touch(&[(space, range, access)], clock, touch) {
            self.lose(context, failure);
        }
    }

    fn ledger_touch(&mut self, touched: &[Touched], clock: &Clock, touch: &Touch) -> std::result::Result<(), Failure> {
        for (space, range, access) in touched {
            if let Err(conflict) = self.ledger.touch(*space, range.clone(), *access, clock, touch) {
                let text = self.tell(&conflict, *space);
                return Err(Failure { status: Status::ILLEGAL_STATE, text, fault: None });
            }
        }
        Ok(())
    }

    /// A conflict in words.
    fn tell(&self, conflict: &Conflict, space: Space) -> String {
        let verb = |access| match access {
            Access::Read => "reads",
            Access::Write => "writes",
        };
        let range = &conflict.range;
        let bytes = range.end - range.start;
        let place = match space {
            Space::Host => format!("page-locked host memory at {:#x}", range.start),
            Space::Device { device, allocation } => match self.devices[device].find(range.start) {
                Some(found) => {
                    let offset = range.start - found.base;
                    format!(
                        "allocation {:#x} of {} bytes on device {device}, from byte {offset}",
                        found.base, found.size
                    )
                }
                None => format!("allocation {allocation} of device {device}, at {:#x}", range.start),
            },
        };
        format!(
            "missing synchronisation: {} {} what {} {} ({bytes} bytes of {place}), and nothing orders the two; \
             wait for an event of the one's stream in the other's, or synchronise before queueing the second",
            conflict.second.what,
            verb(conflict.second_access),
            conflict.first.what,
            verb(conflict.first_access),
        )
    }

    /// Runs a job; the lock is let go while a kernel, a copy or the program runs.
    fn execute(&mut self, job: &Job, stream: StreamId, clock: &Clock, what: &str) -> std::result::Result<Ran, Failure> {
        match &job.action {
            Action::Record(_) | Action::Mark(None) => Ok(Ran { touched: Vec::new(), work: 0, host_write: false }),
            Action::Mark(Some(life)) => {
                if life.release {
                    self.release(life.device, life.address, life.allocation);
                }
                Ok(Ran { touched: Vec::new(), work: 0, host_write: false })
            }
            Action::Host(call) => {
                let call = call.clone();
                // It may touch what comes before it or after it, and tell other threads that the former is done.
                guard::release(|work| {
                    clock.covers(work.stream, work.epoch) || work.clock.covers(stream, clock.get(stream))
                });
                self.unlocked(move || {
                    call.call();
                    Ok(Ran { touched: Vec::new(), work: 0, host_write: true })
                })
            }
            Action::Kernel(kernel) => {
                let (gpu, kernel, handle) = (self.devices[kernel.device].clone(), kernel.clone(), job.stream);
                self.unlocked(move || {
                    let outcome = gpu.launch(&kernel, handle)?;
                    Ok(Ran { touched: outcome.touched, work: outcome.work, host_write: outcome.host_write })
                })
            }
            Action::Copy(copy) => {
                self.check_digest(copy, what)?;
                let (devices, copy) = (self.devices.clone(), copy.clone());
                self.unlocked(move || {
                    let host_write = super::transfer::copy(&devices, &copy).map_err(|text| Failure {
                        status: Status::ILLEGAL_ADDRESS,
                        text: format!("{what}: {text}"),
                        fault: None,
                    })?;
                    Ok(Ran { touched: Vec::new(), work: copy.bytes(), host_write })
                })
            }
            Action::Fill(fill) => {
                let (gpu, fill) = (self.devices[fill.device].clone(), fill.clone());
                self.unlocked(move || {
                    super::transfer::fill(&gpu, &fill).map_err(|text| Failure {
                        status: Status::ILLEGAL_ADDRESS,
                        text: format!("{what}: {text}"),
                        fault: None,
                    })?;
                    Ok(Ran { touched: Vec::new(), work: fill.size * fill.width * fill.height, host_write: false })
                })
            }
        }
    }

    fn check_digest(&self, copy: &super::job::Copy, what: &str) -> std::result::Result<(), Failure> {
        match copy.digest {
            Some((digest, writes)) if writes == self.host_writes && super::transfer::digest(copy) != digest => {
                Err(Failure {
                    status: Status::ILLEGAL_STATE,
                    text: format!(
                        "missing synchronisation: the host wrote page-locked memory while {what} was waiting to read \
                         it; synchronise with the copy before the buffer is used again"
                    ),
                    fault: None,
                })
            }
            _ => Ok(()),
        }
    }

    fn unlocked(
        &mut self,
        run: impl FnOnce() -> std::result::Result<Ran, Failure>,
    ) -> std::result::Result<Ran, Failure> {
        self.guard = None;
        let outcome = without_panic(run);
        self.guard = Some(lock().expect("the driver was initialised when this session began"));
        outcome
    }

    /// Gives memory back to its device.
    pub fn release(&mut self, device: usize, address: u64, allocation: u64) {
        self.devices[device].free(address);
        self.ledger.forget(Space::Device { device, allocation });
        if let Some(handle) = self.pooled.remove(&address)
            && let Some(pool) = self.pools.get_mut(&handle)
        {
            pool.used -= pool.alive.remove(&address).unwrap_or(0);
            if pool.doomed && pool.alive.is_empty() {
                self.pools.remove(&handle);
            }
        }
    }

    /// What is freed in the order of a stream counts as given back to its pool at once, though the bytes are there until the
    /// stream has come so far: the allocations that follow in the stream may take them.
    pub fn give_back(&mut self, address: u64) {
        let Some(&handle) = self.pooled.get(&address) else { return };
        if let Some(pool) = self.pools.get_mut(&handle) {
            pool.used -= pool.alive.get_mut(&address).map_or(0, std::mem::take);
        }
    }

    /// Queues a job on a stream of the schedule, outside any capture.
    pub fn enqueue(&mut self, id: StreamId, job: Job) -> Result<Clock> {
        let seen_without_a_call = match &job.action {
            Action::Host(_) => true,
            Action::Kernel(kernel) => kernel.words().any(|word| self.is_pinned(word)),
            _ => false,
        };
        let pinned = job.action.host_touches();
        let told = (!pinned.is_empty()).then(|| (job.describe(id), job.context));
        let clock = self.schedule.enqueue(id, job).ok_or(Status::INVALID_HANDLE)?;
        if let Some((what, context)) = told {
            let work = guard::Work { stream: id, epoch: clock.get(id), clock: clock.clone(), what, context };
            self.guard_pinned(pinned, &Arc::new(work));
        }
        if seen_without_a_call {
            super::background::bring_about(clock.clone());
        }
        Ok(clock)
    }

    /// The host keeps away from these bytes until it has waited for the work that touches them.
    fn guard_pinned(&self, touched: Vec<(Range<u64>, Access)>, work: &Arc<guard::Work>) {
        for (range, access) in touched {
            let block = self.pinned(HostPtr(range.start as usize), range.end - range.start);
            if let Some(memory) = block.and_then(|(_, block)| block.memory.as_deref()) {
                guard::watch(memory, &range, access, work);
            }
        }
    }

    /// Runs work that waits, may touch these bytes, and is not ordered before or after `clock`'s work `epoch` of
    /// `stream`: if it does touch them, it is found out now rather than whenever it would have run.
    pub fn settle(&mut self, touched: &[Touched], stream: StreamId, clock: &Clock) {
        let epoch = clock.get(stream);
        let suspects: Vec<Clock> = self
            .schedule
            .waiting()
            .filter(|work| !clock.covers(work.stream, work.epoch) && !work.clock.covers(stream, epoch))
            .filter(|work| touched.iter().any(|(space, range, _)| work.item.action.may_touch(*space, range)))
            .map(|work| work.clock.clone())
            .collect();
        for suspect in suspects {
            self.run(&suspect);
        }
    }
}

impl Job {
    /// The job and its stream in words; each thread's default stream by its number in the schedule.
    pub fn describe(&self, id: StreamId) -> Arc<str> {
        use super::state::{STREAM_LEGACY, STREAM_PER_THREAD};
        let what = &self.what;
        match self.stream {
            Handle::NULL | STREAM_LEGACY => format!("{what} on the legacy default stream"),
            STREAM_PER_THREAD => format!("{what} on a thread's own default stream (number {})", id.0),
            Handle(stream) => format!("{what} on stream {stream:#x}"),
        }
        .into()
    }
}
