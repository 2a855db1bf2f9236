//! Outgoing HTTP: how every client of this program is built.
//!
//! Refuses to follow redirects: they would carry a token or a prompt elsewhere.

use std::time::Duration;

use reqwest::header::{HeaderMap, RETRY_AFTER};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc2822;

use crate::telemetry::install_crypto_provider;

pub(crate) mod guard;
pub(crate) mod sse;

pub use guard::guarded_client;

/// Longest wait for a TCP and TLS connection: a server that is up answers in a fraction of it, even from another continent.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Idle connections are closed before the other side does it: a call on a connection that closes at that moment would have
/// an unknown outcome for no reason.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(15);

/// Longest wait taken from a server: past this the caller's own attempts decide.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(3_600);

/// A client for the server at `url`: certificates checked against the system's roots, no overall timeout (each call sets
/// its own).
///
/// reqwest does not build a client on a system without CA certificates, even if it only ever speaks plain HTTP (reqwest
/// issue 2988), so a client for `http://` trusts no certificate at all.
///
/// # Errors
/// When `url` is `https://` and the system's CA certificates cannot be loaded.
pub fn client(url: &reqwest::Url) -> Result<reqwest::Client, reqwest::Error> {
    builder(url).build()
}

fn builder(url: &reqwest::Url) -> reqwest::ClientBuilder {
    install_crypto_provider();
    let builder = reqwest::Client::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .pool_idle_timeout(POOL_IDLE_TIMEOUT)
        .redirect(reqwest::redirect::Policy::none())
        .user_agent(concat!("turnwise/", env!("CARGO_PKG_VERSION")));
    let plain = url.scheme() == "http";
    if plain { builder.tls_certs_only([]) } else { builder }
}

/// `Retry-After` as RFC 9110, 10.2.3, has it: seconds, or an HTTP date, which is a date of RFC 2822 in GMT. A moment that has
/// passed is no wait; no wait is longer than an hour.
pub fn retry_after(headers: &HeaderMap, now: OffsetDateTime) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = match value.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => Duration::try_from(OffsetDateTime::parse(value, &Rfc2822).ok()? - now).unwrap_or(Duration::ZERO),
    };
    Some(wait.min(RETRY_AFTER_MAX))
}
