//! The one kind of URL that an upstream can have: `https://host[:port]/path?query`, read once.

use std::fmt;
use std::str::FromStr;

use hyper::Uri;
use serde::{Deserialize, Deserializer, de};

use crate::values::{HostPort, ValueError};

/// Longest URL, in bytes.
pub const URL_BYTES_MAX: usize = 2048;

/// `https://host[:port]/path?query`, or `http://`. Without user and password: a URL is no place for a secret.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Url {
    uri: Uri,
    address: HostPort,
}

impl Url {
    /// Whether it begins with `https`.
    pub fn is_secure(&self) -> bool {
        self.uri.scheme_str() == Some("https")
    }

    /// Whom to connect to.
    pub fn address(&self) -> &HostPort {
        &self.address
    }

    /// For the header `Host`: as it was written.
    pub fn authority(&self) -> &str {
        self.uri.authority().map_or("", |authority| authority.as_str())
    }

    /// All of it.
    pub fn uri(&self) -> &Uri {
        &self.uri
    }

    /// Path and query, at least `/`.
    pub fn path(&self) -> &str {
        self.uri.path_and_query().map_or("/", |path| path.as_str())
    }
}

impl FromStr for Url {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let wrong = |why: &str| {
            ValueError(format!("\"{text}\" is not a URL to send to ({why}): write for example \"https://host/path\""))
        };
        if text.len() > URL_BYTES_MAX {
            return Err(ValueError(format!("the URL is longer than {URL_BYTES_MAX} bytes")));
        }
        let uri: Uri = text.parse().map_err(|_| wrong("it can't be read"))?;
        let usual = match uri.scheme_str() {
            Some("https") => 443,
            Some("http") => 80,
            _ => return Err(wrong("it begins with https:// or http://")),
        };
        let authority = uri.authority().ok_or_else(|| wrong("it names no host"))?;
        if authority.as_str().contains('@') {
            // Not quoted: it holds a password.
            return Err(ValueError(
                "a URL must not hold a user and password: use bearer-token or a certificate".into(),
            ));
        }
        let address = format!("{}:{}", authority.host(), authority.port_u16().unwrap_or(usual)).parse()?;
        Ok(Self { uri, address })
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.uri.fmt(f)
    }
}

impl<'de> Deserialize<'de> for Url {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_names_whom_to_connect_to_and_what_to_ask_for() {
        let url: Url = "https://fhir.example/in?a=b".parse().unwrap();
        assert_eq!((url.address().to_string().as_str(), url.path()), ("fhir.example:443", "/in?a=b"));
        let url: Url = "http://[::1]:8080".parse().unwrap();
        assert_eq!((url.address().to_string().as_str(), url.path(), url.is_secure()), ("[::1]:8080", "/", false));
        assert_eq!(url.authority(), "[::1]:8080");
        for bad in ["fhir.example/in", "ftp://a/b", "https://", "https://a b/", "/in"] {
            assert!(bad.parse::<Url>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_password_in_a_url_is_not_taken_and_not_repeated() {
        let error = "https://box:geheim@host/".parse::<Url>().unwrap_err().to_string();
        assert!(!error.contains("geheim"), "{error}");
    }
}
