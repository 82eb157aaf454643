//! What a device sees of the MLLP source: real sockets, the real spool in a temporary folder.

use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::mllp::MllpConfig;
use crate::envelope::{Class, Envelope, Flags};
use crate::source::intake::Intake;
use crate::source::{SourceConfig, Started, Stop};
use crate::spool::{Disk, IN_FLIGHT_BYTES_MAX, Lane, Secret, Spool, SpoolConfig};
use crate::status::SourceCounters;
use crate::system::stream::dial;
use crate::system::test_pki::Pki;
use crate::system::tls::ClientTls;
use crate::values::{HostPort, Name};
use crate::wire::ack::{Acknowledgement, Code};
use crate::wire::mllp::{Decoder, Event, encode};

const LIMIT: Duration = Duration::from_secs(20);

/// A gateway's device side with one source, which sends to one upstream that takes nothing.
struct Ward {
    spool: Spool,
    lane: Lane,
    counters: Arc<SourceCounters>,
    started: Started,
    stop: Stop,
    _targets: watch::Sender<Arc<[Name]>>,
    _folder: TempDir,
}

impl Ward {
    async fn open(settings: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let text = format!("path = {:?}\nkey = \"unused\"", folder.path());
        let config: SpoolConfig = toml::from_str(&text).unwrap();
        let disk = Arc::new(Disk::open(folder.path()).unwrap());
        let spool = Spool::open(disk, Secret::random(), &config).unwrap();
        let (source, upstream): (Name, Name) = ("ward".parse().unwrap(), "engine".parse().unwrap());
        let lane = spool.lane(Class::Clinical, &source, &upstream);
        let (targets, routed) = watch::channel(Arc::from([upstream]));
        let intake = Intake::new(source, "mllp", Class::Clinical, spool.clone(), routed);
        let counters = Arc::clone(intake.counters());
        let config: MllpConfig = toml::from_str(&format!("listen = \"127.0.0.1:0\"\n{settings}")).unwrap();
        let stop = Stop::new();
        let started = SourceConfig::Mllp(config).start(intake, stop.clone()).await;
        started.first.clone().unwrap();
        Self { spool, lane, counters, started, stop, _targets: targets, _folder: folder }
    }

    fn address(&self) -> HostPort {
        let mut address: HostPort = self.started.endpoint.borrow().parse().unwrap();
        address.host = "localhost".into();
        address
    }

    async fn device(&self) -> Device<TcpStream> {
        Device::new(TcpStream::connect(("127.0.0.1", self.address().port)).await.unwrap())
    }

    /// The next message that is stored.
    async fn stored(&mut self) -> (Arc<Envelope>, Vec<u8>) {
        let entry = timeout(LIMIT, self.lane.next()).await.expect("nothing more was stored");
        let envelope = entry.content.unwrap();
        let body = envelope.body.collect().await.unwrap().to_vec();
        (envelope, body)
    }

    async fn until(&self, what: impl Fn(&SourceCounters) -> bool) {
        let deadline = Instant::now() + LIMIT;
        while !what(&self.counters) {
            assert!(Instant::now() < deadline, "it did not come about in time");
            sleep(Duration::from_millis(2)).await;
        }
    }

    async fn end(self) {
        self.stop.cancel();
        timeout(LIMIT, self.started.task).await.expect("the source did not stop").unwrap();
        self.spool.close();
    }
}

/// A device: sends bytes, reads acknowledgements.
struct Device<S> {
    stream: S,
    decoder: Decoder,
    read: Vec<u8>,
}

impl<S: AsyncReadExt + AsyncWriteExt + Unpin> Device<S> {
    fn new(stream: S) -> Self {
        Self { stream, decoder: Decoder::new(1 << 20), read: Vec::new() }
    }

    async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    async fn say(&mut self, body: &[u8]) {
        let mut framed = Vec::new();
        encode(body, &mut framed);
        self.send(&framed).await;
    }

    /// The next acknowledgement's code and MSA-2; `None`: the connection ended.
    async fn answer(&mut self) -> Option<(Code, String)> {
        let mut body = Vec::new();
        loop {
            let mut input = &self.read[..];
            let mut whole = false;
            while !whole && let Some(event) = self.decoder.pull(&mut input) {
                match event {
                    Event::Body(bytes) => body.extend_from_slice(bytes),
                    Event::End(end) => {
                        assert!(end.quirks.is_empty());
                        whole = true;
                    }
                    other => panic!("{other:?}"),
                }
            }
            self.read = input.to_vec();
            if whole {
                let ack = Acknowledgement::read(&body).unwrap();
                return Some((ack.code, String::from_utf8_lossy(ack.control_id).into_owned()));
            }
            let mut bytes = [0; 4096];
            let count = timeout(LIMIT, self.stream.read(&mut bytes)).await.expect("no answer came").unwrap_or(0);
            if count == 0 {
                assert!(body.is_empty(), "the connection ended inside an answer");
                return None;
            }
            self.read.extend_from_slice(&bytes[..count]);
        }
    }
}

