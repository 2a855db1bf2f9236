//! `report.html`: a replay on one page, for people.
//!
//! Refuses to need anything but itself: no other file, no server, no script or style that its policy does not name by hash.
//! Invariants: whatever anybody said is text, never markup; what lies in memory is one turn, not all; only turns that have
//! changed are shown in full.

use std::io::{self, Write};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest as _, Sha256};
use similar::{ChangeTag, TextDiff};

use super::book::Line;
use super::compare::Change;
use super::past::{Answer, Call};
use super::run::{Run, State, Totals};

const STYLE: &str = include_str!("report/page.css");
const SCRIPT: &str = include_str!("report/page.js");

/// Browsers stay usable with so many; the rest is in `turns.jsonl`.
const SHOWN_MAX: u64 = 10_000;

/// Two texts of more bytes are shown without marks: finding what they have in common takes the product of their lengths.
const DIFF_BYTES_MAX: usize = 40_000;

/// Writes the page of a run whose lines these are.
pub(super) fn write(page: &mut dyn Write, run: &Run, lines: impl Iterator<Item = io::Result<Line>>) -> io::Result<()> {
    head(page, run)?;
    let mut shown = 0;
    for line in lines {
        let line = line?;
        if line.changes.is_empty() && line.drift.is_empty() {
            continue;
        }
        shown += 1;
        if shown <= SHOWN_MAX {
            turn(page, &line)?;
        }
    }
    if shown == 0 {
        writeln!(page, "<p>Nothing has changed.</p>")?;
    }
    if shown > SHOWN_MAX {
        writeln!(page, "<p>{} more turns have changed; they are in turns.jsonl.</p>", shown - SHOWN_MAX)?;
    }
    writeln!(page, "</main>\n<script>{SCRIPT}</script>\n</body>\n</html>")
}

fn head(page: &mut dyn Write, run: &Run) -> io::Result<()> {
    let hash = |text: &str| format!("'sha256-{}'", STANDARD.encode(Sha256::digest(text)));
    let asked = &run.asked;
    let responder = escaped(&asked.responder);
    write!(
        page,
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; script-src {}; style-src {}; \
         base-uri 'none'; form-action 'none'\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>Replay with {responder}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<header>\n\
         <h1>Replay with {responder}</h1>\n",
        hash(SCRIPT),
        hash(STYLE),
    )?;
    let state = match run.state {
        State::Running => "under way",
        State::Finished => "finished",
        State::Stopped => "stopped before its end",
    };
    let mode = if asked.free_run { "free run, tools from the recording" } else { "through the recorded rounds" };
    let noise = if asked.noise_floor { "; changes beyond the incumbent's own variation" } else { "" };
    write!(page, "<p>{} to {}", asked.since, asked.until)?;
    for (name, value) in [("bot", &asked.bot), ("conversation", &asked.conversation)] {
        if let Some(value) = value {
            write!(page, ", {name} {}", escaped(value))?;
        }
    }
    if asked.sample_percent < 100.0 {
        write!(page, ", {} % of conversations", asked.sample_percent)?;
    }
    writeln!(page, "; {mode}{noise}; {state}.</p>")?;
    totals(page, run)?;
    filters(page, run)
}

fn totals(page: &mut dyn Write, run: &Run) -> io::Result<()> {
    writeln!(
        page,
        "<p class=\"sum\"><strong id=\"changed\">{}</strong> of <strong>{}</strong> turns have changed \
         ({:.1} %), {} of them without an answer.</p>\n\
         <table><thead><tr><th></th><th>latency p50</th><th>p95</th><th>tokens in</th><th>tokens out</th></tr></thead><tbody>",
        run.changed,
        run.turns,
        run.changed_percent(),
        run.errors,
    )?;
    for (name, Totals { input_tokens, output_tokens, latency_p50_ms, latency_p95_ms }) in
        [("recorded", &run.recorded), ("candidate", &run.candidate)]
    {
        writeln!(
            page,
            "<tr><th>{name}</th><td>{latency_p50_ms} ms</td><td>{latency_p95_ms} ms</td><td>{input_tokens}</td>\
             <td>{output_tokens}</td></tr>"
        )?;
    }
    writeln!(page, "</tbody></table>")
}

