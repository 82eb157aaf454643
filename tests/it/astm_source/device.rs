//! An analyser that does exactly what a test says, frame by frame.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};

use wardgate::wire::astm::{ENQ, encode};

use crate::support::wait::PATIENCE;

/// A connection of one.
pub struct Analyser {
    stream: TcpStream,
}

impl Analyser {
    /// Dials.
    pub fn dial(at: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(at)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream })
    }

    /// Sends bytes.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// The next byte that comes back.
    pub fn answer(&mut self) -> io::Result<u8> {
        let mut byte = [0];
        self.stream.read_exact(&mut byte)?;
        Ok(byte[0])
    }

    /// Asks for the line.
    pub fn enquire(&mut self) -> io::Result<u8> {
        self.send(&[ENQ])?;
        self.answer()
    }

    /// Sends a frame with one record and waits for its answer.
    pub fn frame(&mut self, number: u8, text: &str) -> io::Result<u8> {
        self.send(&frame(number, text))?;
        self.answer()
    }
}

/// A frame that ends a record.
pub fn frame(number: u8, text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    encode(number, text.as_bytes(), true, &mut out);
    out
}