fn message(id: &str, asks: &str) -> Vec<u8> {
    format!("MSH|^~\\&|DEV|T|WG|H|20260129||ORU^R01|{id}|P|2.6|||{asks}\rPID|||TEST\rOBX|1|NM|HR||{}\r", id.len())
        .into_bytes()
}

fn said(code: Code, id: &str) -> Option<(Code, String)> {
    Some((code, id.to_owned()))
}

#[tokio::test]
async fn a_message_is_stored_as_it_came_and_then_acknowledged() {
    let mut ward = Ward::open("").await;
    let mut device = ward.device().await;
    let body =
        b"\xef\xbb\xbfMSH|^~\\&|DEV|T|WG|H|20260129||ORU^R01^ORU_R01|000042|P|2.6|||AL|NE||8859/1\nPID|||\xc4\xd6\n";
    device.say(body).await;
    assert_eq!(device.answer().await, said(Code::Ca, "000042"));
    let (envelope, stored) = ward.stored().await;
    assert_eq!(stored, body);
    let meta = &envelope.meta;
    assert_eq!((meta.control_id.as_slice(), meta.flags), (&b"000042"[..], Flags::default()));
    assert_eq!(meta.content_type, "application/hl7-v2; charset=iso-8859-1");
    assert_eq!((meta.protocol.as_str(), ward.counters.stored.value()), ("mllp", 1));
    ward.end().await;
}

#[tokio::test]
async fn a_charset_of_the_configuration_serves_those_that_name_none() {
    let mut ward = Ward::open("charset = \"windows-1252\"").await;
    let mut device = ward.device().await;
    device.say(&message("1", "")).await;
    assert_eq!(device.answer().await, said(Code::Aa, "1"));
    assert_eq!(ward.stored().await.0.meta.content_type, "application/hl7-v2; charset=windows-1252");
    ward.end().await;
}

#[tokio::test]
async fn messages_sent_in_one_go_are_answered_in_order() {
    let mut ward = Ward::open("").await;
    let mut device = ward.device().await;
    let mut all = Vec::new();
    (0..20).for_each(|number| encode(&message(&format!("P{number}"), "AL|NE"), &mut all));
    device.send(&all).await;
    for number in 0..20 {
        assert_eq!(device.answer().await, said(Code::Ca, &format!("P{number}")));
        assert_eq!(ward.stored().await.1, message(&format!("P{number}"), "AL|NE"));
    }
    ward.end().await;
}

#[tokio::test]
async fn a_frame_that_comes_byte_by_byte_is_one_message() {
    let mut ward = Ward::open("").await;
    let mut device = ward.device().await;
    device.stream.set_nodelay(true).unwrap();
    let mut framed = Vec::new();
    encode(&message("B", ""), &mut framed);
    for byte in framed {
        device.send(&[byte]).await;
    }
    assert_eq!(device.answer().await, said(Code::Aa, "B"));
    assert_eq!(ward.stored().await.1, message("B", ""));
    ward.end().await;
}

#[tokio::test]
async fn a_device_that_never_sends_the_cr_gets_its_answers_without_it() {
    let ward = Ward::open("").await;
    let mut device = ward.device().await;
    for number in 0..3 {
        let id = format!("N{number}");
        device.send(&[b"\x0b", &message(&id, "")[..], b"\x1c"].concat()).await;
        assert_eq!(device.answer().await, said(Code::Aa, &id));
    }
    // The CR that is late after all, in front of the next message, is no junk.
    device.send(b"\r").await;
    device.say(&message("N3", "")).await;
    assert_eq!(device.answer().await, said(Code::Aa, "N3"));
    assert_eq!(ward.counters.discarded_bytes.value(), 0);
    ward.end().await;
}

