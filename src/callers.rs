//! Who is still on the line: a device that asked for something which is answered later may be answered where it asked.
//!
//! Sources enter their devices, upstreams call them, and neither knows the other. Nothing here is kept: a device that has hung up is
//! not here any more and is told in another way. Nobody waits here for a device: a line that is busy is passed over.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{mpsc, oneshot};

use crate::values::Name;
use crate::wire::dicom::commitment::Report;
use crate::wire::dicom::dimse::Status;
use crate::wire::dicom::values::Uid;

/// Calls that wait for one device to be ready for them.
pub const CALLS_MAX: usize = 8;

/// The devices on the line, all sources together; cheap to clone, and all clones are one.
#[derive(Clone, Default, Debug)]
pub struct Callers {
    lines: Arc<Mutex<HashMap<Key, mpsc::Sender<Call>>>>,
}

/// A source and the transaction that its device asked about.
type Key = (Name, Uid);

/// There is one in a process.
impl PartialEq for Callers {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

/// A report for a device on the line.
#[derive(Debug)]
pub struct Call {
    /// What it is told.
    pub report: Report,
    /// Its answer. Dropped: it has none.
    pub answer: oneshot::Sender<Status>,
}

/// A device on the line; it is not, when this is dropped.
pub struct Line {
    callers: Callers,
    key: Key,
    calls: mpsc::Sender<Call>,
}

impl Callers {
    /// From now on the device can be called about `transaction`, through `calls`.
    pub fn enter(&self, source: &Name, transaction: &Uid, calls: &mpsc::Sender<Call>) -> Line {
        let key = (source.clone(), transaction.clone());
        self.locked().insert(key.clone(), calls.clone());
        Line { callers: self.clone(), key, calls: calls.clone() }
    }

    /// Calls the device that asked about the report's transaction, once; `None`: it is not on the line, or busy.
    pub fn call(&self, source: &Name, report: &Report) -> Option<oneshot::Receiver<Status>> {
        let calls = self.locked().remove(&(source.clone(), report.transaction.clone()))?;
        let (answer, answered) = oneshot::channel();
        calls.try_send(Call { report: report.clone(), answer }).ok().map(|()| answered)
    }

    fn locked(&self) -> MutexGuard<'_, HashMap<Key, mpsc::Sender<Call>>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Line {
    /// What it can be called about.
    pub fn transaction(&self) -> &Uid {
        &self.key.1
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let mut lines = self.callers.locked();
        // Another association may have asked about the same meanwhile.
        if lines.get(&self.key).is_some_and(|calls| calls.same_channel(&self.calls)) {
            lines.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(transaction: &str) -> Report {
        Report { transaction: transaction.parse().unwrap(), committed: vec![], failed: vec![] }
    }

    #[test]
    fn a_device_is_called_once_and_only_while_it_is_on_the_line() {
        let (callers, ct) = (Callers::default(), "ct".parse::<Name>().unwrap());
        let (calls, mut called) = mpsc::channel(CALLS_MAX);
        let line = callers.enter(&ct, &"1.2".parse().unwrap(), &calls);
        assert!(callers.call(&"mr".parse().unwrap(), &report("1.2")).is_none());
        assert!(callers.call(&ct, &report("1.3")).is_none());
        let mut answered = callers.call(&ct, &report("1.2")).unwrap();
        assert!(callers.call(&ct, &report("1.2")).is_none(), "once");
        called.try_recv().unwrap().answer.send(Status::SUCCESS).unwrap();
        assert_eq!(answered.try_recv(), Ok(Status::SUCCESS));
        let again = callers.enter(&ct, &"1.2".parse().unwrap(), &calls);
        drop((line, again));
        assert!(callers.call(&ct, &report("1.2")).is_none());
    }

    #[test]
    fn who_asks_anew_is_called_where_it_asked_last() {
        let (callers, ct) = (Callers::default(), "ct".parse::<Name>().unwrap());
        let ((one, mut first), (other, mut last)) = (mpsc::channel(1), mpsc::channel(1));
        let old = callers.enter(&ct, &"1.2".parse().unwrap(), &one);
        let _line = callers.enter(&ct, &"1.2".parse().unwrap(), &other);
        drop(old);
        let _answered = callers.call(&ct, &report("1.2")).unwrap();
        assert!(first.try_recv().is_err() && last.try_recv().is_ok());
    }
}
