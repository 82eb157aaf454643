//! The demo's simulated sensors: refrigerators for blood and drugs that publish their temperature by MQTT 3.1.1, QoS 1.
//!
//! Each has a connection of its own and one reading under way; a reading that is not acknowledged is sent again on a new connection. What
//! they were told is safe goes into the [`Ledger`]. Packets are written by hand here (OASIS MQTT 3.1.1, sections 3.1, 3.3, 3.4): no code is shared
//! with the gateway's endpoint.

use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::ledger::{Ledger, fingerprint};
use crate::values::HostPort;

/// Between two readings of one sensor.
const PERIOD: Duration = Duration::from_secs(1);
/// How long a sensor waits for an answer, or for a connection.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// Before a reading is sent again.
const AGAIN_AFTER: Duration = Duration::from_millis(500);
/// All sensors publish below this.
pub const TOPICS: &str = "demo/fridges/#";

/// Sensors that are publishing.
pub struct Sensors {
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Sensors {
    /// Sets `count` sensors going.
    pub fn start(count: usize, gateway: &HostPort, ledger: &Arc<Ledger>) -> Self {
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        for number in 1..=count {
            let (gateway, ledger, stop) = (gateway.to_string(), Arc::clone(ledger), stop.clone());
            tasks.spawn(async move { sensor(number, &gateway, &ledger, &stop).await });
        }
        Self { tasks, stop }
    }

    /// Lets each have the answer that it is waiting for, and stops them.
    pub async fn stop(self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// The client id of a sensor.
pub fn id(number: usize) -> String {
    format!("fridge-{number}")
}

async fn sensor(number: usize, gateway: &str, ledger: &Ledger, stop: &CancellationToken) {
    let (id, topic) = (id(number), format!("demo/fridges/{number}"));
    let mut connection = None;
    let mut period = interval(PERIOD);
    period.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for reading in 1_u64.. {
        if stop.run_until_cancelled(period.tick()).await.is_none() {
            return;
        }
        let tenths = 38 + (reading * 7 + u64::try_from(number).unwrap_or(0) * 3) % 9;
        let payload = format!(
            "{{\"sensor\":\"{id}\",\"reading\":{reading},\"celsius\":{}.{},\"at\":\"{}\"}}",
            tenths / 10,
            tenths % 10,
            jiff::Timestamp::now()
        );
        let fingerprint = fingerprint(payload.as_bytes());
        ledger.sending(fingerprint, &format!("{id}/{reading}"));
        // A packet's number is never 0.
        let number = u16::try_from(reading % u64::from(u16::MAX)).unwrap_or(0) + 1;
        let publish = publish(&topic, number, payload.as_bytes());
        while deliver(&mut connection, gateway, &id, &publish, number).await.is_err() {
            connection = None;
            if stop.run_until_cancelled(sleep(AGAIN_AFTER)).await.is_none() {
                return;
            }
        }
        ledger.acknowledged(&fingerprint);
    }
}

/// Publishes and waits for the PUBACK of this very packet.
async fn deliver(
    connection: &mut Option<TcpStream>,
    gateway: &str,
    id: &str,
    publish: &[u8],
    packet: u16,
) -> io::Result<()> {
    let stream = match connection {
        Some(stream) => stream,
        None => connection.insert(timeout(ANSWER_MAX, connect(gateway, id)).await??),
    };
    stream.write_all(publish).await?;
    let [high, low] = packet.to_be_bytes();
    expect(stream, [0x40, 2, high, low]).await
}

async fn connect(gateway: &str, id: &str) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(gateway).await?;
    // MQTT 3.1.1, clean session, no keep-alive.
    let mut body = text("MQTT");
    body.extend_from_slice(&[4, 0x02, 0, 0]);
    body.extend(text(id));
    stream.write_all(&packet(0x10, &body)).await?;
    expect(&mut stream, [0x20, 2, 0, 0]).await?;
    Ok(stream)
}

async fn expect(stream: &mut TcpStream, answer: [u8; 4]) -> io::Result<()> {
    let mut came = [0; 4];
    timeout(ANSWER_MAX, stream.read_exact(&mut came)).await??;
    if came == answer { Ok(()) } else { Err(ErrorKind::InvalidData.into()) }
}

/// A PUBLISH of QoS 1.
fn publish(topic: &str, number: u16, payload: &[u8]) -> Vec<u8> {
    let mut body = text(topic);
    body.extend_from_slice(&number.to_be_bytes());
    body.extend_from_slice(payload);
    packet(0x32, &body)
}

/// A text with its length in two bytes.
fn text(text: &str) -> Vec<u8> {
    let length = u16::try_from(text.len()).unwrap_or(0);
    [&length.to_be_bytes(), text.as_bytes()].concat()
}

/// A packet: its first byte, its length in sevens of bits, its body.
fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let (mut packet, mut length) = (vec![first], body.len());
    loop {
        let seven = u8::try_from(length % 128).unwrap_or(0);
        length /= 128;
        packet.push(if length > 0 { seven | 0x80 } else { seven });
        if length == 0 {
            break;
        }
    }
    packet.extend_from_slice(body);
    packet
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_those_of_the_standard() {
        assert_eq!(packet(0x10, &[]), [0x10, 0]);
        assert_eq!(packet(0x30, &[7; 127])[..2], [0x30, 127]);
        assert_eq!(packet(0x30, &[7; 321])[..3], [0x30, 0xc1, 0x02], "321 bytes, the example of section 2.2.3");
        assert_eq!(publish("a/b", 10, b"x"), [0x32, 8, 0, 3, b'a', b'/', b'b', 0, 10, b'x']);
    }
}
