//! The way to a log's writer, and the thread that writes what was queued for it.
//!
//! A message that finds nobody writing is written at once, by the task that brings it: the two changes of thread that a queue
//! costs are longer than the encryption and the copy together. Who comes while that lasts queues, and the writer's thread takes
//! all of them as one group: so a lone device gets its answer soonest, and many devices share a sync.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::task::block_in_place;

use super::writer::{Request, Writer};

/// How often the writer's thread shows that it moves when nobody asks for anything.
const TURN: Duration = Duration::from_secs(1);

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
    /// Turns of the writer's thread: each means that it had the writer in its hands.
    turns: AtomicU64,
}

/// The other end of the queue, for the writer's thread.
pub struct Queue {
    requests: Receiver<Request>,
    shared: Arc<Shared>,
}

/// A way to `writer`, and the end of it that a thread of its own must [`Queue::serve`].
pub fn open(writer: Writer) -> (Requests, Queue) {
    let (queue, requests) = channel();
    let shared = Arc::new(Shared { writer: Mutex::new(writer), queued: AtomicUsize::new(0), turns: AtomicU64::new(0) });
    (Requests { queue, shared: Arc::clone(&shared) }, Queue { requests, shared })
}

impl Requests {
    /// Asks the writer's thread. When it is gone the reply is dropped, which the asker takes for a failure.
    pub fn send(&self, request: Request) {
        self.shared.queued.fetch_add(1, Ordering::SeqCst);
        drop(self.queue.send(request));
    }

    /// Grows while the writer moves.
    pub fn turns(&self) -> u64 {
        self.shared.turns.load(Ordering::Relaxed)
    }

    /// As [`Requests::send`], for a caller that does nothing but wait for the reply: when nobody writes and nothing is queued
    /// the request is written here and now.
    pub fn send_and_wait(&self, request: Request) {
        self.write_or_send(request, true);
    }

    /// As [`Requests::send`], for a caller that has other work meanwhile: it is written here and now only where that costs less than to
    /// wake the writer's thread, on a disk that is quick.
    pub fn send_and_go_on(&self, request: Request) {
        self.write_or_send(request, false);
    }

