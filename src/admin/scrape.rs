//! The page of figures for Prometheus: `GET /metrics` over plain HTTP/1.1, on loopback unless the configuration says aloud
//! that others may read it.
//!
//! It reads the snapshot and nothing else. A scraper that is slow or many is let go; it can't hold the service up.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{ALLOW, CONTENT_TYPE};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::{Deserialize, Deserializer, de};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::metrics;
use super::operator::Operator;
use crate::values::{Listen, Problems, SecretRef, Section};

/// Scrapers at the same time; one more is closed.
const CONNECTIONS_MAX: usize = 8;
/// A whole connection takes no longer: ask, answer, close.
const CONNECTION_MAX: Duration = Duration::from_secs(10);
/// Smallest read buffer that hyper takes; a scrape's request fits many times.
const REQUEST_BYTES_MAX: usize = 16 << 10;
/// After an accept that failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// `[gateway] metrics`: `"127.0.0.1:9464"`, or in full `{ listen = "10.0.0.1:9464", beyond-loopback = true }`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MetricsConfig {
    /// Where the page is.
    pub listen: Listen,
    /// Said aloud: others on the network may read names and numbers of this box, without a password.
    pub beyond_loopback: bool,
}

impl Section for MetricsConfig {
    fn check(&self, problems: &mut Problems) {
        if !self.listen.0.ip().is_loopback() && !self.beyond_loopback {
            let text = format!(
                "anyone who reaches {0} could read this page: listen on 127.0.0.1, or say it aloud with \
                 metrics = {{ listen = \"{0}\", beyond-loopback = true }}",
                self.listen
            );
            problems.error("listen", text);
        }
    }

    fn files(&mut self, _visit: &mut dyn FnMut(&mut SecretRef)) {}
}

impl<'de> Deserialize<'de> for MetricsConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ConfigVisitor)
    }
}

struct ConfigVisitor;

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct InFull {
    listen: Listen,
    #[serde(default)]
    beyond_loopback: bool,
}

impl<'de> de::Visitor<'de> for ConfigVisitor {
    type Value = MetricsConfig;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("\"127.0.0.1:9464\" or { listen = \"address:port\", beyond-loopback = true }")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<MetricsConfig, E> {
        let listen = text.parse().map_err(E::custom)?;
        Ok(MetricsConfig { listen, beyond_loopback: false })
    }

    fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<MetricsConfig, A::Error> {
        let InFull { listen, beyond_loopback } = InFull::deserialize(de::value::MapAccessDeserializer::new(map))?;
        Ok(MetricsConfig { listen, beyond_loopback })
    }
}

/// The page, bound.
pub struct MetricsPage {
    listener: TcpListener,
}

impl MetricsPage {
    /// Binds it.
    ///
    /// # Errors
    /// In words: the address is in use, or not this box's.
    pub async fn bind(config: &MetricsConfig) -> Result<Self, String> {
        let listener = TcpListener::bind(config.listen.0).await;
        let listener = listener.map_err(|error| format!("can't serve metrics on {}: {error}", config.listen))?;
        Ok(Self { listener })
    }

    /// Where it is, as it is bound.
    ///
    /// # Errors
    /// Those of the system.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Answers until `stop`.
    pub async fn serve<O: Operator>(self, operator: Arc<O>, stop: CancellationToken) {
        let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        while let Some(accepted) = stop.run_until_cancelled(self.listener.accept()).await {
            let Ok((stream, _)) = accepted else {
                // Out of files, or a peer that was gone at once: neither may end the service.
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            };
            let Ok(permit) = Arc::clone(&permits).try_acquire_owned() else { continue };
            let (operator, stop) = (Arc::clone(&operator), stop.clone());
            tokio::spawn(async move {
                let _permit = permit;
                stop.run_until_cancelled(timeout(CONNECTION_MAX, answer(stream, operator))).await;
            });
        }
    }
}

async fn answer<O: Operator>(stream: TcpStream, operator: Arc<O>) {
    let service = service_fn(|request| {
        let operator = Arc::clone(&operator);
        async move { Ok::<_, Infallible>(page(&request, operator.as_ref()).await) }
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(CONNECTION_MAX).max_buf_size(REQUEST_BYTES_MAX).keep_alive(false);
    if let Err(error) = http.serve_connection(TokioIo::new(stream), service).await {
        tracing::debug!(%error, "a scrape of the metrics broke off");
    }
}

async fn page<T, O: Operator>(request: &Request<T>, operator: &O) -> Response<Full<Bytes>> {
    let (code, text) = match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/metrics") => (StatusCode::OK, metrics::render(&operator.status().await)),
        (_, "/metrics") => (StatusCode::METHOD_NOT_ALLOWED, "only GET\n".to_owned()),
        _ => (StatusCode::NOT_FOUND, "the figures are at /metrics\n".to_owned()),
    };
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = code;
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(metrics::CONTENT_TYPE));
    if code == StatusCode::METHOD_NOT_ALLOWED {
        response.headers_mut().insert(ALLOW, hyper::header::HeaderValue::from_static("GET, HEAD"));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    struct Gateway {
        metrics: MetricsConfig,
    }

    fn problems(text: &str) -> usize {
        let gateway: Gateway = toml::from_str(text).unwrap();
        let mut problems = Problems::default();
        gateway.metrics.check(&mut problems);
        problems.into_found().len()
    }

    #[test]
    fn figures_stay_on_the_box_unless_it_is_said_aloud() {
        assert_eq!(problems("metrics = \"127.0.0.1:9464\""), 0);
        assert_eq!(problems("metrics = \"10.0.0.1:9464\""), 1);
        assert_eq!(problems("metrics = { listen = \"10.0.0.1:9464\", beyond-loopback = true }"), 0);
    }

    #[test]
    fn a_misspelt_key_is_shown_at_its_place() {
        let text = "metrics = { listen = \"10.0.0.1:9464\", beyond-lopback = true }";
        let error = toml::from_str::<Gateway>(text).err().unwrap();
        assert!(error.to_string().contains("beyond-lopback") && error.span().is_some(), "{error}");
    }
}
