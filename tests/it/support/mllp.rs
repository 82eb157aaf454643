//! A device and an engine, as plain as they can be: blocking sockets, one thread for each connection, nothing of ours in them.
//!
//! The peers that are not ours prove the protocol; these two prove the promise, since they can be cut off at any moment and
//! remember in which order everything came.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use super::ports::free_port;
use super::wait::{PATIENCE, eventually_some};

const VT: u8 = 0x0b;
const END: [u8; 2] = [0x1c, 0x0d];
/// Bytes of a body in which its first segments are: the long ones are long at their end.
const HEAD_BYTES: usize = 1024;
/// How often an engine that waits for a connection looks whether it was cut off.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// A message of an invented patient with this MSH-10, in original mode.
pub fn message(id: &str) -> Vec<u8> {
    message_asking(id, "", "")
}

/// The same with MSH-15 and MSH-16.
pub fn message_asking(id: &str, accept: &str, application: &str) -> Vec<u8> {
    let head =
        format!("MSH|^~\\&|MON|ICU|GW|HOSP|20260102030405||ORU^R01^ORU_R01|{id}|P|2.5.1|||{accept}|{application}\r");
    let rest = "PID|1||TEST-1||Probe^Paula\rOBX|1|NM|8867-4^Heart rate^LN||72|/min\r";
    [head.as_bytes(), rest.as_bytes()].concat()
}

/// The same with one long text of `bytes` bytes.
pub fn long_message(id: &str, bytes: usize) -> Vec<u8> {
    let mut body = message(id);
    body.extend_from_slice(b"OBX|2|ED|PDF^report||^application^pdf^Base64^");
    body.resize(body.len() + bytes, b'Q');
    body.push(b'\r');
    body
}

/// A field of the first segment with this name, as text. Enough for the messages above and their acknowledgements.
pub fn field(body: &[u8], segment: &str, number: usize) -> String {
    let text = String::from_utf8_lossy(&body[..body.len().min(HEAD_BYTES)]).into_owned();
    let line = text.split('\r').find(|line| line.starts_with(segment)).unwrap_or_default();
    // MSH-1 is the separator itself.
    let index = if segment == "MSH" { number - 1 } else { number };
    line.split('|').nth(index).unwrap_or_default().to_owned()
}

/// AA with the separators and the MSH-10 of the first MSH, of a batch without a message its own control id; as the bytes stand.
fn acknowledgement(body: &[u8]) -> Vec<u8> {
    let body = &body[..body.len().min(HEAD_BYTES)];
    let bare = |line: &'_ [u8]| line.iter().position(u8::is_ascii_alphabetic).unwrap_or_default();
    let lines = || body.split(|byte| matches!(byte, b'\r' | b'\n')).map(|line| &line[bare(line)..]);
    let message = lines().find(|line| line.starts_with(b"MSH")).map(|line| (line, 9));
    let batch = || lines().rfind(|line| line.starts_with(b"FHS") || line.starts_with(b"BHS"));
    let (line, index) = message.or_else(|| Some((batch()?, 10))).unwrap_or((b"MSH|", 9));
    let separator = &line[3..4];
    let fields: Vec<&[u8]> = line.split(|byte| [*byte] == separator).collect();
    let field = |index: usize| fields.get(index).copied().unwrap_or_default();
    let segments: [&[&[u8]]; 2] = [
        &[b"MSH", field(1), b"ENG", b"HOSP", b"MON", b"ICU", b"20260102030405", b"", b"ACK", b"A1", b"P", b"2.5.1"],
        &[b"MSA", b"AA", field(index)],
    ];
    segments.iter().flat_map(|fields| [fields.join(separator), vec![b'\r']].concat()).collect()
}

/// A device that has connected.
pub struct Device {
    stream: TcpStream,
    frames: Frames,
}

impl Device {
    /// Connects.
    #[track_caller]
    pub fn connect(to: SocketAddr) -> Self {
        Self::try_connect(to).unwrap()
    }

