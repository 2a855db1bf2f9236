//! Splits a long reply into parts that a platform takes.
//!
//! Refuses to know a platform: the limit is an argument, in UTF-16 units, which never undercount, whether the platform
//! counts units or characters. Invariants: every part is within the limit, not blank, and trimmed; the parts hold everything
//! but whitespace between them; no grapheme is cut unless it alone exceeds the limit; a code fence that is cut is closed in
//! one part and opened again, with its language, in the next.

use std::ops::Range;

use unicode_segmentation::UnicodeSegmentation;

/// The longest line still read as a code fence, in bytes: three backticks and the longest language name fit many times.
/// Reopening and closing a fence then costs at most 130 units of a part.
const FENCE_LINE_BYTES_MAX: usize = 64;

/// A line that opens a code block (CommonMark 0.31, section 4.5), without its indentation.
#[derive(Clone, Copy)]
struct Fence<'a> {
    /// The run of backticks or tildes; also what closes the block.
    marker: &'a str,
    line: &'a str,
}

/// How good a place for a cut is; the best comes first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Boundary {
    Paragraph,
    Line,
    CodeLine,
    Sentence,
    Space,
    Grapheme,
}

/// Where a part ends, in bytes, and the code block it cuts.
#[derive(Clone, Copy)]
struct Cut<'a> {
    at: usize,
    fence: Option<Fence<'a>>,
    /// Whether the next part begins with a new line of the text, where alone a fence can stand.
    line_start: bool,
}

/// The parts of `content`, in order; none when it is blank. `limit` is at least 256.
pub(super) fn split(content: &str, limit: usize) -> Vec<String> {
    let mut parts = Vec::new();
    let mut rest = content.trim();
    let mut start = Cut { at: 0, fence: None, line_start: true };
    while !rest.is_empty() {
        let opening = start.fence.map_or_else(String::new, |fence| format!("{}\n", fence.line));
        let cut = cut(rest, start, limit.saturating_sub(units(&opening)));
        let (body, tail) = rest.split_at(cut.at);
        if !body.trim().is_empty() {
            let closing = cut.fence.filter(|_| !tail.is_empty());
            let closing = closing.map_or_else(String::new, |fence| format!("\n{}", fence.marker));
            parts.push(format!("{opening}{}{closing}", body.trim_end()));
        }
        (rest, start) = resume(tail, cut);
    }
    parts
}

/// What a place in a text is part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Prose,
    /// Where only the end of a line is better than any other place.
    Code,
}

/// Where the parts of a text lie that is no markup any more, in bytes and in order: every part within `limit` units, trimmed,
/// not blank, and cut at the best boundary of its second half. `place` tells of a number of units from the beginning what lies
/// there; in code, spaces at the beginning of a part stay.
pub(super) fn ranges(text: &str, limit: usize, place: impl Fn(usize) -> Place) -> Vec<Range<usize>> {
    let mut ranges = Vec::new();
    let (mut at, mut unit) = (0, 0);
    while at < text.len() {
        let rest = &text[at..];
        let line = rest.trim_start_matches(['\n', '\r']);
        let begin = if place(unit) == Place::Code { line } else { rest.trim_start() };
        unit += units(&rest[..rest.len() - begin.len()]);
        at = text.len() - begin.len();
        let length = part_length(begin, limit, |inside| place(unit + inside));
        let part = begin[..length].trim_end();
        if !part.trim_start().is_empty() {
            ranges.push(at..at + part.len());
        }
        unit += units(&begin[..length]);
        at += length;
    }
    ranges
}

/// How much of `text` the next part takes, in bytes: something, unless there is nothing.
fn part_length(text: &str, limit: usize, place: impl Fn(usize) -> Place) -> usize {
    let mut used = 0;
    let mut best: Option<(Boundary, usize)> = None;
    for (at, grapheme) in text.grapheme_indices(true) {
        used += units(grapheme);
        if used > limit {
            return best.map_or_else(|| cut_grapheme(text, limit, None).at, |(_, end)| end);
        }
        let end = at + grapheme.len();
        let boundary = match used < limit / 2 {
            true => Boundary::Grapheme,
            false => boundary(text, at, end, place(used) == Place::Code),
        };
        if best.is_none_or(|(found, _)| boundary <= found) {
            best = Some((boundary, end));
        }
    }
    text.len()
}

