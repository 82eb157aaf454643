//! The control socket between a served operator and the real executable (or a hostile peer) on a real Unix socket.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio_util::sync::CancellationToken;
use wardgate::admin::access::ControlConfig;
use wardgate::admin::answers::{
    Code, Count, DeadLetter, DeadList, ExportReport, FindReport, ImportReport, KeysReport, Refusal, Released,
    ReplayReport, SpoolUsage, VerifyReport,
};
use wardgate::admin::control::{ControlError, ControlSocket};
use wardgate::admin::ids::IdPattern;
use wardgate::admin::operator::{Answer, Inlet, Operator, Outlet};
use wardgate::admin::scrape::{MetricsConfig, MetricsPage};
use wardgate::admin::verbs::{
    DeadQuery, DeadSelection, DestroyRequest, ExportRequest, FindRequest, ImportRequest, LaneSelection, ReplayRequest,
};
use wardgate::envelope::{Class, MessageId};
use wardgate::status::{SourceCounters, Status};

/// Longer than any of this takes on a slow machine; only a failure waits for it.
const DEADLINE: Duration = Duration::from_secs(20);

/// A small box: one dead letter with a body of many pieces, and counters of what was done.
#[derive(Default)]
struct SmallBox {
    discarded: AtomicU64,
    imported: AtomicU64,
    abandoned: Arc<AtomicU64>,
}

fn body() -> Vec<u8> {
    (0..200_000u32).flat_map(u32::to_le_bytes).collect()
}

fn letter() -> DeadLetter {
    DeadLetter {
        id: MessageId([0xab; 16]),
        log: Class::Clinical,
        source: "monitors".parse().unwrap(),
        upstream: "engine".parse().unwrap(),
        reason: "AR: unsupported message type".into(),
        attempts: 1,
        received: "2026-11-22T14:00:00Z".parse().unwrap(),
        given_up: "2026-11-22T14:00:01Z".parse().unwrap(),
        bytes: 800_000,
        content_type: "application/hl7-v2".into(),
        flags: vec![],
    }
}

/// Counts that its job was dropped in the middle.
struct Abandoned(Arc<AtomicU64>);

impl Drop for Abandoned {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Operator for SmallBox {
    async fn status(&self) -> Status {
        let monitors = SourceCounters::default();
        monitors.received.add(1_234);
        Status {
            version: "0.1.0".into(),
            gateway: "icu-3-east".parse().unwrap(),
            site: "st-marys".parse().unwrap(),
            running_s: 60,
            since: "2026-11-22T12:00:00Z".into(),
            config: "0123456789abcdef".into(),
            sources: [("monitors".parse().unwrap(), monitors.snapshot("mllp", "127.0.0.1:2575", 60_000))].into(),
            upstreams: [].into(),
            lanes: vec![],
            logs: vec![],
            cipher: String::new(),
            index_written: 0,
            alarms: vec![],
        }
    }

    async fn dead_list(&self, _query: DeadQuery) -> Answer<DeadList> {
        Ok(DeadList { total: 1, letters: vec![letter()] })
    }

    async fn dead_show(&self, id: IdPattern) -> Answer<Vec<DeadLetter>> {
        match id.fits(&letter().id.to_string()) {
            true => Ok(vec![letter()]),
            false => Err(Refusal::new(Code::NotFound, format!("no dead letter has the id {id}"))),
        }
    }

    async fn dead_body(&self, _id: IdPattern, outlet: &Outlet) -> Answer<u64> {
        for piece in body().chunks(100_000) {
            outlet.data(Bytes::copy_from_slice(piece)).await?;
        }
        Ok(800_000)
    }

    async fn dead_retry(&self, selection: DeadSelection) -> Answer<Count> {
        Ok(Count { changed: 0, unknown: selection.ids })
    }

