//! Tables to train on: CSV, JSON Lines and Parquet as named columns of cells, and a case history as the columns its events have.
//!
//! A case history is read through the facts the server reads (`sluice::risk::sources`), so training and serving see one table.
//! It refuses infinities, nested lists and rows of another width. Empty, `null`, `NaN`, `NA` and an empty string are missing.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Seek};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::{Field, Row};
use sluice::event::EventLimits;
use sluice::risk::sources::{FactValue, Reader, Source};

use crate::simulate::Case;

/// Columns of cells, all of one length.
#[derive(Debug, Clone, Default)]
pub struct Table {
    pub columns: Vec<Column>,
    pub n_rows: usize,
}

/// One named column.
#[derive(Debug, Clone, PartialEq)]
pub struct Column {
    pub name: String,
    pub cells: Vec<Cell>,
}

/// One value of a table.
#[derive(Debug, Clone, PartialEq)]
pub enum Cell {
    Missing,
    Number(f64),
    Flag(bool),
    Text(String),
}

/// Columns of a case history that are not facts of its events.
pub const OUTCOME_COLUMNS: [&str; 4] =
    ["outcome.sla_breached", "outcome.loss_fraction", "outcome.revenue_loss", "truth.breach_probability"];
/// Column of a case history that orders it in time: seconds since 1970.
pub const TIME_COLUMN: &str = "occurred_at";

impl Table {
    /// Reads a file by its extension: `csv`, `parquet`, and `jsonl`, `ndjson` or `json` for one object a line.
    ///
    /// # Errors
    /// The line or column at fault.
    pub fn read(path: &Path) -> Result<Self> {
        let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        let file = File::open(path).with_context(|| format!("cannot read `{}`", path.display()))?;
        let table = match extension {
            "csv" => read_csv(file),
            "parquet" => read_parquet(file),
            "jsonl" | "ndjson" | "json" => read_json_lines(file),
            other => bail!("`.{other}` is not served; csv, jsonl, ndjson, json and parquet are"),
        };
        let table = table.with_context(|| format!("in `{}`", path.display()))?;
        ensure!(table.n_rows > 0, "`{}` holds no rows", path.display());
        Ok(table)
    }

    /// Reads a case history as the given facts of its events, its outcomes and its time.
    ///
    /// # Errors
    /// The line at fault, with the event's own field where one is.
    pub fn from_cases(path: &Path, fact_names: &[&str]) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("cannot read `{}`", path.display()))?;
        let sources: Vec<Source> = fact_names
            .iter()
            .map(|name| Source::by_name(name).with_context(|| format!("`{name}` is no fact of an event")))
            .collect::<Result<_>>()?;
        let names = fact_names.iter().copied().chain([TIME_COLUMN]).chain(OUTCOME_COLUMNS);
        let mut table =
            Self { columns: names.map(|name| Column { name: name.to_owned(), cells: Vec::new() }).collect(), n_rows: 0 };
        // A history was accepted once already; these bounds only keep nonsense out.
        let limits = EventLimits { max_narrative_chars: 1 << 20, max_lines: 10_000, max_attributes: 1_000 };
        for (line_idx, line) in BufReader::with_capacity(1 << 20, file).lines().enumerate() {
            let at = || format!("line {} of `{}`", line_idx + 1, path.display());
            let case: Case = serde_json::from_str(&line.with_context(at)?).with_context(at)?;
            let content = case.event.into_content(&limits).with_context(at)?;
            let reader = Reader::new(&content.facts);
            let facts = sources.iter().map(|source| Cell::from(reader.read(source)));
            let moment = content.facts.occurred_at.map(|moment| moment.unix_timestamp() as f64);
            let outcome = [
                Cell::Flag(case.outcome.sla_breached),
                Cell::Number(case.outcome.loss_fraction),
                Cell::Number(case.outcome.revenue_loss),
                case.truth.map_or(Cell::Missing, |truth| Cell::Number(truth.breach_probability)),
            ];
            let cells = facts.chain([moment.map_or(Cell::Missing, Cell::Number)]).chain(outcome);
            for (column, cell) in table.columns.iter_mut().zip(cells) {
                column.cells.push(cell);
            }
            table.n_rows += 1;
        }
        ensure!(table.n_rows > 0, "`{}` holds no cases", path.display());
        Ok(table)
    }

    pub fn column(&self, name: &str) -> Result<&Column> {
        self.columns.iter().find(|column| column.name == name).with_context(|| {
            let names: Vec<&str> = self.columns.iter().map(|column| column.name.as_str()).collect();
            format!("there is no column `{name}`; there are {}", names.join(", "))
        })
    }
}

