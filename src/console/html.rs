//! HTML by construction: elements, attributes and text; whatever is text is escaped where it is put in.
//!
//! Refuses text that is meant as markup. Invariant: an [`Html`] is made of elements and escaped text alone, so nothing that
//! anybody wrote becomes markup.

use std::fmt::{Display, Write as _};

/// Markup that is safe to send.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Html(String);

/// An element in the making.
#[derive(Debug, Clone)]
pub(super) struct Element {
    name: &'static str,
    attributes: String,
    children: String,
}

/// Elements that have no end tag (HTML Living Standard, 13.1.2).
const VOID: [&str; 6] = ["meta", "link", "input", "br", "hr", "rect"];

pub(super) fn el(name: &'static str) -> Element {
    Element { name, attributes: String::new(), children: String::new() }
}

/// A link to a place of this server.
pub(super) fn link(to: impl Display, words: impl Display) -> Element {
    el("a").attr("href", to).text(words)
}

impl Element {
    pub(super) fn attr(mut self, name: &'static str, value: impl Display) -> Self {
        let _ = write!(self.attributes, " {name}=\"{}\"", escaped(&value.to_string()));
        self
    }

    pub(super) fn class(self, class: impl Display) -> Self {
        self.attr("class", class)
    }

    /// An attribute that counts by being there.
    pub(super) fn flag(mut self, name: &'static str, is_set: bool) -> Self {
        if is_set {
            self.attributes.push(' ');
            self.attributes.push_str(name);
        }
        self
    }

    pub(super) fn text(mut self, text: impl Display) -> Self {
        self.children.push_str(&escaped(&text.to_string()));
        self
    }

    pub(super) fn add(mut self, child: impl Into<Html>) -> Self {
        self.children.push_str(&child.into().0);
        self
    }

    pub(super) fn all<T: Into<Html>>(mut self, children: impl IntoIterator<Item = T>) -> Self {
        children.into_iter().for_each(|child| self.children.push_str(&child.into().0));
        self
    }
}

impl Html {
    pub(super) fn then(mut self, part: impl Into<Self>) -> Self {
        self.0.push_str(&part.into().0);
        self
    }

    pub(super) fn into_document(self) -> String {
        format!("<!doctype html>{}", self.0)
    }
}

impl From<Element> for Html {
    fn from(Element { name, attributes, children }: Element) -> Self {
        match VOID.contains(&name) {
            true => Self(format!("<{name}{attributes}/>")),
            false => Self(format!("<{name}{attributes}>{children}</{name}>")),
        }
    }
}

impl From<Option<Element>> for Html {
    fn from(element: Option<Element>) -> Self {
        element.map(Self::from).unwrap_or_default()
    }
}

impl From<&str> for Html {
    fn from(text: &str) -> Self {
        Self(escaped(text))
    }
}

impl From<String> for Html {
    fn from(text: String) -> Self {
        Self(escaped(&text))
    }
}

fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            _ => escaped.push(character),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_in_as_text_stays_text() {
        let hostile = "<script>alert(\"1\")</script>' & \u{202e}";
        let made = Html::from(el("p").attr("title", hostile).text(hostile).add(hostile).add(el("br")));
        let safe = "&lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt;&#39; &amp; \u{202e}";
        assert_eq!(made.0, format!("<p title=\"{safe}\">{safe}{safe}<br/></p>"));
    }
}
