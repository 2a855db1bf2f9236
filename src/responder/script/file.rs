//! The script file: TOML text to checked rules.
//!
//! Refuses unknown keys, rules that can never be reached and references that can never be filled, each with its line.
//! Invariant: a script that parses can answer; nothing in it is checked again later.

use std::collections::BTreeMap;
use std::time::Duration;

use regex::Regex;
use serde::Deserialize;
use serde_json::Value;
use toml::Spanned;

use super::{Answer, Data, Delay, Failure, FailureKind, Rule, ScriptError, When};
use crate::message::Button;
use crate::template::Template;

/// Longest delay of a rule: far beyond any turn's time, short enough to be no slip of the keyboard.
const DELAY_MAX: Duration = Duration::from_secs(3_600);

/// Telegram's limit for callback data, Bot API, `InlineKeyboardButton`.
const PAYLOAD_MAX_BYTES: usize = 64;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    rule: Vec<Spanned<RawRule>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRule {
    pattern: Option<Spanned<String>>,
    reply: Option<Spanned<String>>,
    replies: Option<Spanned<Vec<Spanned<String>>>>,
    messages: Option<Spanned<Vec<Spanned<String>>>>,
    delay: Option<Spanned<toml::Value>>,
    fail: Option<Spanned<String>>,
    error: Option<Spanned<String>>,
    fail_times: Option<Spanned<u32>>,
    fail_ratio: Option<Spanned<f64>>,
    #[serde(default)]
    handoff: bool,
    metadata: Option<Spanned<BTreeMap<String, toml::Value>>>,
    buttons: Option<Spanned<Vec<RawButton>>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawButton {
    label: String,
    payload: Option<String>,
}

/// A problem and the byte of the text it is at.
struct Problem {
    at: usize,
    what: String,
}

/// Reads every rule of `text`; `file` is its name in errors.
pub(super) fn parse(file: &str, text: &str) -> Result<Vec<Rule>, ScriptError> {
    rules(text).map_err(|problem| ScriptError {
        file: file.to_owned(),
        line: 1 + text.bytes().take(problem.at).filter(|&byte| byte == b'\n').count(),
        what: problem.what,
    })
}

fn rules(text: &str) -> Result<Vec<Rule>, Problem> {
    let file: File = toml::from_str(text)
        .map_err(|error| Problem { at: error.span().map_or(0, |span| span.start), what: error.message().to_owned() })?;
    if file.rule.is_empty() {
        return Err(Problem { at: 0, what: "there is no rule; add a [[rule]]".to_owned() });
    }
    let mut rules = Vec::<Rule>::with_capacity(file.rule.len());
    for raw in file.rule {
        let at = raw.span().start;
        if rules.last().is_some_and(|rule| rule.pattern.is_none()) {
            let what = "comes after a rule without a pattern and can never match; move that one to the end";
            return Err(Problem { at, what: what.to_owned() });
        }
        rules.push(rule(at, raw.into_inner())?);
    }
    Ok(rules)
}

fn rule(at: usize, raw: RawRule) -> Result<Rule, Problem> {
    let pattern = raw.pattern.as_ref().map(regex).transpose()?;
    let failure = failure(at, &raw)?;
    let answers = answers(at, &raw, pattern.as_ref(), failure.as_ref())?;
    let delay = raw.delay.map(|value| delay(value.span().start, value.get_ref())).transpose()?;
    let metadata = raw.metadata.map(|table| metadata(&table, pattern.as_ref())).transpose()?.unwrap_or_default();
    let buttons = raw.buttons.map(buttons).transpose()?.unwrap_or_default();
    Ok(Rule { pattern, delay, failure, answers, buttons, metadata, handoff: raw.handoff })
}

fn regex(pattern: &Spanned<String>) -> Result<Regex, Problem> {
    Regex::new(pattern.get_ref()).map_err(|error| {
        // The regex crate draws the pattern over several lines; the last one says what is wrong.
        let drawn = error.to_string();
        let reason = drawn.lines().last().unwrap_or_default().trim_start_matches("error: ");
        let what = format!("pattern: {reason}; the syntax is that of the Rust regex crate, without look-around");
        Problem { at: pattern.span().start, what }
    })
}

/// The alternatives, of which one is chosen; each is one or more messages.
fn answers(
    at: usize,
    raw: &RawRule,
    pattern: Option<&Regex>,
    failure: Option<&Failure>,
) -> Result<Vec<Answer>, Problem> {
    let one = |text: &Spanned<String>| {
        let at = text.span().start;
        if text.get_ref().trim().is_empty() {
            return Err(Problem { at, what: "the text is empty; write what the bot says".to_owned() });
        }
        Template::parse(text.get_ref(), pattern).map_err(|error| Problem { at, what: error.to_string() })
    };
    let filled = |list: &Spanned<Vec<Spanned<String>>>| {
        let what = "the list is empty; write at least one text".to_owned();
        if list.get_ref().is_empty() { Err(Problem { at: list.span().start, what }) } else { Ok(()) }
    };
    match (&raw.reply, &raw.replies, &raw.messages) {
        (Some(reply), None, None) => Ok(vec![vec![one(reply)?]]),
        (None, Some(replies), None) => {
            filled(replies)?;
            replies.get_ref().iter().map(|reply| Ok(vec![one(reply)?])).collect()
        }
        (None, None, Some(messages)) => {
            filled(messages)?;
            Ok(vec![messages.get_ref().iter().map(one).collect::<Result<_, _>>()?])
        }
        (None, None, None) if failure.is_some_and(|failure| matches!(failure.when, When::Always)) => Ok(Vec::new()),
        (None, None, None) => {
            Err(Problem { at, what: "the rule says nothing; add reply, replies or messages".to_owned() })
        }
        _ => Err(Problem { at, what: "reply, replies and messages exclude each other; keep one".to_owned() }),
    }
}

fn failure(at: usize, raw: &RawRule) -> Result<Option<Failure>, Problem> {
    let Some(fail) = &raw.fail else {
        let needless = raw.error.is_some() || raw.fail_times.is_some() || raw.fail_ratio.is_some();
        let what = "error, fail_times and fail_ratio need fail; add fail = \"retryable\" or \"terminal\"".to_owned();
        return if needless { Err(Problem { at, what }) } else { Ok(None) };
    };
    let kind = match fail.get_ref().as_str() {
        "retryable" => FailureKind::Retryable,
        "terminal" => FailureKind::Terminal,
        other => {
            let what = format!("fail: \"{other}\" is no kind of failure; write \"retryable\" or \"terminal\"");
            return Err(Problem { at: fail.span().start, what });
        }
    };
    let when = match (&raw.fail_times, &raw.fail_ratio) {
        (None, None) => When::Always,
        (Some(times), None) => When::FirstAttempts(*times.get_ref()),
        (None, Some(ratio)) if (0.0..=1.0).contains(ratio.get_ref()) => When::Ratio(*ratio.get_ref()),
        (None, Some(ratio)) => {
            let what = "fail_ratio: outside 0.0 to 1.0; 0.2 fails one attempt in five".to_owned();
            return Err(Problem { at: ratio.span().start, what });
        }
        (Some(_), Some(ratio)) => {
            let what = "fail_times and fail_ratio exclude each other; keep one".to_owned();
            return Err(Problem { at: ratio.span().start, what });
        }
    };
    let message = raw.error.as_ref().map_or("the script says so", |error| error.get_ref().as_str()).to_owned();
    Ok(Some(Failure { kind, when, message }))
}

fn delay(at: usize, value: &toml::Value) -> Result<Delay, Problem> {
    let wrong = || Problem {
        at,
        what: "delay: write a time up to an hour such as \"200ms\" or \"3s\", or { min = \"1s\", max = \"3s\" }"
            .to_owned(),
    };
    let time = |value: Option<&toml::Value>| {
        value.and_then(toml::Value::as_str).and_then(duration).filter(|time| *time <= DELAY_MAX).ok_or_else(wrong)
    };
    match value {
        toml::Value::Table(table) if table.len() == 2 => {
            let (min, max) = (time(table.get("min"))?, time(table.get("max"))?);
            if min <= max { Ok(Delay { min, max }) } else { Err(wrong()) }
        }
        single => time(Some(single)).map(|time| Delay { min: time, max: time }),
    }
}

/// A whole number and its unit: `ms`, `s` or `m`.
fn duration(text: &str) -> Option<Duration> {
    let unit = text.find(|c: char| !c.is_ascii_digit())?;
    let count = text[..unit].parse::<u64>().ok()?;
    match &text[unit..] {
        "ms" => Some(Duration::from_millis(count)),
        "s" => Some(Duration::from_secs(count)),
        "m" => count.checked_mul(60).map(Duration::from_secs),
        _ => None,
    }
}

fn metadata(
    table: &Spanned<BTreeMap<String, toml::Value>>,
    pattern: Option<&Regex>,
) -> Result<Vec<(String, Data)>, Problem> {
    let at = table.span().start;
    let entries = table.get_ref().iter();
    entries
        .map(|(key, value)| {
            let value = data(value, pattern).map_err(|what| Problem { at, what: format!("metadata.{key}: {what}") })?;
            Ok((key.clone(), value))
        })
        .collect()
}

fn data(value: &toml::Value, pattern: Option<&Regex>) -> Result<Data, String> {
    Ok(match value {
        toml::Value::String(text) => Data::Text(Template::parse(text, pattern).map_err(|error| error.to_string())?),
        toml::Value::Integer(number) => Data::Plain(Value::from(*number)),
        toml::Value::Float(number) => Data::Plain(Value::from(*number)),
        toml::Value::Boolean(flag) => Data::Plain(Value::from(*flag)),
        toml::Value::Datetime(moment) => Data::Plain(Value::from(moment.to_string())),
        toml::Value::Array(items) => {
            Data::List(items.iter().map(|item| data(item, pattern)).collect::<Result<_, _>>()?)
        }
        toml::Value::Table(table) => Data::Table(
            table.iter().map(|(key, value)| Ok((key.clone(), data(value, pattern)?))).collect::<Result<_, String>>()?,
        ),
    })
}

fn buttons(raw: Spanned<Vec<RawButton>>) -> Result<Vec<Button>, Problem> {
    let at = raw.span().start;
    let button = |raw: RawButton| {
        let payload = raw.payload.unwrap_or_else(|| raw.label.clone());
        if raw.label.trim().is_empty() {
            return Err(Problem { at, what: "buttons: a label is empty; write what the button says".to_owned() });
        }
        if payload.len() > PAYLOAD_MAX_BYTES {
            let what =
                format!("buttons: the payload of \"{}\" is over {PAYLOAD_MAX_BYTES} bytes; shorten it", raw.label);
            return Err(Problem { at, what });
        }
        Ok(Button { label: raw.label, payload })
    };
    raw.into_inner().into_iter().map(button).collect()
}
