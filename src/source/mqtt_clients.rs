//! Who an MQTT client is: the rule of the configuration that fits it, its password, and the connection that has its client id now.
//!
//! A rule fits when all that it gives fits: certificate, user, client id. Passwords are checked off the runtime's threads and few at once; one
//! that was right is known again without the work, by a keyed digest that lives as long as the source. A name that nobody has costs the same
//! work as a wrong password and is answered alike, so that neither the words nor the time tell which names there are. A client id is the rule's own: a client
//! can never take over the connection of another rule's, whatever id it gives.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aws_lc_rs::hmac;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::intake::Intake;
use super::mqtt::ClientConfig;
use super::readings::Readings;
use crate::system::password::{Hashed, PASSWORD_BYTES_MAX};
use crate::wire::mqtt_answer::Reason;
use crate::wire::mqtt_packet::Connect;

/// Passwords that are checked at once: each takes a core and some MiB. Who comes meanwhile waits, within its connect-timeout.
const CHECKS_AT_ONCE: usize = 2;

/// All clients of a source.
pub(super) struct Clients {
    all: Vec<Arc<Client>>,
    checks: Arc<Semaphore>,
    /// Of this run: the key of the digests of passwords that were right.
    key: Option<hmac::Key>,
}

/// A client of the configuration: it may have several connections, each with a client id of its own.
pub(super) struct Client {
    config: ClientConfig,
    /// Its readings, numbered over all its connections.
    readings: Mutex<Readings>,
    connected: Mutex<Connected>,
    /// The keyed digest of the password that was right last.
    known: Mutex<Option<hmac::Tag>>,
}

#[derive(Default)]
struct Connected {
    by_id: HashMap<String, (u64, CancellationToken)>,
    next: u64,
}

/// A client id in use; given back when it is dropped.
pub(super) struct Place {
    client: Arc<Client>,
    id: String,
    number: u64,
    /// Cancelled when another connection takes the client id over.
    pub taken_over: CancellationToken,
}

impl Clients {
    /// The clients of a configuration, with a stream of readings each.
    pub(super) fn new(configs: &[ClientConfig], intake: &Intake) -> Self {
        let client = |config: &ClientConfig| {
            let readings = Mutex::new(Readings::new(intake, config.to_string()));
            let (connected, known) = (Mutex::default(), Mutex::default());
            Arc::new(Client { config: config.clone(), readings, connected, known })
        };
        let mut seed = [0; 32];
        let key = aws_lc_rs::rand::fill(&mut seed).ok().map(|()| hmac::Key::new(hmac::HMAC_SHA256, &seed));
        Self { all: configs.iter().map(client).collect(), checks: Arc::new(Semaphore::new(CHECKS_AT_ONCE)), key }
    }

    /// The client that says this CONNECT and showed a certificate with this common name.
    ///
    /// # Errors
    /// What to answer.
    pub(super) async fn admit(&self, connect: &Connect<'_>, certificate: Option<&str>) -> Result<Arc<Client>, Reason> {
        let fits = |client: &&Arc<Client>| client.config.fits(connect, certificate);
        let Some(client) = self.all.iter().find(fits) else { return Err(self.unknown(connect).await) };
        if let Some(hashed) = &client.config.password {
            let given = connect.password.unwrap_or_default();
            if given.len() > PASSWORD_BYTES_MAX || !self.is_right(client, hashed, given).await {
                return Err(Reason::BadPassword);
            }
        }
        Ok(Arc::clone(client))
    }

    /// What to answer to somebody that no rule fits. Who gives a name is answered as one with a wrong password, after the same work.
    async fn unknown(&self, connect: &Connect<'_>) -> Reason {
        if connect.user.is_none() {
            return Reason::NotAuthorised;
        }
        let given = connect.password.unwrap_or_default();
        let another = self.all.iter().find_map(|client| client.config.password.as_ref());
        if let Some(hashed) = another.filter(|_| given.len() <= PASSWORD_BYTES_MAX) {
            let turn = Arc::clone(&self.checks).acquire_owned().await.ok();
            checked(hashed, given, turn).await;
        }
        Reason::BadPassword
    }

    async fn is_right(&self, client: &Client, hashed: &Hashed, given: &[u8]) -> bool {
        if self.is_known(client, given) {
            return true;
        }
        let Ok(turn) = Arc::clone(&self.checks).acquire_owned().await else { return false };
        // Another connection may have shown the same one while this one waited for its turn.
        if self.is_known(client, given) {
            return true;
        }
        let right = checked(hashed, given, Some(turn)).await;
        if let (true, Some(key)) = (right, &self.key) {
            *whole(&client.known) = Some(hmac::sign(key, given));
        }
        right
    }

