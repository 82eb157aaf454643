//! What becomes of a device's frames: a device at the end of a pseudo-terminal, or sending datagrams, and the records that are stored.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UdpSocket;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::plug_tests::{Device, LIMIT, Room};
use super::readings::Readings;
use super::serial::SerialSourceConfig;
use super::serial_line::{Caught, store_all};
use super::udp::UdpConfig;
use super::{SourceConfig, Started};
use crate::spool::IN_FLIGHT_BYTES_MAX;
use crate::telemetry::record::{GapReason, Raw, Record, Value};
use crate::values::{Problems, Section};

async fn start(room: &Room, config: SourceConfig) -> Started {
    let started = config.start(room.intake.clone(), room.stop.clone()).await;
    started.first.clone().unwrap();
    started
}

async fn serial(room: &Room, profile: &str) -> Started {
    let text = format!("serial = {{ port = {:?} }}\nprofile = {profile:?}", room.port());
    let config: SerialSourceConfig = toml::from_str(&text).unwrap();
    let started = start(room, SourceConfig::Serial(config)).await;
    // What a device says before its port is opened is nobody's: a port is opened with nothing in it.
    room.until_plugged(true).await;
    started
}

async fn end(room: Room, started: Started) {
    room.stop.cancel();
    timeout(LIMIT, started.task).await.expect("the source did not stop").unwrap();
}

/// The next record of the device itself.
async fn reading(room: &mut Room) -> Record {
    loop {
        let record = room.record().await;
        if record.stream != "line" {
            return record;
        }
    }
}

