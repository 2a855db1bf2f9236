//! Pruning, by examples and by properties, and the history cache.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::HashMap;

use proptest::prelude::*;
use serde_json::json;
use turnwise::message::{Attachment, Author, Role, Timestamp};
use turnwise::responder::history::{Budget, HistoryCache, answered_call, calls, halve, prune, tokens};
use turnwise::store::StoredMessage;
use uuid::Uuid;

const PLENTY: Budget = Budget { messages: u32::MAX, tokens: u32::MAX };

/// A message in short: `u1` a user in turn 1, `b1` the bot, `a` an agent, `i` an import, `b1+xy` the bot calling the tools
/// x and y, `t1:x` the result of x, `s` a system message. Without a number, the message belongs to no turn.
fn stored(ordinal: usize, short: &str) -> StoredMessage {
    let (role, author) = match short.as_bytes()[0] {
        b'u' => (Role::User, Author::User),
        b'b' => (Role::Assistant, Author::Bot),
        b'a' => (Role::Assistant, Author::Agent),
        b'i' => (Role::Assistant, Author::Import),
        b's' => (Role::System, Author::Import),
        _ => (Role::Tool, Author::Bot),
    };
    let tool = match (short.split_once('+'), short.split_once(':')) {
        (Some((_, asked)), _) => Some(asked.chars().map(|id| json!({ "id": id.to_string() })).collect()),
        (_, Some((_, answered))) => Some(json!({ "tool_call_id": answered })),
        _ => None,
    };
    StoredMessage {
        id: Uuid::from_u128(ordinal as u128),
        ordinal: i64::try_from(ordinal).unwrap(),
        turn_id: short.get(1..2).and_then(|turn| turn.parse().ok()).map(Uuid::from_u128),
        role,
        author,
        content: short.to_owned(),
        attachments: Vec::new(),
        tool,
        platform_message_id: None,
        created_at: Timestamp::from_micros(0),
    }
}

fn history(shorts: &str) -> Vec<StoredMessage> {
    shorts.split_whitespace().enumerate().map(|(index, short)| stored(index + 1, short)).collect()
}

/// Back to shorts; a made-up result as `cancelled:x`.
fn shorts(messages: &[StoredMessage]) -> String {
    let short = |message: &StoredMessage| match answered_call(message) {
        Some(call) if message.content == "cancelled" => format!("cancelled:{call}"),
        _ => message.content.clone(),
    };
    messages.iter().map(short).collect::<Vec<_>>().join(" ")
}

#[test]
fn turns_are_repaired() {
    let check = |before: &str, after: &str| assert_eq!(shorts(&prune(&history(before), PLENTY)), after, "{before}");
    check("", "");
    check("u1 b1 u2 b2", "u1 b1 u2 b2");
    // Nothing before the first user message.
    check("b1 a s t1:x u2 b2", "u2 b2");
    // A turn may hold several messages of either side.
    check("u1 u1 b1 b1", "u1 u1 b1 b1");
    // Orphans: at the end, and before another turn's answer.
    check("u1 b1 u2", "u1 b1");
    check("u1 u2 b2", "u2 b2");
    check("u1 s u2 b2", "u2 b2");
    check("u1 t1:x u2 b2", "u2 b2");
    check("u1", "");
    // A person answers all that was waiting; imported messages have no turns to compare.
    check("u1 b1 u2 u3 a u4 a a u5 b5", "u1 b1 u2 u3 a u4 a a u5 b5");
    check("u u i u i", "u u i u i");
    check("u u1 b1", "u u1 b1");
    // Tool calls and results.
    check("u1 b1+xy t1:x t1:y b1", "u1 b1+xy t1:x t1:y b1");
    check("u1 b1+xy t1:y b1", "u1 b1+xy t1:y cancelled:x b1");
    check("u1 b1+x", "u1 b1+x cancelled:x");
    check("u1 b1+x b1 t1:x", "u1 b1+x cancelled:x b1");
    check("u1 b1+x u2 t1:x b2", "u1 b1+x cancelled:x u2 b2");
    check("u1 b1+x t1:x t1:x b1 t1:z", "u1 b1+x t1:x b1");
    check("u1 t1:x b1", "u1 b1");
}

#[test]
fn the_newest_turns_that_fit_are_kept_without_a_gap() {
    let check = |budget: Budget, after: &str| {
        let before = history("u1 b1 u2 b2+x t2:x b2 u3 b3");
        assert_eq!(shorts(&prune(&before, budget)), after, "{budget:?}");
    };
    let messages = |messages| Budget { messages, ..PLENTY };
    check(messages(8), "u1 b1 u2 b2+x t2:x b2 u3 b3");
    check(messages(7), "u2 b2+x t2:x b2 u3 b3");
    check(messages(5), "u3 b3");
    check(messages(1), "");
    // u3 and b3: one third of two bytes, rounded up, and 30 %, rounded up, and 4: six tokens each.
    check(Budget { tokens: 12, ..PLENTY }, "u3 b3");
    check(Budget { tokens: 11, ..PLENTY }, "");
    assert_eq!(shorts(&halve(&history("u1 b1 u2 b2 u3 b3 u4 b4"))), "u3 b3 u4 b4");
    assert_eq!(shorts(&halve(&history("u1 b1"))), "");
}

