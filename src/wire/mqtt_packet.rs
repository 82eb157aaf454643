//! What an MQTT client sends to a server, versions 3.1.1 and 5: its bytes as packets, without copying them.
//!
//! MQTT 3.1.1 and MQTT 5.0, OASIS Standards of 2014 and 2019. Only what a server that takes messages and gives none needs is here; the
//! clients of this house speak through [`super::mqtt`]. What it must never do: panic, or reserve memory because a peer announced a length.
//! A packet that came whole is read or is a [`Fault`]; one that is too long is a fault as soon as its header came.

use super::mqtt_topic;

/// Bytes of the longest fixed header (2.2 and 2.1).
pub const HEADER_BYTES_MAX: usize = 5;
/// User properties of one packet that are kept; the others are counted.
pub const USER_PROPERTIES_MAX: usize = 64;
/// Topic filters that one SUBSCRIBE or UNSUBSCRIBE may hold.
pub const FILTERS_MAX: usize = 1024;

/// The two versions of the protocol.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Version {
    /// Protocol level 4.
    V311,
    /// Protocol level 5.
    V5,
}

/// What a peer did that ends its connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Fault {
    /// Bytes that are no such packet.
    #[error("a malformed packet: {0}")]
    Malformed(&'static str),
    /// A packet at the wrong time, or one that contradicts itself.
    #[error("the protocol was broken: {0}")]
    Protocol(&'static str),
    /// More bytes than were agreed.
    #[error("a packet is longer than max-packet-size")]
    TooLarge,
    /// Neither 3.1.1 nor 5.
    #[error("a version of MQTT that is neither 3.1.1 nor 5 (level {0})")]
    Version(u8),
    /// An alias, though none was offered (MQTT 5.0, 3.3.2.3.4).
    #[error("a topic alias, though none was offered")]
    TopicAlias,
    /// MQTT 5: a QoS above the maximum that was told (3.2.2.3.4).
    #[error("QoS 2, though the maximum that was told is 1")]
    Qos,
}

impl Fault {
    /// The reason code of a DISCONNECT (MQTT 5.0, table 3-10).
    pub fn reason(self) -> u8 {
        match self {
            Self::Malformed(_) => 0x81,
            Self::Protocol(_) => 0x82,
            Self::Version(_) => 0x84,
            Self::TopicAlias => 0x94,
            Self::TooLarge => 0x95,
            Self::Qos => 0x9B,
        }
    }
}

/// A fixed header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// Kind and flags.
    pub first: u8,
    /// Bytes of the header itself.
    pub size: usize,
    /// Bytes that follow it.
    pub length: usize,
}

impl Header {
    /// Reads the header at the beginning of `bytes`; `None` when more is needed.
    ///
    /// # Errors
    /// [`Fault::Malformed`] when the length has a fifth byte (2.2.3); [`Fault::TooLarge`] when header and rest exceed `bytes_max`.
    pub fn read(bytes: &[u8], bytes_max: usize) -> Result<Option<Self>, Fault> {
        let Some((&first, rest)) = bytes.split_first() else { return Ok(None) };
        let mut fields = Fields(rest);
        let Some(length) = fields.variable()? else { return Ok(None) };
        let size = 1 + rest.len() - fields.0.len();
        let header = Self { first, size, length };
        if header.total() > bytes_max { Err(Fault::TooLarge) } else { Ok(Some(header)) }
    }

    /// Bytes of the whole packet.
    pub fn total(self) -> usize {
        self.size + self.length
    }
}

/// What a client sends after its CONNECT.
#[derive(PartialEq, Eq, Debug)]
pub enum Packet<'a> {
    /// A message.
    Publish(Publish<'a>),
    /// PUBREL, the third step of QoS 2, with its packet id.
    Release(u16),
    /// SUBSCRIBE: packet id and number of filters.
    Subscribe(u16, usize),
    /// UNSUBSCRIBE: packet id and number of filters.
    Unsubscribe(u16, usize),
    /// PINGREQ.
    Ping,
    /// DISCONNECT. Whether the will is to be published all the same (MQTT 5.0, reason code 0x04).
    Disconnect(bool),
}

/// A PUBLISH (3.3).
#[derive(PartialEq, Eq, Debug)]
pub struct Publish<'a> {
    /// 0, 1 or 2.
    pub qos: u8,
    /// The packet id; 0 with QoS 0 only.
    pub id: u16,
    /// It may have been sent before.
    pub dup: bool,
    /// A broker would keep it for later subscribers.
    pub retain: bool,
    /// Topic, properties and payload.
    pub message: Message<'a>,
}

