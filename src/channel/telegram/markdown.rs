//! Markdown, as models write it, as a text and the entities that format it (Bot API 10.3, "MessageEntity").
//!
//! Refuses to write markup for Telegram to read: what is sent is the text that is meant, so no reply is refused because of an
//! asterisk; and to make much of little, however deep its lists and wide its tables. Invariants: entities lie inside the text, begin and end between characters, and none lies across code; a text
//! without any formatting stays as it was written.

use pulldown_cmark::{CodeBlockKind, Event, HeadingLevel, LinkType, Options, Parser, Tag, TagEnd};
use unicode_segmentation::UnicodeSegmentation;

use crate::message::{Entity, Style};

/// A text and its formatting; offsets count UTF-16 units from the text's beginning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Formatted {
    pub(super) text: String,
    pub(super) entities: Vec<Entity>,
}

/// Lists further in than this are not shown further in.
const LEVELS_SHOWN: usize = 8;

/// A table that is this many times as long in columns as without is shown without.
const TABLE_GROWTH_MAX: usize = 4;

/// A line across.
const RULE: &str = "———";

pub(super) fn render(source: &str) -> Formatted {
    let options = Options::ENABLE_TABLES | Options::ENABLE_STRIKETHROUGH | Options::ENABLE_TASKLISTS;
    let mut page = Page::default();
    for event in Parser::new_ext(source, options) {
        page.take(event);
    }
    let entities = apart_from_code(page.entities);
    if entities.is_empty() {
        return Formatted { text: source.to_owned(), entities };
    }
    Formatted { text: page.text, entities }
}

/// How many UTF-16 units a text has.
pub(super) fn units(text: &str) -> u32 {
    u32::try_from(text.encode_utf16().count()).unwrap_or(u32::MAX)
}

/// Formatting that has begun.
struct Opened {
    style: Option<Style>,
    /// In units.
    start: u32,
    /// Shown behind a link that Telegram would not make one.
    shown: Option<String>,
}

#[derive(Default)]
struct Page {
    text: String,
    units: u32,
    entities: Vec<Entity>,
    opened: Vec<Opened>,
    /// New lines that stand before whatever comes next.
    gap: usize,
    /// The next number of each list, from the outermost; `None` for one without numbers.
    lists: Vec<Option<u64>>,
    table: Option<Vec<Vec<String>>>,
}

impl Page {
    fn take(&mut self, event: Event<'_>) {
        match event {
            Event::Start(tag) => self.start(tag),
            Event::End(tag) => self.end(tag),
            Event::Text(text) => self.write(&text),
            Event::Code(code) => {
                self.open(Some(Style::Code));
                self.write(&code);
                self.close();
            }
            Event::Html(html) | Event::InlineHtml(html) if is_break(&html) => self.write("\n"),
            Event::Html(text) | Event::InlineHtml(text) => self.write(&text),
            Event::SoftBreak | Event::HardBreak => self.write("\n"),
            Event::Rule => {
                self.write(RULE);
                self.gap = 2;
            }
            Event::TaskListMarker(done) => self.write(if done { "☑ " } else { "☐ " }),
            Event::FootnoteReference(text) | Event::InlineMath(text) | Event::DisplayMath(text) => self.write(&text),
        }
    }

    fn start(&mut self, tag: Tag<'_>) {
        match tag {
            Tag::Strong => self.open(Some(Style::Bold)),
            Tag::Emphasis => self.open(Some(Style::Italic)),
            Tag::Strikethrough => self.open(Some(Style::Strikethrough)),
            Tag::Heading { level, .. } => {
                self.open(Some(Style::Bold));
                if level > HeadingLevel::H2 {
                    self.open(Some(Style::Italic));
                }
            }
            Tag::BlockQuote(_) => self.open(Some(Style::Blockquote)),
            Tag::CodeBlock(kind) => self.open(Some(Style::Pre { language: language(&kind) })),
            Tag::Link { link_type, dest_url, .. } => self.open_link(link_type, &dest_url),
            Tag::Image { dest_url, .. } => self.open_link(LinkType::Inline, &dest_url),
            Tag::List(number) => {
                if !self.lists.is_empty() {
                    self.gap = self.gap.max(1);
                }
                self.lists.push(number);
            }
            Tag::Item => self.item(),
            Tag::Table(_) => self.table = Some(Vec::new()),
            Tag::TableHead | Tag::TableRow => self.table.iter_mut().for_each(|rows| rows.push(Vec::new())),
            Tag::TableCell => self.row().push(String::new()),
            _ => {}
        }
    }