    /// Connects, or tells why not.
    pub fn try_connect(to: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(to)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { frames: Frames { stream: stream.try_clone()?, unread: Vec::new() }, stream })
    }

    /// Its own port.
    pub fn port(&self) -> u16 {
        self.stream.local_addr().unwrap().port()
    }

    /// Sends one message and returns MSA-1 of its answer; fails the test when the answer is about another message.
    #[track_caller]
    pub fn send(&mut self, body: &[u8]) -> String {
        let answer = self.exchange(body).unwrap();
        assert_eq!(field(&answer, "MSA", 2), field(body, "MSH", 10), "answered another message");
        field(&answer, "MSA", 1)
    }

    /// Sends one message and returns the whole answer; an error is a connection that ended before it came.
    pub fn exchange(&mut self, body: &[u8]) -> io::Result<Vec<u8>> {
        self.write(body)?;
        self.answer()
    }

    /// Sends one message and waits for nothing.
    pub fn write(&mut self, body: &[u8]) -> io::Result<()> {
        self.stream.write_all(&[&[VT], body, &END].concat())
    }

    /// The next answer.
    pub fn answer(&mut self) -> io::Result<Vec<u8>> {
        self.frames.next()
    }

    /// Whether the other side has closed the connection; waits for it a little.
    pub fn is_closed_within(&mut self, limit: Duration) -> bool {
        self.stream.set_read_timeout(Some(limit)).unwrap();
        let closed = matches!(self.stream.read(&mut [0]), Ok(0));
        self.stream.set_read_timeout(Some(PATIENCE)).unwrap();
        closed
    }
}

/// Frames of one connection. The peers that these read from frame without any liberty.
struct Frames {
    stream: TcpStream,
    unread: Vec<u8>,
}

impl Frames {
    fn next(&mut self) -> io::Result<Vec<u8>> {
        let mut buffer = [0; 16 << 10];
        let mut searched = 0;
        loop {
            if let Some(end) = memchr::memmem::find(&self.unread[searched..], &END) {
                let rest = self.unread.split_off(searched + end + END.len());
                let frame = std::mem::replace(&mut self.unread, rest);
                assert_eq!(frame[0], VT, "a frame begins with VT");
                return Ok(frame[1..frame.len() - END.len()].to_vec());
            }
            searched = self.unread.len().saturating_sub(1);
            match self.stream.read(&mut buffer)? {
                0 => return Err(ErrorKind::UnexpectedEof.into()),
                count => self.unread.extend_from_slice(&buffer[..count]),
            }
        }
    }
}

/// An integration engine on a port of its own, which can be cut off and put back. It answers AA to everything it keeps.
pub struct Engine {
    /// Its port on 127.0.0.1, up or not.
    pub port: u16,
    arrivals: Arc<Mutex<Vec<Vec<u8>>>>,
    running: Option<Running>,
}

struct Running {
    cut: Arc<AtomicBool>,
    open: Arc<Mutex<Vec<TcpStream>>>,
    accepts: JoinHandle<()>,
}

impl Engine {
    /// One that nobody can reach yet.
    pub fn down() -> Self {
        Self { port: free_port(), arrivals: Arc::default(), running: None }
    }

    /// One that listens.
    #[track_caller]
    pub fn up() -> Self {
        let mut engine = Self::down();
        engine.restore();
        engine
    }

    /// Listens on its port, if it did not.
    #[track_caller]
    pub fn restore(&mut self) {
        if self.running.is_some() {
            return;
        }
        // A connection of the last time may still hold the port for a moment.
        let bind = || TcpListener::bind((Ipv4Addr::LOCALHOST, self.port)).ok();
        let listener = eventually_some("the engine can listen on its port", bind);
        listener.set_nonblocking(true).unwrap();
        let (cut, open) = (Arc::<AtomicBool>::default(), Arc::<Mutex<Vec<TcpStream>>>::default());
        let (stop, streams, arrivals) = (Arc::clone(&cut), Arc::clone(&open), Arc::clone(&self.arrivals));
        let accepts = std::thread::spawn(move || accept(&listener, &stop, &streams, &arrivals));
        self.running = Some(Running { cut, open, accepts });
    }

