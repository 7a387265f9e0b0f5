//! Labelled texts from JSON Lines, CSV or Parquet.
//!
//! The caller names the columns; each file is a part of its own unless a column says which group a row belongs to. It refuses
//! rows without text or label, because a row that vanishes quietly makes every figure a lie.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;
use sha2::{Digest, Sha256};

/// Which columns hold what.
#[derive(Debug, Clone, clap::Args)]
pub struct Columns {
    /// Files to read: `.jsonl`, `.csv` or `.parquet`.
    #[arg(long, required = true, num_args = 1..)]
    pub data: Vec<PathBuf>,
    /// Column with the text.
    #[arg(long, default_value = "narrative")]
    pub text: String,
    /// Column with the label.
    #[arg(long, default_value = "type")]
    pub label: String,
    /// Column that says which rows belong together (an author, a site); without it each file is a group.
    #[arg(long)]
    pub group: Option<String>,
    /// Column with further labels: a JSON array, or codes between commas. Used where it exists.
    #[arg(long, default_value = "secondary_types")]
    pub secondary: String,
    /// Label of texts that fit no type.
    #[arg(long, default_value = "unrecognized")]
    pub oos_label: String,
}

impl Columns {
    /// These files with the column names of the default narratives.
    pub fn of(data: Vec<PathBuf>) -> Self {
        Self {
            data,
            text: "narrative".to_owned(),
            label: "type".to_owned(),
            group: None,
            secondary: "secondary_types".to_owned(),
            oos_label: "unrecognized".to_owned(),
        }
    }
}

/// One labelled text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    pub text: String,
    pub label: String,
    pub secondary: Vec<String>,
    /// Index into [`Dataset::groups`].
    pub group: usize,
}

/// Labelled texts with the groups they came from.
#[derive(Debug, Clone)]
pub struct Dataset {
    pub examples: Vec<Example>,
    /// Names of the groups: file names, or the values of the group column.
    pub groups: Vec<String>,
    /// SHA-256 of each file, in hex, by name.
    pub files: BTreeMap<String, String>,
}

impl Dataset {
    /// Reads every file.
    ///
    /// # Errors
    /// The first file or row that cannot be read, with its place.
    pub fn read(columns: &Columns) -> Result<Self> {
        let mut dataset = Self { examples: Vec::new(), groups: Vec::new(), files: BTreeMap::new() };
        for path in &columns.data {
            let name = path.file_name().context("a data file has a name")?.to_string_lossy().into_owned();
            let bytes = std::fs::read(path).with_context(|| format!("`{}` cannot be read", path.display()))?;
            let earlier = dataset.files.insert(name.clone(), hex::encode(Sha256::digest(&bytes)));
            ensure!(earlier.is_none(), "two data files are called `{name}`; a file's name is its group");
            let rows = read_rows(path, &bytes).with_context(|| format!("`{}` cannot be read", path.display()))?;
            for (row_idx, row) in rows.into_iter().enumerate() {
                dataset.push(columns, &name, &row).with_context(|| format!("row {} of `{name}`", row_idx + 1))?;
            }
        }
        ensure!(!dataset.examples.is_empty(), "the data files have no rows");
        Ok(dataset)
    }

    fn push(&mut self, columns: &Columns, file: &str, row: &Row) -> Result<()> {
        let required = |column: &str| -> Result<String> {
            let value = row.get(column).with_context(|| format!("has no column `{column}`"))?;
            ensure!(!value.trim().is_empty(), "has an empty `{column}`");
            Ok(value.clone())
        };
        let group = match &columns.group {
            Some(column) => required(column)?,
            None => file.to_owned(),
        };
        let group = self.groups.iter().position(|known| *known == group).unwrap_or_else(|| {
            self.groups.push(group);
            self.groups.len() - 1
        });
        let secondary = row.get(&columns.secondary).map(|value| list(value)).unwrap_or_default();
        self.examples.push(Example { text: required(&columns.text)?, label: required(&columns.label)?, secondary, group });
        Ok(())
    }
}

type Row = BTreeMap<String, String>;

fn read_rows(path: &Path, bytes: &[u8]) -> Result<Vec<Row>> {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("jsonl" | "ndjson") => json_lines(bytes),
        Some("csv") => comma_separated(bytes),
        Some("parquet") => parquet_rows(path),
        _ => bail!("its name ends in none of `.jsonl`, `.ndjson`, `.csv`, `.parquet`"),
    }
}