fn number(record: &Record, at: usize) -> String {
    match record.observations[at].value.as_ref().unwrap() {
        Value::Number(text) | Value::Text(text) => text.clone(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_oximeter_is_read_and_its_bytes_travel_with_its_values() {
    let mut room = Room::new("serial");
    let mut device = Device::plug_in(&room.port());
    let started = serial(&room, "nonin-ascii").await;
    device.say(b"SPO2=098 HR=061\r\nSPO2=--- HR");
    device.say(b"=---\r\n");
    let first = reading(&mut room).await;
    assert_eq!((first.seq, number(&first, 0).as_str(), number(&first, 1).as_str()), (1, "098", "061"));
    assert_eq!(first.raw, Some(Raw::of(b"SPO2=098 HR=061\r\n")));
    let second = reading(&mut room).await;
    assert_eq!((second.seq, second.boot == first.boot), (2, true));
    assert!(second.observations.iter().all(|value| value.value.is_none()), "a sentinel became a value");
    end(room, started).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_that_no_profile_knows_is_stored_as_it_came_and_shown() {
    let mut room = Room::new("serial");
    let mut device = Device::plug_in(&room.port());
    let started = serial(&room, "nonin-ascii").await;
    device.say(b"\x00\xff\x80 {noise}\r\nSPO2=98 HR=61\r\n");
    let odd = reading(&mut room).await;
    assert_eq!((odd.raw, odd.observations.len()), (Some(Raw::of(b"\x00\xff\x80 {noise}\r\n")), 0));
    assert_eq!(number(&reading(&mut room).await, 0), "98");
    let plug = room.intake.counters().plug.snapshot(0).unwrap();
    assert_eq!((plug.unreadable, plug.samples.as_slice()), (1, &[r"\x00\xff\x80 {noise}\r\n".to_owned()][..]));
    assert_eq!(room.intake.counters().flagged.value(), 1);
    end(room, started).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn noise_and_a_frame_without_end_fill_neither_memory_nor_log_and_are_told_as_a_gap() {
    let mut room = Room::new("serial");
    let mut device = Device::plug_in(&room.port());
    let started = serial(&room, "nonin-ascii").await;
    let began = Instant::now();
    // Twelve kilobytes a second is what 115200 baud can bring; here it comes as fast as it is taken.
    let noise: Vec<u8> = (0u32..200_000).map(|at| (at.wrapping_mul(2_654_435_761) >> 13).to_le_bytes()[0]).collect();
    let endless = vec![b'x'; 100_000];
    let heard = Arc::new(AtomicBool::new(false));
    let stop = Arc::clone(&heard);
    let task = tokio::task::spawn_blocking(move || {
        device.say(&noise);
        device.say(&endless);
        for _ in 0..200 {
            device.say(b"lost its way\x01\r\n");
        }
        // Once a second, as the device does; here sooner. What comes while all is full is told as missing.
        while !stop.load(Ordering::Relaxed) {
            device.say(b"\r\nSPO2=98 HR=61\r\n");
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    let (mut unreadable, mut told) = (0u64, 0u64);
    let last = loop {
        let record = reading(&mut room).await;
        told += record.gap.as_ref().map_or(0, |gap| gap.count.unwrap_or(0));
        if !record.observations.is_empty() {
            break record;
        }
        unreadable += 1;
        assert!(began.elapsed() < LIMIT);
    };
    assert_eq!(number(&last, 0), "98");
    assert!((1..=60).contains(&unreadable), "{unreadable} frames of noise were stored");
    let plug = room.intake.counters().plug.snapshot(0).unwrap();
    let counted = plug.unreadable + room.intake.counters().refused.value();
    assert_eq!(unreadable + told, counted, "every frame is stored or told as missing");
    assert!(matches!(last.gap.unwrap().reason, GapReason::Parse | GapReason::Overflow));
    heard.store(true, Ordering::Relaxed);
    task.await.unwrap();
    end(room, started).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_must_be_asked_is_asked_and_asked_anew_when_it_falls_silent() {
    let mut room = Room::new("serial");
    let profile = room.folder.path().join("asked.toml");
    let text = "name = \"asked\"\nsplit = \",\"\nquiet-after = \"300ms\"\nstart-up = ['I\\r']\n\
                poll = [{ say = '?\\r', every = \"100ms\" }]\n[frame]\nstart = '\\x02'\nend = '\\x03'\n";
    std::fs::write(&profile, text).unwrap();
    let device = Device::plug_in(&room.port());
    let started = serial(&room, profile.to_str().unwrap()).await;
    let mut end_of_device = tokio::fs::File::from_std(device.end.try_clone().unwrap());
    let mut heard = Vec::new();
    // Silent at first: it is greeted again and polled.
    while heard.iter().filter(|byte| **byte == b'I').count() < 2 {
        let mut bytes = [0; 16];
        let count = timeout(LIMIT, end_of_device.read(&mut bytes)).await.expect("it was not asked").unwrap();
        heard.extend_from_slice(&bytes[..count]);
    }
    assert!(heard.starts_with(b"I\r?\r"), "{}", heard.escape_ascii());
    end_of_device.write_all(b"\x0236.6,98\x03").await.unwrap();
    end_of_device.flush().await.unwrap();
    assert_eq!(number(&reading(&mut room).await, 0), "36.6");
    end(room, started).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn datagrams_are_frames_of_their_own_or_hold_several() {
    for (datagram, said, values) in
        [("frame", &b"21.5,7"[..], vec!["21.5"]), ("frames", &b"1,a\n2,b\n3,c"[..], vec!["1", "2", "3"])]
    {
        let mut room = Room::new("udp");
        let text = format!("listen = \"127.0.0.1:0\"\nprofile = \"csv\"\ndatagram = {datagram:?}");
        let config: UdpConfig = toml::from_str(&text).unwrap();
        let started = start(&room, SourceConfig::Udp(config)).await;
        let device = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = started.endpoint.borrow().clone();
        device.send_to(said, &address).await.unwrap();
        for value in values {
            let record = reading(&mut room).await;
            assert_eq!(number(&record, 0), value);
            assert_eq!(record.about[0].value, device.local_addr().unwrap().to_string());
        }
        end(room, started).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn datagrams_of_strangers_are_passed_over_and_counted() {
    let mut room = Room::new("udp");
    let text = "listen = \"127.0.0.1:0\"\nprofile = \"csv\"\nallow = [\"127.0.0.2/32\"]";
    let started = start(&room, SourceConfig::Udp(toml::from_str(text).unwrap())).await;
    let address = started.endpoint.borrow().clone();
    UdpSocket::bind("127.0.0.1:0").await.unwrap().send_to(b"no", &address).await.unwrap();
    let known = UdpSocket::bind("127.0.0.2:0").await.unwrap();
    let deadline = Instant::now() + LIMIT;
    while room.intake.counters().turned_away.value() < 1 {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    known.send_to(b"yes", &address).await.unwrap();
    assert_eq!(number(&reading(&mut room).await, 0), "yes");
    end(room, started).await;
}

#[test]
fn what_is_wrong_with_a_source_or_its_profile_is_told_at_its_key() {
    let found = |text: &str| {
        let mut problems = Problems::default();
        toml::from_str::<SerialSourceConfig>(text).unwrap().check(&mut problems);
        problems.into_found()
    };
    let keys = |text: &str| found(text).into_iter().map(|one| one.path.join(".")).collect::<Vec<_>>();
    assert_eq!(keys("serial = { port = '/dev/serial/by-path/1' }\nprofile = 'nonin-ascii'"), Vec::<String>::new());
    assert_eq!(keys("profile = 'nonin'"), ["", "profile"]);
    assert_eq!(keys("serial = { port = '/dev/serial/by-path/1' }\nprofile = 'ge-giraffe'"), ["serial.baud"]);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("own.toml");
    std::fs::write(&file, "name = \"own\"\n[frame]\nlength = 5000\n").unwrap();
    let problems = found(&format!("connect = '10.0.0.5:4000'\nprofile = {file:?}"));
    assert!(problems[0].text.contains("own.toml:3:10: length must be from 1 to 1024"), "{problems:?}");
    let mut open = Problems::default();
    toml::from_str::<UdpConfig>("listen = '0.0.0.0:1'\nprofile = 'csv'").unwrap().check(&mut open);
    assert_eq!(open.into_found()[0].path, ["listen"]);
}

/// Of frames that found no room, and frames that nobody can read, none is missing without a word, however the line ends.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_lost_before_frames_that_are_left_out_or_before_the_end_of_a_line_is_told_by_the_next_reading() {
    let mut room = Room::new("serial");
    let (profile, readings) = (nonin(), readings(&room));
    let frame = |line: &[u8], lost| caught(&room, line, lost);
    let space = Arc::new(Semaphore::new(100));
    let space = || (Arc::clone(&space).try_acquire_owned().unwrap(), room.intake.try_share(1).unwrap());
    let (queue, caught) = tokio::sync::mpsc::channel(100);
    for number in 0..62 {
        queue.send((frame(b"lost its way\x01", if number == 60 { 5 } else { 0 }), space())).await.unwrap();
    }
    drop(queue);
    store_all(caught, &profile, &room.intake, &readings).await;
    let (queue, caught) = tokio::sync::mpsc::channel(100);
    queue.send((frame(b"SPO2=98 HR=61", 0), space())).await.unwrap();
    drop(queue);
    store_all(caught, &profile, &room.intake, &readings).await;
    for _ in 0..60 {
        assert_eq!(room.record().await.gap, None);
    }
    let gap = room.record().await.gap.unwrap();
    assert_eq!((gap.reason, gap.count), (GapReason::Overflow, Some(7)), "five found no room, two were left out");
}

/// Frames hold their share until they are stored and ask for no other: else they would wait behind those who wait for theirs.
#[tokio::test(flavor = "multi_thread")]
async fn frames_that_were_caught_are_stored_while_others_wait_for_the_memory_that_they_hold() {
    let mut room = Room::new("serial");
    let (profile, readings) = (nonin(), readings(&room));
    let space = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
    let (queue, frames) = tokio::sync::mpsc::channel(1);
    queue.send((caught(&room, b"SPO2=98 HR=61", 0), (space, room.intake.try_share(1000).unwrap()))).await.unwrap();
    drop(queue);
    let rest = room.intake.share(IN_FLIGHT_BYTES_MAX - 1000).await;
    let intake = room.intake.clone();
    let mut waiting = pin!(intake.share(2000));
    let begun = poll_fn(|context| Poll::Ready(waiting.as_mut().poll(context).is_pending())).await;
    assert!(begun, "another one waits for more than is free");
    timeout(LIMIT, store_all(frames, &profile, &room.intake, &readings)).await.expect("it is stored all the same");
    room.record().await;
    drop(rest);
    timeout(LIMIT, waiting).await.expect("and then the other one has its turn");
}

fn nonin() -> Arc<super::profile::Profile> {
    super::serial::loaded(&toml::from_str::<Chosen>("profile = \"nonin-ascii\"").unwrap().profile).unwrap()
}

fn readings(room: &Room) -> tokio::sync::Mutex<Readings> {
    tokio::sync::Mutex::new(Readings::new(&room.intake, "numerics"))
}

fn caught(room: &Room, line: &[u8], lost: u64) -> Caught {
    Caught { raw: line.to_vec(), payload: Some(0..line.len()), received: room.intake.now(), lost, about: Vec::new() }
}

#[derive(serde::Deserialize)]
struct Chosen {
    profile: super::profile::ProfileRef,
}
