//! `sluice classify` and `sluice recommend`: bulk scoring without HTTP, on the pipeline that serves.
//!
//! Rows are read on a thread of their own, are in work together so that they share the encoder's batches, and are written in their
//! order. A row that is no event, or gets no answer, becomes a problem with its line number and the run goes on.

use std::io::{self, BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use futures_util::{StreamExt as _, stream};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use sluice::application;
use sluice::config::Config;
use sluice::decision::Pipeline;
use sluice::error::Error;
use sluice::event::EventLimits;
use sluice::http::ClassifyAnswer;
use sluice::http::problem::Problem;
use sluice::store::IN_MEMORY;
use tokio::sync::mpsc;

use super::Outcome;
use super::rows::{self, Format, Row};

/// Rows in work at once: several encoder batches, so that no worker waits for the reader.
const CONCURRENCY: usize = 256;

/// Where events come from.
#[derive(Debug, Args)]
pub(super) struct BulkArgs {
    /// NDJSON, JSON (one event), CSV with columns such as `order.value`, or Parquet; `-` or none reads NDJSON from standard input
    file: Option<PathBuf>,
    /// Read the file as this format, whatever its name says
    #[arg(long)]
    format: Option<Format>,
}

/// What is asked for each row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Task {
    Classify,
    Recommend,
}

/// Answers every row on standard output.
pub(super) async fn run(mut config: Config, args: BulkArgs, task: Task) -> anyhow::Result<Outcome> {
    let file = args.file.filter(|path| path != Path::new("-"));
    let format = args.format.unwrap_or_else(|| file.as_deref().map_or(Format::Ndjson, Format::of));
    let size = rows::size(file.as_deref(), format)?;
    if task == Task::Classify {
        // Nothing is recorded, so a running service keeps its store.
        config.store.path = IN_MEMORY.into();
    }
    let limits = config.event;
    let concurrency = CONCURRENCY.min(config.batching.queue_capacity);
    let pipeline = Arc::new(application::pipeline(&config).await?);

    let (row_tx, row_rx) = mpsc::channel(concurrency);
    let reading = tokio::task::spawn_blocking(move || rows::read(file.as_deref(), format, |row| row_tx.blocking_send(row).is_ok()));
    let rows = stream::unfold(row_rx, async |mut row_rx| Some((row_rx.recv().await?, row_rx)));
    let mut answers = rows.map(|row| answer(&pipeline, &limits, row, task)).buffered(concurrency).boxed();

    let progress = progress_bar(size, format);
    let mut output = BufWriter::new(io::stdout().lock());
    let mut outcome = Outcome::Success;
    while let Some(answer) = answers.next().await {
        if answer.failed {
            outcome = Outcome::Failure;
        }
        match writeln!(output, "{}", answer.json) {
            // Whoever reads has seen enough, as in `| head`.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(outcome),
            written => written?,
        }
        progress.set_position(answer.position);
    }
    output.flush()?;
    progress.finish_and_clear();
    drop(answers);
    reading.await??;
    pipeline.store.close().await;
    Ok(outcome)
}

struct Answer {
    json: String,
    failed: bool,
    position: u64,
}

async fn answer(pipeline: &Pipeline, limits: &EventLimits, row: Row, task: Task) -> Answer {
    let Row { line, event, position } = row;
    let answered = match (event, task) {
        (Err(error), _) => Err(error.into()),
        (Ok(event), Task::Classify) => {
            let event_id = event.id.clone();
            match event.into_content(limits) {
                Err(error) => Err(error.into()),
                Ok(content) => pipeline
                    .assess(&content, None, false)
                    .await
                    .map(|assessed| json(&ClassifyAnswer::new(event_id, assessed, pipeline.models.identity.clone()))),
            }
        }
        (Ok(event), Task::Recommend) => match event.into_event(limits) {
            Err(error) => Err(error.into()),
            Ok(event) => pipeline.decide(event, None, false).await.map(|decided| json(&decided.decision)),
        },
    };
    match answered {
        Ok(json) => Answer { json, failed: false, position },
        Err(error) => Answer { json: json(&problem(error, line)), failed: true, position },
    }
}

fn problem(error: Error, line: u64) -> Problem {
    Problem::from(error).with_line(line)
}

fn json(answer: &impl Serialize) -> String {
    serde_json::to_string(answer).expect("answers hold finite numbers and string keys only")
}

/// On standard error, and only where that is a terminal.
fn progress_bar(size: Option<u64>, format: Format) -> ProgressBar {
    let template = match (size, format) {
        (None, _) => "{spinner} {elapsed_precise}",
        (Some(_), Format::Parquet) => "{bar:40} {human_pos}/{human_len} rows  {per_sec}  {eta} left",
        (Some(_), _) => "{bar:40} {bytes}/{total_bytes}  {bytes_per_sec}  {eta} left",
    };
    let progress = size.map_or_else(ProgressBar::new_spinner, ProgressBar::new);
    progress.set_style(ProgressStyle::with_template(template).expect("the templates are fixed"));
    progress
}
