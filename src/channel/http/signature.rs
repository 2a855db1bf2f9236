//! Signatures of Standard Webhooks 1.0.0, symmetric scheme `v1`: both directions
//! (<https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md>).
//!
//! Refuses to read a clock: the time is an argument. Invariant: what is signed is the id, the time and the raw body, as they
//! lie on the wire, and every comparison takes the same time whatever it compares.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use subtle::{Choice, ConstantTimeEq as _};

use crate::config::{HttpBot, Secret};
use crate::message::Timestamp;

/// How far a message's time may lie from ours, either way: what the reference libraries take.
pub const TOLERANCE_SECONDS: i64 = 5 * 60;

/// The longest id that is taken, in bytes: it becomes part of a dedupe id, and of a header.
const ID_BYTES_MAX: usize = 256;

/// Signatures looked at: one for each secret of the sender's, and those of schemes that we do not know.
const SIGNATURES_MAX: usize = 32;

/// The three headers, as they came or as they are to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Headers<'a> {
    pub id: &'a str,
    /// Seconds since 1970-01-01T00:00:00Z.
    pub timestamp: &'a str,
    /// `v1,` and Base64, several with a space between.
    pub signature: &'a str,
}

/// Whether a holder of one of the secrets signed this body under this id, at most [`TOLERANCE_SECONDS`] away from `now`.
#[must_use]
pub fn is_authentic(secrets: &[Secret], headers: &Headers<'_>, body: &[u8], now: Timestamp) -> bool {
    let Ok(timestamp) = headers.timestamp.parse::<i64>() else { return false };
    let age = (now.as_micros() / 1_000_000).saturating_sub(timestamp);
    let plain = !headers.id.is_empty()
        && headers.id.len() <= ID_BYTES_MAX
        && headers.id.bytes().all(|byte| byte.is_ascii_graphic());
    if !plain || age.saturating_abs() > TOLERANCE_SECONDS {
        return false;
    }
    let shown: Vec<Vec<u8>> = headers.signature.split(' ').take(SIGNATURES_MAX).filter_map(digest).collect();
    let mut found = Choice::from(0);
    for mac in secrets.iter().filter_map(|secret| mac(secret, headers.id, headers.timestamp, body)) {
        for signature in &shown {
            found |= mac.as_slice().ct_eq(signature);
        }
    }
    found.into()
}

/// The value of `webhook-signature`: one signature for each secret, so that either side can change theirs first.
#[must_use]
pub fn sign(secrets: &[Secret], id: &str, timestamp: &str, body: &[u8]) -> String {
    let macs = secrets.iter().filter_map(|secret| mac(secret, id, timestamp, body));
    macs.map(|mac| format!("v1,{}", STANDARD.encode(mac))).collect::<Vec<_>>().join(" ")
}

/// `None` for a text that is no secret; the configuration holds none.
fn mac(secret: &Secret, id: &str, timestamp: &str, body: &[u8]) -> Option<Vec<u8>> {
    let key = HttpBot::key(secret.expose())?;
    let mac = Hmac::<Sha256>::new_from_slice(&key).ok()?;
    let signed = mac.chain_update(id).chain_update(".").chain_update(timestamp).chain_update(".").chain_update(body);
    Some(signed.finalize().into_bytes().to_vec())
}

/// The digest of a signature of this scheme; `v1a` and what comes later is passed over.
fn digest(signature: &str) -> Option<Vec<u8>> {
    STANDARD.decode(signature.strip_prefix("v1,")?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const OTHER: &str = "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
    const ID: &str = "msg_p5jXN8AQM9LWM0D4loKWxJek";
    const TIME: &str = "1614265330";
    const BODY: &[u8] = b"{\"test\": 2432232314}";
    const SIGNATURE: &str = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";

    fn secrets(texts: &[&str]) -> Vec<Secret> {
        texts.iter().map(|text| Secret::new((*text).to_owned())).collect()
    }

    #[test]
    fn the_published_vector_is_signed_and_accepted() {
        assert_eq!(sign(&secrets(&[SECRET]), ID, TIME, BODY), SIGNATURE);
        let check = |texts: &[&str], headers: &Headers<'_>, body: &[u8], seconds: i64, expected: bool| {
            let now = Timestamp::from_micros(seconds * 1_000_000);
            assert_eq!(is_authentic(&secrets(texts), headers, body, now), expected, "{headers:?} at {seconds}");
        };
        let right = Headers { id: ID, timestamp: TIME, signature: SIGNATURE };
        let signed_at = 1_614_265_330;
        check(&[SECRET], &right, BODY, signed_at, true);
        check(&[OTHER, SECRET], &right, BODY, signed_at, true);
        check(&[OTHER], &right, BODY, signed_at, false);
        check(&[], &right, BODY, signed_at, false);
        for (away, expected) in [(-300, true), (300, true), (-301, false), (301, false)] {
            check(&[SECRET], &right, BODY, signed_at + away, expected);
        }
        check(&[SECRET], &right, b"{\"test\": 2432232315}", signed_at, false);
        let several = format!("v1a,AAAA v1,AAAA v2,x {SIGNATURE}");
        check(&[SECRET], &Headers { signature: &several, ..right.clone() }, BODY, signed_at, true);
        for wrong in ["", "v1,", &SIGNATURE[3..], "v1a,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="] {
            check(&[SECRET], &Headers { signature: wrong, ..right.clone() }, BODY, signed_at, false);
        }
        for (id, timestamp) in [("", TIME), ("msg_1", TIME), (ID, "1614265331"), (ID, "soon"), (ID, "")] {
            check(&[SECRET], &Headers { id, timestamp, signature: SIGNATURE }, BODY, signed_at, false);
        }
        let both = sign(&secrets(&[OTHER, SECRET]), ID, TIME, BODY);
        assert_eq!(both.split(' ').nth(1), Some(SIGNATURE));
    }
}
