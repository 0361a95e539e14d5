//! Server-sent events, in whatever pieces they arrive.
//!
//! As the HTML standard has it: lines end with CR, LF or both, `data` lines are joined by LF, a blank line ends an event, an event
//! without data is none, comments and unknown fields are skipped.

/// Most bytes of a line, and of the data of an event.
const MAX_BYTES: usize = 16 << 20;

/// A parser that is fed bytes and gives events.
#[derive(Debug, Default)]
pub struct SseParser {
    /// The begin of a line whose end has not come yet.
    line: Vec<u8>,
    name: Vec<u8>,
    data: Vec<u8>,
    has_data: bool,
    /// The last byte was CR: a LF at once belongs to it.
    after_cr: bool,
    begun: bool,
}

impl SseParser {
    /// Forgets everything, for a new stream.
    pub fn reset(&mut self) {
        self.line.clear();
        self.name.clear();
        self.data.clear();
        (self.has_data, self.after_cr, self.begun) = (false, false, false);
    }

    /// Takes bytes and hands whole events to `sink`: name (empty: none was given), data.
    ///
    /// # Errors
    /// If a line or an event has more than 16 MiB.
    pub fn feed(&mut self, mut bytes: &[u8], mut sink: impl FnMut(&[u8], &[u8])) -> Result<(), String> {
        while let Some(&first) = bytes.first() {
            if std::mem::take(&mut self.after_cr) && first == b'\n' {
                bytes = &bytes[1..];
                continue;
            }
            let Some(end) = bytes.iter().position(|&byte| byte == b'\n' || byte == b'\r') else {
                check(self.line.len() + bytes.len())?;
                self.line.extend_from_slice(bytes);
                return Ok(());
            };
            self.after_cr = bytes[end] == b'\r';
            if self.line.is_empty() {
                self.take(&bytes[..end], &mut sink)?;
            } else {
                let mut line = std::mem::take(&mut self.line);
                line.extend_from_slice(&bytes[..end]);
                self.take(&line, &mut sink)?;
                line.clear();
                self.line = line;
            }
            bytes = &bytes[end + 1..];
        }
        Ok(())
    }

    fn take(&mut self, mut line: &[u8], sink: &mut impl FnMut(&[u8], &[u8])) -> Result<(), String> {
        if !std::mem::replace(&mut self.begun, true) {
            line = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line);
        }
        if line.is_empty() {
            if self.has_data {
                sink(&self.name, &self.data);
            }
            self.name.clear();
            self.data.clear();
            self.has_data = false;
            return Ok(());
        }
        let (field, value) = match line.iter().position(|&byte| byte == b':') {
            Some(at) => (&line[..at], &line[at + 1..]),
            None => (line, &line[line.len()..]),
        };
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match field {
            b"data" => {
                check(self.data.len() + value.len())?;
                if self.has_data {
                    self.data.push(b'\n');
                }
                self.data.extend_from_slice(value);
                self.has_data = true;
            }
            b"event" => {
                self.name.clear();
                self.name.extend_from_slice(value);
            }
            _ => {}
        }
        Ok(())
    }
}

fn check(bytes: usize) -> Result<(), String> {
    if bytes <= MAX_BYTES {
        return Ok(());
    }
    Err(format!("an event of the stream has {bytes} bytes or more, at most {MAX_BYTES} are read"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<(String, String)> {
        let mut parser = SseParser::default();
        let mut events = Vec::new();
        for piece in pieces {
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
            parser.feed(piece, |name, data| events.push((text(name), text(data)))).unwrap();
        }
        events
    }

    #[test]
    fn forms_of_the_standard() {
        let pair = |name: &str, data: &str| (name.to_owned(), data.to_owned());
        let cases: [(&str, Vec<(String, String)>); 9] = [
            (
                "data: one\n\ndata:two\r\n\r\ndata:  three\r\r",
                vec![pair("", "one"), pair("", "two"), pair("", " three")],
            ),
            ("event: item\ndata: {\"a\":1}\n\n", vec![pair("item", "{\"a\":1}")]),
            ("data: a\ndata: b\ndata\n\n", vec![pair("", "a\nb\n")]),
            (": comment\n\ndata: x\n\n", vec![pair("", "x")]),
            ("event: lonely\n\ndata: y\n\n", vec![pair("", "y")]),
            ("\u{feff}data: bom\n\n\u{feff}data: none\n\n", vec![pair("", "bom")]),
            ("id: 3\nretry: 10\nother: z\ndata: w\n\n", vec![pair("", "w")]),
            ("data: unfinished\n", vec![]),
            ("data:\n\n", vec![pair("", "")]),
        ];
        for (text, wanted) in cases {
            assert_eq!(parse([text.as_bytes()]), wanted, "{text:?}");
        }
    }

    #[test]
    fn a_line_without_end_is_refused() {
        let mut parser = SseParser::default();
        let piece = vec![b'x'; 1 << 20];
        let fed = (0..17).try_for_each(|_| parser.feed(&piece, |_, _| panic!("no event")));
        assert!(fed.unwrap_err().contains("16777216"));
    }

    proptest! {
        #[test]
        fn cuts_change_nothing(
            events in prop::collection::vec((prop::option::of("[a-z]{1,8}"), prop::collection::vec("[a-z:äé中 ]{0,12}", 1..4)), 0..8),
            ends in prop::collection::vec(prop::sample::select(vec!["\n", "\r\n", "\r"]), 40),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
        ) {
            let mut text = String::new();
            let mut end = ends.iter().cycle();
            let mut wanted = Vec::new();
            for (name, lines) in &events {
                if let Some(name) = name {
                    text += &format!("event: {name}{}", end.next().unwrap());
                }
                for line in lines {
                    text += &format!("data: {line}{}", end.next().unwrap());
                }
                // A lone LF behind a CR would join the line before.
                text += if text.ends_with('\r') { "\r" } else { "\n" };
                wanted.push((name.clone().unwrap_or_default(), lines.join("\n")));
            }
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(text.len() + 1)).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let pieces = cuts.windows(2).map(|pair| &text.as_bytes()[pair[0]..pair[1]]);
            prop_assert_eq!(parse(pieces), wanted);
        }
    }
}
