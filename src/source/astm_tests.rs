//! Tests of the astm source over pipes and a real spool: what the analyser is told, and what is stored.

use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Duration, advance, pause, resume, timeout};
use tokio_util::sync::CancellationToken;

use super::Stop;
use super::astm_assembly::{Assembly, OTHER_CONTENT_TYPE};
use super::astm_part::{Kind, Part};
use super::astm_session::{Settings, serve};
use super::astm_transfers::REJOIN_TIME;
use super::intake::{About, Intake};
use crate::envelope::{Class, Envelope, Flags};
use crate::spool::{Disk, Secret, Spool, SpoolConfig};
use crate::values::Name;
use crate::wire::astm::{ACK, ENQ, EOT, NAK, encode};
use crate::wire::astm_record::MEDIA_TYPE;

/// A source on a spool that outlives it.
struct Running {
    intake: Intake,
    settings: Arc<Settings>,
    assembling: JoinHandle<()>,
    done: CancellationToken,
    stop: Stop,
}

struct Box {
    _folder: tempfile::TempDir,
    spool: Spool,
    targets: watch::Sender<Arc<[Name]>>,
}

impl Box {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config: SpoolConfig = toml::from_str("path = '/unused'\nkey = 'unused'").unwrap();
        let spool = Spool::open(Arc::new(Disk::open(folder.path()).unwrap()), Secret::random(), &config).unwrap();
        Self { _folder: folder, spool, targets: watch::Sender::new(Arc::from(["lis".parse().unwrap()])) }
    }

    async fn start(&self) -> Running {
        self.start_with(1 << 20).await
    }

    async fn start_with(&self, message_bytes_max: u64) -> Running {
        let name = "haematology".parse().unwrap();
        let intake = Intake::new(name, "astm", Class::Clinical, self.spool.clone(), self.targets.subscribe());
        let settings = Arc::new(Settings::new(message_bytes_max));
        let assembly = Assembly::begin(&intake, Arc::clone(&settings.transfers)).await;
        let done = CancellationToken::new();
        let assembling = tokio::spawn(assembly.run(done.clone()));
        Running { intake, settings, assembling, done, stop: Stop::new() }
    }

    /// The messages for the upstream, once there are so many; no more come.
    async fn messages(&self, count: usize) -> Vec<Arc<Envelope>> {
        let mut lane = self.spool.lane(Class::Clinical, &"haematology".parse().unwrap(), &"lis".parse().unwrap());
        let mut all = Vec::new();
        while all.len() < count {
            let entry = timeout(Duration::from_secs(60), lane.next()).await.expect("too few messages");
            all.push(entry.content.unwrap());
        }
        assert_eq!(lane.waiting(), 0, "too many messages");
        all
    }

    async fn texts(&self, count: usize) -> Vec<(String, Flags)> {
        let mut texts = Vec::new();
        for message in self.messages(count).await {
            let body = message.body.collect().await.unwrap();
            texts.push((String::from_utf8_lossy(&body).into_owned(), message.meta.flags));
        }
        texts
    }

    fn unfinished(&self) -> u64 {
        let lanes = self.spool.lanes();
        lanes.iter().filter(|lane| lane.upstream == Name::assembly()).map(|lane| lane.backlog).sum()
    }
}

impl Running {
    fn line(&self, place: &str) -> Analyser {
        let (ours, theirs) = tokio::io::duplex(64 << 10);
        let session = serve(ours, place.to_owned(), Arc::clone(&self.settings), self.intake.clone(), self.stop.clone());
        Analyser { stream: theirs, session: tokio::spawn(session) }
    }

    /// The power goes: nothing of the memory is left.
    fn crash(self) {
        self.assembling.abort();
    }

    async fn stop(self) {
        self.stop.cancel();
        self.done.cancel();
        self.assembling.await.unwrap();
    }
}

struct Analyser {
    stream: DuplexStream,
    session: JoinHandle<()>,
}

impl Analyser {
    async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    async fn answer(&mut self) -> u8 {
        let mut byte = [0];
        timeout(Duration::from_secs(60), self.stream.read_exact(&mut byte)).await.expect("no answer").unwrap();
        byte[0]
    }

