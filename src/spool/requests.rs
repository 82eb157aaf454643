//! The way to a log's writer, and the thread that writes what was queued for it.
//!
//! A message that finds nobody writing is written at once, by the task that brings it: the two changes of thread that a queue
//! costs are longer than the encryption and the copy together. Who comes while that lasts queues, and the writer's thread takes
//! all of them as one group: so a lone device gets its answer soonest, and many devices share a sync.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};

use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::task::block_in_place;

use super::writer::{Request, Writer};

/// A log's writer, to be asked.
#[derive(Clone)]
pub struct Requests {
    queue: Sender<Request>,
    shared: Arc<Shared>,
}

struct Shared {
    writer: Mutex<Writer>,
    /// Requests in the queue: nobody writes past them.
    queued: AtomicUsize,
}

/// The other end of the queue, for the writer's thread.
pub struct Queue {
    requests: Receiver<Request>,
    shared: Arc<Shared>,
}

/// A way to `writer`, and the end of it that a thread of its own must [`Queue::serve`].
pub fn open(writer: Writer) -> (Requests, Queue) {
    let (queue, requests) = channel();
    let shared = Arc::new(Shared { writer: Mutex::new(writer), queued: AtomicUsize::new(0) });
    (Requests { queue, shared: Arc::clone(&shared) }, Queue { requests, shared })
}

impl Requests {
    /// Asks the writer's thread. When it is gone the reply is dropped, which the asker takes for a failure.
    pub fn send(&self, request: Request) {
        self.shared.queued.fetch_add(1, Ordering::SeqCst);
        drop(self.queue.send(request));
    }

    /// As [`Requests::send`], for a caller that does nothing but wait for the reply: when nobody writes and nothing is queued
    /// the request is written here and now.
    pub fn send_and_wait(&self, request: Request) {
        // Only a runtime of several threads can spare this one for the time of a sync.
        let can_block = Handle::try_current().is_ok_and(|now| now.runtime_flavor() == RuntimeFlavor::MultiThread);
        if can_block && self.shared.queued.load(Ordering::SeqCst) == 0 {
            // A writer that panicked is not asked again: its thread has ended, and the reply is dropped.
            if let Ok(mut writer) = self.shared.writer.try_lock()
                && !writer.is_shared()
            {
                block_in_place(|| writer.serve(request));
                return;
            }
        }
        self.send(request);
    }
}

#[cfg(test)]
impl Requests {
    /// The writer, held: what is asked meanwhile waits in the queue.
    pub fn hold(&self) -> std::sync::MutexGuard<'_, Writer> {
        self.shared.writer.lock().unwrap()
    }

    /// How many requests wait in the queue.
    pub fn queued(&self) -> usize {
        self.shared.queued.load(Ordering::SeqCst)
    }
}

impl Queue {
    /// Writes what is asked until it is told to stop or nobody can ask any more.
    pub fn serve(self) {
        loop {
            let Ok(wait) = self.shared.writer.lock().map(|writer| writer.cursors_due_in()) else { return };
            let received = self.requests.recv_timeout(wait);
            let Ok(mut writer) = self.shared.writer.lock() else { return };
            match received {
                Ok(request) => {
                    writer.gather(self.taken(request), || self.requests.try_recv().ok().map(|more| self.taken(more)))
                }
                Err(RecvTimeoutError::Timeout) if writer.cursors_due_in().is_zero() => writer.write_cursors(),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => writer.stop(),
            }
            if writer.has_stopped() {
                return;
            }
        }
    }

    fn taken(&self, request: Request) -> Request {
        self.shared.queued.fetch_sub(1, Ordering::SeqCst);
        request
    }
}
