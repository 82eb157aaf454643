//! The accept loop that every listening source uses: who may come in, how many at once, TLS, and how they leave.
//!
//! Nothing that a stranger can do ends it: a failed handshake, a reset connection or too many open files cost one connection
//! or a short pause. A permit is taken before a connection is accepted, so that those over the limit wait in the kernel's queue
//! and not in our memory. The TLS handshake has its own task and its own time limit.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ipnet::IpNet;
use nix::errno::Errno;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{SourceError, Stop};
use crate::status::SourceCounters;
use crate::system::seldom::Seldom;
use crate::system::sockets::Sockets;
use crate::system::stream::{self, Stream};
use crate::system::tls::ServerTls;
use crate::values::{Listen, Problems};

/// A TLS handshake that takes longer is given up.
const HANDSHAKE_TIME_MAX: Duration = Duration::from_secs(10);
/// One peer's share of the connections, one in so many, for handshakes that are not done: who begins them and says nothing keeps
/// nobody out.
const HANDSHAKE_SHARE: usize = 4;
/// Handshakes that a peer may always have under way, unless that is more than half of the connections.
const HANDSHAKES_LEAST: usize = 8;
/// How long nothing is accepted after the process or the system ran out of files or memory.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(250);
/// How long connections have to finish what they are at once the source stops; then they are cut.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(5);
/// Connections at once unless the configuration says otherwise.
pub const CONNECTIONS_DEFAULT: usize = 256;
/// Connections at once that a configuration may ask for: each costs some twenty KiB, and file descriptors are not endless.
pub const CONNECTIONS_MAX: usize = 4096;

/// What is said of a listener whose address no network card has: a cable's or a network's fault.
pub const NO_SUCH_ADDRESS: &str = "this box has no such address: check the network's configuration";

/// Who may come in.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Networks that may connect; empty: all may.
    pub allow: Vec<IpNet>,
    /// Connections at once.
    pub connections: usize,
}

/// A bound socket with its rules.
pub struct Listener {
    socket: Option<TcpListener>,
    endpoint: SocketAddr,
    door: Arc<Door>,
    permits: Arc<Semaphore>,
}

/// What each new connection goes through.
struct Door {
    rules: Rules,
    tls: Option<TlsAcceptor>,
    /// TLS handshakes that are under way, by peer.
    greeting: Mutex<HashMap<IpAddr, usize>>,
    strangers: Seldom,
    handshakes: Seldom,
    full: Seldom,
    exhausted: Seldom,
}

impl Listener {
    /// Binds, or takes the socket that is held for this address, and loads the certificates.
    ///
    /// # Errors
    /// [`SourceError::Open`] with what to do in words.
    pub async fn open(
        listen: Listen,
        rules: Rules,
        tls: Option<&ServerTls>,
        sockets: &Sockets,
    ) -> Result<Self, SourceError> {
        let tls = tls.map(ServerTls::acceptor).transpose().map_err(|error| SourceError::Open(error.to_string()))?;
        let bound = async {
            let socket = sockets.listen(listen.0).await?;
            let endpoint = socket.local_addr()?;
            Ok((socket, endpoint))
        };
        let (socket, endpoint) = bound.await.map_err(|error| explain_bind(listen, &error))?;
        let permits = Arc::new(Semaphore::new(rules.connections));
        let quiet = Seldom::default;
        let door = Door {
            rules,
            tls,
            greeting: Mutex::default(),
            strangers: quiet(),
            handshakes: quiet(),
            full: quiet(),
            exhausted: quiet(),
        };
        Ok(Self { socket: Some(socket), endpoint, door: Arc::new(door), permits })
    }

    /// The address as it is bound.
    pub fn endpoint(&self) -> SocketAddr {
        self.endpoint
    }