    async fn asks(&mut self, bytes: &[u8]) -> u8 {
        self.send(bytes).await;
        self.answer().await
    }

    async fn frame(&mut self, number: u8, text: &str) -> u8 {
        self.asks(&frame(number, text)).await
    }

    /// ENQ, one frame for each record, EOT.
    async fn transfer(&mut self, records: &[&str]) {
        assert_eq!(self.asks(&[ENQ]).await, ACK);
        for (record, number) in records.iter().zip(1u8..) {
            assert_eq!(self.frame(number, record).await, ACK);
        }
        self.send(&[EOT]).await;
    }

    async fn hangs_up(self) {
        drop(self.stream);
        self.session.await.unwrap();
    }
}

fn frame(number: u8, text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    encode(number, text.as_bytes(), true, &mut out);
    out
}

const RESULT: [&str; 5] =
    ["H|\\^&|1||ABX|||||||P|1|20261122101500\r", "P|1||X-7\r", "O|1|S-1\r", "R|1|^^^WBC|4.5|10*3/uL\r", "L|1|N\r"];

fn whole() -> String {
    RESULT.concat()
}

#[tokio::test]
async fn a_result_is_one_message_in_the_analysers_own_bytes() {
    let the_box = Box::new();
    let running = the_box.start().await;
    let mut analyser = running.line("10.0.0.5");
    analyser.transfer(&RESULT).await;
    let messages = the_box.messages(1).await;
    let meta = &messages[0].meta;
    assert_eq!((meta.content_type.as_str(), meta.control_id.as_slice()), (MEDIA_TYPE, &b"1"[..]));
    assert_eq!((meta.flags, meta.protocol.as_str()), (Flags::default(), "astm"));
    assert_eq!(the_box.texts(1).await[0].0, whole());
    analyser.hangs_up().await;
    let counters = Arc::clone(running.intake.counters());
    running.stop().await;
    assert_eq!((counters.received.value(), counters.stored.value(), counters.flagged.value()), (1, 1, 0));
    assert_eq!(the_box.unfinished(), 0);
}

#[tokio::test]
async fn several_record_sets_in_one_transfer_or_one_frame_are_several_messages() {
    let the_box = Box::new();
    let running = the_box.start().await;
    let mut analyser = running.line("");
    analyser.transfer(&["H|\\^&|1\rP|1\rL|1|N\rH|\\^&|2\r", "P|1\r", "L|1|N\r", "H|\\^&|3\rL|1"]).await;
    let texts: Vec<String> = the_box.texts(3).await.into_iter().map(|(text, _)| text).collect();
    assert_eq!(
        texts,
        ["H|\\^&|1\rP|1\rL|1|N\r", "H|\\^&|2\rP|1\rL|1|N\r", "H|\\^&|3\rL|1\r"],
        "the CR of the last is ours"
    );
    running.stop().await;
}

#[tokio::test]
async fn a_second_copy_is_acknowledged_and_stored_once() {
    let the_box = Box::new();
    let running = the_box.start().await;
    let mut analyser = running.line("");
    for _ in 0..2 {
        analyser.transfer(&RESULT).await;
    }
    analyser.asks(&[ENQ]).await;
    for _ in 0..3 {
        assert_eq!(analyser.frame(1, "H|\\^&|2\r").await, ACK, "our ACK got lost");
    }
    assert_eq!(analyser.frame(2, "L|1|N\r").await, ACK);
    assert_eq!(the_box.texts(2).await[1].0, "H|\\^&|2\rL|1|N\r");
    assert_eq!(running.intake.counters().repeats.value(), 1);
    running.stop().await;
}

#[tokio::test]
async fn frames_on_both_sides_of_one_that_the_disk_lost_are_not_taken_for_one_message() {
    let the_box = Box::new();
    let running = the_box.start().await;
    // The third frame is lost: the second breaks off in the middle of a result, the fourth goes on in another.
    for (ordinal, text, record) in
        [(0, "H|\\^&\r", None), (1, "R|1|^^^WBC|5", None), (3, "3.1|g/L\rL|1|N\r", Some(b'R'))]
    {
        let kind = Kind::Frame { number: 1, last: ordinal != 1 };
        let part = Part { transfer: 7, ordinal, start: 0, record, kind, line: String::new(), text: text.as_bytes() };
        let mut incoming = running.intake.begin();
        incoming.write(&part.encode()).await.unwrap();
        let about = About { content_type: "test".into(), control_id: Vec::new(), flags: Flags::default() };
        incoming.commit_part(about).await.unwrap();
    }
    running.stop().await;
    let texts = the_box.texts(2).await;
    let expected = ["H|\\^&\rR|1|^^^WBC|5", "3.1|g/L\rL|1|N\r"].map(|text| (text.to_owned(), Flags::INCOMPLETE));
    assert_eq!(texts, expected);
    assert_eq!(the_box.unfinished(), 0);
}

