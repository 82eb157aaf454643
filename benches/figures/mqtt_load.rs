//! The load of MQTT sensors: clients that each keep some messages of QoS 1 in flight (MQTT 3.1.1, raw packets).
//!
//! An acknowledgement counts only in the order in which its message was sent; anything else stops the benchmark.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// An acknowledgement that takes longer is a failure.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);
/// Bytes of each payload.
pub const PAYLOAD: usize = 200;

/// What is sent.
#[derive(Clone, Copy)]
pub struct Sensors {
    /// Clients at once, with the ids `load-0` and on.
    pub clients: usize,
    /// Unacknowledged messages of each.
    pub in_flight: usize,
    /// For so long.
    pub limit: Duration,
}

impl Sensors {
    /// Publishes to `address`; returns how many messages were acknowledged each second.
    pub fn run(self, address: SocketAddr) -> f64 {
        let began = Instant::now();
        let acknowledged: u64 = std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..self.clients).map(|client| scope.spawn(move || self.publish(address, client, began))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        acknowledged as f64 / began.elapsed().as_secs_f64()
    }

    fn publish(self, address: SocketAddr, client: usize, began: Instant) -> u64 {
        let mut stream = connect(address, &connect_packet(&format!("load-{client}"), true, None));
        let mut reader = BufReader::with_capacity(1 << 16, stream.try_clone().unwrap());
        let (mut acknowledged, mut next, mut unacknowledged) = (0, 0u16, VecDeque::new());
        let topic = format!("ward/{client}/spo2");
        let mut batch = Vec::new();
        loop {
            batch.clear();
            while unacknowledged.len() < self.in_flight && began.elapsed() < self.limit {
                next = next % 60_000 + 1;
                publish_packet(&mut batch, &topic, next);
                unacknowledged.push_back(next);
            }
            if unacknowledged.is_empty() {
                return acknowledged;
            }
            stream.write_all(&batch).unwrap();
            let answers = reader.fill_buf().unwrap();
            let whole = answers.len() / 4 * 4;
            assert!(!answers.is_empty(), "the connection was closed");
            for answer in answers.chunks_exact(4) {
                let [high, low] = unacknowledged.pop_front().unwrap().to_be_bytes();
                assert_eq!(answer, [0x40, 2, high, low]);
                acknowledged += 1;
            }
            reader.consume(whole);
        }
    }
}

/// Connects this many clients that say nothing more.
pub fn idle(address: SocketAddr, clients: usize, password: &str) -> Vec<TcpStream> {
    let packet = |client| connect_packet(&format!("idle-{client}"), true, Some(("idle", password)));
    (0..clients).map(|client| connect(address, &packet(client))).collect()
}

/// Subscribes to everything in a session that is kept, and goes away: what comes is queued for it.
pub fn subscribe_and_leave(address: SocketAddr) {
    let mut stream = connect(address, &connect_packet("away", false, None));
    stream.write_all(b"\x82\x06\x00\x01\x00\x01#\x01").unwrap();
    std::io::Read::read_exact(&mut stream, &mut [0; 5]).unwrap();
    stream.write_all(b"\xe0\x00").unwrap();
}

fn connect(address: SocketAddr, hello: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(ANSWER_WITHIN)).unwrap();
    stream.write_all(hello).unwrap();
    let mut answer = [0; 4];
    std::io::Read::read_exact(&mut stream, &mut answer).unwrap();
    assert_eq!(answer[3], 0, "not let in");
    stream
}

fn text(into: &mut Vec<u8>, text: &str) {
    into.extend(u16::try_from(text.len()).unwrap().to_be_bytes());
    into.extend(text.as_bytes());
}

fn connect_packet(id: &str, clean: bool, login: Option<(&str, &str)>) -> Vec<u8> {
    let mut body = b"\x00\x04MQTT\x04".to_vec();
    body.push(u8::from(clean) << 1 | if login.is_some() { 0xC0 } else { 0 });
    body.extend([0, 0]);
    text(&mut body, id);
    if let Some((user, password)) = login {
        text(&mut body, user);
        text(&mut body, password);
    }
    [&[0x10, u8::try_from(body.len()).unwrap()], &body[..]].concat()
}

fn publish_packet(into: &mut Vec<u8>, topic: &str, id: u16) {
    let length = 2 + topic.len() + 2 + PAYLOAD;
    into.extend([0x32, u8::try_from(length & 0x7F).unwrap() | 0x80, u8::try_from(length >> 7).unwrap()]);
    text(into, topic);
    into.extend(id.to_be_bytes());
    into.extend((0..PAYLOAD).map(|at| b"{\"spo2\": 98, \"pulse\": 61} "[at % 26]));
}
