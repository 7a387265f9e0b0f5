//! Rows of a file as events: NDJSON, one JSON document, CSV, Parquet.
//!
//! A row that is no event is an error of that row and the next one is read; an error of the file itself ends the reading. Nothing
//! but the row at hand is kept in memory.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use anyhow::Context as _;
use clap::ValueEnum;
use parquet::file::reader::{FileReader as _, SerializedFileReader};
use sluice::event::{EventError, EventWire};

use super::table::{Nested, parquet_cell, text_cell};

/// A row longer than this is no event.
const MAX_ROW_BYTES: u64 = 8 << 20;

/// How events stand in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// One JSON event a line.
    Ndjson,
    /// One JSON event.
    Json,
    /// A header of field paths such as `order.value`, one event a row.
    Csv,
    /// Columns named as in CSV, or nested.
    Parquet,
}

impl Format {
    /// By the file's extension; NDJSON where it says nothing.
    pub(super) fn of(path: &Path) -> Self {
        let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        match extension.to_ascii_lowercase().as_str() {
            "json" => Self::Json,
            "csv" => Self::Csv,
            "parquet" | "pq" => Self::Parquet,
            _ => Self::Ndjson,
        }
    }
}

/// One row, with how far into the file it reaches.
#[derive(Debug)]
pub(super) struct Row {
    /// From 1; in CSV the line where the record begins, in Parquet the row.
    pub line: u64,
    pub event: Result<EventWire, EventError>,
    /// In the unit of [`size`].
    pub position: u64,
}

/// Bytes of a text file, rows of a Parquet file; `None` for standard input.
///
/// # Errors
/// Where the file is not readable.
pub(super) fn size(path: Option<&Path>, format: Format) -> anyhow::Result<Option<u64>> {
    let Some(path) = path else { return Ok(None) };
    let size = match format {
        Format::Parquet => {
            let n_rows = SerializedFileReader::new(open(path)?)?.metadata().file_metadata().num_rows();
            u64::try_from(n_rows).context("the number of rows is negative")?
        }
        _ => open(path)?.metadata()?.len(),
    };
    Ok(Some(size))
}

/// Gives every row of `path` (standard input where `None`) to `sink`, until it returns `false`.
///
/// # Errors
/// Where the file is not readable or not of its format; rows before that have been given.
pub(super) fn read(path: Option<&Path>, format: Format, sink: impl FnMut(Row) -> bool) -> anyhow::Result<()> {
    match (path, format) {
        (None, Format::Parquet) => anyhow::bail!("Parquet needs a file: its index stands at the end"),
        (Some(path), Format::Parquet) => parquet_rows(path, sink),
        (None, _) => text(io::stdin().lock(), format, sink),
        (Some(path), _) => text(BufReader::new(open(path)?), format, sink),
    }
}

fn open(path: &Path) -> anyhow::Result<File> {
    File::open(path).with_context(|| format!("`{}` cannot be opened", path.display()))
}

fn text(input: impl BufRead, format: Format, sink: impl FnMut(Row) -> bool) -> anyhow::Result<()> {
    match format {
        Format::Json => document(input, sink),
        Format::Csv => csv_rows(input, sink),
        Format::Ndjson | Format::Parquet => lines(input, sink),
    }
}

fn document(mut input: impl Read, mut sink: impl FnMut(Row) -> bool) -> anyhow::Result<()> {
    let mut bytes = Vec::new();
    input.by_ref().take(MAX_ROW_BYTES + 1).read_to_end(&mut bytes)?;
    let event = bounded(&bytes).and_then(EventWire::from_json);
    sink(Row { line: 1, event, position: bytes.len() as u64 });
    Ok(())
}

fn lines(mut input: impl BufRead, mut sink: impl FnMut(Row) -> bool) -> anyhow::Result<()> {
    let mut position = 0;
    let mut bytes = Vec::new();
    for line in 1.. {
        bytes.clear();
        position += input.by_ref().take(MAX_ROW_BYTES + 1).read_until(b'\n', &mut bytes)? as u64;
        if bytes.is_empty() {
            return Ok(());
        }
        let event = bounded(&bytes);
        let too_long = event.is_err();
        if bytes.trim_ascii().is_empty() {
            continue;
        }
        if !sink(Row { line, event: event.and_then(EventWire::from_json), position }) {
            return Ok(());
        }
        if too_long && bytes.last() != Some(&b'\n') {
            position += input.skip_until(b'\n')? as u64;
        }
    }
    Ok(())
}