/// The longest beginning of `text` within `limit` units that cuts no grapheme.
pub(super) fn beginning(text: &str, limit: usize) -> &str {
    let mut used = 0;
    for (at, grapheme) in text.grapheme_indices(true) {
        used += units(grapheme);
        if used > limit {
            return &text[..at];
        }
    }
    text
}

/// What is left after a cut, without the whitespace that would begin the next part. Inside a code block indentation stays,
/// and a block that ends right here is not opened again.
fn resume<'a>(tail: &'a str, cut: Cut<'a>) -> (&'a str, Cut<'a>) {
    let Some(fence) = cut.fence else {
        let rest = tail.trim_start();
        let line_start = cut.line_start || tail[..tail.len() - rest.len()].contains('\n');
        return (rest, Cut { line_start, ..cut });
    };
    let rest = tail.trim_start_matches(['\n', '\r']);
    let line_start = cut.line_start || rest.len() < tail.len();
    let line = first_line(rest);
    if line_start && closes(line, fence) {
        return (rest[line.len()..].trim_start(), Cut { at: 0, fence: None, line_start: true });
    }
    (rest, Cut { line_start, ..cut })
}

/// Where the next part of `text` ends: the whole of it when that fits in `room` units, else the best boundary in the second
/// half of the room, else the last grapheme that fits, else the last character.
fn cut<'a>(text: &'a str, start: Cut<'a>, room: usize) -> Cut<'a> {
    let mut fence = start.fence;
    let mut line = if start.line_start { first_line(text) } else { "" };
    let mut used = 0;
    let mut best: Option<(Boundary, Cut<'a>)> = None;
    for (at, grapheme) in text.grapheme_indices(true) {
        used += units(grapheme);
        if used > room {
            return best.map_or_else(|| cut_grapheme(text, room, fence), |(_, cut)| cut);
        }
        let end = at + grapheme.len();
        let mut marker = toggle(line, fence).is_some();
        let opens = marker && fence.is_none();
        let line_start = grapheme.ends_with('\n');
        if line_start {
            fence = toggle(line, fence).unwrap_or(fence);
            line = first_line(&text[end..]);
            marker = opens;
        }
        let closing = fence.map_or(0, |fence| 1 + units(fence.marker));
        if used + closing <= room {
            let boundary = if marker { Boundary::Grapheme } else { boundary(text, at, end, fence.is_some()) };
            let boundary = if used < room / 2 { Boundary::Grapheme } else { boundary };
            if best.is_none_or(|(found, _)| boundary <= found) {
                best = Some((boundary, Cut { at: end, fence, line_start }));
            }
        }
    }
    Cut { at: text.len(), fence: None, line_start: true }
}

/// A cut inside the first grapheme, which alone exceeds the room: some hundred marks on one letter.
fn cut_grapheme<'a>(text: &str, room: usize, fence: Option<Fence<'a>>) -> Cut<'a> {
    let closing = fence.map_or(0, |fence| 1 + units(fence.marker));
    let mut used = closing;
    let mut at = 0;
    for c in text.chars() {
        used += c.len_utf16();
        if used > room && at > 0 {
            break;
        }
        at += c.len_utf8();
    }
    Cut { at, fence, line_start: false }
}

/// What kind of boundary lies behind the grapheme `text[at..end]`.
fn boundary(text: &str, at: usize, end: usize, in_code: bool) -> Boundary {
    let (before, grapheme, after) = (&text[..at], &text[at..end], &text[end..]);
    if grapheme.ends_with('\n') {
        return match in_code {
            true => Boundary::CodeLine,
            false if after.starts_with(['\n', '\r']) || before.ends_with('\n') => Boundary::Paragraph,
            false => Boundary::Line,
        };
    }
    if in_code {
        return if grapheme == " " { Boundary::Space } else { Boundary::Grapheme };
    }
    if grapheme.ends_with(['。', '！', '？']) {
        return Boundary::Sentence;
    }
    if !grapheme.chars().all(char::is_whitespace) {
        return Boundary::Grapheme;
    }
    let sentence_ended = before.trim_end_matches(['"', '\'', ')', '”', '’', '»']).ends_with(['.', '!', '?', '…']);
    if sentence_ended { Boundary::Sentence } else { Boundary::Space }
}