impl Column {
    /// The cells as numbers, flags as 0 and 1.
    ///
    /// # Errors
    /// The row that holds text or nothing.
    pub fn numbers(&self) -> Result<Vec<f64>> {
        let number = |(row, cell): (usize, &Cell)| match cell {
            Cell::Number(number) => Ok(*number),
            Cell::Flag(flag) => Ok(f64::from(u8::from(*flag))),
            Cell::Text(_) | Cell::Missing => bail!("row {} of `{}` is no number", row + 1, self.name),
        };
        self.cells.iter().enumerate().map(number).collect()
    }
}

impl Cell {
    /// The cell as a feature sees it.
    pub fn value(&self) -> Option<FactValue<'_>> {
        match self {
            Self::Missing => None,
            Self::Number(number) => Some(FactValue::Number(*number)),
            Self::Flag(flag) => Some(FactValue::Flag(*flag)),
            Self::Text(text) => Some(FactValue::Text(text)),
        }
    }

    /// A number that is finite; NaN is missing.
    fn number(number: f64) -> Result<Self> {
        match number {
            number if number.is_nan() => Ok(Self::Missing),
            number if number.is_infinite() => bail!("an infinite number is no value; leave the cell empty"),
            number => Ok(Self::Number(number)),
        }
    }
}

impl From<Option<FactValue<'_>>> for Cell {
    fn from(value: Option<FactValue<'_>>) -> Self {
        match value {
            None => Self::Missing,
            Some(FactValue::Number(number)) => Self::Number(number),
            Some(FactValue::Flag(flag)) => Self::Flag(flag),
            Some(FactValue::Text(text)) => Self::Text(text.to_owned()),
        }
    }
}

/// Whether the first line of a file is a case of a history.
pub fn is_case_history(path: &Path) -> Result<bool> {
    let mut reader = BufReader::new(File::open(path).with_context(|| format!("cannot read `{}`", path.display()))?);
    if path.extension().is_some_and(|extension| extension == "csv" || extension == "parquet") {
        return Ok(false);
    }
    reader.rewind()?;
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let value: serde_json::Value = serde_json::from_str(&line).with_context(|| format!("line 1 of `{}`", path.display()))?;
    Ok(value.get("event").is_some_and(serde_json::Value::is_object) && value.get("outcome").is_some())
}

fn is_missing_word(text: &str) -> bool {
    matches!(text, "" | "NA" | "N/A" | "NaN" | "nan" | "null" | "NULL" | "None")
}

fn read_csv(file: File) -> Result<Table> {
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(BufReader::new(file));
    let names: Vec<String> = reader.headers()?.iter().map(str::to_owned).collect();
    let mut texts: Vec<Vec<String>> = vec![Vec::new(); names.len()];
    for record in reader.records() {
        for (column, text) in texts.iter_mut().zip(record?.iter()) {
            column.push(text.to_owned());
        }
    }
    let n_rows = texts.first().map_or(0, Vec::len);
    let columns = names.into_iter().zip(texts).map(|(name, texts)| typed_column(name, &texts)).collect::<Result<_>>()?;
    Ok(Table { columns, n_rows })
}

/// A column is numeric where every value is a number, boolean where every value is `true` or `false`, else text.
fn typed_column(name: String, texts: &[String]) -> Result<Column> {
    let given = || texts.iter().map(String::as_str).filter(|text| !is_missing_word(text));
    let as_flag = |text: &str| match text.to_ascii_lowercase().as_str() {
        "true" => Some(true),
        "false" => Some(false),
        _ => None,
    };
    let numeric = given().all(|text| text.parse::<f64>().is_ok());
    let boolean = given().all(|text| as_flag(text).is_some());
    let cell = |text: &String| match text.as_str() {
        text if is_missing_word(text) => Ok(Cell::Missing),
        text if numeric => Cell::number(text.parse()?),
        text if boolean => Ok(as_flag(text).map_or(Cell::Missing, Cell::Flag)),
        text => Ok(Cell::Text(text.to_owned())),
    };
    let cells = texts.iter().map(cell).collect::<Result<_>>().with_context(|| format!("column `{name}`"))?;
    Ok(Column { name, cells })
}

