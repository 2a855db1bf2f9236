//! A client for addresses that other people chose: it reaches the internet, and nothing of the own network.
//!
//! Refuses by what a name stands for, not by how it is spelled. Invariant: the address that was looked at is the one that is
//! connected to, because the client asks nobody else; a name that changes its mind in between changes nothing.

use std::io;
use std::net::{IpAddr, SocketAddr};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use crate::config::is_public_address;

/// A client for `url` as [`super::client`] makes it, except that it connects to public addresses only, and to no proxy, which
/// would look the name up itself.
///
/// # Errors
/// Those of [`super::client`].
pub fn guarded_client(url: &reqwest::Url) -> Result<reqwest::Client, reqwest::Error> {
    super::builder(url).no_proxy().dns_resolver(PublicAddresses).build()
}

/// Whether the host of an address may be called by a guarded client: a written IP address is not looked up, so nobody else
/// would see it.
#[must_use]
pub(crate) fn may_be_called(url: &reqwest::Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let literal: Option<IpAddr> = host.trim_start_matches('[').trim_end_matches(']').parse().ok();
    literal.is_none_or(is_public_address)
}

/// The public addresses that a name stands for.
#[derive(Debug)]
struct PublicAddresses;

impl Resolve for PublicAddresses {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let public: Vec<SocketAddr> = found.filter(|address| is_public_address(address.ip())).collect();
            if public.is_empty() {
                return Err(io::Error::other("the name stands for no public address").into());
            }
            Ok(Box::new(public.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::chain;

    /// A name that stands for this machine is refused before anything is connected to, however it is written.
    #[tokio::test]
    async fn nothing_of_the_own_network_is_connected_to() -> anyhow::Result<()> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let url: reqwest::Url = format!("http://localhost:{port}/").parse()?;
        let refused = guarded_client(&url)?.get(url.clone()).send().await.err();
        let error = refused.map(|error| chain(&error)).unwrap_or_default();
        assert!(error.contains("no public address"), "{error}");
        assert!(may_be_called(&url), "a name is looked up");
        for host in ["127.0.0.1", "[::1]", "0x7f.1", "169.254.169.254", "[fd00::1]", "[::ffff:10.0.0.1]"] {
            assert!(!may_be_called(&format!("http://{host}/").parse()?), "{host}");
        }
        assert!(may_be_called(&"https://1.1.1.1/".parse()?));
        Ok(())
    }
}
