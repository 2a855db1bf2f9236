//! A reply in the parts that Telegram takes, each with its own formatting.
//!
//! Invariants: parts lie in the text in order and hold everything but white space between them; each character has in its part
//! the formatting that it has in the whole; no part is longer than Telegram takes, in text or in entities.

use super::TEXT_UNITS_MAX;
use super::markdown::{self, Formatted, units};
use crate::channel::PartText;
use crate::channel::split::{self, Place};
use crate::message::{Entity, Style};

/// The most entities that Telegram keeps of one message; more are dropped without a word.
const ENTITIES_MAX: usize = 100;

/// The parts of a reply that is written in Markdown.
pub(in crate::channel) fn parts(source: &str) -> Vec<PartText> {
    let formatted = markdown::render(source);
    let whole = formatted.text.clone();
    let parts = cut(&formatted, TEXT_UNITS_MAX);
    let is_source = formatted.entities.is_empty() || whole == source;
    let with_source = |(index, part): (usize, PartText)| {
        let source = (index == 0 && !is_source).then(|| source.to_owned());
        PartText { source, ..part }
    };
    parts.into_iter().enumerate().map(with_source).collect()
}

fn cut(formatted: &Formatted, limit: usize) -> Vec<PartText> {
    let Formatted { text, entities } = formatted;
    let starts = entities.iter().filter(|entity| matches!(entity.style, Style::Pre { .. } | Style::Code));
    let code: Vec<(u32, u32)> = starts.map(|entity| (entity.offset, entity.offset + entity.length)).collect();
    let place = |unit: usize| {
        let unit = u32::try_from(unit).unwrap_or(u32::MAX);
        let before = code.partition_point(|(start, _)| *start < unit);
        let is_inside = before.checked_sub(1).is_some_and(|at| code[at].1 > unit);
        if is_inside { Place::Code } else { Place::Prose }
    };
    let mut parts = Vec::new();
    let (mut at, mut unit) = (0, 0_u32);
    for range in split::ranges(text, limit, place) {
        unit += units(&text[at..range.start]);
        let part = &text[range.clone()];
        let end = unit + units(part);
        let inside = entities.iter().filter_map(|entity| within(entity, unit, end)).take(ENTITIES_MAX);
        parts.push(PartText { text: part.to_owned(), entities: inside.collect(), source: None });
        (at, unit) = (range.end, end);
    }
    parts
}

/// The piece of an entity that lies between two units, counted from the first of them.
fn within(entity: &Entity, start: u32, end: u32) -> Option<Entity> {
    let from = entity.offset.max(start);
    let until = (entity.offset + entity.length).min(end);
    (from < until).then(|| Entity { offset: from - start, length: until - from, style: entity.style.clone() })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Every character that can be seen, with what formats it.
    fn seen(text: &str, entities: &[Entity]) -> Vec<(char, Vec<Style>)> {
        let mut unit = 0;
        let mut seen = Vec::new();
        for character in text.chars() {
            let covers = |entity: &&Entity| (entity.offset..entity.offset + entity.length).contains(&unit);
            let styles: Vec<Style> = entities.iter().filter(covers).map(|entity| entity.style.clone()).collect();
            unit += u32::try_from(character.len_utf16()).unwrap();
            if !character.is_whitespace() {
                seen.push((character, styles));
            }
        }
        seen
    }

    fn boundaries(text: &str) -> std::collections::BTreeSet<u32> {
        let mut unit = 0;
        let ends = text.chars().map(|character| {
            unit += u32::try_from(character.len_utf16()).unwrap();
            unit
        });
        std::iter::once(0).chain(ends.collect::<Vec<_>>()).collect()
    }

    fn check(source: &str, limit: usize) {
        let formatted = markdown::render(source);
        let parts = cut(&formatted, limit);
        let together: Vec<_> = parts.iter().flat_map(|part| seen(&part.text, &part.entities)).collect();
        if parts.iter().all(|part| part.entities.len() < ENTITIES_MAX) {
            assert_eq!(together, seen(&formatted.text, &formatted.entities), "{source:?}");
        }
        for part in &parts {
            assert!(units(&part.text) as usize <= limit && !part.text.trim().is_empty(), "{part:?}");
            let places = boundaries(&part.text);
            for entity in &part.entities {
                assert!(entity.length > 0, "{part:?}");
                assert!(places.contains(&entity.offset), "{part:?}");
                assert!(places.contains(&(entity.offset + entity.length)), "{part:?}");
            }
            assert!(part.entities.len() <= ENTITIES_MAX);
        }
    }

    /// Markdown as models write it, and as nobody does.
    fn markdown() -> impl Strategy<Value = String> {
        let word = "[a-zäé😀👨‍👩‍👧]{1,12}";
        let styled = (word, 0..7_usize).prop_map(|(word, style)| match style {
            0 => format!("**{word}**"),
            1 => format!("*{word}*"),
            2 => format!("~~{word}~~"),
            3 => format!("`{word}`"),
            4 => format!("[{word}](https://example.com/{word})"),
            5 => format!("**bold `{word}` *both***"),
            _ => word,
        });
        let line = prop::collection::vec(styled, 1..24).prop_map(|words| words.join(" "));
        let block = (line, 0..6_usize).prop_map(|(line, kind)| match kind {
            0 => format!("# {line}"),
            1 => format!("- {line}\n- {line}\n  - {line}"),
            2 => format!("> {line}\n> {line}"),
            3 => format!("```rust\n{line}\n\n    {line}\n{line}\n```"),
            4 => format!("| {line} | b |\n|---|---|\n| c | {line} |"),
            _ => line,
        });
        prop::collection::vec(block, 0..8).prop_map(|blocks| blocks.join("\n\n"))
    }

    proptest! {
        #[test]
        fn nothing_is_lost_or_formatted_otherwise(source in markdown(), limit in 64_usize..600) {
            check(&source, limit);
        }

        #[test]
        fn any_text_is_cut_well(source in "([*_~`#>|\\[\\]()\n -]|[a-z]{1,20}|.){0,300}", limit in 64_usize..300) {
            check(&source, limit);
        }
    }

    #[test]
    fn a_code_block_that_is_cut_goes_on_as_one() {
        let source = format!("Look:\n\n```rust\n{}```\n\nDone **now**.", "let a = 1;\n".repeat(600));
        let parts = parts(&source);
        assert_eq!(parts.len(), 2);
        let pre = Style::Pre { language: Some("rust".to_owned()) };
        assert!(parts.iter().all(|part| part.entities[0].style == pre), "{parts:?}");
        assert_eq!(parts[0].entities[0].offset, 7);
        assert_eq!(parts[1].entities[0].offset, 0);
        assert!(parts[1].text.ends_with("Done now."));
        assert_eq!(parts[0].source.as_deref(), Some(source.as_str()));
        assert_eq!(parts[1].source, None);
    }
}