#[test]
fn tokens_count_bytes_of_everything_shown() {
    let message = |content: &str| StoredMessage { content: content.to_owned(), ..stored(1, "u1") };
    assert_eq!(tokens(&message("")), 4);
    assert_eq!(tokens(&message("abc")), 6);
    assert_eq!(tokens(&message(&"x".repeat(300))), 134);
    assert_eq!(tokens(&message("你好吗")), 8);
    let photo = Attachment { kind: "photo".to_owned(), file_id: None, url: None, mime_type: None, name: None };
    assert_eq!(tokens(&StoredMessage { attachments: vec![photo], ..message("") }), tokens(&message("[photo]")));
    assert_eq!(
        tokens(&StoredMessage { tool: Some(json!({ "id": "x" })), ..message("") }),
        tokens(&message(r#"{"id":"x"}"#))
    );
}

fn any_message() -> impl Strategy<Value = (&'static str, u8, &'static str, usize)> {
    let kind =
        prop_oneof![4 => Just("u"), 4 => Just("b"), 1 => Just("a"), 1 => Just("i"), 1 => Just("s"), 3 => Just("t")];
    (
        kind,
        0..4_u8,
        prop_oneof![3 => Just(""), 1 => Just("x"), 1 => Just("y"), 1 => Just("xy"), 1 => Just("xx")],
        0..60_usize,
    )
}

prop_compose! {
    fn any_history()(parts in prop::collection::vec(any_message(), 0..40)) -> Vec<StoredMessage> {
        let message = |(index, (kind, turn, tool, length)): (usize, &(&str, u8, &str, usize))| {
            let turn = if *turn == 0 { " ".to_owned() } else { turn.to_string() };
            let tool = match *kind {
                "b" if !tool.is_empty() => format!("+{tool}"),
                "t" => format!(":{}", tool.get(..1).unwrap_or("z")),
                _ => String::new(),
            };
            let short = format!("{kind}{turn}{tool}");
            StoredMessage { content: "x".repeat(*length), ..stored(index + 1, &short) }
        };
        parts.iter().enumerate().map(message).collect()
    }
}

fn is_cancelled(message: &StoredMessage, before: &HashMap<Uuid, &StoredMessage>) -> bool {
    !before.contains_key(&message.id) && message.role == Role::Tool && message.content == "cancelled"
}

proptest! {
    #[test]
    fn pruned_histories_keep_every_promise(before in any_history(), messages in 0..45_u32, token_budget in 0..600_u32) {
        let budget = Budget { messages, tokens: token_budget };
        let after = prune(&before, budget);

        // Within the budget, and nothing more would have fitted.
        prop_assert!(after.len() <= messages as usize);
        prop_assert!(after.iter().map(tokens).sum::<u64>() <= u64::from(token_budget));
        let whole = prune(&before, PLENTY);
        prop_assert!(whole.ends_with(&after), "turns are whole and there is no gap");
        let left = &whole[..whole.len() - after.len()];
        if let Some(start) = (0..left.len()).rev().find(|&at| starts_turn(&whole, at)) {
            let next = &whole[start..];
            let cost = next.iter().map(tokens).sum::<u64>();
            prop_assert!(next.len() > messages as usize || cost > u64::from(token_budget));
        }

        // Begins with a user message, at the beginning of a turn.
        prop_assert!(after.is_empty() || starts_turn(&whole, left.len()));
        prop_assert!(after.last().is_none_or(|last| last.role != Role::User));

        // A call is followed by exactly one result each, and there are no other results.
        let mut rest = &after[..];
        while let [message, tail @ ..] = rest {
            prop_assert!(message.role != Role::Tool);
            let results = tail.iter().take_while(|message| message.role == Role::Tool).count();
            let mut asked = calls(message);
            asked.sort_unstable();
            asked.dedup();
            let mut answered: Vec<_> = tail[..results].iter().filter_map(answered_call).collect();
            answered.sort_unstable();
            prop_assert_eq!(asked, answered);
            rest = &tail[results..];
        }

        // A subsequence of what was there, but for the results made up.
        let known: HashMap<_, _> = before.iter().map(|message| (message.id, message)).collect();
        let kept: Vec<_> = after.iter().filter(|message| !is_cancelled(message, &known)).collect();
        prop_assert!(kept.iter().all(|message| known.get(&message.id) == Some(message)));
        prop_assert!(kept.is_sorted_by(|one, other| one.ordinal < other.ordinal));

        prop_assert_eq!(&prune(&after, budget), &after);
    }
}

fn starts_turn(messages: &[StoredMessage], at: usize) -> bool {
    messages[at].role == Role::User && (at == 0 || messages[at - 1].role != Role::User)
}

#[tokio::test]
async fn the_cache_answers_only_for_the_count_it_knows() {
    let (one, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
    let cache = HistoryCache::new(1 << 20, 4);
    assert_eq!(cache.get(one, 0).await, None);
    let four = history("u1 b1 u2 b2");
    cache.put(one, 4, &four).await;
    assert_eq!(cache.get(one, 4).await.as_deref(), Some(&four[..]));
    assert_eq!(cache.get(one, 5).await, None, "somebody else wrote");
    assert_eq!(cache.get(other, 4).await, None);

    // What a commit adds moves the window on.
    let all = history("u1 b1 u2 b2 u3 b3");
    cache.append(one, 6, &all[4..]).await;
    assert_eq!(cache.get(one, 6).await.as_deref(), Some(&all[2..]));
    assert_eq!(cache.get(one, 4).await, None);

    // An agent's message came in between: the entry has a hole and is forgotten.
    cache.append(one, 9, &all[4..]).await;
    assert_eq!(cache.get(one, 9).await, None);
    assert_eq!(cache.get(one, 6).await, None);

    cache.put(other, 0, &[]).await;
    cache.append(other, 2, &all[..2]).await;
    assert_eq!(cache.get(other, 2).await.as_deref(), Some(&all[..2]));
    cache.invalidate(other).await;
    assert_eq!(cache.get(other, 2).await, None);
}
