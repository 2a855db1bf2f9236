//! An update of Telegram: any bytes that come with the right secret are refused or can be published.

#![no_main]

use libfuzzer_sys::fuzz_target;
use turnwise::channel::telegram;
use turnwise::config::BotChannel;
use turnwise_fuzz::{CONFIG, SECRET, assert_publishable, with_stamp};

fuzz_target!(|body: &[u8]| {
    let bot = &CONFIG.bots["telegram"];
    let BotChannel::Telegram(settings) = &bot.channel else { unreachable!() };
    if let Ok(verified) = with_stamp(|stamp| telegram::receive(bot, settings, Some(SECRET.as_bytes()), body, stamp)) {
        assert_publishable(&verified);
    }
});
