//! Page-locked memory of the host, and who touches it too early.
//!
//! A copy that was queued reads or writes page-locked memory at a time of its own, and the host must keep away until it
//! has waited for it. Such memory is mapped twice: programs see one mapping, the driver works through the other. While
//! a copy is to be waited for, the program's pages are protected, and whoever touches them meets the handler below: it
//! notes who and where, opens the pages and lets the program go on; the next call of the driver answers with an error
//! that names both sides.
//!
//! Only pages that a copy covers as far as the block reaches are protected: within a page it could not be told who
//! touches what, and a system call on a protected page would fail where the program is right. Registered memory is the
//! program's own and stays as it is. Kernels tell only when they have run what they touched; they are not guarded.

use std::cell::UnsafeCell;
use std::ffi::{c_int, c_void};
use std::fs::File;
use std::ops::{Deref, DerefMut, Range};
use std::os::fd::FromRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use memmap2::{MmapMut, MmapOptions};

use super::abi::{Handle, HostPtr};
use super::core::{Access, Clock, StreamId};

/// Page-locked memory that the driver allocated.
#[derive(Debug)]
pub struct Pinned {
    program: MmapMut,
    driver: MmapMut,
}

impl Pinned {
    /// `len` bytes of zeros; none where the host has no more.
    pub fn new(len: usize) -> Option<Pinned> {
        listen();
        // SAFETY: the name ends with a 0; the file that is opened is owned by `File` alone.
        let file = unsafe {
            let descriptor = libc::memfd_create(c"page-locked".as_ptr(), libc::MFD_CLOEXEC);
            if descriptor < 0 {
                return None;
            }
            File::from_raw_fd(descriptor)
        };
        file.set_len(len as u64).ok()?;
        // SAFETY: no one else knows the file, so nothing shortens it.
        let map = || unsafe { MmapOptions::new().len(len).map_mut(&file).ok() };
        let pinned = Pinned { program: map()?, driver: map()? };
        LIST.lock().blocks.push(pinned.range());
        Some(pinned)
    }

    /// Where the program sees it.
    pub fn address(&self) -> HostPtr {
        HostPtr(self.program.as_ptr().expose_provenance())
    }

    /// Where the driver reaches the byte that the program sees at `address`.
    pub fn through(&self, address: HostPtr) -> HostPtr {
        HostPtr(self.driver.as_ptr().expose_provenance()).offset(address.0 - self.address().0)
    }

    fn range(&self) -> Range<usize> {
        let start = self.address().0;
        start..start + self.program.len()
    }

    /// The pages that `bytes` cover as far as the block reaches.
    fn pages(&self, bytes: &Range<u64>) -> Range<usize> {
        let (block, page) = (self.range(), page_size());
        let start = (bytes.start as usize).next_multiple_of(page);
        let end = if bytes.end as usize >= block.end {
            block.end.next_multiple_of(page)
        } else {
            bytes.end as usize / page * page
        };
        start..end.max(start)
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let range = self.range();
        let mut list = LIST.lock();
        list.blocks.retain(|block| *block != range);
        // The mapping goes away, so its protection need not be undone.
        list.watched.retain(|watched| !range.contains(&watched.pages.start));
    }
}

/// Work that the host must wait for before it touches pages.
#[derive(Debug)]
pub struct Work {
    /// Its stream.
    pub stream: StreamId,
    /// Its number on the stream.
    pub epoch: u64,
    /// All that comes before it, and itself.
    pub clock: Clock,
    /// What it is, in words.
    pub what: Arc<str>,
    /// The context that is lost to a touch.
    pub context: Handle,
}

#[derive(Debug)]
struct Watched {
    pages: Range<usize>,
    access: Access,
    work: Arc<Work>,
    touch: Option<Touch>,
}

/// An access that came too early.
#[derive(Clone, Copy, Debug)]
struct Touch {
    address: usize,
    thread: c_int,
    /// None where the processor does not say.
    wrote: Option<bool>,
}

#[derive(Debug)]
struct List {
    watched: Vec<Watched>,
    /// What programs see of page-locked memory.
    blocks: Vec<Range<usize>>,
}