    /// Drops all connections and refuses new ones, if it did not.
    pub fn cut(&mut self) {
        let Some(running) = self.running.take() else { return };
        running.cut.store(true, Ordering::SeqCst);
        running.accepts.join().unwrap();
        for stream in running.open.lock().unwrap().drain(..) {
            // The peer may have ended it first.
            stream.shutdown(Shutdown::Both).ok();
        }
    }

    /// How many bodies have come, second copies among them.
    pub fn count(&self) -> usize {
        self.arrivals.lock().unwrap().len()
    }

    /// All bodies in the order in which they came, second copies among them.
    pub fn arrivals(&self) -> Vec<Vec<u8>> {
        self.arrivals.lock().unwrap().clone()
    }

    /// Whether this body has come, byte for byte.
    pub fn has(&self, body: &[u8]) -> bool {
        self.arrivals.lock().unwrap().iter().any(|arrived| arrived == body)
    }

    /// MSH-10 of all bodies, in the order of their first arrival, and how many came more than once.
    pub fn first_arrivals(&self) -> (Vec<String>, usize) {
        let mut seen = BTreeMap::new();
        let mut order = Vec::new();
        let arrivals = self.arrivals.lock().unwrap();
        for id in arrivals.iter().map(|body| field(body, "MSH", 10)) {
            if seen.insert(id.clone(), ()).is_none() {
                order.push(id);
            }
        }
        let copies = arrivals.len() - order.len();
        (order, copies)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.cut();
    }
}

fn accept(
    listener: &TcpListener,
    cut: &Arc<AtomicBool>,
    open: &Mutex<Vec<TcpStream>>,
    arrivals: &Arc<Mutex<Vec<Vec<u8>>>>,
) {
    while !cut.load(Ordering::SeqCst) {
        let Ok((stream, _)) = listener.accept() else {
            std::thread::sleep(LOOK_EVERY);
            continue;
        };
        stream.set_nonblocking(false).unwrap();
        open.lock().unwrap().push(stream.try_clone().unwrap());
        let (cut, arrivals) = (Arc::clone(cut), Arc::clone(arrivals));
        // Ends with its connection.
        std::thread::spawn(move || drop(converse(stream, &cut, &arrivals)));
    }
}

/// Keeps, then answers. An engine that was cut off keeps nothing more.
fn converse(stream: TcpStream, cut: &AtomicBool, arrivals: &Mutex<Vec<Vec<u8>>>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut frames = Frames { stream: stream.try_clone()?, unread: Vec::new() };
    let mut stream = stream;
    loop {
        let body = frames.next()?;
        if cut.load(Ordering::SeqCst) {
            return Ok(());
        }
        let answer = [&[VT], acknowledgement(&body).as_slice(), &END].concat();
        arrivals.lock().unwrap().push(body);
        stream.write_all(&answer)?;
    }
}

#[test]
fn an_engine_keeps_what_comes_in_order_and_can_be_cut_off_and_put_back() {
    let mut engine = Engine::up();
    let address = (Ipv4Addr::LOCALHOST, engine.port).into();
    let mut device = Device::connect(address);
    assert_eq!(device.send(&message("1")), "AA");
    assert_eq!(device.send(&long_message("2", 100_000)), "AA");
    engine.cut();
    assert!(device.exchange(&message("3")).is_err());
    assert!(Device::try_connect(address).is_err());
    engine.restore();
    let mut device = Device::connect(address);
    assert_eq!((device.send(&message("2")), device.send(&message("3"))), ("AA".into(), "AA".into()));
    assert_eq!(engine.first_arrivals(), (vec!["1".into(), "2".into(), "3".into()], 1));
    assert!(engine.has(&long_message("2", 100_000)) && !engine.has(&long_message("2", 100_001)));
}