fn filters(page: &mut dyn Write, run: &Run) -> io::Result<()> {
    writeln!(page, "<fieldset id=\"filters\"><legend>Show turns with changes of</legend>")?;
    let drift = ("drift", run.drifted);
    let kinds = Change::ALL.map(|kind| (kind.as_str(), run.changes.get(&kind).copied().unwrap_or_default()));
    for (kind, count) in kinds.into_iter().chain([drift]) {
        writeln!(page, "<label><input type=\"checkbox\" value=\"{kind}\" checked> {kind} ({count})</label>")?;
    }
    writeln!(
        page,
        "<label>that hold <input type=\"search\" id=\"words\" autocomplete=\"off\"></label>\n\
         <output id=\"shown\"></output></fieldset>\n</header>\n<main>"
    )
}

fn turn(page: &mut dyn Write, line: &Line) -> io::Result<()> {
    let mut kinds: Vec<&str> = line.changes.iter().map(|change| change.as_str()).collect();
    if !line.drift.is_empty() {
        kinds.push("drift");
    }
    write!(
        page,
        "<article data-turn=\"{}\" data-kinds=\"{kinds}\">\n<h2>{} <span>{}</span></h2>\n\
         <p class=\"about\">{} · conversation {} · turn {}",
        line.turn,
        escaped(&line.bot),
        escaped(&kinds.join(", ")),
        line.received_at,
        line.conversation,
        line.turn,
        kinds = kinds.join(" "),
    )?;
    if let Some(trace) = &line.trace_id {
        write!(page, " · trace {}", escaped(trace))?;
    }
    write!(page, " · {:.0} % of words differ", line.distance * 100.0)?;
    if let Some(noise) = line.noise {
        write!(page, ", {:.0} % among the incumbent's own", noise * 100.0)?;
    }
    writeln!(page, "</p>\n<p class=\"message\">{}</p>\n<div class=\"sides\">", escaped(&line.message))?;
    let (left, right) = marked(&line.recorded.reply, &line.candidate.reply);
    side(page, &format!("recorded: {}", line.responder), &left, &line.recorded, &line.candidate.calls)?;
    side(page, "candidate", &right, &line.candidate, &line.recorded.calls)?;
    writeln!(page, "</div>")?;
    for call in &line.drift {
        writeln!(page, "<p class=\"drift\">not in the recording: {}</p>", called(call))?;
    }
    writeln!(page, "</article>")
}

fn side(page: &mut dyn Write, name: &str, reply: &str, answer: &Answer, others: &[Call]) -> io::Result<()> {
    writeln!(page, "<section><h3>{}</h3>\n<p class=\"reply\">{reply}</p>", escaped(name))?;
    for call in &answer.calls {
        let class = if others.contains(call) { "call" } else { "call other" };
        writeln!(page, "<p class=\"{class}\">{}</p>", called(call))?;
    }
    if !answer.questions.is_empty() {
        writeln!(page, "<p class=\"note\">asks a person about {}</p>", escaped(&answer.questions.join(", ")))?;
    }
    if answer.handoff {
        writeln!(page, "<p class=\"note\">gives the conversation to a person</p>")?;
    }
    if let Some(error) = &answer.error {
        writeln!(page, "<p class=\"error\">{}</p>", escaped(error))?;
    }
    let Answer { latency_ms, input_tokens, output_tokens, .. } = answer;
    writeln!(page, "<p class=\"cost\">{latency_ms} ms, {input_tokens} + {output_tokens} tokens</p></section>")
}

fn called(call: &Call) -> String {
    format!("<code>{} {}</code>", escaped(&call.tool), escaped(&call.arguments))
}

/// Both texts, with what only one of them has marked.
fn marked(left: &str, right: &str) -> (String, String) {
    if left.len() + right.len() > DIFF_BYTES_MAX {
        return (escaped(left), escaped(right));
    }
    let (mut before, mut after) = (String::new(), String::new());
    for change in TextDiff::from_words(left, right).iter_all_changes() {
        let text = escaped(change.value());
        match change.tag() {
            ChangeTag::Equal => {
                before.push_str(&text);
                after.push_str(&text);
            }
            ChangeTag::Delete => before.push_str(&format!("<del>{text}</del>")),
            ChangeTag::Insert => after.push_str(&format!("<ins>{text}</ins>")),
        }
    }
    (before, after)
}

/// Text as it can stand in markup and in quoted attributes.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            character => escaped.push(character),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_is_marked_and_nothing_is_markup() {
        let (left, right) = marked("see <b>one</b> now", "see two now");
        assert_eq!(left, "see <del>&lt;b&gt;one&lt;/b&gt;</del> now");
        assert_eq!(right, "see <ins>two</ins> now");
        assert_eq!(escaped("\"'&"), "&quot;&#39;&amp;");
    }
}