#[tokio::test]
async fn what_cant_be_correlated_is_stored_flagged_and_rejected() {
    let mut ward = Ward::open("").await;
    let mut device = ward.device().await;
    let no_id = message("", "AL|NE");
    for (body, code, flag) in
        [(&b"PID|||HEADLESS\r"[..], Code::Ar, Flags::UNREADABLE), (&no_id, Code::Cr, Flags::NO_CONTROL_ID)]
    {
        device.say(body).await;
        assert_eq!(device.answer().await, said(code, ""));
        let (envelope, stored) = ward.stored().await;
        assert_eq!((stored.as_slice(), envelope.meta.flags), (body, flag.with(Flags::REJECTED)));
    }
    device.send(b"\x0bMSH|half").await;
    device.say(&message("WHOLE", "")).await;
    assert_eq!(device.answer().await, said(Code::Ar, "WHOLE"));
    let (envelope, stored) = ward.stored().await;
    assert_eq!(stored, message("WHOLE", ""));
    assert_eq!(envelope.meta.flags, Flags::DISCARDED_BYTES.with(Flags::REJECTED));
    assert_eq!((ward.counters.rejected.value(), ward.counters.discarded_bytes.value()), (3, 8));
    ward.end().await;
}

#[tokio::test]
async fn who_asks_for_no_answer_gets_none_and_who_asks_for_two_may_get_two() {
    let ward = Ward::open("application-ack = \"on-commit\"").await;
    let mut device = ward.device().await;
    device.say(&message("QUIET", "NE|NE")).await;
    device.say(&message("BOTH", "AL|AL")).await;
    assert_eq!(device.answer().await, said(Code::Ca, "BOTH"));
    assert_eq!(device.answer().await, said(Code::Aa, "BOTH"));
    assert_eq!(ward.counters.stored.value(), 2);
    ward.end().await;
}

#[tokio::test]
async fn a_second_copy_is_acknowledged_again_and_not_stored_again() {
    let ward = Ward::open("").await;
    let mut device = ward.device().await;
    for _ in 0..3 {
        device.say(&message("R", "")).await;
        assert_eq!(device.answer().await, said(Code::Aa, "R"));
    }
    assert_eq!((ward.counters.stored.value(), ward.counters.repeats.value()), (1, 2));
    ward.end().await;
}

#[tokio::test]
async fn a_long_body_streams_into_the_spool_and_is_answered_by_its_own_header() {
    let mut ward = Ward::open("").await;
    let mut device = ward.device().await;
    let mut body = message("LONG", "AL|NE");
    body.extend((0..5_000_000u32).map(|n| b"0123456789abcdef"[(n.wrapping_mul(2_654_435_761) >> 28) as usize]));
    device.say(&body).await;
    assert_eq!(device.answer().await, said(Code::Ca, "LONG"));
    assert!(ward.stored().await.1 == body, "the stored body differs");
    ward.end().await;
}

#[tokio::test]
async fn stalled_long_bodies_leave_room_for_short_messages() {
    let ward = Ward::open("").await;
    let mut half = message("STALLED", "");
    half.insert(0, 0x0b);
    half.resize(70_000, b'x');
    let mut stalled = Vec::new();
    // Together they would hold more than the whole budget.
    for _ in 0..40 {
        let mut device = ward.device().await;
        device.send(&half).await;
        stalled.push(device);
    }
    let left = || ward.spool.in_flight().all.available_permits();
    ward.until(|_| left() <= IN_FLIGHT_BYTES_MAX / 2).await;
    assert!(left() >= IN_FLIGHT_BYTES_MAX / 4, "{}", left());
    let mut device = ward.device().await;
    device.say(&message("SHORT", "")).await;
    assert_eq!(device.answer().await, said(Code::Aa, "SHORT"));
    // And each of them can still end, in any order.
    for device in stalled.iter_mut().rev() {
        device.send(b"\x1c\r").await;
    }
    for device in &mut stalled {
        assert_eq!(device.answer().await, said(Code::Aa, "STALLED"));
    }
    ward.end().await;
}

/// The beginning of a message that fits into no single read.
fn half(id: &str) -> Vec<u8> {
    let mut half = message(id, "");
    half.insert(0, 0x0b);
    half.resize(30_000, b'x');
    half
}

#[tokio::test]
async fn many_stalled_messages_hold_a_bounded_share_and_lose_it_in_time() {
    let ward = Ward::open("frame-timeout = \"1500ms\"").await;
    let mut stalled = Vec::new();
    for number in 0..100 {
        let mut device = ward.device().await;
        device.send(&half(&format!("S{number}"))).await;
        stalled.push(device);
    }
    let held = || IN_FLIGHT_BYTES_MAX - ward.spool.in_flight().all.available_permits();
    ward.until(|_| held() > 0).await;
    // What comes in one go is not behind them.
    let mut quick = ward.device().await;
    quick.say(&message("QUICK", "")).await;
    assert_eq!(quick.answer().await, said(Code::Aa, "QUICK"));
    assert!(held() <= IN_FLIGHT_BYTES_MAX / 4, "{}", held());
    // What comes slowly is, until they are cut off.
    let mut slow = ward.device().await;
    slow.send(&half("SLOW")).await;
    slow.send(b"\x1c\r").await;
    assert_eq!(slow.answer().await, said(Code::Aa, "SLOW"));
    for device in &mut stalled {
        assert_eq!(device.answer().await, None);
    }
    ward.until(|_| held() == 0).await;
    ward.end().await;
}