    fn end(&mut self, tag: TagEnd) {
        match tag {
            TagEnd::Strong | TagEnd::Emphasis | TagEnd::Strikethrough | TagEnd::Link | TagEnd::Image => self.close(),
            TagEnd::Heading(level) => {
                if level > HeadingLevel::H2 {
                    self.close();
                }
                self.close();
                self.gap = 2;
            }
            TagEnd::CodeBlock => {
                self.cut_line_end();
                self.close();
                self.gap = 2;
            }
            TagEnd::BlockQuote(_) => {
                self.close();
                self.gap = 2;
            }
            TagEnd::Paragraph | TagEnd::HtmlBlock => self.gap = 2,
            TagEnd::List(_) => {
                self.lists.pop();
                self.gap = if self.lists.is_empty() { 2 } else { 1 };
            }
            TagEnd::Table => self.end_table(),
            _ => {}
        }
    }

    /// The mark of a list's next item, on a line of its own, further in for a list inside a list.
    fn item(&mut self) {
        self.gap = self.gap.max(1);
        let indent = "  ".repeat(self.lists.len().saturating_sub(1).min(LEVELS_SHOWN));
        let mark = match self.lists.last_mut() {
            Some(Some(number)) => {
                let mark = format!("{indent}{number}. ");
                *number = number.saturating_add(1);
                mark
            }
            _ => format!("{indent}• "),
        };
        self.write(&mark);
    }

    /// A row of the table that is being read; nobody asks outside of one.
    fn row(&mut self) -> &mut Vec<String> {
        let rows = self.table.get_or_insert_default();
        if rows.is_empty() {
            rows.push(Vec::new());
        }
        let last = rows.len() - 1;
        &mut rows[last]
    }

    /// The table in columns, which stand one under another where every character is as wide.
    fn end_table(&mut self) {
        let rows = self.table.take().unwrap_or_default();
        let width = |text: &str| text.graphemes(true).count();
        let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
        let widest = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| width(cell)).max();
        let mut widths: Vec<usize> = (0..columns).map(|column| widest(column).unwrap_or(0)).collect();
        let written: usize = rows.iter().flatten().map(|cell| width(cell) + 1).sum();
        if widths.iter().sum::<usize>().saturating_mul(rows.len() + 1) > written.saturating_mul(TABLE_GROWTH_MAX) {
            widths.fill(0);
        }
        let line = |row: &Vec<String>| {
            let cells = row.iter().zip(&widths);
            let padded = cells.map(|(cell, full)| format!("{cell}{}", " ".repeat(full.saturating_sub(width(cell)))));
            padded.collect::<Vec<_>>().join(" | ").trim_end().to_owned()
        };
        let mut lines: Vec<String> = rows.iter().map(line).collect();
        if lines.len() > 1 && widths.iter().any(|width| *width > 0) {
            let dashes: Vec<String> = widths.iter().map(|width| "-".repeat(*width)).collect();
            lines.insert(1, dashes.join("-+-"));
        }
        self.open(Some(Style::Pre { language: None }));
        self.write(&lines.join("\n"));
        self.close();
        self.gap = 2;
    }

    fn open_link(&mut self, kind: LinkType, url: &str) {
        let is_written_out = matches!(kind, LinkType::Autolink | LinkType::Email);
        let style = (!is_written_out && can_be_link(url)).then(|| Style::TextLink { url: url.to_owned() });
        let shown = (!is_written_out && style.is_none() && !url.is_empty()).then(|| format!(" ({url})"));
        self.open(style);
        if let Some(opened) = self.opened.last_mut() {
            opened.shown = shown;
        }
    }

    /// Formatting begins here; inside of the same, or inside a table, it is none of its own.
    fn open(&mut self, style: Option<Style>) {
        let is_inside = |style: &Style| {
            let same = |opened: &Opened| {
                opened
                    .style
                    .as_ref()
                    .is_some_and(|other| std::mem::discriminant(other) == std::mem::discriminant(style))
            };
            self.opened.iter().any(same)
        };
        let style = style.filter(|style| self.table.is_none() && !is_inside(style));
        if style.is_some() {
            self.fill_gap();
        }
        self.opened.push(Opened { style, start: self.units, shown: None });
    }

    fn close(&mut self) {
        let Some(Opened { style, start, shown }) = self.opened.pop() else { return };
        if let Some(style) = style.filter(|_| self.units > start) {
            self.entities.push(Entity { offset: start, length: self.units - start, style });
        }
        if let Some(shown) = shown {
            self.write(&shown);
        }
    }

    fn write(&mut self, text: &str) {
        if self.table.is_some() {
            if let Some(cell) = self.row().last_mut() {
                cell.push_str(&text.replace(['\n', '\r'], " "));
            }
            return;
        }
        if !text.is_empty() {
            self.fill_gap();
            self.text.push_str(text);
            self.units = self.units.saturating_add(units(text));
        }
    }

    fn fill_gap(&mut self) {
        let lines = std::mem::take(&mut self.gap);
        if !self.text.is_empty() {
            self.text.push_str(&"\n".repeat(lines));
            self.units = self.units.saturating_add(u32::try_from(lines).unwrap_or(0));
        }
    }

    /// The new line at the end of a code block belongs to its fence.
    fn cut_line_end(&mut self) {
        let is_own = self.opened.last().is_some_and(|opened| opened.start < self.units);
        if is_own && self.text.ends_with('\n') {
            self.text.pop();
            self.units -= 1;
        }
    }
}

