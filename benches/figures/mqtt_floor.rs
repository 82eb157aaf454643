//! The floor under an MQTT endpoint: read what has come, append its messages, one fdatasync for all that wait, acknowledge.
//!
//! No encryption, no checks, no record of what was delivered: what the hardware allows, not a product.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;

use crate::floor::Log;

/// Serves one client until it ends.
pub fn converse(stream: TcpStream, log: &Log) {
    stream.set_nodelay(true).unwrap();
    let (mut writer, mut reader) = (stream.try_clone().unwrap(), BufReader::with_capacity(1 << 16, stream));
    let (mut messages, mut answers) = (Vec::new(), Vec::new());
    while let Some((first, body)) = read_packet(&mut reader) {
        match first >> 4 {
            1 => answers.extend([0x20, 2, 0, 0]),
            3 => {
                let topic = usize::from(u16::from_be_bytes([body[0], body[1]]));
                answers.extend([0x40, 2, body[2 + topic], body[3 + topic]]);
                messages.extend_from_slice(&body);
            }
            _ => {}
        }
        // All that came with one read goes together.
        if reader.buffer().is_empty() {
            if !messages.is_empty() {
                log.commit(&messages);
                messages.clear();
            }
            if writer.write_all(&answers).is_err() {
                return;
            }
            answers.clear();
        }
    }
}

fn read_packet(reader: &mut impl BufRead) -> Option<(u8, Vec<u8>)> {
    let mut byte = [0; 1];
    reader.read_exact(&mut byte).ok()?;
    let first = byte[0];
    let (mut length, mut shift) = (0usize, 0);
    loop {
        reader.read_exact(&mut byte).ok()?;
        length |= usize::from(byte[0] & 0x7f) << shift;
        shift += 7;
        if byte[0] & 0x80 == 0 {
            break;
        }
    }
    let mut body = vec![0; length];
    Read::read_exact(reader, &mut body).ok()?;
    Some((first, body))
}
