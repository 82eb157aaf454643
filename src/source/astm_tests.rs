//! Tests of the astm source over pipes and a real spool: what the analyser is told, and what is stored.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Duration, advance, pause, resume, timeout};
use tokio_util::sync::CancellationToken;

use super::astm_assembly::{Assembly, OTHER_CONTENT_TYPE};
use super::astm_part::{Kind, Part};
use super::astm_session::{Settings, serve};
use super::astm_transfers::{REJOIN_TIME, Transfers};
use super::intake::{About, GATHER_BYTES, Intake};
use super::{Stop, astm_gather};
use crate::envelope::{Class, Envelope, Flags};
use crate::spool::{Disk, IN_FLIGHT_BYTES_MAX, Secret, Spool, SpoolConfig};
use crate::values::Name;
use crate::wire::astm::{ACK, ENQ, EOT, Frame, NAK, encode};
use crate::wire::astm_record::MEDIA_TYPE;

/// What the spool writes at once.
const BLOCK: usize = 4096;

/// A source on a spool that outlives it.
struct Running {
    intake: Intake,
    settings: Arc<Settings>,
    assembling: JoinHandle<()>,
    done: CancellationToken,
    stop: Stop,
}

struct Box {
    folder: tempfile::TempDir,
    spool: Spool,
    targets: watch::Sender<Arc<[Name]>>,
}

impl Box {
    fn new() -> Self {
        Self::of(tempfile::tempdir().unwrap())
    }

    fn of(folder: tempfile::TempDir) -> Self {
        let config: SpoolConfig = toml::from_str("path = '/unused'\nkey = 'unused'").unwrap();
        let disk = Arc::new(Disk::open(folder.path()).unwrap());
        let spool = Spool::open(disk, Secret::new([7; 32]), &config).unwrap();
        Self { folder, spool, targets: watch::Sender::new(Arc::from(["lis".parse().unwrap()])) }
    }

    /// The only segment of the log, as it is on the disk.
    fn segment(&self) -> (PathBuf, Vec<u8>) {
        let files = std::fs::read_dir(self.folder.path().join("clinical")).unwrap().map(|entry| entry.unwrap().path());
        let mut written = files.map(|path| (path.clone(), std::fs::read(path).unwrap()));
        written.find(|(_, bytes)| bytes.chunks(BLOCK).skip(2).any(|block| block.iter().any(|byte| *byte != 0))).unwrap()
    }

    async fn start(&self) -> Running {
        self.start_with(1 << 20).await
    }

    async fn start_with(&self, message_bytes_max: u64) -> Running {
        self.start_holding(message_bytes_max, None).await
    }

