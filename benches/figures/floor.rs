//! The floor: a receiver that does nothing but make a message durable and answer it. No encryption, no duplicate check, no
//! record of what was delivered: what the hardware allows, not a product.
//!
//! It runs as a process of its own (`figures floor MODE LISTEN FILE [FORWARD]`), so that its memory and its place on the CPU
//! are its own. `serial`: a write and an fdatasync for each message. `group`: messages that arrive during a sync share the next one.
//! `mqtt` and `astm-group` are the latter, `astm` the former, for what devices speak.

use std::fs::{File, OpenOptions};
use std::io::{BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex};

use crate::message::{acknowledgement, field, read_body};

/// How messages reach the disk.
pub enum Log {
    Serial(Mutex<File>),
    Group(Group),
}

/// Messages that wait for the next sync.
#[derive(Default)]
pub struct Group {
    state: Mutex<Waiting>,
    arrived: Condvar,
    synced: Condvar,
}

#[derive(Default)]
struct Waiting {
    bytes: Vec<u8>,
    /// Number of the group that is being filled.
    filling: u64,
    /// Groups below this are on disk.
    done: u64,
}

/// Serves until it is killed.
pub fn serve(arguments: &[String]) {
    let [mode, listen, file, forward @ ..] = arguments else { panic!("floor MODE LISTEN FILE [FORWARD]") };
    let listener = TcpListener::bind(listen).unwrap();
    let file = OpenOptions::new().create(true).append(true).open(file).unwrap();
    let log = match mode.as_str() {
        "serial" | "astm" => Arc::new(Log::Serial(Mutex::new(file))),
        "group" | "mqtt" | "astm-group" => grouped(file),
        _ => panic!("the mode is serial, group, mqtt, astm or astm-group"),
    };
    let forward = forward.first().map(|address| forwarder(address.parse().unwrap()));
    for stream in listener.incoming().flatten() {
        let (log, forward) = (Arc::clone(&log), forward.clone());
        let mode = mode.clone();
        std::thread::spawn(move || match mode.as_str() {
            "mqtt" => crate::mqtt_floor::converse(stream, &log),
            "astm" | "astm-group" => crate::astm_floor::converse(stream, &log),
            _ => converse(stream, &log, forward.as_ref()),
        });
    }
}

fn grouped(file: File) -> Arc<Log> {
    let log = Arc::new(Log::Group(Group::default()));
    let writer = Arc::clone(&log);
    std::thread::spawn(move || {
        if let Log::Group(group) = &*writer {
            group.write(file);
        }
    });
    log
}

impl Log {
    /// Returns when the bytes are on disk.
    pub fn commit(&self, frame: &[u8]) {
        match self {
            Self::Serial(file) => {
                let mut file = file.lock().unwrap();
                file.write_all(frame).unwrap();
                file.sync_data().unwrap();
            }
            Self::Group(group) => group.commit(frame),
        }
    }
}

impl Group {
    fn commit(&self, frame: &[u8]) {
        let mut state = self.state.lock().unwrap();
        state.bytes.extend_from_slice(frame);
        let group = state.filling;
        self.arrived.notify_one();
        while state.done <= group {
            state = self.synced.wait(state).unwrap();
        }
    }

    fn write(&self, mut file: File) {
        let mut taken = Vec::new();
        loop {
            let mut state = self.state.lock().unwrap();
            while state.bytes.is_empty() {
                state = self.arrived.wait(state).unwrap();
            }
            std::mem::swap(&mut taken, &mut state.bytes);
            state.filling += 1;
            drop(state);
            file.write_all(&taken).unwrap();
            file.sync_data().unwrap();
            taken.clear();
            let mut state = self.state.lock().unwrap();
            state.done = state.filling;
            drop(state);
            self.synced.notify_all();
        }
    }
}

fn converse(stream: TcpStream, log: &Log, forward: Option<&Sender<Vec<u8>>>) {
    stream.set_nodelay(true).unwrap();
    let (mut writer, mut reader) = (stream.try_clone().unwrap(), BufReader::new(stream));
    let mut body = Vec::new();
    while matches!(read_body(&mut reader, &mut body), Ok(true)) {
        let frame = [&[0x0b], body.as_slice(), &[0x1c, 0x0d]].concat();
        log.commit(&frame);
        let id = field(&body, b"MSH", 10).unwrap_or_default();
        if writer.write_all(&acknowledgement(id)).is_err() {
            return;
        }
        if let Some(forward) = forward {
            forward.send(frame).unwrap();
        }
    }
}

/// One connection upstream that sends a message and waits for its answer, in order.
fn forwarder(address: SocketAddr) -> Sender<Vec<u8>> {
    let (sender, receiver): (Sender<Vec<u8>>, Receiver<Vec<u8>>) = channel();
    std::thread::spawn(move || {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        let (mut writer, mut reader) = (stream.try_clone().unwrap(), BufReader::new(stream));
        let mut answer = Vec::new();
        for frame in receiver {
            writer.write_all(&frame).unwrap();
            read_body(&mut reader, &mut answer).unwrap();
        }
    });
    sender
}