    fn write_or_send(&self, request: Request, waits: bool) {
        // Only a runtime of several threads can spare this one for the time of a sync.
        let can_block = Handle::try_current().is_ok_and(|now| now.runtime_flavor() == RuntimeFlavor::MultiThread);
        if can_block && self.shared.queued.load(Ordering::SeqCst) == 0 {
            // A writer that panicked is not asked again: its thread has ended, and the reply is dropped.
            if let Ok(mut writer) = self.shared.writer.try_lock()
                && !writer.is_shared()
            {
                // To hand this thread's other tasks over takes longer than a quick disk needs for a sync; a slow one must not hold
                // them up, nor the only thread that there is.
                let is_quick = writer.is_quick() && (waits || !writer.syncs_soon());
                if is_quick && Handle::current().metrics().num_workers() > 1 {
                    return writer.serve(request);
                }
                if waits {
                    return block_in_place(|| writer.serve(request));
                }
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
            // Idle, it still shows that it moves; a disk that hangs in another's write keeps it from that.
            let received = self.requests.recv_timeout(wait.min(TURN));
            let Ok(mut writer) = self.shared.writer.lock() else { return };
            self.shared.turns.fetch_add(1, Ordering::Relaxed);
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

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::io;

    use tokio::sync::oneshot;

    use super::super::sim::{Fault, SimDisk};
    use super::super::tests::{body, commit, commit_of, name, open as open_spool, waiting};
    use super::super::{Class, CommitError, Place, record};
    use super::*;
    use crate::spool::log::Effect;
    use crate::spool::writer::Prepared;

    /// A record that does nothing, and where its reply comes.
    fn asked() -> (Request, oneshot::Receiver<Result<Vec<super::super::writer::Written>, CommitError>>) {
        let (reply, told) = oneshot::channel();
        let (plaintext, effect) = (vec![1, 2, 3], Effect::None);
        let records = vec![Prepared { kind: record::Kind::Gap, tag: 0, plaintext, effect, id: None }];
        (Request::Append { records, control: true, reply }, told)
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn of_many_tasks_that_commit_at_once_nothing_is_lost_and_the_order_of_each_is_kept() {
        const TASKS: u64 = 12;
        const EACH: u64 = 20;
        let spool = open_spool(&SimDisk::new(), 32);
        let tasks: Vec<_> = (0..TASKS)
            .map(|task| {
                let spool = spool.clone();
                tokio::spawn(async move {
                    let (source, mut sent) = (format!("source{task}"), Vec::new());
                    for number in task * EACH..(task + 1) * EACH {
                        let id = commit_of(&spool, &source, Class::Clinical, &["engine"], &body(number, 2_000)).await;
                        sent.push((id.unwrap(), body(number, 2_000)));
                        // Now in a crowd, now alone.
                        for _ in 0..number % 5 {
                            tokio::task::yield_now().await;
                        }
                    }
                    sent
                })
            })
            .collect();
        let mut ids = HashSet::new();
        for (number, task) in tasks.into_iter().enumerate() {
            let sent = task.await.unwrap();
            ids.extend(sent.iter().map(|(id, _)| *id));
            let mut lane = spool.lane(Class::Clinical, &name(&format!("source{number}")), &name("engine"));
            assert!(waiting(&spool, &mut lane).await == sent, "task {number}");
        }
        assert_eq!(ids.len() as u64, TASKS * EACH, "each has an id of its own");
        spool.close();
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn no_place_is_given_twice_by_those_who_write_at_once_and_those_who_queue() {
        let spool = open_spool(&SimDisk::new(), 32);
        let requests = spool.opened(Class::Clinical).requests.clone();
        let tasks: Vec<_> = (0..8)
            .map(|task| {
                let requests = requests.clone();
                tokio::spawn(async move {
                    let mut places: Vec<Place> = Vec::new();
                    for _ in 0..30 {
                        let (request, told) = asked();
                        if task % 2 == 0 {
                            requests.send(request)
                        } else {
                            requests.send_and_wait(request)
                        }
                        places.extend(told.await.unwrap().unwrap().iter().map(|written| written.at));
                    }
                    places
                })
            })
            .collect();
        let mut all = HashSet::new();
        for task in tasks {
            let places = task.await.unwrap();
            assert!(places.is_sorted() && places.len() == 30, "what a task wrote later has a later place");
            all.extend(places);
        }
        assert_eq!(all.len(), 8 * 30);
        assert_eq!(requests.queued(), 0, "nothing is counted that does not wait");
        spool.close();
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_lone_request_is_written_before_it_returns_and_one_that_meets_a_writer_queues() {
        let spool = open_spool(&SimDisk::new(), 8);
        let requests = spool.opened(Class::Clinical).requests.clone();
        let (request, mut told) = asked();
        requests.send_and_wait(request);
        assert!(told.try_recv().unwrap().is_ok(), "written by the task itself");
        let (request, mut told) = asked();
        {
            let _writing = requests.hold();
            requests.send_and_wait(request);
            assert!(told.try_recv().is_err() && requests.queued() == 1, "it waits for the writer's thread");
        }
        assert!(told.await.unwrap().is_ok());
        spool.close();
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn who_goes_on_meanwhile_writes_itself_on_a_quick_disk() {
        let spool = open_spool(&SimDisk::new(), 8);
        let requests = spool.opened(Class::Clinical).requests.clone();
        requests.hold().pretend(true);
        let (request, mut told) = asked();
        requests.send_and_go_on(request);
        assert!(told.try_recv().unwrap().is_ok());
        spool.close();
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn after_the_close_a_lone_commit_is_refused() {
        let disk = SimDisk::new();
        let spool = open_spool(&disk, 8);
        let before = commit(&spool, Class::Clinical, &["engine"], b"before").await.unwrap();
        spool.close();
        let operations = disk.operations();
        for _ in 0..3 {
            assert_eq!(commit(&spool, Class::Clinical, &["engine"], b"after").await, Err(CommitError::Failed));
        }
        assert_eq!(disk.operations(), operations, "nothing is written any more");
        let spool = open_spool(&disk.after_kill(), 8);
        let mut lane = spool.lane(Class::Clinical, &name("icu"), &name("engine"));
        assert_eq!(waiting(&spool, &mut lane).await, [(before, b"before".to_vec())]);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_writer_that_failed_refuses_lone_commits_until_the_next_start() {
        let disk = SimDisk::new();
        let spool = open_spool(&disk, 8);
        commit(&spool, Class::Clinical, &["engine"], b"before").await.unwrap();
        disk.fail(Some(Fault { at: 1, lasting: true, kind: io::ErrorKind::Other }));
        assert_eq!(commit(&spool, Class::Clinical, &["engine"], b"during").await, Err(CommitError::Failed));
        disk.fail(None);
        assert_eq!(commit(&spool, Class::Clinical, &["engine"], b"after").await, Err(CommitError::Failed));
        assert!(spool.logs()[0].refusing.is_some());
        spool.close();
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn nobody_waits_for_ever_for_a_writer_that_panicked() {
        let spool = open_spool(&SimDisk::new(), 8);
        commit(&spool, Class::Clinical, &["engine"], b"before").await.unwrap();
        let requests = spool.opened(Class::Clinical).requests.clone();
        let writing = std::thread::spawn(move || {
            let _writing = requests.hold();
            panic!("simulated");
        });
        assert!(writing.join().is_err());
        for _ in 0..3 {
            assert_eq!(commit(&spool, Class::Clinical, &["engine"], b"after").await, Err(CommitError::Failed));
        }
    }
}