#[tokio::test]
async fn a_body_over_the_limit_is_rejected_and_the_next_message_is_taken() {
    let mut ward = Ward::open("max-message-size = \"100KiB\"").await;
    let mut device = ward.device().await;
    let mut body = message("HUGE", "AL|NE");
    body.resize(300_000, b'x');
    device.say(&body).await;
    assert_eq!(device.answer().await, said(Code::Cr, "HUGE"));
    device.say(&message("NEXT", "AL|NE")).await;
    assert_eq!(device.answer().await, said(Code::Ca, "NEXT"));
    assert_eq!(ward.stored().await.1, message("NEXT", "AL|NE"));
    assert_eq!((ward.counters.stored.value(), ward.counters.rejected.value()), (1, 1));
    ward.end().await;
}

#[tokio::test]
async fn when_the_spool_can_take_nothing_the_device_is_told_to_try_again() {
    let ward = Ward::open("").await;
    let mut device = ward.device().await;
    ward.spool.close();
    device.say(&message("E1", "AL|NE")).await;
    assert_eq!(device.answer().await, said(Code::Ce, "E1"));
    let mut long = message("E2", "");
    long.resize(700_000, b'x');
    device.say(&long).await;
    assert_eq!(device.answer().await, said(Code::Ae, "E2"));
    assert_eq!((ward.counters.stored.value(), ward.counters.refused.value()), (0, 2));
    ward.end().await;
}

