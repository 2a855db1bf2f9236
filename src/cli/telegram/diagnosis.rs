//! What an operator should know of `getWebhookInfo`'s answer (<https://core.telegram.org/bots/api#webhookinfo>).
//!
//! Pure. Refuses to guess at errors that it does not know: Telegram's own words stand by themselves. Invariant: every finding
//! says what is so, and, where something can be done, what.

use serde_json::Value;

use crate::config::Updates;
use crate::message::Timestamp;

/// As many connections as Telegram makes when nobody says otherwise.
pub(super) const CONNECTIONS: u64 = 40;

/// What the configuration would have Telegram do.
pub(super) struct Expected<'a> {
    pub(super) updates: Updates,
    /// The webhook's address; `None` when the configuration does not say.
    pub(super) url: Option<&'a str>,
    /// The update kinds that the bot reads.
    pub(super) kinds: &'a [&'a str],
}

/// The findings, the gravest first; none when everything is as it should be.
pub(super) fn diagnose(info: &Value, expected: &Expected<'_>, now: Timestamp) -> Vec<String> {
    let url = info["url"].as_str().unwrap_or_default();
    let mut findings = Vec::new();
    findings.extend(address(url, expected));
    if let Some(pending) = info["pending_update_count"].as_u64().filter(|pending| *pending > 0) {
        findings.push(format!("{pending} updates wait at Telegram, which keeps them for at most 24 hours"));
    }
    if let (Some(date), Some(message)) = (info["last_error_date"].as_i64(), info["last_error_message"].as_str()) {
        let age = now.micros_since(Timestamp::from_micros(date.saturating_mul(1_000_000))) / 60_000_000;
        let hint = hint(message).map(|hint| format!("; {hint}")).unwrap_or_default();
        findings.push(format!("the last delivery failed {age} minutes ago: {message}{hint}"));
    }
    if url.is_empty() {
        return findings;
    }
    let connections = info["max_connections"].as_u64().filter(|connections| *connections < CONNECTIONS);
    if let Some(connections) = connections {
        findings.push(format!(
            "Telegram sends at most {connections} updates at once (max_connections); \
             `turnwise telegram set-webhook` asks for {CONNECTIONS}"
        ));
    }
    if let Some(sent) = info["allowed_updates"].as_array() {
        let is_missing = |kind: &&&str| !sent.iter().any(|sent| sent.as_str() == Some(**kind));
        let missing: Vec<&str> = expected.kinds.iter().filter(is_missing).copied().collect();
        if !missing.is_empty() {
            let missing = missing.join(", ");
            findings.push(format!("Telegram does not send {missing}; `turnwise telegram set-webhook` asks for them"));
        }
    }
    findings
}

fn address(url: &str, expected: &Expected<'_>) -> Option<String> {
    match expected.url {
        _ if expected.updates == Updates::Polling => (!url.is_empty()).then(|| {
            "a webhook is set, so no update can be fetched; `turnwise telegram delete-webhook` removes it".to_owned()
        }),
        _ if url.is_empty() => Some("no webhook is set; run `turnwise telegram set-webhook`".to_owned()),
        Some(expected) if url != expected => {
            Some(format!("updates go to another address than this configuration's {expected}"))
        }
        _ => None,
    }
}

/// What is behind an error of a delivery, as Telegram words it.
fn hint(message: &str) -> Option<&'static str> {
    let message = message.to_ascii_lowercase();
    let says = |words: &[&str]| words.iter().any(|words| message.contains(words));
    if says(&["401", "unauthorized", "403", "forbidden"]) {
        Some("the secret is another one: run `turnwise telegram set-webhook` with the configuration that `serve` has")
    } else if says(&["404", "not found"]) {
        Some(
            "the address leads to no bot of this name: does the proxy pass the path on, and does `serve` run with the bot?",
        )
    } else if says(&["301", "302", "307", "308"]) {
        Some("Telegram follows no redirect: http.public_url must be the last address")
    } else if says(&["503"]) {
        Some("Turnwise could not store the update; its log says why")
    } else if says(&["502", "504", "bad gateway"]) {
        Some("the proxy does not reach Turnwise")
    } else if says(&["ssl", "certificate", "tls"]) {
        Some("the certificate must be valid for the host name, with its whole chain")
    } else if says(&["refused", "timed out", "timeout", "unreachable", "reset"]) {
        Some("nothing answers at the address; Telegram calls ports 443, 80, 88 and 8443, over IPv4")
    } else if says(&["resolve", "host"]) {
        Some("the host name of http.public_url is not known to the world")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_diagnosis_names_what_is_wrong() {
        let now = Timestamp::from_micros(1_787_000_600_000_000);
        let check = |info: Value, expected: &[&str]| {
            let webhook = Some("https://bots.example.com/webhooks/telegram/support");
            let wanted = Expected { updates: Updates::Webhook, url: webhook, kinds: &["message", "callback_query"] };
            assert_eq!(diagnose(&info, &wanted, now), expected);
        };
        let fetched = Expected { updates: Updates::Polling, url: None, kinds: &["message"] };
        let polling = |info: Value| diagnose(&info, &fetched, now);
        assert_eq!(polling(json!({ "url": "" })), Vec::<String>::new());
        let set = "a webhook is set, so no update can be fetched; `turnwise telegram delete-webhook` removes it";
        assert_eq!(polling(json!({ "url": "https://elsewhere.example.com/hook" })), [set]);
        check(json!({ "url": "https://bots.example.com/webhooks/telegram/support", "pending_update_count": 0 }), &[]);
        check(json!({ "url": "" }), &["no webhook is set; run `turnwise telegram set-webhook`"]);
        check(
            json!({
                "url": "https://elsewhere.example.com/hook", "pending_update_count": 3,
                "last_error_date": 1_787_000_000, "last_error_message": "Wrong response from the webhook: 401",
            }),
            &[
                "updates go to another address than this configuration's https://bots.example.com/webhooks/telegram/support",
                "3 updates wait at Telegram, which keeps them for at most 24 hours",
                "the last delivery failed 10 minutes ago: Wrong response from the webhook: 401; the secret is another one: run \
                 `turnwise telegram set-webhook` with the configuration that `serve` has",
            ],
        );
        let url = "https://bots.example.com/webhooks/telegram/support";
        check(
            json!({ "url": url, "max_connections": 1, "allowed_updates": ["message"] }),
            &[
                "Telegram sends at most 1 updates at once (max_connections); `turnwise telegram set-webhook` asks for 40",
                "Telegram does not send callback_query; `turnwise telegram set-webhook` asks for them",
            ],
        );
        check(json!({ "url": url, "max_connections": 40, "allowed_updates": ["callback_query", "message"] }), &[]);
        for (message, words) in [
            ("Connection refused", "nothing answers"),
            ("SSL error {error:0A000086:SSL routines::certificate verify failed}", "certificate"),
            ("Wrong response from the webhook: 404 Not Found", "no bot of this name"),
            ("Failed to resolve host: Name or service not known", "host name"),
        ] {
            assert!(hint(message).is_some_and(|hint| hint.contains(words)), "{message}");
        }
        assert_eq!(hint("something new"), None);
    }
}
