//! The load: connections that each send one message and wait for its acknowledgement, as devices do.
//!
//! An answer counts only when it is positive and its MSA-2 is the message's control id; anything else stops the benchmark.

use std::io::{BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::message::{field, framed, read_body};

/// An answer that takes longer is a failure.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);

/// What is sent.
#[derive(Clone, Copy)]
pub struct Load {
    /// Connections at once.
    pub connections: usize,
    /// Bytes of each body.
    pub size: usize,
    /// First number.
    pub first: u64,
    /// Ends after so many messages.
    pub count: u64,
    /// Ends after so long.
    pub limit: Duration,
}

/// What came of it.
pub struct Outcome {
    /// Messages that were acknowledged.
    pub acked: u64,
    /// From the first to the last, in seconds.
    pub seconds: f64,
    /// Of every message, sorted, in microseconds.
    latencies: Vec<u64>,
}

impl Outcome {
    /// Acknowledged messages each second.
    pub fn rate(&self) -> f64 {
        self.acked as f64 / self.seconds
    }

    /// The time to the acknowledgement that `permille` of the messages did not exceed, in milliseconds.
    pub fn permille_ms(&self, permille: usize) -> f64 {
        let at = self.latencies.len().saturating_sub(1) * permille / 1000;
        self.latencies.get(at).map_or(f64::NAN, |micros| *micros as f64 / 1000.0)
    }
}

impl Load {
    /// `count` messages of 1000 bytes.
    pub fn of_count(connections: usize, first: u64, count: u64) -> Self {
        Self { connections, size: 1000, first, count, limit: Duration::from_secs(3600) }
    }

    /// Messages of 1000 bytes for so many seconds.
    pub fn of_seconds(connections: usize, first: u64, seconds: u64) -> Self {
        Self { connections, size: 1000, first, count: u64::MAX, limit: Duration::from_secs(seconds) }
    }

    /// Sends all of it to `address`.
    pub fn run(self, address: SocketAddr) -> Outcome {
        let next = AtomicU64::new(0);
        let began = Instant::now();
        let mut latencies: Vec<u64> = std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..self.connections).map(|_| scope.spawn(|| self.converse(address, &next, began))).collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        let seconds = began.elapsed().as_secs_f64();
        latencies.sort_unstable();
        Outcome { acked: latencies.len() as u64, seconds, latencies }
    }

    fn converse(&self, address: SocketAddr, next: &AtomicU64, began: Instant) -> Vec<u64> {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(ANSWER_WITHIN)).unwrap();
        let (mut writer, mut reader) = (stream.try_clone().unwrap(), BufReader::new(stream));
        let (mut latencies, mut answer) = (Vec::new(), Vec::new());
        while began.elapsed() < self.limit {
            let offset = next.fetch_add(1, Ordering::Relaxed);
            if offset >= self.count {
                break;
            }
            let frame = framed(self.first + offset, self.size);
            let sent = Instant::now();
            writer.write_all(&frame).unwrap();
            assert!(read_body(&mut reader, &mut answer).unwrap(), "the connection was closed before the answer");
            latencies.push(u64::try_from(sent.elapsed().as_micros()).unwrap());
            check(&answer, self.first + offset);
        }
        latencies
    }
}

fn check(answer: &[u8], number: u64) {
    let code = field(answer, b"MSA", 1).unwrap_or_default();
    let id = field(answer, b"MSA", 2).unwrap_or_default();
    let good = matches!(code, b"AA" | b"CA") && id == format!("{number:012}").as_bytes();
    assert!(good, "message {number} was answered with {:?}", String::from_utf8_lossy(answer));
}