#[tokio::test]
async fn what_was_acknowledged_before_a_crash_is_joined_by_the_analyser_that_goes_on() {
    let the_box = Box::new();
    let running = the_box.start().await;
    let mut analyser = running.line("");
    analyser.asks(&[ENQ]).await;
    for number in 1..=3 {
        assert_eq!(analyser.frame(number, RESULT[usize::from(number) - 1]).await, ACK);
    }
    running.crash();
    let running = the_box.start().await;
    let mut analyser = running.line("");
    // It did not see the last ACK, and says the frame again.
    for number in 3..=5 {
        assert_eq!(analyser.frame(number, RESULT[usize::from(number) - 1]).await, ACK);
    }
    assert_eq!(the_box.texts(1).await, [(whole(), Flags::default())]);
    running.stop().await;
    assert_eq!(the_box.unfinished(), 0);
}

#[tokio::test]
async fn what_was_acknowledged_before_a_crash_is_a_message_of_its_own_when_the_analyser_begins_anew() {
    let the_box = Box::new();
    let running = the_box.start().await;
    let mut analyser = running.line("");
    analyser.asks(&[ENQ]).await;
    for number in 1..=3 {
        assert_eq!(analyser.frame(number, RESULT[usize::from(number) - 1]).await, ACK);
    }
    running.crash();
    let running = the_box.start().await;
    running.line("").transfer(&RESULT).await;
    let texts = the_box.texts(2).await;
    assert!(texts.contains(&(RESULT[..3].concat(), Flags::INCOMPLETE)), "{texts:?}");
    assert!(texts.contains(&(whole(), Flags::default())), "{texts:?}");
    running.stop().await;
}

#[tokio::test]
async fn what_an_analyser_never_goes_on_with_is_stored_as_incomplete_after_a_while() {
    let the_box = Box::new();
    let running = the_box.start().await;
    let mut analyser = running.line("10.0.0.5");
    analyser.asks(&[ENQ]).await;
    assert_eq!(analyser.frame(1, RESULT[0]).await, ACK);
    analyser.hangs_up().await;
    assert_eq!(the_box.unfinished(), 1);
    pause();
    advance(REJOIN_TIME).await;
    resume();
    assert_eq!(the_box.texts(1).await, [(RESULT[0].to_owned(), Flags::INCOMPLETE)]);
    running.stop().await;
}

#[tokio::test]
async fn an_enquiry_in_the_middle_leaves_what_was_acknowledged_and_begins_anew() {
    let the_box = Box::new();
    let running = the_box.start().await;
    let mut analyser = running.line("");
    analyser.asks(&[ENQ]).await;
    assert_eq!(analyser.frame(1, RESULT[0]).await, ACK);
    analyser.transfer(&RESULT).await;
    let texts = the_box.texts(2).await;
    assert!(texts.contains(&(RESULT[0].to_owned(), Flags::INCOMPLETE)), "{texts:?}");
    assert!(texts.contains(&(whole(), Flags::default())), "{texts:?}");
    running.stop().await;
}

#[tokio::test]
async fn a_frame_that_does_not_come_through_is_asked_for_until_the_analyser_gives_up() {
    let the_box = Box::new();
    let running = the_box.start().await;
    let mut analyser = running.line("");
    analyser.asks(&[ENQ]).await;
    let mut wrong = frame(1, RESULT[0]);
    wrong[5] ^= 1;
    for _ in 0..6 {
        assert_eq!(analyser.asks(&wrong).await, NAK);
    }
    analyser.send(&[EOT]).await;
    analyser.transfer(&RESULT).await;
    assert_eq!(the_box.texts(1).await[0].0, whole());
    assert_eq!(running.intake.counters().rejected.value(), 1);
    running.stop().await;
}

