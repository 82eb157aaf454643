//! One time that a device is plugged in: its bytes, from a serial port or a connection, in one type.
//!
//! It notes the last bytes for the status page and ends every read when the port is gone. It never waits for the device to come back.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::WaitForCancellationFutureOwned;

use crate::status::SourceCounters;
use crate::system::serial::{self, SerialPort};
use crate::system::stream::Stream;

/// A device's line while it is plugged in.
pub struct Line {
    kind: Kind,
    counters: Arc<SourceCounters>,
    /// Set when a read or a write found that the line is gone.
    unplugged: Arc<AtomicBool>,
}

enum Kind {
    /// The port, and the word that its path leads elsewhere now.
    Serial(SerialPort, Pin<Box<WaitForCancellationFutureOwned>>),
    Tcp(Box<Stream>),
}

impl Line {
    pub(super) fn serial(
        port: SerialPort,
        counters: Arc<SourceCounters>,
        gone: WaitForCancellationFutureOwned,
        unplugged: Arc<AtomicBool>,
    ) -> Self {
        Self { kind: Kind::Serial(port, Box::pin(gone)), counters, unplugged }
    }

    pub(super) fn tcp(stream: Stream, counters: Arc<SourceCounters>, unplugged: Arc<AtomicBool>) -> Self {
        Self { kind: Kind::Tcp(Box::new(stream)), counters, unplugged }
    }

    /// What tells lines of one source apart, also over reconnects: the peer's address; empty for a serial port, of which a source has one.
    pub fn place(&self) -> String {
        match &self.kind {
            Kind::Serial(..) => String::new(),
            Kind::Tcp(stream) => stream.peer().ip().to_canonical().to_string(),
        }
    }

    /// Whether it is a serial port, where bytes can be damaged on the way; a connection delivers them whole or not at all.
    pub fn is_serial(&self) -> bool {
        matches!(self.kind, Kind::Serial(..))
    }

    fn noted<T>(&self, outcome: io::Result<T>) -> io::Result<T> {
        if outcome.is_err() {
            self.unplugged.store(true, Ordering::Relaxed);
        }
        outcome
    }
}

impl AsyncRead for Line {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = match &mut self.kind {
            Kind::Serial(port, gone) => match gone.as_mut().poll(cx) {
                Poll::Ready(()) => Poll::Ready(Err(serial::gone())),
                Poll::Pending => Pin::new(port).poll_read(cx, buf),
            },
            Kind::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
        };
        polled.map(|outcome| {
            self.counters.plug.came(buf.filled().get(before..).unwrap_or_default());
            self.noted(outcome)
        })
    }
}

impl AsyncWrite for Line {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = match &mut self.kind {
            Kind::Serial(port, _) => Pin::new(port).poll_write(cx, bytes),
            Kind::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
        };
        polled.map(|outcome| self.noted(outcome))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.kind {
            Kind::Serial(port, _) => Pin::new(port).poll_flush(cx),
            Kind::Tcp(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.kind {
            Kind::Serial(port, _) => Pin::new(port).poll_shutdown(cx),
            Kind::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