    /// Whether it is the password that was right last.
    fn is_known(&self, client: &Client, given: &[u8]) -> bool {
        let tag = whole(&client.known).as_ref().map(|tag| tag.as_ref().to_vec());
        self.key.as_ref().zip(tag).is_some_and(|(key, tag)| hmac::verify(key, given, &tag).is_ok())
    }
}

/// Checks a password off the runtime's threads. The turn goes along: who does not wait for the end does not make room for another.
async fn checked(hashed: &Hashed, given: &[u8], turn: Option<OwnedSemaphorePermit>) -> bool {
    let (hash, password) = (hashed.clone(), zeroize::Zeroizing::new(given.to_vec()));
    let work = move || {
        let _turn = turn;
        hash.is_of(&password)
    };
    tokio::task::spawn_blocking(work).await.unwrap_or(false)
}

impl ClientConfig {
    fn fits(&self, connect: &Connect<'_>, certificate: Option<&str>) -> bool {
        let fits =
            |wanted: &Option<String>, given: Option<&str>| wanted.as_deref().is_none_or(|name| given == Some(name));
        fits(&self.certificate, certificate)
            && fits(&self.user, connect.user)
            && fits(&self.id, Some(connect.client_id))
    }
}

impl Client {
    /// Its name in the configuration, for logs.
    pub(super) fn name(&self) -> String {
        self.config.to_string()
    }

    /// Whether it may publish there.
    pub(super) fn may_publish(&self, topic: &str) -> bool {
        self.config.publish.iter().any(|filter| filter.covers(topic))
    }

    /// Its readings, for as long as it takes to put one.
    pub(super) fn readings(&self) -> MutexGuard<'_, Readings> {
        whole(&self.readings)
    }

    /// Takes a client id, from its connection if it has one; `None` when it has as many connections as it may.
    pub(super) fn connect(self: &Arc<Self>, id: &str) -> Option<Place> {
        let mut connected = whole(&self.connected);
        if !connected.by_id.contains_key(id) && connected.by_id.len() >= self.config.max_connections {
            return None;
        }
        let (number, taken_over) = (connected.next, CancellationToken::new());
        connected.next += 1;
        if let Some((_, before)) = connected.by_id.insert(id.to_owned(), (number, taken_over.clone())) {
            before.cancel();
        }
        Some(Place { client: Arc::clone(self), id: id.to_owned(), number, taken_over })
    }
}

impl Place {
    /// Whose it is.
    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// The client id.
    pub(super) fn id(&self) -> &str {
        &self.id
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut connected = whole(&self.client.connected);
        if connected.by_id.get(&self.id).is_some_and(|(number, _)| *number == self.number) {
            connected.by_id.remove(&self.id);
        }
        if connected.by_id.is_empty() {
            connected.by_id.shrink_to_fit();
        }
    }
}

/// A value that is whole even when a thread died while it held the lock.
fn whole<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::task::JoinSet;

    use super::*;
    use crate::source::mqtt::MqttConfig;
    use crate::source::plug_tests::Room;
    use crate::wire::mqtt_packet::Version;

    fn connect(password: &[u8]) -> Connect<'_> {
        Connect {
            version: Version::V5,
            client_id: "a",
            clean: true,
            keep_alive_s: 0,
            user: Some("ward"),
            password: Some(password),
            will: None,
            session_expiry_s: 0,
            packet_bytes_max: usize::MAX,
            extended_authentication: false,
        }
    }

    /// The hash is of another password, so that whoever is let in was not checked against it.
    #[tokio::test]
    async fn connections_that_wait_while_their_password_is_checked_are_let_in_by_that_one_check() {
        let room = Room::new("mqtt");
        let hash = Hashed::of(b"another one").unwrap();
        let config = format!(
            "listen = '127.0.0.1:0'\n[[client]]\nuser = 'ward'\npassword = '{}'\npublish = ['#']\n",
            hash.as_str()
        );
        let config: MqttConfig = toml::from_str(&config).unwrap();
        let clients = Arc::new(Clients::new(&config.client, &room.intake));
        let turns =
            Arc::clone(&clients.checks).acquire_many_owned(u32::try_from(CHECKS_AT_ONCE).unwrap()).await.unwrap();
        let mut waiting = JoinSet::new();
        for password in [&b"right"[..], b"right", b"right", b"right", b"wrong"] {
            let clients = Arc::clone(&clients);
            waiting.spawn(async move { (password, clients.admit(&connect(password), None).await.is_ok()) });
        }
        assert!(tokio::time::timeout(Duration::from_millis(50), waiting.join_next()).await.is_err(), "all wait");
        // The check that is under way ends well.
        let tag = hmac::sign(clients.key.as_ref().unwrap(), b"right");
        *whole(&clients.all[0].known) = Some(tag);
        drop(turns);
        while let Some(ended) = waiting.join_next().await {
            let (password, is_in) = ended.unwrap();
            assert_eq!(is_in, password == b"right", "{password:?}");
        }
    }
}
