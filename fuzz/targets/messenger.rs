//! A batch of Messenger's events: any bytes that are signed rightly are refused, or every event of them can be published.

#![no_main]

use hmac::{Hmac, KeyInit as _, Mac as _};
use libfuzzer_sys::fuzz_target;
use sha2::Sha256;
use turnwise::channel::messenger;
use turnwise::config::BotChannel;
use turnwise_fuzz::{CONFIG, SECRET, assert_publishable, with_stamp};

fuzz_target!(|body: &[u8]| {
    let bot = &CONFIG.bots["messenger"];
    let BotChannel::Messenger(settings) = &bot.channel else { unreachable!() };
    let mut mac = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).expect("any length will do");
    mac.update(body);
    let signature = format!("sha256={}", hex::encode(mac.finalize().into_bytes()));
    let taken = with_stamp(|stamp| messenger::receive(bot, settings, &[], Some(signature.as_bytes()), body, stamp));
    taken.into_iter().flatten().for_each(|event| assert_publishable(&event));
});
