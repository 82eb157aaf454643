//! A modality in the test's own hands: it says one PDU at a time, so that a test can stop in the middle of anything.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use tokio::net::TcpSocket;
use wardgate::wire::dicom::dimse::{Command, Status};
use wardgate::wire::dicom::pdu::{
    HEADER_BYTES, Header, Kind, Pdv, Pdvs, RELEASE_REQUEST, Reject, write_data, write_message,
};
use wardgate::wire::dicom::pdu_associate::{AssociateAccept, AssociateRequest, ProposedContext, UserInformation};
use wardgate::wire::dicom::values::{
    APPLICATION_CONTEXT, CT_IMAGE, EXPLICIT_LITTLE_ENDIAN, IMPLEMENTATION_CLASS, STORAGE_COMMITMENT, Uid, VERIFICATION,
};

/// Nothing here takes so long.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between two bytes of [`Device::drip`].
const PACE: Duration = Duration::from_millis(50);
/// Presentation contexts of [`Device::associate`].
pub const ECHO: u8 = 1;
pub const CT: u8 = 3;
pub const COMMITMENT: u8 = 5;
/// What the UIDs of [`instance`] begin with.
pub const INSTANCE_ROOT: &str = "1.2.826.0.1.3680043.10.999.";

/// An association.
pub struct Device {
    stream: TcpStream,
    pub accept: AssociateAccept,
    message: u16,
}

/// A socket that is not connected yet.
pub struct Socket(TcpSocket);

/// One of this address of the loopback network.
pub fn socket_from(address: [u8; 4]) -> Socket {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((address, 0).into()).unwrap();
    Socket(socket)
}

impl Socket {
    /// Takes few bytes that nobody reads.
    pub fn narrow(self) -> Self {
        self.0.set_recv_buffer_size(4096).unwrap();
        self
    }

    /// Connects.
    pub fn to(self, address: SocketAddr) -> TcpStream {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
        let stream = runtime.block_on(async { self.0.connect(address).await.unwrap().into_std().unwrap() });
        stream.set_nonblocking(false).unwrap();
        stream
    }
}

/// Whether the other end closes the connection, without a word.
pub fn is_sent_away(stream: &mut TcpStream) -> bool {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    match stream.read(&mut [0]) {
        Ok(count) => count == 0,
        Err(error) => error.kind() == ErrorKind::ConnectionReset,
    }
}

pub fn uid(text: &str) -> Uid {
    text.parse().unwrap()
}

/// A CT instance of this number and study with so many bytes of pixels, as its UID and its data set.
pub fn instance(study: u32, number: usize, pixels: usize) -> (Uid, Vec<u8>) {
    let own = uid(&format!("{INSTANCE_ROOT}{study}.{number}"));
    let mut data = Vec::with_capacity(pixels + 512);
    let mut text = |tag: [u8; 4], vr: &[u8; 2], value: &str| {
        let length = u16::try_from(value.len().next_multiple_of(2)).unwrap().to_le_bytes();
        data.extend_from_slice(&[&tag[..], vr, &length, value.as_bytes()].concat());
        data.resize(data.len().next_multiple_of(2), 0);
    };
    text([8, 0, 0x16, 0], b"UI", CT_IMAGE.as_str());
    text([8, 0, 0x18, 0], b"UI", own.as_str());
    text([8, 0, 0x60, 0], b"CS", "CT");
    text([0x20, 0, 0x0d, 0], b"UI", &format!("{INSTANCE_ROOT}{study}"));
    data.extend_from_slice(b"\xe0\x7f\x10\0OB\0\0");
    data.extend_from_slice(&u32::try_from(pixels).unwrap().to_le_bytes());
    let pattern: Vec<u8> = (0..251).map(|at| u8::try_from((at * 7 + number) % 251).unwrap()).collect();
    data.extend_from_slice(&pattern.repeat(pixels / 251 + 1)[..pixels]);
    (own, data)
}

/// What [`Device::associate`] proposes.
pub fn request(calling: &str, called: &str) -> AssociateRequest {
    let transfer_syntaxes = vec![EXPLICIT_LITTLE_ENDIAN];
    let context =
        |id, abstract_syntax| ProposedContext { id, abstract_syntax, transfer_syntaxes: transfer_syntaxes.clone() };
    AssociateRequest {
        protocol_version: 1,
        called: called.parse().unwrap(),
        calling: calling.parse().unwrap(),
        application_context: APPLICATION_CONTEXT,
        contexts: vec![context(ECHO, VERIFICATION), context(CT, CT_IMAGE), context(COMMITMENT, STORAGE_COMMITMENT)],
        user: UserInformation {
            max_length: 16_384,
            implementation_class: Some(IMPLEMENTATION_CLASS),
            implementation_version: Some("TEST".into()),
            ..UserInformation::default()
        },
    }
}

