//! The floor under an analyser's link: append each frame, sync, answer. It checks nothing, joins nothing and forwards nothing.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;

use crate::floor::Log;

const ENQ: u8 = 5;
const EOT: u8 = 4;
const ACK: u8 = 6;

/// Serves one analyser until it ends.
pub fn converse(stream: TcpStream, log: &Log) {
    stream.set_nodelay(true).unwrap();
    let (mut writer, mut reader) = (stream.try_clone().unwrap(), BufReader::new(stream));
    let mut frame = Vec::new();
    while let Some(first) = reader.fill_buf().ok().and_then(|bytes| bytes.first().copied()) {
        match first {
            ENQ | EOT => reader.consume(1),
            _ => {
                frame.clear();
                reader.read_until(b'\n', &mut frame).unwrap();
                log.commit(&frame);
            }
        }
        if first != EOT && writer.write_all(&[ACK]).is_err() {
            return;
        }
    }
}
