//! What a value may be: a conversion together with the sentence that says what would be right.
//!
//! Refuses to repeat text that may hold a password: addresses are described, never shown. Invariant: a conversion answers
//! every TOML value, of whatever type.

use std::fmt::Display;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::ops::RangeInclusive;
use std::time::Duration;

use toml::de::{DeInteger, DeValue};
use url::Url;

use super::Rate;
use super::duration;
use super::problem::{alternatives, quoted};

type Convert<T> = Box<dyn Fn(&DeValue<'_>) -> Result<T, String>>;

/// What is expected of one value.
pub(super) struct Expected<T> {
    /// An imperative, such as `write a string`.
    pub(super) right: String,
    pub(super) convert: Convert<T>,
}

impl<T: 'static> Expected<T> {
    fn new(right: String, convert: impl Fn(&DeValue<'_>) -> Result<T, String> + 'static) -> Self {
        Self { right, convert: Box::new(convert) }
    }

    /// A whole number that `convert` accepts.
    pub(super) fn integer(right: impl Into<String>, convert: impl Fn(i64) -> Option<T> + 'static) -> Self {
        Self::new(right.into(), move |value| {
            let integer = value.as_integer().ok_or_else(|| is_a(value))?;
            to_i64(integer).and_then(&convert).ok_or_else(|| out_of_range(integer))
        })
    }

    /// A string that `convert` turns into the value.
    pub(super) fn text(right: impl Into<String>, convert: impl Fn(&str) -> Result<T, String> + 'static) -> Self {
        Self::new(right.into(), move |value| convert(value.as_str().ok_or_else(|| is_a(value))?))
    }
}

/// `is an integer`.
pub(super) fn is_a(value: &DeValue<'_>) -> String {
    let name = value.type_str();
    let article = if name.starts_with(['a', 'i']) { "an" } else { "a" };
    format!("is {article} {name}")
}

pub(super) fn flag() -> Expected<bool> {
    Expected::new("write true or false".to_owned(), |value| value.as_bool().ok_or_else(|| is_a(value)))
}

/// A whole number within `range`.
pub(super) fn whole<T>(range: RangeInclusive<T>) -> Expected<T>
where
    T: TryFrom<i64> + PartialOrd + Display + Copy + 'static,
{
    let right = format!("write a whole number from {} to {}", range.start(), range.end());
    Expected::integer(right, move |number| T::try_from(number).ok().filter(|number| range.contains(number)))
}

/// A number within `range`; a whole one may be written without a point.
pub(super) fn number(range: RangeInclusive<f64>) -> Expected<f64> {
    Expected::new(format!("write a number from {} to {}", range.start(), range.end()), move |value| {
        let (number, wrong) = match value {
            DeValue::Float(float) => (float.as_str().parse().ok(), out_of_range(float)),
            DeValue::Integer(integer) => {
                (to_i64(integer).and_then(|whole| i32::try_from(whole).ok()).map(f64::from), out_of_range(integer))
            }
            other => return Err(is_a(other)),
        };
        number.filter(|number| range.contains(number)).ok_or(wrong)
    })
}

/// Numbers are shown as they are written, so without quotes.
fn out_of_range(number: &impl Display) -> String {
    format!("{} is out of range", quoted(&number.to_string()).replace('"', ""))
}

/// The same value as JSON; dates become strings.
pub(super) fn json(value: &DeValue<'_>) -> Result<serde_json::Value, String> {
    Ok(match value {
        DeValue::String(text) => text.to_string().into(),
        DeValue::Boolean(flag) => (*flag).into(),
        DeValue::Datetime(moment) => moment.to_string().into(),
        DeValue::Integer(integer) => to_i64(integer).ok_or_else(|| out_of_range(integer))?.into(),
        DeValue::Float(float) => {
            let number = float.as_str().parse().ok().and_then(serde_json::Number::from_f64);
            number.ok_or_else(|| out_of_range(float))?.into()
        }
        DeValue::Array(items) => items.iter().map(|item| json(item.get_ref())).collect::<Result<Vec<_>, _>>()?.into(),
        DeValue::Table(entries) => {
            let entry = |(name, value): (&toml::Spanned<std::borrow::Cow<'_, str>>, &toml::Spanned<DeValue<'_>>)| {
                Ok((name.get_ref().to_string(), json(value.get_ref())?))
            };
            serde_json::Value::Object(entries.iter().map(entry).collect::<Result<_, String>>()?)
        }
    })
}

fn to_i64(integer: &DeInteger<'_>) -> Option<i64> {
    i64::from_str_radix(integer.as_str(), integer.radix()).ok()
}

/// A duration within `range`; `example` shows the spelling.
pub(super) fn duration(range: RangeInclusive<Duration>, example: &str) -> Expected<Duration> {
    let (shortest, longest) = (duration::spell(*range.start()), duration::spell(*range.end()));
    let right = format!("write a duration from {shortest} to {longest}, such as \"{example}\"");
    Expected::text(right, move |text| {
        let duration = duration::parse(text).map_err(|wrong| format!("{} {wrong}", quoted(text)))?;
        if range.contains(&duration) { Ok(duration) } else { Err(format!("{} is out of range", quoted(text))) }
    })
}

/// A count and a unit of time, such as `20/s`.
pub(super) fn rate(range: RangeInclusive<u32>) -> Expected<Rate> {
    let right = format!("write {} to {} per s, m or h, such as \"20/s\"", range.start(), range.end());
    Expected::text(right, move |text| {
        let read = text.split_once('/').and_then(|(count, unit)| {
            let seconds = match unit.trim() {
                "s" => 1,
                "m" => 60,
                "h" => 3_600,
                _ => return None,
            };
            let count = count.trim().parse().ok().filter(|count| range.contains(count)).and_then(NonZeroU32::new)?;
            Some(Rate { count, per: Duration::from_secs(seconds) })
        });
        read.ok_or_else(|| format!("{} is no such rate", quoted(text)))
    })
}

/// One of a closed set of words.
pub(super) fn word<T: Copy + 'static>(words: &'static [(&'static str, T)]) -> Expected<T> {
    let names: Vec<&str> = words.iter().map(|(name, _)| *name).collect();
    Expected::text(format!("use {}", alternatives(&names)), move |text| {
        if let Some((_, value)) = words.iter().find(|(name, _)| *name == text) {
            Ok(*value)
        } else {
            Err(format!("{} is not known", quoted(text)))
        }
    })
}

/// A string of 1 to `chars_max` characters, whatever they are.
pub(super) fn text(chars_max: usize) -> Expected<String> {
    Expected::text(format!("write 1 to {chars_max} characters"), move |text| match text.chars().count() {
        0 => Err("is empty".to_owned()),
        chars if chars > chars_max => Err(format!("has {chars} characters")),
        _ => Ok(text.to_owned()),
    })
}

/// A string of 1 to `length_max` characters that all pass `belongs`; `alphabet` says which those are.
pub(super) fn name(alphabet: &'static str, belongs: fn(char) -> bool, length_max: usize) -> Expected<String> {
    let right = format!("write 1 to {length_max} characters of {alphabet}");
    Expected::text(right, move |text| is_name(text, belongs, length_max).map(|()| text.to_owned()))
}

/// The check behind [`name`], for names that are keys of a table.
pub(super) fn is_name(text: &str, belongs: fn(char) -> bool, length_max: usize) -> Result<(), String> {
    if text.is_empty() {
        return Err("is empty".to_owned());
    }
    if let Some(stranger) = text.chars().find(|character| !belongs(*character)) {
        return Err(format!("has the character {stranger:?}"));
    }
    match text.chars().count() {
        chars if chars > length_max => Err(format!("has {chars} characters")),
        _ => Ok(()),
    }
}

/// The alphabet of names that become part of NATS subjects, streams and buckets.
pub(super) const NAME_ALPHABET: &str = "A-Z a-z 0-9 _ -";

pub(super) fn in_name_alphabet(character: char) -> bool {
    character.is_ascii_alphanumeric() || matches!(character, '_' | '-')
}

/// An address to listen on.
pub(super) fn socket_address() -> Expected<SocketAddr> {
    Expected::text("write an IP address and a port, such as \"127.0.0.1:8080\" or \"[::]:8080\"", |text| {
        text.parse().map_err(|_| format!("{} is not an address to listen on", quoted(text)))
    })
}

/// An `http://` or `https://` address below which paths are added; kept without a slash at the end.
pub(super) fn base_url(example: &str) -> Expected<String> {
    Expected::text(format!("write an address such as \"{example}\""), |text| {
        let url = plain_url(text, &["http", "https"])?;
        Ok(url.as_str().trim_end_matches('/').to_owned())
    })
}

/// An `http://` or `https://` address that is called as it is written.
pub(super) fn endpoint(example: &str) -> Expected<String> {
    Expected::text(format!("write an address such as \"{example}\""), |text| {
        plain_url(text, &["http", "https"]).map(String::from)
    })
}

/// A browser's origin (RFC 6454): scheme, host and port, nothing behind.
pub(super) fn origin() -> Expected<String> {
    Expected::text("write scheme and host, such as \"https://shop.example.com\"", |text| {
        let url = plain_url(text, &["http", "https"])?;
        match url.path() {
            "/" => Ok(url.origin().ascii_serialization()),
            _ => Err("has a path".to_owned()),
        }
    })
}

/// The address of a NATS server.
pub(super) fn nats_url() -> Expected<String> {
    Expected::text("write an address such as \"nats://127.0.0.1:4222\" or \"tls://nats.example.com:4222\"", |text| {
        let url = plain_url(text, &["nats", "tls"])?;
        match url.path() {
            "" | "/" => Ok(url.as_str().trim_end_matches('/').to_owned()),
            _ => Err("has a path".to_owned()),
        }
    })
}

/// Addresses are shown in logs, so nothing secret may be part of one.
fn plain_url(text: &str, schemes: &[&str]) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|_| "is not a URL".to_owned())?;
    if !schemes.contains(&url.scheme()) {
        let allowed: Vec<String> = schemes.iter().map(|scheme| format!("{scheme}://")).collect();
        return Err(format!("does not start with {}", allowed.join(" or ")));
    }
    if url.host_str().is_none_or(str::is_empty) {
        return Err("names no host".to_owned());
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("holds a user name or password, which belong into keys of their own".to_owned());
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err("has a query or fragment".to_owned());
    }
    Ok(url)
}