/// What `line` makes of the state: `None` when it is no fence, else the block that is open after it.
fn toggle<'a>(line: &'a str, fence: Option<Fence<'a>>) -> Option<Option<Fence<'a>>> {
    match fence {
        Some(fence) => closes(line, fence).then_some(None),
        None => opens(line).map(Some),
    }
}

fn opens(line: &str) -> Option<Fence<'_>> {
    let (marker, info) = marker(line)?;
    let plain = !marker.starts_with('`') || !info.contains('`');
    plain.then(|| Fence { marker, line: line.trim() })
}

fn closes(line: &str, fence: Fence<'_>) -> bool {
    marker(line).is_some_and(|(marker, info)| marker.starts_with(fence.marker) && info.trim().is_empty())
}

/// The run of at least three backticks or tildes that begins a line, and what follows it.
fn marker(line: &str) -> Option<(&str, &str)> {
    if line.len() > FENCE_LINE_BYTES_MAX {
        return None;
    }
    let unindented = line.trim_start_matches(' ');
    let symbol = unindented.chars().next().filter(|c| matches!(c, '`' | '~'))?;
    let info = unindented.trim_start_matches(symbol);
    let (marker, info) = unindented.split_at(unindented.len() - info.len());
    (marker.len() >= 3 && line.len() - unindented.len() <= 3).then_some((marker, info))
}

fn first_line(text: &str) -> &str {
    text.find('\n').map_or(text, |end| &text[..end])
}

