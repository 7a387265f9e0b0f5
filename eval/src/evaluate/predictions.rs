//! `predictions.parquet`: one row a text, for whoever wants to look closer.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use parquet::basic::Compression;
use parquet::data_type::{BoolType, ByteArray, ByteArrayType, DataType, DoubleType};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::parser::parse_message_type;

use super::{Evaluation, Prediction};

const SCHEMA: &str = "message predictions {
    REQUIRED BYTE_ARRAY group (UTF8);
    REQUIRED BYTE_ARRAY text (UTF8);
    REQUIRED BYTE_ARRAY label (UTF8);
    REQUIRED BYTE_ARRAY type (UTF8);
    REQUIRED BYTE_ARRAY best_type (UTF8);
    REQUIRED BOOLEAN abstained;
    REQUIRED DOUBLE score;
    REQUIRED DOUBLE acceptance;
    REQUIRED DOUBLE novelty;
    REQUIRED DOUBLE label_score;
}";

/// Writes every prediction. `label_score` is the probability of the label, 0 for a text that fits no type.
///
/// # Errors
/// Where the file cannot be written.
pub fn write(evaluation: &Evaluation, path: &Path) -> Result<()> {
    let rows = &evaluation.predictions;
    let file = File::create(path).with_context(|| format!("`{}` cannot be created", path.display()))?;
    let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
    let mut writer = SerializedFileWriter::new(file, Arc::new(parse_message_type(SCHEMA)?), Arc::new(properties))?;
    let mut group = writer.next_row_group()?;
    let strings = |of: &dyn Fn(&Prediction) -> &str| rows.iter().map(|row| ByteArray::from(of(row))).collect::<Vec<_>>();
    let doubles = |of: &dyn Fn(&Prediction) -> f64| rows.iter().map(of).collect::<Vec<f64>>();
    column::<ByteArrayType>(&mut group, &strings(&|row| &row.group))?;
    column::<ByteArrayType>(&mut group, &strings(&|row| &row.text))?;
    column::<ByteArrayType>(&mut group, &strings(&|row| &row.label))?;
    column::<ByteArrayType>(&mut group, &strings(&|row| &row.classification.r#type))?;
    column::<ByteArrayType>(&mut group, &strings(&|row| &row.classification.candidates[0].r#type))?;
    column::<BoolType>(&mut group, &rows.iter().map(|row| row.classification.abstained).collect::<Vec<_>>())?;
    column::<DoubleType>(&mut group, &doubles(&|row| row.classification.score))?;
    column::<DoubleType>(&mut group, &doubles(&|row| row.classification.acceptance))?;
    column::<DoubleType>(&mut group, &doubles(&|row| row.classification.novelty))?;
    column::<DoubleType>(&mut group, &doubles(&label_score))?;
    group.close()?;
    writer.close()?;
    Ok(())
}

fn label_score(row: &Prediction) -> f64 {
    let candidate = row.classification.candidates.iter().find(|candidate| candidate.r#type == row.label);
    candidate.map_or(0.0, |candidate| candidate.score)
}

fn column<T: DataType>(group: &mut SerializedRowGroupWriter<'_, File>, values: &[T::T]) -> Result<()> {
    let mut column = group.next_column()?.context("the schema has a column for every call")?;
    column.typed::<T>().write_batch(values, None, None)?;
    column.close()?;
    Ok(())
}
