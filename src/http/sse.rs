//! Server-sent events out of bytes, as <https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream>
//! has them.
//!
//! Refuses to keep ids and retry times: nobody here reads a stream on from its middle. Invariant: the events do not depend on
//! how the bytes were cut into chunks, each byte is looked at a bounded number of times, and no bytes panic.

/// The mark that some servers begin with.
const BYTE_ORDER_MARK: &[u8] = &[0xEF, 0xBB, 0xBF];

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Event {
    /// Empty where the stream gives none, which means `message`.
    pub(crate) name: Vec<u8>,
    pub(crate) data: Vec<u8>,
}

/// An event stream as far as it has come.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    /// The line that is not yet ended.
    line: Vec<u8>,
    /// The data of the event that is not yet ended; `None` before its first `data` line.
    data: Option<Vec<u8>>,
    name: Vec<u8>,
    /// The last byte was a carriage return: a line feed right after it belongs to the same line's end.
    after_return: bool,
    /// A first line has ended, so no byte order mark can come any more.
    begun: bool,
}

impl Decoder {
    /// The events that end in `chunk`, oldest first. Comments and events without data are passed over.
    pub(crate) fn push(&mut self, chunk: &[u8]) -> Vec<Event> {
        let mut events = Vec::new();
        let mut rest = chunk;
        while let Some((&first, tail)) = rest.split_first() {
            if std::mem::take(&mut self.after_return) && first == b'\n' {
                rest = tail;
                continue;
            }
            let Some(end) = rest.iter().position(|byte| matches!(byte, b'\n' | b'\r')) else {
                self.line.extend_from_slice(rest);
                break;
            };
            self.line.extend_from_slice(&rest[..end]);
            self.after_return = rest[end] == b'\r';
            rest = &rest[end + 1..];
            events.extend(self.end_line());
        }
        events
    }

    /// Bytes kept for what has not ended.
    pub(crate) fn kept_bytes(&self) -> usize {
        self.line.len() + self.name.len() + self.data.as_ref().map_or(0, Vec::len)
    }

    fn end_line(&mut self) -> Option<Event> {
        let line = std::mem::take(&mut self.line);
        let mut line = line.as_slice();
        if !std::mem::replace(&mut self.begun, true) {
            line = line.strip_prefix(BYTE_ORDER_MARK).unwrap_or(line);
        }
        if line.is_empty() {
            let name = std::mem::take(&mut self.name);
            return self.data.take().map(|data| Event { name, data });
        }
        let colon = line.iter().position(|byte| *byte == b':');
        let (field, value) = colon.map_or((line, &[][..]), |colon| (&line[..colon], &line[colon + 1..]));
        let value = value.strip_prefix(b" ").unwrap_or(value);
        if field == b"event" {
            self.name = value.to_vec();
        } else if field == b"data" {
            match &mut self.data {
                Some(data) => {
                    data.push(b'\n');
                    data.extend_from_slice(value);
                }
                None => self.data = Some(value.to_vec()),
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_their_names_and_data() {
        let check = |bytes: &str, expected: &[&str]| {
            let whole = Decoder::default().push(bytes.as_bytes());
            let shown = whole.iter().map(|event| match event.name.as_slice() {
                b"" => String::from_utf8_lossy(&event.data).into_owned(),
                name => format!("{}={}", String::from_utf8_lossy(name), String::from_utf8_lossy(&event.data)),
            });
            assert_eq!(shown.collect::<Vec<_>>(), expected, "{bytes:?}");
            let mut decoder = Decoder::default();
            let split: Vec<_> = bytes.as_bytes().chunks(1).flat_map(|chunk| decoder.push(chunk)).collect();
            assert_eq!(split, whole, "{bytes:?}, byte by byte");
        };
        check("data: one\n\ndata: two\n\n", &["one", "two"]);
        check("data:one\r\n\r\ndata:  two\r\rdata\n\n", &["one", " two", ""]);
        check("event: message_start\nid: 7\nretry: 9\ndata: x\n\ndata: y\n\n", &["message_start=x", "y"]);
        check(": keep-alive\n\n:\n\ndata: x\n: in between\ndata: y\n\n", &["x\ny"]);
        check("\u{feff}data: x\n\ndata: \u{feff}\n\n", &["x", "\u{feff}"]);
        check("data: the stream ends within this one\n", &[]);
        check("event: ping\n\ndata: x\nevent:delta\n\n", &["delta=x"]);
        check("DATA: x\n\nda ta: x\n\n", &[]);
        check("data: ümlaut 👍\n\n", &["ümlaut 👍"]);
    }

    #[test]
    fn a_long_line_in_small_chunks_is_read_once() {
        let mut decoder = Decoder::default();
        decoder.push(b"data: ");
        for _ in 0..65_536 {
            decoder.push(&[b'x'; 64]);
        }
        assert_eq!(decoder.kept_bytes(), 4 * 1024 * 1024 + 6);
        assert_eq!(decoder.push(b"\n\n").len(), 1);
    }
}