    async fn start_holding(&self, message_bytes_max: u64, held_max: Option<usize>) -> Running {
        let name = "haematology".parse().unwrap();
        let intake = Intake::new(name, "astm", Class::Clinical, self.spool.clone(), self.targets.subscribe());
        let transfers = Arc::<Transfers>::default();
        let mut assembly = Assembly::begin(&intake, Arc::clone(&transfers)).await;
        assembly.held_max = held_max.unwrap_or(assembly.held_max);
        let (parts, gather) = astm_gather::open(&intake, Arc::clone(&transfers));
        tokio::spawn(gather.run());
        let settings = Arc::new(Settings::new(message_bytes_max, transfers, parts));
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
        let (line, text) = (String::new(), text.as_bytes());
        let part = Part { transfer: 7, ordinal, start: 0, record, kind, link: 7, alone: true, line, text };
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
async fn a_message_that_was_stored_is_not_made_again_after_a_crash_though_its_frames_wait_behind_another_line() {
    let the_box = Box::new();
    let running = the_box.start().await;
    let (mut slow, mut quick) = (running.line("10.0.0.5"), running.line("10.0.0.6"));
    slow.asks(&[ENQ]).await;
    assert_eq!(slow.frame(1, RESULT[0]).await, ACK);
    // The second message ends in the frame in which the third begins; and twice the same is one.
    quick.transfer(&["H|\\^&|2\r", "L|1|N\rH|\\^&|3\r", "L|1|N\r"]).await;
    quick.transfer(&["H|\\^&|2\r", "L|1|N\r"]).await;
    quick.send(b"\x05\x02\x1emtrsl|pi1|\x1d3f\x03").await;
    assert_eq!((quick.answer().await, quick.answer().await), (ACK, ACK));
    quick.transfer(&["H|\\^&|4\r", "P|1\r"]).await;
    let before: Vec<_> = the_box.texts(4).await;
    assert_eq!(before.last().unwrap(), &("H|\\^&|4\rP|1\r".to_owned(), Flags::INCOMPLETE));
    running.crash();
    let running = the_box.start().await;
    assert_eq!(running.intake.counters().received.value(), 0, "a message was made again");
    let mut slow = running.line("10.0.0.5");
    for number in 2..=5 {
        assert_eq!(slow.frame(number, RESULT[usize::from(number) - 1]).await, ACK);
    }
    let after = the_box.texts(5).await;
    assert_eq!((&after[..4], &after[4]), (&before[..], &(whole(), Flags::default())));
    running.stop().await;
    assert_eq!(the_box.unfinished(), 0);
}

#[tokio::test]
async fn two_analysers_behind_one_address_never_get_into_each_others_messages_after_a_crash() {
    let the_box = Box::new();
    let running = the_box.start().await;
    let (mut one, mut two) = (running.line("10.0.0.5"), running.line("10.0.0.5"));
    for (analyser, name) in [(&mut one, "one"), (&mut two, "two")] {
        analyser.asks(&[ENQ]).await;
        assert_eq!(analyser.frame(1, &format!("H|\\^&|{name}\r")).await, ACK);
        assert_eq!(analyser.frame(2, "P|1\r").await, ACK);
    }
    running.crash();
    let running = the_box.start().await;
    let (mut one, mut two) = (running.line("10.0.0.5"), running.line("10.0.0.5"));
    for analyser in [&mut one, &mut two] {
        assert_eq!(analyser.frame(3, "L|1|N\r").await, NAK, "whose it is can't be known");
        assert_eq!(analyser.frame(2, "P|1\r").await, NAK);
    }
    one.transfer(&["H|\\^&|one\r", "P|1\r", "L|1|N\r"]).await;
    let texts = the_box.texts(3).await;
    for text in ["H|\\^&|one\rP|1\r", "H|\\^&|two\rP|1\r"] {
        assert!(texts.contains(&(text.to_owned(), Flags::INCOMPLETE)), "{texts:?}");
    }
    assert!(texts.contains(&("H|\\^&|one\rP|1\rL|1|N\r".to_owned(), Flags::default())), "{texts:?}");
    running.stop().await;
}

#[tokio::test]
async fn nobody_goes_on_with_a_message_of_which_the_disk_lost_frames_though_the_number_fits() {
    let the_box = Box::new();
    let running = the_box.start().await;
    let (mut analyser, mut other) = (running.line(""), running.line("10.0.0.6"));
    analyser.asks(&[ENQ]).await;
    assert_eq!(analyser.frame(1, "H|\\^&|1\r").await, ACK);
    assert_eq!(analyser.frame(2, "P|1\r").await, ACK);
    let (_, before) = the_box.segment();
    for number in 3..=10u8 {
        assert_eq!(analyser.frame(number % 8, &format!("R|{number}\r")).await, ACK);
    }
    let (path, mut after) = the_box.segment();
    other.asks(&[ENQ]).await;
    assert_eq!(other.frame(1, "H|\\^&|2\r").await, ACK);
    running.crash();
    the_box.spool.close();
    let written =
        before.chunks(BLOCK).zip(after.clone().chunks(BLOCK)).map(|(old, new)| old != new).collect::<Vec<_>>();
    after = std::fs::read(&path).unwrap();
    for (block, _) in after.chunks_mut(BLOCK).zip(written).filter(|(_, lost)| *lost) {
        block.fill(0);
    }
    std::fs::write(&path, after).unwrap();
    let the_box = Box::of(the_box.folder);
    let running = the_box.start().await;
    let mut analyser = running.line("");
    assert_eq!(analyser.frame(3, "L|1|N\r").await, NAK, "eight frames before it are lost");
    running.stop().await;
    let texts = the_box.texts(2).await;
    assert!(texts.contains(&("H|\\^&|1\rP|1\r".to_owned(), Flags::INCOMPLETE)), "{texts:?}");
}

#[tokio::test]
async fn what_came_without_an_enquiry_does_not_hold_up_the_transfer_that_is_gone_on_with_behind_it() {
    let the_box = Box::new();
    let running = the_box.start().await;
    let mut analyser = running.line("");
    analyser.asks(&[ENQ]).await;
    assert_eq!(analyser.frame(1, RESULT[0]).await, ACK);
    running.crash();
    let running = the_box.start().await;
    let mut analyser = running.line("10.0.0.5");
    analyser.send(b"H|\\^&|7\rP|1\r\x02").await;
    analyser.hangs_up().await;
    let mut analyser = running.line("");
    for number in 2..=5 {
        assert_eq!(analyser.frame(number, RESULT[usize::from(number) - 1]).await, ACK);
    }
    let texts = the_box.texts(1).await;
    assert_eq!(texts[0], (whole(), Flags::default()));
    analyser.hangs_up().await;
    running.stop().await;
    assert_eq!(the_box.unfinished(), 0);
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
async fn a_message_that_stays_open_holds_up_only_so_many_frames_of_others() {
    let the_box = Box::new();
    let running = the_box.start_holding(1 << 20, Some(12)).await;
    let (mut slow, mut quick) = (running.line("10.0.0.5"), running.line("10.0.0.6"));
    slow.asks(&[ENQ]).await;
    assert_eq!(slow.frame(1, RESULT[0]).await, ACK);
    for number in 0..4 {
        quick.transfer(&[&format!("H|\\^&|Q{number}\r"), "P|1\r", "L|1|N\r"]).await;
    }
    let texts = the_box.texts(5).await;
    assert!(texts.contains(&(RESULT[0].to_owned(), Flags::INCOMPLETE)), "{texts:?}");
    for number in 2..=5 {
        assert_eq!(slow.frame(number, RESULT[usize::from(number) - 1]).await, ACK);
    }
    assert_eq!(the_box.texts(6).await[5], (RESULT[1..].concat(), Flags::INCOMPLETE));
    running.stop().await;
    assert_eq!(the_box.unfinished(), 0);
}

#[tokio::test]
async fn frames_that_come_at_the_same_time_share_a_sync_and_each_is_answered() {
    const ROUNDS: u8 = 20;
    let the_box = Box::new();
    let running = the_box.start().await;
    let mut analysers: Vec<_> = (0..8).map(|number| running.line(&format!("10.0.0.{number}"))).collect();
    for analyser in &mut analysers {
        assert_eq!(analyser.asks(&[ENQ]).await, ACK);
    }
    let before = the_box.spool.logs()[0].syncs;
    for round in 1..=ROUNDS {
        for analyser in &mut analysers {
            analyser.send(&frame(round % 8, if round == 1 { "H|\\^&\r" } else { "R|1|^^^WBC|4.5\r" })).await;
        }
        for analyser in &mut analysers {
            assert_eq!(analyser.answer().await, ACK);
        }
    }
    let syncs = the_box.spool.logs()[0].syncs - before;
    assert!(syncs <= u64::from(ROUNDS) * 3, "{syncs} syncs for {ROUNDS} times 8 frames");
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

#[tokio::test]
async fn an_analyser_that_goes_on_after_frames_that_were_not_taken_has_given_up_nothing() {
    let the_box = Box::new();
    let running = the_box.start().await;
    let mut analyser = running.line("");
    analyser.asks(&[ENQ]).await;
    assert_eq!(analyser.frame(1, RESULT[0]).await, ACK);
    running.crash();
    let running = the_box.start().await;
    let mut analyser = running.line("");
    let mut damaged = frame(2, RESULT[1]);
    damaged[3] ^= 1;
    assert_eq!(analyser.asks(&damaged).await, NAK);
    for number in 2..=5 {
        assert_eq!(analyser.frame(number, RESULT[usize::from(number) - 1]).await, ACK);
    }
    analyser.send(&[EOT]).await;
    assert_eq!(the_box.texts(1).await, [(whole(), Flags::default())]);
    assert_eq!(running.intake.counters().rejected.value(), 0);
    running.stop().await;
}

#[tokio::test]
async fn the_rest_of_a_damaged_frame_is_never_stored_as_records() {
    let the_box = Box::new();
    let running = the_box.start().await;
    let mut analyser = running.line("");
    analyser.asks(&[ENQ]).await;
    let text = "C|1|I|abcd\rH|\\^&|7\rP|1\rL|1|N\r";
    let mut damaged = frame(1, text);
    // Noise makes an end of the frame out of a letter: what stands behind it looks like a record set.
    damaged[8] = 3;
    assert_eq!(analyser.asks(&damaged).await, NAK);
    assert_eq!(analyser.frame(1, text).await, ACK);
    analyser.send(&[EOT]).await;
    let texts = the_box.texts(2).await;
    assert_eq!(texts[1], ("H|\\^&|7\rP|1\rL|1|N\r".to_owned(), Flags::default()), "{texts:?}");
    running.stop().await;
    assert_eq!(the_box.messages(2).await.len(), 2);
}

#[tokio::test]
async fn an_analyser_does_not_go_on_with_what_was_read_back_in_part() {
    let the_box = Box::new();
    let running = the_box.start().await;
    // Nobody makes messages of the frames that come now.
    running.assembling.abort();
    let (mut one, mut two) = (running.line("10.0.0.5"), running.line("10.0.0.6"));
    one.asks(&[ENQ]).await;
    assert_eq!(one.frame(1, RESULT[0]).await, ACK);
    two.transfer(&RESULT).await;
    one.hangs_up().await;
    two.hangs_up().await;
    let next = Frame { number: 2, text: RESULT[1].into(), last: true };
    for (log_takes_messages, goes_on) in [(true, true), (false, false)] {
        if !log_takes_messages {
            the_box.spool.close();
        }
        let transfers = Arc::<Transfers>::default();
        let assembly = Assembly::begin(&running.intake, Arc::clone(&transfers)).await;
        assert_eq!(transfers.rejoin("10.0.0.5", &next).is_some(), goes_on);
        drop(assembly);
        if log_takes_messages {
            // The whole message is stored now; another one of them is there for the second start.
            let mut two = running.line("10.0.0.6");
            two.transfer(&["H|\\^&|8\r", "L|1|N\r"]).await;
            two.hangs_up().await;
        }
    }
}

/// A record that needs room in memory for what is made of it.
fn long_record() -> String {
    format!("C|1|I|{}\r", "x".repeat(5_000))
}

#[tokio::test]
async fn an_analyser_that_waits_for_room_holds_none_that_others_wait_for() {
    let the_box = Box::new();
    let running = the_box.start().await;
    let mut analyser = running.line("");
    analyser.asks(&[ENQ]).await;
    assert_eq!(analyser.frame(1, RESULT[0]).await, ACK);
    // Only what the room for one message takes is left.
    let all_others = running.intake.share(IN_FLIGHT_BYTES_MAX - GATHER_BYTES).await;
    assert_eq!(analyser.frame(2, &long_record()).await, ACK);
    drop(all_others);
    assert_eq!(analyser.frame(3, RESULT[4]).await, ACK);
    assert_eq!(the_box.texts(1).await[0].0, [RESULT[0], &long_record(), RESULT[4]].concat());
    running.stop().await;
}

#[tokio::test]
async fn a_line_that_is_cut_while_it_waits_for_room_knows_which_frame_was_its_last() {
    let the_box = Box::new();
    let running = the_box.start().await;
    let mut analyser = running.line("");
    analyser.asks(&[ENQ]).await;
    assert_eq!(analyser.frame(1, RESULT[0]).await, ACK);
    let mut held = Vec::new();
    while let Ok(share) = timeout(Duration::from_millis(50), running.intake.gather_share()).await {
        held.push(share);
    }
    analyser.send(&frame(2, &long_record())).await;
    while the_box.unfinished() < 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // Stored, and on its way to wait for room.
    assert!(timeout(Duration::from_millis(200), analyser.answer()).await.is_err(), "there is no room");
    analyser.session.abort();
    assert!(analyser.session.await.is_err());
    drop(held);
    let mut analyser = running.line("");
    assert_eq!(analyser.frame(2, &long_record()).await, ACK, "its ACK never left, so it is said again");
    assert_eq!(analyser.frame(3, RESULT[4]).await, ACK);
    assert_eq!(the_box.texts(1).await[0].0, [RESULT[0], &long_record(), RESULT[4]].concat());
    running.stop().await;
}