fn units(text: &str) -> usize {
    text.encode_utf16().count()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMIT: usize = 256;

    fn visible(text: &str) -> String {
        text.chars().filter(|c| !c.is_whitespace()).collect()
    }

    fn is_fence(line: &&str) -> bool {
        line.trim_start().starts_with("```")
    }

    /// Everything but whitespace and lines that are fences.
    fn visible_between_fences(text: &str) -> String {
        visible(&text.lines().filter(|line| !is_fence(line)).collect::<String>())
    }

    fn check_form(parts: &[String], limit: usize) {
        for part in parts {
            assert!(units(part) <= limit, "{} units: {part:?}", units(part));
            assert!(!part.is_empty() && part.trim() == part, "{part:?}");
        }
    }

    fn check(content: &str, expected: &[&str]) {
        let parts = split(content, LIMIT);
        check_form(&parts, LIMIT);
        assert_eq!(parts, expected);
    }

    #[test]
    fn short_text_stays_whole_and_blank_text_disappears() {
        check("", &[]);
        check(" \n\t\u{3000} ", &[]);
        check("  one\n\n two ", &["one\n\n two"]);
        check(&"x".repeat(256), &[&"x".repeat(256)]);
    }

    #[test]
    fn the_best_boundary_of_the_second_half_wins() {
        let [a, b, c] = ["a".repeat(150), "b".repeat(60), "c".repeat(80)];
        check(&format!("{a}\n\n{b}\n{c}"), &[&a, &format!("{b}\n{c}")]);
        check(&format!("{a}\n{b}. {c}"), &[&a, &format!("{b}. {c}")]);
        check(&format!("{a}. {b} {c}"), &[&format!("{a}."), &format!("{b} {c}")]);
        check(&format!("{a} {b} {c}"), &[&format!("{a} {b}"), &c]);
        check(&format!("{a}。{b}{c}"), &[&format!("{a}。"), &format!("{b}{c}")]);
        check(&format!("one\n\n{a}{b}{c}"), &[&format!("one\n\n{a}{b}{}", "c".repeat(41)), &"c".repeat(39)]);
    }

    #[test]
    fn graphemes_stay_whole_unless_one_alone_is_too_long() {
        let family = "👨‍👩‍👧‍👦";
        assert_eq!(units(family), 11);
        let parts = split(&family.repeat(30), LIMIT);
        assert_eq!(parts, [family.repeat(23), family.repeat(7)]);
        let flags = split(&"🇫🇷".repeat(100), 258);
        assert_eq!(flags, ["🇫🇷".repeat(64), "🇫🇷".repeat(36)]);
        let tower = format!("a{}", "\u{301}".repeat(600));
        let parts = split(&tower, LIMIT);
        check_form(&parts, LIMIT);
        assert_eq!(parts.concat(), tower);
    }

    #[test]
    fn a_cut_code_block_is_closed_and_opened_again() {
        let line = "    let value = compute_the_next_value(); // 0123456789\n";
        let parts = split(&format!("Look:\n\n```rust\n{}```\n\nDone.", line.repeat(6)), LIMIT);
        check_form(&parts, LIMIT);
        let first = format!("Look:\n\n```rust\n{}```", line.repeat(4));
        let second = format!("```rust\n{}```\n\nDone.", line.repeat(2));
        assert_eq!(parts, [first, second]);
    }

    #[test]
    fn a_block_that_ends_at_the_cut_is_not_opened_again() {
        let code = format!("{}\n", "x".repeat(50));
        let parts = split(&format!("~~~~\n{}~~~~\n{}", code.repeat(4), "y".repeat(200)), LIMIT);
        assert_eq!(parts, [format!("~~~~\n{}~~~~", code.repeat(4)), "y".repeat(200)]);
        let parts = split(&format!("```\n{}\n```\n{}", "x".repeat(248), "y".repeat(200)), LIMIT);
        assert_eq!(parts, [format!("```\n{}\n```", "x".repeat(248)), "y".repeat(200)]);
    }

    #[test]
    fn backticks_inside_a_line_open_nothing() {
        let text = format!("{} ```not a fence\n{}", "a".repeat(200), "b".repeat(100));
        check(&text, &[&format!("{} ```not a fence", "a".repeat(200)), &"b".repeat(100)]);
        let cut_before =
            format!("{} ```not a fence at all, just a very long line {}", "a".repeat(240), "b".repeat(300));
        let parts = split(&cut_before, LIMIT);
        check_form(&parts, LIMIT);
        assert_eq!(visible(&parts.concat()), visible(&cut_before));
    }

    #[test]
    fn beginnings_cut_no_grapheme() {
        assert_eq!(beginning("hello", 20), "hello");
        assert_eq!(beginning("hello", 3), "hel");
        assert_eq!(beginning("ab👨‍👩‍👧‍👦", 12), "ab");
        assert_eq!(beginning("👨‍👩‍👧‍👦", 3), "");
    }

    /// Prose and code blocks as models write them.
    fn document() -> impl Strategy<Value = String> {
        let line = "[a-zA-Z0-9äé😀,.!? ]{0,120}";
        let prose = prop::collection::vec(line, 0..8).prop_map(|lines| lines.join("\n"));
        let code = ("[`]{3,5}", "(rust|python|)", prop::collection::vec(line, 0..12));
        let code =
            code.prop_map(|(marker, language, lines)| format!("{marker}{language}\n{}\n{marker}", lines.join("\n")));
        prop::collection::vec(prop_oneof![prose, code], 0..8).prop_map(|blocks| blocks.join("\n\n"))
    }

    proptest! {
        #[test]
        fn any_text_keeps_everything_but_whitespace(text in "([^`~]|\\s|[a-z ]{1,40}|\u{301}){0,900}", limit in 256_usize..600) {
            let parts = split(&text, limit);
            check_form(&parts, limit);
            prop_assert_eq!(visible(&parts.concat()), visible(&text));
        }

        #[test]
        fn any_text_with_fences_is_cut_into_good_parts(text in "(```|~~~|\n|[a-z ]{1,80}|.){0,200}", limit in 256_usize..600) {
            check_form(&split(&text, limit), limit);
        }

        #[test]
        fn documents_keep_their_text_and_their_blocks_closed(text in document(), limit in 256_usize..1_000) {
            let parts = split(&text, limit);
            check_form(&parts, limit);
            let kept: String = parts.iter().map(|part| visible_between_fences(part)).collect();
            prop_assert_eq!(kept, visible_between_fences(&text));
            for part in &parts {
                prop_assert_eq!(part.lines().filter(is_fence).count() % 2, 0, "{}", part);
            }
        }
    }
}