#[tokio::test]
async fn a_sender_that_dawdles_inside_a_frame_is_cut_off_and_nothing_is_stored() {
    let ward = Ward::open("frame-timeout = \"300ms\"").await;
    let mut device = ward.device().await;
    device.send(b"\x0bMSH|^~\\&|SLOW").await;
    let writer = async {
        // A byte now and then does not buy time.
        while device.stream.write_all(b"x").await.is_ok() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(LIMIT, writer).await.expect("it was never cut off");
    ward.until(|counters| counters.connections.value() == 0).await;
    assert_eq!(ward.counters.received.value(), 0);
    ward.end().await;
}

#[tokio::test]
async fn who_speaks_something_else_does_not_keep_a_place_for_a_day() {
    let ward = Ward::open("frame-timeout = \"100ms\"").await;
    let mut browser = ward.device().await;
    browser.send(b"GET / HTTP/1.1\r\nHost: wardgate\r\n\r\n").await;
    assert_eq!(browser.answer().await, None);
    let mut device = ward.device().await;
    device.say(&message("D", "")).await;
    assert_eq!(device.answer().await, said(Code::Aa, "D"));
    // Noise on the line of a device that has shown that it is one costs nothing.
    let before = ward.counters.discarded_bytes.value();
    device.send(b"~~").await;
    ward.until(|counters| counters.discarded_bytes.value() == before + 2).await;
    sleep(Duration::from_millis(300)).await;
    device.say(&message("D2", "")).await;
    assert_eq!(device.answer().await, said(Code::Aa, "D2"));
    ward.end().await;
}

#[tokio::test]
async fn a_connection_that_breaks_inside_a_frame_leaves_nothing_behind() {
    let ward = Ward::open("").await;
    let mut device = ward.device().await;
    device.send(b"\x0bMSH|^~\\&|GONE").await;
    drop(device);
    ward.until(|counters| counters.discarded_bytes.value() == 13 && counters.connections.value() == 0).await;
    assert_eq!(ward.counters.received.value(), 0);
    ward.end().await;
}

#[tokio::test]
async fn a_peer_that_reads_no_answers_is_cut_off() {
    let ward = Ward::open("write-timeout = \"200ms\"").await;
    let mut device = ward.device().await;
    // Each answer echoes a long header, so that the buffers on the way are soon full; repeats cost no sync.
    let party = "X".repeat(15_000);
    let body = format!("MSH|^~\\&|{party}||||20260129||ORU^R01|DEAF|P|2.6\r");
    let mut framed = Vec::new();
    encode(body.as_bytes(), &mut framed);
    let writer = async { while device.stream.write_all(&framed).await.is_ok() {} };
    timeout(LIMIT, writer).await.expect("it was never cut off");
    ward.until(|counters| counters.connections.value() == 0).await;
    ward.end().await;
}

#[tokio::test]
async fn stopping_ends_idle_connections_and_lets_a_frame_that_has_begun_end() {
    let mut ward = Ward::open("").await;
    let (mut idle, mut busy) = (ward.device().await, ward.device().await);
    idle.say(&message("I", "")).await;
    assert_eq!(idle.answer().await, said(Code::Aa, "I"));
    assert_eq!(ward.stored().await.1, message("I", ""));
    let mut framed = Vec::new();
    encode(&message("BEGUN", ""), &mut framed);
    let (first, rest) = framed.split_at(20);
    // In one go: when the answer to the first is there, the beginning of the second has been read.
    let mut both = Vec::new();
    encode(&message("FIRST", ""), &mut both);
    both.extend_from_slice(first);
    busy.send(&both).await;
    assert_eq!(busy.answer().await, said(Code::Aa, "FIRST"));
    assert_eq!(ward.stored().await.1, message("FIRST", ""));
    ward.stop.cancel();
    assert_eq!(idle.answer().await, None);
    let mut more = rest.to_vec();
    encode(&message("LATE", ""), &mut more);
    busy.send(&more).await;
    assert_eq!(busy.answer().await, said(Code::Aa, "BEGUN"));
    assert_eq!(busy.answer().await, None);
    assert_eq!(ward.counters.stored.value(), 3);
    ward.end().await;
}

#[tokio::test]
async fn mutual_tls_serves_who_shows_a_certificate_of_the_ca() {
    let pki = Pki::new();
    pki.leaf("server", &["localhost"]);
    let file = |name: &str| pki.path(name).display().to_string();
    let (certificate, key, ca) = (file("server.pem"), file("server.key"), file("ca.pem"));
    let settings = format!("tls = {{ certificate = {certificate:?}, key = {key:?}, client-ca = {ca:?} }}");
    let mut ward = Ward::open(&settings).await;
    let (certificate, key) = pki.leaf("monitor", &["monitor"]);
    let client = ClientTls { ca: pki.ca(), certificate: Some(certificate), key: Some(key), server_name: None };
    let stream = dial(&ward.address(), Some(&client.connector().unwrap()), LIMIT).await.unwrap();
    let mut device = Device::new(stream);
    device.say(&message("TLS", "AL|NE")).await;
    assert_eq!(device.answer().await, said(Code::Ca, "TLS"));
    assert_eq!(ward.stored().await.1, message("TLS", "AL|NE"));
    let stranger = ClientTls { ca: pki.ca(), certificate: None, key: None, server_name: None };
    if let Ok(stream) = dial(&ward.address(), Some(&stranger.connector().unwrap()), LIMIT).await {
        assert_eq!(Device::new(stream).answer().await, None);
    }
    ward.until(|counters| counters.turned_away.value() == 1).await;
    ward.end().await;
}

#[tokio::test]
async fn every_message_of_the_corpus_is_stored_byte_for_byte() {
    let mut ward = Ward::open("").await;
    let mut device = ward.device().await;
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/hl7");
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "hl7"));
    files.sort();
    assert!(files.len() >= 60);
    for path in files {
        let body = std::fs::read(&path).unwrap();
        device.say(&body).await;
        assert!(ward.stored().await.1 == body, "{}", path.display());
    }
    ward.end().await;
}

#[tokio::test]
async fn an_address_that_is_taken_is_told_at_once_and_tried_until_it_is_free() {
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let ward = Ward::open("").await;
    let text = format!("listen = \"{}\"", taken.local_addr().unwrap());
    let config: MllpConfig = toml::from_str(&text).unwrap();
    let (_targets, routed) = watch::channel(Arc::from([]));
    let intake = Intake::new("second".parse().unwrap(), "mllp", Class::Clinical, ward.spool.clone(), routed);
    let (counters, stop) = (Arc::clone(intake.counters()), Stop::new());
    let mut started = SourceConfig::Mllp(config).start(intake, stop.clone()).await;
    assert!(started.first.is_err());
    drop(taken);
    timeout(LIMIT, started.endpoint.wait_for(|endpoint| !endpoint.is_empty())).await.unwrap().unwrap();
    let trouble = || counters.trouble.lock().unwrap().clone();
    assert_eq!(trouble(), None);
    stop.cancel();
    timeout(LIMIT, started.task).await.unwrap().unwrap();
    ward.end().await;
}
