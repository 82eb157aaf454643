//! An MQTT client that does what a test says, byte for byte: right, wrong or hostile. It shares no code with the service.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// An answer that takes longer fails the test.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// What a CONNECT says.
#[derive(Clone)]
pub struct Hello<'a> {
    /// 4 is MQTT 3.1.1, 5 is MQTT 5.
    pub level: u8,
    /// Client id.
    pub id: &'a str,
    /// Seconds.
    pub keep_alive: u16,
    /// Clean session or clean start.
    pub clean: bool,
    /// User and password.
    pub login: Option<(&'a str, &'a str)>,
    /// Topic and payload of a will with QoS 1.
    pub will: Option<(&'a str, &'a str)>,
}

/// A CONNECT of this level and client id, without keep-alive.
pub fn hello(level: u8, id: &str) -> Hello<'_> {
    Hello { level, id, keep_alive: 0, clean: true, login: None, will: None }
}

impl Hello<'_> {
    /// As bytes.
    pub fn bytes(&self) -> Vec<u8> {
        let properties: &[u8] = if self.level == 5 { &[0] } else { &[] };
        let mut flags = if self.clean { 0x02 } else { 0 };
        flags |= if self.login.is_some() { 0xC0 } else { 0 };
        flags |= if self.will.is_some() { 0x0C } else { 0 };
        let mut body = text("MQTT");
        body.extend([self.level, flags]);
        body.extend(self.keep_alive.to_be_bytes());
        body.extend(properties);
        body.extend(text(self.id));
        if let Some((topic, payload)) = self.will {
            body.extend(properties);
            body.extend(text(topic));
            body.extend(text(payload));
        }
        if let Some((user, password)) = self.login {
            body.extend(text(user));
            body.extend(text(password));
        }
        packet(0x10, &body)
    }
}

/// A text with its length.
pub fn text(text: &str) -> Vec<u8> {
    let length = u16::try_from(text.len()).unwrap();
    [&length.to_be_bytes(), text.as_bytes()].concat()
}

/// A packet with this first byte.
pub fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let (mut bytes, mut left) = (vec![first], body.len());
    loop {
        let byte = u8::try_from(left & 0x7F).unwrap();
        left >>= 7;
        bytes.push(if left > 0 { byte | 0x80 } else { byte });
        if left == 0 {
            break;
        }
    }
    bytes.extend(body);
    bytes
}

/// A PUBLISH; `flags` are the lower bits of its first byte (0x02 is QoS 1, 0x04 QoS 2, 0x08 DUP, 0x01 retain), `id` is left out with QoS 0.
pub fn publish(level: u8, flags: u8, id: u16, topic: &str, payload: &[u8]) -> Vec<u8> {
    let mut body = text(topic);
    if flags & 0x06 != 0 {
        body.extend(id.to_be_bytes());
    }
    body.extend(if level == 5 { &[0][..] } else { &[] });
    body.extend(payload);
    packet(0x30 | flags, &body)
}

/// A connected client.
pub struct Sensor {
    stream: TcpStream,
    /// 4 or 5.
    pub level: u8,
}

impl Sensor {
    /// Connects the socket and says nothing.
    pub fn silent(at: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(at)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ANSWER_WITHIN))?;
        Ok(Self { stream, level: 4 })
    }

    /// Connects and says this; returns what was answered as well.
    pub fn greet(at: SocketAddr, hello: &Hello<'_>) -> io::Result<(Self, Vec<u8>)> {
        let mut sensor = Self::silent(at)?;
        sensor.level = hello.level;
        sensor.send(&hello.bytes())?;
        let answer = sensor.read()?;
        Ok((sensor, answer))
    }

    /// Connects and is let in.
    #[track_caller]
    pub fn connect(at: SocketAddr, hello: &Hello<'_>) -> Self {
        let (sensor, answer) = Self::greet(at, hello).unwrap();
        assert_eq!((answer[0], answer[answer.len().min(4) - 1]), (0x20, 0), "not let in: {answer:?}");
        sensor
    }

    /// Sends bytes.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Publishes with QoS 1 and waits for the answer.
    #[track_caller]
    pub fn tell(&mut self, id: u16, topic: &str, payload: &[u8]) {
        self.send(&publish(self.level, 0x02, id, topic, payload)).unwrap();
        let [high, low] = id.to_be_bytes();
        assert_eq!(self.read().unwrap(), [0x40, 2, high, low]);
    }

    /// Reads one packet, whole.
    pub fn read(&mut self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; 2];
        self.stream.read_exact(&mut bytes)?;
        // No answer of the service is longer than 127 bytes, but to a SUBSCRIBE of many filters.
        assert!(bytes[1] < 0x80, "{bytes:?}");
        let mut body = vec![0; usize::from(bytes[1])];
        self.stream.read_exact(&mut body)?;
        bytes.extend(body);
        Ok(bytes)
    }

    /// Whether the service has closed the connection, after these answers.
    #[track_caller]
    pub fn is_closed_after(&mut self, answers: &[u8]) {
        let mut rest = Vec::new();
        match self.stream.read_to_end(&mut rest) {
            Ok(_) => {}
            Err(error) => assert!(error.kind() == io::ErrorKind::ConnectionReset, "it is not closed: {error}"),
        }
        assert_eq!(rest, answers);
    }

    /// A second handle on the connection, to read and write at once.
    pub fn twin(&self) -> Self {
        Self { stream: self.stream.try_clone().unwrap(), level: self.level }
    }
}
