//! One question and its answer on a line: what came before is thrown away, what comes must fit, and nothing waits for ever.
//!
//! A line carries one question at a time. An answer that comes after its time belongs to nobody: it is drained, and the rules of
//! [`crate::wire::modbus`] keep it from being taken for the next one.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::{Instant, timeout, timeout_at};

use crate::wire::modbus::{
    Answer, Exception, Found, FrameError, Read, SEARCH_BYTES_MAX, TCP_BYTES_MAX, find_rtu, find_tcp,
};

/// Bits of a character on a serial line: start, eight of data, parity or a second stop bit, stop (V1.02, section 2.5.1).
const CHARACTER_BITS: u64 = 11;
/// From this speed on the silence between frames is fixed (V1.02, section 2.5.1.1).
const FIXED_SILENCE_BAUD: u32 = 19_200;
/// The fixed silence.
const FIXED_SILENCE: Duration = Duration::from_micros(1750);
/// The silence where the speed of the line is not known: RTU frames that a serial server carries over TCP.
pub const UNKNOWN_SILENCE: Duration = Duration::from_millis(10);
/// Longest that a line may go on talking before a question, or after one that was not answered.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(1);
/// Bytes that a line may bring meanwhile.
const DRAIN_BYTES_MAX: u64 = 64 << 10;
/// Late answers to earlier questions that may come before the one that is awaited.
const FOREIGN_MAX: usize = 16;

/// How frames are told apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Framing {
    /// Modbus TCP.
    Tcp,
    /// RTU, with the silence that a frame needs before it.
    Rtu(Duration),
}

/// The silence between two RTU frames at this speed: three and a half characters (V1.02, section 2.5.1.1).
pub fn silence(baud: u32) -> Duration {
    if baud > FIXED_SILENCE_BAUD {
        return FIXED_SILENCE;
    }
    Duration::from_micros(CHARACTER_BITS * 7 * 1_000_000 / 2 / u64::from(baud.max(1)))
}

/// How a unit answered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reply {
    /// With the cells.
    Data(Vec<u8>),
    /// That it can't.
    Exception(Exception),
    /// Not within its time.
    Silence,
}

/// The line is of no use any more: it must be made anew.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The other end closed it, or it was unplugged.
    #[error("the other end closed the connection")]
    Closed,
    /// It broke.
    #[error("the line broke: {0}")]
    Broken(io::Error),
    /// It took no bytes for as long as an answer may take.
    #[error("the line takes no bytes")]
    Stuck,
    /// What comes is no answer.
    #[error("{0}")]
    Frame(#[from] FrameError),
}

