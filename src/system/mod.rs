//! What the operating system and the network give: TLS, streams, time, credentials, systemd. The only room with `unsafe`.

pub mod backoff;
pub mod clock;
pub mod credentials;
pub mod stream;
pub mod tls;
