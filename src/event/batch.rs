//! The envelope of a batch, `{"events": [ … ]}` or a bare array, cut into the bytes of its items.
//!
//! An ordinary parser refuses the whole batch for one bare `NaN` (which Python writes) or one bad escape, and one bad item must
//! never fail its neighbours. So this walks brackets and strings only and leaves every item to [`super::EventWire::from_json`].
//! An item may hold anything as long as its brackets match and its strings end: `NaN`, `{"id": }`, `{"a": 1,}`, `{oops}`.
//!
//! It refuses to guess: where a string runs into other text, a quote is missing or stands unescaped, nobody can tell where
//! that item ends, and answers by position would go to the wrong events. Then the whole batch is malformed.

use serde::de::IgnoredAny;

use super::{EventError, json};

/// The bytes of each item of `{"events": [ … ]}`, in order, without the white space around them. Linear in time; the stack of open
/// brackets lies on the heap, so depth costs memory below the size of the body and nothing else. The first item past `max_items` ends
/// it, whatever follows.
///
/// # Errors
/// `malformed` where the envelope itself is not JSON or an item has no certain end; otherwise the field of the envelope at fault.
pub fn split_events(bytes: &[u8], max_items: usize) -> Result<Vec<&[u8]>, EventError> {
    let mut scanner = Scanner { bytes, at: 0 };
    if scanner.peek() != Some(b'{') {
        return Err(match serde_json::from_slice::<IgnoredAny>(bytes) {
            Ok(_) => EventError::invalid("", "must be an object with the field `events`"),
            Err(_) => scanner.malformed(),
        });
    }
    scanner.at += 1;
    let mut events = None;
    if scanner.peek() == Some(b'}') {
        scanner.at += 1;
    } else {
        loop {
            let name = scanner.name()?;
            if name != "events" {
                let message = "is not a field of a batch; accepted here: `events`";
                return Err(EventError::invalid(json::path_segment(&name), message));
            }
            if events.is_some() {
                return Err(EventError::invalid("events", "appears twice"));
            }
            events = Some(scanner.items("events", max_items)?);
            match scanner.next() {
                Some(b',') => {}
                Some(b'}') => break,
                _ => return Err(scanner.malformed()),
            }
        }
    }
    scanner.end()?;
    events.ok_or_else(|| EventError::invalid("events", "is required"))
}

/// As [`split_events`], for a batch that is a bare array.
///
/// # Errors
/// As [`split_events`].
pub fn split_array(bytes: &[u8], max_items: usize) -> Result<Vec<&[u8]>, EventError> {
    let mut scanner = Scanner { bytes, at: 0 };
    if scanner.peek() != Some(b'[') {
        return Err(match serde_json::from_slice::<IgnoredAny>(bytes) {
            Ok(_) => EventError::invalid("", "must be an array"),
            Err(_) => scanner.malformed(),
        });
    }
    let items = scanner.items("", max_items)?;
    scanner.end()?;
    Ok(items)
}

/// Reads from left to right and never back.
struct Scanner<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Scanner<'a> {
    /// The next byte that is not white space, without taking it.
    fn peek(&mut self) -> Option<u8> {
        while self.bytes.get(self.at).is_some_and(|byte| is_space(*byte)) {
            self.at += 1;
        }
        self.bytes.get(self.at).copied()
    }

    fn next(&mut self) -> Option<u8> {
        let byte = self.peek()?;
        self.at += 1;
        Some(byte)
    }

    /// A key of the envelope and the colon after it.
    fn name(&mut self) -> Result<String, EventError> {
        if self.peek() != Some(b'"') {
            return Err(self.malformed());
        }
        let start = self.at;
        self.string()?;
        let name = serde_json::from_slice(&self.bytes[start..self.at]).map_err(|_| self.malformed())?;
        match self.next() {
            Some(b':') => Ok(name),
            _ => Err(self.malformed()),
        }
    }

    /// Nothing but white space may follow.
    fn end(&mut self) -> Result<(), EventError> {
        if self.peek().is_some() { Err(self.malformed()) } else { Ok(()) }
    }

    fn items(&mut self, field: &str, max_items: usize) -> Result<Vec<&'a [u8]>, EventError> {
        if self.next() != Some(b'[') {
            return Err(EventError::invalid(field, "must be an array"));
        }
        let mut items = Vec::new();
        if self.peek() == Some(b']') {
            self.at += 1;
            return Ok(items);
        }
        loop {
            let item = self.item()?;
            if item.is_empty() {
                return Err(self.malformed());
            }
            if items.len() == max_items {
                return Err(EventError::invalid(field, format!("at most {max_items} events are accepted in one batch")));
            }
            items.push(item);
            // `item` stops before one of the two.
            if self.next() == Some(b']') {
                return Ok(items);
            }
        }
    }

    /// Everything up to the comma or bracket that ends it.
    fn item(&mut self) -> Result<&'a [u8], EventError> {
        self.peek();
        let start = self.at;
        let mut end = start;
        let mut closers = Vec::new();
        // The byte before that is not white space; an item stands as if after a comma.
        let mut before = b',';
        while let Some(byte) = self.peek() {
            let is_outside = closers.is_empty();
            if is_outside && matches!(byte, b',' | b']') {
                return Ok(&self.bytes[start..end]);
            }
            if before == b'"' && !matches!(byte, b':' | b',' | b'}' | b']') {
                return Err(self.malformed());
            }
            if byte == b'"' {
                if !matches!(before, b'{' | b'[' | b',' | b':') {
                    return Err(self.malformed());
                }
                self.string()?;
            } else {
                match byte {
                    b'{' => closers.push(b'}'),
                    b'[' => closers.push(b']'),
                    _ => {}
                }
                if matches!(byte, b'}' | b']') && closers.pop() != Some(byte) {
                    return Err(self.malformed());
                }
                self.at += 1;
            }
            before = byte;
            end = self.at;
        }
        Err(self.malformed())
    }

    /// Takes a string with its quotes, whatever its escapes say.
    fn string(&mut self) -> Result<(), EventError> {
        self.at += 1;
        while let Some(byte) = self.bytes.get(self.at) {
            self.at += 1;
            match byte {
                b'"' => return Ok(()),
                b'\\' => self.at += 1,
                _ => {}
            }
        }
        self.at = self.bytes.len();
        Err(self.malformed())
    }

    fn malformed(&self) -> EventError {
        let read = &self.bytes[..self.at];
        let line = 1 + read.iter().filter(|byte| **byte == b'\n').count();
        let column = 1 + read.iter().rev().take_while(|byte| **byte != b'\n').count();
        let message = format!("not a batch in valid JSON, at line {line} column {column}");
        EventError { field: String::new(), message, malformed: true }
    }
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}
