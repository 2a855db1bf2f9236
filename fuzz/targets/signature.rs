//! A signature of Meta's and a secret of Telegram's: no header but the right one opens a bot. Of the input, the first line is the
//! header and the rest is the body.

#![no_main]

use hmac::{Hmac, KeyInit as _, Mac as _};
use libfuzzer_sys::fuzz_target;
use sha2::Sha256;
use turnwise::channel::{Refusal, messenger, telegram};
use turnwise::config::BotChannel;
use turnwise_fuzz::{CONFIG, SECRET, with_stamp};

fuzz_target!(|input: &[u8]| {
    let end = input.iter().position(|byte| *byte == b'\n').unwrap_or(input.len());
    let (header, body) = (&input[..end], input.get(end + 1..).unwrap_or_default());

    let bot = &CONFIG.bots["messenger"];
    let BotChannel::Messenger(settings) = &bot.channel else { unreachable!() };
    let mut mac = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).expect("any length will do");
    mac.update(body);
    let right = header
        .strip_prefix(b"sha256=")
        .and_then(|digest| hex::decode(digest).ok())
        .is_some_and(|digest| mac.verify_slice(&digest).is_ok());
    let taken = with_stamp(|stamp| messenger::receive(bot, settings, &[], Some(header), body, stamp));
    assert_eq!(matches!(taken, Err(Refusal::Unauthorized)), !right);

    let bot = &CONFIG.bots["telegram"];
    let BotChannel::Telegram(settings) = &bot.channel else { unreachable!() };
    let taken = with_stamp(|stamp| telegram::receive(bot, settings, Some(header), body, stamp));
    assert_eq!(matches!(taken, Err(Refusal::Unauthorized)), header != SECRET.as_bytes());
});
