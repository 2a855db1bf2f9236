//! What the targets share: the bots that they decode for, and what must be true of whatever a channel takes.
//!
//! Refuses to judge what a message means. Invariant: nothing here reads a clock or anything random, so that an input behaves the
//! same each time.

use std::path::Path;
use std::sync::LazyLock;

use turnwise::channel::{Stamp, Verified};
use turnwise::config::Config;
use turnwise::message::{Envelope, Timestamp};
use turnwise::stream::{Lane, Names};
use uuid::Uuid;

pub const SECRET: &str = "secret";

/// What the secret of the `http` bot in `fuzz.toml` stands for, as Base64 has it there.
pub const WEBHOOK_KEY: &[u8] = b"twenty-four bytes, as it";

/// The time at which everything comes.
pub const NOW_SECONDS: i64 = 1_700_000_000;

/// A bot of each channel, whose every secret is [`SECRET`].
pub static CONFIG: LazyLock<Config> = LazyLock::new(|| {
    let text = include_str!("fuzz.toml");
    Config::parse(text, Path::new("fuzz.toml"), &|_| Some(SECRET.to_owned())).expect("the configuration is right")
});

pub fn with_stamp<T>(run: impl FnOnce(&mut Stamp<'_>) -> T) -> T {
    run(&mut Stamp { now: Timestamp::from_micros(NOW_SECONDS * 1_000_000), new_id: &mut Uuid::nil })
}

/// What is taken can be published: its subject and its id are ones that NATS takes, and what is written is read again as it was.
pub fn assert_publishable(verified: &Verified) {
    let envelope = verified.envelope();
    let subject = Names::new("turnwise").subject(Lane::Inbound, 0, &envelope.key);
    assert!(subject.split('.').all(|token| !token.is_empty()), "{subject}");
    let token = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'*' | b'>');
    assert!(subject.bytes().all(token), "{subject}");
    assert!(envelope.dedupe_id.len() <= 1024, "a header of bounded length");
    assert!(envelope.dedupe_id.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' '), "{}", envelope.dedupe_id);
    assert_reads_back(envelope);
}

/// What is written is read again as it was.
pub fn assert_reads_back(envelope: &Envelope) {
    let written = serde_json::to_vec(envelope).expect("it is written");
    let read: Envelope = serde_json::from_slice(&written).expect("what was written is read");
    assert_eq!(serde_json::to_vec(&read).expect("it is written again"), written);
}
