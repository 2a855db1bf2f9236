//! A template: what is read can be filled, and without a dollar sign it is filled as it stands.

#![no_main]

use libfuzzer_sys::fuzz_target;
use regex::Regex;
use turnwise::template::{Template, Values, lookup};

fuzz_target!(|source: &str| {
    let pattern = Regex::new("(a)(?P<name>b)?").expect("a pattern");
    let metadata = serde_json::json!({ "a": { "b": 1 }, "a.b": null, "c": "d", "list": [1] });
    let metadata = metadata.as_object().expect("an object");
    let _ = lookup(metadata, source);
    for pattern in [None, Some(&pattern)] {
        let Ok(template) = Template::parse(source, pattern) else { continue };
        let captures = pattern.and_then(|pattern| pattern.captures("xab"));
        let values = Values { text: "text", captures: captures.as_ref(), metadata, attempt: 1, count: 2 };
        let filled = template.fill(&values);
        assert!(source.contains('$') || filled == source, "{source:?} became {filled:?}");
    }
});