impl Device {
    /// Associates as CT1 with WARDGATE.
    #[track_caller]
    pub fn associate(to: SocketAddr) -> Self {
        Self::try_associate(to, "CT1", "WARDGATE").unwrap().unwrap()
    }

    /// Associates, or is rejected.
    pub fn try_associate(to: SocketAddr, calling: &str, called: &str) -> io::Result<Result<Self, Reject>> {
        Self::propose(to, &request(calling, called))
    }

    /// Proposes what the test wants.
    pub fn propose(to: SocketAddr, request: &AssociateRequest) -> io::Result<Result<Self, Reject>> {
        Self::over(TcpStream::connect(to)?, request)
    }

    /// The same over a connection that is there.
    pub fn over(mut stream: TcpStream, request: &AssociateRequest) -> io::Result<Result<Self, Reject>> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.write_all(&request.bytes())?;
        let (kind, body) = read_pdu(&mut stream)?;
        match kind {
            Kind::AssociateAccept => {
                let accept = AssociateAccept::read(&body).unwrap();
                Ok(Ok(Self { stream, accept, message: 0 }))
            }
            Kind::AssociateReject => Ok(Err(Reject::read(&body).unwrap())),
            other => panic!("{other} is no answer to an association request"),
        }
    }

    /// C-ECHO.
    pub fn echo(&mut self) -> io::Result<Status> {
        let command = Command::echo_request(self.next_message());
        self.exchange(ECHO, &command, None)
    }

    /// C-STORE of a CT instance; the status of the answer.
    pub fn store(&mut self, own: &Uid, data: &[u8]) -> io::Result<Status> {
        let command = Command::store_request(self.next_message(), CT_IMAGE, own.clone());
        self.exchange(CT, &command, Some(data))
    }

    /// Sends a command and its data set, and waits for the answer.
    pub fn exchange(&mut self, context: u8, command: &Command, data: Option<&[u8]>) -> io::Result<Status> {
        self.send(context, command, data)?;
        self.answer().map(|answer| answer.status.unwrap())
    }

    pub fn send(&mut self, context: u8, command: &Command, data: Option<&[u8]>) -> io::Result<()> {
        let mut out = Vec::new();
        write_message(&Pdv { context, is_command: true, is_last: true, data: &command.bytes() }, 16_000, &mut out);
        if let Some(data) = data {
            write_message(&Pdv { context, is_command: false, is_last: true, data }, 16_000, &mut out);
        }
        self.stream.write_all(&out)
    }

    /// The next response.
    pub fn answer(&mut self) -> io::Result<Command> {
        let (kind, body) = read_pdu(&mut self.stream)?;
        assert_eq!(kind, Kind::Data, "an answer");
        let pdv = Pdvs::new(&body).next().unwrap().unwrap();
        Ok(Command::read(pdv.data).unwrap())
    }

    /// Bytes as they are.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// The next PDU.
    pub fn hear(&mut self) -> io::Result<(Kind, Vec<u8>)> {
        read_pdu(&mut self.stream)
    }

    /// Sends a data set byte by byte, without an end, until something comes back: what it is.
    pub fn drip(&mut self, context: u8) -> io::Result<(Kind, Vec<u8>)> {
        let mut byte = Vec::new();
        write_data(&Pdv { context, is_command: false, is_last: false, data: b"\0" }, &mut byte);
        self.stream.set_read_timeout(Some(PACE))?;
        let end = Instant::now() + PATIENCE;
        loop {
            self.stream.write_all(&byte)?;
            match self.stream.peek(&mut [0]) {
                Err(error) if !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    return Err(error);
                }
                Err(_) if Instant::now() > end => return Err(ErrorKind::TimedOut.into()),
                Err(_) => {}
                Ok(_) => break,
            }
        }
        self.stream.set_read_timeout(Some(PATIENCE))?;
        self.hear()
    }

    /// Releases, and waits for the answer.
    pub fn release(mut self) {
        self.stream.write_all(&RELEASE_REQUEST).unwrap();
        assert_eq!(read_pdu(&mut self.stream).unwrap().0, Kind::ReleaseResponse);
    }

    pub fn next_message(&mut self) -> u16 {
        self.message += 1;
        self.message
    }
}

fn read_pdu(stream: &mut TcpStream) -> io::Result<(Kind, Vec<u8>)> {
    let mut head = [0; HEADER_BYTES];
    stream.read_exact(&mut head)?;
    let header = Header::read(head, 1 << 20).unwrap();
    let mut body = vec![0; header.length as usize];
    stream.read_exact(&mut body)?;
    Ok((header.kind, body))
}
