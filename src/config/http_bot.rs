//! The keys of a bot with `channel = "http"`: whom it trusts, and where its replies go.
//!
//! Refuses an address inside the own network unless `allow_private` says so: whoever may write a configuration for a customer
//! must not be able to make this program call what only this program reaches. A name is looked up when it is called, and what
//! it stands for then is checked again (see [`crate::http::guarded_client`]). Invariant: each secret of a bot decodes to a key.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::time::Duration;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use url::{Host, Url};

use super::expected::{duration, endpoint, flag};
use super::reader::{Table, Value};
use super::secret::{Secret, SecretKind};

/// One is in use and one is on its way in or out; the rest is room.
const SECRETS_MAX: usize = 8;

/// "15 to 30 seconds" for one attempt is what Standard Webhooks advises senders.
const CALLBACK_TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(30);

const CALLBACK_EXAMPLE: &str = "https://chat.example.com/turnwise";

/// Keys of 24 to 64 bytes, in Base64 behind the prefix (Standard Webhooks 1.0.0, "Secret").
const SIGNING_SECRET: SecretKind = SecretKind {
    right: "write whsec_ and 24 to 64 random bytes in Base64, plain, as { env = \"NAME\" } or as { file = \"PATH\" }",
    check: |text| match HttpBot::key(text).map(|key| key.len()) {
        None if text.starts_with(PREFIX) => Err("is not Base64 behind whsec_"),
        None => Err("does not start with whsec_"),
        Some(24..=64) => Ok(()),
        Some(_) => Err("is not of 24 to 64 bytes"),
    },
    inline: true,
};

const PREFIX: &str = "whsec_";

/// Standard Base64; some generators leave the padding out.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A bot that is reached over signed webhooks (Standard Webhooks 1.0.0).
#[derive(Debug, Clone, PartialEq)]
pub struct HttpBot {
    /// `whsec_` and Base64. A message signed with any of them is taken, a callback is signed with all of them; 1 to 8.
    pub secrets: Vec<Secret>,
    /// Where replies are posted.
    pub callback_url: String,
    /// For one attempt.
    pub callback_timeout: Duration,
    /// Whether `callback_url` may lead into the own network.
    pub allow_private: bool,
}

impl HttpBot {
    pub(super) const DEFAULT_CALLBACK_TIMEOUT: Duration = Duration::from_secs(20);

    /// The key that a secret stands for; `None` for a text that is no secret of this kind.
    #[must_use]
    pub fn key(secret: &str) -> Option<Vec<u8>> {
        BASE64.decode(secret.strip_prefix(PREFIX)?).ok()
    }
}

/// `None` after a problem.
pub(super) fn read(table: &Table<'_>) -> Option<HttpBot> {
    let secrets = match table.value("secrets") {
        Some(value) => secrets(&value),
        None => {
            table.missing("secrets", "write a list such as [{ env = \"NAME\" }]");
            None
        }
    };
    let allow_private = table.optional("allow_private", &flag()).unwrap_or(false);
    let callback_url = table.required("callback_url", &endpoint(CALLBACK_EXAMPLE));
    if let (Some(url), Some(value)) = (&callback_url, table.value("callback_url"))
        && !allow_private
    {
        check_public(url, &value);
    }
    let callback_timeout = table.optional("callback_timeout", &duration(CALLBACK_TIMEOUT, "20s"));
    Some(HttpBot {
        secrets: secrets?,
        callback_url: callback_url?,
        callback_timeout: callback_timeout.unwrap_or(HttpBot::DEFAULT_CALLBACK_TIMEOUT),
        allow_private,
    })
}

fn secrets(value: &Value<'_>) -> Option<Vec<Secret>> {
    let secrets = value.items("write a list such as [{ env = \"NAME\" }]")?;
    if secrets.is_empty() || secrets.len() > SECRETS_MAX {
        value.problem(format!("lists {} secrets", secrets.len()), format!("write 1 to {SECRETS_MAX}"));
        return None;
    }
    Some(secrets.iter().filter_map(|secret| secret.secret(&SIGNING_SECRET)).collect())
}

fn check_public(url: &str, value: &Value<'_>) {
    let Ok(url) = Url::parse(url) else { return };
    let is_public = match url.host() {
        Some(Host::Ipv4(address)) => is_public_address(address.into()),
        Some(Host::Ipv6(address)) => is_public_address(address.into()),
        Some(Host::Domain(name)) => name.trim_end_matches('.') != "localhost",
        None => true,
    };
    if !is_public {
        value.problem("leads into the own network", "write a public address, or set allow_private = true");
    } else if url.scheme() != "https" {
        value.problem("is not encrypted", "write an https:// address, or set allow_private = true");
    }
}

/// Whether an address can be that of somebody else's server on the internet: none of the ranges that the registries of special
/// addresses call not globally reachable (<https://www.iana.org/assignments/iana-ipv4-special-registry>, and the same for
/// IPv6), and none that stands for one of those.
#[must_use]
pub fn is_public_address(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let is_special = match (a, b, c) {
        // This network, private use, loopback.
        (0 | 10 | 127, ..) => true,
        // Shared between a provider and its customers.
        (100, 64..=127, _) => true,
        // Link-local, where clouds answer for their machines' credentials.
        (169, 254, _) => true,
        (172, 16..=31, _) | (192, 168, _) => true,
        // Protocol assignments, documentation, former relays to IPv6, benchmarks.
        (192, 0, 0 | 2) | (192, 88, 99) | (198, 18 | 19, _) | (198, 51, 100) | (203, 0, 113) => true,
        // Multicast, reserved, broadcast.
        (224..=255, ..) => true,
        _ => false,
    };
    !is_special
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let [a, b, c, d, e, f, g, h] = address.segments();
    let embedded = |high: u16, low: u16| Ipv4Addr::from((u32::from(high) << 16) | u32::from(low));
    match (a, b) {
        // Mapped and translated IPv4 addresses lead where those lead.
        (0, 0) if [c, d, e, f] == [0, 0, 0, 0xffff] => is_public_v4(embedded(g, h)),
        (0x64, 0xff9b) if [c, d, e, f] == [0; 4] => is_public_v4(embedded(g, h)),
        (0x2002, _) => is_public_v4(embedded(b, c)),
        // Protocol assignments with Teredo, documentation.
        (0x2001, 0..=0x1ff | 0xdb8) => false,
        (0x3fff, 0..=0xfff) => false,
        // Everything else that is routed lies in 2000::/3.
        _ => a & 0xe000 == 0x2000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_of_the_internet_are_public() {
        let check = |expected: bool, addresses: &[&str]| {
            for address in addresses {
                assert_eq!(address.parse().map(is_public_address), Ok(expected), "{address}");
            }
        };
        check(
            true,
            &["1.1.1.1", "93.184.215.14", "100.63.0.1", "172.32.0.1", "2606:4700:4700::1111", "::ffff:1.1.1.1"],
        );
        check(false, &["0.0.0.0", "10.1.2.3", "127.0.0.1", "127.9.9.9", "100.64.0.1", "169.254.169.254", "172.16.0.1"]);
        check(false, &["192.168.1.1", "192.0.2.1", "198.18.0.1", "203.0.113.9", "224.0.0.1", "255.255.255.255"]);
        check(false, &["::", "::1", "fe80::1", "fc00::1", "fd12::1", "ff02::1", "2001:db8::1", "64:ff9b:1::1"]);
        check(false, &["::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::a00:1", "2002:7f00:1::", "::127.0.0.1"]);
    }
}