    /// Accepts until `stop`, and gives each connection to `serve`; then closes the socket and waits for them to end. `serve`
    /// watches `stop` itself; connections that have not ended some seconds later are cut.
    ///
    /// # Errors
    /// [`SourceError::Broken`] when the listening socket itself is unusable. No peer can cause that.
    pub async fn run<S, F>(&mut self, counters: &Arc<SourceCounters>, stop: &Stop, serve: S) -> Result<(), SourceError>
    where
        S: Fn(Stream) -> F + Clone + Send + 'static,
        F: Future<Output = ()> + Send,
    {
        let closed = || SourceError::Broken("the listener was already stopped".into());
        let socket = self.socket.take().ok_or_else(closed)?;
        let connections = TaskTracker::new();
        let cut = CancellationToken::new();
        // When this future is dropped, no connection outlives it.
        let _guard = cut.clone().drop_guard();
        let outcome = loop {
            let permit = tokio::select! {
                biased;
                () = stop.cancelled() => break Ok(()),
                permit = self.permit() => permit,
            };
            let accepted = tokio::select! {
                biased;
                () = stop.cancelled() => break Ok(()),
                accepted = socket.accept() => accepted,
            };
            match accepted {
                Ok((tcp, peer)) => {
                    let seat = Seat::take(permit, counters);
                    let (door, cut, serve) = (Arc::clone(&self.door), cut.clone(), serve.clone());
                    connections.spawn(async move {
                        tokio::select! {
                            () = cut.cancelled() => {}
                            () = door.pass(tcp, peer, &seat.counters, serve) => {}
                        }
                    });
                }
                Err(error) => match severity(&error) {
                    Severity::Passing => {}
                    Severity::Exhausted => {
                        if let Some(unsaid) = self.door.exhausted.speak() {
                            tracing::warn!(endpoint = %self.endpoint, %error, unsaid, "no connection can be accepted now");
                        }
                        sleep(EXHAUSTED_PAUSE).await;
                    }
                    Severity::Broken => break Err(SourceError::Broken(format!("the listener broke: {error}"))),
                },
            }
        };
        drop(socket);
        connections.close();
        if timeout(DRAIN_TIME_MAX, connections.wait()).await.is_err() {
            tracing::warn!(endpoint = %self.endpoint, open = connections.len(), "connections did not end in time and are cut");
            cut.cancel();
            connections.wait().await;
        }
        outcome
    }

    async fn permit(&self) -> OwnedSemaphorePermit {
        let permits = || Arc::clone(&self.permits);
        if let Ok(permit) = permits().try_acquire_owned() {
            return permit;
        }
        if let Some(unsaid) = self.door.full.speak() {
            let open = self.door.rules.connections;
            tracing::warn!(endpoint = %self.endpoint, open, unsaid, "all connections are in use: new ones wait");
        }
        // Unwrap safety: the semaphore is ours and never closed.
        #[allow(clippy::unwrap_used)]
        permits().acquire_owned().await.unwrap()
    }
}

impl Door {
    async fn pass<F: Future<Output = ()>>(
        &self,
        tcp: TcpStream,
        peer: SocketAddr,
        counters: &SourceCounters,
        serve: impl Fn(Stream) -> F,
    ) {
        if !self.rules.admits(peer.ip()) {
            counters.turned_away.one();
            if let Some(unsaid) = self.strangers.speak() {
                tracing::warn!(%peer, unsaid, "turned away: not in a network of the allow list");
            }
            return;
        }
        match self.greet(tcp, peer).await {
            Ok(stream) => serve(stream).await,
            Err(cause) => {
                counters.turned_away.one();
                if let Some(unsaid) = self.handshakes.speak() {
                    tracing::warn!(%peer, cause, unsaid, "turned away: no TLS");
                }
            }
        }
    }

    async fn greet(&self, tcp: TcpStream, peer: SocketAddr) -> Result<Stream, String> {
        let _greeting = match self.tls {
            None => None,
            Some(_) => Some(Greeting::begin(self, peer.ip().to_canonical())?),
        };
        stream::accept(tcp, peer, self.tls.as_ref(), HANDSHAKE_TIME_MAX).await
    }

    fn greeting(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.greeting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A handshake, counted while it is under way.
struct Greeting<'a> {
    door: &'a Door,
    peer: IpAddr,
}

impl<'a> Greeting<'a> {
    fn begin(door: &'a Door, peer: IpAddr) -> Result<Self, String> {
        let connections = door.rules.connections;
        let most = (connections / HANDSHAKE_SHARE).max(HANDSHAKES_LEAST).min(connections.div_ceil(2));
        let mut greeting = door.greeting();
        let count = greeting.entry(peer).or_default();
        if *count >= most {
            return Err(format!("{most} TLS handshakes of this peer are under way: does it speak TLS?"));
        }
        *count += 1;
        Ok(Self { door, peer })
    }
}

impl Drop for Greeting<'_> {
    fn drop(&mut self) {
        let mut greeting = self.door.greeting();
        if let Some(count) = greeting.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                greeting.remove(&self.peer);
            }
        }
    }
}

