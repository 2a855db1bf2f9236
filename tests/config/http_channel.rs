//! Bots with `channel = "http"`: their secrets, and the addresses that they may call.

use std::time::Duration;

use turnwise::config::{BotChannel, HttpBot, OnUncertain, Secret};

use crate::{check, read};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

#[test]
fn a_bot_has_its_defaults() {
    let config = read(&format!(
        "[bots.b]\nchannel = \"http\"\nresponder = \"echo\"\nsecrets = [\"{SECRET}\"]\ncallback_url = \"https://a.example/x\""
    ));
    let bot = &config.bots["b"];
    let expected = HttpBot {
        secrets: vec![Secret::new(SECRET.to_owned())],
        callback_url: "https://a.example/x".to_owned(),
        callback_timeout: Duration::from_secs(20),
        allow_private: false,
    };
    assert_eq!((&bot.channel, bot.on_uncertain), (&BotChannel::Http(expected), OnUncertain::Resend));
}

#[test]
fn problems_of_http_bots() {
    const RIGHT: &str =
        r#"write whsec_ and 24 to 64 random bytes in Base64, plain, as { env = "NAME" } or as { file = "PATH" }"#;
    check(
        "[bots.b]\nchannel = \"http\"\nresponder = \"echo\"",
        &[
            r#"1 bots.b.secrets: is missing in [bots.b]; write a list such as [{ env = "NAME" }]"#,
            r#"1 bots.b.callback_url: is missing in [bots.b]; write an address such as "https://chat.example.com/turnwise""#,
        ],
    );
    check(
        r#"[bots.b]
channel = "http"
responder = "echo"
secrets = ["hunter2", "whsec_!", "whsec_AAAA", { env = "KIOSK_SECRET" }]
callback_url = "https://10.0.0.1/x"
callback_timeout = "1m"
allow_private = "no"
typing = true"#,
        &[
            &format!("4 bots.b.secrets[0]: does not start with whsec_; {RIGHT}"),
            &format!("4 bots.b.secrets[1]: is not Base64 behind whsec_; {RIGHT}"),
            &format!("4 bots.b.secrets[2]: is not of 24 to 64 bytes; {RIGHT}"),
            "5 bots.b.callback_url: leads into the own network; write a public address, or set allow_private = true",
            r#"6 bots.b.callback_timeout: "1m" is out of range; write a duration from 100ms to 30s, such as "20s""#,
            "7 bots.b.allow_private: is a string; write true or false",
            "8 bots.b.typing: belongs to telegram and messenger bots; this is an http bot; remove it",
        ],
    );
}

#[test]
fn a_callback_leads_to_the_internet_unless_told_otherwise() {
    let network = "leads into the own network; write a public address, or set allow_private = true";
    let plain = "is not encrypted; write an https:// address, or set allow_private = true";
    for (url, wrong) in [
        ("https://localhost/x", network),
        ("https://127.0.0.1:8443/x", network),
        ("https://[::1]/x", network),
        ("https://169.254.169.254/latest", network),
        ("https://0x7f000001/", network),
        ("https://[::ffff:192.168.0.1]/", network),
        ("http://chat.example.com/x", plain),
    ] {
        let lines = format!("[bots.b]\nchannel = \"http\"\nresponder = \"echo\"\nsecrets = [\"{SECRET}\"]");
        check(&format!("{lines}\ncallback_url = \"{url}\""), &[&format!("5 bots.b.callback_url: {wrong}")]);
        read(&format!("{lines}\ncallback_url = \"{url}\"\nallow_private = true"));
    }
}
