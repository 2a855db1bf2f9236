//! Markdown as models write it, and what of it is shown.

use super::*;

/// The text with its formatting in brackets: `[b|bold]`.
fn shown(source: &str) -> String {
    let Formatted { text, entities } = render(source);
    let units: Vec<u16> = text.encode_utf16().collect();
    let mut out = String::new();
    let name = |style: &Style| match style {
        Style::Bold => "b".to_owned(),
        Style::Italic => "i".to_owned(),
        Style::Strikethrough => "s".to_owned(),
        Style::Code => "code".to_owned(),
        Style::Pre { language } => format!("pre {}", language.as_deref().unwrap_or("-")),
        Style::TextLink { url } => format!("a {url}"),
        Style::Blockquote => "q".to_owned(),
    };
    for unit in 0..=units.len() {
        let at = u32::try_from(unit).unwrap();
        for _ in entities.iter().filter(|entity| entity.offset + entity.length == at) {
            out.push(']');
        }
        for entity in entities.iter().filter(|entity| entity.offset == at) {
            out.push_str(&format!("[{}|", name(&entity.style)));
        }
        if let Some(unit) = units.get(unit) {
            out.push_str(&String::from_utf16_lossy(&[*unit]));
        }
    }
    out
}

#[track_caller]
fn check(source: &str, expected: &str) {
    assert_eq!(shown(source), expected);
}

#[test]
fn what_has_no_formatting_stays_as_it_is() {
    for text in ["", "hello", "a_b * c", "1) one\n2) two", "- a\n- b", "2 < 3 & 4 > 1", "&amp; <b>", "snake_case_name"]
    {
        check(text, text);
    }
}

#[test]
fn inline_formatting() {
    check("a **b** c", "a [b|b] c");
    check("*i* and _i_ and ~~s~~", "[i|i] and [i|i] and [s|s]");
    check("***both***", "[b|[i|both]]");
    check("run `cargo test` now", "run [code|cargo test] now");
    check("**bold `code` bold**", "[b|bold ][code|code][b| bold]");
    check("[name](https://x.org/a)", "[a https://x.org/a|name]");
    check("[`name`](https://x.org)", "[a https://x.org|name]");
    check("[name](/relative) **b**", "name (/relative) [b|b]");
    check("<https://x.org> **b**", "https://x.org [b|b]");
    check("**a\\*b**", "[b|a*b]");
}

#[test]
fn blocks() {
    check("# Title\n\ntext", "[b|Title]\n\ntext");
    check("### Small\ntext", "[i|[b|Small]]\n\ntext");
    check("- **a**\n- b\n  - c\n\nend", "• [b|a]\n• b\n  • c\n\nend");
    check("2. **a**\n3. b", "2. [b|a]\n3. b");
    check("- [x] **a**\n- [ ] b", "• ☑ [b|a]\n• ☐ b");
    check("> quoted\n> more\n\nend", "[q|quoted\nmore]\n\nend");
    check("```rust\nfn a() {}\n```\nend", "[pre rust|fn a() {}]\n\nend");
    check("```\nplain\n\nlines\n```", "[pre -|plain\n\nlines]");
    check("```rust\nnever closed", "[pre rust|never closed]");
    check("**a**\n\n---\n\nb", "[b|a]\n\n———\n\nb");
    check("| a | bb |\n|---|---|\n| **ccc** | d |", "[pre -|a   | bb\n----+---\nccc | d]");
}

#[test]
fn offsets_count_units_of_utf_16() {
    let Formatted { text, entities } = render("😀 **👍 ok**");
    assert_eq!(text, "😀 👍 ok");
    assert_eq!(entities, [Entity { offset: 3, length: 5, style: Style::Bold }]);
}

/// However deep its lists and wide its tables: a little that is said does not become much.
#[test]
fn what_is_shown_is_not_much_longer_than_what_was_written() {
    let deep = format!("{}**x**", "- ".repeat(2_040));
    let wide = format!("**x**\n\n|{}|b|\n|-|-|\n{}", "w".repeat(2_000), "|a|b|\n".repeat(300));
    for source in [deep, wide] {
        let Formatted { text, entities } = render(&source);
        assert!(!entities.is_empty(), "formatting is what makes another text of it");
        assert!(units(&text) < 12 * units(&source), "{} of {}", units(&text), units(&source));
    }
}