/// Topic, properties and payload of a PUBLISH or a will.
#[derive(PartialEq, Eq, Debug, Default)]
pub struct Message<'a> {
    /// Well-formed: no wildcard, not empty.
    pub topic: &'a str,
    /// The application's bytes.
    pub payload: &'a [u8],
    /// MQTT 5: media type.
    pub content_type: Option<&'a str>,
    /// MQTT 5: the first [`USER_PROPERTIES_MAX`], in their order.
    pub user: Vec<(&'a str, &'a str)>,
    /// User properties beyond those.
    pub user_left_out: usize,
}

/// A CONNECT (3.1).
#[derive(PartialEq, Eq, Debug)]
pub struct Connect<'a> {
    /// The version.
    pub version: Version,
    /// Clean session, or clean start.
    pub clean: bool,
    /// Seconds; 0: none.
    pub keep_alive_s: u16,
    /// Empty: the server is to choose one.
    pub client_id: &'a str,
    /// The will, its QoS and whether it is to be retained.
    pub will: Option<(Message<'a>, u8, bool)>,
    /// User name.
    pub user: Option<&'a str>,
    /// Password.
    pub password: Option<&'a [u8]>,
    /// MQTT 5: seconds for which the client would like its session kept.
    pub session_expiry_s: u32,
    /// MQTT 5: the largest packet that the client takes.
    pub packet_bytes_max: usize,
    /// MQTT 5: it wants an authentication method of more than one step.
    pub extended_authentication: bool,
}

impl<'a> Connect<'a> {
    /// Reads the packet behind `header`, which must be the first of its connection.
    ///
    /// # Errors
    /// [`Fault`]; [`Fault::Version`] for a version that is not spoken here.
    pub fn read(header: Header, body: &'a [u8]) -> Result<Self, Fault> {
        if header.first != 0x10 {
            return Err(Fault::Protocol("the first packet is no CONNECT"));
        }
        let mut fields = Fields(body);
        let (name, level) = (fields.bytes()?, fields.byte()?);
        let version = match (name, level) {
            (b"MQTT", 4) => Version::V311,
            (b"MQTT", 5) => Version::V5,
            (b"MQTT" | b"MQIsdp", other) => return Err(Fault::Version(other)),
            _ => return Err(Fault::Malformed("not the name of MQTT")),
        };
        let (flags, keep_alive_s) = (fields.byte()?, fields.short()?);
        let mut connect = Self {
            version,
            clean: flags & 0x02 != 0,
            keep_alive_s,
            client_id: "",
            will: None,
            user: None,
            password: None,
            session_expiry_s: 0,
            packet_bytes_max: usize::MAX,
            extended_authentication: false,
        };
        connect.check_flags(flags)?;
        if version == Version::V5 {
            connect.read_properties(&mut fields)?;
        }
        connect.client_id = fields.text()?;
        if flags & 0x04 != 0 {
            connect.will = Some((will(&mut fields, version)?, flags >> 3 & 0x03, flags & 0x20 != 0));
        }
        connect.user = if flags & 0x80 != 0 { Some(fields.text()?) } else { None };
        connect.password = if flags & 0x40 != 0 { Some(fields.bytes()?) } else { None };
        fields.end()?;
        Ok(connect)
    }

    fn check_flags(&self, flags: u8) -> Result<(), Fault> {
        let will_qos = flags >> 3 & 0x03;
        let without_will = flags & 0x04 == 0 && flags & 0x38 != 0;
        if flags & 0x01 != 0 || without_will || will_qos == 3 {
            return Err(Fault::Malformed("flags of CONNECT"));
        }
        // 3.1.1 knows no password without a user name (MQTT-3.1.2-22).
        if self.version == Version::V311 && flags & 0xC0 == 0x40 {
            return Err(Fault::Malformed("a password without a user name"));
        }
        Ok(())
    }

    fn read_properties(&mut self, fields: &mut Fields<'a>) -> Result<(), Fault> {
        properties(fields, &[0x11, 0x21, 0x27, 0x22, 0x19, 0x17, 0x26, 0x15, 0x16], |id, value| {
            match (id, value) {
                (0x11, Value::Number(seconds)) => self.session_expiry_s = seconds,
                (0x21, Value::Number(0)) => return Err(Fault::Protocol("a receive maximum of 0")),
                (0x27, Value::Number(0)) => return Err(Fault::Protocol("a maximum packet size of 0")),
                (0x27, Value::Number(bytes)) => self.packet_bytes_max = usize::try_from(bytes).unwrap_or(usize::MAX),
                (0x15, _) => self.extended_authentication = true,
                _ => {}
            }
            Ok(())
        })
    }
}