fn read_json_lines(file: File) -> Result<Table> {
    let mut rows: Vec<BTreeMap<String, Cell>> = Vec::new();
    for (line_idx, line) in BufReader::with_capacity(1 << 20, file).lines().enumerate() {
        let line = line?;
        if line.trim().is_empty() {
            continue;
        }
        let at = || format!("line {}", line_idx + 1);
        let value: serde_json::Value = serde_json::from_str(&line).with_context(at)?;
        let mut row = BTreeMap::new();
        ensure!(value.is_object(), "line {} is no object", line_idx + 1);
        flatten_json(String::new(), value, &mut row).with_context(at)?;
        rows.push(row);
    }
    columns_of(rows)
}

fn flatten_json(name: String, value: serde_json::Value, row: &mut BTreeMap<String, Cell>) -> Result<()> {
    let cell = match value {
        serde_json::Value::Object(object) => {
            for (key, value) in object {
                let name = if name.is_empty() { key } else { format!("{name}.{key}") };
                flatten_json(name, value, row)?;
            }
            return Ok(());
        }
        serde_json::Value::Null => Cell::Missing,
        serde_json::Value::Bool(flag) => Cell::Flag(flag),
        serde_json::Value::Number(number) => Cell::number(number.as_f64().context("a number beyond f64")?)?,
        serde_json::Value::String(text) if is_missing_word(&text) => Cell::Missing,
        serde_json::Value::String(text) => Cell::Text(text),
        serde_json::Value::Array(_) => bail!("`{name}` is a list; a column holds one value a row"),
    };
    row.insert(name, cell);
    Ok(())
}

fn read_parquet(file: File) -> Result<Table> {
    let reader = SerializedFileReader::new(file)?;
    let mut rows = Vec::new();
    for (row_idx, record) in reader.get_row_iter(None)?.enumerate() {
        let mut row = BTreeMap::new();
        flatten_parquet("", &record?, &mut row).with_context(|| format!("row {}", row_idx + 1))?;
        rows.push(row);
    }
    columns_of(rows)
}

fn flatten_parquet(prefix: &str, record: &Row, row: &mut BTreeMap<String, Cell>) -> Result<()> {
    for (key, field) in record.get_column_iter() {
        let name = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        let cell = match field {
            Field::Group(group) => {
                flatten_parquet(&name, group, row)?;
                continue;
            }
            Field::Null => Cell::Missing,
            Field::Bool(flag) => Cell::Flag(*flag),
            Field::Byte(n) => Cell::Number(f64::from(*n)),
            Field::Short(n) => Cell::Number(f64::from(*n)),
            Field::Int(n) | Field::Date(n) | Field::TimeMillis(n) => Cell::Number(f64::from(*n)),
            Field::Long(n) | Field::TimeMicros(n) | Field::TimestampMillis(n) | Field::TimestampMicros(n) => {
                Cell::Number(*n as f64)
            }
            Field::UByte(n) => Cell::Number(f64::from(*n)),
            Field::UShort(n) => Cell::Number(f64::from(*n)),
            Field::UInt(n) => Cell::Number(f64::from(*n)),
            Field::ULong(n) => Cell::Number(*n as f64),
            Field::Float16(n) => Cell::number(f64::from(f32::from(*n)))?,
            Field::Float(n) => Cell::number(f64::from(*n))?,
            Field::Double(n) => Cell::number(*n)?,
            Field::Str(text) if is_missing_word(text) => Cell::Missing,
            Field::Str(text) => Cell::Text(text.clone()),
            other => bail!("`{name}` holds {other:?}; numbers, booleans and strings are served"),
        };
        row.insert(name, cell);
    }
    Ok(())
}