impl Rules {
    fn admits(&self, peer: IpAddr) -> bool {
        // A listener on [::] sees IPv4 peers as ::ffff:10.1.2.3.
        let peer = peer.to_canonical();
        self.allow.is_empty() || self.allow.iter().any(|network| network.contains(&peer))
    }

    /// Notes what is unsafe or impossible about a listener with these rules, under the keys `listen` and `max-connections`.
    pub fn check(&self, listen: Listen, tls: Option<&ServerTls>, problems: &mut Problems) {
        let known_peers = !self.allow.is_empty() || tls.is_some_and(ServerTls::is_mutual);
        if !listen.0.ip().to_canonical().is_loopback() && !known_peers {
            problems.error(
                "listen",
                format!(
                    "{listen} can be reached from the network and anybody may connect: add allow = [\"10.20.0.0/24\"] with the \
                     networks of the devices (all of them: [\"0.0.0.0/0\", \"::/0\"]), or tls with a client-ca"
                ),
            );
        }
        if !(1..=CONNECTIONS_MAX).contains(&self.connections) {
            problems.error("max-connections", format!("must be from 1 to {CONNECTIONS_MAX}"));
        }
    }
}

/// A place among the connections; given back when it is dropped.
struct Seat {
    counters: Arc<SourceCounters>,
    _permit: OwnedSemaphorePermit,
}

impl Seat {
    fn take(permit: OwnedSemaphorePermit, counters: &Arc<SourceCounters>) -> Self {
        counters.connections.add(1);
        Self { counters: Arc::clone(counters), _permit: permit }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.counters.connections.add(-1);
    }
}

#[derive(Debug, PartialEq)]
enum Severity {
    /// One connection's own fault.
    Passing,
    /// Out of files or memory: it comes back.
    Exhausted,
    /// The socket is no listening socket any more.
    Broken,
}

fn severity(error: &io::Error) -> Severity {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EBADF | Errno::EINVAL | Errno::ENOTSOCK | Errno::EOPNOTSUPP | Errno::EFAULT) => Severity::Broken,
        // accept(2): errors of the network that are already pending on the new connection count as that connection's.
        Some(
            Errno::ECONNABORTED
            | Errno::EINTR
            | Errno::EAGAIN
            | Errno::EPROTO
            | Errno::ENOPROTOOPT
            | Errno::ENETDOWN
            | Errno::ENETUNREACH
            | Errno::EHOSTDOWN
            | Errno::EHOSTUNREACH
            | Errno::ENONET
            | Errno::EPERM,
        ) => Severity::Passing,
        // EMFILE, ENFILE, ENOBUFS, ENOMEM, and what nobody has seen yet: a pause does no harm, a busy loop would.
        _ => Severity::Exhausted,
    }
}