fn will<'a>(fields: &mut Fields<'a>, version: Version) -> Result<Message<'a>, Fault> {
    let mut message = Message::default();
    if version == Version::V5 {
        message.read_properties(fields, &[0x18, 0x01, 0x02, 0x03, 0x08, 0x09, 0x26])?;
    }
    message.topic = name(fields.text()?)?;
    message.payload = fields.bytes()?;
    Ok(message)
}

impl<'a> Packet<'a> {
    /// Reads the packet behind `header`, of a client that is connected with `version`.
    ///
    /// # Errors
    /// [`Fault`].
    pub fn read(header: Header, body: &'a [u8], version: Version) -> Result<Self, Fault> {
        let (kind, flags) = (header.first >> 4, header.first & 0x0F);
        let expected = if matches!(kind, 6 | 8 | 10) { 2 } else { 0 };
        if kind != 3 && flags != expected {
            return Err(Fault::Malformed("flags of a fixed header"));
        }
        match kind {
            1 => Err(Fault::Protocol("a second CONNECT")),
            3 => Publish::read(flags, body, version).map(Self::Publish),
            6 => release(body, version),
            8 => filters(body, version, true).map(|(id, count)| Self::Subscribe(id, count)),
            10 => filters(body, version, false).map(|(id, count)| Self::Unsubscribe(id, count)),
            12 if body.is_empty() => Ok(Self::Ping),
            14 => disconnect(body, version),
            12 => Err(Fault::Malformed("a PINGREQ with a body")),
            0 | 15 if version == Version::V311 => Err(Fault::Malformed("a reserved kind of packet")),
            _ => Err(Fault::Protocol("a kind of packet that a client has no reason to send here")),
        }
    }
}

impl<'a> Publish<'a> {
    fn read(flags: u8, body: &'a [u8], version: Version) -> Result<Self, Fault> {
        let qos = flags >> 1 & 0x03;
        let dup = flags & 0x08 != 0;
        if qos == 3 || (qos == 0 && dup) {
            return Err(Fault::Malformed("QoS of a PUBLISH"));
        }
        if qos == 2 && version == Version::V5 {
            return Err(Fault::Qos);
        }
        let mut fields = Fields(body);
        let mut message = Message { topic: fields.text()?, ..Message::default() };
        let id = if qos == 0 { 0 } else { fields.id()? };
        if version == Version::V5 {
            message.read_properties(&mut fields, &[0x01, 0x02, 0x23, 0x08, 0x09, 0x26, 0x03])?;
        }
        name(message.topic)?;
        message.payload = fields.0;
        Ok(Self { qos, id, dup, retain: flags & 0x01 != 0, message })
    }
}

impl<'a> Message<'a> {
    fn read_properties(&mut self, fields: &mut Fields<'a>, allowed: &[u8]) -> Result<(), Fault> {
        properties(fields, allowed, |id, value| {
            match (id, value) {
                (0x23, _) => return Err(Fault::TopicAlias),
                (0x03, Value::Text(text)) => self.content_type = Some(text),
                (0x26, Value::Pair(..)) if self.user.len() >= USER_PROPERTIES_MAX => self.user_left_out += 1,
                (0x26, Value::Pair(name, value)) => self.user.push((name, value)),
                _ => {}
            }
            Ok(())
        })
    }
}

/// PUBREL (3.6): in MQTT 5 a reason code and properties may follow.
fn release<'a>(body: &'a [u8], version: Version) -> Result<Packet<'a>, Fault> {
    let mut fields = Fields(body);
    let id = fields.id()?;
    if version == Version::V5 && !fields.0.is_empty() {
        fields.byte()?;
        if !fields.0.is_empty() {
            properties(&mut fields, &[0x1F, 0x26], |_, _| Ok(()))?;
        }
    }
    fields.end()?;
    Ok(Packet::Release(id))
}

/// DISCONNECT (3.14).
fn disconnect<'a>(body: &'a [u8], version: Version) -> Result<Packet<'a>, Fault> {
    let mut fields = Fields(body);
    if version == Version::V311 || body.is_empty() {
        fields.end()?;
        return Ok(Packet::Disconnect(false));
    }
    let reason = fields.byte()?;
    if !fields.0.is_empty() {
        properties(&mut fields, &[0x11, 0x1F, 0x26], |_, _| Ok(()))?;
    }
    fields.end()?;
    // All but a normal disconnection (0x00) leave the will in force (3.1.2.5).
    Ok(Packet::Disconnect(reason != 0))
}

