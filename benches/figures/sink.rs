//! The upstream of the load: takes MLLP frames, answers AA with the right MSA-2, and knows which numbers came.

use std::collections::HashSet;
use std::io::{BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::message::{acknowledgement, field, number, read_body};

/// A listening sink. It ends with the process.
#[derive(Clone)]
pub struct Sink {
    /// Where it listens.
    pub address: SocketAddr,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Default)]
struct Seen {
    numbers: HashSet<u64>,
    copies: u64,
}

impl Sink {
    /// Listens on a free port.
    pub fn listen() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let sink = Self { address: listener.local_addr().unwrap(), seen: Arc::default() };
        let taken = sink.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let sink = taken.clone();
                std::thread::spawn(move || sink.take(stream));
            }
        });
        sink
    }

    /// Different messages so far.
    pub fn count(&self) -> u64 {
        self.seen.lock().unwrap().numbers.len() as u64
    }

    /// Messages that came more than once.
    pub fn copies(&self) -> u64 {
        self.seen.lock().unwrap().copies
    }

    /// Waits until `count` different messages came; how long that took, in seconds.
    pub fn wait_for(&self, count: u64, limit: Duration) -> f64 {
        let began = Instant::now();
        while self.count() < count {
            assert!(began.elapsed() < limit, "only {} of {count} messages came within {limit:?}", self.count());
            std::thread::sleep(Duration::from_millis(2));
        }
        began.elapsed().as_secs_f64()
    }

    fn take(&self, stream: TcpStream) {
        stream.set_nodelay(true).unwrap();
        let (mut writer, mut reader) = (stream.try_clone().unwrap(), BufReader::new(stream));
        let mut body = Vec::new();
        while matches!(read_body(&mut reader, &mut body), Ok(true)) {
            self.note(&body);
            let id = field(&body, b"MSH", 10).unwrap_or_default();
            if writer.write_all(&acknowledgement(id)).is_err() {
                return;
            }
        }
    }

    /// Notes a message that came.
    pub fn note(&self, body: &[u8]) {
        let number = number(body).expect("only the load's messages arrive");
        let mut seen = self.seen.lock().unwrap();
        if !seen.numbers.insert(number) {
            seen.copies += 1;
        }
    }
}