/// Columns of rows that may lack keys. A column of mixed kinds is text.
fn columns_of(rows: Vec<BTreeMap<String, Cell>>) -> Result<Table> {
    let n_rows = rows.len();
    let mut columns: BTreeMap<String, Vec<Cell>> = BTreeMap::new();
    for (row_idx, row) in rows.into_iter().enumerate() {
        for (name, cell) in row {
            let cells = columns.entry(name).or_insert_with(|| vec![Cell::Missing; n_rows]);
            cells[row_idx] = cell;
        }
    }
    let columns = columns.into_iter().map(|(name, mut cells)| {
        let kinds: std::collections::HashSet<_> =
            cells.iter().filter(|cell| **cell != Cell::Missing).map(std::mem::discriminant).collect();
        if kinds.len() > 1 {
            for cell in &mut cells {
                *cell = match std::mem::replace(cell, Cell::Missing) {
                    Cell::Number(number) => Cell::Text(number.to_string()),
                    Cell::Flag(flag) => Cell::Text(flag.to_string()),
                    other => other,
                };
            }
        }
        Column { name, cells }
    });
    Ok(Table { columns: columns.collect(), n_rows })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str, text: &str) -> Result<Table> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        Table::read(&path)
    }

    fn check_column(table: &Table, name: &str, expected: &[Cell]) {
        assert_eq!(table.column(name).unwrap().cells, expected, "{name}");
    }

    #[test]
    fn csv_columns_get_the_kind_that_every_value_has() {
        let table = read("t.csv", "n,flag,text,mixed\n1.5,true,a,1\n,False,,x\nNaN,NA,b,2\n").unwrap();
        check_column(&table, "n", &[Cell::Number(1.5), Cell::Missing, Cell::Missing]);
        check_column(&table, "flag", &[Cell::Flag(true), Cell::Flag(false), Cell::Missing]);
        check_column(&table, "text", &[Cell::Text("a".to_owned()), Cell::Missing, Cell::Text("b".to_owned())]);
        check_column(&table, "mixed", &[Cell::Text("1".to_owned()), Cell::Text("x".to_owned()), Cell::Text("2".to_owned())]);
    }

    #[test]
    fn json_lines_are_flattened_and_absent_keys_are_missing() {
        let table = read("t.jsonl", "{\"a\":{\"b\":1}}\n\n{\"a\":{\"b\":null,\"c\":\"x\"},\"d\":true}\n").unwrap();
        assert_eq!(table.n_rows, 2);
        check_column(&table, "a.b", &[Cell::Number(1.0), Cell::Missing]);
        check_column(&table, "a.c", &[Cell::Missing, Cell::Text("x".to_owned())]);
        check_column(&table, "d", &[Cell::Missing, Cell::Flag(true)]);
    }

    #[test]
    fn parquet_columns_keep_their_kinds() {
        use parquet::column::writer::ColumnWriter;
        use parquet::data_type::ByteArray;
        let schema =
            "message rows { optional double n; required boolean flag; optional binary text (UTF8); required int64 count; }";
        let schema = std::sync::Arc::new(parquet::schema::parser::parse_message_type(schema).unwrap());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.parquet");
        let mut writer =
            parquet::file::writer::SerializedFileWriter::new(File::create(&path).unwrap(), schema, Default::default()).unwrap();
        let mut group = writer.next_row_group().unwrap();
        while let Some(mut column) = group.next_column().unwrap() {
            match column.untyped() {
                ColumnWriter::DoubleColumnWriter(n) => n.write_batch(&[1.5], Some(&[1, 0]), None),
                ColumnWriter::BoolColumnWriter(flag) => flag.write_batch(&[true, false], None, None),
                ColumnWriter::ByteArrayColumnWriter(text) => text.write_batch(&[ByteArray::from("a")], Some(&[0, 1]), None),
                ColumnWriter::Int64ColumnWriter(count) => count.write_batch(&[3, 4], None, None),
                _ => unreachable!("the schema has four columns"),
            }
            .unwrap();
            column.close().unwrap();
        }
        group.close().unwrap();
        writer.close().unwrap();
        let table = Table::read(&path).unwrap();
        check_column(&table, "n", &[Cell::Number(1.5), Cell::Missing]);
        check_column(&table, "flag", &[Cell::Flag(true), Cell::Flag(false)]);
        check_column(&table, "text", &[Cell::Missing, Cell::Text("a".to_owned())]);
        check_column(&table, "count", &[Cell::Number(3.0), Cell::Number(4.0)]);
    }

    fn check_refused(name: &str, text: &str, reason: &str) {
        let error = format!("{:#}", read(name, text).expect_err(reason));
        assert!(error.contains(reason), "`{error}` does not name `{reason}`");
    }

    #[test]
    fn tables_that_would_train_nonsense_are_refused() {
        check_refused("t.csv", "a\n1\ninf\n", "infinite");
        check_refused("t.csv", "a,b\n1\n", "2 fields");
        check_refused("t.csv", "a,b\n", "holds no rows");
        check_refused("t.jsonl", "{\"a\":[1]}\n", "`a` is a list");
        check_refused("t.jsonl", "[1]\n", "no object");
        check_refused("t.jsonl", "{\"a\":1}\n{oops\n", "line 2");
        check_refused("t.xlsx", "", "`.xlsx` is not served");
    }
}