/// SUBSCRIBE (3.8) and UNSUBSCRIBE (3.10): the packet id and how many filters it names.
fn filters(body: &[u8], version: Version, with_options: bool) -> Result<(u16, usize), Fault> {
    let mut fields = Fields(body);
    let id = fields.id()?;
    if version == Version::V5 {
        let allowed: &[u8] = if with_options { &[0x0B, 0x26] } else { &[0x26] };
        properties(&mut fields, allowed, |_, _| Ok(()))?;
    }
    let mut count = 0;
    while !fields.0.is_empty() {
        fields.text()?;
        if with_options {
            fields.byte()?;
        }
        count += 1;
        if count > FILTERS_MAX {
            return Err(Fault::Protocol("more topic filters in one packet than anybody needs"));
        }
    }
    if count == 0 { Err(Fault::Protocol("no topic filter")) } else { Ok((id, count)) }
}

fn name(topic: &str) -> Result<&str, Fault> {
    if mqtt_topic::is_name(topic) { Ok(topic) } else { Err(Fault::Malformed("a topic name")) }
}

/// A property's value.
enum Value<'a> {
    Number(u32),
    Text(&'a str),
    Pair(&'a str, &'a str),
    Bytes,
}

/// Reads properties (MQTT 5.0, 2.2.2) and gives each to `take`. One that is not `allowed` here, or comes twice, is a fault.
fn properties<'a>(
    fields: &mut Fields<'a>,
    allowed: &[u8],
    mut take: impl FnMut(u8, Value<'a>) -> Result<(), Fault>,
) -> Result<(), Fault> {
    let length = fields.variable()?.ok_or(CUT)?;
    let mut inside = Fields(fields.take(length)?);
    let mut seen = 0u64;
    while !inside.0.is_empty() {
        let id = inside.byte()?;
        if !allowed.contains(&id) {
            return Err(Fault::Malformed("a property that does not belong there"));
        }
        if id != 0x26 && seen >> id & 1 != 0 {
            return Err(Fault::Protocol("a property twice"));
        }
        seen |= 1 << id;
        take(id, inside.value(id)?)?;
    }
    Ok(())
}

const CUT: Fault = Fault::Malformed("it ends too early");

/// The fields of a packet, from the front.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Fault> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(CUT)?;
        self.0 = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, Fault> {
        let (&byte, rest) = self.0.split_first().ok_or(CUT)?;
        self.0 = rest;
        Ok(byte)
    }

    fn short(&mut self) -> Result<u16, Fault> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(CUT)?;
        self.0 = rest;
        Ok(u16::from_be_bytes(*taken))
    }

    fn long(&mut self) -> Result<u32, Fault> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(CUT)?;
        self.0 = rest;
        Ok(u32::from_be_bytes(*taken))
    }

    /// A packet id: never 0 (2.2.1 and 2.3.1).
    fn id(&mut self) -> Result<u16, Fault> {
        match self.short()? {
            0 => Err(Fault::Protocol("packet id 0")),
            id => Ok(id),
        }
    }

    fn bytes(&mut self) -> Result<&'a [u8], Fault> {
        let length = self.short()?;
        self.take(usize::from(length))
    }

    /// UTF-8 without U+0000 (1.5.3 and 1.5.4).
    fn text(&mut self) -> Result<&'a str, Fault> {
        let text = std::str::from_utf8(self.bytes()?).map_err(|_| Fault::Malformed("text that is not UTF-8"))?;
        if text.contains('\0') { Err(Fault::Malformed("U+0000 in a text")) } else { Ok(text) }
    }

    /// A variable byte integer; `None` when it goes on beyond what is there.
    fn variable(&mut self) -> Result<Option<usize>, Fault> {
        let mut value = 0;
        for (at, &byte) in self.0.iter().enumerate().take(4) {
            value |= usize::from(byte & 0x7F) << (7 * at);
            if byte & 0x80 == 0 {
                self.0 = self.0.get(at + 1..).unwrap_or_default();
                return Ok(Some(value));
            }
        }
        if self.0.len() < 4 { Ok(None) } else { Err(Fault::Malformed("a length of more than four bytes")) }
    }

    fn value(&mut self, id: u8) -> Result<Value<'a>, Fault> {
        Ok(match id {
            0x01 | 0x17 | 0x19 => Value::Number(self.byte()?.into()),
            0x21..=0x23 => Value::Number(self.short()?.into()),
            0x02 | 0x11 | 0x18 | 0x27 => Value::Number(self.long()?),
            0x0B => {
                self.variable()?.ok_or(CUT)?;
                Value::Bytes
            }
            0x03 | 0x08 | 0x15 | 0x1F => Value::Text(self.text()?),
            0x26 => Value::Pair(self.text()?, self.text()?),
            // 0x09 and 0x16; no other is ever allowed.
            _ => {
                self.bytes()?;
                Value::Bytes
            }
        })
    }

    fn end(&self) -> Result<(), Fault> {
        if self.0.is_empty() { Ok(()) } else { Err(Fault::Malformed("bytes after its end")) }
    }
}