fn json_lines(bytes: &[u8]) -> Result<Vec<Row>> {
    let text = std::str::from_utf8(bytes).context("it is not UTF-8")?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(line_idx, line)| {
            let object: BTreeMap<String, serde_json::Value> =
                serde_json::from_str(line).with_context(|| format!("line {}", line_idx + 1))?;
            let plain = |value| match value {
                serde_json::Value::String(text) => text,
                serde_json::Value::Null => String::new(),
                other => other.to_string(),
            };
            Ok(object.into_iter().map(|(column, value)| (column, plain(value))).collect())
        })
        .collect()
}

fn comma_separated(bytes: &[u8]) -> Result<Vec<Row>> {
    let mut reader = csv::Reader::from_reader(bytes);
    let columns = reader.headers()?.clone();
    reader.records().map(|record| Ok(columns.iter().map(str::to_owned).zip(record?.iter().map(str::to_owned)).collect())).collect()
}

fn parquet_rows(path: &Path) -> Result<Vec<Row>> {
    let reader = SerializedFileReader::new(File::open(path)?)?;
    let rows = reader.get_row_iter(None)?;
    rows.map(|row| {
        let row = row?;
        let plain = |field: &Field| match field {
            Field::Str(text) => text.clone(),
            Field::Null => String::new(),
            Field::ListInternal(list) => {
                let items: Vec<String> = list.elements().iter().map(|item| item.to_string().trim_matches('"').to_owned()).collect();
                items.join(",")
            }
            other => other.to_string(),
        };
        Ok(row.get_column_iter().map(|(column, field)| (column.clone(), plain(field))).collect())
    })
    .collect()
}

/// The codes in a JSON array or between commas.
fn list(value: &str) -> Vec<String> {
    if let Ok(codes) = serde_json::from_str::<Vec<String>>(value) {
        return codes;
    }
    value.split(',').map(str::trim).filter(|code| !code.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(files: &[(&str, &str)], group: Option<&str>) -> Result<Dataset> {
        let dir = tempfile::tempdir().unwrap();
        let data = files
            .iter()
            .map(|(name, content)| {
                let path = dir.path().join(name);
                std::fs::write(&path, content).unwrap();
                path
            })
            .collect();
        Dataset::read(&Columns {
            data,
            text: "narrative".to_owned(),
            label: "type".to_owned(),
            group: group.map(str::to_owned),
            secondary: "secondary_types".to_owned(),
            oos_label: "unrecognized".to_owned(),
        })
    }

    const JSONL: &str = "{\"narrative\":\"short pick\",\"type\":\"a\",\"secondary_types\":[\"b\",\"c\"],\"site\":\"x\"}\n\n{\"narrative\":\"late\",\"type\":\"b\",\"site\":7}\n";
    const CSV: &str = "type,narrative,site\nb,\"late, very\",x\n";

    #[test]
    fn every_format_gives_the_same_rows() {
        let dataset = read(&[("p.jsonl", JSONL), ("q.csv", CSV)], None).unwrap();
        let texts: Vec<_> = dataset.examples.iter().map(|row| (row.text.as_str(), row.label.as_str(), row.group)).collect();
        assert_eq!(texts, [("short pick", "a", 0), ("late", "b", 0), ("late, very", "b", 1)]);
        assert_eq!(dataset.examples[0].secondary, ["b", "c"]);
        assert_eq!(dataset.groups, ["p.jsonl", "q.csv"]);
    }

    #[test]
    fn a_column_can_name_the_groups() {
        let dataset = read(&[("p.jsonl", JSONL), ("q.csv", CSV)], Some("site")).unwrap();
        let groups: Vec<_> = dataset.examples.iter().map(|row| dataset.groups[row.group].as_str()).collect();
        assert_eq!(groups, ["x", "7", "x"]);
    }

    #[test]
    fn a_row_that_cannot_be_used_is_named() {
        #[track_caller]
        fn check(file: &str, content: &str, expected: &str) {
            let refusal = format!("{:#}", read(&[(file, content)], None).unwrap_err());
            assert!(refusal.contains(expected), "{refusal}");
        }

        check("p.jsonl", "{\"narrative\":\"x\"}", "has no column `type`");
        check("p.jsonl", "{\"narrative\":\" \",\"type\":\"a\"}", "row 1 of `p.jsonl`: has an empty `narrative`");
        check("p.jsonl", "{\"narrative\":\"x\",\"type\":\"a\"}\n{oops", "line 2");
        check("p.txt", "x", "ends in none of");
        check("p.csv", "narrative,type\n", "no rows");
    }
}