/// A lock that a signal handler may take: whoever holds it touches no page that is watched, so it is let go soon.
struct Spin {
    held: AtomicBool,
    list: UnsafeCell<List>,
}

// SAFETY: the list is reached through the lock alone.
unsafe impl Sync for Spin {}

static LIST: Spin =
    Spin { held: AtomicBool::new(false), list: UnsafeCell::new(List { watched: Vec::new(), blocks: Vec::new() }) };
/// Some touch has not been told of.
static TOUCHED: AtomicBool = AtomicBool::new(false);
/// Who heard of faults before.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

struct Held<'a>(&'a Spin);

impl Spin {
    fn lock(&self) -> Held<'_> {
        while self.held.swap(true, Ordering::Acquire) {
            std::hint::spin_loop();
        }
        Held(self)
    }
}

impl Deref for Held<'_> {
    type Target = List;

    fn deref(&self) -> &List {
        // SAFETY: whoever has a `Held` holds the lock.
        unsafe { &*self.0.list.get() }
    }
}

impl DerefMut for Held<'_> {
    fn deref_mut(&mut self) -> &mut List {
        // SAFETY: as above.
        unsafe { &mut *self.0.list.get() }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.held.store(false, Ordering::Release);
    }
}

fn page_size() -> usize {
    static SIZE: OnceLock<usize> = OnceLock::new();
    // SAFETY: a plain question.
    *SIZE.get_or_init(|| usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096))
}

/// Sets what the program may do with pages of a block of the list.
fn protect(pages: &Range<usize>, protection: c_int) {
    let start = std::ptr::with_exposed_provenance_mut(pages.start);
    // SAFETY: the pages are of a mapping that is alive: blocks leave the list before they are unmapped. A failure leaves
    // them open, and nothing is found out.
    unsafe { libc::mprotect(start, pages.len(), protection) };
}

impl List {
    /// Protects pages for those who still watch them.
    fn settle(&self, pages: &Range<usize>) {
        let watching = |at: usize| {
            self.watched.iter().filter(move |watched| watched.touch.is_none() && watched.pages.contains(&at))
        };
        let mut bounds: Vec<usize> = self.watched.iter().flat_map(|w| [w.pages.start, w.pages.end]).collect();
        bounds.retain(|bound| pages.contains(bound));
        bounds.extend([pages.start, pages.end]);
        bounds.sort_unstable();
        bounds.dedup();
        for pair in bounds.windows(2) {
            let strongest = watching(pair[0]).map(|watched| watched.access == Access::Write).max();
            let protection = match strongest {
                None => libc::PROT_READ | libc::PROT_WRITE,
                Some(false) => libc::PROT_READ,
                Some(true) => libc::PROT_NONE,
            };
            protect(&(pair[0]..pair[1]), protection);
        }
    }
}

/// Watches `bytes` of a block until [`release`] lets go of the work that reads or writes them.
pub fn watch(memory: &Pinned, bytes: &Range<u64>, access: Access, work: &Arc<Work>) {
    let pages = memory.pages(bytes);
    if pages.is_empty() {
        return;
    }
    let mut list = LIST.lock();
    list.watched.push(Watched { pages: pages.clone(), access, work: work.clone(), touch: None });
    list.settle(&pages);
}

/// Lets go of the work that `which` names.
pub fn release(which: impl Fn(&Work) -> bool) {
    let mut list = LIST.lock();
    // What was touched too early stays until it is told of.
    let goes = |watched: &mut Watched| watched.touch.is_none() && which(&watched.work);
    let gone: Vec<Watched> = list.watched.extract_if(.., goes).collect();
    gone.iter().for_each(|watched| list.settle(&watched.pages));
    drop(list);
}