fn explain_bind(listen: Listen, error: &io::Error) -> SourceError {
    let advice = match error.kind() {
        io::ErrorKind::AddrInUse => "another program or source listens there",
        io::ErrorKind::AddrNotAvailable => NO_SUCH_ADDRESS,
        io::ErrorKind::PermissionDenied => {
            "ports below 1024 are root's: enable the socket unit that holds this very address (systemctl enable \
             wardgate-dicom.socket for 0.0.0.0:104), then restart the service"
        }
        _ => "check the address",
    };
    SourceError::Open(format!("can't listen on {listen}: {error}; {advice}"))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpSocket;
    use tokio::task::JoinHandle;
    use tokio::time::Instant;

    use super::*;
    use crate::system::stream::dial;
    use crate::system::test_pki::Pki;
    use crate::system::tls::ClientTls;
    use crate::values::HostPort;

    const LIMIT: Duration = Duration::from_secs(10);

    struct Running {
        address: HostPort,
        counters: Arc<SourceCounters>,
        stop: Stop,
        task: JoinHandle<Result<(), SourceError>>,
    }

    impl Running {
        /// A listener that echoes what it reads until the peer or `stop` ends it.
        async fn echo(allow: &[&str], connections: usize, tls: Option<&ServerTls>) -> Self {
            let rules = Rules { allow: allow.iter().map(|text| text.parse().unwrap()).collect(), connections };
            let mut listener =
                Listener::open("127.0.0.1:0".parse().unwrap(), rules, tls, &Sockets::default()).await.unwrap();
            let address = HostPort { host: "localhost".into(), port: listener.endpoint().port() };
            let (counters, stop) = (Arc::<SourceCounters>::default(), Stop::new());
            let (inner_counters, inner_stop) = (Arc::clone(&counters), stop.clone());
            let task = tokio::spawn(async move {
                let watched = inner_stop.clone();
                let serve = move |mut stream: Stream| {
                    let stop = watched.clone();
                    async move {
                        let mut bytes = [0; 64];
                        loop {
                            let count = tokio::select! {
                                () = stop.cancelled() => return,
                                read = stream.read(&mut bytes) => read.unwrap_or(0),
                            };
                            if count == 0 || stream.write_all(&bytes[..count]).await.is_err() {
                                return;
                            }
                        }
                    }
                };
                listener.run(&inner_counters, &inner_stop, serve).await
            });
            Self { address, counters, stop, task }
        }

        async fn dial(&self) -> Stream {
            dial(&self.address, None, LIMIT).await.unwrap()
        }

        async fn until(&self, what: impl Fn(&SourceCounters) -> bool) {
            let deadline = Instant::now() + LIMIT;
            while !what(&self.counters) {
                assert!(Instant::now() < deadline, "it did not come about in time");
                sleep(Duration::from_millis(2)).await;
            }
        }
    }

    async fn echoes(stream: &mut Stream) -> bool {
        let mut back = [0; 4];
        stream.write_all(b"ping").await.is_ok() && stream.read_exact(&mut back).await.is_ok() && &back == b"ping"
    }

    #[tokio::test]
    async fn who_is_in_no_allowed_network_is_turned_away_and_counted() {
        let running = Running::echo(&["10.0.0.0/8"], 4, None).await;
        assert!(!echoes(&mut running.dial().await).await);
        running.until(|counters| counters.turned_away.value() == 1 && counters.connections.value() == 0).await;
    }

    #[tokio::test]
    async fn those_over_the_limit_wait_for_a_place() {
        let running = Running::echo(&["127.0.0.0/8"], 1, None).await;
        let mut first = running.dial().await;
        assert!(echoes(&mut first).await);
        let mut second = running.dial().await;
        second.write_all(b"ping").await.unwrap();
        let mut back = [0; 4];
        let early = timeout(Duration::from_millis(50), second.read_exact(&mut back)).await;
        assert!(early.is_err(), "the second was served beside the first");
        drop(first);
        timeout(LIMIT, second.read_exact(&mut back)).await.unwrap().unwrap();
        assert_eq!((&back, running.counters.turned_away.value()), (b"ping", 0));
    }

    #[tokio::test]
    async fn who_speaks_no_tls_is_turned_away_and_the_others_are_served() {
        let pki = Pki::new();
        let (certificate, key) = pki.leaf("server", &["localhost"]);
        let running = Running::echo(
            &[],
            4,
            Some(&ServerTls { certificate, key, client_ca: None, client_certificate: Default::default() }),
        )
        .await;
        let silent = running.dial().await;
        assert!(!echoes(&mut running.dial().await).await);
        let tls = ClientTls { ca: pki.ca(), certificate: None, key: None, server_name: None }.connector().unwrap();
        let mut good = dial(&running.address, Some(&tls), LIMIT).await.unwrap();
        assert!(echoes(&mut good).await, "a silent handshake held up the others");
        running.until(|counters| counters.turned_away.value() == 1 && counters.connections.value() == 2).await;
        drop(silent);
    }

    #[tokio::test]
    async fn one_peer_that_begins_many_handshakes_and_says_nothing_leaves_places_for_others() {
        let pki = Pki::new();
        let (certificate, key) = pki.leaf("server", &["localhost"]);
        let tls = ServerTls { certificate, key, client_ca: None, client_certificate: Default::default() };
        let running = Running::echo(&[], 64, Some(&tls)).await;
        let mut silent = Vec::new();
        for _ in 0..70 {
            silent.push(TcpStream::connect(("127.0.0.1", running.address.port)).await.unwrap());
        }
        running.until(|counters| counters.turned_away.value() == 54 && counters.connections.value() == 16).await;
        let other = TcpSocket::new_v4().unwrap();
        other.bind(([127, 0, 0, 2], 0).into()).unwrap();
        let tcp = other.connect(([127, 0, 0, 1], running.address.port).into()).await.unwrap();
        let tls = ClientTls { ca: pki.ca(), certificate: None, key: None, server_name: None }.connector().unwrap();
        let name = tls.server_name(&running.address).unwrap();
        let mut good = tls.inner().connect(name, tcp).await.unwrap();
        good.write_all(b"ping").await.unwrap();
        let mut back = [0; 4];
        good.read_exact(&mut back).await.unwrap();
        assert_eq!(&back, b"ping");
    }

    #[tokio::test(start_paused = true)]
    async fn who_begins_no_handshake_is_sent_away_in_time() {
        let pki = Pki::new();
        let (certificate, key) = pki.leaf("server", &["localhost"]);
        let tls = ServerTls { certificate, key, client_ca: None, client_certificate: Default::default() };
        let running = Running::echo(&[], 4, Some(&tls)).await;
        let mut silent = TcpStream::connect(("127.0.0.1", running.address.port)).await.unwrap();
        let connected = Instant::now();
        // The clock moves on by itself while everybody waits.
        assert_eq!(silent.read(&mut [0]).await.unwrap(), 0);
        assert!(connected.elapsed() <= HANDSHAKE_TIME_MAX + Duration::from_secs(1), "{:?}", connected.elapsed());
        assert_eq!((running.counters.turned_away.value(), running.counters.connections.value()), (1, 0));
    }

    #[tokio::test]
    async fn stopping_closes_the_socket_and_waits_for_the_connections() {
        let running = Running::echo(&[], 4, None).await;
        let mut open = running.dial().await;
        assert!(echoes(&mut open).await);
        running.stop.cancel();
        timeout(LIMIT, running.task).await.unwrap().unwrap().unwrap();
        assert_eq!(running.counters.connections.value(), 0);
        assert!(dial(&running.address, None, LIMIT).await.is_err());
    }

    #[tokio::test]
    async fn a_port_that_is_taken_is_told_in_words() {
        let running = Running::echo(&[], 4, None).await;
        let listen = Listen(([127, 0, 0, 1], running.address.port).into());
        let rules = Rules { allow: vec![], connections: 1 };
        let error = Listener::open(listen, rules, None, &Sockets::default()).await.err().unwrap();
        assert!(error.to_string().ends_with("; another program or source listens there"), "{error}");
    }

    #[test]
    fn no_error_of_a_peer_ends_the_loop_and_shortage_makes_it_pause() {
        let of = |errno: Errno| severity(&io::Error::from(errno));
        assert_eq!(of(Errno::ECONNABORTED), Severity::Passing);
        assert_eq!(of(Errno::EPROTO), Severity::Passing);
        for shortage in [Errno::EMFILE, Errno::ENFILE, Errno::ENOBUFS, Errno::ENOMEM, Errno::EIO] {
            assert_eq!(of(shortage), Severity::Exhausted);
        }
        assert_eq!(of(Errno::EBADF), Severity::Broken);
    }

    #[test]
    fn a_listener_that_anybody_can_reach_is_a_problem_unless_said_aloud() {
        let found = |listen: &str, allow: &[&str]| {
            let rules = Rules { allow: allow.iter().map(|text| text.parse().unwrap()).collect(), connections: 1 };
            let mut problems = Problems::default();
            rules.check(listen.parse().unwrap(), None, &mut problems);
            problems.into_found().len()
        };
        assert_eq!(found("127.0.0.1:2575", &[]), 0);
        assert_eq!(found("[::1]:2575", &[]), 0);
        assert_eq!(found("0.0.0.0:2575", &[]), 1);
        assert_eq!(found("10.20.0.1:2575", &[]), 1);
        assert_eq!(found("10.20.0.1:2575", &["10.20.0.0/24"]), 0);
    }

    #[test]
    fn an_ipv4_peer_on_an_ipv6_socket_is_known_by_its_own_address() {
        let rules = Rules { allow: vec!["10.20.0.0/24".parse().unwrap()], connections: 1 };
        assert!(rules.admits("::ffff:10.20.0.9".parse().unwrap()));
        assert!(!rules.admits("::ffff:10.21.0.9".parse().unwrap()));
    }
}
