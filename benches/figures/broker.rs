//! mosquitto as the upstream, and a subscriber of our own that counts what it delivers (MQTT 3.1.1, QoS 1, just enough of it).

use std::fs;
use std::io::{BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::sink::Sink;

const STARTS_WITHIN: Duration = Duration::from_secs(10);

/// A broker that runs; ends with the value.
pub struct Broker(Child);

impl Broker {
    /// Starts mosquitto on `address` without limits of its own on what is in flight.
    pub fn start(folder: &Path, address: SocketAddr) -> Self {
        Self::start_with(folder, address, "")
    }

    /// The same with its file in `folder`.
    pub fn start_persistent(folder: &Path, address: SocketAddr) -> Self {
        let options = format!("persistence true\npersistence_location {}/\n", folder.display());
        Self::start_with(folder, address, &options)
    }

    fn start_with(folder: &Path, address: SocketAddr, options: &str) -> Self {
        let config = folder.join("mosquitto.conf");
        let text = format!(
            "user root\nlistener {} 127.0.0.1\nallow_anonymous true\nmax_inflight_messages 0\nmax_queued_messages 0\nset_tcp_nodelay true\nlog_dest none\n{options}",
            address.port()
        );
        fs::write(&config, text).unwrap();
        let path = format!("{}:/usr/sbin", std::env::var("PATH").unwrap_or_default());
        let mut command = Command::new("mosquitto");
        command.env("PATH", path).arg("-c").arg(&config).stdin(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().expect("mosquitto is installed by tests/setup");
        let began = Instant::now();
        while TcpStream::connect(address).is_err() {
            assert!(child.try_wait().unwrap().is_none() && began.elapsed() < STARTS_WITHIN, "mosquitto did not start");
            std::thread::sleep(Duration::from_millis(2));
        }
        Self(child)
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        // It may have ended already.
        let _gone = self.0.kill();
        let _status = self.0.wait();
    }
}

/// Subscribes to everything and notes each message in `sink`, until the connection ends.
pub fn subscribe(address: SocketAddr, sink: Sink) {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    let (mut writer, mut reader) = (stream.try_clone().unwrap(), BufReader::with_capacity(1 << 16, stream));
    // CONNECT: protocol level 4, clean session, keep-alive off, client id "sub".
    writer.write_all(b"\x10\x0f\x00\x04MQTT\x04\x02\x00\x00\x00\x03sub").unwrap();
    // SUBSCRIBE with packet id 1: "#" at QoS 1.
    writer.write_all(b"\x82\x06\x00\x01\x00\x01#\x01").unwrap();
    let (mut subscribed, ready) = (false, std::sync::mpsc::channel());
    std::thread::spawn(move || {
        while let Some((kind, packet)) = read_packet(&mut reader) {
            if kind >> 4 == 9 && !subscribed {
                subscribed = true;
                ready.0.send(()).unwrap();
            }
            // PUBLISH whose topic is a message's: the box's own status is published too.
            if kind >> 4 == 3 && taken(kind, &packet, &sink, &mut writer).is_none() {
                return;
            }
        }
    });
    ready.1.recv_timeout(STARTS_WITHIN).expect("the broker answers SUBSCRIBE");
}

fn taken(kind: u8, packet: &[u8], sink: &Sink, writer: &mut impl Write) -> Option<()> {
    let topic = usize::from(u16::from_be_bytes(*packet.first_chunk()?));
    let rest = packet.get(2 + topic..)?;
    let (payload, id) = if kind & 0x06 == 0 { (rest, None) } else { (rest.get(2..)?, rest.first_chunk::<2>()) };
    if payload.starts_with(b"MSH|") {
        sink.note(payload);
    }
    match id {
        Some([high, low]) => writer.write_all(&[0x40, 2, *high, *low]).ok(),
        None => Some(()),
    }
}

fn read_packet(reader: &mut impl Read) -> Option<(u8, Vec<u8>)> {
    let mut byte = [0; 1];
    reader.read_exact(&mut byte).ok()?;
    let kind = byte[0];
    let (mut length, mut shift) = (0usize, 0);
    loop {
        reader.read_exact(&mut byte).ok()?;
        length |= usize::from(byte[0] & 0x7f) << shift;
        shift += 7;
        if byte[0] & 0x80 == 0 {
            break;
        }
    }
    let mut packet = vec![0; length];
    reader.read_exact(&mut packet).ok()?;
    Some((kind, packet))
}