fn is_break(html: &str) -> bool {
    matches!(html.trim().to_ascii_lowercase().as_str(), "<br>" | "<br/>" | "<br />")
}

fn language(kind: &CodeBlockKind<'_>) -> Option<String> {
    let CodeBlockKind::Fenced(info) = kind else { return None };
    info.split_whitespace().next().map(str::to_owned)
}

/// Whether Telegram makes a link of it; of others it would keep the text and forget the address.
fn can_be_link(url: &str) -> bool {
    let scheme = url.split_once(':').map(|(scheme, _)| scheme.to_ascii_lowercase());
    let is_known = scheme.is_some_and(|scheme| ["http", "https", "tg", "mailto", "tel"].contains(&scheme.as_str()));
    is_known && !url.contains(char::is_whitespace)
}

/// Formatting ends before code and goes on behind it, and code inside a link is only a link: Telegram lets code contain nothing
/// and be in nothing but a quote. In the order of the text, the longer first.
fn apart_from_code(entities: Vec<Entity>) -> Vec<Entity> {
    let end = |entity: &Entity| entity.offset.saturating_add(entity.length);
    let is_link = |entity: &Entity| matches!(entity.style, Style::TextLink { .. });
    let is_code = |entity: &Entity| matches!(entity.style, Style::Code | Style::Pre { .. });
    let mut links: Vec<(u32, u32)> =
        entities.iter().filter(|entity| is_link(entity)).map(|link| (link.offset, end(link))).collect();
    links.sort_unstable();
    let in_link = |entity: &Entity| {
        let before = links.partition_point(|(start, _)| *start <= entity.offset);
        before.checked_sub(1).is_some_and(|at| links[at].1 >= end(entity))
    };
    let entities: Vec<Entity> = entities.into_iter().filter(|entity| !(is_code(entity) && in_link(entity))).collect();
    let mut code: Vec<(u32, u32)> =
        entities.iter().filter(|entity| is_code(entity)).map(|code| (code.offset, end(code))).collect();
    code.sort_unstable();
    let mut apart = Vec::with_capacity(entities.len());
    for entity in entities {
        if is_code(&entity) || entity.style == Style::Blockquote {
            apart.push(entity);
            continue;
        }
        let (mut from, until) = (entity.offset, end(&entity));
        let first = code.partition_point(|(_, end)| *end <= from);
        for (start, end) in code[first..].iter().take_while(|(start, _)| *start < until) {
            if *start > from {
                apart.push(Entity { offset: from, length: start - from, style: entity.style.clone() });
            }
            from = *end;
        }
        if until > from {
            apart.push(Entity { offset: from, length: until - from, style: entity.style });
        }
    }
    apart.sort_by_key(|entity| (entity.offset, std::cmp::Reverse(entity.length)));
    apart
}

#[cfg(test)]
mod tests;