/// What was touched too early since the last time that this was asked: the context and the words for it.
pub fn touches() -> Vec<(Handle, String)> {
    if !TOUCHED.swap(false, Ordering::Acquire) {
        return Vec::new();
    }
    let mut list = LIST.lock();
    let found: Vec<Watched> = list.watched.extract_if(.., |watched| watched.touch.is_some()).collect();
    let blocks = list.blocks.clone();
    drop(list);
    let told = |watched: &Watched| {
        let touch = watched.touch?;
        let block = blocks.iter().find(|block| block.contains(&touch.address))?;
        let host = match touch.wrote {
            Some(true) => "writes",
            Some(false) => "reads",
            None => "touches",
        };
        let other = if watched.access == Access::Write { "writes" } else { "reads" };
        let text = format!(
            "missing synchronisation: host thread {} {host} byte {} of the {} page-locked bytes at {:#x}, which {} \
             {other}, and the host has not waited for that; wait for its stream, or for an event recorded after it, first",
            touch.thread,
            touch.address - block.start,
            block.len(),
            block.start,
            watched.work.what,
        );
        Some((watched.work.context, text))
    };
    found.iter().filter_map(told).collect()
}

/// Notes a touch; false where the address is no page-locked memory.
fn note(address: usize, wrote: Option<bool>) -> bool {
    let mut list = LIST.lock();
    for watched in &mut list.watched {
        let conflict = watched.access == Access::Write || wrote != Some(false);
        if watched.touch.is_none() && watched.pages.contains(&address) && conflict {
            // SAFETY: a plain question.
            let thread = unsafe { libc::gettid() };
            watched.touch = Some(Touch { address, thread, wrote });
            TOUCHED.store(true, Ordering::Release);
            protect(&watched.pages, libc::PROT_READ | libc::PROT_WRITE);
        }
    }
    // Where no one watches any more, another thread has just waited: the access finds the pages open.
    list.blocks.iter().any(|block| block.contains(&address))
}

/// Hears of faults from now on.
fn listen() {
    BEFORE.get_or_init(|| {
        let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) = on_fault;
        // SAFETY: a structure of plain numbers, all of which may be 0.
        let (mut action, mut before): (libc::sigaction, libc::sigaction) = unsafe { std::mem::zeroed() };
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        // SAFETY: both structures live until the call returns; the handler has the signature that the flags promise.
        unsafe { libc::sigaction(libc::SIGSEGV, &action, &mut before) };
        before
    });
}

extern "C" fn on_fault(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passes both to a handler with SA_SIGINFO.
    let (address, wrote) = unsafe { ((*info).si_addr().addr(), wrote(context)) };
    if !note(address, wrote) {
        // SAFETY: the arguments are those of a handler.
        unsafe { pass_on(signal, info, context) };
    }
}

/// Whether the access that failed was to write.
///
/// # Safety
/// `context` must be a handler's third argument.
#[cfg(target_arch = "x86_64")]
unsafe fn wrote(context: *mut c_void) -> Option<bool> {
    /// The bit of a page fault's error code that says so.
    const WRITE: i64 = 2;
    // SAFETY: the caller's promise.
    let registers = unsafe { &(*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    Some(registers[libc::REG_ERR as usize] & WRITE != 0)
}

#[cfg(not(target_arch = "x86_64"))]
unsafe fn wrote(_: *mut c_void) -> Option<bool> {
    None
}

/// A fault that is not ours goes to whoever heard of faults before.
///
/// # Safety
/// The arguments must be those of a handler.
unsafe fn pass_on(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    let before = BEFORE.get().map_or(libc::SIG_DFL, |before| before.sa_sigaction);
    let with_info = BEFORE.get().is_some_and(|before| before.sa_flags & libc::SA_SIGINFO != 0);
    // SAFETY: what stood there was a handler of the kind that its flags say; without one, the default action takes the
    // access when it is made again.
    unsafe {
        match before {
            libc::SIG_DFL | libc::SIG_IGN => {
                libc::signal(signal, libc::SIG_DFL);
            }
            handler if with_info => {
                let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) =
                    std::mem::transmute(std::ptr::with_exposed_provenance::<()>(handler));
                handler(signal, info, context);
            }
            handler => {
                let handler: extern "C" fn(c_int) =
                    std::mem::transmute(std::ptr::with_exposed_provenance::<()>(handler));
                handler(signal);
            }
        }
    }
}
