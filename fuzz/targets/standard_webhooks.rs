//! The signature of Standard Webhooks: nothing but a signature by the secret, over these bytes and of this time, opens a bot. Of the
//! input, the first three lines are the headers (id, time, signatures) and the rest is the body.

#![no_main]

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use libfuzzer_sys::fuzz_target;
use sha2::Sha256;
use turnwise::channel::Refusal;
use turnwise::channel::http::{self, signature};
use turnwise::config::BotChannel;
use turnwise_fuzz::{CONFIG, NOW_SECONDS, WEBHOOK_KEY, assert_publishable, with_stamp};

fuzz_target!(|input: &[u8]| {
    let mut lines = input.splitn(4, |byte| *byte == b'\n');
    let mut header = || std::str::from_utf8(lines.next().unwrap_or_default()).ok();
    let (Some(id), Some(timestamp), Some(signature)) = (header(), header(), header()) else { return };
    let body = lines.next().unwrap_or_default();

    let bot = &CONFIG.bots["http"];
    let BotChannel::Http(settings) = &bot.channel else { unreachable!() };
    let mut mac = Hmac::<Sha256>::new_from_slice(WEBHOOK_KEY).expect("any length will do");
    for piece in [id.as_bytes(), b".", timestamp.as_bytes(), b".", body] {
        mac.update(piece);
    }
    let right = format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()));
    let take = |signature: &str| {
        let headers = signature::Headers { id, timestamp, signature };
        with_stamp(|stamp| http::receive(bot, settings, Some(headers), body, stamp))
    };
    let is_timely = timestamp.parse::<i64>().is_ok_and(|at| at.abs_diff(NOW_SECONDS) <= 300);
    let is_plain = (1..=256).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic());
    let is_signed = signature.split(' ').take(32).any(|shown| shown == right);

    let taken = take(signature);
    assert_eq!(!matches!(taken, Err(Refusal::Unauthorized)), is_signed && is_timely && is_plain);
    // Rightly signed, so that what is behind the signature is reached, too.
    let taken = take(&right);
    assert_eq!(!matches!(taken, Err(Refusal::Unauthorized)), is_timely && is_plain);
    if let Ok(verified) = taken {
        assert_publishable(&verified);
    }
});