fn csv_rows(input: impl Read, mut sink: impl FnMut(Row) -> bool) -> anyhow::Result<()> {
    let mut reader = csv::Reader::from_reader(input);
    let columns: Vec<String> =
        reader.headers().context("the first line must name the columns")?.iter().map(str::to_owned).collect();
    let mut record = csv::StringRecord::new();
    loop {
        let event = match reader.read_record(&mut record) {
            Ok(false) => return Ok(()),
            Ok(true) => {
                let mut nested = Nested::default();
                for (column, text) in columns.iter().zip(&record) {
                    if let Some(value) = text_cell(column, text) {
                        nested.insert(column, value);
                    }
                }
                EventWire::from_json(&nested.into_bytes())
            }
            Err(error) => Err(csv_error(error)?),
        };
        let line = record.position().map_or(0, csv::Position::line);
        if !sink(Row { line, event, position: reader.position().byte() }) {
            return Ok(());
        }
    }
}

/// What is wrong with one record; an error of the file itself is passed on.
fn csv_error(error: csv::Error) -> anyhow::Result<EventError> {
    match error.kind() {
        csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
            Ok(EventError::invalid("", format!("the record has {len} fields, the header {expected_len}")))
        }
        csv::ErrorKind::Utf8 { .. } => Ok(EventError::invalid("", "the record is not UTF-8")),
        _ => Err(error.into()),
    }
}

fn parquet_rows(path: &Path, mut sink: impl FnMut(Row) -> bool) -> anyhow::Result<()> {
    let reader = SerializedFileReader::new(open(path)?).with_context(|| format!("`{}` is not a Parquet file", path.display()))?;
    for (position, row) in (1..).zip(reader.get_row_iter(None)?) {
        let mut nested = Nested::default();
        for (column, field) in row?.into_columns() {
            if let Some(value) = parquet_cell(field) {
                nested.insert(&column, value);
            }
        }
        if !sink(Row { line: position, event: EventWire::from_json(&nested.into_bytes()), position }) {
            return Ok(());
        }
    }
    Ok(())
}

fn bounded(bytes: &[u8]) -> Result<&[u8], EventError> {
    if bytes.len() as u64 > MAX_ROW_BYTES {
        return Err(EventError::invalid("", format!("at most {MAX_ROW_BYTES} bytes are accepted")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(input: &str, format: Format, expected: &[(u64, Result<&str, &str>)]) {
        let mut rows = Vec::new();
        text(input.as_bytes(), format, |row| {
            rows.push((row.line, row.event.map(|event| event.narrative).map_err(|error| error.field)));
            true
        })
        .unwrap();
        let expected: Vec<_> = expected.iter().map(|(line, row)| (*line, row.map(str::to_owned).map_err(str::to_owned))).collect();
        assert_eq!(rows, expected);
    }

    #[test]
    fn ndjson_lines_keep_their_numbers() {
        let input = "{\"narrative\":\"a\"}\n\n{\"narrative\":1}\nnot json\n{\"narrative\":\"b\"}";
        check(input, Format::Ndjson, &[(1, Ok("a")), (3, Err("narrative")), (4, Err("")), (5, Ok("b"))]);
    }

    #[test]
    fn a_document_may_span_lines() {
        check("{\n\"narrative\":\n\"a\"\n}\n", Format::Json, &[(1, Ok("a"))]);
    }

    #[test]
    fn a_bad_csv_record_does_not_stop_the_next() {
        let input = "narrative,order.value\n\"two\nlines\",1\nshort\nb,much\nc,\n";
        check(input, Format::Csv, &[(2, Ok("two\nlines")), (4, Err("")), (5, Err("order.value")), (6, Ok("c"))]);
    }

    #[test]
    fn an_unknown_column_is_an_error_of_every_row() {
        check("narrative,order.colour\na,red\n", Format::Csv, &[(2, Err("order.colour"))]);
    }
}