    async fn dead_discard(&self, _selection: DeadSelection) -> Answer<Count> {
        self.discarded.fetch_add(1, Ordering::SeqCst);
        Ok(Count { changed: 1, unknown: vec![] })
    }

    async fn lane_retry(&self, selection: LaneSelection) -> Answer<Released> {
        Err(Refusal::new(Code::NotFound, format!("no lane to {} waits", selection.upstream)))
    }

    async fn lane_set_aside(&self, _selection: LaneSelection) -> Answer<Released> {
        Ok(Released { sources: vec!["monitors".parse().unwrap()] })
    }

    async fn spool_usage(&self) -> Answer<SpoolUsage> {
        let path = "/var/lib/wardgate".into();
        Ok(SpoolUsage { path, disk_free: 1 << 30, disk_total: 4 << 30, logs: vec![], lanes: vec![] })
    }

    /// Never ends by itself.
    async fn spool_verify(&self, outlet: &Outlet) -> Answer<VerifyReport> {
        let _abandoned = Abandoned(Arc::clone(&self.abandoned));
        for done in 0.. {
            outlet.progress("segments", done, None).await;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(VerifyReport::default())
    }

    async fn spool_find(&self, _request: FindRequest, _outlet: &Outlet) -> Answer<FindReport> {
        Ok(FindReport::default())
    }

    async fn spool_export(&self, _request: ExportRequest, outlet: &Outlet) -> Answer<ExportReport> {
        outlet.data(Bytes::from_static(b"sealed")).await?;
        Ok(ExportReport { messages: 1, bytes: 800_000, ..ExportReport::default() })
    }

    async fn spool_import(&self, _request: ImportRequest, inlet: &mut Inlet, outlet: &Outlet) -> Answer<ImportReport> {
        let mut bytes = 0;
        while let Some(piece) = inlet.next().await? {
            bytes += u64::try_from(piece.len()).unwrap();
            outlet.progress("bytes", bytes, None).await;
        }
        self.imported.fetch_add(bytes, Ordering::SeqCst);
        Ok(ImportReport { stored: 1, repeats: 0, bytes })
    }

    async fn spool_accept_damage(&self) -> Answer<Count> {
        Ok(Count { changed: 1, unknown: Vec::new() })
    }

    async fn replay(&self, _request: ReplayRequest, _outlet: &Outlet) -> Answer<ReplayReport> {
        Ok(ReplayReport { messages: 7, bytes: 7_000, ..ReplayReport::default() })
    }

    async fn keys_rotate(&self) -> Answer<KeysReport> {
        Ok(KeysReport { epoch: 2, text: "epoch 2 is in force".into() })
    }

    async fn keys_destroy(&self, _request: DestroyRequest) -> Answer<KeysReport> {
        Err(Refusal::new(Code::Failed, "not this box"))
    }
}

/// A served small box in a folder that every user may enter; it stops when this is dropped.
struct Served {
    folder: tempfile::TempDir,
    config: ControlConfig,
    small_box: Arc<SmallBox>,
    stop: CancellationToken,
}

impl Served {
    async fn start(read_group: Option<&str>, change_group: Option<&str>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let config = ControlConfig {
            socket: folder.path().join("run/control.sock"),
            read_group: read_group.map(Into::into),
            change_group: change_group.map(Into::into),
        };
        let (small_box, stop) = (Arc::new(SmallBox::default()), CancellationToken::new());
        let socket = ControlSocket::bind(&config).await.unwrap();
        tokio::spawn(socket.serve(Arc::clone(&small_box), stop.clone()));
        Self { folder, config, small_box, stop }
    }

    fn socket(&self) -> &Path {
        &self.config.socket
    }

    async fn wardgate(&self, arguments: &[&str]) -> Output {
        self.wardgate_as(arguments, None).await
    }

