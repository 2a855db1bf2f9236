//! Dead letters in words: what people read of lists, letters and plans.
//!
//! Refuses to print what a terminal would obey. Invariant: data goes to stdout, plans go to stderr.

use anyhow::Context as _;

use super::LISTED;
use crate::cli::{print, say};
use crate::config::Config;
use crate::dead_letters::{Detail, List, Plan, Summary};

pub(super) fn print_list(list: &List) -> anyhow::Result<()> {
    const HEAD: [&str; 6] = ["ID", "TIME", "BOT", "CONVERSATION", "REASON", "ATTEMPTS"];
    if list.dead_letters.is_empty() {
        say("no dead letters");
        return Ok(());
    }
    let mut rows = vec![HEAD.map(str::to_owned)];
    rows.extend(list.dead_letters.iter().map(row));
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let widths = [0, 1, 2, 3, 4, 5].map(width);
    for row in &rows {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        print(cells.collect::<Vec<_>>().join("  ").trim_end())?;
    }
    let shown = list.dead_letters.len() as u64;
    if shown < list.matching {
        say(&format!("the newest {shown} of {}; --limit shows more", list.matching));
    }
    Ok(())
}

fn row(letter: &Summary) -> [String; 6] {
    let cells = [&*letter.bot, &*letter.conversation, &*letter.reason].map(plain);
    let [bot, conversation, reason] = cells;
    [letter.id.to_string(), to_seconds(letter), bot, conversation, reason, letter.attempts.to_string()]
}

fn to_seconds(letter: &Summary) -> String {
    let time = letter.time.to_string();
    time.split_once('.').map_or_else(|| time.clone(), |(seconds, _)| format!("{seconds}Z"))
}

pub(super) fn print_detail(detail: &Detail) -> anyhow::Result<()> {
    let letter = &detail.summary;
    let line = |name: &str, value: &str| print(format!("{name:<14}{}", plain(value)).trim_end());
    line("id", &letter.id.to_string())?;
    line("given up", &letter.time.to_string())?;
    line("conversation", &format!("{}.{}.{}", letter.channel, letter.bot, letter.conversation))?;
    line("message id", &letter.message_id)?;
    line("reason", &letter.reason)?;
    let whole = detail.turn.as_ref().and_then(|turn| turn.reason.as_deref()?.split_once(": "));
    line("error", whole.map_or(&*detail.error, |(_, error)| error))?;
    line("attempts", &letter.attempts.to_string())?;
    if let Some(turn) = &detail.turn {
        line("turn", &turn.id.to_string())?;
        line("received", &turn.received_at.to_string())?;
    }
    if let Some(traceparent) = &detail.traceparent {
        line("trace", traceparent.split('-').nth(1).unwrap_or(traceparent))?;
    }
    if let Some(sequence) = detail.inbound_sequence {
        line("sequence", &sequence.to_string())?;
    }
    if let Some(redriven) = &detail.redriven {
        line("redriven", &format!("as turn {}, {}", redriven.turn_id, redriven.state))?;
    }
    for (name, json) in [("steps", &detail.record), ("message", &detail.payload)] {
        match json {
            Some(json) => print(&format!("{name}\n{}", to_pretty(json)?))?,
            None if name == "message" => line(name, "lies on no stream any more")?,
            None => {}
        }
    }
    Ok(())
}

/// What it would do to the order of conversations, and to the world outside.
pub(super) fn describe_redrive(config: &Config, plan: &Plan) {
    let (letters, places) = (count(plan.dead_letters, "dead letter"), count(plan.conversations, "conversation"));
    if plan.dead_letters == 0 {
        say("no dead letters to redrive");
        return;
    }
    say(&format!("{letters} of {places} to become new messages, in the order in which they were given up:"));
    for place in plan.listed.iter().take(LISTED) {
        let behind = match (place.messages_before, place.last_message_at) {
            (0, _) => "opening the conversation".to_owned(),
            (before, Some(last)) => format!("behind {}, the last of {last}", count(before.unsigned_abs(), "message")),
            (before, None) => format!("behind {}", count(before.unsigned_abs(), "message")),
        };
        let known = place.bot.as_deref().is_some_and(|bot| config.bots.contains_key(bot));
        let doomed = if known { "" } else { " (its bot is not configured: it will be given up again)" };
        say(&format!("  {}: {}, {behind}{doomed}", place.conversation, place.dead_letters));
    }
    let more = plan.conversations.saturating_sub(LISTED as u64);
    if more > 0 {
        say(&format!("  and {}", count(more, "more conversation")));
    }
    say("each is answered as if it were sent only now, and tools that were called for it may be called again");
}

pub(super) fn print_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    print(&to_pretty(value)?)
}

fn to_pretty(value: &impl serde::Serialize) -> anyhow::Result<String> {
    serde_json::to_string_pretty(value).context("cannot write JSON")
}

/// Without what a terminal would obey: ids and errors came from outside.
pub(super) fn plain(text: &str) -> String {
    text.chars().map(|char| if char.is_control() { ' ' } else { char }).collect()
}

pub(super) fn count(number: u64, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}
