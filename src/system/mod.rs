//! What the operating system and the network give: TLS, streams, time, credentials, disk, systemd. The only room with `unsafe`.
//!
//! Nothing here knows a message, a source or an upstream. Errors are for the person at the box: what happened, where, and
//! what to do next.

pub mod backoff;
pub mod beneath;
pub mod certificate;
pub mod clock;
pub mod credentials;
pub mod disk;
pub mod fault;
pub mod logging;
pub mod password;
pub mod ports;
pub mod process;
pub mod pty;
pub mod pulse;
pub mod seldom;
pub mod serial;
pub mod sockets;
pub mod stream;
pub mod systemd;
pub mod tls;
pub mod watch;

#[cfg(test)]
pub mod test_pki;
