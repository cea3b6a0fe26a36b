//! An engine that fails at a chosen call, in the middle of a scan too, and remembers that it did. It knows how many of its views are
//! open, how much was read and where scans began.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use hadron_storage::engine::{Batch, Engine, EngineError, ModelEngine, Read, Space, Visit};

/// How many pairs a failing scan shows before it fails.
const SHOWN_BEFORE_FAILURE: usize = 2;

/// When an engine fails.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// Calls that still work.
    pub after: u64,
    /// Fails from then on, or once.
    pub lasting: bool,
}

/// Counts calls and more; shared by an engine and its views.
#[derive(Debug, Default)]
struct Fuse {
    open_views: AtomicUsize,
    bytes_read: AtomicUsize,
    scans: Mutex<Vec<(Space, Bytes)>>,
    armed: AtomicBool,
    lasting: AtomicBool,
    left: AtomicU64,
    blown: AtomicBool,
}

impl Fuse {
    fn works(&self) -> bool {
        if !self.armed.load(Ordering::SeqCst) {
            return true;
        }
        if self.left.load(Ordering::SeqCst) > 0 {
            self.left.fetch_sub(1, Ordering::SeqCst);
            return true;
        }
        self.blown.store(true, Ordering::SeqCst);
        self.armed.store(self.lasting.load(Ordering::SeqCst), Ordering::SeqCst);
        false
    }

    fn check(&self) -> Result<(), EngineError> {
        if self.works() { Ok(()) } else { Err(failure()) }
    }

    fn get(&self, view: &dyn Read, space: Space, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        self.check()?;
        view.get(space, key)
    }

    fn scan(
        &self,
        view: &dyn Read,
        space: Space,
        from: &[u8],
        to: &[u8],
        visit: Visit<'_>,
    ) -> Result<(), EngineError> {
        self.scans.lock().unwrap().push((space, Bytes::copy_from_slice(from)));
        let visit = &mut |key: &[u8], value: &[u8]| {
            self.bytes_read.fetch_add(key.len() + value.len(), Ordering::SeqCst);
            visit(key, value)
        };
        if self.works() {
            return view.scan(space, from, to, visit);
        }
        let mut shown = 0;
        view.scan(space, from, to, &mut |key, value| {
            shown += 1;
            if shown > SHOWN_BEFORE_FAILURE { ControlFlow::Break(()) } else { visit(key, value) }
        })?;
        Err(failure())
    }
}

fn failure() -> EngineError {
    EngineError::Io("made to fail".into())
}

/// A [`ModelEngine`] that can be made to fail.
#[derive(Default)]
pub struct FailingEngine {
    pub model: ModelEngine,
    fuse: Arc<Fuse>,
}

impl FailingEngine {
    /// From now on, or (`None`) never. Forgets whether it failed before.
    pub fn set_fault(&self, fault: Option<Fault>) {
        self.fuse.armed.store(false, Ordering::SeqCst);
        self.fuse.blown.store(false, Ordering::SeqCst);
        if let Some(Fault { after, lasting }) = fault {
            self.fuse.left.store(after, Ordering::SeqCst);
            self.fuse.lasting.store(lasting, Ordering::SeqCst);
            self.fuse.armed.store(true, Ordering::SeqCst);
        }
    }

    /// Views that were not dropped yet.
    pub fn open_views(&self) -> usize {
        self.fuse.open_views.load(Ordering::SeqCst)
    }

    /// Bytes of keys and values that scans have shown.
    pub fn bytes_read(&self) -> usize {
        self.fuse.bytes_read.load(Ordering::SeqCst)
    }

    /// Where scans began since this was last asked.
    pub fn take_scans(&self) -> Vec<(Space, Bytes)> {
        std::mem::take(&mut *self.fuse.scans.lock().unwrap())
    }

    /// True if a call failed since the fault was set.
    pub fn has_failed(&self) -> bool {
        self.fuse.blown.load(Ordering::SeqCst)
    }
}

impl Read for FailingEngine {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        self.fuse.get(&self.model, space, key)
    }

    fn scan(&self, space: Space, from: &[u8], to: &[u8], visit: Visit<'_>) -> Result<(), EngineError> {
        self.fuse.scan(&self.model, space, from, to, visit)
    }
}

impl Engine for FailingEngine {
    fn write(&self, batch: Batch) -> Result<(), EngineError> {
        self.fuse.check()?;
        self.model.write(batch)
    }

    fn persist(&self) -> Result<(), EngineError> {
        self.fuse.check()?;
        self.model.persist()
    }

    fn snapshot(&self) -> Box<dyn Read> {
        self.fuse.open_views.fetch_add(1, Ordering::SeqCst);
        Box::new(View { model: self.model.snapshot(), fuse: self.fuse.clone() })
    }

    fn disk_bytes(&self) -> u64 {
        self.model.disk_bytes()
    }
}

struct View {
    model: Box<dyn Read>,
    fuse: Arc<Fuse>,
}

impl Drop for View {
    fn drop(&mut self) {
        self.fuse.open_views.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Read for View {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        self.fuse.get(self.model.as_ref(), space, key)
    }

    fn scan(&self, space: Space, from: &[u8], to: &[u8], visit: Visit<'_>) -> Result<(), EngineError> {
        self.fuse.scan(self.model.as_ref(), space, from, to, visit)
    }
}