    /// Runs the executable, as another user and group when they are given (which only root can).
    async fn wardgate_as(&self, arguments: &[&str], user: Option<(u32, u32)>) -> Output {
        let mut command = std::process::Command::new(match user {
            Some(_) => self.executable_for_all(),
            None => env!("CARGO_BIN_EXE_wardgate").into(),
        });
        command.args(arguments).arg("--socket").arg(self.socket()).current_dir(self.folder.path());
        if let Some((uid, gid)) = user {
            command.uid(uid).gid(gid);
        }
        tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
    }

    /// A copy where everybody may run it.
    fn executable_for_all(&self) -> PathBuf {
        let copy = self.folder.path().join("wardgate");
        if !copy.exists() {
            std::fs::copy(env!("CARGO_BIN_EXE_wardgate"), &copy).unwrap();
            std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        copy
    }

    /// What the socket answers to these bytes, up to its closing or its first whole line.
    async fn answer_to(&self, bytes: &[u8]) -> String {
        let mut stream = UnixStream::connect(self.socket()).await.unwrap();
        // A peer that is refused in the middle of its line gets its answer all the same.
        stream.write_all(bytes).await.ok();
        let mut answer = Vec::new();
        let read = async { while !answer.ends_with(b"\n") && stream.read_buf(&mut answer).await.unwrap_or(0) > 0 {} };
        tokio::time::timeout(DEADLINE, read).await.unwrap();
        String::from_utf8(answer).unwrap()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn texts(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

fn gid(group: &str) -> u32 {
    nix::unistd::Group::from_name(group).unwrap().unwrap().gid.as_raw()
}

const READER: u32 = 54_321;

#[tokio::test(flavor = "multi_thread")]
async fn status_is_shown_as_a_table_and_as_json() {
    let served = Served::start(None, None).await;
    let (code, table, _) = texts(&served.wardgate(&["status"]).await);
    assert_eq!(code, Some(0));
    assert!(table.starts_with("wardgate 0.1.0  icu-3-east at st-marys") && table.contains("1 234"), "{table}");
    let (code, json, _) = texts(&served.wardgate(&["status", "--json"]).await);
    let status: Status = serde_json::from_str(&json).unwrap();
    assert_eq!((code, status.running_s), (Some(0), 60));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_has_seen_enough_ends_the_program_quietly() {
    let served = Served::start(None, None).await;
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_wardgate"));
    command.args(["status", "--json", "--socket"]).arg(served.socket());
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let mut child = command.spawn().unwrap();
    drop(child.stdout.take());
    let output = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap()).await.unwrap();
    let (code, _, errors) = texts(&output);
    assert_eq!((code, errors.as_str()), (Some(0), ""));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_body_of_a_dead_letter_arrives_whole_in_a_private_file() {
    let served = Served::start(None, None).await;
    let (code, _, errors) =
        texts(&served.wardgate(&["dead", "show", &letter().id.to_string(), "--body", "body.hl7"]).await);
    assert_eq!(code, Some(0), "{errors}");
    let path = served.folder.path().join("body.hl7");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(std::fs::read(path).unwrap() == body());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_ends_with_65() {
    let served = Served::start(None, None).await;
    let other = MessageId([1; 16]).to_string();
    let (code, _, errors) = texts(&served.wardgate(&["dead", "show", &other]).await);
    assert_eq!(code, Some(65), "{errors}");
    let (code, _, errors) = texts(&served.wardgate(&["dead", "retry", &other]).await);
    assert_eq!(code, Some(65));
    assert!(errors.contains(&other), "{errors}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sealed_export_is_unsealed_by_the_one_who_imports_it() {
    let served = Served::start(None, None).await;
    let identity = age::x25519::Identity::generate();
    let plain = body();
    let sealed = age::encrypt(&identity.to_public(), &plain).unwrap();
    std::fs::write(served.folder.path().join("waiting.age"), sealed).unwrap();
    let key = age::secrecy::ExposeSecret::expose_secret(&identity.to_string()).to_owned();
    std::fs::write(served.folder.path().join("key.txt"), key).unwrap();
    let arguments = ["spool", "import", "waiting.age", "--identity", "key.txt", "--upstream", "engine"];
    let (code, said, errors) = texts(&served.wardgate(&arguments).await);
    assert_eq!(code, Some(0), "{errors}");
    assert!(said.contains("1 message stored"), "{said}");
    assert_eq!(served.small_box.imported.load(Ordering::SeqCst), 800_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_may_read_and_is_told_which_group_may_change() {
    if !nix::unistd::geteuid().is_root() {
        return; // Only root can take another user's place.
    }
    let served = Served::start(Some("tty"), Some("disk")).await;
    let reader = Some((READER, gid("tty")));
    let (code, _, errors) = texts(&served.wardgate_as(&["status", "--json"], reader).await);
    assert_eq!(code, Some(0), "{errors}");
    let (code, _, errors) = texts(&served.wardgate_as(&["dead", "discard", "--all", "--yes"], reader).await);
    assert_eq!(code, Some(77), "{errors}");
    assert!(errors.contains("\"disk\""), "{errors}");
    assert_eq!(served.small_box.discarded.load(Ordering::SeqCst), 0);
    let changer = Some((READER, gid("disk")));
    let (code, _, errors) = texts(&served.wardgate_as(&["dead", "discard", "--all", "--yes"], changer).await);
    assert_eq!(code, Some(0), "{errors}");
    assert_eq!(served.small_box.discarded.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_is_kept_out_by_the_rule_and_by_the_file_system() {
    if !nix::unistd::geteuid().is_root() {
        return; // Only root can take another user's place.
    }
    let stranger = Some((READER, READER));
    let open = Served::start(Some("tty"), Some("disk")).await;
    let (code, _, errors) = texts(&open.wardgate_as(&["status", "--json"], stranger).await);
    assert_eq!(code, Some(77), "{errors}");
    assert!(errors.contains("\"tty\""), "{errors}");
    let one_group = Served::start(Some("tty"), None).await;
    let (code, _, errors) = texts(&one_group.wardgate_as(&["status", "--json"], stranger).await);
    assert_eq!(code, Some(77), "{errors}");
    assert!(errors.contains("the group \"tty\""), "{errors}");
    let closed = Served::start(None, None).await;
    let (code, _, errors) = texts(&closed.wardgate_as(&["status", "--json"], stranger).await);
    assert_eq!(code, Some(77), "{errors}");
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_lines_are_refused_and_the_next_one_is_answered() {
    let served = Served::start(None, None).await;
    for (bytes, words) in [
        (&b"not json\n"[..], "bad-request"),
        (b"{\"verb\":\"frobnicate\"}\n", "frobnicate"),
        (b"{\"verb\":\"dead-discard\",\"all\":true,\"upstraem\":\"engine\"}\n", "upstraem"),
        (b"{\"verb\":\"dead-discard\"}\n", "by id"),
        (b"\xff\xfe\x00\n", "bad-request"),
        (&[b'['; 60_000], ""),
        (&[b'x'; 200_000], "longer than"),
    ] {
        let bytes = if bytes.first() == Some(&b'[') { [bytes, b"\n"].concat() } else { bytes.to_vec() };
        let answer = served.answer_to(&bytes).await;
        assert!(answer.starts_with("{\"error\"") && answer.contains(words), "{answer}");
    }
    assert_eq!(served.small_box.discarded.load(Ordering::SeqCst), 0);
    assert!(served.answer_to(b"not json\n").await.starts_with("{\"error\""));
    assert!(served.answer_to(b"{\"verb\":\"status\"}\n").await.starts_with("{\"ok\""));
}

#[tokio::test(flavor = "multi_thread")]
async fn more_than_sixteen_conversations_are_told_to_wait() {
    let served = Served::start(None, None).await;
    let mut idle = Vec::new();
    for _ in 0..16 {
        let mut stream = UnixStream::connect(served.socket()).await.unwrap();
        stream.write_all(b"{\"verb\":\"status\"}\n").await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), b'{');
        idle.push(stream);
    }
    let answer = served.answer_to(b"{\"verb\":\"status\"}\n").await;
    assert!(answer.contains("unavailable") && answer.contains("try again"), "{answer}");
    idle.clear();
    tokio::time::timeout(DEADLINE, async {
        while !served.answer_to(b"{\"verb\":\"status\"}\n").await.starts_with("{\"ok\"") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_ends_when_the_one_who_asked_hangs_up() {
    let served = Served::start(None, None).await;
    let mut stream = UnixStream::connect(served.socket()).await.unwrap();
    stream.write_all(b"{\"verb\":\"spool-verify\"}\n").await.unwrap();
    assert_eq!(stream.read_u8().await.unwrap(), b'{');
    drop(stream);
    tokio::time::timeout(DEADLINE, async {
        while served.small_box.abandoned.load(Ordering::SeqCst) == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_that_breaks_off_is_not_taken_for_whole() {
    let served = Served::start(None, None).await;
    let mut stream = UnixStream::connect(served.socket()).await.unwrap();
    stream.write_all(b"{\"verb\":\"spool-import\",\"upstreams\":[\"engine\"]}\n{\"data\":\"YWJj\"}\n").await.unwrap();
    assert_eq!(stream.read_u8().await.unwrap(), b'{');
    drop(stream);
    // The next conversation is answered, and nothing of the torn import was kept.
    assert!(served.answer_to(b"{\"verb\":\"status\"}\n").await.starts_with("{\"ok\""));
    assert_eq!(served.small_box.imported.load(Ordering::SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_copy_says_so_and_a_left_over_file_is_replaced() {
    let served = Served::start(None, None).await;
    let second = ControlSocket::bind(&served.config).await.err().unwrap();
    assert!(matches!(second, ControlError::InUse(_)) && second.to_string().contains("already running"), "{second}");
    let folder = tempfile::tempdir().unwrap();
    let config = ControlConfig { socket: folder.path().join("control.sock"), ..ControlConfig::default() };
    drop(std::os::unix::net::UnixListener::bind(&config.socket).unwrap());
    assert!(config.socket.exists(), "a service that was killed leaves its file");
    let socket = ControlSocket::bind(&config).await.unwrap();
    drop(socket);
    assert!(!config.socket.exists(), "a service that stops takes its file away");
    std::fs::write(&config.socket, "notes").unwrap();
    assert!(matches!(ControlSocket::bind(&config).await.err().unwrap(), ControlError::NotASocket(_)));
    assert_eq!(std::fs::read_to_string(&config.socket).unwrap(), "notes");
}

#[tokio::test(flavor = "multi_thread")]
async fn figures_are_served_to_a_scraper_and_nothing_else_is() {
    let config = MetricsConfig { listen: "127.0.0.1:0".parse().unwrap(), beyond_loopback: false };
    let page = MetricsPage::bind(&config).await.unwrap();
    let (address, stop) = (page.address().unwrap(), CancellationToken::new());
    tokio::spawn(page.serve(Arc::new(SmallBox::default()), stop.clone()));
    let get = async |request: &str| {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        tokio::time::timeout(DEADLINE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
        answer
    };
    let answer = get("GET /metrics HTTP/1.1\r\nHost: box\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.contains("version=0.0.4"), "{answer}");
    assert!(
        answer.contains("wardgate_source_received_total{source=\"monitors\",protocol=\"mllp\"} 1234\n"),
        "{answer}"
    );
    assert!(get("GET / HTTP/1.1\r\nHost: box\r\n\r\n").await.starts_with("HTTP/1.1 404"));
    assert!(get("POST /metrics HTTP/1.1\r\nHost: box\r\ncontent-length: 0\r\n\r\n").await.starts_with("HTTP/1.1 405"));
    stop.cancel();
}