/// A line with its framing.
pub struct Link<S> {
    line: S,
    framing: Framing,
    answer_time: Duration,
    transaction: u16,
    /// What came since the question; never longer than what an answer is looked for in.
    buffer: Vec<u8>,
    discarded: u64,
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Link<S> {
    /// A line on which an answer may take `answer_time`. `transaction` is the number of the first question over TCP: best one that
    /// no earlier connection used.
    pub fn new(line: S, framing: Framing, answer_time: Duration, transaction: u16) -> Self {
        let buffer = Vec::with_capacity(SEARCH_BYTES_MAX);
        Self { line, framing, answer_time, transaction, buffer, discarded: 0 }
    }

    /// Bytes that were no answer, since the last time this was asked.
    pub fn discarded(&mut self) -> u64 {
        std::mem::take(&mut self.discarded)
    }

    /// Asks `unit`.
    ///
    /// # Errors
    /// [`LinkError`]: drop the line.
    pub async fn ask(&mut self, unit: u8, read: &Read) -> Result<Reply, LinkError> {
        self.clear().await?;
        self.transaction = self.transaction.wrapping_add(1);
        match self.framing {
            Framing::Tcp => self.write(&read.tcp(self.transaction, unit)).await?,
            Framing::Rtu(_) => self.write(&read.rtu(unit)).await?,
        }
        let end = Instant::now() + self.answer_time;
        let mut foreign = 0;
        loop {
            if let Some(reply) = self.found(unit, read, &mut foreign)? {
                return Ok(reply);
            }
            match timeout_at(end, self.read()).await {
                Ok(read) => read?,
                Err(_) => {
                    self.late().await?;
                    return Ok(Reply::Silence);
                }
            }
        }
    }

    /// What the bytes that came so far hold.
    fn found(&mut self, unit: u8, read: &Read, foreign: &mut usize) -> Result<Option<Reply>, LinkError> {
        loop {
            let found = match self.framing {
                Framing::Tcp => find_tcp(&self.buffer, self.transaction, unit, read)?,
                Framing::Rtu(_) => find_rtu(&self.buffer, unit, read)?,
            };
            let (reply, junk, end) = match found {
                Found::More => return Ok(None),
                Found::Foreign(bytes) => {
                    *foreign += 1;
                    if *foreign > FOREIGN_MAX {
                        return Err(FrameError::Noise.into());
                    }
                    self.buffer.drain(..bytes.min(self.buffer.len()));
                    self.discarded += bytes as u64;
                    continue;
                }
                Found::Answer { answer: Answer::Data(data), junk, end } => (Reply::Data(data.to_vec()), junk, end),
                Found::Answer { answer: Answer::Exception(why), junk, end } => (Reply::Exception(why), junk, end),
            };
            self.discarded += (self.buffer.len() - end + junk) as u64;
            self.buffer.clear();
            return Ok(Some(reply));
        }
    }

    /// Throws away what has come unasked; on a serial line it waits for the silence that a frame needs before it.
    async fn clear(&mut self) -> Result<(), LinkError> {
        match self.framing {
            Framing::Tcp => while self.take_ready().await? {},
            Framing::Rtu(silence) => self.drain(silence).await?,
        }
        self.forget();
        Ok(())
    }

    /// No answer came: on a line that units share, one that comes late would collide with the next unit's. It gets as much time again.
    async fn late(&mut self) -> Result<(), LinkError> {
        if let Framing::Rtu(silence) = self.framing {
            let began = self.buffer.len();
            if timeout(self.answer_time, self.read()).await.is_ok_and(|read| read.is_ok()) || began > 0 {
                self.drain(silence).await?;
            }
        }
        self.forget();
        Ok(())
    }

    /// Reads until nothing came for `silence`.
    async fn drain(&mut self, silence: Duration) -> Result<(), LinkError> {
        let (end, before) = (Instant::now() + DRAIN_TIME_MAX, self.discarded);
        while let Ok(read) = timeout(silence, self.read()).await {
            read?;
            self.forget();
            if Instant::now() > end || self.discarded - before > DRAIN_BYTES_MAX {
                return Err(FrameError::Noise.into());
            }
        }
        Ok(())
    }

    fn forget(&mut self) {
        self.discarded += self.buffer.len() as u64;
        self.buffer.clear();
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<(), LinkError> {
        let written = async {
            self.line.write_all(bytes).await?;
            self.line.flush().await
        };
        match timeout(self.answer_time, written).await {
            Ok(written) => written.map_err(lost),
            Err(_) => Err(LinkError::Stuck),
        }
    }

    /// Adds what comes next to the buffer, which always has room: who reads has looked at it.
    async fn read(&mut self) -> Result<(), LinkError> {
        let mut bytes = [0; TCP_BYTES_MAX];
        let room = SEARCH_BYTES_MAX.saturating_sub(self.buffer.len()).clamp(1, TCP_BYTES_MAX);
        let count = self.line.read(bytes.get_mut(..room).unwrap_or_default()).await.map_err(lost)?;
        if count == 0 {
            return Err(LinkError::Closed);
        }
        self.buffer.extend_from_slice(bytes.get(..count).unwrap_or_default());
        Ok(())
    }

    /// Takes and forgets what is there at this moment; whether there was something.
    async fn take_ready(&mut self) -> Result<bool, LinkError> {
        let mut bytes = [0; TCP_BYTES_MAX];
        let mut into = ReadBuf::new(&mut bytes);
        let ready = poll_fn(|context| match Pin::new(&mut self.line).poll_read(context, &mut into) {
            Poll::Ready(read) => Poll::Ready(Some(read)),
            Poll::Pending => Poll::Ready(None),
        });
        match ready.await {
            None => Ok(false),
            Some(Err(error)) => Err(lost(error)),
            Some(Ok(())) if into.filled().is_empty() => Err(LinkError::Closed),
            Some(Ok(())) => {
                self.discarded += into.filled().len() as u64;
                Ok(true)
            }
        }
    }
}

fn lost(error: io::Error) -> LinkError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => LinkError::Closed,
        _ => LinkError::Broken(error),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{DuplexStream, duplex};

    use super::*;
    use crate::wire::modbus::{Table, crc};

    const TIME: Duration = Duration::from_millis(100);

    fn read(address: u16) -> Read {
        Read::new(Table::Holding, address, 1).unwrap()
    }

    fn rtu(unit: u8, value: u8) -> Vec<u8> {
        let mut frame = vec![unit, 3, 2, 0, value];
        frame.extend(crc(&frame).to_le_bytes());
        frame
    }

    fn pair(framing: Framing) -> (Link<DuplexStream>, DuplexStream) {
        let (ours, theirs) = duplex(4096);
        (Link::new(ours, framing, TIME, 7), theirs)
    }

    fn serial() -> (Link<DuplexStream>, DuplexStream) {
        pair(Framing::Rtu(silence(9600)))
    }

    async fn question(device: &mut DuplexStream, bytes: usize) -> Vec<u8> {
        let mut asked = vec![0; bytes];
        device.read_exact(&mut asked).await.unwrap();
        asked
    }

    #[test]
    fn the_silence_is_three_and_a_half_characters() {
        assert_eq!(silence(9600).as_micros(), 4010);
        assert_eq!(silence(19_200).as_micros(), 2005);
        assert_eq!(silence(115_200), FIXED_SILENCE);
        assert!(silence(0) > Duration::from_secs(1), "a speed of nothing is no division by zero");
    }

    #[tokio::test(start_paused = true)]
    async fn what_came_before_the_question_is_never_its_answer() {
        let (mut link, mut device) = serial();
        device.write_all(&rtu(1, 66)).await.unwrap();
        let device = async move {
            question(&mut device, 8).await;
            device.write_all(&rtu(1, 7)).await.unwrap();
            device
        };
        let asked = read(0);
        let (reply, _device) = tokio::join!(link.ask(1, &asked), device);
        assert_eq!(reply.unwrap(), Reply::Data(vec![0, 7]));
        assert_eq!(link.discarded(), 7);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_after_its_time_is_drained_and_the_next_unit_gets_its_own() {
        let (mut link, mut device) = serial();
        let device = async move {
            question(&mut device, 8).await;
            tokio::time::sleep(TIME + TIME / 2).await;
            device.write_all(&rtu(1, 66)).await.unwrap();
            assert_eq!(question(&mut device, 8).await[0], 2);
            device.write_all(&rtu(2, 8)).await.unwrap();
            device
        };
        let ours = async {
            let first = link.ask(1, &read(0)).await.unwrap();
            (first, link.ask(2, &read(0)).await.unwrap())
        };
        let (replies, _device) = tokio::join!(ours, device);
        assert_eq!(replies, (Reply::Silence, Reply::Data(vec![0, 8])));
    }

    #[tokio::test(start_paused = true)]
    async fn over_tcp_a_late_answer_is_skipped_by_its_transaction() {
        let (mut link, mut device) = pair(Framing::Tcp);
        let device = async move {
            let asked = question(&mut device, 12).await;
            let mut answer = vec![asked[0], asked[1] - 1, 0, 0, 0, 5, 1, 3, 2, 0, 66];
            answer.extend([asked[0], asked[1], 0, 0, 0, 5, 1, 3, 2, 0, 9]);
            device.write_all(&answer).await.unwrap();
            device
        };
        let asked = read(0);
        let (reply, _device) = tokio::join!(link.ask(1, &asked), device);
        assert_eq!((reply.unwrap(), link.discarded()), (Reply::Data(vec![0, 9]), 11));
    }

    #[tokio::test(start_paused = true)]
    async fn garbage_and_endless_noise_end_the_line_and_a_closed_one_is_told() {
        let (mut link, mut device) = pair(Framing::Tcp);
        let device = async move {
            question(&mut device, 12).await;
            device.write_all(b"HTTP/1.1 400 Bad Request\r\n").await.unwrap();
            device
        };
        let asked = read(0);
        let (reply, _device) = tokio::join!(link.ask(1, &asked), device);
        assert!(matches!(reply, Err(LinkError::Frame(FrameError::NotModbus))), "{reply:?}");
        let (mut link, mut device) = serial();
        let noise = tokio::spawn(async move { while device.write_all(&[0x55; 64]).await.is_ok() {} });
        let reply = link.ask(1, &read(0)).await;
        assert!(matches!(reply, Err(LinkError::Frame(FrameError::Noise))), "{reply:?}");
        noise.abort();
        let (mut link, device) = serial();
        drop(device);
        assert!(matches!(link.ask(1, &read(0)).await, Err(LinkError::Closed)));
    }
}
