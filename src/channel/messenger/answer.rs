//! What the Send API answers, and what it says of its limits (Messenger Platform, "Error Codes"; Graph API, "Rate Limits").
//!
//! Refuses to read the words of an error: its numbers decide. Invariant: what says nothing that is known stops nothing but its
//! own message.

use std::time::Duration;

use super::super::json::Object;
use super::super::{Answer, RETRY_AFTER_MAX, Scope, error_line, retry, unreadable as unreadable_answer};

/// How long to wait after a rate limit that names no time.
const RATE_LIMIT_PAUSE: Duration = Duration::from_secs(30);

/// The headers that tell how much of a limit is used, in percent.
pub(in crate::channel) const USAGE_HEADERS: [&str; 3] = ["x-app-usage", "x-page-usage", "x-business-use-case-usage"];

/// From here on calls are spread out, so that the limit is not reached.
const SLOW_FROM_PERCENT: f64 = 75.0;
const SLOWER_FROM_PERCENT: f64 = 90.0;

/// The meaning of an answer of the Send API.
pub(in crate::channel) fn classify(status: u16, retry_after: Option<Duration>, body: &[u8]) -> Answer {
    let answer = Object::read_bytes(body);
    let Some(answer) = answer else { return unreadable(status, retry_after) };
    if let Some(error) = answer.object("error") {
        return refused(status, retry_after, &error);
    }
    let taken = (200..300).contains(&status) && (answer.has("message_id") || answer.has("recipient_id"));
    if taken {
        Answer::Sent { platform_message_id: answer.text("message_id") }
    } else {
        unreadable(status, retry_after)
    }
}

fn unreadable(status: u16, retry_after: Option<Duration>) -> Answer {
    unreadable_answer(status, retry_after.or((status == 429).then_some(RATE_LIMIT_PAUSE)))
}

fn refused(status: u16, retry_after: Option<Duration>, error: &Object<'_>) -> Answer {
    let Some(code) = error.integer("code") else { return unreadable(status, retry_after) };
    let subcode = error.integer("error_subcode").unwrap_or(0);
    let number = if subcode == 0 { code.to_string() } else { format!("{code}/{subcode}") };
    let text = error_line(&format!("{number}: {}", error.text("message").unwrap_or_default()));
    match (code, subcode) {
        (1 | 2 | 99 | 1200, _) => Answer::NotSent { error: text },
        // The limits of the app, of the user and of the page; 613 comes also for one person who is written to too fast.
        (4 | 17 | 32 | 80_006, _) => retry(retry_after.unwrap_or(RATE_LIMIT_PAUSE), Scope::Bot, text),
        (613, _) => retry(retry_after.unwrap_or(RATE_LIMIT_PAUSE), Scope::Chat, text),
        (551, _) | (200, 1_545_041) | (100, 2_018_001) | (10, 2_018_108) => {
            Answer::Failed { error: text, unreachable: true }
        }
        (10, 2_018_278 | 2_018_065 | 2_534_022) => {
            Answer::Failed { error: error_line(&format!("{}: {text}", super::OUTSIDE_WINDOW)), unreachable: false }
        }
        (10, 2_018_300) => Answer::TakenOver { error: text },
        // The token is void, the page restricted, the permission gone: nobody gets anything.
        (190 | 230, _) | (10, 1_893_063) => Answer::Closed { error: text },
        _ => Answer::Failed { error: text, unreachable: false },
    }
}

/// How long the page shall be silent so that no limit is reached: `None` while there is enough left. `values` are those of
/// [`USAGE_HEADERS`] that came.
pub(in crate::channel) fn pause<'a>(values: impl Iterator<Item = &'a [u8]>) -> Option<Duration> {
    values.filter_map(Object::read_bytes).filter_map(|usage| of_header(&usage)).max()
}

/// One limit, or a list of limits for each page, account or app.
fn of_header(usage: &Object<'_>) -> Option<Duration> {
    let lists = usage.names().filter_map(|name| usage.list(name)).flatten();
    let listed = lists.filter_map(Object::read).filter_map(|limit| of_limit(&limit));
    listed.chain(of_limit(usage)).max()
}

fn of_limit(limit: &Object<'_>) -> Option<Duration> {
    let regained_in = limit.integer("estimated_time_to_regain_access").filter(|minutes| *minutes > 0);
    if let Some(minutes) = regained_in {
        let seconds = u64::try_from(minutes).unwrap_or(0).saturating_mul(60);
        return Some(Duration::from_secs(seconds).min(RETRY_AFTER_MAX));
    }
    let shares = ["call_count", "total_cputime", "total_time"].map(|name| limit.decimal(name));
    let percent = shares.into_iter().flatten().fold(0.0, f64::max).min(100.0);
    // A quarter of a second for each percent of the first stretch, five seconds for each of the last.
    let seconds = match percent {
        ..SLOW_FROM_PERCENT => return None,
        ..SLOWER_FROM_PERCENT => (percent - SLOW_FROM_PERCENT + 1.0) / 4.0,
        _ => (percent - SLOWER_FROM_PERCENT + 1.0) * 5.0,
    };
    Some(Duration::from_secs_f64(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_slows_down_before_the_limit() {
        let check = |headers: &[&str], expected_ms: Option<u64>| {
            let found = pause(headers.iter().map(|header| header.as_bytes()));
            assert_eq!(found, expected_ms.map(Duration::from_millis), "{headers:?}");
        };
        check(&[], None);
        check(&["", "[]", "7", "{}", r#"{"call_count":"many"}"#], None);
        check(&[r#"{"call_count":74,"total_time":2,"total_cputime":0}"#], None);
        check(&[r#"{"call_count":75}"#], Some(250));
        check(&[r#"{"call_count":1,"total_time":89}"#], Some(3_750));
        check(&[r#"{"call_count":75}"#, r#"{"total_cputime":90}"#], Some(5_000));
        check(&[r#"{"call_count":250}"#], Some(55_000));
        let of_page = |call_count: u8, minutes: u32| {
            format!(
                r#"{{"1":[{{"type":"messenger","call_count":{call_count},"total_cputime":1,"total_time":1,
                "estimated_time_to_regain_access":{minutes}}}]}}"#
            )
        };
        check(&[&of_page(10, 0)], None);
        check(&[&of_page(100, 19)], Some(19 * 60_000));
        check(&[&of_page(100, u32::MAX)], Some(24 * 3_600_000));
    }
}