#[tokio::test]
async fn interleaved_analysers_do_not_get_into_each_others_messages_nor_hold_them_up() {
    let the_box = Box::new();
    let running = the_box.start().await;
    let (mut one, mut two) = (running.line("10.0.0.5"), running.line("10.0.0.5"));
    assert_eq!((one.asks(&[ENQ]).await, two.asks(&[ENQ]).await), (ACK, ACK));
    for (number, record) in (1u8..).zip(["H|\\^&|1\r", "P|1\r"]) {
        one.frame(number, record).await;
        two.frame(number, &record.replace("|1", "|2")).await;
    }
    two.frame(3, "L|2\r").await;
    assert_eq!(the_box.texts(1).await[0].0, "H|\\^&|2\rP|2\rL|2\r");
    one.frame(3, "L|1\r").await;
    assert_eq!(the_box.texts(2).await[1].0, "H|\\^&|1\rP|1\rL|1\r");
    running.stop().await;
    assert_eq!(the_box.unfinished(), 0);
}

#[tokio::test]
async fn records_without_framing_and_text_that_is_not_astm_are_stored_as_well() {
    let the_box = Box::new();
    let running = the_box.start().await;
    let mut analyser = running.line("");
    analyser.send(whole().as_bytes()).await;
    assert_eq!(the_box.texts(1).await, [(whole(), Flags::default())]);
    assert_eq!(analyser.asks(&[ENQ]).await, ACK);
    assert_eq!(analyser.asks(b"\x02\x1emtrsl|pi1|\x1d3f\x03").await, ACK);
    let messages = the_box.messages(2).await;
    assert_eq!(messages[1].meta.content_type, OTHER_CONTENT_TYPE);
    assert_eq!(the_box.texts(2).await[1], ("\x1emtrsl|pi1|\x1d3f".to_owned(), Flags::UNREADABLE));
    running.stop().await;
}

#[tokio::test]
async fn a_frame_that_was_stored_though_its_ack_never_left_is_not_stored_twice() {
    let the_box = Box::new();
    let running = the_box.start().await;
    let mut analyser = running.line("");
    assert_eq!(analyser.asks(&[ENQ]).await, ACK);
    assert_eq!(analyser.frame(1, RESULT[0]).await, ACK);
    // The line is cut while the frame is on its way to the disk.
    analyser.send(&frame(2, RESULT[1])).await;
    analyser.session.abort();
    assert!(analyser.session.await.is_err());
    let mut analyser = running.line("");
    for number in 2..=5 {
        assert_eq!(analyser.frame(number, RESULT[usize::from(number) - 1]).await, ACK);
    }
    assert_eq!(the_box.texts(1).await, [(whole(), Flags::default())]);
    running.stop().await;
}

#[tokio::test]
async fn a_question_is_stored_and_counted() {
    let the_box = Box::new();
    let running = the_box.start().await;
    running.line("").transfer(&["H|\\^&|9\r", "Q|1|^S-1||ALL\r", "L|1|N\r"]).await;
    the_box.messages(1).await;
    let status = running.intake.counters().snapshot("astm", "", running.intake.uptime_ms() + 1);
    assert_eq!((status.queries, status.last_query_s), (1, Some(0)));
    running.stop().await;
}

#[tokio::test]
async fn a_message_over_the_limit_comes_in_pieces_and_nothing_of_it_is_lost() {
    let the_box = Box::new();
    let running = the_box.start_with(200).await;
    let records: Vec<String> = (0..6).map(|number| format!("C|{number}|I|{}\r", "x".repeat(90))).collect();
    let records: Vec<&str> =
        std::iter::once("H|\\^&|1\r").chain(records.iter().map(String::as_str)).chain(["L|1|N\r"]).collect();
    assert!(records.len() <= 8);
    running.line("").transfer(&records).await;
    let texts = the_box.texts(3).await;
    assert_eq!(texts.iter().map(|(text, _)| text.as_str()).collect::<String>(), records.concat());
    assert!(texts.iter().all(|(_, flags)| *flags == Flags::INCOMPLETE), "{texts:?}");
    running.stop().await;
}
